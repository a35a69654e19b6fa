//! `flow card`: the model cards of folders of weights.

use crate::{card, output};
use anyhow::{Result, ensure};
use experiments::lock::Lock;
use experiments::run_dir::CARD;
use std::path::PathBuf;

/// `card`.
#[derive(clap::Args)]
pub struct CardArgs {
    /// Folders with config.json and model.safetensors.
    #[arg(required = true)]
    folders: Vec<PathBuf>,
}

/// Writes the cards of folders.
///
/// # Errors
/// When a folder holds no model or cannot be written.
pub fn run(args: &CardArgs) -> Result<()> {
    for folder in &args.folders {
        ensure!(folder.is_dir(), "{} is no folder: name one with a model", folder.display());
        let _lock = Lock::take(folder)?;
        card::write(folder)?;
        output::line(folder.join(CARD).display())?;
    }
    Ok(())
}
