//! Folders of runs: where they start from, sweeps and tables of them, and what is not theirs.

use super::common::{error, flow, ok, text};
use super::{str_of, tiny};
use candle_core::{DType, Device};
use serde_json::Value;
use std::path::Path;

/// Without a step the weights are those that it starts from, and what does not fit is named.
#[test]
fn a_run_starts_from_saved_weights() {
    let dir = tempfile::tempdir().unwrap();
    let (first, second, third) = (dir.path().join("1"), dir.path().join("2"), dir.path().join("3"));
    ok(&tiny("train", str_of(&first)));
    let mut args = tiny("train", str_of(&second));
    args.extend(["--init-from", str_of(&first), "--set", "train.lr=1e-30", "--set", "data.seed=7"]);
    ok(&args);
    let weights =
        |run: &Path| candle_core::safetensors::load(run.join("model.safetensors"), &Device::Cpu).unwrap();
    let (before, after) = (weights(&first), weights(&second));
    for (name, t) in &before {
        let off = (t - &after[name]).unwrap().abs().unwrap().flatten_all().unwrap().max(0).unwrap();
        // The average of equal weights rounds.
        let off = off.to_dtype(DType::F64).unwrap().to_scalar::<f64>().unwrap();
        assert!(off < 1e-6, "{name}: {off}");
    }
    let mut args = tiny("train", str_of(&third));
    args.extend(["--init-from", str_of(&first), "--set", "model.hidden=[[8],[9]]"]);
    let failed = error(&args);
    assert!(failed.contains("`coupling1.net.0.bias` has the shape [8] there and [9] here"), "{failed}");
    assert!(!third.exists());
    let from =
        |weights: &str| flow(&[&tiny("train", str_of(&third))[..], &["--init-from", weights]].concat());
    let unnamed = from("");
    assert_eq!(unnamed.status.code(), Some(2));
    assert!(text(&unnamed.stderr).contains("no weights are named"), "{}", text(&unnamed.stderr));
    let file = from(str_of(&first.join("config.json")));
    assert!(text(&file.stderr).contains("name the folder that holds the model"), "{}", text(&file.stderr));
}

/// Values and seeds are combined, a second call repeats nothing, and a slip is said before anything runs.
#[test]
fn a_sweep_is_a_table_over_seeds() {
    let dir = tempfile::tempdir().unwrap();
    let out = dir.path().join("sweep");
    let mut args = tiny("sweep", str_of(&out));
    args.extend(["--set", "train.lr=1e-3,1e-2", "--seeds", "0..2", "--jobs", "2"]);
    let first = ok(&args);
    assert!(
        first.contains("train.lr=0.001") && first.contains("train.lr=0.01") && first.contains(" ± "),
        "{first}"
    );
    assert_eq!(first.matches("**").count(), 2, "one is the best: {first}");
    let logs = |name: &str| std::fs::metadata(out.join(name)).unwrap().modified().unwrap();
    let weights = "lr=1e-2_seed=1/model.safetensors";
    let before = logs(weights);
    assert_eq!(ok(&args), first);
    assert_eq!(logs(weights), before);
    assert_eq!(ok(&["table", str_of(&out), "--seeds"]), first);
    let inside = out.join("lr=1e-2_seed=1");
    let refused = error(&tiny("sweep", str_of(&inside)));
    assert!(refused.contains("holds a run of its own"), "{refused}");
    let json: Vec<Value> =
        serde_json::from_str(&ok(&["table", str_of(&out), "--seeds", "--format", "json"])).unwrap();
    assert_eq!(json.iter().map(|row| row["seeds"].as_u64().unwrap()).collect::<Vec<_>>(), [2, 2]);
    assert_eq!(json.iter().filter(|row| row["best"] == true).count(), 1);
    let csv = ok(&["table", str_of(&out), "--seeds", "--format", "csv"]);
    assert!(csv.starts_with("recipe,data,seeds,validation,validation_std,best,test,"), "{csv}");
    assert_eq!(csv.lines().count(), 3, "{csv}");
    let picture = dir.path().join("curves.png");
    let (folder, file) = (str_of(&out), str_of(&picture));
    assert_eq!(ok(&["table", folder, "--curves", "--over", "hours", "--out", file]).trim(), file);
    assert_eq!(image::open(&picture).unwrap().width(), 900);
    let failed = error(&["table", folder, "--sizes", "--out", file]);
    assert!(failed.contains("flow compress RUN --record"), "{failed}");
    let (one, other) = (out.join("lr=1e-2_seed=1"), out.join("lr=1e-3_seed=0"));
    ok(&["report", str_of(&one), "--beside", str_of(&other)]);
    let report = std::fs::read_to_string(one.join("report.html")).unwrap();
    assert!(report.contains("curves of several runs"));
    let failed = error(&["report", str_of(&one), "--beside", str_of(dir.path())]);
    assert!(failed.contains(&format!("{} has no log", dir.path().display())), "{failed}");
    // A folder named twice is one run, and without its recipe a run still is what its summary says.
    for run in [&one, &other] {
        std::fs::remove_file(run.join("recipe.toml")).unwrap();
    }
    let again = ok(&["table", "--seeds", "--format", "csv", str_of(&one), str_of(&one), str_of(&other)]);
    let seeds: Vec<&str> = again.lines().skip(1).filter(|line| line.contains(",moons,1,")).collect();
    assert_eq!(seeds.len(), 2, "{again}");
    let failed = error(&["sweep", "moons", "--set", "train.lr=1e-3,-1", "--out", str_of(&out.join("no"))]);
    assert!(failed.contains("train.lr"), "{failed}");
    assert!(!out.join("no").exists());
}

