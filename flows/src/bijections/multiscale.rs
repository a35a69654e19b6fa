//! The multi-scale architecture (RealNVP section 3.6): after each level half of the channels are done.

use crate::backward::{Gradients, Memory, Saved};
use crate::bijection::{Bijection, Ctx, Drift, NonFinite, join, zeros_per_example};
use crate::latents::Trace;
use candle_core::{Result, Tensor, bail};
use std::collections::BTreeSet;

/// ```text
/// h_0 = x,   (h_{i+1}, z_{i+1}) = split(f_{i+1}(h_i)),   z_L = f_L(h_{L-1}),   z = (z_1, .., z_L)
/// ```
///
/// The first half of the channels goes on, the second is factored out. The latent is one (B, D) tensor, levels in the
/// order in which they are factored out, so nothing of it is ever dropped; [`Multiscale::levels`] gives the parts back.
///
/// Glow's learned split prior is the last coupling of a level: it transforms the second half given the first. Its top
/// prior is the last layer of the last level. So the prior that remains is N(0, I) for all.
///
/// **Shapes.** (B, C, H, W) to (B, C H W). **Errors** if a level's channels cannot be halved.
pub struct Multiscale {
    levels: Vec<Box<dyn Bijection>>,
    /// The shape (C, H, W) of each level's part of the latent.
    shapes: Vec<[usize; 3]>,
}

impl Multiscale {
    /// `shapes` are (C, H, W) of what each level gives before its split.
    pub fn new(levels: Vec<Box<dyn Bijection>>, shapes: &[[usize; 3]]) -> Result<Self> {
        if levels.len() != shapes.len() || levels.is_empty() {
            bail!("a multi-scale flow needs one shape for each of its levels, and at least one");
        }
        let last = levels.len() - 1;
        let mut parts = Vec::new();
        for (i, &[c, h, w]) in shapes.iter().enumerate() {
            if i < last && c < 2 {
                bail!("level {i} has {c} channel: there is nothing to split; use fewer levels");
            }
            parts.push(if i < last { [c - c / 2, h, w] } else { [c, h, w] });
        }
        Ok(Self { levels, shapes: parts })
    }

    /// The shape (C, H, W) of each level's latent.
    pub fn shapes(&self) -> &[[usize; 3]] {
        &self.shapes
    }

    /// z (B, D) as one (B, C, H, W) tensor for each level.
    pub fn levels(&self, z: &Tensor) -> Result<Vec<Tensor>> {
        split_levels(z, &self.shapes)
    }
}

/// z (B, D) cut into tensors of the given shapes.
pub(crate) fn split_levels(z: &Tensor, shapes: &[[usize; 3]]) -> Result<Vec<Tensor>> {
    let (b, d) = z.dims2()?;
    let want: usize = shapes.iter().map(|s| s.iter().product::<usize>()).sum();
    if d != want {
        bail!("this model's latent has {want} dimensions, got {d}");
    }
    let mut at = 0;
    let mut out = Vec::new();
    for &[c, h, w] in shapes {
        out.push(z.narrow(1, at, c * h * w)?.reshape((b, c, h, w))?);
        at += c * h * w;
    }
    Ok(out)
}

impl Multiscale {
    /// z (B, D) from the levels' outputs, by `level(i, h)`.
    fn run(&self, x: &Tensor, mut level: impl FnMut(usize, &Tensor) -> Result<Tensor>) -> Result<Tensor> {
        let mut h = x.clone();
        let mut done = Vec::new();
        let last = self.levels.len() - 1;
        for i in 0..last {
            let z = level(i, &h).map_err(|e| e.context(format!("level{i}")))?;
            let c = z.dim(1)?;
            done.push(z.narrow(1, c / 2, c - c / 2)?.flatten_from(1)?);
            h = z.narrow(1, 0, c / 2)?.contiguous()?;
        }
        let z = level(last, &h).map_err(|e| e.context(format!("level{last}")))?;
        done.push(z.flatten_from(1)?);
        Tensor::cat(&done, 1)
    }

    /// The way back: what `level(i, parts)` makes of each tensor of `flat`, all (B, D), from the last level to the first.
    fn run_back<const N: usize>(
        &self,
        flat: [&Tensor; N],
        mut level: impl FnMut(usize, [Tensor; N]) -> Result<[Tensor; N]>,
    ) -> Result<[Tensor; N]> {
        let parts: Vec<Vec<Tensor>> = flat.iter().map(|t| self.levels(t)).collect::<Result<_>>()?;
        let mut h: Option<[Tensor; N]> = None;
        for i in (0..self.levels.len()).rev() {
            let mut z = Vec::with_capacity(N);
            for (k, parts) in parts.iter().enumerate() {
                z.push(match &h {
                    None => parts[i].contiguous()?,
                    Some(h) => Tensor::cat(&[&h[k], &parts[i]], 1)?,
                });
            }
            let z = z.try_into().expect("one of each");
            h = Some(level(i, z).map_err(|e| e.context(format!("level{i}")))?);
        }
        Ok(h.expect("at least one level"))
    }
}

