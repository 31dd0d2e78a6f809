"""What every sampler asks of the indices it is given."""

import torch
from torch import Tensor


def check_indices(index: Tensor, size: int) -> Tensor:
    """``index`` ``[K]`` as contiguous int64 on the CPU.

    Raises:
        ValueError: naming the offending indices, if one is outside ``[0, size)``; or if they are
            not one-dimensional integers.
    """
    if index.dim() != 1 or index.is_floating_point() or index.dtype is torch.bool:
        raise ValueError(
            f"index is {index.dtype} of shape {tuple(index.shape)}; pass int64 of shape [K]"
        )
    index = index.detach().to("cpu", torch.int64).contiguous()
    outside = (index < 0) | (index >= size)
    if bool(outside.any()):
        raise ValueError(
            f"index out of range: {index[outside][:8].tolist()}; indices lie in [0, {size}). "
            "Nothing was changed"
        )
    return index
