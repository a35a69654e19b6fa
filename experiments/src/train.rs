//! The training loop.
//!
//! ```text
//! g = d/dp [ -mean log p(x) / (D ln 2) ] + 2 l2 p,     g <- g min(1, clip / |g|),     p <- rule(p, g, rate(update))
//! ```
//!
//! A run is a function of its recipe and its data: whatever an update needs is either in the checkpoint or a function of
//! the seed and the update's number. So a run that is killed at any moment and called again ends with the same bits as
//! one that was left alone. The order of writing keeps that true for the saved model, too: first the checkpoint, which
//! says that this update's weights are the model, then the model; a run that was killed between the two finds its own
//! note and saves the model again.

use crate::batches::{Augment, Batch, Examples, Feed, Host};
use crate::checkpoint::{self, CHECKPOINT, Measured, Metrics, Position, Settings, Trained, Window};
use crate::data::{Dataset, Split};
use crate::evaluate::{EvalOptions, evaluate_until};
use crate::recipe::{LossUnit, Recipe, Schedule, Train};
use anyhow::{Context, Result, anyhow, bail, ensure};
use candle_core::{DType, Device};
use flows::ops::device::is_gpu;
use flows::ops::precision::{self, Precision};
use flows::optim::{self, Ema, Grads, Optimizer};
use flows::params::{is_finite, rng_for};
use flows::{Ctx, Drift, Memory, Mode, Model, SaveOptions};
use serde::Serialize;
use std::f64::consts::LN_2;
use std::path::Path;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc::Receiver;
use std::time::Instant;

mod gpu;

/// Training images that drift is measured on.
const PROBED: usize = 16;

/// Validation images that the reconstruction error is measured on.
const RECONSTRUCTED: usize = 16;

/// Whoever shows a run.
pub trait Progress: Send {
    /// The run starts at update `from`; `total` updates are planned, if the recipe limits them.
    fn begin(&mut self, from: u64, total: Option<u64>);
    /// An update was made; `bits_per_dim` is the mean since the last line of the log.
    fn step(&mut self, update: u64, bits_per_dim: f64, images_per_second: f64, seconds_left: Option<f64>);
    /// A validation was made; `best` is the best so far.
    fn validation(&mut self, update: u64, bits_per_dim: f64, best: f64);
    /// Something to tell.
    fn message(&mut self, text: &str);
}

/// Why a run ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum StoppedBy {
    /// `train.updates`.
    Updates,
    /// `train.epochs`.
    Epochs,
    /// `train.minutes`: the number of updates depends on the machine's speed.
    Minutes,
    /// `train.patience`.
    Patience,
    /// Ctrl-C; the same command goes on.
    Interrupt,
}

/// How a run ended.
#[derive(Clone, Debug, Serialize)]
pub struct Outcome {
    /// Updates made.
    pub updates: u64,
    /// Images seen.
    pub images_seen: u64,
    /// Images seen over images there are.
    pub epochs: f64,
    /// Images a second, over all updates, without validation.
    pub images_per_second: f64,
    /// Seconds of the whole run, over all resumes.
    pub wall_seconds: f64,
    /// The update of the best validation and its bits/dim; the saved model is that update's.
    pub best_validation: Option<(u64, f64)>,
    /// Mean training bits/dim over the last window of the log.
    pub train_bits_per_dim: Option<f64>,
    /// Why it ended.
    pub stopped_by: StoppedBy,
    /// Whether it ended; an interrupted run did not.
    pub finished: bool,
}

/// A line of metrics.jsonl.
#[derive(Default, Serialize)]
struct Line {
    update: u64,
    epoch: f64,
    images_seen: u64,
    seconds: f64,
    #[serde(flatten)]
    training: Option<TrainingLine>,
    #[serde(flatten)]
    validation: Option<ValidationLine>,
    #[serde(flatten)]
    drift: Option<DriftLine>,
}

/// How far rebuilt inputs are from the true ones.
#[derive(Serialize)]
struct DriftLine {
    /// The largest, of the layers that are rebuilt.
    drift: f64,
    /// How many layers are stored for drifting further.
    stored_layers: usize,
}

/// Means over the updates since the last such line.
#[derive(Serialize)]
struct TrainingLine {
    train_bits_per_dim: f64,
    learning_rate: f64,
    grad_norm: f64,
    clip: f64,
    images_per_second: f64,
}

#[derive(Serialize)]
struct ValidationLine {
    #[serde(skip_serializing_if = "Option::is_none")]
    validation_bits_per_dim: Option<f64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    best_validation_bits_per_dim: Option<f64>,
    /// max |decode(encode(x)) - x| in pixel values; absent when it is not finite.
    #[serde(skip_serializing_if = "Option::is_none")]
    reconstruction_error: Option<f64>,
}

/// The learning rate of update `update`, counted from 0, of `total`.
fn rate(t: &Train, update: u64, total: Option<u64>) -> f64 {
    let u = update as f64;
    let lr = match t.schedule {
        Schedule::Constant => t.lr,
        Schedule::Divide { factor, min } => (t.lr / factor.powf(u)).max(min),
        Schedule::Cosine { end } => {
            let last = total.map_or(1., |n| n.saturating_sub(1).max(1) as f64);
            let share = 0.5 * (1. + (std::f64::consts::PI * (u / last).min(1.)).cos());
            t.lr * (end + (1. - end) * share)
        }
    };
    // The batch at hand counts, so that the first update moves.
    let seen = (update + 1) as f64 * t.batch as f64;
    if t.warmup_images == 0 { lr } else { lr * (seen / t.warmup_images as f64).min(1.) }
}

