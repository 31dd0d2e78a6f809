"""The reader of rows: every source gives the same rows; errors name file and line."""

import gzip
import json
import os
import re
import socket
from pathlib import Path
from typing import Any

import datasets
import numpy as np
import pyarrow as pa
import pytest
import torch
from pyarrow import csv, parquet

from lit_adaptive.data import Arithmetic, DemonstrationDataset, HubRows, PromptDataset
from lit_adaptive.data.sources import rows
from lit_adaptive.data.sources.rows import load_rows
from lit_adaptive.data.text import tokenization
from lit_adaptive.rollout.models.tokenizers import character_tokenizer

TOKENIZER = character_tokenizer()
ROWS = [
    {
        "prompt": f"{i % 7}+{i}=",
        "completion": str(i % 7 + i),
        "answer": str(i % 7 + i),
        "reward": i / 4,
        "id": f"row {i}",
    }
    for i in range(30)
]


def _write(folder: Path, kind: str) -> Any:
    file = folder / f"rows.{kind}"
    table = pa.Table.from_pylist(ROWS)
    if kind == "jsonl":
        file.write_text("\n".join(json.dumps(row) for row in ROWS) + "\n\n")
    elif kind == "csv":
        csv.write_csv(table, file)
    elif kind == "parquet":
        parquet.write_table(table, file, row_group_size=4)
    elif kind in ("folder", "hub rows", "dataset"):
        import datasets

        dataset = datasets.Dataset.from_list(ROWS)
        if kind == "dataset":
            return dataset
        dataset.save_to_disk(folder / "saved")
        return str(folder / "saved") if kind == "folder" else HubRows(str(folder / "saved"))
    else:
        return {"table": table, "list": ROWS}[kind]
    return str(file)


@pytest.fixture
def _small_batches(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tokenization, "_BATCH", 7)


KINDS = ("jsonl", "csv", "parquet", "folder", "hub rows", "dataset", "table", "list")


@pytest.mark.usefixtures("_small_batches")
@pytest.mark.parametrize("cached", [False, True])
@pytest.mark.parametrize("kind", KINDS)
def test_any_source_gives_the_same_samples(kind: str, cached: bool, tmp_path: Path) -> None:
    expected = DemonstrationDataset(ROWS, TOKENIZER, columns=["answer"], prompts=True)
    source = _write(tmp_path, kind)
    cache = tmp_path / "cache" if cached else None
    dataset = DemonstrationDataset(
        source, TOKENIZER, columns=["answer"], prompts=True, cache_dir=cache
    )
    index = torch.tensor([29, 0, 13, 13, 7, 6])
    both = dataset.gather(index), expected.gather(index)
    assert both[0].keys() == both[1].keys()
    for name in both[0]:
        lists = [
            batch[name].tolist() if torch.is_tensor(batch[name]) else batch[name] for batch in both
        ]
        assert lists[0] == lists[1], name
    assert dataset.ids == [row["id"] for row in ROWS]
    assert dataset.column("reward").tolist() == [row["reward"] for row in ROWS]
    assert dataset.groups.equal(expected.groups)
    assert dataset.fingerprint == expected.fingerprint
    if kind != "csv":
        assert dataset.texts(index) == [ROWS[i] for i in index.tolist()]


