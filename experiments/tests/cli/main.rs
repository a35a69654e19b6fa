//! The binary `flow` from outside: what it prints, what it refuses, what it leaves behind.

#[path = "../common/mod.rs"]
mod common;
mod runs;
mod weights;

use common::{error, flow, json, ok, text};
use serde_json::Value;
use std::fs::File;
use std::path::Path;
use std::process::{Command, Stdio};

/// A run of a second.
fn tiny<'a>(command: &'a str, out: &'a str) -> Vec<&'a str> {
    let mut args = vec![command, "moons", "--out", out, "--threads", "2"];
    for set in [
        "model.hidden=[[8],[8]]",
        "train.updates=30",
        "train.validate_every=10",
        "train.log_every=5",
        "data.train=500",
        "data.validation=50",
        "data.test=200",
        "eval.samples=50",
        "train.schedule={kind=\"constant\"}",
    ] {
        args.extend(["--set", set]);
    }
    args
}

fn str_of(path: &Path) -> &str {
    path.to_str().expect("the test's folders are UTF-8")
}

#[test]
fn unknown_keys_and_impossible_values_are_named() {
    let twice = error(&["train", "moons", "--seed", "1", "--set", "train.seed=2"]);
    assert!(twice.contains("`train.seed` is given by --seed and by --set"), "{twice}");
    let cases = [
        ("model.dept=3", "dept"),
        ("train.lrr=3", "lrr"),
        ("nonsense=3", "nonsense"),
        ("train.lr=-1", "train.lr"),
        ("train.lr=\"fast\"", "train.lr"),
        ("train.batch=0", "train.batch"),
        ("train.clip_norm=0", "train.clip_norm"),
        ("train.validate_every=0", "train.validate_every"),
        ("train.hflip=true", "train.hflip"),
        ("train.shift=0.7", "train.shift"),
        ("train.ema=1.0", "train.ema"),
        ("train.epochs=0", "train.epochs"),
        ("train.optimizer.b2=1.0", "train.optimizer.b2"),
        ("train.schedule.end=2", "train.schedule.end"),
        ("train.optimizer.kind=sgd", "train.optimizer"),
        ("data.set=imagenet", "data.set"),
        ("data.test=0", "data.test"),
        ("eval.temperature=-1", "eval.temperature"),
        ("model.shape=[3]", "model.shape"),
        ("model.preprocess.kind=unit", "model.preprocess"),
        ("model.preset=glow-cifar-pap", "model.preset"),
        ("train", "key=value"),
        ("train.lr=[1", "TOML"),
        ("train.lr.x=1", "train.lr"),
    ];
    for (set, names) in cases {
        let error = error(&["explain", "moons", "--settings", "--set", set]);
        assert!(error.contains(names), "--set {set}: {error}");
    }
    assert!(error(&["explain", "nothing", "--settings"]).contains("`nothing`"));
    assert!(error(&["explain", "nothing.toml", "--settings"]).contains("nothing.toml"));
    assert_eq!(flow(&["reproduce"]).status.code(), Some(2), "a missing argument is a usage error");
    assert_eq!(flow(&["explain", "moons", "--settigns"]).status.code(), Some(2));
}

#[test]
fn every_recipe_is_listed_and_resolves() {
    let list = json(&["list", "--json"]);
    let names: Vec<&str> =
        list["recipes"].as_array().unwrap().iter().map(|r| r["recipe"].as_str().unwrap()).collect();
    for name in ["quickstart", "moons", "rings", "spirals", "checkerboard"] {
        assert!(names.contains(&name), "{name}");
    }
    for model in ["nice", "realnvp", "glow"] {
        assert!(names.contains(&format!("{model}-mnist").as_str()));
        for kind in ["", "@paper", "@code", "-small"] {
            assert!(names.contains(&format!("{model}-cifar{kind}").as_str()), "{model}-cifar{kind}");
        }
    }
    let plain = ok(&["list"]);
    let line =
        |name: &str| plain.lines().find(|line| line.starts_with(&format!("{name} "))).expect("its line");
    assert!(line("bsds300").ends_with("[paper: log-likelihood 157.31 nats]"));
    assert!(line("nice-cifar").ends_with("[paper: 4.4773 bits/dim]"));
    for name in names {
        assert!(plain.contains(name));
        // Resolving validates the settings of the large ones, too, without building their models.
        let explained = json(&["explain", name, "--settings", "--json"]);
        let settings = explained["settings"].as_object().unwrap();
        assert!(settings.len() > 25, "{name}");
        for (key, setting) in settings {
            assert!(!setting["source"].as_str().unwrap().is_empty(), "{name}: {key}");
        }
    }
}

