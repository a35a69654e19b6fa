//! The parts of a PLU factorisation that are not trained.

use candle_core::{Result, Tensor, bail};

/// The parts that are not trained: the order of the rows and the signs of U's diagonal.
pub struct Rows {
    pub(crate) perm: Vec<u32>,
    pub(crate) sign: Vec<f64>,
    /// The permutation, its inverse and the signs where kernels find them.
    pub(crate) there: [Tensor; 3],
}

impl Rows {
    /// Row r of W is row `perm[r]` of L U; `like` says where W is and in which dtype.
    ///
    /// # Errors
    /// If `perm` is no permutation, or there are more or fewer signs.
    pub fn new(perm: Vec<u32>, sign: Vec<f64>, like: &Tensor) -> Result<Self> {
        let mut place = vec![u32::MAX; perm.len()];
        for (r, &i) in perm.iter().enumerate() {
            match place.get_mut(i as usize) {
                Some(p) if *p == u32::MAX => *p = r as u32,
                _ => bail!("{perm:?} is no permutation"),
            }
        }
        if sign.len() != perm.len() {
            bail!("{} rows have {} signs", perm.len(), sign.len());
        }
        let to = like.device();
        let signs = Tensor::new(sign.as_slice(), to)?.to_dtype(like.dtype())?;
        let there = [Tensor::new(perm.as_slice(), to)?, Tensor::new(place, to)?, signs];
        Ok(Self { perm, sign, there })
    }
}
