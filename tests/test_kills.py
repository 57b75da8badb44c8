"""Kills in real runs of all stages, the short form; `make test-faults` has the long one.

Apart from the other faults, since whole files are given to the processes that test in parallel.
"""

from __future__ import annotations

import cases
from harness import Bench

from fault_fixtures import check

pytest_plugins = ["fault_fixtures"]

# 21 in all.
KILLS = {"ingest": 3, "seed": 3, "export": 2, "score": 6, "pick": 4, "report": 3}


def test_kills_in_every_stage_lose_nothing(bench: Bench) -> None:
    assert check(cases.kills_at_random(bench, KILLS)) >= 20


def test_a_kill_at_each_write_of_reading_and_choosing_loses_nothing(bench: Bench) -> None:
    assert check(cases.kills_at_writes(bench, {"ingest": 7, "pick": 11})) >= 8
