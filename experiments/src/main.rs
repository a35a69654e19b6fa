//! `flow`: reproduce the papers' numbers, train, evaluate and sample flows, print tables of bits/dim, show what latents do.

mod batches;
mod card;
mod checkpoint;
mod cli;
mod codecs;
#[cfg(test)]
mod counting;
mod data;
mod evaluate;
mod events;
mod explain;
mod export;
mod import;
mod limits;
mod lock;
mod output;
mod plots;
mod progress;
mod recipe;
mod report;
mod run;
mod show;
mod summary;
mod table;
mod train;
mod transfer;
mod weights;

use std::process::ExitCode;

/// Activations are large and short-lived: the system's allocator would give each back to the kernel and pay for its pages
/// again in the next update.
#[cfg(not(test))]
#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

#[cfg(test)]
#[global_allocator]
static ALLOCATOR: counting::Counting = counting::Counting;

/// `mi_option_purge_delay` of mimalloc 3, whose crate names no options; its version is therefore pinned.
const PURGE_DELAY: libmimalloc_sys::mi_option_t = 15;

/// Gives no memory back from now on: what one update frees the next one needs, and RealNVP's update spends a third of its
/// time getting its pages again otherwise. Not for updates that rebuild their activations: they are there to need little.
/// The environment's MIMALLOC_PURGE_DELAY has the last word.
fn keep_memory() {
    if std::env::var_os("MIMALLOC_PURGE_DELAY").is_none() {
        // SAFETY: sets a number.
        unsafe { libmimalloc_sys::mi_option_set(PURGE_DELAY, -1) };
    }
}

fn main() -> ExitCode {
    // candle's elementwise ops have a thread pool of their own, whose workers and callers spin while they wait and so take
    // the cores from the pool that does the work: without it a training step is three to four times faster. candle reads
    // the variable once, at the pool's first use.
    if std::env::var_os("CANDLE_NUM_THREADS").is_none() {
        // SAFETY: no other thread exists yet.
        unsafe { std::env::set_var("CANDLE_NUM_THREADS", "1") };
    }
    // The hub's storage client tries dead storage for minutes otherwise; it takes these settings from the environment only.
    for (name, value) in [
        ("HF_XET_CLIENT_RETRY_MAX_ATTEMPTS", "2"),
        ("HF_XET_CLIENT_RETRY_BASE_DELAY", "500ms"),
        ("HF_XET_CLIENT_CONNECT_TIMEOUT", "10s"),
    ] {
        if std::env::var_os(name).is_none() {
            // SAFETY: as above.
            unsafe { std::env::set_var(name, value) };
        }
    }
    cli::main()
}
