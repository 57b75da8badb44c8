//! Groups that need no embeddings.

use crate::rng::{Rng, Stream};

/// Cuts samples into score strata: groups of equal size by rank of their necessity, lowest first.
///
/// Sizes differ by at most one; equal scores are ranked by position. There are never more strata than samples.
pub fn strata(necessity: &[f32], count: usize) -> Vec<u32> {
    let mut order: Vec<usize> = (0..necessity.len()).collect();
    order.sort_by(|&left, &right| necessity[left].total_cmp(&necessity[right]));
    by_rank(&order, count)
}

/// Cuts `len` samples into random groups of equal size.
pub fn random_groups(len: usize, count: usize, seed: u64) -> Vec<u32> {
    let rng = Rng::new(seed, Stream::Groups);
    let mut order: Vec<usize> = (0..len).collect();
    order.sort_by_cached_key(|&sample| rng.bits(sample as u64));
    by_rank(&order, count)
}

fn by_rank(order: &[usize], count: usize) -> Vec<u32> {
    let count = count.clamp(1, order.len().max(1));
    let mut groups = vec![0; order.len()];
    for (rank, &sample) in order.iter().enumerate() {
        groups[sample] = (rank as u128 * count as u128 / order.len() as u128) as u32;
    }
    groups
}
