//! A saved flow is a folder of files: writing them, and reading them with every size, name and hash checked.
//!
//! [`ParamStore::save`] and [`ParamStore::load`] take a config of any type that serde can write; the configs of
//! [`models`](crate::models) are saved by them, too.
//!
//! ```text
//! config.json                     {"format": 2, "flows_version", "parameters", "config": {..}}
//! model.safetensors               every tensor under its path; metadata "flows": {"format": 2, "config_sha256": ".."}
//! model.safetensors.index.json    above `max_shard_size` instead: which tensor is in which
//!                                 model-00001-of-0000N.safetensors
//! ```
//!
//! The metadata is one JSON text under one key, because safetensors writes several keys in a random order, and a
//! model's bytes must depend on the model only. Its hash ties the weights to their config: the SHA-256 of the config's
//! canonical JSON (no space, keys sorted), as config.json has it and not as this version parses it, so that a later version,
//! which may have more settings, still agrees. A second hash, `weights_sha256`, is of all names, types, shapes and values: loading
//! compares it, so that a flipped bit is noticed and shards of two saves are never read as one model. Shards replace an earlier
//! save once all of them are written.
//!
//! Reading. A header is at most as long as its file and is checked as a whole (offsets without gap or overlap that end
//! where the file does) before any tensor is used; names, shapes and dtypes are compared with what the config asks for
//! before a tensor is read; tensors are read one at a time. So rejecting a file costs no more memory than its real size,
//! whatever sizes it claims. Every error is one sentence that names the file or tensor and the remedy.
//!
//! Weights that another tool has rewritten have no metadata: then only names and shapes are compared, and a warning says so.
//! Format 1, of the weights saved before this, has no hash and is read as it is; a newer format is refused.

use crate::params::{ParamStore, Source, is_finite};
use candle_core::{DType, Device, Error, Result, Shape, Tensor, bail};
use safetensors::tensor::Metadata;
use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};
use serde_json::Value;
use sha2::{Digest, Sha256};
use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::fs::{self, File};
use std::io::{Read, Seek, SeekFrom, Write};
use std::path::{Component, Path, PathBuf};
use std::sync::Mutex;

/// The format that is written, and the newest that is read.
pub const FORMAT: u32 = 2;
/// The config's name in a folder.
pub const CONFIG: &str = "config.json";
/// The weights' name in a folder.
pub const WEIGHTS: &str = "model.safetensors";
/// The name of the index where the weights are in several files.
pub const INDEX: &str = "model.safetensors.index.json";

/// The key of the metadata.
const KEY: &str = "flows";
/// The longest header that safetensors knows.
const LONGEST_HEADER: u64 = 100_000_000;
/// No config is longer; a NICE of a thousand couplings has ten kilobytes.
const LONGEST_CONFIG: u64 = 1 << 20;

/// An error about a file or folder. candle's own `with_path` prints `path: "PATH" WHAT`, which is no sentence.
pub(crate) fn at(path: &Path, what: impl std::fmt::Display) -> Error {
    Error::msg(format!("{}: {what}", path.display()))
}

/// config.json.
#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct ConfigFile {
    /// The version of this format; a newer one is refused with a sentence.
    format: u32,
    /// The version of the library that wrote it, for information.
    flows_version: String,
    /// Trained scalars, for information.
    parameters: usize,
    config: Value,
}

/// The metadata of a weights file.
#[derive(Serialize, Deserialize)]
struct Meta {
    format: u32,
    config_sha256: String,
    /// The SHA-256 of all tensors; files of earlier versions have it in shards only.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    weights_sha256: Option<String>,
}

#[derive(Serialize, Deserialize)]
struct Index {
    metadata: BTreeMap<String, Value>,
    weight_map: BTreeMap<String, String>,
}

/// Bytes as hexadecimal digits.
pub(crate) fn hex(hash: impl AsRef<[u8]>) -> String {
    hash.as_ref().iter().map(|byte| format!("{byte:02x}")).collect()
}

/// The SHA-256 of the config's JSON without space and with sorted keys: equal for equal configs, however a file is laid out.
fn config_hash(config: &Value) -> String {
    let mut sorted = config.clone();
    sorted.sort_all_objects();
    hex(Sha256::digest(sorted.to_string()))
}

