//! Centres that rows are compared with: every pair is bounded, few are computed.

use std::ops::Range;

use rayon::prelude::*;

use super::codes::{CodePanels, CodeRows, Head};
use super::int8::Tile;
use super::scan::places;
use super::shortlist::{Listing, Shortlist};
use super::{BLOCK_ROWS, GROUP, LANES, Metric, Rows, Simd};
use crate::{Observer, Result};

/// Pairs of a tile that are computed one by one rather than bounded again by all columns.
const FEW: usize = 24;

/// Vectors to be near to. The score of a row and a centre grows as they come nearer.
///
/// The score of a pair is bounded from above by 8-bit codes, see `int8.rs`, and computed by the canonical dot
/// product only where the bound does not rule it out.
#[derive(Debug)]
pub(crate) struct Centres {
    metric: Metric,
    simd: Simd,
    dim: usize,
    vectors: Vec<f32>,
    terms: Vec<(f32, f32)>,
    /// Length of the longest vector, in float32.
    longest: f32,
    codes: CodePanels,
}

/// Buffers of one thread.
#[derive(Debug, Default)]
pub(crate) struct Scratch {
    widened: Vec<f32>,
    codes: CodeRows,
    bounds: Vec<f32>,
}

/// Rows to be compared.
#[derive(Clone, Debug)]
pub(crate) struct Block<'a> {
    pub(crate) rows: &'a Rows<'a>,
    pub(crate) range: Range<usize>,
    /// Those of the rows in the range.
    pub(crate) squared_norms: &'a [f32],
}

/// A row and what its scores are at most.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Bounded<'a> {
    /// Place of the row in the range.
    pub(crate) row: usize,
    pub(crate) vector: &'a [f32],
    /// For each centre.
    pub(crate) bounds: &'a [f32],
}

impl Scratch {
    /// Widens and codes the rows of a block.
    fn load<'a>(
        &'a mut self,
        block: &'a Block,
        simd: Simd,
        head: Head,
    ) -> (&'a [f32], &'a CodeRows) {
        let rows = block.rows.block(block.range.clone(), &mut self.widened);
        self.codes
            .fill(simd, head, rows, block.rows.dim(), block.squared_norms);
        (rows, &self.codes)
    }
}

/// A row and a centre.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Pair {
    /// Place of the row in the range.
    pub(crate) row: usize,
    /// Number of the centre.
    pub(crate) centre: usize,
    /// Their dot product.
    pub(crate) dot: f32,
    /// How near they are, see [`Metric::score_terms`].
    pub(crate) score: f32,
}

impl Centres {
    pub(crate) fn new(dim: usize, metric: Metric, simd: Simd) -> Self {
        Self::with_head(dim, metric, simd, Head::NONE)
    }

    /// For rows with limits of `cosine` times their length, under the cosine metric.
    pub(crate) fn for_cosine(cosine: f64, dim: usize, simd: Simd) -> Self {
        Self::with_head(dim, Metric::Cosine, simd, Head::for_cosine(cosine, dim))
    }

    fn with_head(dim: usize, metric: Metric, simd: Simd, head: Head) -> Self {
        Self {
            metric,
            simd,
            dim,
            vectors: Vec::new(),
            terms: Vec::new(),
            longest: 0.0,
            codes: CodePanels::new(dim, head),
        }
    }

    pub(crate) fn push(&mut self, vector: &[f32], squared_norm: f32) {
        let (scale, offset) = self.metric.score_terms(squared_norm);
        self.vectors.extend_from_slice(vector);
        self.terms.push((scale, offset));
        self.longest = self.longest.max(squared_norm.sqrt());
        // A bound must hold for the rounded score, too.
        let lower = offset - 4.0 * f32::EPSILON * offset;
        self.codes
            .push(self.simd, vector, squared_norm, (scale, lower));
    }

    pub(crate) fn len(&self) -> usize {
        self.terms.len()
    }

    fn vector(&self, centre: usize) -> &[f32] {
        &self.vectors[centre * self.dim..][..self.dim]
    }

    /// Calls `visit` with some of the centres and their dot products with a row.
    pub(crate) fn multiply(
        &self,
        row: &[f32],
        centres: &[usize],
        mut visit: impl FnMut(usize, f32),
    ) {
        let (fours, rest) = centres.as_chunks::<4>();
        for four in fours {
            let dots = self.simd.dots(row, four.map(|centre| self.vector(centre)));
            four.iter()
                .zip(dots)
                .for_each(|(&centre, dot)| visit(centre, dot));
        }
        for &centre in rest {
            visit(centre, self.simd.dot(row, self.vector(centre)));
        }
    }

