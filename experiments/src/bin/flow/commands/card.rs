//! `flow card`: the model cards of folders of weights.

use crate::args::{Compute, DataArgs};
use crate::saved::{Scoring, baselines, load_data, load_model, own_recipe, score};
use crate::{card, output};
use anyhow::{Context, Result, ensure};
use candle_core::Device;
use clap::Args;
use experiments::data::Join;
use experiments::lock::Lock;
use experiments::ranks::Single;
use experiments::run_dir::{CARD, LICENSE, SUMMARY};
use experiments::summary::{Summary, short_dtype};
use flows::storage::write_atomic;
use std::path::{Path, PathBuf};

/// `card`.
#[derive(Args)]
pub struct CardArgs {
    /// Folders with config.json and model.safetensors.
    #[arg(required = true)]
    folders: Vec<PathBuf>,
    /// Record the licence of the weights: an identifier such as mit, or an expression such as `MIT OR Apache-2.0`.
    #[arg(long, value_name = "ID", value_parser = card::license)]
    license: Option<String>,
    /// Measure the weights as they are stored, on the data of their recipe, and put the figures into summary.json.
    #[arg(long)]
    measure: bool,
    #[command(flatten)]
    compute: Compute,
    #[command(flatten)]
    data: DataArgs,
}

/// Training images that are evaluated, at most: the number only shows how far train and test are apart.
const TRAIN_IMAGES: usize = 2_000;

/// Writes the cards of folders.
///
/// # Errors
/// When a folder holds no model or cannot be written, and with `--measure` when it holds no run, or the data cannot be read.
pub fn run(args: &CardArgs) -> Result<()> {
    let device = args.compute.open()?;
    for folder in &args.folders {
        ensure!(folder.is_dir(), "{} is no folder: name that of a run or of a model", folder.display());
        let _lock = Lock::take(folder)?;
        ensure!(!card::is_by_hand(folder)?, "{} {}", folder.join(CARD).display(), card::BY_HAND);
        if args.measure {
            measure(folder, args, &device)?;
        }
        if let Some(license) = &args.license {
            // What is no model has no licence to record.
            card::render(folder, None)?;
            write_atomic(&folder.join(LICENSE), format!("{license}\n").as_bytes())?;
        }
        card::write(folder)?;
        output::line(folder.join(CARD).display())?;
    }
    Ok(())
}

/// Measures stored weights as the end of a run does, and writes the figures into its summary.
fn measure(folder: &Path, args: &CardArgs, device: &Device) -> Result<()> {
    let mut summary = Summary::read(folder)?.with_context(|| {
        format!(
            "{} holds no run, whose {SUMMARY} would take the figures: `flow eval` prints them",
            folder.display()
        )
    })?;
    let model = load_model(folder, device)?;
    let mut recipe = own_recipe(folder, &[])?;
    recipe.model = model.config().clone();
    let data = load_data(&recipe, args.data.dir.clone(), Join::Never, &Single)?;
    let scoring = Scoring { model: &model, recipe: &recipe, seed: recipe.train.seed, ranks: &Single };
    let test = score(scoring, &data.test, "test images", None)?;
    let valid = data.valid.as_ref();
    let valid = valid.map(|valid| score(scoring, valid, "validation images", None));
    summary.validation = valid.transpose()?;
    summary.train = Some(score(scoring, &data.train, "training images", Some(TRAIN_IMAGES))?);
    baselines(&mut summary.beside, scoring, &data, &data.test, &test)?;
    summary.test = Some(test);
    summary.measured = short_dtype(folder).map(str::to_owned);
    summary.data_revision = data.revision;
    summary.write(folder)
}
