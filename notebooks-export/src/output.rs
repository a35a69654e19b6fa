//! Standard output and standard error: `println!` and `eprintln!` would panic where they are closed or full.

use anyhow::{Context, Result};
use std::io::{ErrorKind, Write};

/// Writes a line to standard output. A pipe that its reader has closed, as `head` does, is no
/// error.
///
/// # Errors
/// When it cannot be written.
pub fn line(text: impl std::fmt::Display) -> Result<()> {
    let mut out = std::io::stdout().lock();
    match writeln!(out, "{text}").and_then(|()| out.flush()) {
        Err(e) if e.kind() != ErrorKind::BrokenPipe => {
            Err(e).context("the notebook's name cannot be written to standard output: is the disk full?")
        }
        _ => Ok(()),
    }
}

/// Writes a line to standard error; a closed one is no error.
pub fn tell(text: impl std::fmt::Display) {
    let _ = writeln!(std::io::stderr(), "{text}");
}