/// The planned number of updates, and which setting it comes from.
fn planned(t: &Train, images: usize) -> Option<(u64, StoppedBy)> {
    let epochs = t.epochs.map(|e| ((e * images as f64 / t.batch as f64).ceil() as u64, StoppedBy::Epochs));
    let updates = t.updates.map(|u| (u, StoppedBy::Updates));
    [updates, epochs].into_iter().flatten().min_by_key(|(n, _)| *n)
}

/// Errors where `device` cannot train in the recipe's precision.
pub fn check_precision(t: &Train, device: &Device) -> Result<()> {
    ensure!(
        t.precision == Precision::Full || is_gpu(device),
        "`train.precision` = \"{}\" is for GPUs: set it to \"full\", or give --device cuda:0",
        t.precision
    );
    Ok(())
}

fn check(t: &Train, data: &Dataset, device: &Device) -> Result<()> {
    check_precision(t, device)?;
    for (key, value) in [
        ("batch", t.batch as u64),
        ("validate_every", t.validate_every),
        ("checkpoint_every", t.checkpoint_every),
        ("log_every", t.log_every),
        ("init_images", t.init_images as u64),
        ("probe_every", t.probe_every),
    ] {
        ensure!(value > 0, "`train.{key}` must be at least 1");
    }
    ensure!(!data.train.is_empty(), "the training set is empty: lower `data.validation`");
    let limited = t.updates.is_some() || t.epochs.is_some();
    ensure!(limited || t.minutes.is_some(), "set one of `train.updates`, `train.epochs`, `train.minutes`");
    ensure!(
        limited || !matches!(t.schedule, Schedule::Cosine { .. }),
        "`train.schedule` cosine ends at the last update: set `train.updates` or `train.epochs`"
    );
    ensure!(
        data.train.is_pixels() || !(t.hflip || t.shift > 0.),
        "`train.hflip` and `train.shift` vary images, and `{}` has vectors: drop them",
        data.name
    );
    Ok(())
}

/// Trains `recipe.model` on `data.train`, validates on `data.valid` where there is one, and leaves the best model (with
/// no validation: the last) in `out`, beside the log and the checkpoint, from which a second call goes on.
///
/// `stop` ends it at the next update: the checkpoint is saved and the outcome is not `finished`.
///
/// # Errors
/// When a setting is impossible, the checkpoint is damaged or of another recipe, or a loss, a gradient or a validation is
/// not finite: that error names the layer and the update and says which checkpoint is kept.
pub fn train(
    recipe: &Recipe,
    data: &Dataset,
    device: &Device,
    out: &Path,
    progress: &mut dyn Progress,
    stop: &AtomicBool,
) -> Result<Outcome> {
    // On a thread of rayon's pool: from outside, each of the hundreds of parallel ops of an update would wake a worker and
    // sleep until it is done, which for small tensors takes longer than the op.
    let train = || rayon::scope(|_| train_in_pool(recipe, data, device, out, progress, stop));
    precision::within(recipe.train.precision, train)
}

fn train_in_pool(
    recipe: &Recipe,
    data: &Dataset,
    device: &Device,
    out: &Path,
    progress: &mut dyn Progress,
    stop: &AtomicBool,
) -> Result<Outcome> {
    let clock = Instant::now();
    let t = &recipe.train;
    check(t, data, device)?;
    std::fs::create_dir_all(out).with_context(|| format!("cannot make the folder {}", out.display()))?;
    checkpoint::remove_leftovers(out)?;
    let model = Model::new(recipe.model.clone(), t.seed, DType::F32, device)?;
    let feed = Feed {
        examples: Examples::new(&data.train, model.config())?,
        batch: t.batch,
        seed: t.seed,
        augment: Augment { hflip: t.hflip, shift: t.shift },
    };
    let mut run = Run {
        recipe,
        feed,
        valid: data.valid.as_ref().filter(|v| !v.is_empty()),
        device,
        out,
        progress,
        stop,
        plan: planned(t, feed.examples.len()),
        settings: Settings::new(recipe, data)?,
        optimizer: Optimizer::new(t.optimizer, model.params())?,
        ema: None,
        metrics: None,
        checkpointed: None,
        session: Session { clock, wall_before: 0., first_update: 0 },
        position: Position::default(),
        model,
    };
    run.begin()?;
    if let Some(gpu) = gpu::Gpu::start(&run)? {
        return run.go(Source::Gpu(Box::new(gpu)));
    }
    // The thread that prepares batches ends when `batches` is dropped, which is before the scope waits for it.
    std::thread::scope(|scope| {
        let batches = feed.start(run.position.update, scope);
        run.go(Source::Thread(&batches))
    })
}

/// Where updates come from.
enum Source<'a> {
    /// Batches that a thread prepares.
    Thread(&'a Receiver<Host>),
    /// The GPU makes them itself.
    Gpu(Box<gpu::Gpu>),
}

/// This process's share of a run.
struct Session {
    clock: Instant,
    wall_before: f64,
    first_update: u64,
}

struct Run<'a> {
    recipe: &'a Recipe,
    feed: Feed<'a>,
    valid: Option<&'a Split>,
    device: &'a Device,
    out: &'a Path,
    progress: &'a mut dyn Progress,
    stop: &'a AtomicBool,
    plan: Option<(u64, StoppedBy)>,
    settings: Settings,
    model: Model,
    optimizer: Optimizer,
    ema: Option<Ema>,
    metrics: Option<Metrics>,
    /// The update of the checkpoint on the disk.
    checkpointed: Option<u64>,
    session: Session,
    position: Position,
}

