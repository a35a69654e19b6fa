//! What samples are given beside their latents: class labels, and the features of a context.

use crate::image_file::read_image;
use crate::saved::labels;
use anyhow::{Context as _, Result, bail, ensure};
use candle_core::{DType, Device, Tensor};
use experiments::batches::{Augment, Examples};
use experiments::data::npy::{parse_npy, parse_npz, rows};
use experiments::data::{Rows, Split, read_file};
use flows::models::ContextConfig;
use flows::params::rng_for;
use flows::{Context, Model};
use std::path::Path;

/// What `--context` takes.
pub const CONTEXT_HELP: &str = "Context of a model of p(x | c): numbers as in 0.5,-1; rows of an .npy file, or of `c` in an .npz file, \
                                which samples take in turn; or, where the context is made of an image, a picture";

/// The context of some samples.
#[derive(Clone)]
pub struct Given {
    labels: Option<Tensor>,
    features: Option<Tensor>,
}

impl Given {
    /// The context of `n` samples: this class or all in turn, and the features that `--context` says, each in turn.
    ///
    /// # Errors
    /// When the model has no such class or context, or needs one.
    pub fn new(model: &Model, n: usize, class: Option<u32>, context: Option<&str>) -> Result<Self> {
        let labels = labels(model, n, class)?;
        let shape = model.config().context().shape(model.config().shape())?;
        let features = match (shape, context) {
            (None, None) => None,
            (None, Some(_)) => bail!("this model is given no features: leave out --context"),
            (Some(shape), None) => bail!(
                "this is a model of p(x | c), and c has the shape {shape:?}: say it with --context, as numbers or as a file"
            ),
            (Some(shape), Some(text)) => {
                let rows = in_turn(model, n, &shape, text)?;
                Some(Tensor::from_vec(rows.values, [&[n][..], &shape].concat(), model.params().device())?)
            }
        };
        Ok(Self { labels, features })
    }

    /// The contexts of `n` examples of a split, the first ones, and then again.
    ///
    /// # Errors
    /// When the examples are not the model's.
    pub fn of(model: &Model, split: &Split, n: usize) -> Result<Self> {
        let config = model.config();
        if config.context().shape(config.shape())?.is_none() {
            return Self::new(model, n, None, None);
        }
        let examples = Examples::new(split, config)?;
        let places = (0..n).map(|i| (i % split.len(), (i % split.len()) as u64));
        let host = examples.host(places, &rng_for(0, "context"), Augment::default());
        Ok(Self::from(examples.batch(host, model.params().device())?.context()))
    }

    /// As a pass takes it.
    #[must_use]
    pub fn context(&self) -> Context<'_> {
        Context { labels: self.labels.as_ref(), features: self.features.as_ref() }
    }

    /// That of sample `i`, for `n` others.
    ///
    /// # Errors
    /// When there is no such sample.
    pub fn repeat(&self, i: usize, n: usize) -> Result<Self> {
        self.rows(|_| i, n)
    }

    /// Those of all samples in turn, for `n` others.
    ///
    /// # Errors
    /// When there is no sample.
    pub fn turns(&self, n: usize) -> Result<Self> {
        self.rows(|turn| turn, n)
    }

    /// Those of the samples at `place(0)`, .., `place(n - 1)`, counted again from 0 where they end.
    ///
    /// # Errors
    /// When there is no sample.
    pub fn rows(&self, place: impl Fn(usize) -> usize, n: usize) -> Result<Self> {
        let rows = |t: &Tensor| {
            let len = t.dim(0)?.max(1);
            let places = (0..n).map(|i| (place(i) % len) as u32).collect::<Vec<_>>();
            t.index_select(&Tensor::from_vec(places, n, t.device())?, 0)
        };
        let labels = self.labels.as_ref().map(rows).transpose()?;
        Ok(Self { labels, features: self.features.as_ref().map(rows).transpose()? })
    }

    /// Whether there is any.
    #[must_use]
    pub fn is_some(&self) -> bool {
        self.labels.is_some() || self.features.is_some()
    }

    /// Its tensors by the names that they have in a file.
    #[must_use]
    pub fn named(self) -> Vec<(&'static str, Tensor)> {
        let both = [self.labels.map(|t| ("labels", t)), self.features.map(|t| ("c", t))];
        both.into_iter().flatten().collect()
    }
}

impl From<Context<'_>> for Given {
    fn from(context: Context) -> Self {
        Self { labels: context.labels.cloned(), features: context.features.cloned() }
    }
}

