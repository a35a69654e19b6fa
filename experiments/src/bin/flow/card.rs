//! README.md of a folder of weights: the model card that the Hugging Face hub shows.
//!
//! Everything in it is computed from the folder: config.json and the weights' headers, summary.json, recipe.toml,
//! samples.png. What they do not say, as those of older runs or of imported weights may not, the card says is not recorded.
//!
//! The front matter is YAML by way of JSON, of which YAML is a superset: a text from a file cannot break out of its quotes.

use anyhow::{Result, ensure};
use askama::Template;
use experiments::data::{Origin, hex, known};
use experiments::evaluate::Evaluation;
use experiments::run_dir::{self, CARD, LICENSE, RECIPE, SAMPLES};
use experiments::summary::{Baselines, Summary, Training};
use flows::ModelConfig;
use flows::models::file::{Stored, stored};
use flows::models::{CouplingTransform, NiceConfig};
use flows::storage::write_atomic;
use serde_json::{Value, json};
use sha2::{Digest, Sha256};
use std::f64::consts::LN_2;
use std::fmt::Write;
use std::path::Path;

/// Writes the card of a folder into it. One that was written or changed by hand stays, which is said.
///
/// # Errors
/// When the folder holds no model, or the card cannot be read or written.
pub fn write(dir: &Path) -> Result<()> {
    let (path, text) = (dir.join(CARD), render(dir, None)?);
    if is_by_hand(dir)? {
        tracing::warn!("{} {BY_HAND}", path.display());
        return Ok(());
    }
    Ok(write_atomic(&path, text.as_bytes())?)
}

/// What a model is, for people and for the front matter.
struct Kind {
    name: &'static str,
    tag: &'static str,
    paper: &'static str,
    arxiv: &'static str,
    how: &'static str,
}

fn kind(config: &ModelConfig) -> Kind {
    match config {
        ModelConfig::Nice(config) if config.law == CouplingTransform::Affine => Kind {
            name: "flow of affine couplings",
            tag: "affine-coupling",
            paper: "Density estimation using Real NVP",
            arxiv: "1605.08803",
            how: "affine couplings between fully connected networks, then a learned scale for each dimension",
        },
        ModelConfig::Nice(NiceConfig { law: CouplingTransform::RationalQuadraticSpline(_), .. }) => Kind {
            name: "flow of spline couplings",
            tag: "neural-spline-flow",
            paper: "Neural Spline Flows",
            arxiv: "1906.04032",
            how: "rational-quadratic spline couplings between fully connected networks, then a learned scale for each dimension",
        },
        ModelConfig::Nice(NiceConfig { law: CouplingTransform::MixtureOfLogistics(_), .. }) => Kind {
            name: "flow of mixture couplings",
            tag: "flow-plus-plus",
            paper: "Flow++: Improving Flow-Based Generative Models with Variational Dequantization and Architecture Design",
            arxiv: "1902.00275",
            how: "couplings by mixtures of logistics between fully connected networks, then a learned scale for each dimension",
        },
        ModelConfig::Nice(_) => Kind {
            name: "NICE",
            tag: "nice",
            paper: "NICE: Non-linear Independent Components Estimation",
            arxiv: "1410.8516",
            how: "couplings between fully connected networks, then a learned scale for each dimension",
        },
        ModelConfig::RealNvp(_) => Kind {
            name: "RealNVP",
            tag: "realnvp",
            paper: "Density estimation using Real NVP",
            arxiv: "1605.08803",
            how: "affine couplings under checkerboard and channel-wise partitions with residual networks, several scales",
        },
        ModelConfig::Glow(_) => Kind {
            name: "Glow",
            tag: "glow",
            paper: "Glow: Generative Flow with Invertible 1x1 Convolutions",
            arxiv: "1807.03039",
            how: "steps of actnorm, a permutation of channels and a coupling with a convolutional network, several levels",
        },
        ModelConfig::Maf(_) => Kind {
            name: "MAF",
            tag: "maf",
            paper: "Masked Autoregressive Flow for Density Estimation",
            arxiv: "1705.07057",
            how: "autoregressive layers with masked fully connected networks, in alternating or random orders",
        },
        ModelConfig::Composed(_) => Kind {
            name: "composed flow",
            tag: "normalizing-flow",
            paper: "Normalizing Flows for Probabilistic Modeling and Inference",
            arxiv: "1912.02762",
            how: "the layers that its config lists, of which no paper has this combination",
        },
    }
}

