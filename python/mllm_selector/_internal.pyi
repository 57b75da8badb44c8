"""Types of the Rust extension module."""

from collections.abc import Callable
from os import PathLike
from typing import Any

import numpy as np
from numpy.typing import NDArray

def hash_file(path: str | PathLike[str]) -> str: ...
def ingest(
    pool: PathLike[str],
    pool_format: str,
    out: PathLike[str],
    rejected: PathLike[str],
    *,
    images: PathLike[str] | None = None,
    source: str | None = None,
    threads: int | None = None,
    progress: Callable[[int, int], None] | None = None,
) -> dict[str, Any]: ...
def write_subset(
    pool: PathLike[str],
    rows: NDArray[np.uint64],
    input_file: PathLike[str],
    out: PathLike[str],
    *,
    progress: Callable[[int, int], None] | None = None,
) -> None: ...
