//! Which rows are compared with which.

use std::cmp::Reverse;
use std::ops::Range;

use rayon::prelude::*;

use crate::kmeans::{KMeansOptions, kmeans};
use crate::linalg::{Centres, Metric, Norms, Rows};
use crate::{Error, Observer, Result};

/// Rows for each cluster: enough that sorting them into clusters costs little beside comparing them.
const ROWS_PER_CLUSTER: usize = 512;

/// Rows that the clusters are trained on, for each of them.
const TRAINING_ROWS: usize = 64;

/// Rows that are compared with others at once.
const BLOCK: usize = 4096;

/// Rows in an order in which similar ones are near each other, cut into blocks.
pub(crate) struct Plan<'a> {
    /// The rows in that order.
    pub(crate) view: Rows<'a>,
    /// The number of each row of the view among all rows.
    pub(crate) names: Vec<usize>,
    /// Squared norms, by name.
    pub(crate) norms: Norms,
    /// Mean direction of each block's rows.
    means: Vec<f32>,
    /// How many blocks a block is compared with; none for all.
    probes: Option<usize>,
}

impl<'a> Plan<'a> {
    /// Sorts the rows. With `probes`, the rows of a block are compared with those of as many blocks only, the most
    /// similar ones.
    pub(crate) fn new(rows: &Rows<'a>, probes: Option<usize>, observer: &Observer) -> Result<Self> {
        if probes == Some(0) {
            return Err(Error::Argument(
                "probes: 0 blocks to compare with; give at least 1, or none for all rows".into(),
            ));
        }
        let norms = Norms::new(rows, Metric::Cosine, observer)?;
        // The rows of a single block are all compared with each other, in whatever order.
        let names = match rows.len() <= BLOCK {
            true => (0..rows.len()).collect(),
            false => by_likeness(rows, observer)?,
        };
        let view = rows.subset(&names)?;
        let means = means(&view, &names, &norms);
        Ok(Self {
            view,
            names,
            norms,
            means,
            probes,
        })
    }

    /// Places of a block's rows in the view.
    pub(crate) fn block(&self, block: usize) -> Range<usize> {
        block * BLOCK..self.names.len().min((block + 1) * BLOCK)
    }

    /// What is compared: pairs of blocks, the later one first. Each block with itself in the beginning, then the
    /// most similar ones.
    pub(crate) fn pairs(&self) -> Vec<(usize, usize)> {
        let (count, dim) = (self.names.len().div_ceil(BLOCK), self.view.dim());
        let simd = self.view.simd();
        let mean = |block: usize| &self.means[block * dim..][..dim];
        let likeness = |left: usize, right: usize| simd.dot(mean(left), mean(right));
        let mut pairs: Vec<(f32, usize, usize)> = (0..count)
            .into_par_iter()
            .flat_map_iter(|block| {
                let mut others: Vec<(f32, usize, usize)> = (0..count)
                    .map(|other| (likeness(block, other), block, other))
                    .filter(|&(_, _, other)| other != block)
                    .collect();
                others.sort_unstable_by(|left, right| before(*left, *right));
                others.truncate(self.probes.map_or(count, |probes| probes - 1));
                others.push((f32::INFINITY, block, block));
                others
            })
            .map(|(likeness, left, right)| (likeness, left.max(right), left.min(right)))
            .collect();
        pairs.par_sort_unstable_by(|left, right| before(*left, *right));
        // A pair of which each found the other is there twice.
        pairs.dedup_by_key(|&mut (_, left, right)| (left, right));
        pairs
            .into_iter()
            .map(|(_, left, right)| (left, right))
            .collect()
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

/// Puts rows in an order in which similar ones are near each other: cluster after cluster, each followed by the most
/// similar one that is left.
pub(crate) fn by_likeness(rows: &Rows, observer: &Observer) -> Result<Vec<usize>> {
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
    let turns = chain(&found.centroids, rows, observer)?;
    let mut names: Vec<usize> = (0..rows.len()).collect();
    names.par_sort_by_key(|&row| (turns[found.labels[row] as usize], row));
    Ok(names)
}

/// Orders pairs of blocks: the most similar first.
fn before(left: (f32, usize, usize), right: (f32, usize, usize)) -> std::cmp::Ordering {
    let blocks = |pair: (f32, usize, usize)| (pair.1, pair.2);
    right
        .0
        .total_cmp(&left.0)
        .then(blocks(left).cmp(&blocks(right)))
}

/// When it is each cluster's turn: from the first one always to the most similar one that is left.
fn chain(centroids: &[f32], rows: &Rows, observer: &Observer) -> Result<Vec<usize>> {
    let (dim, simd) = (rows.dim(), rows.simd());
    let count = centroids.len() / dim;
    let centroid = |cluster: usize| &centroids[cluster * dim..][..dim];
    let mut turns = vec![0; count];
    let mut left: Vec<usize> = (1..count).collect();
    let mut last = 0;
    for turn in 1..count {
        observer.check()?;
        let likeness = |place: usize| simd.dot(centroid(last), centroid(left[place]));
        let next = (0..left.len())
            .into_par_iter()
            .map(|place| (likeness(place), place))
            .max_by(|one, other| {
                one.0
                    .total_cmp(&other.0)
                    .then(Reverse(one.1).cmp(&Reverse(other.1)))
            })
            .map_or(0, |(_, place)| place);
        last = left.remove(next);
        turns[last] = turn;
    }
    Ok(turns)
}

/// The mean direction of each block's rows.
fn means(view: &Rows, names: &[usize], norms: &Norms) -> Vec<f32> {
    let dim = view.dim();
    let means: Vec<Vec<f32>> = names
        .par_chunks(BLOCK)
        .enumerate()
        .map(|(block, names)| {
            let (mut sum, mut vector) = (vec![0.0f32; dim], vec![0.0f32; dim]);
            for (place, &name) in names.iter().enumerate() {
                view.copy_row(block * BLOCK + place, &mut vector);
                let length = norms.squared[name].sqrt();
                sum.iter_mut()
                    .zip(&vector)
                    .for_each(|(sum, value)| *sum += value / length);
            }
            let length = sum
                .iter()
                .map(|value| value * value)
                .sum::<f32>()
                .sqrt()
                .max(f32::MIN_POSITIVE);
            sum.iter_mut().for_each(|value| *value /= length);
            sum
        })
        .collect();
    means.concat()
}
