"""A run resumes on the data it began with, or says what changed."""

from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
import torch
from pyarrow import parquet
from torch import Tensor
from torch.utils.data import Dataset, TensorDataset

from lit_adaptive.data import (
    AdaptiveDataModule,
    DemonstrationDataset,
    DemonstrationsDataModule,
    LongTailedDigits,
    PromptDataset,
    RolloutDataModule,
    TableDataset,
)
from lit_adaptive.data.fingerprint import row_hashes
from lit_adaptive.replay import RolloutBuffer

ROWS = [{"prompt": f"{i}+1=", "completion": str(i + 1), "answer": str(i + 1)} for i in range(100)]


def _edited(row: int, column: str, value: str) -> list[dict[str, Any]]:
    return [{**each, column: value} if i == row else each for i, each in enumerate(ROWS)]


def _demonstrations(rows: Any, **options: Any) -> DemonstrationsDataModule:
    return DemonstrationsDataModule(DemonstrationDataset(rows), batch_size=4, **options)


def _rollouts(rows: Any, **options: Any) -> RolloutDataModule:
    dataset = PromptDataset(rows)
    return RolloutDataModule(dataset, replay=RolloutBuffer(8), batch_size=4, **options)


def _table(rows: list[dict[str, Any]], **options: Any) -> AdaptiveDataModule:
    table = pa.table({"x": [float(row["answer"]) for row in rows], "y": [0, 1] * 50})
    csv = "x,y\n" + "\n".join(f"{x},{y}" for x, y in zip(table["x"], table["y"], strict=True))
    path = Path(options.pop("folder")) / "table.csv"
    path.write_text(csv)
    return AdaptiveDataModule(TableDataset(path, target="y"), batch_size=4, **options)


CASES = {
    "a text": (_edited(70, "prompt", "1+1="), r"prompt changed, first in rows 70 to 71 \(from 0\)"),
    "an answer": (_edited(10, "answer", "0"), r"answer changed, first in rows 10 to 11 \(from 0\)"),
    "the order": ([*ROWS[50:], *ROWS[:50]], "the rows are in another order"),
    "the number": (ROWS[:99], "there are 99 rows, and were 100"),
}


@pytest.mark.parametrize("build", [_demonstrations, _rollouts])
@pytest.mark.parametrize("case", CASES)
def test_changed_rows_are_named_on_resume(build: Any, case: str) -> None:
    rows, words = CASES[case]
    state = build(ROWS).state_dict()
    build([dict(row) for row in ROWS]).load_state_dict(state)
    with pytest.raises(ValueError, match=f"the training data .* not those of the .*: {words}"):
        build(rows).load_state_dict(state)
    if case == "the number":
        with pytest.raises(ValueError, match="sampler's state is of those rows: resume with them"):
            build(rows, on_changed_data="warn").load_state_dict(state)
        return
    with pytest.raises(ValueError, match="or set on_changed_data: warn to go on"):
        build(rows).load_state_dict(state)
    with pytest.warns(UserWarning, match=words):
        build(rows, on_changed_data="warn").load_state_dict(state)


def test_a_further_column_or_another_file_of_the_same_rows_is_no_change(tmp_path: Path) -> None:
    state = _demonstrations(ROWS).state_dict()
    _demonstrations([{**row, "more": 1} for row in ROWS]).load_state_dict(state)
    parquet.write_table(pa.Table.from_pylist(ROWS), tmp_path / "a.parquet", row_group_size=7)
    _demonstrations(str(tmp_path / "a.parquet")).load_state_dict(state)


def test_a_table_with_one_other_number_is_named(tmp_path: Path) -> None:
    state = _table(ROWS, folder=tmp_path).state_dict()
    _table(ROWS, folder=tmp_path).load_state_dict(state)
    with pytest.raises(ValueError, match=r"x, input changed, first in rows 42 to 43"):
        _table(_edited(43, "answer", "0.5"), folder=tmp_path).load_state_dict(state)


def test_label_noise_added_to_a_map_style_dataset_is_named() -> None:
    state = AdaptiveDataModule(LongTailedDigits()).state_dict()
    with pytest.raises(ValueError, match=r"targets.* changed, first in rows"):
        AdaptiveDataModule(LongTailedDigits(label_noise=0.01)).load_state_dict(state)
    inputs = torch.randn(40, 3)
    state = AdaptiveDataModule(TensorDataset(inputs, torch.arange(40))).state_dict()
    AdaptiveDataModule(TensorDataset(inputs.clone(), torch.arange(40))).load_state_dict(state)
    flipped = TensorDataset(inputs, torch.arange(40).flip(0))
    with pytest.raises(ValueError, match="items changed, first in rows"):
        AdaptiveDataModule(flipped).load_state_dict(state)


class _Augmented(Dataset[Any]):
    """Items with noise of torch's generator, or of one that nobody seeds."""

    def __init__(self, unseeded: bool) -> None:
        self.generator = np.random.default_rng() if unseeded else None

    def __len__(self) -> int:
        return 50

    def __getitem__(self, index: int) -> tuple[Tensor, int]:
        noise = torch.rand(3)
        if self.generator is not None:
            noise += float(self.generator.random())
        return index + noise, index


@pytest.mark.parametrize("unseeded", [False, True])
def test_random_augmentations_are_no_change(unseeded: bool) -> None:
    state = AdaptiveDataModule(_Augmented(unseeded)).state_dict()
    torch.rand(7)
    AdaptiveDataModule(_Augmented(unseeded)).load_state_dict(state)


def test_a_state_without_fingerprint_and_tests_load(tmp_path: Path) -> None:
    state = _demonstrations(ROWS).state_dict()
    torch.save(state, tmp_path / "state.pt")
    state = torch.load(tmp_path / "state.pt", weights_only=True)
    del state["data"]
    _demonstrations(CASES["a text"][0]).load_state_dict(state)
    with pytest.raises(ValueError, match="on_changed_data is 'ignore'; it must be error or warn"):
        _demonstrations(ROWS, on_changed_data="ignore")


@pytest.mark.parametrize(
    "values",
    [
        torch.arange(30_000),
        torch.randn(30_000, 3, dtype=torch.bfloat16),
        torch.arange(30_000).bool(),
        pa.chunked_array([[f"text {i}" for i in range(15_000)], [None] * 15_000]),
        pa.chunked_array([[[i, 1] for i in range(30_000)]]),
        pa.chunked_array([pa.array(range(30_000), pa.int64()).cast(pa.timestamp("s"))]),
    ],
    ids=["numbers", "vectors", "flags", "texts", "lists", "dates"],
)
def test_a_row_s_hash_depends_on_that_row_alone(values: Any) -> None:
    hashes = row_hashes(values)
    assert hashes.shape == (30_000,)
    part = values[100:200] if torch.is_tensor(values) else values.slice(100, 100)
    assert (row_hashes(part) == hashes[100:200]).all()


def test_different_texts_have_different_hashes() -> None:
    texts = pa.chunked_array([pa.array([f"question {i}" for i in range(100_000)])])
    assert len(np.unique(row_hashes(texts))) == 100_000
