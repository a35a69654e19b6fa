//! A picture of the page: its name, what moves it, and what draws it.

use super::answer::Answer;
use super::explorer::Explorer;
use super::request::Params;
use anyhow::Result;
use serde::Serialize;
use serde_json::{Value, json};

/// Positions of a slider in a film strip and on an exported page.
pub const POSITIONS: usize = 9;

/// A picture of the page.
pub struct Panel {
    /// Its address.
    pub name: &'static str,
    /// What stands on its tab.
    pub title: &'static str,
    /// What it shows, in a sentence or two.
    pub about: String,
    /// What moves it.
    pub controls: Vec<Control>,
    /// The control that a film strip moves, if it has one.
    pub strip: Option<&'static str>,
    /// Draws it.
    pub answer: fn(&mut Explorer, &Params) -> Result<Answer>,
}

/// What moves a picture.
#[derive(Clone, Serialize)]
pub struct Control {
    /// The name of its value in a request.
    pub name: &'static str,
    /// What stands beside it.
    pub label: String,
    /// What it looks like.
    #[serde(flatten)]
    pub kind: Kind,
    /// Where it stands at first.
    pub value: Value,
    /// All values that it has, on an exported page.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub values: Option<Vec<Value>>,
}

/// What a control looks like.
#[derive(Clone, Serialize)]
#[serde(tag = "kind", rename_all = "snake_case")]
pub enum Kind {
    /// A slider.
    Slider {
        /// Its left end.
        min: f64,
        /// Its right end.
        max: f64,
        /// From one position to the next.
        step: f64,
    },
    /// A slider for each name; their values are an object.
    Sliders {
        /// The names.
        names: Vec<String>,
        /// Their left ends.
        min: f64,
        /// Their right ends.
        max: f64,
        /// From one position to the next.
        step: f64,
    },
    /// A seed, with a button for the next one.
    Seed,
    /// One of several values: each with what it is called.
    Choice {
        /// Values and names.
        options: Vec<(String, String)>,
    },
    /// Any of several numbers: each with what it is called.
    Checks {
        /// Numbers and names.
        options: Vec<(usize, String)>,
    },
    /// An image; several pictures share those of one name.
    Image {
        /// How many images the data have.
        count: usize,
    },
}

impl Control {
    fn new(name: &'static str, label: &str, kind: Kind, value: Value) -> Self {
        Self { name, label: label.to_owned(), kind, value, values: None }
    }

    /// A slider.
    pub fn slider(name: &'static str, label: &str, (min, max, step): (f64, f64, f64), value: f64) -> Self {
        Self::new(name, label, Kind::Slider { min, max, step }, value.into())
    }

    /// A slider for each name.
    pub fn sliders(
        name: &'static str,
        label: &str,
        names: &[String],
        (min, max, step): (f64, f64, f64),
    ) -> Self {
        Self::new(name, label, Kind::Sliders { names: names.to_vec(), min, max, step }, json!({}))
    }

    /// The seed.
    pub fn seed() -> Self {
        Self::new("seed", "Seed", Kind::Seed, 0.into())
    }

    /// One of several values, the first at the beginning.
    pub fn choice(name: &'static str, label: &str, options: &[(&str, &str)]) -> Self {
        let options: Vec<_> = options.iter().map(|(v, n)| ((*v).to_owned(), (*n).to_owned())).collect();
        let first = options[0].0.clone();
        Self::new(name, label, Kind::Choice { options }, first.into())
    }

    /// Any of several numbers.
    pub fn checks(name: &'static str, label: &str, options: Vec<(usize, String)>, value: &[usize]) -> Self {
        Self::new(name, label, Kind::Checks { options }, json!(value))
    }

    /// An image.
    pub fn image(e: &Explorer, name: &'static str, label: &str) -> Self {
        let count = e.part().map_or(0, |part| part.split.len());
        Self::new(name, label, Kind::Image { count }, Value::Null)
    }

    /// The class, if the model has classes; `others` is what it is called where none is chosen.
    pub fn class(e: &Explorer, others: &str) -> Option<Self> {
        let classes = e.classes();
        let named: Vec<_> =
            classes.iter().enumerate().map(|(i, name)| (i.to_string(), name.clone())).collect();
        let options: Vec<_> = std::iter::once((String::new(), others.to_owned())).chain(named).collect();
        let control = Self::new("class", "Class", Kind::Choice { options }, "".into());
        (!classes.is_empty()).then_some(control)
    }
}
