//! Elements one by one: a function of whole numbers that is one to one, from a function of real numbers that is only increasing.
//!
//! The axis of x is cut into pieces of w numbers, and the function's values at their ends are rounded: a piece of n_x numbers becomes one
//! of n_z. Between the ends the function is a straight line, and since n_x and n_z differ, which of the numbers near that line z
//! is, or x on the way back, is decided by bits of the stack (the uniform coder of iFlow, Zhang et al. 2021, arXiv 2111.00965,
//! section 3.1: the local bits-back coding of section 3.4 of Ho et al. with a uniform density instead of a Gaussian one):
//!
//! ```text
//! pop r < n_z,    i n_z + r = j n_x + s,    push s < n_x         i, j: where x and z are in their pieces
//! ```
//!
//! It costs log2(n_x / n_z) bits, which is -log2 dz/dx of the line, needs no inverse that is exact, and draws no more bits in
//! advance than for one element.

use super::stack::{LARGEST, MOST, Stack};
use crate::core::{OfElements, Pieces};
use candle_core::{DType, Result, Tensor, bail};

/// A line's pieces are made so long that the rounding of both ends changes its slope by 2^-8 at most, up or down.
const LINE: i32 = 8;

/// The most numbers of a line's piece as a power of 2, for z where the line is steep and for x where it is flat.
const STEEP: i32 = 16;
const FLAT: i32 = 24;

/// A piece of a function on [0, 1) is at most 2^-GRADE as long as its distance from the nearer end, and has at most about 2^GRADED
/// numbers of z: for more of them the coder's probabilities are too coarse.
const GRADE: u32 = 5;
const GRADED: u32 = 10;

/// Where functions on [0, 1) end, which may be infinite at 0 and 1.
pub(super) const FARTHEST: f64 = 64.;

/// How many pieces an inverse may be off by.
const OFF: usize = 4096;

/// Numbers as lossless coding computes with them: multiples of 2^-bits.
pub(super) struct Grid {
    /// The bits of inputs and of outputs.
    pub(super) from: u32,
    pub(super) to: u32,
    /// What layers compute in.
    pub(super) dtype: DType,
}

pub(super) fn unit(bits: u32) -> f64 {
    0.5f64.powi(bits as i32)
}

/// The nearest multiple of 2^-bits, in units of it.
pub(super) fn round(x: f64, bits: u32) -> Result<i64> {
    whole(x / unit(bits))
}

/// The nearest whole number, of those that f64 tells from their neighbours.
pub(super) fn whole(x: f64) -> Result<i64> {
    let n = x.round();
    if n.is_nan() || n.abs() >= LARGEST as f64 {
        bail!(
            "a number is too large to be kept exactly: this example is far from what the model was trained on"
        );
    }
    Ok(n as i64)
}

/// A piece: its first number and how many it has, on both axes.
#[derive(Clone, Copy)]
struct Piece {
    x: i64,
    n_x: u64,
    z: i64,
    n_z: u64,
    falls: bool,
}

impl Piece {
    /// From `x` on `n_x` numbers, and the function's values at both ends.
    fn new(x: i64, n_x: u64, ends: [i64; 2]) -> Result<Self> {
        let (z, n_z) = (ends[0].min(ends[1]), ends[0].abs_diff(ends[1]));
        if n_z == 0 || n_z > MOST {
            bail!(
                "a slope of {:.1e} is too {} for numbers of this precision: give more bits, or compress with another model",
                n_z as f64 / n_x as f64,
                if n_z == 0 { "flat" } else { "steep" }
            );
        }
        Ok(Self { x, n_x, z, n_z, falls: ends[0] > ends[1] })
    }

    fn encode(&self, x: i64, stack: &mut Stack) -> i64 {
        let i = (x - self.x) as u64;
        let mut j = i;
        if self.n_x != self.n_z {
            let y = i * self.n_z + stack.pop(self.n_z);
            j = y / self.n_x;
            stack.push(y % self.n_x, self.n_x);
        }
        self.z + if self.falls { self.n_z - 1 - j } else { j } as i64
    }

