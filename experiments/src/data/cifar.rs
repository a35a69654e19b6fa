//! CIFAR-10: the binary version of Krizhevsky's batches.
//!
//! A batch is 10 000 records of 3073 bytes with no header: one label, then 32 × 32 red, green and blue bytes,
//! row by row. `data_batch_1.bin` to `data_batch_5.bin` are the training set, `test_batch.bin` is the test
//! set; the official `cifar-10-binary.tar.gz` holds all six. The Python version in `cifar-10-batches-py` is read as the same
//! records (`cifar_py`), so that it is the same data set, of the same revision.

use super::cifar_py::{self, RECORD};
use super::set::{check_length, class};
use super::{Dataset, Revision, Split, Values, read_at_most};
use anyhow::{Context, Result, bail, ensure};
use std::io::Read;
use std::path::Path;

/// The names of the classes, in the order of `batches.meta.txt`.
pub const CLASSES: [&str; 10] =
    ["airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck"];

/// The six batches, test last.
pub const FILES: [&str; 6] = [
    "data_batch_1.bin",
    "data_batch_2.bin",
    "data_batch_3.bin",
    "data_batch_4.bin",
    "data_batch_5.bin",
    "test_batch.bin",
];

/// The official archive.
pub const ARCHIVE: &str = "cifar-10-binary.tar.gz";

/// Records in each of the six batches.
pub const RECORDS: usize = 10_000;

/// Reads one batch of `records` records and appends it to `pixels` (planar) and `labels`.
///
/// # Errors
/// When the batch is shorter or longer than that, or a label is above 9.
pub fn parse_batch(
    bytes: &[u8],
    records: usize,
    name: &str,
    pixels: &mut Vec<u8>,
    labels: &mut Vec<u32>,
) -> Result<()> {
    let reason = format!("a batch of {records} records has");
    check_length(name, bytes.len(), records as u128 * RECORD as u128, reason, "fetch the file again")?;
    for (i, record) in bytes.chunks_exact(RECORD).enumerate() {
        let place = format_args!("at byte {}", i * RECORD);
        labels.push(class(record[0].into(), CLASSES.len() as u32, name, place)?);
        pixels.extend_from_slice(&record[1..]);
    }
    Ok(())
}

/// Puts six batches together, in the order of [`FILES`]; they come from `place`, a folder or an archive.
fn assemble(batches: &[Vec<u8>], records: usize, place: &Path) -> Result<Dataset> {
    let mut revision = Revision::default();
    let mut split = |range: std::ops::Range<usize>| {
        let mut pixels = Vec::with_capacity(batches[range.clone()].iter().map(Vec::len).sum());
        let mut labels = Vec::new();
        for i in range {
            let name = place.join(FILES[i]).display().to_string();
            parse_batch(&batches[i], records, &name, &mut pixels, &mut labels)?;
            revision.add(FILES[i], &batches[i]);
        }
        Split::new(vec![3, 32, 32], Values::Pixels(pixels), Some(labels), None)
    };
    let (train, test) = (split(0..5)?, split(5..6)?);
    Ok(Dataset::new("cifar10", train, test, CLASSES, revision.finish("the six binary batches")))
}

