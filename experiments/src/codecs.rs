//! What the same test images cost without a flow: lossless codecs, and an independent Gaussian per subpixel.
//!
//! bits/dim = 8 · bytes / (N C H W), over whole files, headers and all. Small images suffer from per-file
//! overhead, so each codec is measured on one file per image and on sheets of all images side by side, and
//! the smaller total counts.
//!
//! | codec | encoder | effort |
//! |---|---|---|
//! | PNG | oxipng | preset 6: every filter strategy, deflate of libdeflate at level 12 |
//! | WebP, lossless | libwebp 1.6 | method 6, the better of the qualities 50 and 100 |
//! | JPEG XL, lossless | jixel 0.5 | `Slow`: learned context trees, every coding tool |
//!
//! JPEG XL is the strongest of the three by far, and the one that a flow has to beat. Its reference encoder, libjxl, needs
//! cmake and a C++ compiler; jixel is Rust alone. Bits/dim of both on one sheet, libjxl 0.11.2 by its efforts:
//!
//! | images | jixel `Slow` | libjxl 7 | libjxl 9 | libjxl 10 |
//! |---|---:|---:|---:|---:|
//! | CIFAR-10, the first 1000 of test | 3.815 | 3.924 | 3.917 | 3.937 |
//! | drawn faces, the first 300 of test | 4.922 | 5.087 | 5.024 | 4.995 |
//! | MNIST, the first 1000 of test | 1.166 | 1.429 | 1.350 | 1.140 |

use crate::data::{Split, Values};
use crate::ranks::Ranks;
use anyhow::{Context, Result, anyhow, bail, ensure};
use image::{DynamicImage, GrayImage, RgbImage};
use libwebp_sys::{
    WebPConfig, WebPEncode, WebPMemoryWrite, WebPMemoryWriter, WebPMemoryWriterClear, WebPPicture,
    WebPPictureFree, WebPPictureImportRGB,
};
use oxipng::{BitDepth, ColorType, RawImage};
use rayon::prelude::*;

/// The longest side that the WebP format can hold.
const WEBP_SIDE: usize = 16_383;

/// Images on one sheet at most: by 1000 images the headers cost nothing any more.
const SHEET: usize = 1_024;

/// What a codec needs for a set of images.
#[derive(Clone, Debug, PartialEq)]
pub struct Least {
    /// Bits per dimension.
    pub bits_per_dim: f64,
    /// Which arrangement gave them: one file per image, or sheets.
    pub how: String,
}

impl Least {
    /// For another process: the number's bits, then the text.
    fn to_bytes(&self) -> Vec<u8> {
        [&self.bits_per_dim.to_le_bytes()[..], self.how.as_bytes()].concat()
    }

    fn from_bytes(bytes: &[u8]) -> Result<Self> {
        let (number, how) = bytes.split_first_chunk().context("a rank has sent no codec's bits/dim")?;
        Ok(Self { bits_per_dim: f64::from_le_bytes(*number), how: std::str::from_utf8(how)?.to_owned() })
    }
}

/// What lossless codecs need for a set of images.
#[derive(Clone, Debug, PartialEq)]
pub struct CodecBits {
    /// PNG by oxipng at its highest preset.
    pub png: Least,
    /// Lossless WebP by libwebp at method 6, the better of two qualities.
    pub webp: Least,
    /// Lossless JPEG XL by jixel at speed `Slow`.
    pub jxl: Least,
}

/// Puts images (planar, of one shape) on one picture, row after row of the grid; unused cells stay black.
fn tile(images: &[&[u8]], channels: usize, height: usize, width: usize, columns: usize) -> DynamicImage {
    let rows = images.len().div_ceil(columns);
    let (full_height, full_width) = (rows * height, columns * width);
    let mut bytes = vec![0; full_height * full_width * channels];
    for (i, image) in images.iter().enumerate() {
        let (top, left) = (i / columns * height, i % columns * width);
        for (at, &byte) in image.iter().enumerate() {
            let (channel, y, x) = (at / (height * width), at / width % height, at % width);
            bytes[((top + y) * full_width + left + x) * channels + channel] = byte;
        }
    }
    let (full_width, full_height) = (full_width as u32, full_height as u32);
    let picture = match channels {
        1 => GrayImage::from_raw(full_width, full_height, bytes).map(DynamicImage::from),
        _ => RgbImage::from_raw(full_width, full_height, bytes).map(DynamicImage::from),
    };
    picture.expect("there is a byte for each subpixel")
}

