"""Sums as a language task with graded demonstrations; nothing to download."""

from collections.abc import Sequence
from itertools import accumulate, pairwise
from random import Random
from typing import Any, NamedTuple

from lit_adaptive.core.bounds import check_at_least
from lit_adaptive.core.shares import share_count
from lit_adaptive.data.datasets.questions import (
    BUCKETS,
    MOST_ROWS,
    QuestionRows,
    Split,
    check_split,
    split_bucket,
)

GRADES = ("correct", "sloppy", "wrong")

_OPERATORS = "+-*"
_IDLE_DRAWS = 50  # per question, without a new one, before there are taken to be no more


class Question(NamedTuple):
    """Two operands, not negative, and their operator: ``+``, ``-`` or ``*``."""

    left: int
    operator: str
    right: int

    def __str__(self) -> str:
        return f"{self.left}{self.operator}{self.right}"

    @property
    def answer(self) -> int:
        """The right answer."""
        if self.operator == "*":
            return self.left * self.right
        return self.left + self.right if self.operator == "+" else self.left - self.right

    @property
    def difficulty(self) -> int:
        """Digits of both operands plus carries (+), borrows (-) or pairs of digits (*)."""
        lengths = len(str(self.left)), len(str(self.right))
        if self.operator == "*":
            return sum(lengths) + lengths[0] * lengths[1]
        steps = 0
        for place in range(1, max(lengths) + 1):
            left, right = self.left % 10**place, self.right % 10**place
            steps += left + right >= 10**place if self.operator == "+" else left < right
        return sum(lengths) + steps

    @property
    def bucket(self) -> int:
        """A hash from 0 to 9, the same with the operands exchanged."""
        low, high = sorted((self.left, self.right))
        return split_bucket(f"{low}{self.operator}{high}")


