"""From a sample's messages to the model's chat text, and from there to the tokens that count.

Which tokens are answer tokens is decided by characters of the rendered text, so one rule serves every model
with a chat template; see `mllm_selector.families.answers`. End-of-turn marks that the template writes after
an answer are part of it: the model has to learn to stop, and a model that stops too late is not done with the
sample.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np
from numpy.typing import NDArray

from mllm_selector.errors import MissingPackageError, ModelError, SampleError
from mllm_selector.families.answers import AnswerFinder, Message, Span
from mllm_selector.pool import PoolImage

if TYPE_CHECKING:
    import torch
    from PIL import Image

__all__ = [
    "EXAMPLE_ANSWER",
    "FALLBACK_TEMPLATE",
    "IMAGE_MARK",
    "ChatEncoder",
    "ChatText",
    "Conversation",
    "Message",
    "TokenizedChat",
    "encode_for_training",
]

IMAGE_MARK = "<image>"
"""Where an image stands in a message's content, as in LLaVA's files."""

# The conversation format of Vicuna v1.1, on which LLaVA 1.5 was built: a system sentence, a space between
# turns, the end-of-sequence token after each answer. Images come first in their message.
FALLBACK_TEMPLATE = (
    "{% if messages[0].role != 'system' %}"
    "A chat between a curious human and an artificial intelligence assistant. The assistant gives helpful, "
    "detailed, and polite answers to the human's questions.{{ ' ' }}"
    "{% endif %}"
    "{% for message in messages %}"
    "{% if message.role == 'user' %}{{ 'USER: ' }}"
    "{% elif message.role == 'assistant' %}{{ 'ASSISTANT: ' }}{% endif %}"
    "{% for part in message.content if part.type == 'image' %}{{ image_token + '\n' }}{% endfor %}"
    "{% for part in message.content if part.type == 'text' %}{{ part.text }}{% endfor %}"
    "{{ eos_token if message.role == 'assistant' else ' ' }}"
    "{% endfor %}"
    "{% if add_generation_prompt %}{{ 'ASSISTANT:' }}{% endif %}"
)

EXAMPLE_ANSWER = "example-answer"
"""Role of an assistant's turn that is shown as an example: rendered as an answer, but none that counts."""


class Conversation(Protocol):
    """What this module needs of a sample; `mllm_selector.pool.Sample` is one.

    Attributes
    ----------
    messages : sequence of (str, str)
        Role (``system``, ``user``, ``assistant``) and content of each turn, ``<image>`` marks included.
    images : sequence of Path, bytes or ImageRange
        In the order of the marks.
    """

    @property
    def messages(self) -> Sequence[Message]: ...  # noqa: D102 - described above

    @property
    def images(self) -> Sequence[PoolImage]: ...  # noqa: D102


@dataclass(frozen=True)
class ChatText:
    """A rendered conversation.

    Attributes
    ----------
    text : str
        What the tokenizer reads, one image placeholder for each image.
    answers : tuple of (int, int)
        Start and end character of each answer, end excluded, ascending.
    """

    text: str
    answers: tuple[Span, ...]

    def with_images(self, placeholder: str, texts: Sequence[str]) -> ChatText:
        """Put a text of its own in the place of each image placeholder, as processors of transformers do."""
        pieces = self.text.split(placeholder)
        expanded = pieces[0] + "".join(a + b for a, b in zip(texts, pieces[1:], strict=True))
        ends = np.cumsum([len(piece) + len(placeholder) for piece in pieces[:-1]])
        growth = np.cumsum([0, *(len(text) - len(placeholder) for text in texts)])

        def moved(place: int) -> int:
            return place + int(growth[np.searchsorted(ends, place, side="right")])

        return ChatText(expanded, tuple((moved(start), moved(end)) for start, end in self.answers))


@dataclass(frozen=True)
class TokenizedChat:
    """A conversation in tokens, before image placeholders are expanded.

    Attributes
    ----------
    ids : ndarray of int64, shape (length,)
        Token ids.
    is_answer : ndarray of bool, shape (length,)
        True where a token holds a character of an answer.
    is_image : ndarray of bool, shape (length,)
        True at the placeholder of each image.
    """

    ids: NDArray[np.int64]
    is_answer: NDArray[np.bool_]
    is_image: NDArray[np.bool_]