/// A way to encode a picture.
type Encode = fn(&DynamicImage) -> Result<Vec<u8>>;

/// Encodes by oxipng, which tries every filter strategy, and keeps the smallest file.
fn png(picture: &DynamicImage) -> Result<Vec<u8>> {
    let colour = match picture.color().channel_count() {
        1 => ColorType::Grayscale { transparent_shade: None },
        _ => ColorType::RGB { transparent_color: None },
    };
    let bytes = picture.as_bytes().to_vec();
    RawImage::new(picture.width(), picture.height(), colour, BitDepth::Eight, bytes)
        .and_then(|image| image.create_optimized_png(&oxipng::Options::max_compression()))
        .context("oxipng failed on an image of the test set")
}

/// Encodes losslessly with libwebp at its slowest method and keeps the smaller file of two qualities, which for lossless
/// files are efforts: 100 finds more, but on sheets of some hundred small images at times spends more on its tables.
fn webp(picture: &DynamicImage) -> Result<Vec<u8>> {
    let files = (webp_at(picture, 100.0)?, webp_at(picture, 50.0)?);
    Ok(if files.0.len() <= files.1.len() { files.0 } else { files.1 })
}

/// Encodes losslessly with libwebp. WebP has no grey images: grey goes in as three equal channels, which its colour
/// transform turns back into one.
fn webp_at(picture: &DynamicImage, quality: f32) -> Result<Vec<u8>> {
    let mismatch = |()| anyhow!("libwebp refused its own default settings: rebuild it with its own headers");
    let mut config = WebPConfig::new().map_err(mismatch)?;
    config.lossless = 1;
    config.quality = quality;
    config.method = 6;
    config.exact = 1;
    let rgb = picture.to_rgb8();
    let mut input = WebPPicture::new().map_err(mismatch)?;
    input.use_argb = 1;
    input.width = i32::try_from(rgb.width())?;
    input.height = i32::try_from(rgb.height())?;
    let mut output = WebPMemoryWriter { mem: std::ptr::null_mut(), size: 0, max_size: 0, pad: [0] };
    input.writer = Some(WebPMemoryWrite);
    input.custom_ptr = (&raw mut output).cast();
    // SAFETY: libwebp has initialised `config` and `input`; `rgb` holds rows of 3 · width bytes; `output` is empty, as its
    // initialiser leaves it, and lives until the last call. `mem` has `size` bytes where the encoder succeeded, and what
    // libwebp allocated is freed whether or not it did.
    let file = unsafe {
        let encoded = WebPPictureImportRGB(&mut input, rgb.as_ptr(), 3 * input.width) != 0
            && WebPEncode(&config, &mut input) != 0;
        let file = encoded.then(|| std::slice::from_raw_parts(output.mem, output.size).to_vec());
        WebPMemoryWriterClear(&mut output);
        WebPPictureFree(&mut input);
        file
    };
    file.with_context(|| format!("libwebp failed on an image of the test set: {:?}", input.error_code))
}

/// Encodes losslessly as JPEG XL. The bytes do not depend on the number of threads.
fn jxl(picture: &DynamicImage) -> Result<Vec<u8>> {
    let config = jixel::EncodeConfig::default()
        .with_lossless(true)
        .with_speed(jixel::Speed::Slow)
        .with_num_threads(rayon::current_num_threads());
    let encode = match picture.color().channel_count() {
        1 => jixel::encode_image_gray,
        _ => jixel::encode_image,
    };
    encode(picture.as_bytes(), picture.width() as usize, picture.height() as usize, &config)
        .context("jixel failed on an image of the test set")
}

