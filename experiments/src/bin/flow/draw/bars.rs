//! Bars of bits/dim on disk: a flow's files beside those of image formats.

use super::plots::{canvas, png};
use anyhow::{Result, ensure};
use experiments::data::file_name;
use experiments::summary::{OnDisk, Summary};
use plotters::prelude::{BLACK, Color, IntoFont, RGBColor, Rectangle, Text};
use plotters::style::text_anchor::{HPos, Pos, VPos};
use std::path::Path;

/// Height of a bar and of a run's name, in pixels.
const LINE: i32 = 26;

/// A bar: what it is, its bits/dim, and whether it is the flow's.
type Bar = (String, f64, bool);

/// The name of a run, and the bars of what its images take; nothing where they were not compressed.
fn bars(dir: &Path, summary: &Summary) -> Option<(String, Vec<Bar>)> {
    let OnDisk { data, images, bits_per_dim, .. } = summary.on_disk.as_ref()?;
    let name = file_name(&dir.canonicalize().unwrap_or_else(|_| dir.to_owned()));
    let mut bars = vec![(name.clone(), *bits_per_dim, true)];
    if let Some(codecs) = &summary.beside.codecs {
        // A format takes more bits/dim of few images, so their number is written where it differs from the flow's.
        let of = if codecs.images == *images { String::new() } else { format!(", {}", codecs.images) };
        bars.extend(codecs.each().map(|(name, bits, _)| (format!("{name}{of}"), bits, false)));
    }
    bars.sort_by(|a, b| a.1.total_cmp(&b.1));
    Some((format!("{images} images of {data}"), bars))
}

/// One picture (PNG) of all runs whose images have been compressed, bits/dim from 0.
///
/// # Errors
/// When there is none.
pub fn draw(runs: &[(&Path, &Summary)]) -> Result<Vec<u8>> {
    let (left, width) = (190, 460);
    let groups: Vec<_> = runs.iter().filter_map(|(dir, summary)| bars(dir, summary)).collect();
    ensure!(!groups.is_empty(), "no run has compressed images: `flow compress RUN --record` measures them");
    let lines: usize = groups.iter().map(|(_, bars)| bars.len() + 1).sum();
    let most = groups.iter().flat_map(|(_, bars)| bars.iter().map(|bar| bar.1)).fold(0., f64::max);
    let size = (720, (lines as i32 * LINE + groups.len() as i32 * LINE / 2 + 10) as u32);
    let text = |size: i32| ("sans-serif", size).into_font().color(&BLACK.mix(0.8));
    let rgb = canvas(size, |area| {
        let mut y = 8;
        for (title, bars) in &groups {
            area.draw(&Text::new(format!("bits/dim, {title}"), (14, y), text(16)))?;
            y += LINE;
            for (name, bits, ours) in bars {
                let right = left + (f64::from(width) * bits / most) as i32;
                let colour = if *ours { RGBColor(30, 90, 150) } else { RGBColor(185, 190, 200) };
                area.draw(&Rectangle::new([(left, y + 2), (right, y + LINE - 4)], colour.filled()))?;
                let middle = y + LINE / 2 - 1;
                let before = text(15).pos(Pos::new(HPos::Right, VPos::Center));
                area.draw(&Text::new(name.clone(), (left - 8, middle), before))?;
                let value = text(15).pos(Pos::new(HPos::Left, VPos::Center));
                area.draw(&Text::new(format!("{bits:.3}"), (right + 8, middle), value))?;
                y += LINE;
            }
            y += LINE / 2;
        }
        Ok(())
    })?;
    png(&rgb, size)
}
