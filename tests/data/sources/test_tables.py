"""Files of scores and of samples: what is read is what was written; what is wrong is named."""

import json
import pickle
import time
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from pyarrow import parquet
from torch.utils.data import DataLoader, default_collate

from lit_adaptive.data.sources import tables
from lit_adaptive.data.sources.tables import (
    Scores,
    TableDataset,
    aligned_scores,
    read_scores,
    read_table,
    write_scores,
)

SUFFIXES = ["csv", "parquet"]
NAMES = st.text(st.characters(exclude_categories=["Cs"]), min_size=1)
FINITE = st.floats(allow_nan=False, allow_infinity=False)


def _file(folder: Path, body: str, name: str = "a.csv") -> Path:
    path = folder / name
    path.write_text(body, encoding="utf-8")
    return path


# --- scores ---------------------------------------------------------------------------------------


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
def test_alignment_is_a_look_up_by_id(order: list[int], scored: int) -> None:
    value = {f"s{i}": float(i * i) for i in order[:scored]}
    scores = Scores([*value], torch.tensor([*value.values()], dtype=torch.float64))
    wanted = [f"s{i}" for i in range(12)]
    found = aligned_scores(scores, wanted, missing=-1.0)
    assert found.tolist() == [value.get(name, -1.0) for name in wanted]


def test_rows_without_an_id_go_by_their_number(tmp_path: Path) -> None:
    scores = read_scores(_file(tmp_path, "id,score\n2,0.2\n0,0.0\n1,0.1\n"))
    assert isinstance(scores.id, torch.Tensor)
    assert aligned_scores(scores, 3).tolist() == [0.0, 0.1, 0.2]
    assert aligned_scores(scores, ["1", "2", "0"]).tolist() == [0.1, 0.2, 0.0]


def test_an_id_of_leading_zeros_is_no_integer(tmp_path: Path) -> None:
    assert read_scores(_file(tmp_path, "id,score\n007,1\n8,2\n")).id == ["007", "8"]


@pytest.mark.parametrize(
    ("body", "words"),
    [
        ("", r"a\.csv is empty"),
        ("id,score\n", r"columns \['id', 'score'\] but no rows"),
        ("id,loss\n1,2\n", r"no column 'score'; its columns are \['id', 'loss'\]"),
        ("name,score\n1,2\n", r"no column 'id'; its columns are \['name', 'score'\]"),
        ("id,score\n1,0.5\n2,high\n3,low\n", r"no number.* rows \[1, 2\].* \['high', 'low'\]"),
        ("id,score\n1,0.5\n2,nan\n", r"not finite in rows \[1\]"),
        ("id,score\n1,\n2,3\n", r"missing or not finite in rows \[0\]"),
        ("id,score\n1,-inf\n2,3\n", r"not finite in rows \[0\] .* \[-inf\]"),
        ("id,score\nb,1\na,2\nb,3\n", r"id in .* holds \['b'\] more than once"),
        ("id,score\na,1\n,2\n", r"id in .* is missing in rows \[1\]"),
        ("id,id,score\n1,2,3\n", r"more than one column named \['id'\]"),
        ("id,score\n1\n", "cannot be read as .csv: .*Expected 2 columns"),
        ("id,score\n" + "".join(f"{i},x\n" for i in range(9)), r"\[0, 1, 2, 3, 4\] and 4 more"),
    ],
)
def test_names_what_is_wrong_with_a_file_of_scores(tmp_path: Path, body: str, words: str) -> None:
    with pytest.raises(ValueError, match=words):
        read_scores(_file(tmp_path, body))


def test_names_a_file_that_is_not_there_or_of_another_kind(tmp_path: Path) -> None:
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
    with pytest.raises(ValueError, match="beyond 64 bits; write such ids as strings"):
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
def test_writes_nothing_that_it_would_not_read(
    tmp_path: Path, ids: Any, score: list[float], words: str
) -> None:
    path = _file(tmp_path, "id,score\nold,1\n")
    with pytest.raises(ValueError, match=words):
        write_scores(path, ids, torch.tensor(score))
    assert read_scores(path).id == ["old"]


