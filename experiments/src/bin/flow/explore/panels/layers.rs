//! Points of the plane on their way through the layers of the flow.

use super::super::answer::{Answer, Cloud, Plot, rounded};
use super::super::explorer::Explorer;
use super::super::panel::{Control, Panel};
use super::super::request::Params;
use crate::session::doubles;
use anyhow::{Context, Result};
use candle_core::Tensor;
use flows::latents::{self, TraceEntry};

/// Points that are followed.
const POINTS: usize = 1000;
/// The half of the window's side, in standard deviations of what is seen, and at least that many of the latents.
const WIDE: f64 = 3.5;

/// What moves it.
///
/// # Errors
/// When the data are not the model's.
pub fn panel(e: &Explorer) -> Result<Option<Panel>> {
    if e.part().is_none() {
        return Ok(None);
    }
    let last = trace(e)?.1.len() as f64;
    Ok(Some(Panel {
        name: "layers",
        title: "Layers",
        about: "Points of the data on their way through the flow: 0 is the data, each step a layer, and at the end they should lie as a \
                Gaussian. A point keeps the colour of the direction in which it ends."
            .to_owned(),
        controls: vec![Control::slider("layer", "Layer", (0., last, last / 200.), 0.)],
        strip: None,
        answer,
    }))
}

/// Points of the data, and what each layer makes of them.
fn trace(e: &Explorer) -> Result<(Tensor, Vec<TraceEntry>)> {
    let part = e.part().context("this page has no data, whose points are followed")?;
    let base = e.base(0, None);
    let s = e.session(&base);
    let split = part.split.take(POINTS);
    let x = s.dequantise(&split)?;
    let steps = latents::trace(&s.model, &x, s.given(split.len())?.context())?;
    Ok((x, steps))
}

fn answer(e: &mut Explorer, params: &Params) -> Result<Answer> {
    let (x, steps) = trace(e)?;
    let layer = params.number("layer", 0. ..=steps.len() as f64)?;
    let states = std::iter::once(&x).chain(steps.iter().map(|step| &step.output));
    let states =
        states.map(|state| Ok(doubles(state)?.as_chunks::<2>().0.to_vec())).collect::<Result<Vec<_>>>()?;
    let (before, share) = (layer.floor() as usize, layer.fract());
    let after = (before + 1).min(steps.len());
    let between = |(a, b): (&[f64; 2], &[f64; 2])| [0, 1].map(|i| a[i] + share * (b[i] - a[i]));
    let points: Vec<[f64; 2]> = states[before].iter().zip(&states[after]).map(between).collect();
    let hue = |p: &[f64; 2]| p[1].atan2(p[0]).to_degrees().rem_euclid(360.) as u16;
    let hues = states[steps.len()].iter().map(hue).collect();
    // The window goes with the points, smoothly, so that all states are seen.
    let (centre, half) = frame(&points);
    let window = [0, 1].map(|axis: usize| [centre[axis] - half, centre[axis] + half]);
    let name = |i: usize| if i == 0 { "the data" } else { steps[i - 1].path.as_str() };
    let title = match share {
        0. => format!("after {}", name(before)),
        _ => format!("between {} and {}", name(before), name(after)),
    };
    let cloud = Cloud { name: "data", points: rounded(points, 2. * half), hues };
    let plot = Plot { title, window, raster: None, clouds: vec![cloud], lines: Vec::new() };
    // The latents are those that a command writes; what is between has none.
    let at_the_end = layer == steps.len() as f64;
    let command = at_the_end.then(|| e.shown("encode", &[], &["--out".to_owned(), "z.npz".to_owned()]));
    Ok(Answer { plots: vec![plot], commands: command.into_iter().collect(), ..Answer::default() })
}

/// The middle of points and how far from it the window reaches.
fn frame(points: &[[f64; 2]]) -> ([f64; 2], f64) {
    let n = points.len().max(1) as f64;
    let centre = [0, 1].map(|axis: usize| points.iter().map(|p| p[axis]).sum::<f64>() / n);
    let square = |axis: usize| points.iter().map(|p| (p[axis] - centre[axis]).powi(2)).sum::<f64>() / n;
    (centre, WIDE * square(0).max(square(1)).sqrt().max(1e-6))
}
