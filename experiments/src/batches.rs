//! From stored bytes to what a flow takes: order, augmentation, noise, batches.
//!
//! ```text
//! x = floor(pixel / 2^(8 - bits)) + u,     u uniform on [0, 1)
//! ```
//!
//! Every random number is a function of the seed, the number of the update and the place in the batch, never of what was
//! drawn before: a run that is resumed at update u sees the very batches that it would have seen, and no number of
//! threads or processes changes them: a process makes its share of each batch. Training takes its examples from one endless sequence, epoch after epoch, each in an order of its own; an
//! update takes the next `batch` examples of it, so that no example is left out at the end of an epoch and every batch
//! is full.
//!
//! u is a multiple of 2^-(24 - bits), so that the sum is exact in f32 and x stays below 2^bits: with finer noise,
//! 255 + u would be rounded up to 256 once in a while, which is outside of the data.

use crate::data::{Split, Values};
use crate::ranks::Share;
use anyhow::{Context as _, Result, ensure};
use candle_core::{Device, Tensor};
use flows::bijections::preprocess::dequantize;
use flows::models::ContextConfig;
use flows::params::rng_for;
use flows::{Context, ModelConfig};
use rand::Rng;
use rand::seq::SliceRandom;
use rand_chacha::ChaCha8Rng;
use std::sync::mpsc::{Receiver, sync_channel};
use std::thread::Scope;

/// Batches that are prepared ahead of the one in use.
const AHEAD: usize = 2;

/// The order in which epoch `epoch` visits `n` examples.
pub fn order(seed: u64, epoch: u64, n: usize) -> Vec<u32> {
    let mut places: Vec<u32> = (0..n as u32).collect();
    places.shuffle(&mut rng_for(seed, &format!("order {epoch}")));
    places
}

/// How training examples are varied; the default leaves them as they are.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct Augment {
    /// Mirrored left to right, every second time.
    pub hflip: bool,
    /// Shifted by up to this share of each side, edge pixels repeated.
    pub shift: f64,
}

impl Augment {
    fn is_none(&self) -> bool {
        !self.hflip && self.shift <= 0.
    }

    /// Draws a variation and writes the image that it makes of `image`, (C, H, W).
    fn apply(&self, image: &[u8], [_, h, w]: [usize; 3], rng: &mut ChaCha8Rng, out: &mut [u8]) {
        let flip = self.hflip && rng.random::<bool>();
        let mut offset = |side: usize| {
            let most = ((self.shift * side as f64).floor() as i64).clamp(0, side as i64 - 1);
            rng.random_range(-most..=most)
        };
        let (dy, dx) = (offset(h), offset(w));
        let clamp = |i: usize, d: i64, side: usize| (i as i64 + d).clamp(0, side as i64 - 1) as usize;
        for (plane, to) in image.chunks_exact(h * w).zip(out.chunks_exact_mut(h * w)) {
            for (y, row) in to.chunks_exact_mut(w).enumerate() {
                let from = &plane[clamp(y, dy, h) * w..][..w];
                for (x, v) in row.iter_mut().enumerate() {
                    *v = from[clamp(if flip { w - 1 - x } else { x }, dx, w)];
                }
            }
        }
    }
}

/// A batch in host memory.
#[derive(Clone, Debug, PartialEq)]
pub struct Host {
    /// Inputs of the flow, example after example.
    pub values: Vec<f32>,
    /// One class per example, for class-conditional models.
    pub labels: Option<Vec<u32>>,
    /// What is given with each example, for models that take it.
    pub features: Option<Vec<f32>>,
}

/// A batch on the device.
pub struct Batch {
    /// The flow's input, (B, ..), pixels in [0, 2^bits).
    pub x: Tensor,
    labels: Option<Tensor>,
    features: Option<Tensor>,
}

impl Batch {
    /// A batch that is on the device already, for a model that is given labels at most.
    pub fn new(x: Tensor, labels: Option<Tensor>) -> Self {
        Self { x, labels, features: None }
    }

    /// What a conditional model is given beside x: the labels, if it is class-conditional, and the features of its context.
    pub fn context(&self) -> Context<'_> {
        Context { labels: self.labels.as_ref(), features: self.features.as_ref() }
    }
}

/// Gives a model the shape of these examples and of the context that comes with them.
///
/// # Errors
/// When it takes no examples of this shape.
pub fn fit_shape(model: &mut ModelConfig, split: &Split) -> Result<()> {
    model.set_shape(&split.shape)?;
    model.set_context_shape(split.context.as_ref().map(|c| c.shape.as_slice()));
    Ok(())
}

/// A split as a model sees it.
#[derive(Clone)]
pub struct Examples<'a> {
    split: &'a Split,
    bits: u8,
    conditional: bool,
    context: ContextConfig,
}

