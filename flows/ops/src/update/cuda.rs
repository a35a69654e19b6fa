//! L2, clipping, rule and moving average over all parameters, in three launches that do not wait for the host.

use super::spec::{Numbers, Penalty, RuleStep, Tally};
use crate::cuda::launch::{Args, Ptr, count, fresh, launch, layout};
use candle_core::{DType, Result, Tensor, bail};

/// Elements a block works on, as in update.h.
const CHUNK: usize = 16384;
/// Tensors that one launch takes, as in update.h.
const TENSORS: usize = 3500;
/// Numbers of an update on the device, as in update.h.
const NUMBERS: usize = 10;

/// [`Numbers`] in the order of update.h.
fn on_device(numbers: &Numbers) -> [f64; NUMBERS] {
    let Numbers { step, lr, decay, max_norm } = *numbers;
    let of_rule = match step {
        RuleStep::Adam { b1, b2, a, c, eps } => [b1, b2, eps, a, c, 0.],
        RuleStep::Adamax { b1, b2, a, eps } => [b1, b2, eps, a, 1., 0.],
        RuleStep::RmsProp { rho, momentum, eps, .. } => [0., rho, eps, 0., 0., momentum],
    };
    let rule = match step {
        RuleStep::Adam { .. } => 0.,
        RuleStep::Adamax { .. } => 1.,
        RuleStep::RmsProp { .. } => 2.,
    };
    let [b1, b2, eps, a, c, momentum] = of_rule;
    [b1, b2, eps, a, c, lr, momentum, decay, max_norm, rule]
}

#[repr(C)]
#[derive(Clone, Copy)]
struct UpdateArgs {
    p: Ptr,
    state: Ptr,
    average: Ptr,
    penalty: Ptr,
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
layout!(UpdateArgs, 28096, g, 96);

#[repr(C)]
#[derive(Clone, Copy)]
struct Put {
    v: [f64; NUMBERS],
    out: Ptr,
    n: u32,
}
// SAFETY: as `Args` asks.
unsafe impl Args for Put {}
layout!(Put, 96, n, 88);

/// Writes numbers of the host over the first ones of a tensor of f64, in the stream's order, without waiting.
fn put(to: &Tensor, numbers: &[f64]) -> Result<()> {
    let mut args = Put { v: [0.; NUMBERS], out: Ptr::of(to)?, n: count(numbers.len())? };
    args.v[..numbers.len()].copy_from_slice(numbers);
    launch(to.device(), "put", None, 1, &args)
}

/// Parameters, their state and their averages, with tables of where they lie on the device.
pub struct FusedUpdate {
    params: Vec<Tensor>,
    /// What the tables point to, besides the parameters.
    _kept: Vec<Tensor>,
    args: Box<UpdateArgs>,
    chunks: usize,
    hyper: Tensor,
    tally: Tensor,
    _tables: Vec<Tensor>,
}

impl FusedUpdate {
    /// For parameters of one dtype and device. `state` has two rows for each parameter, `penalty` one entry.
    ///
    /// # Errors
    /// Without parameters, or with more than one launch takes.
    pub fn new(
        params: Vec<Tensor>,
        state: Vec<Tensor>,
        average: Option<Vec<Tensor>>,
        penalty: &[Penalty],
    ) -> Result<Self> {
        let Some(first) = params.first() else { bail!("there is no parameter to train") };
        if params.len() > TENSORS {
            bail!("{} parameters are more than the {TENSORS} of one update on a GPU", params.len());
        }
        let device = first.device().clone();
        let mut chunks = Vec::new();
        for (t, p) in params.iter().enumerate() {
            let n = count(p.elem_count())?;
            chunks.extend((0..n).step_by(CHUNK).flat_map(|start| [t as u32, start]));
        }
        let parts = chunks.len() / 2;
        let addresses = |of: &[Tensor]| -> Result<Tensor> {
            let all = of.iter().map(|t| Ok(Ptr::of(t)?.0 as i64)).collect::<Result<Vec<_>>>()?;
            Tensor::new(all, &device)
        };
        let penalty: Vec<f64> = penalty.iter().flat_map(|p| [2. * p.l2, p.decay]).collect();
        let lens = params.iter().map(|p| count(p.elem_count())).collect::<Result<Vec<_>>>()?;
        let hyper = Tensor::zeros(NUMBERS, DType::F64, &device)?;
        let tally = Tensor::zeros(6, DType::F64, &device)?;
        let tables = vec![
            addresses(&params)?,
            addresses(&state)?,
            Tensor::new(penalty, &device)?,
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
            penalty: at(2)?,
            len: at(3)?,
            chunks: at(4)?,
            partial: at(5)?,
            hyper: Ptr::of(&hyper)?,
            tally: Ptr::of(&tally)?,
            found: at(6)?,
            loss: Ptr::NULL,
            parts: count(parts)?,
            g: [Ptr::NULL; TENSORS],
        });
        let kept = state.into_iter().chain(average.into_iter().flatten()).collect();
        let tables = tables.into_iter().chain(of_average).collect();
        Ok(Self { params, _kept: kept, args, chunks: parts, hyper, tally, _tables: tables })
    }

    /// Sets the numbers of the next update.
    ///
    /// # Errors
    /// Where the device fails.
    pub fn set(&self, numbers: &Numbers) -> Result<()> {
        put(&self.hyper, &on_device(numbers))
    }

    /// One update along the gradients, in the order of the parameters; `loss` is the mean log p(x), a scalar. Nothing waits.
    ///
    /// # Errors
    /// Where a gradient has another shape or dtype than its parameter.
    pub fn run(&mut self, grads: &[Option<Tensor>], loss: &Tensor) -> Result<()> {
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
    ///
    /// # Errors
    /// Where the device fails.
    pub fn tally(&self) -> Result<Tally> {
        let v = self.tally.to_vec1::<f64>()?;
        // What went wrong stays, so that nothing is updated until the caller gives up.
        put(&self.tally, &[0.; 4])?;
        Ok(Tally {
            log_prob: v[0],
            norm: v[1],
            clip: v[2],
            updates: v[3] as u64,
            not_finite: (v[4] != 0.).then_some(v[5] != 0.),
        })
    }
}
