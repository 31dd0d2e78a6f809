"""Checks of arguments: the range of integers, and the values of options."""

from collections.abc import Iterable

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


def check_choices(**choices: tuple[object, Iterable[str]]) -> None:
    """Reject options that have another value than those they can have.

    Args:
        choices: value and valid values of each option, by its name.

    Raises:
        ValueError: naming the option, its value and the valid values.
    """
    for name, (value, valid) in choices.items():
        if value not in (known := list(valid)):
            raise ValueError(f"{name} is {value!r}; it must be one of {known}")
