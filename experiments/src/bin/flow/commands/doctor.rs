//! `doctor`: saved weights examined from outside, with a verdict in words.
//!
//! Every finding compares a measured number with a bound that says why it is one. `broken` is what makes results wrong:
//! values that are not finite, an inverse that does not come back. `look` is what is unusual and may be meant.

use super::pictures::listed;
use super::reconstruct::largest_by_level;
use crate::context::Given;
use crate::output;
use crate::session::{Base, Session, Which, brief, doubles, finite_rows, largest, mean, pooled};
use anyhow::{Context, Result, bail, ensure};
use candle_core::Tensor;
use clap::Args;
use flows::bijections::ActNorm;
use flows::latents::{self, LayerStats, TraceEntry};
use flows::ops::linalg;
use flows::{Ctx, Mode};
use serde_json::{Value, json};
use std::collections::BTreeMap;
use std::path::PathBuf;

/// An image that is off by half a grey level is another image.
const WRONG: f64 = 0.5;
/// Rounding in f32 alone leaves errors some hundred times smaller.
const INEXACT: f64 = 0.02;
/// Condition number from which an inverse in f32 loses more than half of its seven digits.
const ILL: f64 = 1e4;
/// Condition number from which an inverse in f32 loses all of its digits.
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

/// An examination: what is looked at, and what was measured and found.
struct Exam<'a> {
    s: &'a Session<'a>,
    x: Tensor,
    given: Given,
    /// What the examples are.
    on: String,
    report: Value,
    /// The report for people.
    lines: Vec<String>,
    /// Whether it is broken, and the finding.
    found: Vec<(bool, String)>,
}

/// What was measured of one layer, and the smallest and largest number of it.
type Measured = (Value, f64, f64);

