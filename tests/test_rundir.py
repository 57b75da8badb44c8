"""The run directory: its lock, manifest, records and checksums, and what doctor says of them."""

from __future__ import annotations

import fcntl
import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from conftest import TinyPool
from mllm_selector import pipeline
from mllm_selector.checksums import Checksums
from mllm_selector.errors import RunDirectoryError, UsageError
from mllm_selector.inspection import inspect
from mllm_selector.locking import RunLock
from mllm_selector.progress import SilentProgress
from mllm_selector.rundir import RunDirectory, StageRecord, fingerprint, read_manifest


class Notes(SilentProgress):
    def __init__(self) -> None:
        self.notes: list[str] = []
        self.finished: list[str] = []

    def note(self, text: str) -> None:
        self.notes.append(text)

    def finish(self, text: str) -> None:
        self.finished.append(text)


def ingest(pool: TinyPool, run: Path) -> Notes:
    progress = Notes()
    options = pipeline.build_options({"pool": pool.path, "images": pool.images}, ["ingest"])
    pipeline.run_stages(run, options, progress)
    return progress


@pytest.fixture
def run(tiny_pool: TinyPool, tmp_path: Path) -> Path:
    ingest(tiny_pool, tmp_path / "run")
    return tmp_path / "run"


class TestLock:
    def test_says_who_holds_it_since_when_and_for_what(self, tmp_path: Path) -> None:
        first, second = RunLock(tmp_path / "lock"), RunLock(tmp_path / "lock")
        first.take()
        assert second.is_taken()
        with pytest.raises(RunDirectoryError) as caught:
            second.take()
        for words in (f"in use by process {os.getpid()} on", "started 2", "0 h 0 min ago", "as '"):
            assert words in str(caught.value)
        first.release()
        assert not second.is_taken()
        second.take()

    @pytest.mark.parametrize("started", ["2999-01-01T00:00:00+00:00", "1970-01-01T00:00:00+00:00"])
    def test_tells_no_age_below_zero_when_the_clock_has_jumped(self, tmp_path: Path, started: str) -> None:
        lock = RunLock(tmp_path / "lock")
        lock.take()
        owner = json.loads(lock.path.read_text()) | {"started": started}
        lock.path.write_text(json.dumps(owner))
        assert started in lock.holder()
        assert ("ago" in lock.holder()) == started.startswith("1970")

    def test_of_a_process_that_wrote_nothing(self, tmp_path: Path) -> None:
        (tmp_path / "lock").touch()
        assert RunLock(tmp_path / "lock").holder() == "process unknown"

    def test_keeps_a_second_process_out(self, run: Path, tiny_pool: TinyPool) -> None:
        with (run / "lock").open("a+") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)
            with pytest.raises(RunDirectoryError, match="in use by process"):
                ingest(tiny_pool, run)
            assert "in use           by process" in inspect(run)[0]


