//! What the notebook shows of a model, as arrays: everything here is computed by the model from a seed, for a run's folder
//! holds no data.
//!
//! | name | shape | |
//! |---|---|---|
//! | `x`, `log_prob` | (n, ...), (n,) | samples at temperature .7 and log p(x) in double precision, to compare with |
//! | `labels` | (n,) | their classes, where the model has classes |
//! | `temperatures`, `temperature_images`, `temperature_bits` | (T,), (T, N, C, H, W), (T, N) | the same latents, scaled |
//! | `walk_t`, `walk_images`, `walk_bits` | (T,), (2, T, C, H, W), (2, T) | a line and an arc between two latents |
//! | `attribute_strengths`, `attribute_images` | (S,), (N, S, C, H, W) | held-out samples moved along "brighter" |
//! | `level_images` | (1 + L, N, C, H, W) | samples, then with one level's latents drawn anew |
//! | `ood_samples`, `ood_shuffled`, `ood_constant`, `ood_noise` | (N,) | bits/dim of samples and of what are none |
//! | `points`, `density`, `window` | (N, D), (R, R), (4,) | for vectors: samples; in the plane the density as well |
//!
//! Images are bytes as they are seen; `x` and `points` are in the units of the data.

use anyhow::{Result, ensure};
use candle_core::{DType, Device, Tensor};
use flows::params::rng_for;
use flows::{Model, latents};
use rand::Rng;
use rand::seq::SliceRandom;

/// Temperatures of the grid.
const TEMPERATURES: [f64; 6] = [0.25, 0.5, 0.7, 0.85, 1., 1.15];
/// Where a picture is to look good rather than to show the model's law.
const TEMPERATURE: f64 = 0.7;
/// Steps between two latents.
const STEPS: usize = 9;
/// How far along the attribute.
const STRENGTHS: [f64; 5] = [-2., -1., 0., 1., 2.];
/// Images that go through the flow together.
const BATCH: usize = 32;
/// Samples whose log p(x) PyTorch is compared on.
const COMPARED: usize = 8;
/// Points on a side of a density's raster.
const RASTER: usize = 120;
/// What is drawn apart from the samples of the seed, each from a seed of its own: what another latent replaces, and what an
/// attribute is tried on.
const FRESH: u64 = 1;
const HELD_OUT: u64 = 2;

/// Arrays by their names.
pub type Arrays = Vec<(String, Tensor)>;

/// A model as the notebook asks it.
pub struct Source<'a> {
    /// The model, on the CPU.
    pub model: &'a Model,
    /// The same in double precision.
    pub exact: &'a Model,
    /// The seed of everything that is drawn.
    pub seed: u64,
    /// Samples from which the attribute is taken, and whose bits/dim are counted.
    pub samples: usize,
}

