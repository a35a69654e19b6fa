//! The arrays that the notebook shows. All of them are computed from the model and a seed, because the folder of a run
//! holds no data.
//!
//! | name | shape | holds |
//! |---|---|---|
//! | `x`, `log_prob` | (n, ...), (n,) | samples at temperature 0.7 and their log p(x) in double precision |
//! | `labels` | (n,) | the classes of `x`, where the model has classes |
//! | `temperatures`, `temperature_images`, `temperature_bits` | (T,), (T, N, C, H, W), (T, N) | the same latents times T temperatures |
//! | `walk_t`, `walk_images`, `walk_bits` | (T,), (2, T, C, H, W), (2, T) | linear and spherical interpolation between two latents |
//! | `attribute_strengths`, `attribute_images` | (S,), (N, S, C, H, W) | samples moved along the attribute "brighter" |
//! | `level_images` | (1 + L, N, C, H, W) | samples, then the same with the latents of one level redrawn |
//! | `ood_samples`, `ood_shuffled`, `ood_constant`, `ood_noise` | (N,) | bits/dim of samples and of three kinds of other images |
//! | `points`, `density`, `window` | (N, D), (R, R), (4,) | for vectors: samples; for two dimensions also the density |
//!
//! Images are stored as bytes for display; `x` and `points` are in the units of the data.
//!
//! The inverse of a model may overflow for some latents. A sample that is not finite, or whose log p(x) is not, is stored in
//! no array. Arrays of a few samples take the next finite one instead; arrays of many samples have fewer rows. The
//! notebook states the number left out in both cases.

use anyhow::{Result, bail, ensure};
use candle_core::{DType, Device, Tensor};
use flows::params::rng_for;
use flows::{Model, latents};
use rand::Rng;
use rand::seq::SliceRandom;

/// Temperatures of the grid.
const TEMPERATURES: [f64; 6] = [0.25, 0.5, 0.7, 0.85, 1., 1.15];
/// The temperature of the samples in pictures.
const TEMPERATURE: f64 = 0.7;
/// Points of an interpolation between two latents.
const STEPS: usize = 9;
/// Multiples of the attribute's direction that are added.
const STRENGTHS: [f64; 5] = [-2., -1., 0., 1., 2.];
/// Images in a batch.
const BATCH: usize = 32;
/// Samples whose log p(x) is compared with PyTorch's.
const COMPARED: usize = 8;
/// Grid points on each side of the density's grid.
const RASTER: usize = 120;
/// Where some of n samples are not finite, this many times n are drawn and the first n finite ones are kept.
const SPARE: usize = 4;
/// Offset of the seed for the latents that replace a level's.
const FRESH: u64 = 1;
/// Offset of the seed for the samples to which an attribute is added.
const HELD_OUT: u64 = 2;

/// The arrays, and what they leave out.
#[derive(Default)]
pub struct Drawn {
    /// The arrays with their names.
    pub arrays: Vec<(String, Tensor)>,
    /// The samples that are in no array.
    pub left_out: Vec<LeftOut>,
}

/// The number of samples of a topic that are not finite.
pub struct LeftOut {
    topic: &'static str,
    /// How many were left out.
    pub left: usize,
    /// How many were drawn.
    pub of: usize,
}

impl Drawn {
    /// Whether there is an array of this name.
    pub fn has(&self, name: &str) -> bool {
        self.arrays.iter().any(|(array, _)| array == name)
    }

    /// What is said of the samples of a topic that are left out.
    pub fn left(&self, topic: &str) -> String {
        let said = |LeftOut { left, of, .. }: &LeftOut| {
            format!(
                " ({left} of {of} that were drawn are left out: they, or their log p(x), are not finite.)"
            )
        };
        self.left_out.iter().filter(|l| l.topic == topic).map(said).collect()
    }

    fn put(&mut self, name: &str, array: Tensor) {
        self.arrays.push((name.to_owned(), array));
    }

    fn leave(&mut self, topic: &'static str, left: usize, of: usize) {
        if left > 0 {
            self.left_out.push(LeftOut { topic, left, of });
        }
    }
}