/// Examines saved weights.
///
/// # Errors
/// When the weights or the data cannot be read, and when something is broken.
pub fn run(args: &DoctorArgs) -> Result<()> {
    let s = Session::load(&args.base, PathBuf::new(), "doctor")?;
    let Exam { mut report, mut lines, found, .. } = pooled(|| {
        let mut exam = Exam::new(&s, args)?;
        exam.examine()?;
        Ok(exam)
    })?;
    let of = |kind: bool| found.iter().filter(|f| f.0 == kind).map(|f| f.1.as_str()).collect::<Vec<_>>();
    let (broken, look) = (of(true), of(false));
    let verdict = match (broken.len(), look.len()) {
        (0, 0) => "healthy",
        (0, _) => "usable, with something to look at",
        _ => "broken",
    };
    if args.base.json {
        report["verdict"] = verdict.into();
        report["broken"] = json!(broken);
        report["look"] = json!(look);
        output::line(&report)?;
    } else {
        lines.push(format!("\nverdict: {verdict}"));
        let kind = |broken: bool| if broken { "broken" } else { "look" };
        lines.extend(found.iter().map(|(broken, what)| format!("  {}: {what}", kind(*broken))));
        output::line(lines.join("\n"))?;
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

impl<'a> Exam<'a> {
    /// Of the examples that the arguments name.
    fn new(s: &'a Session<'a>, args: &DoctorArgs) -> Result<Self> {
        let n = usize::from(args.n);
        let (x, given, on) = if args.samples {
            let given = Given::new(&s.model, n, args.base.class, None)?;
            let x = s.model.sample(n, 0.7, args.base.seed, given.context())?;
            (x, given, "samples at temperature 0.7".to_owned())
        } else {
            let part = s
                .part(&args.from)
                .context("there are no data to examine on, --samples takes the model's own")?;
            s.fits(&part.split, &part.name)?;
            ensure!(!part.split.is_empty(), "`{}` has no {} examples", part.name, part.part.name());
            let split = part.split.take(n);
            let places: Vec<u64> = (0..split.len() as u64).collect();
            let batch = s.batch(split, &places)?;
            let x = batch.x.to_dtype(s.model.params().dtype())?;
            (x, Given::from(batch.context()), format!("{} {}", part.name, part.part.name()))
        };
        let (weights, examples) = (s.base.weights.to_string(), x.dim(0)?);
        let lines = vec![format!("{weights} on {examples} {on}")];
        let report = json!({
            "command": "doctor", "weights": weights, "on": on, "examples": examples,
            "parameters": s.model.params().count(),
        });
        Ok(Self { s, x, given, on, report, lines, found: vec![] })
    }

    /// Notes what is broken from `wrong` on and unusual from `odd` on.
    fn grade(&mut self, value: f64, odd: f64, wrong: f64, what: impl FnOnce() -> String) {
        let broken = value.is_nan() || value >= wrong;
        if broken || value >= odd {
            self.found.push((broken, what()));
        }
    }

    /// Measures, and says what is unusual.
    fn examine(&mut self) -> Result<()> {
        let params = self.s.model.params();
        if let Some(name) = params.find_non_finite()? {
            self.found.push((true, format!("tensor `{name}` holds a NaN or an infinity")));
        }
        if !flows::params::is_finite(&self.x)? {
            self.found.push((true, format!("{} are not finite: the inverse overflows", self.on)));
            return Ok(());
        }
        let Some(bits) = self.likelihood()? else { return Ok(()) };
        self.inverse()?;
        let normalises = self.layers()?;
        if normalises && self.x.dim(0)? > 1 {
            self.batch_norm(bits)?;
        }
        Ok(())
    }

    /// Bits/dim of the examples, or none if they are not finite.
    fn likelihood(&mut self) -> Result<Option<f64>> {
        let (model, cond) = (&self.s.model, self.given.context());
        let bits = doubles(&model.bits_per_dim(&self.x, cond)?)?;
        let all = mean(&bits);
        self.report["bits_per_dim"] = json!(all);
        if bits.iter().any(|b| !b.is_finite()) {
            let layer = model.find_non_finite(&self.x, Ctx::eval().with_context(cond))?;
            let layer = layer.unwrap_or_else(|| "the sum".to_owned());
            self.found.push((true, format!("log-likelihoods are not finite, first in layer `{layer}`")));
            return Ok(None);
        }
        self.lines.push(format!("likelihood       {all:.4} bits/dim, all finite"));
        let uniform = f64::from(model.config().bits());
        if model.config().shape().len() == 3 && all > uniform {
            let (all, noise) = (brief(all), format!("uniform noise would cost {uniform}"));
            let what = format!("an image costs {all} bits/dim, where {noise}: is it of these data?");
            self.found.push((false, what));
        }
        Ok(Some(all))
    }

    /// How exactly examples come back from their latents, and whether samples are finite.
    fn inverse(&mut self) -> Result<()> {
        let (model, x) = (&self.s.model, &self.x);
        let r = latents::reconstruct(model, x, self.given.context())?;
        let error = largest(&doubles(&r.error)?);
        let by_level = largest_by_level(&r.level_error)?;
        self.report["reconstruction"] = json!({ "max_error": error, "max_error_by_level": by_level });
        self.lines.push(format!(
            "reconstruction   off by at most {}; latents by level {}",
            brief(error),
            listed(&by_level)
        ));
        let (unit, spread, scale) = if model.config().shape().len() == 3 {
            ("grey levels", 1., 1.)
        } else {
            // Vectors have no unit of their own: their root mean square is it.
            let spread = doubles(&x.sqr()?.mean_all()?)?[0].sqrt().max(f64::MIN_POSITIVE);
            ("root mean squares of the data", spread, 1. / 100.)
        };
        let (off, rounding) = (error / spread, INEXACT * scale);
        // Samples must be images, too.
        let count = x.dim(0)?;
        let given = self.given.turns(count)?;
        let drawn = model.sample(count, 1., self.s.base.seed, given.context())?;
        let lost = finite_rows(&drawn)?.into_iter().filter(|seen| !seen).count();
        self.report["samples_not_finite"] = lost.into();
        self.grade(off, rounding, WRONG * scale, || {
            let (off, rounding) = (brief(off), brief(rounding));
            format!("an example comes back off by {off} {unit}, where {rounding} would be rounding")
        });
        // A few non-finite samples are unusual; if most are, the inverse is broken.
        self.grade(lost as f64 / count as f64, f64::MIN_POSITIVE, 0.5, || {
            format!("{lost} of {count} samples at temperature 1 are not finite, for the inverse overflows: lower temperatures are safer")
        });
        Ok(())
    }

    /// Goes through the layers, and says whether one normalises a batch by its statistics.
    fn layers(&mut self) -> Result<bool> {
        let steps = latents::trace(&self.s.model, &self.x, self.given.context())?;
        let (mut scales, mut conditions, mut norms) = (BTreeMap::new(), BTreeMap::new(), BTreeMap::new());
        for step in &steps {
            let path = step.path.as_str();
            match &step.stats {
                LayerStats::Fixed => {}
                LayerStats::Matrix(w) => {
                    let (w, n) = linalg::to_host(w)?;
                    let condition = linalg::singular_values(&w, n).map_or(f64::NAN, |v| v[0] / v[n - 1]);
                    conditions.insert(path, (json!(condition), condition, condition));
                    self.grade(condition, ILL, SINGULAR, || {
                        format!("the 1x1 convolution `{path}` has condition number {}", brief(condition))
                    });
                }
                LayerStats::Channels(l) | LayerStats::Statistics(l) | LayerStats::Elements(l) => {
                    let values = doubles(l)?;
                    let (low, high) = (smallest(&values), largest(&values));
                    scales.insert(path, (json!({ "min": low, "max": high }), low, high));
                    self.grade(low.abs().max(high.abs()), STEEP, f64::INFINITY, || {
                        format!("`{path}` has log-scales from {} to {}", brief(low), brief(high))
                    });
                }
            }
            if path.ends_with("actnorm") {
                norms.insert(path, self.actnorm(step)?);
            }
        }
        self.networks()?;
        self.tell("log_scales", scales, |[(a, low), (b, high)]| {
            format!("log-scales       from {low} in `{a}` to {high} in `{b}`")
        });
        self.tell("conditions", conditions, |[_, (path, worst)]| {
            format!("1x1 convolutions condition number at most {worst} (`{path}`)")
        });
        self.tell("actnorms", norms, |[(a, low), (b, high)]| {
            format!("actnorms         channels spread from {low} after `{a}` to {high} after `{b}`")
        });
        Ok(steps.iter().any(|step| matches!(step.stats, LayerStats::Statistics(_))))
    }

    /// Reports what was measured of layers, by their paths, with a line on the smallest and the largest.
    fn tell(
        &mut self,
        key: &str,
        entries: BTreeMap<&str, Measured>,
        line: impl Fn([(&str, String); 2]) -> String,
    ) {
        let low = entries.iter().min_by(|a, b| a.1.1.total_cmp(&b.1.1));
        let high = entries.iter().max_by(|a, b| a.1.2.total_cmp(&b.1.2));
        self.lines.extend(low.zip(high).map(|(l, h)| line([(l.0, brief(l.1.1)), (h.0, brief(h.1.2))])));
        let entries = entries.into_iter().map(|(path, (value, ..))| (path.to_owned(), value));
        self.report[key] = Value::Object(entries.collect());
    }

    /// The standard deviations of channels after an actnorm, which is there to make them about one.
    fn actnorm(&mut self, step: &TraceEntry) -> Result<Measured> {
        let rows = step.output.transpose(0, 1)?.flatten_from(1)?;
        let sd = doubles(&rows.broadcast_sub(&rows.mean_keepdim(1)?)?.sqr()?.mean(1)?.sqrt()?)?;
        let dead = sd.iter().filter(|v| **v < 1e-3).count();
        let exploding = sd.iter().filter(|v| **v > 1e3).count();
        let (low, high, n, path) = (smallest(&sd), largest(&sd), sd.len(), &step.path);
        if dead > 0 && self.x.dim(0)? > 1 {
            self.found.push((false, format!("{dead} of {n} channels after `{path}` are constant")));
        }
        if exploding > 0 {
            self.found
                .push((false, format!("{exploding} of {n} channels after `{path}` spread beyond 1000")));
        }
        let figures =
            json!({ "channels": n, "dead": dead, "exploding": exploding, "min_sd": low, "max_sd": high });
        Ok((figures, low, high))
    }

    /// Looks at the actnorms inside networks, by their parameters alone.
    fn networks(&mut self) -> Result<()> {
        let limit = -ActNorm::FLOOR.ln() / 3.;
        for (name, p) in self.s.model.params().all() {
            if name.contains(".norm") && name.ends_with(".logs") {
                // A constant channel has the largest scale; a small one belongs to a channel of large variance.
                let off = largest(&doubles(p.value())?);
                self.grade(off, 0.99 * limit, f64::INFINITY, || {
                    let off = brief(3. * off);
                    format!(
                        "`{name}` scales a channel by exp({off}): it was constant when it was initialised"
                    )
                });
            }
        }
        Ok(())
    }

    /// Compares the batch's own statistics with the running ones.
    fn batch_norm(&mut self, bits_per_dim: f64) -> Result<()> {
        let model = &self.s.model;
        let ctx = Ctx { mode: Mode::Replay, context: self.given.context(), grad: false };
        let train = model.terms(&self.x, ctx)?.log_prob()?;
        let per_dim = -1. / (model.dims() as f64 * std::f64::consts::LN_2);
        let train = mean(&doubles(&(train * per_dim)?)?);
        let gap = bits_per_dim - train;
        self.report["batch_norm"] = json!({ "batch_bits_per_dim": train, "gap": gap });
        self.lines.push(format!(
            "batch norm       {gap:+.4} bits/dim with running statistics over the batch's own"
        ));
        self.grade(gap.abs(), GAP, f64::INFINITY, || {
            format!("with running statistics an example costs {gap:+.3} bits/dim over the batch's own")
        });
        Ok(())
    }
}

/// The smallest of some values; a NaN among them is the smallest.
fn smallest(values: &[f64]) -> f64 {
    -largest(&values.iter().map(|v| -v).collect::<Vec<_>>())
}
