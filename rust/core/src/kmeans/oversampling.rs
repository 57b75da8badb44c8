//! k-means||: candidates for the first centroids, drawn in a few rounds of many each.
//!
//! Bahmani, Moseley, Vattani, Kumar and Vassilvitskii, Scalable k-means++ (PVLDB 5, 2012), algorithm 2: every round
//! draws each row by itself with a probability proportional to its distance to the nearest candidate so far. A
//! candidate's weight is the number of rows that it is nearest to, and k-means++ on the weighted candidates
//! chooses the centroids. A round compares all rows with its candidates at once.

use super::{KMeansOptions, compare_rows};
use crate::linalg::{Centres, Norms, Rows, ordered_sum};
use crate::rng::{Rng, Stream};
use crate::{Observer, Result};

/// Rounds, and candidates wanted for each centroid in all of them; the paper's section 5.3 finds five rounds of half
/// as many candidates as centroids to be enough.
const ROUNDS: usize = 5;
const CANDIDATES_PER_CENTROID: f64 = 2.5;

/// Rows that may become centroids.
pub(super) struct Candidates {
    pub(super) rows: Vec<usize>,
    /// How many rows each of them is nearest to.
    pub(super) weights: Vec<f64>,
}

/// Draws candidates among rows in random order.
pub(super) fn draw(
    rows: &Rows,
    options: &KMeansOptions,
    observer: &Observer,
) -> Result<Candidates> {
    let (n, metric) = (rows.len(), options.metric);
    let norms = Norms::new(rows, metric, observer)?;
    let rng = Rng::new(options.seed, Stream::Candidates);
    let wanted = options.k as f64 * CANDIDATES_PER_CENTROID / ROUNDS as f64;
    let mut drawn = Drawn {
        rows,
        norms: &norms,
        centres: Centres::new(rows.dim(), metric, rows.simd()),
        labels: vec![0; n],
        scores: vec![f32::NEG_INFINITY; n],
    };
    let mut candidates = vec![0];
    drawn.add(&candidates, observer)?;
    for round in 0..ROUNDS {
        let distance =
            |row: usize| f64::from(metric.reduced(drawn.scores[row], norms.squared[row]));
        let total = ordered_sum(n, distance);
        let first = candidates.len();
        let uniform = |row: usize| rng.uniform((round * n + row) as u64);
        candidates.extend((0..n).filter(|&row| uniform(row) * total < wanted * distance(row)));
        drawn.add(&candidates[first..], observer)?;
    }
    let mut weights = vec![0.0; candidates.len()];
    for &label in &drawn.labels {
        weights[label as usize] += 1.0;
    }
    Ok(Candidates {
        rows: candidates,
        weights,
    })
}

/// The candidates so far, and which of them every row is nearest to.
struct Drawn<'a> {
    rows: &'a Rows<'a>,
    norms: &'a Norms,
    centres: Centres,
    labels: Vec<u32>,
    scores: Vec<f32>,
}

impl Drawn<'_> {
    fn add(&mut self, candidates: &[usize], observer: &Observer) -> Result<()> {
        let (rows, squared) = (self.rows, &self.norms.squared);
        let from = self.centres.len();
        let mut vector = vec![0.0; rows.dim()];
        for &row in candidates {
            rows.copy_row(row, &mut vector);
            self.centres.push(&vector, squared[row]);
        }
        let centres = &self.centres;
        compare_rows(
            rows,
            squared,
            &mut self.labels,
            &mut self.scores,
            |block, scratch, labels, scores| {
                observer.check()?;
                centres.attract(block, scratch, from, labels, scores);
                Ok(())
            },
        )
    }
}
