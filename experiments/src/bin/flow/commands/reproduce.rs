//! `flow reproduce` and `flow train`: training, then evaluation, pictures and the row of the table.
//!
//! The pictures are drawn before summary.json is written: where it is, the run has ended, and its card can be written.

use super::print;
use crate::args::{Compute, DataArgs, RecipeArgs};
use crate::card;
use crate::context::Given;
use crate::draw::{curve, samples};
use crate::hub::Weights;
use crate::progress::{self, Stopped};
use crate::report::measured::{comparison, terms};
use crate::report::table;
use crate::saved::{Scoring, baselines, load, load_data, score};
use anyhow::{Context, Result, ensure};
use candle_core::{DType, Device};
use clap::Args;
use experiments::batches;
use experiments::data::{Dataset, Join, Origin, Request, Split, known};
use experiments::limits::{self, Use};
use experiments::lock::Lock;
use experiments::ranks::{Ranks, agree, any, share_params};
use experiments::recipe::{Recipe, Resolved};
use experiments::run_dir::{self, CARD, CURVE, SAMPLES, SUMMARY};
use experiments::sample::sample;
use experiments::summary::{Rounded, Summary, Training};
use experiments::train::{self, Progress, Silent};
use flows::models::ContextConfig;
use flows::models::file::stored;
use flows::ops::precision::{self, Precision};
use flows::{Memory, Model};
use std::path::{Path, PathBuf};

/// `reproduce` and `train`.
#[derive(Args)]
pub struct RunArgs {
    #[command(flatten)]
    recipe: RecipeArgs,
    #[command(flatten)]
    compute: Compute,
    #[command(flatten)]
    data: DataArgs,
    /// Folder of the run (default: runs/RECIPE); the same command resumes an unfinished run.
    #[arg(long, value_name = "DIR")]
    out: Option<PathBuf>,
    /// Print the result as one JSON object on the last line.
    #[arg(long)]
    json: bool,
}

/// Training images that are evaluated after training, at most: the number only shows how far train and test are apart.
const TRAIN_IMAGES: usize = 2_000;

/// What a run needs: its settings, its data, and the folder, which rank 0 has locked.
struct Prepared {
    resolved: Resolved,
    device: Device,
    data: Dataset,
    out: PathBuf,
    is_new: bool,
    _lock: Option<Lock>,
}

/// Trains, evaluates, samples, draws and sums up; without `test` the test images are not looked at.
///
/// # Errors
/// When a setting is impossible, data cannot be read, training diverges or a file cannot be written.
pub fn run(args: &RunArgs, test: bool, ranks: &dyn Ranks) -> Result<()> {
    let Some(Prepared { resolved, device, data, out, is_new, _lock }) = prepare(args, test, ranks)? else {
        return Ok(());
    };
    let recipe = &resolved.recipe;
    let training = train(&resolved, &data, &device, &out, ranks).inspect_err(|_| {
        // A model that cannot be built leaves no folder; one with files is not removed.
        if is_new {
            let _ = std::fs::remove_dir(&out);
        }
    })?;
    let model = trained(recipe, &out, &device, ranks)?;
    let mut result =
        Summary::new(recipe, &data, model.params().count(), (&device, args.compute.name()), training)?;
    let scoring = Scoring { model: &model, recipe, seed: recipe.train.seed, ranks };
    measure(&mut result, scoring, &data, test).inspect_err(|error| {
        if error.is::<Stopped>() {
            tracing::info!("the training is saved, its evaluation is not: the same command makes it");
        }
    })?;
    let (n, temperature) = (recipe.eval.samples, recipe.eval.temperature);
    let given = Given::of(&model, &data.test, n.max(1))?;
    let drawn = (n > 0).then(|| sample(&model, n, temperature, recipe.train.seed, given.context(), ranks));
    let drawn = drawn.transpose()?;
    if ranks.rank() > 0 {
        return Ok(());
    }
    if let Some(drawn) = drawn {
        samples::picture(&model, &drawn, &given, Some(&data.train), &out.join(SAMPLES))?;
    }
    curve::draw(&result, &out)?;
    result.write(&out)?;
    run_dir::remove_before(&out)?;
    // What is printed is what was written, so that printing it again later gives the same digits.
    let result = Summary::read(&out)?.context("the summary that was just written is gone")?;
    card::write(&out)?;
    print_result(&result, &out, args.json)
}

