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

use crate::device;
use candle_core::{DType, Result, Tensor, safetensors};
use flows::{Context, Model};
use std::path::{Path, PathBuf};

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
    // Where the binary was taken to another machine, the folder went with it.
    let golden = std::env::var_os("FLOWS_GOLDEN").map(PathBuf::from);
    let dir = golden.unwrap_or_else(|| Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/golden")).join(name);
    let golden = safetensors::load(dir.join("golden.safetensors"), &device())?;
    let context = Context { labels: golden.get("cond"), features: golden.get("c") };
    let compare = |what: &str, got: Tensor, key: &str, tolerance: f64| -> Result<()> {
        let d = deviation(&got, &golden[key])?;
        println!("{name}: {what} deviates by {d:.1e}");
        assert!(d <= tolerance, "{name}: {what} deviates by {d:e}, {tolerance:e} is allowed");
        Ok(())
    };

    let model = Model::load(&dir, &device())?;
    assert_eq!(model.params().dtype(), DType::F64);
    compare("log_prob", model.log_prob(&golden["x"], context)?, "log_prob", 1e-9)?;
    compare("encode", model.encode(&golden["x"], context)?, "encoded", 1e-8)?;
    compare("decode", model.decode(&golden["z"], context)?, "decoded", 1e-8)?;

    let model = Model::load_as(&dir, Some(DType::F32), &device())?;
    let x = golden["x"].to_dtype(DType::F32)?;
    compare("log_prob in f32", model.log_prob(&x, context)?, "log_prob", 1e-5)
}

twins! {
    fn nice() {
        Ok(check("nice")?)
    }

    fn nice_with_whitening_and_affine_couplings() {
        Ok(check("nice_zca")?)
    }

    fn nice_on_standardized_vectors() {
        Ok(check("nice_standardize")?)
    }

    fn nice_with_splines() {
        Ok(check("nice_spline")?)
    }

    fn glow_with_mixtures_of_logistics() {
        Ok(check("glow_mixture")?)
    }

    fn maf() {
        Ok(check("maf")?)
    }

    fn maf_with_splines_in_random_orders() {
        Ok(check("maf_spline")?)
    }

    fn realnvp() {
        Ok(check("realnvp")?)
    }

    fn realnvp_with_plain_networks() {
        Ok(check("realnvp_plain")?)
    }

    fn glow() {
        Ok(check("glow")?)
    }

    fn glow_with_classes() {
        Ok(check("glow_classes")?)
    }

    fn glow_with_a_learned_latent() {
        Ok(check("glow_latent")?)
    }

    fn nice_given_features() {
        Ok(check("nice_features")?)
    }

    fn glow_given_embedded_classes() {
        Ok(check("glow_embedding")?)
    }
}
