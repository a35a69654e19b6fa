//! docs/python/flows_torch.py, by which others load our weights into plain PyTorch, gives the library's log p(x): the golden
//! models, the trained ones, and one with every setting that only imported checkpoints have, in shards of bf16.
//!
//! `FLOWS_PYTHON` names a Python with docs/python/requirements.txt installed; without it this is skipped.

use anyhow::Context as _;
use candle_core::{DType, Device, Result, Tensor};
use flows::models::{
    ContextConfig, CouplingTransform, Dequantize, GlowConfig, MafConfig, Missing, NiceConfig, Preprocess,
    PriorConfig, RealNvpConfig, maf,
};
use flows::{Context, Model, ModelConfig, SaveOptions};
use std::collections::HashMap;
use std::path::{Path, PathBuf};
use std::process::Command;

const SCRIPT: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/../docs/python/flows_torch.py");

/// Flows that list their layers, of which every kind is there.
const COMPOSED: &str = r#"[
    {
        "model": "composed", "shape": [2, 8, 8], "preprocess": { "kind": "unit" },
        "levels": [
            { "layers": [
                { "kind": "steps", "name": "checker", "repeat": 3, "layers": [
                    {
                        "kind": "coupling", "partition": { "kind": "checkerboard", "alternate": true, "swap": true },
                        "net": { "kind": "res_net", "features": 4, "blocks": 1 }
                    },
                    "batch_norm"
                ] },
                "squeeze",
                { "kind": "steps", "repeat": 2, "layers": [
                    { "kind": "actnorm", "factor": 2 },
                    "conv1x1",
                    { "kind": "coupling", "transform": "rational_quadratic_spline", "net": { "kind": "conv_net", "width": 4, "edge_bias": true } },
                    { "kind": "coupling", "transform": "additive", "net": { "kind": "conv_net", "width": 4 } }
                ] },
                "shuffle",
                "split_prior"
            ] },
            { "layers": ["squeeze", "squeeze", { "kind": "channel_prior", "classes": 2 }] }
        ],
        "layers": [{ "kind": "diagonal_prior", "classes": 2 }]
    },
    {
        "model": "composed", "shape": [5], "preprocess": { "kind": "standardize" },
        "layers": [
            "even_odd",
            { "kind": "steps", "repeat": 2, "layers": [
                { "kind": "conv1x1", "weight": "plain" },
                {
                    "kind": "coupling", "partition": { "kind": "halves", "alternate": true },
                    "transform": { "kind": "affine", "scale": "sigmoid" }, "net": { "kind": "mlp", "hidden": [6] }
                },
                "batch_norm"
            ] },
            { "kind": "steps", "repeat": 2, "layers": [
                { "kind": "autoregressive", "alternate": true, "transform": { "kind": "mixture_of_logistics", "components": 3 }, "hidden": [6] },
                "reverse"
            ] },
            { "kind": "permute", "order": [3, 0, 4, 1, 2] },
            { "kind": "autoregressive", "order": "random", "transform": { "kind": "affine", "scale": "exp", "shift_first": true }, "hidden": [] },
            "diagonal"
        ]
    }
]"#;

/// Features of `n` examples, as large as pixels.
fn features(n: usize, shape: &[usize]) -> Result<Tensor> {
    let sides = [&[n][..], shape].concat();
    let count = sides.iter().product::<usize>();
    let values = (0..count).map(|i| (i * 37 % 11) as f64 * 20.).collect::<Vec<_>>();
    Tensor::from_vec(values, sides, &Device::Cpu)
}

