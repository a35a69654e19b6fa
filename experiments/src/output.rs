//! Standard output, for results: `println!` would panic where it is closed or full.

use anyhow::{Context, Result};
use std::io::{ErrorKind, Write};

/// Whoever read standard output has gone, as `head` does: that is no error, but there is nothing left to print for.
#[derive(Debug)]
pub struct Closed;

impl std::fmt::Display for Closed {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("standard output was closed")
    }
}

impl std::error::Error for Closed {}

/// Writes a text with a line's end to standard output, all of it.
///
/// # Errors
/// [`Closed`] when nobody reads it, and a sentence when it cannot be written.
pub fn line(text: impl std::fmt::Display) -> Result<()> {
    raw(&format!("{text}\n"))
}

/// As [`fn@line`], without a line end of its own.
pub fn raw(text: &str) -> Result<()> {
    let mut out = std::io::stdout().lock();
    match out.write_all(text.as_bytes()).and_then(|()| out.flush()) {
        Ok(()) => Ok(()),
        Err(e) if e.kind() == ErrorKind::BrokenPipe => Err(Closed.into()),
        Err(e) => Err(e).context("the result cannot be written to standard output: is the disk full?"),
    }
}

/// Writes a line to standard error; where that is closed there is nobody to tell.
pub fn tell(text: impl std::fmt::Display) {
    let _ = writeln!(std::io::stderr(), "{text}");
}
