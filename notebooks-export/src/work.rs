//! Incomplete folders and the Jupyter process, which are removed and ended when this process fails or is stopped.
//!
//! Files are written to a temporary folder beside the new folder, or in it where it exists and is empty, and moved at the
//! end. A signal (Ctrl-C, SIGTERM, SIGHUP) ends Jupyter and its kernels, removes the temporary folder, and ends the process
//! with exit code 130.

use crate::output;
use anyhow::{Context, Result, ensure};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Output, Stdio};
use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Duration;
#[cfg(unix)]
use sysinfo::{ProcessRefreshKind, ProcessStatus, ProcessesToUpdate, System};

/// The exit code after a signal.
const STOPPED: i32 = 130;
/// How long Jupyter may take to end; it gives its kernel 5 seconds first.
const GRACE: Duration = Duration::from_secs(10);
const STEP: Duration = Duration::from_millis(20);

/// The temporary folders and the child process, for the signal handler, which keeps the lock once it has it.
static BEGUN: Mutex<Begun> = Mutex::new(Begun { folders: Vec::new(), child: None });
/// Signals so far.
static SIGNALS: AtomicU32 = AtomicU32::new(0);

struct Begun {
    /// The folders that were made, the outer ones first, and last the one with all that is half done.
    folders: Vec<PathBuf>,
    /// The process that leads Jupyter's group, and what is said when it is ended.
    child: Option<(u32, String)>,
}

fn begun() -> MutexGuard<'static, Begun> {
    BEGUN.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Catches signals from now on.
///
/// # Errors
/// When the system does not let it.
pub fn catch_signals() -> Result<()> {
    ctrlc::set_handler(|| {
        // A second signal ends the process at once; see `stop`.
        if SIGNALS.fetch_add(1, Ordering::SeqCst) == 0 {
            std::thread::spawn(stop);
        }
    })
    .context("cannot catch Ctrl-C")
}

fn stop() {
    let mut begun = begun();
    if let Some((child, told)) = begun.child.take() {
        end(child);
        output::tell(told);
    }
    begun.undo();
    std::process::exit(STOPPED);
}

impl Begun {
    fn undo(&mut self) {
        if let Some(partial) = self.folders.pop() {
            // The other thread may write one more file meanwhile; once the folder is removed it cannot.
            for _ in 0..50 {
                if std::fs::remove_dir_all(&partial).is_ok() || !partial.exists() {
                    break;
                }
                std::thread::sleep(STEP);
            }
        }
        while let Some(folder) = self.folders.pop() {
            // This fails, as it should, where other processes have written files.
            let _ = std::fs::remove_dir(folder);
        }
    }
}

/// The new folder while it is incomplete; it is removed when this value is dropped.
pub struct Partial {
    out: PathBuf,
    /// Where files go until [`Partial::finish`].
    pub folder: PathBuf,
    /// Whether `out` was there before, and empty: `.` cannot be replaced.
    inside: bool,
}

impl Partial {
    /// Begins a folder, which may be there if it is empty.
    ///
    /// # Errors
    /// When there is something, or nothing can be written.
    pub fn new(out: &Path) -> Result<Self> {
        let inside = out.exists();
        let free = !inside || std::fs::read_dir(out).is_ok_and(|mut entries| entries.next().is_none());
        ensure!(free, "--out {}: there is something already, name a new folder", out.display());
        let parent = match out.parent() {
            _ if inside => out,
            Some(parent) if !parent.as_os_str().is_empty() => parent,
            _ => Path::new("."),
        };
        let mut begun = begun();
        let mut missing: Vec<PathBuf> = parent
            .ancestors()
            .take_while(|f| !f.exists() && *f != Path::new(""))
            .map(Path::to_owned)
            .collect();
        missing.reverse();
        let folder = parent.join(format!(".notebook-{}.partial", std::process::id()));
        begun.folders = missing;
        begun.folders.push(folder.clone());
        let partial = Self { out: out.to_owned(), folder, inside };
        let made = std::fs::create_dir_all(parent).and_then(|()| std::fs::create_dir(&partial.folder));
        // Dropping it takes what has been begun.
        drop(begun);
        made.with_context(|| {
            format!(
                "--out {}: nothing can be written in {}, name another folder",
                out.display(),
                parent.display()
            )
        })?;
        Ok(partial)
    }

