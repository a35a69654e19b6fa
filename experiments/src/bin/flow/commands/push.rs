//! `flow push`: a run on the Hugging Face hub.
//!
//! What is published is named here and nowhere else: config, weights, card and the files of a run that a reader may want;
//! never the checkpoint, never a hidden file.

use super::print;
use crate::card;
use crate::hub::why;
use crate::saved::load_model;
use anyhow::{Result, ensure};
use candle_core::Device;
use clap::Args;
use experiments::lock::Lock;
use experiments::run_dir::{self, CARD, COMPANIONS, LICENSE, METRICS, RECIPE, SUMMARY};
use experiments::untrusted;
use flows::hub::{self, PushOptions, Repository, Revision};
use indicatif::HumanBytes;
use serde_json::json;
use std::path::{Path, PathBuf};

/// `push`.
#[derive(Args)]
pub struct PushArgs {
    /// Folder of a run.
    #[arg(value_name = "RUN")]
    run: PathBuf,
    /// Repository, created if it does not exist.
    #[arg(value_name = "USER/NAME", value_parser = repository)]
    repository: Repository,
    /// Create a private repository.
    #[arg(long)]
    private: bool,
    /// Branch.
    #[arg(long, value_name = "BRANCH", default_value = "main", value_parser = revision)]
    revision: Revision,
    /// Tag to create for this commit.
    #[arg(long, value_name = "NAME", value_parser = revision)]
    tag: Option<Revision>,
    /// List the files with their sizes and SHA-256 without uploading.
    #[arg(long)]
    dry_run: bool,
    /// Print the result as one JSON object on the last line.
    #[arg(long)]
    json: bool,
}

fn repository(text: &str) -> Result<Repository> {
    Repository::model(text.strip_prefix("hf:").unwrap_or(text)).map_err(why)
}

fn revision(text: &str) -> Result<Revision> {
    Revision::new(text).map_err(why)
}

/// Publishes a run.
///
/// # Errors
/// When the folder holds no model that can be loaded, and as [`flows::hub::Hub::push`].
pub fn run(args: &PushArgs) -> Result<()> {
    let PushArgs { run, repository, .. } = args;
    ensure!(run.is_dir(), "{} is no folder: name that of a run or of a model", run.display());
    // A run that is at work would be published half changed.
    let _lock = Lock::share(run)?;
    // What does not load here will not load elsewhere.
    drop(load_model(run, &Device::Cpu)?);
    let options = PushOptions {
        private: args.private,
        revision: args.revision.clone(),
        tag: args.tag.clone(),
        message: None,
        also: COMPANIONS.map(str::to_owned).to_vec(),
        texts: texts(run, repository)?,
    };
    if !run.join(LICENSE).exists() {
        tracing::warn!(
            "no licence is given for {0}: `flow card --license ID {0}` records one",
            run.display()
        );
    }
    private(run)?;
    for path in COMPANIONS.map(|name| run.join(name)).iter().filter(|path| path.exists()) {
        untrusted::open(path, run_dir::largest(path))?;
    }
    let files = hub::plan(run, &options.also, &options.texts).map_err(why)?;
    let entry = |f: &hub::PushFile| json!({ "file": f.name, "bytes": f.bytes(), "sha256": f.sha256() });
    let listed: Vec<_> = files.iter().map(entry).collect();
    if args.dry_run {
        let mut lines: Vec<String> =
            files.iter().map(|f| format!("{} {:>11}  {}", f.sha256(), f.bytes(), f.name)).collect();
        let bytes = files.iter().map(hub::PushFile::bytes).sum();
        let visible = if args.private { "private" } else { "public" };
        let (n, bytes, revision) = (files.len(), HumanBytes(bytes), &options.revision);
        lines.push(format!(
            "{n} files, {bytes}, would go to {repository} at {revision} ({visible}); nothing was sent"
        ));
        let object = json!({ "repository": repository.to_string(), "files": listed });
        return print(args.json, object, lines.join("\n"));
    }
    let pushed = crate::hub::hub()?.push(run, repository, &options).map_err(why)?;
    let hub::Pushed { url, commit, uploaded } = pushed;
    let object = json!({
        "repository": repository.to_string(), "url": url, "commit": commit, "uploaded": uploaded, "files": listed,
    });
    let text = format!("{url}: commit {commit}, {uploaded} of {} files new or changed", files.len());
    print(args.json, object, text)
}

/// Refuses texts that name this user's folder, as runs of earlier versions could hold.
fn private(run: &Path) -> Result<()> {
    let Some(home) = std::env::home_dir().filter(|home| home.components().count() > 1) else { return Ok(()) };
    for name in [CARD, RECIPE, SUMMARY, METRICS] {
        let text = run_dir::read(&run.join(name))?.unwrap_or_default();
        ensure!(
            !String::from_utf8_lossy(&text).contains(&*home.to_string_lossy()),
            "{} holds the path of your home folder, {}, which everybody would read: put another text in its place",
            run.join(name).display(),
            home.display()
        );
    }
    Ok(())
}

/// The file that reads the weights in Python.
const PYTHON: (&str, &str) = ("flows_torch.py", include_str!("../../../../../docs/python/flows_torch.py"));

/// What is published beside the folder's own files: the card, and the file that reads the weights in Python.
fn texts(run: &Path, repository: &Repository) -> Result<Vec<(String, String)>> {
    let python = (PYTHON.0.to_owned(), PYTHON.1.to_owned());
    let card = card(run, repository)?.map(|text| (CARD.to_owned(), text));
    Ok(card.into_iter().chain([python]).collect())
}

/// The model card to publish: made anew with the repository's name in it, unless the folder has one that a person has
/// written or changed, which goes as it is.
fn card(run: &Path, repository: &Repository) -> Result<Option<String>> {
    if card::is_by_hand(run)? {
        tracing::info!(
            "{} goes as it is, for it was written or changed by hand: without it, a card is made",
            run.join(CARD).display()
        );
        return Ok(None);
    }
    card::render(run, Some(&repository.to_string())).map(Some)
}
