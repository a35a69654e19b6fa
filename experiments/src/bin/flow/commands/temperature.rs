//! `flow temperature`: the same latents sampled at several temperatures.

use crate::args::finite_number;
use crate::draw::sheet::{Sheet, check_size};
use crate::progress::go_on;
use crate::session::{Grid, Session, brief, doubles, mean, pooled};
use anyhow::{Result, ensure};
use candle_core::Tensor;
use clap::Args;
use experiments::limits;
use flows::latents;
use serde_json::json;

/// `temperature`.
#[derive(Args)]
pub struct TemperatureArgs {
    #[command(flatten)]
    grid: Grid,
    /// Temperatures: factors of the latents.
    #[arg(long, value_delimiter = ',', default_value = "0,0.25,0.5,0.7,0.85,1,1.15", value_parser = finite_number)]
    temperatures: Vec<f64>,
    /// Number of samples at each temperature.
    #[arg(short, long = "number", default_value_t = 8)]
    n: usize,
}

/// Draws the same latents at several temperatures.
///
/// # Errors
/// When a temperature is negative or images are named.
pub fn run(args: &TemperatureArgs) -> Result<()> {
    let (s, shape) = Session::sheet(&args.grid, "temperature")?;
    ensure!(args.n > 0, "-n 0: draw at least one sample");
    let negative = args.temperatures.iter().find(|t| **t < 0.);
    ensure!(negative.is_none(), "--temperatures: {} is below 0", negative.copied().unwrap_or_default());
    limits::drawn(s.model.config(), args.n, "-n", s.device.is_cpu())?;
    check_size(args.temperatures.len(), args.n, shape, args.grid.scale)?;
    let given = s.given(args.n)?;
    pooled(|| {
        let cond = given.context();
        let z = latents::prior(&s.model, args.n, 1., args.grid.base.seed, cond)?;
        let (mut cells, mut bits, mut images, mut lost) = (vec![], vec![], vec![], vec![]);
        for t in &args.temperatures {
            go_on()?;
            // The same noise at every temperature.
            let x = s.model.sample(args.n, *t, args.grid.base.seed, cond)?;
            let row = s.seen(&x)?;
            let each = doubles(&s.model.bits_per_dim(&x, cond)?)?.into_iter().zip(&row);
            let finite = each.filter(|(b, cell)| cell.is_some() && b.is_finite());
            bits.push(mean(&finite.map(|(b, _)| b).collect::<Vec<_>>()));
            lost.push(row.iter().filter(|cell| cell.is_none()).count());
            cells.push(row);
            images.push(x);
        }
        ensure!(
            lost.iter().any(|n| *n < args.n),
            "no sample is finite at any of these temperatures, for the inverse of {} overflows: give smaller --temperatures",
            args.grid.base.weights
        );
        let mut notes = vec!["each column one latent, its noise multiplied by the temperature".to_owned()];
        let free = lost.iter().any(|n| *n > 0);
        notes.extend(free.then(|| "empty cells: the inverse overflowed".to_owned()));
        let (mut rows, mut lines) = (vec![], vec![]);
        for ((t, b), lost) in args.temperatures.iter().map(|t| brief(*t)).zip(&bits).zip(&lost) {
            let (row, mut line) = match b.is_finite() {
                true => {
                    (format!("{t}\n{b:.2} bits/dim"), format!("temperature {t}: {b:.4} bits/dim on average"))
                }
                false => (t.clone(), format!("temperature {t}: no bits/dim")),
            };
            if *lost > 0 {
                line += &format!("; {lost} of {} samples are not finite and not drawn", args.n);
            }
            rows.push(row);
            lines.push(line);
        }
        let sheet = Sheet { notes, rows, cells, ..s.blank(&args.grid, "Samples by temperature")? };
        sheet.write(s.draft.drawn())?;
        let figures = json!({
            "temperatures": args.temperatures, "bits_per_dim": bits, "samples": args.n, "not_finite": lost,
        });
        s.finish(figures, vec![("z", z), ("images", Tensor::stack(&images, 0)?)], &lines)
    })
}
