//! Conversions from and to the data sets of candle's own crate, [`candle_datasets::vision::Dataset`].
//!
//! candle stores an image as `f32` values of byte / 255, rounded: the byte 194 becomes 194.00002 / 255. [`Dataset`]
//! stores bytes. Both directions are exact: a value is multiplied by 255 and rounded, and one that is not within 0.01 of
//! a byte is an error.
//!
//! | | [`candle_datasets::vision::Dataset`] | [`Dataset`] |
//! |---|---|---|
//! | grey images | (N, H W) where H = W, (N, H, W) or (N, 1, H, W) | (N, 1, H, W) |
//! | colour images | (N, C, H, W) | (N, C, H, W) |
//! | labels | (N,) of integers | `u32` |
//!
//! # Why its readers are not used here
//!
//! `mnist::load_dir` and `cifar::load_dir` of candle-datasets 0.11.1 read the official files correctly, and the tests below
//! compare ours with them. [`idx`](super::idx) and [`cifar`](super::cifar) are kept for what they check:
//!
//! - Its idx reader allocates what the header announces before it looks at the file's length, and multiplies the sides
//!   without a check: a damaged header ends in a panic or an allocation of any size. Bytes after the last image are ignored
//!   by both of its readers, and so is a label above 9.
//! - Both read plain files only: no `.gz`, no `cifar-10-binary.tar.gz`.
//! - Images become `f32` at once, four times the memory of bytes.
//! - `cifar::load()`, which reads the hub's parquet files, returns every image transposed. [`TryFrom`] recognises
//!   CIFAR-10 in that orientation by its first training image and transposes it back. It also panics on an image that
//!   cannot be decoded.

use super::set::class;
use super::{Dataset, Revision, Split, Values};
use anyhow::{Context, Result, bail, ensure};
use candle_core::{D, DType, Device, Tensor};
use candle_datasets::vision;

/// The first bytes of the first training image of CIFAR-10: of its first row, and of its first column.
const CIFAR10_ROW: [u8; 8] = [59, 43, 50, 68, 98, 119, 139, 145];
const CIFAR10_COLUMN: [u8; 8] = [59, 16, 25, 33, 50, 71, 97, 115];

/// How far a value times 255 may be from a byte.
const TOLERANCE: f64 = 0.01;

impl TryFrom<vision::Dataset> for Dataset {
    type Error = anyhow::Error;

    /// Takes the images as bytes, without a change. The classes are named by their numbers.
    ///
    /// # Errors
    /// When the images have another shape than those in the module's table, a value is no byte / 255, training and test
    /// images differ in shape, a label is not below `labels`, or there is not one label an image.
    fn try_from(set: vision::Dataset) -> Result<Self> {
        let train = split(&set.train_images, &set.train_labels, set.labels).context("training images")?;
        let test = split(&set.test_images, &set.test_labels, set.labels).context("test images")?;
        ensure!(
            train.shape == test.shape,
            "training images are {:?} but test images are {:?}: take both from the same set",
            train.shape,
            test.shape
        );
        let mut revision = Revision::default();
        for (name, split) in [("train", &train), ("test", &test)] {
            if let Values::Pixels(pixels) = &split.values {
                revision.add(name, pixels);
            }
            let labels = split.labels.iter().flatten().flat_map(|label| label.to_le_bytes());
            revision.add("labels", &labels.collect::<Vec<_>>());
        }
        let revision = revision.finish("the pixels and labels");
        Ok(Self::new("candle-datasets", train, test, 0..set.labels, revision))
    }
}

impl TryFrom<&Dataset> for vision::Dataset {
    type Error = anyhow::Error;

