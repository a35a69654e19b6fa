//! The Hugging Face hub both ways: a ready model from `user/name`, and a folder of weights to it.
//!
//! ```no_run
//! use candle_core::Device;
//! use flows::hub::{self, Revision};
//!
//! let model = hub::from_pretrained("user/name", Revision::default(), &Device::Cpu)?;
//! let same = hub::from_pretrained("user/name", Revision::new("v1.0")?, &Device::Cpu)?;
//! let local = hub::from_pretrained("weights/faces-glow-small", Revision::default(), &Device::Cpu)?;
//! # let _ = (model, same, local);
//! # Ok::<(), candle_core::Error>(())
//! ```
//!
//! The cache is the Python library's (`$HF_HOME/hub`), so that both find what the other has fetched. A revision is first
//! resolved to its commit, and all files are taken at that commit: nobody sees half of one state and half of another.
//! The branch's name in the cache moves to the commit when everything is there and verified.
//!
//! The client underneath is hf-hub 1.0.0. What it leaves to its caller, or gets wrong, is handled here:
//!
//! | fault | what happens |
//! |---|---|
//! | a 503's body, a short body or a flipped bit is stored as the file and served for ever | each file is hashed against the name of its blob and the listing of its commit, on every call; a wrong one is fetched again by force, three times in all, then removed |
//! | a missing repository, revision and file look the same | the hub is asked which of them is there |
//! | `HF_HUB_OFFLINE` is ignored | then only the cache is looked at |
//! | empty variables, `~` and line ends in tokens are taken literally | variables are read here: `HF_ENDPOINT`, `HF_HUB_CACHE`, `HF_HOME`, `HF_TOKEN`, `HF_TOKEN_PATH`, `HF_HUB_DISABLE_IMPLICIT_TOKEN`, `HF_HUB_OFFLINE` |
//! | no request has a time limit, and dead storage is tried for minutes | [`Settings::patience`] without a byte ends the call |
//! | a second program waits ten seconds for the cache's lock, then fails | pulls of one repository wait for each other |
//! | a retried commit can be made twice; pushes can overwrite each other | a commit names its parent; where the answer got lost, the hub is asked what it has |
//! | large files go inside the commit where the hub offers no xet storage | so they do, a third larger; a hub that does not take them says so, and nothing is published |
//! | folders are uploaded with hidden files and without what is a link | named files only, in one commit |
//! | an existing public repository is taken for the private one that was asked for | it is refused |
//!
//! The hub out of reach is no error where the cache has the revision: it is used, with a warning. Errors are one sentence.

mod call;
mod hash;
mod push;

pub use push::{PushFile, PushOptions, Pushed, plan};

use crate::models::{CONFIG, INDEX, Model, WEIGHTS, write_atomic};
use call::Trouble;
use candle_core::{Device, Error, Result};
use hf_hub::repository::RepoTreeEntry;
use hf_hub::{HFClient, HFClientSync, HFError, HFRepositorySync, RepoTypeDataset, RepoTypeModel};
use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::fs::{self, File, TryLockError};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

/// The model card's name in a model's folder.
pub const CARD: &str = "README.md";

/// How long the hub may stay silent: a call and the question what became of it end within a minute.
const PATIENCE: Duration = Duration::from_secs(25);
/// How often a file is fetched whose content is not what its hash says.
const ATTEMPTS: usize = 3;
/// How often another program's lock is waited for, ten seconds each.
const LOCK_WAITS: usize = 4;

/// Where the hub is, who asks, and where copies are kept.
#[derive(Clone, PartialEq, Eq)]
pub struct Settings {
    /// The hub's address (`HF_ENDPOINT`).
    pub endpoint: String,
    /// The folder of cached repositories (`HF_HUB_CACHE`, else `HF_HOME/hub`).
    pub cache: PathBuf,
    /// The token that requests carry (`HF_TOKEN`, else the file that the Python library's login writes).
    pub token: Option<String>,
    /// Whether only the cache may be used (`HF_HUB_OFFLINE`).
    pub offline: bool,
    /// How long the hub may stay silent before it counts as out of reach.
    pub patience: Duration,
}

