//! The levels of a multi-scale model, as a config adds them.

use super::built::Built;
use crate::bijections::{Multiscale, Squeeze};
use crate::core::{Bijection, Chain};
use crate::priors::Prior;
use candle_core::{Result, bail};

/// The levels so far, and the shape that the next layer is given.
pub(super) struct Levels {
    /// (C, H, W).
    pub(super) shape: [usize; 3],
    levels: Vec<Box<dyn Bijection>>,
    shapes: Vec<[usize; 3]>,
}

impl Levels {
    /// No level yet, for images of (C, H, W).
    pub(super) fn new(shape: [usize; 3]) -> Result<Self> {
        if shape.contains(&0) {
            bail!("`shape` {shape:?} has no pixels");
        }
        Ok(Self { shape, levels: Vec::new(), shapes: Vec::new() })
    }

    /// Appends a squeeze to the level that is being built, one of `n`. For the error message, `level` is the config's word for a
    /// level, and `fewer` a number of levels that would need no squeeze here (0: none).
    pub(super) fn squeeze(&mut self, chain: &mut Chain, level: &str, n: usize, fewer: usize) -> Result<()> {
        let [c, h, w] = self.shape;
        if h % 2 != 0 || w % 2 != 0 {
            let remedy = if fewer > 0 { format!("use `{level}s = {fewer}`, or ") } else { String::new() };
            bail!(
                "cannot squeeze {h}x{w} at {level} {} of {n}: both sides must be even; {remedy}crop or resize the images",
                self.levels.len() + 1
            );
        }
        chain.push("squeeze", Squeeze);
        self.shape = [4 * c, h / 2, w / 2];
        Ok(())
    }

    /// Ends a level: half of its channels go on to the next one.
    pub(super) fn push(&mut self, level: Chain) {
        self.levels.push(Box::new(level));
        self.shapes.push(self.shape);
        self.shape[0] /= 2;
    }

    /// The model of these levels after the layers of `chain`.
    pub(super) fn build(self, mut chain: Chain, prior: Box<dyn Prior>) -> Result<Built> {
        let multiscale = Multiscale::new(self.levels, &self.shapes)?;
        let latent = multiscale.shapes().to_vec();
        chain.push("", multiscale);
        Ok(Built { chain, prior, latent })
    }
}
