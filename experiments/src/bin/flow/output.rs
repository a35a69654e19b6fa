//! Standard output, for results: `println!` would panic where it is closed or full.

use anyhow::{Context, Result, anyhow, ensure};
use std::io::{ErrorKind, Write};
use std::path::Path;

/// The reader of standard output has closed it, as `head` does. That is no error, but printing ends.
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
/// [`Closed`] when its reader has gone, and a sentence when it cannot be written.
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

/// Writes a line to standard error; a closed one is no error.
pub fn tell(text: impl std::fmt::Display) {
    let _ = writeln!(std::io::stderr(), "{text}");
}

/// The ending of pictures, for [`writable`], and why.
pub const PNG: &str = "png";
pub const PICTURE: &str = "the picture is a PNG";

/// Refuses a place where no file with this ending can be written, before the work for it is done; `what` says why that ending.
pub fn writable(out: &Path, ending: &str, what: &str) -> Result<()> {
    let name = out.display();
    ensure!(!out.is_dir(), "--out {name} is a folder: name a .{ending} file in it");
    ensure!(
        out.extension().is_some_and(|e| e.eq_ignore_ascii_case(ending)),
        "--out {name}: {what}, give it a name that ends in .{ending}"
    );
    let folder = match out.parent() {
        Some(folder) if !folder.as_os_str().is_empty() => folder,
        _ => Path::new("."),
    };
    ensure!(folder.is_dir(), "--out {name}: there is no folder {}, make it", folder.display());
    // A full disk still makes empty files.
    let probe = tempfile::NamedTempFile::new_in(folder).and_then(|mut file| {
        file.write_all(&[0; 1 << 16])?;
        file.as_file().sync_all()
    });
    // Only the kind of the reason: the rest names a file that is not the user's.
    probe.map_err(|e| {
        anyhow!(
            "--out {name}: nothing can be written in {} ({}), choose another folder",
            folder.display(),
            e.kind()
        )
    })
}