#[test]
fn settings_come_from_somewhere() {
    let args =
        ["explain", "glow-cifar-small", "--settings", "--json", "--set", "train.lr=5e-4", "--seed", "7"];
    let settings = &json(&args)["settings"];
    assert_eq!(settings["train.lr"]["value"], "0.0005");
    assert_eq!(settings["train.lr"]["source"], "--set");
    assert_eq!(settings["train.seed"]["value"], "7");
    assert_eq!(settings["model.depth"]["source"], "this recipe");
    assert_eq!(settings["model.law"]["source"], "preset glow-cifar-paper");
    assert_eq!(settings["eval.noise_draws"]["source"], "default");
    let paper = &json(&["explain", "glow-cifar@paper", "--settings", "--json"])["settings"];
    assert!(paper["train.lr"]["source"].as_str().unwrap().contains("1807.03039"));
    // Another preset under the same recipe; and other data, to which the paper's number does not belong.
    let other = ["--set", "model.preset=glow-cifar-code", "--set", "data.set=faces"];
    let settings = json(&[&["explain", "glow-cifar", "--settings", "--json"], &other[..]].concat());
    assert_eq!(settings["settings"]["model.permutation"]["value"], "\"plain\"");
    assert!(settings["settings"].get("paper.bits_per_dim").is_none());
}

#[test]
fn explaining_measures() {
    let explained = json(&["explain", "moons", "--json"]);
    assert!(explained["parameters"].as_u64().unwrap() > 1000);
    assert!(explained["images_per_second"].as_f64().unwrap() > 0.);
    assert_eq!(explained["updates"], 4000.);
    assert!(explained["seconds"].as_f64().unwrap() > 0.);
    assert!(ok(&["explain", "moons"]).contains("train.lr"));
}

