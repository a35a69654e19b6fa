//! A training step as `flow train` makes it.

use crate::worker::RECORDING;
use candle_core::Tensor;
use flows::ops::cuda::Recorder;
use flows::optim::Updater;
use flows::{Ctx, Memory, Model};
use serde_json::json;
use std::time::Instant;

/// One step; on a GPU it is recorded after a few runs and replayed.
pub fn train(
    recorder: &mut Recorder,
    updater: &mut Updater,
    model: &Model,
    x: &Tensor,
    memory: Memory,
) -> anyhow::Result<()> {
    let (clock, device) = (Instant::now(), x.device());
    updater.begin(1e-6)?;
    recorder.run(device, || {
        let mut mean = None;
        let (_, grads) = model.gradients(x, Ctx::train(), memory, |lp| {
            let lp = lp.mean_all()?;
            mean = Some(lp.detach());
            lp * (-1. / (model.dims() as f64 * 2f64.ln()))
        })?;
        updater.apply(grads, &mean.expect("computed above"))
    })?;
    if device.is_cpu() {
        return Ok(());
    }
    let mut recording = RECORDING.lock().expect("no thread panics with it");
    if let Some(nodes) = recorder.nodes() {
        recording["nodes"] = nodes.into();
    } else if let Some(reason) = recorder.take_refusal() {
        recording["refused"] = reason.into();
    } else if recording["refused"].is_null() {
        device.synchronize()?;
        *recording = json!({ "seconds_kernel_by_kernel": clock.elapsed().as_secs_f64() });
    }
    Ok(())
}
