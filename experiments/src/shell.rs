//! A command as it is typed into a shell.

/// Words as one line, each in quotes where a shell would read it otherwise.
pub fn line<S: AsRef<str>>(words: impl IntoIterator<Item = S>) -> String {
    words.into_iter().map(|word| quoted(word.as_ref())).collect::<Vec<_>>().join(" ")
}

fn quoted(word: &str) -> String {
    let plain = |c: char| c.is_alphanumeric() || "-_./:=,+@%".contains(c);
    if !word.is_empty() && word.chars().all(plain) {
        word.to_owned()
    } else if word.contains('\'') && !word.contains(['"', '$', '`', '\\', '!']) {
        format!("\"{word}\"")
    } else {
        format!("'{}'", word.replace('\'', "'\\''"))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn words_are_quoted_where_they_must_be() {
        assert_eq!(
            line(["flow", "sample", "runs/a", "--temperature", "0.7"]),
            "flow sample runs/a --temperature 0.7"
        );
        assert_eq!(
            line(["--label", "long hair", "it's", "", "$x", "it's $x", "a={b='c',d=1}"]),
            "--label 'long hair' \"it's\" '' '$x' 'it'\\''s $x' \"a={b='c',d=1}\""
        );
    }
}
