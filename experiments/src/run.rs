//! The commands that compute: reproduce, train, eval, sample.
//!
//! A run's folder holds config.json and model.safetensors (the best weights by validation), metrics.jsonl and the
//! checkpoint, recipe.toml (every setting, resolved), summary.json, samples.png, curve.png and README.md, its model card.
//! The pictures are drawn before summary.json is written: where it is, the run has ended, and its card can be written.

use crate::cli::{End, EvalArgs, Part, RunArgs, SampleArgs};
use crate::data::{self, Dataset, Split, Values};
use crate::evaluate::{EvalOptions, Evaluation, evaluate_until};
use crate::limits::Use;
use crate::lock::Lock;
use crate::progress::{self, Count};
use crate::recipe::{Recipe, Resolved};
use crate::summary::{self, Beside, Codecs, Gaussian, Rounded, Summary};
use crate::{card, checkpoint, codecs, limits, output, plots, table, train};
use anyhow::{Context, Result, anyhow, bail, ensure};
use candle_core::{DType, Device, Tensor};
use flows::ops::precision::{self, Precision};
use flows::{Memory, Model};
use serde_json::{Value, json};
use std::io::Write;
use std::path::{Path, PathBuf};

/// Points on each side of the raster on which a density in the plane is drawn.
const RASTER: usize = 160;

/// The pictures' names in a run's folder.
pub const SAMPLES: &str = "samples.png";
/// As [`SAMPLES`].
pub const CURVE: &str = "curve.png";

/// Training images that are evaluated after training, at most: the number only shows how far train and test are apart.
const TRAIN_IMAGES: usize = 2_000;