impl<'a> Examples<'a> {
    /// The examples of a split for this model.
    ///
    /// # Errors
    /// When the examples do not have the model's shape, or lack the labels or the context that it is given.
    pub fn new(split: &'a Split, model: &ModelConfig) -> Result<Self> {
        ensure!(
            split.shape == model.shape(),
            "the data have shape {:?}, the model takes {:?}: choose other data, or train a model of this `model.shape`",
            split.shape,
            model.shape()
        );
        if let Some(classes) = model.classes() {
            let labels = split.labels.as_ref().with_context(|| {
                format!("the model has {classes} classes and the data no labels: choose other data, or train a model without `classes`")
            })?;
            let most = labels.iter().copied().max().unwrap_or(0);
            ensure!(
                (most as usize) < classes,
                "the data have class {most}, the model only {classes} classes: choose other data, or train a model of more `classes`"
            );
        }
        if let ContextConfig::Features { shape } = model.context() {
            let given = split.context.as_ref().with_context(|| {
                "the model is given a context and the data have none: add it as the array `c`, or train a model without one (model.context=none)"
                    .to_owned()
            })?;
            ensure!(
                given.shape == *shape,
                "the data have a context of shape {:?}, the model takes {shape:?}: choose other data, or train a model of this context",
                given.shape
            );
        }
        let context = model.context().clone();
        Ok(Self { split, bits: model.bits(), conditional: model.classes().is_some(), context })
    }

    /// The split itself.
    pub fn split(&self) -> &'a Split {
        self.split
    }

    /// The number of examples.
    pub fn len(&self) -> usize {
        self.split.len()
    }

    /// Whether there are none.
    pub fn is_empty(&self) -> bool {
        self.split.is_empty()
    }

    /// The examples at `places`, pairs of an index and the stream of `base` from which that example's augmentation and noise are
    /// drawn.
    pub fn host(
        &self,
        places: impl ExactSizeIterator<Item = (usize, u64)>,
        base: &ChaCha8Rng,
        augment: Augment,
    ) -> Host {
        let dims = self.split.dims();
        let mut values = vec![0f32; places.len() * dims];
        let mut labels = self.conditional.then(|| Vec::with_capacity(places.len()));
        let given =
            self.split.context.as_ref().filter(|_| matches!(self.context, ContextConfig::Features { .. }));
        let mut features = given.map(|_| Vec::new());
        let mut varied = vec![0u8; if augment.is_none() { 0 } else { dims }];
        for (out, (place, stream)) in values.chunks_exact_mut(dims).zip(places) {
            match &self.split.values {
                Values::Reals(_) => out.copy_from_slice(self.split.reals(place)),
                Values::Pixels(_) => {
                    let mut rng = base.clone();
                    rng.set_stream(stream);
                    let mut pixels = self.split.pixels(place);
                    if let (false, &[c, h, w]) = (augment.is_none(), self.split.shape.as_slice()) {
                        augment.apply(pixels, [c, h, w], &mut rng, &mut varied);
                        pixels = &varied;
                    }
                    dequantize(pixels, self.bits, &mut rng, out).expect("as many, of bits that models have");
                }
            }
            if let (Some(labels), Some(all)) = (&mut labels, &self.split.labels) {
                labels.push(all[place]);
            }
            if let (Some(features), Some(given)) = (&mut features, given) {
                features.extend_from_slice(given.row(place));
            }
        }
        Host { values, labels, features }
    }

    /// Places a batch on the device, with the context that is made of its images where the model has one.
    ///
    /// # Errors
    /// When the device has no memory left.
    pub fn batch(&self, host: Host, device: &Device) -> Result<Batch> {
        let n = host.values.len() / self.split.dims();
        let mut shape = vec![n];
        shape.extend(&self.split.shape);
        let labels = host.labels.map(|l| Tensor::from_vec(l, n, device)).transpose()?;
        let x = Tensor::from_vec(host.values, shape, device)?;
        let features = match (host.features, &self.split.context) {
            (Some(values), Some(rows)) => {
                Some(Tensor::from_vec(values, [&[n][..], &rows.shape].concat(), device)?)
            }
            _ => self.context.of_images(&x)?,
        };
        Ok(Batch { x, labels, features })
    }
}

/// The batches of a training run.
#[derive(Clone)]
pub struct Feed<'a> {
    /// The training set.
    pub examples: Examples<'a>,
    /// Which places of each batch are made: all, or those of this process.
    pub share: Share,
    /// The seed of order, variation and noise.
    pub seed: u64,
    /// Variation.
    pub augment: Augment,
}

