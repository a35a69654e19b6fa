//! Lossless compression of images by any image flow: local bits-back coding (Ho, Lohn, Abbeel 2019, arXiv 1905.08500).
//!
//! ```
//! use candle_core::{DType, Device, Tensor};
//! use flows::models::GlowConfig;
//! use flows::{Model, ModelConfig, codec};
//!
//! # let config = GlowConfig { shape: [3, 4, 4], levels: 1, depth: 1, width: 4, ..GlowConfig::cifar_paper() };
//! # let model = Model::new(ModelConfig::Glow(config), 0, DType::F32, &Device::Cpu)?;
//! let images = Tensor::from_vec((0..96).collect::<Vec<u8>>(), (2, 3, 4, 4), &Device::Cpu)?;
//! let file = codec::encode(&model, &images, None, &codec::Options::default())?;
//! let back = codec::decode(&model, &file.bytes, None)?;
//! assert_eq!(back.images.flatten_all()?.to_vec1::<u8>()?, images.flatten_all()?.to_vec1::<u8>()?);
//! # Ok::<(), candle_core::Error>(())
//! ```
//!
//! A model of p(x) gives an image -log2 p(x) bits, and bits-back coding writes it in as many. The bits lie on a stack:
//!
//! 1. noise u of the pixels n is popped, x = n + u: as many bits as it has;
//! 2. every layer takes x to z as whole multiples of 2^-k, exactly and reversibly, and pops log2 |det dz/dx| bits;
//! 3. z is pushed under the prior: -log2 p(z) bits and the k of its precision.
//!
//! What was popped comes back when the image is decoded, in reverse: it is the images before. The sum of the three is
//! -log2 p(x), up to the rounding of latents. The first image has none before it, and pops *initial bits* of a seeded generator, which
//! stay in the file: the start-up cost of a file, k - 2 bits a dimension, or as many as the noise has where a logit needs finer noise.
//!
//! **Layers.** Each says what kind of map it is, by [`Bijection::coding`]:
//!
//! | kind | how it is coded |
//! |---|---|
//! | squeeze, permutations, levels | moved |
//! | actnorm, batch norm, logit, learned priors: elements one by one | each piece of the function is replaced by a straight line, and bits popped from and pushed to the stack make its rounding reversible; a logit has the shorter pieces the nearer an end is |
//! | couplings | their elements as above, given the kept part *in whole numbers*, so that both directions run the same network |
//! | 1x1 convolutions, whitening | W = P L D U, of which only D costs bits |
//! | learned noise | its flow between a logit and the same logit backwards |
//! | any other layer, to 256 dimensions | by its Jacobian, with Gaussian noise |
//!
//! The paper pops Gaussian noise of scale 2^-14 around every latent, in numbers of 2^-32. Elements one by one need none: the uniform
//! coder of iFlow (Zhang, Kang, Ryder, Li 2021, arXiv 2111.00965) is exact for a line between whole numbers, so that k = 12 is
//! enough, and the start-up cost is a fifth. For a Glow and a RealNVP of CIFAR-10, 12, 16 and 20 bits differ by less than .003 bits/dim.
//! Where the rounding is not small beside a model's finest details, more bits cost more start-up and nothing else.
//!
//! **The prior** is a table of 24-bit probabilities. A latent so far out that the table has ended costs 80 bits, which can be less than the
//! prior claims for it: a file may take fewer bits than the model's bound. The bins of Student's t are as wide as numbers are large, and
//! its table ends nowhere. Of a mixture, the component is popped under p(k | z), and pushed under its weight after the latent.
//!
//! **Determinism.** Decoding runs the same networks, and must get the same numbers to the last bit. So an image is coded by passes of
//! its own, each on one thread: nothing depends on the batch or on the number of threads. Several streams, whose number is part of the
//! file, are coded at the same time; each pays the start-up cost. The instruction set does change sums: kernels are chosen
//! for the processor at run time. The file has a hash of a probe image's bits, and a machine on which they differ refuses the file with a
//! sentence that names the processor it was written on. A portable path would give up vector instructions on every machine for the sake of a file
//! that changes machines, and would still depend on the system's exp; what it would cost has not been measured.
//!
//! **Files** are checked whole before anything is decoded, each image has a checksum, and a stream must end in its initial bits.

