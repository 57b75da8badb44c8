"""The miniature world of benches/quality: what it asks is true, and its trainings are what they say."""

from __future__ import annotations

import json
import sys
from dataclasses import replace
from importlib import resources
from pathlib import Path

import numpy as np
import pytest
import torch

sys.path.insert(0, str(Path(__file__).parent.parent / "benches" / "quality"))

import grid
import model
import nlvr
import run as runner
import tables
import world
from grid import Case, Records
from mllm_selector.errors import UsageError

SMALL = runner.Settings(
    pool=400,
    test=5,
    captions=64,
    caption_epochs=1,
    encoder_scenes=64,
    seed_share=0.1,
    seed_epochs=1,
    epochs=1,
)


def words(ids: np.ndarray) -> list[str]:
    return [world.VOCABULARY[number] for number in ids if number != world.PAD]


def seen(cell: np.ndarray) -> dict[str, str]:
    """Name what stands in a cell."""
    kind, value, colour, size = cell.tolist()
    if kind == world.OBJECT:
        return {
            "shape": world.SHAPES[value], "colour": world.COLOURS[colour], "size": world.SIZES[size]
        }  # fmt: skip
    if kind == world.BAR:
        return {"height": str(value), "colour": world.COLOURS[colour]}
    return {"sign": (world.DIGITS if kind == world.DIGIT else world.LETTERS)[value]} if kind else {}


