//! The table of runs against the papers, and of runs side by side.

use anyhow::{Context, Result, ensure};
use experiments::data::file_name;
use experiments::evaluate::Evaluation;
use experiments::run_dir::{self, RECIPE, SUMMARY};
use experiments::summary::{Baselines, Summary};
use std::collections::btree_map::Entry;
use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};

/// Folders that hold runs, where no run is named.
pub const FOLDERS: [&str; 3] = ["runs", "weights", "experiments/results"];

/// How to print.
#[derive(Clone, Copy, Debug, PartialEq, Eq, clap::ValueEnum)]
pub enum Format {
    /// A table of at most seven columns, for a README; of more than three changed settings it names two.
    Markdown,
    /// The same with every column and every changed setting.
    Wide,
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
/// When there is no run, or none in a folder that was named, or a summary cannot be read.
pub fn find(named: &[PathBuf]) -> Result<Vec<Run>> {
    let mut runs: Vec<Run> = Vec::new();
    let mut seen = BTreeSet::new();
    let folders: Vec<PathBuf> = match named {
        [] => FOLDERS.iter().map(PathBuf::from).filter(|f| f.is_dir()).collect(),
        named => named.to_vec(),
    };
    for folder in &folders {
        let mut holds = false;
        let mut dirs = vec![folder.clone()];
        if !folder.join(SUMMARY).exists() {
            let entries = std::fs::read_dir(folder).with_context(|| {
                format!("cannot list {}: name a run's folder or one that holds them", folder.display())
            })?;
            dirs = entries.map(|e| Ok(e?.path())).collect::<Result<_>>()?;
            dirs.retain(|dir| dir.is_dir());
            dirs.sort();
        }
        let many = dirs.len() > 1;
        for dir in dirs {
            let summary = Summary::read(&dir).map_err(|error| match many {
                true => {
                    error.context("this run cannot be shown; to leave it out, name the folders of the others")
                }
                false => error,
            });
            if let Some(summary) = summary? {
                holds = true;
                // A folder that is named twice is one run.
                if seen.insert(dir.canonicalize().unwrap_or_else(|_| dir.clone())) {
                    runs.push(Run { dir, summary });
                }
            } else if dir.join(RECIPE).exists() {
                tracing::warn!("left out: {}", run_dir::no_result(&dir));
            }
        }
        ensure!(named.is_empty() || holds, run_dir::no_result(folder));
    }
    ensure!(!runs.is_empty(), "there are no runs in {}: name their folders", FOLDERS.join(", "));
    runs.sort_by(|a, b| a.summary.recipe.cmp(&b.summary.recipe).then_with(|| a.dir.cmp(&b.dir)));
    Ok(runs)
}

/// The key of runs that compete for one row: the data, the kind of model (NICE, RealNVP, Glow, ..), and the settings that say which
/// density it learns. A model given as a list of layers has no kind, so its recipe's name is in the key.
fn benchmark(run: &Run) -> Result<Vec<String>> {
    const DENSITY: [&str; 7] = ["model", "shape", "bits", "context", "classes", "prior.classes", "law"];
    let Summary { data, data_revision, recipe, .. } = &run.summary;
    let settings = run_dir::resolve(&run.dir)?.map(|r| r.settings()).transpose()?.unwrap_or_default();
    let model = settings.iter().filter_map(|(key, value, _)| Some((key.strip_prefix("model.")?, value)));
    let counts = |key: &str| {
        DENSITY
            .iter()
            .any(|part| key.strip_prefix(part).is_some_and(|rest| rest.is_empty() || rest.starts_with('.')))
    };
    let kind = model.filter(|(key, _)| counts(key)).map(|(key, value)| format!("{key}={value}"));
    let mut all: Vec<String> = [data, data_revision].into_iter().cloned().chain(kind).collect();
    if settings.is_empty() || all.iter().any(|set| set == "model=\"composed\"") {
        all.push(recipe.clone());
    }
    Ok(all)
}

/// Of the runs of each kind of model on each data set, the one with the lowest bits/dim on validation images: a test set chooses
/// nothing. A run without a validation is shown where no run has one.
///
/// # Errors
/// When a recipe cannot be read.
pub fn best(runs: Vec<Run>) -> Result<Vec<Run>> {
    let score = |run: &Run| run.summary.validation.as_ref().map_or(f64::INFINITY, |v| v.bits_per_dim);
    let mut best: BTreeMap<Vec<String>, (usize, Run)> = BTreeMap::new();
    for (place, run) in runs.into_iter().enumerate() {
        match best.entry(benchmark(&run)?) {
            Entry::Vacant(free) => _ = free.insert((place, run)),
            Entry::Occupied(mut rival) if score(&run) < score(&rival.get().1) => {
                _ = rival.insert((place, run))
            }
            Entry::Occupied(_) => {}
        }
    }
    let mut best: Vec<(usize, Run)> = best.into_values().collect();
    best.sort_by_key(|(place, _)| *place);
    Ok(best.into_iter().map(|(_, run)| run).collect())
}

/// The columns, and the values of one run.
pub const COLUMNS: [&str; 22] = [
    "recipe",
    "run",
    "data",
    "images",
    "bits/dim",
    "std err",
    "K",
    "log-likelihood",
    "paper",
    "entropy",
    "Gaussian",
    "10 Gaussians",
    "PNG",
    "WebP",
    "JPEG XL",
    "on disk",
    "updates",
    "images seen",
    "images/s",
    "parameters",
    "seed",
    "commit",
];

/// The columns of [`Format::Markdown`].
const SHORT: [&str; 7] = ["recipe", "run", "data", "bits/dim", "on disk", "paper", "JPEG XL"];

/// The recipe's name and, where it is not the built-in one of that name, what was changed, as [`with_changes`].
fn recipe(summary: &Summary, most: usize) -> String {
    with_changes(&summary.recipe, summary.changed.as_deref().unwrap_or_default(), most)
}

/// A name and changed settings in brackets: all of them, or of more than `most` the first `most - 1` and the number of the others.
fn with_changes(recipe: &str, changed: &[String], most: usize) -> String {
    let shown = if changed.len() > most { most - 1 } else { changed.len() };
    let more = (changed.len() > shown).then(|| format!("{} more", changed.len() - shown));
    let all: Vec<_> = changed[..shown].iter().cloned().chain(more).collect();
    if all.is_empty() { recipe.to_owned() } else { format!("{recipe} ({})", all.join(", ")) }
}

/// The values of one run, of the folder `dir`, in the order of [`COLUMNS`]; what does not apply is empty.
fn row(summary: &Summary, dir: &Path) -> Vec<String> {
    // `.` and the like have a name only once they are resolved.
    let folder = dir.canonicalize().unwrap_or_else(|_| dir.to_owned());
    let folder = folder.file_name().map_or_else(String::new, |name| name.to_string_lossy().into_owned());
    let Summary { beside, .. } = summary;
    let trained = summary.training.as_ref();
    let text = |n: Option<u64>| n.map_or_else(String::new, |n| n.to_string());
    let Baselines { paper, codecs, gaussian, mixture, .. } = beside;
    let shown = summary.score();
    let number = |x: Option<f64>, digits: usize| x.map_or_else(String::new, |x| format!("{x:.digits$}"));
    let likelihood = paper.as_ref().and_then(|p| p.log_likelihood);
    let score = |f: fn(&Evaluation) -> f64| shown.map(|(_, s)| f(s));
    let entropy = match (beside.entropy_lower, beside.entropy_upper) {
        (Some(lower), Some(upper)) if upper - lower > 5e-4 => format!("{lower:.3} to {upper:.3}"),
        (lower, _) => number(lower, 3),
    };
    vec![
        recipe(summary, usize::MAX),
        folder,
        format!("{} {}", summary.data, shown.map_or("", |(split, _)| split)).trim_end().to_owned(),
        shown.map_or_else(String::new, |(_, s)| s.images.to_string()),
        number(score(|s| s.bits_per_dim), 4),
        number(score(|s| s.std_err), 4),
        // Noise draws of the tighter bound.
        text(shown.map(|(_, s)| s.importance_samples as u64).filter(|k| *k > 1)),
        // Of images only NICE's paper reports nats, so other rows leave the column empty.
        match (likelihood, shown.and_then(|(_, s)| s.nats)) {
            (_, Some(nats)) => number(Some(-nats), 4),
            (Some(_), None) => number(score(|s| s.log_likelihood), 2),
            (None, None) => String::new(),
        },
        match (paper, likelihood) {
            (Some(p), Some(ll)) => format!("{} ({ll:.2} nats)", p.bits_per_dim),
            (Some(p), None) => p.bits_per_dim.to_string(),
            (None, _) => String::new(),
        },
        entropy,
        number(gaussian.as_ref().map(|g| g.bits_per_dim), 3),
        number(mixture.as_ref().map(|g| g.bits_per_dim), 3),
        number(codecs.as_ref().map(|c| c.png_bits_per_dim), 3),
        number(codecs.as_ref().map(|c| c.webp_bits_per_dim), 3),
        number(codecs.as_ref().and_then(|c| c.jxl_bits_per_dim), 3),
        number(summary.on_disk.as_ref().map(|d| d.bits_per_dim), 3),
        text(trained.map(|t| t.updates)),
        text(trained.map(|t| t.images_seen)),
        number(trained.map(|t| t.images_per_second), 1),
        text(summary.parameters.map(|n| n as u64)),
        text(summary.seed),
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
        Format::Markdown => {
            let runs: Vec<_> = runs.iter().map(|r| (&r.summary, r.dir.as_path())).collect();
            Ok(markdown(&runs))
        }
        Format::Wide => {
            let rows: Vec<_> = runs.iter().map(|r| row(&r.summary, &r.dir)).collect();
            Ok(with_columns(&rows, &COLUMNS))
        }
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

/// The most important columns of runs, each a summary and its folder, as Markdown. Where there is no paper's number, its column
/// holds the entropy; of many changed settings two are named.
#[must_use]
pub fn markdown(runs: &[(&Summary, &Path)]) -> String {
    let place = |title| COLUMNS.iter().position(|column| *column == title).expect("a column");
    let (name, paper, entropy) = (place("recipe"), place("paper"), place("entropy"));
    let short = |(summary, dir): &(&Summary, &Path)| {
        let mut row = row(summary, dir);
        row[name] = recipe(summary, 3);
        if row[paper].is_empty() && !row[entropy].is_empty() {
            row[paper] = format!("entropy {}", row[entropy]);
        }
        row
    };
    with_columns(&runs.iter().map(short).collect::<Vec<_>>(), &SHORT)
}

/// Markdown with these columns, aligned for a terminal; columns that no run fills are left out, and the standard error
/// and the number of noise draws stand beside their mean.
fn with_columns(rows: &[Vec<String>], shown: &[&str]) -> String {
    let mut columns: Vec<Vec<String>> = Vec::new();
    for (i, title) in COLUMNS.iter().enumerate().filter(|(_, title)| shown.contains(title)) {
        let cells = rows.iter().map(|row| match (*title, row[i].as_str(), row.get(i + 1), row.get(i + 2)) {
            ("bits/dim", mean, Some(error), Some(k)) if !mean.is_empty() => {
                let draws = if k.is_empty() { String::new() } else { format!(", K = {k}") };
                format!("{mean} ± {error}{draws}")
            }
            (_, cell, ..) => cell.to_owned(),
        });
        let cells: Vec<String> = cells.collect();
        if !["std err", "K"].contains(title) && cells.iter().any(|c| !c.is_empty()) {
            columns.push(std::iter::once((*title).to_owned()).chain(cells).collect());
        }
    }
    // Numbers to the right, names to the left.
    aligned(&columns, |title| matches!(title, "recipe" | "run" | "data" | "commit"))
}

/// Columns, each with its title on top, as Markdown.
pub fn aligned(columns: &[Vec<String>], left: impl Fn(&str) -> bool) -> String {
    // A folder's name may hold what ends a cell.
    let escape = |cell: &String| cell.replace('|', "\\|").replace('\n', " ");
    let columns: Vec<Vec<String>> = columns.iter().map(|c| c.iter().map(escape).collect()).collect();
    let widths: Vec<usize> =
        columns.iter().map(|c| c.iter().map(|cell| cell.chars().count()).max().unwrap_or(0).max(3)).collect();
    let mut text = String::new();
    for line in 0..columns.first().map_or(0, Vec::len) {
        for (column, &width) in columns.iter().zip(&widths) {
            text.push_str(&format!("| {:width$} ", column[line]));
        }
        text.push_str("|\n");
        if line == 0 {
            for (column, &width) in columns.iter().zip(&widths) {
                let end = if left(&column[0]) { "-" } else { ":" };
                text.push_str(&format!("|{}{end}", "-".repeat(width + 1)));
            }
            text.push_str("|\n");
        }
    }
    text
}

/// What runs are compared by, each a name and a value for every run: their figures, what each has more or less than the
/// first in bits/dim, and every setting in which they differ.
fn compared(runs: &[Run]) -> Result<Vec<(String, Vec<String>)>> {
    let rows: Vec<Vec<String>> = runs.iter().map(|r| row(&r.summary, &r.dir)).collect();
    let scores = |f: fn(&Summary) -> &Option<Evaluation>| {
        runs.iter().map(move |r| f(&r.summary).as_ref().map(|s| s.bits_per_dim)).collect::<Vec<_>>()
    };
    let shown = |scores: &[Option<f64>]| -> Vec<String> {
        scores.iter().map(|s| s.map_or_else(String::new, |s| format!("{s:.4}"))).collect()
    };
    let mut all: Vec<(String, Vec<String>)> = Vec::new();
    for (i, title) in COLUMNS.iter().enumerate().filter(|(_, title)| **title != "run") {
        all.push(((*title).to_owned(), rows.iter().map(|row| row[i].clone()).collect()));
        if *title == "std err" {
            // On other images a difference would say nothing.
            let (test, first) = (scores(|s| &s.test), &runs[0].summary);
            let alike =
                |r: &Run| r.summary.data == first.data && r.summary.data_revision == first.data_revision;
            let less = runs.iter().zip(&test).map(|(r, score)| match (score, test[0]) {
                (Some(score), Some(own)) if alike(r) => format!("{:+.4}", score - own),
                _ => String::new(),
            });
            all.push(("less the first's".to_owned(), less.collect()));
            all.push(("validation".to_owned(), shown(&scores(|s| &s.validation))));
            all.push(("train".to_owned(), shown(&scores(|s| &s.train))));
        }
    }
    let seconds = runs
        .iter()
        .map(|r| r.summary.training.as_ref().map_or_else(String::new, |t| format!("{:.0}", t.wall_seconds)))
        .collect();
    all.push(("seconds".to_owned(), seconds));
    all.push(("device".to_owned(), runs.iter().map(|r| r.summary.device.clone()).collect()));
    all.push((
        "processor".to_owned(),
        runs.iter().map(|r| r.summary.machine.as_ref().map_or_else(String::new, |m| m.cpu.clone())).collect(),
    ));
    all.retain(|(_, values)| values.iter().any(|v| !v.is_empty()));

    let mut settings: BTreeMap<String, Vec<String>> = BTreeMap::new();
    for (i, run) in runs.iter().enumerate() {
        let Some(resolved) = run_dir::resolve(&run.dir)? else { continue };
        for (key, value, _) in resolved.settings()? {
            settings.entry(key).or_insert_with(|| vec![String::new(); runs.len()])[i] = value;
        }
    }
    let differ = |values: &[String]| values.iter().any(|v| *v != values[0]);
    // The recipe's name is a figure already, and what is written for people is no setting.
    settings.retain(|key, values| !matches!(key.as_str(), "name" | "about") && differ(values));
    all.extend(settings);
    Ok(all)
}

/// Runs side by side, each a column.
///
/// # Errors
/// When a recipe cannot be read, or it cannot be written as CSV or JSON.
pub fn side_by_side(runs: &[Run], format: Format) -> Result<String> {
    let rows = compared(runs)?;
    let name = |run: &Run| run.dir.canonicalize().map_or_else(|_| file_name(&run.dir), |dir| file_name(&dir));
    let names: Vec<String> = runs.iter().map(name).collect();
    match format {
        Format::Markdown | Format::Wide => {
            let titles = std::iter::once(String::new()).chain(rows.iter().map(|r| r.0.clone())).collect();
            let column = |(i, name): (usize, &String)| -> Vec<String> {
                std::iter::once(name.clone()).chain(rows.iter().map(|r| r.1[i].clone())).collect()
            };
            let columns: Vec<Vec<String>> =
                std::iter::once(titles).chain(names.iter().enumerate().map(column)).collect();
            Ok(aligned(&columns, str::is_empty))
        }
        Format::Csv => {
            let mut csv = csv::Writer::from_writer(Vec::new());
            csv.write_record(std::iter::once(&String::new()).chain(&names))?;
            for (title, values) in &rows {
                csv.write_record(std::iter::once(title).chain(values))?;
            }
            Ok(String::from_utf8(csv.into_inner()?)?)
        }
        Format::Json => {
            let all: Vec<_> = runs
                .iter()
                .enumerate()
                .map(|(i, run)| {
                    let mut object = run.summary.json(&run.dir);
                    object["compared"] =
                        rows.iter().map(|(title, values)| (title.clone(), values[i].clone())).collect();
                    object
                })
                .collect();
            Ok(serde_json::to_string(&all)? + "\n")
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn many_changed_settings_are_counted() {
        let set: Vec<String> = ["a=1", "b=2", "c=3", "d=4"].map(str::to_owned).into();
        let shown = [0, 1, 3, 4].map(|n| with_changes("moons", &set[..n], 3));
        assert_eq!(shown, ["moons", "moons (a=1)", "moons (a=1, b=2, c=3)", "moons (a=1, b=2, 2 more)"]);
    }

    #[test]
    fn what_would_end_a_cell_is_escaped() {
        let columns = [vec!["run".to_owned(), "a|b\nc".to_owned()]];
        assert!(aligned(&columns, |_| true).ends_with("| a\\|b c |\n"));
    }
}
