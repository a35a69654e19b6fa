//! A user's arrays: `.npy` and `.npz` files.
//!
//! - **Images** are bytes (`uint8`): (N, C, H, W) where the second side is 1 or 3, else (N, H, W, C) where
//!   the last one is, else (N, H, W) for grey. An array that could be either, such as (N, 3, 8, 3), is read
//!   as (N, C, H, W).
//! - **Vectors** are `float32` or `float64`, (N, D), and finite.
//! - **Labels** are any integers of one side, (N).
//! - **Contexts**, for log p(x | c), are numbers of any type: (N) or (N, E), or maps laid out as images are.
//!
//! One `.npy` file is split by row number: of every ten rows, eight go to training, then one each to
//! validation and test. A `.npz` file with the arrays `train`, `test` and perhaps `valid`, and `train_labels`, `train_c`
//! and so on, names its splits; so does a folder of `train.npy`, `test.npy` and so on. A `.npz` file
//! with one array, or `x` and perhaps `labels` and `c`, is split like a `.npy` file; so is a folder of `x.npy` and `c.npy`.
//!
//! **Revision.** Of one file it is the file's SHA-256, as `sha256sum` prints it; of a folder the SHA-256 over the names of the
//! arrays and their bytes. Where the files lie is no part of it.
//!
//! The header is read here and not by `candle_core::Tensor::read_npy`, which allocates whatever size a header
//! claims before it has seen a byte of data, nor by `npyz`, which multiplies the sides without a check.

use super::set::{check_length, class, file_revision, planar, product, unpack};
use super::{Dataset, LARGEST, Parts, Revision, Rows, Split, Values, read_file};
use crate::untrusted::read_regular;
use anyhow::{Context, Result, bail, ensure};
use candle_core::Tensor;
use std::collections::BTreeMap;
use std::fs;
use std::io::{Cursor, Read, Write};
use std::path::Path;

/// The numbers of an array.
#[derive(Clone, Debug, PartialEq)]
pub enum Numbers {
    /// `uint8`.
    Bytes(Vec<u8>),
    /// `float32`, or `float64` rounded to it.
    Reals(Vec<f32>),
    /// Any wider integers, and `bool`.
    Integers(Vec<i64>),
}

/// An array in C order.
#[derive(Clone, Debug, PartialEq)]
pub struct Array {
    /// Its sides.
    pub sides: Vec<usize>,
    /// Its numbers, as many as the product of the sides.
    pub numbers: Numbers,
}

/// The value of a key in the header's dictionary: what follows `'key':`, trimmed.
fn value<'a>(header: &'a str, key: &str, name: &str) -> Result<&'a str> {
    let quoted = [format!("'{key}'"), format!("\"{key}\"")];
    let rest = quoted.iter().find_map(|q| header.split_once(q.as_str())).map(|(_, rest)| rest.trim_start());
    let rest = rest.and_then(|rest| rest.strip_prefix(':'));
    Ok(rest
        .with_context(|| format!("{name} has no `{key}` in its header at byte 10: save it again with numpy"))?
        .trim())
}

/// What the header of a `.npy` file says of its data.
struct Header {
    /// The byte at which the data begin.
    start: usize,
    /// Bytes of the whole file.
    length: usize,
    sides: Vec<usize>,
    descr: String,
    /// Whether the first index changes fastest (Fortran's order) and not the last one (C's).
    fortran: bool,
    read: fn(&[u8]) -> Numbers,
}

/// The numbers of a column-major array, row-major.
fn row_major<T: Copy>(from: &[T], sides: &[usize]) -> Vec<T> {
    let mut strides = vec![1; sides.len()];
    for i in 1..sides.len() {
        strides[i] = strides[i - 1] * sides[i - 1];
    }
    let mut at = vec![0; sides.len()];
    let mut place = 0;
    let mut to = Vec::with_capacity(from.len());
    for _ in 0..from.len() {
        to.push(from[place]);
        for i in (0..sides.len()).rev() {
            at[i] += 1;
            place += strides[i];
            if at[i] < sides[i] {
                break;
            }
            place -= strides[i] * sides[i];
            at[i] = 0;
        }
    }
    to
}

