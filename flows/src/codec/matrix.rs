//! A matrix: its factors one after the other, W = P L D U with unit triangular L and U.
//!
//! A unit triangular factor adds to a channel a rounded sum of channels that it has not changed yet, or has changed back already on
//! the way back: whole numbers become whole numbers without a bit. So only D costs and draws bits, log2 |det W| for each position
//! (section 3.4.3 of Ho et al. has the same factors). They are computed once, in f64.

use super::pieces::{Grid, Line, round, whole};
use super::stack::Stack;
use crate::ops::linalg::{self, lu};
use candle_core::{DType, Result, Tensor, bail};

/// The factors of a matrix, and what is subtracted before.
pub(super) struct Matrix {
    n: usize,
    /// L below the diagonal, D on it, U above.
    factors: Vec<f64>,
    /// Row i of L D U gives channel `rows[i]`.
    rows: Vec<usize>,
    shift: Vec<i64>,
    lines: Vec<Line>,
}

impl Matrix {
    /// For numbers of these bits.
    pub(super) fn new(weight: &Tensor, shift: Option<&Tensor>, bits: u32) -> Result<Self> {
        let (host, n) = linalg::to_host(weight)?;
        let factored = lu(&host, n)?;
        let mut factors = factored.packed;
        for (i, row) in factors.chunks_exact_mut(n).enumerate() {
            let pivot = row[i];
            row[i + 1..].iter_mut().for_each(|u| *u /= pivot);
        }
        let shift = match shift {
            Some(shift) => shift.to_dtype(DType::F64)?.to_vec1::<f64>()?,
            None => vec![0.; n],
        };
        let shift = shift.into_iter().map(|t| round(t, bits)).collect::<Result<_>>()?;
        let grid = Grid { from: bits, to: bits, dtype: DType::F64 };
        let lines = (0..n).map(|i| Line::new(factors[i * n + i], 0., &grid)).collect::<Result<_>>()?;
        Ok(Self { n, factors, rows: factored.rows, shift, lines })
    }

    /// Adds to row i of x, (C, positions), or subtracts, what the rows `others` have to do with it.
    fn add(&self, x: &mut [i64], i: usize, others: std::ops::Range<usize>, sign: i64) -> Result<()> {
        let positions = x.len() / self.n;
        let mut sum = vec![0f64; positions];
        for j in others {
            let factor = self.factors[i * self.n + j];
            for (sum, &x) in sum.iter_mut().zip(&x[j * positions..][..positions]) {
                *sum += factor * x as f64;
            }
        }
        for (x, sum) in x[i * positions..][..positions].iter_mut().zip(sum) {
            *x += sign * whole(sum)?;
        }
        Ok(())
    }

    fn check(&self, x: &[i64]) -> Result<usize> {
        if !x.len().is_multiple_of(self.n) {
            bail!("a matrix of {} channels was given {} numbers", self.n, x.len());
        }
        Ok(x.len() / self.n)
    }

    pub(super) fn encode(&self, x: &mut [i64], stack: &mut Stack) -> Result<()> {
        let (n, positions) = (self.n, self.check(x)?);
        x.chunks_exact_mut(positions).zip(&self.shift).for_each(|(x, t)| x.iter_mut().for_each(|x| *x -= t));
        for i in 0..n {
            self.add(x, i, i + 1..n, 1)?;
        }
        for (x, line) in x.chunks_exact_mut(positions).zip(&self.lines) {
            for x in x {
                *x = line.encode(*x, stack)?;
            }
        }
        for i in (0..n).rev() {
            self.add(x, i, 0..i, 1)?;
        }
        let y = x.to_vec();
        for (y, &row) in y.chunks_exact(positions).zip(&self.rows) {
            x[row * positions..][..positions].copy_from_slice(y);
        }
        Ok(())
    }

    pub(super) fn decode(&self, z: &mut [i64], stack: &mut Stack) -> Result<()> {
        let (n, positions) = (self.n, self.check(z)?);
        let y = z.to_vec();
        for (z, &row) in z.chunks_exact_mut(positions).zip(&self.rows) {
            z.copy_from_slice(&y[row * positions..][..positions]);
        }
        for i in 0..n {
            self.add(z, i, 0..i, -1)?;
        }
        for (z, line) in z.chunks_exact_mut(positions).zip(&self.lines).rev() {
            for z in z.iter_mut().rev() {
                *z = line.decode(*z, stack)?;
            }
        }
        for i in (0..n).rev() {
            self.add(z, i, i + 1..n, -1)?;
        }
        z.chunks_exact_mut(positions).zip(&self.shift).for_each(|(z, t)| z.iter_mut().for_each(|z| *z += t));
        Ok(())
    }
}
