//! How a budget is shared out among groups.

use std::cmp::Ordering;

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
        return round(budget, &real_shares(budget, claims, |claim| claim.weight));
    }
    // The weighted groups are full; the others share what is left by size.
    let rest: Vec<Claim> = claims
        .iter()
        .map(|claim| match claim.weight > 0.0 {
            true => Claim {
                weight: 0.0,
                floor: claim.capacity,
                ..*claim
            },
            false => Claim {
                weight: claim.size as f64,
                ..*claim
            },
        })
        .collect();
    round(budget, &real_shares(budget, &rest, |claim| claim.weight))
}

/// A real share and what it may be rounded to.
struct Share {
    value: f64,
    capacity: u64,
}

fn real_shares(budget: u64, claims: &[Claim], weight: impl Fn(&Claim) -> f64) -> Vec<Share> {
    let level = level(budget, claims, &weight);
    let share = |claim: &Claim| Share {
        value: (level * weight(claim)).clamp(claim.floor as f64, claim.capacity as f64),
        capacity: claim.capacity,
    };
    claims.iter().map(share).collect()
}

/// Finds the level: the sum of the shares grows with it along straight lines between the levels at which a
/// group leaves its floor or reaches its capacity.
fn level(budget: u64, claims: &[Claim], weight: impl Fn(&Claim) -> f64) -> f64 {
    let mut turns: Vec<(f64, f64)> = Vec::with_capacity(2 * claims.len());
    for claim in claims
        .iter()
        .filter(|claim| weight(claim) > 0.0 && claim.capacity > claim.floor)
    {
        turns.push((claim.floor as f64 / weight(claim), weight(claim)));
        turns.push((claim.capacity as f64 / weight(claim), -weight(claim)));
    }
    turns.sort_by(|left, right| left.0.total_cmp(&right.0));
    let mut total = claims.iter().map(|claim| claim.floor).sum::<u64>() as f64;
    let (mut level, mut slope) = (0.0, 0.0);
    for (turn, change) in turns {
        let next = total + slope * (turn - level);
        if slope > 0.0 && next >= budget as f64 {
            break;
        }
        (total, level) = (next, turn);
        slope += change;
    }
    if slope > 0.0 {
        level + (budget as f64 - total) / slope
    } else {
        level
    }
}

/// Rounds down, then gives one each to the largest remainders until the budget is met.
fn round(budget: u64, shares: &[Share]) -> Vec<u64> {
    let mut counts: Vec<u64> = shares
        .iter()
        .map(|share| share.value.floor() as u64)
        .collect();
    let mut order: Vec<usize> = (0..shares.len()).collect();
    let remainder = |group: usize| shares[group].value - shares[group].value.floor();
    order.sort_by(
        |&left, &right| match remainder(right).total_cmp(&remainder(left)) {
            Ordering::Equal => left.cmp(&right),
            unequal => unequal,
        },
    );
    let mut left = budget.saturating_sub(counts.iter().sum());
    while left > 0 {
        for &group in order
            .iter()
            .filter(|&&group| counts[group] < shares[group].capacity)
            .collect::<Vec<_>>()
        {
            if left == 0 {
                break;
            }
            counts[group] += 1;
            left -= 1;
        }
    }
    counts
}
