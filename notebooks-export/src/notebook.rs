//! The notebook: Markdown cells with pictures as attachments, code cells without outputs; nbformat 4.5.
//!
//! Its cells are the template `cells/notebook.md`, in which a line `=== ID` begins a Markdown cell and `=== ID code` a code
//! cell. The Python in `cells/` reads the files beside the notebook with numpy, pandas, safetensors, matplotlib and, for the
//! model itself, PyTorch. Serialisation is that of the crate `nbformat`. A cell's id says what it is about, so that the same
//! run gives the same file.

use crate::arrays::Drawn;
use anyhow::Result;
use askama::Template;
use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use flows::ModelConfig;
use flows::models::CouplingTransform;
use serde_json::{Map, Value, json};

/// A picture: the name of its file and the bytes.
pub type Picture = (String, Vec<u8>);

/// What the notebook is about.
#[derive(Template)]
#[template(path = "notebook.md")]
pub struct Story<'a> {
    /// The model's name as Markdown text.
    pub title: String,
    /// Where the run was, as Markdown.
    pub origin: String,
    /// The model's config.
    pub config: &'a ModelConfig,
    /// The number of trained scalars.
    pub parameters: usize,
    /// summary.json, where there is one.
    pub summary: Option<Value>,
    /// Whether there is a log.
    pub metrics: bool,
    /// curve.png of the run.
    pub curve: Option<Picture>,
    /// samples.png of the run.
    pub sheet: Option<Picture>,
    /// The pictures that `flow` commands have drawn.
    pub pictures: Vec<Picture>,
    /// Whether one of them has its numbers beside it.
    pub numbers: bool,
    /// The arrays.
    pub drawn: Drawn,
    /// The seed of the arrays.
    pub seed: u64,
    /// The number of samples that the attribute and the histograms are computed from.
    pub samples: usize,
}

impl Story<'_> {
    /// The text of the notebook in Python.
    ///
    /// # Errors
    /// When it cannot be written as JSON.
    pub fn write(&self) -> Result<String> {
        notebook(&self.render()?, ("Python 3", "python3", "python"), |cell| self.attached(cell))
    }

    /// The pictures of the Markdown cell with this id.
    fn attached(&self, cell: &str) -> &[Picture] {
        match cell {
            "training" => self.curve.as_slice(),
            "samples" => self.sheet.as_slice(),
            "pictures" => &self.pictures,
            _ => &[],
        }
    }

    /// Markdown that shows the pictures of a cell.
    fn shown(&self, cell: &str) -> String {
        let shown = |(i, (name, _)): (usize, &Picture)| {
            format!("\n\n![{}](attachment:{})", escaped(name), attachment(i, name))
        };
        self.attached(cell).iter().enumerate().map(shown).collect()
    }

    fn family(&self) -> &'static str {
        match self.config {
            ModelConfig::Nice(_) => "NICE",
            ModelConfig::RealNvp(_) => "RealNVP",
            ModelConfig::Glow(_) => "Glow",
            ModelConfig::Maf(_) => "MAF",
            ModelConfig::Composed(_) => "composed flow",
        }
    }

    /// The code of log p(x): the transform of the model's layers, then the model.
    fn model(&self) -> String {
        let model = match self.config {
            // `main` has refused it.
            ModelConfig::Composed(_) => "",
            ModelConfig::Nice(_) => include_str!("cells/nice.py"),
            ModelConfig::RealNvp(_) => return include_str!("cells/realnvp.py").to_owned(),
            ModelConfig::Glow(_) => include_str!("cells/glow.py"),
            ModelConfig::Maf(_) => include_str!("cells/maf.py"),
        };
        let transform = match (self.config.transform(), self.config) {
            (Some(CouplingTransform::RationalQuadraticSpline(_)), _) => include_str!("cells/spline.py"),
            (Some(CouplingTransform::MixtureOfLogistics(_)), _) => include_str!("cells/mixture.py"),
            (_, ModelConfig::Glow(_)) => include_str!("cells/sigmoid.py"),
            _ => include_str!("cells/affine.py"),
        };
        format!("{transform}\n\n{model}")
    }

    /// The lines of that code and of what it needs.
    fn lines(&self) -> usize {
        let code = [include_str!("cells/weights.py"), &self.model()].concat();
        code.lines().filter(|line| !line.trim().is_empty()).count()
    }

    /// The bits/dim that the summary reports, of the test images or else the validation images.
    fn score(&self) -> String {
        let score = self.summary.as_ref().and_then(|s| {
            let data = escaped(s["data"].as_str()?);
            ["test", "validation"].iter().find_map(|split| {
                let (bits, error) = (s[split]["bits_per_dim"].as_f64()?, s[split]["std_err"].as_f64()?);
                let images = s[split]["images"].as_u64()?;
                Some(format!(": **{bits:.4} ± {error:.4} bits/dim** on {images} {split} examples of {data}"))
            })
        });
        score.unwrap_or_default()
    }
}

