"""The whole method on 20,000 or more real samples, with what it must hold checked.

Usage: ``python benches/end_to_end.py --nlvr DIR --model DIR --work DIR``

``DIR`` of ``--nlvr`` is the NLVR corpus (see `nlvr_pool.py`), ``--model`` the demo's model directory
(``demo-run/model`` after ``make demo``). Prints time and peak memory of every stage, then checks that

- the subset has exactly 10 % of the samples, each record identical to the input's,
- a run killed with SIGKILL in the middle of scoring and started again writes the same subset, byte for byte,
- `mllm_selector.select()` returns the rows that the command line chose.
"""

from __future__ import annotations

import argparse
import json
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import mllm_selector
from mllm_selector.config import Amount


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--nlvr", type=Path, required=True)
    parser.add_argument("--model", type=Path, required=True)
    parser.add_argument("--work", type=Path, required=True)
    parser.add_argument("--budget", default="10%")
    given = parser.parse_args()
    given.work.mkdir(parents=True, exist_ok=True)

    script = Path(__file__).with_name("nlvr_pool.py")
    subprocess.run([sys.executable, script, "--nlvr", given.nlvr, "--out", given.work], check=True)
    pool = given.work / "pool.json"
    options = {"images": str(given.nlvr), "model": str(given.model), "budget": given.budget}

    undisturbed = given.work / "run"
    started = time.monotonic()
    subprocess.run(command(pool, options, undisturbed), check=True)
    print(f"\nselect took {time.monotonic() - started:.0f} s")
    show_stages(undisturbed)
    check_subset(pool, undisturbed, given.budget)
    check_kill(pool, options, undisturbed, given.work / "killed")
    check_python(pool, options, undisturbed, given.work / "python")
    return 0


def command(pool: Path, options: dict[str, str], run_dir: Path) -> list[str]:
    flags = [text for name, value in options.items() for text in (f"--{name}", value)]
    return [sys.executable, "-m", "mllm_selector", "select", str(pool), *flags, "--run-dir", str(run_dir)]


def show_stages(run_dir: Path) -> None:
    stages = json.loads((run_dir / "manifest.json").read_text())["stages"]
    print("\n| stage | seconds | peak memory, MB |\n|---|---|---|")
    for name, stage in stages.items():
        print(f"| {name} | {stage['seconds']:.1f} | {stage['peak_mb']:.0f} |")
    print()


def check_subset(pool: Path, run_dir: Path, budget: str) -> None:
    records = json.loads(pool.read_bytes())
    subset = json.loads((run_dir / "subset.json").read_bytes())
    rejected = len((run_dir / "rejected.jsonl").read_text().splitlines())
    expected = Amount.parse(budget).of(len(records) - rejected)
    by_id = {record["id"]: record for record in records}
    assert len(subset) == expected, (len(subset), expected)
    assert all(by_id[record["id"]] == record for record in subset)
    sources = {record["source"] for record in records}
    print(
        f"{len(records)} samples of {len(sources)} sources, {rejected} rejected; "
        f"{len(subset)} chosen, all identical"
    )


def check_kill(pool: Path, options: dict[str, str], undisturbed: Path, killed: Path) -> None:
    """Kill in the middle of scoring; the stages before are taken from the undisturbed run."""
    shutil.rmtree(killed, ignore_errors=True)
    shutil.copytree(undisturbed, killed)
    for name in ("scores", "selection.arrow", "subset.json", "report.html", "report.json"):
        path = killed / name
        shutil.rmtree(path) if path.is_dir() else path.unlink()
    manifest = json.loads((killed / "manifest.json").read_text())
    for stage in ("score", "pick", "report"):
        del manifest["stages"][stage]
    (killed / "manifest.json").write_text(json.dumps(manifest))

    process = subprocess.Popen(
        command(pool, options, killed), stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
    )
    whole = len(list(undisturbed.glob("scores/part-*.arrow")))
    while process.poll() is None and len(list(killed.glob("scores/part-*.arrow"))) < whole // 2:
        time.sleep(0.05)
    process.send_signal(signal.SIGKILL)
    process.wait()
    done = len(list(killed.glob("scores/part-*.arrow")))
    subprocess.run(command(pool, options, killed), check=True, stderr=subprocess.DEVNULL)
    same = (killed / "subset.json").read_bytes() == (undisturbed / "subset.json").read_bytes()
    print(f"killed after {done} of {whole} score parts, run again: subset byte for byte the same: {same}")
    assert same


def check_python(pool: Path, options: dict[str, str], undisturbed: Path, run_dir: Path) -> None:
    """Call the Python function on the same seed model and scores, then compare rows."""
    shutil.rmtree(run_dir, ignore_errors=True)
    shutil.copytree(undisturbed, run_dir)
    (run_dir / "selection.arrow").unlink()
    selection = mllm_selector.select(pool, **options, run_dir=run_dir)
    expected = mllm_selector.Selection.load(undisturbed).rows
    assert selection.rows.tolist() == expected.tolist()
    print(f"mllm_selector.select() returns the same {len(selection.rows)} rows")


if __name__ == "__main__":
    sys.exit(main())
