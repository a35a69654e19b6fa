//! `doctor`: saved weights examined from outside, with a verdict in words.
//!
//! Every finding compares a measured number with a bound that says why it is one. `broken` is what makes results wrong:
//! values that are not finite, an inverse that does not come back. `look` is what is unusual and may be meant.

use super::pictures::listed;
use super::reconstruct::largest_by_level;
use crate::output;
use crate::session::{Base, Session, Which, brief, doubles, largest, mean, pooled};
use anyhow::{Context, Result, bail, ensure};
use candle_core::Tensor;
use clap::Args;
use flows::bijections::ActNorm;
use flows::latents::{self, LayerStats};
use flows::ops::linalg;
use flows::{Ctx, Mode};
use serde_json::{Value, json};
use std::collections::BTreeMap;
use std::path::PathBuf;

/// An image that is off by half a grey level is another image.
const WRONG: f64 = 0.5;
/// Rounding in f32 alone leaves errors some hundred times smaller.
const INEXACT: f64 = 0.02;
/// Beyond, an inverse in f32 has lost more than half of its seven digits ...
const ILL: f64 = 1e4;
/// ... and here all of them.
const SINGULAR: f64 = 1e7;
/// exp of it is a factor of 3000 in one layer.
const STEEP: f64 = 8.;
/// Bits/dim between batch and running statistics that no small batch explains.
const GAP: f64 = 0.1;

/// `doctor`.
#[derive(Args)]
pub struct DoctorArgs {
    #[command(flatten)]
    base: Base,
    #[command(flatten)]
    from: Which,
    /// Number of examples.
    #[arg(short, long = "number", default_value_t = 32, value_parser = clap::value_parser!(u16).range(1..=1000))]
    n: u16,
    /// Use samples of the model instead of data.
    #[arg(long)]
    samples: bool,
}

/// What was found.
#[derive(Default)]
struct Findings(Vec<(bool, String)>);

impl Findings {
    fn broken(&mut self, what: String) {
        self.0.push((true, what));
    }

    fn look(&mut self, what: String) {
        self.0.push((false, what));
    }

    /// Something that is broken from `wrong` on and unusual from `odd` on.
    fn grade(&mut self, value: f64, odd: f64, wrong: f64, what: impl Fn() -> String) {
        if value.is_nan() || value >= wrong {
            self.broken(what());
        } else if value >= odd {
            self.look(what());
        }
    }
}

/// Examines saved weights.
///
/// # Errors
/// When the weights or the data cannot be read, and when something is broken.
pub fn run(args: &DoctorArgs) -> Result<()> {
    let s = Session::load(&args.base, PathBuf::new(), "doctor")?;
    let n = usize::from(args.n);
    let (report, found) = pooled(|| {
        let (x, cond, on) = if args.samples {
            let cond = s.labels(n)?;
            (
                s.model.sample(n, 0.7, args.base.seed, cond.as_ref())?,
                cond,
                "samples at temperature 0.7".to_owned(),
            )
        } else {
            let part = s
                .part(&args.from)
                .context("there are no data to examine on, --samples takes the model's own")?;
            s.fits(&part.split, &part.name)?;
            ensure!(!part.split.is_empty(), "`{}` has no {} examples", part.name, args.from.split.name());
            let (x, cond) = s.dequantise(&part.split.take(n))?;
            (x, cond, format!("{} {}", part.name, args.from.split.name()))
        };
        examine(&s, &x, cond.as_ref(), on)
    })?;
    let broken: Vec<&String> = found.0.iter().filter(|f| f.0).map(|f| &f.1).collect();
    let looks = found.0.len() - broken.len();
    let verdict = match (broken.len(), looks) {
        (0, 0) => "healthy",
        (0, _) => "usable, with something to look at",
        _ => "broken",
    };
    let mut report = report;
    report["verdict"] = verdict.into();
    report["broken"] = json!(broken);
    report["look"] = json!(found.0.iter().filter(|f| !f.0).map(|f| &f.1).collect::<Vec<_>>());
    if args.base.json {
        output::line(&report)?;
    } else {
        output::raw(&text(&report, &found))?;
    }
    if let Some(first) = broken.first() {
        let more = if broken.len() > 1 { format!(" (and {} more)", broken.len() - 1) } else { String::new() };
        bail!(
            "the weights of {} are broken: {first}{more}; take an earlier checkpoint, or train again with a lower `train.lr` or \
             `train.clip_norm`",
            args.base.weights
        );
    }
    Ok(())
}

