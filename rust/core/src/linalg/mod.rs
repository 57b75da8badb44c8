//! Embedding matrices, and the one dot product that every decision rests on.
//!
//! # The canonical dot product
//!
//! The columns are cut into blocks of [`BLOCK_K`]. In a block the products are added one after another with
//! fused multiply-add in float32, starting from zero; the block sums are added in order. No instruction set,
//! blocking of rows or number of threads changes this order, so a dot product has the same bits wherever and
//! however it is computed, and `dot(x, y) == dot(y, x)`. The matrix kernel keeps one accumulator for each
//! output, which *is* this order, so a full matrix product needs no second look at near-ties.
//!
//! Its error is at most `(BLOCK_K + d / BLOCK_K) * 2^-24 * |x| |y|` (Higham, Accuracy and Stability of
//! Numerical Algorithms, section 3.1, with blocks).

mod centres;
mod kernel;
mod metric;
mod product;
mod rows;
mod sums;

use rayon::prelude::*;

pub(crate) use centres::Centres;
pub(crate) use kernel::BLOCK_K;
pub(crate) use kernel::LANES;
pub use kernel::Simd;
pub use metric::Metric;
pub(crate) use metric::Norms;
pub(crate) use product::{BLOCK_ROWS, Packed, Panels, Scratch, products, products_of_one};
pub use rows::{Chunk, Rows};
pub(crate) use sums::Sums;

/// Sums `value(0) + ... + value(len - 1)` in an order that does not depend on the number of threads.
pub(crate) fn ordered_sum(len: usize, value: impl Fn(usize) -> f64 + Sync) -> f64 {
    const BLOCK: usize = 4096;
    let blocks: Vec<f64> = (0..len.div_ceil(BLOCK))
        .into_par_iter()
        .map(|block| {
            (block * BLOCK..len.min((block + 1) * BLOCK))
                .map(&value)
                .sum()
        })
        .collect();
    blocks.into_iter().sum()
}
