//! One training update, from data to gradient to parameters.
//!
//! ```text
//! x = batch(update)
//! g = d/dp [ -mean log p(x) / (D ln 2) ] + 2 l2 p
//! g <- g min(1, clip / |g|),     p <- rule(p, g, rate(update)),     e <- d e + (1 - d) p
//! ```
//!
//! The two devices differ in where a batch is made and in when the results are read:
//!
//! - **CPU.** A thread prepares batches ahead ([`Feed`]). Loss and gradient norm are read after every update.
//! - **GPU.** The data set lies on the device as bytes, and a kernel makes the batch ([`Batches`]). After a few updates the
//!   whole update is recorded as a CUDA graph and replayed ([`Recorder`]). Nothing in it waits for the host: loss and norm are
//!   summed on the device and read when a line of the log is due. A loss that is not finite is therefore noticed late, but
//!   the kernels make no further update after it, so the parameters are those from before, as on the CPU.
//!
//! Where several processes train ([`Ranks`]), each makes its share of the batch, and gradients are added before the rest of the
//! update, which all of them then make alike.
//!
//! Every batch is a function of the seed and the update's number, so a resumed run sees the same ones, and the batch of an
//! update that failed can be made again to find the layer.
//!
//! Averaged weights e are validated and saved with running statistics of their own, measured on the batches of the first updates
//! ([`Step::use_average`]): batch norm's running statistics are those of p, and the log-det has their logarithm.

use super::reduce::over_ranks;
use crate::batches::{Augment, Batch, Examples, Feed, Host, order};
use crate::data::{Rows, Split, Values};
use crate::ranks::{Ranks, Share, first};
use crate::recipe::{LossUnit, Recipe};
use anyhow::{Context as _, Result, anyhow, bail};
use candle_core::{DType, Device, Tensor};
use flows::Grads;
use flows::models::ContextConfig;
use flows::ops::cuda::{Batches, Recorder, Variation, runs_kernels};
use flows::ops::precision::{self, Precision};
use flows::optim::{Penalty, Tally, UpdateSettings, Updater};
use flows::params::{Param, is_finite};
use flows::{Ctx, Drift, Memory, Mode, Model};
use std::collections::BTreeSet;
use std::f64::consts::LN_2;
use std::sync::mpsc::Receiver;
use std::thread::Scope;
use std::time::Instant;

/// Training images on which the drift of reconstructed inputs is measured.
const DRIFT_IMAGES: usize = 16;

/// At least this many training images are used to measure the running statistics of averaged weights. Those of training average over
/// about as many, at a momentum of .1 and batches of 64.
const MEASURED_IMAGES: usize = 1024;

/// Where batches come from.
enum Source {
    /// Prepared by a thread, then copied to the device.
    Host(Receiver<Host>),
    /// Made by a kernel from a data set on the device.
    Device(Batches, Recorder),
}

/// What an update reads and writes.
pub(super) struct Step<'a> {
    pub(super) model: Model,
    pub(super) updater: Updater,
    pub(super) feed: Feed<'a>,
    source: Option<Source>,
    device: &'a Device,
    pass: Pass<'a>,
    /// The running statistics measured last, and after which update.
    measured: Option<(u64, Vec<Tensor>)>,
    /// Examples of an evaluation's batch.
    eval_batch: usize,
    /// Updates since the results were last read, and when the first of them began.
    pending: u64,
    since: Instant,
}

impl<'a> Step<'a> {
    /// A model with fresh parameters and the optimizer's initial state.
    pub(super) fn new(
        recipe: &Recipe,
        train: &'a Split,
        device: &'a Device,
        ranks: &'a dyn Ranks,
    ) -> Result<Self> {
        let t = &recipe.train;
        let model = Model::new(recipe.model.clone(), t.seed, DType::F32, device)?;
        let examples = Examples::new(train, model.config())?;
        let augment = Augment { hflip: t.hflip, shift: t.shift };
        let penalty = |name: &str| Penalty {
            l2: if has_l2(name) { t.l2 } else { 0. },
            decay: if decays(name) { t.weight_decay } else { 0. },
        };
        let settings = UpdateSettings { clip_norm: t.clip_norm, ema: t.ema };
        let updater = Updater::new(t.optimizer, model.params(), settings, penalty)?;
        let factor = match t.loss {
            LossUnit::BitsPerDim => 1. / (model.dims() as f64 * LN_2),
            LossUnit::Nats => 1.,
        };
        let share = Share::new(t.batch, ranks);
        Ok(Self {
            feed: Feed { examples, share, seed: t.seed, augment },
            model,
            updater,
            source: None,
            device,
            pass: Pass { memory: t.memory, factor, ranks, weight: share.weight() },
            measured: None,
            eval_batch: recipe.eval.batch,
            pending: 0,
            since: Instant::now(),
        })
    }