/// Measures, and says what is unusual.
fn examine(s: &Session, x: &Tensor, cond: Option<&Tensor>, on: String) -> Result<(Value, Findings)> {
    let model = &s.model;
    let mut found = Findings::default();
    let mut report = json!({
        "command": "doctor", "weights": s.base.weights.to_string(), "on": on, "examples": x.dim(0)?,
        "parameters": model.params().count(),
    });
    if let Some(name) = model.params().find_non_finite()? {
        found.broken(format!("tensor `{name}` holds a NaN or an infinity"));
    }
    if !flows::params::is_finite(x)? {
        found.broken(format!("{on} are not finite: the inverse overflows"));
        return Ok((report, found));
    }
    let pixels = model.config().shape().len() == 3;

    // Likelihood, and where it first fails.
    let bits = doubles(&model.bits_per_dim(x, cond)?)?;
    report["bits_per_dim"] = json!(mean(&bits));
    if bits.iter().any(|b| !b.is_finite()) {
        let layer =
            model.find_non_finite(x, Ctx::eval().with_context(cond))?.unwrap_or_else(|| "the sum".to_owned());
        found.broken(format!("log-likelihoods are not finite, first in layer `{layer}`"));
        return Ok((report, found));
    }

    let uniform = f64::from(model.config().bits());
    if pixels && mean(&bits) > uniform {
        let cost = brief(mean(&bits));
        found.look(format!(
            "an image costs {cost} bits/dim, where uniform noise would cost {uniform}: is it of these data?"
        ));
    }

    // There and back.
    let r = latents::reconstruct(model, x, cond)?;
    let error = largest(&doubles(&r.error)?);
    let by_level = largest_by_level(&r.level_error)?;
    report["reconstruction"] = json!({ "max_error": error, "max_error_by_level": by_level });
    let (unit, spread) = if pixels {
        ("grey levels", 1.)
    } else {
        // Vectors have no unit of their own: their root mean square is it.
        ("root mean squares of the data", doubles(&x.sqr()?.mean_all()?)?[0].sqrt().max(f64::MIN_POSITIVE))
    };
    let relative = error / spread;
    let scale = if pixels { 1. } else { 1. / 100. };
    found.grade(relative, INEXACT * scale, WRONG * scale, || {
        format!(
            "an example comes back off by {} {unit}, where {} would be rounding",
            brief(relative),
            brief(INEXACT * scale)
        )
    });
    // Samples must be images, too.
    let count = x.dim(0)?;
    let drawn = model.sample(count, 1., s.base.seed, s.labels(count)?.as_ref())?;
    let lost = crate::session::finite_rows(&drawn)?.into_iter().filter(|seen| !seen).count();
    report["samples_not_finite"] = lost.into();
    // One in many says how far the inverse reaches; most of them, that there is none.
    found.grade(lost as f64 / count as f64, f64::MIN_POSITIVE, 0.5, || {
        format!("{lost} of {count} samples at temperature 1 are not finite, for the inverse overflows: lower temperatures are safer")
    });

    // Layer by layer.
    let steps = latents::trace(model, x, cond)?;
    let mut scales = serde_json::Map::new();
    let mut conditions = serde_json::Map::new();
    let mut norms = serde_json::Map::new();
    let mut normalises = false;
    for step in &steps {
        match &step.stats {
            LayerStats::Fixed => {}
            LayerStats::Matrix(w) => {
                let (w, n) = linalg::to_host(w)?;
                let condition = linalg::singular_values(&w, n).map_or(f64::NAN, |v| v[0] / v[n - 1]);
                conditions.insert(step.path.clone(), json!(condition));
                found.grade(condition, ILL, SINGULAR, || {
                    format!("the 1x1 convolution `{}` has condition number {}", step.path, brief(condition))
                });
            }
            LayerStats::Channels(l) | LayerStats::Statistics(l) | LayerStats::Elements(l) => {
                normalises |= matches!(step.stats, LayerStats::Statistics(_));
                let values = doubles(l)?;
                let (low, high) =
                    (-largest(&values.iter().map(|v| -v).collect::<Vec<_>>()), largest(&values));
                scales.insert(step.path.clone(), json!({ "min": low, "max": high }));
                found.grade(low.abs().max(high.abs()), STEEP, f64::INFINITY, || {
                    format!("`{}` has log-scales from {} to {}", step.path, brief(low), brief(high))
                });
            }
        }
        if step.path.ends_with("actnorm") {
            // What actnorm is for: channels of about unit spread.
            let rows = step.output.transpose(0, 1)?.flatten_from(1)?;
            let sd = doubles(&rows.broadcast_sub(&rows.mean_keepdim(1)?)?.sqr()?.mean(1)?.sqrt()?)?;
            let dead = sd.iter().filter(|v| **v < 1e-3).count();
            let exploding = sd.iter().filter(|v| **v > 1e3).count();
            let least = -largest(&sd.iter().map(|v| -v).collect::<Vec<_>>());
            norms.insert(
                step.path.clone(),
                json!({ "channels": sd.len(), "dead": dead, "exploding": exploding, "min_sd": least, "max_sd": largest(&sd) }),
            );
            if dead > 0 && x.dim(0)? > 1 {
                found.look(format!("{dead} of {} channels after `{}` are constant", sd.len(), step.path));
            }
            if exploding > 0 {
                found.look(format!(
                    "{exploding} of {} channels after `{}` spread beyond 1000",
                    sd.len(),
                    step.path
                ));
            }
        }
    }
    // Actnorms inside networks are seen by their parameters alone.
    let limit = -ActNorm::FLOOR.ln() / 3.;
    for (name, p) in model.params().all() {
        if name.contains(".norm") && name.ends_with(".logs") {
            let off = largest(&doubles(&p.value().abs()?)?);
            found.grade(off, 0.99 * limit, f64::INFINITY, || {
                format!(
                    "`{name}` scales a channel by exp({}): it was constant when it was initialised",
                    brief(3. * off)
                )
            });
        }
    }
    report["log_scales"] = Value::Object(scales);
    report["conditions"] = Value::Object(conditions);
    report["actnorms"] = Value::Object(norms);

    // Batch norm: the batch's own statistics against the running ones.
    if normalises && x.dim(0)? > 1 {
        let ctx = Ctx { mode: Mode::Replay, context: cond.into(), grad: false };
        let train = model.terms(x, ctx)?.log_prob()?;
        let per_dim = -1. / (model.dims() as f64 * std::f64::consts::LN_2);
        let train = mean(&doubles(&(train * per_dim)?)?);
        let gap = mean(&bits) - train;
        report["batch_norm"] = json!({ "batch_bits_per_dim": train, "gap": gap });
        found.grade(gap.abs(), GAP, f64::INFINITY, || {
            format!("with running statistics an example costs {gap:+.3} bits/dim over the batch's own")
        });
    }
    Ok((report, found))
}

