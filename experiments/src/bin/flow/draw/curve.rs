//! The learning curves of a run, or of several in one picture.

use super::plots::{Curves, Points, Series};
use anyhow::{Context, Result, ensure};
use experiments::data::file_name;
use experiments::run_dir::{self, CURVE};
use experiments::summary::Summary;
use flows::storage::write_atomic;
use plotters::style::{Color, RGBColor};
use std::path::{Path, PathBuf};

const TRAIN: &str = "train_bits_per_dim";
const VALIDATION: &str = "validation_bits_per_dim";

/// Draws curve.png from the run's log.
///
/// # Errors
/// When the log is damaged or the picture cannot be written.
pub fn draw(summary: &Summary, out: &Path) -> Result<()> {
    let log = run_dir::read_metrics(out)?.unwrap_or_default();
    let train = run_dir::column(&log, TRAIN);
    let validation = run_dir::column(&log, VALIDATION);
    if train.is_empty() && validation.is_empty() {
        tracing::warn!("the run is too short for a curve");
        return Ok(());
    }
    let paper = summary.beside.paper.as_ref().map(|paper| paper.bits_per_dim);
    let mut marks: Vec<_> = paper.map(|bits| (format!("paper, {bits}"), bits)).into_iter().collect();
    match (summary.beside.entropy_lower, summary.beside.entropy_upper) {
        (Some(lower), Some(upper)) if upper > lower => {
            marks.push((format!("entropy at most {upper:.3}"), upper));
            marks.push((format!("entropy at least {lower:.3}"), lower));
        }
        (Some(entropy), _) => marks.push((format!("entropy {entropy:.3}"), entropy)),
        _ => {}
    }
    let line = |name: &str, points, style| Series { name: name.to_owned(), points, style };
    // The batch's own loss is noisy: a pale line, with the validation on top.
    let series = vec![
        line("train", train, COLOURS[0].mix(0.7).stroke_width(1)),
        line("validation", validation, RGBColor(230, 110, 10).stroke_width(2)),
    ];
    let curves = Curves { title: &summary.recipe, over: "updates", unit: "bits/dim", series, marks };
    let path = out.join(CURVE);
    Ok(write_atomic(&path, &curves.png().with_context(|| format!("cannot draw {}", path.display()))?)?)
}

/// What the curves of several runs are drawn over.
#[derive(Clone, Copy, Debug, PartialEq, Eq, clap::ValueEnum)]
pub enum Over {
    /// Updates made.
    Updates,
    /// Training images seen.
    Images,
    /// Hours of training, validation included.
    Hours,
}

impl Over {
    /// The name of the axis, the column of the log, and how many of its units are one of the axis.
    const fn axis(self) -> (&'static str, &'static str, f64) {
        match self {
            Self::Updates => ("updates", "update", 1.),
            Self::Images => ("images seen", "images_seen", 1.),
            Self::Hours => ("hours", "seconds", 3600.),
        }
    }
}

/// One colour a run.
const COLOURS: [RGBColor; 10] = [
    RGBColor(31, 119, 180),
    RGBColor(230, 110, 10),
    RGBColor(44, 160, 44),
    RGBColor(200, 40, 40),
    RGBColor(148, 103, 189),
    RGBColor(140, 86, 75),
    RGBColor(220, 110, 190),
    RGBColor(110, 110, 110),
    RGBColor(170, 170, 30),
    RGBColor(20, 170, 190),
];

/// The validation curves of several runs in one picture (PNG). Where a run has no validation, all of them are drawn by their
/// training loss: the two are not compared with each other.
///
/// # Errors
/// When there are more runs than colours, a log is damaged, or one has no point.
pub fn compare(runs: &[PathBuf], over: Over) -> Result<Vec<u8>> {
    ensure!(
        runs.len() <= COLOURS.len(),
        "{} curves in one picture cannot be told apart: name {} runs at most",
        runs.len(),
        COLOURS.len()
    );
    let (name, column, unit) = over.axis();
    let logs = runs.iter().map(|run| {
        let log = run_dir::read_metrics(run)?.unwrap_or_default();
        let points = [VALIDATION, TRAIN].iter().any(|key| !run_dir::column(&log, key).is_empty());
        ensure!(points, "{} has no log, or one without a point to draw: leave it out", run.display());
        Ok(log)
    });
    let logs = logs.collect::<Result<Vec<_>>>()?;
    let validated = logs.iter().all(|log| !run_dir::column(log, VALIDATION).is_empty());
    let (key, title) = if validated { (VALIDATION, "validation") } else { (TRAIN, "train") };
    let mut series = Vec::new();
    for ((run, log), colour) in runs.iter().zip(&logs).zip(COLOURS) {
        let points = run_dir::column_over(log, column, key);
        let points: Points = points.into_iter().map(|(x, bits)| (x / unit, bits)).collect();
        ensure!(
            !points.is_empty(),
            "{} has no training loss in its log, and not all others a validation: leave one kind out",
            run.display()
        );
        let name = file_name(&run.canonicalize().unwrap_or_else(|_| run.clone()));
        series.push(Series { name, points, style: colour.stroke_width(2) });
    }
    Curves { title, over: name, unit: "bits/dim", series, marks: Vec::new() }.png()
}
