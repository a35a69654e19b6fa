//! `reconstruct`, `temperature` and `levels`: what comes back, how far from the mean, and what each level holds.

use super::sheet::{Cell, Sheet, room};
use super::{BATCH, Base, Images, Out, Scale, Session, brief, doubles, host, largest, list, mean, pooled};
use crate::cli::End;
use crate::progress::go_on;
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
            scale: args.scale.scale,
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
    room(args.temperatures.len(), args.n, shape, args.scale.scale)?;
    let cond = s.labels(args.n)?;
    pooled(|| {
        let z = latents::prior(&s.model, args.n, args.base.seed)?;
        let (mut cells, mut bits, mut images, mut lost) = (vec![], vec![], vec![], vec![]);
        for t in &args.temperatures {
            go_on()?;
            let x = s.model.decode(&(&z * *t)?, cond.as_ref())?;
            let row = s.seen(&x)?;
            let each = doubles(&s.model.bits_per_dim(&x, cond.as_ref())?)?;
            let finite: Vec<f64> = each
                .into_iter()
                .zip(&row)
                .filter(|(b, c)| c.is_some() && b.is_finite())
                .map(|(b, _)| b)
                .collect();
            bits.push(mean(&finite));
            lost.push(row.iter().filter(|cell| cell.is_none()).count());
            cells.push(row);
            images.push(x);
        }
        ensure!(
            lost.iter().any(|n| *n < args.n),
            "no sample is finite at any of these temperatures, for the inverse of {} overflows: give smaller --temperatures",
            args.base.weights
        );
        let free = lost.iter().any(|n| *n > 0);
        let sheet = Sheet {
            title: s.title("Samples by temperature"),
            notes: std::iter::once("each column one latent, multiplied by the temperature")
                .chain(free.then_some("a free place: the inverse overflows"))
                .map(str::to_owned)
                .collect(),
            columns: vec![],
            rows: args
                .temperatures
                .iter()
                .zip(&bits)
                .map(|(t, b)| match b.is_finite() {
                    true => format!("{}\n{b:.2} bits/dim", brief(*t)),
                    false => brief(*t),
                })
                .collect(),
            cells,
            shape,
            scale: args.scale.scale,
        };
        sheet.write(s.draft.drawn())?;
        let lines: Vec<String> = args
            .temperatures
            .iter()
            .zip(&bits)
            .zip(&lost)
            .map(|((t, b), lost)| {
                let what = match lost {
                    0 => String::new(),
                    n => format!("; {n} of {} samples are not finite and not drawn", args.n),
                };
                match b.is_finite() {
                    true => format!("temperature {}: {b:.4} bits/dim on average{what}", brief(*t)),
                    false => format!("temperature {}: no bits/dim{what}", brief(*t)),
                }
            })
            .collect();
        let figures = json!({
            "temperatures": args.temperatures, "bits_per_dim": bits, "samples": args.n, "not_finite": lost,
        });
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
    room(picked.names.len(), 1 + usize::from(args.draws), shape, args.scale.scale)?;
    pooled(|| {
        let (cond, n) = (picked.cond.as_ref(), picked.names.len());
        let z = s.model.encode(&picked.x, cond)?;
        let parts = s.model.levels(&z)?;
        let mut columns = vec!["image".to_owned()];
        let mut rows: Vec<Vec<Option<Cell>>> = s.cells(&picked.x)?.into_iter().map(|c| vec![c]).collect();
        let mut changes = vec![];
        let mut all = vec![];
        let mut lost = 0;
        for (level, part) in parts.iter().enumerate() {
            let (_, c, h, w) = part.dims4()?;
            let mut off = vec![];
            for draw in 0..args.draws {
                go_on()?;
                let fresh = latents::prior(&s.model, n, args.base.seed.wrapping_add(u64::from(draw)))?;
                let swapped = latents::swap_levels(&s.model, &z, &(fresh * args.temperature)?, &[level])?;
                let x = s.model.decode(&swapped, cond)?;
                let squares = doubles(&(&x - &picked.x)?.sqr()?.flatten_from(1)?.mean(1)?)?;
                let mut seen = vec![];
                for ((row, cell), square) in rows.iter_mut().zip(s.seen(&x)?).zip(squares) {
                    if cell.is_some() {
                        seen.push(square);
                    } else {
                        lost += 1;
                    }
                    row.push(cell);
                }
                if !seen.is_empty() {
                    off.push(mean(&seen).sqrt());
                }
                columns.push(format!("level {level}\n{c}×{h}×{w}"));
                all.push(x);
            }
            changes.push(mean(&off));
        }
        let drawn = all.len() * n;
        ensure!(
            lost < drawn,
            "no image with a level drawn anew is finite, for the inverse of {} overflows: give a smaller --temperature",
            args.base.weights
        );
        let sheet = Sheet {
            title: s.title("One level's latents drawn anew"),
            notes: vec![format!(
                "level 0 is the first that is factored out, level {} the last; temperature {}{}",
                parts.len() - 1,
                brief(args.temperature),
                if lost > 0 { "; a free place: the inverse overflows" } else { "" }
            )],
            columns,
            rows: picked.names.clone(),
            cells: rows,
            shape,
            scale: args.scale.scale,
        };
        sheet.write(s.draft.drawn())?;
        let mut lines: Vec<String> = parts
            .iter()
            .zip(&changes)
            .enumerate()
            .map(|(l, (part, off))| {
                let numbers = part.elem_count() / n;
                let share = 100. * numbers as f64 / s.model.dims() as f64;
                format!("level {l}: {numbers} numbers ({share:.0} %), drawn anew they change a value by {off:.2} (root mean square)")
            })
            .collect();
        if lost > 0 {
            lines.push(format!(
                "{lost} of {drawn} images are not finite and not drawn: give a smaller --temperature"
            ));
        }
        let images = Tensor::stack(&all, 1)?;
        let figures = json!({
            "images": picked.names, "draws": args.draws, "temperature": args.temperature, "rms_change": changes,
            "not_finite": lost,
            "shapes": parts.iter().map(|p| p.dims()[1..].to_vec()).collect::<Vec<_>>(),
        });
        s.finish(figures, vec![("z", z), ("images", images.to_dtype(DType::F32)?)], &lines)
    })
}
