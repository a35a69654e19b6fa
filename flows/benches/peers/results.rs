//! The rounds, and what is printed and kept of them.

use crate::contender::Contender;
use crate::flops::{forward_flops, peak};
use crate::options::{Options, split_name};
use crate::worker::name;
use crate::{cases, config};
use candle_core::{DType, Device};
use flows::Model;
use serde_json::{Map, Value, json};
use std::process::Command;

/// What all cases add to.
struct Results {
    cases: Map<String, Value>,
    ratios: Map<String, Value>,
    /// The device that ours ran on, once it is known.
    device: Option<String>,
    /// Why ours is missing, case by case.
    missing: Vec<String>,
}

impl Results {
    fn put(&mut self, map: &str, key: &str, v: f64) {
        if v.is_finite() {
            let map = self.ratios.entry(map).or_insert(json!({}));
            map[key] = ((v * 1000.).round() / 1000.).into();
        }
    }
}

/// Measures all that is asked for.
pub fn drive(o: &Options) -> anyhow::Result<()> {
    // Now, not at the end: the tree may have moved on by then.
    let commit = commit();
    let mut all = Results { cases: Map::new(), ratios: Map::new(), device: None, missing: Vec::new() };
    let machine = format!("{}, {} threads", name(&Device::Cpu)?, o.threads());
    println!(
        "{machine}; {}, {}; {} rounds; images/s (GFLOP/s for convolutions), median [least, most]",
        o.device,
        o.precision().name(),
        o.rounds
    );
    let last = if o.gpu() { "operations, and ours over others" } else { "ours over the best peer" };
    println!("{:<20} {:<9} {:<22} {:>28} {:>12}  {last}", "case", "task", "who", "rate", "memory");
    let chosen = match &o.cases {
        Some(cases) => cases.clone(),
        None => cases(&o.device).into_iter().map(str::to_string).collect(),
    };
    for case in &chosen {
        one_case(case, o, &mut all)?;
        if let Some(path) = &o.out {
            let json = json!({
                "machine": machine, "device": all.device, "precision": o.precision().name(), "order": o.order(), "rounds": o.rounds,
                "seconds": o.seconds, "compile_mode": o.compile_mode, "commit": commit,
                "flows": env!("CARGO_PKG_VERSION"), "cases": all.cases, "ratios": all.ratios
            });
            std::fs::write(path, serde_json::to_string_pretty(&json)? + "\n")
                .map_err(|e| anyhow::anyhow!("cannot write {}: {e}", path.display()))?;
        }
    }
    println!("{}", Value::Object(all.ratios));
    anyhow::ensure!(all.missing.is_empty(), "ours is missing: {}", all.missing.join("; "));
    Ok(())
}

/// The commit that the numbers belong to; FLOWS_COMMIT where the binary was taken away from its sources.
fn commit() -> String {
    if let Ok(commit) = std::env::var("FLOWS_COMMIT") {
        return commit;
    }
    let git = |args: &[&str]| {
        let out = Command::new("git").args(args).output().ok()?;
        out.status.success().then(|| String::from_utf8_lossy(&out.stdout).trim().to_string())
    };
    let dirty = git(&["status", "--porcelain", "--untracked-files=no"]).is_some_and(|s| !s.is_empty());
    let hash = git(&["rev-parse", "--short", "HEAD"]).unwrap_or_else(|| "unknown".into());
    if dirty { format!("{hash}-dirty") } else { hash }
}

/// Counted operations of the forward pass of one image, and what the device can do at most, in operations a second.
fn counted(case: &str, o: &Options, all: &Results) -> anyhow::Result<(f64, Option<f64>)> {
    let flops = forward_flops(&Model::new(config(case)?.0, 0, DType::F32, &Device::Cpu)?)?;
    let known = all.device.as_deref().filter(|_| o.gpu()).and_then(|name| peak(name, o.precision()));
    let most = o.peak.or(known);
    println!(
        "{case:<20} counted   {:.3} GFLOP an image forward, three times as much in training",
        flops / 1e9
    );
    if o.gpu() && most.is_none() {
        let device = all.device.as_deref().unwrap_or("a device without a name");
        println!(
            "{case:<20} shares of the peak left out: none is known of {device} in {}, give `--peak TFLOPS`",
            o.precision().name()
        );
    }
    Ok((flops, most.map(|tera| tera * 1e12)))
}

