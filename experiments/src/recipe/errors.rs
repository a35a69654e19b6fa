//! What is said of a recipe that cannot be read: the place, the key, and the name that was probably meant.

use crate::suggest::did_you_mean;
use anyhow::anyhow;

/// The parser's message with its line number, in one line: its own text quotes the source over several.
pub(super) fn no_toml(text: &str, error: &toml::de::Error) -> anyhow::Error {
    let message = error.message().lines().map(str::trim).collect::<Vec<_>>().join(", ");
    let line = |start: usize| 1 + text.bytes().take(start).filter(|&byte| byte == b'\n').count();
    let place = error.span().map(|span| format!(" at line {}", line(span.start))).unwrap_or_default();
    anyhow!("this is no TOML{place}: {message}")
}

/// The error of a strict read, with the key it is about and, where there is none of that name, the most similar one: of those
/// that the message lists, or of the recipe's own `keys`, for it may stand in another table.
pub(super) fn name_key(error: serde_path_to_error::Error<toml::de::Error>, keys: &[String]) -> anyhow::Error {
    let path = error.path().to_string();
    let message = plain(error.into_inner().message().trim(), &path);
    let mut quoted = message.split('`').skip(1).step_by(2).map(str::to_owned);
    let close = match quoted
        .next()
        .filter(|_| message.contains("unknown field") || message.contains("unknown variant"))
    {
        Some(unknown) => {
            // The unknown key itself, which may stand in a table below the one that the error names.
            let (below, end) = (format!("{path}."), format!(".{unknown}"));
            let itself = |key: &&String| key.starts_with(&below) && key.ends_with(&end);
            let others = keys.iter().filter(|key| **key != path && !itself(key)).cloned();
            did_you_mean(&unknown, quoted.chain(others))
        }
        None if message.starts_with("missing field") => ", give it a value".to_owned(),
        None if message.starts_with("invalid type: unit variant") => {
            ": this choice has settings, write it as { name = {} } to have them as they are by default"
                .to_owned()
        }
        None => String::new(),
    };
    if path == "." { anyhow!("{message}{close}") } else { anyhow!("`{path}`: {message}{close}") }
}

/// What a value should have been, in the words of a recipe instead of Rust's types.
fn plain(message: &str, path: &str) -> String {
    let Some((given, expected)) =
        message.split_once(", expected ").filter(|(m, _)| m.starts_with("invalid "))
    else {
        return message.to_owned();
    };
    let expected = match expected {
        "f64" | "f32" => "a number".to_owned(),
        "usize" | "u64" => "a whole number of 0 or more".to_owned(),
        "u8" => format!("a whole number from 0 to {}", u8::MAX),
        "u32" => format!("a whole number from 0 to {}", u32::MAX),
        "a boolean" => "true or false".to_owned(),
        "a sequence" => "a list".to_owned(),
        _ if expected.starts_with("struct ") => "a table of settings".to_owned(),
        // Errors within a model name the model alone.
        _ if expected.starts_with("internally tagged enum ") && path == "model" => "a table".to_owned(),
        _ if expected.starts_with("internally tagged enum ") => {
            let word = given.split('"').nth(1).unwrap_or("NAME");
            format!("a table with its `kind`, as in --set {path}.kind={word}")
        }
        other => other.to_owned(),
    };
    format!("{given}, expected {expected}")
}
