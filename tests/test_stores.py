"""Images by the URL of their folder: the same bytes as from a folder, whatever the network does."""

from __future__ import annotations

import json
import re
import shutil
import threading
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pytest

from family_fixtures import qwen2_vl
from mllm_selector import cli, stores
from mllm_selector.config import ImageFolder
from mllm_selector.errors import MissingPackageError, StoreError, UsageError
from mllm_selector.fetching import Fetching
from mllm_selector.pool import Pool
from mllm_selector.stores import ImageStore
from model_fixtures import picture
from store_fixtures import Web, in_s3, serving

GOOD = [*(f"{index}.png" for index in range(8)), "coco/a b/ü%2e?#.png", "coco/9.jpg"]
BAD = [
    "empty.png",
    "cut.png",
    "text.png",
    "damaged.png",
    "nothing.png",
    "/0.png",
    "../images/0.png",
    "a/../../0.png",
]


def ask(image: str, count: int = 1) -> dict[str, Any]:
    turns = [
        {"from": "human", "value": "<image>\n" + "how many red ? " * count},
        {"from": "gpt", "value": "two " * (1 + count % 5)},
    ]
    return {"id": image, "image": image, "conversations": turns}


@pytest.fixture(scope="module")
def images(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("stored") / "images"
    (folder / "coco" / "a b").mkdir(parents=True)
    for index, name in enumerate(GOOD):
        picture(index, (60 + 7 * index, 90)).save(folder / name)
    (folder / "empty.png").touch()
    whole = (folder / "0.png").read_bytes()
    (folder / "cut.png").write_bytes(whole[:-300])
    (folder / "text.png").write_text("no picture")
    (folder / "damaged.png").write_bytes(whole[:200] + bytes(100) + whole[300:])
    return folder


@pytest.fixture(scope="module")
def s3(images: Path) -> Iterator[str]:
    with in_s3(images) as url:
        yield url


@pytest.fixture
def web(images: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Web]:
    monkeypatch.setattr(stores, "PAUSES", (0.01, 0.01))
    with serving(images) as server:
        yield server


def write_pool(folder: Path, records: list[dict[str, Any]]) -> Path:
    path = folder / "pool.json"
    path.write_text(json.dumps(records))
    return path


def run(*arguments: object, at: Path) -> int:
    return cli.main([*map(str, arguments), "--run-dir", str(at), "--quiet"])


@pytest.mark.parametrize("check", ["none", "header", "decode"])
def test_a_pool_is_read_as_from_a_folder(check: str, images: Path, s3: str, web: Web, tmp_path: Path) -> None:
    names = [*GOOD, "./coco//9.jpg", "coco/../1.png", "coco\\9.jpg", *GOOD]
    pool = write_pool(tmp_path, [ask(name) for name in [*names, *BAD]])
    found = {}
    for what, url in {"folder": images, "file": images.as_uri(), "web": web.url, "s3": s3}.items():
        at = tmp_path / what
        assert run("ingest", pool, "--images", url, "--check-images", check, at=at) == 0
        found[what] = [(at / name).read_bytes() for name in ("pool.arrow", "rejected.jsonl")]
        assert found[what] == found["folder"], what
    rejected = found["folder"][1].decode().splitlines()
    assert len(rejected) == {"none": 4, "header": 7, "decode": 8}[check]
    # Each image once, however many samples show it and however its path is spelt.
    assert web.asked <= len(GOOD) + len(BAD) + 3


def test_paths_may_be_addresses_in_the_folder(web: Web, s3: str, tmp_path: Path) -> None:
    for number, url in enumerate((web.url, s3)):
        bare = url.partition("?")[0]
        pool = write_pool(
            tmp_path, [ask(f"{bare}/{name}") for name in ("0.png", "coco/9.jpg", "nothing.png")]
        )
        assert run("ingest", pool, "--images", url, at=tmp_path / str(number)) == 0
        (rejected,) = (tmp_path / str(number) / "rejected.jsonl").read_text().splitlines()
        assert json.loads(rejected)["reason"] == "image-missing"
        shown = [sample.images for sample in Pool.of(tmp_path / str(number))]
        assert [image.path for (image,) in shown] == ["0.png", "coco/9.jpg"]
        assert shown[0][0].read(4) == b"\x89PNG"


@pytest.fixture(scope="module")
def exported(images: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Run directories of a model whose tokens depend on the sizes of images: before and after scoring."""
    folder = tmp_path_factory.mktemp("exported")
    names = [*GOOD, "cut.png", "text.png", "nothing.png"]
    pool = write_pool(folder, [ask(names[index % len(names)], index) for index in range(60)])
    ready = folder / "ready"
    # Nothing is set aside by what is in an image, so that scoring does.
    shutil.copytree(images, folder / "images")
    shutil.copy(images / "text.png", folder / "images" / "nothing.png")
    assert run("ingest", pool, "--images", folder / "images", "--check-images", "none", at=ready) == 0
    (folder / "images" / "nothing.png").unlink()
    assert run("seed", "--seed-model", qwen2_vl(folder / "model"), at=ready) == 0
    assert run("export", "--engine", "torch", at=ready) == 0
    shutil.copytree(ready, folder / "whole")
    finish(folder / "whole")
    return folder


def score(at: Path) -> int:
    return run("score", "--device", "cpu", "--shard-size", "10", "--threads", "1", at=at)


def finish(at: Path) -> None:
    assert score(at) == 0
    assert run("pick", "--budget", "20%", at=at) == 0
    assert run("report", at=at) == 0


def results(at: Path) -> dict[str, bytes]:
    """What must be the same: scores, selection, subset, and the images of the report."""
    names = ["selection.arrow", "subset.json", *(f"scores/part-{index:05d}.arrow" for index in range(6))]
    shown = re.findall(rb'"data:image/[^"]*"', (at / "report.html").read_bytes())
    assert len(shown) > 5
    return {name: (at / name).read_bytes() for name in names} | {"images": b"".join(shown)}


def move_images(at: Path, exported: Path, url: str) -> None:
    """Let a run take its images from elsewhere: the pool is the same, so it is not read again."""
    given = ("--images", url, "--check-images", "none")
    assert run("ingest", exported / "pool.json", *given, at=at) == 0
    assert json.loads((at / "manifest.json").read_text())["stages"]["ingest"]["options"]["images"] == url


def test_the_selection_from_s3_is_that_of_a_folder(exported: Path, s3: str, tmp_path: Path) -> None:
    ready = shutil.copytree(exported / "ready", tmp_path / "run")
    move_images(ready, exported, s3)
    finish(ready)
    assert results(ready) == results(exported / "whole")


def test_a_lost_connection_ends_the_command_and_loses_nothing(
    exported: Path, web: Web, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    at = tmp_path / "new"
    web.drops = lambda number: number > 5
    ingest = ("ingest", exported / "pool.json", "--images", web.url)
    assert run(*ingest, at=at) == 1
    said = capsys.readouterr().err
    assert f"{web.url}/" in said
    assert "cannot be read, after 3 tries: " in said
    assert "run the same command again" in said
    assert not at.exists()
    web.drops = lambda _: False
    assert run(*ingest, at=at) == 0

    ready = shutil.copytree(exported / "ready", tmp_path / "run")
    move_images(ready, exported, web.url)
    web.drops = lambda _: any((ready / "scores").glob("part-*"))
    assert score(ready) == 1
    assert "run the same command again" in capsys.readouterr().err
    kept = {path: path.stat().st_mtime_ns for path in (ready / "scores").glob("part-*")}
    assert 0 < len(kept) < 6
    # Every third request is lost, and made again.
    web.drops = lambda number: number % 3 == 0
    finish(ready)
    assert results(ready) == results(exported / "whole")
    assert {path: path.stat().st_mtime_ns for path in kept} == kept
    web.drops = lambda _: True
    assert run("report", "--gallery", "5", at=ready) == 1
    assert "run the same command again" in capsys.readouterr().err


def test_images_are_fetched_before_they_are_asked_for(exported: Path, web: Web) -> None:
    together = threading.Barrier(8)

    def drops(number: int) -> bool:
        if number <= together.parties:
            together.wait(60)  # broken where each request waits for the one before
        return False

    web.drops = drops
    file = exported / "ready" / "pool.arrow"
    here, stored = Pool.open(file, exported / "images"), Pool.open(file, web.url)
    rows = [*range(40, 60), 3, 3, *range(30)]
    missing = 0
    with Fetching(here, rows) as local, Fetching(stored, rows) as samples:
        assert len(samples) == len(local) == len(rows)
        for place in range(len(rows)):
            assert samples[place].id == local[place].id
            for image, path in zip(samples[place].images, local[place].images, strict=True):
                assert str(image) == f"{web.url}/{path.relative_to(exported / 'images')}"
                if path.exists():
                    assert image.read() == path.read_bytes()
                    assert image.read(9) == path.read_bytes()[:9]
                    continue
                missing += 1
                with pytest.raises(FileNotFoundError):
                    image.read()
    assert missing
    assert not together.broken
    web.drops = lambda _: True
    with Fetching(stored, rows) as samples, pytest.raises(StoreError, match="cannot be read, after 3 tries"):
        samples[0].images[0].read()


@pytest.mark.parametrize(
    ("url", "message"),
    [
        ("s3://key:word@bucket/images", "a password or key would be written into the run directory"),
        ("s3://bucket/images?region=x&secret_key=word", "a password or key would be written"),
        ("nowhere://images", "--images nowhere://images: .*; name a folder of this machine, or a URL"),
        ("http://127.0.0.1:1/images?x=1", "an address of http that image paths are put behind has no '?'"),
    ],
)
def test_addresses_that_cannot_be_used(
    url: str, message: str, exported: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    at = tmp_path / "run"
    assert run("ingest", exported / "pool.json", "--images", url, at=at) == 2
    said = capsys.readouterr().err
    assert "word" not in said.replace("password", "")
    assert not at.exists()
    with pytest.raises(UsageError, match=message):
        ImageStore(ImageFolder.parse(url).url or "").open()


def test_a_package_that_is_missing_is_named() -> None:
    with pytest.raises(MissingPackageError, match=r"--images sftp://host/images: .*paramiko"):
        ImageStore("sftp://host/images").open()


@pytest.mark.parametrize("path", ["../0.png", "coco/../../0.png", "/../0.png", "//0.png", "."])
def test_no_path_leads_above_the_folder(path: str, images: Path, serve: Callable[[Path], Web]) -> None:
    """A pool file of somebody else may hold any path."""
    store = ImageStore(serve(images).url + "/coco")
    with pytest.raises(FileNotFoundError):
        store.read(path)
    assert store.read("../9.jpg") == (images / "coco" / "9.jpg").read_bytes()


@pytest.fixture
def serve() -> Iterator[Callable[[Path], Web]]:
    with ExitStack() as stack:
        yield lambda folder: stack.enter_context(serving(folder))
