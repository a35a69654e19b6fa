//! What the commands that draw sheets of images share.

use crate::context::Given;
use crate::draw::sheet::{Cell, Sheet};
use crate::progress::go_on;
use crate::session::{BATCH, Grid, Images, Session, brief};
use anyhow::Result;
use candle_core::Tensor;
use clap::Args;
use flows::Context;

/// What a command takes that draws a sheet of given images.
#[derive(Args)]
pub struct Shown {
    #[command(flatten)]
    pub grid: Grid,
    #[command(flatten)]
    pub images: Images,
}

impl Session<'_> {
    /// A sheet without images, to be filled in.
    pub fn blank(&self, grid: &Grid, title: &str) -> Result<Sheet> {
        Ok(Sheet { title: self.title(title), shape: self.shape()?, scale: grid.scale, ..Sheet::default() })
    }

    /// Each image of (B, C, H, W) with its caption.
    pub fn captioned(
        &self,
        x: &Tensor,
        captions: impl IntoIterator<Item = String>,
    ) -> Result<Vec<Option<Cell>>> {
        Ok(self
            .bytes(x)?
            .into_iter()
            .zip(captions)
            .map(|(bytes, caption)| Cell::new(bytes, caption))
            .collect())
    }

    /// What `f` makes of images and their context, a batch at a time.
    pub fn batched<T>(
        &self,
        x: &Tensor,
        given: &Given,
        f: impl Fn(&Tensor, Context) -> Result<T>,
    ) -> Result<Vec<T>> {
        let n = x.dim(0)?;
        let batch = |first: usize| {
            go_on()?;
            let count = BATCH.min(n - first);
            let given = given.rows(|i| first + i, count)?;
            f(&x.narrow(0, first, count)?, given.context())
        };
        (0..n).step_by(BATCH).map(batch).collect()
    }
}

/// The end of a note, where some images are not finite and their cells stay empty.
pub fn free_places(lost: usize) -> &'static str {
    if lost > 0 { "; empty cells: the inverse overflowed" } else { "" }
}

/// Captions of bits/dim.
pub fn two_digits(values: &[f64]) -> impl Iterator<Item = String> {
    values.iter().map(|v| format!("{v:.2}"))
}

/// Numbers in three digits or so, separated by commas.
pub fn listed(values: &[f64]) -> String {
    values.iter().map(|v| brief(*v)).collect::<Vec<_>>().join(", ")
}
