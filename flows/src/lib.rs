//! Flow-based generative models on candle: NICE, RealNVP and Glow from shared coupling and permutation layers.
//!
//! - [`bijection`]: the one abstraction, and the chain; [`backward`]: gradients in memory that does not grow with depth.
//! - [`bijections`]: the layers; [`nets`]: the networks inside couplings.
//! - [`Flow`]: a bijection and a prior; log_prob, bits/dim, sample, encode, decode.
//! - [`latents`]: what latents are for: interpolation, attributes, levels, inpainting, and a look inside.
//! - [`models`]: the papers' models as configs, saved and loaded as a folder.
//! - [`ops`]: the numerical kernels, a crate of their own; [`ops::device::open_device`] opens a GPU.
//! - [`hub`]: the Hugging Face hub both ways (feature `hub`, on by default).
//! - [`optim`], [`params`], [`testing`]: what training and tests need.
//!
//! On CPU set the variable `CANDLE_NUM_THREADS=1` before the first tensor is made, as the binary `flow` does: candle's
//! elementwise ops otherwise bring a second, spinning thread pool beside rayon's, which makes a training step several
//! times slower. Threads are rayon's (`RAYON_NUM_THREADS`), and results depend on their number in the last bits.

pub mod backward;
pub mod bijection;
pub mod bijections;
mod flow;
#[cfg(feature = "hub")]
pub mod hub;
pub mod latents;
pub mod models;
pub mod nets;
pub mod optim;
pub mod params;
mod prior;
pub mod testing;

pub use flows_ops as ops;

pub use backward::{Gradients, Grads, Memory, Saved};
pub use bijection::{Bijection, Chain, Ctx, Drift, Mode};
pub use flow::{Flow, Terms};
pub use models::{Model, ModelConfig, SaveOptions, load};
pub use params::{Params, Vb};
pub use prior::Prior;

/// The documents' code is compiled and run with the library's own examples.
#[cfg(doctest)]
mod documents {
    #[doc = include_str!("../../docs/tutorial.md")]
    struct Tutorial;
    #[doc = include_str!("../../README.md")]
    struct Readme;
}
