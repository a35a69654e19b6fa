//! Runs that differ in their seed alone, as one row: mean and standard deviation.

use super::table::{Format, Run, aligned};
use anyhow::Result;
use experiments::run_dir;
use experiments::summary::Summary;
use serde::Serialize;
use std::collections::BTreeMap;

/// Bits/dim over the seeds of one setting.
#[derive(Clone, Copy, Debug, PartialEq)]
struct Spread {
    mean: f64,
    /// The sample's standard deviation; none of one run.
    std: Option<f64>,
}

impl Spread {
    fn of(values: &[f64]) -> Option<Self> {
        let n = values.len() as f64;
        let mean = values.iter().sum::<f64>() / n;
        let squares: f64 = values.iter().map(|v| (v - mean).powi(2)).sum();
        let std = (values.len() > 1).then(|| (squares / (n - 1.)).sqrt());
        (!values.is_empty()).then_some(Self { mean, std })
    }
}

/// One setting: the data, how many runs, and their means; `None` where a run has no such number. The order is that of the columns.
#[derive(Serialize)]
struct Group {
    recipe: String,
    data: String,
    #[serde(skip)]
    revision: String,
    seeds: usize,
    validation: Option<f64>,
    validation_std: Option<f64>,
    /// The lowest validation on its data set, where there are several settings.
    best: bool,
    test: Option<f64>,
    test_std: Option<f64>,
    images_seen: Option<f64>,
    seconds: Option<f64>,
}

/// The settings of a run but for its seed, by key.
fn settings(run: &Run) -> Result<BTreeMap<String, String>> {
    let counts = |key: &str| !matches!(key, "train.seed" | "about" | "name") && !key.starts_with("paper.");
    let Some(resolved) = run_dir::resolve(&run.dir)? else {
        // What is known without the recipe.
        let changed = run.summary.changed.iter().flatten().filter_map(|set| set.split_once('='));
        let changed = changed.map(|(key, value)| (key.to_owned(), value.to_owned()));
        return Ok(changed.filter(|(key, _)| counts(key)).collect());
    };
    Ok(resolved
        .settings()?
        .into_iter()
        .filter(|(key, ..)| counts(key))
        .map(|(key, value, _)| (key, value))
        .collect())
}

/// The groups, those of one data set together. A group is called by its recipe and the settings in which the runs of that recipe
/// differ.
fn groups(runs: &[Run]) -> Result<Vec<Group>> {
    let of_runs = runs.iter().map(settings).collect::<Result<Vec<_>>>()?;
    let name = |i: usize| {
        let recipe = &runs[i].summary.recipe;
        let differs = |key: &String| {
            let alike = (0..runs.len()).filter(|j| runs[*j].summary.recipe == *recipe);
            alike.map(|j| of_runs[j].get(key)).any(|value| value != of_runs[i].get(key))
        };
        let own =
            of_runs[i].iter().filter(|(key, _)| differs(key)).map(|(key, value)| format!("{key}={value}"));
        match own.collect::<Vec<_>>().as_slice() {
            [] => recipe.clone(),
            own => format!("{recipe} ({})", own.join(", ")),
        }
    };
    let mut all: BTreeMap<_, Vec<&Summary>> = BTreeMap::new();
    for (i, Run { summary, dir }) in runs.iter().enumerate() {
        let data = (summary.data.as_str(), summary.data_revision.as_str());
        let group = all.entry((data, name(i))).or_default();
        // The same seed again is the same run again, and no further sample.
        if summary.seed.is_some() && group.iter().any(|other| other.seed == summary.seed) {
            tracing::warn!(
                "{} is a run of a setting and seed that are in the table already: left out",
                dir.display()
            );
        } else {
            group.push(summary);
        }
    }
    let mut groups: Vec<Group> =
        all.into_iter().map(|((data, name), runs)| Group::of(name, data, &runs)).collect();
    let best: Vec<bool> = groups.iter().map(|group| group.is_best(&groups)).collect();
    for (group, best) in groups.iter_mut().zip(best) {
        group.best = best;
    }
    Ok(groups)
}

