//! Exact greedy k-center that looks at few pairs.
//!
//! Gonzalez, Clustering to minimize the maximum intercluster distance (TCS 38, 1985): take the row that is
//! farthest from all centres so far, again and again. A row's distance only shrinks as centres are added, so
//! what it was when last looked at bounds it from above, and rows that are bounded below the farthest one need
//! not be looked at (as in lazy greedy: Minoux, Accelerated greedy algorithms, 1978). Most rows come near some
//! centre early and are never compared with the later ones. Distances are compared in float64.

use std::cmp::{Ordering, Reverse};
use std::collections::BinaryHeap;
use std::collections::binary_heap::PeekMut;

use rayon::prelude::*;

use crate::linalg::{Centres, Metric, Norms, Rows, Sums};
use crate::{Error, Observer, Result};

/// Rows that the pool should hold at least when it is filled.
const POOL_ROWS: usize = 4096;

/// Centres after which the pool is filled anew: rows of the pool are compared one by one, others in blocks.
const POOL_CENTRES: usize = 512;

/// Ranks that the floor of the pool is estimated from.
const SAMPLE: usize = 1 << 16;

/// Rank of a row that is a centre already.
const CHOSEN: f64 = -1.0;

/// What to cover the rows with.
#[derive(Clone, Debug)]
pub struct KCenterOptions<'a> {
    /// Number of centres, the first ones included.
    pub k: usize,
    /// Euclidean or cosine distance.
    pub metric: Metric,
    /// Where to begin.
    pub first: First<'a>,
    /// Weight of every row, not negative: the row with the greatest weight x distance is taken next.
    pub weights: Option<&'a [f32]>,
}

/// The first centres.
#[derive(Clone, Copy, Debug)]
pub enum First<'a> {
    /// These rows, in this order.
    Rows(&'a [usize]),
    /// The row nearest the mean of all rows (of their directions, under the cosine metric).
    NearestMean,
}

/// Centres in the order in which they were taken.
#[derive(Clone, Debug, PartialEq)]
pub struct KCenter {
    /// The rows that are centres.
    pub rows: Vec<usize>,
    /// After each centre, the greatest distance (times weight) of a row to its nearest centre.
    pub radii: Vec<f32>,
}

/// Covers the rows with `k` of them. Among rows equally far the lowest is taken.
pub fn k_center(rows: &Rows, options: &KCenterOptions, observer: &Observer) -> Result<KCenter> {
    observer.expect(options.k as u64);
    cover(rows, options, observer, || observer.advance(1))
}

/// Like [`k_center`], but only says when a centre is taken.
pub(crate) fn cover(
    rows: &Rows,
    options: &KCenterOptions,
    observer: &Observer,
    mut taken: impl FnMut(),
) -> Result<KCenter> {
    check(rows, options)?;
    let norms = Norms::new(rows, options.metric, observer)?;
    let first = match options.first {
        First::Rows(first) => first.to_vec(),
        First::NearestMean => vec![nearest_mean(rows, &norms, options.metric, observer)?],
    };
    let mut greedy = Greedy::new(rows, &norms, options);
    let mut cover = KCenter {
        rows: Vec::with_capacity(options.k),
        radii: Vec::with_capacity(options.k),
    };
    let mut next = first[0];
    while cover.rows.len() < options.k {
        cover.rows.push(next);
        greedy.add(next);
        let (rank, farthest) = greedy.farthest(observer)?;
        let radius = options.metric.distance(rank.max(0.0));
        cover.radii.push(radius as f32);
        next = first.get(cover.rows.len()).copied().unwrap_or(farthest);
        taken();
    }
    Ok(cover)
}

fn check(rows: &Rows, options: &KCenterOptions) -> Result<()> {
    let (n, k) = (rows.len(), options.k);
    if k == 0 || k > n {
        return Err(Error::Argument(format!(
            "k: {k} centres were asked for of {n} rows; give at least 1 and at most {n}"
        )));
    }
    if let First::Rows(first) = options.first {
        check_first(first, n, k)?;
    }
    check_weights(options.weights, n)
}

/// Checks that there is a weight for each of `n` rows, finite and at least 0.
pub(crate) fn check_weights(weights: Option<&[f32]>, n: usize) -> Result<()> {
    let Some(weights) = weights else {
        return Ok(());
    };
    if weights.len() != n {
        return Err(Error::Argument(format!(
            "weights: {} were given for {n} rows; give one for each row",
            weights.len()
        )));
    }
    let allowed = |weight: &f32| *weight >= 0.0 && weight.is_finite();
    if let Some(row) = weights.iter().position(|weight| !allowed(weight)) {
        return Err(Error::Argument(format!(
            "weights: {} of row {row} cannot be used; give finite numbers of at least 0",
            weights[row]
        )));
    }
    Ok(())
}