/// The text of a notebook whose cells are those of a rendered template, for a kernel of this title, name and language.
/// `pictures` gives the pictures of a Markdown cell by its id.
///
/// # Errors
/// When it cannot be written as JSON.
pub fn notebook<'a>(
    cells: &str,
    (title, kernel, language): (&str, &str, &str),
    pictures: impl Fn(&str) -> &'a [Picture],
) -> Result<String> {
    let cell = |text: &str| {
        let (head, body) = text.split_once('\n').unwrap_or((text, ""));
        let source: Vec<&str> = body.trim().split_inclusive('\n').collect();
        if let Some(id) = head.strip_suffix(" code") {
            return json!({
                "cell_type": "code", "id": id, "metadata": {}, "source": source, "execution_count": null, "outputs": [],
            });
        }
        let png = |(i, (name, bytes)): (usize, &Picture)| {
            (attachment(i, name), json!({ "image/png": STANDARD.encode(bytes) }))
        };
        let pictures: Map<String, Value> = pictures(head).iter().enumerate().map(png).collect();
        let attachments = Some(pictures).filter(|pictures| !pictures.is_empty());
        json!({
            "cell_type": "markdown", "id": head, "metadata": {}, "source": source, "attachments": attachments,
        })
    };
    let notebook = json!({
        "metadata": {
            "kernelspec": { "display_name": title, "name": kernel, "language": language },
            "language_info": { "name": language },
        },
        "nbformat": 4,
        "nbformat_minor": 5,
        "cells": format!("\n{cells}").split("\n=== ").skip(1).map(cell).collect::<Vec<_>>(),
    });
    Ok(nbformat::serialize_notebook(&nbformat::Notebook::V4(serde_json::from_value(notebook)?))?)
}

/// The name under which a cell attaches its picture `i`: the file's name where that can stand in a link, otherwise a name
/// that no PNG file has.
fn attachment(i: usize, name: &str) -> String {
    match name.bytes().all(|b| b.is_ascii_alphanumeric() || b"-_.".contains(&b)) {
        true => name.to_owned(),
        false => format!("picture-{}", i + 1),
    }
}

/// A name as Markdown text in one line.
pub fn escaped(name: &str) -> String {
    let mut text = String::new();
    for c in name.chars() {
        if "\\`*_{}[]<>&~|#$!".contains(c) {
            text.push('\\');
        }
        text.push(if c.is_control() { ' ' } else { c });
    }
    text
}

/// A name as Markdown code in one line: between more backticks than it contains.
pub fn code(name: &str) -> String {
    let name: String = name.chars().map(|c| if c.is_control() { ' ' } else { c }).collect();
    let most = name.split(|c| c != '`').map(str::len).max().unwrap_or(0);
    let fence = "`".repeat(most + 1);
    match most {
        0 => format!("{fence}{name}{fence}"),
        _ => format!("{fence} {name} {fence}"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_text_in_markdown() {
        assert_eq!(escaped("a_b <img> [1]\n#"), "a\\_b \\<img\\> \\[1\\] \\#");
        assert_eq!(code("a_b <img>"), "`a_b <img>`");
        assert_eq!(code("a``b`"), "``` a``b` ```");
    }

    #[test]
    fn each_model_is_sixty_lines_of_pytorch() {
        let weights = include_str!("cells/weights.py");
        let models = [
            ("NICE", include_str!("cells/nice.py")),
            ("RealNVP", include_str!("cells/realnvp.py")),
            ("Glow", include_str!("cells/glow.py")),
            ("MAF", include_str!("cells/maf.py")),
        ];
        for (family, model) in models {
            let lines: Vec<&str> =
                weights.lines().chain(model.lines()).filter(|line| !line.trim().is_empty()).collect();
            assert!(lines.len() <= 60, "{family}: {} lines", lines.len());
            assert!(lines.iter().all(|line| line.len() <= 120 && !line.contains(';')), "{family}: crowded");
        }
        let transforms = [
            include_str!("cells/affine.py"),
            include_str!("cells/sigmoid.py"),
            include_str!("cells/spline.py"),
            include_str!("cells/mixture.py"),
        ];
        for transform in transforms {
            assert!(transform.lines().count() <= 25, "{transform}");
            assert!(transform.lines().all(|line| line.len() <= 120 && !line.contains(';')), "{transform}");
        }
    }
}
