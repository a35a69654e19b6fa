//! `just bench` and `just bench-cuda`: whole models and convolutions against PyTorch, in one run.
//!
//! For each case one fresh process a contender builds the same architecture and then does as it is told: rounds go round
//! the contenders, so what else the machine does falls on all of them. Printed are medians with the smallest and largest
//! round. On the CPU: ours; ours with inputs rebuilt; PyTorch as written by hand, in both memory formats; normflows; the
//! ratio to the best peer; and peak memory: a process's high-water mark after training, less that after building model and
//! optimiser, less the gradients. The last line is one JSON object of maps from case to ours over the best peer's:
//! `train_ratio`, `eval_ratio`, `sample_ratio` (images/s), `conv_ratio` (operations a second), `memory_ratio` (bytes, less
//! is better; `memory_ratio_recompute` with inputs rebuilt); `recompute_ratio` is storing over rebuilding, ours over ours.
//!
//! On a GPU (`--device cuda:N`) PyTorch compiled comes beside PyTorch eager, and there are more columns: each task's peak of
//! what its process allocated on the GPU, the operations a second (counted from the weights' shapes, flops.rs) and their
//! share of what the device can do at most in that precision, ours over eager PyTorch (the faster memory format), over
//! torch.compile and over normflows: `eager_ratio`, `compile_ratio`, `normflows_ratio` and `share` from `CASE TASK`. A case
//! NAME@64 samples 64 images in one pass. A round there begins with an iteration that is not timed, for a process gives
//! back what memory it holds unused when others need it, and clocks rise; the GPU is waited for before and after the rest.
//! Our training step is recorded and replayed, as `flow train` does it: how many nodes it has and what the GPU would be idle
//! for without that comes with it; where a recording is refused, the reason, with launches and idle share as CUPTI sees them.
//!
//! `FLOWS_PYTHON` names a Python with requirements.txt installed (default `python3`); without torch the peers are left out
//! and said to be; what breaks on the way (memory, say) is left out with its reason, and the rest goes on. Arguments:
//!
//! | | |
//! |---|---|
//! | `--device cuda:N` | default `cpu` |
//! | `--tf32`, `--bf16` | both sides round the factors of products so (GPUs; PyTorch's bf16 is autocast, on a CPU, too) |
//! | `--cases A,B` | of those listed below, or any `glow_L3_K32_512@64`, `realnvp_cifar@64`, `nice_mnist@200` |
//! | `--who A,B` | which contenders |
//! | `--rounds N`, `--seconds S` | how many rounds, and the least that each takes |
//! | `--threads N` | of each process on the CPU |
//! | `--peak TFLOPS` | what the device can do at most, where flops.rs does not know |
//! | `--compile-mode MODE`, `--compile-seconds S` | torch.compile's mode, and the time after which it is left out (180) |
//! | `--out FILE` | raw results, written anew after each case |

#[path = "flops.rs"]
mod flops;

use candle_core::{DType, Device, Tensor};
use flops::{Precision, forward_flops, peak};
use flows::models::{GlowConfig, NiceConfig, RealNvpConfig};
use flows::ops::conv::{conv2d, conv2d_backward};
#[cfg(feature = "cuda")]
use flows::ops::kernels::{Graph, capture, trace, warm_up};
#[cfg(feature = "cuda")]
use flows::optim::OnDevice;
use flows::optim::{Grads, Optimizer, Rule, global_norm};
use flows::testing::normal;
use flows::{Ctx, Memory, Model, ModelConfig};
use serde_json::{Map, Value, json};
use std::io::{BufRead, BufReader, Write};
use std::process::{Child, ChildStdin, Command, Stdio};
use std::sync::OnceLock;
use std::sync::mpsc::{self, RecvTimeoutError};
use std::time::{Duration, Instant};

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

