//! NICE (Dinh, Krueger, Bengio 2014, arXiv 1410.8516): additive couplings between MLPs, then a learned diagonal. With
//! splines it is the coupling flow of Durkan et al. 2019 (arXiv 1906.04032), between permutations instead of linear layers.

use super::composed::ComposedConfig;
use super::context::ContextConfig;
use super::dequantize::Dequantize;
use super::layer::{LayerConfig, PartitionConfig};
use super::network::NetConfig;
use super::preprocess::Preprocess;
use super::prior::PriorConfig;
pub use super::transform::CouplingTransform;
use super::transform::TransformConfig;
use candle_core::{Result, bail};
use serde::{Deserialize, Serialize};

/// The permutation of the dimensions.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Order {
    /// Even positions first, once; couplings then keep the two halves alternately (the paper's odd/even partition).
    EvenOdd,
    /// Reversed after each coupling, the first half always kept (the released code).
    Reverse,
}

/// The settings of a NICE, saved as config.json.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct NiceConfig {
    /// One example: `[C, H, W]` or `[D]`.
    pub shape: Vec<usize>,
    /// Bits of a pixel value.
    pub bits: u8,
    /// The first layers.
    pub preprocess: Preprocess,
    /// The permutation of the dimensions.
    pub order: Order,
    /// The hidden widths of each coupling's network.
    pub hidden: Vec<Vec<usize>>,
    /// The transform of the couplings.
    pub law: CouplingTransform,
    /// Weights start as U(-init, init); 0 starts each coupling as the identity.
    pub init: f64,
    /// The first batch sets the diagonal so that each dimension has the prior's standard deviation; else it starts at 1.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub diagonal_from_data: bool,
    /// The prior.
    #[serde(with = "super::named")]
    pub prior: PriorConfig,
    /// The noise that is added to pixels.
    #[serde(with = "super::named", default, skip_serializing_if = "Dequantize::is_uniform")]
    pub dequantize: Dequantize,
    /// What the networks see beside x.
    #[serde(with = "super::named", default, skip_serializing_if = "ContextConfig::is_none")]
    pub context: ContextConfig,
}

impl NiceConfig {
    /// MNIST as in section 5.1: 4 couplings of 5 x 1000, logistic prior, no preprocessing but the noise.
    pub fn mnist_paper() -> Self {
        Self {
            shape: vec![1, 28, 28],
            bits: 8,
            preprocess: Preprocess::Unit {},
            order: Order::EvenOdd,
            hidden: vec![vec![1000; 5]; 4],
            law: CouplingTransform::Additive,
            init: 0.01,
            diagonal_from_data: false,
            prior: PriorConfig::Logistic {},
            dequantize: Dequantize::Uniform {},
            context: ContextConfig::None {},
        }
    }

    /// MNIST as in the released code, exp/nice_mnist.yaml: reversed after each coupling.
    pub fn mnist_code() -> Self {
        Self { order: Order::Reverse, ..Self::mnist_paper() }
    }

    /// CIFAR-10 as in section 5.1: 4 couplings of 4 x 2000 on ZCA-whitened data, logistic prior.
    pub fn cifar_paper() -> Self {
        Self {
            shape: vec![3, 32, 32],
            preprocess: Preprocess::Zca { epsilon: 1e-4 },
            hidden: vec![vec![2000; 4]; 4],
            ..Self::mnist_paper()
        }
    }

    /// CIFAR-10 as in the released code, exp/nice_cifar.yaml: 8 couplings, no ZCA, Gaussian prior.
    pub fn cifar_code() -> Self {
        Self {
            preprocess: Preprocess::Symmetric {},
            order: Order::Reverse,
            hidden: [1, 1, 3, 3, 2, 2, 1, 1].map(|n| vec![2400; n]).to_vec(),
            prior: PriorConfig::Gaussian {},
            ..Self::cifar_paper()
        }
    }

    /// The model as a list of its layers.
    pub(super) fn composed(&self) -> Result<ComposedConfig> {
        let d: usize = self.shape.iter().product();
        if d < 2 {
            bail!("`shape` {:?} has fewer than two dimensions: nothing to couple", self.shape);
        }
        let mut layers = vec![];
        if self.order == Order::EvenOdd {
            layers.push(LayerConfig::EvenOdd {}.named("even_odd"));
        }
        for (i, hidden) in self.hidden.iter().enumerate() {
            let coupling = LayerConfig::Coupling {
                partition: PartitionConfig::Halves {
                    swap: self.order == Order::EvenOdd && i % 2 == 1,
                    alternate: false,
                },
                transform: self.law.config(TransformConfig::default()),
                net: NetConfig::Mlp { hidden: hidden.clone(), init: self.init },
            };
            layers.push(coupling.named(format!("coupling{i}")));
            if self.order == Order::Reverse {
                layers.push(LayerConfig::Reverse {}.named(format!("coupling{i}.reverse")));
            }
        }
        layers.push(LayerConfig::Diagonal { std: self.diagonal_from_data.then(|| self.prior.std()) }.into());
        Ok(ComposedConfig {
            shape: self.shape.clone(),
            bits: self.bits,
            preprocess: self.preprocess,
            levels: vec![],
            layers,
            prior: self.prior.clone(),
            dequantize: self.dequantize.clone(),
            context: self.context.clone(),
        })
    }
}