/// The config of a saved folder, and its hash.
pub(crate) fn read_config<C: DeserializeOwned>(dir: &Path) -> Result<(C, String)> {
    let path = dir.join(CONFIG);
    let text = read_whole(&path, LONGEST_CONFIG)?;
    parse_config(&text).map_err(|e| at(&path, e))
}

/// A config.json's text: its config and the hash of it.
pub(crate) fn parse_config<C: DeserializeOwned>(text: &[u8]) -> Result<(C, String)> {
    let bad = |e: serde_json::Error| Error::msg(format!("not a model's config ({e}): fetch it again"));
    // The version first: a newer format may have a config that this version cannot read.
    #[derive(Deserialize)]
    struct Version {
        format: u32,
    }
    let version: Version = serde_json::from_slice(text).map_err(bad)?;
    check_format(version.format)?;
    let file: ConfigFile = serde_json::from_slice(text).map_err(bad)?;
    let hash = config_hash(&file.config);
    Ok((serde_json::from_value(file.config).map_err(bad)?, hash))
}

fn check_format(format: u32) -> Result<()> {
    if format > FORMAT {
        bail!("format {format} is newer than {FORMAT}, which this version reads: update flows");
    }
    if format == 0 {
        bail!("format 0 was never written, this version reads 1 to {FORMAT}: fetch the file again");
    }
    Ok(())
}

/// The header of the safetensors file `file` of `length` bytes, and where the tensors' bytes begin.
///
/// # Errors
/// When it is longer than the file, no header, or its tensors leave gaps, overlap or do not end where the file does.
pub fn read_header(file: &mut impl Read, length: u64) -> Result<(Metadata, u64)> {
    let damaged =
        |what: String| Error::msg(format!("not a complete safetensors file ({what}): fetch it again"));
    let mut n = [0; 8];
    file.read_exact(&mut n).map_err(|_| damaged(format!("it has {length} bytes")))?;
    let n = u64::from_le_bytes(n);
    let rest = length.saturating_sub(8);
    if n > rest.min(LONGEST_HEADER) {
        return Err(damaged(format!(
            "its header claims {n} bytes, the file has {rest} and no header more than {LONGEST_HEADER}"
        )));
    }
    let mut header = vec![0; n as usize];
    file.read_exact(&mut header).map_err(|e| damaged(e.to_string()))?;
    let header: Metadata = serde_json::from_slice(&header).map_err(|e| damaged(e.to_string()))?;
    let (held, claimed) = (rest - n, header.data_len() as u64);
    if held != claimed {
        return Err(damaged(format!("its tensors take {claimed} bytes, the file holds {held}")));
    }
    Ok((header, 8 + n))
}

/// Where a tensor is.
#[derive(Debug)]
struct Place {
    file: usize,
    at: u64,
    bytes: usize,
    dtype: DType,
    shape: Shape,
}

/// The weights of a folder, in one file or several, with every header read and no tensor.
#[derive(Debug)]
pub(crate) struct Weights {
    files: Vec<(PathBuf, Mutex<File>)>,
    places: BTreeMap<String, Place>,
    /// The hash of all weights according to the shards so far.
    hash: Option<String>,
}

impl Weights {
    /// Opens the weights of `dir`, which must be of the config with this hash.
    pub(crate) fn open(dir: &Path, config_hash: &str) -> Result<Self> {
        let mut all = Self { files: vec![], places: BTreeMap::new(), hash: None };
        let index = dir.join(INDEX);
        if !index.exists() {
            all.add(dir.join(WEIGHTS), config_hash, None)?;
            all.check_hash()?;
            return Ok(all);
        }
        let text = read_whole(&index, LONGEST_HEADER)?;
        let map = parse_index(&text).map_err(|e| at(&index, e))?;
        let files: BTreeSet<&String> = map.values().collect();
        for name in files {
            let listed = map.iter().filter(|(_, file)| *file == name).map(|(tensor, _)| tensor).collect();
            all.add(dir.join(name), config_hash, Some(listed))?;
        }
        all.check_hash()?;
        Ok(all)
    }

    /// Compares the tensors with the hash in the metadata, and warns where there is no hash.
    fn check_hash(&self) -> Result<()> {
        let path = &self.files[0].0;
        let Some(want) = &self.hash else {
            tracing::warn!(
                "{} has no hash of its weights, damage to them would not be noticed: `flow export` writes it anew",
                path.display()
            );
            return Ok(());
        };
        let found = weights_hash(self.places.keys().map(|name| Ok((name.as_str(), self.read(name)?))))?;
        if found != *want {
            return Err(at(
                path,
                "the weights are not those that were saved, some bits have changed: fetch them again",
            ));
        }
        Ok(())
    }

