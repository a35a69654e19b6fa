//! The notebook: Markdown cells with pictures as attachments, code cells without outputs; nbformat 4.5.
//!
//! The cells' Python is in `cells/`, and reads the files beside the notebook with numpy, pandas, safetensors, matplotlib and,
//! for the model itself, PyTorch. Types and serialisation are those of the crate `nbformat`. A cell's id is what it is
//! about, so that the same run gives the same file.

use crate::arrays::LeftOut;
use anyhow::{Context, Result};
use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use flows::ModelConfig;
use nbformat::v4::{Cell, CellId, CellMetadata, KernelSpec, LanguageInfo, Metadata, Notebook};
use serde_json::{Value, json};
use std::collections::HashMap;

/// A picture, by its file's name.
pub type Picture = (String, Vec<u8>);

/// What the notebook is about.
pub struct Story<'a> {
    /// The model's name.
    pub name: &'a str,
    /// Where the run was.
    pub origin: &'a str,
    /// The config.
    pub config: &'a ModelConfig,
    /// Trained scalars.
    pub parameters: usize,
    /// summary.json, where there is one.
    pub summary: Option<&'a Value>,
    /// Whether there is a log.
    pub metrics: bool,
    /// curve.png and samples.png, as far as they are there.
    pub own: &'a [Picture],
    /// The pictures of the `flow` commands.
    pub pictures: &'a [Picture],
    /// Whether one of them has its numbers beside it.
    pub numbers: bool,
    /// Names of the arrays.
    pub arrays: &'a [String],
    /// Drawings that are in none of them.
    pub left_out: &'a [LeftOut],
    /// The seed of the arrays.
    pub seed: u64,
    /// Samples that the attribute and the histograms are of.
    pub samples: usize,
}

/// A notebook's cells.
#[derive(Default)]
pub struct Book(Vec<Cell>);

impl Book {
    /// A Markdown cell; each picture is drawn where the text says `![](attachment:..)`, with [`attachment`]'s name of it.
    ///
    /// # Errors
    /// When the id is none.
    pub fn text(&mut self, id: &str, source: &str, pictures: &[Picture]) -> Result<()> {
        let attached = pictures
            .iter()
            .enumerate()
            .map(|(i, (name, bytes))| (attachment(i, name), json!({ "image/png": STANDARD.encode(bytes) })));
        let attachments = (!pictures.is_empty()).then(|| Value::Object(attached.collect()));
        self.0.push(Cell::Markdown {
            id: cell_id(id)?,
            metadata: plain()?,
            source: lines(source),
            attachments,
        });
        Ok(())
    }

    /// A code cell without outputs.
    ///
    /// # Errors
    /// When the id is none.
    pub fn code(&mut self, id: &str, source: &str) -> Result<()> {
        self.0.push(Cell::Code {
            id: cell_id(id)?,
            metadata: plain()?,
            execution_count: None,
            source: lines(source.trim_end()),
            outputs: Vec::new(),
        });
        Ok(())
    }

    /// The file's text, for a kernel of this title, name and language.
    ///
    /// # Errors
    /// When it cannot be written as JSON.
    pub fn finish(self, (title, kernel, language): (&str, &str, &str)) -> Result<String> {
        let notebook = Notebook {
            metadata: Metadata {
                kernelspec: Some(KernelSpec {
                    display_name: title.to_owned(),
                    name: kernel.to_owned(),
                    language: Some(language.to_owned()),
                    additional: HashMap::new(),
                }),
                language_info: Some(LanguageInfo {
                    name: language.to_owned(),
                    version: None,
                    codemirror_mode: None,
                    additional: HashMap::new(),
                }),
                authors: None,
                additional: HashMap::new(),
            },
            nbformat: 4,
            nbformat_minor: 5,
            cells: self.0,
        };
        Ok(nbformat::serialize_notebook(&nbformat::Notebook::V4(notebook))?)
    }
}

fn cell_id(id: &str) -> Result<CellId> {
    CellId::try_from(id).map_err(anyhow::Error::msg).with_context(|| format!("`{id}` is no cell's id"))
}

fn plain() -> Result<CellMetadata> {
    Ok(serde_json::from_value(json!({}))?)
}

/// The lines of a text, each with its end, as notebooks keep them.
fn lines(text: &str) -> Vec<String> {
    text.split_inclusive('\n').map(str::to_owned).collect()
}

