//! Folders of weights and the commands that make them: export, import, the committed ones and the README's table.

use super::common::{error, flow, json, ok};
use super::{str_of, tiny};
use serde_json::Value;

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
    let export =
        |more: &[&'static str]| [&["export", str_of(&run), "--out", str_of(&out), "--json"], more].concat();
    let whole = json(&export(&[]));
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
    let other = dir.path().join("other");
    std::fs::create_dir(&other).unwrap();
    std::fs::write(other.join("thesis.txt"), "").unwrap();
    assert!(error(&["export", str_of(&run), "--out", str_of(&other)]).contains("holds other files"));
    let second = dir.path().join("second");
    ok(&tiny("train", str_of(&second)));
    assert!(error(&["export", str_of(&run), "--out", str_of(&second)]).contains("can be resumed"));
    assert_eq!(flow(&export(&["--max-shard-size", "5 apples"])).status.code(), Some(2));
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
    let other = error(&import(&["--from", "real-nvp", "--size", "8"]));
    assert!(other.contains("glow_pytorch.pth") && other.contains("data_constraint"), "{other}");
    assert_eq!(flow(&import(&["--from", "realnvp"])).status.code(), Some(2));
    let missing = str_of(dir.path()).to_owned() + "/none.pth";
    assert!(error(&["import", &missing, "--from", "normflows", "--out", str_of(&out)]).contains("none.pth"));
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
fn the_readme_shows_the_table_of_all_runs() {
    let readme = std::fs::read_to_string(repository("README.md")).unwrap();
    let shown =
        readme.split("<!-- table:begin -->\n").nth(1).unwrap().split("<!-- table:end -->").next().unwrap();
    assert_eq!(ok(&["table", &repository("weights"), &repository("experiments/results")]), shown);
}