impl fmt::Debug for Settings {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Settings")
            .field("endpoint", &self.endpoint)
            .field("cache", &self.cache)
            .field("token", &self.token.as_ref().map(|_| "..."))
            .field("offline", &self.offline)
            .field("patience", &self.patience)
            .finish()
    }
}

/// A variable that says something.
fn variable(name: &str) -> Option<String> {
    std::env::var(name).ok().map(|value| value.trim().to_owned()).filter(|value| !value.is_empty())
}

/// Whether a variable is one of the values that the Python library takes for true.
fn flag(name: &str) -> bool {
    variable(name).is_some_and(|v| matches!(v.to_ascii_uppercase().as_str(), "1" | "ON" | "YES" | "TRUE"))
}

/// A folder from a variable, with the `~` that no shell has replaced.
fn folder(name: &str) -> Option<PathBuf> {
    let value = variable(name)?;
    let home = || std::env::home_dir();
    Some(match value.strip_prefix("~/").and_then(|rest| Some(home()?.join(rest))) {
        Some(path) => path,
        None => PathBuf::from(value),
    })
}

impl Settings {
    /// What the environment says, with the Python library's names and defaults.
    ///
    /// # Errors
    /// When the token cannot be sent: it has a character that no token has.
    pub fn from_env() -> Result<Self> {
        let home = folder("HF_HOME")
            .or_else(|| Some(folder("XDG_CACHE_HOME")?.join("huggingface")))
            .or_else(|| Some(std::env::home_dir()?.join(".cache/huggingface")))
            .unwrap_or_else(|| PathBuf::from(".cache/huggingface"));
        let cache = folder("HF_HUB_CACHE").or_else(|| folder("HUGGINGFACE_HUB_CACHE"));
        let stored = || {
            let file = folder("HF_TOKEN_PATH").unwrap_or_else(|| home.join("token"));
            fs::read_to_string(file).ok().map(|text| text.trim().to_owned()).filter(|text| !text.is_empty())
        };
        let token = match flag("HF_HUB_DISABLE_IMPLICIT_TOKEN") {
            true => None,
            false => variable("HF_TOKEN").or_else(stored),
        };
        if token.as_ref().is_some_and(|token| !token.bytes().all(|b| b.is_ascii_graphic())) {
            return Err(Error::msg("the token (HF_TOKEN) has a character that no token has: copy it again"));
        }
        Ok(Self {
            endpoint: variable("HF_ENDPOINT").unwrap_or_else(|| "https://huggingface.co".to_owned()),
            cache: cache.unwrap_or_else(|| home.join("hub")),
            token,
            offline: flag("HF_HUB_OFFLINE"),
            patience: PATIENCE,
        })
    }
}

/// What a repository holds.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Kind {
    Model,
    Dataset,
}

/// A repository of the hub.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Repository {
    kind: Kind,
    owner: String,
    name: String,
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
        Self::new(Kind::Model, id)
    }

    /// A data set by its `user/name`.
    ///
    /// # Errors
    /// When it is no name of a repository.
    pub fn dataset(id: &str) -> Result<Self> {
        Self::new(Kind::Dataset, id)
    }

    fn new(kind: Kind, id: &str) -> Result<Self> {
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
            _ => Err(Error::msg(format!(
                "`{id}` is no repository's name: it is user/name, of letters, digits, `-`, `_` and `.`"
            ))),
        }
    }

    /// Its folder's name in the cache.
    fn folder(&self) -> String {
        let plural = match self.kind {
            Kind::Model => "models",
            Kind::Dataset => "datasets",
        };
        format!("{plural}--{}--{}", self.owner, self.name)
    }
}

