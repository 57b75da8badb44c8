//! How much of the truth an approximate graph of neighbours holds.

use std::ops::Range;

use rayon::prelude::*;

use crate::linalg::{BLOCK_ROWS, Block, Centres, Metric, Norms, Rows, Scratch};
use crate::neighbours::{Neighbours, cosine};
use crate::rng::{Rng, Stream};
use crate::{Error, Observer, Result};

/// Rows whose neighbours are looked for again.
const SAMPLE: usize = 1000;

/// Rows that one task compares with the sample.
const CANDIDATES: usize = 4096;

/// Returns the share of the nearest neighbours that a graph of the rows holds.
///
/// It is measured on 1,000 rows, drawn uniformly and always the same, or on all if there are fewer: they are compared
/// with all rows. What is found counts if its cosine is at least that of the last true neighbour, so that of
/// equally near rows any will do.
///
/// # Panics
/// If the graph is not that of these rows.
pub fn recall(rows: &Rows, found: &Neighbours, observer: &Observer) -> Result<f64> {
    let k = found.k;
    let sample = draw(rows.len());
    let truth = Truth::new(rows, found, &sample, observer)?;
    let tasks = rows.len().div_ceil(CANDIDATES);
    observer.expect(observer.progress().0 + tasks as u64);
    let parts: Vec<Vec<(usize, f32)>> = (0..tasks)
        .into_par_iter()
        .map_init(Scratch::default, |scratch, task| {
            let first = task * CANDIDATES;
            let candidates = first..rows.len().min(first + CANDIDATES);
            let contenders = truth.contenders(candidates, scratch, observer)?;
            observer.advance(1);
            Ok::<_, Error>(contenders)
        })
        .collect::<Result<_>>()?;
    let mut nearest = vec![Vec::new(); sample.len()];
    for (place, cosine) in parts.into_iter().flatten() {
        nearest[place].push(cosine);
    }
    let hits: usize = sample
        .iter()
        .zip(&mut nearest)
        .map(|(&row, nearest)| {
            let (_, last, _) =
                nearest.select_nth_unstable_by(k - 1, |left, right| right.total_cmp(left));
            let found = &found.cosines[row * k..][..k];
            found.iter().filter(|cosine| *cosine >= last).count()
        })
        .sum();
    Ok(hits as f64 / (sample.len() * k) as f64)
}

/// The rows of the smallest random keys, ascending.
fn draw(n: usize) -> Vec<usize> {
    let rng = Rng::new(0, Stream::RecallRows);
    let mut order: Vec<usize> = (0..n).collect();
    order.sort_by_cached_key(|&row| rng.bits(row as u64));
    order.truncate(SAMPLE);
    order.sort_unstable();
    order
}

/// The search for the true neighbours of some rows.
struct Truth<'a> {
    rows: &'a Rows<'a>,
    norms: Norms,
    sample: &'a [usize],
    view: Rows<'a>,
    /// Squared norms of the sample.
    squared: Vec<f32>,
    /// Cosines from which a row may be among the nearest: those of the last ones found, and room for rounding.
    least: Vec<f32>,
}

impl<'a> Truth<'a> {
    fn new(
        rows: &'a Rows<'a>,
        found: &Neighbours,
        sample: &'a [usize],
        observer: &Observer,
    ) -> Result<Self> {
        let norms = Norms::new(rows, Metric::Cosine, observer)?;
        let last = |&row: &usize| found.cosines[(row + 1) * found.k - 1];
        Ok(Self {
            rows,
            sample,
            view: rows.subset(sample)?,
            squared: sample.iter().map(|&row| norms.squared[row]).collect(),
            least: sample.iter().map(|row| last(row) - 1e-6).collect(),
            norms,
        })
    }

    /// Returns place in the sample and cosine of each pair that may be one of neighbours.
    fn contenders(
        &self,
        candidates: Range<usize>,
        scratch: &mut Scratch,
        observer: &Observer,
    ) -> Result<Vec<(usize, f32)>> {
        let mut centres = Centres::new(self.rows.dim(), Metric::Cosine, self.rows.simd());
        let mut vector = vec![0.0; self.rows.dim()];
        for row in candidates.clone() {
            self.rows.copy_row(row, &mut vector);
            centres.push(&vector, self.norms.squared[row]);
        }
        let mut contenders = Vec::new();
        for first in (0..self.sample.len()).step_by(BLOCK_ROWS) {
            observer.check()?;
            let range = first..self.sample.len().min(first + BLOCK_ROWS);
            let squared_norms = &self.squared[range.clone()];
            let least = self.least[range.clone()].iter().zip(squared_norms);
            let mut limits: Vec<f32> = least.map(|(least, norm)| least * norm.sqrt()).collect();
            let block = Block {
                rows: &self.view,
                range,
                squared_norms,
            };
            centres.near(&block, scratch, &mut limits, |pair, _| {
                let (row, other) = (
                    self.sample[first + pair.row],
                    candidates.start + pair.centre,
                );
                if row != other {
                    let cosine = cosine(pair.dot, &self.norms, row, other) as f32;
                    contenders.push((first + pair.row, cosine));
                }
            });
        }
        Ok(contenders)
    }
}
