//! What the commands that show latents and `flow doctor` share: their arguments, loading the model and the images, and writing
//! the picture with its numbers.
//!
//! Each takes its images from the test split of the weights' own data unless told otherwise, draws a labelled PNG, and
//! writes the numbers behind it beside it as safetensors, whose metadata hold the figures that are printed. The numbers
//! come from [`flows::latents`]. Both files are made under other names and put in their places together at the end, so
//! that a command that fails or is interrupted leaves what was there.

use crate::args::{Compute, DataArgs, Part, SPLIT_HELP, seed};
use crate::context::{self, CONTEXT_HELP, Given};
use crate::draw::draft::{self, Draft, numbers_of};
use crate::draw::samples::to_bytes;
use crate::draw::sheet::Cell;
use crate::hub::{WEIGHTS, Weights};
use crate::image_file::read_image;
use crate::output::{self, PICTURE, PNG};
use crate::progress::go_on;
use crate::saved;
use anyhow::{Context, Result, bail, ensure};
use candle_core::{DType, Device, Tensor};
use clap::Args;
use experiments::batches::{Augment, Batch, Examples};
use experiments::data::{self, Dataset, Request, Rows, Split, Values};
use experiments::limits::{self, Use};
use experiments::ranks::Single;
use experiments::recipe::{Recipe, Resolved};
use flows::Model;
use flows::params::rng_for;
use serde_json::{Map, Value};
use std::collections::HashMap;
use std::path::{Path, PathBuf};
use std::sync::Arc;

/// Images that go through the flow together.
pub const BATCH: usize = 100;

/// What all of these commands take.
#[derive(Args, Clone)]
pub struct Base {
    /// Folder with config.json and model.safetensors, or a model of the Hugging Face Hub.
    #[arg(value_name = WEIGHTS)]
    pub weights: Weights,
    /// Class, for a class-conditional model (default: the labels of the images, or all in turn).
    #[arg(long)]
    pub class: Option<u32>,
    /// Seed of dequantization noise and samples.
    #[arg(long, default_value_t = 0, allow_negative_numbers = true, value_parser = seed)]
    pub seed: u64,
    #[command(flatten)]
    pub compute: Compute,
    /// Print the result as one JSON object on the last line.
    #[arg(long)]
    pub json: bool,
}

/// Where the picture goes.
#[derive(Args)]
pub struct Out {
    /// Output file (.png), with the numbers beside it as .safetensors (default: the command's name).
    #[arg(long, value_name = "FILE")]
    pub out: Option<PathBuf>,
}

/// What a command takes that draws a sheet of images.
#[derive(Args)]
pub struct Grid {
    #[command(flatten)]
    pub base: Base,
    #[command(flatten)]
    pub out: Out,
    #[arg(long, value_name = "NUMBERS|FILE", allow_hyphen_values = true, help = CONTEXT_HELP)]
    pub context: Option<String>,
    /// Enlargement: screen pixels per image pixel (default: images about 64 pixels high).
    #[arg(long, value_parser = clap::value_parser!(u32).range(1..=256))]
    pub scale: Option<u32>,
}

/// Which data set.
#[derive(Args, Clone)]
pub struct Source {
    /// Recipe with the data settings (default: recipe.toml of the folder).
    #[arg(long)]
    pub recipe: Option<String>,
    /// Data set to use instead of the recipe's.
    #[arg(long, value_name = "NAME")]
    pub data_set: Option<String>,
    #[command(flatten)]
    pub data: DataArgs,
}

/// Which part of which data set.
#[derive(Args, Clone)]
pub struct Which {
    #[command(flatten)]
    pub source: Source,
    #[arg(long, value_enum, help = SPLIT_HELP)]
    pub split: Option<Part>,
}

/// Images of a data set or from files.
#[derive(Args)]
pub struct Images {
    /// Images: indices in the split, or files of pictures (default: the first ones).
    pub images: Vec<String>,
    #[command(flatten)]
    pub from: Which,
}

