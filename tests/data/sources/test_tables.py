"""Tables as datasets: the same items from any file, saved dataset or image column."""

import json
import pickle
from pathlib import Path
from typing import Any

import datasets
import numpy as np
import pyarrow as pa
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from jsonargparse import ArgumentParser
from PIL import Image
from pyarrow import parquet
from torch.utils.data import DataLoader, Dataset, default_collate

from lit_adaptive.data import AdaptiveDataModule
from lit_adaptive.data.sources import rows
from lit_adaptive.data.sources.tables import TableDataset

pytestmark = pytest.mark.filterwarnings("ignore:.*are not numeric and no features")

ROWS = [
    {"key": "k2", "x": 1.5, "y": 2, "kind": "cat", "day": "2020-01-01", "note": "two\nlines"},
    {"key": "k0", "x": -2.0, "y": 0, "kind": "dog", "day": "2020-01-02", "note": "42"},
    {"key": "k1", "x": 0.25, "y": 7, "kind": "ant", "day": "2020-01-03", "note": 'a "b", c'},
]
SIZE = 6
NAMES = ["neg", "pos", "mixed"]


def _file(folder: Path, body: str, name: str = "a.csv") -> Path:
    path = folder / name
    path.write_text(body, encoding="utf-8")
    return path


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
    path = tmp_path_factory.getbasetemp() / "a.csv"
    if not path.exists():
        _three(path.parent)
    roles = {"text": "note", "features": ["y", "x"]} if text else {}
    data = TableDataset(path, target="kind", **roles)  # type: ignore[arg-type]
    batch, slow = data.gather(torch.tensor(index)), default_collate([data[i] for i in index])
    assert [*batch] == [*slow]
    for key, value in slow.items():
        assert batch[key].equal(value) if isinstance(value, torch.Tensor) else batch[key] == value
        assert getattr(batch[key], "dtype", None) == getattr(value, "dtype", None)


def test_all_numeric_columns_without_a_role_are_features(tmp_path: Path) -> None:
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
    with pytest.raises(ValueError, match=r"not a vector of 2 numbers in rows \[1, 2\]"):
        TableDataset(odd, features=["v"])


