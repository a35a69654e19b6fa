//! Layers in order.

use super::bijection::{Bijection, Composite, Link, RunLayer, RunReversed};
use candle_core::{Result, Tensor};

/// Layers in order: z = f_n(... f_1(x)), log-dets added.
#[derive(Default)]
pub struct Chain {
    links: Vec<Link>,
}

impl Chain {
    /// The identity.
    pub fn new() -> Self {
        Self::default()
    }

    /// Appends a layer; `name` appears in paths and messages.
    pub fn push(&mut self, name: impl Into<String>, layer: impl Bijection + 'static) {
        self.links.push(Link::new(name, Box::new(layer)));
    }
}

impl Composite for Chain {
    fn links(&self) -> &[Link] {
        &self.links
    }

    fn pass(&self, x: &Tensor, run: RunLayer) -> Result<Tensor> {
        let mut h = x.clone();
        for i in 0..self.links.len() {
            h = run(i, &h, &[])?;
        }
        Ok(h)
    }

    fn pass_reversed(&self, z: &[&Tensor], run: RunReversed) -> Result<Vec<Tensor>> {
        let mut h: Vec<Tensor> = z.iter().map(|&t| t.clone()).collect();
        for i in (0..self.links.len()).rev() {
            h = run(i, &h)?;
        }
        Ok(h)
    }
}
