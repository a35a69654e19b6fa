//! The layers that a composed config lists.

use super::network::{self, NetConfig, connected};
use super::range::{at_least, positive, range};
use super::size::Size;
use super::transform::TransformConfig;
use crate::bijections::{BatchStatistics, Weight};
use crate::nets::Order;
use candle_core::{Error, Result, bail};
use serde::de::{Deserializer, Error as _};
use serde::ser::{Error as _, Serializer};
use serde::{Deserialize, Serialize};
use serde_json::Value;

/// The key of a layer's name.
const NAME: &str = "name";

/// One layer: its name alone, `"actnorm"`, or a table with its settings, `{ kind = "conv1x1", weight = "plain" }`, of which those left
/// out have their defaults.
///
/// The table may also hold `name`, the path of the layer's tensors in the file. Without it that is the word of [`LayerConfig::word`],
/// with a number from the second such layer of a list on.
#[derive(Clone, Debug, PartialEq)]
pub struct Layer {
    /// The path of its tensors, if it is not the layer's own word.
    pub name: Option<String>,
    /// What it is.
    pub config: LayerConfig,
}

/// What a layer is. A new one is its file in [`bijections`](crate::bijections), a variant, a row in each of the two tables below, and
/// one in that of `composed.rs`.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(tag = "kind", rename_all = "snake_case", deny_unknown_fields)]
pub enum LayerConfig {
    /// Several layers, `repeat` times, each time with parameters of their own.
    Steps {
        /// How often.
        repeat: usize,
        /// One step.
        #[serde(deserialize_with = "read")]
        layers: Vec<Layer>,
    },
    /// [`Squeeze`](crate::bijections::Squeeze): four times the channels, half the sides.
    Squeeze {},
    /// [`ActNorm`](crate::bijections::ActNorm).
    Actnorm {
        /// k.
        #[serde(default = "three")]
        factor: f64,
    },
    /// [`BatchNorm`](crate::bijections::BatchNorm).
    BatchNorm {
        /// Added to variances.
        #[serde(default = "network::eps")]
        eps: f64,
        /// The batch's share in the running averages.
        #[serde(default = "network::momentum")]
        momentum: f64,
        /// What a training pass normalises with.
        #[serde(default = "batch")]
        statistics: BatchStatistics,
    },
    /// [`Conv1x1`](crate::bijections::Conv1x1): a learned matrix of the channels.
    Conv1x1 {
        /// How it is parameterised.
        #[serde(default = "plu")]
        weight: Weight,
    },
    /// The channels in reverse order.
    Reverse {},
    /// A random permutation of the channels, fixed by the seed.
    Shuffle {},
    /// Even positions first, then odd ones.
    EvenOdd {},
    /// A permutation of the channels: z_d = x_order(d).
    Permute {
        /// Each channel once.
        order: Vec<usize>,
    },
    /// [`Coupling`](crate::bijections::Coupling).
    Coupling {
        /// Which part is kept.
        #[serde(with = "super::named", default)]
        partition: PartitionConfig,
        /// How the other part is changed.
        #[serde(with = "super::named", default)]
        transform: TransformConfig,
        /// The network.
        #[serde(with = "super::named")]
        net: NetConfig,
    },
    /// [`Autoregressive`](crate::bijections::Autoregressive), of vectors, with a masked network.
    Autoregressive {
        /// The order in which the dimensions depend on each other.
        #[serde(default = "natural")]
        order: Order,
        /// The other way round in every second step.
        #[serde(default, skip_serializing_if = "std::ops::Not::not")]
        alternate: bool,
        /// How each dimension is changed.
        #[serde(with = "super::named", default)]
        transform: TransformConfig,
        /// The hidden widths of the network.
        hidden: Vec<usize>,
    },
    /// [`Diagonal`](crate::bijections::Diagonal): a learned scale for each dimension of a vector.
    Diagonal {
        /// The first batch sets the scales so that each dimension has this standard deviation; without it they start at 1.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        std: Option<f64>,
    },
    /// Glow's learned prior of the half of the channels that a level leaves behind, given the other: an affine coupling whose network is
    /// one convolution. It stands last in its level.
    SplitPrior {
        /// The edge-bias channel of the released code.
        #[serde(default)]
        edge_bias: bool,
    },
    /// [`ChannelPrior`](crate::bijections::ChannelPrior): Glow's learned prior of the last level.
    ChannelPrior {
        /// Classes, each with a prior of its own.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        classes: Option<usize>,
    },
    /// [`DiagonalPrior`](crate::bijections::DiagonalPrior): a learned mean and scale for each dimension of a vector.
    DiagonalPrior {
        /// Classes, each with a prior of its own.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        classes: Option<usize>,
    },
}

fn three() -> f64 {
    3.
}

fn batch() -> BatchStatistics {
    BatchStatistics::Batch
}

fn plu() -> Weight {
    Weight::Plu
}

fn natural() -> Order {
    Order::Natural
}