/// `![](attachment:..)` of each.
fn shown(pictures: &[Picture]) -> String {
    let shown = |(i, (name, _)): (usize, &Picture)| {
        format!("\n\n![{}](attachment:{})", escaped(name), attachment(i, name))
    };
    pictures.iter().enumerate().map(shown).collect()
}

/// What the picture is called that is the `i`-th of a cell: its file's name where that can stand in a link, and otherwise
/// one that no PNG has.
fn attachment(i: usize, name: &str) -> String {
    match name.bytes().all(|b| b.is_ascii_alphanumeric() || b"-_.".contains(&b)) {
        true => name.to_owned(),
        false => format!("picture-{}", i + 1),
    }
}

/// A name of the user's as Markdown's text, in one line.
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

/// A name of the user's as code, in one line: between more backticks than it has itself.
pub fn code(name: &str) -> String {
    let name: String = name.chars().map(|c| if c.is_control() { ' ' } else { c }).collect();
    let most = name.split(|c| c != '`').map(str::len).max().unwrap_or(0);
    let fence = "`".repeat(most + 1);
    match most {
        0 => format!("{fence}{name}{fence}"),
        _ => format!("{fence} {name} {fence}"),
    }
}

/// Each model's name, and its log p(x) in PyTorch: what reads the weights, and the model itself, 60 lines of code at most.
const WEIGHTS: &str = include_str!("cells/weights.py");
const NICE: (&str, &str) = ("NICE", include_str!("cells/nice.py"));
const REALNVP: (&str, &str) = ("RealNVP", include_str!("cells/realnvp.py"));
const GLOW: (&str, &str) = ("Glow", include_str!("cells/glow.py"));

fn kind(config: &ModelConfig) -> (&'static str, &'static str) {
    match config {
        ModelConfig::Nice(_) => NICE,
        ModelConfig::RealNvp(_) => REALNVP,
        ModelConfig::Glow(_) => GLOW,
    }
}

