//! Flow-based generative models on candle: NICE, RealNVP, Glow and MAF from shared coupling, autoregressive and permutation
//! layers.
//!
//! - [`core`](mod@crate::core): the abstractions: [`Bijection`], [`Chain`], [`Net`], and the backward pass in memory that
//!   does not grow with depth.
//! - [`transforms`]: what couplings and autoregressive layers do to the elements that they change; [`nets`]: their networks;
//!   [`bijections`]: the layers.
//! - [`priors`]: the distributions of the latent.
//! - [`Flow`]: a bijection and a prior; log_prob, bits/dim, sample, encode, decode.
//! - [`models`]: the papers' models as configs.
//! - [`storage`]: a flow of any kind saved to a folder and loaded from it.
//! - [`codec`]: lossless compression of images.
//! - [`latents`]: interpolation, attributes, levels, inpainting, and a trace of every layer.
//! - [`hub`]: models from the Hugging Face hub and to it (feature `hub`, on by default).
//! - [`ops`]: the numerical kernels, a crate of their own; [`ops::device::open_device`] opens a GPU.
//! - [`optim`], [`params`], [`testing`]: what training and tests need.
//!
//! # Layers
//! A file uses items of the layers before its own only, and within a layer there is no circle of files:
//!
//! ```text
//! ops -> params -> storage, core -> transforms, nets -> bijections -> priors -> flow -> variational, models -> latents, codec, hub, testing
//! ```
//!
//! `optim` stands beside `core`. `mod.rs` files declare and re-export; types that several files of a folder share have a
//! file of their own. No layer names a model before `models`, and nothing here names a command line, a plot or a data set.
//!
//! # Threads
//! On CPU set the variable `CANDLE_NUM_THREADS=1` before the first tensor is made, as the binary `flow` does: candle's
//! elementwise ops otherwise bring a second, spinning thread pool beside rayon's, which makes a training step several
//! times slower. Threads are rayon's (`RAYON_NUM_THREADS`), and results depend on their number in the last bits.

pub mod bijections;
pub mod codec;
pub mod core;
mod flow;
#[cfg(feature = "hub")]
pub mod hub;
pub mod latents;
pub mod models;
pub mod nets;
pub mod optim;
pub mod params;
pub mod priors;
pub mod storage;
pub mod testing;
pub mod transforms;
mod variational;

pub use crate::core::{
    Bijection, Chain, Coding, Composite, Context, Ctx, Drift, Gradients, Grads, Memory, Mode, Net, SavedState,
};
pub use flow::{Flow, LogProbTerms};
pub use flows_ops as ops;
pub use models::{Model, ModelConfig, load};
pub use params::{ParamBuilder, ParamStore};
pub use priors::Prior;
pub use storage::SaveOptions;
pub use variational::LogZ;

/// The documents' code is compiled and run with the library's own examples.
#[cfg(doctest)]
mod documents {
    #[doc = include_str!("../../docs/tutorial.md")]
    struct Tutorial;
    #[doc = include_str!("../../README.md")]
    struct Readme;
    #[cfg(feature = "hub")]
    #[doc = include_str!("../../docs/hub.md")]
    struct Hub;
}
