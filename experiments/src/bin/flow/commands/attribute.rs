//! `flow attribute`: what a label changes, as a direction of latents.

use crate::args::list;
use crate::draw::sheet::{Sheet, check_size};
use crate::progress::go_on;
use crate::saved;
use crate::session::{BATCH, Grid, Images, Named, Session, auroc, doubles, mean, pooled};
use anyhow::{Context, Result, bail, ensure};
use candle_core::{DType, Tensor};
use clap::Args;
use experiments::data::{Dataset, Split};
use flows::latents;
use serde_json::json;

/// `attribute`.
#[derive(Args)]
pub struct AttributeArgs {
    #[command(flatten)]
    grid: Grid,
    #[command(flatten)]
    images: Images,
    /// Attribute or class by name; NAME=LEVEL selects one level of an attribute.
    #[arg(long)]
    label: String,
    /// Factors of the direction.
    #[arg(
        long,
        value_delimiter = ',',
        default_value = "-3,-2,-1,0,1,2,3",
        allow_hyphen_values = true,
        value_parser = list
    )]
    strengths: Vec<f64>,
    /// Number of training images to average, at most.
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
pub fn run(args: &AttributeArgs) -> Result<()> {
    /// Held-out images on which the direction is measured.
    const MEASURED: usize = 500;
    let (s, shape) = Session::sheet(&args.grid, "attribute")?;
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
    let part = saved::part(&data, from.split)?.clone();
    let held = part.take(MEASURED);
    let held_flags = has(&data, &held, &args.label)?;
    // Three of each kind, so that both directions are seen.
    let first = |with: bool| side(&held_flags, with).into_iter().take(3);
    let first: Vec<String> = first(false).chain(first(true)).map(|i| i.to_string()).collect();
    let specs = if args.images.images.is_empty() { &first } else { &args.images.images };
    check_size(specs.len(), 1 + args.strengths.len(), shape, args.grid.scale)?;
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
            scale: args.grid.scale,
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
