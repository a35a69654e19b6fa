//! `flow export`: saved weights once more, in another dtype or in shards, with their run's records and a card.

use crate::cli::End;
use crate::transfer::{WEIGHTS, Weights};
use crate::{card, output, run, summary};
use anyhow::{Context, Result, ensure};
use candle_core::{DType, Device};
use flows::SaveOptions;
use flows::models::file;
use serde_json::json;
use std::path::{Path, PathBuf};

/// What of a run goes with its weights.
const RECORDS: [&str; 5] =
    [summary::RECIPE, summary::SUMMARY, crate::checkpoint::METRICS, "samples.png", "curve.png"];

/// The dtype of floating-point tensors in a file.
#[derive(Clone, Copy, Debug, PartialEq, Eq, clap::ValueEnum)]
pub enum Stored {
    /// 4 bytes: what training computes in.
    F32,
    /// 2 bytes, 11 significant bits, up to 65504.
    F16,
    /// 2 bytes, 8 significant bits, the range of f32.
    Bf16,
}

impl From<Stored> for DType {
    fn from(stored: Stored) -> Self {
        match stored {
            Stored::F32 => Self::F32,
            Stored::F16 => Self::F16,
            Stored::Bf16 => Self::BF16,
        }
    }
}

/// How weights are written.
#[derive(clap::Args)]
pub struct FileArgs {
    /// The dtype of floating-point tensors in the file; f16 and bf16 are computed in f32.
    #[arg(long, value_enum, default_value = "f32")]
    dtype: Stored,
    /// Weights above this are written in several files with an index: 500MB, 5GB, 64KiB or bytes.
    #[arg(long, value_name = "SIZE", default_value = "5GB", value_parser = size)]
    max_shard_size: usize,
}

impl FileArgs {
    /// As the library takes them.
    #[must_use]
    pub fn options(&self) -> SaveOptions {
        SaveOptions { max_shard_size: self.max_shard_size, dtype: Some(self.dtype.into()) }
    }
}

/// `export`.
#[derive(clap::Args)]
pub struct ExportArgs {
    /// A folder with config.json and model.safetensors (a run, or a model of weights/), or a model of the hub.
    #[arg(value_name = WEIGHTS)]
    weights: Weights,
    /// The folder to write, new or of an earlier export.
    #[arg(long, value_name = "DIR")]
    out: PathBuf,
    #[command(flatten)]
    file: FileArgs,
    /// The result as one JSON object, the last line of standard output.
    #[arg(long)]
    json: bool,
}

/// Bytes: a number and perhaps a unit.
fn size(text: &str) -> Result<usize, String> {
    let digits = text.len() - text.trim_start_matches(|c: char| c.is_ascii_digit()).len();
    let unit: Option<usize> = match text[digits..].trim().to_ascii_lowercase().as_str() {
        "" | "b" => Some(1),
        "kb" => Some(1_000),
        "mb" => Some(1_000_000),
        "gb" => Some(1_000_000_000),
        "kib" => Some(1 << 10),
        "mib" => Some(1 << 20),
        "gib" => Some(1 << 30),
        _ => None,
    };
    let bytes =
        text[..digits].parse().ok().zip(unit).and_then(|(n, unit): (usize, usize)| n.checked_mul(unit));
    bytes.filter(|&n| n > 0).ok_or_else(|| {
        "a size is a number of bytes from 1 on, or one of KB, MB, GB, KiB, MiB, GiB".to_owned()
    })
}

/// Refuses to write into a folder that holds anything but an earlier model.
///
/// # Errors
/// When it does, or is a file.
pub fn free(out: &Path) -> Result<()> {
    ensure!(out.is_dir() || !out.exists(), "--out {} is a file: name a folder", out.display());
    let entries = match std::fs::read_dir(out) {
        Ok(entries) => entries,
        Err(e) if e.kind() == std::io::ErrorKind::NotFound => return Ok(()),
        Err(e) => return Err(e).with_context(|| format!("cannot list {}", out.display())),
    };
    ensure!(
        entries.count() == 0 || out.join(file::CONFIG).exists(),
        "--out {} holds other files: name a new folder",
        out.display()
    );
    ensure!(
        !out.join(crate::checkpoint::CHECKPOINT).exists(),
        "--out {} holds a run that can be resumed: name another folder",
        out.display()
    );
    Ok(())
}

/// What was written, for people or as JSON.
///
/// # Errors
/// When it cannot be read again.
pub fn tell(out: &Path, as_json: bool) -> Result<()> {
    let stored = file::stored(out)?;
    if as_json {
        return output::line(json!({
            "weights": out.display().to_string(),
            "files": stored.files,
            "dtype": stored.dtype.as_str(),
            "bytes": stored.bytes,
        }));
    }
    let megabytes = stored.bytes as f64 / 1e6;
    output::line(format_args!(
        "{}: {megabytes:.1} MB of {} in {}",
        out.display(),
        stored.dtype.as_str(),
        stored.files.join(", ")
    ))
}

/// Writes saved weights into another folder.
///
/// # Errors
/// When there are no weights, a number does not fit the dtype, or the folder cannot be written.
pub fn export(args: &ExportArgs) -> Result<End> {
    let (weights, _) = args.weights.locate()?;
    let same = weights.canonicalize().ok().zip(args.out.canonicalize().ok()).is_some_and(|(a, b)| a == b);
    ensure!(!same, "--out {} is the folder that is exported: name another one", args.out.display());
    free(&args.out)?;
    let model = run::load_model(&weights, &Device::Cpu)?;
    model.save(&args.out, &args.file.options())?;
    for name in RECORDS {
        let (from, to) = (weights.join(name), args.out.join(name));
        if from.exists() {
            std::fs::copy(&from, &to)
                .with_context(|| format!("cannot copy {} to {}", from.display(), to.display()))?;
        }
    }
    card::write(&args.out)?;
    tell(&args.out, args.json)?;
    Ok(End::Done)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sizes_have_units() {
        for (text, bytes) in [("1", 1), ("500MB", 500_000_000), ("64 KiB", 65536), ("5gb", 5_000_000_000)] {
            assert_eq!(size(text), Ok(bytes), "{text}");
        }
        for text in
            ["", "0", "MB", "-1", "1.5GB", "5TB", "99999999999999999999", "18446744073709551615KB", "é"]
        {
            assert!(size(text).is_err(), "{text}");
        }
    }
}
