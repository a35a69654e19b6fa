//! `flow pull`: a model of the Hugging Face hub.

use super::print;
use crate::hub::{Address, why};
use crate::output;
use anyhow::{Context, Result, ensure};
use clap::Args;
use experiments::run_dir::COMPANIONS;
use flows::hub::{self, PushFile};
use serde_json::json;
use std::path::{Path, PathBuf};

/// `pull`.
#[derive(Args)]
pub struct PullArgs {
    /// Model at a branch, tag or commit (default: main).
    #[arg(value_name = "hf:USER/NAME[@REVISION]")]
    address: Address,
    /// Copy the files to this new folder (default: print the path in the local cache).
    #[arg(long, value_name = "DIR")]
    out: Option<PathBuf>,
    /// Print the result as one JSON object on the last line.
    #[arg(long)]
    json: bool,
}

/// Fetches a model.
///
/// # Errors
/// When the hub does not have it, it does not arrive whole, or it cannot be written.
pub fn run(args: &PullArgs) -> Result<()> {
    if let Some(out) = &args.out {
        let name = out.display();
        ensure!(!out.is_file(), "--out {name} is a file: name a folder, which is made if it is not there");
    }
    let snapshot = args.address.pull()?;
    if let Some(out) = &args.out {
        place(&snapshot.folder, out)?;
    }
    let folder = args.out.as_ref().unwrap_or(&snapshot.folder).display().to_string();
    let object = json!({
        "repository": args.address.repository.to_string(), "revision": args.address.revision.to_string(),
        "commit": snapshot.commit, "folder": folder,
    });
    print(args.json, object, folder)
}

/// Puts a snapshot's files into the folder `out`, which appears at once with all of them.
fn place(snapshot: &Path, out: &Path) -> Result<()> {
    let files = hub::plan(snapshot, &COMPANIONS.map(str::to_owned), &[]).map_err(why)?;
    let cannot = || format!("--out {}: the folder cannot be made", out.display());
    if out.exists() && std::fs::read_dir(out).with_context(cannot)?.next().is_some() {
        let there = hub::plan(out, &COMPANIONS.map(str::to_owned), &[]).unwrap_or_default();
        let is =
            |file: &PushFile, other: &PushFile| file.name == other.name && file.sha256() == other.sha256();
        let same = files.iter().all(|file| there.iter().any(|other| is(file, other)));
        ensure!(same, "--out {} holds other files: name a new folder", out.display());
        return Ok(());
    }
    output::whole_folder("--out", out, |folder| {
        for file in &files {
            let to = folder.join(&file.name);
            let copied = std::fs::copy(snapshot.join(&file.name), &to)
                .and_then(|_| std::fs::File::open(&to)?.sync_all());
            copied.with_context(|| format!("--out {}: {} cannot be written", out.display(), file.name))?;
        }
        Ok(())
    })
}

#[cfg(test)]
mod tests {
    use super::*;

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
