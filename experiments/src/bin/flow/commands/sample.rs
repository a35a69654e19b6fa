//! `flow sample`: a picture of samples.

use super::print;
use crate::args::{Compute, seed};
use crate::draw::samples;
use crate::hub::{WEIGHTS, Weights};
use crate::output::{self, PICTURE, PNG};
use crate::saved::load_model;
use crate::session::check_temperature;
use anyhow::{Result, ensure};
use clap::Args;
use experiments::limits;
use serde_json::json;
use std::path::PathBuf;

/// `sample`.
#[derive(Args)]
pub struct SampleArgs {
    /// Folder with config.json and model.safetensors, or a model of the Hugging Face Hub.
    #[arg(value_name = WEIGHTS)]
    weights: Weights,
    /// Class, for a class-conditional model (default: all in turn).
    #[arg(long)]
    class: Option<u32>,
    /// Number of samples.
    #[arg(short, long = "number", default_value_t = 64)]
    n: usize,
    /// Temperature: latents are multiplied by it.
    #[arg(long, default_value_t = 1., allow_negative_numbers = true)]
    temperature: f64,
    /// Output file (.png).
    #[arg(long, value_name = "FILE", default_value = "samples.png")]
    out: PathBuf,
    /// Seed of the samples.
    #[arg(long, default_value_t = 0, allow_negative_numbers = true, value_parser = seed)]
    seed: u64,
    #[command(flatten)]
    compute: Compute,
    /// Print the result as one JSON object on the last line.
    #[arg(long)]
    json: bool,
}

/// Draws samples from saved weights.
///
/// # Errors
/// When the folder holds no model, the class is not the model's, or the picture cannot be written.
pub fn run(args: &SampleArgs) -> Result<()> {
    ensure!(args.n > 0, "-n 0: ask for at least one sample");
    let t = args.temperature;
    check_temperature(t)?;
    output::writable(&args.out, PNG, PICTURE)?;
    let device = args.compute.open()?;
    let model = load_model(&args.weights.locate()?.0, &device)?;
    limits::samples(model.config(), args.n, "-n", device.is_cpu())?;
    let drawn = samples::picture(&model, args.n, args.temperature, args.seed, args.class, None, &args.out)?;
    ensure!(drawn, "samples of shape {:?} cannot be drawn", model.config().shape());
    let file = args.out.display().to_string();
    let object = json!({
        "weights": args.weights.to_string(), "file": file, "images": args.n, "temperature": args.temperature,
        "seed": args.seed, "class": args.class,
    });
    print(args.json, object, format_args!("{} samples in {file}", args.n))
}
