"""Hugging Face datasets from disk: the same items, batches, columns and ids as a table gives."""

import pickle
import sys
from pathlib import Path
from typing import Any

import datasets
import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from jsonargparse import ArgumentParser
from PIL import Image
from torch.utils.data import DataLoader, Dataset, default_collate

from lit_adaptive.data.sources.hub import HubDataset

SIZE = 6
NAMES = ["neg", "pos", "mixed"]


@pytest.fixture(scope="module", autouse=True)
def _no_progress_bars() -> Any:
    datasets.disable_progress_bars()
    yield
    datasets.enable_progress_bars()


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
    whole = _dataset()
    splits = datasets.DatasetDict(train=whole, test=whole.select([4, 1, 3]))
    splits.save_to_disk(str(folder / "splits"))
    whole.save_to_disk(str(folder / "single"))
    return folder


def test_serves_texts_and_class_labels_of_a_split(saved: Path) -> None:
    data = HubDataset(str(saved / "splits"), split="test", text="text", target="label", id="name")
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
def test_gather_equals_collating_the_items(
    saved: Path, index: list[int], kwargs: dict[str, Any]
) -> None:
    data = HubDataset(str(saved / "single"), **kwargs)
    batch, slow = data.gather(torch.tensor(index)), default_collate([data[i] for i in index])
    assert [*batch] == [*slow]
    for key, value in slow.items():
        assert batch[key].equal(value) if isinstance(value, torch.Tensor) else batch[key] == value


def test_vectors_and_numbers_make_one_input(saved: Path) -> None:
    data = HubDataset(str(saved / "splits"), split="test", features=["vector", "hard"])
    assert data[0]["input"].tolist() == [4.0, 4.5, -4.0, 2.0]
    assert data.targets is None
    assert isinstance(data.ids, torch.Tensor)
    assert data.ids.tolist() == [0, 1, 2]


def test_images_are_channels_first_in_the_unit_interval(saved: Path) -> None:
    data = HubDataset(str(saved / "splits"), split="test", image="image", target="label")
    image = data[0]["input"]
    assert image.shape == (3, 4, 5)
    assert image.dtype == torch.float32
    torch.testing.assert_close(image, torch.full((3, 4, 5), 40 / 255))
    wide = HubDataset(str(saved / "single"), image="image", transform=_width)
    assert wide.gather(torch.tensor([0, 5]))["input"].tolist() == [5.0, 5.0]


class _Shade(torch.nn.Module):
    def __init__(self, at: int) -> None:
        super().__init__()
        self.at = at

    def forward(self, image: Any) -> torch.Tensor:
        return torch.tensor(float(image.getpixel((self.at, 0))[0]))


def test_a_config_gives_the_transform_by_its_class(saved: Path) -> None:
    parser = ArgumentParser(exit_on_error=False)
    parser.add_argument("--data", type=Dataset)
    transform = {"class_path": f"{__name__}._Shade", "init_args": {"at": 1}}
    init_args = {"path": str(saved / "single"), "image": "image", "transform": transform}
    asked = {"class_path": "lit_adaptive.data.HubDataset", "init_args": init_args}
    data = parser.instantiate_classes(parser.parse_object({"data": asked})).data
    assert data.gather(torch.tensor([5, 2]))["input"].tolist() == [50.0, 20.0]


def test_images_need_no_other_column(tmp_path: Path) -> None:
    _dataset().select_columns(["image"]).save_to_disk(str(tmp_path / "images"))
    data = HubDataset(str(tmp_path / "images"), image="image")
    assert len(data) == SIZE
    assert set(data[5]) == {"input"}


def _width(image: Any) -> torch.Tensor:
    return torch.tensor(float(image.width))


def test_an_image_of_other_depth_asks_for_a_transform(tmp_path: Path) -> None:
    deep = datasets.Dataset.from_dict(
        {"image": [Image.fromarray(np.zeros((2, 2), dtype=np.int32))], "y": [0]},
        features=datasets.Features({"image": datasets.Image(), "y": datasets.Value("int64")}),
    )
    deep.save_to_disk(str(tmp_path / "deep"))
    with pytest.raises(ValueError, match="mode I, not of 8 bits a channel; pass transform="):
        HubDataset(str(tmp_path / "deep"), image="image", target="y")[0]


