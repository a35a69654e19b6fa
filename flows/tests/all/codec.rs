//! Lossless coding: every model gives every image back to the byte, for as many bits as it claims; and no damaged file gives
//! another image.

use crate::laws::rows;
use crate::small_models::*;
use candle_core::{DType, Device, Result, Tensor};
use flows::bijections::{Inverted, LogitScale, Rescale};
use flows::codec::{self, Header, Options};
use flows::models::{
    ContextConfig, CouplingTransform, Dequantize, GlowConfig, NiceConfig, Preprocess, PriorConfig,
    RealNvpConfig, glow, nice,
};
use flows::params::rng_for;
use flows::testing::code;
use flows::{Bijection, Context, Ctx, Model, ModelConfig};
use rand::{Rng, RngCore};
use sha2::{Digest, Sha256};

/// Images of random bytes, half of them smooth, as a model takes them.
fn images(n: usize, shape: &[usize]) -> Tensor {
    let (mut rng, dims) = (rng_for(7, "images"), shape.iter().product::<usize>());
    let mut pixels = vec![0u8; n * dims];
    rng.fill_bytes(&mut pixels);
    for image in pixels.chunks_exact_mut(dims).step_by(2) {
        image.iter_mut().for_each(|p| *p = 100 + *p / 8);
    }
    Tensor::from_vec(pixels, [&[n], shape].concat(), &Device::Cpu).unwrap()
}

fn bytes(t: &Tensor) -> Vec<u8> {
    t.flatten_all().unwrap().to_vec1().unwrap()
}

fn model(config: ModelConfig, dtype: DType) -> Result<Model> {
    let model = Model::new(config, 5, dtype, &Device::Cpu)?;
    model.params().perturb(6, 0.1)?;
    Ok(model)
}

/// Puts the checksum of a changed file right.
fn set_checksum(file: &mut [u8]) {
    let (content, sum) = file.split_at_mut(file.len() - 8);
    sum.copy_from_slice(&Sha256::digest(content)[..8]);
}

/// Bits of all images under a model, the mean over draws of noise and their standard deviation.
fn bound(model: &Model, images: &Tensor, labels: Option<&[u32]>) -> Result<[f64; 2]> {
    let (n, low) = (images.dim(0)?, 8 - u32::from(model.config().bits()));
    let pixels = bytes(images);
    let labels = labels.map(|labels| Tensor::from_slice(labels, n, &Device::Cpu)).transpose()?;
    let (mut rng, mut all) = (rng_for(3, "noise"), Vec::new());
    for _ in 0..20 {
        let x: Vec<f64> = pixels.iter().map(|&p| f64::from(p >> low) + rng.random::<f64>()).collect();
        let x = Tensor::from_vec(x, images.shape(), &Device::Cpu)?.to_dtype(model.params().dtype())?;
        let log_p =
            model.log_prob(&x, labels.as_ref())?.to_dtype(DType::F64)?.sum_all()?.to_scalar::<f64>()?;
        all.push(f64::from(low) * pixels.len() as f64 - log_p / std::f64::consts::LN_2);
    }
    let mean = all.iter().sum::<f64>() / 20.;
    Ok([mean, (all.iter().map(|bits| (bits - mean).powi(2)).sum::<f64>() / 19.).sqrt()])
}

