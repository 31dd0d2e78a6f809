"""Rewards that compare texts: with the answer, its final number, or a regular expression."""

import math
import re
import unicodedata
from collections.abc import Iterator
from fractions import Fraction
from itertools import pairwise
from typing import Any, NamedTuple

from lit_adaptive.rollout.rewards.base import AnswerReward, Reward

_MAX_GAP = 16  # characters between two terms of an expression
_MAX_DIGITS = 400  # of a number, and its greatest exponent: more than a float has

# LaTeX and Unicode in plain notation.
_SUPERSCRIPT = re.compile("[⁰¹²³⁴-⁹]+")
_VULGAR = re.compile(r"(\d?)\s?([¼½¾⅐-⅞])")
_FRAC = re.compile(
    r"(\d?)\s?\\[dt]?frac\s*(?:\{\s*(-?[\d.]+)\s*\}|(\d))\s*(?:\{\s*(-?[\d.]+)\s*\}|(\d))"
)
_SEPARATORS = re.compile("[, '_]")
_PLAIN = tuple(
    (re.compile(pattern), plain)
    for pattern, plain in (
        (r"[\u2010-\u2013\u2212]", "-"),
        (r"\\(?:left|right|displaystyle|[!;])", ""),
        (r"\{,\}", ","),
        (r"\\[, ]|~", " "),
        (r"\\(?:times|cdot)(?![A-Za-z])|[\u00d7\u00b7]", "*"),
        (r"\\div(?![A-Za-z])|[÷\u2044]", "/"),
        (r"\\approx(?![A-Za-z])|[≈→⇒]|[-=]>", "="),
        (r"\\pm(?![A-Za-z])", "±"),
        (r"\\sqrt(?![A-Za-z])", "√"),
        (r"\\pi(?![A-Za-z])", "π"),
        (r"\\([$%()\[\]])", r"\1"),
    )
)

_TERM = re.compile(
    r"""
    (?P<sign>(?<![\w.,)}\]%])[+-])?  (?:US\$|(?:USD|EUR|GBP|Rs\.?)\ ?|[$€£¥₹])?
    (?P<inner_sign>(?<=[$€£¥₹])-)?
    (?:
        (?:(?P<whole>\d+)\ )?  (?P<top>\d+(?:\.\d+)?)\ ?/\ ?(?P<bottom>-?\d+(?:\.\d+)?)
      | (?P<number>
            (?P<digits>
                (?: \d{1,3}(?P<separator>[, '_])\d{3}(?:(?P=separator)\d{3})*(?!,?\d)  # 1,234,567
                  | \d{1,2}(?:,\d\d)+,\d{3}(?!,?\d)  # 12,34,567
                  | \d+
                )(?:\.\d+)?
              | (?<![\w.])\.\d+
            )(?: [eE](?P<exponent>[+-]?\d+) | \ ?[*x]\ ?10\^\{?(?P<power>[+-]?\d+)\}? )?
        )
    )
    | (?P<symbol>[√±]\s?[({]?\d+[)}]?|π|\\overline\{\d+\}|(?<=[\d)}])\ ?\^\s?\{?[+-]?\d+\}?)
    | \^\s?\{?[+-]?\d+\}?|(?<![A-Za-z_\d])[A-Za-z_]+\d\w*  # no numbers: m^2, H2O
    """,
    re.VERBOSE,
)
# Between two terms of one expression, such as the text between 4 and 5 in (4) * $5.
_OPERATOR = re.compile(
    r"[ \t()\]}$%°]*(?:\*\*(?! )|[+*/^x-](?!\*)|=[ \t]*-?)[ \t(\[{$]*|[.,:]\(?|\(|\)\("
)
_SPACED_MINUS = re.compile(r"[=({#]\s*-\s+$")
_MARK = re.compile(r"####+")
_MARKED_LINE = re.compile(r"####+([^\n]*)")
_MARKED_NUMBER = re.compile(r"(?:[^\w\n\\]|\\[A-Za-z]+|US|USD|EUR|GBP|Rs)*\d")
_THINK_THEN_ANSWER = r"<think>(?:(?!</?think>).)*</think>\s*<answer>(?:(?!</?answer>).)*</answer>"


