"""The parent's side of a ``RewardPool``'s processes; see ``_reward_worker`` for the other."""

import json
import os
import socket
import struct
import subprocess
import sys
import time
from dataclasses import dataclass
from multiprocessing.connection import Connection

from lit_adaptive.rollout._reward_worker import LENGTH, LOAD_LIMIT, REPLY, REQUEST

_START = (
    "import json, sys; sys.path[:] = json.loads(sys.argv[2]); "
    "from lit_adaptive.rollout._reward_worker import template; template(int(sys.argv[1]))"
)
_ANSWER_LIMIT = 30.0  # seconds for the template, which only forks and kills, to answer
_ONE_THREAD = ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS")


class LoadError(ValueError):
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

    Raises:
        LoadError: if it cannot be loaded there.
    """

    def __init__(self, pickled: bytes) -> None:
        self._control, theirs = socket.socketpair()
        with theirs:
            self._process = subprocess.Popen(  # noqa: S603  our own interpreter
                [sys.executable, "-P", "-u", "-c", _START, str(theirs.fileno()), _paths()],
                stdin=subprocess.DEVNULL,
                env={**os.environ, **dict.fromkeys(_ONE_THREAD, "1")},
                pass_fds=[theirs.fileno()],
                start_new_session=True,  # Ctrl-C is for the parent, which then kills
            )
        self._control.settimeout(LOAD_LIMIT)
        try:
            self._control.sendall(LENGTH.pack(len(pickled)) + pickled)
            said = self._received(LENGTH.unpack(self._received(LENGTH.size))[0]).decode()
        except (OSError, EOFError) as error:
            self.close()
            raise LoadError(
                f"the process that loads it ended or gave no sign for {LOAD_LIMIT} s "
                f"(exit status {self._process.returncode}): {error}"
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
            self._process.wait(2)
        except subprocess.TimeoutExpired:  # it still loads the reward, or was stopped
            self._process.kill()
            self._process.wait()

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


def _paths() -> str:
    return json.dumps([os.path.abspath(path) for path in sys.path])  # noqa: PTH100  "" is here
