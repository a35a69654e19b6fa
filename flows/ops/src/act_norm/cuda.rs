//! Actnorm's kernels.

use crate::cuda::launch::{Args, Ptr, blocks, channels, count, fresh, launch, parameters, sizes};
use crate::cuda::slices::{Slices, groups, wide};
use candle_core::{Result, Tensor};

#[repr(C)]
#[derive(Clone, Copy)]
struct ActNorm {
    x: Ptr,
    add: Ptr,
    map: Ptr,
    bias: Ptr,
    logs: Ptr,
    out: Ptr,
    factor: f64,
    channels: u32,
    positions: u32,
    groups: u32,
    inverse: u32,
    relu: u32,
    wide: u32,
}
// SAFETY: as `Args` asks.
unsafe impl Args for ActNorm {}

/// z = act((x + map_{c,p} + bias_c) exp(factor logs_c)) + add, for x (B, C, ...) in f32, f64 or bf16; what is none is 0.
#[derive(Clone, Copy, Default)]
pub(crate) struct Pass<'a> {
    /// The same for all images, (C, positions).
    pub(crate) map: Option<&'a Tensor>,
    /// (C,).
    pub(crate) bias: Option<&'a Tensor>,
    /// (C,).
    pub(crate) logs: Option<&'a Tensor>,
    pub(crate) factor: f64,
    /// Whether act is ReLU.
    pub(crate) relu: bool,
    /// As x.
    pub(crate) add: Option<&'a Tensor>,
}

impl Pass<'_> {
    /// z.
    pub(crate) fn run(&self, x: &Tensor) -> Result<Tensor> {
        self.pass(x, false)
    }

    fn pass(&self, x: &Tensor, inverse: bool) -> Result<Tensor> {
        let x = x.contiguous()?;
        let (_, c, p) = sizes(&x)?;
        channels(c, &[self.bias, self.logs])?;
        channels(c * p, &[self.map])?;
        channels(x.elem_count(), &[self.add])?;
        let out = fresh(x.shape(), x.dtype(), x.device())?;
        let (of_x, of_out, add) = (Ptr::of(&x)?, Ptr::of(&out)?, Ptr::maybe(self.add)?);
        let wide = wide(p, &[of_x, of_out, add]);
        let n = groups(x.elem_count(), wide);
        let args = ActNorm {
            x: of_x,
            add,
            map: Ptr::maybe(self.map)?,
            bias: Ptr::maybe(self.bias)?,
            logs: Ptr::maybe(self.logs)?,
            out: of_out,
            factor: self.factor,
            channels: count(c)?,
            positions: count(p)?,
            groups: count(n)?,
            inverse: inverse.into(),
            relu: self.relu.into(),
            wide: wide.into(),
        };
        count(x.elem_count())?;
        launch(x.device(), "act_norm", Some(x.dtype()), blocks(n), &args)?;
        Ok(out)
    }
}

/// x = z exp(-factor logs_c) - bias_c.
pub(crate) fn act_norm_inverse(z: &Tensor, bias: &Tensor, logs: &Tensor, factor: f64) -> Result<Tensor> {
    Pass { bias: Some(bias), logs: Some(logs), factor, ..Pass::default() }.pass(z, true)
}

#[repr(C)]
#[derive(Clone, Copy)]
struct ActNormBack {
    z: Ptr,
    gz: Ptr,
    logs: Ptr,
    gx: Ptr,
    sums: Ptr,
    partial: Ptr,
    factor: f64,
    batch: u32,
    channels: u32,
    positions: u32,
    relu: u32,
    slices: u32,
    wide: u32,
}
// SAFETY: as `Args` asks.
unsafe impl Args for ActNormBack {}

