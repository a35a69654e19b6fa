//! What a browser asks for. Whatever it sends is checked here: a value that is missing, of another kind or out of its range is
//! one sentence.

use anyhow::{Context, Result, ensure};
use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use serde::Deserialize;
use serde_json::{Map, Value};
use std::ops::RangeInclusive;

/// Base64 characters of an image that the page was given, at most.
const LARGEST_IMAGE: usize = 1 << 22;
/// Characters of an image's name, at most.
const LONGEST_NAME: usize = 200;

/// An image that a picture is made of.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields, untagged)]
pub enum Spec {
    /// The image of the data at this place.
    Data {
        /// Its number in the split.
        data: usize,
    },
    /// A picture in the model's shape.
    Given {
        /// Its file, PNG, as base64.
        png: String,
        /// The name of the file that a command would read.
        name: String,
    },
}

impl Spec {
    /// The bytes of a picture's file.
    ///
    /// # Errors
    /// When they are no base64.
    pub fn file(png: &str) -> Result<Vec<u8>> {
        ensure!(
            png.len() <= LARGEST_IMAGE,
            "an image of this page has at most {LARGEST_IMAGE} characters: drop it again"
        );
        STANDARD.decode(png).context("an image of this page was damaged on its way: drop it again")
    }
}

/// The values of a picture's controls.
pub struct Params(Map<String, Value>);

impl Params {
    /// Those of a JSON object.
    ///
    /// # Errors
    /// When it is none.
    pub fn parse(body: &[u8]) -> Result<Self> {
        let value: Value =
            serde_json::from_slice(body).context("a request is a JSON object: reload the page")?;
        match value {
            Value::Object(map) => Ok(Self(map)),
            _ => anyhow::bail!("a request is a JSON object: reload the page"),
        }
    }

    /// Those of a value in memory.
    ///
    /// # Errors
    /// When it is no object.
    pub fn of(value: &Value) -> Result<Self> {
        Ok(Self(
            value.as_object().context("the values of a picture are a JSON object: reload the page")?.clone(),
        ))
    }

    /// A value, if there is one.
    pub fn get(&self, name: &str) -> Option<&Value> {
        self.0.get(name).filter(|value| !value.is_null())
    }

    /// A number of a range.
    ///
    /// # Errors
    /// When there is none, or it is out of the range.
    pub fn number(&self, name: &str, range: RangeInclusive<f64>) -> Result<f64> {
        number(self.get(name), name, range)
    }

    /// A whole number from 0 on, below `end`.
    ///
    /// # Errors
    /// When there is none.
    pub fn whole(&self, name: &str, end: u64) -> Result<u64> {
        let n = self.get(name).and_then(Value::as_u64).filter(|n| *n < end);
        n.with_context(|| format!("{name}: give a whole number from 0 to {}", end - 1))
    }

    /// A seed.
    ///
    /// # Errors
    /// When there is none.
    pub fn seed(&self) -> Result<u64> {
        // The largest whole number that a browser has.
        self.whole("seed", 1 << 53)
    }