class ChatEncoder:
    """Renders and tokenizes conversations the way one model wants them.

    Parameters
    ----------
    tokenizer : transformers.PreTrainedTokenizerBase
        A fast tokenizer (backed by the `tokenizers` library), which tells each token's characters.
    template : str, optional
        The model's chat template; without it `FALLBACK_TEMPLATE` is used.
    image_token : str
        The placeholder that the template writes for an image; one token of the tokenizer.

    Raises
    ------
    ModelError
        If the tokenizer is not a fast one, the placeholder is not one token, or the template does not render
        a plain conversation with images or does not write answers after its generation prompt.
    MissingPackageError
        If jinja2 is missing.
    """

    def __init__(self, tokenizer: Any, template: str | None, image_token: str = IMAGE_MARK) -> None:
        _need_jinja()
        if not tokenizer.is_fast:
            msg = (
                f"{tokenizer.name_or_path}: the tokenizer is not a fast one, so which characters a token "
                "holds is not known; save one with a tokenizer.json beside the model"
            )
            raise ModelError(msg)
        self.tokenizer = tokenizer
        self.template = template or FALLBACK_TEMPLATE
        self.image_token = image_token
        token_id = tokenizer.convert_tokens_to_ids(image_token)
        if token_id is None or token_id == tokenizer.unk_token_id:
            msg = (
                f"{tokenizer.name_or_path}: the tokenizer has no image token {image_token!r}; "
                "add it as a special token"
            )
            raise ModelError(msg)
        self.image_token_id = int(token_id)
        self._learn_template()

    @classmethod
    def of(cls, processor: Any) -> ChatEncoder:
        """Make the encoder of a Hugging Face processor.

        The template is the processor's, else its tokenizer's, else `FALLBACK_TEMPLATE`.
        """
        tokenizer = processor.tokenizer
        image_token = getattr(processor, "image_token", None) or IMAGE_MARK
        return cls(tokenizer, _template_of(processor) or _template_of(tokenizer), str(image_token))

    def render(self, messages: Sequence[Message], images: int | None = None) -> ChatText:
        """Render a conversation and find its answers.

        Parameters
        ----------
        messages : sequence of (str, str)
            Role and content of each turn, ``<image>`` marks included.
        images : int, optional
            How many images the sample has; by default as many as there are marks.

        Raises
        ------
        SampleError
            ``chat-template`` if the template refuses the conversation or changes earlier turns when a later
            one is added, ``image-marks`` if the text holds not one placeholder for each image.
        """
        text = self._text(messages)
        answers = self._answers.find(messages, text)
        marks = sum(content.count(IMAGE_MARK) for _, content in messages)
        images = marks if images is None else images
        found = text.count(self.image_token)
        if not images == marks == found:
            msg = (
                f"image-marks: {images} images, {marks} {IMAGE_MARK} marks, "
                f"{found} {self.image_token!r} in the chat text"
            )
            raise SampleError(msg)
        return ChatText(text, answers)

    def tokenize(self, chat: ChatText) -> TokenizedChat:
        """Tokenize a rendered conversation, marking answers and image placeholders.

        A token is an answer token if it holds at least one character of an answer. So a first word whose
        token takes in the space of the generation prompt counts.
        """
        encoded = self.tokenizer(
            chat.text,
            add_special_tokens=self.adds_special_tokens(chat.text),
            return_offsets_mapping=True,
            return_attention_mask=False,
            verbose=False,
        )
        ids = np.asarray(encoded["input_ids"], dtype=np.int64)
        start, end = np.asarray(encoded["offset_mapping"], dtype=np.int64).reshape(-1, 2).T
        is_answer = np.zeros(len(ids), dtype=np.bool_)
        for first, last in chat.answers:
            is_answer |= (start < last) & (end > first) & (end > start)
        return TokenizedChat(ids, is_answer, ids == self.image_token_id)

    def encode(self, messages: Sequence[Message], images: int | None = None) -> TokenizedChat:
        """Render and tokenize; see `render` and `tokenize`."""
        return self.tokenize(self.render(messages, images))

    def adds_special_tokens(self, text: str) -> bool:
        """Say whether the tokenizer is to add its special tokens to a rendered text."""
        # As in transformers: a template that writes the begin-of-sequence token itself gets no second one.
        begin = self.tokenizer.bos_token
        return begin is None or not text.startswith(begin)

    def _text(self, messages: Sequence[Message], *, add_generation_prompt: bool = False) -> str:
        import jinja2

        if not messages:
            msg = "chat-template: the conversation begins with an answer"
            raise SampleError(msg)
        chat = [
            {"role": "assistant" if role == EXAMPLE_ANSWER else role, "content": self._content(content)}
            for role, content in messages
        ]
        try:
            text: str = self.tokenizer.apply_chat_template(
                chat,
                chat_template=self.template,
                tokenize=False,
                add_generation_prompt=add_generation_prompt,
                image_token=self.image_token,
            )
        except (jinja2.TemplateError, TypeError, ValueError) as error:
            msg = f"chat-template: the template refuses the conversation ({error})"
            raise SampleError(msg) from error
        return text

    def _content(self, content: str) -> str | list[dict[str, str]]:
        if not self._parts:
            return content.replace(IMAGE_MARK, self.image_token)
        # LLaVA's files put a line break between the mark and the text; where the image stands is the
        # template's business, so that break goes.
        texts = content.split(IMAGE_MARK)
        if len(texts) > 1:
            texts = [text.strip("\n") for text in texts]
        parts: list[dict[str, str]] = []
        for position, text in enumerate(texts):
            if position:
                parts.append({"type": "image"})
            if text or len(texts) == 1:
                parts.append({"type": "text", "text": text})
        return parts

    def _learn_template(self) -> None:
        """Find out whether the template wants content as a list of parts or, as older ones, as one string."""
        problem = ""
        for parts in (True, False):
            self._parts = parts
            self._answers = AnswerFinder(self._text)
            try:
                chat = self.render([("user", f"{IMAGE_MARK}\nquestion"), ("assistant", "reply")] * 2)
            except SampleError as error:
                problem = problem or str(error)
                continue
            # A template for strings may write the list out as Python shows it.
            if "'type'" not in chat.text and "question" in chat.text:
                return
        msg = (
            f"{self.tokenizer.name_or_path}: its chat template cannot be used "
            f"({problem or 'it drops the text'}); give the model a template that renders messages with "
            "content parts of type image and text"
        )
        raise ModelError(msg)