/// Which part of a coupling's input is kept. With `alternate` it is the other part in every second step.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "kind", rename_all = "snake_case", deny_unknown_fields)]
pub enum PartitionConfig {
    /// The first half of the channels; with `swap` the second.
    Halves {
        /// The other part.
        #[serde(default)]
        swap: bool,
        /// The other part in every second step.
        #[serde(default)]
        alternate: bool,
    },
    /// The pixels of an image at which i + j is even; with `swap` the others.
    Checkerboard {
        /// The other part.
        #[serde(default)]
        swap: bool,
        /// The other part in every second step.
        #[serde(default)]
        alternate: bool,
    },
}

impl Default for PartitionConfig {
    fn default() -> Self {
        Self::Halves { swap: false, alternate: false }
    }
}

impl LayerConfig {
    /// The layer's word, which is its default name.
    pub fn word(&self) -> &'static str {
        match self {
            Self::Steps { .. } => "step",
            Self::Squeeze {} => "squeeze",
            Self::Actnorm { .. } => "actnorm",
            Self::BatchNorm { .. } => "norm",
            Self::Conv1x1 { .. }
            | Self::Reverse {}
            | Self::Shuffle {}
            | Self::EvenOdd {}
            | Self::Permute { .. } => "permutation",
            Self::Coupling { .. } => "coupling",
            Self::Autoregressive { .. } => "autoregressive",
            Self::Diagonal { .. } => "diagonal",
            Self::SplitPrior { .. } => "split",
            Self::ChannelPrior { .. } => "top",
            Self::DiagonalPrior { .. } => "latent",
        }
    }

    /// Checks the settings of a layer of examples of this shape, `[D]` or `[C, H, W]`, and makes it the shape of what comes out.
    ///
    /// # Errors
    /// When the layer does not take such examples, or a setting cannot be, by its name.
    fn size(&self, shape: &mut Vec<usize>) -> Result<Size> {
        let (c, dims) = (shape[0] as f64, shape.iter().map(|&n| n as f64).product::<f64>());
        let number = |classes: Option<usize>| classes.map(|n| at_least("classes", n, 1)).transpose();
        Ok(match self {
            Self::Steps { repeat, layers } => steps(*repeat, layers, shape)?,
            Self::Squeeze {} => {
                let [c, h, w] = image(shape)?;
                if h % 2 != 0 || w % 2 != 0 {
                    bail!(
                        "cannot squeeze {h}x{w}: both sides must be even; use fewer levels, or crop or resize the images"
                    );
                }
                *shape = vec![4 * c, h / 2, w / 2];
                Size::default()
            }
            Self::Actnorm { factor } => {
                positive("factor", *factor, f64::MAX)?;
                Size::layer(2. * c)
            }
            Self::BatchNorm { eps, momentum, .. } => {
                positive("eps", *eps, 1.)?;
                range("momentum", *momentum, 0., 1.)?;
                Size::default()
            }
            Self::Conv1x1 { .. } => Size::layer(c * c),
            Self::Reverse {} | Self::Shuffle {} | Self::EvenOdd {} => Size::default(),
            Self::Permute { order } => {
                let mut sorted = order.clone();
                sorted.sort_unstable();
                if !sorted.into_iter().eq(0..shape[0]) {
                    bail!("`order` must hold each of the {} channels once, counted from 0", shape[0]);
                }
                Size::default()
            }
            Self::Coupling { partition, transform, net } => coupling(*partition, *transform, net, shape)?,
            Self::Autoregressive { order, alternate, transform, hidden } => {
                vector(shape)?;
                if *alternate && *order == Order::Random {
                    bail!("`alternate`: a random order is another one in each step anyway, leave it out");
                }
                let [numbers, own] = transform.sizes()?;
                let mut all = connected(dims, hidden, numbers as f64 * dims)?;
                all.parameters += own as f64;
                all
            }
            Self::Diagonal { std } => {
                vector(shape)?;
                std.map(|std| positive("std", std, f64::MAX)).transpose()?;
                Size::layer(dims)
            }
            Self::SplitPrior { .. } => {
                image(shape)?;
                let half = halved(shape)?;
                Size::layer(9. * half * 2. * half)
            }
            Self::ChannelPrior { classes } => {
                image(shape)?;
                Size::layer(2. * c * (2. + number(*classes)?.unwrap_or(0.)))
            }
            Self::DiagonalPrior { classes } => {
                vector(shape)?;
                Size::layer(2. * dims * number(*classes)?.unwrap_or(1.))
            }
        })
    }
}

/// The size of all steps.
fn steps(repeat: usize, layers: &[Layer], shape: &mut Vec<usize>) -> Result<Size> {
    let repeat = at_least("repeat", repeat, 1)?;
    let before = shape.clone();
    let mut all = Size::default();
    all.add(size(layers, "layers", shape)?, repeat);
    if *shape != before {
        bail!("a step leaves the shape as it is: put `squeeze` between steps");
    }
    Ok(all)
}

