//! MNIST and CIFAR-10 from the Hugging Face hub, as the parquet files the hub makes of every data set.
//!
//! A row holds an image as PNG bytes and a label. What the local cache has is never asked for again, and with
//! `HF_HUB_OFFLINE` set nothing else is looked at. The images are decoded here rather than by
//! `candle_datasets::vision`, whose parquet reader transposes those of CIFAR-10 and panics on damaged ones.

use super::{Dataset, Split, Values, cifar, file_name, idx};
use anyhow::{Context, Result, anyhow, bail, ensure};
use hf_hub::progress::{Progress, ProgressEvent, ProgressHandler};
use hf_hub::{HFClient, HFClientSync, HFError};
use parquet::file::reader::{FileReader, SerializedFileReader};
use parquet::record::Field;
use sha2::{Digest, Sha256};
use std::fs::File;
use std::panic::AssertUnwindSafe;
use std::path::{Path, PathBuf};
use std::sync::mpsc;
use std::time::Duration;

/// The branch on which the hub keeps the parquet files.
const BRANCH: &str = "refs/convert/parquet";

/// How long the hub may stay silent before it counts as out of reach. The client's own requests have no time
/// limit.
const SILENCE: Duration = Duration::from_secs(30);

/// A data set on the hub.
#[derive(Clone, Copy, Debug)]
pub struct HubSet {
    /// The name it is asked for by.
    pub name: &'static str,
    /// Its owner and name on the hub.
    pub repository: (&'static str, &'static str),
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
    repository: ("ylecun", "mnist"),
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
    repository: ("uoft-cs", "cifar10"),
    train: ("plain_text/train/0000.parquet", 50_000),
    test: ("plain_text/test/0000.parquet", 10_000),
    shape: [3, 32, 32],
    classes: cifar::CLASSES,
    files: "data_batch_1.bin to data_batch_5.bin and test_batch.bin, or cifar-10-binary.tar.gz",
};

/// Whether `HF_HUB_OFFLINE` forbids the network: the values that the hub's own Python client takes for true.
fn offline() -> bool {
    std::env::var("HF_HUB_OFFLINE")
        .is_ok_and(|value| matches!(value.to_ascii_uppercase().as_str(), "1" | "ON" | "YES" | "TRUE"))
}

/// Passes on each sign of progress.
struct Signs(mpsc::Sender<String>);

impl ProgressHandler for Signs {
    fn on_progress(&self, event: &ProgressEvent) {
        // Nobody listens any more once the wait was given up; the download then ends with the program.
        self.0.send(format!("{event:?}")).ok();
    }
}

/// Fetches one file into the cache, unless it is there, and returns its path.
///
/// The work is done on a thread of its own so that it can be left behind: an address that swallows packets
/// would otherwise hold the caller for minutes.
fn fetch(client: &HFClientSync, set: HubSet, file: &'static str, offline: bool) -> Result<PathBuf> {
    let (owner, name) = set.repository;
    let repository = client.dataset(owner, name);
    let cached = repository.download_file().filename(file).revision(BRANCH).local_files_only(true).send();
    let unreachable = |reason: &str| {
        anyhow!(
            "`{}` is not in the hub's cache and {reason}: give --data DIR or set FLOW_DATA to a folder with \
             {}",
            set.name,
            set.files
        )
    };
    match cached {
        Ok(path) => return Ok(path),
        Err(HFError::LocalEntryNotFound { .. }) if offline => {
            return Err(unreachable("HF_HUB_OFFLINE forbids to download it"));
        }
        Err(HFError::LocalEntryNotFound { .. }) => {}
        Err(error) => return Err(unreachable(&format!("the cache cannot be read ({})", one_line(&error)))),
    }
    tracing::info!(set = set.name, file, "downloading from the hub");
    let (signs, news) = mpsc::channel();
    let (done, result) = mpsc::channel();
    std::thread::spawn(move || {
        let progress = Progress::new(Signs(signs));
        let path = repository.download_file().filename(file).revision(BRANCH).progress(progress).send();
        done.send(path).ok();
    });
    let mut last = String::new();
    let mut deadline = std::time::Instant::now() + SILENCE;
    loop {
        match news.recv_timeout(deadline.saturating_duration_since(std::time::Instant::now())) {
            // Ticks that report the same bytes again are no progress.
            Ok(sign) if sign != last => {
                last = sign;
                deadline = std::time::Instant::now() + SILENCE;
            }
            Ok(_) => {}
            Err(mpsc::RecvTimeoutError::Timeout) => {
                return Err(unreachable(&format!(
                    "the hub has been silent for {} seconds",
                    SILENCE.as_secs()
                )));
            }
            // The sender is gone: the download has ended one way or the other.
            Err(mpsc::RecvTimeoutError::Disconnected) => {
                return match result.recv() {
                    Ok(Ok(path)) => Ok(path),
                    Ok(Err(error)) => {
                        Err(unreachable(&format!("the hub cannot be reached ({})", one_line(&error))))
                    }
                    Err(_) => Err(unreachable("the download broke off")),
                };
            }
        }
        if std::time::Instant::now() >= deadline {
            return Err(unreachable(&format!("the hub has been silent for {} seconds", SILENCE.as_secs())));
        }
    }
}

