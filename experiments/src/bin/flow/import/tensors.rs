//! What all layouts share: the options of an import, and the conversion of tensors.

use super::pth::Checkpoint;
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
        let size = self
            .size
            .or(told)
            .context("the checkpoint does not tell the sides of its images: give --size, 32 or 32x48")?;
        let ([h, w], [told_h, told_w]) = (size, told.unwrap_or(size));
        ensure!([h, w] == [told_h, told_w], "--size {h}x{w}: the checkpoint is for {told_h}x{told_w}");
        Ok(size)
    }

    /// The preprocessing that `--pixels` names.
    pub fn preprocess(&self) -> Preprocess {
        match self.pixels.unwrap_or(Pixels::Unit) {
            Pixels::Unit => Preprocess::Unit {},
            Pixels::Centered => Preprocess::Centered {},
            Pixels::Symmetric => Preprocess::Symmetric {},
        }
    }
}

/// A checkpoint that becomes a model.
pub struct Conversion {
    /// What is left of the checkpoint.
    pub from: Checkpoint,
    /// The model's tensors so far.
    pub to: BTreeMap<String, Tensor>,
}

impl Conversion {
    /// Puts a tensor of the model.
    pub fn put(&mut self, name: String, shape: &[usize], values: Vec<f64>) -> Result<()> {
        self.to.insert(name, Tensor::from_vec(values, shape, &Device::Cpu)?);
        Ok(())
    }

    /// Puts a tensor of the checkpoint into the model with another name and this shape.
    pub fn copy(&mut self, from: &str, to: String, shape: &[usize]) -> Result<()> {
        let values = self.from.take(from, shape.iter().product())?;
        self.put(to, shape, values)
    }

    /// Puts the indices of a permutation.
    pub fn indices(&mut self, name: String, values: impl IntoIterator<Item = usize>) -> Result<()> {
        let values: Vec<u32> = values.into_iter().map(|v| v as u32).collect();
        self.to.insert(name, Tensor::new(values, &Device::Cpu)?);
        Ok(())
    }

    /// Puts an actnorm (x + bias) exp(logs), which a Glow here computes as (x + bias) exp(3 logs).
    pub fn act_norm(&mut self, path: &str, bias: Vec<f64>, logs: &[f64]) -> Result<()> {
        let channels = bias.len();
        self.put(format!("{path}.bias"), &[channels], bias)?;
        self.put(format!("{path}.logs"), &[channels], logs.iter().map(|l| l / 3.).collect())
    }

    /// Puts a zero convolution of 3x3: its weight, bias and logs.
    pub fn zero(&mut self, path: &str, inputs: usize, [weight, bias, logs]: [Vec<f64>; 3]) -> Result<()> {
        let outputs = bias.len();
        self.put(format!("{path}.zero.weight"), &[outputs, inputs, 3, 3], weight)?;
        self.put(format!("{path}.zero.bias"), &[outputs], bias)?;
        self.put(format!("{path}.zero.logs"), &[outputs], logs)
    }

    /// Puts a 1x1 convolution W = P L U with U's diagonal sign exp(log s): ours packs L and U and keeps P as indices. `names`
    /// are those of P, L, U, sign and log s in the checkpoint.
    pub fn plu(&mut self, from: &str, to: &str, c: usize, names: [&str; 5]) -> Result<()> {
        let mut take = |i: usize, n: usize| self.from.take(&format!("{from}.{}", names[i]), n);
        let [p, lower, upper] = [take(0, c * c)?, take(1, c * c)?, take(2, c * c)?];
        let [sign, logs] = [take(3, c)?, take(4, c)?];
        let mut perm = Vec::with_capacity(c);
        for row in p.chunks_exact(c) {
            let one = row.iter().position(|&v| v == 1.);
            let (Some(one), 1) = (one, row.iter().filter(|&&v| v != 0.).count()) else {
                bail!("the permutation of `{to}` is none: the checkpoint is damaged")
            };
            perm.push(one);
        }
        ensure!(
            sign.iter().all(|s| s.abs() == 1.),
            "the signs of `{to}` are not 1 and -1: its matrix has no inverse"
        );
        let packed = (0..c * c).map(|at| match (at / c).cmp(&(at % c)) {
            std::cmp::Ordering::Greater => lower[at],
            std::cmp::Ordering::Equal => logs[at / c],
            std::cmp::Ordering::Less => upper[at],
        });
        self.put(format!("{to}.lu"), &[c, c], packed.collect())?;
        self.indices(format!("{to}.perm"), perm)?;
        self.put(format!("{to}.sign"), &[c], sign)
    }
}

impl Checkpoint {
    /// The number of values of a tensor, which is one of channels or features.
    pub fn elements(&self, name: &str) -> Result<usize> {
        size(self.shape(name).map(|s| s.iter().product()), name)
    }

    /// The number of outputs of a convolution.
    pub fn outputs(&self, weight: &str) -> Result<usize> {
        size(self.shape(weight).and_then(|s| s.first().copied()), weight)
    }
}

/// Channels or features, of which no model has more than our configs allow: products of them then never overflow.
fn size(n: Option<usize>, name: &str) -> Result<usize> {
    let n = n.with_context(|| format!("there is no `{name}`: the checkpoint is of another layout"))?;
    ensure!((1..=ModelConfig::LARGEST_SIZE).contains(&n), "`{name}` is for {n} channels, which no model has");
    Ok(n)
}

/// The values with the other sign.
pub fn negated(mut values: Vec<f64>) -> Vec<f64> {
    values.iter_mut().for_each(|v| *v = -*v);
    values
}

/// Rows (shift, scale, shift, ..), of which there are `rows`, with the shifts first.
pub fn shifts_first(values: &[f64], rows: usize) -> Vec<f64> {
    let width = (values.len() / rows).max(1);
    let rows = |first: usize| values.chunks_exact(width).skip(first).step_by(2).flatten().copied();
    rows(0).chain(rows(1)).collect()
}

/// The coupling law from how many outputs a network has for the channels that it changes.
pub fn law(outputs: usize, changed: usize) -> Result<glow::CouplingTransform> {
    match outputs {
        n if n == Additive::PARAMS * changed => Ok(glow::CouplingTransform::Additive),
        n if n == Affine::PARAMS * changed => Ok(glow::CouplingTransform::Affine),
        n => bail!("a coupling of {changed} channels has {n} outputs: the checkpoint is of another layout"),
    }
}

/// A Glow without its sizes.
pub fn glow(shape: [usize; 3], options: &Options) -> GlowConfig {
    GlowConfig { shape, bits: options.bits, ..GlowConfig::cifar_paper() }
}
