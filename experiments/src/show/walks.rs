//! `interpolate` and `attribute`: straight lines through latents.

use super::sheet::{Cell, Sheet, room};
use super::{
    BATCH, Base, Images, Named, Out, Scale, Session, auroc, brief, choose, doubles, list, mean, pooled,
};
use crate::cli::End;
use crate::data::{Dataset, Split};
use crate::progress::go_on;
use anyhow::{Context, Result, bail, ensure};
use candle_core::{DType, Tensor};
use clap::Args;
use flows::latents;
use serde_json::json;

/// `interpolate`.
#[derive(Args)]
pub struct InterpolateArgs {
    #[command(flatten)]
    base: Base,
    #[command(flatten)]
    images: Images,
    #[command(flatten)]
    out: Out,
    #[command(flatten)]
    scale: Scale,
    /// Images on the way, both ends among them.
    #[arg(long, default_value_t = 9, value_parser = clap::value_parser!(u16).range(2..=100))]
    frames: u16,
}

/// Walks between two images: latents on a line and on an arc, and pixels for comparison.
///
/// # Errors
/// When it is not two images, they are not the model's, or the picture cannot be written.
pub fn interpolate(args: &InterpolateArgs) -> Result<End> {
    let s = Session::open(&args.base, &args.out, "interpolate")?;
    let shape = s.shape()?;
    let given = args.images.images.len();
    ensure!(
        given == 0 || given == 2,
        "a walk goes between two images, {given} were given: name two, or none for the first two of the data"
    );
    let picked = s.images(&args.images, 2)?;
    room(3, usize::from(args.frames), shape, args.scale.scale)?;
    ensure!(picked.names.len() == 2, "the data hold one image only: a walk goes between two, name files");
    pooled(|| {
        let z = s.model.encode(&picked.x, picked.cond.as_ref())?;
        let t: Vec<f64> = (0..args.frames).map(|i| f64::from(i) / f64::from(args.frames - 1)).collect();
        // Of two classes each half of the way is in the nearer one's.
        let cond = match &picked.cond {
            None => None,
            Some(labels) => {
                let near: Vec<u32> = t.iter().map(|&t| u32::from(t > 0.5)).collect();
                Some(labels.index_select(&Tensor::new(near, &s.device)?, 0)?)
            }
        };
        let ends = |of: &Tensor| -> Result<(Tensor, Tensor)> { Ok((of.get(0)?, of.get(1)?)) };
        let (a, b) = ends(&z)?;
        let (x, y) = ends(&picked.x)?;
        let decode = |z: Tensor| -> Result<Tensor> {
            s.finite(s.model.decode(&z, cond.as_ref())?, "images on the way", "choose other images")
        };
        let ways = [
            ("linear", "latents,\non a line", decode(latents::lerp(&a, &b, &t)?)?),
            ("spherical", "latents,\non an arc", decode(latents::slerp(&a, &b, &t)?)?),
            ("pixels", "pixels,\nfaded", latents::lerp(&x, &y, &t)?),
        ];
        let mut cells = Vec::new();
        let mut bits = Vec::new();
        for (_, _, frames) in &ways {
            let b = doubles(&s.model.bits_per_dim(frames, cond.as_ref())?)?;
            let row = s.bytes(frames)?.into_iter().zip(&b);
            cells.push(row.map(|(bytes, b)| Some(Cell { bytes, caption: format!("{b:.2}") })).collect());
            bits.push(b);
        }
        let sheet = Sheet {
            title: s.title("From one image to another"),
            notes: vec![format!(
                "image {} to image {}; t over the columns, bits/dim under each image",
                picked.names[0], picked.names[1]
            )],
            columns: t.iter().map(|t| brief(*t)).collect(),
            rows: ways.iter().map(|w| w.1.to_owned()).collect(),
            cells,
            shape,
            scale: args.scale.scale,
        };
        sheet.write(s.draft.drawn())?;
        let middle = t.len() / 2;
        let figures = json!({
            "images": picked.names, "t": t,
            "bits_per_dim": { "linear": bits[0], "spherical": bits[1], "pixels": bits[2] },
        });
        let lines = [format!(
            "at t = {}: {:.4} bits/dim on the line, {:.4} on the arc, {:.4} faded; the ends have {:.4} and {:.4}",
            brief(t[middle]),
            bits[0][middle],
            bits[1][middle],
            bits[2][middle],
            bits[0][0],
            bits[0][t.len() - 1]
        )];
        let mut tensors = vec![("z", z)];
        tensors.extend(ways.into_iter().map(|(name, _, frames)| (name, frames)));
        s.finish(figures, tensors, &lines)
    })
}

