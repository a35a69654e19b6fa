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

use anyhow::{Context, Result, bail, ensure};
use rand::SeedableRng;
use rand_chacha::ChaCha8Rng;
use sha2::{Digest, Sha256};
use std::io::Read;
use std::ops::Range;
use std::path::{Path, PathBuf};

/// The names [`load`] knows.
pub const NAMES: [&str; 9] =
    ["mnist", "cifar10", "faces", "moons", "rings", "spirals", "checkerboard", "folder", "npy"];

/// The numbers of one split, example after example.
#[derive(Clone, Debug, PartialEq)]
pub enum Values {
    /// Planar images, (N, C, H, W), one byte per subpixel.
    Pixels(Vec<u8>),
    /// Vectors, (N, D).
    Reals(Vec<f32>),
}

/// One part (training, validation or test) of a data set.
#[derive(Clone, Debug, PartialEq)]
pub struct Split {
    /// The shape of one example: `[C, H, W]` for pixels, `[D]` for reals.
    pub shape: Vec<usize>,
    /// All examples, one after the other.
    pub values: Values,
    /// One class per example, where the set has classes.
    pub labels: Option<Vec<u32>>,
    /// One row per example, one column per name in [`Dataset::attribute_names`].
    pub attributes: Option<Vec<Vec<u8>>>,
}

impl Split {
    /// A split whose parts agree in length.
    ///
    /// # Errors
    /// When the values are no whole number of examples, or labels or attributes are not one per example.
    pub fn new(
        shape: Vec<usize>,
        values: Values,
        labels: Option<Vec<u32>>,
        attributes: Option<Vec<Vec<u8>>>,
    ) -> Result<Self> {
        let dims = shape.iter().try_fold(1_usize, |product, &side| product.checked_mul(side));
        let Some(dims) = dims.filter(|&dims| dims > 0) else {
            bail!("an example of shape {shape:?} holds no values: every side must be at least 1");
        };
        let count = match &values {
            Values::Pixels(v) => v.len(),
            Values::Reals(v) => v.len(),
        };
        ensure!(
            count.is_multiple_of(dims),
            "{count} values are no whole number of examples of shape {shape:?}: the data are cut short"
        );
        let examples = count / dims;
        for (what, rows) in
            [("labels", labels.as_ref().map(Vec::len)), ("attributes", attributes.as_ref().map(Vec::len))]
        {
            if let Some(rows) = rows {
                ensure!(
                    rows == examples,
                    "{examples} examples came with {rows} rows of {what}: give one per example"
                );
            }
        }
        Ok(Self { shape, values, labels, attributes })
    }

    /// How many examples there are.
    #[must_use]
    pub fn len(&self) -> usize {
        let count = match &self.values {
            Values::Pixels(v) => v.len(),
            Values::Reals(v) => v.len(),
        };
        count / self.dims()
    }

    /// Whether there is no example at all.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// The number of values in one example, the D of bits/dim.
    #[must_use]
    pub fn dims(&self) -> usize {
        self.shape.iter().product()
    }

    /// Whether the examples are images of bytes.
    #[must_use]
    pub fn is_pixels(&self) -> bool {
        matches!(self.values, Values::Pixels(_))
    }

    /// The bytes of example `i`, planar (C, H, W).
    ///
    /// # Panics
    /// When the split holds reals, or `i` is not below [`len`](Self::len).
    #[must_use]
    pub fn pixels(&self, i: usize) -> &[u8] {
        match &self.values {
            Values::Pixels(v) => &v[i * self.dims()..][..self.dims()],
            Values::Reals(_) => {
                panic!("these examples are vectors of reals, not images: read them with Split::reals")
            }
        }
    }

    /// The numbers of example `i`, (D).
    ///
    /// # Panics
    /// When the split holds pixels, or `i` is not below [`len`](Self::len).
    #[must_use]
    pub fn reals(&self, i: usize) -> &[f32] {
        match &self.values {
            Values::Reals(v) => &v[i * self.dims()..][..self.dims()],
            Values::Pixels(_) => {
                panic!("these examples are images, not vectors of reals: read them with Split::pixels")
            }
        }
    }

    /// The examples of a range, copied.
    ///
    /// # Panics
    /// When the range leaves `0..len`.
    #[must_use]
    pub fn slice(&self, range: Range<usize>) -> Self {
        let flat = range.start * self.dims()..range.end * self.dims();
        Self {
            shape: self.shape.clone(),
            values: match &self.values {
                Values::Pixels(v) => Values::Pixels(v[flat].to_vec()),
                Values::Reals(v) => Values::Reals(v[flat].to_vec()),
            },
            labels: self.labels.as_ref().map(|l| l[range.clone()].to_vec()),
            attributes: self.attributes.as_ref().map(|a| a[range].to_vec()),
        }
    }

    /// The first `n` examples, or all of them where there are fewer.
    #[must_use]
    pub fn take(&self, n: usize) -> Self {
        self.slice(0..n.min(self.len()))
    }

