"""Types of the Rust extension module."""

from collections.abc import Callable, Sequence
from os import PathLike
from typing import Any, BinaryIO, Self, TypeAlias, final

import numpy as np
from numpy.typing import NDArray

# id, source, messages, images (path, bytes, offset and length), index of the input file.
__all__ = [
    "PoolColumns",
    "PoolFile",
    "allocate",
    "check_limits",
    "compression_suffix",
    "coverage",
    "facility_location",
    "facility_location_on",
    "flat_map",
    "greedy_mmd",
    "grouped_sample",
    "hash_file",
    "ingest",
    "join_parts",
    "k_center",
    "kernel_sums",
    "kmeans",
    "near_duplicates",
    "near_duplicates_by_pairs",
    "near_rows",
    "nearest_neighbours",
    "penalised",
    "random_groups",
    "read_part",
    "recognise",
    "redundancy",
    "resample",
    "strata",
    "typicality",
    "write_subset",
]

_PoolRow: TypeAlias = tuple[
    str,
    str,
    tuple[tuple[str, str], ...],
    tuple[tuple[str | None, bytes | None, tuple[int, int] | None], ...],
    int,
]

@final
class PoolFile:
    def __new__(cls, path: PathLike[str]) -> Self: ...
    def __len__(self) -> int: ...
    def metadata(self, key: str) -> str | None: ...
    def row(self, row: int) -> _PoolRow: ...
    def rows(self, rows: NDArray[np.uint64]) -> list[_PoolRow]: ...
    def ids(self, rows: NDArray[np.uint64]) -> list[str]: ...
    def select(self, columns: Sequence[str] | None = None) -> PoolColumns: ...

@final
class PoolColumns:
    def __arrow_c_stream__(self, requested_schema: object = None) -> object: ...

