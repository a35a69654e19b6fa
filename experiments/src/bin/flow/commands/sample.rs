//! `flow sample`: a picture of samples.

use crate::args::{Compute, seed};
use crate::draw::samples;
use crate::hub::{WEIGHTS, Weights};
use crate::output::{self, PICTURE, PNG};
use crate::saved::load_model;
use anyhow::{Result, ensure};
use clap::Args;
use experiments::limits;
use serde_json::json;
use std::path::PathBuf;

/// `sample`.
#[derive(Args)]
pub struct SampleArgs {
    /// A folder with config.json and model.safetensors (a run, or a model of weights/), or a model of the hub.
    #[arg(value_name = WEIGHTS)]
    weights: Weights,
    /// The class, for a class-conditional model (default: all in turn).
    #[arg(long)]
    class: Option<u32>,
    /// How many.
    #[arg(short, long = "number", default_value_t = 64)]
    n: usize,
    /// The temperature: samples are drawn with z scaled by it.
    #[arg(long, default_value_t = 1., allow_negative_numbers = true)]
    temperature: f64,
    /// The picture to write, a .png file.
    #[arg(long, value_name = "FILE", default_value = "samples.png")]
    out: PathBuf,
    /// The seed of the samples.
    #[arg(long, default_value_t = 0, allow_negative_numbers = true, value_parser = seed)]
    seed: u64,
    #[command(flatten)]
    compute: Compute,
    /// The result as one JSON object, the last line of standard output.
    #[arg(long)]
    json: bool,
}

/// Draws samples from saved weights.
///
/// # Errors
/// When the folder holds no model, the class is not the model's, or the picture cannot be written.
pub fn run(args: &SampleArgs) -> Result<()> {
    ensure!(args.n > 0, "-n 0: ask for at least one sample");
    ensure!(
        args.temperature >= 0. && args.temperature.is_finite(),
        "--temperature {}: it must be 0 or more",
        args.temperature
    );
    output::writable(&args.out, PNG, PICTURE)?;
    let device = args.compute.open()?;
    let model = load_model(&args.weights.locate()?.0, &device)?;
    limits::samples(model.config(), args.n, "-n", device.is_cpu())?;
    let drawn = samples::picture(&model, args.n, args.temperature, args.seed, args.class, None, &args.out)?;
    ensure!(drawn, "samples of shape {:?} cannot be drawn", model.config().shape());
    if args.json {
        output::line(json!({
            "weights": args.weights.to_string(),
            "file": args.out.display().to_string(),
            "images": args.n,
            "temperature": args.temperature,
            "seed": args.seed,
            "class": args.class,
        }))?;
    } else {
        output::line(format_args!("{} samples in {}", args.n, args.out.display()))?;
    }
    Ok(())
}
