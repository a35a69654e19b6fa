//! The table of runs against the papers.

use crate::evaluate::Evaluation;
use crate::summary::{Beside, SUMMARY, Summary};
use anyhow::{Context, Result, ensure};
use std::path::{Path, PathBuf};

/// Folders that hold runs, where no run is named.
pub const FOLDERS: [&str; 3] = ["runs", "weights", "experiments/results"];

/// How to print.
#[derive(Clone, Copy, Debug, PartialEq, Eq, clap::ValueEnum)]
pub enum Format {
    /// A table for a README.
    Markdown,
    /// Comma-separated values.
    Csv,
    /// A list of the objects that `--json` prints.
    Json,
}

/// A run's folder and its summary.
pub struct Run {
    /// The folder.
    pub dir: PathBuf,
    /// The summary.
    pub summary: Summary,
}

/// Finds runs: a folder with a summary, or a folder of such folders. Without names, [`FOLDERS`] that exist.
///
/// # Errors
/// When a folder that was named has no run, or a summary cannot be read.
pub fn find(named: &[PathBuf]) -> Result<Vec<Run>> {
    let mut runs = Vec::new();
    let folders: Vec<PathBuf> = match named {
        [] => FOLDERS.iter().map(PathBuf::from).filter(|f| f.is_dir()).collect(),
        named => named.to_vec(),
    };
    for folder in &folders {
        let before = runs.len();
        let mut dirs = vec![folder.clone()];
        if !folder.join(SUMMARY).exists() {
            let entries = std::fs::read_dir(folder).with_context(|| {
                format!("cannot list {}: name a run's folder or one that holds them", folder.display())
            })?;
            dirs = entries.map(|e| Ok(e?.path())).collect::<Result<_>>()?;
            dirs.retain(|dir| dir.is_dir());
            dirs.sort();
        }
        for dir in dirs {
            if let Some(summary) = Summary::read(&dir)? {
                runs.push(Run { dir, summary });
            }
        }
        ensure!(
            named.is_empty() || runs.len() > before,
            "{} holds no finished run: `flow reproduce` leaves a {SUMMARY} in its folder",
            folder.display()
        );
    }
    runs.sort_by(|a, b| a.summary.recipe.cmp(&b.summary.recipe).then_with(|| a.dir.cmp(&b.dir)));
    Ok(runs)
}

/// The columns, and the values of one run.
pub const COLUMNS: [&str; 18] = [
    "recipe",
    "run",
    "data",
    "images",
    "bits/dim",
    "std err",
    "log-likelihood",
    "paper",
    "entropy",
    "Gaussian",
    "PNG",
    "WebP",
    "updates",
    "images seen",
    "images/s",
    "parameters",
    "seed",
    "commit",
];