/// Which state of a repository: a branch, a tag or a commit. The default is the branch `main`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Revision(String);

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
        match good {
            true => Ok(Self(name.to_owned())),
            false => Err(Error::msg(format!("`{name}` is no revision: it is a branch, a tag or a commit"))),
        }
    }

    /// Whether it names a commit, which never changes.
    #[must_use]
    pub fn is_commit(&self) -> bool {
        hash::is_hex(&self.0, 40)
    }
}

/// How far a transfer is.
#[derive(Clone, Copy, Debug)]
pub struct Transfer<'a> {
    /// The file, or what the files are together.
    pub what: &'a str,
    /// Bytes so far.
    pub done: u64,
    /// Bytes in all, as far as is known.
    pub total: u64,
}

/// Whoever watches a transfer. Called on the thread that asked for it.
pub trait Observer: Send + Sync {
    /// The transfer has moved on, or has just begun.
    fn progress(&self, transfer: &Transfer<'_>);

    /// Asked several times a second; `true` ends the call with an error.
    fn stopped(&self) -> bool {
        false
    }
}

/// A state of a repository in the cache, whole and verified.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Snapshot {
    /// The folder with its files.
    pub folder: PathBuf,
    /// The commit.
    pub commit: String,
}

/// The hub.
#[derive(Clone)]
pub struct Hub {
    settings: Settings,
    client: HFClientSync,
    observer: Option<Arc<dyn Observer>>,
}

/// A file of a commit, as the hub lists it.
#[derive(Clone, Debug)]
struct Listed {
    name: String,
    bytes: u64,
    /// The hash of its git object: the file itself, or the pointer that stands for a large one.
    object: String,
    large: bool,
}

/// A commit of the hub.
struct Remote {
    commit: String,
    files: Vec<Listed>,
}

impl Remote {
    fn file(&self, name: &str) -> Option<&Listed> {
        self.files.iter().find(|file| file.name == name)
    }
}

/// hf-hub gives each kind of repository a type of its own.
enum Handle {
    Model(HFRepositorySync<RepoTypeModel>),
    Dataset(HFRepositorySync<RepoTypeDataset>),
}

/// The same method of whichever kind of repository it is.
macro_rules! on {
    ($handle:expr, $repository:ident => $call:expr) => {
        match $handle {
            Handle::Model($repository) => $call,
            Handle::Dataset($repository) => $call,
        }
    };
}

impl Hub {
    /// The hub of the environment's variables; see [`Settings::from_env`].
    ///
    /// # Errors
    /// As [`Settings::from_env`] and [`Hub::new`].
    pub fn from_env() -> Result<Self> {
        Self::new(Settings::from_env()?)
    }

    /// The hub of these settings; nothing is sent.
    ///
    /// # Errors
    /// When the endpoint is no address.
    pub fn new(settings: Settings) -> Result<Self> {
        let http = ["http://", "https://"].iter().any(|scheme| settings.endpoint.starts_with(scheme));
        let address =
            || Error::msg(format!("HF_ENDPOINT={} is no http(s) address of a hub", settings.endpoint));
        if !http {
            return Err(address());
        }
        let mut builder = HFClient::builder()
            .endpoint(&settings.endpoint)
            .cache_dir(&settings.cache)
            .user_agent(concat!("flows/", env!("CARGO_PKG_VERSION")))
            .retry_max_attempts(2)
            .retry_base_delay(Duration::from_millis(250));
        // hf-hub looks for a token of its own where it is given none, which then is the one that was found above.
        if let Some(token) = &settings.token {
            builder = builder.token(token);
        }
        let client = builder.build_sync().map_err(|error| match error {
            HFError::Url(_) => address(),
            error => Error::msg(format!(
                "the hub's client cannot be set up ({})",
                call::one_line(&error.to_string())
            )),
        })?;
        Ok(Self { settings, client, observer: None })
    }

    /// The same hub with its transfers watched.
    #[must_use]
    pub fn with_observer(self, observer: Arc<dyn Observer>) -> Self {
        Self { observer: Some(observer), ..self }
    }

