//! All that a browser can ask for, by name.

use super::answer::{Answer, Image};
use super::explorer::{Explorer, Kind};
use super::panel::{POSITIONS, Panel};
use super::panels::{attributes, bits, density, layers, levels, mix, points, samples};
use super::request::Params;
use super::strip::{self, strip};
use crate::draw::plots::png;
use anyhow::{Context, Result, ensure};
use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use experiments::data::picture;
use image::imageops::FilterType;
use serde_json::{Value, json};

/// Bytes of a file that is dropped onto the page, at most.
pub const LARGEST_FILE: usize = 32 << 20;

/// The second image at the beginning, where the data have it.
const OTHER: usize = 7;

/// The pictures of a model.
///
/// # Errors
/// When the model cannot be asked for its levels or layers.
pub fn panels(e: &Explorer) -> Result<Vec<Panel>> {
    Ok(match e.kind() {
        Kind::Images(_) => {
            let rest = [attributes::panel(e), levels::panel(e)?, Some(bits::panel(e))];
            [samples::panel(e), mix::panel(e)].into_iter().chain(rest.into_iter().flatten()).collect()
        }
        Kind::Plane => {
            let density = e.part().is_some().then(density::panel);
            density.into_iter().chain(layers::panel(e)?).chain([points::panel(e)]).collect()
        }
        Kind::Vectors(_) => vec![points::panel(e)],
    })
}

/// The picture of this name.
fn panel(e: &Explorer, name: &str) -> Result<Panel> {
    let found = panels(e)?.into_iter().find(|panel| panel.name == name);
    found.with_context(|| format!("there is no picture `{name}`: reload the page"))
}

/// A picture in the answer itself.
fn inline(png: Vec<u8>) -> Result<String> {
    Ok(format!("data:image/png;base64,{}", STANDARD.encode(png)))
}

/// Answers one request.
///
/// # Errors
/// When it asks for something else, with one sentence for a person.
pub fn answer(e: &mut Explorer, name: &str, body: &[u8]) -> Result<Value> {
    match name {
        "info" => {
            let panels = panels(e)?;
            info(e, &panels)
        }
        "file" => file(e, body),
        "strip" => film(e, &Params::parse(body)?),
        _ => {
            let panel = panel(e, name)?;
            (panel.answer)(e, &Params::parse(body)?)?.json(inline)
        }
    }
}

/// What the page is of, and its pictures.
///
/// # Errors
/// When samples cannot be drawn.
pub fn info(e: &Explorer, panels: &[Panel]) -> Result<Value> {
    let about = |panel: &Panel| {
        json!({
            "name": panel.name, "title": panel.title, "about": panel.about, "controls": panel.controls, "strip": panel.strip,
        })
    };
    let panels: Vec<Value> = panels.iter().map(about).collect();
    Ok(json!({
        "name": e.name(), "shape": e.shape().ok(), "images": images(e)?, "panels": panels, "positions": POSITIONS,
        "largest_file": LARGEST_FILE, "data": e.part().map(|part| format!("{} ({})", part.name, part.part.name())),
    }))
}

/// The images A and B at the beginning: two of the data, or two samples where there are none.
fn images(e: &Explorer) -> Result<Value> {
    let Ok(shape) = e.shape() else { return Ok(Value::Null) };
    if let Some(count) = e.part().map(|part| part.split.len()) {
        let other = if count > OTHER { OTHER } else { count - 1 };
        return Ok(json!({ "a": { "data": 0 }, "b": { "data": other } }));
    }
    let base = e.base(0, None);
    let s = e.session(&base);
    let x = s.model.sample(2, 0.7, 0, s.labels(2)?.as_ref())?;
    let mut specs = Vec::new();
    for (i, bytes) in s.bytes(&x)?.into_iter().enumerate() {
        let png = png(&Image::main(bytes, shape, "").rgb(), (shape[2] as u32, shape[1] as u32))?;
        specs.push(json!({ "png": STANDARD.encode(png), "name": format!("samples/{i:05}.png") }));
    }
    Ok(json!({ "a": specs[0], "b": specs[1] }))
}

/// A file that was dropped onto the page, in the model's shape: its middle, resized as images of a folder are.
fn file(e: &Explorer, body: &[u8]) -> Result<Value> {
    let [channels, height, width] = e.shape()?;
    ensure!(
        body.len() <= LARGEST_FILE,
        "the file has more than {} MB: give a smaller one",
        LARGEST_FILE >> 20
    );
    ensure!(!body.is_empty(), "the file is empty: give a picture");
    let image = picture::decode(body, "the file")?;
    let (from_height, from_width) = (image.height(), image.width());
    let image = match height == width {
        true => picture::fit(image, height)?,
        false => image.resize_to_fill(u32::try_from(width)?, u32::try_from(height)?, FilterType::CatmullRom),
    };
    let bytes = picture::bytes(&image, channels == 1);
    let image = Image::main(bytes, [channels, height, width], "");
    Ok(json!({
        "png": STANDARD.encode(png(&image.rgb(), image.size())?), "suffix": format!("-{width}x{height}.png"),
        "from": format!("{from_width} × {from_height}"),
    }))
}

/// A film strip: a picture's name, and the values of its controls for each frame.
fn film(e: &mut Explorer, params: &Params) -> Result<Value> {
    let name = params
        .get("panel")
        .and_then(Value::as_str)
        .context("a film strip is of a picture: reload the page")?;
    let frames =
        params.get("frames").and_then(Value::as_array).context("a film strip has frames: reload the page")?;
    ensure!(
        (1..=strip::LONGEST).contains(&frames.len()),
        "a film strip has 1 to {} pictures, {} were asked for",
        strip::LONGEST,
        frames.len()
    );
    let draw = panel(e, name)?.answer;
    let mut answers: Vec<Answer> = Vec::new();
    for frame in frames {
        answers.push(draw(e, &Params::of(frame)?)?);
    }
    if let Some(waiting) = answers.iter().find_map(|answer| answer.waiting) {
        return Ok(json!({ "waiting": waiting }));
    }
    strip(&answers)
}
