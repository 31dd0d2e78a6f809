"""``@compiled``: Numba's ``njit`` with the settings that all loops of this package share."""

from collections.abc import Callable
from typing import Any, TypeVar, cast

import numba

Function = TypeVar("Function", bound=Callable[..., Any])


def compiled(function: Function) -> Function:
    """Compile on first call, keep the machine code on disk, release the GIL while running."""
    return cast(Function, numba.njit(cache=True, nogil=True, error_model="numpy")(function))
