//! A sheet of images: a title, notes, labelled rows and columns, a caption under each image.
//!
//! Black on white, so that a page may be dark or light; nothing is told by colour alone.

use super::plots::{Area, FINE, blit, fine, font, write_png};
use anyhow::{Result, ensure};
use plotters::prelude::*;
use std::path::Path;

/// Sizes of text in pixels.
const TITLE: u32 = 21;
const TEXT: u32 = 16;
const SMALL: u32 = 14;

/// White about everything.
const MARGIN: u32 = 16;
/// White between images.
const GAP: u32 = 6;

/// The side that small images are enlarged to, about.
const SIDE: usize = 64;
/// The longest side of a picture; image viewers and browsers take it.
const LONGEST: usize = 16_384;

/// One image of the sheet.
pub struct Cell {
    /// Planar bytes.
    pub bytes: Vec<u8>,
    /// What stands under it; may be empty.
    pub caption: String,
}

impl Cell {
    /// A place of a sheet with an image in it.
    pub fn new(bytes: Vec<u8>, caption: impl Into<String>) -> Option<Self> {
        Some(Self { bytes, caption: caption.into() })
    }
}

/// The sheet.
#[derive(Default)]
pub struct Sheet {
    /// One line on top.
    pub title: String,
    /// Lines below it.
    pub notes: Vec<String>,
    /// A label over each column; a line break starts another line.
    pub columns: Vec<String>,
    /// A label before each row; a line break starts another line.
    pub rows: Vec<String>,
    /// The images, row by row; `None` leaves a place free.
    pub cells: Vec<Vec<Option<Cell>>>,
    /// The shape of each image, [1 or 3, H, W].
    pub shape: [usize; 3],
    /// How many times a pixel is enlarged; by default as many as make an image some 64 pixels high.
    pub scale: Option<u32>,
}

/// How many times a pixel is enlarged.
fn zoom(height: usize, width: usize, scale: Option<u32>) -> u32 {
    scale.unwrap_or_else(|| (SIDE / height.max(width).max(1)).max(1) as u32)
}

/// Refuses a sheet of so many images before they are made.
///
/// # Errors
/// When it would be larger than a picture can be.
pub fn check_size(
    rows: usize,
    columns: usize,
    [_, height, width]: [usize; 3],
    scale: Option<u32>,
) -> Result<()> {
    let zoom = zoom(height, width, scale) as usize;
    let size = (columns * (width * zoom + GAP as usize), rows * (height * zoom + GAP as usize));
    can_be(size, "at least ")
}

/// Refuses a picture of more pixels a side than viewers take.
fn can_be((width, height): (usize, usize), about: &str) -> Result<()> {
    ensure!(
        width.max(height) <= LONGEST,
        "the picture would be {about}{width} × {height} pixels, more than {LONGEST} a side: ask for fewer images or a smaller \
         --scale"
    );
    Ok(())
}

/// The width of a text.
fn width_of(text: &str, size: u32) -> u32 {
    let measured = ("sans-serif", size * FINE).into_font().layout_box(text);
    measured.map_or(text.len() as u32 * size / 2, |(from, to)| ((to.0 - from.0).max(0) as u32).div_ceil(FINE))
}

fn widest(text: &str, size: u32) -> u32 {
    text.lines().map(|line| width_of(line, size)).max().unwrap_or(0)
}

fn line(size: u32) -> u32 {
    size + size / 3
}

/// Where everything is.
struct Places {
    zoom: u32,
    /// Left of the first column, top of the first row.
    origin: (u32, u32),
    /// From one column or row to the next.
    pitch: (u32, u32),
    /// Top of the columns' labels.
    header: u32,
    size: (u32, u32),
}