impl Run<'_> {
    /// From the checkpoint, or from the data-dependent initialisation.
    fn begin(&mut self) -> Result<()> {
        let t = &self.recipe.train;
        let average = |model: &Model| t.ema.map(|decay| Ema::new(decay, model.params())).transpose();
        self.ema = average(&self.model)?;
        let mut trained =
            Trained { params: self.model.params(), optimizer: &mut self.optimizer, ema: self.ema.as_mut() };
        if let Some(position) = checkpoint::load(self.out, &self.settings, &mut trained)? {
            self.progress.message(&format!("resumed after update {}", position.update));
            self.checkpointed = Some(position.update);
            self.position = position;
            if self.position.saved == Some(self.position.update) {
                self.save_model()?;
            }
        } else {
            let batch = self.feed.examples.batch(self.feed.initial(t.init_images), self.device)?;
            self.model.init(&batch.x, batch.cond()).context("data-dependent initialisation failed")?;
            if let Some(name) = self.model.params().find_non_finite()? {
                bail!(
                    "after data-dependent initialisation `{name}` is not finite: raise `train.init_images`"
                );
            }
            // Averages start at the initialised values, not at those before.
            self.ema = average(&self.model)?;
        }
        self.model.store(&self.position.stored);
        self.session.wall_before = self.position.wall_seconds;
        self.session.first_update = self.position.update;
        self.metrics = Some(Metrics::open(self.out, self.position.update)?);
        self.progress.begin(self.position.update, self.plan.map(|(n, _)| n));
        Ok(())
    }

    fn go(&mut self, mut source: Source) -> Result<Outcome> {
        let t = &self.recipe.train;
        loop {
            let update = self.position.update;
            let done = self.done();
            let regular = update > 0 && update.is_multiple_of(t.validate_every);
            // Asked once: what is read back for it and what is saved for it must be of the same mind.
            let stop = self.stop.load(Ordering::Relaxed);
            if let Source::Gpu(gpu) = &mut source
                && (regular || done.is_some() || stop || update.is_multiple_of(t.checkpoint_every))
            {
                self.read_back(gpu)?;
            }
            if (regular || done.is_some()) && self.position.validated != Some(update) {
                if !self.validate()? {
                    self.checkpoint()?;
                    return Ok(self.outcome(StoppedBy::Interrupt));
                }
                continue;
            }
            let regular = update > 0 && update.is_multiple_of(t.checkpoint_every);
            if (regular || stop || done.is_some()) && self.checkpointed != Some(update) {
                self.checkpoint()?;
            }
            if let Some(by) = done {
                return Ok(self.outcome(by));
            }
            if stop {
                return Ok(self.outcome(StoppedBy::Interrupt));
            }
            if t.memory == Memory::Recompute
                && update.is_multiple_of(t.probe_every)
                && self.position.probed != Some(update)
            {
                match (self.probe()?, &mut source) {
                    (true, Source::Gpu(gpu)) => gpu.record_again(),
                    _ => {}
                }
            }
            match &mut source {
                Source::Thread(batches) => {
                    let host = batches.recv();
                    self.step(host.map_err(|_| anyhow!("the thread that prepares batches ended early"))?)?;
                }
                Source::Gpu(gpu) => self.step_on_gpu(gpu)?,
            }
        }
    }

    /// Measures how far rebuilt inputs drift on a few training images, and stores the layers that drift too far; whether
    /// there are new ones. Once stored a layer stays so: it was over the bound with weights not far from those to come.
    fn probe(&mut self) -> Result<bool> {
        let batch = self.feed.examples.batch(self.feed.initial(PROBED), self.device)?;
        let drift = self.model.drift(&batch.x, Ctx::train().with_cond(batch.cond()), Drift::BOUND)?;
        let over: Vec<String> = drift.over().difference(&self.position.stored).cloned().collect();
        if self.position.probed.is_none() || !over.is_empty() {
            let stored = match over.len() {
                0 => "no layer has to be stored".to_string(),
                n => format!("{n} beyond {:.0e} will be stored: {}", Drift::BOUND, over.join(", ")),
            };
            let layers = drift.layers().len();
            self.progress.message(&format!(
                "rebuilt inputs of {layers} layers drift by up to {:.1e}; {stored}",
                drift.largest()
            ));
        }
        let newly_stored = !over.is_empty();
        self.position.stored.extend(over);
        self.position.probed = Some(self.position.update);
        self.model.store(&self.position.stored);
        let line = DriftLine { drift: drift.largest(), stored_layers: self.position.stored.len() };
        self.log(Line { drift: Some(line), ..Line::default() })?;
        Ok(newly_stored)
    }

    fn wall_seconds(&self) -> f64 {
        self.session.wall_before + self.session.clock.elapsed().as_secs_f64()
    }

    fn done(&self) -> Option<StoppedBy> {
        let t = &self.recipe.train;
        if let Some((_, by)) = self.plan.filter(|(n, _)| self.position.update >= *n) {
            return Some(by);
        }
        if t.patience.is_some_and(|p| self.position.worse >= p.max(1)) {
            return Some(StoppedBy::Patience);
        }
        t.minutes.filter(|m| self.wall_seconds() >= m * 60.).map(|_| StoppedBy::Minutes)
    }

    /// Bits/dim of a nat.
    fn to_bits(&self) -> f64 {
        1. / (self.model.dims() as f64 * LN_2)
    }

    /// What -log p(x) is multiplied by in the loss.
    fn loss_factor(&self) -> f64 {
        match self.recipe.train.loss {
            LossUnit::BitsPerDim => self.to_bits(),
            LossUnit::Nats => 1.,
        }
    }

    fn step(&mut self, host: Host) -> Result<()> {
        let start = Instant::now();
        let t = &self.recipe.train;
        let update = self.position.update;
        let batch = self.feed.examples.batch(host, self.device)?;
        let (to_bits, factor) = (self.to_bits(), self.loss_factor());
        let (mut measured, ctx) = (None, Ctx::train().with_cond(batch.cond()));
        let result = self.model.gradients(&batch.x, ctx, t.memory, |log_prob| {
            let mean = log_prob.mean_all()?;
            let bits = -to_bits * f64::from(mean.to_scalar::<f32>()?);
            measured = Some(bits);
            // Before the way back: its error would be about a layer, and not about the loss.
            if !bits.is_finite() {
                candle_core::bail!("the loss is not finite");
            }
            mean * -factor
        });
        let (bits, mut grads) = match (result, measured) {
            (Ok((_, grads)), Some(bits)) => (bits, grads),
            (Err(_), Some(bits)) if !bits.is_finite() => {
                return Err(self.not_finite("the loss", &batch, &Grads::new()));
            }
            (Err(e), _) => return Err(e.into()),
            (Ok(_), None) => unreachable!("a pass that succeeds has computed its loss"),
        };
        if t.l2 > 0. {
            optim::add_l2(&mut grads, self.model.params(), t.l2, has_l2)?;
        }
        let norm = optim::global_norm(&grads)?;
        if !norm.is_finite() {
            return Err(self.not_finite("the gradient", &batch, &grads));
        }
        let clip = t.clip_norm.map_or(1., |most| if norm > most { most / norm } else { 1. });
        let lr = rate(t, update, self.plan.map(|(n, _)| n));
        self.optimizer.step(&grads, lr, clip)?;
        if let Some(ema) = &mut self.ema {
            ema.update(self.model.params())?;
        }
        let seconds = start.elapsed().as_secs_f64();
        let position = &mut self.position;
        position.update += 1;
        position.train_seconds += seconds;
        let w = &mut position.window;
        w.updates += 1;
        w.bits += bits;
        w.grad_norm += norm;
        w.clip += clip;
        w.seconds += seconds;
        self.report(lr)
    }

    /// Shows the update that was just made, and logs the window when it is complete.
    fn report(&mut self, learning_rate: f64) -> Result<()> {
        let (update, w) = (self.position.update, self.position.window);
        let n = w.updates as f64;
        let images_per_second = n * self.recipe.train.batch as f64 / w.seconds;
        let left = self.seconds_left();
        self.progress.step(update, w.bits / n, images_per_second, left);
        if update.is_multiple_of(self.recipe.train.log_every) {
            let training = TrainingLine {
                train_bits_per_dim: w.bits / n,
                learning_rate,
                grad_norm: w.grad_norm / n,
                clip: w.clip / n,
                images_per_second,
            };
            self.log(Line { training: Some(training), ..Line::default() })?;
            self.position.last_window = Some(Measured { update, bits_per_dim: w.bits / n });
            self.position.window = Window::default();
        }
        Ok(())
    }

    /// By this session's pace, validation included.
    fn seconds_left(&self) -> Option<f64> {
        let made = (self.position.update - self.session.first_update) as f64;
        let pace = self.session.clock.elapsed().as_secs_f64() / made.max(1.);
        let updates = self.plan.map(|(n, _)| n.saturating_sub(self.position.update) as f64 * pace);
        let clock = self.recipe.train.minutes.map(|m| (m * 60. - self.wall_seconds()).max(0.));
        [updates, clock].into_iter().flatten().min_by(f64::total_cmp)
    }

    fn images_seen(&self) -> u64 {
        self.position.update * self.recipe.train.batch as u64
    }

    fn epochs(&self) -> f64 {
        self.images_seen() as f64 / self.feed.examples.len() as f64
    }

    fn log(&mut self, line: Line) -> Result<()> {
        let line = Line {
            update: self.position.update,
            epoch: self.epochs(),
            images_seen: self.images_seen(),
            seconds: self.wall_seconds(),
            ..line
        };
        self.metrics.as_mut().expect("opened in begin").write(&line)
    }

    /// Runs `f` on the model with the averaged weights in place, where there are any.
    fn averaged<T>(&mut self, f: impl FnOnce(&Self) -> Result<T>) -> Result<T> {
        let Some(mut ema) = self.ema.take() else { return f(self) };
        ema.swap(self.model.params())?;
        let result = f(self);
        ema.swap(self.model.params())?;
        self.ema = Some(ema);
        result
    }

    /// Validates, checkpoints, and saves the model if it is the best so far. `false`: interrupted, nothing changed.
    fn validate(&mut self) -> Result<bool> {
        let update = self.position.update;
        // What is compared with the best so far is what will be evaluated: full precision.
        let measured = precision::within(Precision::Full, || {
            self.averaged(|run| {
                let bits = match run.valid {
                    None => None,
                    Some(split) => {
                        let go_on = |_, _| !run.stop.load(Ordering::Relaxed);
                        let options = EvalOptions {
                            batch: run.recipe.eval.batch,
                            draws: 1,
                            seed: run.recipe.train.seed,
                            limit: run.recipe.train.validate_images,
                            progress: Some(&go_on),
                        };
                        match evaluate_until(&run.model, split, &options)? {
                            None => return Ok(None),
                            Some(e) => Some(e.bits_per_dim),
                        }
                    }
                };
                Ok(Some((bits, run.reconstruction_error()?)))
            })
        });
        let measured = measured.with_context(|| {
            format!("the validation after update {update} failed; {}", kept(self.checkpointed, self.out))
        })?;
        let Some((bits, error)) = measured else { return Ok(false) };
        let position = &mut self.position;
        position.validated = Some(update);
        let better = match (bits, position.best) {
            (Some(bits), Some(best)) => bits < best.bits_per_dim,
            _ => true,
        };
        if better {
            position.best = bits.map(|bits_per_dim| Measured { update, bits_per_dim });
            position.saved = Some(update);
            position.worse = 0;
        } else {
            position.worse += 1;
        }
        let best = position.best.map(|b| b.bits_per_dim);
        let validation = ValidationLine {
            validation_bits_per_dim: bits,
            best_validation_bits_per_dim: best,
            reconstruction_error: Some(error).filter(|e| e.is_finite()),
        };
        self.log(Line { validation: Some(validation), ..Line::default() })?;
        self.checkpoint()?;
        if better {
            self.save_model()?;
        }
        if let (Some(bits), Some(best)) = (bits, best) {
            self.progress.validation(update, bits, best);
        }
        Ok(true)
    }

    /// max |decode(encode(x)) - x| over the first few images of the validation set (without one: the training set).
    fn reconstruction_error(&self) -> Result<f64> {
        let split = match self.valid {
            Some(split) => Examples::new(split, self.model.config())?,
            None => self.feed.examples,
        };
        let n = split.len().min(RECONSTRUCTED);
        let noise = rng_for(self.recipe.train.seed, "reconstruction noise");
        let host = split.host((0..n).map(|i| (i, i as u64)), &noise, Augment::default());
        let batch = split.batch(host, self.device)?;
        let z = self.model.encode(&batch.x, batch.cond())?;
        let difference =
            (self.model.decode(&z, batch.cond())? - &batch.x)?.flatten_all()?.to_vec1::<f32>()?;
        // A NaN must not lose against a number.
        Ok(f64::from(
            difference.iter().map(|d| d.abs()).fold(0., |a, d| if d > a || d.is_nan() { d } else { a }),
        ))
    }

    fn save_model(&mut self) -> Result<()> {
        self.averaged(|run| {
            let saved = run.model.save(run.out, &SaveOptions::default());
            saved.context("cannot save the model: is the disk full?")
        })
    }

    fn checkpoint(&mut self) -> Result<()> {
        self.position.wall_seconds = self.wall_seconds();
        self.metrics.as_ref().expect("opened in begin").sync()?;
        let trained =
            Trained { params: self.model.params(), optimizer: &mut self.optimizer, ema: self.ema.as_mut() };
        checkpoint::save(self.out, &self.position, &self.settings, &trained)?;
        self.checkpointed = Some(self.position.update);
        Ok(())
    }

    fn outcome(&self, stopped_by: StoppedBy) -> Outcome {
        let p = &self.position;
        let w = p.window;
        let open = (w.updates > 0).then(|| w.bits / w.updates as f64);
        Outcome {
            updates: p.update,
            images_seen: self.images_seen(),
            epochs: self.epochs(),
            images_per_second: if p.update > 0 { self.images_seen() as f64 / p.train_seconds } else { 0. },
            wall_seconds: self.wall_seconds(),
            best_validation: p.best.map(|b| (b.update, b.bits_per_dim)),
            train_bits_per_dim: p.last_window.map(|m| m.bits_per_dim).or(open),
            stopped_by,
            finished: stopped_by != StoppedBy::Interrupt,
        }
    }

    /// The error for a loss or gradient that is not finite: where it started, and what is left.
    fn not_finite(&self, what: &str, batch: &Batch, grads: &Grads) -> anyhow::Error {
        let ctx = Ctx { mode: Mode::Replay, grad: false, cond: batch.cond() };
        let find = || -> candle_core::Result<String> {
            if let Some(layer) = self.model.find_non_finite(&batch.x, ctx)? {
                return Ok(format!("layer `{layer}`"));
            }
            if let Some(name) = self.model.params().find_non_finite()? {
                return Ok(format!("parameter `{name}`"));
            }
            for (name, g) in grads {
                if !is_finite(g)? {
                    return Ok(format!("the gradient of `{name}`"));
                }
            }
            Ok("the sum over the batch".to_string())
        };
        let place = find().unwrap_or_else(|e| format!("an unknown place ({e})"));
        anyhow!(
            "{what} of update {} is not finite, first in {place}; the update was not made and {}: train anew in another \
             --out with a lower `train.lr`, a longer `train.warmup_images` or a smaller `train.clip_norm`",
            self.position.update + 1,
            kept(self.checkpointed, self.out)
        )
    }
}

