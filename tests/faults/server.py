"""Starts the command line many times over without importing torch each time: forks, then calls `cli.main`.

Reads one JSON object a line on its standard input and answers each with one on its standard output:

``{"argv", "log", "fault", "clock", "memory"}``
    Starts a child, gives its ``pid``. ``fault`` arms the shim, ``clock`` lets the wall clock jump, ``memory``
    is how many bytes the child may have beyond what it has at its start.
``{"make", "log"}``
    Likewise a child that makes the inputs in a folder.
``{"wait": pid}``
    Gives the ``status`` of a child and the ``cpu`` seconds that it took.
``{"warm": true}``
    Imports what the children so far have imported.

Run with the shim preloaded; its argument names the file that lists what children have imported.
"""

from __future__ import annotations

import contextlib
import ctypes
import faulthandler
import gc
import importlib
import json
import os
import resource
import sys
import traceback
from pathlib import Path
from typing import Any

LONG_IMPORTS = ("mllm_selector.commands", "torch.onnx", "transformers", "peft", "onnxruntime")


def main() -> None:
    """Answer requests until the input ends."""
    modules = Path(sys.argv[1])
    warm(modules)
    answers = os.fdopen(os.dup(1), "w", buffering=1)
    for line in sys.stdin:
        request = json.loads(line)
        answer = {}
        if "wait" in request:
            _, status, usage = os.wait4(request["wait"], 0)
            answer = {"status": os.waitstatus_to_exitcode(status), "cpu": usage.ru_utime + usage.ru_stime}
        elif "warm" in request:
            warm(modules)
        else:
            answer = {"pid": start(request, modules)}
        answers.write(json.dumps(answer) + "\n")


def warm(modules: Path) -> None:
    """Import what is listed; at first what takes long."""
    for name in modules.read_text().split() if modules.exists() else LONG_IMPORTS:
        with contextlib.suppress(Exception):  # some are aliases that only exist once others are imported
            importlib.import_module(name)
    gc.freeze()


def start(request: dict[str, Any], modules: Path) -> int:
    """Fork a child that does what is asked, its output going to a log."""
    pid = os.fork()
    if pid:
        return pid
    code = 70
    try:
        log = os.open(request["log"], os.O_WRONLY | os.O_CREAT | os.O_APPEND)
        os.dup2(os.open(os.devnull, os.O_RDONLY), 0)
        os.dup2(log, 1)
        os.dup2(log, 2)
        code = make(request) if "make" in request else run(request)
        known = set(modules.read_text().split()) if modules.exists() else set()
        if new := set(sys.modules) - known - {"__main__"}:
            with modules.open("a") as file:
                file.write("\n".join(sorted(new)) + "\n")
    except SystemExit as exit_:
        code = exit_.code if isinstance(exit_.code, int) else 1
    except BaseException:
        traceback.print_exc()
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)


def make(request: dict[str, Any]) -> int:
    """Make the inputs."""
    import inputs

    inputs.make(Path(request["make"]))
    return 0


def run(request: dict[str, Any]) -> int:
    """Run the command line with a fault."""
    sys.argv = ["mllm-selector", *request["argv"]]
    from mllm_selector import cli

    shim = ctypes.CDLL(None)
    if "clock" in request:
        shim.fault_clock(ctypes.c_long(request["clock"]))
    if "fault" in request:
        folder, action, call, error, kinds = request["fault"]
        shim.fault_arm(folder.encode(), action, ctypes.c_long(call), error, kinds)
    if "memory" in request:
        faulthandler.enable()  # a native library may take a refusal badly: the log says where
        status = Path("/proc/self/status").read_text()
        held = int(status.partition("VmData:")[2].split()[0]) * 1024
        resource.setrlimit(resource.RLIMIT_DATA, (held + request["memory"],) * 2)
    code = cli.main(request["argv"])
    shim.fault_calls.restype = ctypes.c_long
    print("calls", *(shim.fault_calls(kind) for kind in (1, 2, 4)), flush=True)
    return code


if __name__ == "__main__":
    main()