impl Sheet {
    fn places(&self) -> Result<Places> {
        font();
        let [channels, height, width] = self.shape;
        ensure!(
            channels == 1 || channels == 3,
            "a picture has 1 or 3 channels, these images have {channels}: they cannot be drawn"
        );
        let zoom = zoom(height, width, self.scale);
        let lines = |labels: &[String]| labels.iter().map(|l| l.lines().count()).max().unwrap_or(0) as u32;
        let captions = self.cells.iter().flatten().flatten().map(|c| &c.caption);
        let caption = captions.map(|c| widest(c, SMALL)).max().unwrap_or(0);
        let labels = self.columns.iter().map(|l| widest(l, TEXT)).max().unwrap_or(0);
        // A long label has the columns further apart rather than another over its neighbour.
        let column = (width as u32 * zoom).max(labels + 8).max(caption + 8) + GAP;
        let under = if caption > 0 { line(SMALL) + 4 } else { 0 };
        let row = (height as u32 * zoom + under + GAP).max(lines(&self.rows) * line(TEXT) + GAP);
        let left = self.rows.iter().map(|l| widest(l, TEXT)).max().unwrap_or(0);
        let left = MARGIN + if left > 0 { left + 12 } else { 0 };
        let header = MARGIN + line(TITLE) + self.notes.len() as u32 * line(TEXT) + 6;
        let top = header + lines(&self.columns) * line(TEXT) + if self.columns.is_empty() { 0 } else { 4 };
        let columns = self.cells.iter().map(Vec::len).max().unwrap_or(0) as u32;
        let notes = self.notes.iter().map(|n| width_of(n, TEXT)).max().unwrap_or(0);
        let text = MARGIN + notes.max(width_of(&self.title, TITLE));
        let size =
            ((left + columns * column).max(text) + MARGIN, top + self.cells.len() as u32 * row + MARGIN);
        can_be((size.0 as usize, size.1 as usize), "")?;
        Ok(Places { zoom, origin: (left, top), pitch: (column, row), header, size })
    }

    /// Draws all text, at a higher resolution that is then averaged down: at these sizes letters and spaces that begin at whole
    /// pixels look uneven.
    fn text(&self, rgb: &mut [u8], p: &Places) -> Result<()> {
        let stride = p.size.0 as usize;
        let mut put = |text: &str, x: u32, y: u32, size: u32| -> Result<()> {
            if text.is_empty() {
                return Ok(());
            }
            // Letters may stand out above their place.
            let above = size / 3;
            let width = (width_of(text, size) + 4).min(p.size.0.saturating_sub(x));
            let letters = fine((width, line(size) + above), |area| {
                let style = ("sans-serif", size * FINE).into_font().color(&RGBColor(20, 20, 20));
                Ok(area.draw(&Text::new(text.to_owned(), (0, (above * FINE) as i32), style))?)
            })?;
            let (x, top, width) = (x as usize, y.saturating_sub(above) as usize, width as usize);
            for (row, letters) in letters.chunks_exact(3 * width).enumerate() {
                let at = ((top + row) * stride + x) * 3;
                let Some(under) = rgb.get_mut(at..at + 3 * width) else { continue };
                // Dark on what is there: a box of text may reach into its neighbour's.
                under.iter_mut().zip(letters).for_each(|(u, l)| *u = (*u).min(*l));
            }
            Ok(())
        };
        put(&self.title, MARGIN, MARGIN, TITLE)?;
        for (i, note) in self.notes.iter().enumerate() {
            put(note, MARGIN, MARGIN + line(TITLE) + i as u32 * line(TEXT), TEXT)?;
        }
        let image = self.shape[2] as u32 * p.zoom;
        // Text stands over the middle of its image.
        let centred = |text: &str, column: usize, size: u32| {
            let middle = p.origin.0 + column as u32 * p.pitch.0 + image.max(p.pitch.0 - GAP) / 2;
            middle.saturating_sub(width_of(text, size) / 2)
        };
        for (column, label) in self.columns.iter().enumerate() {
            for (i, text) in label.lines().enumerate() {
                put(text, centred(text, column, TEXT), p.header + i as u32 * line(TEXT), TEXT)?;
            }
        }
        for (row, label) in self.rows.iter().enumerate() {
            let lines = label.lines().count() as u32;
            let top = p.origin.1 + row as u32 * p.pitch.1;
            let middle = (self.shape[1] as u32 * p.zoom).saturating_sub(lines * line(TEXT)) / 2;
            for (i, text) in label.lines().enumerate() {
                put(text, MARGIN, top + middle + i as u32 * line(TEXT), TEXT)?;
            }
        }
        for (row, cells) in self.cells.iter().enumerate() {
            for (column, cell) in cells.iter().enumerate() {
                let Some(cell) = cell else { continue };
                let y = p.origin.1 + row as u32 * p.pitch.1 + self.shape[1] as u32 * p.zoom + 5;
                put(&cell.caption, centred(&cell.caption, column, SMALL), y, SMALL)?;
            }
        }
        Ok(())
    }

