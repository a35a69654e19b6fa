//! `flow compress`: images in one file of as many bits as the model claims.

use super::print;
use crate::args::Compute;
use crate::hub::{WEIGHTS, Weights};
use crate::image_file::LARGEST_PICTURE;
use crate::output;
use crate::progress::counted;
use crate::saved::{self, load_model_as};
use crate::session::{self, Named, Which};
use anyhow::{Context, Result, bail, ensure};
use candle_core::{DType, Device, Tensor};
use clap::Args;
use experiments::codecs;
use experiments::data::{Split, Values, picture};
use experiments::ranks::Single;
use experiments::run_dir::{self, SUMMARY};
use experiments::summary::{OnDisk, Summary};
use experiments::untrusted::read_regular;
use flows::Model;
use flows::codec::{self, Encoded, Options};
use flows::storage::write_atomic;
use image::ColorType;
use serde_json::{Map, Value, json};
use std::path::{Path, PathBuf};

/// The ending of a file of compressed images.
pub const FLOW: &str = "flow";

/// Numbers of images for which the start-up cost is shown.
const SHOWN: [usize; 4] = [1, 10, 100, 1000];

/// `compress`.
#[derive(Args)]
pub struct CompressArgs {
    /// Folder with config.json and model.safetensors, or a model of the Hugging Face Hub.
    #[arg(value_name = WEIGHTS)]
    weights: Weights,
    /// Pictures of the model's size (default: a split of a data set).
    #[arg(conflicts_with_all = ["data_set", "split", "images"])]
    files: Vec<PathBuf>,
    #[command(flatten)]
    from: Which,
    /// Number of images of the data set, at most (default: all).
    #[arg(long)]
    images: Option<usize>,
    /// Output file (.flow).
    #[arg(long, value_name = "FILE")]
    out: PathBuf,
    /// Class of pictures, for a class-conditional model (default: the labels of the data set).
    #[arg(long)]
    class: Option<u32>,
    /// Bits of a latent after the point, 12 to 28: more cost more to start with, and less for each image.
    #[arg(long, default_value_t = Options::default().precision)]
    precision: u32,
    /// Streams that can be coded at the same time, each with its start-up cost (default: one for 1000 images).
    #[arg(long, value_parser = clap::value_parser!(u32).range(1..))]
    streams: Option<u32>,
    /// Compute the networks in f64 instead of f32.
    #[arg(long)]
    double: bool,
    /// Do not decompress the file again and compare before it is written: half of the time.
    #[arg(long)]
    no_check: bool,
    /// Compress the images with PNG, WebP, JPEG XL and zstd, too, for comparison.
    #[arg(long)]
    codecs: bool,
    /// Record the result in the summary.json of the weights' folder, for `flow table`.
    #[arg(long)]
    record: bool,
    #[command(flatten)]
    compute: Compute,
    /// Print the result as one JSON object on the last line.
    #[arg(long)]
    json: bool,
}

/// Refuses an output that is there already, and one that cannot be written.
fn check_out(out: &Path) -> Result<()> {
    output::writable(out, FLOW, "it is a file of compressed images")?;
    ensure!(!out.exists(), "--out {} is there already: remove it, or give another name", out.display());
    Ok(())
}

/// A file's pixels as they are, planar: whatever would be lost is refused.
fn pixels(path: &Path, shape: &[usize]) -> Result<Vec<u8>> {
    let (name, image) = (
        path.display(),
        picture::decode(&read_regular(path, LARGEST_PICTURE)?, &path.display().to_string())?,
    );
    let &[channels @ (1 | 3), height, width] = shape else {
        bail!("the model takes examples of shape {shape:?}, which no picture is: compress a data set")
    };
    let (colour, taken) = if channels == 1 {
        (ColorType::L8, "grey")
    } else {
        (ColorType::Rgb8, "colour without transparency")
    };
    ensure!(
        image.color() == colour,
        "{name} has {} channels of {} bits a pixel, and the model takes {taken}, {channels} of 8: convert it first, for `compress` \
         loses nothing",
        image.color().channel_count(),
        8 * u16::from(image.color().bytes_per_pixel()) / u16::from(image.color().channel_count()),
    );
    ensure!(
        (image.height() as usize, image.width() as usize) == (height, width),
        "{name} is {} × {} pixels (height × width), the model takes {height} × {width}: crop it first",
        image.height(),
        image.width()
    );
    Ok(picture::bytes(&image, channels == 1))
}

/// The images, and what they are called.
fn images(args: &CompressArgs, model: &Model, folder: &Path) -> Result<(Split, String)> {
    let shape = model.config().shape();
    if !args.files.is_empty() {
        let bytes = args.files.iter().map(|path| pixels(path, shape)).collect::<Result<Vec<_>>>()?;
        return Ok((
            Split::new(shape.to_vec(), Values::Pixels(bytes.concat()), None, None)?,
            "files".to_owned(),
        ));
    }
    let Named { name, split, part } = session::part(model, folder, &args.from)?;
    ensure!(split.is_pixels(), "`{name}` has vectors, not images of bytes: there is nothing to compress");
    session::fits(&split, &name, model, &args.weights)?;
    Ok((split.take(args.images.unwrap_or(usize::MAX)), format!("{name} {}", part.name())))
}

/// Bits/dim of the first images of a stream, initial bits included.
fn growth(file: &Encoded, dims: usize) -> Vec<(usize, f64)> {
    let at = |&n: &usize| file.growth.get(n - 1).map(|&bits| (n, bits as f64 / (n * dims) as f64));
    SHOWN.iter().filter_map(at).collect()
}

/// What was measured, for people and as an object.
#[derive(Default)]
struct Report {
    lines: Vec<String>,
    object: Map<String, Value>,
}