#[test]
fn a_run_leaves_its_folder_and_is_not_repeated() {
    let dir = tempfile::tempdir().unwrap();
    let out = dir.path().join("run");
    let trained = json(&[&tiny("train", str_of(&out))[..], &["--json"]].concat());
    assert_eq!(trained["split"], "validation", "train does not look at the test set");
    let result = json(&[&tiny("reproduce", str_of(&out))[..], &["--json"]].concat());
    for (key, value) in [("recipe", "moons"), ("split", "test"), ("weights", str_of(&out))] {
        assert_eq!(result[key], value);
    }
    for (key, value) in [("images", 200), ("updates", 30), ("images_seen", 30 * 256), ("seed", 0)] {
        assert_eq!(result[key], value, "{key}");
    }
    for key in
        ["bits_per_dim", "std_err", "log_likelihood", "entropy_lower", "entropy_upper", "images_per_second"]
    {
        assert!(result[key].as_f64().is_some_and(f64::is_finite), "{key}");
    }
    let files = [
        "config.json",
        "model.safetensors",
        "metrics.jsonl",
        "recipe.toml",
        "summary.json",
        "samples.png",
        "curve.png",
        "README.md",
    ];
    for file in files {
        assert!(out.join(file).metadata().is_ok_and(|m| m.len() > 0), "{file}");
    }
    let written = |file: &str| out.join(file).metadata().unwrap().modified().unwrap();
    let before = files.map(written);
    let again = json(&[&tiny("reproduce", str_of(&out))[..], &["--json"]].concat());
    assert_eq!(again, result, "a run that had finished prints its result");
    assert_eq!(files.map(written), before, "and writes nothing");

    // Other weights need another folder; more updates go on in this one.
    let other = error(&[&tiny("reproduce", str_of(&out))[..], &["--set", "train.lr=0.1"]].concat());
    assert!(other.contains("train.lr"), "{other}");
    let longer =
        json(&[&tiny("reproduce", str_of(&out))[..], &["--set", "train.updates=40", "--json"]].concat());
    assert_eq!((&longer["updates"], &longer["extended"]), (&40.into(), &serde_json::json!([30])));
    assert!(
        std::fs::read_to_string(out.join("README.md")).unwrap().contains("ended after 30 and was extended")
    );
    // Fewer would be written beside what was done with more.
    let before = files.map(written);
    let shorter = error(&tiny("reproduce", str_of(&out)));
    assert!(shorter.contains("has made 40 updates, and `train.updates` asks for 30"), "{shorter}");
    assert_eq!(files.map(written), before);

    std::fs::write(dir.path().join("notes.txt"), "a file beside the runs").unwrap();
    let table = json(&["table", str_of(dir.path()), "--format", "json"]);
    assert_eq!(table.as_array().unwrap().len(), 1);
    assert_eq!(table[0]["bits_per_dim"], longer["bits_per_dim"]);
    assert!(ok(&["table", str_of(&out)]).starts_with("| recipe"));
    assert!(ok(&["table", str_of(&out), "--format", "csv"]).starts_with("recipe,"));

    let evaluated = json(&["eval", str_of(&out), "--json"]);
    for key in ["bits_per_dim", "std_err", "images"] {
        assert_eq!(evaluated[key], longer[key], "{key}: the saved weights are those that were evaluated");
    }
    let validation = json(&["eval", str_of(&out), "--split", "validation", "--json"]);
    assert_eq!((validation["images"].as_u64(), &validation["split"]), (Some(50), &"validation".into()));
    assert!(ok(&["eval", str_of(&out), "--images", "10"]).contains("log-det"), "the terms are printed");
    let picture = dir.path().join("s.png");
    let sampled = json(&["sample", str_of(&out), "-n", "9", "--out", str_of(&picture), "--json"]);
    assert_eq!(sampled["images"], 9);
    assert!(picture.exists());
    assert!(
        error(&["sample", str_of(&out), "--class", "1", "--out", str_of(&picture)]).contains("no classes")
    );
}

/// Vectors of the user's own, one after the other from a first value on.
fn vectors(path: &Path, first: u8) {
    let mut file =
        b"\x93NUMPY\x01\0\x76\0{'descr': '<f8', 'fortran_order': False, 'shape': (400, 2), }".to_vec();
    file.resize(127, b' ');
    file.push(b'\n');
    file.extend((0..800_u32).flat_map(|i| f64::from((i * 37 + u32::from(first)) % 101).to_le_bytes()));
    std::fs::write(path, file).unwrap();
}

#[test]
fn a_finished_run_is_not_told_of_other_data() {
    let dir = tempfile::tempdir().unwrap();
    let at = |name: &str| dir.path().join(name);
    let (a, b, same, out) = (at("a.npy"), at("b.npy"), at("same.npy"), at("run"));
    vectors(&a, 0);
    vectors(&b, 1);
    vectors(&same, 0);
    let ask = |data: Option<&Path>| {
        let mut args = vec!["reproduce", "moons", "--out", str_of(&out), "--json"];
        for set in ["data.set=npy", "data.validation=20", "train.updates=5", "train.batch=32"] {
            args.extend(["--set", set]);
        }
        data.iter().for_each(|data| args.extend(["--data", str_of(data)]));
        flow(&args)
    };
    let said = |data: Option<&Path>| text(&ask(data).stderr);
    let first = ask(Some(&a));
    assert!(first.status.success(), "{}", text(&first.stderr));
    assert_eq!(ask(Some(&a)).stdout, first.stdout, "the result of these data");
    let other = said(Some(&b));
    assert!(other.contains("error: ") && other.contains("data.revision"), "{other}");
    assert!(said(Some(&at("missing.npy"))).contains("missing.npy"));
    assert!(said(None).contains("--data"), "data without a name are asked for");
    assert_eq!(ask(Some(&a)).stdout, first.stdout, "nothing was lost");
    // A generator of another version draws other points.
    let drawn = at("drawn");
    let drawn = str_of(&drawn);
    ok(&tiny("train", drawn));
    let path = Path::new(drawn).join("summary.json");
    let summary = std::fs::read_to_string(&path).unwrap();
    std::fs::write(&path, summary.replace("generator version ", "generator version 9")).unwrap();
    let written = path.metadata().unwrap().modified().unwrap();
    ok(&tiny("train", drawn));
    assert_ne!(path.metadata().unwrap().modified().unwrap(), written, "it was evaluated again");
}

