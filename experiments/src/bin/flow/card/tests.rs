//! Cards of folders that record much, little or nothing, and cards that were changed.

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
    let config = GlowConfig { shape: [1, 8, 8], levels: 1, depth: 1, width: 2, ..GlowConfig::cifar_paper() };
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
fn a_card_that_was_changed_is_told_from_one_that_was_not() {
    let dir = bare(DType::F32);
    let path = dir.path().join(CARD);
    let by_hand = |text: &[u8]| {
        std::fs::write(&path, text).unwrap();
        is_by_hand(dir.path()).unwrap()
    };
    assert!(!is_by_hand(dir.path()).unwrap(), "there is none");
    let folder = dir.path().file_name().unwrap().to_string_lossy();
    let [here, there] = [None, Some("user/name")].map(|place| render(dir.path(), place).unwrap());
    let bare = |text: &str| text[..text.find(MARK).unwrap()].to_owned();
    // What the version of another year could say of this folder, with its mark and, before there were marks, without.
    let later = "# A card with other words\n";
    let earlier = bare(&here)
        .replace("---\nlibrary_name", "---\nlicense: \"mit\"\nlibrary_name")
        .replace("Licence: not given.", "Licence: MIT OR Apache-2.0.");
    for (what, text) in [
        ("of this folder", here.clone()),
        ("of a repository", there.clone()),
        ("with other ends of lines", here.replace('\n', "\r\n")),
        ("of a later version", format!("{later}{}", mark(later))),
        ("without a mark", bare(&here)),
        ("of a repository without a mark", bare(&there)),
        ("of a folder that was renamed, without a mark", bare(&here).replace(&*folder, "other")),
        ("of an earlier version", earlier.clone()),
    ] {
        assert!(!by_hand(text.as_bytes()), "{what}: {text}");
    }
    for (what, text) in [
        ("nothing", String::new()),
        ("another's", "# moons\n\nMine.\n".to_owned()),
        ("with a line behind the mark", format!("{here}By hand.\n")),
        ("with a line before it", format!("By hand.\n{here}")),
        ("with a word changed", here.replacen("Licence: not given.", "Licence: mine.", 1)),
        ("without a mark, with a line", format!("{}By hand.\n", bare(&here))),
        ("of an earlier version, with a licence", earlier.replace("\"mit\"", "\"gpl-3.0\"")),
    ] {
        assert!(by_hand(text.as_bytes()), "{what}: {text}");
        write(dir.path()).unwrap();
        assert_eq!(std::fs::read_to_string(&path).unwrap(), text, "{what} is lost");
    }
    assert!(by_hand(b"\xff"));
    by_hand(earlier.as_bytes());
    write(dir.path()).unwrap();
    assert_eq!(std::fs::read_to_string(&path).unwrap(), here);
}

#[test]
fn a_card_says_how_its_model_is_used() {
    let manifest = std::fs::read_to_string(concat!(env!("CARGO_MANIFEST_DIR"), "/../Cargo.toml")).unwrap();
    let version = manifest.split("candle-core = { version = \"").nth(1).unwrap().split('"').next().unwrap();
    let dependency = format!("candle-core = \"{version}\"");
    let dir = bare(DType::F32);
    let folder = dir.path().file_name().unwrap().to_string_lossy();
    let (here, there) = (format!("flows_torch.load(\"{folder}\")"), "flows_torch.load(folder)".to_owned());
    for (repository, has, has_not) in [
        (
            None,
            [format!("flows::load(\"{folder}\""), here.clone(), "docs/python/flows_torch.py".to_owned()],
            "hf:",
        ),
        (
            Some("user/name"),
            ["from_pretrained(\"user/name\"".to_owned(), there, "flow eval hf:user/name".to_owned()],
            "docs/python",
        ),
    ] {
        let card = render(dir.path(), repository).unwrap();
        for said in has.iter().map(String::as_str).chain([
            &*dependency,
            "candle-flows = { path = ",
            "bits_per_dim(x, y)",
        ]) {
            assert!(card.contains(said), "{said}: {card}");
        }
        assert!(!card.contains(has_not), "{has_not}: {card}");
    }
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
        assert_eq!(said[0]["license_name"], if licensed { json!("mit-or-apache-2.0") } else { Value::Null });
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
