//! What a person sees while the machine works: a bar with bits/dim, images/s and the time left where standard error is a
//! terminal, a line of log every half minute where it is not. Logs share the terminal with the bar through [`LogWriter`].

use experiments::train::Progress;
use flows::hub::{Observer, Transfer};
use indicatif::{HumanBytes, HumanDuration, MultiProgress, ProgressBar, ProgressStyle};
use std::io::Write;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{LazyLock, Mutex, PoisonError};
use std::time::{Duration, Instant};

/// Set by the first Ctrl-C: whatever runs saves and ends.
pub static STOP: AtomicBool = AtomicBool::new(false);

static BARS: LazyLock<MultiProgress> = LazyLock::new(MultiProgress::new);

/// The time between two lines where there is no bar.
const QUIET: Duration = Duration::from_secs(30);

/// Whether a signal has asked to stop.
#[must_use]
pub fn stopped() -> bool {
    STOP.load(Ordering::Relaxed)
}

/// Ctrl-C ended a command: what is there is whole, and the same command does it anew or goes on.
#[derive(Debug)]
pub struct Stopped;

impl std::fmt::Display for Stopped {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("the command was stopped")
    }
}

impl std::error::Error for Stopped {}

/// Ends a command once a signal has asked to stop.
///
/// # Errors
/// [`Stopped`] then.
pub fn go_on() -> Result<(), Stopped> {
    if stopped() { Err(Stopped) } else { Ok(()) }
}

/// Standard error with the bar out of the way.
#[derive(Clone, Copy)]
pub struct LogWriter;

impl Write for LogWriter {
    fn write(&mut self, buf: &[u8]) -> std::io::Result<usize> {
        BARS.suspend(|| std::io::stderr().write(buf))
    }

    fn flush(&mut self) -> std::io::Result<()> {
        std::io::stderr().flush()
    }
}

fn bar(total: Option<u64>, template: &str) -> ProgressBar {
    let bar = BARS.add(total.map_or_else(ProgressBar::no_length, ProgressBar::new));
    let style = ProgressStyle::with_template(template).expect("the templates are constants");
    bar.set_style(style.progress_chars("━╸ "));
    bar
}

/// `h:mm:ss`, or a word where nothing is known.
fn duration(seconds: Option<f64>) -> String {
    seconds.map_or_else(|| "?".to_owned(), |s| HumanDuration(Duration::from_secs_f64(s.max(0.))).to_string())
}

/// The progress of training.
pub struct Training<F> {
    name: String,
    bar: ProgressBar,
    total: Option<u64>,
    spoke: Instant,
    validation: String,
    on_begin: Option<F>,
    result: anyhow::Result<()>,
}

impl<F: FnOnce() -> anyhow::Result<()>> Training<F> {
    /// `on_begin` runs when training has accepted the folder and its checkpoint.
    pub fn new(name: &str, on_begin: F) -> Self {
        Self {
            name: name.to_owned(),
            bar: ProgressBar::hidden(),
            total: None,
            spoke: Instant::now(),
            validation: String::new(),
            on_begin: Some(on_begin),
            result: Ok(()),
        }
    }

    /// Takes the bar away and gives what `on_begin` said.
    ///
    /// # Errors
    /// Its error.
    pub fn finish(self) -> anyhow::Result<()> {
        self.bar.finish_and_clear();
        self.result
    }
}

impl<F: FnOnce() -> anyhow::Result<()> + Send> Progress for Training<F> {
    fn begin(&mut self, from: u64, total: Option<u64>) {
        if let Some(f) = self.on_begin.take() {
            self.result = f();
        }
        self.total = total;
        self.bar = bar(total, "{prefix} {bar:24} {pos}/{len} {msg}");
        self.bar.set_prefix(self.name.clone());
        self.bar.set_position(from);
        self.spoke = Instant::now();
        let planned = total.map_or_else(|| "until the time is up".to_owned(), |n| format!("to update {n}"));
        tracing::info!("training {} from update {from} {planned}", self.name);
    }

