//! `flow decompress`: the images of a file that `flow compress` wrote.

use super::print;
use crate::args::Compute;
use crate::arrays::{self, Format};
use crate::hub::{WEIGHTS, Weights};
use crate::output;
use crate::progress::counted;
use crate::saved::load_model_as;
use anyhow::{Context, Result, ensure};
use candle_core::{DType, Device, Tensor};
use clap::Args;
use experiments::untrusted::read_regular;
use flows::codec::{self, Decoded, Header};
use image::{ExtendedColorType, ImageFormat};
use serde_json::json;
use std::fs;
use std::io::Cursor;
use std::path::{Path, PathBuf};

/// Bytes of a file, at most.
const LARGEST: u64 = 1 << 32;

/// `decompress`.
#[derive(Args)]
pub struct DecompressArgs {
    /// Folder with config.json and model.safetensors, or a model of the Hugging Face Hub: the one that the file was compressed with.
    #[arg(value_name = WEIGHTS)]
    weights: Weights,
    /// File that `flow compress` wrote.
    file: PathBuf,
    /// Output: a new or empty folder for one picture an image, or an array (.npy; .npz with labels).
    #[arg(long, value_name = "DIR|FILE")]
    out: PathBuf,
    #[command(flatten)]
    compute: Compute,
    /// Print the result as one JSON object on the last line.
    #[arg(long)]
    json: bool,
}

/// Writes a picture of each image.
fn write_pictures(images: &Tensor, folder: &Path) -> Result<()> {
    let (_, channels, height, width) =
        images.dims4().context("vectors are no pictures: write them as .npy")?;
    ensure!(matches!(channels, 1 | 3), "images of {channels} channels are no pictures: write them as .npy");
    let colour = if channels == 1 { ExtendedColorType::L8 } else { ExtendedColorType::Rgb8 };
    for i in 0..images.dim(0)? {
        let bytes: Vec<u8> = images.get(i)?.permute((1, 2, 0))?.flatten_all()?.to_vec1()?;
        let path = folder.join(format!("{i:05}.png"));
        // On a full disk a file that the image crate writes itself is empty, and there is no error.
        let mut png = Cursor::new(Vec::new());
        let (width, height) = (width as u32, height as u32);
        image::write_buffer_with_format(&mut png, &bytes, width, height, colour, ImageFormat::Png)?;
        fs::write(path, png.into_inner())
            .with_context(|| format!("picture {i} cannot be written: make room, or choose another --out"))?;
    }
    Ok(())
}

/// Writes the images, and their labels where the file has some, as arrays.
fn write_arrays(decoded: Decoded, out: &Path) -> Result<()> {
    let mut tensors = vec![("images", decoded.images)];
    if let Some(labels) = decoded.labels {
        let n = labels.len();
        tensors.push(("labels", Tensor::from_vec(labels, n, &Device::Cpu)?));
    }
    arrays::write(out, &tensors)
}

/// Decompresses a file, whole or not at all.
///
/// # Errors
/// When it is damaged, was made with other weights or on another kind of processor, or the output cannot be written.
pub fn run(args: &DecompressArgs) -> Result<()> {
    let array = Format::of(&args.out).map(|_| arrays::writable(&args.out)).transpose()?;
    if array.is_none() {
        ensure!(
            ImageFormat::from_path(&args.out).is_err(),
            "--out {}: every image becomes a picture of its own, name a folder for them, or an array (.npy)",
            args.out.display()
        );
        output::new_folder(&args.out, "npy", "")?;
    }
    let bytes = read_regular(&args.file, LARGEST)?;
    let name = args.file.display();
    let header = Header::read(&bytes).with_context(|| name.to_string())?;
    let device = args.compute.open()?;
    ensure!(device.is_cpu(), "--device: images are decompressed by the processor, leave it out");
    let dtype = if header.float_bytes == 8 { DType::F64 } else { DType::F32 };
    let model = load_model_as(&args.weights.locate()?.0, Some(dtype), &Device::Cpu)?;
    let decode = || -> Result<(Decoded, f64)> {
        counted("decompressing", header.images, |progress| codec::decode(&model, &bytes, Some(progress)))
            .with_context(|| name.to_string())
    };
    let seconds = if array.is_some() {
        let (decoded, seconds) = decode()?;
        write_arrays(decoded, &args.out)?;
        seconds
    } else {
        // The folder is begun first: a place where none can be made is said before the work.
        output::whole_folder("--out", &args.out, |folder| {
            let (decoded, seconds) = decode()?;
            write_pictures(&decoded.images, folder)?;
            Ok(seconds)
        })?
    };
    let (n, speed, out) = (header.images, header.images as f64 / seconds, args.out.display().to_string());
    let object =
        json!({ "file": name.to_string(), "images": n, "out": out, "decode_images_per_second": speed });
    print(args.json, object, format_args!("{n} images in {out}, {speed:.1} images/s"))
}