/// What a GPU is measured on; a run that is cut off has the first of them.
const ON_GPU: [&str; 4] =
    ["glow_L3_K32_512@64", "realnvp_cifar@64", "glow_L3_K32_512@512", "realnvp_cifar@512"];

fn cases(device: &str) -> Vec<&'static str> {
    match device {
        "cpu" => MODELS.iter().chain(&DEPTHS).chain(&CONVOLUTIONS).copied().collect(),
        _ => ON_GPU.to_vec(),
    }
}

fn main() {
    let args: Vec<String> = std::env::args().skip(1).filter(|a| a != "--bench").collect();
    let worker_args = args.first().is_some_and(|a| a == "worker").then(|| &args[1..]);
    let result = match worker_args {
        Some(args) => worker(args),
        None => drive(&args),
    };
    if let Err(e) = result {
        if worker_args.is_some() {
            println!("{}", json!({"ready": false, "why": format!("{e:#}")}));
            return;
        }
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
        #[cfg(feature = "cuda")]
        Some(n) => Ok(flows::cuda::device(n.parse()?)?),
        #[cfg(not(feature = "cuda"))]
        Some(n) => anyhow::bail!("cuda:{n}: this program was built without the feature `cuda`"),
        None => Ok(Device::Cpu),
    }
}

/// Tells the library what the factors of products are rounded to. The only place here that does.
fn set_precision(precision: Precision, device: &Device) -> anyhow::Result<()> {
    use flows::ops::precision::{Precision as Ours, set};
    let ours = match precision {
        Precision::F32 => Ours::Full,
        Precision::Tf32 => Ours::Tf32,
        Precision::Bf16 => Ours::Bf16,
    };
    anyhow::ensure!(ours == Ours::Full || device.is_cuda(), "`--{}` is for GPUs", precision.name());
    set(ours);
    Ok(())
}

/// One sentence for a device that cannot be had, before anything is started.
fn check(device: &str) -> anyhow::Result<()> {
    let Some(n) = device.strip_prefix("cuda:") else {
        anyhow::ensure!(device == "cpu", "`--device {device}`: it is `cpu` or `cuda:N`");
        return Ok(());
    };
    let n: i32 = n.parse().map_err(|_| anyhow::anyhow!("`--device {device}`: it is `cpu` or `cuda:N`"))?;
    #[cfg(feature = "cuda")]
    let found = candle_core::cuda::cudarc::driver::CudaContext::device_count()
        .map_err(|e| anyhow::anyhow!("`--device {device}`: no GPU can be opened here: {e:?}"))?;
    #[cfg(not(feature = "cuda"))]
    let found = 0;
    let built =
        if cfg!(feature = "cuda") { "" } else { "; this program was built without the feature `cuda`" };
    anyhow::ensure!((0..found).contains(&n), "`--device {device}`: there are {found} GPUs{built}");
    Ok(())
}

/// What this process holds on a GPU, from the pool that all allocations come from, and from that of captured graphs.
#[cfg(feature = "cuda")]
mod gpu {
    use candle_core::cuda::cudarc::driver::{DriverError, result, sys};
    use candle_core::{Device, Result};

    const GRAPHS: sys::CUgraphMem_attribute = sys::CUgraphMem_attribute_enum::CU_GRAPH_MEM_ATTR_USED_MEM_HIGH;
    const POOL: sys::CUmemPool_attribute = sys::CUmemPool_attribute_enum::CU_MEMPOOL_ATTR_USED_MEM_HIGH;

    fn of<T>(
        device: &Device,
        what: impl FnOnce(i32, sys::CUmemoryPool) -> std::result::Result<T, DriverError>,
    ) -> Result<T> {
        let cuda = device.as_cuda_device()?.cuda_stream();
        let context = cuda.context();
        context.bind_to_thread().map_err(candle_core::Error::wrap)?;
        let id = context.cu_device();
        // SAFETY: `id` is a device that is open.
        let pool = unsafe { result::device::get_mem_pool(id) };
        pool.and_then(|pool| what(id, pool)).map_err(candle_core::Error::wrap)
    }

