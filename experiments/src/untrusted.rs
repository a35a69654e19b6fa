//! Reading a file whose contents nobody has checked yet.

use anyhow::{Context, Result, ensure};
use std::fs::File;
use std::io::{ErrorKind, Read};
use std::path::Path;

/// Bytes of a recipe, a summary or another text of a run, at most.
pub const TEXT: u64 = 1 << 26;

/// The first bytes of a regular file, `n` of them where it has as many: what it is, before it is read.
///
/// # Errors
/// When there is no such file, it is no regular file, or cannot be read.
pub fn head(path: &Path, n: u64) -> Result<Vec<u8>> {
    check_regular(path)?;
    let mut bytes = Vec::new();
    let read = File::open(path).and_then(|file| file.take(n).read_to_end(&mut bytes));
    read.map_err(|e| cannot_read(path, e))?;
    Ok(bytes)
}

/// The length of a file, which must be a regular one.
fn check_regular(path: &Path) -> Result<u64> {
    let name = path.display();
    let meta =
        std::fs::metadata(path).with_context(|| format!("cannot open {name}: check that it exists"))?;
    ensure!(meta.is_file(), "{name} is no regular file: give the path of one");
    Ok(meta.len())
}

fn cannot_read(path: &Path, e: std::io::Error) -> anyhow::Error {
    let remedy = match e.kind() {
        ErrorKind::PermissionDenied => "check its permissions",
        ErrorKind::OutOfMemory => "free some memory, or take a machine with more",
        _ => "copy it to another disk and try again",
    };
    anyhow::Error::new(e).context(format!("cannot read {}: {remedy}", path.display()))
}

/// The bytes of a regular file of at most `most` bytes.
///
/// A pipe would be waited for, and a device has no end; both are refused before they are opened. The size is bounded while
/// reading as well, for a file may grow.
///
/// # Errors
/// When there is no such file, it is no regular file, larger, or cannot be read.
pub fn read_regular(path: &Path, most: u64) -> Result<Vec<u8>> {
    let name = path.display();
    let length = check_regular(path)?;
    let too_long =
        || format!("{name} has more than the {most} bytes that such a file can have: give another");
    ensure!(length <= most, too_long());
    let mut bytes = Vec::new();
    let read = File::open(path).and_then(|file| file.take(most + 1).read_to_end(&mut bytes));
    read.map_err(|e| cannot_read(path, e))?;
    ensure!(bytes.len() as u64 <= most, too_long());
    Ok(bytes)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_regular_files_of_a_bounded_size_are_read() -> Result<()> {
        let dir = tempfile::tempdir()?;
        let path = dir.path().join("a");
        std::fs::write(&path, [7; 100])?;
        assert_eq!(read_regular(&path, 100)?, [7; 100]);
        assert_eq!((head(&path, 2)?, head(&path, 200)?), (vec![7; 2], vec![7; 100]));
        assert!(head(dir.path(), 2).unwrap_err().to_string().contains("no regular file"));
        let error = |path: &Path, most| read_regular(path, most).unwrap_err().to_string();
        assert!(error(&path, 99).contains("more than the 99 bytes"));
        assert!(error(dir.path(), 99).contains("no regular file"));
        assert!(error(&dir.path().join("b"), 99).contains("check that it exists"));
        // A device without an end, and a pipe without a writer.
        #[cfg(unix)]
        {
            assert!(error(Path::new("/dev/zero"), u64::MAX - 1).contains("no regular file"));
            let pipe = dir.path().join("pipe");
            assert!(std::process::Command::new("mkfifo").arg(&pipe).status()?.success());
            assert!(error(&pipe, 99).contains("no regular file"));
        }
        // Sparse files cost no disk; they cost no memory either.
        let sparse = dir.path().join("sparse");
        File::create(&sparse)?.set_len(1 << 40)?;
        assert!(error(&sparse, TEXT).contains("more than the"));
        Ok(())
    }
}
