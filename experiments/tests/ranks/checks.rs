//! What several ranks compute beside what one computes, in f64.

use candle_core::{DType, Device, Tensor};
use experiments::batches::Batch;
use experiments::ranks::{Ranks, Share, Single};
use experiments::train::{Pass, learn, over_ranks};
use flows::models::{GlowConfig, NiceConfig, PriorConfig, RealNvpConfig};
use flows::optim::{Penalty, Rule, UpdateSettings, Updater};
use flows::params::rng_for;
use flows::{Ctx, Grads, Memory, Model, ModelConfig};
use rand::Rng;
use std::time::Instant;

/// No number of ranks but one divides it.
const BATCH: usize = 7;

const UPDATES: u64 = 10;

fn model(config: &ModelConfig) -> Model {
    let model = Model::new(config.clone(), 3, DType::F64, &Device::Cpu).unwrap();
    let x = images(99, BATCH);
    model.init(&x, None).unwrap();
    // At the start zero convolutions make every coupling trivial.
    model.params().perturb(4, 0.05).unwrap();
    model
}

fn images(seed: u64, n: usize) -> Tensor {
    let mut rng = rng_for(seed, "images");
    let values: Vec<f64> =
        (0..n * 16).map(|i| 40. + (i % 16) as f64 * 9. + rng.random_range(0.0..32.)).collect();
    Tensor::from_vec(values, (n, 1, 4, 4), &Device::Cpu).unwrap()
}

fn updater(model: &Model) -> Updater {
    let rule = Rule::Adam { b1: 0.9, b2: 0.999, eps: 1e-8 };
    let settings = UpdateSettings { clip_norm: Some(1.), ema: Some(0.9) };
    Updater::new(rule, model.params(), settings, |_| Penalty { l2: 1e-4, decay: 0. }).unwrap()
}

fn part(x: &Tensor, share: Share) -> Tensor {
    x.narrow(0, share.first, share.len).unwrap().contiguous().unwrap()
}

/// The gradients of a batch, of which each rank computes its share.
fn gradients(model: &Model, x: &Tensor, memory: Memory, ranks: &dyn Ranks) -> Grads {
    let share = Share::new(BATCH, ranks);
    let mut mean = None;
    let (_, grads) = model
        .gradients(&part(x, share), Ctx::train(), memory, |p| {
            let p = p.mean_all()?;
            mean = Some(p.detach());
            p * -share.weight()
        })
        .unwrap();
    over_ranks(ranks, share.weight(), model.params(), grads, mean.unwrap()).unwrap().0
}

fn update(model: &Model, updater: &mut Updater, memory: Memory, ranks: &dyn Ranks) {
    let share = Share::new(BATCH, ranks);
    for update in 0..UPDATES {
        let batch = Batch::new(part(&images(update, BATCH), share), None);
        updater.begin(1e-3).unwrap();
        learn(model, updater, &batch, Pass { memory, factor: 0.1, ranks, weight: share.weight() }).unwrap();
    }
    let tally = updater.tally().unwrap();
    assert_eq!((tally.updates, tally.not_finite), (UPDATES, None));
}

fn flat(t: &Tensor) -> Vec<f64> {
    t.flatten_all().unwrap().to_dtype(DType::F64).unwrap().to_vec1().unwrap()
}

/// The largest difference of two tensors beside the largest element of the second.
fn relative(a: &Tensor, b: &Tensor) -> f64 {
    let (a, b) = (flat(a), flat(b));
    let most = |v: &mut dyn Iterator<Item = f64>| v.fold(0., f64::max);
    let size = most(&mut b.iter().map(|b| b.abs()));
    let off = most(&mut a.iter().zip(&b).map(|(a, b)| (a - b).abs()));
    if off == 0. { 0. } else { off / size }
}

fn realnvp(batch_norm: bool) -> ModelConfig {
    let config = RealNvpConfig::cifar_paper();
    ModelConfig::RealNvp(RealNvpConfig { shape: [1, 4, 4], features: 4, blocks: 1, batch_norm, ..config })
}

