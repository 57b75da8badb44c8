"""Grouped sampling: exact budgets, shares, picks inside groups, seed samples, duplicates."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as npst

import reference
from mllm_selector import _internal
from mllm_selector.arrays import kmeans, pick
from mllm_selector.errors import UsageError
from mllm_selector.neighbours import facility_location, near_duplicates

SHARES = ("size-necessity", "necessity", "size", "equal")
WITHIN = ("uniform", "top", "weighted", "k-center", "facility-location", "middle")

scores = st.one_of(st.just(float("nan")), st.integers(-2, 20).map(lambda value: value / 4))


@st.composite
def pools(draw):
    """Necessity, groups and embeddings of a small pool with at least one scored sample."""
    n = draw(st.integers(1, 40))
    necessity = draw(npst.arrays(np.float32, n, elements=scores))
    necessity[draw(st.integers(0, n - 1))] = 1.0
    groups = draw(npst.arrays(np.int64, n, elements=st.integers(-3, 3)))
    X = draw(npst.arrays(np.float32, (n, 3), elements=st.integers(-2, 2).map(float)))
    return necessity, groups, X + np.float32(0.25)


class TestBudget:
    @given(pools(), st.sampled_from(SHARES), st.sampled_from(WITHIN), st.floats(0, 0.9), st.data())
    @settings(deadline=None, max_examples=300)
    def test_is_met_exactly(self, pool, share, within, trim, data):
        necessity, groups, X = pool
        scored = np.flatnonzero(~np.isnan(necessity))
        trimmed = sum(int(trim * np.sum(groups[scored] == group)) for group in np.unique(groups[scored]))
        most = len(scored) - trimmed
        budget = data.draw(st.integers(1, len(necessity)))
        call = {"budget": budget, "groups": groups, "share": share, "within": within, "trim": trim}
        if budget > most:
            with pytest.raises(UsageError, match="budget: "):
                pick(necessity, X, **call)
            return
        rows = pick(necessity, X, **call)
        assert len(rows) == budget
        assert set(rows) <= set(scored)
        assert (np.diff(rows) > 0).all()
        np.testing.assert_array_equal(np.sort(pick(necessity, X, order="chosen", **call)), rows)

    @pytest.mark.parametrize(("budget", "count"), [("10%", 20), (0.1, 20), (7, 7), ("7", 7), ("100%", 200)])
    def test_may_be_a_share_of_all_samples(self, budget, count):
        assert len(pick(np.ones(200), budget=budget, groups="random")) == count

    @pytest.mark.parametrize(
        ("change", "message"),
        [
            ({"budget": 0}, "selects nothing"),
            ({"budget": "101%"}, "more than the whole pool"),
            ({"budget": 10}, r"10 samples cannot be chosen: 8 of 10 are candidates \(2 not scored\)"),
            (
                {"budget": 8, "seed_rows": [0, 1, 2], "seed_samples": "exclude"},
                "2 not scored, 1 excluded as seed samples",
            ),
            (
                {"budget": 2, "seed_rows": [0, 4, 5, 6], "seed_samples": "include"},
                "less than the 4 seed samples",
            ),
            ({"budget": 5, "trim": 0.5, "groups": "random", "group_count": 1}, "leaves 4 of 8 candidates"),
            ({"budget": 2, "groups": "cluster"}, "clusters need embeddings"),
            ({"budget": 2, "groups": "source"}, "give an array with the source"),
            ({"budget": 2, "groups": [1, 2]}, r"shape \(2,\) for 10 samples"),
            ({"budget": 2, "group_count": 9}, "9 groups of 8 candidates"),
            ({"budget": 2, "groups": "colour"}, "'colour' is not one of"),
            ({"budget": 2, "within": "best"}, "'best' is not one of"),
            ({"budget": 2, "share": "best"}, "'best' is not one of"),
            ({"budget": 2, "trim": 1.0}, "trim"),
            ({"budget": 2, "skip_duplicates": 0.9}, "needs embeddings"),
            ({"budget": 2, "within": "k-center"}, "k-center needs embeddings"),
            ({"budget": 2, "within": "facility-location"}, "facility-location needs embeddings"),
            ({"budget": 2, "seed_rows": [10]}, "rows must be from 0 to 9"),
            ({"budget": 2, "seed_rows": [0.5]}, "give whole numbers"),
            ({"budget": 2, "embeddings": np.ones((9, 2), np.float32)}, "9 rows for 10 samples"),
            ({"budget": 2, "necessity": [np.inf]}, "inf of row 0 is not finite"),
            ({"budget": 2, "necessity": [[1.0]]}, "one-dimensional"),
            ({"budget": 2, "necessity": ["high"]}, "not numbers"),
        ],
    )
    def test_wrong_arguments(self, change, message):
        necessity = np.array([1, np.nan, np.nan, 1, 1, 1, 1, 1, 1, 1])
        with pytest.raises(UsageError, match=message):
            pick(**{"necessity": necessity, "groups": "necessity", "group_count": 2, **change})


class TestShares:
    @given(pools(), st.sampled_from(SHARES), st.data())
    @settings(deadline=None, max_examples=300)
    def test_equal_the_largest_remainder_with_capacities(self, pool, share, data):
        necessity, groups, _ = pool
        # Positive scores: what happens at zero is another test's matter.
        necessity = np.abs(np.nan_to_num(necessity)) + np.float32(0.25)
        budget = data.draw(st.integers(1, len(necessity)))
        rows = pick(necessity, budget=budget, groups=groups, share=share)
        sizes = [np.sum(groups == group) for group in np.unique(groups)]
        found = [np.sum(groups[rows] == group) for group in np.unique(groups)]
        expected = reference.allocate(budget, reference.group_weights(necessity, groups, share), sizes)
        np.testing.assert_array_equal(found, expected)

    def test_of_groups_without_necessity_come_last_and_go_by_size(self):
        groups = np.repeat([0, 1, 2], [4, 10, 30])
        necessity = np.where(groups == 0, 1.0, 0.0)
        assert np.bincount(groups[pick(necessity, budget=3, groups=groups)]).tolist() == [3]
        assert np.bincount(groups[pick(necessity, budget=24, groups=groups)]).tolist() == [4, 5, 15]
        nothing = pick(np.zeros(44), budget=22, groups=groups)
        assert np.bincount(groups[nothing]).tolist() == [2, 5, 15]

    def test_count_negative_necessity_as_zero(self):
        groups = np.repeat([0, 1], 10)
        rows = pick(np.where(groups == 0, -5.0, 1.0), budget=6, groups=groups)
        assert np.bincount(groups[rows], minlength=2).tolist() == [0, 6]

    def test_hold_for_every_prefix_of_the_order_of_choice(self):
        groups = np.repeat([0, 1, 2], [100, 200, 700])
        rows = pick(np.ones(1000), budget=200, groups=groups, order="chosen")
        for length in range(1, 201):
            counts = np.bincount(groups[rows[:length]], minlength=3)
            assert np.abs(counts - length * np.array([0.1, 0.2, 0.7])).max() <= 1.5


class TestWithin:
    necessity = np.random.default_rng(5).gamma(2, size=60).astype(np.float32)
    groups = np.arange(60) % 3

    def of_group(self, rows, group):
        return [row for row in rows if self.groups[row] == group]

    def test_top(self):
        rows = pick(self.necessity, budget=15, groups=self.groups, within="top", order="chosen")
        for group in range(3):
            chosen = self.of_group(rows, group)
            members = np.flatnonzero(self.groups == group)
            best = members[np.argsort(-self.necessity[members], kind="stable")]
            assert chosen == best[: len(chosen)].tolist()

    def test_middle(self):
        rows = pick(self.necessity, budget=15, groups=self.groups, within="middle", order="chosen")
        for group in range(3):
            chosen = self.of_group(rows, group)
            members = np.flatnonzero(self.groups == group)
            ranks = np.argsort(np.argsort(self.necessity[members]))
            order = sorted(
                range(len(members)), key=lambda place: (abs(2 * ranks[place] - 19), members[place])
            )
            assert chosen == members[order[: len(chosen)]].tolist()

    def test_k_center(self):
        X = np.random.default_rng(0).normal(size=(60, 4)).astype(np.float32)
        rows = pick(self.necessity, X, budget=15, groups=self.groups, within="k-center", order="chosen")
        for group in range(3):
            chosen = self.of_group(rows, group)
            members = np.flatnonzero(self.groups == group)
            unit = X[members] / np.linalg.norm(X[members], axis=1, keepdims=True)
            first = (unit @ unit.mean(axis=0)).argmax()
            expected, _ = reference.k_center(X[members], len(chosen), first=[first], metric="cosine")
            assert chosen == members[expected].tolist()

    def test_k_center_goes_on_from_included_seed_samples(self):
        X = np.random.default_rng(0).normal(size=(60, 4)).astype(np.float32)
        seeds = [3, 9, 30]
        rows = pick(
            np.ones(60),
            X,
            budget=20,
            groups=np.zeros(60),
            within="k-center",
            seed_rows=seeds,
            seed_samples="include",
            order="chosen",
        )
        expected, _ = reference.k_center(X, 20, first=seeds, metric="cosine")
        assert rows.tolist() == expected.tolist()

    def test_facility_location(self):
        X = np.random.default_rng(0).normal(size=(60, 4)).astype(np.float32)
        call = {"groups": self.groups, "within": "facility-location", "order": "chosen"}
        rows = pick(self.necessity, X, budget=15, **call)
        for group in range(3):
            chosen = self.of_group(rows, group)
            members = np.flatnonzero(self.groups == group)
            expected, _ = reference.facility_location(
                *reference.nearest_neighbours(X[members], 19), len(chosen)
            )
            assert chosen == members[expected].tolist()

    def test_facility_location_of_a_large_group_has_50_neighbours(self):
        X = np.random.default_rng(0).normal(size=(700, 6)).astype(np.float32)
        call = {"groups": np.zeros(700), "within": "facility-location", "order": "chosen"}
        rows = pick(np.ones(700), X, budget=90, **call)
        np.testing.assert_array_equal(rows, facility_location(X, 90, neighbours=50).rows)
        assert (rows != facility_location(X, 90, neighbours=60).rows).any()

    def test_facility_location_goes_on_from_included_seed_samples(self):
        X = np.random.default_rng(0).normal(size=(60, 4)).astype(np.float32)
        seeds = [3, 9, 30]
        call = {"groups": np.zeros(60), "within": "facility-location", "order": "chosen"}
        rows = pick(np.ones(60), X, budget=20, seed_rows=seeds, seed_samples="include", **call)
        # The seed samples are the first rows of the group's matrix.
        members = np.r_[seeds, np.setdiff1d(np.arange(60), seeds)]
        graph = reference.nearest_neighbours(X[members], 50)
        expected, _ = reference.facility_location(*graph, 20, first=[0, 1, 2])
        assert rows.tolist() == members[expected].tolist()

    @pytest.mark.parametrize("within", WITHIN)
    def test_groups_of_one_and_two_samples(self, within):
        X = np.random.default_rng(0).normal(size=(5, 3)).astype(np.float32)
        call = {"groups": [0, 1, 1, 2, 2], "within": within}
        assert pick(np.ones(5), X, budget=5, **call).tolist() == [0, 1, 2, 3, 4]
        rows = pick(np.ones(5), X, budget=4, seed_rows=[0, 3], seed_samples="include", **call)
        assert {0, 3} <= set(rows)

    @pytest.mark.parametrize("within", ["top", "uniform", "weighted", "middle"])
    def test_trimmed_samples_are_never_chosen(self, within):
        # 20 % of 20 samples a group: the four highest of each.
        rows = pick(self.necessity, budget=48, groups=self.groups, within=within, trim=0.2)
        for group in range(3):
            members = np.flatnonzero(self.groups == group)
            highest = members[np.argsort(-self.necessity[members])[:4]]
            assert not set(rows) & set(highest)

    @given(st.sampled_from(WITHIN), st.integers(1, 60), st.integers(1, 60))
    @settings(deadline=None)
    def test_smaller_budgets_of_one_group_are_prefixes(self, within, small, large):
        X = np.random.default_rng(0).normal(size=(60, 4)).astype(np.float32)
        small, large = sorted([small, large])
        call = {"groups": np.zeros(60), "within": within, "order": "chosen"}
        many = pick(self.necessity, X, budget=large, **call)
        few = pick(self.necessity, X, budget=small, **call)
        np.testing.assert_array_equal(few, many[:small])

    def test_uniform_draws_are_uniform(self):
        # Chosen 2 of 5, over many seeds: each pair has the same chance.
        pairs = list(itertools.combinations(range(5), 2))
        counts = dict.fromkeys(pairs, 0)
        for seed in range(4000):
            rows = pick(np.arange(5.0), budget=2, groups=np.zeros(5), seed=seed)
            counts[tuple(rows)] += 1
        deviation = (np.array(list(counts.values())) - 400.0) ** 2 / 400.0
        # Chi-square of 9 degrees of freedom: 27.9 is exceeded once in a thousand, and the seeds are fixed.
        assert deviation.sum() < 27.9

    def test_weighted_draws_have_the_distribution_of_drawing_one_by_one(self):
        necessity = np.array([0.5, 1.0, 2.0, 4.0, 0.0])
        expected = reference.weighted_inclusion(necessity[:4], 2)
        counts = np.zeros(5)
        draws = 6000
        for seed in range(draws):
            counts[pick(necessity, budget=2, groups=np.zeros(5), within="weighted", seed=seed)] += 1
        assert counts[4] == 0
        errors = np.sqrt(expected * (1 - expected) / draws)
        assert (np.abs(counts[:4] / draws - expected) < 4 * errors).all()


class TestGroups:
    def test_clusters_are_those_of_spherical_k_means(self):
        X = np.random.default_rng(0).normal(size=(500, 8)).astype(np.float32)
        necessity = np.random.default_rng(1).exponential(size=500)
        labels = kmeans(X, 15, metric="cosine", seed=3, max_iterations=10, tolerance=1e-4).labels
        for within in ("uniform", "facility-location"):
            call = {"budget": 50, "seed": 3, "within": within}
            np.testing.assert_array_equal(
                pick(necessity, X, **call), pick(necessity, X, groups=labels, **call)
            )

    def test_the_default_is_facility_location_in_clusters_and_uniform_draws_elsewhere(self):
        X = np.random.default_rng(0).normal(size=(500, 8)).astype(np.float32)
        necessity = np.random.default_rng(1).exponential(size=500)
        sources = np.arange(500) % 7
        for groups in ("cluster", "necessity", "source", "random", sources):
            is_cluster = isinstance(groups, str) and groups == "cluster"
            given = sources if isinstance(groups, str) and groups == "source" else None
            call = {"budget": 50, "groups": groups, "sources": given}
            rows = {within: pick(necessity, X, within=within, **call).tolist() for within in WITHIN}
            expected = "facility-location" if is_cluster else "uniform"
            assert pick(necessity, X, **call).tolist() == rows[expected]
            assert rows["facility-location"] != rows["uniform"]

    def test_embeddings_of_unscored_samples_are_not_looked_at(self):
        X = np.random.default_rng(0).normal(size=(500, 8)).astype(np.float16)
        necessity = np.random.default_rng(1).exponential(size=500)
        necessity[::7] = np.nan
        X[::7] = 0
        scored = np.flatnonzero(~np.isnan(necessity))
        parts = [X[:100], X[100:437], X[437:]]
        for within in WITHIN:
            rows = pick(necessity, parts, budget=50, within=within)
            np.testing.assert_array_equal(
                rows, scored[pick(necessity[scored], X[scored], budget=50, within=within)]
            )

    def test_strata_have_equal_sizes_by_rank(self):
        necessity = np.random.default_rng(0).permutation(103).astype(float)
        rows = pick(necessity, budget=10, groups="necessity", share="equal")
        assert sorted((necessity[rows] * 10 // 103).tolist()) == list(range(10))

    def test_random_groups_have_equal_sizes(self):
        groups = _internal.random_groups(1003, 8, 0)
        assert set(np.bincount(groups)) == {125, 126}
        assert not np.array_equal(groups, _internal.random_groups(1003, 8, 1))
        # Neighbours fall into the same group as often as chance has it.
        assert (groups[1:] == groups[:-1]).mean() == pytest.approx(1 / 8, abs=0.04)

    def test_may_be_names(self):
        names = np.array(["b", "a", "b", "c"])
        assert names[pick(np.ones(4), budget=3, groups=names, share="equal")].tolist() == ["b", "a", "c"]


class TestSeedSamples:
    @given(pools(), st.sampled_from(["compete", "include", "exclude"]), st.data())
    @settings(deadline=None)
    def test_properties(self, pool, seed_samples, data):
        necessity, groups, X = pool
        n = len(necessity)
        seeds = data.draw(st.lists(st.integers(0, n - 1), unique=True))
        scored = set(np.flatnonzero(~np.isnan(necessity)))
        candidates = scored - set(seeds) if seed_samples == "exclude" else scored
        least = len(scored & set(seeds)) if seed_samples == "include" else 1
        if not max(least, 1) <= len(candidates):
            return
        budget = data.draw(st.integers(max(least, 1), len(candidates)))
        call = {"budget": budget, "groups": groups, "seed_rows": seeds, "seed_samples": seed_samples}
        rows = pick(necessity, X, order="chosen", **call)
        assert len(set(rows)) == budget
        assert set(rows) <= candidates
        if seed_samples == "include":
            assert rows[: len(scored & set(seeds))].tolist() == sorted(scored & set(seeds))
        if seed_samples == "compete":
            np.testing.assert_array_equal(np.sort(rows), pick(necessity, X, budget=budget, groups=groups))

    def test_included_ones_count_in_the_share_of_their_group(self):
        groups = np.repeat([0, 1], 50)
        rows = pick(
            np.ones(100), budget=20, groups=groups, seed_rows=[0, 1, 2, 3, 4, 5], seed_samples="include"
        )
        assert np.bincount(groups[rows]).tolist() == [10, 10]
        rows = pick(np.ones(100), budget=20, groups=groups, seed_rows=range(14), seed_samples="include")
        assert np.bincount(groups[rows]).tolist() == [14, 6]


class TestSkipDuplicates:
    def sample(self, n=2000, seed=0):
        rng = np.random.default_rng(seed)
        X = rng.normal(size=(n // 4, 8))[rng.integers(n // 4, size=n)] + 0.05 * rng.normal(size=(n, 8))
        return rng.exponential(size=n), X.astype(np.float32)

    @pytest.mark.parametrize("within", WITHIN)
    def test_no_two_chosen_are_near(self, within):
        necessity, X = self.sample()
        rows = pick(necessity, X, budget=300, within=within, skip_duplicates=0.95)
        assert len(near_duplicates(X[rows], 0.95).kept) == len(rows) == 300

    @given(pools(), st.floats(0.3, 1.0), st.data())
    @settings(deadline=None)
    def test_equals_the_rounds_written_out(self, pool, threshold, data):
        necessity, groups, X = pool
        necessity = np.abs(np.nan_to_num(necessity)) + np.float32(0.25)
        budget = data.draw(st.integers(1, len(necessity)))
        call = {"budget": budget, "groups": groups, "within": "top", "order": "chosen"}
        expected = rounds(necessity, groups, X, budget, threshold)
        if len(expected) < budget:
            with pytest.raises(UsageError, match=f"{len(expected)} are left once near-duplicates"):
                pick(necessity, X, skip_duplicates=threshold, **call)
            return
        assert set(pick(necessity, X, skip_duplicates=threshold, **call)) == set(expected)

    def test_included_seed_samples_are_kept_and_skip_others(self):
        X = np.repeat(np.eye(4, dtype=np.float32), 3, axis=0)
        rows = pick(
            np.ones(12),
            X,
            budget=5,
            groups=np.zeros(12),
            seed_rows=[1, 2],
            seed_samples="include",
            skip_duplicates=1.0,
        )
        assert {1, 2} <= set(rows)
        assert sorted(rows // 3) == [0, 0, 1, 2, 3]


def rounds(necessity, groups, X, budget, threshold):
    """Grouped sampling of the top samples without near-duplicates, as `grouped_sample` defines it."""
    names = np.unique(groups)
    queues = [
        sorted(np.flatnonzero(groups == name), key=lambda row: (-necessity[row], row)) for name in names
    ]
    share = np.array(reference.group_weights(necessity, groups, "size-necessity"))
    chosen = [[] for _ in names]
    squares = (X.astype(np.float64) ** 2).sum(axis=1)

    def is_near(row):
        others = [other for taken in chosen for other in taken]
        return any(
            X[row].astype(np.float64) @ X[other] >= threshold * np.sqrt(squares[row] * squares[other])
            for other in others
        )

    number = 0
    while True:
        floors = np.array([len(taken) for taken in chosen])
        capacities = floors + [len(queue) for queue in queues]
        quotas = bounded(min(budget, capacities.sum()), share, floors, capacities)
        looks = (quotas - floors) * 2**number
        number += 1
        if not any(look and queue for look, queue in zip(looks, queues, strict=True)):
            return [row for taken in chosen for row in taken]
        for group, look in enumerate(looks):
            while look and queues[group] and len(chosen[group]) < quotas[group]:
                row = queues[group].pop(0)
                look -= 1
                if not is_near(row):
                    chosen[group].append(row)


def bounded(budget, share, floors, capacities):
    """Shares between floors and capacities, the level found by bisection."""
    low, high = 0.0, 2.0 * max(budget, 1) / share.min()
    for _ in range(200):
        level = (low + high) / 2
        if np.clip(level * share, floors, capacities).sum() < budget:
            low = level
        else:
            high = level
    real = np.clip(high * share, floors, capacities)
    counts = np.floor(real + 1e-9).astype(int)
    order = np.argsort(-np.round(real - counts, 9), kind="stable")
    for group in order[: budget - counts.sum()]:
        counts[group] += 1
    return counts


@pytest.mark.parametrize("within", WITHIN)
@pytest.mark.parametrize("skip_duplicates", [None, 0.9])
def test_same_rows_for_any_number_of_threads_and_parts(within, skip_duplicates):
    rng = np.random.default_rng(0)
    X = rng.normal(size=(3000, 12)).astype(np.float16)
    necessity = rng.exponential(size=3000)
    call = {"budget": 400, "within": within, "skip_duplicates": skip_duplicates, "order": "chosen"}
    expected = pick(necessity, X, **call)
    parts = [X[:1], X[1:1500], X[1500:]]
    for threads in (1, 2, 8):
        np.testing.assert_array_equal(pick(necessity, X, threads=threads, **call), expected)
    np.testing.assert_array_equal(pick(necessity, parts, **call), expected)
    np.testing.assert_array_equal(pick(necessity, X.astype(np.float32), **call), expected)