/// `attribute`.
#[derive(Args)]
pub struct AttributeArgs {
    #[command(flatten)]
    base: Base,
    #[command(flatten)]
    images: Images,
    #[command(flatten)]
    out: Out,
    #[command(flatten)]
    scale: Scale,
    /// The attribute or class, by its name in the data; NAME=LEVEL for one level of several.
    #[arg(long)]
    label: String,
    /// How much of the direction to add.
    #[arg(
        long,
        value_delimiter = ',',
        default_value = "-3,-2,-1,0,1,2,3",
        allow_hyphen_values = true,
        value_parser = list
    )]
    strengths: Vec<f64>,
    /// Training images whose latents are averaged, at most.
    #[arg(long, default_value_t = 2000)]
    fit: usize,
}

/// For each example whether it has the label.
fn has(data: &Dataset, split: &Split, label: &str) -> Result<Vec<bool>> {
    let (name, level) =
        match label.split_once('=') {
            Some((name, level)) => {
                let level = level.trim().parse::<u8>();
                (
                    name.trim(),
                    Some(level.with_context(|| {
                        format!("--label {label}: a level is a whole number from 0 to 255")
                    })?),
                )
            }
            None => (label.trim(), None),
        };
    if let (Some(column), Some(rows)) =
        (data.attribute_names.iter().position(|n| n == name), &split.attributes)
    {
        return Ok(rows
            .iter()
            .map(|row| level.map_or(row[column] > 0, |level| row[column] == level))
            .collect());
    }
    if let (Some(class), Some(labels), None) =
        (data.classes.iter().position(|n| n == name), &split.labels, level)
    {
        return Ok(labels.iter().map(|&l| l as usize == class).collect());
    }
    let all: Vec<&str> = data.attribute_names.iter().chain(&data.classes).map(String::as_str).collect();
    ensure!(
        !all.is_empty(),
        "`{}` has neither attributes nor classes: a folder's labels.csv can give them",
        data.name
    );
    bail!("`{}` has no label `{label}`: choose one of {}", data.name, all.join(", "))
}

