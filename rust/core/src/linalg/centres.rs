//! Centres that rows are compared with: packed vectors and the terms that turn dot products into scores.

use std::ops::Range;

use super::{LANES, Metric, Panels, Rows, Scratch, products};

/// Vectors to be near to. The score of a row and a centre grows as they come nearer.
#[derive(Debug)]
pub(crate) struct Centres {
    panels: Panels,
    metric: Metric,
    /// For each lane of each panel; lanes without a centre have the score minus infinity.
    scale: Vec<f32>,
    offset: Vec<f32>,
}

impl Centres {
    pub(crate) fn new(dim: usize, metric: Metric) -> Self {
        Self {
            panels: Panels::new(dim),
            metric,
            scale: Vec::new(),
            offset: Vec::new(),
        }
    }

    pub(crate) fn len(&self) -> usize {
        self.panels.len()
    }

    pub(crate) fn clear(&mut self) {
        self.panels.clear();
        self.scale.clear();
        self.offset.clear();
    }

    pub(crate) fn push(&mut self, vector: &[f32], squared_norm: f32) {
        let lane = self.len();
        if lane.is_multiple_of(LANES) {
            self.scale.resize(lane + LANES, 0.0);
            self.offset.resize(lane + LANES, f32::INFINITY);
        }
        (self.scale[lane], self.offset[lane]) = self.metric.score_terms(squared_norm);
        self.panels.push(vector);
    }

    /// Calls `visit(panel, row of the range, scores)` for each panel in order.
    fn scores(
        &self,
        rows: &Rows,
        range: Range<usize>,
        scratch: &mut Scratch,
        mut visit: impl FnMut(usize, usize, &[f32; LANES]),
    ) {
        products(rows, range, &self.panels, scratch, |panel, tile| {
            let lanes = panel * LANES..(panel + 1) * LANES;
            let (scale, offset) = (&self.scale[lanes.clone()], &self.offset[lanes]);
            let mut scores = [0.0; LANES];
            for (row, dots) in tile.chunks_exact(LANES).enumerate() {
                for lane in 0..LANES {
                    scores[lane] = dots[lane] * scale[lane] - offset[lane];
                }
                visit(panel, row, &scores);
            }
        });
    }

    /// Raises `best` to the highest score of each row in `range`.
    pub(crate) fn raise(
        &self,
        rows: &Rows,
        range: Range<usize>,
        scratch: &mut Scratch,
        best: &mut [f32],
    ) {
        self.scores(rows, range, scratch, |_, row, scores| {
            best[row] = best[row].max(highest(scores));
        });
    }

    /// Like [`Self::raise`], and names the centre: `first_label` is that of the first one here. Ties go to
    /// the label that is already there, then to the lowest.
    pub(crate) fn raise_labelled(
        &self,
        rows: &Rows,
        range: Range<usize>,
        scratch: &mut Scratch,
        first_label: u32,
        best: &mut [f32],
        labels: &mut [u32],
    ) {
        self.scores(rows, range, scratch, |panel, row, scores| {
            let score = highest(scores);
            if score > best[row] {
                best[row] = score;
                let lane = scores.iter().position(|&other| other == score);
                labels[row] = first_label + (panel * LANES + lane.unwrap_or(0)) as u32;
            }
        });
    }
}

/// The maximum, in strides that the compiler turns into vector instructions.
fn highest(scores: &[f32; LANES]) -> f32 {
    let mut strides = [f32::NEG_INFINITY; 16];
    for stride in scores.chunks_exact(16) {
        for (best, &score) in strides.iter_mut().zip(stride) {
            *best = if score > *best { score } else { *best };
        }
    }
    strides.into_iter().fold(f32::NEG_INFINITY, f32::max)
}
