//! The page as plain files: the same page with a fixed set of answers in the server's place.
//!
//! Every control gets a list of values, nine for a slider, and every combination of a picture's values is answered once. An answer's
//! key is its picture's name with the place of each value in its list. Sliders that add up on the served page exclude each other
//! here, since all combinations would be millions.

use super::explorer::Explorer;
use super::panel::{Control, Kind, POSITIONS, Panel};
use super::request::Params;
use super::table;
use crate::output;
use crate::progress::{Count, Stopped};
use crate::session::pooled;
use anyhow::{Context, Result, ensure};
use experiments::data::hex;
use serde_json::{Map, Value, json};
use sha2::{Digest, Sha256};
use std::collections::HashSet;
use std::fs;
use std::path::Path;

/// Bytes of an exported page, at most.
const MOST: u64 = 20_000_000;
/// Bytes of an answer beside its images, about.
const ANSWER: u64 = 700;
/// Sets of values, the largest first: how many images, and how many seeds.
const SETS: [(usize, u64); 5] = [(6, 4), (4, 3), (3, 2), (2, 1), (1, 1)];

/// Writes the page to the folder `out`, the largest set of pictures that is small enough, and says its size.
///
/// # Errors
/// When the folder cannot be written, or the smallest set is too large; then there is no folder.
pub fn export(mut e: Explorer, out: &Path) -> Result<()> {
    let said = output::whole_folder("--export", out, |folder| fill(&mut e, folder))?;
    output::line(format_args!(
        "{said}: open {}, or put the folder on a web server",
        out.join("index.html").display()
    ))
}

/// Writes the files of the page; what there is of them.
fn fill(e: &mut Explorer, out: &Path) -> Result<String> {
    let (panels, each) = pooled(|| Ok((table::panels(e)?, image_size(e)?)))?;
    let mut sets = SETS.iter().map(|set| fixed(&panels, *set));
    let fits =
        |panels: &Vec<Panel>| panels.iter().map(|panel| size(panel, each)).sum::<u64>() <= MOST * 9 / 10;
    let panels = sets.find(fits);
    let panels = panels.with_context(|| {
        format!(
            "images of {each} bytes make a page of more than {} MB: show it with `flow explore` itself",
            MOST / 1_000_000
        )
    })?;
    fs::create_dir(out.join("images"))?;
    let mut page = Page { out, written: HashSet::new(), bytes: 0 };
    for (path, _, text) in super::server::FILES {
        page.write(if path == "/" { "index.html" } else { &path[1..] }, text.as_bytes())?;
    }
    let all: usize = panels.iter().map(combinations).sum();
    let (count, mut answers) = (Count::new("pictures"), Map::new());
    for panel in &panels {
        for i in 0..combinations(panel) {
            if !count.at(answers.len(), all) {
                return Err(Stopped.into());
            }
            let (key, params) = combination(panel, i);
            let answer = pooled(|| answer(e, panel, &params, &mut page))?;
            answers.insert(key, answer);
        }
    }
    drop(count);
    let info = pooled(|| table::info(e, &panels))?;
    let text = json!({ "info": info, "answers": answers }).to_string();
    page.write("pictures.js", format!("window.flowPictures = {text};\n").as_bytes())?;
    let (files, megabytes) = (page.written.len(), page.bytes as f64 / 1e6);
    ensure!(
        page.bytes <= MOST,
        "the page has {megabytes:.1} MB, more than {}: show it with `flow explore` itself",
        MOST / 1_000_000
    );
    Ok(format!("{all} answers with {files} images, {megabytes:.1} MB"))
}

/// The folder that is written.
struct Page<'a> {
    out: &'a Path,
    /// The images in it.
    written: HashSet<String>,
    bytes: u64,
}

impl Page<'_> {
    fn write(&mut self, name: &str, bytes: &[u8]) -> Result<()> {
        let path = self.out.join(name);
        let before = fs::metadata(&path).map_or(0, |meta| meta.len());
        fs::write(&path, bytes).with_context(|| format!("cannot write {}", path.display()))?;
        self.bytes = self.bytes - before + bytes.len() as u64;
        Ok(())
    }

    /// Writes an image once, whichever answers have it; its address.
    fn image(&mut self, png: &[u8]) -> Result<String> {
        let name = format!("images/{}.png", &hex(&Sha256::digest(png))[..16]);
        if self.written.insert(name.clone()) {
            self.write(&name, png)?;
        }
        Ok(name)
    }
}

/// One answer, or the sentence why there is none, as where an inverse overflows; what it waits for is computed.
fn answer(e: &mut Explorer, panel: &Panel, params: &Params, page: &mut Page) -> Result<Value> {
    loop {
        let answer = match (panel.answer)(e, params) {
            Ok(answer) => answer,
            Err(error) => return Ok(json!({ "error": output::sentence(&error) })),
        };
        if answer.waiting.is_none() {
            let mut json = answer.json(|png| page.image(&png))?;
            // No sample of an exported page can be another picture's image.
            json["images"].as_array_mut().into_iter().flatten().for_each(|image| image["file"] = Value::Null);
            return Ok(json);
        }
        e.work()?;
    }
}

/// The bytes of a sample as PNG; 0 where the examples are no images.
fn image_size(e: &mut Explorer) -> Result<u64> {
    let Ok([_, height, width]) = e.shape() else { return Ok(0) };
    let base = e.base(0, None);
    let s = e.session(&base);
    let x = s.model.sample(1, 1., 0, s.labels(1)?.as_ref())?;
    let bytes = s.bytes(&x)?.concat();
    let image = super::answer::Image::main(bytes, e.shape()?, "");
    Ok(crate::draw::plots::png(&image.rgb(), (width as u32, height as u32))?.len() as u64)
}

