"""Where the answers stand in a rendered conversation.

The answer to a message is what the template adds when the answer follows the generation prompt,

    render(messages[:i], add_generation_prompt=True)  ->  render(messages[:i + 1])

Taken literally, this takes two renderings for each answer, the last ones as long as the whole. Most templates
write every turn in the same frame, whatever comes after it. Whether one does is found out once; for those,
one more rendering, with marks in the place of the answers, says where all of them are.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

from mllm_selector.errors import SampleError

__all__ = ["AnswerFinder", "Message", "Render", "Span"]

Message = tuple[str, str]

Span = tuple[int, int]

# Control characters, which no template looks for and no text is expected to hold.
_MARK = "\x02{}\x03"

_PROBE = (
    ("user", "question"),
    ("assistant", "reply"),
    ("user", "second question"),
    ("assistant", "\n  second reply \n"),
    ("user", "last question"),
    ("assistant", "last reply"),
)
_SYSTEM = ("system", "be brief")


class Render(Protocol):
    """Renders a conversation."""

    def __call__(self, messages: Sequence[Message], *, add_generation_prompt: bool = False) -> str:
        """Return the text; raises SampleError if the template refuses the conversation."""


@dataclass(frozen=True)
class _Frame:
    """What a template writes around every answer.

    Attributes
    ----------
    prompt : str
        The generation prompt.
    lead : str
        What follows it before the answer.
    close : str
        What follows the answer and is a part of it.
    strips : bool
        Whether white space around the answer goes.
    """

    prompt: str
    lead: str
    close: str
    strips: bool

    def written(self, answer: str) -> str:
        """Return an answer as the template writes it."""
        return answer.strip() if self.strips else answer


class AnswerFinder:
    """Finds the answers of a conversation in its text.

    Parameters
    ----------
    render : Render
        A model's template.
    """

    def __init__(self, render: Render) -> None:
        self._render = render
        self._frame = self._learn()

    def find(self, messages: Sequence[Message], text: str) -> tuple[Span, ...]:
        """Find the answers.

        Parameters
        ----------
        messages : sequence of (str, str)
            Role and content of each turn.
        text : str
            The conversation, rendered.

        Returns
        -------
        tuple of (int, int)
            Start and end character of each answer, end excluded, ascending.

        Raises
        ------
        SampleError
            ``chat-template`` if the template changes earlier turns when a later one is added.
        """
        spans = None
        # A single answer is found as fast by its definition.
        if self._frame is not None and sum(role == "assistant" for role, _ in messages) > 1:
            spans = self._by_marks(self._frame, messages, text)
        return self._by_prefixes(messages, text) if spans is None else spans

    def _by_prefixes(self, messages: Sequence[Message], text: str) -> tuple[Span, ...]:
        """Find answers by what they are defined as."""
        spans = []
        for index, (role, _) in enumerate(messages):
            if role != "assistant":
                continue
            before = self._render(messages[:index], add_generation_prompt=True)
            after = text if index + 1 == len(messages) else self._render(messages[: index + 1])
            if not (after.startswith(before) and text.startswith(after)):
                msg = (
                    f"chat-template: turn {index} does not follow the turns before it and the generation "
                    "prompt in the rendered text, so its answer cannot be told apart"
                )
                raise SampleError(msg)
            spans.append((len(before), len(after)))
        return tuple(spans)

    def _by_marks(self, frame: _Frame, messages: Sequence[Message], text: str) -> tuple[Span, ...] | None:
        """Find answers by marks in their places; None if that does not explain all of the text."""
        answers = [content for role, content in messages if role == "assistant"]
        if messages[0][0] == "assistant" or any("\x02" in content for _, content in messages):
            return None
        marks = [_MARK.format(index) for index in range(len(answers))]
        places = iter(marks)
        marked = [(role, next(places) if role == "assistant" else content) for role, content in messages]
        rest = self._render(marked)
        spans = []
        done = 0
        for mark, answer in zip(marks, answers, strict=True):
            before, _, rest = rest.partition(mark)
            written = frame.written(answer)
            start = done + len(before)
            done = start + len(written)
            if not (
                before.endswith(frame.prompt + frame.lead)
                and rest.startswith(frame.close)
                and text.startswith(before + written, start - len(before))
            ):
                return None
            spans.append((start - len(frame.lead), done + len(frame.close)))
        return tuple(spans) if text[done:] == rest else None

    def _learn(self) -> _Frame | None:
        """Find out how the template frames answers; None if not always in the same way."""
        try:
            frame = self._first_frame()
            probes = [_PROBE, _PROBE[:4], _PROBE[:2]]
            if frame is None or not all(self._holds(frame, probe) for probe in probes):
                return None
        except SampleError:
            return None
        try:
            return frame if self._holds(frame, (_SYSTEM, *_PROBE)) else None
        except SampleError:  # it knows no system turn
            return frame

    def _first_frame(self) -> _Frame | None:
        question, reply = _PROBE[0], _PROBE[1][1]
        asked = self._render([question])
        prompted = self._render([question], add_generation_prompt=True)
        text = self._render(_PROBE)
        first, second, _ = (text[start:end] for start, end in self._by_prefixes(_PROBE, text))
        lead, found, close = first.partition(reply)
        if not (found and prompted.startswith(asked)):
            return None
        raw = _PROBE[3][1]
        return _Frame(prompted.removeprefix(asked), lead, close, strips=second == lead + raw.strip() + close)

    def _holds(self, frame: _Frame, probe: Sequence[Message]) -> bool:
        text = self._render(probe)
        return self._by_marks(frame, probe, text) == self._by_prefixes(probe, text)
