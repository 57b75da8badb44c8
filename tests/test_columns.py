"""Scores joined by id from files."""

from __future__ import annotations

import json

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from mllm_selector.columns import join
from mllm_selector.errors import UsageError

IDS = pa.chunked_array([pa.array(["a", "b"], pa.large_utf8()), pa.array(["c", "7"], pa.large_utf8())])


def as_csv(path, rows, head):
    path.write_text("\n".join([",".join(head), *(",".join(map(str, row)) for row in rows)]) + "\n")


def as_json_lines(path, rows, head):
    path.write_text("".join(json.dumps(dict(zip(head, row, strict=True))) + "\n" for row in rows))


def as_parquet(path, rows, head):
    pq.write_table(
        pa.table({name: list(values) for name, values in zip(head, zip(*rows, strict=True), strict=True)}),
        path,
    )


WRITERS = [as_csv, as_json_lines, as_parquet]


@pytest.mark.parametrize("write", WRITERS)
def test_values_go_where_their_ids_are(tmp_path, write):
    path = tmp_path / "file.of-any-name"
    write(
        path, [("c", 1.5, 3, "x"), ("zz", 2.5, 4, "y"), ("a", -1.0, 5, "z")], ("id", "quality", "ocr", "note")
    )
    joined = join([path], IDS, {"quality", "ocr", "other"})
    np.testing.assert_array_equal(joined.columns["quality"], np.float32([-1, np.nan, 1.5, np.nan]))
    np.testing.assert_array_equal(joined.columns["ocr"], np.float32([5, np.nan, 3, np.nan]))
    assert joined.counts == [
        {"file": path.name, "columns": ["quality", "ocr"], "matched": 2, "unknown": 1, "missing": 2}
    ]


@pytest.mark.parametrize("write", WRITERS)
def test_ids_may_be_whole_numbers(tmp_path, write):
    write(tmp_path / "f", [(7, 2), (8, 3)], ("id", "quality"))
    np.testing.assert_array_equal(
        join([tmp_path / "f"], IDS, {"quality"}).columns["quality"], np.float32([np.nan] * 3 + [2])
    )


def test_ids_in_csv_stay_text(tmp_path):
    as_csv(tmp_path / "f", [("007", 1), ("7", 2)], ("id", "quality"))
    joined = join([tmp_path / "f"], IDS, {"quality"})
    assert joined.columns["quality"][3] == 2
    assert joined.counts[0]["unknown"] == 1


def test_booleans_and_gaps(tmp_path):
    as_json_lines(tmp_path / "f", [("a", True, None), ("b", False, 2)], ("id", "short", "quality"))
    columns = join([tmp_path / "f"], IDS, {"short", "quality"}).columns
    np.testing.assert_array_equal(columns["short"], np.float32([1, 0, np.nan, np.nan]))
    np.testing.assert_array_equal(columns["quality"], np.float32([np.nan, 2, np.nan, np.nan]))


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("id,quality\na,1\na,2\nb,3\n", "1 ids come several times, first 'a'"),
        ("name,quality\na,1\n", "has no column id; it has name, quality"),
        ("id,quality\na,good\nb,1\n", "the column 'quality' holds 'good' in row 0, id 'a'"),
        ("id,quality\na,1\nb,1e39\n", "holds 1e[+]39 in row 1, id 'b', which is not finite"),
        ("id,quality\na,inf\n", "holds inf in row 0, id 'a', which is not finite"),
        ("id,quality\nx,1\n", "has no id of the pool: it has 'x', the pool 'a'"),
        ("id,quality\n", "has no rows"),
        ('id,quality\n,1\n"a",2\nb\n', "is not a Parquet, CSV or JSON lines file"),
        ("", "is not a Parquet, CSV or JSON lines file"),
        ('{"id": 1.5, "quality": 1}\n', "the column id is of type double"),
        ('{"id": null, "quality": 1}\n{"id": "a", "quality": 1}\n', "row 0 has no id"),
        ('{"id": "a", "quality": [1]}\n', "the column 'quality' is of type list<"),
        ('{"id": "a", "quality": 1}\n{"id": "b"', "is not a Parquet, CSV or JSON lines file"),
        ("PAR1 but nothing else", "is not a Parquet, CSV or JSON lines file"),
    ],
)
def test_bad_files_are_refused(tmp_path, text, message):
    (tmp_path / "f").write_text(text)
    with pytest.raises(UsageError, match=message):
        join([tmp_path / "f"], IDS, {"quality"})


def test_a_column_of_two_files_is_refused(tmp_path):
    for name in "fg":
        as_csv(tmp_path / name, [("a", 1)], ("id", "quality"))
    with pytest.raises(UsageError, match="has the column 'quality', which an earlier file has"):
        join([tmp_path / "f", tmp_path / "g"], IDS, {"quality"})
