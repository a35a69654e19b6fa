//! Whole runs of a tiny model: resume, validation, errors, and the GPU path on emulated kernels.

#[cfg(feature = "emulate")]
use super::run::train_in_pool;
use super::{Outcome, Progress, StoppedBy, train};
use crate::data::{Dataset, Parts, Split, Values};
use crate::evaluate::{EvalOptions, evaluate};
use crate::ranks::Single;
use crate::recipe::{Data, Eval, LossUnit, Lower, Recipe, Schedule, Train};
use crate::run_dir::{BEST, CHECKPOINT, METRICS};
use anyhow::Result;
use candle_core::Device;
use flows::models::{GlowConfig, RealNvpConfig};
use flows::ops::precision::Precision;
use flows::optim::Rule;
use flows::{Memory, Model, ModelConfig};
use std::collections::BTreeMap;
use std::fs;
use std::path::Path;
use std::sync::atomic::{AtomicBool, Ordering};

mod ranks;

pub(super) fn recipe() -> Recipe {
    let model = GlowConfig { shape: [1, 4, 4], levels: 2, depth: 1, width: 6, ..GlowConfig::cifar_paper() };
    Recipe {
        name: "tiny".to_string(),
        about: "A test.".to_string(),
        data: Data { set: "npy".to_string(), train: None, validation: 8, test: None, size: None, seed: 0 },
        model: ModelConfig::Glow(model),
        train: Train {
            batch: 7,
            epochs: None,
            updates: Some(12),
            minutes: None,
            optimizer: Rule::Adam { b1: 0.9, b2: 0.999, eps: 1e-8 },
            lr: 1e-3,
            schedule: Schedule::Cosine { end: 0.1 },
            lower: None,
            warmup_images: 30,
            clip_norm: Some(1.),
            loss: LossUnit::BitsPerDim,
            ema: Some(0.9),
            l2: 1e-5,
            weight_decay: 0.,
            memory: Memory::Store,
            precision: Precision::Full,
            deterministic: true,
            probe_every: 4,
            init_images: 16,
            hflip: true,
            shift: 0.25,
            validate_every: 5,
            validate_images: None,
            patience: None,
            checkpoint_every: 3,
            log_every: 2,
            init_from: None,
            seed: 3,
        },
        eval: Eval::default(),
        paper: None,
        source: BTreeMap::new(),
    }
}

fn split(n: usize) -> Split {
    // Four columns of one grey value each, nearly: there is something to learn.
    let grey = |i: usize, x: usize| 20 + 11 * ((5 * i + 3 * x) % 17);
    let values = (0..n * 16).map(|i| (grey(i / 16, i % 4) + (i * i * 7) % 5) as u8).collect();
    Split::new(vec![1, 4, 4], Values::Pixels(values), None, None).unwrap()
}

fn data() -> Dataset {
    Dataset {
        name: "tiny".to_string(),
        train: split(40),
        valid: Some(split(8)),
        test: split(8),
        classes: vec![],
        attribute_names: vec![],
        entropy: None,
        entropy_of_bits: None,
        parts: Parts::Named,
        revision: "test".to_string(),
    }
}

/// Presses Ctrl-C after update `stop_after`.
#[derive(Default)]
struct Show<'a> {
    stop_after: Option<(u64, &'a AtomicBool)>,
    steps: Vec<u64>,
    messages: Vec<String>,
}

impl Progress for Show<'_> {
    fn begin(&mut self, _: u64, _: Option<u64>) {}
    fn step(&mut self, update: u64, bits: f64, pace: f64, left: Option<f64>) {
        assert!(bits.is_finite() && pace > 0. && left.is_some());
        self.steps.push(update);
        if let Some((at, stop)) = self.stop_after {
            stop.store(update >= at, Ordering::Relaxed);
        }
    }
    fn validation(&mut self, _: u64, bits: f64, best: f64) {
        assert!(best <= bits);
    }
    fn message(&mut self, text: &str) {
        self.messages.push(text.to_string());
    }
}

fn run(recipe: &Recipe, out: &Path) -> Result<Outcome> {
    train(recipe, &data(), &Device::Cpu, out, &mut Show::default(), &AtomicBool::new(false), &Single)
}

