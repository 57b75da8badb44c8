"""Options: what is accepted, what is refused, and the sizes that come out."""

from __future__ import annotations

from decimal import ROUND_HALF_UP, Decimal
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mllm_selector.config import Amount, IngestOptions, PickOptions, ScoreOptions, SeedOptions
from mllm_selector.errors import UsageError


@given(st.integers(1, 10_000), st.integers(1, 10**7))
def test_a_share_is_rounded_half_up(hundredths: int, total: int) -> None:
    exact = Decimal(hundredths) / 10_000 * total
    expected = max(1, int(exact.quantize(Decimal(1), ROUND_HALF_UP)))
    assert Amount.parse(f"{hundredths / 100}%").of(total) == expected


@given(st.integers(1, 10**9))
def test_a_count_stays_a_count(count: int) -> None:
    assert Amount.parse(count).of(5) == Amount.parse(str(count)).of(7) == count


@pytest.mark.parametrize(
    ("given", "of_1000"), [("10%", 100), (0.1, 100), ("0.5", 500), (1, 1), ("1_000", 1000)]
)
def test_ways_to_write_an_amount(given: str | float, of_1000: int) -> None:
    assert Amount.parse(given).of(1000) == of_1000


@pytest.mark.parametrize("wrong", [0, -1, "0%", "-5%", "101%", "2.5", 2.5, "ten", "", "nan", "inf", "1/0"])
def test_amounts_that_are_refused(wrong: str | float) -> None:
    with pytest.raises(UsageError, match="budget"):
        Amount.parse(wrong)


def test_values_of_the_wrong_type_or_choice_are_refused() -> None:
    with pytest.raises(UsageError, match="--groups: 'colour' is not one of cluster"):
        PickOptions(budget=1, groups="colour")
    with pytest.raises(UsageError, match="--threads: 'two' is not of type int"):
        ScoreOptions(threads="two")
    with pytest.raises(UsageError, match="--lora-rank: True is not of type int"):
        SeedOptions(model="m", lora_rank=True)
    with pytest.raises(UsageError, match="--token-budget: 0 is too small"):
        ScoreOptions(token_budget=0)
    with pytest.raises(UsageError, match="not a multiple"):
        SeedOptions(model="m", seed_batch_size=10, seed_micro_batch=4)
    with pytest.raises(UsageError, match="give one"):
        SeedOptions(model="m", seed_model=Path("s"))


def test_options_that_cannot_change_the_result_stay_out_of_the_key() -> None:
    one = IngestOptions(pool=Path("a"), images=Path("x"))
    other = IngestOptions(pool="b", images="y")
    assert one.as_json(only_that_matter=True) == other.as_json(only_that_matter=True)
    assert one.as_json() != other.as_json()
