"""Sums to learn from: a language task with graded demonstrations and nothing to download."""

import operator as operators_of
from collections.abc import Sequence
from typing import Any, Literal, NamedTuple, TypeAlias

import numpy as np
import numpy.typing as npt
import pyarrow as pa
from torch import Tensor
from torch.utils.data import Dataset

from lit_adaptive.data.sources.columns import Table, numbers, numeric_columns, refuse_missing

Split = Literal["train", "validation", "test"]
GRADES = ("correct", "sloppy", "wrong")

_Array: TypeAlias = npt.NDArray[np.int64]
_SPLITS: dict[str, tuple[int, ...]] = {
    "train": (0, 1, 2, 3, 4, 5, 6, 7),
    "validation": (8,),
    "test": (9,),
}
_OPERATORS = "+-*"
_IDLE_ROUNDS = 50  # without a new question, until there are taken to be no more


class _Questions(NamedTuple):
    """Two operands and an operator each: ``[N]`` int64; the operator is its place in ``+-*``."""

    left: _Array
    right: _Array
    operator: _Array

    def take(self, index: Any) -> "_Questions":
        return _Questions(*(part[index] for part in self))


class Arithmetic(Dataset[dict[str, Any]]):
    """Questions such as ``37+45=`` with demonstrations that are correct, sloppy or wrong.

    The columns: ``prompt`` ("37+45="), ``completion`` (what the demonstration says), ``answer``
    (the right one, "82"), ``reward`` (1 correct, ``sloppy_reward`` sloppy, 0 wrong), ``difficulty``
    (digits of both operands, and one more for each carry or borrow; of products, for each pair of
    digits), ``grade`` (its name) and ``id`` ("37+45#0", the number being the demonstration's).

    Operands have 1 to ``digits`` digits, each count equally often while the questions last; a
    difference is never negative. Within a split no question comes twice. A question belongs to one
    split only, whatever the seed and size (its hash tells which; ``3+4`` and ``4+3`` belong
    together): 8 of 10 to train, one each to validation and test. The same arguments give the same
    rows in every process.

    Sloppy is, one half each, an answer off by one or with one digit wrong; wrong is another number
    of about the same size that is neither. How many there are of each grade is exact, up to
    rounding; which, is random.

    Args:
        split: ``train``, ``validation`` or ``test``.
        size: questions, above 0.
        digits: at most so many an operand, from 1 to 9 (4 with products).
        operators: some of ``+``, ``-`` and ``*``, drawn equally often.
        correct: share of the demonstrations; the three shares add up to 1.
        sloppy: share of the demonstrations.
        wrong: share of the demonstrations.
        sloppy_reward: in [0, 1].
        demonstrations_per_prompt: above 0.
        seed: other questions and mistakes for another seed, not negative.

    Attributes:
        table: the columns as an Arrow table of ``size * demonstrations_per_prompt`` rows.
        ids: list of strings, all different.

    Raises:
        ValueError: naming the argument that is out of its range, or if a split has fewer different
            questions than ``size``.
    """

    def __init__(
        self,
        split: Split = "train",
        *,
        size: int = 2000,
        digits: int = 2,
        operators: str = "+-",
        correct: float = 1.0,
        sloppy: float = 0.0,
        wrong: float = 0.0,
        sloppy_reward: float = 0.5,
        demonstrations_per_prompt: int = 1,
        seed: int = 0,
    ) -> None:
        if split not in _SPLITS:
            raise ValueError(f"split is {split!r}; it must be one of {[*_SPLITS]}")
        _check_counts(size, digits, operators, demonstrations_per_prompt, seed)
        shares = (correct, sloppy, wrong)
        if not (all(share >= 0 for share in shares) and abs(sum(shares) - 1) <= 1e-6):
            raise ValueError(
                f"correct, sloppy and wrong are {shares}; they must not be negative and add up to 1"
            )
        if not 0 <= sloppy_reward <= 1:
            raise ValueError(f"sloppy_reward is {sloppy_reward}; it must lie in [0, 1]")
        source = np.random.default_rng((seed, [*_SPLITS].index(split)))
        asked = _drawn(source, size, digits, operators, split)
        difficulty = difficulties(*asked)
        each = asked.take(np.arange(size).repeat(demonstrations_per_prompt))
        answer = _answers(each)
        grade = source.permutation(np.arange(3).repeat(_exact(shares, len(answer))))
        said = np.where(grade == 0, answer, _sloppy(source, answer))
        said = np.where(grade == 2, _wrong(source, answer), said)
        self.table = _table(
            each,
            said,
            answer,
            np.array([1.0, sloppy_reward, 0.0])[grade],
            difficulty.repeat(demonstrations_per_prompt),
            grade,
            np.tile(np.arange(demonstrations_per_prompt), size),
        )
        self.ids: list[str] = self.table["id"].to_pylist()
        self.source = f"Arithmetic ({split})"

    def __len__(self) -> int:
        return int(self.table.num_rows)

    def __getitem__(self, index: int) -> dict[str, Any]:
        at = operators_of.index(index)
        if not -len(self) <= at < len(self):
            raise IndexError(f"row {at} of {self.source}, which has {len(self)} rows")
        row: dict[str, Any] = self.table.slice(at % len(self), 1).to_pylist()[0]
        return row

    def gather(self, index: Tensor) -> dict[str, Any]:
        """The rows ``index`` ``[B]`` int64: texts as lists, numbers as ``[B]`` float64."""
        rows = self.table.take(pa.array(index.cpu().numpy()))
        numeric = numeric_columns(rows)
        return {
            name: numbers(rows[name]) if name in numeric else rows[name].to_pylist()
            for name in rows.column_names
        }

    def column(self, name: str) -> Tensor:
        """``reward`` or ``difficulty``: ``[N]`` float64.

        Raises:
            ValueError: if there is no such column, or it is not numeric.
        """
        refuse_missing(self.table.column_names, [name], self.source)
        values = numbers(self.table[name])
        if values is None:
            raise ValueError(
                f"{name} in {self.source} is no number; numeric columns are "
                f"{numeric_columns(self.table)}"
            )
        return values


