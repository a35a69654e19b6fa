//! `layers`: one image after each layer, and what each layer adds to its log-likelihood.

use super::pictures::Shown;
use crate::draw::plots::{Area, FINE};
use crate::draw::sheet::{Cell, Sheet};
use crate::session::{Picked, Session, brief, doubles, host, pooled};
use anyhow::{Result, bail, ensure};
use candle_core::{DType, Tensor};
use clap::Args;
use flows::Ctx;
use flows::latents::{self, LayerStats, TraceEntry};
use plotters::prelude::*;
use serde_json::json;
use std::f64::consts::LN_2;

/// States in the picture, at most, the image among them.
const STATES: usize = 24;
/// States in a row.
const COLUMNS: usize = 8;

/// `layers`.
#[derive(Args)]
pub struct LayersArgs {
    #[command(flatten)]
    shown: Shown,
}

/// The layers of preprocessing, whose log-det (8 bits for 8-bit images) would dwarf all others in a picture.
const PREPROCESSING: [&str; 5] = ["dequantize", "rescale", "logit", "flatten", "whiten"];

/// Which steps are drawn: at most so many of `all`, evenly spread, the last among them.
fn spread(all: &[usize], most: usize) -> Vec<usize> {
    let (shown, last) = (most.min(all.len()), all.len() - 1);
    (0..shown).map(|i| all[if shown < 2 { last } else { i * last / (shown - 1) }]).collect()
}

/// Values as grey bytes: three standard deviations each way are black and white.
fn greys(values: &[f32]) -> Vec<u8> {
    let n = values.len() as f32;
    let mean = values.iter().sum::<f32>() / n;
    let variance = values.iter().map(|x| (x - mean).powi(2)).sum::<f32>() / n;
    let sd = variance.sqrt().max(f32::MIN_POSITIVE);
    values.iter().map(|x| ((x - mean) / sd * 42.5 + 127.5).clamp(0., 255.) as u8).collect()
}

/// Follows one image through the chain.
///
/// # Errors
/// When it is more than one image, or not the model's.
pub fn run(args: &LayersArgs) -> Result<()> {
    let (s, shape) = Session::sheet(&args.shown.grid, "layers")?;
    let given = args.shown.images.images.len();
    ensure!(
        given <= 1,
        "one image goes through the layers, {given} were given: name one, or none for the first of the data"
    );
    let picked = s.images(&args.shown.images, 1)?;
    pooled(|| {
        let steps = latents::trace(&s.model, &picked.x, picked.given.context())?;
        let per_dim = |nats: f64| -nats / (s.model.dims() as f64 * LN_2);
        let mut sum = 0.;
        let ctx = Ctx::eval().with_context(picked.given.context());
        let (mut states, mut log_dets, mut ended) = (vec![], vec![], vec![]);
        for step in &steps {
            let state = step.layout(&shape)?;
            let log_det = doubles(&step.log_det)?[0];
            sum += log_det;
            log_dets.push(log_det);
            ended.push(per_dim(doubles(&s.model.prior().log_prob(&state.flatten_from(1)?, ctx)?)?[0] + sum));
            states.push(state);
        }
        let names: Vec<&str> = steps.iter().map(|step| step.path.as_str()).collect();
        if let Some(bad) = ended.iter().position(|b| !b.is_finite()) {
            bail!(
                "layer `{}` makes values of this image that are not finite: look at the weights with `flow doctor`",
                names[bad]
            );
        }
        let first = names.iter().position(|name| !PREPROCESSING.contains(name)).unwrap_or(0);
        let sheet = sheet(&s, args, &picked, &steps, &states)?;
        let shares: Vec<f64> = log_dets.iter().map(|l| per_dim(*l)).collect();
        sheet.write_over(s.draft.drawn(), 330, |area| {
            let (left, right) = area.split_horizontally(area.dim_in_pixel().0 / 2);
            chart(&left, "bits/dim if the flow ended after this layer", &ended, first, false)?;
            chart(&right, "bits/dim that this layer's log-det adds", &shares, first, true)
        })?;
        let figures = json!({
            "image": picked.names[0], "layers": names, "log_det": log_dets, "bits_per_dim_if_ended": ended,
            "bits_per_dim": ended.last(),
        });
        let (n, before) = (steps.len(), first.saturating_sub(1));
        let (bits, name, last) = (brief(ended[before]), names[before], ended[n - 1]);
        let line = format!("{n} layers: {bits} bits/dim after `{name}`, {last:.4} after the last");
        let tensors = vec![
            ("states", Tensor::cat(&states, 0)?.to_dtype(DType::F32)?),
            ("log_det", Tensor::new(log_dets.as_slice(), &s.device)?),
            ("bits_per_dim_if_ended", Tensor::new(ended.as_slice(), &s.device)?),
        ];
        s.finish(figures, tensors, &[line])
    })
}

