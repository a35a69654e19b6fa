//! What a person looks at: `flow report`, `flow table --side-by-side`, and the log in TensorBoard's own reader.

use serde_json::Value;
use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

const FACES: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/../weights/faces-glow-small");
const CIFAR: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/../weights/cifar10-glow-small");

/// Standard output of a command that succeeds.
fn ok(args: &[&str]) -> String {
    let mut command = Command::new(env!("CARGO_BIN_EXE_flow"));
    let output = command.args(args).env_remove("FLOW_DATA").env_remove("RUST_LOG").output().unwrap();
    assert!(output.status.success(), "{args:?}: {}", String::from_utf8_lossy(&output.stderr));
    String::from_utf8(output.stdout).unwrap()
}

fn str_of(path: &Path) -> &str {
    path.to_str().expect("the test's folders are UTF-8")
}

/// The numbers behind the cells of the row that begins with this heading.
fn cells(html: &str, heading: &str) -> Vec<f64> {
    let at = html.find(&format!("<th>{heading}")).unwrap_or_else(|| panic!("no row {heading}"));
    let row = &html[at..];
    let row = &row[..row.find("</tr>").unwrap()];
    let value = |cell: &str| cell.split('"').next().unwrap().parse().unwrap();
    row.split("data-value=\"").skip(1).map(value).collect()
}

#[test]
fn a_report_holds_the_summarys_numbers_and_needs_no_network() {
    let dir = tempfile::tempdir().unwrap();
    let run = dir.path().join("faces");
    fs::create_dir_all(run.join("pictures")).unwrap();
    for file in ["summary.json", "metrics.jsonl", "recipe.toml", "samples.png", "curve.png"] {
        fs::copy(Path::new(FACES).join(file), run.join(file)).unwrap();
    }
    fs::copy(run.join("curve.png"), run.join("pictures/<smile>.png")).unwrap();
    let said = ok(&["report", str_of(&run)]);
    assert_eq!(said.trim(), str_of(&run.join("report.html")));
    let html = fs::read_to_string(run.join("report.html")).unwrap();

    // Whatever a browser would fetch is named by one of these; everything that is has its data with it.
    for reference in ["src=\"", "href=", "url(", "@import", "fetch(", "import(", "<link", "<iframe"] {
        for (at, _) in html.match_indices(reference) {
            let rest = &html[at..(at + 40).min(html.len())];
            assert!(rest.starts_with("src=\"data:image/png;base64,"), "an external reference: {rest}");
        }
    }
    assert!(!html.contains("http:") && !html.contains("https:"));
    assert_eq!(html.matches("src=\"data:").count(), 2, "samples and a picture; the curve is drawn anew");
    assert!(html.contains("alt=\"&lt;smile&gt;\""), "a file's name is no markup");
    assert!(html.contains("prefers-color-scheme: dark"));
    // On a narrow screen a table that is too wide is moved, not cut.
    assert!(html.contains("width=device-width") && html.contains(".scroll { overflow-x: auto; }"));
    assert_eq!(html.matches("<table").count(), html.matches("<div class=\"scroll\"><table").count());

    let summary: Value = serde_json::from_slice(&fs::read(run.join("summary.json")).unwrap()).unwrap();
    for split in ["test", "validation", "train"] {
        let keys = ["bits_per_dim", "std_err", "prior_bits", "log_det_bits", "log_likelihood"];
        let want: Vec<f64> = keys.iter().map(|key| summary[split][key].as_f64().unwrap()).collect();
        assert_eq!(cells(&html, split), want, "{split}");
    }
    let own = summary["test"]["bits_per_dim"].as_f64().unwrap();
    let codecs = &summary["codecs"];
    let on_codecs = codecs["model_bits_per_dim"].as_f64().unwrap();
    for (row, value, own) in [
        ("entropy of the data, at least", &summary["entropy_lower"], own),
        ("entropy of the data, at most", &summary["entropy_upper"], own),
        ("a Gaussian", &summary["gaussian"]["bits_per_dim"], own),
        ("PNG", &codecs["png_bits_per_dim"], on_codecs),
        ("WebP", &codecs["webp_bits_per_dim"], on_codecs),
        ("JPEG XL", &codecs["jxl_bits_per_dim"], on_codecs),
    ] {
        assert_eq!(cells(&html, row), [value.as_f64().unwrap(), own], "{row}");
    }

    // The curve has every point of the log.
    let log = fs::read_to_string(run.join("metrics.jsonl")).unwrap();
    let logged = log.lines().filter(|line| line.contains("\"train_bits_per_dim\"")).count();
    let data = html.split("<script type=\"application/json\">").nth(1).unwrap();
    let data: Value = serde_json::from_str(data.split("</script>").next().unwrap()).unwrap();
    assert_eq!(data["names"], serde_json::json!(["train", "validation"]));
    assert_eq!(data["points"][0].as_array().unwrap().len(), logged);

    // Every setting, with the source that `flow explain` gives where the run did not change it.
    let explained: Value =
        serde_json::from_str(&ok(&["explain", "quickstart", "--settings", "--json"])).unwrap();
    for (key, setting) in explained["settings"].as_object().unwrap() {
        if ["name", "about"].contains(&key.as_str()) {
            continue;
        }
        let row = html.find(&format!("<td><code>{key}</code></td>")).unwrap_or_else(|| panic!("no {key}"));
        let row = html[row..].split("</tr>").next().unwrap().replace("&quot;", "\"").replace("&#39;", "'");
        let (value, source) = (setting["value"].as_str().unwrap(), setting["source"].as_str().unwrap());
        let same =
            row.contains(&format!("<code>{value}</code>")) && row.contains(&format!("<td>{source}</td>"));
        assert!(same || row.contains(&format!("this run; the recipe has {value}")), "{key}: {row}");
    }
}

