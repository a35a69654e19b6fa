//! `flow table`: runs against the papers, side by side, over seeds, as curves, or by what images take.

use crate::draw::bars;
use crate::draw::curve::{self, Over};
use crate::output::{self, PICTURE, PNG};
use crate::report::groups;
use crate::report::table::{self, Format};
use anyhow::{Result, ensure};
use clap::Args;
use flows::storage::write_atomic;
use std::path::{Path, PathBuf};

/// `table`.
#[derive(Args)]
pub struct TableArgs {
    /// Folders of runs, or folders that contain them (default: runs, weights and experiments/results).
    runs: Vec<PathBuf>,
    /// Output format.
    #[arg(long, value_enum, default_value = "markdown")]
    format: Format,
    /// Print one column a run: results, and the settings that differ.
    #[arg(long)]
    side_by_side: bool,
    /// Print one row for runs that differ in their seed alone: mean ± standard deviation, the best by validation in bold.
    #[arg(long, conflicts_with = "side_by_side")]
    seeds: bool,
    /// Of the runs of one kind of model (NICE, RealNVP, Glow, ..) on one data set, show the best by validation alone.
    #[arg(long, conflicts_with = "seeds")]
    best: bool,
    /// Draw the validation curves of the runs in one picture.
    #[arg(long, group = "picture", conflicts_with_all = ["side_by_side", "format", "seeds"])]
    curves: bool,
    /// Draw bits/dim of compressed images in one picture, beside image formats.
    #[arg(long, group = "picture", conflicts_with_all = ["side_by_side", "format", "seeds"])]
    sizes: bool,
    /// What the curves are drawn over.
    #[arg(long, value_enum, default_value = "updates", requires = "curves")]
    over: Over,
    /// Output file of the picture (.png; default: curves.png, sizes.png).
    #[arg(long, value_name = "FILE", requires = "picture")]
    out: Option<PathBuf>,
}

/// Prints the table.
///
/// # Errors
/// When a folder that was named has no run, a summary or a log cannot be read, or the picture cannot be written.
pub fn run(args: &TableArgs) -> Result<()> {
    if args.curves || args.sizes {
        return draw(args);
    }
    let render = match (args.seeds, args.side_by_side) {
        (true, _) => groups::render,
        (_, true) => table::side_by_side,
        _ => table::render,
    };
    output::raw(&render(&runs(args)?, args.format)?)
}

fn runs(args: &TableArgs) -> Result<Vec<table::Run>> {
    let runs = table::find(&args.runs)?;
    if args.best { table::best(runs) } else { Ok(runs) }
}

fn draw(args: &TableArgs) -> Result<()> {
    let default = if args.curves { "curves.png" } else { "sizes.png" };
    let out = args.out.as_deref().unwrap_or(Path::new(default));
    ensure!(
        args.out.is_some() || !out.exists(),
        "{0} is there: name another file, or say --out {0} to replace it",
        out.display()
    );
    output::writable(out, PNG, PICTURE)?;
    let runs = runs(args)?;
    let picture = if args.curves {
        let folders: Vec<PathBuf> = runs.into_iter().map(|run| run.dir).collect();
        curve::compare(&folders, args.over)?
    } else {
        bars::draw(&runs.iter().map(|run| (run.dir.as_path(), &run.summary)).collect::<Vec<_>>())?
    };
    write_atomic(out, &picture)?;
    output::line(out.display())
}
