//! The scale or the matrix of a layer, for inspection.

use candle_core::Tensor;

/// The scales or the matrix by which a layer changes its input.
#[derive(Clone, Debug)]
pub enum LayerStats {
    /// A map without parameters that scale or mix: squeeze, permutation, preprocessing, an additive coupling.
    Fixed,
    /// Scales each channel by a parameter (actnorm, NICE's diagonal): log-scales (C,).
    Channels(Tensor),
    /// Normalises each channel by running statistics (batch norm): log-scales (C,).
    Statistics(Tensor),
    /// Scales elements by factors that depend on the example (couplings, learned priors): log-scales (B, ..) of what is
    /// changed.
    Elements(Tensor),
    /// Mixes channels (1x1 convolution): its matrix W (C, C).
    Matrix(Tensor),
}
