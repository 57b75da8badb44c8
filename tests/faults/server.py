"""Starts the command line many times over without importing torch each time: forks, then calls `cli.main`.

Reads one JSON object a line on its standard input and answers each with one on its standard output:
``{"argv", "log", "fault", "clock"}`` starts a child and gives its ``pid``; ``{"wait": pid}`` gives its
``status``. Run with the shim preloaded; its argument names a file that lists the modules to import first.
"""

from __future__ import annotations

import contextlib
import ctypes
import gc
import importlib
import json
import os
import sys
import traceback
from pathlib import Path
from typing import Any


def main() -> None:
    """Answer requests until the input ends."""
    modules = Path(sys.argv[1])
    if modules.exists():
        for name in modules.read_text().split():
            with contextlib.suppress(Exception):  # some are aliases that only exist once others are imported
                importlib.import_module(name)
    gc.freeze()
    answers = os.fdopen(os.dup(1), "w", buffering=1)
    for line in sys.stdin:
        request = json.loads(line)
        if "wait" in request:
            _, status = os.waitpid(request["wait"], 0)
            answer = {"status": os.waitstatus_to_exitcode(status)}
        else:
            answer = {"pid": start(request, modules)}
        answers.write(json.dumps(answer) + "\n")


def start(request: dict[str, Any], modules: Path) -> int:
    """Fork a child that runs a command, its output going to a log."""
    pid = os.fork()
    if pid:
        return pid
    code = 70
    try:
        log = os.open(request["log"], os.O_WRONLY | os.O_CREAT | os.O_APPEND)
        os.dup2(os.open(os.devnull, os.O_RDONLY), 0)
        os.dup2(log, 1)
        os.dup2(log, 2)
        sys.argv = ["mllm-selector", *request["argv"]]
        from mllm_selector import cli

        shim = ctypes.CDLL(None)
        if "clock" in request:
            shim.fault_clock(ctypes.c_long(request["clock"]))
        if "fault" in request:
            folder, action, call, error, kinds = request["fault"]
            shim.fault_arm(folder.encode(), action, ctypes.c_long(call), error, kinds)
        code = cli.main(request["argv"])
        shim.fault_calls.restype = ctypes.c_long
        print(f"calls {shim.fault_calls()}", flush=True)
        known = set(modules.read_text().split()) if modules.exists() else set()
        modules.write_text("\n".join(sorted(known | set(sys.modules) - {"__main__"})))
    except SystemExit as exit_:
        code = exit_.code if isinstance(exit_.code, int) else 1
    except BaseException:
        traceback.print_exc()
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)


if __name__ == "__main__":
    main()
