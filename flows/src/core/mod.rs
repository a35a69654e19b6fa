//! The abstractions that every layer, network and model is written against.
//!
//! - [`Bijection`]: an invertible map with its log-det; [`Composite`]: one that is made of others; [`Chain`]: layers in
//!   order.
//! - [`Net`]: a network, as couplings contain one.
//! - [`Ctx`], [`Mode`], [`Context`]: what a pass may modify and what it is given beside its input.
//! - [`Memory`], [`SavedState`], [`Gradients`], [`Graph`]: the backward pass.
//! - [`Coding`]: what lossless coding is told of a layer.
//! - [`inspect`]: functions over the layers of a flow: trace, rounding errors of reconstructed inputs, the first number that is
//!   not finite.

mod bijection;
mod chain;
mod coding;
pub mod inspect;
mod layer_stats;
mod net;
mod pass;
mod shape;
mod tape;

pub use bijection::{
    Bijection, Coding, Composite, Link, NoiseFlow, RunLayer, RunReversed, backward_by_graph,
    forward_saved_by_graph,
};
pub(crate) use bijection::{forward, inverse};
pub use chain::Chain;
pub use coding::{Coupled, Given, OfElements, Pieces};
pub use inspect::{Drift, TraceEntry};
pub use layer_stats::LayerStats;
pub(crate) use net::run_net;
pub use net::{Net, net_backward, net_forward_saved};
pub use pass::{Context, Ctx, Mode};
pub(crate) use shape::{channel_shape, positions, split_levels};
pub use shape::{same_per_example, sum_per_example, zeros_per_example};
pub use tape::{Gradients, Grads, Graph, Memory, SavedState};
