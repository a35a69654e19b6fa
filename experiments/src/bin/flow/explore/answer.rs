//! What a browser is told: pictures, plots of points, lines of text, and the commands that make the same.

use crate::draw::plots::png;
use anyhow::Result;
use serde::Serialize;
use serde_json::{Value, json};

/// The answer to one request.
#[derive(Default)]
pub struct Answer {
    /// Images, in the order in which they are shown.
    pub images: Vec<Image>,
    /// Plots of points.
    pub plots: Vec<Plot>,
    /// What is said under them, a line each.
    pub facts: Vec<String>,
    /// The commands that make the same picture, a line each.
    pub commands: Vec<String>,
    /// How much of what the picture needs is computed, done and all: it is to be asked for again.
    pub waiting: Option<(usize, usize)>,
}

/// An image.
pub struct Image {
    /// Planar bytes.
    pub bytes: Vec<u8>,
    /// \[C, H, W\] with C = 1 or 3.
    pub shape: [usize; 3],
    /// What stands under it.
    pub caption: String,
    /// The name of the file that a command would write it to, for one that can be the image of other pictures.
    pub file: Option<String>,
    /// Whether it is what the picture is about: a film strip has these.
    pub main: bool,
}

impl Image {
    /// An image to compare with.
    pub fn beside(bytes: Vec<u8>, shape: [usize; 3], caption: impl Into<String>) -> Self {
        Self { bytes, shape, caption: caption.into(), file: None, main: false }
    }

    /// What a picture is about.
    pub fn main(bytes: Vec<u8>, shape: [usize; 3], caption: impl Into<String>) -> Self {
        Self { main: true, ..Self::beside(bytes, shape, caption) }
    }

    /// Its pixels, RGB.
    pub fn rgb(&self) -> Vec<u8> {
        let area = self.shape[1] * self.shape[2];
        (0..area).flat_map(|i| [0, 1, 2].map(|c| self.bytes[i + area * (c % self.shape[0])])).collect()
    }

    /// Width and height.
    pub fn size(&self) -> (u32, u32) {
        (self.shape[2] as u32, self.shape[1] as u32)
    }
}

/// Points, lines and a raster of the plane.
#[derive(Serialize)]
pub struct Plot {
    /// What stands above it.
    pub title: String,
    /// The range of the horizontal axis and that of the vertical one.
    pub window: [[f64; 2]; 2],
    /// Colours, row after row from the top, RGB, and the number of rows and columns.
    #[serde(skip)]
    pub raster: Option<(Vec<u8>, usize)>,
    /// Clouds of points.
    pub clouds: Vec<Cloud>,
    /// Lines.
    pub lines: Vec<Line>,
}

/// Points.
#[derive(Serialize)]
pub struct Cloud {
    /// Its name in the legend.
    pub name: &'static str,
    /// x and y in turn, rounded to what can be seen.
    pub points: Vec<f64>,
    /// The colour of each as an angle in degrees; none where all have that of the cloud.
    pub hues: Vec<u16>,
}

/// A line of a grid.
#[derive(Serialize)]
pub struct Line {
    /// Along which axis of the latents it is.
    pub axis: u8,
    /// Whether it is that axis itself.
    pub thick: bool,
    /// x and y in turn.
    pub points: Vec<f64>,
}

/// Coordinates as they are sent: thousandths of the window's side are less than a pixel. What is not finite is left out by pairs.
pub fn rounded(points: impl IntoIterator<Item = [f64; 2]>, side: f64) -> Vec<f64> {
    // A power of ten, so that what is rounded has few digits.
    let scale = 10f64.powf((2000. / side.max(f64::MIN_POSITIVE)).log10().ceil());
    let finite = points.into_iter().filter(|p| p.iter().all(|v| v.is_finite()));
    finite.flat_map(|p| p.map(|v| (v * scale).round() / scale)).collect()
}

impl Answer {
    /// As JSON. `url` makes of the file of a picture what a browser finds it by.
    ///
    /// # Errors
    /// Those of `url`.
    pub fn json(self, mut url: impl FnMut(Vec<u8>) -> Result<String>) -> Result<Value> {
        let mut images = Vec::new();
        for image in self.images {
            let png = png(&image.rgb(), image.size())?;
            images.push(json!({
                "url": url(png)?, "caption": image.caption, "file": image.file, "main": image.main,
                "width": image.size().0, "height": image.size().1,
            }));
        }
        let mut plots = Vec::new();
        for mut plot in self.plots {
            let raster = plot.raster.take();
            let raster = raster.map(|(rgb, side)| url(png(&rgb, (side as u32, side as u32))?)).transpose()?;
            let mut plot = serde_json::to_value(&plot)?;
            plot["raster"] = raster.into();
            plots.push(plot);
        }
        Ok(json!({
            "images": images, "plots": plots, "facts": self.facts, "commands": self.commands, "waiting": self.waiting,
        }))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn coordinates_are_short_and_an_image_is_its_bytes() {
        assert_eq!(rounded([[0.123456, -1.], [f64::NAN, 0.]], 4.), [0.123, -1.]);
        let image = Image::main((0..12).collect(), [3, 2, 2], "a");
        assert_eq!(image.rgb()[..6], [0, 4, 8, 1, 5, 9]);
        let (files, answer) =
            (std::cell::RefCell::new(vec![]), Answer { images: vec![image], ..Answer::default() });
        let json = answer.json(|png| {
            files.borrow_mut().push(png);
            Ok("0.png".to_owned())
        });
        let json = json.unwrap();
        assert_eq!((&json["images"][0]["url"], &json["images"][0]["main"]), (&"0.png".into(), &true.into()));
        let picture = image::load_from_memory(&files.into_inner()[0]).unwrap().into_rgb8();
        assert_eq!(picture.get_pixel(1, 0).0, [1, 5, 9]);
    }
}
