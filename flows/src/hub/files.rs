//! The files that make a model: their names and how to recognise them.

use super::text::one_line;
use crate::storage::{INDEX, WEIGHTS, is_weights};
use std::collections::{BTreeMap, BTreeSet};
use std::fs::{self, File};
use std::io::{self, Read};
use std::path::Path;

/// The model card's name in a model's folder.
pub const CARD: &str = "README.md";

/// Bytes of a file that is read as a whole, at most.
const LARGEST: u64 = 1 << 26;

/// A regular file and its length. A pipe would be waited for, and a device has no end.
pub(super) fn open(path: &Path) -> io::Result<(File, u64)> {
    let meta = fs::metadata(path)?;
    if !meta.is_file() {
        return Err(io::Error::other("it is no regular file"));
    }
    Ok((File::open(path)?, meta.len()))
}

/// The bytes of a small regular file.
pub(super) fn read(path: &Path) -> io::Result<Vec<u8>> {
    let (file, length) = open(path)?;
    if length > LARGEST {
        return Err(io::Error::other(format!(
            "it has {length} bytes, more than the {LARGEST} of such a file"
        )));
    }
    let mut bytes = Vec::new();
    file.take(LARGEST).read_to_end(&mut bytes)?;
    Ok(bytes)
}

/// The text of a small regular file without the space around it, or `None` where it is empty or there is none.
pub(super) fn line(path: &Path) -> Option<String> {
    let text = String::from_utf8(read(path).ok()?).ok()?;
    Some(text.trim().to_owned()).filter(|text| !text.is_empty())
}

/// The files of a folder's weights: those that its index of shards names, or the one file where there is no index.
///
/// # Errors
/// What is wrong with the index, as a sentence.
pub(super) fn weights(folder: &Path) -> std::result::Result<Vec<String>, String> {
    #[derive(serde::Deserialize)]
    struct Shards {
        weight_map: BTreeMap<String, String>,
    }
    let index = folder.join(INDEX);
    if !index.is_file() {
        return Ok(vec![WEIGHTS.to_owned()]);
    }
    let damaged = |what: &str| format!("{} is no index of shards ({what})", index.display());
    let text = read(&index).map_err(|error| damaged(&error.to_string()))?;
    let shards: Shards = serde_json::from_slice(&text).map_err(|error| damaged(&error.to_string()))?;
    let names: BTreeSet<String> = shards.weight_map.into_values().collect();
    match names.iter().find(|name| !is_weights(name)) {
        Some(name) => Err(damaged(&format!("`{}` is no shard's name", one_line(name)))),
        None if names.is_empty() => Err(damaged("it names none")),
        None => Ok(names.into_iter().collect()),
    }
}

/// Whether a file has the structure of a config that some version of this library has written.
pub(super) fn is_config(path: &Path) -> bool {
    let file = read(path).ok().and_then(|text| serde_json::from_slice::<serde_json::Value>(&text).ok());
    file.is_some_and(|file| file["format"].is_u64() && file["config"].is_object())
}

#[cfg(all(test, unix))]
mod tests {
    use super::*;

    #[test]
    fn pipes_devices_and_files_as_long_as_a_disk_are_not_read() {
        let dir = tempfile::tempdir().unwrap();
        let at = |name: &str| dir.path().join(name);
        assert!(std::process::Command::new("mkfifo").arg(at("pipe")).status().unwrap().success());
        std::os::unix::fs::symlink("/dev/zero", at("device")).unwrap();
        File::create(at("sparse")).unwrap().set_len(1 << 40).unwrap();
        fs::write(at("token"), " hf_x\n").unwrap();
        fs::write(at("empty"), " \n").unwrap();
        for name in ["pipe", "device", "sparse", "empty", "none"] {
            assert_eq!(line(&at(name)), None, "{name}");
            assert!(!is_config(&at(name)), "{name}");
        }
        assert!(open(&at("pipe")).is_err() && open(&at("device")).is_err() && open(dir.path()).is_err());
        assert_eq!(line(&at("token")).as_deref(), Some("hf_x"));
        fs::rename(at("sparse"), at(INDEX)).unwrap();
        assert!(weights(dir.path()).unwrap_err().contains("more than the"));
    }
}
