"""Values that change with the step: ``start`` before step 0, ``end`` after ``steps``."""

import math


def _progress(step: float, steps: float) -> float:
    if steps <= 0:
        raise ValueError(f"steps is {steps}; a schedule takes more than 0 steps")
    return min(max(step / steps, 0.0), 1.0)


def constant(step: float, *, value: float) -> float:  # noqa: ARG001  every schedule takes a step
    """Always ``value``."""
    return value


def linear(step: float, *, start: float, end: float, steps: float) -> float:
    """In equal steps from ``start`` to ``end``."""
    done = _progress(step, steps)
    return start * (1 - done) + end * done


def exponential(step: float, *, start: float, end: float, steps: float) -> float:
    """By equal factors from ``start`` to ``end``, both above 0."""
    if start <= 0 or end <= 0:
        raise ValueError(f"start is {start} and end {end}; an exponential stays above 0")
    done = _progress(step, steps)
    return float(start ** (1 - done) * end**done)


def cosine(step: float, *, start: float, end: float, steps: float) -> float:
    """Half a cosine wave from ``start`` to ``end``: slow at both ends."""
    done = _progress(step, steps)
    return end + (start - end) * 0.5 * (1 + math.cos(math.pi * done))