/// Trains, evaluates, samples, draws and sums up; without `test` the test images are not looked at.
///
/// # Errors
/// When a setting is impossible, data cannot be read, training diverges or a file cannot be written.
pub fn reproduce(args: &RunArgs, test: bool) -> Result<End> {
    let mut resolved = args.recipe.resolve()?;
    let device = args.compute.open()?;
    let out = args.out.clone().unwrap_or_else(|| PathBuf::from("runs").join(&resolved.recipe.name));
    ensure!(
        out.is_dir() || !out.exists(),
        "--out {} is a file: name a folder, which is made if it is not there",
        out.display()
    );
    let (lock, data) = match finished(&resolved.recipe, &out, test)? {
        Some(summary) => {
            tracing::info!("{} holds this run's result already", out.display());
            // Of a run that ended before there were cards, or was killed before it wrote its own.
            if !out.join(card::CARD).exists() {
                card::write(&out)?;
            }
            print_result(&summary, &out, args.json)?;
            return Ok(End::Done);
        }
        // A folder that is at work is told before data are read; a new one is made when nothing is left to refuse.
        None => {
            train::check_precision(&resolved.recipe.train, &device)?;
            limits::recipe(&resolved.recipe, Use::Training, device.is_cpu())?;
            let lock = if out.is_dir() { Some(Lock::take(&out)?) } else { None };
            (lock, load(&resolved.recipe, args.data.dir.clone())?)
        }
    };
    fit_shape(&mut resolved.recipe, &data)?;
    let recipe = &resolved.recipe;
    limits::recipe(recipe, Use::Training, device.is_cpu())?;
    ensure!(
        recipe.train.batch <= data.train.len(),
        "`train.batch` = {} is more than the {} training examples of `{}`: lower it",
        recipe.train.batch,
        data.train.len(),
        data.name
    );
    std::fs::create_dir_all(&out).with_context(|| format!("cannot make the folder {}", out.display()))?;
    let _lock = match lock {
        Some(lock) => lock,
        None => Lock::take(&out)?,
    };

    tracing::info!("{}", limits::announce(recipe));
    if recipe.train.memory == Memory::Store {
        crate::keep_memory();
    }
    let on_begin = || summary::write_recipe(&out, &resolved);
    let mut progress = progress::Training::new(&recipe.name, on_begin);
    let outcome = train::train(recipe, &data, &device, &out, &mut progress, &progress::STOP)?;
    progress.finish()?;
    if !outcome.finished {
        tracing::info!("saved after update {}: the same command goes on from there", outcome.updates);
        return Ok(End::Interrupted);
    }
    let stopped = serde_json::to_value(outcome.stopped_by)?;
    let training = summary::Training {
        updates: outcome.updates,
        images_seen: outcome.images_seen,
        images_per_second: outcome.images_per_second,
        wall_seconds: outcome.wall_seconds,
        stopped: stopped.as_str().unwrap_or_default().to_owned(),
        best_update: outcome.best_validation.map(|(update, _)| update),
    };

    let model = Model::load(&out, &device)?;
    let mut result = Summary::new(recipe, &data, model.params().count(), args.compute.name(), training)?;
    let seed = recipe.train.seed;
    let score = |split: &Split, what: &str, limit| score(&model, recipe, split, what, limit, seed);
    if test {
        let Some(measured) = score(&data.test, "test images", None)? else { return Ok(interrupted()) };
        result.test = Some(measured);
    }
    if let Some(valid) = &data.valid {
        let Some(measured) = score(valid, "validation images", None)? else { return Ok(interrupted()) };
        result.validation = Some(measured);
    }
    let Some(measured) = score(&data.train, "training images", Some(TRAIN_IMAGES))? else {
        return Ok(interrupted());
    };
    result.train = Some(measured);
    if recipe.train.precision != Precision::Full {
        let (split, what, full) = match (&data.valid, &result.validation, &result.test) {
            (Some(valid), Some(full), _) => (valid, "validation", full.bits_per_dim),
            (_, _, Some(full)) => (&data.test, "test", full.bits_per_dim),
            _ => (&data.train, "train", result.train.as_ref().map_or(f64::NAN, |t| t.bits_per_dim)),
        };
        let limit = (what == "train").then_some(TRAIN_IMAGES);
        let again = || score(split, "images in the precision of training", limit);
        let Some(measured) = precision::within(recipe.train.precision, again)? else {
            return Ok(interrupted());
        };
        result.rounded = Some(Rounded {
            precision: recipe.train.precision,
            split: what.to_owned(),
            bits_per_dim: measured.bits_per_dim,
            gap: measured.bits_per_dim - full,
        });
    }
    if let Some(all) = &result.test {
        let Some((codecs, gaussian)) = beside(&model, recipe, &data, &data.test, all, seed)? else {
            return Ok(interrupted());
        };
        (result.beside.codecs, result.beside.gaussian) = (codecs, gaussian);
    }
    let path = out.join(SAMPLES);
    picture(&model, recipe.eval.samples, recipe.eval.temperature, seed, None, Some(&data.train), &path)?;
    curve(&result, &out)?;
    result.write(&out)?;
    // What is printed is what was written, so that printing it again later gives the same digits.
    let result = Summary::read(&out)?.context("the summary that was just written is gone")?;
    card::write(&out)?;
    print_result(&result, &out, args.json)?;
    Ok(End::Done)
}

/// Ctrl-C during an evaluation.
fn interrupted() -> End {
    tracing::info!("the training is saved, its evaluation is not: the same command makes it");
    End::Interrupted
}

/// The result that the folder holds, if it is of this very recipe.
fn finished(recipe: &Recipe, out: &Path, test: bool) -> Result<Option<Summary>> {
    let (Some(summary), Some(begun)) = (Summary::read(out)?, summary::read_recipe(out)?) else {
        return Ok(None);
    };
    // A recipe for any data takes its shape from them, so what was begun says which shape.
    let mut recipe = recipe.clone();
    if crate::recipe::set_shape(&recipe.data.set).is_none() {
        recipe.model.set_shape(begun.model.shape())?;
    }
    let same = recipe.fingerprint()? == begun.fingerprint()?;
    Ok(Some(summary).filter(|s| same && (s.test.is_some() || !test)))
}

fn load(recipe: &Recipe, dir: Option<PathBuf>) -> Result<Dataset> {
    let data = data::load(&recipe.request(dir))?;
    tracing::info!(
        "{}: {} training, {} validation, {} test examples, {} classes, {} attributes ({})",
        data.name,
        data.train.len(),
        data.valid.as_ref().map_or(0, Split::len),
        data.test.len(),
        data.classes.len(),
        data.attribute_names.len(),
        data.revision
    );
    Ok(data)
}

