//! Grouped sampling: share the budget out among groups, then take samples inside each group.

mod cells;
mod groups;
mod limits;
mod shares;
mod within;

use cells::Cells;
pub use groups::{random_groups, strata};
pub use limits::{Limit, Limits, Stock, check_limits};
use rayon::prelude::*;
pub use shares::{Bound, Claim, allocate, allocate_within};
use within::rank;

use crate::dedup::{BATCH, Kept};
use crate::linalg::Rows;
use crate::{Error, Observer, Result};

/// Samples to choose from. A sample is named by its place in these slices.
#[derive(Clone, Copy, Debug)]
pub struct Candidates<'a> {
    /// Finite necessity of each sample; negative values count as 0 in shares and weights.
    pub necessity: &'a [f32],
    /// Group of each sample.
    pub groups: &'a [u32],
    /// Samples that are taken in any case, ascending.
    pub included: &'a [usize],
    /// Embeddings of the samples; needed for [`Within::KCenter`], [`Within::FacilityLocation`] and `skip_duplicates`.
    pub embeddings: Option<&'a Rows<'a>>,
    /// How many samples each source may and must give.
    pub limits: Option<Limits<'a>>,
}

/// What a group's share of the budget is proportional to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Share {
    /// Its size times its mean necessity.
    SizeNecessity,
    /// Its mean necessity.
    Necessity,
    /// Its size.
    Size,
    /// Nothing: all groups the same.
    Equal,
}

/// How samples are taken inside a group.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Within {
    /// Drawn uniformly without replacement.
    Uniform,
    /// The highest necessity first.
    Top,
    /// Drawn without replacement, with probability proportional to necessity.
    Weighted,
    /// Spread out: greedy k-center on the cosine distance.
    KCenter,
    /// Representative: facility location on the graph of the 50 nearest neighbours by cosine.
    FacilityLocation,
    /// The nearest to the group's median necessity, by rank, first.
    Middle,
}

/// How to sample.
#[derive(Clone, Debug)]
pub struct GroupedOptions {
    /// Samples to choose, included ones among them.
    pub budget: usize,
    /// How the budget is shared out.
    pub share: Share,
    /// How samples are taken inside a group.
    pub within: Within,
    /// Share of each group's samples, those of the highest necessity, that is never taken (rounded down).
    pub trim: f64,
    /// Samples with at least this cosine to a sample chosen before are not taken.
    pub skip_duplicates: Option<f64>,
    /// Random seed of the draws.
    pub seed: u64,
}

/// Chooses exactly `budget` samples and returns them in the order of choice.
///
/// Limits cut the groups: each source with a limit that matters, and the other sources together, get their share
/// as [`allocate_within`] says, and samples are taken inside the parts of the groups as they are otherwise inside
/// the groups.
///
/// Included samples come first. The others are interleaved so that every prefix keeps to the sources' and the
/// groups' shares as nearly as whole numbers allow: the `i`-th of `m` samples has its turn at `(i + 1/2) / m`.
///
/// With `skip_duplicates`, groups are visited in order, in rounds. In a round each group goes on in its own
/// order until its share is filled, passing over near-duplicates of any sample chosen before; in round `r`
/// (from 0) it looks at no more than `2^r` times as many samples as it lacks. When a group has no more samples,
/// what it lacks is shared out again among the others.
pub fn grouped_sample(
    candidates: &Candidates,
    options: &GroupedOptions,
    observer: &Observer,
) -> Result<Vec<usize>> {
    check(candidates, options)?;
    let mut cells = Cells::new(candidates, options);
    check_reachable(candidates, options, cells.most())?;
    if let Some(limits) = &candidates.limits {
        cells = cells.within(limits, options.budget as u64)?;
    }
    let chosen = match options.skip_duplicates {
        None => {
            let quotas = cells.quotas(options.budget as u64);
            observer.expect(cells.cells.len() as u64);
            cells
                .cells
                .par_iter()
                .zip(quotas)
                .map(|(cell, quota)| {
                    observer.check()?;
                    let depth = quota as usize - cell.included.len();
                    let order = rank(cell, depth, candidates, options, observer);
                    observer.advance(1);
                    order
                })
                .collect::<Result<Vec<_>>>()?
        }
        Some(threshold) => {
            without_duplicates(&mut cells, threshold, candidates, options, observer)?
        }
    };
    let by_stratum: Vec<Vec<usize>> = cells
        .strata
        .iter()
        .map(|stratum| interleave(&chosen[stratum.cells.clone()]))
        .collect();
    let included = candidates.included.iter().copied();
    Ok(included.chain(interleave(&by_stratum)).collect())
}

fn check(candidates: &Candidates, options: &GroupedOptions) -> Result<()> {
    let n = candidates.necessity.len();
    let problem = if u32::try_from(n).is_err() {
        format!("{n} samples are too many; give at most {}", u32::MAX)
    } else if candidates.groups.len() != n {
        format!(
            "groups: {} were given for {n} samples; give one for each",
            candidates.groups.len()
        )
    } else if let Some(sample) = candidates
        .necessity
        .iter()
        .position(|value| !value.is_finite())
    {
        format!(
            "necessity: {} of sample {sample} is not finite",
            candidates.necessity[sample]
        )
    } else if candidates
        .included
        .windows(2)
        .any(|pair| pair[0] >= pair[1])
        || candidates
            .included
            .last()
            .is_some_and(|&sample| sample >= n)
    {
        format!("included samples must be ascending and below {n}")
    } else if let Some(rows) = candidates.embeddings
        && rows.len() != n
    {
        format!(
            "embeddings: {} rows were given for {n} samples; give one for each",
            rows.len()
        )
    } else if let Some(limits) = &candidates.limits
        && limits.sources.len() != n
    {
        format!(
            "sources: {} were given for {n} samples; give one for each",
            limits.sources.len()
        )
    } else if let Some(limits) = &candidates.limits
        && let Some(&source) = limits
            .sources
            .iter()
            .find(|&&source| source as usize >= limits.of_source.len())
    {
        format!(
            "sources: there are limits for {} sources, but not for source {source}",
            limits.of_source.len()
        )
    } else if !(0.0..1.0).contains(&options.trim) {
        format!(
            "trim: {} is not a share; it must be at least 0 and below 1",
            options.trim
        )
    } else if options.budget == 0 {
        "budget: 0 selects nothing; give at least 1".to_owned()
    } else {
        return Ok(());
    };
    Err(Error::Argument(problem))
}