/// A data set's name on the hub; `None` for those that are drawn here or are the user's own.
fn on_hub(set: &str) -> Option<&'static str> {
    match known(set)?.origin {
        Origin::Published { hub, .. } => Some(hub.repository),
        _ => None,
    }
}

/// A value as a person writes it.
fn plain(value: &Value) -> String {
    match value {
        Value::String(text) => text.clone(),
        Value::Object(map) => {
            map.iter().map(|(k, v)| format!("{k} {}", plain(v))).collect::<Vec<_>>().join(", ")
        }
        other => other.to_string(),
    }
}

/// A text in a cell of a table.
fn cell(text: &str) -> String {
    text.replace('|', "\\|").replace(['\n', '\r'], " ")
}

/// A text as code.
fn code(text: &str) -> String {
    format!("`{}`", text.replace('`', "'"))
}

/// The text for a value that no file of the folder records.
const NOTHING: &str = "not recorded";

/// The value as text, or "not recorded".
fn told(value: Option<impl ToString>) -> String {
    value.map(|v| v.to_string()).filter(|text| !text.is_empty()).unwrap_or_else(|| NOTHING.to_owned())
}

/// A licence as people name it: one identifier, or several with OR, AND or WITH between them.
///
/// # Errors
/// When it is neither.
pub fn license(text: &str) -> Result<String> {
    let plain = |c: char| c.is_ascii_alphanumeric() || " -.+()".contains(c);
    ensure!(
        text.trim() == text && (1..=100).contains(&text.len()) && text.chars().all(plain),
        "a licence is an identifier such as mit or apache-2.0, or an expression such as `MIT OR Apache-2.0`"
    );
    Ok(text.to_owned())
}

/// The licence that a folder's file gives. Where there is none nothing is claimed.
fn given_license(dir: &Path) -> Result<Option<String>> {
    let path = dir.join(LICENSE);
    let Some(bytes) = run_dir::read(&path)? else { return Ok(None) };
    match license(String::from_utf8_lossy(&bytes).trim()) {
        Ok(license) => Ok(Some(license)),
        Err(error) => {
            tracing::warn!("{} names no licence, so the card gives none: {error}", path.display());
            Ok(None)
        }
    }
}

/// The front matter's lines about the licence. The hub has names for single licences; what is none of them is `other`, with a
/// name of its own.
fn license_lines(license: &str) -> Vec<(&'static str, Value)> {
    let id = license.to_ascii_lowercase();
    match id.contains([' ', '(']) {
        false => vec![("license", json!(id))],
        true => {
            let name: String = id.chars().map(|c| if c == ' ' { '-' } else { c }).collect();
            vec![("license", json!("other")), ("license_name", json!(name))]
        }
    }
}

/// The figure of an evaluation that a kind of data is measured by: its key, its name and its digits.
struct Figure {
    key: &'static str,
    name: &'static str,
    value: f64,
    std_err: f64,
}

/// Bits/dim for images; for vectors, whose densities have no bins, the mean log-likelihood in nats.
fn figure(score: &Evaluation, dims: usize) -> Figure {
    match score.nats {
        None => Figure {
            key: "bits_per_dim",
            name: "bits/dim",
            value: score.bits_per_dim,
            std_err: score.std_err,
        },
        Some(nats) => Figure {
            key: "log_likelihood",
            name: "nats of log-likelihood",
            value: -nats,
            std_err: score.std_err * dims as f64 * LN_2,
        },
    }
}

