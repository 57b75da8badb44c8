//! The order in which a cell's samples are taken.

use super::cells::Cell;
use super::{Candidates, GroupedOptions, Within};
use crate::facility::{FacilityOptions, facility_location_of_rows};
use crate::kcenter::{First, KCenterOptions, cover};
use crate::linalg::{Metric, Rows};
use crate::rng::{Rng, Stream};
use crate::{Error, Observer, Result};

/// Neighbours of each sample in the graph of a cell.
const NEIGHBOURS: usize = 50;

/// Blocks of 4,096 samples that each of them is compared with, the most similar ones: so the graph of a cell of up to
/// 16,384 samples is exact, and the time of a larger one does not grow with the square of its size.
const PROBES: usize = 4;

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
    let mut order: Vec<usize> = cell.open().collect();
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
        Within::FacilityLocation => return represent(cell, depth, candidates, observer),
    }
    order.truncate(depth);
    order.shrink_to_fit(); // the orders of all cells are kept
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
    let members = Members::new(cell, depth, "k-center", candidates)?;
    if members.k == members.taken.len() {
        return Ok(Vec::new());
    }
    let options = KCenterOptions {
        k: members.k,
        metric: Metric::Cosine,
        first: if members.taken.is_empty() {
            First::NearestMean
        } else {
            First::Rows(&members.taken)
        },
        weights: None,
    };
    let order = cover(&members.rows, &options, observer, || ())?.rows;
    Ok(members.new_ones(&order))
}

/// Orders a cell by facility location on the graph of its nearest neighbours, after the samples taken beforehand.
fn represent(
    cell: &Cell,
    depth: usize,
    candidates: &Candidates,
    observer: &Observer,
) -> Result<Vec<usize>> {
    let members = Members::new(cell, depth, "facility-location", candidates)?;
    if members.k == members.taken.len() {
        return Ok(Vec::new());
    }
    let options = FacilityOptions {
        k: members.k,
        first: &members.taken,
        weights: None,
    };
    // The observer counts cells, not what is done inside one.
    let inside = observer.part();
    let found =
        facility_location_of_rows(&members.rows, NEIGHBOURS, Some(PROBES), &options, &inside)?;
    Ok(members.new_ones(&found.rows))
}

/// The samples of a cell as rows of a matrix, those taken beforehand first.
struct Members<'a> {
    names: Vec<usize>,
    rows: Rows<'a>,
    /// The rows of the samples taken beforehand.
    taken: Vec<usize>,
    /// Rows to choose, these among them.
    k: usize,
}

impl<'a> Members<'a> {
    fn new(cell: &Cell, depth: usize, within: &str, candidates: &Candidates<'a>) -> Result<Self> {
        let Some(embeddings) = candidates.embeddings else {
            return Err(Error::Argument(format!(
                "within: {within} needs embeddings; give them or pick in another way"
            )));
        };
        let names: Vec<usize> = cell.included.iter().copied().chain(cell.open()).collect();
        Ok(Self {
            rows: embeddings.subset(&names)?,
            names,
            taken: (0..cell.included.len()).collect(),
            k: cell.included.len() + depth.min(cell.open.len()),
        })
    }

    /// The samples that rows in the order of choice add to those taken beforehand.
    fn new_ones(&self, order: &[usize]) -> Vec<usize> {
        let new_ones = &order[self.taken.len()..];
        new_ones.iter().map(|&row| self.names[row]).collect()
    }
}
