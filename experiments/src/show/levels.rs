//! `reconstruct`, `temperature` and `levels`: what comes back, how far from the mean, and what each level holds.

use super::sheet::{Cell, Sheet};
use super::{BATCH, Base, Images, Out, Scale, Session, brief, doubles, host, largest, list, mean, pooled};
use crate::cli::End;
use anyhow::{Result, ensure};
use candle_core::{DType, Tensor};
use clap::Args;
use flows::latents;
use serde_json::json;

/// Images in a picture of `reconstruct`.
const SHOWN: usize = 8;

/// `reconstruct`.
#[derive(Args)]
pub struct ReconstructArgs {
    #[command(flatten)]
    base: Base,
    #[command(flatten)]
    images: Images,
    #[command(flatten)]
    out: Out,
    #[command(flatten)]
    scale: Scale,
    /// Images that are measured, where none is named; the first few are drawn.
    #[arg(short, long = "number", default_value_t = 100)]
    n: usize,
}

/// Encodes and decodes images and measures what is off, by image and by level.
///
/// # Errors
/// When the images are not the model's or the picture cannot be written.
pub fn reconstruct(args: &ReconstructArgs) -> Result<End> {
    let s = Session::open(&args.base, &args.out, "reconstruct")?;
    let shape = s.shape()?;
    ensure!(args.n > 0, "-n 0: measure at least one image");
    let picked = s.images(&args.images, args.n)?;
    pooled(|| {
        let (mut back, mut error, mut level_error) = (vec![], vec![], vec![]);
        for first in (0..picked.names.len()).step_by(BATCH) {
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
            scale: args.scale.scale,
        };
        sheet.write(&s.out)?;
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

/// `temperature`.
#[derive(Args)]
pub struct TemperatureArgs {
    #[command(flatten)]
    base: Base,
    #[command(flatten)]
    out: Out,
    #[command(flatten)]
    scale: Scale,
    /// The temperatures: latents are multiplied by them.
    #[arg(long, value_delimiter = ',', default_value = "0,0.25,0.5,0.7,0.85,1,1.15", value_parser = list)]
    temperatures: Vec<f64>,
    /// Samples at each.
    #[arg(short, long = "number", default_value_t = 8)]
    n: usize,
}

/// Draws the same latents at several temperatures.
///
/// # Errors
/// When a temperature is negative or images are named.
pub fn temperature(args: &TemperatureArgs) -> Result<End> {
    let s = Session::open(&args.base, &args.out, "temperature")?;
    let shape = s.shape()?;
    ensure!(args.n > 0, "-n 0: draw at least one sample");
    let negative = args.temperatures.iter().find(|t| **t < 0.);
    ensure!(negative.is_none(), "--temperatures: {} is below 0", negative.copied().unwrap_or_default());
    crate::limits::samples(s.model.config(), args.n, "-n", s.device.is_cpu())?;
    let cond = s.labels(args.n)?;
    pooled(|| {
        let z = latents::prior(&s.model, args.n, args.base.seed)?;
        let (mut cells, mut bits, mut images) = (vec![], vec![], vec![]);
        for t in &args.temperatures {
            let x = s.model.decode(&(&z * *t)?, cond.as_ref())?;
            let x = s.finite(x, &format!("samples at temperature {t}"))?;
            bits.push(mean(&doubles(&s.model.bits_per_dim(&x, cond.as_ref())?)?));
            cells.push(s.cells(&x)?);
            images.push(x);
        }
        let sheet = Sheet {
            title: s.title("Samples by temperature"),
            notes: vec!["each column one latent, multiplied by the temperature".to_owned()],
            columns: vec![],
            rows: args
                .temperatures
                .iter()
                .zip(&bits)
                .map(|(t, b)| format!("{}\n{b:.2} bits/dim", brief(*t)))
                .collect(),
            cells,
            shape,
            scale: args.scale.scale,
        };
        sheet.write(&s.out)?;
        let lines: Vec<String> = args
            .temperatures
            .iter()
            .zip(&bits)
            .map(|(t, b)| format!("temperature {}: {b:.4} bits/dim on average", brief(*t)))
            .collect();
        let figures = json!({ "temperatures": args.temperatures, "bits_per_dim": bits, "samples": args.n });
        s.finish(figures, vec![("z", z), ("images", Tensor::stack(&images, 0)?)], &lines)
    })
}

/// `levels`.
#[derive(Args)]
pub struct LevelsArgs {
    #[command(flatten)]
    base: Base,
    #[command(flatten)]
    images: Images,
    #[command(flatten)]
    out: Out,
    #[command(flatten)]
    scale: Scale,
    /// New latents for each level.
    #[arg(long, default_value_t = 2, value_parser = clap::value_parser!(u8).range(1..=20))]
    draws: u8,
    /// The temperature of what is drawn anew.
    #[arg(long, default_value_t = 1., allow_negative_numbers = true)]
    temperature: f64,
}

/// Draws one level's latents anew and keeps the others.
///
/// # Errors
/// When the images are not the model's.
pub fn levels(args: &LevelsArgs) -> Result<End> {
    let s = Session::open(&args.base, &args.out, "levels")?;
    let shape = s.shape()?;
    ensure!(
        args.temperature >= 0. && args.temperature.is_finite(),
        "--temperature {}: it must be 0 or more",
        args.temperature
    );
    let picked = s.images(&args.images, 5)?;
    pooled(|| {
        let (cond, n) = (picked.cond.as_ref(), picked.names.len());
        let z = s.model.encode(&picked.x, cond)?;
        let parts = s.model.levels(&z)?;
        let mut columns = vec!["image".to_owned()];
        let mut rows: Vec<Vec<Option<Cell>>> = s.cells(&picked.x)?.into_iter().map(|c| vec![c]).collect();
        let mut changes = vec![];
        let mut all = vec![];
        for (level, part) in parts.iter().enumerate() {
            let (_, c, h, w) = part.dims4()?;
            let mut off = vec![];
            for draw in 0..args.draws {
                let fresh = latents::prior(&s.model, n, args.base.seed.wrapping_add(u64::from(draw)))?;
                let swapped = latents::swap_levels(&s.model, &z, &(fresh * args.temperature)?, &[level])?;
                let x = s.finite(s.model.decode(&swapped, cond)?, "images with a level drawn anew")?;
                off.push(doubles(&(&x - &picked.x)?.sqr()?.mean_all()?)?[0].sqrt());
                for (row, cell) in rows.iter_mut().zip(s.cells(&x)?) {
                    row.push(cell);
                }
                columns.push(format!("level {level}\n{c}×{h}×{w}"));
                all.push(x);
            }
            changes.push(mean(&off));
        }
        let sheet = Sheet {
            title: s.title("One level's latents drawn anew"),
            notes: vec![format!(
                "level 0 is the first that is factored out, level {} the last; temperature {}",
                parts.len() - 1,
                brief(args.temperature)
            )],
            columns,
            rows: picked.names.clone(),
            cells: rows,
            shape,
            scale: args.scale.scale,
        };
        sheet.write(&s.out)?;
        let lines: Vec<String> = parts
            .iter()
            .zip(&changes)
            .enumerate()
            .map(|(l, (part, off))| {
                let numbers = part.elem_count() / n;
                let share = 100. * numbers as f64 / s.model.dims() as f64;
                format!("level {l}: {numbers} numbers ({share:.0} %), drawn anew they change a value by {off:.2} (root mean square)")
            })
            .collect();
        let images = Tensor::stack(&all, 1)?;
        let figures = json!({
            "images": picked.names, "draws": args.draws, "temperature": args.temperature, "rms_change": changes,
            "shapes": parts.iter().map(|p| p.dims()[1..].to_vec()).collect::<Vec<_>>(),
        });
        s.finish(figures, vec![("z", z), ("images", images.to_dtype(DType::F32)?)], &lines)
    })
}