/// Gives the model the shape of the user's own data.
fn fit_shape(recipe: &mut Recipe, data: &Dataset) -> Result<()> {
    if recipe.model.shape() != data.train.shape {
        ensure!(
            crate::recipe::set_shape(&recipe.data.set).is_none(),
            "`{}` has examples of shape {:?}, the model takes {:?}",
            data.name,
            data.train.shape,
            recipe.model.shape()
        );
        recipe.model.set_shape(&data.train.shape)?;
    }
    Ok(())
}

fn score(
    model: &Model,
    recipe: &Recipe,
    split: &Split,
    what: &str,
    limit: Option<usize>,
    seed: u64,
) -> Result<Option<Evaluation>> {
    // On a thread of the pool, as training: small tensors would cost more to hand over than to compute.
    rayon::scope(|_| {
        let count = Count::new(what);
        let go_on = |done, of| count.at(done, of);
        let options = EvalOptions {
            batch: recipe.eval.batch,
            draws: recipe.eval.noise_draws,
            seed,
            limit,
            progress: Some(&go_on),
        };
        evaluate_until(model, split, &options)
    })
    .with_context(|| format!("the evaluation of the {what} failed"))
}

/// What stands beside the model's number: codecs on the first images of `split` (and the model on the same ones), and the
/// Gaussian fitted to the training set. `None`: interrupted.
fn beside(
    model: &Model,
    recipe: &Recipe,
    data: &Dataset,
    split: &Split,
    all: &Evaluation,
    seed: u64,
) -> Result<Option<(Option<Codecs>, Option<Gaussian>)>> {
    let images = recipe.eval.codec_images.min(all.images);
    // Codecs and the Gaussian are for all the bits of an image of bytes.
    if !split.is_pixels() || model.config().bits() != 8 {
        return Ok(Some((None, None)));
    }
    let (bits_per_dim, std_err) = codecs::gaussian_bits(&data.train, &split.take(all.images))?;
    let gaussian = Some(Gaussian { bits_per_dim, std_err });
    if images == 0 || !matches!(split.shape.as_slice(), [1 | 3, ..]) {
        return Ok(Some((None, gaussian)));
    }
    tracing::info!("compressing {images} images with PNG and WebP");
    let codecs = codecs::codec_bits(&split.take(images))?;
    let model_bits_per_dim = if images == all.images {
        all.bits_per_dim
    } else {
        match score(model, recipe, split, "images for the codecs", Some(images), seed)? {
            Some(e) => e.bits_per_dim,
            None => return Ok(None),
        }
    };
    let codecs = Codecs {
        images,
        png_bits_per_dim: codecs.png,
        webp_bits_per_dim: codecs.webp,
        png_how: codecs.png_how,
        webp_how: codecs.webp_how,
        model_bits_per_dim,
    };
    Ok(Some((Some(codecs), gaussian)))
}

/// Labels for `n` samples, if the model has classes.
pub(crate) fn labels(model: &Model, n: usize, class: Option<u32>) -> Result<Option<Tensor>> {
    let device = model.params().device();
    match (model.config().classes(), class) {
        (None, None) => Ok(None),
        (None, Some(_)) => bail!("this model has no classes: leave out --class"),
        (Some(classes), Some(class)) => {
            ensure!(
                (class as usize) < classes,
                "--class {class}: this model has classes 0 to {}",
                classes - 1
            );
            Ok(Some(Tensor::from_vec(vec![class; n], n, device)?))
        }
        (Some(classes), None) => {
            Ok(Some(Tensor::from_vec((0..n).map(|i| (i % classes) as u32).collect(), n, device)?))
        }
    }
}

/// A flow's values in [0, 2^bits) as bytes that can be seen: floors, as the data were dequantized upwards; a NaN becomes
/// black.
pub(crate) fn to_bytes(values: &[f32], bits: u8) -> Vec<u8> {
    let levels = f32::from(2u16.pow(bits.into()) - 1);
    values.iter().map(|v| (v.floor().clamp(0., levels) * 255. / levels).round() as u8).collect()
}

