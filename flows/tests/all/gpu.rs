//! What only a GPU does: the kernels of an update, batches that are made on the device, recorded steps, and products in a
//! reduced precision.

use crate::device;
use candle_core::{DType, Device, Result, Tensor};
use flows::models::glow::Permutation;
use flows::models::{GlowConfig, RealNvpConfig};
use flows::ops::cuda::{Batches, Nccl, Recorder, Variation};
use flows::ops::device::is_gpu;
use flows::ops::precision::{self, Precision};
use flows::optim::{Ema, Optimizer, Penalty, Rule, UpdateSettings, Updater, global_norm};
use flows::params::Init;
use flows::{Ctx, Grads, Memory, Model, ModelConfig, ParamStore};

fn batches(bits: u8, variation: Variation) -> Result<Batches> {
    let pixels: Vec<u8> = (0..7 * 30).map(|i| (i * 37 % 256) as u8).collect();
    Batches::new(&pixels, Some(&[0, 1, 2, 3, 4, 5, 6]), [2, 3, 5], (4, bits, 9), variation, &device())
}

/// The bytes of example `i`.
fn example(i: u32) -> Vec<f32> {
    (0..30).map(|e| ((i * 30 + e) * 37 % 256) as f32).collect()
}

/// A training run of a small model of 1 x 4 x 4 images in f64, as the command line has it.
struct Steps {
    model: Model,
    batches: Batches,
    updater: Updater,
    recorder: Recorder,
    update: u64,
    memory: Memory,
    /// Sums gradients over GPUs.
    nccl: Option<Nccl>,
}

/// Gradients that went through a sum over GPUs as one vector, as ranks send them.
fn summed(nccl: &Nccl, grads: Grads) -> Result<Grads> {
    let flat = grads.values().map(Tensor::flatten_all).collect::<Result<Vec<_>>>()?;
    let sum = nccl.all_reduce(&Tensor::cat(&flat, 0)?)?;
    let mut at = 0;
    let part = |(name, g): (String, Tensor)| {
        let n = g.elem_count();
        at += n;
        Ok((name, sum.narrow(0, at - n, n)?.reshape(g.shape())?))
    };
    grads.into_iter().map(part).collect()
}

impl Steps {
    fn new(config: &ModelConfig, memory: Memory) -> anyhow::Result<Self> {
        let model = Model::new(config.clone(), 5, DType::F64, &device())?;
        model.params().perturb(1, 0.05)?;
        let pixels: Vec<u8> = (0..20 * 16).map(|i| (i * 29 % 251) as u8).collect();
        let variation = Variation { hflip: true, ..Variation::default() };
        let batches = Batches::new(&pixels, None, [1, 4, 4], (6, 8, 11), variation, &device())?;
        let rule = Rule::Adam { b1: 0.9, b2: 0.999, eps: 1e-8 };
        let settings = UpdateSettings { clip_norm: Some(50.), ema: Some(0.99) };
        let updater = Updater::new(rule, model.params(), settings, |_| Penalty::default())?;
        Ok(Self { model, batches, updater, recorder: Recorder::default(), update: 0, memory, nccl: None })
    }

    /// One update, recorded and replayed once the recorder has warmed up, or always kernel by kernel.
    fn update(&mut self, record: bool) -> Result<()> {
        self.batches.prepare(self.update, |epoch| (0..20).map(|i| (i * 3 + epoch as u32) % 20).collect())?;
        self.update += 1;
        self.updater.begin(1e-3 / self.update as f64)?;
        let Self { model, batches, updater, recorder, memory, nccl, .. } = self;
        let mut pass = || {
            let x = batches.next()?.0.to_dtype(DType::F64)?;
            let mut mean = None;
            let (_, grads) = model.gradients(&x, Ctx::train(), *memory, |log_prob| {
                let log_prob = log_prob.mean_all()?;
                mean = Some(log_prob.detach());
                log_prob * -1.
            })?;
            let grads = match &nccl {
                Some(nccl) => summed(nccl, grads)?,
                None => grads,
            };
            updater.apply(grads, &mean.expect("computed above"))?;
            batches.advance()
        };
        if record { recorder.run(&device(), pass) } else { pass() }
    }
}

