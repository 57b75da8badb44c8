"""Reading and scoring on a real Ray cluster of two nodes: the bytes of one process, whatever dies."""

from __future__ import annotations

import json
import shutil
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import psutil
import pyarrow as pa
import pytest
import ray
from ray.cluster_utils import Cluster

from format_fixtures import picture
from mllm_selector import cli, stores
from mllm_selector.checksums import Checksums
from mllm_selector.config import IngestOptions
from mllm_selector.errors import ClusterError, ScoreError, UsageError
from mllm_selector.formats import on_ray as reading_on_ray
from mllm_selector.interrupts import GRACE
from mllm_selector.scoring import on_ray
from parts_fixtures import INPUTS
from score_fixtures import exported_run, many, run
from store_fixtures import serving

pytest_plugins = ["score_fixtures"]

SAMPLES, SHARD = 480, 20
PARTS = SAMPLES // SHARD
OPTIONS = ["--device", "cpu", "--shard-size", str(SHARD), "--threads", "1"]
# Both sweeps, a projection that is fitted to the pool, a reading without images.
EVERYTHING = ["--metrics", "visnec,miwv", "--embedding-size", "8", "--projection", "pca"]
SOME = ["--metrics", "visnec", "--scored-per-cluster", "3"]
SCORER, READER = "MapWorker", "ray::_read"
STORE = 80_000_000
"""Bytes of each node's object store; Ray takes no smaller ones."""

WITHOUT_TORCH = """
import importlib.util, sys
HIDDEN = {"torch", "torchvision", "onnx", "onnxscript", "peft", "accelerate"}
find_spec = importlib.util.find_spec
importlib.util.find_spec = lambda name, package=None: None if name in HIDDEN else find_spec(name, package)
class Hide:
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] in HIDDEN:
            raise ModuleNotFoundError(f"No module named {name!r}", name=name)
sys.meta_path.insert(0, Hide())
"""
"""Nodes of a cluster need no more than the extras `[cpu]` and `[ray]`, and start sooner with these alone."""


@pytest.fixture(scope="module")
def cluster(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Cluster]:
    """Two nodes with room for one scorer each."""
    site = tmp_path_factory.mktemp("site")
    (site / "sitecustomize.py").write_text(WITHOUT_TORCH)
    # A node is taken for dead after a few seconds instead of half a minute, and may take its time to start.
    config = {
        "health_check_period_ms": 1000,
        "health_check_timeout_ms": 5000,
        "health_check_failure_threshold": 3,
    }
    of_nodes = {
        "PYTHONPATH": str(site),
        "RAY_USAGE_STATS_ENABLED": "0",
        "RAY_raylet_start_wait_time_s": "240",
        "RAY_worker_niceness": "0",  # tests run side by side, and Ray would let others go first
    }
    head = {"num_cpus": 1, "object_store_memory": STORE, "include_dashboard": False, "_system_config": config}
    with pytest.MonkeyPatch.context() as patch:
        for name, value in of_nodes.items():
            patch.setenv(name, value)
        made = Cluster(initialize_head=True, head_node_args=head)
        made.add_node(num_cpus=1, object_store_memory=STORE)
    try:
        yield made
    finally:
        made.shutdown()


def workers(node: Any, name: str) -> list[psutil.Process]:
    """Processes of a node that are called so: `SCORER` or `READER`."""
    (raylet,) = node.all_processes["raylet"]
    children = psutil.Process(raylet.process.pid).children()
    return [child for child in children if name in " ".join(child.cmdline())]


