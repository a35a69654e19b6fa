//! `flow sample`: samples as a picture, as a folder of pictures, or as an array.

use super::print;
use crate::args::{Compute, seed};
use crate::arrays::{self, Format};
use crate::context::{CONTEXT_HELP, Given};
use crate::draw::samples;
use crate::hub::{WEIGHTS, Weights};
use crate::output::{self, PICTURE, PNG};
use crate::saved::load_model;
use crate::session::check_temperature;
use anyhow::{Result, ensure};
use clap::Args;
use experiments::limits;
use experiments::ranks::{Ranks, agree};
use experiments::sample::sample;
use serde_json::json;
use std::path::{Path, PathBuf};

/// `sample`.
#[derive(Args)]
pub struct SampleArgs {
    /// Folder with config.json and model.safetensors, or a model of the Hugging Face Hub.
    #[arg(value_name = WEIGHTS)]
    weights: Weights,
    /// Class, for a class-conditional model (default: all in turn).
    #[arg(long)]
    class: Option<u32>,
    #[arg(long, value_name = "NUMBERS|FILE", allow_hyphen_values = true, help = CONTEXT_HELP)]
    context: Option<String>,
    /// Number of samples.
    #[arg(short, long = "number", default_value_t = 64)]
    n: usize,
    /// Temperature: latents are multiplied by it.
    #[arg(long, default_value_t = 1., allow_negative_numbers = true)]
    temperature: f64,
    /// Output: a picture (.png), an array (.npy, .npz, .safetensors or .csv), or a new or empty folder for one picture a sample
    /// (default: samples.png, or samples.npy for vectors).
    #[arg(long, value_name = "FILE|DIR")]
    out: Option<PathBuf>,
    /// Seed of the samples.
    #[arg(long, default_value_t = 0, allow_negative_numbers = true, value_parser = seed)]
    seed: u64,
    #[command(flatten)]
    compute: Compute,
    /// Print the result as one JSON object on the last line.
    #[arg(long)]
    json: bool,
}

/// What an output is.
enum Kind {
    Picture,
    Array,
    Folder,
}

/// The kind of `out`, by its name, where it can be written.
fn kind(out: &Path) -> Result<Kind> {
    if Format::of(out).is_some() {
        return arrays::writable(out).map(|_| Kind::Array);
    }
    if out.extension().is_some() && !out.is_dir() {
        return output::writable(out, PNG, PICTURE).map(|()| Kind::Picture);
    }
    output::new_folder(out, PNG, ", or a file in it")?;
    Ok(Kind::Folder)
}

/// Draws samples from saved weights.
///
/// # Errors
/// When the folder holds no model, the class or the context is not the model's, or the picture cannot be written.
pub fn run(args: &SampleArgs, ranks: &dyn Ranks) -> Result<()> {
    ensure!(args.n > 0, "-n 0: ask for at least one sample");
    let t = args.temperature;
    check_temperature(t)?;
    if let Some(out) = &args.out {
        kind(out)?;
    }
    let device = args.compute.open_for(ranks)?;
    let load = || load_model(&args.weights.locate()?.0, &device);
    let model = agree(ranks, load())?;
    let drawn = matches!(model.config().shape(), [1 | 3, _, _] | [2]);
    let default = PathBuf::from(if drawn { "samples.png" } else { "samples.npy" });
    // Nobody has asked to replace it: in the folder of a run it is that run's.
    ensure!(
        args.out.is_some() || !default.exists(),
        "{0} is there already: name another file with --out, or say --out {0} to replace it",
        default.display()
    );
    let out = args.out.clone().unwrap_or(default);
    let kind = kind(&out)?;
    ensure!(
        drawn || !matches!(kind, Kind::Picture),
        "samples of shape {:?} have no picture: write them as an array, --out samples.npy",
        model.config().shape()
    );
    let refuse = if matches!(kind, Kind::Picture) { limits::drawn } else { limits::samples };
    refuse(model.config(), args.n, "-n", device.is_cpu())?;
    let (n, given) = (args.n, Given::new(&model, args.n, args.class, args.context.as_deref()));
    let given = agree(ranks, given)?;
    let samples = sample(&model, n, t, args.seed, given.context(), ranks)?;
    if ranks.rank() > 0 {
        return Ok(());
    }
    match kind {
        Kind::Picture => drop(samples::picture(&model, &samples, &given, None, &out)?),
        Kind::Array => {
            let mut tensors = vec![("samples", samples)];
            tensors.extend(given.named());
            arrays::write(&out, &tensors)?;
        }
        Kind::Folder => samples::folder(&model, &samples, &out)?,
    }
    let file = out.display().to_string();
    let object = json!({
        "weights": args.weights.to_string(), "file": file, "images": args.n, "temperature": args.temperature,
        "seed": args.seed, "class": args.class, "context": args.context,
    });
    print(args.json, object, format_args!("{} samples in {file}", args.n))
}
