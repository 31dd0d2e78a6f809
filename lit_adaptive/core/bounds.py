"""Range check of integer arguments."""

_GREATEST = 2**63 - 1  # of an int64


def check_at_least(most: int = _GREATEST, /, **bounds: tuple[int | None, int]) -> None:
    """Reject integer arguments that are out of their range.

    Args:
        most: greatest value of all arguments; by default that of an int64.
        bounds: value and least value of each argument, by its name; a value of None passes.

    Raises:
        ValueError: naming the argument, its value and the bound.
    """
    for name, (value, least) in bounds.items():
        if value is not None and value < least:
            raise ValueError(f"{name} is {value}; it must be at least {least}")
        if value is not None and value > most:
            raise ValueError(f"{name} is {value}; it must be at most {most}")
