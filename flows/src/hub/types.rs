//! Types that the calls to the hub share: transfers, snapshots, listings.

use hf_hub::repository::RepoTreeEntry;
use std::path::PathBuf;

/// The progress of a transfer.
#[derive(Clone, Copy, Debug)]
pub struct Transfer<'a> {
    /// The file, or what the files are together.
    pub what: &'a str,
    /// Bytes so far.
    pub done: u64,
    /// Bytes in all, as far as is known.
    pub total: u64,
}

/// Observer of a transfer. It is called on the thread that asked for the transfer.
pub trait Observer: Send + Sync {
    /// Called when a transfer begins and when it has progressed.
    fn progress(&self, transfer: &Transfer<'_>);

    /// Asked several times a second; `true` ends the call with an error.
    fn stopped(&self) -> bool {
        false
    }
}

/// One commit of a repository in the cache, with all files present and verified.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Snapshot {
    /// The folder with its files.
    pub folder: PathBuf,
    /// The commit.
    pub commit: String,
}

/// A file of a commit, as the hub lists it.
#[derive(Clone, Debug)]
pub(super) struct Listed {
    pub(super) name: String,
    pub(super) bytes: u64,
    /// The hash of its git object: the file itself, or the pointer that stands for a large one.
    pub(super) object: String,
    pub(super) large: bool,
}

/// A commit of the hub.
pub(super) struct Remote {
    pub(super) commit: String,
    pub(super) files: Vec<Listed>,
}

impl Remote {
    /// The files among the entries of a listing of `commit`.
    pub(super) fn new(commit: String, entries: Vec<RepoTreeEntry>) -> Self {
        let listed = |entry| match entry {
            RepoTreeEntry::File { oid, size, path, lfs, .. } => {
                Some(Listed { name: path, bytes: size, object: oid, large: lfs.is_some() })
            }
            RepoTreeEntry::Directory { .. } => None,
        };
        Self { commit, files: entries.into_iter().filter_map(listed).collect() }
    }

    pub(super) fn file(&self, name: &str) -> Option<&Listed> {
        self.files.iter().find(|file| file.name == name)
    }
}
