//! `ood`: how likely a model finds images that it was not trained on.
//!
//! Likelihood alone does not tell foreign images: simple ones may be more likely than those a model was trained on
//! (Nalisnick et al. 2019, arXiv 1810.09136), which is why both histograms are drawn and no threshold is offered.

use crate::draw::plots::{self, FINE};
use crate::session::{Base, Out, Session, Which, auroc, brief, doubles, mean, pooled};
use anyhow::{Context, Result, ensure};
use candle_core::Tensor;
use clap::Args;
use experiments::data::{Split, Values};
use flows::params::rng_for;
use plotters::prelude::*;
use rand::Rng;
use serde_json::json;
use std::path::PathBuf;

/// `ood`.
#[derive(Args)]
pub struct OodArgs {
    #[command(flatten)]
    base: Base,
    #[command(flatten)]
    from: Which,
    #[command(flatten)]
    out: Out,
    /// The other data set: a name as for --data-set, or `noise` (uniform pixels), `constant` (one colour an image) or
    /// `shuffled` (the pixels of the data's own images, each in another place).
    #[arg(long, value_name = "NAME")]
    against: String,
    /// Folder of the other data set (default: that of --data).
    #[arg(long, value_name = "DIR")]
    against_data: Option<PathBuf>,
    /// Number of images of each set, at most.
    #[arg(short, long = "number", default_value_t = 1000)]
    n: usize,
}

/// The other images, in the shape of `own`.
fn other(s: &Session, args: &OodArgs, own: &Split) -> Result<Split> {
    let [c, h, w] = s.shape()?;
    let mut rng = rng_for(args.base.seed, &args.against);
    let n = own.len();
    let pixels: Vec<u8> = match args.against.as_str() {
        "noise" => (0..n * c * h * w).map(|_| rng.random()).collect(),
        "constant" => (0..n * c).flat_map(|_| std::iter::repeat_n(rng.random(), h * w)).collect(),
        "shuffled" => {
            let mut all = Vec::with_capacity(n * c * h * w);
            for i in 0..n {
                let mut places: Vec<usize> = (0..h * w).collect();
                rand::seq::SliceRandom::shuffle(places.as_mut_slice(), &mut rng);
                for plane in own.pixels(i).chunks_exact(h * w) {
                    all.extend(places.iter().map(|&p| plane[p]));
                }
            }
            all
        }
        name => {
            let dir = args.against_data.clone().or_else(|| args.from.source.data.dir.clone());
            let foreign = args.against_data.is_some();
            let data = s.part_of(&args.from, name, dir, foreign).with_context(|| {
                format!("--against {name}: it is a data set, or `noise`, `constant` or `shuffled`")
            })?;
            let split = data.split.take(args.n);
            // Grey images are shown to a model of colours as colours.
            let grey = split.shape == [1, h, w] && c == 3 && split.is_pixels();
            if !grey {
                s.fits(&split, &data.name)?;
                return Ok(split);
            }
            (0..split.len()).flat_map(|i| split.pixels(i).repeat(3)).collect()
        }
    };
    let labels = s.model.config().classes().map(|_| vec![0; pixels.len() / (c * h * w)]);
    Split::new(vec![c, h, w], Values::Pixels(pixels), labels, None)
}

/// Histograms of bits/dim over the data's images and over others.
///
/// # Errors
/// When there is no such data set or its images are not the model's.
pub fn run(args: &OodArgs) -> Result<()> {
    let s = Session::open(&args.base, &args.out, "ood")?;
    s.without_features()?;
    s.shape()?;
    ensure!(args.n > 0, "-n 0: compare at least one image");
    let data = s.part(&args.from)?;
    let own = data.split.take(args.n);
    s.fits(&own, &data.name)?;
    let other = other(&s, args, &own)?;
    pooled(|| {
        let bits = |split: &Split, name: &str| -> Result<Vec<f64>> {
            tracing::info!("{name}: bits/dim of {} images", split.len());
            doubles(&s.over(split, |x, cond| Ok(s.model.bits_per_dim(x, cond)?))?)
        };
        let (name, against) = (&data.name, &args.against);
        let (a, b) = (bits(&own, name)?, bits(&other, against)?);
        let (mean_a, mean_b) = (mean(&a), mean(&b));
        let infinite = b.iter().chain(&a).filter(|v| !v.is_finite()).count();
        ensure!(
            infinite == 0,
            "{infinite} images have no finite bits/dim: look at the weights with `flow doctor`"
        );
        let told = auroc(&b, &a);
        let names = [
            format!("{name} {}, {mean_a:.2} bits/dim", data.part.name()),
            format!("{against}, {mean_b:.2} bits/dim"),
        ];
        draw(&s, &names, [&a, &b], told)?;
        let lines = [
            format!("{name}: {mean_a:.4} bits/dim over {} images", a.len()),
            format!("{against}: {mean_b:.4} bits/dim over {} images", b.len()),
            format!(
                "an image of `{against}` costs more than one of `{name}` in {:.1} % of pairs",
                100. * told
            ),
        ];
        let figures = json!({
            "data": name, "split": data.part.name(), "against": against,
            "bits_per_dim": mean_a, "against_bits_per_dim": mean_b, "auroc": told,
            "images": a.len(), "against_images": b.len(),
        });
        let tensors = vec![
            ("bits_per_dim", Tensor::new(a.as_slice(), &s.device)?),
            ("against_bits_per_dim", Tensor::new(b.as_slice(), &s.device)?),
        ];
        s.finish(figures, tensors, &lines)
    })
}

