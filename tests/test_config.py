"""Options: what is accepted, what is refused, and the sizes that come out."""

from __future__ import annotations

from decimal import ROUND_HALF_UP, Decimal
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mllm_selector.config import Amount, IngestOptions, Inputs, PickOptions, ScoreOptions, SeedOptions
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
    with pytest.raises(UsageError, match=r"--budget: \[5\] is not of type count or share"):
        PickOptions(budget=[5])
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


def test_inputs_in_all_their_forms(tmp_path: Path) -> None:
    for name in ("b.jsonl", "a.jsonl", "x=y.json", "[1].json"):
        (tmp_path / name).touch()
    a, b = tmp_path / "a.jsonl", tmp_path / "b.jsonl"
    for form, expected in [
        (str(a), [(a, None)]),
        (a, [(a, None)]),
        ([str(b), a], [(b, None), (a, None)]),
        (f"{tmp_path}/*.jsonl", [(a, None), (b, None)]),
        (f"ocr={tmp_path}/*.jsonl", [(a, "ocr"), (b, "ocr")]),
        ([f"ocr={b}", str(a)], [(b, "ocr"), (a, None)]),
        ({"ocr": b, "chat": [a]}, [(b, "ocr"), (a, "chat")]),
        (str(tmp_path / "x=y.json"), [(tmp_path / "x=y.json", None)]),
        (str(tmp_path / "[1].json"), [(tmp_path / "[1].json", None)]),
        ("gone.json", [(Path("gone.json"), None)]),
        ([{"path": str(a), "source": None}, {"path": str(b), "source": "s"}], [(a, None), (b, "s")]),
    ]:
        inputs = Inputs.parse(form)
        assert [(entry.path, entry.source) for entry in inputs.inputs] == expected
        assert Inputs.parse(inputs) == inputs


def test_inputs_that_are_refused(tmp_path: Path) -> None:
    for form, message in [
        ([], "there is no input"),
        (str(tmp_path / "*.json"), "nothing matches"),
        (["a.json", "s=a.json"], "a.json is given twice"),
        (5, "5 is no path"),
    ]:
        with pytest.raises(UsageError, match=message):
            IngestOptions(pool=form)


def test_options_that_cannot_change_the_result_stay_out_of_the_key() -> None:
    one = IngestOptions(pool=Path("a"), images=Path("x"))
    other = IngestOptions(pool="b", images="y")
    assert one.as_json(only_that_matter=True) == other.as_json(only_that_matter=True)
    assert one.as_json() != other.as_json()