crate::gpu_tests! {
    /// A few steps of every rule with clipping, L2, weight decay and averages: the kernels against the updates written for the processor.
    fn kernels_take_the_same_steps() {
        let adamax = |adam_correction| Rule::Adamax { b1: 0.9, b2: 0.99, eps: 1e-3, adam_correction };
        for rule in [
            Rule::Adam { b1: 0.9, b2: 0.99, eps: 1e-3 },
            adamax(false),
            adamax(true),
            Rule::RmsProp { rho: 0.9, momentum: 0.5, eps: 1e-3 },
        ] {
            let make = |device: &Device| -> Result<_> {
                let params = ParamStore::seeded(3, DType::F64, device);
                params.vb().get((130, 150), "a", Init::Normal(1.))?;
                params.vb().get(7, "b", Init::Normal(1.))?;
                params.vb().get(5, "untouched", Init::Normal(1.))?;
                Ok(params)
            };
            let (p, q) = (make(&Device::Cpu)?, make(&device())?);
            let decay = |name: &str| if name == "a" { 0.2 } else { 0. };
            let (mut opt, mut ema) = (Optimizer::new(rule, &p)?.with_decay(decay), Ema::new(0.9, &p)?);
            let settings = UpdateSettings { clip_norm: Some(10.), ema: Some(0.9) };
            let mut updater = Updater::new(rule, &q, settings, |name| Penalty { l2: if name == "b" { 0.3 } else { 0. }, decay: decay(name) })?;
            let grads_of = |params: &ParamStore, t: f64| -> Result<Grads> {
                let all = params.trained().into_iter().filter(|(name, _)| name != "untouched");
                all.map(|(name, p)| Ok((name, ((p.value() * 3.)?.sin()? * t)?))).collect()
            };
            let (mut norms, mut clips) = (0., 0.);
            for t in [0.2, 0.001, 1.5] {
                let mut grads = grads_of(&p, t)?;
                let (_, b) = p.trained().into_iter().find(|(name, _)| name == "b").expect("made above");
                let g = grads.get_mut("b").expect("made above");
                *g = (&*g + (b.value() * 0.6)?)?;
                let norm = global_norm(&grads)?;
                let clip = if norm > 10. { 10. / norm } else { 1. };
                opt.step(&grads, 0.1, clip)?;
                ema.update()?;
                (norms, clips) = (norms + norm, clips + clip);
                updater.begin(0.1)?;
                updater.apply(grads_of(&q, t)?, &Tensor::new(-2f64, &device())?)?;
            }
            let near = |what: &str, a: &Tensor, b: &Tensor| -> anyhow::Result<()> {
                let d = (a - b.to_device(&Device::Cpu)?)?.abs()?.flatten_all()?.max(0)?.to_scalar::<f64>()?;
                assert!(d < 1e-13, "{rule:?}: {what} differs by {d:e}");
                Ok(())
            };
            for ((name, a), (_, b)) in p.trained().iter().zip(q.trained()) {
                near(name, a.value(), b.value())?;
                near("state", &opt.state()[name], &updater.optimizer().state()[name])?;
                near("average", &ema.average()[name], &updater.ema().expect("asked for").average()[name])?;
            }
            let tally = updater.tally()?;
            assert_eq!((tally.log_prob, tally.updates, tally.not_finite), (-6., 3, None));
            assert!((tally.norm - norms).abs() < 1e-9 && (tally.clip - clips).abs() < 1e-12);
            assert!(clips < 3., "one of the steps was clipped");

            // After a gradient that is not finite nothing moves, whatever comes next.
            let before = q.trained()[0].1.value().to_device(&Device::Cpu)?.copy()?;
            for t in [f64::NAN, 0.5] {
                updater.begin(0.1)?;
                updater.apply(grads_of(&q, t)?, &Tensor::new(-2f64, &device())?)?;
            }
            let tally = updater.tally()?;
            assert_eq!((tally.updates, tally.not_finite), (0, Some(false)));
            near("a parameter", &before, q.trained()[0].1.value())?;
        }
        Ok(())
    }


    fn batches_are_the_examples_in_order_with_noise_within_the_bin() {
        for bits in [8u8, 5] {
            let mut b = batches(bits, Variation::default())?;
            let order = |epoch: u64| (0..7u32).map(|i| (i * 3 + epoch as u32) % 7).collect::<Vec<_>>();
            let (mut seen, mut sum) = (Vec::new(), 0.);
            for update in 0..7 {
                b.prepare(update, order)?;
                let (x, labels) = b.next()?;
                b.advance()?;
                let labels = labels.expect("given").to_vec1::<u32>()?;
                for (x, &label) in x.flatten_from(1)?.to_vec2::<f32>()?.iter().zip(&labels) {
                    for (x, want) in x.iter().zip(example(label)) {
                        let bin = (want / f32::from(1u16 << (8 - bits))).floor();
                        assert!(*x >= bin && *x < bin + 1., "{x} in bin {bin}");
                        sum += f64::from(x - bin);
                    }
                }
                seen.extend(labels);
            }
            let want: Vec<u32> = (0..4).flat_map(order).collect();
            assert_eq!(seen, want);
            assert!((sum / (28. * 30.) - 0.5).abs() < 4. * (1. / 12. / 840f64).sqrt(), "noise has mean 1/2");
        }
        Ok(())
    }

    fn a_batch_is_a_function_of_the_update() {
        let variation = Variation { hflip: true, shift_y: 1, shift_x: 2 };
        let mut straight = batches(8, variation)?;
        let order = |_| (0..7).collect::<Vec<u32>>();
        let mut all = Vec::new();
        for update in 0..5 {
            straight.prepare(update, order)?;
            all.push(straight.next()?.0.flatten_all()?.to_vec1::<f32>()?);
            straight.advance()?;
        }
        let mut resumed = batches(8, variation)?;
        resumed.start(3)?;
        resumed.prepare(3, order)?;
        assert_eq!(resumed.next()?.0.flatten_all()?.to_vec1::<f32>()?, all[3]);
        assert_ne!(all[0], all[1]);
        Ok(())
    }

    /// Every example is one of its 2 x 3 x 5 variations, and each of them occurs.
    fn variations_flip_and_repeat_edges() {
        let mut b = batches(8, Variation { hflip: true, shift_y: 1, shift_x: 2 })?;
        let mut met = std::collections::BTreeSet::new();
        for update in 0..200 {
            b.prepare(update, |_| vec![0; 7])?;
            let (x, _) = b.next()?;
            b.advance()?;
            for x in x.flatten_from(1)?.to_vec2::<f32>()? {
                let from = example(0);
                let found = [false, true]
                    .into_iter()
                    .flat_map(|f| (-1..=1).flat_map(move |y| (-2..=2).map(move |x| (f, y, x))));
                let which = found
                    .filter(|&(flip, dy, dx): &(bool, i32, i32)| {
                        (0..30).all(|e| {
                            let (c, y, col) = (e / 15, e / 5 % 3, e % 5);
                            let y = (y as i32 + dy).clamp(0, 2) as usize;
                            let col = if flip { 4 - col } else { col };
                            let col = (col as i32 + dx).clamp(0, 4) as usize;
                            x[e].floor() == from[c * 15 + y * 5 + col]
                        })
                    })
                    .collect::<Vec<_>>();
                assert_eq!(which.len(), 1, "one variation fits");
                met.extend(which);
            }
        }
        assert_eq!(met.len(), 30);
        Ok(())
    }

    /// Updates of small models, launched kernel by kernel and then recorded and replayed, against kernel by kernel throughout.
    fn a_recorded_step_is_the_step() {
        let shape = [1, 4, 4];
        let glow = GlowConfig { shape, levels: 2, depth: 2, width: 8, ..GlowConfig::cifar_paper() };
        // Its 1x1 convolutions are not factored, so a step inverts them.
        let released = GlowConfig { permutation: Permutation::Plain, ..glow.clone() };
        let realnvp = RealNvpConfig { shape, scales: 2, features: 4, blocks: 1, ..RealNvpConfig::cifar_paper() };
        let configs = [ModelConfig::Glow(glow), ModelConfig::Glow(released), ModelConfig::RealNvp(realnvp)];
        let memories = [Memory::Store, Memory::Recompute];
        for (config, memory) in configs.iter().flat_map(|c| memories.map(|m| (c, m))) {
            let mut recorded = Steps::new(config, memory)?;
            let mut plain = Steps::new(config, memory)?;
            for _ in 0..7 {
                recorded.update(true)?;
                plain.update(false)?;
            }
            assert_eq!(recorded.recorder.nodes().is_some(), is_gpu(&device()));
            let (a, b) = (recorded.updater.tally()?, plain.updater.tally()?);
            assert_eq!((a.updates, b.updates, a.not_finite), (7, 7, None));
            assert!((a.log_prob - b.log_prob).abs() < 1e-9 * b.log_prob.abs(), "{a:?} {b:?}");
            for ((name, a), (_, b)) in recorded.model.params().all().iter().zip(plain.model.params().all()) {
                if a.value().dtype().is_float() {
                    let d = (a.value() - b.value())?.abs()?.flatten_all()?.max(0)?.to_scalar::<f64>()?;
                    assert!(d < 1e-10, "`{name}` differs by {d:e}");
                }
            }
        }
        Ok(())
    }

    /// The sum over GPUs is part of a recorded step: with one GPU it changes nothing.
    fn a_sum_over_gpus_is_recorded_with_the_step() {
        if !cfg!(feature = "nccl") || !is_gpu(&device()) {
            println!("skipped: it takes a GPU and the feature `nccl`");
            return Ok(());
        }
        let config = ModelConfig::Glow(GlowConfig { shape: [1, 4, 4], levels: 2, depth: 2, width: 8, ..GlowConfig::cifar_paper() });
        let mut alone = Steps::new(&config, Memory::Store)?;
        let mut one_of_one = Steps::new(&config, Memory::Store)?;
        one_of_one.nccl = Some(Nccl::new(&device(), &Nccl::id()?, 0, 1)?);
        for _ in 0..7 {
            alone.update(true)?;
            one_of_one.update(true)?;
        }
        assert!(one_of_one.recorder.nodes().is_some(), "{:?}", one_of_one.recorder.take_refusal());
        for ((name, a), (_, b)) in alone.model.params().trained().iter().zip(one_of_one.model.params().trained()) {
            let d = (a.value() - b.value())?.abs()?.flatten_all()?.max(0)?.to_scalar::<f64>()?;
            assert_eq!(d, 0., "`{name}` differs by {d:e}");
        }
        Ok(())
    }

    /// Products in TF32 and bf16 change log p(x) by little, and not at all what the inverse undoes.
    fn reduced_precision_costs_likelihood_and_not_invertibility() {
        let config = GlowConfig { shape: [3, 8, 8], levels: 2, depth: 2, width: 32, ..GlowConfig::cifar_paper() };
        let model = Model::new(ModelConfig::Glow(config), 1, DType::F32, &device())?;
        model.params().perturb(2, 0.05)?;
        let x: Vec<f32> = (0..4 * 3 * 64).map(|i| (i * 37 % 256) as f32 + 0.5).collect();
        let x = Tensor::from_vec(x, (4, 3, 8, 8), &device())?;
        let full = model.bits_per_dim(&x, None)?.to_vec1::<f32>()?;
        for (precision, bound) in [(Precision::Tf32, 0.01), (Precision::Bf16, 0.05)] {
            let (bits, error) = precision::within(precision, || -> Result<_> {
                let bits = model.bits_per_dim(&x, None)?.to_vec1::<f32>()?;
                let back = model.decode(&model.encode(&x, None)?, None)?;
                Ok((bits, (back - &x)?.abs()?.flatten_all()?.max(0)?.to_scalar::<f32>()?))
            })?;
            for (a, b) in bits.iter().zip(&full) {
                assert!((a - b).abs() < bound, "{precision}: {a} against {b}");
            }
            assert!(error < 0.01, "{precision}: reconstruction is off by {error} grey levels");
            println!("{precision}: {bits:?} against {full:?}, reconstruction {error:e}");
        }
        Ok(())
    }
}
