"""The host process of a ``RewardPool``: it loads the reward once, and forks workers that call it.

So a worker that replaces a killed one is ready within milliseconds, whatever the reward imports.
Each worker leads a process group, which is killed with it: what the reward starts ends too. The
host and its workers end when the socket to the pool closes, even by SIGKILL of the trainer. Nothing
here imports torch.

Workers reply in lines of JSON with the id of their task. Other lines (a reward that writes to every
file descriptor, the second return of a reward that forks) are ignored.
"""

import contextlib
import ctypes
import gc
import itertools
import json
import os
import pickle
import signal
import socket
import sys
import time
import traceback
from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from multiprocessing import get_context
from multiprocessing.connection import wait
from typing import Any, BinaryIO, NamedTuple, NoReturn, TypeAlias, cast

from lit_adaptive.rollout.rewards.base import (
    Extras,
    Reward,
    RewardOutputError,
    call_reward,
    split_invalid,
)

LOAD_LIMIT = 120  # seconds to load a reward
_SEND_LIMIT = 5.0  # seconds until a worker that does not read its task is replaced
_REPLY_LIMIT = 1 << 26  # bytes without a valid reply after which a worker is replaced
_DEATH_SIGNAL = 1  # PR_SET_PDEATHSIG of prctl

Span: TypeAlias = tuple[int, int]  # first sample, and the one after the last


class RewardBatch(NamedTuple):
    """What a reward is called with."""

    prompts: list[str]
    completions: list[str]
    columns: dict[str, list[Any]]

    def part(self, span: Span) -> "RewardBatch":
        """The samples of ``span``."""
        rows = slice(*span)
        columns = {name: column[rows] for name, column in self.columns.items()}
        return RewardBatch(self.prompts[rows], self.completions[rows], columns)


class Failure(NamedTuple):
    """A sample whose reward was lost.

    Attributes:
        sample: row in the batch.
        timeout: True for a time-out, False for an error.
        reason: description of the failure.
        prompt: its first 80 characters.
        completion: its first 80 characters.
    """

    sample: int
    timeout: bool
    reason: str
    prompt: str
    completion: str

    def __str__(self) -> str:
        return f"sample {self.sample}, prompt {self.prompt!r}, completion {self.completion!r}"


