//! k-means by Lloyd's algorithm with exact assignments.

mod lloyd;
mod oversampling;
mod seeding;

use std::iter;

use lloyd::Lloyd;
use rayon::prelude::*;

use crate::linalg::{BLOCK_ROWS, Block, Metric, Norms, Rows, Scratch};
use crate::rng::{Rng, Stream};
use crate::{Error, Observer, Result};

/// Rows for each centroid in the first sample that the centroids are trained on, and the fewest of them.
const ROWS_PER_CENTROID: usize = 32;
const FEWEST_ROWS: usize = 8192;

/// How much larger each sample is than the one before.
const GROWTH: usize = 4;

/// A sample is left for the next once an update lowers the inertia by at most this share.
const WARM_UP_TOLERANCE: f64 = 3e-3;

/// How to cluster.
#[derive(Clone, Debug)]
pub struct KMeansOptions {
    /// Number of clusters.
    pub k: usize,
    /// Euclidean, or cosine for spherical k-means.
    pub metric: Metric,
    /// Random seed of the training sample and the first centroids.
    pub seed: u64,
    /// Most updates of the centroids on a sample, and on the training rows.
    pub max_iterations: usize,
    /// Stop once an update lowers the inertia by at most this share.
    pub tolerance: f64,
    /// Rows that the centroids are trained on, drawn uniformly; all rows are assigned in the end.
    pub train_rows: Option<usize>,
}

/// Clusters of the rows. Every cluster holds at least one row.
#[derive(Clone, Debug)]
pub struct KMeans {
    /// Row-major, one row a cluster; of length 1 under the cosine metric.
    pub centroids: Vec<f32>,
    /// Cluster of each row.
    pub labels: Vec<u32>,
    /// Sum over the rows of the squared Euclidean, or the cosine, distance to their centroid.
    pub inertia: f64,
    /// Updates of the centroids that were made on the training rows.
    pub iterations: usize,
}

/// Clusters rows: greedy k-means++ seeding, then Lloyd's iterations, on growing samples first and on all training
/// rows in the end.
///
/// Most of the way is made on samples, where an update costs less; what a sample cannot tell, the few updates on
/// all rows mend (Newling and Fleuret, Nested mini-batch k-means, NIPS 2016, grow one batch for that reason).
///
/// There are fewer than `k` clusters only if there are fewer than `k` distinct rows, or if no row is nearest to
/// one of the last centroids.
pub fn kmeans(rows: &Rows, options: &KMeansOptions, observer: &Observer) -> Result<KMeans> {
    check(rows, options)?;
    let train_rows = options.train_rows.unwrap_or(rows.len()).min(rows.len());
    let passes = options.max_iterations * train_rows + 3 * rows.len();
    observer.expect(passes as u64);
    let norms = Norms::new(rows, options.metric, observer)?;
    let samples: Vec<usize> = warm_up(options.k, train_rows).collect();
    let seeding_rows = seeding::sample_size(options.k).min(train_rows);
    let drawn = match train_rows < rows.len() {
        true => train_rows,
        false => samples.iter().copied().fold(seeding_rows, usize::max),
    };
    let order = draw(
        rows.len(),
        drawn,
        Rng::new(options.seed, Stream::TrainingRows),
    );
    let first = seeding::first_centroids(rows, &order[..seeding_rows], options, observer)?;
    let mut lloyd = Lloyd::new(rows, &norms, options, &first);
    for count in samples {
        lloyd.choose(&order[..count])?;
        lloyd.warm_up(options.max_iterations, WARM_UP_TOLERANCE, observer)?;
    }
    if train_rows < rows.len() {
        lloyd.choose(&order)?;
    } else {
        lloyd.choose_all();
    }
    let iterations = lloyd.train(options.max_iterations, options.tolerance, observer)?;
    if train_rows < rows.len() {
        lloyd.choose_all();
        lloyd.assign_all(observer)?;
    }
    observer.expect(observer.progress().0);
    Ok(KMeans {
        iterations,
        ..lloyd.finish()
    })
}

/// Sizes of the samples that the centroids are trained on first: each several times the one before.
fn warm_up(k: usize, train_rows: usize) -> impl Iterator<Item = usize> {
    iter::successors(Some(FEWEST_ROWS.max(ROWS_PER_CENTROID * k)), |count| {
        Some(count * GROWTH)
    })
    .take_while(move |count| count * 2 <= train_rows)
}

/// Compares rows with centroids, block by block in parallel; `compare` notes the nearest centroid of each row of a
/// block in its labels, and how near it is in its scores.
fn compare_rows(
    rows: &Rows,
    squared_norms: &[f32],
    labels: &mut [u32],
    scores: &mut [f32],
    compare: impl Fn(&Block, &mut Scratch, &mut [u32], &mut [f32]) -> Result<()> + Sync,
) -> Result<()> {
    let blocks = labels
        .par_chunks_mut(BLOCK_ROWS)
        .zip(scores.par_chunks_mut(BLOCK_ROWS));
    blocks
        .enumerate()
        .try_for_each_init(Scratch::default, |scratch, (number, (labels, scores))| {
            let first = number * BLOCK_ROWS;
            let range = first..first + labels.len();
            let block = Block {
                rows,
                squared_norms: &squared_norms[range.clone()],
                range,
            };
            compare(&block, scratch, labels, scores)
        })
}

fn check(rows: &Rows, options: &KMeansOptions) -> Result<()> {
    let (n, k) = (rows.len(), options.k);
    let problem = if k == 0 {
        "k: 0 clusters were asked for; give at least 1".to_owned()
    } else if k > n {
        format!("k: {k} clusters were asked for of {n} rows; give at most {n}")
    } else if u32::try_from(k).is_err() {
        format!("k: {k} clusters are too many; give at most {}", u32::MAX)
    } else if options.max_iterations == 0 {
        "max_iterations: 0 is too small; give at least 1".to_owned()
    } else if !(0.0..1.0).contains(&options.tolerance) {
        format!(
            "tolerance: {} is not a share; it must be at least 0 and below 1",
            options.tolerance
        )
    } else if let Some(train_rows) = options.train_rows
        && train_rows < k
    {
        format!("train_rows: {train_rows} rows cannot train {k} clusters; give at least {k}")
    } else {
        return Ok(());
    };
    Err(Error::Argument(problem))
}

/// Draws `count` of `n` rows uniformly: those of the smallest random keys, in the order of their keys, so that
/// every prefix is a uniform draw, too.
fn draw(n: usize, count: usize, rng: Rng) -> Vec<usize> {
    let below = |limit: u64| -> Vec<(u64, usize)> {
        (0..n)
            .into_par_iter()
            .map(|row| (rng.bits(row as u64), row))
            .filter(|&(key, _)| key <= limit)
            .collect()
    };
    // Few more than needed have such small keys, and hardly ever too few: so no list of all rows is made.
    let likely = (count as f64 + 8.0 * (count as f64).sqrt()) / n as f64;
    let mut keyed = below((likely * u64::MAX as f64) as u64);
    if keyed.len() < count {
        keyed = below(u64::MAX);
    }
    if count < keyed.len() {
        keyed.select_nth_unstable(count);
        keyed.truncate(count);
    }
    keyed.par_sort_unstable();
    keyed.into_iter().map(|(_, row)| row).collect()
}
