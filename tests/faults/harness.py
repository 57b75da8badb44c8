"""What the fault tests share: a small pool and model, commands with a fault, what a whole run leaves."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self

HERE = Path(__file__).parent
STAGES = ("ingest", "seed", "export", "score", "pick", "report")

# The shim's actions and kinds of calls.
COUNT, KILL, FAIL_ONCE, FAIL_ON = range(4)
PATH, DATA, REMOVE = 1, 2, 4
EVERY = PATH | DATA | REMOVE

SAMPLES = 40
OF_STAGE = {
    "ingest": [],
    "seed": ["--seed-size", "12", "--seed-batch-size", "4", "--seed-micro-batch", "4", "--lora-rank", "4"],
    "export": [],
    "score": ["--shard-size", "8", "--token-budget", "512"],
    "pick": ["--budget", "25%", "--group-count", "4"],
    "report": [],
}


@dataclass(frozen=True)
class Finished:
    """How a command ended."""

    code: int
    log: str
    seconds: float

    @property
    def calls(self) -> int:
        """Calls that changed files, where the shim counted them."""
        return int(self.log.rpartition("calls ")[2])


class Child:
    """A command that runs."""

    def __init__(self, server: Server, pid: int, log: Path) -> None:
        self._server = server
        self.pid = pid
        self._log = log
        self._started = time.monotonic()

    def send(self, signum: int) -> None:
        """Send a signal."""
        os.kill(self.pid, signum)

    def wait(self) -> Finished:
        """Wait for the end."""
        code = self._server.ask(wait=self.pid)["status"]
        return Finished(code, self._log.read_text(), time.monotonic() - self._started)


class Server:
    """The process that commands are forked from."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._started = 0
        shim = folder / "shim.so"
        if not shim.exists():
            compiler = os.environ.get("CC", "cc")
            subprocess.run(
                [compiler, "-shared", "-fPIC", "-O1", "-o", str(shim), str(HERE / "shim.c"), "-ldl"],
                check=True,
            )
        self._environment = os.environ | {
            "LD_PRELOAD": str(shim),
            "TOKENIZERS_PARALLELISM": "false",
            "OMP_NUM_THREADS": "1",
            "HF_HUB_OFFLINE": "1",
        }
        self._process = self._start()

    def _start(self) -> subprocess.Popen[str]:
        command = [sys.executable, str(HERE / "server.py"), str(self._folder / "modules.txt")]
        log = (self._folder / "server.log").open("a")
        return subprocess.Popen(
            command,
            env=self._environment,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=log,
            text=True,
            bufsize=1,
        )

    def warm(self) -> None:
        """Start anew, with all that the first command imported."""
        self.close()
        self._process = self._start()

    def ask(self, **request: Any) -> dict[str, Any]:
        """Send a request and return the answer."""
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._process.stdin.write(json.dumps(request) + "\n")
        self._process.stdin.flush()
        return json.loads(self._process.stdout.readline())

    def start(self, argv: Sequence[str], **fault: Any) -> Child:
        """Start a command."""
        self._started += 1
        log = self._folder / f"log-{os.getpid()}-{self._started}"
        return Child(self, self.ask(argv=list(argv), log=str(log), **fault)["pid"], log)

    def close(self) -> None:
        """End the process."""
        assert self._process.stdin is not None
        self._process.stdin.close()
        self._process.wait()


