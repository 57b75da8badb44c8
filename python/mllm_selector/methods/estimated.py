"""What can be chosen by where only some samples were scored: the others have the mean of their cluster."""

from __future__ import annotations

from collections.abc import Collection
from typing import Any

from mllm_selector.config import PickOptions
from mllm_selector.errors import UsageError
from mllm_selector.methods.base import Method

__all__ = ["check_readings", "check_reads_none"]

_WHY = "only some samples of each cluster were scored (--scored-per-cluster)"
_ELSE = "or score every sample in another --run-dir"
_BY_NECESSITY = ("top", "weighted", "middle")


def check_reads_none(method: Method, parameters: Any, of_stage: Collection[str]) -> None:
    """Refuse a method that compares single samples by a column of the score stage.

    Raises
    ------
    UsageError
        If it does. Columns that may have gaps, such as those that the method averages itself, are no
        obstacle.
    """
    for need in method.needs(parameters):
        if need.gaps or need.column not in of_stage:
            continue
        msg = (
            f"--method {method.name}: it compares samples by their {need.column}, and {_WHY}; take "
            "grouped, which takes the mean of each cluster, a method that reads no scores, such as "
            f"k-center or semdedup, {_ELSE}"
        )
        raise UsageError(msg)


def check_readings(options: PickOptions) -> None:
    """Refuse options of grouped sampling that compare single samples by their necessity.

    Raises
    ------
    UsageError
        If one is given.
    """
    for given, because, advice in (
        (
            f"--within {options.within}" if options.within in _BY_NECESSITY else "",
            "it chooses inside a cluster by necessity",
            "take --within uniform, k-center or facility-location",
        ),
        (
            "--groups necessity" if options.groups == "necessity" else "",
            "strata need the necessity of each sample",
            "take --groups cluster or source",
        ),
        (
            "--smooth" if options.smooth is not None else "",
            "it averages the necessity of neighbours",
            "leave it out: the mean of a cluster is smooth",
        ),
        ("--trim" if options.trim else "", "it leaves out the highest necessity", "leave it out"),
        (
            "--group-count" if options.group_count and _takes_clusters(options) else "",
            "its clusters are the groups",
            "leave it out; score --cluster-count decides their number",
        ),
    ):
        if given:
            msg = f"{given}: {because}, and {_WHY}; {advice}, {_ELSE}"
            raise UsageError(msg)


def _takes_clusters(options: PickOptions) -> bool:
    return options.method == "grouped" and options.groups == "cluster"
