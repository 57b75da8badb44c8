"""The report: its numbers against a plain recount of the artifacts, and its page as a browser gets it."""

from __future__ import annotations

import base64
import dataclasses
import hashlib
import io
import json
import re
import shlex
from collections import Counter
from html.parser import HTMLParser
from importlib.resources import files
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.ipc
import pytest
from PIL import Image

from mllm_selector.config import PickOptions, ReportOptions, SeedOptions
from mllm_selector.errors import PoolError, RunDirectoryError
from mllm_selector.metrics import METRICS
from mllm_selector.pool import Pool
from mllm_selector.progress import SilentProgress
from mllm_selector.reporting import words
from mllm_selector.reporting.numbers import collect, unit_of
from mllm_selector.rundir import RunDirectory, StageRecord
from mllm_selector.stages import report
from report_fixtures import REJECTED, write_run

VOID = {"area", "base", "br", "col", "embed", "hr", "img", "input", "link", "meta", "source", "track", "wbr"}


class Page(HTMLParser):
    """Reads a page and fails on tags that are not closed in order."""

    def __init__(self, text: str) -> None:
        super().__init__(convert_charrefs=True)
        self.open: list[str] = []
        self.elements: list[tuple[str, dict[str, str | None]]] = []
        self.words: list[str] = []
        self.feed(text)
        self.close()
        assert self.open == []

    def handle_starttag(self, tag, attrs):
        self.elements.append((tag, dict(attrs)))
        if tag not in VOID:
            self.open.append(tag)

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        if not {"style", "script"} & set(self.open):
            self.words.append(data)

    @property
    def text(self) -> str:
        return " ".join(" ".join(self.words).split())

    def all(self, tag: str) -> list[dict[str, str | None]]:
        return [attributes for name, attributes in self.elements if name == tag]


def make_report(path: Path, **options: int) -> tuple[Page, dict, str]:
    with RunDirectory(path) as run:
        counts = report.run(run, ReportOptions(**options), SilentProgress())
        text = run.report.read_text(encoding="utf-8")
        numbers = json.loads(run.report_numbers.read_text(encoding="utf-8"), parse_constant=pytest.fail)
    assert counts["bytes"] == len(text.encode())
    assert 0 < counts["figures_seconds"] < 600
    assert not [file for file in path.iterdir() if file.suffix == ".tmp"]
    return Page(text), numbers, text


def read(path: Path) -> dict[str, list]:
    with pa.ipc.open_file(path) as file:
        return file.read_all().to_pydict()


@pytest.fixture(scope="module")
def real(report_run: Path) -> tuple[Page, dict, str]:
    return make_report(report_run)


@pytest.fixture(scope="module")
def raw(report_run: Path) -> dict:
    """Return the artifacts as plain lists, read without the package."""
    scores: dict[str, list] = {"nll": [], "reason": []}
    for part in sorted((report_run / "scores").iterdir()):
        table = read(part)
        for name in scores:
            scores[name] += table[name]
    return {
        "pool": read(report_run / "pool.arrow"),
        "selection": read(report_run / "selection.arrow"),
        "seed": read(report_run / "seed" / "indices.arrow")["row"],
        "necessity": scores["nll"],
        "reason": scores["reason"],
    }


def test_counts_are_those_of_the_files(real, raw):
    _, numbers, _ = real
    count = len(raw["pool"]["id"])
    chosen = raw["selection"]["row"]
    assert numbers["samples"] == count
    assert numbers["rejected"] == len(REJECTED)
    assert numbers["read"] == count + len(REJECTED)
    assert numbers["chosen"] == len(chosen) == round(count / 10)
    assert numbers["seed_subset"] == len(raw["seed"]) == 100
    assert numbers["seed_chosen"] == len(set(raw["seed"]) & set(chosen)) == sum(raw["selection"]["seed"])
    reasons = {entry["reason"]: entry["count"] for entry in numbers["rejected_reasons"]}
    assert reasons == {"image-missing": 6, "no-answer": 1}
    assert [len(entry["examples"]) for entry in numbers["rejected_reasons"]] == [3, 1]
    example = numbers["rejected_reasons"][0]["examples"][0]
    assert example.pop("text").startswith('{"id": ')
    assert example == {"id": "a", "record": 3, "detail": "x.png is not there"}
    unscored = {entry["reason"]: entry["count"] for entry in numbers["unscored_reasons"]}
    assert unscored == {"too-long": 2, "image-unreadable": 1}
    assert [entry["examples"] for entry in numbers["unscored_reasons"]] == [
        [
            {"id": raw["pool"]["id"][4], "row": 4, "detail": "9,000 tokens"},
            {"id": raw["pool"]["id"][40], "row": 40, "detail": "8,500 tokens"},
        ],
        [{"id": raw["pool"]["id"][41], "row": 41, "detail": "x.png: cut off"}],
    ]


