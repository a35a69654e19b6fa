//! The second notebook, in Rust: it uses `flows` itself on the weights and arrays beside it.
//!
//! Its kernel is evcxr, which compiles a cell at a time and takes its dependencies from `:dep` lines. The library is in
//! no registry, so the line names the checkout that `--rust` gave, and candle's own line is read there: both must have
//! the same candle. Crates of the registry stay in evcxr's cache from one session to the next, the library itself is
//! built anew in each: on two busy cores the first cell took 8 minutes the first time and up to one minute in later
//! sessions, all other cells 1 to 9 seconds, most of it compilation. evcxr keeps no closures and no references from one
//! cell to the next, so the cells have none at their top level.

use crate::notebook::{Book, Story, escaped};
use anyhow::{Context, Result};
use serde_json::Value;
use std::path::Path;

/// The first cell's lines: what a checkout's library and candle are called in `:dep`.
pub struct Dependencies(String);

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
        let manifest = std::fs::read_to_string(checkout.join("Cargo.toml")).ok().with_context(none)?;
        let candle = manifest.lines().find(|line| line.starts_with("candle-core = ")).with_context(none)?;
        // A path in quotes: JSON's are TOML's.
        let path = Value::from(flows.to_string_lossy().as_ref());
        Ok(Self(format!(
            ":cache 2000\n\
             :dep flows = {{ path = {path}, default-features = false }}\n\
             :dep {candle}\n\
             :dep base64 = \"0.22\"\n\
             :dep png = \"0.18\"\n\
             :dep plotters = {{ version = \"0.3\", default-features = false, features = [\"evcxr\"] }}\n"
        )))
    }
}

/// The notebook's text.
///
/// # Errors
/// When it cannot be written as JSON.
pub fn write(story: &Story, dependencies: &Dependencies) -> Result<String> {
    let mut book = Book::default();
    let Story { name, seed, .. } = story;
    let text = format!(
        "# {} in Rust\n\nThe library itself on the files beside this notebook. The kernel is evcxr: `cargo install \
         --locked evcxr_jupyter`, then `evcxr_jupyter --install`. The first cell builds candle and the library: minutes the \
         first time, one at most later, for evcxr keeps what it built of candle. All other cells take seconds.",
        escaped(name)
    );
    book.text("title", &text, &[])?;
    book.code("dependencies", &dependencies.0)?;
    book.code("setup", include_str!("cells/rust/setup.rs"))?;
    book.text("model", "## The model\n\nEverything it needs is `config.json` and the weights.", &[])?;
    book.code("model-load", &format!("const SEED: u64 = {seed};\n{}", include_str!("cells/rust/load.rs")))?;
    let text = "## The density\n\nOf the samples in `arrays.npz`, with what was stored when this notebook was written.";
    book.text("density", text, &[])?;
    book.code("density-compared", include_str!("cells/rust/compare.rs"))?;
    if !story.arrays.iter().any(|array| array == "points") {
        book.text("samples", "## Samples\n\nAt temperature 0.7.", &[])?;
        book.code("samples-drawn", include_str!("cells/rust/sample.rs"))?;
        book.text("interpolation", "## Interpolation\n\nAbove on the line, below on the arc.", &[])?;
        book.code("interpolation-walk", include_str!("cells/rust/interpolate.rs"))?;
    } else {
        book.text("samples", "## Samples\n\nTheir first two dimensions.", &[])?;
        book.code("samples-points", include_str!("cells/rust/points.rs"))?;
    }
    let text = "## Layer by layer\n\nlog p(x) = log p_Z(z) + the sum of all layers' log-dets. As bits/dim, below zero where \
                a layer spreads the data, as the first layers of trained models do, above where it contracts them.";
    book.text("layers", text, &[])?;
    book.code("layers-log-det", include_str!("cells/rust/layers.rs"))?;
    book.finish(("Rust", "rust", "rust"))
}