/// The image and its values after layers.
fn sheet(
    s: &Session,
    args: &LayersArgs,
    picked: &Picked,
    steps: &[TraceEntry],
    states: &[Tensor],
) -> Result<Sheet> {
    // Only layers that scale by the image (couplings, learned priors) and the last layer are drawn.
    let told = |i: &usize| {
        let step = &steps[*i];
        matches!(step.stats, LayerStats::Elements(_))
            || step.path.starts_with("coupling")
            || *i + 1 == steps.len()
    };
    let candidates: Vec<usize> = (0..steps.len()).filter(told).collect();
    let shown = spread(&candidates, STATES - 1);
    let mut cells = s.captioned(&picked.x, ["image".to_owned()])?;
    for &i in &shown {
        let name = steps[i].path.trim_end_matches(".coupling").replace('.', " ");
        cells.push(Cell::new(greys(&host(&states[i])?), name));
    }
    let mut notes = vec![
        "values after a layer, in the order of an image; black to white is three standard deviations each way"
            .to_owned(),
    ];
    notes.extend((shown.len() < candidates.len()).then(|| "not every step is drawn".to_owned()));
    let mut rows = vec![];
    while !cells.is_empty() {
        rows.push(cells.drain(..COLUMNS.min(cells.len())).collect());
    }
    let title = format!("Image {} through the layers", picked.names[0]);
    Ok(Sheet { notes, cells: rows, ..s.blank(&args.shown.grid, &title)? })
}

/// Values by layer from layer `first` on, as bars from zero or as a line.
fn chart(area: &Area, title: &str, values: &[f64], first: usize, bars: bool) -> Result<()> {
    let shown = &values[first..];
    let zero = if bars { 0. } else { shown[0] };
    let (low, high) = shown.iter().fold((zero, zero), |(a, b), &v| (a.min(v), b.max(v)));
    let margin = 0.06 * (high - low).max(1e-6);
    let end = values.len() as f64;
    let mut chart = ChartBuilder::on(area)
        .caption(title, ("sans-serif", 17 * FINE))
        .margin(12 * FINE)
        .x_label_area_size(42 * FINE)
        .y_label_area_size(62 * FINE)
        .build_cartesian_2d(first as f64..end, low - margin..high + margin)?;
    chart
        .configure_mesh()
        .light_line_style(WHITE)
        .bold_line_style(BLACK.mix(0.1).stroke_width(FINE))
        .x_desc("layer")
        .x_label_formatter(&|x| format!("{x:.0}"))
        .y_label_formatter(&|y| brief(if y.abs() < 1e-9 * (high - low) { 0. } else { *y }))
        .label_style(("sans-serif", 14 * FINE))
        .axis_desc_style(("sans-serif", 15 * FINE))
        .draw()?;
    let blue = RGBColor(31, 90, 150);
    if bars {
        chart.draw_series(shown.iter().enumerate().map(|(i, v)| {
            let x = (first + i) as f64;
            Rectangle::new([(x + 0.1, 0.), (x + 0.9, *v)], blue.filled())
        }))?;
        chart.draw_series(LineSeries::new([(first as f64, 0.), (end, 0.)], BLACK.stroke_width(FINE)))?;
    } else {
        let points = shown.iter().enumerate().map(|(i, v)| ((first + i) as f64 + 0.5, *v));
        chart.draw_series(LineSeries::new(points, blue.stroke_width(2 * FINE)))?;
    }
    Ok(())
}
