"""A reward in processes that can be killed: a failure loses its own sample only."""

import gc
import logging
import multiprocessing
import os
import pickle
import signal
import subprocess
import sys
import textwrap
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from awkward_rewards import (
    Awkward,
    Calls,
    Mean,
    Payload,
    ProcessInfo,
    Scalar,
    Slow,
    Unloadable,
)

from lit_adaptive.rollout.rewards.base import Reward
from lit_adaptive.rollout.rewards.functions import FunctionReward
from lit_adaptive.rollout.rewards.matching import ExactMatch
from lit_adaptive.rollout.rewards.pool import RewardError, RewardPool

HELPERS = Path(__file__).parents[2] / "helpers"


def call(pool: RewardPool, completions: list[str], **columns: Any) -> list[float | None]:
    return pool([f"prompt {k}" for k in range(len(completions))], completions, **columns)


def alive(process: int) -> bool:
    """Whether a process runs; a zombie does not."""
    try:
        return Path(f"/proc/{process}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except (FileNotFoundError, ProcessLookupError):
        return False


def gone(*processes: int, within: float = 5.0) -> bool:
    """Whether all processes end within some seconds."""
    end = time.monotonic() + within
    while any(alive(process) for process in processes):
        if time.monotonic() > end:
            return False
        time.sleep(0.01)
    return True


def processes_of(pool: RewardPool) -> list[int]:
    """Process ids of a worker and of the host."""
    return [int(value) for value in call(pool, ["process", "parent"]) if value is not None]


@pytest.fixture(scope="module")
def shared() -> Iterator[RewardPool]:
    with RewardPool(Awkward()) as pool:
        yield pool


@pytest.mark.parametrize("workers", [0, 1, 3])
def test_rewards_are_in_the_order_of_the_completions(workers: int) -> None:
    with RewardPool(Awkward(), workers=workers, chunk=8) as pool:
        for count in (0, 1, 2, 31, 100):
            completions = ["none" if k % 7 == 3 else str(k) for k in range(count)]
            expected = [None if k % 7 == 3 else float(k) for k in range(count)]
            assert call(pool, completions) == expected
        assert pool.restarts == 0


def test_columns_are_split_like_their_completions() -> None:
    import torch

    reward = FunctionReward("awkward_rewards.plus")
    with RewardPool(reward, chunk=3) as pool:
        numbers = list(range(20))
        rewards = call(pool, [str(k) for k in numbers], answer=[100 * k for k in numbers])
        assert rewards == [101 * k for k in numbers]
        assert call(pool, ["1", "2"], answer=torch.tensor([10, 20])) == [11, 22]


@pytest.mark.parametrize("action", ["hang", "hold"])
def test_a_hanging_sample_is_killed_in_time_and_loses_only_itself(action: str) -> None:
    completions = [str(k) for k in range(40)]
    completions[17] = action
    with RewardPool(Awkward(), timeout_s=0.4, on_error="skip") as pool:
        call(pool, ["1"])
        start = time.monotonic()
        rewards = call(pool, completions)
        # A time-out of its chunk, and one of the single sample.
        assert 0.8 <= time.monotonic() - start < 2.5
        assert rewards == [None if k == 17 else float(k) for k in range(40)]
        assert (pool.timeouts, pool.errors, pool.restarts) == (1, 0, 2)
        assert pool.seconds >= 0.8


@pytest.mark.parametrize(
    ("action", "reason"),
    [
        ("exit", "ended its process with exit status 3"),
        ("exit 0", "ended its process with exit status 0"),
        ("segfault", "crashed its process by signal 11"),
        ("sys.exit", "raised SystemExit: 1"),
        ("raise", "raised ZeroDivisionError: division by zero (awkward_rewards.py:"),
        ("text", "gave a str, 'very good'"),
        ("nan", "gave nan"),
        ("inf", "gave inf"),
        ("huge", "gave 1e+39"),
        ("forget", "gave 0 numbers for 1 completions"),
        ("not a number", "raised ValueError: could not convert"),
        ("kill host", "ended the host process"),
    ],
)
@pytest.mark.parametrize(("on_error", "replacement"), [("skip", None), ("zero", 0.0)])
def test_a_failing_sample_loses_only_itself(
    shared: RewardPool, action: str, reason: str, on_error: Any, replacement: float | None
) -> None:
    completions = [str(k) for k in range(1, 41)]
    completions[5] = completions[38] = action
    shared.on_error = on_error
    errors = shared.errors
    rewards = call(shared, completions)
    assert rewards == [replacement if k in (5, 38) else k + 1 for k in range(40)]
    assert (shared.timeouts, shared.errors - errors) == (0, 2)
    assert {failure.sample for failure in shared.lost} == {5, 38}
    assert all(failure.reason.startswith(reason) for failure in shared.lost)
    assert list(shared.failures)[-2:] == shared.lost
    assert shared.lost[0].prompt == f"prompt {shared.lost[0].sample}"
    assert shared.lost[0].completion == action
    call(shared, ["1"])
    assert shared.lost == []
    assert shared.errors - errors == 2


@pytest.mark.parametrize(("action", "reward"), [("fork", 7), ("junk", 8)])
def test_a_second_return_and_writes_to_open_files_change_no_reward(
    action: str, reward: float
) -> None:
    with RewardPool(Awkward(), workers=2, chunk=4) as pool:
        for _ in range(3):
            completions = [str(k) for k in range(40)]
            completions[17] = action
            assert call(pool, completions) == [reward if k == 17 else k for k in range(40)]
            assert call(pool, ["1", "2", "3"]) == [1, 2, 3]
        assert pool.restarts == 0


@pytest.mark.parametrize("workers", [0, 2])
@pytest.mark.parametrize(
    "huge", [1e39, -1e39, 3.5e38, 10**400], ids=["1e39", "-1e39", "3.5e38", "10**400"]
)
def test_a_number_that_float32_does_not_hold_is_lost_and_the_greatest_is_kept(
    workers: int, huge: float
) -> None:
    greatest = float(torch.finfo(torch.float32).max)

    class Given(Reward):
        def __call__(self, prompts: list[str], completions: list[str], **columns: Any) -> Any:
            return [huge, greatest, -greatest]

    with RewardPool(Given(), workers=workers, chunk=None, on_error="skip") as pool:
        rewards = call(pool, ["a", "b", "c"])
        assert rewards == [None, greatest, -greatest]
        kept = torch.tensor([value for value in rewards if value is not None])
        assert kept.isfinite().all()
        assert [failure.sample for failure in pool.lost] == [0]
        assert pool.lost[0].reason.startswith("gave ")


@pytest.mark.parametrize("action", ["pickles", "payload"])
def test_nothing_that_a_reward_sends_is_unpickled_in_the_trainer_or_its_host(
    action: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PAYLOAD_FILE", str(tmp_path / "ran"))
    pickle.loads(pickle.dumps(Payload()))
    (tmp_path / "ran").unlink()
    with RewardPool(Awkward(), workers=2, chunk=4, on_error="skip") as pool:
        for _ in range(2):
            rewards = call(pool, [action, *map(str, range(1, 12))])
            assert rewards == [9.0 if action == "pickles" else None, *range(1, 12)]
    assert not (tmp_path / "ran").exists()


@pytest.mark.parametrize("workers", [0, 2])
@pytest.mark.parametrize("action", ["raise", "text", "nan"])
def test_with_raise_the_error_names_the_reward_the_sample_and_its_prompt(
    workers: int, action: str
) -> None:
    completions = [str(k) for k in range(40)]
    completions[23] = action
    with RewardPool(Awkward(), workers=workers) as pool:
        with pytest.raises(RewardError, match=r"reward Awkward .*sample 23.*prompt 23") as caught:
            call(pool, completions)
        assert action in str(caught.value)
        assert "on_error: skip" in str(caught.value)
        if workers == 0 and action == "raise":
            assert isinstance(caught.value.__cause__, ZeroDivisionError)
        assert call(pool, ["1", "2"]) == [1, 2]  # the pool is still usable
        assert pool.errors == 1


def test_with_raise_a_time_out_is_an_error_and_the_other_workers_are_killed() -> None:
    with RewardPool(Awkward(), timeout_s=0.3, workers=2, chunk=1) as pool:
        start = time.monotonic()
        with pytest.raises(RewardError, match=r"took more than 0.3 s: sample [01]"):
            call(pool, ["hang", "hang", "1"])
        assert time.monotonic() - start < 2
        assert call(pool, ["3"]) == [3]


@pytest.mark.parametrize("workers", [0, 2])
@pytest.mark.parametrize(
    ("reward", "message"),
    [
        (Mean(), r"Mean gave 1 numbers for \d+ completions"),
        (Scalar(), r"Scalar gave a float; it must give a list"),
    ],
)
def test_one_number_for_a_batch_is_an_error_and_not_retried_one_by_one(
    workers: int, reward: Reward, message: str
) -> None:
    # Sample by sample, each would get the one number.
    with RewardPool(reward, workers=workers) as pool, pytest.raises(RewardError, match=message):
        call(pool, ["1"] * 20)


@pytest.mark.parametrize("workers", [0, 1])
def test_numbers_of_numpy_and_booleans_are_numbers(workers: int) -> None:
    with RewardPool(Awkward(), workers=workers) as pool:
        rewards = call(pool, ["numpy", "array", "true", "none"])
        assert rewards == [0.5, 0.25, 1.0, None]
        assert [type(reward) for reward in rewards[:3]] == [float] * 3


def test_lost_samples_are_logged_with_an_example(caplog: pytest.LogCaptureFixture) -> None:
    with (
        caplog.at_level(logging.WARNING, "lit_adaptive"),
        RewardPool(Awkward(), timeout_s=0.3, on_error="zero", name="custom") as pool,
    ):
        call(pool, ["1", "raise", "hang", "raise", "x" * 500])
    last = caplog.records[-1].getMessage()
    assert "The reward custom lost 4 of 5 samples (1 too slow): 2 x raised Zero" in last
    assert "prompt 'prompt " in last
    assert len(last) < 1200
    assert any("one by one" in record.getMessage() for record in caplog.records)


def test_a_reward_that_always_hangs_is_not_called_for_every_sample() -> None:
    with RewardPool(Awkward(), timeout_s=0.2, on_error="skip", max_timeouts=3) as pool:
        start = time.monotonic()
        assert call(pool, ["hang"] * 64) == [None] * 64
        assert time.monotonic() - start < 3  # of 64 x 0.2 s / 2
        assert pool.timeouts == 64
        uncalled = [each for each in pool.lost if "was not called, since 3" in each.reason]
        assert len(uncalled) >= 60


def test_chunks_are_even_limited_and_at_least_one_per_worker() -> None:
    with RewardPool(Calls(), workers=2, chunk=10) as pool:
        assert sorted(set(call(pool, [str(k) for k in range(25)]))) == [8, 9]
        assert set(call(pool, ["1", "2"])) == {1}


def test_extras_of_all_chunks_are_joined() -> None:
    with RewardPool(Calls(), workers=2, chunk=10) as pool:
        call(pool, [str(k) for k in range(25)])
        assert pool.extras["place"] == list(range(25))
        call(pool, ["1"] * 25, half=[None, *range(24)])
        assert pool.extras["half"] == [None, *(k / 2 for k in range(24))]


def test_without_a_chunk_length_a_batch_is_one_call_and_fails_as_one() -> None:
    with RewardPool(Calls(), chunk=None) as pool:
        assert set(call(pool, ["1"] * 100)) == {100}
    with RewardPool(Awkward(), chunk=None, on_error="skip") as pool:
        assert call(pool, ["1", "raise", "2"]) == [None] * 3
        assert pool.errors == 3


@pytest.mark.parametrize("workers", [0, 2])
def test_an_async_function_is_awaited(workers: int) -> None:
    with RewardPool(FunctionReward("awkward_rewards.awaited_length"), workers=workers) as pool:
        assert call(pool, ["a", "bb", "ccc"]) == [1, 2, 3]


def test_workers_import_neither_torch_nor_lightning_nor_the_test() -> None:
    with RewardPool(ProcessInfo()) as pool:
        loaded = call(pool, ["torch", "lightning", "test_pool", "pytest", "awkward_rewards"])
    assert loaded == [0, 0, 0, 0, 1]


def test_workers_have_one_thread_each(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OMP_NUM_THREADS", "7")
    with RewardPool(ProcessInfo()) as pool:
        assert call(pool, ["threads"] * 2) == [1, 1]


def test_close_ends_all_processes_and_a_later_call_starts_new_ones() -> None:
    pool = RewardPool(ProcessInfo())
    first = processes_of(pool)
    assert all(alive(process) for process in first)
    assert os.getpid() not in first
    pool.close()
    pool.close()
    assert gone(*first, within=0.5)
    second = processes_of(pool)
    assert not set(first) & set(second)
    del pool
    gc.collect()
    assert gone(*second)


def test_processes_started_by_a_reward_are_killed_with_it() -> None:
    with RewardPool(Awkward(), timeout_s=0.3, on_error="skip") as pool:
        before = _sleepers()
        assert call(pool, ["child"]) == [None]
        assert _sleepers() <= before


def _sleepers() -> set[str]:
    processes = subprocess.run(["pgrep", "-f", "^sleep 600$"], capture_output=True, text=True)
    return {process for process in processes.stdout.split() if alive(int(process))}


@pytest.mark.parametrize("victim", [0, 1])
def test_a_killed_worker_or_host_is_replaced(victim: int) -> None:
    with RewardPool(ProcessInfo(), workers=1) as pool:
        worker, host = processes_of(pool)
        os.kill([worker, host][victim], signal.SIGKILL)
        assert gone(worker)  # it ends with its host too
        replacements = processes_of(pool)
        assert worker not in replacements
        assert (host in replacements) is (victim == 0)


def test_a_stopped_worker_is_too_slow() -> None:
    with RewardPool(ProcessInfo(), workers=1, timeout_s=0.4, on_error="skip") as pool:
        worker, _ = processes_of(pool)
        os.kill(worker, signal.SIGSTOP)
        assert None not in call(pool, ["process"] * 4)  # the chunk times out, then not its samples
        assert not alive(worker)


_TRAINER = """
    import sys, threading, time
    sys.path.insert(0, {helpers!r})
    from awkward_rewards import ProcessWriter
    from lit_adaptive.rollout.rewards.pool import RewardPool
    pool = RewardPool(ProcessWriter({file!r}), timeout_s=100)
    threading.Thread(target=lambda: pool(["p"], ["c"]), daemon=True).start()
    time.sleep(100)
"""


@pytest.mark.parametrize("signal_number", [signal.SIGKILL, signal.SIGTERM])
def test_a_hanging_reward_and_its_children_end_with_the_trainer(
    signal_number: signal.Signals, tmp_path: Path
) -> None:
    file = tmp_path / "processes"
    script = textwrap.dedent(_TRAINER).format(helpers=str(HELPERS), file=str(file))
    trainer = subprocess.Popen([sys.executable, "-c", script])
    try:
        end = time.monotonic() + 30
        while not file.exists() or len(file.read_text().split()) < 3:
            assert time.monotonic() < end
            assert trainer.poll() is None
            time.sleep(0.02)
    finally:
        trainer.send_signal(signal_number)
        trainer.wait()
    host, worker, child = map(int, file.read_text().split())
    assert gone(host, worker, child)


def test_a_script_that_ends_leaves_no_process(tmp_path: Path) -> None:
    script = f"""
        import sys
        sys.path.insert(0, {str(HELPERS)!r})
        from awkward_rewards import ProcessInfo
        from lit_adaptive.rollout.rewards.pool import RewardPool
        pool = RewardPool(ProcessInfo())
        print(*pool(["p", "p"], ["process", "parent"]))
    """
    done = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(script)], capture_output=True, text=True, check=True
    )
    assert done.stderr == ""
    assert gone(*(int(float(process)) for process in done.stdout.split()))


def test_a_reward_of_the_running_script_works_and_the_script_runs_once(tmp_path: Path) -> None:
    script = tmp_path / "train.py"
    script.write_text(
        textwrap.dedent(
            """
            print("once")
            from lit_adaptive.rollout import FunctionReward, Reward, RewardPool

            SCALE = 3

            class ScaledLength(Reward):
                def __call__(self, prompts, completions, **columns):
                    return [scaled(text) for text in completions]

            def scaled(text):
                return SCALE * len(text)

            def function(completions):
                return [scaled(text) for text in completions]

            for reward in (ScaledLength(), FunctionReward("__main__.function")):
                with RewardPool(reward) as pool:
                    print(pool(["p", "p"], ["a", "bb"]))
            """
        )
    )
    done = subprocess.run(
        [sys.executable, str(script)], capture_output=True, text=True, check=True, timeout=60
    )
    assert done.stdout.split("\n")[:-1] == ["once", "[3.0, 6.0]", "[3.0, 6.0]"]


def test_a_reward_defined_in_a_function_is_pickled_by_value() -> None:
    factor = 5

    class Local(Reward):
        def __call__(self, prompts: list[str], completions: list[str], **columns: Any) -> Any:
            return [factor * len(text) for text in completions]

    with RewardPool(Local()) as pool:
        assert call(pool, ["a", "bb"]) == [5, 10]


def test_a_reward_that_cannot_be_pickled_is_rejected_with_a_remedy() -> None:
    reward = ExactMatch()
    reward.lock = threading.Lock()  # type: ignore[attr-defined]
    with pytest.raises(RewardError, match=r"ExactMatch cannot be sent.*workers: 0"):
        call(RewardPool(reward), ["1"], answer=["1"])


def test_a_reward_that_cannot_be_loaded_is_rejected_with_a_remedy() -> None:
    pool = RewardPool(Unloadable(), on_error="skip")
    with pytest.raises(RewardError, match=r"Unloadable cannot be loaded.*words.txt.*workers: 0"):
        call(pool, ["1"])
    assert call(RewardPool(Unloadable(), workers=0), ["1"]) == [1]


def test_a_column_that_cannot_be_pickled_is_rejected_with_a_remedy() -> None:
    with (
        RewardPool(ExactMatch()) as pool,
        pytest.raises(RewardError, match=r"column of \['answer'\] cannot be sent.*workers: 0"),
    ):
        call(pool, ["1"], answer=[threading.Lock()])


def test_a_replaced_worker_does_not_load_the_reward_again() -> None:
    with RewardPool(Slow(), on_error="skip", chunk=1) as pool:
        call(pool, ["1"])
        start = time.monotonic()
        assert call(pool, ["exit"] * 6) == [None] * 6
        assert time.monotonic() - start < 1  # loading takes 1 s
        assert pool.restarts == 6


def test_it_works_beside_threads_of_torch() -> None:
    import torch

    stop = threading.Event()

    def multiply() -> None:
        while not stop.is_set():
            torch.randn(300, 300) @ torch.randn(300, 300)

    thread = threading.Thread(target=multiply)
    thread.start()
    try:
        with RewardPool(Awkward(), timeout_s=5, on_error="skip") as pool:
            assert call(pool, ["1", "exit", "2"]) == [1, None, 2]
    finally:
        stop.set()
        thread.join()


def test_a_copy_has_processes_of_its_own() -> None:
    with RewardPool(ProcessInfo(), on_error="skip") as pool:
        processes = processes_of(pool)
        with pickle.loads(pickle.dumps(pool)) as copy:
            assert copy.on_error == "skip"
            assert not set(processes_of(copy)) & set(processes)


def test_a_fork_of_the_trainer_has_processes_of_its_own() -> None:
    with RewardPool(ProcessInfo(), on_error="skip") as pool:
        processes = processes_of(pool)
        context = multiprocessing.get_context("fork")
        queue = context.SimpleQueue()
        child = context.Process(target=lambda: queue.put(processes_of(pool)))
        child.start()
        child.join()
        assert not set(queue.get()) & set(processes)
        assert set(processes_of(pool)) & set(processes)


def test_calls_of_several_threads_do_not_mix() -> None:
    with RewardPool(Awkward()) as pool:
        rewards: dict[int, list[float | None]] = {}

        def run(k: int) -> None:
            rewards[k] = call(pool, [str(100 * k + j) for j in range(50)])

        threads = [threading.Thread(target=run, args=(k,)) for k in range(6)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    assert rewards == {k: [100 * k + j for j in range(50)] for k in range(6)}


def test_without_workers_or_a_time_out_the_reward_runs_in_this_process() -> None:
    in_process = ProcessInfo()
    in_process.in_process = True
    for pool in (
        RewardPool(ProcessInfo(), workers=0),
        RewardPool(ProcessInfo(), timeout_s=None),
        RewardPool(in_process),
    ):
        assert pool.in_process
        assert call(pool, ["process"]) == [float(os.getpid())]


def test_a_batch_of_256_takes_milliseconds_once_the_workers_run() -> None:
    completions = [f"completion number {k}" * 5 for k in range(256)]
    with RewardPool(ExactMatch()) as pool:
        call(pool, completions, answer=completions)
        times: list[float] = []
        for _ in range(20):
            start = time.perf_counter()
            assert call(pool, completions, answer=completions) == [1.0] * 256
            times.append(time.perf_counter() - start)
    assert sorted(times)[5] < 0.02  # 2 ms on an idle machine


def test_lengths_that_differ_are_rejected() -> None:
    with pytest.raises(ValueError, match=r"prompts has 1 rows for 2 completions"):
        RewardPool(ExactMatch())(["p"], ["a", "b"])
    with pytest.raises(ValueError, match=r"answer has 3 rows for 2 completions"):
        RewardPool(ExactMatch())(["p"] * 2, ["a", "b"], answer=[1, 2, 3])


@pytest.mark.parametrize(
    ("argument", "message"),
    [
        ({"workers": -1}, "workers is -1"),
        ({"timeout_s": 0}, "timeout_s is 0"),
        ({"timeout_s": float("nan")}, "timeout_s is nan"),
        ({"on_error": "ignore"}, "on_error is 'ignore'"),
        ({"chunk": 0}, "chunk is 0"),
        ({"max_timeouts": 0}, "max_timeouts is 0"),
    ],
)
def test_an_argument_out_of_range_is_named(argument: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        RewardPool(ExactMatch(), **argument)
