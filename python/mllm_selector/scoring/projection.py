"""Smaller embeddings: a map that is made once, kept in the run directory and applied to every sample."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Self

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from mllm_selector.artifacts import open_arrow, write_arrow
from mllm_selector.config import ScoreOptions
from mllm_selector.engine import Engine
from mllm_selector.errors import MissingPackageError, ScoreError, UsageError
from mllm_selector.families.base import Family
from mllm_selector.locking import locked
from mllm_selector.pool import Pool
from mllm_selector.rundir import RunDirectory
from mllm_selector.scoring.batching import BatchBudget
from mllm_selector.scoring.scorer import ShardScorer, Wanted
from mllm_selector.scoring.shards import encode_inputs, encode_shard

__all__ = ["Projection", "drawn_embeddings", "random_rows", "settle_projection"]

PCA_SAMPLES = 4096
"""Samples that principal components are fitted to, at least (8 for each component)."""


@dataclass(frozen=True)
class Projection:
    """An affine map of embeddings, whose result is L2-normalised again.

    Attributes
    ----------
    directions : ndarray of float32, shape (size, width)
        What an embedding is multiplied with.
    offsets : ndarray of float32, shape (size,)
        What is taken off the products: the map of the mean, 0 for a random matrix.
    """

    directions: NDArray[np.float32]
    offsets: NDArray[np.float32]

    @classmethod
    def random(cls, size: int, width: int, seed: int) -> Self:
        """Draw a random matrix, which keeps distances (Johnson-Lindenstrauss lemma).

        Elements are +1 or -1 over the root of `size` with equal chance (Achlioptas, Database-friendly random
        projections, J. Comput. Syst. Sci. 66, 2003), each a bit of the counter-based generator Philox, so
        that the matrix is the same everywhere.
        """
        bits = np.unpackbits(_words(seed, -(-size * width // 64)).astype("<u8").view(np.uint8))
        signs = bits[: size * width].reshape(size, width).astype(np.float32) * 2 - 1
        return cls(signs / np.float32(np.sqrt(size)), np.zeros(size, dtype=np.float32))

    @classmethod
    def principal(cls, size: int, embeddings: NDArray[np.float32]) -> Self:
        """Find the directions in which some embeddings vary most (principal component analysis).

        Parameters
        ----------
        size : int
            How many, from the greatest variance down.
        embeddings : ndarray of float32, shape (n, width)
            What they are fitted to. The sign of a direction is such that its largest element is positive.
        """
        try:
            from threadpoolctl import threadpool_limits
        except ImportError as error:
            msg = "--projection pca needs threadpoolctl: pip install 'mllm-selector[cpu]' (or [gpu])"
            raise MissingPackageError(msg) from error
        # With several threads, LAPACK's sums depend on their number.
        with threadpool_limits(1):
            values = embeddings.astype(np.float64)
            mean = values.mean(axis=0)
            centred = values - mean
            vectors = np.linalg.eigh(centred.T @ centred).eigenvectors
            directions = vectors[:, ::-1][:, :size].T
            largest = np.abs(directions).argmax(axis=1)
            directions = directions * np.sign(directions[np.arange(size), largest])[:, np.newaxis]
            offsets = directions @ mean
        return cls(directions.astype(np.float32), offsets.astype(np.float32))

    @classmethod
    def load(cls, path: Path, key: str) -> Self | None:
        """Read one that a run with this key has written; None if there is none."""
        if not path.exists():
            return None
        table = open_arrow(path)
        if table.schema.metadata.get(b"mllm_selector.key") != key.encode():
            return None
        column = table["direction"].combine_chunks()
        directions = column.flatten().to_numpy().reshape(len(table), column.type.list_size)
        return cls(directions, table["offset"].to_numpy())

    def save(self, path: Path, key: str) -> None:
        """Write it as an Arrow file with columns `direction` and `offset`, a row for each direction."""
        width = self.directions.shape[1]
        kind = pa.list_(pa.field("item", pa.float32(), nullable=False), width)
        schema = pa.schema(
            [pa.field("direction", kind), pa.field("offset", pa.float32())],
            metadata={"mllm_selector.key": key},
        )
        directions = pa.FixedSizeListArray.from_arrays(pa.array(self.directions.reshape(-1)), type=kind)
        write_arrow(path, pa.Table.from_arrays([directions, pa.array(self.offsets)], schema=schema))

    def __call__(self, embeddings: NDArray[np.float32]) -> NDArray[np.float32]:
        """Project embeddings, shape (n, width), to unit vectors, shape (n, size)."""
        # Without BLAS, whose sums may depend on the number of threads and of rows.
        products = np.einsum("nw,sw->ns", embeddings, self.directions, optimize=False) - self.offsets
        norms = np.sqrt(np.einsum("ns,ns->n", products, products, optimize=False))
        projected: NDArray[np.float32] = products / np.maximum(norms, np.float32(1e-12))[:, np.newaxis]
        return projected


def settle_projection(
    run: RunDirectory,
    width: int,
    options: ScoreOptions,
    embeddings: Callable[[], NDArray[np.float32]],
) -> Projection | None:
    """Return the projection of a run: the one that it keeps, else one that is made now and kept.

    Parameters
    ----------
    run : RunDirectory
        Its ``projection.arrow`` holds what was made before. A lock beside it lets one process of several make
        it while the others wait.
    width : int
        Numbers of an embedding before.
    options : ScoreOptions
        Size and kind of the projection.
    embeddings : callable
        Gives the embeddings that principal components are fitted to, see `drawn_embeddings`.

    Returns
    -------
    Projection or None
        None if embeddings stay as they are.

    Raises
    ------
    UsageError
        If embeddings are to be projected to more numbers than they have.
    """
    size = options.embedding_size
    if size is None:
        return None
    if size > width:
        msg = f"--embedding-size: {size} is more than the model's {width}"
        raise UsageError(msg)
    key = run.stages["score"].key
    with locked(run.projection.with_name("projection.lock")):
        projection = Projection.load(run.projection, key)
        if projection is None:
            if options.projection == "random":
                projection = Projection.random(size, width, options.seed)
            else:
                projection = Projection.principal(size, embeddings())
            projection.save(run.projection, key)
    return projection


def drawn_embeddings(
    family: Family, pool: Pool, engine: Engine, options: ScoreOptions, budget: BatchBudget
) -> NDArray[np.float32]:
    """Read drawn samples for their embeddings only, enough to fit principal components to.

    Parameters
    ----------
    family, pool, engine, budget
        What scores a sample of the pool.
    options : ScoreOptions
        Seed of the draw, size of the projection, what embeddings are made of.

    Returns
    -------
    ndarray of float32, shape (n, width)

    Raises
    ------
    ScoreError
        If no sample can be scored.
    """
    rows = random_rows(max(PCA_SAMPLES, 8 * (options.embedding_size or 0)), len(pool), options.seed)
    if options.embeds_inputs:
        shard, wanted = encode_inputs(pool, rows, family, options), Wanted(only_inputs=True)
    else:
        shard, wanted = encode_shard(pool, rows, family, options), Wanted(embedding=options.embedding)
    with ShardScorer(family, pool, engine, budget, options.workers, wanted=wanted) as scorer:
        found = scorer.score(scorer.plan(shard), lambda *_: None).embeddings
    if not found:
        msg = f"none of {len(rows)} samples can be scored, so there is nothing to fit --projection pca to"
        raise ScoreError(msg)
    return np.stack([found[row] for row in sorted(found)]).astype(np.float32)


def random_rows(count: int, total: int, seed: int) -> list[int]:
    """Draw rows without replacement, ascending; the same for the same arguments everywhere."""
    return sorted(np.argsort(_words(seed, total), kind="stable")[:count].tolist())


def _words(seed: int, count: int) -> NDArray[np.uint64]:
    return np.random.Philox(key=seed).random_raw(count)
