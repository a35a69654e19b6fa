//! A picture and its numbers, which replace those of an earlier command together or not at all.

use anyhow::{Context, Result, ensure};
use experiments::untrusted;
use flows::storage::{read_header, write_atomic};
use std::fs;
use std::path::{Path, PathBuf};

/// The metadata key of a command's results; it tells such a .safetensors file from weights.
pub const KEY: &str = "flow";

/// A picture that is being written to `path`.
pub struct Draft {
    path: PathBuf,
    tmp: PathBuf,
}

impl Draft {
    /// Of the picture that is to be at `path`.
    pub fn new(path: PathBuf) -> Self {
        let tmp = beside(&path);
        Self { path, tmp }
    }

    /// Where the picture is drawn.
    pub fn drawn(&self) -> &Path {
        &self.tmp
    }

    /// Where it will be.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Whether it is this file that the picture will replace.
    pub fn replaces(&self, file: &Path) -> bool {
        matches!((file.canonicalize(), self.path.canonicalize()), (Ok(a), Ok(b)) if a == b)
    }

    /// Puts the picture in its place, and these bytes at `numbers`.
    ///
    /// # Errors
    /// When the disk is full: then both are as they were.
    pub fn finish(&self, numbers: &Path, bytes: &[u8]) -> Result<()> {
        let cannot =
            |file: &Path| format!("cannot write {}: make room, or choose another --out", file.display());
        let tmp = beside(numbers);
        let put = || -> Result<()> {
            write_atomic(&tmp, bytes).with_context(|| cannot(numbers))?;
            fs::rename(&tmp, numbers).with_context(|| cannot(numbers))?;
            fs::rename(&self.tmp, &self.path).with_context(|| cannot(&self.path))
        };
        put().inspect_err(|_| _ = fs::remove_file(&tmp))
    }
}

impl Drop for Draft {
    fn drop(&mut self) {
        let _ = fs::remove_file(&self.tmp);
    }
}

/// A name of this process's own in the same folder.
fn beside(path: &Path) -> PathBuf {
    let name = path.file_name().unwrap_or_default().to_string_lossy().into_owned();
    path.with_file_name(format!(".{name}.{}", std::process::id()))
}

/// Where the numbers of the picture `out` go.
///
/// # Errors
/// When that is a file that no picture command made, such as the weights themselves.
pub fn numbers_of(out: &Path) -> Result<PathBuf> {
    let numbers = out.with_extension("safetensors");
    let name = numbers.file_name().unwrap_or_default().to_string_lossy();
    let why = if numbers.exists() { "is there and is not of a picture" } else { "is a name for weights" };
    ensure!(
        !(name == "model.safetensors" || name.starts_with("model-")) && (!numbers.exists() || ours(&numbers)),
        "--out {}: its numbers would go to {}, which {why}: choose another name",
        out.display(),
        numbers.display()
    );
    Ok(numbers)
}

/// Whether a file has the numbers of a picture.
fn ours(path: &Path) -> bool {
    let header = || -> Result<_> {
        let (mut file, length) = untrusted::open(path, u64::MAX)?;
        Ok(read_header(&mut file, length)?.0)
    };
    header().is_ok_and(|header| header.metadata().as_ref().is_some_and(|meta| meta.contains_key(KEY)))
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::collections::HashMap;

    fn save(path: &Path, key: &str) {
        let t = candle_core::Tensor::new(&[1f32], &candle_core::Device::Cpu).unwrap();
        let meta = HashMap::from([(key.to_owned(), "{}".to_owned())]);
        fs::write(path, safetensors::serialize([("x", &t)], Some(meta)).unwrap()).unwrap();
    }

    #[test]
    fn only_numbers_of_pictures_are_replaced() {
        let dir = tempfile::tempdir().unwrap();
        let at = |name: &str| dir.path().join(name);
        save(&at("mine.safetensors"), "flows");
        save(&at("smile.safetensors"), KEY);
        fs::create_dir(at("folder.safetensors")).unwrap();
        fs::write(at("text.safetensors"), "no").unwrap();
        for refused in ["mine.png", "folder.png", "text.png", "model.png", "model-00001-of-00002.png"] {
            let why = numbers_of(&at(refused)).unwrap_err().to_string();
            assert!(why.contains("choose another name"), "{why}");
        }
        assert_eq!(numbers_of(&at("smile.png")).unwrap(), at("smile.safetensors"));
        assert_eq!(numbers_of(&at("new.png")).unwrap(), at("new.safetensors"));
    }

    #[test]
    fn both_files_are_there_or_as_they_were() {
        let dir = tempfile::tempdir().unwrap();
        let (out, numbers) = (dir.path().join("a.png"), dir.path().join("a.safetensors"));
        fs::write(&out, "old").unwrap();
        {
            let draft = Draft::new(out.clone());
            assert!(draft.replaces(&out));
            fs::write(draft.drawn(), "new").unwrap();
            // A folder cannot be replaced by a file.
            fs::create_dir(&numbers).unwrap();
            let why = format!("{:#}", draft.finish(&numbers, b"n").unwrap_err());
            assert!(why.contains("choose another --out"), "{why}");
        }
        assert_eq!(fs::read(&out).unwrap(), b"old");
        fs::remove_dir(&numbers).unwrap();
        let draft = Draft::new(out.clone());
        fs::write(draft.drawn(), "new").unwrap();
        draft.finish(&numbers, b"n").unwrap();
        drop(draft);
        assert_eq!((fs::read(&out).unwrap(), fs::read(&numbers).unwrap()), (b"new".to_vec(), b"n".to_vec()));
        assert_eq!(fs::read_dir(dir.path()).unwrap().count(), 2);
    }
}
