//! `density`: a flow of the plane beside the density that its data are drawn from, and what it does to a grid.

use crate::draw::plots::{self, FINE, Window};
use crate::session::{Base, Out, Session, Which, brief, doubles, mean, pooled};
use anyhow::{Result, bail};
use candle_core::Tensor;
use clap::Args;
use experiments::data::Values;
use experiments::data::plane::Plane;
use plotters::prelude::*;
use serde_json::json;

/// Points on each side of the raster.
const RASTER: usize = 200;
/// Test points that the divergence is measured on, at most.
const POINTS: usize = 10_000;
/// The grid's lines are at these many steps on each side of zero.
const STEPS: i32 = 6;
/// From one line of the grid to the next.
const STEP: f64 = 0.5;
/// Points along a line of the grid.
const ALONG: usize = 241;

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
    if s.model.config().shape() != [2] {
        bail!(
            "the model of {} takes examples of shape {:?}, and `flow density` draws densities of the plane: choose a model of \
             two dimensions, such as `flow reproduce moons` trains",
            args.base.weights,
            s.model.config().shape()
        );
    }
    let data = s.part(&args.from)?;
    let split = data.split.take(POINTS);
    s.fits(&split, &data.name)?;
    let Values::Reals(values) = &split.values else {
        bail!("`{}` holds bytes, not points of the plane: choose other data", data.name)
    };
    let truth = Plane::from_name(&data.name);
    let points: Vec<[f32; 2]> = values.chunks_exact(2).map(|p| [p[0], p[1]]).collect();
    pooled(|| {
        let window = Window::about(&points);
        let at = |points: &[[f64; 2]]| -> Result<Tensor> {
            let flat: Vec<f64> = points.iter().flatten().copied().collect();
            let t = Tensor::from_vec(flat, (points.len(), 2), &candle_core::Device::Cpu)?;
            Ok(t.to_dtype(s.model.params().dtype())?.to_device(&s.device)?)
        };
        let raster = window.raster(RASTER);
        let cond = s.labels(raster.len())?;
        let learned = doubles(&s.model.log_prob(&at(&raster)?, cond.as_ref())?)?;
        let area = (2. * window.half / RASTER as f64).powi(2);
        let mass: f64 = learned.iter().map(|l| l.exp()).sum::<f64>() * area;
        let real = truth.map(|plane| raster.iter().map(|p| plane.log_density(*p)).collect::<Vec<_>>());
        // KL(p || q) is the mean of ln p - ln q over points of p.
        let nats = doubles(&s.over(&split, |x, cond| Ok(s.model.log_prob(x, cond)?))?)?;
        let loss = -mean(&nats);
        let divergence = truth.map(|plane| {
            let ratio: Vec<f64> =
                points.iter().zip(&nats).map(|(p, q)| plane.log_density(p.map(f64::from)) - q).collect();
            let m = mean(&ratio);
            let variance =
                ratio.iter().map(|r| (r - m).powi(2)).sum::<f64>() / (ratio.len().max(2) - 1) as f64;
            (m, (variance / ratio.len() as f64).sqrt())
        });

        // Lines of a grid in z, as the inverse bends them.
        let reach = STEP * f64::from(STEPS);
        let along = |i: usize| reach * (2. * i as f64 / (ALONG - 1) as f64 - 1.);
        let mut grid = Vec::new();
        for axis in 0..2 {
            for line in -STEPS..=STEPS {
                let fixed = STEP * f64::from(line);
                grid.extend(
                    (0..ALONG).map(|i| if axis == 0 { [along(i), fixed] } else { [fixed, along(i)] }),
                );
            }
        }
        let z = at(&grid)?;
        let x = s.model.decode(&z, s.labels(grid.len())?.as_ref())?;
        let warped: Vec<[f64; 2]> = doubles(&x)?.chunks_exact(2).map(|p| [p[0], p[1]]).collect();

        draw(&s, &window, real.as_deref().map_or(Left::Points(&points), Left::Density), &learned, &warped)?;
        let lines = [match divergence {
            Some((m, e)) => format!(
                "{}: {loss:.4} nats a point, {m:.4} ± {e:.4} from the truth (KL divergence over {} points); {:.4} of the model's \
                 mass is in the picture",
                data.name,
                nats.len(),
                mass
            ),
            None => format!(
                "{}: {loss:.4} nats a point; {mass:.4} of the model's mass is in the picture",
                data.name
            ),
        }];
        let figures = json!({
            "data": data.name, "points": nats.len(), "nats": loss, "kl": divergence.map(|d| d.0),
            "kl_std_err": divergence.map(|d| d.1), "mass": mass,
        });
        let side = |v: Vec<f64>| -> Result<Tensor> {
            Ok(Tensor::from_vec(v, (RASTER, RASTER), &candle_core::Device::Cpu)?)
        };
        let lines_of =
            |t: Tensor| -> Result<Tensor> { Ok(t.reshape((2, 2 * STEPS as usize + 1, ALONG, 2))?) };
        let mut tensors = vec![
            ("raster", at(&raster)?.reshape((RASTER, RASTER, 2))?),
            ("log_prob", side(learned)?),
            ("grid", lines_of(z)?),
            ("warped", lines_of(x)?),
        ];
        if let Some(real) = real {
            tensors.push(("true_log_prob", side(real)?));
        }
        s.finish(figures, tensors, &lines)
    })
}

