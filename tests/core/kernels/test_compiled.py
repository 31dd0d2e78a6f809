"""Compiled loops where their machine code cannot be kept on disk."""

import subprocess
import sys

CODE = """
import warnings
import numba.core.caching
if {unwritable}:
    numba.core.caching.CacheImpl._locator_classes = []  # neither folder is writable
with warnings.catch_warnings(record=True) as caught:
    warnings.simplefilter("always")
    from lit_adaptive.samplers import PrioritizedSampler
    import torch
    sampler = PrioritizedSampler(100, seed=3)
    sampler.update(torch.arange(100), torch.arange(100.0))
    print(sampler.draw(8).index.tolist())
print([str(each.message) for each in caught if "NUMBA_CACHE_DIR" in str(each.message)])
"""


def run(*, unwritable: bool) -> list[str]:
    code = CODE.format(unwritable=unwritable)
    command = [sys.executable, "-c", code]
    return subprocess.run(command, check=True, capture_output=True, text=True).stdout.splitlines()


def test_without_a_writable_cache_draws_are_the_same_and_one_line_says_so() -> None:
    draws, warning = run(unwritable=True)
    cached, none = run(unwritable=False)
    assert draws == cached
    assert none == "[]"
    assert warning.count("compiled anew in each process") == 1
