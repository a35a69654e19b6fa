//! Samples of a model as a picture.

use super::plots;
use crate::context::Given;
use anyhow::{Context, Result, bail};
use candle_core::{DType, Tensor};
use experiments::data::{Split, Values};
use flows::Model;
use std::path::Path;

/// Points on each side of the raster on which a density in the plane is drawn.
const RASTER: usize = 160;
/// Contexts over which a density is averaged, at most.
const CONTEXTS: usize = 8;

/// A flow's values in [0, 2^bits) as bytes that can be seen: floors, as the data were dequantized upwards; a NaN becomes
/// black.
pub fn to_bytes(values: &[f32], bits: u8) -> Vec<u8> {
    let levels = f32::from(2u16.pow(bits.into()) - 1);
    values.iter().map(|v| (v.floor().clamp(0., levels) * 255. / levels).round() as u8).collect()
}

/// Writes a picture of each of a model's samples of images into a folder: 00000.png, 00001.png, ...
pub fn folder(model: &Model, samples: &Tensor, dir: &Path) -> Result<()> {
    let [channels @ (1 | 3), height, width] = *model.config().shape() else {
        bail!(
            "samples of shape {:?} have no pictures: write them as an array, --out samples.npy",
            model.config().shape()
        )
    };
    let samples = samples.to_dtype(DType::F32)?;
    std::fs::create_dir_all(dir).with_context(|| format!("cannot make the folder {}", dir.display()))?;
    for i in 0..samples.dim(0)? {
        let bytes = to_bytes(&samples.get(i)?.flatten_all()?.to_vec1()?, model.config().bits());
        plots::write_png(
            &dir.join(format!("{i:05}.png")),
            &interleaved(&bytes, channels),
            (width as u32, height as u32),
        )?;
    }
    Ok(())
}

/// Planar bytes as RGB, a grey channel three times.
fn interleaved(planar: &[u8], channels: usize) -> Vec<u8> {
    let area = planar.len() / channels;
    (0..area).flat_map(|i| [0, 1, 2].map(|c| planar[i + area * (c % channels)])).collect()
}

/// Writes the picture of a model's samples: a grid of images, or a cloud in the plane with the model's density. Returns
/// false for other data, which have no picture.
pub fn picture(
    model: &Model,
    samples: &Tensor,
    given: &Given,
    data: Option<&Split>,
    path: &Path,
) -> Result<bool> {
    let (n, samples) = (samples.dim(0)?, samples.to_dtype(DType::F32)?);
    let values: Vec<f32> = samples.flatten_all()?.to_vec1()?;
    let broken = values.iter().filter(|v| !v.is_finite()).count();
    if broken > 0 {
        tracing::warn!("{broken} of {} sampled values are not finite: the inverse overflows", values.len());
    }
    match *model.config().shape() {
        [channels @ (1 | 3), height, width] => {
            let bytes = to_bytes(&values, model.config().bits());
            let images: Vec<_> = bytes.chunks_exact(channels * height * width).map(<[u8]>::to_vec).collect();
            plots::grid(path, &images, [channels, height, width])?;
        }
        [2] => {
            let samples = values.as_chunks().0;
            let data = match data.map(|d| &d.values) {
                Some(Values::Reals(v)) => Some(v[..v.len().min(2 * n)].as_chunks().0),
                _ => None,
            };
            let window = plots::Window::about(data.unwrap_or(samples));
            let raster: Vec<f32> = window.raster(RASTER).as_flattened().iter().map(|v| *v as f32).collect();
            let raster = Tensor::from_vec(raster, (RASTER * RASTER, 2), model.params().device())?
                .to_dtype(model.params().dtype())?;
            // Of densities given c, the mean over the first samples' contexts.
            let contexts = if given.is_some() { n.min(CONTEXTS) } else { 1 };
            let mut density = vec![0f64; RASTER * RASTER];
            for i in 0..contexts {
                let given = given.repeat(i, RASTER * RASTER)?;
                let p = model
                    .log_prob(&raster, given.context())?
                    .exp()?
                    .to_dtype(DType::F64)?
                    .to_vec1::<f64>()?;
                density.iter_mut().zip(p).for_each(|(sum, p)| *sum += p / contexts as f64);
            }
            plots::plane(path, &window, data, samples, &density, RASTER)?;
        }
        ref shape => {
            tracing::warn!("there is no picture of samples of shape {shape:?}");
            return Ok(false);
        }
    }
    Ok(true)
}
