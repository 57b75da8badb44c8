//! How a budget is shared out among groups.

use std::borrow::Cow;
use std::cmp::Reverse;
use std::ops::Range;

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

/// Bounds that neighbouring claims keep together.
#[derive(Clone, Debug)]
pub struct Bound {
    /// The claims.
    pub claims: Range<usize>,
    /// Together they get at least this many; not below the sum of their floors.
    pub floor: u64,
    /// Together they get at most this many; not above the sum of their capacities.
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
    let shares = real_shares(budget, claims, &singles(claims));
    round(budget, &shares, &vec![0.0; shares.len()])
}

/// Shares a budget out as [`allocate`] does, where some claims have bounds together as well.
///
/// First the real-valued shares are those of one level for all claims; a bound's sum of them is moved to its
/// floor or capacity where it lies outside, and the level is the one for which these sums add up to the budget.
/// The sums are rounded by the largest remainder. Then each bound's sum is shared out among its claims by
/// [`allocate`]'s rule. So a bound that is not reached changes nothing but the rounding, and one that is
/// reached leaves the proportions on either side of it as they are.
///
/// Claims of one group in several bounds have one rounding error together: in a bound, those claims are rounded
/// up first whose group was rounded down most before.
///
/// `bounds` cover the claims in order; `groups` has the group of each claim. The budget must lie between the
/// sums of the bounds' floors and of their capacities.
pub fn allocate_within(
    budget: u64,
    claims: &[Claim],
    groups: &[usize],
    bounds: &[Bound],
) -> Vec<u64> {
    let sums = real_shares(budget, claims, bounds);
    let sums = round(budget, &sums, &vec![0.0; sums.len()]);
    let mut owed = vec![0.0; groups.iter().max().map_or(0, |&last| last + 1)];
    let mut counts = Vec::with_capacity(claims.len());
    for (bound, sum) in bounds.iter().zip(sums) {
        let (claims, groups) = (&claims[bound.claims.clone()], &groups[bound.claims.clone()]);
        let shares = real_shares(sum, claims, &singles(claims));
        let credit: Vec<f64> = groups.iter().map(|&group| owed[group]).collect();
        for ((&group, share), count) in groups.iter().zip(&shares).zip(round(sum, &shares, &credit))
        {
            owed[group] += share.value - count as f64;
            counts.push(count);
        }
    }
    counts
}

/// The bounds of each claim alone.
fn singles(claims: &[Claim]) -> Vec<Bound> {
    let single = |(place, claim): (usize, &Claim)| Bound {
        claims: place..place + 1,
        floor: claim.floor,
        capacity: claim.capacity,
    };
    claims.iter().enumerate().map(single).collect()
}

/// A real share and what it may be rounded to.
struct Share {
    value: f64,
    capacity: u64,
}

/// The share of each bound.
fn real_shares(budget: u64, claims: &[Claim], bounds: &[Bound]) -> Vec<Share> {
    let floors: u64 = bounds.iter().map(|bound| bound.floor).sum();
    let capacities: u64 = bounds.iter().map(|bound| bound.capacity).sum();
    assert!(
        (floors..=capacities).contains(&budget),
        "the caller checks that the budget can be met"
    );
    let claims = weighted(budget, claims, bounds);
    let value = |level: f64, bound: &Bound| {
        claims[bound.claims.clone()]
            .iter()
            .map(|claim| (level * claim.weight).clamp(claim.floor as f64, claim.capacity as f64))
            .sum::<f64>()
            .clamp(bound.floor as f64, bound.capacity as f64)
    };
    let fits =
        |level: f64| bounds.iter().map(|bound| value(level, bound)).sum::<f64>() <= budget as f64;
    let level = highest(fits);
    let share = |bound: &Bound| Share {
        value: value(level, bound),
        capacity: bound.capacity,
    };
    bounds.iter().map(share).collect()
}

/// The claims themselves where those with weight can take the budget; else these are full, and the others
/// share what is left by size.
fn weighted<'a>(budget: u64, claims: &'a [Claim], bounds: &[Bound]) -> Cow<'a, [Claim]> {
    let most = |claim: &Claim| match claim.weight > 0.0 {
        true => claim.capacity,
        false => claim.floor,
    };
    let reachable: u64 = bounds
        .iter()
        .map(|bound| {
            let sum: u64 = claims[bound.claims.clone()].iter().map(most).sum();
            sum.clamp(bound.floor, bound.capacity)
        })
        .sum();
    if budget <= reachable {
        return Cow::Borrowed(claims);
    }
    let by_size = |claim: &Claim| match claim.weight > 0.0 {
        true => Claim {
            floor: claim.capacity,
            ..*claim
        },
        false => Claim {
            weight: claim.size as f64,
            ..*claim
        },
    };
    Cow::Owned(claims.iter().map(by_size).collect())
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

/// Shares that differ by less are equal but for rounding errors.
const TIE: f64 = 1e-9;

/// Rounds down, then gives one each to the largest remainders until the budget is met.
///
/// Credit counts as if it were part of the remainder; whole shares come last all the same.
fn round(budget: u64, shares: &[Share], credit: &[f64]) -> Vec<u64> {
    let mut counts: Vec<u64> = shares
        .iter()
        .map(|share| (share.value + TIE / 2.0).floor() as u64)
        .collect();
    let turn = |place: usize| {
        let ties = |value: f64| (value / TIE).round() as i64;
        let remainder = shares[place].value - counts[place] as f64;
        let is_whole = ties(remainder) == 0;
        (is_whole, Reverse(ties(remainder + credit[place])), place)
    };
    let mut order: Vec<usize> = (0..shares.len()).collect();
    order.sort_by_cached_key(|&place| turn(place));
    let mut left = budget.saturating_sub(counts.iter().sum());
    while left > 0 {
        for &place in &order {
            if left > 0 && counts[place] < shares[place].capacity {
                counts[place] += 1;
                left -= 1;
            }
        }
    }
    counts
}
