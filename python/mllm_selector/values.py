"""Values that options take: amounts, limits, columns, settings and files, from text or Python."""

from __future__ import annotations

import typing
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path
from typing import Any, Self

from mllm_selector.errors import UsageError

__all__ = ["Amount", "AutoCount", "Columns", "Files", "Limits", "Settings", "Shard"]


@dataclass(frozen=True)
class Amount:
    """A number of samples, given as a count or as a share of something larger, such as the pool.

    Examples
    --------
    >>> Amount.parse("10%").of(20_003)
    2000
    >>> Amount.parse(500).of(20_003)
    500
    """

    value: Fraction
    is_share: bool

    @classmethod
    def parse(
        cls, given: str | int | float | Amount, name: str = "budget", *, whole: str = "pool", least: int = 1
    ) -> Self:
        """Read a count (``500``) or a share (``"10%"``, ``0.1``).

        Parameters
        ----------
        given : str, int, float or Amount
            Whole numbers from 1 up are counts; percentages and numbers below 1 are shares.
        name : str
            The option's name, for the error message.
        whole : str
            What a share is of, for the error message.
        least : {0, 1}
            The smallest count allowed.

        Raises
        ------
        UsageError
            If it is neither, or below the least, or a share above 100 %.
        """
        if isinstance(given, Amount):
            return cls(given.value, given.is_share)
        text = str(given).strip().replace("_", "")
        percent = text.endswith("%")
        try:
            value = Fraction(text.removesuffix("%").strip())
        except (ValueError, ZeroDivisionError):
            msg = f"{name}: {given!r} is neither a count such as 5000 nor a share such as 10% or 0.1"
            raise UsageError(msg) from None
        if percent:
            value /= 100
        is_share = percent or 0 < value < 1
        if value < 0 or (value == 0 and least):
            what = "selects nothing" if least else "is below 0"
            msg = f"{name}: {given} {what}; give a count of at least {least} or a share above 0%"
            raise UsageError(msg)
        if is_share and value > 1:
            msg = f"{name}: {given} is more than the whole {whole}; a share is at most 100%"
            raise UsageError(msg)
        if not is_share and value.denominator != 1:
            msg = f"{name}: {given} is not a whole number of samples; write a share as 10% or 0.1"
            raise UsageError(msg)
        return cls(value, is_share)

    def of(self, total: int) -> int:
        """Return the number of samples out of `total`, shares rounded half up to at least one."""
        if not self.is_share:
            return int(self.value)
        return max(1, int(self.exactly_of(total) + Fraction(1, 2)))

    def exactly_of(self, total: int) -> Fraction:
        """Return the number of samples out of `total` before any rounding."""
        return self.value * total if self.is_share else self.value

    def __str__(self) -> str:
        return f"{float(self.value * 100):.15g}%" if self.is_share else str(int(self.value))


@dataclass(frozen=True)
class AutoCount:
    """A whole number from 1 up, or ``auto``: found by the program.

    Examples
    --------
    >>> AutoCount.parse("4096").value, AutoCount.parse("auto").value
    (4096, None)
    """

    value: int | None = None

    @classmethod
    def parse(cls, given: str | int | AutoCount, name: str = "count") -> Self:
        """Read a number or ``auto``.

        Raises
        ------
        UsageError
            If it is neither, or below 1.
        """
        if isinstance(given, AutoCount):
            return cls(given.value)
        text = str(given).strip().replace("_", "")
        if text == "auto":
            return cls(None)
        if not text.isdecimal():
            msg = f"{name}: {given!r} is neither a whole number nor auto"
            raise UsageError(msg)
        if int(text) < 1:
            msg = f"{name}: {given} is too small; give at least 1, or auto"
            raise UsageError(msg)
        return cls(int(text))

    def __str__(self) -> str:
        return "auto" if self.value is None else str(self.value)


@dataclass(frozen=True)
class Shard:
    """One of several processes that share work: the `number`-th, from 1, of `count`.

    Examples
    --------
    >>> Shard.parse("2/8").takes(9), Shard.parse("2/8").takes(2)
    (True, False)
    """

    number: int
    count: int

    @classmethod
    def parse(cls, given: str | Shard, name: str = "shard") -> Self:
        """Read ``I/N``.

        Raises
        ------
        UsageError
            If it is not that, or the number is not between 1 and the count.
        """
        if isinstance(given, Shard):
            return cls(given.number, given.count)
        number, slash, count = given.partition("/")
        if not (slash and number.isdecimal() and count.isdecimal()):
            msg = f"{name}: {given!r} is not a number and a count such as 2/8"
            raise UsageError(msg)
        if not 1 <= int(number) <= int(count):
            msg = f"{name}: {given} is none of 1/{count} to {count}/{count}"
            raise UsageError(msg)
        return cls(int(number), int(count))

    def takes(self, index: int) -> bool:
        """Say whether a piece of work, counted from 0, is this process's."""
        return index % self.count == self.number - 1

    def __str__(self) -> str:
        return f"{self.number}/{self.count}"


