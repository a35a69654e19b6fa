//! Writes the log of a run in TensorBoard's event format, too: `tensorboard --logdir runs` follows a run while it trains.
//!
//! The file follows metrics.jsonl, which is the log: each session writes it anew from the lines that are kept, under a new
//! name, because TensorBoard never looks back into a file whose end it has seen. It opens with the start of a session, at
//! which TensorBoard drops what it showed of the one before.
//!
//! A record is
//!
//! ```text
//! length u64 | crc(length) u32 | event | crc(event) u32,     crc(x) = rotate_right(CRC-32C(x), 15) + 0xa282ead8
//! ```
//!
//! all little-endian, and an event a protobuf message of few fields, written by hand: the crates that do so bring a code
//! generator and have not been touched for years.

use crate::data::file_name;
use crate::run_dir::{EVENTS, list};
use anyhow::{Context, Result};
use flows::storage::write_atomic;
use serde_json::{Map, Value};
use std::fs::{self, File, OpenOptions};
use std::io::Write;
use std::path::{Path, PathBuf};
use std::time::{SystemTime, UNIX_EPOCH};

/// Columns that are time, not a curve.
const AXES: [&str; 4] = ["update", "epoch", "images_seen", "seconds"];

/// An event file that lines are appended to.
pub struct Events {
    file: File,
    path: PathBuf,
    /// The Unix time at which the run's clock would have stood at 0.
    start: f64,
}

impl Events {
    /// Begins the file of a session with the lines that the log has.
    ///
    /// # Errors
    /// When the folder cannot be written.
    pub fn open(out: &Path, log: &str) -> Result<Self> {
        let now = SystemTime::now().duration_since(UNIX_EPOCH).map_or(0., |d| d.as_secs_f64());
        let lines: Vec<Map<String, Value>> =
            log.lines().filter_map(|line| serde_json::from_str(line).ok()).collect();
        let start = now - lines.last().map_or(0., seconds);
        // Messages of the fields `file_version` and `session_log { status: START }`.
        let mut bytes = record(&event(start, 0, 3, b"brain.Event:2"));
        bytes.extend(record(&event(start, 0, 7, &[1 << 3, 1])));
        bytes.extend(lines.iter().filter_map(|line| scalars(start, line)).flatten());

        for old in list(out)? {
            let name = file_name(&old);
            if name.starts_with(EVENTS.0) && name.ends_with(EVENTS.1) {
                fs::remove_file(&old).with_context(|| format!("cannot remove {}", old.display()))?;
            }
        }
        // Ten digits sort as numbers do, for some centuries.
        let path = out.join(format!("{}{:010}{}", EVENTS.0, now as u64, EVENTS.1));
        write_atomic(&path, &bytes)?;
        let file = OpenOptions::new().append(true).open(&path);
        Ok(Self { file: file.with_context(|| format!("cannot write {}", path.display()))?, path, start })
    }

    /// Appends a line of the log in one write.
    ///
    /// # Errors
    /// When it cannot be written.
    pub fn write(&mut self, line: &Value) -> Result<()> {
        let Some(bytes) = line.as_object().and_then(|line| scalars(self.start, line)) else { return Ok(()) };
        let write = self.file.write_all(&bytes);
        write.with_context(|| format!("cannot write {}", self.path.display()))
    }
}

/// What TensorBoard calls a column: those of one group are drawn together.
fn tag(column: &str) -> String {
    match column.strip_suffix("_bits_per_dim") {
        Some(split) => format!("bits_per_dim/{split}"),
        None => format!("training/{column}"),
    }
}

/// The record of a line's numbers, if it has any.
fn scalars(start: f64, line: &Map<String, Value>) -> Option<Vec<u8>> {
    let mut summary = Vec::new();
    for (column, value) in line {
        let Some(value) = value.as_f64().filter(|_| !AXES.contains(&column.as_str())) else { continue };
        // Summary.Value { tag: 1, simple_value: 2 }, the first field of Summary.
        let mut message = Vec::new();
        bytes_field(&mut message, 1, tag(column).as_bytes());
        message.push(2 << 3 | 5);
        message.extend((value as f32).to_le_bytes());
        bytes_field(&mut summary, 1, &message);
    }
    let update = line.get("update")?.as_u64()?;
    (!summary.is_empty()).then(|| record(&event(start + seconds(line), update, 5, &summary)))
}

/// The seconds of the run at which a line was written.
fn seconds(line: &Map<String, Value>) -> f64 {
    line.get("seconds").and_then(Value::as_f64).unwrap_or(0.)
}

/// Event { wall_time: 1, step: 2, and one message or text }.
fn event(wall_time: f64, step: u64, field: u8, content: &[u8]) -> Vec<u8> {
    let mut bytes = vec![1 << 3 | 1];
    bytes.extend(wall_time.to_le_bytes());
    bytes.push(2 << 3);
    varint(&mut bytes, step);
    bytes_field(&mut bytes, field, content);
    bytes
}

/// A field of a length and so many bytes.
fn bytes_field(to: &mut Vec<u8>, field: u8, content: &[u8]) {
    to.push(field << 3 | 2);
    varint(to, content.len() as u64);
    to.extend(content);
}

/// Seven bits a byte, the lowest first; all but the last byte have the eighth set.
fn varint(to: &mut Vec<u8>, mut value: u64) {
    while value >= 0x80 {
        to.push(value as u8 | 0x80);
        value >>= 7;
    }
    to.push(value as u8);
}

/// See the module's documentation.
fn record(event: &[u8]) -> Vec<u8> {
    let crc = |bytes: &[u8]| crc_fast::crc32_iscsi(bytes).rotate_right(15).wrapping_add(0xa282_ead8);
    let length = (event.len() as u64).to_le_bytes();
    [&length[..], &crc(&length).to_le_bytes(), event, &crc(event).to_le_bytes()].concat()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_are_as_protobuf_has_them() {
        let bytes = |value| {
            let mut to = Vec::new();
            varint(&mut to, value);
            to
        };
        assert_eq!(
            [bytes(0), bytes(127), bytes(128), bytes(300)],
            [vec![0], vec![127], vec![128, 1], vec![172, 2]]
        );
    }

    #[test]
    fn a_new_session_has_the_kept_lines_and_the_folder_one_file() -> Result<()> {
        let out = tempfile::tempdir()?;
        let old = out.path().join("events.out.tfevents.0000000001.flow");
        let others = out.path().join("events.out.tfevents.1.theirs");
        fs::write(&old, b"")?;
        fs::write(&others, b"")?;
        let line = "{\"update\":300,\"seconds\":2,\"train_bits_per_dim\":4.5,\"clip\":null}\n";
        let mut events = Events::open(out.path(), line)?;
        let before = fs::metadata(&events.path)?.len();
        events.write(&serde_json::from_str(line)?)?;
        let bytes = fs::read(&events.path)?;
        let (kept, written) = bytes.split_at(before as usize);
        assert!(kept.ends_with(written), "a line is the same record whenever it is written");
        assert_eq!(written.windows(18).filter(|w| w == b"bits_per_dim/train").count(), 1);
        assert!(!old.exists() && others.exists());
        Ok(())
    }
}
