//! Matrix products of bf16 factors with sums in f32: both factors are rounded to nearest, each product is exact.
//!
//! | processor | how |
//! |---|---|
//! | AMX-BF16, on Linux | tiles: 16 x 32 numbers by 32 x 16 in one instruction ([`Way::Tiles`]) |
//! | AVX512-BF16 | pairs: a[i, 2p] b[2p, j] + a[i, 2p + 1] b[2p + 1, j] for sixteen j in one instruction, twice as many products as one on f32 ([`Way::Pairs`]) |
//! | any other | both factors rounded and multiplied in f32: the same products, added in another order, and no faster ([`Way::Rounded`]) |
//!
//! Where there are instructions, both factors are packed so that the two numbers of a pair lie in one word, one part of the sum at
//! a time, and b in panels of columns that stay in the cache while they meet all of a. Sums are those of one product to the next
//! in a fixed order that depends on the way and on k alone.

#[cfg(target_arch = "x86_64")]
mod blocked;
mod factor;
#[cfg(target_arch = "x86_64")]
pub(crate) mod pack;
#[cfg(target_arch = "x86_64")]
mod pairs;
#[cfg(target_arch = "x86_64")]
pub(crate) mod tiles;

pub(crate) use factor::Factor;

use super::{Mat, MatMut, gemm};
#[cfg(target_arch = "x86_64")]
use {pairs::Pairs, tiles::Tiles};

/// How a processor multiplies bf16.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Way {
    /// By tiles of AMX.
    #[cfg(target_arch = "x86_64")]
    Tiles,
    /// By pairs of AVX512-BF16.
    #[cfg(target_arch = "x86_64")]
    Pairs,
    /// In f32.
    Rounded,
}

impl Way {
    /// The fastest that this processor has.
    pub(crate) fn best() -> Self {
        Self::all().next().unwrap_or(Way::Rounded)
    }

    /// Those that this processor has, fastest first.
    fn all() -> impl Iterator<Item = Self> {
        #[cfg(target_arch = "x86_64")]
        let fast = {
            let pairs = is_x86_feature_detected!("avx512bf16")
                && is_x86_feature_detected!("avx512f")
                && is_x86_feature_detected!("avx512bw")
                && is_x86_feature_detected!("avx512dq")
                && is_x86_feature_detected!("avx512vl");
            [(pairs && tiles::allowed(), Way::Tiles), (pairs, Way::Pairs)]
        };
        #[cfg(not(target_arch = "x86_64"))]
        let fast: [(bool, Way); 0] = [];
        fast.into_iter().filter(|(has, _)| *has).map(|(_, way)| way).chain([Way::Rounded])
    }
}

/// A left factor (m, k), packed once for many products.
pub(crate) enum Packed {
    /// For [`Way::Tiles`].
    #[cfg(target_arch = "x86_64")]
    Tiles(Vec<u32>),
    /// For [`Way::Pairs`].
    #[cfg(target_arch = "x86_64")]
    Pairs(Vec<u32>),
    /// Rounded, row by row.
    Rounded(Vec<f32>),
}

impl Packed {
    /// Packs a (m, k).
    pub(crate) fn new<A: Factor>(a: Mat<A>, m: usize, k: usize) -> Self {
        Self::by(Way::best(), a, m, k)
    }

    fn by<A: Factor>(way: Way, a: Mat<A>, m: usize, k: usize) -> Self {
        assert!(a.covers(m, k), "a packed factor is longer than its numbers");
        match way {
            // SAFETY: a way is one that the processor has, and `a` covers m x k.
            #[cfg(target_arch = "x86_64")]
            Way::Tiles => Packed::Tiles(unsafe { blocked::pack::<Tiles, _>(a, m, k) }),
            // SAFETY: the same.
            #[cfg(target_arch = "x86_64")]
            Way::Pairs => Packed::Pairs(unsafe { blocked::pack::<Pairs, _>(a, m, k) }),
            Way::Rounded => Packed::Rounded(rounded(a, m, k)),
        }
    }
}

