//! MAF (Papamakarios, Pavlakou, Murray 2017, arXiv 1705.07057): autoregressive layers in alternating or random orders.
//!
//! With splines it is the autoregressive flow of Durkan et al. 2019 (arXiv 1906.04032). There is no batch norm between the
//! layers, which the paper has for its five data sets: standardized data and a bounded log-scale do without, as in zuko.

use super::composed::ComposedConfig;
use super::context::ContextConfig;
use super::dequantize::Dequantize;
use super::layer::LayerConfig;
use super::preprocess::Preprocess;
use super::prior::PriorConfig;
use super::transform::{CouplingTransform, TransformConfig};
use crate::nets;
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
    /// The model as a list of its layers.
    pub(super) fn composed(&self) -> Result<ComposedConfig> {
        let dims: usize = self.shape.iter().product();
        if dims == 0 || self.layers == 0 {
            bail!("`shape` {:?} and `layers` = {}: give at least one of each", self.shape, self.layers);
        }
        let layer = LayerConfig::Autoregressive {
            order: match self.order {
                Order::Reverse => nets::Order::Natural,
                Order::Random => nets::Order::Random,
            },
            alternate: self.order == Order::Reverse,
            transform: self.transform.config(TransformConfig::default()),
            hidden: self.hidden.clone(),
        };
        let steps = LayerConfig::Steps { repeat: self.layers, layers: vec![layer.into()] };
        Ok(ComposedConfig {
            shape: self.shape.clone(),
            bits: self.bits,
            preprocess: self.preprocess,
            levels: vec![],
            layers: vec![steps.named("layer")],
            prior: self.prior.clone(),
            dequantize: self.dequantize.clone(),
            context: self.context.clone(),
        })
    }
}
