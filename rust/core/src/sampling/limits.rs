//! How many samples each source may and must give.

use crate::{Error, Result};

/// What a source gives: at least `floor`, at most `ceiling` samples.
#[derive(Clone, Debug)]
pub struct Limit {
    /// Name of the source, for error messages.
    pub name: String,
    /// It gives at least this many.
    pub floor: u64,
    /// It gives at most this many; [`u64::MAX`] if it has no ceiling.
    pub ceiling: u64,
}

/// The limits of all sources.
#[derive(Clone, Copy, Debug)]
pub struct Limits<'a> {
    /// Source of each sample, a place in `of_source`.
    pub sources: &'a [u32],
    /// The limit of each source.
    pub of_source: &'a [Limit],
}

/// What a source has.
#[derive(Clone, Copy, Debug, Default)]
pub struct Stock {
    /// Samples that are taken in any case.
    pub taken: u64,
    /// Samples that can be chosen, those taken among them.
    pub available: u64,
}

/// Most sources that a message names.
const NAMED: usize = 8;

impl Limit {
    /// Whether it can change anything.
    pub(super) fn matters(&self, budget: u64, stock: &Stock) -> bool {
        self.floor > stock.taken || self.ceiling < stock.available.min(budget)
    }

    /// The least and the most that the source gives, as far as the stock allows.
    pub(super) fn range(&self, stock: &Stock) -> (u64, u64) {
        let floor = self.floor.min(stock.available).max(stock.taken);
        (floor, self.ceiling.min(stock.available))
    }
}

/// Checks that a budget can be met within limits, one for each stock, from stocks that hold the budget.
pub fn check_limits(budget: u64, limits: &[Limit], stocks: &[Stock]) -> Result<()> {
    let each = || limits.iter().zip(stocks);
    for (limit, stock) in each() {
        if limit.floor > limit.ceiling {
            return fail(format!(
                "floor of '{}': {} is above its ceiling of {}; lower the floor or raise the ceiling",
                limit.name, limit.floor, limit.ceiling
            ));
        }
        if stock.taken > limit.ceiling {
            return fail(format!(
                "ceiling of '{}': {} is less than its {} seed samples, which are all taken; raise the ceiling to \
                 at least {2} or let the seed samples compete",
                limit.name, limit.ceiling, stock.taken
            ));
        }
    }
    let short: Vec<_> = each()
        .filter(|(limit, stock)| limit.floor > stock.available)
        .map(|(limit, stock)| {
            let (name, floor) = (&limit.name, limit.floor);
            format!(
                "'{name}' has {} candidates for a floor of {floor}",
                stock.available
            )
        })
        .collect();
    if !short.is_empty() {
        return fail(format!(
            "floor: {}; lower the floor to what there is",
            listed(&short)
        ));
    }
    let least: u64 = each()
        .map(|(limit, stock)| limit.floor.max(stock.taken))
        .sum();
    if least > budget {
        let and_seed = match stocks.iter().any(|stock| stock.taken > 0) {
            true => " with the seed samples, which are all taken",
            false => "",
        };
        return fail(format!(
            "floor: the floors add up to {least}{and_seed}: more than the budget of {budget}; lower the floors or raise \
             the budget to at least {least}"
        ));
    }
    let most: u64 = each()
        .map(|(limit, stock)| limit.ceiling.min(stock.available))
        .sum();
    if most >= budget {
        return Ok(());
    }
    let reached: Vec<_> = each()
        .filter(|(limit, stock)| limit.ceiling < stock.available)
        .map(|(limit, stock)| {
            let (name, ceiling) = (&limit.name, limit.ceiling);
            format!(
                "'{name}' has {} candidates for a ceiling of {ceiling}",
                stock.available
            )
        })
        .collect();
    fail(format!(
        "ceiling: {most} samples can be chosen below the ceilings, less than the budget of {budget}: {}; raise the \
         ceilings or lower the budget to at most {most}",
        listed(&reached)
    ))
}

fn fail(message: String) -> Result<()> {
    Err(Error::Argument(message))
}

fn listed(names: &[String]) -> String {
    let shown = names[..names.len().min(NAMED)].join(", ");
    match names.len().saturating_sub(NAMED) {
        0 => shown,
        more => format!("{shown} and {more} more"),
    }
}