mod example;
mod file;
mod jacobian;
mod latent;
mod layers;
mod matrix;
mod pieces;
mod stack;
mod table;
mod way;

pub use file::{Header, PRECISIONS};

use crate::core::{Bijection, Context};
use crate::models::Model;
use crate::params::rng_for;
use crate::storage::weights_hash;
use candle_core::{DType, Device, Error, Result, Tensor, bail};
use example::Plan;
use file::{File, MOST_BYTES, hash, stream};
use layers::{Bits, Layer};
use rand::RngCore;
use stack::Stack;
use std::sync::Mutex;
use std::sync::atomic::{AtomicUsize, Ordering};
use way::Way;

/// Images of a stream, where their number is not given.
const IMAGES_A_STREAM: usize = 1000;

/// Called after each image; `false` ends the work.
pub type Progress<'a> = Option<&'a (dyn Fn() -> bool + Sync)>;

/// How to compress.
#[derive(Clone, Copy)]
pub struct Options<'a> {
    /// k: bits of a latent after the point.
    pub precision: u32,
    /// Streams, as many threads as can decode at the same time; by default one for 1000 images.
    pub streams: Option<usize>,
    /// The seed of the initial bits.
    pub seed: u64,
    /// Called after each image.
    pub progress: Progress<'a>,
}

impl Default for Options<'_> {
    fn default() -> Self {
        Self { precision: 12, streams: None, seed: 0, progress: None }
    }
}

/// Compressed images.
pub struct Encoded {
    /// The file.
    pub bytes: Vec<u8>,
    /// Initial bits in it, the start-up cost of all streams.
    pub initial_bits: u64,
    /// Bits of the first stream after each of its images, initial bits included.
    pub growth: Vec<u64>,
}

/// Images of a file.
pub struct Decoded {
    /// u8 of shape (N, C, H, W), or (N, D).
    pub images: Tensor,
    /// The class of each, where the model has classes.
    pub labels: Option<Vec<u32>>,
}

/// Compresses images, u8 of shape (N, C, H, W) as the model takes them, with their classes where it has any.
///
/// # Errors
/// When the images are not the model's, a layer or the prior cannot be coded, or an image is so far from what the model was trained on
/// that its latents are no finite numbers.
pub fn encode(model: &Model, images: &Tensor, labels: Option<&[u32]>, o: &Options) -> Result<Encoded> {
    if !PRECISIONS.contains(&o.precision) {
        bail!("{} bits of precision: give {} to {}", o.precision, PRECISIONS.start(), PRECISIONS.end());
    }
    let n = images.dims().first().copied().unwrap_or(0);
    if images.dtype() != DType::U8 || n == 0 || images.dims()[1..] != *model.shape() {
        bail!(
            "this model compresses images of bytes (N, {:?}) and at least one, got {:?} of {:?}",
            model.shape(),
            images.shape(),
            images.dtype()
        );
    }
    let pixels: Vec<u8> = images.flatten_all()?.to_vec1()?;
    let streams = o.streams.unwrap_or_else(|| n.div_ceil(IMAGES_A_STREAM)).clamp(1, n);
    if pixels.len() as u64 > MOST_BYTES || n > u32::MAX as usize {
        bail!("{n} images are more than one file holds: compress them in parts");
    }
    let plan = prepare(model, o.precision)?;
    let labels = classes(&plan, labels, n)?;
    let header = Header {
        float_bytes: model.params().dtype().size_in_bytes() as u8,
        precision: o.precision,
        shape: model.shape().to_vec(),
        images: n,
        streams,
        seed: o.seed,
        weights: weights(model)?,
        arithmetic: arithmetic(&plan)?,
        machine: machine(),
    };
    let image = |i: usize| (&pixels[i * plan.dims()..][..plan.dims()], labels.map(|labels| labels[i]));
    let coded = in_parallel(streams, |s| {
        let (mut stack, mut growth) = (Stack::seeded(o.seed, &stream(s)), Vec::new());
        for i in header.range(s) {
            let (pixels, label) = image(i);
            plan.encode(pixels, label, &mut stack).map_err(|e| e.context(format!("image {i}")))?;
            growth.push(stack.bits().ceil() as u64);
            go_on(o.progress)?;
        }
        let drawn = stack.drawn();
        Ok((stack.into_parts(), drawn, growth))
    })?;
    let initial_bits = coded.iter().map(|(_, drawn, _)| drawn).sum();
    let growth = coded[0].2.clone();
    let sums = (0..n).map(|i| checksum(image(i).0, image(i).1)).collect();
    let file = File { header, streams: coded.into_iter().map(|(parts, ..)| parts).collect(), sums };
    Ok(Encoded { bytes: file.write(), initial_bits, growth })
}