/// What is killed while it writes leaves a file; the next one that has the folder for itself removes it.
#[test]
fn half_written_files_do_not_stay() {
    let dir = tempfile::tempdir().unwrap();
    let (run, out, weights) = (dir.path().join("w/run"), dir.path().join("out"), dir.path().join("w"));
    ok(&tiny("train", str_of(&run)));
    let leftovers = |of: &Path| {
        let all = ["README.md.tmp4194301", "model.safetensors.tmp4194301", ".samples.png.4194301"];
        all.map(|name| of.join(name))
    };
    let left = |of: &Path, args: &[&str]| {
        leftovers(of).iter().for_each(|path| std::fs::write(path, "half").unwrap());
        // Nobody's file is removed from under it.
        let other = File::open(of).unwrap();
        other.try_lock().unwrap();
        assert!(error(args).contains("is at work"), "{args:?}");
        assert!(leftovers(of).iter().all(|path| path.exists()), "{args:?}");
        drop(other);
        ok(args);
        assert!(leftovers(of).iter().all(|path| !path.exists()), "{args:?}");
    };
    left(&run, &tiny("train", str_of(&run)));
    left(&run, &["card", str_of(&run)]);
    let write = ["weights", "--dir", str_of(&weights), "--write"];
    left(&run, &write);
    std::fs::write(weights.join("index.json.tmp4194301"), "half").unwrap();
    ok(&write);
    assert!(!weights.join("index.json.tmp4194301").exists());
    ok(&["weights", "--dir", str_of(&weights), "--check"]);
    let export = ["export", str_of(&run), "--out", str_of(&out), "--overwrite"];
    ok(&export);
    left(&out, &export);
}

/// A pipe has no end to wait for, a device none at all, and a line of the log no use for megabytes.
#[cfg(unix)]
#[test]
fn what_stands_in_the_place_of_a_runs_file_is_refused() {
    let dir = tempfile::tempdir().unwrap();
    let (run, out, weights) = (dir.path().join("w/run"), dir.path().join("out"), dir.path().join("w"));
    ok(&tiny("train", str_of(&run)));
    ok(&["weights", "--dir", str_of(&weights), "--write"]);
    let more = [&tiny("train", str_of(&run))[..], &["--set", "train.updates=31"]].concat();
    let (export, table) = (["export", str_of(&run), "--out", str_of(&out)], ["table", str_of(&run)]);
    let check = ["weights", "--dir", str_of(&weights), "--check"];
    let cases: [(&str, &[&[&str]]); 6] = [
        ("run/summary.json", &[&more, &export, &table, &check]),
        ("run/metrics.jsonl", &[&export, &check]),
        ("run/recipe.toml", &[&export, &check]),
        ("run/checkpoint.safetensors", &[&more, &check]),
        ("index.json", &[&check]),
        // Last: it has taken the checkpoint up when it comes to the log.
        ("run/metrics.jsonl", &[&more]),
    ];
    for (name, commands) in cases {
        let path = weights.join(name);
        let good = std::fs::read(&path).unwrap();
        for kind in ["pipe", "device", "folder"] {
            std::fs::remove_file(&path).unwrap();
            match kind {
                "pipe" => assert!(Command::new("mkfifo").arg(&path).status().unwrap().success()),
                "device" => std::os::unix::fs::symlink("/dev/zero", &path).unwrap(),
                _ => std::fs::create_dir(&path).unwrap(),
            }
            for command in commands {
                let said = error(command);
                assert!(said.contains("no regular file"), "{kind} as {name}, {command:?}: {said}");
            }
            match kind {
                "folder" => std::fs::remove_dir(&path).unwrap(),
                _ => std::fs::remove_file(&path).unwrap(),
            }
            std::fs::write(&path, &good).unwrap();
        }
    }
    let log = run.join("metrics.jsonl");
    let good = std::fs::read_to_string(&log).unwrap();
    std::fs::write(&log, format!("{good}{{\"update\": {}1}}\n", " ".repeat(1 << 20))).unwrap();
    let report = dir.path().join("report.html");
    let said = error(&["report", str_of(&run), "--out", str_of(&report)]);
    assert!(said.contains("metrics.jsonl is damaged in line"), "{said}");
}

