//! Coupling: a partition, a network and a transform (NICE section 3.2, RealNVP sections 3.2 to 3.4, Glow section 3.3).
//!
//! ```text
//! y_a = x_a,     y_b = T(x_b; net(x_a))
//! ```
//!
//! The Jacobian is triangular, so its log-det is the sum of the logs of the diagonal of T, and the inverse needs the
//! network's output, never its inverse. The couplings of NICE, RealNVP and Glow differ in their partition, network and
//! transform only.
//!
//! The network's input is the same before and after the layer, so one run of it serves a forward pass, an inverse, or, where
//! inputs are reconstructed, both the inverse and the gradient.

use crate::core::{
    Bijection, Coding, Context, Coupled, Ctx, Given, Gradients, LayerStats, Memory, Net, SavedState,
    positions, run_net,
};
use crate::transforms::{Changed, Partition, Transform, forward_parts};
use candle_core::{Result, Tensor};
use std::ops::Range;

/// A coupling layer; see the module for the equation.
///
/// **Errors** where the input has fewer than two channels to halve, or the network's output has the wrong size.
pub struct Coupling {
    /// Which part is kept.
    pub partition: Partition,
    /// The network.
    pub net: Box<dyn Net>,
    /// How the other part is changed.
    pub transform: Box<dyn Transform>,
}

impl Coupling {
    /// A coupling of a partition, a network and a transform.
    pub fn new(partition: Partition, net: impl Net + 'static, transform: impl Transform + 'static) -> Self {
        Self { partition, net: Box::new(net), transform: Box::new(transform) }
    }

    /// A coupling of `channels` channels. `net(inputs, outputs)` makes the network for the numbers of channels that the partition
    /// and the transform need.
    ///
    /// # Errors
    /// Those of `net`.
    pub fn with_net<N: Net + 'static>(
        partition: Partition,
        transform: Box<dyn Transform>,
        channels: usize,
        net: impl FnOnce(usize, usize) -> Result<N>,
    ) -> Result<Self> {
        let (inputs, changed) = partition.channels(channels);
        let net = Box::new(net(inputs, transform.params_per_element() * changed)?);
        Ok(Self { partition, net, transform })
    }

    /// The output `h` of the network, contiguous, and the part of `x` that it is for.
    fn with_changed(&self, x: &Tensor, h: &Tensor) -> Result<(Tensor, Changed<'_>)> {
        let changed = self.partition.changed(x)?;
        changed.check(x, h, self.transform.params_per_element())?;
        Ok((h.contiguous()?, changed))
    }

    /// The input for the output `z`, with the network run in `ctx`.
    fn inverse_in(&self, z: &Tensor, ctx: Ctx) -> Result<Tensor> {
        let z = z.contiguous()?;
        let (h, changed) =
            self.with_changed(&z, &run_net(self.net.as_ref(), &self.partition.seen(&z)?, ctx)?)?;
        let x = self.transform.inverse_whole(&z, &h, &changed)?;
        Ok(if z.track_op() { x } else { x.detach() })
    }
}

/// What [`Memory::Store`] saves of a pass.
struct Pass {
    x: Tensor,
    h: Tensor,
    net: SavedState,
}

impl Coupled for Coupling {
    fn given<'a>(&'a self, x: &Tensor, ctx: Ctx) -> Result<Given<'a>> {
        let (x, ctx) = (x.contiguous()?, ctx.with_grad(false));
        let h = run_net(self.net.as_ref(), &self.partition.seen(&x)?, ctx)?;
        let (h, changed) = self.with_changed(&x, &h)?;
        let (part, params) = changed.take(&x, &h)?;
        let (n, Range { start, end }) = (positions(&x)?, changed.channels.clone());
        let kept = |mask: &Tensor| mask.broadcast_as(x.shape())?.ne(0f64)?.flatten_all()?.to_vec1::<u8>();
        let kept = changed.mask.map(kept).transpose()?;
        let inverse_params = params.clone();
        Ok(Given {
            range: start * n..end * n,
            shape: part.dims().to_vec(),
            kept: kept.map(|kept| kept.into_iter().map(|k| k != 0).collect()),
            pieces: self.transform.pieces(),
            forward: Box::new(move |x| Ok(self.transform.forward(x, &params, Ctx::eval())?.0.detach())),
            inverse: Box::new(move |z| Ok(self.transform.inverse(z, &inverse_params)?.detach())),
        })
    }
}

