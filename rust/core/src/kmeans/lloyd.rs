//! Lloyd's iterations: assign every row to its nearest centroid, move each centroid to the mean of its rows.
//!
//! Centroids soon move little, and rows go to a centroid that was close before. So a search among all centroids
//! leaves each row a shortlist of those that came closest, and the next searches look at these alone, until they
//! gain little more; then all centroids are searched again. Labels from shortlists lower the inertia with every
//! update, too, and only a search among all ends the training. (Wang, Wang, Ke, Zeng and Li, Fast approximate
//! k-means via cluster closures, CVPR 2012, keep to few centroids of each row by neighbourhoods of rows.)

use std::borrow::Cow;
use std::ops::Range;

use rayon::prelude::*;

use super::{KMeans, KMeansOptions, compare_rows};
use crate::linalg::{
    BLOCK_ROWS, Block, Centres, Chunk, Metric, Norms, Rows, Scratch, Shortlist, Sums, ordered_sum,
};
use crate::{Error, Observer, Result};

/// Rows that are assigned, then added to the sums, while they are still in the cache.
const SPAN: usize = 128 * BLOCK_ROWS;

/// The lists are too old once an update has lowered the inertia by more than this share.
const AGED: f64 = 0.01;

/// The centroids that a row is compared with.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Search {
    All,
    Shortlist,
}

/// Clusters in the making.
pub(super) struct Lloyd<'a> {
    whole: &'a Rows<'a>,
    whole_norms: &'a Norms,
    metric: Metric,
    k: usize,
    centroids: Vec<f32>,
    /// The rows that are clustered now.
    rows: Rows<'a>,
    squared_norms: Cow<'a, [f32]>,
    labels: Vec<u32>,
    scores: Vec<f32>,
    /// Made when the centroids are first trained on the rows.
    lists: Vec<Shortlist>,
    sums: Sums,
}

impl<'a> Lloyd<'a> {
    /// Begins with the rows `first`. Further centroids up to `k` are copies of the first one: ties go to the
    /// lowest cluster, so these get no rows, and `repair` finds rows for them.
    pub(super) fn new(
        rows: &'a Rows<'a>,
        norms: &'a Norms,
        options: &KMeansOptions,
        first: &[usize],
    ) -> Self {
        let (k, metric) = (options.k, options.metric);
        let mut centroids = vec![0.0; k * rows.dim()];
        for (cluster, centroid) in centroids.chunks_exact_mut(rows.dim()).enumerate() {
            let row = first.get(cluster).copied().unwrap_or(first[0]);
            rows.copy_row(row, centroid);
            if metric == Metric::Cosine {
                let length = norms.squared[row].sqrt();
                centroid.iter_mut().for_each(|value| *value /= length);
            }
        }
        Self {
            whole: rows,
            whole_norms: norms,
            metric,
            k,
            centroids,
            rows: rows.without_rows(),
            squared_norms: Cow::Borrowed(&[]),
            labels: Vec::new(),
            scores: Vec::new(),
            lists: Vec::new(),
            sums: Sums::new(k, rows.dim()),
        }
    }

    /// Clusters some of the rows from now on.
    pub(super) fn choose(&mut self, rows: &[usize]) -> Result<()> {
        // In ascending order they are read in the order in which they lie.
        let mut index = rows.to_vec();
        index.sort_unstable();
        self.squared_norms = index
            .iter()
            .map(|&row| self.whole_norms.squared[row])
            .collect();
        self.rows = self.whole.subset(&index)?;
        self.forget_labels();
        Ok(())
    }

    /// Clusters all rows from now on.
    pub(super) fn choose_all(&mut self) {
        self.rows = self.whole.clone();
        self.squared_norms = Cow::Borrowed(&self.whole_norms.squared);
        self.forget_labels();
    }

    fn forget_labels(&mut self) {
        self.labels = vec![0; self.rows.len()];
        self.scores = vec![0.0; self.rows.len()];
        self.lists = Vec::new();
    }