/// Adds a label's direction to held-out images at several strengths.
///
/// # Errors
/// When the data have no such label, or no image with it or without it.
pub fn attribute(args: &AttributeArgs) -> Result<End> {
    /// Held-out images on which the direction is measured.
    const MEASURED: usize = 500;
    let s = Session::open(&args.base, &args.out, "attribute")?;
    let shape = s.shape()?;
    ensure!(args.fit > 0, "--fit 0: average the latents of at least one image");
    let from = &args.images.from;
    let data = s.data(&from.source)?;
    s.fits(&data.train, &data.name)?;
    let train = data.train.take(args.fit);
    let flags = has(&data, &train, &args.label)?;
    let side = |flags: &[bool], with: bool| -> Vec<usize> {
        (0..flags.len()).filter(|&i| flags[i] == with).collect()
    };
    let (with, without) = (side(&flags, true), side(&flags, false));
    ensure!(
        !with.is_empty() && !without.is_empty(),
        "of {} training images {} have `{}`: a direction needs images with it and without it, raise --fit or choose another \
         label",
        flags.len(),
        with.len(),
        args.label
    );
    let part = choose(&data, from.split)?.clone();
    let held = part.take(MEASURED);
    let held_flags = has(&data, &held, &args.label)?;
    // Three of each kind, so that both directions are seen.
    let first = |with: bool| side(&held_flags, with).into_iter().take(3);
    let first: Vec<String> = first(false).chain(first(true)).map(|i| i.to_string()).collect();
    let specs = if args.images.images.is_empty() { &first } else { &args.images.images };
    room(specs.len(), 1 + args.strengths.len(), shape, args.scale.scale)?;
    let picked = s.pick(specs, Some(&Named { name: data.name, split: part }))?;
    pooled(|| {
        let encode = |split: &Split| s.over(split, |x, cond| Ok(s.model.encode(x, cond)?));
        tracing::info!("averaging the latents of {} images", train.len());
        let direction =
            latents::attribute(&encode(&train.select(&with))?, &encode(&train.select(&without))?)?;
        // How well the direction alone tells held-out images apart.
        let along = encode(&held)?.matmul(&direction.unsqueeze(1)?)?;
        let along = doubles(&along)?;
        let of = |with: bool| -> Vec<f64> { side(&held_flags, with).into_iter().map(|i| along[i]).collect() };
        let (high, low) = (of(true), of(false));
        let told = (!high.is_empty() && !low.is_empty()).then(|| auroc(&high, &low));
        let lengths = s.model.levels(&direction.unsqueeze(0)?)?;
        let squares = lengths
            .iter()
            .map(|l| Ok(doubles(&l.sqr()?)?.iter().sum::<f64>()))
            .collect::<Result<Vec<_>>>()?;
        let total: f64 = squares.iter().sum();
        let shares: Vec<f64> = squares.iter().map(|v| v / total).collect();

        let z = s.model.encode(&picked.x, picked.cond.as_ref())?;
        let moved = latents::apply(&z, &direction, &args.strengths)?;
        let n = args.strengths.len();
        let cond = match &picked.cond {
            None => None,
            Some(labels) => Some(labels.unsqueeze(1)?.repeat((1, n))?.flatten_all()?),
        };
        let mut images = Vec::new();
        for first in (0..moved.dim(0)?).step_by(BATCH) {
            go_on()?;
            let count = BATCH.min(moved.dim(0)? - first);
            let cond = cond.as_ref().map(|c| c.narrow(0, first, count)).transpose()?;
            images.push(s.model.decode(&moved.narrow(0, first, count)?, cond.as_ref())?);
        }
        let images = Tensor::cat(&images, 0)?;
        let cells = s.seen(&images)?;
        let overflowed = cells.iter().filter(|cell| cell.is_none()).count();
        ensure!(
            overflowed < cells.len(),
            "no moved image is finite: the inverse overflows this far along, give smaller --strengths"
        );
        let mut rows = Vec::new();
        let mut cells = cells.into_iter();
        let originals = s.cells(&picked.x)?;
        for original in originals {
            let mut row = vec![original];
            row.extend(cells.by_ref().take(n));
            rows.push(row);
        }
        let row_name = |name: &String| match name.parse::<usize>() {
            Ok(place) if place < held_flags.len() => {
                format!("{name}, {}", if held_flags[place] { "with" } else { "without" })
            }
            _ => name.clone(),
        };
        let told_text = told.map_or_else(String::new, |t| {
            format!(
                "; the direction alone ranks a held-out image with it above one without in {:.1} %",
                100. * t
            )
        });
        let sheet = Sheet {
            title: s.title(&format!("Adding `{}`", args.label)),
            notes: vec![
                format!(
                    "direction: mean latent of {} training images with it minus {} without",
                    with.len(),
                    without.len()
                ),
                format!(
                    "each row one held-out image; over each column how much of the direction is added{}",
                    if overflowed > 0 { "; a free place: the inverse overflows" } else { "" }
                ),
            ],
            columns: std::iter::once("image".to_owned())
                .chain(
                    args.strengths.iter().map(|v| if *v == 0. { "0".to_owned() } else { format!("{v:+}") }),
                )
                .collect(),
            rows: picked.names.iter().map(row_name).collect(),
            cells: rows,
            shape,
            scale: args.scale.scale,
        };
        sheet.write(s.draft.drawn())?;
        let mut all = vec![picked.names.len(), n];
        all.extend(shape);
        let figures = json!({
            "label": args.label, "with": with.len(), "without": without.len(), "images": picked.names,
            "strengths": args.strengths, "held_out": held.len(), "auroc": told,
            "length": total.sqrt(), "share_of_levels": shares,
            "overflowed": overflowed, "mean_along": { "with": mean(&high), "without": mean(&low) },
        });
        let percent: Vec<String> = shares.iter().map(|v| format!("{:.0} %", 100. * v)).collect();
        let mut lines = vec![format!(
            "`{}`: a direction of length {:.3}, {} of it in each level{told_text}",
            args.label,
            total.sqrt(),
            percent.join(", ")
        )];
        if overflowed > 0 {
            lines.push(format!(
                "{overflowed} moved images are not finite and not drawn: give smaller --strengths"
            ));
        }
        let strengths = Tensor::new(args.strengths.as_slice(), &s.device)?.to_dtype(DType::F32)?;
        s.finish(
            figures,
            vec![
                ("direction", direction),
                ("z", z),
                ("images", images.reshape(all)?),
                ("strengths", strengths),
            ],
            &lines,
        )
    })
}
