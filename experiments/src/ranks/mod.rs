//! The processes that train, evaluate or sample together, each called a rank: how they are numbered, and how they add and share
//! numbers.
//!
//! | file | what it has |
//! |---|---|
//! | `spec` | the trait [`Ranks`], one process alone ([`Single`]), a rank's share of a batch |
//! | `agree` | decisions that all ranks must make alike: whether one has failed, whether to stop |
//! | `tensors` | the parameters of a model, given to all |
//! | `threads` | ranks that are threads of one process, for tests |
//! | `mpi` | ranks that are processes, by MPI (feature `mpi`), with sums on GPUs by NCCL (feature `nccl`) |
//! | `launch` | which of them this process is |
//!
//! Training, evaluation and sampling ask the trait and know nothing of MPI. With one rank each of them does what it would do
//! without: no sum is made, and no bit changes.

mod agree;
mod launch;
#[cfg(feature = "mpi")]
mod mpi;
mod spec;
mod tensors;
pub mod threads;

pub use agree::{Elsewhere, agree, any, first, same};
pub use launch::{launched_rank, start};
pub use spec::{Ranks, Share, Single};
pub use tensors::share_params;
