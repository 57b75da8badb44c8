"""Selection methods: one file each, in a registry.

A method decides which samples to choose, given what the score stage left and the columns of scores that the
user joined. `pick` and the pick stage ask this module and never name a method. Another package adds one by
an entry point of the group ``mllm_selector.methods`` that names a `Method`.
"""

from __future__ import annotations

import difflib
import textwrap
from collections.abc import Collection, Mapping
from dataclasses import MISSING, fields
from functools import cache
from importlib.metadata import entry_points
from typing import Any

from mllm_selector.config import PickOptions, cli_name
from mllm_selector.errors import UsageError
from mllm_selector.methods import (
    coincide,
    d3,
    deita,
    grouped,
    k_center,
    middle,
    miwv,
    mmssr,
    presel,
    random,
    self_filter,
    semdedup,
    stratified,
    top,
    visnec,
    weighted_k_center,
)
from mllm_selector.methods.base import Method, Need, Parameters, Samples, Task, read_parameters
from mllm_selector.methods.estimated import check_readings, check_reads_none
from mllm_selector.methods.limited import choose_limited
from mllm_selector.progress import Progress
from mllm_selector.samples import Choice, Scored

__all__ = [
    "ENTRY_POINTS",
    "Method",
    "Need",
    "Parameters",
    "Samples",
    "Task",
    "check_estimated",
    "choose",
    "columns",
    "described",
    "known",
    "prepare",
    "sentence",
]

ENTRY_POINTS = "mllm_selector.methods"
"""Group of the entry points that add methods."""

NAME_WIDTH = 18

_OWN = [
    module.METHOD
    for module in (
        grouped,
        random,
        stratified,
        top,
        middle,
        k_center,
        weighted_k_center,
        d3,
        miwv,
        mmssr,
        visnec,
        coincide,
        deita,
        self_filter,
        presel,
        semdedup,
    )
]


@cache
def known() -> dict[str, Method]:
    """Return the methods by name, our own first.

    Raises
    ------
    UsageError
        If a method of another package cannot be loaded, or has the name of another method.
    """
    found = {method.name: method for method in _OWN}
    for point in entry_points(group=ENTRY_POINTS):
        shown = f"the method '{point.name}' ({point.value})"
        try:
            method = point.load()
        except Exception as error:  # whatever the other package does wrong
            msg = f"{shown} cannot be loaded: {error!r}; mend or uninstall it"
            raise UsageError(msg) from error
        if not isinstance(method, Method) or (method.choose is None) == (method.whole is None):
            msg = (
                f"{shown} is no mllm_selector.methods.Method with either choose or whole; mend or "
                "uninstall it"
            )
            raise UsageError(msg)
        if method.name in found:
            msg = (
                f"{shown} has the name '{method.name}', which another has; uninstall the package that adds it"
            )
            raise UsageError(msg)
        found[method.name] = method
    return found


def prepare(options: PickOptions) -> tuple[Method, Any]:
    """Return the method asked for and its parameters, checked before anything is computed.

    Raises
    ------
    UsageError
        If there is no such method, a parameter cannot work, or an option is given that it does not use.
    """
    methods = known()
    if options.method not in methods:
        near = difflib.get_close_matches(options.method, methods, n=1)
        hint = f"did you mean {near[0]}? " if near else ""
        msg = f"--method: '{options.method}' is not a method; {hint}known are {', '.join(methods)}"
        raise UsageError(msg)
    method = methods[options.method]
    for field in fields(options):
        is_special = field.metadata["of_method"] and field.name not in method.uses
        if is_special and getattr(options, field.name) != field.default:
            users = ", ".join(each.name for each in methods.values() if field.name in each.uses)
            msg = f"{cli_name(field.name)}: the method {method.name} does not use it; it is for {users}"
            raise UsageError(msg)
    return method, read_parameters(method, options.param.values if options.param else {})


def columns(options: PickOptions) -> list[Need]:
    """List the columns of scores that the method asked for reads, necessity apart."""
    method, parameters = prepare(options)
    return [need for need in method.needs(parameters) if need.column != "necessity"]


def check_estimated(options: PickOptions, of_stage: Collection[str]) -> None:
    """Refuse what needs the scores of single samples, for a pool of which only some were scored.

    Parameters
    ----------
    options : PickOptions
        The options.
    of_stage : collection of str
        The columns that the score stage makes. Others, joined from files, have a value for every sample.

    Raises
    ------
    UsageError
        If the method, or one of its options, needs them.
    """
    method, parameters = prepare(options)
    check_reads_none(method, parameters, of_stage)
    check_readings(options)


def choose(scored: Scored, options: PickOptions, progress: Progress) -> Choice:
    """Choose exactly the budget by the method that the options name.

    Raises
    ------
    UsageError
        If that cannot be: the message says why.
    """
    method, parameters = prepare(options)
    if method.whole is not None:
        return method.whole(scored, options, parameters, progress)
    return choose_limited(method, scored, options, parameters, progress)


def sentence(name: str, given: Mapping[str, Any]) -> str:
    """Say by which method and parameters samples were chosen, for the report.

    A method of a package that is no longer installed is named all the same.
    """
    method = known().get(name)
    values = dict(given) if method is None else read_parameters(method, given).as_json()
    about = "" if method is None else f": {method.about}"
    shown = ", ".join(f"{key} {_plain(value)}" for key, value in values.items() if value not in (None, []))
    return f"Samples were chosen by the method {name}{about}." + (f" Parameters: {shown}." if shown else "")


def _plain(value: Any) -> str:
    return ", ".join(value) if isinstance(value, list) else str(value)


def described() -> str:
    """List the methods and their parameters, for ``--help``."""
    lines = []
    for method in known().values():
        lines.append(_filled(f"{method.name:<{NAME_WIDTH}}{method.about}", NAME_WIDTH, 0))
        for field in fields(method.parameters):
            default = ",".join(field.default) if isinstance(field.default, tuple) else field.default
            told = f"{field.name}: {field.metadata['help']}"
            if field.default is MISSING:
                told += " Required."
            elif default not in (None, ""):
                told += f" Default {default}."
            lines.append(_filled(told, NAME_WIDTH + 4, NAME_WIDTH + 2))
    return "\n".join(lines)


def _filled(text: str, indent: int, first: int) -> str:
    return textwrap.fill(text, 76, initial_indent=" " * first, subsequent_indent=" " * indent)
