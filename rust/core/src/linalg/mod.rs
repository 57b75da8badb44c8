//! Embedding matrices, and the one dot product that every decision rests on.
//!
//! # The canonical dot product
//!
//! Column `i` belongs to partial sum `i mod 64`. Each partial sum adds its products one after another with fused
//! multiply-add in float32, starting from zero; then the upper half of the sums is added to the lower half, until
//! one is left. No instruction set or number of threads changes this order, so a dot product has the same bits
//! wherever it is computed, and `dot(x, y) == dot(y, x)`. Most pairs never need one: [`Centres`] bounds their
//! scores first.
//!
//! Its error is at most `(d / 64 + 7) * 2^-24 * |x| |y|` (Higham, Accuracy and Stability of Numerical Algorithms,
//! section 3.1).
//!
//! Where the order of nearly equal distances is what users get (k-center), pairs that this error leaves undecided are
//! decided in float64, by [`Metric::wide_reduced`], which no instruction set changes either.

mod centres;
mod codes;
mod int8;
mod kernel;
mod metric;
#[cfg(target_arch = "aarch64")]
mod neon;
mod rows;
mod scan;
mod shortlist;
mod sums;

use rayon::prelude::*;

pub(crate) use centres::{Block, Bounded, CentreLimits, Centres, Scratch};
pub(crate) use codes::Coded;
pub use kernel::Simd;
pub(crate) use kernel::{GROUP, LANES};
pub use metric::Metric;
pub(crate) use metric::Norms;
pub use rows::{Chunk, Rows};
pub(crate) use shortlist::Shortlist;
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
        let mut sums = [0.0f32; 64];
        for (column, (&x, &y)) in x.iter().zip(y).enumerate() {
            sums[column % 64] = f32::mul_add(x, y, sums[column % 64]);
        }
        for half in [32, 16, 8, 4, 2, 1] {
            for sum in 0..half {
                sums[sum] += sums[sum + half];
            }
        }
        sums[0]
    }

    fn exact(x: &[f32], y: &[f32]) -> f64 {
        x.iter()
            .zip(y)
            .map(|(&x, &y)| f64::from(x) * f64::from(y))
            .sum()
    }

    #[test]
    fn every_float16_is_widened_exactly() {
        // Three more than whole registers.
        let values: Vec<half::f16> = (0..=u16::MAX)
            .chain(0..3)
            .map(half::f16::from_bits)
            .collect();
        for simd in Simd::available() {
            let mut found = vec![0.0; values.len()];
            simd.widen(&values, &mut found);
            for (value, found) in values.iter().zip(found) {
                assert!(
                    value.to_f32().to_bits() == found.to_bits() || value.is_nan() && found.is_nan()
                );
            }
        }
    }

    proptest! {
        #[test]
        fn dot_products_are_canonical_on_every_instruction_set(
            values in prop::collection::vec(-2.0f32..2.0, 2 * 300),
            dim in 1usize..300,
        ) {
            let (x, y) = (&values[..dim], &values[dim..2 * dim]);
            let expected = canonical(x, y);
            for simd in Simd::available() {
                prop_assert_eq!(simd.dot(x, y).to_bits(), expected.to_bits());
                let pairs = simd.dots(x, [y, x, y, x]).map(f32::to_bits);
                let squared = canonical(x, x);
                prop_assert_eq!(pairs, [expected, squared, expected, squared].map(f32::to_bits));
            }
            let wide = Simd::Baseline.wide_dot(x, y);
            let apart = Simd::Baseline.wide_squared_distance(x, y);
            for simd in Simd::available() {
                prop_assert_eq!(simd.wide_dot(x, y).to_bits(), wide.to_bits());
                prop_assert_eq!(simd.wide_squared_distance(x, y).to_bits(), apart.to_bits());
            }
            let length = (exact(x, x) * exact(y, y)).sqrt();
            prop_assert!((wide - exact(x, y)).abs() <= 1e-14 * length);
            let squares = x.iter().zip(y).map(|(&x, &y)| (f64::from(x) - f64::from(y)).powi(2));
            prop_assert!((apart - squares.sum::<f64>()).abs() <= 1e-13 * apart);
            let bound = (dim as f64 / 64.0 + 7.0) * 2f64.powi(-24) * length;
            prop_assert!((f64::from(expected) - exact(x, y)).abs() <= bound);
        }

        #[test]
        fn no_pair_above_a_limit_is_missed(
            values in prop::collection::vec(-1.0f32..1.0, 80 * 130),
            dim in 1usize..130,
            exponent in -4i32..12,
            metric in prop::sample::select(vec![Metric::Euclidean, Metric::Cosine]),
            cosine in 0.5..1.0,
        ) {
            // Rows of very different lengths, zero among them where the metric allows it.
            let mut values = values[..dim * 80].to_vec();
            for (number, row) in values.chunks_exact_mut(dim).enumerate() {
                let scale = 10f32.powi(exponent - number as i32 % 10);
                row.iter_mut().for_each(|value| *value = *value * scale + f32::from(metric == Metric::Cosine) * scale);
            }
            let squared: Vec<f32> = values.chunks_exact(dim).map(|row| canonical(row, row)).collect();
            for simd in Simd::available() {
                let rows = Rows::new([Chunk::F32(&values)], dim).unwrap().with_simd(simd);
                let mut centres = match metric {
                    Metric::Euclidean => Centres::new(dim, metric, simd),
                    Metric::Cosine => Centres::for_cosine(cosine, dim, simd),
                };
                for (row, &norm) in values.chunks_exact(dim).zip(&squared) {
                    centres.push(row, norm);
                }
                let score = |row: &[f32], centre: usize| {
                    let (scale, offset) = metric.score_terms(squared[centre]);
                    canonical(row, &values[centre * dim..][..dim]) * scale - offset
                };
                // The limit of each row is the median of its scores.
                let mut limits = Vec::new();
                let mut expected = Vec::new();
                for (row, x) in values.chunks_exact(dim).enumerate() {
                    let mut scores: Vec<f32> = (0..80).map(|centre| score(x, centre)).collect();
                    let unsorted = scores.clone();
                    scores.sort_unstable_by(f32::total_cmp);
                    limits.push(scores[40]);
                    for (centre, score) in unsorted.into_iter().enumerate().filter(|(_, score)| *score >= scores[40]) {
                        expected.push((row, centre, score.to_bits()));
                    }
                }
                let mut found = Vec::new();
                let block = Block { rows: &rows, range: 0..80, squared_norms: &squared };
                centres.near(&block, &mut Scratch::default(), &mut limits, |pair, _| {
                    found.push((pair.row, pair.centre, pair.score.to_bits()));
                });
                found.sort_unstable();
                prop_assert!(found == expected, "{simd:?}: pairs are missing or too many");
            }
        }

        #[test]
        fn every_search_finds_the_nearest_centre_that_it_may_find(
            values in prop::collection::vec(-1.0f32..1.0, 150 * 9),
            count in 1usize..150,
            metric in prop::sample::select(vec![Metric::Euclidean, Metric::Cosine]),
        ) {
            let dim = 9;
            let squared: Vec<f32> = values.chunks_exact(dim).map(|row| canonical(row, row)).collect();
            let score = |row: usize, centre: usize| {
                let (scale, offset) = metric.score_terms(squared[centre]);
                canonical(&values[row * dim..][..dim], &values[centre * dim..][..dim]) * scale - offset
            };
            let best = |row: usize, centres: &[u32]| {
                let ranked = centres.iter().map(|&centre| (score(row, centre as usize), std::cmp::Reverse(centre)));
                ranked.max_by(|left, right| left.0.total_cmp(&right.0).then(left.1.cmp(&right.1))).unwrap().1.0
            };
            let all: Vec<u32> = (0..count as u32).collect();
            let expected: Vec<u32> = (0..150).map(|row| best(row, &all)).collect();
            for simd in Simd::available() {
                let rows = Rows::new([Chunk::F32(&values)], dim).unwrap().with_simd(simd);
                let block = Block { rows: &rows, range: 0..150, squared_norms: &squared };
                let mut scratch = Scratch::default();
                let mut centres = Centres::new(dim, metric, simd);
                let mut from = 0;
                let (mut grown, mut grown_scores) = (vec![0; 150], vec![f32::NEG_INFINITY; 150]);
                for (centre, vector) in values.chunks_exact(dim).enumerate().take(count) {
                    centres.push(vector, squared[centre]);
                    if centre % 37 == 0 || centre + 1 == count {
                        centres.attract(&block, &mut scratch, from, &mut grown, &mut grown_scores);
                        from = centre + 1;
                    }
                }
                prop_assert_eq!(&grown, &expected);
                let (mut labels, mut scores) = (vec![0; 150], vec![0.0; 150]);
                let mut lists = vec![Shortlist::default(); 150];
                centres.assign(&block, &mut scratch, &mut labels, &mut scores, Some(&mut lists));
                prop_assert_eq!(&labels, &expected);
                prop_assert_eq!(&scores, &grown_scores);
                for list in &lists {
                    prop_assert!(list.iter().all(|&centre| (centre as usize) < count));
                    let listed = all.iter().filter(|centre| list.contains(centre)).count();
                    prop_assert_eq!(listed, count.min(list.len()));
                }
                let mut listed = vec![0; 150];
                centres.assign_listed(&block, &mut scratch, &mut listed, &mut scores, &lists);
                for (row, label) in listed.into_iter().enumerate() {
                    let mut centres = lists[row].to_vec();
                    centres.push(0);
                    prop_assert_eq!(label, best(row, &centres));
                }
            }
        }
    }
}