fn one_case(case: &str, o: &Options, results: &mut Results) -> anyhow::Result<()> {
    let conv = case.starts_with("conv:");
    let mut left_out = Map::new();
    // Says what is left out, and why.
    let mut leave = |name: &str, task: &str, why: String, missing: &mut Vec<String>| {
        println!("{case:<20} {task:<9} {name:<22} left out: {why}");
        if name == "flows" {
            missing.push(format!("{}: {why}", format!("{case} {task}").trim_end()));
        }
        left_out.insert(format!("{name} {task}").trim_end().into(), why.into());
    };
    let mut all = Vec::new();
    for name in o.contenders(case) {
        // All start at once, and are waited for in turn.
        match Contender::start(name, case, o) {
            Ok(c) => all.push(c),
            Err(why) => leave(name, "", format!("{why:#}"), &mut results.missing),
        }
    }
    // Who fails is out of this task; who no longer answers, out of the case.
    let mut each = |all: &mut Vec<Contender>,
                    task: &str,
                    missing: &mut Vec<String>,
                    what: &dyn Fn(&mut Contender) -> anyhow::Result<()>| {
        for c in all.iter_mut() {
            if let Err(why) = what(c) {
                leave(c.name, task, format!("{why:#}"), missing);
                c.iterations.remove(task);
                c.rates.remove(task);
            }
        }
        all.retain(|c| c.alive);
    };
    each(&mut all, "", &mut results.missing, &|c| c.wait());
    if let Some(device) = all.iter().find_map(|c| c.ready["device"].as_str()) {
        results.device = Some(device.into());
    }
    let counted = match conv {
        true => None,
        false if o.gpu() || o.peak.is_some() => Some(counted(case, o, results)?),
        false => None,
    };
    for task in o.tasks(case) {
        each(&mut all, task, &mut results.missing, &|c| c.warm_up(task, o));
        for _ in 0..o.rounds {
            each(&mut all, task, &mut results.missing, &|c| c.round(task));
        }
        print(case, task, &all, o, counted);
        sum_up(case, task, &all, o, counted, results);
    }
    let who = all.iter().map(|c| {
        let v = json!({
            "ready": c.ready, "rates": c.rates, "iterations": c.iterations, "memory_bytes": c.memory(),
            "peak_bytes": c.peaks, "recording": c.recording, "warm_up_seconds": c.warming.as_secs_f64()
        });
        (c.name.to_string(), v)
    });
    let mut who: Map<String, Value> = who.collect();
    who.insert("left_out".into(), left_out.into());
    if let Some((flops, most)) = counted {
        who.insert("forward_flops".into(), flops.into());
        who.insert("most_flops_per_second".into(), most.into());
    }
    results.cases.insert(case.into(), who.into());
    Ok(())
}

/// The best median of the contenders that are `wanted`, or NaN.
fn best(all: &[Contender], task: &str, wanted: impl Fn(&Contender) -> bool) -> f64 {
    all.iter().filter(|c| wanted(c)).map(|c| c.median(task)).fold(f64::NAN, f64::max)
}

