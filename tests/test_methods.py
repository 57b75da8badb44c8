"""Selection methods: against their formulas, by properties, and on a fixed input."""

from __future__ import annotations

import dataclasses
import re

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import method_reference
import reference
from array_fixtures import clusters
from mllm_selector import _internal, methods
from mllm_selector.arrays import pick
from mllm_selector.config import PickOptions
from mllm_selector.errors import UsageError
from mllm_selector.progress import SilentProgress
from mllm_selector.sampling import cluster

SOURCES = ["chat", "ocr", "vqa"]
# What a method cannot do without.
NEEDED = {"mmssr": {"capabilities": ["counting", "reading"]}, "deita": {"threshold": 0.99}}
NAMES = list(methods.known())
PREFIX = (
    "random",
    "top",
    "middle",
    "k-center",
    "weighted-k-center",
    "d3",
    "miwv",
    "deita",
    "self-filter",
    "semdedup",
)


class Data:
    """A pool of `n` samples in clusters with all columns."""

    def __init__(self, n, seed=0, d=8, spread=0.6):
        rng = np.random.default_rng(seed)
        self.X = clusters(n, d, centres=6, seed=seed, spread=spread)
        self.necessity = rng.gamma(2, size=n).astype(np.float32)
        self.sources = np.array(SOURCES)[rng.choice(3, size=n, p=[0.6, 0.3, 0.1])]
        self.columns = {
            "upd": rng.random(n).astype(np.float32),
            "miwv": rng.normal(size=n).astype(np.float32),
            "visnec": rng.normal(1, 1, size=n).astype(np.float32),
            "ifd": rng.random(n).astype(np.float32),
            "counting": rng.integers(0, 6, n).astype(np.float32),
            "reading": rng.integers(0, 6, n).astype(np.float32),
            "short": rng.integers(0, 2, n).astype(np.float32),
            "long": rng.integers(0, 2, n).astype(np.float32),
            "quality": rng.random(n).astype(np.float32),
        }

    def pick(self, method, budget, order="chosen", **options):
        given = {"param": NEEDED.get(method), "sources": self.sources, "columns": self.columns} | options
        return pick(self.necessity, self.X, budget=budget, method=method, order=order, **given)


@pytest.fixture(scope="module")
def data():
    return Data(200)


def labels_of(X, count, index=None):
    options = PickOptions(budget=1)
    n = len(X) if index is None else len(index)
    return cluster([X], index, n, count, options.seed, options.threads, SilentProgress())


