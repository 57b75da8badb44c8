"""Projections of embeddings: distances kept, principal components as scikit-learn finds them, files whole."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from sklearn.decomposition import PCA

from mllm_selector.scoring.projection import Projection, random_rows


def vectors(count: int, width: int, seed: int = 0) -> np.ndarray:
    """Unit vectors with a common mean and directions of different variance, as hidden states have."""
    random = np.random.default_rng(seed)
    X = random.normal(0, 1, (count, width)) * np.geomspace(3, 0.1, width) + random.normal(0, 1, width)
    return (X / np.linalg.norm(X, axis=1, keepdims=True)).astype(np.float32)


def test_random_projections_keep_cosines() -> None:
    X = vectors(60, 800)
    projected = Projection.random(400, 800, seed=3)(X)
    assert projected.shape == (60, 400)
    assert projected.dtype == np.float32
    assert np.allclose(np.linalg.norm(projected, axis=1), 1, atol=1e-6)
    # The standard deviation of a projected cosine is at most 1/sqrt(400); five of them.
    assert np.abs(projected @ projected.T - X @ X.T).max() < 0.25


def test_random_matrices_are_signs_of_the_seed_alone() -> None:
    one, again, other = (Projection.random(5, 13, seed).directions for seed in (1, 1, 2))
    assert np.array_equal(one, again)
    assert not np.array_equal(one, other)
    assert set(np.unique((one * np.sqrt(5)).round(5))) == {-1.0, 1.0}
    many = Projection.random(100, 1000, 0).directions
    assert abs((many > 0).mean() - 0.5) < 0.01


def test_principal_components_are_those_of_scikit_learn() -> None:
    X, new = vectors(300, 24), vectors(40, 24, seed=1)
    ours = Projection.principal(6, X)(new)
    theirs = PCA(6, svd_solver="full").fit(X).transform(new)
    theirs /= np.linalg.norm(theirs, axis=1, keepdims=True)
    signs = np.sign((ours * theirs).sum(0))
    assert np.abs(ours - theirs * signs).max() < 1e-4


def test_more_components_than_samples() -> None:
    X = vectors(3, 8)
    projected = Projection.principal(8, X)(X)
    assert np.isfinite(projected).all()
    assert np.allclose(np.linalg.norm(projected, axis=1), 1, atol=1e-5)


def test_rows_do_not_depend_on_their_batch() -> None:
    X, projection = vectors(33, 100), Projection.random(20, 100, 0)
    whole = projection(X)
    assert np.array_equal(np.concatenate([projection(X[:7]), projection(X[7:8]), projection(X[8:])]), whole)


def test_files_belong_to_one_run(tmp_path: Path) -> None:
    projection = Projection.principal(6, vectors(50, 24))
    path = tmp_path / "projection.arrow"
    assert Projection.load(path, "key") is None
    projection.save(path, "key")
    read = Projection.load(path, "key")
    assert read is not None
    assert np.array_equal(read.directions, projection.directions)
    assert np.array_equal(read.offsets, projection.offsets)
    assert Projection.load(path, "another") is None


def test_drawn_rows() -> None:
    rows = random_rows(10, 1000, seed=0)
    assert rows == sorted(set(rows)) == random_rows(10, 1000, seed=0)
    assert len(rows) == 10
    assert rows != random_rows(10, 1000, seed=1)
    assert random_rows(10, 4, seed=0) == [0, 1, 2, 3]
