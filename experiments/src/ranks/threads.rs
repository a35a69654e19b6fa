//! Ranks that are threads of one process: all that is shared out can be tested without MPI.

use super::spec::Ranks;
use candle_core::{Device, Result, Tensor};
use std::sync::{Arc, Barrier, Mutex};

/// One of several threads.
pub struct Threads {
    rank: usize,
    size: usize,
    barrier: Arc<Barrier>,
    /// What each has put here in the present call.
    slots: Arc<Mutex<Vec<Vec<u8>>>>,
    sums: Arc<Mutex<Vec<Option<Tensor>>>>,
}

impl Ranks for Threads {
    fn rank(&self) -> usize {
        self.rank
    }

    fn size(&self) -> usize {
        self.size
    }

    fn local(&self) -> (usize, usize) {
        (self.rank, self.size)
    }

    fn open(&self, _: &Device) -> Result<()> {
        Ok(())
    }

    fn all_reduce(&self, values: &Tensor) -> Result<Tensor> {
        self.sums.lock().unwrap()[self.rank] = Some(values.clone());
        self.barrier.wait();
        let all: Vec<Tensor> = self.sums.lock().unwrap().iter().flatten().cloned().collect();
        let sum = all[1..].iter().try_fold(all[0].clone(), |sum, t| sum + t);
        self.barrier.wait();
        sum
    }

    fn broadcast(&self, from: usize, bytes: &mut Vec<u8>) {
        if self.rank == from {
            self.slots.lock().unwrap()[from].clone_from(bytes);
        }
        self.barrier.wait();
        bytes.clone_from(&self.slots.lock().unwrap()[from]);
        self.barrier.wait();
    }

    fn barrier(&self) {
        self.barrier.wait();
    }

    fn abort(&self, code: i32) -> ! {
        panic!("rank {} ends all with {code}", self.rank)
    }
}

/// Runs `f` on `size` ranks and returns what each gives, in their order. Where one panics, the others may wait for ever.
///
/// # Panics
/// When `f` does.
pub fn run<R: Send>(size: usize, f: impl Fn(&dyn Ranks) -> R + Sync) -> Vec<R> {
    let barrier = Arc::new(Barrier::new(size));
    let slots = Arc::new(Mutex::new(vec![Vec::new(); size]));
    let sums = Arc::new(Mutex::new(vec![None; size]));
    std::thread::scope(|scope| {
        let start = |rank| {
            let (barrier, slots, sums) = (barrier.clone(), slots.clone(), sums.clone());
            let f = &f;
            scope.spawn(move || f(&Threads { rank, size, barrier, slots, sums }))
        };
        let threads: Vec<_> = (0..size).map(start).collect();
        threads.into_iter().map(|thread| thread.join().expect("a rank panicked")).collect()
    })
}