/// Checks what can be checked before training and loads the data; `None` where the folder holds the result already, which is
/// printed.
fn prepare(args: &RunArgs, test: bool, ranks: &dyn Ranks) -> Result<Option<Prepared>> {
    let mut resolved = agree(ranks, args.recipe.resolve())?;
    let device = args.compute.open_for(ranks)?;
    let out = args.out.clone().unwrap_or_else(|| PathBuf::from("runs").join(&resolved.recipe.name));
    let name = out.display();
    let taken = if ranks.rank() == 0 { take(args, test, &resolved.recipe, &out) } else { Ok(Some(None)) };
    let lock = agree(ranks, taken)?;
    if any(ranks, [lock.is_none()])? == [true] {
        return Ok(None);
    }
    let checked = train::check_precision(&resolved.recipe.train, &device)
        .and_then(|()| limits::recipe(&resolved.recipe, Use::Training, device.is_cpu(), ranks));
    agree(ranks, checked)?;
    let data = load_data(&resolved.recipe, args.data.dir.clone(), Join::Never, ranks)?;
    let fit = || -> Result<_> {
        fit_shape(&mut resolved.recipe, &data)?;
        let recipe = &resolved.recipe;
        limits::recipe(recipe, Use::Training, device.is_cpu(), ranks)?;
        let (batch, n) = (recipe.train.batch, data.train.len());
        ensure!(
            batch <= n,
            "`train.batch` = {batch} is more than the {n} training examples of `{}`: lower it",
            data.name
        );
        if ranks.rank() > 0 {
            return Ok((false, None));
        }
        let is_new = !out.exists();
        std::fs::create_dir_all(&out)
            .with_context(|| format!("--out {name}: the folder cannot be made, name another one"))?;
        let lock = lock.flatten().map_or_else(|| Lock::take(&out), Ok)?;
        Ok((is_new, Some(lock)))
    };
    let (is_new, _lock) = agree(ranks, fit())?;
    Ok(Some(Prepared { resolved, device, data, out, is_new, _lock }))
}

/// Locks the folder, where there is one; `None` where it holds the result already, which is printed.
fn take(args: &RunArgs, test: bool, recipe: &Recipe, out: &Path) -> Result<Option<Option<Lock>>> {
    let name = out.display();
    ensure!(
        out.is_dir() || !out.exists(),
        "--out {name} is a file: name a folder, which is made if it is not there"
    );
    run_dir::refuse_foreign(out)?;
    // A folder that is at work is told before data are read; a new one is made when nothing is left to refuse.
    let lock = if out.is_dir() { Some(Lock::take(out)?) } else { None };
    if let Some(summary) = finished(recipe, out, test)?
        && is_of(&summary, recipe, args.data.dir.as_deref())?
    {
        tracing::info!("{name} holds this run's result already");
        stored(out).with_context(|| {
            format!("{name} holds the result of this run and not its weights: restore them from a copy, or name another --out")
        })?;
        // Of a run that ended before there were cards, or was killed before it wrote its own.
        if !out.join(CARD).exists() {
            card::write(out)?;
        }
        print_result(&summary, out, args.json)?;
        return Ok(None);
    }
    Ok(Some(lock))
}

