//! The models against PyTorch: the same weights, the same inputs, the same numbers.
//!
//! Every folder in tests/golden holds a small model as the library saves one, and golden.safetensors with inputs and
//! what an implementation of its own makes of them: log p(x), f(x) and f^-1(z). Weights and values are made by one
//! script, tests/golden/make.py: plain PyTorch in f64, log-dets from autograd's Jacobian; its first lines say with which
//! versions. To make them again (on another machine they are the same up to rounding):
//!
//! ```text
//! python -m venv env && env/bin/pip install torch safetensors numpy
//! env/bin/python flows/tests/golden/make.py
//! ```

use candle_core::{DType, Device, Result, Tensor, safetensors};
use flows::Model;
use std::path::Path;

/// The largest |a - b| / max(|b|, 1).
fn deviation(a: &Tensor, b: &Tensor) -> Result<f64> {
    assert_eq!(a.dims(), b.dims());
    let values = |t: &Tensor| t.to_dtype(DType::F64)?.flatten_all()?.to_vec1::<f64>();
    let worst = |w: f64, (a, b): (f64, f64)| {
        let d = (a - b).abs() / b.abs().max(1.);
        if d > w || d.is_nan() { d } else { w }
    };
    Ok(values(a)?.into_iter().zip(values(b)?).fold(0., worst))
}

fn check(name: &str) -> Result<()> {
    let dir = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/golden").join(name);
    let golden = safetensors::load(dir.join("golden.safetensors"), &Device::Cpu)?;
    let cond = golden.get("cond");
    let compare = |what: &str, got: Tensor, key: &str, tolerance: f64| -> Result<()> {
        let d = deviation(&got, &golden[key])?;
        println!("{name}: {what} deviates by {d:.1e}");
        assert!(d <= tolerance, "{name}: {what} deviates by {d:e}, {tolerance:e} is allowed");
        Ok(())
    };

    let model = Model::load(&dir, &Device::Cpu)?;
    assert_eq!(model.params().dtype(), DType::F64);
    compare("log_prob", model.log_prob(&golden["x"], cond)?, "log_prob", 1e-9)?;
    compare("encode", model.encode(&golden["x"], cond)?, "encoded", 1e-8)?;
    compare("decode", model.decode(&golden["z"], cond)?, "decoded", 1e-8)?;

    let model = Model::load_as(&dir, Some(DType::F32), &Device::Cpu)?;
    let x = golden["x"].to_dtype(DType::F32)?;
    compare("log_prob in f32", model.log_prob(&x, cond)?, "log_prob", 1e-5)
}

#[test]
fn nice() -> Result<()> {
    check("nice")
}

#[test]
fn nice_with_whitening_and_affine_couplings() -> Result<()> {
    check("nice_zca")
}

#[test]
fn realnvp() -> Result<()> {
    check("realnvp")
}

#[test]
fn realnvp_with_plain_networks() -> Result<()> {
    check("realnvp_plain")
}

#[test]
fn glow() -> Result<()> {
    check("glow")
}

#[test]
fn glow_with_classes() -> Result<()> {
    check("glow_classes")
}
