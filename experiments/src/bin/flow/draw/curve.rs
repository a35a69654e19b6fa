//! The learning curves of a run as a picture.

use super::plots;
use anyhow::Result;
use experiments::run_dir::{self, CURVE};
use experiments::summary::Summary;
use std::path::Path;

/// Draws curve.png from the run's log.
///
/// # Errors
/// When the log is damaged or the picture cannot be written.
pub fn draw(summary: &Summary, out: &Path) -> Result<()> {
    let log = run_dir::read_metrics(out)?.unwrap_or_default();
    let train = run_dir::column(&log, "train_bits_per_dim");
    let validation = run_dir::column(&log, "validation_bits_per_dim");
    if train.is_empty() && validation.is_empty() {
        tracing::warn!("the run is too short for a curve");
        return Ok(());
    }
    let paper = summary.beside.paper.as_ref().map(|paper| paper.bits_per_dim);
    let mut lines: Vec<_> = paper.map(|bits| (format!("paper, {bits}"), bits)).into_iter().collect();
    match (summary.beside.entropy_lower, summary.beside.entropy_upper) {
        (Some(lower), Some(upper)) if upper > lower => {
            lines.push((format!("entropy at most {upper:.3}"), upper));
            lines.push((format!("entropy at least {lower:.3}"), lower));
        }
        (Some(entropy), _) => lines.push((format!("entropy {entropy:.3}"), entropy)),
        _ => {}
    }
    plots::curve(&out.join(CURVE), &summary.recipe, "bits/dim", &train, &validation, &lines)
}