/// Images as a flow takes them.
pub struct Picked {
    /// What each is called.
    pub names: Vec<String>,
    /// Dequantised, (B, C, H, W).
    pub x: Tensor,
    /// Labels and features, where the model is given any.
    pub given: Given,
}

/// Images as bytes, before they have noise.
#[derive(Default)]
pub struct Chosen {
    /// What each is called.
    pub names: Vec<String>,
    /// All of them in the model's shape, planar, one after the other.
    pub pixels: Vec<u8>,
    /// The label of each, as far as they have one.
    pub labels: Vec<u32>,
    /// The shape of features, and those of each, as far as they have any.
    pub features: Option<(Vec<usize>, Vec<Vec<f32>>)>,
    /// The number that each image's noise is drawn by: of an image of the data its place, so that its noise is always the same.
    pub noise: Vec<u64>,
}

/// A part of a data set.
pub struct Named {
    /// The data set.
    pub name: String,
    /// Its examples.
    pub split: Split,
    /// Which part they are.
    pub part: Part,
}

/// What a running picture command has: its arguments, the model, the device, and the picture that is being written.
pub struct Session<'a> {
    pub base: &'a Base,
    pub command: &'static str,
    /// What `--context` says.
    pub context: Option<&'a str>,
    pub model: Arc<Model>,
    /// Where the weights are, those of the hub in its cache.
    pub folder: PathBuf,
    pub device: Device,
    /// What the picture is until it is finished.
    pub draft: Draft,
}

/// The recipe whose data are asked for, with the model of the weights in this folder.
fn recipe(model: &Model, folder: &Path, source: &Source, set: Option<&str>) -> Result<Recipe> {
    let sets: Vec<String> = set.iter().map(|name| format!("data.set={name}")).collect();
    let mut recipe = match &source.recipe {
        Some(name) => Resolved::load(name, &sets)?.recipe,
        None => saved::own_recipe(folder, &sets)?,
    };
    recipe.model = model.config().clone();
    limits::recipe(&recipe, Use::Evaluation, model.params().device().is_cpu(), &Single)?;
    Ok(recipe)
}

/// Loads a data set and says which it is.
fn load(request: &Request) -> Result<Dataset> {
    let data = saved::load(request)?;
    tracing::info!("{}: {}", data.name, data.revision);
    Ok(data)
}

/// A part of the data that the arguments name, for the model of the weights in this folder.
pub fn part(model: &Model, folder: &Path, from: &Which) -> Result<Named> {
    let source = &from.source;
    part_of(model, folder, from, source.data_set.as_deref(), source.data.dir.clone(), false)
}

/// A part of the data set of this name (default: the recipe's own), from this folder; `foreign` says that the weights were not
/// trained on it, whatever its name.
fn part_of(
    model: &Model,
    folder: &Path,
    from: &Which,
    set: Option<&str>,
    dir: Option<PathBuf>,
    foreign: bool,
) -> Result<Named> {
    let data = data_of(model, folder, from, set, dir, foreign, 1)?;
    let (split, part) = saved::part(&data, from.split)?;
    Ok(Named { name: data.name.clone(), split: split.clone(), part })
}

/// As [`part_of`] the data set, with its first `train` training examples, or all where the arguments ask for them.
fn data_of(
    model: &Model,
    folder: &Path,
    from: &Which,
    set: Option<&str>,
    dir: Option<PathBuf>,
    foreign: bool,
    train: usize,
) -> Result<Dataset> {
    let mut request = recipe(model, folder, &from.source, set)?.request(dir);
    let few = !matches!(from.split, Some(Part::Train | Part::All));
    // More would be drawn for nothing. Data that are read from files may have fewer, which is no error.
    let sized = data::known(&request.name).is_some_and(|set| set.train.is_some());
    if few && (sized || request.train.is_some()) {
        request.train = Some(request.train.map_or(train, |all| all.min(train)));
    }
    request.join = saved::join(from.split, &request.name, folder, foreign);
    let mut data = load(&request)?;
    if few {
        data.train.truncate(train);
    }
    Ok(data)
}