fn run_until(recipe: &Recipe, out: &Path, update: u64) -> Result<(Outcome, Show<'static>)> {
    let stop = AtomicBool::new(false);
    let mut show = Show { stop_after: Some((update, &stop)), ..Show::default() };
    let outcome = train(recipe, &data(), &Device::Cpu, out, &mut show, &stop, &Single)?;
    Ok((outcome, Show { stop_after: None, steps: show.steps, messages: show.messages }))
}

fn updates_in(out: &Path) -> Vec<u64> {
    let text = fs::read_to_string(out.join(METRICS)).unwrap();
    let update = |l: &str| serde_json::from_str::<serde_json::Value>(l).unwrap()["update"].as_u64().unwrap();
    text.lines().map(update).collect()
}

/// The tensors of a safetensors file, as bytes.
fn tensors(path: &Path) -> BTreeMap<String, Vec<u8>> {
    let bytes = fs::read(path).unwrap();
    let file = safetensors::SafeTensors::deserialize(&bytes).unwrap();
    file.tensors().into_iter().map(|(n, v)| (n, v.data().to_vec())).collect()
}

fn same(a: &Path, b: &Path) {
    for file in ["model.safetensors", CHECKPOINT] {
        assert_eq!(tensors(&a.join(file)), tensors(&b.join(file)), "{file}");
    }
}

#[test]
fn a_run_learns_and_leaves_its_files() -> Result<()> {
    let out = tempfile::tempdir()?;
    let mut r = recipe();
    r.train.updates = Some(60);
    r.train.lr = 1e-2;
    let outcome = run(&r, out.path())?;
    assert!(outcome.finished && outcome.stopped_by == StoppedBy::Updates);
    assert_eq!((outcome.updates, outcome.images_seen, outcome.epochs), (60, 420, 10.5));
    let lines = fs::read_to_string(out.path().join(METRICS))?;
    let lines: Vec<serde_json::Value> = lines.lines().map(serde_json::from_str).collect::<Result<_, _>>()?;
    let train: Vec<f64> = lines.iter().filter_map(|l| l["train_bits_per_dim"].as_f64()).collect();
    assert_eq!(train.len(), 30);
    assert!(train[29] < train[0] - 0.1, "{train:?}");
    let valid: Vec<_> = lines.iter().filter(|l| l["validation_bits_per_dim"].is_f64()).collect();
    assert_eq!(valid.len(), 12);
    assert!(valid.iter().all(|l| l["reconstruction_error"].as_f64().unwrap() < 0.5));
    // The saved model is the one of the best validation.
    let (update, bits) = outcome.best_validation.unwrap();
    assert!(update.is_multiple_of(5));
    let model = Model::load(out.path(), &Device::Cpu)?;
    let o = EvalOptions {
        batch: 100,
        draws: 1,
        importance: 1,
        seed: 3,
        limit: None,
        progress: None,
        ranks: &Single,
    };
    let e = evaluate(&model, &split(8), &o)?;
    assert!((e.bits_per_dim - bits).abs() < 1e-6);
    // The same call again has nothing to do.
    let again = run(&r, out.path())?;
    assert_eq!((again.updates, again.best_validation), (60, outcome.best_validation));
    Ok(())
}

/// A gain and the network that it multiplies both start at zero here.
#[test]
fn parameters_that_learn_nothing_are_named() -> Result<()> {
    let scale = serde_json::json!({ "kind": "tanh", "gain": 0 });
    let coupling = serde_json::json!({
        "kind": "coupling",
        "partition": { "kind": "checkerboard" },
        "transform": { "kind": "affine", "scale": scale },
        "net": { "kind": "res_net", "features": 2, "blocks": 1 },
    });
    let model = serde_json::json!({
        "model": "composed",
        "shape": [1, 4, 4],
        "preprocess": { "kind": "centered" },
        "levels": [{ "layers": [coupling] }],
    });
    let stuck = Recipe { model: serde_json::from_value(model)?, ..recipe() };
    for (recipe, names) in [(stuck, true), (recipe(), false)] {
        let out = tempfile::tempdir()?;
        let messages = run_until(&recipe, out.path(), u64::MAX)?.1.messages;
        let named = |m: &String| m.contains("learn nothing, the first of them `level0.coupling.gain`");
        assert_eq!(messages.iter().filter(|m| named(m)).count(), usize::from(names), "{messages:?}");
    }
    Ok(())
}

