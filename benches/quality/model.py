"""A tiny LLaVA: an encoder of cells that is trained once and frozen, and a small causal language model.

Every parameter of the language model has an axis of runs in front: as many models as there are runs are
trained at once on as many subsets, each as if it were alone. On a CPU one run at a time is as fast; a GPU
trains dozens in the time of one.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn
from torch.nn import functional

from world import (
    ANSWER,
    CELL_PIXELS,
    CELLS,
    COLOURS,
    DIGITS,
    LETTERS,
    PAD,
    SHAPES,
    SIZES,
    TEXT,
    VOCABULARY,
    Samples,
    pixels,
)

__all__ = [
    "Data",
    "Decoder",
    "Encoder",
    "Readings",
    "Shape",
    "embed",
    "hits",
    "read",
    "schedule",
    "train",
    "train_encoder",
]

FEATURES = 64
WIDTH = 64
LAYERS = 3
HEADS = 4
BATCH = 16
LEARNING_RATE = 1e-3
WARMUP = 0.1  # share of the steps
ROWS_AT_ONCE = 1000

# What the encoder learns to tell of a cell: kind, shape / digit / letter / height, colour, size.
_KINDS = 5
_VALUES = max(len(SHAPES), len(DIGITS), len(LETTERS))
_LABELS = (_KINDS, _VALUES, len(COLOURS), len(SIZES))


class Encoder(nn.Module):
    """Sees one cell at a time, as a vision tower with patches of that size would without attention."""

    def __init__(self) -> None:
        super().__init__()
        self.body = nn.Sequential(
            nn.Linear(CELL_PIXELS, 256),
            nn.GELU(),
            nn.LayerNorm(256),
            nn.Linear(256, FEATURES),
            nn.GELU(),
            nn.LayerNorm(FEATURES),
        )
        self.heads = nn.Linear(FEATURES, sum(_LABELS))

    def forward(self, cells: torch.Tensor) -> torch.Tensor:
        """Return features of cells, (..., 768) to (..., 64)."""
        features: torch.Tensor = self.body(cells)
        return features

    @torch.no_grad()
    def encode(self, cells: NDArray[np.int8], seed: list[int]) -> NDArray[np.float16]:
        """Draw scenes and return their features, shape (n, 9, 64)."""
        parts = [
            self(torch.from_numpy(pixels(cells[first : first + ROWS_AT_ONCE], [*seed, first])))
            for first in range(0, len(cells), ROWS_AT_ONCE)
        ]
        return torch.cat(parts).numpy().astype(np.float16)


def train_encoder(scenes: NDArray[np.int8], seed: int, epochs: int = 3) -> Encoder:
    """Train on drawn cells with their attributes as labels."""
    torch.manual_seed(seed)
    encoder = Encoder()
    steps = epochs * math.ceil(len(scenes) / BATCH)
    optimizer = torch.optim.AdamW(encoder.parameters(), lr=LEARNING_RATE)
    rates = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: schedule(step, steps))
    for epoch in range(epochs):
        order = np.random.default_rng([seed, epoch]).permutation(len(scenes))
        for first in range(0, len(scenes), BATCH):
            cells = scenes[order[first : first + BATCH]]
            drawn = torch.from_numpy(pixels(cells, [seed, epoch, first])).reshape(-1, CELL_PIXELS)
            labels = torch.from_numpy(cells.reshape(-1, 4).astype(np.int64))
            told = encoder.heads(encoder(drawn)).split(_LABELS, dim=1)
            # An empty cell has a kind only.
            seen = labels[:, 0] > 0
            loss = functional.cross_entropy(told[0], labels[:, 0])
            for part in (1, 2, 3):
                loss = loss + functional.cross_entropy(told[part][seen], labels[seen, part])
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            rates.step()
    return encoder.eval()


@dataclass(frozen=True)
class Data:
    """Samples as the language model takes them, on its device.

    Attributes
    ----------
    features : torch.Tensor of float16, shape (n, 9, 64)
    text : torch.Tensor of int64, shape (n, t)
    is_answer : torch.Tensor of bool, shape (n, t)
    """

    features: torch.Tensor
    text: torch.Tensor
    is_answer: torch.Tensor

    @classmethod
    def of(cls, samples: Samples, features: NDArray[np.float16], device: str) -> Data:
        """Move samples to a device, without columns of padding."""
        used = int(np.flatnonzero((samples.text != PAD).any(axis=0))[-1]) + 1
        return cls(
            torch.from_numpy(features).to(device),
            torch.from_numpy(samples.text[:, :used].astype(np.int64)).to(device),
            torch.from_numpy(samples.is_answer[:, :used]).to(device),
        )

    def __len__(self) -> int:
        return len(self.text)


@dataclass(frozen=True)
class Shape:
    """Sizes of a language model.

    Attributes
    ----------
    words : int
        Its vocabulary.
    cells : int
        Positions of an image, in front of the text.
    text : int
        Words of the longest sample.
    width, layers : int
    """

    words: int = len(VOCABULARY)
    cells: int = CELLS
    text: int = TEXT
    width: int = WIDTH
    layers: int = LAYERS

    @property
    def products(self) -> int:
        """Weights that a token is multiplied with, which is what a pass over it costs."""
        return (FEATURES + self.width + 12 * self.width * self.layers + self.words) * self.width


class Decoder(nn.Module):
    """As many causal transformers as there are runs, all with the same first weights.

    Parameters
    ----------
    runs : int
        Their number.
    shape : Shape
        Their sizes.
    """

    def __init__(self, runs: int = 1, shape: Shape = Shape()) -> None:
        super().__init__()
        self.runs, self.shape = runs, shape
        width, layers = shape.width, shape.layers

        def matrix(rows: int, columns: int, scale: float = 1.0) -> nn.Parameter:
            one = torch.randn(1, rows, columns) * scale / math.sqrt(rows)
            return nn.Parameter(one.repeat(runs, 1, 1))

        def constant(size: int, value: float) -> nn.Parameter:
            return nn.Parameter(torch.full((runs, 1, size), value))

        self.words = matrix(shape.words, width, math.sqrt(shape.words) * 0.02)
        self.places = matrix(shape.cells + shape.text, width, math.sqrt(shape.cells + shape.text) * 0.02)
        self.project_in = matrix(FEATURES, width)
        self.project_out = matrix(width, width)
        self.layers = nn.ModuleList(
            nn.ParameterDict(
                {
                    "norm1": constant(width, 1.0),
                    "norm2": constant(width, 1.0),
                    "qkv": matrix(width, 3 * width),
                    "mix": matrix(width, width, 1 / math.sqrt(2 * layers)),
                    "up": matrix(width, 4 * width),
                    "up_bias": constant(4 * width, 0.0),
                    "down": matrix(4 * width, width, 1 / math.sqrt(2 * layers)),
                }
            )
            for _ in range(layers)
        )
        self.norm = constant(width, 1.0)
        self.head = matrix(width, shape.words)

    def forward(self, features: torch.Tensor | None, text: torch.Tensor) -> torch.Tensor:
        """Return hidden states of all positions after the final norm.

        Parameters
        ----------
        features : torch.Tensor, shape (runs, batch, cells, 64), or None
            Without them the words keep their positions.
        text : torch.Tensor of int64, shape (runs, batch, t)
        """
        runs, _, length = text.shape
        cells = self.shape.cells
        of_run = torch.arange(runs, device=text.device)[:, None, None]
        # Padding stands behind all words, so no word attends to it.
        states = self.words[of_run, text] + self.places[:, None, cells : cells + length]
        if features is not None:
            seen = functional.gelu(_product(features.to(self.words.dtype), self.project_in))
            seen = _product(seen, self.project_out) + self.places[:, None, :cells]
            states = torch.cat([seen, states], dim=2)
        for layer in self.layers:
            states = states + self._attend(_norm(states, layer["norm1"]), layer)
            inner = _product(_norm(states, layer["norm2"]), layer["up"]) + layer["up_bias"][:, None]
            states = states + _product(functional.gelu(inner), layer["down"])
        return _norm(states, self.norm)

    def _attend(self, states: torch.Tensor, layer: nn.ParameterDict) -> torch.Tensor:
        runs, batch, length, width = states.shape
        parts = _product(states, layer["qkv"]).view(runs * batch, length, 3, HEADS, width // HEADS)
        query, key, value = parts.permute(2, 0, 3, 1, 4)
        mixed = functional.scaled_dot_product_attention(query, key, value, is_causal=True)
        return _product(mixed.transpose(1, 2).reshape(runs, batch, length, width), layer["mix"])

    def answers(
        self, features: torch.Tensor | None, text: torch.Tensor, is_answer: torch.Tensor
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Return the hidden states, and logits of the words that stand where `is_answer` says.

        Returns
        -------
        states : torch.Tensor, shape (runs, batch, positions, width)
        logits : torch.Tensor, shape (runs, batch, t - 1, words)
            The prediction of each word from the second on.
        """
        states = self(features, text)
        of_text = states[:, :, -text.shape[2] : -1]
        return states, _product(of_text, self.head)

    def fork(self, runs: int) -> Decoder:
        """Return so many copies of a model of one run."""
        copy = Decoder(runs, self.shape).to(self.words.device)
        copy.load_state_dict({name: value.repeat(runs, 1, 1) for name, value in self.state_dict().items()})
        return copy


