//! Exact greedy k-center with few passes over the data.
//!
//! Gonzalez, Clustering to minimize the maximum intercluster distance (TCS 38, 1985): take the row that is
//! farthest from all centres so far, again and again. Here a pool of the farthest rows is kept up to date with
//! every new centre, and the other rows only now and then, with all centres since, by one matrix product.
//! Distances only shrink, so the farthest pool row is the farthest of all for as long as it is not nearer than
//! any row outside the pool was at the last pass.

use std::cmp::Ordering;

use rayon::prelude::*;

use crate::linalg::{BLOCK_ROWS, Block, Centres, Metric, Norms, Rows, Scratch, Sums};
use crate::{Error, Observer, Result};

/// Rows in the pool: as many as stay in the second- and third-level cache.
const POOL_ROWS: usize = 4096;

/// Rows of the pool that one task brings up to date.
const TASK_ROWS: usize = 512;

/// Rank of a row that is a centre already.
const CHOSEN: f32 = -1.0;

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
        cover.radii.push(options.metric.distance(rank.max(0.0)));
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
    let Some(weights) = options.weights else {
        return Ok(());
    };
    if weights.len() != n {
        return Err(Error::Argument(format!(
            "weights: {} were given for {n} rows; give one for each row",
            weights.len()
        )));
    }
    // Squares of weights are compared under the Euclidean metric.
    let allowed = |weight: &f32| *weight >= 0.0 && (weight * weight).is_finite();
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
    let mut scores = vec![f32::NEG_INFINITY; rows.len()];
    raise_all(rows, norms, &centre, &mut scores, observer)?;
    let distance = |row: usize| metric.reduced(scores[row], norms.squared[row]);
    let nearest =
        (0..rows.len()).min_by(|&left, &right| distance(left).total_cmp(&distance(right)));
    Ok(nearest.unwrap_or(0))
}

fn raise_all(
    rows: &Rows,
    norms: &Norms,
    centres: &Centres,
    scores: &mut [f32],
    observer: &Observer,
) -> Result<()> {
    scores
        .par_chunks_mut(BLOCK_ROWS)
        .enumerate()
        .try_for_each_init(Scratch::default, |scratch, (block, scores)| {
            observer.check()?;
            let first = block * BLOCK_ROWS;
            let range = first..first + scores.len();
            let block = Block {
                rows,
                squared_norms: &norms.squared[range.clone()],
                range,
            };
            centres.raise(&block, scratch, scores);
            Ok(())
        })
}

struct Greedy<'a> {
    rows: &'a Rows<'a>,
    norms: &'a Norms,
    metric: Metric,
    weights: Option<&'a [f32]>,
    chosen: Vec<bool>,
    /// Score of every row for its nearest centre, as of the last pass.
    scores: Vec<f32>,
    /// Centres since the last pass.
    pending: Centres,
    pool: Pool,
}

/// The rows that ranked highest at the last pass, ascending, and kept up to date since.
struct Pool {
    rows: Vec<usize>,
    /// Row-major.
    vectors: Vec<f32>,
    scores: Vec<f32>,
    ranks: Vec<f32>,
    /// Rank and number of the highest row outside, at the last pass.
    outside: Option<(f32, usize)>,
}

impl<'a> Greedy<'a> {
    fn new(rows: &'a Rows<'a>, norms: &'a Norms, options: &KCenterOptions<'a>) -> Self {
        let pool = Pool {
            rows: Vec::new(),
            vectors: Vec::new(),
            scores: Vec::new(),
            ranks: Vec::new(),
            outside: None,
        };
        Self {
            rows,
            norms,
            metric: options.metric,
            weights: options.weights,
            chosen: vec![false; rows.len()],
            scores: vec![f32::NEG_INFINITY; rows.len()],
            pending: Centres::new(rows.dim(), options.metric, rows.simd()),
            pool,
        }
    }

