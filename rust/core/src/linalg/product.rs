//! Products of one vector with packed vectors.

use super::{BLOCK_K, LANES, Simd};

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

/// Computes the dot products of one vector with the vectors of one panel.
pub(crate) fn products_of_one(simd: Simd, vector: &[f32], panel: &[f32]) -> [f32; LANES] {
    let mut sums = [0.0; LANES];
    for (part, panel) in vector.chunks(BLOCK_K).zip(panel.chunks(BLOCK_K * LANES)) {
        simd.add_block(part, panel, &mut sums);
    }
    sums
}
