"""Whether an engine agrees with the model that it was made from.

The reference is the unmodified model's own ``forward``: one sample at a time, no padding, all logits, a plain
cross entropy. The engine gets the same samples in ragged batches through the same code that scores a pool.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from importlib import import_module
from itertools import chain
from math import inf, isnan
from typing import Any

import numpy as np
from numpy.typing import NDArray

from mllm_selector.engine import INPUT_EMBEDDING, SCORER_OUTPUTS, Engine
from mllm_selector.errors import ExportError
from mllm_selector.families.base import Arrays, Encoded, Family
from mllm_selector.families.chat import IMAGE_MARK
from mllm_selector.scoring.batching import (
    ImageUse,
    embedding_places,
    plan_features,
    scorer_batch,
    split_answers,
)
from mllm_selector.scoring.prefixes import PrefixGroup, alone, shared_prefixes

__all__ = [
    "BatchDifference",
    "Check",
    "Expected",
    "PlainScores",
    "check_against",
    "plain_scores",
    "reference",
]

# Numbers of images of the samples of each batch: none, one, two; batches of one and of several. Samples of a
# batch show the same pictures, so those with as many of them can share what they begin with.
BATCHES = ((0,), (1,), (2, 0, 1), (1, 0, 2, 0, 1), (2, 1, 1, 2, 1))
# Words in question and answer, so that lengths are ragged.
WORDS = ((3, 1), (9, 5), (30, 12), (5, 40), (17, 2))
# Height and width of the pictures, for models whose features depend on them.
SIZES = ((480, 640), (300, 900), (700, 200))


@dataclass(frozen=True)
class BatchDifference:
    """How far the engine is from the model on one batch.

    Attributes
    ----------
    tokens, images : list of int
        Length and number of images of each sample.
    nll_difference, entropy_difference : float
        Largest difference of a mean over the answer tokens of a sample, in nats; 0 for entropies of an engine
        that was not asked for them.
    embedding_difference, input_difference : float
        Largest difference of an element of an L2-normalised embedding, of the sample and of its inputs.
    """

    tokens: list[int]
    images: list[int]
    nll_difference: float
    entropy_difference: float
    embedding_difference: float
    input_difference: float

    @property
    def worst(self) -> float:
        """The largest of the differences; infinite if one is not a number, so that it passes no limit."""
        differences = (
            self.nll_difference,
            self.entropy_difference,
            self.embedding_difference,
            self.input_difference,
        )
        return max(inf if isnan(difference) else difference for difference in differences)


@dataclass(frozen=True)
class Check:
    """The differences on all batches."""

    batches: tuple[BatchDifference, ...]

    @property
    def worst_nll(self) -> float:
        """Largest difference of a mean loss, in nats."""
        return max(batch.nll_difference for batch in self.batches)

    @property
    def worst_entropy(self) -> float:
        """Largest difference of a mean entropy, in nats."""
        return max(batch.entropy_difference for batch in self.batches)

    @property
    def worst_embedding(self) -> float:
        """Largest difference of an element of an embedding, of samples or of their inputs."""
        return max(max(batch.embedding_difference, batch.input_difference) for batch in self.batches)

    @property
    def comparisons(self) -> int:
        """How often a sample was compared."""
        return sum(len(batch.tokens) for batch in self.batches)

    def as_json(self) -> dict[str, Any]:
        """Return all of it, with the versions of the packages."""
        packages = ("torch", "transformers", "onnx", "onnxscript", "onnxruntime")
        return {
            "worst_nll_difference": self.worst_nll,
            "worst_entropy_difference": self.worst_entropy,
            "worst_embedding_difference": self.worst_embedding,
            "batches": [asdict(batch) for batch in self.batches],
            "versions": {package: import_module(package).__version__ for package in packages},
        }


@dataclass(frozen=True)
class Picture:
    """A picture of a sample: which one, in how many feature rows, and prepared."""

    image: bytes
    rows: int
    arrays: Arrays

    @property
    def key(self) -> tuple[bytes, int]:
        """What identifies its features."""
        return self.image, self.rows


@dataclass(frozen=True)
class Expected:
    """A batch of samples, also cut down to their inputs, and what the model says of each."""

    samples: list[Encoded]
    inputs: list[Encoded]
    pictures: list[list[Picture]]
    nll: NDArray[np.float64]
    entropy: NDArray[np.float64]
    embedding: NDArray[np.float64]
    input_embedding: NDArray[np.float64]


@dataclass(frozen=True)
class PlainScores:
    """What the unmodified model says of one sample.

    Attributes
    ----------
    token_nll, token_entropy : ndarray of float64, shape (answers,)
        Cross entropy of each answer token from the full logits, and entropy of its distribution, in nats.
    token_hit : ndarray of bool, shape (answers,)
        Whether the answer token has the largest logit.
    embedding : ndarray of float64, shape (width,)
        Mean over all positions of the hidden states of a layer, L2-normalised.
    images : ndarray of float64, shape (feature rows, width)
        What the first layer reads at the image positions.
    """

    token_nll: NDArray[np.float64]
    token_entropy: NDArray[np.float64]
    token_hit: NDArray[np.bool_]
    embedding: NDArray[np.float64]
    images: NDArray[np.float64]


@dataclass(frozen=True)
class _Conversation:
    messages: tuple[tuple[str, str], ...]
    images: tuple[bytes, ...]


def reference(family: Family, model: Any, embedding_layer: int = -1) -> list[Expected]:
    """Score made-up conversations with the unmodified model.

    Parameters
    ----------
    family : Family
        The model's family.
    model : transformers.PreTrainedModel
        The model.
    embedding_layer : int
        The layer that embeddings are made of, as for `ScorerGraph`.

    Raises
    ------
    ExportError
        If the family's tokens differ from those of the model's own processor.
    """
    plain = family.with_numbers()
    batches = []
    for batch, image_counts in enumerate(BATCHES):
        samples, inputs, pictures, scores = [], [], [], []
        for position, image_count in enumerate(image_counts):
            conversation = _conversation(batch, 10 * position, image_count, *WORDS[position])
            encoded = family.encode(conversation, lambda image: _picture(image).size)
            _compare_tokens(family, conversation, encoded)
            shown = list(zip(conversation.images, encoded.image_tokens, strict=True))
            prepared = [Picture(image, rows, family.prepare(_picture(image), rows)) for image, rows in shown]
            samples.append(encoded)
            inputs.append(family.inputs_of(conversation, encoded))
            pictures.append(prepared)
            arrays = [plain.prepare(_picture(image), rows) for image, rows in shown]
            scores.append(plain_scores(plain, model, encoded, arrays, embedding_layer))
        batches.append(
            Expected(
                samples,
                inputs,
                pictures,
                nll=np.array([each.token_nll.mean() for each in scores]),
                entropy=np.array([each.token_entropy.mean() for each in scores]),
                embedding=np.stack([each.embedding for each in scores]),
                input_embedding=np.stack(
                    [_input_embedding(model, *each) for each in zip(inputs, scores, strict=True)]
                ),
            )
        )
    return batches


def plain_scores(
    family: Family, model: Any, sample: Encoded, prepared: Sequence[Arrays], embedding_layer: int = -1
) -> PlainScores:
    """Score one sample with the unmodified model."""
    import torch

    inputs = family.torch_inputs([sample], prepared)
    with torch.no_grad():
        output = model(**inputs, output_hidden_states=True, use_cache=False)
    answers = np.flatnonzero(sample.is_answer[1:])
    tokens = torch.from_numpy(sample.ids[answers + 1])
    logits = output.logits[0, answers].double()
    if logits.shape[-1] != family.vocabulary:
        msg = (
            f"the model gives {logits.shape[-1]} logits, {type(family).__name__} says {family.vocabulary}; "
            "mend its vocabulary"
        )
        raise ExportError(msg)
    mean = output.hidden_states[embedding_layer][0].double().mean(0)
    return PlainScores(
        token_nll=torch.nn.functional.cross_entropy(logits, tokens, reduction="none").numpy(),
        token_entropy=torch.special.entr(logits.softmax(-1)).sum(-1).numpy(),
        token_hit=(logits.argmax(-1) == tokens).numpy(),
        embedding=(mean / mean.norm()).numpy(),
        images=output.hidden_states[0][0, torch.from_numpy(sample.is_image)].double().numpy(),
    )


def _input_embedding(model: Any, inputs: Encoded, scores: PlainScores) -> NDArray[np.float64]:
    """Put the input embedding together from the model's own token embeddings and image features."""
    import torch

    with torch.no_grad():
        words = model.get_input_embeddings()(torch.from_numpy(inputs.ids[~inputs.is_image])).double().numpy()
    nothing = np.zeros(words.shape[1])
    seen = scores.images
    parts = [
        part / max(np.linalg.norm(part), 1e-12)
        for part in (words.mean(0), *((seen.mean(0), seen.max(0)) if len(seen) else (nothing, nothing)))
    ]
    whole = np.concatenate(parts)
    return np.asarray(whole / np.linalg.norm(whole))


