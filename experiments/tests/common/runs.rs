//! Runs of a second, for tests of what is made of a trained model.

use crate::common::ok;
use std::path::{Path, PathBuf};

pub fn str_of(path: &Path) -> &str {
    path.to_str().expect("the test's folders are UTF-8")
}

/// A run of this recipe in the folder `name`.
pub fn train(dir: &Path, name: &str, recipe: &str, sets: &[&str]) -> PathBuf {
    let out = dir.join(name);
    let mut args = vec!["train", recipe, "--out", str_of(&out), "--threads", "2"];
    sets.iter().for_each(|set| args.extend(["--set", set]));
    ok(&args);
    out
}

/// A Glow of a second on drawn faces.
pub fn faces(dir: &Path) -> PathBuf {
    faces_with(dir, &[])
}

/// As [`faces`], with more settings.
pub fn faces_with(dir: &Path, more: &[&str]) -> PathBuf {
    let sets = [
        "data.set=faces",
        "data.train=60",
        "data.validation=8",
        "data.test=12",
        "model.levels=2",
        "model.depth=1",
        "model.width=4",
        "train.updates=2",
        "train.batch=8",
        "train.init_images=32",
        "eval.samples=0",
        "eval.codec_images=0",
    ];
    train(dir, "faces", "glow-cifar-small", &[&sets[..], more].concat())
}