@pytest.mark.parametrize(
    ("ids", "kwargs", "words"),
    [
        (["a"], {}, r"scores name \['b'\], which are no ids of the dataset \(it has \['a'\]\)"),
        (["a", "b", "c"], {}, r"no score is given for the ids \['c'\]"),
        (2, {}, r"scores name \['a', 'b'\].* \['0', '1'\]"),
        (["a", "b"], {"missing": float("nan")}, "missing is nan"),
    ],
)
def test_names_ids_that_do_not_match(ids: Any, kwargs: dict[str, float], words: str) -> None:
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
    found = aligned_scores(scores, ids[::-1])
    assert time.process_time() - start < 10  # 1.5 s where it was written; a row at a time: minutes
    assert found[0] == 999_999


# --- datasets -------------------------------------------------------------------------------------

ROWS = [
    {"key": "k2", "x": 1.5, "y": 2, "kind": "cat", "day": "2020-01-01", "note": "two\nlines"},
    {"key": "k0", "x": -2.0, "y": 0, "kind": "dog", "day": "2020-01-02", "note": "42"},
    {"key": "k1", "x": 0.25, "y": 7, "kind": "ant", "day": "2020-01-03", "note": 'a "b", c'},
]


def _three(folder: Path) -> dict[str, Path]:
    """The same rows in each of the three kinds of file."""
    lines = "".join(json.dumps(row) + "\n" for row in ROWS)
    quoted = [",".join('"' + str(v).replace('"', '""') + '"' for v in r.values()) for r in ROWS]
    table = pa.Table.from_pylist(ROWS)
    table = table.set_column(3, "kind", table["kind"].dictionary_encode())  # pandas' categories
    parquet.write_table(table, folder / "a.parquet")
    return {
        "csv": _file(folder, "\n".join([",".join(ROWS[0]), *quoted]) + "\n"),
        "jsonl": _file(folder, lines, "a.jsonl"),
        "parquet": folder / "a.parquet",
    }


@pytest.mark.parametrize("kind", ["csv", "jsonl", "parquet"])
def test_a_table_is_the_same_from_any_kind_of_file(tmp_path: Path, kind: str) -> None:
    path = _three(tmp_path)[kind]
    data = TableDataset(path, features=["x", "y"], target="kind", id="key", text="note")
    assert len(data) == 3
    assert data.classes == ["ant", "cat", "dog"]
    assert data.ids == ["k2", "k0", "k1"]
    assert data.targets is not None
    assert data.targets.tolist() == [1, 2, 0]
    assert data[1]["input"].tolist() == [-2.0, 0.0]
    assert data[1]["input"].dtype == torch.float32
    assert [data[i]["text"] for i in range(3)] == [row["note"] for row in ROWS]
    assert data.column("x").tolist() == [1.5, -2.0, 0.25]
    assert data.column("x").dtype == torch.float64
    assert data[-1]["target"] == data[2]["target"] == 0


@given(index=st.lists(st.integers(0, 2), min_size=1, max_size=8), text=st.booleans())
def test_gather_equals_collating_the_items(
    index: list[int], text: bool, tmp_path_factory: pytest.TempPathFactory
) -> None:
    path = _three(tmp_path_factory.getbasetemp())["csv"]
    given_text = {"text": "note", "features": ["y", "x"]} if text else {}
    data = TableDataset(path, target="kind", **given_text)  # type: ignore[arg-type]
    batch, slow = data.gather(torch.tensor(index)), default_collate([data[i] for i in index])
    assert [*batch] == [*slow]
    for key, value in slow.items():
        assert batch[key].equal(value) if isinstance(value, torch.Tensor) else batch[key] == value
        assert getattr(batch[key], "dtype", None) == getattr(value, "dtype", None)


