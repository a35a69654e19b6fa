//! A run's state in one file.
//!
//! `checkpoint.safetensors` holds everything that the next update depends on: `param/NAME` for each parameter and buffer,
//! `optimizer/NAME`, `ema/NAME`, and in its metadata the position of the run, the settings it was made with and a
//! checksum. It is one file, so that one rename replaces all of it: a reader sees one update's state, never parts
//! of two. Random numbers are functions of seed and update (see [`crate::batches`]), so that the update's number is the
//! state of every generator and of the order within the epoch.

use crate::data::Dataset;
use crate::ranks::Ranks;
use crate::recipe::Recipe;
use crate::run_dir::{self, BEST, CHECKPOINT};
use crate::untrusted;
use anyhow::{Context, Result, anyhow, bail, ensure};
use candle_core::Tensor;
use flows::optim::Updater;
use flows::storage::{read_header, write_atomic};
use flows::{ModelConfig, ParamStore};
use safetensors::SafeTensors;
use serde::{Deserialize, Serialize};
use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::fs;
use std::path::{Path, PathBuf};

const FORMAT: u32 = 1;
const KEY: &str = "flow";

/// Settings that may change when a run is resumed: how long it goes on (see [`Settings::may_change`]), and how often it
/// writes.
const FREE: [&str; 5] =
    ["train.updates", "train.epochs", "train.minutes", "train.checkpoint_every", "train.log_every"];

/// Settings that no update before `train.lower.after` depends on.
const LOWER: [&str; 2] = ["train.lower.after", "train.lower.factor"];

/// A measured bits/dim.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
pub struct Measured {
    /// The update after which it was measured.
    pub update: u64,
    /// The value.
    #[serde(with = "exact")]
    pub bits_per_dim: f64,
}

/// Sums over the updates since the last line of the log.
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Window {
    /// Updates.
    pub updates: u64,
    /// Training bits/dim.
    #[serde(with = "exact")]
    pub bits: f64,
    /// Gradient norms before clipping.
    #[serde(with = "exact")]
    pub grad_norm: f64,
    /// Factors that clipping multiplied gradients by.
    #[serde(with = "exact")]
    pub clip: f64,
    /// Seconds spent in the updates.
    #[serde(with = "exact")]
    pub seconds: f64,
}

/// Where a run is.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Position {
    /// Updates made. With the batch size it gives images seen, epoch and place in the epoch.
    pub update: u64,
    /// Lines of the log so far; later ones of the same update will be written again. Earlier versions did not count.
    #[serde(default)]
    pub log_lines: Option<u64>,
    /// The update after which the last validation was made.
    pub validated: Option<u64>,
    /// The best validation.
    pub best: Option<Measured>,
    /// The update whose weights are saved as the run's model.
    pub saved: Option<u64>,
    /// Validations since the best one.
    pub worse: u32,
    /// Seconds of the whole run, over all resumes.
    #[serde(with = "exact")]
    pub wall_seconds: f64,
    /// Seconds of it spent in updates.
    #[serde(with = "exact")]
    pub train_seconds: f64,
    /// The log's open window.
    pub window: Window,
    /// Mean training bits/dim of the last complete window.
    pub last_window: Option<Measured>,
    /// The update before which drift was last measured.
    #[serde(default)]
    pub probed: Option<u64>,
    /// The layers that are stored although the recipe reconstructs.
    #[serde(default)]
    pub stored: BTreeSet<String>,
    /// The updates after which the run ended: more than one where it was extended. Earlier versions did not record them.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub ends: Vec<u64>,
    /// What [`BEST`] holds: the update of the best validation, or without one of the best training bits/dim.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub kept: Option<Measured>,
}

/// Saves an f64 as the integer of its bits: a resumed run must go on from exactly the same value.
mod exact {
    use serde::{Deserialize, Deserializer, Serializer};

    pub fn serialize<S: Serializer>(v: &f64, s: S) -> Result<S::Ok, S::Error> {
        s.serialize_u64(v.to_bits())
    }

    pub fn deserialize<'de, D: Deserializer<'de>>(d: D) -> Result<f64, D::Error> {
        u64::deserialize(d).map(f64::from_bits)
    }
}

/// The settings that a run's weights depend on, as text by key (`train.lr`).
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Settings(BTreeMap<String, String>);

