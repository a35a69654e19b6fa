//! The runs of a sweep: every combination of the values given for settings, with every seed.

use crate::recipe::Resolved;
use anyhow::{Context, Result, bail, ensure};
use std::collections::BTreeSet;

/// The most runs of one sweep: a slip in a range should not become a year of training.
const MOST_RUNS: usize = 10_000;

/// Bytes of a folder's name, at most: a log has the same name and an ending.
const LONGEST_NAME: usize = 240;

/// One run of a sweep.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Run {
    /// Its folder's name, such as `lr=1e-3_seed=0`.
    pub name: String,
    /// What it is given by `--set`.
    pub sets: Vec<String>,
}

/// Every combination of the values of `sets`, each `KEY=V1,V2,..`, with each of `seeds`; the last setting varies fastest but for
/// the seed.
///
/// A value may be an array or a table: commas inside brackets and quotes belong to it. Settings with one value are the same in
/// all runs, and are not part of the names.
///
/// # Errors
/// When a setting has no value or is given twice, when the recipe has no such setting, or for more than 10,000 runs.
pub fn runs(recipe: &str, sets: &[String], seeds: &[u64]) -> Result<Vec<Run>> {
    let settings = sets.iter().map(|set| setting(set)).collect::<Result<Vec<_>>>()?;
    let mut keys = BTreeSet::new();
    for (key, _) in &settings {
        ensure!(keys.insert(key), "--set {key} is given twice: separate its values by commas");
        ensure!(
            key != "train.seed" || seeds.is_empty(),
            "give seeds by --seeds or by --set train.seed, not by both"
        );
    }
    let mut count = settings.iter().map(|(_, values)| values.len()).chain([seeds.len().max(1)]);
    let count = count.try_fold(1usize, usize::checked_mul).unwrap_or(usize::MAX);
    ensure!(count <= MOST_RUNS, "a sweep of more than {MOST_RUNS} runs: give fewer values");
    let short = |key: &str| {
        let last = |key: &str| key.rsplit('.').next().unwrap_or(key).to_owned();
        let alike = settings.iter().filter(|(other, _)| last(other) == last(key)).count();
        if alike > 1 { key.to_owned() } else { last(key) }
    };
    let mut runs = vec![Run { name: String::new(), sets: Vec::new() }];
    let seeds =
        (!seeds.is_empty()).then(|| ("train.seed".to_owned(), seeds.iter().map(u64::to_string).collect()));
    for (key, values) in settings.iter().chain(&seeds) {
        let with = |run: &Run, value: &String| {
            let mut run = run.clone();
            if values.len() > 1 {
                let start = if run.name.is_empty() { "" } else { "_" };
                run.name = format!("{}{start}{}={}", run.name, short(key), plain(value));
            }
            run.sets.push(format!("{key}={value}"));
            run
        };
        runs = runs
            .iter()
            .flat_map(|run| values.iter().map(|value| with(run, value)).collect::<Vec<_>>())
            .collect();
    }
    let (mut names, mut recipes) = (BTreeSet::new(), BTreeSet::new());
    for run in &mut runs {
        let resolved = Resolved::load(recipe, &run.sets)?;
        if run.name.is_empty() {
            run.name = "run".to_owned();
        }
        ensure!(
            names.insert(run.name.clone()),
            "two runs of this sweep would have the folder {}: give each value once",
            run.name
        );
        ensure!(
            recipes.insert(resolved.recipe.fingerprint()?),
            "the run {} of this sweep is another one in other words: give each value once",
            run.name
        );
        ensure!(
            run.name.len() <= LONGEST_NAME,
            "the folder {} of this sweep has too long a name: sweep over fewer settings, or in files of recipes",
            run.name
        );
    }
    Ok(runs)
}

/// The key and the values of `KEY=V1,V2,..`.
fn setting(text: &str) -> Result<(String, Vec<String>)> {
    let (key, values) = text
        .split_once('=')
        .with_context(|| format!("--set {text}: write key=value,value as in --set train.lr=1e-3,3e-3"))?;
    let (mut depth, mut quote, mut all) = (0usize, None, vec![String::new()]);
    for c in values.chars() {
        match (quote, c) {
            (None, ',') if depth == 0 => {
                all.push(String::new());
                continue;
            }
            (None, '[' | '{') => depth += 1,
            (None, ']' | '}') => depth = depth.saturating_sub(1),
            (None, '"' | '\'') => quote = Some(c),
            (Some(open), c) if open == c => quote = None,
            _ => {}
        }
        all.last_mut().expect("there is one").push(c);
    }
    let all: Vec<String> = all.into_iter().map(|value| value.trim().to_owned()).collect();
    ensure!(all.iter().all(|value| !value.is_empty()), "--set {text}: a value is empty");
    Ok((key.trim().to_owned(), all))
}

