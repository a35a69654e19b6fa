//! `flow report`: a run as one HTML file that needs no network, light or dark as its reader has it.
//!
//! Numbers are those of summary.json, curves those of metrics.jsonl, settings those of recipe.toml, pictures whatever PNG lies
//! in the run's folder and in its folder `pictures`. Curves are drawn as SVG, and read without a script; the few lines of
//! script only say the value under the pointer. The HTML is the template templates/report.html; what it shows is computed
//! here.

use crate::draw::curve::{Over, compare};
use crate::draw::plots::within;
use anyhow::{Context, Result};
use askama::Template;
use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use experiments::data::file_name;
use experiments::evaluate::Evaluation;
use experiments::recipe::{Resolved, builtin};
use experiments::run_dir::{self, CURVE, PICTURES, SAMPLES};
use experiments::summary::Summary;
use experiments::untrusted::{TEXT, read_regular};
use serde_json::json;
use std::collections::BTreeMap;
use std::fmt::Write;
use std::path::{Path, PathBuf};

#[derive(Template)]
#[template(path = "report.html")]
struct Report<'a> {
    name: &'a str,
    summary: &'a Summary,
    changed: String,
    scores: Vec<(&'static str, &'a Evaluation)>,
    baselines: Vec<Row>,
    /// `None` where there is no log.
    charts: Option<Vec<Chart>>,
    /// Names, and the bytes of PNG files in base 64.
    pictures: Vec<(String, String)>,
    /// Key, value and source; `None` where there is no recipe.
    settings: Option<Vec<(String, String, String)>>,
}

/// A number that the model's is compared with.
struct Row {
    name: String,
    value: f64,
    /// The model on the same examples.
    own: Option<f64>,
}

/// The report of a run, with its curve and those of the runs `beside` it in one picture.
///
/// # Errors
/// When its log or its recipe is damaged, or a run beside it has no curve.
pub fn render(run: &Path, summary: &Summary, beside: &[PathBuf]) -> Result<String> {
    let folder = run.canonicalize().unwrap_or_else(|_| run.to_owned());
    let changed = summary.changed.as_deref().unwrap_or_default().join(", ");
    let scores = [("test", &summary.test), ("validation", &summary.validation), ("train", &summary.train)];
    let mut pictures = pictures(run)?;
    if !beside.is_empty() {
        let runs: Vec<PathBuf> =
            std::iter::once(run).chain(beside.iter().map(PathBuf::as_path)).map(Path::to_owned).collect();
        pictures.insert(
            0,
            ("curves of several runs".to_owned(), STANDARD.encode(compare(&runs, Over::Updates)?)),
        );
    }
    let report = Report {
        name: &file_name(&folder),
        summary,
        changed: if changed.is_empty() { changed } else { format!(", changed: {changed}") },
        scores: scores.into_iter().filter_map(|(split, score)| Some((split, score.as_ref()?))).collect(),
        baselines: baselines(summary),
        charts: charts(run, summary)?,
        pictures,
        settings: settings(run, summary)?,
    };
    Ok(report.render()?)
}

/// Replaces what HTML has another meaning for.
#[derive(Clone, Copy)]
pub struct Named;

impl askama::filters::Escaper for Named {
    fn write_escaped_str<W: Write>(&self, mut to: W, text: &str) -> std::fmt::Result {
        text.chars().try_for_each(|c| match c {
            '&' => to.write_str("&amp;"),
            '<' => to.write_str("&lt;"),
            '>' => to.write_str("&gt;"),
            '"' => to.write_str("&quot;"),
            '\'' => to.write_str("&#39;"),
            c => to.write_char(c),
        })
    }
}

/// A number with so many digits behind the point.
fn rounded(value: impl std::fmt::Display, digits: &usize) -> String {
    format!("{value:.digits$}")
}