    /// Sets actnorm, running statistics and the moving average from the first `images` training images.
    pub(super) fn initialise(&mut self, images: usize) -> Result<()> {
        let split = self.feed.examples.split();
        if let Values::Reals(values) = &split.values {
            let rows = Tensor::from_slice(values, (split.len(), split.dims()), &Device::Cpu)?;
            self.model.standardize(&rows)?;
        }
        let batch = self.feed.examples.batch(self.feed.initial(images), self.device)?;
        // Of features that are given all rows are known, of those made of images these ones.
        match (self.model.config().context(), &split.context, batch.context().features) {
            (ContextConfig::Features { .. }, Some(Rows { shape, values }), _) => {
                let sides = [&[split.len()][..], shape].concat();
                self.model.standardize_context(&Tensor::from_slice(values, sides, &Device::Cpu)?)?;
            }
            (_, _, Some(features)) => self.model.standardize_context(features)?,
            _ => {}
        }
        self.model.init(&batch.x, batch.context()).context("data-dependent initialisation failed")?;
        if let Some(name) = self.model.params().find_non_finite()? {
            bail!("after data-dependent initialisation `{name}` is not finite: raise `train.init_images`");
        }
        // Averages start at the initialised values, not at those before.
        self.updater.parts().1.map_or(Ok(()), |ema| Ok(ema.restart()?))
    }

    /// Puts the averaged weights after update `update` in place, where there are any, with running statistics measured for them. Returns
    /// the running statistics of the last weights, for [`Step::use_last`]. After an error the last weights are in place.
    pub(super) fn use_average(&mut self, update: u64) -> Result<Vec<(Param, Tensor)>> {
        let averages = self.updater.ema().is_some();
        let running = if averages { self.model.params().running() } else { Vec::new() };
        let last = running.into_iter().map(|(_, p)| p.value().copy().map(|value| (p, value)));
        let last = last.collect::<candle_core::Result<Vec<_>>>()?;
        self.updater.swap_average()?;
        if !last.is_empty()
            && let Err(e) = self.set_statistics(update, &last)
        {
            self.use_last(&last)?;
            return Err(e);
        }
        Ok(last)
    }

    /// Sets the running statistics to those of the averaged weights, which are in place: measured, or as measured after this update before.
    ///
    /// Every process measures on the same batches, so that all have the same statistics. They are no larger than those of an
    /// evaluation, which is what a process has the memory for.
    fn set_statistics(&mut self, update: u64, running: &[(Param, Tensor)]) -> Result<()> {
        if let Some((at, values)) = &self.measured
            && *at == update
        {
            return running.iter().zip(values).try_for_each(|((p, _), value)| Ok(p.set(value)?));
        }
        let batch = self.feed.share.of.min(self.eval_batch);
        let feed = Feed { share: Share::all(batch), ..self.feed.clone() };
        let mut order = None;
        for k in 1..=MEASURED_IMAGES.div_ceil(batch) as u32 {
            let batch = feed.examples.batch(feed.prepare(u64::from(k) - 1, &mut order), self.device)?;
            precision::within(Precision::Full, || self.model.measure(&batch.x, batch.context(), k))?;
        }
        let values = running.iter().map(|(p, _)| p.value().copy()).collect::<candle_core::Result<_>>()?;
        self.measured = Some((update, values));
        Ok(())
    }

    /// Puts the last weights back in place, with their running statistics: what [`Step::use_average`] returned.
    pub(super) fn use_last(&mut self, running: &[(Param, Tensor)]) -> Result<()> {
        self.updater.swap_average()?;
        running.iter().try_for_each(|(p, value)| Ok(p.set(value)?))
    }

