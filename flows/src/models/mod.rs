//! NICE, RealNVP, Glow, MAF and flows of one's own as configs; building, saving and loading.
//!
//! A saved model is a folder: config.json builds it, model.safetensors fills it (above `max_shard_size`
//! model-00001-of-0000N.safetensors with model.safetensors.index.json, as others write it; see [`storage`](crate::storage)).
//! Nothing else is needed and nothing is lost: permutations, running statistics and actnorm's values are tensors of the
//! file.

mod built;
mod composed;
mod config;
mod context;
mod dequantize;
pub mod file;
pub mod glow;
mod layer;
pub mod maf;
mod model;
mod named;
mod network;
pub mod nice;
mod preprocess;
mod prior;
mod range;
pub mod realnvp;
mod size;
mod squeezed;
mod transform;

pub use composed::{ComposedConfig, Level};
pub use config::ModelConfig;
pub use context::{ContextConfig, Missing};
pub use dequantize::Dequantize;
pub use glow::GlowConfig;
pub use layer::{Layer, LayerConfig, PartitionConfig};
pub use maf::MafConfig;
pub use model::{Model, load};
pub use network::NetConfig;
pub use nice::NiceConfig;
pub use preprocess::Preprocess;
pub use prior::PriorConfig;
pub use realnvp::RealNvpConfig;
pub use size::Size;
pub use transform::{CouplingTransform, ScaleConfig, TransformConfig};
