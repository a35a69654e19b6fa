//! Configs that list their layers: each paper's model as such a list is the same model to the bit, and a list that cannot be is
//! refused by the place of its layer.

use crate::device;
use crate::laws::input;
use crate::small_models::{composed, models, splined};
use candle_core::{DType, Result, Tensor};
use flows::core::inspect;
use flows::models::{GlowConfig, MafConfig, NiceConfig, RealNvpConfig, file};
use flows::{Ctx, Model, ModelConfig};
use serde_json::{Value, json};

/// The bits of all numbers.
fn bits(t: &Tensor) -> Result<Vec<u64>> {
    Ok(t.flatten_all()?.to_vec1::<f64>()?.into_iter().map(f64::to_bits).collect())
}

/// The config as JSON and back.
fn reread(config: &ModelConfig) -> anyhow::Result<ModelConfig> {
    Ok(serde_json::from_value(serde_json::to_value(config)?)?)
}

twins! {
    /// Same names, same initial values, same log-likelihoods and latents, in either direction.
    fn the_papers_models_are_lists_of_layers() {
        for (name, config) in models() {
            let list = reread(&ModelConfig::Composed(config.composed()?))?;
            let model = Model::new(config, 3, DType::F64, &device())?;
            let other = Model::new(list.clone(), 3, DType::F64, &device())?;
            let values = |m: &Model| -> Result<Vec<(String, Vec<u64>)>> {
                let floats = m.params().all().into_iter().filter(|(_, p)| p.value().dtype().is_float());
                floats.map(|(name, p)| Ok((name, bits(p.value())?))).collect()
            };
            assert_eq!(values(&model)?, values(&other)?, "{name}");

            model.params().perturb(11, 0.1)?;
            let labels = Tensor::new(&[0u32, 1, 2, 0, 1, 2, 0, 1], &device())?;
            model.init(&input(model.config(), 8)?, Some(&labels))?;
            let tensors = model.params().all().into_iter().map(|(name, p)| Ok((name, p.value().copy()?)));
            let other = Model::from_tensors(list, tensors.collect::<Result<_>>()?, DType::F64, &device())?;
            let (x, y) = (input(model.config(), 2)?, labels.narrow(0, 1, 2)?);
            let of = |m: &Model| -> Result<[Vec<u64>; 3]> {
                let z = m.encode(&x, Some(&y))?;
                Ok([bits(&m.log_prob(&x, Some(&y))?)?, bits(&z)?, bits(&m.decode(&z, Some(&y))?)?])
            };
            assert_eq!(of(&model)?, of(&other)?, "{name}");
        }
        Ok(())
    }
}

/// What is written is read as the same, with every setting, and a layer without settings of its own is a word.
#[test]
fn lists_are_read_as_they_are_written() -> anyhow::Result<()> {
    let papers = [
        ModelConfig::Nice(NiceConfig::cifar_code()),
        ModelConfig::RealNvp(RealNvpConfig::cifar_paper()),
        ModelConfig::Glow(GlowConfig::cifar_code()),
    ];
    for config in papers.into_iter().chain(models().into_iter().map(|(_, config)| config)) {
        let list = ModelConfig::Composed(config.composed()?);
        assert_eq!(reread(&list)?, list);
        let size = (config.size()?, list.size()?);
        assert_eq!(size.0, size.1);
    }
    let ModelConfig::Composed(list) = composed(splined()) else { unreachable!() };
    let level = serde_json::to_value(&list.levels[0])?;
    assert_eq!(level["layers"][0], "squeeze");
    assert_eq!(level["layers"][1]["layers"][0], json!({ "kind": "actnorm", "factor": 3.0 }));
    assert_eq!(level["layers"][1]["layers"][3]["transform"], "additive");
    Ok(())
}

/// Paths of tensors: by the layers' words, their names, and the steps they are in.
#[test]
fn tensors_have_the_names_of_their_layers() -> anyhow::Result<()> {
    let coupling = json!({ "kind": "coupling", "net": { "kind": "mlp", "hidden": [] } });
    let config = composed(json!({
        "model": "composed", "shape": [4], "preprocess": { "kind": "none" },
        "layers": [
            { "kind": "steps", "repeat": 1, "layers": [coupling, coupling, "actnorm"] },
            "reverse",
            { "kind": "reverse", "name": "mine" },
            "reverse",
            { "kind": "steps", "repeat": 1, "layers": [{ "kind": "coupling", "name": "own", "net": { "kind": "mlp", "hidden": [] } }] },
            coupling,
        ],
    }));
    let model = Model::new(config, 1, DType::F32, &device())?;
    let names: Vec<String> = model.params().all().into_iter().map(|(name, _)| name).collect();
    for name in [
        "step0.gain",
        "step0.net.0.weight",
        "step0.coupling1.gain",
        "step0.actnorm.bias",
        "permutation.index",
        "mine.index",
        "permutation1.index",
        "step1.own.net.0.weight",
        "coupling.net.0.weight",
    ] {
        assert!(names.iter().any(|n| n == name), "{name} is not in {names:?}");
    }
    let x = Tensor::zeros((2, 4), DType::F32, &device())?;
    let links: Vec<String> =
        inspect::trace(model.bijection(), &x, Ctx::eval())?.into_iter().map(|e| e.path).collect();
    for link in ["step0", "step0.coupling1", "step0.actnorm", "coupling"] {
        assert!(links.iter().any(|l| l == link), "{link} is not in {links:?}");
    }
    Ok(())
}