def test_takes_all_numbers_for_features_but_the_target_and_the_id(tmp_path: Path) -> None:
    path = _file(tmp_path, "n,flag,name,y,x\n5,true,a,1,0.5\n6,false,b,0,1.5\n")
    data = TableDataset(path, target="y", id="n")
    assert data.gather(torch.tensor([0, 1]))["input"].tolist() == [[1.0, 0.5], [0.0, 1.5]]
    assert isinstance(data.ids, torch.Tensor)
    assert data.ids.tolist() == [5, 6]
    assert data.classes == ["0", "1"]
    assert set(TableDataset(path, text="name")[0]) == {"text"}


def test_rows_without_an_id_are_counted_from_zero(tmp_path: Path) -> None:
    ids = TableDataset(_three(tmp_path)["csv"]).ids
    assert isinstance(ids, torch.Tensor)
    assert ids.tolist() == [0, 1, 2]


def test_a_column_of_vectors_counts_once_per_component(tmp_path: Path) -> None:
    path = _file(tmp_path, '{"v":[1,2],"x":5}\n{"v":[3.5,4],"x":6}\n', "a.jsonl")
    data = TableDataset(path, features=["v", "x"])
    assert data.inputs is not None
    assert data.inputs[torch.arange(2)].tolist() == [[1.0, 2.0, 5.0], [3.5, 4.0, 6.0]]
    odd = _file(tmp_path, '{"v":[1,2]}\n{"v":[3]}\n{"v":null}\n', "b.jsonl")
    with pytest.raises(ValueError, match=r"no vector of 2 numbers in rows \[1, 2\]"):
        TableDataset(odd, features=["v"])


@pytest.mark.parametrize("name", ["a.csv", "a.jsonl"])
def test_the_type_of_a_column_is_told_by_all_rows(
    tmp_path: Path, name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tables, "_BLOCK", 1 << 10)  # the last row comes many blocks later
    rows = ["1"] * 5_000 + ["2.5"]
    body = "x\n" + "\n".join(rows) if name == "a.csv" else "\n".join(f'{{"x":{r}}}' for r in rows)
    column = TableDataset(_file(tmp_path, body + "\n", name)).column("x")
    assert column[-1] == 2.5
    assert column.sum() == 5_002.5


@pytest.mark.parametrize("name", ["a.csv", "a.jsonl"])
def test_a_text_may_be_megabytes_long(tmp_path: Path, name: str) -> None:
    long = "word " * 600_000
    body = f'x,t\n1,a\n2,"{long}"\n' if name == "a.csv" else f'{{"x":1,"t":"{long}"}}\n'
    assert TableDataset(_file(tmp_path, body, name), text="t")[-1]["text"] == long


def test_text_that_looks_like_numbers_or_dates_stays_text(tmp_path: Path) -> None:
    path = _file(tmp_path, "id,day,note,x\n1,2020-01-01,007,1\n2,2020-01-02,NA,2\n")
    data = TableDataset(path, text="note", target="day", id="id")
    assert [data[i]["text"] for i in range(2)] == ["007", "NA"]
    assert data.classes == ["2020-01-01", "2020-01-02"]
    lines = _file(tmp_path, '{"day":"2020-01-01"}\n{"day":"2020-01-02"}\n', "a.jsonl")
    assert TableDataset(lines, text="day")[1]["text"] == "2020-01-02"


def test_given_classes_number_a_file_that_lacks_some(tmp_path: Path) -> None:
    path = _three(tmp_path)["csv"]
    data = TableDataset(path, target="kind", classes=["dog", "bee", "cat", "ant"])
    assert data.targets is not None
    assert data.targets.tolist() == [2, 0, 3]
    with pytest.raises(ValueError, match=r"none of the classes \['dog'\] in rows \[0, 2\]"):
        TableDataset(path, target="kind", classes=["dog"])
    with pytest.raises(ValueError, match="they must all differ"):
        TableDataset(path, target="kind", classes=["dog", "dog"])


