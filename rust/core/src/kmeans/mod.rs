//! k-means by Lloyd's algorithm with exact assignments.

mod lloyd;
mod seeding;

use lloyd::Lloyd;

use crate::linalg::{Metric, Norms, Rows};
use crate::rng::{Rng, Stream};
use crate::{Error, Observer, Result};

/// How to cluster.
#[derive(Clone, Debug)]
pub struct KMeansOptions {
    /// Number of clusters.
    pub k: usize,
    /// Euclidean, or cosine for spherical k-means.
    pub metric: Metric,
    /// Random seed of the training sample and the first centroids.
    pub seed: u64,
    /// Most updates of the centroids.
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
    /// Updates of the centroids that were made.
    pub iterations: usize,
}

/// Clusters rows: greedy k-means++ seeding, then Lloyd's iterations.
///
/// There are fewer than `k` clusters only if there are fewer than `k` distinct rows, or if no row is nearest to
/// one of the last centroids.
pub fn kmeans(rows: &Rows, options: &KMeansOptions, observer: &Observer) -> Result<KMeans> {
    check(rows, options)?;
    let passes = options.max_iterations + 3;
    observer.expect((rows.len() * passes) as u64);
    let norms = Norms::new(rows, options.metric, observer)?;
    let (train, train_norms) = match options.train_rows {
        Some(count) if count < rows.len() => {
            let index = sample(
                rows.len(),
                count,
                Rng::new(options.seed, Stream::TrainingRows),
            );
            let squared = index.iter().map(|&row| norms.squared[row]).collect();
            (rows.subset(&index)?, Norms { squared })
        }
        _ => (
            rows.clone(),
            Norms {
                squared: norms.squared.clone(),
            },
        ),
    };
    let first = seeding::plus_plus(&train, &train_norms, options, observer)?;
    let mut lloyd = Lloyd::new(&train, &train_norms, options, &first);
    let iterations = lloyd.train(options, observer)?;
    let clusters = if train.len() < rows.len() {
        lloyd.assign_others(rows, &norms, observer)?
    } else {
        lloyd.finish()
    };
    observer.expect(observer.progress().0);
    Ok(KMeans {
        iterations,
        ..clusters
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

/// Draws `count` of `n` rows uniformly, ascending: those of the smallest random keys.
fn sample(n: usize, count: usize, rng: Rng) -> Vec<usize> {
    if count == n {
        return (0..n).collect();
    }
    let mut keyed: Vec<_> = (0..n).map(|row| (rng.bits(row as u64), row)).collect();
    keyed.select_nth_unstable(count);
    let mut rows: Vec<_> = keyed[..count].iter().map(|&(_, row)| row).collect();
    rows.sort_unstable();
    rows
}
