//! A bijection with forward and inverse exchanged.

use crate::core::{Bijection, Coding, Context, Ctx, Gradients, Graph, LayerStats, Mode, forward, inverse};
use crate::ops::linalg;
use candle_core::{Result, Tensor};

/// The inverse of the bijection g:
///
/// ```text
/// z = g^-1(x),     log |det dz/dx| = -log |det dg/dz|
/// ```
///
/// An inverted autoregressive layer is IAF's (Kingma et al. 2016, arXiv 1606.04934). g runs in evaluation in all modes, because
/// its inverse is that of the evaluated layer; an inverted actnorm is not initialised by data.
///
/// **Gradient.** z solves g(z; theta) = x, so dz = J^-1 (dx - dg/dtheta dtheta) with J = dg/dz (implicit function theorem). A pass
/// on candle's graph computes J at the solution, by one backward pass of g over D copies of each example, and gives
///
/// ```text
/// z = z_0 - J^-1 (g(z_0; theta) - x)       z_0 and J constants
/// ```
///
/// which has this value and this gradient whatever g is, and however its inverse is found.
pub struct Inverted<B>(pub B);

impl<B: Bijection> Inverted<B> {
    /// J^-1 at z, (B, D, D), outside the graph.
    fn inverse_jacobian(&self, z: &Tensor, context: Context) -> Result<Tensor> {
        let (b, d) = (z.dim(0)?, z.elem_count() / z.dim(0)?.max(1));
        let of_one = |t: &Tensor| -> Result<Tensor> {
            let shape = |n: &[usize]| [n, &t.dims()[1..]].concat();
            t.unsqueeze(1)?.expand(shape(&[b, d]))?.contiguous()?.reshape(shape(&[b * d]))
        };
        let labels = context.labels.map(of_one).transpose()?;
        let features = context.features.map(of_one).transpose()?;
        let ctx = Ctx::eval().with_context(Context { labels: labels.as_ref(), features: features.as_ref() });
        let copies = of_one(&z.detach())?;
        let (graph, [x, log_det]) = Graph::of(&copies, |z| self.0.forward(z, ctx).map(Into::into))?;
        // Copy i of an example is differentiated through output i.
        let eye = Tensor::eye(d, z.dtype(), z.device())?.repeat((b, 1))?.reshape(x.shape())?;
        let rows = graph.backward(&[&eye, &log_det.zeros_like()?], &mut Gradients::default())?.swap_remove(0);
        let rows = rows.reshape((b, d, d))?;
        let inverse_of = |i: usize| {
            let (j, n) = linalg::to_host(&rows.get(i)?)?;
            linalg::from_host(linalg::lu(&j, n)?.inverse(), n, z)
        };
        Tensor::stack(&(0..b).map(inverse_of).collect::<Result<Vec<_>>>()?, 0)
    }
}

impl<B: Bijection> Bijection for Inverted<B> {
    fn coding(&self) -> Result<Coding<'_>> {
        Ok(Coding::Inverse(&self.0))
    }

    fn forward(&self, x: &Tensor, ctx: Ctx) -> Result<(Tensor, Tensor)> {
        let ctx = Ctx { mode: Mode::Eval, ..ctx };
        let z = inverse(&self.0, &x.detach(), ctx.context)?;
        if !ctx.grad && !x.track_op() {
            let log_det = forward(&self.0, &z, ctx)?.1;
            return Ok((z, log_det.neg()?));
        }
        let jacobian = self.inverse_jacobian(&z, ctx.context)?;
        let off = (self.0.forward(&z, ctx)?.0 - x)?.flatten_from(1)?.unsqueeze(2)?;
        let z = (&z - jacobian.matmul(&off)?.reshape(z.shape())?)?;
        let log_det = self.0.forward(&z, ctx)?.1;
        Ok((z, log_det.neg()?))
    }

    fn inverse(&self, z: &Tensor, context: Context) -> Result<Tensor> {
        Ok(forward(&self.0, z, Ctx::eval().with_context(context))?.0)
    }

    fn layer_stats(&self, x: &Tensor, ctx: Ctx) -> Result<LayerStats> {
        let ctx = Ctx { mode: Mode::Eval, ..ctx.with_grad(false) };
        let z = inverse(&self.0, &x.detach(), ctx.context)?;
        Ok(match self.0.layer_stats(&z, ctx)? {
            LayerStats::Fixed => LayerStats::Fixed,
            LayerStats::Channels(logs) => LayerStats::Channels(logs.neg()?),
            LayerStats::Statistics(logs) => LayerStats::Statistics(logs.neg()?),
            LayerStats::Elements(logs) => LayerStats::Elements(logs.neg()?),
            LayerStats::Matrix(w) => LayerStats::Matrix(linalg::inverse_log_det(&w)?.0),
        })
    }
}
