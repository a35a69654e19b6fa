//! A training step that reconstructs its activations needs no more memory for a deeper flow: counted by the allocator, so in a
//! test binary of its own.

mod common;

use candle_core::{DType, Device, Result};
use common::{Counting, LIVE, PEAK};
use flows::models::{GlowConfig, RealNvpConfig};
use flows::testing::normal;
use flows::{Ctx, Memory, Model, ModelConfig};
use std::sync::atomic::{AtomicUsize, Ordering};

#[global_allocator]
static ALLOCATOR: Counting = Counting;

/// Bytes that gradients of a batch of 16 take at most beyond the gradients themselves, and bytes that they leave behind.
fn peak(config: ModelConfig, memory: Memory) -> Result<(f64, f64)> {
    let model = Model::new(config, 0, DType::F32, &Device::Cpu)?;
    let mut shape = vec![16];
    shape.extend(model.shape());
    let x = ((normal(&shape, 1, &Device::Cpu)?.to_dtype(DType::F32)?.tanh()? * 100.)? + 128.)?;
    model.init(&x, None)?;
    // The thread's own workspace is not what a step leaves behind.
    model.gradients(&x, Ctx::train(), memory, |lp| lp.mean_all())?;
    let base = LIVE.load(Ordering::SeqCst);
    PEAK.store(base, Ordering::SeqCst);
    let (_, grads) = model.gradients(&x, Ctx::train(), memory, |lp| lp.mean_all())?;
    let bytes = grads.values().map(|g| 4 * g.elem_count()).sum::<usize>() as f64;
    let over = |n: &AtomicUsize| n.load(Ordering::SeqCst) as f64 - base as f64 - bytes;
    Ok((over(&PEAK), over(&LIVE)))
}

/// On one thread: with several it is chance whose scratch space is there at once, and more so in a deep model.
#[test]
fn depth_costs_no_memory() -> Result<()> {
    let one = rayon::ThreadPoolBuilder::new().num_threads(1).build().map_err(candle_core::Error::wrap)?;
    one.install(depth_costs_none)
}

fn depth_costs_none() -> Result<()> {
    let glow = |depth| GlowConfig { levels: 2, depth, width: 64, ..GlowConfig::cifar_paper() };
    let nvp = |n| RealNvpConfig {
        features: 16,
        blocks: 2,
        checkerboard: n,
        channelwise: n,
        last_checkerboard: n,
        ..RealNvpConfig::cifar_paper()
    };
    for (name, shallow, deep) in [
        ("Glow", ModelConfig::Glow(glow(4)), ModelConfig::Glow(glow(16))),
        ("RealNVP", ModelConfig::RealNvp(nvp(2)), ModelConfig::RealNvp(nvp(8))),
    ] {
        let (a, _) = peak(shallow.clone(), Memory::Recompute)?;
        let (b, left) = peak(deep.clone(), Memory::Recompute)?;
        let (stored, _) = peak(deep, Memory::Store)?;
        println!(
            "{name}: {:.1} MB, four times as deep {:.1} MB, stored {:.1} MB",
            a / 1e6,
            b / 1e6,
            stored / 1e6
        );
        assert!(b <= 1.15 * a, "{name}: {b} bytes against {a}");
        // Gradients must not hold on to activations: maps and names are all that is left beside them.
        assert!(left < 1e6, "{name}: {left} bytes are left behind");
        assert!(stored > 3. * b, "{name}: storing takes {stored} bytes, reconstructing {b}");
    }
    Ok(())
}
