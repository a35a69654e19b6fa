//! Runs that differ in their seed alone, as one row: mean and standard deviation.

use super::table::{Run, aligned};
use anyhow::Result;
use experiments::evaluate::Evaluation;
use experiments::run_dir;
use experiments::summary::Summary;
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

    fn text(self) -> String {
        self.std.map_or_else(|| format!("{:.4}", self.mean), |std| format!("{:.4} ± {std:.4}", self.mean))
    }
}

/// One setting: its runs, the data, and what they reached.
struct Group<'a> {
    name: String,
    data: (&'a str, &'a str),
    runs: Vec<&'a Summary>,
    validation: Option<Spread>,
    test: Option<Spread>,
}

/// The settings of a run but for its seed, by key.
fn settings(run: &Run) -> Result<BTreeMap<String, String>> {
    let Some(resolved) = run_dir::resolve(&run.dir)? else { return Ok(BTreeMap::new()) };
    let counts = |key: &str| !matches!(key, "train.seed" | "about" | "name") && !key.starts_with("paper.");
    Ok(resolved
        .settings()?
        .into_iter()
        .filter(|(key, ..)| counts(key))
        .map(|(key, value, _)| (key, value))
        .collect())
}

/// The groups, those of one data set together. A group is called by its recipe and the settings in which the runs of that recipe
/// differ.
fn groups(runs: &[Run]) -> Result<Vec<Group<'_>>> {
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
    for (i, Run { summary, .. }) in runs.iter().enumerate() {
        let data = (summary.data.as_str(), summary.data_revision.as_str());
        all.entry((data, name(i))).or_default().push(summary);
    }
    let spread = |runs: &[&Summary], of: fn(&Summary) -> &Option<Evaluation>| {
        let values: Vec<f64> = runs.iter().filter_map(|s| Some(of(s).as_ref()?.bits_per_dim)).collect();
        // A mean over some of the runs would be compared with one over all.
        if values.len() == runs.len() { Spread::of(&values) } else { None }
    };
    let made = all.into_iter().map(|((data, name), runs)| Group {
        name,
        data,
        validation: spread(&runs, |s| &s.validation),
        test: spread(&runs, |s| &s.test),
        runs,
    });
    Ok(made.collect())
}

/// A row for each setting, with its mean ± standard deviation over seeds; the best by validation on each data set is bold where
/// there is more than one.
///
/// # Errors
/// When a run's recipe cannot be read.
pub fn markdown(runs: &[Run]) -> Result<String> {
    let groups = groups(runs)?;
    let best = |group: &Group| {
        let rivals: Vec<&Group> = groups.iter().filter(|other| other.data == group.data).collect();
        let mean = |group: &Group| group.validation.map_or(f64::INFINITY, |v| v.mean);
        rivals.len() > 1 && mean(group).is_finite() && rivals.iter().all(|other| mean(group) <= mean(other))
    };
    let mean = |group: &Group, of: fn(&Summary) -> Option<f64>| {
        let values: Vec<f64> = group.runs.iter().filter_map(|s| of(s)).collect();
        Spread::of(&values).map_or_else(String::new, |s| format!("{:.0}", s.mean))
    };
    let score = |spread: Option<Spread>| spread.map_or_else(String::new, Spread::text);
    type Cell<'a> = Box<dyn Fn(&Group) -> String + 'a>;
    let columns: [(&str, Cell); 7] = [
        ("recipe", Box::new(|g| g.name.clone())),
        ("data", Box::new(|g| g.data.0.to_owned())),
        ("seeds", Box::new(|g| g.runs.len().to_string())),
        (
            "validation",
            Box::new(|g| if best(g) { format!("**{}**", score(g.validation)) } else { score(g.validation) }),
        ),
        ("test", Box::new(|g| score(g.test))),
        ("images seen", Box::new(|g| mean(g, |s| Some(s.training.as_ref()?.images_seen as f64)))),
        ("seconds", Box::new(|g| mean(g, |s| Some(s.training.as_ref()?.wall_seconds)))),
    ];
    let filled = columns.iter().map(|(title, cell)| {
        std::iter::once((*title).to_owned()).chain(groups.iter().map(cell)).collect::<Vec<_>>()
    });
    let filled: Vec<Vec<String>> =
        filled.filter(|column| column[1..].iter().any(|c| !c.is_empty())).collect();
    Ok(aligned(&filled, |title| matches!(title, "recipe" | "data")))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn spreads_are_of_the_sample() {
        let spread = Spread::of(&[1., 2., 4.]).unwrap();
        assert!((spread.mean - 7. / 3.).abs() < 1e-12);
        assert!((spread.std.unwrap() - (7f64 / 3.).sqrt()).abs() < 1e-12);
        assert_eq!(Spread::of(&[1.5]).unwrap().text(), "1.5000");
        assert_eq!(Spread::of(&[]), None);
    }
}
