//! NICE, RealNVP, Glow and MAF as configs; building, saving and loading.
//!
//! A saved model is a folder: config.json builds it, model.safetensors fills it (above `max_shard_size`
//! model-00001-of-0000N.safetensors with model.safetensors.index.json, as others write it; see [`storage`](crate::storage)).
//! Nothing else is needed and nothing is lost: permutations, running statistics and actnorm's values are tensors of the
//! file.

mod built;
mod config;
mod context;
mod dequantize;
pub mod file;
pub mod glow;
mod levels;
pub mod maf;
mod model;
mod named;
pub mod nice;
mod preprocess;
mod prior;
pub mod realnvp;
mod transform;

pub use config::ModelConfig;
pub use context::{ContextConfig, Missing};
pub use dequantize::Dequantize;
pub use glow::GlowConfig;
pub use maf::MafConfig;
pub use model::{Model, load};
pub use nice::NiceConfig;
pub use preprocess::Preprocess;
pub use prior::PriorConfig;
pub use realnvp::RealNvpConfig;
pub use transform::CouplingTransform;
