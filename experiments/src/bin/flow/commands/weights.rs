//! `flow weights`: what is in `weights/`, from its index.
//!
//! index.json lists each model with its data, its bits/dim, how it was made, and the SHA-256 of every file of its folder. It
//! is computed from the folders (`flow weights --write`), and `flow weights --check` holds the folders to it: every file,
//! no other file, and a model that loads.

use crate::draw::curve;
use crate::saved::load_model;
use crate::{card, output};
use anyhow::{Context, Result, bail, ensure};
use candle_core::Device;
use experiments::data::{file_name, hex};
use experiments::lock::Lock;
use experiments::run_dir::{self, ATTRIBUTES, is_half_written};
use experiments::summary::Summary;
use experiments::untrusted::{self, TEXT, read_regular};
use flows::models::file;
use flows::storage::{CONFIG, read_header, write_atomic};
use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};
use std::collections::BTreeMap;
use std::io::Seek;
use std::path::{Component, Path, PathBuf};

/// The index's name.
const INDEX: &str = "index.json";
const FORMAT: u32 = 1;

/// `weights`.
#[derive(clap::Args)]
pub struct WeightsArgs {
    /// Models (default: all).
    names: Vec<String>,
    /// Folder of the models and their index.
    #[arg(long, value_name = "DIR", default_value = "weights")]
    dir: PathBuf,
    /// Verify the hash of every file and load the models.
    #[arg(long)]
    check: bool,
    /// Rewrite the learning curves, the model cards and the index from the folders.
    #[arg(long, conflicts_with_all = ["check", "names"])]
    write: bool,
    /// Print the models as one JSON object on the last line.
    #[arg(long)]
    json: bool,
}

#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Index {
    format: u32,
    models: BTreeMap<String, Entry>,
}

/// A model. What its folder does not record is absent.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Entry {
    /// `nice`, `realnvp` or `glow`.
    model: String,
    data: Option<String>,
    split: Option<String>,
    images: Option<u64>,
    bits_per_dim: Option<f64>,
    std_err: Option<f64>,
    /// The command that made it, and the commit it was built from.
    command: Option<String>,
    commit: Option<String>,
    files: BTreeMap<String, Sum>,
}

#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Sum {
    sha256: String,
    bytes: u64,
}

/// The hash and size of a file of at most `most` bytes.
fn sum(path: &Path, most: u64) -> Result<Sum> {
    let (mut file, length) = untrusted::open(path, most)?;
    if file_name(path).ends_with(".safetensors") {
        read_header(&mut file, length).with_context(|| path.display().to_string())?;
        file.rewind()?;
    }
    let mut hash = Sha256::new();
    let bytes = std::io::copy(&mut file, &mut hash)
        .with_context(|| format!("{} cannot be read: fetch it again", path.display()))?;
    Ok(Sum { sha256: hex(&hash.finalize()), bytes })
}

/// The names of a folder's files.
fn files(dir: &Path) -> Result<Vec<String>> {
    let mut names = Vec::new();
    for path in paths(dir)? {
        ensure!(path.is_file(), "{}: a model's folder holds files only, move it away", path.display());
        let name = file_name(&path);
        ensure!(!is_half_written(&name), "{} was not written to its end: remove it", path.display());
        // What `flow explore` keeps is no part of the model.
        names.extend(Some(name).filter(|name| name != ATTRIBUTES));
    }
    names.sort();
    Ok(names)
}

/// What is in a folder.
fn paths(dir: &Path) -> Result<Vec<PathBuf>> {
    let entries = std::fs::read_dir(dir).with_context(|| format!("cannot list {}", dir.display()))?;
    Ok(entries.map(|entry| Ok(entry?.path())).collect::<std::io::Result<_>>()?)
}

/// What a folder says of its model.
fn entry(dir: &Path) -> Result<Entry> {
    let stored = file::stored(dir)?;
    let config = serde_json::to_value(&stored.config)?;
    let summary = Summary::read(dir)?;
    let (split, score) = summary.as_ref().and_then(Summary::score).unzip();
    let text =
        |of: fn(&Summary) -> &String| summary.as_ref().map(of).filter(|text| !text.is_empty()).cloned();
    let sum_of = |name: &str| {
        let path = dir.join(name);
        sum(&path, run_dir::largest(&path))
    };
    let files = files(dir)?.into_iter().map(|name| Ok((name.clone(), sum_of(&name)?)));
    Ok(Entry {
        model: config["model"].as_str().unwrap_or_default().to_owned(),
        data: text(|s| &s.data),
        split: split.map(str::to_owned),
        images: score.map(|s| s.images as u64),
        bits_per_dim: score.map(|s| s.bits_per_dim),
        std_err: score.map(|s| s.std_err),
        command: text(|s| &s.command),
        commit: text(|s| &s.commit),
        files: files.collect::<Result<_>>()?,
    })
}

