"""What can be known of a sample besides its mean loss: the metrics of `score --metrics`.

A metric is computed from what the scorer says of each answer token. Those that compare two readings of a
sample need a further forward pass, in which the sample is read as a `Variant` of itself.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from enum import StrEnum
from types import MappingProxyType
from typing import Self

import numpy as np
from numpy.typing import NDArray

from mllm_selector.errors import UsageError

__all__ = ["METRICS", "NLL", "Answer", "Metric", "Metrics", "Variant"]

NLL = "nll"
"""Name of the mean loss, which every pass over a pool gives."""


class Variant(StrEnum):
    """In which form a sample is read; `mllm_selector.families.variants` says what becomes of its turns."""

    FULL = "full"
    NO_IMAGE = "no-image"
    NO_INSTRUCTION = "no-instruction"
    ONE_SHOT = "one-shot"


@dataclass(frozen=True)
class Answer:
    """The answer tokens of one sample as the model sees them.

    Attributes
    ----------
    nll : ndarray of float32, shape (tokens,)
        Negative log-likelihood of each, in nats.
    entropy : ndarray of float32, shape (tokens,), or None
        Entropy of the distribution that each is drawn from, in nats; None if no metric asks for it.
    hit : ndarray of float32, shape (tokens,), or None
        1 where it is the most likely token, else 0; None if no metric asks for it.
    vocabulary : int
        Number of tokens that the distributions are over.
    """

    nll: NDArray[np.float32]
    entropy: NDArray[np.float32] | None = None
    hit: NDArray[np.float32] | None = None
    vocabulary: int = 0

    @property
    def is_finite(self) -> bool:
        """Whether all that is known of the tokens is finite."""
        known = (self.nll, self.entropy, self.hit)
        return all(np.isfinite(values).all() for values in known if values is not None)

    @property
    def mean_nll(self) -> float:
        """Mean negative log-likelihood, in nats."""
        return float(self.nll.mean(dtype=np.float64))


@dataclass(frozen=True)
class Metric:
    """One metric: how it is computed, in what unit, and where it comes from.

    Attributes
    ----------
    name : str
        Its name in ``--metrics`` and the column of the score table.
    meaning : str
        What it says, in one clause.
    unit : str
        Its unit; empty for a pure number.
    source : str
        Where it was introduced; empty for what is textbook.
    compute : callable or None
        From the sample's `Answer` to the value.
    compare : callable or None
        From the sample's mean loss and that of its `variant` to the value, where there is no `compute`.
    outputs : tuple of str
        Outputs of the scorer that it needs besides ``token_nll``.
    variant : Variant
        The second reading that it compares with; `Variant.FULL` if there is none.
    """

    name: str
    meaning: str
    unit: str
    source: str
    compute: Callable[[Answer], float] | None = None
    compare: Callable[[float, float], float] | None = None
    outputs: tuple[str, ...] = ()
    variant: Variant = Variant.FULL


def _perplexity(answer: Answer) -> float:
    with np.errstate(over="ignore"):
        return float(np.exp(answer.mean_nll))


def _entropy(answer: Answer) -> float:
    assert answer.entropy is not None
    return float(answer.entropy.mean(dtype=np.float64))


def _upd(answer: Answer) -> float:
    """Average sigmoid(loss) * max(0, 1 - entropy / log V) over the answer tokens."""
    assert answer.entropy is not None
    sigmoid = 1 / (1 + np.exp(-answer.nll.astype(np.float64)))
    certainty = 1 - answer.entropy.astype(np.float64) / np.log(answer.vocabulary)
    return float((sigmoid * np.maximum(certainty, 0)).mean())


def _accuracy(answer: Answer) -> float:
    assert answer.hit is not None
    return float(answer.hit.mean(dtype=np.float64))


def _difference(loss: float, other: float) -> float:
    return other - loss


def _ratio(loss: float, other: float) -> float:
    return loss / other if other else np.nan


METRICS: Mapping[str, Metric] = MappingProxyType(
    {
        metric.name: metric
        for metric in (
            Metric(
                NLL,
                "mean negative log-likelihood of the answer tokens",
                "nats",
                "",
                lambda answer: answer.mean_nll,
            ),
            Metric("perplexity", "exp of the mean loss", "", "", _perplexity),
            Metric(
                "entropy",
                "mean entropy of the predicted distributions of the answer tokens",
                "nats",
                "",
                _entropy,
                outputs=("token_entropy",),
            ),
            Metric(
                "upd",
                "uncertainty-based prediction difficulty: mean sigmoid(loss) x max(0, 1 - entropy / log V)",
                "",
                "D3, arXiv 2503.11441",
                _upd,
                outputs=("token_entropy",),
            ),
            Metric(
                "accuracy",
                "share of the answer tokens that are the most likely ones",
                "",
                "",
                _accuracy,
                outputs=("token_hit",),
            ),
            Metric(
                "visnec",
                "mean loss without the images minus mean loss",
                "nats",
                "VisNec, arXiv 2603.01195",
                compare=_difference,
                variant=Variant.NO_IMAGE,
            ),
            Metric(
                "ifd",
                "instruction-following difficulty: mean loss over mean loss without the instruction",
                "",
                "IFD, arXiv 2308.12032",
                compare=_ratio,
                variant=Variant.NO_INSTRUCTION,
            ),
            Metric(
                "miwv",
                "mean loss with the nearest other sample as an example in front, minus mean loss",
                "nats",
                "MIWV, arXiv 2511.07074",
                compare=_difference,
                variant=Variant.ONE_SHOT,
            ),
        )
    }
)
"""All metrics by name."""


@dataclass(frozen=True)
class Metrics:
    """The metrics that a pool is scored with: in the order of `METRICS`, the mean loss always among them.

    Examples
    --------
    >>> Metrics.parse("upd,entropy").names
    ('nll', 'entropy', 'upd')
    """

    names: tuple[str, ...] = (NLL,)

    @classmethod
    def parse(cls, given: str | Iterable[str] | Metrics, name: str = "metrics") -> Self:
        """Read names, as a list or as one text with commas.

        Raises
        ------
        UsageError
            If there is no metric of a name.
        """
        if isinstance(given, Metrics):
            return cls(given.names)
        texts = given.split(",") if isinstance(given, str) else given
        wanted = {str(text).strip() for text in texts} | {NLL}
        unknown = sorted(wanted - METRICS.keys())
        if unknown:
            msg = f"{name}: {unknown[0]!r} is not one of {', '.join(METRICS)}"
            raise UsageError(msg)
        return cls(tuple(metric for metric in METRICS if metric in wanted))

    @property
    def variants(self) -> tuple[Variant, ...]:
        """The further readings that they need, each once, in the order of `Variant`."""
        needed = {METRICS[name].variant for name in self.names}
        return tuple(variant for variant in Variant if variant in needed and variant is not Variant.FULL)

    @property
    def outputs(self) -> tuple[str, ...]:
        """The scorer's outputs for answer tokens that they need of the full reading."""
        needed = {output for name in self.names for output in METRICS[name].outputs}
        return ("token_nll", *sorted(needed))

    @property
    def of_scorer(self) -> tuple[str, ...]:
        """All that scoring with them asks of the scorer: `outputs`, and embeddings."""
        return (*self.outputs, "sample_embedding")

    def of(self, variants: Iterable[Variant]) -> tuple[str, ...]:
        """List the metrics that need one of some variants."""
        chosen = set(variants)
        return tuple(name for name in self.names if METRICS[name].variant in chosen)

    def __str__(self) -> str:
        return ",".join(self.names)
