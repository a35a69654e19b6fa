//! Decisions that all ranks must make alike: one that went another way would leave the others waiting.

use super::spec::Ranks;
use anyhow::{Result, bail};

/// The error of a rank that ends because another one has failed, which says why.
#[derive(Debug)]
pub struct Elsewhere(pub usize);

impl std::fmt::Display for Elsewhere {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "rank {} has failed", self.0)
    }
}

impl std::error::Error for Elsewhere {}

/// This rank's result if all ranks have one; else an error on each, which on the lowest rank that failed is its own and on the
/// others [`Elsewhere`]: what goes wrong on all of them is said once.
///
/// # Errors
/// See above.
pub fn agree<T>(ranks: &dyn Ranks, result: Result<T>) -> Result<T> {
    if ranks.size() == 1 {
        return result;
    }
    match first(ranks, result.is_err())? {
        Some(rank) if rank != ranks.rank() => Err(Elsewhere(rank).into()),
        _ => result,
    }
}

/// Which of these are true on any rank.
///
/// # Errors
/// Where the ranks cannot add numbers.
pub fn any<const N: usize>(ranks: &dyn Ranks, flags: [bool; N]) -> Result<[bool; N]> {
    let sums = ranks.sum(flags.map(f64::from).to_vec())?;
    Ok(std::array::from_fn(|i| sums[i] > 0.))
}

/// The lowest rank on which `flag` is true.
///
/// # Errors
/// Where the ranks cannot add numbers.
pub fn first(ranks: &dyn Ranks, flag: bool) -> Result<Option<usize>> {
    Ok(each(ranks, f64::from(flag))?.iter().position(|&flag| flag > 0.))
}

/// Checks that all ranks have the same number, a checksum of `what`.
///
/// # Errors
/// When they do not: it names the first rank that differs from rank 0.
pub fn same(ranks: &dyn Ranks, checksum: u32, what: &str) -> Result<()> {
    let all = each(ranks, f64::from(checksum))?;
    if let Some(rank) = all.iter().position(|c| *c != all[0]) {
        bail!(
            "{what} of rank {rank} differ from those of rank 0, although both have computed the same: start all ranks on machines \
             with the same processor, with the same number of threads"
        );
    }
    Ok(())
}

/// The number of each rank.
fn each(ranks: &dyn Ranks, number: f64) -> Result<Vec<f64>> {
    let mut all = vec![0.; ranks.size()];
    all[ranks.rank()] = number;
    Ok(ranks.sum(all)?)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ranks::threads;

    #[test]
    fn what_fails_anywhere_fails_everywhere_and_is_said_once() {
        let said = threads::run(4, |ranks| {
            let bad = ranks.rank() % 2 == 1;
            let result = agree(ranks, if bad { Err(anyhow::anyhow!("no folder")) } else { Ok(()) });
            let error = result.unwrap_err();
            (error.is::<Elsewhere>(), error.to_string())
        });
        assert_eq!(said[1], (false, "no folder".to_owned()));
        assert!([0, 2, 3].iter().all(|&i| said[i] == (true, "rank 1 has failed".to_owned())), "{said:?}");
        assert!(threads::run(3, |ranks| agree(ranks, Ok(())).is_ok()).iter().all(|ok| *ok));
    }

    #[test]
    fn flags_and_checksums_are_those_of_all() {
        let flags = threads::run(3, |ranks| any(ranks, [ranks.rank() == 2, false]).unwrap());
        assert_eq!(flags, [[true, false]; 3]);
        let told = threads::run(3, |ranks| {
            same(ranks, u32::from(ranks.rank() == 2), "weights").map_err(|e| e.to_string())
        });
        assert!(
            told.iter().all(|t| t.as_ref().is_err_and(|e| e.contains("weights of rank 2 differ"))),
            "{told:?}"
        );
        assert!(threads::run(3, |ranks| same(ranks, u32::MAX, "weights").is_ok()).iter().all(|ok| *ok));
    }
}
