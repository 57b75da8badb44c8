//! Which rows are compared with which.

use std::ops::Range;

use rayon::prelude::*;

use crate::kmeans::{KMeansOptions, kmeans};
use crate::linalg::{Centres, Chunk, Metric, Norms, Rows};
use crate::{Error, Observer, Result};

/// Rows for each cluster: enough that sorting them into clusters costs little beside comparing them.
const ROWS_PER_CLUSTER: usize = 512;

/// Rows that the clusters are trained on, for each of them.
const TRAINING_ROWS: usize = 64;

/// Rows that a task is for, where all are compared with all.
const TARGETS: usize = 1 << 14;

/// Rows that are packed at once to be compared with.
const CANDIDATES: usize = 1 << 12;

/// Rows in the order of their clusters.
pub(crate) struct Plan<'a> {
    /// The rows in that order.
    pub(crate) view: Rows<'a>,
    /// The number of each row of the view among all rows.
    pub(crate) names: Vec<usize>,
    /// Squared norms, by name.
    pub(crate) norms: Norms,
    clusters: Vec<Range<usize>>,
    /// For each cluster, those that it is compared with, itself first; none if all are compared with all.
    near: Option<Vec<Vec<usize>>>,
}

/// Rows, by their places in the view, and what they are compared with.
pub(crate) struct Task {
    pub(crate) targets: Range<usize>,
    pub(crate) candidates: Vec<Range<usize>>,
}

impl<'a> Plan<'a> {
    /// Clusters the rows. With `probes`, the rows of a cluster are compared with those of as many clusters only,
    /// the ones whose centroids are nearest its own.
    pub(crate) fn new(
        rows: &Rows<'a>,
        probes: Option<usize>,
        observer: &Observer,
    ) -> Result<Self> {
        if probes == Some(0) {
            return Err(Error::Argument(
                "probes: 0 clusters to compare with; give at least 1, or none for all rows".into(),
            ));
        }
        let norms = Norms::new(rows, Metric::Cosine, observer)?;
        let k = (rows.len() / ROWS_PER_CLUSTER).max(1);
        let options = KMeansOptions {
            k,
            metric: Metric::Cosine,
            seed: 0,
            max_iterations: 5,
            tolerance: 1e-2,
            train_rows: Some(TRAINING_ROWS * k),
        };
        let found = kmeans(rows, &options, observer)?;
        let mut names: Vec<usize> = (0..rows.len()).collect();
        names.par_sort_by_key(|&row| (found.labels[row], row));
        let mut clusters = Vec::new();
        for members in names.chunk_by(|&left, &right| found.labels[left] == found.labels[right]) {
            let first = clusters.last().map_or(0, |last: &Range<usize>| last.end);
            clusters.push(first..first + members.len());
        }
        let near = match probes {
            Some(probes) if probes < clusters.len() => {
                Some(nearest_clusters(&found.centroids, rows, probes, observer)?)
            }
            _ => None,
        };
        Ok(Self {
            view: rows.subset(&names)?,
            names,
            norms,
            clusters,
            near,
        })
    }

    /// What is compared, each task's own rows first.
    pub(crate) fn tasks(&self) -> Vec<Task> {
        let n = self.names.len();
        let Some(near) = &self.near else {
            let targets = blocks(0..n, TARGETS);
            let task = |targets: Range<usize>| Task {
                candidates: blocks(targets.clone(), CANDIDATES)
                    .chain(blocks(0..targets.start, CANDIDATES))
                    .chain(blocks(targets.end..n, CANDIDATES))
                    .collect(),
                targets,
            };
            return targets.map(task).collect();
        };
        let task = |(cluster, near): (usize, &Vec<usize>)| Task {
            targets: self.clusters[cluster].clone(),
            candidates: near
                .iter()
                .flat_map(|&other| blocks(self.clusters[other].clone(), CANDIDATES))
                .collect(),
        };
        near.iter().enumerate().map(task).collect()
    }

    /// Like [`Self::tasks`], for pairs without order: candidates do not come after the targets.
    pub(crate) fn half_tasks(&self) -> Vec<Task> {
        let Some(near) = &self.near else {
            let task = |targets: Range<usize>| Task {
                candidates: blocks(0..targets.end, CANDIDATES).collect(),
                targets,
            };
            return blocks(0..self.names.len(), TARGETS).map(task).collect();
        };
        // A pair of clusters counts if one of the two is near the other.
        let mut before: Vec<Vec<usize>> = vec![Vec::new(); near.len()];
        for (cluster, near) in near.iter().enumerate() {
            for &other in near {
                before[cluster.max(other)].push(cluster.min(other));
            }
        }
        let task = |(cluster, mut before): (usize, Vec<usize>)| {
            before.sort_unstable();
            before.dedup();
            Task {
                targets: self.clusters[cluster].clone(),
                candidates: before
                    .into_iter()
                    .flat_map(|other| blocks(self.clusters[other].clone(), CANDIDATES))
                    .collect(),
            }
        };
        before.into_iter().enumerate().map(task).collect()
    }

    /// Squared norms of some rows of the view.
    pub(crate) fn squared_norms(&self, range: Range<usize>) -> Vec<f32> {
        let names = &self.names[range];
        names.iter().map(|&name| self.norms.squared[name]).collect()
    }

    /// Packs some rows of the view to be compared with, above a cosine if that is known.
    pub(crate) fn pack(&self, range: Range<usize>, threshold: Option<f64>) -> Centres {
        let (dim, simd) = (self.view.dim(), self.view.simd());
        let mut centres = match threshold {
            Some(cosine) => Centres::for_cosine(cosine, dim, simd),
            None => Centres::new(dim, Metric::Cosine, simd),
        };
        let mut vector = vec![0.0; dim];
        for place in range {
            self.view.copy_row(place, &mut vector);
            centres.push(&vector, self.norms.squared[self.names[place]]);
        }
        centres
    }
}

fn blocks(range: Range<usize>, size: usize) -> impl Iterator<Item = Range<usize>> {
    let end = range.end;
    range
        .step_by(size)
        .map(move |first| first..end.min(first + size))
}

/// For each cluster, the `count` nearest ones, itself first.
fn nearest_clusters(
    centroids: &[f32],
    rows: &Rows,
    count: usize,
    observer: &Observer,
) -> Result<Vec<Vec<usize>>> {
    let dim = rows.dim();
    let simd = rows.simd();
    // Checks the centroids, too: one whose rows cancel out has no direction.
    Norms::new(&Rows::new([Chunk::F32(centroids)], dim)?, Metric::Cosine, observer)?;
    let clusters = centroids.len() / dim;
    let centroid = |cluster: usize| &centroids[cluster * dim..][..dim];
    (0..clusters)
        .into_par_iter()
        .map(|cluster| {
            observer.check()?;
            let mut others: Vec<(f32, usize)> = (0..clusters)
                .filter(|&other| other != cluster)
                .map(|other| (-simd.dot(centroid(cluster), centroid(other)), other))
                .collect();
            others.sort_unstable_by(|left, right| left.0.total_cmp(&right.0).then(left.1.cmp(&right.1)));
            let nearest = others.into_iter().map(|(_, other)| other);
            Ok([cluster].into_iter().chain(nearest).take(count).collect())
        })
        .collect()
}