/// An error on one line, short enough to stand inside a sentence.
fn one_line(error: &HFError) -> String {
    let words: Vec<String> = error.to_string().split_whitespace().map(str::to_owned).collect();
    let text: String = words.join(" ").chars().take(160).collect();
    // What the cut left open goes, so that the sentence around it reads well.
    let mut open = Vec::new();
    for (at, character) in text.char_indices() {
        match character {
            '(' => open.push(at),
            ')' => _ = open.pop(),
            _ => {}
        }
    }
    text[..open.first().copied().unwrap_or(text.len())].trim_end().to_owned()
}

/// Compares a cached file with its SHA-256, where the cache knows that: large files lie in it under their
/// hash.
fn verify(path: &Path, name: &str) -> Result<()> {
    let blob = path.canonicalize().with_context(|| format!("{name} cannot be found in the hub's cache"))?;
    let blob_name = file_name(&blob);
    if blob_name.len() != 64 || !blob_name.bytes().all(|byte| byte.is_ascii_hexdigit()) {
        return Ok(());
    }
    let mut hash = Sha256::new();
    let copied = File::open(&blob).and_then(|mut file| std::io::copy(&mut file, &mut hash));
    copied.with_context(|| format!("{name} cannot be read from the hub's cache"))?;
    let hex: String = hash.finalize().iter().map(|byte| format!("{byte:02x}")).collect();
    ensure!(
        hex.eq_ignore_ascii_case(&blob_name),
        "{name} in the hub's cache has the sha256 {hex}, not {blob_name}: remove it and fetch it again"
    );
    Ok(())
}

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
        let (mut image, mut label) = (None, None);
        for (_, field) in row.get_column_iter() {
            match field {
                Field::Group(group) => {
                    image = group.get_column_iter().find_map(|(_, field)| match field {
                        Field::Bytes(bytes) => Some(bytes.data()),
                        _ => None,
                    });
                }
                Field::Long(value) => label = Some(*value),
                _ => {}
            }
        }
        let (Some(image), Some(label)) = (image, label) else {
            bail!("row {place} of {name} lacks its image or its label: remove the file and fetch it again");
        };
        let label = u32::try_from(label).ok().filter(|&label| label < idx::CLASSES);
        labels
            .push(label.with_context(|| format!("row {place} of {name} has a label that is not in 0 to 9"))?);
        let image = image::load_from_memory(image).with_context(|| {
            format!("the image in row {place} of {name} cannot be decoded: fetch the file again")
        })?;
        ensure!(
            (image.height() as usize, image.width() as usize) == (height, width),
            "the image in row {place} of {name} is {} × {} where {height} × {width} is expected: fetch the \
             file again",
            image.height(),
            image.width()
        );
        if channels == 1 {
            pixels.extend(image.to_luma8().into_raw());
        } else {
            let rgb = image.to_rgb8().into_raw();
            for channel in 0..3 {
                pixels.extend(rgb[channel..].iter().step_by(3));
            }
        }
    }
    ensure!(
        labels.len() == rows,
        "{name} ends after {} of {rows} rows: remove it and fetch it again",
        labels.len()
    );
    Split::new(shape.to_vec(), Values::Pixels(pixels), Some(labels), None)
}

