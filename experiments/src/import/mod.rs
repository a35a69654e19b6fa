//! `flow import`: PyTorch checkpoints of other projects as models of ours, with equal log p(x).
//!
//! Sizes are inferred from the tensors; the sides of the images are, where the checkpoint tells them, and `--size` says them
//! where it does not. What has no counterpart is refused in one sentence; nothing is dropped but what has no part in the
//! likelihood (a classifier's head, counters).
//!
//! | layout | what differs from ours, and how it is carried over |
//! |---|---|
//! | `glow-pytorch` | y0ast/Glow-PyTorch. Shifts and scales are interleaved in the coupling networks' output: its channels are reordered. The learned split prior is a mean and a scale: our coupling applies the negated ones. Actnorm has no factor 3: logs are divided by it. A fixed permutation is no part of its checkpoint: `--reversed` says that it is the reversal, a shuffle cannot be known. |
//! | `real-nvp` | chrischute/real-nvp. No batch norm after couplings, batch norm (doubled under a checkerboard) and ReLU of the networks' input, a gain for each channel, partitions the other way round: settings of our RealNVP. Scales come first in the networks' output: reordered. Where our networks see the mask, the weight is zero. |
//! | `normflows` | normflows's Glow: `MultiscaleFlow` of `GlowBlock`s with default maps (`scale_map="sigmoid"`, `split_mode="channel"`, `leaky=0`), which the checkpoint does not record. It samples forwards, so the order of its blocks is turned round and shifts are negated. Base distributions must be one mean and scale for each channel, classes only at the top. |
//!
//! Every mapping is checked on random weights against the log p(x) that PyTorch gives (tests/import).

mod glow_pytorch;
mod normflows;
pub mod pth;
mod real_nvp;

use crate::cli::End;
use crate::export::{self, FileArgs};
use crate::{card, data};
use anyhow::{Context, Result, bail, ensure};
use candle_core::{DType, Device, Tensor};
use flows::models::{GlowConfig, Preprocess, glow};
use flows::transforms::{Additive, Affine};
use flows::{Model, ModelConfig};
use pth::Checkpoint;
use std::collections::BTreeMap;
use std::path::PathBuf;

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

/// `import`.
#[derive(clap::Args)]
pub struct ImportArgs {
    /// A checkpoint of torch.save, .pth.
    file: PathBuf,
    /// Whose model it is.
    #[arg(long, value_enum)]
    from: Layout,
    /// The folder to write, new or of an earlier import.
    #[arg(long, value_name = "DIR")]
    out: PathBuf,
    /// Height and width of the images, 32 or 32x48, where the checkpoint does not tell them.
    #[arg(long, value_name = "HxW", value_parser = sides)]
    size: Option<[usize; 2]>,
    /// Bits of a pixel value that the model was trained on.
    #[arg(long, default_value_t = 8, value_parser = clap::value_parser!(u8).range(1..=8))]
    bits: u8,
    /// What its training did to pixels first, which normflows leaves to its user (default there: unit).
    #[arg(long, value_enum)]
    pixels: Option<Pixels>,
    /// The channels are reversed between couplings (glow-pytorch keeps no fixed permutation in its checkpoint).
    #[arg(long)]
    reversed: bool,
    #[command(flatten)]
    weights: FileArgs,
    /// The result as one JSON object, the last line of standard output.
    #[arg(long)]
    json: bool,
}

fn sides(text: &str) -> Result<[usize; 2], String> {
    let (h, w) = text.split_once('x').unwrap_or((text, text));
    let side = |text: &str| text.parse().ok().filter(|n| (1..=1 << 16).contains(n));
    side(h)
        .zip(side(w))
        .map(|(h, w)| [h, w])
        .ok_or_else(|| "a size is 32, or 32x48 for height and width".to_owned())
}

/// What the command line says beside the file.
#[derive(Clone, Copy, Debug)]
pub struct Options {
    size: Option<[usize; 2]>,
    bits: u8,
    pixels: Option<Pixels>,
    reversed: bool,
}