def test_necessity_is_described_as_numpy_does(real, raw):
    _, numbers, _ = real
    necessity = np.array(raw["necessity"], dtype=np.float64)
    chosen = necessity[raw["selection"]["row"]]
    for name, values in (("pool_necessity", necessity), ("chosen_necessity", chosen)):
        values = values[~np.isnan(values)]
        told = numbers[name]
        assert told["scored"] == len(values)
        assert told["mean"] == pytest.approx(values.mean(), rel=1e-12)
        assert told["highest"] == values.max()
        quantiles = [told["p10"], told["median"], told["p90"]]
        assert quantiles == pytest.approx(np.percentile(values, [10, 50, 90]).tolist(), rel=1e-12)


def counted(values: list[float], edges: list[float]) -> list[int]:
    """Count values in bins the slow way."""
    counts = [0] * (len(edges) - 1)
    for value in values:
        inside = [n for n in range(len(counts)) if edges[n] <= value < edges[n + 1]]
        counts[inside[0] if inside else -1] += 1
    return counts


def test_histograms_count_every_scored_sample(real, raw):
    _, numbers, _ = real
    chosen = set(raw["selection"]["row"])
    sources = raw["pool"]["source"]
    edges = numbers["histogram"]["edges"]
    rows = [row for row, value in enumerate(raw["necessity"]) if not np.isnan(value)]
    assert edges == sorted(set(edges))
    assert edges[0] <= min(raw["necessity"][row] for row in rows)
    assert edges[-1] >= max(raw["necessity"][row] for row in rows)
    histograms = [(numbers["histogram"], rows)]
    histograms += [
        (source["histogram"], [row for row in rows if sources[row] == source["source"]])
        for source in numbers["sources"]
    ]
    for histogram, own in histograms:
        assert histogram["edges"] == edges
        assert histogram["pool"] == counted([raw["necessity"][row] for row in own], edges)
        own_chosen = [raw["necessity"][row] for row in own if row in chosen]
        assert histogram["chosen"] == counted(own_chosen, edges)


def test_sources_before_and_after(real, raw):
    _, numbers, _ = real
    sources = raw["pool"]["source"]
    before = Counter(sources)
    after = Counter(sources[row] for row in raw["selection"]["row"])
    assert [source["pool"] for source in numbers["sources"]] == sorted(before.values(), reverse=True)
    assert {source["source"]: source["pool"] for source in numbers["sources"]} == before
    assert {source["source"]: source["chosen"] for source in numbers["sources"]} == after
    for source in numbers["sources"]:
        assert source["pool_share"] == pytest.approx(before[source["source"]] / len(sources))
        assert source["chosen_share"] == pytest.approx(after[source["source"]] / after.total())
        own = [n for n, s in zip(raw["necessity"], sources, strict=True) if s == source["source"]]
        assert source["mean_necessity"] == pytest.approx(np.nanmean(np.array(own, dtype=np.float64)))


def test_groups_say_size_choice_and_main_source(real, raw):
    _, numbers, _ = real
    chosen = Counter(raw["selection"]["group"])
    assert numbers["groups_are_whole"]
    assert {group["group"]: group["chosen"] for group in numbers["groups"] if group["chosen"]} == chosen
    assert sum(group["size"] for group in numbers["groups"]) == numbers["samples"]
    for group in numbers["groups"]:
        rows = zip(raw["selection"]["row"], raw["selection"]["group"], strict=True)
        own = Counter(raw["pool"]["source"][row] for row, number in rows if number == group["group"])
        if own:
            assert own[group["main_source"]] == max(own.values())
            assert group["main_source_share"] == max(own.values()) / own.total()


