//! MAF (Papamakarios, Pavlakou, Murray 2017, arXiv 1705.07057): autoregressive layers in alternating or random orders.
//!
//! With splines it is the autoregressive flow of Durkan et al. 2019 (arXiv 1906.04032). There is no batch norm between the
//! layers, which the paper has for its five data sets: standardized data and a bounded log-scale do without, as in zuko.

use super::built::Built;
use super::context::ContextConfig;
use super::dequantize::Dequantize;
use super::preprocess::Preprocess;
use super::prior::PriorConfig;
use super::transform::CouplingTransform;
use crate::bijections::Autoregressive;
use crate::core::Chain;
use crate::nets::{self, Made, MadeConfig, Start};
use crate::params::ParamBuilder;
use crate::transforms::Affine;
use candle_core::{Result, bail};
use serde::{Deserialize, Serialize};

/// The orders of the layers.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Order {
    /// The natural order and the reversed one alternately (section 4.1).
    Reverse,
    /// A random one in each layer.
    Random,
}

/// The settings of a MAF, saved as config.json.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct MafConfig {
    /// One example: `[D]`, or `[C, H, W]`, which is flattened.
    pub shape: Vec<usize>,
    /// Bits of a pixel value.
    pub bits: u8,
    /// The first layers.
    pub preprocess: Preprocess,
    /// The orders of the layers.
    pub order: Order,
    /// Autoregressive layers.
    pub layers: usize,
    /// The hidden widths of each layer's network.
    pub hidden: Vec<usize>,
    /// The transform of the layers.
    pub transform: CouplingTransform,
    /// The prior of the whole latent.
    #[serde(with = "super::named")]
    pub prior: PriorConfig,
    /// The noise that is added to pixels.
    #[serde(with = "super::named", default, skip_serializing_if = "Dequantize::is_uniform")]
    pub dequantize: Dequantize,
    /// What the networks see beside x.
    #[serde(with = "super::named", default, skip_serializing_if = "ContextConfig::is_none")]
    pub context: ContextConfig,
}

impl MafConfig {
    pub(super) fn build(&self, vb: &ParamBuilder) -> Result<Built> {
        let dims: usize = self.shape.iter().product();
        if dims == 0 || self.layers == 0 {
            bail!("`shape` {:?} and `layers` = {}: give at least one of each", self.shape, self.layers);
        }
        let given = self.context.build(&self.shape, vb)?;
        let mut chain = Chain::new();
        self.dequantize.push(&mut chain, &self.shape, (self.preprocess, self.bits), vb)?;
        self.preprocess.push(&mut chain, &self.shape, self.bits, self.shape.len() > 1, vb)?;
        for i in 0..self.layers {
            let name = format!("layer{i}");
            let vb = vb.pp(&name);
            let transform = self.transform.build(|| Affine::tanh(&vb))?;
            let order = match self.order {
                Order::Reverse if i % 2 == 0 => nets::Order::Natural,
                Order::Reverse => nets::Order::Reversed,
                Order::Random => nets::Order::Random,
            };
            let params_per_element = transform.params_per_element();
            let features = given.channels(&[])?;
            let sizes = MadeConfig { dims, features, hidden: &self.hidden, params_per_element, order };
            let net = Made::new(&sizes, Start::Identity, &vb.pp("net"))?;
            chain.push(&name, Autoregressive::with_features(transform, net, given.0.clone()));
        }
        Ok(Built { chain, prior: self.prior.build(dims, &vb.pp("prior"))?, latent: vec![[dims, 1, 1]] })
    }
}
