//! The order in which a cell's samples are taken.

use super::cells::Cell;
use super::{Candidates, GroupedOptions, Within};
use crate::kcenter::{First, KCenterOptions, cover};
use crate::linalg::Metric;
use crate::rng::{Rng, Stream};
use crate::{Error, Observer, Result};

/// Orders the first `depth` samples to be taken of a cell.
pub(super) fn rank(
    cell: &Cell,
    depth: usize,
    candidates: &Candidates,
    options: &GroupedOptions,
    observer: &Observer,
) -> Result<Vec<usize>> {
    let necessity = |sample: usize| candidates.necessity[sample];
    let rng = Rng::new(options.seed, Stream::Draw);
    let mut order = cell.open.clone();
    match options.within {
        Within::Uniform => order.sort_by_cached_key(|&sample| rng.bits(sample as u64)),
        Within::Top => {
            order.sort_by(|&left, &right| {
                necessity(right)
                    .total_cmp(&necessity(left))
                    .then(left.cmp(&right))
            });
        }
        Within::Weighted => {
            let key = |sample: usize| waiting_time(rng.uniform(sample as u64), necessity(sample));
            let mut keyed: Vec<_> = order.iter().map(|&sample| (key(sample), sample)).collect();
            keyed.sort_by(|left, right| {
                // Without weight all wait for ever: these are ordered by their random bits.
                let bits = |sample: usize| rng.bits(sample as u64);
                left.0
                    .total_cmp(&right.0)
                    .then_with(|| bits(left.1).cmp(&bits(right.1)))
                    .then(left.1.cmp(&right.1))
            });
            order = keyed.into_iter().map(|(_, sample)| sample).collect();
        }
        Within::Middle => {
            order.sort_by(|&left, &right| {
                necessity(left)
                    .total_cmp(&necessity(right))
                    .then(left.cmp(&right))
            });
            let mut placed: Vec<_> = order
                .iter()
                .enumerate()
                .map(|(rank, &sample)| ((2 * rank).abs_diff(order.len() - 1), sample))
                .collect();
            placed.sort_unstable();
            order = placed.into_iter().map(|(_, sample)| sample).collect();
        }
        Within::KCenter => return spread(cell, depth, candidates, observer),
    }
    order.truncate(depth);
    Ok(order)
}

/// Drawing without replacement with probability proportional to the weight is the same as taking samples in
/// the order of exponential waiting times with the weights as rates: Efraimidis and Spirakis, Weighted random
/// sampling with a reservoir (IPL 97, 2006). The logarithm is a portable one, so that bits do not depend on
/// the system's library.
fn waiting_time(uniform: f64, necessity: f32) -> f64 {
    -libm::log(uniform) / f64::from(necessity.max(0.0))
}

/// Orders a cell by exact greedy k-center on the cosine distance, around the samples taken beforehand.
fn spread(
    cell: &Cell,
    depth: usize,
    candidates: &Candidates,
    observer: &Observer,
) -> Result<Vec<usize>> {
    let Some(embeddings) = candidates.embeddings else {
        return Err(Error::Argument(
            "within: k-center needs embeddings; give them or pick in another way".into(),
        ));
    };
    if depth == 0 {
        return Ok(Vec::new());
    }
    let members: Vec<usize> = cell.included.iter().chain(&cell.open).copied().collect();
    let taken: Vec<usize> = (0..cell.included.len()).collect();
    let options = KCenterOptions {
        k: cell.included.len() + depth.min(cell.open.len()),
        metric: Metric::Cosine,
        first: if taken.is_empty() {
            First::NearestMean
        } else {
            First::Rows(&taken)
        },
        weights: None,
    };
    let order = cover(&embeddings.subset(&members)?, &options, observer, || ())?.rows;
    Ok(order[taken.len()..]
        .iter()
        .map(|&place| members[place])
        .collect())
}
