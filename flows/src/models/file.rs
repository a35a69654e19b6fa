//! What a saved folder holds, by its config and the headers of its weights.

use super::config::ModelConfig;
use crate::storage::{self, INDEX, Weights};
use candle_core::{DType, Result};
use std::path::Path;

/// The config of a saved folder alone.
///
/// # Errors
/// As [`parse_config`], or when the file cannot be read or is longer than any config.
pub fn config(dir: &Path) -> Result<ModelConfig> {
    let (config, _) = storage::read_config::<ModelConfig>(dir)?;
    config.check().map_err(|e| storage::at(&dir.join(storage::CONFIG), e))?;
    Ok(config)
}

/// The config of a config.json's text, with no size above what [`ModelConfig::check`] allows.
///
/// # Errors
/// When it is no config, one of a newer format, or one whose sizes no model has.
pub fn parse_config(text: &[u8]) -> Result<ModelConfig> {
    let (config, _) = storage::parse_config::<ModelConfig>(text)?;
    config.check()?;
    Ok(config)
}

/// What a saved folder holds, by its config and headers alone.
#[derive(Clone, Debug)]
pub struct Stored {
    /// The config.
    pub config: ModelConfig,
    /// The names of the files that make the model: the config, the weights and, where there is one, their index.
    pub files: Vec<String>,
    /// The narrowest dtype of its floating-point tensors.
    pub dtype: DType,
    /// Bytes of all tensors.
    pub bytes: u64,
}

/// What a saved folder holds.
///
/// # Errors
/// As [`Model::load`](super::Model::load), except those that only a built model shows.
pub fn stored(dir: &Path) -> Result<Stored> {
    let (config, hash) = storage::read_config::<ModelConfig>(dir)?;
    config.check().map_err(|e| storage::at(&dir.join(storage::CONFIG), e))?;
    let weights = Weights::open(dir, &hash)?;
    let index = dir.join(INDEX).exists().then(|| INDEX.to_string());
    let files =
        std::iter::once(storage::CONFIG.to_string()).chain(weights.file_names()).chain(index).collect();
    Ok(Stored { config, files, dtype: weights.narrowest().unwrap_or(DType::F32), bytes: weights.bytes() })
}