impl Options {
    /// Refuses `--pixels` and `--reversed` where they mean nothing.
    fn only(&self, layout: &str, pixels: bool, reversed: bool) -> Result<()> {
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
    fn sides(&self, told: Option<[usize; 2]>) -> Result<[usize; 2]> {
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

    fn preprocess(&self) -> Preprocess {
        match self.pixels.unwrap_or(Pixels::Unit) {
            Pixels::Unit => Preprocess::Unit {},
            Pixels::Centered => Preprocess::Centered {},
            Pixels::Symmetric => Preprocess::Symmetric {},
        }
    }
}

/// A model's tensors, as they come together.
#[derive(Default)]
struct Tensors(BTreeMap<String, Tensor>);

impl Tensors {
    fn put(&mut self, name: String, shape: &[usize], values: Vec<f64>) -> Result<()> {
        self.0.insert(name, Tensor::from_vec(values, shape, &Device::Cpu)?);
        Ok(())
    }

    fn indices(&mut self, name: String, values: &[usize]) -> Result<()> {
        let values: Vec<u32> = values.iter().map(|&v| v as u32).collect();
        self.0.insert(name, Tensor::new(values, &Device::Cpu)?);
        Ok(())
    }

    /// A 1x1 convolution W = P L U with U's diagonal sign exp(log s): ours packs L and U and keeps P as indices.
    fn plu(&mut self, path: &str, c: usize, [p, lower, upper, sign, logs]: [Vec<f64>; 5]) -> Result<()> {
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

fn negated(mut values: Vec<f64>) -> Vec<f64> {
    values.iter_mut().for_each(|v| *v = -*v);
    values
}

/// Rows (shift, scale, shift, ..), each of `width` numbers, with the shifts first.
fn shifts_first(values: &[f64], width: usize) -> Vec<f64> {
    let rows = |first: usize| values.chunks_exact(width).skip(first).step_by(2).flatten().copied();
    rows(0).chain(rows(1)).collect()
}

/// The coupling law from how many outputs a network has for the channels that it changes.
fn law(outputs: usize, changed: usize) -> Result<glow::Law> {
    match outputs {
        n if n == Additive::PARAMS * changed => Ok(glow::Law::Additive),
        n if n == Affine::PARAMS * changed => Ok(glow::Law::Affine),
        n => bail!("a coupling of {changed} channels has {n} outputs: the checkpoint is of another layout"),
    }
}

/// Channels or features, of which no model has more than our configs allow: products of them then never overflow.
fn size(n: Option<usize>, name: &str) -> Result<usize> {
    let n = n.with_context(|| format!("there is no `{name}`: the checkpoint is of another layout"))?;
    ensure!((1..=ModelConfig::LARGEST_SIZE).contains(&n), "`{name}` is for {n} channels, which no model has");
    Ok(n)
}

/// A Glow without its sizes.
fn glow(shape: [usize; 3], options: &Options) -> GlowConfig {
    GlowConfig { shape, bits: options.bits, ..GlowConfig::cifar_paper() }
}

/// A checkpoint as a model in f64, which f32 weights fill exactly.
///
/// # Errors
/// When it is of another layout, or holds what has no counterpart here.
pub fn convert(bytes: &[u8], name: &str, from: Layout, options: &Options) -> Result<Model> {
    let mut checkpoint = Checkpoint::parse(bytes, name)?;
    let mut tensors = Tensors::default();
    let config = match from {
        Layout::GlowPytorch => {
            ModelConfig::Glow(glow_pytorch::convert(&mut checkpoint, options, &mut tensors)?)
        }
        Layout::RealNvp => ModelConfig::RealNvp(real_nvp::convert(&mut checkpoint, options, &mut tensors)?),
        Layout::Normflows => ModelConfig::Glow(normflows::convert(&mut checkpoint, options, &mut tensors)?),
    };
    checkpoint.finish()?;
    Ok(Model::from_tensors(config, tensors.0, DType::F64, &Device::Cpu)?)
}

/// Imports a checkpoint.
///
/// # Errors
/// Those of [`convert`], and when the folder cannot be written.
pub fn import(args: &ImportArgs) -> Result<End> {
    export::free(&args.out)?;
    let ImportArgs { size, bits, pixels, reversed, .. } = *args;
    let bytes = data::read_file(&args.file)?;
    let name = args.file.display().to_string();
    let model = convert(&bytes, &name, args.from, &Options { size, bits, pixels, reversed })
        .with_context(|| format!("{name} cannot be imported"))?;
    model.save(&args.out, &args.weights.options())?;
    card::write(&args.out)?;
    export::tell(&args.out, args.json)?;
    Ok(End::Done)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::data::mutate;
    use candle_core::safetensors;
    use flows::SaveOptions;
    use std::path::Path;

    const NONE: Options = Options { size: None, bits: 8, pixels: None, reversed: false };
    const SIZED: Options = Options { size: Some([8, 8]), ..NONE };
    const CASES: [(&str, Layout, Options); 7] = [
        ("glow_pytorch", Layout::GlowPytorch, NONE),
        ("glow_pytorch_classes", Layout::GlowPytorch, NONE),
        ("glow_pytorch_reversed", Layout::GlowPytorch, Options { reversed: true, ..NONE }),
        ("real_nvp", Layout::RealNvp, SIZED),
        ("real_nvp_scales", Layout::RealNvp, Options { size: Some([8, 12]), ..NONE }),
        ("normflows", Layout::Normflows, NONE),
        ("normflows_classes", Layout::Normflows, SIZED),
    ];

    fn path(name: &str) -> PathBuf {
        Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/import").join(name)
    }

    fn fixture(name: &str) -> Vec<u8> {
        std::fs::read(path(&format!("{name}.pth"))).unwrap()
    }

    fn worst(model: &Model, name: &str) -> f64 {
        let values = safetensors::load(path(&format!("{name}.safetensors")), &Device::Cpu).unwrap();
        let x = values["x"].to_dtype(model.params().dtype()).unwrap();
        let log_prob = model.log_prob(&x, values.get("cond")).unwrap().to_dtype(DType::F64).unwrap();
        let difference = (log_prob - &values["log_prob"]).unwrap().abs().unwrap();
        difference.max(0).unwrap().to_scalar().unwrap()
    }

    /// In f64, from f32 weights in a file computed in f64, and computed in f32, whose own rounding of a sum of 200 terms
    /// of a size of 1000 nats is that large.
    #[test]
    fn log_prob_is_that_of_pytorch() {
        for (name, from, options) in CASES {
            let model = convert(&fixture(name), name, from, &options).unwrap();
            let exact = worst(&model, name);
            let dir = tempfile::tempdir().unwrap();
            let f32s = SaveOptions { dtype: Some(DType::F32), ..SaveOptions::default() };
            model.save(dir.path(), &f32s).unwrap();
            let saved = worst(&Model::load_as(dir.path(), Some(DType::F64), &Device::Cpu).unwrap(), name);
            let single = worst(&Model::load(dir.path(), &Device::Cpu).unwrap(), name);
            println!(
                "{name}: log p(x) differs by {exact:.1e}, saved in f32 by {saved:.1e}, computed in f32 by {single:.1e} nats"
            );
            // Our weight norm divides by sqrt(|v|^2 + 1e-12), theirs by |v|: that is what is left of a RealNVP.
            assert!(exact < 1e-6 && saved < 1e-4 && single < 5e-3, "{name}: {exact:e} {saved:e} {single:e}");
        }
    }

    #[test]
    fn what_has_no_counterpart_is_one_sentence() {
        let refuse = |bytes: &[u8], from, options: &Options, says: &str| {
            let error = convert(bytes, "F", from, options).unwrap_err();
            let said = format!("{error:#}");
            let said = said.lines().next().unwrap();
            assert!(said.contains(says), "{says}: {said}");
        };
        let [glow, reversed, nvp, nf] =
            ["glow_pytorch", "glow_pytorch_reversed", "real_nvp", "normflows_classes"].map(fixture);
        refuse(b"\x80\x02\x8a\nl\xfc", Layout::RealNvp, &SIZED, "PyTorch 1.6");
        refuse(b"PK\x03\x04", Layout::RealNvp, &SIZED, "damaged checkpoint");
        refuse(&glow, Layout::RealNvp, &SIZED, "`data_constraint`");
        refuse(&glow, Layout::Normflows, &NONE, "`flows.0`");
        refuse(&nvp, Layout::GlowPytorch, &NONE, "`prior_h`");
        refuse(&nvp, Layout::RealNvp, &NONE, "--size");
        refuse(&nf, Layout::Normflows, &NONE, "--size");
        refuse(&reversed, Layout::GlowPytorch, &NONE, "--reversed");
        refuse(&glow, Layout::GlowPytorch, &Options { reversed: true, ..NONE }, "--reversed");
        refuse(&glow, Layout::GlowPytorch, &Options { pixels: Some(Pixels::Unit), ..NONE }, "--pixels");
        refuse(&glow, Layout::GlowPytorch, &Options { size: Some([16, 8]), ..NONE }, "8x8");
        refuse(&nvp, Layout::RealNvp, &Options { size: Some([7, 8]), ..NONE }, "must be even");
    }

    #[test]
    fn no_damage_panics() {
        for (name, from, options) in CASES {
            mutate::each(&fixture(name), 400, |bytes| drop(convert(bytes, "F", from, &options)));
        }
    }

    #[test]
    fn sizes_are_sides() {
        assert_eq!((sides("32"), sides("8x12")), (Ok([32, 32]), Ok([8, 12])));
        assert!(["", "x", "8x", "0", "-1", "70000", "8x8x8"].into_iter().all(|text| sides(text).is_err()));
    }
}