/// Trains the recipe's model in the folder `out`.
fn train(
    resolved: &Resolved,
    data: &Dataset,
    device: &Device,
    out: &Path,
    ranks: &dyn Ranks,
) -> Result<Training> {
    let recipe = &resolved.recipe;
    tracing::info!("{}", limits::announce(recipe, ranks)?);
    if recipe.train.memory == Memory::Store {
        keep_memory();
    }
    if let Some(from) = &recipe.train.init_from {
        let start = || -> Result<()> {
            let (folder, _) = from.parse::<Weights>()?.locate()?;
            train::start_from(recipe, data, device, out, &folder)
        };
        agree(ranks, if ranks.rank() == 0 { start() } else { Ok(()) })?;
    }
    let on_begin = || {
        // The weights will be others than those that the earlier card describes.
        let aside = run_dir::write_recipe(out, resolved)?;
        if aside && run_dir::holds_model(out) { card::write(out) } else { Ok(()) }
    };
    let mut progress = progress::Training::new(&recipe.name, on_begin);
    let (first, mut silent) = (ranks.rank() == 0, Silent);
    let observer: &mut dyn Progress = if first { &mut progress } else { &mut silent };
    let outcome = train::train(recipe, data, device, out, observer, &progress::STOP, ranks)?;
    progress.finish()?;
    if !outcome.finished {
        tracing::info!("saved after update {}: the same command goes on from there", outcome.updates);
        return Err(Stopped.into());
    }
    let stopped = serde_json::to_value(outcome.stopped_by)?;
    Ok(Training {
        updates: outcome.updates,
        images_seen: outcome.images_seen,
        images_per_second: outcome.images_per_second,
        wall_seconds: outcome.wall_seconds,
        stopped: stopped.as_str().unwrap_or_default().to_owned(),
        best_update: outcome.best_validation.map(|(update, _)| update),
        extended: outcome.extended,
        ranks: outcome.ranks,
    })
}

/// The model that training has saved, which rank 0 reads and sends to the others.
fn trained(recipe: &Recipe, out: &Path, device: &Device, ranks: &dyn Ranks) -> Result<Model> {
    let model = if ranks.rank() == 0 {
        Model::load(out, device)?
    } else {
        Model::new(recipe.model.clone(), recipe.train.seed, DType::F32, device)?
    };
    share_params(ranks, model.params())?;
    Ok(model)
}

/// Evaluates the trained model: on the test images where `test` says so, on the validation images, on training images.
fn measure(result: &mut Summary, scoring: Scoring, data: &Dataset, test: bool) -> Result<()> {
    let recipe = scoring.recipe;
    let score = |split: &Split, what: &str, limit| score(scoring, split, what, limit);
    if test {
        result.test = Some(score(&data.test, "test images", None)?);
    }
    if let Some(valid) = &data.valid {
        result.validation = Some(score(valid, "validation images", None)?);
    }
    let of_train = score(&data.train, "training images", Some(TRAIN_IMAGES))?;
    if recipe.train.precision != Precision::Full {
        let (split, what, full) = match (&data.valid, &result.validation, &result.test) {
            (Some(valid), Some(full), _) => (valid, "validation", full.bits_per_dim),
            (_, _, Some(full)) => (&data.test, "test", full.bits_per_dim),
            _ => (&data.train, "train", of_train.bits_per_dim),
        };
        let limit = (what == "train").then_some(TRAIN_IMAGES);
        let again = || score(split, "images in the precision of training", limit);
        let bits_per_dim = precision::within(recipe.train.precision, again)?.bits_per_dim;
        result.rounded = Some(Rounded {
            precision: recipe.train.precision,
            split: what.to_owned(),
            bits_per_dim,
            gap: bits_per_dim - full,
        });
    }
    result.train = Some(of_train);
    if let Some(all) = &result.test {
        baselines(&mut result.beside, scoring, data, &data.test, all)?;
    }
    Ok(())
}

/// The result that the folder holds, if it is of this very recipe.
fn finished(recipe: &Recipe, out: &Path, test: bool) -> Result<Option<Summary>> {
    let (Some(summary), Some(begun)) = (Summary::read(out)?, run_dir::read_recipe(out)?) else {
        return Ok(None);
    };
    // A recipe for any data takes its shape from them, so what was begun says which shape.
    let mut recipe = recipe.clone();
    if any_shape(&recipe.data.set) {
        recipe.model.set_shape(begun.model.shape())?;
        if let ContextConfig::Features { shape } = begun.model.context() {
            recipe.model.set_context_shape(Some(shape));
        }
    }
    let same = recipe.fingerprint()? == begun.fingerprint()?;
    Ok(Some(summary).filter(|s| same && (s.test.is_some() || !test)))
}

