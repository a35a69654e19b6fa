//! A run that is killed at any moment and called again ends with the bits of a run that was left alone.
//!
//! The binary itself is killed with SIGKILL, which no handler sees: in an update, in the middle of a checkpoint, between
//! the checkpoint and the model, while it evaluates.

use rand::{Rng, SeedableRng};
use rand_chacha::ChaCha8Rng;
use safetensors::SafeTensors;
use serde_json::Value;
use std::collections::BTreeMap;
use std::fs;
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

const KILLS: usize = 10;

/// A tiny Glow.
const RECIPE: &str = include_str!("common/tiny.toml");

fn start(recipe: &Path, out: &Path) -> Child {
    Command::new(env!("CARGO_BIN_EXE_flow"))
        .arg("reproduce")
        .arg(recipe)
        .arg("--out")
        .arg(out)
        .args(["--json", "--seed", "4"])
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .spawn()
        .expect("the binary was built for this test")
}

/// Each tensor's dtype, shape and bytes by name, and the file's metadata.
type Contents = (BTreeMap<String, (String, Vec<usize>, Vec<u8>)>, BTreeMap<String, String>);

fn read(path: &Path) -> Contents {
    let bytes = fs::read(path).unwrap_or_else(|e| panic!("{}: {e}", path.display()));
    let file = SafeTensors::deserialize(&bytes).expect("whole");
    let tensor = |(name, v): (String, safetensors::tensor::TensorView)| {
        (name, (format!("{:?}", v.dtype()), v.shape().to_vec(), v.data().to_vec()))
    };
    let (_, header) = SafeTensors::read_metadata(&bytes).expect("whole");
    let meta = header.metadata().clone().unwrap_or_default().into_iter().collect();
    (file.tensors().into_iter().map(tensor).collect(), meta)
}

/// Removes what depends on the clock, at any depth.
/// Without what the clock decides, and the checksum over it.
fn without_clock(v: &mut Value) {
    if let Value::Object(map) = v {
        let of_clock =
            |key: &str| key.ends_with("seconds") || ["images_per_second", "rest_crc32"].contains(&key);
        map.retain(|key, _| !of_clock(key));
        map.values_mut().for_each(without_clock);
    }
}

fn position(meta: &BTreeMap<String, String>) -> Vec<Value> {
    let parse = |text: &String| {
        let mut v = serde_json::from_str(text).expect("JSON");
        without_clock(&mut v);
        v
    };
    meta.values().map(parse).collect()
}

fn log(out: &Path) -> Vec<Value> {
    let text = fs::read_to_string(out.join("metrics.jsonl")).expect("the run has a log");
    let parse = |line| {
        let mut v = serde_json::from_str(line).expect("whole lines");
        without_clock(&mut v);
        v
    };
    text.lines().map(parse).collect()
}

fn assert_same(want: &Path, got: &Path) {
    assert!(
        read(&want.join("model.safetensors")) == read(&got.join("model.safetensors")),
        "the model differs"
    );
    let (a, b) = (read(&want.join("checkpoint.safetensors")), read(&got.join("checkpoint.safetensors")));
    assert!(a.0 == b.0, "the checkpoint's tensors differ");
    assert_eq!(position(&a.1), position(&b.1));
    assert_eq!(log(want), log(got));
    let config = |dir: &Path| fs::read(dir.join("config.json")).expect("a model has a config");
    assert_eq!(config(want), config(got));
}

#[test]
fn ten_kills_change_nothing() {
    let dir = tempfile::tempdir().unwrap();
    let recipe = dir.path().join("tiny.toml");
    fs::write(&recipe, RECIPE).unwrap();
    let straight = dir.path().join("straight");
    let clock = Instant::now();
    assert!(start(&recipe, &straight).wait().unwrap().success(), "the uninterrupted run failed");
    let whole = clock.elapsed();

    let mut rng = ChaCha8Rng::seed_from_u64(10);
    let (mut kills, mut round) = (0, 0);
    // A run that gets through before its turn is checked, and another one begins.
    while kills < KILLS || round == 0 {
        let out = dir.path().join(format!("killed{round}"));
        let mut killed = 0;
        loop {
            let mut child = start(&recipe, &out);
            if kills == KILLS {
                assert!(child.wait().unwrap().success(), "the run did not resume");
                break;
            }
            let end = Instant::now() + whole.mul_f64(rng.random_range(0.05..0.5));
            let status = loop {
                match child.try_wait().unwrap() {
                    Some(status) => break Some(status),
                    None if Instant::now() >= end => break None,
                    None => std::thread::sleep(Duration::from_millis(1)),
                }
            };
            match status {
                Some(status) => {
                    assert!(status.success(), "the run did not resume after {killed} kills");
                    break;
                }
                None => {
                    child.kill().unwrap();
                    child.wait().unwrap();
                    (kills, killed) = (kills + 1, killed + 1);
                }
            }
        }
        assert_same(&straight, &out);
        round += 1;
    }
}

/// A model that cannot be built leaves no folder, and one that was there stays as it was and is taken by the next run.
#[test]
fn a_start_that_fails_leaves_no_folder() {
    let dir = tempfile::tempdir().unwrap();
    let recipe = dir.path().join("tiny.toml");
    fs::write(&recipe, RECIPE).unwrap();
    let start = |set: &str, out: &Path| {
        let mut command = Command::new(env!("CARGO_BIN_EXE_flow"));
        command
            .arg("train")
            .arg(&recipe)
            .args(["--set", "train.updates=2", "--set", set])
            .arg("--out")
            .arg(out);
        let output = command.env_remove("RUST_LOG").output().unwrap();
        (output.status.code(), String::from_utf8(output.stderr).unwrap())
    };
    let empty = dir.path().join("empty");
    fs::create_dir(&empty).unwrap();
    for (set, says) in [
        ("model.levels=6", "`levels = 5`"),
        ("model.levels=0", "at least 1"),
        ("model.width=0", "at least 1"),
        ("model.classes=0", "`classes`"),
        ("model.classes=1", "train a model of more `classes`"),
        ("train.lr=1e30", "there is no checkpoint yet"),
    ] {
        let out = dir.path().join("new");
        let (code, said) = start(set, &out);
        assert_eq!(code, Some(1), "{set}: {said}");
        assert!(said.lines().last().unwrap().contains(says), "{set}: {said}");
        // What a run wrote before its first update failed is no obstacle to the next.
        assert!(set.starts_with("train") || !out.exists(), "{set}: {said}");
        assert_eq!(start(set, &empty).0, Some(1));
        assert!(
            empty.is_dir() && (set.starts_with("train") || fs::read_dir(&empty).unwrap().next().is_none())
        );
    }
    for out in [dir.path().join("new"), empty] {
        let (code, said) = start("train.lr=1e-3", &out);
        assert_eq!(code, Some(0), "{said}");
    }
}