#[test]
fn standard_output_with_json_is_one_line() {
    let dir = tempfile::tempdir().unwrap();
    let out = dir.path().join("run");
    let stdout = ok(&[&tiny("reproduce", str_of(&out))[..], &["--json"]].concat());
    assert_eq!(stdout.lines().count(), 1, "{stdout}");
    let people = ok(&tiny("reproduce", str_of(&out)));
    assert!(
        people.contains("| recipe") && people.contains("log-det") && people.contains("entropy"),
        "{people}"
    );
}

#[test]
fn a_recipe_is_also_a_file() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("mine.toml");
    let header = "about = \"mine\"\n[data]\nset = \"cifar10\"\nvalidation = 100\n[model]\npreset = \"glow-cifar-paper\"\n";
    let train = "[train]\nbatch = 8\nupdates = 5\noptimizer = { kind = \"adam\", b1 = 0.9, b2 = 0.999, eps = 1e-8 }\n\
                 lr = 1e-3\nvalidate_every = 5\ncheckpoint_every = 5\n";
    std::fs::write(&path, [header, "width = 16\n", train].concat()).unwrap();
    let settings = json(&["explain", str_of(&path), "--settings", "--json"]);
    assert_eq!(settings["recipe"], "mine");
    assert_eq!(settings["settings"]["model.width"]["value"], "16");
    std::fs::write(&path, [header, "widht = 16\n", train].concat()).unwrap();
    assert!(error(&["explain", str_of(&path), "--settings"]).contains("widht"));
    std::fs::write(&path, [header, train, "[source]\ntrain.lrr = \"a typo\"\n"].concat()).unwrap();
    assert!(error(&["explain", str_of(&path), "--settings"]).contains("train.lrr"));
    std::fs::write(&path, "about = ").unwrap();
    assert!(error(&["explain", str_of(&path), "--settings"]).contains("mine.toml"));
}

#[test]
fn what_is_not_there_is_said_in_a_sentence() {
    let dir = tempfile::tempdir().unwrap();
    let nothing = str_of(dir.path());
    let error_of = error(&["eval", nothing]);
    assert!(error_of.contains("config.json") && error_of.contains("a model is a folder"), "{error_of}");
    for text in ["[]", "3", "null", "\"x\"", "[2, {}]"] {
        std::fs::write(dir.path().join("config.json"), text).unwrap();
        let error_of = error(&["eval", nothing]);
        assert!(
            error_of.contains("not a model's config") && error_of.contains("fetch it again"),
            "{error_of}"
        );
    }
    std::fs::remove_file(dir.path().join("config.json")).unwrap();
    assert!(error(&["table", nothing]).contains("holds no finished run"));
    assert!(error(&["explain", "moons", "--device", "tpu"]).contains("cuda:N"));
    if !candle_core::utils::cuda_is_available() {
        assert!(error(&["explain", "moons", "--device", "cuda:0"]).contains("without CUDA"));
    }
    let missing = dir.path().join("no-data");
    let error_of = error(&["reproduce", "glow-cifar-small", "--data", str_of(&missing)]);
    assert!(error_of.contains("no-data"), "{error_of}");
}

