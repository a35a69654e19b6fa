//! Distributions of the latent: one file each, one row each in [`PriorConfig`](crate::models::PriorConfig).
//!
//! Fixed: [`Gaussian`], [`Logistic`] and [`StudentT`] with given degrees of freedom. Learned: [`StudentT`], [`Mixture`] and
//! [`DiagonalGaussian`], their parameters under the path `prior` of a model.

mod diagonal;
mod fixed;
mod mixture;
mod prior;
mod student_t;

pub use diagonal::DiagonalGaussian;
pub use fixed::{Gaussian, Logistic};
pub use mixture::Mixture;
pub use prior::{Components, Prior, PriorCoding, Standard};
pub use student_t::StudentT;
pub(crate) use student_t::log_constant;
