//! The context that configs choose from: what a model is given beside x, for log p(x | c).

use crate::nets::{Features, WithFeatures, fit_moments};
use crate::params::{ParamBuilder, ParamStore};
use candle_core::{DType, Device, Result, Tensor, bail};
use serde::{Deserialize, Serialize};
use std::sync::Arc;

/// The path of the context's parameters.
const CONTEXT: &str = "context";

/// What the networks of a model see beside x.
///
/// Features are standardized by the training data, and maps are brought to the sides of each level ([`Features`]).
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(tag = "kind", rename_all = "snake_case", deny_unknown_fields)]
pub enum ContextConfig {
    /// Nothing: log p(x).
    None {},
    /// Numbers of each example, or maps, that are given with it.
    Features {
        /// `[E]` or `[E, H, W]`; in a recipe that of the data.
        #[serde(default)]
        shape: Vec<usize>,
    },
    /// The class of each example, of which all networks see a learned embedding.
    Labels {
        /// How many classes there are.
        classes: usize,
        /// Numbers for each.
        #[serde(default = "sixteen")]
        embedding: usize,
    },
    /// The image itself with the mean of each square of pixels in its place: super-resolution, p(x | downsampled x).
    Downsampled {
        /// The side of a square.
        factor: usize,
    },
    /// The image itself with a part left out: inpainting, p(x | the rest of x).
    Masked {
        /// The part.
        missing: Missing,
    },
}

impl Default for ContextConfig {
    fn default() -> Self {
        Self::None {}
    }
}

fn sixteen() -> usize {
    16
}

/// A part of an image that is missing.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Missing {
    /// The right half.
    Right,
    /// The left half.
    Left,
    /// The upper half.
    Top,
    /// The lower half.
    Bottom,
    /// The square in the middle, of half the side.
    Centre,
    /// Three of four pixels, evenly spread.
    Most,
}

impl Missing {
    /// 1 where a pixel is known, (1, 1, H, W) in f32.
    ///
    /// # Errors
    /// When the device has no memory left.
    pub fn known(self, h: usize, w: usize, device: &Device) -> Result<Tensor> {
        let missing = |y: usize, x: usize| match self {
            Self::Right => x >= w / 2,
            Self::Left => x < w / 2,
            Self::Top => y < h / 2,
            Self::Bottom => y >= h / 2,
            Self::Centre => (h / 4..h - h / 4).contains(&y) && (w / 4..w - w / 4).contains(&x),
            Self::Most => y % 2 == 1 || x % 2 == 1,
        };
        let known = (0..h * w).map(|p| f32::from(u8::from(!missing(p / w, p % w)))).collect();
        Tensor::from_vec(known, (1, 1, h, w), device)
    }
}

impl ContextConfig {
    /// The shape of an example's features, where x has the shape `example`; `None` for a context that has none.
    ///
    /// # Errors
    /// When it is none that a context has, or examples are no such images.
    pub fn shape(&self, example: &[usize]) -> Result<Option<Vec<usize>>> {
        let image = || match *example {
            [c, h, w] => Ok([c, h, w]),
            _ => bail!("`context`: it is made of images, not of examples of shape {example:?}"),
        };
        Ok(match self {
            Self::None {} | Self::Labels { .. } => None,
            Self::Features { shape } => match shape.as_slice() {
                [] => bail!(
                    "`context` has no `shape`: give [E] or [E, H, W], as the features of the data have it"
                ),
                sides if sides.contains(&0) || ![1, 3].contains(&sides.len()) => {
                    bail!(
                        "`context.shape` = {shape:?}: features have the shape [E] or [E, H, W], each at least 1"
                    )
                }
                _ => Some(shape.clone()),
            },
            &Self::Downsampled { factor } => {
                let [c, h, w] = image()?;
                if factor < 2 || h % factor != 0 || w % factor != 0 {
                    bail!(
                        "`context.factor` = {factor}: images of {h}x{w} need a factor of both sides, at least 2"
                    );
                }
                Some(vec![c, h / factor, w / factor])
            }
            Self::Masked { .. } => image().map(|[c, h, w]| Some(vec![c + 1, h, w]))?,
        })
    }