/// Takes the six batches out of the official archive, unpacked to a tar file.
///
/// # Errors
/// When the archive is damaged, lacks a batch, or a batch is of the wrong size.
pub fn parse_archive(bytes: &[u8], records: usize, name: &str) -> Result<Dataset> {
    let mut batches = vec![None; FILES.len()];
    let mut archive = tar::Archive::new(bytes);
    for entry in archive.entries().with_context(|| format!("{name} is no tar archive: fetch it again"))? {
        // The crate's own message quotes the bytes that it could not read.
        let Ok(mut entry) = entry else { bail!("{name} is a damaged tar archive: fetch it again") };
        let offset = entry.raw_header_position();
        let path = entry.path_bytes().into_owned();
        let file = path.rsplit(|&byte| byte == b'/').next().unwrap_or_default();
        let Some(slot) = FILES.iter().position(|known| known.as_bytes() == file) else {
            continue;
        };
        // The size in a tar header is only a claim, so the entry is read as far as the archive goes, and no
        // further.
        let mut batch = Vec::new();
        (&mut entry).take(bytes.len() as u64).read_to_end(&mut batch).with_context(|| {
            format!("{} at byte {offset} of {name} cannot be read: fetch the archive again", FILES[slot])
        })?;
        ensure!(
            batches[slot].is_none(),
            "{name} holds {} twice (byte {offset}): fetch it again",
            FILES[slot]
        );
        batches[slot] = Some(batch);
    }
    let whole = batches.into_iter().zip(FILES).map(|(batch, file)| {
        batch.with_context(|| format!("{name} lacks {file}: fetch the official {ARCHIVE}"))
    });
    assemble(&whole.collect::<Result<Vec<_>>>()?, records, Path::new(name))
}

/// Reads CIFAR-10 from the folder of its batches, the folder above it, or the official archive, given itself
/// or in the folder.
///
/// # Errors
/// When a batch is missing, short, long, or holds a label above 9.
pub fn read_folder(dir: &Path) -> Result<Dataset> {
    read_records(dir, RECORDS)
}

