//! The binary from outside: what it writes, what it refuses, and its notebooks in real Jupyter.
//!
//! `FLOWS_PYTHON` names a Python with notebooks-export/requirements.txt installed (PyTorch may be missing: the cells that
//! need it are left out then); without it nothing is executed, and with `FLOWS_NEED_PYTHON` that is a failure.

use candle_core::{DType, Device, Tensor};
use flows::bijections::LogitScale;
use flows::models::glow::{CouplingTransform, Permutation};
use flows::models::{GlowConfig, MafConfig, NiceConfig, Preprocess, PriorConfig, RealNvpConfig, maf, nice};
use flows::transforms::{MixtureOfLogistics, RationalQuadraticSpline};
use flows::{Model, ModelConfig, SaveOptions};
use nbformat::Notebook;
use nbformat::v4::Cell;
use std::collections::HashMap;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Output};

const CHECKOUT: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/..");
const FACES: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/../weights/faces-glow-small");

fn export(run: &Path, out: &Path, more: &[&str]) -> Output {
    let mut command = Command::new(env!("CARGO_BIN_EXE_notebooks-export"));
    command.arg(run).arg("--out").arg(out).args(["--samples", "8"]).args(more).output().unwrap()
}

/// The notebook of a run, exported.
fn exported(run: &Path, out: &Path) -> PathBuf {
    let output = export(run, out, &[]);
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    PathBuf::from(String::from_utf8(output.stdout).unwrap().trim())
}

fn refused(run: &Path, out: &Path, more: &[&str]) -> String {
    let output = export(run, out, more);
    assert_eq!(output.status.code(), Some(1));
    let said = String::from_utf8(output.stderr).unwrap();
    let errors: Vec<&str> = said.lines().filter(|l| l.starts_with("error: ")).collect();
    assert_eq!(errors.len(), 1, "{said}");
    errors[0].to_owned()
}

fn save(config: ModelConfig, dir: &Path, max_shard_size: usize) {
    let model = Model::new(config, 1, DType::F32, &Device::Cpu).unwrap();
    model.params().perturb(2, 0.05).unwrap();
    // Statistics as data leave them, none of them 0 or 1 and each channel's its own.
    for (name, statistic) in model.params().all() {
        if name.ends_with(".mean") || name.ends_with(".var") || name.starts_with("whiten.") {
            let (value, n) = (statistic.value(), statistic.value().elem_count());
            let moved =
                (Tensor::arange(1f32, n as f32 + 1., &Device::Cpu).unwrap() * (0.3 / n as f64)).unwrap();
            statistic.set(&(value + moved.reshape(value.shape()).unwrap()).unwrap()).unwrap();
        }
    }
    model.save(dir, &SaveOptions { max_shard_size, dtype: None }).unwrap();
}

fn grey(config: NiceConfig) -> ModelConfig {
    ModelConfig::Nice(NiceConfig {
        shape: vec![1, 6, 6],
        hidden: vec![vec![8], vec![8, 8], vec![8]],
        ..config
    })
}

fn scaled(config: RealNvpConfig) -> ModelConfig {
    ModelConfig::RealNvp(RealNvpConfig { shape: [3, 8, 8], features: 4, blocks: 2, ..config })
}

fn small(config: GlowConfig) -> ModelConfig {
    ModelConfig::Glow(GlowConfig { shape: [3, 8, 8], levels: 2, depth: 2, width: 4, ..config })
}

fn masked(transform: CouplingTransform, order: maf::Order) -> ModelConfig {
    ModelConfig::Maf(MafConfig {
        shape: vec![3],
        bits: 8,
        preprocess: Preprocess::Standardize {},
        order,
        layers: 3,
        hidden: vec![8, 7],
        transform,
        prior: PriorConfig::default(),
        dequantize: Default::default(),
        context: Default::default(),
    })
}