/// A value as a part of a folder's name.
fn plain(value: &str) -> String {
    value.chars().map(|c| if c.is_ascii_alphanumeric() || "._+-".contains(c) { c } else { '-' }).collect()
}

/// Seeds as they are given: `0..3` (without 3), `0,4,7`, or `5`.
///
/// # Errors
/// When it is neither.
pub fn seeds(text: &str) -> Result<Vec<u64>> {
    let number = |text: &str| text.trim().parse::<u64>().ok().filter(|seed| i64::try_from(*seed).is_ok());
    let seeds: Option<Vec<u64>> = match text.split_once("..") {
        Some((from, to)) => {
            number(from).zip(number(to)).map(|(from, to)| (from..to).take(MOST_RUNS + 1).collect())
        }
        None => text.split(',').map(number).collect(),
    };
    match seeds {
        Some(seeds) if !seeds.is_empty() => Ok(seeds),
        _ => bail!("`{text}` names no seeds: write 0..3 for the seeds 0, 1 and 2, or 0,4,7"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn names(sets: &[&str], seeds: &[u64]) -> Vec<String> {
        let sets: Vec<String> = sets.iter().map(|set| (*set).to_owned()).collect();
        runs("quickstart", &sets, seeds).unwrap().into_iter().map(|run| run.name).collect()
    }

    #[test]
    fn every_combination_runs_once() {
        let sets = ["train.lr=1e-3,3e-3", "train.batch=8", "model.depth=2,4"];
        let all = names(&sets, &[0, 1]);
        assert_eq!(all.len(), 8);
        assert_eq!(all[0], "lr=1e-3_depth=2_seed=0");
        assert_eq!(all[7], "lr=3e-3_depth=4_seed=1");
        assert_eq!(names(&["train.batch=8"], &[]), ["run"]);
    }

    #[test]
    fn commas_in_brackets_and_quotes_belong_to_the_value() {
        let schedule = "train.schedule={kind='cosine',end=0.1},{kind='constant'}";
        let (key, values) = setting(schedule).unwrap();
        assert_eq!((key.as_str(), values.len()), ("train.schedule", 2));
        assert_eq!(setting("a=[1,2],\"x,y\"").unwrap().1, ["[1,2]", "\"x,y\""]);
        assert_eq!(names(&[schedule], &[]).len(), 2);
    }

    #[test]
    fn slips_are_refused_before_anything_runs() {
        let refused = |sets: &[&str], seeds: &[u64]| {
            let sets: Vec<String> = sets.iter().map(|set| (*set).to_owned()).collect();
            format!("{:#}", runs("quickstart", &sets, seeds).unwrap_err())
        };
        assert!(refused(&["train.lr=1e-3,"], &[]).contains("empty"));
        assert!(refused(&["train.nothing=1,2"], &[]).contains("nothing"));
        assert!(refused(&["train.lr=1e-3", "train.lr=2e-3"], &[]).contains("twice"));
        assert!(refused(&["train.lr=1e-3,1e-3"], &[]).contains("each value once"));
        assert!(refused(&["train.lr=1e-3,0.001"], &[]).contains("in other words"));
        assert!(refused(&["train.seed=1,2"], &[1]).contains("both"));
        assert!(refused(&["train.lr=1e-3,2e-3"], &[0; 6000]).contains("10000 runs"));
    }

    #[test]
    fn seeds_are_ranges_or_lists() {
        assert_eq!(seeds("0..3").unwrap(), [0, 1, 2]);
        assert_eq!(seeds("5, 7").unwrap(), [5, 7]);
        for text in ["", "3..3", "a", "-1", "1..", "18446744073709551615"] {
            assert!(seeds(text).unwrap_err().to_string().contains("0..3"), "{text}");
        }
    }
}
