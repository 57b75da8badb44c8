//! Embedding matrices, and the one dot product that every decision rests on.
//!
//! # The canonical dot product
//!
//! The columns are cut into blocks of [`BLOCK_K`]. In a block the products are added one after another with
//! fused multiply-add in float32, starting from zero; the block sums are added in order. No instruction set,
//! blocking of rows or number of threads changes this order, so a dot product has the same bits wherever and
//! however it is computed, and `dot(x, y) == dot(y, x)`. Most pairs never need one: [`Centres`] bounds their
//! scores first.
//!
//! Its error is at most `(BLOCK_K + d / BLOCK_K) * 2^-24 * |x| |y|` (Higham, Accuracy and Stability of
//! Numerical Algorithms, section 3.1, with blocks).

mod centres;
mod int8;
mod kernel;
mod metric;
mod product;
mod rows;
mod sums;

use rayon::prelude::*;

pub(crate) use centres::{Centres, Scratch};
pub(crate) use int8::Coded;
pub use kernel::Simd;
pub(crate) use kernel::{BLOCK_K, GROUP, LANES};
pub use metric::Metric;
pub(crate) use metric::Norms;
pub(crate) use product::{Panels, products_of_one};
pub use rows::{Chunk, Rows};
pub(crate) use sums::Sums;

/// Rows of one block: a task's unit, small enough for the second-level cache.
pub(crate) const BLOCK_ROWS: usize = 16 * GROUP;

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

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    /// The definition, word for word.
    fn canonical(x: &[f32], y: &[f32]) -> f32 {
        let mut total = 0.0;
        for (x, y) in x.chunks(BLOCK_K).zip(y.chunks(BLOCK_K)) {
            let mut block = 0.0;
            for (&x, &y) in x.iter().zip(y) {
                block = f32::mul_add(x, y, block);
            }
            total += block;
        }
        total
    }

    proptest! {
        #[test]
        fn products_are_canonical_on_every_instruction_set(
            values in prop::collection::vec(-2.0f32..2.0, 300 * 80),
            dim in 1usize..300,
        ) {
            let values = &values[..dim * 80];
            let mut panels = Panels::new(dim);
            values.chunks_exact(dim).for_each(|row| panels.push(row));
            for simd in Simd::available() {
                let rows = Rows::new([Chunk::F32(values)], dim).unwrap().with_simd(simd);
                let norms = Norms::new(&rows, Metric::Euclidean, &crate::Observer::default()).unwrap();
                for (row, x) in values.chunks_exact(dim).enumerate() {
                    let expected: Vec<u32> =
                        values.chunks_exact(dim).map(|y| canonical(x, y).to_bits()).collect();
                    let alone: Vec<u32> = values.chunks_exact(dim).map(|y| simd.dot(x, y).to_bits()).collect();
                    prop_assert_eq!(&alone, &expected);
                    prop_assert_eq!(norms.squared[row].to_bits(), expected[row]);
                    let first = panels.iter().next().unwrap();
                    let one = products_of_one(simd, x, first).map(f32::to_bits);
                    prop_assert_eq!(&one[..], &expected[..LANES]);
                }
            }
        }
    }
}
