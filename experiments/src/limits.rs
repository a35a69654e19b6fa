//! Sizes that this machine's memory cannot hold, refused before anything is allocated.
//!
//! What a setting needs is estimated from below, in floating point so that no product overflows: a run that is refused
//! could not have worked; one that is not may still be too large. The sizes of a model are [`ModelConfig::size`]'s.
//!
//! ```text
//! training    4 bytes (parameters (4 + average) + batch (values that backpropagation keeps for an image))
//!             of all layers, or, with `train.memory = "recompute"`, of the largest
//! evaluation  4 bytes (parameters + batch (values of the widest layer for an image))
//! ```
//!
//! Of several processes those on this machine count, each with its parameters and its share of the batch.

use crate::data::{Origin, known};
use crate::ranks::Ranks;
use crate::recipe::{Recipe, Train};
use anyhow::{Context, Result, ensure};
use flows::models::Size;
use flows::{Memory, ModelConfig};
use std::path::Path;

/// Bytes of a value in the computation.
const VALUE: f64 = 4.;

/// The largest number of images in one picture: more are too small to distinguish, and a viewer may not open the file.
pub const GRID_IMAGES: usize = 10_000;

/// Bytes that the records of a flow step's tensors take, whatever the step's width.
const STEP: f64 = 2048.;

/// Bytes of the records of all tensors.
fn records(size: &Size) -> f64 {
    size.nets * STEP
}

/// Bytes that training a model of this size takes on this machine: parameters with gradients, the optimiser and the average, and what
/// an update keeps of its batch.
fn training(size: &Size, train: &Train, memory: Memory, ranks: &dyn Ranks) -> f64 {
    let kept = match memory {
        Memory::Store => size.activations,
        Memory::Recompute => size.largest,
    };
    let (here, all) = (ranks.local().1 as f64, ranks.size() as f64);
    here * ((size.parameters * copies(train) + train.batch as f64 / all * kept) * VALUE + records(size))
}

/// Bytes that computing a batch takes, without gradients. While the widest layer is computed, what goes in is as large as what comes
/// out, and the image itself waits for the coupling.
fn evaluation(size: &Size, batch: usize) -> f64 {
    (size.parameters + batch as f64 * 2. * size.widest) * VALUE
}

/// The number of copies of the parameters during training: parameters, gradients, two of the optimiser, and the average.
fn copies(train: &Train) -> f64 {
    4. + f64::from(u8::from(train.ema.is_some()))
}

fn gib(bytes: f64) -> f64 {
    bytes / f64::from(1 << 30)
}

/// Bytes of memory that this process can have: the machine's, or its container's share.
fn memory() -> f64 {
    let mut system = sysinfo::System::new();
    system.refresh_memory();
    let machine = system.total_memory() as f64;
    match system.cgroup_limits().map(|limits| limits.total_memory as f64) {
        Some(share) if share > 0. && share < machine => share,
        // Where the system reports no size, nothing is refused.
        _ if machine == 0. => f64::INFINITY,
        _ => machine,
    }
}

/// Refuses what takes more bytes than there are: `what` begins the sentence, `remedy` ends it.
fn fits(what: &str, bytes: f64, remedy: &str) -> Result<()> {
    let memory = memory();
    ensure!(
        bytes <= memory,
        "{what} would take at least {} GiB, and this machine has {:.1} GiB of memory: {remedy}",
        if gib(bytes) < 1e4 { format!("{:.1}", gib(bytes)) } else { format!("{:.3e}", gib(bytes)) },
        gib(memory)
    );
    Ok(())
}

/// The keys that a model's size depends on.
fn size_keys(config: &ModelConfig) -> &'static str {
    match config {
        ModelConfig::Nice(_) => "`model.hidden`",
        ModelConfig::Maf(_) => "`model.hidden` or `model.layers`",
        ModelConfig::RealNvp(_) => "`model.features`, `model.blocks` or `model.scales`",
        ModelConfig::Glow(c) if c.classes.is_some() => {
            "`model.classes`, `model.width`, `model.depth` or `model.levels`"
        }
        ModelConfig::Glow(_) => "`model.width`, `model.depth` or `model.levels`",
        ModelConfig::Composed(_) => "the widths in `model.levels` and `model.layers`, or their `repeat`",
    }
}

