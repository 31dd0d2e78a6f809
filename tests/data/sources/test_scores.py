"""Files of scores: a score read is the score written; errors name the rows."""

import time
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from pyarrow import parquet

from lit_adaptive.data.sources.scores import Scores, aligned_scores, read_scores, write_scores

SUFFIXES = ["csv", "parquet"]
NAMES = st.text(st.characters(exclude_categories=["Cs"]), min_size=1)
FINITE = st.floats(allow_nan=False, allow_infinity=False)


def _file(folder: Path, body: str, name: str = "a.csv") -> Path:
    path = folder / name
    path.write_text(body, encoding="utf-8")
    return path


@pytest.mark.parametrize("suffix", SUFFIXES)
@given(rows=st.dictionaries(NAMES, FINITE, min_size=1))
def test_reads_exactly_the_scores_that_were_written(
    suffix: str, rows: dict[str, float], tmp_path_factory: pytest.TempPathFactory
) -> None:
    path = tmp_path_factory.getbasetemp() / f"scores.{suffix}"
    written = torch.tensor(list(rows.values()), dtype=torch.float64)
    write_scores(path, list(rows), written)
    ids, score = read_scores(path)
    assert score.equal(written)
    assert [str(i) for i in (ids.tolist() if isinstance(ids, torch.Tensor) else ids)] == [*rows]
    # ... and finds each of them by its id, whatever kind of id the file made of it.
    assert aligned_scores(Scores(ids, score), [*rows][::-1]).equal(written.flip(0))


@pytest.mark.parametrize("suffix", SUFFIXES)
@given(ids=st.lists(st.integers(-(2**63), 2**63 - 1), min_size=1, unique=True))
def test_integer_ids_stay_the_same_numbers(
    suffix: str, ids: list[int], tmp_path_factory: pytest.TempPathFactory
) -> None:
    path = tmp_path_factory.getbasetemp() / f"integers.{suffix}"
    score = torch.arange(len(ids), dtype=torch.float64)
    write_scores(path, torch.tensor(ids), score)
    read = read_scores(path)
    assert [int(i) for i in read.id] == ids
    assert aligned_scores(read, torch.tensor(ids).flip(0)).equal(score.flip(0))


@given(st.permutations(range(12)), st.integers(0, 12))
def test_scores_are_aligned_by_id(order: list[int], scored: int) -> None:
    value = {f"s{i}": float(i * i) for i in order[:scored]}
    scores = Scores([*value], torch.tensor([*value.values()], dtype=torch.float64))
    ids = [f"s{i}" for i in range(12)]
    aligned = aligned_scores(scores, ids, missing=-1.0)
    assert aligned.tolist() == [value.get(name, -1.0) for name in ids]


def test_row_numbers_are_the_ids_of_rows_without_one(tmp_path: Path) -> None:
    scores = read_scores(_file(tmp_path, "id,score\n2,0.2\n0,0.0\n1,0.1\n"))
    assert isinstance(scores.id, torch.Tensor)
    assert aligned_scores(scores, 3).tolist() == [0.0, 0.1, 0.2]
    assert aligned_scores(scores, ["1", "2", "0"]).tolist() == [0.1, 0.2, 0.0]


def test_an_id_with_leading_zeros_stays_a_string(tmp_path: Path) -> None:
    assert read_scores(_file(tmp_path, "id,score\n007,1\n8,2\n")).id == ["007", "8"]


@pytest.mark.parametrize(
    ("body", "words"),
    [
        ("", r"a\.csv is empty"),
        ("id,score\n", "a.csv has no rows"),
        ("id,loss\n1,2\n", r"no column 'score'; its columns are \['id', 'loss'\]"),
        ("name,score\n1,2\n", r"no column 'id'; its columns are \['name', 'score'\]"),
        ("id,score\n1,0.5\n2,high\n3,low\n", r"not a number.* rows \[1, 2\].* \['high', 'low'\]"),
        ("id,score\n1,0.5\n2,nan\n", r"not finite in rows \[1\]"),
        ("id,score\n1,\n2,3\n", r"missing or not finite in rows \[0\]"),
        ("id,score\n1,-inf\n2,3\n", r"not finite in rows \[0\] .* \[-inf\]"),
        ("id,score\nb,1\na,2\nb,3\n", r"id in .* holds \['b'\] more than once"),
        ("id,score\na,1\n,2\n", r"id in .* is missing in rows \[1\]"),
        ("id,id,score\n1,2,3\n", r"more than one column is named \['id'\]"),
        ("id,score\n1\n", r"score in .* is not a number.* in rows \[0\]"),
        ("id,score\n1,2,3\n", r"cannot be read as \.csv: "),
        ("id,score\n" + "".join(f"{i},x\n" for i in range(9)), r"\[0, 1, 2, 3, 4\] and 4 more"),
    ],
)
def test_a_file_that_does_not_hold_scores_is_named_by_column_and_row(
    tmp_path: Path, body: str, words: str
) -> None:
    with pytest.raises(ValueError, match=words):
        read_scores(_file(tmp_path, body))


