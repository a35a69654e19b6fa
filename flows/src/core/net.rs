//! Networks: any function, not invertible, with its backward pass.

use super::pass::Ctx;
use super::tape::{Gradients, Graph, SavedState};
use candle_core::{Result, Tensor};

/// A network, as couplings contain one.
///
/// In a coupling it sees the kept part, (B, D_a) or (B, C_a, H, W), or for a mask the whole input with the changed part
/// zeroed. For each element that is changed it gives as many numbers as
/// [`Transform::params_per_element`](crate::transforms::Transform::params_per_element) says.
pub trait Net: Send + Sync {
    /// The output for `x`. The network's parameters are leaves of candle's graph if `ctx.grad`; a network whose parameters always
    /// are, such as one of candle-nn's layers, is detached by the coupling.
    ///
    /// # Errors
    /// When `x` has a shape that the network does not take.
    fn forward(&self, x: &Tensor, ctx: Ctx) -> Result<Tensor>;

    /// The output for `x` outside candle's graph, and what [`Net::backward`] needs. The default keeps candle's graph of the
    /// network.
    ///
    /// # Errors
    /// As [`Net::forward`].
    fn forward_saved(&self, x: &Tensor, ctx: Ctx) -> Result<(Tensor, SavedState)> {
        net_forward_saved(self, x, ctx)
    }

    /// The gradient of the input, from that of the output and what was saved; gradients of parameters go to `grads`.
    ///
    /// # Errors
    /// When `gy` does not have the output's shape.
    fn backward(&self, saved: SavedState, gy: &Tensor, grads: &mut Gradients) -> Result<Tensor> {
        net_backward(saved, gy, grads)
    }
}

impl<N: Net + ?Sized> Net for Box<N> {
    fn forward(&self, x: &Tensor, ctx: Ctx) -> Result<Tensor> {
        (**self).forward(x, ctx)
    }
    fn forward_saved(&self, x: &Tensor, ctx: Ctx) -> Result<(Tensor, SavedState)> {
        (**self).forward_saved(x, ctx)
    }
    fn backward(&self, saved: SavedState, gy: &Tensor, grads: &mut Gradients) -> Result<Tensor> {
        (**self).backward(saved, gy, grads)
    }
}

/// The default of [`Net::forward_saved`]: candle's graph of the network.
///
/// # Errors
/// Those of the network.
pub fn net_forward_saved<N: Net + ?Sized>(net: &N, x: &Tensor, ctx: Ctx) -> Result<(Tensor, SavedState)> {
    let (graph, [y]) = Graph::of(x, |x| Ok([net.forward(x, ctx.with_grad(true))?]))?;
    Ok((y, SavedState::new(graph)))
}

/// The default of [`Net::backward`], for what [`net_forward_saved`] has saved.
///
/// # Errors
/// When `gy` does not have the output's shape.
pub fn net_backward(saved: SavedState, gy: &Tensor, grads: &mut Gradients) -> Result<Tensor> {
    let graph: Graph = saved.take().expect("saved by forward_saved");
    Ok(graph.backward(&[gy], grads)?.swap_remove(0))
}

/// The output of a network, outside candle's graph where `x` is: the parameters of candle-nn's layers are on the graph whatever
/// `ctx.grad` says.
pub(crate) fn run_net(net: &dyn Net, x: &Tensor, ctx: Ctx) -> Result<Tensor> {
    let y = net.forward(x, ctx)?;
    Ok(if x.track_op() { y } else { y.detach() })
}