/// A Glow of a few seconds on drawn faces.
fn faces<'a>(command: &'a str, out: &'a str) -> Vec<&'a str> {
    let mut args = vec![command, "glow-cifar-small", "--out", out, "--threads", "2"];
    for set in [
        "data.set=faces",
        "data.train=40",
        "data.validation=8",
        "data.test=8",
        "model.levels=1",
        "model.depth=1",
        "model.width=4",
        "train.updates=2",
        "train.batch=8",
        "train.init_images=8",
        "eval.samples=4",
        "eval.codec_images=0",
    ] {
        args.extend(["--set", set]);
    }
    args
}

#[test]
fn fewer_bits_have_their_own_entropy_and_no_paper_beside_them() {
    let dir = tempfile::tempdir().unwrap();
    let out = dir.path().join("eight");
    let eight = json(&[&faces("reproduce", str_of(&out))[..], &["--json"]].concat());
    assert!(eight["entropy_lower"].is_number() && eight["gaussian_bits_per_dim"].is_number());
    let out = dir.path().join("five");
    let args = [&faces("reproduce", str_of(&out))[..], &["--set", "model.bits=5"]].concat();
    let five = json(&[&args[..], &["--json"]].concat());
    assert_eq!(five["bins"], 32);
    for key in ["paper", "gaussian_bits_per_dim"] {
        assert!(five.get(key).is_none(), "{key}");
    }
    for (key, bits) in [("entropy_lower", 1.2422), ("entropy_upper", 1.2873)] {
        assert!((five[key].as_f64().unwrap() - bits).abs() < 1e-4, "{key}: {}", five[key]);
    }
    let output = flow(&args);
    let all = text(&output.stdout) + &text(&output.stderr);
    assert!(all.contains("entropy of the data: 1.2422 to 1.2873") && !all.contains("bug"), "{all}");
}

#[cfg(target_os = "linux")]
#[test]
fn a_closed_output_is_no_error_and_a_full_one_is_a_sentence() {
    let run = |args: &[&str], to: Stdio| {
        let mut command = Command::new(env!("CARGO_BIN_EXE_flow"));
        let output = command.args(args).stdout(to).stderr(Stdio::piped()).output().expect("the binary runs");
        (output.status.code(), text(&output.stderr))
    };
    for args in [&["list"][..], &["explain", "quickstart", "--settings"], &["list", "--json"]] {
        let (reader, writer) = std::io::pipe().unwrap();
        drop(reader);
        assert_eq!(run(args, writer.into()), (Some(0), String::new()), "{args:?}");
        let full = File::options().write(true).open("/dev/full").unwrap();
        let (code, stderr) = run(args, full.into());
        assert_eq!(code, Some(1), "{args:?}");
        assert!(stderr.starts_with("error: ") && stderr.contains("standard output"), "{stderr}");
        assert_eq!(stderr.lines().count(), 1, "{stderr}");
    }
}

#[test]
fn activations_that_do_not_fit_can_be_rebuilt() {
    let dir = tempfile::tempdir().unwrap();
    let out = dir.path().join("run");
    // Tens of terabytes to store, a few gigabytes to reconstruct.
    let mut deep = vec!["train", "glow-cifar-small", "--out", str_of(&out)];
    for set in ["model.depth=10000", "model.width=4", "train.batch=200000"] {
        deep.extend(["--set", set]);
    }
    let refused = error(&deep);
    assert!(refused.contains("train.batch") && refused.contains("train.memory=recompute"), "{refused}");
    assert!(!out.exists());

    let mut args = faces("train", str_of(&out));
    args.extend(["--set", "train.memory=recompute"]);
    let output = flow(&args);
    let said = text(&output.stderr);
    assert!(output.status.success(), "{said}");
    assert!(
        said.contains("reconstructed inputs") && said.contains("activations are reconstructed"),
        "{said}"
    );
    let metrics = std::fs::read_to_string(out.join("metrics.jsonl")).unwrap();
    let drift: Vec<Value> = metrics.lines().map(|l| serde_json::from_str(l).unwrap()).collect();
    let drift = drift.iter().find_map(|l| l["drift"].as_f64()).expect("a line with the drift");
    assert!((0. ..1e-3).contains(&drift), "{drift}");
    let unknown = error(&["train", "moons", "--set", "train.memory=forget"]);
    assert!(unknown.contains("train.memory") || unknown.contains("recompute"), "{unknown}");
}