/// The number of columns that lays `n` images out without an empty cell, where some grid no longer than four
/// times its other side does; else the square root.
fn columns(n: usize) -> usize {
    let root = n.isqrt().max(1);
    (1..=root).rev().find(|c| n.is_multiple_of(*c) && n <= 4 * c * c).map_or(root, |c| n / c)
}

/// The bytes of all files that `encode` makes of pictures.
fn total<'a>(pictures: impl ParallelIterator<Item = &'a DynamicImage>, encode: Encode) -> Result<usize> {
    pictures.map(|picture| Ok(encode(picture)?.len())).sum()
}

/// The smaller of two arrangements of `dims` subpixels.
fn least(singles: &[DynamicImage], sheets: &[DynamicImage], dims: usize, encode: Encode) -> Result<Least> {
    // One file per image takes up to four times as long as the sheets and, for small images, is seldom smaller. So every
    // eighth image gives an estimate first, and all are encoded only if that is close to the sheets.
    let eighth = || singles.par_iter().step_by(8);
    let (on_sheets, sample) = rayon::join(|| total(sheets.par_iter(), encode), || total(eighth(), encode));
    let (on_sheets, sample) = (on_sheets?, sample?);
    let estimate = sample as f64 * singles.len() as f64 / eighth().len() as f64;
    let dearer = estimate > 1.05 * on_sheets as f64;
    let single = if dearer { usize::MAX } else { total(singles.par_iter(), encode)? };
    let how = match sheets.len() {
        _ if single <= on_sheets => "one file per image".to_owned(),
        1 => "one sheet".to_owned(),
        n => format!("{n} sheets"),
    };
    Ok(Least { bits_per_dim: 8.0 * single.min(on_sheets) as f64 / dims as f64, how })
}

/// Measures the codecs on images.
///
/// Runs on all threads of the current rayon pool. A thousand images of 32 × 32 × 3 take about half a minute of processor
/// time, so hand in a part of a large test set.
///
/// Ranks take a codec each.
///
/// # Errors
/// When the split holds no images, images of other than one or three channels, or images too large for WebP.
pub fn codec_bits(test: &Split, ranks: &dyn Ranks) -> Result<CodecBits> {
    let (&[channels @ (1 | 3), height, width], Values::Pixels(pixels)) =
        (test.shape.as_slice(), &test.values)
    else {
        bail!(
            "codecs take images of 1 or 3 channels, not examples of shape {:?}: leave them out for this set",
            test.shape
        );
    };
    ensure!(!test.is_empty(), "there are no test images to compress: load at least one");
    ensure!(
        height.max(width) <= WEBP_SIDE,
        "images of {height} × {width} are past WebP's limit of {WEBP_SIDE}: resize them, `data.size`"
    );
    let images: Vec<&[u8]> = pixels.chunks_exact(test.dims()).collect();
    let singles: Vec<DynamicImage> =
        images.iter().map(|image| tile(&[image], channels, height, width, 1)).collect();
    let (most_columns, most_rows) = (WEBP_SIDE / width, WEBP_SIDE / height);
    let per_sheet = SHEET.min(most_columns * most_rows);
    // Even shares: a small last sheet would pay a header and code tables of its own for a few images.
    let per_sheet = images.len().div_ceil(images.len().div_ceil(per_sheet));
    let sheets: Vec<DynamicImage> = images
        .chunks(per_sheet)
        .map(|chunk| {
            let columns = columns(chunk.len()).clamp(chunk.len().div_ceil(most_rows), most_columns);
            tile(chunk, channels, height, width, columns)
        })
        .collect();

    let bits = |encode| least(&singles, &sheets, pixels.len(), encode);
    if ranks.size() == 1 {
        let (jxl, (webp, png)) = rayon::join(|| bits(jxl), || rayon::join(|| bits(webp), || bits(png)));
        return Ok(CodecBits { png: png?, webp: webp?, jxl: jxl? });
    }
    // A codec a rank, the slowest first.
    let mut found = Vec::new();
    for (i, encode) in [jxl as Encode, webp, png].into_iter().enumerate() {
        let own = i % ranks.size() == ranks.rank();
        found.push(if own { bits(encode)?.to_bytes() } else { Vec::new() });
    }
    for (i, bytes) in found.iter_mut().enumerate() {
        ranks.broadcast(i % ranks.size(), bytes);
    }
    let [jxl, webp, png] = [0, 1, 2].map(|i| Least::from_bytes(&found[i]));
    Ok(CodecBits { png: png?, webp: webp?, jxl: jxl? })
}

