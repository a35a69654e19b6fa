//! The pictures of a run: sample grids, learning curves, two-dimensional densities.
//!
//! Everything is drawn into memory, encoded as PNG and written in one move, so that a folder never holds half a picture.
//! The font is built in: a machine without any has the same picture.

use anyhow::{Context, Result, ensure};
use flows::storage::write_atomic;
use image::codecs::png::{CompressionType, FilterType, PngEncoder};
use image::{ExtendedColorType, ImageEncoder};
use plotters::coord::Shift;
use plotters::prelude::*;
use plotters::style::{FontStyle, register_font};
use std::path::Path;
use std::sync::Once;

/// The longer side that a grid of samples is enlarged towards.
const GRID_SIDE: usize = 640;

/// How much finer [`fine`] draws.
pub const FINE: u32 = 3;

/// What is drawn on.
pub type Area<'b> = DrawingArea<BitMapBackend<'b>, Shift>;

/// RGB pixels as PNG.
///
/// # Errors
/// When there are not as many pixels as the size says.
pub fn png(rgb: &[u8], (width, height): (u32, u32)) -> Result<Vec<u8>> {
    let mut file = Vec::new();
    PngEncoder::new_with_quality(&mut file, CompressionType::Best, FilterType::Adaptive)
        .write_image(rgb, width, height, ExtendedColorType::Rgb8)
        .context("a picture cannot be encoded as PNG")?;
    Ok(file)
}

/// Writes RGB pixels as PNG.
///
/// # Errors
/// When the file cannot be written.
pub fn write_png(path: &Path, rgb: &[u8], size: (u32, u32)) -> Result<()> {
    Ok(write_atomic(path, &png(rgb, size)?)?)
}

/// Copies an image (planar bytes of shape \[C, H, W\] with C = 1 or 3) into a picture whose rows have `stride` pixels, each
/// pixel enlarged to a square of side `zoom`.
pub fn blit(
    rgb: &mut [u8],
    stride: usize,
    (left, top): (usize, usize),
    image: &[u8],
    [channels, height, width]: [usize; 3],
    zoom: usize,
) {
    for (y, x) in (0..height * zoom).flat_map(|y| (0..width * zoom).map(move |x| (y, x))) {
        let at = ((top + y) * stride + left + x) * 3;
        for c in 0..3 {
            rgb[at + c] = image[((c % channels) * height + y / zoom) * width + x / zoom];
        }
    }
}

/// Writes images (planar, all of `shape` = \[C, H, W\] with C = 1 or 3) as a grid that is as square as can be, each pixel
/// enlarged to a square so that small images can be seen.
///
/// # Errors
/// When there is no image, the channels are neither grey nor RGB, or the file cannot be written.
pub fn grid(path: &Path, images: &[Vec<u8>], shape: [usize; 3]) -> Result<()> {
    let [channels, height, width] = shape;
    ensure!(!images.is_empty(), "there are no samples to draw");
    ensure!(channels == 1 || channels == 3, "a picture has 1 or 3 channels, these images have {channels}");
    let columns = (1..=images.len()).find(|c| c * c >= images.len()).expect("the number itself is one");
    let rows = images.len().div_ceil(columns);
    let gap = 1;
    let (full_width, full_height) = (columns * (width + gap) + gap, rows * (height + gap) + gap);
    let zoom = (GRID_SIDE / full_width.max(full_height)).max(1);
    let mut rgb = vec![255; full_width * full_height * zoom * zoom * 3];
    for (i, image) in images.iter().enumerate() {
        let (top, left) = (i / columns * (height + gap) + gap, i % columns * (width + gap) + gap);
        blit(&mut rgb, full_width * zoom, (left * zoom, top * zoom), image, shape, zoom);
    }
    write_png(path, &rgb, (u32::try_from(full_width * zoom)?, u32::try_from(full_height * zoom)?))
}

/// Has the text of every picture in the built-in font; before anything is measured or drawn.
pub fn font() {
    static FONT: Once = Once::new();
    FONT.call_once(|| {
        // Only a damaged font is refused, and this one is compiled in.
        let _ = register_font("sans-serif", FontStyle::Normal, epaint_default_fonts::UBUNTU_LIGHT);
    });
}