    /// Adds a file, whose tensors must be those that the index has `listed` for it, where there is an index.
    fn add(&mut self, path: PathBuf, config_hash: &str, listed: Option<BTreeSet<&String>>) -> Result<()> {
        let (mut file, length) = open(&path)?;
        let (header, start) = read_header(&mut file, length).map_err(|e| at(&path, e))?;
        self.check_metadata(&header, config_hash).map_err(|e| at(&path, e))?;
        self.add_tensors(&header, start).map_err(|e| at(&path, e))?;
        if let Some(listed) = listed {
            check_listed(&header, &listed).map_err(|e| at(&path, e))?;
        }
        self.files.push((path, Mutex::new(file)));
        Ok(())
    }

    /// Compares the hashes in a file's metadata, if it has any, with the config's and with those of earlier shards.
    fn check_metadata(&mut self, header: &Metadata, config_hash: &str) -> Result<()> {
        let Some(text) = header.metadata().as_ref().and_then(|m| m.get(KEY)) else { return Ok(()) };
        let meta: Meta = serde_json::from_str(text)
            .map_err(|e| Error::msg(format!("its metadata `{KEY}` cannot be read ({e}): fetch it again")))?;
        check_format(meta.format)?;
        if meta.config_sha256 != config_hash {
            // The file may claim a text of any length.
            let claimed: String = meta.config_sha256.chars().take(64).collect();
            bail!(
                "the weights are of the config with the sha256 {claimed}, {CONFIG} has {config_hash}: fetch both again"
            );
        }
        if let Some(hash) = meta.weights_sha256
            && *self.hash.get_or_insert_with(|| hash.clone()) != hash
        {
            bail!("the shard is of other weights than those before it: fetch all of them again");
        }
        Ok(())
    }

    /// Adds the places of the tensors of the next file, whose bytes begin at `start`.
    fn add_tensors(&mut self, header: &Metadata, start: u64) -> Result<()> {
        for (name, info) in header.tensors() {
            let dtype = match DType::try_from(info.dtype) {
                Ok(dtype @ (DType::U32 | DType::F16 | DType::BF16 | DType::F32 | DType::F64)) => dtype,
                _ => bail!(
                    "tensor `{name}` is of {:?}, weights are F64, F32, F16 or BF16, and U32 for indices: save it again",
                    info.dtype
                ),
            };
            let (begin, end) = info.data_offsets;
            let place = Place {
                file: self.files.len(),
                at: start + begin as u64,
                bytes: end - begin,
                dtype,
                shape: Shape::from(info.shape.as_slice()),
            };
            if self.places.insert(name.clone(), place).is_some() {
                bail!("tensor `{name}` is in two shards: fetch all shards and the index again");
            }
        }
        Ok(())
    }

    /// Whether a tensor is in double precision.
    fn double(&self) -> bool {
        self.places.values().any(|p| p.dtype == DType::F64)
    }

    /// The names of the files.
    pub(crate) fn file_names(&self) -> impl Iterator<Item = String> {
        let names = self.files.iter().filter_map(|(path, _)| path.file_name());
        names.map(|name| name.to_string_lossy().into_owned())
    }

    /// The narrowest dtype of floating-point tensors, if there is one.
    pub(crate) fn narrowest(&self) -> Option<DType> {
        let floats = self.places.values().map(|p| p.dtype).filter(DType::is_float);
        floats.min_by_key(|d| (d.size_in_bytes(), d.as_str()))
    }

    /// Bytes of all tensors.
    pub(crate) fn bytes(&self) -> u64 {
        self.places.values().map(|p| p.bytes as u64).sum()
    }
}

/// Compares the tensors of a shard with those that the index has `listed` for it.
fn check_listed(header: &Metadata, listed: &BTreeSet<&String>) -> Result<()> {
    let held = header.tensors();
    if let Some(tensor) = listed.iter().find(|tensor| !held.contains_key(**tensor)) {
        bail!("the index puts tensor `{tensor}` here, where it is not: fetch all shards and the index again");
    }
    if held.len() != listed.len() {
        bail!(
            "the shard holds tensors that the index does not put here: fetch all shards and the index again"
        );
    }
    Ok(())
}

impl Source for Weights {
    fn names(&self) -> Vec<String> {
        self.places.keys().cloned().collect()
    }