class Arithmetic(QuestionRows):
    """Questions such as ``37+45=`` with demonstrations that are correct, sloppy or wrong.

    The columns: ``prompt`` ("37+45="), ``completion`` (the demonstration's answer), ``answer`` (the
    right one, "82"), ``reward`` (1 correct, 0.5 sloppy, 0 wrong), ``difficulty`` (see
    ``Question``), ``grade`` (its name) and ``id`` ("37+45#0", with the demonstration's number).

    Operands have 1 to ``digits`` digits, each number of digits equally often as long as there are
    new questions; a difference is never negative. Within a split all questions differ. A question
    belongs to one split only, whatever the seed and size (by its hash, the same for ``3+4`` and
    ``4+3``): 8 of 10 to train, one each to validation and test. The same arguments give the same
    rows in every process.

    A sloppy answer is, with probability one half each, off by one or has one digit replaced; a
    wrong one is another number of about the same size that is not sloppy. The number of each grade
    is exact, up to rounding; which demonstrations have it is random.

    Args:
        split: ``train``, ``validation`` or ``test``.
        size: number of questions, above 0; at most 10 million demonstrations are made.
        digits: maximum digits of an operand, from 1 to 9 (4 with products).
        operators: some of ``+``, ``-`` and ``*``, drawn equally often.
        correct: fraction of the demonstrations; the three fractions add up to 1.
        sloppy: fraction of the demonstrations.
        wrong: fraction of the demonstrations.
        sloppy_reward: reward of a sloppy demonstration, in [0, 1].
        demonstrations_per_prompt: number of demonstrations of each question, above 0.
        seed: seed of questions and demonstrations, not negative.

    Raises:
        ValueError: if an argument is out of range, or a split has fewer different questions than
            ``size``.
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
        fractions = (correct, sloppy, wrong)
        _check_choices(split, digits, operators, fractions, sloppy_reward)
        check_at_least(digits=(digits, 1), seed=(seed, 0))
        check_at_least(MOST_ROWS, size=(size, 1))
        check_at_least(MOST_ROWS // size, demonstrations_per_prompt=(demonstrations_per_prompt, 1))
        rng = Random(f"{seed} {split}")  # noqa: S311
        questions = _draw_questions(rng, size, digits, operators, split)
        grades = _exact_grades(fractions, size * demonstrations_per_prompt)
        rng.shuffle(grades)
        rewards: dict[str, float] = dict(zip(GRADES, (1.0, sloppy_reward, 0.0), strict=True))
        columns: dict[str, list[Any]] = {
            name: []
            for name in ("prompt", "completion", "answer", "reward", "difficulty", "grade", "id")
        }
        for i, grade in enumerate(grades):
            question, number = (
                questions[i // demonstrations_per_prompt],
                i % demonstrations_per_prompt,
            )
            row = (
                f"{question}=",
                str(_demonstrate(rng, question.answer, grade)),
                str(question.answer),
                rewards[grade],
                float(question.difficulty),
                grade,
                f"{question}#{number}",
            )
            for values, value in zip(columns.values(), row, strict=True):
                values.append(value)
        super().__init__(columns, f"Arithmetic ({split})")


def is_sloppy(completion: int, answer: int) -> bool:
    """Whether a completion is off by one, or has as many digits of which one differs."""
    if abs(completion - answer) == 1:
        return True
    pair = str(completion), str(answer)
    return len(pair[0]) == len(pair[1]) and sum(a != b for a, b in zip(*pair, strict=True)) == 1


def _check_choices(
    split: str,
    digits: int,
    operators: str,
    fractions: tuple[float, float, float],
    sloppy_reward: float,
) -> None:
    check_split(split)
    unknown = set(operators) - set(_OPERATORS)
    if unknown or not operators or len(set(operators)) < len(operators):
        raise ValueError(f"operators is {operators!r}; give some of '+', '-' and '*', each once")
    most = 4 if "*" in operators else 9
    if digits > most:
        raise ValueError(f"digits is {digits}; it must be at most {most} with {operators!r}")
    if not (all(part >= 0 for part in fractions) and abs(sum(fractions) - 1) <= 1e-6):
        raise ValueError(
            f"correct, sloppy and wrong are {fractions}; they must not be negative and add up to 1"
        )
    if not 0 <= sloppy_reward <= 1:
        raise ValueError(f"sloppy_reward is {sloppy_reward}; it must lie in [0, 1]")


def _draw_questions(
    rng: Random, size: int, digits: int, operators: str, split: Split
) -> list[Question]:
    """``size`` different questions of ``split``, in random order."""
    questions: dict[Question, None] = {}
    idle = 0
    while len(questions) < size:
        left, right = (_operand(rng, rng.randint(1, digits)) for _ in range(2))
        operator = rng.choice(operators)
        if operator == "-" and left < right:
            left, right = right, left
        question = Question(left, operator, right)
        idle += 1
        if question not in questions and question.bucket in BUCKETS[split]:
            questions[question] = None
            idle = 0
        if idle > _IDLE_DRAWS * (size + 100):
            raise ValueError(
                f"size is {size}, but with operands of at most {digits} digits and {operators!r} "
                f"{split} has only {len(questions)} different questions; lower size or raise digits"
            )
    drawn = list(questions)
    rng.shuffle(drawn)
    return drawn


def _operand(rng: Random, length: int) -> int:
    """A number of ``length`` digits, each equally likely."""
    return rng.randrange(10 ** (length - 1) if length > 1 else 0, 10**length)


def _exact_grades(fractions: Sequence[float], total: int) -> list[str]:
    """``total`` grades, each as often as its fraction says."""
    ends = [0, *(share_count(part, total, rounding=round) for part in accumulate(fractions))]
    counts = [end - start for start, end in pairwise(ends)]
    return [grade for grade, count in zip(GRADES, counts, strict=True) for _ in range(count)]


def _demonstrate(rng: Random, answer: int, grade: str) -> int:
    if grade == "correct":
        return answer
    return _sloppy(rng, answer) if grade == "sloppy" else _wrong(rng, answer)


def _sloppy(rng: Random, answer: int) -> int:
    """Off by one, or with one digit replaced by another; never negative, never the answer."""
    if rng.random() < 0.5:
        return answer + (1 if answer == 0 or rng.random() < 0.5 else -1)
    text = str(answer)
    place = rng.randrange(len(text))
    leading = place == 0 and len(text) > 1  # must not become 0
    digit = rng.choice([d for d in "0123456789"[leading:] if d != text[place]])
    return int(text[:place] + digit + text[place + 1 :])


def _wrong(rng: Random, answer: int) -> int:
    """Another number of at most as many digits (at least two) that is not sloppy."""
    while True:
        number = rng.randrange(10 ** max(len(str(answer)), 2))
        if number != answer and not is_sloppy(number, answer):
            return number