/// Which commit a cached file belongs to: the folder below `snapshots`.
fn commit(path: &Path) -> Option<String> {
    let mut parts = path.components().map(|part| part.as_os_str().to_string_lossy());
    parts.find(|part| part == "snapshots")?;
    parts.next().map(|hash| hash.into_owned())
}

/// Loads a data set from the hub or its cache.
///
/// # Errors
/// When it is not in the cache and the hub cannot be reached within about half a minute, in one sentence that
/// says which files to give instead; and when a file is damaged.
pub fn load(set: &HubSet) -> Result<Dataset> {
    let client = HFClient::builder().retry_max_attempts(2).build_sync();
    load_with(
        &client.map_err(|error| anyhow!("the hub's client cannot be set up: {}", one_line(&error)))?,
        *set,
        offline(),
    )
}

fn load_with(client: &HFClientSync, set: HubSet, offline: bool) -> Result<Dataset> {
    let paths = [fetch(client, set, set.train.0, offline)?, fetch(client, set, set.test.0, offline)?];
    let read = |path: &Path, (name, rows): (&str, usize)| {
        verify(path, name)?;
        let file = File::open(path).with_context(|| format!("{name} cannot be opened in the hub's cache"))?;
        read_parquet(file, set.shape, rows, name)
    };
    let (train, test) = rayon::join(|| read(&paths[0], set.train), || read(&paths[1], set.test));
    let commits = paths.map(|path| commit(&path).unwrap_or_else(|| "unknown".to_owned()));
    let (owner, name) = set.repository;
    Ok(Dataset {
        name: set.name.to_owned(),
        train: train?,
        valid: None,
        test: test?,
        classes: set.classes.map(str::to_owned).to_vec(),
        attribute_names: vec![],
        entropy: None,
        // The two files can be of different commits when the branch moved between two downloads.
        revision: if commits[0] == commits[1] {
            format!("hub {owner}/{name} {BRANCH} {}", commits[0])
        } else {
            format!("hub {owner}/{name} {BRANCH} {} (training) {} (test)", commits[0], commits[1])
        },
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::data::mutate;
    use image::{ImageFormat, Rgb, RgbImage};
    use parquet::data_type::{ByteArray, ByteArrayType, Int64Type};
    use parquet::file::writer::SerializedFileWriter;
    use parquet::schema::parser::parse_message_type;
    use std::io::{Cursor, Write};
    use std::sync::Arc;
    use std::time::Instant;

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

    fn client(cache: &Path) -> HFClientSync {
        // The discard port of this machine, where nobody listens: "connection refused", at once.
        HFClient::builder()
            .endpoint("http://127.0.0.1:9")
            .cache_dir(cache)
            .retry_max_attempts(1)
            .build_sync()
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
            let set = load_with(&client(dir.path()), TINY, offline).unwrap();
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
            let error = format!("{:#}", load_with(&client(dir.path()), MNIST, offline).unwrap_err());
            assert!(error.contains("--data DIR or set FLOW_DATA"), "{error}");
            assert!(error.contains("t10k-labels-idx1-ubyte") && !error.contains('\n'), "{error}");
        }
        assert!(begin.elapsed() < Duration::from_secs(20));
    }

    #[test]
    fn cached_files_must_have_their_hash() {
        let dir = tempfile::tempdir().unwrap();
        let hex: String = Sha256::digest(b"abc").iter().map(|byte| format!("{byte:02x}")).collect();
        let path = dir.path().join(hex);
        std::fs::write(&path, "abc").unwrap();
        verify(&path, "P").unwrap();
        std::fs::write(&path, "abd").unwrap();
        assert!(verify(&path, "P").unwrap_err().to_string().contains("P in the hub's cache has the sha256"));
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
