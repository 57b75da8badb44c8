//! Floors and ceilings of sources: bounds kept, budgets met, shares kept as far as the bounds allow.

use mllm_selector_core::{
    Bound, Candidates, Claim, GroupedOptions, Limit, Limits, Observer, Share, Stock, Within,
    allocate, allocate_within, check_limits, grouped_sample,
};
use proptest::prelude::*;

/// Claims in strata with bounds, the group of each claim, and a budget that can be met.
#[derive(Clone, Debug)]
struct Instance {
    claims: Vec<Claim>,
    groups: Vec<usize>,
    bounds: Vec<Bound>,
    budget: u64,
}

impl Instance {
    fn counts(&self) -> Vec<u64> {
        allocate_within(self.budget, &self.claims, &self.groups, &self.bounds)
    }

    fn sum(&self, counts: &[u64], stratum: usize) -> u64 {
        counts[self.bounds[stratum].claims.clone()].iter().sum()
    }

    fn stratum_of(&self, cell: usize) -> usize {
        let holds = |bound: &Bound| bound.claims.contains(&cell);
        self.bounds.iter().position(holds).unwrap()
    }
}

fn part(low: u64, high: u64, share: f64) -> u64 {
    low + ((high - low) as f64 * share) as u64
}

fn instances() -> impl Strategy<Value = Instance> {
    let weight = prop_oneof![1 => Just(0.0), 4 => 0.1..9.0f64];
    let cell = (weight, prop_oneof![3 => Just(0u64), 1 => 0..9u64], 0..40u64);
    let share = prop_oneof![Just(0.0), Just(1.0), 0.0..=1.0f64];
    let stratum = (prop::collection::vec(cell, 1..6), share, 0.0..=1.0f64);
    (prop::collection::vec(stratum, 1..6), 0.0..=1.0f64).prop_map(|(strata, budget)| {
        let (mut claims, mut groups, mut bounds) = (Vec::new(), Vec::new(), Vec::new());
        for (cells, low, high) in strata {
            let first = claims.len();
            for (group, (weight, floor, open)) in cells.into_iter().enumerate() {
                let (size, capacity) = (floor + open, floor + open);
                claims.push(Claim {
                    weight,
                    size,
                    floor,
                    capacity,
                });
                groups.push(group);
            }
            let of_stratum = first..claims.len();
            let floors = claims[of_stratum.clone()]
                .iter()
                .map(|claim| claim.floor)
                .sum();
            let capacities = claims[of_stratum.clone()]
                .iter()
                .map(|claim| claim.capacity)
                .sum();
            let floor = part(floors, capacities, low * 0.7);
            let capacity = part(floor, capacities, high);
            bounds.push(Bound {
                claims: of_stratum,
                floor,
                capacity,
            });
        }
        let least = bounds.iter().map(|bound| bound.floor).sum();
        let most = bounds.iter().map(|bound| bound.capacity).sum();
        let budget = part(least, most, budget);
        Instance {
            claims,
            groups,
            bounds,
            budget,
        }
    })
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 512, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn budgets_and_bounds_are_kept(instance in instances()) {
        let counts = instance.counts();
        prop_assert_eq!(counts.iter().sum::<u64>(), instance.budget);
        for (count, claim) in counts.iter().zip(&instance.claims) {
            prop_assert!((claim.floor..=claim.capacity).contains(count));
        }
        for (stratum, bound) in instance.bounds.iter().enumerate() {
            prop_assert!((bound.floor..=bound.capacity).contains(&instance.sum(&counts, stratum)));
        }
    }

    /// No sample could go from a cell that is above its share to one that is below, but for rounding: at most one
    /// sample by that of the stratum's sum and one by that of the cell, on either side.
    #[test]
    fn shares_are_kept_as_far_as_the_bounds_allow(instance in instances()) {
        let counts = instance.counts();
        let weighted = |&cell: &usize| instance.claims[cell].weight > 0.0;
        let cells: Vec<usize> = (0..counts.len()).filter(weighted).collect();
        for &from in &cells {
            for &to in &cells {
                let (source, target) = (instance.stratum_of(from), instance.stratum_of(to));
                let can_move = counts[from] > instance.claims[from].floor
                    && counts[to] < instance.claims[to].capacity
                    && (source == target
                        || instance.sum(&counts, source) > instance.bounds[source].floor
                            && instance.sum(&counts, target) < instance.bounds[target].capacity);
                let level = |cell: usize, change: f64| (counts[cell] as f64 + change) / instance.claims[cell].weight;
                prop_assert!(!can_move || level(from, -2.0) <= level(to, 2.0), "{} to {}", from, to);
            }
        }
    }

    #[test]
    fn raised_floors_and_lowered_ceilings_work_in_their_direction(
        instance in instances(),
        which in any::<prop::sample::Index>(),
        share in 0.0..=1.0f64,
    ) {
        let stratum = which.index(instance.bounds.len());
        let others = |value: fn(&Bound) -> u64| -> u64 {
            instance.bounds.iter().enumerate().filter(|&(other, _)| other != stratum).map(|(_, bound)| value(bound)).sum()
        };
        let before = instance.sum(&instance.counts(), stratum);
        let bound = &instance.bounds[stratum];

        let mut raised = instance.clone();
        let most = bound.capacity.min(instance.budget - others(|bound| bound.floor));
        raised.bounds[stratum].floor = part(bound.floor, most, share);
        prop_assert!(raised.sum(&raised.counts(), stratum) >= before);

        let mut lowered = instance.clone();
        let least = bound.floor.max(instance.budget.saturating_sub(others(|bound| bound.capacity)));
        lowered.bounds[stratum].capacity = part(least, bound.capacity, share);
        prop_assert!(lowered.sum(&lowered.counts(), stratum) <= before);
    }

    #[test]
    fn one_stratum_without_bounds_is_none(instance in instances()) {
        let least: u64 = instance.claims.iter().map(|claim| claim.floor).sum();
        let most: u64 = instance.claims.iter().map(|claim| claim.capacity).sum();
        let whole = Bound { claims: 0..instance.claims.len(), floor: least, capacity: most };
        for share in [0.0, 0.3, 0.5, 1.0] {
            let budget = part(least, most, share);
            let counts = allocate_within(budget, &instance.claims, &instance.groups, std::slice::from_ref(&whole));
            prop_assert_eq!(counts, allocate(budget, &instance.claims));
        }
    }

    /// Groups that are cut into many parts of less than one sample each keep their shares.
    #[test]
    fn rounding_errors_of_a_group_do_not_add_up(
        parts in prop::collection::vec(prop::collection::vec(1..100u64, 6), 2..60),
        share in 0.01..0.2f64,
    ) {
        // The weight of a part is its size, so that the share of each group is in proportion to its size.
        let claim = |&size: &u64| Claim { weight: size as f64, size, floor: 0, capacity: size };
        let claims: Vec<Claim> = parts.iter().flatten().map(claim).collect();
        let groups: Vec<usize> = (0..claims.len()).map(|cell| cell % 6).collect();
        let bounds: Vec<Bound> = (0..parts.len())
            .map(|stratum| Bound {
                claims: 6 * stratum..6 * stratum + 6,
                floor: 0,
                capacity: parts[stratum].iter().sum(),
            })
            .collect();
        let total: u64 = claims.iter().map(|claim| claim.size).sum();
        let budget = part(0, total, share);
        let counts = allocate_within(budget, &claims, &groups, &bounds);
        for group in 0..6 {
            let of_group = |values: Vec<u64>| -> u64 { values.iter().skip(group).step_by(6).sum() };
            let exact = of_group(claims.iter().map(|claim| claim.size).collect()) as f64 * budget as f64 / total as f64;
            let count = of_group(counts.clone());
            // Each stratum's sum is rounded as well, by less than one sample, and these errors are shared out.
            let tolerance = 2.0 + (parts.len() as f64).sqrt() / 3.0;
            prop_assert!((count as f64 - exact).abs() < tolerance, "{} {} {}", count, exact, parts.len());
        }
    }

    /// Whether limits can be kept, by trying all numbers of samples from each source.
    #[test]
    fn checks_find_what_cannot_be_met(
        sources in prop::collection::vec((0..4u64, 0..5u64, 0..7u64, 0..7u64), 1..4),
        budget in 1..12u64,
    ) {
        let limit = |&(_, _, floor, ceiling): &(u64, u64, u64, u64)| Limit { name: "a".into(), floor, ceiling };
        let stock = |&(taken, open, _, _): &(u64, u64, u64, u64)| Stock { taken, available: taken + open };
        let limits: Vec<Limit> = sources.iter().map(limit).collect();
        let stocks: Vec<Stock> = sources.iter().map(stock).collect();
        let most: u64 = stocks.iter().map(|stock| stock.available).sum();
        prop_assume!(budget <= most);
        let mut sums = vec![0];
        for (limit, stock) in limits.iter().zip(&stocks) {
            let fits = |&count: &u64| count >= limit.floor && count <= limit.ceiling;
            let counts: Vec<u64> = (stock.taken..=stock.available).filter(fits).collect();
            sums = sums.iter().flat_map(|sum| counts.iter().map(move |count| sum + count)).collect();
        }
        prop_assert_eq!(check_limits(budget, &limits, &stocks).is_ok(), sums.contains(&budget));
    }

    #[test]
    fn samples_keep_the_limits_of_their_sources(
        samples in prop::collection::vec((0..9u8, 0..4u32, 0..3u32, prop::bool::weighted(0.1)), 20..60),
        limits in prop::collection::vec((0..5u64, 5..25u64), 3),
        budget in 10..30usize,
        trim in prop_oneof![Just(0.0), 0.0..0.3f64],
    ) {
        let necessity: Vec<f32> = samples.iter().map(|sample| f32::from(sample.0)).collect();
        let groups: Vec<u32> = samples.iter().map(|sample| sample.1).collect();
        let sources: Vec<u32> = samples.iter().map(|sample| sample.2).collect();
        let included: Vec<usize> = (0..samples.len()).filter(|&sample| samples[sample].3).collect();
        let of_source: Vec<Limit> = limits
            .iter()
            .map(|&(floor, ceiling)| Limit { name: "a".into(), floor, ceiling })
            .collect();
        let candidates = Candidates {
            necessity: &necessity,
            groups: &groups,
            included: &included,
            embeddings: None,
            limits: Some(Limits { sources: &sources, of_source: &of_source }),
        };
        let options = GroupedOptions {
            budget,
            share: Share::SizeNecessity,
            within: Within::Uniform,
            trim,
            skip_duplicates: None,
            seed: 0,
        };
        let chosen = grouped_sample(&candidates, &options, &Observer::default());
        // Whether errors are raised where they should be is another test's matter.
        prop_assume!(chosen.is_ok());
        let mut chosen = chosen.unwrap();
        prop_assert_eq!(&chosen[..included.len()], &included[..]);
        chosen.sort_unstable();
        chosen.dedup();
        prop_assert_eq!(chosen.len(), budget);
        for (source, limit) in of_source.iter().enumerate() {
            let of_source = |&&sample: &&usize| sources[sample] as usize == source;
            let count = chosen.iter().filter(of_source).count() as u64;
            prop_assert!((limit.floor..=limit.ceiling).contains(&count));
        }
    }
}