#[test]
fn a_folder_without_a_run_has_no_report() {
    let dir = tempfile::tempdir().unwrap();
    let output =
        Command::new(env!("CARGO_BIN_EXE_flow")).args(["report", str_of(dir.path())]).output().unwrap();
    assert_eq!(output.status.code(), Some(1));
    assert!(String::from_utf8_lossy(&output.stderr).contains("holds no finished run"));
}

/// What a refused command says, which is one sentence.
fn refused(args: &[&str]) -> String {
    let output = Command::new(env!("CARGO_BIN_EXE_flow")).args(args).output().unwrap();
    let said = String::from_utf8(output.stderr).unwrap();
    assert_eq!(output.status.code(), Some(1), "{args:?}: {said}");
    assert_eq!(said.trim().lines().count(), 1, "{said}");
    said
}

/// The committed run, without its weights.
fn faces(dir: &Path) -> PathBuf {
    let run = dir.join("faces");
    fs::create_dir_all(run.join("pictures")).unwrap();
    for file in ["config.json", "summary.json", "metrics.jsonl", "recipe.toml", "samples.png"] {
        fs::copy(Path::new(FACES).join(file), run.join(file)).unwrap();
    }
    run
}

#[test]
fn a_report_goes_where_a_report_can_be() {
    let dir = tempfile::tempdir().unwrap();
    let run = faces(dir.path());
    let config = run.join("config.json");
    let before = fs::read(&config).unwrap();
    let to = |out: &Path| refused(&["report", str_of(&run), "--out", str_of(out)]);
    assert!(to(&config).contains(".html"), "a run's own file is not written over");
    assert_eq!(fs::read(&config).unwrap(), before);
    assert!(to(dir.path()).contains("--out"));
    let lost = to(&dir.path().join("none/x.html"));
    assert!(
        lost.contains("there is no folder") && lost.contains("--out") && !lost.contains("os error"),
        "{lost}"
    );
    ok(&["report", str_of(&run), "--out", str_of(&dir.path().join("X.HTML"))]);
}

