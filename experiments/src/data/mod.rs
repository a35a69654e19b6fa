//! Data sets: what a flow is trained and measured on.
//!
//! A [`Dataset`] is a training, an optional validation and a test [`Split`] held in memory, plus where it
//! came from and, for the sets that are drawn here rather than read, what its entropy is. Pixels stay bytes
//! until a batch is made: a number of bits per dimension only means something for the integers that were
//! stored.
//!
//! | name | comes from | values |
//! |---|---|---|
//! | `mnist` | four idx files, plain or `.gz`, or the hub | (N, 1, 28, 28) bytes |
//! | `cifar10` | the binary batches, their `.tar.gz`, or the hub | (N, 3, 32, 32) bytes |
//! | `faces` | drawn from a seed, entropy known to 0.02 bits/dim ([`faces`]) | (N, 3, 32, 32) bytes |
//! | `moons`, `rings`, `spirals`, `checkerboard` | drawn from a seed, entropy known ([`plane`]) | (N, 2) |
//! | `folder` | PNG and JPEG files ([`folder`]) | (N, C, H, W) bytes |
//! | `npy` | `.npy` and `.npz` arrays ([`npy`]) | bytes or reals |
//!
//! Every reader works on a byte slice and trusts none of it: a size in a header is compared with the bytes
//! that are there before anything is allocated, and an error names the file, the byte offset and the remedy.

pub mod cifar;
pub mod faces;
pub mod folder;
pub mod hub;
pub mod idx;
pub mod npy;
pub mod plane;
mod set;
#[cfg(any(feature = "candle-datasets", test))]
pub mod vision;

pub use set::{Dataset, Entropy, Split, Values};
pub(crate) use set::{LARGEST, Revision, file_name, gunzip, read_file};

use anyhow::{Result, bail, ensure};
use rand::SeedableRng;
use rand_chacha::ChaCha8Rng;
use std::path::PathBuf;

/// The names [`load`] knows.
pub const NAMES: [&str; 9] =
    ["mnist", "cifar10", "faces", "moons", "rings", "spirals", "checkerboard", "folder", "npy"];

/// Where a set comes from.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Source {
    /// Drawn here from a seed.
    Builtin,
    /// Read from a folder or a file of the user's.
    Folder(PathBuf),
    /// Downloaded from the Hugging Face hub, or read from its local cache.
    Hub,
}

/// What to load.
#[derive(Clone, Debug, Default)]
pub struct Request {
    /// One of [`NAMES`].
    pub name: String,
    /// The data set's folder or its parent, from `--data` or `FLOW_DATA`; the drawn sets do not look at it.
    pub dir: Option<PathBuf>,
    /// The side that images of a folder are cropped and resized to.
    pub size: Option<usize>,
    /// How many training examples to draw; for a set that is read, keep the first so many.
    pub train: Option<usize>,
    /// How many validation examples to draw; for a set that is read and has none, carve them off the training
    /// set.
    pub valid: Option<usize>,
    /// How many test examples to draw; for a set that is read, keep the first so many.
    pub test: Option<usize>,
    /// The seed of the drawn sets.
    pub seed: u64,
}

impl Request {
    /// Where this set will come from.
    ///
    /// # Errors
    /// When the name is not known, or names the user's own data without saying where they are.
    pub fn source(&self) -> Result<Source> {
        match (self.name.as_str(), &self.dir) {
            ("faces" | "moons" | "rings" | "spirals" | "checkerboard", _) => Ok(Source::Builtin),
            ("mnist" | "cifar10" | "folder" | "npy", Some(dir)) => Ok(Source::Folder(dir.clone())),
            ("mnist" | "cifar10", None) => Ok(Source::Hub),
            ("folder" | "npy", None) => {
                bail!("`{}` reads your own data: say where they are with --data DIR or FLOW_DATA", self.name)
            }
            (name, _) => bail!("there is no data set `{name}`: choose one of {}", NAMES.join(", ")),
        }
    }
}

