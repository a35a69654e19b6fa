//! The learned density of the plane beside the data, and the grid of latents, decoded.

use super::super::answer::{Answer, Cloud, Line, Plot, rounded};
use super::super::explorer::Explorer;
use super::super::panel::Panel;
use super::super::request::Params;
use crate::commands::density::{self, ALONG, Densities, LINES, POINTS, RASTER, STEPS};
use crate::draw::plots::{Window, peak, shade};
use crate::session::doubles;
use anyhow::{Context, Result};

/// Points of the data in the plot.
const SHOWN: usize = 2000;
/// Points of a line of the grid that are sent: every so many.
const EVERY: usize = 4;

/// What moves it: nothing does.
pub fn panel() -> Panel {
    Panel {
        name: "density",
        title: "Density",
        about: "The density that the model has learned beside the data, and the regular grid of latents, decoded: where its lines are \
                close, the density is high."
            .to_owned(),
        controls: Vec::new(),
        strip: None,
        answer,
    }
}

/// A plot without anything.
fn blank(title: &str, window: &Window) -> Plot {
    let range = |axis| {
        let range = window.range(axis);
        [range.start, range.end]
    };
    Plot {
        title: title.to_owned(),
        window: [range(0), range(1)],
        raster: None,
        clouds: Vec::new(),
        lines: Vec::new(),
    }
}

fn answer(e: &mut Explorer, _: &Params) -> Result<Answer> {
    let base = e.base(0, None);
    let s = e.session(&base);
    let part = e.part().context("this page has no data, beside which a density is drawn")?;
    let split = part.split.take(POINTS);
    let Densities { window, learned, real, nats, divergence, mass } =
        density::measure(&s, &part.name, &split)?;
    let side = 2. * window.half;
    let exp = |log_p: &[f64]| log_p.iter().map(|l| l.exp()).collect::<Vec<_>>();
    let (real, learned) = (real.as_deref().map(exp), exp(&learned));
    // One scale for both, so that equal colours are equal densities.
    let top = peak(real.as_ref().unwrap_or(&learned)).max(f64::MIN_POSITIVE);
    let raster = |density: &[f64]| Some((density.iter().flat_map(|p| shade(p / top)).collect(), RASTER));
    let points = density::points(&s, &split, &part.name)?;
    let points = rounded(points.iter().take(SHOWN).map(|p| p.map(f64::from)), side);
    let mut plots = vec![
        Plot { clouds: vec![Cloud { name: "data", points, hues: Vec::new() }], ..blank("data", &window) },
        Plot { raster: raster(&learned), ..blank("density of the model", &window) },
    ];
    plots.extend(real.map(|real| Plot { raster: raster(&real), ..blank("true density", &window) }));
    let warped = doubles(&density::warped(&s)?.1)?;
    let lines = warped.as_chunks::<2>().0.chunks_exact(ALONG).enumerate().map(|(i, line)| Line {
        axis: u8::from(i >= LINES),
        thick: i % LINES == STEPS as usize,
        points: rounded(line.iter().step_by(EVERY).copied(), side),
    });
    plots.push(Plot { lines: lines.collect(), ..blank("grid of latents, decoded", &window) });
    let kl = divergence.map(|(kl, error)| {
        format!("{kl:.4} ± {error:.4} nats from the truth (KL divergence over {} points).", split.len())
    });
    let mut facts = vec![format!(
        "{nats:.4} nats a point of the data; {:.1} % of the model's mass is in the picture.",
        100. * mass
    )];
    facts.extend(kl);
    let more = ["--out".to_owned(), "density.png".to_owned()];
    Ok(Answer { plots, facts, commands: vec![e.shown("density", &[], &more)], ..Answer::default() })
}
