//! Centres that rows are compared with: every pair is bounded, few are computed.

use std::ops::Range;

use super::int8::{CodePanels, CodeRows, PanelTerms, Terms, Tile, rounding};
use super::kernel::GROUP;
use super::{LANES, Metric, Rows, Simd};

/// Vectors to be near to. The score of a row and a centre grows as they come nearer.
///
/// A pair goes through up to three stages: an upper bound of its score from 8-bit codes; a dot product in
/// float32, in any order; and, where the exact score matters, the canonical dot product. So results are those
/// of the canonical dot product alone, see `int8.rs` for the bounds.
#[derive(Debug)]
pub(crate) struct Centres {
    metric: Metric,
    simd: Simd,
    dim: usize,
    vectors: Vec<f32>,
    terms: Vec<(f32, f32)>,
    codes: CodePanels,
    rounding: f32,
}

/// Buffers of one thread.
#[derive(Debug, Default)]
pub(crate) struct Scratch {
    widened: Vec<f32>,
    codes: CodeRows,
    contenders: Vec<Contender>,
    limits: Vec<f32>,
}

/// A pair that may have a score of at least its row's limit.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Contender {
    /// Place of the row in the range.
    pub(crate) row: usize,
    /// Number of the centre.
    pub(crate) centre: usize,
    /// Bounds of the score.
    pub(crate) score: (f32, f32),
}

impl Centres {
    pub(crate) fn new(dim: usize, metric: Metric, simd: Simd) -> Self {
        Self {
            metric,
            simd,
            dim,
            vectors: Vec::new(),
            terms: Vec::new(),
            codes: CodePanels::new(dim),
            rounding: rounding(dim),
        }
    }

    pub(crate) fn clear(&mut self) {
        self.vectors.clear();
        self.terms.clear();
        self.codes.clear();
    }

    pub(crate) fn push(&mut self, vector: &[f32], squared_norm: f32) {
        let (scale, offset) = self.metric.score_terms(squared_norm);
        self.vectors.extend_from_slice(vector);
        self.terms.push((scale, offset));
        // A bound must hold for the rounded score, too.
        let lower = offset - 4.0 * f32::EPSILON * offset;
        self.codes.push(self.simd, vector, squared_norm, (scale, lower));
    }

    fn vector(&self, centre: usize) -> &[f32] {
        &self.vectors[centre * self.dim..][..self.dim]
    }

    /// The canonical dot product.
    pub(crate) fn dot(&self, row: &[f32], centre: usize) -> f32 {
        self.simd.dot(row, self.vector(centre))
    }

    /// The score by the canonical dot product.
    fn score(&self, row: &[f32], centre: usize) -> f32 {
        let (scale, offset) = self.terms[centre];
        self.dot(row, centre) * scale - offset
    }

    /// Bounds of the score from below and above.
    fn bounds(&self, row: &[f32], terms: Terms, centre: usize, panel: &PanelTerms) -> (f32, f32) {
        let (scale, offset) = self.terms[centre];
        let score = self.simd.fast_dot(row, self.vector(centre)) * scale - offset;
        let error = 3.0 * self.rounding * terms.length * panel.length[centre % LANES] + 4.0 * f32::EPSILON * offset;
        (score - error, score + error)
    }

