//! The readers of the command line, by their source files: of the many dependencies of `experiments` the
//! readers need five.

#![allow(dead_code, unused_imports, missing_docs)]

// What `pth.rs` calls the library is this crate here.
extern crate self as experiments;

pub mod data;

#[path = "../../experiments/src/bin/flow/import/pickle.rs"]
mod pickle;

#[path = "../../experiments/src/bin/flow/import/pth.rs"]
pub mod pth;

#[path = "../../experiments/src/untrusted.rs"]
pub mod untrusted;

use std::path::PathBuf;
use std::sync::OnceLock;

/// A folder of this process, in memory where there is such a place.
pub fn folder() -> &'static PathBuf {
    static FOLDER: OnceLock<PathBuf> = OnceLock::new();
    FOLDER.get_or_init(|| {
        let memory = PathBuf::from("/dev/shm");
        let place = if memory.is_dir() { memory } else { std::env::temp_dir() };
        let folder = place.join(format!("flows-fuzz-{}", std::process::id()));
        std::fs::create_dir_all(&folder).expect("a folder can be made");
        folder
    })
}

/// Errors are what a reader should give; their text is made, too.
pub fn tell<T, E: std::fmt::Display>(result: Result<T, E>) {
    if let Err(error) = result {
        let text = error.to_string();
        assert!(!text.is_empty());
    }
}