/// The models of images among the small ones, and those with another law or permutation.
fn image_models() -> Vec<(&'static str, ModelConfig)> {
    let takes = |config: &ModelConfig| {
        let features = config.context().shape(config.shape()).expect("it is a config");
        !config.preprocess().is_for_vectors() && features.is_none()
    };
    let mut all: Vec<(&str, ModelConfig)> =
        models().into_iter().chain(conditional()).filter(|(_, config)| takes(config)).collect();
    let (additive, affine) = (CouplingTransform::Additive, CouplingTransform::Affine);
    for (name, law, permutation) in [
        ("Glow, additive, PLU", additive, glow::Permutation::Plu),
        ("Glow, additive, plain", additive, glow::Permutation::Plain),
        ("Glow, affine, shuffle", affine, glow::Permutation::Shuffle),
        ("Glow, additive, reverse", additive, glow::Permutation::Reverse),
    ] {
        all.push((name, ModelConfig::Glow(GlowConfig { law, permutation, ..small_glow() })));
    }
    for (name, order) in
        [("NICE, affine", nice::Order::EvenOdd), ("NICE, affine, code", nice::Order::Reverse)]
    {
        let prior = PriorConfig::DiagonalGaussian { classes: None };
        all.push((name, ModelConfig::Nice(NiceConfig { law: affine, order, prior, ..small_nice() })));
    }
    for (name, prior) in [
        ("NICE, Student's t", PriorConfig::StudentT { df: 3., learned: false }),
        ("NICE, learned Student's t", PriorConfig::StudentT { df: 1.5, learned: true }),
        ("NICE, mixture", PriorConfig::Mixture { components: 3 }),
        ("NICE, mixture of one", PriorConfig::Mixture { components: 1 }),
    ] {
        all.push((name, ModelConfig::Nice(NiceConfig { prior, ..small_nice() })));
    }
    let five = RealNvpConfig { bits: 5, preprocess: Preprocess::Symmetric {}, ..small_realnvp() };
    all.push(("RealNVP, five bits", ModelConfig::RealNvp(five)));
    all
}

/// Every model of the tables, additive and affine, with every permutation, in f32 and in f64: images come back to the byte, and their
/// bits beyond the initial ones are what the model claims, up to what another draw of noise changes.
#[test]
fn every_model_gives_images_back_for_the_bits_it_claims() -> Result<()> {
    for (name, config) in image_models() {
        for (dtype, precision) in [(DType::F32, 12), (DType::F64, 18)] {
            let context = |e: candle_core::Error| e.context(format!("{name}, {dtype:?}"));
            let (model, n) = (model(config.clone(), dtype)?, 60);
            let x = images(n, model.shape());
            let classes = config.classes().unwrap_or(1);
            let labels: Vec<u32> = (0..n).map(|i| (i % classes) as u32).collect();
            let labels = config.classes().map(|_| &labels[..]);
            let o = Options { precision, ..Options::default() };
            let file = codec::encode(&model, &x, labels, &o).map_err(context)?;
            let back = codec::decode(&model, &file.bytes, None).map_err(context)?;
            assert_eq!(bytes(&back.images), bytes(&x), "{name}");
            assert_eq!((back.images.dims(), back.labels.as_deref()), (x.dims(), labels), "{name}");
            let (dims, of_labels) = (x.elem_count() as f64, n as f64 * (classes as f64).log2());
            let taken = file.growth[n - 1] as f64 - file.initial_bits as f64 - of_labels;
            // Its couplings reach into the outermost pieces of the logit.
            let of_noise = if *config.dequantize() == Dequantize::default() { 0.002 } else { 0.02 };
            let [bits, deviation] = bound(&model, &x, labels).map_err(context)?;
            let (off, may) = ((taken - bits) / dims, (4. * deviation + 4.) / dims + of_noise);
            println!(
                "{name} {dtype:?}: {:.4} bits/dim, {off:+.4} beyond the bound, of {may:.4}",
                taken / dims
            );
            assert!(off.abs() < may, "{name}, {dtype:?}: {off} bits/dim beyond the bound, may be {may}");
        }
    }
    Ok(())
}