def test_galleries_hold_the_right_samples(real, raw):
    page, numbers, _ = real
    necessity = np.array(raw["necessity"], dtype=np.float64)
    chosen = set(raw["selection"]["row"])
    ranked = sorted(np.flatnonzero(~np.isnan(necessity)).tolist(), key=lambda row: (-necessity[row], row))
    assert [item["row"] for item in numbers["highest"]] == ranked[:24]
    assert [item["row"] for item in numbers["lowest"]] == ranked[::-1][:24]
    across = [item["row"] for item in numbers["across"]]
    ranked_chosen = [row for row in ranked if row in chosen]
    assert len(across) == 24
    assert across == [row for row in ranked_chosen if row in set(across)]
    assert (across[0], across[-1]) == (ranked_chosen[0], ranked_chosen[-1])
    for item in numbers["highest"] + numbers["across"] + numbers["lowest"]:
        assert item["id"] == raw["pool"]["id"][item["row"]]
        assert item["necessity"] == necessity[item["row"]]
        assert item["chosen"] == (item["row"] in chosen)
        assert item["seed"] == (item["row"] in raw["seed"])
        assert item["id"] in page.text


def test_the_page_says_the_numbers(real):
    page, numbers, _ = real
    for value in (numbers["samples"], numbers["chosen"], numbers["read"]):
        assert f"{value:,}" in page.text
    for source in numbers["sources"]:
        assert f"{source['source']} {source['pool_share']:.1%} {source['chosen_share']:.1%}" in page.text
    for sentence in (
        "The image file is missing",
        "More tokens than are scored",
        "9,000 tokens",
        "2503.20502",
        "is not public",
        "could be chosen like any other",
        "wrong answers are common",
    ):
        assert sentence in page.text
    assert "1 min 01 s" in page.text
    assert "1,480 MB" in page.text


def test_the_page_needs_nothing_else(real):
    page, _, text = real
    assert len(text) < 5_000_000
    assert not {"link", "iframe", "object", "embed", "base", "form"} & {n for n, _ in page.elements}
    for _, attributes in page.elements:
        assert not [name for name in attributes if name.startswith("on")]
        for name in ("src", "srcset", "data", "action", "poster", "xlink:href"):
            assert (attributes.get(name) or "data:").startswith("data:")
        assert (attributes.get("href") or "#").startswith("#")
    style = re.search("<style>.*?</style>", text, re.DOTALL)[0]
    assert "url(" not in style
    assert "@import" not in style
    assert "sourceMappingURL" not in text
    policy = [meta for meta in page.all("meta") if meta.get("http-equiv") == "Content-Security-Policy"]
    assert policy[0]["content"].startswith("default-src 'none'")
    bodies = re.findall("<script>(.*?)</script>", text, re.DOTALL)
    digests = [base64.b64encode(hashlib.sha256(body.encode()).digest()).decode() for body in bodies]
    assert re.findall("'sha256-(.*?)'", policy[0]["content"]) == digests


def test_the_plotting_library_is_the_published_one():
    folder = files("mllm_selector.reporting") / "vendor"
    digest = hashlib.sha384(folder.joinpath("chart.umd.js").read_bytes()).digest()
    licence = folder.joinpath("LICENSE-chart.js.md").read_text()
    assert f"sha384-{base64.b64encode(digest).decode()}" in licence
    assert "Permission is hereby granted" in licence


def test_the_page_can_be_used_by_everybody(real):
    page, _, _ = real
    anchors = {attributes["id"] for _, attributes in page.elements if "id" in attributes}
    assert {link["href"].removeprefix("#") for link in page.all("a")} <= anchors
    assert page.all("html")[0]["lang"] == "en"
    assert all(image["alt"] for image in page.all("img"))
    assert all(drawing["aria-label"] for drawing in page.all("svg") if drawing.get("role") == "img")
    assert all(drawing.get("role") == "img" for drawing in page.all("svg"))
    assert len(page.all("h1")) == 1


