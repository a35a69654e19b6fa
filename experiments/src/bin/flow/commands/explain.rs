//! `flow explain`: each setting of a recipe with its origin, then parameters, memory, and the time it takes here.
//!
//! Nothing is typed in: updates of the recipe's model are made on random pixels and timed. Memory is
//!
//! ```text
//! 4 bytes (parameters + gradients + 2 optimiser rows + average) + batch (activations of an image)
//! ```
//!
//! where the activations are what the process grew by between two batch sizes, taken while an update ran: an estimate, for
//! allocators keep what they freed.

use crate::args::{Compute, DataArgs, RecipeArgs};
use crate::{output, saved};
use anyhow::{Context, Result, ensure};
use candle_core::{DType, Device};
use clap::Args;
use experiments::batches::{Augment, Examples, fit_shape};
use experiments::data::{self, Rows, Split, Values};
use experiments::evaluate::{EvalOptions, evaluate};
use experiments::limits;
use experiments::ranks::Single;
use experiments::recipe::{Recipe, Resolved};
use experiments::train::{self, Pass};
use flows::Model;
use flows::models::ContextConfig;
use flows::ops::precision::{self, Precision};
use flows::optim::{Penalty, UpdateSettings, Updater};
use flows::params::rng_for;
use rand::Rng;
use serde_json::{Value, json};
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};
use sysinfo::{Pid, ProcessRefreshKind, ProcessesToUpdate, System};

/// Timed updates at each batch size.
const UPDATES: u32 = 3;

/// About as long as the updates at one batch size may take. Past it an update is timed once, and the batch grows no further.
const LONG: Duration = Duration::from_secs(5);

/// What an update costs here.
struct Cost {
    /// Images in the batch that was timed.
    batch: usize,
    /// Images a second in training.
    images_per_second: f64,
    /// Images a second in evaluation.
    evaluated_per_second: f64,
    /// Bytes of activations for an image.
    activations: Option<f64>,
}

/// `explain`.
#[derive(Args)]
pub struct ExplainArgs {
    #[command(flatten)]
    recipe: RecipeArgs,
    #[command(flatten)]
    compute: Compute,
    #[command(flatten)]
    data: DataArgs,
    /// Print the settings only, without building the model.
    #[arg(long)]
    settings: bool,
    /// Print the result as one JSON object on the last line.
    #[arg(long)]
    json: bool,
}

/// Prints the settings; builds the model and times it unless only the settings were asked for.
///
/// # Errors
/// When the recipe is impossible or its model cannot be built.
pub fn run(args: &ExplainArgs) -> Result<()> {
    let mut resolved = args.recipe.resolve()?;
    let mut object = json!({ "recipe": resolved.recipe.name, "about": resolved.recipe.about });
    if !args.settings || resolved.recipe.data.size.is_some() {
        limits::recipe(&resolved.recipe, limits::Use::Explain, true, &Single)?;
    }
    let images = training_images(&mut resolved.recipe, args)?;
    if !args.settings {
        // The images may have given the model another shape.
        limits::recipe(&resolved.recipe, limits::Use::Explain, true, &Single)?;
    }
    let rows = resolved.settings()?;
    if !args.json {
        print_settings(&resolved, &rows)?;
    }
    for (key, value, source) in &rows {
        object["settings"][key] = json!({ "value": value, "source": source });
    }
    if !args.settings {
        let device = args.compute.open()?;
        let recipe = &resolved.recipe;
        tracing::info!("building the model and timing a few updates on random data");
        let model = Model::new(recipe.model.clone(), recipe.train.seed, DType::F32, &device)?;
        // On a thread of the pool, as training.
        let cost = rayon::scope(|_| measure(&model, recipe, &device))?;
        let lines = estimate(recipe, &model, &cost, images, &mut object);
        if !args.json {
            output::line(format_args!("\n{}", lines.join("\n")))?;
        }
    }
    if args.json { output::line(object) } else { Ok(()) }
}

/// Prints the settings in columns.
fn print_settings(resolved: &Resolved, rows: &[(String, String, String)]) -> Result<()> {
    let mut text = format!("{}: {}\n\n", resolved.recipe.name, resolved.recipe.about);
    let width = |f: fn(&(String, String, String)) -> &String, most: usize| {
        rows.iter().map(|row| f(row).chars().count()).filter(|&n| n <= most).max().unwrap_or(0)
    };
    let (keys, values) = (width(|r| &r.0, 40), width(|r| &r.1, 32));
    for (key, value, source) in rows {
        text.push_str(&format!("{key:keys$} = {value:values$}  # {source}\n"));
    }
    output::raw(&text)
}

