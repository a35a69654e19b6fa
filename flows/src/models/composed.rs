//! A flow as a list of its layers, for what no paper's model is: a RealNVP with 1x1 convolutions, a Glow with splines.
//!
//! NICE, RealNVP, Glow and MAF are such lists, too: their configs have the papers' words and are built by the list that
//! [`ModelConfig::composed`](super::ModelConfig::composed) gives, so that a layer is made in one place.
//!
//! ```text
//! preprocessing   levels, of images: of each but the last, half of the channels go on and half are latents; flattened, (B, D)
//!                 layers, of vectors
//!                 prior
//! ```
//!
//! # A layer's tensors
//!
//! Their path is the layer's name, behind that of its level and its step: `level0.step3.actnorm.bias`. Those of a coupling or an
//! autoregressive layer without a name of its own have the step's: `level0.step3.net.conv1.weight`. Steps of one name are counted on over
//! the list of a level. A layer is called by that path in messages and pictures, a coupling `level0.step3.coupling`, or as its step where
//! it begins it.

use super::built::Built;
use super::context::{ContextConfig, Given};
use super::dequantize::Dequantize;
use super::layer::{self, Layer, LayerConfig, PartitionConfig};
use super::preprocess::Preprocess;
use super::prior::PriorConfig;
use super::size::Size;
use crate::bijections::{
    ActNorm, Autoregressive, BatchNorm, ChannelPrior, Conv1x1, Coupling, Diagonal, DiagonalPrior, Multiscale,
    Permute, Squeeze,
};
use crate::core::{Bijection, Chain};
use crate::nets::{ConvNet, Made, MadeConfig, Order, Start};
use crate::params::ParamBuilder;
use crate::transforms::{Affine, Partition, Scale, checkerboard};
use candle_core::{Result, bail};
use serde::{Deserialize, Deserializer, Serialize};
use std::collections::BTreeMap;

/// The settings of a flow that lists its layers, saved as config.json.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ComposedConfig {
    /// One example, `[C, H, W]` or `[D]`.
    pub shape: Vec<usize>,
    /// Bits of a pixel value.
    #[serde(default = "eight")]
    pub bits: u8,
    /// The first layers.
    pub preprocess: Preprocess,
    /// The levels that images pass; without any they are flattened at once.
    #[serde(default, deserialize_with = "read", skip_serializing_if = "Vec::is_empty")]
    pub levels: Vec<Level>,
    /// The layers of vectors.
    #[serde(default, deserialize_with = "layer::read", skip_serializing_if = "Vec::is_empty")]
    pub layers: Vec<Layer>,
    /// The prior of the whole latent.
    #[serde(with = "super::named", default)]
    pub prior: PriorConfig,
    /// The noise that is added to pixels.
    #[serde(with = "super::named", default, skip_serializing_if = "Dequantize::is_uniform")]
    pub dequantize: Dequantize,
    /// What the networks see beside x.
    #[serde(with = "super::named", default, skip_serializing_if = "ContextConfig::is_none")]
    pub context: ContextConfig,
}

/// A level.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Level {
    /// Its layers.
    #[serde(deserialize_with = "layer::read")]
    pub layers: Vec<Layer>,
}

/// Reads the list of levels.
fn read<'de, D: Deserializer<'de>>(d: D) -> std::result::Result<Vec<Level>, D::Error> {
    super::named::list(d, "levels")
}

fn eight() -> u8 {
    8
}

impl ComposedConfig {
    /// The size of the model.
    ///
    /// # Errors
    /// At the first layer that cannot be, by its place and its kind.
    pub fn size(&self) -> Result<Size> {
        if self.shape.is_empty() || self.shape.contains(&0) {
            bail!("`shape` {:?}: every side must be at least 1", self.shape);
        }
        let dims = self.shape.iter().map(|&n| n as f64).product();
        let mut all = Size { widest: dims, ..Size::default() };
        let mut shape = self.shape.clone();
        let last = self.levels.len().saturating_sub(1);
        for (i, Level { layers }) in self.levels.iter().enumerate() {
            if shape.len() != 3 {
                bail!(
                    "`levels` are for images, not for examples of shape {shape:?}: list the layers in `layers`"
                );
            }
            all.add(layer::size(layers, &format!("levels.{i}.layers"), &mut shape)?, 1.);
            if i < last && shape[0] < 2 {
                bail!(
                    "`levels.{i}` ends with one channel, of which no half can go on: begin it with `squeeze`"
                );
            }
            if i < last {
                shape[0] /= 2;
            }
        }
        let mut flat = vec![self.shape.iter().product()];
        all.add(layer::size(&self.layers, "layers", &mut flat)?, 1.);
        let [seen, trained] = self.context.numbers(&self.shape);
        all.widest += seen;
        all.parameters +=
            trained + self.prior.parameters(dims) + self.dequantize.parameters(self.shape[0] as f64);
        if matches!(self.preprocess, Preprocess::Zca { .. }) {
            all.parameters += dims * dims;
        }
        Ok(all)
    }