    fn info(&self, name: &str) -> Option<(DType, Shape)> {
        self.places.get(name).map(|p| (p.dtype, p.shape.clone()))
    }

    fn read(&self, name: &str) -> Result<Tensor> {
        let Some(place) = self.places.get(name) else { bail!("there is no tensor `{name}`") };
        let (path, file) = &self.files[place.file];
        let mut bytes = vec![0; place.bytes];
        let mut file = file.lock().unwrap();
        let read = file.seek(SeekFrom::Start(place.at)).and_then(|_| file.read_exact(&mut bytes));
        read.map_err(|e| at(path, format!("tensor `{name}` cannot be read ({e}): fetch the file again")))?;
        Tensor::from_raw_buffer(&bytes, place.dtype, place.shape.dims(), &Device::Cpu)
            .map_err(|e| at(path, e))
    }
}

/// An index's text: which tensor is in which file.
///
/// # Errors
/// When it is no index, has no tensor, or names a file that is no safetensors file of its own folder.
pub fn parse_index(text: &[u8]) -> Result<BTreeMap<String, String>> {
    let index: Index = serde_json::from_slice(text)
        .map_err(|e| Error::msg(format!("not an index of shards ({e}): fetch it again")))?;
    if index.weight_map.is_empty() {
        bail!("the index lists no tensor: fetch it again");
    }
    for file in index.weight_map.values() {
        let mut parts = Path::new(file).components();
        let plain = matches!((parts.next(), parts.next()), (Some(Component::Normal(_)), None));
        // A backslash parts folders on some systems, a colon names a disk or a stream.
        if !plain || file.contains(['/', '\\', ':', '\0']) || !file.ends_with(".safetensors") {
            bail!(
                "shard `{}` is no safetensors file in this folder: fetch the index again",
                file.chars().take(100).collect::<String>()
            );
        }
    }
    Ok(index.weight_map)
}

/// Opens a file; with its length in bytes.
fn open(path: &Path) -> Result<(File, u64)> {
    let no_file =
        |what: &str| at(path, format!("{what}: a model is a folder with config.json and model.safetensors"));
    // Checked before it is opened: opening a pipe waits until another program writes into it.
    let meta = fs::metadata(path).map_err(|e| match e.kind() {
        std::io::ErrorKind::NotFound => no_file("no such file"),
        _ => at(path, e),
    })?;
    if !meta.is_file() {
        return Err(no_file("not a file"));
    }
    Ok((File::open(path).map_err(|e| at(path, e))?, meta.len()))
}

/// The content of a file of at most `longest` bytes.
fn read_whole(path: &Path, longest: u64) -> Result<Vec<u8>> {
    let (file, length) = open(path)?;
    if length > longest {
        let what = format!("it has {length} bytes, more than the {longest} of any such file: fetch it again");
        return Err(at(path, what));
    }
    let mut text = Vec::new();
    file.take(longest).read_to_end(&mut text).map_err(|e| at(path, e))?;
    Ok(text)
}

/// How a model is saved.
#[derive(Clone, Copy, Debug)]
pub struct SaveOptions {
    /// Bytes of tensors above which the weights are sharded.
    pub max_shard_size: usize,
    /// The dtype of floating-point tensors in the file.
    pub dtype: Option<DType>,
}

impl Default for SaveOptions {
    /// Shards of 5 GB, as the hub's libraries have it; the model's own dtype.
    fn default() -> Self {
        Self { max_shard_size: 5_000_000_000, dtype: None }
    }
}

impl ParamStore {
    /// Writes `config` and every tensor to the folder `dir`, each file under a temporary name first, then renamed.
    ///
    /// # Errors
    /// When a file cannot be written, or a number does not fit the dtype of the file.
    pub fn save(&self, dir: impl AsRef<Path>, config: &impl Serialize, options: &SaveOptions) -> Result<()> {
        let tensors = self.all().into_iter().map(|(name, p)| (name, p.value().clone())).collect();
        let config = serde_json::to_value(config).map_err(Error::wrap)?;
        write(dir.as_ref(), config, self.count(), tensors, options)
    }

