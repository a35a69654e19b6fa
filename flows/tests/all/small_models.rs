//! A small config of every kind of model, for the laws and whatever else holds for all of them.

use crate::device;
use candle_core::Tensor;
use flows::ModelConfig;
use flows::bijections::BatchStatistics;
use flows::models::{
    ContextConfig, CouplingTransform, Dequantize, GlowConfig, MafConfig, Missing, NiceConfig, Preprocess,
    PriorConfig, RealNvpConfig, glow, maf, nice,
};
use flows::testing::normal;
use flows::transforms::{MixtureOfLogistics, RationalQuadraticSpline};
use serde_json::{Value, json};

pub(crate) fn small_nice() -> NiceConfig {
    NiceConfig {
        shape: vec![1, 4, 4],
        bits: 8,
        preprocess: Preprocess::Unit {},
        order: nice::Order::EvenOdd,
        hidden: vec![vec![9; 2]; 4],
        law: nice::CouplingTransform::Additive,
        init: 0.2,
        diagonal_from_data: false,
        prior: PriorConfig::Logistic {},
        dequantize: Dequantize::Uniform {},
        context: Default::default(),
    }
}

fn learned_noise() -> Dequantize {
    Dequantize::Variational { couplings: 2, width: 5 }
}

pub(crate) fn small_realnvp() -> RealNvpConfig {
    RealNvpConfig {
        shape: [1, 4, 4],
        features: 3,
        blocks: 1,
        checkerboard: 2,
        channelwise: 2,
        last_checkerboard: 2,
        ..RealNvpConfig::cifar_code()
    }
}

pub(crate) fn small_glow() -> GlowConfig {
    GlowConfig { shape: [3, 4, 4], levels: 2, depth: 2, width: 5, ..GlowConfig::cifar_paper() }
}

/// A spline whose bound some of the elements exceed.
pub(crate) const SPLINE: RationalQuadraticSpline =
    RationalQuadraticSpline { bins: 5, bound: 1.5, min_width: 1e-3, min_height: 1e-3, min_slope: 1e-3 };

pub(crate) const MIXTURE: MixtureOfLogistics = MixtureOfLogistics { components: 3 };

pub(crate) fn small_maf() -> MafConfig {
    MafConfig {
        shape: vec![4],
        bits: 8,
        preprocess: Preprocess::Standardize {},
        order: maf::Order::Reverse,
        layers: 3,
        hidden: vec![9, 9],
        transform: CouplingTransform::Affine,
        prior: PriorConfig::Gaussian {},
        dequantize: Dequantize::Uniform {},
        context: Default::default(),
    }
}

/// Models of p(x | c): numbers, maps of other sides than x, labels, and what is made of images.
pub(crate) fn conditional() -> Vec<(&'static str, ModelConfig)> {
    let features = |shape: &[usize]| ContextConfig::Features { shape: shape.to_vec() };
    let labels = ContextConfig::Labels { classes: 3, embedding: 4 };
    let vectors = NiceConfig {
        shape: vec![3],
        law: CouplingTransform::Affine,
        preprocess: Preprocess::None {},
        ..small_nice()
    };
    vec![
        ("NICE given numbers", ModelConfig::Nice(NiceConfig { context: features(&[2]), ..vectors.clone() })),
        ("NICE given labels", ModelConfig::Nice(NiceConfig { context: labels.clone(), ..vectors.clone() })),
        ("NICE given maps", ModelConfig::Nice(NiceConfig { context: features(&[2, 2, 1]), ..vectors })),
        ("MAF given numbers", ModelConfig::Maf(MafConfig { context: features(&[3]), ..small_maf() })),
        ("MAF given labels", ModelConfig::Maf(MafConfig { context: labels.clone(), ..small_maf() })),
        ("Glow given numbers", ModelConfig::Glow(GlowConfig { context: features(&[2]), ..small_glow() })),
        (
            "Glow given large maps",
            ModelConfig::Glow(GlowConfig { context: features(&[1, 4, 4]), ..small_glow() }),
        ),
        ("Glow given labels, twice", {
            ModelConfig::Glow(GlowConfig { context: labels.clone(), classes: Some(3), ..small_glow() })
        }),
        (
            "Glow given the downsampled image",
            ModelConfig::Glow(GlowConfig {
                context: ContextConfig::Downsampled { factor: 4 },
                ..small_glow()
            }),
        ),
        (
            "RealNVP given half of the image",
            ModelConfig::RealNvp(RealNvpConfig {
                context: ContextConfig::Masked { missing: Missing::Right },
                ..small_realnvp()
            }),
        ),
        ("RealNVP given labels", ModelConfig::RealNvp(RealNvpConfig { context: labels, ..small_realnvp() })),
    ]
}

