//! Variational dequantization (Flow++, Ho et al. 2019, arXiv 1902.00275, section 3.1).

use super::coupling::Coupling;
use crate::core::{
    Bijection, Chain, Coding, Context, Ctx, Gradients, Graph, Memory, Net, NoiseFlow, SavedState,
    sum_per_example,
};
use crate::nets::{ConvNet, Features, WithFeatures};
use crate::ops::elementwise::log_sigmoid;
use crate::ops::squeeze::{squeeze, unsqueeze};
use crate::params::{Init, ParamBuilder};
use crate::transforms::{Affine, Partition, Scale};
use candle_core::{Result, Tensor, bail};
use std::sync::Arc;

/// How near to 0 or 1 noise comes: 255 plus the largest noise is still below 256 in f32.
const EDGE: f64 = 1. / 65536.;

/// Noise that is learned: the uniform noise v of a pixel n becomes noise u of a density q(u | image), which a conditional flow
/// gives.
///
/// ```text
/// x = n + v,  n = floor(x),     u = sigmoid(f_n(logit(v))),     z = n + u,     log-det = sum log du/dv = -log q(u | n)
/// ```
///
/// Since v has density 1, log p(z) + log-det is log p(n + u) - log q(u | n), whose mean is the variational lower bound of
/// log P(n) (equation 8). So the bound is the log p(x) of a flow that begins with this layer, and whatever is done with x = n + v
/// works as with uniform noise: training, evaluation, samples, latents. The inverse of a sample n + u is n + v, the same pixel.
///
/// f_n consists of affine couplings of the squeezed logits, whose networks see all pixels n, and how far each is from the mean of the
/// 3x3 pixels around, beside the kept half. They start as the identity, and the layer as uniform noise. Where a grey level is
/// small beside the spread of p, the best q is nearly uniform, too; so the networks' outputs are multiplied by .1, for otherwise the
/// steps of a learning rate that suits the rest of a model cost more than learned noise gains. u stays 2^-16 away from 0 and 1, as x must in f32; a sample nearer to a whole number
/// is moved to that distance. What the backward pass needs is stored in any case, since a reconstructed n could be another pixel's.
///
/// **Shapes.** (B, C, H, W), H and W even, x in units of one grey level; parameters `coupling0`, ...
pub struct VariationalDequantization {
    noise: Chain,
    levels: f64,
}

impl VariationalDequantization {
    /// Couplings under `vb` for images of `channels` channels and `bits` bits, with networks of `width` hidden channels.
    ///
    /// # Errors
    /// When `vb` has no such tensors.
    pub fn new(channels: usize, bits: u8, couplings: usize, width: usize, vb: &ParamBuilder) -> Result<Self> {
        let mut noise = Chain::new();
        let features = Arc::new(Features::given(&[8 * channels]));
        for i in 0..couplings {
            let name = format!("coupling{i}");
            let vb = vb.pp(&name);
            let scale = Scale::Tanh { gain: vb.get(1, "gain", Init::Const(1.))? };
            let transform = Box::new(Affine { scale, shift_first: false });
            let net = |inputs, outputs| {
                let net = ConvNet::new(inputs + 8 * channels, width, outputs, false, &vb.pp("net"))?;
                Ok(Scaled(WithFeatures { net, features: Some(features.clone()) }))
            };
            let partition = Partition::Halves { swap: i % 2 == 1 };
            noise.push(&name, Coupling::with_net(partition, transform, 4 * channels, net)?);
        }
        Ok(Self { noise, levels: f64::from(bits).exp2() })
    }

    /// n and v of the squeezed x. n is a constant: its derivative is zero.
    fn split(x: &Tensor) -> Result<(Tensor, Tensor)> {
        let (_, _, h, w) = x.dims4()?;
        if h % 2 != 0 || w % 2 != 0 {
            bail!(
                "variational dequantization squeezes images, and both sides of {h}x{w} must be even: crop or resize them"
            );
        }
        let x = squeeze(x)?;
        let n = x.detach().floor()?;
        let v = (x - &n)?;
        Ok((n, v))
    }

    /// What the networks see of the pixels, in the units of noise's logits: the pixels from -2 to 2, and how far they are from
    /// their surroundings. Samples may lie outside of the range of data, and are seen as its ends there, lest a network overflow.
    fn features(&self, n: &Tensor) -> Result<Tensor> {
        // clamp would copy its bounds to a GPU, where a training step is recorded.
        let n = &(n.relu()? - (n - (self.levels - 1.))?.relu()?)?;
        let whole = unsqueeze(n)?;
        let padded = whole.pad_with_same(2, 1, 1)?.pad_with_same(3, 1, 1)?;
        let off = squeeze(&(whole - padded.avg_pool2d_with_stride(3, 1)?)?)?;
        Tensor::cat(&[n.affine(4. / self.levels, -2.)?, (off * (16. / self.levels))?], 1)
    }
}

/// A network whose output is multiplied by .1.
struct Scaled<N>(N);

impl<N: Net> Net for Scaled<N> {
    fn forward(&self, x: &Tensor, ctx: Ctx) -> Result<Tensor> {
        self.0.forward(x, ctx)? * 0.1
    }

    fn forward_saved(&self, x: &Tensor, ctx: Ctx) -> Result<(Tensor, SavedState)> {
        let (y, saved) = self.0.forward_saved(x, ctx)?;
        Ok(((y * 0.1)?, saved))
    }