/// Loads a data set.
///
/// # Errors
/// When the name is not known, a file is missing or damaged (the message names it, the byte and the remedy),
/// the hub cannot be reached, or the sizes asked for leave a split empty.
pub fn load(request: &Request) -> Result<Dataset> {
    let mut set = match (request.source()?, request.name.as_str()) {
        (Source::Builtin, "faces") => return faces::dataset(request),
        (Source::Builtin, _) => return plane::dataset(request),
        (Source::Folder(dir), "mnist") => idx::read_folder(&dir)?,
        (Source::Folder(dir), "cifar10") => cifar::read_folder(&dir)?,
        (Source::Folder(dir), "folder") => folder::read_folder(&dir, request.size)?,
        (Source::Folder(path), _) => npy::read_path(&path)?,
        (Source::Hub, "mnist") => hub::load(&hub::MNIST)?,
        (Source::Hub, _) => hub::load(&hub::CIFAR10)?,
    };
    match (&mut set.valid, request.valid) {
        (Some(_), Some(0)) => set.valid = None,
        (Some(valid), Some(n)) => valid.truncate(n),
        (None, Some(n)) if n > 0 => set.carve_validation(n)?,
        _ => {}
    }
    set.train.truncate(request.train.unwrap_or(usize::MAX));
    set.test.truncate(request.test.unwrap_or(usize::MAX));
    ensure!(
        !set.train.is_empty() && !set.test.is_empty(),
        "`{}` has {} training and {} test examples left: ask for at least one of each",
        request.name,
        set.train.len(),
        set.test.len()
    );
    Ok(set)
}

/// The random numbers of example `index` of part `part`: independent of every other example, so that neither
/// the number of threads nor the number of examples changes what one of them looks like.
pub(crate) fn example_rng(seed: u64, domain: &str, part: u64, index: u64) -> ChaCha8Rng {
    let mut key = [0_u8; 32];
    key[..8].copy_from_slice(&seed.to_le_bytes());
    key[8..16].copy_from_slice(&part.to_le_bytes());
    for (to, from) in key[16..].iter_mut().zip(domain.bytes()) {
        *to = from;
    }
    let mut rng = ChaCha8Rng::from_seed(key);
    rng.set_stream(index);
    rng
}

#[cfg(test)]
pub(crate) mod mutate {
    //! Damaged copies of a file, the same ones in every run.

    use rand::{Rng, SeedableRng};
    use rand_chacha::ChaCha8Rng;

    /// Calls `reader` with `count` damaged copies of `bytes`: flipped, cut, lengthened, and with extreme
    /// integers. It must not panic, and whatever a copy claims, it must not take more than 16 times its length and
    /// half a megabyte, which is what the state of an unpacker takes.
    pub(crate) fn each(bytes: &[u8], count: usize, reader: impl FnMut(&[u8])) {
        within(bytes, count, 16, reader);
    }

