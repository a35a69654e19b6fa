//! MNIST and CIFAR-10 from the Hugging Face hub, as the parquet files the hub makes of every data set.
//!
//! A row holds an image as PNG bytes and a label. What the local cache has is never asked for again, and with
//! `HF_HUB_OFFLINE` set nothing else is looked at; `flows::hub` brings the files and verifies them. The images are decoded here rather than by
//! `candle_datasets::vision`, whose parquet reader transposes those of CIFAR-10 and panics on damaged ones.

use super::picture;
use super::set::class;
use super::{Dataset, Split, Values, cifar, idx};
use anyhow::{Context, Result, anyhow, bail, ensure};
use flows::hub::{Hub, Observer, Repository, Revision};
use parquet::file::reader::{FileReader, SerializedFileReader};
use parquet::record::RowAccessor;
use std::fs::File;
use std::panic::AssertUnwindSafe;
use std::sync::Arc;

/// The branch on which the hub keeps the parquet files.
const BRANCH: &str = "refs/convert/parquet";

/// A data set on the hub.
#[derive(Clone, Copy, Debug)]
pub struct HubSet {
    /// The name it is asked for by.
    pub name: &'static str,
    /// Its owner and name on the hub.
    pub repository: &'static str,
    /// The training file on the parquet branch and how many rows it has.
    pub train: (&'static str, usize),
    /// The test file and how many rows it has.
    pub test: (&'static str, usize),
    /// Channels, height and width of an image.
    pub shape: [usize; 3],
    /// What the classes are called.
    pub classes: [&'static str; 10],
    /// The files that do as well, for those who have no network.
    pub files: &'static str,
}

/// MNIST.
pub const MNIST: HubSet = HubSet {
    name: "mnist",
    repository: "ylecun/mnist",
    train: ("mnist/train/0000.parquet", 60_000),
    test: ("mnist/test/0000.parquet", 10_000),
    shape: [1, 28, 28],
    classes: ["0", "1", "2", "3", "4", "5", "6", "7", "8", "9"],
    files: "train-images-idx3-ubyte, train-labels-idx1-ubyte, t10k-images-idx3-ubyte and \
            t10k-labels-idx1-ubyte (plain or .gz)",
};

/// CIFAR-10.
pub const CIFAR10: HubSet = HubSet {
    name: "cifar10",
    repository: "uoft-cs/cifar10",
    train: ("plain_text/train/0000.parquet", 50_000),
    test: ("plain_text/test/0000.parquet", 10_000),
    shape: [3, 32, 32],
    classes: cifar::CLASSES,
    files: "data_batch_1.bin to data_batch_5.bin and test_batch.bin, or cifar-10-binary.tar.gz",
};

/// Reads a parquet file of `rows` rows, each a PNG or JPEG image in a group of its own and a label.
///
/// # Errors
/// When the file is damaged, has another number of rows, an image is of another shape, or a label is out of
/// range.
pub fn read_parquet(file: File, shape: [usize; 3], rows: usize, name: &str) -> Result<Split> {
    // The parquet crate asserts what it should check: a flipped bit in a file's footer can make it panic.
    std::panic::catch_unwind(AssertUnwindSafe(|| read_rows(file, shape, rows, name)))
        .unwrap_or_else(|_| Err(anyhow!("{}", damaged(name))))
}

fn damaged(name: &str) -> String {
    format!("{name} is a damaged parquet file: remove it from the hub's cache and fetch it again")
}

fn read_rows(file: File, shape: [usize; 3], rows: usize, name: &str) -> Result<Split> {
    let damaged = || damaged(name);
    let reader = SerializedFileReader::new(file).with_context(damaged)?;
    let [channels, height, width] = shape;
    let (mut pixels, mut labels) = (Vec::new(), Vec::new());
    for row in reader.get_row_iter(None).with_context(damaged)? {
        let row = row.with_context(damaged)?;
        let place = labels.len();
        ensure!(
            place < rows,
            "{name} has more than the {rows} rows of this set: remove it and fetch it again"
        );
        // The hub's columns: a group of the image's bytes and its path, then the label.
        let image = row.get_group(0).and_then(|group| group.get_bytes(0));
        let (Ok(image), Ok(label)) = (image, row.get_long(1)) else {
            bail!("row {place} of {name} lacks its image or its label: remove the file and fetch it again");
        };
        labels.push(class(label, idx::CLASSES, name, format_args!("in row {place}"))?);
        let image = picture::decode(image.data(), &format!("the image in row {place} of {name}"))?;
        ensure!(
            (image.height() as usize, image.width() as usize) == (height, width),
            "the image in row {place} of {name} is {} × {} where {height} × {width} is expected: fetch the \
             file again",
            image.height(),
            image.width()
        );
        pixels.extend(picture::bytes(&image, channels == 1));
    }
    ensure!(
        labels.len() == rows,
        "{name} ends after {} of {rows} rows: remove it and fetch it again",
        labels.len()
    );
    Split::new(shape.to_vec(), Values::Pixels(pixels), Some(labels), None)
}

/// Loads a data set from the hub or its cache.
///
/// # Errors
/// When it is not in the cache and the hub cannot be reached within half a minute, in one sentence that says which files to
/// give instead; and when a file is damaged.
pub fn load(set: &HubSet, observer: Option<Arc<dyn Observer>>) -> Result<Dataset> {
    let hub = Hub::from_env().map_err(sentence)?;
    load_with(&observer.map_or_else(|| hub.clone(), |observer| hub.clone().with_observer(observer)), *set)
}

/// The message of an error of the library, without the backtrace that candle may put under it.
#[must_use]
pub fn sentence(error: candle_core::Error) -> anyhow::Error {
    anyhow!("{}", error.to_string().lines().next().unwrap_or_default())
}

fn load_with(hub: &Hub, set: HubSet) -> Result<Dataset> {
    let (repository, revision) = (Repository::dataset(set.repository)?, Revision::new(BRANCH)?);
    let names = [set.train.0, set.test.0];
    // What the cache has is never asked for again. A damaged copy is fetched once more, where that may be done.
    let cached = match hub.cached(&repository, &revision, &names) {
        Err(_) if !hub.settings().offline => None,
        cached => cached?,
    };
    let snapshot = match cached {
        Some(snapshot) => snapshot,
        None => hub.files(&repository, &revision, &names).map_err(sentence).with_context(|| {
            format!(
                "`{}` cannot be fetched (give --data DIR or set FLOW_DATA to a folder with {})",
                set.name, set.files
            )
        })?,
    };
    let read = |(name, rows): (&str, usize)| {
        let path = snapshot.folder.join(name);
        let file = File::open(path).with_context(|| format!("{name} cannot be opened in the hub's cache"))?;
        read_parquet(file, set.shape, rows, name)
    };
    let (train, test) = rayon::join(|| read(set.train), || read(set.test));
    let revision = format!("hub {repository} {BRANCH} {}", snapshot.commit);
    Ok(Dataset::new(set.name, train?, test?, set.classes, revision))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::mutate;
    use flows::hub::Settings;
    use image::{ImageFormat, Rgb, RgbImage};
    use parquet::data_type::{ByteArray, ByteArrayType, Int64Type};
    use parquet::file::writer::SerializedFileWriter;
    use parquet::schema::parser::parse_message_type;
    use std::io::{Cursor, Write};
    use std::path::Path;
    use std::sync::Arc;
    use std::time::{Duration, Instant};

    const COMMIT: &str = "0123456789abcdef0123456789abcdef01234567";
    const TINY: HubSet = HubSet {
        train: ("mnist/train/0000.parquet", 3),
        test: ("mnist/test/0000.parquet", 2),
        shape: [3, 2, 4],
        ..MNIST
    };

    fn image(salt: u8) -> Vec<u8> {
        let mut png = Cursor::new(Vec::new());
        RgbImage::from_fn(4, 2, |x, y| Rgb([x as u8, y as u8, salt]))
            .write_to(&mut png, ImageFormat::Png)
            .unwrap();
        png.into_inner()
    }

    /// A file with the columns that the hub's files have.
    fn parquet(rows: u8) -> Vec<u8> {
        let schema = "message m { optional group image { optional binary bytes; optional binary path \
                      (UTF8); } optional int64 label; }";
        let schema = Arc::new(parse_message_type(schema).unwrap());
        let mut file = Vec::new();
        let mut writer = SerializedFileWriter::new(&mut file, schema, Arc::default()).unwrap();
        let mut group = writer.next_row_group().unwrap();
        let levels = vec![2; usize::from(rows)];
        let images: Vec<ByteArray> = (0..rows).map(|i| image(i).into()).collect();
        let mut column = group.next_column().unwrap().unwrap();
        column.typed::<ByteArrayType>().write_batch(&images, Some(&levels), None).unwrap();
        column.close().unwrap();
        let mut column = group.next_column().unwrap().unwrap();
        column.typed::<ByteArrayType>().write_batch(&[], Some(&vec![1; usize::from(rows)]), None).unwrap();
        column.close().unwrap();
        let labels: Vec<i64> = (0..i64::from(rows)).collect();
        let mut column = group.next_column().unwrap().unwrap();
        column.typed::<Int64Type>().write_batch(&labels, Some(&vec![1; usize::from(rows)]), None).unwrap();
        column.close().unwrap();
        group.close().unwrap();
        writer.close().unwrap();
        file
    }

    fn hub(cache: &Path, offline: bool) -> Hub {
        Hub::new(Settings {
            // The discard port of this machine, where no server listens: "connection refused", at once.
            endpoint: "http://127.0.0.1:9".to_owned(),
            cache: cache.to_owned(),
            token: None,
            offline,
            patience: Duration::from_secs(15),
        })
        .unwrap()
    }

    fn open(bytes: &[u8]) -> File {
        let mut file = tempfile::tempfile().unwrap();
        file.write_all(bytes).unwrap();
        file
    }

    #[test]
    fn the_cache_is_enough() {
        let dir = tempfile::tempdir().unwrap();
        let repository = dir.path().join("datasets--ylecun--mnist");
        std::fs::create_dir_all(repository.join("refs/refs/convert")).unwrap();
        std::fs::write(repository.join("refs").join(BRANCH), COMMIT).unwrap();
        for (file, rows) in [TINY.train, TINY.test] {
            let path = repository.join("snapshots").join(COMMIT).join(file);
            std::fs::create_dir_all(path.parent().unwrap()).unwrap();
            std::fs::write(path, parquet(rows as u8)).unwrap();
        }
        for offline in [true, false] {
            let set = load_with(&hub(dir.path(), offline), TINY).unwrap();
            assert_eq!((set.train.len(), set.test.len()), (3, 2));
            assert_eq!(set.train.labels, Some(vec![0, 1, 2]));
            // Rows first: the red channel counts columns, the green one rows, and neither is transposed.
            assert_eq!(
                set.train.pixels(1),
                [[0, 1, 2, 3].repeat(2), vec![0; 4], vec![1; 4], vec![1; 8]].concat()
            );
            assert!(set.revision.ends_with(COMMIT), "{}", set.revision);
        }
    }

    #[test]
    fn out_of_reach_is_one_sentence_and_quick() {
        let dir = tempfile::tempdir().unwrap();
        let begin = Instant::now();
        for offline in [true, false] {
            let error = format!("{:#}", load_with(&hub(dir.path(), offline), MNIST).unwrap_err());
            assert!(error.contains("--data DIR or set FLOW_DATA"), "{error}");
            assert!(error.contains("t10k-labels-idx1-ubyte") && !error.contains('\n'), "{error}");
        }
        assert!(begin.elapsed() < Duration::from_secs(20));
    }

    #[test]
    fn damage_is_an_error() {
        let good = parquet(3);
        let message = |bytes: &[u8], shape, rows| {
            format!("{:#}", read_parquet(open(bytes), shape, rows, "P").unwrap_err())
        };
        assert_eq!(read_parquet(open(&good), [3, 2, 4], 3, "P").unwrap().len(), 3);
        assert!(message(&good[..good.len() - 1], [3, 2, 4], 3).contains("damaged parquet"));
        assert!(message(&good, [3, 2, 4], 2).contains("more than the 2 rows"));
        assert!(message(&good, [3, 2, 4], 4).contains("ends after 3 of 4"));
        assert!(message(&good, [3, 4, 2], 3).contains("row 0 of P is 2 × 4"));
        mutate::each(&good, 300, |bytes| drop(read_parquet(open(bytes), [3, 2, 4], 3, "P")));
    }
}
