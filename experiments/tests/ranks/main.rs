//! Processes that train together: their gradients and updates in f64 are those of one process, by threads of this process and by MPI,
//! and the binary under mpirun.
//!
//! The tests by MPI need a build with the feature `mpi` and OpenMPI's mpirun; without the feature they are listed as ignored.

mod checks;
mod mpirun;

use experiments::ranks::{self, Ranks, threads};

fn all(ranks: &dyn Ranks) {
    checks::gradients_and_updates(ranks);
    checks::batch_norm(ranks);
    checks::sums(ranks);
}

#[test]
fn threads_update_as_one_process_does() {
    for size in [1, 2, 3] {
        threads::run(size, all);
    }
}

/// What the next test starts as several processes.
#[test]
#[ignore = "a part of the test by MPI, which starts it"]
fn under_mpirun() {
    let ranks = ranks::start().expect("started by mpirun");
    all(&*ranks);
}

/// Prints the numbers of the cost model in docs/cluster.md: `mpirun -n N RANKS-TEST time_of_sums --exact --ignored --nocapture`.
#[test]
#[ignore = "a measurement, started by mpirun"]
fn time_of_sums() {
    let ranks = ranks::start().expect("started by mpirun");
    for n in [1, 1 << 10, 1 << 14, 1 << 17, 1 << 20, 1 << 23, 44_000_000] {
        checks::time_of_sum(&*ranks, n);
    }
}

#[test]
#[cfg_attr(not(feature = "mpi"), ignore = "needs --features experiments/mpi and OpenMPI's mpirun")]
fn processes_update_as_one_does() {
    for size in [2, 3] {
        let own = std::env::current_exe().expect("this test has a file");
        let mut command = mpirun::mpirun(size, &own);
        command.args(["under_mpirun", "--exact", "--ignored", "--nocapture", "--test-threads=1"]);
        let output = command.output().expect("mpirun is installed");
        let said = String::from_utf8_lossy(&output.stdout);
        assert!(output.status.success(), "{said}{}", String::from_utf8_lossy(&output.stderr));
        println!("{said}");
    }
}