fn read_records(dir: &Path, records: usize) -> Result<Dataset> {
    let archive = |path: &Path| -> Result<Dataset> {
        // Six batches, and what tar puts around them.
        let most = (6 * records * RECORD + (1 << 20)) as u64;
        parse_archive(&read_at_most(path, most)?, records, &path.display().to_string())
    };
    if dir.is_file() {
        return archive(dir);
    }
    let places = [
        dir.to_path_buf(),
        dir.join("cifar-10-batches-bin"),
        dir.join("cifar10"),
        dir.join("cifar10/cifar-10-batches-bin"),
    ];
    if let Some(place) = places.iter().find(|place| FILES.iter().any(|file| place.join(file).is_file())) {
        let batches = FILES.iter().map(|file| {
            let path = place.join(file);
            ensure!(path.is_file(), "{} lacks {file}: unpack the official {ARCHIVE} again", place.display());
            // One record more than a batch has, so that a file that is too long is told by its length.
            read_at_most(&path, ((records + 1) * RECORD) as u64)
        });
        return assemble(&batches.collect::<Result<Vec<_>>>()?, records, place);
    }
    if let Some(path) = places.iter().map(|place| place.join(ARCHIVE)).find(|path| path.is_file()) {
        return archive(&path);
    }
    let python =
        [dir.to_path_buf(), dir.join("cifar-10-batches-py"), dir.join("cifar10/cifar-10-batches-py")];
    if let Some(place) = python.iter().find(|place| place.join("data_batch_1").is_file()) {
        let batches = FILES.iter().map(|file| {
            let path = place.join(file.trim_end_matches(".bin"));
            // Beside the records are the names of files, some tens of bytes each.
            let bytes = read_at_most(&path, ((records + 1) * (RECORD + 200)) as u64)?;
            cifar_py::to_records(&bytes, records, &path.display().to_string())
        });
        return assemble(&batches.collect::<Result<Vec<_>>>()?, records, place);
    }
    bail!(
        "there is no CIFAR-10 in {}: put the files {} there or in its folder `cifar-10-batches-bin`, the official {ARCHIVE}, or \
         the folder `cifar-10-batches-py`",
        dir.display(),
        FILES.join(", ")
    )
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::data::cifar_py::PIXELS;
    use crate::testing::mutate;
    use std::io::Write;

    fn batch(records: usize, salt: usize) -> Vec<u8> {
        let mut bytes = Vec::new();
        for i in 0..records {
            bytes.push(((i + salt) % 10) as u8);
            bytes.extend((0..PIXELS).map(|p| (p / 7 + i * 31 + salt) as u8));
        }
        bytes
    }

    fn archive(skip: Option<usize>) -> Vec<u8> {
        let mut tar = tar::Builder::new(Vec::new());
        for (i, file) in FILES.iter().enumerate().filter(|(i, _)| Some(*i) != skip) {
            let bytes = batch(2, i);
            let mut header = tar::Header::new_gnu();
            header.set_size(bytes.len() as u64);
            header.set_mode(0o644);
            tar.append_data(&mut header, format!("cifar-10-batches-bin/{file}"), bytes.as_slice()).unwrap();
        }
        tar.into_inner().unwrap()
    }

    fn message(bytes: &[u8]) -> String {
        parse_batch(bytes, 2, "B", &mut vec![], &mut vec![]).unwrap_err().to_string()
    }

    #[test]
    fn a_batch_is_read_in_place() {
        let (mut pixels, mut labels) = (vec![], vec![]);
        parse_batch(&batch(2, 3), 2, "B", &mut pixels, &mut labels).unwrap();
        assert_eq!(labels, [3, 4]);
        assert_eq!(pixels[..], [&batch(2, 3)[1..RECORD], &batch(2, 3)[RECORD + 1..]].concat());
    }

    #[test]
    fn damage_is_named_with_its_offset() {
        assert!(message(&batch(2, 0)[..6000]).contains("B ends at byte 6000"));
        assert!(message(&batch(3, 0)).contains("3073 extra bytes from byte 6146"));
        let mut bad = batch(2, 0);
        bad[RECORD] = 77;
        assert!(message(&bad).contains("B has the label 77 at byte 3073"));
    }

    #[test]
    fn folder_and_archive_agree() {
        let dir = tempfile::tempdir().unwrap();
        assert!(read_records(dir.path(), 2).unwrap_err().to_string().contains("cifar-10-binary.tar.gz"));
        let mut packed = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::fast());
        packed.write_all(&archive(None)).unwrap();
        let file = dir.path().join(ARCHIVE);
        std::fs::write(&file, packed.finish().unwrap()).unwrap();
        let (inside, given) = (read_records(dir.path(), 2).unwrap(), read_records(&file, 2).unwrap());
        let inner = dir.path().join("cifar-10-batches-bin");
        std::fs::create_dir(&inner).unwrap();
        for (i, name) in FILES.iter().enumerate() {
            std::fs::write(inner.join(name), batch(2, i)).unwrap();
        }
        let plain = read_records(dir.path(), 2).unwrap();
        assert_eq!((plain.train.len(), plain.test.len()), (10, 2));
        assert_eq!(
            (&plain.train, &plain.test, &plain.revision),
            (&given.train, &given.test, &given.revision)
        );
        assert_eq!(plain.train, inside.train);
        assert!(
            parse_archive(&archive(Some(4)), 2, "A")
                .unwrap_err()
                .to_string()
                .contains("lacks data_batch_5.bin")
        );
        std::fs::remove_file(inner.join(FILES[5])).unwrap();
        assert!(read_records(dir.path(), 2).unwrap_err().to_string().contains("lacks test_batch.bin"));
    }

    #[test]
    fn bytes_that_are_no_archive_are_not_printed() {
        let garbage: Vec<u8> = (0..4096u32).map(|i| (i.wrapping_mul(2_654_435_761) >> 13) as u8).collect();
        let said = format!("{:#}", parse_archive(&garbage, 2, "A").unwrap_err());
        assert_eq!(said, "A is a damaged tar archive: fetch it again");
    }

    #[test]
    fn no_damage_panics() {
        mutate::each(&batch(2, 0), 5000, |bytes| drop(parse_batch(bytes, 2, "B", &mut vec![], &mut vec![])));
        mutate::each(&archive(None), 3000, |bytes| drop(parse_archive(bytes, 2, "A")));
    }
}
