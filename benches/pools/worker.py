"""One call in a process of its own, after one on a small input; results as JSON.

Started by `measure`, which has set the cores and the thread counts and watches the memory.
"""

from __future__ import annotations

import importlib
import json
import sys
import time
from pathlib import Path


def main() -> None:
    job = json.loads(sys.argv[1])
    module, name = job["call"].split(".")
    function = getattr(importlib.import_module(module), name)
    out = Path(job["out"])

    # Imports (pyarrow's of pandas among them) and thread pools are paid for before the clock starts.
    small = out / "warm-up"
    small.mkdir()
    function(small, **job["warm_up"])

    started, cpu = time.perf_counter(), time.process_time()
    results = function(out, **job["arguments"])
    results = {
        "seconds": time.perf_counter() - started,
        "cpu_seconds": time.process_time() - cpu,
        **results,
    }
    (out / "result.json").write_text(json.dumps(results))


main()
