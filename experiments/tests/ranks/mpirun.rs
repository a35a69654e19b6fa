//! The binary `flow` under OpenMPI's mpirun: runs, interruptions, failures.

use rand::{Rng, SeedableRng};
use rand_chacha::ChaCha8Rng;
use safetensors::SafeTensors;
use std::collections::BTreeMap;
use std::ffi::OsStr;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Output, Stdio};
use std::time::{Duration, Instant};

const KILLS: usize = 10;

/// The recipe of `resume.rs`, shorter, with a batch and an evaluation that two and three processes share out unevenly.
fn recipe() -> String {
    let mut recipe = include_str!("../common/tiny.toml").to_owned();
    for (setting, here) in [
        ("batch = 24", "batch = 25"),
        ("updates = 60", "updates = 40"),
        ("batch = 32", "batch = 8"),
        ("codec_images = 0", "codec_images = 8"),
    ] {
        assert_eq!(recipe.matches(setting).count(), 1, "{setting}");
        recipe = recipe.replace(setting, here);
    }
    recipe
}

/// `size` processes of a program on this machine, with more of them than cores, and without pinning any.
pub fn mpirun(size: usize, program: &Path) -> Command {
    let mut command = Command::new("mpirun");
    command.args([
        "-q",
        "-n",
        &size.to_string(),
        "--oversubscribe",
        "--allow-run-as-root",
        "--bind-to",
        "none",
    ]);
    // In a container a process may not read another one's memory, and OpenMPI would say so at length.
    command.args(["--mca", "btl_vader_single_copy_mechanism", "none"]);
    command.arg(program).env_remove("RUST_LOG").env_remove("FLOW_DATA");
    command
}

fn flow(size: usize, args: impl IntoIterator<Item = impl AsRef<OsStr>>) -> Command {
    let mut command = mpirun(size, Path::new(env!("CARGO_BIN_EXE_flow")));
    command.args(args);
    command
}

/// A recipe's file in a folder of its own.
struct Tiny {
    dir: tempfile::TempDir,
    recipe: PathBuf,
}

impl Tiny {
    fn new() -> Self {
        let dir = tempfile::tempdir().unwrap();
        let recipe = dir.path().join("tiny.toml");
        fs::write(&recipe, self::recipe()).unwrap();
        Self { dir, recipe }
    }

