//! Transforms and autoregressive layers against nflows, zuko and torch: the same parameters, the same numbers.
//!
//! tests/golden/peers.safetensors is made by tests/golden/peers.py beside it, whose first lines say with which versions, and where
//! their parameters differ from ours.

use crate::device;
use candle_core::{DType, Result, Tensor, safetensors};
use flows::bijections::{Autoregressive, Inverted};
use flows::nets::{Made, MadeConfig, Order, Start};
use flows::priors::Gaussian;
use flows::transforms::{Affine, MixtureOfLogistics, RationalQuadraticSpline, Scale, Transform};
use flows::{Bijection, Chain, Context, Ctx, Flow, ParamStore};
use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

/// The values of one part of the file, by name.
fn part(name: &str) -> Result<BTreeMap<String, Tensor>> {
    let golden = std::env::var_os("FLOWS_GOLDEN").map(PathBuf::from);
    let dir = golden.unwrap_or_else(|| Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/golden"));
    let all = safetensors::load(dir.join("peers.safetensors"), &device())?;
    let prefix = format!("{name}/");
    Ok(all.into_iter().filter_map(|(k, t)| Some((k.strip_prefix(&prefix)?.to_owned(), t))).collect())
}

/// The largest |a - b| / (1 + |b|) is at most `most`.
fn near(what: &str, got: &Tensor, want: &Tensor, most: f64) -> Result<()> {
    assert_eq!(got.dims(), want.dims(), "{what}");
    let values = |t: &Tensor| t.to_dtype(DType::F64)?.flatten_all()?.to_vec1::<f64>();
    let off = |(a, b): (f64, f64)| (a - b).abs() / (1. + b.abs());
    let off: Vec<f64> = values(got)?.into_iter().zip(values(want)?).map(off).collect();
    let worst = off.iter().copied().fold(0., f64::max);
    println!("{what}: off by {worst:.1e}");
    assert!(worst <= most && off.iter().all(|d| d.is_finite()), "{what} is off by {worst:e}");
    Ok(())
}

/// A transform in f64 and in f32.
fn transform(name: &str, transform: &dyn Transform) -> Result<()> {
    let values = part(name)?;
    for (dtype, most) in [(DType::F64, 1e-10), (DType::F32, 1e-5)] {
        let of = |key: &str| values[key].to_dtype(dtype);
        let (y, log_slope) = transform.forward(&of("x")?, &of("h")?, Ctx::eval())?;
        near(&format!("{name} {dtype:?}"), &y, &values["y"], most)?;
        near(&format!("{name} {dtype:?}, log-slope"), &log_slope, &values["log_slope"], most)?;
        if let Some(inverse) = values.get("inverse") {
            let got = transform.inverse(&of("x")?, &of("h")?)?;
            near(&format!("{name} {dtype:?}, inverse"), &got, inverse, most)?;
        }
    }
    Ok(())
}

/// MAF of two affine layers, with `features` context features: log p(x), z and the inverse; IAF is its inverse.
fn maf(name: &str, features: usize, hidden: &[usize]) -> Result<()> {
    let values = part(name)?;
    for (dtype, most) in [(DType::F64, 1e-10), (DType::F32, 1e-5)] {
        let of = |key: &str| values[key].to_dtype(dtype);
        let tensors = values.iter().filter(|(k, _)| k.starts_with("layer"));
        let tensors: BTreeMap<_, _> = tensors.map(|(k, t)| (k.clone(), t.clone())).collect();
        let params = ParamStore::from_source(tensors, dtype, &device());
        let [mut flow, mut inverted] = [Chain::new(), Chain::new()];
        let layer = |i: usize, params: &ParamStore| -> Result<Autoregressive> {
            // The order is the file's.
            let config =
                MadeConfig { dims: 4, features, hidden, params_per_element: 2, order: Order::Natural };
            let net = Made::new(&config, Start::Identity, &params.vb().pp(format!("layer{i}")))?;
            Ok(Autoregressive::new(Box::new(Affine { scale: Scale::Exp, shift_first: false }), net))
        };
        flow.push("layer0", layer(0, &params)?);
        flow.push("layer1", layer(1, &params)?);
        params.finish()?;
        let again = ParamStore::from_source(
            params.all().into_iter().map(|(k, p)| (k, p.value().clone())).collect::<BTreeMap<_, _>>(),
            dtype,
            &device(),
        );
        inverted.push("layer1", Inverted(layer(1, &again)?));
        inverted.push("layer0", Inverted(layer(0, &again)?));
        let features = values.get("c").map(|c| c.to_dtype(dtype)).transpose()?;
        let context = Context { labels: None, features: features.as_ref() };
        let x = of("x")?;
        let flow = Flow::new(flow, Gaussian, &[4]);
        near(
            &format!("{name} {dtype:?}, log_prob"),
            &flow.log_prob(&x, context)?,
            &values["log_prob"],
            most,
        )?;
        near(&format!("{name} {dtype:?}, encode"), &flow.encode(&x, context)?, &values["z"], most)?;
        near(&format!("{name} {dtype:?}, decode"), &flow.decode(&x, context)?, &values["inverse"], most)?;
        let (z, log_det) = inverted.forward(&x, Ctx::eval().with_context(context))?;
        near(&format!("{name} {dtype:?}, inverted"), &z, &values["inverse"], most)?;
        let there = flow.bijection().forward(&z, Ctx::eval().with_context(context))?.1;
        near(&format!("{name} {dtype:?}, inverted log-det"), &log_det.neg()?, &there, most)?;
        near(&format!("{name} {dtype:?}, sample"), &inverted.inverse(&x, context)?, &values["z"], most)?;
    }
    Ok(())
}

twins! {
    fn splines_of_nflows() {
        let spline = RationalQuadraticSpline { bins: 5, bound: 2., ..RationalQuadraticSpline::default() };
        Ok(transform("spline", &spline)?)
    }

    fn mixtures_by_torch() {
        Ok(transform("mixture", &MixtureOfLogistics { components: 4 })?)
    }

    fn maf_of_zuko() {
        Ok(maf("maf", 0, &[6, 9])?)
    }

    fn conditional_maf_of_zuko() {
        Ok(maf("conditional", 2, &[8, 12])?)
    }
}
