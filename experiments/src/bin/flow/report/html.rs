//! `flow report`: a run as one HTML file that needs no network, light or dark as its reader has it.
//!
//! Numbers are those of summary.json, curves those of metrics.jsonl, settings those of recipe.toml, pictures whatever PNG lies
//! in the run's folder and in its folder `pictures`. Curves are drawn as SVG here, and read without a script; the few lines
//! of script only say the value under the pointer.

use anyhow::{Context, Result, ensure};
use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use experiments::data;
use experiments::evaluate::Evaluation;
use experiments::recipe::{Resolved, builtin};
use experiments::run_dir::{self, CURVE, PICTURES, SAMPLES};
use experiments::summary::Summary;
use serde_json::json;
use std::collections::BTreeMap;
use std::fmt::Write;
use std::path::{Path, PathBuf};

/// The report of a run.
///
/// # Errors
/// When its log or its recipe is damaged.
pub fn render(run: &Path, summary: &Summary) -> Result<String> {
    let folder = run.canonicalize().unwrap_or_else(|_| run.to_owned());
    let name = escape(&data::file_name(&folder));
    let mut html = format!(
        "<!doctype html>\n<html lang=\"en\">\n<head>\n<meta charset=\"utf-8\">\n\
         <meta name=\"viewport\" content=\"width=device-width, initial-scale=1\">\n\
         <title>{name}</title>\n<style>\n{}</style>\n</head>\n<body>\n",
        include_str!("style.css")
    );
    head(&mut html, &name, summary);
    numbers(&mut html, summary);
    curves(&mut html, run, summary)?;
    pictures(&mut html, run)?;
    training(&mut html, summary);
    settings(&mut html, run, summary)?;
    write!(html, "<script>\n{}</script>\n</body>\n</html>\n", include_str!("hover.js"))?;
    Ok(html)
}

/// A text of a file as HTML shows it.
fn escape(text: &str) -> String {
    let mut safe = String::with_capacity(text.len());
    for c in text.chars() {
        match c {
            '&' => safe.push_str("&amp;"),
            '<' => safe.push_str("&lt;"),
            '>' => safe.push_str("&gt;"),
            '"' => safe.push_str("&quot;"),
            '\'' => safe.push_str("&#39;"),
            c => safe.push(c),
        }
    }
    safe
}

/// Appends; writing to a string cannot fail.
fn push(html: &mut String, text: std::fmt::Arguments<'_>) {
    html.push_str(&text.to_string());
}

fn head(html: &mut String, name: &str, summary: &Summary) {
    push(html, format_args!("<h1>{name}</h1>\n"));
    let shown =
        summary.test.as_ref().map(|s| ("test", s)).or(summary.validation.as_ref().map(|s| ("validation", s)));
    if let Some((split, score)) = shown {
        push(
            html,
            format_args!(
                "<p class=\"score\"><b>{:.4} ± {:.4} bits/dim</b> on {} {split} examples of {}</p>\n",
                score.bits_per_dim,
                score.std_err,
                score.images,
                escape(&summary.data)
            ),
        );
    }
    let changed = summary.changed.as_deref().unwrap_or_default().join(", ");
    let changed = if changed.is_empty() { String::new() } else { format!(", changed: {}", escape(&changed)) };
    push(html, format_args!("<p class=\"quiet\">recipe {}{changed}</p>\n", escape(&summary.recipe)));
}

/// A cell with the whole number behind what is shown.
fn number(value: Option<f64>, digits: usize) -> String {
    match value {
        Some(v) => format!("<td class=\"number\" data-value=\"{v}\">{v:.digits$}</td>"),
        None => "<td></td>".to_owned(),
    }
}