#[test]
fn the_processor_rounds_to_bf16_and_not_to_tf32() {
    let dir = tempfile::tempdir().unwrap();
    let out = dir.path().join("run");
    let train = ["train", "moons", "--out", str_of(&out), "--set"];
    let refused = error(&[&train[..], &["train.precision=tf32"]].concat());
    assert!(refused.contains("train.precision") && refused.contains("--device cuda:0"), "{refused}");
    assert!(!out.exists());
    let sets = ["train.precision=bf16", "--set", "train.updates=50", "--set", "eval.samples=0"];
    ok(&[&train[..], &sets].concat());
    let result: Value = serde_json::from_slice(&std::fs::read(out.join("summary.json")).unwrap()).unwrap();
    let rounded = &result["rounded"];
    assert_eq!(
        (&rounded["precision"], &rounded["split"]),
        (&"bf16".into(), &"validation".into()),
        "{result}"
    );
    // The rounding shows, and is small.
    let gap = rounded["gap"].as_f64().unwrap().abs();
    assert!(gap > 0. && gap < 0.01, "{result}");
    let unknown = error(&["train", "moons", "--set", "train.precision=half"]);
    assert!(unknown.contains("train.precision") || unknown.contains("bf16"), "{unknown}");
}

#[test]
fn what_the_memory_cannot_hold_is_refused_before_it_is_made() {
    let dir = tempfile::tempdir().unwrap();
    let out = dir.path().join("run");
    let refused = |recipe: &str, set: &str, names: &str| {
        let error = error(&["train", recipe, "--out", str_of(&out), "--set", set]);
        assert!(error.contains(names) && error.contains("memory"), "{set}: {error}");
        assert!(!out.exists(), "{set} left a folder behind");
    };
    refused("moons", "data.train=1000000000000", "data.train");
    refused("moons", "data.test=18446744073709", "data.test");
    refused("moons", "data.validation=1000000000000", "data.validation");
    for (recipe, key, large, too_large) in [
        ("moons", "hidden", "[[10000000, 10000000]]", "[[100000000, 100000000]]"),
        ("glow-cifar-small", "width", "10000000", "100000000"),
        ("glow-cifar-small", "depth", "10000000", "1000000000000"),
        ("realnvp-cifar-small", "features", "8000000", "100000000"),
        ("nice-cifar-small", "hidden", "[[10000000, 10000000]]", "[[100000000, 100000000]]"),
    ] {
        refused(recipe, &format!("model.{key}={large}"), &format!("model.{key}"));
        // Beyond what any memory could hold, the size itself is refused.
        let set = format!("model.{key}={too_large}");
        let said = error(&["train", recipe, "--out", str_of(&out), "--set", &set]);
        assert!(said.contains(&format!("`{key}` = 1000000")) && said.contains("lower it"), "{set}: {said}");
        assert!(!out.exists(), "{set} left a folder behind");
    }
    refused("glow-cifar-small", "train.batch=1000000000", "train.batch");
    let large = ["--set", "data.set=folder", "--size", "100000", "--out", str_of(&out)];
    assert!(error(&[&["train", "glow-cifar-small"][..], &large].concat()).contains("data.size"));
    assert!(error(&["train", "moons", "--set", "train.batch=30000"]).contains("data.train"));
    assert!(error(&["train", "moons", "--size", "64"]).contains("data.size"));
    assert!(!out.exists());

    json(&[&faces("train", str_of(&out))[..], &["--json"]].concat());
    let picture = dir.path().join("s.png");
    let draw = |n: &str, to: &Path| error(&["sample", str_of(&out), "-n", n, "--out", str_of(to)]);
    assert!(draw("10001", &picture).contains("-n"));
    assert!(draw("1", &dir.path().join("s.jpg")).contains(".png"));
    assert!(draw("1", &dir.path().join("missing/s.png")).contains("no folder"));
    assert!(draw("1", &dir.path().join("run")).contains("is a folder"));
    assert!(!picture.exists());
    let config = out.join("config.json");
    let absurd = std::fs::read_to_string(&config).unwrap().replace("\"width\": 4", "\"width\": 100000000000");
    std::fs::write(&config, absurd).unwrap();
    assert!(draw("1", &picture).contains("config.json"));
    assert!(error(&["eval", str_of(&config)]).contains("is a file"));
}