@dataclass(frozen=True)
class Limits:
    """Amounts of the budget by the name of a source; ``*`` stands for every source that is not named.

    Examples
    --------
    >>> limits = Limits.parse({"ocr": "10%", "*": 500})
    >>> str(limits.of("ocr")), str(limits.of("chat"))
    ('10%', '500')
    """

    amounts: Mapping[str, Amount]

    @classmethod
    def parse(
        cls,
        given: Mapping[Any, str | int | float | Amount] | Iterable[str] | Limits,
        name: str = "limits",
    ) -> Self:
        """Read a mapping, or texts such as ``ocr=500`` and ``*=10%``.

        Parameters
        ----------
        given : mapping or iterable of str
            Amounts by name. A text is cut at its last ``=``.
        name : str
            The option's name, for the error message.

        Raises
        ------
        UsageError
            If a text has no ``=``, a name comes twice, or a value is neither a count nor a share.
        """
        if isinstance(given, Limits):
            return cls(given.amounts)
        pairs = given.items() if isinstance(given, Mapping) else [_pair(text, name) for text in given]
        amounts: dict[str, Amount] = {}
        for source, amount in pairs:
            if str(source) in amounts:
                msg = f"{name}: {source} is given twice; give each name once"
                raise UsageError(msg)
            amounts[str(source)] = Amount.parse(amount, f"{name} {source}", whole="budget", least=0)
        return cls(amounts)

    def of(self, source: str) -> Amount | None:
        """Return the amount of a source, or None if it has none."""
        return self.amounts.get(source, self.amounts.get("*"))


def _pair(text: object, name: str) -> tuple[str, str]:
    source, equals, amount = str(text).rpartition("=")
    if not equals:
        msg = f"{name}: {text!r} is not of the form NAME=N or NAME=P%, such as ocr=500 or '*=10%'"
        raise UsageError(msg)
    return source.strip(), amount


@dataclass(frozen=True)
class Columns:
    """Names of columns that are not the usual ones.

    Examples
    --------
    >>> Columns.parse("messages=dialogue,images=pics").names["images"]
    'pics'
    """

    names: Mapping[str, str]

    KINDS: typing.ClassVar = ("messages", "images", "id", "source", "system", "role", "content")

    @classmethod
    def parse(cls, given: Mapping[Any, Any] | Iterable[str] | Columns, name: str = "columns") -> Self:
        """Read a mapping, or texts such as ``messages=dialogue,images=pics``.

        Raises
        ------
        UsageError
            If a text has no ``=``, or a column is of no known kind or comes twice.
        """
        if isinstance(given, Columns):
            return cls(given.names)
        texts = [given] if isinstance(given, str) else given
        pairs = (
            [(str(kind), str(column)) for kind, column in given.items()]
            if isinstance(given, Mapping)
            else [_column(pair, name) for text in texts for pair in str(text).split(",")]
        )
        names = dict(pairs)
        for kind in names:
            if kind not in cls.KINDS or len(names) < len(pairs):
                what = "is given twice" if kind in cls.KINDS else f"is not one of {', '.join(cls.KINDS)}"
                msg = f"{name}: {kind!r} {what}; write it as messages=COLUMN,images=COLUMN"
                raise UsageError(msg)
        return cls(names)


def _column(text: str, name: str) -> tuple[str, str]:
    kind, equals, column = text.partition("=")
    if not equals or not column:
        msg = f"{name}: {text!r} is not of the form KIND=COLUMN, such as messages=dialogue"
        raise UsageError(msg)
    return kind.strip(), column.strip()


@dataclass(frozen=True)
class Settings:
    """Values by name, such as the parameters of a method; what they mean is known to whoever asks for them.

    Examples
    --------
    >>> Settings.parse(["temperature=0.2"]).values["temperature"]
    '0.2'
    """

    values: Mapping[str, Any]

    @classmethod
    def parse(cls, given: Mapping[Any, Any] | Iterable[str] | Settings, name: str = "param") -> Self:
        """Read a mapping, or texts such as ``temperature=0.2``; a text is cut at its first ``=``.

        Raises
        ------
        UsageError
            If a text has no ``=``, or a name comes twice.
        """
        if isinstance(given, Settings):
            return cls(given.values)
        if isinstance(given, Mapping):
            return cls({str(key).replace("-", "_"): value for key, value in given.items()})
        values: dict[str, Any] = {}
        for text in given:
            key, equals, value = str(text).partition("=")
            key = key.strip().replace("-", "_")
            if not equals or not key or key in values:
                what = "is given twice" if key in values else "is not of the form NAME=VALUE"
                msg = f"{name}: {text!r} {what}; write it as temperature=0.2, each name once"
                raise UsageError(msg)
            values[key] = value.strip()
        return cls(values)


@dataclass(frozen=True)
class Files:
    """Paths of files.

    Examples
    --------
    >>> [str(path) for path in Files.parse(["judge.parquet", "quality.csv"]).paths]
    ['judge.parquet', 'quality.csv']
    """

    paths: tuple[Path, ...]

    @classmethod
    def parse(cls, given: str | Path | Iterable[str | Path] | Files, name: str = "files") -> Self:
        """Read a path or several.

        Raises
        ------
        UsageError
            If a path comes twice.
        """
        if isinstance(given, Files):
            return cls(given.paths)
        paths = tuple(map(Path, [given] if isinstance(given, str | Path) else given))
        for index, path in enumerate(paths):
            if path in paths[:index]:
                msg = f"{name}: {path} is given twice; name it once"
                raise UsageError(msg)
        return cls(paths)
