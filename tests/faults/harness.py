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
    """How a command ended.

    Attributes
    ----------
    code : int
        Exit code; of a signal its negative number.
    log : str
        What it said.
    cpu : float
        Seconds of processor time.
    """

    code: int
    log: str
    cpu: float

    def calls(self, kinds: int) -> int:
        """Return how many calls of some kinds changed files, where the shim counted them."""
        counts = [int(word) for word in self.log.rpartition("calls ")[2].split()]
        return sum(count for kind, count in zip((PATH, DATA, REMOVE), counts, strict=True) if kind & kinds)

    @property
    def was_done(self) -> bool:
        """Whether the command line had come to its end, so that a signal struck what follows it."""
        return self.code == 0 or ("\ncalls " in self.log and "stopped by" not in self.log)

    @property
    def last(self) -> str:
        """The last line that it said."""
        lines = [line for line in self.log.splitlines() if line.strip()]
        return f"exit code {self.code}: {lines[-1][:300] if lines else 'nothing said'}"


class Child:
    """A command that runs."""

    def __init__(self, server: Server, pid: int, log: Path) -> None:
        self._server = server
        self.pid = pid
        self._log = log

    def send(self, signum: int) -> None:
        """Send a signal."""
        os.kill(self.pid, signum)

    def has_ended(self) -> bool:
        """Say whether it ended, by itself or otherwise."""
        return self._stat()[0] == "Z"

    def let_work(self, seconds: float) -> None:
        """Return when it took this much processor time, or has ended."""
        while True:
            state, *rest = self._stat()
            if state == "Z":
                return
            left = seconds - sum(int(ticks) for ticks in rest[10:12]) / os.sysconf("SC_CLK_TCK")
            if left <= 0:
                return
            time.sleep(min(left, 0.05))

    def _stat(self) -> list[str]:
        """Return what the kernel says of it, from the state on."""
        return Path(f"/proc/{self.pid}/stat").read_text().rpartition(")")[2].split()

    def wait(self) -> Finished:
        """Wait for the end."""
        ended = self._server.ask(wait=self.pid)
        return Finished(ended["status"], self._log.read_text(errors="replace"), ended["cpu"])