    pub fn name(device: &Device) -> Result<String> {
        let cuda = device.as_cuda_device()?.cuda_stream();
        cuda.context().name().map_err(candle_core::Error::wrap)
    }

    /// The most bytes that were allocated at once since `reset_peak`.
    pub fn peak(device: &Device) -> Result<u64> {
        of(device, |id, pool| {
            let (mut used, mut graphs) = (0u64, 0u64);
            // SAFETY: both attributes are a u64.
            unsafe {
                result::mem_pool::get_attribute(pool, POOL, (&raw mut used).cast())?;
                sys::cuDeviceGetGraphMemAttribute(id, GRAPHS, (&raw mut graphs).cast()).result()?;
            }
            Ok(used + graphs)
        })
    }

    /// Lets the peak start from what is allocated now.
    pub fn reset_peak(device: &Device) -> Result<()> {
        of(device, |id, pool| {
            let mut zero = 0u64;
            // SAFETY: both attributes are a u64 that may be set to zero.
            unsafe {
                result::mem_pool::set_attribute(pool, POOL, (&raw mut zero).cast())?;
                sys::cuDeviceSetGraphMemAttribute(id, GRAPHS, (&raw mut zero).cast()).result()
            }
        })
    }

    /// Gives unused memory back if less than half of the GPU's is free: the others need theirs.
    pub fn make_room(device: &Device) -> Result<()> {
        of(device, |_, pool| {
            let (free, total) = result::mem_get_info()?;
            if free < total / 2 {
                // SAFETY: what is in use stays.
                unsafe { result::mem_pool::trim_to(pool, 0)? };
            }
            Ok(())
        })
    }
}

/// The most memory in use so far on the device, in bytes.
fn high_water(device: &Device) -> anyhow::Result<u64> {
    #[cfg(feature = "cuda")]
    if device.is_cuda() {
        return Ok(gpu::peak(device)?);
    }
    debug_assert!(device.is_cpu());
    Ok(high_water_of_process())
}

/// The process's high-water mark of memory in bytes, or 0 where the system does not tell.
fn high_water_of_process() -> u64 {
    let status = std::fs::read_to_string("/proc/self/status").unwrap_or_default();
    let line = status.lines().find_map(|l| l.strip_prefix("VmHWM:")).unwrap_or("0");
    line.trim().trim_end_matches("kB").trim().parse::<u64>().unwrap_or(0) * 1024
}

/// The device's own name.
fn name(device: &Device) -> anyhow::Result<String> {
    #[cfg(feature = "cuda")]
    if device.is_cuda() {
        return Ok(gpu::name(device)?);
    }
    debug_assert!(device.is_cpu());
    let cpu = std::fs::read_to_string("/proc/cpuinfo").unwrap_or_default();
    let cpu = cpu.lines().find_map(|l| l.strip_prefix("model name")).unwrap_or("unknown");
    Ok(cpu.trim_start_matches([' ', '\t', ':']).to_string())
}

/// What became of recording a training step on a GPU: its nodes and the seconds of a step launched kernel by kernel; or why it
/// was refused, how many launches a step is then, and for how long the GPU is busy with them.
static RECORDING: OnceLock<Value> = OnceLock::new();

/// A training step as `flow train` takes it on a GPU: launched kernel by kernel three times, then recorded and replayed.
#[cfg(feature = "cuda")]
struct OnGpu {
    step: OnDevice,
    launched: u32,
    graph: Option<Graph>,
}

#[cfg(feature = "cuda")]
impl OnGpu {
    fn pass(&mut self, model: &Model, x: &Tensor, memory: Memory) -> candle_core::Result<()> {
        let mut mean = None;
        let (_, grads) = model.gradients(x, Ctx::train(), memory, |lp| {
            let lp = lp.mean_all()?;
            mean = Some(lp.detach());
            lp * (-1. / (model.dims() as f64 * 2f64.ln()))
        })?;
        self.step.run(&grads, &mean.expect("computed above"))
    }