def _product(states: torch.Tensor, weight: torch.Tensor) -> torch.Tensor:
    runs, batch, length, width = states.shape
    return torch.bmm(states.reshape(runs, batch * length, width), weight).view(runs, batch, length, -1)


def _norm(states: torch.Tensor, weight: torch.Tensor) -> torch.Tensor:
    return functional.rms_norm(states, states.shape[-1:]) * weight[:, None]


def schedule(step: int, steps: int) -> float:
    """Warm up linearly, then fall as a cosine."""
    warm = max(1, round(WARMUP * steps))
    if step < warm:
        return (step + 1) / warm
    return 0.5 * (1 + math.cos(math.pi * (step - warm) / max(1, steps - warm)))


def train(model: Decoder, data: Data, orders: NDArray[np.int64], batch: int = BATCH) -> None:
    """Train every run on its own samples.

    Parameters
    ----------
    model : Decoder
        Changed in place.
    data : Data
        The samples.
    orders : ndarray of int64, shape (runs, seen)
        Rows of `data` in the order in which each run sees them.
    batch : int
        Samples of a step.
    """
    device = data.text.device
    steps = math.ceil(orders.shape[1] / batch)
    optimizer = torch.optim.AdamW(model.parameters(), lr=LEARNING_RATE, weight_decay=0.01)
    rates = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: schedule(step, steps))
    rows = torch.from_numpy(orders).to(device)
    for step in range(steps):
        seen = rows[:, step * batch : (step + 1) * batch]
        text, wanted = data.text[seen], data.is_answer[seen][:, :, 1:]
        _, logits = model.answers(data.features[seen], text, wanted)
        losses = functional.cross_entropy(
            logits.flatten(0, 2), text[:, :, 1:].flatten(), reduction="none"
        ).view(wanted.shape)
        # A mean for each run, so that runs do not share the scale of their gradients.
        loss = ((losses * wanted).sum((1, 2)) / wanted.sum((1, 2))).sum()
        optimizer.zero_grad()
        loss.backward()
        _clip(model)
        optimizer.step()
        rates.step()


