//! The kernel on Intel's AMX: one instruction adds the product of 16 x 32 and 32 x 16 numbers to a tile of 16 x 16 sums.
//!
//! The intrinsics are not stable in Rust 1.95 (`x86_amx_intrinsics`), inline assembly is. A block of 32 x 32 sums is four of the
//! eight tiles, the others hold two tiles of each factor, so that each that is loaded is used twice.
//!
//! The registers are 8 KiB a thread, which Linux saves only for processes that asked for them: [`allowed`] does.

use super::blocked::Kernel;
use super::factor::Factor;
use super::pack::{Panel, lanes};
use crate::gemm::{Mat, MatMut};
use std::arch::asm;
use std::arch::x86_64::*;
use std::ops::Range;
use std::sync::OnceLock;

/// Rows of a tile, of a or of sums.
pub(crate) const ROWS: usize = 16;
/// Rows and columns of a block of sums.
pub(crate) const BLOCK: usize = 32;
/// Numbers of the sum in a tile of a factor.
pub(crate) const STEP: usize = 32;
/// Words of a tile.
pub(crate) const TILE: usize = ROWS * STEP / 2;

/// Whether the processor has AMX for bf16 and the system lets this process use it.
pub(crate) fn allowed() -> bool {
    static ALLOWED: OnceLock<bool> = OnceLock::new();
    *ALLOWED.get_or_init(|| {
        // CPUID leaf 7: bit 22 AMX-BF16, bit 24 AMX-TILE.
        let has = __cpuid(0).eax >= 7 && (__cpuid_count(7, 0).edx >> 22 & 0b101) == 0b101;
        has && ask()
    })
}

/// Asks Linux for the tile registers (`arch_prctl(ARCH_REQ_XCOMP_PERM, XFEATURE_XTILEDATA)`), for all threads.
#[cfg(target_os = "linux")]
fn ask() -> bool {
    const ARCH_PRCTL: i64 = 158;
    const ARCH_REQ_XCOMP_PERM: i64 = 0x1023;
    const XFEATURE_XTILEDATA: i64 = 18;
    let answer: i64;
    // SAFETY: a system call that reads and writes no memory of ours; the kernel overwrites rcx and r11.
    unsafe {
        asm!(
            "syscall",
            inlateout("rax") ARCH_PRCTL => answer,
            in("rdi") ARCH_REQ_XCOMP_PERM,
            in("rsi") XFEATURE_XTILEDATA,
            lateout("rcx") _,
            lateout("r11") _,
            options(nostack),
        );
    }
    answer == 0
}

/// On other systems tiles are not used.
#[cfg(not(target_os = "linux"))]
fn ask() -> bool {
    false
}

/// a in panels of [`BLOCK`] rows, or fewer at the end, tile by tile along the sum; b in panels of [`BLOCK`] columns, which a
/// core's first-level cache holds.
pub(super) struct Tiles;

impl Kernel for Tiles {
    const DEPTH: usize = 512;
    const UNIT: usize = STEP;

    fn words(m: usize, k: usize) -> usize {
        m.div_ceil(ROWS) * k.div_ceil(STEP) * TILE
    }

    unsafe fn left<A: Factor>(a: Mat<A>, m: usize, part: Range<usize>, out: *mut u32) {
        let steps = part.len().div_ceil(STEP);
        for i in (0..m).step_by(ROWS) {
            let panel = Panel::rows(a, i, ROWS.min(m - i), &part);
            let block = i / BLOCK * BLOCK;
            let (tiles, tile) = ((m - block).min(BLOCK).div_ceil(ROWS), (i - block) / ROWS);
            // SAFETY: the caller's; blocks before this one have two tiles a step.
            unsafe { panel.pack_rows(tiles * TILE, out.add((block / ROWS * steps + tile) * TILE)) };
        }
    }

    unsafe fn sweep<B: Factor>(
        size: (usize, usize),
        part: Range<usize>,
        a: *const u32,
        b: Mat<B>,
        dst: &MatMut<f32>,
        add: bool,
    ) {
        // SAFETY: the caller's.
        unsafe {
            within(|| sweep(size, part, a, b, dst, add));
        }
    }
}

/// Runs `f` with eight tiles of 16 rows of 64 bytes on this thread.
///
/// # Safety
/// Tiles must be [`allowed`].
pub(crate) unsafe fn within<R>(f: impl FnOnce() -> R) -> R {
    #[repr(C, align(64))]
    struct Config {
        palette: u8,
        start_row: u8,
        reserved: [u8; 14],
        bytes: [u16; 16],
        rows: [u8; 16],
    }
    const TILES: Config = {
        let (mut bytes, mut rows, mut i) = ([0; 16], [0; 16], 0);
        while i < 8 {
            (bytes[i], rows[i]) = (64, 16);
            i += 1;
        }
        Config { palette: 1, start_row: 0, reserved: [0; 14], bytes, rows }
    };
    // SAFETY: reads the 64 bytes; the caller's.
    unsafe { asm!("ldtilecfg [{}]", in(reg) &TILES, options(nostack, readonly)) };
    let result = f();
    // SAFETY: the caller's.
    unsafe { asm!("tilerelease", options(nostack, nomem)) };
    result
}