@dataclass
class Evaluation:
    """One batch: the spans that are still to be scored, and the results so far.

    A span that fails is scored again sample by sample. The options are those of ``RewardPool``.
    """

    samples: RewardBatch
    workers: int
    timeout_s: float | None
    chunk: int | None
    max_timeouts: int
    raises: bool

    def __post_init__(self) -> None:
        size = len(self.samples.completions)
        self.values: list[float | None] = [None] * size
        self.extras: Extras = {}
        self.failures: list[Failure] = []
        self.slow_chunks: list[Span] = []
        self.cause: Exception | None = None
        chunks = min(1, size)
        if size and self.workers and self.chunk is not None:  # at least one for each worker
            chunks = -(-size // min(self.chunk, -(-size // self.workers)))
        bounds = [k * size // chunks for k in range(chunks + 1)] if chunks else []
        self.queue = deque(pairwise(bounds))

    def run_in_process(self, reward: Reward) -> None:
        """Score the batch without workers."""
        while self.queue:
            span = self.queue.popleft()
            try:
                output = call_reward(reward, *self.samples.part(span))
            except RewardOutputError as error:
                self.fail(span, str(error), wrong_length=True)
            except Exception as error:
                self.cause = error
                self.fail(span, describe_error(error))
            else:
                self.record(span, *output)

    def record(
        self,
        span: Span,
        values: list[float | str | None],
        extras: Extras,
        failures: Sequence[Sequence[Any]] = (),
        slow_chunks: Sequence[Span] = (),
    ) -> None:
        """Keep the valid ones of a span's rewards, and what another evaluation of it reports."""
        valid, invalid = split_invalid(values)
        self.values[slice(*span)] = valid
        for name, numbers in extras.items():
            self.extras.setdefault(name, [None] * len(self.values))[slice(*span)] = numbers
        for position, text in invalid.items():
            self._lose(span[0] + position, f"gave {text}; a reward is a finite number or None")
        for position, timeout, reason, *_ in failures:
            self._lose(span[0] + position, reason, timeout=timeout)
        self.slow_chunks += [(span[0] + start, span[0] + stop) for start, stop in slow_chunks]

    def fail(
        self, span: Span, reason: str, *, timeout: bool = False, wrong_length: bool = False
    ) -> None:
        """Queue a span's samples one by one; or lose them, if it cannot be divided."""
        single = span[1] - span[0] == 1 or self.chunk is None
        # A single sample would hide that the reward returns one number for a batch.
        if not single and not (wrong_length and self.raises):
            if timeout:
                self.slow_chunks.append(span)
            self.queue.extendleft((k, k + 1) for k in reversed(range(*span)))
            return
        for sample in range(*span):
            self._lose(sample, reason, timeout=timeout)
        if sum(failure.timeout for failure in self.failures) >= self.max_timeouts:
            reason = f"was not called, since {self.max_timeouts} samples before it timed out"
            while self.queue:
                for sample in range(*self.queue.popleft()):
                    self._lose(sample, reason, timeout=True)

    @property
    def stopped(self) -> bool:
        """Whether a failure has ended the evaluation."""
        return self.raises and bool(self.failures)

    def _lose(self, sample: int, reason: str, *, timeout: bool = False) -> None:
        if self.stopped:
            return
        texts = (self.samples.prompts[sample], self.samples.completions[sample])
        self.failures.append(Failure(sample, timeout, reason, *map(_excerpt, texts)))
        if self.raises:
            self.queue.clear()


def _excerpt(text: str) -> str:
    return text if len(text) <= 80 else text[:77] + "..."


def describe_error(error: BaseException) -> str:
    """The error in a line, with the place that raised it."""
    frames = traceback.extract_tb(error.__traceback__)
    place = f" ({os.path.basename(frames[-1].filename)}:{frames[-1].lineno})" if frames else ""  # noqa: PTH119
    return f"raised {type(error).__name__}: {error}{place}"


@dataclass(eq=False)
class _Worker:
    process: Any
    socket: socket.socket
    span: Span = (0, 0)
    task: int = -1
    deadline: float = 0.0  # of the task, on the monotonic clock
    buffer: bytes = b""


class _Host:
    def __init__(self, reward: Reward, pool: socket.socket, requests: BinaryIO) -> None:
        self.reward = reward
        self.pool = pool
        self.requests = requests
        self.idle: list[_Worker] = []
        self.busy: list[_Worker] = []
        self.restarts = 0
        self.last_sign = 0.0  # on the monotonic clock
        self.tasks = itertools.count()

    def run(self, evaluation: Evaluation) -> list[Any]:
        """Score a batch with the workers.

        Returns:
            The number of workers replaced, and arguments for ``Evaluation.record`` of the pool.

        Raises:
            EOFError: if the pool is closed meanwhile.
        """
        self.restarts = 0
        try:
            while (evaluation.queue or self.busy) and not evaluation.stopped:
                while evaluation.queue and len(self.busy) < evaluation.workers:
                    self._assign(evaluation, evaluation.queue.popleft())
                self._collect(evaluation)
        finally:
            for worker in [*self.busy]:
                self._kill(worker)
        arguments = (evaluation.values, evaluation.extras, evaluation.failures)
        return [self.restarts, *arguments, evaluation.slow_chunks]

    def close(self) -> None:
        """Kill all workers."""
        for worker in [*self.idle, *self.busy]:
            self._kill(worker)

    def _assign(self, evaluation: Evaluation, span: Span) -> None:
        for _ in range(3):
            worker = self.idle.pop() if self.idle else self._fork()
            worker.span, worker.task, worker.buffer = span, next(self.tasks), b""
            task = pickle.dumps((worker.task, *evaluation.samples.part(span)))
            self.busy.append(worker)
            try:
                worker.socket.sendall(task)
            except OSError:  # it ended, or was stopped, while it was idle
                self._kill(worker)
                continue
            worker.deadline = time.monotonic() + (evaluation.timeout_s or 0.0)
            return
        evaluation.fail(span, "was not called, since three workers did not accept their task")

    def _collect(self, evaluation: Evaluation) -> None:
        """Wait for replies, ends and time-outs of workers, at most a second."""
        now = time.monotonic()
        first = min((worker.deadline for worker in self.busy), default=now)
        ready = wait(
            [self.pool, *(worker.socket for worker in self.busy)], min(1.0, max(0.0, first - now))
        )
        if self.pool in ready:  # the pool sends nothing now
            raise EOFError("the pool is closed")
        if now - self.last_sign >= 1.0:  # of life, to the pool
            self.pool.sendall(b"\n")
            self.last_sign = now
        for worker in [worker for worker in self.busy if worker.socket in ready]:
            self._receive(evaluation, worker)
        now = time.monotonic()
        for worker in [worker for worker in self.busy if worker.deadline <= now]:
            self._kill(worker)
            reason = f"took more than {evaluation.timeout_s} s"
            evaluation.fail(worker.span, reason, timeout=True)

    def _receive(self, evaluation: Evaluation, worker: _Worker) -> None:
        try:
            received = worker.socket.recv(1 << 20)
        except OSError:
            received = b""
        if not received:
            status = self._kill(worker)
            ended = f"ended its process with exit status {status}"
            crashed = f"crashed its process by signal {-status}"
            evaluation.fail(worker.span, ended if status >= 0 else crashed)
            return
        *lines, worker.buffer = (worker.buffer + received).split(b"\n")
        reply = next(filter(None, (_parse_reply(line, worker.task) for line in lines)), None)
        if reply is not None:
            self.busy.remove(worker)
            self.idle.append(worker)
            if "reason" in reply:
                evaluation.fail(worker.span, **reply)
            else:
                evaluation.record(worker.span, **reply)
        elif len(worker.buffer) > _REPLY_LIMIT:
            self._kill(worker)
            evaluation.fail(worker.span, f"wrote {len(worker.buffer)} bytes into its reply")

    def _fork(self) -> _Worker:
        ours, theirs = socket.socketpair()
        sockets = [worker.socket for worker in [*self.idle, *self.busy]]
        unused = [self.requests, self.pool, ours, *sockets]
        process = get_context("fork").Process(
            target=_run_worker, args=(self.reward, theirs, unused)
        )
        process.start()
        theirs.close()
        assert process.pid is not None
        with contextlib.suppress(OSError):  # the worker may be first
            os.setpgid(process.pid, process.pid)
        ours.settimeout(_SEND_LIMIT)
        return _Worker(process, ours)

    def _kill(self, worker: _Worker) -> int:
        """Kill a worker's process group, and return how the worker ended, as ``Popen`` does."""
        for workers in (self.busy, self.idle):
            if worker in workers:
                workers.remove(worker)
        self.restarts += 1
        worker.socket.close()
        with contextlib.suppress(ProcessLookupError, PermissionError):
            os.killpg(worker.process.pid, signal.SIGKILL)
        worker.process.kill()
        worker.process.join()
        return int(worker.process.exitcode)


def _parse_reply(line: bytes, task: int) -> dict[str, Any] | None:
    """The reply in ``line``, if it is one to ``task``."""
    try:
        number, reply = json.loads(line)
    except (ValueError, TypeError, RecursionError):
        return None
    if number != task or not isinstance(reply, dict):
        return None
    return cast("dict[str, Any]", reply)


def _run_worker(reward: Reward, host: socket.socket, unused: list[Any]) -> None:
    """Call the reward for each task of the host."""
    os.setpgid(0, 0)
    if sys.platform == "linux":  # should the host be killed alone
        ctypes.CDLL(None).prctl(_DEATH_SIGNAL, signal.SIGKILL)
    for file in unused:
        file.close()
    process = os.getpid()
    tasks = host.makefile("rb")
    while True:
        try:
            task, *samples = pickle.load(tasks)  # noqa: S301  of our own parent
        except (EOFError, OSError):
            return
        try:
            values, extras = call_reward(reward, *samples)
            reply: dict[str, Any] = {"values": values, "extras": extras}
        except RewardOutputError as error:
            reply = {"reason": str(error), "wrong_length": True}
        except BaseException as error:
            reply = {"reason": describe_error(error)}
        if os.getpid() != process:  # the reward has forked, and returns in its child too
            os._exit(0)
        host.sendall(b"\n" + json.dumps([task, reply]).encode() + b"\n")


def run_host(descriptor: int) -> NoReturn:
    """Load a reward, then score batches until the pool closes its socket.

    Args:
        descriptor: of a Unix socket to the pool, which sends the pickled reward and batches.
    """
    pool = socket.socket(fileno=descriptor)
    requests = pool.makefile("rb")
    host: _Host | None = None
    try:
        reward = _load_reward(pool, requests)
        host = _Host(reward, pool, requests)
        while True:
            options, pickled = pickle.load(requests)  # noqa: S301  of our own parent
            try:
                samples = RewardBatch(*pickle.loads(pickled))  # noqa: S301
            except Exception as error:
                reply: Any = describe_error(error)
            else:
                reply = host.run(Evaluation(samples, *options))
            pool.sendall(json.dumps(reply).encode() + b"\n")
    except (EOFError, OSError):
        pass  # the pool is closed
    except BaseException:
        traceback.print_exc()
    finally:
        if host is not None:
            host.close()
        os._exit(0)


def _load_reward(pool: socket.socket, requests: BinaryIO) -> Reward:
    signal.alarm(LOAD_LIMIT)  # ends this process, should loading hang and the pool be gone
    try:
        reward: Reward = pickle.load(requests)  # noqa: S301  of our own parent
        reward.prepare()
    except BaseException as error:
        pool.sendall(json.dumps(describe_error(error)).encode() + b"\n")
        raise EOFError from error
    signal.alarm(0)
    gc.freeze()  # keeps the loaded objects shared with the workers
    pool.sendall(b"null\n")
    return reward
