//! `just bench`: whole models and convolutions against PyTorch, in one run.
//!
//! For each case one fresh process a contender (ours; ours with inputs rebuilt; PyTorch as written by hand, in both memory
//! formats; normflows) builds the same architecture and then does as it is told: rounds go round the contenders, so what
//! else the machine does falls on all of them. Printed are medians with the smallest and largest round, the ratio to the
//! best peer, and peak memory: a process's high-water mark after training, less that after building model and optimiser,
//! less the gradients. The last line is one JSON object of maps from case to ours over the best peer's: `train_ratio`,
//! `eval_ratio`, `sample_ratio` (images/s), `conv_ratio` (operations a second), `memory_ratio` (bytes, less is better;
//! `memory_ratio_recompute` with inputs rebuilt); `recompute_ratio` is storing over rebuilding, ours over ours.
//!
//! `FLOWS_PYTHON` names a Python with requirements.txt installed (default `python3`); without torch the peers are left out
//! and said to be. Arguments: `--rounds N`, `--seconds S` (the least that a round takes), `--threads N`, `--cases A,B`,
//! `--out FILE` (raw results), `--device cuda:N` (`just bench-cuda`: PyTorch eager and compiled instead of two memory
//! formats), `--tf32 true` (both sides round products to TF32).

use candle_core::{DType, Device, Tensor};
use flows::models::{GlowConfig, NiceConfig, RealNvpConfig};
use flows::ops::conv::{conv2d, conv2d_backward};
use flows::optim::{Grads, Optimizer, Rule, global_norm};
use flows::testing::normal;
use flows::{Ctx, Memory, Model, ModelConfig};
use serde_json::{Map, Value, json};
use std::io::{BufRead, BufReader, Write};
use std::process::{Child, ChildStdin, ChildStdout, Command, Stdio};
use std::time::Instant;

/// As in the binary `flow`.
#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;
/// As in the binary `flow`: `mi_option_purge_delay`.
const PURGE_DELAY: libmimalloc_sys::mi_option_t = 15;

const MODELS: [&str; 5] =
    ["glow_L2_K4_64", "glow_L3_K8_128", "glow_L3_K32_512", "realnvp_cifar", "nice_mnist"];
/// Channels in and out, kernel, side; batch 16.
const CONVOLUTIONS: [&str; 6] = [
    "conv:64:64:3:32",
    "conv:512:512:3:8",
    "conv:512:512:1:16",
    "conv:512:512:1:8",
    "conv:6:512:3:16",
    "conv:512:12:3:16",
];
/// What recomputing is measured on: memory must not grow from one to the other.
const DEPTHS: [&str; 2] = ["glow_L3_K8_128@64", "glow_L3_K32_128@64"];

/// What a GPU is measured on.
const ON_GPU: [&str; 4] =
    ["realnvp_cifar@64", "realnvp_cifar@512", "glow_L3_K32_512@64", "glow_L3_K32_512@512"];

fn cases(device: &str) -> Vec<&'static str> {
    match device {
        "cpu" => MODELS.iter().chain(&DEPTHS).chain(&CONVOLUTIONS).copied().collect(),
        _ => ON_GPU.to_vec(),
    }
}

fn main() {
    let args: Vec<String> = std::env::args().skip(1).filter(|a| a != "--bench").collect();
    let result = match args.first().map(String::as_str) {
        Some("worker") => worker(&args[1..]),
        _ => drive(&args),
    };
    if let Err(e) = result {
        eprintln!("error: {e:#}");
        std::process::exit(1);
    }
}

// ------------------------------------------------------------------------------------------------------------ worker

fn config(case: &str) -> anyhow::Result<(ModelConfig, usize)> {
    let (case, batch) = match case.split_once('@') {
        Some((case, batch)) => (case, Some(batch.parse()?)),
        None => (case, None),
    };
    let config = match case {
        "realnvp_cifar" => ModelConfig::RealNvp(RealNvpConfig::cifar_paper()),
        "nice_mnist" => return Ok((ModelConfig::Nice(NiceConfig::mnist_paper()), batch.unwrap_or(200))),
        glow => {
            let numbers: Vec<usize> = glow
                .split('_')
                .skip(1)
                .map(|p| p.trim_start_matches(['L', 'K']).parse())
                .collect::<Result<_, _>>()?;
            let [levels, depth, width] = numbers[..] else { anyhow::bail!("there is no case `{case}`") };
            ModelConfig::Glow(GlowConfig { levels, depth, width, ..GlowConfig::cifar_paper() })
        }
    };
    Ok((config, batch.unwrap_or(16)))
}

