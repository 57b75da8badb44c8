"""The data sets: .npy files, made once into a work folder in bounded memory, and memory-mapped.

A data set is one sequence of rows: its first n rows are the same whatever number was made. The values are
those of float16 in either type, so that float16 and float32 must lead to the same choices; only a user's
float32 file is rounded.
"""

from __future__ import annotations

import os
import zlib
from collections.abc import Callable
from pathlib import Path

import numpy as np
from numpy.lib.format import open_memmap

BLOCK = 65_536

Blocks = Callable[[np.random.Generator, int], np.ndarray]
"""Draws so many float32 rows."""


def unit(X):
    """Rows scaled to length 1, in float32."""
    X = np.asarray(X, np.float32)
    return X / np.linalg.norm(X, axis=1, keepdims=True)


def clustered(columns: int, clusters: int = 2_000, topics: int = 50, dimensions: int = 32) -> Blocks:
    """Gaussian clusters of Zipf sizes around topics; each spreads in a low-dimensional subspace of its own.

    The variances of the common mean, the topics, the clusters and the spread inside are such that the cosines
    of random pairs (5, 50, 95 %: .08, .19, .31) and of nearest neighbours among 100,000 (.79, .92, .999) are
    about those of sentence embeddings.
    """
    rng = np.random.default_rng(0)
    means = 0.40**0.5 * unit(rng.normal(size=(clusters, columns)))
    means += 0.16**0.5 * unit(rng.normal(size=(topics, columns)))[rng.integers(topics, size=clusters)]
    means += 0.20**0.5 * unit(rng.normal(size=(1, columns)))
    spread = 0.24**0.5 * np.exp(0.35 * rng.normal(size=clusters))
    spectrum = np.arange(1, dimensions + 1) ** -0.5
    spectrum /= np.linalg.norm(spectrum) * np.sqrt(columns)
    bases = rng.standard_normal((clusters, dimensions, columns), np.float32)
    bases *= (spread[:, None] * spectrum)[:, :, None].astype(np.float32)
    shares = 1 / np.arange(1, clusters + 1)
    shares /= shares.sum()

    def draw(rng, rows):
        labels = rng.choice(clusters, size=rows, p=shares)
        X = means[labels]
        places = rng.standard_normal((rows, dimensions), np.float32)
        order = np.argsort(labels, kind="stable")
        ends = np.cumsum(np.bincount(labels, minlength=clusters))
        for cluster, members in enumerate(np.split(order, ends[:-1])):
            X[members] += places[members] @ bases[cluster]
        return X

    return draw


def uniform(columns: int) -> Blocks:
    """Rows uniform on the sphere: no structure to make use of."""
    return lambda rng, rows: rng.standard_normal((rows, columns), np.float32)


KINDS: dict[str, tuple[Callable[[int], Blocks], float]] = {
    "clusters": (clustered, 0.1),
    "uniform": (uniform, 0.0),
}
"""Name, its rows, and the share of them that are near-duplicates of earlier rows."""


def prepare(name: str, rows: int, columns: int, dtype: str, work: Path) -> Path:
    """Return the .npy file of a data set, given by name or as a user's .npy file; make it if need be."""
    if name in KINDS:
        source = work / f"{name}-{columns}-float16.npy"
        if available(source) < rows:
            make(name, rows, columns, source)
    else:
        source = Path(name)
        if available(source) < rows:
            raise SystemExit(f"{source} has {available(source)} rows, not {rows}: lower --rows")
    if np.load(source, mmap_mode="r").dtype == dtype:
        return source
    place = zlib.crc32(bytes(source.resolve()))  # so that files of one name do not mix
    target = work / f"{source.stem}-{place:08x}-{dtype}.npy"
    if available(target) < rows or target.stat().st_mtime < source.stat().st_mtime:
        convert(source, rows, dtype, target)
    return target


def available(path: Path) -> int:
    """Rows of a .npy file, 0 if there is none."""
    return len(np.load(path, mmap_mode="r")) if path.exists() else 0


def make(name: str, rows: int, columns: int, path: Path) -> None:
    """Write a data set block by block. The generator of a block depends on its number alone."""
    kind, duplicates = KINDS[name]
    draw = kind(columns)
    path.parent.mkdir(parents=True, exist_ok=True)
    part = path.with_suffix(".part")
    X = open_memmap(part, "w+", np.float16, (rows, columns))
    for first in range(0, rows, BLOCK):
        rng = np.random.default_rng([1, first // BLOCK])
        X[first : first + BLOCK] = unit(draw(rng, BLOCK))[: rows - first]
        copies = first + np.flatnonzero(rng.random(BLOCK) < duplicates)
        originals = (rng.random(len(copies)) * copies).astype(np.int64)
        noise = rng.standard_normal((len(copies), columns), np.float32)
        copies = copies[copies < rows]
        originals, noise = originals[: len(copies)], noise[: len(copies)]
        X[copies] = unit(X[originals] + np.float32(0.045 / np.sqrt(columns)) * noise)
    X.flush()
    part.replace(path)


def convert(source: Path, rows: int, dtype: str, target: Path) -> None:
    """Write the first rows in another type, block by block."""
    X = np.load(source, mmap_mode="r")
    target.parent.mkdir(parents=True, exist_ok=True)
    part = target.with_suffix(".part")
    out = open_memmap(part, "w+", np.dtype(dtype), (rows, X.shape[1]))
    for first in range(0, rows, BLOCK):
        out[first : first + BLOCK] = X[first : min(first + BLOCK, rows)]
    out.flush()
    part.replace(target)


def load(path: Path, rows: int, mapped: bool):
    """Read the first rows: as a view of the file, or into memory."""
    X = np.load(path, mmap_mode="r")[:rows]
    return X if mapped else np.array(X)


def read_ahead(path: Path) -> None:
    """Bring a file into the page cache, so that no measurement waits for the disk."""
    with path.open("rb", buffering=0) as file:
        os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_SEQUENTIAL)
        buffer = bytearray(1 << 24)
        while file.readinto(buffer):
            pass


def necessity(rows: int):
    """Scores such as a model's loss has: positive, skewed, and all different."""
    return np.random.default_rng(2).gamma(2.0, size=rows)


def sample(rows: int, count: int):
    """Rows drawn without replacement, ascending."""
    return np.sort(np.random.default_rng(3).choice(rows, size=min(count, rows), replace=False))