    /// Takes a centre, and brings the pool up to date with it.
    fn add(&mut self, row: usize) {
        let mut vector = vec![0.0; self.rows.dim()];
        self.rows.copy_row(row, &mut vector);
        self.pending.push(&vector, self.norms.squared[row]);
        self.chosen[row] = true;
        let (scale, offset) = self.metric.score_terms(self.norms.squared[row]);
        let (simd, dim) = (self.rows.simd(), self.rows.dim());
        let pool = self.pool.vectors.par_chunks(TASK_ROWS * dim);
        let tasks = self.pool.scores.par_chunks_mut(TASK_ROWS).zip(pool);
        tasks.for_each(|(scores, rows)| {
            for (score, row) in scores.iter_mut().zip(rows.chunks_exact(dim)) {
                *score = score.max(simd.dot(row, &vector) * scale - offset);
            }
        });
        for (place, &row) in self.pool.rows.iter().enumerate() {
            self.pool.ranks[place] = self.rank(row, self.pool.scores[place]);
        }
    }

    /// What rows are compared by: distance times weight, as its square under the Euclidean metric.
    fn rank(&self, row: usize, score: f32) -> f32 {
        if self.chosen[row] {
            return CHOSEN;
        }
        let distance = self.metric.reduced(score, self.norms.squared[row]);
        match (self.weights, self.metric) {
            (None, _) => distance,
            (Some(weights), Metric::Euclidean) => distance * (weights[row] * weights[row]),
            (Some(weights), Metric::Cosine) => distance * weights[row],
        }
    }

    /// Rank and number of the row that is next.
    fn farthest(&mut self, observer: &Observer) -> Result<(f32, usize)> {
        observer.check()?;
        if let Some(found) = self.pool.farthest() {
            return Ok(found);
        }
        self.update(observer)?;
        // After a pass the farthest row of the pool is the farthest of all.
        Ok(self.pool.farthest().unwrap_or((CHOSEN, 0)))
    }

    /// Brings all rows up to date and fills the pool anew.
    fn update(&mut self, observer: &Observer) -> Result<()> {
        raise_all(
            self.rows,
            self.norms,
            &self.pending,
            &mut self.scores,
            observer,
        )?;
        self.pending.clear();
        let ranks: Vec<f32> = self
            .scores
            .par_iter()
            .enumerate()
            .map(|(row, &score)| self.rank(row, score))
            .collect();
        let mut order: Vec<usize> = (0..ranks.len()).collect();
        let size = POOL_ROWS.min(order.len());
        let by_rank =
            |left: &usize, right: &usize| before((ranks[*left], *left), (ranks[*right], *right));
        if size < order.len() {
            order.select_nth_unstable_by(size, by_rank);
            self.pool.outside = Some((ranks[order[size]], order[size]));
            order.truncate(size);
        } else {
            self.pool.outside = None;
        }
        order.sort_unstable();
        self.pool.fill(order, self.rows, &self.scores, &ranks);
        Ok(())
    }
}

impl Pool {
    fn fill(&mut self, members: Vec<usize>, rows: &Rows, scores: &[f32], ranks: &[f32]) {
        self.vectors.resize(members.len() * rows.dim(), 0.0);
        for (&row, vector) in members
            .iter()
            .zip(self.vectors.chunks_exact_mut(rows.dim()))
        {
            rows.copy_row(row, vector);
        }
        self.scores = members.iter().map(|&row| scores[row]).collect();
        self.ranks = members.iter().map(|&row| ranks[row]).collect();
        self.rows = members;
    }

    /// The highest row, if it surely is the highest of all.
    fn farthest(&self) -> Option<(f32, usize)> {
        let ranked = self.ranks.iter().copied().zip(self.rows.iter().copied());
        let best = ranked.min_by(|left, right| before(*left, *right))?;
        match self.outside {
            Some(outside) if before(outside, best) == Ordering::Less => None,
            _ => Some(best),
        }
    }
}

/// Orders rows by rank, highest first, then by number.
fn before(left: (f32, usize), right: (f32, usize)) -> Ordering {
    right.0.total_cmp(&left.0).then(left.1.cmp(&right.1))
}