    fn backward(&self, saved: SavedState, gy: &Tensor, grads: &mut Gradients) -> Result<Tensor> {
        self.0.backward(saved, &(gy * 0.1)?, grads)
    }
}

/// The pass with these features for the networks.
fn given<'a>(ctx: Ctx<'a>, features: &'a Tensor) -> Ctx<'a> {
    ctx.with_context(Context { features: Some(features), ..ctx.context })
}

/// p = EDGE + (1 - 2 EDGE) v.
fn shrink(v: &Tensor) -> Result<Tensor> {
    v.affine(1. - 2. * EDGE, EDGE)
}

/// h = logit(p) for p = shrink(v) and log dh/dv, (B,).
fn logit(v: &Tensor) -> Result<[Tensor; 2]> {
    let p = shrink(v)?;
    let (lp, lq) = (p.log()?, p.affine(-1., 1.)?.log()?);
    let log_det = sum_per_example(&((lp.neg()? - &lq)? + (1. - 2. * EDGE).ln())?)?;
    Ok([(lp - lq)?, log_det])
}

/// u = shrink(sigmoid(h)) and log du/dh, (B,).
fn sigmoid(h: &Tensor) -> Result<[Tensor; 2]> {
    let (lp, lq) = (log_sigmoid(h)?, log_sigmoid(&h.neg()?)?);
    let log_det = sum_per_example(&((&lp + lq)? + (1. - 2. * EDGE).ln())?)?;
    Ok([shrink(&lp.exp()?)?, log_det])
}

/// What a pass saves: x, h after the couplings, what they saved, and the networks' features.
struct Pass {
    x: Tensor,
    v: Tensor,
    h: Tensor,
    noise: SavedState,
    features: Tensor,
}

impl NoiseFlow for VariationalDequantization {
    fn flow(&self) -> &dyn Bijection {
        &self.noise
    }

    fn features(&self, n: &Tensor) -> Result<Tensor> {
        VariationalDequantization::features(self, n)
    }
}

impl Bijection for VariationalDequantization {
    fn coding(&self) -> Result<Coding<'_>> {
        Ok(Coding::Noise(self))
    }

    fn forward(&self, x: &Tensor, ctx: Ctx) -> Result<(Tensor, Tensor)> {
        let (n, v) = Self::split(x)?;
        let [h, of_logit] = logit(&v)?;
        let (h, of_noise) = self.noise.forward(&h, given(ctx, &self.features(&n)?))?;
        let [u, of_sigmoid] = sigmoid(&h)?;
        Ok((unsqueeze(&(n + u)?)?, ((of_logit + of_noise)? + of_sigmoid)?))
    }

    fn inverse(&self, z: &Tensor, context: Context) -> Result<Tensor> {
        let (n, u) = Self::split(z)?;
        let inside = |t: Tensor, margin: f64| t.clamp(margin, 1. - margin);
        let p = inside(((u - EDGE)? / (1. - 2. * EDGE))?, EDGE / 256.)?;
        let h = (p.log()? - p.affine(-1., 1.)?.log()?)?;
        let features = self.features(&n)?;
        let h = self.noise.inverse(&h, Context { features: Some(&features), ..context })?;
        let v = ((log_sigmoid(&h)?.exp()? - EDGE)? / (1. - 2. * EDGE))?;
        unsqueeze(&(n + v.clamp(0., 1. - EDGE)?)?)
    }

    fn forward_saved(&self, x: &Tensor, ctx: Ctx, _: Memory) -> Result<(Tensor, Tensor, SavedState)> {
        let x = x.detach();
        let (n, v) = Self::split(&x)?;
        let [h, of_logit] = logit(&v)?;
        let features = self.features(&n)?;
        let (h, of_noise, noise) = self.noise.forward_saved(&h, given(ctx, &features), Memory::Store)?;
        let [u, of_sigmoid] = sigmoid(&h)?;
        let (z, log_det) = (unsqueeze(&(n + u)?)?, ((of_logit + of_noise)? + of_sigmoid)?);
        Ok((z, log_det, SavedState::new(Pass { x, v, h, noise, features })))
    }

    fn backward(
        &self,
        _: &Tensor,
        saved: SavedState,
        (gz, grad_log_det): (&Tensor, &Tensor),
        ctx: Ctx,
        grads: &mut Gradients,
    ) -> Result<(Tensor, Tensor)> {
        let Pass { x, v, h, noise, features } = saved.take().expect("it is saved in any case");
        let (graph, _) = Graph::of(&h, sigmoid)?;
        let gh = graph.backward(&[&squeeze(gz)?, grad_log_det], grads)?.swap_remove(0);
        let (_, gh) = self.noise.backward(&h, noise, (&gh, grad_log_det), given(ctx, &features), grads)?;
        let (graph, _) = Graph::of(&v, logit)?;
        let gv = graph.backward(&[&gh, grad_log_det], grads)?.swap_remove(0);
        Ok((x, unsqueeze(&gv)?))
    }

    fn reconstruct(&self, _: &Tensor, saved: &SavedState, _: Ctx) -> Result<Tensor> {
        Ok(saved.get::<Pass>().expect("it is saved in any case").x.clone())
    }
}
