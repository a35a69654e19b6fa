//! Folders of weights and the commands that make them: export, import, the committed ones and the README's table.

use super::common::{error, flow, json, ok};
use super::{str_of, tiny};
use serde_json::Value;
use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

/// A folder of this repository.
fn repository(path: &str) -> String {
    format!("{}/../{path}", env!("CARGO_MANIFEST_DIR"))
}

#[test]
fn exported_weights_are_the_same_model() {
    let dir = tempfile::tempdir().unwrap();
    let (run, out) = (dir.path().join("run"), dir.path().join("out"));
    ok(&tiny("reproduce", str_of(&run)));
    let before = json(&["eval", str_of(&run), "--json"]);
    let once = ["export", str_of(&run), "--out", str_of(&out), "--json"];
    let export = |more: &[&'static str]| [&once[..], &["--overwrite"], more].concat();
    let whole = json(&once);
    assert_eq!(
        (&whole["dtype"], &whole["files"]),
        (&"f32".into(), &serde_json::json!(["config.json", "model.safetensors"]))
    );
    assert_eq!(json(&["eval", str_of(&out), "--json"])["bits_per_dim"], before["bits_per_dim"], "to the bit");
    let shards = json(&export(&["--max-shard-size", "200B"]));
    assert!(shards["files"].as_array().unwrap().len() > 3, "{shards}");
    assert!(!out.join("model.safetensors").exists(), "the file of the export before is gone");
    assert_eq!(json(&["eval", str_of(&out), "--json"])["bits_per_dim"], before["bits_per_dim"]);
    let half = json(&export(&["--dtype", "bf16"]));
    assert_eq!(half["dtype"], "bf16");
    assert!(half["bytes"].as_u64().unwrap() < whole["bytes"].as_u64().unwrap() * 3 / 5, "{half}");
    let card = std::fs::read_to_string(out.join("README.md")).unwrap();
    assert!(card.contains("rounded to bf16") && card.contains("The weights are bf16"), "{card}");
    assert!(out.join("recipe.toml").exists());
    // Figures beside a file are the file's: none until it is measured, and its own from then on.
    let summary =
        || -> Value { serde_json::from_slice(&std::fs::read(out.join("summary.json")).unwrap()).unwrap() };
    assert!(summary()["test"].is_null() && summary()["train"].is_null(), "{}", summary());
    ok(&["card", str_of(&out), "--measure", "--license", "mit"]);
    let rounded = json(&["eval", str_of(&out), "--json"])["bits_per_dim"].clone();
    assert_ne!(rounded, before["bits_per_dim"]);
    assert_eq!((&summary()["test"]["bits_per_dim"], &summary()["measured"]), (&rounded, &"bf16".into()));
    let card = std::fs::read_to_string(out.join("README.md")).unwrap();
    assert!(card.contains("license: \"mit\"") && !card.contains("not recorded: "), "{card}");

    assert!(
        error(&["export", str_of(&run), "--out", str_of(&run)]).contains("is the folder that is exported")
    );
    assert_eq!(flow(&export(&["--max-shard-size", "5 apples"])).status.code(), Some(2));
}

/// The files of a folder with their bytes.
fn contents(dir: &Path) -> BTreeMap<PathBuf, Vec<u8>> {
    let files = std::fs::read_dir(dir).unwrap().map(|entry| entry.unwrap().path());
    files.filter(|path| path.is_file()).map(|path| (path.clone(), std::fs::read(path).unwrap())).collect()
}

#[test]
fn no_export_or_import_replaces_what_it_was_not_told_to() {
    let dir = tempfile::tempdir().unwrap();
    let [run, second, out, other] = ["run", "second", "out", "other"].map(|name| dir.path().join(name));
    ok(&tiny("train", str_of(&run)));
    ok(&tiny("train", str_of(&second)));
    let file = repository("experiments/tests/import/normflows_classes.pth");
    let commands: [&[&str]; 2] =
        [&["export", str_of(&second)], &["import", &file, "--from", "normflows", "--size", "8"]];
    let refuse = |to: &Path, more: &[&str], says: &str| {
        let before = contents(to);
        for command in commands {
            let said = error(&[command, &["--out", str_of(to)], more].concat());
            assert!(said.contains(says), "{says}: {said}");
        }
        assert_eq!(contents(to), before);
    };
    // A run that can go on, one with its log for TensorBoard, and one that was copied without.
    for part in ["checkpoint.", "events."] {
        let says = if part == "events." { "holds other files, as events." } else { "can be resumed" };
        refuse(&run, &[], says);
        refuse(&run, &["--overwrite"], says);
        for path in contents(&run).into_keys().filter(|path| str_of(path).contains(part)) {
            std::fs::remove_file(path).unwrap();
        }
    }
    refuse(&run, &[], "with --overwrite");
    // Whatever no model has, beside one or alone.
    std::fs::create_dir(&other).unwrap();
    for folder in [&other, &run] {
        std::fs::write(folder.join("thesis.txt"), "").unwrap();
        refuse(folder, &[], "holds other files, as thesis.txt");
        refuse(folder, &["--overwrite"], "holds other files, as thesis.txt");
    }

    // A model of another library, and a model of ours whose card somebody wrote in.
    let foreign = dir.path().join("foreign");
    std::fs::create_dir(&foreign).unwrap();
    std::fs::write(foreign.join("config.json"), "{\"architectures\": [\"BertModel\"]}").unwrap();
    std::fs::write(foreign.join("model.safetensors"), "weights").unwrap();
    refuse(&foreign, &["--overwrite"], "holds no model of this program");
    let written = dir.path().join("written");
    ok(&["export", str_of(&second), "--out", str_of(&written)]);
    let card = written.join("README.md");
    std::fs::write(&card, std::fs::read_to_string(&card).unwrap() + "By hand.\n").unwrap();
    refuse(&written, &["--overwrite"], "was written or changed by hand");

    // What is told to be replaced goes with all that is said of it, and with a card that has no mark, as earlier versions made it.
    ok(&["export", str_of(&run), "--out", str_of(&out)]);
    let card = std::fs::read_to_string(out.join("README.md")).unwrap();
    std::fs::write(out.join("README.md"), &card[..card.rfind("<!-- Made by flow").unwrap()]).unwrap();
    assert!(out.join("summary.json").exists() && out.join("metrics.jsonl").exists());
    refuse(&out, &[], "with --overwrite");
    ok(&[commands[1], &["--out", str_of(&out), "--overwrite"]].concat());
    let names: Vec<String> =
        contents(&out).keys().map(|path| path.file_name().unwrap().to_string_lossy().into_owned()).collect();
    assert_eq!(names, ["README.md", "config.json", "model.safetensors"]);
    let new = std::fs::read_to_string(out.join("README.md")).unwrap();
    assert!(new.contains("Glow") && new.contains("<!-- Made by flow"), "{new}");
}

#[test]
fn imported_checkpoints_are_models() {
    let dir = tempfile::tempdir().unwrap();
    let out = dir.path().join("glow");
    let file = repository("experiments/tests/import/glow_pytorch.pth");
    let import = |more: &[&'static str]| [&["import", &file, "--out", str_of(&out)], more].concat();
    let said = json(&import(&["--from", "glow-pytorch", "--json"]));
    assert_eq!(said["dtype"], "f32");
    let card = std::fs::read_to_string(out.join("README.md")).unwrap();
    assert!(card.contains("Bits/dim are not recorded"), "{card}");
    let picture = dir.path().join("s.png");
    ok(&["sample", str_of(&out), "-n", "4", "--out", str_of(&picture)]);
    assert!(error(&["eval", str_of(&out)]).contains("--recipe"));
    let other = error(&import(&["--from", "real-nvp", "--size", "8", "--overwrite"]));
    assert!(other.contains("glow_pytorch.pth") && other.contains("data_constraint"), "{other}");
    assert_eq!(flow(&import(&["--from", "realnvp"])).status.code(), Some(2));
    let missing = str_of(dir.path()).to_owned() + "/none.pth";
    let new = dir.path().join("new");
    assert!(error(&["import", &missing, "--from", "normflows", "--out", str_of(&new)]).contains("none.pth"));

    // A mean and a scale for each dimension and class: it is sampled and evaluated with labels.
    let (classes, data) = (dir.path().join("classes"), dir.path().join("data"));
    let file = repository("experiments/tests/import/normflows_class_diagonal.pth");
    ok(&["import", &file, "--from", "normflows", "--out", str_of(&classes)]);
    ok(&["sample", str_of(&classes), "-n", "4", "--class", "1", "--out", str_of(&picture)]);
    assert!(
        error(&["sample", str_of(&classes), "-n", "4", "--class", "3", "--out", str_of(&picture)])
            .contains("classes 0 to 2")
    );
    for class in 0..3u8 {
        let folder = data.join(class.to_string());
        std::fs::create_dir_all(&folder).unwrap();
        let image =
            image::RgbImage::from_fn(8, 8, |x, y| image::Rgb([80 * class, 30 * x as u8, 30 * y as u8]));
        image.save(folder.join("image.png")).unwrap();
    }
    let eval = ["eval", str_of(&classes), "--recipe", "glow-cifar-small", "--data-set", "folder", "--data"];
    let scored = json(&[&eval[..], &[str_of(&data), "--json"]].concat());
    assert!(scored["bits_per_dim"].as_f64().is_some_and(f64::is_finite), "{scored}");
}

#[test]
fn the_committed_weights_are_what_their_index_says() {
    let weights = repository("weights");
    let all = json(&["weights", "--dir", &weights, "--check", "--json"]);
    assert!(all["models"].as_object().unwrap().len() >= 3, "{all}");
    let listed = ok(&["weights", "--dir", &weights, "faces-glow-small"]);
    assert!(
        listed.contains("± ") && listed.contains("model.safetensors") && !listed.contains("cifar"),
        "{listed}"
    );

    let dir = tempfile::tempdir().unwrap();
    let copy = dir.path().join("faces-glow-small");
    std::fs::create_dir(&copy).unwrap();
    for entry in std::fs::read_dir(repository("weights/faces-glow-small")).unwrap() {
        let path = entry.unwrap().path();
        std::fs::copy(&path, copy.join(path.file_name().unwrap())).unwrap();
    }
    let check = ["weights", "--dir", str_of(dir.path()), "--check"];
    assert!(error(&check).contains("flow weights --write"), "there is no index yet");
    ok(&["weights", "--dir", str_of(dir.path()), "--write"]);
    ok(&check);
    assert!(error(&["weights", "--dir", str_of(dir.path()), "none"]).contains("faces-glow-small"));
    let file = copy.join("model.safetensors");
    let good = std::fs::read(&file).unwrap();
    let mut bad = good.clone();
    *bad.last_mut().unwrap() ^= 1;
    std::fs::write(&file, bad).unwrap();
    let said = error(&check);
    assert!(
        said.contains("model.safetensors") && said.contains("sha256") && said.contains("again"),
        "{said}"
    );
    std::fs::write(&file, good).unwrap();
    std::fs::write(copy.join("notes.txt"), "").unwrap();
    assert!(error(&check).contains("notes.txt"));
    std::fs::remove_file(copy.join("notes.txt")).unwrap();
    std::fs::remove_file(copy.join("samples.png")).unwrap();
    assert!(error(&check).contains("samples.png"));
    let index = dir.path().join("index.json");
    let text = std::fs::read_to_string(&index).unwrap();
    std::fs::write(&index, text.replace("\"faces-glow-small\"", "\"../faces-glow-small\"")).unwrap();
    assert!(error(&check).contains("leaves its folder"));
}

#[test]
fn the_readme_shows_the_table_of_the_best_runs() {
    let readme = std::fs::read_to_string(repository("README.md")).unwrap();
    let shown =
        readme.split("<!-- table:begin -->\n").nth(1).unwrap().split("<!-- table:end -->").next().unwrap();
    assert_eq!(ok(&["table", "--best", &repository("weights"), &repository("experiments/results")]), shown);
}