def test_worker_processes_serve_the_same_rows(saved: Path) -> None:
    data = HubDataset(
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
def test_reads_a_file_of_data(tmp_path: Path, suffix: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")
    path = str(tmp_path / f"a.{suffix}")
    columns = _dataset().select_columns(["text", "label", "hard"])
    getattr(columns, "to_json" if suffix == "jsonl" else f"to_{suffix}")(path)
    data = HubDataset(path, text="text", target="label")
    batch = data.gather(torch.tensor([5, 1]))
    assert batch["target"].tolist() == [2, 1]
    assert batch["text"] == ["text 5", "text 1"]
    assert data.column("hard").tolist() == [i / 2 for i in range(SIZE)]
    with pytest.raises(ValueError, match=r"Unknown split .test."):
        HubDataset(path, split="test", text="text")


def test_string_classes_are_numbered_in_sorted_order(saved: Path) -> None:
    data = HubDataset(str(saved / "splits"), split="test", text="text", target="name")
    assert data.classes == ["n1", "n3", "n4"]
    assert [data[i]["target"] for i in range(3)] == [2, 0, 1]


@pytest.mark.parametrize(
    ("kwargs", "words"),
    [
        ({"split": "dev"}, r"no split 'dev'; its splits are \['train', 'test'\]"),
        ({"features": ["q"]}, r"no column 'q'; its columns are \['name', 'text', 'label'"),
        ({"target": "q"}, "no column 'q'"),
        ({"image": "q"}, "no column 'q'"),
        ({"features": ["image"]}, r"type struct.*; features are numeric"),
        ({"features": ["text"]}, r"type string; features are numeric"),
        ({"features": ["gap"]}, r"gap in .*splits \(train\) is missing .* rows \[0\]"),
        ({"image": "image", "features": ["hard"]}, "only one can be the input"),
    ],
)
def test_names_what_is_wrong(saved: Path, kwargs: dict[str, Any], words: str) -> None:
    with pytest.raises(ValueError, match=words):
        HubDataset(str(saved / "splits"), **kwargs)


def test_names_what_is_wrong_with_a_column(saved: Path) -> None:
    data = HubDataset(str(saved / "single"), text="text")
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
    with pytest.raises(ValueError, match=r"no class, an integer from 0 to 1, in rows \[1\]"):
        HubDataset(str(tmp_path / "unlabelled"), text="t", target="y")


def test_a_single_dataset_answers_to_its_own_split_only(tmp_path: Path) -> None:
    rows = datasets.Dataset.from_dict({"x": [1.0]}, split="validation")
    rows.save_to_disk(str(tmp_path / "one"))
    assert len(HubDataset(str(tmp_path / "one"), split="validation")) == 1
    with pytest.raises(ValueError, match=r"no split 'train'; its splits are \['validation'\]"):
        HubDataset(str(tmp_path / "one"))


def test_names_a_path_where_nothing_is_without_asking_the_hub(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def asked(path: str, name: str | None, split: str) -> None:
        raise ConnectionError(f"asked the hub for {path}, {name}, {split}")

    monkeypatch.setattr(datasets, "load_dataset", asked)
    for path in (str(tmp_path / "none"), "./none", "a/b/none"):
        with pytest.raises(ValueError, match=r"none' cannot be loaded.*no such folder or file"):
            HubDataset(path)
    (tmp_path / "a.xlsx").touch()
    with pytest.raises(ValueError, match=r"ends in '\.xlsx'; it must be one of \['\.arrow'"):
        HubDataset(str(tmp_path / "a.xlsx"))
    with pytest.raises(ValueError, match=r"ConnectionError: asked the hub for o/n-1\.0, c, test"):
        HubDataset("o/n-1.0", name="c", split="test")


def test_says_what_to_install(saved: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "datasets", None)
    with pytest.raises(ModuleNotFoundError, match=r"pip install 'lit-adaptive\[hub\]'"):
        HubDataset(str(saved / "single"))