/// The use of a recipe whose memory is checked.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Use {
    /// Its model is built; batches are of whatever size fits.
    Explain,
    /// Its model is trained.
    Training,
    /// A saved model is evaluated as it says.
    Evaluation,
}

/// Refuses a recipe whose data or model does not fit in memory. With `host` the batches must fit, too; on an accelerator they
/// have memory of their own.
///
/// # Errors
/// At the first setting that is too large, by its key.
pub fn recipe(recipe: &Recipe, purpose: Use, host: bool, ranks: &dyn Ranks) -> Result<()> {
    let Recipe { data, model, train, eval, .. } = recipe;
    let set = known(&data.set);
    let example = set.and_then(|set| match set.origin {
        Origin::Drawn { bytes, .. } => Some(bytes),
        _ => None,
    });
    if let Some(bytes) = example {
        for (key, n) in [("train", data.train), ("validation", Some(data.validation)), ("test", data.test)] {
            let n = n.unwrap_or(0);
            fits(&format!("`data.{key}` = {n}"), n as f64 * bytes, &format!("lower `data.{key}`"))?;
        }
    }
    // By the config's own keys, before those of the layers that it is built of.
    model.check()?;
    let mut model = model.clone();
    if let Some(size) = data.size {
        fits(&format!("`data.size` = {size}"), (size as f64).powi(2), "lower `data.size` (--size)")?;
        // Images have at least one channel.
        if set.is_some_and(|set| set.shape.is_none()) {
            model.set_shape(&[1, size, size])?;
        }
    }
    let need = match data.size {
        Some(size) => model.size().with_context(|| format!("`data.size` = {size}"))?,
        None => model.size()?,
    };
    let sized = data.size.map(|size| format!(", for images of `data.size` = {size},")).unwrap_or_default();
    let copies = match purpose {
        Use::Evaluation => 1.,
        _ => copies(train),
    };
    let here = ranks.local().1 as f64;
    let parameters = here * (need.parameters * VALUE * copies + records(&need));
    let what = format!("`model` with its {:.3e} parameters{sized}", need.parameters);
    fits(&what, parameters, &format!("lower {}", size_keys(&model)))?;
    if purpose == Use::Explain {
        return Ok(());
    }
    if !host {
        return drawn(&model, eval.samples, "`eval.samples`", host);
    }
    if purpose == Use::Training {
        let bytes = training(&need, train, train.memory, ranks);
        let less = training(&need, train, Memory::Recompute, ranks);
        let remedy = match less <= self::memory() && train.memory == Memory::Store {
            true => format!(
                "reconstruct activations instead of storing them, --set train.memory=recompute, which takes about {:.2} GiB, or \
                 lower `train.batch`",
                gib(less)
            ),
            false => "lower `train.batch`".to_string(),
        };
        fits(&format!("`train.batch` = {}{sized}", train.batch), bytes, &remedy)?;
    }
    // A batch has no more examples than the data set.
    let most = |n: Option<usize>| n.unwrap_or(usize::MAX);
    let examples = match example {
        Some(_) => most(data.train).max(most(data.test)).max(data.validation),
        None => LARGEST_SET,
    };
    let batch = eval.batch.min(examples.min(LARGEST_SET));
    let bytes = here * evaluation(&need, batch);
    fits(&format!("`eval.batch` = {}{sized}", eval.batch), bytes, "lower `eval.batch`")?;
    drawn(&model, eval.samples, "`eval.samples`", host)
}

/// One line with the least memory that training takes on this machine.
///
/// # Errors
/// When the config builds no model.
pub fn announce(recipe: &Recipe, ranks: &dyn Ranks) -> Result<String> {
    let need = recipe.model.size()?;
    let of = |memory| gib(training(&need, &recipe.train, memory, ranks));
    let (store, less) = (of(Memory::Store), of(Memory::Recompute));
    Ok(match recipe.train.memory {
        Memory::Store => {
            format!("memory: at least {store:.2} GiB; {less:.2} with --set train.memory=recompute")
        }
        Memory::Recompute => format!("memory: at least {less:.2} GiB, activations are reconstructed"),
    })
}

