//! What lies between the convolutions of a network on a GPU: actnorm, batch norm, weight norm, ReLU, added maps and sums.
//!
//! **Channels come last.** Inside a network activations have the shape (B, H, W, C), and a convolution's kernel (O, k, k, C):
//! that is what the matrix units of a GPU read, and cuDNN turns everything else around before and after each convolution. A
//! flow's own layers keep (B, C, H, W), so what enters a network and what leaves it is turned around once, with the change to
//! the type of activations. Activations are f32, f64 or bf16; parameters and their gradients beside bf16 are f32.

use super::launch::{Args, Ptr, blocks, channels, count, fresh, launch, layout, parameters};
use super::slices::Slices;
use candle_core::{DType, Result, Tensor};

/// Numbers that a thread takes at once, as in portable.h.
const GROUP: usize = 4;

/// Whether threads take groups of neighbours in one access: where channels divide into groups and all addresses allow it.
fn wide(channels: usize, addresses: &[Ptr]) -> bool {
    channels.is_multiple_of(GROUP) && addresses.iter().all(|p| p.0.is_multiple_of(16))
}

/// The number of groups, or of single numbers, in `n` numbers.
fn groups(n: usize, wide: bool) -> usize {
    if wide { n / GROUP } else { n }
}

/// Rows and channels of x (..., C).
fn rows(x: &Tensor) -> Result<(usize, usize)> {
    let c = x.dim(candle_core::D::Minus1)?;
    count(x.elem_count())?;
    Ok((x.elem_count() / c.max(1), c))
}

/// Launches the kernel `name` for activations of `dtype` on the device of `x`.
fn run<A: Args>(x: &Tensor, name: &str, dtype: DType, blocks: usize, args: &A) -> Result<()> {
    launch(x.device(), name, Some(dtype), blocks, args)
}

#[repr(C)]
#[derive(Clone, Copy)]
struct Turn {
    x: Ptr,
    out: Ptr,
    channels: u32,
    positions: u32,
    total: u32,
}
// SAFETY: as `Args` asks.
unsafe impl Args for Turn {}
layout!(Turn, 32, total, 24);

fn turn(
    x: &Tensor,
    shape: [usize; 4],
    dtypes: (DType, DType),
    name: &str,
    c: usize,
    p: usize,
) -> Result<Tensor> {
    let x = x.contiguous()?;
    let out = fresh(&shape[..], dtypes.0, x.device())?;
    let n = x.elem_count();
    let args = Turn {
        x: Ptr::of(&x)?,
        out: Ptr::of(&out)?,
        channels: count(c)?,
        positions: count(p)?,
        total: count(n)?,
    };
    run(&x, name, dtypes.1, blocks(n), &args)?;
    Ok(out)
}

/// (B, C, H, W) to (B, H, W, C) in `dtype`, also for a convolution's kernel.
pub(crate) fn to_last(x: &Tensor, dtype: DType) -> Result<Tensor> {
    let (b, c, h, w) = x.dims4()?;
    if h * w == 1 && x.dtype() == dtype {
        return x.reshape((b, h, w, c));
    }
    turn(x, [b, h, w, c], (dtype, dtype), "to_last", c, h * w)
}

/// (B, H, W, C) to (B, C, H, W) in the type of parameters or in that of x, which is `dtype`.
pub(crate) fn from_last(x: &Tensor, dtype: DType) -> Result<Tensor> {
    let (b, h, w, c) = x.dims4()?;
    if h * w == 1 && x.dtype() == dtype {
        return x.reshape((b, c, h, w));
    }
    turn(x, [b, c, h, w], (dtype, x.dtype()), "from_last", c, h * w)
}

#[repr(C)]
#[derive(Clone, Copy)]
struct NetAct {
    x: Ptr,
    add: Ptr,
    map: Ptr,
    bias: Ptr,
    logs: Ptr,
    out: Ptr,
    factor: f64,
    channels: u32,
    each: u32,
    groups: u32,
    relu: u32,
    wide: u32,
}
// SAFETY: as `Args` asks.
unsafe impl Args for NetAct {}
layout!(NetAct, 80, wide, 72);

/// z = act((x + map_{p,c} + bias_c) exp(factor logs_c)) + add, for x (B, H, W, C); what is none is 0.
#[derive(Clone, Copy, Default)]
pub(crate) struct Act<'a> {
    /// The same for all images, (H W, C).
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