impl Settings {
    /// The data, the model and the training of a recipe, and which bytes the data are.
    ///
    /// # Errors
    /// When a setting cannot be written as JSON.
    pub fn new(recipe: &Recipe, data: &Dataset) -> Result<Self> {
        let mut all = BTreeMap::new();
        flatten("data", serde_json::to_value(&recipe.data)?, &mut all);
        flatten("model", serde_json::to_value(&recipe.model)?, &mut all);
        flatten("train", serde_json::to_value(&recipe.train)?, &mut all);
        all.insert("data.revision".to_string(), data.revision.clone());
        Ok(Self(all))
    }

    /// These settings with those of [`FREE`], which earlier versions left out, from the recipe of the run's folder.
    fn completed(mut self, out: &Path) -> Result<Self> {
        if !self.knows_length()
            && let Ok(Some(recipe)) = run_dir::read_recipe(out)
        {
            let mut all = BTreeMap::new();
            flatten("train", serde_json::to_value(&recipe.train)?, &mut all);
            self.0.extend(all.into_iter().filter(|(key, _)| FREE.contains(&key.as_str())));
        }
        Ok(self)
    }

    /// Whether [`FREE`] is among these settings.
    fn knows_length(&self) -> bool {
        self.0.contains_key("train.log_every")
    }

    fn number(&self, key: &str) -> Option<f64> {
        self.0.get(key)?.parse().ok()
    }

    /// Whether `key` may have another value than a run was begun with that now stands at `position`: no update so far may
    /// depend on it, and the run may not be longer already than it asks for.
    fn may_change(&self, begun: &Self, key: &str, position: &Position) -> bool {
        match key {
            // A cosine falls to its end over the whole run.
            "train.updates" | "train.epochs" => {
                let cosine = self.0.get("train.schedule.kind").is_some_and(|kind| kind == "\"cosine\"");
                !(cosine && begun.knows_length())
            }
            "train.minutes" => {
                let (now, then) = (self.number(key), begun.number(key));
                let shorter = now.is_some_and(|now| then.is_none_or(|then| now < then));
                !(shorter && now.is_some_and(|now| position.wall_seconds >= 60. * now))
            }
            key if LOWER.contains(&key) => {
                let after = [self, begun].into_iter().filter_map(|s| s.number(LOWER[0]));
                after.fold(f64::INFINITY, f64::min) >= position.update as f64
            }
            key => FREE.contains(&key),
        }
    }

    /// The first key that may not differ from what the run was begun with, and does.
    fn conflict<'a>(&'a self, begun: &'a Self, position: &Position) -> Option<&'a String> {
        let mut keys = begun.0.keys().chain(self.0.keys());
        keys.find(|key| self.0.get(*key) != begun.0.get(*key) && !self.may_change(begun, key, position))
    }

    /// The first key whose value differs.
    fn differing<'a>(&'a self, other: &'a Self) -> Option<&'a String> {
        self.0.keys().chain(other.0.keys()).find(|key| self.0.get(*key) != other.0.get(*key))
    }

    /// Errors with the first key that differs from what the run was begun with.
    fn check(&self, begun: &Self, position: &Position, path: &Path) -> Result<()> {
        let Some(key) = self.conflict(begun, position) else { return Ok(()) };
        let text = |s: &Self| shown(&s.0, key);
        if key == "data.revision" {
            let (of_file, folder) = ("sha256 ", path.parent().unwrap_or(path).display());
            ensure!(
                text(begun).starts_with(of_file) || !text(self).starts_with(of_file),
                "the run in {folder} was begun by an earlier version, in which the data's revision depended on their path: it \
                 cannot be resumed, choose another --out"
            );
            let set = self.0.get("data.set").map_or("", String::as_str);
            bail!(
                "`data.revision` differs: the data of `data.set` = {set} are not those that the run in {} was begun with \
                 ({}, now {}), give their folder with --data, or another --out",
                path.parent().unwrap_or(path).display(),
                text(begun),
                text(self)
            );
        }
        let why = match key.as_str() {
            "train.updates" | "train.epochs" => ", and the cosine of `train.schedule` depends on it",
            key if LOWER.contains(&key) => ", and its updates so far depend on it",
            _ => "",
        };
        bail!(
            "`{key}` is {} now, and was {} when the run in {} was begun{why}: give it as it was, or use another --out",
            text(self),
            text(begun),
            path.display(),
        )
    }
}

