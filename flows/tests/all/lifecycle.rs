//! A model's life: built, initialised, saved, loaded in a new process, sharded, refused when damaged.

use crate::device;
use crate::small_models::{composed, splined};
use candle_core::{DType, Result, Tensor};
use flows::bijections::BatchStatistics;
use flows::models::{GlowConfig, NiceConfig, Preprocess, RealNvpConfig, glow};
use flows::optim::{Optimizer, Rule};
use flows::testing::normal;
use flows::{Chain, Ctx, Flow, Memory, Model, ModelConfig, ParamStore, SaveOptions};
use std::path::Path;
use std::process::Command;

fn configs() -> Vec<(&'static str, ModelConfig)> {
    let nice = NiceConfig { shape: vec![1, 4, 4], hidden: vec![vec![9]; 3], ..NiceConfig::mnist_paper() };
    let nvp = RealNvpConfig { shape: [1, 4, 4], features: 3, blocks: 1, ..RealNvpConfig::cifar_code() };
    let glow = GlowConfig {
        shape: [3, 8, 8],
        levels: 2,
        depth: 2,
        width: 6,
        edge_bias: true,
        ..GlowConfig::cifar_paper()
    };
    let shuffle = GlowConfig { permutation: glow::Permutation::Shuffle, classes: Some(2), ..glow.clone() };
    let latent = GlowConfig { learn_top: false, learn_latent: true, ..shuffle.clone() };
    let zca = NiceConfig { preprocess: Preprocess::Zca { epsilon: 0.1 }, ..nice.clone() };
    vec![
        ("nice", ModelConfig::Nice(nice)),
        ("zca", ModelConfig::Nice(zca)),
        ("realnvp", ModelConfig::RealNvp(nvp)),
        ("glow", ModelConfig::Glow(glow)),
        ("shuffle", ModelConfig::Glow(shuffle)),
        ("latent", ModelConfig::Glow(latent)),
        ("composed", composed(splined())),
    ]
}

fn pixels(config: &ModelConfig, n: usize) -> Result<Tensor> {
    let mut shape = vec![n];
    shape.extend(config.shape());
    (((normal(&shape, 1, &device())?.tanh()? / 2.2)? + 0.5)? * 256.)?.to_dtype(DType::F32)
}

fn labels(n: usize) -> Result<Tensor> {
    Tensor::from_vec((0..n as u32).map(|i| i % 2).collect::<Vec<_>>(), n, &device())
}

/// Initialised from data, moved by a training pass (running statistics) and perturbed.
fn lived(config: ModelConfig) -> Result<Model> {
    let m = Model::new(config, 5, DType::F32, &device())?;
    let (x, y) = (pixels(m.config(), 24)?, labels(24)?);
    m.init(&x, Some(&y))?;
    m.terms(&x, Ctx::train().with_context(Some(&y)))?;
    m.params().perturb(6, 0.02)?;
    Ok(m)
}

/// After a measurement on one batch, evaluation of this batch is what a training pass computes; on several, the running statistics are
/// the means of those of each. What ran before is gone.
#[test]
fn running_statistics_are_measured_anew() -> Result<()> {
    for statistics in [BatchStatistics::Batch, BatchStatistics::Running] {
        let nvp = RealNvpConfig {
            shape: [1, 4, 4],
            features: 3,
            blocks: 1,
            statistics,
            ..RealNvpConfig::cifar_code()
        };
        let m = lived(ModelConfig::RealNvp(nvp))?;
        let batches = [pixels(m.config(), 24)?, (pixels(m.config(), 10)? * 0.5)?];
        let running = || -> Result<Vec<Vec<f32>>> {
            m.params().running().iter().map(|(_, p)| p.value().to_vec1::<f32>()).collect()
        };
        let mut each = Vec::new();
        for x in &batches {
            m.measure(x, None, 1)?;
            each.push(running()?);
            if statistics == BatchStatistics::Batch {
                let train = m.terms(x, Ctx::train().replay())?.log_prob()?.to_vec1::<f32>()?;
                let eval = m.log_prob(x, None)?.to_vec1::<f32>()?;
                let close = |(a, b): (&f32, &f32)| (a - b).abs() < 1e-4 * b.abs();
                assert!(train.iter().zip(&eval).all(close), "{train:?} {eval:?}");
            }
        }
        assert_ne!(each[0], each[1]);
        for (k, x) in (1..).zip(&batches) {
            m.measure(x, None, k)?;
        }
        for (i, both) in running()?.iter().enumerate() {
            for (c, &both) in both.iter().enumerate() {
                let mean = (each[0][i][c] + each[1][i][c]) / 2.;
                assert!((both - mean).abs() < 1e-4 * (1. + mean.abs()), "{i} {c}: {both} {mean}");
            }
        }
        assert!(m.measure(&batches[0], None, 0).unwrap_err().to_string().contains("from 1"));
    }
    Ok(())
}