/// What stands left: the density where it is known, else the points.
enum Left<'a> {
    Density(&'a [f64]),
    Points(&'a [[f32; 2]]),
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

/// The three panels.
fn draw(s: &Session, window: &Window, left: Left, learned: &[f64], warped: &[[f64; 2]]) -> Result<()> {
    const PANEL: u32 = 350;
    let half = window.half / RASTER as f64;
    let raster = window.raster(RASTER);
    // One scale for both, so that equal greys are equal densities.
    let finite = |v: &[f64]| v.iter().map(|l| l.exp()).filter(|p| p.is_finite()).fold(0., f64::max);
    let top = match left {
        Left::Density(real) => finite(real),
        Left::Points(_) => finite(learned),
    };
    let top = top.max(f64::MIN_POSITIVE);
    let shades = |log_p: &[f64]| -> Vec<Rectangle<(f64, f64)>> {
        raster
            .iter()
            .zip(log_p)
            .map(|([x, y], l)| {
                // A root, so that thin tails are seen beside sharp peaks.
                let share = (l.exp() / top).clamp(0., 1.).sqrt();
                let fade = |to: f64| (255. - share * (255. - to)).round() as u8;
                let colour = RGBColor(fade(8.), fade(48.), fade(107.));
                Rectangle::new([(x - half, y + half), (x + half, y - half)], colour.filled())
            })
            .collect()
    };
    let name = s.title("the model");
    let titles = [
        match left {
            Left::Density(_) => "the true density".to_owned(),
            Left::Points(_) => "data".to_owned(),
        },
        name,
        "its grid of latents, decoded".to_owned(),
    ];
    plots::draw_fine(s.draft.drawn(), (3 * PANEL, PANEL + 40), |area| {
        for (i, (panel, title)) in area.split_evenly((1, 3)).iter().zip(&titles).enumerate() {
            let range = |axis: usize| window.centre[axis] - window.half..window.centre[axis] + window.half;
            let mut chart = ChartBuilder::on(panel)
                .caption(title, ("sans-serif", 19 * FINE))
                .margin(8 * FINE)
                .x_label_area_size(24 * FINE)
                .y_label_area_size(34 * FINE)
                .build_cartesian_2d(range(0), range(1))?;
            match (i, &left) {
                (0, Left::Density(real)) => _ = chart.draw_series(shades(real))?,
                (0, Left::Points(points)) => {
                    let dot = RGBColor(31, 90, 150).mix(0.5).filled();
                    chart.draw_series(
                        points.iter().map(|p| Circle::new((p[0].into(), p[1].into()), FINE, dot)),
                    )?;
                }
                (1, _) => _ = chart.draw_series(shades(learned))?,
                _ => {
                    let inside =
                        |p: &[f64; 2]| (0..2).all(|i| (p[i] - window.centre[i]).abs() <= window.half);
                    for (line, points) in warped.chunks_exact(ALONG).enumerate() {
                        let first = line <= 2 * STEPS as usize;
                        let colour = if first { RGBColor(20, 60, 120) } else { RGBColor(215, 120, 30) };
                        // The axes of z are thicker.
                        let middle = line % (2 * STEPS as usize + 1) == STEPS as usize;
                        let style = colour.stroke_width(if middle { 2 * FINE } else { FINE });
                        for piece in points.split(|p| !inside(p)).filter(|piece| piece.len() > 1) {
                            let piece = spread(piece, window.half / f64::from(PANEL));
                            chart.draw_series([PathElement::new(piece, style)])?;
                        }
                    }
                }
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
    })
}