/// Words or sums, at the start of a line of the cache.
#[repr(align(64))]
struct Aligned<T, const N: usize>([std::mem::MaybeUninit<T>; N]);

/// One part of the sums: each panel of b meets all of a while it is in the cache.
///
/// # Safety
/// As [`Kernel::sweep`], and the tiles are configured.
#[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512dq,avx512bf16")]
unsafe fn sweep<B: Factor>(
    (m, n): (usize, usize),
    part: Range<usize>,
    a: *const u32,
    b: Mat<B>,
    dst: &MatMut<f32>,
    add: bool,
) {
    let mut words = Aligned([std::mem::MaybeUninit::<u32>::uninit(); BLOCK * Tiles::DEPTH / 2]);
    let words = words.0.as_mut_ptr().cast::<u32>();
    let mut edge = Aligned([std::mem::MaybeUninit::<f32>::uninit(); BLOCK * BLOCK]);
    let edge = edge.0.as_mut_ptr().cast::<f32>();
    let (pairs, steps) = (part.len().div_ceil(2), part.len().div_ceil(STEP));
    let b_steps: [usize; Tiles::DEPTH / STEP] = std::array::from_fn(|i| i * BLOCK * STEP * 2);
    for j in (0..n).step_by(BLOCK) {
        let cols = BLOCK.min(n - j);
        let panel = Panel::columns(b, j, cols, &part);
        // SAFETY: b covers the part, and the words are as many as a panel has at most.
        unsafe {
            panel.pack(BLOCK, words);
            words.add(pairs * BLOCK).write_bytes(0, (steps * STEP / 2 - pairs) * BLOCK);
        }
        let next = Panel { x: panel.x.wrapping_add(BLOCK * b.col), n: BLOCK.min(n - j - cols), ..panel };
        for i in (0..m).step_by(BLOCK) {
            next.prefetch(i / BLOCK, m.div_ceil(BLOCK));
            let rows = BLOCK.min(m - i);
            // SAFETY: a block inside the result; the blocks of a before this one have BLOCK rows.
            unsafe {
                let (a, c) = (a.add(i / ROWS * steps * TILE), dst.data.add(i * dst.row + j));
                let whole = cols == BLOCK && rows.is_multiple_of(ROWS);
                let tiles = rows.div_ceil(ROWS);
                let walk = Walk {
                    a: a.cast(),
                    a_row: STEP * 2,
                    a_below: TILE * 4,
                    a_step: tiles * TILE * 4,
                    b: words.cast(),
                    b_row: BLOCK * 4,
                    b_steps: &b_steps[..steps],
                };
                let (to, stride) = if whole { (c, dst.row) } else { (edge, BLOCK) };
                // A large result is not in the caches: it is fetched while the sums are computed.
                for row in 0..rows {
                    for v in [0, 16] {
                        _mm_prefetch::<_MM_HINT_ET0>(c.wrapping_add(row * dst.row + v).cast());
                    }
                }
                if !whole && add {
                    copy((c, dst.row), (edge, BLOCK), (rows, cols));
                }
                block(walk, (to, stride), tiles == 2, add);
                if !whole {
                    copy((edge, BLOCK), (c, dst.row), (rows, cols));
                }
            }
        }
    }
}

/// Copies rows of at most [`BLOCK`] numbers.
///
/// # Safety
/// Both must have the numbers.
#[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512dq,avx512bf16")]
unsafe fn copy(from: (*const f32, usize), to: (*mut f32, usize), (rows, cols): (usize, usize)) {
    for i in 0..rows {
        for j in [0, 16] {
            let mask = lanes(cols.saturating_sub(j));
            // SAFETY: inside both by the mask.
            unsafe {
                let v = _mm512_maskz_loadu_ps(mask, from.0.wrapping_add(i * from.1 + j));
                _mm512_mask_storeu_ps(to.0.wrapping_add(i * to.1 + j), mask, v);
            }
        }
    }
}

/// Where the tiles of both factors of a block lie, in bytes.
#[derive(Clone, Copy)]
pub(crate) struct Walk<'a> {
    /// The first tile of a, from one row to the next, to the tile of the rows below, and to the tiles of the next step.
    pub(crate) a: *const u8,
    pub(crate) a_row: usize,
    pub(crate) a_below: usize,
    pub(crate) a_step: usize,
    /// What b's tiles are counted from, and from one row to the next; the tile of the columns beside it is 64 bytes away.
    pub(crate) b: *const u8,
    pub(crate) b_row: usize,
    /// Of each step, where b's first tile is from `b`.
    pub(crate) b_steps: &'a [usize],
}