    /// Makes `f32` images on the CPU, byte / 255, in the shapes and types that candle's own readers give: (N, H W) for
    /// square grey images, (N, C, H, W) for all others, labels as `u8`.
    ///
    /// # Errors
    /// When the set holds reals, has no labels or labels above 255, or has a validation split, for which
    /// [`vision::Dataset`] has no place.
    fn try_from(set: &Dataset) -> Result<Self> {
        ensure!(
            set.valid.is_none(),
            "`{}` has a validation split, which a candle_datasets::vision::Dataset cannot hold: convert it before the \
             split is carved off",
            set.name
        );
        let (train_images, train_labels) = tensors(&set.train)?;
        let (test_images, test_labels) = tensors(&set.test)?;
        let largest = [&set.train, &set.test].into_iter().flat_map(|s| s.labels.iter().flatten()).max();
        let labels = set.classes.len().max(largest.map_or(0, |&label| label as usize + 1));
        Ok(Self { train_images, train_labels, test_images, test_labels, labels })
    }
}

/// Images (see the module's table) and their labels (N,), below `classes`.
fn split(images: &Tensor, labels: &Tensor, classes: usize) -> Result<Split> {
    let shape = match images.dims() {
        &[_, size] => {
            let side = size.isqrt();
            ensure!(
                side * side == size,
                "{size} values an image are no square: give the images as (N, C, H, W)"
            );
            vec![1, side, side]
        }
        &[_, height, width] => vec![1, height, width],
        &[_, channels, height, width] => vec![channels, height, width],
        other => {
            bail!("images have the shape {other:?}, where (N, H W), (N, H, W) or (N, C, H, W) is expected")
        }
    };
    let mut pixels = bytes(images)?;
    if shape == [3, 32, 32] && is_transposed_cifar10(&pixels) {
        pixels = bytes(&images.transpose(D::Minus1, D::Minus2)?)?;
    }
    ensure!(labels.dtype().is_int(), "labels are {:?}, where integers are expected", labels.dtype());
    let labels = labels.to_dtype(DType::I64)?.to_vec1::<i64>()?;
    let labels = labels
        .into_iter()
        .enumerate()
        .map(|(row, label)| class(label, u32::try_from(classes)?, "the set", format_args!("in row {row}")));
    Split::new(shape, Values::Pixels(pixels), Some(labels.collect::<Result<_>>()?), None)
}

/// The values of byte / 255 as bytes, in the order of the tensor's sides.
fn bytes(images: &Tensor) -> Result<Vec<u8>> {
    let images = images.flatten_all()?;
    if images.dtype() == DType::U8 {
        return Ok(images.to_vec1()?);
    }
    ensure!(images.dtype().is_float(), "images are {:?}, where f32 is expected", images.dtype());
    let byte = |x: f32| {
        let scaled = f64::from(x) * 255.;
        let byte = scaled.round();
        ensure!(
            (scaled - byte).abs() <= TOLERANCE && (0. ..=255.).contains(&byte),
            "there is the value {x}, which is no byte / 255: give the images as they were read, in [0, 1]"
        );
        Ok(byte as u8)
    };
    images.to_dtype(DType::F32)?.to_vec1::<f32>()?.into_iter().map(byte).collect()
}

/// Whether the first image is CIFAR-10's first training image with its rows and columns exchanged.
fn is_transposed_cifar10(pixels: &[u8]) -> bool {
    pixels.starts_with(&CIFAR10_COLUMN)
        && CIFAR10_ROW.iter().enumerate().all(|(i, byte)| pixels.get(32 * i) == Some(byte))
}