/// Draws `n` samples and writes their picture: a grid of images, or a cloud in the plane with the model's density. Data
/// in other spaces have no picture. Whether there is one.
fn picture(
    model: &Model,
    n: usize,
    temperature: f64,
    seed: u64,
    class: Option<u32>,
    data: Option<&Split>,
    path: &Path,
) -> Result<bool> {
    if n == 0 {
        return Ok(false);
    }
    let cond = labels(model, n, class)?;
    let samples = model.sample(n, temperature, seed, cond.as_ref())?.to_dtype(DType::F32)?;
    let values: Vec<f32> = samples.flatten_all()?.to_vec1()?;
    let broken = values.iter().filter(|v| !v.is_finite()).count();
    if broken > 0 {
        tracing::warn!("{broken} of {} sampled values are not finite: the inverse overflows", values.len());
    }
    match *model.config().shape() {
        [channels @ (1 | 3), height, width] => {
            let bytes = to_bytes(&values, model.config().bits());
            let images: Vec<Vec<u8>> =
                bytes.chunks_exact(channels * height * width).map(<[u8]>::to_vec).collect();
            plots::grid(path, &images, [channels, height, width])?;
        }
        [2] => {
            let points = |values: &[f32]| values.chunks_exact(2).map(|p| [p[0], p[1]]).collect::<Vec<_>>();
            let samples = points(&values);
            let data = match data.map(|d| &d.values) {
                Some(Values::Reals(v)) => Some(points(&v[..v.len().min(2 * n)])),
                _ => None,
            };
            let window = plots::Window::about(data.as_ref().unwrap_or(&samples));
            let raster: Vec<f32> =
                window.raster(RASTER).into_iter().flat_map(|p| p.map(|v| v as f32)).collect();
            let raster = Tensor::from_vec(raster, (RASTER * RASTER, 2), model.params().device())?;
            let density = model.log_prob(&raster, None)?.exp()?.to_dtype(DType::F64)?.to_vec1()?;
            plots::plane(path, &window, data.as_deref(), &samples, &density, RASTER)?;
        }
        ref shape => {
            tracing::warn!("there is no picture of samples of shape {shape:?}");
            return Ok(false);
        }
    }
    Ok(true)
}

/// Draws curve.png from the run's log.
fn curve(summary: &Summary, out: &Path) -> Result<()> {
    let (mut train, mut validation) = (plots::Points::new(), plots::Points::new());
    for line in checkpoint::read_metrics(out)?.unwrap_or_default() {
        let Some(update) = line["update"].as_f64() else { continue };
        if let Some(bits) = line["train_bits_per_dim"].as_f64() {
            train.push((update, bits));
        }
        if let Some(bits) = line["validation_bits_per_dim"].as_f64() {
            validation.push((update, bits));
        }
    }
    let mut lines = Vec::new();
    if let Some(paper) = &summary.beside.paper {
        lines.push((format!("paper, {}", paper.bits_per_dim), paper.bits_per_dim));
    }
    match (summary.beside.entropy_lower, summary.beside.entropy_upper) {
        (Some(lower), Some(upper)) if upper > lower => {
            lines.push((format!("entropy at most {upper:.3}"), upper));
            lines.push((format!("entropy at least {lower:.3}"), lower));
        }
        (Some(entropy), _) => lines.push((format!("entropy {entropy:.3}"), entropy)),
        _ => {}
    }
    if train.is_empty() && validation.is_empty() {
        tracing::warn!("the run is too short for a curve");
        return Ok(());
    }
    plots::curve(&out.join(CURVE), &summary.recipe, "bits/dim", &train, &validation, &lines)
}

/// The terms of an evaluation, for people.
fn terms(score: &Evaluation, split: &str) -> String {
    let Evaluation { bits_per_dim, std_err, log_det_bits, prior_bits, images, .. } = score;
    let noise = match score.nats {
        Some(nats) => format!("{nats:.4} nats a point"),
        None => {
            let draws = if score.noise_draws == 1 { "draw" } else { "draws" };
            format!("{} bins, {} noise {draws} an image", score.bins, score.noise_draws)
        }
    };
    format!(
        "{split}: {bits_per_dim:.4} ± {std_err:.4} bits/dim over {images} examples = prior {prior_bits:.4} + log-det \
         {log_det_bits:.4}; {noise}; log-likelihood {:.2} nats",
        score.log_likelihood
    )
}

