"""Rewards that hang, crash and lie: the completion says how. Worker processes import this file."""

import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np

from lit_adaptive.rollout.rewards.base import Reward


def _hang() -> None:
    while True:
        time.sleep(60)


def _hold_the_interpreter() -> None:
    re.match(r"(a+)+$", "a" * 60 + "b")  # for longer than anyone waits, without a break


def _start_a_process() -> None:
    subprocess.Popen(["sleep", "600"])
    _hang()


ACTS = {
    "hang": _hang,
    "hold": _hold_the_interpreter,
    "child": _start_a_process,
    "exit": lambda: os._exit(3),
    "segfault": lambda: os.kill(os.getpid(), signal.SIGSEGV),
    "sys.exit": lambda: sys.exit(1),
    "raise": lambda: 1 / 0,
}
ANSWERS: dict[str, Any] = {
    "text": "very good",
    "nan": float("nan"),
    "inf": float("inf"),
    "none": None,
    "numpy": np.float32(0.5),
    "array": np.array([0.25]),
    "true": True,
}


class Awkward(Reward):
    """Does what a completion tells; otherwise the reward is the completion's number."""

    def __call__(self, prompts: list[str], completions: list[str], **columns: list[Any]) -> Any:
        for completion in completions:
            ACTS.get(completion, lambda: None)()
        return [self.one(each) for each in completions if each != "forget"]

    def one(self, completion: str) -> Any:
        return ANSWERS[completion] if completion in ANSWERS else float(completion)


class Who(Reward):
    """The worker's process, its parent's, its threads, or whether it has loaded a module."""

    def __call__(self, prompts: list[str], completions: list[str], **columns: list[Any]) -> Any:
        known = {"me": float(os.getpid()), "parent": float(os.getppid())}
        known["threads"] = float(os.environ.get("OMP_NUM_THREADS", "0"))
        return [known[c] if c in known else float(c in sys.modules) for c in completions]


class Slow(Reward):
    """Takes a second to load, and crashes on ``exit``."""

    def prepare(self) -> None:
        time.sleep(1)

    def __call__(self, prompts: list[str], completions: list[str], **columns: list[Any]) -> Any:
        if "exit" in completions:
            os._exit(3)
        return [1.0] * len(completions)


class Calls(Reward):
    """How many completions it was asked about at once; and what else it finds."""

    def __call__(self, prompts: list[str], completions: list[str], **columns: list[Any]) -> Any:
        self.extras = {"place": [float(c) for c in completions]}
        if "half" in columns:
            self.extras["half"] = [None if h is None else h / 2 for h in columns["half"]]
        return [len(completions)] * len(completions)


class Mean(Reward):
    """One number for all of them, which is wrong."""

    def __call__(self, prompts: list[str], completions: list[str], **columns: list[Any]) -> Any:
        return [1.0]


class Scalar(Reward):
    """Not even a list."""

    def __call__(self, prompts: list[str], completions: list[str], **columns: list[Any]) -> Any:
        return 1.0


class Unloadable(Reward):
    """Is fine here, and nowhere else."""

    def __call__(self, prompts: list[str], completions: list[str], **columns: list[Any]) -> Any:
        return [1.0] * len(completions)

    def prepare(self) -> None:
        raise FileNotFoundError("no such table: words.txt")


class Noting(Reward):
    """Writes its process into a file, then hangs."""

    def __init__(self, file: str) -> None:
        self.file = file

    def __call__(self, prompts: list[str], completions: list[str], **columns: list[Any]) -> Any:
        child = subprocess.Popen(["sleep", "600"])
        Path(self.file).write_text(f"{os.getppid()} {os.getpid()} {child.pid}")
        _hang()


async def awaited_length(completions: list[str]) -> list[float]:
    import asyncio

    await asyncio.sleep(0.01)
    return [float(len(each)) for each in completions]


def plus(completions: list[str], answer: list[int]) -> list[float]:
    return [int(c) + a for c, a in zip(completions, answer, strict=True)]
