"""A reward in processes of its own, which are killed when they hang.

A reward may be anything: a parser that needs minutes for one strange completion, C code that
crashes, a function that sometimes forgets an answer. None of these may stop or end a training run.
So the reward runs in worker processes (``_host``). A worker that is too slow is killed and
replaced. A chunk that fails is scored again sample by sample, so only the failing samples are lost.
"""

import contextlib
import json
import logging
import os
import pickle
import socket
import subprocess
import sys
import threading
import time
import weakref
from collections import Counter, deque
from collections.abc import Sequence
from typing import Any, BinaryIO, Literal, TypeAlias

import cloudpickle  # type: ignore[import-untyped]  # a dependency of gymnasium; pickles what a script defines

from lit_adaptive.core.bounds import check_at_least
from lit_adaptive.rollout.rewards._host import (
    LOAD_LIMIT,
    Evaluation,
    Failure,
    RewardBatch,
    describe_error,
)
from lit_adaptive.rollout.rewards.base import Extras, Reward, reward_name

_log = logging.getLogger(__name__)

OnError: TypeAlias = Literal["raise", "zero", "skip"]

_SILENCE_LIMIT = 30.0  # seconds without a sign of life after which a host is replaced
_REMEMBERED = 16  # failures
_START = (
    "import json, sys; sys.path[:] = json.loads(sys.argv[2]); "
    "from lit_adaptive.rollout.rewards._host import run_host; run_host(int(sys.argv[1]))"
)
_ONE_THREAD = ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS")


class RewardError(ValueError):
    """A reward failed, and ``on_error`` is ``"raise"``; or it cannot run in another process."""