fn check_first(first: &[usize], n: usize, k: usize) -> Result<()> {
    if first.is_empty() || first.len() > k {
        return Err(Error::Argument(format!(
            "first: {} rows were given for k = {k} centres; give at least one and at most k",
            first.len()
        )));
    }
    let mut sorted = first.to_vec();
    sorted.sort_unstable();
    if let Some(&row) = sorted.iter().find(|&&row| row >= n) {
        return Err(Error::Argument(format!(
            "first: row {row} is not one of the {n} rows"
        )));
    }
    if let Some(pair) = sorted.windows(2).find(|pair| pair[0] == pair[1]) {
        return Err(Error::Argument(format!(
            "first: row {} is given twice; give it once",
            pair[0]
        )));
    }
    Ok(())
}

/// The row nearest the mean, the lowest of several; row 0 if directions cancel out.
fn nearest_mean(rows: &Rows, norms: &Norms, metric: Metric, observer: &Observer) -> Result<usize> {
    let mut sums = Sums::new(1, rows.dim());
    sums.add(rows, 0..rows.len(), &vec![0; rows.len()], |row| {
        metric.weight(norms.squared[row])
    });
    let mean: Vec<f32> = sums
        .of(0)
        .map(|sum| (sum / rows.len() as f64) as f32)
        .collect();
    let squared: f32 = mean.iter().map(|value| value * value).sum();
    if metric == Metric::Cosine && squared < f32::MIN_POSITIVE {
        return Ok(0);
    }
    let mut centre = Centres::new(rows.dim(), metric, rows.simd());
    centre.push(&mean, squared);
    let mut distances = vec![f64::INFINITY; rows.len()];
    centre.approach(rows, &norms.squared, |_| 0, &mut distances, observer)?;
    let nearest =
        (0..rows.len()).min_by(|&left, &right| distances[left].total_cmp(&distances[right]));
    Ok(nearest.unwrap_or(0))
}

/// A row and the most that its rank can be. The greatest is the next to be looked at: the highest rank, of
/// several the lowest row.
#[derive(Clone, Copy, Debug, PartialEq)]
struct Candidate {
    rank: f64,
    row: usize,
}

impl Eq for Candidate {}

impl Ord for Candidate {
    fn cmp(&self, other: &Self) -> Ordering {
        let by_rank = self.rank.total_cmp(&other.rank);
        by_rank.then(Reverse(self.row).cmp(&Reverse(other.row)))
    }
}

impl PartialOrd for Candidate {
    fn partial_cmp(&self, other: &Self) -> Option<Ordering> {
        Some(self.cmp(other))
    }
}

struct Greedy<'a> {
    rows: &'a Rows<'a>,
    measure: Measure<'a>,
    centres: Centres,
    /// What is known of every row.
    known: Known,
    /// Rows of which one is the farthest, while it ranks before `outside`.
    pool: BinaryHeap<Candidate>,
    /// The highest row that is not in the pool.
    outside: Option<Candidate>,
    /// Centres when the pool was filled.
    filled: usize,
    /// How many of the highest rows to look at when the pool is filled.
    reach: usize,
    vector: Vec<f32>,
}

/// What the distance of every row to its nearest centre was when it was looked at last.
struct Known {
    /// Number of centres then.
    seen: Vec<u32>,
    /// Distance to the nearest of them, squared under the Euclidean metric.
    distances: Vec<f64>,
    /// The rank that belongs to it, or [`CHOSEN`].
    ranks: Vec<f64>,
}

/// What rows are compared by.
struct Measure<'a> {
    metric: Metric,
    norms: &'a Norms,
    weights: Option<&'a [f32]>,
}

impl Measure<'_> {
    /// Distance times weight, as its square under the Euclidean metric.
    fn rank(&self, row: usize, distance: f64) -> f64 {
        let Some(weights) = self.weights else {
            return distance;
        };
        let weight = f64::from(weights[row]);
        match self.metric {
            Metric::Euclidean => distance * (weight * weight),
            Metric::Cosine => distance * weight,
        }
    }
}

impl<'a> Greedy<'a> {
    fn new(rows: &'a Rows<'a>, norms: &'a Norms, options: &KCenterOptions<'a>) -> Self {
        let n = rows.len();
        Self {
            rows,
            measure: Measure {
                metric: options.metric,
                norms,
                weights: options.weights,
            },
            centres: Centres::new(rows.dim(), options.metric, rows.simd()),
            known: Known {
                seen: vec![0; n],
                distances: vec![f64::INFINITY; n],
                ranks: vec![f64::INFINITY; n],
            },
            pool: BinaryHeap::new(),
            outside: Some(Candidate {
                rank: f64::INFINITY,
                row: 0,
            }),
            filled: 0,
            reach: POOL_ROWS,
            vector: vec![0.0; rows.dim()],
        }
    }

