"""The command line: errors and signals to exit codes.

Exit codes: 0 done, 1 failed, 2 wrong usage, 130 stopped by Ctrl-C, 143 by SIGTERM.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Sequence

from mllm_selector.errors import MllmSelectorError
from mllm_selector.interrupts import Stopped, stoppable

__all__ = ["main"]

_NO_MEMORY = (
    "mllm-selector: out of memory; what is finished is kept, the same command goes on where it stopped"
)
_NO_THREAD = (
    "mllm-selector: the system refuses another thread, for lack of memory or by a limit of processes "
    "(ulimit -u, pids.max); what is finished is kept, the same command goes on where it stopped"
)


def main(words: Sequence[str] | None = None) -> int:
    """Run the command line.

    Parameters
    ----------
    words : sequence of str, optional
        The arguments without the program's name; those of the process by default.

    Returns
    -------
    int
        The exit code.
    """
    # OpenMP threads that spin while they wait take the cores from whatever else runs: two trainings on two
    # cores were over ten times slower than with sleeping threads. Read once, when torch is loaded.
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
    try:
        with stoppable():
            # Takes half a second, in which Ctrl-C may come, too.
            from mllm_selector import commands

            return commands.run(words)
    except MllmSelectorError as error:
        print(f"mllm-selector: {error}", file=sys.stderr)
        return error.exit_code
    except OSError as error:
        print(f"mllm-selector: {error}. What is finished is kept; mend the cause and go on", file=sys.stderr)
        return 1
    except MemoryError:
        print(_NO_MEMORY, file=sys.stderr)
        return 1
    except RuntimeError as error:
        if str(error) != "can't start new thread":
            raise
        print(_NO_THREAD, file=sys.stderr)
        return 1
    except Stopped as stop:
        print(stop, file=sys.stderr)
        return stop.exit_code
