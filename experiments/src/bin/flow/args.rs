//! Arguments that several commands share.

use crate::hub::{WEIGHTS, Weights};
use anyhow::{Context, Result, ensure};
use candle_core::Device;
use clap::{Args, ValueEnum};
use experiments::ranks::{Ranks, Single, agree};
use experiments::recipe::Resolved;
use flows::ops::device::open_device;
use std::path::PathBuf;

/// Which recipe.
#[derive(Args)]
pub struct RecipeArgs {
    /// Name of a built-in recipe (see `flow list`) or path of a .toml file.
    pub recipe: String,
    #[command(flatten)]
    overrides: Overrides,
    /// Seed of parameters, order, augmentation and noise (the setting `train.seed`).
    #[arg(long, allow_negative_numbers = true, value_parser = seed)]
    seed: Option<u64>,
    /// Crop and resize images of a folder to this side (the setting `data.size`).
    #[arg(long)]
    size: Option<usize>,
    /// Start from the weights of a model of the same architecture, a folder or hf:USER/NAME (the setting `train.init_from`).
    #[arg(long, value_name = WEIGHTS)]
    init_from: Option<Weights>,
}

/// Changed settings.
#[derive(Args)]
pub struct Overrides {
    /// Override a setting, for example --set train.lr=5e-4; can be repeated.
    #[arg(long = "set", value_name = "KEY=VALUE")]
    pub sets: Vec<String>,
}

impl RecipeArgs {
    /// The recipe with its overrides.
    ///
    /// # Errors
    /// As [`Resolved::load`].
    pub fn resolve(&self) -> Result<Resolved> {
        let mut sets = self.overrides.sets.clone();
        let by_name = [
            ("--seed", "train.seed", self.seed.map(|seed| seed.to_string())),
            ("--size", "data.size", self.size.map(|size| size.to_string())),
            (
                "--init-from",
                "train.init_from",
                self.init_from.as_ref().map(|from| format!("{:?}", from.to_string())),
            ),
        ];
        for (option, key, value) in by_name {
            let Some(value) = value else { continue };
            let twice = sets.iter().any(|set| set.split_once('=').is_some_and(|(own, _)| own.trim() == key));
            ensure!(!twice, "`{key}` is given by {option} and by --set: give one of them");
            sets.push(format!("{key}={value}"));
        }
        Resolved::load(&self.recipe, &sets)
    }
}

/// Where to compute.
#[derive(Args, Clone)]
pub struct Compute {
    /// Device: `cpu` or `cuda:N`; under mpirun `cuda`, which is another GPU for each process of a machine.
    #[arg(long, default_value = "cpu")]
    device: String,
    /// Number of threads, at most 512 (default: all cores, under mpirun the process's share of them).
    ///
    /// Results are equal to the bit only for equal numbers of threads.
    #[arg(long, value_parser = clap::value_parser!(u16).range(1..=512))]
    threads: Option<u16>,
}

impl Compute {
    /// Sets the number of threads and opens the device.
    ///
    /// # Errors
    /// When there is no such device: one sentence that says why.
    pub fn open(&self) -> Result<Device> {
        self.open_for(&Single)
    }

    /// As [`Compute::open`], for one of several processes: it takes its share of the machine's cores, and its own GPU.
    ///
    /// # Errors
    /// As [`Compute::open`], on any of them; when all would use one GPU, or the GPUs cannot add.
    pub fn open_for(&self, ranks: &dyn Ranks) -> Result<Device> {
        let device = agree(ranks, self.open_here(ranks))?;
        agree(ranks, ranks.open(&device).map_err(Into::into))?;
        Ok(device)
    }

    fn open_here(&self, ranks: &dyn Ranks) -> Result<Device> {
        let (local, here) = ranks.local();
        if let Some(threads) = self.threads.map(usize::from).or((here > 1).then(|| share_of_cores(here))) {
            rayon::ThreadPoolBuilder::new()
                .num_threads(threads)
                .build_global()
                .context("the number of threads cannot be changed any more")?;
        }
        ensure!(
            here == 1 || !self.device.starts_with("cuda:"),
            "--device {}: the {here} processes of this machine need a GPU each, say --device cuda",
            self.device
        );
        let name = if self.device == "cuda" { format!("cuda:{local}") } else { self.device.clone() };
        open_device(&name).with_context(|| format!("--device {name}"))
    }

    /// The device's name in a summary.
    #[must_use]
    pub fn name(&self) -> &str {
        &self.device
    }
}

/// The cores of one of `here` processes on this machine. A launcher that binds processes to cores has shared them out already.
fn share_of_cores(here: usize) -> usize {
    let mine = std::thread::available_parallelism().map_or(1, usize::from);
    let mut system = sysinfo::System::new();
    system.refresh_cpu_list(sysinfo::CpuRefreshKind::nothing());
    mine.min(system.cpus().len() / here).max(1)
}

/// Where the data are.
#[derive(Args, Clone)]
pub struct DataArgs {
    /// Folder of the data (default: the Hugging Face Hub).
    #[arg(long = "data", value_name = "DIR", env = "FLOW_DATA")]
    pub dir: Option<PathBuf>,
}

/// A part of a data set.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum Part {
    /// The training images.
    Train,
    /// The validation images.
    Validation,
    /// The test images.
    Test,
    /// All of them, those of training among them.
    All,
}

impl Part {
    /// Its name.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Self::Train => "train",
            Self::Validation => "validation",
            Self::Test => "test",
            Self::All => "all",
        }
    }
}

/// What `--split` says where it is left out.
pub const SPLIT_HELP: &str = "Split of the data set (default: test; all, where the data are your own, name no parts and are not \
                              those that the weights were trained on)";

/// A seed as it is given; a recipe is written as TOML, whose numbers end at 2^63 - 1.
pub fn seed(text: &str) -> Result<u64, String> {
    let seed = text.parse().ok().filter(|&seed: &u64| i64::try_from(seed).is_ok());
    seed.ok_or_else(|| format!("a seed is a whole number from 0 to {}", i64::MAX))
}

/// Parses one number of a list; clap has split it at the commas.
pub fn finite_number(text: &str) -> Result<f64, String> {
    let v = text.trim().parse::<f64>().ok().filter(|v| v.is_finite());
    v.ok_or_else(|| format!("`{text}` is no number: separate numbers with commas, as in 0,0.5,1"))
}
