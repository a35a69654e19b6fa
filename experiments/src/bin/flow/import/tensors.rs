//! What all layouts share: the options of an import, and a model's tensors as they come together.

use anyhow::{Context, Result, bail, ensure};
use candle_core::{Device, Tensor};
use flows::ModelConfig;
use flows::models::{GlowConfig, Preprocess, glow};
use flows::transforms::{Additive, Affine};
use std::collections::BTreeMap;

/// Whose checkpoint it is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, clap::ValueEnum)]
pub enum Layout {
    /// y0ast/Glow-PyTorch.
    GlowPytorch,
    /// chrischute/real-nvp.
    RealNvp,
    /// The Glow of normflows.
    Normflows,
}

/// What happens to pixels first.
#[derive(Clone, Copy, Debug, PartialEq, Eq, clap::ValueEnum)]
pub enum Pixels {
    /// x / 2^bits, in [0, 1].
    Unit,
    /// x / 2^bits - 1/2.
    Centered,
    /// 2 x / 2^bits - 1.
    Symmetric,
}

/// What the command line says beside the file.
#[derive(Clone, Copy, Debug)]
pub struct Options {
    pub size: Option<[usize; 2]>,
    pub bits: u8,
    pub pixels: Option<Pixels>,
    pub reversed: bool,
}

impl Options {
    /// Refuses `--pixels` and `--reversed` where they mean nothing.
    pub fn only(&self, layout: &str, pixels: bool, reversed: bool) -> Result<()> {
        ensure!(
            pixels || self.pixels.is_none(),
            "--pixels: {layout} has a preprocessing of its own, leave it out"
        );
        ensure!(
            reversed || !self.reversed,
            "--reversed: {layout} keeps its permutations in the file, leave it out"
        );
        Ok(())
    }

    /// The sides of the images, which must agree with what the checkpoint tells.
    pub fn sides(&self, told: Option<[usize; 2]>) -> Result<[usize; 2]> {
        match (self.size, told) {
            (Some(size), Some(told)) => {
                ensure!(
                    size == told,
                    "--size {}x{}: the checkpoint is for {}x{}",
                    size[0],
                    size[1],
                    told[0],
                    told[1]
                );
                Ok(told)
            }
            (Some(size), None) | (None, Some(size)) => Ok(size),
            (None, None) => {
                bail!("the checkpoint does not tell the sides of its images: give --size, 32 or 32x48")
            }
        }
    }

    pub fn preprocess(&self) -> Preprocess {
        match self.pixels.unwrap_or(Pixels::Unit) {
            Pixels::Unit => Preprocess::Unit {},
            Pixels::Centered => Preprocess::Centered {},
            Pixels::Symmetric => Preprocess::Symmetric {},
        }
    }
}

/// A model's tensors, as they come together.
#[derive(Default)]
pub struct Tensors(pub BTreeMap<String, Tensor>);

impl Tensors {
    pub fn put(&mut self, name: String, shape: &[usize], values: Vec<f64>) -> Result<()> {
        self.0.insert(name, Tensor::from_vec(values, shape, &Device::Cpu)?);
        Ok(())
    }

    pub fn indices(&mut self, name: String, values: &[usize]) -> Result<()> {
        let values: Vec<u32> = values.iter().map(|&v| v as u32).collect();
        self.0.insert(name, Tensor::new(values, &Device::Cpu)?);
        Ok(())
    }

    /// A 1x1 convolution W = P L U with U's diagonal sign exp(log s): ours packs L and U and keeps P as indices.
    pub fn plu(&mut self, path: &str, c: usize, [p, lower, upper, sign, logs]: [Vec<f64>; 5]) -> Result<()> {
        let mut perm = Vec::with_capacity(c);
        for row in p.chunks_exact(c) {
            let one = row.iter().position(|&v| v == 1.);
            let (Some(one), 1) = (one, row.iter().filter(|&&v| v != 0.).count()) else {
                bail!("the permutation of `{path}` is none: the checkpoint is damaged")
            };
            perm.push(one);
        }
        ensure!(
            sign.iter().all(|s| s.abs() == 1.),
            "the signs of `{path}` are not 1 and -1: its matrix has no inverse"
        );
        let packed = (0..c * c).map(|at| match (at / c).cmp(&(at % c)) {
            std::cmp::Ordering::Greater => lower[at],
            std::cmp::Ordering::Equal => logs[at / c],
            std::cmp::Ordering::Less => upper[at],
        });
        self.put(format!("{path}.lu"), &[c, c], packed.collect())?;
        self.indices(format!("{path}.perm"), &perm)?;
        self.put(format!("{path}.sign"), &[c], sign)
    }
}

pub fn negated(mut values: Vec<f64>) -> Vec<f64> {
    values.iter_mut().for_each(|v| *v = -*v);
    values
}

/// Rows (shift, scale, shift, ..), each of `width` numbers, with the shifts first.
pub fn shifts_first(values: &[f64], width: usize) -> Vec<f64> {
    let rows = |first: usize| values.chunks_exact(width).skip(first).step_by(2).flatten().copied();
    rows(0).chain(rows(1)).collect()
}

/// The coupling law from how many outputs a network has for the channels that it changes.
pub fn law(outputs: usize, changed: usize) -> Result<glow::Law> {
    match outputs {
        n if n == Additive::PARAMS * changed => Ok(glow::Law::Additive),
        n if n == Affine::PARAMS * changed => Ok(glow::Law::Affine),
        n => bail!("a coupling of {changed} channels has {n} outputs: the checkpoint is of another layout"),
    }
}

/// Channels or features, of which no model has more than our configs allow: products of them then never overflow.
pub fn size(n: Option<usize>, name: &str) -> Result<usize> {
    let n = n.with_context(|| format!("there is no `{name}`: the checkpoint is of another layout"))?;
    ensure!((1..=ModelConfig::LARGEST_SIZE).contains(&n), "`{name}` is for {n} channels, which no model has");
    Ok(n)
}

/// A Glow without its sizes.
pub fn glow(shape: [usize; 3], options: &Options) -> GlowConfig {
    GlowConfig { shape, bits: options.bits, ..GlowConfig::cifar_paper() }
}
