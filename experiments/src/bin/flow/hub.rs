//! Models of the Hugging Face hub as arguments: `hf:user/name@revision` wherever a command takes weights.

use crate::progress;
use anyhow::{Result, ensure};
use experiments::data::hub::sentence;
use experiments::run_dir::COMPANIONS;
use flows::hub::{Hub, Repository, Revision, Snapshot};
use std::path::PathBuf;
use std::str::FromStr;
use std::sync::Arc;

/// The prefix that tells the hub from a folder.
const PREFIX: &str = "hf:";

/// The hub of the environment's variables, with its transfers shown.
///
/// # Errors
/// When a variable is wrong.
pub fn hub() -> Result<Hub> {
    Ok(Hub::from_env().map_err(why)?.with_observer(Arc::new(progress::Transfers::default())))
}

/// Why a transfer failed: the library's sentence, without the backtrace that candle may put under it.
pub fn why(error: candle_core::Error) -> anyhow::Error {
    if progress::stopped() {
        return progress::Stopped.into();
    }
    sentence(error)
}

/// A model of the hub, in one of its states: `hf:user/name@revision`, or without the prefix where nothing else can be meant.
#[derive(Clone, Debug)]
pub struct Address {
    /// The repository.
    pub repository: Repository,
    /// The branch, tag or commit.
    pub revision: Revision,
}

impl FromStr for Address {
    type Err = anyhow::Error;

    fn from_str(text: &str) -> Result<Self> {
        let rest = text.strip_prefix(PREFIX).unwrap_or(text);
        let (id, revision) = match rest.split_once('@') {
            Some((id, revision)) => (id, Revision::new(revision).map_err(why)?),
            None => (rest, Revision::default()),
        };
        Ok(Self { repository: Repository::model(id).map_err(why)?, revision })
    }
}

impl Address {
    /// Fetches the model into the hub's cache.
    ///
    /// # Errors
    /// When the hub does not have it or cannot be reached.
    pub fn pull(&self) -> Result<Snapshot> {
        let snapshot = hub()?.pull(&self.repository, &self.revision, &COMPANIONS).map_err(why)?;
        tracing::info!("{PREFIX}{}@{} is commit {}", self.repository, self.revision, snapshot.commit);
        Ok(snapshot)
    }
}

/// Saved weights: a folder, or a model of the hub.
#[derive(Clone, Debug)]
pub struct Weights {
    /// As it was typed.
    text: String,
    address: Option<Address>,
}

impl std::fmt::Display for Weights {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(&self.text)
    }
}

impl FromStr for Weights {
    type Err = anyhow::Error;

    fn from_str(text: &str) -> Result<Self> {
        ensure!(
            !text.is_empty(),
            "no weights are named: give a folder, or {PREFIX}USER/NAME for a model of the hub"
        );
        let address = text.starts_with(PREFIX).then(|| text.parse()).transpose()?;
        Ok(Self { text: text.to_owned(), address })
    }
}

impl Weights {
    /// Whether they are a model of the hub.
    pub fn is_of_the_hub(&self) -> bool {
        self.address.is_some()
    }

    /// The folder they are in and, for those of the hub, which are fetched from there, the commit.
    ///
    /// # Errors
    /// When the hub does not have them or cannot be reached.
    pub fn locate(&self) -> Result<(PathBuf, Option<String>)> {
        match &self.address {
            Some(address) => address.pull().map(|snapshot| (snapshot.folder, Some(snapshot.commit))),
            None => {
                let folder = PathBuf::from(&self.text);
                ensure!(
                    folder.exists() || self.text.parse::<Address>().is_err(),
                    "there is no folder {}: a model of the Hugging Face hub is {PREFIX}{0}",
                    self.text
                );
                ensure!(!folder.is_file(), "{} is a file: name the folder that holds the model", self.text);
                Ok((folder, None))
            }
        }
    }
}

/// The name that clap shows for [`Weights`].
pub const WEIGHTS: &str = "DIR|hf:USER/NAME[@REVISION]";

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn addresses() {
        let address: Address = "hf:user/name@v1.0".parse().unwrap();
        assert_eq!(
            (address.repository.to_string(), address.revision.to_string()),
            ("user/name".into(), "v1.0".into())
        );
        let address: Address = "user/name".parse().unwrap();
        assert_eq!(address.revision, Revision::default());
        for wrong in
            ["hf:name", "hf:a/b/c", "hf:a/../b", "hf:user/name@", "hf:user/name@../x", "hf:user/na me"]
        {
            assert!(wrong.parse::<Weights>().is_err(), "{wrong}");
        }
        // Without the prefix it is a folder, whatever it looks like.
        assert!("user/name".parse::<Weights>().unwrap().address.is_none());
    }
}