/// The notebook's text.
///
/// # Errors
/// When it cannot be written as JSON.
pub fn write(story: &Story) -> Result<String> {
    let mut book = Book::default();
    let Story { name, config, summary, seed, samples, .. } = story;
    let (family, in_torch) = kind(config);
    let has = |array: &str| story.arrays.iter().any(|a| a == array);
    let left = |topic: &str| {
        let mut text = String::new();
        for LeftOut { left, of, .. } in story.left_out.iter().filter(|l| l.topic == topic) {
            text.push_str(&format!(
                " ({left} of {of} that were drawn are left out: they, or their log p(x), are not finite.)"
            ));
        }
        text
    };
    let own = |file: &str| story.own.iter().filter(|p| p.0 == file).cloned().collect::<Vec<_>>();

    let mut title = format!(
        "# {}\n\nA {family} with {} trained numbers, of examples of shape {:?}",
        escaped(name),
        story.parameters,
        config.shape()
    );
    let score = summary.and_then(|s| {
        let data = s["data"].as_str()?;
        ["test", "validation"].iter().find_map(|split| {
            let (bits, error) = (s[split]["bits_per_dim"].as_f64()?, s[split]["std_err"].as_f64()?);
            let images = s[split]["images"].as_u64()?;
            Some(format!(
                ": **{bits:.4} ± {error:.4} bits/dim** on {images} {split} examples of {}",
                escaped(data)
            ))
        })
    });
    title.push_str(&score.unwrap_or_default());
    title.push_str(&format!(
        ".\n\nWritten from {} by `notebooks-export`. What the cells show is in the files beside this notebook: \
         `arrays.npz` (what the model made of seed {seed}), `config.json` and the weights{}{}. The cells need numpy, \
         pandas with pyarrow, matplotlib and safetensors, and PyTorch for the last part, nothing else.",
        story.origin,
        if story.metrics { ", the log of training (`metrics.parquet`, and the same as `metrics.csv`)" } else { "" },
        if summary.is_some() { ", `summary.json`" } else { "" },
    ));
    book.text("title", &title, &[])?;
    book.code("setup", include_str!("cells/setup.py"))?;

    if story.metrics {
        let curve = own("curve.png");
        let text = format!(
            "## Training\n\nBits/dim are -log2 p(x) / D, of the training batches and of validation images, beside what they can \
             be compared with.{}",
            shown(&curve)
        );
        book.text("training", &text, &curve)?;
        book.code("training-curve", include_str!("cells/curve.py"))?;
    }
    if summary.is_some() {
        book.text(
            "numbers",
            "## Numbers\n\nThe log-likelihood has two terms, the prior's and the log-det's. Below the splits: the paper, \
             the data's entropy where it is known, and lossless codecs on the same images.",
            &[],
        )?;
        book.code("numbers-table", include_str!("cells/table.py"))?;
    }
    if has("points") {
        let picture = own("samples.png");
        book.text(
            "samples",
            &format!("## Samples\n\nDrawn at temperature 1.{}{}", left("samples"), shown(&picture)),
            &picture,
        )?;
        book.code("samples-points", include_str!("cells/points.py"))?;
    }
    if has("temperature_images") {
        let picture = own("samples.png");
        let text = format!(
            "## Samples and temperature\n\nA sample is the inverse of z ~ p_Z. Multiplying z by a temperature below 1 moves \
             it towards what the model holds most likely: cleaner, less varied, fewer bits.{}{}",
            left("samples"),
            shown(&picture)
        );
        book.text("samples", &text, &picture)?;
        book.code("samples-temperature", include_str!("cells/temperature.py"))?;
    }
    if has("walk_images") {
        let text = format!(
            "## Interpolation\n\nFrom one latent to another: on the line, whose middle is shorter than its ends and so \
             cleaner, as at a lower temperature; and on the arc, which keeps the length.{}",
            left("interpolation")
        );
        book.text("interpolation", &text, &[])?;
        book.code("interpolation-walk", include_str!("cells/walk.py"))?;
    }
    if has("attribute_images") {
        let text = format!(
            "## An attribute\n\nThe mean latent of images with an attribute minus that of images without it is a direction; \
             adding it moves any image. Here the attribute is one that can be read off the model's own {samples} samples: \
             *brighter* (the brighter half against the darker one). It is added to samples that were not among them. (With \
             labelled data, `flow attribute` does the same for a label such as a smile.){}{}",
            left("attribute"),
            left("attribute-moved")
        );
        book.text("attribute", &text, &[])?;
        book.code("attribute-moved", include_str!("cells/attribute.py"))?;
    }
    if has("level_images") {
        let text = format!(
            "## Levels\n\nThe latent comes in levels: level 0 leaves the flow first and holds the finest detail, the last \
             one holds the whole. Each row draws one level anew and keeps the others.{}",
            left("levels")
        );
        book.text("levels", &text, &[])?;
        book.code("levels-anew", include_str!("cells/levels.py"))?;
    }
    if has("ood_samples") {
        let text = format!(
            "## Out of distribution\n\nBits/dim of {samples} samples of the model, and of as many images that it has not \
             learned: the samples' pixels in another order, one grey all over, uniform noise. A density is no detector: \
             what is smooth may cost fewer bits than what the model was trained on.{}",
            left("ood")
        );
        book.text("ood", &text, &[])?;
        book.code("ood-histograms", include_str!("cells/ood.py"))?;
    }
    if !story.pictures.is_empty() {
        let text =
            format!("## Pictures of this run\n\nMade by the `flow` commands.{}", shown(story.pictures));
        book.text("pictures", &text, story.pictures)?;
    }
    if story.numbers {
        let text = match story.pictures {
            [] => "## Pictures of this run\n\nFrom the numbers that the `flow` commands have left:",
            _ => "Their numbers, as far as they are images or histograms:",
        };
        book.text("pictures-numbers", text, &[])?;
        book.code("pictures-drawn", include_str!("cells/pictures.py"))?;
    }
    let text = format!(
        "## The model in PyTorch\n\nThe whole of {family}'s log p(x) from `config.json` and the safetensors file in 60 lines, \
         in double precision. `x` are samples with their noise, as the model sees data; `log_prob` is what the library \
         computed.{}",
        left("pytorch")
    );
    book.text("pytorch", &text, &[])?;
    book.code("pytorch-weights", WEIGHTS)?;
    book.code("pytorch-model", in_torch)?;
    book.code("pytorch-compared", include_str!("cells/compare.py"))?;

    book.finish(("Python 3", "python3", "python"))
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
        for (family, model) in [NICE, REALNVP, GLOW] {
            let lines: Vec<&str> =
                WEIGHTS.lines().chain(model.lines()).filter(|line| !line.trim().is_empty()).collect();
            assert!(lines.len() <= 60, "{family}: {} lines", lines.len());
            assert!(lines.iter().all(|line| line.len() <= 120 && !line.contains(';')), "{family}: crowded");
        }
    }
}