/// Models that together take every way through the cells.
fn models(dir: &Path) -> Vec<PathBuf> {
    let code = GlowConfig::cifar_code();
    let all = [
        ("edge", small(code.clone()), usize::MAX),
        (
            "additive",
            small(GlowConfig {
                law: CouplingTransform::Additive,
                permutation: Permutation::Shuffle,
                learn_top: false,
                learn_split: false,
                preprocess: Preprocess::Symmetric {},
                bits: 5,
                ..code
            }),
            usize::MAX,
        ),
        (
            "classes",
            small(GlowConfig { classes: Some(3), learn_latent: true, ..GlowConfig::cifar_paper() }),
            2000,
        ),
        (
            "logit",
            small(GlowConfig {
                permutation: Permutation::Plain,
                learn_split: false,
                learn_latent: true,
                preprocess: Preprocess::Logit { alpha: 0.05, scale: LogitScale::Paper },
                ..GlowConfig::cifar_paper()
            }),
            usize::MAX,
        ),
        ("nice", grey(NiceConfig::mnist_paper()), usize::MAX),
        ("nice-whitened", grey(NiceConfig::cifar_paper()), 2000),
        (
            "nice-reversed",
            grey(NiceConfig { law: nice::CouplingTransform::Affine, ..NiceConfig::cifar_code() }),
            usize::MAX,
        ),
        ("realnvp", scaled(RealNvpConfig::cifar_paper()), usize::MAX),
        ("realnvp-batch", scaled(RealNvpConfig { scales: 3, ..RealNvpConfig::cifar_code() }), 20_000),
        (
            "realnvp-diagonal",
            scaled(RealNvpConfig {
                norm_couplings: false,
                norm_input: true,
                channel_gains: true,
                diagonal: true,
                ..RealNvpConfig::cifar_code()
            }),
            usize::MAX,
        ),
        (
            "realnvp-bare",
            scaled(RealNvpConfig {
                preprocess: Preprocess::Centered {},
                signed_input: false,
                weight_norm: false,
                skip: false,
                batch_norm: false,
                ..RealNvpConfig::cifar_paper()
            }),
            usize::MAX,
        ),
        (
            "plane",
            ModelConfig::Nice(NiceConfig {
                shape: vec![2],
                hidden: vec![vec![8], vec![8]],
                preprocess: Preprocess::None {},
                ..NiceConfig::mnist_paper()
            }),
            usize::MAX,
        ),
        (
            "spline",
            grey(NiceConfig {
                law: CouplingTransform::RationalQuadraticSpline(RationalQuadraticSpline {
                    bound: 1.,
                    ..RationalQuadraticSpline::default()
                }),
                ..NiceConfig::cifar_code()
            }),
            usize::MAX,
        ),
        (
            "mixture",
            small(GlowConfig {
                law: CouplingTransform::MixtureOfLogistics(MixtureOfLogistics { components: 3 }),
                ..GlowConfig::cifar_paper()
            }),
            usize::MAX,
        ),
        ("maf", masked(CouplingTransform::Affine, maf::Order::Reverse), usize::MAX),
        ("maf-additive", masked(CouplingTransform::Additive, maf::Order::Random), usize::MAX),
    ];
    let folder = |(name, config, shard)| {
        let run = dir.join(name);
        save(config, &run, shard);
        run
    };
    all.into_iter().map(folder).collect()
}

fn cells(path: &Path) -> Vec<Cell> {
    match nbformat::parse_notebook(&fs::read_to_string(path).unwrap()).unwrap() {
        Notebook::V4(notebook) => {
            assert_eq!((notebook.nbformat, notebook.nbformat_minor), (4, 5));
            notebook.cells
        }
        _ => panic!("a notebook of another version"),
    }
}