class TestAgainstTheFormulas:
    def test_top_and_middle(self, data):
        by_score = np.argsort(-data.necessity, kind="stable")
        np.testing.assert_array_equal(data.pick("top", 30), by_score[:30])
        by_quality = np.argsort(-data.columns["quality"], kind="stable")
        np.testing.assert_array_equal(data.pick("top", 30, param={"by": "quality"}), by_quality[:30])
        np.testing.assert_array_equal(data.pick("miwv", 30), np.argsort(-data.columns["miwv"])[:30])
        rank = np.empty(200)
        rank[by_score] = np.arange(200)
        expected = np.lexsort((np.arange(200), np.abs(rank - 99.5)))
        np.testing.assert_array_equal(data.pick("middle", 30), expected[:30])

    def test_random_is_uniform_and_differs_by_seed(self, data):
        counts = np.zeros(200)
        for seed in range(400):
            counts[data.pick("random", 50, seed=seed)] += 1
        # 400 draws of a quarter: 100 +- 8.7 each, and 200 of them.
        assert abs(counts - 100).max() < 5 * 8.7
        assert counts.std() == pytest.approx(8.7, rel=0.2)

    @pytest.mark.parametrize("share", ["size", "equal"])
    def test_stratified(self, data, share):
        rows = data.pick("stratified", 60, param={"share": share})
        sizes = np.unique(data.sources, return_counts=True)[1]
        weights = sizes if share == "size" else np.ones(3)
        expected = reference.allocate(60, weights, sizes)
        np.testing.assert_array_equal(np.unique(data.sources[rows], return_counts=True)[1], expected)

    def test_k_center(self, data):
        unit = data.X / np.linalg.norm(data.X, axis=1, keepdims=True)
        first = int(np.argmax(unit @ unit.mean(axis=0)))
        expected, _ = reference.k_center(data.X, 40, (first,), "cosine")
        np.testing.assert_array_equal(data.pick("k-center", 40), expected)

    def test_weighted_k_center_and_d3(self, data):
        expected = method_reference.weighted_cover(data.X, data.necessity, 40)
        np.testing.assert_array_equal(data.pick("weighted-k-center", 40), expected)
        upd, quality = data.columns["upd"], data.columns["quality"]
        expected = method_reference.weighted_cover(data.X, upd, 40)
        np.testing.assert_array_equal(data.pick("d3", 40), expected)
        expected = method_reference.weighted_cover(data.X, upd * quality, 40)
        np.testing.assert_array_equal(data.pick("d3", 40, param={"dependability": "quality"}), expected)

    @pytest.mark.parametrize("threshold", [0.7, 0.95])
    def test_deita(self, data, threshold):
        param = {"score": "necessity,quality", "threshold": threshold}
        expected = method_reference.deita(data.X, data.necessity * data.columns["quality"], 20, threshold)
        np.testing.assert_array_equal(data.pick("deita", 20, param=param), expected)

    @pytest.mark.parametrize(("gamma", "neighbours", "budget"), [(1.0, 10, 195), (0.3, 3, 60), (0.0, 1, 60)])
    def test_self_filter(self, data, gamma, neighbours, budget):
        # 195 of 200: most neighbours are taken, and few are left.
        expected = method_reference.self_filter(data.X, data.necessity, budget, gamma, neighbours)
        found = data.pick("self-filter", budget, param={"gamma": gamma, "neighbours": neighbours})
        np.testing.assert_array_equal(found, expected)

    def test_semdedup(self, data):
        _, groups = labels_of(data.X, 7)
        greatest = method_reference.redundancy(data.X, groups)
        found = data.pick("semdedup", 60, group_count=7)
        eps = 1 - np.sort(greatest)[59]
        kept = np.flatnonzero(greatest <= 1 - eps + 1e-9)
        np.testing.assert_array_equal(np.sort(found), kept)

    def test_visnec(self):
        # Clusters of 2 x 40 samples above 0: half of each is a whole number.
        rng = np.random.default_rng(3)
        X = np.repeat(np.eye(2, dtype=np.float32), 50, axis=0) + 0.01 * rng.random((100, 2), np.float32)
        scores = rng.random(100).astype(np.float32) + 0.1
        scores[:10], scores[50:60] = -1, 0
        found = pick(np.ones(100), X, budget=40, method="visnec", columns={"visnec": scores}, group_count=2)
        expected = method_reference.visnec(scores, np.repeat([0, 1], 50), 0.5)
        np.testing.assert_array_equal(found, np.sort(expected))

    def test_greedy_mmd_on_200_points(self, data):
        # One cluster gets the whole budget.
        found = data.pick("coincide", 60, group_count=1)
        expected = method_reference.greedy_mmd(method_reference.gaussian_kernel(data.X), 60)
        np.testing.assert_array_equal(found, expected)

    def test_coincide(self):
        data = Data(240, seed=1, spread=1.0)
        centroids, labels = labels_of(data.X, 6)
        expected = method_reference.coincide(data.X, labels, centroids, 60)
        assert len(expected) == 60, "the paper's rule meets this budget"
        np.testing.assert_array_equal(data.pick("coincide", 60, "pool", group_count=6), np.sort(expected))

    def test_presel(self):
        data = Data(600, seed=2)
        ratios = data.columns["ifd"].copy()
        ratios[::3] = np.nan  # a reference set only
        found = data.pick("presel", 90, columns={"ifd": ratios})
        shares = method_reference.presel_shares(ratios.astype(np.float64), data.sources)
        sizes = np.unique(data.sources, return_counts=True)[1]
        quotas = reference.allocate(90, shares, sizes)
        expected = []
        for source, quota in zip(SOURCES, quotas, strict=True):
            members = np.flatnonzero(data.sources == source)
            _, labels = labels_of(data.X, max(1, len(members) // 100), members)
            of_cluster = np.unique(labels, return_counts=True)[1]
            typical = method_reference.typicality(data.X[members], labels)
            for label, count in enumerate(reference.allocate(quota, of_cluster, of_cluster)):
                own = np.flatnonzero(labels == label)
                expected += members[own[np.argsort(-typical[own], kind="stable")[:count]]].tolist()
        np.testing.assert_array_equal(np.sort(found), np.sort(expected))

    @pytest.mark.parametrize("styles", [(), ("short", "long")])
    @pytest.mark.parametrize("budget", [2, 50, 110])
    def test_mmssr(self, data, styles, budget):
        names = ("counting", "reading")
        param = {"capabilities": names, "styles": ",".join(styles), "threshold": 1}
        codes = [SOURCES.index(source) for source in data.sources]
        bins_of = [
            [(number, code) for number, style in enumerate(styles) if data.columns[style][row] > 0]
            if styles
            else [(0, code)]
            for row, code in enumerate(codes)
        ]
        scores = {name: data.columns[name] for name in names}
        expected = method_reference.mmssr(scores, bins_of, budget, threshold=1)
        np.testing.assert_array_equal(data.pick("mmssr", budget, param=param), expected)

    @pytest.mark.parametrize("count", [5, 30])
    def test_smoothed_necessity(self, data, count):
        values = method_reference.smoothed(data.X, data.necessity, count)
        expected = np.argsort(-values, kind="stable")[:30]
        found = data.pick("grouped", 30, groups="random", group_count=1, within="top", smooth=count)
        np.testing.assert_array_equal(found, expected)


# The first ten of 40 samples, to show if a change of code changes choices.
PINNED = {
    "grouped": [179, 235, 41, 171, 287, 249, 210, 183, 98, 68],
    "random": [274, 270, 269, 147, 158, 4, 175, 185, 226, 192],
    "stratified": [154, 260, 22, 121, 185, 197, 180, 220, 79, 278],
    "top": [28, 89, 154, 297, 220, 258, 72, 96, 59, 168],
    "middle": [22, 57, 74, 273, 55, 143, 185, 251, 141, 290],
    "k-center": [255, 250, 278, 178, 297, 209, 173, 181, 84, 43],
    "weighted-k-center": [28, 196, 275, 220, 27, 53, 297, 168, 215, 72],
    "d3": [6, 196, 30, 216, 209, 178, 294, 50, 286, 182],
    "miwv": [162, 95, 244, 204, 231, 17, 279, 183, 110, 129],
    "mmssr": [4, 96, 121, 124, 149, 249, 9, 54, 61, 71],
    "visnec": [242, 37, 151, 44, 146, 199, 250, 45, 30, 264],
    "coincide": [287, 210, 247, 41, 294, 68, 269, 183, 115, 51],
    "deita": [28, 89, 154, 297, 220, 258, 72, 96, 59, 168],
    "self-filter": [28, 154, 297, 220, 258, 72, 96, 168, 53, 135],
    "presel": [291, 171, 218, 207, 20, 10, 4, 95, 57, 195],
    "semdedup": [1, 15, 55, 83, 84, 90, 173, 181, 182, 234],
}


@pytest.mark.parametrize("method", NAMES)
def test_the_selection_on_a_fixed_input(method):
    assert Data(300, seed=5).pick(method, 40).tolist()[:10] == PINNED[method]


class TestEveryMethod:
    @pytest.mark.parametrize("method", NAMES)
    def test_threads_and_calls_change_nothing(self, data, method):
        first = data.pick(method, 50, threads=1)
        for threads in (2, 8):
            np.testing.assert_array_equal(data.pick(method, 50, threads=threads), first)
        # float16 of the same values
        half = pick(
            data.necessity,
            [data.X[:70].astype(np.float16), data.X[70:].astype(np.float16)],
            budget=50,
            method=method,
            param=NEEDED.get(method),
            sources=data.sources,
            columns=data.columns,
            order="chosen",
        )
        np.testing.assert_array_equal(half, first)

    @pytest.mark.parametrize("method", PREFIX)
    def test_a_smaller_budget_gives_a_prefix(self, data, method):
        np.testing.assert_array_equal(data.pick(method, 20), data.pick(method, 60)[:20])

    @given(data=st.data())
    @settings(max_examples=300)
    def test_budget_candidates_and_limits_are_kept(self, data):
        method = data.draw(st.sampled_from(NAMES))
        n = data.draw(st.integers(5, 60))
        pool = Data(n, seed=data.draw(st.integers(0, 50)), d=3)
        unscored = data.draw(st.sets(st.integers(0, n - 1), max_size=3))
        pool.necessity[list(unscored)] = np.nan
        seeds = data.draw(st.sets(st.integers(0, n - 1), max_size=5))
        treatment = data.draw(st.sampled_from(["compete", "include", "exclude"]))
        budget = data.draw(st.integers(1, n))
        floors = data.draw(st.dictionaries(st.sampled_from(SOURCES), st.integers(0, n // 3), max_size=2))
        ceilings = data.draw(st.dictionaries(st.sampled_from(SOURCES), st.integers(0, n), max_size=2))
        limits = {
            name: {source: count for source, count in of.items() if source in pool.sources}
            for name, of in (("floors", floors), ("ceilings", ceilings))
        }
        try:
            rows = pool.pick(method, budget, seed_rows=sorted(seeds), seed_samples=treatment, **limits)
        except UsageError as error:
            said = str(error)
            rows = None
        if rows is None:
            assert re.search("budget|floor|ceiling|no sample of source", said), said
            return
        assert len(rows) == len(set(rows)) == budget
        assert not set(rows) & unscored
        if treatment == "exclude":
            assert not set(rows) & seeds
        if treatment == "include":
            lacking = {row for row in seeds if method == "visnec" and np.isnan(pool.columns["visnec"][row])}
            assert seeds - unscored - lacking <= set(rows)
        for source, least in limits["floors"].items():
            assert np.sum(pool.sources[rows] == source) >= least
        for source, most in limits["ceilings"].items():
            assert np.sum(pool.sources[rows] == source) <= most

    # Of grouped, limits may change the rounding: see tests/test_limits.py.
    @pytest.mark.parametrize("method", NAMES[1:])
    def test_limits_that_are_kept_anyway_change_nothing(self, data, method):
        free = data.pick(method, 60)
        counts = {source: int(np.sum(data.sources[free] == source)) for source in SOURCES}
        bounds = {"floors": {"*": min(counts.values())}, "ceilings": {"*": max(counts.values())}}
        np.testing.assert_array_equal(np.sort(data.pick(method, 60, **bounds)), np.sort(free))


@pytest.mark.parametrize("method", ["top", "miwv", "random"])
@pytest.mark.parametrize("ceiling", [0, 5, 20])
def test_a_ceiling_passes_over_samples(data, method, ceiling):
    everyone = data.pick(method, 200)
    is_limited = data.sources[everyone] == "chat"
    allowed = everyone[~is_limited | (np.cumsum(is_limited) <= ceiling)]
    found = data.pick(method, 60, ceilings={"chat": ceiling})
    assert set(found) == set(allowed[:60])


def test_seed_samples_are_the_first_centres(data):
    seeds = np.array([3, 50, 120])
    found = data.pick("k-center", 30, seed_rows=seeds, seed_samples="include")
    expected, _ = reference.k_center(data.X, 30, seeds, "cosine")
    np.testing.assert_array_equal(found, expected)


def test_samples_without_a_needed_score_are_not_chosen(data):
    visnec = np.abs(data.columns["visnec"]) + 1
    visnec[:120] = np.nan
    rows = data.pick("visnec", 80, columns={"visnec": visnec})
    np.testing.assert_array_equal(np.sort(rows), np.arange(120, 200))
    with pytest.raises(UsageError, match=r"80 of 200 are candidates \(120 without visnec\)"):
        data.pick("visnec", 81, columns={"visnec": visnec})


@pytest.mark.parametrize(
    ("method", "options", "message"),
    [
        ("topp", {}, "'topp' is not a method; did you mean top"),
        ("top", {"param": {"bye": 1}}, "the method top has no such parameter; it has by"),
        ("random", {"param": {"by": "x"}}, "it has none"),
        ("top", {"param": {"by": "beauty"}}, "column 'beauty' is missing; join it with --scores"),
        ("top", {"param": {"by": 3}}, "--param by: 3 is not of type text"),
        ("d3", {"columns": {}}, "column 'upd' is missing; score it with 'score --metrics upd'"),
        ("top", {"trim": 0.1}, "--trim: the method top does not use it; it is for grouped"),
        ("k-center", {"group_count": 3}, "--group-count: the method k-center does not use it"),
        ("top", {"groups": np.zeros(200)}, "groups: the method top does not use them"),
        ("coincide", {"param": {"temperature": "hot"}}, "'hot' is not a number"),
        ("coincide", {"param": {"temperature": 0}}, "--param temperature: 0.0 is too small"),
        ("coincide", {"group_count": 201}, "group_count: 201 groups of 200 candidates"),
        ("self-filter", {"param": {"neighbours": "2.5"}}, "'2.5' is not a whole number"),
        ("mmssr", {"param": None}, "--param capabilities is missing"),
        (
            "mmssr",
            {"param": {"capabilities": "counting", "threshold": 5}},
            "budget: 20 samples cannot be chosen",
        ),
        ("mmssr", {"param": {"capabilities": ""}}, "names no column"),
        ("deita", {"param": {"threshold": 0.2}}, "with threshold 0.2: [0-9]+ are left"),
        ("deita", {"param": {"threshold": 1.5}}, "is not a cosine"),
        ("presel", {"sources": None}, "presel needs the sources"),
        ("presel", {"columns": {"ifd": np.full(200, np.nan)}}, "no sample of source 'chat' has a value"),
        ("visnec", {"columns": {"visnec": np.full(200, -1.0)}}, "0 of 200 have one above 0"),
        ("top", {"columns": {"quality": [1.0]}}, "quality has 1 numbers for 200 samples"),
        ("top", {"columns": {"quality": ["good"] * 200}}, "quality: not numbers"),
        ("grouped", {"smooth": 200}, "smooth: 200 neighbours of 200 candidates"),
        ("top", {"sources": None, "ceilings": {"*": 1}}, "floor, ceiling: these need names"),
    ],
)
def test_what_cannot_work_is_refused(data, method, options, message):
    with pytest.raises(UsageError, match=message):
        data.pick(method, 20, **options)


@pytest.mark.parametrize(
    "method", ["k-center", "coincide", "semdedup", "deita", "self-filter", "presel", "d3"]
)
def test_methods_say_that_they_need_embeddings(data, method):
    with pytest.raises(UsageError, match=f"{method} needs embeddings"):
        pick(data.necessity, budget=5, method=method, sources=data.sources, columns=data.columns)


def test_help_lists_every_method_and_parameter():
    text = " ".join(methods.described().split())
    for method in methods.known().values():
        assert f"{method.name} {method.about}" in text
        for field in dataclasses.fields(method.parameters):
            assert f"{field.name}: {field.metadata['help']}" in text
    assert "temperature: Of the softmax over the clusters. Default 0.1." in text


def test_shares_that_cannot_be_met_are_refused():
    with pytest.raises(UsageError, match="the groups take 0 to 3"):
        _internal.allocate(4, [(1.0, 3, 0, 3)])