    /// Dot product and score of a row with a centre.
    fn compare(&self, row: &[f32], centre: usize) -> (f32, f32) {
        let (scale, offset) = self.terms[centre];
        let dot = self.simd.dot(row, self.vector(centre));
        (dot, dot * scale - offset)
    }

    /// Calls `visit` with every pair whose score is at least `limits[row]`; `visit` may raise the row's limit. The
    /// centres of a row come in no special order; those before the panel of `from` are left out. `skim` is called
    /// with every row, panel, and what the scores are at most, the highest of them first.
    fn contend(
        &self,
        from: usize,
        rows: &[f32],
        codes: &CodeRows,
        limits: &mut [f32],
        mut skim: impl FnMut(usize, usize, f32, &[f32; LANES]),
        mut visit: impl FnMut(Pair, &mut f32),
    ) {
        let mut bounds: Tile<f32> = [[0.0; LANES]; GROUP];
        for number in from / LANES..self.codes.panels() {
            let panel = self.codes.panel(number);
            let head = self.codes.panel_head(number);
            for (group, packed) in codes.groups().enumerate() {
                let first = group * GROUP;
                let mut highest = [f32::INFINITY; GROUP];
                if let Some(head) = head {
                    let group = packed.head(self.codes.head());
                    highest = self.simd.bound(group, head, &mut bounds);
                }
                if head.is_none() || reaching(&bounds, highest, &limits[first..]) > FEW {
                    highest = self.simd.bound(packed, panel, &mut bounds);
                }
                let members = limits[first..].iter_mut().zip(&bounds).zip(highest);
                for (place, ((limit, bounds), highest)) in members.enumerate() {
                    skim(first + place, number, highest, bounds);
                    if highest < *limit {
                        continue;
                    }
                    let row = first + place;
                    let vector = &rows[row * self.dim..][..self.dim];
                    let mut compare = |lane: usize, limit: &mut f32| {
                        let centre = number * LANES + lane;
                        let (dot, score) = self.compare(vector, centre);
                        if score >= *limit {
                            visit(
                                Pair {
                                    row,
                                    centre,
                                    dot,
                                    score,
                                },
                                limit,
                            );
                        }
                    };
                    // The most promising one first: it may raise the limit above the others' bounds.
                    let top = bounds
                        .iter()
                        .position(|&bound| bound == highest)
                        .unwrap_or(0);
                    compare(top, limit);
                    for (lane, &bound) in bounds.iter().enumerate() {
                        if bound >= *limit
                            && lane != top
                            && number * LANES + lane < self.terms.len()
                        {
                            compare(lane, limit);
                        }
                    }
                }
            }
        }
    }

    /// Lowers the distance of each row to that of the nearest centre, of those from the number on that `first` says
    /// for the row that a block begins with. Distances are those of [`Metric::wide_reduced`].
    pub(crate) fn approach(
        &self,
        rows: &Rows,
        squared_norms: &[f32],
        first: impl Fn(usize) -> usize + Sync,
        distances: &mut [f64],
        observer: &Observer,
    ) -> Result<()> {
        distances
            .par_chunks_mut(BLOCK_ROWS)
            .enumerate()
            .try_for_each_init(Scratch::default, |scratch, (number, distances)| {
                observer.check()?;
                let start = number * BLOCK_ROWS;
                let range = start..start + distances.len();
                let block = Block {
                    rows,
                    squared_norms: &squared_norms[range.clone()],
                    range,
                };
                self.approach_block(&block, scratch, first(start), distances);
                Ok(())
            })
    }

    fn approach_block(
        &self,
        block: &Block,
        scratch: &mut Scratch,
        from: usize,
        distances: &mut [f64],
    ) {
        let (rows, codes) = scratch.load(block, self.simd, self.codes.head());
        let limit = |(&distance, &norm): (&f64, &f32)| self.least_score(distance, norm);
        let mut limits: Vec<f32> = distances
            .iter()
            .zip(block.squared_norms)
            .map(limit)
            .collect();
        let mut contenders = Vec::new();
        self.contend(from, rows, codes, &mut limits, not_listed, |pair, limit| {
            *limit = limit.max(pair.score - self.slack(block.squared_norms[pair.row]));
            contenders.push(pair);
        });
        for pair in contenders {
            if pair.score >= limits[pair.row] {
                let vector = &rows[pair.row * self.dim..][..self.dim];
                let distance = &mut distances[pair.row];
                *distance = distance.min(self.distance(vector, pair.centre));
            }
        }
    }

