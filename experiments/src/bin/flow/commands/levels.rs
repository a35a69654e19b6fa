//! `flow levels`: what each level of a multi-scale model holds.

use super::pictures::{Shown, free_places};
use crate::draw::sheet::{Sheet, check_size};
use crate::progress::go_on;
use crate::session::{Session, brief, check_temperature, doubles, mean, pooled};
use anyhow::{Result, ensure};
use candle_core::{DType, Tensor};
use clap::Args;
use flows::{Context, latents};
use serde_json::json;

/// `levels`.
#[derive(Args)]
pub struct LevelsArgs {
    #[command(flatten)]
    shown: Shown,
    /// Number of draws for each level.
    #[arg(long, default_value_t = 2, value_parser = clap::value_parser!(u8).range(1..=20))]
    draws: u8,
    /// Levels that are drawn anew together, as in 0,2 (default: each level by itself).
    #[arg(long, value_name = "LEVELS", value_delimiter = ',')]
    together: Vec<usize>,
    /// Temperature of the new latents.
    #[arg(long, default_value_t = 1., allow_negative_numbers = true)]
    temperature: f64,
}

/// Images of the latents z with some levels drawn anew from the prior.
pub fn redrawn(
    s: &Session,
    z: &Tensor,
    cond: Context,
    levels: &[usize],
    temperature: f64,
    seed: u64,
) -> Result<Tensor> {
    let fresh = latents::prior(&s.model, z.dim(0)?, temperature, seed, cond)?;
    Ok(s.model.decode(&latents::swap_levels(&s.model, z, &fresh, levels)?, cond)?)
}

/// Draws one level's latents anew and keeps the others.
///
/// # Errors
/// When the images are not the model's.
pub fn run(args: &LevelsArgs) -> Result<()> {
    let (s, shape) = Session::sheet(&args.shown.grid, "levels")?;
    let t = args.temperature;
    check_temperature(t)?;
    let picked = s.images(&args.shown.images, 5)?;
    check_size(picked.names.len(), 1 + usize::from(args.draws), shape, args.shown.grid.scale)?;
    pooled(|| {
        let (cond, n) = (picked.given.context(), picked.names.len());
        let z = s.model.encode(&picked.x, cond)?;
        let parts = s.model.levels(&z)?;
        let mut columns = vec!["image".to_owned()];
        let mut cells: Vec<_> = s.cells(&picked.x)?.into_iter().map(|c| vec![c]).collect();
        let (mut changes, mut all, mut lost) = (vec![], vec![], 0);
        let sets: Vec<Vec<usize>> = match args.together.is_empty() {
            true => (0..parts.len()).map(|level| vec![level]).collect(),
            false => vec![args.together.clone()],
        };
        for levels in &sets {
            let mut off = vec![];
            for draw in 0..args.draws {
                go_on()?;
                let seed = args.shown.grid.base.seed.wrapping_add(u64::from(draw));
                let x = redrawn(&s, &z, cond, levels, t, seed)?;
                let squares = doubles(&(&x - &picked.x)?.sqr()?.flatten_from(1)?.mean(1)?)?;
                let mut seen = vec![];
                for ((row, cell), square) in cells.iter_mut().zip(s.seen(&x)?).zip(squares) {
                    seen.extend(cell.is_some().then_some(square));
                    row.push(cell);
                }
                lost += n - seen.len();
                if !seen.is_empty() {
                    off.push(mean(&seen).sqrt());
                }
                columns.push(column(levels, &parts)?);
                all.push(x);
            }
            changes.push(mean(&off));
        }
        let drawn = all.len() * n;
        ensure!(
            lost < drawn,
            "no image with a level drawn anew is finite, for the inverse of {} overflows: give a smaller --temperature",
            args.shown.grid.base.weights
        );
        let (last, temperature, free) = (parts.len() - 1, brief(t), free_places(lost));
        let sheet = Sheet {
            notes: vec![format!(
                "level 0 is the first that is factored out, level {last} the last; temperature {temperature}{free}"
            )],
            columns,
            rows: picked.names.clone(),
            cells,
            ..s.blank(&args.shown.grid, "One level's latents drawn anew")?
        };
        sheet.write(s.draft.drawn())?;
        let mut lines = vec![];
        for (levels, off) in sets.iter().zip(&changes) {
            let numbers = levels.iter().map(|&l| parts[l].elem_count()).sum::<usize>() / n;
            let share = 100. * numbers as f64 / s.model.dims() as f64;
            let name = named(levels);
            lines.push(format!(
                "level {name}: {numbers} numbers ({share:.0} %), drawn anew they change a value by {off:.2} (root mean square)"
            ));
        }
        lines.extend((lost > 0).then(|| {
            format!("{lost} of {drawn} images are not finite and not drawn: give a smaller --temperature")
        }));
        let images = Tensor::stack(&all, 1)?;
        let figures = json!({
            "images": picked.names, "draws": args.draws, "temperature": t, "rms_change": changes,
            "levels": sets, "not_finite": lost,
            "shapes": parts.iter().map(|p| p.dims()[1..].to_vec()).collect::<Vec<_>>(),
        });
        s.finish(figures, vec![("z", z), ("images", images.to_dtype(DType::F32)?)], &lines)
    })
}

/// The label of a column: a level with its shape, or several.
fn column(levels: &[usize], parts: &[Tensor]) -> Result<String> {
    let &[level] = levels else { return Ok(format!("levels\n{}", named(levels))) };
    let (_, c, h, w) = parts[level].dims4()?;
    Ok(format!("level {level}\n{c}×{h}×{w}"))
}

/// Levels by their numbers: `0, 2`.
fn named(levels: &[usize]) -> String {
    levels.iter().map(usize::to_string).collect::<Vec<_>>().join(", ")
}
