//! summary.json: what a run was, where it ran, and what came out.
//!
//! All bits/dim are in one unit, also for vectors: -log p / (D ln 2), so that a density's entropy, which is known in nats
//! a point, stands beside them.
//!
//! The commit is the one that the binary was built from (see build.rs; `-dirty` where sources differed from it, `unknown`
//! outside a git checkout). The command line is quoted as a shell takes it. Of a path in it that begins at the root of the file system
//! or leads upwards the last component is kept: a summary is meant to be published, such folders are those of one machine, and
//! their names may be a person's.

use crate::data::Dataset;
use crate::evaluate::Evaluation;
use crate::recipe::{Paper, Recipe};
use crate::run_dir::{self, SUMMARY, read_recipe};
use crate::shell;
use anyhow::{Context, Result};
use candle_core::Device;
use flows::models::ContextConfig;
use flows::models::file::stored;
use flows::ops::cuda::gpu_name;
use flows::ops::precision::Precision;
use flows::storage::write_atomic;
use serde::{Deserialize, Serialize};
use serde_json::{Map, Value, json};
use std::f64::consts::LN_2;
use std::path::{Component, Path};

/// Bits/dim of lossless codecs on the first test images, and of the model on the same images.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Codecs {
    /// Images that were compressed.
    pub images: usize,
    /// Bits/dim of PNG.
    pub png_bits_per_dim: f64,
    /// Bits/dim of lossless WebP.
    pub webp_bits_per_dim: f64,
    /// Bits/dim of lossless JPEG XL; summaries of earlier versions have none.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub jxl_bits_per_dim: Option<f64>,
    /// The arrangement that did better for PNG.
    pub png_how: String,
    /// The arrangement that did better for WebP.
    pub webp_how: String,
    /// The arrangement that did better for JPEG XL.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub jxl_how: Option<String>,
    /// The model on the same images.
    pub model_bits_per_dim: f64,
}

impl Codecs {
    /// Name, bits/dim and arrangement of each codec that was measured.
    pub fn each(&self) -> impl Iterator<Item = (&'static str, f64, &str)> {
        let jxl = self.jxl_bits_per_dim.zip(self.jxl_how.as_deref());
        [
            Some(("PNG", self.png_bits_per_dim, self.png_how.as_str())),
            Some(("WebP", self.webp_bits_per_dim, self.webp_how.as_str())),
            jxl.map(|(bits, how)| ("JPEG XL", bits, how)),
        ]
        .into_iter()
        .flatten()
    }
}

/// An independent Gaussian for each subpixel, fitted to the training images; for vectors one or more Gaussians with full covariances
/// ([`mixture`](crate::mixture)).
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Gaussian {
    /// Bits/dim on the test images.
    pub bits_per_dim: f64,
    /// Its standard error.
    pub std_err: f64,
}

/// What a bits/dim is compared with.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
pub struct Baselines {
    /// The entropy of the data is at least this, in bits/dim.
    pub entropy_lower: Option<f64>,
    /// The entropy of the data is at most this, in bits/dim.
    pub entropy_upper: Option<f64>,
    /// Lossless codecs.
    pub codecs: Option<Codecs>,
    /// The Gaussian baseline.
    pub gaussian: Option<Gaussian>,
    /// For vectors, a mixture of [`Baselines::COMPONENTS`] Gaussians.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub mixture: Option<Gaussian>,
    /// The paper's number.
    pub paper: Option<Paper>,
}

impl Baselines {
    /// Gaussians in [`Baselines::mixture`].
    pub const COMPONENTS: usize = 10;

