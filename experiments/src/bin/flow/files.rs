//! Folders of weights that commands write: the file's dtype and size, and what is said of it.

use crate::{card, output};
use anyhow::{Context, Result, bail, ensure};
use candle_core::DType;
use experiments::data::file_name;
use experiments::lock::Lock;
use experiments::run_dir::{self, ATTRIBUTES, CARD, CHECKPOINT, COMPANIONS, is_half_written};
use flows::SaveOptions;
use flows::models::file;
use flows::storage::{CONFIG, INDEX, is_weights, write_atomic};
use serde_json::json;
use std::path::{Path, PathBuf};

/// The dtype of floating-point tensors in a file.
#[derive(Clone, Copy, Debug, PartialEq, Eq, clap::ValueEnum)]
pub enum Stored {
    /// 4 bytes: what training computes in.
    F32,
    /// 2 bytes, 11 significant bits, up to 65504: costs a small Glow 0.0002 bits/dim; the better one to publish.
    F16,
    /// 2 bytes, 8 significant bits, the range of f32: costs a small Glow 0.034 bits/dim; for weights past 65504.
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

/// Where and how weights are written.
#[derive(clap::Args)]
pub struct FileArgs {
    /// New or empty output folder.
    #[arg(long, value_name = "DIR")]
    pub out: PathBuf,
    /// Replace the model that the output folder holds, with the records of its run.
    #[arg(long)]
    overwrite: bool,
    /// Dtype of the stored tensors; f16 and bf16 are computed in f32.
    #[arg(long, value_enum, default_value = "f32")]
    dtype: Stored,
    /// Split weights larger than this into several files, for example 500MB or 64KiB.
    #[arg(long, value_name = "SIZE", default_value = "5GB", value_parser = size)]
    max_shard_size: usize,
}

impl FileArgs {
    /// Says which of the short dtypes costs less.
    pub fn advise(&self) {
        if self.dtype == Stored::Bf16 {
            tracing::warn!(
                "bf16 costs a small Glow 0.034 bits/dim and f16 0.0002, in the same bytes: prefer --dtype f16, which refuses \
                 weights past 65504"
            );
        }
    }

    /// Refuses an output folder that holds anything but a model which may be replaced.
    ///
    /// # Errors
    /// When it does, or is a file.
    pub fn check(&self) -> Result<()> {
        let (out, name) = (&self.out, self.out.display());
        ensure!(out.is_dir() || !out.exists(), "--out {name} is a file: name a folder");
        if !out.exists() {
            return Ok(());
        }
        // What a killed process left half-written is removed when the folder is taken.
        let files: Vec<String> = run_dir::list(out)?
            .iter()
            .map(|path| file_name(path))
            .filter(|name| !is_half_written(name))
            .collect();
        ensure!(
            !out.join(CHECKPOINT).exists(),
            "--out {name} holds a run that can be resumed: name another folder"
        );
        if let Some(other) = files.iter().find(|file| !is_of_model(file)) {
            bail!("--out {name} holds other files, as {other}: name a new folder");
        }
        ensure!(
            self.overwrite || files.is_empty(),
            "--out {name} holds a model: name a new folder, or replace it and the records of its run with --overwrite"
        );
        if !files.is_empty() {
            // A folder of another library may have files of the same names.
            if let Err(e) = file::config(out) {
                bail!("--out {name} holds no model of this program, name a new folder: {e}");
            }
            // It would say of the new model what was written of the old one.
            ensure!(!card::is_by_hand(out)?, "--out {name}: its {CARD} {}", card::BY_HAND);
        }
        Ok(())
    }

    /// As the library takes them.
    #[must_use]
    pub fn options(&self) -> SaveOptions {
        SaveOptions { max_shard_size: self.max_shard_size, dtype: Some(self.dtype.into()) }
    }
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

/// Whether a file of this name is replaced or removed with a model.
fn is_of_model(name: &str) -> bool {
    [CONFIG, INDEX, CARD, ATTRIBUTES].contains(&name) || COMPANIONS.contains(&name) || is_weights(name)
}

/// A file that accompanies a model: its name and its contents.
pub type Companion = (&'static str, Vec<u8>);

/// Reads what accompanies the model of a folder.
///
/// # Errors
/// When a file cannot be read.
pub fn companions(dir: &Path) -> Result<Vec<Companion>> {
    let read = |name| Ok(run_dir::read(&dir.join(name))?.map(|bytes| (name, bytes)));
    COMPANIONS.into_iter().filter_map(|name| read(name).transpose()).collect()
}

/// Writes what accompanies the model of the folder `out`, and removes what accompanied an earlier one: it says nothing of these
/// weights.
///
/// # Errors
/// When a file cannot be written or removed.
pub fn accompany(out: &Path, companions: &[Companion]) -> Result<()> {
    // The card is written anew: [`FileArgs::check`] has refused one that was changed by hand.
    for name in COMPANIONS.into_iter().chain([CARD]) {
        let to = out.join(name);
        match companions.iter().find(|(of, _)| *of == name) {
            Some((_, bytes)) => write_atomic(&to, bytes)?,
            None if to.exists() => {
                std::fs::remove_file(&to).with_context(|| format!("cannot remove {}", to.display()))?
            }
            None => {}
        }
    }
    Ok(())
}

/// Makes the folder and takes it for this process, which may then remove what a killed one left half-written.
///
/// # Errors
/// When another process is at work in it, or it cannot be made.
pub fn take(out: &Path) -> Result<Lock> {
    std::fs::create_dir_all(out)
        .with_context(|| format!("--out {}: the folder cannot be made", out.display()))?;
    Lock::take(out)
}

/// Prints the files, dtype and size of the model that was written, as text or as JSON.
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
