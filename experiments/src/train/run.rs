//! The loop of a training run: updates, validation, checkpoints, drift, the log.

use super::log::{DriftLine, Line, TrainingLine, ValidationLine};
use super::progress::{Outcome, Progress, StoppedBy};
use super::schedule::{check, planned, rate};
use super::step::Step;
use crate::batches::{Augment, Examples};
use crate::checkpoint::{self, Measured, Position, Settings, Window};
use crate::data::{Dataset, Split};
use crate::evaluate::{EvalOptions, evaluate_until};
use crate::metrics::Metrics;
use crate::ranks::{Ranks, agree, any, same};
use crate::recipe::{Recipe, Schedule};
use crate::run_dir::{self, BEST, CHECKPOINT};
use crate::summary::Together;
use anyhow::{Context as _, Result, anyhow, bail, ensure};
use candle_core::Device;
use flows::ops::precision::{self, Precision};
use flows::params::rng_for;
use flows::{Drift, Memory, Model, SaveOptions};
use serde::Serialize;
use std::f64::consts::LN_2;
use std::path::Path;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::Scope;
use std::time::Instant;

/// Validation images on which the reconstruction error is measured.
const RECONSTRUCTION_IMAGES: usize = 16;

/// Updates after which every parameter should have had a gradient: in the first some wait for a layer that starts at zero.
const FIRST_UPDATES: u64 = 10;

/// Trains `recipe.model` on `data.train`, validates on `data.valid` where there is one, and leaves the best model (with
/// no validation: the last) in `out`, beside the log and the checkpoint, from which a second call resumes.
///
/// `stop` ends it at the next update: the checkpoint is saved and the outcome is not `finished`.
///
/// Several `ranks` make each update together; only rank 0 touches `out` and the log, and `stop` of any of them ends all.
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
    ranks: &dyn Ranks,
) -> Result<Outcome> {
    // On a thread of rayon's pool: from outside, each of the hundreds of parallel ops of an update would hand its work to a
    // worker and block until it is done, which for small tensors takes longer than the op.
    let train = || rayon::scope(|_| train_in_pool(recipe, data, device, out, progress, stop, ranks));
    let train = || precision::with_deterministic(recipe.train.deterministic, train);
    precision::within(recipe.train.precision, train)
}

/// As [`train`], on this thread and in the precision that is set; for tests.
pub(super) fn train_in_pool(
    recipe: &Recipe,
    data: &Dataset,
    device: &Device,
    out: &Path,
    progress: &mut dyn Progress,
    stop: &AtomicBool,
    ranks: &dyn Ranks,
) -> Result<Outcome> {
    let clock = Instant::now();
    let t = &recipe.train;
    let begun = || -> Result<Step> {
        check(t, data, device, ranks)?;
        if ranks.rank() == 0 {
            std::fs::create_dir_all(out)
                .with_context(|| format!("cannot make the folder {}", out.display()))?;
            run_dir::remove_leftovers(out)?;
        }
        Step::new(recipe, &data.train, device, ranks)
    };
    let step = agree(ranks, begun())?;
    let mut run = Run {
        recipe,
        valid: data.valid.as_ref().filter(|v| !v.is_empty()),
        device,
        out,
        progress,
        stop,
        ranks,
        plan: planned(t, step.feed.examples.len()),
        settings: Settings::new(recipe, data)?,
        metrics: None,
        checkpointed: None,
        clock,
        wall_before: 0.,
        first_update: 0,
        without_gradient: 0,
        position: Position::default(),
        step,
    };
    // `run` is moved into the closure: its receiver is dropped there, which ends the thread that prepares batches before the
    // scope joins it.
    std::thread::scope(move |scope| {
        run.begin(scope)?;
        run.go()
    })
}

