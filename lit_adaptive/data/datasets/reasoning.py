"""Questions with an answer that a program can check: for rollouts that rewards judge.

ReasoningTask   a task of reasoning-gym; nothing to download    id, prompt, answer, metadata
Gsm8k           the layout of GSM8K                             id, prompt, answer
DeepScaleR      the layout of DeepScaleR, its own and verl's    id, prompt, answer

Other files and Hugging Face datasets with a ``prompt`` and an ``answer`` need no class: ``rows``
reads them.
"""

import operator
import re
import zlib
from collections.abc import Callable, Sequence
from difflib import get_close_matches
from pathlib import Path
from typing import Any, Literal

import pyarrow as pa
from torch.utils.data import Dataset

from lit_adaptive.data.sources.rows import HubRows, Rows, read_rows
from lit_adaptive.rollout.rewards.reasoning_gym import load_reasoning_gym, pack_metadata

Split = Literal["train", "validation", "test"]

_SHARES: dict[str, Sequence[int]] = {"train": (0, 1, 2), "validation": (3,), "test": (4,)}
_NUMBERS = 1_000_000  # of questions, to each seed
_IDLE = 1000  # questions in a row that are not new, until there are taken to be no more
_FINAL = re.compile(r"####[ \t]*([^\n]*\S)[ \t]*(?:\n|$)")
_SHOWN = 5


class QuestionRows(Dataset[dict[str, Any]]):
    """Rows of an Arrow table as dictionaries; the class behind the tasks.

    Attributes:
        table: its columns ``id``, ``prompt``, ``answer``, and others.
        ids: list of strings, all different.
        source: what errors call it.
    """

    def __init__(self, columns: dict[str, list[Any]], source: str) -> None:
        self.table: Any = pa.table(columns)
        self.ids: list[str] = columns["id"]
        self.source = source
        if not self.ids:
            raise ValueError(f"{source} has no rows; there is nothing to ask")

    def __len__(self) -> int:
        return len(self.ids)

    def __getitem__(self, index: int) -> dict[str, Any]:
        at = operator.index(index)
        if not -len(self) <= at < len(self):
            raise IndexError(f"row {at} of {self.source}, which has {len(self)} rows")
        row: dict[str, Any] = self.table.slice(at % len(self), 1).to_pylist()[0]
        return row


class ReasoningTask(QuestionRows):
    """A task of reasoning-gym (Stojanovski et al. 2025, arXiv:2505.24760) as rows.

    The columns: ``id``, ``prompt`` (the question), ``answer`` (a right one, or None where the task
    only has a scorer) and ``metadata`` (JSON, for the reward
    ``lit_adaptive.rollout.ReasoningGym``). Within a split no question comes twice. A
    question belongs to one split only, whatever the seed and size (its hash tells which): 3 of 5 to
    train, one each to validation and test. The same arguments give the same rows in every process.
    Needs ``pip install lit-adaptive[text]``.

    Args:
        name: of the task, such as ``chain_sum``, ``countdown`` or ``spell_backward``.
        size: questions, above 0.
        seed: other questions for another seed, not negative.
        split: ``train``, ``validation`` or ``test``.
        config: the task's own settings, such as ``min_terms: 2`` of ``chain_sum``.

    Raises:
        ModuleNotFoundError: if reasoning-gym is not installed.
        ValueError: if a number is out of range, there is no such task or setting, or it has fewer
            different questions than ``size``.
    """

    def __init__(
        self,
        name: str,
        size: int = 1000,
        seed: int = 0,
        split: Split = "train",
        config: dict[str, Any] | None = None,
    ) -> None:
        if split not in _SHARES:
            raise ValueError(f"split is {split!r}; it must be one of {[*_SHARES]}")
        for argument, value, least in (("size", size, 1), ("seed", seed, 0)):
            if value < least:
                raise ValueError(f"{argument} is {value}; it must be at least {least}")
        source = f"{name} ({split})"
        settings = dict(config or {})
        # Question i is made by Random(seed + i): seeds 1 and 2 would share all but one.
        generated = _created(name, settings, seed * _NUMBERS)
        found = _different(generated, size, split)
        if len(found) < size:
            raise ValueError(
                f"size is {size}, but {source} has only {len(found)} different questions with "
                f"{settings or 'its usual settings'}; lower size, or change config"
            )
        known = {"source_dataset": name} | ({"task_config": settings} if settings else {})
        super().__init__(
            {
                "id": [f"{name}-{seed}-{at}" for at, _ in found.values()],
                "prompt": [*found],
                "answer": [entry["answer"] for _, entry in found.values()],
                "metadata": [
                    pack_metadata(entry["metadata"] | known) for _, entry in found.values()
                ],
            },
            source,
        )


def _created(name: str, settings: dict[str, Any], seed: int) -> Any:
    gym = load_reasoning_gym()
    names = [each for each in gym.factory.DATASETS if each != "composite"]
    if name not in names:
        near = get_close_matches(name, names, n=3)
        hint = f"did you mean {' or '.join(near)}?" if near else f"there are {sorted(names)}"
        raise ValueError(f"name is {name!r}, which is no task of reasoning-gym: {hint}")
    try:
        return gym.create_dataset(name, size=_NUMBERS, seed=seed, **settings)
    except (TypeError, AssertionError, ValueError) as error:
        raise ValueError(f"config is {settings}, which {name} does not take: {error}") from error


