//! Publishing a folder in one commit.

use super::call::{Fault, Reply, Trouble};
use super::client::Hub;
use super::files::{CARD, weights};
use super::hash::Hashes;
use super::repository::{Repository, Revision};
use super::types::Remote;
use crate::storage::{CONFIG, INDEX, is_weights};
use candle_core::{Error, Result, bail};
use hf_hub::repository::{AddSource, CommitOperation};
use std::path::{Path, PathBuf};

/// How a model is published.
#[derive(Clone, Debug, Default)]
pub struct PushOptions {
    /// Create a private repository. An existing one must be private already.
    pub private: bool,
    /// The branch; it is created from `main` if it does not exist.
    pub revision: Revision,
    /// A tag for the new commit.
    pub tag: Option<Revision>,
    /// The commit message; by default it names the version of the library.
    pub message: Option<String>,
    /// Files to publish beside config, weights and card, where the folder has them.
    pub also: Vec<String>,
    /// Names and texts of files to publish beside those of the folder, or in their place: a card may name its repository, and
    /// the folder is not changed by being published.
    pub texts: Vec<(String, String)>,
}

/// A file that is to be published.
#[derive(Clone, Debug)]
pub struct PushFile {
    /// Its name, here and in the repository.
    pub name: String,
    content: Content,
    hashes: Hashes,
}

/// Where a file's bytes are.
#[derive(Clone, Debug)]
enum Content {
    File(PathBuf),
    Text(String),
}

impl PushFile {
    /// Its length.
    pub fn bytes(&self) -> u64 {
        self.hashes.bytes
    }

    /// The SHA-256 of its content.
    pub fn sha256(&self) -> &str {
        &self.hashes.sha256
    }
}

/// What was published.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Pushed {
    /// The repository's address.
    pub url: String,
    /// The commit that has the files.
    pub commit: String,
    /// How many files were new or changed; with none and nothing to remove, no commit was made.
    pub uploaded: usize,
}

/// The files of a model's folder that would be published, with their hashes: config.json, the weights (with their index, where
/// they are sharded), README.md, those of `also` that are there, and `texts`, each in the place of the folder's file of its name. Nothing else,
/// whatever the folder holds.
///
/// # Errors
/// When the folder holds no model, or a file cannot be read.
pub fn plan(dir: &Path, also: &[String], texts: &[(String, String)]) -> Result<Vec<PushFile>> {
    let written = texts.iter().map(|(name, _)| name);
    if let Some(name) = also
        .iter()
        .chain(written)
        .find(|name| name.starts_with('.') || Path::new(name).components().count() != 1)
    {
        bail!("`{name}` is no file that is published: name files of the folder itself, none of them hidden");
    }
    let mut names = vec![CONFIG.to_owned()];
    names.extend(weights(dir).map_err(Error::msg)?);
    let optional = [INDEX, CARD].into_iter().chain(also.iter().map(String::as_str));
    let mut found: Vec<String> = optional.filter(|name| dir.join(name).exists()).map(str::to_owned).collect();
    names.append(&mut found);
    names.extend(texts.iter().map(|(name, _)| name.clone()));
    names.sort();
    names.dedup();
    let file = |name: String| {
        let path = dir.join(&name);
        let (hashes, content) = match texts.iter().find(|(written, _)| *written == name) {
            Some((_, text)) => {
                (Hashes::read(text.as_bytes(), text.len() as u64), Content::Text(text.to_owned()))
            }
            None => (Hashes::of(&path), Content::File(path.clone())),
        };
        match hashes {
            Ok(hashes) => Ok(PushFile { name, content, hashes }),
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => {
                Err(Error::msg(format!("{} holds no model to publish: there is no {name}", dir.display())))
            }
            Err(error) => Err(Error::msg(format!(
                "{} cannot be read ({error}): restore it, or move it away",
                path.display()
            ))),
        }
    };
    names.into_iter().map(file).collect()
}

impl Hub {
    /// Publishes the model of the folder `dir`: creates the repository if it does not exist, and gives its branch the files of
    /// [`plan`] in one commit, so that the branch never has a part of them. Older weights of other names go in the same commit.
    /// Files that the branch has already are not sent again; pushing the same again changes nothing.
    ///
    /// # Errors
    /// Without a token, when it may not write, when the hub cannot be reached, and when the branch is changed meanwhile. Nothing
    /// is published then, except where the message says so.
    pub fn push(&self, dir: &Path, repository: &Repository, options: &PushOptions) -> Result<Pushed> {
        let files = plan(dir, &options.also, &options.texts)?;
        if self.settings.offline {
            bail!("HF_HUB_OFFLINE forbids to push: unset it");
        }
        if self.settings.token.is_none() {
            let endpoint = &self.settings.endpoint;
            bail!(
                "to push takes a token: set HF_TOKEN to one that may write, made at {endpoint}/settings/tokens"
            );
        }
        if options.revision.is_commit() {
            bail!("{} is a commit: push to a branch", options.revision);
        }
        self.create(repository, options)?;
        let remote = self.remote(repository, &options.revision)?;
        let (changes, uploaded) = changes(&files, &remote);
        let commit = match changes.is_empty() {
            true => remote.commit,
            false => self.commit_files(repository, options, &files, changes, &remote.commit)?,
        };
        let published = |trouble: Trouble| {
            Error::msg(format!("{repository} is published as commit {commit}, but {trouble}"))
        };
        if let Some(tag) = &options.tag {
            self.tag(repository, tag, &commit).map_err(published)?;
        }
        Ok(Pushed {
            url: format!("{}/{repository}", self.settings.endpoint.trim_end_matches('/')),
            commit,
            uploaded,
        })
    }

