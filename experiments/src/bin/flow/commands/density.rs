//! `density`: a flow of the plane beside the density that its data are drawn from, and what it does to a grid.

use crate::draw::plots::{self, FINE, Window};
use crate::session::{Base, Out, Session, Which, brief, doubles, mean, pooled};
use anyhow::{Result, bail, ensure};
use candle_core::{Device, Tensor};
use clap::Args;
use experiments::data::plane::Plane;
use experiments::data::{Split, Values};
use plotters::prelude::*;
use serde_json::json;

/// Points on each side of the raster.
pub const RASTER: usize = 200;
/// Test points that the divergence is measured on, at most.
pub const POINTS: usize = 10_000;
/// The grid's lines are at these many steps on each side of zero.
pub const STEPS: i32 = 6;
/// Lines along each axis.
pub const LINES: usize = 2 * STEPS as usize + 1;
/// From one line of the grid to the next.
const STEP: f64 = 0.5;
/// Points along a line of the grid.
pub const ALONG: usize = 241;

/// `density`.
#[derive(Args)]
pub struct DensityArgs {
    #[command(flatten)]
    base: Base,
    #[command(flatten)]
    from: Which,
    #[command(flatten)]
    out: Out,
}

/// Draws the learned density, the true one (or the data), and the grid's warp.
///
/// # Errors
/// When the model's data are not of two dimensions.
pub fn run(args: &DensityArgs) -> Result<()> {
    let s = Session::open(&args.base, &args.out, "density")?;
    s.without_features()?;
    let shape = s.model.config().shape();
    ensure!(
        shape == [2],
        "the model of {} takes examples of shape {shape:?}, and `flow density` draws densities of the plane: choose a model of \
         two dimensions, such as `flow reproduce moons` trains",
        args.base.weights
    );
    let data = s.part(&args.from)?;
    let split = data.split.take(POINTS);
    points(&s, &split, &data.name)?;
    pooled(|| compare(&s, &data.name, &split))
}

/// A learned density beside the true one.
pub struct Densities {
    /// Where the plane is looked at.
    pub window: Window,
    /// ln of the learned density on the window's raster of [`RASTER`] points a side.
    pub learned: Vec<f64>,
    /// That of the true one, where it is known.
    pub real: Option<Vec<f64>>,
    /// Minus the mean of ln p over the points, in nats.
    pub nats: f64,
    /// The divergence of the learned density from the true one with its standard error.
    pub divergence: Option<(f64, f64)>,
    /// The model's mass in the window.
    pub mass: f64,
}

/// Points of the plane as a tensor of the model's type.
pub fn at(s: &Session, points: &[[f64; 2]]) -> Result<Tensor> {
    let t = Tensor::from_vec(points.as_flattened().to_vec(), (points.len(), 2), &Device::Cpu)?;
    Ok(t.to_dtype(s.model.params().dtype())?.to_device(&s.device)?)
}

/// The points of a split of the plane, those that are measured.
pub fn points<'a>(s: &Session, split: &'a Split, name: &str) -> Result<&'a [[f32; 2]]> {
    s.fits(split, name)?;
    let Values::Reals(values) = &split.values else {
        bail!("`{name}` holds bytes, not points of the plane: choose other data")
    };
    Ok(values.as_chunks().0)
}

/// Measures how far the learned density is from the true one of the data set `name`, on the points of a split.
pub fn measure(s: &Session, name: &str, split: &Split) -> Result<Densities> {
    let (truth, points) = (Plane::from_name(name), points(s, split, name)?);
    let window = Window::about(points);
    let raster = window.raster(RASTER);
    let learned = doubles(&s.model.log_prob(&at(s, &raster)?, s.labels(raster.len())?.as_ref())?)?;
    let area = (2. * window.half / RASTER as f64).powi(2);
    let mass = learned.iter().map(|l| l.exp()).sum::<f64>() * area;
    let real = truth.map(|plane| raster.iter().map(|p| plane.log_density(*p)).collect::<Vec<_>>());
    let each = doubles(&s.over(split, |x, cond| Ok(s.model.log_prob(x, cond)?))?)?;
    // KL(p || q) is the mean of ln p - ln q over points of p.
    let divergence = truth.map(|plane| {
        let ratio = points.iter().zip(&each).map(|(p, q)| plane.log_density(p.map(f64::from)) - q);
        mean_and_error(&ratio.collect::<Vec<_>>())
    });
    Ok(Densities { window, learned, real, nats: -mean(&each), divergence, mass })
}

/// The grid of latents (2 [`LINES`] lines of [`ALONG`] points) and where the model decodes it to.
pub fn warped(s: &Session) -> Result<(Tensor, Tensor)> {
    let grid = grid();
    let z = at(s, &grid)?;
    let x = s.model.decode(&z, s.labels(grid.len())?.as_ref())?;
    Ok((z, x))
}

