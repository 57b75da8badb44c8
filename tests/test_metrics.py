"""The formulas of the metrics, against float64 written out here from whole distributions."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from mllm_selector.config import ScoreOptions
from mllm_selector.errors import UsageError
from mllm_selector.metrics import METRICS, Answer, Metrics, Variant


@st.composite
def distributions(draw: st.DrawFn) -> tuple[np.ndarray, np.ndarray]:
    """Logits, shape (tokens, vocabulary), from flat to peaked, and the answer tokens."""
    shape = draw(st.tuples(st.integers(1, 12), st.integers(2, 50)))
    random = np.random.default_rng(draw(st.integers(0, 2**32 - 1)))
    logits = random.normal(0, draw(st.sampled_from([0, 0.1, 1, 10, 60])), shape)
    return logits, random.integers(0, shape[1], shape[0])


def answer_of(logits: np.ndarray, tokens: np.ndarray) -> tuple[Answer, np.ndarray]:
    """What the scorer gives for some distributions, and the distributions."""
    likelihoods = np.exp(logits - logits.max(1, keepdims=True))
    likelihoods /= likelihoods.sum(1, keepdims=True)
    chosen = likelihoods[np.arange(len(tokens)), tokens]
    logs = np.log(likelihoods, where=likelihoods > 0, out=np.zeros_like(likelihoods))
    with np.errstate(divide="ignore"):
        nll = -np.log(chosen)
    answer = Answer(
        nll=nll.astype(np.float32),
        entropy=-(likelihoods * logs).sum(1).astype(np.float32),
        hit=(logits.argmax(1) == tokens).astype(np.float32),
        vocabulary=logits.shape[1],
    )
    return answer, likelihoods


def value(name: str, answer: Answer) -> float:
    compute = METRICS[name].compute
    assert compute is not None
    return compute(answer)


@given(distributions())
def test_metrics_of_one_pass(made: tuple[np.ndarray, np.ndarray]) -> None:
    logits, tokens = made
    answer, likelihoods = answer_of(logits, tokens)
    losses = [-float(np.log(likelihoods[place, token])) for place, token in enumerate(tokens)]
    entropies = [-sum(p * np.log(p) for p in row if p > 0) for row in likelihoods]
    upd = [
        1 / (1 + np.exp(-loss)) * max(0.0, 1 - entropy / np.log(logits.shape[1]))
        for loss, entropy in zip(losses, entropies, strict=True)
    ]
    mean = sum(losses) / len(losses)
    assert value("nll", answer) == pytest.approx(mean, rel=1e-6, abs=1e-6)
    assert value("perplexity", answer) == pytest.approx(np.exp(mean), rel=1e-4)
    assert value("entropy", answer) == pytest.approx(np.mean(entropies), rel=1e-5, abs=1e-5)
    assert value("upd", answer) == pytest.approx(np.mean(upd), rel=1e-5, abs=1e-5)
    hits = [int(np.argmax(row)) == token for row, token in zip(logits, tokens, strict=True)]
    assert value("accuracy", answer) == pytest.approx(np.mean(hits))


@given(distributions())
def test_ranges(made: tuple[np.ndarray, np.ndarray]) -> None:
    answer, _ = answer_of(*made)
    assert value("nll", answer) >= -1e-7
    assert value("perplexity", answer) >= 1 - 1e-6
    assert -1e-6 <= value("entropy", answer) <= np.log(answer.vocabulary) + 1e-5
    assert 0 <= value("upd", answer) <= 1
    assert 0 <= value("accuracy", answer) <= 1


def test_upd_of_certain_and_uncertain_models() -> None:
    flat, _ = answer_of(np.zeros((3, 7)), np.array([0, 1, 2]))
    assert value("upd", flat) == pytest.approx(0, abs=1e-6)
    wrong, _ = answer_of(np.array([[60.0, 0, 0]]), np.array([1]))
    right, _ = answer_of(np.array([[60.0, 0, 0]]), np.array([0]))
    assert value("upd", wrong) == pytest.approx(1)
    assert value("upd", right) == pytest.approx(0.5)


@given(st.floats(0, 50, width=32), st.floats(0, 50, width=32))
def test_metrics_that_compare_two_losses(loss: float, other: float) -> None:
    compare = {name: METRICS[name].compare for name in ("visnec", "ifd", "miwv")}
    assert compare["visnec"](loss, other) == other - loss
    assert compare["miwv"](loss, other) == other - loss
    if other:
        assert compare["ifd"](loss, other) == loss / other
    else:
        assert np.isnan(compare["ifd"](loss, other))


def test_every_metric_is_computed_in_one_way_and_says_what_it_is() -> None:
    for name, metric in METRICS.items():
        assert metric.name == name
        assert metric.meaning
        assert (metric.compute is None) != (metric.compare is None)
        assert (metric.variant is Variant.FULL) == (metric.compare is None)


def test_names_are_read_from_texts_and_lists_in_any_order() -> None:
    for names in (
        "upd, entropy",
        ["entropy", "upd"],
        "nll,upd,entropy,upd",
        Metrics.parse("entropy,upd"),
    ):
        options = ScoreOptions(metrics=names)
        assert options.metrics.names == ("nll", "entropy", "upd")
        assert options.as_json()["metrics"] == "nll,entropy,upd"
    assert ScoreOptions().metrics.names == ("nll",)
    assert Metrics.parse("accuracy,upd").outputs == ("token_nll", "token_entropy", "token_hit")
    assert Metrics.parse("nll").outputs == ("token_nll",)
    assert Metrics.parse("miwv,visnec").variants == (Variant.NO_IMAGE, Variant.ONE_SHOT)


@pytest.mark.parametrize("names", ["loss", "upd,,entropy", ["nll", "UPD"]])
def test_unknown_names_list_the_known_ones(names: object) -> None:
    with pytest.raises(UsageError, match=r"--metrics: '\w*' is not one of nll, perplexity, entropy, upd"):
        ScoreOptions(metrics=names)
    with pytest.raises(UsageError, match="--metrics: 3 is not of type list of names"):
        ScoreOptions(metrics=3)
