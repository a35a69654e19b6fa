//! Which rank this process is, by what its launcher says in the environment.

use super::spec::{Ranks, Single};
use anyhow::Result;
use std::env;

/// A number that a launcher has set.
fn number(get: &dyn Fn(&str) -> Option<String>, name: &str) -> Option<usize> {
    get(name)?.trim().parse().ok()
}

/// How many processes a launcher has started: OpenMPI's mpirun, one with PMI (MPICH, Intel MPI), or srun with PMIx. In a job of Slurm
/// without srun `SLURM_NTASKS` is set, too, and the process is alone.
fn launched(get: &dyn Fn(&str) -> Option<String>) -> usize {
    let slurm = || get("PMIX_RANK").and_then(|_| number(get, "SLURM_NTASKS"));
    let size = number(get, "OMPI_COMM_WORLD_SIZE").or_else(|| number(get, "PMI_SIZE"));
    size.or_else(slurm).unwrap_or(1)
}

/// The rank that the launcher has given this process, 0 without one: known before anything is initialised.
#[must_use]
pub fn launched_rank() -> usize {
    let get = |name: &str| env::var(name).ok();
    let names = ["OMPI_COMM_WORLD_RANK", "PMI_RANK", "PMIX_RANK"];
    if launched(&get) == 1 { 0 } else { names.iter().find_map(|name| number(&get, name)).unwrap_or(0) }
}

/// The ranks that this process belongs to: one alone, unless a launcher has started more.
///
/// # Errors
/// When it has, and this build or its MPI library cannot work with them: as many runs would write to one folder.
pub fn start() -> Result<Box<dyn Ranks>> {
    let size = launched(&|name| env::var(name).ok());
    if size == 1 { Ok(Box::new(Single)) } else { join(size) }
}

#[cfg(not(feature = "mpi"))]
fn join(size: usize) -> Result<Box<dyn Ranks>> {
    anyhow::bail!(
        "{size} processes of this `flow` were started together, and it was built without MPI: build it with `cargo build \
         --release --features experiments/mpi`, or start it once, without mpirun or srun"
    )
}

#[cfg(feature = "mpi")]
fn join(size: usize) -> Result<Box<dyn Ranks>> {
    let ranks = super::mpi::Mpi::start()?;
    anyhow::ensure!(
        ranks.size() == size,
        "{size} processes of this `flow` were started together, and its MPI library finds {} of them: start it with the mpirun of the \
         library that it was built with, or with `srun --mpi=pmix`",
        ranks.size()
    );
    Ok(Box::new(ranks))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn launchers_are_known_by_their_variables() {
        for (set, size) in [
            (vec![], 1),
            (vec![("OMPI_COMM_WORLD_SIZE", "4")], 4),
            (vec![("PMI_SIZE", "3")], 3),
            // A batch job of eight tasks, in which one process was started without srun.
            (vec![("SLURM_NTASKS", "8")], 1),
            (vec![("SLURM_NTASKS", "8"), ("PMIX_RANK", "2")], 8),
            (vec![("SLURM_NTASKS", "many"), ("PMIX_RANK", "2")], 1),
        ] {
            let get = |name: &str| set.iter().find(|(n, _)| *n == name).map(|(_, value)| (*value).to_owned());
            assert_eq!(launched(&get), size, "{set:?}");
        }
    }
}