fn bits(m: &Model) -> Result<Vec<u32>> {
    let x = pixels(m.config(), 4)?;
    let lp = m.log_prob(&x, Some(&labels(4)?))?.to_vec1::<f32>()?;
    Ok(lp.into_iter().map(f32::to_bits).collect())
}

/// The child half of the next test: with FLOWS_LOAD set it loads that folder and prints log_prob's bits.
#[test]
fn child_prints_log_prob() -> Result<()> {
    let Ok(dir) = std::env::var("FLOWS_LOAD") else { return Ok(()) };
    println!("bits={:?}", bits(&Model::load(dir, &device())?)?);
    Ok(())
}

#[test]
fn a_new_process_gives_bit_equal_log_prob() -> anyhow::Result<()> {
    for (name, config) in configs() {
        let m = lived(config)?;
        let dir = tempfile::tempdir()?;
        m.save(dir.path(), &SaveOptions::default())?;
        let out = Command::new(std::env::current_exe()?)
            .args(["--exact", "lifecycle::child_prints_log_prob", "--nocapture"])
            .env("FLOWS_LOAD", dir.path())
            .output()?;
        let text = String::from_utf8_lossy(&out.stdout);
        assert!(text.contains(&format!("bits={:?}", bits(&m)?)), "{name}: {text}");
    }
    Ok(())
}

twins! {
    fn shards_hold_the_same_model() {
        let m = lived(configs().remove(3).1)?;
        let dir = tempfile::tempdir()?;
        m.save(dir.path(), &SaveOptions { max_shard_size: 4000, dtype: None })?;
        let shards = std::fs::read_dir(dir.path())?
            .filter(|f| f.as_ref().unwrap().file_name().to_string_lossy().starts_with("model-0"))
            .count();
        assert!(shards > 1 && dir.path().join("model.safetensors.index.json").exists());
        assert_eq!(bits(&Model::load(dir.path(), &device())?)?, bits(&m)?);
        // A shard of a later save, of the same config and in as many parts, is not mixed with these.
        let later = tempfile::tempdir()?;
        m.params().perturb(9, 0.1)?;
        m.save(later.path(), &SaveOptions { max_shard_size: 4000, dtype: None })?;
        let second = format!("model-00002-of-{shards:05}.safetensors");
        std::fs::copy(later.path().join(&second), dir.path().join(&second))?;
        let why = Model::load(dir.path(), &device()).err().map(|e| e.to_string()).unwrap_or_default();
        assert!(why.contains(&second) && why.contains("other weights"), "{why}");
        // A later unsharded save in the same folder is the one that is read.
        m.save(dir.path(), &SaveOptions::default())?;
        assert_eq!(bits(&Model::load(dir.path(), &device())?)?, bits(&m)?);
        assert_eq!(std::fs::read_dir(dir.path())?.count(), 2, "the shards are gone");
        Ok(())
    }

    fn half_precision_files_are_computed_in_single() {
        let m = lived(configs().remove(3).1)?;
        let x = pixels(m.config(), 4)?;
        let want = m.bits_per_dim(&x, None)?.to_vec1::<f32>()?;
        for dtype in [DType::F16, DType::BF16] {
            let dir = tempfile::tempdir()?;
            m.save(dir.path(), &SaveOptions { dtype: Some(dtype), ..Default::default() })?;
            let loaded = Model::load(dir.path(), &device())?;
            assert_eq!(loaded.params().dtype(), DType::F32);
            for (a, b) in loaded.bits_per_dim(&x, None)?.to_vec1::<f32>()?.iter().zip(&want) {
                assert!((a - b).abs() < 0.05, "{a} {b}");
            }
        }
        Ok(())
    }
}

/// A model's files are a function of the model: nothing in them is in a random order or of the day.
#[test]
fn the_same_model_is_the_same_files() -> anyhow::Result<()> {
    for (name, config) in configs() {
        for max_shard_size in [1000, usize::MAX] {
            let files = || -> anyhow::Result<Vec<_>> {
                let m = lived(config.clone())?;
                let dir = tempfile::tempdir()?;
                m.save(dir.path(), &SaveOptions { max_shard_size, dtype: Some(DType::BF16) })?;
                let mut files = std::fs::read_dir(dir.path())?
                    .map(|f| Ok((f.as_ref().unwrap().file_name(), std::fs::read(f?.path())?)))
                    .collect::<anyhow::Result<Vec<_>>>()?;
                files.sort();
                Ok(files)
            };
            assert!(files()? == files()?, "{name}");
        }
    }
    Ok(())
}