    /// Updates the centroids until an update lowers the inertia by at most the share `tolerance`.
    pub(super) fn warm_up(
        &mut self,
        max_iterations: usize,
        tolerance: f64,
        observer: &Observer,
    ) -> Result<()> {
        self.iterate(max_iterations, tolerance, Search::Shortlist, observer)?;
        Ok(())
    }

    /// Does so until a search among all centroids says so, too, and returns how often; the labels fit the
    /// centroids afterwards.
    pub(super) fn train(
        &mut self,
        max_iterations: usize,
        tolerance: f64,
        observer: &Observer,
    ) -> Result<usize> {
        let iterations = self.iterate(max_iterations, tolerance, Search::All, observer)?;
        if iterations == max_iterations {
            self.assign_all(observer)?;
        }
        Ok(iterations)
    }

    /// Updates the centroids until the labels of a search, `last` or a wider one, hardly lower the inertia, and
    /// returns how often; at most `max_iterations` times.
    fn iterate(
        &mut self,
        max_iterations: usize,
        tolerance: f64,
        last: Search,
        observer: &Observer,
    ) -> Result<usize> {
        self.lists.resize(self.rows.len(), Shortlist::default());
        let mut before: Option<f64> = None;
        let mut search = Search::All;
        for iteration in 0..max_iterations {
            let changed = self.assign(search, observer)?;
            let inertia = self.inertia();
            let lowered =
                |share: f64| before.is_none_or(|before| before - inertia > share * before);
            let settled = !lowered(tolerance) || (before.is_some() && changed == 0);
            if settled && (search == Search::All || last == Search::Shortlist) {
                return Ok(iteration);
            }
            let aged = before.is_some() && lowered(AGED);
            search = match settled || aged {
                true => Search::All,
                false => Search::Shortlist,
            };
            before = Some(inertia);
            self.repair();
            self.update();
        }
        Ok(max_iterations)
    }

    /// Returns the clusters.
    pub(super) fn finish(self) -> KMeans {
        let inertia = self.inertia();
        without_empty(self.centroids, self.labels, self.whole.dim(), inertia)
    }

    /// Finds the nearest centroid of every row.
    pub(super) fn assign_all(&mut self, observer: &Observer) -> Result<()> {
        let centres = self.centres(observer)?;
        compare_rows(
            &self.rows,
            &self.squared_norms,
            &mut self.labels,
            &mut self.scores,
            |block, scratch, labels, scores| {
                observer.check()?;
                centres.assign(block, scratch, labels, scores, None);
                observer.advance(labels.len() as u64);
                Ok(())
            },
        )
    }

    /// Finds the nearest centroid of every row, adds the rows up and returns how many changed their centroid.
    fn assign(&mut self, search: Search, observer: &Observer) -> Result<usize> {
        let centres = self.centres(observer)?;
        let mut changed = 0;
        self.sums.clear();
        for first in (0..self.rows.len()).step_by(SPAN) {
            let span = first..self.rows.len().min(first + SPAN);
            changed += self.assign_span(&centres, span.clone(), search, observer)?;
            let weight = |row| self.metric.weight(self.squared_norms[row]);
            let labels = &self.labels[span.clone()];
            self.sums.add(&self.rows, span, labels, weight);
        }
        Ok(changed)
    }

    /// Finds the nearest centroid of some rows and returns how many changed theirs.
    fn assign_span(
        &mut self,
        centres: &Centres,
        span: Range<usize>,
        search: Search,
        observer: &Observer,
    ) -> Result<usize> {
        let (rows, squared_norms) = (&self.rows, &self.squared_norms);
        let labels = self.labels[span.clone()].par_chunks_mut(BLOCK_ROWS);
        let scores = self.scores[span.clone()].par_chunks_mut(BLOCK_ROWS);
        let lists = self.lists[span.clone()].par_chunks_mut(BLOCK_ROWS);
        labels
            .zip(scores)
            .zip(lists)
            .enumerate()
            .map_init(
                Scratch::default,
                |scratch, (number, ((labels, scores), lists))| {
                    observer.check()?;
                    let first = span.start + number * BLOCK_ROWS;
                    let before = labels.to_vec();
                    let range = first..first + labels.len();
                    let block = Block {
                        rows,
                        squared_norms: &squared_norms[range.clone()],
                        range,
                    };
                    match search {
                        Search::All => {
                            centres.assign(&block, scratch, labels, scores, Some(lists));
                        }
                        Search::Shortlist => {
                            centres.assign_listed(&block, scratch, labels, scores, lists);
                        }
                    }
                    observer.advance(labels.len() as u64);
                    let pairs = labels.iter().zip(before);
                    Ok::<_, Error>(pairs.filter(|(now, before)| **now != *before).count())
                },
            )
            .try_reduce(|| 0, |left, right| Ok(left + right))
    }