/// Bits/dim of a split of images by zstd at its highest level, all bytes in one file, pixel by pixel.
///
/// # Errors
/// When they are no images, or there is none.
pub fn zstd_bits(test: &Split) -> Result<f64> {
    let Values::Pixels(pixels) = &test.values else {
        bail!("zstd is for images of bytes: leave it out for this set")
    };
    ensure!(!test.is_empty(), "there are no test images to compress: load at least one");
    let channels = if test.shape.len() == 3 { test.shape[0] } else { 1 };
    let area = test.dims() / channels;
    let pixel = |image: &[u8], p: usize| (0..channels).map(|c| image[c * area + p]).collect::<Vec<_>>();
    let images = pixels.chunks_exact(test.dims());
    let interleaved: Vec<u8> = images.flat_map(|image| (0..area).flat_map(|p| pixel(image, p))).collect();
    let file = zstd::bulk::compress(&interleaved, 22).context("zstd failed on the test images")?;
    Ok(8. * file.len() as f64 / pixels.len() as f64)
}

/// ln(Φ(b) − Φ(a)) for a < b, also where the mass is below the smallest float.
fn log_mass(a: f64, b: f64) -> f64 {
    // By symmetry only intervals that begin right of the centre, or straddle it, need to be looked at.
    if b <= 0.0 {
        return log_mass(-b, -a);
    }
    let upper_tail = |z: f64| 0.5 * libm::erfc(z / std::f64::consts::SQRT_2);
    if a < 0.0 {
        return (-(upper_tail(-a) + upper_tail(b))).ln_1p();
    }
    if a < 35.0 {
        return (upper_tail(a) - upper_tail(b)).ln();
    }
    // Q(z) ≈ φ(z)/z · (1 − 1/z²): at z = 35 the next term is 2e-6 of the mass.
    let log_tail =
        |z: f64| -0.5 * z * z - (z * (2.0 * std::f64::consts::PI).sqrt()).ln() + (-1.0 / (z * z)).ln_1p();
    if b.is_infinite() {
        return log_tail(a);
    }
    log_tail(a) + (-(log_tail(b) - log_tail(a)).exp()).ln_1p()
}

/// −log₂ of the mass that N(mean, sd²) gives to the grey level `x`: \[x − ½, x + ½\], the end levels taking
/// the tails.
fn level_bits(x: u8, mean: f64, sd: f64) -> f64 {
    let edge = |at: f64| (f64::from(x) + at - mean) / sd;
    let low = if x == 0 { f64::NEG_INFINITY } else { edge(-0.5) };
    let high = if x == 255 { f64::INFINITY } else { edge(0.5) };
    -log_mass(low, high) * std::f64::consts::LOG2_E
}

/// Mean and variance of every subpixel over some images.
fn moments(pixels: &[u8], dims: usize) -> Vec<(f64, f64)> {
    let mut sums = vec![(0_u64, 0_u64); dims];
    for image in pixels.chunks_exact(dims) {
        for (sum, &x) in sums.iter_mut().zip(image) {
            let x = u64::from(x);
            sum.0 += x;
            sum.1 += x * x;
        }
    }
    let n = (pixels.len() / dims) as f64;
    sums.into_iter()
        .map(|(sum, squares)| {
            let mean = sum as f64 / n;
            (mean, (squares as f64 / n - mean * mean).max(0.0))
        })
        .collect()
}

