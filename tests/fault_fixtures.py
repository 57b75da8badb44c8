"""What the tests of faults share: a run that they strike, and what must come of it."""

from __future__ import annotations

import random
from collections.abc import Iterable, Iterator

import pytest
from cases import Trial
from harness import Bench


@pytest.fixture(scope="module")
def bench() -> Iterator[Bench]:
    """A small pool and model, and one undisturbed run of all stages."""
    with Bench() as made:
        yield made


def check(trials: Iterable[Trial]) -> int:
    """Do what is to be tried, ask that all goes well, and return how many faults there were."""
    outcomes = {trial.key: trial.do(random.Random(trial.key)) for trial in trials}
    assert {key: outcome.failures for key, outcome in outcomes.items() if outcome.failures} == {}
    return sum(outcome.tried for outcome in outcomes.values())