    fn centres(&self, observer: &Observer) -> Result<Centres> {
        let dim = self.rows.dim();
        let matrix = Rows::new([Chunk::F32(&self.centroids)], dim)?.with_simd(self.rows.simd());
        let norms = Norms::new(&matrix, Metric::Euclidean, observer)?;
        let mut centres = Centres::new(dim, self.metric, self.rows.simd());
        for (centroid, &norm) in self.centroids.chunks_exact(dim).zip(&norms.squared) {
            centres.push(centroid, norm);
        }
        Ok(centres)
    }

    fn distance(&self, row: usize) -> f32 {
        self.metric
            .reduced(self.scores[row], self.squared_norms[row])
    }

    fn inertia(&self) -> f64 {
        ordered_sum(self.rows.len(), |row| f64::from(self.distance(row)))
    }

    /// Gives each empty cluster the row that is farthest from its centroid and not alone in its cluster;
    /// returns how many rows were given.
    fn repair(&mut self) -> usize {
        let empty: Vec<_> = (0..self.k)
            .filter(|&cluster| self.sums.count(cluster) == 0)
            .collect();
        if empty.is_empty() {
            return 0;
        }
        let mut farthest: Vec<_> = (0..self.rows.len())
            .map(|row| (self.distance(row), row))
            .filter(|(distance, _)| *distance > 0.0)
            .collect();
        farthest
            .sort_unstable_by(|left, right| right.0.total_cmp(&left.0).then(left.1.cmp(&right.1)));
        let mut targets = empty.into_iter();
        let mut given = 0;
        for (_, row) in farthest {
            let donor = self.labels[row] as usize;
            if self.sums.count(donor) < 2 {
                continue;
            }
            let Some(target) = targets.next() else { break };
            let weight = self.metric.weight(self.squared_norms[row]);
            self.sums.move_row(&self.rows, row, weight, donor, target);
            self.labels[row] = target as u32;
            given += 1;
        }
        given
    }

    /// Moves every centroid to the mean of its rows; one without rows, or whose rows cancel, stays.
    fn update(&mut self) {
        let dim = self.rows.dim();
        let (sums, metric) = (&self.sums, self.metric);
        self.centroids
            .par_chunks_exact_mut(dim)
            .enumerate()
            .for_each(|(cluster, centroid)| {
                let mean: Vec<f64> = sums.of(cluster).collect();
                let size = match metric {
                    Metric::Euclidean => sums.count(cluster) as f64,
                    Metric::Cosine => mean.iter().map(|value| value * value).sum::<f64>().sqrt(),
                };
                if size > 0.0 {
                    for (out, value) in centroid.iter_mut().zip(mean) {
                        *out = (value / size) as f32;
                    }
                }
            });
    }
}

/// Leaves out clusters without rows and renumbers the others in order.
fn without_empty(centroids: Vec<f32>, mut labels: Vec<u32>, dim: usize, inertia: f64) -> KMeans {
    let mut used = vec![false; centroids.len() / dim];
    for &label in &labels {
        used[label as usize] = true;
    }
    let mut names = vec![0; used.len()];
    let mut kept = Vec::with_capacity(centroids.len());
    for (cluster, centroid) in centroids.chunks_exact(dim).enumerate() {
        names[cluster] = (kept.len() / dim) as u32;
        if used[cluster] {
            kept.extend_from_slice(centroid);
        }
    }
    for label in &mut labels {
        *label = names[*label as usize];
    }
    KMeans {
        centroids: kept,
        labels,
        inertia,
        iterations: 0,
    }
}
