//! `flow sweep`: a recipe with several values of settings and several seeds, each a run in a folder of its own.
//!
//! Each run is a process of its own, `flow train` or `flow reproduce` as a person would type it: it resumes as that does, one that
//! fails ends no other, and the memory of one is gone before the next begins.

use super::print;
use crate::args::DataArgs;
use crate::progress::{Stopped, go_on, stopped};
use crate::report::groups;
use crate::report::table::{self, Format};
use anyhow::{Context, Result, ensure};
use clap::Args;
use experiments::recipe::Resolved;
use experiments::run_dir::{RECIPE, SUMMARY};
use experiments::sweep;
use serde_json::json;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::Duration;

/// `sweep`.
#[derive(Args)]
pub struct SweepArgs {
    /// Name of a built-in recipe (see `flow list`) or path of a .toml file.
    recipe: String,
    /// Values of a setting, separated by commas, for example --set train.lr=1e-3,3e-3; can be repeated for all combinations.
    #[arg(long = "set", value_name = "KEY=V1,V2,..")]
    sets: Vec<String>,
    /// Seeds: `0..3` for 0, 1 and 2, or a list such as `0,4,7` (default: the recipe's).
    #[arg(long, value_name = "SEEDS", value_parser = |text: &str| sweep::seeds(text).map(Seeds))]
    seeds: Option<Seeds>,
    /// Folder of the runs (default: runs/RECIPE-sweep); the same command goes on with what is not finished.
    #[arg(long, value_name = "DIR")]
    out: Option<PathBuf>,
    /// Runs at the same time; each then has its share of the threads, and its log beside its folder.
    #[arg(long, default_value_t = 1, value_parser = clap::value_parser!(u16).range(1..=256))]
    jobs: u16,
    /// Evaluate each run on the test set too; the best is chosen by validation in any case.
    #[arg(long)]
    test: bool,
    /// Device: `cpu` or `cuda:N`.
    #[arg(long, default_value = "cpu")]
    device: String,
    /// Number of threads of each run (default: all cores, divided by --jobs).
    #[arg(long, value_parser = clap::value_parser!(u16).range(1..=512))]
    threads: Option<u16>,
    #[command(flatten)]
    data: DataArgs,
    /// Print the result as one JSON object on the last line.
    #[arg(long)]
    json: bool,
}

/// The value of `--seeds`, which is one argument.
#[derive(Clone)]
struct Seeds(Vec<u64>);

/// Runs what is not finished, then prints mean and standard deviation of each setting.
///
/// # Errors
/// When a setting is impossible, which is said before anything runs, or when a run fails, after all others have ended.
pub fn run(args: &SweepArgs) -> Result<()> {
    let seeds = args.seeds.as_ref().map_or(&[][..], |seeds| &seeds.0);
    let runs = sweep::runs(&args.recipe, &args.sets, seeds)?;
    let name = Resolved::load(&args.recipe, &[])?.recipe.name;
    let out = args.out.clone().unwrap_or_else(|| PathBuf::from("runs").join(format!("{name}-sweep")));
    ensure!(
        ![RECIPE, SUMMARY].iter().any(|name| out.join(name).exists()),
        "--out {} holds a run of its own, and a sweep's folder holds nothing but runs: name another folder",
        out.display()
    );
    std::fs::create_dir_all(&out)
        .with_context(|| format!("--out {}: the folder cannot be made, name another one", out.display()))?;
    let failed = all(args, &runs, &out)?;
    let folders: Vec<PathBuf> = runs.iter().map(|run| out.join(&run.name)).collect();
    let ended: Vec<PathBuf> = folders.iter().filter(|dir| !failed.contains(dir)).cloned().collect();
    if !ended.is_empty() {
        let done = table::find(&ended)?;
        let all: Vec<_> = done.iter().map(|run| run.summary.json(&run.dir)).collect();
        print(args.json, json!({ "runs": all }), groups::render(&done, Format::Markdown)?.trim_end())?;
    }
    let names: Vec<String> = failed.iter().map(|dir| dir.display().to_string()).collect();
    ensure!(
        failed.is_empty(),
        "{} of {} runs failed, see above or their logs: {}",
        failed.len(),
        runs.len(),
        names.join(", ")
    );
    Ok(())
}

/// A run that is at work.
struct Job {
    dir: PathBuf,
    child: Child,
}

/// Runs all of them, `--jobs` at a time, and returns the folders of those that failed.
fn all(args: &SweepArgs, runs: &[sweep::Run], out: &Path) -> Result<Vec<PathBuf>> {
    let (mut next, mut working, mut failed) = (runs.iter().enumerate(), Vec::<Job>::new(), Vec::new());
    loop {
        while !stopped() && working.len() < usize::from(args.jobs) {
            let Some((i, run)) = next.next() else { break };
            tracing::info!("run {} of {}: {}", i + 1, runs.len(), run.name);
            working.push(start(args, run, out)?);
        }
        if working.is_empty() {
            go_on()?;
            return Ok(failed);
        }
        if stopped() {
            // Ctrl-C has reached them as well; a signal to this process alone has not.
            working.iter().for_each(|job| ask_to_stop(job.child.id()));
            working.iter_mut().for_each(|job| drop(job.child.wait()));
            return Err(Stopped.into());
        }
        let mut i = 0;
        while i < working.len() {
            match working[i].child.try_wait().context("a run cannot be waited for")? {
                Some(status) => {
                    let job = working.swap_remove(i);
                    if !status.success() {
                        failed.push(job.dir);
                    }
                }
                None => i += 1,
            }
        }
        std::thread::sleep(Duration::from_millis(50));
    }
}

/// Starts a run as its own process.
fn start(args: &SweepArgs, run: &sweep::Run, out: &Path) -> Result<Job> {
    let dir = out.join(&run.name);
    let program = std::env::current_exe().context("this program's own file is not found")?;
    let mut command = Command::new(program);
    command.arg(if args.test { "reproduce" } else { "train" }).arg(&args.recipe).arg("--out").arg(&dir);
    command.args(run.sets.iter().flat_map(|set| ["--set", set]));
    command.arg("--device").arg(&args.device);
    let cores = std::thread::available_parallelism().map_or(1, usize::from);
    let share = (args.jobs > 1).then(|| (cores / usize::from(args.jobs)).max(1).to_string());
    if let Some(threads) = args.threads.map(|n| n.to_string()).or(share) {
        command.arg("--threads").arg(threads);
    }
    if let Some(data) = &args.data.dir {
        command.arg("--data").arg(data);
    }
    command.stdin(Stdio::null()).stdout(Stdio::null());
    if args.jobs > 1 {
        let log = out.join(format!("{}.log", run.name));
        let file = std::fs::OpenOptions::new().create(true).append(true).open(&log);
        command.stderr(file.with_context(|| format!("cannot write the log {}", log.display()))?);
    }
    let child = command.spawn().with_context(|| format!("the run {} cannot be started", run.name))?;
    Ok(Job { dir, child })
}

/// Asks a process to save and end.
fn ask_to_stop(id: u32) {
    let id = sysinfo::Pid::from_u32(id);
    let mut system = sysinfo::System::new();
    system.refresh_processes(sysinfo::ProcessesToUpdate::Some(&[id]), false);
    if let Some(process) = system.process(id) {
        process.kill_with(sysinfo::Signal::Term);
    }
}
