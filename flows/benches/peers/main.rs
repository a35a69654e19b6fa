//! `just bench` and `just bench-cuda`: whole models and convolutions against PyTorch, in one run.
//!
//! For each case one fresh process a contender builds the same architecture and then does as it is told: rounds go round
//! the contenders, so what else the machine does falls on all of them. Printed are medians with the smallest and largest
//! round. On the CPU: ours in f32 and in bf16 (`-bf16`); PyTorch as written by hand in both memory formats, each in f32 and under
//! autocast to bf16; normflows; the ratio to the best peer of the same or a lower precision; and peak memory: a process's
//! high-water mark after training, less that after building model and optimiser, less the gradients. The last line is one JSON
//! object of maps from case to ours over the best peer's: `train_ratio`, `eval_ratio`, `sample_ratio` (images/s) and `conv_ratio`
//! (operations a second) compare the faster of ours with the fastest of all peers, `train_ratio_f32` and so on f32 with f32;
//! `memory_ratio` (bytes in f32, less is better; `memory_ratio_recompute` with inputs reconstructed); `recompute_ratio` is storing
//! over reconstructing, ours over ours.
//!
//! On a GPU (`--device cuda:N`) PyTorch compiled comes beside PyTorch eager, and there are more columns: each task's peak of
//! what its process allocated on the GPU, the operations a second (counted from the weights' shapes, flops.rs) and their
//! share of what the device can do at most in that precision, ours over eager PyTorch (the faster memory format), over
//! torch.compile and over normflows: `eager_ratio`, `compile_ratio`, `normflows_ratio` and `share` from `CASE TASK`. A case
//! NAME@64 samples 64 images in one pass. A round there begins with an iteration that is not timed, for a process gives
//! back what memory it holds unused when others need it, and clocks rise; the GPU is waited for before and after the rest.
//! Our training step is recorded and replayed, as `flow train` does it: how many nodes it has and what the GPU would be idle
//! for without that comes with it; where a recording is refused, the reason.
//!
//! `FLOWS_PYTHON` names a Python with requirements.txt installed (default `python3`); without torch the peers are left out
//! and said to be; what breaks on the way (memory, say) is left out with its reason, and the rest goes on. `--help` lists the
//! arguments.

mod contender;
mod flops;
mod gpu;
mod options;
mod results;
mod worker;

use clap::Parser;
use flows::ModelConfig;
use flows::models::{GlowConfig, NiceConfig, RealNvpConfig};
use serde_json::json;

/// As in the binary `flow`.
#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

/// What a CPU is measured on, in batches of 16, NICE of 200.
const MODELS: [&str; 5] =
    ["glow_L2_K4_64", "glow_L3_K8_128", "glow_L3_K32_512", "realnvp_cifar", "nice_mnist"];
/// Channels in and out, kernel, side; batch 16.
const CONVOLUTIONS: [&str; 6] = [
    "conv:64:64:3:32",
    "conv:512:512:3:8",
    "conv:512:512:1:16",
    "conv:512:512:1:8",
    "conv:6:512:3:16",
    "conv:512:12:3:16",
];
/// What recomputing is measured on: memory must not grow from one to the other.
const DEPTHS: [&str; 2] = ["glow_L3_K8_128@64", "glow_L3_K32_128@64"];

/// What a GPU is measured on; a run that is cut off has the first of them.
const ON_GPU: [&str; 4] =
    ["glow_L3_K32_512@64", "realnvp_cifar@64", "glow_L3_K32_512@512", "realnvp_cifar@512"];

fn cases(device: &str) -> Vec<&'static str> {
    match device {
        "cpu" => MODELS.iter().chain(&DEPTHS).chain(&CONVOLUTIONS).copied().collect(),
        _ => ON_GPU.to_vec(),
    }
}

fn main() {
    // Cargo adds this one.
    let args: Vec<String> = std::env::args().filter(|a| a != "--bench").collect();
    if args.get(1).is_some_and(|a| a == "worker") {
        if let Err(e) = worker::work(&args[2..]) {
            println!("{}", json!({"ready": false, "why": format!("{e:#}")}));
        }
        return;
    }
    if let Err(e) = options::Options::parse_from(args).check().and_then(|o| results::drive(&o)) {
        eprintln!("error: {e:#}");
        std::process::exit(1);
    }
}

/// The model of a case, and its batch.
fn config(case: &str) -> anyhow::Result<(ModelConfig, usize)> {
    let (case, batch) = match case.split_once('@') {
        Some((case, batch)) => (case, Some(batch.parse()?)),
        None => (case, None),
    };
    let config = match case {
        "realnvp_cifar" => ModelConfig::RealNvp(RealNvpConfig::cifar_paper()),
        "nice_mnist" => return Ok((ModelConfig::Nice(NiceConfig::mnist_paper()), batch.unwrap_or(200))),
        glow => {
            let numbers: Vec<usize> = glow
                .split('_')
                .skip(1)
                .map(|p| p.trim_start_matches(['L', 'K']).parse())
                .collect::<Result<_, _>>()?;
            let [levels, depth, width] = numbers[..] else { anyhow::bail!("there is no case `{case}`") };
            ModelConfig::Glow(GlowConfig { levels, depth, width, ..GlowConfig::cifar_paper() })
        }
    };
    Ok((config, batch.unwrap_or(16)))
}