fn check_reachable(candidates: &Candidates, options: &GroupedOptions, most: u64) -> Result<()> {
    let (budget, included) = (options.budget, candidates.included.len());
    if budget < included {
        return Err(Error::Argument(format!(
            "budget: {budget} is less than the {included} seed samples, which are all taken; raise the budget to at \
             least {included} or let the seed samples compete"
        )));
    }
    if budget as u64 <= most {
        return Ok(());
    }
    let n = candidates.necessity.len();
    let problem = if most < n as u64 {
        format!(
            "trim: {} of each group leaves {most} of {n} candidates; lower the budget or the trim",
            options.trim
        )
    } else {
        format!("there are {n} candidates; lower the budget to at most {n}")
    };
    Err(Error::Argument(format!(
        "budget: {budget} samples cannot be chosen: {problem}"
    )))
}

/// Takes samples cell by cell, none near one taken before.
fn without_duplicates(
    cells: &mut Cells,
    threshold: f64,
    candidates: &Candidates,
    options: &GroupedOptions,
    observer: &Observer,
) -> Result<Vec<Vec<usize>>> {
    let Some(embeddings) = candidates.embeddings else {
        return Err(Error::Argument(
            "skip_duplicates needs embeddings; give them or leave it out".into(),
        ));
    };
    observer.expect(options.budget as u64);
    let orders: Vec<Vec<usize>> = cells
        .cells
        .par_iter()
        .map(|cell| {
            observer.check()?;
            rank(cell, cell.open.len(), candidates, options, observer)
        })
        .collect::<Result<_>>()?;
    let mut kept = Kept::new(embeddings, threshold, observer)?;
    candidates
        .included
        .iter()
        .for_each(|&sample| kept.add(sample));
    let mut chosen = vec![Vec::new(); orders.len()];
    let mut visited = vec![0usize; orders.len()];
    for round in 0u32.. {
        // What can still be chosen; below the budget, the rest of the loop finds out how many that really is.
        let quotas = cells.quotas(cells.most().min(options.budget as u64));
        let claims = &mut cells.claims;
        let mut proposals = Vec::new();
        for (cell, order) in orders.iter().enumerate() {
            let lacks = (quotas[cell] - claims[cell].floor) as usize;
            let end = visited[cell].saturating_add(lacks.saturating_mul(1 << round.min(30)));
            let range = visited[cell]..order.len().min(end);
            proposals.extend(order[range].iter().map(|&sample| (cell, sample)));
        }
        if proposals.is_empty() {
            break;
        }
        for batch in proposals.chunks(BATCH) {
            let samples: Vec<usize> = batch.iter().map(|&(_, sample)| sample).collect();
            let mut near = kept.compare(&samples, observer)?;
            for (place, &(cell, sample)) in batch.iter().enumerate() {
                if claims[cell].floor == quotas[cell] {
                    continue;
                }
                visited[cell] += 1;
                if near.original(place).is_some() {
                    claims[cell].capacity -= 1;
                    continue;
                }
                near.keep(place);
                kept.add(sample);
                chosen[cell].push(sample);
                claims[cell].floor += 1;
                observer.advance(1);
            }
        }
    }
    check_left(cells, threshold, options.budget as u64)?;
    Ok(chosen)
}

/// Checks that enough samples were left once near-duplicates were passed over.
fn check_left(cells: &Cells, threshold: f64, budget: u64) -> Result<()> {
    let taken = |cells: &[Claim]| cells.iter().map(|claim| claim.floor).sum::<u64>();
    let count = taken(&cells.claims);
    if count < budget {
        let or_ceilings = match cells.strata.iter().any(|stratum| stratum.limit.is_some()) {
            true => ", or raise the ceilings",
            false => "",
        };
        return Err(Error::Argument(format!(
            "budget: {budget} samples cannot be chosen with skip_duplicates {threshold}: {count} are left once \
             near-duplicates are passed over; lower the budget or raise the cosine{or_ceilings}"
        )));
    }
    for stratum in &cells.strata {
        let count = taken(&cells.claims[stratum.cells.clone()]);
        if let Some(limit) = stratum.limit
            && count < limit.floor
        {
            return Err(Error::Argument(format!(
                "floor of '{}': {} samples cannot be chosen with skip_duplicates {threshold}: {count} are left once \
                 near-duplicates are passed over; lower the floor to at most {count} or raise the cosine",
                limit.name, limit.floor
            )));
        }
    }
    Ok(())
}

/// Puts samples of several lists in one order that keeps to their shares.
fn interleave(lists: &[Vec<usize>]) -> Vec<usize> {
    let mut turns: Vec<(f64, usize, usize)> = Vec::new();
    for (list, samples) in lists.iter().enumerate() {
        for (place, &sample) in samples.iter().enumerate() {
            turns.push(((place as f64 + 0.5) / samples.len() as f64, list, sample));
        }
    }
    turns.par_sort_by(|left, right| left.0.total_cmp(&right.0).then(left.1.cmp(&right.1)));
    turns.into_iter().map(|(_, _, sample)| sample).collect()
}