/// From the gradient of z: that of x if `gx`, and with `sums` one or two sums of each channel.
fn back(
    z: Option<&Tensor>,
    gz: &Tensor,
    logs: Option<(&Tensor, f64)>,
    relu: bool,
    (gx, sums): (Option<&Tensor>, Option<&Tensor>),
) -> Result<()> {
    let (b, c, p) = sizes(gz)?;
    let (z, of_gz, of_gx) = (Ptr::maybe(z)?, Ptr::of(gz)?, Ptr::maybe(gx)?);
    let wide = wide(p, &[z, of_gz, of_gx]);
    let slices = Slices::new(c, groups(b * p, wide), 2, gz.device())?;
    let args = ActNormBack {
        z,
        gz: of_gz,
        logs: Ptr::maybe(logs.map(|l| l.0))?,
        gx: of_gx,
        sums: Ptr::maybe(sums)?,
        partial: slices.partial()?,
        factor: logs.map_or(0., |l| l.1),
        batch: count(b)?,
        channels: count(c)?,
        positions: count(p)?,
        relu: relu.into(),
        slices: count(slices.slices)?,
        wide: wide.into(),
    };
    count(gz.elem_count())?;
    launch(gz.device(), "act_norm_back", Some(gz.dtype()), c * slices.slices, &args)?;
    sums.map_or(Ok(()), |sums| slices.add_up(sums))
}

/// The gradients of x, bias and logs from z, ReLU's output if there is one, and its gradient; without the log-det's share.
pub(crate) fn act_norm_backward(
    z: &Tensor,
    gz: &Tensor,
    logs: &Tensor,
    factor: f64,
    relu: bool,
) -> Result<(Tensor, Tensor, Tensor)> {
    let (z, gz) = (z.contiguous()?, gz.contiguous()?);
    let (_, c, _) = sizes(&z)?;
    channels(c, &[Some(logs)])?;
    let gx = fresh(z.shape(), z.dtype(), z.device())?;
    let sums = fresh((2, c), parameters(z.dtype()), z.device())?;
    back(Some(&z), &gz, Some((logs, factor)), relu, (Some(&gx), Some(&sums)))?;
    Ok((gx, sums.get(0)?, sums.get(1)?))
}

/// The gradient of a bias: the sum of g over all but the channels; g (B, C, ...).
pub(crate) fn bias_backward(g: &Tensor) -> Result<Tensor> {
    let g = g.contiguous()?;
    let sums = fresh(sizes(&g)?.1, parameters(g.dtype()), g.device())?;
    back(None, &g, None, false, (None, Some(&sums)))?;
    Ok(sums)
}

/// The gradient of ReLU's input from its output y and that one's gradient.
pub(crate) fn relu_backward(y: &Tensor, gy: &Tensor) -> Result<Tensor> {
    let (y, gy) = (y.contiguous()?, gy.contiguous()?);
    let gx = fresh(y.shape(), y.dtype(), y.device())?;
    back(Some(&y), &gy, None, true, (Some(&gx), None))?;
    Ok(gx)
}

#[repr(C)]
#[derive(Clone, Copy)]
struct BatchSum {
    x: Ptr,
    out: Ptr,
    batch: u32,
    each: u32,
    groups: u32,
    wide: u32,
}
// SAFETY: as `Args` asks.
unsafe impl Args for BatchSum {}

/// The gradient of a map that is the same for all images: the sum of g (B, C, ...) over the batch, (C, positions).
pub(crate) fn map_backward(g: &Tensor) -> Result<Tensor> {
    let g = g.contiguous()?;
    let (b, c, p) = sizes(&g)?;
    let out = fresh((c, p), parameters(g.dtype()), g.device())?;
    let x = Ptr::of(&g)?;
    let wide = wide(c * p, &[x]);
    let n = groups(c * p, wide);
    count(g.elem_count())?;
    let args = BatchSum {
        x,
        out: Ptr::of(&out)?,
        batch: count(b)?,
        each: count(c * p)?,
        groups: count(n)?,
        wide: wide.into(),
    };
    launch(g.device(), "batch_sum", Some(g.dtype()), blocks(n), &args)?;
    Ok(out)
}
