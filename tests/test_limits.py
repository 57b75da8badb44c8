"""Floors and ceilings of sources and groups in `pick`."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as npst

import reference
from mllm_selector.arrays import pick
from mllm_selector.config import Limits, PickOptions
from mllm_selector.errors import UsageError
from mllm_selector.neighbours import near_duplicates

SHARES = ("size-necessity", "necessity", "size", "equal")
WITHIN = ("uniform", "top", "weighted", "k-center", "facility-location", "middle")
NAMES = np.array(["chat", "ocr", "vqa", "web"])


@st.composite
def pools(draw):
    """Necessity above zero, groups, sources (as numbers) and embeddings of a small pool."""
    n = draw(st.integers(1, 60))
    necessity = draw(npst.arrays(np.float32, n, elements=st.integers(1, 20).map(lambda value: value / 4)))
    groups = draw(npst.arrays(np.int64, n, elements=st.integers(0, 4)))
    sources = draw(npst.arrays(np.int64, n, elements=st.integers(0, 3)))
    X = draw(npst.arrays(np.float32, (n, 3), elements=st.integers(-2, 2).map(float)))
    return necessity, groups, sources, X + np.float32(0.25)


@st.composite
def limited_pools(draw):
    """A pool, a budget, and floors and ceilings of some of its sources that can be kept."""
    necessity, groups, sources, X = draw(pools())
    sizes = np.bincount(sources, minlength=4)
    floors = {name: draw(st.integers(0, sizes[name])) for name in np.unique(sources) if draw(st.booleans())}
    ceilings = {
        name: draw(st.integers(floors.get(name, 0), sizes[name]))
        for name in np.unique(sources)
        if draw(st.booleans())
    }
    least = sum(floors.values())
    most = sum(min(ceilings.get(name, sizes[name]), sizes[name]) for name in range(4))
    assume(most >= 1)
    budget = draw(st.integers(max(1, least), most))
    return necessity, groups, sources, X, budget, floors, ceilings


def named(limits):
    return {NAMES[source]: int(count) for source, count in limits.items()}


def expected_counts(necessity, groups, sources, budget, share, floors, ceilings):
    """Samples chosen of each source and group, by the rule that `pick` documents."""
    sizes = np.bincount(sources, minlength=4)
    limited = [
        source
        for source in range(4)
        if floors.get(source, 0) > 0 or ceilings.get(source, budget) < min(sizes[source], budget)
    ]
    strata = np.array([limited.index(s) if s in limited else len(limited) for s in sources])
    codes = np.unique(groups, return_inverse=True)[1]
    parts = np.zeros((len(limited) + 1, codes.max() + 1))
    np.add.at(parts, (strata, codes), 1)
    weights = np.array(reference.group_weights(necessity, groups, share)) * parts / parts.sum(axis=0)
    available = parts.sum(axis=1)
    low = [floors.get(source, 0) for source in limited] + [0]
    high = [min(ceilings.get(source, np.inf), sizes[source]) for source in limited] + [available[-1]]
    return strata, codes, reference.limited_shares(budget, weights, parts, low, high)


class TestShares:
    @given(limited_pools(), st.sampled_from(SHARES))
    @settings(max_examples=400)
    def test_equal_the_rule_written_out(self, pool, share):
        necessity, groups, sources, _, budget, floors, ceilings = pool
        rows = pick(
            necessity,
            budget=budget,
            groups=groups,
            share=share,
            sources=NAMES[sources],
            floors=named(floors),
            ceilings=named(ceilings),
        )
        strata, codes, expected = expected_counts(necessity, groups, sources, budget, share, floors, ceilings)
        found = np.zeros_like(expected)
        np.add.at(found, (strata[rows], codes[rows]), 1)
        np.testing.assert_array_equal(found, expected)

    @given(limited_pools(), st.sampled_from(["necessity", "random", "source"]), st.sampled_from(WITHIN))
    def test_keep_the_bounds_for_every_kind_of_group(self, pool, groups, within):
        necessity, _, sources, X, budget, floors, ceilings = pool
        call = {"budget": budget, "groups": groups, "within": within, "sources": NAMES[sources]}
        call |= {"floors": named(floors), "ceilings": named(ceilings)}
        if groups != "source":
            call["group_count"] = min(len(necessity), 4)
        rows = pick(necessity, X, **call)
        counts = np.bincount(sources[rows], minlength=4)
        assert len(set(rows)) == len(rows) == budget
        assert all(counts[source] >= floor for source, floor in floors.items())
        assert all(counts[source] <= ceiling for source, ceiling in ceilings.items())
        np.testing.assert_array_equal(np.sort(pick(necessity, X, order="chosen", **call)), rows)

    @given(pools(), st.data())
    def test_of_groups_with_limits_of_their_own(self, pool, data):
        # The groups are what is limited, so these are shares within bounds.
        necessity, groups, _, _ = pool
        sizes = np.bincount(groups, minlength=5)
        present = np.flatnonzero(sizes)
        floors = {group: data.draw(st.integers(0, sizes[group])) for group in present}
        ceilings = {group: data.draw(st.integers(floors[group], sizes[group])) for group in present}
        assume(sum(ceilings.values()) >= 1)
        budget = data.draw(st.integers(max(1, sum(floors.values())), sum(ceilings.values())))
        rows = pick(necessity, budget=budget, groups=groups, share="size", floors=floors, ceilings=ceilings)
        low, high = (np.array([limits[group] for group in present]) for limits in (floors, ceilings))
        expected = reference.at_level(budget, lambda level: np.clip(level * sizes[present], low, high))
        found = np.bincount(groups[rows], minlength=5)[present]
        assert (low <= found).all()
        assert (found <= high).all()
        # Groups whose limits cannot matter are rounded together and then one by one.
        assert np.abs(found - expected).max() < 2

    @given(pools(), st.sampled_from(WITHIN), st.data())
    def test_stay_the_same_rows_where_limits_cannot_matter(self, pool, within, data):
        necessity, groups, sources, X = pool
        budget = data.draw(st.integers(1, len(necessity)))
        call = {"budget": budget, "groups": groups, "within": within, "order": "chosen"}
        limits = {"floors": {"*": 0}, "ceilings": {"*": "100%"}}
        np.testing.assert_array_equal(
            pick(necessity, X, sources=NAMES[sources], **limits, **call), pick(necessity, X, **call)
        )
        np.testing.assert_array_equal(
            pick(necessity, X, sources=NAMES[sources], floors={}, ceilings={}, **call),
            pick(necessity, X, **call),
        )

    def test_are_kept_by_groups_where_limits_are_not_reached(self):
        rng = np.random.default_rng(0)
        groups, sources = (
            rng.integers(50, size=20_000),
            NAMES[rng.choice(4, size=20_000, p=[0.4, 0.3, 0.2, 0.1])],
        )
        necessity = rng.gamma(2, size=20_000)
        call = {"budget": 1000, "groups": groups}
        free = np.bincount(groups[pick(necessity, **call)])
        limits = {"floors": {"*": "5%"}, "ceilings": {"*": "50%"}}
        limited = np.bincount(groups[pick(necessity, sources=sources, **limits, **call)])
        assert np.abs(free - limited).max() <= 2

    def test_of_groups_in_one_source_move_to_the_others(self):
        # Two groups, half of each in either source; the ceiling of one is half of what it would get.
        groups, sources = np.repeat([0, 1], 200), np.tile([0, 1], 200)
        necessity = np.where(groups == 0, 3.0, 1.0)
        rows = pick(necessity, budget=80, groups=groups, sources=sources, ceilings={0: 20})
        counts = np.zeros((2, 2), int)
        np.add.at(counts, (sources[rows], groups[rows]), 1)
        assert counts.tolist() == [[15, 5], [45, 15]]

    def test_hold_for_every_prefix_of_the_order_of_choice(self):
        sources = np.repeat([0, 1, 2], [100, 200, 700])
        groups = np.arange(1000) % 2
        call = {"groups": groups, "sources": sources, "order": "chosen"}
        rows = pick(np.ones(1000), budget=200, floors={0: "40%"}, ceilings={2: "45%"}, **call)
        for length in range(1, 201):
            counts = np.bincount(sources[rows[:length]], minlength=3)
            assert np.abs(counts - length * np.array([0.4, 0.15, 0.45])).max() <= 1.5
            of_groups = np.bincount(groups[rows[:length]], minlength=2)
            assert abs(of_groups[0] - of_groups[1]) <= 4


class TestBounds:
    def counts(self, budget, **call):
        sources = np.repeat(NAMES, [10, 20, 30, 40])
        rows = pick(np.ones(100), budget=budget, groups="source", sources=sources, **call)
        return [int((sources[rows] == name).sum()) for name in NAMES]

    def test_may_be_counts_shares_or_for_all_others(self):
        assert self.counts(20) == [2, 4, 6, 8]
        assert self.counts(20, floors={"chat": 8}) == [8, 3, 4, 5]
        assert self.counts(20, floors={"chat": "40%"}) == [8, 3, 4, 5]
        assert self.counts(20, ceilings={"web": 0.1}) == [3, 6, 9, 2]
        assert self.counts(20, floors={"*": "25%"}) == [5, 5, 5, 5]
        assert self.counts(20, ceilings={"*": 3, "web": "100%"}) == [3, 3, 3, 11]
        assert self.counts(20, ceilings={"web": 0, "vqa": "0%"}) == [7, 13, 0, 0]
        assert self.counts(20, floors={"chat": 4}, ceilings={"*": "30%"}) == [4, 4, 6, 6]

    @given(st.integers(4, 40), st.sampled_from(["25%", 0.25]))
    def test_that_are_shares_of_all_fit_every_budget(self, budget, quarter):
        counts = self.counts(budget, floors={"*": quarter}, ceilings={"*": quarter})
        assert sum(counts) == budget
        assert max(counts) - min(counts) <= 1

    def test_count_included_seed_samples(self):
        sources = np.repeat([0, 1], 50)
        call = {"groups": "random", "sources": sources, "seed_samples": "include", "seed_rows": range(6)}
        rows = pick(np.ones(100), budget=20, ceilings={0: 8}, **call)
        assert set(range(6)) <= set(rows)
        assert np.bincount(sources[rows]).tolist() == [8, 12]
        with pytest.raises(UsageError, match="ceiling of '0': 5 is less than its 6 seed samples"):
            pick(np.ones(100), budget=20, ceilings={0: 5}, **call)
        with pytest.raises(
            UsageError, match=r"21 with the seed samples, which are all taken: more than .* 20"
        ):
            pick(np.ones(100), budget=20, floors={1: 15}, **call)

    def test_are_kept_without_near_duplicates(self):
        rng = np.random.default_rng(0)
        X = rng.normal(size=(500, 8))[rng.integers(500, size=2000)] + 0.05 * rng.normal(size=(2000, 8))
        X = X.astype(np.float32)
        sources = rng.choice(4, size=2000, p=[0.7, 0.1, 0.1, 0.1])
        call = {"sources": sources, "skip_duplicates": 0.95, "budget": 300}
        rows = pick(rng.exponential(size=2000), X, floors={3: "20%"}, ceilings={0: 100}, **call)
        counts = np.bincount(sources[rows])
        assert len(near_duplicates(X[rows], 0.95).kept) == len(rows) == 300
        assert counts[0] == 100
        assert counts[3] >= 60

    def test_that_near_duplicates_make_impossible(self):
        X = np.eye(10, dtype=np.float32)[np.concatenate([np.arange(9), [9] * 9])]
        sources = np.repeat(["many", "one"], 9)
        call = {"groups": np.zeros(18), "sources": sources, "skip_duplicates": 0.9}
        with pytest.raises(
            UsageError, match=r"floor of 'one': 2 .* 1 are left .* lower the floor to at most 1"
        ):
            pick(np.ones(18), X, budget=5, floors={"one": 2}, **call)
        with pytest.raises(UsageError, match=r"6 are left .* raise the cosine, or raise the ceilings"):
            pick(np.ones(18), X, budget=8, ceilings={"many": 5}, **call)

    @pytest.mark.parametrize(
        ("change", "message"),
        [
            (
                {"floors": {"orc": 1}},
                "floor of 'orc': nothing has this name; did you mean 'ocr'[?] known are chat",
            ),
            ({"ceilings": {7: 1}}, "ceiling of '7': nothing has this name; known are chat, ocr, vqa, web"),
            ({"floors": {"ocr": 5}, "ceilings": {"ocr": 4}}, "floor of 'ocr': 5 is above its ceiling of 4"),
            ({"floors": {"*": 6}}, "floors add up to 24: more than the budget of 20; .* to at least 24"),
            (
                {"ceilings": {"*": 4}},
                "16 samples .* less than the budget of 20: 'chat' has 9 .* of 4, .* at most 16",
            ),
            ({"floors": {"*": 10}}, "floor: 'chat' has 9 candidates for a floor of 10; lower the floor"),
            ({"floors": {"chat": 6}, "trim": 0.06}, "'chat' has 5 candidates for a floor of 6"),
            ({"floors": {"chat": -1}}, "floors chat: -1 is below 0"),
            ({"floors": {"chat": "101%"}}, "floors chat: 101% is more than the whole budget"),
            ({"floors": {"chat": "few"}}, "floors chat: 'few' is neither"),
            ({"ceilings": {"chat": 2.5}}, "ceilings chat: 2.5 is not a whole number"),
            ({"floors": {"chat": 1}, "sources": None}, "give an array with the source of each sample"),
            (
                {"sources": [1, 2]},
                r"sources: an array of shape \(2,\) for 100 samples; give one source for each",
            ),
        ],
    )
    def test_that_are_wrong(self, change, message):
        necessity = np.arange(100.0)
        necessity[0] = np.nan
        sources = np.repeat(NAMES, [10, 20, 30, 40])
        call = {"budget": 20, "groups": "necessity", "group_count": 1, "sources": sources}
        if "trim" in change:
            necessity = necessity[::-1]  # so that the trimmed ones are of the smallest source
        with pytest.raises(UsageError, match=message):
            pick(necessity, **{**call, **change})


class TestOptions:
    def test_may_be_a_mapping_or_texts(self):
        of_mapping = PickOptions(budget=10, source_floor={"a=b": 5, "*": "10%"})
        of_texts = PickOptions(budget=10, source_floor=["a=b=5", "* = 10%"])
        assert of_mapping.as_json() == of_texts.as_json()
        assert of_mapping.as_json()["source_floor"] == {"a=b": "5", "*": "10%"}
        again = PickOptions(budget=10, source_floor=of_mapping.as_json()["source_floor"])
        assert again == of_mapping
        assert PickOptions(budget=10, source_floor={}).source_floor is None

    def test_of_the_wrong_type(self):
        with pytest.raises(UsageError, match="--source-floor: 5 is not of type mapping of names"):
            PickOptions(budget=10, source_floor=5)

    @given(
        st.dictionaries(
            st.text(), st.one_of(st.integers(0, 10**9), st.floats(0.001, 99.9).map("{:.6f}%".format))
        )
    )
    def test_are_the_same_when_read_back(self, amounts):
        limits = Limits.parse(amounts)
        assert Limits.parse({name: str(amount) for name, amount in limits.amounts.items()}) == limits
