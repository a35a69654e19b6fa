//! `flow reconstruct`: how exactly images come back from their latents.

use crate::draw::sheet::{Cell, Sheet};
use crate::progress::go_on;
use crate::session::{BATCH, Grid, Images, Session, brief, doubles, host, largest, mean, pooled};
use anyhow::{Result, ensure};
use candle_core::Tensor;
use clap::Args;
use flows::latents;
use serde_json::json;

/// Images in a picture of `reconstruct`.
const SHOWN: usize = 8;

/// `reconstruct`.
#[derive(Args)]
pub struct ReconstructArgs {
    #[command(flatten)]
    grid: Grid,
    #[command(flatten)]
    images: Images,
    /// Number of images to measure if none is named; the first few are drawn.
    #[arg(short, long = "number", default_value_t = 100)]
    n: usize,
}

/// Encodes and decodes images and measures what is off, by image and by level.
///
/// # Errors
/// When the images are not the model's or the picture cannot be written.
pub fn run(args: &ReconstructArgs) -> Result<()> {
    let (s, shape) = Session::sheet(&args.grid, "reconstruct")?;
    ensure!(args.n > 0, "-n 0: measure at least one image");
    let picked = s.images(&args.images, args.n)?;
    pooled(|| {
        let (mut back, mut error, mut level_error) = (vec![], vec![], vec![]);
        for first in (0..picked.names.len()).step_by(BATCH) {
            go_on()?;
            let count = BATCH.min(picked.names.len() - first);
            let cond = picked.cond.as_ref().map(|c| c.narrow(0, first, count)).transpose()?;
            let r = latents::reconstruct(&s.model, &picked.x.narrow(0, first, count)?, cond.as_ref())?;
            back.push(r.x);
            error.push(r.error);
            level_error.push(r.level_error);
        }
        let (back, error) = (Tensor::cat(&back, 0)?, Tensor::cat(&error, 0)?);
        let level_error = Tensor::cat(&level_error, 0)?;
        let errors = doubles(&error)?;
        let levels = level_error.dim(1)?;
        let by_level: Vec<f64> = (0..levels)
            .map(|l| Ok(largest(&doubles(&level_error.narrow(1, l, 1)?)?)))
            .collect::<Result<_>>()?;
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
        let off = off.chunks_exact(dims).zip(&errors).map(|(v, e)| {
            let bytes = v.iter().map(|v| v.clamp(0., 255.) as u8).collect();
            Some(Cell { bytes, caption: brief(*e) })
        });
        let levels_text: Vec<String> = by_level.iter().map(|e| brief(*e)).collect();
        let sheet = Sheet {
            title: s.title("From latents back"),
            notes: vec![
                format!("largest error of {} images: {} of a grey level", errors.len(), brief(worst)),
                format!("largest error of latents by level: {}", levels_text.join(", ")),
            ],
            columns: picked.names.iter().take(shown).cloned().collect(),
            rows: vec![
                "image".to_owned(),
                "decoded".to_owned(),
                format!("difference,\nwhite is\n{}", brief(peak)),
            ],
            cells: vec![s.cells(&first(&picked.x)?)?, s.cells(&first(&back)?)?, off.collect()],
            shape,
            scale: args.grid.scale,
        };
        sheet.write(s.draft.drawn())?;
        let figures = json!({
            "images": errors.len(), "max_error": worst, "mean_error": mean(&errors), "exact_images": exact,
            "max_error_by_level": by_level,
        });
        let lines = [format!(
            "{} images: off by at most {} of a grey level ({} on average of an image's largest), {exact} come back to the byte; \
             latents by level off by at most {}",
            errors.len(),
            brief(worst),
            brief(mean(&errors)),
            levels_text.join(", ")
        )];
        let tensors =
            vec![("images", picked.x), ("decoded", back), ("error", error), ("level_error", level_error)];
        s.finish(figures, tensors, &lines)
    })
}