class TestManifest:
    def test_is_made_again_from_the_records(self, run: Path, tiny_pool: TinyPool) -> None:
        before = read_manifest(run)
        manifest = run / "manifest.json"
        for damage, said in (
            (lambda path: path.unlink(), "is missing"),
            (lambda path: path.write_bytes(path.read_bytes()[:-9]), "is damaged"),
        ):
            damage(manifest)
            assert read_manifest(run) == before
            text, healthy = inspect(run)
            assert "the next command makes it again" in text
            assert not healthy
            progress = ingest(tiny_pool, run)
            assert progress.finished == ["done before"]
            assert progress.notes == [f"{manifest} {said}; made again from the records of its stages"]
            assert inspect(run)[1]

    def test_stands_in_for_a_damaged_record(self, run: Path, tiny_pool: TinyPool) -> None:
        (run / "records" / "ingest.json").write_text("{")
        assert ingest(tiny_pool, run).finished == ["done before"]

    def test_without_records_is_an_error_when_damaged(self, run: Path, tiny_pool: TinyPool) -> None:
        shutil.rmtree(run / "records")
        (run / "manifest.json").write_text("{")
        with pytest.raises(RunDirectoryError, match=r"manifest\.json cannot be read"):
            ingest(tiny_pool, run)
        assert "cannot be read" in inspect(run)[0]

    def test_of_another_version_is_an_error(self, run: Path) -> None:
        for path in (run / "manifest.json", run / "records" / "ingest.json"):
            path.write_text(path.read_text().replace('"version": 1', '"version": 99'))
        with pytest.raises(RunDirectoryError, match="has version 99"):
            read_manifest(run)

    def test_a_stage_counts_from_its_record_on(self, run: Path, tiny_pool: TinyPool) -> None:
        # As if killed between the two writes that end a stage.
        manifest = json.loads((run / "manifest.json").read_text())
        manifest["stages"]["ingest"] |= {"state": "running", "counts": {}}
        (run / "manifest.json").write_text(json.dumps(manifest))
        assert ingest(tiny_pool, run).finished == ["done before"]

    def test_a_stage_that_begins_again_does_not_count(self, run: Path) -> None:
        with RunDirectory(run) as held:
            held.begin("ingest", StageRecord("running", "key"))
        assert read_manifest(run)["ingest"].state == "running"


class TestChecksums:
    def test_are_those_of_b3sum(self, tmp_path: Path) -> None:
        (tmp_path / "empty").touch()
        sums = Checksums(tmp_path / "sums")
        sums.add(tmp_path / "empty")
        # The hash of no bytes, as the BLAKE3 paper's test vectors give it.
        known = "af1349b9f5f9a1a6a0404dea36dcc9499bcb25c9adc112b7cc9a93cae41f3262"
        assert sums.path.read_text() == f"{known}  empty\n"

    def test_find_what_is_gone_and_what_has_changed(self, tmp_path: Path) -> None:
        for name in ("a", "b", "c"):
            (tmp_path / name).write_text(name * 9)
        Checksums(tmp_path / "sums").seal([tmp_path / name for name in "abc"])
        sums = Checksums(tmp_path / "sums")
        every = [tmp_path / name for name in "abc"]
        assert sums.damages(every) == []
        (tmp_path / "a").unlink()
        stat = (tmp_path / "b").stat()
        (tmp_path / "b").write_text("bbbbxbbbb")
        os.utime(tmp_path / "b", ns=(stat.st_atime_ns, stat.st_mtime_ns))  # a bad disk sets no times
        for again in (sums, Checksums(tmp_path / "sums")):
            assert [str(damage).partition(":")[0] for damage in again.damages(every)] == [
                f"{tmp_path}/a is missing",
                f"{tmp_path}/b is damaged",
            ]

    def test_survive_a_line_that_was_cut_off(self, tmp_path: Path) -> None:
        for name in ("a", "b", "c"):
            (tmp_path / name).write_text(name)
            Checksums(tmp_path / "sums").add(tmp_path / name)
        sums = tmp_path / "sums"
        sums.write_bytes(sums.read_bytes()[:-2])
        assert not Checksums(sums).is_known(tmp_path / "c")
        Checksums(sums).add(tmp_path / "c")
        assert all(Checksums(sums).is_known(tmp_path / name) for name in "abc")

    def test_of_a_folder_follow_its_files(self, tmp_path: Path) -> None:
        folder = tmp_path / "folder"
        folder.mkdir()
        for name in ("a", "b"):
            (folder / name).write_text(name)
        sums = Checksums(tmp_path / "sums")
        sums.seal([folder])
        (folder / "a").unlink()
        assert len(sums.damages([folder])) == 1
        (folder / "b").write_text("new")
        sums.seal([folder])
        assert Checksums(tmp_path / "sums").damages([folder]) == []