/// Two samples, what the library makes of them in f64, and labels and a context where the model has them. Samples, because a trained
/// model gives noise a likelihood of minus millions of nats, whose inverse no arithmetic undoes.
fn values(model: &Model) -> Result<HashMap<String, Tensor>> {
    let mut values = HashMap::new();
    let cond =
        model.config().classes().map(|n| Tensor::new(&[0u32, n as u32 - 1], &Device::Cpu)).transpose()?;
    let shape = model.config().context().shape(model.config().shape())?;
    let c = shape.map(|shape| features(2, &shape)).transpose()?;
    let context = Context { labels: cond.as_ref(), features: c.as_ref() };
    let (mut x, mut c) = (model.sample(2, 0.7, 1, context)?, c);
    if model.config().context().of_images(&x)?.is_some() {
        // A sample given another context may be far from what goes with its own.
        x = (features(2, model.shape())? + 0.5)?;
        c = model.config().context().of_images(&x)?;
    }
    let context = Context { labels: cond.as_ref(), features: c.as_ref() };
    values.insert("log_prob".to_string(), model.log_prob(&x, context)?);
    values.insert("x".to_string(), x);
    values.extend(c.map(|c| ("c".to_string(), c)));
    values.extend(cond.map(|cond| ("cond".to_string(), cond)));
    Ok(values)
}

fn folders() -> Vec<PathBuf> {
    let here = Path::new(env!("CARGO_MANIFEST_DIR"));
    let mut all = Vec::new();
    for parent in [here.join("tests/golden"), here.join("../weights")] {
        let entries = std::fs::read_dir(parent).unwrap().map(|e| e.unwrap().path());
        all.extend(entries.filter(|path| path.join("config.json").exists()));
    }
    all.sort();
    assert!(all.len() >= 9);
    all
}

/// Every kind of context: numbers, maps of other sides than the images', labels, and those that are made of images.
fn contexts() -> Vec<ContextConfig> {
    vec![
        ContextConfig::Features { shape: vec![4] },
        ContextConfig::Features { shape: vec![2, 2, 2] },
        ContextConfig::Labels { classes: 3, embedding: 4 },
        ContextConfig::Downsampled { factor: 4 },
        ContextConfig::Masked { missing: Missing::Centre },
        ContextConfig::Masked { missing: Missing::Most },
    ]
}

