//! Decoding one picture file: as it is meant to be seen, whole or not at all.
//!
//! - The orientation that a camera wrote into the file (EXIF) is applied.
//! - A file that was cut short is refused. The decoder of JPEG fills what is missing with grey, so the end of the image is looked
//!   for first; the decoders of the other formats fail by themselves.
//! - Memory is bounded by the file's size: no format here compresses pictures by more than a factor of 1000, so a header that
//!   claims far more is damaged.

use super::set::planar;
use anyhow::{Context, Result, ensure};
use image::imageops::FilterType;
use image::{DynamicImage, ImageDecoder, ImageReader, Limits};
use std::io::Cursor;

/// Extensions of the formats that are read.
const READ: [&str; 8] = ["png", "jpg", "jpeg", "webp", "bmp", "gif", "tif", "tiff"];
/// Extensions of pictures that are not.
const NOT_READ: [&str; 14] =
    ["heic", "heif", "avif", "jxl", "jp2", "svg", "psd", "raw", "dng", "cr2", "nef", "arw", "exr", "hdr"];

/// What a file is, by its name.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// A picture that [`decode`] reads.
    Read,
    /// A picture of another format.
    NotRead,
    /// No picture.
    Other,
}

impl Kind {
    /// That of the file `name`.
    #[must_use]
    pub fn of(name: &str) -> Self {
        let extension = name.rsplit_once('.').map(|(_, extension)| extension.to_ascii_lowercase());
        match extension.as_deref() {
            Some(e) if READ.contains(&e) => Self::Read,
            Some(e) if NOT_READ.contains(&e) => Self::NotRead,
            _ => Self::Other,
        }
    }
}

/// Whether a JPEG file ends before its image does: the segments are followed to the marker of the end (EOI).
fn jpeg_is_cut(bytes: &[u8]) -> bool {
    let mut at = 2;
    loop {
        // Between segments, and within a scan's data, the next marker is an 0xFF that no 0 and no restart marker follows.
        while !matches!(bytes.get(at..at + 2), Some([0xff, m]) if !matches!(m, 0 | 0xff | 0xd0..=0xd7)) {
            if at + 2 >= bytes.len() {
                return true;
            }
            at += 1;
        }
        match (bytes[at + 1], bytes.get(at + 2..at + 4)) {
            (0xd9, _) => return false,
            (0x01, _) => at += 2,
            (_, Some(length)) => at += 2 + usize::from(u16::from_be_bytes([length[0], length[1]])).max(2),
            (_, None) => return true,
        }
    }
}

/// Decodes the bytes of the picture `name`, and turns it as its file says.
///
/// # Errors
/// When the file is of no format that is read, damaged, cut short or claims more pixels than its bytes can hold.
pub fn decode(bytes: &[u8], name: &str) -> Result<DynamicImage> {
    let unreadable =
        || format!("{name} is no readable picture (PNG, JPEG, WebP, BMP, GIF or TIFF): replace or remove it");
    ensure!(
        !(bytes.starts_with(&[0xff, 0xd8]) && jpeg_is_cut(bytes)),
        "{name} was cut short, its image does not end: replace or remove it"
    );
    let mut reader = ImageReader::new(Cursor::new(bytes)).with_guessed_format().with_context(unreadable)?;
    let mut limits = Limits::default();
    let most = (bytes.len() as u64).saturating_mul(4096).saturating_add(1 << 20);
    let most = limits.max_alloc.map_or(most, |default| default.min(most));
    limits.max_alloc = Some(most);
    reader.limits(limits);
    let mut decoder = reader.into_decoder().with_context(unreadable)?;
    // The limit is the decoder's own; the image that it writes to is not part of it.
    ensure!(
        decoder.total_bytes() <= most,
        "{name} claims {} × {} pixels, more than its {} bytes can hold: replace or remove it",
        decoder.dimensions().1,
        decoder.dimensions().0,
        bytes.len()
    );
    let orientation = decoder.orientation().with_context(unreadable)?;
    let mut image = DynamicImage::from_decoder(decoder).with_context(unreadable)?;
    image.apply_orientation(orientation);
    ensure!(image.height() > 0 && image.width() > 0, "{name} has no pixels: replace or remove it");
    Ok(image)
}

/// The square in the middle of an image, resized to a side of `size`.
///
/// # Errors
/// When no image can have that side.
pub fn fit(image: DynamicImage, size: usize) -> Result<DynamicImage> {
    ensure!(size > 0, "images of side 0 cannot be made: ask for a size of at least 1");
    let size =
        u32::try_from(size).with_context(|| format!("images of side {size} are too large: ask for less"))?;
    let side = image.width().min(image.height());
    let image = image.crop_imm((image.width() - side) / 2, (image.height() - side) / 2, side, side);
    Ok(if side == size { image } else { image.resize_exact(size, size, FilterType::CatmullRom) })
}

