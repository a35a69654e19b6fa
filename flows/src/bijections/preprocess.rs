//! From pixels to the range that a flow works in: rescale, logit, whiten. They are the first layers of a chain, so their
//! log-det carries the `D log 256` and no correction term appears anywhere else.
//!
//! Pixels are integers; a density needs a continuum. [`dequantize`] adds the uniform noise that makes
//! log p(x + u) a lower bound of the discrete log-likelihood (Theis et al. 2016, section 3.1). It is a function and not a
//! layer because the caller owns the generator.

use crate::core::{Bijection, Coding, Context, Ctx, Mode, Pieces, same_per_example, sum_per_example};
use crate::ops::elementwise::softplus;
use crate::ops::linalg;
use crate::params::{Init, Param, ParamBuilder};
use candle_core::{Result, Tensor, bail};
use rand::Rng;
use serde::{Deserialize, Serialize};

/// The input of an image flow from pixels 0..=255, in [0, 2^bits):
///
/// ```text
/// x = floor(pixel / 2^(8 - bits)) + u,     u uniform on [0, 1)
/// ```
///
/// u is a multiple of 2^-(24 - bits), so that the sum is exact in f32 and x stays below 2^bits: with finer noise 255 + u
/// would be rounded up to 256 now and then. One u32 of `rng` is drawn for each pixel.
///
/// # Errors
/// When `bits` is not 1 to 8, or `out` is not as long as `pixels`.
pub fn dequantize(pixels: &[u8], bits: u8, rng: &mut impl Rng, out: &mut [f32]) -> Result<()> {
    if bits == 0 || bits > 8 {
        bail!("images have 1 to 8 bits, not {bits}");
    }
    if out.len() != pixels.len() {
        bail!("{} pixels give as many values, not {}", pixels.len(), out.len());
    }
    let unit = 0.5f32.powi(24 - i32::from(bits));
    let mut random = [0u32; 256];
    for (out, pixels) in out.chunks_mut(random.len()).zip(pixels.chunks(random.len())) {
        let random = &mut random[..out.len()];
        rng.fill(&mut *random);
        for ((x, &p), &mut r) in out.iter_mut().zip(pixels).zip(random) {
            *x = f32::from(p >> (8 - bits)) + (r >> (8 + bits)) as f32 * unit;
        }
    }
    Ok(())
}

/// Multiplies by a number and adds another one.
///
/// ```text
/// z = a x + b,     log-det = D log |a|
/// ```
#[derive(Clone, Copy, Debug)]
pub struct Rescale {
    scale: f64,
    shift: f64,
}

impl Rescale {
    /// z = scale x + shift.
    ///
    /// # Errors
    /// When a number is not finite, or the scale is zero.
    pub fn new(scale: f64, shift: f64) -> Result<Self> {
        if !(scale.is_finite() && scale != 0. && shift.is_finite()) {
            bail!("rescale by {scale} and {shift} has no inverse");
        }
        Ok(Self { scale, shift })
    }
}

impl Bijection for Rescale {
    fn coding(&self) -> Result<Coding<'_>> {
        Ok(Coding::Elements(Pieces::Line))
    }

    fn forward(&self, x: &Tensor, _ctx: Ctx) -> Result<(Tensor, Tensor)> {
        let d: usize = x.dims()[1..].iter().product();
        let log_det = Tensor::full((d as f64) * self.scale.abs().ln(), x.dim(0)?, x.device())?;
        Ok((x.affine(self.scale, self.shift)?, log_det.to_dtype(x.dtype())?))
    }

    fn inverse(&self, z: &Tensor, _: Context) -> Result<Tensor> {
        // (z - b) / a rather than z/a - b/a, which would cancel.
        (z - self.shift)? / self.scale
    }
}

/// The slope c of the logit's p = alpha + c x: RealNVP's paper and its code differ, by .078 bits/dim at alpha = .05.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum LogitScale {
    /// p = alpha + (1 - alpha) x (RealNVP section 4.1 as printed).
    Paper,
    /// p = alpha + (1 - 2 alpha) x (the released code): symmetric, p never reaches 1.
    Code,
}

/// The logit of data in [0, 1], which are first moved away from 0 and 1.
///
/// ```text
/// z = log p - log(1 - p),  p = alpha + c x,  x in [0, 1],     log-det = sum log c - log p - log(1 - p)
/// ```
///
/// with c of [`LogitScale`] (RealNVP section 4.1). Any shape.
#[derive(Clone, Copy, Debug)]
pub struct Logit {
    alpha: f64,
    slope: f64,
}

impl Logit {
    /// The logit that keeps data `alpha` away from 0 and 1.
    ///
    /// # Errors
    /// When alpha is not in (0, .5).
    pub fn new(alpha: f64, scale: LogitScale) -> Result<Self> {
        if !(alpha > 0. && alpha < 0.5) {
            bail!("the logit's alpha must lie between 0 and .5, got {alpha}");
        }
        let slope = match scale {
            LogitScale::Paper => 1. - alpha,
            LogitScale::Code => 1. - 2. * alpha,
        };
        Ok(Self { alpha, slope })
    }
}

