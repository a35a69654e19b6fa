//! Fetching files of one commit into the cache.

use super::call::{Reply, Trouble};
use super::client::Hub;
use super::files::{self, CARD, is_config, weights};
use super::hash::{is_hex, verify};
use super::repository::{Repository, Revision};
use super::types::{Listed, Remote, Snapshot};
use crate::models::Model;
use crate::storage::{CONFIG, INDEX, WEIGHTS, write_atomic};
use candle_core::{Device, Error, Result, bail};
use hf_hub::RepoTypeAny;
use std::fs::{self, File, TryLockError};
use std::path::{Path, PathBuf};
use std::time::Duration;

/// Attempts to fetch a file whose content does not match its hash.
const ATTEMPTS: usize = 3;
/// Waits for another program's lock, of ten seconds each.
const LOCK_WAITS: usize = 4;

impl Hub {
    /// The folder with a model's config, weights and card, and those of the files `also` that the repository has; fetched
    /// unless the cache has them.
    ///
    /// # Errors
    /// When the repository, the revision or a file does not exist, may not be read, or arrives damaged.
    pub fn pull(&self, repository: &Repository, revision: &Revision, also: &[&str]) -> Result<Snapshot> {
        self.with_fallback(
            repository,
            revision,
            || {
                let remote = self.remote(repository, revision)?;
                let _lock = self.lock(repository)?;
                // The weights come last: where the cache has them, it has the other files, too.
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
                // Checked before the weights are fetched: those of another library may have gigabytes.
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
                    // One file is looked up at a time: a data set may have too many to list.
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
            if let Err(wrong) = verify(&folder.join(name), None) {
                bail!("{name} of {repository} in the cache is damaged ({wrong}): fetch it again, online");
            }
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

    /// What `ask` gets from the hub, or `cached` where the settings forbid requests or the hub cannot be reached.
    fn with_fallback(
        &self,
        repository: &Repository,
        revision: &Revision,
        ask: impl FnOnce() -> Reply<Snapshot>,
        cached: impl FnOnce() -> Result<Option<Snapshot>>,
    ) -> Result<Snapshot> {
        if self.settings.offline {
            let Some(snapshot) = cached()? else {
                let cache = self.settings.cache.display();
                bail!(
                    "{repository} at {revision} is not in the cache {cache}, and HF_HUB_OFFLINE forbids to ask the hub"
                );
            };
            return Ok(snapshot);
        }
        let asked = ask();
        if let Err(trouble) = &asked
            && trouble.unreachable
            && let Ok(Some(snapshot)) = cached()
        {
            tracing::warn!("{trouble}; {repository} is taken from the cache, commit {}", snapshot.commit);
            return Ok(snapshot);
        }
        Ok(asked?)
    }

    /// The commit that a revision is at, and whether the repository is private.
    pub(super) fn commit(&self, repository: &Repository, revision: &Revision) -> Reply<(String, bool)> {
        let Repository { kind, owner, name } = repository.clone();
        let (client, at) = (self.client.clone(), revision.0.clone());
        // hf-hub has this request for each kind of repository by itself.
        let (commit, private) = self.ask(repository, revision, move || match kind {
            RepoTypeAny::Dataset => {
                client.dataset(owner, name).info().revision(at).send().map(|info| (info.sha, info.private))
            }
            _ => client.model(owner, name).info().revision(at).send().map(|info| (info.sha, info.private)),
        })?;
        match commit.filter(|commit| is_hex(commit, 40)) {
            Some(commit) => Ok((commit, private.unwrap_or(false))),
            None => Err(self.no_hub("it names no commit")),
        }
    }

    /// A commit with its files.
    pub(super) fn remote(&self, repository: &Repository, revision: &Revision) -> Reply<Remote> {
        let (commit, _) = self.commit(repository, revision)?;
        let (handle, at) = (self.handle(repository), commit.clone());
        let list = move || handle.list_tree().revision(at).send();
        Ok(Remote::new(commit, self.ask(repository, revision, list)?))
    }

    /// A commit with this file.
    fn look(&self, repository: &Repository, revision: &Revision, commit: &str, name: &str) -> Reply<Remote> {
        let (handle, at, paths) = (self.handle(repository), commit.to_owned(), vec![name.to_owned()]);
        let list = move || handle.get_paths_info().paths(paths).revision(at).send();
        let remote = Remote::new(commit.to_owned(), self.ask(repository, revision, list)?);
        match remote.file(name) {
            Some(_) => Ok(remote),
            None => Err(Trouble::here(format!("{repository} at {revision} has no file {name}"))),
        }
    }

    /// Downloads one file of a commit into the cache and verifies it.
    fn fetch(
        &self,
        repository: &Repository,
        revision: &Revision,
        remote: &Remote,
        file: &Listed,
    ) -> Reply<()> {
        let path = self.snapshot(repository, &remote.commit).join(&file.name);
        let (mut attempt, mut waits) = (0, 0);
        loop {
            let handle = self.handle(repository);
            let (name, at, force) = (file.name.clone(), remote.commit.clone(), attempt > 0);
            let got = self.call(&file.name, file.bytes, move |progress| {
                let file = handle.download_file().filename(name).revision(at);
                file.force_download(force).progress(progress).send()
            });
            let wrong = match got {
                Ok(_) => match verify(&path, Some(file)) {
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
                // A later call or another program must not use the damaged file.
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
        files::line(&path).filter(|commit| is_hex(commit, 40))
    }

    /// Records the commit of a revision in the cache, for use offline.
    fn remember(&self, repository: &Repository, revision: &Revision, commit: &str) {
        if revision.is_commit() || self.cached_commit(repository, revision).as_deref() == Some(commit) {
            return;
        }
        let path = self.repository_folder(repository).join("refs").join(&revision.0);
        let made = path.parent().map_or(Ok(()), fs::create_dir_all).map_err(Error::wrap);
        if let Err(error) = made.and_then(|()| write_atomic(&path, commit.as_bytes())) {
            // It fails for a branch `a` beside a branch `a/b`, for example; the files themselves can be used.
            tracing::warn!("the cache will not know {repository} at {revision} offline: {error}");
        }
    }

    /// Locks a repository's part of the cache against other programs that use this library.
    fn lock(&self, repository: &Repository) -> Reply<Option<File>> {
        let folder = self.settings.cache.join(".locks").join(repository.folder());
        let open = || {
            fs::create_dir_all(&folder)?;
            File::create(folder.join("flows.lock"))
        };
        let file = open().map_err(|error| self.no_cache(&error.to_string()))?;
        let mut logged = false;
        loop {
            match file.try_lock() {
                Ok(()) => return Ok(Some(file)),
                Err(TryLockError::WouldBlock) => {}
                // Some network file systems have no locks.
                Err(TryLockError::Error(_)) => return Ok(None),
            }
            if !logged {
                tracing::info!("another program is pulling {repository}: waiting for it");
                logged = true;
            }
            self.check_stopped()?;
            std::thread::sleep(Duration::from_millis(50));
        }
    }
}

/// A model on `device`: from a folder, if `source` is one, else from the repository `user/name` of the hub.
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
            bail!("{source} is a folder, which has no revision {revision}: leave it out");
        }
        return Ok(folder.to_owned());
    }
    let repository = Repository::model(source).map_err(|_| {
        Error::msg(format!("`{source}` is neither a folder nor a repository of the hub, which is user/name"))
    })?;
    Ok(Hub::from_env()?.pull(&repository, &revision, &[])?.folder)
}
