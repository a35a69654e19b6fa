//! The folder of a run: the names of its files, and what is read from it as a whole.
//!
//! | file | holds |
//! |---|---|
//! | config.json, model.safetensors | the model of the best validation ([`flows::storage`]) |
//! | [`RECIPE`] | every setting, resolved ([`crate::recipe`]) |
//! | [`METRICS`] | the log, one JSON object a line; the same for TensorBoard in [`crate::events`] |
//! | [`BEST`] | that of the best update so far, from which a lower rate can go on |
//! | [`CHECKPOINT`] | the state that the next update depends on ([`crate::checkpoint`]) |
//! | [`SAMPLES`], [`CURVE`] | pictures, drawn when training has ended |
//! | [`SUMMARY`] | the result ([`crate::summary`]); where it is, the run has ended |
//! | summary.before.json | the result of a run that is being made longer, with its pictures, until there is that of the longer one |
//! | [`CARD`] | the model card |
//! | [`LICENSE`] | one line: the identifier of the weights' licence, where their owner has given one |
//! | [`PICTURES`] | a folder for pictures that other commands draw |
//! | [`ATTRIBUTES`] | the directions of the data's labels, kept by `flow explore`; it may be removed |

use crate::data::file_name;
use crate::recipe::{Recipe, Resolved};
use crate::untrusted::{TEXT, read_regular};
use anyhow::{Context, Result, anyhow, bail, ensure};
use flows::storage::{CONFIG, INDEX, WEIGHTS, write_atomic};
use serde_json::{Map, Value};
use std::fs;
use std::io::ErrorKind;
use std::path::{Path, PathBuf};

/// The resolved recipe.
pub const RECIPE: &str = "recipe.toml";
/// The result.
pub const SUMMARY: &str = "summary.json";
/// The log.
pub const METRICS: &str = "metrics.jsonl";
/// The state of an unfinished run.
pub const CHECKPOINT: &str = "checkpoint.safetensors";
/// The state at the best update of an unfinished run.
pub const BEST: &str = "checkpoint.best.safetensors";
/// The picture of samples.
pub const SAMPLES: &str = "samples.png";
/// The picture of the learning curves.
pub const CURVE: &str = "curve.png";
/// The model card.
pub const CARD: &str = "README.md";
/// The identifier of the weights' licence.
pub const LICENSE: &str = "license.txt";
/// The folder of further pictures.
pub const PICTURES: &str = "pictures";
/// Files of a finished run that are renamed while the run is made longer, and their names meanwhile.
const BEFORE: [(&str, &str); 3] =
    [(SAMPLES, "samples.before.png"), (CURVE, "curve.before.png"), (SUMMARY, "summary.before.json")];
/// The directions of the data's labels.
pub const ATTRIBUTES: &str = "attributes.safetensors";
/// The report.
pub const REPORT: &str = "report.html";
/// How the name of the log for TensorBoard begins and ends.
pub const EVENTS: (&str, &str) = ("events.out.tfevents.", ".flow");

/// The files that accompany the model wherever it is copied or published.
pub const COMPANIONS: [&str; 6] = [RECIPE, SUMMARY, METRICS, SAMPLES, CURVE, LICENSE];

/// Bytes of a line of the log, at most.
pub const LINE: usize = 1 << 16;

/// The bytes of a file, or `None` where there is none.
///
/// # Errors
/// When it is no regular file or cannot be read.
pub fn read(path: &Path) -> Result<Option<Vec<u8>>> {
    match fs::metadata(path) {
        Err(e) if matches!(e.kind(), ErrorKind::NotFound | ErrorKind::NotADirectory) => Ok(None),
        _ => read_regular(path, most(path)).map(Some),
    }
}

/// Bytes that a file of a run can have: a log has a line for every few updates.
fn most(path: &Path) -> u64 {
    if path.ends_with(METRICS) { 16 * TEXT } else { TEXT }
}

/// Bytes that a file beside a model can have: no more of it is hashed or sent. Files of tensors are as long as their headers say.
#[must_use]
pub fn largest(path: &Path) -> u64 {
    match file_name(path) {
        name if name.ends_with(".safetensors") => u64::MAX,
        name if COMPANIONS.contains(&name.as_str()) || name == CARD => most(path),
        _ => 16 * TEXT,
    }
}

/// The paths of what a folder holds, in order.
///
/// # Errors
/// When it cannot be listed.
pub fn list(folder: &Path) -> Result<Vec<PathBuf>> {
    let paths = fs::read_dir(folder).and_then(|entries| entries.map(|entry| Ok(entry?.path())).collect());
    let mut paths: Vec<PathBuf> = paths.with_context(|| format!("cannot list {}", folder.display()))?;
    paths.sort();
    Ok(paths)
}

/// Whether a folder holds the weights of a model.
#[must_use]
pub fn holds_model(dir: &Path) -> bool {
    [WEIGHTS, INDEX].iter().any(|name| dir.join(name).exists())
}

