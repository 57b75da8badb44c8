"""Every block of README and documentation is run, or checked as far as it can be.

Blocks run in order, those of a page in one folder with a small pool, images, a model and a finished run. A
comment ``<!-- not run: why -->`` before a block leaves it at a check of its syntax and of the arguments.
"""

from __future__ import annotations

import gzip
import json
import re
import shlex
import shutil
import subprocess
import sys
import tomllib
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest

from conftest import TinyPool
from mllm_selector import arguments, cli

ROOT = Path(__file__).parents[1]
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]
BLOCK = re.compile(
    r"(?:<!-- not run: (?P<why>[^>]+) -->\n)?^```(?P<language>\w*)\n(?P<text>.*?)^```$", re.M | re.S
)
SHELL = {"sh", "console", "bash"}
SOURCES = {"captions": "ocr_vqa", "dialogues": "chat", "pairs": "ocr"}


@dataclass(frozen=True)
class Block:
    """A fenced block of a page; `why` it is not run, if it is not."""

    page: Path
    line: int
    language: str
    text: str
    why: str | None


def blocks(page: Path) -> list[Block]:
    text = page.read_text()
    return [
        Block(page, text.count("\n", 0, each.start("text")), each["language"], each["text"], each["why"])
        for each in BLOCK.finditer(text)
    ]


WITH_BLOCKS = [page for page in PAGES if blocks(page)]


@pytest.fixture(scope="module")
def scene(tiny_pool: TinyPool, tiny_model: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What the blocks find in their folder."""
    folder = tmp_path_factory.mktemp("docs")
    shutil.copytree(tiny_pool.images, folder / "images")
    shutil.copytree(tiny_model, folder / "model")
    records = [record | {"source": SOURCES[record["source"]]} for record in tiny_pool.records]
    (folder / "pool.json").write_text(json.dumps(records))
    (folder / "judge.csv").write_text(
        "id,quality\n" + "".join(f"{each['id']},{n}\n" for n, each in enumerate(records))
    )
    (folder / "chats").mkdir()
    for path, kind in (("ocr.jsonl.gz", "ocr"), ("chats/a.jsonl.gz", "chat")):
        named = [other_columns(record) for record in records if record["source"] == kind]
        (folder / path).write_bytes(gzip.compress("\n".join(map(json.dumps, named)).encode()))
    random = np.random.default_rng(0)
    select = ["select", str(folder / "pool.json"), "--images", str(folder / "images"), "--budget", "10%"]
    select += ["--seed-model", str(folder / "model"), "--engine", "torch", "--metrics", "upd,visnec"]
    assert cli.main([*select, "--run-dir", str(folder / "run"), "--quiet"]) == 0
    np.savez(
        folder / "arrays.npz",
        necessity=random.random(2000, np.float32),
        embeddings=random.standard_normal((2000, 8), np.float32),
    )
    return folder


def other_columns(record: dict) -> dict:
    """Bring a record to messages, with the column names of the README."""
    roles = {"human": "user", "gpt": "assistant"}
    image = record.get("image", [])
    turns = [{"role": roles[turn["from"]], "content": turn["value"]} for turn in record["conversations"]]
    return {"dialogue": turns, "pics": [image] if isinstance(image, str) else image}


@pytest.mark.parametrize("page", WITH_BLOCKS, ids=lambda page: page.name)
def test_blocks_of_a_page(page, scene, tmp_path, monkeypatch, capsys):
    folder = shutil.copytree(scene, tmp_path / "work")
    monkeypatch.chdir(folder)
    arrays = np.load("arrays.npz")
    module = ModuleType("page")  # where the page's own classes say that they are from
    monkeypatch.setitem(sys.modules, module.__name__, module)
    names = module.__dict__
    names |= {"necessity": arrays["necessity"], "embeddings": arrays["embeddings"]}
    for block in blocks(page):
        where = f"{page.name}, line {block.line}"
        if block.language == "python":
            code = compile(block.text, where, "exec")
            if block.why is None:
                exec(code, names)
        elif block.language in SHELL:
            for line in commands(block.text):
                check(line, block, where) if block.why else run(line, where, capsys)
        elif block.language == "json":
            json.loads(block.text)
        elif block.language == "toml":
            tomllib.loads(block.text)
        else:
            assert block.language in {"", "{toctree}", "text"}, f"{where}: unknown language {block.language}"


def commands(text: str) -> list[list[str]]:
    """Cut a block into commands; prompts, comments and the lines of a Slurm script's head are left out."""
    lines = text.replace("\\\n", " ").splitlines()
    words = [
        shlex.split(line.removeprefix("$ "), comments=True) for line in lines if not line.startswith("#")
    ]
    return [each for each in words if each]


def run(words: list[str], where: str, capsys: pytest.CaptureFixture[str]) -> None:
    if words[0] == "make":
        check_make(words, where)
    elif words[0] == "mllm-selector":
        done = cli.main([*words[1:], *([] if words[1] in {"diff", "doctor", "plan"} else ["--quiet"])])
        assert done == 0, f"{where}: {shlex.join(words)}: {capsys.readouterr().err}"
    else:
        assert words[0] == "cp", f"{where}: what is {words[0]}?"
        subprocess.run(words, check=True)


def check(words: list[str], block: Block, where: str) -> None:
    if words[0] == "mllm-selector":
        arguments.parser().parse_args(words[1:])
    elif words[0] == "pip":
        extras = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["optional-dependencies"]
        named = re.findall(r"\[([\w,]+)\]", " ".join(words))
        assert set(",".join(named).split(",")) - {""} <= set(extras), where
    elif words[0] == "make":
        check_make(words, where)
    else:
        assert words[0] in {"sbatch", "git", "cd"}, f"{where}: what is {words[0]}?"


def check_make(words: list[str], where: str) -> None:
    targets = re.findall(r"^([a-z-]+):", (ROOT / "Makefile").read_text(), re.M)
    assert set(words[1:]) <= set(targets), f"{where}: no such target"


def test_blocks_are_found():
    assert sum(len(blocks(page)) for page in PAGES) > 20
    assert {block.page.name for page in PAGES for block in blocks(page) if block.why is None} >= {
        "README.md",
        "tutorial.md",
        "choosing.md",
        "formats.md",
        "methods.md",
        "run-directory.md",
        "writing-a-format.md",
    }


def test_every_page_is_in_the_contents():
    contents = (ROOT / "docs" / "index.md").read_text()
    for page in (ROOT / "docs").glob("*.md"):
        assert page.stem == "index" or f"\n{page.stem}\n" in contents


def test_the_format_of_the_documentation_works(tmp_path, monkeypatch):
    """The class of docs/writing-a-format.md reads and writes a pool."""
    from mllm_selector import formats, pipeline
    from plugin_fixtures import install

    text = next(
        block.text for block in blocks(ROOT / "docs" / "writing-a-format.md") if block.language == "python"
    )
    install(tmp_path, monkeypatch, formats.ENTRY_POINTS, "documented_format", text, "Pairs")
    formats.known.cache_clear()
    try:
        pool = tmp_path / "pool.tsv"
        pool.write_text("id\tquestion\tanswer\n" + "".join(f"n{n}\tWhat?\tA{n}\n" for n in range(5)))
        options = pipeline.build_options({"pool": pool}, ["ingest"])
        pipeline.run_stages(tmp_path / "run", options)
        from mllm_selector import Pool

        read = Pool.of(tmp_path / "run")
        assert read.format == "pairs"
        assert [sample.messages[1][1] for sample in read] == [f"A{n}" for n in range(5)]
    finally:
        sys.modules.pop("documented_format", None)
        formats.known.cache_clear()
