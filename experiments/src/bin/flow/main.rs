//! `flow`: reproduce the papers' numbers, train, evaluate and sample flows, print tables of bits/dim, show what latents do.
//!
//! Files form layers without a circle; a file uses items of lower layers only:
//!
//! 1. `output`, `progress`: standard output, standard error, Ctrl-C.
//! 2. `hub`, `args`, `files`, `arrays`: types of arguments that commands share.
//! 3. `saved`, `draw`, `report`, `card`, `import`, `session`, `directions`: the work that commands share.
//! 4. `commands`: one file a command, with its arguments, its work and its output. `pictures` has what several of them need,
//!    and `doctor` takes one function of `reconstruct`. `explore`, the page, draws what the picture commands draw and takes
//!    their functions; its own command is `commands/explore`.
//! 5. `cli`: the only file that knows all commands.

mod args;
mod arrays;
mod card;
mod cli;
mod commands;
mod context;
mod directions;
mod draw;
mod explore;
mod files;
mod hub;
mod image_file;
mod import;
mod output;
mod progress;
mod report;
mod saved;
mod session;
#[cfg(test)]
#[path = "../../testing.rs"]
mod testing;

use std::process::ExitCode;

/// Activations are large and short-lived: the system's allocator would give each back to the kernel and pay for its pages
/// again in the next update.
#[cfg(not(test))]
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
    // Without these settings the hub's storage client retries an unreachable server for minutes. It reads them from the
    // environment only.
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
