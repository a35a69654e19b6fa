//! The settings of a mixture.

/// A mixture's settings.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct MixtureSpec {
    /// Components K.
    pub components: usize,
}

/// The largest |log s| and |a|.
pub(crate) const LARGEST_LOG_SCALE: f64 = 7.;

/// The most steps of the inverse: a third of them halve a bracket below any tolerance, and Newton's method needs about ten.
pub(crate) const MOST_STEPS: usize = 300;

impl MixtureSpec {
    /// 3 K + 2: the numbers of an element.
    pub fn params(&self) -> usize {
        3 * self.components + 2
    }

    /// g_k, the factor of a mean.
    pub(crate) fn mean_factor(&self, k: usize) -> f64 {
        let size = (k + 1) as f64 / self.components as f64;
        if k.is_multiple_of(2) { size } else { -size }
    }
}
