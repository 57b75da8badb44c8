"""One measurement in a process of its own: load the rows, call one function, write down what it took.

Started by `measure`, which has set the cores and the thread counts and watches the memory.
"""

from __future__ import annotations

import importlib
import json
import sys
import time
from pathlib import Path

import numpy as np

import data

WARM_UP_ROWS = 2_000
WARM_UP = {"k": 10, "centres": 10, "queries": 10, "budget": 100}


def main() -> None:
    job = json.loads(sys.argv[1])
    X = data.load(Path(job["data"]), job["rows"], job["mapped"])
    module, name = job["call"].split(".")
    function = getattr(importlib.import_module(module), name)
    arguments = job["arguments"]
    inputs = {"necessity": data.necessity(len(X))} if job["scored"] else {}

    # Imports, compilation and thread pools are paid for before the clock starts.
    small = {name: min(value, WARM_UP.get(name, value)) for name, value in arguments.items()}
    function(X[:WARM_UP_ROWS], **{name: array[:WARM_UP_ROWS] for name, array in inputs.items()}, **small)

    started = time.perf_counter()
    result = function(X, **inputs, **arguments)
    seconds = time.perf_counter() - started
    np.savez(job["out"], seconds=seconds, **result)


main()
