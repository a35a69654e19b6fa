//! What a person sees while the machine works: a bar with bits/dim, images/s and the time left where standard error is a
//! terminal, a line of log every half minute where it is not. Logs share the terminal with the bar through [`LogWriter`].

use experiments::train::Progress;
use flows::hub::{Observer, Transfer};
use indicatif::{HumanBytes, HumanDuration, MultiProgress, ProgressBar, ProgressStyle};
use std::cell::Cell;
use std::io::Write;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
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

/// The error of a command that Ctrl-C ended. Files are complete; the same command resumes or starts again.
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

/// The progress of something that counts: a bar, or a line of log now and then.
pub struct Count {
    what: String,
    bar: ProgressBar,
    spoke: Cell<Instant>,
}

impl Count {
    /// `what` is shown beside the count.
    #[must_use]
    pub fn new(what: &str) -> Self {
        Self::with(what, Some(0), "{prefix} {bar:24} {pos}/{len}, {eta} left")
    }

    fn with(what: &str, total: Option<u64>, template: &str) -> Self {
        let bar = BARS.add(total.map_or_else(ProgressBar::no_length, ProgressBar::new));
        let style = ProgressStyle::with_template(template).expect("the templates are constants");
        bar.set_style(style.progress_chars("━╸ "));
        bar.set_prefix(crate::output::shown(what).into_owned());
        Self { what: what.to_owned(), bar, spoke: Cell::new(Instant::now()) }
    }

    /// Moves the bar; where it is hidden, logs a line if the last one is long ago.
    fn show(&self, done: u64, line: impl FnOnce() -> String) {
        self.bar.set_position(done);
        if self.bar.is_hidden() && self.spoke.get().elapsed() >= QUIET {
            self.spoke.set(Instant::now());
            tracing::info!("{}", line());
        }
    }

    /// Shows the count. Returns false once Ctrl-C was pressed.
    #[must_use]
    pub fn at(&self, done: usize, of: usize) -> bool {
        self.bar.set_length(of as u64);
        self.show(done as u64, || format!("{}: {done}/{of}", self.what));
        !stopped()
    }
}

impl Drop for Count {
    fn drop(&mut self) {
        self.bar.finish_and_clear();
    }
}

/// Runs what calls its argument once for each of `n` things, on a thread of its own, with a bar; and the seconds it took.
///
/// # Errors
/// Its error, and [`Stopped`] once Ctrl-C was pressed: its argument then returns false.
pub fn counted<T: Send, E: Into<anyhow::Error> + Send>(
    what: &str,
    n: usize,
    run: impl FnOnce(&(dyn Fn() -> bool + Sync)) -> Result<T, E> + Send,
) -> anyhow::Result<(T, f64)> {
    let (done, begun) = (AtomicUsize::new(0), Instant::now());
    let one_more = || {
        done.fetch_add(1, Ordering::Relaxed);
        !stopped()
    };
    let made = std::thread::scope(|scope| {
        let worker = scope.spawn(|| run(&one_more));
        let count = Count::new(what);
        while !worker.is_finished() {
            let _ = count.at(done.load(Ordering::Relaxed), n);
            std::thread::sleep(Duration::from_millis(20));
        }
        worker.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic))
    });
    match made {
        Err(_) if stopped() => Err(Stopped.into()),
        made => Ok((made.map_err(Into::into)?, begun.elapsed().as_secs_f64())),
    }
}

/// The progress of training.
pub struct Training<F> {
    name: String,
    count: Option<Count>,
    total: Option<u64>,
    validation: String,
    on_begin: Option<F>,
    result: anyhow::Result<()>,
}

impl<F: FnOnce() -> anyhow::Result<()>> Training<F> {
    /// `on_begin` is called once, after training has accepted the folder and its checkpoint and before the first update.
    pub fn new(name: &str, on_begin: F) -> Self {
        let (name, on_begin) = (name.to_owned(), Some(on_begin));
        Self { name, count: None, total: None, validation: String::new(), on_begin, result: Ok(()) }
    }

    /// Takes the bar away and gives the result of `on_begin`.
    ///
    /// # Errors
    /// Its error.
    pub fn finish(self) -> anyhow::Result<()> {
        self.result
    }
}

impl<F: FnOnce() -> anyhow::Result<()> + Send> Progress for Training<F> {
    fn begin(&mut self, from: u64, total: Option<u64>) {
        if let Some(f) = self.on_begin.take() {
            self.result = f();
        }
        self.total = total;
        let count = Count::with(&self.name, total, "{prefix} {bar:24} {pos}/{len} {msg}");
        count.bar.set_position(from);
        self.count = Some(count);
        let planned = total.map_or_else(|| "until the time is up".to_owned(), |n| format!("to update {n}"));
        tracing::info!("training {} from update {from} {planned}", self.name);
    }

    fn step(&mut self, update: u64, bits_per_dim: f64, images_per_second: f64, seconds_left: Option<f64>) {
        let Some(count) = &self.count else { return };
        let left = seconds_left.map(|s| HumanDuration(Duration::from_secs_f64(s.max(0.))).to_string());
        let (left, validation) = (left.as_deref().unwrap_or("?"), &self.validation);
        count.bar.set_message(format!(
            "{bits_per_dim:.4} bits/dim, {images_per_second:.0} images/s, {left} left{validation}"
        ));
        count.show(update, || {
            let of = self.total.map_or_else(String::new, |n| format!("/{n}"));
            format!(
                "update {update}{of}: {bits_per_dim:.4} bits/dim, {images_per_second:.1} images/s, {left} left{validation}"
            )
        });
    }

    fn validation(&mut self, update: u64, bits_per_dim: f64, best: f64) {
        self.validation = format!(", validation {bits_per_dim:.4}");
        tracing::info!("update {update}: validation {bits_per_dim:.4} bits/dim, the best {best:.4}");
    }

    fn message(&mut self, text: &str) {
        tracing::info!("{text}");
    }
}

/// The progress of transfers with the hub, one after the other.
#[derive(Default)]
pub struct Transfers(Mutex<Option<Count>>);

impl Observer for Transfers {
    fn progress(&self, transfer: &Transfer<'_>) {
        let &Transfer { what, done, total } = transfer;
        let mut shown = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        // What begins may be in the cache, and there is nothing to see.
        if done == 0 || shown.as_ref().is_some_and(|count| count.what != what) {
            *shown = None;
            if done == 0 {
                return;
            }
        }
        let count = shown.get_or_insert_with(|| {
            tracing::info!("{what}: {} to transfer", HumanBytes(total));
            let template = "{prefix} {bar:24} {bytes}/{total_bytes}, {bytes_per_sec}, {eta} left";
            Count::with(what, Some(total), template)
        });
        count.bar.set_length(total);
        count.show(done, || format!("{what}: {} of {}", HumanBytes(done), HumanBytes(total)));
        if done >= total {
            count.bar.finish_and_clear();
        }
    }

    fn stopped(&self) -> bool {
        stopped()
    }
}
