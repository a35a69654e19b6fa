//! Tables of probabilities: of the bins of a standard distribution, and of a few things to choose from.

use crate::priors::Standard;
use candle_core::{Error, Result};
use constriction::stream::model::ContiguousCategoricalEntropyModel;

/// Bits of a probability.
pub(super) const PRECISION: usize = 24;

/// The probability of each of a few, none of them 0.
pub(super) type Choice = ContiguousCategoricalEntropyModel<u32, Vec<u32>, PRECISION>;

/// The choice with these probabilities, of which only the ratios matter.
pub(super) fn choice(probabilities: &[f64]) -> Result<Choice> {
    ContiguousCategoricalEntropyModel::from_floating_point_probabilities_fast(probabilities, None)
        .map_err(|()| {
            Error::msg(
                "a probability of the prior is no number: its parameters are out of range, or this example is far from what the \
                 model was trained on",
            )
        })
}

/// The narrowest bins of a standard distribution are 2^-6 wide, within which its density is taken as constant: that costs 10^-5
/// nats.
const BIN: u32 = 6;

/// Bits of a number that lies outside of even bins.
pub(super) const FAR: u32 = 56;

/// Where relative bins end: 2^40, which numbers do not reach.
const OCTAVES: u32 = 40;

/// The bins of a standard distribution.
pub(super) struct Table {
    pub(super) bins: Choice,
    cut: Cut,
}

/// How the line is cut into bins.
enum Cut {
    /// All of one width, from minus this to this, and one more at each end for all that is beyond.
    Even(i64),
    /// As wide as numbers are large: 64 from 0 to 1 and in each octave from there, once for numbers from 0 on and once for those
    /// below. It suits heavy tails.
    Relative,
}

impl Table {
    pub(super) fn new(standard: Standard) -> Result<Self> {
        let even = |reach: i64, density: fn(f64) -> f64| -> Result<Self> {
            let last = reach << BIN;
            let beyond = std::iter::once(1e-9);
            let inside = (-last..last).map(|i| mass(density, i as f64, 1.));
            let masses: Vec<f64> = beyond.clone().chain(inside).chain(beyond).collect();
            Ok(Self { bins: choice(&masses)?, cut: Cut::Even(reach) })
        };
        match standard {
            Standard::Gaussian => even(10, |x| (-0.5 * x * x).exp() / (2. * std::f64::consts::PI).sqrt()),
            Standard::Logistic => even(24, |x| (-x.abs()).exp() / (1. + (-x.abs()).exp()).powi(2)),
            Standard::StudentT(df) => {
                // Up to its constant.
                let density = |x: f64| (-0.5 * (df + 1.) * (x * x / df).ln_1p()).exp();
                let of_bin = |bin: u32| {
                    let e = octave(bin);
                    let width = f64::from(e).exp2();
                    mass(density, f64::from(bin - (e << BIN)) * width, width)
                };
                let masses: Vec<f64> = (0..(OCTAVES + 1) << BIN).flat_map(|bin| [of_bin(bin); 2]).collect();
                Ok(Self { bins: choice(&masses)?, cut: Cut::Relative })
            }
        }
    }

    /// The bin of a whole number of 2^-k, and its place there.
    pub(super) fn find(&self, z: i64, k: u32) -> (usize, u64) {
        let low = k - BIN;
        match self.cut {
            Cut::Even(reach) => {
                let (bin, last) = (z >> low, reach << BIN);
                if (-last..last).contains(&bin) {
                    ((bin + last) as usize + 1, (z & ((1 << low) - 1)) as u64)
                } else if bin < 0 {
                    (0, (-1 - z) as u64)
                } else {
                    (2 * last as usize + 1, z as u64)
                }
            }
            Cut::Relative => {
                let size = if z < 0 { !z } else { z } as u64;
                let e = ((size >> low) | 1).ilog2().saturating_sub(BIN);
                let bin = (size >> (low + e)) + u64::from(e << BIN);
                (2 * bin as usize + usize::from(z < 0), size & ((1 << (low + e)) - 1))
            }
        }
    }

    /// The bits of a place in a bin.
    pub(super) fn bits(&self, bin: usize, k: u32) -> u32 {
        match self.cut {
            Cut::Even(reach) if bin == 0 || bin as i64 == 2 * (reach << BIN) + 1 => FAR,
            Cut::Even(_) => k - BIN,
            Cut::Relative => k - BIN + octave(bin as u32 / 2),
        }
    }

    /// What [`Table::find`] found.
    pub(super) fn number(&self, bin: usize, place: u64, k: u32) -> i64 {
        match self.cut {
            Cut::Even(reach) => match (bin as i64, reach << BIN) {
                (0, _) => -1 - place as i64,
                (bin, last) if bin == 2 * last + 1 => place as i64,
                (bin, last) => ((bin - 1 - last) << (k - BIN)) | place as i64,
            },
            Cut::Relative => {
                let (below, bin) = (bin % 2 == 1, bin as u32 / 2);
                let e = octave(bin);
                let size = (i64::from(bin - (e << BIN)) << (k - BIN + e)) | place as i64;
                if below { !size } else { size }
            }
        }
    }
}

/// The octave of a relative bin, 0 up to 2.
fn octave(bin: u32) -> u32 {
    (bin >> BIN).saturating_sub(1)
}

/// The mass of a bin, its beginning and width in units of 2^-6, by Simpson's rule, whose error is below 10^-10 of a bin.
fn mass(density: impl Fn(f64) -> f64, at: f64, width: f64) -> f64 {
    let unit = 0.5f64.powi(BIN as i32);
    let (x, width) = (at * unit, width * unit);
    width / 6. * (density(x) + 4. * density(x + width / 2.) + density(x + width))
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Every number is in its bin, once, whatever the precision.
    #[test]
    fn a_number_is_found_again() {
        for standard in [Standard::Gaussian, Standard::Logistic, Standard::StudentT(1.5)] {
            let table = Table::new(standard).unwrap();
            for k in [12, 19, 28] {
                let ends = (0..52).flat_map(|e| [(1i64 << e) - 1, 1 << e, (1 << e) + 1]);
                for z in ends.flat_map(|z| [z, -z]).chain([0]).filter(|z| z.abs() < 1 << 52) {
                    let (bin, place) = table.find(z, k);
                    let bits = table.bits(bin, k);
                    assert!(bits <= FAR && place >> bits == 0, "{z} in {bin} at {place} of {bits} bits");
                    assert_eq!(table.number(bin, place, k), z, "{standard:?}");
                }
            }
        }
    }
}