/// Features for `n` examples, where the model takes any.
pub(crate) fn features(config: &ModelConfig, n: usize) -> Option<Tensor> {
    let shape = config.context().shape(config.shape()).unwrap()?;
    Some(normal(&[&[n][..], &shape].concat(), 21, &device()).unwrap())
}

pub(crate) fn models() -> Vec<(&'static str, ModelConfig)> {
    let zca = Preprocess::Zca { epsilon: 0.1 };
    vec![
        ("NICE, paper", ModelConfig::Nice(small_nice())),
        ("NICE, code", ModelConfig::Nice(NiceConfig { order: nice::Order::Reverse, ..small_nice() })),
        (
            "NICE, diagonal from data",
            ModelConfig::Nice(NiceConfig { diagonal_from_data: true, ..small_nice() }),
        ),
        ("NICE, ZCA", ModelConfig::Nice(NiceConfig { preprocess: zca, ..small_nice() })),
        (
            "NICE, affine, vectors",
            ModelConfig::Nice(NiceConfig {
                shape: vec![3],
                law: nice::CouplingTransform::Affine,
                preprocess: Preprocess::None {},
                prior: PriorConfig::Gaussian {},
                ..small_nice()
            }),
        ),
        (
            "NICE, affine, standardized vectors",
            ModelConfig::Nice(NiceConfig {
                shape: vec![3],
                law: nice::CouplingTransform::Affine,
                preprocess: Preprocess::Standardize {},
                prior: PriorConfig::Gaussian {},
                ..small_nice()
            }),
        ),
        ("RealNVP, code", ModelConfig::RealNvp(small_realnvp())),
        (
            "RealNVP, paper, three channels",
            ModelConfig::RealNvp(RealNvpConfig {
                shape: [3, 4, 4],
                statistics: BatchStatistics::Running,
                shift_first: false,
                ..small_realnvp()
            }),
        ),
        (
            "RealNVP as chrischute/real-nvp has it",
            ModelConfig::RealNvp(RealNvpConfig {
                shape: [2, 4, 4],
                norm_couplings: false,
                norm_input: true,
                channel_gains: true,
                diagonal: true,
                ..small_realnvp()
            }),
        ),
        ("Glow, paper", ModelConfig::Glow(small_glow())),
        (
            "Glow, code",
            ModelConfig::Glow(GlowConfig {
                permutation: glow::Permutation::Plain,
                edge_bias: true,
                ..small_glow()
            }),
        ),
        (
            "Glow, additive, shuffle, classes",
            ModelConfig::Glow(GlowConfig {
                law: glow::CouplingTransform::Additive,
                permutation: glow::Permutation::Shuffle,
                classes: Some(3),
                ..small_glow()
            }),
        ),
        (
            "Glow, learned latent, classes",
            ModelConfig::Glow(GlowConfig {
                learn_top: false,
                learn_split: false,
                learn_latent: true,
                classes: Some(3),
                ..small_glow()
            }),
        ),
        (
            "Glow, learned noise",
            ModelConfig::Glow(GlowConfig { bits: 2, dequantize: learned_noise(), ..small_glow() }),
        ),
        (
            "NICE, learned noise",
            ModelConfig::Nice(NiceConfig { bits: 2, dequantize: learned_noise(), ..small_nice() }),
        ),
        (
            "Glow, all learned priors",
            ModelConfig::Glow(GlowConfig { shape: [1, 8, 4], learn_latent: true, ..small_glow() }),
        ),
        (
            "NICE, splines",
            ModelConfig::Nice(NiceConfig {
                shape: vec![3],
                law: CouplingTransform::RationalQuadraticSpline(SPLINE),
                preprocess: Preprocess::Standardize {},
                prior: PriorConfig::Gaussian {},
                ..small_nice()
            }),
        ),
        (
            "Glow, mixtures of logistics",
            ModelConfig::Glow(GlowConfig {
                law: CouplingTransform::MixtureOfLogistics(MIXTURE),
                ..small_glow()
            }),
        ),
        ("MAF", ModelConfig::Maf(small_maf())),
        (
            "MAF, splines, random orders, images",
            ModelConfig::Maf(MafConfig {
                shape: vec![1, 2, 3],
                preprocess: Preprocess::Unit {},
                transform: CouplingTransform::RationalQuadraticSpline(SPLINE),
                order: maf::Order::Random,
                ..small_maf()
            }),
        ),
        (
            "Glow, reverse, fixed priors",
            ModelConfig::Glow(GlowConfig {
                permutation: glow::Permutation::Reverse,
                learn_top: false,
                learn_split: false,
                ..small_glow()
            }),
        ),
        ("composed, checkerboards and 1x1 convolutions", composed(checkered())),
        ("composed, splines and learned priors, classes", composed(splined())),
        ("composed, vectors", composed(vectors())),
    ]
}

