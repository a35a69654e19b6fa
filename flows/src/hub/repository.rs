//! Repositories of the hub and their revisions.

use super::hash::is_hex;
use candle_core::{Result, bail};
use hf_hub::{RepoType, RepoTypeAny};
use std::fmt;

/// A repository of the hub.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Repository {
    pub(super) kind: RepoTypeAny,
    pub(super) owner: String,
    pub(super) name: String,
}

impl fmt::Display for Repository {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.owner, self.name)
    }
}

impl Repository {
    /// A model by its `user/name`.
    ///
    /// # Errors
    /// When it is no name of a repository.
    pub fn model(id: &str) -> Result<Self> {
        Self::new(RepoTypeAny::Model, id)
    }

    /// A data set by its `user/name`.
    ///
    /// # Errors
    /// When it is no name of a repository.
    pub fn dataset(id: &str) -> Result<Self> {
        Self::new(RepoTypeAny::Dataset, id)
    }

    fn new(kind: RepoTypeAny, id: &str) -> Result<Self> {
        let part = |part: &str| {
            let plain = |b: u8| b.is_ascii_alphanumeric() || matches!(b, b'-' | b'_' | b'.');
            (1..=96).contains(&part.len())
                && part.bytes().all(plain)
                && !part.contains("--")
                && !part.contains("..")
                && !part.starts_with(['-', '.'])
                && !part.ends_with(['-', '.'])
        };
        match id.split_once('/') {
            Some((owner, name)) if part(owner) && part(name) => {
                Ok(Self { kind, owner: owner.to_owned(), name: name.to_owned() })
            }
            _ => {
                bail!("`{id}` is no repository's name: it is user/name, of letters, digits, `-`, `_` and `.`")
            }
        }
    }

    /// Its folder's name in the cache.
    pub(super) fn folder(&self) -> String {
        format!("{}--{}--{}", self.kind.plural(), self.owner, self.name)
    }
}

/// Which state of a repository: a branch, a tag or a commit. The default is the branch `main`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Revision(pub(super) String);

impl Default for Revision {
    fn default() -> Self {
        Self("main".to_owned())
    }
}

impl fmt::Display for Revision {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl Revision {
    /// A branch, a tag or a commit (40 hexadecimal digits).
    ///
    /// # Errors
    /// When git takes no such name.
    pub fn new(name: &str) -> Result<Self> {
        let wrong = |b: u8| {
            b.is_ascii_control() || matches!(b, b' ' | b'~' | b'^' | b':' | b'?' | b'*' | b'[' | b'\\')
        };
        let part = |part: &str| !part.is_empty() && !part.starts_with(['.', '-']) && !part.ends_with(".lock");
        let good = name.len() <= 200
            && !name.bytes().any(wrong)
            && !name.contains("..")
            && !name.contains("@{")
            && !name.ends_with('.')
            && name.split('/').all(part);
        if !good {
            bail!("`{name}` is no revision: it is a branch, a tag or a commit");
        }
        Ok(Self(name.to_owned()))
    }

    /// Whether it names a commit, which never changes.
    pub fn is_commit(&self) -> bool {
        is_hex(&self.0, 40)
    }
}
