//! A data set in memory, and the reading of its files that all readers share.

use crate::untrusted::read_regular;
use anyhow::{Context, Result, bail, ensure};
use sha2::{Digest, Sha256};
use std::fmt::Display;
use std::io::Read;
use std::ops::Range;
use std::path::Path;

/// The numbers of one split, example after example.
#[derive(Clone, Debug, PartialEq)]
pub enum Values {
    /// Planar images, (N, C, H, W), one byte per subpixel.
    Pixels(Vec<u8>),
    /// Vectors, (N, D).
    Reals(Vec<f32>),
}

impl Values {
    fn len(&self) -> usize {
        match self {
            Self::Pixels(v) => v.len(),
            Self::Reals(v) => v.len(),
        }
    }
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
    /// What is given with each example, for log p(x | c).
    pub context: Option<Rows>,
}

/// Numbers that are given with each example.
#[derive(Clone, Debug, PartialEq)]
pub struct Rows {
    /// The shape of those of one example: `[E]`, or `[E, H, W]` for maps.
    pub shape: Vec<usize>,
    /// All of them, one example's after the other's.
    pub values: Vec<f32>,
}

impl Rows {
    fn dims(&self) -> usize {
        self.shape.iter().product()
    }

    /// Those of example `i`.
    ///
    /// # Panics
    /// When there are none of it.
    #[must_use]
    pub fn row(&self, i: usize) -> &[f32] {
        &self.values[i * self.dims()..][..self.dims()]
    }

    /// How many examples they are for.
    #[must_use]
    pub fn len(&self) -> usize {
        self.values.len() / self.dims().max(1)
    }

    /// Whether they are for none.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }
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
        let Some(dims) = product(&shape).filter(|&dims| dims > 0) else {
            bail!("an example of shape {shape:?} holds no values: every side must be at least 1");
        };
        let count = values.len();
        ensure!(
            count.is_multiple_of(dims),
            "{count} values are no whole number of examples of shape {shape:?}: the data are cut short"
        );
        let examples = count / dims;
        for (what, rows) in
            [("labels", labels.as_ref().map(Vec::len)), ("attributes", attributes.as_ref().map(Vec::len))]
        {
            let rows = rows.unwrap_or(examples);
            ensure!(
                rows == examples,
                "{examples} examples came with {rows} rows of {what}: give one per example"
            );
        }
        Ok(Self { shape, values, labels, attributes, context: None })
    }

    /// The same examples with a context.
    ///
    /// # Errors
    /// When it is not one row for each example.
    pub fn with_context(self, context: Option<Rows>) -> Result<Self> {
        if let Some(rows) = &context {
            ensure!(
                rows.dims() > 0 && rows.values.len() == rows.dims() * self.len(),
                "{} examples came with {} rows of a context: give one per example",
                self.len(),
                rows.len()
            );
        }
        Ok(Self { context, ..self })
    }

    /// How many examples there are.
    #[must_use]
    pub fn len(&self) -> usize {
        self.values.len() / self.dims()
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
        self.select(&range.collect::<Vec<_>>())
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
            places.iter().map(|&i| &from[i * dims..][..dims]).collect::<Vec<_>>().concat()
        }
        Self {
            shape: self.shape.clone(),
            values: match &self.values {
                Values::Pixels(v) => Values::Pixels(gather(v, self.dims(), places)),
                Values::Reals(v) => Values::Reals(gather(v, self.dims(), places)),
            },
            labels: self.labels.as_ref().map(|l| gather(l, 1, places)),
            attributes: self.attributes.as_ref().map(|a| places.iter().map(|&i| a[i].clone()).collect()),
            context: self
                .context
                .as_ref()
                .map(|c| Rows { shape: c.shape.clone(), values: gather(&c.values, c.dims(), places) }),
        }
    }

    /// Adds the examples of another split of the same kind behind those of this one. Labels, attributes and contexts stay only where
    /// both have them.
    fn append(&mut self, other: &Self) {
        match (&mut self.values, &other.values) {
            (Values::Pixels(v), Values::Pixels(more)) => v.extend_from_slice(more),
            (Values::Reals(v), Values::Reals(more)) => v.extend_from_slice(more),
            _ => unreachable!("readers give all splits one kind of values"),
        }
        self.labels = self.labels.take().zip(other.labels.as_ref()).map(|(a, b)| [&a[..], b].concat());
        let attributes = self.attributes.take().zip(other.attributes.as_ref());
        self.attributes = attributes.map(|(a, b)| [&a[..], b].concat());
        let context = self.context.take().zip(other.context.as_ref());
        self.context =
            context.map(|(a, b)| Rows { shape: a.shape, values: [&a.values[..], &b.values].concat() });
    }

    /// Shortens the split to its first `n` examples in place; a longer `n` changes nothing.
    pub fn truncate(&mut self, n: usize) {
        let dims = self.dims();
        match &mut self.values {
            Values::Pixels(v) => v.truncate(n.saturating_mul(dims)),
            Values::Reals(v) => v.truncate(n.saturating_mul(dims)),
        }
        self.labels.iter_mut().for_each(|labels| labels.truncate(n));
        self.attributes.iter_mut().for_each(|attributes| attributes.truncate(n));
        self.context.iter_mut().for_each(|c| c.values.truncate(n.saturating_mul(c.dims())));
    }
}