/// Whether `train.l2` is on the parameter of this name: on scales.
fn has_l2(name: &str) -> bool {
    name.ends_with(".magnitude") || name.ends_with(".gain")
}

/// What is left after a failure.
fn kept(checkpointed: Option<u64>, out: &Path) -> String {
    match checkpointed {
        Some(update) => {
            format!(
                "the last good checkpoint, of update {update}, is kept in {}",
                out.join(CHECKPOINT).display()
            )
        }
        None => "there is no checkpoint yet".to_string(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::checkpoint::METRICS;
    use crate::data::Values;
    use crate::recipe::{Data, Eval};
    use flows::ModelConfig;
    use flows::models::GlowConfig;
    use flows::optim::Rule;
    use std::collections::BTreeMap;
    use std::fs;

    fn recipe() -> Recipe {
        let model =
            GlowConfig { shape: [1, 4, 4], levels: 2, depth: 1, width: 6, ..GlowConfig::cifar_paper() };
        Recipe {
            name: "tiny".to_string(),
            about: "A test.".to_string(),
            data: Data {
                set: "npy".to_string(),
                train: None,
                validation: 8,
                test: None,
                size: None,
                seed: 0,
            },
            model: ModelConfig::Glow(model),
            train: Train {
                batch: 7,
                epochs: None,
                updates: Some(12),
                minutes: None,
                optimizer: Rule::Adam { b1: 0.9, b2: 0.999, eps: 1e-8 },
                lr: 1e-3,
                schedule: Schedule::Cosine { end: 0.1 },
                warmup_images: 30,
                clip_norm: Some(1.),
                loss: LossUnit::BitsPerDim,
                ema: Some(0.9),
                l2: 1e-5,
                memory: Memory::Store,
                precision: Precision::Full,
                probe_every: 4,
                init_images: 16,
                hflip: true,
                shift: 0.25,
                validate_every: 5,
                validate_images: None,
                patience: None,
                checkpoint_every: 3,
                log_every: 2,
                seed: 3,
            },
            eval: Eval::default(),
            paper: None,
            source: BTreeMap::new(),
        }
    }

    fn split(n: usize) -> Split {
        // Four columns of one grey value each, nearly: there is something to learn.
        let grey = |i: usize, x: usize| 20 + 11 * ((5 * i + 3 * x) % 17);
        let values = (0..n * 16).map(|i| (grey(i / 16, i % 4) + (i * i * 7) % 5) as u8).collect();
        Split::new(vec![1, 4, 4], Values::Pixels(values), None, None).unwrap()
    }

    fn data() -> Dataset {
        Dataset {
            name: "tiny".to_string(),
            train: split(40),
            valid: Some(split(8)),
            test: split(8),
            classes: vec![],
            attribute_names: vec![],
            entropy: None,
            revision: "test".to_string(),
        }
    }

    /// Presses Ctrl-C after update `stop_after`.
    #[derive(Default)]
    struct Show<'a> {
        stop_after: Option<(u64, &'a AtomicBool)>,
        steps: Vec<u64>,
        messages: Vec<String>,
    }

    impl Progress for Show<'_> {
        fn begin(&mut self, _: u64, _: Option<u64>) {}
        fn step(&mut self, update: u64, bits: f64, pace: f64, left: Option<f64>) {
            assert!(bits.is_finite() && pace > 0. && left.is_some());
            self.steps.push(update);
            if let Some((at, stop)) = self.stop_after {
                stop.store(update >= at, Ordering::Relaxed);
            }
        }
        fn validation(&mut self, _: u64, bits: f64, best: f64) {
            assert!(best <= bits);
        }
        fn message(&mut self, text: &str) {
            self.messages.push(text.to_string());
        }
    }

    fn run(recipe: &Recipe, out: &Path) -> Result<Outcome> {
        train(recipe, &data(), &Device::Cpu, out, &mut Show::default(), &AtomicBool::new(false))
    }

    fn run_until(recipe: &Recipe, out: &Path, update: u64) -> Result<(Outcome, Show<'static>)> {
        let stop = AtomicBool::new(false);
        let mut show = Show { stop_after: Some((update, &stop)), ..Show::default() };
        let outcome = train(recipe, &data(), &Device::Cpu, out, &mut show, &stop)?;
        Ok((outcome, Show { stop_after: None, steps: show.steps, messages: show.messages }))
    }

    fn updates_in(out: &Path) -> Vec<u64> {
        let text = fs::read_to_string(out.join(METRICS)).unwrap();
        let update =
            |l: &str| serde_json::from_str::<serde_json::Value>(l).unwrap()["update"].as_u64().unwrap();
        text.lines().map(update).collect()
    }

    /// The tensors of a safetensors file, as bytes.
    fn tensors(path: &Path) -> BTreeMap<String, Vec<u8>> {
        let bytes = fs::read(path).unwrap();
        let file = safetensors::SafeTensors::deserialize(&bytes).unwrap();
        file.tensors().into_iter().map(|(n, v)| (n, v.data().to_vec())).collect()
    }

    fn same(a: &Path, b: &Path) {
        for file in ["model.safetensors", CHECKPOINT] {
            assert_eq!(tensors(&a.join(file)), tensors(&b.join(file)), "{file}");
        }
    }

    #[test]
    fn schedules_are_their_equations() {
        let mut t = recipe().train;
        t.warmup_images = 0;
        t.schedule = Schedule::Constant;
        assert_eq!(rate(&t, 1000, None), 1e-3);
        t.schedule = Schedule::Divide { factor: 1.0005, min: 1e-4 };
        assert_eq!(rate(&t, 0, None), 1e-3);
        assert!((rate(&t, 1000, None) - 1e-3 / 1.0005f64.powi(1000)).abs() < 1e-15);
        assert_eq!(rate(&t, 100_000, None), 1e-4);
        t.schedule = Schedule::Cosine { end: 0.1 };
        assert_eq!(rate(&t, 0, Some(11)), 1e-3);
        assert!((rate(&t, 5, Some(11)) - 0.55e-3).abs() < 1e-15);
        assert!((rate(&t, 10, Some(11)) - 1e-4).abs() < 1e-15);
        t.schedule = Schedule::Constant;
        t.warmup_images = 28;
        let ramp: Vec<f64> = (0..5).map(|u| rate(&t, u, None) / 1e-3).collect();
        assert_eq!(ramp, [0.25, 0.5, 0.75, 1., 1.]);
    }

    #[test]
    fn whichever_limit_comes_first() {
        let mut t = recipe().train;
        assert_eq!(planned(&t, 40), Some((12, StoppedBy::Updates)));
        t.epochs = Some(1.5);
        assert_eq!(planned(&t, 40), Some((9, StoppedBy::Epochs)));
        t.updates = Some(8);
        assert_eq!(planned(&t, 40), Some((8, StoppedBy::Updates)));
        (t.updates, t.epochs) = (None, None);
        assert_eq!(planned(&t, 40), None);
    }

    #[test]
    fn a_run_learns_and_leaves_its_files() -> Result<()> {
        let out = tempfile::tempdir()?;
        let mut r = recipe();
        r.train.updates = Some(60);
        r.train.lr = 1e-2;
        let outcome = run(&r, out.path())?;
        assert!(outcome.finished && outcome.stopped_by == StoppedBy::Updates);
        assert_eq!((outcome.updates, outcome.images_seen, outcome.epochs), (60, 420, 10.5));
        let lines = fs::read_to_string(out.path().join(METRICS))?;
        let lines: Vec<serde_json::Value> =
            lines.lines().map(serde_json::from_str).collect::<Result<_, _>>()?;
        let train: Vec<f64> = lines.iter().filter_map(|l| l["train_bits_per_dim"].as_f64()).collect();
        assert_eq!(train.len(), 30);
        assert!(train[29] < train[0] - 0.1, "{train:?}");
        let valid: Vec<_> = lines.iter().filter(|l| l["validation_bits_per_dim"].is_f64()).collect();
        assert_eq!(valid.len(), 12);
        assert!(valid.iter().all(|l| l["reconstruction_error"].as_f64().unwrap() < 0.5));
        // The saved model is the one of the best validation.
        let (update, bits) = outcome.best_validation.unwrap();
        assert!(update.is_multiple_of(5));
        let model = Model::load(out.path(), &Device::Cpu)?;
        let o = EvalOptions { batch: 100, draws: 1, seed: 3, limit: None, progress: None };
        let e = crate::evaluate::evaluate(&model, &split(8), &o)?;
        assert!((e.bits_per_dim - bits).abs() < 1e-6);
        // The same call again has nothing to do.
        let again = run(&r, out.path())?;
        assert_eq!((again.updates, again.best_validation), (60, outcome.best_validation));
        Ok(())
    }

    #[test]
    fn an_interrupted_run_ends_with_the_same_bits() -> Result<()> {
        for memory in [Memory::Store, Memory::Recompute] {
            let mut recipe = recipe();
            recipe.train.memory = memory;
            let (straight, broken) = (tempfile::tempdir()?, tempfile::tempdir()?);
            let whole = run(&recipe, straight.path())?;
            for stop in [1, 5, 6, 11] {
                let (outcome, show) = run_until(&recipe, broken.path(), stop)?;
                assert!(!outcome.finished && outcome.stopped_by == StoppedBy::Interrupt);
                assert_eq!((outcome.updates, show.steps.last()), (stop, Some(&stop)));
            }
            let resumed = run(&recipe, broken.path())?;
            assert_eq!(resumed.best_validation, whole.best_validation);
            assert_eq!(resumed.train_bits_per_dim, whole.train_bits_per_dim);
            assert_eq!(updates_in(broken.path()), updates_in(straight.path()));
            same(straight.path(), broken.path());
        }
        Ok(())
    }

    #[test]
    fn a_model_that_was_not_saved_after_its_checkpoint_is_saved_on_resume() -> Result<()> {
        let (straight, broken) = (tempfile::tempdir()?, tempfile::tempdir()?);
        let mut r = recipe();
        r.train.updates = Some(5);
        run(&r, straight.path())?;
        run(&r, broken.path())?;
        for file in ["model.safetensors", "config.json"] {
            fs::remove_file(broken.path().join(file))?;
        }
        fs::write(broken.path().join("model.safetensors.tmp123"), b"cut sho")?;
        run(&r, broken.path())?;
        same(straight.path(), broken.path());
        assert!(!broken.path().join("model.safetensors.tmp123").exists());
        Ok(())
    }

    #[test]
    fn another_recipe_does_not_resume_and_more_updates_do() -> Result<()> {
        let out = tempfile::tempdir()?;
        let mut r = recipe();
        r.train.schedule = Schedule::Constant;
        r.train.updates = Some(5);
        run(&r, out.path())?;
        r.train.lr = 2e-3;
        let err = run(&r, out.path()).unwrap_err().to_string();
        assert!(err.contains("`train.lr` is 0.002 now") && err.contains("0.001"), "{err}");
        r.train.lr = 1e-3;
        r.train.ema = None;
        let err = run(&r, out.path()).unwrap_err().to_string();
        assert!(err.contains("`train.ema` is absent now"), "{err}");
        r.train.ema = Some(0.9);
        r.train.updates = Some(8);
        r.about = "Other words.".to_string();
        assert_eq!(run(&r, out.path())?.updates, 8);
        let mut other = data();
        other.revision = "more".to_string();
        let stop = AtomicBool::new(false);
        let err = train(&r, &other, &Device::Cpu, out.path(), &mut Show::default(), &stop).unwrap_err();
        assert!(err.to_string().contains("data.revision"), "{err}");
        Ok(())
    }

    #[test]
    fn a_loss_that_is_not_finite_names_layer_and_update_and_keeps_the_checkpoint() -> Result<()> {
        let out = tempfile::tempdir()?;
        let mut r = recipe();
        // A rate that throws the parameters beyond f32.
        (r.train.lr, r.train.schedule, r.train.warmup_images) = (1e30, Schedule::Constant, 0);
        let err = run(&r, out.path()).unwrap_err().to_string();
        assert!(err.contains("the loss of update 2 is not finite, first in layer `level0."), "{err}");
        assert!(err.contains("there is no checkpoint yet") && err.contains("train.lr"), "{err}");
        r.train.checkpoint_every = 1;
        let err = run(&r, out.path()).unwrap_err().to_string();
        assert!(err.contains("of update 1, is kept in") && err.contains(CHECKPOINT), "{err}");
        let before = fs::read(out.path().join(CHECKPOINT))?;
        run(&r, out.path()).unwrap_err();
        assert_eq!(fs::read(out.path().join(CHECKPOINT))?, before);
        Ok(())
    }

    #[test]
    fn patience_ends_a_run_that_does_not_improve() -> Result<()> {
        let out = tempfile::tempdir()?;
        let mut r = recipe();
        r.train.schedule = Schedule::Constant;
        r.train.updates = Some(1000);
        r.train.validate_every = 1;
        r.train.patience = Some(2);
        r.train.lr = 0.;
        r.train.ema = None;
        let outcome = run(&r, out.path())?;
        assert_eq!((outcome.stopped_by, outcome.updates), (StoppedBy::Patience, 3));
        assert_eq!(outcome.best_validation.unwrap().0, 1);
        assert_eq!(run(&r, out.path())?.updates, 3);
        Ok(())
    }

    #[test]
    fn minutes_end_a_run_with_a_validation() -> Result<()> {
        let out = tempfile::tempdir()?;
        let mut r = recipe();
        r.train.schedule = Schedule::Constant;
        (r.train.updates, r.train.minutes) = (None, Some(0.5 / 60.));
        let outcome = run(&r, out.path())?;
        assert_eq!(outcome.stopped_by, StoppedBy::Minutes);
        assert!(outcome.updates > 0 && outcome.wall_seconds >= 0.5);
        assert!(outcome.best_validation.is_some() && out.path().join("model.safetensors").exists());
        Ok(())
    }

    #[test]
    fn without_validation_the_last_model_is_saved() -> Result<()> {
        let out = tempfile::tempdir()?;
        let mut r = recipe();
        r.train.ema = None;
        let set = Dataset { valid: None, ..data() };
        let mut show = Show::default();
        let outcome = train(&r, &set, &Device::Cpu, out.path(), &mut show, &AtomicBool::new(false))?;
        assert_eq!(outcome.best_validation, None);
        let state = tensors(&out.path().join(CHECKPOINT));
        for (name, bytes) in tensors(&out.path().join("model.safetensors")) {
            assert_eq!(bytes, state[&format!("param/{name}")], "{name}");
        }
        Ok(())
    }

    #[test]
    fn impossible_settings_are_named() {
        let out = tempfile::tempdir().unwrap();
        let err = |change: &dyn Fn(&mut Recipe)| {
            let mut r = recipe();
            change(&mut r);
            run(&r, out.path()).unwrap_err().to_string()
        };
        assert!(err(&|r| r.train.batch = 0).contains("`train.batch`"));
        assert!(err(&|r| r.train.updates = None).contains("`train.epochs`"));
        let endless = |r: &mut Recipe| (r.train.updates, r.train.minutes) = (None, Some(1.));
        assert!(err(&endless).contains("cosine"));
    }

    /// The way of a GPU, on this thread through the emulated kernels.
    #[cfg(feature = "emulate")]
    fn run_as_gpu(recipe: &Recipe, out: &Path, show: &mut Show, stop: &AtomicBool) -> Result<Outcome> {
        flows::ops::cuda::emulate(|| train_in_pool(recipe, &data(), &Device::Cpu, out, show, stop))
    }

    #[cfg(feature = "emulate")]
    #[test]
    fn a_gpu_trains_alike_and_resumes_to_the_same_bits() -> Result<()> {
        let dir = tempfile::tempdir()?;
        let (straight, parts, cpu) = (dir.path().join("a"), dir.path().join("b"), dir.path().join("c"));
        let never = AtomicBool::new(false);
        let mut show = Show::default();
        let whole = run_as_gpu(&recipe(), &straight, &mut show, &never)?;
        assert!(whole.finished && whole.updates == 12);
        assert_eq!(show.steps, [2, 4, 6, 8, 10, 12]);
        assert!(show.messages.iter().any(|m| m.contains("kernel by kernel")), "{:?}", show.messages);
        let stop = AtomicBool::new(false);
        let mut interrupted = Show { stop_after: Some((4, &stop)), ..Show::default() };
        assert!(!run_as_gpu(&recipe(), &parts, &mut interrupted, &stop)?.finished);
        assert_eq!(run_as_gpu(&recipe(), &parts, &mut Show::default(), &never)?.updates, 12);
        let bytes = |out: &Path| fs::read(out.join("model.safetensors")).unwrap();
        assert_eq!(bytes(&straight), bytes(&parts));
        // Other noise than on the CPU, and so other numbers, but not far from them.
        let other = run(&recipe(), &cpu)?;
        let (a, b) = (whole.best_validation.unwrap().1, other.best_validation.unwrap().1);
        assert!((a - b).abs() < 0.3, "{a} as a GPU, {b} on the CPU");
        assert_ne!(bytes(&straight), bytes(&cpu));
        Ok(())
    }

    #[cfg(feature = "emulate")]
    #[test]
    fn a_gpu_stops_at_what_is_not_finite() -> Result<()> {
        let dir = tempfile::tempdir()?;
        let mut recipe = recipe();
        (recipe.train.lr, recipe.train.schedule, recipe.train.warmup_images) = (1e20, Schedule::Constant, 0);
        recipe.train.log_every = 6;
        let error =
            run_as_gpu(&recipe, dir.path(), &mut Show::default(), &AtomicBool::new(false)).unwrap_err();
        let text = format!("{error:#}");
        assert!(text.contains("of update 2 is not finite, first in layer `"), "{text}");
        Ok(())
    }
}