fn f32s(shape: &[usize], device: &Device) -> candle_core::Result<Tensor> {
    normal(shape, 1, &Device::Cpu)?.to_dtype(DType::F32)?.to_device(device)
}

/// `cpu` or `cuda:N`.
fn open(device: &str) -> anyhow::Result<Device> {
    match device.strip_prefix("cuda:") {
        Some(n) => Ok(Device::new_cuda(n.parse()?)?),
        None => Ok(Device::Cpu),
    }
}

/// The most memory in use so far on the device, in bytes. A GPU's pool keeps what it once had.
fn high_water(device: &Device) -> u64 {
    #[cfg(feature = "cuda")]
    if device.is_cuda() {
        let (free, total) = candle_core::cuda::cudarc::driver::result::mem_get_info().unwrap_or((0, 0));
        return (total - free) as u64;
    }
    debug_assert!(device.is_cpu());
    high_water_of_process()
}

/// The process's high-water mark of memory in bytes, or 0 where the system does not tell.
fn high_water_of_process() -> u64 {
    let status = std::fs::read_to_string("/proc/self/status").unwrap_or_default();
    let line = status.lines().find_map(|l| l.strip_prefix("VmHWM:")).unwrap_or("0");
    line.trim().trim_end_matches("kB").trim().parse::<u64>().unwrap_or(0) * 1024
}

/// Answers each line of `train N`, `eval N`, `sample N` (or `forward N`, `backward N`) with one line of JSON.
fn serve(
    device: &Device,
    ready: Value,
    mut run: impl FnMut(&str) -> anyhow::Result<f64>,
    unit: &str,
) -> anyhow::Result<()> {
    println!("{ready}");
    for line in std::io::stdin().lines() {
        let line = line?;
        let Some((what, n)) = line.split_once(' ') else { break };
        let n: usize = n.parse()?;
        let clock = Instant::now();
        let mut units = 0.;
        for _ in 0..n {
            units += run(what)?;
        }
        device.synchronize()?;
        println!(
            "{}",
            json!({"seconds": clock.elapsed().as_secs_f64(), unit: units, "peak_bytes": high_water(device)})
        );
    }
    Ok(())
}

