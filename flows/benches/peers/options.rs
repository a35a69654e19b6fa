//! What is asked of the bench.

use crate::flops::Precision;
use crate::{DEPTHS, cases, config};
use clap::{ArgGroup, Parser};
use std::path::PathBuf;

/// Who there is; one that ends in [`BF16`] computes in bf16, whatever the options say.
const CONTENDERS: [&str; 9] = [
    "flows",
    "flows-bf16",
    "flows-recompute",
    "torch",
    "torch-bf16",
    "torch-channels-last",
    "torch-channels-last-bf16",
    "torch-compile",
    "normflows",
];

/// The end of the name of a contender that computes in bf16.
const BF16: &str = "-bf16";

/// What a contender of this name runs, and in which precision where its name says so.
pub fn split_name(name: &str) -> (&str, Option<Precision>) {
    match name.strip_suffix(BF16) {
        Some(plain) => (plain, Some(Precision::Bf16)),
        None => (name, None),
    }
}

/// Whole models and convolutions against PyTorch, in one run
#[derive(Parser)]
// The last of two values counts: scripts have their own before those of a person.
#[command(name = "peers", args_override_self = true, group = ArgGroup::new("rounding").multiple(false))]
pub struct Options {
    /// `cpu`, or `cuda:N` for the Nth GPU
    #[arg(long, default_value = "cpu")]
    pub device: String,
    /// Both sides round the factors of products to TF32 (GPUs)
    #[arg(long, group = "rounding")]
    tf32: bool,
    /// Both sides round the factors of products to bf16 (GPUs; PyTorch's is autocast)
    #[arg(long, group = "rounding")]
    bf16: bool,
    /// Ours may add in any order, as PyTorch does by default (GPUs)
    #[arg(long)]
    any_order: bool,
    /// Cases, or any `glow_L3_K32_512@64`, `realnvp_cifar@64`, `nice_mnist@200` with the batch behind the @ (default: the device's)
    #[arg(long, value_delimiter = ',', value_name = "CASE")]
    pub cases: Option<Vec<String>>,
    /// Contenders (default: those of the case)
    #[arg(long, value_delimiter = ',', value_parser = CONTENDERS)]
    who: Option<Vec<String>>,
    /// Rounds
    #[arg(long, default_value_t = 7, value_parser = clap::value_parser!(u64).range(1..))]
    pub rounds: u64,
    /// The least that a round takes, in seconds
    #[arg(long, default_value_t = 1.)]
    pub seconds: f64,
    /// Threads of each process on the CPU (default: all cores)
    #[arg(long)]
    threads: Option<usize>,
    /// What the device can do at most, in 1e12 operations a second, where flops.rs does not know
    #[arg(long, value_name = "TFLOPS")]
    pub peak: Option<f64>,
    /// torch.compile's mode
    #[arg(long, default_value = "default", value_name = "MODE")]
    pub compile_mode: String,
    /// The time after which torch.compile is left out, in seconds
    #[arg(long, default_value_t = 180., value_name = "S")]
    pub compile_seconds: f64,
    /// Raw results, written anew after each case
    #[arg(long, value_name = "FILE")]
    pub out: Option<PathBuf>,
}

impl Precision {
    /// By its name.
    pub fn parse(name: &str) -> anyhow::Result<Self> {
        match name {
            "f32" => Ok(Self::F32),
            "tf32" => Ok(Self::Tf32),
            "bf16" => Ok(Self::Bf16),
            _ => anyhow::bail!("there is no precision `{name}`"),
        }
    }

    /// As arguments have it.
    pub fn name(self) -> &'static str {
        match self {
            Self::F32 => "f32",
            Self::Tf32 => "tf32",
            Self::Bf16 => "bf16",
        }
    }
}

/// One sentence for a device that cannot be had, before anything is started.
fn check(device: &str) -> anyhow::Result<()> {
    let Some(n) = device.strip_prefix("cuda:") else {
        anyhow::ensure!(device == "cpu", "`--device {device}`: it is `cpu` or `cuda:N`");
        return Ok(());
    };
    let n: usize = n.parse().map_err(|_| anyhow::anyhow!("`--device {device}`: it is `cpu` or `cuda:N`"))?;
    let found = flows::ops::cuda::device_count()
        .map_err(|e| anyhow::anyhow!("`--device {device}`: no GPU can be opened here: {e}"))?;
    anyhow::ensure!(n < found, "`--device {device}`: this program finds {found} GPUs");
    Ok(())
}

impl Options {
    /// Refuses what cannot be measured, before anything is.
    pub fn check(self) -> anyhow::Result<Self> {
        check(&self.device)?;
        anyhow::ensure!(self.gpu() || !self.tf32, "`--tf32` is for GPUs");
        anyhow::ensure!(
            self.gpu() || !self.bf16,
            "`--bf16` is for GPUs: on a CPU contenders have it in their name"
        );
        let all = cases(&self.device);
        for case in self.cases.iter().flatten() {
            let known = all.contains(&case.as_str()) || (!case.starts_with("conv:") && config(case).is_ok());
            anyhow::ensure!(known, "there is no case `{case}`; there are {}", all.join(", "));
        }
        if let Some(path) = &self.out {
            // Before an hour of measuring, not after.
            let parent = path.parent().filter(|p| !p.as_os_str().is_empty());
            anyhow::ensure!(
                parent.is_none_or(std::path::Path::is_dir),
                "`--out {}`: there is no such folder",
                path.display()
            );
        }
        Ok(self)
    }

    /// Whether it is a GPU that is measured.
    pub fn gpu(&self) -> bool {
        self.device != "cpu"
    }

    /// What both sides round to.
    pub fn precision(&self) -> Precision {
        match (self.tf32, self.bf16) {
            (true, _) => Precision::Tf32,
            (_, true) => Precision::Bf16,
            _ => Precision::F32,
        }
    }

    /// In which order ours adds on a GPU.
    pub fn order(&self) -> &'static str {
        if self.any_order { "any" } else { "fixed" }
    }

    /// Threads of each process.
    pub fn threads(&self) -> usize {
        self.threads.unwrap_or_else(|| std::thread::available_parallelism().map_or(1, usize::from))
    }

    /// Who is measured on a case.
    pub fn contenders(&self, case: &str) -> Vec<&'static str> {
        let (gpu, conv, depth) = (self.gpu(), case.starts_with("conv:"), DEPTHS.contains(&case));
        let default = |name: &str| match split_name(name) {
            (_, Some(_)) => !gpu && !depth,
            ("flows-recompute", _) => !gpu && case.starts_with("glow"),
            ("torch-channels-last", _) => !depth,
            // On a CPU it compiles for minutes and trains at a quarter of eager's speed: by `--who` only.
            ("torch-compile", _) => gpu && !conv,
            ("normflows", _) => !conv && !depth,
            _ => true,
        };
        let chosen = |name: &&str| match &self.who {
            Some(who) => who.iter().any(|w| w == name),
            None => default(name),
        };
        CONTENDERS.into_iter().filter(chosen).collect()
    }

    /// Whether torch.compile is among them, and there is more than one ratio to tell.
    pub fn compiles(&self, case: &str) -> bool {
        self.contenders(case).contains(&"torch-compile")
    }

    /// What is measured of a case.
    pub fn tasks(&self, case: &str) -> &'static [&'static str] {
        if case.starts_with("conv:") {
            &["forward", "backward"]
        } else if DEPTHS.contains(&case) && !self.gpu() {
            &["train"]
        } else {
            &["train", "eval", "sample"]
        }
    }
}
