//! Lists recipes/*.toml, so that a new recipe is one new file and nothing else; and records the commit that is built.
//!
//! The commit is taken when the binary is built, not when it runs: the source tree may have moved on by the end of a long
//! training, and the number belongs to the code that made it. The price is that this crate is rebuilt after a commit.

use std::fmt::Write;
use std::path::{Path, PathBuf};
use std::process::Command;

fn git(args: &[&str]) -> Option<String> {
    let output = Command::new("git").args(args).output().ok()?;
    output.status.success().then(|| String::from_utf8_lossy(&output.stdout).trim().to_owned())
}

/// `-dirty` where a tracked source file differs from the commit, `unknown` outside a git checkout.
fn commit() -> String {
    // The log of HEAD grows with every commit and checkout.
    if let Some(log) = git(&["rev-parse", "--git-path", "logs/HEAD"]) {
        println!("cargo::rerun-if-changed={log}");
    }
    for source in ["src", "../flows/src", "../flows/ops", "../Cargo.lock"] {
        println!("cargo::rerun-if-changed={source}");
    }
    let changed = [
        "status",
        "--porcelain",
        "--untracked-files=no",
        "--",
        "src",
        "recipes",
        "../flows/src",
        "../flows/ops",
        "../Cargo.lock",
    ];
    match (git(&["rev-parse", "HEAD"]), git(&changed)) {
        (Some(head), Some(changes)) if changes.is_empty() => head,
        (Some(head), _) => format!("{head}-dirty"),
        (None, _) => "unknown".to_owned(),
    }
}

fn main() {
    println!("cargo::rustc-env=FLOW_COMMIT={}", commit());
    let folder = Path::new(&std::env::var("CARGO_MANIFEST_DIR").expect("cargo sets it")).join("recipes");
    println!("cargo::rerun-if-changed={}", folder.display());
    let mut files: Vec<PathBuf> = std::fs::read_dir(&folder)
        .expect("the recipes are beside build.rs")
        .map(|entry| entry.expect("a folder that can be opened can be read").path())
        .filter(|path| path.extension().is_some_and(|e| e == "toml"))
        .collect();
    files.sort();
    let mut list = String::from("&[\n");
    for path in files {
        let name = path.file_stem().expect("it ends in .toml").to_string_lossy().into_owned();
        writeln!(list, "    ({name:?}, include_str!({:?})),", path.display().to_string())
            .expect("into a string");
    }
    list.push(']');
    let out = Path::new(&std::env::var("OUT_DIR").expect("cargo sets it")).join("recipes.rs");
    std::fs::write(out, list).expect("OUT_DIR is writable");
}