/// The smallest and largest of one number of each entry, with their names.
fn extremes(entries: &Value, of: impl Fn(&Value) -> (f64, f64)) -> Option<[(String, f64); 2]> {
    let all: BTreeMap<&String, (f64, f64)> = entries.as_object()?.iter().map(|(k, v)| (k, of(v))).collect();
    let low = all.iter().min_by(|a, b| a.1.0.total_cmp(&b.1.0))?;
    let high = all.iter().max_by(|a, b| a.1.1.total_cmp(&b.1.1))?;
    Some([((*low.0).clone(), low.1.0), ((*high.0).clone(), high.1.1)])
}

/// The report for people.
fn text(report: &Value, found: &Findings) -> String {
    let number = |v: &Value| v.as_f64().unwrap_or(f64::NAN);
    let mut lines = vec![format!(
        "{} on {} {}",
        report["weights"].as_str().unwrap_or_default(),
        report["examples"],
        report["on"].as_str().unwrap_or_default()
    )];
    if let Some(bits) = report["bits_per_dim"].as_f64() {
        lines.push(format!("likelihood       {bits:.4} bits/dim, all finite"));
    }
    if let Some(r) = report.get("reconstruction") {
        let levels: Vec<String> =
            r["max_error_by_level"].as_array().into_iter().flatten().map(|v| brief(number(v))).collect();
        lines.push(format!(
            "reconstruction   off by at most {}; latents by level {}",
            brief(number(&r["max_error"])),
            levels.join(", ")
        ));
    }
    if let Some([low, high]) = extremes(&report["log_scales"], |v| (number(&v["min"]), number(&v["max"]))) {
        lines.push(format!(
            "log-scales       from {} in `{}` to {} in `{}`",
            brief(low.1),
            low.0,
            brief(high.1),
            high.0
        ));
    }
    if let Some([_, worst]) = extremes(&report["conditions"], |v| (number(v), number(v))) {
        lines.push(format!("1x1 convolutions condition number at most {} (`{}`)", brief(worst.1), worst.0));
    }
    if let Some([low, high]) = extremes(&report["actnorms"], |v| (number(&v["min_sd"]), number(&v["max_sd"])))
    {
        lines.push(format!(
            "actnorms         channels spread from {} after `{}` to {} after `{}`",
            brief(low.1),
            low.0,
            brief(high.1),
            high.0
        ));
    }
    if let Some(b) = report.get("batch_norm") {
        lines.push(format!(
            "batch norm       {:+.4} bits/dim with running statistics over the batch's own",
            number(&b["gap"])
        ));
    }
    lines.push(String::new());
    lines.push(format!("verdict: {}", report["verdict"].as_str().unwrap_or_default()));
    lines.extend(
        found.0.iter().map(|(broken, what)| format!("  {}: {what}", if *broken { "broken" } else { "look" })),
    );
    lines.join("\n") + "\n"
}
