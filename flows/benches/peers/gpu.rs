//! A recorded training step, which is only measured on a GPU.

use crate::worker::RECORDING;
use candle_core::Tensor;
use flows::ops::cuda::{Graph, capture, warm_up};
use flows::optim::{OnDevice, Optimizer};
use flows::{Ctx, Memory, Model};
use serde_json::json;
use std::time::Instant;

/// A training step as `flow train` takes it on a GPU: launched kernel by kernel three times, then recorded and replayed.
pub struct OnGpu {
    step: OnDevice,
    launched: u32,
    graph: Option<Graph>,
}

impl OnGpu {
    /// Before the first step.
    pub fn new(opt: &Optimizer) -> candle_core::Result<Self> {
        Ok(Self { step: OnDevice::new(opt, None, |_| 0.)?, launched: 0, graph: None })
    }

    fn pass(&mut self, model: &Model, x: &Tensor, memory: Memory) -> candle_core::Result<()> {
        let mut mean = None;
        let (_, grads) = model.gradients(x, Ctx::train(), memory, |lp| {
            let lp = lp.mean_all()?;
            mean = Some(lp.detach());
            lp * (-1. / (model.dims() as f64 * 2f64.ln()))
        })?;
        self.step.run(&grads, &mean.expect("computed above"))
    }

    /// One more of them.
    pub fn train(
        &mut self,
        model: &Model,
        opt: &mut Optimizer,
        x: &Tensor,
        memory: Memory,
    ) -> anyhow::Result<()> {
        let device = x.device();
        self.step.set(opt, None, 1e-6, Some(1.))?;
        if let Some(graph) = &self.graph {
            return Ok(graph.launch()?);
        }
        if RECORDING.get().is_none() && self.launched >= 3 {
            let clock = Instant::now();
            self.pass(model, x, memory)?;
            device.synchronize()?;
            let each = clock.elapsed().as_secs_f64();
            let recording = match capture(device, || self.pass(model, x, memory)) {
                Ok(graph) => {
                    let nodes = graph.nodes();
                    self.graph = Some(graph);
                    json!({"nodes": nodes, "seconds_kernel_by_kernel": each})
                }
                Err(e) => {
                    self.pass(model, x, memory)?;
                    json!({"refused": e.to_string(), "seconds_kernel_by_kernel": each})
                }
            };
            RECORDING.set(recording).ok();
            return Ok(());
        }
        self.launched += 1;
        Ok(warm_up(device, || self.pass(model, x, memory))?)
    }
}
