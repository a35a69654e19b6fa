//! Learning rate and length of a run, and which settings are possible.

use super::progress::StoppedBy;
use crate::data::Dataset;
use crate::ranks::Ranks;
use crate::recipe::{Schedule, Train};
use anyhow::{Result, ensure};
use candle_core::Device;
use flows::ops::precision::Precision;

/// The learning rate of update `update`, counted from 0, of `total`.
pub(super) fn rate(t: &Train, update: u64, total: Option<u64>) -> f64 {
    let u = update as f64;
    let lr = match t.schedule {
        Schedule::Constant => t.lr,
        Schedule::Divide { factor, min } => (t.lr / factor.powf(u)).max(min),
        Schedule::Cosine { end } => {
            let last = total.map_or(1., |n| n.saturating_sub(1).max(1) as f64);
            let share = 0.5 * (1. + (std::f64::consts::PI * (u / last).min(1.)).cos());
            t.lr * (end + (1. - end) * share)
        }
    };
    // The images of the present batch count as seen, so that the first update has a rate above zero.
    let seen = (update + 1) as f64 * t.batch as f64;
    let lr = if t.warmup_images == 0 { lr } else { lr * (seen / t.warmup_images as f64).min(1.) };
    t.lower.filter(|lower| update >= lower.after).map_or(lr, |lower| lr * lower.factor)
}

/// The planned number of updates, and which setting it comes from.
pub(super) fn planned(t: &Train, images: usize) -> Option<(u64, StoppedBy)> {
    let epochs = t.epochs.map(|e| ((e * images as f64 / t.batch as f64).ceil() as u64, StoppedBy::Epochs));
    let updates = t.updates.map(|u| (u, StoppedBy::Updates));
    [updates, epochs].into_iter().flatten().min_by_key(|(n, _)| *n)
}

/// Refuses a precision in which `device` cannot train.
///
/// # Errors
/// For "tf32", which only GPUs have, on a CPU.
pub fn check_precision(t: &Train, device: &Device) -> Result<()> {
    ensure!(
        t.precision != Precision::Tf32 || !device.is_cpu(),
        "`train.precision` = \"tf32\" is for GPUs: set it to \"bf16\" or \"full\", or give --device cuda:0"
    );
    Ok(())
}

/// Refuses settings that no run can have.
pub(super) fn check(t: &Train, data: &Dataset, device: &Device, ranks: &dyn Ranks) -> Result<()> {
    check_precision(t, device)?;
    t.check_counts()?;
    ensure!(
        t.batch >= ranks.size(),
        "`train.batch` = {} is less than the {} processes that share it out: raise it, or start fewer",
        t.batch,
        ranks.size()
    );
    ensure!(!data.train.is_empty(), "the training set is empty: lower `data.validation`");
    ensure!(
        data.train.is_pixels() || !(t.hflip || t.shift > 0.),
        "`train.hflip` and `train.shift` vary images, and `{}` has vectors: drop them",
        data.name
    );
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::recipe::Lower;
    use crate::train::tests::recipe;

    #[test]
    fn schedules_are_their_equations() {
        let mut t = recipe().train;
        t.warmup_images = 0;
        t.schedule = Schedule::Constant;
        assert_eq!(rate(&t, 1000, None), 1e-3);
        t.schedule = Schedule::Divide { factor: 1.0005, min: 1e-4 };
        assert_eq!(rate(&t, 0, None), 1e-3);
        assert!((rate(&t, 1000, None) - 1e-3 / 1.0005f64.powi(1000)).abs() < 1e-15);
        assert_eq!(rate(&t, 100_000, None), 1e-4);
        t.schedule = Schedule::Cosine { end: 0.1 };
        assert_eq!(rate(&t, 0, Some(11)), 1e-3);
        assert!((rate(&t, 5, Some(11)) - 0.55e-3).abs() < 1e-15);
        assert!((rate(&t, 10, Some(11)) - 1e-4).abs() < 1e-15);
        t.schedule = Schedule::Constant;
        t.warmup_images = 28;
        let ramp: Vec<f64> = (0..5).map(|u| rate(&t, u, None) / 1e-3).collect();
        assert_eq!(ramp, [0.25, 0.5, 0.75, 1., 1.]);
        t.lower = Some(Lower { after: 2, factor: 0.5 });
        let ramp: Vec<f64> = (0..5).map(|u| rate(&t, u, None) / 1e-3).collect();
        assert_eq!(ramp, [0.25, 0.5, 0.375, 0.5, 0.5]);
    }

    #[test]
    fn a_processor_has_bf16_and_no_tf32() {
        let mut t = recipe().train;
        for (precision, refused) in
            [(Precision::Full, false), (Precision::Bf16, false), (Precision::Tf32, true)]
        {
            t.precision = precision;
            let checked = check_precision(&t, &Device::Cpu);
            assert_eq!(checked.is_err(), refused, "{precision}");
            assert!(checked.err().is_none_or(|e| e.to_string().contains("\"bf16\" or \"full\"")));
        }
    }

    #[test]
    fn whichever_limit_comes_first() {
        let mut t = recipe().train;
        assert_eq!(planned(&t, 40), Some((12, StoppedBy::Updates)));
        t.epochs = Some(1.5);
        assert_eq!(planned(&t, 40), Some((9, StoppedBy::Epochs)));
        t.updates = Some(8);
        assert_eq!(planned(&t, 40), Some((8, StoppedBy::Updates)));
        (t.updates, t.epochs) = (None, None);
        assert_eq!(planned(&t, 40), None);
    }
}
