//! The abstractions that every layer, network and model is written against.
//!
//! - [`Bijection`]: an invertible map with its log-det; [`Composite`]: one that is made of others; [`Chain`]: layers in
//!   order.
//! - [`Net`]: a network, as couplings contain one.
//! - [`Ctx`], [`Mode`], [`Context`]: what a pass may modify and what it is given beside its input.
//! - [`Memory`], [`Saved`], [`Gradients`], [`Graph`]: the backward pass.
//! - [`inspect`]: functions over the layers of a flow: trace, rounding errors of rebuilt inputs, the first number that is
//!   not finite.

mod bijection;
mod chain;
mod inside;
pub mod inspect;
mod net;
mod pass;
mod shape;
mod tape;

pub use bijection::{
    Bijection, Composite, Link, RunLayer, RunReversed, backward_by_graph, forward_saved_by_graph,
};
pub use chain::Chain;
pub use inside::Inside;
pub use inspect::{Drift, Step};
pub use net::{Net, net_backward, net_forward_saved};
pub use pass::{Context, Ctx, Mode};
pub(crate) use shape::{channel_shape, positions};
pub use shape::{same_per_example, sum_per_example, zeros_per_example};
pub use tape::{Gradients, Grads, Graph, Memory, Saved};
