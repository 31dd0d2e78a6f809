"""The parent's side of a ``RewardPool``'s processes; see ``_reward_worker`` for the other."""

import json
import os
import signal
import socket
import struct
import subprocess
import sys
import time
import weakref
from dataclasses import dataclass
from multiprocessing.connection import Connection
from typing import Any

import cloudpickle  # type: ignore[import-untyped]  # gymnasium's; also sends what a script defines

from lit_adaptive.rollout.rewards._worker import LENGTH, LOAD_LIMIT, REPLY, REQUEST
from lit_adaptive.rollout.rewards.base import Reward

_START = (
    "import json, sys; sys.path[:] = json.loads(sys.argv[2]); "
    "from lit_adaptive.rollout.rewards._worker import template; template(int(sys.argv[1]))"
)
_ANSWER_LIMIT = 30.0  # seconds for the template, which only forks and kills, to answer
_ONE_THREAD = ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS")


ENDED = (EOFError, OSError)
"""What a pipe raises whose other end is gone."""


class RewardError(ValueError):
    """A reward failed, and was to be right."""


class LoadError(Exception):
    """A reward cannot be loaded in another process."""


@dataclass(eq=False)
class Worker:
    """A process that answers one task at a time.

    Attributes:
        template: from which it was forked.
        process: its id.
        pipe: to it.
        span: the samples it is asked about, from and up to; None if it is idle.
        deadline: on the monotonic clock, of its task.
    """

    template: "Template"
    process: int
    pipe: Connection
    span: tuple[int, int] | None = None
    deadline: float = 0.0


class Template:
    """A process that has loaded a reward, and forks workers.

    Args:
        pickled: the reward.

    Attributes:
        process: its id.

    Raises:
        LoadError: if it cannot be loaded there.
    """

    def __init__(self, pickled: bytes) -> None:
        self._control, theirs = socket.socketpair()
        with theirs:
            self._popen = subprocess.Popen(  # noqa: S603  our own interpreter
                [sys.executable, "-P", "-u", "-c", _START, str(theirs.fileno()), _paths()],
                stdin=subprocess.DEVNULL,
                env={**os.environ, **dict.fromkeys(_ONE_THREAD, "1")},
                pass_fds=[theirs.fileno()],
                start_new_session=True,  # Ctrl-C is for the parent, which then kills
            )
        self.process = self._popen.pid
        self._control.settimeout(LOAD_LIMIT)
        try:
            self._control.sendall(LENGTH.pack(len(pickled)) + pickled)
            said = self._received(LENGTH.unpack(self._received(LENGTH.size))[0]).decode()
        except (OSError, EOFError) as error:
            self.close()
            raise LoadError(
                f"the process that loads it ended or gave no sign for {LOAD_LIMIT} s "
                f"(exit status {self._popen.returncode}): {error}"
            ) from error
        if said:
            self.close()
            raise LoadError(said)
        self._control.settimeout(_ANSWER_LIMIT)

    def fork(self) -> Worker:
        """A new worker, idle."""
        ours, theirs = socket.socketpair()
        with theirs:
            socket.send_fds(self._control, [REQUEST.pack(b"f", 0)], [theirs.fileno()])
            process = REPLY.unpack(self._received(REPLY.size))[0]
        # A worker that does not read, because its process was stopped, must not block us for ever.
        limit = struct.pack("@ll", int(_ANSWER_LIMIT), 0)
        ours.setsockopt(socket.SOL_SOCKET, socket.SO_SNDTIMEO, limit)
        ours.setsockopt(socket.SOL_SOCKET, socket.SO_RCVTIMEO, limit)
        return Worker(self, process, Connection(ours.detach()))

    def kill(self, worker: Worker) -> int:
        """Kill ``worker`` and what it started, and say how it ended: -9 if it was killed here."""
        worker.pipe.close()
        self._control.sendall(REQUEST.pack(b"k", worker.process))
        return int(REPLY.unpack(self._received(REPLY.size))[0])

    def close(self) -> None:
        """End all of them; waits until they are gone."""
        self._control.close()  # upon which it kills its workers and ends
        try:
            self._popen.wait(2)
        except subprocess.TimeoutExpired:  # it still loads the reward, or was stopped
            self._popen.kill()
            self._popen.wait()

    def _received(self, size: int) -> bytes:
        parts = b""
        limit = time.monotonic() + (self._control.gettimeout() or 0)
        while len(parts) < size:
            part = self._control.recv(size - len(parts))
            if not part:
                raise EOFError("its pipe was closed")
            parts += part
            if time.monotonic() > limit:
                raise TimeoutError("it was too slow")
        return parts


class Crew:
    """The processes of one reward: they start when asked for, and never outlive this one.

    Args:
        reward: what they load.
        name: what errors call it.

    Attributes:
        restarts: workers that were killed, or found dead.
    """

    def __init__(self, reward: Reward, name: str) -> None:
        self.restarts = 0
        self._reward = reward
        self._name = name
        self._template: Template | None = None
        self._idle: list[Worker] = []
        self._finalizer: Any = None
        self._owner = os.getpid()

    def worker(self) -> Worker:
        """One that is idle, or a new one.

        Raises:
            RewardError: if the reward cannot be loaded in another process.
        """
        if self._owner != os.getpid():  # forked: the processes are our parent's
            self._forget()
        if self._idle:
            return self._idle.pop()
        if self._template is None:
            self._template = self._loaded()
            self._finalizer = weakref.finalize(
                self, _close, self._template, self._idle, self._owner
            )
        try:
            return self._template.fork()
        except ENDED:  # someone killed the template, and so its workers
            self.close()
            return self.worker()

    def release(self, worker: Worker) -> None:
        """It is idle again."""
        self._idle.append(worker)

    def kill(self, worker: Worker) -> int:
        """End it, and say how it ended: by signal 9 if it was killed here."""
        self.restarts += 1
        if self._template is None or worker.template is not self._template:
            worker.pipe.close()
            return -signal.SIGKILL
        try:
            return self._template.kill(worker)
        except ENDED:
            self.close()
            return -signal.SIGKILL

    def close(self) -> None:
        """End all; the next worker comes from a new template."""
        if self._finalizer is not None:
            self._finalizer()
        self._forget()

    def _forget(self) -> None:
        """Be as if no process had been started."""
        self._owner = os.getpid()
        self._template = self._finalizer = None
        self._idle = []

    def _loaded(self) -> Template:
        remedy = (
            "define it in a module that can be imported, or ask it in this process (workers: 0), "
            "where it cannot be killed"
        )
        if not hasattr(os, "fork"):
            raise RewardError(
                f"{sys.platform} cannot fork processes for the reward {self._name}; use "
                "workers: 0, where a reward that hangs cannot be killed"
            )
        try:
            pickled: bytes = cloudpickle.dumps(self._reward)
        except Exception as error:
            raise RewardError(
                f"the reward {self._name} cannot be sent to another process "
                f"({type(error).__name__}: {error}); {remedy}"
            ) from error
        try:
            return Template(pickled)
        except LoadError as error:
            raise RewardError(
                f"the reward {self._name} cannot be loaded in another process: it {error}; {remedy}"
            ) from error


def _close(template: Template, idle: list[Worker], owner: int) -> None:
    if os.getpid() != owner:  # a fork of the process that started them
        return
    for worker in idle:
        worker.pipe.close()
    template.close()


def _paths() -> str:
    return json.dumps([os.path.abspath(path) for path in sys.path])  # noqa: PTH100  "" is here