/// Draws on white into RGB pixels.
///
/// # Errors
/// Those of `draw`.
pub fn canvas((width, height): (u32, u32), draw: impl FnOnce(&Area) -> Result<()>) -> Result<Vec<u8>> {
    font();
    let mut rgb = vec![255; (width * height * 3) as usize];
    let area = BitMapBackend::with_buffer(&mut rgb, (width, height)).into_drawing_area();
    draw(&area)?;
    area.present()?;
    drop(area);
    Ok(rgb)
}

/// Draws as [`canvas`], at `FINE` times the size with each square of pixels then averaged to one: thin, slanted lines stay
/// lines. What is drawn says its sizes in fine pixels.
///
/// # Errors
/// Those of `draw`.
pub fn fine((width, height): (u32, u32), draw: impl FnOnce(&Area) -> Result<()>) -> Result<Vec<u8>> {
    let fine = canvas((width * FINE, height * FINE), draw)?;
    let (w, h, by) = (width as usize, height as usize, FINE as usize);
    let mut rgb = Vec::with_capacity(w * h * 3);
    for (y, x, c) in (0..h).flat_map(|y| (0..w).flat_map(move |x| (0..3).map(move |c| (y, x, c)))) {
        let square = (0..by * by).map(|i| ((y * by + i / by) * w * by + x * by + i % by) * 3 + c);
        let sum: u32 = square.map(|at| u32::from(fine[at])).sum();
        rgb.push((sum / (FINE * FINE)) as u8);
    }
    Ok(rgb)
}

/// One line of a learning curve: (updates, value).
pub type Points = Vec<(f64, f64)>;

/// The pieces of a line that lie between `low` and `high`, each up to the point where it leaves them.
pub fn within(points: &[(f64, f64)], low: f64, high: f64) -> Vec<Points> {
    let inside = |v: f64| (low..=high).contains(&v);
    let mut pieces: Vec<Points> = vec![];
    for (i, &(u, v)) in points.iter().enumerate() {
        let before = i.checked_sub(1).map(|j| points[j]).filter(|p| p.1.is_finite() && v.is_finite());
        // Where the segment from the point before crosses a bound.
        let crossing = |from: f64| {
            let ((u0, v0), bound) = (before?, if from > high { high } else { low });
            Some((u0 + (bound - v0) / (v - v0) * (u - u0), bound))
        };
        match (before.map(|p| p.1), inside(v)) {
            (Some(v0), true) if inside(v0) => {
                pieces.last_mut().expect("it has the point before").push((u, v))
            }
            (Some(v0), true) => pieces.push(crossing(v0).into_iter().chain([(u, v)]).collect()),
            (Some(v0), false) if inside(v0) => {
                pieces.last_mut().expect("it has the point before").extend(crossing(v));
            }
            (None, true) => pieces.push(vec![(u, v)]),
            _ => {}
        }
    }
    pieces
}

/// A line of a chart of learning curves.
pub struct Series {
    /// Its name in the legend.
    pub name: String,
    /// Its points.
    pub points: Points,
    /// How it is drawn.
    pub style: ShapeStyle,
}

/// A chart of learning curves.
pub struct Curves<'a> {
    /// What stands above it.
    pub title: &'a str,
    /// What the points are over: `updates`.
    pub over: &'a str,
    /// The unit of the values.
    pub unit: &'a str,
    /// The lines.
    pub series: Vec<Series>,
    /// Horizontal lines with their labels.
    pub marks: Vec<(String, f64)>,
}