    /// Reads the folder `dir`: `build` makes of its config and of a store with its tensors what is returned beside the store. It
    /// is computed in `dtype`; without one, f16 and bf16 files are computed in f32 and f64 ones in f64.
    ///
    /// ```
    /// use candle_core::{Device, Result};
    /// use flows::{Chain, Flow, ParamStore, SaveOptions, bijections::Diagonal, priors::Gaussian};
    ///
    /// #[derive(serde::Serialize, serde::Deserialize)]
    /// struct Config { layers: usize }
    ///
    /// fn build(config: &Config, params: &ParamStore) -> Result<Flow> {
    ///     let mut chain = Chain::new();
    ///     for i in 0..config.layers {
    ///         chain.push(format!("layer{i}"), Diagonal::new(2, &params.vb().pp(i))?);
    ///     }
    ///     Ok(Flow::new(chain, Gaussian, &[2]))
    /// }
    ///
    /// # let dir = tempfile::tempdir()?;
    /// # let dir = dir.path();
    /// let config = Config { layers: 2 };
    /// let params = ParamStore::seeded(0, candle_core::DType::F32, &Device::Cpu);
    /// let flow = build(&config, &params)?;
    /// params.save(dir, &config, &SaveOptions::default())?;
    /// let (flow, params) = ParamStore::load(dir, None, &Device::Cpu, build)?;
    /// # Ok::<(), candle_core::Error>(())
    /// ```
    ///
    /// # Errors
    /// When a file is missing or damaged, the config is of another type, or a tensor is missing, unknown, misshapen or not finite;
    /// the message names it. And those of `build`.
    pub fn load<C: DeserializeOwned, T>(
        dir: impl AsRef<Path>,
        dtype: Option<DType>,
        device: &Device,
        build: impl FnOnce(&C, &ParamStore) -> Result<T>,
    ) -> Result<(T, ParamStore)> {
        let dir = dir.as_ref();
        let (config, hash) = read_config(dir)?;
        let weights = Weights::open(dir, &hash)?;
        let dtype = dtype.unwrap_or(if weights.double() { DType::F64 } else { DType::F32 });
        let params = ParamStore::from_source(weights, dtype, device);
        let built = build(&config, &params).and_then(|built| params.finish().map(|()| built));
        Ok((built.map_err(|e| at(dir, e))?, params))
    }
}

/// Writes config and weights.
fn write(
    dir: &Path,
    config: Value,
    parameters: usize,
    tensors: Vec<(String, Tensor)>,
    &SaveOptions { max_shard_size, dtype }: &SaveOptions,
) -> Result<()> {
    fs::create_dir_all(dir).map_err(|e| at(dir, e))?;
    let mut shards: Vec<Vec<(String, Tensor)>> = vec![vec![]];
    let mut size = 0;
    for (name, t) in tensors {
        // Here and not on a GPU: what is written is converted by the processor, whatever the device can do.
        let t = t.to_device(&Device::Cpu)?;
        let to = dtype.filter(|_| t.dtype().is_float());
        let t = to.map_or(Ok(t.clone()), |dtype| t.to_dtype(dtype))?;
        if to.is_some() && !is_finite(&t.to_dtype(DType::F32)?)? {
            bail!("tensor `{name}` holds numbers that {:?} cannot: save it as bf16 or f32", t.dtype());
        }
        let bytes = t.elem_count() * t.dtype().size_in_bytes();
        if size + bytes > max_shard_size && size > 0 {
            shards.push(vec![]);
            size = 0;
        }
        size += bytes;
        shards.last_mut().expect("never empty").push((name, t));
    }
    let n = shards.len();
    let config_sha256 = config_hash(&config);
    let mut all: Vec<_> = shards.iter().flatten().collect();
    all.sort_by_key(|(name, _)| name);
    let hash = weights_hash(all.into_iter().map(|(name, t)| Ok((name.as_str(), t.clone()))))?;
    let meta = Meta { format: FORMAT, config_sha256, weights_sha256: Some(hash) };
    let meta = serde_json::to_string(&meta).map_err(Error::wrap)?;
    let mut weight_map = BTreeMap::new();
    let mut total = 0;
    // An earlier save is replaced only once all files of this one are written beside it.
    let mut written = Vec::new();
    for (i, shard) in shards.into_iter().enumerate() {
        let file =
            if n == 1 { WEIGHTS.to_string() } else { format!("model-{:05}-of-{n:05}.safetensors", i + 1) };
        for (name, t) in &shard {
            total += t.elem_count() * t.dtype().size_in_bytes();
            weight_map.insert(name.clone(), file.clone());
        }
        let shard = shard
            .into_iter()
            .map(|(n, t)| Ok((n, t.to_device(&Device::Cpu)?)))
            .collect::<Result<Vec<_>>>()?;
        let meta = HashMap::from([(KEY.to_string(), meta.clone())]);
        let bytes = safetensors::serialize(shard.iter().map(|(n, t)| (n, t)), Some(meta))?;
        written.push(Written::new(&dir.join(file), &bytes)?);
    }
    for file in written {
        file.replace()?;
    }
    let index = dir.join(INDEX);
    let files: BTreeSet<String> = weight_map.values().cloned().collect();
    if n > 1 {
        let metadata = BTreeMap::from([("total_size".to_string(), total.into())]);
        let json = serde_json::to_vec_pretty(&Index { metadata, weight_map }).map_err(Error::wrap)?;
        write_atomic(&index, &json)?;
    } else if index.exists() {
        // The index of an older, sharded save would be read instead of this file.
        fs::remove_file(&index).map_err(|e| at(&index, e))?;
    }
    remove_stale(dir, &files)?;
    let flows_version = env!("CARGO_PKG_VERSION").to_string();
    let file = ConfigFile { format: FORMAT, flows_version, parameters, config };
    let json = serde_json::to_vec_pretty(&file).map_err(Error::wrap)?;
    write_atomic(&dir.join(CONFIG), &json)
}