    /// The examples at these places, in this order; a place may come more than once.
    ///
    /// # Panics
    /// When a place is not below [`len`](Self::len).
    #[must_use]
    pub fn select(&self, places: &[usize]) -> Self {
        fn gather<T: Copy>(from: &[T], dims: usize, places: &[usize]) -> Vec<T> {
            places.iter().flat_map(|&i| from[i * dims..][..dims].iter().copied()).collect()
        }
        Self {
            shape: self.shape.clone(),
            values: match &self.values {
                Values::Pixels(v) => Values::Pixels(gather(v, self.dims(), places)),
                Values::Reals(v) => Values::Reals(gather(v, self.dims(), places)),
            },
            labels: self.labels.as_ref().map(|l| gather(l, 1, places)),
            attributes: self.attributes.as_ref().map(|a| places.iter().map(|&i| a[i].clone()).collect()),
        }
    }

    /// Shortens the split to its first `n` examples in place; a longer `n` changes nothing.
    pub fn truncate(&mut self, n: usize) {
        let dims = self.dims();
        match &mut self.values {
            Values::Pixels(v) => v.truncate(n.saturating_mul(dims)),
            Values::Reals(v) => v.truncate(n.saturating_mul(dims)),
        }
        if let Some(labels) = &mut self.labels {
            labels.truncate(n);
        }
        if let Some(attributes) = &mut self.attributes {
            attributes.truncate(n);
        }
    }
}

/// What is known of a set's entropy, the number no model's average loss can go below.
///
/// Bits per dimension for pixels; nats per point for the two-dimensional densities, where `lower == upper`.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Entropy {
    /// The entropy is at least this.
    pub lower: f64,
    /// The entropy is at most this.
    pub upper: f64,
}

/// A data set in memory.
#[derive(Clone, Debug)]
pub struct Dataset {
    /// The name it was asked for by.
    pub name: String,
    /// What models are fitted to.
    pub train: Split,
    /// What choices are made on, where the set has such a part; see [`Dataset::carve_validation`].
    pub valid: Option<Split>,
    /// What the reported numbers are measured on.
    pub test: Split,
    /// The name of each class, empty where there are no labels.
    pub classes: Vec<String>,
    /// The name of each attribute column, empty where there are none.
    pub attribute_names: Vec<String>,
    /// The entropy, for the sets drawn here.
    pub entropy: Option<Entropy>,
    /// Which bytes these are: the SHA-256 of the files, the hub's commit, or the generator's version and
    /// seed.
    pub revision: String,
}

impl Dataset {
    /// Moves the last `n` training examples into a validation split of their own.
    ///
    /// The last, not a random choice: the published sets are shuffled already, and a fixed rule keeps runs
    /// comparable.
    ///
    /// # Errors
    /// When there is a validation split already, or no training example would be left.
    pub fn carve_validation(&mut self, n: usize) -> Result<()> {
        ensure!(
            self.valid.is_none(),
            "`{}` has a validation split of its own: do not carve another",
            self.name
        );
        let total = self.train.len();
        ensure!(
            n < total,
            "`{}` has {total} training examples, of which {n} cannot be set aside: ask for fewer",
            self.name
        );
        self.valid = Some(self.train.slice(total - n..total));
        self.train.truncate(total - n);
        Ok(())
    }
}

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

/// The largest file that is read whole; anything bigger is no data set for a computer's memory.
pub(crate) const LARGEST: u64 = 1 << 33;

/// Reads a file, unpacking it where its first bytes say gzip.
pub(crate) fn read_file(path: &Path) -> Result<Vec<u8>> {
    let name = path.display();
    let length =
        std::fs::metadata(path).with_context(|| format!("cannot open {name}: check that it exists"))?.len();
    ensure!(
        length <= LARGEST,
        "{name} has {length} bytes, more than the {LARGEST} that are read: split it up"
    );
    let bytes = std::fs::read(path).with_context(|| format!("cannot read {name}: check its permissions"))?;
    if !bytes.starts_with(&[0x1f, 0x8b]) {
        return Ok(bytes);
    }
    gunzip(&bytes, &name.to_string())
}

/// Unpacks gzip, stopping at [`LARGEST`] bytes: a few packed kilobytes can stand for gigabytes.
pub(crate) fn gunzip(bytes: &[u8], name: &str) -> Result<Vec<u8>> {
    let mut plain = Vec::new();
    flate2::read::MultiGzDecoder::new(bytes).take(LARGEST + 1).read_to_end(&mut plain).with_context(
        || format!("{name} is damaged gzip after {} unpacked bytes: fetch it again", plain.len()),
    )?;
    ensure!(plain.len() as u64 <= LARGEST, "{name} unpacks to more than {LARGEST} bytes: it is no data set");
    Ok(plain)
}

/// Collects the SHA-256 over the files a set was read from, in the order they were read.
#[derive(Default)]
pub(crate) struct Revision(Sha256);

impl Revision {
    /// Adds one file: its name and length too, so that no two lists of files collide.
    pub(crate) fn add(&mut self, name: &str, bytes: &[u8]) {
        self.0.update((name.len() as u64).to_le_bytes());
        self.0.update(name.as_bytes());
        self.0.update((bytes.len() as u64).to_le_bytes());
        self.0.update(bytes);
    }

    /// The hash in hexadecimal, with what it was taken of.
    pub(crate) fn finish(self, what: &str) -> String {
        let hex: String = self.0.finalize().iter().map(|byte| format!("{byte:02x}")).collect();
        format!("{what}, sha256 {hex}")
    }
}

/// The last component of a path.
pub(crate) fn file_name(path: &Path) -> String {
    path.file_name().unwrap_or(path.as_os_str()).to_string_lossy().into_owned()
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
