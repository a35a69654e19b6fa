//! Files of a run that are pipes, devices, folders or far too large: every command that reads one ends at once, in little
//! memory, and if it fails with one sentence that names the file.

#![cfg(unix)]

use std::fs::{self, File};
use std::os::unix::fs::symlink;
use std::path::Path;
use std::process::{Command, Stdio};
use std::sync::LazyLock;
use std::time::{Duration, Instant};
use tempfile::TempDir;

/// A run of a second with all of its files, in a folder of runs.
static RUNS: LazyLock<TempDir> = LazyLock::new(|| {
    let dir = tempfile::tempdir().unwrap();
    let run = dir.path().join("run");
    let mut args = vec!["reproduce", "moons", "--threads", "1", "--out", str_of(&run)];
    for set in SETTINGS {
        args.extend(["--set", set]);
    }
    let density = run.join("density.png");
    for args in [
        args,
        vec!["card", str_of(&run), "--license", "mit"],
        vec!["density", str_of(&run), "--out", str_of(&density)],
        vec!["weights", "--write", "--dir", str_of(dir.path())],
    ] {
        let (code, said) = flow(&args);
        assert_eq!(code, Some(0), "{args:?}: {said}");
    }
    dir
});

const SETTINGS: [&str; 8] = [
    "train.schedule={kind='constant'}",
    "model.hidden=[[8],[8]]",
    "train.updates=4",
    "train.validate_every=2",
    "data.train=300",
    "data.validation=20",
    "data.test=20",
    "eval.samples=4",
];

fn str_of(path: &Path) -> &str {
    path.to_str().expect("the test's folders are UTF-8")
}

fn copy(from: &Path, to: &Path) {
    fs::create_dir_all(to).unwrap();
    for entry in fs::read_dir(from).unwrap() {
        let (path, to) = (entry.as_ref().unwrap().path(), to.join(entry.unwrap().file_name()));
        if path.is_dir() { copy(&path, &to) } else { _ = fs::copy(&path, &to).unwrap() }
    }
}

/// What is put in the place of a file. Folders and devices are those that tests/cli.rs puts there.
fn put(kind: &str, path: &Path) {
    let _ = fs::remove_file(path);
    match kind {
        "pipe" => assert!(Command::new("mkfifo").arg(path).status().unwrap().success()),
        "device" => symlink("/dev/zero", path).unwrap(),
        // It takes no disk.
        _ => File::create(path).unwrap().set_len(1 << 40).unwrap(),
    }
}

/// Runs a command with a few gigabytes of addresses, and ends it after a minute. The exit code and standard error.
fn flow(args: &[impl AsRef<std::ffi::OsStr> + std::fmt::Debug]) -> (Option<i32>, String) {
    flow_with(args, None)
}

/// As [`flow`], with the file of the hub's token.
fn flow_with(
    args: &[impl AsRef<std::ffi::OsStr> + std::fmt::Debug],
    token: Option<&Path>,
) -> (Option<i32>, String) {
    let mut child = Command::new("sh")
        .args(["-c", "ulimit -v 12000000; exec \"$@\"", "sh", env!("CARGO_BIN_EXE_flow")])
        .args(args)
        .env_remove("FLOW_DATA")
        .env_remove("RUST_LOG")
        .env_remove("HF_TOKEN")
        .envs(token.map(|path| ("HF_TOKEN_PATH", path)))
        .env("HF_HUB_OFFLINE", "1")
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    let begun = Instant::now();
    while child.try_wait().unwrap().is_none() {
        if begun.elapsed() > Duration::from_secs(60) {
            child.kill().unwrap();
            panic!("{args:?} hangs");
        }
        std::thread::sleep(Duration::from_millis(20));
    }
    let output = child.wait_with_output().unwrap();
    (output.status.code(), String::from_utf8_lossy(&output.stderr).into_owned())
}

/// The arguments of a command for the run R, the folder of runs D and the new name N.
fn arguments(command: &str, run: &Path) -> Vec<String> {
    let (runs, new) = (run.parent().unwrap(), run.with_file_name("../new"));
    let word = |word: &str| match word.split_at(1) {
        ("R", rest) => format!("{}{rest}", run.display()),
        ("D", "") => str_of(runs).to_owned(),
        ("N", rest) => format!("{}{rest}", new.display()),
        _ => word.to_owned(),
    };
    let mut args: Vec<String> = command.split(' ').map(word).collect();
    if args[0] == "train" {
        // One more update than the run has.
        args.extend(
            SETTINGS.iter().flat_map(|set| ["--set".to_owned(), set.replace("updates=4", "updates=5")]),
        );
    }
    args
}