/// c = a b (+ c if `add`) for a block of [`BLOCK`] columns, and as many rows or, unless `tall`, [`ROWS`]; `stride` numbers from row to
/// row of c.
///
/// # Safety
/// The tiles must be configured, and a, b and c must have the numbers.
#[inline]
pub(crate) unsafe fn block(walk: Walk, (c, stride): (*mut f32, usize), tall: bool, add: bool) {
    if walk.b_steps.is_empty() {
        return;
    }
    // SAFETY: the caller's.
    unsafe { if tall { two_by_two(walk, (c, stride), add) } else { one_by_two(walk, (c, stride), add) } }
}

/// # Safety
/// As [`block`].
unsafe fn two_by_two(walk: Walk, (c, stride): (*mut f32, usize), add: bool) {
    // SAFETY: the caller's.
    unsafe {
        asm!(
            "test {at}, {at}",
            "jz 3f",
            "tileloadd tmm0, [{c} + {stride}]",
            "tileloadd tmm1, [{c} + {stride} + 64]",
            "tileloadd tmm2, [{below} + {stride}]",
            "tileloadd tmm3, [{below} + {stride} + 64]",
            "jmp 2f",
            "3:",
            "tilezero tmm0",
            "tilezero tmm1",
            "tilezero tmm2",
            "tilezero tmm3",
            "2:",
            "mov {at}, [{steps}]",
            "add {at}, {b}",
            "tileloadd tmm4, [{at} + {b_row}]",
            "tileloadd tmm6, [{a} + {a_row}]",
            "tdpbf16ps tmm0, tmm6, tmm4",
            "tileloadd tmm5, [{at} + {b_row} + 64]",
            "tdpbf16ps tmm1, tmm6, tmm5",
            "tileloadd tmm7, [{a2} + {a_row}]",
            "tdpbf16ps tmm2, tmm7, tmm4",
            "tdpbf16ps tmm3, tmm7, tmm5",
            "add {a}, {a_step}",
            "add {a2}, {a_step}",
            "add {steps}, 8",
            "cmp {steps}, {end}",
            "jne 2b",
            "tilestored [{c} + {stride}], tmm0",
            "tilestored [{c} + {stride} + 64], tmm1",
            "tilestored [{below} + {stride}], tmm2",
            "tilestored [{below} + {stride} + 64], tmm3",
            at = inout(reg) usize::from(add) => _,
            steps = inout(reg) walk.b_steps.as_ptr() => _,
            end = in(reg) walk.b_steps.as_ptr_range().end,
            a = inout(reg) walk.a => _,
            a2 = inout(reg) walk.a.wrapping_add(walk.a_below) => _,
            a_row = in(reg) walk.a_row,
            a_step = in(reg) walk.a_step,
            b = in(reg) walk.b,
            b_row = in(reg) walk.b_row,
            c = in(reg) c,
            below = in(reg) c.wrapping_add(ROWS * stride),
            stride = in(reg) stride * 4,
            out("tmm0") _, out("tmm1") _, out("tmm2") _, out("tmm3") _,
            out("tmm4") _, out("tmm5") _, out("tmm6") _, out("tmm7") _,
            options(nostack),
        );
    }
}

/// # Safety
/// As [`block`].
unsafe fn one_by_two(walk: Walk, (c, stride): (*mut f32, usize), add: bool) {
    // SAFETY: the caller's.
    unsafe {
        asm!(
            "test {at}, {at}",
            "jz 3f",
            "tileloadd tmm0, [{c} + {stride}]",
            "tileloadd tmm1, [{c} + {stride} + 64]",
            "jmp 2f",
            "3:",
            "tilezero tmm0",
            "tilezero tmm1",
            "2:",
            "mov {at}, [{steps}]",
            "add {at}, {b}",
            "tileloadd tmm4, [{at} + {b_row}]",
            "tileloadd tmm5, [{at} + {b_row} + 64]",
            "tileloadd tmm6, [{a} + {a_row}]",
            "tdpbf16ps tmm0, tmm6, tmm4",
            "tdpbf16ps tmm1, tmm6, tmm5",
            "add {a}, {a_step}",
            "add {steps}, 8",
            "cmp {steps}, {end}",
            "jne 2b",
            "tilestored [{c} + {stride}], tmm0",
            "tilestored [{c} + {stride} + 64], tmm1",
            at = inout(reg) usize::from(add) => _,
            steps = inout(reg) walk.b_steps.as_ptr() => _,
            end = in(reg) walk.b_steps.as_ptr_range().end,
            a = inout(reg) walk.a => _,
            a_row = in(reg) walk.a_row,
            a_step = in(reg) walk.a_step,
            b = in(reg) walk.b,
            b_row = in(reg) walk.b_row,
            c = in(reg) c,
            stride = in(reg) stride * 4,
            out("tmm0") _, out("tmm1") _, out("tmm4") _, out("tmm5") _, out("tmm6") _,
            options(nostack),
        );
    }
}