    fn decode(&self, z: i64, stack: &mut Stack) -> i64 {
        let j = (z - self.z) as u64;
        let j = if self.falls { self.n_z - 1 - j } else { j };
        let mut i = j;
        if self.n_x != self.n_z {
            let y = j * self.n_x + stack.pop(self.n_x);
            i = y / self.n_z;
            stack.push(y % self.n_z, self.n_z);
        }
        self.x + i as i64
    }

    fn holds(&self, z: i64) -> bool {
        (self.z..self.z + self.n_z as i64).contains(&z)
    }
}

/// z = a x + b, both in whole numbers, and the length of its pieces.
#[derive(Clone, Copy)]
pub(super) struct Line {
    a: f64,
    b: f64,
    length: u32,
}

impl Line {
    /// The line a x + b of real numbers.
    pub(super) fn new(a: f64, b: f64, grid: &Grid) -> Result<Self> {
        let (slope, shift) = (a * unit(grid.from) / unit(grid.to), b / unit(grid.to));
        if !(slope.is_normal() && shift.is_finite()) {
            bail!("a slope of {a:.1e} has no inverse");
        }
        let exponent = ((slope.abs().to_bits() >> 52) as i32) - 1023;
        // Longer where the line is flat, and shorter where it is steep.
        let length = (LINE - exponent.min(0) - (exponent + LINE - STEEP).max(0)).clamp(0, FLAT);
        Ok(Self { a: slope, b: shift, length: length as u32 })
    }

    fn piece(&self, l: i64) -> Result<Piece> {
        let at = |l: i64| whole(self.a * (l << self.length) as f64 + self.b);
        Piece::new(l << self.length, 1 << self.length, [at(l)?, at(l + 1)?])
    }

    pub(super) fn encode(&self, x: i64, stack: &mut Stack) -> Result<i64> {
        Ok(self.piece(x >> self.length)?.encode(x, stack))
    }

    pub(super) fn decode(&self, z: i64, stack: &mut Stack) -> Result<i64> {
        let mut l = whole((z as f64 - self.b) / self.a)? >> self.length;
        for _ in 0..OFF {
            let piece = self.piece(l)?;
            if piece.holds(z) {
                return Ok(piece.decode(z, stack));
            }
            l += if (z < piece.z) == piece.falls { 1 } else { -1 };
        }
        bail!("a line has no piece that holds {z}")
    }
}

/// Functions of elements, in tensors of this shape.
pub(super) struct Functions<'a> {
    pub(super) pieces: Pieces,
    pub(super) shape: Vec<usize>,
    pub(super) kept: Option<Vec<bool>>,
    pub(super) forward: OfElements<'a>,
    pub(super) inverse: OfElements<'a>,
}