    /// The settings.
    #[must_use]
    pub fn settings(&self) -> &Settings {
        &self.settings
    }

    fn handle(&self, repository: &Repository) -> Handle {
        let Repository { kind, owner, name } = repository;
        match kind {
            Kind::Model => Handle::Model(self.client.model(owner, name)),
            Kind::Dataset => Handle::Dataset(self.client.dataset(owner, name)),
        }
    }

    /// The folder with a model's config, weights and card, and those of the files `also` that the repository has; fetched
    /// unless the cache has them.
    ///
    /// # Errors
    /// When the repository, the revision or a file is not there, may not be read, or does not arrive whole.
    pub fn pull(&self, repository: &Repository, revision: &Revision, also: &[&str]) -> Result<Snapshot> {
        self.with_fallback(
            repository,
            revision,
            || {
                let remote = self.remote(repository, revision)?;
                let _lock = self.lock(repository)?;
                // What is least needed comes first: where the weights are, everything is.
                for name in also.iter().chain(&[CARD, INDEX]) {
                    if let Some(file) = remote.file(name) {
                        self.fetch(repository, revision, &remote, file)?;
                    }
                }
                let folder = self.snapshot(repository, &remote.commit);
                let fetch = |name: &str| {
                    let file = remote.file(name).ok_or_else(|| {
                        Trouble::here(format!(
                            "{repository} at {revision} has no {name}: a model is {CONFIG} with {WEIGHTS} or {INDEX} and \
                             its shards"
                        ))
                    })?;
                    self.fetch(repository, revision, &remote, file)
                };
                fetch(CONFIG)?;
                // Gigabytes of another library's weights are not fetched to be refused.
                if !is_config(&folder.join(CONFIG)) {
                    return Err(Trouble::here(format!(
                        "{repository} at {revision} is no model of this library: its {CONFIG} is another's"
                    )));
                }
                for name in weights(&folder).map_err(Trouble::here)? {
                    fetch(&name)?;
                }
                self.remember(repository, revision, &remote.commit);
                Ok(Snapshot { folder, commit: remote.commit })
            },
            || self.cached_model(repository, revision, also),
        )
    }

    /// The folder with these files, all of one commit; fetched unless the cache has them.
    ///
    /// # Errors
    /// As [`Hub::pull`].
    pub fn files(&self, repository: &Repository, revision: &Revision, names: &[&str]) -> Result<Snapshot> {
        self.with_fallback(
            repository,
            revision,
            || {
                let (commit, _) = self.commit(repository, revision)?;
                let _lock = self.lock(repository)?;
                for name in names {
                    // A repository of data may have more files than one wants to list.
                    let remote = self.look(repository, revision, &commit, name)?;
                    let file = remote.file(name).expect("the file that was looked for");
                    self.fetch(repository, revision, &remote, file)?;
                }
                self.remember(repository, revision, &commit);
                Ok(Snapshot { folder: self.snapshot(repository, &commit), commit })
            },
            || self.cached(repository, revision, names),
        )
    }

    /// The folder with these files from the cache, verified, or `None`; the hub is not asked.
    ///
    /// # Errors
    /// When a cached file is not what its hash says.
    pub fn cached(
        &self,
        repository: &Repository,
        revision: &Revision,
        names: &[&str],
    ) -> Result<Option<Snapshot>> {
        let Some(commit) = self.cached_commit(repository, revision) else { return Ok(None) };
        let folder = self.snapshot(repository, &commit);
        if !names.iter().all(|name| folder.join(name).is_file()) {
            return Ok(None);
        }
        for name in names {
            hash::verify(&folder.join(name), None).map_err(|wrong| {
                Error::msg(format!(
                    "{name} of {repository} in the cache is damaged ({wrong}): fetch it again, online"
                ))
            })?;
        }
        Ok(Some(Snapshot { folder, commit }))
    }