    /// The baselines that are known before anything is measured. Entropies of densities, in nats a point, become bits/dim.
    ///
    /// The paper's number applies to bytes, as does the entropy of a set that does not know it for fewer bits per pixel.
    #[must_use]
    pub fn new(recipe: &Recipe, data: &Dataset) -> Self {
        let scale = if data.test.is_pixels() { 1. } else { 1. / (data.test.dims() as f64 * LN_2) };
        let bits = recipe.model.bits();
        let bytes = !data.test.is_pixels() || bits == 8;
        let entropy = if bytes { data.entropy } else { data.entropy_of_bits.map(|of| of(bits)) };
        // The entropy is that of p(x), or of p(x | c) where the data have a context c. A model that is given anything else learns another
        // density, of which it is no bound.
        let given = match recipe.model.context() {
            ContextConfig::None {} => data.test.context.is_none(),
            ContextConfig::Features { .. } => true,
            _ => false,
        };
        let entropy = entropy.filter(|_| given && recipe.model.classes().is_none());
        Self {
            entropy_lower: entropy.map(|e| e.lower * scale),
            entropy_upper: entropy.map(|e| e.upper * scale),
            codecs: None,
            gaussian: None,
            mixture: None,
            paper: recipe.paper.clone().filter(|_| bytes),
        }
    }

    /// Adds its keys to the `--json` object.
    pub fn json(&self, object: &mut Map<String, Value>) {
        let (codecs, paper) = (self.codecs.as_ref(), self.paper.as_ref());
        let known = [
            ("entropy_lower", self.entropy_lower),
            ("entropy_upper", self.entropy_upper),
            ("png_bits_per_dim", codecs.map(|c| c.png_bits_per_dim)),
            ("webp_bits_per_dim", codecs.map(|c| c.webp_bits_per_dim)),
            ("jxl_bits_per_dim", codecs.and_then(|c| c.jxl_bits_per_dim)),
            ("model_bits_per_dim_on_codec_images", codecs.map(|c| c.model_bits_per_dim)),
            ("gaussian_bits_per_dim", self.gaussian.as_ref().map(|g| g.bits_per_dim)),
            ("mixture_bits_per_dim", self.mixture.as_ref().map(|g| g.bits_per_dim)),
            ("paper", paper.map(|p| p.bits_per_dim)),
            ("paper_log_likelihood", paper.and_then(|p| p.log_likelihood)),
        ];
        object.extend(known.into_iter().filter_map(|(key, value)| Some((key.to_owned(), value?.into()))));
        object.extend(codecs.map(|c| ("codec_images".to_owned(), c.images.into())));
    }
}

/// Where a run ran.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Machine {
    /// The processor's name.
    pub cpu: String,
    /// Logical cores.
    pub cores: usize,
    /// Threads that were used.
    pub threads: usize,
    /// Gibibytes of memory.
    pub memory_gib: f64,
    /// The operating system and architecture.
    pub os: String,
    /// The GPU's name, where one was used.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub gpu: Option<String>,
}

impl Machine {
    /// This machine, and the GPU that `device` is.
    ///
    /// # Errors
    /// When the driver does not tell the GPU's name.
    pub fn here(device: &Device) -> Result<Self> {
        let mut system = sysinfo::System::new();
        system.refresh_memory();
        system.refresh_cpu_list(sysinfo::CpuRefreshKind::nothing());
        let os = sysinfo::System::long_os_version().unwrap_or_else(|| std::env::consts::OS.to_owned());
        Ok(Self {
            cpu: system.cpus().first().map_or("unknown", |cpu| cpu.brand().trim()).to_owned(),
            cores: system.cpus().len(),
            threads: rayon::current_num_threads(),
            memory_gib: (system.total_memory() as f64 / f64::from(1 << 30) * 10.).round() / 10.,
            os: format!("{}, {}", os.trim(), std::env::consts::ARCH),
            gpu: gpu_name(device)?,
        })
    }
}

/// How training went.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Training {
    /// Updates made.
    pub updates: u64,
    /// Images seen, repeats counted.
    pub images_seen: u64,
    /// Images a second, over the updates alone.
    pub images_per_second: f64,
    /// Seconds of the whole training, validations and checkpoints included, over all resumes.
    pub wall_seconds: f64,
    /// Why it ended.
    pub stopped: String,
    /// The update whose weights were kept.
    pub best_update: Option<u64>,
    /// The updates after which the run had ended before it was extended; a run without them was made in one go.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub extended: Vec<u64>,
    /// The processes that trained, where there were several.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub ranks: Option<Together>,
}

