//! `flow report`: a run as one HTML file.

use crate::output;
use crate::report::html;
use anyhow::{Context, Result, ensure};
use experiments::run_dir::{self, REPORT};
use experiments::summary::Summary;
use experiments::untrusted::head;
use flows::storage::write_atomic;
use std::path::{Path, PathBuf};

/// What the report says of its origin.
const GENERATOR: &str = "name=\"generator\" content=\"flow report\"";

/// `report`.
#[derive(clap::Args)]
pub struct ReportArgs {
    /// Folder of a finished run.
    #[arg(value_name = "RUN")]
    run: PathBuf,
    /// Other runs: the report shows the curves of all in one picture.
    #[arg(long, value_name = "RUN", num_args = 1..)]
    beside: Vec<PathBuf>,
    /// Output file (default: report.html in the folder of the run).
    #[arg(long, value_name = "FILE")]
    out: Option<PathBuf>,
}

/// Whether a file is a report that this command wrote; what is no file is none.
fn is_report(path: &Path) -> bool {
    head(path, 512).is_ok_and(|bytes| String::from_utf8_lossy(&bytes).contains(GENERATOR))
}

/// Writes the report of a run.
///
/// # Errors
/// When the folder holds no finished run, or the file cannot be written or is not to be one of HTML.
pub fn run(args: &ReportArgs) -> Result<()> {
    let out = args.out.clone().unwrap_or_else(|| args.run.join(REPORT));
    let summary = Summary::read(&args.run)?.with_context(|| run_dir::no_result(&args.run))?;
    output::writable(&out, "html", "the report is HTML")?;
    ensure!(
        args.out.is_some() || !out.exists() || is_report(&out),
        "{0} is no report of this version of `flow report`: name another file with --out, or say --out {0} to replace it",
        out.display()
    );
    let html = html::render(&args.run, &summary, &args.beside)?;
    write_atomic(&out, html.as_bytes())?;
    output::line(out.display())
}
