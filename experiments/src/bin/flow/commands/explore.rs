//! `flow explore`: a page to play with a model.

use crate::args::Compute;
use crate::explore::{self, Explorer};
use crate::hub::{WEIGHTS, Weights};
use crate::output;
use crate::session::Which;
use anyhow::{Result, ensure};
use clap::Args;
use std::path::PathBuf;
use std::process::{Command, Stdio};

/// `explore`.
#[derive(Args)]
pub struct ExploreArgs {
    /// Folder with config.json and model.safetensors, or a model of the Hugging Face Hub.
    #[arg(value_name = WEIGHTS)]
    weights: Weights,
    /// Port of the page on this machine; 0 is any that is free.
    #[arg(long, default_value_t = 7860)]
    port: u16,
    /// Open the page in a browser.
    #[arg(long, conflicts_with = "export")]
    open: bool,
    /// Write the page with a fixed set of pictures to a new or empty folder instead: it opens from the disk and from any web
    /// server.
    #[arg(long, value_name = "DIR", conflicts_with = "port")]
    export: Option<PathBuf>,
    #[command(flatten)]
    from: Which,
    #[command(flatten)]
    compute: Compute,
}

/// Serves the page until Ctrl-C, or writes it.
///
/// # Errors
/// When the folder holds no model, the port is in use, or the files cannot be written.
pub fn run(args: &ExploreArgs) -> Result<()> {
    let load = || Explorer::open(args.weights.clone(), args.compute.clone(), args.from.clone());
    if let Some(out) = &args.export {
        let empty = !out.exists() || (out.is_dir() && std::fs::read_dir(out)?.next().is_none());
        ensure!(empty, "--export {} holds files, or is one: name a new folder", out.display());
        return explore::export(load()?, out);
    }
    // Before the model is loaded, which may take a while.
    let listener = explore::listen(args.port)?;
    let explorer = load()?;
    let address = format!("http://{}", listener.local_addr()?);
    output::line(format_args!("{address} is the page of {}; Ctrl-C ends it", args.weights))?;
    if args.open {
        open(&address);
    }
    explore::serve(listener, explore::start(explorer))
}

/// Shows an address in the browser of whoever sits here.
fn open(address: &str) {
    let program = match std::env::consts::OS {
        "macos" => "open",
        "windows" => "explorer",
        _ => "xdg-open",
    };
    let started = Command::new(program).arg(address).stdout(Stdio::null()).stderr(Stdio::null()).spawn();
    if started.is_err() {
        tracing::warn!("no browser can be opened from here: open {address} yourself");
    }
}
