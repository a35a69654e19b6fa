//! The commands: one file each with its arguments, its work and its output.

pub mod attribute;
pub mod card;
pub mod compress;
pub mod decompress;
pub mod density;
pub mod doctor;
pub mod encode;
pub mod eval;
pub mod explain;
pub mod explore;
pub mod export;
pub mod import;
pub mod inpaint;
pub mod interpolate;
pub mod layers;
pub mod levels;
pub mod list;
pub mod nearest;
pub mod ood;
mod pictures;
pub mod pull;
pub mod push;
pub mod reconstruct;
pub mod report;
pub mod reproduce;
pub mod sample;
pub mod sweep;
pub mod table;
pub mod temperature;
pub mod weights;

use crate::output;
use anyhow::Result;
use serde_json::Value;
use std::fmt::Display;

/// Prints a result: one JSON object where `json` says so, else the text.
fn print(json: bool, object: Value, text: impl Display) -> Result<()> {
    if json { output::line(object) } else { output::line(text) }
}
