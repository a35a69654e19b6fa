//! MNIST: the idx files of LeCun, Cortes and Burges.
//!
//! An idx file is a big-endian `u32` magic number (two zero bytes, the type `0x08` for bytes, the number of
//! sides), one `u32` per side, then the bytes. Four of them make the set: `train-images-idx3-ubyte`,
//! `train-labels-idx1-ubyte`, `t10k-images-idx3-ubyte`, `t10k-labels-idx1-ubyte`, each plain or as `.gz`.
//! Sets in the same files (Fashion-MNIST, KMNIST) are read as well.

use super::set::{check_length, class, product};
use super::{Dataset, Revision, Split, Values, read_at_most};
use anyhow::{Context, Result, bail, ensure};
use std::path::{Path, PathBuf};

/// How many classes there are: the ten digits.
pub const CLASSES: u32 = 10;

/// The four files, training images first.
pub const FILES: [&str; 4] = [
    "train-images-idx3-ubyte",
    "train-labels-idx1-ubyte",
    "t10k-images-idx3-ubyte",
    "t10k-labels-idx1-ubyte",
];

/// The contents of an idx file, borrowed from its bytes.
#[derive(Debug, PartialEq, Eq)]
pub struct Idx<'a> {
    /// The sides, number of items first.
    pub sides: Vec<usize>,
    /// The bytes behind the header, as many as the product of the sides.
    pub data: &'a [u8],
}

fn be_u32(bytes: &[u8], at: usize, name: &str) -> Result<u32> {
    let Some(word) = bytes.get(at..at + 4) else {
        bail!("{name} ends at byte {} inside its header: fetch the file again", bytes.len());
    };
    Ok(u32::from_be_bytes(word.try_into().expect("four bytes were asked for")))
}

/// Reads an idx file of bytes with `rank` sides (3 for images, 1 for labels).
///
/// # Errors
/// On another magic number, a header cut short, sides that multiply past the address space, and any
/// difference between the length that the header announces and the bytes that are there.
pub fn parse_idx<'a>(bytes: &'a [u8], rank: u8, name: &str) -> Result<Idx<'a>> {
    let magic = be_u32(bytes, 0, name)?;
    let expected = 0x0800 | u32::from(rank);
    ensure!(
        magic == expected,
        "{name} has the magic number {magic:#010x} at byte 0 where {expected:#010x} is expected: this is \
         not the idx file its name says"
    );
    let mut sides = Vec::with_capacity(usize::from(rank));
    for side in 0..usize::from(rank) {
        sides.push(be_u32(bytes, 4 + 4 * side, name)? as usize);
    }
    let start = 4 + 4 * usize::from(rank);
    let data = &bytes[start..];
    let Some(count) = product(&sides) else {
        bail!("{name} announces impossible sides {sides:?} at byte 4: fetch the file again");
    };
    let announced = format!("its header ({sides:?} at byte 4) announces");
    check_length(name, bytes.len(), start as u128 + count as u128, announced, "fetch the file again")?;
    Ok(Idx { sides, data })
}

/// Bytes of a file at most: EMNIST, the largest of the family, has 0.55e9.
const MOST: u64 = 1 << 30;

/// Puts an image file and a label file together.
///
/// # Errors
/// Those of [`parse_idx`], and: no images, images without area, another number of labels than images, a label
/// that is no digit.
pub fn parse_pair(images: (&[u8], &str), labels: (&[u8], &str)) -> Result<Split> {
    let ((image_bytes, image_name), (label_bytes, label_name)) = (images, labels);
    let image = parse_idx(image_bytes, 3, image_name)?;
    let label = parse_idx(label_bytes, 1, label_name)?;
    ensure!(
        image.sides.iter().all(|&side| side > 0),
        "{image_name} announces no pixels ({:?} at byte 4): fetch the file again",
        image.sides
    );
    ensure!(
        image.sides[0] == label.sides[0],
        "{image_name} has {} images but {label_name} has {} labels (byte 4 of each): take both from the \
         same set",
        image.sides[0],
        label.sides[0]
    );
    let labels = label.data.iter().enumerate();
    let labels =
        labels.map(|(i, &l)| class(l.into(), CLASSES, label_name, format_args!("at byte {}", 8 + i)));
    Split::new(
        vec![1, image.sides[1], image.sides[2]],
        Values::Pixels(image.data.to_vec()),
        Some(labels.collect::<Result<_>>()?),
        None,
    )
}

/// Finds `name` or `name.gz` in a folder; the dot in `train-images.idx3-ubyte` is how some copies spell the
/// hyphen.
fn find(dir: &Path, name: &str) -> Option<PathBuf> {
    let dotted = name.replace("-idx", ".idx");
    [name.to_owned(), format!("{name}.gz"), dotted.clone(), format!("{dotted}.gz")]
        .into_iter()
        .map(|file| dir.join(file))
        .find(|path| path.is_file())
}