class ExactMatch(AnswerReward):
    """1 where the completion equals the answer, else 0; surrounding whitespace is ignored.

    Args:
        column: column of answers. Where the answer is None, the reward does not apply.
    """

    def __init__(self, column: str = "answer") -> None:
        self.column = column

    def _score(self, completion: str, answer: Any) -> float | None:
        return None if answer is None else float(completion.strip() == str(answer).strip())


class NumericMatch(AnswerReward):
    r"""1 where the completion's final number equals the answer's, else 0.

    Both are read alike, as exact rational numbers. The final number is the one after GSM8K's mark
    ``####``, or else the last in the text. Understood are thousands separators (``1,234``,
    ``1{,}234``, ``1 234``), currency signs, decimals, exponents (``1e3``, ``2 \times 10^3``),
    fractions and mixed numbers (``3/4``, ``\frac{3}{4}``, ``1 1/2``, ``½``). Of an equation, the
    last side that is a number counts (``4*5 = 20`` is 20); an expression (``4*5``, ``5-3``,
    ``3:4``, ``10^3``, ``2π``) is not a number. Percent signs and units are ignored: ``50%`` is 50.
    A completion without a number scores 0; where the answer has none, the reward does not apply.

    Args:
        column: column of answers, numbers or texts.
        tolerance: greatest difference between a decimal and another number that are equal, both
            absolute and relative to the greater one; not negative. Whole numbers and fractions are
            compared exactly.

    Raises:
        ValueError: if ``tolerance`` is negative or not finite.
    """

    def __init__(self, column: str = "answer", tolerance: float = 1e-6) -> None:
        if not 0 <= tolerance < math.inf:
            raise ValueError(f"tolerance is {tolerance}; it must be finite and not negative")
        self.column = column
        self.tolerance = tolerance

    def _score(self, completion: str, answer: Any) -> float | None:
        expected = None if answer is None else final_number(str(answer))
        if expected is None:
            return None
        number = final_number(completion)
        return float(number is not None and self._equal(number, expected))

    def _equal(self, first: "Number", second: "Number") -> bool:
        difference = abs(first.value - second.value)
        if not (first.decimal or second.decimal):
            return difference == 0
        greater = max(abs(first.value), abs(second.value))
        return bool(difference <= Fraction(str(self.tolerance)) * min(greater, Fraction(1)))


class GSM8KMatch(NumericMatch):
    """1 where the number after GSM8K's mark ``####`` equals the answer's, else 0.

    Cobbe et al. (2021, arXiv:2110.14168): a solution ends with a line ``#### 72``.

    Args:
        column: column of answers: numbers, or texts with a final number (complete solutions too).
        tolerance: greatest difference of decimals, as in ``NumericMatch``; not negative.
        strict: True to require the mark and a number after it; False to accept the last number of
            a completion without the mark.
    """

    def __init__(
        self, column: str = "answer", tolerance: float = 1e-6, strict: bool = True
    ) -> None:
        super().__init__(column, tolerance)
        self.strict = strict

    def _score(self, completion: str, answer: Any) -> float | None:
        if self.strict:
            marked = _MARKED_LINE.findall(completion)
            completion = f"#### {marked[-1]}" if marked else ""
        return super()._score(completion, answer)


class Number(NamedTuple):
    """A number as it is written.

    Attributes:
        value: exact.
        decimal: whether it is written with a decimal point or a negative exponent, and not whole.
    """

    value: Fraction
    decimal: bool


class _Term(NamedTuple):
    """A number in a text, or a symbol such as π, whose number is None."""

    start: int
    end: int
    signed: bool
    number: Number | None