/// What a half-precision file cannot hold is refused, not saved as an infinity.
#[test]
fn numbers_beyond_a_dtype_are_named() -> anyhow::Result<()> {
    let m = lived(configs().remove(3).1)?;
    let (name, p) = m.params().trained().remove(0);
    p.set(&(p.value() + 1e6)?)?;
    let dir = tempfile::tempdir()?;
    let save = |dtype| m.save(dir.path(), &SaveOptions { dtype: Some(dtype), ..Default::default() });
    let said = save(DType::F16).unwrap_err().to_string();
    assert!(said.contains(&name) && said.contains("F16"), "{said}");
    save(DType::BF16)?;
    Ok(())
}

fn refusal(dir: &Path) -> String {
    match Model::load(dir, &device()) {
        Ok(_) => "loaded".to_string(),
        Err(e) => e.to_string(),
    }
}

#[test]
fn damage_is_named() -> anyhow::Result<()> {
    let m = lived(configs().remove(3).1)?;
    let dir = tempfile::tempdir()?;
    let d = dir.path();
    assert!(refusal(d).contains("config.json"), "{}", refusal(d));
    m.save(d, &SaveOptions::default())?;
    let (config, weights) = (d.join("config.json"), d.join("model.safetensors"));
    let json = std::fs::read_to_string(&config)?;
    std::fs::write(&config, json.replace("\"depth\": 2", "\"depth\": 3"))?;
    assert!(refusal(d).contains("config with the sha256"), "{}", refusal(d));
    // One bit of one number, wherever it is: shards alike.
    std::fs::write(&config, &json)?;
    let whole = std::fs::read(&weights)?;
    let header = 8 + u64::from_le_bytes(whole[..8].try_into()?) as usize;
    for at in [header, header + 333, whole.len() - 1] {
        let mut flipped = whole.clone();
        flipped[at] ^= 1;
        std::fs::write(&weights, flipped)?;
        assert!(refusal(d).contains("some bits have changed"), "{at}: {}", refusal(d));
    }
    std::fs::write(&weights, &whole)?;
    let sharded = tempfile::tempdir()?;
    m.save(sharded.path(), &SaveOptions { max_shard_size: 1000, ..Default::default() })?;
    let files =
        std::fs::read_dir(sharded.path())?.map(|f| Ok(f?.path())).collect::<std::io::Result<Vec<_>>>()?;
    let shard =
        files.iter().find(|p| p.to_string_lossy().contains("model-00002-of-")).expect("there are shards");
    let mut flipped = std::fs::read(shard)?;
    *flipped.last_mut().expect("a shard has tensors") ^= 4;
    std::fs::write(shard, flipped)?;
    assert!(refusal(sharded.path()).contains("some bits have changed"), "{}", refusal(sharded.path()));
    // Written again without the hash: names and shapes tell.
    let tensors = candle_core::safetensors::load(&weights, &device())?;
    candle_core::safetensors::save(&tensors, &weights)?;
    let bytes = std::fs::read(&weights)?;
    for (from, to, say) in [
        ("\"depth\": 2", "\"depth\": 3", "step2.actnorm.bias` is missing"),
        ("\"depth\": 2", "\"depth\": 1", "belong to no layer"),
        ("\"width\": 6", "\"width\": 7", "has shape"),
        ("\"width\"", "\"breadth\"", "breadth"),
        ("\"format\": 2", "\"format\": 3", "newer"),
    ] {
        assert!(json.contains(from));
        std::fs::write(&config, json.replace(from, to))?;
        assert!(refusal(d).contains(say), "{from} -> {to}: {}", refusal(d));
    }
    std::fs::write(&config, &json)?;
    for cut in [0, 5, 100, bytes.len() - 1] {
        std::fs::write(&weights, &bytes[..cut])?;
        assert!(refusal(d).contains("model.safetensors"), "{cut}: {}", refusal(d));
    }
    // A NaN in the weights; indices that are no permutation; a sign that is none.
    std::fs::write(&weights, &bytes)?;
    let nan = Tensor::full(f32::NAN, 6, &device())?;
    let twice = Tensor::zeros(12, DType::U32, &device())?;
    let half = Tensor::full(0.5f32, 12, &device())?;
    for (name, t, say) in [
        ("level0.step0.net.norm1.bias", nan, "NaN"),
        ("level0.step0.permutation.perm", twice, "no permutation"),
        ("level0.step0.permutation.sign", half, "other than 1 and -1"),
    ] {
        let mut changed = tensors.clone();
        assert_eq!(
            changed.insert(name.to_string(), t.clone()).map(|o| o.dims().to_vec()),
            Some(t.dims().to_vec())
        );
        candle_core::safetensors::save(&changed, &weights)?;
        assert!(refusal(d).contains(say), "{name}: {}", refusal(d));
    }
    Ok(())
}

