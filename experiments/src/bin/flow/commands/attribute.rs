//! `flow attribute`: what a label changes, as a direction of latents.

use super::pictures::{Shown, free_places};
use crate::args::finite_number;
use crate::directions::{FIT, Means, has};
use crate::draw::sheet::{Sheet, check_size};
use crate::progress::go_on;
use crate::saved;
use crate::session::{Named, Picked, Session, auroc, doubles, mean, pooled};
use anyhow::{Result, ensure};
use candle_core::{DType, Tensor};
use clap::Args;
use experiments::data::Split;
use flows::latents;
use serde_json::json;

/// `attribute`.
#[derive(Args)]
pub struct AttributeArgs {
    #[command(flatten)]
    shown: Shown,
    /// Attribute or class by name; NAME=LEVEL selects one level of an attribute.
    #[arg(long)]
    label: String,
    /// How many times the direction is added, one column each.
    #[arg(
        long,
        value_delimiter = ',',
        default_value = "-3,-2,-1,0,1,2,3",
        allow_hyphen_values = true,
        value_parser = finite_number
    )]
    strengths: Vec<f64>,
    /// Another attribute that is added to every image first, so many times; can be repeated.
    #[arg(long, value_name = "NAME:STRENGTH", value_parser = also)]
    also: Vec<(String, f64)>,
    /// Number of training images to average, at most.
    #[arg(long, default_value_t = FIT)]
    fit: usize,
}

/// Parses a label and how many times its direction is added.
fn also(text: &str) -> Result<(String, f64), String> {
    let (label, strength) =
        text.rsplit_once(':').ok_or("write a name, a colon and a number, as in glasses:1.5")?;
    Ok((label.to_owned(), finite_number(strength)?))
}

/// The places of the examples that have the label, or of those that do not.
fn side(flags: &[bool], with: bool) -> Vec<usize> {
    (0..flags.len()).filter(|&i| flags[i] == with).collect()
}

/// Adds a label's direction to held-out images at several strengths.
///
/// # Errors
/// When the data have no such label, or no image with it or without it.
pub fn run(args: &AttributeArgs) -> Result<()> {
    /// Held-out images on which the direction is measured.
    const MEASURED: usize = 500;
    let (s, shape) = Session::sheet(&args.shown.grid, "attribute")?;
    ensure!(args.fit > 0, "--fit 0: average the latents of at least one image");
    let from = &args.shown.images.from;
    let data = s.data(&from.source, from.split)?;
    s.fits(&data.train, &data.name)?;
    let train = data.train.take(args.fit);
    let labels: Vec<String> =
        std::iter::once(args.label.clone()).chain(args.also.iter().map(|(label, _)| label.clone())).collect();
    let flags = labels.iter().map(|label| has(&data, &train, label)).collect::<Result<Vec<_>>>()?;
    let mut means = Means::new(&labels, &flags)?;
    let have = side(&flags[0], true).len();
    let counts = (have, flags[0].len() - have);
    let (split, part) = saved::part(&data, from.split)?;
    let split = split.clone();
    let held = split.take(MEASURED);
    let held_flags = has(&data, &held, &args.label)?;
    // Three of each kind, so that both directions are seen.
    let first = |with: bool| side(&held_flags, with).into_iter().take(3);
    let first: Vec<String> = first(false).chain(first(true)).map(|i| i.to_string()).collect();
    let specs = if args.shown.images.images.is_empty() { &first } else { &args.shown.images.images };
    check_size(specs.len(), 1 + args.strengths.len(), shape, args.shown.grid.scale)?;
    let picked = s.pick(specs, Some(&Named { name: data.name, split, part }))?;
    pooled(|| {
        let encode = |split: &Split| s.over(split, |x, cond| Ok(s.model.encode(x, cond)?));
        tracing::info!("averaging the latents of {} images", train.len());
        while means.step(&s, &train)? {
            go_on()?;
        }
        let all = means.directions()?.to_dtype(s.model.params().dtype())?.to_device(&s.device)?;
        let direction = all.get(0)?;
        // How well the direction alone tells held-out images apart.
        let along = doubles(&encode(&held)?.matmul(&direction.unsqueeze(1)?)?)?;
        let of = |with: bool| -> Vec<f64> { side(&held_flags, with).into_iter().map(|i| along[i]).collect() };
        let (high, low) = (of(true), of(false));
        let told = (!high.is_empty() && !low.is_empty()).then(|| auroc(&high, &low));
        let (length, shares) = length(&s.model.levels(&direction.unsqueeze(0)?)?)?;
        let (z, images) = moved(&s, &picked, &all, args)?;
        let overflowed = draw(&s, args, &picked, &images, counts, &held_flags)?;
        let figures = json!({
            "label": args.label, "with": counts.0, "without": counts.1, "also": args.also, "images": picked.names,
            "strengths": args.strengths, "held_out": held.len(), "auroc": told,
            "length": length, "share_of_levels": shares,
            "overflowed": overflowed, "mean_along": { "with": mean(&high), "without": mean(&low) },
        });
        let percent: Vec<String> = shares.iter().map(|v| format!("{:.0} %", 100. * v)).collect();
        let told = told.map_or_else(String::new, |t| {
            let percent = 100. * t;
            format!(
                "; the direction alone ranks a held-out image with it above one without in {percent:.1} %"
            )
        });
        let mut lines = vec![format!(
            "`{}`: a direction of length {length:.3}, {} of it in each level{told}",
            args.label,
            percent.join(", ")
        )];
        lines.extend((overflowed > 0).then(|| {
            format!("{overflowed} moved images are not finite and not drawn: give smaller --strengths")
        }));
        let images =
            images.reshape([&[picked.names.len(), args.strengths.len()], shape.as_slice()].concat())?;
        let strengths = Tensor::new(args.strengths.as_slice(), &s.device)?.to_dtype(DType::F32)?;
        let tensors = vec![("direction", direction), ("z", z), ("images", images), ("strengths", strengths)];
        s.finish(figures, tensors, &lines)
    })
}