    /// As [`Hub::cached`] for whatever a model needs, and those of the other files that are there.
    fn cached_model(
        &self,
        repository: &Repository,
        revision: &Revision,
        also: &[&str],
    ) -> Result<Option<Snapshot>> {
        let Some(commit) = self.cached_commit(repository, revision) else { return Ok(None) };
        let folder = self.snapshot(repository, &commit);
        let Ok(weights) = weights(&folder) else { return Ok(None) };
        let there = also.iter().copied().chain([CARD, INDEX]).filter(|name| folder.join(name).exists());
        let names: Vec<&str> = there.chain([CONFIG]).chain(weights.iter().map(String::as_str)).collect();
        self.cached(repository, revision, &names)
    }

    /// Asks the hub, and the cache where the hub may not or cannot be asked.
    fn with_fallback(
        &self,
        repository: &Repository,
        revision: &Revision,
        ask: impl FnOnce() -> std::result::Result<Snapshot, Trouble>,
        cached: impl FnOnce() -> Result<Option<Snapshot>>,
    ) -> Result<Snapshot> {
        if self.settings.offline {
            return cached()?.ok_or_else(|| {
                Error::msg(format!(
                    "{repository} at {revision} is not in the cache {}, and HF_HUB_OFFLINE forbids to ask the hub",
                    self.settings.cache.display()
                ))
            });
        }
        let trouble = match ask() {
            Ok(snapshot) => return Ok(snapshot),
            Err(trouble) => trouble,
        };
        if trouble.unreachable
            && let Ok(Some(snapshot)) = cached()
        {
            tracing::warn!("{trouble}; {repository} is taken from the cache, commit {}", snapshot.commit);
            return Ok(snapshot);
        }
        Err(Error::msg(trouble))
    }

    /// The commit that a revision is at, and whether the repository is private.
    fn commit(
        &self,
        repository: &Repository,
        revision: &Revision,
    ) -> std::result::Result<(String, bool), Trouble> {
        let (handle, name) = (self.handle(repository), revision.0.clone());
        let asked = self.call("", 0, move |_| match handle {
            Handle::Model(r) => r.info().revision(name).send().map(|info| (info.sha, info.private)),
            Handle::Dataset(r) => r.info().revision(name).send().map(|info| (info.sha, info.private)),
        });
        let (commit, private) = asked.map_err(|fault| self.trouble(fault, repository, revision, None))?;
        match commit.filter(|commit| hash::is_hex(commit, 40)) {
            Some(commit) => Ok((commit, private.unwrap_or(false))),
            None => Err(self.no_hub("it names no commit")),
        }
    }

    /// A commit with its files.
    fn remote(&self, repository: &Repository, revision: &Revision) -> std::result::Result<Remote, Trouble> {
        let (commit, _) = self.commit(repository, revision)?;
        let (handle, at) = (self.handle(repository), commit.clone());
        let asked = self.call("", 0, move |_| on!(handle, r => r.list_tree().revision(at).send()));
        let entries = asked.map_err(|fault| self.trouble(fault, repository, revision, None))?;
        Ok(Remote { commit, files: entries.into_iter().filter_map(listed).collect() })
    }

    /// A commit with this file.
    fn look(
        &self,
        repository: &Repository,
        revision: &Revision,
        commit: &str,
        name: &str,
    ) -> std::result::Result<Remote, Trouble> {
        let (handle, at, paths) = (self.handle(repository), commit.to_owned(), vec![name.to_owned()]);
        let asked =
            self.call("", 0, move |_| on!(handle, r => r.get_paths_info().paths(paths).revision(at).send()));
        let entries = asked.map_err(|fault| self.trouble(fault, repository, revision, None))?;
        let remote =
            Remote { commit: commit.to_owned(), files: entries.into_iter().filter_map(listed).collect() };
        match remote.file(name) {
            Some(_) => Ok(remote),
            None => Err(Trouble::here(format!("{repository} at {revision} has no file {name}"))),
        }
    }