#[test]
fn a_run_becomes_a_notebook_with_its_files() {
    let dir = tempfile::tempdir().unwrap();
    let run = dir.path().join("faces");
    fs::create_dir_all(run.join("pictures")).unwrap();
    for entry in fs::read_dir(FACES).unwrap() {
        let path = entry.unwrap().path();
        fs::copy(&path, run.join(path.file_name().unwrap())).unwrap();
    }
    fs::copy(run.join("curve.png"), run.join("pictures/ood.png")).unwrap();
    fs::copy(run.join("model.safetensors"), run.join("pictures/ood.safetensors")).unwrap();
    let out = dir.path().join("new/notebook");
    let path = exported(&run, &out);
    assert_eq!(path, out.join("faces.ipynb"));
    let beside = [
        "arrays.npz",
        "config.json",
        "metrics.csv",
        "metrics.parquet",
        "model.safetensors",
        "pictures/ood.safetensors",
        "summary.json",
    ];
    for file in beside {
        assert!(out.join(file).exists(), "{file}");
    }
    assert_eq!(fs::read_dir(dir.path().join("new")).unwrap().count(), 1, "nothing half done is left");

    let cells = cells(&path);
    let mut attached = Vec::new();
    for cell in &cells {
        match cell {
            Cell::Markdown { attachments, source, .. } => {
                for name in attachments.iter().flat_map(|a| a.as_object().unwrap().keys()) {
                    assert!(source.concat().contains(&format!("(attachment:{name})")), "{name} is not shown");
                    attached.push(name.clone());
                }
            }
            Cell::Code { outputs, execution_count, source, .. } => {
                assert!(outputs.is_empty() && execution_count.is_none());
                assert!(!source.concat().contains("import flows"), "no import of ours");
            }
            Cell::Raw { .. } => panic!("a raw cell"),
        }
    }
    assert_eq!(attached, ["curve.png", "samples.png", "ood.png"]);
    let ids: Vec<&str> = cells.iter().map(|c| c.id().as_str()).collect();
    for topic in
        ["training-curve", "numbers-table", "samples-temperature", "interpolation-walk", "attribute-moved"]
    {
        assert!(ids.contains(&topic), "{topic}");
    }
    for topic in ["levels-anew", "ood-histograms", "pictures-drawn", "pytorch-compared"] {
        assert!(ids.contains(&topic), "{topic}");
    }

    let again = dir.path().join("again");
    assert_eq!(
        fs::read(exported(&run, &again)).unwrap(),
        fs::read(&path).unwrap(),
        "the same run, the same file"
    );
    assert!(refused(&run, &out, &[]).contains("name a new folder"));
    assert!(refused(dir.path(), &dir.path().join("x"), &[]).contains("holds no model"));
    fs::write(run.join("metrics.jsonl"), "{\n{}\n").unwrap();
    assert!(
        refused(&run, &dir.path().join("y"), &[])
            .contains("metrics.jsonl of faces is damaged: fetch it again, or remove it: line 1")
    );
    assert!(!dir.path().join("y").exists());
}

#[test]
fn a_second_notebook_uses_the_library() {
    let dir = tempfile::tempdir().unwrap();
    let out = dir.path().join("out");
    let output = export(Path::new(FACES), &out, &["--rust", CHECKOUT]);
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    let said = String::from_utf8(output.stdout).unwrap();
    let names = ["faces-glow-small.ipynb", "faces-glow-small-rust.ipynb"];
    assert_eq!(said.lines().map(Path::new).collect::<Vec<_>>(), names.map(|name| out.join(name)));
    let text = fs::read_to_string(out.join(names[1])).unwrap();
    let notebook: serde_json::Value = serde_json::from_str(&text).unwrap();
    assert_eq!(notebook["metadata"]["kernelspec"]["name"], "rust");
    let mut sources = Vec::new();
    for cell in cells(&out.join(names[1])) {
        if let Cell::Code { source, outputs, .. } = cell {
            assert!(outputs.is_empty());
            sources.push(source.concat());
        }
    }
    let flows = Path::new(CHECKOUT).join("flows").canonicalize().unwrap();
    assert!(
        sources[0]
            .contains(&format!(":dep flows = {{ package = \"candle-flows\", path = \"{}\"", flows.display())),
        "{}",
        sources[0]
    );
    assert!(sources[0].contains("\n:dep candle-core = "), "{}", sources[0]);
    for call in
        ["flows::load(\".\"", "exact.log_prob(", "model.sample(", "latents::slerp(", "latents::trace("]
    {
        assert!(sources.iter().any(|source| source.contains(call)), "{call}");
    }
    assert!(
        refused(Path::new(FACES), &dir.path().join("x"), &["--rust", "/"])
            .contains("no checkout of the library")
    );
}