/// Bits/dim of each image under the fitted Gaussians, every standard deviation at least `floor`.
fn gaussian_losses(pixels: &[u8], fitted: &[(f64, f64)], floor: f64) -> Vec<f64> {
    // A table of bits for each subpixel would pay only past 256 images, and the largest sets have 10 000.
    let tables: Vec<[f64; 256]> = fitted
        .par_iter()
        .map(|&(mean, variance)| {
            let sd = variance.sqrt().max(floor);
            std::array::from_fn(|x| level_bits(x as u8, mean, sd))
        })
        .collect();
    pixels
        .par_chunks_exact(fitted.len())
        .map(|image| {
            image.iter().zip(&tables).map(|(&x, table)| table[usize::from(x)]).sum::<f64>()
                / fitted.len() as f64
        })
        .collect()
}

/// The baseline of one independent Gaussian per subpixel, in bits/dim: mean over the test images and its
/// standard error.
///
/// P(x) = Π_j \[Φ((x_j + ½ − μ_j)/s_j) − Φ((x_j − ½ − μ_j)/s_j)\], the end levels 0 and 255 taking the tails:
/// a proper distribution over images of bytes, with μ_j and s_j the moments of the training set. Subpixels
/// that (almost) never vary in training, such as the border of MNIST, need a floor under s_j; the floor, one
/// number, is the power of two that does best on the last tenth of the training images with the moments of
/// the others.
///
/// # Errors
/// When a split holds no images, or the two differ in shape.
pub fn gaussian_bits(train: &Split, test: &Split) -> Result<(f64, f64)> {
    let (Values::Pixels(train_pixels), Values::Pixels(test_pixels)) = (&train.values, &test.values) else {
        bail!("the Gaussian baseline is for images of bytes: leave it out for this set");
    };
    ensure!(
        train.shape == test.shape,
        "training images are {:?} and test images {:?}: load both from the same set",
        train.shape,
        test.shape
    );
    ensure!(
        train.len() >= 2 && !test.is_empty(),
        "the Gaussian baseline needs two training images and a test image: load more"
    );
    let dims = train.dims();
    let (fit, held) = train_pixels.split_at((train.len() - (train.len() / 10).clamp(1, 5_000)) * dims);
    let fitted = moments(fit, dims);
    let mean = |losses: &[f64]| losses.iter().sum::<f64>() / losses.len() as f64;
    let floor = (-2..=6)
        .map(|power| 2.0_f64.powi(power))
        .map(|floor| (mean(&gaussian_losses(held, &fitted, floor)), floor))
        .min_by(|a, b| a.0.total_cmp(&b.0))
        .map(|(_, floor)| floor)
        .expect("nine floors are tried");
    let losses = gaussian_losses(test_pixels, &moments(train_pixels, dims), floor);
    let average = mean(&losses);
    let variance =
        losses.iter().map(|loss| (loss - average).powi(2)).sum::<f64>() / (losses.len().max(2) - 1) as f64;
    Ok((average, (variance / losses.len() as f64).sqrt()))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ranks::{Single, threads};

    fn images(channels: usize, count: usize) -> Split {
        let dims = channels * 7 * 5;
        let pixels = (0..count * dims).map(|i| ((i * i / 3 + i / 7) % 251) as u8).collect();
        Split::new(vec![channels, 7, 5], Values::Pixels(pixels), None, None).unwrap()
    }

    #[test]
    fn what_is_encoded_can_be_decoded() {
        for channels in [1, 3] {
            let set = images(channels, 6);
            let all: Vec<&[u8]> = (0..6).map(|i| set.pixels(i)).collect();
            let sheet = tile(&all, channels, 7, 5, 3);
            assert_eq!((sheet.height(), sheet.width()), (14, 15));
            // Image 4 is in the second row, second column; its pixel (6, 2) of the last channel:
            let place = ((7 + 6) * 15 + 5 + 2) * channels + channels - 1;
            assert_eq!(sheet.as_bytes()[place], set.pixels(4)[(channels - 1) * 35 + 6 * 5 + 2]);

            same_after_decoding(&sheet);
        }
    }

    /// Decodes what each codec makes of a picture, JPEG XL by a decoder of other authors, and compares.
    fn same_after_decoding(picture: &DynamicImage) {
        let about = (picture.color(), picture.width(), picture.height());
        let file = png(picture).unwrap();
        assert_eq!(image::load_from_memory(&file).unwrap().to_rgb8(), picture.to_rgb8(), "PNG, {about:?}");
        let file = webp(picture).unwrap();
        assert_eq!(image::load_from_memory(&file).unwrap().to_rgb8(), picture.to_rgb8(), "WebP, {about:?}");
        let file = jxl(picture).unwrap();
        let decoder = jxl_oxide::JxlImage::builder().read(file.as_slice()).unwrap();
        let decoded = decoder.render_frame(0).unwrap();
        let mut bytes = vec![0_u8; picture.as_bytes().len()];
        let mut samples = decoded.stream();
        assert_eq!((samples.width(), samples.height()), (picture.width(), picture.height()));
        assert_eq!(samples.channels(), u32::from(picture.color().channel_count()), "JPEG XL, {about:?}");
        samples.write_to_buffer(&mut bytes);
        assert_eq!(bytes, picture.as_bytes(), "JPEG XL, {about:?}");
    }

    #[test]
    fn pictures_of_all_shapes_can_be_decoded() {
        for channels in [1, 3] {
            for (height, width) in [(1, 1), (1, 9), (17, 1), (3, 300), (40, 33)] {
                let noisy: Vec<u8> =
                    (0..channels * height * width).map(|i| (i * i / 7 + i / 5 % 13) as u8).collect();
                same_after_decoding(&tile(&[&noisy], channels, height, width, 1));
                same_after_decoding(&tile(&[&vec![200; noisy.len()]], channels, height, width, 1));
            }
        }
    }

    #[test]
    fn no_file_is_larger_than_a_plain_encoders() {
        use image::codecs::png::{CompressionType, FilterType, PngEncoder};
        let images = crate::data::faces::dataset(&crate::data::Request {
            train: Some(1),
            valid: Some(0),
            test: Some(12),
            ..Default::default()
        });
        let test = images.unwrap().test;
        let all: Vec<&[u8]> = (0..12).map(|i| test.pixels(i)).collect();
        for picture in [tile(&all[..1], 3, 32, 32, 1), tile(&all, 3, 32, 32, 4)] {
            use FilterType::{Adaptive, Avg, NoFilter, Paeth, Sub, Up};
            for filter in [Adaptive, NoFilter, Sub, Up, Avg, Paeth] {
                let mut plain = Vec::new();
                let encoder = PngEncoder::new_with_quality(&mut plain, CompressionType::Best, filter);
                picture.write_with_encoder(encoder).unwrap();
                assert!(png(&picture).unwrap().len() <= plain.len(), "{filter:?}");
            }
            let mut plain = Vec::new();
            let encoder = image::codecs::webp::WebPEncoder::new_lossless(&mut plain);
            picture.write_with_encoder(encoder).unwrap();
            assert!(webp(&picture).unwrap().len() <= plain.len());
        }
        // Of a sheet. For single small images WebP's shorter headers can win.
        let sheet = tile(&all, 3, 32, 32, 4);
        let [png, webp, jxl] = [png, webp, jxl].map(|encode| encode(&sheet).unwrap().len());
        assert!(jxl < webp && webp < png, "{png} {webp} {jxl}");
    }

    #[test]
    fn grids_leave_no_cell_empty_where_they_can() {
        assert_eq!([1, 2, 6, 1000, 1024, 13, 7].map(columns), [1, 2, 3, 40, 32, 3, 2]);
    }

    #[test]
    fn flat_images_cost_next_to_nothing_and_noise_costs_eight_bits() {
        let flat = Split::new(vec![3, 16, 16], Values::Pixels(vec![77; 768 * 40]), None, None).unwrap();
        let bits = codec_bits(&flat, &Single).unwrap();
        for least in [&bits.png, &bits.webp, &bits.jxl] {
            assert!(least.bits_per_dim < 0.1 && least.how == "one sheet", "{bits:?}");
        }
        use rand::{Rng, SeedableRng};
        let mut rng = rand_chacha::ChaCha8Rng::seed_from_u64(0);
        let noise = Values::Pixels((0..768 * 40).map(|_| rng.random()).collect());
        let bits = codec_bits(&Split::new(vec![3, 16, 16], noise, None, None).unwrap(), &Single).unwrap();
        // JPEG XL always predicts, and residuals of noise are twice as wide: libjxl takes 8.9 bits here.
        for (least, most) in [(&bits.png, 8.3), (&bits.webp, 8.3), (&bits.jxl, 8.5)] {
            assert!((8.0..most).contains(&least.bits_per_dim), "{bits:?}");
        }
        let grey = Split::new(vec![1, 16, 16], flat.values, None, None).unwrap();
        let bits = codec_bits(&grey, &Single).unwrap();
        assert!(bits.webp.bits_per_dim < 0.05 && bits.jxl.bits_per_dim < 0.05, "{bits:?}");
    }

    #[test]
    fn ranks_take_a_codec_each() {
        let grey = images(1, 9);
        let alone = codec_bits(&grey, &Single).unwrap();
        for size in [2, 4] {
            let shared = threads::run(size, |ranks| codec_bits(&grey, ranks).unwrap());
            assert!(shared.iter().all(|bits| *bits == alone));
        }
    }

    #[test]
    fn what_codecs_cannot_take_is_an_error() {
        assert!(codec_bits(&images(2, 3), &Single).is_err());
        let reals = Split::new(vec![3, 2, 2], Values::Reals(vec![0.0; 12]), None, None).unwrap();
        assert!(codec_bits(&reals, &Single).is_err() && gaussian_bits(&reals, &reals).is_err());
        assert!(codec_bits(&images(1, 0), &Single).is_err());
        assert!(gaussian_bits(&images(1, 5), &images(3, 5)).is_err());
    }

    #[test]
    fn masses_of_grey_levels_sum_to_one() {
        for (mean, sd) in [(0.0, 0.25), (128.3, 1.0), (250.0, 40.0), (3.0, 700.0), (-20.0, 3.0)] {
            let sum: f64 = (0..=255).map(|x| (-level_bits(x, mean, sd)).exp2()).sum();
            assert!((sum - 1.0).abs() < 1e-9, "{mean} {sd}: {sum}");
        }
    }

    #[test]
    fn far_tails_stay_finite_and_join_up() {
        let direct = log_mass(34.999_99, 35.5);
        let asymptotic = log_mass(35.000_01, 35.5);
        assert!((direct - asymptotic - 2e-5 * 35.0).abs() < 1e-4, "{direct} {asymptotic}");
        assert!(level_bits(255, 0.0, 0.25).is_finite());
        assert!((log_mass(-36.0, -35.0) - log_mass(35.0, 36.0)).abs() < 1e-12);
        // Far out a Gaussian falls by z² / 2 nats.
        assert!((log_mass(900.0, 901.0) + 405_000.0).abs() < 10.0);
    }

    #[test]
    fn the_gaussian_baseline_finds_gaussian_entropy() {
        use rand_distr::{Distribution, Normal};
        let mut rng = crate::data::example_rng(0, "baseline", 0, 0);
        let normal = Normal::new(120.0, 10.0).unwrap();
        let mut draw = |n: usize| {
            let pixels = (0..n * 12)
                .map(|_| f64::clamp(f64::round(normal.sample(&mut rng)), 0.0, 255.0) as u8)
                .collect();
            Split::new(vec![3, 2, 2], Values::Pixels(pixels), None, None).unwrap()
        };
        let (train, test) = (draw(20_000), draw(4_000));
        let (bits, error) = gaussian_bits(&train, &test).unwrap();
        let entropy = 0.5 * ((100.0 + 1.0 / 12.0) * 2.0 * std::f64::consts::PI * std::f64::consts::E).log2();
        assert!((bits - entropy).abs() < 4.0 * error + 1e-3, "{bits} ± {error} against {entropy}");
        // The loss of one subpixel has sd log2(e)/√2; 12 subpixels and 4000 images divide it.
        let expected = std::f64::consts::LOG2_E / (2.0_f64 * 12.0 * 4_000.0).sqrt();
        assert!((error / expected - 1.0).abs() < 0.1, "{error} {expected}");
    }
}
