//! The settings of a spline.

use crate::rows::check_params;
use candle_core::{Result, Tensor};

/// A spline's settings.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct SplineSpec {
    /// Pieces K.
    pub bins: usize,
    /// B: the spline is the identity outside [-B, B].
    pub bound: f64,
    /// The smallest width of a piece, as a share of 2 B.
    pub min_width: f64,
    /// The smallest height of a piece, as a share of 2 B.
    pub min_height: f64,
    /// The smallest slope at a knot.
    pub min_slope: f64,
}

impl SplineSpec {
    /// 3 K - 1: the numbers of an element.
    pub fn params(&self) -> usize {
        3 * self.bins - 1
    }

    /// c with softplus(c) = 1 - min_slope.
    pub(crate) fn slope_shift(&self) -> f64 {
        (1. - self.min_slope).exp_m1().ln()
    }

    /// Of widths and heights, the smallest shares, and what the softmax divides beside them.
    pub(crate) fn shares(&self) -> [(f64, f64); 2] {
        [self.min_width, self.min_height].map(|least| (least, 1. - least * self.bins as f64))
    }

    pub(crate) fn check_shapes(&self, x: &Tensor, h: &Tensor) -> Result<()> {
        check_params(&format!("a spline of {}", self.bins), self.params(), x, h)
    }
}
