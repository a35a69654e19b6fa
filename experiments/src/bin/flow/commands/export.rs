//! `flow export`: saved weights once more, in another dtype or in shards, with their run's records and a card.

use crate::files::{self, FileArgs};
use crate::hub::{WEIGHTS, Weights};
use crate::{card, saved};
use anyhow::{Result, ensure};
use candle_core::Device;
use experiments::summary::Summary;

/// `export`.
#[derive(clap::Args)]
pub struct ExportArgs {
    /// Folder with config.json and model.safetensors, or a model of the Hugging Face Hub.
    #[arg(value_name = WEIGHTS)]
    weights: Weights,
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
    let out = &args.file.out;
    let same = weights.canonicalize().ok().zip(out.canonicalize().ok()).is_some_and(|(a, b)| a == b);
    ensure!(!same, "--out {} is the folder that is exported: name another one", out.display());
    args.file.check()?;
    // All that can be damaged is read before anything is written.
    let model = saved::load_model(&weights, &Device::Cpu)?;
    let (companions, before) = (files::companions(&weights)?, Summary::read(&weights)?);
    args.file.advise();
    let _lock = files::take(out)?;
    model.save(out, &args.file.options())?;
    files::accompany(out, &companions)?;
    if let (Some(before), Some(after)) = (before, Summary::read(out)?) {
        after.write(out)?;
        if before.score().is_some() && after.score().is_none() {
            tracing::info!(
                "the figures of {} are those of weights that were not rounded, and stay there: `flow card --measure {}` \
                 measures these",
                args.weights,
                out.display()
            );
        }
    }
    card::write(out)?;
    files::tell(out, args.json)
}
