//! How near some rows are to what was chosen, and what else is near them: figures for a report on a selection.

use rayon::prelude::*;

use crate::linalg::{BLOCK_ROWS, Block, Centres, Metric, Norms, Rows, Scratch};
use crate::neighbours::{check_threshold, cosine};
use crate::{Error, Observer, Result};

/// Centres that are held in memory at a time.
const SLAB: usize = 4096;

/// Returns the cosine distance of reference rows to the nearest of the first centres, for several counts of centres.
///
/// `counts` ascends; the distances for `counts[i]` stand in `[i * reference.len()..][..reference.len()]`.
pub fn coverage(
    rows: &Rows,
    reference: &[usize],
    centres: &[usize],
    counts: &[usize],
    observer: &Observer,
) -> Result<Vec<f32>> {
    let ascending = counts.windows(2).all(|pair| pair[0] < pair[1]);
    let bounded = counts.first().is_none_or(|&first| first > 0)
        && counts.last().is_none_or(|&last| last <= centres.len());
    if !ascending || !bounded {
        return Err(Error::Argument(format!(
            "counts: {counts:?} do not ascend from at least 1 to at most the {} centres",
            centres.len()
        )));
    }
    observer.expect(counts.last().copied().unwrap_or(0) as u64);
    let view = rows.subset(reference)?;
    let centre_rows = rows.subset(centres)?;
    let norms = Norms::new(&view, Metric::Cosine, observer)?;
    let mut nearest = vec![f64::INFINITY; reference.len()];
    let mut distances = Vec::with_capacity(counts.len() * reference.len());
    let mut taken = 0;
    for &count in counts {
        while taken < count {
            let slab = taken..count.min(taken + SLAB);
            taken = slab.end;
            observer.advance(slab.len() as u64);
            let index: Vec<usize> = slab.collect();
            let centres = pack(&centre_rows.subset(&index)?, observer)?;
            centres.approach(&view, &norms.squared, |_| 0, &mut nearest, observer)?;
        }
        distances.extend(nearest.iter().map(|&distance| distance as f32));
    }
    Ok(distances)
}

/// What is near a row.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Near {
    /// Other rows whose cosine reaches the threshold.
    pub count: usize,
    /// The nearest of them with their cosines, nearest first, the lower row first of two equally near.
    pub nearest: Vec<(usize, f32)>,
}

impl Near {
    fn add(&mut self, row: usize, cosine: f32, keep: usize) {
        self.count += 1;
        self.keep(row, cosine, keep);
    }

    fn keep(&mut self, row: usize, cosine: f32, keep: usize) {
        let place = self
            .nearest
            .partition_point(|&(other, nearer)| nearer > cosine || nearer == cosine && other < row);
        if place < keep {
            self.nearest.insert(place, (row, cosine));
            self.nearest.truncate(keep);
        }
    }

    fn merge(mut self, other: Self, keep: usize) -> Self {
        self.count += other.count;
        for (row, cosine) in other.nearest {
            self.keep(row, cosine, keep);
        }
        self
    }
}

/// Finds, for each of some rows, how many other rows have a cosine of at least `threshold` with it, and the `keep`
/// nearest of these.
pub fn near_rows(
    rows: &Rows,
    queries: &[usize],
    threshold: f64,
    keep: usize,
    observer: &Observer,
) -> Result<Vec<Near>> {
    check_threshold(threshold)?;
    rows.subset(queries)?; // which checks them
    let norms = Norms::new(rows, Metric::Cosine, observer)?;
    let mut centres = Centres::for_cosine(threshold, rows.dim(), rows.simd());
    let mut vector = vec![0.0; rows.dim()];
    for &query in queries {
        rows.copy_row(query, &mut vector);
        centres.push(&vector, norms.squared[query]);
    }
    observer.expect(rows.len() as u64);
    let none = || vec![Near::default(); queries.len()];
    (0..rows.len().div_ceil(BLOCK_ROWS))
        .into_par_iter()
        .try_fold(
            || (none(), Scratch::default()),
            |(mut found, mut scratch), number| {
                observer.check()?;
                let first = number * BLOCK_ROWS;
                let range = first..rows.len().min(first + BLOCK_ROWS);
                let squared_norms = &norms.squared[range.clone()];
                // Below this no rounding of the score can hide a pair.
                let limit = |norm: &f32| (threshold * (1.0 - 1e-6)) as f32 * norm.sqrt();
                let mut limits: Vec<f32> = squared_norms.iter().map(limit).collect();
                observer.advance(range.len() as u64);
                let block = Block {
                    rows,
                    range,
                    squared_norms,
                };
                centres.near(&block, &mut scratch, &mut limits, |pair, _| {
                    let (row, query) = (first + pair.row, queries[pair.centre]);
                    let cosine = cosine(pair.dot, &norms, row, query);
                    if row != query && cosine >= threshold {
                        found[pair.centre].add(row, cosine as f32, keep);
                    }
                });
                Ok::<_, Error>((found, scratch))
            },
        )
        .map(|part| part.map(|(found, _)| found))
        .try_reduce(none, |left, right| {
            let merged = left.into_iter().zip(right);
            Ok(merged
                .map(|(left, right)| left.merge(right, keep))
                .collect())
        })
}

fn pack(rows: &Rows, observer: &Observer) -> Result<Centres> {
    let norms = Norms::new(rows, Metric::Cosine, observer)?;
    let mut centres = Centres::new(rows.dim(), Metric::Cosine, rows.simd());
    let mut vector = vec![0.0; rows.dim()];
    for (row, &norm) in norms.squared.iter().enumerate() {
        rows.copy_row(row, &mut vector);
        centres.push(&vector, norm);
    }
    Ok(centres)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::linalg::Chunk;

    fn on_threads<T: Send>(threads: usize, work: impl FnOnce() -> T + Send) -> T {
        let pool = rayon::ThreadPoolBuilder::new().num_threads(threads);
        pool.build().unwrap().install(work)
    }

    proptest! {
        #[test]
        fn threads_do_not_matter(
            values in prop::collection::vec(0.1f32..2.0, 300 * 5),
            n in 2usize..300,
            threshold in 0.5..1.0,
        ) {
            let rows = Rows::new([Chunk::F32(&values[..n * 5])], 5).unwrap();
            let reference: Vec<usize> = (0..n).step_by(2).collect();
            let centres: Vec<usize> = (0..n).rev().collect();
            let observer = Observer::default();
            let distances = |threads| on_threads(threads, || coverage(&rows, &reference, &centres, &[1, n], &observer).unwrap());
            prop_assert_eq!(distances(1), distances(3));
            // Every row is a centre in the end.
            prop_assert!(distances(1)[reference.len()..].iter().all(|&distance| distance < 1e-5));
            let near = |threads| on_threads(threads, || near_rows(&rows, &reference, threshold, 2, &observer).unwrap());
            prop_assert_eq!(near(1), near(3));
        }
    }
}