/// Reads the index of a folder.
fn read(dir: &Path) -> Result<Index> {
    let path = dir.join(INDEX);
    let file = path.display();
    let text = read_regular(&path, TEXT).with_context(|| {
        format!("{file} cannot be read: name the folder with --dir, or write its index with `flow weights --write`")
    })?;
    let Index { format, models } = serde_json::from_slice(&text)
        .with_context(|| format!("{file} is no index of weights: `flow weights --write` writes it anew"))?;
    ensure!(
        format == FORMAT,
        "{file} has format {format}, this version reads {FORMAT}: update flows, or write it anew with `flow weights --write`"
    );
    for name in models.keys().chain(models.values().flat_map(|entry| entry.files.keys())) {
        let mut parts = Path::new(name).components();
        let plain = matches!((parts.next(), parts.next()), (Some(Component::Normal(_)), None));
        ensure!(plain && !name.contains(['/', '\\']), "{file} names `{name}`, which leaves its folder");
    }
    Ok(Index { format, models })
}

/// Writes learning curves, cards and index.
fn write(dir: &Path) -> Result<Index> {
    let mut models = BTreeMap::new();
    ensure!(dir.is_dir(), "{} is no folder: name it with --dir", dir.display());
    let _lock = Lock::take(dir)?;
    for path in paths(dir)? {
        if path.join(CONFIG).exists() {
            let _lock = Lock::take(&path)?;
            if let Some(summary) = Summary::read(&path)? {
                curve::draw(&summary, &path)?;
            }
            card::write(&path)?;
            models.insert(file_name(&path), self::entry(&path)?);
        }
    }
    let index = Index { format: FORMAT, models };
    let text = serde_json::to_string_pretty(&index)? + "\n";
    write_atomic(&dir.join(INDEX), text.as_bytes())?;
    Ok(index)
}

/// Holds a folder to its entry.
fn check(dir: &Path, want: &Entry) -> Result<()> {
    for (name, want) in &want.files {
        let path = dir.join(name);
        let found = sum(&path, want.bytes);
        let Sum { sha256, bytes } =
            found.with_context(|| format!("{} is not as the index says: fetch it again", path.display()))?;
        ensure!(
            (&sha256, bytes) == (&want.sha256, want.bytes),
            "{} has the sha256 {sha256} and {bytes} bytes, the index {} and {}: fetch it again",
            path.display(),
            want.sha256,
            want.bytes
        );
    }
    if let Some(name) = files(dir)?.into_iter().find(|name| !want.files.contains_key(name)) {
        bail!("{} is not in the index: remove it, or `flow weights --write`", dir.join(name).display());
    }
    load_model(dir, &Device::Cpu)?;
    let have = entry(dir)?;
    ensure!(
        have == *want,
        "{}: its files are those of the index, what the index says of them is not: `flow weights --write` writes it anew",
        dir.display()
    );
    Ok(())
}

/// Lists, checks or writes.
///
/// # Errors
/// When there is no index, no such model, or a folder is not what the index says: the file and the remedy.
pub fn run(args: &WeightsArgs) -> Result<()> {
    let mut index = if args.write { write(&args.dir)? } else { read(&args.dir)? };
    if let Some(name) = args.names.iter().find(|name| !index.models.contains_key(*name)) {
        let known: Vec<&str> = index.models.keys().map(String::as_str).collect();
        bail!("there are no weights `{name}` in {}: {}", args.dir.display(), known.join(", "));
    }
    if !args.names.is_empty() {
        index.models.retain(|name, _| args.names.contains(name));
    }
    if args.check {
        for (name, entry) in &index.models {
            check(&args.dir.join(name), entry)?;
        }
    }
    if args.json {
        return output::line(serde_json::to_string(&index)?);
    }
    let checked = if args.check { ", each as the index says; it loads" } else { "" };
    for (name, entry) in &index.models {
        let text = |value: &Option<String>| value.clone().unwrap_or_else(|| "not recorded".to_owned());
        let bits = match (entry.bits_per_dim, entry.std_err, entry.images) {
            (Some(bits), Some(error), Some(images)) => {
                format!("{bits:.4} ± {error:.4} bits/dim on {images} {} examples", text(&entry.split))
            }
            _ => "bits/dim not recorded".to_owned(),
        };
        let bytes: u64 = entry.files.values().map(|sum| sum.bytes).sum();
        let (model, n, megabytes) = (&entry.model, entry.files.len(), bytes as f64 / 1e6);
        let (data, command, commit) = (text(&entry.data), text(&entry.command), text(&entry.commit));
        output::line(format_args!(
            "{name}: {model} of {data}, {bits}\n  made by {command} at commit {commit}\n  {n} files, {megabytes:.1} MB{checked}"
        ))?;
        for (file, sum) in entry.files.iter().filter(|_| !args.names.is_empty()) {
            output::line(format_args!("  {}  {file} ({} bytes)", sum.sha256, sum.bytes))?;
        }
    }
    Ok(())
}
