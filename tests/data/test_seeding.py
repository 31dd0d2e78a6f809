"""Derived seeds, and global generators seeded for a while."""

import random

import numpy as np
import torch

from lit_adaptive.data.seeding import derive_seed, seeded


def test_derived_seeds_are_reproducible_and_differ_for_each_key() -> None:
    keys = [(a, b, c) for a in range(12) for b in range(12) for c in range(12)]
    keys += [(a, b) for a in range(12) for b in range(12)]
    seeds = [derive_seed(*key) for key in keys]
    assert seeds == [derive_seed(*key) for key in keys]
    assert len(set(seeds)) == len(keys)
    assert all(0 <= seed < 2**32 for seed in seeds)
    assert derive_seed(3, 1, 2) == 2_492_143_806  # the same in every process and version


def test_seeded_generators_repeat_and_are_restored() -> None:
    def draws() -> tuple[float, float, float]:
        return float(torch.rand(())), float(np.random.rand()), random.random()  # noqa: NPY002

    with seeded(5):
        first = draws()
    expected = draws()
    with seeded(1):
        draws()
    torch.manual_seed(0)
    np.random.seed(0)  # noqa: NPY002
    random.seed(0)
    undisturbed = draws()
    torch.manual_seed(0)
    np.random.seed(0)  # noqa: NPY002
    random.seed(0)
    with seeded(5):
        assert draws() == first
    assert draws() == undisturbed != expected
