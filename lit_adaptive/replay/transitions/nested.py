"""Nested observations and actions as flat lists of tensors.

The containers are dicts and tuples; everything else, lists included, is a leaf that must convert to
a tensor.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np
import torch
import torch.utils._pytree as pytree
from torch import Tensor

Nested = Any
"""A tensor, array or number, or a dict or tuple of such, nested to any depth."""

_INTEGERS = (torch.int8, torch.int16, torch.int32, torch.uint8, torch.uint16, torch.uint32)


class LeafSpec(NamedTuple):
    """Path of one tensor, such as ``['camera'][0]``, its shape without the batch axis, its type."""

    path: str
    shape: tuple[int, ...]
    dtype: torch.dtype


def as_tensor(value: Any, name: str) -> Tensor:
    """Convert to a tensor, without a copy if possible; float64 becomes float32.

    Args:
        value: tensor, array, number or list of numbers.
        name: name of the value in errors.

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
                f"{name} is a {type(value).__name__}, not an array of numbers ({error}): pass a "
                "tensor, array or number, or a dict or tuple of them"
            ) from error
    return tensor.float() if tensor.dtype is torch.float64 else tensor


def _is_leaf(value: Any) -> bool:
    return not isinstance(value, (dict, tuple))


def map_leaves(function: Callable[[Any], Any], value: Nested) -> Nested:
    """``value`` with every leaf replaced by ``function`` of it."""
    return pytree.tree_map(function, value, is_leaf=_is_leaf)


class NestedLayout:
    """Structure, shapes and types of the first value, which all later values must have.

    Args:
        example: the first value; every leaf is ``[E, ...]``.
        name: name of the value in errors.
        widen_integers: convert integers to int64 (actions index a network's outputs).

    Raises:
        ValueError: if a leaf has no batch axis or is not made of numbers, or there is no leaf.
    """

    def __init__(self, example: Nested, name: str, *, widen_integers: bool = False) -> None:
        self.name = name
        self._widen = widen_integers
        leaves, self._structure = pytree.tree_flatten_with_path(example, is_leaf=_is_leaf)
        if not leaves:
            raise ValueError(f"{name} is {example!r}, which holds no tensor; pass at least one")
        self.leaves: list[LeafSpec] = []
        for keys, value in leaves:
            path = pytree.keystr(keys)
            tensor = self._read(value, name + path)
            if tensor.dim() == 0:
                raise ValueError(
                    f"{name}{path} is a single number; the first axis holds the streams: "
                    "pass [E, ...], with E = 1 for one stream"
                )
            if 0 in tensor.shape[1:]:
                raise ValueError(f"{name}{path} has shape {list(tensor.shape)}, which is empty")
            self.leaves.append(LeafSpec(path, tuple(tensor.shape[1:]), tensor.dtype))
        self._single = self._structure.is_leaf()

    def _read(self, value: Any, name: str) -> Tensor:
        tensor = as_tensor(value, name)
        return tensor.long() if self._widen and tensor.dtype in _INTEGERS else tensor

    def flatten(self, value: Nested, count: int, name: str) -> list[Tensor]:
        """The leaves of ``value``, each checked to be ``[count, *shape]`` of its type.

        Args:
            value: nested as the first value.
            count: size of the first axis.
            name: name of the value in errors.

        Raises:
            ValueError: naming the leaf that differs from the first value's.
        """
        if self._single and isinstance(value, Tensor):  # fast path
            return [self._checked(self.leaves[0], value, count, name)]
        pairs = zip(self.leaves, self.in_order(value, name), strict=True)
        return [self._checked(leaf, part, count, name) for leaf, part in pairs]

    def in_order(self, value: Nested, name: str) -> list[Any]:
        """The leaves of ``value`` in the order of the first value's, unchecked.

        Args:
            value: nested as the first value.
            name: name of the value in errors.

        Raises:
            ValueError: if ``value`` is nested differently.
        """
        try:
            leaves = self._structure.flatten_up_to(value)
        except (TypeError, ValueError):
            leaves = [()]
        if not all(_is_leaf(leaf) for leaf in leaves):
            raise ValueError(
                f"{name} is nested differently from the first one, which held "
                f"{[leaf.path or 'one tensor' for leaf in self.leaves]}: "
                f"use another buffer for another kind of {self.name}"
            )
        return leaves

    def _checked(self, leaf: LeafSpec, value: Any, count: int, name: str) -> Tensor:
        tensor = self._read(value, name + leaf.path)
        if tensor.dtype is not leaf.dtype or tensor.shape != (count, *leaf.shape):
            raise ValueError(
                f"{name}{leaf.path} has shape {list(tensor.shape)} and type {tensor.dtype}; "
                f"expected {[count, *leaf.shape]} of {leaf.dtype}, like the first: [streams, ...]"
            )
        return tensor

    def fits(self, layout: "NestedLayout") -> bool:
        """Whether values of ``layout`` are values of this layout."""
        return set(self.leaves) == set(layout.leaves)

    def unflatten(self, leaves: list[Tensor]) -> Nested:
        """``leaves``, nested as the first value."""
        return leaves[0] if self._single else pytree.tree_unflatten(leaves, self._structure)
