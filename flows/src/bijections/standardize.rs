//! Columns of mean 0 and variance 1, for vectors in the units of their source.

use crate::core::{Bijection, Coding, Context, Ctx, LayerStats, Mode, Pieces, same_per_example};
use crate::params::{Init, Param, ParamBuilder};
use candle_core::{DType, Device, Result, Tensor, bail};

/// Rows that are converted to f64 together.
const CHUNK: usize = 4096;

/// The standardisation of each dimension by the training data:
///
/// ```text
/// z_d = (x_d - mean_d) / std_d,     log-det = -sum_d log std_d
/// ```
///
/// Networks and priors expect numbers near 1. As a layer it is part of log p(x), which stays the density of the data in their own
/// units.
///
/// **Shapes.** (B, D); buffers `mean` and `std` (D,), which training does not change. It is the identity until
/// [`Standardize::fit`], or else an initialisation pass, sets them.
pub struct Standardize {
    mean: Param,
    std: Param,
}

impl Standardize {
    /// Identity buffers of `dims` dimensions under `vb`.
    ///
    /// # Errors
    /// When `vb` has no such tensors, or `std` holds a number that is not positive.
    pub fn new(dims: usize, vb: &ParamBuilder) -> Result<Self> {
        let mean = vb.buffer(dims, "mean", Init::Const(0.))?;
        Self::of(mean, vb.buffer(dims, "std", Init::Const(1.))?)
    }

    /// The layer with these buffers.
    pub(crate) fn of(mean: Param, std: Param) -> Result<Self> {
        let values: Vec<f64> = std.value().to_dtype(DType::F64)?.to_vec1()?;
        if let Some(d) = values.iter().position(|std| *std <= 0.) {
            bail!("`standardize.std` is {} in dimension {d}: a standard deviation is positive", values[d]);
        }
        Ok(Self { mean, std })
    }

    /// Sets mean and standard deviation from rows (N, D), N > 1, in f64.
    ///
    /// # Errors
    /// When there are fewer than two rows or they have another number of columns, and when a column is constant, not finite, or
    /// varies by less than a hundred steps of f32 at its mean: the message names the column.
    pub fn fit(&self, rows: &Tensor) -> Result<()> {
        let (n, d) = rows.dims2()?;
        if n < 2 || d != self.mean.value().dim(0)? {
            let dims = self.mean.value().dims();
            bail!("standardisation of {dims:?} dimensions was given data of shape {:?}", rows.shape());
        }
        let mean = (sum_of_chunks(rows, |chunk| chunk.sum(0))? / n as f64)?;
        let squares = sum_of_chunks(rows, |chunk| chunk.broadcast_sub(&mean)?.sqr()?.sum(0))?;
        let std = (squares / n as f64)?.sqrt()?;
        for (column, (mean, std)) in mean.to_vec1::<f64>()?.into_iter().zip(std.to_vec1::<f64>()?).enumerate()
        {
            let step = mean.abs() * f64::from(f32::EPSILON);
            if !(mean.is_finite() && std.is_finite()) {
                bail!(
                    "column {column} of the training rows holds numbers that are not finite: correct or remove them"
                );
            }
            if std == 0. {
                bail!(
                    "column {column} of the training rows is constant ({mean}): remove it, it has no density"
                );
            }
            if std < 100. * step {
                bail!(
                    "column {column} of the training rows varies by {std:.3e} around {mean}, too little for numbers in f32: \
                     subtract a constant from it before it is saved"
                );
            }
        }
        let like = self.mean.value();
        self.mean.set(&mean.to_dtype(like.dtype())?.to_device(like.device())?)?;
        self.std.set(&std.to_dtype(like.dtype())?.to_device(like.device())?)
    }

    /// Whether nothing has been fitted.
    fn is_identity(&self) -> Result<bool> {
        let all = |t: &Tensor, v: f64| -> Result<bool> {
            Ok(t.to_dtype(DType::F64)?.to_vec1::<f64>()?.iter().all(|x| *x == v))
        };
        Ok(all(self.mean.value(), 0.)? && all(self.std.value(), 1.)?)
    }
}

