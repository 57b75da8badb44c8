//! All pairs above a cosine.

use rayon::prelude::*;

use super::{Plan, cosine};
use crate::linalg::{BLOCK_ROWS, Block, Rows, Scratch};
use crate::{Error, Observer, Result};

/// Returns all pairs of rows with a cosine of at least `threshold`, as (lower row, higher row), ascending.
///
/// With `probes`, only rows of similar blocks are compared, see [`Plan`]: pairs may be missed, but none is made up.
pub fn near_duplicate_pairs(
    rows: &Rows,
    threshold: f64,
    probes: Option<usize>,
    observer: &Observer,
) -> Result<Vec<(usize, usize)>> {
    check_threshold(threshold)?;
    let plan = Plan::new(rows, probes, observer)?;
    let blocks = plan.pairs();
    observer.expect(observer.progress().0 + blocks.len() as u64);
    let mut pairs = Vec::new();
    for (block, other) in blocks {
        let (targets, candidates) = (plan.block(block), plan.block(other));
        let centres = plan.pack(candidates.clone(), Some(threshold));
        let found: Vec<Vec<(usize, usize)>> = (0..targets.len().div_ceil(BLOCK_ROWS))
            .into_par_iter()
            .map_init(Scratch::default, |scratch, part| {
                observer.check()?;
                let first = targets.start + part * BLOCK_ROWS;
                let range = first..targets.end.min(first + BLOCK_ROWS);
                let norms = plan.squared_norms(range.clone());
                // Below this no rounding of the score can hide a pair.
                let limit = |norm: &f32| (threshold * (1.0 - 1e-6)) as f32 * norm.sqrt();
                let mut limits: Vec<f32> = norms.iter().map(limit).collect();
                let block = Block {
                    rows: &plan.view,
                    range,
                    squared_norms: &norms,
                };
                let mut pairs = Vec::new();
                centres.near(&block, scratch, &mut limits, |pair, _| {
                    let (place, other) = (first + pair.row, candidates.start + pair.centre);
                    let (row, other_row) = (plan.names[place], plan.names[other]);
                    if other < place && cosine(pair.dot, &plan.norms, row, other_row) >= threshold {
                        pairs.push((row.min(other_row), row.max(other_row)));
                    }
                });
                Ok::<_, Error>(pairs)
            })
            .collect::<Result<_>>()?;
        pairs.extend(found.into_iter().flatten());
        observer.advance(1);
    }
    pairs.par_sort_unstable();
    Ok(pairs)
}

pub(crate) fn check_threshold(threshold: f64) -> Result<()> {
    if threshold > 0.0 && threshold <= 1.0 {
        return Ok(());
    }
    Err(Error::Argument(format!(
        "threshold: {threshold} is not a cosine above 0 and up to 1"
    )))
}
