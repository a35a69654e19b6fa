//! `flow reconstruct`: how exactly images come back from their latents.

use super::pictures::{Shown, listed};
use crate::draw::sheet::{Cell, Sheet};
use crate::session::{Session, brief, doubles, host, largest, mean, pooled};
use anyhow::{Result, ensure};
use candle_core::Tensor;
use clap::Args;
use flows::Context;
use flows::latents::{self, Reconstruction};
use serde_json::json;

/// Images in a picture of `reconstruct`.
const SHOWN: usize = 8;

/// `reconstruct`.
#[derive(Args)]
pub struct ReconstructArgs {
    #[command(flatten)]
    shown: Shown,
    /// Number of images to measure if none is named; the first few are drawn.
    #[arg(short, long = "number", default_value_t = 100)]
    n: usize,
}

/// The largest error of each level over all examples, from (B, levels).
pub fn largest_by_level(level_error: &Tensor) -> Result<Vec<f64>> {
    (0..level_error.dim(1)?).map(|l| Ok(largest(&doubles(&level_error.narrow(1, l, 1)?)?))).collect()
}

/// Where the bits of images are, as grey bytes: black is the position with the fewest bits and white that with the most of its image;
/// and both numbers of each image. `each` gives bits (B, H, W) in f64.
pub fn heat(each: &Tensor) -> Result<Vec<(Vec<u8>, f64, f64)>> {
    let area: usize = each.dims()[1..].iter().product();
    let grey = |bits: &[f64]| {
        let (low, high) =
            bits.iter().fold((f64::INFINITY, f64::NEG_INFINITY), |(l, h), b| (l.min(*b), h.max(*b)));
        let share = 255. / (high - low).max(f64::MIN_POSITIVE);
        (bits.iter().map(|b| ((b - low) * share).round() as u8).collect(), low, high)
    };
    Ok(doubles(each)?.chunks_exact(area).map(grey).collect())
}

/// Encodes and decodes images and measures what is off, by image and by level.
///
/// # Errors
/// When the images are not the model's or the picture cannot be written.
pub fn run(args: &ReconstructArgs) -> Result<()> {
    let (s, shape) = Session::sheet(&args.shown.grid, "reconstruct")?;
    ensure!(args.n > 0, "-n 0: measure at least one image");
    let picked = s.images(&args.shown.images, args.n)?;
    pooled(|| {
        let of_batch = |x: &Tensor, cond: Context| Ok(latents::reconstruct(&s.model, x, cond)?);
        let all = s.batched(&picked.x, &picked.given, of_batch)?;
        let joined =
            |of: fn(&Reconstruction) -> &Tensor| Tensor::cat(&all.iter().map(of).collect::<Vec<_>>(), 0);
        let (back, error) = (joined(|r| &r.x)?, joined(|r| &r.error)?);
        let level_error = joined(|r| &r.level_error)?;
        let errors = doubles(&error)?;
        let by_level = largest_by_level(&level_error)?;
        let worst = largest(&errors);
        // Bytes are what a file holds; a value that is off by a rounding error may fall below an integer.
        let (given, again) = (s.bytes(&picked.x)?, s.bytes(&back)?);
        let exact = given.iter().zip(&again).filter(|(a, b)| a == b).count();

        let shown = picked.names.len().min(SHOWN);
        let first = |t: &Tensor| t.narrow(0, 0, shown);
        let off = (first(&back)? - first(&picked.x)?)?;
        // The largest difference is white; black is none.
        let peak = largest(&doubles(&off.abs()?)?).max(f64::MIN_POSITIVE);
        let off = host(&(off.abs()? * (255. / peak))?)?;
        let dims: usize = shape.iter().product();
        let differences = off
            .chunks_exact(dims)
            .zip(&errors)
            .map(|(v, e)| Cell::new(v.iter().map(|v| v.clamp(0., 255.) as u8).collect(), brief(*e)));
        let given = picked.given.turns(shown)?;
        let bits = latents::bits_by_position(&s.model, &first(&picked.x)?, given.context())?;
        let maps = heat(&bits)?.into_iter().map(|(grey, low, high)| {
            Cell::new(grey.repeat(shape[0]), format!("{} to {}", brief(low), brief(high)))
        });
        let (n, off, levels, average) = (errors.len(), brief(worst), listed(&by_level), brief(mean(&errors)));
        let sheet = Sheet {
            notes: vec![
                format!("largest error of {n} images: {off} of a grey level"),
                format!("largest error of latents by level: {levels}"),
            ],
            columns: picked.names.iter().take(shown).cloned().collect(),
            rows: [
                "image",
                "decoded",
                &format!("difference,\nwhite is\n{}", brief(peak)),
                "bits of each\nposition",
            ]
            .map(str::to_owned)
            .into(),
            cells: vec![
                s.cells(&first(&picked.x)?)?,
                s.cells(&first(&back)?)?,
                differences.collect(),
                maps.collect(),
            ],
            ..s.blank(&args.shown.grid, "From latents back")?
        };
        sheet.write(s.draft.drawn())?;
        let figures = json!({
            "images": n, "max_error": worst, "mean_error": mean(&errors), "exact_images": exact,
            "max_error_by_level": by_level,
        });
        let lines = [format!(
            "{n} images: off by at most {off} of a grey level ({average} on average of an image's largest), {exact} come back to \
             the byte; latents by level off by at most {levels}"
        )];
        let tensors = vec![
            ("images", picked.x),
            ("decoded", back),
            ("error", error),
            ("level_error", level_error),
            ("bits_by_position", bits),
        ];
        s.finish(figures, tensors, &lines)
    })
}
