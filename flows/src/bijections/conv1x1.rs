//! The invertible 1x1 convolution: a learned permutation of channels (Glow, section 3.2).

use crate::core::{
    Bijection, Coding, Context, Ctx, Gradients, LayerStats, Memory, SavedState, positions, same_per_example,
};
use crate::ops::channel_mix::{channel_mix, channel_mix_backward};
use crate::ops::linalg;
use crate::ops::log_det::scaled_sum;
use crate::ops::plu::{Rows, plu, plu_backward, plu_inverse};
use crate::params::{Init, Param, ParamBuilder};
use candle_core::{Result, Tensor, bail};
use rand_chacha::ChaCha8Rng;
use serde::{Deserialize, Serialize};
use std::cell::LazyCell;
use std::sync::Mutex;

/// How the matrix is parameterised.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Weight {
    /// W = P L (U + diag(sign exp(log s))): the log-det is a sum, and W cannot become singular (section 3.2, the default).
    Plu,
    /// W itself, as the released code's default: the log-det comes from a factorisation in f64.
    Plain,
}

enum Form {
    /// `lu` packs strict L below the diagonal, log|s| on it and strict U above: as many numbers as W.
    Plu {
        lu: Param,
        rows: Rows,
    },
    Plain(Param),
}

/// An invertible 1x1 convolution: multiplies the channels at each position by a matrix W.
///
/// ```text
/// z[b, :, i, j] = W x[b, :, i, j],     log-det = H W log |det W|
/// ```
///
/// W starts as a random rotation. **Shapes.** (B, D) or (B, C, H, W); W (C, C). The log-det is exact: a sum of log s for
/// [`Weight::Plu`], an f64 factorisation for [`Weight::Plain`], whose gradient is W^-T.
pub struct Conv1x1 {
    form: Form,
    /// W^-1 and the version of the parameter that it belongs to: sampling would factor every W for every batch.
    inverse: Mutex<Option<(u64, Tensor)>>,
}

/// The factors of a random rotation: `lu`, `perm` and `sign` start as the parts of one matrix.
struct Factors {
    lu: Vec<f64>,
    perm: Vec<f64>,
    sign: Vec<f64>,
}

impl Factors {
    fn new(n: usize, rng: &mut ChaCha8Rng) -> Self {
        let f = linalg::lu(&linalg::orthogonal(n, rng), n).expect("a rotation is not singular");
        let mut lu = f.packed;
        let mut sign = vec![0.; n];
        for i in 0..n {
            sign[i] = lu[i * n + i].signum();
            lu[i * n + i] = lu[i * n + i].abs().ln();
        }
        // Row i of L U is row rows[i] of W, so W = (L U)[perm] with perm[rows[i]] = i.
        let mut perm = vec![0.; n];
        f.rows.iter().enumerate().for_each(|(i, &r)| perm[r] = i as f64);
        Self { lu, perm, sign }
    }
}

impl Conv1x1 {
    /// A random rotation of `channels` channels under `vb`: `lu`, `perm`, `sign`, or `weight`.
    ///
    /// # Errors
    /// When `vb` has no such tensors, or their values are no permutation and no signs.
    pub fn new(channels: usize, weight: Weight, vb: &ParamBuilder) -> Result<Self> {
        let n = channels;
        let form = match weight {
            Weight::Plain => {
                let init = |rng: &mut _| linalg::orthogonal(n, rng);
                Form::Plain(vb.get((n, n), "weight", Init::With(&init))?)
            }
            Weight::Plu => {
                // Only a fresh model needs them: a loaded one has its own.
                let start = LazyCell::new(|| Factors::new(n, &mut vb.rng("rotation")));
                let lu = vb.get((n, n), "lu", Init::With(&|_| start.lu.clone()))?;
                let (perm, _) = vb.permutation(n, "perm", Init::With(&|_| start.perm.clone()))?;
                let perm = perm.value().to_vec1()?;
                let sign = vb.buffer(n, "sign", Init::With(&|_| start.sign.clone()))?;
                let sign = sign.value().to_dtype(candle_core::DType::F64)?.to_vec1::<f64>()?;
                if sign.iter().any(|s| s.abs() != 1.) {
                    bail!("`{}.sign` holds a number other than 1 and -1", vb.path());
                }
                let rows = Rows::new(perm, sign, lu.value())?;
                Form::Plu { lu, rows }
            }
        };
        Ok(Self { form, inverse: Mutex::default() })
    }