/// The bytes that a picture's answers take, about.
fn size(panel: &Panel, image: u64) -> u64 {
    let each = if panel.name == "samples" { 16 } else { 1 };
    combinations(panel) as u64 * (each * image + ANSWER)
}

/// The pictures with a list of values for each control.
fn fixed(panels: &[Panel], set: (usize, u64)) -> Vec<Panel> {
    let fixed = |panel: &Panel| Panel {
        controls: panel.controls.iter().map(|control| listed(control, panel.name, set)).collect(),
        about: panel.about.clone(),
        ..*panel
    };
    // Without data there are no images to list.
    panels.iter().map(fixed).filter(|panel| combinations(panel) > 0).collect()
}

/// A control with the list of its values, the one at the beginning among them.
fn listed(control: &Control, panel: &str, (images, seeds): (usize, u64)) -> Control {
    let positions = |min: f64, max: f64| {
        let at = move |i: usize| min + (max - min) * i as f64 / (POSITIONS - 1) as f64;
        // As they are written: .30000000000000004 is a rounding error's.
        (0..POSITIONS).map(move |i| (at(i) * 1e6).round() / 1e6)
    };
    let mut value = control.value.clone();
    let values: Vec<Value> = match &control.kind {
        Kind::Slider { min, max, .. } => {
            let at = value.as_f64().unwrap_or(*min);
            let near = |a: &f64, b: &f64| (a - at).abs().total_cmp(&(b - at).abs());
            value = positions(*min, *max).min_by(near).into();
            positions(*min, *max).map(Value::from).collect()
        }
        Kind::Sliders { names, min, max, .. } => {
            let one = |name: &String| {
                let name = name.clone();
                let moved = positions(*min, *max).filter(|v| *v != 0.);
                moved.map(move |v| json!({ name.clone(): v })).collect::<Vec<_>>()
            };
            std::iter::once(json!({})).chain(names.iter().flat_map(one)).collect()
        }
        Kind::Seed => (0..seeds).map(Value::from).collect(),
        // Of classes only samples are shown: each would be a set of its own.
        Kind::Choice { .. } if control.name == "class" && panel != "samples" && panel != "points" => {
            vec!["".into()]
        }
        Kind::Choice { options } => options.iter().map(|(value, _)| value.clone().into()).collect(),
        Kind::Checks { options } => (1..1u32 << options.len().min(8))
            .map(|set| options.iter().map(|o| o.0).filter(|i| set >> i & 1 == 1).collect::<Vec<_>>().into())
            .collect(),
        Kind::Image { count } => {
            let all: Vec<Value> = (0..images.min(*count)).map(|place| json!({ "data": place })).collect();
            value = all.get(usize::from(control.name == "b")).or(all.first()).cloned().unwrap_or_default();
            all
        }
    };
    Control { values: Some(values), value, ..control.clone() }
}

fn lists(panel: &Panel) -> impl Iterator<Item = &Vec<Value>> {
    panel.controls.iter().filter_map(|control| control.values.as_ref())
}

/// How many answers a picture has; none of images that the data do not have.
fn combinations(panel: &Panel) -> usize {
    lists(panel).map(Vec::len).product()
}

/// The key and the values of answer `i` of a picture.
fn combination(panel: &Panel, mut i: usize) -> (String, Params) {
    let (mut places, mut values) = (Vec::new(), Map::new());
    for (control, list) in panel.controls.iter().zip(lists(panel)) {
        places.push((i % list.len()).to_string());
        values.insert(control.name.to_owned(), list[i % list.len()].clone());
        i /= list.len();
    }
    let params = Params::of(&Value::Object(values)).expect("it is an object");
    (format!("{}:{}", panel.name, places.join(".")), params)
}

#[cfg(test)]
mod tests {
    use super::super::answer::Answer;
    use super::*;

    #[test]
    fn every_combination_has_a_key_of_its_own() {
        fn nothing(_: &mut Explorer, _: &Params) -> Result<Answer> {
            anyhow::bail!("nothing is drawn here")
        }
        let options = vec![(0, "level 0".to_owned()), (1, "level 1".to_owned())];
        let controls = vec![
            Control::slider("temperature", "Temperature", (0., 1.2, 0.05), 0.7),
            Control::sliders("strengths", "Add", &["smile".to_owned(), "beard".to_owned()], (-3., 3., 0.25)),
            Control::checks("levels", "Draw anew", options, &[1]),
            Control::seed(),
        ];
        let (name, title, about) = ("levels", "Levels", String::new());
        let panel = Panel { name, title, about, controls, strip: None, answer: nothing };
        let panel = fixed(&[panel], (3, 2)).remove(0);
        assert_eq!(combinations(&panel), 9 * 17 * 3 * 2);
        let all: HashSet<String> = (0..combinations(&panel)).map(|i| combination(&panel, i).0).collect();
        assert_eq!(all.len(), combinations(&panel));
        let (key, params) = combination(&panel, 1);
        assert_eq!(
            (key.as_str(), params.number("temperature", 0. ..=1.2).unwrap()),
            ("levels:1.0.0.0", 0.15)
        );
        // What a control shows at the beginning is one of its values.
        for control in &panel.controls {
            assert!(control.values.as_ref().unwrap().contains(&control.value), "{}", control.name);
        }
        assert_eq!(panel.controls[0].value, 0.75);
    }
}
