//! Steps on a GPU that never wait for the processor.
//!
//! The data lie on the GPU as bytes, batches are made there, and loss, gradient norm and the rest of the log are summed
//! there: the processor reads them back when a line of the log is due. After a few steps a whole step (forward, backward,
//! clipping, optimiser, averages) is recorded, and from then on each is one launch. Where a step cannot be recorded the
//! reason is told once.
//!
//! A loss that is not finite is therefore met late, at the next line of the log. Nothing is lost by that: the kernels stop
//! updating at once, so the parameters are those from before that update, as they are on the CPU.

use super::{Run, kept};
use crate::batches::{Batch, order};
use crate::data::Values;
use anyhow::{Result, anyhow};
use candle_core::Tensor;
use flows::ops::cuda::{Batches, Graph, Variation, capture, run_on, warm_up};
use flows::optim::{Grads, OnDevice};
use flows::{Ctx, Memory, Model};
use std::time::Instant;

/// Steps before one is recorded.
const WARM_UP: u32 = 3;

/// How steps are launched.
enum Launch {
    /// Kernel by kernel, so many times yet until one is recorded.
    WarmUp(u32),
    /// As one graph.
    Replay(Graph),
    /// Kernel by kernel, for good.
    Each,
}

/// What a run on a GPU keeps there.
pub(super) struct Gpu {
    batches: Batches,
    step: OnDevice,
    launch: Launch,
    /// Steps since the tally was read, and when the first of them began.
    pending: u64,
    since: Instant,
}

impl Gpu {
    /// For a run that has begun, where its data are images on a GPU; `None` for others, which train as on the CPU.
    pub(super) fn start(run: &Run) -> Result<Option<Self>> {
        let (t, split) = (&run.recipe.train, run.feed.examples.split());
        let (Values::Pixels(pixels), &[c, h, w]) = (&split.values, split.shape.as_slice()) else {
            return Ok(None);
        };
        if !run_on(run.device) || t.batch > split.len() {
            return Ok(None);
        }
        let labels = run.model.config().classes().and(split.labels.as_deref());
        let most = |side: usize| (t.shift * side as f64).floor() as usize;
        let variation = Variation { hflip: t.hflip, shift_y: most(h), shift_x: most(w) };
        let of = (t.batch, run.model.config().bits(), t.seed);
        let batches = Batches::new(pixels, labels, [c, h, w], of, variation, run.device)?;
        batches.start(run.position.update)?;
        let l2 = |name: &str| if super::has_l2(name) { t.l2 } else { 0. };
        let step = OnDevice::new(&run.optimizer, run.ema.as_ref(), l2)?;
        Ok(Some(Self { batches, step, launch: Launch::WarmUp(WARM_UP), pending: 0, since: Instant::now() }))
    }

    /// Has the step recorded anew, for it has changed: a layer is stored that was rebuilt.
    pub(super) fn record_again(&mut self) {
        if let Launch::Replay(_) = self.launch {
            self.launch = Launch::WarmUp(WARM_UP);
        }
    }

    /// One whole step, with nothing in it that waits.
    fn pass(&mut self, model: &Model, memory: Memory, factor: f64) -> candle_core::Result<()> {
        let (x, labels) = self.batches.next()?;
        let mut mean: Option<Tensor> = None;
        let ctx = Ctx::train().with_cond(labels.as_ref());
        let (_, grads) = model.gradients(&x, ctx, memory, |log_prob| {
            let log_prob = log_prob.mean_all()?;
            mean = Some(log_prob.detach());
            log_prob * -factor
        })?;
        self.step.run(&grads, &mean.expect("a pass computes its loss"))?;
        self.batches.advance()
    }
}

impl Run<'_> {
    /// Launches the next update.
    pub(super) fn step_on_gpu(&mut self, gpu: &mut Gpu) -> Result<()> {
        let t = &self.recipe.train;
        let update = self.position.update;
        if gpu.pending == 0 {
            gpu.since = Instant::now();
        }
        gpu.batches.prepare(update, |epoch| order(t.seed, epoch, self.feed.examples.len()))?;
        let lr = super::rate(t, update, self.plan.map(|(n, _)| n));
        gpu.step.set(&mut self.optimizer, self.ema.as_mut(), lr, t.clip_norm)?;
        let factor = self.loss_factor();
        if let Launch::WarmUp(0) = gpu.launch {
            gpu.launch = match capture(self.device, || gpu.pass(&self.model, t.memory, factor)) {
                Ok(graph) => {
                    tracing::info!(nodes = graph.nodes(), "an update is recorded, and replayed from now on");
                    Launch::Replay(graph)
                }
                Err(e) => {
                    let reason = e.to_string();
                    self.progress.message(&format!(
                        "updates are launched kernel by kernel, for a recording was refused ({}); nsys shows how long the \
                         GPU waits for them",
                        reason.lines().next().unwrap_or_default()
                    ));
                    Launch::Each
                }
            };
        }
        match &mut gpu.launch {
            Launch::Replay(graph) => graph.launch()?,
            Launch::WarmUp(left) => {
                *left -= 1;
                warm_up(self.device, || gpu.pass(&self.model, t.memory, factor))?;
            }
            Launch::Each => gpu.pass(&self.model, t.memory, factor)?,
        }
        self.position.update += 1;
        gpu.pending += 1;
        if self.position.update.is_multiple_of(t.log_every) {
            self.read_back(gpu)?;
            self.report(lr)?;
        }
        Ok(())
    }

    /// Waits for the updates launched so far, and adds what they leave to the log's window.
    pub(super) fn read_back(&mut self, gpu: &mut Gpu) -> Result<()> {
        if gpu.pending == 0 {
            return Ok(());
        }
        let tally = gpu.step.tally()?;
        if let Some(loss) = tally.not_finite {
            self.position.update = self.position.update - gpu.pending + tally.updates;
            return Err(self.not_finite_on_gpu(gpu, loss));
        }
        let seconds = gpu.since.elapsed().as_secs_f64();
        let to_bits = self.to_bits();
        let position = &mut self.position;
        position.train_seconds += seconds;
        let w = &mut position.window;
        w.updates += tally.updates;
        w.bits -= to_bits * tally.log_prob;
        w.grad_norm += tally.norm;
        w.clip += tally.clip;
        w.seconds += seconds;
        gpu.pending = 0;
        Ok(())
    }

    /// The error for the update after `position.update`, whose batch is made again to find where it went wrong.
    fn not_finite_on_gpu(&self, gpu: &mut Gpu, loss: bool) -> anyhow::Error {
        let what = if loss { "the loss" } else { "the gradient" };
        let (update, t) = (self.position.update, &self.recipe.train);
        let mut again = || -> candle_core::Result<(Batch, Grads)> {
            gpu.batches.start(update)?;
            gpu.batches.prepare(update, |epoch| order(t.seed, epoch, self.feed.examples.len()))?;
            let (x, labels) = gpu.batches.next()?;
            let batch = Batch::new(x, labels);
            let grads = match loss {
                true => Grads::new(),
                false => {
                    let ctx = Ctx::train().with_cond(batch.cond()).replay();
                    self.model.gradients(&batch.x, ctx, Memory::Store, |p| p.mean_all()? * -1.)?.1
                }
            };
            Ok((batch, grads))
        };
        match again() {
            Ok((batch, grads)) => self.not_finite(what, &batch, &grads),
            Err(e) => anyhow!(
                "{what} of update {} is not finite ({e}); {}",
                update + 1,
                kept(self.checkpointed, self.out)
            ),
        }
    }
}