    fn train(
        &mut self,
        model: &Model,
        opt: &mut Optimizer,
        x: &Tensor,
        memory: Memory,
    ) -> anyhow::Result<()> {
        let device = x.device();
        self.step.set(opt, None, 1e-6, Some(1.))?;
        if let Some(graph) = &self.graph {
            return Ok(graph.launch()?);
        }
        if RECORDING.get().is_none() && self.launched >= 3 {
            let clock = Instant::now();
            self.pass(model, x, memory)?;
            device.synchronize()?;
            let each = clock.elapsed().as_secs_f64();
            let recording = match capture(device, || self.pass(model, x, memory)) {
                Ok(graph) => {
                    let nodes = graph.nodes();
                    self.graph = Some(graph);
                    json!({"nodes": nodes, "seconds_kernel_by_kernel": each})
                }
                Err(e) => {
                    let (done, traced) = trace(device, || self.pass(model, x, memory));
                    done?;
                    let mut recording = json!({"refused": e.to_string(), "seconds_kernel_by_kernel": each});
                    match traced {
                        Ok(t) => {
                            recording["launches"] = t.launches.into();
                            recording["seconds_busy"] = t.busy.into();
                        }
                        Err(e) => recording["not_traced"] = e.to_string().into(),
                    }
                    recording
                }
            };
            RECORDING.set(recording).ok();
            return Ok(());
        }
        self.launched += 1;
        Ok(warm_up(device, || self.pass(model, x, memory))?)
    }
}