/// The size of a coupling.
fn coupling(
    partition: PartitionConfig,
    transform: TransformConfig,
    net: &NetConfig,
    shape: &[usize],
) -> Result<Size> {
    let (inputs, changed) = match partition {
        PartitionConfig::Halves { .. } => {
            let half = halved(shape)?;
            (half, half)
        }
        PartitionConfig::Checkerboard { .. } => {
            let [c, ..] = image(shape)?;
            (c as f64, c as f64)
        }
    };
    if matches!(net, NetConfig::ResNet { channel_gains: true, .. }) && !transform.is_exp() {
        bail!(
            "`channel_gains` are factors of an affine transform: use {{ kind = \"affine\", scale = \"exp\" }}"
        );
    }
    let [numbers, own] = transform.sizes()?;
    let mut all = net.size(inputs, numbers as f64 * changed, shape)?;
    all.parameters += own as f64;
    Ok(all)
}

fn image(shape: &[usize]) -> Result<[usize; 3]> {
    shape.try_into().or_else(|_| {
        bail!("this layer takes images, not vectors: put it in `model.levels`, which images pass before they are flattened")
    })
}

fn vector(shape: &[usize]) -> Result<()> {
    if shape.len() != 1 {
        bail!(
            "this layer takes vectors, not images: put it in `model.layers`, which come after the levels and the flattening"
        );
    }
    Ok(())
}

/// Half of the channels, rounded down.
fn halved(shape: &[usize]) -> Result<f64> {
    match shape[0] {
        0 | 1 if shape.len() == 3 => {
            bail!(
                "an image of one channel has no halves: put `squeeze` before it, or use the partition `checkerboard`"
            )
        }
        0 | 1 => bail!("a vector of one dimension has no halves: use an autoregressive layer"),
        c => Ok((c / 2) as f64),
    }
}

/// The size of a list of layers of examples of this shape, which becomes that of what comes out. `key` is the list's in the config.
///
/// # Errors
/// At the first layer that cannot be, by its place and its kind.
pub(super) fn size(layers: &[Layer], key: &str, shape: &mut Vec<usize>) -> Result<Size> {
    let mut all = Size::default();
    for (i, Layer { config, .. }) in layers.iter().enumerate() {
        let named = |e| Error::msg(format!("`{key}.{i}` ({}): {e}", config.kind()));
        all.add(config.size(shape).map_err(named)?, 1.);
    }
    Ok(all)
}

/// The numbers of classes that layers depend on.
pub(super) fn classes(layers: &[Layer]) -> Vec<usize> {
    let of_layer = |layer: &Layer| match &layer.config {
        LayerConfig::ChannelPrior { classes } | LayerConfig::DiagonalPrior { classes } => {
            classes.iter().copied().collect()
        }
        LayerConfig::Steps { layers, .. } => classes(layers),
        _ => vec![],
    };
    layers.iter().flat_map(of_layer).collect()
}

/// Reads a list of layers.
pub(super) fn read<'de, D: Deserializer<'de>>(d: D) -> std::result::Result<Vec<Layer>, D::Error> {
    super::named::list(d, "layers")
}

impl Serialize for Layer {
    fn serialize<S: Serializer>(&self, serializer: S) -> std::result::Result<S::Ok, S::Error> {
        let mut table = serde_json::to_value(&self.config).map_err(S::Error::custom)?;
        if let (Some(name), Some(table)) = (&self.name, table.as_object_mut()) {
            table.insert(NAME.into(), name.as_str().into());
        }
        super::named::serialize(&table, serializer)
    }
}

impl<'de> Deserialize<'de> for Layer {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> std::result::Result<Self, D::Error> {
        let mut table: Value = super::named::deserialize(deserializer)?;
        let name = match table.as_object_mut().and_then(|table| table.remove(NAME)) {
            None => None,
            Some(Value::String(name)) if is_path(&name) => Some(name),
            Some(name) => {
                let said = format!(
                    "`name` = {name}: a layer's name has letters, digits, _ and ., which is neither first nor last"
                );
                return Err(D::Error::custom(said));
            }
        };
        Ok(Self { name, config: serde_json::from_value(table).map_err(D::Error::custom)? })
    }
}

/// Whether a name can be the path of tensors.
fn is_path(name: &str) -> bool {
    let part = |part: &str| !part.is_empty() && part.chars().all(|c| c.is_ascii_alphanumeric() || c == '_');
    name.len() <= 100 && name.split('.').all(part)
}

impl From<LayerConfig> for Layer {
    fn from(config: LayerConfig) -> Self {
        Self { name: None, config }
    }
}

impl LayerConfig {
    /// The layer with its tensors under `name`.
    pub fn named(self, name: impl Into<String>) -> Layer {
        Layer { name: Some(name.into()), config: self }
    }

    /// What the config calls it, for messages.
    fn kind(&self) -> String {
        let table = serde_json::to_value(self).unwrap_or_default();
        table["kind"].as_str().unwrap_or_default().to_owned()
    }
}