/// Ours over each kind of PyTorch.
fn over(all: &[Contender], task: &str, ours: f64) -> [(&'static str, f64); 3] {
    let eager = ["torch", "torch-channels-last"];
    [
        ("eager", ours / best(all, task, |c| eager.contains(&c.name))),
        ("compile", ours / best(all, task, |c| c.name == "torch-compile")),
        ("normflows", ours / best(all, task, |c| c.name == "normflows")),
    ]
}

/// Operations a second: training goes forward once and twice as much back.
fn operations(task: &str, forward: f64, rate: f64) -> f64 {
    rate * forward * if task == "train" { 3. } else { 1. }
}

/// What recording a step was worth: without it the GPU waits for the processor for at least the difference; or why it was
/// refused.
fn recorded(recording: &Value, per_second: f64) -> String {
    let each = recording["seconds_kernel_by_kernel"].as_f64().unwrap_or(f64::NAN);
    let Some(nodes) = recording["nodes"].as_u64() else {
        return format!("not recorded: {}", recording["refused"].as_str().unwrap_or_default());
    };
    let idle = (100. * (1. - 1. / (per_second * each))).max(0.);
    format!(
        "{nodes} nodes in one launch; kernel by kernel {:.1} ms, of which the GPU is idle for {idle:.0}%",
        1e3 * each
    )
}

fn print(case: &str, task: &str, all: &[Contender], o: &Options, counted: Option<(f64, Option<f64>)>) {
    let peer = |c: &Contender| best(all, task, |p| !p.ours && (p.plain() || !c.plain()));
    let unit = if case.starts_with("conv:") { 1e9 } else { 1. };
    for c in all.iter().filter(|c| c.rates.contains_key(task)) {
        let (v, m) = (c.sorted(task), c.median(task));
        let rate = format!("{:.1} [{:.1}, {:.1}]", m / unit, v[0] / unit, v[v.len() - 1] / unit);
        let memory = match (o.gpu(), task) {
            (true, _) => format!("{:.1} MB", c.peak(task) / 1e6),
            (false, "train") => format!("{:.1} MB", c.memory() / 1e6),
            (false, _) => String::new(),
        };
        let mut notes = Vec::new();
        if task == "train" && c.recording.is_object() {
            let batch = config(case).map_or(f64::NAN, |(_, batch)| batch as f64);
            notes.push(recorded(&c.recording, m / batch));
        }
        if let Some((forward, most)) = counted {
            let done = operations(task, forward, m);
            let share = most
                .map_or(String::new(), |most| format!(" = {:.1}% of {:.1}", 100. * done / most, most / 1e12));
            notes.push(format!("{:.3} TFLOP/s{share}", done / 1e12));
        }
        if c.ours && o.compiles(case) {
            let ratios = over(all, task, m);
            notes
                .extend(ratios.iter().filter(|r| r.1.is_finite()).map(|(who, r)| format!("{r:.2} of {who}")));
        } else if c.ours && peer(c).is_finite() {
            notes.push(format!("{:.2}", m / peer(c)));
        }
        // Which compiler this is, and what it took.
        if c.name == "torch-compile" && task == "train" {
            let (mode, seconds) = (&o.compile_mode, c.warming.as_secs_f64());
            notes.push(format!("mode {mode}, each block by itself, warm after {seconds:.0} s"));
        }
        println!("{case:<20} {task:<9} {:<22} {rate:>28} {memory:>12}  {}", c.name, notes.join("; "));
    }
}

fn sum_up(
    case: &str,
    task: &str,
    all: &[Contender],
    o: &Options,
    counted: Option<(f64, Option<f64>)>,
    results: &mut Results,
) {
    let ours = all.iter().find(|c| c.name == "flows").map_or(f64::NAN, |c| c.median(task));
    let fastest = best(all, task, |c| split_name(c.name).0 == "flows");
    let conv = case.starts_with("conv:");
    let both = format!("{case} {task}");
    if o.compiles(case) {
        for (who, ratio) in over(all, task, ours) {
            results.put(&format!("{who}_ratio"), &both, ratio);
        }
    }
    if !o.gpu() {
        let map = match task {
            "forward" | "backward" => "conv_ratio",
            "train" => "train_ratio",
            "eval" => "eval_ratio",
            _ => "sample_ratio",
        };
        let key = if conv { &both } else { case };
        results.put(map, key, fastest / best(all, task, |c| !c.ours));
        results.put(&format!("{map}_f32"), key, ours / best(all, task, |c| !c.ours && c.plain()));
    }
    if let Some((forward, Some(most))) = counted {
        results.put("share", &both, operations(task, forward, ours) / most);
    }
    if task == "train" && !o.gpu() {
        let least =
            all.iter().filter(|c| !c.ours && c.plain()).map(Contender::memory).fold(f64::NAN, f64::min);
        for c in all.iter().filter(|c| c.ours && c.plain()) {
            let map = if c.name == "flows" { "memory_ratio" } else { "memory_ratio_recompute" };
            results.put(map, case, c.memory() / least);
        }
    }
    if task == "train" {
        let recompute = all.iter().find(|c| c.name == "flows-recompute").map(|c| c.median(task));
        results.put("recompute_ratio", case, ours / recompute.unwrap_or(f64::NAN));
    }
}