/// The settings in which two models with the same parameters differ, each with its value there and here; `None` where they are one
/// density. How parameters begin does not count.
///
/// # Errors
/// When a config builds no model.
pub fn differences(there: &ModelConfig, here: &ModelConfig) -> Result<Option<String>> {
    if there.composed()? == here.composed()? {
        return Ok(None);
    }
    let settings = |config: &ModelConfig| -> Result<BTreeMap<String, String>> {
        let mut all = BTreeMap::new();
        flatten("model", serde_json::to_value(config)?, &mut all);
        Ok(all)
    };
    let (there, here) = (settings(there)?, settings(here)?);
    let keys: BTreeSet<&String> = there.keys().chain(here.keys()).collect();
    let differ = keys.into_iter().filter(|key| there.get(*key) != here.get(*key) && !key.ends_with(".init"));
    let differ =
        differ.map(|key| format!("`{key}` is {} there and {} here", shown(&there, key), shown(&here, key)));
    let differ: Vec<String> = differ.collect();
    Ok((!differ.is_empty()).then(|| differ.join(", ")))
}

/// A setting's value in a message.
fn shown(settings: &BTreeMap<String, String>, key: &str) -> String {
    settings.get(key).map_or("not set".to_owned(), Clone::clone)
}

fn flatten(key: &str, value: serde_json::Value, into: &mut BTreeMap<String, String>) {
    match value {
        serde_json::Value::Object(map) => {
            map.into_iter().for_each(|(k, v)| flatten(&format!("{key}.{k}"), v, into));
        }
        serde_json::Value::Null => {}
        value => _ = into.insert(key.to_string(), value.to_string()),
    }
}

/// The metadata.
#[derive(Serialize, Deserialize)]
struct Header {
    format: u32,
    position: Position,
    settings: Settings,
    optimizer_step: u64,
    ema_step: Option<u64>,
    /// CRC-32 of all tensors' bytes, in name order: a disk's flipped bit would otherwise go on training.
    crc32: u32,
    /// CRC-32 of everything else here; earlier versions had none.
    #[serde(default)]
    rest_crc32: Option<u32>,
}

impl Header {
    /// The checksum of everything but the tensors.
    fn rest(&self) -> Result<u32> {
        let mut crc = flate2::Crc::new();
        let rest = (&self.position, &self.settings, self.optimizer_step, self.ema_step);
        crc.update(serde_json::to_string(&rest)?.as_bytes());
        Ok(crc.sum())
    }
}

/// Writes the checkpoint of a run: to a temporary file, synced, renamed.
///
/// # Errors
/// When the file cannot be written.
pub fn save(
    out: &Path,
    position: &Position,
    settings: &Settings,
    params: &ParamStore,
    updater: &Updater,
) -> Result<()> {
    let file = encode(position, settings, params, updater)?;
    write_atomic(&out.join(CHECKPOINT), &file).context("cannot write the checkpoint: is the disk full?")
}

/// The bytes of a checkpoint.
fn encode(
    position: &Position,
    settings: &Settings,
    params: &ParamStore,
    updater: &Updater,
) -> Result<Vec<u8>> {
    let params = params.all();
    let params = params.iter().map(|(name, p)| (format!("param/{name}"), p.value().clone()));
    let state = updater.optimizer().state().iter();
    let state = state.map(|(name, t)| (format!("optimizer/{name}"), t.clone()));
    let average = updater.ema().into_iter().flat_map(|ema| ema.average());
    let average = average.map(|(name, t)| (format!("ema/{name}"), t.clone()));
    let tensors: BTreeMap<String, Tensor> = params.chain(state).chain(average).collect();
    let mut crc = flate2::Crc::new();
    tensors.values().for_each(|t| crc.update(&safetensors::View::data(t)));
    let mut header = Header {
        format: FORMAT,
        position: position.clone(),
        settings: settings.clone(),
        optimizer_step: updater.optimizer().step_count(),
        ema_step: updater.ema().map(|e| e.step_count()),
        crc32: crc.sum(),
        rest_crc32: None,
    };
    header.rest_crc32 = Some(header.rest()?);
    let meta = HashMap::from([(KEY.to_string(), serde_json::to_string(&header)?)]);
    Ok(safetensors::serialize(&tensors, Some(meta))?)
}