@pytest.fixture(scope="module")
def exported(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Run directories before scoring (``ready``), and after it by one process (``whole``, ``all``,
    ``some``)."""
    folder = tmp_path_factory.mktemp("ray")
    ready = exported_run(folder, SAMPLES, pictures=30, words=(40, 30))
    for name, options in {"whole": [], "all": EVERYTHING, "some": SOME}.items():
        shutil.copytree(ready, folder / name)
        run("score", *OPTIONS, *options, at=folder / name)
    return folder


def start(at: Path, cluster: Cluster, *command: object) -> subprocess.Popen[str]:
    """Start a driver in a process of its own; by default it scores."""
    given = [*map(str, command or ("score", *OPTIONS)), "--ray", cluster.address]
    whole = [sys.executable, "-m", "mllm_selector", *given, "--run-dir", str(at), "--quiet"]
    return subprocess.Popen(whole, stderr=subprocess.PIPE, text=True)


def written(folder: Path) -> list[Path]:
    return sorted((folder / "scores").glob("part-*.arrow"))


def wait_for(what: Callable[[], Any], driver: subprocess.Popen[str]) -> Any:
    """Wait until something is so, while the driver runs."""
    while not (found := what()):
        assert driver.poll() is None, driver.communicate()[1]
        time.sleep(0.01)
    return found


def scores(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in sorted((folder / "scores").iterdir())}


def counts(folder: Path) -> dict[str, Any]:
    record = json.loads((folder / "manifest.json").read_text())["stages"]["score"]
    assert record["state"] == "done"
    return {name: value for name, value in record["counts"].items() if name not in ("idle_share", "resumed")}


def check_equal(folder: Path, whole: Path) -> None:
    assert scores(folder) == scores(whole)
    assert counts(folder) == counts(whole)
    sums = [Checksums(each / "checksums.b3") for each in (folder, whole)]
    assert [
        each.damages([folder_ / "scores"]) for each, folder_ in zip(sums, (folder, whole), strict=True)
    ] == [
        [],
        [],
    ]
    lines = [
        {line for line in (each / "checksums.b3").read_text().splitlines() if "  scores/" in line}
        for each in (folder, whole)
    ]
    assert lines[0] == lines[1]


def test_a_cluster_gives_the_bytes_of_one_process(exported: Path, ready: Path, cluster: Cluster) -> None:
    run("score", *OPTIONS, *EVERYTHING, "--ray", cluster.address, at=ready)
    check_equal(ready, exported / "all")
    projections = [(folder / "projection.arrow").read_bytes() for folder in (ready, exported / "all")]
    assert projections[0] == projections[1]


def test_some_samples_of_each_cluster(exported: Path, ready: Path, cluster: Cluster) -> None:
    run("score", *OPTIONS, *SOME, "--ray", cluster.address, at=ready)
    check_equal(ready, exported / "some")
    assert counts(ready)["scored"] < SAMPLES / 4


def test_workers_fetch_images_by_their_url(exported: Path, ready: Path, cluster: Cluster) -> None:
    with serving(exported / "images") as web:
        run("ingest", str(exported / "pool.json"), "--images", web.url, at=ready)  # which was done before
        run("score", *OPTIONS, "--ray", cluster.address, at=ready)
        assert web.asked >= 30
    check_equal(ready, exported / "whole")


def test_a_driver_dies_and_another_is_stopped(exported: Path, ready: Path, cluster: Cluster) -> None:
    driver = start(ready, cluster)
    wait_for(lambda: written(ready), driver)
    driver.kill()
    driver.communicate()
    kept = {path: path.stat().st_mtime_ns for path in written(ready)}
    assert 0 < len(kept) < PARTS - 4
    driver = start(ready, cluster)
    wait_for(lambda: len(written(ready)) > len(kept), driver)
    driver.send_signal(signal.SIGTERM)
    started = time.monotonic()
    _, said = driver.communicate()
    assert time.monotonic() - started < GRACE + 1
    assert driver.returncode == 128 + signal.SIGTERM
    assert "the same command goes on where it stopped" in said
    assert len(written(ready)) < PARTS
    run("score", *OPTIONS, at=ready)  # without Ray
    check_equal(ready, exported / "whole")
    assert {path: path.stat().st_mtime_ns for path in kept} == kept


def test_a_part_is_not_begun_for_ever(cluster: Cluster) -> None:
    ray.init(address=cluster.address, log_to_driver=False)
    try:
        tries = ray.remote(on_ray._Tries).options(num_cpus=0).remote()
        assert ray.get([tries.begin.remote(part) for part in (3, 3, 2, 3, 3)]) == [1, 2, 1, 3, 4]
        worker = on_ray._Worker(None, None, "", tries)
        (told,) = worker(pa.table({"part": [3], "start": [60], "stop": [80]})).to_pylist()
    finally:
        ray.shutdown()
    assert told["failure"] == "ScoreError"
    assert "rows 60 to 79 of the pool were begun 4 times" in told["text"]


def test_errors_on_other_machines_are_told_as_here(make_run: Any, score_run: Any, cluster: Cluster) -> None:
    folder = make_run(many(5))
    (folder / "onnx" / "losses.onnx").write_bytes(b"no graph")
    with pytest.raises(ScoreError, match=r"(?s)losses\.onnx cannot be loaded .* \(on .+\)$"):
        score_run(folder, ray=cluster.address)
    with pytest.raises(UsageError, match=r"a scorer needs 1 GPU of one node, .* at most 0;"):
        score_run(folder, ray=cluster.address, ray_gpus=1)


@pytest.mark.parametrize(
    ("given", "message"),
    [
        (["--ray", "auto", "--shard", "1/2"], "--shard and --ray: give one"),
        (["--ray-gpus", "1"], "--ray-gpus and --ray-scorers need --ray ADDRESS"),
        (["--ray", "ray://head:10001"], "--ray: ray://head:10001 is no HOST:PORT"),
        (["--ray", "auto", "--ray-scorers", "0"], "--ray-scorers: 0 is too small"),
    ],
)
def test_options_that_do_not_go_together(
    given: list[str], message: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert cli.main(["score", *given, "--run-dir", str(tmp_path / "run"), "--quiet"]) == 2
    assert message in capsys.readouterr().err


def test_a_worker_and_a_node_die(exported: Path, ready: Path, cluster: Cluster) -> None:
    (node,) = cluster.worker_nodes
    driver = start(ready, cluster)
    wait_for(lambda: written(ready), driver)
    (victim,) = wait_for(lambda: workers(cluster.head_node, SCORER), driver)
    victim.kill()
    done = len(written(ready))
    # Two scorers have four parts in hand each, and more are waiting: those of the killed one are lost.
    assert 0 < done <= PARTS - 10
    # Now the other one works alone, until its node goes as well; what is left is the restarted one.
    wait_for(lambda: len(written(ready)) > done, driver)
    assert workers(node, SCORER)
    cluster.remove_node(node, allow_graceful=False)
    assert len(written(ready)) <= PARTS - 4
    _, said = driver.communicate()
    assert driver.returncode == 0, said
    check_equal(ready, exported / "whole")


@pytest.fixture
def connected(cluster: Cluster) -> Iterator[None]:
    """A connection that commands of this process share, so that its workers are started once."""
    ray.init(address=cluster.address, log_to_driver=False)
    yield
    ray.shutdown()


def pool_files(folder: Path) -> list[bytes]:
    assert not (folder / "ingest").exists()
    return [(folder / name).read_bytes() for name in ("pool.arrow", "rejected.jsonl", "checksums.b3")]


@pytest.mark.usefixtures("connected")
def test_inputs_are_read_as_by_one_process(tmp_path: Path) -> None:
    for kind in ("json", "jsonl", "parquet", "tar"):
        folder = tmp_path / kind
        (folder / "images").mkdir(parents=True)
        command = ["ingest", *INPUTS[kind](folder), "--images", folder / "images"]
        run(*command, at=folder / "whole")
        run(*command, "--ray", "auto", at=folder / "run")
        assert pool_files(folder / "run") == pool_files(folder / "whole")
        here, there = (
            json.loads((folder / name / "manifest.json").read_text())["stages"]["ingest"]
            for name in ("whole", "run")
        )
        assert (there["key"], there["counts"]) == (here["key"], here["counts"])


@pytest.mark.usefixtures("connected")
def test_what_is_wrong_with_an_input_is_told_as_here(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)  # relative paths are those of the driver
    inputs = [path.relative_to(tmp_path) for path in INPUTS["json"](tmp_path)]

    def told(*options: str, at: str) -> tuple[int, str]:
        code = cli.main(["ingest", *map(str, inputs), *options, "--run-dir", at, "--quiet"])
        return code, capsys.readouterr().err

    code, text = told("--ray", "auto", at="none")
    assert code == 2
    assert f"give the folder of the images with --images DIR (on {socket.gethostname()})" in text
    with socket.socket() as held:  # a port that nobody listens on
        held.bind(("127.0.0.1", 0))
        url = f"http://127.0.0.1:{held.getsockname()[1]}"
        code, text = told("--images", url, "--ray", "auto", at="away")
    assert code == 1
    assert f"cannot be read, after {len(stores.PAUSES) + 1} tries: " in text
    inputs[1].write_text(inputs[1].read_text()[:-200])
    inputs[2].write_text("[1, 2")
    here = told("--images", "images", at="here")
    assert here[0] == 1
    assert told("--images", "images", "--ray", "auto", at="there") == here
    # What was read of the first input is kept.
    assert len(list(Path("there/ingest").glob("part-*.arrow"))) == 1
    assert not Path("none").exists()


@pytest.mark.usefixtures("connected")
def test_an_input_is_not_begun_for_ever(tmp_path: Path) -> None:
    options = IngestOptions(pool=INPUTS["parquet"](tmp_path), ray="auto")
    reading = reading_on_ray._Reading(ray, options, "parquet")
    for _ in range(4):
        reading._begun(0)
    with pytest.raises(
        ClusterError, match=r"0\.parquet was begun 4 times, and the process that read it died"
    ):
        reading._begun(0)


def test_inputs_are_read_whoever_dies(tmp_path: Path, cluster: Cluster) -> None:
    images = tmp_path / "images"
    images.mkdir()
    inputs = []
    for number in range(9):
        inputs.append(tmp_path / f"{number}.jsonl")
        names = [f"{number}-{place}.png" for place in range(3)]
        for name in names:
            (images / name).write_bytes(picture(number))
        turns = [{"from": "human", "value": "<image>?"}, {"from": "gpt", "value": "!"}]
        lines = [json.dumps({"id": "same", "image": name, "conversations": turns}) for name in names]
        inputs[-1].write_text("\n".join(lines))
    node = cluster.add_node(num_cpus=1, object_store_memory=STORE)
    at = tmp_path / "run"

    def kept() -> list[Path]:
        return sorted(at.glob("ingest/part-*.arrow"))

    with serving(images) as web:
        command = ["ingest", *inputs, "--images", web.url]
        run(*command, at=tmp_path / "whole")

        def begin() -> tuple[subprocess.Popen[str], threading.Event]:
            """Start a driver; the server answers for two inputs, then lets everybody wait for the gate."""
            gate, most, before = threading.Event(), web.asked + 6, len(kept())
            web.drops = lambda number: number > most and not gate.wait(300)
            driver = start(at, cluster, *command)
            wait_for(lambda: len(kept()) > before, driver)
            return driver, gate

        driver, gate = begin()
        driver.kill()
        driver.communicate()
        gate.set()
        before = {path: path.stat().st_mtime_ns for path in kept()}
        driver, gate = begin()
        driver.send_signal(signal.SIGTERM)
        started = time.monotonic()
        _, said = driver.communicate()
        assert time.monotonic() - started < GRACE + 1
        assert driver.returncode == 128 + signal.SIGTERM
        assert "the same command goes on where it stopped" in said
        gate.set()
        driver, gate = begin()
        (victim,) = wait_for(lambda: workers(cluster.head_node, READER), driver)
        victim.kill()
        wait_for(lambda: workers(node, READER), driver)
        cluster.remove_node(node, allow_graceful=False)
        assert {path: path.stat().st_mtime_ns for path in before} == before
        gate.set()
        _, said = driver.communicate()
    assert driver.returncode == 0, said
    assert pool_files(at) == pool_files(tmp_path / "whole")
