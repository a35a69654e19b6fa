//! Locks the folder of a run: one process may write to it, or several may read it.
//!
//! The lock is the system's, on the folder itself: it leaves no file behind and ends with the process, however that ends.

use crate::run_dir::remove_leftovers;
use anyhow::{Context, Result, bail};
use std::fs::{File, TryLockError};
use std::path::Path;

/// Holds a run's folder until it is dropped: against all other processes, or against those that change it.
pub struct Lock {
    _folder: File,
}

impl Lock {
    /// Takes the folder, which must exist, and removes what a killed process left half-written in it.
    ///
    /// # Errors
    /// When another run has it, or it cannot be opened.
    pub fn take(out: &Path) -> Result<Self> {
        let (lock, held) = Self::hold(out, File::try_lock)?;
        if held {
            remove_leftovers(out)?;
        }
        Ok(lock)
    }

    /// As [`Lock::take`], beside others that only read.
    ///
    /// # Errors
    /// When a run has it, or it cannot be opened.
    pub fn share(out: &Path) -> Result<Self> {
        Ok(Self::hold(out, File::try_lock_shared)?.0)
    }

    /// The lock, and whether the file system has locks at all.
    fn hold(out: &Path, lock: fn(&File) -> Result<(), TryLockError>) -> Result<(Self, bool)> {
        let folder =
            File::open(out).with_context(|| format!("cannot open the run's folder {}", out.display()))?;
        let held = lock(&folder);
        match &held {
            Ok(()) => {}
            Err(TryLockError::WouldBlock) => {
                bail!("another run is at work in {}: wait for its end, or name another folder", out.display())
            }
            // Some network file systems have no locks: no reason not to work there.
            Err(TryLockError::Error(e)) => {
                tracing::warn!("{} cannot be locked ({e}): start no second run there", out.display());
            }
        }
        Ok((Self { _folder: folder }, held.is_ok()))
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
        let leftover = dir.path().join("README.md.tmp1");
        std::fs::write(&leftover, "").unwrap();
        assert!(Lock::take(dir.path()).is_err());
        assert!(leftover.exists(), "it may be a file that the other one is writing");
        drop(first);
        assert!(Lock::take(dir.path()).is_ok());
        assert!(!leftover.exists());
        let readers = [Lock::share(dir.path()).unwrap(), Lock::share(dir.path()).unwrap()];
        assert!(Lock::take(dir.path()).is_err());
        drop(readers);
        let writer = Lock::take(dir.path()).unwrap();
        assert!(Lock::share(dir.path()).is_err());
        drop(writer);
        assert!(Lock::take(&dir.path().join("missing")).is_err());
    }
}
