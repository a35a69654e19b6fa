//! For tests of readers: an allocator that counts the bytes of each thread, and damaged copies of a file.

use std::alloc::{GlobalAlloc, Layout, System};
use std::cell::Cell;

/// The system's allocator, counted.
pub struct Counting;

thread_local! {
    static LIVE: Cell<isize> = const { Cell::new(0) };
    static PEAK: Cell<isize> = const { Cell::new(0) };
}

fn add(bytes: isize) {
    // A thread may free memory after its thread-local counters have been destroyed.
    let _ = LIVE.try_with(|live| {
        live.set(live.get() + bytes);
        let _ = PEAK.try_with(|peak| peak.set(peak.get().max(live.get())));
    });
}

// SAFETY: both methods forward to the system's allocator; the other methods call these two.
unsafe impl GlobalAlloc for Counting {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        add(layout.size() as isize);
        // SAFETY: the caller upholds the contract of `alloc`.
        unsafe { System.alloc(layout) }
    }

    unsafe fn dealloc(&self, ptr: *mut u8, layout: Layout) {
        add(-(layout.size() as isize));
        // SAFETY: the caller upholds the contract of `dealloc`.
        unsafe { System.dealloc(ptr, layout) }
    }
}

/// The bytes that `f` has at most on this thread beyond what was there before.
pub fn peak(f: impl FnOnce()) -> usize {
    let before = LIVE.get();
    PEAK.set(before);
    f();
    usize::try_from(PEAK.get() - before).unwrap_or(0)
}

#[global_allocator]
static ALLOCATOR: Counting = Counting;

/// Damaged copies of a file, the same ones in every run.
pub mod mutate {
    use rand::{Rng, SeedableRng};
    use rand_chacha::ChaCha8Rng;

    /// Calls `reader` with `count` damaged copies of `bytes`: flipped, cut, lengthened, and with extreme
    /// integers. It must not panic, and whatever a copy claims, it must not take more than 16 times its length and
    /// half a megabyte, which is what the state of an unpacker takes.
    pub fn each(bytes: &[u8], count: usize, reader: impl FnMut(&[u8])) {
        within(bytes, count, 16, reader);
    }

    /// As [`each`], with another multiple of the length: images are unpacked.
    pub fn within(bytes: &[u8], count: usize, multiple: usize, mut reader: impl FnMut(&[u8])) {
        let mut rng = ChaCha8Rng::seed_from_u64(0x0bad);
        for round in 0..count {
            let mut copy = bytes.to_vec();
            // Headers are where the damage matters, so half of the hits go to the first bytes.
            for _ in 0..rng.random_range(1..4) {
                let end = if rng.random() { copy.len().min(160) } else { copy.len() };
                if end == 0 {
                    break;
                }
                let at = rng.random_range(0..end);
                match (round + usize::from(rng.random::<bool>())) % 6 {
                    0 => copy[at] ^= 1 << rng.random_range(0..8),
                    1 => copy[at] = rng.random(),
                    2 => copy.truncate(at),
                    3 => copy.extend(std::iter::repeat_n(rng.random::<u8>(), at % 40 + 1)),
                    4 => {
                        let extreme = [0, 0xff, 0x7f, 0x80][rng.random_range(0..4)];
                        copy[at..(at + 4).min(end)].fill(extreme);
                    }
                    _ => {
                        let piece = copy[at..(at + 7).min(end)].to_vec();
                        copy.splice(at..at, piece);
                    }
                }
            }
            let took = super::peak(|| reader(&copy));
            let may = (1 << 19) + multiple * copy.len();
            assert!(took <= may, "{took} bytes for a file of {}, copy {round}", copy.len());
        }
    }
}
