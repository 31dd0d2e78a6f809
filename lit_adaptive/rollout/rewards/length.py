"""A penalty for long completions."""

from typing import Any, Literal

from lit_adaptive.rollout.rewards.base import COMPLETION_IDS, Reward, require_column


class LengthPenalty(Reward):
    """0 up to the length ``free``, then falling linearly to -1 at ``limit`` and beyond.

    Args:
        free: greatest length without a penalty, in ``unit``; not negative.
        limit: smallest length with the penalty -1; above ``free``.
        unit: ``characters``, or ``tokens``, counted in the column.
        column: column of each completion's tokens, or of their number; by default those of the
            completion itself, the token that ends it included.

    Raises:
        ValueError: if ``free`` is negative, ``limit`` is not above it, or ``unit`` is unknown.
    """

    def __init__(
        self,
        free: int,
        limit: int,
        unit: Literal["characters", "tokens"] = "characters",
        column: str = COMPLETION_IDS,
    ) -> None:
        if not 0 <= free < limit:
            raise ValueError(
                f"free is {free}, limit is {limit}; free must not be negative, and limit above it"
            )
        if unit not in ("characters", "tokens"):
            raise ValueError(f"unit is {unit!r}; it must be 'characters' or 'tokens'")
        self.free = free
        self.limit = limit
        self.unit = unit
        self.column = column

    def __call__(
        self,
        prompts: list[str],  # noqa: ARG002
        completions: list[str],
        **columns: list[Any],
    ) -> list[float | None]:
        """Return a number in [-1, 0] for each completion."""
        sequences = (
            completions if self.unit == "characters" else require_column(columns, self.column, self)
        )
        lengths = [entry if isinstance(entry, int) else len(entry) for entry in sequences]
        width = self.limit - self.free
        return [-min(1.0, max(0.0, (length - self.free) / width)) for length in lengths]