/// The numbers of a (m, k), rounded, row by row.
fn rounded<A: Factor>(a: Mat<A>, m: usize, k: usize) -> Vec<f32> {
    (0..m * k).map(|i| a.data[i / k * a.row + i % k * a.col].rounded()).collect()
}

/// dst = a b (+ dst if `add`) on the calling thread, with a of m x k packed, b of k x n.
pub(crate) fn product<B: Factor>(
    (m, n, k): (usize, usize, usize),
    a: &Packed,
    b: Mat<B>,
    dst: MatMut<f32>,
    add: bool,
) {
    check((m, n, k), b, &dst);
    match a {
        // SAFETY: only a processor that has the way packs for it; the checks above bound every access.
        #[cfg(target_arch = "x86_64")]
        Packed::Tiles(a) => unsafe { blocked::product::<Tiles, _>((m, n, k), a, b, dst, add) },
        // SAFETY: the same.
        #[cfg(target_arch = "x86_64")]
        Packed::Pairs(a) => unsafe { blocked::product::<Pairs, _>((m, n, k), a, b, dst, add) },
        Packed::Rounded(a) => in_f32((m, n, k), a, b, dst, add),
    }
}

/// As [`product`], with a factor that is used once.
pub(crate) fn product_once<A: Factor, B: Factor>(
    size: (usize, usize, usize),
    a: Mat<A>,
    b: Mat<B>,
    dst: MatMut<f32>,
    add: bool,
) {
    product_once_by(Way::best(), size, a, b, dst, add);
}

fn product_once_by<A: Factor, B: Factor>(
    way: Way,
    (m, n, k): (usize, usize, usize),
    a: Mat<A>,
    b: Mat<B>,
    dst: MatMut<f32>,
    add: bool,
) {
    check((m, n, k), b, &dst);
    assert!(a.covers(m, k), "a product reads past its factors");
    match way {
        // SAFETY: as in `product`.
        #[cfg(target_arch = "x86_64")]
        Way::Tiles => unsafe { blocked::product_once::<Tiles, _, _>((m, n, k), a, b, dst, add) },
        // SAFETY: the same.
        #[cfg(target_arch = "x86_64")]
        Way::Pairs => unsafe { blocked::product_once::<Pairs, _, _>((m, n, k), a, b, dst, add) },
        Way::Rounded => in_f32((m, n, k), &rounded(a, m, k), b, dst, add),
    }
}

fn check<B>((m, n, k): (usize, usize, usize), b: Mat<B>, dst: &MatMut<f32>) {
    assert!(b.covers(k, n), "a product reads past its factors");
    assert!(m == 0 || n == 0 || (m - 1) * dst.row + n <= dst.len, "a product writes past its result");
}

fn in_f32<B: Factor>((m, n, k): (usize, usize, usize), a: &[f32], b: Mat<B>, dst: MatMut<f32>, add: bool) {
    let b = rounded(b, k, n);
    gemm((m, n, k), Mat::rows(a, k), Mat::rows(&b, n), dst, 1., add, 1);
}

#[cfg(test)]
mod tests {
    use super::*;
    use half::bf16;

    fn numbers(n: usize, f: f64) -> Vec<f32> {
        (0..n).map(|i| (i as f64 * f).sin() as f32).collect()
    }

    /// The transpose of x (rows, cols).
    fn turned(x: &[f32], rows: usize, cols: usize) -> Vec<f32> {
        (0..rows * cols).map(|i| x[i % rows * cols + i / rows]).collect()
    }