/// Refuses examples that the model of these weights does not take.
pub fn fits(split: &Split, name: &str, model: &Model, weights: &Weights) -> Result<()> {
    ensure!(
        split.shape == model.config().shape(),
        "`{name}` has examples of shape {:?}, the model of {weights} takes {:?}: choose other data with --data-set or --recipe",
        split.shape,
        model.config().shape()
    );
    Ok(())
}

impl<'a> Session<'a> {
    /// Refuses a place where nothing can be written, then loads the weights.
    pub fn open(base: &'a Base, out: &Out, command: &'static str) -> Result<Self> {
        let named = out.out.is_some();
        let out = out.out.clone().unwrap_or_else(|| PathBuf::from(format!("{command}.png")));
        output::writable(&out, PNG, PICTURE)?;
        let numbers = numbers_of(&out)?;
        // Only a picture with its numbers beside it is of an earlier call.
        ensure!(
            named || !out.exists() || numbers.exists(),
            "{0} is there and is not of `flow {command}`: name another file, or say --out {0} to replace it",
            out.display()
        );
        Self::load(base, out, command)
    }

    /// As [`Session::open`] for a command that draws images, with their shape.
    pub fn sheet(grid: &'a Grid, command: &'static str) -> Result<(Self, [usize; 3])> {
        let mut session = Self::open(&grid.base, &grid.out, command)?;
        session.context = grid.context.as_deref();
        let shape = session.shape()?;
        Ok((session, shape))
    }

    /// Refuses a model of p(x | c), for a command that compares examples which may have no c.
    pub fn without_features(&self) -> Result<()> {
        let (config, command) = (self.model.config(), self.command);
        ensure!(
            config.context().shape(config.shape())?.is_none(),
            "`flow {command}` gives a model no features, and that of {} is one of p(x | c): use `flow eval`, `flow sample` or \
             `flow encode`",
            self.base.weights
        );
        Ok(())
    }

    pub fn load(base: &'a Base, out: PathBuf, command: &'static str) -> Result<Self> {
        let device = base.compute.open()?;
        let (folder, _) = base.weights.locate()?;
        let model = saved::load_model(&folder, &device)?;
        // Refused here whether or not the command comes to need labels.
        saved::labels(&model, 1, base.class)?;
        let model = Arc::new(model);
        Ok(Self { base, command, context: None, model, folder, device, draft: Draft::new(out) })
    }

    /// The shape of the model's images.
    pub fn shape(&self) -> Result<[usize; 3]> {
        match *self.model.config().shape() {
            [channels @ (1 | 3), height, width] => Ok([channels, height, width]),
            ref shape => bail!(
                "the model of {} takes vectors of shape {shape:?}, and `flow {}` draws images: choose a model of grey or \
                 RGB images{}",
                self.base.weights,
                self.command,
                if shape[..] == [2] { ", or draw this one with `flow density`" } else { "" }
            ),
        }
    }

    /// The data that the arguments name, training images and all; those of the user's own may be put into one split ([`saved::join`]).
    pub fn data(&self, source: &Source, split: Option<Part>) -> Result<Dataset> {
        let recipe = recipe(&self.model, &self.folder, source, source.data_set.as_deref())?;
        let request = recipe.request(source.data.dir.clone());
        let join = saved::join(split, &request.name, &self.folder, false);
        load(&Request { join, ..request })
    }

    /// A part of the data that the arguments name.
    pub fn part(&self, from: &Which) -> Result<Named> {
        part(&self.model, &self.folder, from)
    }

    /// A part of the data set of this name, as [`part_of`].
    pub fn part_of(&self, from: &Which, set: &str, dir: Option<PathBuf>, foreign: bool) -> Result<Named> {
        part_of(&self.model, &self.folder, from, Some(set), dir, foreign)
    }

    /// The data set of the part that the arguments name, with its first `train` training examples, or all where they ask for them.
    pub fn data_of(&self, from: &Which, train: usize) -> Result<Dataset> {
        let source = &from.source;
        let (set, dir) = (source.data_set.as_deref(), source.data.dir.clone());
        data_of(&self.model, &self.folder, from, set, dir, false, train)
    }

