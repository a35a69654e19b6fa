//! Standard output, for results: `println!` would panic where it is closed or full.
//!
//! Whatever is printed may hold texts of files that somebody else wrote. Control characters in them would command the
//! terminal, so all that is printed goes through [`shown`].

use anyhow::{Context, Result, anyhow, ensure};
use std::borrow::Cow;
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
    match out.write_all(shown(text).as_bytes()).and_then(|()| out.flush()) {
        Ok(()) => Ok(()),
        Err(e) if e.kind() == ErrorKind::BrokenPipe => Err(Closed.into()),
        Err(e) => Err(e).context("the result cannot be written to standard output: is the disk full?"),
    }
}

/// Writes a line to standard error; a closed one is no error.
pub fn tell(text: impl std::fmt::Display) {
    let _ = writeln!(std::io::stderr(), "{}", shown(&text.to_string()));
}

/// A text as a terminal may have it: control characters but tabs and line ends, and those that reverse the direction of
/// writing, stand as `\u001b` and the like. JSON means the same by it.
pub fn shown(text: &str) -> Cow<'_, str> {
    let bad = |c: char| {
        (c.is_control() && !matches!(c, '\n' | '\t'))
            || matches!(c, '\u{202a}'..='\u{202e}' | '\u{2066}'..='\u{2069}')
    };
    if !text.contains(bad) {
        return Cow::Borrowed(text);
    }
    let escaped = |c: char| if bad(c) { format!("\\u{:04x}", u32::from(c)) } else { c.to_string() };
    Cow::Owned(text.chars().map(escaped).collect())
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

/// Refuses a folder that holds anything, and a place where no folder can be; `or` names what else `out` may be.
pub fn new_folder(out: &Path, ending: &str, or: &str) -> Result<()> {
    let name = out.display();
    let full = out.is_dir() && std::fs::read_dir(out)?.next().is_some();
    ensure!(!full, "--out {name} is a folder that holds files: name a new one{or}");
    ensure!(
        out.is_dir() || !out.exists(),
        "--out {name} is a file: name a folder, or a file that ends in .{ending}"
    );
    Ok(())
}

/// Fills a folder beside `out`, which then takes the place of `out`: whole, or not at all. `flag` is the argument that named it.
///
/// # Errors
/// When `fill` fails, when the folder cannot be made, and when `out` is there and holds anything.
pub fn whole_folder<T>(flag: &str, out: &Path, fill: impl FnOnce(&Path) -> Result<T>) -> Result<T> {
    let cannot = || format!("{flag} {}: the folder cannot be made", out.display());
    let parent = out.parent().filter(|parent| !parent.as_os_str().is_empty()).unwrap_or(Path::new("."));
    std::fs::create_dir_all(parent).with_context(cannot)?;
    let temporary = tempfile::Builder::new().prefix(".flow-").tempdir_in(parent).with_context(cannot)?;
    // A temporary folder is its owner's alone; one in it has the permissions of any other.
    let part = temporary.path().join("whole");
    std::fs::create_dir(&part).with_context(cannot)?;
    let filled = fill(&part)?;
    if out.is_dir() {
        std::fs::remove_dir(out).with_context(cannot)?;
    }
    std::fs::rename(&part, out).with_context(cannot)?;
    Ok(filled)
}

/// A text of at most about `most` characters: of a longer one the beginning and the end.
fn shortened(text: &str, most: usize) -> String {
    let chars: Vec<char> = text.chars().collect();
    if chars.len() <= most {
        return text.to_owned();
    }
    let (head, tail) = (&chars[..2 * most / 3], &chars[chars.len() - most / 3..]);
    head.iter().chain(&['…']).chain(tail).collect()
}

/// The chain of an error in one line, without what a cause repeats and without candle's backtraces. A value or a name that is
/// too long to be read is shortened.
#[must_use]
pub fn sentence(error: &anyhow::Error) -> String {
    let frame = |line: &str| {
        let digits = line.trim_start().trim_start_matches(|c: char| c.is_ascii_digit());
        line.starts_with(' ') && (digits.starts_with(": ") || digits.starts_with("at "))
    };
    let mut text = String::new();
    for cause in error.chain() {
        let cause = cause.to_string();
        let lines: Vec<&str> = cause.lines().filter(|line| !frame(line)).map(str::trim).collect();
        let words: Vec<String> =
            lines.iter().flat_map(|line| line.split(' ')).map(|word| shortened(word, 240)).collect();
        let cause = shortened(words.join(" ").trim(), 2000);
        if !text.contains(&cause) {
            text = if text.is_empty() { cause.to_owned() } else { format!("{text}: {cause}") };
        }
    }
    // What the system says names no remedy.
    let remedy = [
        ("No space left on device", "free some of the disk, or name a folder on another one"),
        ("Disk quota exceeded", "free some of the disk, or name a folder on another one"),
        ("Read-only file system", "name a folder that can be written"),
    ];
    match remedy.iter().find(|(cause, _)| text.contains(cause)) {
        Some((_, remedy)) => format!("{text}: {remedy}"),
        None => text,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn no_control_character_reaches_a_terminal() {
        assert_eq!(shown("a\tb\nµ ± 🙂"), "a\tb\nµ ± 🙂");
        assert_eq!(
            shown("\x1b[31m\x07\r\u{9b}\u{7f}\u{202e}x"),
            "\\u001b[31m\\u0007\\u000d\\u009b\\u007f\\u202ex"
        );
        // What JSON does not escape itself is the same text to a reader of JSON.
        let json = serde_json::json!({ "name": "\u{9b}x\u{7f}" });
        assert_eq!(serde_json::from_str::<serde_json::Value>(&shown(&json.to_string())).unwrap(), json);
    }

    #[test]
    fn an_error_is_one_sentence_without_repeats() {
        let error =
            anyhow::anyhow!("no such file").context("cannot read x: no such file").context("recipe x");
        assert_eq!(sentence(&error), "recipe x: cannot read x: no such file");
        let traced = anyhow::anyhow!(
            "shapes differ\n   0: some::function\n             at src/some.rs:1:2\n  11: main"
        );
        assert_eq!(sentence(&traced), "shapes differ");
    }

    #[test]
    fn what_the_system_says_has_a_remedy() {
        // ENOSPC, EDQUOT and EROFS of Linux.
        #[cfg(target_os = "linux")]
        for (code, remedy) in [(28, "on another one"), (122, "on another one"), (30, "that can be written")] {
            let error = anyhow::Error::new(std::io::Error::from_raw_os_error(code)).context("cannot write x");
            assert!(sentence(&error).ends_with(remedy), "{}", sentence(&error));
        }
    }

    #[test]
    fn a_long_value_is_shortened_and_the_remedy_stays() {
        let (word, list) = ("a".repeat(100_000), "1, ".repeat(100_000));
        for value in [&word, &list, &"é".repeat(5000)] {
            let said = sentence(&anyhow::anyhow!("`key` = {value}: it must be above 0").context("recipe x"));
            assert!(said.len() < 2500 && said.starts_with("recipe x: `key` = "), "{said}");
            assert!(said.contains('…') && said.ends_with(": it must be above 0"), "{said}");
        }
        let path = format!("cannot read {}/run/recipe.toml", "folder/".repeat(30));
        assert_eq!(sentence(&anyhow::anyhow!("{path}")), path);
    }
}
