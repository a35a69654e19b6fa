//! `flow`: reproduce the papers' numbers, train, evaluate and sample flows, print tables of bits/dim.

mod batches;
mod checkpoint;
mod cli;
mod codecs;
mod data;
mod evaluate;
mod explain;
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
    cli::main()
}
