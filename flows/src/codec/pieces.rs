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

    /// The pieces with these numbers of curves whose pieces have 2^length elements.
    fn curves(&self, l: &[i64], length: u32, grid: &Grid) -> Result<Vec<[i64; 2]>> {
        let ends = |add: i64| -> Result<Vec<f64>> {
            let x = l.iter().map(|l| ((l + add) << length) as f64 * unit(grid.from)).collect();
            self.at(&self.forward, x, grid)
        };
        let round = |z: f64| round(z, grid.to);
        ends(0)?.into_iter().zip(ends(1)?).map(|(a, b)| Ok([round(a)?, round(b)?])).collect()
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
            Pieces::Curve(width) => {
                let length = length(width, grid);
                let l: Vec<i64> = x.iter().map(|x| x >> length).collect();
                let ends = self.curves(&l, length, grid)?;
                for i in self.changed(n) {
                    x[i] = increasing(l[i], length, ends[i])?.encode(x[i], stack);
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
            Pieces::Curve(width) => {
                let length = length(width, grid);
                let (l, ends) = self.find(z, length, grid)?;
                for i in self.changed(n).rev() {
                    z[i] = increasing(l[i], length, ends[i])?.decode(z[i], stack);
                }
            }
        }
        Ok(())
    }

    /// The pieces of curves that hold z: those of the inverse, or of their neighbours where it is not exact.
    fn find(&self, z: &[i64], length: u32, grid: &Grid) -> Result<(Vec<i64>, Vec<[i64; 2]>)> {
        let n = z.len();
        let x = self.at(&self.inverse, z.iter().map(|&z| z as f64 * unit(grid.to)).collect(), grid)?;
        let first = |(i, &x): (usize, &f64)| if self.is_kept(i) { Ok(0) } else { round(x, grid.from) };
        let x: Vec<i64> = x.iter().enumerate().map(first).collect::<Result<_>>()?;
        let mut l: Vec<i64> = x.iter().map(|x| x >> length).collect();
        for _ in 0..OFF {
            let ends = self.curves(&l, length, grid)?;
            let mut found = true;
            for i in self.changed(n) {
                let step = i64::from(z[i] >= ends[i][1]) - i64::from(z[i] < ends[i][0]);
                l[i] += step;
                found &= step == 0;
            }
            if found {
                return Ok((l, ends));
            }
        }
        bail!("its inverse is off by more than {OFF} pieces of 2^{length} numbers")
    }
}

/// The length of a curve's pieces as a power of 2.
fn length(width: f64, grid: &Grid) -> u32 {
    (width / unit(grid.from)).log2().round().clamp(0., 24.) as u32
}

fn increasing(l: i64, length: u32, ends: [i64; 2]) -> Result<Piece> {
    if ends[1] < ends[0] {
        bail!("its function is not increasing");
    }
    Piece::new(l << length, 1 << length, ends)
}
