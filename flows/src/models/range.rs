//! Numbers of a config that no model can have, refused by their names.

use candle_core::{Result, bail};

/// Any size but the dimensions of an example, at most.
pub(super) const LARGEST_SIZE: usize = 1 << 24;

/// A size of at least `least`, in floating point so that no product overflows.
pub(super) fn at_least(name: &str, size: usize, least: usize) -> Result<f64> {
    if size < least {
        bail!("`{name}` = {size}: it must be at least {least}");
    }
    if size > LARGEST_SIZE {
        bail!("`{name}` = {size} is more than {LARGEST_SIZE}, which no model has: lower it");
    }
    Ok(size as f64)
}

/// A number above 0 and at most `most`.
pub(super) fn positive(name: &str, x: f64, most: f64) -> Result<()> {
    range(name, x, f64::MIN_POSITIVE, most)
}

/// A number from `least` to `most`, where `f64::MIN_POSITIVE` stands for above 0 and `f64::MAX` for finite.
pub(super) fn range(name: &str, x: f64, least: f64, most: f64) -> Result<()> {
    if (least..=most).contains(&x) {
        return Ok(());
    }
    let least = if least > 0. { "above 0".to_owned() } else { format!("from {least} on") };
    let most = if most < f64::MAX { format!("at most {most}") } else { "finite".to_owned() };
    bail!("`{name}` = {x}: it must be {least} and {most}")
}