/// The number of training images, where it is known without reading anything or the data are at hand.
fn training_images(recipe: &mut Recipe, args: &ExplainArgs) -> Result<Option<usize>> {
    let known = data::known(&recipe.data.set).context("the data set of a resolved recipe is known")?;
    let Some(all) = known.train else {
        let Some(dir) = &args.data.dir else { return Ok(None) };
        let data = saved::load(&recipe.request(Some(dir.clone())))?;
        fit_shape(&mut recipe.model, &data.train)?;
        return Ok(Some(data.train.len()));
    };
    if matches!(known.origin, data::Origin::Drawn { .. }) {
        return Ok(Some(recipe.data.train.unwrap_or(all)));
    }
    let left = all - recipe.data.validation.min(all);
    Ok(Some(recipe.data.train.unwrap_or(left).min(left)))
}

/// The process's memory while `f` runs: its highest value, in bytes, where the system tells it.
fn peak_memory<T>(f: impl FnOnce() -> Result<T>) -> Result<(T, Option<u64>)> {
    let done = AtomicBool::new(false);
    std::thread::scope(|scope| {
        let watch = scope.spawn(|| {
            let own = Pid::from_u32(std::process::id());
            let (mut system, mut peak) = (System::new(), None);
            loop {
                let last = done.load(Ordering::Relaxed);
                let what = ProcessRefreshKind::nothing().with_memory();
                system.refresh_processes_specifics(ProcessesToUpdate::Some(&[own]), false, what);
                peak = peak.max(system.process(own).map(sysinfo::Process::memory));
                if last {
                    return peak;
                }
                std::thread::sleep(Duration::from_millis(2));
            }
        });
        let result = f();
        done.store(true, Ordering::Relaxed);
        let peak = watch.join().unwrap_or(None);
        Ok((result?, peak))
    })
}

/// As many random examples of the recipe's model, in every class in turn, with random features where it is given any.
fn random_examples(model: &Model, recipe: &Recipe, n: usize) -> Result<Split> {
    let shape = recipe.model.shape().to_vec();
    let dims: usize = shape.iter().product();
    let mut rng = rng_for(0, "explain");
    let values = if recipe.model.preprocess().is_for_vectors() {
        Values::Reals((0..n * dims).map(|_| rng.random_range(-1. ..1.)).collect())
    } else {
        Values::Pixels((0..n * dims).map(|_| rng.random()).collect())
    };
    let labels = model.config().classes().map(|classes| (0..n).map(|i| (i % classes) as u32).collect());
    let context = match recipe.model.context() {
        ContextConfig::Features { shape } => {
            let numbers = n * shape.iter().product::<usize>();
            let values = (0..numbers).map(|_| rng.random_range(-1. ..1.)).collect();
            Some(Rows { shape: shape.clone(), values })
        }
        _ => None,
    };
    Split::new(shape, values, labels, None)?.with_context(context)
}

/// Makes updates as training does, at growing batch sizes up to the recipe's.
fn measure(model: &Model, recipe: &Recipe, device: &Device) -> Result<Cost> {
    train::check_precision(&recipe.train, device)?;
    let full = recipe.train.batch;
    let split = random_examples(model, recipe, full.max(recipe.eval.batch.min(64)))?;
    let examples = Examples::new(&split, model.config())?;
    let batch = |size: usize| {
        let places = (0..size).map(|i| (i, i as u64));
        examples.batch(examples.host(places, &rng_for(0, "explain noise"), Augment::default()), device)
    };
    let small = batch(full.min(8))?;
    model.init(&small.x, small.context())?;
    // A limit that is never reached: the norm is computed all the same, so the cost is that of clipping.
    let settings = UpdateSettings { clip_norm: Some(f64::MAX), ema: recipe.train.ema };
    let mut updater = Updater::new(recipe.train.optimizer, model.params(), settings, |_| Penalty::default())?;
    let mut update = |size: usize| -> Result<Duration> {
        let batch = batch(size)?;
        let start = Instant::now();
        // A rate of zero: the cost is that of an update, and random pixels do not spoil the next one.
        updater.begin(0.)?;
        let pass = Pass { memory: recipe.train.memory, factor: 1., ranks: &Single, weight: 1. };
        precision::within(recipe.train.precision, || train::learn(model, &mut updater, &batch, pass))?;
        updater.tally()?;
        device.synchronize()?;
        Ok(start.elapsed())
    };
    let (mut sizes, mut size) = (Vec::new(), full.min(2));
    let took = loop {
        let (took, peak) = peak_memory(|| {
            let warm = update(size)?;
            if warm > LONG / UPDATES {
                return Ok(warm);
            }
            (0..UPDATES).map(|_| update(size)).sum::<Result<Duration>>().map(|sum| sum / UPDATES)
        })?;
        sizes.push((size, peak));
        // Two sizes at least: one says nothing about activations.
        if size == full || (took > LONG / UPDATES && sizes.len() > 1) {
            break took;
        }
        size = (4 * size).min(full);
    };
    ensure!(!took.is_zero(), "the clock of this machine stands still");
    let activations = match (sizes[0], sizes[sizes.len() - 1]) {
        ((a, Some(low)), (b, Some(high))) if b > a && device.is_cpu() => {
            Some(high.saturating_sub(low) as f64 / (b - a) as f64)
        }
        _ => None,
    };
    let start = Instant::now();
    let evaluated = size.min(split.len());
    let options = EvalOptions {
        batch: evaluated,
        draws: 1,
        importance: 1,
        seed: 0,
        limit: Some(evaluated),
        progress: None,
        ranks: &Single,
    };
    evaluate(model, &split, &options).context("the model cannot evaluate random pixels")?;
    Ok(Cost {
        batch: size,
        images_per_second: size as f64 / took.as_secs_f64(),
        evaluated_per_second: evaluated as f64 / start.elapsed().as_secs_f64(),
        activations,
    })
}