def answer(family: str, asked: str, cells: np.ndarray) -> list[str]:
    """Answer a question by looking at the scene."""
    things = {place: seen(cell) for place, cell in enumerate(cells) if cell[0]}
    of_colour = [(place, thing) for place, thing in things.items() if thing.get("colour") == asked]
    if family in ("describe", "color"):
        (thing,) = things.values()
        return [thing["size"], thing["colour"], thing["shape"]] if family == "describe" else [thing["colour"]]
    if family == "exists":
        return ["yes" if of_colour else "no"]
    if family == "count":
        return [str(len(of_colour))]
    if family in ("number", "word"):
        return [things[place]["sign"] for place in sorted(things) if "sign" in things[place]]
    if family == "highest":
        return [max(things.values(), key=lambda thing: int(thing["height"]))["colour"]]
    if family == "beside":
        (place,) = [place for place, thing in things.items() if thing.get("shape") == asked]
        return [things[place + 1]["colour"]]
    ((place, thing),) = of_colour
    if family == "where":
        return [world.ROWS[place // 3], world.COLUMNS[place % 3]]
    return [thing["height" if family == "bar" else "shape"]]


def told(samples: world.Samples, row: int) -> tuple[str, list[str]]:
    """Return what a question asks about, and the answer given."""
    text = words(samples.text[row])
    marks = samples.is_answer[row][: len(text)]
    given = [word for word, is_answer in zip(text, marks, strict=True) if is_answer]
    assert given[-1] == "end"
    question = text[: text.index("answer")]
    if "hint" in question:
        question = question[: question.index("hint")]
    about = [word for word in question if word in (*world.COLOURS, *world.SHAPES)]
    return about[0] if about else "", given[:-1]


def test_answers_are_right_unless_they_are_meant_to_be_wrong() -> None:
    pool = world.draw_pool(3, "skewed", 2000, 0.15)
    for row in range(len(pool)):
        asked, given = told(pool, row)
        true = answer(world.FAMILIES[pool.family[row]], asked, pool.cells[row])
        assert (given != true) == pool.is_wrong[row]
    assert 0.13 < pool.is_wrong.mean() < 0.17


def test_pools_of_a_draw_differ_in_wrong_answers_only() -> None:
    clean, noisy, worse = (world.draw_pool(4, "skewed", 1000, wrong) for wrong in (0.0, 0.05, 0.15))
    assert (clean.cells == worse.cells).all()
    assert not clean.is_wrong.any()
    assert not (noisy.is_wrong & ~worse.is_wrong).any()
    same = ~worse.is_wrong
    assert (clean.text[same] == worse.text[same]).all()


def test_copies_are_a_fifth_of_the_pool_and_of_few_scenes() -> None:
    pool = world.draw_pool(5, "skewed", 5000, 0.0)
    copies = pool.original >= 0
    assert 0.18 < copies.mean() < 0.22
    assert len(np.unique(pool.original[copies])) == world.DUPLICATED_SCENES
    assert (pool.cells[copies] == pool.cells[pool.original[copies]]).all()
    shares = np.bincount(world.draw_pool(6, "uniform", 20_000, 0.0).family) / 20_000
    assert np.abs(shares - 1 / len(world.FAMILIES)).max() < 0.05


def test_the_test_set_is_clean_and_balanced() -> None:
    test = world.draw_test(7, 50)
    assert (np.bincount(test.family) == 50).all()
    for row in range(len(test)):
        asked, given = told(test, row)
        assert given == answer(world.FAMILIES[test.family[row]], asked, test.cells[row])
    assert not test.has_hint.any()


def test_pixels_show_what_the_cells_say() -> None:
    cells = np.zeros((1, 9, 4), np.int8)
    cells[0, 4] = [world.OBJECT, 1, 0, 1]  # a large red circle
    image = world.scene_image(world.pixels(cells, [1])[0]).astype(int)
    assert image.shape == (48, 48, 3)
    assert image[24, 24, 0] - image[24, 24, 2] > 120
    assert abs(image[8, 8, 0] - image[8, 8, 2]) < 80


def data(count: int = 24) -> model.Data:
    samples = world.draw_pool(8, "uniform", count, 0.0)
    features = np.random.default_rng(0).normal(size=(count, 9, model.FEATURES)).astype(np.float16)
    return model.Data.of(samples, features, "cpu")


def test_models_trained_at_once_are_those_trained_alone() -> None:
    torch.manual_seed(1)
    first = model.Decoder()
    orders = np.stack([np.random.default_rng(seed).permutation(24)[:16] for seed in range(2)])
    together = first.fork(2)
    model.train(together, data(), orders, batch=8)
    for number in range(2):
        alone = first.fork(1)
        model.train(alone, data(), orders[number : number + 1], batch=8)
        for name, value in alone.state_dict().items():
            assert torch.allclose(value[0], together.state_dict()[name][number], atol=1e-5), name
    assert not torch.allclose(together.head[0], together.head[1], atol=1e-3)


def test_readings_are_those_of_single_samples_without_padding() -> None:
    torch.manual_seed(2)
    decoder, samples = model.Decoder(), data()
    told = model.read(decoder, samples)
    hits = model.hits(decoder, samples)[0]
    for row in range(len(samples)):
        length = int((samples.text[row] != world.PAD).sum())
        text = samples.text[row, :length]
        wanted = samples.is_answer[row, :length]
        with torch.no_grad():
            states = decoder(samples.features[row][None, None], text[None, None])[0, 0]
            logits = states[-length:-1] @ decoder.head[0]
            blind = decoder(None, text[None, None])[0, 0, :-1] @ decoder.head[0]
        losses = torch.nn.functional.cross_entropy(logits, text[1:], reduction="none")[wanted[1:]]
        other = torch.nn.functional.cross_entropy(blind, text[1:], reduction="none")[wanted[1:]]
        assert told.nll[row] == pytest.approx(losses.mean().item(), abs=1e-4)
        assert told.visnec[row] == pytest.approx((other.mean() - losses.mean()).item(), abs=1e-4)
        mean = torch.nn.functional.normalize(states.mean(0), dim=0).numpy()
        assert np.abs(told.embedding[row].astype(np.float32) - mean).max() < 1e-3
        right = (logits.argmax(-1) == text[1:])[wanted[1:]].all().item()
        assert hits[row] == right


@pytest.mark.parametrize("positions", ["all", "answer", "image"])
def test_an_embedding_is_the_mean_of_the_states_it_names(positions: str) -> None:
    torch.manual_seed(3)
    decoder, samples = model.Decoder(shape=model.Shape(width=32, layers=1)), data()
    told = model.embed(decoder, samples, positions)
    assert told.shape == (len(samples), 32)
    for row in range(len(samples)):
        length = int((samples.text[row] != world.PAD).sum())
        with torch.no_grad():
            states = decoder(samples.features[row][None, None], samples.text[row, :length][None, None])[0, 0]
        image, words = states[: world.CELLS], states[world.CELLS :]
        taken = {
            "all": states, "image": image, "answer": words[samples.is_answer[row, :length]]
        }[positions]  # fmt: skip
        mean = torch.nn.functional.normalize(taken.mean(0), dim=0).numpy()
        assert np.abs(told[row].astype(np.float32) - mean).max() < 1e-3


@pytest.fixture(scope="module")
def small_world(tmp_path_factory: pytest.TempPathFactory) -> runner.World:
    prepared = runner.Prepared(SMALL, tmp_path_factory.mktemp("cache"), "cpu")
    return prepared.world(0, "skewed", 0.05)


def test_the_groups_of_a_weight_exponent_are_those_of_the_default(small_world: runner.World) -> None:
    scores = small_world.scores()
    labels = small_world._clusters(scores["embedding"])
    of_means = small_world._by_clusters("grouped", scores["nll"], scores["embedding"], labels, 100)
    assert of_means.tolist() == small_world.select("grouped", 25).tolist()
    assert of_means.tolist() != small_world.select("mean ** 2", 25).tolist()


def test_necessity_of_a_sample_of_a_cluster_reads_no_other_scores(small_world: runner.World) -> None:
    necessity, labels = small_world.scores()["nll"], small_world._cheap_clusters
    embedding = small_world._inputs.astype(np.float16)

    def chosen(of: np.ndarray) -> list[int]:
        return small_world._by_clusters("3 a cluster", of, embedding, labels, 100).tolist()

    before, told = chosen(necessity), []
    for row in range(len(necessity)):
        changed = necessity.copy()
        changed[row] += 1000
        told.append(chosen(changed) != before)
    # A score of another cluster's size changes what is chosen, unless it is not read.
    assert 0 < sum(told) <= 3 * len(set(labels.tolist()))


def test_uniform_draws_take_as_many_of_each_cluster_as_the_default(small_world: runner.World) -> None:
    for method, labels in (
        ("within uniform", small_world._clusters(small_world.scores()["embedding"])),
        (grid.uniform("7 a cluster"), small_world._cheap_clusters),
    ):
        other = "grouped" if method == "within uniform" else "7 a cluster"
        drawn, picked = small_world.select(method, 25), small_world.select(other, 25)
        assert drawn.tolist() != picked.tolist()
        assert np.bincount(labels[drawn]).tolist() == np.bincount(labels[picked]).tolist()


@pytest.mark.parametrize("method", [*grid.SCORINGS, grid.uniform("7 a cluster"), grid.uniform("mean ** 2")])
def test_every_scoring_keeps_to_the_budget(small_world: runner.World, method: str) -> None:
    if "skip_duplicates" in grid.METHODS[method]:
        # A model that has hardly been trained finds all samples alike.
        with pytest.raises(UsageError, match="once near-duplicates are passed over"):
            small_world.select(method, 25)
        return
    rows = small_world.select(method, 25)
    assert len(np.unique(rows)) == 100
    assert rows.tolist() == small_world.select(method, 25).tolist()


def test_seed_models_that_differ_have_files_of_their_own(small_world: runner.World) -> None:
    seeds = {(scoring.seed_size, scoring.small) for scoring in (grid.Scoring(), *grid.SCORINGS.values())}
    for size, small in seeds:
        small_world.scores(grid.Scoring(seed_size=size, small=small))
    assert len(list(small_world.prepared.cache.glob("*seed.pt"))) == len(seeds)
    assert len(small_world.seed_rows(2)) == 2 * len(small_world.seed_rows())
    assert small_world.seed_model(grid.Scoring(small=True)).shape == runner.SMALL


def test_the_cost_of_a_selection_is_that_of_its_passes() -> None:
    target, small = model.Shape(), runner.SMALL
    for shape in (target, small):
        decoder = model.Decoder(shape=shape)
        tables_of_words = decoder.words.numel() + decoder.places.numel()
        vectors = sum(value.numel() for value in decoder.parameters() if value.shape[1] == 1)
        count = sum(value.numel() for value in decoder.parameters())
        assert shape.products == count - tables_of_words - vectors
    assert pytest.approx(small.products / target.products, abs=5e-4) == grid.SMALL_COST
    # 12 x 2.5 % of the pool for the seed model, a third of the pool for the scores; four epochs.
    assert grid.with_cost(5, "grouped") == pytest.approx(5 + (30 + 100 / 3) / 4, abs=0.05)
    assert grid.with_cost(15, "14 a cluster") == pytest.approx(15 + (30 + 9.94 / 3) / 4, abs=0.05)
    assert {case.budget for case in grid.planned(["compute"])} == {
        grid.with_cost(budget, "grouped") for budget in (5, 15)
    }


def small_cases() -> list[Case]:
    case = Case(draw=0, budget=25.0)
    return [replace(case, method=method) for method in ("random", "grouped", "4 a cluster")] + [
        replace(case, method="grouped", start="seed"),
        replace(case, budget=100.0),
    ]


def test_a_grid_that_was_stopped_goes_on_and_ends_the_same(tmp_path: Path) -> None:
    def rows(path: Path) -> list[dict[str, object]]:
        return [
            {name: value for name, value in row.items() if name != "seconds"} for row in Records(path).rows
        ]

    whole, parts = tmp_path / "whole.jsonl", tmp_path / "parts.jsonl"
    prepared = runner.Prepared(SMALL, tmp_path / "cache", "cpu")
    assert len(list(runner.run_cases(prepared, small_cases(), Records(whole)))) == 5
    stopped = runner.run_cases(
        runner.Prepared(SMALL, tmp_path / "other", "cpu"), small_cases(), Records(parts)
    )
    next(stopped)
    next(stopped)
    stopped.close()
    with parts.open("a") as file:
        file.write('{"settings": "cut o')
    again = runner.Prepared(SMALL, tmp_path / "other", "cpu")
    list(runner.run_cases(again, small_cases(), Records(parts)))
    assert rows(parts) == rows(whole)
    assert len(rows(whole)) == 5


def test_tables_are_made_of_records(tmp_path: Path) -> None:
    records = Records(tmp_path / "records.jsonl")
    for draw in range(3):
        for method, budget, accuracy in (("random", 5, 0.5), ("grouped", 5, 0.5 + 0.1 * (draw + 1))):
            records.add(
                "key", Case(draw=draw, method=method, budget=budget),
                accuracy=[accuracy] * len(world.FAMILIES), wrong=0.05, copies=0.2, hints=0.05,
                families=[1 / len(world.FAMILIES)] * len(world.FAMILIES), steps=1,
            )  # fmt: skip
    tuned = Case(draw=grid.TUNING_DRAWS.start, method="grouped", budget=5)
    records.add("key", tuned, accuracy=[0.123] * len(world.FAMILIES), wrong=0.05, copies=0.2)
    fresh = Case(draw=grid.FRESH_DRAWS.start, method="grouped", budget=5)
    records.add("key", fresh, accuracy=[0.456] * len(world.FAMILIES), wrong=0.05, copies=0.2)
    results, tuning, unseen = (
        tables.Results(records.of("key"), draws=draws)
        for draws in (range(1000), grid.TUNING_DRAWS, grid.FRESH_DRAWS)
    )
    told = results.gain({"method": "grouped", "budget": 5}, {"method": "random", "budget": 5})
    assert told is not None
    assert told.mean == pytest.approx(20)
    assert told.half_width == pytest.approx(4.3027 * 10 / np.sqrt(3), rel=1e-4)
    text = tables.text(results, tuning, unseen, tables.Results({}, nlvr.MIX), "key")
    assert text.index("## Looking for a better default") < text.index("| grouped | 12.3 (1) |")
    fresh_row = text.index("| grouped | 45.6 (1) |")
    assert text.index("## Fresh draws") < fresh_row < text.index("## Families")
    assert "\n6 trainings, draws 0 to 2 " in text
    assert "| grouped | 70.0 +- 24.8 (3) | +20.0 +- 24.8 (3) |" in text
    assert "At 5 % the default **is not told apart from random**: +20.0 +- 24.8 (3) points" in text
    assert "plan `noise`" in text


def test_every_plan_names_methods_that_there_are() -> None:
    planned = list(grid.planned(list(grid.PLANS)))
    assert {case.method for case in planned} <= set(grid.METHODS)
    assert len(planned) == len(set(planned))
    for case in planned:
        assert case.draw < 1000 or case.draw in (*grid.TUNING_DRAWS, *grid.FRESH_DRAWS)
    own = {name: set(Records(runner.HERE / f"{name}.jsonl").of(key)) for name, key in (
        ("records", runner.SIZES["small"].key), ("nlvr", nlvr.NlvrSettings().key)
    )}  # fmt: skip
    assert own["records"] <= set(planned)
    assert {case for case in own["nlvr"] if case.method != "majority"} <= set(nlvr.cases())
    for start, draws in (("tune", grid.TUNING_DRAWS), ("fresh", grid.FRESH_DRAWS)):
        of = {name: {case.draw for case in grid.planned([name])} for name in grid.PLANS}
        for name, found in of.items():
            assert found <= set(draws) if name.startswith(start) else not found & set(draws)


@pytest.fixture(scope="module")
def corpus(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The shipped part of NLVR, every other statement moved to a split to test on."""
    folder = tmp_path_factory.mktemp("nlvr")
    shipped = resources.files("mllm_selector.demo") / "data" / "nlvr" / "dev"
    lines = (shipped / "dev.json").read_text().splitlines()
    images = {image.name: image for image in (shipped / "images").iterdir()}
    for name, own in (("dev", lines[::2]), ("test", lines[1::2])):
        (folder / name / "images").mkdir(parents=True)
        (folder / name / f"{name}.json").write_text("".join(f"{line}\n" for line in own))
        for line in own:
            for order in range(6):
                image = images.get(f"dev-{json.loads(line)['identifier']}-{order}.png")
                if image is not None:
                    moved = folder / name / "images" / image.name.replace("dev", name)
                    moved.write_bytes(image.read_bytes())
    return folder


@pytest.fixture(scope="module")
def prepared(corpus: Path, tmp_path_factory: pytest.TempPathFactory) -> nlvr.NlvrPrepared:
    settings = nlvr.NlvrSettings(
        pool=200,
        test=5,
        captions=64,
        caption_epochs=1,
        seed_share=0.1,
        seed_epochs=1,
        epochs=1,
        encoder_epochs=1,
    )
    return nlvr.NlvrPrepared(settings, tmp_path_factory.mktemp("cache"), "cpu", corpus)


RGB = {"black": (0, 0, 0), "blue": (0, 153, 255), "yellow": (255, 255, 0)}


def test_patches_of_a_picture_show_what_the_corpus_says(prepared: nlvr.NlvrPrepared) -> None:
    split = prepared.splits["dev"]
    for statement in split.statements[:40]:
        for order, image in statement.images.items():
            boxes = nlvr.picture(split.corpus / image).astype(int)
            for place, box in enumerate(nlvr.ORDERS[order]):
                counts = nlvr.patch_counts(statement, box)
                assert counts.sum() == len(statement.boxes[box])
                for row, column, kind in np.argwhere(counts):
                    patch = boxes[place][:, row * 33 : row * 33 + 33, column * 33 : column * 33 + 33]
                    colour = np.array(RGB[nlvr._KINDS[kind][0]])[:, None, None]
                    assert (np.abs(patch - colour) < 30).all(0).any()


def test_a_caption_tells_the_items_of_one_box(prepared: nlvr.NlvrPrepared) -> None:
    for statement in prepared.splits["dev"].statements[:40]:
        for order in statement.images:
            for place, name in enumerate(("left", "middle", "right")):
                said = nlvr.caption(statement, order, place)
                assert said[0] == name
                items = statement.boxes[nlvr.ORDERS[order][place]]
                kinds = list(zip(said[1::4], said[2::4], said[3::4], said[4::4], strict=True))
                assert sum(int(count) for count, *_ in kinds) == len(items)
                assert {tuple(kind) for _, *kind in kinds} == {
                    (item.size, item.colour, item.shape) for item in items
                }


def test_the_real_pool_and_its_test_set_are_of_different_splits(prepared: nlvr.NlvrPrepared) -> None:
    of = prepared.world(0, "nlvr", 0.0)
    data, families = of.test
    assert len(of.pool) == len(of.data) == 200
    assert np.bincount(families).tolist() == [5] * len(nlvr.FAMILIES)
    names = {number: word for word, number in prepared.words.items()}
    statement = nlvr.FAMILIES.index("nlvr-statement")
    for text, marks in zip(of.pool.text[of.pool.family == statement],
                           of.pool.is_answer[of.pool.family == statement], strict=True):  # fmt: skip
        assert [names[number] for number in text[marks]] in (["true", "<end>"], ["false", "<end>"])
    turns = of.pool.family == nlvr.FAMILIES.index("nlvr-two-turn")
    assert ((of.pool.text[turns] == world.ANSWER).sum(1) == 2).all()
    assert ((of.pool.text[~turns] == world.ANSWER).sum(1) == 1).all()
    assert data.features.shape == (30, nlvr.CELLS, model.FEATURES)
    assert prepared.splits["dev"].images[0] not in prepared.splits["test"].images


def test_the_real_pool_is_trained_on_and_told(prepared: nlvr.NlvrPrepared, tmp_path: Path) -> None:
    records = Records(tmp_path / "nlvr.jsonl")
    todo = [case for case in nlvr.cases() if case.draw == 0 and case.budget in (15, 100)]
    list(runner.run_cases(prepared, todo, records))
    rows = records.of(prepared.settings.key)
    assert set(rows) == set(todo)
    assert all(len(row["accuracy"]) == len(row["families"]) == len(nlvr.FAMILIES) for row in rows.values())
    majority = prepared.world(0, "nlvr", 0.0).by_majority()
    assert majority[nlvr.FAMILIES.index("nlvr-statement")] in (0.0, 0.2, 0.4, 0.6, 0.8, 1.0)
    results, nothing = tables.Results({Case(draw=0): {}}), tables.Results({})
    text = tables.text(results, nothing, nothing, tables.Results(rows, nlvr.MIX), "key")
    assert "| nlvr-statement | 13% |" in text
