"""Randomness of a batch as a function of the run's seed, the batch's number and the rank.

Dropout, augmentation and everything else that draws from the global generators while a batch is
loaded or trained on starts from a derived seed. So no generator state has to be saved: a resumed
run, with any number of worker processes, repeats what the uninterrupted run would have done.
"""

import hashlib
import random
from collections.abc import Generator
from contextlib import contextmanager

import numpy as np
import torch
from torch.utils.data import get_worker_info


def derive_seed(seed: int, *key: int) -> int:
    """A seed in [0, 2**32) that follows from ``seed`` and ``key``, such as a step and a rank."""
    # once or twice per batch: a tenth of the time of numpy's SeedSequence
    digest = hashlib.blake2b(repr((seed, *key)).encode(), digest_size=4).digest()
    return int.from_bytes(digest, "little")


def reseed(seed: int) -> None:
    """Seed torch's global generators: the CPU's, and the current CUDA device's if it is in use."""
    torch.default_generator.manual_seed(seed)
    if torch.cuda.is_initialized():  # type: ignore[no-untyped-call]
        torch.cuda.manual_seed(seed)


@contextmanager
def seeded(seed: int) -> Generator[None]:
    """Seed the CPU's global generators (torch, NumPy, ``random``), and restore them afterwards.

    A worker process has no other use for them, so they are not restored there.
    """
    if get_worker_info() is not None:
        _seed_all(seed)
        yield
        return
    states = torch.default_generator.get_state(), np.random.get_state(), random.getstate()  # noqa: NPY002
    _seed_all(seed)
    try:
        yield
    finally:
        torch.default_generator.set_state(states[0])
        np.random.set_state(states[1])  # noqa: NPY002
        random.setstate(states[2])


def _seed_all(seed: int) -> None:
    torch.default_generator.manual_seed(seed)
    np.random.seed(seed)  # noqa: NPY002  some datasets draw from it
    random.seed(seed)