/// One sentence that says where the layer is and what to do.
#[test]
fn lists_that_cannot_be_are_refused_by_their_place() {
    let images = |layers: Value| json!({ "shape": [3, 6, 6], "preprocess": { "kind": "centered" }, "levels": [{ "layers": layers }] });
    let vectors = |layers: Value| json!({ "shape": [4], "preprocess": { "kind": "none" }, "layers": layers });
    let coupling = |rest: Value| {
        let mut table = json!({ "kind": "coupling", "net": { "kind": "conv_net", "width": 4 } });
        table.as_object_mut().unwrap().extend(rest.as_object().unwrap().clone());
        table
    };
    let plain = || coupling(json!({}));
    let steps = |layer: Value| json!({ "kind": "steps", "repeat": 2, "layers": [layer] });
    let mlp = json!({ "net": { "kind": "mlp", "hidden": [4] } });
    let spline = |bound: f64| {
        coupling(json!({ "transform": { "kind": "rational_quadratic_spline", "bound": bound } }))
    };
    let cases = [
        (
            images(json!(["squeze"])),
            "levels.0: layers.0: unknown variant `squeze`, expected one of `steps`, `squeeze`",
        ),
        (
            images(json!(["squeeze", steps(coupling(json!({ "transform": "splin" })))])),
            "levels.0: layers.1 (steps): layers.0 (coupling): unknown variant `splin`",
        ),
        (
            images(json!([coupling(json!({ "net": { "kind": "conv_net", "widht": 4 } }))])),
            "levels.0: layers.0 (coupling): unknown field `widht`",
        ),
        (images(json!([{ "kind": "actnorm", "name": "a b" }])), "layers.0 (actnorm): `name` = \"a b\""),
        (images(json!(["squeeze", "squeeze"])), "`levels.0.layers.1` (squeeze): cannot squeeze 3x3"),
        (
            images(json!([steps(json!("squeeze"))])),
            "`levels.0.layers.0` (steps): a step leaves the shape as it is",
        ),
        (
            images(json!([plain(), steps(coupling(mlp.clone()))])),
            "`levels.0.layers.1` (steps): `layers.0` (coupling): `net`: an mlp takes vectors",
        ),
        (vectors(json!([plain()])), "`layers.0` (coupling): `net`: convolutions take images"),
        (
            images(json!([{ "kind": "autoregressive", "hidden": [4] }])),
            "`levels.0.layers.0` (autoregressive): this layer takes vectors",
        ),
        (vectors(json!(["squeeze"])), "`layers.0` (squeeze): this layer takes images"),
        (images(json!([spline(0.)])), "`levels.0.layers.0` (coupling): `bound` = 0: it must be above 0"),
        (
            images(json!([{ "kind": "batch_norm", "eps": 0.0 }])),
            "(batch_norm): `eps` = 0: it must be above 0",
        ),
        (
            images(json!([{ "kind": "permute", "order": [0, 2, 2] }])),
            "`order` must hold each of the 3 channels once",
        ),
        (
            images(json!([{ "kind": "steps", "repeat": 0, "layers": [] }])),
            "(steps): `repeat` = 0: it must be at least 1",
        ),
        (
            vectors(json!([{ "kind": "autoregressive", "hidden": [1u64 << 40] }])),
            "`hidden` = 1099511627776 is more than 16777216",
        ),
        (
            vectors(
                json!([{ "kind": "autoregressive", "hidden": [], "order": "random", "alternate": true }]),
            ),
            "`alternate`",
        ),
        (
            images(json!([coupling(
                json!({ "net": { "kind": "res_net", "features": 2, "blocks": 1, "channel_gains": true } })
            )])),
            "`channel_gains` are factors of an affine transform",
        ),
        (
            json!({ "shape": [1, 4, 4], "preprocess": { "kind": "unit" }, "levels": [{ "layers": [plain()] }] }),
            "an image of one channel has no halves: put `squeeze` before it",
        ),
        (
            json!({ "shape": [1, 4, 4], "preprocess": { "kind": "unit" }, "levels": [{ "layers": [] }, { "layers": [] }] }),
            "`levels.0` ends with one channel",
        ),
        (
            json!({ "shape": [4], "preprocess": { "kind": "none" }, "levels": [{ "layers": [] }] }),
            "`levels` are for images",
        ),
        (
            json!({
                "shape": [4], "preprocess": { "kind": "none" }, "layers": [{ "kind": "diagonal_prior", "classes": 3 }],
                "prior": { "kind": "diagonal_gaussian", "classes": 2 },
            }),
            "`classes` = 3 here and 2 there",
        ),
    ];
    for (mut config, said) in cases {
        config["model"] = "composed".into();
        let text = json!({ "format": 2, "flows_version": "", "parameters": 0, "config": config }).to_string();
        let built = file::parse_config(text.as_bytes()).and_then(|c| Model::new(c, 1, DType::F32, &device()));
        let error = built.unwrap_err().to_string();
        assert!(error.contains(said), "{said}: {error}");
    }
}

/// The papers' words stay in the errors of the papers' models.
#[test]
fn papers_models_are_refused_in_their_own_words() {
    let glow = GlowConfig { levels: 6, ..GlowConfig::cifar_paper() };
    let e = Model::new(ModelConfig::Glow(glow), 1, DType::F32, &device()).unwrap_err().to_string();
    assert!(e.contains("cannot squeeze 1x1 at level 6 of 6") && e.contains("use `levels = 5`"), "{e}");
    let maf = MafConfig { layers: 0, ..crate::small_models::small_maf() };
    let e = Model::new(ModelConfig::Maf(maf), 1, DType::F32, &device()).unwrap_err().to_string();
    assert!(e.contains("`layers` = 0"), "{e}");
}