    /// Calls `visit` with every pair of a row in `range` and a centre whose score may reach `limits[row]`;
    /// `visit` may raise the row's limit. Rows come in groups, the centres of each row in no special order.
    fn contend(
        &self,
        rows: &[f32],
        codes: &CodeRows,
        limits: &mut [f32],
        mut visit: impl FnMut(Contender, &mut f32),
    ) {
        let mut bounds: Tile<f32> = [[0.0; LANES]; GROUP];
        for (number, panel) in self.codes.iter().enumerate() {
            for (group, packed) in codes.groups().enumerate() {
                let highest = self.simd.bound(packed, panel, &mut bounds);
                let first = group * GROUP;
                let members = limits[first..].iter_mut().zip(&bounds).zip(highest).take(GROUP);
                for (place, ((limit, bounds), highest)) in members.enumerate() {
                    if highest < *limit {
                        continue;
                    }
                    let row = first + place;
                    let vector = &rows[row * self.dim..][..self.dim];
                    let mut compare = |lane: usize, limit: &mut f32| {
                        let centre = number * LANES + lane;
                        let score = self.bounds(vector, codes.terms(row), centre, panel.1);
                        if score.1 >= *limit {
                            visit(Contender { row, centre, score }, limit);
                        }
                    };
                    // The most promising one first: it may raise the limit above the others' bounds.
                    let top = bounds.iter().position(|&bound| bound == highest).unwrap_or(0);
                    compare(top, limit);
                    for (lane, &bound) in bounds.iter().enumerate() {
                        if bound >= *limit && lane != top {
                            compare(lane, limit);
                        }
                    }
                }
            }
        }
    }

    /// Raises `best` to the highest score of each row in `range`.
    pub(crate) fn raise(&self, rows: &Rows, range: Range<usize>, squared_norms: &[f32], scratch: &mut Scratch, best: &mut [f32]) {
        let Scratch { widened, codes, contenders, limits } = scratch;
        let block = rows.block(range.clone(), widened);
        codes.fill(self.simd, block, self.dim, squared_norms);
        contenders.clear();
        limits.clear();
        limits.extend_from_slice(best);
        self.contend(block, codes, limits, |contender, limit| {
            *limit = limit.max(contender.score.0);
            contenders.push(contender);
        });
        for contender in contenders.iter().filter(|contender| contender.score.1 >= limits[contender.row]) {
            let row = contender.row;
            let score = self.score(&block[row * self.dim..][..self.dim], contender.centre);
            best[row] = best[row].max(score);
        }
    }

    /// Finds the nearest centre of each row in `range` and its score; ties go to the lowest centre. The labels
    /// that are there make it faster the more of them are right.
    pub(crate) fn assign(
        &self,
        rows: &Rows,
        range: Range<usize>,
        squared_norms: &[f32],
        scratch: &mut Scratch,
        labels: &mut [u32],
        scores: &mut [f32],
    ) {
        let Scratch { widened, codes, contenders, limits } = scratch;
        let block = rows.block(range.clone(), widened);
        codes.fill(self.simd, block, self.dim, squared_norms);
        let vector = |row: usize| &block[row * self.dim..][..self.dim];
        contenders.clear();
        limits.clear();
        limits.extend(labels.iter().enumerate().map(|(row, &label)| self.score(vector(row), label as usize)));
        self.contend(block, codes, limits, |contender, limit| {
            *limit = limit.max(contender.score.0);
            contenders.push(contender);
        });
        scores.fill(f32::NEG_INFINITY);
        for contender in contenders.iter().filter(|contender| contender.score.1 >= limits[contender.row]) {
            let (row, centre) = (contender.row, contender.centre);
            let score = self.score(vector(row), centre);
            if score > scores[row] || (score == scores[row] && (centre as u32) < labels[row]) {
                (scores[row], labels[row]) = (score, centre as u32);
            }
        }
    }

    /// Calls `visit` with every pair of a row in `range` and a centre whose score may reach `limit(row)`, and with
    /// the row's vector. Rows are named by their places in the range.
    pub(crate) fn near(
        &self,
        rows: &Rows,
        range: Range<usize>,
        squared_norms: &[f32],
        scratch: &mut Scratch,
        limit: impl Fn(usize) -> f32,
        mut visit: impl FnMut(Contender, &[f32]),
    ) {
        let Scratch { widened, codes, limits, .. } = scratch;
        let count = range.len();
        let block = rows.block(range, widened);
        codes.fill(self.simd, block, self.dim, squared_norms);
        limits.clear();
        limits.extend((0..count).map(limit));
        self.contend(block, codes, limits, |contender, _| {
            visit(contender, &block[contender.row * self.dim..][..self.dim]);
        });
    }
}