    fn out(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    fn run(&self, size: usize, out: &Path, more: &[&str]) -> Command {
        let mut command =
            flow(size, ["reproduce".as_ref(), self.recipe.as_os_str(), "--out".as_ref(), out.as_os_str()]);
        command.args(["--json", "--threads", "1"]).args(more);
        command
    }
}

fn text(bytes: &[u8]) -> String {
    String::from_utf8_lossy(bytes).into_owned()
}

/// Standard output of a command that succeeds.
fn ok(mut command: Command) -> String {
    let output = command.output().expect("mpirun is installed");
    assert!(output.status.success(), "{}", text(&output.stderr));
    text(&output.stdout)
}

/// The one sentence of a command that fails.
fn error(output: &Output) -> String {
    assert!(!output.status.success(), "{}", text(&output.stdout));
    let stderr = text(&output.stderr);
    let errors: Vec<&str> = stderr.lines().filter(|line| line.starts_with("error: ")).collect();
    assert_eq!(errors.len(), 1, "{stderr}");
    errors[0].to_owned()
}

/// The tensors of a file, as bytes.
fn tensors(path: &Path) -> BTreeMap<String, Vec<u8>> {
    let bytes = fs::read(path).unwrap_or_else(|e| panic!("{}: {e}", path.display()));
    let file = SafeTensors::deserialize(&bytes).expect("whole");
    file.tensors().into_iter().map(|(name, v)| (name, v.data().to_vec())).collect()
}

fn assert_same(a: &Path, b: &Path) {
    for file in ["model.safetensors", "checkpoint.safetensors"] {
        assert!(tensors(&a.join(file)) == tensors(&b.join(file)), "{file} differs");
    }
}

fn difference(a: &Path, b: &Path) -> f32 {
    let of = |dir: &Path| -> Vec<f32> {
        let all = tensors(&dir.join("model.safetensors"));
        all.values().flat_map(|bytes| bytes.as_chunks::<4>().0).map(|b| f32::from_le_bytes(*b)).collect()
    };
    let (a, b) = (of(a), of(b));
    assert_eq!(a.len(), b.len());
    a.iter().zip(&b).map(|(a, b)| (a - b).abs() / b.abs().max(1.)).fold(0., f32::max)
}

fn number(object: &str, key: &str) -> f64 {
    let object: serde_json::Value =
        serde_json::from_str(object.lines().last().expect("a line")).expect("JSON");
    object[key].as_f64().unwrap_or_else(|| panic!("{key} in {object}"))
}

#[test]
#[cfg_attr(not(feature = "mpi"), ignore = "needs --features experiments/mpi and OpenMPI's mpirun")]
fn a_run_of_several_is_that_of_one() {
    let tiny = Tiny::new();
    let (one, two, three) = (tiny.out("one"), tiny.out("two"), tiny.out("three"));
    let alone = ok(tiny.run(1, &one, &[]));
    let summary = |dir: &Path| fs::read_to_string(dir.join("summary.json")).unwrap();
    assert!(!summary(&one).contains("processes"));
    for (size, out) in [(2, &two), (3, &three)] {
        let printed = ok(tiny.run(size, out, &[]));
        assert_eq!(printed.lines().count(), 1, "only one rank prints: {printed}");
        for key in ["bits_per_dim", "png_bits_per_dim", "jxl_bits_per_dim", "gaussian_bits_per_dim"] {
            let (a, b) = (number(&alone, key), number(&printed, key));
            assert!((a - b).abs() < 1e-4, "{key}: {a} {b}");
        }
        let off = difference(&one, out);
        println!("{size} processes: the model differs from that of one by {off:.1e}");
        assert!(off < 1e-3, "{off}");
        assert!(summary(out).contains(&format!("\"processes\": {size}")));
        // What is finished is printed again, by one.
        let again = ok(tiny.run(size, out, &[]));
        assert_eq!(number(&again, "bits_per_dim"), number(&printed, "bits_per_dim"));
        // Evaluation is the same to the bit for any number of ranks, and samples but for rounding.
        let eval = |size| {
            let mut command = flow(size, ["eval".as_ref(), out.as_os_str()]);
            command.args(["--json", "--threads", "1", "--set", "eval.importance_samples=3"]);
            ok(command)
        };
        assert_eq!(eval(size), eval(1));
        let sample = tiny.out(&format!("sample{size}.npy"));
        let mut command =
            flow(size, ["sample".as_ref(), out.as_os_str(), "--out".as_ref(), sample.as_os_str()]);
        command.args(["-n", "5"]);
        ok(command);
        assert!(sample.exists());
    }
}

fn start(mut command: Command) -> Child {
    command.stdout(Stdio::null()).stderr(Stdio::null()).spawn().expect("mpirun is installed")
}

/// The processes of `flow` that mpirun has started.
fn ranks_of(mpirun: &Child) -> Vec<u32> {
    let children =
        fs::read_to_string(format!("/proc/{0}/task/{0}/children", mpirun.id())).unwrap_or_default();
    let is_flow =
        |pid: &u32| fs::read_to_string(format!("/proc/{pid}/comm")).is_ok_and(|name| name.trim() == "flow");
    children.split_whitespace().filter_map(|pid| pid.parse().ok()).filter(is_flow).collect()
}

/// Whether it is there, and not only waits for its end to be noticed.
fn is_alive(pid: u32) -> bool {
    let state = fs::read_to_string(format!("/proc/{pid}/stat")).unwrap_or_default();
    state.rsplit(')').next().is_some_and(|rest| !rest.is_empty() && !rest.starts_with(" Z"))
}

fn signal(pid: u32, name: &str) {
    assert!(Command::new("kill").args([name, &pid.to_string()]).status().unwrap().success());
}

fn wait(child: &mut Child, most: Duration) -> Duration {
    let clock = Instant::now();
    while child.try_wait().unwrap().is_none() {
        assert!(clock.elapsed() < most, "it has not ended after {most:?}");
        std::thread::sleep(Duration::from_millis(5));
    }
    clock.elapsed()
}

#[test]
#[cfg_attr(not(feature = "mpi"), ignore = "needs --features experiments/mpi and OpenMPI's mpirun")]
fn a_killed_rank_ends_all_and_ten_kills_change_nothing() {
    let tiny = Tiny::new();
    let (straight, killed) = (tiny.out("straight"), tiny.out("killed"));
    let clock = Instant::now();
    ok(tiny.run(2, &straight, &[]));
    let whole = clock.elapsed();
    let mut rng = ChaCha8Rng::seed_from_u64(11);
    let (mut kills, mut slowest) = (0, Duration::ZERO);
    while kills < KILLS {
        let mut child = start(tiny.run(2, &killed, &[]));
        std::thread::sleep(whole.mul_f64(rng.random_range(0.1..0.5)));
        let ranks = ranks_of(&child);
        if let Some(&rank) = ranks.get(kills % 2) {
            signal(rank, "-KILL");
            kills += 1;
            let clock = Instant::now();
            wait(&mut child, Duration::from_secs(10));
            while let Some(left) = ranks.iter().find(|&&pid| is_alive(pid)) {
                assert!(clock.elapsed() < Duration::from_secs(10), "process {left} is left");
                std::thread::sleep(Duration::from_millis(5));
            }
            slowest = slowest.max(clock.elapsed());
            continue;
        }
        assert!(child.wait().unwrap().success());
        assert_same(&straight, &killed);
        fs::remove_dir_all(&killed).unwrap();
    }
    println!("{KILLS} kills; the other rank ended within {slowest:?}");
    ok(tiny.run(2, &killed, &[]));
    assert_same(&straight, &killed);
}

/// A signal to mpirun, as Ctrl-C or a scheduler sends it, saves and ends all ranks.
#[test]
#[cfg_attr(not(feature = "mpi"), ignore = "needs --features experiments/mpi and OpenMPI's mpirun")]
fn a_signal_saves_and_ends_all() {
    let tiny = Tiny::new();
    let straight = tiny.out("straight");
    // No checkpoint but the one that the signal makes.
    let rare = [
        "--set",
        "train.checkpoint_every=1000",
        "--set",
        "train.validate_every=1000",
        "--set",
        "train.updates=200",
    ];
    let run = |out: &Path| tiny.run(2, out, &rare);
    ok(run(&straight));
    for name in ["-TERM", "-INT"] {
        let out = tiny.out(name);
        let mut child = start(run(&out));
        let log = out.join("metrics.jsonl");
        let clock = Instant::now();
        while !fs::read_to_string(&log).is_ok_and(|text| text.lines().count() > 1) {
            assert!(clock.elapsed() < Duration::from_secs(60), "no update is made");
            std::thread::sleep(Duration::from_millis(5));
        }
        signal(child.id(), name);
        wait(&mut child, Duration::from_secs(30));
        assert!(!child.wait().unwrap().success());
        assert!(out.join("checkpoint.safetensors").exists() && !out.join("summary.json").exists(), "{name}");
        ok(run(&out));
        assert_same(&straight, &out);
    }
}

#[test]
#[cfg_attr(not(feature = "mpi"), ignore = "needs --features experiments/mpi and OpenMPI's mpirun")]
fn what_fails_is_said_once_and_ends_all() {
    let tiny = Tiny::new();
    let fails = |mut command: Command| {
        let clock = Instant::now();
        let said = error(&command.output().expect("mpirun is installed"));
        assert!(clock.elapsed() < Duration::from_secs(30), "{said}");
        said
    };
    let set = |set: &str| fails(tiny.run(3, &tiny.out("new"), &["--set", set]));
    // What is wrong on all of them.
    assert!(set("train.batch=2").contains("the 3 processes that share it out"));
    assert!(set("train.lr=1e30").contains("is not finite, first in"));
    let said = fails(flow(2, ["list"]));
    assert!(said.contains("not shared out"), "{said}");
    // A file that rank 0 cannot write in the middle of a run, while the others go on to the next update.
    let (straight, out) = (tiny.out("straight"), tiny.out("full"));
    ok(tiny.run(2, &straight, &[]));
    fs::create_dir_all(out.join("checkpoint.best.safetensors/in the way")).unwrap();
    // The recipe makes it a run's folder: any other that holds such a file is refused before training begins.
    fs::copy(straight.join("recipe.toml"), out.join("recipe.toml")).unwrap();
    let said = fails(tiny.run(2, &out, &[]));
    assert!(said.contains("cannot write") && said.contains("checkpoint.best.safetensors"), "{said}");
    fs::remove_dir_all(out.join("checkpoint.best.safetensors")).unwrap();
    ok(tiny.run(2, &out, &[]));
    assert_same(&straight, &out);
    // Rank 1 misses the data, rank 0 has them.
    let (here, missing) = (tiny.out("here.npy"), tiny.out("missing.npy"));
    vectors(&here);
    let script = tiny.out("rank.sh");
    let text = format!(
        "#!/bin/sh\n[ $OMPI_COMM_WORLD_RANK = 0 ] && data={} || data={}\nexec {} \"$@\" --data $data\n",
        here.display(),
        missing.display(),
        env!("CARGO_BIN_EXE_flow")
    );
    fs::write(&script, text).unwrap();
    let train = |script: &Path, out: &Path| {
        let mut command = mpirun(2, Path::new("sh"));
        command.arg(script).args(["train", "moons", "--set", "data.set=npy", "--set", "data.validation=20"]);
        command.args(["--set", "train.updates=5", "--set", "train.batch=32", "--out"]);
        command.arg(out);
        command
    };
    let out = tiny.out("no");
    let said = fails(train(&script, &out));
    assert!(said.contains("missing.npy"), "{said}");
    assert!(!out.exists());
    fs::copy(&here, &missing).unwrap();
    ok(train(&script, &out));
}

/// An array of 400 points.
fn vectors(path: &Path) {
    let mut file =
        b"\x93NUMPY\x01\0\x76\0{'descr': '<f8', 'fortran_order': False, 'shape': (400, 2), }".to_vec();
    file.resize(127, b' ');
    file.push(b'\n');
    file.extend((0..800_u32).flat_map(|i| f64::from(i * 37 % 101).to_le_bytes()));
    fs::write(path, file).unwrap();
}

/// A build without MPI that mpirun starts would be several runs in one folder.
#[test]
#[cfg_attr(feature = "mpi", ignore = "is of a build without the feature mpi")]
fn without_mpi_several_processes_are_refused() {
    let start = |rank: &str| {
        let mut command = Command::new(env!("CARGO_BIN_EXE_flow"));
        command.args(["list"]).env("OMPI_COMM_WORLD_SIZE", "2").env("OMPI_COMM_WORLD_RANK", rank);
        command.output().unwrap()
    };
    let said = error(&start("0"));
    assert!(said.contains("2 processes") && said.contains("experiments/mpi"), "{said}");
    let other = start("1");
    assert!(!other.status.success() && other.stderr.is_empty() && other.stdout.is_empty());
}