#[test]
fn two_runs_do_not_share_a_folder() {
    let dir = tempfile::tempdir().unwrap();
    let other = File::open(dir.path()).unwrap();
    other.try_lock().unwrap();
    let args = tiny("train", str_of(dir.path()));
    assert!(error(&args).contains("another run is at work"));
    drop(other);
    ok(&args);
}

#[test]
fn settings_that_an_evaluation_cannot_change_are_refused() {
    let dir = tempfile::tempdir().unwrap();
    let out = dir.path().join("run");
    let file = dir.path().join("file");
    std::fs::write(&file, "").unwrap();
    assert!(error(&tiny("train", str_of(&file))).contains("is a file"));
    ok(&tiny("train", str_of(&out)));
    let evaluate = |more: &[&str]| error(&[&["eval", str_of(&out)][..], more].concat());
    assert!(evaluate(&["--set", "model.bits=8"]).contains("model.bits"));
    assert!(evaluate(&["--set", "data.size=8"]).contains("data.size"));
    assert!(evaluate(&["--images", "0"]).contains("--images"));
    assert!(error(&["explain", "glow-cifar-small", "--set", "model.depth=0"]).contains("model.depth"));
    std::fs::write(out.join("summary.json"), "{").unwrap();
    assert!(error(&["table", str_of(&out)]).contains("delete"));
    std::fs::write(out.join("recipe.toml"), "a = [\n\nb").unwrap();
    let damaged = evaluate(&[]);
    assert!(damaged.contains("line") && !damaged.contains('|'), "{damaged}");
}

#[test]
fn the_table_marks_what_is_not_the_recipe_of_that_name() {
    let dir = tempfile::tempdir().unwrap();
    let out = dir.path().join("narrow");
    let result = json(&[&tiny("reproduce", str_of(&out))[..], &["--json"]].concat());
    let changed: Vec<&str> = result["changed"].as_array().unwrap().iter().filter_map(Value::as_str).collect();
    assert!(
        changed.contains(&"model.hidden=[[8], [8]]") && changed.contains(&"data.train=500"),
        "{changed:?}"
    );
    assert!(
        changed.iter().any(|c| c.starts_with("train.updates=")),
        "a shorter run is not the recipe's: {changed:?}"
    );
    let table = ok(&["table", str_of(&out)]);
    let [first, second, rest @ ..] = &changed[..] else { panic!("{changed:?}") };
    let few = format!("| moons ({first}, {second}, {} more) ", rest.len());
    assert!(table.contains(&few) && table.contains("| narrow "), "{table}");
    let wide = ok(&["table", str_of(&out), "--format", "wide"]);
    assert!(wide.contains(&format!("| moons ({}) ", changed.join(", "))), "{wide}");
    let report = dir.path().join("report.html");
    ok(&["report", str_of(&out), "--out", str_of(&report)]);
    let report = std::fs::read_to_string(report).unwrap();
    assert!(report.contains("recipe moons, changed: ") && report.contains("train.updates="));
    // A summary of before this was recorded, or before so much counted: the folder's recipe says it.
    let path = out.join("summary.json");
    let mut old: Value = serde_json::from_slice(&std::fs::read(&path).unwrap()).unwrap();
    old["changed"] = serde_json::json!([]);
    std::fs::write(&path, old.to_string()).unwrap();
    assert_eq!(ok(&["table", str_of(&out)]), table);
    old.as_object_mut().unwrap().remove("changed").unwrap();
    std::fs::write(&path, old.to_string()).unwrap();
    assert_eq!(ok(&["table", str_of(&out)]), table);
}
