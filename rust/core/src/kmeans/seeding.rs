//! k-means++ with few passes over the data.
//!
//! The next centre is a row drawn with probability proportional to its distance to the nearest centre so far
//! (squared Euclidean, or cosine). Distances only shrink as centres come in, so the distances of the last pass
//! are upper bounds: drawing by them and accepting with probability (distance now / distance then) draws from
//! exactly the wanted distribution. Hence the distances of all rows are brought up to date only once for
//! [`PENDING`] centres, by one matrix product, and seeding costs about as much as one of Lloyd's iterations.

use rayon::prelude::*;

use super::KMeansOptions;
use crate::linalg::{BLOCK_ROWS, Centres, Metric, Norms, Rows, Scratch};
use crate::rng::{Rng, Stream};
use crate::{Error, Observer, Result};

/// Centres that wait for one pass over the rows.
const PENDING: usize = 256;

/// Rejected draws after which a pass pays even for fewer centres.
const REJECTIONS: usize = 4 * PENDING;

/// Rows whose distances are summed together.
const SUM_ROWS: usize = 64 * BLOCK_ROWS;

/// Returns the rows that become the first centroids: `k` of them, or as many as there are distinct rows.
pub(super) fn plus_plus(
    rows: &Rows,
    norms: &Norms,
    options: &KMeansOptions,
    observer: &Observer,
) -> Result<Vec<usize>> {
    let mut draws = Draws {
        rng: Rng::new(options.seed, Stream::Seeding),
        count: 0,
    };
    let mut distances = Distances::new(rows, norms, options.metric);
    let mut vector = vec![0.0; rows.dim()];
    let mut chosen = Vec::with_capacity(options.k);
    let mut rejected = 0;
    let first = ((draws.next() * rows.len() as f64) as usize).min(rows.len() - 1);
    chosen.push(first);
    distances.add(first);
    distances.update(observer)?;
    while chosen.len() < options.k {
        if distances.pending() == PENDING || rejected == REJECTIONS {
            distances.update(observer)?;
            rejected = 0;
        }
        let Some(row) = distances.draw(draws.next()) else {
            break;
        };
        rows.copy_row(row, &mut vector);
        if draws.next() * f64::from(distances.then[row]) < f64::from(distances.now(row, &vector)) {
            chosen.push(row);
            distances.add(row);
        } else {
            rejected += 1;
        }
    }
    observer.advance(rows.len() as u64);
    Ok(chosen)
}

struct Draws {
    rng: Rng,
    count: u64,
}

impl Draws {
    fn next(&mut self) -> f64 {
        self.count += 1;
        self.rng.uniform(self.count)
    }
}

/// Distance of every row to its nearest centre, as of the last pass.
struct Distances<'a> {
    rows: &'a Rows<'a>,
    norms: &'a Norms,
    metric: Metric,
    scores: Vec<f32>,
    then: Vec<f32>,
    /// Sums of `then` over the rows up to and with each block of [`SUM_ROWS`].
    cumulative: Vec<f64>,
    centres: Centres,
}

impl<'a> Distances<'a> {
    fn new(rows: &'a Rows<'a>, norms: &'a Norms, metric: Metric) -> Self {
        Self {
            rows,
            norms,
            metric,
            scores: vec![f32::NEG_INFINITY; rows.len()],
            then: vec![0.0; rows.len()],
            cumulative: Vec::new(),
            centres: Centres::new(rows.dim(), metric),
        }
    }

    fn pending(&self) -> usize {
        self.centres.len()
    }

    fn add(&mut self, row: usize) {
        let mut vector = vec![0.0; self.rows.dim()];
        self.rows.copy_row(row, &mut vector);
        self.centres.push(&vector, self.norms.squared[row]);
    }

    /// Brings all rows up to date with the pending centres.
    fn update(&mut self, observer: &Observer) -> Result<()> {
        let Self {
            rows,
            norms,
            metric,
            scores,
            then,
            cumulative,
            centres,
        } = self;
        let blocks = scores
            .par_chunks_mut(BLOCK_ROWS)
            .zip(then.par_chunks_mut(BLOCK_ROWS));
        blocks.enumerate().try_for_each_init(
            Scratch::default,
            |scratch, (block, (scores, then))| {
                observer.check()?;
                let first = block * BLOCK_ROWS;
                let range = first..first + scores.len();
                centres.raise(rows, range.clone(), scratch, scores);
                for ((then, &score), &norm) in
                    then.iter_mut().zip(&*scores).zip(&norms.squared[range])
                {
                    *then = metric.reduced(score, norm);
                }
                Ok::<_, Error>(())
            },
        )?;
        let sums: Vec<f64> = then
            .par_chunks(SUM_ROWS)
            .map(|part| part.iter().map(|&value| f64::from(value)).sum())
            .collect();
        let running = sums.into_iter().scan(0.0, |total, sum| {
            *total += sum;
            Some(*total)
        });
        *cumulative = running.collect();
        centres.clear();
        Ok(())
    }

    /// Draws a row by the distances of the last pass; none if all of them are zero.
    fn draw(&self, uniform: f64) -> Option<usize> {
        let total = *self.cumulative.last()?;
        if total <= 0.0 {
            return None;
        }
        let target = uniform * total;
        let block = self
            .cumulative
            .partition_point(|&sum| sum <= target)
            .min(self.cumulative.len() - 1);
        let mut sum = if block == 0 {
            0.0
        } else {
            self.cumulative[block - 1]
        };
        let mut drawn = None;
        let first = block * SUM_ROWS;
        let last = self.then.len().min(first + SUM_ROWS);
        for row in (first..last).filter(|&row| self.then[row] > 0.0) {
            drawn = Some(row);
            sum += f64::from(self.then[row]);
            if sum > target {
                break;
            }
        }
        drawn
    }

    /// Distance of a row to its nearest centre, pending ones included.
    fn now(&self, row: usize, vector: &[f32]) -> f32 {
        let score = self
            .centres
            .highest_of_one(self.rows, vector)
            .max(self.scores[row]);
        self.metric.reduced(score, self.norms.squared[row])
    }
}
