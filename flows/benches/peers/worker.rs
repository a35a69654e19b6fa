//! The process that measures ours.

use crate::config;
use crate::flops::Precision;
use crate::gpu::train;
use candle_core::{DType, Device, Tensor};
use flows::ops::conv::{conv2d, conv2d_backward};
use flows::ops::cuda::{self, Recorder};
use flows::ops::device::{is_gpu, open_device};
use flows::optim::{Penalty, Rule, UpdateSettings, Updater};
use flows::testing::normal;
use flows::{Grads, Memory, Model};
use serde_json::{Value, json};
use std::sync::Mutex;
use std::time::Instant;

/// As in the binary `flow`: `mi_option_purge_delay`.
const PURGE_DELAY: libmimalloc_sys::mi_option_t = 15;

/// What became of recording a training step on a GPU: its nodes and the seconds of a step launched kernel by kernel; or why it
/// was refused.
pub static RECORDING: Mutex<Value> = Mutex::new(Value::Null);

fn f32s(shape: &[usize], device: &Device) -> candle_core::Result<Tensor> {
    normal(shape, 1, &Device::Cpu)?.to_dtype(DType::F32)?.to_device(device)
}

/// Tells the library what the factors of products are rounded to. The only place here that does.
fn set_precision(precision: Precision, device: &Device) -> anyhow::Result<()> {
    use flows::ops::precision::{Precision as Ours, set};
    let ours = match precision {
        Precision::F32 => Ours::Full,
        Precision::Tf32 => Ours::Tf32,
        Precision::Bf16 => Ours::Bf16,
    };
    anyhow::ensure!(ours != Ours::Tf32 || is_gpu(device), "`--{}` is for GPUs", precision.name());
    set(ours);
    Ok(())
}

/// The most memory in use so far on the device, in bytes.
fn high_water(device: &Device) -> anyhow::Result<u64> {
    Ok(cuda::peak_memory(device)?.unwrap_or_else(high_water_of_process))
}

/// The process's high-water mark of memory in bytes, or 0 where the system does not tell.
fn high_water_of_process() -> u64 {
    let status = std::fs::read_to_string("/proc/self/status").unwrap_or_default();
    let line = status.lines().find_map(|l| l.strip_prefix("VmHWM:")).unwrap_or("0");
    line.trim().trim_end_matches("kB").trim().parse::<u64>().unwrap_or(0) * 1024
}

/// The device's own name.
pub fn name(device: &Device) -> anyhow::Result<String> {
    if let Some(name) = cuda::gpu_name(device)? {
        return Ok(name);
    }
    let cpu = std::fs::read_to_string("/proc/cpuinfo").unwrap_or_default();
    let cpu = cpu.lines().find_map(|l| l.strip_prefix("model name")).unwrap_or("unknown");
    Ok(cpu.trim_start_matches([' ', '\t', ':']).to_string())
}

/// `n` times `run`: seconds, what they gave, and the most memory.
fn timed(
    device: &Device,
    what: &str,
    n: usize,
    run: &mut impl FnMut(&str) -> anyhow::Result<f64>,
    unit: &str,
) -> anyhow::Result<Value> {
    if is_gpu(device) {
        run(what)?;
        device.synchronize()?;
        cuda::reset_peak_memory(device)?;
    }
    let clock = Instant::now();
    let mut units = 0.;
    for _ in 0..n {
        units += run(what)?;
    }
    device.synchronize()?;
    let seconds = clock.elapsed().as_secs_f64();
    let peak = high_water(device)?;
    // The others need theirs.
    cuda::release_unused_memory(device)?;
    Ok(
        json!({"seconds": seconds, unit: units, "peak_bytes": peak, "recording": *RECORDING.lock().expect("no thread panics with it")}),
    )
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
        let answer = timed(device, what, n.parse()?, &mut run, unit);
        println!("{}", answer.unwrap_or_else(|e| json!({"error": format!("{e:#}")})));
    }
    Ok(())
}

/// `store|recompute CASE DEVICE PRECISION fixed|any`.
pub fn work(args: &[String]) -> anyhow::Result<()> {
    let [memory, case, device, precision, order] = args else {
        anyhow::bail!("usage: worker store|recompute CASE DEVICE PRECISION fixed|any")
    };
    let device = &open_device(device)?;
    set_precision(Precision::parse(precision)?, device)?;
    flows::ops::precision::with_deterministic(order != "any", || measure(memory, case, device))
}

fn measure(memory: &str, case: &str, device: &Device) -> anyhow::Result<()> {
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
    let settings = UpdateSettings { clip_norm: Some(1.), ema: None };
    let mut updater = Updater::new(rule, model.params(), settings, |_| Penalty::default())?;
    // Zeros take memory when they are first written: a step of zero gradients makes the optimizer's state real.
    let trained = model.params().trained();
    let zeros = trained.iter().map(|(n, p)| Ok((n.clone(), p.value().zeros_like()?)));
    updater.parts().0.step(&zeros.collect::<candle_core::Result<Grads>>()?, 0., 1.)?;
    // What is free goes back to the system, so that it is not mistaken for something held.
    // SAFETY: it may be called at any time.
    unsafe { libmimalloc_sys::mi_collect(true) };
    if memory == Memory::Store {
        // SAFETY: sets a number.
        unsafe { libmimalloc_sys::mi_option_set(PURGE_DELAY, -1) };
    }
    // The mark falls back to what is held now; where the system does not allow it, it stays that of the initialisation.
    std::fs::write("/proc/self/clear_refs", "5").ok();
    cuda::reset_peak_memory(device)?;
    let ready = json!({
        "ready": true, "parameters": model.params().count(), "peak_bytes": high_water(device)?, "device": name(device)?
    });
    let mut seed = 0;
    // In the pool, as training runs: from outside each parallel op wakes a worker and sleeps until it is done.
    rayon::scope(|_| {
        // Made here: a recording belongs to the thread that replays it.
        let mut recorder = Recorder::default();
        serve(
            device,
            ready,
            |what| {
                match what {
                    "train" => train(&mut recorder, &mut updater, &model, &x, memory)?,
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
            json!({"ready": true, "peak_bytes": high_water(device)?, "device": name(device)?}),
            |what| match what {
                "forward" => conv2d(&x, &w).map(|_| flops).map_err(Into::into),
                "backward" => conv2d_backward(&x, &w, &gy).map(|_| 2. * flops).map_err(Into::into),
                other => anyhow::bail!("there is no task `{other}`"),
            },
            "flops",
        )
    })
}