    /// 0.5 + a b in both layouts of both factors, from f32 and from bf16, packed and once.
    fn products(way: Way, (m, n, k): (usize, usize, usize), a: &[f32], b: &[f32]) -> [Vec<f32>; 4] {
        let half = |x: &[f32]| x.iter().map(|&v| bf16::from_f32(v)).collect::<Vec<_>>();
        let (at, bt) = (turned(a, m, k), turned(b, k, n));
        let (ha, hbt) = (half(a), half(&bt));
        let mut c = std::array::from_fn(|_| vec![0.5; m * n]);
        let [c0, c1, c2, c3] = &mut c;
        let (dims, to) = ((m, n, k), |c| MatMut::rows(c, n));
        product(dims, &Packed::by(way, Mat::rows(a, k), m, k), Mat::rows(b, n), to(c0), true);
        let packed = Packed::by(way, Mat::transposed(&at, m), m, k);
        product(dims, &packed, Mat::transposed(&hbt, k), to(c1), true);
        product_once_by(way, dims, Mat::rows(&ha, k), Mat::transposed(&bt, k), to(c2), true);
        product_once_by(way, dims, Mat::transposed(&at, m), Mat::rows(b, n), to(c3), true);
        c
    }

    /// With ragged edges and several parts of the sum: the sum of products of rounded factors, to f32's own rounding; and that is
    /// off the sum of exact factors by what rounding both gives.
    #[test]
    fn products_are_those_of_rounded_factors() {
        let sizes = [
            (1, 1, 1),
            (7, 33, 19),
            (8, 48, 256),
            (20, 100, 1050),
            (54, 64, 300),
            (3, 17, 31),
            (32, 32, 64),
            (48, 96, 33),
            (4, 5, 0),
        ];
        for ((m, n, k), way) in sizes.into_iter().flat_map(|s| Way::all().map(move |way| (s, way))) {
            let (a, b) = (numbers(m * k, 0.7), numbers(k * n, 0.3));
            for (how, c) in products(way, (m, n, k), &a, &b).into_iter().enumerate() {
                for (e, c) in c.into_iter().enumerate() {
                    let pair = |p: usize| (a[e / n * k + p], b[p * n + e % n]);
                    let want: f64 =
                        (0..k).map(pair).map(|(x, y)| f64::from(x.rounded()) * f64::from(y.rounded())).sum();
                    let exact: f64 = (0..k).map(pair).map(|(x, y)| f64::from(x) * f64::from(y)).sum();
                    let size: f64 = (0..k).map(pair).map(|(x, y)| f64::from(x * y).abs()).sum::<f64>() + 0.5;
                    let (own, unit) = ((k + 3) as f64 * 0.5f64.powi(24) * size, 0.5f64.powi(9));
                    let at = format!("{way:?}, {m} {n} {k}, {how}: {c} and {want}, {exact}");
                    assert!((f64::from(c) - 0.5 - want).abs() <= own, "{at}");
                    assert!(
                        (f64::from(c) - 0.5 - exact).abs() <= (2. * unit + unit * unit) * size + own,
                        "{at}"
                    );
                }
            }
        }
    }

    /// Packed or once, with all columns or a thread's share of them, the sums have the same bits; what was in the result before
    /// does not matter. (Of products in f32 the `gemm` crate splits the sum as their size suggests.)
    #[test]
    fn bits_do_not_depend_on_the_split() {
        let ways = || Way::all().filter(|way| *way != Way::Rounded);
        for ((m, n, k), way) in
            [(12, 100, 1400), (70, 90, 40)].into_iter().flat_map(|s| ways().map(move |way| (s, way)))
        {
            let (a, b) = (numbers(m * k, 0.7), numbers(k * n, 0.3));
            let (a, first) = (Mat::rows(&a, k), n - 37);
            let [mut whole, mut packed, mut last] = [const { f32::NAN }; 3].map(|v| vec![v; m * n]);
            product_once_by(way, (m, n, k), a, Mat::rows(&b, n), MatMut::rows(&mut whole, n), false);
            let left = Packed::by(way, a, m, k);
            product((m, n, k), &left, Mat::rows(&b, n), MatMut::rows(&mut packed, n), false);
            assert_eq!(whole, packed, "{way:?}");
            let (right, to) = (Mat::rows(&b[first..], n), MatMut::rows(&mut last[first..], n));
            product_once_by(way, (m, 37, k), a, right, to, false);
            for row in 0..m {
                let columns = row * n + first..(row + 1) * n;
                assert_eq!(whole[columns.clone()], last[columns], "{way:?}");
            }
        }
    }
}
