//! MADE, the masked network of autoregressive layers (Germain, Gregor, Murray, Larochelle 2015, arXiv 1502.03509).

use super::mlp::{Mlp, Start};
use crate::core::{Ctx, Gradients, Net, SavedState};
use crate::params::{Init, ParamBuilder};
use candle_core::{Result, Tensor, bail};
use rand::seq::SliceRandom;
use rand_chacha::ChaCha8Rng;
use serde::{Deserialize, Serialize};

/// A fully connected network with ReLU whose numbers for dimension i depend on x only through the dimensions before i (section
/// 4):
///
/// ```text
/// degree of input d: its place 1, .., D in the order        of a hidden unit: m in 1, .., D - 1
/// weights count from input d to m where d <= m, between hidden units where m <= m', and from m to output i where m < i
/// ```
///
/// The degrees of the units of a layer are spread evenly over 1, .., D - 1. Context features c (E of each example) stand behind x, where
/// [`WithFeatures`](super::WithFeatures) puts them, which is to add a linear map of them in the first layer, and are seen by all units;
/// degrees then start at 0, so that the first dimension's numbers depend on c too.
///
/// **Shapes.** (B, D + E) to (B, k D): the first number of all dimensions, then the second, as
/// [`Transform`](crate::transforms::Transform) takes them. Parameters as those of [`Mlp`], and the tensor of indices `order`.
pub struct Made {
    net: Mlp,
    order: Vec<usize>,
    features: usize,
}

/// The sizes of a [`Made`].
#[derive(Clone, Copy, Debug)]
pub struct MadeConfig<'a> {
    /// Dimensions D.
    pub dims: usize,
    /// Context features E of each example; 0 for none.
    pub features: usize,
    /// The hidden widths.
    pub hidden: &'a [usize],
    /// k: the numbers for each dimension.
    pub params_per_element: usize,
    /// The order of the dimensions.
    pub order: Order,
}

/// The order of the dimensions of an autoregressive layer: each depends on those before it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Order {
    /// 0, 1, .., D - 1.
    Natural,
    /// D - 1, .., 1, 0.
    Reversed,
    /// A random order, fixed by the parameters' seed.
    Random,
}

impl Order {
    fn indices(self, dims: usize, rng: &mut ChaCha8Rng) -> Vec<usize> {
        let mut order: Vec<usize> = (0..dims).collect();
        match self {
            Self::Natural => {}
            Self::Reversed => order.reverse(),
            Self::Random => order.shuffle(rng),
        }
        order
    }
}

impl Made {
    /// A network of these sizes. A loaded one has the order it was saved with.
    ///
    /// # Errors
    /// When there are no dimensions, or `vb` has no such tensors.
    pub fn new(config: &MadeConfig, start: Start, vb: &ParamBuilder) -> Result<Self> {
        let &MadeConfig { dims, features, hidden, params_per_element, order } = config;
        if dims == 0 {
            bail!("a masked network needs at least one dimension");
        }
        let init = |rng: &mut ChaCha8Rng| order.indices(dims, rng).into_iter().map(|i| i as f64).collect();
        let (order, place) = vb.permutation(dims, "order", Init::With(&init))?;
        let order = order.value().to_vec1::<u32>()?.into_iter().map(|i| i as usize).collect();

        // The degree of unit j of layer i: inputs, of which the features come last and have degree 0; hidden units; outputs.
        // Computed for each weight: a config alone must not make anything of the size of a layer.
        let widths = [&[dims + features], hidden, &[params_per_element * dims]].concat();
        let lowest = usize::from(features == 0 && dims > 1);
        let last = widths.len() - 1;
        let degree = |i: usize, j: usize| match i {
            0 if j >= dims => 0,
            _ if i == 0 || i == last => 1 + place[j % dims] as usize,
            _ => lowest + j * (dims - lowest) / widths[i],
        };
        let mask = |i: usize| {
            let counts = |to: usize, from: usize| if i + 1 == last { from < to } else { from <= to };
            let row = |to| (0..widths[i]).map(move |j| u8::from(counts(to, degree(i, j))));
            let mask: Vec<u8> = (0..widths[i + 1]).flat_map(|j| row(degree(i + 1, j))).collect();
            let mask = Tensor::from_vec(mask, (widths[i + 1], widths[i]), vb.device())?;
            Ok(Some(mask.to_dtype(vb.dtype())?))
        };
        Ok(Self { net: Mlp::masked(&widths, mask, start, vb)?, order, features })
    }

    /// The dimensions in the order in which they depend on each other.
    pub fn order(&self) -> &[usize] {
        &self.order
    }

    /// The context features E that stand behind x.
    pub fn features(&self) -> usize {
        self.features
    }
}

impl Net for Made {
    fn forward(&self, x: &Tensor, ctx: Ctx) -> Result<Tensor> {
        self.net.forward(x, ctx)
    }

    fn forward_saved(&self, x: &Tensor, ctx: Ctx) -> Result<(Tensor, SavedState)> {
        self.net.forward_saved(x, ctx)
    }

    fn backward(&self, saved: SavedState, gy: &Tensor, grads: &mut Gradients) -> Result<Tensor> {
        self.net.backward(saved, gy, grads)
    }
}