    /// The images that the arguments name, or else the first `n`; data are read only where they are needed.
    pub fn images(&self, images: &Images, n: usize) -> Result<Picked> {
        let specs = &images.images;
        let needed = specs.is_empty() || specs.iter().any(|spec| spec.parse::<usize>().is_ok());
        let part = if needed { Some(self.part(&images.from)?) } else { None };
        let all = part.as_ref().map_or(0, |part| part.split.len());
        let first: Vec<String> = (0..n.min(all)).map(|i| i.to_string()).collect();
        self.pick(if specs.is_empty() { &first } else { specs }, part.as_ref())
    }

    /// Images by their number in `part`, or by their file.
    pub fn pick(&self, specs: &[String], part: Option<&Named>) -> Result<Picked> {
        let shape = self.shape()?;
        // Files are cropped and resized as the images that the model was trained on.
        let size = saved::own_recipe(&self.folder, &[]).ok().and_then(|recipe| recipe.data.size);
        let mut chosen = Chosen::default();
        for (i, spec) in specs.iter().enumerate() {
            let (Ok(place), Some(part)) = (spec.parse::<usize>(), part) else {
                let path = Path::new(spec);
                ensure!(
                    !self.draft.replaces(path),
                    "--out {spec} is one of the images: choose another name for the picture"
                );
                chosen.names.push(data::file_name(path));
                chosen.pixels.extend(read_image(path, shape, size)?);
                chosen.noise.push(i as u64);
                continue;
            };
            self.choose(&mut chosen, part, place)?;
        }
        self.picked(chosen)
    }

    /// Adds the image at `place` of `part`.
    pub fn choose(&self, chosen: &mut Chosen, part: &Named, place: usize) -> Result<()> {
        self.fits(&part.split, &part.name)?;
        ensure!(
            place < part.split.len(),
            "there is no image {place} in `{}`, which has images 0 to {}",
            part.name,
            part.split.len() - 1
        );
        chosen.names.push(place.to_string());
        chosen.pixels.extend_from_slice(part.split.pixels(place));
        chosen.labels.extend(part.split.labels.as_ref().map(|l| l[place]));
        if let Some(rows) = &part.split.context {
            let own = chosen.features.get_or_insert_with(|| (rows.shape.clone(), Vec::new()));
            own.1.push(rows.row(place).to_vec());
        }
        chosen.noise.push(place as u64);
        Ok(())
    }

    /// Images as the flow takes them.
    pub fn picked(&self, chosen: Chosen) -> Result<Picked> {
        let Chosen { names, pixels, labels, features, noise } = chosen;
        let complete = labels.len() == names.len();
        ensure!(
            self.model.config().classes().is_none() || self.base.class.is_some() || complete,
            "this model is class-conditional and a file has no label: say the class with --class N"
        );
        let labels = complete.then_some(labels);
        let split = Split::new(self.shape()?.to_vec(), Values::Pixels(pixels), labels, None)?;
        let own = features.filter(|(_, rows)| rows.len() == names.len());
        let own = own.map(|(shape, rows)| Rows { shape, values: rows.concat() });
        let own = context::of_images(&self.model, names.len(), own, self.context)?;
        let batch = self.batch(split.with_context(own)?, &noise)?;
        let x = batch.x.to_dtype(self.model.params().dtype())?;
        Ok(Picked { names, x, given: Given::from(batch.context()) })
    }

    /// As [`fits`].
    pub fn fits(&self, split: &Split, name: &str) -> Result<()> {
        fits(split, name, &self.model, &self.base.weights)
    }

    /// A split as the flow takes it, with noise by place and seed.
    pub fn dequantise(&self, split: &Split) -> Result<Tensor> {
        let places: Vec<u64> = (0..split.len() as u64).collect();
        Ok(self.batch(split.clone(), &places)?.x.to_dtype(self.model.params().dtype())?)
    }

