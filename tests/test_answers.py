"""Answers are where the definition says, however they are found."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence

import jinja2
import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from mllm_selector.errors import SampleError
from mllm_selector.families.answers import AnswerFinder, Message, Span

TURN = "{{ '<|' + m.role + '|>' }}{{ m.content }}{{ '<|end|>\n' }}"
LOOP = "{% for m in messages %}" + TURN + "{% endfor %}"
PROMPT = "{% if add_generation_prompt %}{{ '<|assistant|>' }}{% endif %}"
STRICT = "{% if messages[0].role == 'system' %}{{ raise_exception('no system turn') }}{% endif %}"
THINKS = "'<think></think>' if m.role == 'assistant' and loop.last else ''"

SAME_FRAME = {
    "chatml": LOOP + PROMPT,
    "a default system turn": "{% if messages[0].role != 'system' %}You help.{% endif %}" + LOOP + PROMPT,
    "no system turn": STRICT + LOOP + PROMPT,
    "white space goes": LOOP.replace("m.content", "m.content | trim") + PROMPT,
    "nothing closes": LOOP.replace("{{ '<|end|>\n' }}", "") + PROMPT,
    "more than the prompt": LOOP.replace("m.content", "' ' + m.content") + PROMPT,
    "no prompt": LOOP,
}
OTHERS = {
    "drops thoughts": LOOP.replace(
        "m.content", "m.content if loop.last or '!' not in m.content else m.content.split('!')[-1]"
    )
    + PROMPT,
    "thinks in the last turn": LOOP.replace("m.content", f"({THINKS}) + m.content") + PROMPT,
    "ends with the last turn": LOOP + PROMPT + "{{ '' if add_generation_prompt else '<|over|>' }}",
    "only the left side": LOOP.replace("m.content", "m.content.lstrip()") + PROMPT,
    "numbers its turns": LOOP.replace("m.role + '|>'", "m.role + loop.index | string + '|>'") + PROMPT,
    "another prompt": LOOP + PROMPT.replace("assistant", "model"),
    "repeats the answers": LOOP.replace("m.content", "m.content + m.content") + PROMPT,
    "no answers": "{% for m in messages if m.role != 'assistant' %}" + TURN + "{% endfor %}" + PROMPT,
}
TEMPLATES = SAME_FRAME | OTHERS


class Template:
    """Renders, and counts how often."""

    def __init__(self, source: str) -> None:
        environment = jinja2.Environment()
        environment.globals["raise_exception"] = refuse
        self._template = environment.from_string(source)
        self.count = 0

    def __call__(self, messages: Sequence[Message], *, add_generation_prompt: bool = False) -> str:
        self.count += 1
        chat = [{"role": role, "content": content} for role, content in messages]
        return self._template.render(messages=chat, add_generation_prompt=add_generation_prompt)


def refuse(message: str) -> None:
    raise SampleError(message)


def by_definition(render: Template, messages: Sequence[Message]) -> list[Span]:
    text = render(messages)
    found = []
    for index, (role, _) in enumerate(messages):
        if role == "assistant":
            before = render(messages[:index], add_generation_prompt=True)
            after = render(messages[: index + 1])
            if not (after.startswith(before) and text.startswith(after)):
                raise SampleError("other text")
            found.append((len(before), len(after)))
    return found


def outcome(find: Callable[..., Iterable[object]], *given: object) -> list[object] | str:
    try:
        return list(find(*given))
    except SampleError:
        return "refused"


RENDER = {name: Template(source) for name, source in TEMPLATES.items()}
FINDER = {name: AnswerFinder(render) for name, render in RENDER.items()}
TEXT = st.text(alphabet="ab !\n<|end>é\x02\x030", max_size=8)


@given(
    name=st.sampled_from(sorted(TEMPLATES)),
    turns=st.lists(st.tuples(TEXT, TEXT), min_size=1, max_size=4),
    system=st.one_of(st.none(), TEXT),
)
@example(name="drops thoughts", turns=[("a", "b!c"), ("d", "e")], system=None)
@example(name="chatml", turns=[("a", "\x020\x03"), ("\x021\x03", "e")], system=None)
@example(name="white space goes", turns=[(" a ", " b\n"), ("", "")], system=" ")
def test_answers_are_where_the_definition_says(
    name: str, turns: list[tuple[str, str]], system: str | None
) -> None:
    messages: list[Message] = [] if system is None else [("system", system)]
    for question, answer in turns:
        messages += [("user", question), ("assistant", answer)]
    render = RENDER[name]
    expected = outcome(by_definition, render, messages)
    if expected == "refused" and outcome(render, messages) == "refused":
        return
    assert outcome(FINDER[name].find, messages, render(messages)) == expected


def looked_for(name: str, messages: Sequence[Message]) -> tuple[list[object] | str, int]:
    """What is found in a rendered conversation, and how often it is rendered for that."""
    render = RENDER[name]
    text = render(messages)
    before = render.count
    return outcome(FINDER[name].find, messages, text), render.count - before


@pytest.mark.parametrize("name", SAME_FRAME)
def test_most_templates_are_rendered_once_more_however_many_the_turns(name: str) -> None:
    found, renderings = looked_for(name, [("user", "what ?"), ("assistant", "that .")] * 20)
    assert len(found) == 20
    assert renderings == 1


@pytest.mark.parametrize("name", OTHERS)
def test_other_templates_are_rendered_for_every_answer(name: str) -> None:
    _, renderings = looked_for(name, [("user", "what ?"), ("assistant", "that !so .")] * 3)
    assert renderings > 1


def test_turns_that_are_shown_as_examples_do_not_count() -> None:
    messages = [("user", "a"), ("example-answer", "b"), ("user", "c"), ("assistant", "d")]
    text = RENDER["chatml"](messages)
    ((start, end),) = FINDER["chatml"].find(messages, text)
    assert text[start:end] == "d<|end|>\n"
