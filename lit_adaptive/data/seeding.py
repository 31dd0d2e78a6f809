"""What is random about a batch follows from the run's seed, the batch's number and the rank.

Dropout, augmentation and whatever else draws from the global generators while a batch is loaded or
trained on starts from a seed of its own. So nothing of it has to be saved: a resumed run, with any
number of worker processes, repeats what the uninterrupted run would have done.
"""

import random
from collections.abc import Generator
from contextlib import contextmanager

import numpy as np
import torch
from torch.utils.data import get_worker_info

_MASK = 2**64 - 1


def derive_seed(*parts: int) -> int:
    """A number in [0, 2**32) that looks random and follows from ``parts`` (after SplitMix64)."""
    state = 0
    for part in parts:
        state = (state + (part & _MASK) + 0x9E3779B97F4A7C15) & _MASK
        state = ((state ^ (state >> 30)) * 0xBF58476D1CE4E5B9) & _MASK
        state = ((state ^ (state >> 27)) * 0x94D049BB133111EB) & _MASK
        state ^= state >> 31
    return state >> 32


def reseed(seed: int) -> None:
    """Begin torch's global streams anew: the CPU's, and the current CUDA device's if it is used."""
    torch.default_generator.manual_seed(seed)
    if torch.cuda.is_initialized():  # type: ignore[no-untyped-call]
        torch.cuda.manual_seed(seed)


@contextmanager
def seeded(seed: int) -> Generator[None]:
    """Within, the CPU's global streams (torch, NumPy, ``random``) follow from ``seed`` alone.

    In a worker process, which has no other use for them, they are not put back.
    """
    if get_worker_info() is not None:
        _seed_all(seed)
        yield
        return
    before = torch.default_generator.get_state(), np.random.get_state(), random.getstate()  # noqa: NPY002
    _seed_all(seed)
    try:
        yield
    finally:
        torch.default_generator.set_state(before[0])
        np.random.set_state(before[1])  # noqa: NPY002
        random.setstate(before[2])


def _seed_all(seed: int) -> None:
    torch.default_generator.manual_seed(seed)
    np.random.seed(seed)  # noqa: NPY002  datasets in the wild draw from it
    random.seed(seed)