/// The sum of `f` over blocks of rows, in f64 on the host.
fn sum_of_chunks(rows: &Tensor, f: impl Fn(&Tensor) -> Result<Tensor>) -> Result<Tensor> {
    let (n, d) = rows.dims2()?;
    let mut sum = Tensor::zeros(d, DType::F64, &Device::Cpu)?;
    for start in (0..n).step_by(CHUNK) {
        let chunk = rows.narrow(0, start, CHUNK.min(n - start))?;
        sum = (sum + f(&chunk.to_device(&Device::Cpu)?.to_dtype(DType::F64)?)?)?;
    }
    Ok(sum)
}

impl Bijection for Standardize {
    fn coding(&self) -> Result<Coding<'_>> {
        Ok(Coding::Elements(Pieces::Line))
    }

    fn layer_stats(&self, _x: &Tensor, _ctx: Ctx) -> Result<LayerStats> {
        Ok(LayerStats::Channels(self.std.value().log()?.neg()?))
    }

    fn forward(&self, x: &Tensor, ctx: Ctx) -> Result<(Tensor, Tensor)> {
        if ctx.mode == Mode::Init && self.is_identity()? {
            self.fit(x)?;
        }
        let std = self.std.value();
        let z = x.broadcast_sub(self.mean.value())?.broadcast_div(std)?;
        Ok((z, same_per_example(&std.log()?.sum_all()?.neg()?, x)?))
    }

    fn inverse(&self, z: &Tensor, _: Context) -> Result<Tensor> {
        z.broadcast_mul(self.std.value())?.broadcast_add(self.mean.value())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::params::ParamStore;

    fn fitted(rows: &Tensor) -> Result<Standardize> {
        let params = ParamStore::seeded(0, DType::F32, &Device::Cpu);
        let layer = Standardize::new(rows.dim(1)?, &params.vb())?;
        layer.fit(rows).map(|()| layer)
    }

    /// More rows than a block: columns at 5e6 and of 1e-3 become columns of mean 0 and variance 1, and come back.
    #[test]
    fn columns_of_any_scale_are_standardised() -> Result<()> {
        let n = 2 * CHUNK + 100;
        let value = |i: usize| ((i * 7919 % n) as f32 / n as f32 - 0.5) * 2.;
        let rows: Vec<f32> = (0..n).flat_map(|i| [5e6 + 1e3 * value(i), 1e-3 * value(i + 1)]).collect();
        let rows = Tensor::from_vec(rows, (n, 2), &Device::Cpu)?;
        let layer = fitted(&rows)?;
        let (z, log_det) = layer.forward(&rows, Ctx::eval())?;
        let z64 = z.to_dtype(DType::F64)?;
        for (mean, square) in
            z64.mean(0)?.to_vec1::<f64>()?.into_iter().zip(z64.sqr()?.mean(0)?.to_vec1::<f64>()?)
        {
            assert!(mean.abs() < 1e-3 && (square - 1.).abs() < 1e-3, "{mean} {square}");
        }
        // Uniform on (-a, a): std = a / sqrt(3).
        let want = -((1e3f64 / 3f64.sqrt()).ln() + (1e-3f64 / 3f64.sqrt()).ln());
        assert!((f64::from(log_det.get(0)?.to_scalar::<f32>()?) - want).abs() < 1e-3);
        let back = layer.inverse(&z, Context::default())?;
        assert!((back - rows)?.abs()?.max_all()?.to_scalar::<f32>()? <= 1.);
        Ok(())
    }

    #[test]
    fn columns_without_a_density_are_named() -> Result<()> {
        let of = |column: [f32; 4]| -> String {
            let rows: Vec<f32> = column.into_iter().enumerate().flat_map(|(i, x)| [i as f32, x]).collect();
            let rows = Tensor::from_vec(rows, (4, 2), &Device::Cpu).unwrap();
            fitted(&rows).err().map(|e| e.to_string()).unwrap_or_default()
        };
        for (column, said) in [
            ([7.; 4], "column 1 of the training rows is constant (7)"),
            ([0., 1., f32::NAN, 2.], "column 1 of the training rows holds numbers that are not finite"),
            ([5e6, 5e6 + 1., 5e6, 5e6 + 1.], "column 1 of the training rows varies by 5.000e-1 around"),
        ] {
            assert!(of(column).contains(said), "{}", of(column));
        }
        assert_eq!(of([5e6, 5e6 + 500., 5e6, 5e6 + 1000.]), "");
        Ok(())
    }
}