class Bench:
    """A pool, a model, one undisturbed run of each stage, and what it left.

    Parameters
    ----------
    stages : sequence of str
        The stages that are to be disturbed, from the first on.
    folder : Path, optional
        Keeps all of this for another time, or has it from an earlier one; by default a temporary one.

    Attributes
    ----------
    before : dict of str to Path
        The run directory as it was before each stage, and under ``end`` after the last.
    calls, seconds : dict
        Of each stage: how many calls changed the run directory, and about how long it takes. Imports count in
        the first estimate, so it is too long; whoever waits too long for a stage corrects it.
    """

    def __init__(self, folder: Path | None = None, stages: Sequence[str] = STAGES) -> None:
        self._stages = stages
        self._is_kept = folder is not None
        self.folder = folder or Path(tempfile.mkdtemp(prefix="mllm-selector-faults-"))
        self.folder.mkdir(parents=True, exist_ok=True)
        self.run = self.folder / "run"
        self.before: dict[str, Path] = {}
        self.calls: dict[str, int] = {}
        self.seconds: dict[str, float] = {}

    def __enter__(self) -> Self:
        figures = self.folder / "figures.json"
        if figures.exists():
            self.calls, self.seconds = json.loads(figures.read_text())
            self.before = {name: self.folder / f"before-{name}" for name in (*self._stages, "end")}
            self.server = Server(self.folder)
            return self
        self._make_input()
        self.server = Server(self.folder)
        for stage in self._stages:
            self.before[stage] = self._keep(stage)
            ended = self.stage(stage, **self.fault(COUNT, 0)).wait()
            assert ended.code == 0, ended.log
            self.calls[stage], self.seconds[stage] = ended.calls, ended.seconds
        self.server.warm()
        self.before["end"] = self._keep("end")
        figures.write_text(json.dumps([self.calls, self.seconds]))
        return self

    def __exit__(self, *_: object) -> None:
        self.server.close()
        if not self._is_kept:
            shutil.rmtree(self.folder)

    def _make_input(self) -> None:
        sys.path.insert(0, str(HERE.parent))
        import numpy as np

        import conftest
        from mllm_selector.demo.model import make_model
        from mllm_selector.demo.scenes import draw_scene

        random = np.random.Generator(np.random.Philox(0))
        texts = conftest._texts(draw_scene(random) for _ in range(50))
        make_model(self.folder / "model", texts, size=conftest.TINY)
        images = self.folder / "images"
        images.mkdir()
        records = [
            conftest._record(index, draw_scene(random), draw_scene(random), images, random)
            for index in range(SAMPLES)
        ]
        (self.folder / "pool.json").write_text(json.dumps(records, indent=1))

    def _keep(self, name: str) -> Path:
        kept = self.folder / f"before-{name}"
        if self.run.exists():
            shutil.copytree(self.run, kept)
        return kept

    def restore(self, stage: str) -> None:
        """Bring the run directory back to what it was before a stage."""
        shutil.rmtree(self.run, ignore_errors=True)
        if self.before[stage].exists():
            shutil.copytree(self.before[stage], self.run)

    def _input(self, stage: str) -> list[str]:
        pool = [str(self.folder / "pool.json"), "--images", str(self.folder / "images")]
        return {"ingest": pool, "seed": ["--model", str(self.folder / "model")]}.get(stage, [])

    def stage(self, stage: str, **fault: Any) -> Child:
        """Start the command of one stage."""
        options = [*self._input(stage), *OF_STAGE[stage]]
        return self.server.start([stage, *options, "--run-dir", str(self.run)], **fault)

    def select(self, **fault: Any) -> Child:
        """Start the whole run."""
        options = [word for stage in STAGES for word in (*self._input(stage), *OF_STAGE[stage])]
        return self.server.start(["select", *options, "--run-dir", str(self.run)], **fault)

    def fault(self, action: int, call: int, error: int = 0, kinds: int = EVERY) -> dict[str, Any]:
        """Return the fault that strikes a call which changes the run directory."""
        return {"fault": [str(self.run), action, call, error, kinds]}

    def changed(self, stage: str) -> list[str]:
        """Name the files of the stages before one that are not what they were."""
        books = {"lock", "manifest.json", "checksums.b3"}  # they change with every stage
        kept = self.before[stage]
        files = (path.relative_to(kept) for path in kept.rglob("*") if path.is_file())
        content = [name for name in files if name.parts[0] not in {*books, "records"}]
        return [name.as_posix() for name in content if not _same(kept / name, self.run / name)]

    def differences(self, stages: Sequence[str] = STAGES) -> list[str]:
        """Name the outputs of stages that are not those of the undisturbed run, byte for byte."""
        outputs = {
            "ingest": ["pool.arrow", "rejected.jsonl"],
            "seed": ["seed/indices.arrow", "seed/adapter", "seed/model"],
            "export": ["onnx"],
            "score": ["scores"],
            "pick": ["selection.arrow", "subset.json"],
            "report": ["report.html", "report.json"],
        }
        differ = []
        for name in (name for stage in stages if stage != "report" for name in outputs[stage]):
            differ += _differences(self.before["end"] / name, self.run / name, name)
        if "report" in stages:  # it holds times
            differ += [name for name in outputs["report"] if not (self.run / name).is_file()]
        left = [str(path.relative_to(self.run)) for path in self.run.rglob(".*.tmp")]
        return differ + left


def _differences(expected: Path, found: Path, name: str) -> list[str]:
    if not expected.is_dir():
        return [] if _same(expected, found) else [name]
    if not found.is_dir():
        return [name]
    names = sorted({path.name for folder in (expected, found) for path in folder.iterdir()})
    return [
        entry for each in names for entry in _differences(expected / each, found / each, f"{name}/{each}")
    ]


def _same(expected: Path, found: Path) -> bool:
    return found.is_file() and found.read_bytes() == expected.read_bytes()


def is_clear(ended: Finished, code: int = 1) -> bool:
    """Say whether a command ended with an error that a user can act on."""
    return ended.code == code and "Traceback" not in ended.log and "mllm-selector: " in ended.log


def killed(ended: Finished) -> bool:
    """Say whether a kill struck before the end."""
    return ended.code == -signal.SIGKILL