/// The context of images: `own`, which came with them, or what `--context` says, each in turn; nothing for a model of p(x), and for one
/// whose context is made of the images.
///
/// # Errors
/// When the model takes no such context, or needs one.
pub fn of_images(model: &Model, n: usize, own: Option<Rows>, context: Option<&str>) -> Result<Option<Rows>> {
    match (model.config().context(), context) {
        (ContextConfig::Features { shape }, Some(text)) => in_turn(model, n, shape, text).map(Some),
        (ContextConfig::Features { shape }, None) => {
            let own = own.with_context(|| {
                format!("this is a model of p(x | c), c has the shape {shape:?}, and the images have none: say it with --context")
            });
            own.map(Some)
        }
        (ContextConfig::None {} | ContextConfig::Labels { .. }, Some(_)) => {
            bail!("this model is given no features: leave out --context")
        }
        (_, Some(_)) => {
            bail!("the context of this model is made of the images themselves: leave out --context")
        }
        (_, None) => Ok(None),
    }
}

/// The context of `n` samples: what `--context` names, each in turn.
fn in_turn(model: &Model, n: usize, shape: &[usize], text: &str) -> Result<Rows> {
    let rows = read(model, shape, text)?;
    let values = (0..n).flat_map(|i| rows.row(i % rows.len()).to_vec()).collect();
    Ok(Rows { shape: shape.to_vec(), values })
}

/// The rows that `--context` names, of a model whose features have this shape.
fn read(model: &Model, shape: &[usize], text: &str) -> Result<Rows> {
    let path = Path::new(text);
    let numbers: Option<Vec<f32>> = text.split(',').map(|n| n.trim().parse().ok()).collect();
    let rows = match (numbers, path.extension().and_then(|e| e.to_str())) {
        (Some(values), _) => Rows { shape: vec![values.len()], values },
        (None, Some("npy")) => rows(parse_npy(&read_file(path)?, text)?, text)?,
        (None, Some("npz")) => {
            let c = parse_npz(&read_file(path)?, text)?.remove("c");
            rows(c.with_context(|| format!("{text} has no array `c`: name the context so"))?, text)?
        }
        _ => picture(model, shape, path)?,
    };
    let image = model.config().shape();
    within(model, &rows, text)?;
    if rows.shape == image && rows.shape != shape && image.len() == 3 {
        let sides = [&[rows.len()][..], image].concat();
        let x = Tensor::from_vec(rows.values, sides, &Device::Cpu)?;
        return made(model.config().context(), shape, &x);
    }
    ensure!(
        rows.shape == shape && rows.values.iter().all(|v| v.is_finite()),
        "--context {text}: numbers of the shape {:?} for each sample, where the model takes {shape:?}, all finite",
        rows.shape
    );
    Ok(rows)
}

/// A picture as a context: the image that it is made of, or of its own size.
fn picture(model: &Model, shape: &[usize], path: &Path) -> Result<Rows> {
    let (&[c, h, w], &[e, p, q]) = (model.config().shape(), shape) else {
        bail!("--context {}: give numbers as in 0.5,-1, or a file that ends in .npy or .npz", path.display())
    };
    let whole = read_image(path, [c, h, w], None);
    let bits = model.config().bits();
    let levels = |bytes: Vec<u8>| bytes.into_iter().map(|v| f32::from(v >> (8 - bits))).collect();
    let bytes = match (whole, e == c) {
        (Err(_), true) => {
            return Ok(Rows { shape: shape.to_vec(), values: levels(read_image(path, [e, p, q], None)?) });
        }
        (whole, _) => whole?,
    };
    made(model.config().context(), shape, &Tensor::from_vec(levels(bytes), (1, c, h, w), &Device::Cpu)?)
}

/// Refuses numbers that are no pixels where the context is made of images: those of an array of bytes that a model of fewer bits is
/// given would else be taken as they are.
fn within(model: &Model, rows: &Rows, text: &str) -> Result<()> {
    if matches!(model.config().context(), ContextConfig::Features { .. }) {
        return Ok(());
    }
    let most = (1u32 << model.config().bits()) as f32 - 1.;
    match rows.values.iter().find(|v| !(0. ..=most).contains(*v)) {
        Some(wrong) => bail!(
            "--context {text} holds {wrong}, and this model's pixels are from 0 to {most}: give numbers of this range, or a picture"
        ),
        None => Ok(()),
    }
}

/// The features that are made of images x.
fn made(context: &ContextConfig, shape: &[usize], x: &Tensor) -> Result<Rows> {
    let c = context.of_images(x)?.context("this model's context is not made of images: give its numbers")?;
    Ok(Rows { shape: shape.to_vec(), values: c.to_dtype(DType::F32)?.flatten_all()?.to_vec1()? })
}
