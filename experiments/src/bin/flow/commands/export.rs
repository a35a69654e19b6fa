//! `flow export`: saved weights once more, in another dtype or in shards, with their run's records and a card.

use crate::files::{self, FileArgs};
use crate::hub::{WEIGHTS, Weights};
use crate::{card, saved};
use anyhow::{Context, Result, ensure};
use candle_core::Device;
use experiments::run_dir::{self, COMPANIONS};
use experiments::summary::Summary;
use flows::storage::write_atomic;
use std::path::PathBuf;

/// `export`.
#[derive(clap::Args)]
pub struct ExportArgs {
    /// Folder with config.json and model.safetensors, or a model of the Hugging Face Hub.
    #[arg(value_name = WEIGHTS)]
    weights: Weights,
    /// Output folder, new or of an earlier export.
    #[arg(long, value_name = "DIR")]
    out: PathBuf,
    #[command(flatten)]
    file: FileArgs,
    /// Print the result as one JSON object on the last line.
    #[arg(long)]
    json: bool,
}

/// Writes saved weights into another folder. Figures that were measured before the weights were rounded stay behind.
///
/// # Errors
/// When there are no weights, a number does not fit the dtype, or the folder cannot be written.
pub fn run(args: &ExportArgs) -> Result<()> {
    let (weights, _) = args.weights.locate()?;
    let same = weights.canonicalize().ok().zip(args.out.canonicalize().ok()).is_some_and(|(a, b)| a == b);
    ensure!(!same, "--out {} is the folder that is exported: name another one", args.out.display());
    files::check_output_folder(&args.out)?;
    let model = saved::load_model(&weights, &Device::Cpu)?;
    args.file.advise();
    let _lock = files::take(&args.out)?;
    model.save(&args.out, &args.file.options())?;
    for name in COMPANIONS {
        let to = args.out.join(name);
        match run_dir::read(&weights.join(name))? {
            Some(bytes) => write_atomic(&to, &bytes)?,
            // Of an earlier export: it says nothing of these weights.
            None if to.exists() => {
                std::fs::remove_file(&to).with_context(|| format!("cannot remove {}", to.display()))?
            }
            None => {}
        }
    }
    if let (Some(before), Some(after)) = (Summary::read(&weights)?, Summary::read(&args.out)?) {
        after.write(&args.out)?;
        if before.score().is_some() && after.score().is_none() {
            tracing::info!(
                "the figures of {} are those of weights that were not rounded, and stay there: `flow card --measure {}` \
                 measures these",
                args.weights,
                args.out.display()
            );
        }
    }
    card::write(&args.out)?;
    files::tell(&args.out, args.json)
}
