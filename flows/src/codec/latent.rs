//! Latents under the prior.
//!
//! A mixture is coded by bits back, too: which component a latent is of is popped under p(k | z), the latent is pushed under that
//! component, and the component under its weight. That takes -log2 p(z) bits, whichever component it was.

use super::layers::{Bits, Layer, real};
use super::table::{Choice, Table, choice};
use super::way::{Way, numbers, tensor};
use crate::core::Context;
use crate::priors::{Components, Prior, PriorCoding, Standard};
use candle_core::{DType, Device, Result, Tensor, bail};

/// A prior, prepared.
pub(super) struct Latent<'a> {
    mixture: Option<(&'a dyn Components, Choice)>,
    layer: Option<Layer<'a>>,
    tables: Vec<Table>,
    /// The table of each dimension, or of all.
    of: Vec<usize>,
    dims: usize,
    precision: u32,
    dtype: DType,
}

impl<'a> Latent<'a> {
    /// The prior of latents of `dims` numbers, which have `bits` before its layer, as [`Layer::new`] has them.
    pub(super) fn new(
        prior: &'a dyn Prior,
        dims: usize,
        bits: &mut Bits,
        precision: u32,
        dtype: DType,
    ) -> Result<Self> {
        let PriorCoding { mixture, layer, standard } = prior.coding()?;
        if ![1, dims].contains(&standard.len()) {
            bail!("the prior has {} dimensions, the latent {dims}", standard.len());
        }
        let of_mixture = |m: &'a dyn Components| -> Result<(&'a dyn Components, Choice)> {
            Ok((m, among(&m.log_weights()?)?))
        };
        let (mut known, mut of): (Vec<Standard>, Vec<usize>) = (Vec::new(), Vec::new());
        for s in standard.into_iter().map(rounded) {
            let at = known.iter().position(|k| *k == s).unwrap_or(known.len());
            if at == known.len() {
                known.push(s);
            }
            of.push(at);
        }
        Ok(Self {
            mixture: mixture.map(of_mixture).transpose()?,
            layer: layer.map(|layer| Layer::new(layer, dims, bits, precision, dtype)).transpose()?,
            tables: known.into_iter().map(Table::new).collect::<Result<_>>()?,
            of,
            dims,
            precision,
            dtype,
        })
    }

    fn table(&self, i: usize) -> &Table {
        &self.tables[self.of[i % self.of.len()]]
    }

    /// p(k | z).
    fn posterior(&self, mixture: &dyn Components, z: &Tensor) -> Result<Choice> {
        among(&mixture.log_joint(&real(z, self.precision, self.dtype)?)?)
    }

    /// The layer, given a component, in either direction.
    fn layer(&self, z: &Tensor, component: Option<usize>, way: &mut Way, forward: bool) -> Result<Tensor> {
        let Some(layer) = &self.layer else { return Ok(z.clone()) };
        let class = component.map(|k| Tensor::new(&[k as u32], &Device::Cpu)).transpose()?;
        let context = class.as_ref().map_or(way.context, Context::labels);
        let way = &mut Way { stack: way.stack, context };
        if forward { layer.encode(z, way) } else { layer.decode(z, way) }
    }

    /// Pushes a latent, (1, D).
    pub(super) fn encode(&self, z: &Tensor, way: &mut Way) -> Result<()> {
        let component = match &self.mixture {
            Some((mixture, _)) => Some(way.stack.pop_choice(&self.posterior(*mixture, z)?)),
            None => None,
        };
        let e = self.layer(z, component, way, true)?;
        for (i, e) in numbers(&e)?.into_iter().enumerate() {
            way.stack.push_standard(e, self.precision, self.table(i));
        }
        if let (Some((_, weights)), Some(k)) = (&self.mixture, component) {
            way.stack.push_choice(k, weights);
        }
        Ok(())
    }

    /// Pops a latent, (1, D).
    pub(super) fn decode(&self, way: &mut Way) -> Result<Tensor> {
        let component = self.mixture.as_ref().map(|(_, weights)| way.stack.pop_choice(weights));
        let pop = |i| way.stack.pop_standard(self.precision, self.table(i));
        let mut e = (0..self.dims).rev().map(pop).collect::<Result<Vec<_>>>()?;
        e.reverse();
        let z = self.layer(&tensor(e, &[1, self.dims])?, component, way, false)?;
        if let (Some((mixture, _)), Some(k)) = (&self.mixture, component) {
            way.stack.push_choice(k, &self.posterior(*mixture, &z)?);
        }
        Ok(z)
    }
}

/// The choice whose probabilities are in the ratio of these logarithms' exponentials.
fn among(logs: &[f64]) -> Result<Choice> {
    let most = logs.iter().copied().fold(f64::NEG_INFINITY, f64::max);
    let mut probabilities: Vec<f64> = logs.iter().map(|log| (log - most).exp()).collect();
    if probabilities.len() == 1 {
        // The coder has no choice of one.
        probabilities.push(0.);
    }
    choice(&probabilities)
}

/// Degrees of freedom as 128 steps an octave have them, so that dimensions share tables: log p of most numbers changes by less
/// than 10^-3.
fn rounded(standard: Standard) -> Standard {
    match standard {
        Standard::StudentT(df) => Standard::StudentT(((128. * df.log2()).round() / 128.).exp2()),
        fixed => fixed,
    }
}
