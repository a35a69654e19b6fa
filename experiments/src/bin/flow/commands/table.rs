//! `flow table`: runs against the papers, side by side, or over seeds.

use crate::output;
use crate::report::groups;
use crate::report::table::{self, Format};
use anyhow::Result;
use clap::Args;
use std::path::PathBuf;

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
    #[arg(long, conflicts_with_all = ["side_by_side", "format"])]
    seeds: bool,
}

/// Prints the table.
///
/// # Errors
/// When a folder that was named has no run, or a summary cannot be read.
pub fn run(args: &TableArgs) -> Result<()> {
    if args.seeds {
        return output::raw(&groups::markdown(&table::find(&args.runs)?)?);
    }
    let render = if args.side_by_side { table::side_by_side } else { table::render };
    output::raw(&render(&table::find(&args.runs)?, args.format)?)
}