def difficulties(left: _Array, right: _Array, operator: _Array) -> npt.NDArray[np.float64]:
    """Digits of both operands plus carries (sums), borrows (differences) or pairs of digits.

    Args:
        left: ``[N]`` int64, not negative.
        right: ``[N]`` int64, not negative; not above ``left`` where they are subtracted.
        operator: ``[N]`` int64 in 0 to 2: plus, minus, times.

    Returns:
        ``[N]`` float64, at least 2.
    """
    steps = np.zeros(left.shape, np.int64)
    for place in range(1, 10):
        unit = 10**place
        carried = left % unit + right % unit >= unit
        borrowed = left % unit < right % unit
        steps += np.where(operator == 0, carried, borrowed & (operator == 1))
    steps += np.where(operator == 2, _digits(left) * _digits(right), 0)
    return (_digits(left) + _digits(right) + steps).astype(np.float64)


def _check_counts(size: int, digits: int, operators: str, each: int, seed: int) -> None:
    for name, value, least in (
        ("size", size, 1),
        ("digits", digits, 1),
        ("demonstrations_per_prompt", each, 1),
        ("seed", seed, 0),
    ):
        if value < least:
            raise ValueError(f"{name} is {value}; it must be at least {least}")
    odd = [mark for mark in operators if mark not in _OPERATORS]
    if odd or not operators or len(set(operators)) < len(operators):
        raise ValueError(f"operators is {operators!r}; give some of '+', '-' and '*', each once")
    most = 4 if "*" in operators else 9
    if digits > most:
        raise ValueError(f"digits is {digits}; it must be at most {most} with {operators!r}")


def _digits(value: _Array) -> _Array:
    """How many decimal digits each of ``value`` ``[N]`` has; 0 has one."""
    powers = 10 ** np.arange(1, 19, dtype=np.int64)
    return 1 + np.searchsorted(powers, value, side="right").astype(np.int64)


def _answers(asked: _Questions) -> _Array:
    left, right, operator = asked
    return np.where(
        operator == 0, left + right, np.where(operator == 1, left - right, left * right)
    )