/// A model and the settings of its arrays.
pub struct Source<'a> {
    /// The model, on the CPU.
    pub model: &'a Model,
    /// The same model in double precision.
    pub exact: &'a Model,
    /// The seed of all latents and of the noise.
    pub seed: u64,
    /// The number of samples that the attribute and the histograms are computed from.
    pub samples: usize,
}

impl Source<'_> {
    /// Computes all arrays that apply to this model.
    ///
    /// # Errors
    /// When the model cannot be computed, or more than half of its samples are not finite.
    pub fn arrays(&self) -> Result<Drawn> {
        let mut all = Drawn::default();
        self.compared(&mut all)?;
        match *self.model.config().shape() {
            [1 | 3, _, _] => {
                self.temperatures(&mut all)?;
                self.interpolations(&mut all)?;
                self.attribute(&mut all)?;
                self.levels(&mut all)?;
                self.out_of_distribution(&mut all)?;
            }
            _ => self.points(&mut all)?,
        }
        for (_, tensor) in &mut all.arrays {
            *tensor = tensor.contiguous()?;
        }
        Ok(all)
    }

    /// Draws latents from the prior at a temperature, (n, D), of all classes in turn. With `offset` 0 they are those of `flow sample`
    /// with this seed.
    fn prior(&self, n: usize, temperature: f64, offset: u64) -> Result<Tensor> {
        let seed = self.seed.wrapping_add(offset);
        Ok(latents::prior(self.model, n, temperature, seed, self.labels(n)?.as_ref())?)
    }

    /// The class of each of `n` examples, all classes in turn; `None` for a model without classes.
    fn labels(&self, n: usize) -> Result<Option<Tensor>> {
        let Some(classes) = self.model.config().classes() else { return Ok(None) };
        let labels: Vec<u32> = (0..n).map(|i| (i % classes) as u32).collect();
        Ok(Some(Tensor::from_vec(labels, n, &Device::Cpu)?))
    }

    /// Applies `f` to the examples and their labels, a batch at a time.
    fn over(
        &self,
        x: &Tensor,
        labels: Option<&Tensor>,
        f: impl Fn(&Tensor, Option<&Tensor>) -> candle_core::Result<Tensor>,
    ) -> Result<Tensor> {
        let n = x.dim(0)?;
        let mut done = Vec::new();
        for first in (0..n).step_by(BATCH) {
            let len = BATCH.min(n - first);
            let cond = labels.map(|l| l.narrow(0, first, len)).transpose()?;
            done.push(f(&x.narrow(0, first, len)?, cond.as_ref())?);
        }
        Ok(Tensor::cat(&done, 0)?)
    }

    fn decode(&self, z: &Tensor, labels: Option<&Tensor>) -> Result<Tensor> {
        self.over(z, labels, |z, cond| self.model.decode(z, cond))
    }

    /// The first `n` rows that are finite in all tensors of `draw(m)`, which have m rows each. Where the first `n` are not all
    /// finite, the rows are chosen from [`SPARE`] times as many; there may then be fewer than `n`, and `None` means none.
    fn first(
        &self,
        all: &mut Drawn,
        topic: &'static str,
        n: usize,
        draw: impl Fn(usize) -> Result<Vec<Tensor>>,
    ) -> Result<Option<Vec<Tensor>>> {
        let mut made = draw(n)?;
        let mut kept = finite(&made)?;
        let mut of = n;
        if kept.len() < n {
            made = draw(SPARE * n)?;
            kept = finite(&made)?;
            kept.truncate(n);
            of = if kept.len() == n { kept[n - 1] as usize + 1 } else { SPARE * n };
        }
        all.leave(topic, of - kept.len(), of);
        if kept.is_empty() {
            return Ok(None);
        }
        let rows = Tensor::new(kept, &Device::Cpu)?;
        Ok(Some(made.iter().map(|t| t.index_select(&rows, 0)).collect::<candle_core::Result<_>>()?))
    }

    /// Decodes latents and keeps the samples that are finite and have a finite log p(x).
    fn finite_of(&self, all: &mut Drawn, topic: &'static str, z: &Tensor) -> Result<Many> {
        let n = z.dim(0)?;
        let labels = self.labels(n)?;
        let x = self.decode(z, labels.as_ref())?;
        let log_prob = self.over(&x, labels.as_ref(), |x, cond| self.model.log_prob(x, cond))?;
        let kept = finite(&[x.clone(), log_prob])?;
        let left = n - kept.len();
        ensure!(2 * left <= n, overflow(left, n));
        all.leave(topic, left, n);
        let rows = Tensor::new(kept, &Device::Cpu)?;
        let labels = labels.map(|l| l.index_select(&rows, 0)).transpose()?;
        Ok(Many { x: x.index_select(&rows, 0)?, z: z.index_select(&rows, 0)?, labels })
    }

    fn bits(&self, x: &Tensor, labels: Option<&Tensor>) -> Result<Tensor> {
        Ok(self.over(x, labels, |x, cond| self.model.bits_per_dim(x, cond))?.to_dtype(DType::F64)?)
    }

    /// Decodes latents, and computes the bits/dim of what they become.
    fn decode_with_bits(&self, z: &Tensor, labels: Option<&Tensor>) -> Result<(Tensor, Tensor)> {
        let x = self.decode(z, labels)?;
        let bits = self.bits(&x, labels)?;
        Ok((x, bits))
    }

    /// Converts images from the units of the data to bytes. Values are rounded down, which undoes dequantisation.
    fn bytes(&self, x: &Tensor) -> Result<Tensor> {
        let most = f64::from(2u32.pow(self.model.config().bits().into()) - 1);
        Ok(((x.floor()?.clamp(0., most)? * (255. / most))?.round()?).to_dtype(DType::U8)?)
    }

    fn compared(&self, all: &mut Drawn) -> Result<()> {
        let made = self.first(all, "pytorch", COMPARED, |m| {
            let labels = self.labels(m)?;
            let x = self.decode(&self.prior(m, TEMPERATURE, 0)?, labels.as_ref())?.to_dtype(DType::F32)?;
            let log_prob = self.exact.log_prob(&x.to_dtype(DType::F64)?, labels.as_ref())?;
            Ok([x, log_prob].into_iter().chain(labels).collect())
        })?;
        let Some(made) = made else { bail!(overflow(SPARE * COMPARED, SPARE * COMPARED)) };
        all.put("x", made[0].clone());
        all.put("log_prob", made[1].clone());
        if let Some(labels) = made.get(2) {
            all.put("labels", labels.to_dtype(DType::I64)?);
        }
        Ok(())
    }

    fn temperatures(&self, all: &mut Drawn) -> Result<()> {
        let made = self.first(all, "samples", 6, |m| {
            let labels = self.labels(m)?;
            let at = |t: &f64| self.decode_with_bits(&self.prior(m, *t, 0)?, labels.as_ref());
            let (images, bits): (Vec<_>, Vec<_>) = TEMPERATURES.iter().map(at).collect::<Result<_>>()?;
            Ok(vec![Tensor::stack(&images, 1)?, Tensor::stack(&bits, 1)?])
        })?;
        let Some(made) = made else { return Ok(()) };
        all.put("temperatures", Tensor::new(&TEMPERATURES, &Device::Cpu)?);
        all.put("temperature_images", self.bytes(&made[0].transpose(0, 1)?.contiguous()?)?);
        all.put("temperature_bits", made[1].t()?);
        Ok(())
    }

    /// Linear and spherical interpolation between two latents.
    fn interpolations(&self, all: &mut Drawn) -> Result<()> {
        let t: Vec<f64> = (0..STEPS).map(|i| i as f64 / (STEPS - 1) as f64).collect();
        // The same class at every point.
        let labels = self.labels(1)?.map(|l| l.broadcast_as(STEPS)?.contiguous()).transpose()?;
        let made = self.first(all, "interpolation", 1, |m| {
            let ends = self.prior(2 * m, 1., 0)?;
            let (mut images, mut bits) = (vec![], vec![]);
            for pair in 0..m {
                let (a, b) = (ends.get(2 * pair)?, ends.get(2 * pair + 1)?);
                for z in [latents::lerp(&a, &b, &t)?, latents::slerp(&a, &b, &t)?] {
                    let (x, b) = self.decode_with_bits(&z, labels.as_ref())?;
                    images.push(x);
                    bits.push(b);
                }
            }
            let shape = [&[m, 2, STEPS], self.model.config().shape()].concat();
            let (images, bits) = (Tensor::stack(&images, 0)?, Tensor::stack(&bits, 0)?);
            Ok(vec![images.reshape(shape)?, bits.reshape((m, 2, STEPS))?])
        })?;
        let Some(made) = made else { return Ok(()) };
        all.put("walk_t", Tensor::new(t, &Device::Cpu)?);
        all.put("walk_images", self.bytes(&made[0].get(0)?)?);
        all.put("walk_bits", made[1].get(0)?);
        Ok(())
    }

    /// Samples moved along the attribute "brighter", the mean latent of the brighter half of the samples minus that of the
    /// darker half: it needs no labels.
    fn attribute(&self, all: &mut Drawn) -> Result<()> {
        let Many { x, z, .. } =
            self.finite_of(all, "attribute", &self.prior(self.samples, TEMPERATURE, 0)?)?;
        let brightness: Vec<f64> = x.flatten_from(1)?.mean(1)?.to_dtype(DType::F64)?.to_vec1()?;
        if brightness.len() < 2 {
            return Ok(());
        }
        let mut order: Vec<u32> = (0..brightness.len() as u32).collect();
        order.sort_by(|&i, &j| brightness[i as usize].total_cmp(&brightness[j as usize]));
        let half = order.len() / 2;
        let of = |order: &[u32]| z.index_select(&Tensor::new(order, &Device::Cpu)?, 0);
        let direction = latents::attribute(&of(&order[half..])?, &of(&order[..half])?)?;
        let steps = STRENGTHS.len();
        let made = self.first(all, "attribute-moved", 5, |m| {
            let held = self.prior(m, TEMPERATURE, HELD_OUT)?;
            let each = |l: Tensor| l.unsqueeze(1)?.broadcast_as((m, steps))?.flatten_all();
            let labels = self.labels(m)?.map(each).transpose()?;
            let moved = self.decode(&latents::apply(&held, &direction, &STRENGTHS)?, labels.as_ref())?;
            Ok(vec![moved.reshape([&[m, steps], self.model.config().shape()].concat())?])
        })?;
        let Some(made) = made else { return Ok(()) };
        all.put("attribute_strengths", Tensor::new(&STRENGTHS, &Device::Cpu)?);
        all.put("attribute_images", self.bytes(&made[0])?);
        Ok(())
    }

    fn levels(&self, all: &mut Drawn) -> Result<()> {
        let levels = self.model.levels(&self.prior(1, 1., 0)?)?.len();
        if levels < 2 {
            return Ok(());
        }
        let made = self.first(all, "levels", 6, |m| {
            let labels = self.labels(m)?;
            let (z, fresh) = (self.prior(m, TEMPERATURE, 0)?, self.prior(m, TEMPERATURE, FRESH)?);
            let redrawn = std::iter::once(vec![]).chain((0..levels).map(|l| vec![l]));
            let decode = |levels: Vec<usize>| {
                self.decode(&latents::swap_levels(self.model, &z, &fresh, &levels)?, labels.as_ref())
            };
            Ok(vec![Tensor::stack(&redrawn.map(decode).collect::<Result<Vec<_>>>()?, 1)?])
        })?;
        if let Some(made) = made {
            all.put("level_images", self.bytes(&made[0].transpose(0, 1)?.contiguous()?)?);
        }
        Ok(())
    }

    /// Bits/dim of samples and of three kinds of images that the model has not learned: the samples' pixels in another order,
    /// one grey level in all pixels, and uniform noise. All have uniform noise within the last bit, as dequantised data do.
    fn out_of_distribution(&self, all: &mut Drawn) -> Result<()> {
        let dims = self.model.dims();
        let Many { x, labels, .. } = self.finite_of(all, "ood", &self.prior(self.samples, 1., 0)?)?;
        let n = x.dim(0)?;
        let shape = [&[n], self.model.config().shape()].concat();
        let channels = shape[1];
        let mut rng = rng_for(self.seed, "others");
        let levels = 2f32.powi(self.model.config().bits().into());
        let pixels: Vec<f32> = x.to_dtype(DType::F32)?.flatten_all()?.to_vec1()?;
        let mut order: Vec<usize> = (0..dims / channels).collect();
        order.shuffle(&mut rng);
        let shuffled: Vec<f32> = pixels
            .chunks_exact(dims)
            .flat_map(|image| image.chunks_exact(order.len()).flat_map(|c| order.iter().map(|&i| c[i])))
            .collect();
        let noise = (0..n * dims).map(|_| rng.random::<f32>() * levels).collect();
        let constant = (0..n)
            .flat_map(|i| std::iter::repeat_n((i as f32 / n as f32 * levels).floor(), dims))
            .map(|grey| grey + rng.random::<f32>())
            .collect();
        all.put("ood_samples", self.bits(&x, labels.as_ref())?);
        for (name, values) in [("ood_shuffled", shuffled), ("ood_constant", constant), ("ood_noise", noise)] {
            let x = Tensor::from_vec(values, shape.as_slice(), &Device::Cpu)?.to_dtype(x.dtype())?;
            all.put(name, self.bits(&x, labels.as_ref())?);
        }
        Ok(())
    }

    fn points(&self, all: &mut Drawn) -> Result<()> {
        let Many { x, labels, .. } = self.finite_of(all, "samples", &self.prior(8 * self.samples, 1., 0)?)?;
        let flat = x.flatten_from(1)?.to_dtype(DType::F64)?;
        all.put("points", flat.to_dtype(DType::F32)?);
        if self.model.config().shape() != [2] || labels.is_some() {
            return Ok(());
        }
        let range = |axis: usize| -> Result<(f64, f64)> {
            let v = flat.narrow(1, axis, 1)?;
            let (low, high) = (v.min_all()?.to_scalar::<f64>()?, v.max_all()?.to_scalar::<f64>()?);
            let margin = 0.05 * (high - low).max(1e-6);
            Ok((low - margin, high + margin))
        };
        let ((left, right), (bottom, top)) = (range(0)?, range(1)?);
        let at = |i: usize, low: f64, high: f64| low + (i as f64 + 0.5) / RASTER as f64 * (high - low);
        let raster: Vec<f64> = (0..RASTER)
            .flat_map(|row| (0..RASTER).flat_map(move |c| [at(c, left, right), at(row, bottom, top)]))
            .collect();
        let raster = Tensor::from_vec(raster, (RASTER * RASTER, 2), &Device::Cpu)?.to_dtype(x.dtype())?;
        let density = self.model.log_prob(&raster, None)?.exp()?.to_dtype(DType::F32)?;
        all.put("density", density.reshape((RASTER, RASTER))?);
        all.put("window", Tensor::new(&[left, right, bottom, top], &Device::Cpu)?);
        Ok(())
    }
}

/// Samples, their latents and their classes.
struct Many {
    x: Tensor,
    z: Tensor,
    labels: Option<Tensor>,
}

/// The rows in which all tensors are finite.
fn finite(tensors: &[Tensor]) -> Result<Vec<u32>> {
    let mut rows: Vec<u32> = (0..tensors[0].dim(0)? as u32).collect();
    for t in tensors {
        // 0 for what is finite, NaN otherwise.
        let t = t.to_dtype(DType::F64)?;
        let zero = t.sub(&t)?.reshape((t.dim(0)?, ()))?.sum(1)?.to_vec1::<f64>()?;
        rows.retain(|&row| zero[row as usize] == 0.);
    }
    Ok(rows)
}

fn overflow(left: usize, of: usize) -> String {
    format!(
        "{left} of {of} samples of this model are not finite, its inverse overflows, and there is nothing to show: examine it \
         with `flow doctor`"
    )
}