def _clip(model: Decoder) -> None:
    """Clip the gradient of each run to norm 1."""
    gradients = [parameter.grad for parameter in model.parameters() if parameter.grad is not None]
    norms = torch.stack([gradient.square().sum((1, 2)) for gradient in gradients]).sum(0).sqrt()
    scale = (1 / (norms + 1e-6)).clamp(max=1)[:, None, None]
    for gradient in gradients:
        gradient.mul_(scale)


@dataclass(frozen=True)
class Readings:
    """What one model says of samples.

    Attributes
    ----------
    nll, upd, visnec, ifd : ndarray of float32, shape (n,)
        As the metrics of those names in `mllm_selector.metrics`.
    embedding : ndarray of float16, shape (n, width)
        Mean of the last hidden states over all positions but padding, normalised.
    """

    nll: NDArray[np.float32]
    upd: NDArray[np.float32]
    visnec: NDArray[np.float32]
    ifd: NDArray[np.float32]
    embedding: NDArray[np.float16]


@torch.no_grad()
def read(model: Decoder, data: Data) -> Readings:
    """Score samples with a model of one run: whole, without the image, and without the question."""
    told = [
        _read(model, data.features[rows], data.text[rows], data.is_answer[rows])
        for rows in torch.arange(len(data), device=data.text.device).split(ROWS_AT_ONCE)
    ]
    nll, upd, blind, unasked, embedding = (
        torch.cat(parts).cpu().numpy() for parts in zip(*told, strict=True)
    )
    return Readings(nll, upd, blind - nll, nll / unasked, embedding.astype(np.float16))