#[test]
fn pytorch_gives_the_same_log_prob() -> anyhow::Result<()> {
    let Some(python) = std::env::var_os("FLOWS_PYTHON") else {
        println!("skipped: FLOWS_PYTHON names no Python with torch and safetensors");
        return Ok(());
    };
    let dir = tempfile::tempdir()?;
    let imported = dir.path().join("imported");
    let config = RealNvpConfig {
        shape: [2, 8, 8],
        features: 4,
        blocks: 1,
        norm_couplings: false,
        norm_input: true,
        channel_gains: true,
        diagonal: true,
        ..RealNvpConfig::cifar_code()
    };
    let model = Model::new(ModelConfig::RealNvp(config), 1, DType::F32, &Device::Cpu)?;
    model.params().perturb(2, 0.2)?;
    model.save(&imported, &SaveOptions { max_shard_size: 4000, dtype: Some(DType::BF16) })?;
    let mut priors = vec![imported];
    for (name, prior) in [
        ("t", PriorConfig::StudentT { df: 3., learned: false }),
        ("learned-t", PriorConfig::StudentT { df: 3., learned: true }),
        ("mixture", PriorConfig::Mixture { components: 3 }),
        ("diagonal", PriorConfig::DiagonalGaussian { classes: Some(2) }),
    ] {
        let config =
            NiceConfig { shape: vec![2, 4, 4], hidden: vec![vec![4]; 2], prior, ..NiceConfig::mnist_paper() };
        let model = Model::new(ModelConfig::Nice(config), 1, DType::F32, &Device::Cpu)?;
        model.params().perturb(2, 0.2)?;
        priors.push(dir.path().join(name));
        model.save(&priors[priors.len() - 1], &SaveOptions::default())?;
    }
    let noise = GlowConfig {
        shape: [2, 8, 8],
        levels: 2,
        depth: 1,
        width: 4,
        dequantize: Dequantize::Variational { couplings: 2, width: 6 },
        ..GlowConfig::cifar_code()
    };
    let model = Model::new(ModelConfig::Glow(noise), 1, DType::F32, &Device::Cpu)?;
    model.params().perturb(2, 0.1)?;
    priors.push(dir.path().join("noise"));
    model.save(&priors[priors.len() - 1], &SaveOptions::default())?;
    for (i, config) in serde_json::from_str::<Vec<ModelConfig>>(COMPOSED)?.into_iter().enumerate() {
        let model = Model::new(config, 1, DType::F32, &Device::Cpu)?;
        model.params().perturb(2, 0.1)?;
        priors.push(dir.path().join(format!("composed{i}")));
        model.save(&priors[priors.len() - 1], &SaveOptions::default())?;
    }
    for (i, context) in contexts().into_iter().enumerate() {
        let (image, vector) = ([3, 8, 8], vec![5]);
        let preprocess = Preprocess::Standardize {};
        let glow = GlowConfig {
            levels: 2,
            depth: 1,
            width: 4,
            context: context.clone(),
            ..GlowConfig::cifar_code()
        };
        let realnvp =
            RealNvpConfig { features: 2, blocks: 1, context: context.clone(), ..RealNvpConfig::cifar_code() };
        let nice = NiceConfig {
            preprocess,
            hidden: vec![vec![7]; 2],
            context: context.clone(),
            ..NiceConfig::mnist_paper()
        };
        let maf = MafConfig {
            shape: vector.clone(),
            bits: 8,
            preprocess,
            order: maf::Order::Random,
            layers: 2,
            hidden: vec![9, 8],
            transform: CouplingTransform::Affine,
            prior: PriorConfig::Gaussian {},
            dequantize: Dequantize::Uniform {},
            context: context.clone(),
        };
        let images = [
            ModelConfig::Glow(GlowConfig { shape: image, ..glow }),
            ModelConfig::RealNvp(RealNvpConfig { shape: image, ..realnvp }),
        ];
        let vectors = [ModelConfig::Nice(NiceConfig { shape: vector, ..nice }), ModelConfig::Maf(maf)];
        for (j, config) in images.into_iter().chain(vectors).enumerate() {
            if config.context().shape(config.shape()).is_err() {
                continue; // made of images
            }
            let model = Model::new(config, 1, DType::F32, &Device::Cpu)?;
            if let Some(shape) = model.config().context().shape(model.config().shape())? {
                model.standardize_context(&features(16, &shape)?)?;
            }
            model.params().perturb(2, 0.1)?;
            priors.push(dir.path().join(format!("context{i}{j}")));
            model.save(&priors[priors.len() - 1], &SaveOptions::default())?;
        }
    }
    for folder in folders().into_iter().chain(priors) {
        let model = Model::load_as(&folder, Some(DType::F64), &Device::Cpu)?;
        let file = dir.path().join("values.safetensors");
        candle_core::safetensors::save(&values(&model)?, &file)?;
        let output = Command::new(&python).arg(SCRIPT).arg("check").arg(&folder).arg(&file).output()?;
        let stderr = String::from_utf8_lossy(&output.stderr);
        if stderr.contains("No module named") {
            println!("skipped: the Python that FLOWS_PYTHON names lacks torch or safetensors");
            return Ok(());
        }
        assert!(output.status.success(), "{}: {stderr}", folder.display());
        let said: serde_json::Value = serde_json::from_slice(&output.stdout)
            .with_context(|| format!("{}: {}", folder.display(), String::from_utf8_lossy(&output.stdout)))?;
        let name = folder.file_name().unwrap_or_default().to_string_lossy();
        let of = |dtype: &str, what: &str| said[dtype][what].as_f64().unwrap_or(f64::NAN);
        let size = of("f64", "size");
        println!(
            "{name}: of {size:.0} nats PyTorch differs by {:.1e} in f64, {:.1e} in f32",
            of("f64", "log_prob"),
            of("f32", "log_prob")
        );
        assert!(of("f64", "log_prob") <= 1e-11 * size, "{name}: {said}");
        assert!(of("f32", "log_prob") <= 3e-6 * size, "{name}: {said}");
        assert!(of("f64", "inverse") <= 1e-6, "{name}: {said}");
    }
    Ok(())
}