fn baselines(summary: &Summary) -> Vec<Row> {
    let own = summary.score().map(|(_, s)| s.bits_per_dim);
    let row = |name: &str, value: f64| Row { name: name.to_owned(), value, own };
    let known = &summary.beside;
    let mut rows = Vec::new();
    rows.extend(known.paper.as_ref().map(|p| row(&format!("paper ({})", p.source), p.bits_per_dim)));
    rows.extend(known.entropy_lower.map(|v| row("entropy of the data, at least", v)));
    rows.extend(known.entropy_upper.map(|v| row("entropy of the data, at most", v)));
    let of = if known.mixture.is_some() { "a fitted Gaussian" } else { "a Gaussian for each subpixel" };
    rows.extend(known.gaussian.as_ref().map(|g| row(of, g.bits_per_dim)));
    rows.extend(known.mixture.as_ref().map(|g| row("a fitted mixture of Gaussians", g.bits_per_dim)));
    if let Some(c) = &known.codecs {
        for (codec, value, how) in c.each() {
            let name = format!("{codec}, {how} ({} images)", c.images);
            rows.push(Row { name, value, own: Some(c.model_bits_per_dim) });
        }
    }
    rows
}

/// (update, value).
type Line = Vec<(f64, f64)>;

fn charts(run: &Path, summary: &Summary) -> Result<Option<Vec<Chart>>> {
    let Some(log) = run_dir::read_metrics(run)? else { return Ok(None) };
    let line =
        |key: &str| -> Line { run_dir::column(&log, key).into_iter().filter(|p| p.1.is_finite()).collect() };
    let mut marks = Vec::new();
    if let Some(paper) = &summary.beside.paper {
        marks.push((format!("paper, {}", paper.bits_per_dim), paper.bits_per_dim));
    }
    if let (Some(lower), Some(upper)) = (summary.beside.entropy_lower, summary.beside.entropy_upper) {
        marks.push((format!("entropy at least {lower:.3}"), lower));
        if upper - lower > 0.02 * lower.abs() {
            marks.push((format!("entropy at most {upper:.3}"), upper));
        }
    }
    let bits = vec![("train", line("train_bits_per_dim")), ("validation", line("validation_bits_per_dim"))];
    let mut all = vec![Chart::new("bits/dim", bits, &marks, 300.)];
    let error = match summary.score() {
        Some((_, Evaluation { nats: Some(_), .. })) => "largest error of decode(encode(x))",
        _ => "largest error of decode(encode(x)), grey levels",
    };
    for (title, key) in [
        ("gradient norm", "grad_norm"),
        ("learning rate", "learning_rate"),
        ("images/s", "images_per_second"),
        (error, "reconstruction_error"),
    ] {
        all.push(Chart::new(title, vec![(title, line(key))], &[], 150.));
    }
    Ok(Some(all.into_iter().flatten().collect()))
}

/// Round numbers in a range, about `n` of them and never one alone, which would leave an axis without a scale.
fn ticks(low: f64, high: f64, n: f64) -> Vec<f64> {
    let rough = (high - low) / n;
    let power = 10f64.powf(rough.log10().floor());
    let at = |step: f64| -> Vec<f64> {
        let first = (low / step).ceil();
        (0..).map(|i| (first + f64::from(i)) * step).take_while(|t| *t <= high + 1e-9 * step).collect()
    };
    // From the first step that is not below the rough one, which may be too long, on to finer ones.
    let steps = [10., 5., 2., 1., 0.5, 0.2].map(|m| m * power);
    let coarsest = steps.iter().rposition(|s| *s >= rough).unwrap_or(0);
    steps[coarsest..].iter().map(|step| at(*step)).find(|ticks| ticks.len() > 1).unwrap_or_default()
}

/// A number as an axis says it.
fn label(v: f64) -> String {
    match v.abs() {
        a if a != 0. && !(1e-3..1e6).contains(&a) => {
            let text = format!("{v:.2e}");
            let (digits, power) = text.split_once('e').unwrap_or((&text, "0"));
            format!("{}e{power}", digits.trim_end_matches('0').trim_end_matches('.'))
        }
        // Ticks are sums of a step: what rounding leaves behind the ninth digit is not theirs.
        _ => format!("{}", (v * 1e9).round() / 1e9),
    }
}

