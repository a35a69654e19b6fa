//! `flow`: reproduce the papers' numbers, train, evaluate and sample flows, print tables of bits/dim.

mod batches;
mod checkpoint;
mod cli;
mod codecs;
mod data;
mod evaluate;
mod explain;
mod limits;
mod lock;
mod output;
mod plots;
mod progress;
mod recipe;
mod run;
mod summary;
mod table;
mod train;

use std::process::ExitCode;

/// Activations are large and short-lived: the system's allocator would give each back to the kernel and pay for its pages
/// again in the next update.
#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

fn main() -> ExitCode {
    // candle's elementwise ops have a thread pool of their own, whose workers and callers spin while they wait and so take
    // the cores from the pool that does the work: without it a training step is three to four times faster. candle reads
    // the variable once, at the pool's first use.
    if std::env::var_os("CANDLE_NUM_THREADS").is_none() {
        // SAFETY: no other thread exists yet.
        unsafe { std::env::set_var("CANDLE_NUM_THREADS", "1") };
    }
    cli::main()
}
