//! Saved weights, their data, and what is measured of them, as commands share it.

use crate::args::Part;
use crate::progress::{Count, Stopped, Transfers, stopped};
use anyhow::{Context, Result, bail, ensure};
use candle_core::{DType, Device, Tensor};
use experiments::data::{self, Dataset, Join, Parts, Request, Split, Values};
use experiments::evaluate::{EvalOptions, Evaluation, evaluate_each};
use experiments::mixture::Mixture;
use experiments::ranks::{Ranks, Single, agree};
use experiments::recipe::{Recipe, Resolved};
use experiments::run_dir::RECIPE;
use experiments::summary::{Baselines, Codecs, Gaussian};
use experiments::{codecs, limits};
use flows::Model;
use flows::models::ContextConfig;
use std::path::{Path, PathBuf};
use std::sync::Arc;

/// Loads a data set with transfers from the hub shown.
///
/// # Errors
/// As [`data::load`], and [`Stopped`] when Ctrl-C ended a transfer.
pub fn load(request: &Request) -> Result<Dataset> {
    let loaded = data::load(request, Some(Arc::new(Transfers::default())));
    loaded.map_err(|error| if stopped() { Stopped.into() } else { error })
}

/// Loads the data of a recipe and logs what they are. Each rank has its own copy; rank 0 loads first, so that data of the hub are
/// transferred once where the ranks share a cache.
///
/// # Errors
/// As [`load`].
pub fn load_data(recipe: &Recipe, dir: Option<PathBuf>, join: Join, ranks: &dyn Ranks) -> Result<Dataset> {
    let load = || self::load(&Request { join, ..recipe.request(dir.clone()) });
    let first = if ranks.rank() == 0 { load().map(Some) } else { Ok(None) };
    let data = match agree(ranks, first)? {
        Some(data) => agree(ranks, Ok(data))?,
        None => agree(ranks, load())?,
    };
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

/// Which examples are put into one split for `--split`: all, where that is asked for; where nothing is, those of the user's own
/// data that name no parts, unless the weights in this folder were trained on such data (`foreign`: on others).
pub fn join(split: Option<Part>, set: &str, weights: &Path, foreign: bool) -> Join {
    let own = || own_recipe(weights, &[]).is_ok_and(|recipe| recipe.data.set == set);
    match split {
        Some(Part::All) => Join::Always,
        None if foreign || !own() => Join::Unnamed,
        _ => Join::Never,
    }
}

/// A part of a data set that was loaded with [`join`], and which one it is.
///
/// # Errors
/// When it has no validation images and they are asked for.
pub fn part(data: &Dataset, part: Option<Part>) -> Result<(&Split, Part)> {
    let default = if data.parts == Parts::Joined { Part::All } else { Part::Test };
    let part = part.unwrap_or(default);
    let split = match part {
        Part::Train => &data.train,
        Part::Test | Part::All => &data.test,
        Part::Validation => data
            .valid
            .as_ref()
            .with_context(|| format!("`{}` has no validation images: choose another --split", data.name))?,
    };
    Ok((split, part))
}

/// What a model is evaluated with.
#[derive(Clone, Copy)]
pub struct Scoring<'a> {
    pub model: &'a Model,
    pub recipe: &'a Recipe,
    /// The seed of the noise.
    pub seed: u64,
    /// The processes that share it out.
    pub ranks: &'a dyn Ranks,
}

/// Evaluates a model on a split, with a bar.
///
/// # Errors
/// As [`evaluate_each`], and [`Stopped`] when Ctrl-C ended it.
pub fn score(scoring: Scoring, split: &Split, what: &str, limit: Option<usize>) -> Result<Evaluation> {
    Ok(score_each(scoring, split, what, limit)?.0)
}

/// As [`score`], with log p(x) of each example in nats.
///
/// # Errors
/// As [`score`].
pub fn score_each(
    scoring: Scoring,
    split: &Split,
    what: &str,
    limit: Option<usize>,
) -> Result<(Evaluation, Vec<f64>)> {
    let Scoring { model, recipe, seed, ranks } = scoring;
    // On a thread of the pool, as training: small tensors would cost more to hand over than to compute.
    rayon::scope(|_| {
        let count = Count::new(what);
        let go_on = |done, of| count.at(done, of);
        let options = EvalOptions {
            batch: recipe.eval.batch,
            draws: recipe.eval.noise_draws,
            importance: recipe.eval.importance_samples,
            seed,
            limit,
            progress: Some(&go_on),
            ranks,
        };
        evaluate_each(model, split, &options)
    })
    .with_context(|| format!("the evaluation of the {what} failed"))?
    .ok_or_else(|| Stopped.into())
}