/// The range of some values without the outermost hundredth: a few outliers would flatten all others, and are in the
/// outermost bins.
fn ends(values: &[f64]) -> (f64, f64) {
    let mut v = values.to_vec();
    v.sort_by(f64::total_cmp);
    let cut = v.len() / 200;
    (v[cut], v[v.len() - 1 - cut])
}

/// Two histograms over one axis: the data's filled, the other an outline, so that they are told apart without colour.
fn draw(s: &Session, names: &[String; 2], values: [&[f64]; 2], told: f64) -> Result<()> {
    const BINS: usize = 60;
    const F: i32 = FINE as i32;
    let ((a, b), (c, d)) = (ends(values[0]), ends(values[1]));
    let (low, high) = (a.min(c), b.max(d));
    // What is far from all data may cost a thousand times as much.
    let log = low > 0. && high > 30. * low;
    let place = |v: f64| if log { v.max(f64::MIN_POSITIVE).log10() } else { v };
    let (low, high) = (place(low), place(high));
    let label = |v: &f64| match log {
        // Two digits: ticks stand between powers of ten, too.
        true => brief((10f64.powf(v.fract().rem_euclid(1.) + 1.)).round() * 10f64.powf(v.floor() - 1.)),
        false => brief(*v),
    };
    let margin = 0.03 * (high - low).max(1e-3);
    let (low, high) = (low - margin, high + margin);
    let width = (high - low) / BINS as f64;
    let shares = values.map(|v| {
        let mut bins = vec![0f64; BINS];
        for x in v {
            bins[(((place(*x) - low) / width).max(0.) as usize).min(BINS - 1)] += 1. / v.len() as f64;
        }
        bins
    });
    let top = shares.iter().flatten().copied().fold(0., f64::max) * 1.3;
    let title = format!("{}; the second costs more in {:.1} % of pairs", s.title("Bits/dim"), 100. * told);
    let size = (900, 480);
    let rgb = plots::fine(size, |area| {
        let mut chart = ChartBuilder::on(area)
            .caption(title, ("sans-serif", 21 * FINE))
            .margin(14 * FINE)
            .x_label_area_size(46 * FINE)
            .y_label_area_size(70 * FINE)
            .build_cartesian_2d(low..high, 0. ..top)?;
        chart
            .configure_mesh()
            .light_line_style(WHITE)
            .bold_line_style(BLACK.mix(0.1).stroke_width(FINE))
            .x_desc("bits/dim of an image; what lies beyond is in the outermost bars")
            .y_desc("share of images")
            .x_label_formatter(&label)
            .y_label_formatter(&|v| if *v > 1. { String::new() } else { format!("{:.0} %", 100. * v) })
            .label_style(("sans-serif", 15 * FINE))
            .axis_desc_style(("sans-serif", 17 * FINE))
            .draw()?;
        let blue = RGBColor(120, 170, 215);
        let edge = |i: usize| low + i as f64 * width;
        let bars = shares[0].iter().enumerate().filter(|(_, v)| **v > 0.);
        chart
            .draw_series(
                bars.map(|(i, v)| Rectangle::new([(edge(i), 0.), (edge(i + 1), *v)], blue.filled())),
            )?
            .label(names[0].clone())
            .legend(move |(x, y)| Rectangle::new([(x, y - 6 * F), (x + 22 * F, y + 6 * F)], blue.filled()));
        let dark = RGBColor(150, 50, 0).stroke_width(3 * FINE);
        // The outline begins and ends on the axis, where its images do.
        let taken = |bins: &[f64]| (bins.iter().position(|v| *v > 0.), bins.iter().rposition(|v| *v > 0.));
        let (Some(from), Some(to)) = taken(&shares[1]) else { return Ok(()) };
        let tops = (from..=to).flat_map(|i| [(edge(i), shares[1][i]), (edge(i + 1), shares[1][i])]);
        let steps = [(edge(from), 0.)].into_iter().chain(tops).chain([(edge(to + 1), 0.)]);
        chart
            .draw_series(LineSeries::new(steps, dark))?
            .label(names[1].clone())
            .legend(move |(x, y)| PathElement::new(vec![(x, y), (x + 22 * F, y)], dark));
        chart
            .configure_series_labels()
            .legend_area_size(30 * FINE)
            .margin(6 * FINE)
            .position(SeriesLabelPosition::UpperRight)
            .background_style(WHITE.mix(0.85))
            .border_style(BLACK.mix(0.3))
            .label_font(("sans-serif", 16 * FINE))
            .draw()?;
        Ok(())
    })?;
    plots::write_png(s.draft.drawn(), &rgb, size)
}