    /// A split as the flow takes it, with the noise of these places, and its context.
    pub fn batch(&self, mut split: Split, noise_of: &[u64]) -> Result<Batch> {
        if let Some(class) = self.base.class {
            split.labels = Some(vec![class; split.len()]);
        }
        let examples = Examples::new(&split, self.model.config())?;
        let noise = rng_for(self.base.seed, "show");
        let host = examples.host(noise_of.iter().copied().enumerate(), &noise, Augment::default());
        examples.batch(host, &self.device)
    }

    /// What `f` makes of all of a split, a batch at a time, put together.
    pub fn over(
        &self,
        split: &Split,
        f: impl Fn(&Tensor, flows::Context) -> Result<Tensor>,
    ) -> Result<Tensor> {
        let mut done = Vec::new();
        for first in (0..split.len()).step_by(BATCH) {
            go_on()?;
            let end = (first + BATCH).min(split.len());
            let places: Vec<u64> = (first as u64..end as u64).collect();
            let batch = self.batch(split.slice(first..end), &places)?;
            done.push(f(&batch.x.to_dtype(self.model.params().dtype())?, batch.context())?);
        }
        Ok(Tensor::cat(&done, 0)?)
    }

    /// The context of `n` samples: the class or all in turn, and what `--context` says.
    pub fn given(&self, n: usize) -> Result<Given> {
        Given::new(&self.model, n, self.base.class, self.context)
    }

    /// Labels for `n` samples, if the model is class-conditional.
    pub fn labels(&self, n: usize) -> Result<Option<Tensor>> {
        saved::labels(&self.model, n, self.base.class)
    }

    /// Returns `x`, or an error if it holds a NaN or an infinity. `what` and `remedy` are parts of the message.
    pub fn finite(&self, x: Tensor, what: &str, remedy: &str) -> Result<Tensor> {
        ensure!(
            flows::params::is_finite(&x)?,
            "{what} are not finite, for the inverse of {} overflows there: {remedy}",
            self.base.weights
        );
        Ok(x)
    }

    /// Each image of (B, C, H, W) as a cell without a caption, or `None` where a value is not finite: far from the mean an
    /// inverse may overflow, and that cell stays empty.
    pub fn seen(&self, x: &Tensor) -> Result<Vec<Option<Cell>>> {
        let cells = self.cells(x)?.into_iter().zip(finite_rows(x)?);
        Ok(cells.map(|(cell, finite)| cell.filter(|_| finite)).collect())
    }

    /// Each image of (B, C, H, W) as bytes that can be seen.
    pub fn bytes(&self, x: &Tensor) -> Result<Vec<Vec<u8>>> {
        let dims: usize = x.dims()[1..].iter().product();
        let all = to_bytes(&host(x)?, self.model.config().bits());
        Ok(all.chunks_exact(dims).map(<[u8]>::to_vec).collect())
    }

    /// Each image of (B, C, H, W) as a cell without a caption.
    pub fn cells(&self, x: &Tensor) -> Result<Vec<Option<Cell>>> {
        let cell = |bytes| Some(Cell { bytes, caption: String::new() });
        Ok(self.bytes(x)?.into_iter().map(cell).collect())
    }

    /// A title that says which model.
    pub fn title(&self, what: &str) -> String {
        let name = match self.base.weights.is_of_the_hub() {
            true => self.base.weights.to_string(),
            false => data::file_name(&self.folder.canonicalize().unwrap_or_else(|_| self.folder.clone())),
        };
        format!("{what}: {name}")
    }