    /// Puts the images themselves over what was drawn.
    fn blit(&self, rgb: &mut [u8], p: &Places) {
        let (zoom, stride) = (p.zoom as usize, p.size.0 as usize);
        let inset = ((p.pitch.0 - GAP) as usize).saturating_sub(self.shape[2] * zoom) / 2;
        for (row, cells) in self.cells.iter().enumerate() {
            for (column, cell) in cells.iter().enumerate() {
                let Some(cell) = cell else { continue };
                let top = p.origin.1 as usize + row * p.pitch.1 as usize;
                let left = p.origin.0 as usize + column * p.pitch.0 as usize + inset;
                blit(rgb, stride, (left, top), &cell.bytes, self.shape, zoom);
            }
        }
    }

    /// Writes the sheet.
    ///
    /// # Errors
    /// When it would be too large, its images are neither grey nor RGB, or the file cannot be written.
    pub fn write(&self, path: &Path) -> Result<()> {
        self.write_over(path, 0, |_| Ok(()))
    }

    /// Writes the sheet with a drawing of `height` pixels below it, which says its sizes in fine pixels.
    ///
    /// # Errors
    /// As [`Sheet::write`], and those of `below`.
    pub fn write_over(
        &self,
        path: &Path,
        height: u32,
        below: impl FnOnce(&Area) -> Result<()>,
    ) -> Result<()> {
        let p = self.places()?;
        let mut rgb = vec![255; p.size.0 as usize * p.size.1 as usize * 3];
        self.text(&mut rgb, &p)?;
        self.blit(&mut rgb, &p);
        if height > 0 {
            rgb.extend(fine((p.size.0, height), below)?);
        }
        write_png(path, &rgb, (p.size.0, p.size.1 + height))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn images_stand_in_their_places_and_captions_do_not_meet() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("sheet.png");
        let cell = |v: u8, caption: &str| Some(Cell { bytes: vec![v; 12], caption: caption.to_owned() });
        let mut sheet = Sheet {
            title: "a title".to_owned(),
            notes: vec!["a note".to_owned()],
            columns: vec!["one".to_owned(), "two\nlines".to_owned()],
            rows: vec!["first".to_owned(), "second".to_owned()],
            cells: vec![vec![cell(10, ""), None], vec![cell(20, ""), cell(200, "a long caption")]],
            shape: [3, 2, 2],
            scale: None,
        };
        sheet.write(&path).unwrap();
        let picture = image::open(&path).unwrap().into_rgb8();
        let p = sheet.places().unwrap();
        assert_eq!((picture.width(), picture.height()), p.size);
        assert_eq!(p.zoom, 32);
        assert!(p.pitch.0 >= width_of("a long caption", SMALL));
        let middle = |column: u32, row: u32| {
            let x = p.origin.0 + column * p.pitch.0 + (p.pitch.0 - GAP) / 2;
            picture.get_pixel(x, p.origin.1 + row * p.pitch.1 + 20).0
        };
        assert_eq!(
            [middle(0, 0), middle(1, 0), middle(0, 1), middle(1, 1)],
            [[10; 3], [255; 3], [20; 3], [200; 3]]
        );
        sheet.scale = Some(10_000);
        assert!(sheet.write(&path).unwrap_err().to_string().contains("--scale"));
        sheet.shape = [2, 2, 2];
        assert!(sheet.write(&path).is_err());
    }
}