    /// Classes, if the model is class-conditional.
    pub(super) fn classes(&self) -> Option<usize> {
        self.all_classes().first().copied()
    }

    /// The numbers of classes of all that depends on them.
    fn all_classes(&self) -> Vec<usize> {
        let layers = self.levels.iter().map(|level| &level.layers).chain([&self.layers]);
        let of_layers = layers.flat_map(|layers| layer::classes(layers));
        of_layers.chain(self.prior.classes()).chain(self.context.classes()).collect()
    }

    pub(super) fn build(&self, vb: &ParamBuilder) -> Result<Built> {
        self.size()?;
        let classes = self.all_classes();
        if let Some(other) = classes.iter().find(|n| **n != classes[0]) {
            bail!(
                "`classes` = {} here and {other} there: give all layers, the prior and the context the same number",
                classes[0]
            );
        }
        let given = self.context.build(&self.shape, vb)?;
        let flatten = self.levels.is_empty() && self.shape.len() > 1;
        let mut chain = Chain::new();
        self.dequantize.push(&mut chain, &self.shape, (self.preprocess, self.bits), vb)?;
        self.preprocess.push(&mut chain, &self.shape, self.bits, flatten, vb)?;
        let dims = self.shape.iter().product();
        let latent =
            if self.levels.is_empty() { vec![[dims, 1, 1]] } else { self.levels(&mut chain, &given, vb)? };
        push(&self.layers, &mut chain, &mut vec![dims], None, &given, vb)?;
        Ok(Built { chain, prior: self.prior.build(dims, &vb.pp("prior"))?, latent })
    }

    /// Appends the levels, and returns the shape of each one's latent.
    fn levels(&self, chain: &mut Chain, given: &Given, vb: &ParamBuilder) -> Result<Vec<[usize; 3]>> {
        let (mut levels, mut shapes): (Vec<Box<dyn Bijection>>, _) = (vec![], vec![]);
        let mut shape = self.shape.clone();
        for (i, Level { layers }) in self.levels.iter().enumerate() {
            let mut level = Chain::new();
            push(layers, &mut level, &mut shape, None, given, &vb.pp(format!("level{i}")))?;
            levels.push(Box::new(level));
            shapes.push([shape[0], shape[1], shape[2]]);
            shape[0] /= 2;
        }
        let multiscale = Multiscale::new(levels, &shapes)?;
        let latent = multiscale.shapes().to_vec();
        chain.push("", multiscale);
        Ok(latent)
    }
}

/// A step: its path and its number.
type Step<'a> = (&'a str, usize);

/// Appends a list of layers of examples of this shape, which becomes that of what comes out.
fn push(
    layers: &[Layer],
    chain: &mut Chain,
    shape: &mut Vec<usize>,
    step: Option<Step>,
    given: &Given,
    vb: &ParamBuilder,
) -> Result<()> {
    let mut met: BTreeMap<&str, usize> = BTreeMap::new();
    let mut has_net = false;
    for (i, Layer { name: own, config }) in layers.iter().enumerate() {
        let word = own.as_deref().unwrap_or(config.word());
        let number = met.entry(word).or_default();
        if let LayerConfig::Steps { repeat, layers } = config {
            for _ in 0..*repeat {
                let name = format!("{word}{number}");
                let path = step.map_or_else(|| name.clone(), |(step, _)| format!("{step}.{name}"));
                push(layers, chain, shape, Some((&path, *number)), given, &vb.pp(&name))?;
                *number += 1;
            }
            continue;
        }
        let name = if *number == 0 || own.is_some() { word.to_owned() } else { format!("{word}{number}") };
        *number += 1;
        let net = matches!(config, LayerConfig::Coupling { .. } | LayerConfig::Autoregressive { .. });
        let of_step = step.is_some() && net && !has_net && own.is_none();
        has_net |= net;
        let link = match step {
            None => name.clone(),
            Some((step, _)) if of_step && i == 0 => step.to_owned(),
            Some((step, _)) => format!("{step}.{name}"),
        };
        let vb = if of_step { vb.clone() } else { vb.pp(&name) };
        let odd = step.is_some_and(|(_, k)| k % 2 == 1);
        push_one(config, link, chain, shape, odd, given, &vb)?;
    }
    Ok(())
}