fn numbers(html: &mut String, summary: &Summary) {
    html.push_str(
        "<h2>Numbers</h2>\n<div class=\"scroll\"><table id=\"numbers\">\n<tr><th></th><th class=\"number\">bits/dim</th>\
         <th class=\"number\">standard error</th><th class=\"number\">prior</th><th class=\"number\">log-det</th>\
         <th class=\"number\">log-likelihood, nats</th><th class=\"number\">examples</th></tr>\n",
    );
    for (split, score) in
        [("test", &summary.test), ("validation", &summary.validation), ("train", &summary.train)]
    {
        let Some(Evaluation {
            bits_per_dim, std_err, prior_bits, log_det_bits, log_likelihood, images, ..
        }) = score
        else {
            continue;
        };
        let cells =
            [(bits_per_dim, 4), (std_err, 4), (prior_bits, 4), (log_det_bits, 4), (log_likelihood, 2)];
        let cells: String = cells.map(|(v, digits)| number(Some(*v), digits)).concat();
        push(html, format_args!("<tr><th>{split}</th>{cells}<td class=\"number\">{images}</td></tr>\n"));
    }
    html.push_str("</table></div>\n");

    let own = summary.test.as_ref().or(summary.validation.as_ref()).map(|s| s.bits_per_dim);
    let mut rows: Vec<(String, f64, Option<f64>)> = Vec::new();
    let beside = &summary.beside;
    if let Some(paper) = &beside.paper {
        rows.push((format!("paper ({})", paper.source), paper.bits_per_dim, own));
    }
    rows.extend(beside.entropy_lower.map(|v| ("entropy of the data, at least".to_owned(), v, own)));
    rows.extend(beside.entropy_upper.map(|v| ("entropy of the data, at most".to_owned(), v, own)));
    if let Some(gaussian) = &beside.gaussian {
        rows.push(("a Gaussian for each subpixel".to_owned(), gaussian.bits_per_dim, own));
    }
    if let Some(c) = &beside.codecs {
        let on = Some(c.model_bits_per_dim);
        rows.push((format!("PNG, {} ({} images)", c.png_how, c.images), c.png_bits_per_dim, on));
        rows.push((format!("lossless WebP, {} ({} images)", c.webp_how, c.images), c.webp_bits_per_dim, on));
    }
    if rows.is_empty() {
        return;
    }
    html.push_str(
        "<h3>Beside it</h3>\n<div class=\"scroll\"><table id=\"beside\">\n<tr><th></th><th class=\"number\">bits/dim</th>\
         <th class=\"number\">this model on the same examples</th><th class=\"number\">difference</th></tr>\n",
    );
    for (name, value, own) in rows {
        let difference = own.map_or_else(
            || "<td></td>".to_owned(),
            |own| format!("<td class=\"number\">{:+.4}</td>", own - value),
        );
        push(
            html,
            format_args!(
                "<tr><th>{}</th>{}{}{difference}</tr>\n",
                escape(&name),
                number(Some(value), 4),
                number(own, 4)
            ),
        );
    }
    html.push_str("</table></div>\n");
}

/// (update, value).
type Line = Vec<(f64, f64)>;