    /// The features that are made of images x (B, C, H, W), in the units of the data: their pixels are the whole parts of x, and the
    /// noise is left out. `None` where features are given with the data, or there are none.
    ///
    /// # Errors
    /// When x are no such images.
    pub fn of_images(&self, x: &Tensor) -> Result<Option<Tensor>> {
        match self {
            Self::None {} | Self::Features { .. } | Self::Labels { .. } => Ok(None),
            Self::Downsampled { factor } => {
                self.shape(&x.dims()[1..])?;
                x.detach().floor()?.avg_pool2d(*factor).map(Some)
            }
            Self::Masked { missing } => {
                let (b, _, h, w) = x.dims4()?;
                let known = missing.known(h, w, x.device())?.to_dtype(x.dtype())?;
                let seen = x.detach().floor()?.broadcast_mul(&known)?;
                Tensor::cat(&[seen, known.expand((b, 1, h, w))?.contiguous()?], 1).map(Some)
            }
        }
    }

    /// The classes whose labels it is.
    pub(super) fn classes(&self) -> Option<usize> {
        match *self {
            Self::Labels { classes, .. } => Some(classes),
            _ => None,
        }
    }

    /// Sizes by their names, for [`ModelConfig::check`](super::ModelConfig::check).
    pub(super) fn sizes(&self) -> Vec<(&'static str, usize)> {
        match self {
            Self::Features { shape } => shape.iter().map(|&side| ("context.shape", side)).collect(),
            Self::Labels { classes, embedding } => {
                vec![("context.classes", *classes), ("context.embedding", *embedding)]
            }
            Self::None {} | Self::Downsampled { .. } | Self::Masked { .. } => vec![],
        }
    }

    /// Numbers that the networks of an example of this shape see, and trained scalars, in floating point so that no product overflows.
    pub fn numbers(&self, example: &[usize]) -> [f64; 2] {
        let product = |sides: &[usize]| sides.iter().map(|&n| n as f64).product::<f64>();
        match self {
            Self::Labels { classes, embedding } => [*embedding as f64, *classes as f64 * *embedding as f64],
            _ => [self.shape(example).ok().flatten().map_or(0., |shape| product(&shape)), 0.],
        }
    }

    /// The features, as the networks of a model of examples of this shape are given them.
    pub(super) fn build(&self, example: &[usize], vb: &ParamBuilder) -> Result<Given> {
        let vb = vb.pp(CONTEXT);
        let features = match *self {
            Self::Labels { classes, embedding } if classes == 0 || embedding == 0 => {
                bail!("`context`: `classes` and `embedding` must be at least 1")
            }
            Self::Labels { classes, embedding } => Some(Features::embedded(classes, embedding, &vb)?),
            _ => self.shape(example)?.map(|shape| Features::standardized(&shape, &vb)).transpose()?,
        };
        Ok(Given(features.map(Arc::new)))
    }

    /// Whether it is the default, which is not written into files.
    pub(super) fn is_none(&self) -> bool {
        *self == Self::default()
    }
}

/// The features that the networks of a model see, if there are any.
#[derive(Clone)]
pub(super) struct Given(pub(super) Option<Arc<Features>>);

impl Given {
    /// How many they are for a network of vectors (no `sides`) or of images of these sides.
    pub(super) fn channels(&self, sides: &[usize]) -> Result<usize> {
        self.0.as_ref().map_or(Ok(0), |features| features.channels_at(sides))
    }

    /// The network that `net` makes for `inputs` channels of x and the features beside them.
    pub(super) fn net<N>(
        &self,
        inputs: usize,
        sides: &[usize],
        net: impl FnOnce(usize) -> Result<N>,
    ) -> Result<WithFeatures<N>> {
        Ok(WithFeatures { net: net(inputs + self.channels(sides)?)?, features: self.0.clone() })
    }
}

/// Sets the moments of features, if `params` have any, from those of the training data, (N, E) or (N, E, H, W).
pub(super) fn standardize(params: &ParamStore, features: &Tensor) -> Result<()> {
    let all = params.all();
    let find = |name: &str| {
        let key = format!("{CONTEXT}.{name}");
        all.iter().find(|(name, _)| *name == key).map(|(_, param)| param.clone())
    };
    match (find("mean"), find("std")) {
        (Some(mean), Some(std)) => fit_moments(&mean, &std, &features.to_dtype(DType::F32)?),
        _ => Ok(()),
    }
}