/// Processes that trained a model together.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Together {
    /// How many there were, when the run ended.
    pub processes: usize,
    /// What batch norm normalised with, for a model that has it: "share", the statistics of each process's share of the batch.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub batch_statistics: Option<String>,
}

/// summary.json. Of one that was written elsewhere the recipe and the data are enough; whatever else it lacks is not recorded.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Summary {
    /// The recipe's name.
    pub recipe: String,
    /// The settings in which the recipe differs from the built-in one of its name ([`Recipe::changed`]), read from the folder's
    /// recipe where there is one; `None` in summaries of before this was recorded.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub changed: Option<Vec<String>>,
    /// The data set.
    pub data: String,
    /// Which bytes the data are.
    #[serde(default)]
    pub data_revision: String,
    /// Training, validation and test images.
    pub data_images: Option<[usize; 3]>,
    /// Trained scalars.
    pub parameters: Option<usize>,
    /// The seed of the run.
    pub seed: Option<u64>,
    /// The device.
    #[serde(default)]
    pub device: String,
    /// How training went.
    pub training: Option<Training>,
    /// The first training images, as many as there are in the validation set.
    pub train: Option<Evaluation>,
    /// The validation images.
    pub validation: Option<Evaluation>,
    /// The test images.
    pub test: Option<Evaluation>,
    /// The bits/dim in the precision in which training multiplied, where that was not full precision.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub rounded: Option<Rounded>,
    /// The dtype of the weights' file that the figures were measured of, where it is shorter than f32.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub measured: Option<String>,
    /// The images as `flow compress --record` has compressed them.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub on_disk: Option<OnDisk>,
    /// What stands beside the number.
    #[serde(flatten)]
    pub beside: Baselines,
    /// The commit of the source tree.
    #[serde(default)]
    pub commit: String,
    /// The version of the toolkit.
    #[serde(default)]
    pub version: String,
    /// The command line, without this machine's folders.
    #[serde(default)]
    pub command: String,
    /// The machine.
    pub machine: Option<Machine>,
}

/// A file of compressed images.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct OnDisk {
    /// The data set and its split.
    pub data: String,
    /// Images in the file.
    pub images: usize,
    /// Bits/dim of the file, all of it.
    pub bits_per_dim: f64,
    /// The model's bits/dim on these images.
    pub bound: f64,
    /// The share of the bits/dim that the file began with, which further images do not add to.
    pub initial_bits_per_dim: f64,
}

/// The saved model in the precision that it was trained in, on images that [`Summary`] has in full precision, too.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Rounded {
    /// That precision.
    pub precision: Precision,
    /// The split.
    pub split: String,
    /// Bits/dim in that precision.
    pub bits_per_dim: f64,
    /// That minus the bits/dim in full precision, from the same file with the same noise.
    pub gap: f64,
}

impl Summary {
    /// A trained run, nothing evaluated yet.
    ///
    /// # Errors
    /// When the recipe cannot be written as TOML.
    pub fn new(
        recipe: &Recipe,
        data: &Dataset,
        parameters: usize,
        (device, device_name): (&Device, &str),
        training: Training,
    ) -> Result<Self> {
        let valid = data.valid.as_ref().map_or(0, |valid| valid.len());
        Ok(Self {
            recipe: recipe.name.clone(),
            changed: Some(recipe.changed()?),
            data: recipe.data.set.clone(),
            data_revision: data.revision.clone(),
            data_images: Some([data.train.len(), valid, data.test.len()]),
            parameters: Some(parameters),
            seed: Some(recipe.train.seed),
            device: device_name.to_owned(),
            training: Some(training),
            train: None,
            validation: None,
            test: None,
            rounded: None,
            measured: None,
            on_disk: None,
            beside: Baselines::new(recipe, data),
            commit: env!("FLOW_COMMIT").to_owned(),
            version: env!("CARGO_PKG_VERSION").to_owned(),
            command: command(),
            machine: Some(Machine::here(device)?),
        })
    }