/// What is damaged is named before anything is left.
#[test]
fn what_is_damaged_is_named() {
    let dir = tempfile::tempdir().unwrap();
    let run = dir.path().join("run");
    save(small(GlowConfig::cifar_paper()), &run, usize::MAX);
    let out = dir.path().join("out");
    let damaged: [(&str, &[u8], &str); 5] = [
        ("summary.json", b"[1]", "summary.json of run is damaged: write or fetch it again, or remove it"),
        ("metrics.jsonl", b"\xff\n", "metrics.jsonl of run is damaged: fetch it again, or remove it"),
        ("metrics.jsonl", b"{\"epoch\":1}\n", "line 1 has no `update`"),
        ("samples.png", b"GIF89a", "samples.png is no PNG: draw it again, or remove it"),
        ("pictures/ood.safetensors", b"junk", "ood.safetensors: draw it again, or remove it"),
    ];
    fs::create_dir(run.join("pictures")).unwrap();
    for (file, bytes, says) in damaged {
        fs::write(run.join(file), bytes).unwrap();
        let said = refused(&run, &out, &[]);
        assert!(said.contains(says), "{said}");
        fs::remove_file(run.join(file)).unwrap();
    }
    fs::create_dir(run.join("pictures/ood.safetensors")).unwrap();
    let said = refused(&run, &out, &[]);
    assert!(said.contains("ood.safetensors is no regular file") && said.contains("remove it"), "{said}");
    fs::remove_dir(run.join("pictures/ood.safetensors")).unwrap();
    // A run that was stopped before it logged anything, and what is no folder.
    fs::write(run.join("metrics.jsonl"), "").unwrap();
    let file = dir.path().join("file");
    fs::write(&file, "kept").unwrap();
    assert!(refused(&run, &file, &[]).contains("name a new folder"));
    assert_eq!(fs::read_to_string(&file).unwrap(), "kept");
    exported(&run, &out);
    assert_eq!(fs::read_dir(dir.path()).unwrap().count(), 3, "nothing half done is left");
}

#[test]
fn without_jupyter_the_notebook_stays() {
    let dir = tempfile::tempdir().unwrap();
    let run = dir.path().join("glow");
    save(small(GlowConfig::cifar_paper()), &run, usize::MAX);
    let out = dir.path().join("out");
    let said = refused(&run, &out, &["--execute", "--jupyter", "no-such-jupyter"]);
    assert!(said.contains("pip install"), "{said}");
    assert!(!cells(&out.join("glow.ipynb")).is_empty());
}

/// One of the first samples of this model overflows where it is drawn at a high temperature.
const OVERFLOWS: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/../weights/cifar10-glow-small");

#[test]
fn samples_that_overflow_are_left_out() {
    let dir = tempfile::tempdir().unwrap();
    let out = dir.path().join("out");
    let output = export(Path::new(OVERFLOWS), &out, &[]);
    let said = String::from_utf8(output.stderr).unwrap();
    assert!(output.status.success() && said.contains("that are not finite are left out"), "{said}");
    for (name, array) in Tensor::read_npz(out.join("arrays.npz")).unwrap() {
        // What the model has not learned may have no density.
        if !name.starts_with("ood_") || name == "ood_samples" {
            let array = array.to_dtype(DType::F64).unwrap();
            assert!(flows::params::is_finite(&array).unwrap(), "{name}");
        }
    }
    let text = fs::read_to_string(out.join("cifar10-glow-small.ipynb")).unwrap();
    assert!(text.contains("that were drawn are left out"));

    // All of them overflow.
    let run = dir.path().join("run");
    save(small(GlowConfig::cifar_paper()), &run, usize::MAX);
    let model = Model::load(&run, &Device::Cpu).unwrap();
    for (_, logs) in model.params().all().iter().filter(|(name, _)| name.ends_with("actnorm.logs")) {
        logs.set(&(logs.value().zeros_like().unwrap() - 80.).unwrap()).unwrap();
    }
    model.save(&run, &SaveOptions { max_shard_size: usize::MAX, dtype: None }).unwrap();
    let said = refused(&run, &dir.path().join("none"), &[]);
    assert!(said.contains("samples of this model are not finite") && said.contains("flow doctor"), "{said}");
}

