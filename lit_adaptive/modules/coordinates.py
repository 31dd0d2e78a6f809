"""Numbering of the parameters whose gradients are projected."""

import re

from torch import nn


def numbered_parameters(
    module: nn.Module, pattern: str | None
) -> tuple[dict[str, nn.Parameter], dict[str, int], int]:
    """Trained parameters, and the coordinates of their gradients end to end.

    Args:
        module: the model.
        pattern: regular expression that the names of parameters must contain; None: all.

    Returns:
        The parameters and the first coordinate of each, by name, and the number of coordinates.

    Raises:
        ValueError: if no parameter is left, or one is sharded over processes (naming it).
    """
    trained = {name: p for name, p in module.named_parameters() if p.requires_grad}
    chosen = {n: p for n, p in trained.items() if pattern is None or re.search(pattern, n)}
    if not chosen:
        raise ValueError(
            f"no trained parameter matches parameters={pattern!r}; there are, among others, "
            f"{[*trained][:3]}"
        )
    starts: dict[str, int] = {}
    size = 0
    for name, parameter in chosen.items():
        if hasattr(parameter, "full_tensor"):
            raise ValueError(
                f"{name} is sharded over processes (FSDP2); gradients of samples need whole "
                "weights: use the strategy ddp, or one process"
            )
        starts[name] = size
        size += parameter.numel()
    return chosen, starts, size
