"""The whole method through the real command line, on real statements and a tiny model."""

from __future__ import annotations

import fcntl
import json
import signal
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest

import mllm_selector
from mllm_selector.demo import nlvr

SAMPLES = 240
BUDGET = 48  # 20 %


@dataclass(frozen=True)
class Case:
    """A pool of real samples, cut to a size that a tiny model scores in seconds."""

    pool: Path
    images: Path
    model: Path

    def options(self, run_dir: Path) -> list[str]:
        return [
            *(str(self.pool), "--images", str(self.images), "--model", str(self.model)),
            *("--seed-size", "24", "--seed-batch-size", "8", "--seed-micro-batch", "4", "--lora-rank", "4"),
            *("--shard-size", "16", "--token-budget", "1024", "--budget", "20%", "--group-count", "8"),
            *("--run-dir", str(run_dir)),
        ]


@pytest.fixture(scope="session")
def case(tmp_path_factory: pytest.TempPathFactory, tiny_model: Path) -> Case:
    folder = tmp_path_factory.mktemp("real")
    whole, images = nlvr.write_pool(folder)
    records = json.loads(whole.read_bytes())
    step = len(records) // SAMPLES
    chosen = records[: step * SAMPLES : step]
    pool = folder / "real.json"
    pool.write_text(json.dumps(chosen, indent=1, ensure_ascii=False))
    return Case(pool, images, tiny_model)


def command(*arguments: str) -> list[str]:
    return [sys.executable, "-m", "mllm_selector", *arguments]