/// Gives all ranks the state of rank 0, which alone reads the run's folder.
///
/// # Errors
/// When another rank has other settings or other data, or no memory for the state.
pub fn share(
    ranks: &dyn Ranks,
    position: &mut Position,
    settings: &Settings,
    params: &ParamStore,
    updater: &mut Updater,
) -> Result<()> {
    if ranks.size() == 1 {
        return Ok(());
    }
    let rank = ranks.rank();
    let mut bytes = if rank == 0 { encode(position, settings, params, updater)? } else { Vec::new() };
    ranks.broadcast(0, &mut bytes);
    if rank == 0 {
        return Ok(());
    }
    let path = PathBuf::from(format!("the state that rank 0 sent to rank {rank}"));
    let header = header(&bytes, &path)?;
    if let Some(key) = header.settings.differing(settings) {
        bail!(
            "`{key}` of rank {rank} is not that of rank 0: give all ranks the same recipe and the same data"
        );
    }
    *position = restore(&bytes, header, &path, params, updater)?;
    Ok(())
}

/// Keeps the checkpoint that was just saved beside those to come, as the one to go back to when training diverges.
///
/// # Errors
/// When the folder cannot be written.
pub fn keep(out: &Path) -> Result<()> {
    let (from, to) = (out.join(CHECKPOINT), out.join(BEST));
    let tmp = out.join(format!("{BEST}.tmp{}", std::process::id()));
    // A second name of the same file: the next checkpoint is another file. Some file systems have no such names.
    let link = || fs::hard_link(&from, &tmp).or_else(|_| fs::copy(&from, &tmp).map(drop));
    let kept = link().and_then(|()| fs::rename(&tmp, &to));
    // A rename between two names of one file leaves both.
    let _ = fs::remove_file(&tmp);
    kept.with_context(|| format!("cannot write {}", to.display()))
}

fn damaged(path: &Path, what: impl std::fmt::Display) -> anyhow::Error {
    let dir = path.parent().unwrap_or(path);
    let remedy = if path.ends_with(CHECKPOINT) && matches!(read(&dir.join(BEST)), Ok(Some(_))) {
        format!("put a copy of {BEST} in its place to go on from the best update, or use another --out")
    } else if run_dir::holds_model(dir) {
        "use another --out".to_owned()
    } else {
        "delete it to begin the run again, or use another --out".to_owned()
    };
    anyhow!("{} is damaged ({what}): {remedy}", path.display())
}

/// A checkpoint's bytes and header, or `None` where there is none; its checksums are right.
fn read(path: &Path) -> Result<Option<(Vec<u8>, Header)>> {
    if !path.exists() {
        return Ok(None);
    }
    let damaged = |what: &dyn std::fmt::Display| damaged(path, what);
    // A file may be as long as a disk and hold nothing: only one that is as long as its header says is read.
    let (mut file, length) = untrusted::open(path, u64::MAX)?;
    if let Err(e) = read_header(&mut file, length) {
        // A checkpoint can be fetched from nowhere, so that message's own remedy is left out.
        let what = e.to_string();
        let what = what.lines().next().unwrap_or_default();
        return Err(damaged(&what.trim_end_matches(": fetch it again")));
    }
    let bytes = untrusted::read_regular(path, length)?;
    let header = header(&bytes, path)?;
    Ok(Some((bytes, header)))
}

/// The header of a checkpoint's bytes, whose checksums are right.
fn header(bytes: &[u8], path: &Path) -> Result<Header> {
    let damaged = |what: &dyn std::fmt::Display| damaged(path, what);
    let (_, metadata) = SafeTensors::read_metadata(bytes).map_err(|e| damaged(&e))?;
    let file = SafeTensors::deserialize(bytes).map_err(|e| damaged(&e))?;
    let text = metadata.metadata().as_ref().and_then(|m| m.get(KEY));
    let text = text.ok_or_else(|| damaged(&"it has no position of a run"))?;
    let header: Header = serde_json::from_str(text).map_err(|e| damaged(&e))?;
    ensure!(
        header.format == FORMAT,
        "{} has format {}, this version reads {FORMAT}: use the version that wrote it, or another --out",
        path.display(),
        header.format
    );
    let views: BTreeMap<_, _> = file.tensors().into_iter().collect();
    let mut crc = flate2::Crc::new();
    views.values().for_each(|v| crc.update(v.data()));
    let rest = header.rest_crc32.is_none_or(|rest| header.rest().is_ok_and(|found| found == rest));
    ensure!(crc.sum() == header.crc32 && rest, damaged(&"its checksum is wrong"));
    Ok(header)
}

