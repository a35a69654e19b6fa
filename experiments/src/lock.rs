//! Locks the folder of a run: one process may write to it, or several may read it.
//!
//! The lock is the system's, on the folder itself: it leaves no file behind and ends with the process, however that ends.

use anyhow::{Context, Result, bail};
use std::fs::{File, TryLockError};
use std::path::Path;

/// Holds a run's folder until it is dropped: against all other processes, or against those that change it.
pub struct Lock {
    _folder: File,
}

impl Lock {
    /// Takes the folder, which must exist.
    ///
    /// # Errors
    /// When another run has it, or it cannot be opened.
    pub fn take(out: &Path) -> Result<Self> {
        Self::hold(out, File::try_lock, "give another --out")
    }

    /// As [`Lock::take`], beside others that only read.
    ///
    /// # Errors
    /// When a run has it, or it cannot be opened.
    pub fn share(out: &Path) -> Result<Self> {
        Self::hold(out, File::try_lock_shared, "name another folder")
    }

    fn hold(out: &Path, lock: fn(&File) -> Result<(), TryLockError>, remedy: &str) -> Result<Self> {
        let folder =
            File::open(out).with_context(|| format!("cannot open the run's folder {}", out.display()))?;
        match lock(&folder) {
            Ok(()) => {}
            Err(TryLockError::WouldBlock) => {
                bail!("another run is at work in {}: wait for its end, or {remedy}", out.display())
            }
            // Some network file systems have no locks: no reason not to work there.
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
        let readers = [Lock::share(dir.path()).unwrap(), Lock::share(dir.path()).unwrap()];
        assert!(Lock::take(dir.path()).is_err());
        drop(readers);
        let writer = Lock::take(dir.path()).unwrap();
        assert!(Lock::share(dir.path()).is_err());
        drop(writer);
        assert!(Lock::take(&dir.path().join("missing")).is_err());
    }
}