impl Curves<'_> {
    /// The range of values: that of the last nine tenths of each line, without the worst hundredth, because what matters is the
    /// end, and one spike would flatten it.
    fn range(&self) -> (f64, f64) {
        let mut late = Vec::new();
        for Series { points, .. } in &self.series {
            let last = points.iter().map(|p| p.0).fold(1e-9, f64::max);
            late.extend(points.iter().filter(|p| p.1.is_finite() && p.0 >= 0.1 * last).map(|p| p.1));
        }
        late.sort_by(f64::total_cmp);
        late.truncate(late.len() - late.len() / 100);
        let (low, high) = range(late.into_iter().chain(self.marks.iter().map(|l| l.1)));
        let margin = 0.05 * (high - low).max(1e-3);
        (low - margin, high + margin)
    }

    /// The picture as a PNG. A line ends at the border of the range where it leaves it. Above the range is room for the legend.
    ///
    /// # Errors
    /// When there is no point.
    pub fn png(mut self) -> Result<Vec<u8>> {
        self.series.retain(|line| line.points.iter().any(|p| p.1.is_finite()));
        ensure!(!self.series.is_empty(), "there is nothing to plot yet");
        let last = self.series.iter().flat_map(|s| s.points.iter().map(|p| p.0)).fold(1e-9, f64::max);
        let (low, high) = self.range();
        // An entry of the legend is about a twentieth of the picture's height.
        let entries = self.marks.len() + self.series.len();
        let top = low + (high - low) / (1. - 0.055 * (entries as f64 + 0.5)).max(0.3);
        let size = (900, 560);
        let rgb = canvas(size, |area| {
            let mut chart = ChartBuilder::on(area)
                .caption(self.title, ("sans-serif", 22))
                .margin(14)
                // The number of the last tick is written around the axis's end.
                .margin_right(36)
                .x_label_area_size(44)
                .y_label_area_size(64)
                .build_cartesian_2d(0. ..last, low..top)?;
            chart
                .configure_mesh()
                .light_line_style(WHITE)
                .bold_line_style(BLACK.mix(0.1))
                .x_desc(self.over)
                // Ticks are sums of a step: what rounding leaves behind the sixth digit is not theirs.
                .x_label_formatter(&|x| ((x * 1e6).round() / 1e6).to_string())
                .y_desc(self.unit)
                .label_style(("sans-serif", 15))
                .axis_desc_style(("sans-serif", 17))
                .draw()?;
            for Series { name, points, style } in self.series {
                let pieces = within(&points, low, high);
                // A point alone has no line.
                let alone = pieces.iter().filter(|piece| piece.len() == 1);
                let dots: Vec<_> = alone.map(|piece| Circle::new(piece[0], 2, style.filled())).collect();
                chart.draw_series(dots)?;
                chart
                    .draw_series(pieces.into_iter().map(|piece| PathElement::new(piece, style)))?
                    .label(name)
                    .legend(move |(x, y)| PathElement::new(vec![(x, y), (x + 22, y)], style));
            }
            let colours = [RGBColor(20, 130, 60), RGBColor(120, 60, 160), RGBColor(160, 30, 30), BLACK];
            for ((label, y), colour) in self.marks.into_iter().zip(colours.into_iter().cycle()) {
                chart
                    .draw_series(DashedLineSeries::new([(0., y), (last, y)], 7, 5, colour.stroke_width(1)))?
                    .label(label)
                    .legend(move |(x, y)| PathElement::new(vec![(x, y), (x + 22, y)], colour));
            }
            chart
                .configure_series_labels()
                .position(SeriesLabelPosition::UpperRight)
                .background_style(WHITE.mix(0.85))
                .border_style(BLACK.mix(0.3))
                .label_font(("sans-serif", 15))
                .draw()?;
            Ok(())
        })?;
        png(&rgb, size)
    }
}

/// Where a plane is looked at: the square that holds both clouds, with a margin.
pub struct Window {
    /// Its middle.
    pub centre: [f64; 2],
    /// Half of its side.
    pub half: f64,
}

impl Window {
    /// The square about the data.
    #[must_use]
    pub fn about(points: &[[f32; 2]]) -> Self {
        let range = |axis: usize| range(points.iter().map(|p| f64::from(p[axis])));
        let ((left, right), (bottom, top)) = (range(0), range(1));
        let half = 0.55 * (right - left).max(top - bottom).max(1e-6);
        Self { centre: [0.5 * (left + right), 0.5 * (bottom + top)], half }
    }

