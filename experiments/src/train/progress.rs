//! What an observer of a training run is told, and how a run ended.

use crate::summary::Together;
use serde::Serialize;

/// Observer of a training run.
pub trait Progress: Send {
    /// The run starts at update `from`; `total` updates are planned, if the recipe limits them.
    fn begin(&mut self, from: u64, total: Option<u64>);
    /// An update was made; `bits_per_dim` is the mean since the last line of the log.
    fn step(&mut self, update: u64, bits_per_dim: f64, images_per_second: f64, seconds_left: Option<f64>);
    /// A validation was made; `best` is the best so far.
    fn validation(&mut self, update: u64, bits_per_dim: f64, best: f64);
    /// A message for the user.
    fn message(&mut self, text: &str);
}

/// An observer that does not look: that of all ranks but the first.
pub struct Silent;

impl Progress for Silent {
    fn begin(&mut self, _: u64, _: Option<u64>) {}
    fn step(&mut self, _: u64, _: f64, _: f64, _: Option<f64>) {}
    fn validation(&mut self, _: u64, _: f64, _: f64) {}
    fn message(&mut self, _: &str) {}
}

/// Why a run ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum StoppedBy {
    /// `train.updates`.
    Updates,
    /// `train.epochs`.
    Epochs,
    /// `train.minutes`: the number of updates depends on the machine's speed.
    Minutes,
    /// `train.patience`.
    Patience,
    /// Ctrl-C; the same command resumes.
    Interrupt,
}

/// How a run ended.
#[derive(Clone, Debug, Serialize)]
pub struct Outcome {
    /// Updates made.
    pub updates: u64,
    /// Images seen.
    pub images_seen: u64,
    /// Images seen over images there are.
    pub epochs: f64,
    /// Images a second, over all updates, without validation.
    pub images_per_second: f64,
    /// Seconds of the whole run, over all resumes.
    pub wall_seconds: f64,
    /// The update of the best validation and its bits/dim; the saved model is that update's.
    pub best_validation: Option<(u64, f64)>,
    /// Mean training bits/dim over the last window of the log.
    pub train_bits_per_dim: Option<f64>,
    /// The updates after which it had ended before it was extended.
    pub extended: Vec<u64>,
    /// Why it ended.
    pub stopped_by: StoppedBy,
    /// The processes that trained, where there were several.
    pub ranks: Option<Together>,
    /// Whether it ended; an interrupted run did not.
    pub finished: bool,
}