/// Whether a file's name is that of a model's weights, or of a shard of them.
#[must_use]
pub fn is_weights(name: &str) -> bool {
    let number = |digits: &str| digits.len() == 5 && digits.bytes().all(|b| b.is_ascii_digit());
    let shard = name.strip_prefix("model-").and_then(|name| name.strip_suffix(".safetensors"));
    name == WEIGHTS || shard.and_then(|s| s.split_once("-of-")).is_some_and(|(i, n)| number(i) && number(n))
}

/// Removes the weights of an earlier save in the same folder, which would be uploaded with the new ones.
fn remove_stale(dir: &Path, files: &BTreeSet<String>) -> Result<()> {
    for entry in fs::read_dir(dir).map_err(|e| at(dir, e))? {
        let path = entry?.path();
        let Some(name) = path.file_name().and_then(|n| n.to_str()) else { continue };
        if is_weights(name) && !files.contains(name) {
            fs::remove_file(&path).map_err(|e| at(&path, e))?;
        }
    }
    Ok(())
}

/// The SHA-256 of names and tensors, which come in the order of the names and are on the processor.
pub(crate) fn weights_hash<'a>(tensors: impl Iterator<Item = Result<(&'a str, Tensor)>>) -> Result<String> {
    let mut hash = Sha256::new();
    for tensor in tensors {
        let (name, t) = tensor?;
        hash.update(name);
        // Type, shape and bytes as they are saved.
        hash.update(safetensors::serialize([("", &t)], None)?);
    }
    Ok(hex(hash.finalize()))
}

/// A complete file under a temporary name beside its own, which is removed unless the file replaces its own.
struct Written {
    path: PathBuf,
    tmp: PathBuf,
}

impl Written {
    /// Writes and syncs it.
    fn new(path: &Path, bytes: &[u8]) -> Result<Self> {
        let mut name = path.file_name().unwrap_or_default().to_os_string();
        name.push(format!(".tmp{}", std::process::id()));
        let this = Self { path: path.to_path_buf(), tmp: path.with_file_name(name) };
        let write = || {
            let mut file = File::create(&this.tmp)?;
            file.write_all(bytes)?;
            file.sync_all()
        };
        write().map_err(|e| at(path, e))?;
        Ok(this)
    }

    /// Renames it to its own name, and syncs the folder.
    fn replace(self) -> Result<()> {
        let rename = || {
            fs::rename(&self.tmp, &self.path)?;
            let dir = self.path.parent().filter(|d| !d.as_os_str().is_empty());
            dir.map_or(Ok(()), |dir| File::open(dir)?.sync_all())
        };
        rename().map_err(|e| at(&self.path, e))
    }
}

impl Drop for Written {
    fn drop(&mut self) {
        // After the rename there is nothing to remove.
        let _ = fs::remove_file(&self.tmp);
    }
}

/// Writes a file so that a reader sees the old content or the new one, never a part: to a temporary name in the same
/// folder, synced, renamed, and the folder synced.
///
/// # Errors
/// When the folder is not there or cannot be written.
pub fn write_atomic(path: &Path, bytes: &[u8]) -> Result<()> {
    Written::new(path, bytes)?.replace()
}
