//! Clipping, optimiser and moving average over all parameters, in three launches and without the host.

use super::{Args, Ptr, fresh, launch};
use candle_core::backend::BackendStorage;
use candle_core::{CpuStorage, DType, InplaceOp1, Layout, Result, Tensor, bail};

/// Elements a block works on, as in update.h.
const CHUNK: usize = 16384;
/// Tensors that one launch takes, as in update.h.
const TENSORS: usize = 3500;

/// Copies numbers of the host over the first ones of a tensor, in the stream's order.
pub(super) enum Upload<'a> {
    F64(&'a [f64]),
    I64(&'a [i64]),
}

impl InplaceOp1 for Upload<'_> {
    fn name(&self) -> &'static str {
        "upload"
    }

    fn cpu_fwd(&self, storage: &mut CpuStorage, _: &Layout) -> Result<()> {
        match (self, storage) {
            (Self::F64(from), CpuStorage::F64(to)) => to[..from.len()].copy_from_slice(from),
            (Self::I64(from), CpuStorage::I64(to)) => to[..from.len()].copy_from_slice(from),
            (_, other) => bail!("an upload met {:?}", other.dtype()),
        }
        Ok(())
    }

    #[cfg(feature = "cuda")]
    fn cuda_fwd(&self, storage: &mut candle_core::CudaStorage, _: &Layout) -> Result<()> {
        let device = storage.device().clone();
        match self {
            Self::F64(from) => {
                let slice = storage.as_cuda_slice_mut::<f64>()?;
                device.memcpy_htod(*from, &mut slice.slice_mut(..from.len()))
            }
            Self::I64(from) => {
                let slice = storage.as_cuda_slice_mut::<i64>()?;
                device.memcpy_htod(*from, &mut slice.slice_mut(..from.len()))
            }
        }
    }
}

/// The numbers of one update; see [`crate::optim::Rule`] for what they mean.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Hyper {
    pub(crate) b1: f64,
    pub(crate) b2: f64,
    pub(crate) eps: f64,
    pub(crate) a: f64,
    pub(crate) c: f64,
    pub(crate) lr: f64,
    pub(crate) momentum: f64,
    /// What the moving average keeps.
    pub(crate) decay: f64,
    /// The largest norm; infinite for none.
    pub(crate) max_norm: f64,
    /// 0 Adam, 1 Adamax, 2 RMSProp.
    pub(crate) rule: f64,
}

impl Hyper {
    const LEN: usize = 10;

    /// In the order of update.h.
    fn numbers(&self) -> [f64; Self::LEN] {
        [
            self.b1,
            self.b2,
            self.eps,
            self.a,
            self.c,
            self.lr,
            self.momentum,
            self.decay,
            self.max_norm,
            self.rule,
        ]
    }
}

/// Sums over the updates since they were last read.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct Tally {
    /// Of the mean log p(x) of each batch, in nats.
    pub log_prob: f64,
    /// Of the gradient's norm.
    pub norm: f64,
    /// Of what gradients were multiplied by.
    pub clip: f64,
    /// Updates made.
    pub updates: u64,
    /// Whether an update was not made, and none after it, because its loss or its gradient was not finite; and whether it
    /// was the loss.
    pub not_finite: Option<bool>,
}

#[repr(C)]
#[derive(Clone, Copy)]
struct UpdateArgs {
    p: Ptr,
    state: Ptr,
    average: Ptr,
    l2: Ptr,
    len: Ptr,
    chunks: Ptr,
    partial: Ptr,
    hyper: Ptr,
    tally: Ptr,
    found: Ptr,
    loss: Ptr,
    parts: u32,
    g: [Ptr; TENSORS],
}
// SAFETY: as `Args` asks.
unsafe impl Args for UpdateArgs {}

/// Parameters, their state and their averages, with tables of where they lie on the device.
pub(crate) struct Update {
    params: Vec<Tensor>,
    /// What the tables point to, besides the parameters.
    _kept: Vec<Tensor>,
    args: Box<UpdateArgs>,
    chunks: usize,
    hyper: Tensor,
    tally: Tensor,
    _tables: Vec<Tensor>,
}