/// Reads a `.npy` file (format versions 1 to 3) of little-endian numbers, in C's or in Fortran's order.
///
/// # Errors
/// When the magic string, the header or the type is another one, and when the data are shorter or longer than the header
/// announces.
pub fn parse_npy(bytes: &[u8], name: &str) -> Result<Array> {
    let Header { start, length, sides, descr, fortran, read } = header(bytes, name)?;
    let announced = format!("its header ({sides:?} of `{descr}`) announces");
    check_length(name, bytes.len(), length as u128, announced, "save it again with numpy")?;
    let numbers = match (read(&bytes[start..]), fortran) {
        (numbers, false) => numbers,
        (Numbers::Bytes(v), true) => Numbers::Bytes(row_major(&v, &sides)),
        (Numbers::Reals(v), true) => Numbers::Reals(row_major(&v, &sides)),
        (Numbers::Integers(v), true) => Numbers::Integers(row_major(&v, &sides)),
    };
    Ok(Array { sides, numbers })
}

/// Reads the header at the beginning of a `.npy` file, of which `bytes` may be the first part only.
fn header(bytes: &[u8], name: &str) -> Result<Header> {
    ensure!(
        bytes.starts_with(b"\x93NUMPY"),
        "{name} does not begin with the npy magic string at byte 0: save it with numpy.save"
    );
    let version = bytes.get(6).copied().unwrap_or_default();
    let width = match version {
        1 => 2,
        2 | 3 => 4,
        _ => bail!(
            "{name} has the npy version {version} at byte 6, where 1 to 3 are read: save it again with numpy"
        ),
    };
    let header = bytes.get(8..8 + width).and_then(|length| {
        let length = length.iter().rev().fold(0_usize, |sum, &byte| sum << 8 | usize::from(byte));
        bytes[8 + width..].get(..length)
    });
    let Some(header) = header else {
        bail!("{name} ends at byte {} inside its header: save it again with numpy", bytes.len());
    };
    let start = 8 + width + header.len();
    let header = std::str::from_utf8(header).with_context(|| {
        format!("{name} has a header at byte 10 that is no text: save it again with numpy")
    })?;

    let descr = value(header, "descr", name)?;
    let descr = descr.split([',', '}']).next().unwrap_or_default().trim().trim_matches(['\'', '"']);
    let order = value(header, "fortran_order", name)?;
    let fortran = order.starts_with("True");
    ensure!(
        fortran || order.starts_with("False"),
        "{name} has a `fortran_order` in its header at byte 10 that is not True or False: save it again with numpy"
    );
    let sides = value(header, "shape", name)?;
    let sides = sides
        .strip_prefix('(')
        .and_then(|rest| rest.split_once(')'))
        .map(|(inside, _)| inside.split(',').map(str::trim).filter(|side| !side.is_empty()))
        .and_then(|sides| sides.map(|side| side.parse::<usize>().ok()).collect::<Option<Vec<_>>>())
        .with_context(|| {
            format!("{name} has a `shape` that cannot be read in its header at byte 10: save it again")
        })?;

    fn each<const W: usize, T>(data: &[u8], from: impl Fn([u8; W]) -> T) -> Vec<T> {
        data.chunks_exact(W).map(|chunk| from(chunk.try_into().expect("chunks have this length"))).collect()
    }
    fn integers<const W: usize, T: Into<i64>>(data: &[u8], from: fn([u8; W]) -> T) -> Numbers {
        Numbers::Integers(each(data, |bytes| from(bytes).into()))
    }
    // The bytes of a number, and how they are read.
    let (size, read): (usize, fn(&[u8]) -> Numbers) = match descr.trim_start_matches(['|', '<', '=']) {
        "u1" => (1, |data| Numbers::Bytes(data.to_vec())),
        // Labels: as grey levels 0 and 1 of 255 they would be almost black.
        "b1" => (1, |data| integers(data, u8::from_le_bytes)),
        "i1" => (1, |data| integers(data, i8::from_le_bytes)),
        "i2" => (2, |data| integers(data, i16::from_le_bytes)),
        "u2" => (2, |data| integers(data, u16::from_le_bytes)),
        "i4" => (4, |data| integers(data, i32::from_le_bytes)),
        "u4" => (4, |data| integers(data, u32::from_le_bytes)),
        // Unsigned labels past 2^63 become negative and are refused with the negative ones.
        "i8" | "u8" => (8, |data| integers(data, i64::from_le_bytes)),
        "f4" => (4, |data| Numbers::Reals(each(data, f32::from_le_bytes))),
        "f8" => (8, |data| Numbers::Reals(each(data, |bytes| f64::from_le_bytes(bytes) as f32))),
        _ => bail!(
            "{name} holds numbers of type `{descr}`: save images as uint8, vectors as float32 or float64, \
             labels as integers, all little-endian"
        ),
    };
    let length = product(&sides).and_then(|count| count.checked_mul(size)?.checked_add(start));
    let Some(length) = length else {
        bail!(
            "{name} announces impossible sides {sides:?} in its header at byte 10: save it again with numpy"
        );
    };
    Ok(Header { start, length, sides, descr: descr.to_owned(), fortran, read })
}

