//! What lossless coding needs to know of a layer that changes elements one by one; see
//! [`Coding`](super::Coding) for the other kinds.

use super::pass::Ctx;
use candle_core::{Result, Tensor};
use std::ops::Range;

/// How a function of one number is cut into the pieces on which a straight line replaces it.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Pieces {
    /// x + t: none are needed.
    Shift,
    /// a x + b: of any length.
    Line,
    /// An increasing function: of this length in x.
    Curve(f64),
    /// An increasing function on [0, 1) that bends like a logarithm at both ends: in proportion to the distance from where it would be
    /// infinite, which is so far below 0 and so far above 1.
    Unit([f64; 2]),
}

/// A layer that changes elements one by one, given those that it keeps.
pub trait Coupled: Send + Sync {
    /// The functions of the changed elements for one example (1, ..), of which only the kept elements are read.
    ///
    /// # Errors
    /// As [`Bijection::forward`](super::Bijection::forward).
    fn given<'a>(&'a self, x: &Tensor, ctx: Ctx) -> Result<Given<'a>>;
}

/// A function of a tensor of elements.
pub type OfElements<'a> = Box<dyn Fn(&Tensor) -> Result<Tensor> + 'a>;

/// The functions of the elements that a layer changes.
pub struct Given<'a> {
    /// Which elements of the example, in the order of memory, `forward` and `inverse` take.
    pub range: Range<usize>,
    /// The shape in which they take them.
    pub shape: Vec<usize>,
    /// Of these elements, those that are kept; nothing where all are changed.
    pub kept: Option<Vec<bool>>,
    /// Their pieces.
    pub pieces: Pieces,
    /// z of x.
    pub forward: OfElements<'a>,
    /// x of z.
    pub inverse: OfElements<'a>,
}