    /// Creates the repository and its branch, unless they exist.
    fn create(&self, repository: &Repository, options: &PushOptions) -> Reply<()> {
        let main = Revision::default();
        let (client, id, kind) = (self.client.clone(), repository.to_string(), repository.kind);
        let private = options.private;
        self.ask(repository, &main, move || {
            let new = client.create_repository().repo_id(&id).repo_type(kind).private(private);
            new.exist_ok(true).send().map(|_| ())
        })?;
        let (_, private) = self.commit(repository, &main)?;
        if options.private && !private {
            return Err(Trouble::here(format!(
                "{repository} is there already, for everybody to see: make it private in its settings, or leave out the \
                 wish for a private one"
            )));
        }
        if options.revision == main {
            return Ok(());
        }
        let handle = self.handle(repository);
        let branch = options.revision.to_string();
        let made = self.call("", 0, move |_| match handle.revision_exists().revision(&branch).send()? {
            true => Ok(()),
            false => handle.create_branch().branch(&branch).send(),
        });
        match made {
            // It was created in the meantime.
            Err(fault) if fault.is_conflict() => Ok(()),
            made => made.map_err(|fault| self.trouble(fault, repository, &options.revision, None)),
        }
    }

    /// Commits the changes onto `parent`, checks that the branch then has `files`, and returns its commit.
    fn commit_files(
        &self,
        repository: &Repository,
        options: &PushOptions,
        files: &[PushFile],
        changes: Vec<CommitOperation>,
        parent: &str,
    ) -> Reply<String> {
        let handle = self.handle(repository);
        let bytes = files.iter().map(PushFile::bytes).sum();
        let (branch, parent) = (options.revision.to_string(), parent.to_owned());
        let default = concat!("Model saved with flows ", env!("CARGO_PKG_VERSION"));
        let message = options.message.clone().unwrap_or_else(|| default.to_owned());
        let made = self.call(&repository.to_string(), bytes, move |progress| {
            let commit = handle.create_commit().operations(changes).commit_message(message).revision(branch);
            // On another parent than the one that was compared with, the hub refuses.
            commit.parent_commit(parent).progress(progress).send()
        });
        // The commit has these files, and no others that would be loaded in their place.
        let has_all = |remote: &Remote| self::changes(files, remote).0.is_empty();
        // The answer may have been lost, and the client then asked again: the branch says what is so.
        let failed = match made {
            Err(fault) if !fault.is_ambiguous() => {
                return Err(self.trouble(fault, repository, &options.revision, None));
            }
            made => made.err().map(|fault| self.trouble(fault, repository, &options.revision, None)),
        };
        match (failed, self.remote(repository, &options.revision)) {
            (_, Ok(remote)) if has_all(&remote) => Ok(remote.commit),
            (Some(why), Ok(_)) => Err(Trouble::here(format!("{why}; nothing was published"))),
            (Some(why), Err(_)) => {
                Err(Trouble::here(format!("{why}; all or nothing was published, and to push again is safe")))
            }
            (None, Ok(_)) => Err(Trouble::here(format!(
                "{repository} at {} is not what was pushed: the folder or the branch was changed meanwhile, push again",
                options.revision
            ))),
            (None, Err(trouble)) => Err(trouble),
        }
    }

    /// Tags a commit.
    fn tag(&self, repository: &Repository, tag: &Revision, commit: &str) -> Reply<()> {
        let handle = self.handle(repository);
        let (name, at) = (tag.to_string(), commit.to_owned());
        let made = self.call("", 0, move |_| handle.create_tag().tag(&name).revision(&at).send());
        let Err(fault) = made else { return Ok(()) };
        if !fault.is_conflict() && !matches!(fault, Fault::Silent | Fault::Ended) {
            return Err(self.trouble(fault, repository, tag, None));
        }
        match self.commit(repository, tag)? {
            (there, _) if there == commit => Ok(()),
            (there, _) => {
                Err(Trouble::here(format!("its tag {tag} is at commit {there}: choose another name")))
            }
        }
    }
}