    /// Reads the summary of a run, or `None` where there is none.
    ///
    /// # Errors
    /// When there is one that cannot be read.
    pub fn read(dir: &Path) -> Result<Option<Self>> {
        let Some(bytes) = run_dir::read(&dir.join(SUMMARY))? else { return Ok(None) };
        let mut summary: Self =
            serde_json::from_slice(&bytes).with_context(|| run_dir::damaged(&dir.join(SUMMARY)))?;
        // `changed` is computed anew from the recipe: summaries of earlier versions recorded fewer changes or none.
        if let Some(recipe) = read_recipe(dir)? {
            summary.changed = Some(recipe.changed()?);
        }
        // Figures beside a file are the file's: those of weights before they were rounded to it are left out.
        if let Some(dtype) = short_dtype(dir)
            && summary.measured.as_deref() != Some(dtype)
        {
            summary.forget_figures();
        }
        Ok(Some(summary))
    }

    /// Leaves out what was measured of the weights.
    fn forget_figures(&mut self) {
        (self.train, self.validation, self.test, self.rounded) = (None, None, None, None);
        self.on_disk = None;
        self.beside.codecs = None;
    }

    /// Writes the summary into a run's folder.
    ///
    /// # Errors
    /// When the folder cannot be written.
    pub fn write(&self, dir: &Path) -> Result<()> {
        Ok(write_atomic(&dir.join(SUMMARY), &serde_json::to_vec_pretty(self)?)?)
    }

    /// The evaluation that counts, and its split: the test images', else the validation images'.
    #[must_use]
    pub fn score(&self) -> Option<(&'static str, &Evaluation)> {
        let all = [("test", &self.test), ("validation", &self.validation)];
        all.into_iter().find_map(|(split, score)| Some((split, score.as_ref()?)))
    }

    /// The object of `--json`; `weights` is the run's folder.
    #[must_use]
    pub fn json(&self, weights: &Path) -> Value {
        let mut object = match self.score() {
            Some((split, score)) => score_json(&self.recipe, split, score),
            None => Map::from_iter([("recipe".to_owned(), json!(self.recipe))]),
        };
        self.beside.json(&mut object);
        let training = self.training.as_ref();
        let known = [
            ("changed", self.changed.as_ref().map(|changed| json!(changed))),
            ("on_disk", self.on_disk.as_ref().map(|d| json!(d))),
            ("train_bits_per_dim", self.train.as_ref().map(|e| json!(e.bits_per_dim))),
            ("validation_bits_per_dim", self.validation.as_ref().map(|e| json!(e.bits_per_dim))),
            ("parameters", Some(json!(self.parameters))),
            ("updates", training.map(|t| json!(t.updates))),
            ("extended", training.filter(|t| !t.extended.is_empty()).map(|t| json!(t.extended))),
            ("images_seen", training.map(|t| json!(t.images_seen))),
            ("images_per_second", training.map(|t| json!(t.images_per_second))),
            ("wall_seconds", training.map(|t| json!(t.wall_seconds))),
            ("seed", Some(json!(self.seed))),
            ("commit", Some(json!(self.commit))),
            ("weights", Some(json!(weights.display().to_string()))),
        ];
        object.extend(known.into_iter().filter_map(|(key, value)| Some((key.to_owned(), value?))));
        Value::Object(object)
    }
}

/// The dtype of a folder's weights where it is shorter than f32, so that whatever was measured before they were stored is of
/// other weights; `None`, too, where there are none that can be read.
#[must_use]
pub fn short_dtype(dir: &Path) -> Option<&'static str> {
    let dtype = stored(dir).ok()?.dtype;
    (dtype.size_in_bytes() < 4).then(|| dtype.as_str())
}

/// The part of the `--json` object that one evaluation fills.
#[must_use]
pub fn score_json(recipe: &str, split: &str, score: &Evaluation) -> Map<String, Value> {
    let Value::Object(mut object) = json!(score) else { unreachable!("an evaluation is an object") };
    object.extend([("recipe".to_owned(), json!(recipe)), ("split".to_owned(), json!(split))]);
    object
}

