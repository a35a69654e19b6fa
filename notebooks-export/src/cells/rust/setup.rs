use base64::Engine;
use candle_core::{DType, Device, Tensor};
use flows::{Ctx, Model, latents};
use plotters::prelude::*;
use std::collections::HashMap;

// SAFETY: no other thread exists yet. candle's own pool would take the cores from the one that computes.
unsafe { std::env::set_var("CANDLE_NUM_THREADS", "1") };

const DARK: RGBColor = RGBColor(0x17, 0x48, 0x6f);
const LIGHT: RGBColor = RGBColor(0xe5, 0x8a, 0x1f);

/// All classes in turn, where the model has classes.
fn labels(model: &Model, n: usize) -> candle_core::Result<Option<Tensor>> {
    let turn = |classes| Tensor::from_iter((0..n).map(|i| (i % classes) as u32), &Device::Cpu);
    model.config().classes().map(turn).transpose()
}

/// Shows images (N, C, H, W) in the units of the data in rows of `columns`, as one PNG.
fn sheet(images: &Tensor, columns: usize, bits: u8) -> Result<(), Box<dyn std::error::Error>> {
    let (n, c, h, w) = images.dims4()?;
    let most = f64::from((1u32 << bits) - 1);
    let bytes = ((images.floor()?.clamp(0., most)? * (255. / most))?.round()?).to_dtype(DType::U8)?;
    let bytes = bytes.flatten_all()?.to_vec1::<u8>()?;
    let (scale, gap) = ((64 / h).max(1), 2);
    let (tall, wide) = (h * scale + gap, w * scale + gap);
    let (height, width) = (n.div_ceil(columns) * tall - gap, columns * wide - gap);
    let mut paper = vec![255u8; height * width * 3];
    for (i, image) in bytes.chunks_exact(c * h * w).enumerate() {
        for (y, x) in (0..h * scale).flat_map(|y| (0..w * scale).map(move |x| (y, x))) {
            let at = (i / columns * tall + y) * width + i % columns * wide + x;
            for channel in 0..3 {
                paper[3 * at + channel] = image[(channel.min(c - 1) * h + y / scale) * w + x / scale];
            }
        }
    }
    let mut file = Vec::new();
    let mut encoder = png::Encoder::new(&mut file, width as u32, height as u32);
    encoder.set_color(png::ColorType::Rgb);
    encoder.write_header()?.write_image_data(&paper)?;
    let text = base64::engine::general_purpose::STANDARD.encode(&file);
    println!("EVCXR_BEGIN_CONTENT image/png\n{text}\nEVCXR_END_CONTENT");
    Ok(())
}