/// Reads MNIST from its folder, or from the folder above it (`DIR/mnist`, `DIR/MNIST/raw`).
///
/// # Errors
/// When one of the four files is missing or damaged, or training and test images differ in size.
pub fn read_folder(dir: &Path) -> Result<Dataset> {
    let places =
        [dir.to_path_buf(), dir.join("mnist"), dir.join("MNIST"), dir.join("MNIST/raw"), dir.join("raw")];
    let Some(place) = places.iter().find(|place| FILES.iter().any(|file| find(place, file).is_some())) else {
        bail!(
            "there is no MNIST in {}: put the files {} (plain or .gz) there or in its folder `mnist`",
            dir.display(),
            FILES.join(", ")
        );
    };
    let mut revision = Revision::default();
    let mut files = Vec::with_capacity(FILES.len());
    for name in FILES {
        let path = find(place, name)
            .with_context(|| format!("{} lacks {name} (plain or .gz): copy it there", place.display()))?;
        let bytes = read_at_most(&path, MOST)?;
        revision.add(name, &bytes);
        files.push((bytes, path.display().to_string()));
    }
    let pair = |i: usize| parse_pair((&files[i].0, &files[i].1), (&files[i + 1].0, &files[i + 1].1));
    let (train, test) = (pair(0)?, pair(2)?);
    ensure!(
        train.shape == test.shape,
        "{} has images of {:?} but {} of {:?} (byte 8 of each): take both from the same set",
        files[0].1,
        &train.shape[1..],
        files[2].1,
        &test.shape[1..]
    );
    Ok(Dataset::new("mnist", train, test, 0..CLASSES, revision.finish("the four idx files, unpacked")))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::mutate;
    use std::io::Write;

    fn images(n: u32) -> Vec<u8> {
        let mut bytes = [0x803_u32, n, 2, 3].map(u32::to_be_bytes).concat();
        bytes.extend((0..n * 6).map(|i| i as u8));
        bytes
    }

    fn labels(n: u32) -> Vec<u8> {
        let mut bytes = [0x801_u32, n].map(u32::to_be_bytes).concat();
        bytes.extend((0..n).map(|i| (i % 10) as u8));
        bytes
    }

    fn message(images: &[u8], labels: &[u8]) -> String {
        parse_pair((images, "I"), (labels, "L")).unwrap_err().to_string()
    }

    #[test]
    fn a_pair_is_read() {
        let split = parse_pair((&images(4), "I"), (&labels(4), "L")).unwrap();
        assert_eq!((split.len(), split.shape.clone()), (4, vec![1, 2, 3]));
        assert_eq!(split.pixels(1), [6, 7, 8, 9, 10, 11]);
        assert_eq!(split.labels, Some(vec![0, 1, 2, 3]));
    }

    #[test]
    fn damage_is_named_with_its_offset() {
        assert!(message(&labels(4), &labels(4)).contains("I has the magic number 0x00000801 at byte 0"));
        assert!(message(&images(4)[..39], &labels(4)).contains("I ends at byte 39"));
        assert!(message(&images(4)[..9], &labels(4)).contains("I ends at byte 9 inside its header"));
        assert!(
            message(&[images(4), vec![0; 3]].concat(), &labels(4)).contains("3 extra bytes from byte 40")
        );
        assert!(message(&images(4), &labels(5)).contains("I has 4 images but L has 5 labels"));
        let mut bad = labels(4);
        bad[10] = 10;
        assert!(message(&images(4), &bad).contains("L has the label 10 at byte 10"));
        // 2^96 bytes are announced: nothing may be allocated for them, nothing may overflow.
        let huge = [0x803_u32, u32::MAX, u32::MAX, u32::MAX].map(u32::to_be_bytes).concat();
        assert!(message(&huge, &labels(4)).contains("impossible sides"));
    }

    #[test]
    fn no_damage_panics() {
        let (good_images, good_labels) = (images(4), labels(4));
        mutate::each(&good_images, 20_000, |bytes| drop(parse_pair((bytes, "I"), (&good_labels, "L"))));
        mutate::each(&good_labels, 20_000, |bytes| drop(parse_pair((&good_images, "I"), (bytes, "L"))));
    }

    #[test]
    fn folders_plain_and_packed() {
        let dir = tempfile::tempdir().unwrap();
        let inner = dir.path().join("mnist");
        std::fs::create_dir(&inner).unwrap();
        assert!(read_folder(dir.path()).unwrap_err().to_string().contains("train-images-idx3-ubyte"));
        for (name, bytes) in FILES.iter().zip([images(4), labels(4), images(2), labels(2)]) {
            std::fs::write(inner.join(name), bytes).unwrap();
        }
        let plain = read_folder(dir.path()).unwrap();
        assert_eq!((plain.train.len(), plain.test.len()), (4, 2));
        let file = inner.join(FILES[2]);
        let mut packed = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::fast());
        packed.write_all(&std::fs::read(&file).unwrap()).unwrap();
        std::fs::remove_file(&file).unwrap();
        assert!(read_folder(&inner).unwrap_err().to_string().contains("lacks t10k-images-idx3-ubyte"));
        std::fs::write(inner.join(format!("{}.gz", FILES[2])), packed.finish().unwrap()).unwrap();
        let again = read_folder(&inner).unwrap();
        assert_eq!((again.test, again.revision), (plain.test, plain.revision));
    }
}
