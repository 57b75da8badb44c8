//! What the budget is shared out among: the groups, or with limits the parts of the groups in each source.

use std::collections::BTreeMap;
use std::ops::Range;

use rayon::prelude::*;

use super::limits::{Limit, Limits, Stock, check_limits};
use super::shares::{Bound, Claim, allocate_within};
use super::{Candidates, GroupedOptions, Share};
use crate::Result;

/// Samples of one group that have a share of the budget together.
#[derive(Default)]
pub(super) struct Cell {
    group: usize,
    /// Samples taken beforehand.
    pub(super) included: Vec<usize>,
    /// Samples that may be taken, ascending; together these lists are as long as the pool, hence 32 bits.
    pub(super) open: Vec<u32>,
}

/// Cells next to each other that have a limit together.
pub(super) struct Stratum<'a> {
    pub(super) cells: Range<usize>,
    pub(super) limit: Option<&'a Limit>,
}

/// All cells and their claims on the budget.
pub(super) struct Cells<'a> {
    pub(super) cells: Vec<Cell>,
    pub(super) claims: Vec<Claim>,
    pub(super) strata: Vec<Stratum<'a>>,
}

impl<'a> Cells<'a> {
    /// Makes a cell of each group.
    pub(super) fn new(candidates: &Candidates, options: &GroupedOptions) -> Self {
        let (cells, claims): (Vec<_>, Vec<_>) = groups(candidates, options).into_iter().unzip();
        let whole = Stratum {
            cells: 0..cells.len(),
            limit: None,
        };
        Self {
            cells,
            claims,
            strata: vec![whole],
        }
    }

    /// Cuts the cells into those of each source whose limit matters, and those of all the other sources together.
    ///
    /// A group's weight goes to its parts in proportion to the samples that can be chosen: this is what each
    /// would get on average of samples drawn from the whole group.
    pub(super) fn within(self, limits: &Limits<'a>, budget: u64) -> Result<Self> {
        let stocks = self.stocks(limits);
        check_limits(budget, limits.of_source, &stocks)?;
        let rest = limits.of_source.len();
        // In the order of names, so that numbers of sources do not matter.
        let mut by_name: Vec<usize> = (0..rest).collect();
        by_name.sort_by_key(|&source| &limits.of_source[source].name);
        let mut strata = vec![rest; rest];
        for (place, &source) in by_name.iter().enumerate() {
            if limits.of_source[source].matters(budget, &stocks[source]) {
                strata[source] = place;
            }
        }
        if strata.iter().all(|&stratum| stratum == rest) {
            return Ok(self);
        }
        let stratum = |sample: usize| strata[limits.sources[sample] as usize];
        let mut parts: Vec<(usize, Cell, Claim)> = self
            .cells
            .into_par_iter()
            .zip(self.claims)
            .flat_map_iter(|(cell, claim)| cell.cut(claim, stratum))
            .collect();
        // Stable, so that groups stay in order.
        parts.sort_by_key(|&(stratum, ..)| stratum);
        let mut cells = Self {
            cells: Vec::with_capacity(parts.len()),
            claims: Vec::with_capacity(parts.len()),
            strata: Vec::new(),
        };
        for parts in parts.chunk_by_mut(|left, right| left.0 == right.0) {
            let first = cells.cells.len();
            cells.strata.push(Stratum {
                cells: first..first + parts.len(),
                limit: by_name
                    .get(parts[0].0)
                    .map(|&source| &limits.of_source[source]),
            });
            for (_, cell, claim) in parts {
                cells.cells.push(std::mem::take(cell));
                cells.claims.push(*claim);
            }
        }
        Ok(cells)
    }

    /// How many samples can be chosen.
    pub(super) fn most(&self) -> u64 {
        self.bounds().iter().map(|bound| bound.capacity).sum()
    }

    /// Shares a budget out among the cells.
    pub(super) fn quotas(&self, budget: u64) -> Vec<u64> {
        let groups: Vec<usize> = self.cells.iter().map(|cell| cell.group).collect();
        allocate_within(budget, &self.claims, &groups, &self.bounds())
    }