impl Source<'_> {
    /// All arrays that this model has.
    ///
    /// # Errors
    /// When the model cannot be computed, or a sample is not finite.
    pub fn arrays(&self) -> Result<Arrays> {
        let mut all = Arrays::new();
        self.compared(&mut all)?;
        match *self.model.config().shape() {
            [1 | 3, _, _] => {
                self.temperatures(&mut all)?;
                self.walks(&mut all)?;
                self.attribute(&mut all)?;
                self.levels(&mut all)?;
                self.others(&mut all)?;
            }
            _ => self.points(&mut all)?,
        }
        for (_, tensor) in &mut all {
            *tensor = tensor.contiguous()?;
        }
        Ok(all)
    }

    /// Latents of the prior, (n, D): those that `flow sample` draws at this seed, or others.
    fn prior(&self, n: usize, other: u64) -> Result<Tensor> {
        Ok(latents::prior(self.model, n, self.seed.wrapping_add(other))?)
    }

    /// The class of each of `n` examples: all in turn.
    fn labels(&self, n: usize) -> Result<Option<Tensor>> {
        let Some(classes) = self.model.config().classes() else { return Ok(None) };
        let labels: Vec<u32> = (0..n).map(|i| (i % classes) as u32).collect();
        Ok(Some(Tensor::from_vec(labels, n, &Device::Cpu)?))
    }

    /// `f` over examples, a batch at a time; the labels go with their examples.
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
        let x = self.over(z, labels, |z, cond| self.model.decode(z, cond))?;
        ensure!(
            flows::params::is_finite(&x)?,
            "samples of this model are not finite, its inverse overflows, and there is nothing to show: examine it with `flow \
             doctor`"
        );
        Ok(x)
    }

    fn bits(&self, x: &Tensor, labels: Option<&Tensor>) -> Result<Tensor> {
        Ok(self.over(x, labels, |x, cond| self.model.bits_per_dim(x, cond))?.to_dtype(DType::F64)?)
    }

    /// Images in the units of the data as bytes that are seen: floors, as the data were dequantised upwards.
    fn bytes(&self, x: &Tensor) -> Result<Tensor> {
        let most = f64::from(2u32.pow(self.model.config().bits().into()) - 1);
        Ok(((x.floor()?.clamp(0., most)? * (255. / most))?.round()?).to_dtype(DType::U8)?)
    }

    fn compared(&self, all: &mut Arrays) -> Result<()> {
        let labels = self.labels(COMPARED)?;
        let z = (self.prior(COMPARED, 0)? * TEMPERATURE)?;
        let x = self.decode(&z, labels.as_ref())?.to_dtype(DType::F32)?;
        let log_prob = self.exact.log_prob(&x.to_dtype(DType::F64)?, labels.as_ref())?;
        all.extend([("x".to_owned(), x), ("log_prob".to_owned(), log_prob)]);
        if let Some(labels) = labels {
            all.push(("labels".to_owned(), labels.to_dtype(DType::I64)?));
        }
        Ok(())
    }

    fn temperatures(&self, all: &mut Arrays) -> Result<()> {
        let n = 6;
        let (z, labels) = (self.prior(n, 0)?, self.labels(n)?);
        let (mut images, mut bits) = (vec![], vec![]);
        for t in TEMPERATURES {
            let x = self.decode(&(&z * t)?, labels.as_ref())?;
            bits.push(self.bits(&x, labels.as_ref())?);
            images.push(self.bytes(&x)?);
        }
        all.push(("temperatures".to_owned(), Tensor::new(&TEMPERATURES, &Device::Cpu)?));
        all.push(("temperature_images".to_owned(), Tensor::stack(&images, 0)?));
        all.push(("temperature_bits".to_owned(), Tensor::stack(&bits, 0)?));
        Ok(())
    }

    fn walks(&self, all: &mut Arrays) -> Result<()> {
        let ends = self.prior(2, 0)?;
        let (a, b) = (ends.get(0)?, ends.get(1)?);
        let t: Vec<f64> = (0..STEPS).map(|i| i as f64 / (STEPS - 1) as f64).collect();
        let (mut images, mut bits) = (vec![], vec![]);
        // One class all the way, for the way is what is shown.
        let labels = self.labels(1)?.map(|l| l.broadcast_as(STEPS)?.contiguous()).transpose()?;
        for z in [latents::lerp(&a, &b, &t)?, latents::slerp(&a, &b, &t)?] {
            let x = self.decode(&z, labels.as_ref())?;
            bits.push(self.bits(&x, labels.as_ref())?);
            images.push(self.bytes(&x)?);
        }
        all.push(("walk_t".to_owned(), Tensor::new(t, &Device::Cpu)?));
        all.push(("walk_images".to_owned(), Tensor::stack(&images, 0)?));
        all.push(("walk_bits".to_owned(), Tensor::stack(&bits, 0)?));
        Ok(())
    }

    /// The brighter half of the samples against the darker one: the one attribute that every image has.
    fn attribute(&self, all: &mut Arrays) -> Result<()> {
        let (z, labels) = ((self.prior(self.samples, 0)? * TEMPERATURE)?, self.labels(self.samples)?);
        let x = self.decode(&z, labels.as_ref())?;
        let brightness: Vec<f64> = x.flatten_from(1)?.mean(1)?.to_dtype(DType::F64)?.to_vec1()?;
        let mut order: Vec<u32> = (0..self.samples as u32).collect();
        order.sort_by(|&i, &j| brightness[i as usize].total_cmp(&brightness[j as usize]));
        let half = self.samples / 2;
        let of = |order: &[u32]| z.index_select(&Tensor::new(order, &Device::Cpu)?, 0);
        let direction = latents::attribute(&of(&order[half..])?, &of(&order[..half])?)?;
        let (n, steps) = (5, STRENGTHS.len());
        let held = (self.prior(n, HELD_OUT)? * TEMPERATURE)?;
        let each = |l: Tensor| l.unsqueeze(1)?.broadcast_as((n, steps))?.flatten_all();
        let labels = self.labels(n)?.map(each).transpose()?;
        let moved =
            self.bytes(&self.decode(&latents::apply(&held, &direction, &STRENGTHS)?, labels.as_ref())?)?;
        let images = moved.reshape([&[n, steps], self.model.config().shape()].concat())?;
        all.push(("attribute_strengths".to_owned(), Tensor::new(&STRENGTHS, &Device::Cpu)?));
        all.push(("attribute_images".to_owned(), images));
        Ok(())
    }

    fn levels(&self, all: &mut Arrays) -> Result<()> {
        let n = 6;
        let labels = self.labels(n)?;
        let (z, fresh) = ((self.prior(n, 0)? * TEMPERATURE)?, (self.prior(n, FRESH)? * TEMPERATURE)?);
        let levels = self.model.levels(&z)?.len();
        if levels < 2 {
            return Ok(());
        }
        let mut rows = vec![];
        for anew in std::iter::once(vec![]).chain((0..levels).map(|l| vec![l])) {
            let z = latents::swap_levels(self.model, &z, &fresh, &anew)?;
            rows.push(self.bytes(&self.decode(&z, labels.as_ref())?)?);
        }
        all.push(("level_images".to_owned(), Tensor::stack(&rows, 0)?));
        Ok(())
    }

    /// Bits/dim of samples, and of three kinds of images that the model has not learned: the samples' own pixels in another
    /// order, one grey all over, and uniform noise. All with uniform noise in the last bit, as data have.
    fn others(&self, all: &mut Arrays) -> Result<()> {
        let (n, dims) = (self.samples, self.model.dims());
        let labels = self.labels(n)?;
        let mut shape = vec![n];
        shape.extend(self.model.config().shape());
        let channels = shape[1];
        let mut rng = rng_for(self.seed, "others");
        let levels = 2f32.powi(self.model.config().bits().into());
        let x = self.decode(&self.prior(n, 0)?, labels.as_ref())?;
        let pixels: Vec<f32> = x.to_dtype(DType::F32)?.flatten_all()?.to_vec1()?;
        let mut order: Vec<usize> = (0..dims / channels).collect();
        order.shuffle(&mut rng);
        let shuffled = pixels
            .chunks_exact(dims)
            .flat_map(|image| image.chunks_exact(order.len()).flat_map(|c| order.iter().map(|&i| c[i])))
            .collect();
        let noise = (0..n * dims).map(|_| rng.random::<f32>() * levels).collect();
        let constant = (0..n)
            .flat_map(|i| std::iter::repeat_n((i as f32 / n as f32 * levels).floor(), dims))
            .map(|grey| grey + rng.random::<f32>())
            .collect();
        all.push(("ood_samples".to_owned(), self.bits(&x, labels.as_ref())?));
        for (name, values) in [("ood_shuffled", shuffled), ("ood_constant", constant), ("ood_noise", noise)] {
            let values: Vec<f32> = values;
            let x = Tensor::from_vec(values, shape.as_slice(), &Device::Cpu)?.to_dtype(x.dtype())?;
            all.push((name.to_owned(), self.bits(&x, labels.as_ref())?));
        }
        Ok(())
    }

    fn points(&self, all: &mut Arrays) -> Result<()> {
        let n = 8 * self.samples;
        let labels = self.labels(n)?;
        let x = self.decode(&self.prior(n, 0)?, labels.as_ref())?;
        let flat = x.flatten_from(1)?.to_dtype(DType::F64)?;
        all.push(("points".to_owned(), flat.to_dtype(DType::F32)?));
        if self.model.config().shape() != [2] || labels.is_some() {
            return Ok(());
        }
        let values: Vec<Vec<f64>> = flat.to_vec2()?;
        let range = |axis: usize| {
            let v = values.iter().map(|p| p[axis]);
            let (low, high) = (v.clone().fold(f64::INFINITY, f64::min), v.fold(f64::NEG_INFINITY, f64::max));
            let margin = 0.05 * (high - low).max(1e-6);
            (low - margin, high + margin)
        };
        let ((left, right), (bottom, top)) = (range(0), range(1));
        let at = |i: usize, low: f64, high: f64| low + (i as f64 + 0.5) / RASTER as f64 * (high - low);
        let raster: Vec<f64> = (0..RASTER)
            .flat_map(|row| (0..RASTER).flat_map(move |c| [at(c, left, right), at(row, bottom, top)]))
            .collect();
        let raster = Tensor::from_vec(raster, (RASTER * RASTER, 2), &Device::Cpu)?.to_dtype(x.dtype())?;
        let density = self.model.log_prob(&raster, None)?.exp()?.to_dtype(DType::F32)?;
        all.push(("density".to_owned(), density.reshape((RASTER, RASTER))?));
        all.push(("window".to_owned(), Tensor::new(&[left, right, bottom, top], &Device::Cpu)?));
        Ok(())
    }
}