class RewardPool:
    """Calls a reward in worker processes, which are killed when they hang.

    Processes start at the first call. They end with ``close()``, with the pool object, and with the
    process that made it, even by SIGKILL. A reward of an importable module is imported there; one
    of a notebook, or of the running script, is pickled by value.

    Args:
        reward: called in TRL's signature. With ``in_process`` true, ``workers: 0`` or no time-out
            it runs in this process, and cannot be killed.
        workers: number of processes, not negative.
        timeout_s: greatest duration of one call of the reward, in seconds, above 0; None for no
            limit. A call scores at most ``chunk`` completions.
        on_error: for a sample whose reward crashes, hangs or is not a finite number: ``"raise"`` an
            error, count it as ``"zero"``, or ``"skip"`` it (None).
        chunk: greatest number of completions per call in a worker, above 0. None to pass the whole
            batch to one call, for a reward that compares completions; then a failure loses all.
        max_timeouts: time-outs in a batch after which its remaining samples are lost without a
            call, so that a reward that always hangs does not stop the run.
        name: name of the reward in errors; by default its ``path`` or class.

    Attributes:
        errors: number of samples lost to errors so far.
        timeouts: number of samples lost to time-outs so far.
        restarts: number of workers and hosts that were killed, or ended, and were replaced.
        seconds: duration of all calls so far.
        failures: the last samples lost.
        lost: samples lost in the last call.
        extras: the reward's ``extras`` of the last call, None where it has none.

    Raises:
        ValueError: naming the argument that is out of its range.
    """

    def __init__(
        self,
        reward: Reward,
        *,
        workers: int = 2,
        timeout_s: float | None = 10.0,
        on_error: OnError = "raise",
        chunk: int | None = 32,
        max_timeouts: int = 64,
        name: str | None = None,
    ) -> None:
        check_at_least(1024, workers=(workers, 0))
        if timeout_s is not None and not timeout_s > 0:
            raise ValueError(f"timeout_s is {timeout_s}; it must be above 0, or None: no limit")
        if on_error not in ("raise", "zero", "skip"):
            raise ValueError(f"on_error is {on_error!r}; it must be 'raise', 'zero' or 'skip'")
        check_at_least(chunk=(chunk, 1), max_timeouts=(max_timeouts, 1))
        self.reward = reward
        self.workers = workers
        self.timeout_s = timeout_s
        self.on_error: OnError = on_error
        self.chunk = chunk
        self.max_timeouts = max_timeouts
        self.name = name or reward_name(reward)
        self.errors = 0
        self.timeouts = 0
        self.restarts = 0
        self.seconds = 0.0
        self.failures: deque[Failure] = deque(maxlen=_REMEMBERED)
        self.lost: list[Failure] = []
        self.extras: Extras = {}
        self._lock = threading.Lock()
        self._host: _HostProcess | None = None

    @property
    def in_process(self) -> bool:
        """Whether the reward runs in this process, where it cannot be killed."""
        return self.workers == 0 or self.timeout_s is None or self.reward.in_process

    def __call__(
        self, prompts: Sequence[str], completions: Sequence[str], **columns: Sequence[Any]
    ) -> list[float | None]:
        """Score completions.

        Args:
            prompts: one for each completion.
            completions: any number of them.
            columns: the dataset's other columns, each as long.

        Returns:
            Finite floats, and None where the reward does not apply (or was lost: ``"skip"``).

        Raises:
            RewardError: with ``on_error="raise"``, naming reward, sample and reason; and always if
                the reward cannot be loaded in another process.
            ValueError: if prompts or a column have another length.
        """
        lists = {name: _plain_list(column) for name, column in columns.items()}
        samples = RewardBatch(list(prompts), list(completions), lists)
        for name, column in (("prompts", samples.prompts), *lists.items()):
            if len(column) != len(samples.completions):
                raise ValueError(
                    f"{name} has {len(column)} rows for {len(completions)} completions; give one "
                    "for each"
                )
        options = (self.timeout_s, self.chunk, self.max_timeouts, self.on_error == "raise")
        evaluation = Evaluation(samples, 0, *options)
        with self._lock:
            start = time.perf_counter()
            try:
                if self.in_process:
                    evaluation.run_in_process(self.reward)
                else:
                    self._run_in_host(evaluation, options)
            finally:
                self.seconds += time.perf_counter() - start
            return self._finish(evaluation)

    def close(self) -> None:
        """End the processes; a later call starts new ones."""
        with self._lock:
            self._close_host()

    def __enter__(self) -> "RewardPool":
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def __getstate__(self) -> dict[str, Any]:
        return {**vars(self), "_lock": None, "_host": None}

    def __setstate__(self, state: dict[str, Any]) -> None:
        vars(self).update(state)
        self._lock = threading.Lock()

    def _run_in_host(self, evaluation: Evaluation, options: tuple[Any, ...]) -> None:
        """Score a batch in the host; sample by sample, if the reward kills that too."""
        while evaluation.queue:
            span = evaluation.queue.popleft()
            samples = evaluation.samples.part(span)
            try:
                pickled = pickle.dumps(tuple(samples), pickle.HIGHEST_PROTOCOL)
            except Exception as error:
                raise self._column_error(samples.columns, describe_error(error)) from error
            reply = self._request(pickle.dumps(((self.workers, *options), pickled)))
            if reply is None:
                evaluation.fail(span, "ended the host process of its pool")
            elif isinstance(reply, str):
                raise self._column_error(samples.columns, reply)
            else:
                self.restarts += reply[0]
                evaluation.record(span, *reply[1:])

    def _request(self, request: bytes) -> Any:
        """The host's reply; None if two hosts end without one."""
        for _ in range(2):
            try:
                if self._host is None or self._host.owner != os.getpid():  # a fork has its own host
                    self._host = _HostProcess(self.reward, self.name)
                return self._host.request(request)
            except (EOFError, OSError):
                self.restarts += 1
                self._close_host()
            except BaseException:  # such as KeyboardInterrupt: its reply would answer the next call
                self._close_host()
                raise
        return None

    def _column_error(self, columns: dict[str, Any], problem: str) -> RewardError:
        return RewardError(
            f"a column of {sorted(columns)} cannot be sent to the reward {self.name}, which "
            f"{problem}; give plain numbers and strings, or call it in this process (workers: 0)"
        )

    def _close_host(self) -> None:
        if self._host is not None:
            self._host.close()
            self._host = None

    def _finish(self, evaluation: Evaluation) -> list[float | None]:
        """Count and log the lost samples, or raise the first."""
        values = evaluation.values
        self.extras, self.lost = evaluation.extras, evaluation.failures
        timeouts = sum(failure.timeout for failure in self.lost)
        self.timeouts += timeouts
        self.errors += len(self.lost) - timeouts
        self.failures.extend(self.lost)
        for start, stop in evaluation.slow_chunks:
            _log.warning(
                "The reward %s took more than %s s for the samples %d to %d, then scored one by "
                "one; if none of them hangs, lower chunk",
                *(self.name, self.timeout_s, start, stop - 1),
            )
        if not self.lost:
            return values
        if self.on_error == "raise":
            failure = self.lost[0]
            raise RewardError(
                f"the reward {self.name} {failure.reason}: {failure}. A reward is a finite number, "
                "or None where it does not apply; to continue without the rewards of failing "
                "samples set on_error: skip (None) or zero"
            ) from evaluation.cause
        if self.on_error == "zero":
            for failure in self.lost:
                values[failure.sample] = 0.0
        common = Counter(failure.reason for failure in self.lost).most_common(3)
        _log.warning(
            "The reward %s lost %d of %d samples (%d too slow): %s. For instance %s",
            *(self.name, len(self.lost), len(values), timeouts),
            "; ".join(f"{count} x {reason}" for reason, count in common),
            self.lost[-1],
        )
        return values


