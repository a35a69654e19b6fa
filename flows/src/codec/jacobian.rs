//! A layer of few dimensions that does not say what it is, by its Jacobian: local bits-back coding as in algorithm 1 of Ho et al.
//!
//! ```text
//! pop z ~ N(f(x), s^2 J J^T),     push x under N(f^-1(z), s^2 I)
//! ```
//!
//! for small s. With J = L Q, L lower triangular, z has independent noise once L is solved for it, row by row. Noise is drawn as
//! whole numbers of a finer grid, and a line takes it to those of z.

use super::pieces::{Grid, Line, unit};
use super::stack::Stack;
use super::table::Table;
use super::way::{Way, numbers, tensor};
use crate::core::{Bijection, Context, Ctx, Gradients, Memory, forward, inverse, zeros_per_example};
use crate::priors::Standard;
use candle_core::{DType, Device, Result, Tensor, bail};

/// The most dimensions: there is a backward pass of the layer for each.
const MOST: usize = 256;

/// s in units of the numbers of z, so that it is large beside their rounding; and the least, beside that of f32.
const SIGMA: f64 = 32.;
const LEAST: f64 = 1. / 8192.;

/// Bits of the noise.
const NOISE: u32 = 16;

/// A layer and the grid of its numbers.
pub(super) struct Jacobian<'a> {
    f: &'a dyn Bijection,
    grid: Grid,
    table: Table,
    /// s.
    sigma: f64,
}

impl<'a> Jacobian<'a> {
    pub(super) fn new(f: &'a dyn Bijection, dims: usize, bits: u32, dtype: DType) -> Result<Self> {
        if dims > MOST {
            bail!(
                "this layer does not say how it is compressed (Bijection::coding), and {dims} dimensions are too many for its \
                 Jacobian, at most {MOST}"
            );
        }
        let grid = Grid { from: NOISE, to: bits, dtype };
        let sigma = (SIGMA * unit(bits)).max(LEAST);
        Ok(Self { f, grid, table: Table::new(Standard::Gaussian)?, sigma })
    }

    fn real(&self, v: &[i64], shape: &[usize]) -> Result<Tensor> {
        let v: Vec<f64> = v.iter().map(|&x| x as f64 * unit(self.grid.to)).collect();
        Tensor::from_vec(v, shape, &Device::Cpu)?.to_dtype(self.grid.dtype)
    }

    fn host(t: &Tensor) -> Result<Vec<f64>> {
        t.to_dtype(DType::F64)?.flatten_all()?.to_vec1()
    }

    /// f(x) and L, row by row.
    fn local(&self, x: &Tensor, context: Context) -> Result<(Vec<f64>, Vec<Vec<f64>>)> {
        let ctx = Ctx::eval().with_context(context);
        let mean = Self::host(&forward(self.f, x, ctx)?.0)?;
        let d = mean.len();
        let (mut directions, mut rows): (Vec<Vec<f64>>, Vec<Vec<f64>>) = (Vec::new(), Vec::new());
        for i in 0..d {
            let (z, _, saved) = self.f.forward_saved(x, ctx, Memory::Store)?;
            let mut of_z = vec![0f64; d];
            of_z[i] = 1.;
            let gz = Tensor::from_vec(of_z, z.shape(), &Device::Cpu)?.to_dtype(z.dtype())?;
            let zero = zeros_per_example(&z)?;
            let (_, gx) = self.f.backward(&z, saved, (&gz, &zero), ctx, &mut Gradients::default())?;
            // Gram-Schmidt, twice: row i of J in the directions of those before, and what is left.
            let (mut left, mut row) = (Self::host(&gx)?, vec![0.; i + 1]);
            for _ in 0..2 {
                for (l, q) in row.iter_mut().zip(&directions) {
                    let dot: f64 = left.iter().zip(q).map(|(a, b)| a * b).sum();
                    left.iter_mut().zip(q).for_each(|(a, b)| *a -= dot * b);
                    *l += dot;
                }
            }
            row[i] = left.iter().map(|a| a * a).sum::<f64>().sqrt();
            left.iter_mut().for_each(|a| *a /= row[i]);
            directions.push(left);
            rows.push(row);
        }
        Ok((mean, rows))
    }

    /// The line from the noise of dimension i to z_i, given those before.
    fn line(&self, i: usize, mean: &[f64], rows: &[Vec<f64>], noise: &[f64]) -> Result<Line> {
        let b = rows[i][..i].iter().zip(noise).fold(mean[i], |b, (l, e)| b + self.sigma * l * e);
        Line::new(self.sigma * rows[i][i], b, &self.grid)
    }

    /// The noise that z stands for, up to its rounding.
    fn noise(&self, z: &[i64], mean: &[f64], rows: &[Vec<f64>]) -> Vec<f64> {
        let mut noise: Vec<f64> = Vec::with_capacity(z.len());
        for (i, z) in z.iter().enumerate() {
            let b = rows[i].iter().zip(&noise).fold(mean[i], |b, (l, e)| b + self.sigma * l * e);
            noise.push((*z as f64 * unit(self.grid.to) - b) / (self.sigma * rows[i][i]));
        }
        noise
    }

    /// The lines from noise to x, given z.
    fn back(&self, z: &Tensor, context: Context) -> Result<(Vec<Line>, Vec<usize>)> {
        let v = numbers(z)?;
        let x = inverse(self.f, &self.real(&v, z.dims())?, context)?;
        let lines = Self::host(&x)?.into_iter().map(|x| Line::new(self.sigma, x, &self.grid));
        Ok((lines.collect::<Result<_>>()?, x.dims().to_vec()))
    }

    fn pop(&self, line: Line, stack: &mut Stack) -> Result<i64> {
        let e = stack.pop_standard(NOISE, &self.table)?;
        line.encode(e, stack)
    }

    fn push(&self, line: Line, x: i64, stack: &mut Stack) -> Result<()> {
        let e = line.decode(x, stack)?;
        stack.push_standard(e, NOISE, &self.table);
        Ok(())
    }

    pub(super) fn encode(&self, x: &Tensor, way: &mut Way) -> Result<Tensor> {
        let v = numbers(x)?;
        let at = self.real(&v, x.dims())?;
        let (mean, rows) = self.local(&at, way.context)?;
        let shape = forward(self.f, &at, Ctx::eval().with_context(way.context))?.0.dims().to_vec();
        let mut z: Vec<i64> = Vec::with_capacity(v.len());
        for i in 0..v.len() {
            let noise = self.noise(&z, &mean, &rows);
            z.push(self.pop(self.line(i, &mean, &rows, &noise)?, way.stack)?);
        }
        let z = tensor(z, &shape)?;
        let (lines, _) = self.back(&z, way.context)?;
        for (line, x) in lines.into_iter().zip(v).rev() {
            self.push(line, x, way.stack)?;
        }
        Ok(z)
    }

    pub(super) fn decode(&self, z: &Tensor, way: &mut Way) -> Result<Tensor> {
        let (lines, shape) = self.back(z, way.context)?;
        let x = lines.into_iter().map(|line| self.pop(line, way.stack)).collect::<Result<Vec<_>>>()?;
        let (mean, rows) = self.local(&self.real(&x, &shape)?, way.context)?;
        let z = numbers(z)?;
        let noise = self.noise(&z, &mean, &rows);
        for i in (0..z.len()).rev() {
            self.push(self.line(i, &mean, &rows, &noise)?, z[i], way.stack)?;
        }
        tensor(x, &shape)
    }
}