/// The config of this text.
pub(crate) fn composed(config: Value) -> ModelConfig {
    serde_json::from_value(config).expect("a config")
}

pub(crate) fn checkered() -> Value {
    let net = json!({ "kind": "res_net", "features": 3, "blocks": 1 });
    let coupling = |partition: &str| {
        let partition = json!({ "kind": partition, "alternate": true });
        let transform = json!({ "kind": "affine", "scale": { "kind": "tanh", "gain": 0.7 } });
        json!({ "kind": "coupling", "partition": partition, "transform": transform, "net": net })
    };
    json!({
        "model": "composed",
        "shape": [1, 4, 4],
        "preprocess": { "kind": "logit", "alpha": 0.05, "scale": "code" },
        "levels": [
            { "layers": [
                { "kind": "steps", "repeat": 3, "layers": ["conv1x1", coupling("checkerboard"), "batch_norm"] },
                "squeeze",
                { "kind": "steps", "repeat": 2, "layers": ["shuffle", coupling("halves"), "actnorm"] },
            ] },
            { "layers": [{ "kind": "steps", "name": "last", "repeat": 2, "layers": [coupling("checkerboard"), "batch_norm"] }] },
        ],
    })
}

pub(crate) fn splined() -> Value {
    let net = json!({ "kind": "conv_net", "width": 5, "edge_bias": true });
    let spline = json!({ "kind": "rational_quadratic_spline", "bins": 5, "bound": 1.5 });
    let other = json!({ "kind": "res_net", "features": 4, "blocks": 1, "batch_norm": false });
    json!({
        "model": "composed",
        "shape": [3, 4, 4],
        "preprocess": { "kind": "centered" },
        "levels": [
            { "layers": [
                "squeeze",
                { "kind": "steps", "repeat": 2, "layers": [
                    "actnorm",
                    { "kind": "conv1x1", "weight": "plain" },
                    { "kind": "coupling", "transform": spline, "net": net },
                    { "kind": "coupling", "partition": { "kind": "halves", "swap": true }, "transform": "additive", "net": other },
                ] },
                { "kind": "split_prior", "edge_bias": true },
            ] },
            { "layers": ["squeeze", { "kind": "channel_prior", "classes": 3 }] },
        ],
        "layers": [
            { "kind": "diagonal_prior", "classes": 3 },
            { "kind": "autoregressive", "order": "random", "hidden": [6] },
        ],
    })
}

fn vectors() -> Value {
    let mlp = json!({ "kind": "mlp", "hidden": [7, 6] });
    let spline = json!({ "kind": "rational_quadratic_spline", "bins": 5, "bound": 1.5 });
    let mixture = json!({ "kind": "mixture_of_logistics", "components": 3 });
    json!({
        "model": "composed",
        "shape": [5],
        "preprocess": { "kind": "standardize" },
        "layers": [
            "even_odd",
            { "kind": "steps", "repeat": 3, "layers": [
                "actnorm",
                "conv1x1",
                { "kind": "coupling", "partition": { "kind": "halves", "alternate": true }, "transform": spline, "net": mlp },
                "batch_norm",
            ] },
            { "kind": "steps", "name": "masked", "repeat": 2, "layers": [
                { "kind": "autoregressive", "alternate": true, "transform": mixture, "hidden": [8] },
                "reverse",
            ] },
            { "kind": "permute", "order": [3, 0, 4, 1, 2] },
            "diagonal",
        ],
        "prior": { "kind": "student_t", "df": 4 },
    })
}
