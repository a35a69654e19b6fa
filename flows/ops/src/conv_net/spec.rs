//! Parameters of the convolutional network, and what a pass keeps.

use candle_core::{Result, Tensor};

/// What a log-scale is multiplied by.
pub(crate) const FACTOR: f64 = 3.;

/// One layer, act((w * x + e + b) exp(3 l)); also the gradients of one.
#[derive(Clone, Debug)]
pub struct ConvLayer {
    /// w (O, C, k, k).
    pub weight: Tensor,
    /// The kernel of the edge-bias channel (O, 9), where there is one.
    pub edge: Option<Tensor>,
    /// b (O,).
    pub bias: Tensor,
    /// l (O,).
    pub logs: Tensor,
}

/// The parameters: a 3x3, a 1x1 and a 3x3 convolution, ReLU after each but the last; or the last alone.
#[derive(Clone, Debug)]
pub struct ConvNetParams {
    /// In the order of the pass.
    pub layers: Vec<ConvLayer>,
    /// [`crate::conv::edge_columns`] for the images at hand, where a layer has an edge-bias channel.
    pub columns: Option<Tensor>,
}

impl ConvNetParams {
    /// What a layer's edge-bias channel adds to each image, (O, H W).
    pub(crate) fn edge_map(&self, layer: &ConvLayer) -> Result<Option<Tensor>> {
        match (&layer.edge, &self.columns) {
            (Some(edge), Some(columns)) => edge.matmul(columns).map(Some),
            _ => Ok(None),
        }
    }

    /// The gradient of a layer's `edge`, from that of its map.
    pub(crate) fn edge_gradient(&self, map: &Tensor) -> Result<Option<Tensor>> {
        self.columns.as_ref().map(|columns| map.matmul(&columns.t()?)).transpose()
    }
}

/// What a forward pass leaves for the backward pass: the input and every layer's output.
pub struct SavedState(pub(crate) Vec<Tensor>);
