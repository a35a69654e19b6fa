//! The layers of a flow, each with what is computed once for all examples, and an example's way through them.

use super::jacobian::Jacobian;
use super::matrix::Matrix;
use super::pieces::{FARTHEST, Functions, Grid, unit};
use super::stack::Stack;
use super::way::{Way, numbers, tensor};
use crate::core::{Bijection, Coding, Composite, Context, Coupled, Ctx, NoiseFlow, OfElements, Pieces};
use crate::ops::squeeze::{squeeze, unsqueeze};
use candle_core::{DType, Result, Tensor};

/// Numbers in a piece of the noise's logit, whose slope is 4 at least and which bends most at its ends.
const NOISE: f64 = 4.;

/// A layer.
pub(super) struct Layer<'a> {
    kind: Kind<'a>,
    /// Numbers before and after it.
    grid: Grid,
}

enum Kind<'a> {
    Composite(&'a dyn Composite, Vec<Layer<'a>>),
    Moves(&'a dyn Bijection),
    Elements(&'a dyn Bijection, Pieces),
    Coupled(&'a dyn Coupled),
    Matrix(Matrix),
    Inverse(Box<Layer<'a>>),
    Noise(&'a dyn NoiseFlow, Box<Layer<'a>>),
    Jacobian(Jacobian<'a>),
}

/// Bits after the point.
pub(super) struct Bits {
    /// Those of the numbers at a layer.
    pub(super) at: u32,
    /// Those behind the next layer that changes every element.
    pub(super) next: u32,
}

/// The bits of x that a function on [0, 1) needs, the most of those in a flow; 0 where there is none.
///
/// Close to an end it is a line, and a logarithm from as far away as it is there from being infinite: numbers of a 16th of that show both.
/// The bits are all drawn for the first image, and more than 24 would show less than a millionth of what pixels are.
pub(super) fn needed(f: &dyn Bijection) -> Result<u32> {
    match f.composite() {
        Some(c) => c.links().iter().try_fold(0, |most, link| Ok(most.max(needed(link.layer())?))),
        None => Ok(match f.coding()? {
            Coding::Elements(Pieces::Unit([below, above])) => {
                let bits = below.min(above).max(unit(24)).recip().log2().ceil() as u32 + 4;
                bits.min(24)
            }
            _ => 0,
        }),
    }
}

/// The real numbers that whole ones stand for.
pub(super) fn real(x: &Tensor, bits: u32, dtype: DType) -> Result<Tensor> {
    (x * unit(bits))?.to_dtype(dtype)
}

impl<'a> Layer<'a> {
    /// The layer `f` for examples of `dims` dimensions, whose numbers have `bits` before it, and behind the preprocessing `precision` bits.
    pub(super) fn new(
        f: &'a dyn Bijection,
        dims: usize,
        bits: &mut Bits,
        precision: u32,
        dtype: DType,
    ) -> Result<Self> {
        let from = bits.at;
        let kind = match f.composite() {
            Some(c) => {
                let layer = |link: &'a crate::core::Link| {
                    Self::new(link.layer(), dims, bits, precision, dtype).map_err(|e| named(link.name(), e))
                };
                Kind::Composite(c, c.links().iter().map(layer).collect::<Result<_>>()?)
            }
            None => match f.coding()? {
                Coding::Moves => Kind::Moves(f),
                Coding::Elements(pieces) => {
                    if matches!(pieces, Pieces::Unit(_)) {
                        bits.next = precision;
                    }
                    bits.at = bits.next;
                    Kind::Elements(f, pieces)
                }
                Coding::Coupled(coupled) => Kind::Coupled(coupled),
                Coding::Matrix { weight, shift } => Kind::Matrix(Matrix::new(&weight, shift.as_ref(), from)?),
                Coding::Inverse(inner) => {
                    let mut same = Bits { at: from, next: from };
                    Kind::Inverse(Box::new(Self::new(inner, dims, &mut same, from, dtype)?))
                }
                Coding::Noise(noise) => {
                    let mut same = Bits { at: from, next: from };
                    let flow = Self::new(noise.flow(), dims, &mut same, from, dtype)?;
                    Kind::Noise(noise, Box::new(flow))
                }
                Coding::Jacobian => Kind::Jacobian(Jacobian::new(f, dims, from, dtype)?),
            },
        };
        Ok(Self { kind, grid: Grid { from, to: bits.at, dtype } })
    }

    /// z of x, (1, ..).
    pub(super) fn encode(&self, x: &Tensor, way: &mut Way) -> Result<Tensor> {
        match &self.kind {
            Kind::Composite(c, layers) => {
                c.pass(x, &mut |i, x, _| layers[i].encode(x, way).map_err(|e| named(c.links()[i].name(), e)))
            }
            Kind::Moves(f) => Ok(f.forward(x, Ctx::eval())?.0),
            Kind::Inverse(layer) => layer.decode(x, way),
            Kind::Noise(noise, flow) => self.noise(*noise, x, way, |h, way| flow.encode(h, way)),
            Kind::Jacobian(f) => f.encode(x, way),
            _ => self.elements(x, way, true),
        }
    }

    /// x of z, (1, ..).
    pub(super) fn decode(&self, z: &Tensor, way: &mut Way) -> Result<Tensor> {
        match &self.kind {
            Kind::Composite(c, layers) => {
                let mut back = |i: usize, z: &[Tensor]| {
                    let x = layers[i].decode(&z[0], way).map_err(|e| named(c.links()[i].name(), e))?;
                    Ok(vec![x])
                };
                Ok(c.pass_reversed(&[z], &mut back)?.swap_remove(0))
            }
            Kind::Moves(f) => f.inverse(z, Context::none()),
            Kind::Inverse(layer) => layer.encode(z, way),
            Kind::Noise(noise, flow) => self.noise(*noise, z, way, |h, way| flow.decode(h, way)),
            Kind::Jacobian(f) => f.decode(z, way),
            _ => self.elements(z, way, false),
        }
    }

    /// The layers that change numbers in their places, in either direction.
    fn elements(&self, x: &Tensor, way: &mut Way, forward: bool) -> Result<Tensor> {
        let (mut v, shape) = (numbers(x)?, x.dims().to_vec());
        let run = |functions: &Functions, v: &mut [i64], stack: &mut Stack| match forward {
            true => functions.encode(v, &self.grid, stack),
            false => functions.decode(v, &self.grid, stack),
        };
        match &self.kind {
            Kind::Elements(f, pieces) => {
                let ctx = Ctx::eval().with_context(way.context);
                let functions = Functions {
                    pieces: *pieces,
                    shape: shape.clone(),
                    kept: None,
                    forward: Box::new(move |x| Ok(f.forward(x, ctx)?.0)),
                    inverse: Box::new(move |z| f.inverse(z, ctx.context)),
                };
                run(&functions, &mut v, way.stack)?;
            }
            Kind::Coupled(f) => {
                let x = real(x, self.grid.from, self.grid.dtype)?;
                let given = f.given(&x, Ctx::eval().with_context(way.context))?;
                let functions = Functions {
                    pieces: given.pieces,
                    shape: given.shape,
                    kept: given.kept,
                    forward: given.forward,
                    inverse: given.inverse,
                };
                run(&functions, &mut v[given.range], way.stack)?;
            }
            Kind::Matrix(matrix) if forward => matrix.encode(&mut v, way.stack)?,
            Kind::Matrix(matrix) => matrix.decode(&mut v, way.stack)?,
            _ => unreachable!("the callers have the others"),
        }
        tensor(v, &shape)
    }

    /// Noise v of pixels n becomes u, or u becomes v: logit, the flow in one direction or the other, sigmoid. The sigmoid is the logit
    /// coded backwards, and maps what is finite to [0, 1) whatever the flow does.
    fn noise(
        &self,
        noise: &dyn NoiseFlow,
        x: &Tensor,
        way: &mut Way,
        flow: impl FnOnce(&Tensor, &mut Way) -> Result<Tensor>,
    ) -> Result<Tensor> {
        let (bits, x) = (self.grid.from, squeeze(x)?);
        let shape = x.dims().to_vec();
        let x = numbers(&x)?;
        let n: Vec<i64> = x.iter().map(|x| x >> bits).collect();
        let mut v: Vec<i64> = x.iter().zip(&n).map(|(x, n)| x - (n << bits)).collect();
        let logit = Functions {
            pieces: Pieces::Curve(NOISE * unit(bits)),
            shape: shape.clone(),
            kept: None,
            forward: logit(bits),
            inverse: sigmoid(),
        };
        // In f64, whatever the networks compute in.
        let grid = Grid { dtype: DType::F64, ..self.grid };
        logit.encode(&mut v, &grid, way.stack)?;
        let pixels = tensor(n.clone(), &shape)?.to_dtype(self.grid.dtype)?;
        let features = noise.features(&pixels)?;
        let context = Context { features: Some(&features), ..way.context };
        let h = flow(&tensor(v, &shape)?, &mut Way { stack: way.stack, context })?;
        let mut u = numbers(&h)?;
        logit.decode(&mut u, &grid, way.stack)?;
        let z = n.iter().zip(&u).map(|(n, u)| (n << bits) + u).collect();
        unsqueeze(&tensor(z, &shape)?)
    }
}

/// log(p / (1 - p)) of numbers of these bits, from minus to plus [`FARTHEST`] at 0 and 1.
fn logit(bits: u32) -> OfElements<'static> {
    Box::new(move |p| {
        let least = unit(bits + 1);
        let inside = p.clamp(least, 1. - least)?;
        let h = (inside.log()? - inside.affine(-1., 1.)?.log()?)?;
        let ends = ((p.ge(1f64)?.to_dtype(DType::F64)? - p.le(0f64)?.to_dtype(DType::F64)?)? * FARTHEST)?;
        p.clamp(0f64, 1f64)?.eq(&inside)?.where_cond(&h, &ends)
    })
}

fn sigmoid() -> OfElements<'static> {
    Box::new(|h| (h.neg()?.exp()? + 1.)?.recip())
}

fn named(name: &str, e: candle_core::Error) -> candle_core::Error {
    if name.is_empty() { e } else { e.context(name.to_owned()) }
}