def _buckets(asked: _Questions) -> _Array:
    """0 to 9 for each question, the same for its commuted twin: SplitMix64's finaliser, mod 10."""
    left, right, operator = asked
    low, high = np.minimum(left, right), np.maximum(left, right)
    mixed = ((low * 10**9 + high) * 3 + operator).astype(np.uint64)
    mixed += np.uint64(0x9E3779B97F4A7C15)
    mixed = (mixed ^ (mixed >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    mixed = (mixed ^ (mixed >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return ((mixed ^ (mixed >> np.uint64(31))) % np.uint64(10)).astype(np.int64)


def _drawn(
    source: np.random.Generator, size: int, digits: int, operators: str, split: Split
) -> _Questions:
    """``size`` different questions of ``split``, in random order."""
    marks = np.array([_OPERATORS.index(mark) for mark in operators])
    found = _Questions(*(np.empty(0, np.int64) for _ in range(3)))
    idle = 0
    while idle < _IDLE_ROUNDS:
        left, right = _operands(source, 4 * size + 100, digits)
        operator = marks[source.integers(len(marks), size=len(left))]
        swapped = (operator == 1) & (left < right)
        left, right = np.where(swapped, right, left), np.where(swapped, left, right)
        new = _Questions(left, right, operator)
        new = new.take(np.isin(_buckets(new), _SPLITS[split]))
        before = len(found.left)
        found = _Questions(*(np.concatenate(pair) for pair in zip(found, new, strict=True)))
        _, first = np.unique(np.stack(found), axis=1, return_index=True)
        found = found.take(np.sort(first)[:size])
        if len(found.left) == size:
            return found.take(source.permutation(size))
        idle = idle + 1 if len(found.left) == before else 0
    raise ValueError(
        f"size is {size}, but of operands of at most {digits} digits and {operators!r} only "
        f"{len(found.left)} different questions were found for {split}; lower size or raise digits"
    )


def _operands(source: np.random.Generator, count: int, digits: int) -> _Array:
    """``[2, count]``: each number of digits equally often."""
    length = source.integers(1, digits + 1, (2, count))
    return source.integers(np.where(length == 1, 0, 10 ** (length - 1)), 10**length)


def _exact(shares: Sequence[float], total: int) -> list[int]:
    """Counts that add up to ``total``, in proportion to ``shares``."""
    bounds = [round(total * sum(shares[: i + 1])) for i in range(len(shares) - 1)]
    ends = [*bounds, total]
    return [end - start for start, end in zip([0, *bounds], ends, strict=True)]


def _sloppy(source: np.random.Generator, answer: _Array) -> _Array:
    """Off by one, or with one digit replaced by another; never negative, never the answer."""
    step = np.where(source.random(len(answer)) < 0.5, 1, -1)
    near = np.where(answer + step < 0, answer + 1, answer + step)
    count = _digits(answer)
    unit = 10 ** source.integers(0, count)
    old = answer // unit % 10
    new = (old + source.integers(1, 10, len(answer))) % 10
    leading = (unit == 10 ** (count - 1)) & (count > 1)  # which must not become 0
    new = np.where(leading & (new == 0), np.where(old == 9, 8, old + 1), new)
    return np.where(source.random(len(answer)) < 0.5, near, answer + (new - old) * unit)


def is_sloppy(said: _Array, answer: _Array) -> npt.NDArray[np.bool_]:
    """Whether ``said`` ``[N]`` is off by one, or differs in one of as many digits."""
    other = np.zeros(answer.shape, np.int64)
    for place in range(19):
        other += said // 10**place % 10 != answer // 10**place % 10
    same = _digits(said) == _digits(answer)
    found: npt.NDArray[np.bool_] = (np.abs(said - answer) == 1) | (same & (other == 1))
    return found


def _wrong(source: np.random.Generator, answer: _Array) -> _Array:
    """Another number of as many digits (two, if the answer has one) that is not sloppy either."""
    most = 10 ** np.maximum(_digits(answer), 2)
    said = answer.copy()
    redo = np.ones(len(answer), np.bool_)
    while redo.any():
        said[redo] = source.integers(0, most[redo])
        redo = (said == answer) | is_sloppy(said, answer)
    return said


def _table(
    asked: _Questions,
    said: _Array,
    answer: _Array,
    reward: npt.NDArray[np.float64],
    difficulty: npt.NDArray[np.float64],
    grade: _Array,
    number: _Array,
) -> Table:
    questions = [
        f"{left}{_OPERATORS[mark]}{right}"
        for left, right, mark in zip(*(part.tolist() for part in asked), strict=True)
    ]
    columns = {
        "prompt": [f"{question}=" for question in questions],
        "completion": [*map(str, said.tolist())],
        "answer": [*map(str, answer.tolist())],
        "reward": reward,
        "difficulty": difficulty,
        "grade": [GRADES[each] for each in grade.tolist()],
        "id": [f"{q}#{each}" for q, each in zip(questions, number.tolist(), strict=True)],
    }
    return pa.table(columns)