@pytest.mark.parametrize("context", ["fork", "spawn"])
def test_worker_processes_serve_the_same_rows(tmp_path: Path, context: str) -> None:
    data = TableDataset(_three(tmp_path)["csv"], features=["x"], target="kind", text="note")
    workers: Any = DataLoader(data, 2, num_workers=1, multiprocessing_context=context)
    here: Any = DataLoader(data, 2)
    for far, near in zip(workers, here, strict=True):
        assert far["text"] == near["text"]
        assert far["input"].equal(near["input"])
    assert pickle.loads(pickle.dumps(data)).column("y").tolist() == [2, 0, 7]


MIXED = "id,x,y,kind,gap\na,1,0,cat,0.5\nb,1e39,1.5,dog,\nc,inf,-1,ant,2\n"


@pytest.mark.parametrize(
    ("kwargs", "words"),
    [
        ({"features": ["q", "x"]}, r"no column 'q'; its columns are \['id', 'x', 'y', 'kind'"),
        ({"target": "q"}, "no column 'q'"),
        ({"features": ["kind"]}, r"type string; features.* are \['x', 'y', 'gap'\]"),
        ({"features": ["gap"]}, r"gap in .*a\.csv is missing .* rows \[1\] .* \[None\]"),
        ({"features": ["x"]}, r"no finite float32 in rows \[1, 2\]"),
        ({"target": "y", "text": "kind"}, r"no class, .* rows \[1, 2\] .* \[1\.5, -1\.0\]"),
        ({"features": []}, "gives a model no input"),
    ],
)
def test_names_what_is_wrong_with_a_table(
    tmp_path: Path, kwargs: dict[str, Any], words: str
) -> None:
    with pytest.raises(ValueError, match=words):
        TableDataset(_file(tmp_path, MIXED), **kwargs)


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("q", "no column 'q'"),
        ("kind", r"type string, not numeric; numeric columns are \['x', 'y', 'gap'\]"),
        ("gap", r"gap in .* is missing or not finite in rows \[1\]"),
        ("x", r"not finite in rows \[2\] .* \[inf\]"),
    ],
)
def test_names_what_is_wrong_with_a_column(tmp_path: Path, name: str, words: str) -> None:
    data = TableDataset(_file(tmp_path, MIXED), text="kind")
    assert data.column("y").tolist() == [0.0, 1.5, -1.0]
    with pytest.raises(ValueError, match=words):
        data.column(name)


def test_names_missing_targets_and_texts_by_row(tmp_path: Path) -> None:
    path = tmp_path / "a.parquet"
    parquet.write_table(pa.table({"t": ["a", None], "x": [1, 2], "d": [[1], [2]]}), path)
    for role in ("target", "text", "id"):
        with pytest.raises(ValueError, match=r"t in .* is missing in rows \[1\]"):
            TableDataset(path, **{role: "t"})
    for role, words in (("target", "a class is"), ("text", "a text is"), ("id", "ids are")):
        with pytest.raises(ValueError, match=rf"d in .* is of type list.*; {words}"):
            TableDataset(path, **{role: "d"})


def test_a_row_beyond_the_end_is_an_index_error(tmp_path: Path) -> None:
    with pytest.raises(IndexError, match=r"row 3 of .*, which has 3 rows"):
        TableDataset(_three(tmp_path)["csv"])[3]


def test_names_a_file_that_is_no_table(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"'\.txt'; it must be one of \['\.csv', '\.parquet'"):
        read_table(tmp_path / "a.txt")
    with pytest.raises(ValueError, match=r"cannot be read as \.jsonl"):
        read_table(_file(tmp_path, '{"x":1}\n{"x":"a"}\n', "a.jsonl"))