fn worker(args: &[String]) -> anyhow::Result<()> {
    let [memory, case, device, tf32] = args else {
        anyhow::bail!("usage: worker store|recompute CASE DEVICE TF32")
    };
    let device = &open(device)?;
    #[cfg(feature = "cuda")]
    candle_core::cuda::set_gemm_reduced_precision_f32(tf32 == "true");
    anyhow::ensure!(device.is_cuda() || tf32 == "false", "`--tf32` is for GPUs");
    if case.starts_with("conv:") {
        return convolution(case, device);
    }
    let memory = if memory == "recompute" { Memory::Recompute } else { Memory::Store };
    let (config, batch) = config(case)?;
    let model = Model::new(config, 0, DType::F32, device)?;
    let mut shape = vec![batch];
    shape.extend(model.shape());
    let x = (((f32s(&shape, device)?.tanh()? / 2.2)? + 0.5)? * 256.)?;
    model.init(&x.narrow(0, 0, batch.min(16))?, None)?;
    let rule = Rule::Adam { b1: 0.9, b2: 0.999, eps: 1e-8 };
    let mut opt = Optimizer::new(rule, model.params())?;
    // Zeros take memory when they are first written: a step of zero gradients makes the optimiser's state real.
    let trained = model.params().trained();
    let zeros = trained.iter().map(|(n, p)| Ok((n.clone(), p.value().zeros_like()?)));
    opt.step(&zeros.collect::<candle_core::Result<Grads>>()?, 0., 1.)?;
    // What is free goes back to the system, so that it is not mistaken for something held.
    // SAFETY: it may be called at any time.
    unsafe { libmimalloc_sys::mi_collect(true) };
    if memory == Memory::Store {
        // SAFETY: sets a number.
        unsafe { libmimalloc_sys::mi_option_set(PURGE_DELAY, -1) };
    }
    // The mark falls back to what is held now; where the system does not allow it, it stays that of the initialisation.
    std::fs::write("/proc/self/clear_refs", "5").ok();
    let ready =
        json!({"ready": true, "parameters": model.params().count(), "peak_bytes": high_water(device)});
    let mut seed = 0;
    // In the pool, as training runs: from outside each parallel op wakes a worker and sleeps until it is done.
    rayon::scope(|_| {
        serve(
            device,
            ready,
            |what| {
                match what {
                    "train" => {
                        let loss = |lp: &Tensor| lp.mean_all()? * (-1. / (model.dims() as f64 * 2f64.ln()));
                        let (_, grads) = model.gradients(&x, Ctx::train(), memory, loss)?;
                        let norm = global_norm(&grads)?;
                        opt.step(&grads, 1e-6, 1f64.min(1. / norm))?;
                    }
                    "eval" => drop(model.log_prob(&x, None)?),
                    "sample" => {
                        seed += 1;
                        drop(model.sample(batch, 1., seed, None)?);
                    }
                    other => anyhow::bail!("there is no task `{other}`"),
                }
                Ok(batch as f64)
            },
            "images",
        )
    })
}

fn convolution(case: &str, device: &Device) -> anyhow::Result<()> {
    let n: Vec<usize> = case.split(':').skip(1).map(str::parse).collect::<Result<_, _>>()?;
    let [c, o, k, side] = n[..] else { anyhow::bail!("conv:C:O:K:SIDE") };
    let x = f32s(&[c, 16, side, side], device)?;
    let w = f32s(&[o, c, k, k], device)?;
    let gy = f32s(&[o, 16, side, side], device)?;
    // SAFETY: sets a number.
    unsafe { libmimalloc_sys::mi_option_set(PURGE_DELAY, -1) };
    let flops = (2 * c * o * k * k * side * side * 16) as f64;
    rayon::scope(|_| {
        serve(
            device,
            json!({"ready": true, "peak_bytes": high_water(device)}),
            |what| match what {
                "forward" => conv2d(&x, &w).map(|_| flops).map_err(Into::into),
                "backward" => conv2d_backward(&x, &w, &gy).map(|_| 2. * flops).map_err(Into::into),
                other => anyhow::bail!("there is no task `{other}`"),
            },
            "flops",
        )
    })
}

// ------------------------------------------------------------------------------------------------------------ driver

struct Options {
    rounds: usize,
    seconds: f64,
    threads: usize,
    cases: Option<Vec<String>>,
    out: Option<String>,
    device: String,
    tf32: bool,
}

impl Options {
    fn parse(args: &[String]) -> anyhow::Result<Self> {
        let threads = std::thread::available_parallelism().map_or(1, usize::from);
        let mut o = Self {
            rounds: 7,
            seconds: 1.,
            threads,
            cases: None,
            out: None,
            device: "cpu".into(),
            tf32: false,
        };
        let mut args = args.iter();
        while let Some(key) = args.next() {
            let known = ["--rounds", "--seconds", "--threads", "--cases", "--out", "--device", "--tf32"];
            anyhow::ensure!(
                known.contains(&key.as_str()),
                "there is no argument `{key}`; there are {}",
                known.join(", ")
            );
            let value = args.next().ok_or_else(|| anyhow::anyhow!("`{key}` needs a value"))?;
            match key.as_str() {
                "--rounds" => o.rounds = value.parse()?,
                "--seconds" => o.seconds = value.parse()?,
                "--threads" => o.threads = value.parse()?,
                "--cases" => o.cases = Some(value.split(',').map(str::to_string).collect()),
                "--out" => o.out = Some(value.clone()),
                "--device" => o.device.clone_from(value),
                "--tf32" => o.tf32 = value.parse()?,
                _ => unreachable!("known, as just checked"),
            }
        }
        anyhow::ensure!(o.rounds > 0, "`--rounds` must be at least 1");
        let all = cases(&o.device);
        for case in o.cases.iter().flatten() {
            anyhow::ensure!(
                all.contains(&case.as_str()),
                "there is no case `{case}`; there are {}",
                all.join(", ")
            );
        }
        if let Some(path) = &o.out {
            // Before an hour of measuring, not after.
            let parent = std::path::Path::new(path).parent().filter(|p| !p.as_os_str().is_empty());
            anyhow::ensure!(
                parent.is_none_or(std::path::Path::is_dir),
                "`--out {path}`: there is no such folder"
            );
        }
        Ok(o)
    }
}