def run(*arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(command(*arguments), capture_output=True, text=True, check=False)


@pytest.fixture(scope="session")
def finished(case: Case, tmp_path_factory: pytest.TempPathFactory) -> Path:
    run_dir = tmp_path_factory.mktemp("run") / "run"
    out = run_dir.parent / "chosen.json"
    done = run("select", *case.options(run_dir), "--out", str(out))
    assert done.returncode == 0, done.stderr
    assert f"{BUDGET} of {SAMPLES} samples chosen" in done.stdout
    assert out.read_bytes() == (run_dir / "subset.json").read_bytes()
    return run_dir


def selection(run_dir: Path) -> pa.Table:
    return pa.ipc.open_file(run_dir / "selection.arrow").read_all()


def test_the_subset_has_the_exact_budget_and_the_records_of_the_input(finished: Path, case: Case) -> None:
    subset = json.loads((finished / "subset.json").read_bytes())
    records = json.loads(case.pool.read_bytes())
    rows = selection(finished)["row"].to_pylist()
    assert len(subset) == BUDGET
    assert rows == sorted(set(rows))
    assert subset == [records[row] for row in rows]
    text = case.pool.read_text()
    for record in subset:  # byte for byte: the indented text of the input, not a new serialisation
        place = text.index(f'"id": "{record["id"]}"')
        start, end = text.rindex("\n {", 0, place) + 2, text.index("\n }", place) + 3
        assert text[start:end].encode() in (finished / "subset.json").read_bytes()


def test_a_finished_training_leaves_no_checkpoints(finished: Path) -> None:
    left = {path.name for path in (finished / "seed").iterdir()}
    assert left == {"adapter", "indices.arrow", "log.jsonl", "model"}
    assert not [path for path in finished.rglob("*") if path.suffix in (".bin", ".pt")]


def test_every_sample_is_scored_or_has_a_reason(finished: Path) -> None:
    parts = [pa.ipc.open_file(part).read_all() for part in sorted(finished.glob("scores/part-*.arrow"))]
    table = pa.concat_tables(parts)
    assert table["row"].to_pylist() == list(range(SAMPLES))
    necessity = table["nll"].to_numpy()
    unscored = np.array([reason is not None for reason in table["reason"].to_pylist()])
    assert np.array_equal(np.isnan(necessity), unscored)
    assert (necessity[~unscored] > 0).all()


def test_python_and_command_line_choose_the_same_rows(finished: Path, case: Case, tmp_path: Path) -> None:
    chosen = mllm_selector.select(
        case.pool,
        images=case.images,
        model=case.model,
        budget="20%",
        run_dir=tmp_path / "run",
        seed_size=24,
        seed_batch_size=8,
        seed_micro_batch=4,
        lora_rank=4,
        shard_size=16,
        token_budget=1024,
        group_count=8,
    )
    assert chosen.rows.tolist() == selection(finished)["row"].to_pylist()
    assert (tmp_path / "run" / "subset.json").read_bytes() == (finished / "subset.json").read_bytes()


def test_stages_one_by_one_give_the_same_selection(finished: Path, case: Case, tmp_path: Path) -> None:
    at = ["--run-dir", str(tmp_path / "run")]
    steps = [
        ["ingest", str(case.pool), "--images", str(case.images)],
        [
            *("seed", "--model", str(case.model), "--seed-size", "24", "--seed-batch-size", "8"),
            *("--seed-micro-batch", "4", "--lora-rank", "4"),
        ],
        ["export"],
        ["score", "--shard-size", "16", "--token-budget", "1024"],
        ["pick", "--budget", "48", "--group-count", "8"],
        ["report"],
    ]
    for step in steps:
        done = run(*step, *at)
        assert done.returncode == 0, done.stderr
    assert selection(tmp_path / "run").equals(selection(finished))


def test_killed_while_scoring_then_repeated_gives_the_same_bytes(
    finished: Path, case: Case, tmp_path: Path
) -> None:
    run_dir = tmp_path / "run"
    arguments = command("select", *case.options(run_dir))
    process = subprocess.Popen(arguments, stderr=subprocess.DEVNULL, stdout=subprocess.DEVNULL)
    while process.poll() is None and len(list(run_dir.glob("scores/part-*.arrow"))) < 2:
        time.sleep(0.002)
    process.send_signal(signal.SIGKILL)
    process.wait()
    parts = sorted(run_dir.glob("scores/part-*.arrow"))
    assert 2 <= len(parts) < SAMPLES // 16, "the kill came too late to show anything"
    before = {part: part.stat().st_mtime_ns for part in parts}
    again = run("select", *case.options(run_dir))
    assert again.returncode == 0, again.stderr
    assert {part: part.stat().st_mtime_ns for part in parts} == before, "a finished part was scored twice"
    assert (run_dir / "subset.json").read_bytes() == (finished / "subset.json").read_bytes()
    assert (run_dir / "selection.arrow").read_bytes() == (finished / "selection.arrow").read_bytes()


def test_a_finished_run_is_not_run_again(finished: Path, case: Case) -> None:
    # The manifest and the records repeat the options, some of which differ (--out).
    files = (path for path in finished.rglob("*") if path.parent.name != "records")
    before = {path: path.stat().st_mtime_ns for path in files if path.name != "manifest.json"}
    done = run("select", *case.options(finished))
    assert done.returncode == 0, done.stderr
    assert done.stderr.count("done before") == 6
    after = {path: path.stat().st_mtime_ns for path in before if path.is_file() and path.name != "lock"}
    assert after == {path: before[path] for path in after}


def test_pick_again_with_another_budget_keeps_the_scores(finished: Path, case: Case, tmp_path: Path) -> None:
    run_dir = tmp_path / "copy"
    subprocess.run(["cp", "-a", str(finished), str(run_dir)], check=True)
    before = {part: part.stat().st_mtime_ns for part in run_dir.glob("scores/*")}
    out = tmp_path / "small.json"
    done = run("pick", "--budget", "7", "--groups", "source", "--out", str(out), "--run-dir", str(run_dir))
    assert done.returncode == 0, done.stderr
    assert len(json.loads(out.read_bytes())) == 7
    assert {part: part.stat().st_mtime_ns for part in run_dir.glob("scores/*")} == before


def test_the_subset_is_never_written_over_the_pool(finished: Path, case: Case, tmp_path: Path) -> None:
    before = case.pool.read_bytes()
    link = tmp_path / "link.json"
    link.symlink_to(case.pool)
    run_dir = tmp_path / "copy"
    subprocess.run(["cp", "-a", str(finished), str(run_dir)], check=True)
    for out in (case.pool, link):
        says = ["out", str(out), "the pool itself"]
        refused("pick", "--budget", "7", "--out", str(out), "--run-dir", str(run_dir), code=2, says=says)
        refused("select", *case.options(tmp_path / "new"), "--out", str(out), code=2, says=says)
    assert not (tmp_path / "new" / "pool.arrow").exists()
    assert (run_dir / "selection.arrow").read_bytes() == (finished / "selection.arrow").read_bytes()
    assert case.pool.read_bytes() == before


def test_the_subset_does_not_become_a_part_of_the_pool(case: Case, tmp_path: Path) -> None:
    pool = tmp_path / "pool"
    pool.mkdir()
    (pool / "part.json").write_bytes(case.pool.read_bytes())
    out = pool / "subset.json"
    at = changed(case, tmp_path / "run", pool=str(pool), out=str(out))
    refused(*at, code=2, says=[f"--out: {out} lies in {pool}, all of whose files are the pool"])
    assert not (tmp_path / "run").exists()


def test_a_pick_that_cannot_be_keeps_the_earlier_one(finished: Path, tmp_path: Path) -> None:
    run_dir = tmp_path / "copy"
    subprocess.run(["cp", "-a", str(finished), str(run_dir)], check=True)
    refused("pick", "--budget", "241", "--run-dir", str(run_dir), code=2, says=["241", str(SAMPLES)])
    assert len(mllm_selector.Selection.load(run_dir)) == BUDGET
    assert (run_dir / "subset.json").read_bytes() == (finished / "subset.json").read_bytes()


def test_a_score_part_that_is_gone_is_scored_again(finished: Path, case: Case, tmp_path: Path) -> None:
    run_dir = tmp_path / "copy"
    subprocess.run(["cp", "-a", str(finished), str(run_dir)], check=True)
    gone = run_dir / "scores" / "part-00003.arrow"
    content = gone.read_bytes()
    gone.unlink()
    done = run("select", *case.options(run_dir))
    assert done.returncode == 0, done.stderr
    assert gone.read_bytes() == content
    assert (run_dir / "subset.json").read_bytes() == (finished / "subset.json").read_bytes()


def test_sigterm_stops_with_a_word_on_how_to_go_on(case: Case, tmp_path: Path) -> None:
    run_dir = tmp_path / "run"
    process = subprocess.Popen(command("select", *case.options(run_dir)), stderr=subprocess.PIPE, text=True)
    while not (run_dir / "seed").exists():
        assert process.poll() is None
        time.sleep(0.01)
    process.send_signal(signal.SIGTERM)
    _, told = process.communicate(timeout=30)
    assert process.returncode == 128 + signal.SIGTERM
    assert "the same command goes on" in told


def test_options_from_a_config_file(finished: Path, case: Case, tmp_path: Path) -> None:
    config = tmp_path / "run.toml"
    config.write_text('budget = "10%"\ngroups = "random"\ngroup-count = 4\n')
    run_dir = tmp_path / "copy"
    subprocess.run(["cp", "-a", str(finished), str(run_dir)], check=True)
    done = run("pick", "--config", str(config), "--budget", "5", "--run-dir", str(run_dir), "--json")
    assert done.returncode == 0, done.stderr
    summary = json.loads(done.stdout)
    assert summary["chosen"] == 5, "the command line goes before the file"
    assert set(selection(run_dir)["group"].to_pylist()) <= set(range(4))


def test_doctor_says_what_is_there() -> None:
    done = run("doctor")
    assert done.returncode == 0, done.stdout
    assert f"mllm-selector    {mllm_selector.__version__}" in done.stdout
    assert "CPUExecutionProvider" in done.stdout


# Wrong input: a clear message, the right exit code, nothing half-written.


def refused(*arguments: str, code: int, says: list[str]) -> None:
    done = run(*arguments)
    assert done.returncode == code, done.stderr
    assert "Traceback" not in done.stderr
    for words in says:
        assert words in done.stderr


def changed(case: Case, run_dir: Path, **options: str) -> list[str]:
    arguments = case.options(run_dir)
    for name, value in options.items():
        flag = "--" + name.replace("_", "-")
        if name == "pool":
            arguments[0] = value
        elif flag in arguments:
            arguments[arguments.index(flag) + 1] = value
        else:
            arguments += [flag, value]
    return ["select", *arguments]


def test_missing_pool(case: Case, tmp_path: Path) -> None:
    gone = str(tmp_path / "gone.json")
    refused(*changed(case, tmp_path / "run", pool=gone), code=2, says=[gone, "does not exist"])
    assert not (tmp_path / "run").exists()


def test_a_model_that_is_no_directory_ends_before_any_hub_is_asked(case: Case, tmp_path: Path) -> None:
    at = [str(case.pool), "--images", str(case.images), "--budget", "5", "--run-dir", str(tmp_path / "run")]
    for option, model, code, says in (
        ("--seed-model", "nowhere", 2, "--seed-model: nowhere does not exist; name a model directory"),
        ("--seed-model", str(case.pool), 2, f"--seed-model: {case.pool} is a file; name a model directory"),
        ("--model", str(case.pool), 1, f"{case.pool} is a file; name a Hugging Face model directory"),
    ):
        refused("select", *at, option, model, code=code, says=[says])
    assert not (tmp_path / "run").exists()


def test_empty_pool(case: Case, tmp_path: Path) -> None:
    for name, content in {"nothing.json": "", "none.json": "[]"}.items():
        pool = tmp_path / name
        pool.write_text(content)
        refused(*changed(case, tmp_path / "run", pool=str(pool)), code=1, says=[str(pool)])
        assert not (tmp_path / "run").exists()


def test_pool_that_is_not_json(case: Case, tmp_path: Path) -> None:
    pool = tmp_path / "picture.json"
    pool.write_bytes(b"\x89PNG\r\n\x1a\n")
    refused(*changed(case, tmp_path / "run", pool=str(pool)), code=1, says=[str(pool), "byte"])
    assert not (tmp_path / "run").exists()


def test_missing_images_folder(case: Case, tmp_path: Path) -> None:
    gone = str(tmp_path / "gone")
    refused(*changed(case, tmp_path / "run", images=gone), code=2, says=["--images", gone])
    assert not (tmp_path / "run").exists()


def test_pool_with_a_third_of_bad_samples_goes_on_without_them(case: Case, tmp_path: Path) -> None:
    records = json.loads(case.pool.read_bytes())
    for index, record in enumerate(records):
        if index % 10 < 3:
            record["conversations"] = [record["conversations"][0]]
    pool = tmp_path / "bad.jsonl"
    pool.write_text("".join(json.dumps(record) + "\n" for record in records))
    at = ["--images", str(case.images), "--run-dir", str(tmp_path / "run")]
    done = run("ingest", str(pool), *at)
    assert done.returncode == 0, done.stderr
    rejected = [json.loads(line) for line in (tmp_path / "run" / "rejected.jsonl").read_text().splitlines()]
    assert [entry["record"] for entry in rejected] == [i for i in range(SAMPLES) if i % 10 < 3]
    assert {entry["reason"] for entry in rejected} == {"no-answer"}
    assert "72" in done.stderr


@pytest.mark.parametrize(
    ("budget", "says"),
    [
        ("0", "selects nothing"),
        ("0%", "selects nothing"),
        ("many", "neither a count"),
        ("150%", "at most 100%"),
    ],
)
def test_impossible_budget(case: Case, tmp_path: Path, budget: str, says: str) -> None:
    refused(*changed(case, tmp_path / "run", budget=budget), code=2, says=["--budget", says])
    assert not (tmp_path / "run").exists()


def test_budget_above_the_pool_is_refused_before_the_expensive_stages(case: Case, tmp_path: Path) -> None:
    says = ["--budget", "241", str(SAMPLES)]
    refused(*changed(case, tmp_path / "run", budget="241"), code=2, says=says)
    assert not (tmp_path / "run" / "seed").exists()


def test_limits_of_unknown_sources_are_refused_before_the_expensive_stages(
    case: Case, tmp_path: Path
) -> None:
    says = ["floor of 'ocr': nothing has this name; known are"]
    refused(*changed(case, tmp_path / "run", source_floor="ocr=5"), code=2, says=says)
    assert not (tmp_path / "run" / "seed").exists()


def test_unknown_model_type(case: Case, tmp_path: Path) -> None:
    model = tmp_path / "model"
    model.mkdir()
    (model / "config.json").write_text('{"model_type": "telepathy"}')
    says = ["telepathy", "llava"]
    refused(*changed(case, tmp_path / "run", model=str(model)), code=2, says=says)
    assert not (tmp_path / "run").exists()


def test_run_directory_of_another_pool(finished: Path, case: Case, tmp_path: Path) -> None:
    other = tmp_path / "other.json"
    other.write_text(json.dumps(json.loads(case.pool.read_bytes())[:50]))
    before = (finished / "manifest.json").read_bytes()
    refused(*changed(case, finished, pool=str(other)), code=2, says=["another pool", "--run-dir"])
    assert (finished / "manifest.json").read_bytes() == before


def test_other_options_do_not_overwrite_hours_of_work(finished: Path, case: Case) -> None:
    says = ["--seed-size was 24 and is now 25", "another --run-dir"]
    refused(*changed(case, finished, seed_size="25"), code=2, says=says)


def test_run_directory_that_holds_something_else(case: Case, tmp_path: Path) -> None:
    (tmp_path / "precious.txt").write_text("mine")
    refused(*changed(case, tmp_path), code=2, says=["--run-dir", "something else"])
    assert [path.name for path in tmp_path.iterdir()] == ["precious.txt"]


def test_run_directory_in_use(finished: Path, case: Case) -> None:
    with (finished / "lock").open("a+") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        refused(*changed(case, finished), code=1, says=["in use by process"])


def test_stage_before_its_time(case: Case, tmp_path: Path) -> None:
    at = ["--run-dir", str(tmp_path / "run")]
    refused("score", *at, code=1, says=["'export' is not done"])


def test_unknown_option_in_python() -> None:
    with pytest.raises(mllm_selector.UsageError, match="did you mean lora_rank"):
        mllm_selector.select("pool.json", budget=1, run_dir="run", model="m", lora_ranks=3)
