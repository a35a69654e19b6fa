//! The sides of a level of a paper's model.

use candle_core::{Result, bail};

/// The shape [C, H, W] of an image whose sides are squeezed at level `i` of `n`. For the error message, `level` is the config's word for
/// a level, and `fewer` a number of levels that would need no squeeze here (0: none).
pub(super) fn squeezed(
    [c, h, w]: [usize; 3],
    level: &str,
    (i, n): (usize, usize),
    fewer: usize,
) -> Result<[usize; 3]> {
    if h % 2 != 0 || w % 2 != 0 {
        let remedy = if fewer > 0 { format!("use `{level}s = {fewer}`, or ") } else { String::new() };
        bail!(
            "cannot squeeze {h}x{w} at {level} {} of {n}: both sides must be even; {remedy}crop or resize the images",
            i + 1
        );
    }
    Ok([4 * c, h / 2, w / 2])
}