/// Writes named arrays as a `.npz` file, uncompressed.
///
/// The archive is made in memory: one that is written to a full disk ends without its list of arrays, and without an error.
///
/// # Errors
/// When the file cannot be written.
pub fn write_npz(arrays: &[(impl AsRef<str>, Tensor)], path: &Path) -> Result<()> {
    let mut zip = zip::ZipWriter::new(Cursor::new(Vec::new()));
    for (name, array) in arrays {
        // candle writes an array to a path only; the archive takes this file's place.
        array.write_npy(path)?;
        let bytes = fs::read(path)?;
        let options = zip::write::SimpleFileOptions::default()
            .compression_method(zip::CompressionMethod::Stored)
            .large_file(u32::try_from(bytes.len()).is_err());
        zip.start_file(format!("{}.npy", name.as_ref()), options)?;
        zip.write_all(&bytes)?;
    }
    Ok(fs::write(path, zip.finish()?.into_inner())?)
}

/// The largest header of an array in an archive; numpy's have some hundred bytes.
const HEADER: u64 = 1 << 16;

/// Reads every array of a `.npz` file, by name.
///
/// # Errors
/// When the archive is damaged, or an array in it is; see [`parse_npy`].
pub fn parse_npz(bytes: &[u8], name: &str) -> Result<BTreeMap<String, Array>> {
    let mut archive = zip::ZipArchive::new(Cursor::new(bytes))
        .with_context(|| format!("{name} is no npz archive: save it with numpy.savez"))?;
    let mut arrays = BTreeMap::new();
    // One budget for all entries, against zip bombs: a small archive can unpack to terabytes.
    let mut left = LARGEST;
    for place in 0..archive.len() {
        let mut entry = archive.by_index(place).with_context(|| {
            format!("entry {place} of {name} cannot be read: save it again with numpy.savez")
        })?;
        let key = String::from_utf8_lossy(entry.name_raw()).into_owned();
        let Some(key) = key.strip_suffix(".npy").map(str::to_owned) else {
            bail!("{name} holds `{key}`, which is no array: save it with numpy.savez");
        };
        let what = format!("the array `{key}` of {name}");
        let damaged = || format!("{what} is damaged: save it again with numpy.savez");
        // What unpacks to more than its header announces is not unpacked.
        let mut plain = Vec::new();
        (&mut entry).take(HEADER).read_to_end(&mut plain).with_context(damaged)?;
        let length = header(&plain, &what)?.length as u64;
        ensure!(
            length <= left,
            "{what} announces {length} bytes, more than the {left} that an archive may still hold: save it as .npy"
        );
        left -= length;
        entry
            .take((length + 1).saturating_sub(plain.len() as u64))
            .read_to_end(&mut plain)
            .with_context(damaged)?;
        arrays.insert(key, parse_npy(&plain, &what)?);
    }
    ensure!(!arrays.is_empty(), "{name} holds no array: save it with numpy.savez");
    Ok(arrays)
}