    /// The least of `distance` and the distances of one row to the centres from `from` on.
    pub(crate) fn approach_one(
        &self,
        row: &[f32],
        squared_norm: f32,
        from: usize,
        distance: f64,
    ) -> f64 {
        let slack = self.slack(squared_norm);
        let mut limit = self.least_score(distance, squared_norm);
        let mut contenders = Vec::new();
        for centre in from..self.len() {
            let score = self.compare(row, centre).1;
            if score >= limit {
                limit = limit.max(score - slack);
                contenders.push((centre, score));
            }
        }
        contenders
            .into_iter()
            .filter(|&(_, score)| score >= limit)
            .map(|(centre, _)| self.distance(row, centre))
            .fold(distance, f64::min)
    }

    fn distance(&self, row: &[f32], centre: usize) -> f64 {
        self.metric
            .wide_reduced(self.simd, row, self.vector(centre))
    }

    /// By how much the score of a nearer centre may fall below that of another.
    fn slack(&self, squared_norm: f32) -> f32 {
        self.metric.slack(squared_norm, self.longest, self.dim)
    }

    /// A score that no centre nearer than `distance` falls below.
    fn least_score(&self, distance: f64, squared_norm: f32) -> f32 {
        self.metric.score(distance, squared_norm) - self.slack(squared_norm)
    }

    /// Finds the nearest centre of each row in `range` and its score; ties go to the lowest centre. The more of
    /// the labels that are there are right, the faster. Lists the centres that come closest, if there are `lists`.
    pub(crate) fn assign(
        &self,
        block: &Block,
        scratch: &mut Scratch,
        labels: &mut [u32],
        scores: &mut [f32],
        lists: Option<&mut [Shortlist]>,
    ) {
        let (rows, codes) = scratch.load(block, self.simd, self.codes.head());
        for ((vector, label), score) in rows.chunks_exact(self.dim).zip(&*labels).zip(&mut *scores)
        {
            *score = self.compare(vector, *label as usize).1;
        }
        let take = nearest(labels);
        match lists.map(Listing::new) {
            Some(mut lists) => {
                let list = |row, panel, highest, bounds: &_| lists.add(row, panel, highest, bounds);
                self.contend(0, rows, codes, scores, list, take);
            }
            None => self.contend(0, rows, codes, scores, not_listed, take),
        }
    }

    /// Like [`Self::assign`], but only the row's label and the centres on its list may be the nearest.
    pub(crate) fn assign_listed(
        &self,
        block: &Block,
        scratch: &mut Scratch,
        labels: &mut [u32],
        scores: &mut [f32],
        lists: &[Shortlist],
    ) {
        let rows = block.rows.block(block.range.clone(), &mut scratch.widened);
        let rows = rows.chunks_exact(self.dim).zip(lists);
        for ((vector, list), (label, best)) in rows.zip(labels.iter_mut().zip(scores)) {
            *best = self.compare(vector, *label as usize).1;
            let own = *label;
            for &centre in list.iter().filter(|&&centre| centre != own) {
                let score = self.compare(vector, centre as usize).1;
                if score > *best || score == *best && centre < *label {
                    (*best, *label) = (score, centre);
                }
            }
        }
    }

    /// Moves rows to those of the centres from `from` on that are nearer to them; scores must fit the labels.
    pub(crate) fn attract(
        &self,
        block: &Block,
        scratch: &mut Scratch,
        from: usize,
        labels: &mut [u32],
        scores: &mut [f32],
    ) {
        let (rows, codes) = scratch.load(block, self.simd, self.codes.head());
        self.contend(from, rows, codes, scores, not_listed, nearest(labels));
    }

    /// Calls `visit` with every pair of a row in `range` and a centre whose score is at least the row's limit,
    /// and with that limit, which it may raise.
    pub(crate) fn near(
        &self,
        block: &Block,
        scratch: &mut Scratch,
        limits: &mut [f32],
        visit: impl FnMut(Pair, &mut f32),
    ) {
        let (rows, codes) = scratch.load(block, self.simd, self.codes.head());
        self.contend(0, rows, codes, limits, not_listed, visit);
    }