def test_images_are_small_copies(real):
    page, numbers, _ = real
    assert len(page.all("img")) > len(numbers["highest"])
    for image in page.all("img"):
        head, data = image["src"].split(",", 1)
        with Image.open(io.BytesIO(base64.b64decode(data))) as opened:
            assert head == f"data:image/{opened.format.lower()};base64"
            assert opened.size == (int(image["width"]), int(image["height"])) == (400, 100)


def test_the_same_report_again(real, report_run):
    _, _, text = real
    assert make_report(report_run)[2] == text


def test_the_command_repeats_the_run(real):
    _, _, text = real
    command = re.search(r"mllm-selector select .*?(?=</code>)", text, re.DOTALL)[0]
    given = shlex.split(command.replace("&#x27;", "'").replace("\\\n", " "))
    assert given[:3] == ["mllm-selector", "select", "pool.json"]
    options = dict(zip(given[3::2], given[4::2], strict=True))
    assert options["--budget"] == "10%"
    assert options["--model"] == "some/model"
    assert options["--seed-size"] == "100"
    assert "--lora-rank" not in options, "defaults are not repeated"


EVIL = "<script>alert(1)</script>"


def evil_records() -> list[dict]:
    return [
        {
            "id": f"{EVIL}{number}",
            "source": f'"><img src=x onerror=alert(1)>{number % 2}',
            "image": ["gone.png", b"not an image"],
            "conversations": [
                {"from": "human", "value": f"<image>\n<image>\n{EVIL} &amp; \x00\x1b \u202e"},
                {"from": "gpt", "value": f"</style></title>{EVIL}"},
            ],
        }
        for number in range(12)
    ]


def test_text_of_the_pool_stays_text(tmp_path):
    rejected = [dict.fromkeys(("id", "detail", "reason"), EVIL) | {"record": 1, "offset": 0, "length": 1}]
    path = write_run(
        tmp_path / f"run{EVIL.replace('/', '')}",
        evil_records(),
        tmp_path,
        budget=0.5,
        rejected=rejected,
        unscored={3: EVIL},
    )
    page, _, text = make_report(path)
    assert [tag for tag, _ in page.elements].count("script") == text.lower().count("<script") == 5
    assert "\x00" not in text
    assert not page.all("img")
    assert page.text.count(EVIL) > 30
    assert "&amp;" in page.text, "an entity in a question is shown, not decoded"
    assert "image file not found" in page.text
    assert "image cannot be read" in page.text
    assert all(not name.startswith("onerror") for _, a in page.elements for name in a)


def text_records(count: int, sources: int) -> list[dict]:
    return [
        {
            "id": str(number),
            "source": f"source {number % sources}",
            "conversations": [{"from": "human", "value": "Why?"}, {"from": "gpt", "value": "So."}],
        }
        for number in range(count)
    ]


def test_one_source_one_group_nothing_else(tmp_path):
    scores = np.full(30, 0.5, dtype=np.float32), np.zeros(30, dtype=np.int32)
    path = write_run(tmp_path / "run", text_records(30, 1), None, scores=scores, tell_groups=False)
    page, numbers, _ = make_report(path)
    assert len(numbers["sources"]) == 1
    assert numbers["groups"] == [
        {
            "group": 0,
            "size": None,
            "chosen": 3,
            "mean_necessity": 0.5,
            "main_source": "source 0",
            "main_source_share": 1.0,
        }
    ]
    assert not numbers["groups_are_whole"]
    assert "from the pool as a whole, without groups" in page.text
    assert {point["group"] for point in numbers["map"]["points"]} == {None}
    assert "Every record of the input could be used" in page.text
    assert "the seed model was given" in page.text
    assert "text only" in page.text


