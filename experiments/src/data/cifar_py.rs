//! CIFAR-10: the Python version of Krizhevsky's batches, `cifar-10-batches-py`, which torchvision downloads.
//!
//! A batch is a pickled dictionary with the keys `labels`, a list of integers, and `data`, a NumPy array of bytes (N, 3072), red,
//! green and blue after one another as in the binary version. No object is made of it: the operations of the pickle are passed one
//! by one, the bytes of the array and the numbers after the key `labels` are kept, and nothing in the file is run.

use anyhow::{Context, Result, ensure};

/// Bytes of an image.
pub(super) const PIXELS: usize = 3 * 32 * 32;
/// Bytes of a record of the binary version: a label and an image.
pub(super) const RECORD: usize = 1 + PIXELS;

/// The bytes of a pickle and a place in it.
struct Operations<'a> {
    bytes: &'a [u8],
    at: usize,
}

impl<'a> Operations<'a> {
    fn take(&mut self, n: usize) -> Option<&'a [u8]> {
        let taken = self.bytes.get(self.at..self.at.checked_add(n)?)?;
        self.at += n;
        Some(taken)
    }

    /// An unsigned number of `width` bytes, at most 8.
    fn number(&mut self, width: usize) -> Option<u64> {
        Some(self.take(width)?.iter().rev().fold(0, |sum, &byte| sum << 8 | u64::from(byte)))
    }

    /// Bytes behind their length, which has `width` bytes itself.
    fn counted(&mut self, width: usize) -> Option<&'a [u8]> {
        let length = usize::try_from(self.number(width)?).ok()?;
        self.take(length)
    }

    fn line(&mut self) -> Option<()> {
        let length = self.bytes.get(self.at..)?.iter().position(|&byte| byte == b'\n')?;
        self.at += length + 1;
        Some(())
    }
}

/// What an operation says, as far as it matters here.
enum Said<'a> {
    Text(&'a [u8]),
    Number(u64),
    Nothing,
    End,
}

/// The next operation; `None` where the file ends or it is one that such a file does not need.
fn next<'a>(from: &mut Operations<'a>) -> Option<Said<'a>> {
    Some(match from.take(1)?[0] {
        b'.' => Said::End,
        b'U' | b'C' | 0x8c => Said::Text(from.counted(1)?),
        b'T' | b'X' | b'B' => Said::Text(from.counted(4)?),
        0x8d | 0x8e | 0x96 => Said::Text(from.counted(8)?),
        b'K' => Said::Number(from.number(1)?),
        b'M' => Said::Number(from.number(2)?),
        b'J' => Said::Number(from.number(4)?),
        // The protocol, and places in the memo.
        0x80 | b'q' | b'h' => from.number(1).map(|_| Said::Nothing)?,
        b'r' | b'j' => from.number(4).map(|_| Said::Nothing)?,
        // A frame, and a float.
        0x95 | b'G' => from.number(8).map(|_| Said::Nothing)?,
        0x8a => from.counted(1).map(|_| Said::Nothing)?,
        // The name of a function: its module and itself.
        b'c' => {
            from.line()?;
            from.line()?;
            Said::Nothing
        }
        // What has no argument: marks, tuples, lists, dictionaries, constants, calls.
        b'('
        | b')'
        | b']'
        | b'}'
        | b'0'
        | b'1'
        | b'2'
        | b'N'
        | b'R'
        | b'a'
        | b'b'
        | b'd'
        | b'e'
        | b'l'
        | b's'
        | b't'
        | b'u'
        | 0x81
        | 0x85..=0x89
        | 0x93
        | 0x94 => Said::Nothing,
        _ => return None,
    })
}