#[test]
fn names_are_no_markup() {
    let dir = tempfile::tempdir().unwrap();
    let run = dir.path().join("a_<b>`[c]");
    save(small(GlowConfig::cifar_paper()), &run, usize::MAX);
    fs::create_dir(run.join("pictures")).unwrap();
    for name in ["ood [noise] (1).png", "plain.png"] {
        fs::copy(Path::new(FACES).join("curve.png"), run.join("pictures").join(name)).unwrap();
    }
    let (mut text, mut attached) = (String::new(), Vec::new());
    for cell in cells(&exported(&run, &dir.path().join("out"))) {
        if let Cell::Markdown { source, attachments, .. } = cell {
            text.push_str(&source.concat());
            attached.extend(attachments.iter().flat_map(|a| a.as_object().unwrap().keys().cloned()));
        }
    }
    attached.sort();
    assert_eq!(attached, ["picture-1", "plain.png"]);
    for part in [
        r"# a\_\<b\>\`\[c\]",
        "the folder `` a_<b>`[c] ``",
        r"![ood \[noise\] (1).png](attachment:picture-1)",
        "![plain.png](attachment:plain.png)",
    ] {
        assert!(text.contains(part), "{part} is not in {text}");
    }
}

#[test]
fn the_folder_may_be_there_and_its_parents_are_made() {
    let dir = tempfile::tempdir().unwrap();
    let (run, here) = (dir.path().join("run"), dir.path().join("here"));
    save(small(GlowConfig::cifar_paper()), &run, usize::MAX);
    fs::create_dir(&here).unwrap();
    let mut command = Command::new(env!("CARGO_BIN_EXE_notebooks-export"));
    let output =
        command.arg(&run).args(["--out", ".", "--samples", "8"]).current_dir(&here).output().unwrap();
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    let mut names: Vec<_> = fs::read_dir(&here).unwrap().map(|e| e.unwrap().file_name()).collect();
    names.sort();
    assert_eq!(names, ["arrays.npz", "config.json", "model.safetensors", "run.ipynb"]);

    // Two at once: one has it.
    let both = dir.path().join("new/both");
    let one = || export(&run, &both, &[]);
    let outputs = std::thread::scope(|scope| {
        let other = scope.spawn(one);
        [one(), other.join().unwrap()]
    });
    assert_eq!(outputs.iter().filter(|o| o.status.success()).count(), 1);
    let said = String::from_utf8_lossy(&outputs.iter().find(|o| !o.status.success()).unwrap().stderr);
    assert!(said.trim_end().ends_with("name a new folder"), "{said}");
    assert_eq!(fs::read_dir(dir.path().join("new")).unwrap().count(), 1);

    fs::write(run.join("summary.json"), "[1]").unwrap();
    refused(&run, &dir.path().join("a/b/c"), &[]);
    assert!(!dir.path().join("a").exists());
    refused(&run, &dir.path().join("new/b/c"), &[]);
    assert!(both.exists() && !dir.path().join("new/b").exists());
}

#[cfg(target_os = "linux")]
#[test]
fn standard_output_may_be_closed_or_full() {
    use std::process::Stdio;
    let dir = tempfile::tempdir().unwrap();
    let run = dir.path().join("run");
    save(small(GlowConfig::cifar_paper()), &run, usize::MAX);
    let to = |out: &str, stdout: Stdio| {
        let mut command = Command::new(env!("CARGO_BIN_EXE_notebooks-export"));
        command.arg(&run).arg("--out").arg(dir.path().join(out)).args(["--samples", "8"]);
        command.stdout(stdout).stderr(Stdio::piped()).spawn().unwrap()
    };
    let mut child = to("closed", Stdio::piped());
    drop(child.stdout.take());
    let output = child.wait_with_output().unwrap();
    let said = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success() && !said.contains("error"), "{said}");
    let full = fs::File::options().write(true).open("/dev/full").unwrap();
    let output = to("full", full.into()).wait_with_output().unwrap();
    let said = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.code() == Some(1) && said.contains("error: the notebook's name cannot"), "{said}");
    assert!(dir.path().join("full/run.ipynb").exists());
}