def final_number(text: str) -> Number | None:
    """Return the number after the last ``####``, or else the last in ``text``; None without one.

    See ``NumericMatch`` for the notations. None for numbers of more than 400 digits too.
    """
    text = _plain_notation(text)
    mark = max((match.end() for match in _MARK.finditer(text)), default=0)
    marked = mark > 0 and _MARKED_NUMBER.match(text, mark) is not None
    if marked:
        text = text[mark - 1 :].split("\n", 1)[0]
    terms = [*_terms(text)]
    if not terms:
        return None
    first = last = len(terms) - 1
    if marked:  # the first after the last equals sign
        equals = text.rfind("=")
        first = last = next((k for k, term in enumerate(terms) if term.start > equals), 0)
        while last + 1 < len(terms) and _joined(text, terms[last], terms[last + 1]):
            last += 1
    while first > 0 and _joined(text, terms[first - 1], terms[first]):
        first -= 1
    sides: list[list[_Term]] = [[terms[first]]]
    for before, term in pairwise(terms[first : last + 1]):
        if "=" in text[before.end : term.start]:
            sides.append([])
        sides[-1].append(term)
    stated = (side[0].number for side in reversed(sides) if len(side) == 1)
    return next((number for number in stated if number is not None), None)


def _plain_notation(text: str) -> str:
    text = _SUPERSCRIPT.sub(lambda match: "^" + unicodedata.normalize("NFKC", match[0]), text)
    text = unicodedata.normalize("NFKC", _VULGAR.sub(r"\1 \2", text))
    for pattern, plain in _PLAIN:
        text = pattern.sub(plain, text)
    return _FRAC.sub(
        lambda match: (
            f"{match[1] + ' ' if match[1] else ''}{match[2] or match[3]}/{match[4] or match[5]}"
        ),
        text,
    )


def _terms(text: str) -> Iterator[_Term]:
    for match in _TERM.finditer(text):
        if match["number"] or match["bottom"] or match["symbol"]:
            negative = "-" in (match["sign"], match["inner_sign"]) or (
                _SPACED_MINUS.search(text, max(0, match.start() - 8), match.start()) is not None
            )
            number = None if match["symbol"] else _number(match, negative)
            yield _Term(match.start(), match.end(), bool(match["sign"]), number)


def _number(match: re.Match[str], negative: bool) -> Number | None:
    """The number of a match of ``_TERM``; None if it is too long, or divided by 0."""
    if match.end() - match.start() > _MAX_DIGITS:
        return None
    if match["bottom"]:
        top, bottom = Fraction(match["top"]), Fraction(match["bottom"])
        if bottom == 0:
            return None
        value = Fraction(match["whole"] or 0) + top / bottom
        decimal = "." in match["top"] + match["bottom"]
    else:
        exponent = int(match["exponent"] or match["power"] or 0)
        if abs(exponent) > _MAX_DIGITS:
            return None
        value = Fraction(_SEPARATORS.sub("", match["digits"])) * Fraction(f"1e{exponent}")
        decimal = ("." in match["digits"] or exponent < 0) and value.denominator > 1
    return Number(-value if negative else value, decimal)


def _joined(text: str, term: _Term, following: _Term) -> bool:
    """Whether two terms, one after the other, are parts of one expression or equation."""
    gap = text[term.end : following.start]
    if not gap.strip(" "):
        return following.signed or text[following.start] in "√π^\\"
    return len(gap) < _MAX_GAP and _OPERATOR.fullmatch(gap) is not None


class FormatMatch(Reward):
    """1 where the completion matches a regular expression, else 0.

    Args:
        pattern: matched against the completion without surrounding whitespace; a dot matches line
            ends too. By default ``<think>...</think> <answer>...</answer>``, each once and in this
            order (DeepSeek-AI 2025, arXiv:2501.12948, section 2.2.2).
        search: True to accept a match anywhere in the completion, not only of all of it.

    Raises:
        ValueError: if ``pattern`` is not a regular expression.
    """

    def __init__(self, pattern: str = _THINK_THEN_ANSWER, search: bool = False) -> None:
        try:
            self._compiled = re.compile(pattern, re.DOTALL)
        except re.error as error:
            raise ValueError(
                f"pattern is {pattern!r}, which is not a regular expression: {error}"
            ) from error
        self.pattern = pattern
        self.search = search

    def __call__(
        self,
        prompts: list[str],  # noqa: ARG002
        completions: list[str],
        **columns: list[Any],  # noqa: ARG002
    ) -> list[float | None]:
        """Return 1.0 or 0.0 for each completion."""
        match = self._compiled.search if self.search else self._compiled.fullmatch
        return [float(match(completion.strip()) is not None) for completion in completions]