/// A process that computes on demand.
struct Contender {
    name: &'static str,
    ours: bool,
    child: Child,
    ask: ChildStdin,
    answer: BufReader<ChildStdout>,
    ready: Value,
    /// Iterations of a round, and its rates, by task.
    rates: Map<String, Value>,
    iterations: Map<String, Value>,
    /// High-water mark after training.
    peak: f64,
}

impl Drop for Contender {
    fn drop(&mut self) {
        // It ends with its input; this is for one that does not.
        self.child.kill().ok();
        self.child.wait().ok();
    }
}

impl Contender {
    /// Starts it; `None`, with the reason, if it does not have the case.
    fn start(name: &'static str, case: &str, o: &Options) -> anyhow::Result<Result<Self, String>> {
        let threads = o.threads;
        let ours = name.starts_with("flows");
        let mut command = if ours {
            let mut c = Command::new(std::env::current_exe()?);
            let memory = if name == "flows" { "store" } else { "recompute" };
            c.args(["worker", memory, case, &o.device, &o.tf32.to_string()]);
            c
        } else {
            // Where the binary was taken to another machine, the script went with it.
            let here = concat!(env!("CARGO_MANIFEST_DIR"), "/benches/peers.py");
            let script = &std::env::var("FLOWS_PEERS").unwrap_or_else(|_| here.into());
            let mut c = Command::new(std::env::var("FLOWS_PYTHON").unwrap_or_else(|_| "python3".into()));
            let (plain, batch) = match case.split_once('@') {
                Some((plain, batch)) => (plain, Some(batch)),
                None => (case, None),
            };
            c.args([script.as_str(), name, plain, "--threads", &threads.to_string(), "--device", &o.device]);
            if o.tf32 {
                c.arg("--tf32");
            }
            if let Some(batch) = batch {
                c.args(["--batch", batch]);
            }
            c
        };
        command
            .env("RAYON_NUM_THREADS", threads.to_string())
            .env("CANDLE_NUM_THREADS", "1")
            .stdin(Stdio::piped())
            .stdout(Stdio::piped());
        let mut child = match command.spawn() {
            Ok(child) => child,
            Err(e) => {
                let program = command.get_program().to_string_lossy().into_owned();
                return Ok(Err(format!("{program} (FLOWS_PYTHON): {e}")));
            }
        };
        let ask = child.stdin.take().expect("piped");
        let mut answer = BufReader::new(child.stdout.take().expect("piped"));
        let mut line = String::new();
        answer.read_line(&mut line)?;
        let ready: Value =
            serde_json::from_str(&line).unwrap_or(json!({"why": "it ended before it was ready"}));
        if ready["ready"] != true {
            child.kill().ok();
            child.wait().ok();
            return Ok(Err(ready["why"].as_str().unwrap_or("no reason given").to_string()));
        }
        let (rates, iterations) = (Map::new(), Map::new());
        Ok(Ok(Self { name, ours, child, ask, answer, ready, rates, iterations, peak: 0. }))
    }

