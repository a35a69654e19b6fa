//! The client of the hub: settings, a connection, and an observer of transfers.

use super::repository::Repository;
use super::settings::Settings;
use super::text::one_line;
use super::types::Observer;
use candle_core::{Error, Result};
use hf_hub::{HFClient, HFClientSync, HFError, HFRepositorySync, RepoTypeAny};
use std::sync::Arc;
use std::time::Duration;

/// A client of the hub.
#[derive(Clone)]
pub struct Hub {
    pub(super) settings: Settings,
    pub(super) client: HFClientSync,
    pub(super) observer: Option<Arc<dyn Observer>>,
}

impl Hub {
    /// A client with the settings of the environment variables; see [`Settings::from_env`].
    ///
    /// # Errors
    /// As [`Settings::from_env`] and [`Hub::new`].
    pub fn from_env() -> Result<Self> {
        Self::new(Settings::from_env()?)
    }

    /// A client with these settings; nothing is sent.
    ///
    /// # Errors
    /// When the endpoint is no address.
    pub fn new(settings: Settings) -> Result<Self> {
        let no_address =
            || Error::msg(format!("HF_ENDPOINT={} is no http(s) address of a hub", settings.endpoint));
        if !["http://", "https://"].iter().any(|scheme| settings.endpoint.starts_with(scheme)) {
            return Err(no_address());
        }
        let mut builder = HFClient::builder()
            .endpoint(&settings.endpoint)
            .cache_dir(&settings.cache)
            .user_agent(concat!("flows/", env!("CARGO_PKG_VERSION")))
            .retry_max_attempts(2)
            .retry_base_delay(Duration::from_millis(250));
        // Where hf-hub is given no token it looks for one in the same places as `Settings::from_env`.
        if let Some(token) = &settings.token {
            builder = builder.token(token);
        }
        let client = builder.build_sync().map_err(|error| match error {
            HFError::Url(_) => no_address(),
            error => {
                Error::msg(format!("the hub's client cannot be set up ({})", one_line(&error.to_string())))
            }
        })?;
        Ok(Self { settings, client, observer: None })
    }

    /// The same client with an observer of its transfers.
    #[must_use]
    pub fn with_observer(self, observer: Arc<dyn Observer>) -> Self {
        Self { observer: Some(observer), ..self }
    }

    /// The settings.
    pub fn settings(&self) -> &Settings {
        &self.settings
    }

    pub(super) fn handle(&self, repository: &Repository) -> HFRepositorySync<RepoTypeAny> {
        self.client.repository(repository.kind, &repository.owner, &repository.name)
    }
}