impl<'a> Feed<'a> {
    /// The batch of update `update`, counted from 0. `known` is a cache: the last epoch and its order.
    pub fn prepare(&self, update: u64, known: &mut Option<(u64, Vec<u32>)>) -> Host {
        let n = self.examples.len() as u64;
        let Share { first, len, of } = self.share;
        let mut places = Vec::with_capacity(len);
        for in_batch in (first..first + len).map(|place| place as u64) {
            let position = update * of as u64 + in_batch;
            let epoch = position / n;
            let order = match known {
                Some((e, order)) if *e == epoch => order,
                _ => &known.insert((epoch, order(self.seed, epoch, n as usize))).1,
            };
            places.push((order[(position % n) as usize] as usize, in_batch));
        }
        self.examples.host(places.into_iter(), &rng_for(self.seed, &format!("noise {update}")), self.augment)
    }

    /// Prepares batches from update `from` on in a thread of its own, a few ahead; it ends when the receiver is dropped.
    pub fn start<'scope>(self, from: u64, scope: &'scope Scope<'scope, '_>) -> Receiver<Host>
    where
        'a: 'scope,
    {
        let (sender, receiver) = sync_channel(AHEAD);
        scope.spawn(move || {
            let mut known = None;
            let mut update = from;
            while sender.send(self.prepare(update, &mut known)).is_ok() {
                update += 1;
            }
        });
        receiver
    }

    /// The first `images` examples of epoch 0, without variation: what data-dependent initialisation looks at. If `images` is more than
    /// there are, and training mirrors images, mirror images follow: a covariance of both overfits less.
    pub fn initial(&self, images: usize) -> Host {
        let order = order(self.seed, 0, self.examples.len());
        let n = images.min(order.len());
        let places = order[..n].iter().enumerate().map(|(i, &place)| (place as usize, i as u64));
        let mut host = self.examples.host(places, &rng_for(self.seed, "initial noise"), Augment::default());
        let split = self.examples.split();
        if let (true, &[_, _, width]) = (self.augment.hflip, split.shape.as_slice()) {
            let more = (images - n).min(n);
            let pixels = host.values[..more * split.dims()].to_vec();
            host.values.extend(pixels.chunks_exact(width).flat_map(|row| row.iter().rev()));
            if let Some(labels) = &mut host.labels {
                labels.extend_from_within(..more);
            }
        }
        host
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use flows::models::GlowConfig;

    fn split(n: usize) -> Split {
        let values = (0..n * 2 * 16).map(|i| (i * 37 % 256) as u8).collect();
        let labels = (0..n as u32).map(|i| i % 3).collect();
        Split::new(vec![2, 4, 4], Values::Pixels(values), Some(labels), None).unwrap()
    }

    fn model(bits: u8, classes: Option<usize>) -> ModelConfig {
        ModelConfig::Glow(GlowConfig { shape: [2, 4, 4], bits, classes, ..GlowConfig::cifar_paper() })
    }

    fn feed(split: &Split) -> Feed<'_> {
        let examples = Examples::new(split, &model(8, Some(3))).unwrap();
        Feed { examples, share: Share::all(4), seed: 5, augment: Augment { hflip: true, shift: 0.3 } }
    }

    #[test]
    fn an_order_is_a_permutation_of_its_own() {
        let (a, b) = (order(1, 0, 100), order(1, 1, 100));
        let mut sorted = a.clone();
        sorted.sort_unstable();
        assert_eq!(sorted, (0..100).collect::<Vec<_>>());
        assert_ne!(a, b);
        assert_ne!(a, order(2, 0, 100));
        assert_eq!(a, order(1, 0, 100));
    }

    #[test]
    fn mirror_images_follow_the_initial_ones() {
        let split = split(6);
        let mut feed = feed(&split);
        let plain = feed.initial(6);
        let host = feed.initial(10);
        assert_eq!(host.values[..6 * 32], plain.values);
        let column = |image: usize, x: usize| host.values[image * 32 + x];
        for (image, x) in [(0, 0), (3, 2)] {
            assert_eq!(column(6 + image, x), column(image, 3 - x));
        }
        let labels = host.labels.unwrap();
        assert_eq!((host.values.len(), &labels[6..]), (10 * 32, &labels[..4]));
        feed.augment.hflip = false;
        assert_eq!(feed.initial(10).values, plain.values);
    }

    #[test]
    fn every_epoch_visits_every_example_once() {
        // Each example's label is its index.
        let pixels = Values::Pixels(vec![0; 10 * 2 * 16]);
        let split = Split::new(vec![2, 4, 4], pixels, Some((0..10).collect()), None).unwrap();
        let examples = Examples::new(&split, &model(8, Some(10))).unwrap();
        let feed = Feed { examples, share: Share::all(4), seed: 5, augment: Augment::default() };
        // Ten examples in batches of four: five updates are two epochs, and the third update spans both.
        let mut known = None;
        let visited: Vec<u32> = (0..5).flat_map(|u| feed.prepare(u, &mut known).labels.unwrap()).collect();
        assert_eq!(visited, [order(5, 0, 10), order(5, 1, 10)].concat());
    }

    #[test]
    fn a_batch_depends_on_seed_and_update_only() {
        let split = split(10);
        let feed = feed(&split);
        let mut known = None;
        let straight: Vec<Host> = (0..8).map(|u| feed.prepare(u, &mut known)).collect();
        assert_eq!(feed.prepare(6, &mut None), straight[6]);
        let received: Vec<Host> = std::thread::scope(|scope| {
            let batches = feed.clone().start(3, scope);
            (3..8).map(|_| batches.recv().unwrap()).collect()
        });
        assert_eq!(received, straight[3..]);
        assert_ne!(straight[0], Feed { seed: 6, ..feed.clone() }.prepare(0, &mut None));
    }

    /// Order, variation and noise belong to the place in the batch, whoever makes it.
    #[test]
    fn shares_are_parts_of_the_same_batch() {
        let split = split(10);
        let whole = feed(&split);
        for update in [0, 2, 7] {
            let all = whole.prepare(update, &mut None);
            for (first, len) in [(0, 1), (1, 3), (0, 4)] {
                let part =
                    Feed { share: Share { first, len, of: 4 }, ..whole.clone() }.prepare(update, &mut None);
                assert_eq!(part.values, all.values[first * 32..][..len * 32]);
                assert_eq!(part.labels.unwrap(), all.labels.as_ref().unwrap()[first..][..len]);
            }
        }
    }

    #[test]
    fn inputs_are_floored_pixels_plus_noise_within_the_bin() -> Result<()> {
        let split = split(6);
        for bits in [1u8, 5, 8] {
            let examples = Examples::new(&split, &model(bits, None))?;
            let rng = rng_for(3, "noise");
            let host = examples.host((0..6).map(|i| (i, i as u64)), &rng, Augment::default());
            let Values::Pixels(pixels) = &split.values else { unreachable!() };
            let mut sum = 0.;
            for (&x, &p) in host.values.iter().zip(pixels) {
                let bin = f32::from(p >> (8 - bits));
                assert!(x >= bin && x < bin + 1. && x < f32::from(2u16.pow(bits.into())));
                sum += f64::from(x - bin);
            }
            let n = pixels.len() as f64;
            assert!((sum / n - 0.5).abs() < 4. * (1. / 12. / n).sqrt(), "the noise has mean 1/2");
        }
        Ok(())
    }

    #[test]
    fn the_largest_noise_stays_in_the_last_bin() {
        let unit = 0.5f32.powi(16);
        assert!(255. + (u32::MAX >> 16) as f32 * unit < 256.);
    }

    #[test]
    fn variations_flip_and_repeat_edges() {
        let image: Vec<u8> = (0..12).collect();
        let shape = [1, 3, 4];
        let mut seen = std::collections::BTreeSet::new();
        for i in 0..200 {
            let mut out = vec![0; 12];
            let mut rng = rng_for(i, "x");
            Augment { hflip: true, shift: 0.26 }.apply(&image, shape, &mut rng, &mut out);
            seen.insert(out);
        }
        // 3 shifts of the width (0.26 * 4 rounds down to 1), none of the height, flipped or not.
        let row = |r: [u8; 4]| (0..3).flat_map(|y| r.map(|v| v + 4 * y)).collect::<Vec<u8>>();
        let want = [[0, 1, 2, 3], [1, 2, 3, 3], [0, 0, 1, 2], [3, 2, 1, 0], [3, 3, 2, 1], [2, 1, 0, 0]];
        assert_eq!(seen, want.map(row).into_iter().collect());
    }

    #[test]
    fn labels_go_with_their_examples() -> Result<()> {
        let split = split(10);
        let feed = feed(&split);
        let batch = feed.examples.batch(feed.initial(10), &Device::Cpu)?;
        let want: Vec<u32> = order(5, 0, 10).iter().map(|i| i % 3).collect();
        assert_eq!(batch.context().labels.unwrap().to_vec1::<u32>()?, want);
        assert_eq!(batch.x.dims(), [10, 2, 4, 4]);
        Ok(())
    }

    #[test]
    fn data_that_do_not_fit_the_model_are_errors() {
        let s = split(3);
        let err = |m: &ModelConfig, s: &Split| Examples::new(s, m).err().unwrap().to_string();
        assert!(err(&ModelConfig::Glow(GlowConfig::cifar_paper()), &s).contains("model.shape"));
        assert!(err(&model(8, Some(2)), &s).contains("class 2"));
        assert!(err(&model(8, Some(3)), &Split { labels: None, ..s }).contains("no labels"));
    }
}