def hash_file(path: str | PathLike[str]) -> str: ...
def recognise(paths: Sequence[PathLike[str]]) -> str | None: ...
def compression_suffix(paths: Sequence[PathLike[str]]) -> str: ...
def ingest(
    inputs: list[tuple[PathLike[str], str | None]],
    pool_format: str,
    out: PathLike[str],
    rejected: PathLike[str],
    *,
    images: PathLike[str] | None = None,
    store: object | None = None,
    check_images: str = "header",
    max_image_pixels: int = 89_478_485,
    source: str | None = None,
    columns: dict[str, str] | None = None,
    turns_alternate: bool = True,
    inserts_marks: bool | None = None,
    renames_duplicates: bool = True,
    strict: bool = False,
    threads: int | None = None,
    progress: Callable[[int, int], None] | None = None,
    rows: Callable[[PathLike[str]], tuple[object, int, tuple[int, int]]] | None = None,
    hashed: Callable[[str, list[str]], object] | None = None,
) -> dict[str, Any]: ...
def read_part(
    entry: tuple[PathLike[str], str | None],
    pool_format: str,
    out: BinaryIO,
    *,
    images: PathLike[str] | None = None,
    store: object | None = None,
    check_images: str = "header",
    max_image_pixels: int = 89_478_485,
    source: str | None = None,
    columns: dict[str, str] | None = None,
    turns_alternate: bool = True,
    inserts_marks: bool | None = None,
    strict: bool = False,
    threads: int | None = None,
    rows: Callable[[PathLike[str]], tuple[object, int, tuple[int, int]]] | None = None,
) -> None: ...
def join_parts(
    inputs: list[tuple[PathLike[str], str | None]],
    pool_format: str,
    parts: Sequence[PathLike[str]],
    out: PathLike[str],
    rejected: PathLike[str],
    *,
    renames_duplicates: bool = True,
    strict: bool = False,
    threads: int | None = None,
    progress: Callable[[int, int], None] | None = None,
    hashed: Callable[[str, list[str]], object] | None = None,
) -> dict[str, Any]: ...
def write_subset(
    pool: PathLike[str],
    rows: NDArray[np.uint64],
    inputs: Sequence[PathLike[str]],
    out: PathLike[str],
    *,
    progress: Callable[[int, int], None] | None = None,
) -> None: ...
def kmeans(
    embeddings: list[NDArray[Any]],
    index: NDArray[np.int64] | None,
    *,
    k: int,
    metric: str,
    seed: int,
    max_iterations: int,
    tolerance: float,
    train_rows: int | None,
    threads: int | None,
    progress: Callable[[int, int], object] | None,
) -> tuple[NDArray[np.float32], NDArray[np.uint32], float, int]: ...
def k_center(
    embeddings: list[NDArray[Any]],
    *,
    k: int,
    metric: str,
    first: NDArray[np.int64] | None,
    weights: NDArray[np.float32] | None,
    threads: int | None,
    progress: Callable[[int, int], object] | None,
    index: NDArray[np.int64] | None = None,
) -> tuple[NDArray[np.int64], NDArray[np.float32]]: ...
def near_duplicates(
    embeddings: list[NDArray[Any]],
    *,
    threshold: float,
    priority: NDArray[np.int64] | None,
    threads: int | None,
    progress: Callable[[int, int], object] | None,
) -> NDArray[np.int64]: ...
def near_duplicates_by_pairs(
    embeddings: list[NDArray[Any]],
    *,
    threshold: float,
    priority: NDArray[np.int64] | None,
    probes: int | None,
    threads: int | None,
    progress: Callable[[int, int], object] | None,
) -> tuple[NDArray[np.int64], NDArray[np.int64]]: ...
def nearest_neighbours(
    embeddings: list[NDArray[Any]],
    *,
    k: int,
    probes: int | None,
    threads: int | None,
    progress: Callable[[int, int], object] | None,
    index: NDArray[np.int64] | None = None,
) -> tuple[NDArray[np.uint32], NDArray[np.float32], float | None]: ...
def facility_location(
    embeddings: list[NDArray[Any]],
    *,
    k: int,
    neighbours: int,
    probes: int | None,
    weights: NDArray[np.float32] | None,
    threads: int | None,
    progress: Callable[[int, int], object] | None,
) -> tuple[NDArray[np.int64], NDArray[np.float64]]: ...
def facility_location_on(
    rows: NDArray[np.uint32],
    cosines: NDArray[np.float32],
    *,
    k: int,
    weights: NDArray[np.float32] | None,
    threads: int | None,
    progress: Callable[[int, int], object] | None,
) -> tuple[NDArray[np.int64], NDArray[np.float64]]: ...
def strata(necessity: NDArray[np.float32], count: int) -> NDArray[np.uint32]: ...
def random_groups(size: int, count: int, seed: int) -> NDArray[np.uint32]: ...
def check_limits(
    budget: int,
    limits: list[tuple[str, int, int]],
    available: list[int],
    taken: list[int] | None = None,
) -> None: ...
def grouped_sample(
    necessity: NDArray[np.float32],
    groups: NDArray[np.uint32],
    included: NDArray[np.int64],
    embeddings: list[NDArray[Any]] | None,
    index: NDArray[np.int64] | None,
    *,
    sources: NDArray[np.uint32] | None,
    limits: list[tuple[str, int, int]],
    budget: int,
    share: str,
    within: str,
    trim: float,
    skip_duplicates: float | None,
    seed: int,
    threads: int | None,
    progress: Callable[[int, int], object] | None,
) -> NDArray[np.int64]: ...
def allocate(budget: int, claims: list[tuple[float, int, int, int]]) -> list[int]: ...
def kernel_sums(
    embeddings: list[NDArray[Any]],
    index: NDArray[np.int64] | None,
    groups: NDArray[np.uint32],
    *,
    bandwidth: float,
    threads: int | None,
    progress: Callable[[int, int], object] | None,
) -> NDArray[np.float64]: ...
def greedy_mmd(
    embeddings: list[NDArray[Any]],
    index: NDArray[np.int64] | None,
    groups: NDArray[np.uint32],
    *,
    sums: NDArray[np.float64],
    is_open: NDArray[np.bool_],
    taken: NDArray[np.int64],
    quotas: NDArray[np.int64],
    bandwidth: float,
    threads: int | None,
    progress: Callable[[int, int], object] | None,
) -> NDArray[np.int64]: ...
def typicality(
    embeddings: list[NDArray[Any]],
    index: NDArray[np.int64] | None,
    groups: NDArray[np.uint32],
    *,
    count: int,
    threads: int | None,
    progress: Callable[[int, int], object] | None,
) -> NDArray[np.float64]: ...
def redundancy(
    embeddings: list[NDArray[Any]],
    index: NDArray[np.int64] | None,
    groups: NDArray[np.uint32],
    *,
    threads: int | None,
    progress: Callable[[int, int], object] | None,
) -> NDArray[np.float64]: ...
def resample(pixels: NDArray[np.uint8], out: NDArray[np.uint8], interpolation: str) -> None: ...
def penalised(
    embeddings: list[NDArray[Any]],
    index: NDArray[np.int64] | None,
    difficulty: NDArray[np.float64],
    *,
    k: int,
    first: NDArray[np.int64],
    neighbours: int,
    gamma: float,
    threads: int | None,
    progress: Callable[[int, int], object] | None,
) -> NDArray[np.int64]: ...
def flat_map(
    embeddings: list[NDArray[Any]],
    index: NDArray[np.int64] | None,
    *,
    sample: NDArray[np.int64],
    progress: Callable[[int, int], object] | None,
) -> NDArray[np.float32]: ...
def coverage(
    embeddings: list[NDArray[Any]],
    *,
    reference: NDArray[np.int64],
    centres: NDArray[np.int64],
    counts: NDArray[np.int64],
    progress: Callable[[int, int], object] | None,
) -> NDArray[np.float32]: ...
def near_rows(
    embeddings: list[NDArray[Any]],
    index: NDArray[np.int64] | None,
    *,
    queries: NDArray[np.int64],
    threshold: float,
    keep: int,
    progress: Callable[[int, int], object] | None,
) -> tuple[NDArray[np.int64], list[tuple[NDArray[np.int64], NDArray[np.float32]]]]: ...
