//! The table of data sets: what each name stands for, and the reader that loads it.
//!
//! Recipes, memory limits, `flow explain` and model cards look up the properties of a set here, so that a new data
//! set is one file for its reader and one row of [`SETS`].

use super::hub::{self, CIFAR10, HubSet, MNIST};
use super::{Dataset, Join, Parts, Request, bent, cifar, faces, folder, idx, npy, plane, vectors};
use crate::suggest::did_you_mean;
use anyhow::{Context, Result, bail, ensure};
use flows::hub::Observer;
use std::path::Path;
use std::sync::Arc;

/// A data set that has a name.
pub struct KnownSet {
    /// What `data.set` of a recipe says.
    pub name: &'static str,
    /// The shape of one example; `None` where the user's files decide it.
    pub shape: Option<&'static [usize]>,
    /// Training examples, validation included; `None` where the user's files decide it.
    pub train: Option<usize>,
    /// Where its examples come from, and the reader.
    pub origin: Origin,
}

/// Where the examples of a data set come from.
pub enum Origin {
    /// Drawn from a seed.
    Drawn {
        /// Bytes that an example takes while the set is drawn.
        bytes: f64,
        /// Draws the set.
        draw: fn(&Request) -> Result<Dataset>,
    },
    /// Read from the files as they were published, or from the Hugging Face hub.
    Published {
        /// Reads a folder of the published files.
        read: fn(&Path) -> Result<Dataset>,
        /// The same data on the hub.
        hub: &'static HubSet,
    },
    /// Read from files of the user's own; images are cropped and resized to a side where the reader can do so.
    Own(fn(&Path, Option<usize>) -> Result<Dataset>),
}

// A point is drawn in double precision with its component.
const PLANE: Origin = Origin::Drawn { bytes: 24. + 8. + 4., draw: plane::dataset };

// As a point of the plane, of 21 dimensions at most.
const VECTORS: Origin = Origin::Drawn { bytes: 21. * (8. + 4.), draw: vectors::dataset };

/// All data sets.
pub static SETS: [KnownSet; 14] = [
    KnownSet {
        name: MNIST.name,
        shape: Some(&MNIST.shape),
        train: Some(MNIST.train.1),
        origin: Origin::Published { read: idx::read_folder, hub: &MNIST },
    },
    KnownSet {
        name: CIFAR10.name,
        shape: Some(&CIFAR10.shape),
        train: Some(CIFAR10.train.1),
        origin: Origin::Published { read: cifar::read_folder, hub: &CIFAR10 },
    },
    KnownSet {
        name: "faces",
        shape: Some(&[3, faces::SIDE, faces::SIDE]),
        train: Some(20_000),
        // Its pixels and a row of attributes.
        origin: Origin::Drawn { bytes: faces::DIMS as f64 + 24., draw: faces::dataset },
    },
    KnownSet { name: "moons", shape: Some(&[2]), train: Some(20_000), origin: PLANE },
    KnownSet { name: "rings", shape: Some(&[2]), train: Some(20_000), origin: PLANE },
    KnownSet { name: "spirals", shape: Some(&[2]), train: Some(20_000), origin: PLANE },
    KnownSet { name: "checkerboard", shape: Some(&[2]), train: Some(20_000), origin: PLANE },
    KnownSet { name: "mixture8", shape: Some(&[8]), train: Some(100_000), origin: VECTORS },
    KnownSet { name: "mixture21", shape: Some(&[21]), train: Some(100_000), origin: VECTORS },
    KnownSet { name: "warped8", shape: Some(&[8]), train: Some(100_000), origin: VECTORS },
    KnownSet { name: "warped21", shape: Some(&[21]), train: Some(100_000), origin: VECTORS },
    KnownSet {
        name: "bent",
        shape: Some(&[2]),
        train: Some(100_000),
        origin: Origin::Drawn { bytes: 6. * (8. + 4.), draw: bent::dataset },
    },
    KnownSet { name: "folder", shape: None, train: None, origin: Origin::Own(folder::read_folder) },
    KnownSet { name: "npy", shape: None, train: None, origin: Origin::Own(|path, _| npy::read_path(path)) },
];

/// The names of all data sets, separated by commas.
#[must_use]
pub fn names() -> String {
    SETS.each_ref().map(|set| set.name).join(", ")
}

/// The data set of this name, if there is one.
#[must_use]
pub fn known(name: &str) -> Option<&'static KnownSet> {
    SETS.iter().find(|set| set.name == name)
}

