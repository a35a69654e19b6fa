//! What an affine coupling is given, and its gradients.

use candle_core::{Result, Tensor, bail};
use std::ops::Range;

/// The log-scale s of the network's output h.
/// The numbers are the kernels' (layers.h).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u32)]
pub enum ScaleFn {
    /// s = 0: the network gives shifts alone.
    Zero = 0,
    /// s = h.
    Exp = 1,
    /// s = log sigmoid(h + 2).
    Sigmoid = 2,
    /// s = gain tanh(h).
    Tanh = 3,
}

/// An affine map of some channels, whose shift and log-scale a network gives; see the module for the equation.
#[derive(Clone, Debug)]
pub struct AffineSpec<'a> {
    /// s.
    pub scale: ScaleFn,
    /// The learned gain of [`ScaleFn::Tanh`]: a tensor of one number, because on a GPU reading it would make the processor
    /// wait for all that was launched before.
    pub gain: Option<&'a Tensor>,
    /// (x + t) e^s instead of x e^s + t.
    pub shift_first: bool,
    /// The channels that are changed.
    pub changed: Range<usize>,
    /// 1 where an element of the changed channels is kept, 0 where it is changed; broadcasts against x.
    pub mask: Option<&'a Tensor>,
}

/// The gradients of [`AffineSpec::backward`].
pub struct AffineGrads {
    /// The gradient of x, without the network's share.
    pub gx: Tensor,
    /// That of the network's output.
    pub gnet: Tensor,
    /// That of the gain, (1,), where there is one.
    pub ggain: Option<Tensor>,
}

/// Sizes of one example, in elements.
#[derive(Clone, Copy)]
pub(crate) struct Plan {
    pub(crate) batch: usize,
    pub(crate) example: usize,
    pub(crate) start: usize,
    pub(crate) len: usize,
    /// Elements that the network gives.
    pub(crate) net: usize,
}

impl AffineSpec<'_> {
    /// Numbers that the network gives for each changed element.
    pub fn params_per_element(&self) -> usize {
        if self.scale == ScaleFn::Zero { 1 } else { 2 }
    }

    /// The sizes for an input and the network's output; errors where they do not fit.
    pub(crate) fn plan(&self, x: &Tensor, net: &Tensor) -> Result<Plan> {
        let [batch, c, rest @ ..] = x.dims() else {
            bail!("a coupling takes (B, C, ...), got {:?}", x.shape())
        };
        let p: usize = rest.iter().product();
        let len = self.changed.len() * p;
        let times = self.params_per_element();
        let mut want = vec![*batch, times * self.changed.len()];
        want.extend(rest);
        if self.changed.end > *c || net.dims() != want {
            bail!("the coupling's network gave {:?}, {want:?} are needed", net.shape());
        }
        Ok(Plan { batch: *batch, example: c * p, start: self.changed.start * p, len, net: times * len })
    }

    /// Errors unless [`ScaleFn::Tanh`] comes with a gain of one number.
    pub(crate) fn check_gain(&self) -> Result<()> {
        if self.scale == ScaleFn::Tanh && self.gain.is_none_or(|g| g.elem_count() != 1) {
            bail!("a coupling's learned gain is one number, got {:?}", self.gain.map(Tensor::shape));
        }
        Ok(())
    }
}