/// `n` times `run`: seconds, what they gave, and the most memory.
fn timed(
    device: &Device,
    what: &str,
    n: usize,
    run: &mut impl FnMut(&str) -> anyhow::Result<f64>,
    unit: &str,
) -> anyhow::Result<Value> {
    #[cfg(feature = "cuda")]
    if device.is_cuda() {
        run(what)?;
        device.synchronize()?;
        gpu::reset_peak(device)?;
    }
    let clock = Instant::now();
    let mut units = 0.;
    for _ in 0..n {
        units += run(what)?;
    }
    device.synchronize()?;
    let seconds = clock.elapsed().as_secs_f64();
    let peak = high_water(device)?;
    #[cfg(feature = "cuda")]
    if device.is_cuda() {
        gpu::make_room(device)?;
    }
    Ok(json!({"seconds": seconds, unit: units, "peak_bytes": peak, "recording": RECORDING.get()}))
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

fn worker(args: &[String]) -> anyhow::Result<()> {
    let [memory, case, device, precision] = args else {
        anyhow::bail!("usage: worker store|recompute CASE DEVICE PRECISION")
    };
    let device = &open(device)?;
    set_precision(Precision::parse(precision)?, device)?;
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
    #[cfg(feature = "cuda")]
    if device.is_cuda() {
        gpu::reset_peak(device)?;
    }
    let ready = json!({
        "ready": true, "parameters": model.params().count(), "peak_bytes": high_water(device)?, "device": name(device)?
    });
    let mut seed = 0;
    // In the pool, as training runs: from outside each parallel op wakes a worker and sleeps until it is done.
    rayon::scope(|_| {
        // Made here: a recording belongs to the thread that replays it.
        #[cfg(feature = "cuda")]
        let mut on_gpu = match device.is_cuda() {
            true => Some(OnGpu { step: OnDevice::new(&opt, None, |_| 0.)?, launched: 0, graph: None }),
            false => None,
        };
        serve(
            device,
            ready,
            |what| {
                match what {
                    #[cfg(feature = "cuda")]
                    "train" if on_gpu.is_some() => {
                        on_gpu.as_mut().expect("just asked").train(&model, &mut opt, &x, memory)?;
                    }
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

// ------------------------------------------------------------------------------------------------------------ driver

impl Precision {
    fn parse(name: &str) -> anyhow::Result<Self> {
        match name {
            "f32" => Ok(Self::F32),
            "tf32" => Ok(Self::Tf32),
            "bf16" => Ok(Self::Bf16),
            _ => anyhow::bail!("there is no precision `{name}`"),
        }
    }

    fn name(self) -> &'static str {
        match self {
            Self::F32 => "f32",
            Self::Tf32 => "tf32",
            Self::Bf16 => "bf16",
        }
    }
}

struct Options {
    rounds: usize,
    seconds: f64,
    threads: usize,
    cases: Option<Vec<String>>,
    who: Option<Vec<String>>,
    out: Option<String>,
    device: String,
    precision: Precision,
    peak: Option<f64>,
    compile_mode: String,
    compile_seconds: f64,
}

const OPTIONS: &str = "--rounds, --seconds, --threads, --cases, --who, --out, --device, --peak, --compile-mode, \
                       --compile-seconds, --tf32, --bf16";
const CONTENDERS: [&str; 6] =
    ["flows", "flows-recompute", "torch", "torch-channels-last", "torch-compile", "normflows"];

impl Options {
    fn parse(args: &[String]) -> anyhow::Result<Self> {
        let threads = std::thread::available_parallelism().map_or(1, usize::from);
        let mut o = Self {
            rounds: 7,
            seconds: 1.,
            threads,
            cases: None,
            who: None,
            out: None,
            device: "cpu".into(),
            precision: Precision::F32,
            peak: None,
            compile_mode: "default".into(),
            compile_seconds: 180.,
        };
        let list = |value: &str| Some(value.split(',').map(str::to_string).collect());
        let mut args = args.iter();
        while let Some(key) = args.next() {
            if let "--tf32" | "--bf16" = key.as_str() {
                anyhow::ensure!(o.precision == Precision::F32, "`--tf32` and `--bf16`: one of them, once");
                o.precision = Precision::parse(&key[2..])?;
                continue;
            }
            anyhow::ensure!(
                OPTIONS.split(", ").any(|k| k == key),
                "there is no argument `{key}`; there are {OPTIONS}"
            );
            let value = args.next().ok_or_else(|| anyhow::anyhow!("`{key}` needs a value"))?;
            let number = || value.parse::<f64>().map_err(|_| anyhow::anyhow!("`{key} {value}` is no number"));
            match key.as_str() {
                "--rounds" => o.rounds = value.parse()?,
                "--seconds" => o.seconds = number()?,
                "--threads" => o.threads = value.parse()?,
                "--cases" => o.cases = list(value),
                "--who" => o.who = list(value),
                "--out" => o.out = Some(value.clone()),
                "--device" => o.device.clone_from(value),
                "--peak" => o.peak = Some(number()?),
                "--compile-mode" => o.compile_mode.clone_from(value),
                "--compile-seconds" => o.compile_seconds = number()?,
                _ => unreachable!("one of OPTIONS, as just checked"),
            }
        }
        check(&o.device)?;
        let gpu = o.device != "cpu";
        anyhow::ensure!(gpu || o.precision != Precision::Tf32, "`--tf32` is for GPUs");
        anyhow::ensure!(o.rounds > 0, "`--rounds` must be at least 1");
        let all = cases(&o.device);
        for case in o.cases.iter().flatten() {
            let known = all.contains(&case.as_str()) || (!case.starts_with("conv:") && config(case).is_ok());
            anyhow::ensure!(known, "there is no case `{case}`; there are {}", all.join(", "));
        }
        for who in o.who.iter().flatten() {
            let known = CONTENDERS.contains(&who.as_str());
            anyhow::ensure!(known, "there is no contender `{who}`; there are {}", CONTENDERS.join(", "));
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

    fn gpu(&self) -> bool {
        self.device != "cpu"
    }

    /// Who is measured on a case.
    fn contenders(&self, case: &str) -> Vec<&'static str> {
        let depth = DEPTHS.contains(&case);
        let default: &[&str] = if case.starts_with("conv:") {
            &["flows", "torch", "torch-channels-last"]
        } else if self.gpu() {
            &["flows", "torch", "torch-channels-last", "torch-compile", "normflows"]
        } else if depth {
            &["flows", "flows-recompute", "torch"]
        } else if case.starts_with("glow") {
            &["flows", "flows-recompute", "torch", "torch-channels-last", "normflows"]
        } else {
            &["flows", "torch", "torch-channels-last", "normflows"]
        };
        let chosen = |name: &&str| match &self.who {
            Some(who) => who.iter().any(|w| w == name),
            None => default.contains(name),
        };
        CONTENDERS.into_iter().filter(|name| chosen(name)).collect()
    }

    /// Whether torch.compile is among them, and there is more than one ratio to tell.
    fn compiles(&self, case: &str) -> bool {
        self.contenders(case).contains(&"torch-compile")
    }

    /// What is measured of a case.
    fn tasks(&self, case: &str) -> &'static [&'static str] {
        if case.starts_with("conv:") {
            &["forward", "backward"]
        } else if DEPTHS.contains(&case) && !self.gpu() {
            &["train"]
        } else {
            &["train", "eval", "sample"]
        }
    }
}

/// A process that computes on demand.
struct Contender {
    name: &'static str,
    ours: bool,
    child: Child,
    ask: ChildStdin,
    answers: mpsc::Receiver<String>,
    ready: Value,
    /// See [`RECORDING`].
    recording: Value,
    /// Iterations of a round, its rates, and the most memory of one, by task.
    iterations: Map<String, Value>,
    rates: Map<String, Value>,
    peaks: Map<String, Value>,
    /// How long it has been warming up.
    warming: Duration,
    /// Answers are to be expected: what one task cannot do, the next may.
    alive: bool,
}

impl Drop for Contender {
    fn drop(&mut self) {
        // It ends with its input; this is for one that does not.
        self.child.kill().ok();
        self.child.wait().ok();
    }
}

/// Longer than anything here takes; what does not answer by then hangs.
const PATIENCE: Duration = Duration::from_secs(900);

impl Contender {
    /// Starts the process; `wait` says whether it got anywhere.
    fn start(name: &'static str, case: &str, o: &Options) -> anyhow::Result<Self> {
        let threads = o.threads;
        let ours = name.starts_with("flows");
        let mut command = if ours {
            let mut c = Command::new(std::env::current_exe()?);
            let memory = if name == "flows" { "store" } else { "recompute" };
            c.args(["worker", memory, case, &o.device, o.precision.name()]);
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
            c.args(["--precision", o.precision.name()]);
            if name == "torch-compile" {
                c.args(["--compile-mode", &o.compile_mode]);
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
        let mut child = command.spawn().map_err(|e| {
            let program = command.get_program().to_string_lossy().into_owned();
            anyhow::anyhow!("{program} (FLOWS_PYTHON): {e}")
        })?;
        let ask = child.stdin.take().expect("piped");
        let output = BufReader::new(child.stdout.take().expect("piped"));
        let (send, answers) = mpsc::channel();
        // Ends with the process.
        std::thread::spawn(move || {
            for line in output.lines().map_while(Result::ok) {
                if send.send(line).is_err() {
                    break;
                }
            }
        });
        Ok(Self {
            name,
            ours,
            child,
            ask,
            answers,
            ready: Value::Null,
            recording: Value::Null,
            iterations: Map::new(),
            rates: Map::new(),
            peaks: Map::new(),
            warming: Duration::ZERO,
            alive: true,
        })
    }

    fn answer(&mut self, during: &str, patience: Duration) -> anyhow::Result<Value> {
        self.alive = false;
        let line = match self.answers.recv_timeout(patience) {
            Ok(line) => line,
            Err(RecvTimeoutError::Timeout) => anyhow::bail!("no end of {during} after {patience:.0?}"),
            Err(RecvTimeoutError::Disconnected) => anyhow::bail!("it ended in the middle of {during}"),
        };
        let answer: Value = serde_json::from_str(&line)
            .map_err(|_| anyhow::anyhow!("in the middle of {during} it said `{line}`"))?;
        if let Some(why) = answer["why"].as_str() {
            anyhow::bail!("{why}");
        }
        self.alive = true;
        if let Some(why) = answer["error"].as_str() {
            anyhow::bail!("{why}");
        }
        Ok(answer)
    }

    /// Waits until it is ready; why it never will be, if it does not have the case.
    fn wait(&mut self) -> anyhow::Result<()> {
        self.ready = self.answer("its start", PATIENCE)?;
        Ok(())
    }

    /// Units a second of `n` iterations, and seconds.
    fn run(&mut self, task: &str, n: u64, patience: Duration) -> anyhow::Result<(f64, f64)> {
        // If it has ended, the answer says so.
        writeln!(self.ask, "{task} {n}").ok();
        let v = self.answer(&format!("`{task}`"), patience)?;
        let seconds = v["seconds"].as_f64().unwrap_or(f64::NAN);
        let units = v["images"].as_f64().or(v["flops"].as_f64()).unwrap_or(f64::NAN);
        self.peaks.insert(task.into(), v["peak_bytes"].clone());
        if v["recording"].is_object() {
            self.recording = v["recording"].clone();
        }
        Ok((units / seconds, seconds))
    }

    /// Warms up and finds how many iterations take `seconds`.
    fn warm_up(&mut self, task: &str, o: &Options) -> anyhow::Result<()> {
        let limit = match self.name {
            "torch-compile" => Duration::from_secs_f64(o.compile_seconds),
            _ => PATIENCE,
        };
        let clock = Instant::now();
        let seconds = (|| {
            self.run(task, 1, limit.saturating_sub(self.warming))?;
            let left = limit.saturating_sub(self.warming + clock.elapsed());
            anyhow::Ok(self.run(task, 1, left)?.1)
        })();
        self.warming += clock.elapsed();
        let seconds = seconds.map_err(|e| match self.warming > limit {
            true => {
                anyhow::anyhow!("not compiled after {:.0} s (mode {})", limit.as_secs_f64(), o.compile_mode)
            }
            false => e,
        })?;
        let n = (o.seconds / seconds).ceil().clamp(1., 1e5) as u64;
        self.iterations.insert(task.into(), n.into());
        Ok(())
    }

    fn round(&mut self, task: &str) -> anyhow::Result<()> {
        let Some(n) = self.iterations.get(task).and_then(Value::as_u64) else { return Ok(()) };
        let (rate, _) = self.run(task, n, PATIENCE)?;
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

    /// The most memory that a round of the task took, in bytes.
    fn peak(&self, task: &str) -> f64 {
        self.peaks.get(task).and_then(Value::as_f64).unwrap_or(f64::NAN)
    }

    /// Peak memory beyond parameters, gradients and optimiser state, in bytes.
    fn memory(&self) -> f64 {
        let gradients = 4. * self.ready["parameters"].as_f64().unwrap_or(f64::NAN);
        self.peak("train") - self.ready["peak_bytes"].as_f64().unwrap_or(f64::NAN) - gradients
    }
}

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

fn drive(args: &[String]) -> anyhow::Result<()> {
    let o = Options::parse(args)?;
    // Now, not at the end: the tree may have moved on by then.
    let commit = commit();
    let mut all = Results { cases: Map::new(), ratios: Map::new(), device: None, missing: Vec::new() };
    let machine = format!("{}, {} threads", name(&Device::Cpu)?, o.threads);
    println!(
        "{machine}; {}, {}; {} rounds; images/s (GFLOP/s for convolutions), median [least, most]",
        o.device,
        o.precision.name(),
        o.rounds
    );
    let last = if o.gpu() { "operations, and ours over others" } else { "ours over the best peer" };
    println!("{:<20} {:<9} {:<22} {:>28} {:>12}  {last}", "case", "task", "who", "rate", "memory");
    let chosen = match &o.cases {
        Some(cases) => cases.clone(),
        None => cases(&o.device).into_iter().map(str::to_string).collect(),
    };
    for case in &chosen {
        one_case(case, &o, &mut all)?;
        if let Some(path) = &o.out {
            let json = json!({
                "machine": machine, "device": all.device, "precision": o.precision.name(), "rounds": o.rounds,
                "seconds": o.seconds, "compile_mode": o.compile_mode, "commit": commit,
                "flows": env!("CARGO_PKG_VERSION"), "cases": all.cases, "ratios": all.ratios
            });
            std::fs::write(path, serde_json::to_string_pretty(&json)? + "\n")
                .map_err(|e| anyhow::anyhow!("cannot write {path}: {e}"))?;
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
    let known = all.device.as_deref().filter(|_| o.gpu()).and_then(|name| peak(name, o.precision));
    let most = o.peak.or(known);
    println!(
        "{case:<20} counted   {:.3} GFLOP an image forward, three times as much in training",
        flops / 1e9
    );
    if o.gpu() && most.is_none() {
        let device = all.device.as_deref().unwrap_or("a device without a name");
        println!(
            "{case:<20} shares of the peak left out: none is known of {device} in {}, give `--peak TFLOPS`",
            o.precision.name()
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

/// What recording a step was worth: without it the GPU waits for the processor for at least the difference. Where it was
/// refused: what the GPU was seen to do.
fn recorded(recording: &Value, per_second: f64) -> String {
    let each = recording["seconds_kernel_by_kernel"].as_f64().unwrap_or(f64::NAN);
    let idle =
        |busy: f64| format!("of which the GPU is idle for {:.0}%", (100. * (1. - busy / each)).max(0.));
    if let Some(nodes) = recording["nodes"].as_u64() {
        let idle = idle(1. / per_second);
        return format!("{nodes} nodes in one launch; kernel by kernel {:.1} ms, {idle}", 1e3 * each);
    }
    let what = match (recording["launches"].as_u64(), recording["seconds_busy"].as_f64()) {
        (Some(launches), Some(busy)) => {
            format!("{launches} launches in {:.1} ms, {}", 1e3 * each, idle(busy))
        }
        _ => format!("launches not counted: {}", recording["not_traced"].as_str().unwrap_or_default()),
    };
    format!("not recorded: {}; {what}", recording["refused"].as_str().unwrap_or_default())
}

fn print(case: &str, task: &str, all: &[Contender], o: &Options, counted: Option<(f64, Option<f64>)>) {
    let peer = best(all, task, |c| !c.ours);
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
        } else if c.ours && peer.is_finite() {
            notes.push(format!("{:.2}", m / peer));
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
        results.put(map, if conv { &both } else { case }, ours / best(all, task, |c| !c.ours));
    }
    if let Some((forward, Some(most))) = counted {
        results.put("share", &both, operations(task, forward, ours) / most);
    }
    if task == "train" && !o.gpu() {
        let least = all.iter().filter(|c| !c.ours).map(Contender::memory).fold(f64::NAN, f64::min);
        for c in all.iter().filter(|c| c.ours) {
            let map = if c.name == "flows" { "memory_ratio" } else { "memory_ratio_recompute" };
            results.put(map, case, c.memory() / least);
        }
    }
    if task == "train" {
        let recompute = all.iter().find(|c| c.name == "flows-recompute").map(|c| c.median(task));
        results.put("recompute_ratio", case, ours / recompute.unwrap_or(f64::NAN));
    }
}
