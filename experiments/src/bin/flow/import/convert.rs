//! The conversion of a checkpoint, whatever its layout.

use super::pth::Checkpoint;
use super::tensors::{Conversion, Layout, Options};
use super::{glow_pytorch, normflows, real_nvp};
use anyhow::Result;
use candle_core::{DType, Device};
use flows::{Model, ModelConfig};
use std::collections::BTreeMap;

/// A checkpoint as a model in f64, which f32 weights fill exactly.
///
/// # Errors
/// When it is of another layout, or holds what has no counterpart here.
pub fn convert(bytes: &[u8], name: &str, from: Layout, options: &Options) -> Result<Model> {
    let mut c = Conversion { from: Checkpoint::parse(bytes, name)?, to: BTreeMap::new() };
    let config = match from {
        Layout::GlowPytorch => ModelConfig::Glow(glow_pytorch::convert(&mut c, options)?),
        Layout::RealNvp => ModelConfig::RealNvp(real_nvp::convert(&mut c, options)?),
        Layout::Normflows => ModelConfig::Glow(normflows::convert(&mut c, options)?),
    };
    c.from.finish()?;
    Ok(Model::from_tensors(config, c.to, DType::F64, &Device::Cpu)?)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::import::Pixels;
    use crate::testing::mutate;
    use candle_core::{Tensor, safetensors};
    use flows::SaveOptions;
    use std::collections::HashMap;
    use std::path::{Path, PathBuf};

    const NONE: Options = Options { size: None, bits: 8, pixels: None, reversed: false };
    const SIZED: Options = Options { size: Some([8, 8]), ..NONE };
    const CASES: [(&str, Layout, Options); 9] = [
        ("glow_pytorch", Layout::GlowPytorch, NONE),
        ("glow_pytorch_classes", Layout::GlowPytorch, NONE),
        ("glow_pytorch_reversed", Layout::GlowPytorch, Options { reversed: true, ..NONE }),
        ("real_nvp", Layout::RealNvp, SIZED),
        ("real_nvp_scales", Layout::RealNvp, Options { size: Some([8, 12]), ..NONE }),
        ("normflows", Layout::Normflows, NONE),
        ("normflows_classes", Layout::Normflows, SIZED),
        ("normflows_class_diagonal", Layout::Normflows, NONE),
        ("normflows_mixed", Layout::Normflows, NONE),
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

    /// A fixture of normflows with classes for each dimension, in which a base distribution has fewer classes than the other.
    fn fewer_classes() -> Vec<u8> {
        let all = candle_core::pickle::read_all(path("normflows_class_diagonal.pth")).unwrap();
        let mut all: HashMap<String, Tensor> = all.into_iter().collect();
        for name in ["q0.0.loc", "q0.0.log_scale"] {
            all.insert(name.to_owned(), all[name].narrow(3, 0, 2).unwrap().contiguous().unwrap());
        }
        let dir = tempfile::tempdir().unwrap();
        let file = dir.path().join("fewer.safetensors");
        safetensors::save(&all, &file).unwrap();
        std::fs::read(file).unwrap()
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
        refuse(
            &fewer_classes(),
            Layout::Normflows,
            &NONE,
            "`q0.0` has 2 classes and another base distribution 3",
        );
        refuse(&fixture("normflows"), Layout::Normflows, &Options { size: Some([16, 16]), ..NONE }, "8x8");
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
}