/// Front matter.
fn front(name: &str, stored: &Stored, summary: Option<&Summary>, license: Option<&str>) -> String {
    let kind = kind(&stored.config);
    let images = stored.config.shape().len() == 3;
    let task = if images { "unconditional-image-generation" } else { "density-estimation" };
    let mut lines = license.map(license_lines).unwrap_or_default();
    lines.push(("library_name", json!("candle")));
    if images {
        lines.push(("pipeline_tag", json!(task)));
    }
    let arxiv = format!("arxiv:{}", kind.arxiv);
    lines.push(("tags", json!(["flows", "normalizing-flow", "density-estimation", kind.tag, arxiv])));
    let set = summary.map(|s| s.data.as_str());
    let hub = set.and_then(on_hub);
    if let Some(hub) = &hub {
        lines.push(("datasets", json!([hub])));
    }
    if let Some(summary) = summary
        && let Some((split, score)) = summary.score()
    {
        let set = &summary.data;
        let figure = figure(score, stored.config.shape().iter().product());
        let args = match images {
            true if score.importance_samples > 1 => json!({
                "std_err": figure.std_err, "images": score.images, "noise_draws": score.noise_draws,
                "importance_samples": score.importance_samples
            }),
            true => {
                json!({ "std_err": figure.std_err, "images": score.images, "noise_draws": score.noise_draws })
            }
            false => json!({ "std_err": figure.std_err, "examples": score.images }),
        };
        let result = json!({
            "task": { "type": task, "name": "density estimation" },
            "dataset": {
                "type": hub.unwrap_or(set),
                "name": set,
                "split": split,
                "revision": told(Some(&summary.data_revision)),
            },
            "metrics": [{
                "type": figure.key,
                "name": figure.name,
                "value": figure.value,
                "args": args,
            }],
        });
        lines.push(("model-index", json!([{ "name": name, "results": [result] }])));
    }
    let mut text = "---\n".to_owned();
    for (key, value) in lines {
        match value {
            Value::Array(items) => {
                let _ = writeln!(text, "{key}:");
                items.iter().for_each(|item| _ = writeln!(text, "- {item}"));
            }
            value => _ = writeln!(text, "{key}: {value}"),
        }
    }
    text + "---\n"
}

/// What stands beside the figures that were measured, a line each, in the unit of the figures: entropies of vectors, which a
/// summary has in bits/dim, in nats.
fn beside(summary: &Summary, shape: &[usize]) -> Vec<String> {
    let Baselines { entropy_lower, entropy_upper, codecs, gaussian, mixture, paper } = &summary.beside;
    let unit = if shape.len() == 3 { 1. } else { shape.iter().product::<usize>() as f64 * LN_2 };
    let entropy = entropy_lower.zip(*entropy_upper).map(|(lower, upper)| {
        let (lower, upper) = (lower * unit, upper * unit);
        let range = if upper > lower { format!("{lower:.4} to {upper:.4}") } else { format!("{lower:.4}") };
        format!("the data's entropy, which is known: {range}")
    });
    let paper = paper.as_ref().map(|p| {
        let number = if shape.len() == 3 {
            p.bits_per_dim
        } else {
            p.log_likelihood.map_or(p.bits_per_dim * unit, |ll| -ll)
        };
        format!("the paper: {number} ({})", cell(&p.source))
    });
    let codecs = codecs.as_ref().map(|c| {
        let each: String = c.each().map(|(codec, bits, _)| format!("{codec} {bits:.4}, ")).collect();
        format!("on the first {} images: {each}this model {:.4}", c.images, c.model_bits_per_dim)
    });
    let of =
        if shape.len() == 3 { "for each subpixel" } else { "with the covariance of the training examples" };
    let gaussian = gaussian.as_ref().map(|g| format!("a Gaussian {of}: {:.4}", g.bits_per_dim * unit));
    let mixture = mixture
        .as_ref()
        .map(|g| format!("a mixture of {} Gaussians: {:.4}", Baselines::COMPONENTS, g.bits_per_dim * unit));
    [entropy, paper, codecs, gaussian, mixture].into_iter().flatten().collect()
}

/// The number of updates, and where the run had ended before it was extended.
fn updates(trained: &Training) -> String {
    match trained.extended.as_slice() {
        [] => trained.updates.to_string(),
        ends => {
            let ends: Vec<String> = ends.iter().map(u64::to_string).collect();
            format!(
                "{}, in a run that had ended after {} and was extended",
                trained.updates,
                ends.join(" and ")
            )
        }
    }
}

