//! Whole runs shared out among ranks, here threads of this process.

use super::{Show, data, recipe, run, tensors, updates_in};
#[cfg(feature = "emulate")]
use crate::ranks::Single;
use crate::ranks::{Elsewhere, Ranks, threads};
use crate::recipe::{Recipe, Schedule};
use crate::run_dir::CHECKPOINT;
use crate::train::run::train_in_pool;
use crate::train::{Outcome, Silent};
use anyhow::Result;
use candle_core::Device;
use flows::models::RealNvpConfig;
use flows::{Memory, ModelConfig};
use std::collections::BTreeMap;
use std::path::Path;
use std::sync::atomic::AtomicBool;

/// Runs a recipe on `size` ranks; each but the first is given a folder that does not exist, and must not make it.
fn shared(recipe: &Recipe, out: &Path, size: usize, stop_after: Option<u64>) -> Vec<Result<Outcome>> {
    threads::run(size, |ranks| train_on(recipe, out, stop_after, ranks))
}

fn train_on(recipe: &Recipe, out: &Path, stop_after: Option<u64>, ranks: &dyn Ranks) -> Result<Outcome> {
    let stop = AtomicBool::new(false);
    let (rank, device) = (ranks.rank(), Device::Cpu);
    // The signal reaches one rank only, and not the first.
    let mut show = Show {
        stop_after: stop_after.filter(|_| rank == ranks.size() - 1).map(|at| (at, &stop)),
        ..Show::default()
    };
    if rank == 0 {
        return train_in_pool(recipe, &data(), &device, out, &mut Silent, &stop, ranks);
    }
    let nowhere = out.join("nowhere");
    let outcome = train_in_pool(recipe, &data(), &device, &nowhere, &mut show, &stop, ranks);
    assert!(!nowhere.exists(), "rank {rank} has written");
    outcome
}

fn numbers(out: &Path) -> BTreeMap<String, Vec<f32>> {
    let of = |bytes: &Vec<u8>| bytes.as_chunks::<4>().0.iter().map(|b| f32::from_le_bytes(*b)).collect();
    tensors(&out.join(CHECKPOINT)).iter().map(|(name, bytes)| (name.clone(), of(bytes))).collect()
}

/// The largest difference of parameters, beside 1.
fn difference(a: &Path, b: &Path) -> f32 {
    let (a, b) = (numbers(a), numbers(b));
    assert!(a.keys().eq(b.keys()));
    let parameters = a.iter().filter(|(name, _)| name.starts_with("param/"));
    let pairs = parameters.flat_map(|(name, v)| v.iter().zip(&b[name]));
    pairs.map(|(a, b)| (a - b).abs() / a.abs().max(1.)).fold(0., f32::max)
}

fn with_batch_norm(mut recipe: Recipe) -> Recipe {
    let config = RealNvpConfig::cifar_paper();
    recipe.model = ModelConfig::RealNvp(RealNvpConfig { shape: [1, 4, 4], features: 4, blocks: 1, ..config });
    recipe
}

#[test]
fn a_shared_run_is_that_of_one_process_and_resumes_to_the_bit() -> Result<()> {
    for memory in [Memory::Store, Memory::Recompute] {
        let dir = tempfile::tempdir()?;
        let mut recipe = recipe();
        recipe.train.memory = memory;
        let alone = dir.path().join("alone");
        let whole = run(&recipe, &alone)?;
        for size in [2, 3] {
            let (straight, broken) =
                (dir.path().join(format!("s{size}")), dir.path().join(format!("b{size}")));
            for outcome in shared(&recipe, &straight, size, None) {
                let outcome = outcome?;
                assert!(outcome.finished && outcome.updates == 12);
                assert_eq!(outcome.ranks.unwrap().processes, size);
                let (a, b) = (outcome.best_validation.unwrap(), whole.best_validation.unwrap());
                assert!(a.0 == b.0 && (a.1 - b.1).abs() < 1e-4, "{a:?} {b:?}");
            }
            let off = difference(&alone, &straight);
            println!(
                "{size} ranks, {memory:?}: parameters of a run in f32 differ from those of one process by {off:.1e}"
            );
            assert!(off < 1e-4, "{off}");
            assert_eq!(updates_in(&alone), updates_in(&straight));
            for stop in [1, 5, 6, 11] {
                for outcome in shared(&recipe, &broken, size, Some(stop)) {
                    assert_eq!(outcome?.updates, stop);
                }
            }
            shared(&recipe, &broken, size, None).into_iter().try_for_each(|outcome| outcome.map(drop))?;
            super::same(&straight, &broken);
            assert_eq!(updates_in(&straight), updates_in(&broken));
        }
    }
    Ok(())
}

