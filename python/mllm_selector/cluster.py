"""A Ray cluster: how this process joins it, how much it holds, and how errors come back from its machines."""

from __future__ import annotations

import logging
import os
import signal
import socket
import threading
import traceback
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

from mllm_selector import errors
from mllm_selector.errors import ClusterError, MissingPackageError, MllmSelectorError, UsageError

__all__ = ["TRIES", "Failure", "connected", "own_errors", "room"]

TRIES = 4
"""How often a piece of work is begun, at most: one that kills its worker each time would do so forever."""


@dataclass(frozen=True)
class Failure:
    """An error on another machine: the name of our class of it, and the text.

    It is returned and not raised, for Ray would do the work again, and wrap the error in a trace of its own.
    """

    kind: str
    text: str

    @classmethod
    def of(cls, error: Exception, worker: str, otherwise: type[MllmSelectorError]) -> Failure:
        """Describe an error, with the name of this machine.

        Parameters
        ----------
        error : Exception
            Whatever has come.
        worker : str
            What failed, such as ``a scorer``.
        otherwise : type
            What an error of another library becomes.
        """
        host = socket.gethostname()
        if isinstance(error, MllmSelectorError):
            return cls(type(error).__name__, f"{error} (on {host})")
        last = traceback.extract_tb(error.__traceback__)[-1]
        text = (
            f"{worker} on {host} failed: {type(error).__name__}: {error} ({last.filename}, line "
            f"{last.lineno}). What is finished is kept; mend the cause, and the same command goes on"
        )
        return cls(otherwise.__name__, text)

    def raised(self) -> MllmSelectorError:
        """Return the error to raise here."""
        kind = getattr(errors, self.kind)
        return kind(self.text) if kind is not errors.WriteError else ClusterError(self.text)


def room(ray: Any, address: str, kind: str, amount: float, worker: str, way_out: str) -> int:
    """Return how many workers the cluster holds now.

    Parameters
    ----------
    ray : module
        What `connected` yields.
    address : str
        What ``--ray`` was given, for messages.
    kind : str
        ``GPU`` or ``CPU``.
    amount : float
        How much of it a worker takes, all of one node.
    worker, way_out : str
        What it is, and what the user may do if there is no room, for messages.

    Raises
    ------
    UsageError
        If it holds none.
    """
    nodes = [node["Resources"] for node in ray.nodes() if node["Alive"]]
    fits = sum(int(node.get(kind, 0) / amount) for node in nodes)
    if not fits:
        most = max((node.get(kind, 0) for node in nodes), default=0)
        msg = (
            f"--ray {address}: {worker} needs {amount:g} {kind} of one node, and the nodes of the "
            f"cluster have at most {most:g}; {way_out}, or add nodes first"
        )
        raise UsageError(msg)
    return fits


@contextmanager
def connected(address: str) -> Iterator[Any]:
    """Connect to a cluster inside the block; a connection that the caller has made is used and kept.

    Yields
    ------
    module
        Ray.

    Raises
    ------
    UsageError
        If there is no cluster at the address.
    MissingPackageError
        If Ray is not installed.
    """
    # Ray reports to its makers unless told not to. A cluster of the user's own has its own setting.
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    try:
        import ray
        import ray.data
    except ImportError as error:
        msg = "--ray needs Ray: pip install 'mllm-selector[ray]', on all nodes"
        raise MissingPackageError(msg) from error
    if ray.is_initialized():
        yield ray
        return
    with _own_signals():
        try:
            ray.init(
                address=address,
                include_dashboard=False,
                log_to_driver=False,
                logging_level=logging.ERROR,
            )
        except Exception as error:  # of many classes, Exception itself among them
            first = str(error).strip().split("\n", 1)[0]
            msg = (
                f"--ray {address}: no cluster can be reached or started there ({first}); 'ray start --head' "
                "starts one, auto takes that of this machine, local starts one for this run"
            )
            raise UsageError(msg) from error
    # What it would log comes as an exception, too.
    logging.getLogger("ray.data").setLevel(logging.CRITICAL)
    try:
        yield ray
    finally:
        ray.shutdown()


@contextmanager
def _own_signals() -> Iterator[None]:
    """Keep Ray from replacing the handlers of Ctrl-C and SIGTERM."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = {signum: signal.getsignal(signum) for signum in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield
    finally:
        for signum, handler in before.items():
            signal.signal(signum, handler)


@contextmanager
def own_errors(ray: Any) -> Iterator[None]:
    """Tell what Ray raises in our words.

    Raises
    ------
    ClusterError
        In place of any error of Ray's.
    """
    try:
        yield
    except ray.exceptions.RayError as error:
        lines = [line.strip() for line in str(error).splitlines() if line.strip()] or ["no reason given"]
        # Of an exception in a task the text is a stack, whose last line says what it was.
        why = lines[-1 if isinstance(error, ray.exceptions.RayTaskError) else 0]
        msg = (
            f"Ray gave up: {type(error).__name__}: {why}. What is finished is kept, and the same command "
            "goes on; Ray's logs on the nodes say more"
        )
        raise ClusterError(msg) from error
