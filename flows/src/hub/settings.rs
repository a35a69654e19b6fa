//! The settings of a hub client: address, token, cache, timeout.

use super::files::{line, read};
use candle_core::{Result, bail};
use std::fmt;
use std::io::ErrorKind;
use std::path::PathBuf;
use std::time::Duration;

/// The default of [`Settings::patience`]: a call and the request that checks its outcome end within a minute.
const PATIENCE: Duration = Duration::from_secs(25);

/// The settings of a hub client.
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
    /// The timeout: how long the hub may send nothing before it counts as out of reach.
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

/// An environment variable, unless it is empty.
fn variable(name: &str) -> Option<String> {
    std::env::var(name).ok().map(|value| value.trim().to_owned()).filter(|value| !value.is_empty())
}

/// Whether a variable is one of the values that the Python library takes for true.
fn flag(name: &str) -> bool {
    variable(name).is_some_and(|v| matches!(v.to_ascii_uppercase().as_str(), "1" | "ON" | "YES" | "TRUE"))
}

/// A folder from an environment variable; `~/` at its start is the home folder.
fn folder(name: &str) -> Option<PathBuf> {
    let value = variable(name)?;
    let in_home = value.strip_prefix("~/").and_then(|rest| Some(std::env::home_dir()?.join(rest)));
    Some(in_home.unwrap_or_else(|| PathBuf::from(value)))
}

impl Settings {
    /// The settings of the environment variables, with the Python library's names and defaults.
    ///
    /// # Errors
    /// When the token cannot be read or sent: its file is no regular one, or it has a character that no token has.
    pub fn from_env() -> Result<Self> {
        let home = folder("HF_HOME")
            .or_else(|| Some(folder("XDG_CACHE_HOME")?.join("huggingface")))
            .or_else(|| Some(std::env::home_dir()?.join(".cache/huggingface")))
            .unwrap_or_else(|| PathBuf::from(".cache/huggingface"));
        let cache = folder("HF_HUB_CACHE").or_else(|| folder("HUGGINGFACE_HUB_CACHE"));
        let file = folder("HF_TOKEN_PATH").unwrap_or_else(|| home.join("token"));
        let stored = || match read(&file) {
            // Where no token is given hf-hub opens this file itself: it would wait for a pipe, or read a device without end.
            Err(error) if error.kind() == ErrorKind::Other => bail!(
                "the token cannot be read from {} ({error}): set HF_TOKEN, or HF_TOKEN_PATH to the path of a file",
                file.display()
            ),
            _ => Ok(line(&file)),
        };
        let implicit = !flag("HF_HUB_DISABLE_IMPLICIT_TOKEN");
        let token = match variable("HF_TOKEN") {
            _ if !implicit => None,
            None => stored()?,
            token => token,
        };
        if token.as_ref().is_some_and(|token| !token.bytes().all(|b| b.is_ascii_graphic())) {
            bail!("the token (HF_TOKEN) has a character that no token has: copy it again");
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