/// The values of one run, of the folder `dir`, in the order of [`COLUMNS`]; what does not apply is empty. A recipe that is
/// not the built-in one of its name says what was changed.
#[must_use]
pub fn row(summary: &Summary, dir: &Path) -> Vec<String> {
    let recipe = match summary.changed.as_deref() {
        None | Some([]) => summary.recipe.clone(),
        Some(changed) => format!("{} ({})", summary.recipe, changed.join(", ")),
    };
    // `.` and the like have a name only once they are resolved.
    let folder = dir.canonicalize().unwrap_or_else(|_| dir.to_owned());
    let folder = folder.file_name().map_or_else(String::new, |name| name.to_string_lossy().into_owned());
    let Summary { training, beside, .. } = summary;
    let Beside { paper, codecs, gaussian, .. } = beside;
    let shown =
        summary.test.as_ref().map(|s| ("test", s)).or(summary.validation.as_ref().map(|s| ("validation", s)));
    let number = |x: Option<f64>, digits: usize| x.map_or_else(String::new, |x| format!("{x:.digits$}"));
    let likelihood = paper.as_ref().and_then(|p| p.log_likelihood);
    let score = |f: fn(&Evaluation) -> f64| shown.map(|(_, s)| f(s));
    let entropy = match (beside.entropy_lower, beside.entropy_upper) {
        (Some(lower), Some(upper)) if upper - lower > 5e-4 => format!("{lower:.3} to {upper:.3}"),
        (lower, _) => number(lower, 3),
    };
    vec![
        recipe,
        folder,
        format!("{} {}", summary.data, shown.map_or("", |(split, _)| split)).trim_end().to_owned(),
        shown.map_or_else(String::new, |(_, s)| s.images.to_string()),
        number(score(|s| s.bits_per_dim), 4),
        number(score(|s| s.std_err), 4),
        // Only NICE reports nats: elsewhere they would be one more number without a partner.
        if likelihood.is_some() { number(score(|s| s.log_likelihood), 2) } else { String::new() },
        match (paper, likelihood) {
            (Some(p), Some(ll)) => format!("{} ({ll:.2} nats)", p.bits_per_dim),
            (Some(p), None) => p.bits_per_dim.to_string(),
            (None, _) => String::new(),
        },
        entropy,
        number(gaussian.as_ref().map(|g| g.bits_per_dim), 3),
        number(codecs.as_ref().map(|c| c.png_bits_per_dim), 3),
        number(codecs.as_ref().map(|c| c.webp_bits_per_dim), 3),
        training.updates.to_string(),
        training.images_seen.to_string(),
        number(Some(training.images_per_second), 1),
        summary.parameters.to_string(),
        summary.seed.to_string(),
        match summary.commit.split_once('-') {
            Some((commit, mark)) => format!("{:.9}-{mark}", commit),
            None => format!("{:.9}", summary.commit),
        },
    ]
}

/// The table of runs.
///
/// # Errors
/// When it cannot be written as CSV or JSON.
pub fn render(runs: &[Run], format: Format) -> Result<String> {
    match format {
        Format::Markdown => Ok(markdown(&runs.iter().map(|r| row(&r.summary, &r.dir)).collect::<Vec<_>>())),
        Format::Csv => {
            let mut csv = csv::Writer::from_writer(Vec::new());
            csv.write_record(COLUMNS)?;
            for run in runs {
                csv.write_record(row(&run.summary, &run.dir))?;
            }
            Ok(String::from_utf8(csv.into_inner()?)?)
        }
        Format::Json => {
            let all: Vec<_> = runs.iter().map(|r| r.summary.json(&r.dir)).collect();
            Ok(serde_json::to_string(&all)? + "\n")
        }
    }
}

/// Markdown with aligned columns, for eyes in a terminal too; columns that no run fills are left out, and the standard
/// error goes beside its mean.
#[must_use]
pub fn markdown(rows: &[Vec<String>]) -> String {
    let mut columns: Vec<Vec<String>> = Vec::new();
    for (i, title) in COLUMNS.iter().enumerate() {
        let cells = rows.iter().map(|row| match (*title, row[i].as_str(), row.get(i + 1)) {
            ("bits/dim", mean, Some(error)) if !mean.is_empty() => format!("{mean} ± {error}"),
            (_, cell, _) => cell.to_owned(),
        });
        let cells: Vec<String> = cells.collect();
        if *title != "std err" && (rows.is_empty() || cells.iter().any(|c| !c.is_empty())) {
            columns.push(std::iter::once((*title).to_owned()).chain(cells).collect());
        }
    }
    let widths: Vec<usize> =
        columns.iter().map(|c| c.iter().map(|cell| cell.chars().count()).max().unwrap_or(0).max(3)).collect();
    let mut text = String::new();
    for line in 0..=rows.len() {
        for (column, &width) in columns.iter().zip(&widths) {
            text.push_str(&format!("| {:width$} ", column[line]));
        }
        text.push_str("|\n");
        if line == 0 {
            // Numbers to the right, names to the left.
            for (i, &width) in widths.iter().enumerate() {
                let left = matches!(columns[i][0].as_str(), "recipe" | "run" | "data" | "commit");
                text.push_str(&format!("|{}{}", "-".repeat(width + 1), if left { "-" } else { ":" }));
            }
            text.push_str("|\n");
        }
    }
    text
}
