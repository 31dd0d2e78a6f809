"""Counts that are a share of another count, exact where products of floats are not."""

import math
from collections.abc import Callable
from fractions import Fraction


def share_count(
    share: float, count: int, *, rounding: Callable[[Fraction], int] = math.ceil
) -> int:
    """``share * count`` rounded to an integer, with the share taken as the decimal it is meant as.

    In floating point 0.07 * 100 is slightly above 7 and 0.575 * 100 slightly below 57.5, so that
    rounding gives another number. Here a share is the simplest fraction within the precision of a
    float: 0.07 is 7/100, and 1 / 3 is one third.

    Args:
        share: finite, at least 0.
        count: at least 0.
        rounding: ``math.ceil``, ``math.floor``, or ``round`` (halves to even numbers).
    """
    exact = Fraction(share).limit_denominator(10**9) or Fraction(share)
    return rounding(exact * count)
