"""A reward in processes of its own, which are killed when they hang.

A reward may be anything: a parser that needs minutes for one strange completion, C code that
crashes, a function that sometimes forgets an answer. None of it may stop or end a training run. So
the reward runs in worker processes. A worker that is too slow is killed, and another takes its
place. What failed as a chunk is asked again one by one, so only the guilty samples are lost.

The workers are forked from a process that has loaded the reward, and nothing else: not the script
that trains, and not torch unless the reward imports it.
"""

import logging
import pickle
import threading
import time
from collections import Counter, deque
from collections.abc import Sequence
from itertools import pairwise
from multiprocessing.connection import wait
from typing import Any, Literal, NamedTuple, TypeAlias

from lit_adaptive.rollout.rewards._processes import ENDED, Crew, RewardError, Worker
from lit_adaptive.rollout.rewards._worker import WrongLengthError, ask, what_happened
from lit_adaptive.rollout.rewards.base import Reward

_log = logging.getLogger(__name__)

OnError: TypeAlias = Literal["raise", "zero", "skip"]
_Span: TypeAlias = tuple[int, int]

_KEPT = 16  # failures that are remembered


class Failure(NamedTuple):
    """A sample whose reward was lost.

    Attributes:
        sample: its place in the batch.
        timeout: whether it took too long; else it failed.
        what: happened.
        prompt: its beginning.
        completion: its beginning.
    """

    sample: int
    timeout: bool
    what: str
    prompt: str
    completion: str


class _Batch(NamedTuple):
    prompts: list[str]
    completions: list[str]
    columns: dict[str, list[Any]]

    def part(self, span: _Span) -> "_Batch":
        these = slice(*span)
        columns = {name: each[these] for name, each in self.columns.items()}
        return _Batch(self.prompts[these], self.completions[these], columns)