/// Noise in black and in white pixels, which a logit stretches the most: by a millionth from 0 and from 1, and with nothing between it and 1.
#[test]
fn black_and_white_cost_what_the_model_claims() -> Result<()> {
    let (n, mut rng) = (40, rng_for(8, "dark"));
    let paper = Preprocess::Logit { alpha: 0.05, scale: LogitScale::Paper };
    for (preprocess, dequantize) in [
        (Preprocess::DARK, Dequantize::Uniform {}),
        (Preprocess::DARK, Dequantize::Variational { couplings: 2, width: 5 }),
        (paper, Dequantize::Uniform {}),
    ] {
        let config = GlowConfig { preprocess, dequantize, ..small_glow() };
        let model = Model::new(ModelConfig::Glow(config), 5, DType::F32, &Device::Cpu)?;
        let dims = n * model.dims();
        let pixel = |_| match rng.random_range(0..10) {
            0..7 => 0,
            7..9 => 255,
            _ => rng.next_u32() as u8,
        };
        let pixels: Vec<u8> = (0..dims).map(pixel).collect();
        let x = Tensor::from_vec(pixels, [&[n], model.shape()].concat(), &Device::Cpu)?;
        // Latents of a model that fits nothing are far out, where the coder takes less than the prior claims.
        let noise: Vec<f32> = (0..dims).map(|_| rng.random()).collect();
        let noisy = (x.to_dtype(DType::F32)? + Tensor::from_vec(noise, x.shape(), &Device::Cpu)?)?;
        model.bijection().forward(&noisy, Ctx::init())?;
        let file = codec::encode(&model, &x, None, &Options::default())?;
        assert_eq!(bytes(&codec::decode(&model, &file.bytes, None)?.images), bytes(&x), "{preprocess:?}");
        let taken = file.growth[n - 1] as f64 - file.initial_bits as f64;
        let [bits, deviation] = bound(&model, &x, None)?;
        let (off, may) = ((taken - bits) / dims as f64, 4. * deviation / dims as f64 + 0.003);
        println!("{preprocess:?}: {off:+.4} bits/dim beyond the bound, of {may:.4}");
        assert!(off.abs() < may, "{preprocess:?}: {off} bits/dim beyond the bound, may be {may}");
    }
    Ok(())
}

/// The streams are in the file, the threads are not.
#[test]
fn threads_do_not_matter() -> Result<()> {
    let model = model(ModelConfig::Glow(small_glow()), DType::F32)?;
    let x = images(9, model.shape());
    let on = |threads: usize, streams: usize| {
        let pool = rayon::ThreadPoolBuilder::new().num_threads(threads).build().unwrap();
        let o = Options { streams: Some(streams), ..Options::default() };
        pool.install(|| codec::encode(&model, &x, None, &o))
    };
    let two = on(2, 2)?;
    assert_eq!(two.bytes, on(1, 2)?.bytes);
    let one = rayon::ThreadPoolBuilder::new().num_threads(1).build().unwrap();
    let back = one.install(|| codec::decode(&model, &two.bytes, None))?;
    assert_eq!(bytes(&back.images), bytes(&x));
    // An image's bits depend on those before it in its stream only.
    let fewer = codec::encode(&model, &x.narrow(0, 0, 4)?, None, &Options::default())?;
    assert_eq!(fewer.growth, on(3, 1)?.growth[..4]);
    Ok(())
}

/// Every bit of a file, flipped alone, and every length that it can be cut to: refused. With the checksum of the whole file put right
/// again, the checksums of images and the initial bits still let no other image through.
#[test]
fn no_damage_gives_another_image() -> Result<()> {
    let model = model(ModelConfig::Nice(NiceConfig { shape: vec![1, 2, 2], ..small_nice() }), DType::F32)?;
    let x = images(2, model.shape());
    let file = codec::encode(&model, &x, None, &Options::default())?.bytes;
    assert!(codec::decode(&model, &file, None).is_ok());
    for bit in 0..8 * file.len() {
        let mut damaged = file.clone();
        damaged[bit / 8] ^= 1 << (bit % 8);
        assert!(codec::decode(&model, &damaged, None).is_err(), "bit {bit}");
        set_checksum(&mut damaged);
        if let Ok(back) = codec::decode(&model, &damaged, None) {
            assert_eq!(bytes(&back.images), bytes(&x), "bit {bit}");
        }
    }
    for end in 0..file.len() {
        assert!(codec::decode(&model, &file[..end], None).is_err(), "{end} bytes");
    }
    Ok(())
}