def encode_for_training(
    processor: Any,
    sample: Conversation,
    load_image: Callable[[PoolImage], Image.Image],
    chat: ChatEncoder | None = None,
) -> dict[str, torch.Tensor]:
    """Encode a sample for `AutoModelForImageTextToText` with a loss on its answers only.

    The processor itself expands the image placeholders; the answer mask is carried over to its ids.

    Parameters
    ----------
    processor : transformers.ProcessorMixin
        The model's processor.
    sample : Conversation
        The sample; `Pool.sample` gives one.
    load_image : callable
        Turns one of the sample's images into a picture, see `mllm_selector.families.images.load_image`.
    chat : ChatEncoder, optional
        `ChatEncoder.of(processor)`, made once for many samples.

    Returns
    -------
    dict of str to torch.Tensor
        ``input_ids``, ``labels`` (-100 outside answers), ``attention_mask`` and whatever else the processor
        gives per token (``mm_token_type_ids``, ...), each of shape (length,); the rest as the processor
        returns it for a batch of one (``pixel_values``, ``image_grid_thw``, ...).

    Raises
    ------
    SampleError
        If this sample cannot be encoded; it is to be set aside.
    ModelError
        If the processor's ids cannot be matched with the chat text.
    """
    import torch

    chat = ChatEncoder.of(processor) if chat is None else chat
    rendered = chat.render(sample.messages, len(sample.images))
    tokens = chat.tokenize(rendered)
    pictures = [load_image(image) for image in sample.images]
    encoded = processor(
        text=[rendered.text],
        images=[pictures] if pictures else None,
        add_special_tokens=chat.adds_special_tokens(rendered.text),
        return_tensors="pt",
    )
    ids = encoded["input_ids"][0]
    labels = torch.full_like(ids, -100)
    is_answer = torch.from_numpy(_answers_after_expansion(tokens, ids.numpy().astype(np.int64)))
    labels[is_answer] = ids[is_answer]
    per_token = {
        name: value[0]
        for name, value in encoded.items()
        if value.ndim == 2 and value.shape == encoded["input_ids"].shape
    }
    return {**encoded, **per_token, "labels": labels}


def _answers_after_expansion(tokens: TokenizedChat, expanded: NDArray[np.int64]) -> NDArray[np.bool_]:
    """Carry the answer mask over to ids in which a processor has expanded the image placeholders.

    The text between two placeholders keeps its tokens, except that a token beside a placeholder may merge
    with what the processor adds around an image (line breaks, say); unless it is an answer token it is not
    compared.
    """
    is_answer = np.zeros(len(expanded), dtype=np.bool_)
    edges = [-1, *np.flatnonzero(tokens.is_image).tolist(), len(tokens.ids)]
    after = 0
    for left, right in pairwise(edges):
        answers = np.flatnonzero(tokens.is_answer[left + 1 : right]) + left + 1
        if not len(answers):
            continue
        first = left + 1 if left < 0 else min(left + 2, answers[0])
        last = right if right == len(tokens.ids) else max(right - 1, answers[-1] + 1)
        run = tokens.ids[first:last]
        place = _find(run, expanded, after, at_end=last == len(tokens.ids))
        if place is None:
            msg = (
                "the processor's token ids do not contain the chat text's between its images, so the answers "
                "cannot be marked; the tokenizer and the processor of this model do not belong together"
            )
            raise ModelError(msg)
        is_answer[place + answers - first] = True
        after = place + len(run)
    if np.count_nonzero(is_answer) != np.count_nonzero(tokens.is_answer):
        msg = "the processor's token ids hold another number of answer tokens than the chat text"
        raise ModelError(msg)
    return is_answer


def _find(run: NDArray[np.int64], ids: NDArray[np.int64], after: int, *, at_end: bool) -> int | None:
    """Return where `run` stands in `ids` at or after a position: at the very end, or its first place."""
    if at_end:
        place = len(ids) - len(run)
        return place if place >= after and np.array_equal(ids[place:], run) else None
    if len(ids) - after < len(run):
        return None
    windows = np.lib.stride_tricks.sliding_window_view(ids[after:], len(run))
    places = np.flatnonzero((windows == run).all(axis=1))
    return after + int(places[0]) if len(places) else None


def _template_of(holder: Any) -> str | None:
    template = getattr(holder, "chat_template", None)
    if isinstance(template, dict):
        template = template.get("default")
    return template or None


def _need_jinja() -> None:
    try:
        import jinja2  # noqa: F401
    except ImportError as error:
        msg = "chat templates need jinja2: pip install 'mllm-selector[cpu]' (or [gpu], [train])"
        raise MissingPackageError(msg) from error
