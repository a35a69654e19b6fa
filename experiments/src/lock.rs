//! One run at a time in a folder.
//!
//! The lock is the system's, on the folder itself: it leaves no file behind and ends with the process, however that ends.

use anyhow::{Context, Result, bail};
use std::fs::{File, TryLockError};
use std::path::Path;

/// Holds a run's folder until it is dropped.
pub struct Lock {
    _folder: File,
}

impl Lock {
    /// Takes the folder, which must exist.
    ///
    /// # Errors
    /// When another run has it, or it cannot be opened.
    pub fn take(out: &Path) -> Result<Self> {
        let folder =
            File::open(out).with_context(|| format!("cannot open the run's folder {}", out.display()))?;
        match folder.try_lock() {
            Ok(()) => {}
            Err(TryLockError::WouldBlock) => {
                bail!("another run is at work in {}: wait for its end, or give another --out", out.display())
            }
            // Some network file systems have no locks: no reason not to train there.
            Err(TryLockError::Error(e)) => {
                tracing::warn!("{} cannot be locked ({e}): start no second run there", out.display());
            }
        }
        Ok(Self { _folder: folder })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_folder_is_held_until_the_lock_is_dropped() {
        let dir = tempfile::tempdir().unwrap();
        let first = Lock::take(dir.path()).unwrap();
        assert!(Lock::take(dir.path()).is_err());
        drop(first);
        assert!(Lock::take(dir.path()).is_ok());
        assert!(Lock::take(&dir.path().join("missing")).is_err());
    }
}