/// Loads a data set; `observer` receives the progress of transfers from the hub and may stop them.
///
/// # Errors
/// When the name is not known, a file is missing or damaged (the message names it, the byte and the remedy),
/// the hub cannot be reached, or the sizes asked for leave a split empty.
pub fn load(request: &Request, observer: Option<Arc<dyn Observer>>) -> Result<Dataset> {
    let name = &request.name;
    let set = known(name).with_context(|| {
        let close = did_you_mean(name, SETS.iter().map(|set| set.name));
        format!("there is no data set `{name}`: choose one of {}{close}", names())
    })?;
    let mut data = match (&set.origin, &request.dir) {
        (Origin::Drawn { draw, .. }, _) => draw(request)?,
        (Origin::Published { read, .. }, Some(dir)) => read(dir).map_err(|e| mistaken(set, dir, e))?,
        (Origin::Published { hub, .. }, None) => hub::load(hub, observer)?,
        (Origin::Own(read), Some(path)) => read(path, request.size).map_err(|e| mistaken(set, path, e))?,
        (Origin::Own(_), None) => {
            bail!("`{name}` reads your own data: say where they are with --data DIR or FLOW_DATA")
        }
    };
    let joined = match request.join {
        Join::Never => false,
        Join::Unnamed => data.parts == Parts::Chosen,
        Join::Always => true,
    };
    match (&set.origin, joined) {
        (_, true) => data.join(),
        (Origin::Drawn { .. }, false) => {}
        (_, false) => choose(&mut data, request)?,
    }
    ensure!(
        (joined || !data.train.is_empty()) && !data.test.is_empty(),
        "`{name}` has {} training and {} test examples left: give more of them, or say with names which are which (folders or \
         arrays `train` and `test`)",
        data.train.len(),
        data.test.len()
    );
    Ok(data)
}

/// The error of reading `set` from a folder, or that it holds another, published set.
fn mistaken(set: &KnownSet, dir: &Path, error: anyhow::Error) -> anyhow::Error {
    let is_there = |other: &&KnownSet| match other.origin {
        Origin::Published { read, .. } => other.name != set.name && read(dir).is_ok(),
        _ => false,
    };
    match SETS.iter().find(is_there) {
        Some(other) => error.context(format!(
            "{} holds `{}`, and `{}` is asked for: give the folder of that set, or choose this one (`data.set` of a recipe, \
             --data-set)",
            dir.display(),
            other.name,
            set.name
        )),
        None => error,
    }
}

/// Keeps as many examples of each part of a set that was read as are asked for.
fn choose(data: &mut Dataset, request: &Request) -> Result<()> {
    match (&mut data.valid, request.valid) {
        (Some(_), Some(0)) => data.valid = None,
        (Some(valid), Some(n)) => valid.truncate(n),
        (None, Some(n)) if n > 0 => data.carve_validation(n)?,
        _ => {}
    }
    let aside = data.valid.as_ref().map_or(0, |valid| valid.len());
    for (split, asked, key) in
        [(&mut data.train, request.train, "train"), (&mut data.test, request.test, "test")]
    {
        let Some(asked) = asked else { continue };
        ensure!(
            asked <= split.len(),
            "`data.{key}` = {asked} asks for more than the {} {key} examples of `{}` (beside {aside} for validation): \
             lower it, or leave it out for all",
            split.len(),
            request.name
        );
        split.truncate(asked);
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::path::PathBuf;

    /// Examples that are asked for and not there are an error, not fewer examples.
    #[test]
    fn more_than_there_are_is_an_error() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("v.npy");
        let mut file =
            b"\x93NUMPY\x01\0\x76\0{'descr': '<f8', 'fortran_order': False, 'shape': (50, 2), }".to_vec();
        file.resize(127, b' ');
        file.push(b'\n');
        file.extend((0..100).flat_map(|i| f64::from(i).to_le_bytes()));
        std::fs::write(&path, file).unwrap();
        let request = Request { name: "npy".into(), dir: Some(path), ..Request::default() };
        let all = load(&request, None).unwrap();
        let (train, test) = (all.train.len(), all.test.len());
        assert!(all.train.len() + all.valid.as_ref().map_or(0, |v| v.len()) + all.test.len() == 50);
        for (key, part) in [
            ("data.train", Request { train: Some(train + 1), ..request.clone() }),
            ("data.test", Request { test: Some(test + 1), ..request.clone() }),
        ] {
            let error = load(&part, None).unwrap_err().to_string();
            assert!(error.contains(key) && error.contains("leave it out"), "{error}");
        }
        assert_eq!(load(&Request { train: Some(train), ..request }, None).unwrap().train.len(), train);
    }

    #[test]
    fn names_and_sources() {
        let request = |name: &str, dir: Option<&str>| Request {
            name: name.into(),
            dir: dir.map(PathBuf::from),
            train: Some(2),
            valid: Some(0),
            test: Some(1),
            ..Request::default()
        };
        for set in &SETS {
            // Sets that are drawn ignore the folder; the others find no files there.
            let loaded = load(&request(set.name, Some("no/such/folder")), None);
            assert_eq!(loaded.is_ok(), matches!(set.origin, Origin::Drawn { .. }), "{}", set.name);
            if let Ok(data) = loaded {
                assert_eq!(Some(data.train.shape.as_slice()), set.shape);
            }
        }
        assert!(load(&request("folder", None), None).unwrap_err().to_string().contains("--data"));
        assert!(load(&request("nope", None), None).unwrap_err().to_string().contains("checkerboard"));
    }
}