impl Act<'_> {
    /// z.
    pub(crate) fn run(&self, x: &Tensor) -> Result<Tensor> {
        let x = x.contiguous()?;
        let (_, c) = rows(&x)?;
        let each = x.elem_count() / x.dim(0)?.max(1);
        channels(c, &[self.bias, self.logs])?;
        channels(each, &[self.map])?;
        channels(x.elem_count(), &[self.add])?;
        let out = fresh(x.shape(), x.dtype(), x.device())?;
        let (of_x, of_out, add) = (Ptr::of(&x)?, Ptr::of(&out)?, Ptr::maybe(self.add)?);
        let wide = wide(c, &[of_x, of_out, add]);
        let n = groups(x.elem_count(), wide);
        let args = NetAct {
            x: of_x,
            add,
            map: Ptr::maybe(self.map)?,
            bias: Ptr::maybe(self.bias)?,
            logs: Ptr::maybe(self.logs)?,
            out: of_out,
            factor: self.factor,
            channels: count(c)?,
            each: count(each)?,
            groups: count(n)?,
            relu: self.relu.into(),
            wide: wide.into(),
        };
        run(&x, "net_act", x.dtype(), blocks(n), &args)?;
        Ok(out)
    }
}

#[repr(C)]
#[derive(Clone, Copy)]
struct NetActBack {
    z: Ptr,
    gz: Ptr,
    logs: Ptr,
    gx: Ptr,
    sums: Ptr,
    partial: Ptr,
    factor: f64,
    rows: u32,
    channels: u32,
    relu: u32,
    slices: u32,
    wide: u32,
}
// SAFETY: as `Args` asks.
unsafe impl Args for NetActBack {}
layout!(NetActBack, 80, wide, 72);

/// From the gradient of z: that of x if `gx`, and with `sums` one or two sums of each channel.
fn back(
    z: Option<&Tensor>,
    gz: &Tensor,
    logs: Option<(&Tensor, f64)>,
    relu: bool,
    (gx, sums): (Option<&Tensor>, Option<&Tensor>),
) -> Result<()> {
    let (n, c) = rows(gz)?;
    let (z, of_gz, of_gx) = (Ptr::maybe(z)?, Ptr::of(gz)?, Ptr::maybe(gx)?);
    let wide = wide(c, &[z, of_gz, of_gx]);
    let slices = Slices::of_rows(2 * c, n, groups(c, wide), gz.device())?;
    let args = NetActBack {
        z,
        gz: of_gz,
        logs: Ptr::maybe(logs.map(|l| l.0))?,
        gx: of_gx,
        sums: Ptr::maybe(sums)?,
        partial: slices.partial()?,
        factor: logs.map_or(0., |l| l.1),
        rows: count(n)?,
        channels: count(c)?,
        relu: relu.into(),
        slices: count(slices.slices)?,
        wide: wide.into(),
    };
    run(gz, "net_act_back", gz.dtype(), slices.slices, &args)?;
    sums.map_or(Ok(()), |sums| slices.add_up(sums))
}

/// The gradients of x, bias and logs of [`Act`] from z, ReLU's output if there is one, and its gradient.
pub(crate) fn act_backward(
    z: &Tensor,
    gz: &Tensor,
    logs: &Tensor,
    factor: f64,
    relu: bool,
) -> Result<(Tensor, Tensor, Tensor)> {
    let (z, gz) = (z.contiguous()?, gz.contiguous()?);
    let (_, c) = rows(&z)?;
    channels(c, &[Some(logs)])?;
    let gx = fresh(z.shape(), z.dtype(), z.device())?;
    let sums = fresh((2, c), parameters(z.dtype()), z.device())?;
    back(Some(&z), &gz, Some((logs, factor)), relu, (Some(&gx), Some(&sums)))?;
    Ok((gx, sums.get(0)?, sums.get(1)?))
}

