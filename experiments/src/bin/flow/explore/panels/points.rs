//! Samples of vectors beside the data: one plot for each pair of dimensions.

use super::super::answer::{Answer, Cloud, Plot, rounded};
use super::super::explorer::{Explorer, Kind};
use super::super::panel::{Control, Panel};
use super::super::request::Params;
use crate::session::host;
use anyhow::Result;
use experiments::data::Values;

/// Points of each cloud.
const POINTS: usize = 1000;
/// Dimensions that are shown.
const DIMS: usize = 4;

/// What moves it.
pub fn panel(e: &Explorer) -> Panel {
    let mut controls =
        vec![Control::slider("temperature", "Temperature", (0., 1.2, 0.05), 1.), Control::seed()];
    controls.extend(Control::class(e, "all in turn"));
    let pairs = match e.kind() {
        Kind::Vectors(dims) if dims > DIMS => {
            format!(" Of the {dims} dimensions the first {DIMS} are shown, pair by pair.")
        }
        Kind::Vectors(_) => " Each plot has a pair of dimensions.".to_owned(),
        _ => String::new(),
    };
    Panel {
        name: "points",
        title: "Samples",
        about: format!(
            "Samples of the model beside the data. The temperature scales the noise that is decoded; 1 is the model itself.{pairs}"
        ),
        controls,
        strip: None,
        answer,
    }
}

fn answer(e: &mut Explorer, params: &Params) -> Result<Answer> {
    let (t, seed, class) = (params.number("temperature", 0. ..=2.)?, params.seed()?, e.class(params)?);
    let base = e.base(seed, class);
    let s = e.session(&base);
    let x = host(&s.model.sample(POINTS, t, seed, s.labels(POINTS)?.as_ref())?)?;
    let dims = s.model.dims();
    let data = e.part().map(|part| &part.split.values);
    let data = match data {
        Some(Values::Reals(values)) => &values[..values.len().min(POINTS * dims)],
        _ => &[],
    };
    let shown = dims.min(DIMS);
    let mut plots = Vec::new();
    for (i, j) in (0..shown).flat_map(|i| (i + 1..shown).map(move |j| (i, j))) {
        let pairs = |values: &[f32]| -> Vec<[f64; 2]> {
            values.chunks_exact(dims).map(|row| [f64::from(row[i]), f64::from(row[j])]).collect()
        };
        let (of_data, of_samples) = (pairs(data), pairs(&x));
        let shown = if of_data.is_empty() { &of_samples } else { &of_data };
        let window = [range(shown, 0), range(shown, 1)];
        let side = (window[0][1] - window[0][0]).min(window[1][1] - window[1][0]);
        let cloud = |name, points: &[[f64; 2]]| Cloud {
            name,
            points: rounded(points.iter().copied(), side),
            hues: Vec::new(),
        };
        let mut clouds = vec![cloud("data", &of_data), cloud("samples", &of_samples)];
        clouds.retain(|cloud| !cloud.points.is_empty());
        let title =
            if shown.is_empty() || dims == 2 { String::new() } else { format!("dimensions {i} and {j}") };
        plots.push(Plot { title, window, raster: None, clouds, lines: Vec::new() });
    }
    let mut more = vec!["-n".to_owned(), POINTS.to_string()];
    more.extend(class.into_iter().flat_map(|class| ["--class".to_owned(), class.to_string()]));
    more.extend(["--temperature".to_owned(), t.to_string(), "--seed".to_owned(), seed.to_string()]);
    let out = if dims == 2 { "samples.png" } else { "samples.npy" };
    more.extend(["--out".to_owned(), out.to_owned()]);
    Ok(Answer { plots, commands: vec![e.plain("sample", &more)], ..Answer::default() })
}

/// The range of a coordinate with a margin.
fn range(points: &[[f64; 2]], axis: usize) -> [f64; 2] {
    let finite = points.iter().map(|p| p[axis]).filter(|v| v.is_finite());
    let (low, high) = finite.fold((f64::INFINITY, f64::NEG_INFINITY), |(l, h), v| (l.min(v), h.max(v)));
    if low > high {
        return [-1., 1.];
    }
    let margin = 0.05 * (high - low).max(1e-6);
    [low - margin, high + margin]
}