    /// Moves everything to its place.
    ///
    /// # Errors
    /// When another process has written there, or it cannot be written.
    pub fn finish(self) -> Result<()> {
        let mut begun = begun();
        let out = self.out.display();
        let taken = || format!("--out {out}: somebody has written there meanwhile, name a new folder");
        let failed = || format!("--out {out}: cannot be made, name another folder");
        let moved = if self.inside {
            move_up(&self.folder, &self.out).and_then(|free| match free {
                true => std::fs::remove_dir(&self.folder).with_context(failed),
                false => Err(anyhow::Error::msg(taken())),
            })
        } else {
            std::fs::rename(&self.folder, &self.out).map_err(|e| match self.out.exists() {
                true => anyhow::Error::msg(taken()),
                false => anyhow::Error::new(e).context(failed()),
            })
        };
        if moved.is_ok() {
            begun.folders.clear();
        }
        // Dropping it takes what has been begun.
        drop(begun);
        moved
    }
}

impl Drop for Partial {
    fn drop(&mut self) {
        begun().undo();
    }
}

/// Moves what a folder's only entry holds to the folder itself; `false` when it is not the only one.
fn move_up(from: &Path, to: &Path) -> Result<bool> {
    let cannot = || format!("--out {}: cannot be written, name another folder", to.display());
    let list = |folder: &Path| {
        std::fs::read_dir(folder)?.map(|entry| Ok(entry?.file_name())).collect::<std::io::Result<Vec<_>>>()
    };
    if list(to).with_context(cannot)?.len() != 1 {
        return Ok(false);
    }
    for name in list(from).with_context(cannot)? {
        std::fs::rename(from.join(&name), to.join(&name)).with_context(cannot)?;
    }
    Ok(true)
}

/// Runs a command to its end, in a process group of its own, so that a signal can end it with its children; `told` is then
/// written to standard error.
///
/// # Errors
/// When it cannot be started or waited for.
pub fn run(command: &mut Command, told: String) -> std::io::Result<Output> {
    command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::piped());
    #[cfg(unix)]
    std::os::unix::process::CommandExt::process_group(command, 0);
    let child = {
        let mut begun = begun();
        let child: Child = command.spawn()?;
        begun.child = Some((child.id(), told));
        child
    };
    let output = child.wait_with_output();
    // Never, where a signal has come: then the other thread ends the process.
    begun().child = None;
    output
}

/// Ends a process, its group, and its kernels, which lead sessions of their own.
#[cfg(unix)]
fn end(child: u32) {
    use nix::sys::signal::{Signal, kill, killpg};
    use nix::unistd::Pid;
    let group = Pid::from_raw(child as i32);
    let family = descendants(child);
    let seen = started(child).is_some();
    let _ = killpg(group, Signal::SIGTERM);
    for _ in 0..GRACE.as_millis() / STEP.as_millis() {
        // It is waited for only when all that hold its standard error have ended, kernels too.
        let ended = killpg(group, None).is_err() || seen && started(child).is_none();
        if ended || SIGNALS.load(Ordering::SeqCst) > 1 {
            break;
        }
        std::thread::sleep(STEP);
    }
    let _ = killpg(group, Signal::SIGKILL);
    // The same processes, and not others with their numbers.
    for (pid, _) in family.into_iter().filter(|&(pid, start)| started(pid) == Some(start)) {
        let _ = kill(Pid::from_raw(pid as i32), Signal::SIGKILL);
    }
}

/// Does nothing: the console sends the signal to Jupyter, too.
#[cfg(not(unix))]
fn end(_: u32) {}

/// The children of a process and their descendants, each with its start in seconds.
#[cfg(unix)]
fn descendants(of: u32) -> Vec<(u32, u64)> {
    let all = processes(ProcessesToUpdate::All);
    let descends = |process: &&sysinfo::Process| {
        let mut ancestors = std::iter::successors(process.parent(), |pid| all.process(*pid)?.parent());
        ancestors.any(|pid| pid.as_u32() == of)
    };
    all.processes().values().filter(descends).map(|p| (p.pid().as_u32(), p.start_time())).collect()
}

/// When a process started, in seconds; `None` for one that has ended, waited for or not.
#[cfg(unix)]
fn started(pid: u32) -> Option<u64> {
    let pid = sysinfo::Pid::from_u32(pid);
    let found = processes(ProcessesToUpdate::Some(&[pid]));
    found.process(pid).filter(|p| p.status() != ProcessStatus::Zombie).map(sysinfo::Process::start_time)
}

#[cfg(unix)]
fn processes(which: ProcessesToUpdate) -> System {
    let mut system = System::new();
    system.refresh_processes_specifics(which, true, ProcessRefreshKind::nothing());
    system
}