impl Functions<'_> {
    /// The values of a function at real numbers.
    fn at(&self, f: &OfElements, x: Vec<f64>, grid: &Grid) -> Result<Vec<f64>> {
        let x = Tensor::from_vec(x, self.shape.as_slice(), &candle_core::Device::Cpu)?;
        f(&x.to_dtype(grid.dtype)?)?.to_dtype(DType::F64)?.flatten_all()?.to_vec1()
    }

    fn is_kept(&self, i: usize) -> bool {
        self.kept.as_ref().is_some_and(|kept| kept[i])
    }

    /// The indices of the changed elements.
    fn changed(&self, n: usize) -> impl DoubleEndedIterator<Item = usize> {
        (0..n).filter(|&i| !self.is_kept(i))
    }

    /// f(0) of each element, rounded.
    fn shifts(&self, n: usize, grid: &Grid) -> Result<Vec<i64>> {
        if grid.from != grid.to {
            bail!("a layer that shifts cannot be the first one");
        }
        self.at(&self.forward, vec![0.; n], grid)?.into_iter().map(|t| round(t, grid.to)).collect()
    }

    /// The lines through the values at 0 and 1.
    fn lines(&self, n: usize, grid: &Grid) -> Result<Vec<Option<Line>>> {
        let [b, c] = [0., 1.].map(|x| self.at(&self.forward, vec![x; n], grid));
        let (b, c) = (b?, c?);
        let line = |i: usize| (!self.is_kept(i)).then(|| Line::new(c[i] - b[i], b[i], grid)).transpose();
        (0..n).map(line).collect()
    }

    /// How x is cut, and the grid of the functions' values.
    fn cut(&self, grid: &Grid) -> (Cut, Grid) {
        match self.pieces {
            // In f32 neighbouring numbers x near 1 would be equal.
            Pieces::Unit(beyond) => {
                let grade = GRADE.max(grid.to.saturating_sub(GRADED));
                let beyond = beyond.map(|d| (d / unit(grid.from)).max(1.).log2() as u32);
                (Cut::Graded { bits: grid.from, beyond, grade }, Grid { dtype: DType::F64, ..*grid })
            }
            Pieces::Curve(width) => (Cut::Even(length(width, grid)), Grid { ..*grid }),
            Pieces::Shift | Pieces::Line => unreachable!("they are not cut"),
        }
    }

    /// The values at both ends of curves' pieces.
    fn curves(&self, pieces: &[Part], grid: &Grid) -> Result<Vec<[i64; 2]>> {
        let values = |x: fn(&Part) -> i64| {
            self.at(&self.forward, pieces.iter().map(|p| x(p) as f64 * unit(grid.from)).collect(), grid)
        };
        let ends = values(|p| p.x)?.into_iter().zip(values(|p| p.x + p.n)?);
        let round = |z: f64| match self.pieces {
            Pieces::Unit(_) => round(z.clamp(-FARTHEST, FARTHEST), grid.to),
            _ => round(z, grid.to),
        };
        ends.map(|(a, b)| Ok([round(a)?, round(b)?])).collect()
    }

    pub(super) fn encode(&self, x: &mut [i64], grid: &Grid, stack: &mut Stack) -> Result<()> {
        let n = x.len();
        match self.pieces {
            Pieces::Shift => {
                let t = self.shifts(n, grid)?;
                self.changed(n).for_each(|i| x[i] += t[i]);
            }
            Pieces::Line => {
                for (x, line) in x.iter_mut().zip(self.lines(n, grid)?) {
                    *x = line.map_or(Ok(*x), |line| line.encode(*x, stack))?;
                }
            }
            Pieces::Curve(_) | Pieces::Unit(_) => {
                let (cut, grid) = self.cut(grid);
                let parts: Vec<Part> = x.iter().map(|&x| cut.at(x)).collect();
                let ends = self.curves(&parts, &grid)?;
                for i in self.changed(n) {
                    if !parts[i].holds(x[i]) {
                        bail!(
                            "{} is outside of [0, 1), where the layer is defined",
                            x[i] as f64 * unit(grid.from)
                        );
                    }
                    x[i] = increasing(parts[i], ends[i])?.encode(x[i], stack);
                }
            }
        }
        Ok(())
    }

    pub(super) fn decode(&self, z: &mut [i64], grid: &Grid, stack: &mut Stack) -> Result<()> {
        let n = z.len();
        match self.pieces {
            Pieces::Shift => {
                let t = self.shifts(n, grid)?;
                self.changed(n).for_each(|i| z[i] -= t[i]);
            }
            Pieces::Line => {
                for (z, line) in z.iter_mut().zip(self.lines(n, grid)?).rev() {
                    *z = line.map_or(Ok(*z), |line| line.decode(*z, stack))?;
                }
            }
            Pieces::Curve(_) | Pieces::Unit(_) => {
                let (cut, grid) = self.cut(grid);
                let (parts, ends) = self.find(z, cut, &grid)?;
                for i in self.changed(n).rev() {
                    z[i] = increasing(parts[i], ends[i])?.decode(z[i], stack);
                }
            }
        }
        Ok(())
    }

    /// The pieces of curves that hold z: those of the inverse, or of their neighbours where it is not exact.
    fn find(&self, z: &[i64], cut: Cut, grid: &Grid) -> Result<(Vec<Part>, Vec<[i64; 2]>)> {
        let n = z.len();
        let x = self.at(&self.inverse, z.iter().map(|&z| z as f64 * unit(grid.to)).collect(), grid)?;
        let first = |(i, &x): (usize, &f64)| if self.is_kept(i) { Ok(0) } else { round(x, grid.from) };
        let x: Vec<i64> = x.iter().enumerate().map(first).collect::<Result<_>>()?;
        let mut parts: Vec<Part> = x.into_iter().map(|x| cut.at(x)).collect();
        for _ in 0..OFF {
            let ends = self.curves(&parts, grid)?;
            let mut found = true;
            for i in self.changed(n) {
                let Part { x, n } = parts[i];
                let to = if z[i] < ends[i][0] {
                    x - 1
                } else if z[i] >= ends[i][1] {
                    x + n
                } else {
                    continue;
                };
                parts[i] = cut.at(to);
                found = false;
            }
            if found {
                return Ok((parts, ends));
            }
        }
        bail!("its inverse is off by more than {OFF} pieces")
    }
}