/// The operations that give the commit these files, and how many files they upload.
fn changes(files: &[PushFile], remote: &Remote) -> (Vec<CommitOperation>, usize) {
    let changed =
        files.iter().filter(|file| !remote.file(&file.name).is_some_and(|there| file.hashes.are(there)));
    let mut changes: Vec<CommitOperation> = changed
        .map(|file| CommitOperation::Add {
            path_in_repo: file.name.clone(),
            source: match &file.content {
                Content::File(path) => AddSource::File(path.clone()),
                Content::Text(text) => AddSource::Bytes(text.clone().into_bytes().into()),
            },
        })
        .collect();
    let uploaded = changes.len();
    // The index of an older, sharded save would be read instead of a single file; shards that no index names only take space.
    let old = remote.files.iter().filter(|there| is_weights(&there.name) || there.name == INDEX);
    let old = old.filter(|there| !files.iter().any(|file| file.name == there.name));
    changes.extend(old.map(|there| CommitOperation::delete(&there.name)));
    (changes, uploaded)
}

/// Publishes the model of the folder `dir` as the repository `user/name`; see [`Hub::push`].
///
/// # Errors
/// As [`Hub::push`].
pub fn push(dir: impl AsRef<Path>, repository: &str, options: &PushOptions) -> Result<Pushed> {
    Hub::from_env()?.push(dir.as_ref(), &Repository::model(repository)?, options)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::hub::types::Listed;

    fn folder(names: &[&str]) -> tempfile::TempDir {
        let dir = tempfile::tempdir().unwrap();
        for name in names {
            std::fs::write(dir.path().join(name), name).unwrap();
        }
        dir
    }

    fn names(dir: &Path, also: &[&str]) -> Result<Vec<String>> {
        let also: Vec<String> = also.iter().map(|&name| name.to_owned()).collect();
        Ok(plan(dir, &also, &[])?.into_iter().map(|file| file.name).collect())
    }

    #[test]
    fn only_named_files_are_published() {
        let dir = folder(&[
            "config.json",
            "model.safetensors",
            "README.md",
            ".env",
            "checkpoint.safetensors",
            "model-00001-of-00002.safetensors",
            "summary.json",
            "notes.txt",
        ]);
        let all = ["README.md", "config.json", "model.safetensors", "summary.json"];
        assert_eq!(names(dir.path(), &["summary.json", "curve.png"]).unwrap(), all);
        for wrong in ["../secret", ".env", "a/b", "", ".."] {
            let error = names(dir.path(), &[wrong]).unwrap_err().to_string();
            assert!(error.contains("is no file that is published"), "{wrong}: {error}");
        }
        // Shards are those that the index names.
        let index = r#"{"metadata": {}, "weight_map": {"a": "model-00001-of-00002.safetensors"}}"#;
        std::fs::write(dir.path().join(INDEX), index).unwrap();
        let all =
            ["README.md", "config.json", "model-00001-of-00002.safetensors", "model.safetensors.index.json"];
        assert_eq!(names(dir.path(), &[]).unwrap(), all);
        std::fs::write(dir.path().join(INDEX), r#"{"weight_map": {"a": "../.env"}}"#).unwrap();
        assert!(names(dir.path(), &[]).unwrap_err().to_string().contains("is no shard's name"));
        // A card of one's own takes the place of the folder's.
        let bare = folder(&["config.json", "model.safetensors"]);
        let files = plan(bare.path(), &[], &[(CARD.to_owned(), "# A card\n".to_owned())]).unwrap();
        let card = files.iter().find(|file| file.name == CARD).unwrap();
        // `printf '# A card\n' | sha256sum`
        assert_eq!((files.len(), card.bytes()), (3, 9));
        assert_eq!(card.sha256(), "74bd8373ad79f60edcfc79e9ad1b3caf37fb926aef724e34e0490a3dcdbddd98");
        assert!(!bare.path().join(CARD).exists());
        let empty = folder(&["config.json"]);
        assert!(names(empty.path(), &[]).unwrap_err().to_string().contains("there is no model.safetensors"));
    }

    #[test]
    fn a_commit_has_what_changed_and_drops_older_weights() {
        let dir = folder(&["config.json", "model.safetensors"]);
        let files = plan(dir.path(), &[], &[]).unwrap();
        let listed = |name: &str, object: &str| Listed {
            name: name.to_owned(),
            bytes: name.len() as u64,
            object: object.to_owned(),
            large: false,
        };
        // `printf config.json | git hash-object --stdin`
        let same = listed("config.json", "0cffcb348ff9cec9cd41492a9e5c5a41d86ce96e");
        let mut there = vec![same, listed(INDEX, "1"), listed("model-00001-of-00002.safetensors", "2")];
        there.push(listed("notes.txt", "3"));
        let remote = |files| Remote { commit: String::new(), files };
        let (changes, uploaded) = changes(&files, &remote(there));
        let adds: Vec<&str> = changes
            .iter()
            .filter_map(|c| match c {
                CommitOperation::Add { path_in_repo, .. } => Some(path_in_repo.as_str()),
                CommitOperation::Delete { .. } => None,
            })
            .collect();
        assert_eq!((adds, uploaded, changes.len()), (vec!["model.safetensors"], 1, 3));
    }
}