/// Makes rows of an array that is given as the context of examples.
///
/// # Errors
/// When it has no rows of numbers or of maps, or holds a number that is not finite.
pub fn rows(array: Array, name: &str) -> Result<Rows> {
    let sides = array.sides;
    let mut values: Vec<f32> = match array.numbers {
        Numbers::Bytes(v) => v.into_iter().map(f32::from).collect(),
        Numbers::Integers(v) => v.into_iter().map(|i| i as f32).collect(),
        Numbers::Reals(v) => v,
    };
    ensure!(
        sides.iter().all(|&side| side > 0),
        "{name} has the sides {sides:?}, and holds no numbers: give one row per example"
    );
    let shape = match sides[..] {
        [_] => vec![1],
        [_, e] => vec![e],
        [_, h, w] => vec![1, h, w],
        [_, h, w, c @ (1 | 3)] if ![1, 3].contains(&h) => {
            let maps = values.chunks_exact(h * w * c);
            values = maps.flat_map(|map| planar(map, c)).collect();
            vec![c, h, w]
        }
        [_, c, h, w] => vec![c, h, w],
        _ => bail!("{name} has the sides {sides:?}: a context is (N), (N, E) or (N, E, H, W)"),
    };
    if let Some(at) = values.iter().position(|x| !x.is_finite()) {
        let width = shape.iter().product::<usize>();
        bail!(
            "{name} holds {} in row {}, column {}: remove what is not finite",
            values[at],
            at / width,
            at % width
        );
    }
    Ok(Rows { shape, values })
}

/// Makes a split of an array and perhaps its labels and its context.
fn split(array: Array, labels: Option<Array>, context: Option<Array>, name: &str) -> Result<Split> {
    let context = context.map(|c| rows(c, &format!("the context of {name}"))).transpose()?;
    let sides = &array.sides;
    ensure!(
        sides.len() >= 2 && sides.iter().all(|&side| side > 0),
        "{name} has the sides {sides:?}: save images as (N, C, H, W), (N, H, W, C) or (N, H, W), vectors as \
         (N, D)"
    );
    let rows = sides[0];
    let (shape, values) = match (array.numbers, &sides[1..]) {
        (Numbers::Bytes(v), &[c @ (1 | 3), h, w]) => (vec![c, h, w], Values::Pixels(v)),
        (Numbers::Bytes(v), &[h, w, c @ (1 | 3)]) => {
            let images = v.chunks_exact(h * w * c);
            (vec![c, h, w], Values::Pixels(images.flat_map(|image| planar(image, c)).collect()))
        }
        (Numbers::Bytes(v), &[h, w]) => (vec![1, h, w], Values::Pixels(v)),
        (Numbers::Reals(v), &[d]) => {
            if let Some(at) = v.iter().position(|x| !x.is_finite()) {
                bail!(
                    "{name} holds {} in row {}, column {}: remove what is not finite",
                    v[at],
                    at / d,
                    at % d
                );
            }
            (vec![d], Values::Reals(v))
        }
        (_, sides) => bail!(
            "{name} has examples of {sides:?}: save images as uint8 with 1 or 3 channels, vectors as \
             float32 (N, D)"
        ),
    };
    let labels = labels.map(|labels| -> Result<Vec<u32>> {
        ensure!(
            labels.sides == [rows],
            "the labels of {name} have the sides {:?} but there are {rows} examples: give one per example",
            labels.sides
        );
        let wide = match labels.numbers {
            Numbers::Bytes(v) => v.into_iter().map(i64::from).collect(),
            Numbers::Integers(v) => v,
            Numbers::Reals(_) => bail!("the labels of {name} are not integers: save them as uint8 or int64"),
        };
        // Classes are counted up to the largest label, so an absurd one must not get through.
        let rows = wide.into_iter().enumerate();
        rows.map(|(row, label)| class(label, MOST_CLASSES, name, format_args!("in row {row}"))).collect()
    });
    Split::new(shape, values, labels.transpose()?, None)?
        .with_context(context)
        .with_context(|| name.to_owned())
}

/// The largest number of classes; a larger label is taken for an error in the file.
pub(crate) const MOST_CLASSES: u32 = 100_000;

