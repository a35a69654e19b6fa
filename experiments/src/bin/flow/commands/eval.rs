//! `flow eval`: bits/dim of saved weights on a part of a data set, and what stands beside it.

use super::print;
use crate::args::{Compute, DataArgs, Overrides, Part, SPLIT_HELP, seed};
use crate::arrays;
use crate::hub::{WEIGHTS, Weights};
use crate::report::measured::{comparison, terms};
use crate::saved::{Scoring, baselines, join, load_data, load_model, own_recipe, part, score_each};
use anyhow::{Result, ensure};
use candle_core::{Device, Tensor};
use clap::Args;
use experiments::limits::{self, Use};
use experiments::ranks::{Ranks, agree};
use experiments::recipe::Resolved;
use experiments::summary::{self, Baselines};
use flows::Model;
use serde_json::Value;
use std::path::PathBuf;

/// `eval`.
#[derive(Args)]
pub struct EvalArgs {
    /// Folder with config.json and model.safetensors, or a model of the Hugging Face Hub.
    #[arg(value_name = WEIGHTS)]
    weights: Weights,
    /// Recipe with the data and evaluation settings (default: recipe.toml of the folder).
    #[arg(long)]
    recipe: Option<String>,
    #[command(flatten)]
    overrides: Overrides,
    /// Data set to use instead of the recipe's.
    #[arg(long, value_name = "NAME")]
    data_set: Option<String>,
    #[arg(long, value_enum, help = SPLIT_HELP)]
    split: Option<Part>,
    /// Number of images (default: all).
    #[arg(long)]
    images: Option<usize>,
    #[command(flatten)]
    compute: Compute,
    #[command(flatten)]
    data: DataArgs,
    /// Seed of the dequantization noise (default: the seed of the run).
    #[arg(long, allow_negative_numbers = true, value_parser = seed)]
    seed: Option<u64>,
    /// Write log p(x) of each example, in nats, to this file (.csv, .npy, .npz or .safetensors).
    #[arg(long, value_name = "FILE")]
    out: Option<PathBuf>,
    /// Print the result as one JSON object on the last line.
    #[arg(long)]
    json: bool,
}

impl EvalArgs {
    /// What to change in the recipe.
    ///
    /// # Errors
    /// When it is the model, which is the saved one.
    fn sets(&self) -> Result<Vec<String>> {
        let mut sets = self.overrides.sets.clone();
        for set in &sets {
            let key = set.split('=').next().unwrap_or_default().trim();
            ensure!(
                key != "model" && !key.starts_with("model."),
                "--set {set}: saved weights have their model with them, so `eval` cannot change `{key}`; train another \
                 with `flow train`"
            );
        }
        sets.extend(self.data_set.iter().map(|name| format!("data.set={name}")));
        Ok(sets)
    }
}

/// The folder of the weights, its commit on the hub, and the model.
type Loaded = ((PathBuf, Option<String>), Model);

fn load(args: &EvalArgs, device: &Device) -> Result<Loaded> {
    let located = args.weights.locate()?;
    let model = load_model(&located.0, device)?;
    Ok((located, model))
}

/// Evaluates saved weights on a part of a data set.
///
/// # Errors
/// When the folder holds no model, the data cannot be read, or a likelihood is not finite.
pub fn run(args: &EvalArgs, ranks: &dyn Ranks) -> Result<()> {
    let sets = args.sets()?;
    ensure!(args.images != Some(0), "--images 0: evaluate at least one image, or leave it out for all");
    args.out.as_deref().map_or(Ok(()), |out| arrays::writable(out).map(drop))?;
    let device = args.compute.open_for(ranks)?;
    let ((weights, commit), model) = agree(ranks, load(args, &device))?;
    let mut recipe = match &args.recipe {
        Some(name) => Resolved::load(name, &sets)?.recipe,
        None => own_recipe(&weights, &sets)?,
    };
    // The weights have their model with them.
    recipe.model = model.config().clone();
    limits::recipe(&recipe, Use::Evaluation, device.is_cpu(), ranks)?;
    let join = join(args.split, &recipe.data.set, &weights, false);
    let data = load_data(&recipe, args.data.dir.clone(), join, ranks)?;
    let (split, which) = part(&data, args.split)?;
    let seed = args.seed.unwrap_or(recipe.train.seed);
    let what = format!("{} images", which.name());
    let scoring = Scoring { model: &model, recipe: &recipe, seed, ranks };
    let (measured, each) = score_each(scoring, split, &what, args.images)?;
    if let Some(out) = args.out.as_ref().filter(|_| ranks.rank() == 0) {
        let n = each.len();
        arrays::write(out, &[("log_prob", Tensor::from_vec(each, n, &Device::Cpu)?)])?;
    }
    let mut beside = Baselines::new(&recipe, &data);
    baselines(&mut beside, scoring, &data, split, &measured)?;
    if ranks.rank() > 0 {
        return Ok(());
    }
    let mut object = summary::score_json(&recipe.name, which.name(), &measured);
    beside.json(&mut object);
    object.insert("weights".to_owned(), args.weights.to_string().into());
    object.extend(commit.map(|commit| ("weights_commit".to_owned(), commit.into())));
    let mut lines = vec![terms(&measured, which.name())];
    lines.extend(comparison(Some(&measured), &beside));
    print(args.json, Value::Object(object), lines.join("\n"))
}