@pytest.mark.parametrize("name", ["a.csv", "a.jsonl"])
def test_all_rows_decide_the_type_of_a_column(
    tmp_path: Path, name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(rows, "_JSON_CHUNK", 1 << 19)  # 16 KiB blocks: the last row is in another
    values = ["1"] * 20_000 + ["2.5"]
    body = (
        "x\n" + "\n".join(values) if name == "a.csv" else "\n".join(f'{{"x":{r}}}' for r in values)
    )
    column = TableDataset(_file(tmp_path, body + "\n", name)).column("x")
    assert column[-1] == 2.5
    assert column.sum() == 20_002.5


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


def test_classes_number_the_targets_of_a_file_that_lacks_some(tmp_path: Path) -> None:
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
        ({"features": ["gap"]}, r"gap in .*a\.csv is missing .* rows \[1\] .* \[None\]"),
        ({"features": ["x"]}, r"not a finite float32 in rows \[1, 2\]"),
        ({"target": "y", "text": "kind"}, r"not a class, .* rows \[1, 2\] .* \[1\.5, -1\.0\]"),
        ({"features": []}, "has no input for a model"),
    ],
)
def test_a_table_that_cannot_be_used_is_named_by_column_and_row(
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
def test_a_column_that_is_not_numeric_or_finite_is_named(
    tmp_path: Path, name: str, words: str
) -> None:
    data = TableDataset(_file(tmp_path, MIXED), text="kind")
    assert data.column("y").tolist() == [0.0, 1.5, -1.0]
    with pytest.raises(ValueError, match=words):
        data.column(name)


def test_missing_targets_texts_and_ids_are_named_by_row(tmp_path: Path) -> None:
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


def test_a_file_that_is_not_a_table_is_named(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"no such file or folder"):
        TableDataset(tmp_path / "a.txt")
    with pytest.raises(ValueError, match=r"x in .*a\.jsonl holds values of several types"):
        TableDataset(_file(tmp_path, '{"x":1}\n{"x":"a"}\n', "a.jsonl"), features=["x"])


def _dataset() -> Any:
    features = datasets.Features(
        {
            "name": datasets.Value("string"),
            "text": datasets.Value("string"),
            "label": datasets.ClassLabel(names=NAMES),
            "hard": datasets.Value("float32"),
            "gap": datasets.Value("float64"),
            "vector": datasets.List(datasets.Value("float32"), length=3),
            "image": datasets.Image(),
        }
    )
    pixels = [np.full((4, 5, 3), 10 * i, dtype=np.uint8) for i in range(SIZE)]
    columns = {
        "name": [f"n{i}" for i in range(SIZE)],
        "text": [f"text {i}" for i in range(SIZE)],
        "label": [i % 3 for i in range(SIZE)],
        "hard": [i / 2 for i in range(SIZE)],
        "gap": [None, *range(1, SIZE)],
        "vector": [[i, i + 0.5, -i] for i in range(SIZE)],
        "image": [Image.fromarray(p) for p in pixels],
    }
    return datasets.Dataset.from_dict(columns, features=features)


@pytest.fixture(scope="module")
def saved(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Splits ``train`` and ``test``; the latter is a choice of rows, in another order."""
    folder = tmp_path_factory.mktemp("hub")
    dataset = _dataset()
    splits = datasets.DatasetDict(train=dataset, test=dataset.select([4, 1, 3]))
    splits.save_to_disk(str(folder / "splits"))
    dataset.save_to_disk(str(folder / "single"))
    return folder


class _Shade(torch.nn.Module):
    def __init__(self, at: int) -> None:
        super().__init__()
        self.at = at

    def forward(self, image: Any) -> torch.Tensor:
        return torch.tensor(float(image.getpixel((self.at, 0))[0]))


def _width(image: Any) -> torch.Tensor:
    return torch.tensor(float(image.width))


@pytest.fixture(scope="module", autouse=True)
def _no_progress_bars() -> Any:
    datasets.disable_progress_bars()
    yield
    datasets.enable_progress_bars()


def test_a_saved_split_has_texts_and_class_labels(saved: Path) -> None:
    data = TableDataset(str(saved / "splits"), split="test", text="text", target="label", id="name")
    assert [data[i] for i in range(len(data))] == [
        {"target": 1, "text": "text 4"},
        {"target": 1, "text": "text 1"},
        {"target": 0, "text": "text 3"},
    ]
    assert data.classes == NAMES
    assert data.ids == ["n4", "n1", "n3"]
    assert data.targets is not None
    assert data.targets.tolist() == [1, 1, 0]
    assert data.column("hard").tolist() == [2.0, 0.5, 1.5]


@given(
    index=st.lists(st.integers(0, SIZE - 1), min_size=1, max_size=8),
    kwargs=st.sampled_from(
        [
            {"features": ["vector", "hard"]},
            {"features": ["hard"], "text": "text"},
            {"image": "image"},
            {"image": "image", "text": "text", "target": "label"},
        ]
    ),
)
def test_gather_equals_collating_the_items_of_a_saved_dataset(
    saved: Path, index: list[int], kwargs: dict[str, Any]
) -> None:
    data = TableDataset(str(saved / "single"), **kwargs)
    batch, slow = data.gather(torch.tensor(index)), default_collate([data[i] for i in index])
    assert [*batch] == [*slow]
    for key, value in slow.items():
        assert batch[key].equal(value) if isinstance(value, torch.Tensor) else batch[key] == value


def test_vectors_and_numbers_make_one_input(saved: Path) -> None:
    data = TableDataset(str(saved / "splits"), split="test", features=["vector", "hard"])
    assert data[0]["input"].tolist() == [4.0, 4.5, -4.0, 2.0]
    assert data.targets is None
    assert isinstance(data.ids, torch.Tensor)
    assert data.ids.tolist() == [0, 1, 2]


def test_images_are_channels_first_in_the_unit_interval(saved: Path) -> None:
    data = TableDataset(str(saved / "splits"), split="test", image="image", target="label")
    image = data[0]["input"]
    assert image.shape == (3, 4, 5)
    assert image.dtype == torch.float32
    torch.testing.assert_close(image, torch.full((3, 4, 5), 40 / 255))
    wide = TableDataset(str(saved / "single"), image="image", transform=_width)
    assert wide.gather(torch.tensor([0, 5]))["input"].tolist() == [5.0, 5.0]


def test_yaml_names_the_transform_by_its_class(saved: Path) -> None:
    parser = ArgumentParser(exit_on_error=False)
    parser.add_argument("--data", type=Dataset)
    transform = {"class_path": f"{__name__}._Shade", "init_args": {"at": 1}}
    init_args = {"path": str(saved / "single"), "image": "image", "transform": transform}
    table = {"class_path": "lit_adaptive.data.TableDataset", "init_args": init_args}
    data = parser.instantiate_classes(parser.parse_object({"data": table})).data
    assert data.gather(torch.tensor([5, 2]))["input"].tolist() == [50.0, 20.0]


def test_images_need_no_other_column(tmp_path: Path) -> None:
    _dataset().select_columns(["image"]).save_to_disk(str(tmp_path / "images"))
    data = TableDataset(str(tmp_path / "images"), image="image")
    assert len(data) == SIZE
    assert set(data[5]) == {"input"}


def test_an_image_without_8_bits_per_channel_needs_a_transform(tmp_path: Path) -> None:
    deep = datasets.Dataset.from_dict(
        {"image": [Image.fromarray(np.zeros((2, 2), dtype=np.int32))], "y": [0]},
        features=datasets.Features({"image": datasets.Image(), "y": datasets.Value("int64")}),
    )
    deep.save_to_disk(str(tmp_path / "deep"))
    with pytest.raises(ValueError, match="mode I, not 8 bits per channel; pass transform="):
        TableDataset(str(tmp_path / "deep"), image="image", target="y")[0]


def test_worker_processes_serve_the_same_images(saved: Path) -> None:
    data = TableDataset(
        str(saved / "splits"), split="test", target="label", text="text", image="image"
    )
    far: Any = DataLoader(data, 2, num_workers=1, multiprocessing_context="spawn")
    near: Any = DataLoader(data, 2)
    for there, here in zip(far, near, strict=True):
        assert there["target"].equal(here["target"])
        assert there["input"].equal(here["input"])
        assert there["text"] == here["text"]
    assert pickle.loads(pickle.dumps(data)).column("hard").tolist() == [2.0, 0.5, 1.5]


@pytest.mark.parametrize("suffix", ["csv", "jsonl", "parquet"])
def test_class_labels_and_numbers_are_read_from_a_file(
    tmp_path: Path, suffix: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")
    path = str(tmp_path / f"a.{suffix}")
    columns = _dataset().select_columns(["text", "label", "hard"])
    getattr(columns, "to_json" if suffix == "jsonl" else f"to_{suffix}")(path)
    data = TableDataset(path, text="text", target="label")
    batch = data.gather(torch.tensor([5, 1]))
    assert batch["target"].tolist() == [2, 1]
    assert batch["text"] == ["text 5", "text 1"]
    assert data.column("hard").tolist() == [i / 2 for i in range(SIZE)]
    with pytest.raises(ValueError, match=r"Unknown split .test."):
        TableDataset(path, split="test", text="text")


def test_string_classes_are_numbered_in_sorted_order(saved: Path) -> None:
    data = TableDataset(str(saved / "splits"), split="test", text="text", target="name")
    assert data.classes == ["n1", "n3", "n4"]
    assert [data[i]["target"] for i in range(3)] == [2, 0, 1]


@pytest.mark.parametrize(
    ("kwargs", "words"),
    [
        ({"split": "dev"}, r"no split 'dev'; its splits are \['train', 'test'\]"),
        ({"features": ["q"]}, r"no column 'q'; its columns are \['name', 'text', 'label'"),
        ({"target": "q"}, "no column 'q'"),
        ({"image": "q"}, "no column 'q'"),
        ({"features": ["image"]}, r"type struct.*; features are numbers or strings"),
        ({"features": ["gap"]}, r"gap in .*splits \(train\) is missing .* rows \[0\]"),
        ({"image": "image", "features": ["hard"]}, "only one can be the input"),
    ],
)
def test_a_split_or_column_that_cannot_be_used_is_named(
    saved: Path, kwargs: dict[str, Any], words: str
) -> None:
    with pytest.raises(ValueError, match=words):
        TableDataset(str(saved / "splits"), **kwargs)


def test_a_column_of_a_saved_dataset_that_is_not_numeric_is_named(saved: Path) -> None:
    data = TableDataset(str(saved / "single"), text="text")
    for name, words in (
        ("q", "no column 'q'"),
        ("name", "type string, not numeric; numeric columns are "),
        ("gap", r"gap in .* not finite in rows \[0\]"),
    ):
        with pytest.raises(ValueError, match=words):
            data.column(name)


def test_an_unlabelled_row_is_named(tmp_path: Path) -> None:
    features = datasets.Features({"t": datasets.Value("string"), "y": datasets.ClassLabel(2)})
    rows = datasets.Dataset.from_dict({"t": ["a", "b"], "y": [1, -1]}, features=features)
    rows.save_to_disk(str(tmp_path / "unlabelled"))
    with pytest.raises(ValueError, match=r"not a class, an integer from 0 to 1, in rows \[1\]"):
        TableDataset(str(tmp_path / "unlabelled"), text="t", target="y")


def test_a_saved_dataset_has_its_own_split_only(tmp_path: Path) -> None:
    rows = datasets.Dataset.from_dict({"x": [1.0]}, split="validation")
    rows.save_to_disk(str(tmp_path / "one"))
    assert len(TableDataset(str(tmp_path / "one"), split="validation")) == 1
    with pytest.raises(ValueError, match=r"no split 'train'; its splits are \['validation'\]"):
        TableDataset(str(tmp_path / "one"))


def _csv(path: Path, text: str) -> TableDataset:
    path.write_text(text)
    return TableDataset(path, target="y")


def test_a_validation_file_of_another_order_or_other_classes_is_an_error(tmp_path: Path) -> None:
    train = _csv(tmp_path / "train.csv", "a,b,y\n1,2,cat\n3,4,dog\n5,6,eel\n")
    swapped = _csv(tmp_path / "swapped.csv", "b,a,y\n2,1,cat\n4,3,dog\n6,5,eel\n")
    lacking = _csv(tmp_path / "lacking.csv", "a,b,y\n1,2,cat\n5,6,eel\n")
    for name in ("val_dataset", "test_dataset"):
        with pytest.raises(ValueError, match=rf"{name} has the features \['b', 'a'\]"):
            AdaptiveDataModule(train, **{name: swapped})
        with pytest.raises(ValueError, match=rf"{name} numbers its classes \['cat', 'eel'\]"):
            AdaptiveDataModule(train, **{name: lacking})
    named = TableDataset(tmp_path / "swapped.csv", features=["a", "b"], target="y")
    assert named.inputs is not None
    assert named.inputs[0].tolist() == [1, 2]
    given = TableDataset(tmp_path / "lacking.csv", target="y", classes=train.classes)
    AdaptiveDataModule(train, val_dataset=named, test_dataset=given)


def test_integer_classes_keep_their_numbers_where_the_last_is_missing(tmp_path: Path) -> None:
    train = _csv(tmp_path / "train.csv", "a,y\n1,0\n3,1\n5,2\n")
    lacking = _csv(tmp_path / "lacking.csv", "a,y\n1,0\n3,1\n")
    AdaptiveDataModule(train, val_dataset=lacking)
    with pytest.raises(ValueError, match="val_dataset numbers its classes"):
        AdaptiveDataModule(lacking, val_dataset=train)


@pytest.mark.parametrize("cell", ["?", "1,000", "n.a.", "-", "1.2.3"])
def test_a_cell_that_is_no_number_is_named_with_its_row(tmp_path: Path, cell: str) -> None:
    rows = f'a,b,y\n1,2,0\n3,"{cell}",1\n5,6,0\n'
    with pytest.raises(ValueError, match=r"b in .* is not a number.* in rows \[1\]"):
        _csv(tmp_path / "table.csv", rows)


def test_columns_that_are_left_out_are_named(tmp_path: Path) -> None:
    with pytest.warns(UserWarning, match=r"\['colour'\] are not numeric"):
        dataset = _csv(tmp_path / "table.csv", "a,colour,y\n1,red,0\n3,blue,1\n")
    assert dataset.feature_names == ["a"]


@pytest.mark.parametrize("label", ["", " ", '"  "'])
def test_an_empty_label_is_missing(tmp_path: Path, label: str) -> None:
    with pytest.raises(ValueError, match=r"y in .* is missing in rows \[1\]"):
        _csv(tmp_path / "table.csv", f"a,y\n1,cat\n3,{label}\n4,dog\n")


@pytest.mark.parametrize("key", ["weight", "index", "probability", "counted"])
def test_a_key_that_the_datamodule_adds_is_rejected(key: str) -> None:
    items: Any = [{"input": torch.zeros(2), "target": 0, key: 1.0}] * 4
    data = AdaptiveDataModule(items, val_dataset=items, batch_size=2)
    for read in (
        lambda: data.provides,
        lambda: list(data.train_dataloader()),
        lambda: list(data.val_dataloader()),
    ):
        with pytest.raises(ValueError, match=rf"items have \['{key}'\].*rename"):
            read()


def test_columns_of_strings_are_one_hot_encoded_beside_numbers(tmp_path: Path) -> None:
    train = TableDataset(
        _file(tmp_path, "x,color\n1,red\n2,blue\n3,red\n"), features=["x", "color"]
    )
    assert train.categories == {"color": ["blue", "red"]}
    assert train.inputs[torch.arange(3)].tolist() == [[1, 0, 1], [2, 1, 0], [3, 0, 1]]


def test_another_set_is_encoded_by_the_categories_of_the_training_set(tmp_path: Path) -> None:
    features = ["x", "color"]
    train = TableDataset(_file(tmp_path, "x,color\n1,red\n2,blue\n"), features=features)
    new = TableDataset(_file(tmp_path, "x,color\n5,red\n", "new.csv"), features=features)
    AdaptiveDataModule(train, test_dataset=new)
    assert new[0]["input"].tolist() == [5, 0, 1]
    other = TableDataset(_file(tmp_path, "x,color\n5,green\n", "b.csv"), features=features)
    words = (
        r"color in .*b\.csv is no category of the training set \(\['blue', 'red'\]\) in rows \[0\]"
    )
    with pytest.raises(
        ValueError, match=words + r".*\['green'\]; correct these rows or leave them"
    ):
        AdaptiveDataModule(train, val_dataset=other)


def test_a_missing_category_is_named(tmp_path: Path) -> None:
    file = _file(tmp_path, "x,color\n1,red\n2,\n")
    with pytest.raises(ValueError, match=r"color in .* is missing in rows \[1\]"):
        TableDataset(file, features=["x", "color"])