def test_fifty_sources_are_cut_on_the_page_not_in_the_numbers(tmp_path):
    page, numbers, _ = make_report(write_run(tmp_path / "run", text_records(1000, 50), None))
    assert len(numbers["sources"]) == 50
    assert "30 other sources" in page.text
    others = numbers["sources"][20:]
    row = f"{sum(source['pool'] for source in others):,} {sum(source['chosen'] for source in others):,}"
    assert row in page.text


def test_nothing_scored(tmp_path):
    path = write_run(
        tmp_path / "run", text_records(8, 2), None, budget=0.5, unscored=dict.fromkeys(range(8), "too long")
    )
    page, numbers, _ = make_report(path)
    assert numbers["pool_necessity"] == {
        "scored": 0,
        "mean": None,
        "p10": None,
        "median": None,
        "p90": None,
        "highest": None,
    }
    assert "No sample was scored" in page.text


@pytest.mark.parametrize("values", [[0.0], [2.5], [-1e-7, 0.0], [0.0] * 300 + [9.0], [1e-8, 1e8]])
def test_any_necessities_fill_a_histogram(tmp_path, values):
    necessity = np.array(values, dtype=np.float32)
    scores = necessity, np.zeros(len(values), dtype=np.int32)
    path = write_run(tmp_path / "run", text_records(len(values), 1), None, scores=scores, budget=1.0)
    _, numbers, _ = make_report(path, gallery=0)
    histogram = numbers["histogram"]
    assert sum(histogram["pool"]) == sum(histogram["chosen"]) == len(values)
    assert len(histogram["pool"]) <= 62
    assert numbers["highest"] == []


def test_many_large_images_do_not_swell_the_page(tmp_path):
    noise = np.random.default_rng(0).integers(0, 256, size=(800, 800, 3), dtype=np.uint8)
    buffer = io.BytesIO()
    Image.fromarray(noise).save(buffer, "JPEG")
    records = [record | {"image": [buffer.getvalue()] * 4} for record in text_records(60, 1)]
    page, _, text = make_report(write_run(tmp_path / "run", records, None, budget=0.5), gallery=60)
    assert len(text) < 8_000_000
    assert "left out to keep the page small" in page.text
    assert max(int(image["width"]) for image in page.all("img")) == 400


def test_files_that_do_not_belong_together_are_refused(tmp_path):
    path = write_run(tmp_path / "run", text_records(30, 1), None)
    (path / "rejected.jsonl").write_text('{"reason": "no-answer"\n')
    with pytest.raises(PoolError, match=r"rejected\.jsonl, line 1 is damaged"):
        make_report(path)
    (path / "rejected.jsonl").unlink()
    other = write_run(tmp_path / "other", text_records(31, 1), None)
    (other / "scores" / "part-00000.arrow").replace(path / "scores" / "part-00000.arrow")
    with pytest.raises(RunDirectoryError, match="31 scores for 30 samples"):
        make_report(path)
    assert not (path / "report.html").exists()
    assert not (path / "report.json").exists()


def test_the_stages_before_must_be_done(tmp_path):
    path = write_run(tmp_path / "run", text_records(30, 1), None)
    with RunDirectory(path) as run:
        run.stages["pick"] = StageRecord("running", "e")
        with pytest.raises(RunDirectoryError, match="'pick' is not done"):
            report.run(run, ReportOptions(), SilentProgress())


@pytest.mark.parametrize(
    ("metric", "unit"), [("nll", "nats per answer token"), ("visnec", "nats per answer token"), ("upd", "")]
)
def test_the_unit_is_that_of_the_metric(metric, unit, report_run):
    with RunDirectory(report_run) as run:
        numbers, _ = collect(run, Pool.of(run), ReportOptions(), SilentProgress())
    assert (numbers.metric, numbers.unit) == ("nll", unit_of("nll"))
    other = dataclasses.replace(numbers, metric=metric, unit=unit_of(metric))
    assert other.unit == unit
    assert ("nats" in words.lead(other)) == bool(unit)
    options = {"seed": SeedOptions(model="m").as_json(), "pick": PickOptions(budget="1%").as_json()}
    step = dict(words.method_steps(other, options))["Necessity."]
    assert METRICS[metric].source in step
    assert ("nats" in step) == bool(unit)