#[test]
fn what_is_no_picture_is_left_out_of_a_report_with_a_word() {
    let dir = tempfile::tempdir().unwrap();
    let run = faces(dir.path());
    let pictures = run.join("pictures");
    fs::write(pictures.join("text.png"), "no picture").unwrap();
    let samples = fs::read(run.join("samples.png")).unwrap();
    fs::write(pictures.join("torn.png"), &samples[..samples.len() / 2]).unwrap();
    fs::create_dir(pictures.join("folder.png")).unwrap();
    #[cfg(unix)]
    assert!(Command::new("mkfifo").arg(pictures.join("pipe.png")).status().unwrap().success());
    let output = Command::new(env!("CARGO_BIN_EXE_flow"))
        .args(["report", str_of(&run)])
        .env_remove("RUST_LOG")
        .output()
        .unwrap();
    let said = String::from_utf8(output.stderr).unwrap();
    assert!(output.status.success(), "{said}");
    for name in
        ["text.png", "torn.png", "folder.png", "pipe.png"].into_iter().take(if cfg!(unix) { 4 } else { 3 })
    {
        assert_eq!(
            said.lines().filter(|line| line.contains(name) && line.contains("without it")).count(),
            1,
            "{said}"
        );
    }
    let html = fs::read_to_string(run.join("report.html")).unwrap();
    assert_eq!(html.matches("src=\"data:").count(), 1, "the samples alone");
}

#[test]
fn a_damaged_log_is_named_by_its_line_and_a_report_goes_without_one() {
    let dir = tempfile::tempdir().unwrap();
    let run = faces(dir.path());
    let path = run.join("metrics.jsonl");
    let log = fs::read_to_string(&path).unwrap();
    let lines: Vec<&str> = log.lines().collect();
    fs::write(&path, [&lines[..6], &["{\"update\": 3"], &lines[7..]].concat().join("\n")).unwrap();
    let said = refused(&["report", str_of(&run)]);
    assert!(said.contains("metrics.jsonl is damaged in line 7: ") && !said.contains("line 1"), "{said}");
    fs::remove_file(&path).unwrap();
    fs::write(run.join("report.html"), "mine").unwrap();
    assert!(refused(&["report", str_of(&run)]).contains("is no report of this version"));
    fs::remove_file(run.join("report.html")).unwrap();
    ok(&["report", str_of(&run)]);
    ok(&["report", str_of(&run)]);
    let html = fs::read_to_string(run.join("report.html")).unwrap();
    assert!(html.contains("id=\"numbers\"") && !html.contains("<svg"));
}

#[test]
fn what_images_take_is_drawn() {
    let dir = tempfile::tempdir().unwrap();
    let file = dir.path().join("sizes.png");
    ok(&["table", FACES, CIFAR, "--sizes", "--out", file.to_str().unwrap()]);
    // Two groups of a title and four bars of 26 pixels.
    assert_eq!(image::open(&file).unwrap().height(), 2 * (5 * 26 + 13) + 10);
}

/// Other numbers on the test set change nothing: validation chooses.
#[test]
fn the_best_run_of_each_model_and_data_set_is_chosen_by_validation() {
    let dir = tempfile::tempdir().unwrap();
    let shown = |name: &str, of: &str, validation: f64, test: f64| {
        let (run, from) = (dir.path().join(name), Path::new(of));
        fs::create_dir(&run).unwrap();
        fs::copy(from.join("recipe.toml"), run.join("recipe.toml")).unwrap();
        let mut summary: Value =
            serde_json::from_str(&fs::read_to_string(from.join("summary.json")).unwrap()).unwrap();
        summary["validation"]["bits_per_dim"] = validation.into();
        summary["test"]["bits_per_dim"] = test.into();
        fs::write(run.join("summary.json"), summary.to_string()).unwrap();
        let table = ok(&["table", "--best", str_of(dir.path())]);
        table.lines().skip(2).map(|l| l.split('|').nth(2).unwrap().trim().to_owned()).collect::<Vec<_>>()
    };
    assert_eq!(shown("a", CIFAR, 4., 3.9), ["a"]);
    assert_eq!(shown("b", CIFAR, 3.5, 4.1), ["b"]);
    assert_eq!(shown("c", CIFAR, 3.6, 3.3), ["b"]);
    assert_eq!(shown("d", FACES, 4.5, 4.5), ["b", "d"], "other data");
}