class TestFiles:
    @pytest.mark.parametrize("damage", ["cut", "flip", "delete"])
    @pytest.mark.parametrize("name", ["pool.arrow", "rejected.jsonl"])
    def test_that_are_damaged_are_named_and_made_again(
        self, run: Path, tiny_pool: TinyPool, name: str, damage: str
    ) -> None:
        path = run / name
        content = path.read_bytes()
        if damage == "delete":
            path.unlink()
        else:
            last = content[-1:] or b"\0"  # of an empty file, something is added
            path.write_bytes(content[:-1] + (b"" if damage == "cut" else bytes([last[0] ^ 1])) or b"x")
        text, healthy = inspect(run)
        assert not healthy
        assert name in text
        assert "runs again, because of the damage" in text
        progress = ingest(tiny_pool, run)
        assert name in progress.notes[0]
        assert path.read_bytes() == content
        assert inspect(run)[1]

    def test_that_a_stage_reads_are_checked_first(self, run: Path, tiny_model: Path) -> None:
        content = bytearray((run / "pool.arrow").read_bytes())
        content[len(content) // 2] ^= 1
        (run / "pool.arrow").write_bytes(content)
        options = pipeline.build_options({"seed_model": str(tiny_model)}, ["seed"])
        with pytest.raises(RunDirectoryError, match=r"pool\.arrow is damaged.*run 'select'"):
            pipeline.run_stages(run, options)

    def test_that_a_kill_left_are_removed(self, run: Path, tiny_pool: TinyPool) -> None:
        left = [run / ".pool.arrow.17.tmp", run / ".onnx.tmp" / "half", run / "records" / ".x.json.3.tmp"]
        for path in left:
            path.parent.mkdir(exist_ok=True)
            path.write_text("half")
        assert inspect(run)[0].count("left over") == 3
        ingest(tiny_pool, run)
        assert not any(path.exists() for path in left)


class TestDoctor:
    def test_says_what_is_there_and_what_comes_next(self, run: Path) -> None:
        text, healthy = inspect(run)
        assert healthy
        assert "in use           by nobody; last by process" in text
        assert "samples 60" in text
        plan = text.partition("the same 'select' command again:")[2]
        assert "ingest           nothing, it is done" in plan
        assert "seed             runs\n" in plan
        assert "score            runs after that" in plan

    def test_writes_nothing(self, run: Path) -> None:
        before = {path: path.stat().st_mtime_ns for path in (run, *run.rglob("*"))}
        inspect(run)
        assert {path: path.stat().st_mtime_ns for path in (run, *run.rglob("*"))} == before

    def test_through_the_command_line(self, run: Path, tmp_path: Path) -> None:
        def doctor(folder: Path) -> subprocess.CompletedProcess[str]:
            command = [sys.executable, "-m", "mllm_selector", "doctor", str(folder)]
            return subprocess.run(command, capture_output=True, text=True, check=False)

        assert doctor(run).returncode == 0
        (run / "pool.arrow").unlink()
        assert doctor(run).returncode == 1
        assert doctor(tmp_path).returncode == 2

    def test_of_a_folder_that_is_no_run(self, tmp_path: Path) -> None:
        with pytest.raises(UsageError, match="no run directory"):
            inspect(tmp_path)

    def test_of_a_file(self, tmp_path: Path) -> None:
        path = tmp_path / "pool.json"
        path.write_text("[]")
        with pytest.raises(UsageError, match="is a file and no run directory"):
            inspect(path)


def test_a_fingerprint_follows_a_file_of_the_same_size_and_time(tmp_path: Path) -> None:
    old, new = tmp_path / "config.json", tmp_path / "weights"
    old.write_text("{}")
    new.write_text("a" * 10)
    known = fingerprint(tmp_path)
    assert fingerprint(tmp_path, known) is known
    stat = new.stat()
    new.write_text("b" * 10)
    os.utime(new, ns=(stat.st_atime_ns, stat.st_mtime_ns))  # as `cp -p` of another model does
    assert fingerprint(tmp_path, known)["hash"] != known["hash"]
