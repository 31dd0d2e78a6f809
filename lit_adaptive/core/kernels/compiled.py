"""``@compiled``: Numba's ``njit`` with the settings shared by all loops of this package."""

import warnings
from collections.abc import Callable
from functools import cache
from typing import Any, TypeVar, cast

import numba
from llvmlite import ir  # type: ignore[import-untyped]
from numba.core import cgutils
from numba.extending import intrinsic

Function = TypeVar("Function", bound=Callable[..., Any])


def compiled(function: Function) -> Function:
    """Compile on first call, keep the machine code on disk, release the GIL while running."""
    return _njit(function)


def inlined(function: Function) -> Function:
    """Compile a few lines that are copied into each caller, since a call would cost as much."""
    return _njit(function, inline="always")


def _njit(function: Function, **options: Any) -> Function:
    options |= {"nogil": True, "error_model": "numpy"}
    try:
        return cast("Function", numba.njit(cache=True, **options)(function))
    except RuntimeError as error:
        if "no locator available" not in str(error):
            raise
        _warn_once()
        return cast("Function", numba.njit(**options)(function))


@cache
def _warn_once() -> None:
    warnings.warn(
        "loops are compiled anew in each process, for neither the package's folder nor the user's "
        "cache folder is writable: set NUMBA_CACHE_DIR to a writable folder",
        stacklevel=2,
    )


def _prefetch(_typing: Any, array: Any, position: Any) -> Any:
    """``prefetch(array, position)``: load the cache line of an element into the cache."""

    def generate(context: Any, builder: Any, _signature: Any, args: Any) -> Any:
        values = context.make_array(array)(context, builder, args[0])
        pointer = cast("Any", cgutils).get_item_pointer(context, builder, array, values, [args[1]])
        byte, word = ir.IntType(8).as_pointer(), ir.IntType(32)
        kind = ir.FunctionType(ir.VoidType(), [byte, word, word, word])
        call = cast("Any", cgutils).get_or_insert_function(builder.module, kind, "llvm.prefetch.p0")
        read, keep, data = word(0), word(3), word(1)
        builder.call(call, [builder.bitcast(pointer, byte), read, keep, data])
        return context.get_dummy_value()

    return numba.void(array, position), generate


prefetch = cast("Callable[[Any, int], None]", intrinsic(_prefetch))