impl Group {
    fn of(recipe: String, (data, revision): (&str, &str), runs: &[&Summary]) -> Self {
        let spread = |of: fn(&Summary) -> Option<f64>| {
            let values: Vec<f64> = runs.iter().filter_map(|s| of(s)).collect();
            // A mean over some of the runs would be compared with one over all.
            if values.len() == runs.len() { Spread::of(&values) } else { None }
        };
        let validation = spread(|s| Some(s.validation.as_ref()?.bits_per_dim));
        let test = spread(|s| Some(s.test.as_ref()?.bits_per_dim));
        Self {
            recipe,
            data: data.to_owned(),
            revision: revision.to_owned(),
            seeds: runs.len(),
            validation: validation.map(|v| v.mean),
            validation_std: validation.and_then(|v| v.std),
            best: false,
            test: test.map(|t| t.mean),
            test_std: test.and_then(|t| t.std),
            images_seen: spread(|s| Some(s.training.as_ref()?.images_seen as f64)).map(|n| n.mean),
            seconds: spread(|s| Some(s.training.as_ref()?.wall_seconds)).map(|n| n.mean),
        }
    }

    fn is_best(&self, groups: &[Self]) -> bool {
        let mut rivals = groups.iter().filter(|g| (&g.data, &g.revision) == (&self.data, &self.revision));
        let mean = |group: &Self| group.validation.unwrap_or(f64::INFINITY);
        rivals.clone().count() > 1 && mean(self).is_finite() && rivals.all(|other| mean(self) <= mean(other))
    }
}

/// A row for each setting, with its mean and standard deviation over seeds; the best by validation on each data set is marked where
/// there is more than one.
///
/// # Errors
/// When a run's recipe cannot be read, or the rows cannot be written as CSV or JSON.
pub fn render(runs: &[Run], format: Format) -> Result<String> {
    let groups = groups(runs)?;
    match format {
        Format::Markdown | Format::Wide => Ok(markdown(&groups)),
        Format::Csv => {
            let mut csv = csv::Writer::from_writer(Vec::new());
            for group in &groups {
                csv.serialize(group)?;
            }
            Ok(String::from_utf8(csv.into_inner()?)?)
        }
        Format::Json => Ok(serde_json::to_string(&groups)? + "\n"),
    }
}

fn markdown(groups: &[Group]) -> String {
    let score = |mean: Option<f64>, std: Option<f64>| match (mean, std) {
        (Some(mean), Some(std)) => format!("{mean:.4} ± {std:.4}"),
        (Some(mean), None) => format!("{mean:.4}"),
        (None, _) => String::new(),
    };
    let whole = |n: Option<f64>| n.map_or_else(String::new, |n| format!("{n:.0}"));
    let rows = groups.iter().map(|g| {
        let validation = score(g.validation, g.validation_std);
        [
            g.recipe.clone(),
            g.data.clone(),
            g.seeds.to_string(),
            if g.best { format!("**{validation}**") } else { validation },
            score(g.test, g.test_std),
            whole(g.images_seen),
            whole(g.seconds),
        ]
    });
    let rows: Vec<[String; 7]> = rows.collect();
    let titles = ["recipe", "data", "seeds", "validation", "test", "images seen", "seconds"];
    let columns = titles.iter().enumerate().map(|(i, title)| {
        std::iter::once((*title).to_owned()).chain(rows.iter().map(|row| row[i].clone())).collect()
    });
    let filled: Vec<Vec<String>> =
        columns.filter(|c: &Vec<_>| c[1..].iter().any(|c| !c.is_empty())).collect();
    aligned(&filled, |title| matches!(title, "recipe" | "data"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn spreads_are_of_the_sample() {
        let spread = Spread::of(&[1., 2., 4.]).unwrap();
        assert!((spread.mean - 7. / 3.).abs() < 1e-12);
        assert!((spread.std.unwrap() - (7f64 / 3.).sqrt()).abs() < 1e-12);
        assert_eq!(Spread::of(&[1.5]), Some(Spread { mean: 1.5, std: None }));
        assert_eq!(Spread::of(&[]), None);
    }
}