/// The error message for a file that cannot be parsed. Only where there is a checkpoint can a command write it anew.
pub(crate) fn damaged(path: &Path) -> String {
    let resumes = path.parent().is_some_and(|dir| dir.join(CHECKPOINT).exists());
    let remedy = if resumes {
        "restore it, or delete it and the command that made the run writes it anew"
    } else {
        "restore it from where the folder comes from"
    };
    format!("{} is damaged or of another version: {remedy}", path.display())
}

/// Says that a folder holds no result, and what to do about it.
#[must_use]
pub fn no_result(dir: &Path) -> String {
    let why = match dir.join(RECIPE).exists() {
        true => "the run in it has not ended, and the command that began it goes on with it".to_owned(),
        false => format!("one that has ended leaves a {SUMMARY} in its folder"),
    };
    format!("{} holds no finished run: {why}", dir.display())
}

/// Writes the resolved recipe into a run's folder. A result of other settings, as of a run that is made longer, is no longer that of
/// this folder, and is set aside with its pictures as summary.before.json and the like; returns whether that was done.
///
/// # Errors
/// When the recipe there cannot be read, or the folder cannot be written.
pub fn write_recipe(dir: &Path, resolved: &Resolved) -> Result<bool> {
    let other = match read_recipe(dir)? {
        Some(begun) => begun.fingerprint()? != resolved.recipe.fingerprint()?,
        None => false,
    };
    let aside = other && dir.join(SUMMARY).exists();
    if aside {
        for (name, before) in BEFORE.iter().filter(|(name, _)| dir.join(name).exists()) {
            fs::rename(dir.join(name), dir.join(before))
                .with_context(|| format!("cannot rename {}", dir.join(name).display()))?;
        }
    }
    let text = toml::to_string_pretty(&resolved.recipe).context("this recipe cannot be written as TOML")?;
    write_atomic(&dir.join(RECIPE), text.as_bytes())?;
    Ok(aside)
}

/// Removes what was set aside, where there is any: the folder has the result of the longer run.
///
/// # Errors
/// When it cannot be removed.
pub fn remove_before(dir: &Path) -> Result<()> {
    for path in BEFORE.map(|(_, before)| dir.join(before)) {
        match fs::remove_file(&path) {
            Err(e) if e.kind() != ErrorKind::NotFound => {
                return Err(e).with_context(|| format!("cannot remove {}", path.display()));
            }
            _ => {}
        }
    }
    Ok(())
}

/// Refuses a folder without a run that holds files of the names that a run writes: they are someone else's, and would be replaced.
///
/// # Errors
/// When there is one; the message names it.
pub fn refuse_foreign(dir: &Path) -> Result<()> {
    if [RECIPE, CHECKPOINT, SUMMARY].iter().any(|name| dir.join(name).exists()) || holds_model(dir) {
        return Ok(());
    }
    // A run that was killed at its beginning has an empty log.
    let foreign = |name: &&'static str| fs::symlink_metadata(dir.join(name)).is_ok_and(|meta| meta.len() > 0);
    match [CONFIG, METRICS, SAMPLES, CURVE, BEST].into_iter().find(foreign) {
        Some(name) => bail!(
            "--out {} holds a {name} that no run has made there, and this one would replace it: name another folder",
            dir.display()
        ),
        None => Ok(()),
    }
}

/// Reads the recipe of a run's folder, or `None` where there is none.
///
/// # Errors
/// When there is one that cannot be read.
pub fn read_recipe(dir: &Path) -> Result<Option<Recipe>> {
    Ok(resolve(dir)?.map(|resolved| resolved.recipe))
}

/// As [`read_recipe`], with the origin of each setting.
///
/// # Errors
/// When there is one that cannot be read.
pub fn resolve(dir: &Path) -> Result<Option<Resolved>> {
    let path = dir.join(RECIPE);
    let Some(bytes) = read(&path)? else { return Ok(None) };
    let text = String::from_utf8(bytes).with_context(|| damaged(&path))?;
    Resolved::parse("", &text, &[]).with_context(|| damaged(&path)).map(Some)
}

/// Whether a name is that of a file of this toolkit while it is written: `NAME.tmp123` ([`write_atomic`]) or, for a picture,
/// `.NAME.123`.
#[must_use]
pub fn is_half_written(name: &str) -> bool {
    const NAMES: [&str; 7] = [CONFIG, RECIPE, SUMMARY, METRICS, SAMPLES, CURVE, CARD];
    let Some((whole, end)) = name.rsplit_once('.') else { return false };
    let (whole, number) = match (end.strip_prefix("tmp"), whole.strip_prefix('.')) {
        (Some(number), _) => (whole, number),
        (None, Some(whole)) => (whole, end),
        (None, None) => return false,
    };
    let weights = whole.starts_with("model") || whole.starts_with("checkpoint.");
    let ours = NAMES.contains(&whole)
        || [INDEX, REPORT, "index.json"].contains(&whole)
        || whole.starts_with(EVENTS.0) && whole.ends_with(EVENTS.1)
        || weights && whole.ends_with(".safetensors");
    ours && !number.is_empty() && number.bytes().all(|b| b.is_ascii_digit())
}

