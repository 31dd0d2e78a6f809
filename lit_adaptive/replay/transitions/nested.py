"""Observations and actions may be nested; inside the replay they are flat lists of tensors."""

from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

Nested = Any
"""A tensor, array or number, or a dict or tuple of such, nested to any depth."""

_INTEGERS = (torch.int8, torch.int16, torch.int32, torch.uint8, torch.uint16, torch.uint32)


class Leaf(NamedTuple):
    """One tensor of a nest at ``path``, such as ``['camera'][0]``; ``shape`` is without batch."""

    path: str
    shape: tuple[int, ...]
    dtype: torch.dtype


def as_tensor(value: Any, name: str) -> Tensor:
    """``value`` as a tensor, not copied if possible; float64 becomes float32.

    Raises:
        ValueError: if ``value`` is not made of numbers.
    """
    if isinstance(value, Tensor):
        tensor = value.detach() if value.requires_grad else value
    else:
        try:
            array = np.asarray(value)
            if not array.flags.writeable or any(stride < 0 for stride in array.strides):
                array = array.copy()  # torch shares neither
            tensor = torch.from_numpy(array)
        except (TypeError, ValueError) as error:
            raise ValueError(
                f"{name} is a {type(value).__name__}, no array of numbers ({error}): pass a "
                "tensor, array or number, or a dict or tuple of them"
            ) from error
    return tensor.float() if tensor.dtype is torch.float64 else tensor


def map_nested(function: Callable[[Any], Any], value: Nested) -> Nested:
    """``value`` with every leaf replaced by ``function`` of it."""
    if isinstance(value, Mapping):
        return {key: map_nested(function, part) for key, part in value.items()}
    if isinstance(value, tuple):
        return tuple(map_nested(function, part) for part in value)
    return function(value)


def _list_leaves(value: Nested, path: str, into: list[tuple[str, Any]]) -> Nested:
    """List the leaves with their paths; returns the nest with each leaf's number in its place."""
    if isinstance(value, Mapping):
        return {key: _list_leaves(part, f"{path}[{key!r}]", into) for key, part in value.items()}
    if isinstance(value, tuple):
        return tuple(_list_leaves(part, f"{path}[{i}]", into) for i, part in enumerate(value))
    into.append((path, value))
    return len(into) - 1


def _follow(nest: Nested, value: Nested, into: list[Any]) -> bool:
    """List the leaves of ``value`` in the order of ``nest``; False if it is nested otherwise."""
    if isinstance(nest, dict):
        same = isinstance(value, Mapping) and value.keys() == nest.keys()
        return same and all(_follow(part, value[key], into) for key, part in nest.items())
    if isinstance(nest, tuple):
        same = isinstance(value, tuple) and len(value) == len(nest)
        return same and all(_follow(part, value[i], into) for i, part in enumerate(nest))
    into.append(value)
    return not isinstance(value, (Mapping, tuple))


class Layout:
    """The nest, shapes and types of the first value, which all later ones must repeat.

    Args:
        example: the first value; every leaf is ``[E, ...]``.
        name: what errors call it.
        widen_integers: keep integers as int64 (actions index a network's outputs).

    Raises:
        ValueError: if a leaf has no batch axis or is not made of numbers, or there is none.
    """

    def __init__(self, example: Nested, name: str, *, widen_integers: bool = False) -> None:
        self.name = name
        self._widen = widen_integers
        found: list[tuple[str, Any]] = []
        self._nest = _list_leaves(example, "", found)
        if not found:
            raise ValueError(f"{name} is {example!r}, which holds no tensor; pass at least one")
        self.leaves: list[Leaf] = []
        for path, value in found:
            tensor = self._read(value, name + path)
            if tensor.dim() == 0:
                raise ValueError(
                    f"{name}{path} is a single number; the first axis holds the streams: "
                    "pass [E, ...], with E = 1 for one stream"
                )
            if 0 in tensor.shape[1:]:
                raise ValueError(f"{name}{path} has shape {list(tensor.shape)}, which is empty")
            self.leaves.append(Leaf(path, tuple(tensor.shape[1:]), tensor.dtype))
        self._single = isinstance(self._nest, int)

    def _read(self, value: Any, name: str) -> Tensor:
        tensor = as_tensor(value, name)
        return tensor.long() if self._widen and tensor.dtype in _INTEGERS else tensor

    def flatten(self, value: Nested, count: int, name: str) -> list[Tensor]:
        """The leaves of ``value``, each checked to be ``[count, *shape]`` of its dtype.

        Raises:
            ValueError: naming the leaf that is not as it was at first.
        """
        if self._single and isinstance(value, Tensor):  # the short way for the usual case
            return [self._checked(self.leaves[0], value, count, name)]
        pairs = zip(self.leaves, self.in_order(value, name), strict=True)
        return [self._checked(leaf, part, count, name) for leaf, part in pairs]

    def in_order(self, value: Nested, name: str) -> list[Any]:
        """The leaves of ``value``, unchecked but for the nest.

        Raises:
            ValueError: if ``value`` is nested otherwise.
        """
        parts: list[Any] = []
        if not _follow(self._nest, value, parts):
            raise ValueError(
                f"{name} is nested otherwise than at first, when it held "
                f"{[leaf.path or 'one tensor' for leaf in self.leaves]}: "
                f"one buffer holds one kind of {self.name}"
            )
        return parts

    def _checked(self, leaf: Leaf, value: Any, count: int, name: str) -> Tensor:
        tensor = self._read(value, name + leaf.path)
        if tensor.dtype is not leaf.dtype or tensor.shape != (count, *leaf.shape):
            raise ValueError(
                f"{name}{leaf.path} has shape {list(tensor.shape)} and type {tensor.dtype}; "
                f"expected {[count, *leaf.shape]} of {leaf.dtype}, as at first: [streams, ...]"
            )
        return tensor

    def fits(self, other: "Layout") -> bool:
        """Whether values of the other layout are values of this one."""
        return set(self.leaves) == set(other.leaves)

    def unflatten(self, leaves: list[Tensor]) -> Nested:
        """The nest with ``leaves`` in their places."""
        return leaves[0] if self._single else map_nested(leaves.__getitem__, self._nest)
