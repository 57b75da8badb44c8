//! Grouped sampling: share the budget out among groups, then take samples inside each group.

mod groups;
mod shares;
mod within;

pub use groups::{random_groups, strata};
use rayon::prelude::*;
pub use shares::{Claim, allocate};
use within::{Group, rank};

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
    /// Embeddings of the samples; needed for [`Within::KCenter`] and `skip_duplicates`.
    pub embeddings: Option<&'a Rows<'a>>,
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
/// Included samples come first. The others are interleaved so that every prefix keeps to the groups' shares
/// as nearly as whole numbers allow: the `i`-th of `m` samples of a group has its turn at `(i + 1/2) / m`.
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
    let (groups, mut claims) = group(candidates, options);
    check_reachable(candidates, options, &claims)?;
    let chosen = match options.skip_duplicates {
        None => {
            let quotas = allocate(options.budget as u64, &claims);
            observer.expect(groups.len() as u64);
            groups
                .par_iter()
                .zip(quotas)
                .map(|(group, quota)| {
                    observer.check()?;
                    let order = rank(
                        group,
                        quota as usize - group.included.len(),
                        candidates,
                        options,
                        observer,
                    );
                    observer.advance(1);
                    order
                })
                .collect::<Result<Vec<_>>>()?
        }
        Some(threshold) => without_duplicates(
            &groups,
            &mut claims,
            threshold,
            candidates,
            options,
            observer,
        )?,
    };
    Ok(interleave(candidates.included, &chosen))
}

fn check(candidates: &Candidates, options: &GroupedOptions) -> Result<()> {
    let n = candidates.necessity.len();
    let problem = if candidates.groups.len() != n {
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

/// Makes each group and its claim on the budget.
fn group(candidates: &Candidates, options: &GroupedOptions) -> (Vec<Group>, Vec<Claim>) {
    let count = candidates
        .groups
        .iter()
        .max()
        .map_or(0, |&last| last as usize + 1);
    let mut members = vec![Vec::new(); count];
    for (sample, &group) in candidates.groups.iter().enumerate() {
        members[group as usize].push(sample);
    }
    let mut included = vec![false; candidates.groups.len()];
    candidates
        .included
        .iter()
        .for_each(|&sample| included[sample] = true);
    members
        .into_par_iter()
        .map(|members| {
            let necessity: f64 = members
                .iter()
                .map(|&sample| f64::from(candidates.necessity[sample].max(0.0)))
                .sum();
            let size = members.len() as u64;
            let mean = if size == 0 {
                0.0
            } else {
                necessity / size as f64
            };
            let weight = match options.share {
                Share::SizeNecessity => necessity,
                Share::Necessity => mean,
                Share::Size => size as f64,
                Share::Equal => 1.0,
            };
            let trimmed = trim(members, options.trim, candidates.necessity);
            let (taken, open): (Vec<_>, Vec<_>) = trimmed
                .into_iter()
                .partition(|&(sample, _)| included[sample]);
            let group = Group {
                included: taken.into_iter().map(|(sample, _)| sample).collect(),
                open: open
                    .into_iter()
                    .filter(|&(_, open)| open)
                    .map(|(sample, _)| sample)
                    .collect(),
            };
            let floor = group.included.len() as u64;
            let claim = Claim {
                weight,
                size,
                floor,
                capacity: floor + group.open.len() as u64,
            };
            (group, claim)
        })
        .unzip()
}

/// Says of each member whether it stays when the highest necessity is trimmed.
fn trim(members: Vec<usize>, share: f64, necessity: &[f32]) -> Vec<(usize, bool)> {
    let count = (share * members.len() as f64).floor() as usize;
    let mut order: Vec<usize> = (0..members.len()).collect();
    let value = |place: usize| necessity[members[place]];
    order.sort_by(|&left, &right| value(right).total_cmp(&value(left)).then(left.cmp(&right)));
    let mut stays = vec![true; members.len()];
    order[..count]
        .iter()
        .for_each(|&place| stays[place] = false);
    members.into_iter().zip(stays).collect()
}

fn check_reachable(
    candidates: &Candidates,
    options: &GroupedOptions,
    claims: &[Claim],
) -> Result<()> {
    let (budget, included) = (options.budget, candidates.included.len());
    if budget < included {
        return Err(Error::Argument(format!(
            "budget: {budget} is less than the {included} seed samples, which are all taken; raise the budget to at \
             least {included} or let the seed samples compete"
        )));
    }
    let most: u64 = claims.iter().map(|claim| claim.capacity).sum();
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

/// Takes samples group by group, none near one taken before.
fn without_duplicates(
    groups: &[Group],
    claims: &mut [Claim],
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
    let orders: Vec<Vec<usize>> = groups
        .par_iter()
        .map(|group| {
            observer.check()?;
            rank(group, group.open.len(), candidates, options, observer)
        })
        .collect::<Result<_>>()?;
    let mut kept = Kept::new(embeddings, threshold, observer)?;
    candidates
        .included
        .iter()
        .for_each(|&sample| kept.add(sample));
    let mut chosen = vec![Vec::new(); groups.len()];
    let mut visited = vec![0usize; groups.len()];
    for round in 0u32.. {
        // What can still be chosen; below the budget, the rest of the loop finds out how many that really is.
        let most: u64 = claims.iter().map(|claim| claim.capacity).sum();
        let quotas = allocate(most.min(options.budget as u64), claims);
        let mut proposals = Vec::new();
        for (group, order) in orders.iter().enumerate() {
            let lacks = (quotas[group] - claims[group].floor) as usize;
            let end = visited[group].saturating_add(lacks.saturating_mul(1 << round.min(30)));
            let range = visited[group]..order.len().min(end);
            proposals.extend(order[range].iter().map(|&sample| (group, sample)));
        }
        if proposals.is_empty() {
            break;
        }
        for batch in proposals.chunks(BATCH) {
            let samples: Vec<usize> = batch.iter().map(|&(_, sample)| sample).collect();
            let mut near = kept.compare(&samples, observer)?;
            for (place, &(group, sample)) in batch.iter().enumerate() {
                if claims[group].floor == quotas[group] {
                    continue;
                }
                visited[group] += 1;
                if near.original(place).is_some() {
                    claims[group].capacity -= 1;
                    continue;
                }
                near.keep(place);
                kept.add(sample);
                chosen[group].push(sample);
                claims[group].floor += 1;
                observer.advance(1);
            }
        }
    }
    let count = candidates.included.len() + chosen.iter().map(Vec::len).sum::<usize>();
    if count < options.budget {
        return Err(Error::Argument(format!(
            "budget: {} samples cannot be chosen with skip_duplicates {threshold}: {count} are left once \
             near-duplicates are passed over; lower the budget or raise the cosine",
            options.budget
        )));
    }
    Ok(chosen)
}

/// Puts the groups' samples in one order that keeps to their shares.
fn interleave(included: &[usize], chosen: &[Vec<usize>]) -> Vec<usize> {
    let mut turns: Vec<(f64, usize, usize)> = Vec::new();
    for (group, samples) in chosen.iter().enumerate() {
        for (place, &sample) in samples.iter().enumerate() {
            turns.push(((place as f64 + 0.5) / samples.len() as f64, group, sample));
        }
    }
    turns.par_sort_by(|left, right| left.0.total_cmp(&right.0).then(left.1.cmp(&right.1)));
    included
        .iter()
        .copied()
        .chain(turns.into_iter().map(|(_, _, sample)| sample))
        .collect()
}
