//! Actnorm's kernels.

use crate::cuda::launch::{Args, Ptr, blocks, channels, count, fresh, launch, parameters, sizes};
use candle_core::{Result, Tensor};

#[repr(C)]
#[derive(Clone, Copy)]
struct ActNorm {
    x: Ptr,
    bias: Ptr,
    logs: Ptr,
    out: Ptr,
    factor: f64,
    channels: u32,
    positions: u32,
    total: u32,
    inverse: u32,
    relu: u32,
}
// SAFETY: as `Args` asks.
unsafe impl Args for ActNorm {}

/// z = act((x + bias_c) exp(factor logs_c)) for x (B, C, ...), f32, f64 or bf16; no bias is 0, no logs are 0.
pub(crate) fn act_norm(
    x: &Tensor,
    bias: Option<&Tensor>,
    logs: Option<&Tensor>,
    factor: f64,
    relu: bool,
) -> Result<Tensor> {
    act_norm_pass(x, bias, logs, factor, (false, relu))
}

/// x = z exp(-factor logs_c) - bias_c.
pub(crate) fn act_norm_inverse(z: &Tensor, bias: &Tensor, logs: &Tensor, factor: f64) -> Result<Tensor> {
    act_norm_pass(z, Some(bias), Some(logs), factor, (true, false))
}

fn act_norm_pass(
    x: &Tensor,
    bias: Option<&Tensor>,
    logs: Option<&Tensor>,
    factor: f64,
    (inverse, relu): (bool, bool),
) -> Result<Tensor> {
    let x = x.contiguous()?;
    let (_, c, p) = sizes(&x)?;
    channels(c, &[bias, logs])?;
    let out = fresh(x.shape(), x.dtype(), x.device())?;
    let n = x.elem_count();
    let args = ActNorm {
        x: Ptr::of(&x)?,
        bias: Ptr::maybe(bias)?,
        logs: Ptr::maybe(logs)?,
        out: Ptr::of(&out)?,
        factor,
        channels: count(c)?,
        positions: count(p)?,
        total: count(n)?,
        inverse: inverse.into(),
        relu: relu.into(),
    };
    launch(x.device(), "act_norm", Some(x.dtype()), blocks(n), &args)?;
    Ok(out)
}

#[repr(C)]
#[derive(Clone, Copy)]
struct ActNormBack {
    z: Ptr,
    gz: Ptr,
    logs: Ptr,
    gx: Ptr,
    gbias: Ptr,
    glogs: Ptr,
    factor: f64,
    batch: u32,
    channels: u32,
    positions: u32,
    relu: u32,
}
// SAFETY: as `Args` asks.
unsafe impl Args for ActNormBack {}

/// The gradients of x, bias and logs from z, ReLU's output if there is one, and its gradient; without the log-det's share.
pub(crate) fn act_norm_backward(
    z: &Tensor,
    gz: &Tensor,
    logs: &Tensor,
    factor: f64,
    relu: bool,
) -> Result<(Tensor, Tensor, Tensor)> {
    let (z, gz) = (z.contiguous()?, gz.contiguous()?);
    let (b, c, p) = sizes(&z)?;
    channels(c, &[Some(logs)])?;
    let gx = fresh(z.shape(), z.dtype(), z.device())?;
    let vector = || fresh(c, parameters(z.dtype()), z.device());
    let (gbias, glogs) = (vector()?, vector()?);
    let args = ActNormBack {
        z: Ptr::of(&z)?,
        gz: Ptr::of(&gz)?,
        logs: Ptr::of(logs)?,
        gx: Ptr::of(&gx)?,
        gbias: Ptr::of(&gbias)?,
        glogs: Ptr::of(&glogs)?,
        factor,
        batch: count(b)?,
        channels: count(c)?,
        positions: count(p)?,
        relu: relu.into(),
    };
    launch(z.device(), "act_norm_back", Some(z.dtype()), c, &args)?;
    Ok((gx, gbias, glogs))
}

/// The gradient of a bias: the sum of g over all but the channels; g (B, C, ...).
pub(crate) fn bias_backward(g: &Tensor) -> Result<Tensor> {
    let g = g.contiguous()?;
    let (b, c, p) = sizes(&g)?;
    let gbias = fresh(c, parameters(g.dtype()), g.device())?;
    let args = ActNormBack {
        z: Ptr::NULL,
        gz: Ptr::of(&g)?,
        logs: Ptr::NULL,
        gx: Ptr::NULL,
        gbias: Ptr::of(&gbias)?,
        glogs: Ptr::NULL,
        factor: 0.,
        batch: count(b)?,
        channels: count(c)?,
        positions: count(p)?,
        relu: 0,
    };
    launch(g.device(), "act_norm_back", Some(g.dtype()), c, &args)?;
    Ok(gbias)
}

/// The gradient of ReLU's input from its output y and that one's gradient.
pub(crate) fn relu_backward(y: &Tensor, gy: &Tensor) -> Result<Tensor> {
    let (y, gy) = (y.contiguous()?, gy.contiguous()?);
    let (b, c, p) = sizes(&y)?;
    let gx = fresh(y.shape(), y.dtype(), y.device())?;
    let args = ActNormBack {
        z: Ptr::of(&y)?,
        gz: Ptr::of(&gy)?,
        logs: Ptr::NULL,
        gx: Ptr::of(&gx)?,
        gbias: Ptr::NULL,
        glogs: Ptr::NULL,
        factor: 0.,
        batch: count(b)?,
        channels: count(c)?,
        positions: count(p)?,
        relu: 1,
    };
    launch(y.device(), "act_norm_back", Some(y.dtype()), c, &args)?;
    Ok(gx)
}
