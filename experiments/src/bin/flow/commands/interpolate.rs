//! `flow interpolate`: lines and arcs between the latents of two images.

use super::pictures::{Shown, two_digits};
use crate::context::Given;
use crate::draw::sheet::{Sheet, check_size};
use crate::session::{Session, brief, doubles, pooled};
use anyhow::{Result, ensure};
use candle_core::Tensor;
use clap::Args;
use flows::latents;
use serde_json::json;

/// `interpolate`.
#[derive(Args)]
pub struct InterpolateArgs {
    #[command(flatten)]
    shown: Shown,
    /// Number of images in a row, including both ends.
    #[arg(long, default_value_t = 9, value_parser = clap::value_parser!(u16).range(2..=100))]
    frames: u16,
}

/// A way from one latent to another.
#[derive(Clone, Copy, PartialEq, Eq)]
pub enum Way {
    /// [`latents::lerp`].
    Line,
    /// [`latents::slerp`].
    Arc,
}

/// The images at `t` on the way between the two latents `z` (2, D), of which each half is in the context of the nearer one, and that
/// context.
pub fn between(s: &Session, z: &Tensor, given: &Given, t: &[f64], way: Way) -> Result<(Tensor, Given)> {
    // Of two classes or contexts each half of the way has the nearer image's.
    let given = given.rows(|i| usize::from(t[i] > 0.5), t.len())?;
    let (a, b) = (z.get(0)?, z.get(1)?);
    let on_the_way = match way {
        Way::Line => latents::lerp(&a, &b, t)?,
        Way::Arc => latents::slerp(&a, &b, t)?,
    };
    let x = s.model.decode(&on_the_way, given.context())?;
    Ok((s.finite(x, "images on the way", "choose other images")?, given))
}

/// Walks between two images: latents on a line and on an arc, and pixels for comparison.
///
/// # Errors
/// When it is not two images, they are not the model's, or the picture cannot be written.
pub fn run(args: &InterpolateArgs) -> Result<()> {
    let (s, shape) = Session::sheet(&args.shown.grid, "interpolate")?;
    let given = args.shown.images.images.len();
    ensure!(
        given == 0 || given == 2,
        "a walk goes between two images, {given} were given: name two, or none for the first two of the data"
    );
    let picked = s.images(&args.shown.images, 2)?;
    check_size(3, usize::from(args.frames), shape, args.shown.grid.scale)?;
    ensure!(picked.names.len() == 2, "the data hold one image only: a walk goes between two, name files");
    pooled(|| {
        let z = s.model.encode(&picked.x, picked.given.context())?;
        let t: Vec<f64> = (0..args.frames).map(|i| f64::from(i) / f64::from(args.frames - 1)).collect();
        let (x, y) = (picked.x.get(0)?, picked.x.get(1)?);
        let (line, given) = between(&s, &z, &picked.given, &t, Way::Line)?;
        let (arc, _) = between(&s, &z, &picked.given, &t, Way::Arc)?;
        let ways = [
            ("linear", "latents,\non a line", line),
            ("spherical", "latents,\non an arc", arc),
            ("pixels", "pixels,\nfaded", latents::lerp(&x, &y, &t)?),
        ];
        let mut cells = Vec::new();
        let mut bits = Vec::new();
        for (_, _, frames) in &ways {
            let b = doubles(&s.model.bits_per_dim(frames, given.context())?)?;
            cells.push(s.captioned(frames, two_digits(&b))?);
            bits.push(b);
        }
        let sheet = Sheet {
            notes: vec![format!(
                "image {} to image {}; t over the columns, bits/dim under each image",
                picked.names[0], picked.names[1]
            )],
            columns: t.iter().map(|t| brief(*t)).collect(),
            rows: ways.iter().map(|w| w.1.to_owned()).collect(),
            cells,
            ..s.blank(&args.shown.grid, "From one image to another")?
        };
        sheet.write(s.draft.drawn())?;
        let figures = json!({
            "images": picked.names, "t": t,
            "bits_per_dim": { "linear": bits[0], "spherical": bits[1], "pixels": bits[2] },
        });
        let [line, arc, faded] = [0, 1, 2].map(|way: usize| bits[way][t.len() / 2]);
        let (middle, from, to) = (brief(t[t.len() / 2]), bits[0][0], bits[0][t.len() - 1]);
        let lines = [format!(
            "at t = {middle}: {line:.4} bits/dim on the line, {arc:.4} on the arc, {faded:.4} faded; the ends have {from:.4} \
             and {to:.4}"
        )];
        let mut tensors = vec![("z", z)];
        tensors.extend(ways.into_iter().map(|(name, _, frames)| (name, frames)));
        s.finish(figures, tensors, &lines)
    })
}
