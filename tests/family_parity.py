"""Samples with images of several sizes, what a model says of them, and what its exported graphs say.

The reference is the unmodified model: its own processor, one sample at a time, all logits, a plain cross
entropy. The graphs get the samples in batches of several kinds, through the plan that scores a pool.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from mllm_selector import families
from mllm_selector.engine import INPUT_EMBEDDING, SCORER_OUTPUTS, Engine
from mllm_selector.families.base import Family
from mllm_selector.families.loading import load_model
from mllm_selector.scoring.batching import (
    ImageUse,
    embedding_places,
    plan_features,
    scorer_batch,
    split_answers,
)
from mllm_selector.scoring.prefixes import PrefixGroup, alone, shared_prefixes
from model_fixtures import picture

SIZES = [(48, 40), (80, 60), (30, 100), (200, 60), (64, 64), (33, 150), (200, 200)]


@dataclass(frozen=True)
class Talk:
    messages: tuple[tuple[str, str], ...]
    images: tuple[Any, ...] = ()


def open_picture(image: tuple[int, int]) -> Any:
    """A picture of random pixels; `image` is its seed and the number of its size."""
    return picture(image[0], size=SIZES[image[1]])


def size_of(image: Any) -> tuple[int, int]:
    return SIZES[image[1]]


def talk(seed: int, *sizes: int, album: int | None = None) -> Talk:
    """A conversation that shows pictures of these sizes; every third has a second question.

    Those of one album show the same pictures.
    """
    draw = np.random.default_rng(seed)
    words = np.array(["how", "many", "red", "blue", "boxes", "squares", "is", "there", "a", "wall", "?"])
    question = "<image>\n" * len(sizes) + " ".join(draw.choice(words, draw.integers(1, 40)))
    turns = [("user", question), ("assistant", " ".join(draw.choice(words, draw.integers(1, 12))))]
    if seed % 3 == 2:
        turns += [("user", "and the other ?"), ("assistant", "no")]
    return Talk(tuple(turns), tuple((10 * (album or seed) + place, size) for place, size in enumerate(sizes)))


TALKS = [talk(1), talk(2, 3), talk(3, 0, 2), talk(4, 5, 4, 1), talk(5, 6), talk(6)]
TALKS += [talk(7, 3, album=2), talk(8, 3, album=2), talk(9, 0, 2, album=3), talk(10, 3, album=2)]
BATCHES = [[0], [1], [3], [0, 5], [0, 1, 2, 3], [3, 4, 2, 5, 1], [6, 1], [0, 1, 8, 6, 2, 4, 7, 9]]


def expected(folder: Path) -> list[tuple[float, Any, Any]]:
    """Loss and embedding of each talk, and that of its inputs, by the unmodified model and its own
    processor."""
    model, family = load_model(folder), families.load(folder)
    found = []
    for each in TALKS:
        inputs = family.training_inputs(each, open_picture)
        per_token = {key for key, value in inputs.items() if value.shape == inputs["input_ids"].shape}
        batch = {key: value[None] if key in per_token else value for key, value in inputs.items()}
        labels = batch.pop("labels")[0, 1:]
        with torch.no_grad():
            output = model(**batch, output_hidden_states=True)
        logits = output.logits[0, :-1].double()
        mean = output.hidden_states[-1][0].double().mean(0)
        seen = output.hidden_states[0][0, batch["input_ids"][0] == family.feature_token_id].double()
        found.append(
            (
                float(torch.nn.functional.cross_entropy(logits, labels)),
                (mean / mean.norm()).numpy(),
                input_embedding(model, family.parts.tokenizer, each, seen),
            )
        )
    assert min(loss for loss, *_ in found) > 1, "losses near zero would compare nothing"
    return found


def input_embedding(model: Any, tokenizer: Any, each: Talk, seen: torch.Tensor) -> Any:
    """The embedding of a talk's inputs: its questions' tokens, and what the model sees of its images."""
    asked = [text.replace("<image>", " ").strip() for role, text in each.messages if role == "user"]
    ids = tokenizer("\n".join(asked), add_special_tokens=False, return_tensors="pt")["input_ids"][0]
    words = model.get_input_embeddings()(ids).detach().double()
    parts = [
        words.mean(0),
        *((seen.mean(0), seen.amax(0)) if len(seen) else [torch.zeros_like(words[0])] * 2),
    ]
    return torch.nn.functional.normalize(
        torch.cat([torch.nn.functional.normalize(part, dim=0) for part in parts]), dim=0
    ).numpy()


def score(family: Family, engine: Engine, talks: list[Talk]) -> tuple[list[float], Any, Any]:
    """Score a batch through the plan that scores a pool, several images in one run of the vision graph."""
    samples = [family.encode(each, size_of) for each in talks]
    uses = {
        (image, rows): ImageUse((image, rows), rows)
        for each, sample in zip(talks, samples, strict=True)
        for image, rows in zip(each.images, sample.image_tokens, strict=True)
    }
    plan = plan_features([list(uses.values())], 0, rows_at_once=60)
    engine.reserve(plan.rows)
    for placement in plan.encode[0]:
        prepared = [family.prepare(open_picture(use.key[0]), use.rows) for use in placement.images]
        engine.see(
            family.vision_inputs(prepared), placement.starts[0], sum(use.rows for use in placement.images)
        )
    starts = [
        [plan.starts[0][key] for key in zip(each.images, sample.image_tokens, strict=True)]
        for each, sample in zip(talks, samples, strict=True)
    ]
    places = [[place] for place in range(len(talks))]
    if family.shares_prefixes:
        places = shared_prefixes(samples, [each.images for each in talks], np.inf, np.inf)
    groups = [PrefixGroup(tuple(samples[place] for place in group)) for group in places]
    scores = engine.read(scorer_batch(family, groups, [starts[group[0]] for group in places]), SCORER_OUTPUTS)
    order = [place for group in places for place in group]
    losses = split_answers([samples[place] for place in order], scores["token_nll"])
    means = np.empty(len(talks))
    means[order] = [each.mean(dtype=np.float64) for each in losses]
    found = scores["sample_embedding"][embedding_places(groups)]
    embeddings = np.empty_like(found)
    embeddings[order] = found
    only_inputs = alone([family.inputs_of(*each) for each in zip(talks, samples, strict=True)])
    of_inputs = engine.read(scorer_batch(family, only_inputs, starts, "text"), (INPUT_EMBEDDING,))
    return means.tolist(), embeddings, of_inputs[INPUT_EMBEDDING]


def differences(
    family: Family, engine: Engine, reference: list[tuple[float, Any, Any]]
) -> tuple[float, float]:
    """Largest difference of a mean loss, in nats, and of an element of an embedding, over all batches.

    Embeddings are those of samples and of their inputs.
    """
    losses, embeddings = [], []
    for batch in BATCHES:
        scores = score(family, engine, [TALKS[index] for index in batch])
        for index, loss, *both in zip(batch, *scores, strict=True):
            losses.append(abs(loss - reference[index][0]))
            for embedding, known in zip(both, reference[index][1:], strict=True):
                embeddings.append(np.abs(embedding - known).max())
    # NumPy's maximum keeps NaN.
    return float(np.max(losses)), float(np.max(embeddings))
