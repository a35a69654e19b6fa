//! Student's t distribution, for data with heavy tails.

use super::fixed::scaled;
use super::prior::{Prior, PriorCoding, Standard};
use crate::core::Ctx;
use crate::params::{Init, Param, ParamBuilder};
use candle_core::{DType, Device, Result, Tensor, bail};
use rand::RngCore;
use rand_distr::{Distribution, StudentT as Draw};

/// Student's t distribution with nu degrees of freedom, independent over dimensions.
///
/// ```text
/// log p(z) = sum_d log G((nu_d + 1)/2) - log G(nu_d/2) - log(nu_d pi)/2 - (nu_d + 1)/2 log(1 + z_d^2/nu_d)
/// ```
///
/// with the gamma function G. A flow whose layers are Lipschitz keeps the tails of its prior, so data with heavy tails need
/// this one (Jaini et al. 2020, arXiv 1907.04481, section 3). nu is a given number for all dimensions, or learned for each
/// dimension (Laszkiewicz et al. 2022, arXiv 2206.10311).
///
/// **Shapes.** (B, D); a learned nu is exp of the parameter `log_df` (D,).
///
/// Samples cannot be differentiated by a learned nu.
pub struct StudentT(Df);

/// The degrees of freedom.
enum Df {
    Fixed(f64),
    Learned(Param),
}

impl StudentT {
    /// The same degrees of freedom in all dimensions.
    ///
    /// # Errors
    /// When they are not above 0 and finite.
    pub fn fixed(df: f64) -> Result<Self> {
        check(df)?;
        Ok(Self(Df::Fixed(df)))
    }

    /// Learned degrees of freedom for each of `dims` dimensions, `df` at first.
    ///
    /// # Errors
    /// When they are not above 0 and finite, or `vb` has no such tensor.
    pub fn learned(df: f64, dims: usize, vb: &ParamBuilder) -> Result<Self> {
        check(df)?;
        Ok(Self(Df::Learned(vb.get(dims, "log_df", Init::Const(df.ln()))?)))
    }
}

fn check(df: f64) -> Result<()> {
    if !(df > 0. && df.is_finite()) {
        bail!("`df` = {df}: degrees of freedom are above 0 and finite");
    }
    Ok(())
}

/// log G((nu + 1)/2) - log G(nu/2) - log(nu pi)/2, on candle's graph.
pub(crate) fn log_constant(df: &Tensor) -> Result<Tensor> {
    let half = (df / 2.)?;
    (log_gamma(&(&half + 0.5)?)? - log_gamma(&half)?)? - ((df * std::f64::consts::PI)?.log()? / 2.)?
}

/// log G(x) for x > 0 in f64, on candle's graph. With x raised by 10 steps of G(x + 1) = x G(x), Stirling's series to x^-9 is
/// exact to 1e-14.
fn log_gamma(x: &Tensor) -> Result<Tensor> {
    const STEPS: usize = 10;
    const SERIES: [f64; 5] = [1. / 12., -1. / 360., 1. / 1260., -1. / 1680., 1. / 1188.];
    let mut below = x.log()?;
    for i in 1..STEPS {
        below = (below + (x + i as f64)?.log()?)?;
    }
    let x = (x + STEPS as f64)?;
    let (r, half_log_2pi) = (x.recip()?, 0.5 * (2. * std::f64::consts::PI).ln());
    let square = r.sqr()?;
    let mut series = x.zeros_like()?;
    for c in SERIES.iter().rev() {
        series = ((series * &square)? + *c)?;
    }
    let stirling = (((&x - 0.5)? * x.log()?)? - &x)? + half_log_2pi;
    (stirling? + (series * r)?)? - below
}

impl Df {
    /// That of each dimension, or one for all.
    fn values(&self) -> Result<Vec<f64>> {
        match self {
            Self::Fixed(df) => Ok(vec![*df]),
            Self::Learned(log_df) => log_df.value().to_dtype(DType::F64)?.exp()?.to_vec1(),
        }
    }
}

impl Prior for StudentT {
    fn coding(&self) -> Result<PriorCoding<'_>> {
        let standard = self.0.values()?.into_iter().map(Standard::StudentT).collect();
        Ok(PriorCoding { mixture: None, layer: None, standard })
    }

    fn log_prob(&self, z: &Tensor, ctx: Ctx) -> Result<Tensor> {
        let (_, d) = z.dims2()?;
        match &self.0 {
            // Numbers of the host alone, so that a recorded pass on a GPU copies nothing to it.
            Df::Fixed(df) => {
                let constant = log_constant(&Tensor::new(*df, &Device::Cpu)?)?.to_scalar::<f64>()?;
                let tails = ((z.sqr()? / *df)? + 1.)?.log()?.sum(1)?;
                (tails * (-0.5 * (df + 1.)))? + constant * d as f64
            }
            Df::Learned(log_df) => {
                // In f64: differences of log G cancel in f32.
                let df = log_df.get(ctx.grad).to_dtype(DType::F64)?.exp()?;
                let constant = log_constant(&df)?.sum_all()?.to_dtype(z.dtype())?;
                let df = df.to_dtype(z.dtype())?;
                let tails =
                    (z.sqr()?.broadcast_div(&df)? + 1.)?.log()?.broadcast_mul(&((df + 1.)? * -0.5)?)?;
                tails.sum(1)?.broadcast_add(&constant)
            }
        }
    }

    fn sample(
        &self,
        (n, dims): (usize, usize),
        temperature: f64,
        rng: &mut dyn RngCore,
        ctx: Ctx,
        to: (DType, &Device),
    ) -> Result<Tensor> {
        if ctx.grad && matches!(self.0, Df::Learned(_)) {
            bail!(
                "samples of Student's t have no derivative by learned degrees of freedom here: fix them, `learned = false`, or train \
                 by log_prob"
            );
        }
        let mut df = self.0.values()?;
        if let Df::Fixed(same) = self.0 {
            df.resize(dims, same);
        }
        if df.len() != dims {
            bail!("this prior has {} dimensions, not {dims}", df.len());
        }
        let each = df.iter().map(|&df| Draw::new(df)).collect::<std::result::Result<Vec<_>, _>>();
        let each = each.map_err(candle_core::Error::wrap)?;
        let noise = (0..n).flat_map(|_| &each).map(|t| t.sample(&mut &mut *rng));
        scaled(noise, (n, dims), temperature, to)
    }
}