const PUSH: &str = "push R user/name --dry-run";
const EXPORT: &str = "export R --out N";
const CHECK: &str = "weights --check --dir D";
const WRITE: &str = "weights --write --dir D";
const RESUME: &str = "train moons --threads 1 --out R";

/// Files, and the commands that cannot do without them.
const NEEDED: [(&str, &[&str]); 13] = [
    ("config.json", &["eval R", PUSH, EXPORT, CHECK, WRITE]),
    ("model.safetensors", &["sample R -n 2 --out N.png", PUSH, EXPORT, CHECK, WRITE]),
    ("model.safetensors.index.json", &["doctor R -n 2", PUSH, EXPORT, CHECK, WRITE]),
    ("recipe.toml", &["eval R", "explain R/recipe.toml --settings", "report R", PUSH, EXPORT, CHECK, WRITE]),
    ("summary.json", &["table D", "report R", "card R", PUSH, EXPORT, CHECK, WRITE, RESUME]),
    ("metrics.jsonl", &[PUSH, EXPORT, CHECK, WRITE, RESUME]),
    ("README.md", &["card R", PUSH, CHECK, WRITE]),
    ("license.txt", &["card R", PUSH, EXPORT, CHECK, WRITE]),
    ("samples.png", &[PUSH, EXPORT, CHECK, WRITE]),
    ("curve.png", &[PUSH, EXPORT, CHECK]),
    ("checkpoint.safetensors", &[CHECK, WRITE, RESUME]),
    ("density.safetensors", &["density R --out R/density.png", WRITE]),
    ("density.png", &[CHECK, WRITE]),
];

#[test]
fn no_file_of_a_run_stops_a_command_or_fills_the_memory() {
    let runs = RUNS.path();
    std::thread::scope(|scope| {
        for kind in ["pipe", "device", "sparse"] {
            scope.spawn(move || {
                for (file, commands) in NEEDED {
                    for command in commands {
                        let dir = tempfile::tempdir().unwrap();
                        let run = dir.path().join("runs/run");
                        copy(runs, &dir.path().join("runs"));
                        put(kind, &run.join(file));
                        let (code, said) = flow(&arguments(command, &run));
                        let what = format!("{file} is a {kind}, {command}: {said}");
                        let last = said.trim_end().lines().last().unwrap_or_default();
                        assert_eq!((code, said.matches("error: ").count()), (Some(1), 1), "{what}");
                        assert!(last.starts_with("error: ") && last.contains(file), "{what}");
                    }
                }
            });
        }
    });
}

/// What a command can do without is left out with a word, or put right.
#[test]
fn a_command_goes_on_without_what_it_does_not_need() {
    for (file, command, warned) in [
        ("samples.png", "report R", true),
        ("checkpoint.safetensors", "report R", false),
        ("density.png", "density R --out R/density.png", false),
        ("../index.json", WRITE, false),
    ] {
        for kind in ["pipe", "sparse"] {
            let dir = tempfile::tempdir().unwrap();
            let run = dir.path().join("runs/run");
            copy(RUNS.path(), &dir.path().join("runs"));
            put(kind, &run.join(file));
            let (code, said) = flow(&arguments(command, &run));
            assert_eq!(
                (code, said.contains(&format!("{file} "))),
                (Some(0), warned),
                "{file}, {kind}: {said}"
            );
        }
    }
}

/// What is no report of this toolkit is not replaced.
#[test]
fn a_report_replaces_reports_only() {
    for kind in ["pipe", "sparse"] {
        let dir = tempfile::tempdir().unwrap();
        let run = dir.path().join("runs/run");
        copy(RUNS.path(), &dir.path().join("runs"));
        put(kind, &run.join("report.html"));
        let (code, said) = flow(&arguments("report R", &run));
        assert_eq!((code, said.contains("no report of this version")), (Some(1), true), "{kind}: {said}");
    }
}

#[test]
fn the_hubs_token_is_read_from_a_file_only() {
    for kind in ["pipe", "device", "sparse"] {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("token");
        put(kind, &path);
        let (code, said) = flow_with(&["pull", "user/name"], Some(&path));
        assert_eq!(code, Some(1), "{kind}: {said}");
        assert!(
            said.contains("the token cannot be read from") && said.contains("set HF_TOKEN"),
            "{kind}: {said}"
        );
    }
}