/// Takes up the checkpoint of a run, or `None` where there is none. Where the settings lower the rate from an update on
/// that the checkpoint is past, that is [`BEST`].
///
/// # Errors
/// When the file is damaged, of a newer format, or of a run with other settings: one sentence with the remedy.
pub fn load(
    out: &Path,
    settings: &Settings,
    params: &ParamStore,
    updater: &mut Updater,
) -> Result<Option<Position>> {
    let mut path = out.join(CHECKPOINT);
    let Some((mut bytes, mut header)) = read(&path)? else { return Ok(None) };
    let conflict = settings.conflict(&header.settings, &header.position);
    if conflict.is_some_and(|key| LOWER.contains(&key.as_str()))
        && let Some(best) = read(&out.join(BEST))?
    {
        (path, (bytes, header)) = (out.join(BEST), best);
    }
    let begun = header.settings.clone().completed(out)?;
    settings.check(&begun, &header.position, &path)?;
    restore(&bytes, header, &path, params, updater).map(Some)
}

/// Sets parameters and the updater's state to those of a checkpoint's bytes, and returns its position.
fn restore(
    bytes: &[u8],
    header: Header,
    path: &Path,
    params: &ParamStore,
    updater: &mut Updater,
) -> Result<Position> {
    let damaged = |what: &dyn std::fmt::Display| damaged(path, what);
    let all = candle_core::safetensors::load_buffer(bytes, params.device()).map_err(|e| damaged(&e))?;
    let under = |part: &str| -> BTreeMap<String, Tensor> {
        all.iter().filter_map(|(name, t)| Some((name.strip_prefix(part)?.to_owned(), t.clone()))).collect()
    };
    let saved = under("param/");
    for (name, p) in params.all() {
        let t = saved.get(&name).filter(|t| t.shape() == p.value().shape() && t.dtype() == p.value().dtype());
        let t = t.ok_or_else(|| damaged(&format!("`{name}` is missing or has another shape")))?;
        p.set(t)?;
    }
    let (optimizer, ema) = updater.parts();
    optimizer.restore(&under("optimizer/"), header.optimizer_step).map_err(|e| damaged(&e))?;
    if let Some(ema) = ema {
        let step = header.ema_step.ok_or_else(|| damaged(&"it has no moving average"))?;
        ema.restore(&under("ema/"), step).map_err(|e| damaged(&e))?;
    }
    Ok(header.position)
}

/// A checksum of all parameters and buffers.
#[must_use]
pub fn checksum(params: &ParamStore) -> u32 {
    let mut crc = flate2::Crc::new();
    params.all().iter().for_each(|(_, p)| crc.update(&safetensors::View::data(p.value())));
    crc.sum()
}

#[cfg(test)]
mod tests {
    use super::*;
    use candle_core::{DType, Device};
    use flows::Grads;
    use flows::models::GlowConfig;
    use flows::optim::{Penalty, Rule, UpdateSettings};
    use flows::params::Init;

    fn settings(lr: &str) -> Settings {
        Settings([("train.lr".to_string(), lr.to_string())].into())
    }

    fn position() -> Position {
        let third = 1. / 3.;
        Position {
            update: 7,
            validated: Some(6),
            best: Some(Measured { update: 6, bits_per_dim: third }),
            window: Window { updates: 1, bits: third, grad_norm: 1e-300, clip: 1., seconds: 0.1 },
            ..Position::default()
        }
    }

    struct State {
        params: ParamStore,
        updater: Updater,
    }

    impl State {
        fn new(seed: u64) -> Self {
            let params = ParamStore::seeded(seed, DType::F32, &Device::Cpu);
            params.vb().get((2, 3), "w", Init::Normal(1.)).unwrap();
            params.vb().buffer(2, "mean", Init::Normal(1.)).unwrap();
            params.vb().indices(4, "order", Init::Const(2.)).unwrap();
            let rule = Rule::Adam { b1: 0.9, b2: 0.999, eps: 1e-8 };
            let settings = UpdateSettings { clip_norm: None, ema: Some(0.9) };
            let updater = Updater::new(rule, &params, settings, |_| Penalty::default()).unwrap();
            Self { params, updater }
        }

        fn save(&self, out: &Path, lr: &str) -> Result<()> {
            save(out, &position(), &settings(lr), &self.params, &self.updater)
        }

        fn load(&mut self, out: &Path, lr: &str) -> Result<Option<Position>> {
            load(out, &settings(lr), &self.params, &mut self.updater)
        }