#[test]
fn an_interrupted_run_ends_with_the_same_bits() -> Result<()> {
    for memory in [Memory::Store, Memory::Recompute] {
        let mut recipe = recipe();
        recipe.train.memory = memory;
        let (straight, broken) = (tempfile::tempdir()?, tempfile::tempdir()?);
        let whole = run(&recipe, straight.path())?;
        for stop in [1, 5, 6, 11] {
            let (outcome, show) = run_until(&recipe, broken.path(), stop)?;
            assert!(!outcome.finished && outcome.stopped_by == StoppedBy::Interrupt);
            assert_eq!((outcome.updates, show.steps.last()), (stop, Some(&stop)));
            // Before the first validation, too, there is a model to look at.
            Model::load(broken.path(), &Device::Cpu)?;
        }
        let resumed = run(&recipe, broken.path())?;
        assert_eq!(resumed.best_validation, whole.best_validation);
        assert_eq!(resumed.train_bits_per_dim, whole.train_bits_per_dim);
        assert_eq!(updates_in(broken.path()), updates_in(straight.path()));
        same(straight.path(), broken.path());
    }
    Ok(())
}

/// Running statistics of the last weights are those of other weights than the averaged ones that are saved.
#[test]
fn averaged_weights_have_running_statistics_of_their_own() -> Result<()> {
    let mut r = recipe();
    let config = RealNvpConfig { shape: [1, 4, 4], features: 2, blocks: 1, ..RealNvpConfig::cifar_code() };
    r.model = ModelConfig::RealNvp(config);
    for ema in [Some(0.9), None] {
        r.train.ema = ema;
        let (straight, broken) = (tempfile::tempdir()?, tempfile::tempdir()?);
        run(&r, straight.path())?;
        run_until(&r, broken.path(), 6)?;
        run(&r, broken.path())?;
        same(straight.path(), broken.path());

        let (checkpoint, model) =
            (tensors(&straight.path().join(BEST)), tensors(&straight.path().join("model.safetensors")));
        let running = model.iter().filter(|(name, _)| name.ends_with(".mean") || name.ends_with(".var"));
        let mut n = 0;
        for (name, saved) in running {
            assert_eq!(*saved == checkpoint[&format!("param/{name}")], ema.is_none(), "{name}");
            n += 1;
        }
        assert!(n > 0);
    }
    Ok(())
}

#[test]
fn a_model_that_was_not_saved_after_its_checkpoint_is_saved_on_resume() -> Result<()> {
    let (straight, broken) = (tempfile::tempdir()?, tempfile::tempdir()?);
    let mut r = recipe();
    r.train.updates = Some(5);
    run(&r, straight.path())?;
    run(&r, broken.path())?;
    for file in ["model.safetensors", "config.json"] {
        fs::remove_file(broken.path().join(file))?;
    }
    fs::write(broken.path().join("model.safetensors.tmp123"), b"cut sho")?;
    run(&r, broken.path())?;
    same(straight.path(), broken.path());
    assert!(!broken.path().join("model.safetensors.tmp123").exists());
    Ok(())
}

#[test]
fn another_recipe_does_not_resume_and_more_updates_do() -> Result<()> {
    let out = tempfile::tempdir()?;
    let mut r = recipe();
    r.train.schedule = Schedule::Constant;
    r.train.updates = Some(5);
    run(&r, out.path())?;
    r.train.lr = 2e-3;
    let err = run(&r, out.path()).unwrap_err().to_string();
    assert!(err.contains("`train.lr` is 0.002 now") && err.contains("0.001"), "{err}");
    r.train.lr = 1e-3;
    r.train.ema = None;
    let err = run(&r, out.path()).unwrap_err().to_string();
    assert!(err.contains("`train.ema` is not set now"), "{err}");
    r.train.ema = Some(0.9);
    r.train.updates = Some(8);
    r.about = "Other words.".to_string();
    assert_eq!(run(&r, out.path())?.updates, 8);
    let mut other = data();
    other.revision = "more".to_string();
    let stop = AtomicBool::new(false);
    let err = train(&r, &other, &Device::Cpu, out.path(), &mut Show::default(), &stop, &Single).unwrap_err();
    assert!(err.to_string().contains("data.revision"), "{err}");
    Ok(())
}

