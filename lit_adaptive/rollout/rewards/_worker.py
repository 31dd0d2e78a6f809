"""What runs in the processes of a ``RewardPool``: a template, and the workers forked from it.

The template loads the reward once and then only forks, kills and reaps. So a worker that replaces
a killed one is there in milliseconds, whatever the reward imports. Nothing here imports torch.

Each worker leads a process group: what the reward itself starts dies with it. The template dies
when the pipe to its parent closes, even by SIGKILL, and takes its workers with it.
"""

import contextlib
import ctypes
import gc
import math
import os
import pickle
import signal
import socket
import struct
import sys
import traceback
from multiprocessing.connection import Connection
from numbers import Real
from typing import Any, NamedTuple, NoReturn

from lit_adaptive.rollout.rewards.base import Reward, awaited, plain_number

LOAD_LIMIT = 120  # seconds to load a reward
REQUEST = struct.Struct("!cq")  # f: fork (with a socket); k: kill and reap this process
REPLY = struct.Struct("!q")
LENGTH = struct.Struct("!Q")
_DEATH_SIGNAL = 1  # prctl's PR_SET_PDEATHSIG


class Answers(NamedTuple):
    """What a reward said of a batch.

    Attributes:
        values: a finite number or None for each completion; None also for those of ``wrong``.
        wrong: by place, what was said instead of a number.
        extras: further numbers by name, each a list as long as ``values``.
    """

    values: list[float | None]
    wrong: dict[int, str]
    extras: dict[str, list[float | None]]


class WrongLengthError(ValueError):
    """Not one answer for each completion."""


def ask(
    reward: Reward, prompts: list[str], completions: list[str], columns: dict[str, list[Any]]
) -> Answers:
    """Ask ``reward`` once about all of them.

    Raises:
        WrongLengthError: if there is not one answer for each completion.
        Exception: whatever the reward raises.
    """
    found: Any = awaited(reward(prompts=prompts, completions=completions, **columns))
    found = found.tolist() if hasattr(found, "tolist") else found
    if not isinstance(found, list | tuple):
        raise WrongLengthError(
            f"gave a {type(found).__name__}; it must give a list with a number or None for each "
            "completion"
        )
    if len(found) != len(completions):
        raise WrongLengthError(f"gave {len(found)} numbers for {len(completions)} completions")
    values: list[float | None] = []
    wrong: dict[int, str] = {}
    for place, given in enumerate(found):
        value = plain_number(given)
        if value is None or (isinstance(value, Real) and math.isfinite(value)):
            values.append(None if value is None else float(value))
            continue
        values.append(None)
        kind = "" if isinstance(value, Real) else f"a {type(value).__name__}, "
        wrong[place] = f"gave {kind}{_excerpt(value)}; a reward is a finite number or None"
    extras = {name: _extra(name, each, len(values)) for name, each in reward.extras.items()}
    return Answers(values, wrong, extras)


def _extra(name: str, found: Any, count: int) -> list[float | None]:
    if len(found) != count:
        raise ValueError(f"gave {len(found)} of {name!r} in extras for {count} completions")
    return [None if each is None else float(each) for each in found]


def _excerpt(value: Any) -> str:
    try:
        text = repr(value)
    except Exception:
        text = "that cannot be shown"
    return text if len(text) <= 60 else text[:57] + "..."


def what_happened(error: BaseException) -> str:
    """The error in a line, with the place that raised it."""
    frames = traceback.extract_tb(error.__traceback__)
    place = f" ({os.path.basename(frames[-1].filename)}:{frames[-1].lineno})" if frames else ""  # noqa: PTH119
    return f"raised {type(error).__name__}: {error}{place}"


def template(descriptor: int) -> NoReturn:
    """Load the reward, say so, and fork or kill workers until the parent is gone.

    Args:
        descriptor: of a Unix socket to the parent, which first sends the pickled reward.
    """
    control = socket.socket(fileno=descriptor)
    workers: set[int] = set()
    try:
        reward = _loaded(control)
        while reward is not None and _serve(reward, control, workers):
            pass
    except (EOFError, OSError):
        pass  # the parent is gone
    finally:
        for process in workers:
            _killed(process)
        os._exit(0)


def _serve(reward: Reward, control: socket.socket, workers: set[int]) -> bool:
    """Do what the parent asks for next; False if it is gone."""
    request, descriptors, _, _ = socket.recv_fds(control, REQUEST.size, 1)
    if len(request) < REQUEST.size:
        return False
    task, process = REQUEST.unpack(request)
    if task == b"f":
        process = _fork(reward, descriptors[0], control)
        workers.add(process)
        control.sendall(REPLY.pack(process))
    elif process in workers:
        workers.remove(process)
        control.sendall(REPLY.pack(_killed(process)))
    return True


def _loaded(control: socket.socket) -> Reward | None:
    signal.alarm(LOAD_LIMIT)  # ends this process, should loading hang and the parent be gone
    size = LENGTH.unpack(_received(control, LENGTH.size))[0]
    reward: Reward | None = None
    try:
        loaded: Reward = pickle.loads(_received(control, size))  # noqa: S301  of our own parent
        loaded.prepare()
        reward, said = loaded, b""
    except BaseException as error:
        said = what_happened(error).encode()
    signal.alarm(0)
    control.sendall(LENGTH.pack(len(said)) + said)
    return reward


def _received(control: socket.socket, size: int) -> bytes:
    parts: list[bytes] = []
    while size:
        part = control.recv(min(size, 1 << 20))
        if not part:
            raise EOFError("the parent is gone")
        parts.append(part)
        size -= len(part)
    return b"".join(parts)


def _fork(reward: Reward, descriptor: int, control: socket.socket) -> int:
    gc.freeze()  # what the workers share stays shared
    template = os.getpid()
    process = os.fork()
    if process:
        os.close(descriptor)
        with contextlib.suppress(OSError):  # the child may have been first
            os.setpgid(process, process)
        return process
    try:
        os.setpgid(0, 0)
        if sys.platform == "linux":  # should the template be killed alone
            ctypes.CDLL(None).prctl(_DEATH_SIGNAL, signal.SIGKILL)
        control.close()
        if os.getppid() == template:  # else it was killed before this one asked to go with it
            _work(reward, Connection(descriptor))
    finally:
        os._exit(0)


def _killed(process: int) -> int:
    """Kill a worker's group, and say how the worker ended: as ``Popen.returncode`` does."""
    with contextlib.suppress(ProcessLookupError, PermissionError):
        os.killpg(process, signal.SIGKILL)
    return os.waitstatus_to_exitcode(os.waitpid(process, 0)[1])


def _work(reward: Reward, parent: Connection) -> None:
    while True:
        try:
            task = parent.recv_bytes()
        except (EOFError, OSError):
            return
        try:
            reply: Any = tuple(ask(reward, *pickle.loads(task)))  # noqa: S301  of our own parent
        except WrongLengthError as error:
            reply = ("length", str(error))
        except BaseException as error:
            reply = ("error", what_happened(error))
        parent.send_bytes(pickle.dumps(reply))
