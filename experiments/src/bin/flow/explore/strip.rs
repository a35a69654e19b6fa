//! Film strips: one picture at several values of a control, as images, as one PNG and as an animation.

use super::answer::{Answer, Image};
use crate::draw::plots;
use anyhow::{Context, Result, ensure};
use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use image::codecs::gif::{GifEncoder, Repeat};
use image::{Delay, Frame, RgbaImage};
use serde_json::{Value, json};
use std::time::Duration;

/// Pictures of a strip, at most.
pub const LONGEST: usize = 41;
/// The side that a picture is enlarged towards.
const SIDE: u32 = 192;
/// White between pictures.
const GAP: u32 = 2;
/// Milliseconds of a frame of the animation.
const FRAME: u64 = 120;

/// The main images of an answer as one picture, as square as can be, RGB with its size.
fn tile(answer: &Answer) -> Result<(Vec<u8>, (u32, u32))> {
    let images: Vec<&Image> = answer.images.iter().filter(|image| image.main).collect();
    let first = images.first().context("this picture is not made of images, it has no film strip")?;
    let (w, h) = first.size();
    let columns = (1..=images.len() as u32).find(|c| c * c >= images.len() as u32).unwrap_or(1);
    let rows = (images.len() as u32).div_ceil(columns);
    let size = (columns * (w + GAP) - GAP, rows * (h + GAP) - GAP);
    let mut rgb = vec![255; (size.0 * size.1 * 3) as usize];
    for (i, image) in images.iter().enumerate() {
        let (column, row) = (i as u32 % columns, i as u32 / columns);
        let at = ((column * (w + GAP)) as usize, (row * (h + GAP)) as usize);
        plots::blit(&mut rgb, size.0 as usize, at, &image.bytes, image.shape, 1);
    }
    Ok((rgb, size))
}

/// RGB pixels, each enlarged to a square.
fn enlarged(rgb: &[u8], (w, h): (u32, u32)) -> (Vec<u8>, (u32, u32)) {
    let zoom = (SIDE / w.max(h)).max(1);
    let at = |y: u32, x: u32| ((y / zoom * w + x / zoom) * 3) as usize;
    let pixels = (0..h * zoom).flat_map(|y| (0..w * zoom).map(move |x| (y, x)));
    (pixels.flat_map(|(y, x)| rgb[at(y, x)..][..3].to_vec()).collect(), (w * zoom, h * zoom))
}

/// The answer with a strip of these answers: each as an image, all in one PNG, and forth and back as a GIF.
///
/// # Errors
/// When an answer has no image, or they differ in size.
pub fn strip(answers: &[Answer]) -> Result<Value> {
    let tiles = answers.iter().map(tile).collect::<Result<Vec<_>>>()?;
    let size = tiles.first().context("a film strip has at least one picture")?.1;
    ensure!(tiles.iter().all(|tile| tile.1 == size), "the pictures of this film strip differ in size");
    let url = |kind: &str, bytes: &[u8]| format!("data:image/{kind};base64,{}", STANDARD.encode(bytes));
    let mut images = Vec::new();
    let mut frames = Vec::new();
    for (rgb, size) in &tiles {
        let (large, (w, h)) = enlarged(rgb, *size);
        images.push(url("png", &plots::png(rgb, *size)?));
        let rgba = large.as_chunks::<3>().0.iter().flat_map(|&[r, g, b]| [r, g, b, 255]).collect();
        frames.push((large, RgbaImage::from_raw(w, h, rgba).expect("four bytes a pixel")));
    }
    let (w, h) = frames[0].1.dimensions();
    let width = tiles.len() as u32 * (w + GAP) - GAP;
    let mut row = vec![255; (width * h * 3) as usize];
    for (i, (large, _)) in frames.iter().enumerate() {
        for y in 0..h as usize {
            let to = (y * width as usize + i * (w + GAP) as usize) * 3;
            row[to..][..w as usize * 3].copy_from_slice(&large[y * w as usize * 3..][..w as usize * 3]);
        }
    }
    let mut gif = Vec::new();
    {
        let mut encoder = GifEncoder::new_with_speed(&mut gif, 10);
        encoder.set_repeat(Repeat::Infinite)?;
        let last = frames.len() - 1;
        // Forth and back, neither end twice.
        for i in (0..=last).chain((1..last).rev()) {
            let delay = Delay::from_saturating_duration(Duration::from_millis(FRAME));
            encoder.encode_frame(Frame::from_parts(frames[i].1.clone(), 0, 0, delay))?;
        }
    }
    Ok(json!({
        "images": images, "width": size.0, "height": size.1,
        "png": url("png", &plots::png(&row, (width, h))?), "gif": url("gif", &gif),
    }))
}

#[cfg(test)]
mod tests {
    use super::*;
    use image::AnimationDecoder;

    fn bytes(value: &Value) -> Vec<u8> {
        STANDARD.decode(value.as_str().unwrap().split_once("base64,").unwrap().1).unwrap()
    }

    #[test]
    fn a_strip_is_a_row_and_goes_forth_and_back() {
        let grey = |v: u8| Answer {
            images: vec![
                Image::beside(vec![9; 16], [1, 4, 4], ""),
                Image::main(vec![v; 16], [1, 4, 4], ""),
                Image::main(vec![v + 1; 16], [1, 4, 4], ""),
            ],
            ..Answer::default()
        };
        let strip = strip(&[grey(10), grey(20), grey(30)]).unwrap();
        assert_eq!(strip["images"].as_array().unwrap().len(), 3);
        let one = image::load_from_memory(&bytes(&strip["images"][1])).unwrap().into_rgb8();
        assert_eq!(
            (one.dimensions(), one.get_pixel(0, 0).0, one.get_pixel(6, 0).0),
            ((10, 4), [20; 3], [21; 3])
        );
        let all = image::load_from_memory(&bytes(&strip["png"])).unwrap().into_rgb8();
        assert_eq!((all.dimensions(), all.get_pixel(2 * 192, 0).0), ((3 * 192 - 2, 76), [30; 3]));
        let gif = bytes(&strip["gif"]);
        let gif = image::codecs::gif::GifDecoder::new(std::io::Cursor::new(gif)).unwrap();
        assert_eq!(gif.into_frames().count(), 4);
        assert!(super::strip(&[]).is_err() && super::strip(&[Answer::default()]).is_err());
    }
}