impl Report {
    fn add(&mut self, line: String, figures: Value) {
        self.lines.push(line);
        if let Value::Object(figures) = figures {
            self.object.extend(figures);
        }
    }

    /// What the file took, beside what the model claims.
    fn file(&mut self, measured: &OnDisk, file: &Encoded, dims: usize) {
        let OnDisk { data, images, bits_per_dim, bound, initial_bits_per_dim } = measured;
        let bytes = file.bytes.len();
        self.add(
            format!(
                "{images} images of {data} in {bytes} bytes, {bits_per_dim:.4} bits/dim: the model's {bound:.4}, \
                 {initial_bits_per_dim:.4} to start with, and {:+.4}",
                bits_per_dim - bound - initial_bits_per_dim
            ),
            json!({
                "data": data, "images": images, "bytes": bytes, "bits_per_dim_on_disk": bits_per_dim, "bits_per_dim": bound,
                "initial_bits_per_dim": initial_bits_per_dim,
            }),
        );
        let grown = growth(file, dims);
        let shown: Vec<String> = grown.iter().map(|(n, bits)| format!("{n}: {bits:.3}")).collect();
        self.add(
            format!("bits/dim of the first images, with what it takes to start: {}", shown.join(", ")),
            json!({ "bits_per_dim_of_first": grown }),
        );
    }

    /// What general and image codecs need for the same images.
    fn others(&mut self, split: &Split) -> Result<()> {
        tracing::info!("compressing {} images with PNG, WebP, JPEG XL and zstd", split.len());
        let mut all = vec![("zstd", "zstd", codecs::zstd_bits(split)?)];
        if let [1 | 3, _, _] = split.shape[..] {
            let codecs::CodecBits { png, webp, jxl } = codecs::codec_bits(split, &Single)?;
            all.push(("PNG", "png", png.bits_per_dim));
            all.push(("WebP", "webp", webp.bits_per_dim));
            all.push(("JPEG XL", "jxl", jxl.bits_per_dim));
        }
        let shown: Vec<String> = all.iter().map(|(name, _, bits)| format!("{name} {bits:.3}")).collect();
        let figures = all.iter().map(|(_, key, bits)| (format!("{key}_bits_per_dim"), json!(bits)));
        self.add(
            format!("bits/dim of others on the same images: {}", shown.join(", ")),
            Value::Object(figures.collect()),
        );
        Ok(())
    }
}

/// Adds the figures to the summary of a run, all else in it as it was.
fn record(folder: &Path, measured: OnDisk) -> Result<()> {
    let path = folder.join(SUMMARY);
    let text = run_dir::read(&path)?.with_context(|| format!("--record: there is no {}", path.display()))?;
    let mut summary: Summary = serde_json::from_slice(&text)
        .with_context(|| format!("{} is damaged: restore it from a copy", path.display()))?;
    summary.on_disk = Some(measured);
    summary.write(folder)
}

/// Compresses images into a file, and says what it took beside what the model claims.
///
/// # Errors
/// When the file is there already or cannot be written, the images are not the model's, or the model cannot be coded.
pub fn run(args: &CompressArgs) -> Result<()> {
    check_out(&args.out)?;
    ensure!(args.images != Some(0), "--images 0: compress at least one");
    ensure!(
        !(args.record && args.weights.is_of_the_hub()),
        "--record: these weights are of the hub, name a folder of your own"
    );
    let device = args.compute.open()?;
    ensure!(device.is_cpu(), "--device: images are compressed by the processor, leave it out");
    let (folder, _) = args.weights.locate()?;
    let model = load_model_as(&folder, args.double.then_some(DType::F64), &device)?;
    let (mut split, data) = images(args, &model, &folder)?;
    if let Some(class) = args.class {
        saved::labels(&model, 1, Some(class))?;
        split.labels = Some(vec![class; split.len()]);
    }
    let (n, dims) = (split.len(), split.dims());
    let Values::Pixels(bytes) = &split.values else { unreachable!("they were checked") };
    let x = Tensor::from_slice(bytes, [&[n], split.shape.as_slice()].concat(), &Device::Cpu)?;
    let mut report = Report::default();
    let (file, seconds) = counted("compressing", n, |progress| {
        let (precision, streams) = (args.precision, args.streams.map(|n| n as usize));
        let o = Options { precision, streams, progress: Some(progress), ..Options::default() };
        codec::encode(&model, &x, split.labels.as_deref(), &o)
    })?;
    let share = |bits: f64| bits / (n * dims) as f64;
    let measured = OnDisk {
        data,
        images: n,
        bits_per_dim: share(8. * file.bytes.len() as f64),
        bound: saved::bound(&model, &split)?,
        initial_bits_per_dim: share(file.initial_bits as f64),
    };
    report.file(&measured, &file, dims);
    let speed = n as f64 / seconds;
    report.add(format!("compressed at {speed:.1} images/s"), json!({ "encode_images_per_second": speed }));
    if !args.no_check {
        let (back, seconds) =
            counted("checking", n, |progress| codec::decode(&model, &file.bytes, Some(progress)))?;
        let back: Vec<u8> = back.images.flatten_all()?.to_vec1()?;
        ensure!(back == *bytes, "the file would not give the images back, and is not written: report this");
        let speed = n as f64 / seconds;
        report.add(
            format!("decompressed again at {speed:.1} images/s, all equal"),
            json!({ "decode_images_per_second": speed }),
        );
    }
    if args.codecs {
        report.others(&split)?;
    }
    write_atomic(&args.out, &file.bytes)?;
    if args.record {
        record(&folder, measured)?;
    }
    let out = args.out.display().to_string();
    report.add(out.clone(), json!({ "weights": args.weights.to_string(), "file": out }));
    print(args.json, Value::Object(report.object), report.lines.join("\n"))
}