    /// Prepares batches from update `from` on, in a thread of `scope` or on the GPU.
    pub(super) fn start<'scope>(&mut self, from: u64, scope: &'scope Scope<'scope, '_>) -> Result<()>
    where
        'a: 'scope,
    {
        self.source = Some(match self.batches_on_device()? {
            Some(batches) => {
                batches.start(from)?;
                Source::Device(batches, Recorder::default())
            }
            None => Source::Host(self.feed.clone().start(from, scope)),
        });
        Ok(())
    }

    /// The data set on the GPU, if the device is one and the data are images.
    fn batches_on_device(&self) -> Result<Option<Batches>> {
        let (feed, split) = (&self.feed, self.feed.examples.split());
        let (Values::Pixels(pixels), &[c, h, w]) = (&split.values, split.shape.as_slice()) else {
            return Ok(None);
        };
        // The kernel that makes batches gives no features.
        let features = self.model.config().context().shape(&split.shape)?.is_some();
        if !runs_kernels(self.device) || feed.share.of > split.len() || features {
            return Ok(None);
        }
        let config = self.model.config();
        let labels = config.classes().and(split.labels.as_deref());
        let shift = |side: usize| (feed.augment.shift * side as f64).floor() as usize;
        let variation = Variation { hflip: feed.augment.hflip, shift_y: shift(h), shift_x: shift(w) };
        let Share { first, len, of } = feed.share;
        let of = (of, config.bits(), feed.seed);
        let batches = Batches::new(pixels, labels, [c, h, w], of, variation, self.device)?;
        Ok(Some(batches.with_share(first, len)?))
    }

    /// Makes update `update` (counted from 0) at this learning rate.
    pub(super) fn update(&mut self, update: u64, lr: f64) -> Result<()> {
        if self.pending == 0 {
            self.since = Instant::now();
        }
        self.updater.begin(lr)?;
        let Self { model, updater, feed, source, device, pass, .. } = self;
        match source.as_mut().context("an update before `start`")? {
            Source::Host(batches) => {
                let host =
                    batches.recv().map_err(|_| anyhow!("the thread that prepares batches ended early"))?;
                learn(model, updater, &feed.examples.batch(host, device)?, *pass)?;
            }
            Source::Device(batches, recorder) => {
                batches.prepare(update, |epoch| order(feed.seed, epoch, feed.examples.len()))?;
                recorder.run(device, || {
                    let (x, labels) = batches.next()?;
                    learn(model, updater, &Batch::new(x, labels), *pass)?;
                    batches.advance()
                })?;
            }
        }
        self.pending += 1;
        Ok(())
    }

    /// Whether results are read after every update: reading makes the host wait for a GPU.
    pub(super) fn reads_every_update(&self) -> bool {
        !matches!(self.source, Some(Source::Device(..)))
    }

    /// Updates whose results have not been read.
    pub(super) fn pending(&self) -> u64 {
        self.pending
    }

    /// Waits for the pending updates; their sums and the seconds they took, or `None` if there are none.
    pub(super) fn results(&mut self) -> Result<Option<(Tally, f64)>> {
        if self.pending == 0 {
            return Ok(None);
        }
        let tally = self.updater.tally()?;
        self.pending = 0;
        Ok(Some((tally, self.since.elapsed().as_secs_f64())))
    }

    /// Why updates are not recorded, the first time that this is asked.
    pub(super) fn recording_refused(&mut self) -> Option<String> {
        match &mut self.source {
            Some(Source::Device(_, recorder)) => recorder.take_refusal(),
            _ => None,
        }
    }

    /// How far reconstructed inputs are from the true ones on a few training images.
    pub(super) fn drift(&self) -> Result<Drift> {
        let batch = self.feed.examples.batch(self.feed.initial(DRIFT_IMAGES), self.device)?;
        Ok(self.model.drift(&batch.x, Ctx::train().with_context(batch.context()), Drift::BOUND)?)
    }

    /// Stores the inputs of these layers from now on, instead of reconstructing them.
    pub(super) fn store(&mut self, layers: &BTreeSet<String>) {
        self.model.store(layers);
        if let Some(Source::Device(_, recorder)) = &mut self.source {
            recorder.record_again();
        }
    }

    /// Finds what is not finite in `update`: a layer, a parameter or, unless `loss`, a gradient; of several ranks the lowest
    /// that finds something has found it. `loss` says that the loss was not finite.
    pub(super) fn find_non_finite(&mut self, update: u64, loss: bool) -> Result<String> {
        // An error is a find, too: all ranks have to come to the same calls.
        let found = self.find_in_share(update, loss);
        let found = found.unwrap_or_else(|e| Some(format!("an unknown place ({e})")));
        let ranks = self.pass.ranks;
        let mut text = found.unwrap_or_default().into_bytes();
        match first(ranks, !text.is_empty())? {
            Some(rank) => ranks.broadcast(rank, &mut text),
            None => text = "the sum over the batch".into(),
        }
        Ok(String::from_utf8(text)?)
    }

    /// As [`Step::find_non_finite`], in this rank's share of the batch.
    fn find_in_share(&mut self, update: u64, loss: bool) -> Result<Option<String>> {
        let batch = match &mut self.source {
            Some(Source::Device(batches, _)) => {
                let seed = self.feed.seed;
                batches.start(update)?;
                batches.prepare(update, |epoch| order(seed, epoch, self.feed.examples.len()))?;
                let (x, labels) = batches.next()?;
                Batch::new(x, labels)
            }
            _ => self.feed.examples.batch(self.feed.prepare(update, &mut None), self.device)?,
        };
        let ctx = Ctx { mode: Mode::Replay, grad: false, context: batch.context() };
        if let Some(layer) = self.model.find_non_finite(&batch.x, ctx)? {
            return Ok(Some(format!("layer `{layer}`")));
        }
        if let Some(name) = self.model.params().find_non_finite()? {
            return Ok(Some(format!("parameter `{name}`")));
        }
        let grads = match loss {
            true => Grads::new(),
            false => {
                self.model.gradients(&batch.x, ctx, Memory::Store, |p| p.mean_all()? * -self.pass.factor)?.1
            }
        };
        for (name, g) in &grads {
            if !is_finite(g)? {
                return Ok(Some(format!("the gradient of `{name}`")));
            }
        }
        Ok(None)
    }
}