def _read(
    model: Decoder, features: torch.Tensor, text: torch.Tensor, is_answer: torch.Tensor
) -> tuple[torch.Tensor, ...]:
    states, logits = model.answers(features[None], text[None], is_answer[None])
    log_p = logits[0].log_softmax(-1)
    nll = _token_nll(log_p, text)
    certainty = 1 + (log_p.exp() * log_p).sum(-1) / math.log(model.shape.words)
    upd = nll.sigmoid() * certainty.clamp(min=0)
    _, blind = model.answers(None, text[None], is_answer[None])
    answer, marks = _without_question(text, is_answer)
    _, unasked = model.answers(features[None], answer[None], marks[None])
    wanted = is_answer[:, 1:]
    return (
        _mean(nll, wanted),
        _mean(upd, wanted),
        _mean(_token_nll(blind[0].log_softmax(-1), text), wanted),
        _mean(_token_nll(unasked[0].log_softmax(-1), answer), marks[:, 1:]),
        _mean_state(states[0], _taken(model, text, is_answer, "all")),
    )


@torch.no_grad()
def embed(model: Decoder, data: Data, positions: str) -> NDArray[np.float16]:
    """Return the mean of the last hidden states over some positions, normalised.

    Parameters
    ----------
    model : Decoder
        Of one run.
    data : Data
        The samples.
    positions : str
        ``image``, ``answer``, or ``all`` but padding.

    Returns
    -------
    ndarray of float16, shape (n, width)
    """
    parts = []
    for rows in torch.arange(len(data), device=data.text.device).split(ROWS_AT_ONCE):
        text = data.text[rows]
        states = model(data.features[rows][None], text[None])[0]
        parts.append(_mean_state(states, _taken(model, text, data.is_answer[rows], positions)))
    return torch.cat(parts).cpu().numpy().astype(np.float16)


def _taken(model: Decoder, text: torch.Tensor, is_answer: torch.Tensor, positions: str) -> torch.Tensor:
    """Say which positions are meant, of the image and of the text."""
    image = torch.full((len(text), model.shape.cells), positions != "answer", device=text.device)
    words = {"all": text != PAD, "answer": is_answer, "image": torch.zeros_like(is_answer)}[positions]
    return torch.cat([image, words], dim=1)


def _mean_state(states: torch.Tensor, taken: torch.Tensor) -> torch.Tensor:
    weights = taken.long()
    mean = (states * weights[..., None]).sum(1) / weights.sum(1, keepdim=True)
    return functional.normalize(mean, dim=1)


def _without_question(text: torch.Tensor, is_answer: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Move ``answer`` and what follows it to the front."""
    start = (text == ANSWER).long().argmax(1, keepdim=True)
    places = torch.arange(text.shape[1], device=text.device)[None] + start
    inside = places < text.shape[1]
    places = places.clamp(max=text.shape[1] - 1)
    moved = torch.where(inside, text.gather(1, places), PAD)
    return moved, is_answer.gather(1, places) & inside


def _token_nll(log_p: torch.Tensor, text: torch.Tensor) -> torch.Tensor:
    return -log_p.gather(2, text[:, 1:, None])[..., 0]


def _mean(values: torch.Tensor, wanted: torch.Tensor) -> torch.Tensor:
    return (values * wanted).sum(1) / wanted.sum(1)


@torch.no_grad()
def hits(model: Decoder, data: Data) -> NDArray[np.bool_]:
    """Say whether each run gives each sample's whole answer and then ends, shape (runs, n).

    Every word is predicted from the right words before it, which for the whole answer is the same as
    greedy decoding.
    """
    parts = []
    for rows in torch.arange(len(data), device=data.text.device).split(ROWS_AT_ONCE):
        text, wanted = data.text[rows], data.is_answer[rows][:, 1:]
        each = [value.expand(model.runs, *value.shape) for value in (data.features[rows], text, wanted)]
        _, logits = model.answers(*each)
        right = logits.argmax(-1) == text[:, 1:]
        parts.append((right | ~wanted).all(-1))
    return torch.cat(parts, dim=1).cpu().numpy()