fn curves(html: &mut String, run: &Path, summary: &Summary) -> Result<()> {
    let Some(log) = run_dir::read_metrics(run)? else { return Ok(()) };
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
    html.push_str("<h2>Training</h2>\n");
    let bits = [("train", line("train_bits_per_dim")), ("validation", line("validation_bits_per_dim"))];
    chart(html, "bits/dim", &bits, &marks, 300.)?;
    for (title, key) in [
        ("gradient norm", "grad_norm"),
        ("learning rate", "learning_rate"),
        ("images/s", "images_per_second"),
        ("largest error of decode(encode(x)), grey levels", "reconstruction_error"),
    ] {
        chart(html, title, &[(title, line(key))], &[], 150.)?;
    }
    Ok(())
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

/// One chart over updates. Its range is that of the last nine tenths of training, without the worst hundredth: a line
/// breaks off where it leaves the range.
fn chart(
    html: &mut String,
    title: &str,
    series: &[(&str, Line)],
    marks: &[(String, f64)],
    height: f64,
) -> Result<()> {
    const WIDTH: f64 = 960.;
    const LEFT: f64 = 64.;
    let (right, top, bottom) = (WIDTH - 12., 10., height - 24.);
    let series: Vec<&(&str, Line)> = series.iter().filter(|s| !s.1.is_empty()).collect();
    let all: Vec<(f64, f64)> = series.iter().flat_map(|s| s.1.iter().copied()).collect();
    let last = all.iter().map(|p| p.0).fold(0., f64::max);
    if last == 0. {
        return Ok(());
    }
    let mut late: Vec<f64> = all.iter().filter(|p| p.0 >= 0.1 * last).map(|p| p.1).collect();
    late.sort_by(f64::total_cmp);
    late.truncate(late.len() - late.len() / 100);
    late.extend(marks.iter().map(|m| m.1));
    let (low, high) = late.iter().fold((f64::INFINITY, f64::NEG_INFINITY), |(a, b), &v| (a.min(v), b.max(v)));
    // A line that is level has no range of its own: a tenth of its value, so that the ticks differ in what they say.
    let level = if high > low { 1e-3 } else { 0.1 };
    let margin = (0.06 * (high - low)).max(level * high.abs()).max(1e-9);
    let (low, high) = (low - margin, high + margin);
    let x = |update: f64| LEFT + update / last * (right - LEFT);
    let y = |v: f64| bottom - (v - low) / (high - low) * (bottom - top);

    push(
        html,
        format_args!(
            "<figure class=\"chart\">\n<h3>{}</h3>\n<div class=\"scroll\"><div class=\"plot\">\n<svg viewBox=\"0 0 {WIDTH} {height}\" role=\"img\" aria-label=\"{} by \
             update\">\n",
            escape(title),
            escape(title)
        ),
    );
    for v in ticks(low, high, height / 50.) {
        let at = y(v);
        push(
            html,
            format_args!(
                "<line class=\"grid\" x1=\"{LEFT}\" x2=\"{right}\" y1=\"{at:.1}\" y2=\"{at:.1}\"/><text x=\"{}\" \
                 y=\"{:.1}\" text-anchor=\"end\">{}</text>\n",
                LEFT - 8.,
                at + 4.,
                label(v)
            ),
        );
    }
    for v in ticks(0., last, 8.) {
        let anchor = if v == 0. { "start" } else { "middle" };
        push(
            html,
            format_args!(
                "<text x=\"{:.1}\" y=\"{}\" text-anchor=\"{anchor}\">{}</text>\n",
                x(v).min(right - 18.),
                height - 6.,
                label(v)
            ),
        );
    }
    for (name, v) in marks {
        let at = y(*v);
        push(
            html,
            format_args!(
                "<line class=\"mark\" x1=\"{LEFT}\" x2=\"{right}\" y1=\"{at:.1}\" y2=\"{at:.1}\"/><text class=\"of-mark\" \
                 x=\"{}\" y=\"{:.1}\">{}</text>\n",
                LEFT + 6.,
                at - 5.,
                escape(name)
            ),
        );
    }
    let class = |i: usize| if i + 1 == series.len() { "second" } else { "first" };
    for (i, (_, points)) in series.iter().enumerate() {
        for piece in points.split(|p| p.1 > high || p.1 < low).filter(|piece| !piece.is_empty()) {
            let points: Vec<String> =
                piece.iter().map(|(u, v)| format!("{:.1},{:.1}", x(*u), y(*v))).collect();
            // A point alone has no line: a round end makes it a dot.
            let points = if points.len() == 1 { vec![points[0].clone(); 2] } else { points };
            push(
                html,
                format_args!(
                    "<polyline class=\"series {}\" fill=\"none\" stroke=\"currentColor\" stroke-linecap=\"round\" \
                     points=\"{}\"/>\n",
                    class(i),
                    points.join(" ")
                ),
            );
        }
    }
    push(
        html,
        format_args!(
            "<line class=\"cursor\" visibility=\"hidden\" x1=\"0\" x2=\"0\" y1=\"{top}\" y2=\"{bottom}\"/>\n</svg>\n\
             <div class=\"tip\"></div>\n</div></div>\n"
        ),
    );
    if series.len() > 1 {
        let names: Vec<String> = series
            .iter()
            .enumerate()
            .map(|(i, s)| format!("<b class=\"{}\">{}</b>", class(i), escape(s.0)))
            .collect();
        push(html, format_args!("<p class=\"legend\">{}, by update</p>\n", names.join(" and ")));
    }
    let points = json!({
        "names": series.iter().map(|s| s.0).collect::<Vec<_>>(),
        "points": series.iter().map(|s| &s.1).collect::<Vec<_>>(),
        "left": LEFT, "right": right, "last": last,
    });
    push(html, format_args!("<script type=\"application/json\">{points}</script>\n</figure>\n"));
    Ok(())
}

/// The samples first, then all others by name; the curve is drawn already.
fn pictures(html: &mut String, run: &Path) -> Result<()> {
    let mut files = Vec::new();
    for folder in [run.to_owned(), run.join(PICTURES)] {
        if !folder.is_dir() {
            continue;
        }
        let entries = std::fs::read_dir(&folder).and_then(Iterator::collect::<std::io::Result<Vec<_>>>);
        let entries = entries.with_context(|| format!("cannot list {}", folder.display()))?;
        let png = |path: &PathBuf| path.extension().is_some_and(|e| e.eq_ignore_ascii_case("png"));
        let mut own: Vec<PathBuf> = entries.iter().map(std::fs::DirEntry::path).filter(png).collect();
        own.sort_by_key(|path| (data::file_name(path) != SAMPLES, path.clone()));
        files.extend(own.into_iter().filter(|path| data::file_name(path) != CURVE));
    }
    let mut title = "<h2>Pictures</h2>\n";
    for path in files {
        let bytes = match picture(&path) {
            Ok(bytes) => bytes,
            Err(e) => {
                tracing::warn!("{e:#}: the report goes without it");
                continue;
            }
        };
        html.push_str(std::mem::take(&mut title));
        let name = data::file_name(&path);
        let name = escape(name.strip_suffix(".png").unwrap_or(&name));
        push(
            html,
            format_args!(
                "<figure><img alt=\"{name}\" src=\"data:image/png;base64,{}\"><figcaption>{name}</figcaption></figure>\n",
                STANDARD.encode(bytes)
            ),
        );
    }
    Ok(())
}

/// The bytes of a PNG that a browser can show.
fn picture(path: &Path) -> Result<Vec<u8>> {
    // A pipe would be waited for.
    ensure!(path.is_file(), "{} is no file", path.display());
    let bytes = std::fs::read(path).with_context(|| format!("cannot read {}", path.display()))?;
    image::load_from_memory_with_format(&bytes, image::ImageFormat::Png)
        .with_context(|| format!("{} is no readable PNG", path.display()))?;
    Ok(bytes)
}

fn training(html: &mut String, summary: &Summary) {
    let t = &summary.training;
    let m = &summary.machine;
    let rows = [
        ("command", format!("<code>{}</code>", escape(&summary.command))),
        ("data", format!("{}, {}", escape(&summary.data), escape(&summary.data_revision))),
        ("training, validation and test examples", summary.data_images.map(|n| n.to_string()).join(", ")),
        ("trained parameters", summary.parameters.to_string()),
        ("updates", format!("{}, ended by {}", t.updates, escape(&t.stopped))),
        ("the update that was kept", t.best_update.map_or_else(|| "the last".to_owned(), |u| u.to_string())),
        ("images seen", t.images_seen.to_string()),
        ("images/s", format!("{:.1}", t.images_per_second)),
        ("seconds", format!("{:.0}", t.wall_seconds)),
        ("seed", summary.seed.to_string()),
        ("device", escape(&summary.device)),
        (
            "machine",
            format!(
                "{}, {} cores, {} threads, {} GiB, {}",
                escape(&m.cpu),
                m.cores,
                m.threads,
                m.memory_gib,
                escape(&m.os)
            ),
        ),
        ("commit", format!("<code>{}</code>", escape(&summary.commit))),
        ("version", escape(&summary.version)),
    ];
    html.push_str("<h2>How it was made</h2>\n<div class=\"scroll\"><table>\n");
    for (name, value) in rows {
        push(html, format_args!("<tr><th>{name}</th><td>{value}</td></tr>\n"));
    }
    html.push_str("</table></div>\n");
}

/// Every setting of the run with its source: that of the built-in recipe of its name, unless the run changed it.
fn settings(html: &mut String, run: &Path, summary: &Summary) -> Result<()> {
    let Some(own) = run_dir::resolve(run)? else { return Ok(()) };
    let own = own.settings()?;
    let built_in = match builtin(&summary.recipe) {
        Some(text) => Some(Resolved::parse(&summary.recipe, text, &[])?.settings()?),
        None => None,
    };
    let known: Option<BTreeMap<&str, (&str, &str)>> = built_in
        .as_ref()
        .map(|rows| rows.iter().map(|(k, v, s)| (k.as_str(), (v.as_str(), s.as_str()))).collect());
    html.push_str(
        "<h2>Settings</h2>\n<div class=\"scroll\"><table id=\"settings\">\n<tr><th>setting</th><th>value</th><th>source</th>\
         </tr>\n",
    );
    for (key, value, source) in own.iter().filter(|row| !matches!(row.0.as_str(), "name" | "about")) {
        let source = match known.as_ref().map(|known| known.get(key.as_str())) {
            None => source.clone(),
            Some(Some((same, source))) if same == value => (*source).to_owned(),
            Some(Some((other, _))) => format!("this run; the recipe has {other}"),
            Some(None) => "this run".to_owned(),
        };
        push(
            html,
            format_args!(
                "<tr><td><code>{}</code></td><td><code>{}</code></td><td>{}</td></tr>\n",
                escape(key),
                escape(value),
                escape(&source)
            ),
        );
    }
    html.push_str("</table></div>\n");
    Ok(())
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
    fn texts_of_files_are_no_markup() {
        assert_eq!(escape("<b title='x'>&\"</b>"), "&lt;b title=&#39;x&#39;&gt;&amp;&quot;&lt;/b&gt;");
    }
}
