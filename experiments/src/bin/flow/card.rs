//! README.md of a folder of weights: the model card that the Hugging Face hub shows.
//!
//! Everything in it is computed from the folder: config.json and the weights' headers, summary.json, recipe.toml,
//! samples.png. What they do not say, as those of older runs or of imported weights may not, the card says is not recorded.
//!
//! The front matter is YAML by way of JSON, of which YAML is a superset: a text from a file cannot break out of its quotes.

use anyhow::Result;
use askama::Template;
use candle_core::DType;
use experiments::data::{Origin, known};
use experiments::evaluate::Evaluation;
use experiments::run_dir::{CARD, RECIPE, SAMPLES};
use experiments::summary::{Baselines, Summary};
use flows::ModelConfig;
use flows::models::file::{Stored, stored};
use flows::models::write_atomic;
use serde_json::{Value, json};
use std::fmt::Write;
use std::path::Path;

/// Writes the card of a folder into it.
///
/// # Errors
/// When the folder holds no model or cannot be written.
pub fn write(dir: &Path) -> Result<()> {
    Ok(write_atomic(&dir.join(CARD), render(dir, None)?.as_bytes())?)
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

/// Front matter.
fn front(name: &str, stored: &Stored, summary: Option<&Summary>) -> String {
    let kind = kind(&stored.config);
    let images = stored.config.shape().len() == 3;
    let task = if images { "unconditional-image-generation" } else { "density-estimation" };
    let mut lines = vec![
        // The hub takes one licence; the card's end has the choice.
        ("license", json!(env!("CARGO_PKG_LICENSE").split(" OR ").next().unwrap_or_default().to_lowercase())),
        ("library_name", json!("candle")),
    ];
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
        let result = json!({
            "task": { "type": task, "name": "density estimation" },
            "dataset": {
                "type": hub.unwrap_or(set),
                "name": set,
                "split": split,
                "revision": told(Some(&summary.data_revision)),
            },
            "metrics": [{
                "type": "bits_per_dim",
                "name": "bits/dim",
                "value": score.bits_per_dim,
                "args": {
                    "std_err": score.std_err,
                    "images": score.images,
                    "noise_draws": score.noise_draws,
                },
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

/// What stands beside the bits/dim that were measured, a line each.
fn beside(summary: &Summary) -> Vec<String> {
    let Baselines { entropy_lower, entropy_upper, codecs, gaussian, paper } = &summary.beside;
    let entropy = entropy_lower.zip(*entropy_upper).map(|(lower, upper)| {
        let range = if upper > lower { format!("{lower:.4} to {upper:.4}") } else { format!("{lower:.4}") };
        format!("the data's entropy, which is known: {range}")
    });
    let paper = paper.as_ref().map(|p| format!("the paper: {} ({})", p.bits_per_dim, cell(&p.source)));
    let codecs = codecs.as_ref().map(|c| {
        format!(
            "on the first {} images: PNG {:.4}, WebP {:.4}, this model {:.4}",
            c.images, c.png_bits_per_dim, c.webp_bits_per_dim, c.model_bits_per_dim
        )
    });
    let gaussian = gaussian.as_ref().map(|g| format!("a Gaussian for each subpixel: {:.4}", g.bits_per_dim));
    [entropy, paper, codecs, gaussian].into_iter().flatten().collect()
}

/// How it was made, in rows of a table.
fn training(dir: &Path, summary: &Summary) -> Vec<(&'static str, String)> {
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
        ("updates", told(trained.map(|t| t.updates))),
        ("images seen", told(trained.map(|t| t.images_seen))),
        ("images a second", told(trained.map(|t| format!("{:.1}", t.images_per_second)))),
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
    rounded: bool,
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
    labels: &'static str,
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
    let settings = config.as_object().into_iter().flatten().filter(|(key, _)| *key != "model");
    let (shape, bits, classes) = (stored.config.shape(), stored.config.bits(), stored.config.classes());
    let splits = summary.map(|s| {
        vec![("test", s.test.as_ref()), ("validation", s.validation.as_ref()), ("train", s.train.as_ref())]
    });
    let card = Card {
        front: front(name, &stored, summary),
        name,
        kind: kind(&stored.config),
        summary,
        score: summary.and_then(Summary::score),
        rounded: matches!(stored.dtype, DType::F16 | DType::BF16),
        samples: dir.join(SAMPLES).exists(),
        splits: splits.unwrap_or_default(),
        beside: summary.map(beside).unwrap_or_default(),
        settings: settings.map(|(key, value)| (code(key), cell(&plain(value)))).collect(),
        bits,
        levels: (shape.len() == 3).then(|| 1 << bits),
        dtype: stored.dtype.as_str(),
        megabytes: stored.bytes as f64 / 1e6,
        rows: summary.map(|s| training(dir, s)).unwrap_or_default(),
        place,
        hub: repository.is_some(),
        dims: shape.iter().map(ToString::to_string).collect::<Vec<_>>().join(", "),
        classes,
        labels: if classes.is_some() { "Some(&labels)" } else { "None" },
    };
    Ok(card.render()?)
}

/// Whether `text` is the card of a folder as it was made here, for any repository, and has not been changed.
///
/// # Errors
/// As [`render`].
pub fn is_generated(dir: &Path, text: &str) -> Result<bool> {
    let place =
        text.split_once("from_pretrained(\"").and_then(|(_, rest)| rest.split_once('"')).map(|(p, _)| p);
    Ok(text == render(dir, None)? || text == render(dir, place)?)
}

#[cfg(test)]
mod tests {
    use super::*;
    use candle_core::Device;
    use experiments::run_dir::SUMMARY;
    use flows::models::GlowConfig;
    use flows::{Model, SaveOptions};
    use std::path::PathBuf;
    use std::process::Command;

    fn weights() -> Vec<PathBuf> {
        let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("../weights");
        let mut dirs: Vec<PathBuf> = std::fs::read_dir(root).unwrap().map(|e| e.unwrap().path()).collect();
        dirs.retain(|dir| dir.is_dir());
        dirs.sort();
        dirs
    }

    fn bare(dtype: DType) -> tempfile::TempDir {
        let dir = tempfile::tempdir().unwrap();
        let config =
            GlowConfig { shape: [1, 8, 8], levels: 1, depth: 1, width: 2, ..GlowConfig::cifar_paper() };
        let config = GlowConfig { classes: Some(3), ..config };
        let model = Model::new(ModelConfig::Glow(config), 0, DType::F32, &Device::Cpu).unwrap();
        model.save(dir.path(), &SaveOptions { dtype: Some(dtype), ..Default::default() }).unwrap();
        dir
    }

    #[test]
    fn the_committed_cards_are_what_the_folders_say() {
        for dir in weights() {
            let card = std::fs::read_to_string(dir.join(CARD)).unwrap();
            assert_eq!(
                card,
                render(&dir, None).unwrap(),
                "{}: `flow card weights/*/` writes it anew",
                dir.display()
            );
        }
    }

    #[test]
    fn what_is_not_recorded_is_said() {
        let dir = bare(DType::BF16);
        let card = render(dir.path(), Some("user/name")).unwrap();
        for said in [
            "# name",
            "Bits/dim are not recorded",
            "no summary.json",
            "from_pretrained(\"user/name\"",
            "hf:user/name",
            "bf16",
        ] {
            assert!(card.contains(said), "{said}: {card}");
        }
        assert!(!card.contains("model-index") && !card.contains("samples.png"));
        assert!(is_generated(dir.path(), &card).unwrap());
        assert!(is_generated(dir.path(), &render(dir.path(), None).unwrap()).unwrap());
        assert!(!is_generated(dir.path(), &format!("{card}By hand.\n")).unwrap());
        // A summary of which half is missing, and a text that would end a cell.
        let summary = json!({"recipe": "a|b", "data": "faces", "test": {"bits_per_dim": 4.5, "std_err": 0.25, "images": 7}});
        std::fs::write(dir.path().join(SUMMARY), summary.to_string()).unwrap();
        let card = render(dir.path(), None).unwrap();
        for said in [
            "4.5000 ± 0.2500 bits/dim",
            "on 7 test examples",
            "rounded to bf16",
            "a\\|b",
            "| commit | not recorded |",
        ] {
            assert!(card.contains(said), "{said}: {card}");
        }
        std::fs::write(dir.path().join(SUMMARY), "{").unwrap();
        assert!(render(dir.path(), None).unwrap_err().to_string().contains(SUMMARY));
    }

    /// The library that the hub's own tools read cards with.
    #[test]
    fn python_reads_the_cards() {
        let Some(python) = std::env::var_os("FLOWS_PYTHON") else {
            println!("skipped: FLOWS_PYTHON names no Python with huggingface_hub");
            return;
        };
        let read = "import json, sys; from huggingface_hub import ModelCard; d = ModelCard.load(sys.argv[1]).data; \
                    r = d.eval_results; d.eval_results = None; \
                    print(json.dumps([d.to_dict(), [[e.metric_type, e.metric_value, e.dataset_split, e.metric_args] for e in r or []]]))";
        let bare = bare(DType::F32);
        write(bare.path()).unwrap();
        for dir in weights().into_iter().chain([bare.path().to_owned()]) {
            let output = Command::new(&python).args(["-c", read]).arg(dir.join(CARD)).output().unwrap();
            let stderr = String::from_utf8_lossy(&output.stderr);
            if stderr.contains("No module named 'huggingface_hub'") {
                println!("skipped: the Python that FLOWS_PYTHON names has no huggingface_hub");
                return;
            }
            assert!(output.status.success(), "{stderr}");
            let said: Value = serde_json::from_slice(&output.stdout).unwrap();
            println!("{}: {said}", dir.display());
            assert_eq!(said[0]["license"], "mit");
            assert_eq!(said[0]["library_name"], "candle");
            assert_eq!(said[0]["pipeline_tag"], "unconditional-image-generation");
            assert!(
                said[0]["tags"].as_array().unwrap().iter().any(|t| t.as_str().unwrap().starts_with("arxiv:"))
            );
            let summary = Summary::read(&dir).unwrap();
            match summary.as_ref().and_then(Summary::score) {
                Some((split, score)) => {
                    let want = json!([["bits_per_dim", score.bits_per_dim, split,
                        {"std_err": score.std_err, "images": score.images, "noise_draws": score.noise_draws}]]);
                    assert_eq!(said[1], want);
                }
                None => assert_eq!(said[1], json!([])),
            }
        }
    }
}