/// A cosine falls over the whole run: with another length the updates that were made had other rates.
#[test]
fn a_run_is_extended_where_its_schedule_allows_and_never_shortened() -> Result<()> {
    let out = tempfile::tempdir()?;
    let mut r = recipe();
    r.train.updates = Some(6);
    assert!(run(&r, out.path())?.extended.is_empty());
    let checkpoint = fs::read(out.path().join(CHECKPOINT))?;
    r.train.updates = Some(12);
    let err = run(&r, out.path()).unwrap_err().to_string();
    assert!(err.contains("`train.updates` is 12 now") && err.contains("cosine"), "{err}");
    (r.train.updates, r.train.epochs) = (Some(6), Some(1.));
    let err = run(&r, out.path()).unwrap_err().to_string();
    assert!(err.contains("`train.epochs` is 1.0 now") && err.contains("cosine"), "{err}");
    assert_eq!(fs::read(out.path().join(CHECKPOINT))?, checkpoint);

    for schedule in [Schedule::Constant, Schedule::Divide { factor: 1.1, min: 1e-5 }] {
        let out = tempfile::tempdir()?;
        (r.train.schedule, r.train.epochs) = (schedule, None);
        let lengths = [(6, vec![]), (9, vec![6]), (12, vec![6, 9]), (12, vec![6, 9])];
        for (updates, extended) in lengths {
            r.train.updates = Some(updates);
            let outcome = run(&r, out.path())?;
            assert_eq!((outcome.updates, outcome.extended), (updates, extended));
        }
        r.train.updates = Some(11);
        let err = run(&r, out.path()).unwrap_err().to_string();
        assert!(err.contains("has made 12 updates, and `train.updates` asks for 11"), "{err}");
        (r.train.updates, r.train.epochs) = (Some(12), Some(1.));
        let err = run(&r, out.path()).unwrap_err().to_string();
        assert!(err.contains("has made 12 updates, and `train.epochs` asks for 6"), "{err}");
        (r.train.epochs, r.train.minutes) = (None, Some(1e-9));
        let err = run(&r, out.path()).unwrap_err().to_string();
        assert!(err.contains("`train.minutes` is"), "{err}");
        r.train.minutes = None;
    }
    Ok(())
}

/// A run whose training goes bad long before a number is not finite has a checkpoint of before that, and a lower rate
/// goes on from it as if it had been lowered there.
#[test]
fn a_lower_rate_goes_on_from_the_best_checkpoint() -> Result<()> {
    for validated in [true, false] {
        let set = if validated { data() } else { Dataset { valid: None, ..data() } };
        let never = AtomicBool::new(false);
        let go =
            |r: &Recipe, out: &Path| train(r, &set, &Device::Cpu, out, &mut Show::default(), &never, &Single);
        let (out, straight) = (tempfile::tempdir()?, tempfile::tempdir()?);
        let mut r = recipe();
        r.train.schedule = Schedule::Divide { factor: 0.2, min: 0. };
        (r.train.validate_every, r.train.checkpoint_every, r.train.lr) = (1, 1, 1e-6);
        (r.train.log_every, r.train.warmup_images, r.train.updates) = (1, 0, Some(40));
        let err = go(&r, out.path()).unwrap_err().to_string();
        assert!(err.contains("is kept in"), "{err}");
        let word = |text: &str, after: &str| -> u64 {
            let rest = text.split(after).nth(1).unwrap_or_else(|| panic!("{after}: {text}"));
            rest.split(|c: char| !c.is_ascii_digit()).next().unwrap().parse().unwrap()
        };
        let (last, best) = (word(&err, "checkpoint, of update "), word(&err, "train.lower.after="));
        assert!(best < last, "{err}");
        assert_eq!(err.contains(&format!("the best model, of update {best} with ")), validated, "{err}");
        // A divergence before it is another run.
        r.train.updates = Some(last + 2);
        r.train.lower = Some(Lower { after: best - 1, factor: 1e-20 });
        let refused = go(&r, out.path()).unwrap_err().to_string();
        assert!(refused.contains("train.lower") && refused.contains("depend on it"), "{refused}");
        r.train.lower = Some(Lower { after: best, factor: 1e-20 });
        assert_eq!(go(&r, out.path())?.updates, last + 2);
        go(&r, straight.path())?;
        same(straight.path(), out.path());
        assert_eq!(updates_in(out.path()), updates_in(straight.path()));
    }
    Ok(())
}