def test_a_missing_file_and_another_format_are_named(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"none\.csv is not there"):
        read_scores(tmp_path / "none.csv")
    with pytest.raises(ValueError, match=r"'\.xlsx'; a file of scores ends in \.csv or \.parquet"):
        read_scores(tmp_path / "a.xlsx")
    with pytest.raises(ValueError, match=r"a\.parquet cannot be read as \.parquet"):
        read_scores(_file(tmp_path, "hello", "a.parquet"))
    parquet.write_table(pa.table({"id": [0.5], "score": [1]}), tmp_path / "b.parquet")
    with pytest.raises(ValueError, match="of type double; ids are integers or strings"):
        read_scores(tmp_path / "b.parquet")
    wide = pa.table({"id": pa.array([2**63], pa.uint64()), "score": [1]})
    parquet.write_table(wide, tmp_path / "b.parquet")
    with pytest.raises(ValueError, match="exceeds 64 bits; write such ids as strings"):
        read_scores(tmp_path / "b.parquet")
    parquet.write_table(pa.table({"id": [1], "score": [["x"]]}), tmp_path / "c.parquet")
    with pytest.raises(ValueError, match=r"score in .* is of type list"):
        read_scores(tmp_path / "c.parquet")


@pytest.mark.parametrize(
    ("ids", "score", "words"),
    [
        (["a", "b"], [1.0], r"2 ids, but score has the shape \[1\]"),
        (["a", "b"], [1.0, float("nan")], r"score is not finite in rows \[1\]"),
        (["a", "a"], [1.0, 2.0], r"id holds \['a'\] more than once"),
        (["a", ""], [1.0, 2.0], r"id is missing in rows \[1\]"),
        (["a", 1], [1.0, 2.0], "must be all strings or all integers"),
        (torch.tensor([0.5]), [1.0], "they must be strings, or one dimension of integers"),
        ([], [], "no scores to write"),
    ],
)
def test_scores_that_could_not_be_read_are_not_written(
    tmp_path: Path, ids: Any, score: list[float], words: str
) -> None:
    path = _file(tmp_path, "id,score\nold,1\n")
    with pytest.raises(ValueError, match=words):
        write_scores(path, ids, torch.tensor(score))
    assert read_scores(path).id == ["old"]


@pytest.mark.parametrize(
    ("ids", "kwargs", "words"),
    [
        (["a"], {}, r"scores name \['b'\], which are not ids of the dataset \(it has \['a'\]\)"),
        (["a", "b", "c"], {}, r"there is no score for the ids \['c'\]"),
        (2, {}, r"scores name \['a', 'b'\].* \['0', '1'\]"),
        (["a", "b"], {"missing": float("nan")}, "missing is nan"),
    ],
)
def test_ids_that_do_not_match_are_named(ids: Any, kwargs: dict[str, float], words: str) -> None:
    scores = Scores(["a", "b"], torch.tensor([1.0, 2.0], dtype=torch.float64))
    with pytest.raises(ValueError, match=words):
        aligned_scores(scores, ids, **kwargs)
    twice = Scores(["a", "a"], scores.score)
    with pytest.raises(ValueError, match=r"\['a'\] more than once"):
        aligned_scores(twice, ["a"])


def test_aligns_a_million_strings_in_seconds() -> None:
    ids = [f"sample-{i}" for i in range(1_000_000)]
    scores = Scores(ids, torch.arange(1_000_000, dtype=torch.float64))
    start = time.process_time()
    aligned = aligned_scores(scores, ids[::-1])
    assert time.process_time() - start < 10  # measured 1.5 s; one row at a time takes minutes
    assert aligned[0] == 999_999
