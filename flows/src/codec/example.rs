//! One image to bits and back.

use super::latent::Latent;
use super::layers::{Bits, Layer, needed};
use super::stack::Stack;
use super::way::{Way, numbers, tensor};
use crate::core::{Bijection, Coding, Context};
use crate::models::Model;
use candle_core::{Device, Result, Tensor, bail};

/// A model, prepared.
pub(super) struct Plan<'a> {
    layers: Layer<'a>,
    prior: Latent<'a>,
    shape: Vec<usize>,
    /// Bits of a pixel that the model sees.
    bits: u32,
    /// Bits of the noise, whose numbers are those of the first layer, and of the latent.
    noise: u32,
    classes: Option<usize>,
}

/// Whether the first layer is one of learned noise.
fn has_noise(f: &dyn Bijection) -> Result<bool> {
    match f.composite() {
        Some(c) => c.links().first().map_or(Ok(false), |link| has_noise(link.layer())),
        None => Ok(matches!(f.coding()?, Coding::Noise(_))),
    }
}

impl<'a> Plan<'a> {
    pub(super) fn new(model: &'a Model, precision: u32) -> Result<Self> {
        let (config, dtype) = (model.config(), model.params().dtype());
        if config.preprocess().is_for_vectors() {
            bail!("this model takes vectors of real numbers: only images of bytes are compressed");
        }
        if config.context().shape(config.shape())?.is_some() {
            bail!(
                "this is a model of p(x | c): images are compressed by models of p(x), and of p(x | class)"
            );
        }
        let (dims, bits) = (model.dims(), u32::from(config.bits()));
        let next = precision.max(needed(model.bijection())?);
        // Numbers of the first layer are pixels; one rescaled to [0, 1] has as many more bits as it has lost.
        let noise = next - bits;
        let noise = if has_noise(model.bijection())? { noise.max(precision) } else { noise };
        let mut at = Bits { at: noise, next };
        let layers = Layer::new(model.bijection(), dims, &mut at, precision, dtype)?;
        let prior = Latent::new(model.prior(), dims, &mut at, precision, dtype)?;
        if at.at != precision {
            bail!("no layer of this model changes every element, as those of its own preprocessing do");
        }
        Ok(Self { layers, prior, shape: model.shape().to_vec(), bits, noise, classes: config.classes() })
    }

    /// The dimensions of an image.
    pub(super) fn dims(&self) -> usize {
        self.shape.iter().product()
    }

    /// Whether an image has a class.
    pub(super) fn classes(&self) -> Option<usize> {
        self.classes
    }

    fn label(label: Option<u32>) -> Result<Option<Tensor>> {
        label.map(|label| Tensor::new(&[label], &Device::Cpu)).transpose()
    }

    /// Pushes an image.
    pub(super) fn encode(&self, pixels: &[u8], label: Option<u32>, stack: &mut Stack) -> Result<()> {
        let labels = Self::label(label)?;
        let low = 8 - self.bits;
        // Bits that the model does not see are as they are.
        pixels.iter().for_each(|&p| stack.push_bits(u64::from(p), low));
        let noisy = |&p: &u8| (i64::from(p >> low) << self.noise) | stack.pop_bits(self.noise) as i64;
        let x: Vec<i64> = pixels.iter().map(noisy).collect();
        let mut way = Way { stack, context: Context::from(labels.as_ref()) };
        let z = self.layers.encode(&tensor(x, &[&[1], self.shape.as_slice()].concat())?, &mut way)?;
        self.prior.encode(&z.flatten_from(1)?, &mut way)?;
        if let (Some(label), Some(classes)) = (label, self.classes) {
            way.stack.push(u64::from(label), classes as u64);
        }
        Ok(())
    }

    /// Pops an image, and its class.
    pub(super) fn decode(&self, stack: &mut Stack) -> Result<(Vec<u8>, Option<u32>)> {
        let label = self.classes.map(|classes| stack.pop(classes as u64) as u32);
        let labels = Self::label(label)?;
        let mut way = Way { stack, context: Context::from(labels.as_ref()) };
        let z = self.prior.decode(&mut way)?;
        let x = numbers(&self.layers.decode(&z, &mut way)?)?;
        let low = 8 - self.bits;
        let mut pixels = vec![0u8; x.len()];
        for (p, x) in pixels.iter_mut().zip(x).rev() {
            let n = x >> self.noise;
            if !(0..1 << self.bits).contains(&n) {
                bail!("it is no image: the file is damaged");
            }
            way.stack.push_bits((x - (n << self.noise)) as u64, self.noise);
            *p = (n as u8) << low;
        }
        pixels.iter_mut().rev().for_each(|p| *p |= way.stack.pop_bits(low) as u8);
        Ok((pixels, label))
    }
}
