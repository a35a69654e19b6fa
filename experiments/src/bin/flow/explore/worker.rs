//! The thread that owns the model: it answers one request after the other.
//!
//! Requests wait in a queue of bounded length. One whose browser has gone away, or has given up waiting, is dropped before it is
//! computed. While nobody asks, the thread encodes training images for the directions of attributes, if those were asked for.

use super::explorer::Explorer;
use super::table;
use crate::output::sentence;
use crate::session::pooled;
use anyhow::{Result, anyhow};
use std::panic::{AssertUnwindSafe, catch_unwind};
use tokio::sync::mpsc::{Receiver, Sender, channel, error::TryRecvError};
use tokio::sync::oneshot;

/// Requests that wait, at most.
pub const WAITING: usize = 32;

/// One request.
pub struct Job {
    /// What is asked for.
    pub name: String,
    /// With which values.
    pub body: Vec<u8>,
    /// Where the answer goes: JSON, or a sentence.
    pub reply: oneshot::Sender<Result<Vec<u8>, String>>,
}

/// Starts the thread.
pub fn start(mut explorer: Explorer) -> Sender<Job> {
    let (jobs, mut queue) = channel(WAITING);
    std::thread::spawn(move || {
        while let Some(job) = next(&mut explorer, &mut queue) {
            if job.reply.is_closed() {
                continue;
            }
            let answer = guarded(|| {
                let answer = table::answer(&mut explorer, &job.name, &job.body)?;
                Ok(serde_json::to_vec(&answer)?)
            });
            // A browser that has gone away meanwhile misses nothing.
            let _ = job.reply.send(answer);
        }
    });
    jobs
}

/// The next request; until there is one, other work is done.
fn next(explorer: &mut Explorer, queue: &mut Receiver<Job>) -> Option<Job> {
    loop {
        if !explorer.is_working() {
            return queue.blocking_recv();
        }
        match queue.try_recv() {
            Ok(job) => return Some(job),
            Err(TryRecvError::Disconnected) => return None,
            Err(TryRecvError::Empty) => {
                if let Err(error) = guarded(|| explorer.work()) {
                    tracing::warn!("the directions of attributes cannot be computed: {error}");
                }
            }
        }
    }
}

/// A computation on the pool; what goes wrong with it is a sentence and ends nothing else.
fn guarded<T: Send>(f: impl FnOnce() -> Result<T> + Send) -> Result<T, String> {
    let result = catch_unwind(AssertUnwindSafe(|| pooled(f)));
    let result = result.unwrap_or_else(|_| Err(anyhow!("this picture cannot be drawn: the log says why")));
    result.map_err(|error| sentence(&error))
}