/// The lines about what stands beside a number.
fn comparison(score: Option<&Evaluation>, beside: &Beside) -> Vec<String> {
    let mut lines = Vec::new();
    if let (Some(lower), Some(upper)) = (beside.entropy_lower, beside.entropy_upper) {
        let about = match score {
            Some(s) => format!(
                "; the model is {:+.4} from {}",
                s.bits_per_dim - lower,
                if upper > lower { "the lower bound" } else { "it" }
            ),
            None => String::new(),
        };
        let range = if upper > lower { format!("{lower:.4} to {upper:.4}") } else { format!("{lower:.4}") };
        lines.push(format!("entropy of the data: {range} bits/dim{about}"));
    }
    if let Some(c) = &beside.codecs {
        lines.push(format!(
            "the first {} images: PNG {:.4} ({}), WebP {:.4} ({}), the model {:.4} bits/dim",
            c.images, c.png_bits_per_dim, c.png_how, c.webp_bits_per_dim, c.webp_how, c.model_bits_per_dim
        ));
    }
    if let Some(g) = &beside.gaussian {
        lines
            .push(format!("a Gaussian for each subpixel: {:.4} ± {:.4} bits/dim", g.bits_per_dim, g.std_err));
    }
    if let Some(p) = &beside.paper {
        lines.push(format!("paper: {} bits/dim ({})", p.bits_per_dim, p.source));
    }
    lines
}

fn print_result(summary: &Summary, out: &Path, as_json: bool) -> Result<()> {
    // What cannot be is a bug of ours or a test set that was trained on, and worth more than a number.
    if let (Some(lower), Some(s)) = (summary.beside.entropy_lower, &summary.test)
        && s.bits_per_dim < lower - 4. * s.std_err
    {
        tracing::warn!("{:.4} bits/dim are below the entropy {lower:.4}: there is a bug", s.bits_per_dim);
    }
    if as_json {
        return output::line(summary.json(out));
    }
    let mut text = String::new();
    let scores = [("test", &summary.test), ("validation", &summary.validation), ("train", &summary.train)];
    for (split, score) in scores {
        if let Some(score) = score {
            text.push_str(&(terms(score, split) + "\n"));
        }
    }
    if let Some(r) = &summary.rounded {
        text.push_str(&format!(
            "in the precision of training ({}), {}: {:.4} bits/dim, {:+.4} from full precision\n",
            r.precision, r.split, r.bits_per_dim, r.gap
        ));
    }
    for line in comparison(summary.test.as_ref(), &summary.beside) {
        text.push_str(&(line + "\n"));
    }
    text.push_str(&format!("\n{}\n", table::markdown(&[table::row(summary, out)])));
    let files = ["model.safetensors", summary::SUMMARY, card::CARD, SAMPLES, CURVE];
    let files: Vec<&str> = files.into_iter().filter(|file| out.join(file).exists()).collect();
    output::line(format_args!("{text}{}: {}", out.display(), files.join(", ")))
}

/// Evaluates saved weights on a part of a data set.
///
/// # Errors
/// When the folder holds no model, the data cannot be read, or a likelihood is not finite.
pub fn eval(args: &EvalArgs) -> Result<End> {
    let sets = args.sets()?;
    ensure!(args.images != Some(0), "--images 0: evaluate at least one image, or leave it out for all");
    let device = args.compute.open()?;
    let (weights, commit) = args.weights.locate()?;
    let model = load_model(&weights, &device)?;
    let mut recipe = match &args.recipe {
        Some(name) => Resolved::load(name, &sets)?.recipe,
        None => own_recipe(&weights, &sets)?,
    };
    // The weights have their model with them.
    recipe.model = model.config().clone();
    limits::recipe(&recipe, Use::Evaluation, device.is_cpu())?;
    let data = load(&recipe, args.data.dir.clone())?;
    let split = match args.split {
        Part::Train => &data.train,
        Part::Test => &data.test,
        Part::Validation => {
            data.valid.as_ref().context("this data set has no validation images: choose another --split")?
        }
    };
    let seed = args.seed.unwrap_or(recipe.train.seed);
    let what = format!("{} images", args.split.name());
    let Some(measured) = score(&model, &recipe, split, &what, args.images, seed)? else {
        return Ok(End::Interrupted);
    };
    let Some((codecs, gaussian)) = beside(&model, &recipe, &data, split, &measured, seed)? else {
        return Ok(End::Interrupted);
    };
    let mut object = summary::score_json(&recipe.name, args.split.name(), &measured);
    let beside = Beside { codecs, gaussian, ..Beside::new(&recipe, &data) };
    beside.json(&mut object);
    object.insert("weights".to_owned(), args.weights.to_string().into());
    if let Some(commit) = commit {
        object.insert("weights_commit".to_owned(), commit.into());
    }
    if args.json {
        output::line(Value::Object(object))?;
        return Ok(End::Done);
    }
    let mut lines = vec![terms(&measured, args.split.name())];
    lines.extend(comparison(Some(&measured), &beside));
    output::line(lines.join("\n"))?;
    Ok(End::Done)
}