struct Run<'a> {
    recipe: &'a Recipe,
    valid: Option<&'a Split>,
    device: &'a Device,
    out: &'a Path,
    progress: &'a mut dyn Progress,
    stop: &'a AtomicBool,
    ranks: &'a dyn Ranks,
    plan: Option<(u64, StoppedBy)>,
    settings: Settings,
    /// The log, on rank 0.
    metrics: Option<Metrics>,
    /// The update of the checkpoint on the disk.
    checkpointed: Option<u64>,
    /// The start of this process.
    clock: Instant,
    /// Seconds of the run before it.
    wall_before: f64,
    /// The update at which it began.
    first_update: u64,
    position: Position,
    /// Parameters without a gradient at the last report.
    without_gradient: usize,
    step: Step<'a>,
}

impl<'a> Run<'a> {
    /// Whether this process writes the run's files.
    fn writes(&self) -> bool {
        self.ranks.rank() == 0
    }

    /// Starts from the checkpoint, or from the data-dependent initialisation, which rank 0 does for all.
    fn begin<'scope>(&mut self, scope: &'scope Scope<'scope, '_>) -> Result<()>
    where
        'a: 'scope,
    {
        let taken = if self.writes() { self.take_up() } else { Ok(()) };
        agree(self.ranks, taken)?;
        let Step { model, updater, .. } = &mut self.step;
        let shared =
            checkpoint::share(self.ranks, &mut self.position, &self.settings, model.params(), updater);
        agree(self.ranks, shared)?;
        let [resumed] = any(self.ranks, [self.checkpointed.is_some()])?;
        self.checkpointed = resumed.then_some(self.position.update);
        self.step.store(&self.position.stored);
        self.step.start(self.position.update, scope)?;
        self.wall_before = self.position.wall_seconds;
        self.first_update = self.position.update;
        let opened = if self.writes() { Metrics::open(self.out, &self.position).map(Some) } else { Ok(None) };
        self.metrics = agree(self.ranks, opened)?;
        self.progress.begin(self.position.update, self.plan.map(|(n, _)| n));
        Ok(())
    }

    /// Takes up the checkpoint, or initialises.
    fn take_up(&mut self) -> Result<()> {
        let step = &mut self.step;
        match checkpoint::load(self.out, &self.settings, step.model.params(), &mut step.updater)? {
            Some(position) => {
                self.checkpointed = Some(position.update);
                self.position = position;
                self.check_length()?;
                self.progress.message(&format!("resumed after update {}", self.position.update));
                if self.position.saved == Some(self.position.update) {
                    self.save_best()?;
                }
                if self.position.kept.is_some_and(|kept| kept.update == self.position.update) {
                    checkpoint::keep(self.out)?;
                }
            }
            None => {
                ensure!(
                    !run_dir::holds_model(self.out),
                    "{} holds a model and no checkpoint to go on from, and training would replace it: name another folder",
                    self.out.display()
                );
                step.initialise(self.recipe.train.init_images)?;
            }
        }
        Ok(())
    }

    /// Refuses a run that is longer already than it is asked to be: what would be written of it is not what was done.
    fn check_length(&self) -> Result<()> {
        let made = self.position.update;
        if let Some((planned, by)) = self.plan.filter(|(planned, _)| *planned < made) {
            let key = if by == StoppedBy::Epochs { "train.epochs" } else { "train.updates" };
            bail!(
                "the run in {} has made {made} updates, and `{key}` asks for {planned} of them now: ask for more, or name \
                 another --out for the shorter run",
                self.out.display()
            );
        }
        Ok(())
    }

    fn go(&mut self) -> Result<Outcome> {
        let t = &self.recipe.train;
        loop {
            let update = self.position.update;
            // The flag is read once: a Ctrl-C between two reads would save a checkpoint without the pending results. Clocks and
            // signals of ranks differ, and what one of them sees all must act on.
            let [stop, late] = any(self.ranks, [self.stop.load(Ordering::Relaxed), self.out_of_time()])?;
            let done = self.done(late);
            let validates = done.is_some() || (update > 0 && update.is_multiple_of(t.validate_every));
            let saves = done.is_some() || stop || (update > 0 && update.is_multiple_of(t.checkpoint_every));
            if validates || saves {
                self.read_results()?;
            }
            if validates && self.position.validated != Some(update) {
                if !self.validate()? {
                    self.checkpoint()?;
                    return Ok(self.outcome(StoppedBy::Interrupt));
                }
                continue;
            }
            if done.is_some() && self.position.ends.last() != Some(&update) {
                self.position.ends.push(update);
                self.checkpointed = None;
            }
            if saves && self.checkpointed != Some(update) {
                self.checkpoint()?;
            }
            if let Some(by) = done {
                self.report_cut(by);
                return Ok(self.outcome(by));
            }
            if stop {
                return Ok(self.outcome(StoppedBy::Interrupt));
            }
            let measures = t.memory == Memory::Recompute && update.is_multiple_of(t.probe_every);
            if measures && self.position.probed != Some(update) {
                self.measure_drift()?;
            }
            self.update()?;
        }
    }

    /// Reports a run whose time was up before its rate had fallen as far as it was to: its last updates were too coarse.
    fn report_cut(&mut self, by: StoppedBy) {
        let (t, made) = (&self.recipe.train, self.position.update);
        let (Some((planned, _)), Schedule::Cosine { end }) = (self.plan, t.schedule) else { return };
        if by == StoppedBy::Minutes {
            self.progress.message(&format!(
                "the {} `train.minutes` were up after update {made} of {planned}, at a rate of {:.1e} that was to fall to {:.1e}: in another \
                 --out fewer `train.updates` let it fall in time",
                t.minutes.unwrap_or_default(),
                rate(t, made, Some(planned)),
                t.lr * end
            ));
        }
    }

    /// Makes one update, and reports it where its results are read.
    fn update(&mut self) -> Result<()> {
        let t = &self.recipe.train;
        let lr = rate(t, self.position.update, self.plan.map(|(n, _)| n));
        self.step.update(self.position.update, lr)?;
        self.position.update += 1;
        if let Some(reason) = self.step.recording_refused() {
            self.progress.message(&format!(
                "updates are launched kernel by kernel, for a recording was refused ({reason}); `nsys profile` shows how \
                 many kernels that is and how long the GPU waits between them"
            ));
        }
        let logs = self.position.update.is_multiple_of(t.log_every);
        if !logs && !self.step.reads_every_update() {
            return Ok(());
        }
        self.read_results()?;
        let (update, w) = (self.position.update, self.position.window);
        let n = w.updates as f64;
        let images_per_second = n * t.batch as f64 / w.seconds;
        let left = self.seconds_left();
        self.progress.step(update, w.bits / n, images_per_second, left);
        if logs {
            self.log(TrainingLine {
                train_bits_per_dim: w.bits / n,
                learning_rate: lr,
                grad_norm: w.grad_norm / n,
                clip: w.clip / n,
                images_per_second,
            })?;
            self.position.last_window = Some(Measured { update, bits_per_dim: w.bits / n });
            self.position.window = Window::default();
        }
        Ok(())
    }

    /// Adds the results of the updates made since the last call to the log's window.
    fn read_results(&mut self) -> Result<()> {
        let before = self.step.pending();
        let Some((tally, seconds)) = self.step.results()? else { return Ok(()) };
        if let Some(loss) = tally.not_finite {
            let failed = self.position.update - before + tally.updates;
            let error = self.not_finite(failed, loss);
            return agree(self.ranks, Err(error));
        }
        let to_bits = 1. / (self.step.model.dims() as f64 * LN_2);
        let position = &mut self.position;
        position.train_seconds += seconds;
        let w = &mut position.window;
        w.updates += tally.updates;
        w.bits -= to_bits * tally.log_prob;
        w.grad_norm += tally.norm;
        w.clip += tally.clip;
        w.seconds += seconds;
        Ok(())
    }

    /// Measures how far reconstructed inputs drift, and stores the layers that drift too far. A stored layer stays stored: it
    /// was over the bound with weights not far from those to come.
    fn measure_drift(&mut self) -> Result<()> {
        let drift = self.step.drift()?;
        let over: Vec<String> = drift.over().difference(&self.position.stored).cloned().collect();
        if self.position.probed.is_none() || !over.is_empty() {
            let stored = match over.len() {
                0 => "no layer has to be stored".to_string(),
                n => format!("{n} beyond {:.0e} will be stored: {}", Drift::BOUND, over.join(", ")),
            };
            let layers = drift.layers().len();
            self.progress.message(&format!(
                "reconstructed inputs of {layers} layers drift by up to {:.1e}; {stored}",
                drift.largest_within_bound()
            ));
        }
        self.position.probed = Some(self.position.update);
        if !over.is_empty() {
            self.position.stored.extend(over);
            self.step.store(&self.position.stored);
        }
        self.log(DriftLine { drift: drift.largest_within_bound(), stored_layers: self.position.stored.len() })
    }

    fn wall_seconds(&self) -> f64 {
        self.wall_before + self.clock.elapsed().as_secs_f64()
    }

    fn out_of_time(&self) -> bool {
        self.recipe.train.minutes.is_some_and(|m| self.wall_seconds() >= m * 60.)
    }

    /// Whether the run has ended, and why; `late` says that its time is up.
    fn done(&self, late: bool) -> Option<StoppedBy> {
        let t = &self.recipe.train;
        if let Some((_, by)) = self.plan.filter(|(n, _)| self.position.update >= *n) {
            return Some(by);
        }
        if t.patience.is_some_and(|p| self.position.worse >= p.max(1)) {
            return Some(StoppedBy::Patience);
        }
        late.then_some(StoppedBy::Minutes)
    }

    /// From the pace of this process, validation included.
    fn seconds_left(&self) -> Option<f64> {
        let made = (self.position.update - self.first_update) as f64;
        let pace = self.clock.elapsed().as_secs_f64() / made.max(1.);
        let updates = self.plan.map(|(n, _)| n.saturating_sub(self.position.update) as f64 * pace);
        let clock = self.recipe.train.minutes.map(|m| (m * 60. - self.wall_seconds()).max(0.));
        [updates, clock].into_iter().flatten().min_by(f64::total_cmp)
    }

    fn images_seen(&self) -> u64 {
        self.position.update * self.recipe.train.batch as u64
    }

    fn epochs(&self) -> f64 {
        self.images_seen() as f64 / self.step.feed.examples.len() as f64
    }

    fn log(&mut self, values: impl Serialize) -> Result<()> {
        let line = Line {
            update: self.position.update,
            epoch: self.epochs(),
            images_seen: self.images_seen(),
            seconds: self.wall_seconds(),
            values,
        };
        self.metrics.as_mut().map_or(Ok(()), |metrics| metrics.write(&line))
    }

    /// Runs `f` on the model with the averaged weights in place, where there are any.
    fn averaged<T>(&mut self, f: impl FnOnce(&Self) -> Result<T>) -> Result<T> {
        let running = self.step.use_average(self.position.update)?;
        let result = f(self);
        self.step.use_last(&running)?;
        result
    }

    /// Validates, checkpoints, and saves the model if it is the best so far. `false`: interrupted, nothing changed.
    fn validate(&mut self) -> Result<bool> {
        self.report_without_gradient()?;
        let update = self.position.update;
        // In full precision, as the final evaluation: both compare the same thing.
        let measured = precision::within(Precision::Full, || {
            self.averaged(|run| {
                let Some(split) = run.valid else { return Ok(Some((None, run.reconstruction_error()?))) };
                let go_on = |_, _| !run.stop.load(Ordering::Relaxed);
                let options = EvalOptions {
                    batch: run.recipe.eval.batch,
                    draws: 1,
                    importance: 1,
                    seed: run.recipe.train.seed,
                    limit: run.recipe.train.validate_images,
                    progress: Some(&go_on),
                    ranks: run.ranks,
                };
                let evaluation = evaluate_until(&run.step.model, split, &options)?;
                evaluation.map(|e| Ok((Some(e.bits_per_dim), run.reconstruction_error()?))).transpose()
            })
        });
        let measured = measured.with_context(|| {
            format!("the validation after update {update} failed; {}: {}", self.kept(), self.remedy())
        })?;
        let Some((bits, error)) = measured else { return Ok(false) };
        let position = &mut self.position;
        position.validated = Some(update);
        let better = bits.zip(position.best).is_none_or(|(bits, best)| bits < best.bits_per_dim);
        if better {
            position.best = bits.map(|bits_per_dim| Measured { update, bits_per_dim });
            position.saved = Some(update);
            position.worse = 0;
        } else {
            position.worse += 1;
        }
        let best = position.best.map(|b| b.bits_per_dim);
        let measure = bits.or(position.last_window.map(|window| window.bits_per_dim));
        let keeps =
            measure.filter(|&m| m.is_finite() && position.kept.is_none_or(|kept| m < kept.bits_per_dim));
        position.kept = keeps.map(|bits_per_dim| Measured { update, bits_per_dim }).or(position.kept);
        self.log(ValidationLine {
            validation_bits_per_dim: bits,
            best_validation_bits_per_dim: best,
            reconstruction_error: Some(error).filter(|e| e.is_finite()),
        })?;
        self.checkpoint()?;
        if better {
            self.save_best()?;
        }
        if keeps.is_some() && self.writes() {
            checkpoint::keep(self.out)?;
        }
        if let (Some(bits), Some(best)) = (bits, best) {
            self.progress.validation(update, bits, best);
        }
        Ok(true)
    }

    /// Reports the parameters without a gradient, from [`FIRST_UPDATES`] on and whenever there are more of them than at the last report:
    /// the loss falls without them, too.
    fn report_without_gradient(&mut self) -> Result<()> {
        let update = self.position.update;
        if update < FIRST_UPDATES {
            return Ok(());
        }
        let names = self.step.updater.optimizer().without_gradient()?;
        if let Some(first) = names.first()
            && names.len() > self.without_gradient
        {
            self.without_gradient = names.len();
            self.progress.message(&format!(
                "{} parameters have no gradient at update {update} and learn nothing, the first of them `{first}`: either two factors of a \
                 product both start at zero, or a network's units are zero for every input, against which a smaller `train.lr` or a \
                 longer `train.warmup_images` helps",
                names.len()
            ));
        }
        Ok(())
    }

    /// max |decode(encode(x)) - x| over the first few images of the validation set (without one: the training set).
    fn reconstruction_error(&self) -> Result<f64> {
        let model: &Model = &self.step.model;
        let split = match self.valid {
            Some(split) => Examples::new(split, model.config())?,
            None => self.step.feed.examples.clone(),
        };
        let n = split.len().min(RECONSTRUCTION_IMAGES);
        let noise = rng_for(self.recipe.train.seed, "reconstruction noise");
        let host = split.host((0..n).map(|i| (i, i as u64)), &noise, Augment::default());
        let batch = split.batch(host, self.device)?;
        let z = model.encode(&batch.x, batch.context())?;
        let difference = (model.decode(&z, batch.context())? - &batch.x)?.flatten_all()?.to_vec1::<f32>()?;
        // A NaN must not lose against a number.
        let worst = |a: f32, d: f32| if d > a || d.is_nan() { d } else { a };
        Ok(f64::from(difference.iter().map(|d| d.abs()).fold(0., worst)))
    }

    /// Saves the averaged weights, where there are any, as the best model.
    fn save_best(&mut self) -> Result<()> {
        if self.writes() { self.averaged(Self::save_model) } else { Ok(()) }
    }

    /// Saves the model with the weights that are in place.
    fn save_model(&self) -> Result<()> {
        if !self.writes() {
            return Ok(());
        }
        let saved = self.step.model.save(self.out, &SaveOptions::default());
        saved.context("cannot save the model: is the disk full?")
    }

    fn checkpoint(&mut self) -> Result<()> {
        self.position.wall_seconds = self.wall_seconds();
        let params = self.step.model.params();
        if self.ranks.size() > 1 {
            // Each rank updates its own weights; if they drift apart, no gradient says so.
            same(self.ranks, checkpoint::checksum(params), "the weights")?;
        }
        if let Some(metrics) = &self.metrics {
            metrics.sync()?;
            self.position.log_lines = Some(metrics.lines);
            checkpoint::save(self.out, &self.position, &self.settings, params, &self.step.updater)?;
        }
        self.checkpointed = Some(self.position.update);
        // Before the first validation there is no best model: the latest one can be looked at, with the last weights, since averaged
        // ones have no running statistics before they are measured.
        if self.position.saved.is_none() { self.save_model() } else { Ok(()) }
    }

    fn outcome(&self, stopped_by: StoppedBy) -> Outcome {
        let p = &self.position;
        let w = p.window;
        let shares = !self.step.model.params().running().is_empty();
        let together =
            Together { processes: self.ranks.size(), batch_statistics: shares.then(|| "share".to_owned()) };
        let open = (w.updates > 0).then(|| w.bits / w.updates as f64);
        Outcome {
            updates: p.update,
            images_seen: self.images_seen(),
            epochs: self.epochs(),
            images_per_second: if p.update > 0 { self.images_seen() as f64 / p.train_seconds } else { 0. },
            wall_seconds: self.wall_seconds(),
            best_validation: p.best.map(|b| (b.update, b.bits_per_dim)),
            extended: p.ends.iter().copied().filter(|&end| end < p.update).collect(),
            train_bits_per_dim: p.last_window.map(|m| m.bits_per_dim).or(open),
            stopped_by,
            ranks: Some(together).filter(|together| together.processes > 1),
            finished: stopped_by != StoppedBy::Interrupt,
        }
    }

    /// The error for a loss (or else a gradient) of update `update`, counted from 0, that is not finite.
    fn not_finite(&mut self, update: u64, loss: bool) -> anyhow::Error {
        let what = if loss { "the loss" } else { "the gradient" };
        let place = self.step.find_non_finite(update, loss);
        let place = place.unwrap_or_else(|e| format!("an unknown place ({e})"));
        anyhow!(
            "{what} of update {} is not finite, first in {place}; the update was not made and {}: {}",
            update + 1,
            self.kept(),
            self.remedy()
        )
    }

    /// The part of an error that says which checkpoints are kept, and where the best model is.
    fn kept(&self) -> String {
        let Some(update) = self.checkpointed else { return "there is no checkpoint yet".to_string() };
        let path = self.out.join(CHECKPOINT);
        let last = format!("the last checkpoint, of update {update}, is kept in {}", path.display());
        let best = self.position.best.map(|best| {
            let Measured { update, bits_per_dim } = best;
            let out = self.out.display();
            format!("; the best model, of update {update} with {bits_per_dim:.4} bits/dim, is in {out}")
        });
        let kept =
            self.position.kept.map(|kept| format!(", and the state at update {} in {BEST}", kept.update));
        last + &best.unwrap_or_default() + &kept.unwrap_or_default()
    }

    /// What to do about a divergence: go on from the best checkpoint at a lower rate, or begin anew.
    fn remedy(&self) -> String {
        let begun = self.recipe.train.lower;
        let kept = self.position.kept.filter(|kept| begun.is_none_or(|lower| kept.update <= lower.after));
        let back = kept.map(|Measured { update, .. }| {
            format!(
                "give `--set train.lower.after={update} --set train.lower.factor=0.1` to go on from update {update} with a \
                 tenth of the rate, or "
            )
        });
        back.unwrap_or_default()
            + "train anew in another --out with a lower `train.lr`, a longer `train.warmup_images` or a smaller \
               `train.clip_norm`"
    }
}