twins! {
    /// What is kept from one inverse to the next follows the weights: changed by hand, by an optimiser, and back.
    fn inverses_follow_the_weights() {
        let m = lived(configs().remove(3).1)?;
        let x = pixels(m.config(), 4)?;
        let error = || -> Result<f32> {
            let back = m.decode(&m.encode(&x, None)?, None)?;
            (back - &x)?.abs()?.flatten_all()?.max(0)?.to_scalar()
        };
        let before = error()?;
        assert!(before < 0.5, "{before}");
        m.params().perturb(12, 0.05)?;
        assert!(error()? < 1., "after a change by hand: {}", error()?);
        let mut opt = Optimizer::new(Rule::Adam { b1: 0.9, b2: 0.999, eps: 1e-8 }, m.params())?;
        let (_, grads) = m.gradients(&x, Ctx::train(), Memory::Store, |lp| lp.mean_all()? * -1e-3)?;
        opt.step(&grads, 0.02, 1.)?;
        assert!(error()? < 1., "after a step: {}", error()?);
        Ok(())
    }

    /// Sampling is reproducible, honours the temperature and wants class labels where there are classes.
    fn samples() {
        let m = lived(configs().remove(4).1)?;
        let y = labels(3)?;
        let draw = |t: f64, seed: u64| -> Result<Vec<f32>> {
            m.sample(3, t, seed, Some(&y))?.flatten_all()?.to_vec1::<f32>()
        };
        assert_eq!(draw(0.7, 1)?, draw(0.7, 1)?);
        assert_ne!(draw(0.7, 1)?, draw(0.7, 2)?);
        // At temperature 0 two samples of one class are the same image.
        let cold = m.sample(3, 0., 1, Some(&y))?;
        let same = (cold.get(0)? - cold.get(2)?)?.abs()?.sum_all()?.to_scalar::<f32>()?;
        assert_eq!(same, 0.);
        assert!(m.sample(3, 0.7, 1, None).unwrap_err().to_string().contains("class"));
        let far = Tensor::new(&[0u32, 9, 0], &device())?;
        assert!(m.sample(3, 0.7, 1, Some(&far)).unwrap_err().to_string().contains("class 9"));
        assert!(m.sample(3, -1., 1, Some(&y)).is_err());
        Ok(())
    }
}

#[derive(serde::Serialize, serde::Deserialize)]
#[serde(deny_unknown_fields)]
struct OwnConfig {
    layers: usize,
}

fn build(config: &OwnConfig, params: &ParamStore) -> Result<Flow> {
    let mut chain = Chain::new();
    for i in 0..config.layers {
        chain.push(format!("layer{i}"), flows::bijections::Diagonal::new(2, &params.vb().pp(i))?);
    }
    Ok(Flow::new(chain, flows::priors::Gaussian, &[2]))
}

#[test]
fn a_flow_of_ones_own_is_saved_and_loaded() -> Result<()> {
    let (dir, device) = (tempfile::tempdir()?, device());
    let config = OwnConfig { layers: 2 };
    let params = ParamStore::seeded(0, DType::F64, &device);
    let flow = build(&config, &params)?;
    params.perturb(1, 0.5)?;
    params.save(dir.path(), &config, &SaveOptions::default())?;
    let (loaded, again) = ParamStore::load(dir.path(), None, &device, build)?;
    assert_eq!((again.dtype(), again.count()), (DType::F64, 4));
    let x = normal(&[5, 2], 2, &device)?;
    let [want, got] = [flow, loaded].map(|flow| flow.log_prob(&x, None)?.to_vec1::<f64>());
    assert_eq!(want?, got?);

    let error = |built: Result<(Flow, ParamStore)>| built.err().expect("refused").to_string();
    let fewer = |_: &OwnConfig, params: &ParamStore| build(&OwnConfig { layers: 1 }, params);
    let extra = error(ParamStore::load(dir.path(), None, &device, fewer));
    assert!(extra.contains("`1.logs`") && extra.contains("belong to no layer"), "{extra}");
    let more = |_: &OwnConfig, params: &ParamStore| build(&OwnConfig { layers: 3 }, params);
    let missing = error(ParamStore::load(dir.path(), None, &device, more));
    assert!(missing.contains("`2.logs` is missing"), "{missing}");
    let no_model = Model::load(dir.path(), &device).unwrap_err().to_string();
    assert!(no_model.contains("config.json: not a model's config"), "{no_model}");
    Ok(())
}