#[test]
fn another_number_of_ranks_goes_on_with_a_run() -> Result<()> {
    let dir = tempfile::tempdir()?;
    let (alone, changing) = (dir.path().join("alone"), dir.path().join("changing"));
    run(&recipe(), &alone)?;
    for (size, stop) in [(2, Some(4)), (3, Some(7)), (1, Some(9)), (2, None)] {
        if size == 1 {
            super::run_until(&recipe(), &changing, stop.unwrap())?;
            continue;
        }
        shared(&recipe(), &changing, size, stop).into_iter().try_for_each(|outcome| outcome.map(drop))?;
    }
    assert!(difference(&alone, &changing) < 1e-4);
    Ok(())
}

#[test]
fn batch_norm_has_shares_and_the_summary_says_so() -> Result<()> {
    let dir = tempfile::tempdir()?;
    for outcome in shared(&with_batch_norm(recipe()), dir.path(), 3, None) {
        // Weights that differ between ranks would have ended the run at a checkpoint.
        let together = outcome?.ranks.unwrap();
        assert_eq!((together.processes, together.batch_statistics.as_deref()), (3, Some("share")));
    }
    Ok(())
}

#[test]
fn what_all_ranks_meet_is_said_once() -> Result<()> {
    let dir = tempfile::tempdir()?;
    let mut r = recipe();
    (r.train.lr, r.train.schedule, r.train.warmup_images) = (1e30, Schedule::Constant, 0);
    let errors: Vec<_> = shared(&r, dir.path(), 3, None).into_iter().map(Result::unwrap_err).collect();
    assert!(
        errors[0].to_string().contains("the loss of update 2 is not finite, first in layer `level0."),
        "{errors:?}"
    );
    assert!(errors[1..].iter().all(|e| e.is::<Elsewhere>()), "{errors:?}");
    r.train.batch = 2;
    let errors: Vec<_> = shared(&r, dir.path(), 3, None).into_iter().map(Result::unwrap_err).collect();
    assert!(errors[0].to_string().contains("less than the 3 processes"), "{errors:?}");
    assert!(errors[1..].iter().all(|e| e.is::<Elsewhere>()), "{errors:?}");
    Ok(())
}

/// The state that rank 0 has read or made reaches the others to the bit, and other data are refused.
#[test]
fn ranks_with_other_data_are_refused() -> Result<()> {
    let dir = tempfile::tempdir()?;
    let errors = threads::run(2, |ranks| {
        let mut other = data();
        if ranks.rank() == 1 {
            other.revision = "other".to_owned();
        }
        let stop = AtomicBool::new(false);
        train_in_pool(&recipe(), &other, &Device::Cpu, dir.path(), &mut Silent, &stop, ranks).unwrap_err()
    });
    assert!(errors[0].is::<Elsewhere>(), "{errors:?}");
    assert!(errors[1].to_string().contains("`data.revision` of rank 1 is not that of rank 0"), "{errors:?}");
    Ok(())
}

#[cfg(feature = "emulate")]
#[test]
fn gpus_share_a_batch_as_processors_do() -> Result<()> {
    let dir = tempfile::tempdir()?;
    for (name, recipe, most) in [
        ("glow", recipe(), 1e-4),
        // Batch norm has other statistics, of a share.
        ("realnvp", with_batch_norm(recipe()), 1.),
    ] {
        let train = |out: &Path, ranks: &dyn Ranks| {
            let stop = AtomicBool::new(false);
            flows::ops::cuda::emulate(|| {
                train_in_pool(&recipe, &data(), &Device::Cpu, out, &mut Silent, &stop, ranks)
            })
        };
        let out = dir.path().join(name);
        let (alone, shared, again) = (out.join("alone"), out.join("shared"), out.join("again"));
        train(&alone, &Single)?;
        for out in [&shared, &again] {
            threads::run(3, |ranks| train(out, ranks))
                .into_iter()
                .try_for_each(|outcome| outcome.map(drop))?;
        }
        super::same(&shared, &again);
        let off = difference(&alone, &shared);
        println!("{name}: 3 emulated GPUs differ from one by {off:.1e}");
        assert!(off < most, "{off}");
    }
    Ok(())
}
