//! A network that sees the features of the context.

use crate::core::{Ctx, Gradients, Net, SavedState};
use candle_core::{Result, Tensor, bail};

/// A network that is given the features of the [`Context`](crate::Context) as further channels of its input:
///
/// ```text
/// h = net([x, features])
/// ```
///
/// **Shapes.** x (B, C, ..), features (B, E, ..); the network takes C + E channels. The features have no gradient.
///
/// **Errors** where the pass is given no features, or those of another shape.
pub struct WithFeatures<N>(pub N);

fn joined(x: &Tensor, ctx: Ctx) -> Result<Tensor> {
    let Some(features) = ctx.context.features else { bail!("this network needs the features of a context") };
    Tensor::cat(&[x, &features.detach()], 1)
}

impl<N: Net> Net for WithFeatures<N> {
    fn forward(&self, x: &Tensor, ctx: Ctx) -> Result<Tensor> {
        self.0.forward(&joined(x, ctx)?, ctx)
    }

    fn forward_saved(&self, x: &Tensor, ctx: Ctx) -> Result<(Tensor, SavedState)> {
        let (y, saved) = self.0.forward_saved(&joined(x, ctx)?, ctx)?;
        Ok((y, SavedState::new((x.dim(1)?, saved))))
    }

    fn backward(&self, saved: SavedState, gy: &Tensor, grads: &mut Gradients) -> Result<Tensor> {
        let (channels, saved): (usize, SavedState) = saved.take().expect("saved by forward_saved");
        self.0.backward(saved, gy, grads)?.narrow(1, 0, channels)?.contiguous()
    }
}
