//! One request to the hub: with a timeout, and with its failure as one sentence.

use super::client::Hub;
use super::repository::{Repository, Revision};
use super::text::one_line;
use super::types::Transfer;
use candle_core::Error;
use hf_hub::HFError;
use hf_hub::progress::{DownloadEvent, Progress, ProgressEvent, ProgressHandler, UploadEvent};
use std::fmt;
use std::sync::mpsc::{self, RecvTimeoutError, Sender};
use std::time::{Duration, Instant};

/// The interval at which a waiting call checks whether to continue.
const TICK: Duration = Duration::from_millis(100);
/// The lowest speed, in bytes a second, at which files are hashed before an upload begins.
const HASHING: u64 = 100_000_000;

/// Why a request failed.
pub(super) enum Fault {
    /// The hub sent nothing before the timeout.
    Silent,
    /// The observer asked for an end.
    Stopped,
    /// The client ended without an answer.
    Ended,
    /// An error of the client.
    Hub(Box<HFError>),
}

impl Fault {
    /// Whether another program holds the cache's lock on the file.
    pub(super) fn is_lock(&self) -> bool {
        matches!(self, Self::Hub(error) if matches!(**error, HFError::CacheLockTimeout { .. }))
    }

    /// Whether the connection broke off within an answer.
    pub(super) fn is_body(&self) -> bool {
        let Self::Hub(error) = self else { return false };
        matches!(&**error, HFError::Request { source, .. } if source.is_body() || source.is_decode())
    }

    /// Whether it is unknown if the request was carried out.
    pub(super) fn is_ambiguous(&self) -> bool {
        match self {
            Self::Silent | Self::Ended => true,
            Self::Stopped => false,
            Self::Hub(error) => match &**error {
                HFError::Http { context } => matches!(context.status.as_u16(), 412 | 500..),
                HFError::Conflict { .. } | HFError::Request { .. } => true,
                error => matches!(error, HFError::MalformedResponse { .. } | HFError::Json(_)),
            },
        }
    }

    /// Whether the hub says that something is there already, or is being changed.
    pub(super) fn is_conflict(&self) -> bool {
        matches!(self, Self::Hub(error) if matches!(**error, HFError::Conflict { .. }))
    }
}

/// A failure in one sentence.
#[derive(Debug)]
pub(super) struct Trouble {
    text: String,
    /// Whether the hub could not be reached.
    pub(super) unreachable: bool,
}

impl fmt::Display for Trouble {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.text)
    }
}

impl From<Trouble> for Error {
    fn from(trouble: Trouble) -> Self {
        Self::msg(trouble)
    }
}

impl Trouble {
    /// A failure other than that the hub could not be reached.
    pub(super) fn here(text: String) -> Self {
        Self { text, unreachable: false }
    }

    fn stopped() -> Self {
        Self::here("stopped".to_owned())
    }

    /// The hub could not be reached. With a `file` the commit is known already, so `unreachable` is false, and the cache, which
    /// may hold another commit, is not used instead.
    fn out_of_reach(text: String, file: Option<&str>) -> Self {
        Self { text, unreachable: file.is_none() }
    }
}

/// What a request gives, or why it failed.
pub(super) type Reply<T> = std::result::Result<T, Trouble>;

/// What the hub says about an error, in parentheses, or nothing.
fn server_message(error: &HFError) -> String {
    let said = match error {
        HFError::AuthRequired { context }
        | HFError::Forbidden { context }
        | HFError::Conflict { context }
        | HFError::RateLimited { context, .. }
        | HFError::Http { context } => context.server_message.as_deref().map(one_line),
        _ => None,
    };
    said.filter(|said| !said.is_empty()).map_or_else(String::new, |said| format!(" (\"{said}\")"))
}

/// The innermost cause of an error, such as that of the operating system.
fn cause(error: &dyn std::error::Error) -> String {
    let mut last = error;
    while let Some(next) = last.source() {
        last = next;
    }
    one_line(&last.to_string())
}

/// A message of the thread that makes the request.
enum Message<T> {
    Moved { done: u64, total: u64 },
    Done(Result<T, HFError>),
}

/// Sends the number of bytes that have been transferred.
struct ProgressSender<T>(Sender<Message<T>>);