def test_arithmetic_is_a_source_with_ids_and_numbers() -> None:
    sums = Arithmetic(size=40, demonstrations_per_prompt=2, correct=0.5, wrong=0.5)
    dataset = DemonstrationDataset(sums, TOKENIZER)
    assert dataset.ids == sums.ids
    assert dataset.column("difficulty").equal(sums.column("difficulty"))
    assert dataset.groups.tolist() == [i // 2 for i in range(80)]
    assert dataset.texts(torch.tensor([5]))[0] == sums[5]
    assert len(dataset) == len(sums) == dataset.counts["kept"]


@pytest.mark.parametrize(
    ("name", "text", "words"),
    [
        ("a.jsonl", '{"prompt": "a"', "line 1 of .* is not JSON"),
        ("a.jsonl", '{"prompt": "a"}\n[1]', r"line 2 of .* is not a JSON object but '\[1\]'"),
        ("a.jsonl", None, "is not there"),
        ("a.parquet", "x", "cannot be read as .parquet"),
        ("a.csv", "", "is empty and has no rows"),
        ("a.csv", "a,a\n1,2", r"more than one column is named \['a'\]"),
        ("a.csv", ",a\n1,2", r"a\.csv: column 0 \(from 0\) has no name; name it, or leave it out"),
        ("a.csv", b"prompt\na \xe9", r"line 2 of .*a\.csv is not UTF-8 .*iconv -f latin1"),
        ("a.csv", "prompt".encode("utf-16"), r"line 1 of .*a\.csv is not UTF-8 .*iconv -f utf-16"),
        ("a.jsonl", b'{"prompt": "a \xe9"}', r"line 1 of .*a\.jsonl is not UTF-8"),
        (
            "a.jsonl",
            '{"x": "a"}\n{"x": "\\ud800"}',
            r"line 2 of .*a\.jsonl, x: .*surrogate.*U\+FFFD",
        ),
        ("a.jsonl", '"' + "x" * 9999 + '"', r"line 1 of .* is not a JSON object but '\"x{39}'$"),
        ("a.jsonl", "\n", "has no rows"),
        ("a.jsonl", "[1]\n[2]\n", r"line 1 of .* is not a JSON object but '\[1\]'"),
        ("a.jsonl", '{"x": "a"}\n{"x": NaN}', "line 2 of .* is not JSON: it has no NaN"),
    ],
)
def test_a_file_that_cannot_be_read_is_named(
    name: str, text: str | bytes | None, words: str, tmp_path: Path
) -> None:
    if text is not None:
        (tmp_path / name).write_bytes(text.encode() if isinstance(text, str) else text)
    with pytest.raises(ValueError, match=words):
        DemonstrationDataset(str(tmp_path / name), TOKENIZER)


def test_a_missing_path_is_named_without_a_request_to_the_hub(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def request(path: str, name: str | None, split: str) -> None:
        raise ConnectionError(f"request for {path}, {name}, {split}")

    monkeypatch.setattr(datasets, "load_dataset", request)
    monkeypatch.setattr("lit_adaptive.rollout.models.hub._reachable", lambda: True)
    for path in (str(tmp_path / "none"), "./none", "a/b/none"):
        with pytest.raises(ValueError, match=r"none' cannot be loaded.*no such file or folder"):
            HubRows(path)
    (tmp_path / "a.xlsx").touch()
    with pytest.raises(ValueError, match=r"ends in '\.xlsx'; it must be one of \['\.arrow'"):
        HubRows(str(tmp_path / "a.xlsx"))
    with pytest.raises(ValueError, match=r"ConnectionError: request for o/n-1\.0, c, test"):
        HubRows("o/n-1.0", name="c", split="test")


@pytest.mark.parametrize("kind", ["jsonl", "list", "parquet"])
def test_a_row_that_lacks_a_column_holds_none_there(kind: str, tmp_path: Path) -> None:
    sparse = [{"prompt": "a", "late": i} if i in (3, 25) else {"prompt": "a"} for i in range(30)]
    source: Any = sparse
    if kind == "jsonl":
        source = tmp_path / "rows.jsonl"
        source.write_text("\n".join(map(json.dumps, sparse)))
    elif kind == "parquet":
        source = tmp_path / "rows.parquet"
        table = pa.table({"prompt": ["a"] * 30, "late": [row.get("late") for row in sparse]})
        parquet.write_table(table, source, row_group_size=4)
    late = load_rows(source).dataset["late"][:]
    assert late == [i if i in (3, 25) else None for i in range(30)]


def test_messages_keep_their_keys_and_their_order(tmp_path: Path) -> None:
    talks = [
        [{"role": "user", "content": "a"}],
        [{"role": "system", "content": "b"}, {"role": "user", "content": "c", "name": "d"}],
    ]
    file = tmp_path / "rows.jsonl"
    file.write_text("\n".join(json.dumps({"messages": talk}) for talk in talks))
    table = pa.table({"messages": [talks[0], talks[0]]})
    parquet.write_table(table, tmp_path / "rows.parquet")
    for source in (str(file), [{"messages": talk} for talk in talks]):
        assert load_rows(source).dataset["messages"][:] == talks
    assert load_rows(tmp_path / "rows.parquet").dataset["messages"][:] == [talks[0]] * 2


@pytest.mark.parametrize("cached", [False, True])
@pytest.mark.parametrize("named", ["file", "folder", "pattern"])
def test_a_file_of_the_same_size_and_time_but_another_content_is_read_anew(
    named: str, cached: bool, tmp_path: Path
) -> None:
    folder = tmp_path / "rows"
    folder.mkdir()
    file = folder / "rows.jsonl"
    path = {"file": file, "folder": folder, "pattern": folder / "*.jsonl"}[named]
    cache_dir = tmp_path / "cache" if cached else None
    times = (1_000_000_000, 1_000_000_000)
    tokens = []
    for prompt in ("1", "2"):
        file.write_text(json.dumps({"prompt": prompt, "completion": "x"}))
        os.utime(file, ns=times)
        assert load_rows(path).dataset["prompt"][:] == [prompt]
        dataset = DemonstrationDataset(str(path), cache_dir=cache_dir)
        tokens.append(dataset.gather(torch.tensor([0]))["input_ids"])
    assert not tokens[0].equal(tokens[1])


def test_globs_compressed_files_and_folders_are_read_in_order(tmp_path: Path) -> None:
    for i in range(3):
        (tmp_path / f"part-{i}.jsonl").write_text(json.dumps({"prompt": str(i)}))
    prompts = load_rows(str(tmp_path / "part-*.jsonl")).dataset["prompt"][:]
    assert prompts == ["0", "1", "2"]
    assert load_rows(str(tmp_path)).dataset["prompt"][:] == prompts
    with gzip.open(tmp_path / "rows.csv.gz", "wt") as file:
        file.write("prompt,answer\n007,NA\n1,2\n")
    compressed = load_rows(str(tmp_path / "rows.csv.gz"))
    assert compressed.dataset[:] == {"prompt": ["007", "1"], "answer": ["NA", "2"]}
    assert compressed.untyped


def test_a_folder_of_csv_files_is_not_parsed_either(tmp_path: Path) -> None:
    (tmp_path / "train.csv").write_text("prompt,answer\n007,2020-01-01\n")
    assert load_rows(str(tmp_path)).dataset[:] == {"prompt": ["007"], "answer": ["2020-01-01"]}


def test_a_json_column_that_changes_its_type_late_names_the_remedy(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(rows, "_JSON_CHUNK", 1 << 10)
    file = tmp_path / "rows.jsonl"
    file.write_text("\n".join([*('{"x": 1}' for _ in range(500)), '{"x": 2.5}']))
    with pytest.raises(ValueError, match=r"cannot be read as \.jsonl: .*2\.5.* as \.parquet"):
        load_rows(file)


def test_reading_sends_no_request_and_prints_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    requests: list[Any] = []

    def connect(*arguments: Any, **_: Any) -> None:
        requests.append(arguments)
        raise OSError("no network")

    monkeypatch.setattr(socket.socket, "connect", connect)
    monkeypatch.setattr(socket, "create_connection", connect)
    (tmp_path / "rows.jsonl").write_text(json.dumps({"prompt": "1", "completion": "2"}))
    for source in (tmp_path / "rows.jsonl", tmp_path):
        DemonstrationDataset(source)
    assert not requests
    assert capfd.readouterr() == ("", "")


def test_progress_bars_stay_as_the_user_set_them(tmp_path: Path) -> None:
    (tmp_path / "rows.jsonl").write_text(json.dumps({"prompt": "1"}))
    load_rows(tmp_path / "rows.jsonl")
    assert not datasets.are_progress_bars_disabled()


def test_a_dictionary_of_splits_is_rejected() -> None:
    splits = datasets.DatasetDict(train=datasets.Dataset.from_list(ROWS))
    with pytest.raises(ValueError, match="DatasetDict; choose one of its splits"):
        load_rows(splits)


def test_a_shuffled_dataset_keeps_its_order() -> None:
    dataset = datasets.Dataset.from_list(ROWS).select([5, 3, 20])
    samples = DemonstrationDataset(dataset, TOKENIZER)
    assert [row["id"] for row in samples.texts(torch.arange(3))] == ["row 5", "row 3", "row 20"]
    assert samples.ids == ["row 5", "row 3", "row 20"]


@pytest.mark.parametrize("kind", ["jsonl", "list"])
def test_values_of_several_types_and_dates_stay_what_they_are(kind: str, tmp_path: Path) -> None:
    values = ["7", 7, None, "007", "[1]", [{"role": "user", "content": "a"}], "2020-01-01"]
    mixed = [{"prompt": value, "day": "2020-01-01"} for value in values]
    source: Any = mixed
    if kind == "jsonl":
        source = tmp_path / "rows.jsonl"
        source.write_text("\n".join(map(json.dumps, mixed)))
    assert load_rows(source).dataset[:] == {"prompt": values, "day": ["2020-01-01"] * len(values)}


@pytest.mark.parametrize("delimiter", [",", ";", "\t", "|"])
@pytest.mark.parametrize("suffix", [".csv", ".tsv", ".csv.gz"])
def test_the_delimiter_is_that_of_the_header(delimiter: str, suffix: str, tmp_path: Path) -> None:
    delimiter = "\t" if suffix == ".tsv" else delimiter
    text = f"\ufeffprompt{delimiter}answer\na b{delimiter}3 4\n".encode()
    file = tmp_path / f"rows{suffix}"
    file.write_bytes(gzip.compress(text) if suffix.endswith(".gz") else text)
    assert load_rows(file).dataset[:] == {"prompt": ["a b"], "answer": ["3 4"]}


def test_the_delimiter_is_not_looked_for_in_quotes_or_blank_lines(tmp_path: Path) -> None:
    file = tmp_path / "rows.csv"
    for text, columns in (
        ('\n"a,b";c\n1;2\n', {"a,b": ["1"], "c": ["2"]}),
        ('"a\nb",c;d\n1,2\n', {"a\nb": ["1"], "c;d": ["2"]}),
        ("text\nx;y\n", {"text": ["x;y"]}),
    ):
        file.write_text(text)
        assert load_rows(file).dataset[:] == columns


def test_a_byte_order_mark_and_an_array_in_jsonl_are_read(tmp_path: Path) -> None:
    for name in ("a.jsonl", "a.json"):
        (tmp_path / name).write_text('\ufeff[{"prompt": "a"}, {"prompt": "b"}]')
        assert load_rows(tmp_path / name).dataset["prompt"][:] == ["a", "b"]


def _write_parts(folder: Path, kind: str, parts: list[list[dict[str, Any]]]) -> None:
    for number, part in enumerate(parts):
        file, table = folder / f"{number}.{kind}", pa.Table.from_pylist(part)
        if kind == "jsonl":
            file.write_text("\n".join(map(json.dumps, part)))
        elif kind == "json":
            file.write_text(json.dumps(part))
        elif kind == "csv":
            csv.write_csv(table, file)
        elif kind == "parquet":
            parquet.write_table(table, file)
        else:
            with pa.ipc.new_stream(file, table.schema) as stream:
                stream.write_table(table)


@pytest.mark.parametrize("named", ["pattern", "folder"])
@pytest.mark.parametrize("kind", ["jsonl", "json", "csv", "parquet", "arrow"])
def test_a_file_that_lacks_a_column_of_others_holds_none_there(
    kind: str, named: str, tmp_path: Path
) -> None:
    first, second = [{"x": "a", "y": "b"}, {"x": "c", "y": "d"}], [{"z": "f", "x": "e"}]
    _write_parts(tmp_path, kind, [first, second])
    path = str(tmp_path / f"*.{kind}") if named == "pattern" else str(tmp_path)
    columns = {"x": ["a", "c", "e"], "y": ["b", "d", None], "z": [None, None, "f"]}
    assert load_rows(path).dataset[:] == columns
    part = HubRows(path, split="train[1:]")
    assert [part[i] for i in range(2)] == [
        {name: values[i] for name, values in columns.items()} for i in (1, 2)
    ]


def test_files_whose_types_differ_keep_their_values_or_are_named(tmp_path: Path) -> None:
    for kind, values in (("parquet", (1, 2.5)), ("jsonl", (1, 2.5)), ("jsonl", (1, "x"))):
        _write_parts(tmp_path, kind, [[{"x": value}] for value in values])
        assert load_rows(str(tmp_path / f"*.{kind}")).dataset["x"][:] == [*values]
    _write_parts(tmp_path, "parquet", [[{"x": 1}], [{"x": "y"}]])
    words = r"1\.parquet: the column 'x' is of type string, but of type int64 in the files before"
    with pytest.raises(ValueError, match=words):
        load_rows(str(tmp_path / "*.parquet"))


def test_splits_of_different_columns_are_read_together_and_a_bad_file_is_named(
    tmp_path: Path,
) -> None:
    (tmp_path / "train.jsonl").write_text('{"x": 1}')
    (tmp_path / "test.jsonl").write_text('{"y": 2}')
    both = HubRows(str(tmp_path), split="train+test")
    assert [both[0], both[1]] == [{"x": 1, "y": None}, {"x": None, "y": 2}]
    (tmp_path / "0.csv").write_text("x,y\n1,2\n")
    (tmp_path / "1.csv.gz").write_bytes(gzip.compress(b"y;x\n4;3\n"))
    assert load_rows(str(tmp_path / "*.csv*")).dataset[:] == {"x": ["1", "3"], "y": ["2", "4"]}
    (tmp_path / "1.csv").write_text("x,y\n1,2,3\n")
    with pytest.raises(ValueError, match=r"^\S*1\.csv cannot be read: Length of header"):
        load_rows(str(tmp_path / "*.csv"))
    (tmp_path / "1.parquet").write_text("no parquet")
    parquet.write_table(pa.table({"x": [1]}), tmp_path / "0.parquet")
    with pytest.raises(ValueError, match=r"^\S*1\.parquet cannot be read: Parquet"):
        load_rows(str(tmp_path / "*.parquet"))


def test_a_pattern_without_files_and_an_unknown_split_are_named(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"\*\.csv matches no file"):
        load_rows(str(tmp_path / "*.csv"))
    _write_parts(tmp_path, "jsonl", [[{"x": 1}]])
    for split in ("test", "train[:x]"):
        with pytest.raises(ValueError, match=f"0.jsonl has no split '{re.escape(split)}'"):
            HubRows(str(tmp_path / "0.jsonl"), split=split)


def test_lists_may_hold_arrays_and_surrogates_are_named() -> None:
    messages = [{"role": "user", "content": "a"}]
    items = [{"x": "text"}, {"x": tuple(messages)}, {"x": np.array(messages, dtype=object)}]
    assert load_rows(items).dataset["x"][:] == ["text", messages, messages]
    with pytest.raises(ValueError, match=r"row 1 \(from 0\) of list, x: .*'\\ud800'"):
        load_rows([{"x": "a"}, {"x": "b\ud800"}])
    with pytest.raises(ValueError, match=r"x in list cannot be stored: .*<object"):
        load_rows([{"x": object()}])


def test_a_date_beyond_the_year_9999_does_not_matter_in_an_unused_column(tmp_path: Path) -> None:
    table = pa.table({"prompt": ["a"], "day": pa.array([2**55], pa.timestamp("ms"))})
    assert PromptDataset(table).texts(torch.arange(1)) == [{"prompt": "a", "day": 2**55}]
    parquet.write_table(table, tmp_path / "a.parquet")
    assert HubRows(str(tmp_path / "a.parquet"))[0] == {"prompt": "a", "day": 2**55}


@pytest.mark.parametrize("kind", ["csv", "jsonl", "list"])
def test_a_number_that_is_none_is_named_by_row(kind: str, tmp_path: Path) -> None:
    items: Any = [{"prompt": "a", "completion": "b", "reward": r} for r in (1, "oops", 2)]
    source: Any = items
    if kind == "jsonl":
        source = tmp_path / "a.jsonl"
        source.write_text("\n".join(map(json.dumps, items)))
    elif kind == "csv":
        source = tmp_path / "a.csv"
        source.write_text("prompt,completion,reward\na,b,1\na,b,oops\na,b,2\n")
    words = r"reward in .* is not a number in rows \[1\] \(from 0\), where it is \['oops'\]"
    with pytest.raises(ValueError, match=words):
        DemonstrationDataset(source).column("reward")


@pytest.mark.parametrize(
    ("name", "text", "place"),
    [
        ("a.json", r'[{"x": "ok"}, {"x": ["\ud800b"]}]', "row 1 (from 0) of"),
        ("a.json", r'[{"x": "b\uDE00"}]', "row 0 (from 0) of"),
        ("a.jsonl", r'{"x": [{"y": "a\ud800b"}, {"y": "c"}]}', "line 1 of"),
        ("a.jsonl.gz", r'{"x": "\ud83d "}', "line 1 of"),
    ],
)
def test_half_a_surrogate_pair_is_named_in_any_json_file(
    name: str, text: str, place: str, tmp_path: Path
) -> None:
    # The reader of datasets leaves it out, or reads a file of one line as another table.
    data = text.encode()
    (tmp_path / name).write_bytes(gzip.compress(data) if name.endswith(".gz") else data)
    with pytest.raises(ValueError, match="half of a surrogate pair") as error:
        load_rows(tmp_path / name)
    assert str(error.value).startswith(place)
    assert name in str(error.value)


def test_whole_pairs_and_escaped_backslashes_are_text(tmp_path: Path) -> None:
    rows = [{"x": "\N{GRINNING FACE}"}, {"x": r"\ud800"}, {"x": "\N{GRINNING FACE}" * 3}]
    (tmp_path / "a.jsonl").write_text("\n".join(map(json.dumps, rows)))
    (tmp_path / "a.json").write_text(json.dumps(rows))
    for name in ("a.jsonl", "a.json"):
        assert load_rows(tmp_path / name).dataset[:]["x"] == [row["x"] for row in rows]


@pytest.mark.parametrize(
    "values", [("7", 7), (7, "007"), (7, 7.5), (None, 7), (["7"], [7]), (7, "seven")], ids=str
)
def test_values_keep_their_types_in_each_file_of_a_pattern(values: Any, tmp_path: Path) -> None:
    # They were converted to the type of the first file: "007" became 7.
    for number, value in enumerate(values):
        row = {"prompt": str(number), "answer": value}
        (tmp_path / f"{number}.jsonl").write_text(json.dumps(row) + "\n")
    read = load_rows(f"{tmp_path}/*.jsonl").dataset[:]["answer"]
    assert read == list(values)
    assert [isinstance(value, str) for value in read] == [isinstance(v, str) for v in values]


def test_a_cache_that_is_not_writable_is_named_with_the_remedy(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "a.jsonl").write_text('{"x": "a"}\n')
    (tmp_path / "home").touch()  # a file: nobody, not even root, can write below it
    monkeypatch.setattr("datasets.config.HF_DATASETS_CACHE", str(tmp_path / "home" / "datasets"))
    with pytest.raises(ValueError, match=r"a\.jsonl cannot be cached in .*home.*set HF_HOME"):
        load_rows(tmp_path / "a.jsonl")