def check_against(
    family: Family, engine: Engine, expected: Sequence[Expected], outputs: Sequence[str] = SCORER_OUTPUTS
) -> Check:
    """Score the reference's batches with an engine and compare."""
    return Check(tuple(_compare(family, engine, batch, outputs) for batch in expected))


def _compare(family: Family, engine: Engine, expected: Expected, outputs: Sequence[str]) -> BatchDifference:
    order, scores = _score(family, engine, expected, outputs)
    samples = [expected.samples[place] for place in order]
    of_tokens = {
        name: np.array([tokens.mean(dtype=np.float64) for tokens in split_answers(samples, scores[name])])
        for name in ("token_nll", "token_entropy")
        if name in scores
    }
    losses, entropies = of_tokens["token_nll"], of_tokens.get("token_entropy", expected.entropy[order])
    return BatchDifference(
        tokens=[len(sample) for sample in expected.samples],
        images=[len(images) for images in expected.pictures],
        nll_difference=float(np.abs(losses - expected.nll[order]).max()),
        entropy_difference=float(np.abs(entropies - expected.entropy[order]).max()),
        embedding_difference=float(np.abs(scores["sample_embedding"] - expected.embedding[order]).max()),
        input_difference=float(np.abs(scores[INPUT_EMBEDDING] - expected.input_embedding).max()),
    )


