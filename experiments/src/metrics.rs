//! The log of a run, metrics.jsonl.

use crate::checkpoint::Position;
use crate::events::Events;
use crate::run_dir::{self, METRICS};
use anyhow::{Context, Result, anyhow};
use flows::storage::write_atomic;
use serde::Serialize;
use serde_json::{Map, Value};
use std::fs;
use std::io::Write;
use std::path::{Path, PathBuf};

/// The lines of a log up to a position. What follows them will be written again, and a last line without an end is what a
/// killed run was writing.
///
/// # Errors
/// The number of a line before them that is damaged.
fn up_to(position: &Position, log: &[u8]) -> Result<String, usize> {
    let update_of =
        |text: &str| serde_json::from_str::<Map<String, Value>>(text).ok()?.get("update")?.as_u64();
    let counted = position.log_lines.map_or(usize::MAX, |lines| lines as usize);
    let most = if position.update == 0 { 0 } else { counted };
    let mut kept = String::new();
    for (i, line) in log.split_inclusive(|&byte| byte == b'\n').take(most).enumerate() {
        if !line.ends_with(b"\n") {
            break;
        }
        let text = std::str::from_utf8(line).ok().filter(|text| text.len() <= run_dir::LINE);
        let (text, update) = text.and_then(|text| Some((text, update_of(text)?))).ok_or(i + 1)?;
        if update > position.update {
            break;
        }
        kept.push_str(text);
    }
    Ok(kept)
}

/// The log of a run: one JSON object a line.
pub struct Metrics {
    file: fs::File,
    /// Lines written so far.
    pub lines: u64,
    path: PathBuf,
    /// The same for TensorBoard.
    events: Events,
}

impl Metrics {
    /// Opens the log of a run at `position` (update 0: a new run). Lines after that update and an incomplete last line are
    /// removed: these updates will be made again.
    ///
    /// # Errors
    /// When the log cannot be read or written, or a line of an update that will not be made again is damaged.
    pub fn open(out: &Path, position: &Position) -> Result<Self> {
        let path = out.join(METRICS);
        let old = run_dir::read(&path)?.unwrap_or_default();
        let kept = up_to(position, &old).map_err(|line| {
            anyhow!(
                "{} is damaged in line {line}: restore it, or move it away to go on with a new log",
                path.display()
            )
        })?;
        if kept.len() != old.len() {
            write_atomic(&path, kept.as_bytes())?;
        }
        let file = fs::OpenOptions::new().create(true).append(true).open(&path);
        let file = file.with_context(|| format!("cannot write {}", path.display()))?;
        Ok(Self { file, lines: kept.lines().count() as u64, path, events: Events::open(out, &kept)? })
    }

    /// Appends a line in one write.
    ///
    /// # Errors
    /// When the log cannot be written.
    pub fn write(&mut self, line: &impl Serialize) -> Result<()> {
        let mut text = serde_json::to_string(line)?;
        text.push('\n');
        let write = self.file.write_all(text.as_bytes());
        write.with_context(|| format!("cannot write {}", self.path.display()))?;
        self.lines += 1;
        self.events.write(&serde_json::to_value(line)?)
    }

    /// Waits until every line is on the disk; before a checkpoint, which promises the lines up to its update.
    ///
    /// # Errors
    /// When the disk reports an error.
    pub fn sync(&self) -> Result<()> {
        self.file.sync_data().with_context(|| format!("cannot write {}", self.path.display()))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_log_is_cut_to_the_checkpoint() -> Result<()> {
        let out = tempfile::tempdir()?;
        let path = out.path().join(METRICS);
        #[derive(Serialize)]
        struct Line {
            update: u64,
        }
        let mut log = Metrics::open(out.path(), &Position::default())?;
        for update in [2, 4, 4, 6] {
            log.write(&Line { update })?;
        }
        fs::OpenOptions::new().append(true).open(&path)?.write_all(b"{\"update\": 4")?;
        let stood = Position { update: 5, ..Position::default() };
        let mut log = Metrics::open(out.path(), &stood)?;
        log.write(&Line { update: 6 })?;
        log.sync()?;
        let lines = [2, 4, 4, 6].map(|u| format!("{{\"update\":{u}}}\n")).concat();
        assert_eq!(fs::read_to_string(&path)?, lines);
        // Of two lines of one update, such as a validation's, only what the checkpoint counted is kept.
        let stood = Position { update: 4, log_lines: Some(2), ..Position::default() };
        assert_eq!(Metrics::open(out.path(), &stood)?.lines, 2);
        assert_eq!(fs::read_to_string(&path)?, [2, 4].map(|u| format!("{{\"update\":{u}}}\n")).concat());
        Metrics::open(out.path(), &Position::default())?;
        assert_eq!(fs::read_to_string(&path)?, "");
        Ok(())
    }

    #[test]
    fn a_log_that_is_damaged_in_the_middle_is_not_cut() -> Result<()> {
        let out = tempfile::tempdir()?;
        let path = out.path().join(METRICS);
        let line = |update: u64| format!("{{\"update\":{update}}}\n").into_bytes();
        let at = |update, log_lines| Position { update, log_lines, ..Position::default() };
        let long = [&b"{\"update\":4,\"x\":\""[..], &vec![b'x'; run_dir::LINE], b"\"}\n"].concat();
        for damaged in
            [&b"{\"update\": 4\n"[..], b"\n", b"\xff\n", b"\0\0\0\n", b"[4]\n", b"{\"epoch\":1}\n", &long]
        {
            let log = [&line(2), damaged, &line(6), &line(8)].concat();
            fs::write(&path, &log)?;
            for (position, kept) in [
                // Counted by the checkpoint, or, as earlier versions did not count, not known to be past it.
                (at(6, Some(3)), None),
                (at(5, None), None),
                // Past the checkpoint, and of a run that begins anew.
                (at(3, Some(1)), Some(line(2))),
                (at(1, None), Some(vec![])),
                (at(0, None), Some(vec![])),
            ] {
                fs::write(&path, &log)?;
                match (Metrics::open(out.path(), &position).map(|log| log.lines), kept) {
                    (Ok(lines), Some(kept)) => {
                        assert_eq!((fs::read(&path)?, lines), (kept.clone(), u64::from(!kept.is_empty())));
                    }
                    (Err(e), None) => {
                        let said = e.to_string();
                        assert!(said.contains("metrics.jsonl is damaged in line 2"), "{said}");
                        assert!(said.contains("move it away"), "{said}");
                        assert_eq!(fs::read(&path)?, log, "nothing is cut");
                    }
                    (found, kept) => panic!("{position:?}: {found:?}, not {kept:?}"),
                }
            }
        }
        // What a kill leaves at the end, whether a power cut filled it with zeros or not.
        for end in [&b"{\"update\": 4"[..], b"{", b"\0\0\0", b"\xff"] {
            fs::write(&path, [&line(2), end].concat())?;
            Metrics::open(out.path(), &at(6, Some(2)))?;
            assert_eq!(fs::read(&path)?, line(2));
        }
        // The remedy.
        fs::remove_file(&path)?;
        assert_eq!(Metrics::open(out.path(), &at(6, Some(3)))?.lines, 0);
        Ok(())
    }
}
