"""Values that change with the training step."""


def linear_schedule(step: float, *, start: float, end: float, steps: float) -> float:
    """Linear interpolation from ``start`` at step 0 to ``end`` at step ``steps``, then constant.

    Raises:
        ValueError: if ``steps`` is not above 0.
    """
    if steps <= 0:
        raise ValueError(f"steps is {steps}; a schedule needs more than 0 steps")
    progress = min(max(step / steps, 0.0), 1.0)
    return start * (1 - progress) + end * progress
