//! The processes that compute on demand, ours and PyTorch's.

use crate::options::{Options, split_name};
use serde_json::{Map, Value, json};
use std::io::{BufRead, BufReader, Write};
use std::process::{Child, ChildStdin, Command, Stdio};
use std::sync::mpsc::{self, RecvTimeoutError};
use std::time::{Duration, Instant};

/// A process that computes on demand.
pub struct Contender {
    pub name: &'static str,
    pub ours: bool,
    child: Child,
    ask: ChildStdin,
    answers: mpsc::Receiver<String>,
    pub ready: Value,
    /// See [`crate::worker::RECORDING`].
    pub recording: Value,
    /// Iterations of a round, its rates, and the most memory of one, by task.
    pub iterations: Map<String, Value>,
    pub rates: Map<String, Value>,
    pub peaks: Map<String, Value>,
    /// How long it has been warming up.
    pub warming: Duration,
    /// Answers are to be expected: what one task cannot do, the next may.
    pub alive: bool,
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
    pub fn start(name: &'static str, case: &str, o: &Options) -> anyhow::Result<Self> {
        let threads = o.threads();
        let (program, precision) = split_name(name);
        let precision = precision.unwrap_or(o.precision()).name();
        let ours = program.starts_with("flows");
        let mut command = if ours {
            let mut c = Command::new(std::env::current_exe()?);
            let memory = if program == "flows" { "store" } else { "recompute" };
            c.args(["worker", memory, case, &o.device, precision, o.order()]);
            c
        } else {
            // Where the binary was taken to another machine, the script went with it.
            let here = concat!(env!("CARGO_MANIFEST_DIR"), "/benches/peers/peers.py");
            let script = &std::env::var("FLOWS_PEERS").unwrap_or_else(|_| here.into());
            let mut c = Command::new(std::env::var("FLOWS_PYTHON").unwrap_or_else(|_| "python3".into()));
            let (plain, batch) = match case.split_once('@') {
                Some((plain, batch)) => (plain, Some(batch)),
                None => (case, None),
            };
            c.args([
                script.as_str(),
                program,
                plain,
                "--threads",
                &threads.to_string(),
                "--device",
                &o.device,
            ]);
            c.args(["--precision", precision]);
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

    /// Whether it computes in the precision that the options name.
    pub fn plain(&self) -> bool {
        split_name(self.name).1.is_none()
    }

    /// Waits until it is ready; why it never will be, if it does not have the case.
    pub fn wait(&mut self) -> anyhow::Result<()> {
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
    pub fn warm_up(&mut self, task: &str, o: &Options) -> anyhow::Result<()> {
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

    pub fn round(&mut self, task: &str) -> anyhow::Result<()> {
        let Some(n) = self.iterations.get(task).and_then(Value::as_u64) else { return Ok(()) };
        let (rate, _) = self.run(task, n, PATIENCE)?;
        let rates = self.rates.entry(task).or_insert(json!([]));
        rates.as_array_mut().expect("an array").push(rate.into());
        Ok(())
    }

    pub fn sorted(&self, task: &str) -> Vec<f64> {
        let rates = self.rates.get(task).and_then(Value::as_array).cloned().unwrap_or_default();
        let mut v: Vec<f64> = rates.iter().filter_map(Value::as_f64).collect();
        v.sort_by(f64::total_cmp);
        v
    }

    pub fn median(&self, task: &str) -> f64 {
        let v = self.sorted(task);
        v.get(v.len() / 2).copied().unwrap_or(f64::NAN)
    }

    /// The most memory that a round of the task took, in bytes.
    pub fn peak(&self, task: &str) -> f64 {
        self.peaks.get(task).and_then(Value::as_f64).unwrap_or(f64::NAN)
    }

    /// Peak memory beyond parameters, gradients and optimiser state, in bytes.
    pub fn memory(&self) -> f64 {
        let gradients = 4. * self.ready["parameters"].as_f64().unwrap_or(f64::NAN);
        self.peak("train") - self.ready["peak_bytes"].as_f64().unwrap_or(f64::NAN) - gradients
    }
}