    /// Units a second of `n` iterations.
    fn run(&mut self, task: &str, n: u64) -> anyhow::Result<(f64, f64)> {
        writeln!(self.ask, "{task} {n}")?;
        let mut line = String::new();
        self.answer.read_line(&mut line)?;
        let v: Value = serde_json::from_str(&line)
            .map_err(|_| anyhow::anyhow!("{} ended in the middle of `{task}`", self.name))?;
        let seconds = v["seconds"].as_f64().unwrap_or(f64::NAN);
        let units = v["images"].as_f64().or(v["flops"].as_f64()).unwrap_or(f64::NAN);
        if task == "train" {
            self.peak = v["peak_bytes"].as_f64().unwrap_or(f64::NAN);
        }
        Ok((units / seconds, seconds))
    }

    /// Warms up and finds how many iterations take `seconds`.
    fn warm_up(&mut self, task: &str, seconds: f64) -> anyhow::Result<()> {
        self.run(task, 1)?;
        let (_, one) = self.run(task, 1)?;
        let n = (seconds / one).ceil().clamp(1., 1e5) as u64;
        self.iterations.insert(task.into(), n.into());
        Ok(())
    }

    fn round(&mut self, task: &str) -> anyhow::Result<()> {
        let n = self.iterations[task].as_u64().expect("warmed up");
        let (rate, _) = self.run(task, n)?;
        let rates = self.rates.entry(task).or_insert(json!([]));
        rates.as_array_mut().expect("an array").push(rate.into());
        Ok(())
    }

    fn sorted(&self, task: &str) -> Vec<f64> {
        let rates = self.rates.get(task).and_then(Value::as_array).cloned().unwrap_or_default();
        let mut v: Vec<f64> = rates.iter().filter_map(Value::as_f64).collect();
        v.sort_by(f64::total_cmp);
        v
    }

    fn median(&self, task: &str) -> f64 {
        let v = self.sorted(task);
        v.get(v.len() / 2).copied().unwrap_or(f64::NAN)
    }

    /// Peak memory beyond parameters, gradients and optimiser state, in bytes.
    fn memory(&self) -> f64 {
        let gradients = 4. * self.ready["parameters"].as_f64().unwrap_or(f64::NAN);
        self.peak - self.ready["peak_bytes"].as_f64().unwrap_or(f64::NAN) - gradients
    }
}

fn drive(args: &[String]) -> anyhow::Result<()> {
    let o = Options::parse(args)?;
    // Now, not at the end: the tree may have moved on by then.
    let commit = commit();
    let mut raw = Map::new();
    let mut ratios: Map<String, Value> = [
        "train_ratio",
        "eval_ratio",
        "sample_ratio",
        "conv_ratio",
        "memory_ratio",
        "memory_ratio_recompute",
        "recompute_ratio",
    ]
    .map(|k| (k.to_string(), json!({})))
    .into_iter()
    .collect();
    let cpu = std::fs::read_to_string("/proc/cpuinfo").unwrap_or_default();
    let cpu = cpu.lines().find_map(|l| l.strip_prefix("model name")).unwrap_or("unknown");
    let machine = format!("{}, {} threads", cpu.trim_start_matches([' ', '\t', ':']), o.threads);
    println!("{machine}; {} rounds; images/s (GFLOP/s for convolutions), median [least, most]", o.rounds);
    println!(
        "{:<20} {:<9} {:<22} {:>26} {:>10}  ours over the best peer",
        "case", "task", "who", "rate", "memory"
    );
    for case in cases(&o.device) {
        if o.cases.as_ref().is_some_and(|c| !c.iter().any(|c| c == case)) {
            continue;
        }
        raw.insert(case.to_string(), one_case(case, &o, &mut ratios)?);
    }
    let result = Value::Object(ratios.clone());
    if let Some(path) = &o.out {
        let all = json!({
            "machine": machine, "rounds": o.rounds, "seconds": o.seconds, "commit": commit,
            "flows": env!("CARGO_PKG_VERSION"), "cases": raw, "ratios": result
        });
        let written = std::fs::write(path, serde_json::to_string_pretty(&all)? + "\n");
        println!("{result}");
        return written.map_err(|e| anyhow::anyhow!("cannot write {path}: {e}"));
    }
    println!("{result}");
    Ok(())
}