#[test]
fn runs_stand_side_by_side() {
    let text = ok(&["table", FACES, CIFAR, "--side-by-side"]);
    let row = |name: &str| -> Vec<&str> {
        let line = text.lines().find(|l| l.split('|').nth(1).is_some_and(|t| t.trim() == name));
        line.unwrap_or_else(|| panic!("no {name}: {text}")).split('|').skip(2).map(str::trim).collect()
    };
    assert_eq!(row("")[..2], ["cifar10-glow-small", "faces-glow-small"]);
    assert_eq!(row("less the first's")[..2], ["+0.0000", ""], "other data: a difference would say nothing");
    assert_eq!(row("data.set")[..2], ["\"cifar10\"", "\"faces\""]);
    assert!(!text.contains("model.law"), "a setting that is the same in all is left out");

    let csv = ok(&["table", FACES, CIFAR, "--side-by-side", "--format", "csv"]);
    assert!(csv.starts_with(",cifar10-glow-small,faces-glow-small\n"), "{csv}");
    let json: Value =
        serde_json::from_str(&ok(&["table", FACES, CIFAR, "--side-by-side", "--format", "json"])).unwrap();
    assert_eq!(json[1]["compared"]["data.set"], "\"faces\"");
}

/// Reads the scalars of a folder as TensorBoard does: tag, then (step, value).
const READER: &str = "
import json, sys
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
events = EventAccumulator(sys.argv[1], size_guidance={'scalars': 0})
events.Reload()
print(json.dumps({tag: [[e.step, e.value] for e in events.Scalars(tag)] for tag in events.Tags()['scalars']}))
";

#[test]
fn tensorboard_reads_the_log_of_a_resumed_run() {
    let Some(python) = std::env::var_os("FLOWS_PYTHON") else {
        println!("skipped: FLOWS_PYTHON names no Python with tensorboard");
        return;
    };
    let dir = tempfile::tempdir().unwrap();
    let out = dir.path().join("run");
    for updates in ["train.updates=20", "train.updates=30"] {
        let mut args = vec!["train", "moons", "--out", str_of(&out), "--threads", "2"];
        for set in [
            "model.hidden=[[8],[8]]",
            // A cosine would depend on the number of updates.
            "train.schedule={kind='constant'}",
            "train.validate_every=10",
            "train.log_every=5",
            "data.train=500",
            "data.validation=50",
            "data.test=200",
            "eval.samples=0",
            updates,
        ] {
            args.extend(["--set", set]);
        }
        ok(&args);
    }
    let output = Command::new(python).args(["-c", READER, str_of(&out)]).output().unwrap();
    let stderr = String::from_utf8_lossy(&output.stderr);
    if stderr.contains("No module named") {
        assert!(std::env::var_os("FLOWS_NEED_PYTHON").is_none(), "{stderr}");
        println!("skipped: the Python that FLOWS_PYTHON names lacks tensorboard");
        return;
    }
    assert!(output.status.success(), "{stderr}");
    assert!(!stderr.contains("orrupt"), "{stderr}");
    let read: BTreeMap<String, Vec<(u64, f32)>> = serde_json::from_slice(&output.stdout).unwrap();
    let mut want: BTreeMap<String, Vec<(u64, f32)>> = BTreeMap::new();
    for line in fs::read_to_string(out.join("metrics.jsonl")).unwrap().lines() {
        let line: Value = serde_json::from_str(line).unwrap();
        for (key, value) in line.as_object().unwrap() {
            if let Some(v) = value.as_f64()
                && !["update", "epoch", "images_seen", "seconds"].contains(&key.as_str())
            {
                let tag = match key.strip_suffix("_bits_per_dim") {
                    Some(split) => format!("bits_per_dim/{split}"),
                    None => format!("training/{key}"),
                };
                want.entry(tag).or_default().push((line["update"].as_u64().unwrap(), v as f32));
            }
        }
    }
    assert_eq!(want["bits_per_dim/train"].last().unwrap().0, 30, "the second session went on");
    assert_eq!(read, want);
}