#[test]
fn a_loss_that_is_not_finite_names_layer_and_update_and_keeps_the_checkpoint() -> Result<()> {
    let out = tempfile::tempdir()?;
    let mut r = recipe();
    // A rate that throws the parameters beyond f32.
    (r.train.lr, r.train.schedule, r.train.warmup_images) = (1e30, Schedule::Constant, 0);
    let err = run(&r, out.path()).unwrap_err().to_string();
    assert!(err.contains("the loss of update 2 is not finite, first in layer `level0."), "{err}");
    assert!(err.contains("there is no checkpoint yet") && err.contains("train.lr"), "{err}");
    r.train.checkpoint_every = 1;
    let err = run(&r, out.path()).unwrap_err().to_string();
    assert!(err.contains("of update 1, is kept in") && err.contains(CHECKPOINT), "{err}");
    let before = fs::read(out.path().join(CHECKPOINT))?;
    run(&r, out.path()).unwrap_err();
    assert_eq!(fs::read(out.path().join(CHECKPOINT))?, before);
    Ok(())
}

#[test]
fn patience_ends_a_run_that_does_not_improve() -> Result<()> {
    let out = tempfile::tempdir()?;
    let mut r = recipe();
    r.train.schedule = Schedule::Constant;
    r.train.updates = Some(1000);
    r.train.validate_every = 1;
    r.train.patience = Some(2);
    r.train.lr = 0.;
    r.train.ema = None;
    let outcome = run(&r, out.path())?;
    assert_eq!((outcome.stopped_by, outcome.updates), (StoppedBy::Patience, 3));
    assert_eq!(outcome.best_validation.unwrap().0, 1);
    assert_eq!(run(&r, out.path())?.updates, 3);
    Ok(())
}

/// A model without a checkpoint, copied or pulled, is no run to go on with, and training would replace it.
#[test]
fn a_model_that_training_did_not_make_is_kept() -> Result<()> {
    let (made, out) = (tempfile::tempdir()?, tempfile::tempdir()?);
    run(&recipe(), made.path())?;
    for name in ["model.safetensors", "config.json", METRICS] {
        fs::copy(made.path().join(name), out.path().join(name))?;
    }
    let before = fs::read(out.path().join("model.safetensors"))?;
    let error = run(&recipe(), out.path()).unwrap_err().to_string();
    assert!(error.contains("holds a model and no checkpoint") && error.contains("another folder"), "{error}");
    assert_eq!(fs::read(out.path().join("model.safetensors"))?, before);
    assert_eq!(fs::read(out.path().join(METRICS))?, fs::read(made.path().join(METRICS))?);
    // Shards are weights as well.
    fs::rename(out.path().join("model.safetensors"), out.path().join("model.safetensors.index.json"))?;
    assert!(run(&recipe(), out.path()).is_err());
    Ok(())
}

#[test]
fn minutes_end_a_run_with_a_validation() -> Result<()> {
    let out = tempfile::tempdir()?;
    let mut r = recipe();
    r.train.schedule = Schedule::Constant;
    (r.train.updates, r.train.minutes) = (None, Some(0.5 / 60.));
    let outcome = run(&r, out.path())?;
    assert_eq!(outcome.stopped_by, StoppedBy::Minutes);
    assert!(outcome.updates > 0 && outcome.wall_seconds >= 0.5);
    assert!(outcome.best_validation.is_some() && out.path().join("model.safetensors").exists());

    // A rate that had no time to fall is told.
    let out = tempfile::tempdir()?;
    r.train.schedule = Schedule::Cosine { end: 0.1 };
    r.train.updates = Some(1_000_000);
    let mut show = Show::default();
    train(&r, &data(), &Device::Cpu, out.path(), &mut show, &AtomicBool::new(false), &Single)?;
    assert!(show.messages.iter().any(|m| m.contains("`train.minutes` were up")), "{:?}", show.messages);
    Ok(())
}