/// A chart over updates, in the coordinates of its picture.
struct Chart {
    title: &'static str,
    width: f64,
    height: f64,
    left: f64,
    right: f64,
    top: f64,
    bottom: f64,
    /// Ticks of the values: their places and labels.
    values: Vec<(f64, String)>,
    /// Ticks of the updates.
    updates: Vec<(f64, String)>,
    marks: Vec<(f64, String)>,
    /// Pieces of lines: their class in the style sheet and their points.
    lines: Vec<(&'static str, String)>,
    /// The class and the name of each line.
    legend: Vec<(&'static str, &'static str)>,
    /// All points, for the script.
    json: String,
}

impl Chart {
    /// The chart of some lines, if they have a point. Its range is that of the last nine tenths of training, without the
    /// worst hundredth: a line ends at the border where it leaves the range.
    fn new(
        title: &'static str,
        mut series: Vec<(&'static str, Line)>,
        marks: &[(String, f64)],
        height: f64,
    ) -> Option<Self> {
        let (width, left, top) = (960., 64., 10.);
        let (right, bottom) = (width - 12., height - 24.);
        series.retain(|s| !s.1.is_empty());
        let all = series.iter().flat_map(|s| s.1.iter().copied());
        let last = all.clone().map(|p| p.0).fold(0., f64::max);
        if last == 0. {
            return None;
        }
        let mut late: Vec<f64> = all.filter(|p| p.0 >= 0.1 * last).map(|p| p.1).collect();
        late.sort_by(f64::total_cmp);
        late.truncate(late.len() - late.len() / 100);
        late.extend(marks.iter().map(|m| m.1));
        let low = late.iter().copied().fold(f64::INFINITY, f64::min);
        let high = late.iter().copied().fold(f64::NEG_INFINITY, f64::max);
        // A line that is level has no range of its own: a tenth of its value, so that the ticks differ in what they say.
        let level = if high > low { 1e-3 } else { 0.1 };
        let margin = (0.06 * (high - low)).max(level * high.abs()).max(1e-9);
        let (low, high) = (low - margin, high + margin);
        let x = |update: f64| left + update / last * (right - left);
        let y = |v: f64| bottom - (v - low) / (high - low) * (bottom - top);
        // The colours of curve.png, whichever lines there are.
        let class = |name: &str| if name == "validation" { "second" } else { "first" };
        let mut lines = Vec::new();
        for (name, points) in &series {
            for piece in within(points, low, high) {
                let point = |(u, v): &(f64, f64)| format!("{:.1},{:.1}", x(*u), y(*v));
                let mut points: Vec<String> = piece.iter().map(point).collect();
                // A point alone has no line: a round end makes it a dot.
                if let [one] = &points[..] {
                    points.push(one.clone());
                }
                lines.push((class(name), points.join(" ")));
            }
        }
        let json = json!({
            "names": series.iter().map(|s| s.0).collect::<Vec<_>>(),
            "points": series.iter().map(|s| &s.1).collect::<Vec<_>>(),
            "left": left, "right": right, "last": last,
        });
        Some(Self {
            title,
            width,
            height,
            left,
            right,
            top,
            bottom,
            values: ticks(low, high, height / 50.).into_iter().map(|v| (y(v), label(v))).collect(),
            updates: ticks(0., last, 8.).into_iter().map(|v| (x(v).min(right - 18.), label(v))).collect(),
            marks: marks.iter().map(|(name, v)| (y(*v), name.clone())).collect(),
            lines,
            legend: series.iter().map(|s| (class(s.0), s.0)).collect(),
            json: json.to_string(),
        })
    }
}

/// The samples first, then all others by name; the curve is drawn already.
fn pictures(run: &Path) -> Result<Vec<(String, String)>> {
    let mut files = Vec::new();
    for folder in [run.to_owned(), run.join(PICTURES)] {
        if !folder.is_dir() {
            continue;
        }
        let entries = std::fs::read_dir(&folder).and_then(Iterator::collect::<std::io::Result<Vec<_>>>);
        let entries = entries.with_context(|| format!("cannot list {}", folder.display()))?;
        let png = |path: &PathBuf| path.extension().is_some_and(|e| e.eq_ignore_ascii_case("png"));
        let mut own: Vec<PathBuf> = entries.iter().map(std::fs::DirEntry::path).filter(png).collect();
        own.sort_by_key(|path| (file_name(path) != SAMPLES, path.clone()));
        files.extend(own.into_iter().filter(|path| file_name(path) != CURVE));
    }
    let mut pictures = Vec::new();
    for path in files {
        match picture(&path) {
            Ok(bytes) => {
                let name = file_name(&path);
                let name = name.strip_suffix(".png").unwrap_or(&name);
                pictures.push((name.to_owned(), STANDARD.encode(bytes)));
            }
            Err(e) => tracing::warn!("{e:#}: the report goes without it"),
        }
    }
    Ok(pictures)
}

/// The bytes of a PNG that a browser can show.
fn picture(path: &Path) -> Result<Vec<u8>> {
    let bytes = read_regular(path, TEXT)?;
    image::load_from_memory_with_format(&bytes, image::ImageFormat::Png)
        .with_context(|| format!("{} is no readable PNG", path.display()))?;
    Ok(bytes)
}

/// Every setting of the run with its source: that of the built-in recipe of its name, unless the run changed it.
fn settings(run: &Path, summary: &Summary) -> Result<Option<Vec<(String, String, String)>>> {
    let Some(own) = run_dir::resolve(run)? else { return Ok(None) };
    let built_in = match builtin(&summary.recipe) {
        Some(text) => Some(Resolved::parse(&summary.recipe, text, &[])?.settings()?),
        None => None,
    };
    let known: Option<BTreeMap<String, (String, String)>> =
        built_in.map(|rows| rows.into_iter().map(|(key, value, source)| (key, (value, source))).collect());
    let mut rows = own.settings()?;
    rows.retain(|(key, ..)| !matches!(key.as_str(), "name" | "about"));
    let Some(known) = known else { return Ok(Some(rows)) };
    for (key, value, source) in &mut rows {
        *source = match known.get(key) {
            Some((same, source)) if same == value => source.clone(),
            Some((other, _)) => format!("this run; the recipe has {other}"),
            None => "this run".to_owned(),
        };
    }
    Ok(Some(rows))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ticks_are_round_and_inside() {
        assert_eq!(ticks(0., 2200., 8.), [0., 500., 1000., 1500., 2000.]);
        let between: Vec<String> = ticks(4.03, 4.71, 6.).into_iter().map(label).collect();
        assert_eq!(between, ["4.2", "4.4", "4.6"]);
        // Three fifths of the range are no tick's distance: one finer.
        assert_eq!(ticks(26.6, 29.4, 3.), [27., 28., 29.]);
        for i in 0..1000 {
            let (low, high) = (f64::from(i) * 0.37, f64::from(i) * 0.37 + 1. + f64::from(i % 97) * 0.11);
            for n in [3., 6., 8.] {
                assert!((2..=20).contains(&ticks(low, high, n).len()), "{low} to {high}, about {n}");
            }
        }
        assert_eq!([label(1e-4), label(3. * 2e-4), label(-2.5e7)], ["1e-4", "6e-4", "-2.5e7"]);
    }

    #[test]
    fn lines_have_the_colours_of_the_curve_and_stay_in_their_chart() {
        // Two spikes, of which one is the first point.
        let level = |u: u32| if u == 1 || u == 700 { 1e4 } else { 5. + 0.001 * f64::from(u % 7) };
        let line: Line = (1..=1000).map(|u| (f64::from(u), level(u))).collect();
        for (names, classes) in [
            (&["train", "validation"][..], &["first", "second"][..]),
            (&["train"], &["first"]),
            (&["validation"], &["second"]),
            (&["gradient norm"], &["first"]),
        ] {
            let series = names.iter().map(|name| (*name, line.clone())).collect();
            let chart = Chart::new("title", series, &[], 150.).unwrap();
            let drawn: Vec<&str> = chart.legend.iter().map(|entry| entry.0).collect();
            assert_eq!(drawn, classes, "{names:?}");
            for (_, points) in &chart.lines {
                let points: Vec<(f64, f64)> = points
                    .split(' ')
                    .map(|p| {
                        p.split_once(',').map(|(x, y)| (x.parse().unwrap(), y.parse().unwrap())).unwrap()
                    })
                    .collect();
                assert!(points.len() > 2 && points[0] != points[1], "a dot: {points:?}");
                for (x, y) in points {
                    assert!(
                        (chart.left..=chart.right).contains(&x) && (chart.top..=chart.bottom).contains(&y)
                    );
                }
            }
        }
    }

    #[test]
    fn texts_of_files_are_no_markup() {
        let mut safe = String::new();
        askama::filters::Escaper::write_escaped_str(&Named, &mut safe, "<b title='x'>&\"</b>").unwrap();
        assert_eq!(safe, "&lt;b title=&#39;x&#39;&gt;&amp;&quot;&lt;/b&gt;");
    }
}
