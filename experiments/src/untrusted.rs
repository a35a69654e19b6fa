//! Reading a file whose contents nobody has checked yet.

use anyhow::{Result, ensure};
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
    let mut bytes = Vec::new();
    let read = open(path, u64::MAX)?.0.take(n).read_to_end(&mut bytes);
    read.map_err(|e| cannot_read(path, e))?;
    Ok(bytes)
}

/// A regular file of at most `most` bytes, and its length.
///
/// A pipe would be waited for, and a device has no end; both are refused before they are opened.
///
/// # Errors
/// When there is no such file, it is no regular file, larger, or cannot be opened.
pub fn open(path: &Path, most: u64) -> Result<(File, u64)> {
    let meta = std::fs::metadata(path).map_err(|e| match e.kind() {
        ErrorKind::NotFound | ErrorKind::NotADirectory => {
            anyhow::Error::new(e).context(format!("cannot open {}: check that it exists", path.display()))
        }
        _ => cannot_read(path, e),
    })?;
    ensure!(meta.is_file(), "{} is no regular file: give the path of one", path.display());
    ensure!(meta.len() <= most, too_long(path, most));
    Ok((File::open(path).map_err(|e| cannot_read(path, e))?, meta.len()))
}

fn too_long(path: &Path, most: u64) -> String {
    format!("{} has more than the {most} bytes that such a file can have: give another", path.display())
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
/// The size is bounded while reading as well, for a file may grow.
///
/// # Errors
/// As [`open`], and when it cannot be read.
pub fn read_regular(path: &Path, most: u64) -> Result<Vec<u8>> {
    let mut bytes = Vec::new();
    let read = open(path, most)?.0.take(most + 1).read_to_end(&mut bytes);
    read.map_err(|e| cannot_read(path, e))?;
    ensure!(bytes.len() as u64 <= most, too_long(path, most));
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