/// A program in Jupyter's place.
#[cfg(unix)]
fn jupyter(path: &Path, script: &str) {
    use std::os::unix::fs::PermissionsExt;
    fs::write(path, format!("#!/bin/sh\n{script}\n")).unwrap();
    fs::set_permissions(path, fs::Permissions::from_mode(0o755)).unwrap();
}

#[cfg(unix)]
#[test]
fn what_jupyter_says_is_in_no_colours() {
    let dir = tempfile::tempdir().unwrap();
    let (run, program) = (dir.path().join("run"), dir.path().join("jupyter"));
    save(small(GlowConfig::cifar_paper()), &run, usize::MAX);
    jupyter(&program, r"printf '\033[0;31mValueError\033[0m: no\n' >&2; exit 1");
    let said = refused(&run, &dir.path().join("out"), &["--execute", "--jupyter", program.to_str().unwrap()]);
    assert!(said.ends_with("for Jupyter stopped: ValueError: no"), "{said}");
}

/// Whoever ends the process by its id leaves neither folders half done nor Jupyter, nor a kernel in a session of its own.
#[cfg(target_os = "linux")]
#[test]
fn a_signal_leaves_nothing_behind() {
    use nix::sys::signal::{Signal, kill};
    use nix::unistd::Pid;
    use std::process::Stdio;
    use std::time::{Duration, Instant};
    let dir = tempfile::tempdir().unwrap();
    let (run, program, pids) = (dir.path().join("run"), dir.path().join("jupyter"), dir.path().join("pids"));
    save(small(GlowConfig::cifar_paper()), &run, usize::MAX);
    jupyter(
        &program,
        &format!("setsid sleep 600 & echo $! $$ > {0}.new; mv {0}.new {0}; wait", pids.display()),
    );
    let start = |out: &str, samples: &str| {
        let mut command = Command::new(env!("CARGO_BIN_EXE_notebooks-export"));
        command.arg(&run).arg("--out").arg(dir.path().join(out)).args(["--samples", samples, "--execute"]);
        command.arg("--jupyter").arg(&program).stdout(Stdio::null()).stderr(Stdio::piped()).spawn().unwrap()
    };
    let wait_for = |what: &dyn Fn() -> bool| {
        let begun = Instant::now();
        while !what() {
            assert!(begun.elapsed() < Duration::from_secs(60));
            std::thread::sleep(Duration::from_millis(5));
        }
    };
    let stop = |child: std::process::Child, signal| {
        kill(Pid::from_raw(child.id() as i32), signal).unwrap();
        let output = child.wait_with_output().unwrap();
        assert_eq!(output.status.code(), Some(130));
        String::from_utf8(output.stderr).unwrap()
    };

    // While it draws, which takes minutes.
    let child = start("new/drawing", "100000");
    wait_for(&|| dir.path().join("new").exists());
    stop(child, Signal::SIGTERM);
    assert!(!dir.path().join("new").exists());

    // While Jupyter runs.
    let child = start("executed", "8");
    wait_for(&|| pids.exists());
    let said = stop(child, Signal::SIGINT);
    assert!(said.contains("run.ipynb is written without outputs"), "{said}");
    assert!(dir.path().join("executed/run.ipynb").exists());
    for pid in fs::read_to_string(&pids).unwrap().split_whitespace() {
        // A zombie is no process any more.
        let alive = || {
            let stat = fs::read_to_string(format!("/proc/{pid}/stat")).unwrap_or_default();
            stat.rsplit_once(") ").is_some_and(|(_, rest)| !rest.starts_with('Z'))
        };
        wait_for(&|| !alive());
    }
}