/// The command line, see the module's documentation.
fn command() -> String {
    let args = std::env::args_os().skip(1).map(|arg| without_folders(&arg.to_string_lossy()));
    shell::line(std::iter::once("flow".to_owned()).chain(args))
}

/// An argument, or the value of `--option=value` and `key=value`, with its last component in the place of a path that leads out of
/// the present folder.
fn without_folders(arg: &str) -> String {
    let (key, value) = arg.split_at(arg.find('=').map_or(0, |at| at + 1));
    let outside = |part| !matches!(part, Component::Normal(_) | Component::CurDir);
    if !Path::new(value).components().any(outside) {
        return arg.to_owned();
    }
    let last = value.trim_end_matches(std::path::is_separator).rsplit(std::path::is_separator).next();
    format!("{key}{}", last.unwrap_or_default())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::data::{Request, load};
    use crate::recipe::Resolved;

    #[test]
    fn a_command_line_names_no_folder() {
        for (arg, kept) in [
            ("/home/ann/faces/", "faces"),
            ("--data=/home/ann/f.npy", "--data=f.npy"),
            ("../ann/run", "run"),
            ("runs/../../ann/f.npy", "f.npy"),
            ("--out=/home/ann/my run", "--out=my run"),
            ("runs/c2", "runs/c2"),
            ("./runs", "./runs"),
            ("about=/home/ann", "about=ann"),
            ("/", ""),
            ("--json", "--json"),
            ("train.schedule={kind='cosine',end=0.02}", "train.schedule={kind='cosine',end=0.02}"),
            ("hf:user/name@v1", "hf:user/name@v1"),
        ] {
            assert_eq!(without_folders(arg), kept, "{arg}");
        }
    }

    /// An entropy is a bound for a model of the same density only.
    #[test]
    fn a_model_of_another_density_has_no_entropy_beside_it() {
        for (name, set, known) in [
            ("moons", None, true),
            ("moons", Some("model.prior={kind='diagonal_gaussian',classes=2}"), false),
            ("bent", None, true),
            ("bent", Some("model.context=none"), false),
        ] {
            let sets: Vec<String> = set.into_iter().map(str::to_owned).collect();
            let recipe = Resolved::load(name, &sets).unwrap().recipe;
            let request = Request { train: Some(5), valid: Some(5), test: Some(5), ..recipe.request(None) };
            let beside = Baselines::new(&recipe, &load(&request, None).unwrap());
            assert_eq!(beside.entropy_lower.is_some(), known, "{name} {set:?}");
        }
    }

    #[test]
    fn codecs_of_an_earlier_summary_have_no_jpeg_xl() {
        let earlier = json!({
            "images": 300, "png_bits_per_dim": 6.0, "webp_bits_per_dim": 5.5, "png_how": "one sheet",
            "webp_how": "2 sheets", "model_bits_per_dim": 4.5
        });
        let mut codecs: Codecs = serde_json::from_value(earlier.clone()).unwrap();
        let each = |codecs: &Codecs| codecs.each().map(|(name, _, _)| name).collect::<Vec<_>>();
        assert_eq!(each(&codecs), ["PNG", "WebP"]);
        assert_eq!(serde_json::to_value(&codecs).unwrap(), earlier);
        let printed = |codecs: &Codecs| {
            let mut object = Map::new();
            Baselines { codecs: Some(codecs.clone()), ..Default::default() }.json(&mut object);
            object.get("jxl_bits_per_dim").cloned()
        };
        assert_eq!(printed(&codecs), None);

        (codecs.jxl_bits_per_dim, codecs.jxl_how) = (Some(4.75), Some("one sheet".to_owned()));
        assert_eq!(codecs.each().last(), Some(("JPEG XL", 4.75, "one sheet")));
        assert_eq!(printed(&codecs), Some(4.75.into()));
    }
}