/// The images of a file.
///
/// # Errors
/// When the file is damaged, was made with another model or in another dtype, or on a processor whose sums this one rounds otherwise.
pub fn decode(model: &Model, bytes: &[u8], progress: Progress) -> Result<Decoded> {
    let file = File::read(bytes)?;
    let header = &file.header;
    let dtype = model.params().dtype();
    if header.shape != model.shape() || header.weights != weights(model)? {
        let wrong = header.shape == model.shape() && usize::from(header.float_bytes) != dtype.size_in_bytes();
        if wrong {
            bail!("the file was made in f{}, load the model so", 8 * header.float_bytes);
        }
        bail!("the file was made with another model: give the weights that it was compressed with");
    }
    let plan = prepare(model, header.precision)?;
    if arithmetic(&plan)? != header.arithmetic {
        bail!(
            "the file was written on {}, and this processor, {}, rounds the networks' sums otherwise: decompress it on such a one",
            header.machine,
            machine()
        );
    }
    let decoded = in_parallel(header.streams, |s| {
        let (words, state) = &file.streams[s];
        let mut stack = Stack::of(words.clone(), *state).map_err(|e| e.context(stream(s)))?;
        let mut images = Vec::new();
        for i in header.range(s).rev() {
            let wrong = || Error::msg(format!("image {i} does not have its checksum: the file is damaged"));
            let (pixels, label) = plan.decode(&mut stack).map_err(|e| e.context(format!("image {i}")))?;
            if stack.is_short() || checksum(&pixels, label) != file.sums[i] {
                return Err(wrong());
            }
            images.push((pixels, label));
            go_on(progress)?;
        }
        if !stack.was_drawn_from(header.seed, &stream(s)) {
            bail!("{} does not end in its initial bits: the file is damaged", stream(s));
        }
        images.reverse();
        Ok(images)
    })?;
    let (pixels, labels): (Vec<Vec<u8>>, Vec<Option<u32>>) = decoded.into_iter().flatten().unzip();
    let shape = [&[header.images], header.shape.as_slice()].concat();
    let images = Tensor::from_vec(pixels.concat(), shape, &Device::Cpu)?;
    Ok(Decoded { images, labels: labels.into_iter().collect() })
}

/// z, the bits that it took, and whether everything comes back, of one example through one layer.
pub(crate) fn code_layer(
    layer: &dyn Bijection,
    x: &Tensor,
    context: Context,
    precision: u32,
) -> Result<(Tensor, f64, bool)> {
    let (dims, mut bits) = (x.elem_count(), Bits { at: precision, next: precision });
    let prepared = Layer::new(layer, dims, &mut bits, precision, x.dtype())?;
    let scale = f64::from(precision).exp2();
    let whole = (x.to_dtype(DType::F64)? * scale)?.round()?;
    let mut stack = Stack::seeded(0, "layer");
    let z = prepared.encode(&whole, &mut Way { stack: &mut stack, context })?;
    let taken = stack.drawn() as f64 - stack.bits();
    let back = prepared.decode(&z, &mut Way { stack: &mut stack, context })?;
    let same = (back - whole)?.abs()?.sum_all()?.to_scalar::<f64>()? == 0.;
    Ok(((z / scale)?.to_dtype(x.dtype())?, taken, same && stack.was_drawn_from(0, "layer")))
}