/// Bounds of a set's entropy, which is a lower bound of the expected loss of every model.
///
/// Bits per dimension for pixels; nats per point for densities of vectors, where `lower == upper`, given the context where there is one.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Entropy {
    /// The entropy is at least this.
    pub lower: f64,
    /// The entropy is at most this.
    pub upper: f64,
}

/// How the examples of a data set came to be training, validation and test examples.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Parts {
    /// The data name the part of each example, or were drawn for it.
    Named,
    /// The reader chose, for the data name no parts.
    Chosen,
    /// All of them are in [`Dataset::test`]; see [`Dataset::join`].
    Joined,
}

/// A data set in memory.
#[derive(Clone, Debug)]
pub struct Dataset {
    /// The name it was asked for by.
    pub name: String,
    /// The examples that models are fitted to.
    pub train: Split,
    /// The examples on which models and settings are selected, where there are any; see [`Dataset::carve_validation`].
    pub valid: Option<Split>,
    /// The examples that the reported numbers are measured on.
    pub test: Split,
    /// The name of each class, empty where there are no labels.
    pub classes: Vec<String>,
    /// The name of each attribute column, empty where there are none.
    pub attribute_names: Vec<String>,
    /// The entropy, for the sets drawn here.
    pub entropy: Option<Entropy>,
    /// The entropy of the images with fewer bits, for those drawn here.
    pub entropy_of_bits: Option<fn(u8) -> Entropy>,
    /// How the examples came into their parts.
    pub parts: Parts,
    /// Which bytes these are, wherever they lie: the SHA-256 of the file, or of the files and their names in their folder; the
    /// hub's commit; or the generator's version and seed.
    pub revision: String,
}

impl Dataset {
    /// A data set with classes, and without a validation split, attributes or a known entropy.
    #[must_use]
    pub fn new(
        name: &str,
        train: Split,
        test: Split,
        classes: impl IntoIterator<Item = impl ToString>,
        revision: String,
    ) -> Self {
        Self {
            name: name.to_owned(),
            train,
            valid: None,
            test,
            classes: classes.into_iter().map(|class| class.to_string()).collect(),
            attribute_names: vec![],
            entropy: None,
            entropy_of_bits: None,
            parts: Parts::Named,
            revision,
        }
    }

    /// Puts all examples into the test split: training, then validation, then test examples. The training split stays, for what is
    /// fitted to it.
    pub fn join(&mut self) {
        let mut all = self.train.clone();
        for split in self.valid.take().iter().chain([&self.test]) {
            all.append(split);
        }
        self.test = all;
        self.parts = Parts::Joined;
    }

    /// Moves the last `asked` training examples into a validation split of their own; where that would leave none, a tenth of them,
    /// with a warning.
    ///
    /// The last, not a random choice: the published sets are shuffled already, and a fixed rule keeps runs
    /// comparable.
    ///
    /// # Errors
    /// When there is a validation split already.
    pub fn carve_validation(&mut self, asked: usize) -> Result<()> {
        ensure!(
            self.valid.is_none(),
            "`{}` has a validation split of its own: do not carve another",
            self.name
        );
        let total = self.train.len();
        let n = if asked < total { asked } else { total / 10 };
        if n < asked {
            tracing::warn!(
                "`{}` has {total} training examples, too few to set `data.validation` = {asked} aside: {n} are",
                self.name
            );
        }
        if n == 0 {
            return Ok(());
        }
        self.valid = Some(self.train.slice(total - n..total));
        self.train.truncate(total - n);
        Ok(())
    }
}

/// The largest file that is read whole, 8 GiB.
pub const LARGEST: u64 = 1 << 33;