#[test]
fn without_validation_the_last_model_is_saved() -> Result<()> {
    let out = tempfile::tempdir()?;
    let mut r = recipe();
    r.train.ema = None;
    let set = Dataset { valid: None, ..data() };
    let mut show = Show::default();
    let outcome = train(&r, &set, &Device::Cpu, out.path(), &mut show, &AtomicBool::new(false), &Single)?;
    assert_eq!(outcome.best_validation, None);
    let state = tensors(&out.path().join(CHECKPOINT));
    for (name, bytes) in tensors(&out.path().join("model.safetensors")) {
        assert_eq!(bytes, state[&format!("param/{name}")], "{name}");
    }
    Ok(())
}

#[test]
fn impossible_settings_are_named() {
    let out = tempfile::tempdir().unwrap();
    let err = |change: &dyn Fn(&mut Recipe)| {
        let mut r = recipe();
        change(&mut r);
        run(&r, out.path()).unwrap_err().to_string()
    };
    assert!(err(&|r| r.train.batch = 0).contains("`train.batch`"));
    assert!(err(&|r| r.train.updates = None).contains("`train.epochs`"));
    let endless = |r: &mut Recipe| (r.train.updates, r.train.minutes) = (None, Some(1.));
    assert!(err(&endless).contains("cosine"));
}

/// Trains as on a GPU, on this thread through the emulated kernels.
#[cfg(feature = "emulate")]
fn run_as_gpu(recipe: &Recipe, out: &Path, show: &mut Show, stop: &AtomicBool) -> Result<Outcome> {
    flows::ops::cuda::emulate(|| train_in_pool(recipe, &data(), &Device::Cpu, out, show, stop, &Single))
}

#[cfg(feature = "emulate")]
#[test]
fn a_gpu_trains_alike_and_resumes_to_the_same_bits() -> Result<()> {
    let dir = tempfile::tempdir()?;
    let (straight, parts, cpu) = (dir.path().join("a"), dir.path().join("b"), dir.path().join("c"));
    let never = AtomicBool::new(false);
    let mut show = Show::default();
    let whole = run_as_gpu(&recipe(), &straight, &mut show, &never)?;
    assert!(whole.finished && whole.updates == 12);
    assert_eq!(show.steps, [2, 4, 6, 8, 10, 12]);
    assert!(show.messages.iter().any(|m| m.contains("kernel by kernel")), "{:?}", show.messages);
    let stop = AtomicBool::new(false);
    let mut interrupted = Show { stop_after: Some((4, &stop)), ..Show::default() };
    assert!(!run_as_gpu(&recipe(), &parts, &mut interrupted, &stop)?.finished);
    assert_eq!(run_as_gpu(&recipe(), &parts, &mut Show::default(), &never)?.updates, 12);
    let bytes = |out: &Path| fs::read(out.join("model.safetensors")).unwrap();
    assert_eq!(bytes(&straight), bytes(&parts));
    // Other noise than on the CPU, and so other numbers, but not far from them.
    let other = run(&recipe(), &cpu)?;
    let (a, b) = (whole.best_validation.unwrap().1, other.best_validation.unwrap().1);
    assert!((a - b).abs() < 0.3, "{a} as a GPU, {b} on the CPU");
    assert_ne!(bytes(&straight), bytes(&cpu));
    Ok(())
}

#[cfg(feature = "emulate")]
#[test]
fn a_gpu_stops_at_what_is_not_finite() -> Result<()> {
    let dir = tempfile::tempdir()?;
    let mut recipe = recipe();
    (recipe.train.lr, recipe.train.schedule, recipe.train.warmup_images) = (1e20, Schedule::Constant, 0);
    recipe.train.log_every = 6;
    let error = run_as_gpu(&recipe, dir.path(), &mut Show::default(), &AtomicBool::new(false)).unwrap_err();
    let text = format!("{error:#}");
    assert!(text.contains("of update 2 is not finite, first in layer `"), "{text}");
    Ok(())
}