/// Appends one layer; `odd` says that it is in every second step.
fn push_one(
    layer: &LayerConfig,
    name: String,
    chain: &mut Chain,
    shape: &mut Vec<usize>,
    odd: bool,
    given: &Given,
    vb: &ParamBuilder,
) -> Result<()> {
    let c = shape[0];
    match layer {
        // `push` goes through them.
        LayerConfig::Steps { .. } => {}
        LayerConfig::Squeeze {} => {
            chain.push(name, Squeeze);
            *shape = vec![4 * c, shape[1] / 2, shape[2] / 2];
        }
        LayerConfig::Actnorm { factor } => chain.push(name, ActNorm::new(c, *factor, vb)?),
        &LayerConfig::BatchNorm { eps, momentum, statistics } => {
            chain.push(name, BatchNorm::new(c, eps, momentum, statistics, vb)?);
        }
        LayerConfig::Conv1x1 { weight } => chain.push(name, Conv1x1::new(c, *weight, vb)?),
        LayerConfig::Reverse {} => chain.push(name, Permute::reverse(c, vb)?),
        LayerConfig::Shuffle {} => chain.push(name, Permute::shuffle(c, vb)?),
        LayerConfig::EvenOdd {} => chain.push(name, Permute::even_odd(c, vb)?),
        LayerConfig::Permute { order } => chain.push(name, Permute::given(order, vb)?),
        LayerConfig::Coupling { partition, transform, net } => {
            let (partition, mask) = match *partition {
                PartitionConfig::Halves { swap, alternate } => {
                    (Partition::Halves { swap: swap != (alternate && odd) }, None)
                }
                PartitionConfig::Checkerboard { swap, alternate } => {
                    let mask = checkerboard(shape[1], shape[2], swap != (alternate && odd), vb)?;
                    (Partition::Mask(mask.clone()), Some(mask))
                }
            };
            let transform = transform.build(vb)?;
            let (inputs, changed) = partition.channels(c);
            let outputs = transform.params_per_element() * changed;
            let net = |inputs| net.build(inputs, outputs, mask, &vb.pp("net"));
            let net = Box::new(given.net(inputs, &shape[1..], net)?);
            chain.push(name, Coupling { partition, net, transform });
        }
        LayerConfig::Autoregressive { order, alternate, transform, hidden } => {
            let order = match order {
                Order::Natural if *alternate && odd => Order::Reversed,
                Order::Reversed if *alternate && odd => Order::Natural,
                order => *order,
            };
            let transform = transform.build(vb)?;
            let params_per_element = transform.params_per_element();
            let features = given.channels(&[])?;
            let sizes = MadeConfig { dims: c, features, hidden, params_per_element, order };
            let net = Made::new(&sizes, Start::Identity, &vb.pp("net"))?;
            chain.push(name, Autoregressive::with_features(transform, net, given.0.clone()));
        }
        LayerConfig::Diagonal { std: None } => chain.push(name, Diagonal::new(c, vb)?),
        LayerConfig::Diagonal { std: Some(std) } => chain.push(name, Diagonal::new(c, vb)?.from_data(*std)),
        LayerConfig::SplitPrior { edge_bias } => {
            let transform = Box::new(Affine { scale: Scale::Exp, shift_first: true });
            let net = |inputs, outputs| {
                given.net(inputs, &shape[1..], |inputs| ConvNet::new(inputs, 0, outputs, *edge_bias, vb))
            };
            chain.push(name, Coupling::with_net(Partition::Halves { swap: false }, transform, c, net)?);
        }
        LayerConfig::ChannelPrior { classes } => chain.push(name, ChannelPrior::new(c, *classes, vb)?),
        LayerConfig::DiagonalPrior { classes } => chain.push(name, DiagonalPrior::new(c, *classes, vb)?),
    }
    Ok(())
}
