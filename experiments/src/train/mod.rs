//! Training: [`train`] runs a recipe to its end in a folder, from which the same call resumes.
//!
//! | file | what it has |
//! |---|---|
//! | `step` | one update, from data to gradient to parameters, on the CPU and on a GPU |
//! | `run` | the loop around it: validation, checkpoints, drift, the log |
//! | `start` | a run that starts from saved weights |
//! | `reduce` | the sum over the processes that train together |
//! | `schedule` | learning rate and length of a run |
//! | `log` | the lines of metrics.jsonl |
//! | `progress` | what an observer of a run is told, and how a run ended |
//!
//! A run is a function of its recipe and its data: whatever an update needs is in the checkpoint or a function of the seed
//! and the update's number. A run that is killed at any moment and called again therefore ends with the same bits as one that
//! was not interrupted. Files are written in the order that keeps this true for the saved model, too: first the checkpoint,
//! which says that this update's weights are the model, then the model; a run that was killed between the two finds that
//! entry and saves the model again.

mod log;
mod progress;
mod reduce;
mod run;
mod schedule;
mod start;
mod step;

pub use progress::{Outcome, Progress, Silent, StoppedBy};
pub use reduce::over_ranks;
pub use run::train;
pub use schedule::check_precision;
pub use start::start_from;
pub use step::{Pass, learn};

#[cfg(test)]
mod tests;
