//! README.md of a folder of weights: the model card that the Hugging Face hub shows.
//!
//! Everything in it is computed from the folder: config.json and the weights' headers, summary.json, recipe.toml,
//! samples.png. What they do not say, as those of older runs or of imported weights may not, the card says is not recorded.
//!
//! The front matter is YAML by way of JSON, of which YAML is a superset: a text from a file cannot break out of its quotes.

use anyhow::{Result, ensure};
use askama::Template;
use experiments::data::{Origin, known};
use experiments::evaluate::Evaluation;
use experiments::run_dir::{self, CARD, LICENSE, RECIPE, SAMPLES};
use experiments::summary::{Baselines, Summary, Training};
use flows::ModelConfig;
use flows::models::CouplingTransform;
use flows::models::file::{Stored, stored};
use flows::storage::write_atomic;
use serde_json::{Value, json};
use std::f64::consts::LN_2;
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
        ModelConfig::Nice(config) if config.law == CouplingTransform::Affine => Kind {
            name: "flow of affine couplings",
            tag: "affine-coupling",
            paper: "Density estimation using Real NVP",
            arxiv: "1605.08803",
            how: "affine couplings between fully connected networks, then a learned scale for each dimension",
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
    let Baselines { entropy_lower, entropy_upper, codecs, gaussian, paper } = &summary.beside;
    let unit = if shape.len() == 3 { 1. } else { shape.iter().product::<usize>() as f64 * LN_2 };
    let entropy = entropy_lower.zip(*entropy_upper).map(|(lower, upper)| {
        let (lower, upper) = (lower * unit, upper * unit);
        let range = if upper > lower { format!("{lower:.4} to {upper:.4}") } else { format!("{lower:.4}") };
        format!("the data's entropy, which is known: {range}")
    });
    let paper = paper.as_ref().map(|p| format!("the paper: {} ({})", p.bits_per_dim, cell(&p.source)));
    let codecs = codecs.as_ref().map(|c| {
        let each: String = c.each().map(|(codec, bits, _)| format!("{codec} {bits:.4}, ")).collect();
        format!("on the first {} images: {each}this model {:.4}", c.images, c.model_bits_per_dim)
    });
    let gaussian = gaussian.as_ref().map(|g| format!("a Gaussian for each subpixel: {:.4}", g.bits_per_dim));
    [entropy, paper, codecs, gaussian].into_iter().flatten().collect()
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
        (if images { "images seen" } else { "examples seen" }, told(trained.map(|t| t.images_seen))),
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
    // A vector has no pixels whose bits would count.
    let vector = stored.config.shape().len() != 3;
    let unused = |key: &str| key == "model" || (vector && key == "bits");
    let settings = config.as_object().into_iter().flatten().filter(|(key, _)| !unused(key));
    let license = given_license(dir)?;
    let (shape, bits, classes) = (stored.config.shape(), stored.config.bits(), stored.config.classes());
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
    use candle_core::{DType, Device};
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
        for said in
            ["were measured before the weights were rounded to bf16", "a\\|b", "| commit | not recorded |"]
        {
            assert!(card.contains(said), "{said}: {card}");
        }
        assert!(!card.contains("4.5000") && !card.contains("model-index"), "{card}");
        // The same figures of the file as it is.
        let mut of_file = summary;
        of_file["measured"] = "bf16".into();
        std::fs::write(dir.path().join(SUMMARY), of_file.to_string()).unwrap();
        let card = render(dir.path(), None).unwrap();
        for said in ["4.5000 ± 0.2500 bits/dim", "on 7 test examples", "\"value\":4.5"] {
            assert!(card.contains(said), "{said}: {card}");
        }
        std::fs::write(dir.path().join(SUMMARY), "{").unwrap();
        assert!(render(dir.path(), None).unwrap_err().to_string().contains(SUMMARY));
    }

    #[test]
    fn a_licence_is_given_or_absent() {
        let dir = bare(DType::F32);
        let card = || render(dir.path(), None).unwrap();
        assert!(!card().contains("license:") && card().contains("Licence: not given."));
        for (license, front) in [
            ("Apache-2.0", "license: \"apache-2.0\"\n"),
            ("MIT OR Apache-2.0", "license: \"other\"\nlicense_name: \"mit-or-apache-2.0\"\n"),
        ] {
            std::fs::write(dir.path().join(LICENSE), format!("{license}\n")).unwrap();
            let card = card();
            assert!(card.contains(front) && card.contains(&format!("Licence: {license}.")), "{card}");
        }
        // A licence's whole text, as others name their file, is no identifier.
        std::fs::write(dir.path().join(LICENSE), "Permission is hereby granted,\nfree of charge: to any")
            .unwrap();
        assert!(card().contains("Licence: not given."));
        assert!(license("x\ny: z").is_err() && license("").is_err() && license("mit").is_ok());
    }

    #[test]
    fn a_card_of_vectors_speaks_of_vectors() {
        let dir = tempfile::tempdir().unwrap();
        let config = flows::models::NiceConfig {
            shape: vec![8],
            hidden: vec![vec![4]; 2],
            law: CouplingTransform::Affine,
            ..flows::models::NiceConfig::mnist_paper()
        };
        let model = Model::new(ModelConfig::Nice(config), 0, DType::F32, &Device::Cpu).unwrap();
        model.save(dir.path(), &SaveOptions::default()).unwrap();
        let test = json!({"bits_per_dim": 2.0, "std_err": 0.25, "images": 7, "nats": 16.0 * LN_2});
        let summary =
            json!({"recipe": "r", "data": "npy", "test": test, "entropy_lower": 1.0, "entropy_upper": 1.0});
        std::fs::write(dir.path().join(SUMMARY), summary.to_string()).unwrap();
        let card = render(dir.path(), None).unwrap();
        for said in [
            "A flow of affine couplings of npy: **-11.0904 ± 1.3863 nats of log-likelihood**",
            "| test | 7 | -11.0904 | 1.3863 | 2.0000 |",
            "the data's entropy, which is known: 5.5452",
            "\"type\":\"log_likelihood\"",
            "Inputs are vectors of 8 real numbers",
        ] {
            assert!(card.contains(said), "{said}: {card}");
        }
        for not in ["NICE", "image", "integer", "noise", "pixel", "`bits`"] {
            assert!(!card.contains(not), "{not}: {card}");
        }
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
            let licensed = dir.join(LICENSE).exists();
            assert_eq!(said[0]["license"], if licensed { json!("other") } else { Value::Null });
            assert_eq!(
                said[0]["license_name"],
                if licensed { json!("mit-or-apache-2.0") } else { Value::Null }
            );
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