class _HostProcess:
    """The host of a reward, started and loaded.

    Raises:
        RewardError: if the reward cannot be pickled, or loaded there.
    """

    def __init__(self, reward: Reward, name: str) -> None:
        remedy = (
            "define it in a module that can be imported, or call it in this process (workers: 0), "
            "where it cannot be killed"
        )
        if not hasattr(os, "fork"):
            raise RewardError(
                f"{sys.platform} cannot fork processes for the reward {name}; set workers: 0, "
                "where a reward that hangs cannot be killed"
            )
        try:
            pickled: bytes = cloudpickle.dumps(reward)
        except Exception as error:
            raise RewardError(
                f"the reward {name} cannot be sent to another process ({type(error).__name__}: "
                f"{error}); {remedy}"
            ) from error
        self.owner = os.getpid()
        self._socket, theirs = socket.socketpair()
        self._replies = self._socket.makefile("rb")
        with theirs:
            self._process = subprocess.Popen(  # noqa: S603  our own interpreter
                [sys.executable, "-P", "-c", _START, str(theirs.fileno()), _import_paths()],
                stdin=subprocess.DEVNULL,
                env={**os.environ, **dict.fromkeys(_ONE_THREAD, "1")},
                pass_fds=[theirs.fileno()],
                start_new_session=True,  # Ctrl-C ends the trainer, which ends the host
            )
        # Also when the pool is collected, and when this process exits.
        files = (self._socket, self._replies)
        self.close = weakref.finalize(self, _end_host, self._process, *files, self.owner)
        self._socket.settimeout(LOAD_LIMIT)
        try:
            problem = self.request(pickled)
        except (OSError, EOFError) as error:
            self.close()
            problem = f"ended its process (exit status {self._process.returncode}): {error}"
        if problem:
            self.close()
            raise RewardError(
                f"the reward {name} cannot be loaded in another process: it {problem}; {remedy}"
            )
        self._socket.settimeout(_SILENCE_LIMIT)

    def request(self, request: bytes) -> Any:
        """Send a request, and return the reply.

        Raises:
            EOFError: if the host ends.
            OSError: if it gives no sign of life, or sends something else.
        """
        self._socket.sendall(request)
        while not (line := self._replies.readline()).strip():
            if not line:
                raise EOFError("the host process ended")
        try:
            return json.loads(line)
        except ValueError as error:
            raise OSError(f"the host process sent {line[:40]!r}") from error


def _end_host(
    process: "subprocess.Popen[bytes]", connection: socket.socket, replies: BinaryIO, owner: int
) -> None:
    """End a host, and wait until it is gone."""
    if os.getpid() != owner:  # a fork of the process that started it
        return
    with contextlib.suppress(OSError):
        connection.shutdown(socket.SHUT_RDWR)  # even if a fork holds it too
    connection.close()
    replies.close()
    try:
        process.wait(2)
    except subprocess.TimeoutExpired:  # it loads the reward, or was stopped
        process.kill()
        process.wait()


def _import_paths() -> str:
    return json.dumps([os.path.abspath(path) for path in sys.path])  # noqa: PTH100  "" is here


def _plain_list(column: Any) -> list[Any]:
    """A tensor or array as numbers, since unpickling one would import its library."""
    rows: list[Any] = column.tolist() if hasattr(column, "tolist") else list(column)
    return rows