/// Splits the rows: of every ten, eight for training, then one for validation and one for test.
fn deal(all: &Split) -> [Split; 3] {
    let part = |wanted: fn(usize) -> bool| {
        all.select(&(0..all.len()).filter(|i| wanted(i % 10)).collect::<Vec<_>>())
    };
    [part(|i| i < 8), part(|i| i == 8), part(|i| i == 9)]
}

/// Makes a data set of named arrays.
fn assemble(mut arrays: BTreeMap<String, Array>, name: &str, revision: String) -> Result<Dataset> {
    let parts = if arrays.contains_key("train") { Parts::Named } else { Parts::Chosen };
    let (train, valid, test) = if parts == Parts::Named {
        let mut part = |key: &str| -> Result<Option<Split>> {
            let (labels, c) = (arrays.remove(&format!("{key}_labels")), arrays.remove(&format!("{key}_c")));
            let array = arrays.remove(key);
            array.map(|array| split(array, labels, c, &format!("`{key}` of {name}"))).transpose()
        };
        let (train, valid, test) = (part("train")?, part("valid")?, part("test")?);
        let test =
            test.with_context(|| format!("{name} has `train` but no `test`: add the test examples"))?;
        (train.expect("its presence was checked"), valid, test)
    } else {
        let (labels, c) = (arrays.remove("labels"), arrays.remove("c"));
        let array = arrays
            .remove("x")
            .or_else(|| Some(arrays.pop_first()?.1))
            .with_context(|| format!("{name} holds no examples, but labels or a context: add them as `x`"))?;
        let [train, valid, test] = deal(&split(array, labels, c, name)?);
        (train, Some(valid), test)
    };
    if let Some(key) = arrays.keys().next() {
        bail!(
            "{name} holds the array `{key}` whose use is unknown: name arrays train, valid, test, \
             train_labels, valid_labels, test_labels, train_c, valid_c, test_c, or x, labels and c"
        );
    }
    for other in [valid.as_ref(), Some(&test)].into_iter().flatten() {
        ensure!(
            other.shape == train.shape && other.is_pixels() == train.is_pixels(),
            "{name} has training examples of {:?} and others of {:?}: give all the same shape and type",
            train.shape,
            other.shape
        );
        ensure!(
            other.labels.is_some() == train.labels.is_some(),
            "{name} has labels for one split and not for another: label all or none"
        );
        let shape = |split: &Split| split.context.as_ref().map(|c| c.shape.clone());
        ensure!(
            shape(other) == shape(&train),
            "{name} has a context for one split and not for another, or of another shape: give all the same"
        );
    }
    // Classes are named by their numbers, up to the largest label in any split.
    let labels = [Some(&train), valid.as_ref(), Some(&test)].into_iter().flatten();
    let most = labels.filter_map(|split| split.labels.as_ref()).flatten().max();
    let classes = 0..most.map_or(0, |most| most + 1);
    Ok(Dataset { valid, parts, ..Dataset::new("npy", train, test, classes, revision) })
}

/// The arrays of a folder: those that name their splits, or all examples.
const KEYS: [&str; 12] = [
    "train",
    "train_labels",
    "train_c",
    "valid",
    "valid_labels",
    "valid_c",
    "test",
    "test_labels",
    "test_c",
    "x",
    "labels",
    "c",
];