/// How it was made, in rows of a table.
fn training(dir: &Path, summary: &Summary, images: bool) -> Vec<(&'static str, String)> {
    let changed = match summary.changed.as_deref() {
        Some([]) => String::new(),
        Some(changed) => {
            format!(", with {}", changed.iter().map(|c| code(c)).collect::<Vec<_>>().join(", "))
        }
        None => format!(", what was changed in it {NOTHING}"),
    };
    let settings =
        if dir.join(RECIPE).exists() { format!(" ([every setting]({RECIPE}))") } else { String::new() };
    let counts = summary
        .data_images
        .map(|[train, valid, test]| format!("{train} training, {valid} validation and {test} test examples"));
    let trained = summary.training.as_ref();
    // A recipe that cannot be read is another check's to refuse.
    let recipe = run_dir::resolve(dir).ok().flatten();
    let before = match recipe.and_then(|r| r.recipe.train.init_from) {
        Some(from) => format!(", and before them those of the weights it started from, {}", code(&from)),
        None => String::new(),
    };
    let seen = trained.map(|t| format!("{}{before}", t.images_seen));
    let hardware = summary.machine.as_ref().map(|m| {
        let gpu = m.gpu.as_ref().map(|name| format!("{name}, ")).unwrap_or_default();
        format!(
            "{gpu}{}, {} cores, {} threads used, {:?} GiB of memory, {}",
            m.cpu, m.cores, m.threads, m.memory_gib, m.os
        )
    });
    let rows = [
        ("recipe", format!("{}{settings}{changed}", code(&summary.recipe))),
        ("command", code(&told(Some(&summary.command)))),
        ("commit", told(Some(&summary.commit))),
        ("version", told(Some(&summary.version))),
        ("seed", told(summary.seed)),
        ("data", format!("{}: {}", summary.data, told(counts))),
        ("the data's revision", told(Some(&summary.data_revision))),
        ("updates", told(trained.map(updates))),
        (if images { "images seen" } else { "examples seen" }, told(seen)),
        (
            if images { "images a second" } else { "examples a second" },
            told(trained.map(|t| format!("{:.1}", t.images_per_second))),
        ),
        ("time", told(trained.map(|t| format!("{:.0} s", t.wall_seconds)))),
        ("stopped by", told(trained.map(|t| &t.stopped))),
        ("the update that was kept", told(trained.and_then(|t| t.best_update))),
        ("trained parameters", told(summary.parameters)),
        ("device", told(Some(&summary.device))),
        ("hardware", told(hardware)),
    ];
    rows.map(|(key, value)| (key, cell(&value))).into()
}

/// The card's text.
#[derive(Template)]
#[template(path = "card.md")]
struct Card<'a> {
    front: String,
    name: &'a str,
    kind: Kind,
    summary: Option<&'a Summary>,
    score: Option<(&'static str, &'a Evaluation)>,
    /// Whether the weights are shorter than f32, and figures without the file's own mark are therefore left out.
    short: bool,
    license: Option<String>,
    total: usize,
    samples: bool,
    splits: Vec<(&'static str, Option<&'a Evaluation>)>,
    beside: Vec<String>,
    settings: Vec<(String, String)>,
    bits: u8,
    /// Values of a pixel; none of a vector.
    levels: Option<u32>,
    dtype: &'static str,
    megabytes: f64,
    rows: Vec<(&'static str, String)>,
    /// A folder, or a repository of the hub.
    place: &'a str,
    hub: bool,
    dims: String,
    classes: Option<usize>,
    /// The shape of the context's features, without brackets, where the model has one.
    context: Option<String>,
    /// The context in Rust.
    given: &'static str,
}

/// A shape without its brackets.
fn dims(shape: &[usize]) -> String {
    shape.iter().map(ToString::to_string).collect::<Vec<_>>().join(", ")
}

