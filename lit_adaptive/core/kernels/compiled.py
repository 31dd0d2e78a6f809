"""``@compiled``: Numba's ``njit`` with the settings shared by all loops of this package."""

from collections.abc import Callable
from typing import Any, TypeVar, cast

import numba
from llvmlite import ir  # type: ignore[import-untyped]
from numba.core import cgutils
from numba.extending import intrinsic

Function = TypeVar("Function", bound=Callable[..., Any])


def compiled(function: Function) -> Function:
    """Compile on first call, keep the machine code on disk, release the GIL while running."""
    return cast("Function", numba.njit(cache=True, nogil=True, error_model="numpy")(function))


def inlined(function: Function) -> Function:
    """Compile a few lines that are copied into each caller, since a call would cost as much."""
    decorate = numba.njit(cache=True, nogil=True, error_model="numpy", inline="always")
    return cast("Function", decorate(function))


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
