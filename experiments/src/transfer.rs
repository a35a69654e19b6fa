//! Weights that travel: `flow pull`, `flow push`, and `hf:user/name@revision` wherever a command takes weights.
//!
//! What goes up is named here and nowhere else: config, weights, card and the files of a run that a reader may want; never
//! the checkpoint, never a hidden file.

use crate::checkpoint::METRICS;
use crate::cli::{End, PullArgs, PushArgs};
use crate::lock::Lock;
use crate::run::{CURVE, SAMPLES};
use crate::summary::{RECIPE, SUMMARY};
use crate::{card, output, progress, run};
use anyhow::{Context, Result, anyhow, ensure};
use candle_core::Device;
use flows::hub::{self, Hub, PushOptions, Repository, Revision, Snapshot};
use indicatif::HumanBytes;
use serde_json::json;
use std::path::{Path, PathBuf};
use std::str::FromStr;
use std::sync::Arc;

/// What a run has beside its model that others may want.
const COMPANIONS: [&str; 5] = [RECIPE, SUMMARY, METRICS, SAMPLES, CURVE];

/// The prefix that tells the hub from a folder.
const PREFIX: &str = "hf:";

/// The hub of the environment's variables, with its transfers shown.
///
/// # Errors
/// When a variable is wrong.
pub fn hub() -> Result<Hub> {
    Ok(Hub::from_env().map_err(why)?.with_observer(Arc::new(progress::Transfers::default())))
}

/// Why a transfer failed: the library's sentence, without the backtrace that candle may put under it.
pub fn why(error: candle_core::Error) -> anyhow::Error {
    if progress::stopped() {
        return progress::Stopped.into();
    }
    anyhow!("{}", error.to_string().lines().next().unwrap_or_default())
}

/// A model of the hub, in one of its states: `hf:user/name@revision`, or without the prefix where nothing else can be meant.
#[derive(Clone, Debug)]
pub struct Address {
    repository: Repository,
    revision: Revision,
}

impl FromStr for Address {
    type Err = anyhow::Error;

    fn from_str(text: &str) -> Result<Self> {
        let rest = text.strip_prefix(PREFIX).unwrap_or(text);
        let (id, revision) = match rest.split_once('@') {
            Some((id, revision)) => (id, Revision::new(revision).map_err(why)?),
            None => (rest, Revision::default()),
        };
        Ok(Self { repository: Repository::model(id).map_err(why)?, revision })
    }
}

impl Address {
    fn pull(&self) -> Result<Snapshot> {
        let snapshot = hub()?.pull(&self.repository, &self.revision, &COMPANIONS).map_err(why)?;
        tracing::info!("{PREFIX}{}@{} is commit {}", self.repository, self.revision, snapshot.commit);
        Ok(snapshot)
    }
}

/// Saved weights: a folder, or a model of the hub.
#[derive(Clone, Debug)]
pub struct Weights {
    /// As it was typed.
    text: String,
    address: Option<Address>,
}

impl std::fmt::Display for Weights {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(&self.text)
    }
}

impl FromStr for Weights {
    type Err = anyhow::Error;

    fn from_str(text: &str) -> Result<Self> {
        let address = match text.starts_with(PREFIX) {
            true => Some(text.parse()?),
            false => None,
        };
        Ok(Self { text: text.to_owned(), address })
    }
}

impl Weights {
    /// Whether they are a model of the hub.
    pub fn is_of_the_hub(&self) -> bool {
        self.address.is_some()
    }

    /// The folder they are in and, for those of the hub, which are fetched from there, the commit.
    ///
    /// # Errors
    /// When the hub does not have them or cannot be reached.
    pub fn locate(&self) -> Result<(PathBuf, Option<String>)> {
        match &self.address {
            Some(address) => address.pull().map(|snapshot| (snapshot.folder, Some(snapshot.commit))),
            None => Ok((PathBuf::from(&self.text), None)),
        }
    }
}

