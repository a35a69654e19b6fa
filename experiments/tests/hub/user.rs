//! A user of the hub in a test: commands with a cache, a token and a hub of their own, and what they print.

use super::server::{TestHub, WRITER};
use serde_json::Value;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Output, Stdio};
use std::sync::LazyLock;
use std::time::{Duration, Instant};
use tempfile::TempDir;

/// The repository of most tests.
pub const ID: &str = "user/moons";
/// How long a command may take to give up.
const MINUTE: Duration = Duration::from_secs(60);

/// A run of a second, whose card has a number for the hub to show.
pub static RUN: LazyLock<TempDir> = LazyLock::new(|| {
    let dir = tempfile::tempdir().unwrap();
    let mut args = vec!["reproduce", "moons", "--threads", "2", "--out", path(dir.path())];
    for set in [
        "model.hidden=[[8],[8]]",
        "train.updates=20",
        "train.validate_every=10",
        "data.train=500",
        "data.validation=50",
        "data.test=200",
        "eval.samples=50",
    ] {
        args.extend(["--set", set]);
    }
    let output = Command::new(env!("CARGO_BIN_EXE_flow")).args(args).output().unwrap();
    assert!(output.status.success(), "{}", text(&output.stderr));
    let card = "---\nlicense: mit\nlibrary_name: candle\nmodel-index:\n- name: moons\n  results:\n  - task:\n      type: \
                unconditional-image-generation\n    dataset:\n      name: moons\n      type: moons\n    metrics:\n    - type: \
                bits_per_dim\n      value: 1.5\n---\n\n# moons\n";
    std::fs::write(dir.path().join("README.md"), card).unwrap();
    // What must never go up.
    for secret in [".env", ".git", "id_rsa", "notes.txt", "model.bin"] {
        std::fs::write(dir.path().join(secret), "secret").unwrap();
    }
    dir
});

/// What goes up: the run's files, and the file that reads the weights in Python.
pub const PUSHED: [&str; 9] = [
    "README.md",
    "config.json",
    "curve.png",
    "flows_torch.py",
    "metrics.jsonl",
    "model.safetensors",
    "recipe.toml",
    "samples.png",
    "summary.json",
];

/// What of the run goes up, and comes down again.
pub const FILES: [&str; 8] = [
    "README.md",
    "config.json",
    "curve.png",
    "metrics.jsonl",
    "model.safetensors",
    "recipe.toml",
    "samples.png",
    "summary.json",
];

pub fn path(path: &Path) -> &str {
    path.to_str().expect("the test's folders are UTF-8")
}

pub fn text(bytes: &[u8]) -> String {
    String::from_utf8_lossy(bytes).into_owned()
}

/// Somebody with a cache and a token.
pub struct User<'a> {
    pub hub: &'a TestHub,
    pub home: TempDir,
    pub token: Option<&'static str>,
}

impl<'a> User<'a> {
    pub fn new(hub: &'a TestHub) -> Self {
        Self { hub, home: tempfile::tempdir().unwrap(), token: Some(WRITER) }
    }

    pub fn clean(&self, command: &mut Command) {
        for (name, _) in std::env::vars_os() {
            let name = name.to_string_lossy().into_owned();
            let foreign =
                ["HF_", "HUGGINGFACE_", "FLOW_", "RUST_LOG", "XDG_"].iter().any(|p| name.starts_with(p));
            if foreign || name.to_ascii_lowercase().ends_with("_proxy") {
                command.env_remove(name);
            }
        }
        command.env("HF_ENDPOINT", self.hub.endpoint()).env("HF_HOME", self.home.path());
        if let Some(token) = self.token {
            command.env("HF_TOKEN", token);
        }
    }

    pub fn command(&self, args: &[&str]) -> Command {
        let mut command = Command::new(env!("CARGO_BIN_EXE_flow"));
        command.args(args);
        self.clean(&mut command);
        command
    }

    pub fn spawn(&self, args: &[&str]) -> Child {
        self.command(args).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap()
    }

    /// Standard output of a command that succeeds.
    pub fn ok(&self, args: &[&str]) -> String {
        let output = self.command(args).output().unwrap();
        assert!(output.status.success(), "{args:?}: {}\n{:#?}", text(&output.stderr), self.hub.log());
        text(&output.stdout)
    }

    pub fn json(&self, args: &[&str]) -> Value {
        serde_json::from_str(self.ok(&[args, &["--json"]].concat()).lines().last().unwrap()).unwrap()
    }

    /// The sentence of a command that fails, within a minute.
    pub fn error(&self, args: &[&str]) -> String {
        let begin = Instant::now();
        let output = self.command(args).output().unwrap();
        assert!(begin.elapsed() < MINUTE, "{args:?} took {:?}", begin.elapsed());
        sentence(args, &output)
    }

    /// As [`User::error`], with the sentence printed for the list of what users read.
    pub fn fails(&self, what: &str, args: &[&str], says: &[&str]) {
        let begin = Instant::now();
        let error = self.error(args);
        let error = error.replace(self.hub.endpoint(), "ENDPOINT").replace(path(self.home.path()), "HF_HOME");
        println!("{what} | {} | {error} | {:.1} s", args[0], begin.elapsed().as_secs_f64());
        for part in says {
            assert!(error.contains(part), "{what}: {error}");
        }
    }

    pub fn push(&self) -> Value {
        self.json(&["push", path(RUN.path()), ID])
    }

    /// The bits/dim of a model, to the last digit.
    pub fn bits(&self, weights: &str, more: &[&str]) -> String {
        let out = self.ok(&[&["eval", weights, "--json", "--threads", "2"], more].concat());
        let at = out.find("\"bits_per_dim\":").unwrap();
        out[at..].split([',', '}']).next().unwrap().to_owned()
    }

    /// The repository's model is the run that it was made from.
    pub fn same_bits(&self) {
        assert_eq!(self.bits(&format!("hf:{ID}"), &[]), self.bits(path(RUN.path()), &[]));
    }

    pub fn blobs(&self) -> Vec<PathBuf> {
        let folder = self.home.path().join("hub").join("models--user--moons/blobs");
        std::fs::read_dir(folder).map_or(vec![], |entries| entries.map(|e| e.unwrap().path()).collect())
    }

    /// The blob that a file of the cached `main` is.
    pub fn blob(&self, name: &str) -> PathBuf {
        let repository = self.home.path().join("hub").join("models--user--moons");
        let commit = std::fs::read_to_string(repository.join("refs/main")).unwrap();
        repository.join("snapshots").join(commit).join(name).canonicalize().unwrap()
    }
}

/// The one line of error of a command that failed with exit code 1.
pub fn sentence(args: &[&str], output: &Output) -> String {
    let stderr = text(&output.stderr);
    assert_eq!(output.status.code(), Some(1), "{args:?}: {}{stderr}", text(&output.stdout));
    let errors: Vec<&str> = stderr.lines().filter(|line| line.starts_with("error: ")).collect();
    assert_eq!(errors.len(), 1, "{stderr}");
    assert!(stderr.trim_end().ends_with(errors[0]), "nothing comes after the error: {stderr}");
    assert!(!stderr.contains("hf_"), "no token is ever shown: {stderr}");
    errors[0].to_owned()
}

/// A hub with the run in it, and somebody who has not read it yet.
pub fn published(hub: &TestHub) -> User<'_> {
    User::new(hub).push();
    User::new(hub)
}