class RewardPool:
    """Asks a reward in worker processes, which are killed when they hang.

    Processes start at the first call. They end with ``close()``, when the pool is no longer used,
    and when the process that made it ends, even by SIGKILL. A reward of an importable module is
    imported there; one of a notebook, or of the script that runs, is sent as it is.

    Args:
        reward: asked in TRL's signature. Where its ``in_process`` is true, and with ``workers: 0``
            or without a time-out, it is asked in this process, and cannot be killed.
        workers: processes, not negative.
        timeout_s: seconds for one call of the reward, above 0, or None. A call is about at most
            ``chunk`` completions.
        on_error: what becomes of a sample whose reward crashes, hangs or gives something that is no
            finite number: ``"raise"`` an error, count it as ``"zero"``, or ``"skip"`` it (None).
        chunk: completions asked about at once in a worker, above 0. None: all of a batch, for a
            reward that compares them with each other; then a failure loses them all.
        max_timeouts: once so many samples of a batch have hung, the rest of it is lost unasked,
            since a reward that always hangs would hold up the run for ever.
        name: what errors call the reward; by default its ``path`` or class.

    Attributes:
        errors: samples lost so far because the reward failed.
        timeouts: samples lost so far because it was too slow.
        seconds: spent in calls so far.
        failures: the last samples lost.
        lost: those of the last call.
        extras: further numbers that the reward found at the last call, by name: lists as long as
            the batch, with None where it has none.

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
        _check(workers, timeout_s, on_error, chunk, max_timeouts)
        self.reward = reward
        self.workers = workers
        self.timeout_s = timeout_s
        self.on_error: OnError = on_error
        self.chunk = chunk
        self.max_timeouts = max_timeouts
        self.name = name or str(getattr(reward, "path", type(reward).__name__))
        self.errors = 0
        self.timeouts = 0
        self.seconds = 0.0
        self.failures: deque[Failure] = deque(maxlen=_KEPT)
        self.lost: list[Failure] = []
        self.extras: dict[str, list[float | None]] = {}
        self._start_anew()

    @property
    def restarts(self) -> int:
        """Workers that were killed, or found dead, and replaced."""
        return self._crew.restarts

    @property
    def in_process(self) -> bool:
        """Whether the reward is asked in this process, and cannot be killed."""
        return self.workers == 0 or self.timeout_s is None or self.reward.in_process

    def __call__(
        self, prompts: Sequence[str], completions: Sequence[str], **columns: Sequence[Any]
    ) -> list[float | None]:
        """The reward of each completion.

        Args:
            prompts: one for each completion.
            completions: any number of them.
            columns: the dataset's other columns, each as long.

        Returns:
            Finite floats, and None where the reward does not apply (or was lost: ``"skip"``).

        Raises:
            RewardError: with ``on_error="raise"``, naming reward, sample and what happened; and
                always if the reward cannot be loaded in another process.
            ValueError: if prompts or a column are of another length.
        """
        batch = _Batch(
            list(prompts),
            list(completions),
            {name: _listed(column) for name, column in columns.items()},
        )
        self._check_lengths(batch)
        with self._lock:
            began = time.perf_counter()
            try:
                return _Call(self, self._crew, batch).run()
            finally:
                self.seconds += time.perf_counter() - began

    def close(self) -> None:
        """End the processes; a later call starts new ones."""
        self._crew.close()

    def __enter__(self) -> "RewardPool":
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def __getstate__(self) -> dict[str, Any]:
        return {name: each for name, each in vars(self).items() if name not in ("_lock", "_crew")}

    def __setstate__(self, state: dict[str, Any]) -> None:
        vars(self).update(state)
        self._start_anew()

    def _start_anew(self) -> None:
        """Whatever is not copied with a pool."""
        self._lock = threading.Lock()
        self._crew = Crew(self.reward, self.name)

    def _check_lengths(self, batch: _Batch) -> None:
        size = len(batch.completions)
        for name, each in (("prompts", batch.prompts), *batch.columns.items()):
            if len(each) != size:
                raise ValueError(
                    f"{name} has {len(each)} rows for {size} completions; give one for each"
                )


class _Call:
    """One batch on its way through a pool."""

    def __init__(self, pool: RewardPool, crew: Crew, batch: _Batch) -> None:
        self.pool = pool
        self.crew = crew
        self.batch = batch
        self.size = len(batch.completions)
        self.values: list[float | None] = [None] * self.size
        self.extras: dict[str, list[float | None]] = {}
        self.lost: list[Failure] = []
        self.queue = deque(self._spans())
        self.busy: dict[Any, Worker] = {}
        self.cause: Exception | None = None

    def run(self) -> list[float | None]:
        """Every completion's reward."""
        pool = self.pool
        try:
            if pool.in_process:
                while self.queue:
                    self._ask_here(self.queue.popleft())
            else:
                self._ask_workers()
        finally:
            for worker in self.busy.values():
                self.crew.kill(worker)
            self._report()
        pool.extras = self.extras
        return self.values

    def _spans(self) -> list[_Span]:
        """About equal chunks, at least one for each worker."""
        if self.pool.chunk is None or self.pool.in_process or not self.size:
            return [(0, self.size)] * bool(self.size)
        share = -(-self.size // self.pool.workers)
        pieces = -(-self.size // min(self.pool.chunk, share))
        bounds = [k * self.size // pieces for k in range(pieces + 1)]
        return list(pairwise(bounds))

    def _ask_here(self, span: _Span) -> None:
        try:
            answers = ask(self.pool.reward, *self.batch.part(span))
        except WrongLengthError as error:
            self._failed(span, str(error), wrong_length=True)
        except Exception as error:
            self.cause = error
            self._failed(span, what_happened(error))
        else:
            self._keep(span, *answers)

    def _ask_workers(self) -> None:
        while self.queue or self.busy:
            while self.queue and len(self.busy) < self.pool.workers:
                self._send(self.queue.popleft())
            now = time.monotonic()
            first = min((each.deadline for each in self.busy.values()), default=now)
            for pipe in wait(list(self.busy), max(0.0, first - now)):
                self._receive(self.busy.pop(pipe))
            now = time.monotonic()
            for worker in [each for each in self.busy.values() if each.deadline <= now]:
                self._too_slow(self.busy.pop(worker.pipe))

    def _send(self, span: _Span) -> None:
        try:
            task = pickle.dumps(tuple(self.batch.part(span)), pickle.HIGHEST_PROTOCOL)
        except Exception as error:
            raise RewardError(
                f"a column of {sorted(self.batch.columns)} cannot be sent to the reward "
                f"{self.pool.name} ({type(error).__name__}: {error}); give plain numbers and "
                "strings, or ask in this process (workers: 0)"
            ) from error
        for _ in range(3):
            worker = self.crew.worker()
            try:
                worker.pipe.send_bytes(task)
            except ENDED:  # it ended while it was idle
                self.crew.kill(worker)
                continue
            worker.span = span
            worker.deadline = time.monotonic() + (self.pool.timeout_s or 0)
            self.busy[worker.pipe] = worker
            return
        self._failed(span, "ended before it was asked, three times")

    def _receive(self, worker: Worker) -> None:
        assert worker.span is not None
        try:
            answers = pickle.loads(worker.pipe.recv_bytes())  # noqa: S301  of our own worker
        except ENDED:
            self._failed(worker.span, _end(self.crew.kill(worker)))
            return
        self.crew.release(worker)
        if answers[0] in ("error", "length"):
            self._failed(worker.span, answers[1], wrong_length=answers[0] == "length")
        else:
            self._keep(worker.span, *answers)

    def _too_slow(self, worker: Worker) -> None:
        assert worker.span is not None
        self.crew.kill(worker)
        self._failed(worker.span, f"took more than {self.pool.timeout_s} s", timeout=True)

    def _keep(
        self,
        span: _Span,
        values: list[float | None],
        wrong: dict[int, str],
        extras: dict[str, list[float | None]],
    ) -> None:
        self.values[slice(*span)] = values
        for name, found in extras.items():
            self.extras.setdefault(name, [None] * self.size)[slice(*span)] = found
        for place, what in wrong.items():
            self._lose(span[0] + place, what)

    def _failed(
        self, span: _Span, what: str, *, timeout: bool = False, wrong_length: bool = False
    ) -> None:
        """Ask again one by one, or lose what was asked."""
        pool = self.pool
        alone = span[1] - span[0] == 1 or pool.chunk is None
        # A sample by itself would hide that the reward gives one number for all of them.
        if not alone and not (wrong_length and pool.on_error == "raise"):
            if timeout:
                _log.warning(
                    "The reward %s took more than %s s for the samples %d to %d, which are now "
                    "asked about one by one; if none of them hangs, lower chunk",
                    *(pool.name, pool.timeout_s, span[0], span[1] - 1),
                )
            self.queue.extendleft((k, k + 1) for k in reversed(range(*span)))
            return
        for sample in range(*span):
            self._lose(sample, what, timeout=timeout)
        if sum(each.timeout for each in self.lost) >= pool.max_timeouts:
            unasked = [sample for each in self.queue for sample in range(*each)]
            self.queue.clear()
            for sample in unasked:
                why = f"was not asked, since {pool.max_timeouts} samples before it were too slow"
                self._lose(sample, why, timeout=True)

    def _lose(self, sample: int, what: str, *, timeout: bool = False) -> None:
        prompt, completion = self.batch.prompts[sample], self.batch.completions[sample]
        failure = Failure(sample, timeout, what, _excerpt(prompt), _excerpt(completion))
        self.lost.append(failure)
        if self.pool.on_error == "raise":
            raise RewardError(
                f"the reward {self.pool.name} {what}: {_shown(failure)}. A reward is a finite "
                "number, or None where it does not apply; to go on without this sample's set "
                "on_error: skip (None) or zero"
            ) from self.cause
        self.values[sample] = 0.0 if self.pool.on_error == "zero" else None

    def _report(self) -> None:
        """Count what was lost, and log it."""
        pool, timeouts = self.pool, sum(each.timeout for each in self.lost)
        pool.timeouts += timeouts
        pool.errors += len(self.lost) - timeouts
        pool.failures.extend(self.lost)
        pool.lost = self.lost
        if pool.on_error == "raise" or not self.lost:
            return
        common = Counter(each.what for each in self.lost).most_common(3)
        _log.warning(
            "The reward %s lost %d of %d samples (%d too slow): %s. For instance %s",
            *(pool.name, len(self.lost), self.size, timeouts),
            "; ".join(f"{count} x {what}" for what, count in common),
            _shown(self.lost[-1]),
        )


def _excerpt(text: str) -> str:
    """Its beginning, at most 80 characters."""
    return text if len(text) <= 80 else text[:77] + "..."


def _shown(failure: Failure) -> str:
    return f"sample {failure.sample}, prompt {failure.prompt!r}, completion {failure.completion!r}"


def _end(status: int) -> str:
    """How a worker ended that was not to end."""
    if status >= 0:
        return f"ended its process with exit status {status}"
    return f"crashed its process by signal {-status}"


def _listed(column: Any) -> list[Any]:
    """A tensor or array as plain numbers, since to unpickle one takes as long as to import it."""
    found: list[Any] = column.tolist() if hasattr(column, "tolist") else list(column)
    return found


def _check(
    workers: int, timeout_s: float | None, on_error: str, chunk: int | None, max_timeouts: int
) -> None:
    if workers < 0:
        raise ValueError(f"workers is {workers}; it must not be negative (0: in this process)")
    if timeout_s is not None and not timeout_s > 0:
        raise ValueError(f"timeout_s is {timeout_s}; it must be above 0, or None: no limit")
    if on_error not in ("raise", "zero", "skip"):
        raise ValueError(f"on_error is {on_error!r}; it must be 'raise', 'zero' or 'skip'")
    for name, value in (("chunk", chunk), ("max_timeouts", max_timeouts)):
        if value is not None and value < 1:
            raise ValueError(f"{name} is {value}; it must be at least 1")