/// The lines about size, memory and time, which go into the JSON object, too.
fn estimate(
    recipe: &Recipe,
    model: &Model,
    cost: &Cost,
    images: Option<usize>,
    object: &mut Value,
) -> Vec<String> {
    let Cost { batch, images_per_second: speed, evaluated_per_second: evaluated, activations } = *cost;
    let t = &recipe.train;
    let full = t.batch;
    let parameters = model.params().count();
    let mut lines = vec![format!("parameters: {parameters}")];
    object["parameters"] = parameters.into();

    let (copies, average) = if t.ema.is_some() { (5, ", average") } else { (4, "") };
    let fixed = (parameters * 4 * copies) as f64 / f64::from(1 << 30);
    lines.push(match activations {
        Some(each) => {
            let total = fixed + each * full as f64 / f64::from(1 << 30);
            object["memory_gib"] = total.into();
            let each = each / f64::from(1 << 20);
            format!(
                "memory: about {total:.2} GiB = {fixed:.2} (parameters, gradients, optimiser{average}) + {full} x {each:.2} MiB \
                 (activations of an image, by how much the process grew up to {batch} images)"
            )
        }
        None => format!(
            "memory: {fixed:.2} GiB for parameters, gradients and optimiser; that of activations cannot be measured here"
        ),
    });

    if t.precision == Precision::Bf16 && model.params().device().is_cpu() {
        object["bf16"] = precision::bf16_on_cpu().into();
        lines.push(format!("precision: products inside networks by {}", precision::bf16_on_cpu()));
    }

    object["images_per_second"] = speed.into();
    let of_recipe = if batch < full { format!(" (the recipe: {full})") } else { String::new() };
    lines.push(format!(
        "speed: {speed:.1} images/s in training, {evaluated:.1} in evaluation, measured on batches of {batch}{of_recipe} with {} \
         threads",
        rayon::current_num_threads(),
    ));
    let epochs = t.epochs.zip(images).map(|(epochs, n)| (epochs * n as f64 / full as f64).ceil());
    let updates = [t.updates.map(|u| u as f64), epochs].into_iter().flatten().min_by(f64::total_cmp);
    let validated = t.validate_images.unwrap_or(usize::MAX).min(recipe.data.validation) as f64;
    let seconds = updates.map(|updates| {
        let validations = (updates / t.validate_every as f64).ceil();
        updates * full as f64 / speed + validations * validated / evaluated
    });
    let seconds = [seconds, t.minutes.map(|m| 60. * m)].into_iter().flatten().min_by(f64::total_cmp);
    lines.push(match (seconds, updates) {
        (Some(seconds), Some(updates)) => {
            object["seconds"] = seconds.into();
            object["updates"] = updates.into();
            let time = human(seconds);
            format!("time: about {time} for {updates} updates on this machine, validations included")
        }
        (Some(seconds), None) => format!("time: {} (`train.minutes`)", human(seconds)),
        _ => "time: unknown without the number of training images, give --data".to_owned(),
    });
    lines
}

/// Seconds in the unit that fits.
fn human(seconds: f64) -> String {
    match seconds {
        s if s < 120. => format!("{s:.0} seconds"),
        s if s < 7_200. => format!("{:.0} minutes", s / 60.),
        s if s < 172_800. => format!("{:.1} hours", s / 3_600.),
        s => format!("{:.1} days", s / 86_400.),
    }
}