fn commit() -> String {
    let git = |args: &[&str]| {
        let out = Command::new("git").args(args).output().ok()?;
        out.status.success().then(|| String::from_utf8_lossy(&out.stdout).trim().to_string())
    };
    let dirty = git(&["status", "--porcelain", "--untracked-files=no"]).is_some_and(|s| !s.is_empty());
    let hash = git(&["rev-parse", "--short", "HEAD"]).unwrap_or_else(|| "unknown".into());
    if dirty { format!("{hash}-dirty") } else { hash }
}

fn one_case(case: &str, o: &Options, ratios: &mut Map<String, Value>) -> anyhow::Result<Value> {
    let conv = case.starts_with("conv:");
    let gpu = o.device != "cpu";
    let depth = case.contains('@') && !gpu;
    let names: &[&'static str] = match (conv, depth) {
        _ if gpu && case.starts_with("glow") => {
            &["flows", "flows-recompute", "torch", "torch-compile", "normflows"]
        }
        _ if gpu => &["flows", "flows-recompute", "torch", "torch-compile"],
        (true, _) => &["flows", "torch", "torch-channels-last"],
        (_, true) => &["flows", "flows-recompute", "torch"],
        _ if case.starts_with("glow") => {
            &["flows", "flows-recompute", "torch", "torch-channels-last", "normflows"]
        }
        _ => &["flows", "torch", "torch-channels-last", "normflows"],
    };
    let tasks: &[&str] = match (conv, depth) {
        (true, _) => &["forward", "backward"],
        (_, true) => &["train"],
        _ => &["train", "eval", "sample"],
    };
    let mut all = Vec::new();
    for name in names {
        match Contender::start(name, case, o)? {
            Ok(c) => all.push(c),
            Err(why) => println!("{case:<20} {:<9} {name:<22} left out: {why}", ""),
        }
    }
    for task in tasks {
        for c in &mut all {
            c.warm_up(task, o.seconds)?;
        }
        for _ in 0..o.rounds {
            for c in &mut all {
                c.round(task)?;
            }
        }
        let best = all.iter().filter(|c| !c.ours).map(|c| c.median(task)).fold(f64::NAN, f64::max);
        let unit = if conv { 1e9 } else { 1. };
        for c in &all {
            let (v, m) = (c.sorted(task), c.median(task));
            let rate = format!("{:.1} [{:.1}, {:.1}]", m / unit, v[0] / unit, v[v.len() - 1] / unit);
            let memory = if *task == "train" { format!("{:.1} MB", c.memory() / 1e6) } else { String::new() };
            let ratio = if c.ours && best.is_finite() { format!("{:.2}", m / best) } else { String::new() };
            println!("{case:<20} {task:<9} {:<22} {rate:>26} {memory:>10}  {ratio}", c.name);
        }
        let mut put = |map: &str, key: String, v: f64| {
            if v.is_finite() {
                ratios[map][key] = ((v * 1000.).round() / 1000.).into();
            }
        };
        let ours = all.iter().find(|c| c.name == "flows").map_or(f64::NAN, |c| c.median(task));
        let map = match *task {
            "forward" | "backward" => "conv_ratio",
            "train" => "train_ratio",
            "eval" => "eval_ratio",
            _ => "sample_ratio",
        };
        let key = if conv { format!("{case} {task}") } else { case.to_string() };
        put(map, key, ours / best);
        if *task == "train" {
            let least = all.iter().filter(|c| !c.ours).map(Contender::memory).fold(f64::NAN, f64::min);
            for c in all.iter().filter(|c| c.ours) {
                let map = if c.name == "flows" { "memory_ratio" } else { "memory_ratio_recompute" };
                put(map, case.to_string(), c.memory() / least);
            }
            let recompute = all.iter().find(|c| c.name == "flows-recompute").map(|c| c.median(task));
            put("recompute_ratio", case.to_string(), ours / recompute.unwrap_or(f64::NAN));
        }
    }
    let who = all.iter().map(|c| {
        let memory = c.memory();
        let v =
            json!({"ready": c.ready, "rates": c.rates, "iterations": c.iterations, "memory_bytes": memory});
        (c.name.to_string(), v)
    });
    Ok(Value::Object(who.collect()))
}