    /// The centres of a `side` by `side` raster, row after row from the top.
    #[must_use]
    pub fn raster(&self, side: usize) -> Vec<[f64; 2]> {
        let at = |i: usize| ((i as f64 + 0.5) / side as f64 * 2. - 1.) * self.half;
        (0..side)
            .flat_map(|row| {
                (0..side).map(move |column| [self.centre[0] + at(column), self.centre[1] - at(row)])
            })
            .collect()
    }

    /// Whether a point is in the window.
    #[must_use]
    pub fn holds(&self, [x, y]: [f64; 2]) -> bool {
        (x - self.centre[0]).abs() <= self.half && (y - self.centre[1]).abs() <= self.half
    }

    /// The range of an axis.
    #[must_use]
    pub fn range(&self, axis: usize) -> std::ops::Range<f64> {
        self.centre[axis] - self.half..self.centre[axis] + self.half
    }

    /// Squares for a density on [`Window::raster`]: white for 0, dark for `top`.
    #[must_use]
    pub fn shades(&self, density: &[f64], side: usize, top: f64) -> Vec<Rectangle<(f64, f64)>> {
        let half = self.half / side as f64;
        let square = |([x, y], p): ([f64; 2], &f64)| {
            let [r, g, b] = shade(p / top);
            Rectangle::new([(x - half, y + half), (x + half, y - half)], RGBColor(r, g, b).filled())
        };
        self.raster(side).into_iter().zip(density).map(square).collect()
    }
}

/// The colour of a share of the largest density: white for 0, dark for 1.
#[must_use]
pub fn shade(share: f64) -> [u8; 3] {
    // A root, so that thin tails are seen beside sharp peaks.
    let share = share.clamp(0., 1.).sqrt();
    [8., 48., 107.].map(|to: f64| (255. - share * (255. - to)).round() as u8)
}

/// The smallest and the largest of some values.
fn range(values: impl Iterator<Item = f64>) -> (f64, f64) {
    values.fold((f64::INFINITY, f64::NEG_INFINITY), |(low, high), v| (low.min(v), high.max(v)))
}

/// The largest finite density.
pub fn peak(density: &[f64]) -> f64 {
    density.iter().copied().filter(|p| p.is_finite()).fold(0., f64::max)
}