/// The records of a pickled batch as the binary version has them: a label, then 3072 bytes.
///
/// # Errors
/// When the file is no such pickle, or its labels and bytes are not `records` of each.
pub fn to_records(bytes: &[u8], records: usize, name: &str) -> Result<Vec<u8>> {
    let mut operations = Operations { bytes, at: 0 };
    let (mut key, mut labels, mut data) = (&b""[..], Vec::new(), None);
    loop {
        let start = operations.at;
        let said = next(&mut operations).with_context(|| {
            format!("{name} is no batch of CIFAR-10 from byte {start} on: fetch the official cifar-10-python.tar.gz")
        })?;
        match said {
            Said::Text(text) if text.len() == records * PIXELS => data = Some(text),
            Said::Text(text) => key = text,
            Said::Number(label) if key == b"labels" => labels.push(label),
            Said::Number(_) | Said::Nothing => {}
            Said::End => break,
        }
    }
    let data = data.unwrap_or_default();
    ensure!(
        data.len() == records * PIXELS && labels.len() == records,
        "{name} has no {records} images with labels under the keys `data` and `labels`: fetch the official \
         cifar-10-python.tar.gz"
    );
    let mut all = Vec::with_capacity(records * RECORD);
    for (label, pixels) in labels.into_iter().zip(data.chunks_exact(PIXELS)) {
        // A label that is no byte is no class either, which the reader of records says.
        all.push(u8::try_from(label).unwrap_or(u8::MAX));
        all.extend_from_slice(pixels);
    }
    Ok(all)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::mutate;

    /// A batch of two images as Python 2 pickled it for the official files.
    fn pickled() -> (Vec<u8>, Vec<u8>) {
        let pixels: Vec<u8> = (0..2 * PIXELS).map(|i| (i * 31 % 251) as u8).collect();
        let mut file = b"\x80\x02}q\x01(U\x0bbatch_labelq\x02U\x15training batch 1 of 5q\x03U\x06labelsq\x04]q\x05(K\x06M\x09\x00eU\x04dataq\x06cnumpy.core.multiarray\n_reconstruct\nq\x07cnumpy\nndarray\nq\x08K\x00\x85U\x01b\x87Rq\x09(K\x01K\x02M\x00\x0c\x86cnumpy\ndtype\nq\nU\x02u1K\x00K\x01\x87Rq\x0b(K\x03U\x01|NNNJ\xff\xff\xff\xffJ\xff\xff\xff\xffK\x00tb\x89T".to_vec();
        file.extend((pixels.len() as u32).to_le_bytes());
        file.extend(&pixels);
        file.extend(b"tbU\tfilenamesq\x0c]q\x0d(U\x05a.pngU\x05b.pngeu.");
        let records = [&[6], &pixels[..PIXELS], &[9], &pixels[PIXELS..]].concat();
        (file, records)
    }

    #[test]
    fn a_batch_is_what_the_binary_version_has() {
        let (file, records) = pickled();
        assert_eq!(to_records(&file, 2, "B").unwrap(), records);
        for cut in [0, 1, 20, 60, 100, 4000, file.len() - 1] {
            let error = to_records(&file[..cut], 2, "B").unwrap_err().to_string();
            assert!(error.contains("B is no batch") && error.contains("fetch"), "{cut}: {error}");
        }
        assert!(to_records(&file, 3, "B").unwrap_err().to_string().contains("no 3 images"));
        mutate::each(&file, 5000, |bytes| drop(to_records(bytes, 2, "B")));
    }

    /// As Python writes them today, in each protocol that can hold bytes.
    #[test]
    fn python_agrees() {
        let Some(python) = std::env::var_os("FLOWS_PYTHON") else {
            println!("skipped: FLOWS_PYTHON names no Python with numpy");
            return;
        };
        let dir = tempfile::tempdir().unwrap();
        let script = "import numpy, pickle, sys\n\
                      data = (numpy.arange(2 * 3072) * 31 % 251).astype('u1').reshape(2, 3072)\n\
                      for p in (3, 4, 5):\n\
                      \x20   batch = {'batch_label': 'x', 'labels': [6, 9], 'data': data, 'filenames': ['a', 'b']}\n\
                      \x20   pickle.dump(batch, open(f'{sys.argv[1]}/{p}', 'wb'), protocol=p)\n";
        let status =
            std::process::Command::new(python).args(["-c", script]).arg(dir.path()).status().unwrap();
        assert!(status.success());
        for protocol in ["3", "4", "5"] {
            let file = std::fs::read(dir.path().join(protocol)).unwrap();
            assert_eq!(to_records(&file, 2, protocol).unwrap(), pickled().1, "{protocol}");
        }
    }
}
