//! How a budget is shared out among groups.

use std::cmp::Reverse;

/// What a group may get.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Claim {
    /// What the group's share is proportional to; at least 0 and finite.
    pub weight: f64,
    /// Number of its members, which shares fall back to where all weights are zero.
    pub size: u64,
    /// It gets at least this many.
    pub floor: u64,
    /// It gets at most this many.
    pub capacity: u64,
}

/// Shares a budget out in proportion to the weights, within the bounds, exactly.
///
/// The real-valued share of group `g` is `min(capacity, max(floor, level * weight))`, with the one level for
/// which the shares add up to the budget: what small groups cannot take is shared out among the others by the
/// same rule. Shares are rounded by the largest remainder (Hamilton's method), ties to the lowest group.
/// Groups of weight zero get something only once all others are full, in proportion to their sizes.
///
/// The budget must lie between the sums of the floors and of the capacities.
pub fn allocate(budget: u64, claims: &[Claim]) -> Vec<u64> {
    let floors: u64 = claims.iter().map(|claim| claim.floor).sum();
    let capacities: u64 = claims.iter().map(|claim| claim.capacity).sum();
    assert!(
        (floors..=capacities).contains(&budget),
        "the caller checks that the budget can be met"
    );
    let most = |claim: &Claim| {
        if claim.weight > 0.0 {
            claim.capacity
        } else {
            claim.floor
        }
    };
    let reachable: u64 = claims.iter().map(most).sum();
    if budget <= reachable {
        return round(budget, &real_shares(budget, claims));
    }
    // The weighted groups are full; the others share what is left by size.
    let rest: Vec<Claim> = claims
        .iter()
        .map(|claim| match claim.weight > 0.0 {
            true => Claim {
                floor: claim.capacity,
                ..*claim
            },
            false => Claim {
                weight: claim.size as f64,
                ..*claim
            },
        })
        .collect();
    round(budget, &real_shares(budget, &rest))
}

/// A real share and what it may be rounded to.
struct Share {
    value: f64,
    capacity: u64,
}

fn real_shares(budget: u64, claims: &[Claim]) -> Vec<Share> {
    let value = |level: f64, claim: &Claim| {
        (level * claim.weight).clamp(claim.floor as f64, claim.capacity as f64)
    };
    let fits =
        |level: f64| claims.iter().map(|claim| value(level, claim)).sum::<f64>() <= budget as f64;
    let level = highest(fits);
    let share = |claim: &Claim| Share {
        value: value(level, claim),
        capacity: claim.capacity,
    };
    claims.iter().map(share).collect()
}

/// The highest number that fits, where 0 does and all below one that fits do: by bisection over the bits,
/// which order numbers from 0 up as they order whole numbers.
fn highest(fits: impl Fn(f64) -> bool) -> f64 {
    let (mut low, mut high) = (0, f64::MAX.to_bits() + 1);
    while low + 1 < high {
        let middle = low + (high - low) / 2;
        if fits(f64::from_bits(middle)) {
            low = middle;
        } else {
            high = middle;
        }
    }
    f64::from_bits(low)
}

/// Rounds down, then gives one each to the largest remainders until the budget is met.
fn round(budget: u64, shares: &[Share]) -> Vec<u64> {
    let mut counts: Vec<u64> = shares
        .iter()
        .map(|share| share.value.floor() as u64)
        .collect();
    // In parts per billion: remainders that differ by rounding errors only are ties.
    let remainder = |group: usize| (shares[group].value.fract() * 1e9).round() as u64;
    let mut order: Vec<usize> = (0..shares.len()).collect();
    order.sort_by_key(|&group| (Reverse(remainder(group)), group));
    let mut left = budget.saturating_sub(counts.iter().sum());
    while left > 0 {
        for &group in &order {
            if left > 0 && counts[group] < shares[group].capacity {
                counts[group] += 1;
                left -= 1;
            }
        }
    }
    counts
}