/// The name that clap shows for [`Weights`].
pub const WEIGHTS: &str = "DIR|hf:USER/NAME[@REVISION]";

/// Fetches a model.
///
/// # Errors
/// When the hub does not have it, it does not arrive whole, or it cannot be written.
pub fn pull(args: &PullArgs) -> Result<End> {
    if let Some(out) = &args.out {
        ensure!(
            !out.is_file(),
            "--out {} is a file: name a folder, which is made if it is not there",
            out.display()
        );
    }
    let snapshot = args.address.pull()?;
    let folder = match &args.out {
        Some(out) => {
            place(&snapshot.folder, out)?;
            out.clone()
        }
        None => snapshot.folder.clone(),
    };
    if args.json {
        output::line(json!({
            "repository": args.address.repository.to_string(),
            "revision": args.address.revision.to_string(),
            "commit": snapshot.commit,
            "folder": folder.display().to_string(),
        }))?;
    } else {
        output::line(format_args!("{}", folder.display()))?;
    }
    Ok(End::Done)
}

/// Puts a snapshot's files into the folder `out`, which appears at once with all of them.
fn place(snapshot: &Path, out: &Path) -> Result<()> {
    let files = hub::plan(snapshot, &COMPANIONS.map(str::to_owned), None).map_err(why)?;
    let cannot = || format!("--out {}: the folder cannot be made", out.display());
    let occupied = match std::fs::read_dir(out) {
        Ok(mut entries) => entries.next().is_some(),
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => false,
        Err(error) => return Err(error).with_context(cannot),
    };
    if occupied {
        let there = hub::plan(out, &COMPANIONS.map(str::to_owned), None).unwrap_or_default();
        let same = files.iter().all(|file| {
            there.iter().any(|other| (&other.name, other.sha256()) == (&file.name, file.sha256()))
        });
        ensure!(same, "--out {} holds other files: name a new folder", out.display());
        return Ok(());
    }
    let parent = match out.parent() {
        Some(parent) if !parent.as_os_str().is_empty() => parent,
        _ => Path::new("."),
    };
    std::fs::create_dir_all(parent).with_context(cannot)?;
    let part = tempfile::Builder::new().prefix(".pull-").tempdir_in(parent).with_context(cannot)?;
    for file in &files {
        let to = part.path().join(&file.name);
        let copied =
            std::fs::copy(snapshot.join(&file.name), &to).and_then(|_| std::fs::File::open(&to)?.sync_all());
        copied.with_context(|| format!("--out {}: {} cannot be written", out.display(), file.name))?;
    }
    // A temporary folder is for its owner alone, which a folder of weights need not be.
    let part = part.keep();
    #[cfg(unix)]
    {
        use std::os::unix::fs::PermissionsExt;
        let plain = std::fs::metadata(parent).map(|m| m.permissions().mode() & 0o777).unwrap_or(0o755);
        std::fs::set_permissions(&part, std::fs::Permissions::from_mode(plain)).ok();
    }
    std::fs::rename(&part, out).with_context(cannot).inspect_err(|_| drop(std::fs::remove_dir_all(&part)))
}