    fn step(&mut self, update: u64, bits_per_dim: f64, images_per_second: f64, seconds_left: Option<f64>) {
        let left = duration(seconds_left);
        if self.bar.is_hidden() {
            if self.spoke.elapsed() >= QUIET {
                self.spoke = Instant::now();
                let of = self.total.map_or_else(String::new, |n| format!("/{n}"));
                tracing::info!(
                    "update {update}{of}: {bits_per_dim:.4} bits/dim, {images_per_second:.1} images/s, {left} left{}",
                    self.validation
                );
            }
            return;
        }
        self.bar.set_position(update);
        self.bar.set_message(format!(
            "{bits_per_dim:.4} bits/dim, {images_per_second:.0} images/s, {left} left{}",
            self.validation
        ));
    }

    fn validation(&mut self, update: u64, bits_per_dim: f64, best: f64) {
        self.validation = format!(", validation {bits_per_dim:.4}");
        tracing::info!("update {update}: validation {bits_per_dim:.4} bits/dim, the best {best:.4}");
    }

    fn message(&mut self, text: &str) {
        tracing::info!("{text}");
    }
}

/// The progress of something that counts.
pub struct Count {
    what: String,
    bar: ProgressBar,
    spoke: std::cell::Cell<Instant>,
}

impl Count {
    /// `what` is shown beside the count.
    #[must_use]
    pub fn new(what: &str) -> Self {
        let bar = bar(Some(0), "{prefix} {bar:24} {pos}/{len}, {eta} left");
        bar.set_prefix(what.to_owned());
        Self { what: what.to_owned(), bar, spoke: std::cell::Cell::new(Instant::now()) }
    }

    /// Shows the count; whether to go on.
    #[must_use]
    pub fn at(&self, done: usize, of: usize) -> bool {
        self.bar.set_length(of as u64);
        self.bar.set_position(done as u64);
        if self.bar.is_hidden() && self.spoke.get().elapsed() >= QUIET {
            self.spoke.set(Instant::now());
            tracing::info!("{}: {done}/{of}", self.what);
        }
        !stopped()
    }
}

impl Drop for Count {
    fn drop(&mut self) {
        self.bar.finish_and_clear();
    }
}

/// The progress of transfers with the hub, one after the other.
#[derive(Default)]
pub struct Transfers(Mutex<Option<(String, ProgressBar, Instant)>>);

impl Observer for Transfers {
    fn progress(&self, transfer: &Transfer<'_>) {
        let &Transfer { what, done, total } = transfer;
        let mut shown = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        // What begins may be in the cache, and there is nothing to see.
        if done == 0 || shown.as_ref().is_some_and(|(name, ..)| name != what) {
            if let Some((_, bar, _)) = shown.take() {
                bar.finish_and_clear();
            }
            if done == 0 {
                return;
            }
        }
        let (_, bar, spoke) = shown.get_or_insert_with(|| {
            tracing::info!("{what}: {} to transfer", HumanBytes(total));
            let bar =
                bar(Some(total), "{prefix} {bar:24} {bytes}/{total_bytes}, {bytes_per_sec}, {eta} left");
            bar.set_prefix(what.to_owned());
            (what.to_owned(), bar, Instant::now())
        });
        bar.set_length(total);
        bar.set_position(done);
        if bar.is_hidden() && spoke.elapsed() >= QUIET {
            *spoke = Instant::now();
            tracing::info!("{what}: {} of {}", HumanBytes(done), HumanBytes(total));
        }
        if done >= total {
            bar.finish_and_clear();
        }
    }

    fn stopped(&self) -> bool {
        stopped()
    }
}

impl Drop for Transfers {
    fn drop(&mut self) {
        if let Some((_, bar, _)) = self.0.get_mut().unwrap_or_else(PoisonError::into_inner).take() {
            bar.finish_and_clear();
        }
    }
}