impl<T: Send> ProgressHandler for ProgressSender<T> {
    fn on_progress(&self, event: &ProgressEvent) {
        let (done, total) = match event {
            ProgressEvent::Download(DownloadEvent::Progress { files }) => {
                (files.iter().map(|f| f.bytes_completed).sum(), files.iter().map(|f| f.total_bytes).sum())
            }
            ProgressEvent::Download(DownloadEvent::AggregateProgress {
                bytes_completed,
                total_bytes,
                ..
            }) => (*bytes_completed, *total_bytes),
            // Sent bytes can be fewer, where the storage has parts already.
            ProgressEvent::Upload(UploadEvent::Progress {
                bytes_completed,
                total_bytes,
                transfer_bytes_completed,
                transfer_bytes,
                ..
            }) => (bytes_completed + transfer_bytes_completed, total_bytes + transfer_bytes),
            _ => return,
        };
        // After a timeout there is no receiver any more.
        self.0.send(Message::Moved { done, total }).ok();
    }
}

impl Hub {
    /// Makes a request, and reports the transfer of the `bytes` of `what` unless that is empty.
    ///
    /// The request runs on a thread of its own, which is abandoned after the timeout: the client's requests have none, and an
    /// address that drops packets would block the caller for minutes.
    pub(super) fn call<T: Send + 'static>(
        &self,
        what: &str,
        bytes: u64,
        request: impl FnOnce(Progress) -> Result<T, HFError> + Send + 'static,
    ) -> Result<T, Fault> {
        let report = |done: u64, total: u64| {
            if let Some(observer) = self.observer.as_ref().filter(|_| !what.is_empty()) {
                observer.progress(&Transfer { what, done, total: total.max(done) });
            }
        };
        let (sender, news) = mpsc::channel();
        std::thread::spawn(move || {
            let progress = Progress::new(ProgressSender(sender.clone()));
            sender.send(Message::Done(request(progress))).ok();
        });
        let patience = self.settings.patience + Duration::from_secs(bytes / HASHING);
        let mut deadline = Instant::now() + patience;
        let mut last = 0;
        report(0, bytes);
        loop {
            match news.recv_timeout(TICK) {
                // Ticks that report the same bytes again are no progress.
                Ok(Message::Moved { done, total }) if done > last => {
                    last = done;
                    deadline = Instant::now() + patience;
                    report(done, total);
                }
                Ok(Message::Moved { .. }) | Err(RecvTimeoutError::Timeout) => {}
                Ok(Message::Done(result)) => return result.map_err(|error| Fault::Hub(Box::new(error))),
                Err(RecvTimeoutError::Disconnected) => return Err(Fault::Ended),
            }
            if self.is_stopped() {
                return Err(Fault::Stopped);
            }
            if Instant::now() >= deadline {
                return Err(Fault::Silent);
            }
        }
    }

    /// Makes a request about a repository, without a report of its transfer.
    pub(super) fn ask<T: Send + 'static>(
        &self,
        repository: &Repository,
        revision: &Revision,
        request: impl FnOnce() -> Result<T, HFError> + Send + 'static,
    ) -> Reply<T> {
        let answer = self.call("", 0, |_| request());
        answer.map_err(|fault| self.trouble(fault, repository, revision, None))
    }

    /// Whether the observer asks for an end of the call.
    fn is_stopped(&self) -> bool {
        self.observer.as_ref().is_some_and(|observer| observer.stopped())
    }

    /// An error when the observer asks for an end of the call.
    pub(super) fn check_stopped(&self) -> Reply<()> {
        if self.is_stopped() { Err(Trouble::stopped()) } else { Ok(()) }
    }

    pub(super) fn no_hub(&self, what: &str) -> Trouble {
        let endpoint = &self.settings.endpoint;
        Trouble::here(format!("{endpoint} does not answer as a hub does ({what}): check HF_ENDPOINT"))
    }

    pub(super) fn no_cache(&self, what: &str) -> Trouble {
        Trouble::here(format!(
            "the cache {} cannot be used ({}): free some space or give another folder with HF_HUB_CACHE",
            self.settings.cache.display(),
            one_line(what)
        ))
    }

    /// What a failed request for the file of that revision means, as a message.
    pub(super) fn trouble(
        &self,
        fault: Fault,
        repository: &Repository,
        revision: &Revision,
        file: Option<&str>,
    ) -> Trouble {
        let endpoint = &self.settings.endpoint;
        let during = file.map_or_else(String::new, |file| format!(" with {file} on its way"));
        match fault {
            Fault::Silent => {
                let seconds = self.settings.patience.as_secs();
                let text = format!(
                    "the hub at {endpoint} or its storage has been silent for {seconds} seconds{during}: try again later"
                );
                Trouble::out_of_reach(text, file)
            }
            Fault::Stopped => Trouble::stopped(),
            Fault::Ended => Trouble::here(format!("the hub's client broke off{during}: try again")),
            Fault::Hub(error) => self.client_trouble(*error, repository, revision, file, &during),
        }
    }

    /// What an error of the client means, as a message.
    fn client_trouble(
        &self,
        error: HFError,
        repository: &Repository,
        revision: &Revision,
        file: Option<&str>,
        during: &str,
    ) -> Trouble {
        let endpoint = &self.settings.endpoint;
        let out_of_reach = |text: String| Trouble::out_of_reach(text, file);
        let message = server_message(&error);
        let text = match error {
            HFError::AuthRequired { .. } => self.unknown_user(repository, &message),
            HFError::Forbidden { .. } => self.no_right(repository, &message),
            HFError::RepoNotFound { .. }
            | HFError::RevisionNotFound { .. }
            | HFError::EntryNotFound { .. } => return self.missing(repository, revision, file),
            HFError::Conflict { .. } => {
                format!("{repository} is being changed by someone else{message}: try again when that is done")
            }
            HFError::RateLimited { retry_after, .. } => {
                let when =
                    retry_after.map_or("later".to_owned(), |wait| format!("in {} seconds", wait.as_secs()));
                return out_of_reach(format!(
                    "the hub takes no more requests for now{message}: try again {when}"
                ));
            }
            HFError::Http { context } => {
                let status = context.status;
                match status.as_u16() {
                    404 => return self.missing(repository, revision, file),
                    412 => {
                        format!("{repository} at {revision} has changed while this was prepared: try again")
                    }
                    413 => format!(
                        "{repository} has a file too large for a commit{message}, and the hub at {endpoint} offers no \
                         storage for large files: ask its operator"
                    ),
                    500.. => {
                        return out_of_reach(format!(
                            "the hub at {endpoint} is out of order ({status}{message}){during}: try again later"
                        ));
                    }
                    _ => format!(
                        "the hub at {endpoint} refuses what was asked of {repository} ({status}{message}){during}"
                    ),
                }
            }
            HFError::Request { source, .. } if source.is_decode() => return self.no_hub(&cause(&source)),
            HFError::Request { source, .. } => {
                let cause = cause(&source);
                return out_of_reach(format!(
                    "the hub at {endpoint} cannot be reached ({cause}){during}: is there a network, and is HF_ENDPOINT right?"
                ));
            }
            HFError::Xet { source, .. } => {
                let cause = cause(source.as_ref());
                format!("the hub's storage cannot be reached ({cause}){during}: try again later")
            }
            HFError::CacheLockTimeout { .. } => {
                format!("another program holds the cache of {repository}{during}: try again when it is done")
            }
            HFError::Io(error) => return self.no_cache(&error.to_string()),
            HFError::Json(error) => return self.no_hub(&error.to_string()),
            HFError::MalformedResponse { what, .. } => return self.no_hub(&what),
            error => format!("the hub's client failed ({}){during}", one_line(&error.to_string())),
        };
        Trouble::here(text)
    }

    /// The message where the hub takes the token, or its absence, for nobody's.
    fn unknown_user(&self, repository: &Repository, message: &str) -> String {
        if self.settings.token.is_none() {
            return format!(
                "{repository} does not exist or is private{message}: check the name, or set HF_TOKEN to a token that may \
                 read it"
            );
        }
        let endpoint = &self.settings.endpoint;
        format!(
            "the hub refuses the token{message}: set HF_TOKEN to a valid one, made at {endpoint}/settings/tokens"
        )
    }

    /// The message where the hub knows the token and it does not suffice.
    fn no_right(&self, repository: &Repository, message: &str) -> String {
        if self.settings.token.is_none() {
            return format!(
                "{repository} is not open to everybody{message}: set HF_TOKEN to a token of an account with access"
            );
        }
        format!(
            "the token has no right to this in {repository}{message}: set HF_TOKEN to one that has, or ask the owner \
             for access"
        )
    }

    /// The message that says which of repository, revision and file is missing; the client's error is the same for all.
    fn missing(&self, repository: &Repository, revision: &Revision, file: Option<&str>) -> Trouble {
        let handle = self.handle(repository);
        let known = self.call("", 0, move |_| handle.exists().send());
        let (handle, name) = (self.handle(repository), revision.to_string());
        let at = || self.call("", 0, move |_| handle.revision_exists().revision(&name).send());
        let endpoint = &self.settings.endpoint;
        Trouble::here(if !matches!(known, Ok(true)) {
            let remedy = match self.settings.token {
                None => ": check the name, or set HF_TOKEN if it is private",
                Some(_) => ", or does not show it to this token: check the name",
            };
            format!("the hub at {endpoint} has no repository {repository}{remedy}")
        } else if !matches!(at(), Ok(true)) {
            format!("{repository} has no revision {revision}: name a branch, a tag or a commit of it")
        } else if let Some(file) = file {
            format!("{repository} at {revision} has no file {file}")
        } else {
            format!("{repository} at {revision} has just been changed: try again")
        })
    }
}
