//! The files that make a model: their names and how to recognise them.

use super::text::one_line;
use crate::storage::{INDEX, WEIGHTS, is_weights};
use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::path::Path;

/// The model card's name in a model's folder.
pub const CARD: &str = "README.md";

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
    let text = fs::read(&index).map_err(|error| damaged(&error.to_string()))?;
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
    let file = fs::read(path).ok().and_then(|text| serde_json::from_slice::<serde_json::Value>(&text).ok());
    file.is_some_and(|file| file["format"].is_u64() && file["config"].is_object())
}
