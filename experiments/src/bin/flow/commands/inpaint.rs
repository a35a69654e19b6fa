//! `flow inpaint`: what is missing of an image, filled in by gradient steps that raise log p.

use super::pictures::{Shown, two_digits};
use crate::draw::sheet::{Sheet, check_size};
use crate::progress::{Stopped, stopped};
use crate::session::{Picked, Session, check_temperature, doubles, mean, pooled};
use anyhow::{Result, ensure};
use candle_core::{DType, Tensor};
use clap::Args;
use clap::builder::{PossibleValuesParser, TypedValueParser};
use flows::latents::{self, Inpainting};
use flows::models::Missing;
use serde_json::json;
use std::time::Instant;

/// The parts that may be missing.
fn missing() -> impl TypedValueParser<Value = Missing> {
    let parts = ["right", "left", "top", "bottom", "centre", "most"];
    PossibleValuesParser::new(parts).map(|name| serde_json::from_value(name.into()).expect("each is a part"))
}

/// `inpaint`.
#[derive(Args)]
pub struct InpaintArgs {
    #[command(flatten)]
    shown: Shown,
    /// Part of the image that is missing.
    #[arg(long, value_parser = missing(), default_value = "right")]
    missing: Missing,
    /// Number of gradient steps.
    #[arg(long, default_value_t = 200, value_parser = clap::value_parser!(u32).range(1..=1_000_000))]
    steps: u32,
    /// Number of completions of each image.
    #[arg(long, default_value_t = 3, value_parser = clap::value_parser!(u8).range(1..=20))]
    draws: u8,
    /// Temperature of the samples to start from.
    #[arg(long, default_value_t = 0.7, allow_negative_numbers = true)]
    temperature: f64,
}

/// One completion of each image, and its log-likelihood after each step.
fn completion(
    s: &Session,
    args: &InpaintArgs,
    picked: &Picked,
    known: &Tensor,
    draw: u8,
) -> Result<(Tensor, Tensor)> {
    tracing::info!("completion {} of {}: {} gradients", draw + 1, args.draws, args.steps);
    let seed = args.shown.grid.base.seed.wrapping_add(u64::from(draw));
    let cond = picked.given.context();
    check_temperature(args.temperature)?;
    let start = s.model.sample(picked.names.len(), args.temperature, seed, cond)?;
    let start = s.finite(start, "the samples that completions start from", "give a smaller --temperature")?;
    let o = Inpainting::new(args.steps as usize, (0., f64::from(1u32 << s.model.config().bits())));
    let mut told = Instant::now();
    let go_on = |step: usize| {
        if told.elapsed().as_secs() >= 10 {
            told = Instant::now();
            tracing::info!("gradient {step} of {}", args.steps);
        }
        !stopped()
    };
    let inpainted = latents::inpaint_while(&s.model, &picked.x, known, &start, cond, &o, go_on)?;
    inpainted.ok_or_else(|| Stopped.into())
}

/// Fills in the missing part of images.
///
/// # Errors
/// When the images are not the model's, or a gradient is not finite.
pub fn run(args: &InpaintArgs) -> Result<()> {
    let (s, shape) = Session::sheet(&args.shown.grid, "inpaint")?;
    let ([_, h, w], missing) = (shape, args.missing);
    let known = missing.known(h, w, &s.device)?;
    ensure!(
        doubles(&known)?.contains(&0.),
        "images of {h} × {w} pixels are too small for --missing {missing:?}: choose another"
    );
    let picked = s.images(&args.shown.images, 5)?;
    check_size(picked.names.len(), 2 + usize::from(args.draws), shape, args.shown.grid.scale)?;
    pooled(|| {
        let (cond, n, steps) = (picked.given.context(), picked.names.len(), args.steps);
        let half = f64::from(1u32 << s.model.config().bits()) / 2.;
        let bits = |x: &Tensor| -> Result<Vec<f64>> { doubles(&s.model.bits_per_dim(x, cond)?) };
        let of_images = bits(&picked.x)?;
        let mask = known.to_dtype(picked.x.dtype())?;
        // What is missing is drawn in the middle grey.
        let grey = picked.x.broadcast_mul(&mask)?.broadcast_add(&mask.affine(-half, half)?)?;
        let images = s.captioned(&picked.x, two_digits(&of_images))?.into_iter();
        let mut cells: Vec<_> =
            images.zip(s.cells(&grey)?).map(|(image, known)| vec![image, known]).collect();
        let mut columns = vec!["image".to_owned(), "known".to_owned()];
        let (mut filled, mut log_probs, mut of_filled) = (vec![], vec![], vec![]);
        for draw in 0..args.draws {
            let (x, log_prob) = completion(&s, args, &picked, &known, draw)?;
            let b = bits(&x)?;
            cells.iter_mut().zip(s.captioned(&x, two_digits(&b))?).for_each(|(row, cell)| row.push(cell));
            columns.push(format!("filled {}", draw + 1));
            of_filled.extend(b);
            filled.push(x);
            log_probs.push(log_prob);
        }
        let sheet = Sheet {
            notes: vec![format!("{steps} steps up log p, from a sample each; bits/dim under each image")],
            columns,
            rows: picked.names.clone(),
            cells,
            ..s.blank(&args.shown.grid, "What is missing, filled in")?
        };
        sheet.write(s.draft.drawn())?;
        let (before, after) = (mean(&of_images), mean(&of_filled));
        let lines = [format!("{n} images of {before:.4} bits/dim on average, filled in {after:.4}")];
        let figures = json!({
            "images": picked.names, "missing": format!("{missing:?}").to_lowercase(), "steps": steps,
            "temperature": args.temperature,
            "bits_per_dim": of_images, "filled_bits_per_dim": of_filled,
        });
        let tensors = vec![
            ("images", picked.x),
            ("known", known.to_dtype(DType::F32)?),
            ("filled", Tensor::stack(&filled, 1)?),
            ("log_prob", Tensor::stack(&log_probs, 0)?),
        ];
        s.finish(figures, tensors, &lines)
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use candle_core::Device;

    #[test]
    fn masks_leave_what_they_say() {
        let left = |missing: Missing| -> f64 {
            doubles(&missing.known(8, 8, &Device::Cpu).unwrap()).unwrap().iter().sum()
        };
        for half in [Missing::Right, Missing::Left, Missing::Top, Missing::Bottom] {
            assert_eq!(left(half), 32.);
        }
        assert_eq!((left(Missing::Centre), left(Missing::Most)), (48., 16.));
        let known = doubles(&Missing::Right.known(1, 4, &Device::Cpu).unwrap()).unwrap();
        assert_eq!(known, [1., 1., 0., 0.]);
    }
}