    /// Brings one file of a commit into the cache and makes sure that it is whole.
    fn fetch(
        &self,
        repository: &Repository,
        revision: &Revision,
        remote: &Remote,
        file: &Listed,
    ) -> std::result::Result<(), Trouble> {
        let path = self.snapshot(repository, &remote.commit).join(&file.name);
        let (mut attempt, mut waits) = (0, 0);
        loop {
            let handle = self.handle(repository);
            let (name, at, force) = (file.name.clone(), remote.commit.clone(), attempt > 0);
            let got = self.call(&file.name, file.bytes, move |progress| {
                on!(handle, r => {
                    r.download_file().filename(name).revision(at).force_download(force).progress(progress).send()
                })
            });
            let wrong = match got {
                Ok(_) => match hash::verify(&path, Some(file)) {
                    Ok(()) => return Ok(()),
                    Err(wrong) => wrong,
                },
                Err(fault) if fault.is_lock() && waits < LOCK_WAITS => {
                    waits += 1;
                    tracing::info!("another program is fetching {}: waiting for it", file.name);
                    continue;
                }
                Err(fault) if fault.is_body() => "the connection broke off".to_owned(),
                Err(fault) => return Err(self.trouble(fault, repository, revision, Some(&file.name))),
            };
            attempt += 1;
            tracing::warn!("{} of {repository} is damaged ({wrong})", file.name);
            if attempt == ATTEMPTS {
                // Neither we nor another program is to find it.
                let blob = path.canonicalize();
                fs::remove_file(&path).ok();
                if let Ok(blob) = blob.as_deref()
                    && blob.parent().is_some_and(|folder| folder.ends_with("blobs"))
                {
                    fs::remove_file(blob).ok();
                }
                return Err(Trouble::here(format!(
                    "{} of {repository} did not arrive whole in {ATTEMPTS} attempts ({wrong}): try again later",
                    file.name
                )));
            }
        }
    }

    fn repository_folder(&self, repository: &Repository) -> PathBuf {
        self.settings.cache.join(repository.folder())
    }

    fn snapshot(&self, repository: &Repository, commit: &str) -> PathBuf {
        self.repository_folder(repository).join("snapshots").join(commit)
    }

    /// The commit that the cache knows for a revision.
    fn cached_commit(&self, repository: &Repository, revision: &Revision) -> Option<String> {
        if revision.is_commit() {
            return Some(revision.0.clone());
        }
        let path = self.repository_folder(repository).join("refs").join(&revision.0);
        let commit = fs::read_to_string(path).ok()?.trim().to_owned();
        hash::is_hex(&commit, 40).then_some(commit)
    }

    /// Has the cache know the commit of a revision, for when the hub cannot be asked.
    fn remember(&self, repository: &Repository, revision: &Revision, commit: &str) {
        if revision.is_commit() || self.cached_commit(repository, revision).as_deref() == Some(commit) {
            return;
        }
        let path = self.repository_folder(repository).join("refs").join(&revision.0);
        let made = path.parent().map_or(Ok(()), fs::create_dir_all).map_err(Error::wrap);
        if let Err(error) = made.and_then(|()| write_atomic(&path, commit.as_bytes())) {
            // A branch `a` beside a branch `a/b`, say: no reason not to use what is here now.
            tracing::warn!("the cache will not know {repository} at {revision} offline: {error}");
        }
    }

    /// Holds a repository's part of the cache against other programs of this library.
    fn lock(&self, repository: &Repository) -> std::result::Result<Option<File>, Trouble> {
        let folder = self.settings.cache.join(".locks").join(repository.folder());
        let open = || {
            fs::create_dir_all(&folder)?;
            File::create(folder.join("flows.lock"))
        };
        let file = open().map_err(|error| self.no_cache(&error.to_string()))?;
        let mut told = false;
        loop {
            match file.try_lock() {
                Ok(()) => return Ok(Some(file)),
                Err(TryLockError::WouldBlock) => {}
                // Some network file systems have no locks.
                Err(TryLockError::Error(_)) => return Ok(None),
            }
            if !told {
                tracing::info!("another program is pulling {repository}: waiting for it");
                told = true;
            }
            self.go_on()?;
            std::thread::sleep(Duration::from_millis(50));
        }
    }
}