/// Whether a result is of the data that are asked for now: where they are not, going on with the run says so.
///
/// Published data without a folder are those of their name, and are not brought again to see it.
fn is_of(summary: &Summary, recipe: &Recipe, dir: Option<&Path>) -> Result<bool> {
    let request = recipe.request(dir.map(Path::to_owned));
    let request = match known(&recipe.data.set).map(|set| &set.origin) {
        Some(Origin::Published { .. }) if dir.is_none() => return Ok(true),
        // How many are drawn is a setting, and which ones the same for any number of them.
        Some(Origin::Drawn { .. }) => Request { train: Some(1), valid: Some(0), test: Some(1), ..request },
        _ => request,
    };
    Ok(load(&request)?.revision == summary.data_revision)
}

/// Whether the examples of a data set have whatever shape the user's files have.
fn any_shape(set: &str) -> bool {
    known(set).is_some_and(|set| set.shape.is_none())
}

/// Gives the model the shape of the user's own data.
fn fit_shape(recipe: &mut Recipe, data: &Dataset) -> Result<()> {
    if recipe.model.shape() != data.train.shape {
        let (name, own, taken) = (&data.name, &data.train.shape, recipe.model.shape());
        ensure!(
            any_shape(&recipe.data.set),
            "`{name}` has examples of shape {own:?}, the model takes {taken:?}"
        );
    }
    batches::fit_shape(&mut recipe.model, &data.train)?;
    if data.train.context.is_some() && *recipe.model.context() == ContextConfig::default() {
        tracing::warn!(
            "the data have a context `c`, which this model is not given: --set model.context=features gives it"
        );
    }
    Ok(())
}

/// Prints the result of a run.
fn print_result(summary: &Summary, out: &Path, as_json: bool) -> Result<()> {
    // What cannot be is a bug of ours or a test set that was trained on, and worth more than a number.
    if let (Some(lower), Some(s)) = (summary.beside.entropy_lower, &summary.test)
        && s.bits_per_dim < lower - 4. * s.std_err
    {
        tracing::warn!("{:.4} bits/dim are below the entropy {lower:.4}: there is a bug", s.bits_per_dim);
    }
    let scores = [("test", &summary.test), ("validation", &summary.validation), ("train", &summary.train)];
    let scores = scores.into_iter().filter_map(|(split, score)| Some(terms(score.as_ref()?, split)));
    let mut lines: Vec<String> = scores.collect();
    lines.extend(summary.rounded.as_ref().map(|r| {
        format!(
            "in the precision of training ({}), {}: {:.4} bits/dim, {:+.4} from full precision",
            r.precision, r.split, r.bits_per_dim, r.gap
        )
    }));
    lines.extend(comparison(summary.test.as_ref(), &summary.beside));
    lines.extend(summary.training.as_ref().and_then(|t| t.ranks.as_ref()).map(|together| {
        let shares = together.batch_statistics.is_some();
        let of = if shares { "; batch norm had the statistics of each one's share of the batch" } else { "" };
        format!("trained by {} processes{of}", together.processes)
    }));
    lines.push(format!("\n{}", table::markdown(&[(summary, out)])));
    let files = ["model.safetensors", SUMMARY, CARD, SAMPLES, CURVE];
    let files: Vec<&str> = files.into_iter().filter(|file| out.join(file).exists()).collect();
    lines.push(format!("{}: {}", out.display(), files.join(", ")));
    print(as_json, summary.json(out), lines.join("\n"))
}

/// `mi_option_purge_delay` of mimalloc 3, whose crate names no options; its version is therefore pinned.
const PURGE_DELAY: libmimalloc_sys::mi_option_t = 15;

/// Makes the allocator keep freed memory, which the next update needs again: RealNVP's update otherwise spends a third of its
/// time on page faults. Not for updates that reconstruct their activations: they are there to need little.
/// The environment's MIMALLOC_PURGE_DELAY has the last word.
fn keep_memory() {
    if std::env::var_os("MIMALLOC_PURGE_DELAY").is_none() {
        // SAFETY: sets a number.
        unsafe { libmimalloc_sys::mi_option_set(PURGE_DELAY, -1) };
    }
}
