//! The kernels of couplings.

use super::spec::{AffineGrads, AffineSpec, ScaleFn};
use crate::cuda::launch::{Args, Ptr, blocks, count, fresh, launch, layout, sizes};
use candle_core::{Result, Tensor, bail};

/// A range of an example's numbers, and the mask on it.
#[repr(C)]
#[derive(Clone, Copy)]
struct Part {
    mask: Ptr,
    start: u32,
    len: u32,
    example: u32,
    positions: u32,
    mask_channel: u32,
    mask_position: u32,
}

impl Part {
    /// `channels` channels from `start` of x (B, C, ...); a mask is (1 or C, H, W), (1, 1 or C, H, W) or (C,), and broadcasts.
    fn new(x: &Tensor, start: usize, channels: usize, mask: Option<&Tensor>) -> Result<Self> {
        let (_, c, p) = sizes(x)?;
        if start + channels > c {
            bail!("channels {start} to {} of {:?} were asked for", start + channels, x.shape());
        }
        let (mut mask_channel, mut mask_position) = (0, 0);
        if let Some(mask) = mask {
            let dims = match mask.dims() {
                [1, rest @ ..] if rest.len() + 1 == x.rank() => rest,
                all if all.len() + 1 == x.rank() => all,
                all => bail!("a mask of shape {all:?} met {:?}", x.shape()),
            };
            let at_each: usize = dims[1..].iter().product();
            if ![1, channels].contains(&dims[0]) || ![1, p].contains(&at_each) {
                bail!("a mask of shape {:?} met {:?}", mask.shape(), x.shape());
            }
            mask_channel = if dims[0] == 1 { 0 } else { at_each };
            mask_position = usize::from(at_each != 1);
        }
        Ok(Self {
            mask: Ptr::maybe(mask)?,
            start: count(start * p)?,
            len: count(channels * p)?,
            example: count(c * p)?,
            positions: count(p)?,
            mask_channel: count(mask_channel)?,
            mask_position: count(mask_position)?,
        })
    }

    fn of_spec(s: &AffineSpec, x: &Tensor) -> Result<Self> {
        Self::new(x, s.changed.start, s.changed.len(), s.mask)
    }
}

#[repr(C)]
#[derive(Clone, Copy)]
struct CouplingArgs {
    x: Ptr,
    net: Ptr,
    gain: Ptr,
    out: Ptr,
    log_det: Ptr,
    part: Part,
    kind: u32,
    shift_first: u32,
    inverse: u32,
}
// SAFETY: as `Args` asks.
unsafe impl Args for CouplingArgs {}
layout!(CouplingArgs, 88, inverse, 80);

#[repr(C)]
#[derive(Clone, Copy)]
struct CouplingBack {
    x: Ptr,
    net: Ptr,
    gain: Ptr,
    gy: Ptr,
    grad_log_det: Ptr,
    gx: Ptr,
    gnet: Ptr,
    ggain: Ptr,
    part: Part,
    kind: u32,
    shift_first: u32,
}
// SAFETY: as `Args` asks.
unsafe impl Args for CouplingBack {}
layout!(CouplingBack, 104, shift_first, 100);

fn pass(s: &AffineSpec, x: &Tensor, net: &Tensor, log_det: Option<&Tensor>) -> Result<Tensor> {
    s.check_gain()?;
    let (x, net) = (x.contiguous()?, net.contiguous()?);
    let out = fresh(x.shape(), x.dtype(), x.device())?;
    let args = CouplingArgs {
        x: Ptr::of(&x)?,
        net: Ptr::of(&net)?,
        gain: Ptr::maybe(s.gain)?,
        out: Ptr::of(&out)?,
        log_det: Ptr::maybe(log_det)?,
        part: Part::of_spec(s, &x)?,
        kind: s.scale as u32,
        shift_first: s.shift_first.into(),
        inverse: log_det.is_none().into(),
    };
    launch(x.device(), "coupling", Some(x.dtype()), x.dim(0)?, &args)?;
    Ok(out)
}