    /// Takes a centre.
    fn add(&mut self, row: usize) {
        self.rows.copy_row(row, &mut self.vector);
        self.centres
            .push(&self.vector, self.measure.norms.squared[row]);
        self.known.ranks[row] = CHOSEN;
    }

    /// Rank and number of the row that is next.
    fn farthest(&mut self, observer: &Observer) -> Result<(f64, usize)> {
        observer.check()?;
        if self.centres.len() - self.filled >= POOL_CENTRES {
            self.fill(observer)?;
        }
        loop {
            let best = self.pool.peek().copied();
            if best.max(self.outside) == self.outside {
                if self.outside.is_none() {
                    return Ok((CHOSEN, 0));
                }
                self.fill(observer)?;
                continue;
            }
            let Some(mut top) = self.pool.peek_mut() else {
                continue;
            };
            let row = top.row;
            if self.known.ranks[row] == CHOSEN {
                PeekMut::pop(top);
                continue;
            }
            let seen = self.known.seen[row] as usize;
            if seen == self.centres.len() {
                return Ok((top.rank, row));
            }
            self.rows.copy_row(row, &mut self.vector);
            let distance = &mut self.known.distances[row];
            let squared_norm = self.measure.norms.squared[row];
            *distance = self
                .centres
                .approach_one(&self.vector, squared_norm, seen, *distance);
            top.rank = self.measure.rank(row, *distance);
            self.known.ranks[row] = top.rank;
            self.known.seen[row] = self.centres.len() as u32;
        }
    }

    /// Looks at the rows that may be the highest and puts those into the pool that are.
    fn fill(&mut self, observer: &Observer) -> Result<()> {
        loop {
            let floor = self.floor();
            self.update(floor, observer)?;
            let candidates = self.known.ranks.par_iter().enumerate();
            let candidates = candidates
                .filter(|(_, rank)| **rank != CHOSEN)
                .map(|(row, &rank)| Candidate { rank, row });
            let (pool, outside): (Vec<_>, Option<_>) = (
                candidates.clone().filter(|row| row.rank >= floor).collect(),
                candidates.filter(|row| row.rank < floor).max(),
            );
            let enough = pool.len() >= POOL_ROWS || outside.is_none();
            if pool.len() > 4 * POOL_ROWS {
                self.reach = POOL_ROWS.max(self.reach / 2);
            } else if !enough {
                self.reach *= 2;
            }
            if enough {
                self.pool = pool.into();
                self.outside = outside;
                self.filled = self.centres.len();
                return Ok(());
            }
        }
    }

    /// A rank that about `reach` rows have at least, as far as is known.
    fn floor(&self) -> f64 {
        let ranks = &self.known.ranks;
        let step = ranks.len().div_ceil(SAMPLE);
        let sample = ranks.iter().step_by(step).copied();
        let mut sample: Vec<f64> = sample.filter(|&rank| rank != CHOSEN).collect();
        let place = self.reach / step;
        if place >= sample.len() {
            return 0.0;
        }
        let (_, floor, _) =
            sample.select_nth_unstable_by(place, |left, right| right.total_cmp(left));
        *floor
    }

    /// Looks at all rows that may rank at least `floor`.
    fn update(&mut self, floor: f64, observer: &Observer) -> Result<()> {
        let Known {
            seen,
            distances,
            ranks,
        } = &mut self.known;
        let count = self.centres.len();
        let mut stale: Vec<usize> = (0..ranks.len())
            .into_par_iter()
            .filter(|&row| ranks[row] >= floor && (seen[row] as usize) < count)
            .collect();
        stale.par_sort_by_key(|&row| seen[row]);
        let squared: Vec<f32> = stale
            .iter()
            .map(|&row| self.measure.norms.squared[row])
            .collect();
        let mut lowered: Vec<f64> = stale.iter().map(|&row| distances[row]).collect();
        self.centres.approach(
            &self.rows.subset(&stale)?,
            &squared,
            |start| seen[stale[start]] as usize,
            &mut lowered,
            observer,
        )?;
        for (row, distance) in stale.into_iter().zip(lowered) {
            seen[row] = count as u32;
            distances[row] = distance;
            ranks[row] = self.measure.rank(row, distance);
        }
        Ok(())
    }
}
