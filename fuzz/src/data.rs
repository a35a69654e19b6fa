//! The readers of data sets.

#[path = "../../experiments/src/data/cifar.rs"]
pub mod cifar;
#[path = "../../experiments/src/data/cifar_py.rs"]
mod cifar_py;
#[path = "../../experiments/src/data/idx.rs"]
pub mod idx;
#[path = "../../experiments/src/data/npy.rs"]
pub mod npy;
#[path = "../../experiments/src/data/set.rs"]
mod set;

pub(crate) use set::{LARGEST, Parts, Revision, Rows, read_at_most, read_file};
pub use set::{Dataset, Split, Values};