/// The files of a folder's weights: those that its index of shards names, or the one file where there is no index.
///
/// # Errors
/// What is wrong with the index, for people.
fn weights(folder: &Path) -> std::result::Result<Vec<String>, String> {
    #[derive(serde::Deserialize)]
    struct Shards {
        weight_map: BTreeMap<String, String>,
    }
    let index = folder.join(INDEX);
    if !index.is_file() {
        return Ok(vec![WEIGHTS.to_owned()]);
    }
    let damaged = |what: &str| format!("{} is no index of shards ({what})", index.display());
    let text = fs::read(&index).map_err(|error| damaged(&error.to_string()))?;
    let shards: Shards = serde_json::from_slice(&text).map_err(|error| damaged(&error.to_string()))?;
    let names: BTreeSet<String> = shards.weight_map.into_values().collect();
    match names.iter().find(|name| !is_weights(name)) {
        Some(name) => Err(damaged(&format!("`{}` is no shard's name", call::one_line(name)))),
        None if names.is_empty() => Err(damaged("it names none")),
        None => Ok(names.into_iter().collect()),
    }
}

/// Whether a file has the outline of a config that this library has written, in whatever version.
fn is_config(path: &Path) -> bool {
    let file = fs::read(path).ok().and_then(|text| serde_json::from_slice::<serde_json::Value>(&text).ok());
    file.is_some_and(|file| file["format"].is_u64() && file["config"].is_object())
}

/// Whether a file's name is that of a model's weights, or of a shard of them.
fn is_weights(name: &str) -> bool {
    let number = |digits: &str| digits.len() == 5 && digits.bytes().all(|b| b.is_ascii_digit());
    let shard = name.strip_prefix("model-").and_then(|name| name.strip_suffix(".safetensors"));
    name == WEIGHTS || shard.and_then(|s| s.split_once("-of-")).is_some_and(|(i, n)| number(i) && number(n))
}

/// An entry of a listing, if it is a file.
fn listed(entry: RepoTreeEntry) -> Option<Listed> {
    match entry {
        RepoTreeEntry::File { oid, size, path, lfs, .. } => {
            Some(Listed { name: path, bytes: size, object: oid, large: lfs.is_some() })
        }
        RepoTreeEntry::Directory { .. } => None,
    }
}

/// A ready model on `device`: from a folder, if `source` is one, else from the repository `user/name` of the hub.
///
/// # Errors
/// As [`Hub::pull`] and [`Model::load`].
pub fn from_pretrained(source: &str, revision: Revision, device: &Device) -> Result<Model> {
    Model::load(pull(source, revision)?, device)
}

/// The folder of a model: `source` itself, if it is one, else that of the repository `user/name` in the hub's cache.
///
/// # Errors
/// As [`Hub::pull`].
pub fn pull(source: &str, revision: Revision) -> Result<PathBuf> {
    let folder = Path::new(source);
    if folder.is_dir() {
        if revision != Revision::default() {
            let m = format!("{source} is a folder, which has no revision {revision}: leave it out");
            return Err(Error::msg(m));
        }
        return Ok(folder.to_owned());
    }
    let repository = Repository::model(source).map_err(|_| {
        Error::msg(format!("`{source}` is neither a folder nor a repository of the hub, which is user/name"))
    })?;
    Ok(Hub::from_env()?.pull(&repository, &revision, &[])?.folder)
}

/// Publishes the model of the folder `dir` as the repository `user/name`; see [`Hub::push`].
///
/// # Errors
/// As [`Hub::push`].
pub fn push(dir: impl AsRef<Path>, repository: &str, options: &PushOptions) -> Result<Pushed> {
    Hub::from_env()?.push(dir.as_ref(), &Repository::model(repository)?, options)
}
