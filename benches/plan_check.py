"""What `mllm-selector plan` said against what the run then took.

    python benches/plan_check.py --run-dir demo-run --work DIR

Takes pool, images and model of a finished demo run. Plans a run in a new folder, once from probes and once
from the demo's records, runs `select` there, and prints the seconds of each stage beside both plans.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
from pathlib import Path


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--run-dir", type=Path, required=True, help="a finished demo run")
    parser.add_argument("--work", type=Path, required=True)
    parser.add_argument("--device", default="cpu")
    given = parser.parse_args()
    demo, new = given.run_dir, given.work / "run"
    arguments = [str(demo / "demo" / "pool.json"), "--images", str(demo / "demo" / "nlvr")]
    arguments += ["--model", str(demo / "model"), "--budget", "20%", "--device", given.device]
    probed = planned(*arguments, "--run-dir", str(new))
    recorded = planned(*arguments, "--run-dir", str(new), "--rates", str(demo))
    command("select", *arguments, "--run-dir", str(new), "--quiet")
    stages = json.loads((new / "manifest.json").read_text())["stages"]
    print("| stage | took, s | plan by probes, s | plan / took | plan by records, s | plan / took |")
    print("|---|---|---|---|---|---|")
    for name, record in stages.items():
        cells = [f"{record['seconds']:.1f}"]
        for seconds in (probed[name], recorded[name]):
            ratio = "" if seconds is None else f"{seconds / record['seconds']:.2f}"
            cells += ["not known" if seconds is None else f"{seconds:.1f}", ratio]
        print(f"| {name} | {' | '.join(cells)} |")
    return 0


def planned(*arguments: str) -> dict[str, float | None]:
    found = json.loads(command("plan", *arguments, "--json", "--quiet"))
    return {stage["stage"]: stage["seconds"] for stage in found["stages"]}


def command(*arguments: str) -> str:
    done = subprocess.run(
        [sys.executable, "-m", "mllm_selector", *arguments], stdout=subprocess.PIPE, text=True, check=True
    )
    return done.stdout


if __name__ == "__main__":
    sys.exit(main())