class Server:
    """The process that commands are forked from."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._started = 0
        shim = folder / "shim.so"
        compiler = os.environ.get("CC", "cc")
        subprocess.run(
            [compiler, "-shared", "-fPIC", "-O1", "-o", str(shim), str(HERE / "shim.c"), "-ldl"], check=True
        )
        environment = os.environ | {
            "LD_PRELOAD": str(shim),
            "TOKENIZERS_PARALLELISM": "false",
            "OMP_NUM_THREADS": "1",
            "HF_HUB_OFFLINE": "1",
            "XDG_CACHE_HOME": str(folder / "cache"),
            "ARROW_DEFAULT_MEMORY_POOL": "system",  # the other one sets a gigabyte aside
        }
        (folder / "logs").mkdir(exist_ok=True)
        with (folder / "server.log").open("a") as log:
            self._process = subprocess.Popen(
                [sys.executable, str(HERE / "server.py"), str(folder / "modules.txt")],
                env=environment,
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=log,
                text=True,
                bufsize=1,
            )

    def ask(self, **request: Any) -> dict[str, Any]:
        """Send a request and return the answer."""
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._process.stdin.write(json.dumps(request) + "\n")
        self._process.stdin.flush()
        return json.loads(self._process.stdout.readline())

    def start(self, **request: Any) -> Child:
        """Start a command."""
        self._started += 1
        log = self._folder / "logs" / f"{os.getpid()}-{self._started}"
        return Child(self, self.ask(log=str(log), **request)["pid"], log)

    def close(self) -> None:
        """End the process."""
        assert self._process.stdin is not None
        self._process.stdin.close()
        self._process.wait()


class Bench:
    """A pool, a model, one undisturbed run of each stage, and what it left.

    Parameters
    ----------
    folder : Path, optional
        Keeps all of this for another time, or has it from an earlier one; by default a temporary one.
    stages : sequence of str
        The stages that are to be disturbed, from the first on.

    Attributes
    ----------
    work : Path
        What commands write to: the run directory in it, ``run``, and the subset, ``out.json``.
    before : dict of str to Path
        ``work`` as it was before each stage, and under ``end`` after the last.
    calls : dict of str to list
        Of each stage: how many calls changed ``work``: paths, content, removals.
    cpu : dict of str to float
        Processor seconds of each stage. Imports count in the first estimate, so it is too long; who waits too
        long for a stage corrects it.
    """

    def __init__(self, folder: Path | None = None, stages: Sequence[str] = STAGES) -> None:
        self._stages = stages
        self._is_kept = folder is not None
        self.folder = folder or Path(tempfile.mkdtemp(prefix="mllm-selector-faults-"))
        self.folder.mkdir(parents=True, exist_ok=True)
        self.work = self.folder / "work"
        self.run = self.work / "run"
        self.before = {name: self.folder / f"before-{name}" for name in (*stages, "end")}
        self.calls: dict[str, list[int]] = {}
        self.cpu: dict[str, float] = {}

    def __enter__(self) -> Self:
        self.server = Server(self.folder)
        figures = self.folder / "figures.json"
        if not figures.exists():
            self._prepare()
            figures.write_text(json.dumps([self.calls, self.cpu]))
        self.calls, self.cpu = json.loads(figures.read_text())
        return self

    def __exit__(self, *_: object) -> None:
        self.server.close()
        if not self._is_kept:
            shutil.rmtree(self.folder)

    def _prepare(self) -> None:
        for path in (self.work, self.folder / "model", self.folder / "images", *self.before.values()):
            shutil.rmtree(path, ignore_errors=True)
        made = self.server.start(make=str(self.folder)).wait()
        assert made.code == 0, made.log
        self.server.ask(warm=True)
        self.work.mkdir()
        for stage in self._stages:
            shutil.copytree(self.work, self.before[stage])
            ended = self.stage(stage, **self.fault(COUNT, 0)).wait()
            assert ended.code == 0, ended.log
            self.calls[stage] = [ended.calls(kind) for kind in (PATH, DATA, REMOVE)]
            self.cpu[stage] = ended.cpu
            self.server.ask(warm=True)
        shutil.copytree(self.work, self.before["end"])

    def count(self, stage: str, kinds: int = EVERY) -> int:
        """Return how many calls of some kinds a stage makes."""
        each = zip((PATH, DATA, REMOVE), self.calls[stage], strict=True)
        return sum(count for kind, count in each if kind & kinds)

    def restore(self, stage: str) -> None:
        """Bring ``work`` back to what it was before a stage."""
        shutil.rmtree(self.work, ignore_errors=True)
        shutil.copytree(self.before[stage], self.work)

    def _options(self, stage: str) -> list[str]:
        own = {
            "ingest": [str(self.folder / "pool.json"), "--images", str(self.folder / "images")],
            "seed": ["--model", str(self.folder / "model")],
            "pick": ["--out", str(self.work / "out.json")],
        }
        return [*own.get(stage, []), *OF_STAGE[stage]]

    def stage(self, stage: str, **fault: Any) -> Child:
        """Start the command of one stage."""
        return self.server.start(argv=[stage, *self._options(stage), "--run-dir", str(self.run)], **fault)

    def select(self, **fault: Any) -> Child:
        """Start the whole run."""
        options = [word for stage in STAGES for word in self._options(stage)]
        return self.server.start(argv=["select", *options, "--run-dir", str(self.run)], **fault)

    def fault(self, action: int, call: int, error: int = 0, kinds: int = EVERY) -> dict[str, Any]:
        """Return the fault that strikes a call which changes ``work``."""
        return {"fault": [str(self.work), action, call, error, kinds]}

    def changed(self, stage: str) -> list[str]:
        """Name the files of the stages before one that are not what they were."""
        books = {"lock", "manifest.json", "checksums.b3", "records"}  # they change with every stage
        kept = self.before[stage] / "run"
        files = (path.relative_to(kept) for path in kept.rglob("*") if path.is_file())
        content = [name for name in files if name.parts[0] not in books]
        return [name.as_posix() for name in content if not _same(kept / name, self.run / name)]

    def differences(self, stages: Sequence[str] = STAGES) -> list[str]:
        """Name the outputs of stages that are not those of the undisturbed run, byte for byte."""
        outputs = {
            "ingest": ["run/pool.arrow", "run/rejected.jsonl"],
            "seed": ["run/seed/indices.arrow", "run/seed/adapter", "run/seed/model"],
            "export": ["run/onnx"],
            "score": ["run/scores"],
            "pick": ["run/selection.arrow", "run/subset.json", "out.json"],
            "report": ["run/report.html", "run/report.json"],
        }
        differ = []
        for name in (name for stage in stages if stage != "report" for name in outputs[stage]):
            differ += _differences(self.before["end"] / name, self.work / name, name)
        if "report" in stages:  # it holds times
            differ += [name for name in outputs["report"] if not (self.work / name).is_file()]
        left = [str(path.relative_to(self.work)) for path in self.run.rglob(".*.tmp")]
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
