//! An autoregressive layer: MAF (Papamakarios, Pavlakou, Murray 2017, arXiv 1705.07057, section 3), and with
//! [`Inverted`](super::Inverted) IAF (Kingma et al. 2016, arXiv 1606.04934).
//!
//! ```text
//! z_i = T(x_i; h_i),     h_i = net_i(x_1, .., x_i-1)
//! ```
//!
//! The Jacobian is triangular, so its log-det is the sum of log dT/dx_i. The density takes one pass through the network, the
//! inverse D of them, one for each dimension. Inverted it is the other way round: a sample takes one pass and a density D.

use crate::core::{Bijection, Context, Ctx, Gradients, LayerStats, Memory, Net, SavedState, run_net};
use crate::nets::{Features, Made, WithFeatures};
use crate::transforms::{Changed, Transform, forward_parts};
use candle_core::{Result, Tensor, bail};
use std::sync::Arc;

/// An autoregressive layer of vectors (B, D); see the module for the equation.
///
/// Because the inverse takes D passes, [`Memory::Recompute`] saves the layer's input, as many numbers as its output has, and
/// runs the network once more in the backward pass.
///
/// **Errors** where the input is no (B, D), or the network's output has the wrong size.
pub struct Autoregressive {
    /// How each dimension is changed.
    pub transform: Box<dyn Transform>,
    /// The network: its numbers for a dimension depend on those before it in `order` only.
    pub net: Box<dyn Net>,
    /// The dimensions in the order in which they depend on each other, each once.
    pub order: Vec<usize>,
}

impl Autoregressive {
    /// A layer of a transform and a masked network, in the network's order, which is given the context's features as they are if it
    /// has any.
    pub fn new(transform: Box<dyn Transform>, net: Made) -> Self {
        let features = (net.features() > 0).then(|| Arc::new(Features::given(&[net.features()])));
        Self::with_features(transform, net, features)
    }

    /// As [`Autoregressive::new`], of a network that is given these features of the context.
    pub fn with_features(transform: Box<dyn Transform>, net: Made, features: Option<Arc<Features>>) -> Self {
        let order = net.order().to_vec();
        Self { transform, order, net: Box::new(WithFeatures { net, features }) }
    }

    /// The output `h` of the network for `x`, contiguous.
    fn checked(&self, x: &Tensor, h: &Tensor) -> Result<Tensor> {
        Changed::all(x)?.check(x, h, self.transform.params_per_element())?;
        h.contiguous()
    }

    /// The input for the output `z`, a dimension at a time. What is not yet known is 0 meanwhile: any other number could
    /// overflow on its way through weights that are masked.
    fn inverse_in(&self, z: &Tensor, ctx: Ctx) -> Result<Tensor> {
        let (b, d) = z.dims2()?;
        if self.order.len() != d {
            bail!("this autoregressive layer has {} dimensions, got {:?}", self.order.len(), z.shape());
        }
        let mut columns = vec![Tensor::zeros((b, 1), z.dtype(), z.device())?; d];
        for &i in &self.order {
            let x = Tensor::cat(&columns, 1)?;
            let h = self.checked(&x, &run_net(self.net.as_ref(), &x, ctx)?)?;
            let k = self.transform.params_per_element();
            let h = h.reshape((b, k, d))?.narrow(2, i, 1)?.contiguous()?.reshape((b, k))?;
            columns[i] = self.transform.inverse(&z.narrow(1, i, 1)?.contiguous()?, &h)?;
        }
        let x = Tensor::cat(&columns, 1)?;
        Ok(if z.track_op() { x } else { x.detach() })
    }
}

/// What [`Memory::Store`] saves of a pass beside its input.
struct Run {
    h: Tensor,
    net: SavedState,
}

/// What a pass saves.
struct Pass {
    x: Tensor,
    run: Option<Run>,
}

impl Bijection for Autoregressive {
    fn layer_stats(&self, x: &Tensor, ctx: Ctx) -> Result<LayerStats> {
        if self.transform.preserves_volume() {
            return Ok(LayerStats::Fixed);
        }
        let (x, ctx) = (x.detach().contiguous()?, ctx.with_grad(false));
        let h = self.checked(&x, &run_net(self.net.as_ref(), &x, ctx)?)?;
        Ok(LayerStats::Elements(self.transform.forward(&x, &h, ctx)?.1.detach()))
    }

    fn forward(&self, x: &Tensor, ctx: Ctx) -> Result<(Tensor, Tensor)> {
        if !ctx.grad && !x.track_op() {
            let (z, log_det, _) = self.forward_saved(x, ctx, Memory::Recompute)?;
            return Ok((z, log_det));
        }
        let x = x.contiguous()?;
        let h = self.checked(&x, &self.net.forward(&x, ctx)?)?;
        forward_parts(self.transform.as_ref(), &x, &h, &Changed::all(&x)?, ctx)
    }

    fn inverse(&self, z: &Tensor, context: Context) -> Result<Tensor> {
        self.inverse_in(z, Ctx::eval().with_context(context))
    }

    fn forward_saved(&self, x: &Tensor, ctx: Ctx, memory: Memory) -> Result<(Tensor, Tensor, SavedState)> {
        let (x, ctx) = (x.detach().contiguous()?, ctx.with_grad(false));
        let (h, net) = match memory {
            Memory::Store => self.net.forward_saved(&x, ctx)?,
            Memory::Recompute => (run_net(self.net.as_ref(), &x, ctx)?, SavedState::nothing()),
        };
        let h = self.checked(&x, &h)?;
        let (z, log_det) = self.transform.forward_whole(&x, &h, &Changed::all(&x)?, ctx)?;
        let run = (memory == Memory::Store).then_some(Run { h, net });
        Ok((z.detach(), log_det.detach(), SavedState::new(Pass { x, run })))
    }

    fn backward(
        &self,
        _z: &Tensor,
        saved: SavedState,
        g: (&Tensor, &Tensor),
        ctx: Ctx,
        grads: &mut Gradients,
    ) -> Result<(Tensor, Tensor)> {
        let Pass { x, run } = saved.take().expect("saved by forward_saved");
        let Run { h, net } = match run {
            Some(run) => run,
            None => {
                let (h, net) = self.net.forward_saved(&x, ctx.replay().with_grad(false))?;
                Run { h: self.checked(&x, &h)?, net }
            }
        };
        let (gx, gh) = self.transform.backward_whole((&x, &h), &Changed::all(&x)?, g, ctx, grads)?;
        drop(h);
        let through_net = self.net.backward(net, &gh.contiguous()?, grads)?;
        Ok((x, (gx + through_net)?))
    }

    fn reconstruct(&self, _z: &Tensor, saved: &SavedState, _ctx: Ctx) -> Result<Tensor> {
        Ok(saved.get::<Pass>().expect("saved by forward_saved").x.clone())
    }
}