        fn step(&mut self) {
            let g = Tensor::full(0.3f32, (2, 3), &Device::Cpu).unwrap();
            let log_prob = Tensor::new(-1f32, &Device::Cpu).unwrap();
            self.updater.begin(0.1).unwrap();
            self.updater.apply(Grads::from([("w".to_string(), g)]), &log_prob).unwrap();
        }

        fn numbers(&self) -> Vec<Vec<f32>> {
            let params = self.params.all().into_iter().map(|(_, p)| p.value().clone());
            let state = self.updater.optimizer().state().values();
            let rest = state.chain(self.updater.ema().unwrap().average().values()).cloned();
            let f = |t: Tensor| t.to_dtype(DType::F32).unwrap().flatten_all().unwrap().to_vec1().unwrap();
            params.chain(rest).map(f).collect()
        }
    }

    #[test]
    fn everything_comes_back_to_the_bit() -> Result<()> {
        let out = tempfile::tempdir()?;
        let (mut a, mut b) = (State::new(1), State::new(2));
        a.step();
        a.save(out.path(), "1")?;
        assert_eq!(b.load(out.path(), "1")?, Some(position()));
        assert_eq!(a.numbers(), b.numbers());
        a.step();
        b.step();
        assert_eq!(a.numbers(), b.numbers());
        let first = fs::read(out.path().join(CHECKPOINT))?;
        let mut c = State::new(3);
        c.load(out.path(), "1")?;
        c.save(out.path(), "1")?;
        assert_eq!(fs::read(out.path().join(CHECKPOINT))?, first, "the same state is the same file");
        let empty = tempfile::tempdir()?;
        assert_eq!(b.load(empty.path(), "1")?, None);
        Ok(())
    }

    #[test]
    fn a_damaged_file_is_one_sentence_with_the_remedy() -> Result<()> {
        let out = tempfile::tempdir()?;
        let mut a = State::new(1);
        a.save(out.path(), "1")?;
        let path = out.path().join(CHECKPOINT);
        let good = fs::read(&path)?;
        let mut err = |bytes: &[u8]| {
            fs::write(&path, bytes).unwrap();
            let err = a.load(out.path(), "1").unwrap_err().to_string();
            assert!(err.contains(CHECKPOINT) && err.contains("another --out"), "{err}");
            err
        };
        for cut in [0, 1, 7, 8, 100, good.len() - 1] {
            err(&good[..cut]);
        }
        for at in [0, 8, 20, good.len() / 2] {
            let mut bad = good.clone();
            bad[at] ^= 0x41;
            err(&bad);
        }
        // As long as a disk, and no memory is taken for it.
        fs::File::create(&path)?.set_len(1 << 40)?;
        let said = State::new(1).load(out.path(), "1").unwrap_err().to_string();
        assert!(said.contains("no header") || said.contains("not a complete"), "{said}");
        let mut bad = good.clone();
        *bad.last_mut().unwrap() ^= 1;
        assert!(err(&bad).contains("checksum"));
        // Every bit of the position, the settings and the counts of steps: none may resume another run.
        let (header, numbers) = (8 + u64::from_le_bytes(good[..8].try_into()?) as usize, a.numbers());
        let mut refused = 0;
        for bit in 8 * 8..8 * header {
            let mut bad = good.clone();
            bad[bit / 8] ^= 1 << (bit % 8);
            fs::write(&path, bad)?;
            match a.load(out.path(), "1") {
                // The name of a key whose value is the default, or space.
                Ok(same) => assert_eq!((same, a.numbers()), (Some(position()), numbers.clone()), "bit {bit}"),
                Err(_) => refused += 1,
            }
        }
        assert!(refused > 7 * header, "{refused} of {} bits", 8 * header);
        Ok(())
    }

    #[test]
    fn the_settings_of_another_model_are_named() -> Result<()> {
        let (here, mut there) = (GlowConfig::cifar_code(), GlowConfig::cifar_code());
        there.bits = 5;
        let (here, there) = (ModelConfig::Glow(here), ModelConfig::Glow(there));
        assert_eq!(differences(&here, &here)?, None);
        assert_eq!(differences(&there, &here)?.as_deref(), Some("`model.bits` is 5 there and 8 here"));
        Ok(())
    }

    #[test]
    fn other_settings_are_named() -> Result<()> {
        let out = tempfile::tempdir()?;
        let mut a = State::new(1);
        a.save(out.path(), "1")?;
        let err = a.load(out.path(), "2").unwrap_err().to_string();
        assert!(err.contains("`train.lr` is 2 now, and was 1 when the run in "), "{err}");
        Ok(())
    }
}
