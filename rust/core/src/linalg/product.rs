//! Products of rows with packed vectors, block by block.

use std::ops::Range;

use super::kernel::GROUP;
use super::{BLOCK_K, LANES, Rows, Simd};

/// Rows of one block: their products with a panel (24 KiB) stay in the first-level cache's neighbourhood.
pub(crate) const BLOCK_ROWS: usize = 16 * GROUP;

/// Vectors packed for the kernel: panels of [`LANES`], interleaved by column, the last one filled with zeros.
#[derive(Debug)]
pub(crate) struct Panels {
    values: Vec<f32>,
    dim: usize,
    len: usize,
}

impl Panels {
    pub(crate) fn new(dim: usize) -> Self {
        Self {
            values: Vec::new(),
            dim,
            len: 0,
        }
    }

    pub(crate) fn clear(&mut self) {
        self.values.clear();
        self.len = 0;
    }

    pub(crate) fn push(&mut self, vector: &[f32]) {
        let size = self.dim * LANES;
        let (panel, lane) = (self.len / LANES, self.len % LANES);
        if lane == 0 {
            self.values.resize((panel + 1) * size, 0.0);
        }
        let lanes = self.values[panel * size..].chunks_exact_mut(LANES);
        for (lanes, &value) in lanes.zip(vector) {
            lanes[lane] = value;
        }
        self.len += 1;
    }

    /// The panels in order.
    pub(crate) fn iter(&self) -> impl ExactSizeIterator<Item = &[f32]> {
        self.values.chunks_exact(self.dim * LANES)
    }
}

/// Rows packed for the kernel: groups of [`GROUP`], interleaved by column, the last one filled with zeros.
#[derive(Debug, Default)]
pub(crate) struct Packed {
    values: Vec<f32>,
    dim: usize,
    len: usize,
}

impl Packed {
    pub(crate) fn new(rows: &[f32], dim: usize) -> Self {
        let mut packed = Self::default();
        packed.fill(rows, dim);
        packed
    }

    fn fill(&mut self, rows: &[f32], dim: usize) {
        (self.dim, self.len) = (dim, rows.len() / dim);
        self.values.clear();
        self.values
            .resize(self.len.div_ceil(GROUP) * dim * GROUP, 0.0);
        let groups = self.values.chunks_exact_mut(dim * GROUP);
        for (group, packed) in rows.chunks(dim * GROUP).zip(groups) {
            for (place, row) in group.chunks_exact(dim).enumerate() {
                for (packed, &value) in packed.chunks_exact_mut(GROUP).zip(row) {
                    packed[place] = value;
                }
            }
        }
    }

    /// Computes the dot products with the vectors of a panel: one line of [`LANES`] of them for each row.
    pub(crate) fn multiply(&self, simd: Simd, panel: &[f32], tile: &mut Vec<f32>) {
        tile.clear();
        tile.resize(self.len.div_ceil(GROUP) * GROUP * LANES, 0.0);
        for first in (0..self.dim).step_by(BLOCK_K) {
            let last = self.dim.min(first + BLOCK_K);
            let part = &panel[first * LANES..last * LANES];
            let groups = self.values.chunks_exact(self.dim * GROUP);
            for (group, sums) in groups.zip(tile.chunks_exact_mut(GROUP * LANES)) {
                simd.add_block(&group[first * GROUP..last * GROUP], part, sums);
            }
        }
        tile.truncate(self.len * LANES);
    }
}

/// Computes the dot products of one vector with the vectors of one panel.
pub(crate) fn products_of_one(simd: Simd, vector: &[f32], panel: &[f32]) -> [f32; LANES] {
    let mut sums = [0.0; LANES];
    for (part, panel) in vector.chunks(BLOCK_K).zip(panel.chunks(BLOCK_K * LANES)) {
        simd.add_block_of_one(part, panel, &mut sums);
    }
    sums
}

/// Computes the squared norms of at most [`LANES`] rows, with the same bits as their dot products.
pub(crate) fn squared_norms(
    rows: &Rows,
    range: Range<usize>,
    panels: &mut Panels,
    buffer: &mut Vec<f32>,
    out: &mut [f32],
) {
    panels.clear();
    for row in rows.block(range, buffer).chunks_exact(rows.dim()) {
        panels.push(row);
    }
    let mut sums = [0.0; LANES];
    for panel in panels.iter() {
        for block in panel.chunks(BLOCK_K * LANES) {
            rows.simd().add_squares(block, &mut sums);
        }
    }
    out.copy_from_slice(&sums[..out.len()]);
}