/// Publishes a run.
///
/// # Errors
/// When the folder holds no model that can be loaded, and as [`Hub::push`].
pub fn push(args: &PushArgs) -> Result<End> {
    let PushArgs { run, repository, .. } = args;
    ensure!(run.is_dir(), "{} is no folder: name that of a run or of a model", run.display());
    // A run that is at work would be published half changed.
    let _lock = Lock::share(run)?;
    // What does not load here will not load elsewhere.
    drop(run::load_model(run, &Device::Cpu)?);
    let options = PushOptions {
        private: args.private,
        revision: args.revision.clone(),
        tag: args.tag.clone(),
        message: None,
        also: COMPANIONS.map(str::to_owned).to_vec(),
        card: card(run, repository)?,
    };
    let files = hub::plan(run, &options.also, options.card.as_deref()).map_err(why)?;
    let listed: Vec<_> = files
        .iter()
        .map(|file| json!({ "file": file.name, "bytes": file.bytes(), "sha256": file.sha256() }))
        .collect();
    if args.dry_run {
        if args.json {
            output::line(json!({ "repository": repository.to_string(), "files": listed }))?;
            return Ok(End::Done);
        }
        let mut lines: Vec<String> =
            files.iter().map(|f| format!("{} {:>11}  {}", f.sha256(), f.bytes(), f.name)).collect();
        let bytes = files.iter().map(hub::PushFile::bytes).sum();
        let visible = if args.private { "private" } else { "public" };
        lines.push(format!(
            "{} files, {}, would go to {repository} at {} ({visible}); nothing was sent",
            files.len(),
            HumanBytes(bytes),
            options.revision
        ));
        output::line(lines.join("\n"))?;
        return Ok(End::Done);
    }
    let pushed = hub()?.push(run, repository, &options).map_err(why)?;
    if args.json {
        output::line(json!({
            "repository": repository.to_string(),
            "url": pushed.url,
            "commit": pushed.commit,
            "uploaded": pushed.uploaded,
            "files": listed,
        }))?;
    } else {
        output::line(format_args!(
            "{}: commit {}, {} of {} files new or changed",
            pushed.url,
            pushed.commit,
            pushed.uploaded,
            files.len()
        ))?;
    }
    Ok(End::Done)
}

/// The model card to publish: made anew with the repository's name in it, unless the folder has one that a person has
/// written or changed, which goes as it is.
fn card(run: &Path, repository: &Repository) -> Result<Option<String>> {
    let path = run.join(card::CARD);
    ensure!(!path.is_dir(), "{} is a folder, and the model card's name", path.display());
    let theirs = match std::fs::read_to_string(&path) {
        Ok(text) => !card::is_generated(run, &text)?,
        Err(error) => error.kind() != std::io::ErrorKind::NotFound,
    };
    if theirs { Ok(None) } else { card::render(run, Some(&repository.to_string())).map(Some) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn addresses() {
        let address: Address = "hf:user/name@v1.0".parse().unwrap();
        assert_eq!(
            (address.repository.to_string(), address.revision.to_string()),
            ("user/name".into(), "v1.0".into())
        );
        let address: Address = "user/name".parse().unwrap();
        assert_eq!(address.revision, Revision::default());
        for wrong in
            ["hf:name", "hf:a/b/c", "hf:a/../b", "hf:user/name@", "hf:user/name@../x", "hf:user/na me"]
        {
            assert!(wrong.parse::<Weights>().is_err(), "{wrong}");
        }
        // Without the prefix it is a folder, whatever it looks like.
        assert!("user/name".parse::<Weights>().unwrap().address.is_none());
    }

    #[test]
    fn a_folder_appears_whole_or_not_at_all() {
        let dir = tempfile::tempdir().unwrap();
        let from = dir.path().join("snapshot");
        std::fs::create_dir(&from).unwrap();
        for name in ["config.json", "model.safetensors", "recipe.toml", "notes.txt"] {
            std::fs::write(from.join(name), name).unwrap();
        }
        let out = dir.path().join("deep/er/out");
        place(&from, &out).unwrap();
        let mut names: Vec<_> =
            std::fs::read_dir(&out).unwrap().map(|e| e.unwrap().file_name().into_string().unwrap()).collect();
        names.sort();
        assert_eq!(names, ["config.json", "model.safetensors", "recipe.toml"]);
        assert_eq!(std::fs::read_dir(out.parent().unwrap()).unwrap().count(), 1, "nothing is left beside it");
        place(&from, &out).unwrap();
        std::fs::write(out.join("config.json"), "mine").unwrap();
        assert!(place(&from, &out).unwrap_err().to_string().contains("holds other files"));
        assert_eq!(std::fs::read_to_string(out.join("config.json")).unwrap(), "mine");
    }
}