/// A saved model, if this machine can hold it.
///
/// # Errors
/// When it cannot, or the folder holds no model.
pub fn load_model(weights: &Path, device: &Device) -> Result<Model> {
    ensure!(
        !weights.is_file(),
        "{} is a file: a model is a folder with config.json and model.safetensors",
        weights.display()
    );
    limits::saved(weights)?;
    Ok(Model::load(weights, device)?)
}

/// The ending of pictures, for [`writable`], and why.
pub(crate) const PNG: &str = "png";
pub(crate) const PICTURE: &str = "the picture is a PNG";

/// Refuses a place where no file with this ending can be written, before the work for it is done; `what` says why that ending.
pub(crate) fn writable(out: &Path, ending: &str, what: &str) -> Result<()> {
    let name = out.display();
    ensure!(!out.is_dir(), "--out {name} is a folder: name a .{ending} file in it");
    ensure!(
        out.extension().is_some_and(|e| e.eq_ignore_ascii_case(ending)),
        "--out {name}: {what}, give it a name that ends in .{ending}"
    );
    let folder = match out.parent() {
        Some(folder) if !folder.as_os_str().is_empty() => folder,
        _ => Path::new("."),
    };
    ensure!(folder.is_dir(), "--out {name}: there is no folder {}, make it", folder.display());
    // A full disk still makes empty files.
    let probe = tempfile::NamedTempFile::new_in(folder).and_then(|mut file| {
        file.write_all(&[0; 1 << 16])?;
        file.as_file().sync_all()
    });
    // Of the reason its kind alone: the rest names a file that nobody asked for.
    probe.map_err(|e| {
        anyhow!(
            "--out {name}: nothing can be written in {} ({}), choose another folder",
            folder.display(),
            e.kind()
        )
    })
}

/// The recipe in the folder of the weights.
pub(crate) fn own_recipe(weights: &Path, sets: &[String]) -> Result<Recipe> {
    let path = weights.join(summary::RECIPE);
    ensure!(
        path.exists(),
        "{} does not say which data its model is for: give --recipe NAME",
        weights.display()
    );
    Ok(Resolved::load(&path.to_string_lossy(), sets)?.recipe)
}

/// Draws samples from saved weights.
///
/// # Errors
/// When the folder holds no model, the class is not the model's, or the picture cannot be written.
pub fn sample(args: &SampleArgs) -> Result<End> {
    ensure!(args.n > 0, "-n 0: ask for at least one sample");
    ensure!(
        args.temperature >= 0. && args.temperature.is_finite(),
        "--temperature {}: it must be 0 or more",
        args.temperature
    );
    writable(&args.out, PNG, PICTURE)?;
    let device = args.compute.open()?;
    let model = load_model(&args.weights.locate()?.0, &device)?;
    limits::samples(model.config(), args.n, "-n", device.is_cpu())?;
    let drawn = picture(&model, args.n, args.temperature, args.seed, args.class, None, &args.out)?;
    ensure!(drawn, "samples of shape {:?} cannot be drawn", model.config().shape());
    if args.json {
        output::line(json!({
            "weights": args.weights.to_string(),
            "file": args.out.display().to_string(),
            "images": args.n,
            "temperature": args.temperature,
            "seed": args.seed,
            "class": args.class,
        }))?;
    } else {
        output::line(format_args!("{} samples in {}", args.n, args.out.display()))?;
    }
    Ok(End::Done)
}