/// What a folder holds that no run has made stays, and a result without its weights is no result.
#[test]
fn foreign_files_stay_and_lost_weights_are_named() {
    let dir = tempfile::tempdir().unwrap();
    let out = dir.path().join("mine");
    std::fs::create_dir(&out).unwrap();
    std::fs::write(out.join("samples.png"), "mine").unwrap();
    let failed = error(&tiny("train", str_of(&out)));
    assert!(failed.contains("samples.png that no run has made"), "{failed}");
    assert_eq!(std::fs::read_dir(&out).unwrap().count(), 1);
    assert_eq!(std::fs::read(out.join("samples.png")).unwrap(), b"mine");
    std::fs::remove_file(out.join("samples.png")).unwrap();
    ok(&tiny("train", str_of(&out)));
    let weights = out.join("model.safetensors");
    let whole = std::fs::read(&weights).unwrap();
    std::fs::write(&weights, &whole[..whole.len() / 2]).unwrap();
    let failed = error(&tiny("train", str_of(&out)));
    assert!(failed.contains("and not its weights") && failed.contains("model.safetensors"), "{failed}");
    std::fs::remove_file(&weights).unwrap();
    assert!(error(&tiny("train", str_of(&out))).contains("and not its weights"));
}

#[test]
fn the_setting_that_does_not_fit_is_named() {
    let mut args = tiny("train", "unmade");
    args.extend(["--set", "model.hidden=16"]);
    let failed = error(&args);
    assert!(failed.contains("--set model.hidden=16"), "{failed}");
}

/// A terminal sends Ctrl-C to a sweep and to its runs, and the sweep sends them another signal: the two count as one, and the run is saved.
#[cfg(unix)]
#[test]
fn ctrl_c_saves_the_runs_of_a_sweep() {
    use std::os::unix::process::CommandExt;
    use std::process::{Command, Stdio};
    use std::time::{Duration, Instant};
    let dir = tempfile::tempdir().unwrap();
    let out = dir.path().join("sweep");
    let run = out.join("seed=0");
    let mut args =
        vec!["sweep", "glow-cifar-small", "--out", str_of(&out), "--threads", "1", "--seeds", "0..2"];
    // Slow enough that both signals come within one update, and no checkpoint but the one that they make.
    for set in [
        "data.set=faces",
        "data.train=100",
        "data.validation=8",
        "data.test=8",
        "train.batch=100",
        "train.updates=3000",
        "train.log_every=1",
        "train.validate_every=3000",
        "train.checkpoint_every=3000",
    ] {
        args.extend(["--set", set]);
    }
    let mut sweep = Command::new(env!("CARGO_BIN_EXE_flow"));
    let mut sweep = sweep.args(&args).stderr(Stdio::piped()).process_group(0).spawn().unwrap();
    let clock = Instant::now();
    while !std::fs::read_to_string(run.join("metrics.jsonl")).is_ok_and(|text| text.lines().count() > 1) {
        assert!(clock.elapsed() < Duration::from_secs(120), "no update is made");
        std::thread::sleep(Duration::from_millis(5));
    }
    let group = format!("-{}", sweep.id());
    assert!(Command::new("kill").args(["-INT", "--", &group]).status().unwrap().success());
    assert_eq!(sweep.wait().unwrap().code(), Some(130));
    assert!(run.join("checkpoint.safetensors").exists(), "the run is saved");
    for (folder, why) in [(&out, "leaves a summary.json"), (&run, "has not ended")] {
        let said = error(&["table", str_of(folder)]);
        assert!(said.contains("holds no finished run") && said.contains(why), "{said}");
    }
}