/// The number of examples assumed for a set of unknown size, so that `eval.batch = 1000000`, meaning all of it, is not refused.
const LARGEST_SET: usize = 70_000;

/// Refuses more samples than a picture holds ([`GRID_IMAGES`]) or than the memory does.
///
/// # Errors
/// When there are too many, by the name of the setting.
pub fn drawn(config: &ModelConfig, n: usize, key: &str, host: bool) -> Result<()> {
    ensure!(
        config.shape().len() != 3 || n <= GRID_IMAGES,
        "{key} = {n}: a picture holds at most {GRID_IMAGES} images, ask for fewer"
    );
    samples(config, n, key, host)
}

/// Refuses more samples than the memory can hold.
///
/// # Errors
/// When there are too many, by the name of the setting.
pub fn samples(config: &ModelConfig, n: usize, key: &str, host: bool) -> Result<()> {
    if !host {
        return Ok(());
    }
    fits(&format!("{key} = {n}"), evaluation(&config.size()?, n), "ask for fewer samples")
}

/// Refuses a saved model that cannot be held, before its tensors are made. A config that cannot be read is left to the
/// loader, which says why.
///
/// # Errors
/// When the config asks for more than there is.
pub fn saved(dir: &Path) -> Result<()> {
    let Ok(config) = flows::models::file::config(dir) else { return Ok(()) };
    let what = format!("the model of {}", dir.join("config.json").display());
    held(&config, &what, "restore the file, or use a machine with more memory")
}

/// Refuses a model that cannot be held: `what` begins the sentence, `remedy` ends it.
///
/// # Errors
/// When the config asks for more than there is.
pub fn held(config: &ModelConfig, what: &str, remedy: &str) -> Result<()> {
    let need = config.size()?;
    fits(what, need.parameters * VALUE + records(&need) + need.widest * VALUE, remedy)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ranks::{Single, threads};
    use crate::recipe::{BUILTIN, Resolved};
    use candle_core::{DType, Device};
    use flows::Model;
    use flows::models::GlowConfig;

    #[test]
    fn the_estimate_is_a_bound_from_below_and_near() {
        let small = [
            "glow-mnist-small",
            "realnvp-mnist-small",
            "nice-mnist-small",
            "moons",
            "bent",
            "vectors",
            "realnvp-1x1@faces",
            "glow-spline@faces",
            "glow-resnet@faces",
        ];
        for (name, text) in BUILTIN.iter().filter(|(name, _)| small.contains(name)) {
            near(name, Resolved::parse(name, text, &[]).unwrap().recipe.model);
        }
        for model in ["maf", "nsf"] {
            near(model, Resolved::load("moons", &[format!("model={model}")]).unwrap().recipe.model);
        }
        for classes in [None, Some(10)] {
            let config =
                GlowConfig { learn_latent: true, classes, width: 32, depth: 1, ..GlowConfig::cifar_paper() };
            near("latent", ModelConfig::Glow(config));
        }
    }

    #[test]
    fn each_process_of_a_machine_has_its_parameters_and_its_share_of_the_batch() {
        let recipe = Resolved::load("quickstart", &[]).unwrap().recipe;
        let size = recipe.model.size().unwrap();
        let of = |ranks: &dyn Ranks| training(&size, &recipe.train, Memory::Store, ranks);
        let batch = recipe.train.batch as f64 * size.activations * VALUE;
        for both in threads::run(2, of) {
            assert!((both - (2. * of(&Single) - batch)).abs() < 1., "{both}");
        }
    }

    fn near(name: &str, config: ModelConfig) {
        let need = config.size().unwrap().parameters;
        let count = Model::new(config, 1, DType::F32, &Device::Cpu).unwrap().params().count() as f64;
        assert!(need <= count && need > 0.8 * count, "{name}: {need} of {count}");
    }

    #[test]
    fn the_built_in_recipes_are_not_refused_for_their_data_or_samples() {
        for (name, text) in BUILTIN {
            let recipe = Resolved::parse(name, text, &[]).unwrap().recipe;
            drawn(&recipe.model, recipe.eval.samples, "`eval.samples`", false)
                .unwrap_or_else(|e| panic!("{name}: {e}"));
        }
    }
}