/// Removes what a killed process left half-written under a temporary name. Only for the folder's one writer, see
/// [`crate::lock`]: another one may be writing such a file.
///
/// # Errors
/// When the folder cannot be listed or written.
pub fn remove_leftovers(out: &Path) -> Result<()> {
    for path in list(out)?.into_iter().filter(|path| is_half_written(&file_name(path)) && !path.is_dir()) {
        fs::remove_file(&path).with_context(|| format!("cannot remove {}", path.display()))?;
    }
    Ok(())
}

/// The lines of a log. A last line that was cut short, as a killed run leaves it, is left out.
///
/// # Errors
/// When another line is no JSON object, or longer than [`LINE`] bytes; the message is its number, `line 7`.
pub fn parse_log(text: &str) -> Result<Vec<Map<String, Value>>> {
    let mut lines = Vec::new();
    for (i, line) in text.split_inclusive('\n').enumerate() {
        ensure!(line.len() <= LINE, "line {}", i + 1);
        match serde_json::from_str(line) {
            Ok(object) => lines.push(object),
            Err(_) if !line.ends_with('\n') => {}
            Err(e) => return Err(e).with_context(|| format!("line {}", i + 1)),
        }
    }
    Ok(lines)
}

/// The lines of a run's log, or `None` where there is none: published weights may come without.
///
/// # Errors
/// When it cannot be read, or a line is damaged.
pub fn read_metrics(out: &Path) -> Result<Option<Vec<Map<String, Value>>>> {
    let path = out.join(METRICS);
    // Whatever else has the name is no log.
    if !path.is_file() {
        return Ok(None);
    }
    let read = read_regular(&path, most(&path)).and_then(|bytes| Ok(String::from_utf8(bytes)?));
    let text = read
        .with_context(|| format!("cannot read {}: move it away to go on without curves", path.display()))?;
    // Only the line number is kept: the parser saw one line at a time, and its own message would always say line 1.
    let lines = parse_log(&text).map_err(|line| {
        anyhow!(
            "{} is damaged in {line}: restore it, or move it away to go on without curves",
            path.display()
        )
    });
    lines.map(Some)
}

/// The points (update, value) of a column of the log.
#[must_use]
pub fn column(log: &[Map<String, Value>], key: &str) -> Vec<(f64, f64)> {
    column_over(log, "update", key)
}

/// As [`fn@column`], over another column that only grows (`images_seen`, `seconds`).
#[must_use]
pub fn column_over(log: &[Map<String, Value>], over: &str, key: &str) -> Vec<(f64, f64)> {
    let point = |line: &Map<String, Value>| Some((line.get(over)?.as_f64()?, line.get(key)?.as_f64()?));
    log.iter().filter_map(point).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_half_written_files_are_removed() -> Result<()> {
        let out = tempfile::tempdir()?;
        let ours = [
            "model.safetensors.tmp12",
            "model-00001-of-00002.safetensors.tmp1",
            "checkpoint.best.safetensors.tmp1",
            "events.out.tfevents.0000000001.flow.tmp3",
            "README.md.tmp12",
            "index.json.tmp7",
            ".samples.png.12",
        ];
        let theirs = [
            "b.tmp",
            "README.md.tmp1x",
            "README.md.tmp",
            "notes.txt.tmp12",
            ".notes.12",
            "model.safetensors",
        ];
        let names = [&ours[..], &theirs].concat();
        for name in &names {
            fs::write(out.path().join(name), b"")?;
        }
        remove_leftovers(out.path())?;
        let left: Vec<&str> = names.into_iter().filter(|n| out.path().join(n).exists()).collect();
        assert_eq!(left, theirs);
        Ok(())
    }

    #[test]
    fn a_result_of_other_settings_is_set_aside() -> Result<()> {
        let dir = tempfile::tempdir()?;
        let (summary, before) = (dir.path().join(SUMMARY), dir.path().join("summary.before.json"));
        let (samples, drawn) = (dir.path().join(SAMPLES), dir.path().join("samples.before.png"));
        fs::write(&samples, "")?;
        write_recipe(dir.path(), &Resolved::load("moons", &[])?)?;
        fs::write(&summary, "40 updates")?;
        assert!(!write_recipe(dir.path(), &Resolved::load("moons", &["about=other".to_owned()])?)?);
        assert!(summary.exists() && !before.exists());
        assert!(write_recipe(dir.path(), &Resolved::load("moons", &["train.updates=80".to_owned()])?)?);
        assert!(!summary.exists() && !samples.exists() && drawn.exists());
        assert_eq!(fs::read_to_string(&before)?, "40 updates");
        remove_before(dir.path())?;
        assert!(!before.exists() && !drawn.exists());
        remove_before(dir.path())
    }
}