    /// As [`each`], with another multiple of the length: images are unpacked.
    pub(crate) fn within(bytes: &[u8], count: usize, multiple: usize, mut reader: impl FnMut(&[u8])) {
        let mut rng = ChaCha8Rng::seed_from_u64(0x0bad);
        for round in 0..count {
            let mut copy = bytes.to_vec();
            // Headers are where the damage matters, so half of the hits go to the first bytes.
            for _ in 0..rng.random_range(1..4) {
                let end = if rng.random() { copy.len().min(160) } else { copy.len() };
                if end == 0 {
                    break;
                }
                let at = rng.random_range(0..end);
                match (round + usize::from(rng.random::<bool>())) % 6 {
                    0 => copy[at] ^= 1 << rng.random_range(0..8),
                    1 => copy[at] = rng.random(),
                    2 => copy.truncate(at),
                    3 => copy.extend(std::iter::repeat_n(rng.random::<u8>(), at % 40 + 1)),
                    4 => {
                        let extreme = [0, 0xff, 0x7f, 0x80][rng.random_range(0..4)];
                        copy[at..(at + 4).min(end)].fill(extreme);
                    }
                    _ => {
                        let piece = copy[at..(at + 7).min(end)].to_vec();
                        copy.splice(at..at, piece);
                    }
                }
            }
            let took = crate::counting::peak(|| reader(&copy));
            let may = (1 << 19) + multiple * copy.len();
            assert!(took <= may, "{took} bytes for a file of {}, copy {round}", copy.len());
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn split() -> Split {
        Split::new(
            vec![1, 1, 2],
            Values::Pixels((0..10).collect()),
            Some(vec![0, 1, 2, 3, 4]),
            Some((0..5).map(|i| vec![i, 9]).collect()),
        )
        .unwrap()
    }

    #[test]
    fn parts_of_a_split_keep_their_labels() {
        let s = split();
        assert_eq!((s.len(), s.dims(), s.is_empty()), (5, 2, false));
        assert_eq!(s.pixels(3), [6, 7]);
        let picked = s.select(&[4, 0, 0]);
        assert_eq!(picked.values, Values::Pixels(vec![8, 9, 0, 1, 0, 1]));
        assert_eq!(picked.labels, Some(vec![4, 0, 0]));
        assert_eq!(picked.attributes.as_ref().unwrap()[0], [4, 9]);
        assert_eq!(s.take(2), s.slice(0..2));
        assert_eq!(s.take(99), s);
        let mut short = s.clone();
        short.truncate(2);
        assert_eq!(short, s.take(2));
    }

    #[test]
    fn parts_that_do_not_fit_are_errors() {
        assert!(Split::new(vec![3], Values::Reals(vec![0.0; 4]), None, None).is_err());
        assert!(Split::new(vec![0], Values::Reals(vec![]), None, None).is_err());
        assert!(Split::new(vec![usize::MAX, 2], Values::Reals(vec![]), None, None).is_err());
        assert!(Split::new(vec![2], Values::Reals(vec![0.0; 4]), Some(vec![1]), None).is_err());
        assert!(Split::new(vec![2], Values::Reals(vec![0.0; 4]), None, Some(vec![])).is_err());
    }

    #[test]
    fn validation_is_the_end_of_training() {
        let mut set = Dataset {
            name: "t".into(),
            train: split(),
            valid: None,
            test: split(),
            classes: vec![],
            attribute_names: vec![],
            entropy: None,
            revision: String::new(),
        };
        assert!(set.carve_validation(5).is_err());
        set.carve_validation(2).unwrap();
        assert_eq!(
            (set.train.clone(), set.valid.clone().unwrap()),
            (split().slice(0..3), split().slice(3..5))
        );
        assert!(set.carve_validation(1).is_err());
    }

    #[test]
    fn names_and_sources() {
        let request = |name: &str, dir: Option<&str>| Request {
            name: name.into(),
            dir: dir.map(PathBuf::from),
            ..Request::default()
        };
        assert_eq!(request("mnist", None).source().unwrap(), Source::Hub);
        assert_eq!(request("mnist", Some("d")).source().unwrap(), Source::Folder("d".into()));
        assert_eq!(request("faces", Some("d")).source().unwrap(), Source::Builtin);
        assert!(request("folder", None).source().unwrap_err().to_string().contains("--data"));
        assert!(load(&request("nope", None)).unwrap_err().to_string().contains("checkerboard"));
        assert!(load(&request("mnist", Some("no/such/folder"))).is_err());
    }

    #[test]
    fn gzip_is_unpacked_and_damage_is_an_error() {
        use std::io::Write;
        let mut packed = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::fast());
        packed.write_all(&[7; 5000]).unwrap();
        let packed = packed.finish().unwrap();
        assert_eq!(gunzip(&packed, "x").unwrap(), vec![7; 5000]);
        assert!(
            gunzip(&packed[..packed.len() - 3], "x").unwrap_err().to_string().contains("x is damaged gzip")
        );
        mutate::each(&packed, 2000, |bytes| drop(gunzip(bytes, "x")));
    }
}
