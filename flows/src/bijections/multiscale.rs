//! The multi-scale architecture (RealNVP section 3.6): after each level half of the channels are factored out.

use crate::core::{Bijection, Composite, Link, RunLayer, RunReversed, split_levels};
use candle_core::{Result, Tensor, bail};

/// A chain of levels, each of which passes half of its channels on and keeps the other half as latents.
///
/// ```text
/// h_0 = x,   (h_{i+1}, z_{i+1}) = split(f_{i+1}(h_i)),   z_L = f_L(h_{L-1}),   z = (z_1, .., z_L)
/// ```
///
/// The first half of the channels goes on, the second is factored out. The latent is one (B, D) tensor, levels in the
/// order in which they are factored out, so nothing of it is dropped; [`Multiscale::levels`] splits it again.
///
/// Glow's learned split prior is the last coupling of a level: it transforms the second half given the first. Its top
/// prior is the last layer of the last level. So the prior that remains is N(0, I) for all.
///
/// **Shapes.** (B, C, H, W) to (B, C H W). **Errors** if a level's channels cannot be halved.
pub struct Multiscale {
    /// Named `level0` and so on.
    levels: Vec<Link>,
    /// The shape (C, H, W) of each level's part of the latent.
    shapes: Vec<[usize; 3]>,
}

impl Multiscale {
    /// `shapes` are (C, H, W) of what each level gives before its split.
    ///
    /// # Errors
    /// When there is not one shape for each level, no level, or one channel to split.
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
        let levels = levels.into_iter().enumerate().map(|(i, level)| Link::new(format!("level{i}"), level));
        Ok(Self { levels: levels.collect(), shapes: parts })
    }

    /// The shape (C, H, W) of each level's latent.
    pub fn shapes(&self) -> &[[usize; 3]] {
        &self.shapes
    }

    /// z (B, D) as one (B, C, H, W) tensor for each level.
    ///
    /// # Errors
    /// When z has another number of dimensions.
    pub fn levels(&self, z: &Tensor) -> Result<Vec<Tensor>> {
        split_levels(z, &self.shapes)
    }
}

impl Composite for Multiscale {
    fn links(&self) -> &[Link] {
        &self.levels
    }

    fn pass(&self, x: &Tensor, run: RunLayer) -> Result<Tensor> {
        let (mut h, mut factored) = (x.clone(), Vec::new());
        let last = self.levels.len() - 1;
        for i in 0..last {
            let z = run(i, &h, &factored)?;
            let c = z.dim(1)?;
            factored.push(z.narrow(1, c / 2, c - c / 2)?.contiguous()?);
            h = z.narrow(1, 0, c / 2)?.contiguous()?;
        }
        factored.push(run(last, &h, &factored)?);
        let flat = factored.iter().map(|z| z.flatten_from(1)).collect::<Result<Vec<_>>>()?;
        Tensor::cat(&flat, 1)
    }

    fn pass_reversed(&self, z: &[&Tensor], run: RunReversed) -> Result<Vec<Tensor>> {
        let parts: Vec<Vec<Tensor>> = z.iter().map(|t| self.levels(t)).collect::<Result<_>>()?;
        let mut h: Option<Vec<Tensor>> = None;
        for i in (0..self.levels.len()).rev() {
            let outputs = parts.iter().enumerate().map(|(k, parts)| match &h {
                None => parts[i].contiguous(),
                Some(h) => Tensor::cat(&[&h[k], &parts[i]], 1),
            });
            h = Some(run(i, &outputs.collect::<Result<Vec<_>>>()?)?);
        }
        Ok(h.expect("at least one level"))
    }
}