/// A piece of the axis of x: its first number, and how many it has.
#[derive(Clone, Copy)]
struct Part {
    x: i64,
    n: i64,
}

impl Part {
    fn holds(&self, x: i64) -> bool {
        (self.x..self.x + self.n).contains(&x)
    }
}

/// How the axis of x is cut.
#[derive(Clone, Copy)]
enum Cut {
    /// Into pieces of 2^length numbers.
    Even(u32),
    /// The 2^bits numbers of [0, 1) into pieces of at most 2^-grade of the distance from where the function would be infinite, which
    /// is some 2^beyond numbers below 0 and above 1.
    Graded { bits: u32, beyond: [u32; 2], grade: u32 },
}

impl Cut {
    /// The piece that holds x, or the outermost one.
    fn at(self, x: i64) -> Part {
        match self {
            Self::Even(length) => Part { x: x >> length << length, n: 1 << length },
            Self::Graded { bits, beyond, grade } => {
                let all = 1i64 << bits;
                let x = x.clamp(0, all - 1);
                let upper = x >= all / 2;
                let away = if upper { all - 1 - x } else { x };
                // From one power of 2 to the next pieces are of one length, which divides both; those of either half end in the middle.
                let distance = away.max(1).ilog2().max(beyond[usize::from(upper)]).min(bits - 2);
                let length = distance.saturating_sub(grade);
                let (start, n) = (away >> length << length, 1 << length);
                Part { x: if upper { all - start - n } else { start }, n }
            }
        }
    }
}

/// The length of a curve's pieces as a power of 2.
fn length(width: f64, grid: &Grid) -> u32 {
    (width / unit(grid.from)).log2().round().clamp(0., 24.) as u32
}

fn increasing(part: Part, ends: [i64; 2]) -> Result<Piece> {
    if ends[1] < ends[0] {
        bail!("its function is not increasing");
    }
    Piece::new(part.x, part.n as u64, ends)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn graded_pieces_lie_side_by_side() {
        for beyond in [[0, 0], [8, 0], [3, 11]] {
            let cut = Cut::Graded { bits: 12, beyond, grade: 5 };
            let (all, mut x, mut lengths) = (1 << 12, 0, Vec::new());
            while x < all {
                let part = cut.at(x);
                assert_eq!(part.x, x);
                for inside in x..x + part.n {
                    let other = cut.at(inside);
                    assert_eq!((other.x, other.n), (part.x, part.n), "{inside}");
                }
                lengths.push(part.n);
                x += part.n;
            }
            assert_eq!(x, all);
            let ends = [lengths[0], lengths[lengths.len() - 1]];
            assert_eq!(ends, beyond.map(|g: u32| 1 << g.saturating_sub(5).min(5)), "{beyond:?}");
            assert_eq!(lengths.iter().max(), Some(&32));
            assert_eq!((cut.at(-1).x, cut.at(all).x), (0, all - ends[1]));
        }
    }
}