fn go_on(progress: Progress) -> Result<()> {
    if progress.is_some_and(|go_on| !go_on()) {
        bail!("interrupted");
    }
    Ok(())
}

fn checksum(pixels: &[u8], label: Option<u32>) -> [u8; 2] {
    hash(&[pixels, label.unwrap_or_default().to_le_bytes().as_slice()])
}

fn classes<'a>(plan: &Plan, labels: Option<&'a [u32]>, n: usize) -> Result<Option<&'a [u32]>> {
    match (plan.classes(), labels) {
        (None, _) => Ok(None),
        (Some(_), None) => bail!("this model is class-conditional: give the class of each image"),
        (Some(classes), Some(labels)) => {
            if labels.len() != n || labels.iter().any(|&label| label as usize >= classes) {
                bail!("give one class below {classes} for each of {n} images");
            }
            Ok(Some(labels))
        }
    }
}

fn prepare(model: &Model, precision: u32) -> Result<Plan<'_>> {
    if !model.params().device().is_cpu() || !matches!(model.params().dtype(), DType::F32 | DType::F64) {
        bail!("images are compressed by the processor in f32 or f64: load the model so");
    }
    Plan::new(model, precision)
}

/// A hash of the config and the weights.
fn weights(model: &Model) -> Result<[u8; 32]> {
    let all = model.params().all();
    let tensors = weights_hash(all.iter().map(|(name, p)| Ok((name.as_str(), p.value().clone()))))?;
    let config = serde_json::to_string(model.config()).map_err(Error::wrap)?;
    Ok(hash(&[tensors.as_bytes(), config.as_bytes()]))
}

/// A hash of the bits of a grey image with noise.
fn arithmetic(plan: &Plan) -> Result<[u8; 8]> {
    let mut rng = rng_for(0, "probe");
    let pixels: Vec<u8> = (0..plan.dims()).map(|_| 112 + (rng.next_u32() % 32) as u8).collect();
    let hashes = in_parallel(1, |_| {
        let mut stack = Stack::seeded(0, "probe");
        plan.encode(&pixels, plan.classes().map(|_| 0), &mut stack)?;
        Ok(file::of_stack(stack))
    })?;
    Ok(hashes[0])
}

/// The processor, as far as kernels are chosen by it.
fn machine() -> String {
    #[cfg(target_arch = "x86_64")]
    let vectors = if std::arch::is_x86_feature_detected!("avx512f") {
        " with AVX-512"
    } else if std::arch::is_x86_feature_detected!("avx2") && std::arch::is_x86_feature_detected!("fma") {
        " with AVX2"
    } else {
        ""
    };
    #[cfg(not(target_arch = "x86_64"))]
    let vectors = "";
    format!("{}-{}{vectors}", std::env::consts::ARCH, std::env::consts::OS)
}

/// `f` of each stream, in the order of the streams; as many at the same time as there are threads, each on one thread, for the number
/// of threads within a network changes its sums.
fn in_parallel<T: Send>(n: usize, f: impl Fn(usize) -> Result<T> + Sync) -> Result<Vec<T>> {
    let (next, done) = (AtomicUsize::new(0), Mutex::new(Vec::new()));
    let work = || -> Result<()> {
        let one = rayon::ThreadPoolBuilder::new().num_threads(1).build().map_err(Error::wrap)?;
        one.install(|| {
            loop {
                let s = next.fetch_add(1, Ordering::Relaxed);
                if s >= n {
                    return Ok(());
                }
                // No other stream begins once one has failed.
                let made = f(s).inspect_err(|_| next.store(n, Ordering::Relaxed))?;
                done.lock().expect("no worker panics").push((s, made));
            }
        })
    };
    let workers = n.min(rayon::current_num_threads()).max(1);
    std::thread::scope(|scope| {
        let handles: Vec<_> = (0..workers).map(|_| scope.spawn(work)).collect();
        handles
            .into_iter()
            .try_for_each(|handle| handle.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic)))
    })?;
    let mut done = done.into_inner().expect("no worker panics");
    done.sort_by_key(|(s, _)| *s);
    Ok(done.into_iter().map(|(_, made)| made).collect())
}