impl Update {
    /// For parameters of one dtype and device; `state` has two rows for each, `l2` what the gradient of 2 l2 |p|^2 / 2 is
    /// multiplied by (0 for none).
    pub(crate) fn new(
        params: Vec<Tensor>,
        state: Vec<Tensor>,
        average: Option<Vec<Tensor>>,
        l2: &[f64],
    ) -> Result<Self> {
        let Some(first) = params.first() else { bail!("there is no parameter to train") };
        if params.len() > TENSORS {
            bail!("{} parameters are more than the {TENSORS} of one update on a GPU", params.len());
        }
        let device = first.device().clone();
        let mut chunks = Vec::new();
        for (t, p) in params.iter().enumerate() {
            let n = super::count(p.elem_count())?;
            chunks.extend((0..n).step_by(CHUNK).flat_map(|start| [t as u32, start]));
        }
        let parts = chunks.len() / 2;
        let addresses = |of: &[Tensor]| -> Result<Tensor> {
            let all = of.iter().map(|t| Ok(Ptr::of(t)?.0 as i64)).collect::<Result<Vec<_>>>()?;
            Tensor::new(all, &device)
        };
        let lens = params.iter().map(|p| super::count(p.elem_count())).collect::<Result<Vec<_>>>()?;
        let hyper = Tensor::zeros(Hyper::LEN, DType::F64, &device)?;
        let tally = Tensor::zeros(6, DType::F64, &device)?;
        let tables = vec![
            addresses(&params)?,
            addresses(&state)?,
            Tensor::new(l2, &device)?,
            Tensor::new(lens, &device)?,
            Tensor::new(chunks, &device)?,
            fresh(parts, DType::F64, &device)?,
            fresh(2, DType::F64, &device)?,
        ];
        let of_average = average.as_ref().map(|a| addresses(a)).transpose()?;
        let at = |i: usize| Ptr::of(&tables[i]);
        let args = Box::new(UpdateArgs {
            p: at(0)?,
            state: at(1)?,
            average: Ptr::maybe(of_average.as_ref())?,
            l2: at(2)?,
            len: at(3)?,
            chunks: at(4)?,
            partial: at(5)?,
            hyper: Ptr::of(&hyper)?,
            tally: Ptr::of(&tally)?,
            found: at(6)?,
            loss: Ptr::NULL,
            parts: super::count(parts)?,
            g: [Ptr::NULL; TENSORS],
        });
        let kept = state.into_iter().chain(average.into_iter().flatten()).collect();
        let tables = tables.into_iter().chain(of_average).collect();
        Ok(Self { params, _kept: kept, args, chunks: parts, hyper, tally, _tables: tables })
    }

    /// Sets the numbers of the next update.
    pub(crate) fn set(&self, hyper: &Hyper) -> Result<()> {
        self.hyper.inplace_op1(&Upload::F64(&hyper.numbers()))
    }

    /// One update along the gradients, in the order of the parameters; `loss` is the mean log p(x), a scalar. Nothing waits.
    pub(crate) fn run(&mut self, grads: &[Option<Tensor>], loss: &Tensor) -> Result<()> {
        let (device, dtype) = (self.params[0].device().clone(), self.params[0].dtype());
        for (i, (g, p)) in grads.iter().zip(&self.params).enumerate() {
            self.args.g[i] = match g {
                Some(g) if g.elem_count() == p.elem_count() && g.dtype() == dtype => Ptr::of(g)?,
                Some(g) => bail!("a gradient {:?} met a parameter {:?}", g.shape(), p.shape()),
                None => Ptr::NULL,
            };
        }
        self.args.loss = Ptr::of(loss)?;
        launch(&device, "square_sums", Some(dtype), self.chunks, &*self.args)?;
        launch(&device, "clip", Some(dtype), 1, &*self.args)?;
        launch(&device, "optimise", Some(dtype), self.chunks, &*self.args)
    }

    /// The tally, which starts anew; waits for all that was launched.
    pub(crate) fn tally(&self) -> Result<Tally> {
        let v = self.tally.to_vec1::<f64>()?;
        // What went wrong stays, so that nothing is updated until the caller gives up.
        self.tally.inplace_op1(&Upload::F64(&[0.; 4]))?;
        Ok(Tally {
            log_prob: v[0],
            norm: v[1],
            clip: v[2],
            updates: v[3] as u64,
            not_finite: (v[4] != 0.).then_some(v[5] != 0.),
        })
    }
}
