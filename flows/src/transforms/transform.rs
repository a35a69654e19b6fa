//! The trait of elementwise transforms.

use super::partition::Changed;
use crate::core::{Ctx, Gradients, Graph, Pieces, zeros_per_example};
use candle_core::{Result, Tensor};

/// An elementwise monotone map whose parameters a network gives.
///
/// ```text
/// y_i = T(x_i; h_i1, .., h_ik),     log-det = sum_i log dT/dx_i
/// ```
///
/// **Shapes.** x and y (B, C, ..) are the elements that the coupling changes, h (B, k C, ..) is the network's output for
/// them: the first parameter of all elements, then the second, so that `h.chunk(k, 1)` gives the k parameters in x's shape, and
/// `h.reshape((b, k, c, ..))` all of them along dimension 1. At h = 0 the transform should be the identity, because networks
/// start with zero outputs.
///
/// The first three methods are all that a transform needs. The coupling splits and joins the tensor, runs the network and
/// reconstructs inputs; gradients come from candle's graph, unless the transform has a [`Transform::backward`] of its own. With
/// a mask, elements that are kept are evaluated at x = 0, h = 0 and left out, so the transform must be finite there.
///
/// A transform whose kernel takes the whole tensor overrides the methods that end in `_whole`. They are given the whole tensor x
/// (B, C_all, ..), which is contiguous, and which part of it is changed.
pub trait Transform: Send + Sync {
    /// k: how many numbers the network gives for each element.
    fn params_per_element(&self) -> usize;

    /// y, and log dy/dx of each element, both in x's shape. x need not be contiguous. Parameters of the transform's own, if it
    /// has any, are taken from a [`ParamBuilder`](crate::ParamBuilder) when it is made, and by
    /// [`Param::get`](crate::params::Param::get)`(ctx.grad)` here.
    ///
    /// # Errors
    /// When a parameter of the transform does not fit.
    fn forward(&self, x: &Tensor, h: &Tensor, ctx: Ctx) -> Result<(Tensor, Tensor)>;

    /// x with forward(x, h) = y.
    ///
    /// # Errors
    /// As [`Transform::forward`].
    fn inverse(&self, y: &Tensor, h: &Tensor) -> Result<Tensor>;

    /// Checks the settings, where the transform has any.
    ///
    /// # Errors
    /// At the first setting that cannot be, by its name.
    fn check(&self) -> Result<()> {
        Ok(())
    }

    /// Whether log dy/dx is zero for every element.
    fn preserves_volume(&self) -> bool {
        false
    }

    /// How lossless coding cuts the function of an element into straight pieces, which must be short beside its bends. The default's are a
    /// 64th long.
    fn pieces(&self) -> Pieces {
        if self.preserves_volume() { Pieces::Shift } else { Pieces::Curve(1. / 64.) }
    }

    /// The partial derivatives of the loss by x and by h, from those by y and by log dy/dx, all elementwise. Gradients of the
    /// transform's own parameters go to `grads`.
    ///
    /// The default runs [`Transform::forward`] once more, on candle's graph.
    ///
    /// # Errors
    /// As [`Transform::forward`].
    fn backward(
        &self,
        (x, h): (&Tensor, &Tensor),
        (gy, grad_log_slope): (&Tensor, &Tensor),
        ctx: Ctx,
        grads: &mut Gradients,
    ) -> Result<(Tensor, Tensor)> {
        let graph = Graph::new(&[x, h], |inputs| {
            let (y, log_slope) = self.forward(&inputs[0], &inputs[1], ctx.replay())?;
            Ok(vec![y, log_slope])
        })?;
        let mut of_inputs = graph.backward(&[gy, grad_log_slope], grads)?;
        let gh = of_inputs.pop().expect("one for each input");
        Ok((of_inputs.pop().expect("one for each input"), gh))
    }

    /// x with the changed elements transformed, and the log-det (B,), outside candle's graph.
    ///
    /// # Errors
    /// As [`Transform::forward`].
    fn forward_whole(&self, x: &Tensor, h: &Tensor, changed: &Changed, ctx: Ctx) -> Result<(Tensor, Tensor)> {
        forward_parts(self, x, h, changed, ctx)
    }

    /// y with the changed elements transformed back.
    ///
    /// # Errors
    /// As [`Transform::inverse`].
    fn inverse_whole(&self, y: &Tensor, h: &Tensor, changed: &Changed) -> Result<Tensor> {
        let (part, params) = changed.take(y, h)?;
        changed.put(y, &self.inverse(&part, &params)?)
    }

    /// The partial derivatives of the loss by x (h held fixed) and by h, from the gradients of y and of the log-det (B,). The
    /// coupling adds the path through the network. Gradients of the transform's own parameters go to `grads`.
    ///
    /// # Errors
    /// As [`Transform::forward`].
    fn backward_whole(
        &self,
        (x, h): (&Tensor, &Tensor),
        changed: &Changed,
        (gy, grad_log_det): (&Tensor, &Tensor),
        ctx: Ctx,
        grads: &mut Gradients,
    ) -> Result<(Tensor, Tensor)> {
        let (part, params) = changed.take(x, h)?;
        let of_part = changed.only(&gy.narrow(1, changed.channels.start, changed.channels.len())?)?;
        let mut per_example = vec![1; part.rank()];
        per_example[0] = part.dim(0)?;
        let of_slopes = changed.only(&grad_log_det.reshape(per_example)?.broadcast_as(part.shape())?)?;
        let (gx, gh) = self.backward((&part, &params), (&of_part, &of_slopes), ctx, grads)?;
        Ok((changed.put(gy, &gx)?, gh))
    }
}

/// [`Transform::forward`] on the changed part of x, put back into x; and the log-det (B,). On candle's graph if the inputs or
/// `ctx` are.
pub(crate) fn forward_parts<T: Transform + ?Sized>(
    transform: &T,
    x: &Tensor,
    h: &Tensor,
    changed: &Changed,
    ctx: Ctx,
) -> Result<(Tensor, Tensor)> {
    let (part, params) = changed.take(x, h)?;
    let (y, log_slopes) = transform.forward(&part, &params, ctx)?;
    let log_det =
        if transform.preserves_volume() { zeros_per_example(x)? } else { changed.sum(&log_slopes)? };
    Ok((changed.put(x, &y)?, log_det))
}
