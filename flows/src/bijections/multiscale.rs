//! The multi-scale architecture (RealNVP section 3.6): after each level half of the channels are done.

use crate::bijection::{Bijection, Ctx, NonFinite, join, zeros_per_example};
use candle_core::{Result, Tensor, bail};

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

impl Bijection for Multiscale {
    fn forward(&self, x: &Tensor, ctx: Ctx) -> Result<(Tensor, Tensor)> {
        let mut h = x.clone();
        let mut sum = zeros_per_example(x)?;
        let mut done = Vec::new();
        for (i, level) in self.levels.iter().enumerate() {
            let (z, log_det) = level.forward(&h, ctx).map_err(|e| e.context(format!("level{i}")))?;
            sum = (sum + log_det)?;
            if i + 1 == self.levels.len() {
                done.push(z.flatten_from(1)?);
                break;
            }
            let c = z.dim(1)?;
            done.push(z.narrow(1, c / 2, c - c / 2)?.flatten_from(1)?);
            h = z.narrow(1, 0, c / 2)?.contiguous()?;
        }
        Ok((Tensor::cat(&done, 1)?, sum))
    }

    fn inverse(&self, z: &Tensor, cond: Option<&Tensor>) -> Result<Tensor> {
        let mut h: Option<Tensor> = None;
        let parts = self.levels(z)?;
        for (i, (level, part)) in self.levels.iter().zip(&parts).enumerate().rev() {
            let z = match &h {
                None => part.clone(),
                Some(h) => Tensor::cat(&[h, part], 1)?,
            };
            h = Some(level.inverse(&z, cond).map_err(|e| e.context(format!("level{i}")))?);
        }
        Ok(h.expect("at least one level"))
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
}