/// [`AffineSpec::forward`].
pub(crate) fn forward(s: &AffineSpec, x: &Tensor, net: &Tensor) -> Result<(Tensor, Tensor)> {
    let log_det = fresh(x.dim(0)?, x.dtype(), x.device())?;
    Ok((pass(s, x, net, Some(&log_det))?, log_det))
}

/// [`AffineSpec::inverse`].
pub(crate) fn inverse(s: &AffineSpec, y: &Tensor, net: &Tensor) -> Result<Tensor> {
    pass(s, y, net, None)
}

/// [`AffineSpec::backward`].
pub(crate) fn backward(
    s: &AffineSpec,
    x: &Tensor,
    net: &Tensor,
    gy: &Tensor,
    grad_log_det: &Tensor,
) -> Result<AffineGrads> {
    s.check_gain()?;
    let (x, net, gy, grad_log_det) =
        (x.contiguous()?, net.contiguous()?, gy.contiguous()?, grad_log_det.contiguous()?);
    let like = |t: &Tensor| fresh(t.shape(), x.dtype(), x.device());
    let (gx, gnet) = (like(&x)?, like(&net)?);
    let ggain = match s.scale {
        ScaleFn::Tanh => Some(fresh(x.dim(0)?, x.dtype(), x.device())?),
        _ => None,
    };
    let args = CouplingBack {
        x: Ptr::of(&x)?,
        net: Ptr::of(&net)?,
        gain: Ptr::maybe(s.gain)?,
        gy: Ptr::of(&gy)?,
        grad_log_det: Ptr::of(&grad_log_det)?,
        gx: Ptr::of(&gx)?,
        gnet: Ptr::of(&gnet)?,
        ggain: Ptr::maybe(ggain.as_ref())?,
        part: Part::of_spec(s, &x)?,
        kind: s.scale as u32,
        shift_first: s.shift_first.into(),
    };
    launch(x.device(), "coupling_back", Some(x.dtype()), x.dim(0)?, &args)?;
    let ggain = ggain.map(|g| g.sum_keepdim(0)).transpose()?;
    Ok(AffineGrads { gx, gnet, ggain })
}

#[repr(C)]
#[derive(Clone, Copy)]
struct TakeArgs {
    x: Ptr,
    out: Ptr,
    part: Part,
    total: u32,
}
// SAFETY: as `Args` asks.
unsafe impl Args for TakeArgs {}
layout!(TakeArgs, 56, total, 48);

/// `channels` channels from `start` of x (B, C, ...), times the mask if there is one.
pub(crate) fn take_part(x: &Tensor, start: usize, channels: usize, mask: Option<&Tensor>) -> Result<Tensor> {
    let x = x.contiguous()?;
    let mut shape = x.dims().to_vec();
    shape[1] = channels;
    let out = fresh(shape, x.dtype(), x.device())?;
    let n = out.elem_count();
    let args = TakeArgs {
        x: Ptr::of(&x)?,
        out: Ptr::of(&out)?,
        part: Part::new(&x, start, channels, mask)?,
        total: count(n)?,
    };
    launch(x.device(), "take_part", Some(x.dtype()), blocks(n), &args)?;
    Ok(out)
}

#[repr(C)]
#[derive(Clone, Copy)]
struct AddPart {
    x: Ptr,
    add: Ptr,
    out: Ptr,
    part: Part,
    total: u32,
}
// SAFETY: as `Args` asks.
unsafe impl Args for AddPart {}
layout!(AddPart, 64, total, 56);

/// x (B, C, ...) with `add` (B, C', ...), times the mask if there is one, added to its channels from `start`.
pub(crate) fn add_part(x: &Tensor, add: &Tensor, start: usize, mask: Option<&Tensor>) -> Result<Tensor> {
    let (x, add) = (x.contiguous()?, add.contiguous()?);
    let out = fresh(x.shape(), x.dtype(), x.device())?;
    let n = x.elem_count();
    let args = AddPart {
        x: Ptr::of(&x)?,
        add: Ptr::of(&add)?,
        out: Ptr::of(&out)?,
        part: Part::new(&x, start, add.dim(1)?, mask)?,
        total: count(n)?,
    };
    launch(x.device(), "add_part", Some(x.dtype()), blocks(n), &args)?;
    Ok(out)
}
