//! The lines of metrics.jsonl.

use serde::Serialize;

/// A line: where the run is, and one of the groups of values below.
#[derive(Serialize)]
pub(super) struct Line<T> {
    pub(super) update: u64,
    pub(super) epoch: f64,
    pub(super) images_seen: u64,
    pub(super) seconds: f64,
    #[serde(flatten)]
    pub(super) values: T,
}

/// Drift of reconstructed inputs.
#[derive(Serialize)]
pub(super) struct DriftLine {
    /// The largest drift among the layers whose inputs are reconstructed.
    pub(super) drift: f64,
    /// How many layers are stored because they drift further.
    pub(super) stored_layers: usize,
}

/// Means over the updates since the last such line.
#[derive(Serialize)]
pub(super) struct TrainingLine {
    pub(super) train_bits_per_dim: f64,
    pub(super) learning_rate: f64,
    pub(super) grad_norm: f64,
    pub(super) clip: f64,
    pub(super) images_per_second: f64,
}

/// A validation.
#[derive(Serialize)]
pub(super) struct ValidationLine {
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) validation_bits_per_dim: Option<f64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) best_validation_bits_per_dim: Option<f64>,
    /// max |decode(encode(x)) - x| in pixel values; absent when it is not finite.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) reconstruction_error: Option<f64>,
}
