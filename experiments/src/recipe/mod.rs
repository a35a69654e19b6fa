//! Recipes: one TOML file for each number to reproduce.
//!
//! A recipe is data, model, training, evaluation and the paper's number, plus where each setting comes from. Unknown keys
//! and impossible values are errors that name the key.

mod check;
mod errors;
mod keys;
mod resolve;
mod types;

pub use resolve::{BUILTIN, Resolved, builtin};
pub use types::{Data, Eval, LossUnit, Lower, Paper, Recipe, Schedule, Train};
