//! The second notebook, in Rust: it uses `flows` itself on the weights and arrays beside it.
//!
//! Its kernel is evcxr, which compiles a cell at a time and takes its dependencies from `:dep` lines. The library is in
//! no registry, so the line names the checkout that `--rust` gave, and candle's own line is read there: both must have
//! the same candle. Crates of the registry stay in evcxr's cache from one session to the next, the library itself is
//! built anew in each: on two busy cores the first cell took 8 minutes the first time and up to one minute in later
//! sessions, all other cells 1 to 9 seconds, most of it compilation. evcxr keeps no closures and no references from one
//! cell to the next, so the cells have none at their top level.

use crate::notebook::{Story, notebook};
use anyhow::{Context, Result};
use askama::Template;
use experiments::untrusted::{TEXT, read_regular};
use serde_json::Value;
use std::path::Path;

/// A checkout's library and candle, as `:dep` lines name them.
pub struct Dependencies {
    /// The folder of the library in quotes.
    flows: Value,
    /// The line of candle in the checkout's manifest.
    candle: String,
}

impl Dependencies {
    /// Those of a checkout.
    ///
    /// # Errors
    /// When the folder is none.
    pub fn of(checkout: &Path) -> Result<Self> {
        let none = || {
            format!(
                "--rust {}: no checkout of the library, which has a Cargo.toml and a folder flows/",
                checkout.display()
            )
        };
        let flows = checkout.join("flows").canonicalize().ok().with_context(none)?;
        std::fs::metadata(flows.join("Cargo.toml")).ok().with_context(none)?;
        let manifest = read_regular(&checkout.join("Cargo.toml"), TEXT).ok();
        let manifest = manifest.and_then(|bytes| String::from_utf8(bytes).ok()).with_context(none)?;
        let candle = manifest.lines().find(|line| line.starts_with("candle-core = ")).with_context(none)?;
        // A path in quotes: JSON's are TOML's.
        Ok(Self { flows: flows.to_string_lossy().into(), candle: candle.to_owned() })
    }
}

#[derive(Template)]
#[template(path = "rust/notebook.md")]
struct Cells<'a> {
    story: &'a Story<'a>,
    dependencies: &'a Dependencies,
}

/// The text of the notebook in Rust.
///
/// # Errors
/// When it cannot be written as JSON.
pub fn write(story: &Story, dependencies: &Dependencies) -> Result<String> {
    notebook(&Cells { story, dependencies }.render()?, ("Rust", "rust", "rust"), |_| &[])
}
