//! Transforms: what a coupling or an autoregressive layer does to the elements that it changes.
//!
//! A transform of your own is one file that implements [`Transform`]; `examples/own_coupling.rs` shows one.
//!
//! [`Transform::forward`] gives log dy/dx of each element rather than their sum, so that the coupling can leave out what a
//! mask keeps, and can show the scales of any transform. A transform with a kernel of its own calls it in forward and inverse, and
//! overrides [`Transform::backward`]; one whose kernel sums over the whole tensor overrides [`Transform::forward_whole`].

mod additive;
mod affine;
mod mixture;
mod partition;
mod spline;
mod transform;

pub use additive::Additive;
pub use affine::{Affine, Scale};
pub use mixture::MixtureOfLogistics;
pub use partition::{Changed, Partition, checkerboard};
pub use spline::RationalQuadraticSpline;
pub use transform::Transform;
pub(crate) use transform::forward_parts;
