//! Text from outside, made safe for messages.

/// A text on one line, of at most 160 characters and without control characters, for use inside a sentence.
pub(super) fn one_line(text: &str) -> String {
    let clean: String = text.chars().map(|c| if c.is_control() { ' ' } else { c }).collect();
    let words: Vec<&str> = clean.split_whitespace().collect();
    let text: String = words.join(" ").chars().take(160).collect();
    // A parenthesis that the cut left open is removed.
    let mut open = Vec::new();
    for (at, character) in text.char_indices() {
        match character {
            '(' => open.push(at),
            ')' => _ = open.pop(),
            _ => {}
        }
    }
    text[..open.first().copied().unwrap_or(text.len())].trim_end_matches(['.', ' ', ':']).to_owned()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn foreign_text_fits_in_a_sentence() {
        assert_eq!(one_line("a\n b\t(c)\u{1b}[31m."), "a b (c) [31m");
        assert_eq!(one_line(&format!("x ({}", "y".repeat(300))), "x");
        assert!(one_line(&"ä".repeat(300)).chars().count() == 160);
    }
}