    /// Writes the numbers beside the picture, then prints: `lines` for people, or one object.
    pub fn finish(&self, figures: Value, tensors: Vec<(&str, Tensor)>, lines: &[String]) -> Result<()> {
        let mut object = Map::from_iter([
            ("command".to_owned(), Value::from(self.command)),
            ("weights".to_owned(), self.base.weights.to_string().into()),
            ("seed".to_owned(), self.base.seed.into()),
        ]);
        if let Value::Object(figures) = figures {
            object.extend(figures);
        }
        let (picture, numbers) = (self.draft.path(), numbers_of(self.draft.path())?);
        let meta = HashMap::from([(draft::KEY.to_owned(), Value::Object(object.clone()).to_string())]);
        let tensors = tensors
            .into_iter()
            .map(|(name, t)| Ok((name, t.to_device(&Device::Cpu)?.contiguous()?)))
            .collect::<Result<Vec<_>>>()?;
        let bytes = safetensors::serialize(tensors.iter().map(|(n, t)| (*n, t)), Some(meta))
            .with_context(|| format!("cannot encode {}", numbers.display()))?;
        go_on()?;
        self.draft.finish(&numbers, &bytes)?;
        if self.base.json {
            object.insert("file".to_owned(), picture.display().to_string().into());
            object.insert("numbers".to_owned(), numbers.display().to_string().into());
            output::line(Value::Object(object))?;
        } else {
            let files = format!("{} and its numbers in {}", picture.display(), numbers.display());
            output::line(lines.iter().cloned().chain([files]).collect::<Vec<_>>().join("\n"))?;
        }
        Ok(())
    }
}

/// The values of a tensor.
pub fn host(t: &Tensor) -> Result<Vec<f32>> {
    Ok(t.to_dtype(DType::F32)?.flatten_all()?.to_vec1()?)
}

/// The values of a tensor in double precision.
pub fn doubles(t: &Tensor) -> Result<Vec<f64>> {
    Ok(t.to_dtype(DType::F64)?.flatten_all()?.to_vec1()?)
}

/// Which examples of (B, ..) have finite values only.
pub fn finite_rows(x: &Tensor) -> Result<Vec<bool>> {
    let dims: usize = x.dims()[1..].iter().product();
    Ok(host(x)?.chunks_exact(dims).map(|v| v.iter().all(|x| x.is_finite())).collect())
}

/// The largest of some values; a NaN among them is the largest.
pub fn largest(values: &[f64]) -> f64 {
    values
        .iter()
        .copied()
        .fold(f64::NEG_INFINITY, |a, b| if a.is_nan() || b.is_nan() { f64::NAN } else { a.max(b) })
}

/// The mean of some values.
pub fn mean(values: &[f64]) -> f64 {
    values.iter().sum::<f64>() / values.len() as f64
}

/// The share of pairs in which a value of `high` is above one of `low`, ties counted half: the area under the ROC curve.
pub fn auroc(high: &[f64], low: &[f64]) -> f64 {
    let mut low = low.to_vec();
    low.sort_by(f64::total_cmp);
    let below = |v: f64| {
        let less = low.partition_point(|l| *l < v) as f64;
        0.5 * (less + low.partition_point(|l| *l <= v) as f64)
    };
    high.iter().map(|v| below(*v)).sum::<f64>() / (high.len() * low.len()) as f64
}

/// Refuses a temperature that no sample can have.
///
/// # Errors
/// When it is negative or not finite.
pub fn check_temperature(t: f64) -> Result<()> {
    ensure!(t >= 0. && t.is_finite(), "--temperature {t}: it must be 0 or more");
    Ok(())
}

/// A number in three digits or so.
pub fn brief(v: f64) -> String {
    match v.abs() {
        a if a == 0. || (1e-2..1e4).contains(&a) => {
            let text = format!("{v:.3}");
            text.trim_end_matches('0').trim_end_matches('.').to_owned()
        }
        _ => format!("{v:.1e}"),
    }
}

/// Runs a command's computation on a thread of the pool: small tensors would cost more to hand over than to compute.
pub fn pooled<T: Send>(f: impl FnOnce() -> Result<T> + Send) -> Result<T> {
    let mut result = None;
    rayon::scope(|_| result = Some(f()));
    result.expect("the scope has run")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_area_under_the_curve_counts_pairs() {
        assert_eq!(auroc(&[2., 3.], &[0., 1.]), 1.);
        assert_eq!(auroc(&[0., 1.], &[0., 1.]), 0.5);
        assert_eq!(auroc(&[0.], &[1., 1., 0., -1.]), 0.375);
    }

    #[test]
    fn numbers_are_short() {
        assert_eq!(
            [brief(0.), brief(0.25), brief(1.), brief(12.3456), brief(3.2e-5)],
            ["0", "0.25", "1", "12.346", "3.2e-5"]
        );
    }
}