/// The bytes of an image channel by channel: one where `grey`, else three; an alpha channel is dropped, 16 bits become 8.
#[must_use]
pub fn bytes(image: &DynamicImage, grey: bool) -> Vec<u8> {
    if grey { image.to_luma8().into_raw() } else { planar(&image.to_rgb8(), 3) }
}

#[cfg(test)]
mod tests {
    use super::*;
    use image::codecs::jpeg::JpegEncoder;
    use image::codecs::png::PngEncoder;
    use image::{ExtendedColorType, ImageEncoder, ImageFormat, Rgb, RgbImage};

    /// Four quarters: black, red, green, blue.
    fn quarters() -> RgbImage {
        RgbImage::from_fn(48, 32, |x, y| match (x < 24, y < 16) {
            (true, true) => Rgb([0, 0, 0]),
            (false, true) => Rgb([255, 0, 0]),
            (true, false) => Rgb([0, 255, 0]),
            (false, false) => Rgb([0, 0, 255]),
        })
    }

    /// What EXIF holds of an image with this orientation.
    fn exif(orientation: u8) -> Vec<u8> {
        let mut tiff = b"II*\0\x08\0\0\0\x01\0\x12\x01\x03\0\x01\0\0\0".to_vec();
        tiff.extend([orientation, 0, 0, 0, 0, 0, 0, 0]);
        tiff
    }

    #[test]
    fn the_orientation_of_a_camera_is_applied() {
        // The corner that the black quarter of the stored image is shown in: left and top; rows and columns change places from 5 on.
        for (orientation, left, top) in [
            (1, true, true),
            (2, false, true),
            (3, false, false),
            (4, true, false),
            (5, true, true),
            (6, false, true),
            (7, false, false),
            (8, true, false),
        ] {
            let image = quarters();
            let size = (image.width(), image.height());
            let (mut jpeg, mut png) = (Vec::new(), Vec::new());
            let mut encoder = JpegEncoder::new_with_quality(&mut jpeg, 95);
            encoder.set_exif_metadata(exif(orientation)).unwrap();
            encoder.write_image(&image, size.0, size.1, ExtendedColorType::Rgb8).unwrap();
            let mut encoder = PngEncoder::new(&mut png);
            encoder.set_exif_metadata(exif(orientation)).unwrap();
            encoder.write_image(&image, size.0, size.1, ExtendedColorType::Rgb8).unwrap();
            for file in [jpeg, png] {
                let shown = decode(&file, "P").unwrap().to_rgb8();
                let turned = orientation > 4;
                assert_eq!(shown.dimensions(), if turned { (size.1, size.0) } else { size }, "{orientation}");
                let x = if left { 4 } else { shown.width() - 5 };
                let y = if top { 4 } else { shown.height() - 5 };
                let black = shown.get_pixel(x, y);
                assert!(black.0.iter().all(|&v| v < 40), "{orientation}: {black:?}");
            }
        }
    }

    /// Cut at a tenth, at half and just before its end, every format is refused; whole, with something behind it, it is read.
    #[test]
    fn what_was_cut_short_is_refused() {
        let noise = RgbImage::from_fn(40, 30, |x, y| {
            let v = (x * 7919 + y * 104_729) % 251;
            Rgb([v as u8, (v * 3 % 256) as u8, (x * y % 256) as u8])
        });
        let mut progressive = Vec::new();
        for format in [
            ImageFormat::Jpeg,
            ImageFormat::Png,
            ImageFormat::WebP,
            ImageFormat::Bmp,
            ImageFormat::Gif,
            ImageFormat::Tiff,
        ] {
            let mut file = Cursor::new(Vec::new());
            noise.write_to(&mut file, format).unwrap();
            let file = file.into_inner();
            let whole = decode(&file, "P").unwrap();
            assert_eq!((whole.width(), whole.height()), (40, 30), "{format:?}");
            for end in [file.len() / 10, file.len() / 2, file.len() - 40] {
                let error = decode(&file[..end], "P").map(drop).expect_err(&format!("{format:?} at {end}"));
                assert!(error.to_string().starts_with("P "), "{error}");
            }
            if format == ImageFormat::Jpeg {
                progressive = [&file[..], b"something that a phone added"].concat();
            }
        }
        assert!(decode(&progressive, "P").is_ok());
    }

    #[test]
    fn kinds_of_files() {
        for (name, kind) in [
            ("a.PNG", Kind::Read),
            ("b/c.Tiff", Kind::Read),
            ("d.heic", Kind::NotRead),
            ("notes.txt", Kind::Other),
            ("none", Kind::Other),
        ] {
            assert_eq!(Kind::of(name), kind, "{name}");
        }
    }
}