/// The bits/dim that a model claims for all images of a split, with one draw of noise an image; bits of a pixel that the model does not see
/// count as they are.
///
/// # Errors
/// As [`score`].
pub fn bound(model: &Model, split: &Split) -> Result<f64> {
    let count = Count::new("the model's bits/dim");
    let go_on = |done, of| count.at(done, of);
    let options = EvalOptions {
        batch: 100,
        draws: 1,
        importance: 1,
        seed: 0,
        limit: None,
        progress: Some(&go_on),
        ranks: &Single,
    };
    let measured = evaluate_each(model, split, &options)?;
    Ok(measured.ok_or(Stopped)?.0.bits_per_dim + f64::from(8 - model.config().bits()))
}

/// Adds what is measured beside the model's number: codecs on the first images of `split` (and the model on the same ones), and the
/// Gaussians fitted to the training set.
///
/// # Errors
/// As [`score`] and [`codecs::codec_bits`].
pub fn baselines(
    beside: &mut Baselines,
    scoring: Scoring,
    data: &Dataset,
    split: &Split,
    all: &Evaluation,
) -> Result<()> {
    let Scoring { model, recipe, ranks, .. } = scoring;
    if let (Values::Reals(train), Values::Reals(test)) = (&data.train.values, &split.values) {
        // Gaussians of x alone would be no comparison for p(x | c).
        if *model.config().context() == ContextConfig::default() {
            let test = &test[..all.images * split.dims()];
            beside.gaussian = gaussians(train, test, split.dims(), 1);
            beside.mixture = gaussians(train, test, split.dims(), Baselines::COMPONENTS);
        }
        return Ok(());
    }
    let images = recipe.eval.codec_images.min(all.images);
    // Codecs and the Gaussian are for all the bits of an image of bytes.
    if model.config().bits() != 8 {
        return Ok(());
    }
    let (bits_per_dim, std_err) = codecs::gaussian_bits(&data.train, &split.take(all.images))?;
    beside.gaussian = Some(Gaussian { bits_per_dim, std_err });
    if images == 0 || !matches!(split.shape.as_slice(), [1 | 3, ..]) {
        return Ok(());
    }
    tracing::info!("compressing {images} images with PNG, WebP and JPEG XL");
    let codecs = codecs::codec_bits(&split.take(images), ranks)?;
    let model_bits_per_dim = if images == all.images {
        all.bits_per_dim
    } else {
        score(scoring, split, "images for the codecs", Some(images))?.bits_per_dim
    };
    beside.codecs = Some(Codecs {
        images,
        png_bits_per_dim: codecs.png.bits_per_dim,
        webp_bits_per_dim: codecs.webp.bits_per_dim,
        jxl_bits_per_dim: Some(codecs.jxl.bits_per_dim),
        png_how: codecs.png.how,
        webp_how: codecs.webp.how,
        jxl_how: Some(codecs.jxl.how),
        model_bits_per_dim,
    });
    Ok(())
}

/// The bits/dim of `k` Gaussians fitted to rows; `None` where there are not enough of them, or a column does not vary.
fn gaussians(train: &[f32], test: &[f32], dims: usize, k: usize) -> Option<Gaussian> {
    tracing::info!("fitting {k} Gaussian{} to the training examples", if k == 1 { "" } else { "s" });
    let (bits_per_dim, std_err) = Mixture::fit(train, dims, k)?.bits_per_dim(test);
    Some(Gaussian { bits_per_dim, std_err })
}

/// Labels for `n` samples, if the model has classes.
pub fn labels(model: &Model, n: usize, class: Option<u32>) -> Result<Option<Tensor>> {
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

/// A saved model, if this machine can hold it.
///
/// # Errors
/// When it cannot, or the folder holds no model.
pub fn load_model(weights: &Path, device: &Device) -> Result<Model> {
    load_model_as(weights, None, device)
}

/// As [`load_model`], to compute in `dtype`.
///
/// # Errors
/// As [`load_model`].
pub fn load_model_as(weights: &Path, dtype: Option<DType>, device: &Device) -> Result<Model> {
    ensure!(
        !weights.is_file(),
        "{} is a file: a model is a folder with config.json and model.safetensors",
        weights.display()
    );
    limits::saved(weights)?;
    Ok(Model::load_as(weights, dtype, device)?)
}

/// The recipe in the folder of the weights.
pub fn own_recipe(weights: &Path, sets: &[String]) -> Result<Recipe> {
    let path = weights.join(RECIPE);
    ensure!(
        path.exists(),
        "{} does not say which data its model is for: give --recipe NAME",
        weights.display()
    );
    Ok(Resolved::load(&path.to_string_lossy(), sets)?.recipe)
}