impl Bijection for Logit {
    fn coding(&self) -> Result<Coding<'_>> {
        Ok(Coding::Elements(Pieces::Unit([self.alpha, 1. - self.alpha - self.slope].map(|p| p / self.slope))))
    }

    fn forward(&self, x: &Tensor, _ctx: Ctx) -> Result<(Tensor, Tensor)> {
        let p = x.affine(self.slope, self.alpha)?;
        let (lp, lq) = (p.log()?, p.affine(-1., 1.)?.log()?);
        let log_det = ((lp.neg()? - &lq)? + self.slope.ln())?;
        Ok(((lp - lq)?, sum_per_example(&log_det)?))
    }

    fn inverse(&self, z: &Tensor, _: Context) -> Result<Tensor> {
        // sigmoid(z) = exp(-softplus(-z))
        let p = softplus(&z.neg()?)?.neg()?.exp()?;
        (p - self.alpha)? / self.slope
    }
}

/// ZCA whitening (NICE section 5.1, for CIFAR-10 and SVHN):
///
/// ```text
/// z = S^-1/2 (x - mean),   S = cov(x) + epsilon I,     log-det = -1/2 log det S
/// ```
///
/// **Shapes.** (B, D); buffers `mean` (D,), `weight`, `inverse` (D, D), `log_det` (1,). It is the identity until an
/// initialisation pass or [`Whiten::fit`] sets it from training data (many more examples than dimensions).
pub struct Whiten {
    mean: Param,
    weight: Param,
    inverse: Param,
    log_det: Param,
    epsilon: f64,
}

impl Whiten {
    /// Identity buffers of `dims` dimensions under `vb`.
    ///
    /// # Errors
    /// When `epsilon` is not positive, or `vb` has no such tensors.
    pub fn new(dims: usize, epsilon: f64, vb: &ParamBuilder) -> Result<Self> {
        if !(epsilon > 0. && epsilon.is_finite()) {
            bail!("whitening needs a positive `epsilon`, got {epsilon}");
        }
        let eye = |_: &mut _| (0..dims * dims).map(|e| f64::from(u8::from(e / dims == e % dims))).collect();
        Ok(Self {
            mean: vb.buffer(dims, "mean", Init::Const(0.))?,
            weight: vb.buffer((dims, dims), "weight", Init::With(&eye))?,
            inverse: vb.buffer((dims, dims), "inverse", Init::With(&eye))?,
            log_det: vb.buffer(1, "log_det", Init::Const(0.))?,
            epsilon,
        })
    }

    /// Sets mean and matrices from data (N, D), N > 1, in f64.
    ///
    /// # Errors
    /// When there are fewer than two examples, or they have another number of dimensions.
    pub fn fit(&self, data: &Tensor) -> Result<()> {
        let (n, d) = data.dims2()?;
        if n < 2 || d != self.mean.value().dim(0)? {
            let dims = self.mean.value().dims();
            bail!("whitening of {dims:?} dimensions was given data of shape {:?}", data.shape());
        }
        let x = data.to_dtype(candle_core::DType::F64)?;
        let mean = x.mean(0)?;
        let c = x.broadcast_sub(&mean)?;
        let cov = (c.t()?.matmul(&c)? / n as f64)?;
        let (mut s, _) = linalg::to_host(&cov)?;
        (0..d).for_each(|i| s[i * d + i] += self.epsilon);
        let (w, inv, log_det) = linalg::inverse_sqrt(&s, d)?;
        let like = self.weight.value();
        self.mean.set(&mean.to_dtype(like.dtype())?)?;
        self.weight.set(&linalg::from_host(w, d, like)?)?;
        self.inverse.set(&linalg::from_host(inv, d, like)?)?;
        self.log_det.set(&Tensor::new(&[-0.5 * log_det], like.device())?.to_dtype(like.dtype())?)
    }
}

impl Bijection for Whiten {
    fn coding(&self) -> Result<Coding<'_>> {
        Ok(Coding::Matrix { weight: self.weight.value().t()?, shift: Some(self.mean.value().clone()) })
    }

    fn forward(&self, x: &Tensor, ctx: Ctx) -> Result<(Tensor, Tensor)> {
        if ctx.mode == Mode::Init {
            self.fit(x)?;
        }
        let z = x.broadcast_sub(self.mean.value())?.matmul(self.weight.value())?;
        Ok((z, same_per_example(self.log_det.value(), x)?))
    }

    fn inverse(&self, z: &Tensor, _: Context) -> Result<Tensor> {
        z.matmul(self.inverse.value())?.broadcast_add(self.mean.value())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::params::rng_for;

    /// The formula, pixel by pixel, over more than one block of random numbers.
    #[test]
    fn dequantized_pixels_are_floors_plus_noise() -> Result<()> {
        let pixels: Vec<u8> = (0..600).map(|i| (i * 37 % 256) as u8).collect();
        for bits in [1u8, 5, 8] {
            let mut x = vec![0f32; 600];
            dequantize(&pixels, bits, &mut rng_for(3, "noise"), &mut x)?;
            let mut rng = rng_for(3, "noise");
            for (&p, x) in pixels.iter().zip(x) {
                let noise = f64::from(rng.random::<u32>() >> (8 + bits)) / f64::from(1u32 << (24 - bits));
                assert_eq!(f64::from(x), f64::from(p >> (8 - bits)) + noise);
                assert!(x < f32::from(1u16 << bits));
            }
        }
        assert!(dequantize(&pixels, 9, &mut rng_for(3, "noise"), &mut [0.; 600]).is_err());
        Ok(())
    }
}