/// Data (if there are any), samples and the model's density on `side` by `side` points of the window, side by side.
///
/// # Errors
/// When the file cannot be written.
pub fn plane(
    path: &Path,
    window: &Window,
    data: Option<&[[f32; 2]]>,
    samples: &[[f32; 2]],
    density: &[f64],
    side: usize,
) -> Result<()> {
    const PANEL: u32 = 400;
    let contents = [("data", data), ("samples", Some(samples)), ("density of the model", None)];
    let contents = &contents[usize::from(data.is_none())..];
    // The plane is square: beside it are the labels of an axis, above it the title.
    let size = (contents.len() as u32 * (PANEL + 46), PANEL + 62);
    let rgb = canvas(size, |area| {
        let panels = area.split_evenly((1, contents.len()));
        for (panel, (title, points)) in panels.iter().zip(contents) {
            let mut chart = ChartBuilder::on(panel)
                .caption(*title, ("sans-serif", 20))
                .margin(6)
                .x_label_area_size(26)
                .y_label_area_size(40)
                .build_cartesian_2d(window.range(0), window.range(1))?;
            chart
                .configure_mesh()
                .disable_mesh()
                .x_labels(5)
                .y_labels(5)
                .label_style(("sans-serif", 14))
                .draw()?;
            match points {
                Some(points) => {
                    let style = RGBColor(31, 119, 180).mix(0.5).filled();
                    let inside = points.iter().map(|p| p.map(f64::from)).filter(|p| window.holds(*p));
                    chart.draw_series(inside.map(|p| Circle::new(p.into(), 1, style)))?;
                }
                None => _ = chart.draw_series(window.shades(density, side, peak(density).max(1e-300)))?,
            }
        }
        Ok(())
    })?;
    write_png(path, &rgb, size)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn size(path: &Path) -> (u32, u32) {
        let picture = image::open(path).unwrap();
        (picture.width(), picture.height())
    }

    fn curve(lines: &[Points], marks: &[(String, f64)]) -> Result<Vec<u8>> {
        let style = RGBColor(31, 119, 180).stroke_width(1);
        let series =
            lines.iter().map(|points| Series { name: "a line".into(), points: points.clone(), style });
        let (series, marks) = (series.collect(), marks.to_vec());
        Curves { title: "a run", over: "updates", unit: "bits/dim", series, marks }.png()
    }

    #[test]
    fn a_grid_shows_each_image_in_its_cell() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("grid.png");
        let images: Vec<Vec<u8>> = (0..5u8).map(|i| vec![40 * i; 12]).collect();
        grid(&path, &images, [3, 2, 2]).unwrap();
        let picture = image::open(&path).unwrap().into_rgb8();
        // Three columns, two rows, each cell two pixels and a gap, enlarged 64 times.
        assert_eq!((picture.width(), picture.height()), (640, 448));
        let (column, row) = (1, 1);
        let at = |i: u32| (i * 3 + 1) * 64 + 5;
        assert_eq!(picture.get_pixel(at(column), at(row)).0, [160; 3]);
        assert_eq!(picture.get_pixel(at(2), at(row)).0, [255; 3]);
        assert!(grid(&path, &[], [3, 2, 2]).is_err());
    }

    #[test]
    fn a_line_ends_at_the_border_where_it_leaves_the_range() {
        let line = [(0., 9.), (1., 7.), (2., 5.), (3., 9.), (4., 1.), (5., f64::NAN), (6., 4.)];
        assert_eq!(within(&line, 2., 8.), [vec![(0.5, 8.), (1., 7.), (2., 5.), (2.75, 8.)], vec![(6., 4.)]]);
        assert_eq!(within(&[(0., 3.), (1., 1.)], 2., 8.), [[(0., 3.), (0.5, 2.)]]);
        assert!(within(&[], 0., 1.).is_empty() && within(&[(0., 3.)], 0., 1.).is_empty());
    }

    #[test]
    fn curves_and_planes_are_drawn() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("curve.png");
        let line = |n: usize| (0..n).map(|i| (i as f64, 8. - i as f64 / n as f64)).collect::<Points>();
        let lines = [("paper 3.35".to_owned(), 6.9), ("entropy".to_owned(), 6.8)];
        std::fs::write(&path, curve(&[line(100), line(10)], &lines).unwrap()).unwrap();
        assert_eq!(size(&path), (900, 560));
        assert!(curve(&[vec![], vec![]], &lines).is_err());
        let points = [[0., 0.], [1., 2.], [-1., 0.5_f32]];
        let window = Window::about(&points);
        let density: Vec<f64> = window.raster(20).iter().map(|[x, y]| (-x * x - y * y).exp()).collect();
        plane(&path, &window, Some(&points), &points, &density, 20).unwrap();
        assert_eq!(size(&path), (1338, 462));
        // Each panel has the labels of its axis on the left, and none of them is cut.
        let picture = image::open(&path).unwrap().into_rgb8();
        let inked = |x: u32| (60..400).filter(|&y| picture.get_pixel(x, y).0 != [255; 3]).count();
        for left in [0, 446, 892] {
            assert_eq!((left..left + 3).map(inked).sum::<usize>(), 0, "at {left}");
            assert!((left + 3..left + 46).map(inked).sum::<usize>() > 100, "at {left}");
        }
    }

    #[test]
    fn a_curve_does_not_run_along_the_edge_of_its_picture() {
        // High for the first twentieth, then level but for a few spikes.
        let high = |u: u32| u < 100 || (u > 1000 && u % 1000 < 6);
        let line: Points = (0..2000).map(|u| (f64::from(u), if high(u) { 1e3 } else { 5. })).collect();
        let picture = image::load_from_memory(&curve(&[line], &[]).unwrap()).unwrap().into_rgb8();
        let blue = |y: u32| {
            let pixels = (70..picture.width()).map(|x| picture.get_pixel(x, y).0);
            pixels.filter(|[r, _, b]| *b > r.saturating_add(40)).count()
        };
        let (top, bottom) = ((0..250).map(blue).max(), (250..560).map(blue).max());
        assert!(top.unwrap() < 60 && bottom.unwrap() > 500, "{top:?}, {bottom:?}");
    }
}