/// The images of a split as candle's readers give them, and the labels as `u8`.
fn tensors(split: &Split) -> Result<(Tensor, Tensor)> {
    let Values::Pixels(pixels) = &split.values else {
        bail!("these examples are vectors of reals, not images of bytes");
    };
    let labels =
        split.labels.as_ref().context("these images have no labels, which candle's data sets need")?;
    let labels = labels.iter().map(|&label| u8::try_from(label)).collect::<Result<Vec<_>, _>>();
    let labels = labels.context("a label is above 255, the largest that candle's data sets hold")?;
    let mut shape = vec![split.len()];
    match split.shape[..] {
        [1, height, width] if height == width => shape.push(height * width),
        _ => shape.extend(&split.shape),
    }
    let images = Tensor::from_slice(pixels, shape, &Device::Cpu)?.to_dtype(DType::F32)?;
    Ok(((images / 255.)?, Tensor::from_vec(labels, split.len(), &Device::Cpu)?))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::data::{Parts, cifar, idx};
    use std::path::Path;

    /// Every byte occurs, and no image equals its transpose.
    fn set(shape: [usize; 3], examples: usize) -> Dataset {
        let split = |start: usize| {
            let count = examples * shape.iter().product::<usize>();
            let pixels = (0..count).map(|i| ((start + i) % 256) as u8).collect();
            let labels = (0..examples).map(|i| ((start + i) % 10) as u32).collect();
            Split::new(shape.to_vec(), Values::Pixels(pixels), Some(labels), None).unwrap()
        };
        Dataset {
            name: "t".into(),
            train: split(0),
            valid: None,
            test: split(3),
            classes: (0..10).map(|class| class.to_string()).collect(),
            attribute_names: vec![],
            entropy: None,
            entropy_of_bits: None,
            parts: Parts::Named,
            revision: String::new(),
        }
    }

    fn assert_same(theirs: vision::Dataset, ours: &Dataset) {
        let theirs = Dataset::try_from(theirs).unwrap();
        assert!(theirs.train == ours.train && theirs.test == ours.test);
    }

    fn images_of(set: &vision::Dataset) -> [Vec<f32>; 2] {
        [&set.train_images, &set.test_images].map(|t| t.flatten_all().unwrap().to_vec1().unwrap())
    }

    #[test]
    fn every_byte_survives_both_directions() {
        for (shape, dims) in
            [([1, 28, 28], &[3, 784][..]), ([1, 4, 6], &[3, 1, 4, 6]), ([3, 32, 32], &[3, 3, 32, 32])]
        {
            let ours = set(shape, 3);
            let theirs = vision::Dataset::try_from(&ours).unwrap();
            assert_eq!((theirs.train_images.dims(), theirs.labels), (dims, 10));
            assert_same(theirs, &ours);
        }
    }

    #[test]
    fn what_is_no_image_of_bytes_is_an_error() {
        let theirs = |images: Tensor, labels: &[i64]| vision::Dataset {
            train_images: images.clone(),
            train_labels: Tensor::new(labels, &Device::Cpu).unwrap(),
            test_images: images,
            test_labels: Tensor::new(labels, &Device::Cpu).unwrap(),
            labels: 10,
        };
        let message = |images: Tensor, labels: &[i64]| {
            format!("{:#}", Dataset::try_from(theirs(images, labels)).unwrap_err())
        };
        let filled = |x: f32, shape: &[usize]| Tensor::full(x, shape, &Device::Cpu).unwrap();
        assert!(message(filled(0.5, &[2, 4]), &[0, 1]).contains("no byte / 255"));
        assert!(message(filled(-1. / 255., &[2, 4]), &[0, 1]).contains("no byte / 255"));
        assert!(message(filled(2., &[2, 4]), &[0, 1]).contains("no byte / 255"));
        assert!(message(filled(f32::NAN, &[2, 4]), &[0, 1]).contains("no byte / 255"));
        assert!(message(filled(1., &[2, 5]), &[0, 1]).contains("no square"));
        assert!(message(filled(1., &[2, 4]), &[0, 10]).contains("the label 10"));
        assert!(message(filled(1., &[2, 4]), &[0, -1]).contains("the label -1"));
        assert!(message(filled(1., &[2, 4]), &[0]).contains("labels"));
        assert!(message(filled(1., &[2]), &[0, 1]).contains("shape"));

        let mut carved = set([1, 4, 4], 3);
        carved.carve_validation(1).unwrap();
        assert!(vision::Dataset::try_from(&carved).is_err());
        let mut unlabelled = set([1, 4, 4], 3);
        unlabelled.test.labels = None;
        assert!(vision::Dataset::try_from(&unlabelled).is_err());
    }

    /// Small idx files, read by candle's reader and by ours, give the same images and labels, and ours converted is
    /// bit for bit what candle's reader gives.
    #[test]
    fn idx_files_read_by_both() {
        let dir = tempfile::tempdir().unwrap();
        let made = set([1, 28, 28], 5);
        for (names, split) in idx::FILES.chunks(2).zip([&made.train, &made.test]) {
            let labels: Vec<u8> = split.labels.iter().flatten().map(|&label| label as u8).collect();
            let Values::Pixels(pixels) = &split.values else { unreachable!() };
            let images = [&[0x803_u32, 5, 28, 28].map(u32::to_be_bytes).concat(), &pixels[..]].concat();
            std::fs::write(dir.path().join(names[0]), images).unwrap();
            let labels = [&[0x801_u32, 5].map(u32::to_be_bytes).concat(), &labels[..]].concat();
            std::fs::write(dir.path().join(names[1]), labels).unwrap();
        }
        let theirs = vision::mnist::load_dir(dir.path()).unwrap();
        let ours = idx::read_folder(dir.path()).unwrap();
        assert!(ours.train == made.train && ours.test == made.test);
        assert_eq!(images_of(&theirs), images_of(&vision::Dataset::try_from(&ours).unwrap()));
        assert_same(theirs, &ours);
    }

    /// CIFAR-10 as `cifar::load()` of candle-datasets returns it is recognised by its first image; other images of its size
    /// keep their orientation.
    #[test]
    fn transposed_cifar10_is_set_upright() {
        let mut upright = set([3, 32, 32], 2);
        for part in [&mut upright.train, &mut upright.test] {
            let Values::Pixels(pixels) = &mut part.values else { unreachable!() };
            pixels[..8].copy_from_slice(&CIFAR10_ROW);
            (0..8).for_each(|i| pixels[32 * i] = CIFAR10_COLUMN[i]);
        }
        let transposed = |set: &Dataset| {
            let mut theirs = vision::Dataset::try_from(set).unwrap();
            theirs.train_images = theirs.train_images.transpose(2, 3).unwrap();
            theirs.test_images = theirs.test_images.transpose(2, 3).unwrap();
            theirs
        };
        assert_same(vision::Dataset::try_from(&upright).unwrap(), &upright);
        assert_same(transposed(&upright), &upright);
        let other = set([3, 32, 32], 2);
        assert!(Dataset::try_from(transposed(&other)).unwrap().train != other.train);
    }

    /// The real files that FLOW_DATA names, read by candle's readers and by ours.
    #[test]
    fn real_files_read_by_both() {
        let Some(dir) = std::env::var_os("FLOW_DATA") else {
            println!(
                "skipped: FLOW_DATA names no folder with MNIST (mnist) and CIFAR-10 (cifar-10-batches-bin)"
            );
            return;
        };
        let dir = Path::new(&dir);
        let ours = idx::read_folder(dir).unwrap();
        assert_eq!((ours.train.len(), ours.test.len()), (60_000, 10_000));
        assert_same(vision::mnist::load_dir(dir.join("mnist")).unwrap(), &ours);

        let ours = cifar::read_folder(dir).unwrap();
        assert_eq!((ours.train.len(), ours.test.len()), (50_000, 10_000));
        let mut theirs = vision::cifar::load_dir(dir.join("cifar-10-batches-bin")).unwrap();
        theirs.train_images = theirs.train_images.transpose(2, 3).unwrap();
        let transposed = Dataset::try_from(theirs).unwrap();
        assert!(transposed.train == ours.train && transposed.test == ours.test);
        assert_same(vision::cifar::load_dir(dir.join("cifar-10-batches-bin")).unwrap(), &ours);
    }
}
