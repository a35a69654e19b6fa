//! What was probably meant by a name that does not exist.

/// The words of other tools for settings that are called otherwise here.
const ALIASES: [(&str, &str); 14] = [
    ("learning_rate", "lr"),
    ("learningrate", "lr"),
    ("batch_size", "batch"),
    ("batchsize", "batch"),
    ("bs", "batch"),
    ("steps", "updates"),
    ("max_steps", "updates"),
    ("iterations", "updates"),
    ("iters", "updates"),
    ("max_epochs", "epochs"),
    ("num_epochs", "epochs"),
    ("optim", "optimizer"),
    ("ema_decay", "ema"),
    ("grad_clip", "clip_norm"),
];

/// The end of a message about an unknown name: `; did you mean NAME?` for the most similar one, else nothing.
///
/// Names may have dots: their last parts are compared.
#[must_use]
pub fn did_you_mean<S: AsRef<str>>(word: &str, names: impl IntoIterator<Item = S>) -> String {
    /// Below this similarity (Jaro-Winkler, 0 to 1) names have little in common.
    const SIMILAR: f64 = 0.8;
    let last = |name: &str| name.rsplit('.').next().unwrap_or_default().to_lowercase();
    let word = last(word);
    let meant = ALIASES.iter().find(|(alias, _)| *alias == word).map_or(word.as_str(), |(_, name)| name);
    let similarity = |name: &S| strsim::jaro_winkler(meant, &last(name.as_ref()));
    // Of equally similar ones the first, for callers have the likely ones there.
    let best = names.into_iter().reduce(|a, b| if similarity(&b) > similarity(&a) { b } else { a });
    match best.filter(|name| similarity(name) >= SIMILAR) {
        Some(name) => format!("; did you mean `{}`?", name.as_ref()),
        None => String::new(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn similar_names_are_suggested_and_others_are_not() {
        let recipes = ["glow-cifar", "glow-mnist", "nice-mnist", "realnvp-cifar", "quickstart"];
        for (typed, meant) in
            [("glow-cifar10", "glow-cifar"), ("realnvp_cifar", "realnvp-cifar"), ("Quickstart", "quickstart")]
        {
            assert_eq!(did_you_mean(typed, recipes), format!("; did you mean `{meant}`?"));
        }
        assert_eq!(did_you_mean("xyz", recipes), "");
        assert_eq!(did_you_mean("", recipes), "");
        assert_eq!(did_you_mean("x", [""; 0]), "");
        let keys = ["train.lr", "train.batch", "model.width"];
        for (typed, meant) in [
            ("learning_rate", "train.lr"),
            ("lr", "train.lr"),
            ("train.batch_size", "train.batch"),
            ("model.widht", "model.width"),
        ] {
            assert_eq!(did_you_mean(typed, keys), format!("; did you mean `{meant}`?"));
        }
    }
}