/// Reads a file of at most [`LARGEST`] bytes, unpacking it where its first bytes say gzip.
///
/// # Errors
/// As [`read_at_most`].
pub fn read_file(path: &Path) -> Result<Vec<u8>> {
    read_at_most(path, LARGEST)
}

/// Reads a file of at most `most` bytes, packed and unpacked, where its first bytes say gzip.
///
/// # Errors
/// When it is no regular file, cannot be read, is damaged gzip, or is larger.
pub fn read_at_most(path: &Path, most: u64) -> Result<Vec<u8>> {
    unpack(read_regular(path, most)?, &path.display().to_string(), most)
}

/// Unpacks the bytes of a file where the first of them say gzip, to at most `most` bytes.
///
/// # Errors
/// As [`gunzip`].
pub(super) fn unpack(bytes: Vec<u8>, name: &str, most: u64) -> Result<Vec<u8>> {
    if bytes.starts_with(&[0x1f, 0x8b]) { gunzip(&bytes, name, most) } else { Ok(bytes) }
}

/// Unpacks gzip, stopping at `most` bytes: a few packed kilobytes can stand for gigabytes.
///
/// # Errors
/// When it is damaged, or unpacks to more than that.
pub fn gunzip(bytes: &[u8], name: &str, most: u64) -> Result<Vec<u8>> {
    let mut plain = Vec::new();
    flate2::read::MultiGzDecoder::new(bytes).take(most + 1).read_to_end(&mut plain).with_context(|| {
        format!("{name} is damaged gzip after {} unpacked bytes: fetch it again", plain.len())
    })?;
    ensure!(
        plain.len() as u64 <= most,
        "{name} unpacks to more than the {most} bytes that such a file can have: fetch it again"
    );
    Ok(plain)
}

/// The product of the sides, or `None` where it is too large.
pub(super) fn product(sides: &[usize]) -> Option<usize> {
    sides.iter().try_fold(1_usize, |product, &side| product.checked_mul(side))
}

/// Refuses a file that is shorter or longer than `expected` bytes; `reason` stands in the message between "but" and that
/// number.
pub(super) fn check_length(
    name: &str,
    length: usize,
    expected: u128,
    reason: impl Display,
    remedy: &str,
) -> Result<()> {
    let length = length as u128;
    ensure!(length >= expected, "{name} ends at byte {length}, but {reason} {expected} bytes: {remedy}");
    ensure!(
        length == expected,
        "{name} has {} extra bytes from byte {expected} on, but {reason} {expected} bytes: {remedy}",
        length - expected
    );
    Ok(())
}

/// Refuses a label that is not below `classes`; `place` says where in the file it stands.
pub(super) fn class(label: i64, classes: u32, name: &str, place: impl Display) -> Result<u32> {
    u32::try_from(label).ok().filter(|&label| label < classes).with_context(|| {
        let most = i64::from(classes) - 1;
        format!("{name} has the label {label} {place}, where labels are 0 to {most}: correct or replace it")
    })
}

/// The numbers of an image, stored channel after channel rather than interleaved.
pub(super) fn planar<T: Copy>(interleaved: &[T], channels: usize) -> Vec<T> {
    (0..channels).flat_map(|c| interleaved[c..].iter().copied().step_by(channels)).collect()
}

/// Collects the SHA-256 over the files a set was read from, in the order they were read. Their folder is no part of it; a set of
/// one file has the SHA-256 of that file instead ([`file_revision`]).
#[derive(Default)]
pub struct Revision(Sha256);

impl Revision {
    /// Adds one file: its name in the set's folder and its length too, so that no two lists of files collide.
    pub fn add(&mut self, name: &str, bytes: &[u8]) {
        self.0.update((name.len() as u64).to_le_bytes());
        self.0.update(name.as_bytes());
        self.0.update((bytes.len() as u64).to_le_bytes());
        self.0.update(bytes);
    }

    /// The hash in hexadecimal, with what it was taken of.
    pub fn finish(self, what: &str) -> String {
        format!("{what}, sha256 {}", hex(&self.0.finalize()))
    }
}

/// The revision of a set that is one file: the SHA-256 of its bytes on the disk, as `sha256sum` prints it.
#[must_use]
pub fn file_revision(bytes: &[u8]) -> String {
    format!("sha256 {}", hex(&Sha256::digest(bytes)))
}

/// Bytes in hexadecimal.
#[must_use]
pub fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

/// The last component of a path.
#[must_use]
pub fn file_name(path: &Path) -> String {
    path.file_name().unwrap_or(path.as_os_str()).to_string_lossy().into_owned()
}