/// Draws the learned density, the true one and the grid, and writes the numbers.
fn compare(s: &Session, name: &str, split: &Split) -> Result<()> {
    let Densities { window, learned, real, nats: loss, divergence, mass } = measure(s, name, split)?;
    let raster = window.raster(RASTER);
    let (z, x) = warped(s)?;
    draw(s, &window, real.as_deref(), points(s, split, name)?, &learned, doubles(&x)?.as_chunks().0)?;

    let kl = divergence.map_or_else(String::new, |(kl, error)| {
        format!(", {kl:.4} ± {error:.4} from the truth (KL divergence over {} points)", split.len())
    });
    let line = format!("{name}: {loss:.4} nats a point{kl}; {mass:.4} of the model's mass is in the picture");
    let figures = json!({
        "data": name, "points": split.len(), "nats": loss, "kl": divergence.map(|d| d.0),
        "kl_std_err": divergence.map(|d| d.1), "mass": mass,
    });
    let side = |v: Vec<f64>| Tensor::from_vec(v, (RASTER, RASTER), &Device::Cpu);
    let lines = (2, LINES, ALONG, 2);
    let mut tensors = vec![
        ("raster", at(s, &raster)?.reshape((RASTER, RASTER, 2))?),
        ("log_prob", side(learned)?),
        ("grid", z.reshape(lines)?),
        ("warped", x.reshape(lines)?),
    ];
    if let Some(real) = real {
        tensors.push(("true_log_prob", side(real)?));
    }
    s.finish(figures, tensors, &[line])
}

/// The mean of some values and its standard error.
fn mean_and_error(values: &[f64]) -> (f64, f64) {
    let m = mean(values);
    let squares: f64 = values.iter().map(|v| (v - m).powi(2)).sum();
    (m, (squares / (values.len().max(2) - 1) as f64 / values.len() as f64).sqrt())
}

/// The points of the grid of latents: the lines along the first axis, then those along the second.
fn grid() -> Vec<[f64; 2]> {
    let mut grid = Vec::new();
    for line in -STEPS..=STEPS {
        let fixed = STEP * f64::from(line);
        let along = |i: usize| STEP * f64::from(STEPS) * (2. * i as f64 / (ALONG - 1) as f64 - 1.);
        grid.extend((0..ALONG).map(|i| [along(i), fixed]));
    }
    let across: Vec<_> = grid.iter().map(|[along, fixed]| [*fixed, *along]).collect();
    grid.extend(across);
    grid
}

/// The points of a line that are at least `gap` apart, and its last: pieces below a pixel would be drawn as dust.
fn spread(line: &[[f64; 2]], gap: f64) -> Vec<(f64, f64)> {
    let mut kept: Vec<(f64, f64)> = Vec::new();
    for (i, &[x, y]) in line.iter().enumerate() {
        let far = kept.last().is_none_or(|k| (k.0 - x).hypot(k.1 - y) >= gap);
        if far || i + 1 == line.len() {
            kept.push((x, y));
        }
    }
    kept
}

/// Draws the three panels: the true density where it is known, else the points; the learned density; the grid.
fn draw(
    s: &Session,
    window: &Window,
    real: Option<&[f64]>,
    points: &[[f32; 2]],
    learned: &[f64],
    warped: &[[f64; 2]],
) -> Result<()> {
    const PANEL: u32 = 350;
    let density = |log_p: &[f64]| log_p.iter().map(|l| l.exp()).collect::<Vec<_>>();
    let (real, learned) = (real.map(density), density(learned));
    // One scale for both, so that equal greys are equal densities.
    let top = plots::peak(real.as_ref().unwrap_or(&learned)).max(f64::MIN_POSITIVE);
    let left = if real.is_some() { "the true density" } else { "data" };
    let titles = [left.to_owned(), s.title("the model"), "its grid of latents, decoded".to_owned()];
    let size = (3 * PANEL, PANEL + 40);
    let rgb = plots::fine(size, |area| {
        for (i, (panel, title)) in area.split_evenly((1, 3)).iter().zip(&titles).enumerate() {
            let mut chart = ChartBuilder::on(panel)
                .caption(title, ("sans-serif", 19 * FINE))
                .margin(8 * FINE)
                .x_label_area_size(24 * FINE)
                .y_label_area_size(34 * FINE)
                .build_cartesian_2d(window.range(0), window.range(1))?;
            match (i, &real) {
                (0, Some(real)) => _ = chart.draw_series(window.shades(real, RASTER, top))?,
                (0, None) => {
                    let dot = RGBColor(31, 90, 150).mix(0.5).filled();
                    let circle = |p: &[f32; 2]| Circle::new(p.map(f64::from).into(), FINE, dot);
                    chart.draw_series(points.iter().map(circle))?;
                }
                (1, _) => _ = chart.draw_series(window.shades(&learned, RASTER, top))?,
                _ => _ = chart.draw_series(bent(window, warped, window.half / f64::from(PANEL)))?,
            }
            chart
                .configure_mesh()
                .disable_mesh()
                .x_labels(5)
                .y_labels(5)
                .x_label_formatter(&|v| brief(*v))
                .y_label_formatter(&|v| brief(*v))
                .label_style(("sans-serif", 14 * FINE))
                .axis_style(BLACK.stroke_width(FINE))
                .set_all_tick_mark_size(5 * FINE)
                .draw()?;
        }
        Ok(())
    })?;
    plots::write_png(s.draft.drawn(), &rgb, size)
}

/// The pieces of the decoded grid's lines that are in the window, the lines of each axis in a colour of their own.
fn bent(window: &Window, warped: &[[f64; 2]], gap: f64) -> Vec<PathElement<(f64, f64)>> {
    let mut pieces = Vec::new();
    for (line, points) in warped.chunks_exact(ALONG).enumerate() {
        let colour = if line < LINES { RGBColor(20, 60, 120) } else { RGBColor(215, 120, 30) };
        // The axes of z are thicker.
        let style = colour.stroke_width(if line % LINES == STEPS as usize { 2 * FINE } else { FINE });
        let inside = points.split(|p| !window.holds(*p)).filter(|piece| piece.len() > 1);
        pieces.extend(inside.map(|piece| PathElement::new(spread(piece, gap), style)));
    }
    pieces
}
