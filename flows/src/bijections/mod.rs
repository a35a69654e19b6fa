//! The layers: one file each, one row each in `tests/all/laws.rs`.

mod act_norm;
mod affine;
mod autoregressive;
mod batch_norm;
mod conv1x1;
mod coupling;
mod dequantize;
mod inverted;
mod multiscale;
mod permute;
pub mod preprocess;
mod reshape;
mod standardize;

pub use act_norm::ActNorm;
pub use affine::{ChannelPrior, Diagonal, DiagonalPrior};
pub use autoregressive::Autoregressive;
pub use batch_norm::{BatchNorm, BatchStatistics};
pub use conv1x1::{Conv1x1, Weight};
pub use coupling::Coupling;
pub use dequantize::VariationalDequantization;
pub use inverted::Inverted;
pub use multiscale::Multiscale;
pub use permute::Permute;
pub use preprocess::{Logit, LogitScale, Rescale, Whiten};
pub use reshape::{Flatten, Squeeze};
pub use standardize::Standardize;