impl Bijection for Multiscale {
    fn forward(&self, x: &Tensor, ctx: Ctx) -> Result<(Tensor, Tensor)> {
        let mut sum = zeros_per_example(x)?;
        let z = self.run(x, |i, h| {
            let (z, log_det) = self.levels[i].forward(h, ctx)?;
            sum = (&sum + log_det)?;
            Ok(z)
        })?;
        Ok((z, sum))
    }

    fn inverse(&self, z: &Tensor, cond: Option<&Tensor>) -> Result<Tensor> {
        let [x] = self.run_back([z], |i, [z]| Ok([self.levels[i].inverse(&z, cond)?]))?;
        Ok(x)
    }

    fn forward_saved(&self, x: &Tensor, ctx: Ctx, memory: Memory) -> Result<(Tensor, Tensor, Saved)> {
        let mut sum = zeros_per_example(x)?;
        let mut kept = Vec::new();
        let z = self.run(x, |i, h| {
            let (z, log_det, saved) = self.levels[i].forward_saved(h, ctx, memory)?;
            sum = (&sum + log_det)?;
            kept.push(saved);
            Ok(z)
        })?;
        Ok((z, sum, Saved::new(kept)))
    }

    fn backward(
        &self,
        z: &Tensor,
        saved: Saved,
        (gz, gld): (&Tensor, &Tensor),
        ctx: Ctx,
        grads: &mut Gradients,
    ) -> Result<(Tensor, Tensor)> {
        let mut kept: Vec<Saved> = saved.take().unwrap_or_default();
        let [x, gx] = self.run_back([z, gz], |i, [z, gz]| {
            let saved = kept.pop().unwrap_or_default();
            self.levels[i].backward(&z, saved, (&gz, gld), ctx, grads).map(<[Tensor; 2]>::from)
        })?;
        Ok((x, gx))
    }

    fn rebuild(&self, z: &Tensor, saved: &Saved, ctx: Ctx) -> Result<Tensor> {
        let Some(kept) = saved.get::<Vec<Saved>>() else { return self.inverse(z, ctx.cond) };
        let [x] = self.run_back([z], |i, [z]| Ok([self.levels[i].rebuild(&z, &kept[i], ctx)?]))?;
        Ok(x)
    }

    fn probe(&self, x: &Tensor, z: &Tensor, ctx: Ctx, drift: &mut Drift) -> Result<Tensor> {
        let mut inputs = Vec::new();
        self.run(x, |i, h| {
            inputs.push(h.clone());
            Ok(self.levels[i].forward(h, ctx.with_grad(false))?.0)
        })?;
        let [x] = self.run_back([z], |i, [z]| {
            let name = format!("level{i}");
            drift.within(&name, |drift| Ok([self.levels[i].probe(&inputs[i], &z, ctx, drift)?]))
        })?;
        Ok(x)
    }

    fn store_links(&self, paths: &BTreeSet<String>, path: &str) {
        for (i, level) in self.levels.iter().enumerate() {
            level.store_links(paths, &join(path, &format!("level{i}")));
        }
    }

    fn find_non_finite(&self, x: &Tensor, ctx: Ctx) -> Result<NonFinite> {
        let mut h = x.clone();
        for (i, level) in self.levels.iter().enumerate() {
            match level.find_non_finite(&h, ctx)? {
                NonFinite::At(inner) => return Ok(NonFinite::At(join(&format!("level{i}"), &inner))),
                NonFinite::Clean(z) => {
                    h = if i + 1 < self.levels.len() {
                        z.narrow(1, 0, z.dim(1)? / 2)?.contiguous()?
                    } else {
                        z
                    }
                }
            }
        }
        Ok(NonFinite::Clean(h))
    }

    fn trace(&self, x: &Tensor, ctx: Ctx, trace: &mut Trace) -> Result<Tensor> {
        let mut h = x.clone();
        let mut done = Vec::new();
        for (i, level) in self.levels.iter().enumerate() {
            let z = trace.within(&format!("level{i}"), |trace| level.trace(&h, ctx, trace))?;
            if i + 1 == self.levels.len() {
                done.push(z.flatten_from(1)?);
                break;
            }
            let c = z.dim(1)?;
            let part = z.narrow(1, c / 2, c - c / 2)?.contiguous()?;
            done.push(part.flatten_from(1)?);
            trace.factor_out(part);
            h = z.narrow(1, 0, c / 2)?.contiguous()?;
        }
        Tensor::cat(&done, 1)
    }
}
