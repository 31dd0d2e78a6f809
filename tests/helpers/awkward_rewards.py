"""Rewards that hang, crash or return wrong values. Worker processes import this file."""

import contextlib
import os
import pickle
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
    re.match(r"(a+)+$", "a" * 60 + "b")  # takes centuries and holds the GIL


def _start_a_process() -> None:
    subprocess.Popen(["sleep", "600"])
    _hang()


def _fork() -> None:
    os.fork()  # both processes return


def _write_junk() -> None:
    print("junk")
    for descriptor in range(3, 64):
        with contextlib.suppress(OSError):
            os.write(descriptor, b"\x80\x05junk\n[0, 1.0]")


class Payload:
    """Unpickling it creates the file that the environment variable names."""

    def __reduce__(self) -> tuple[Any, ...]:
        return Path.touch, (Path(os.environ["PAYLOAD_FILE"]),)


def _write_pickles() -> None:
    """Write pickles to all open files: those to the host, and copies of those to the trainer."""
    line = pickle.dumps(Payload())
    for descriptor in range(3, 64):
        with contextlib.suppress(OSError):
            os.write(descriptor, b"\n" + line + b"\n" + line)


ACTIONS = {
    "fork": _fork,
    "junk": _write_junk,
    "pickles": _write_pickles,
    "kill host": lambda: os.kill(os.getppid(), signal.SIGKILL),
    "hang": _hang,
    "hold": _hold_the_interpreter,
    "child": _start_a_process,
    "exit": lambda: os._exit(3),
    "exit 0": lambda: os._exit(0),
    "segfault": lambda: os.kill(os.getpid(), signal.SIGSEGV),
    "sys.exit": lambda: sys.exit(1),
    "raise": lambda: 1 / 0,
}
OUTPUTS: dict[str, Any] = {
    "huge": 1e39,
    "fork": 7.0,
    "junk": 8.0,
    "pickles": 9.0,
    "payload": Payload(),
    "kill host": 9.0,
    "text": "very good",
    "nan": float("nan"),
    "inf": float("inf"),
    "none": None,
    "numpy": np.float32(0.5),
    "array": np.array([0.25]),
    "true": True,
}


class Awkward(Reward):
    """Performs the action that a completion names; else its reward is the completion's number."""

    def __call__(self, prompts: list[str], completions: list[str], **columns: list[Any]) -> Any:
        for completion in completions:
            ACTIONS.get(completion, lambda: None)()
        return [self.output(each) for each in completions if each != "forget"]

    def output(self, completion: str) -> Any:
        return OUTPUTS[completion] if completion in OUTPUTS else float(completion)


class ProcessInfo(Reward):
    """Ids of the worker and its parent, its number of threads, or whether a module is loaded."""

    def __call__(self, prompts: list[str], completions: list[str], **columns: list[Any]) -> Any:
        values = {"process": float(os.getpid()), "parent": float(os.getppid())}
        values["threads"] = float(os.environ.get("OMP_NUM_THREADS", "0"))
        return [values[c] if c in values else float(c in sys.modules) for c in completions]


class Slow(Reward):
    """Takes a second to load, and ends its process on ``exit``."""

    def prepare(self) -> None:
        time.sleep(1)

    def __call__(self, prompts: list[str], completions: list[str], **columns: list[Any]) -> Any:
        if "exit" in completions:
            os._exit(3)
        return [1.0] * len(completions)


class Calls(Reward):
    """The number of completions per call, with extras."""

    def __call__(self, prompts: list[str], completions: list[str], **columns: list[Any]) -> Any:
        self.extras = {"place": [float(c) for c in completions]}
        if "half" in columns:
            self.extras["half"] = [None if h is None else h / 2 for h in columns["half"]]
        return [len(completions)] * len(completions)


class Mean(Reward):
    """Returns one number for a batch, which is wrong."""

    def __call__(self, prompts: list[str], completions: list[str], **columns: list[Any]) -> Any:
        return [1.0]


class Scalar(Reward):
    """Returns a float instead of a list."""

    def __call__(self, prompts: list[str], completions: list[str], **columns: list[Any]) -> Any:
        return 1.0


class Unloadable(Reward):
    """Cannot be prepared in another process."""

    def __call__(self, prompts: list[str], completions: list[str], **columns: list[Any]) -> Any:
        return [1.0] * len(completions)

    def prepare(self) -> None:
        raise FileNotFoundError("no such table: words.txt")


class ProcessWriter(Reward):
    """Writes the ids of host, worker and child into a file, then hangs."""

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