impl Bijection for Coupling {
    fn coding(&self) -> Result<Coding<'_>> {
        Ok(Coding::Coupled(self))
    }

    fn layer_stats(&self, x: &Tensor, ctx: Ctx) -> Result<LayerStats> {
        if self.transform.preserves_volume() {
            return Ok(LayerStats::Fixed);
        }
        let (x, ctx) = (x.detach().contiguous()?, ctx.with_grad(false));
        let (h, changed) =
            self.with_changed(&x, &run_net(self.net.as_ref(), &self.partition.seen(&x)?, ctx)?)?;
        let (part, params) = changed.take(&x, &h)?;
        let (_, log_slopes) = self.transform.forward(&part, &params, ctx)?;
        Ok(LayerStats::Elements(changed.only(&log_slopes.detach())?))
    }

    fn forward(&self, x: &Tensor, ctx: Ctx) -> Result<(Tensor, Tensor)> {
        if !ctx.grad && !x.track_op() {
            let (z, log_det, _) = self.forward_saved(x, ctx, Memory::Recompute)?;
            return Ok((z, log_det));
        }
        let h = self.net.forward(&self.partition.seen_in_graph(x)?, ctx)?;
        let (h, changed) = self.with_changed(x, &h)?;
        forward_parts(self.transform.as_ref(), x, &h, &changed, ctx)
    }

    fn inverse(&self, z: &Tensor, context: Context) -> Result<Tensor> {
        self.inverse_in(z, Ctx::eval().with_context(context))
    }

    fn forward_saved(&self, x: &Tensor, ctx: Ctx, memory: Memory) -> Result<(Tensor, Tensor, SavedState)> {
        let (x, ctx) = (x.detach().contiguous()?, ctx.with_grad(false));
        let seen = self.partition.seen(&x)?;
        let (h, net) = match memory {
            Memory::Store => self.net.forward_saved(&seen, ctx)?,
            Memory::Recompute => (run_net(self.net.as_ref(), &seen, ctx)?, SavedState::nothing()),
        };
        let (h, changed) = self.with_changed(&x, &h)?;
        let (z, log_det) = self.transform.forward_whole(&x, &h, &changed, ctx)?;
        Ok((z.detach(), log_det.detach(), SavedState::if_stored(memory, Pass { x, h, net })))
    }

    fn backward(
        &self,
        z: &Tensor,
        saved: SavedState,
        g: (&Tensor, &Tensor),
        ctx: Ctx,
        grads: &mut Gradients,
    ) -> Result<(Tensor, Tensor)> {
        let changed = self.partition.changed(z)?;
        let Pass { x, h, net } = match saved.take() {
            Some(pass) => pass,
            None => {
                let z = z.contiguous()?;
                let seen = self.partition.seen(&z)?;
                let (h, net) = self.net.forward_saved(&seen, ctx.replay().with_grad(false))?;
                let (h, _) = self.with_changed(&z, &h)?;
                Pass { x: self.transform.inverse_whole(&z, &h, &changed)?.detach(), h, net }
            }
        };
        let (gx, gh) = self.transform.backward_whole((&x, &h), &changed, g, ctx, grads)?;
        drop(h);
        let of_seen = self.net.backward(net, &gh, grads)?;
        Ok((x, self.partition.add_seen(&gx, &of_seen)?))
    }

    fn reconstruct(&self, z: &Tensor, _saved: &SavedState, ctx: Ctx) -> Result<Tensor> {
        self.inverse_in(z, ctx.replay().with_grad(false))
    }
}
