"""Commands on strings of digits, from trivial to hopeless after a warm-up; nothing to download."""

import math
import string
from collections.abc import Callable
from random import Random
from typing import Any

from lit_adaptive.core.bounds import check_at_least
from lit_adaptive.data.datasets.questions import (
    BUCKETS,
    QuestionRows,
    Split,
    check_split,
    split_bucket,
)

_OPERATIONS: tuple[Callable[[str], str], ...] = (
    lambda digits: digits,
    lambda digits: "".join(str((int(one) + 1) % 10) for one in digits),
    lambda digits: "".join(str(9 - int(one)) for one in digits),
    lambda digits: "".join(sorted(digits, reverse=True)),
)
_SHORTEST = 3
_LOGIT_MEAN, _LOGIT_STD = -4.0, 4.0


class DigitCommands(QuestionRows):
    """Questions such as ``k4071=``: a letter that names an operation, and a string of digits.

    Each of the 52 letters stands for one of four operations: copy the digits, add 1 to each (9
    becomes 0), subtract each from 9, or sort them, the largest first. Demonstrations follow a
    command with a probability of its own, from near 0 to near 1: its logit is normal
    with mean -4 and standard deviation 4. Otherwise they show one of the other three operations.
    So a model that was trained on them can carry out all operations, and its pass rates range from
    hopeless to certain, as those of a pretrained model on mixed questions; rewards teach it which
    operation a command means.

    The columns: ``prompt``, ``completion`` (the demonstration's answer), ``answer`` (the right
    one), ``difficulty`` (1 - the command's probability), ``command`` (the letter) and ``id`` (the
    prompt). All questions of a split differ, and a question belongs to one split only, whatever the
    seed and size: 8 of 10 to train, one each to validation and test. Commands are the same for
    every split, seed and size.

    Args:
        split: ``train``, ``validation`` or ``test``.
        size: number of questions, from 1 to half of those there are.
        digits: maximum number of digits, from 3 to 9; each number is equally likely.
        commands: the letters to ask; by default all.
        seed: seed of questions and demonstrations, not negative.

    Raises:
        ValueError: if an argument is out of range, or a letter is unknown or given twice.
    """

    def __init__(
        self,
        split: Split = "train",
        *,
        size: int = 20_000,
        digits: int = 5,
        commands: str = string.ascii_letters,
        seed: int = 0,
    ) -> None:
        check_split(split)
        check_at_least(size=(size, 1), digits=(digits, _SHORTEST), seed=(seed, 0))
        known = {*commands} & {*string.ascii_letters}
        if not commands or len(known) < len(commands):
            raise ValueError(f"commands is {commands!r}; give letters, each once")
        most = len(commands) * 10**_SHORTEST * (digits - _SHORTEST + 1) * len(BUCKETS[split]) // 20
        if digits > 9 or size > most:
            raise ValueError(
                f"size is {size} and digits {digits}; digits must be at most 9, and {split} has at "
                f"most {most} questions of {len(commands)} commands and {digits} digits here: "
                "lower size, or raise digits"
            )
        probabilities = _follow_probabilities()
        rng = Random(f"{seed} {split}")  # noqa: S311
        columns: dict[str, list[Any]] = {
            name: [] for name in ("prompt", "completion", "answer", "difficulty", "command", "id")
        }
        seen: set[str] = set()
        while len(seen) < size:
            letter = string.ascii_letters.index(rng.choice(commands))
            length = rng.randint(_SHORTEST, digits)
            text = "".join(rng.choice(string.digits) for _ in range(length))
            prompt = f"{string.ascii_letters[letter]}{text}="
            if prompt in seen or split_bucket(prompt) not in BUCKETS[split]:
                continue
            seen.add(prompt)
            right = letter % len(_OPERATIONS)
            followed = rng.random() < probabilities[letter]
            others = [number for number in range(len(_OPERATIONS)) if number != right]
            shown = right if followed else rng.choice(others)
            row = (
                prompt,
                _OPERATIONS[shown](text),
                _OPERATIONS[right](text),
                1 - probabilities[letter],
                string.ascii_letters[letter],
                prompt,
            )
            for values, value in zip(columns.values(), row, strict=True):
                values.append(value)
        super().__init__(columns, f"DigitCommands ({split})")


def _follow_probabilities() -> list[float]:
    """Probability that a demonstration follows each command."""
    rng = Random("commands")  # noqa: S311
    logits = [rng.gauss(_LOGIT_MEAN, _LOGIT_STD) for _ in string.ascii_letters]
    return [1 / (1 + math.exp(-logit)) for logit in logits]
