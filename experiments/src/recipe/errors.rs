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
    let message = error.into_inner().message().trim().to_owned();
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