/// The card of a folder; `repository` is its name on the hub (`user/name`), where it has one.
///
/// # Errors
/// When the folder holds no model, or a summary that is no JSON.
pub fn render(dir: &Path, repository: Option<&str>) -> Result<String> {
    let stored = stored(dir)?;
    let summary = Summary::read(dir)?;
    let summary = summary.as_ref();
    let folder = dir.canonicalize().unwrap_or_else(|_| dir.to_owned());
    let folder =
        folder.file_name().map_or_else(|| "model".to_owned(), |name| name.to_string_lossy().into_owned());
    let place = repository.unwrap_or(&folder);
    let name = place.rsplit('/').next().unwrap_or(place);
    let config = serde_json::to_value(&stored.config)?;
    // A vector has no pixels whose bits would count.
    let vector = stored.config.shape().len() != 3;
    let unused = |key: &str| key == "model" || (vector && key == "bits");
    let settings = config.as_object().into_iter().flatten().filter(|(key, _)| !unused(key));
    let license = given_license(dir)?;
    let (shape, bits, classes) = (stored.config.shape(), stored.config.bits(), stored.config.classes());
    let context = stored.config.context().shape(shape)?.map(|shape| dims(&shape));
    let splits = summary.map(|s| {
        vec![("test", s.test.as_ref()), ("validation", s.validation.as_ref()), ("train", s.train.as_ref())]
    });
    let card = Card {
        front: front(name, &stored, summary, license.as_deref()),
        name,
        kind: kind(&stored.config),
        summary,
        score: summary.and_then(Summary::score),
        short: stored.dtype.size_in_bytes() < 4,
        license,
        total: shape.iter().product(),
        samples: dir.join(SAMPLES).exists(),
        splits: splits.unwrap_or_default(),
        beside: summary.map(|s| beside(s, shape)).unwrap_or_default(),
        settings: settings.map(|(key, value)| (code(key), cell(&plain(value)))).collect(),
        bits,
        levels: (shape.len() == 3).then(|| 1 << bits),
        dtype: stored.dtype.as_str(),
        megabytes: stored.bytes as f64 / 1e6,
        rows: summary.map(|s| training(dir, s, shape.len() == 3)).unwrap_or_default(),
        place,
        hub: repository.is_some(),
        dims: dims(shape),
        classes,
        given: match (classes.is_some(), context.is_some()) {
            (false, false) => "None",
            (true, false) => "Some(&labels)",
            (false, true) => "flows::Context::features(&c)",
            (true, true) => "flows::Context { labels: Some(&labels), features: Some(&c) }",
        },
        context,
    };
    let text = card.render()?;
    Ok(format!("{text}{}", mark(&text)))
}

/// What is said of a card that is not replaced.
pub const BY_HAND: &str = "was written or changed by hand and stays as it is: move it away to have a new one";

/// How the last line of a card begins. Its hash tells a card that was changed from one that was not, whatever version made it.
const MARK: &str = "<!-- Made by flow, which replaces it unless it was changed; sha256 of the text above: ";

/// The last line of a card.
fn mark(text: &str) -> String {
    format!("{MARK}{} -->\n", hex(&Sha256::digest(text)))
}

/// Whether the card of a folder was written or changed by hand.
///
/// # Errors
/// When it cannot be read, and as [`render`].
pub fn is_by_hand(dir: &Path) -> Result<bool> {
    let Some(bytes) = run_dir::read(&dir.join(CARD))? else { return Ok(false) };
    let Ok(text) = String::from_utf8(bytes) else { return Ok(true) };
    // Git may have changed the ends of lines.
    let text = text.replace("\r\n", "\n");
    match text.rfind(MARK) {
        Some(at) => Ok(text[at..] != mark(&text[..at])),
        None => Ok(!is_of_earlier_version(dir, &text)?),
    }
}

/// Whether each line of a card is one of the card that is made now, or one of those that earlier versions, which left no mark,
/// had in its place.
fn is_of_earlier_version(dir: &Path, text: &str) -> Result<bool> {
    let named = |call: &str| text.split_once(call)?.1.split_once('"').map(|(place, _)| place);
    let place = named("from_pretrained(\"").or_else(|| named("flows::load(\""));
    let Some(place) = place else { return Ok(false) };
    let earlier = EARLIER.replace("PLACE", place).replace("DIMS", &dims(stored(dir)?.config.shape()));
    let now = render(dir, None)? + &render(dir, Some(place))?;
    Ok(text.lines().all(|line| now.lines().chain(earlier.lines()).any(|known| known == line)))
}

/// Lines of cards of earlier versions.
const EARLIER: &str = include_str!("../../../templates/card.earlier.md");

#[cfg(test)]
mod tests;