/// Reads a `.npy` or `.npz` file, or a folder of `.npy` files named as the arrays in a `.npz` file are.
///
/// # Errors
/// When a file is missing or damaged, or the arrays do not fit together.
pub fn read_path(path: &Path) -> Result<Dataset> {
    let name = path.display().to_string();
    if path.is_dir() {
        let mut revision = Revision::default();
        let mut arrays = BTreeMap::new();
        for key in KEYS {
            let file = path.join(format!("{key}.npy"));
            if file.is_file() {
                let bytes = read_file(&file)?;
                revision.add(key, &bytes);
                arrays.insert(key.to_owned(), parse_npy(&bytes, &file.display().to_string())?);
            }
        }
        ensure!(
            arrays.contains_key("train") || arrays.contains_key("x"),
            "{name} has no train.npy and no x.npy: give a .npy or .npz file, or a folder of train.npy and test.npy"
        );
        return assemble(arrays, &name, revision.finish("npy files"));
    }
    let bytes = read_regular(path, LARGEST)?;
    let revision = file_revision(&bytes);
    let bytes = unpack(bytes, &name, LARGEST)?;
    let arrays = if bytes.starts_with(b"PK") {
        parse_npz(&bytes, &name)?
    } else {
        BTreeMap::from([("x".to_owned(), parse_npy(&bytes, &name)?)])
    };
    assemble(arrays, &name, revision)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::mutate;
    use std::io::Write;

    #[test]
    fn a_revision_is_the_files_own_hash_wherever_it_lies() {
        let (here, there) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
        let file = npy("|u1", "20, 2, 2", &(0..80).collect::<Vec<u8>>());
        std::fs::write(here.path().join("a.npy"), &file).unwrap();
        std::fs::write(there.path().join("other.npy"), &file).unwrap();
        // `sha256sum a.npy`
        let want = "sha256 5d5a1812c20bc0b1a350f4f16efc7bffc584dcb69a078b198bad0f1d9a16ce9e";
        assert_eq!(read_path(&here.path().join("a.npy")).unwrap().revision, want);
        assert_eq!(read_path(&here.path().join(".").join("a.npy")).unwrap().revision, want);
        assert_eq!(read_path(&there.path().join("other.npy")).unwrap().revision, want);
        // Of a packed file it is the hash of the packed bytes.
        let mut packed = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::fast());
        packed.write_all(&file).unwrap();
        let packed = packed.finish().unwrap();
        std::fs::write(there.path().join("packed.npy"), &packed).unwrap();
        let set = read_path(&there.path().join("packed.npy")).unwrap();
        assert_eq!((set.revision, set.train.len()), (file_revision(&packed), 16));
        // A folder of arrays is the same elsewhere, too.
        for folder in [&here, &there] {
            for part in ["train.npy", "test.npy"] {
                std::fs::write(folder.path().join(part), &file).unwrap();
            }
        }
        let of = |folder: &tempfile::TempDir| read_path(folder.path()).unwrap().revision;
        assert_eq!(of(&here), of(&there));
    }

    fn npy(descr: &str, sides: &str, data: &[u8]) -> Vec<u8> {
        let mut header = format!("{{'descr': '{descr}', 'fortran_order': False, 'shape': ({sides}), }}");
        while !(header.len() + 11).is_multiple_of(64) {
            header.push(' ');
        }
        header.push('\n');
        let mut bytes = b"\x93NUMPY\x01\x00".to_vec();
        bytes.extend((header.len() as u16).to_le_bytes());
        bytes.extend(header.bytes());
        bytes.extend(data);
        bytes
    }

    fn npz(arrays: &[(&str, Vec<u8>)], method: zip::CompressionMethod) -> Vec<u8> {
        let mut zip = zip::ZipWriter::new(Cursor::new(Vec::new()));
        for (key, bytes) in arrays {
            let options = zip::write::SimpleFileOptions::default().compression_method(method);
            zip.start_file(format!("{key}.npy"), options).unwrap();
            zip.write_all(bytes).unwrap();
        }
        zip.finish().unwrap().into_inner()
    }

    fn message(bytes: &[u8]) -> String {
        parse_npy(bytes, "A").unwrap_err().to_string()
    }

    #[test]
    fn types_are_read() {
        let reals =
            parse_npy(&npy("<f8", "2, 1", &[1.5_f64, -2.0].map(f64::to_le_bytes).concat()), "A").unwrap();
        assert_eq!(reals, Array { sides: vec![2, 1], numbers: Numbers::Reals(vec![1.5, -2.0]) });
        let labels = parse_npy(&npy("<i8", "2,", &[7_i64, -1].map(i64::to_le_bytes).concat()), "A").unwrap();
        assert_eq!(labels, Array { sides: vec![2], numbers: Numbers::Integers(vec![7, -1]) });
        // No grey levels: of 255, they would be almost black.
        let booleans = parse_npy(&npy("|b1", "2,", &[1, 0]), "A").unwrap();
        assert_eq!(booleans.numbers, Numbers::Integers(vec![1, 0]));
        // Column by column, as a transposed array is saved, in two and in three sides.
        let fortran = |sides: &str, data: &[u8]| {
            let mut file = npy("|u1", sides, data);
            let order = file.windows(5).position(|w| w == b"False").unwrap();
            file[order..order + 5].copy_from_slice(b"True ");
            file
        };
        for (sides, from, to) in [
            ("2, 3", vec![0, 1, 2, 3, 4, 5], vec![0, 2, 4, 1, 3, 5]),
            ("2, 2, 2", vec![0, 1, 2, 3, 4, 5, 6, 7], vec![0, 4, 2, 6, 1, 5, 3, 7]),
            ("3,", vec![0, 1, 2], vec![0, 1, 2]),
        ] {
            let array = parse_npy(&fortran(sides, &from), "A").unwrap();
            assert_eq!(array.numbers, Numbers::Bytes(to), "{sides}");
        }
        assert!(message(&npy(">f4", "1, 1", &[0; 4])).contains("little-endian"));
        assert!(message(&npy("|O", "1, 1", &[0; 4])).contains("`|O`"));
    }

    #[test]
    fn damage_is_named_with_its_offset() {
        let good = npy("|u1", "2, 3", &[0; 6]);
        let start = good.len() - 6;
        assert!(message(&good[..start + 5]).contains(&format!("A ends at byte {}", start + 5)));
        assert!(
            message(&[good.clone(), vec![0]].concat())
                .contains(&format!("1 extra bytes from byte {}", start + 6))
        );
        assert!(message(&good[..20]).contains("inside its header"));
        assert!(message(&npy("<f8", "4294967296, 4294967296", &[])).contains("impossible sides"));
        assert!(message(&npy("<f8", "1000000000000", &[])).contains("ends at byte"));
        assert!(message(b"PNG").contains("magic string at byte 0"));
    }

    #[test]
    fn layouts_of_images() {
        let read = |sides: &str, data: &[u8]| {
            split(parse_npy(&npy("|u1", sides, data), "A").unwrap(), None, None, "A").unwrap()
        };
        let data: Vec<u8> = (0..12).collect();
        assert_eq!(read("1, 3, 2, 2", &data).pixels(0), data);
        let last = read("1, 2, 2, 3", &data);
        assert_eq!(
            (last.shape.clone(), last.pixels(0)),
            (vec![3, 2, 2], &[0, 3, 6, 9, 1, 4, 7, 10, 2, 5, 8, 11][..])
        );
        assert_eq!(read("3, 2, 2", &data).shape, [1, 2, 2]);
        let odd = parse_npy(&npy("|u1", "3, 2, 2, 1, 1", &data), "A").unwrap();
        assert!(split(odd, None, None, "A").is_err());
        let nan =
            parse_npy(&npy("<f4", "1, 2", &[1.0, f32::NAN].map(f32::to_le_bytes).concat()), "A").unwrap();
        assert!(split(nan, None, None, "A").unwrap_err().to_string().contains("row 0, column 1"));
    }

    #[test]
    fn files_folders_and_archives() {
        let dir = tempfile::tempdir().unwrap();
        let rows = |n: u8| npy("|u1", &format!("{n}, 1, 1, 2"), &(0..2 * n).collect::<Vec<_>>());
        let file = dir.path().join("all.npy");
        std::fs::write(&file, rows(20)).unwrap();
        let set = read_path(&file).unwrap();
        assert_eq!((set.train.len(), set.valid.unwrap().len(), set.test.len()), (16, 2, 2));
        assert_eq!(set.test.pixels(0), [18, 19]);

        for method in [zip::CompressionMethod::Stored, zip::CompressionMethod::Deflated] {
            let labels = npy("|u1", "4,", &[0, 1, 2, 2]);
            let arrays = [
                ("train", rows(4)),
                ("train_labels", labels),
                ("test", rows(2)),
                ("test_labels", npy("|u1", "2,", &[0, 4])),
            ];
            let file = dir.path().join("all.npz");
            std::fs::write(&file, npz(&arrays, method)).unwrap();
            let set = read_path(&file).unwrap();
            assert_eq!((set.train.len(), set.valid.is_none(), set.classes.len()), (4, true, 5));
            assert_eq!(set.train.labels, Some(vec![0, 1, 2, 2]));
        }
        assert!(read_path(dir.path()).unwrap_err().to_string().contains("train.npy"));
        std::fs::write(dir.path().join("train.npy"), rows(4)).unwrap();
        assert!(read_path(dir.path()).unwrap_err().to_string().contains("no `test`"));
        std::fs::write(dir.path().join("test.npy"), rows(3)).unwrap();
        assert_eq!(read_path(dir.path()).unwrap().test.len(), 3);
    }

    /// Contexts go with their examples: columns, or maps of any layout; and what does not fit is told.
    #[test]
    fn contexts() {
        let dir = tempfile::tempdir().unwrap();
        let reals = |sides: &str, n: usize| {
            npy("<f4", sides, &(0..n).map(|i| (i as f32).to_le_bytes()).collect::<Vec<_>>().concat())
        };
        let file = dir.path().join("xc.npz");
        let both = [("x", reals("20, 2", 40)), ("c", reals("20, 3", 60))];
        std::fs::write(&file, npz(&both, zip::CompressionMethod::Stored)).unwrap();
        let set = read_path(&file).unwrap();
        let c = set.test.context.as_ref().unwrap();
        assert_eq!((c.shape.as_slice(), c.len(), c.row(1)), (&[3][..], 2, &[57., 58., 59.][..]));
        assert_eq!(set.test.reals(1), [38., 39.]);
        for (name, bytes) in &both {
            std::fs::write(dir.path().join(format!("{name}.npy")), bytes).unwrap();
        }
        assert_eq!(read_path(dir.path()).unwrap().test, set.test);
        let map =
            rows(parse_npy(&npy("|u1", "1, 2, 2, 3", &(0..12).collect::<Vec<u8>>()), "A").unwrap(), "A")
                .unwrap();
        assert_eq!((map.shape.as_slice(), &map.values[..4]), (&[3, 2, 2][..], &[0., 3., 6., 9.][..]));
        let short = [("x", reals("20, 2", 40)), ("c", reals("19,", 19))];
        let error = parse_npz(&npz(&short, zip::CompressionMethod::Stored), "A").unwrap();
        let error = format!("{:#}", assemble(error, "A", String::new()).unwrap_err());
        assert!(error.contains("20 examples came with 19 rows of a context"), "{error}");
        let part = [("train", reals("4, 2", 8)), ("train_c", reals("4,", 4)), ("test", reals("4, 2", 8))];
        let arrays = parse_npz(&npz(&part, zip::CompressionMethod::Stored), "A").unwrap();
        let error = assemble(arrays, "A", String::new()).unwrap_err().to_string();
        assert!(error.contains("a context for one split and not for another"), "{error}");
    }

    /// An array that unpacks to more than its header announces is refused after that, whatever it unpacks to.
    #[test]
    fn what_an_archive_unpacks_to_is_bounded_by_its_headers() {
        let mut long = npy("|u1", "2, 3", &[0; 6]);
        long.resize(50_000_000, 0);
        let packed = npz(&[("x", long)], zip::CompressionMethod::Deflated);
        assert!(packed.len() < 100_000);
        let error = parse_npz(&packed, "A").unwrap_err().to_string();
        assert!(error.contains("extra bytes"), "{error}");
        let claims = npz(&[("x", npy("|u1", "9000000000, 1", &[0; 6]))], zip::CompressionMethod::Stored);
        let error = parse_npz(&claims, "A").unwrap_err().to_string();
        assert!(error.contains("announces") && error.contains("save it as .npy"), "{error}");
    }

    #[test]
    fn no_damage_panics() {
        let good = npy("<f4", "5, 2", &[0; 40]);
        mutate::each(&good, 20_000, |bytes| {
            if let Ok(array) = parse_npy(bytes, "A") {
                drop(split(array, None, None, "A"));
            }
        });
        let arrays = [("train", good.clone()), ("test", good)];
        for method in [zip::CompressionMethod::Stored, zip::CompressionMethod::Deflated] {
            mutate::each(&npz(&arrays, method), 5000, |bytes| {
                if let Ok(arrays) = parse_npz(bytes, "A") {
                    drop(assemble(arrays, "A", String::new()));
                }
            });
        }
    }
}
