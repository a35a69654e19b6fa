//! Ranks that are processes, by MPI.
//!
//! A sum is made in the order of the ranks whatever the library, the network and the placement of ranks are: each rank gets its
//! part of every rank's vector (`MPI_Alltoall`), adds these in their order, and gives the sums to all (`MPI_Allgather`). A rank
//! sends 2 (N-1)/N of the vector, the least that any all-reduce sends. `MPI_Allreduce` sends as much, but in which order it adds is the
//! library's choice by message size and network; all that the standard asks for is advice.
//!
//! Tensors on a GPU are added there by NCCL, whose identifier MPI brings to all ranks.
//!
//! MPI's own errors end all ranks (`MPI_ERRORS_ARE_FATAL`, its default).

use super::spec::Ranks;
use candle_core::{DType, Device, Result, Tensor, bail};
use flows::ops::cuda::Nccl;
use flows::ops::device::is_gpu;
use mpi::Threading;
use mpi::datatype::Equivalence;
use mpi::environment::Universe;
use mpi::topology::SimpleCommunicator;
use mpi::traits::{Communicator as _, CommunicatorCollectives as _, Root as _};
use std::ops::AddAssign;
use std::sync::OnceLock;

/// Bytes of one broadcast: MPI counts in 32 bits.
const PIECE: usize = 1 << 30;

/// This process among those that the launcher has started.
pub(super) struct Mpi {
    _universe: Universe,
    rank: usize,
    size: usize,
    local: (usize, usize),
    nccl: OnceLock<Nccl>,
}

impl Mpi {
    /// Joins the others.
    ///
    /// # Errors
    /// When MPI has been initialised before, or its calls must come from one thread only.
    pub(super) fn start() -> anyhow::Result<Self> {
        // One thread at a time calls MPI, but not always the same one: training runs on a thread of rayon's pool.
        let started = mpi::initialize_with_threading(Threading::Serialized);
        let (universe, threading) =
            started.ok_or_else(|| anyhow::anyhow!("MPI has been initialised already"))?;
        anyhow::ensure!(
            threading >= Threading::Serialized,
            "this MPI library allows calls of one thread only: use one that is built with threads"
        );
        let world = SimpleCommunicator::world();
        let here = world.split_shared(world.rank());
        let local = (here.rank() as usize, here.size() as usize);
        let (rank, size) = (world.rank() as usize, world.size() as usize);
        Ok(Self { _universe: universe, rank, size, local, nccl: OnceLock::new() })
    }

    /// The sum over all ranks, added in their order.
    fn add<T: Equivalence + Copy + Default + AddAssign>(&self, mut values: Vec<T>) -> Vec<T> {
        let world = SimpleCommunicator::world();
        let (n, part) = (values.len(), values.len().div_ceil(self.size));
        if n == 0 {
            return values;
        }
        values.resize(part * self.size, T::default());
        let mut parts = vec![T::default(); part * self.size];
        world.all_to_all_into(&values[..], &mut parts[..]);
        let (sum, others) = parts.split_at_mut(part);
        for other in others.chunks_exact(part) {
            sum.iter_mut().zip(other).for_each(|(sum, v)| *sum += *v);
        }
        world.all_gather_into(&*sum, &mut values[..]);
        values.truncate(n);
        values
    }
}

impl Ranks for Mpi {
    fn rank(&self) -> usize {
        self.rank
    }

    fn size(&self) -> usize {
        self.size
    }

    fn local(&self) -> (usize, usize) {
        self.local
    }

    fn open(&self, device: &Device) -> Result<()> {
        if !is_gpu(device) {
            return Ok(());
        }
        let made = if self.rank == 0 { Nccl::id() } else { Ok(Vec::new()) };
        // The others wait for it, and get nothing where there is none.
        let mut id = made.as_ref().map_or_else(|_| Vec::new(), Vec::clone);
        self.broadcast(0, &mut id);
        made?;
        let nccl = Nccl::new(device, &id, self.rank, self.size)?;
        if self.nccl.set(nccl).is_err() {
            bail!("the ranks have a GPU each already");
        }
        Ok(())
    }

    fn all_reduce(&self, values: &Tensor) -> Result<Tensor> {
        if let Some(nccl) = self.nccl.get().filter(|_| is_gpu(values.device())) {
            return nccl.all_reduce(values);
        }
        match values.dtype() {
            DType::F32 => Tensor::new(self.add(values.to_vec1::<f32>()?), values.device()),
            DType::F64 => Tensor::new(self.add(values.to_vec1::<f64>()?), values.device()),
            dtype => bail!("ranks add f32 and f64, not {dtype:?}"),
        }
    }

    fn broadcast(&self, from: usize, bytes: &mut Vec<u8>) {
        let world = SimpleCommunicator::world();
        let root = world.process_at_rank(from as i32);
        let mut length = bytes.len() as u64;
        root.broadcast_into(&mut length);
        bytes.resize(length as usize, 0);
        bytes.chunks_mut(PIECE).for_each(|piece| root.broadcast_into(piece));
    }

    fn barrier(&self) {
        SimpleCommunicator::world().barrier();
    }

    fn abort(&self, code: i32) -> ! {
        SimpleCommunicator::world().abort(code)
    }
}

impl Drop for Mpi {
    /// A rank that panics must not wait for the others to end as well, for they wait for it.
    fn drop(&mut self) {
        if std::thread::panicking() {
            self.abort(101);
        }
    }
}
