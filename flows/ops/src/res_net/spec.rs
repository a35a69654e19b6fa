//! Parameters and gradients of the residual network, and what a pass leaves.

use candle_core::{Result, Tensor, bail};
use std::any::Any;

/// One convolution, w = g v / |v| over all but the output channel, or w = v; also the gradients of one.
#[derive(Clone, Debug)]
pub struct Conv {
    /// v (O, C, k, k).
    pub weight: Tensor,
    /// g (O,), where there is weight norm.
    pub magnitude: Option<Tensor>,
    /// The bias (O,).
    pub bias: Tensor,
}

/// One batch norm.
#[derive(Clone, Debug)]
pub struct Norm {
    /// The gain (C,).
    pub gamma: Tensor,
    /// The shift (C,).
    pub beta: Tensor,
    /// The running mean (C,).
    pub mean: Tensor,
    /// The running variance (C,).
    pub var: Tensor,
}

/// The parameters of a network.
#[derive(Clone, Debug)]
pub struct ResNetParams {
    /// In the order first, skip, (conv1, conv2, skip) of each block, last.
    pub convs: Vec<Conv>,
    /// In the order of the pass: two for each block, and the last one.
    pub norms: Vec<Option<Norm>>,
    /// Whether there are skips.
    pub skip: bool,
    /// Whether the input is [x, -x].
    pub signed_input: bool,
    /// One more channel of the input, (1, 1, H, W).
    pub mask: Option<Tensor>,
    /// Added to variances.
    pub eps: f64,
    /// Whether norms use the batch's mean and variance instead of the running ones.
    pub batch_statistics: bool,
}

impl ResNetParams {
    /// Residual blocks.
    pub(crate) fn blocks(&self) -> usize {
        self.norms.len() / 2
    }

    /// Errors unless x (B, C, H, W) has the network's channels.
    pub(crate) fn check(&self, x: &Tensor) -> Result<()> {
        let ((_, c, _, _), inputs) = (x.dims4()?, self.convs[0].weight.dim(1)?);
        let signs = 1 + usize::from(self.signed_input);
        if signs * c + usize::from(self.mask.is_some()) != inputs {
            bail!(
                "a residual network for {} channels met {:?}",
                (inputs - usize::from(self.mask.is_some())) / signs,
                x.shape()
            );
        }
        Ok(())
    }
}

/// What a forward pass gives.
pub struct Output {
    /// The output (B, O, H, W).
    pub y: Tensor,
    /// Each norm's mean and variance of this batch, (2, C), with batch statistics.
    pub statistics: Vec<Option<Tensor>>,
    /// What the backward pass needs, if it was asked for.
    pub saved: Option<SavedState>,
}

/// What a forward pass leaves for the backward pass.
pub struct SavedState(pub(crate) Box<dyn Any + Send + Sync>);

/// The gradients of a network.
pub struct ResNetGradients {
    /// That of the input.
    pub x: Tensor,
    /// Those of the convolutions, in their order.
    pub convs: Vec<Conv>,
    /// Those of each norm's gain and shift.
    pub norms: Vec<Option<[Tensor; 2]>>,
}