pub fn gradients_and_updates(ranks: &dyn Ranks) {
    let nice = NiceConfig { shape: vec![1, 4, 4], ..NiceConfig::mnist_paper() };
    let nice = NiceConfig { hidden: vec![vec![8]; 4], prior: PriorConfig::Logistic {}, ..nice };
    let glow = GlowConfig { shape: [1, 4, 4], levels: 2, depth: 2, width: 6, ..GlowConfig::cifar_paper() };
    for (name, config) in
        [("NICE", ModelConfig::Nice(nice)), ("RealNVP", realnvp(false)), ("Glow", ModelConfig::Glow(glow))]
    {
        for memory in [Memory::Store, Memory::Recompute] {
            let (shared, alone) = (model(&config), model(&config));
            let x = images(50, BATCH);
            let (got, want) = (gradients(&shared, &x, memory, ranks), gradients(&alone, &x, memory, &Single));
            assert!(got.keys().eq(want.keys()));
            let of_gradients = got.iter().map(|(name, g)| relative(g, &want[name])).fold(0., f64::max);
            update(&shared, &mut updater(&shared), memory, ranks);
            update(&alone, &mut updater(&alone), memory, &Single);
            let (got, want) = (shared.params().all(), alone.params().all());
            let pairs = got.iter().zip(&want);
            let of_updates = pairs.map(|((_, a), (_, b))| relative(a.value(), b.value())).fold(0., f64::max);
            if ranks.rank() == 0 {
                println!(
                    "{name}, {memory:?}, {} ranks: gradients {of_gradients:.1e}, {UPDATES} updates {of_updates:.1e}",
                    ranks.size()
                );
            }
            assert!(of_gradients < 1e-12 && of_updates < 1e-12, "{name}: {of_gradients:e} {of_updates:e}");
        }
    }
}

/// With batch norm ranks normalise by their own share's statistics, and hold the same bits all the same.
pub fn batch_norm(ranks: &dyn Ranks) {
    for memory in [Memory::Store, Memory::Recompute] {
        let model = model(&realnvp(true));
        let before: Vec<_> = model.params().running().iter().map(|(_, p)| flat(p.value())).collect();
        update(&model, &mut updater(&model), memory, ranks);
        let after: Vec<_> = model.params().running().iter().map(|(_, p)| flat(p.value())).collect();
        assert!(!before.is_empty() && before.iter().zip(&after).all(|(a, b)| a != b));
        for (name, p) in model.params().all() {
            let own = flat(p.value());
            let mut first: Vec<u8> = own.iter().flat_map(|v| v.to_bits().to_le_bytes()).collect();
            let bits = first.clone();
            ranks.broadcast(0, &mut first);
            assert!(bits == first, "`{name}` of rank {} has other bits than that of rank 0", ranks.rank());
        }
    }
}

/// Sums are in the order of the ranks, whatever the length.
pub fn sums(ranks: &dyn Ranks) {
    let of = |rank: usize, n: usize| -> Vec<f32> {
        let mut rng = rng_for(rank as u64, "numbers");
        (0..n).map(|_| rng.random_range(-1.0..1.0) * 10f32.powi(rng.random_range(-6..6))).collect()
    };
    for n in [1, 2, 3, 5, 64, 1001, 100_000] {
        let mut want = of(0, n);
        for rank in 1..ranks.size() {
            want.iter_mut().zip(of(rank, n)).for_each(|(sum, v)| *sum += v);
        }
        let own = Tensor::new(of(ranks.rank(), n), &Device::Cpu).unwrap();
        assert_eq!(ranks.all_reduce(&own).unwrap().to_vec1::<f32>().unwrap(), want, "{n} numbers");
    }
    for from in 0..ranks.size() {
        let mut bytes = vec![ranks.rank() as u8; 10 * ranks.rank()];
        ranks.broadcast(from, &mut bytes);
        assert_eq!(bytes, vec![from as u8; 10 * from]);
    }
    ranks.barrier();
}

/// Prints the median time of a sum of `n` f32.
pub fn time_of_sum(ranks: &dyn Ranks, n: usize) {
    let values = Tensor::ones(n, DType::F32, &Device::Cpu).unwrap();
    let mut times: Vec<f64> = (0..9)
        .map(|_| {
            ranks.barrier();
            let clock = Instant::now();
            ranks.all_reduce(&values).unwrap();
            clock.elapsed().as_secs_f64()
        })
        .collect();
    times.sort_by(f64::total_cmp);
    if ranks.rank() == 0 {
        let gigabytes = 4e-9 * n as f64;
        println!(
            "{} ranks, {n} f32: {:.3} ms, {:.2} GB/s",
            ranks.size(),
            1e3 * times[4],
            gigabytes / times[4]
        );
    }
}