/// A model of the hub is taken from the hub's cache, whose files are links to blobs named by their hash.
#[cfg(unix)]
#[test]
fn a_model_of_the_hub_becomes_a_notebook() {
    use sha2::{Digest, Sha256};
    let dir = tempfile::tempdir().unwrap();
    let run = dir.path().join("run");
    save(small(GlowConfig::cifar_paper()), &run, usize::MAX);
    fs::copy(Path::new(FACES).join("metrics.jsonl"), run.join("metrics.jsonl")).unwrap();
    let repository = dir.path().join("home/hub/models--user--photos");
    let commit = "0123456789abcdef0123456789abcdef01234567";
    let snapshot = repository.join("snapshots").join(commit);
    for folder in [&repository.join("blobs"), &repository.join("refs"), &snapshot] {
        fs::create_dir_all(folder).unwrap();
    }
    fs::write(repository.join("refs/main"), commit).unwrap();
    for name in ["config.json", "model.safetensors", "metrics.jsonl"] {
        let bytes = fs::read(run.join(name)).unwrap();
        let hash = format!("{:x}", Sha256::digest(&bytes));
        fs::write(repository.join("blobs").join(&hash), bytes).unwrap();
        std::os::unix::fs::symlink(format!("../../blobs/{hash}"), snapshot.join(name)).unwrap();
    }
    let offline = |address: &str, out: &str| {
        let mut command = Command::new(env!("CARGO_BIN_EXE_notebooks-export"));
        command.arg(address).arg("--out").arg(dir.path().join(out)).args(["--samples", "4"]);
        command.env_remove("HF_HUB_CACHE").env("HF_HOME", dir.path().join("home")).env("HF_HUB_OFFLINE", "1");
        command.output().unwrap()
    };
    let output = offline("hf:user/photos", "out");
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    let out = dir.path().join("out");
    assert!(out.join("metrics.parquet").exists() && !out.join("model.safetensors").is_symlink());
    let text = fs::read_to_string(out.join("photos.ipynb")).unwrap();
    assert!(text.contains("`hf:user/photos`") && text.contains(commit));

    let missing = offline("hf:user/others@v1", "none");
    assert_eq!(missing.status.code(), Some(1));
    assert!(String::from_utf8_lossy(&missing.stderr).contains("user/others at v1 is not in the cache"));
}

/// Validates and executes notebooks, two at a time; without PyTorch the cells that need it are left out, and without evcxr
/// the notebooks in Rust are only validated.
const SCRIPT: &str = "
import asyncio, importlib.util, sys, pathlib, nbformat
from nbclient import NotebookClient
from jupyter_client.kernelspec import KernelSpecManager
torch = importlib.util.find_spec('torch') is not None
kernels = KernelSpecManager().find_kernel_specs()

async def run(path, room):
    notebook = nbformat.read(path, as_version=4)
    nbformat.validate(notebook)
    assert notebook.nbformat_minor == 5
    rust = notebook.metadata.kernelspec.name == 'rust'
    if rust and 'rust' not in kernels:
        return f'{path.name} {len(notebook.cells)} cells; not executed: there is no kernel evcxr'
    if not torch and not rust:
        notebook.cells = [c for c in notebook.cells if not c.id.startswith('pytorch')]
    async with room:
        await NotebookClient(notebook, timeout=3600, resources={'metadata': {'path': str(path.parent)}}).async_execute()
    said = [o for c in notebook.cells if c.cell_type == 'code' for o in c.outputs]
    # Cargo says on stderr what it builds.
    assert rust or not any(o.get('name') == 'stderr' for o in said), [o for o in said if o.get('name') == 'stderr']
    pictures = sum('image/png' in o.get('data', {}) for o in said)
    compared = [o.text.strip() for o in said if 'largest difference' in o.get('text', '')]
    assert len(compared) == (rust or torch), compared
    return f'{path.name} {len(notebook.cells)} cells, {pictures} pictures; {compared[0] if compared else \"no PyTorch\"}'

