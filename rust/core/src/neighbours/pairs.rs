//! All pairs above a cosine.

use rayon::prelude::*;

use super::{Plan, cosine};
use crate::linalg::{BLOCK_ROWS, Rows, Scratch};
use crate::{Error, Observer, Result};

/// Returns all pairs of rows with a cosine of at least `threshold`, as (lower row, higher row), ascending.
///
/// With `probes`, only rows of clusters near each other are compared, see [`Plan`]: pairs may be missed, but
/// none is made up.
pub fn near_duplicate_pairs(
    rows: &Rows,
    threshold: f64,
    probes: Option<usize>,
    observer: &Observer,
) -> Result<Vec<(usize, usize)>> {
    check_threshold(threshold)?;
    let plan = Plan::new(rows, probes, observer)?;
    observer.expect(observer.progress().0 + rows.len() as u64);
    let mut pairs = Vec::new();
    for task in plan.half_tasks() {
        for candidates in task.candidates {
            let centres = plan.pack(candidates.clone(), Some(threshold));
            let blocks = task.targets.len().div_ceil(BLOCK_ROWS);
            let found: Vec<Vec<(usize, usize)>> = (0..blocks)
                .into_par_iter()
                .map_init(Scratch::default, |scratch, block| {
                    observer.check()?;
                    let first = task.targets.start + block * BLOCK_ROWS;
                    let range = first..task.targets.end.min(first + BLOCK_ROWS);
                    let norms = plan.squared_norms(range.clone());
                    // Below this no rounding of the score can hide a pair.
                    let limit = |place: usize| (threshold * (1.0 - 1e-6)) as f32 * norms[place].sqrt();
                    let mut pairs = Vec::new();
                    centres.near(&plan.view, range, &norms, scratch, limit, |pair, _| {
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
        }
        observer.advance(task.targets.len() as u64);
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