def _different(generated: Any, size: int, split: Split) -> dict[str, tuple[int, dict[str, Any]]]:
    """Numbers and entries of the split's first different questions, by the question.

    There are fewer than ``size`` if the task seems to have no more of them.
    """
    found: dict[str, tuple[int, dict[str, Any]]] = {}
    idle = 0
    for at in range(_NUMBERS):
        idle += 1
        try:
            entry: dict[str, Any] = generated[at]
        except Exception:  # some tasks, now and then, cannot solve what they made
            if idle > _IDLE:
                raise
            continue
        question = str(entry["question"])
        if question not in found and zlib.crc32(question.encode()) % 5 in _SHARES[split]:
            found[question] = (at, entry)
            idle = 0
        if len(found) == size or idle > _IDLE:
            break
    return found


class Gsm8k(QuestionRows):
    """Questions in the layout of GSM8K (Cobbe et al. 2021, arXiv:2110.14168).

    The source has ``question`` and ``answer``; what follows ``####`` in the latter is the answer,
    here without thousands separators and currency signs: "1234".

    Args:
        source: path of a ``.jsonl``, ``.csv`` or ``.parquet`` file, or ``HubRows``.
        instruction: put behind each question, after an empty line.

    Raises:
        ValueError: if there is no such file, a column is missing, or an answer has no ``####``
            (which rows).
    """

    def __init__(self, source: str | HubRows, instruction: str | None = None) -> None:
        rows = read_rows(source)
        found = _read(rows, {"question": _column("question"), "answer": _column("answer")})
        answers = [_final(solution) for solution in found["answer"]]
        _refuse_none(answers, "answer", "has no number after ####", rows.source)
        prompts = [_instructed(question, instruction) for question in found["question"]]
        super().__init__(
            {"id": _ids(rows.source, len(answers)), "prompt": prompts, "answer": answers},
            rows.source,
        )


class DeepScaleR(QuestionRows):
    r"""Questions in the layouts of DeepScaleR (Luo et al. 2025): its own, and verl's.

    Its own has ``problem`` and ``answer``. verl's has ``prompt`` (messages) and ``reward_model``
    with its ``ground_truth``; there the instruction is a message of the system. Answers are LaTeX,
    such as ``-\frac{\sqrt{3}}{3}``: judge them with ``MathVerify``.

    Args:
        source: path of a ``.jsonl``, ``.csv`` or ``.parquet`` file, or ``HubRows``.
        instruction: put behind each question, after an empty line; by default what the source's
            system message says, if it has one. An empty string: none.

    Raises:
        ValueError: if there is no such file, a column is missing, or an answer is (which rows).
    """

    def __init__(self, source: str | HubRows, instruction: str | None = None) -> None:
        rows = read_rows(source)
        names = next(rows.chunks(), {}).keys()
        if "reward_model" in names:
            read = {"prompt": _column("prompt"), "answer": _ground_truths}
        else:
            read = {"prompt": _column("problem"), "answer": _column("answer")}
        found = _read(rows, read)
        answers = [None if each is None else str(each).strip() or None for each in found["answer"]]
        _refuse_none(answers, "answer", "is missing or empty", rows.source)
        super().__init__(
            {
                "id": _ids(rows.source, len(answers)),
                "prompt": [_said(prompt, instruction) for prompt in found["prompt"]],
                "answer": answers,
            },
            rows.source,
        )


_Read = Callable[[dict[str, list[Any]], str], list[Any]]


def _read(rows: Rows, columns: dict[str, _Read]) -> dict[str, list[Any]]:
    found: dict[str, list[Any]] = {name: [] for name in columns}
    for chunk in rows.chunks():
        for name, read in columns.items():
            found[name] += read(chunk, rows.source)
    for name, values in found.items():
        if name != "answer":
            _refuse_none(values, name, "is missing", rows.source)
    return found


def _column(name: str) -> _Read:
    def read(chunk: dict[str, list[Any]], source: str) -> list[Any]:
        if name not in chunk:
            raise ValueError(
                f"{source} has no column {name!r} but {sorted(chunk)}; give a file of the layout "
                "that this class reads, or one with the columns prompt and answer by its path alone"
            )
        return chunk[name]

    return read


def _ground_truths(chunk: dict[str, list[Any]], source: str) -> list[Any]:
    judged = _column("reward_model")(chunk, source)
    return [None if each is None else each.get("ground_truth") for each in judged]


def _refuse_none(values: list[Any], name: str, what: str, source: str) -> None:
    missing = [row for row, value in enumerate(values) if value is None]
    if missing:
        more = f" and {len(missing) - _SHOWN} more" if len(missing) > _SHOWN else ""
        raise ValueError(
            f"the column {name!r} of {source} {what} in the rows {missing[:_SHOWN]}{more} "
            "(counted from 0); mend or leave out these rows"
        )


def _final(solution: Any) -> str | None:
    """What stands behind the last ``####``, without what a number does not need."""
    marked = _FINAL.findall("" if solution is None else str(solution))
    return re.sub(r"[,$€£\s]", "", marked[-1]).rstrip(".") or None if marked else None


def _said(prompt: Any, instruction: str | None) -> str:
    """A question, or messages of which the system's is the instruction."""
    if isinstance(prompt, str):
        return _instructed(prompt, instruction)
    by_role = {message["role"]: str(message["content"]).strip() for message in prompt}
    if instruction is None:
        instruction = by_role.get("system")
    return _instructed(by_role.get("user", ""), instruction)


def _instructed(question: Any, instruction: str | None) -> str:
    return f"{question}\n\n{instruction}" if instruction else str(question)


def _ids(source: str, size: int) -> list[str]:
    name = Path(source).stem
    return [f"{name}-{row}" for row in range(size)]