    /// W and log |det W|, in the graph if `grad`, and W^-1 where it is computed with the log-det.
    fn weight(&self, grad: bool) -> Result<(Tensor, Tensor, Option<Tensor>)> {
        match &self.form {
            Form::Plain(p) => {
                let (inverse, log_det) = linalg::inverse_log_det(p.value())?;
                let w = p.get(grad);
                if !grad {
                    return Ok((w.clone(), log_det, Some(inverse)));
                }
                // log |det W| was computed outside candle's graph. `carrier - carrier.detach()` is 0 and has the gradient W^-T,
                // which is that of log |det W|.
                let carrier = (w * inverse.t()?)?.sum_all()?;
                Ok((w.clone(), ((&carrier - carrier.detach())? + log_det)?, Some(inverse)))
            }
            Form::Plu { lu, rows } => plu(lu.get(grad), rows).map(|(w, log_det)| (w, log_det, None)),
        }
    }

    /// W alone, outside any graph.
    fn matrix(&self) -> Result<Tensor> {
        match &self.form {
            Form::Plain(p) => Ok(p.value().clone()),
            Form::Plu { lu, rows } => Ok(plu(lu.value(), rows)?.0),
        }
    }

    /// W^-1.
    fn invert(&self) -> Result<Tensor> {
        match &self.form {
            Form::Plain(p) => Ok(linalg::inverse_log_det(p.value())?.0),
            Form::Plu { lu, rows } => plu_inverse(lu.value(), rows),
        }
    }

    /// W x, the log-det, and W^-1 if it is there.
    fn pass(&self, x: &Tensor, grad: bool) -> Result<(Tensor, Tensor, Option<Tensor>)> {
        let (w, log_det, inverse) = self.weight(grad)?;
        let z = channel_mix(x, &w)?;
        let log_det = (log_det * positions(x)? as f64)?;
        Ok((z, same_per_example(&log_det, x)?, inverse))
    }

    /// W^-1, computed once for each change of W. Not for a training step, which changes W and may be recorded on a GPU: what
    /// it allocates belongs to the recording and must not be kept.
    fn inverse_weight(&self) -> Result<Tensor> {
        let (Form::Plain(p) | Form::Plu { lu: p, .. }) = &self.form;
        let version = p.version();
        let mut kept = self.inverse.lock().unwrap();
        if let Some((_, inverse)) = kept.as_ref().filter(|(v, _)| *v == version) {
            return Ok(inverse.clone());
        }
        let inverse = self.invert()?;
        *kept = Some((version, inverse.clone()));
        Ok(inverse)
    }
}

impl Bijection for Conv1x1 {
    fn coding(&self) -> Result<Coding<'_>> {
        Ok(Coding::Matrix { weight: self.matrix()?, shift: None })
    }

    fn layer_stats(&self, _x: &Tensor, _ctx: Ctx) -> Result<LayerStats> {
        Ok(LayerStats::Matrix(self.matrix()?))
    }

    fn forward(&self, x: &Tensor, ctx: Ctx) -> Result<(Tensor, Tensor)> {
        let (z, log_det, _) = self.pass(x, ctx.grad)?;
        Ok((z, log_det))
    }

    fn inverse(&self, z: &Tensor, _: Context) -> Result<Tensor> {
        channel_mix(z, &self.inverse_weight()?)
    }

    fn forward_saved(&self, x: &Tensor, _: Ctx, memory: Memory) -> Result<(Tensor, Tensor, SavedState)> {
        let (z, log_det, inverse) = self.pass(x, false)?;
        Ok((z, log_det, SavedState::if_stored(memory, (x.clone(), inverse))))
    }

    fn backward(
        &self,
        z: &Tensor,
        saved: SavedState,
        (gz, grad_log_det): (&Tensor, &Tensor),
        _: Ctx,
        grads: &mut Gradients,
    ) -> Result<(Tensor, Tensor)> {
        let (x, inverse) = match saved.take::<(Tensor, Option<Tensor>)>() {
            Some(kept) => kept,
            None => {
                let inverse = self.invert()?;
                (channel_mix(z, &inverse)?, Some(inverse))
            }
        };
        let (gx, gw) = channel_mix_backward(&x, &self.matrix()?, gz)?;
        let grad_log_det = scaled_sum(grad_log_det, positions(z)? as f64)?;
        match &self.form {
            Form::Plain(p) => {
                let inverse = inverse.map_or_else(|| self.invert(), Ok)?;
                grads.add(p, (gw + inverse.t()?.broadcast_mul(&grad_log_det)?)?)?;
            }
            Form::Plu { lu, rows } => grads.add(lu, plu_backward(lu.value(), rows, &gw, &grad_log_det)?)?,
        }
        Ok((x, gx))
    }
}