/// How [`learn`] makes a gradient.
#[derive(Clone, Copy)]
pub struct Pass<'a> {
    /// Whether activations are stored or reconstructed.
    pub memory: Memory,
    /// The loss is -mean log p(x) times this.
    pub factor: f64,
    /// The processes that make the same update, each with its share of the batch.
    pub ranks: &'a dyn Ranks,
    /// What the mean over this share counts in the mean over the batch: [`Share::weight`].
    pub weight: f64,
}

/// Gradient and update of one batch, or of this process's share of it. On a GPU nothing here waits for the device.
///
/// # Errors
/// When the batch does not fit the model.
pub fn learn(model: &Model, updater: &mut Updater, batch: &Batch, pass: Pass) -> candle_core::Result<()> {
    let mut mean: Option<Tensor> = None;
    let ctx = Ctx::train().with_context(batch.context());
    let result = model.gradients(&batch.x, ctx, pass.memory, |log_prob| {
        let log_prob = log_prob.mean_all()?;
        mean = Some(log_prob.detach());
        log_prob * (-pass.factor * pass.weight)
    });
    match (result, mean) {
        (Ok((_, grads)), Some(mean)) => {
            let (grads, mean) = over_ranks(pass.ranks, pass.weight, model.params(), grads, mean)?;
            updater.apply(grads, &mean)
        }
        // The backward pass of a loss that is not finite may fail in any layer: the loss is what has to be reported.
        (Err(e), Some(mean)) => {
            if !updater.reject(&mean)? {
                return Err(e);
            }
            // The others wait for this rank's share, and their sum will not be finite either.
            over_ranks(pass.ranks, pass.weight, model.params(), Grads::new(), mean).map(drop)
        }
        (Err(e), None) => Err(e),
        (Ok(_), None) => candle_core::bail!("a training pass computed no log p(x)"),
    }
}

/// Whether `train.l2` applies to the parameter of this name: to the scales of RealNVP (section 4.1), which are weight norm's
/// magnitudes and the gains of the couplings' tanh. A top prior's `gain` is none of these.
fn has_l2(name: &str) -> bool {
    let scale = [".magnitude", ".gain", ".gains"].iter().any(|end| name.ends_with(end));
    scale && !name.ends_with(".top.gain")
}

/// Whether `train.weight_decay` applies to the parameter of this name: to the weights of networks. Biases, scales and the
/// invertible maps themselves (actnorm, 1x1 convolutions, NICE's diagonal) have no reason to be small.
fn decays(name: &str) -> bool {
    name.contains(".net.") && name.ends_with(".weight")
}

#[cfg(test)]
mod tests {
    use super::*;
    use flows::ModelConfig;
    use flows::models::{GlowConfig, RealNvpConfig};

    #[test]
    fn l2_is_for_scales_of_couplings_and_weight_norm() {
        let penalised = |config: ModelConfig| -> Vec<String> {
            let model = Model::new(config, 0, DType::F32, &Device::Cpu).unwrap();
            let names = model.params().trained().into_iter().map(|(name, _)| name);
            names.filter(|name| has_l2(name)).collect()
        };
        for channel_gains in [false, true] {
            let paper = RealNvpConfig::cifar_paper();
            let names = penalised(ModelConfig::RealNvp(RealNvpConfig {
                features: 2,
                blocks: 1,
                channel_gains,
                ..paper
            }));
            for coupling in ["level0.checker0", "level0.channel0"] {
                let gain = format!("{coupling}.{}", if channel_gains { "net.gains" } else { "gain" });
                let magnitude = format!("{coupling}.net.first.magnitude");
                for name in [gain, magnitude] {
                    assert!(names.contains(&name), "{name}: {names:?}");
                }
            }
        }
        let glow = GlowConfig { levels: 2, depth: 1, width: 2, learn_top: true, ..GlowConfig::cifar_code() };
        assert_eq!(penalised(ModelConfig::Glow(glow)), Vec::<String>::new());
    }
}