    /// Calls `visit` with every row and what its scores with all centres are at most.
    pub(crate) fn bound(
        &self,
        block: &Block,
        scratch: &mut Scratch,
        mut visit: impl FnMut(Bounded),
    ) {
        let mut all = std::mem::take(&mut scratch.bounds);
        let (rows, codes) = scratch.load(block, self.simd, self.codes.head());
        let width = self.codes.panels() * LANES;
        all.resize(GROUP * width, 0.0);
        let mut vectors = rows.chunks_exact(self.dim).enumerate();
        let mut tile: Tile<f32> = [[0.0; LANES]; GROUP];
        for packed in codes.groups() {
            for number in 0..self.codes.panels() {
                self.simd.bound(packed, self.codes.panel(number), &mut tile);
                for (all, tile) in all.chunks_exact_mut(width).zip(&tile) {
                    all[number * LANES..][..LANES].copy_from_slice(tile);
                }
            }
            for ((row, vector), bounds) in vectors.by_ref().take(GROUP).zip(all.chunks_exact(width))
            {
                visit(Bounded {
                    row,
                    vector,
                    bounds: &bounds[..self.len()],
                });
            }
        }
        scratch.bounds = all;
    }

    /// Calls `visit` with every row of a block, centre and their dot product if their score is at least the row's
    /// limit, which `visit` may raise, or the centre's limit times the length of the row; with a few others, too.
    pub(crate) fn near_either(
        &self,
        block: &Block,
        scratch: &mut Scratch,
        limits: &mut [f32],
        own: &CentreLimits,
        mut visit: impl FnMut(usize, usize, f32, &mut f32),
    ) {
        let (rows, codes) = scratch.load(block, self.simd, self.codes.head());
        let mut bounds: Tile<f32> = [[0.0; LANES]; GROUP];
        let mut reached = Vec::with_capacity(LANES);
        for (number, own_limits) in own.lanes.as_chunks::<LANES>().0.iter().enumerate() {
            let panel = self.codes.panel(number);
            for (group, packed) in codes.groups().enumerate() {
                let highest = self.simd.bound(packed, panel, &mut bounds);
                for (place, bounds) in bounds.iter().enumerate() {
                    let row = group * GROUP + place;
                    let Some(limit) = limits.get_mut(row) else {
                        break;
                    };
                    let length = block.squared_norms[row].sqrt();
                    if highest[place] < limit.min(own.panels[number] * length) {
                        continue;
                    }
                    let lanes = self.simd.reaching(bounds, *limit, own_limits, length);
                    let centres = places(lanes).map(|lane| number * LANES + lane);
                    reached.clear();
                    reached.extend(centres.filter(|&centre| centre < self.len()));
                    let vector = &rows[row * self.dim..][..self.dim];
                    self.multiply(vector, &reached, |centre, dot| {
                        visit(row, centre, dot, limit)
                    });
                }
            }
        }
    }
}

/// For searches without shortlists.
fn not_listed(_row: usize, _panel: usize, _highest: f32, _bounds: &[f32; LANES]) {}

/// Keeps the nearest centre of each row and its score; ties go to the lowest centre.
fn nearest(labels: &mut [u32]) -> impl FnMut(Pair, &mut f32) {
    |pair, best| {
        let (label, centre) = (&mut labels[pair.row], pair.centre as u32);
        if pair.score > *best || centre < *label {
            (*best, *label) = (pair.score, centre);
        }
    }
}

/// Limits that centres set themselves.
pub(crate) struct CentreLimits {
    /// For each lane; lanes without a centre have infinity.
    lanes: Vec<f32>,
    /// The lowest of each panel.
    panels: Vec<f32>,
}

impl CentreLimits {
    pub(crate) fn new(mut limits: Vec<f32>) -> Self {
        limits.resize(limits.len().next_multiple_of(LANES), f32::INFINITY);
        let lowest = |panel: &[f32]| panel.iter().copied().fold(f32::INFINITY, f32::min);
        Self {
            panels: limits.chunks_exact(LANES).map(lowest).collect(),
            lanes: limits,
        }
    }
}

/// Counts the bounds of a tile that reach their row's limit.
fn reaching(bounds: &Tile<f32>, highest: [f32; GROUP], limits: &[f32]) -> usize {
    let rows = bounds.iter().zip(highest).zip(limits);
    rows.filter(|((_, highest), limit)| highest >= limit)
        .map(|((bounds, _), limit)| bounds.iter().filter(|&bound| bound >= limit).count())
        .sum()
}