/// The gradient of a bias: the sum of g (B, H, W, C) over all but the channels.
pub(crate) fn bias_backward(g: &Tensor) -> Result<Tensor> {
    let g = g.contiguous()?;
    let sums = fresh(rows(&g)?.1, parameters(g.dtype()), g.device())?;
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
layout!(BatchSum, 32, wide, 28);

/// The gradient of a map that is the same for all images: the sum of g (B, ...) over the batch, in the type of parameters.
pub(crate) fn map_backward(g: &Tensor) -> Result<Tensor> {
    let g = g.contiguous()?;
    let each = g.elem_count() / g.dim(0)?.max(1);
    let out = fresh(&g.dims()[1..], parameters(g.dtype()), g.device())?;
    let x = Ptr::of(&g)?;
    let wide = wide(each, &[x]);
    let n = groups(each, wide);
    count(g.elem_count())?;
    let args = BatchSum {
        x,
        out: Ptr::of(&out)?,
        batch: count(g.dim(0)?)?,
        each: count(each)?,
        groups: count(n)?,
        wide: wide.into(),
    };
    run(&g, "batch_sum", g.dtype(), blocks(n), &args)?;
    Ok(out)
}

#[repr(C)]
#[derive(Clone, Copy)]
struct MomentsArgs {
    x: Ptr,
    out: Ptr,
    partial: Ptr,
    rows: u32,
    channels: u32,
    slices: u32,
    wide: u32,
}
// SAFETY: as `Args` asks.
unsafe impl Args for MomentsArgs {}
layout!(MomentsArgs, 40, wide, 36);

/// Mean and biased variance of each channel of x (B, H, W, C), (2, C).
pub(crate) fn moments(x: &Tensor) -> Result<Tensor> {
    let x = x.contiguous()?;
    let (n, c) = rows(&x)?;
    let (out, at) = (fresh((2, c), parameters(x.dtype()), x.device())?, Ptr::of(&x)?);
    let wide = wide(c, &[at]);
    let slices = Slices::of_rows(2 * c, n, groups(c, wide), x.device())?;
    let args = MomentsArgs {
        x: at,
        out: Ptr::of(&out)?,
        partial: slices.partial()?,
        rows: count(n)?,
        channels: count(c)?,
        slices: count(slices.slices)?,
        wide: wide.into(),
    };
    run(&x, "moments", x.dtype(), slices.slices, &args)?;
    run(&x, "moments_end", x.dtype(), c, &args)?;
    Ok(out)
}

/// A batch norm inside a network: vectors of C, and whether mean and variance are those of the batch at hand.
#[derive(Clone, Debug)]
pub(crate) struct Norm {
    pub(crate) mean: Tensor,
    pub(crate) var: Tensor,
    pub(crate) gamma: Tensor,
    pub(crate) beta: Tensor,
    pub(crate) eps: f64,
    pub(crate) own: bool,
}

#[repr(C)]
#[derive(Clone, Copy)]
struct NormArgs {
    x: Ptr,
    mean: Ptr,
    var: Ptr,
    gamma: Ptr,
    beta: Ptr,
    out: Ptr,
    eps: f64,
    channels: u32,
    groups: u32,
    relu: u32,
    wide: u32,
}
// SAFETY: as `Args` asks.
unsafe impl Args for NormArgs {}
layout!(NormArgs, 72, wide, 68);

#[repr(C)]
#[derive(Clone, Copy)]
struct NormBack {
    x: Ptr,
    gy: Ptr,
    mean: Ptr,
    var: Ptr,
    gamma: Ptr,
    beta: Ptr,
    gx: Ptr,
    sums: Ptr,
    partial: Ptr,
    eps: f64,
    rows: u32,
    channels: u32,
    groups: u32,
    relu: u32,
    own: u32,
    slices: u32,
    wide: u32,
}
// SAFETY: as `Args` asks.
unsafe impl Args for NormBack {}
layout!(NormBack, 112, wide, 104);

impl Norm {
    fn check(&self, c: usize) -> Result<()> {
        channels(c, &[Some(&self.mean), Some(&self.var), Some(&self.gamma), Some(&self.beta)])
    }

    /// act(gamma (x - mean) / sqrt(var + eps) + beta) for x (B, H, W, C).
    pub(crate) fn forward(&self, x: &Tensor, relu: bool) -> Result<Tensor> {
        let x = x.contiguous()?;
        let (_, c) = rows(&x)?;
        self.check(c)?;
        let out = fresh(x.shape(), x.dtype(), x.device())?;
        let (at, of_out) = (Ptr::of(&x)?, Ptr::of(&out)?);
        let wide = wide(c, &[at, of_out]);
        let n = groups(x.elem_count(), wide);
        let args = NormArgs {
            x: at,
            mean: Ptr::of(&self.mean)?,
            var: Ptr::of(&self.var)?,
            gamma: Ptr::of(&self.gamma)?,
            beta: Ptr::of(&self.beta)?,
            out: of_out,
            eps: self.eps,
            channels: count(c)?,
            groups: count(n)?,
            relu: relu.into(),
            wide: wide.into(),
        };
        run(&x, "norm", x.dtype(), blocks(n), &args)?;
        Ok(out)
    }

    /// The gradients of x, gamma and beta.
    pub(crate) fn backward(&self, x: &Tensor, gy: &Tensor, relu: bool) -> Result<(Tensor, Tensor, Tensor)> {
        let (x, gy) = (x.contiguous()?, gy.contiguous()?);
        let (r, c) = rows(&x)?;
        self.check(c)?;
        let gx = fresh(x.shape(), x.dtype(), x.device())?;
        let sums = fresh((2, c), parameters(x.dtype()), x.device())?;
        let (at, of_gy, of_gx) = (Ptr::of(&x)?, Ptr::of(&gy)?, Ptr::of(&gx)?);
        let wide = wide(c, &[at, of_gy, of_gx]);
        let n = groups(x.elem_count(), wide);
        let slices = Slices::of_rows(2 * c, r, groups(c, wide), x.device())?;
        let args = NormBack {
            x: at,
            gy: of_gy,
            mean: Ptr::of(&self.mean)?,
            var: Ptr::of(&self.var)?,
            gamma: Ptr::of(&self.gamma)?,
            beta: Ptr::of(&self.beta)?,
            gx: of_gx,
            sums: Ptr::of(&sums)?,
            partial: slices.partial()?,
            eps: self.eps,
            rows: count(r)?,
            channels: count(c)?,
            groups: count(n)?,
            relu: relu.into(),
            own: self.own.into(),
            slices: count(slices.slices)?,
            wide: wide.into(),
        };
        run(&x, "norm_back_sums", x.dtype(), slices.slices, &args)?;
        slices.add_up(&sums)?;
        run(&x, "norm_back", x.dtype(), blocks(n), &args)?;
        Ok((gx, sums.get(1)?, sums.get(0)?))
    }
}

#[repr(C)]
#[derive(Clone, Copy)]
struct WeightNormArgs {
    v: Ptr,
    g: Ptr,
    w: Ptr,
    inverse: Ptr,
    channels: u32,
    taps: u32,
}
// SAFETY: as `Args` asks.
unsafe impl Args for WeightNormArgs {}
layout!(WeightNormArgs, 40, taps, 36);

#[repr(C)]
#[derive(Clone, Copy)]
struct WeightNormBack {
    gw: Ptr,
    v: Ptr,
    g: Ptr,
    inverse: Ptr,
    gv: Ptr,
    gg: Ptr,
    channels: u32,
    taps: u32,
}
// SAFETY: as `Args` asks.
unsafe impl Args for WeightNormBack {}
layout!(WeightNormBack, 56, taps, 52);

/// w = g v / |v| for each output channel of v (O, C, k, k), as (O, k, k, C) in `dtype`, and 1/|v| in f64.
pub(crate) fn weight_norm(v: &Tensor, g: &Tensor, dtype: DType) -> Result<(Tensor, Tensor)> {
    let (o, c, h, w) = v.dims4()?;
    channels(o, &[Some(g)])?;
    let (out, inverse) = (fresh((o, h, w, c), dtype, v.device())?, fresh(o, DType::F64, v.device())?);
    let args = WeightNormArgs {
        v: Ptr::of(v)?,
        g: Ptr::of(g)?,
        w: Ptr::of(&out)?,
        inverse: Ptr::of(&inverse)?,
        channels: count(c)?,
        taps: count(h * w)?,
    };
    run(v, "weight_norm", dtype, o, &args)?;
    Ok((out, inverse))
}

/// The gradients of v and g, from that of w (O, k, k, C).
pub(crate) fn weight_norm_backward(
    gw: &Tensor,
    v: &Tensor,
    g: &Tensor,
    inverse: &Tensor,
) -> Result<(Tensor, Tensor)> {
    let gw = gw.contiguous()?;
    let (o, c, h, w) = v.dims4()?;
    let (gv, gg) = (fresh(v.shape(), v.dtype(), v.device())?, fresh(o, v.dtype(), v.device())?);
    let args = WeightNormBack {
        gw: Ptr::of(&gw)?,
        v: Ptr::of(v)?,
        g: Ptr::of(g)?,
        inverse: Ptr::of(inverse)?,
        gv: Ptr::of(&gv)?,
        gg: Ptr::of(&gg)?,
        channels: count(c)?,
        taps: count(h * w)?,
    };
    run(v, "weight_norm_back", gw.dtype(), o, &args)?;
    Ok((gv, gg))
}