    fn bounds(&self) -> Vec<Bound> {
        let bound = |stratum: &Stratum| {
            let claims = &self.claims[stratum.cells.clone()];
            let stock = Stock {
                taken: claims.iter().map(|claim| claim.floor).sum(),
                available: claims.iter().map(|claim| claim.capacity).sum(),
            };
            let (floor, capacity) = match stratum.limit {
                Some(limit) => limit.range(&stock),
                None => (stock.taken, stock.available),
            };
            Bound {
                claims: stratum.cells.clone(),
                floor,
                capacity,
            }
        };
        self.strata.iter().map(bound).collect()
    }

    /// What each source has.
    fn stocks(&self, limits: &Limits) -> Vec<Stock> {
        let mut stocks = vec![Stock::default(); limits.of_source.len()];
        for cell in &self.cells {
            for &sample in &cell.included {
                stocks[limits.sources[sample] as usize].taken += 1;
            }
            for sample in cell.included.iter().copied().chain(cell.open()) {
                stocks[limits.sources[sample] as usize].available += 1;
            }
        }
        stocks
    }
}

impl Cell {
    /// The samples that may be taken, ascending.
    pub(super) fn open(&self) -> impl Iterator<Item = usize> {
        self.open.iter().map(|&sample| sample as usize)
    }

    fn claim(&self, weight: f64, size: u64) -> Claim {
        let floor = self.included.len() as u64;
        Claim {
            weight,
            size,
            floor,
            capacity: floor + self.open.len() as u64,
        }
    }

    /// Cuts a cell by stratum.
    fn cut(
        self,
        whole: Claim,
        stratum: impl Fn(usize) -> usize,
    ) -> impl Iterator<Item = (usize, Self, Claim)> {
        let mut parts: BTreeMap<usize, Self> = BTreeMap::new();
        for &sample in &self.included {
            parts
                .entry(stratum(sample))
                .or_default()
                .included
                .push(sample);
        }
        for &sample in &self.open {
            let part = parts.entry(stratum(sample as usize)).or_default();
            part.open.push(sample);
        }
        let group = self.group;
        parts.into_iter().map(move |(stratum, part)| {
            let size = part.claim(0.0, 0).capacity;
            let weight = whole.weight * (size as f64 / whole.capacity as f64);
            let claim = part.claim(weight, size);
            (stratum, Self { group, ..part }, claim)
        })
    }
}

/// Makes each group and its claim on the budget.
fn groups(candidates: &Candidates, options: &GroupedOptions) -> Vec<(Cell, Claim)> {
    let mut included = vec![false; candidates.groups.len()];
    candidates
        .included
        .iter()
        .for_each(|&sample| included[sample] = true);
    members(candidates.groups)
        .into_par_iter()
        .enumerate()
        .map(|(group, mut open)| {
            let necessity: f64 = open
                .iter()
                .map(|&sample| f64::from(candidates.necessity[sample as usize].max(0.0)))
                .sum();
            let size = open.len() as u64;
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
            let trimmed = highest(&open, options.trim, candidates.necessity);
            let taken = open.iter().map(|&sample| sample as usize);
            let taken = taken.filter(|&sample| included[sample]).collect();
            open.retain(|sample| {
                !included[*sample as usize] && trimmed.binary_search(sample).is_err()
            });
            let cell = Cell {
                group,
                included: taken,
                open,
            };
            let claim = cell.claim(weight, size);
            (cell, claim)
        })
        .collect()
}

/// The samples of each group, ascending; lists of exact size, as together they are as long as the pool.
fn members(groups: &[u32]) -> Vec<Vec<u32>> {
    let count = groups.iter().max().map_or(0, |&last| last as usize + 1);
    let mut sizes = vec![0; count];
    groups.iter().for_each(|&group| sizes[group as usize] += 1);
    let mut members: Vec<Vec<u32>> = sizes.into_iter().map(Vec::with_capacity).collect();
    for (sample, &group) in groups.iter().enumerate() {
        members[group as usize].push(sample as u32);
    }
    members
}

/// The share of the members with the highest necessity, rounded down, ascending by number.
fn highest(members: &[u32], share: f64, necessity: &[f32]) -> Vec<u32> {
    let count = (share * members.len() as f64).floor() as usize;
    if count == 0 {
        return Vec::new();
    }
    let mut order = members.to_vec();
    let value = |sample: u32| necessity[sample as usize];
    order.sort_by(|&left, &right| value(right).total_cmp(&value(left)).then(left.cmp(&right)));
    order.truncate(count);
    order.sort_unstable();
    order
}
