"""Matrices for the tests of the functions on arrays."""

from __future__ import annotations

import numpy as np
import pyarrow as pa
from hypothesis import strategies as st
from hypothesis.extra import numpy as npst


def clusters(n, d, centres=20, seed=0, spread=0.4):
    rng = np.random.default_rng(seed)
    means = rng.normal(size=(centres, d))
    X = means[rng.integers(centres, size=n)] + spread * rng.normal(size=(n, d))
    return (X / np.linalg.norm(X, axis=1, keepdims=True)).astype(np.float16).astype(np.float32)


# Multiples of 1/8 have exact dot products, so that equal distances are equal and ties are met.
grids = npst.arrays(
    np.float32,
    st.tuples(st.integers(1, 30), st.integers(1, 5)),
    elements=st.integers(-16, 16).map(lambda value: value / 8),
)
metrics = st.sampled_from(["euclidean", "cosine"])


def without_zero_rows(X):
    return X + np.float32(0.5) * ~X.any(axis=1, keepdims=True)


class ExportedArray:
    """An Arrow array of another library: nothing but the PyCapsule interface."""

    def __init__(self, array):
        self.array = array

    def __arrow_c_array__(self, requested_schema=None):
        return self.array.__arrow_c_array__(requested_schema)


class ExportedChunks:
    """A column in chunks of another library."""

    def __init__(self, column):
        self.column = column

    def __arrow_c_stream__(self, requested_schema=None):
        return self.column.__arrow_c_stream__(requested_schema)


def fixed_lists(X):
    """The same values as an Arrow array, without a copy."""
    return pa.FixedSizeListArray.from_arrays(pa.array(X.ravel()), X.shape[1])
