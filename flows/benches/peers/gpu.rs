//! What is only measured on a GPU: memory from the pools that all allocations come from, and recorded steps.

use crate::worker::RECORDING;
use candle_core::cuda::cudarc::driver::{DriverError, result, sys};
use candle_core::{Device, Result, Tensor};
use flows::ops::kernels::{Graph, capture, trace, warm_up};
use flows::optim::{OnDevice, Optimizer};
use flows::{Ctx, Memory, Model};
use serde_json::json;
use std::time::Instant;

const GRAPHS: sys::CUgraphMem_attribute = sys::CUgraphMem_attribute_enum::CU_GRAPH_MEM_ATTR_USED_MEM_HIGH;
const POOL: sys::CUmemPool_attribute = sys::CUmemPool_attribute_enum::CU_MEMPOOL_ATTR_USED_MEM_HIGH;

fn of<T>(
    device: &Device,
    what: impl FnOnce(i32, sys::CUmemoryPool) -> std::result::Result<T, DriverError>,
) -> Result<T> {
    let cuda = device.as_cuda_device()?.cuda_stream();
    let context = cuda.context();
    context.bind_to_thread().map_err(candle_core::Error::wrap)?;
    let id = context.cu_device();
    // SAFETY: `id` is a device that is open.
    let pool = unsafe { result::device::get_mem_pool(id) };
    pool.and_then(|pool| what(id, pool)).map_err(candle_core::Error::wrap)
}

pub fn name(device: &Device) -> Result<String> {
    let cuda = device.as_cuda_device()?.cuda_stream();
    cuda.context().name().map_err(candle_core::Error::wrap)
}

/// The most bytes that were allocated at once since `reset_peak`.
pub fn peak(device: &Device) -> Result<u64> {
    of(device, |id, pool| {
        let (mut used, mut graphs) = (0u64, 0u64);
        // SAFETY: both attributes are a u64.
        unsafe {
            result::mem_pool::get_attribute(pool, POOL, (&raw mut used).cast())?;
            sys::cuDeviceGetGraphMemAttribute(id, GRAPHS, (&raw mut graphs).cast()).result()?;
        }
        Ok(used + graphs)
    })
}

/// Lets the peak start from what is allocated now.
pub fn reset_peak(device: &Device) -> Result<()> {
    of(device, |id, pool| {
        let mut zero = 0u64;
        // SAFETY: both attributes are a u64 that may be set to zero.
        unsafe {
            result::mem_pool::set_attribute(pool, POOL, (&raw mut zero).cast())?;
            sys::cuDeviceSetGraphMemAttribute(id, GRAPHS, (&raw mut zero).cast()).result()
        }
    })
}

/// Gives unused memory back if less than half of the GPU's is free: the others need theirs.
pub fn make_room(device: &Device) -> Result<()> {
    of(device, |_, pool| {
        let (free, total) = result::mem_get_info()?;
        if free < total / 2 {
            // SAFETY: what is in use stays.
            unsafe { result::mem_pool::trim_to(pool, 0)? };
        }
        Ok(())
    })
}

/// A training step as `flow train` takes it on a GPU: launched kernel by kernel three times, then recorded and replayed.
pub struct OnGpu {
    step: OnDevice,
    launched: u32,
    graph: Option<Graph>,
}

impl OnGpu {
    /// Before the first step.
    pub fn new(opt: &Optimizer) -> Result<Self> {
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
                    let (done, traced) = trace(device, || self.pass(model, x, memory));
                    done?;
                    let mut recording = json!({"refused": e.to_string(), "seconds_kernel_by_kernel": each});
                    match traced {
                        Ok(t) => {
                            recording["launches"] = t.launches.into();
                            recording["seconds_busy"] = t.busy.into();
                        }
                        Err(e) => recording["not_traced"] = e.to_string().into(),
                    }
                    recording
                }
            };
            RECORDING.set(recording).ok();
            return Ok(());
        }
        self.launched += 1;
        Ok(warm_up(device, || self.pass(model, x, memory))?)
    }
}