/// Draws each image and what became of it at each strength; how many of these are not finite.
fn draw(
    s: &Session,
    args: &AttributeArgs,
    picked: &Picked,
    moved: &Tensor,
    (with, without): (usize, usize),
    held_flags: &[bool],
) -> Result<usize> {
    let seen = s.seen(moved)?;
    let overflowed = seen.iter().filter(|cell| cell.is_none()).count();
    ensure!(
        overflowed < seen.len(),
        "no moved image is finite: the inverse overflows this far along, give smaller --strengths"
    );
    let mut seen = seen.into_iter();
    let mut cells: Vec<_> = s.cells(&picked.x)?.into_iter().map(|original| vec![original]).collect();
    cells.iter_mut().for_each(|row| row.extend(seen.by_ref().take(args.strengths.len())));
    let sign = |v: &f64| if *v == 0. { "0".to_owned() } else { format!("{v:+}") };
    let row_name = |name: &String| match name.parse().ok().and_then(|place: usize| held_flags.get(place)) {
        Some(has) => format!("{name}, {}", if *has { "with" } else { "without" }),
        None => name.clone(),
    };
    let free = free_places(overflowed);
    let sheet = Sheet {
        notes: vec![
            format!("direction: mean latent of {with} training images with it minus {without} without"),
            format!("each row one held-out image; over each column how much of the direction is added{free}"),
        ],
        columns: std::iter::once("image".to_owned()).chain(args.strengths.iter().map(sign)).collect(),
        rows: picked.names.iter().map(row_name).collect(),
        cells,
        ..s.blank(&args.shown.grid, &format!("Adding `{}`", args.label))?
    };
    sheet.write(s.draft.drawn())?;
    Ok(overflowed)
}

/// The length of a direction, and the share of each level in its square.
fn length(levels: &[Tensor]) -> Result<(f64, Vec<f64>)> {
    let square = |l: &Tensor| -> Result<f64> { Ok(doubles(&l.sqr()?)?.iter().sum()) };
    let squares = levels.iter().map(square).collect::<Result<Vec<_>>>()?;
    let total: f64 = squares.iter().sum();
    Ok((total.sqrt(), squares.iter().map(|v| v / total).collect()))
}

/// The latents of images, and each image decoded at every strength of the first of the directions (labels, D), after the others have
/// been added.
fn moved(
    s: &Session,
    picked: &Picked,
    directions: &Tensor,
    args: &AttributeArgs,
) -> Result<(Tensor, Tensor)> {
    let z = s.model.encode(&picked.x, picked.given.context())?;
    let others: Vec<f64> =
        std::iter::once(0.).chain(args.also.iter().map(|(_, strength)| *strength)).collect();
    let moved = latents::apply(&shifted(&z, directions, &others)?, &directions.get(0)?, &args.strengths)?;
    let given = picked.given.rows(|i| i / args.strengths.len(), moved.dim(0)?)?;
    let images = s.batched(&moved, &given, |z, cond| Ok(s.model.decode(z, cond)?))?;
    Ok((z, Tensor::cat(&images, 0)?))
}

/// Latents z (B, D) with each of the directions (labels, D) added as often as its strength says.
pub fn shifted(z: &Tensor, directions: &Tensor, strengths: &[f64]) -> Result<Tensor> {
    let weights = Tensor::new(strengths, z.device())?.to_dtype(z.dtype())?.unsqueeze(0)?;
    Ok(z.broadcast_add(&weights.matmul(directions)?)?)
}