def _score(
    family: Family, engine: Engine, expected: Expected, outputs: Sequence[str]
) -> tuple[list[int], Arrays]:
    """Return the order in which the samples were read, and outputs; embeddings of inputs are in theirs."""
    pictures = {picture.key: picture for of_sample in expected.pictures for picture in of_sample}
    uses = [ImageUse(picture.key, picture.rows) for picture in pictures.values()]
    plan = plan_features([uses], capacity=0, rows_at_once=sum(use.rows for use in uses))
    engine.reserve(plan.rows)
    for placement in plan.encode[0]:
        prepared = [pictures[image.key].arrays for image in placement.images]
        rows = sum(image.rows for image in placement.images)
        engine.see(family.vision_inputs(prepared), placement.starts[0], rows)
    keys = [tuple(picture.key for picture in of_sample) for of_sample in expected.pictures]
    starts = [[plan.starts[0][key] for key in of_sample] for of_sample in keys]
    groups = [[place] for place in range(len(keys))]
    if family.shares_prefixes:
        # However little is shared: the check is about being right.
        groups = shared_prefixes(expected.samples, keys, inf, inf)
    batch = [PrefixGroup(tuple(expected.samples[place] for place in group)) for group in groups]
    full = scorer_batch(family, batch, [starts[group[0]] for group in groups])
    scores = engine.read(full, outputs)
    scores["sample_embedding"] = scores["sample_embedding"][embedding_places(batch)]
    inputs = scorer_batch(family, alone(expected.inputs), starts, "text")
    return list(chain(*groups)), scores | engine.read(inputs, (INPUT_EMBEDDING,))


def _compare_tokens(family: Family, conversation: _Conversation, encoded: Encoded) -> None:
    """Compare the family's tokens with those that the model's own processor makes of the same text."""
    own = family.training_inputs(conversation, _picture)
    labels = np.where(encoded.is_answer, encoded.ids, -100)
    same_ids = np.array_equal(own["input_ids"].numpy(), encoded.ids)
    if not (same_ids and np.array_equal(own["labels"].numpy(), labels)):
        msg = (
            f"{family.folder}: the tokens of {type(family).__name__} differ from those of the model's "
            f"processor on a sample with {len(conversation.images)} images; please report the model's name"
        )
        raise ExportError(msg)


def _conversation(batch: int, seed: int, images: int, question: int, answer: int) -> _Conversation:
    vocabulary = [
        "how",
        "many",
        "red",
        "blue",
        "squares",
        "circles",
        "are",
        "in",
        "box",
        "wall",
        "3",
        ",",
        ".",
    ]
    draw = np.random.default_rng([batch, seed])
    marks = f"{IMAGE_MARK}\n" * images
    messages = [
        ("user", marks + " ".join(draw.choice(vocabulary, question))),
        ("assistant", " ".join(draw.choice(vocabulary, answer))),
    ]
    if answer > 10:
        messages += [("user", "and why ?"), ("assistant", " ".join(draw.choice(vocabulary, 4)))]
    return _Conversation(tuple(messages), tuple(bytes([batch, image]) for image in range(images)))


def _picture(image: Any) -> Any:
    """Return a picture of random pixels; `image` is the seed."""
    from PIL import Image

    draw = np.random.default_rng(list(image))
    height, width = SIZES[sum(image) % len(SIZES)]
    return Image.fromarray(draw.integers(0, 256, (height, width, 3), dtype=np.uint8))