    /// One of some words.
    ///
    /// # Errors
    /// When it is none of them.
    pub fn word<'a>(&self, name: &str, words: &[&'a str]) -> Result<&'a str> {
        let text = self.get(name).and_then(Value::as_str);
        let found = words.iter().find(|word| Some(**word) == text);
        found.copied().with_context(|| format!("{name}: choose one of {}", words.join(", ")))
    }

    /// Whole numbers below `end`, each once, in order.
    ///
    /// # Errors
    /// When they are none.
    pub fn places(&self, name: &str, end: usize) -> Result<Vec<usize>> {
        let wrong = || format!("{name}: choose among 0 to {}", end.saturating_sub(1));
        let list = self.get(name).and_then(Value::as_array).with_context(wrong)?;
        let mut places = Vec::new();
        for value in list {
            let place = value.as_u64().and_then(|n| usize::try_from(n).ok()).filter(|n| *n < end);
            places.push(place.with_context(wrong)?);
        }
        places.sort_unstable();
        places.dedup();
        Ok(places)
    }

    /// A number of the range for each of the names, 0 where nothing is said.
    ///
    /// # Errors
    /// When a name is unknown or a number out of the range.
    pub fn strengths(&self, name: &str, names: &[String], range: RangeInclusive<f64>) -> Result<Vec<f64>> {
        let empty = Map::new();
        let given = self.get(name).map_or(Some(&empty), Value::as_object);
        let given = given.with_context(|| format!("{name}: give a number for each name"))?;
        if let Some(unknown) = given.keys().find(|key| !names.contains(key)) {
            anyhow::bail!("{name}: there is no `{}`", unknown.chars().take(LONGEST_NAME).collect::<String>());
        }
        names
            .iter()
            .map(|key| given.get(key).map_or(Ok(0.), |value| number(Some(value), key, range.clone())))
            .collect()
    }

    /// An image.
    ///
    /// # Errors
    /// When there is none.
    pub fn image(&self, name: &str) -> Result<Spec> {
        let value = self.get(name).with_context(|| format!("{name}: choose an image"))?;
        let spec = Spec::deserialize(value).ok();
        let spec = spec.with_context(|| {
            format!("{name}: choose a number of the data, a sample or a picture of your own")
        })?;
        if let Spec::Given { name, .. } = &spec {
            ensure!(
                !name.is_empty() && name.chars().count() <= LONGEST_NAME,
                "an image has a name of at most {LONGEST_NAME} characters: rename the file"
            );
        }
        Ok(spec)
    }
}

fn number(value: Option<&Value>, name: &str, range: RangeInclusive<f64>) -> Result<f64> {
    let number = value.and_then(Value::as_f64).filter(|number| range.contains(number));
    number.with_context(|| format!("{name}: give a number from {} to {}", range.start(), range.end()))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn params(text: &str) -> Params {
        Params::parse(text.as_bytes()).unwrap()
    }

    #[test]
    fn values_are_checked() {
        let p = params(
            r#"{"t":0.5,"seed":7,"bad":null,"way":"arc","levels":[2,0,2],"image":{"data":3},
                "own":{"png":"QUI=","name":"a.png"},"s":{"smile":1.5}}"#,
        );
        assert_eq!((p.number("t", 0. ..=1.).unwrap(), p.seed().unwrap()), (0.5, 7));
        assert_eq!(p.word("way", &["line", "arc"]).unwrap(), "arc");
        assert_eq!(p.places("levels", 3).unwrap(), [0, 2]);
        assert_eq!(p.image("image").unwrap(), Spec::Data { data: 3 });
        let Spec::Given { png, name } = p.image("own").unwrap() else { panic!("a picture") };
        assert_eq!((Spec::file(&png).unwrap(), name.as_str()), (b"AB".to_vec(), "a.png"));
        let names = ["glasses".to_owned(), "smile".to_owned()];
        assert_eq!(p.strengths("s", &names, -5. ..=5.).unwrap(), [0., 1.5]);
        assert_eq!(p.strengths("none", &names, -5. ..=5.).unwrap(), [0., 0.]);

        let said = |e: Result<String>| e.unwrap_err().to_string();
        assert!(
            said(p.number("bad", 0. ..=1.).map(|v| v.to_string())).contains("bad: give a number from 0 to 1")
        );
        assert!(said(p.number("seed", 0. ..=1.).map(|v| v.to_string())).contains("from 0 to 1"));
        assert!(said(p.places("levels", 2).map(|v| format!("{v:?}"))).contains("0 to 1"));
        assert!(said(p.strengths("s", &names[..1], 0. ..=1.).map(|v| format!("{v:?}"))).contains("`smile`"));
        assert!(said(p.word("way", &["line"]).map(str::to_owned)).contains("line"));
        assert!(said(p.image("t").map(|v| format!("{v:?}"))).contains("choose"));
        assert!(params(r#"{"i":{"data":1,"png":""}}"#).image("i").is_err());
        assert!(params(r#"{"i":{"data":-1}}"#).image("i").is_err());
        assert!(Spec::file("?").is_err() && Spec::file(&"A".repeat(LARGEST_IMAGE + 4)).is_err());
        for body in ["", "[]", "NaN", r#"{"t":NaN}"#] {
            assert!(Params::parse(body.as_bytes()).is_err(), "{body}");
        }
    }
}