#[test]
fn what_does_not_fit_is_named() -> Result<()> {
    let glow = model(ModelConfig::Glow(small_glow()), DType::F32)?;
    let x = images(2, glow.shape());
    let file = codec::encode(&glow, &x, None, &Options::default())?.bytes;
    let said = |error: candle_core::Error| error.to_string();
    let decoded =
        |model: &Model, bytes: &[u8]| said(codec::decode(model, bytes, None).err().expect("an error"));
    let other = Model::new(ModelConfig::Glow(small_glow()), 9, DType::F32, &Device::Cpu)?;
    assert!(decoded(&other, &file).contains("another model"));
    let double = model(ModelConfig::Glow(small_glow()), DType::F64)?;
    assert!(decoded(&double, &file).contains("made in f32"));
    assert!(decoded(&glow, b"text").contains("no file of compressed images"));
    let mut foreign = file.clone();
    let at = file.windows(8).position(|w| w == Header::read(&file).unwrap().arithmetic).expect("it is there");
    foreign[at] ^= 1;
    set_checksum(&mut foreign);
    assert!(decoded(&glow, &foreign).contains("rounds the networks' sums otherwise"));
    let encoded = |model: &Model, x: &Tensor, o: &Options| {
        said(codec::encode(model, x, None, o).err().expect("an error"))
    };
    assert!(encoded(&glow, &x.narrow(2, 0, 2)?, &Options::default()).contains("compresses images of bytes"));
    assert!(
        encoded(&glow, &x, &Options { precision: 40, ..Options::default() }).contains("bits of precision")
    );
    // What is made of the image is not there when it is decoded; features given with it are refused alike.
    for context in [ContextConfig::Features { shape: vec![2] }, ContextConfig::Downsampled { factor: 4 }] {
        let given = model(ModelConfig::Glow(GlowConfig { context, ..small_glow() }), DType::F32)?;
        assert!(encoded(&given, &x, &Options::default()).contains("this is a model of p(x | c)"));
    }
    let stop = || false;
    let o = Options { progress: Some(&stop), ..Options::default() };
    assert!(encoded(&glow, &x, &o).contains("interrupted"));
    Ok(())
}

/// What the encoder pushes and pops for one layer, on its own: z is near f(x), x comes back exactly, and the bits are the log-det.
#[test]
fn every_layer_of_the_laws_is_coded() -> Result<()> {
    for (name, build, x) in rows() {
        let params = flows::ParamStore::seeded(3, DType::F64, &Device::Cpu);
        let layer = build(&params.vb())?;
        params.perturb(4, 0.1)?;
        let labels = Tensor::new(&[1u32], &Device::Cpu)?;
        let x = x.to_device(&Device::Cpu)?.narrow(0, 0, 1)?;
        coded(name, layer.as_ref(), &x, Context::labels(&labels))?;
    }
    Ok(())
}

fn coded(name: &str, layer: &dyn Bijection, x: &Tensor, context: Context) -> Result<()> {
    let (want, log_det) = layer.forward(x, Ctx::eval().with_context(context))?;
    let said = code(layer, x, context, 20).map_err(|e| e.context(name.to_owned()))?;
    let off = (said.z - want)?.abs()?.max_all()?.to_scalar::<f64>()?;
    let exact = said.exact;
    let bits = log_det.to_vec1::<f64>()?[0] / std::f64::consts::LN_2;
    println!("{name}: z off by {off:.1e}, {:.2} bits for a log-det of {bits:.2}", said.bits);
    assert!(exact, "{name} comes back");
    assert!(off < 0.02, "{name}: z off by {off}");
    let dims = x.elem_count() as f64;
    assert!((said.bits - bits).abs() < 0.002 * dims + 0.5, "{name}: {} bits for {bits}", said.bits);
    Ok(())
}

#[test]
fn an_inverted_layer_is_coded_backwards() -> Result<()> {
    let x = flows::testing::normal(&[1, 6], 1, &Device::Cpu)?;
    coded("inverted", &Inverted(Rescale::new(-0.3, 0.7)?), &x, Context::none())
}