async def main():
    room = asyncio.Semaphore(2)
    for line in await asyncio.gather(*(run(pathlib.Path(path), room) for path in sys.argv[1:])):
        print(line)

asyncio.run(main())
";

/// What commands leave in the folder of pictures: arrays, and in the metadata their figures.
fn drawn(folder: &Path) {
    let numbers = |name: &str, figures: &str, tensors: Vec<(&str, Vec<usize>)>| {
        let tensors = tensors
            .into_iter()
            .map(|(name, shape)| (name, Tensor::rand(0f32, 255., shape, &Device::Cpu).unwrap()));
        let meta = HashMap::from([("flow".to_owned(), figures.to_owned())]);
        let bytes = safetensors::serialize(tensors.collect::<Vec<_>>(), Some(meta)).unwrap();
        fs::write(folder.join(name), bytes).unwrap();
    };
    numbers(
        "ood.safetensors",
        r#"{"command":"ood","data":"faces","against":"noise","auroc":0.5}"#,
        vec![("bits_per_dim", vec![20]), ("against_bits_per_dim", vec![20])],
    );
    numbers(
        "interpolate.safetensors",
        r#"{"command":"interpolate","t":[0,0.5,1]}"#,
        vec![("linear", vec![3, 1, 3, 8, 8]), ("spherical", vec![3, 1, 3, 8, 8])],
    );
    numbers(
        "attribute.safetensors",
        r#"{"command":"attribute","label":"smile"}"#,
        vec![("images", vec![2, 3, 3, 8, 8]), ("strengths", vec![3])],
    );
    numbers("reconstruct.safetensors", r#"{"command":"reconstruct"}"#, vec![("error", vec![4])]);
}

#[test]
fn jupyter_executes_every_cell() {
    let Some(python) = std::env::var_os("FLOWS_PYTHON") else {
        println!("skipped: FLOWS_PYTHON names no Python with notebooks-export/requirements.txt");
        return;
    };
    let dir = tempfile::tempdir().unwrap();
    let faces = dir.path().join("faces");
    fs::create_dir_all(faces.join("pictures")).unwrap();
    for entry in fs::read_dir(FACES).unwrap() {
        let path = entry.unwrap().path();
        fs::copy(&path, faces.join(path.file_name().unwrap())).unwrap();
    }
    drawn(&faces.join("pictures"));
    let runs = models(dir.path()).into_iter().chain([faces, PathBuf::from(OVERFLOWS)]).enumerate();
    let notebooks: Vec<PathBuf> =
        runs.map(|(i, run)| exported(&run, &dir.path().join(format!("out{i}")))).collect();
    // The same in Rust: images of a model with classes, and points.
    let in_rust = ["classes", "plane"].map(|name| {
        let out = dir.path().join(format!("{name}-rust"));
        assert!(export(&dir.path().join(name), &out, &["--rust", CHECKOUT]).status.success());
        out.join(format!("{name}-rust.ipynb"))
    });
    let notebooks: Vec<PathBuf> = notebooks.into_iter().chain(in_rust).collect();
    let output = Command::new(python).args(["-c", SCRIPT]).args(&notebooks).output().unwrap();
    let (stdout, stderr) = (String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr));
    if stderr.contains("No module named 'nb") {
        assert!(std::env::var_os("FLOWS_NEED_PYTHON").is_none(), "{stderr}");
        println!("skipped: the Python that FLOWS_PYTHON names lacks nbformat or nbclient");
        return;
    }
    print!("{stdout}");
    assert!(output.status.success(), "{stdout}{stderr}");
    // evcxr's own words are there, too.
    assert_eq!(stdout.lines().filter(|line| line.contains(".ipynb ")).count(), notebooks.len());
}

#[test]
fn a_learned_prior_is_refused() {
    let dir = tempfile::tempdir().unwrap();
    let prior = PriorConfig::Mixture { components: 2 };
    save(grey(NiceConfig { prior, ..NiceConfig::mnist_paper() }), dir.path(), usize::MAX);
    assert!(refused(dir.path(), &dir.path().join("out"), &[]).contains("flows_torch.py"));
}
