"""A reward in killable processes: what hangs, crashes or lies costs its own sample only."""

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
from awkward_rewards import (
    Awkward,
    Calls,
    Mean,
    Scalar,
    Slow,
    Unloadable,
    Who,
)

from lit_adaptive.rollout.rewards._processes import Crew
from lit_adaptive.rollout.rewards.base import ExactMatch, FunctionReward, Reward
from lit_adaptive.rollout.rewards.pool import RewardError, RewardPool

HERE = Path(__file__).parents[2] / "helpers"


def asked(pool: RewardPool, completions: list[str], **columns: Any) -> list[float | None]:
    return pool([f"prompt {k}" for k in range(len(completions))], completions, **columns)


def alive(process: int) -> bool:
    """Whether it runs; a zombie does not."""
    try:
        return Path(f"/proc/{process}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except (FileNotFoundError, ProcessLookupError):
        return False


def gone(*processes: int, within: float = 5.0) -> bool:
    end = time.monotonic() + within
    while any(alive(each) for each in processes):
        if time.monotonic() > end:
            return False
        time.sleep(0.01)
    return True


def processes_of(pool: RewardPool) -> list[int]:
    who = asked(pool, ["me", "parent"])
    return [int(each) for each in who if each is not None]


@pytest.fixture(scope="module")
def shared() -> Iterator[RewardPool]:
    with RewardPool(Awkward()) as pool:
        yield pool


@pytest.mark.parametrize("workers", [0, 1, 3])
def test_every_completion_gets_its_own_reward_in_order(workers: int) -> None:
    with RewardPool(Awkward(), workers=workers, chunk=8) as pool:
        for count in (0, 1, 2, 31, 100):
            completions = ["none" if k % 7 == 3 else str(k) for k in range(count)]
            expected = [None if k % 7 == 3 else float(k) for k in range(count)]
            assert asked(pool, completions) == expected
        assert pool.restarts == 0


def test_columns_go_with_their_completions() -> None:
    import torch

    reward = FunctionReward("awkward_rewards.plus")
    with RewardPool(reward, chunk=3) as pool:
        numbers = list(range(20))
        found = asked(pool, [str(k) for k in numbers], answer=[100 * k for k in numbers])
        assert found == [101 * k for k in numbers]
        assert asked(pool, ["1", "2"], answer=torch.tensor([10, 20])) == [11, 22]


@pytest.mark.parametrize("act", ["hang", "hold"])
def test_what_hangs_is_killed_in_time_and_loses_its_own_sample_only(act: str) -> None:
    completions = [str(k) for k in range(40)]
    completions[17] = act
    with RewardPool(Awkward(), timeout_s=0.4, on_error="skip") as pool:
        asked(pool, ["1"])
        began = time.monotonic()
        found = asked(pool, completions)
        # Its chunk, and then it alone.
        assert 0.8 <= time.monotonic() - began < 2.5
        assert found == [None if k == 17 else float(k) for k in range(40)]
        assert (pool.timeouts, pool.errors, pool.restarts) == (1, 0, 2)
        assert pool.seconds >= 0.8


@pytest.mark.parametrize(
    ("act", "what"),
    [
        ("exit", "ended its process with exit status 3"),
        ("segfault", "crashed its process by signal 11"),
        ("sys.exit", "raised SystemExit: 1"),
        ("raise", "raised ZeroDivisionError: division by zero (awkward_rewards.py:"),
        ("text", "gave a str, 'very good'"),
        ("nan", "gave nan"),
        ("inf", "gave inf"),
        ("forget", "gave 0 numbers for 1 completions"),
        ("not a number", "raised ValueError: could not convert"),
    ],
)
@pytest.mark.parametrize(("on_error", "worth"), [("skip", None), ("zero", 0.0)])
def test_what_fails_loses_its_own_sample_only(
    shared: RewardPool, act: str, what: str, on_error: Any, worth: float | None
) -> None:
    completions = [str(k) for k in range(1, 41)]
    completions[5] = completions[38] = act
    shared.on_error = on_error
    before = shared.errors
    found = asked(shared, completions)
    assert found == [worth if k in (5, 38) else k + 1 for k in range(40)]
    assert (shared.timeouts, shared.errors - before) == (0, 2)
    assert {each.sample for each in shared.lost} == {5, 38}
    assert all(each.what.startswith(what) for each in shared.lost)
    assert list(shared.failures)[-2:] == shared.lost
    assert shared.lost[0].prompt == f"prompt {shared.lost[0].sample}"
    assert shared.lost[0].completion == act
    asked(shared, ["1"])
    assert shared.lost == []
    assert shared.errors - before == 2


@pytest.mark.parametrize("workers", [0, 2])
@pytest.mark.parametrize("act", ["raise", "text", "nan"])
def test_raise_names_the_reward_the_sample_and_its_prompt(workers: int, act: str) -> None:
    completions = [str(k) for k in range(40)]
    completions[23] = act
    with RewardPool(Awkward(), workers=workers) as pool:
        with pytest.raises(RewardError, match=r"the reward Awkward .*sample 23.*prompt 23") as told:
            asked(pool, completions)
        assert act in str(told.value)
        assert "on_error: skip" in str(told.value)
        if workers == 0 and act == "raise":
            assert isinstance(told.value.__cause__, ZeroDivisionError)
        assert asked(pool, ["1", "2"]) == [1, 2]  # it goes on if you do
        assert pool.errors == 1


def test_raise_also_says_that_it_took_too_long_and_kills_the_others() -> None:
    with RewardPool(Awkward(), timeout_s=0.3, workers=2, chunk=1) as pool:
        began = time.monotonic()
        with pytest.raises(RewardError, match=r"took more than 0.3 s: sample [01]"):
            asked(pool, ["hang", "hang", "1"])
        assert time.monotonic() - began < 2
        assert asked(pool, ["3"]) == [3]


@pytest.mark.parametrize("workers", [0, 2])
def test_one_number_for_all_is_refused_at_once_not_asked_again_one_by_one(workers: int) -> None:
    # By itself each sample would get its one number, and nobody would know.
    with (
        RewardPool(Mean(), workers=workers) as pool,
        pytest.raises(RewardError, match=r"Mean gave 1 numbers for \d+ completions"),
    ):
        asked(pool, ["1"] * 20)
    with (
        RewardPool(Scalar(), workers=workers) as pool,
        pytest.raises(RewardError, match=r"Scalar gave a float; it must give a list"),
    ):
        asked(pool, ["1"] * 20)


def test_numbers_of_numpy_and_truth_values_are_numbers() -> None:
    for workers in (0, 1):
        with RewardPool(Awkward(), workers=workers) as pool:
            found = asked(pool, ["numpy", "array", "true", "none"])
            assert found == [0.5, 0.25, 1.0, None]
            assert [type(each) for each in found[:3]] == [float] * 3


def test_what_was_lost_is_logged_with_an_instance(caplog: pytest.LogCaptureFixture) -> None:
    with (
        caplog.at_level(logging.WARNING, "lit_adaptive"),
        RewardPool(Awkward(), timeout_s=0.3, on_error="zero", name="mine") as pool,
    ):
        asked(pool, ["1", "raise", "hang", "raise", "x" * 500])
    last = caplog.records[-1].getMessage()
    assert "The reward mine lost 4 of 5 samples (1 too slow): 2 x raised Zero" in last
    assert "prompt 'prompt " in last
    assert len(last) < 1200
    assert any("one by one" in each.getMessage() for each in caplog.records)


def test_a_reward_that_always_hangs_does_not_hold_up_the_run_for_ever() -> None:
    with RewardPool(Awkward(), timeout_s=0.2, on_error="skip", max_timeouts=3) as pool:
        began = time.monotonic()
        assert asked(pool, ["hang"] * 64) == [None] * 64
        assert time.monotonic() - began < 3  # of 64 x 0.2 s / 2
        assert pool.timeouts == 64
        unasked = [each for each in pool.lost if "was not asked, since 3" in each.what]
        assert len(unasked) >= 60


def test_chunks_are_even_and_at_most_so_long_and_none_asks_once() -> None:
    with RewardPool(Calls(), workers=2, chunk=10) as pool:
        found = asked(pool, [str(k) for k in range(25)])
        assert sorted(set(found)) == [8, 9]
        assert pool.extras["place"] == list(range(25))
        assert set(asked(pool, ["1", "2"])) == {1}  # both workers have something to do
        halves = asked(pool, ["1"] * 25, half=[None, *range(24)])
        assert len(halves) == 25
        assert pool.extras["half"] == [None, *(k / 2 for k in range(24))]
    with RewardPool(Calls(), chunk=None) as pool:
        assert set(asked(pool, ["1"] * 100)) == {100}
    with RewardPool(Awkward(), chunk=None, on_error="skip") as pool:
        assert asked(pool, ["1", "raise", "2"]) == [None] * 3  # it compares them: all or none
        assert pool.errors == 3


def test_an_async_function_is_awaited() -> None:
    reward = FunctionReward("awkward_rewards.awaited_length")
    assert reward(["p"], ["abc"]) == [3]
    for workers in (0, 2):
        with RewardPool(reward, workers=workers) as pool:
            assert asked(pool, ["a", "bb", "ccc"]) == [1, 2, 3]

    async def inside() -> list[float | None]:  # as in a notebook
        return reward(["p"], ["abcd"])

    import asyncio

    assert asyncio.run(inside()) == [4]


def test_workers_import_neither_torch_nor_lightning_nor_the_test() -> None:
    with RewardPool(Who()) as pool:
        found = asked(pool, ["torch", "lightning", "test_reward_pool", "pytest", "awkward_rewards"])
    assert found == [0, 0, 0, 0, 1]


def test_workers_beside_each_other_have_one_thread_each(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OMP_NUM_THREADS", "7")
    with RewardPool(Who()) as pool:
        assert asked(pool, ["threads"] * 2) == [1, 1]


def test_close_ends_all_processes_and_a_later_call_starts_new_ones() -> None:
    pool = RewardPool(Who())
    first = processes_of(pool)
    assert all(alive(each) for each in first)
    assert os.getpid() not in first
    pool.close()
    pool.close()
    assert gone(*first, within=0.5)
    second = processes_of(pool)
    assert not set(first) & set(second)
    del pool
    gc.collect()
    assert gone(*second)


def test_what_the_reward_started_dies_with_it() -> None:
    with RewardPool(Awkward(), timeout_s=0.3, on_error="skip") as pool:
        before = _sleepers()
        assert asked(pool, ["child"]) == [None]
        assert _sleepers() <= before


def _sleepers() -> set[str]:
    found = subprocess.run(["pgrep", "-f", "^sleep 600$"], capture_output=True, text=True)
    return {each for each in found.stdout.split() if alive(int(each))}


@pytest.mark.parametrize("which", [0, 1])
def test_goes_on_when_a_stranger_kills_worker_or_template(which: int) -> None:
    with RewardPool(Who(), workers=1) as pool:
        victims = processes_of(pool)  # worker, template
        os.kill(victims[which], signal.SIGKILL)
        assert gone(victims[0])  # with the template goes its worker
        again = processes_of(pool)
        assert victims[0] not in again
        assert (victims[1] in again) is (which == 0)


def test_workers_of_a_template_that_is_gone_are_none_of_the_next_ones() -> None:
    crew = Crew(Who(), "who")
    first, second = crew.worker(), crew.worker()
    os.kill(first.template.process, signal.SIGKILL)
    assert gone(first.process, second.process)
    assert crew.kill(first) == -signal.SIGKILL
    third = crew.worker()
    began = time.monotonic()
    assert crew.kill(second) == -signal.SIGKILL
    assert time.monotonic() - began < 1
    assert alive(third.process)
    assert third.template is not first.template
    crew.close()


def test_a_stopped_worker_is_too_slow() -> None:
    with RewardPool(Who(), workers=1, timeout_s=0.4, on_error="skip") as pool:
        worker, _ = processes_of(pool)
        os.kill(worker, signal.SIGSTOP)
        assert None not in asked(pool, ["me"] * 4)  # the chunk failed, each by itself did not
        assert not alive(worker)


_PARENT = """
    import sys, threading, time
    sys.path.insert(0, {here!r})
    from awkward_rewards import Noting
    from lit_adaptive.rollout.rewards.pool import RewardPool
    pool = RewardPool(Noting({file!r}), timeout_s=100)
    threading.Thread(target=lambda: pool(["p"], ["c"]), daemon=True).start()
    time.sleep(100)
"""


@pytest.mark.parametrize("how", [signal.SIGKILL, signal.SIGTERM])
def test_the_end_of_the_parent_ends_a_hanging_reward_and_what_it_started(
    how: signal.Signals, tmp_path: Path
) -> None:
    file = tmp_path / "processes"
    script = textwrap.dedent(_PARENT).format(here=str(HERE), file=str(file))
    parent = subprocess.Popen([sys.executable, "-c", script])
    try:
        end = time.monotonic() + 30
        while not file.exists() or len(file.read_text().split()) < 3:
            assert time.monotonic() < end
            assert parent.poll() is None
            time.sleep(0.02)
    finally:
        parent.send_signal(how)
        parent.wait()
    template, worker, child = map(int, file.read_text().split())
    assert gone(template, worker, child)


def test_a_script_that_ends_by_itself_leaves_none(tmp_path: Path) -> None:
    script = f"""
        import sys
        sys.path.insert(0, {str(HERE)!r})
        from awkward_rewards import Who
        from lit_adaptive.rollout.rewards.pool import RewardPool
        pool = RewardPool(Who())
        print(*pool(["p", "p"], ["me", "parent"]))
    """
    done = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(script)], capture_output=True, text=True, check=True
    )
    assert done.stderr == ""
    assert gone(*(int(float(each)) for each in done.stdout.split()))


def test_a_reward_of_the_script_itself_works_and_the_script_runs_once(tmp_path: Path) -> None:
    script = tmp_path / "train.py"
    script.write_text(
        textwrap.dedent(
            """
            print("once")
            from lit_adaptive.rollout.rewards.pool import RewardPool
            from lit_adaptive.rollout.rewards.base import FunctionReward, Reward

            SCALE = 3

            class Mine(Reward):
                def __call__(self, prompts, completions, **columns):
                    return [scaled(each) for each in completions]

            def scaled(text):
                return SCALE * len(text)

            def function(completions):
                return [scaled(each) for each in completions]

            for reward in (Mine(), FunctionReward("__main__.function")):
                with RewardPool(reward) as pool:
                    print(pool(["p", "p"], ["a", "bb"]))
            """
        )
    )
    done = subprocess.run(
        [sys.executable, str(script)], capture_output=True, text=True, check=True, timeout=60
    )
    assert done.stdout.split("\n")[:-1] == ["once", "[3.0, 6.0]", "[3.0, 6.0]"]


def test_a_reward_defined_in_a_function_is_sent_as_it_is() -> None:
    factor = 5

    class Local(Reward):
        def __call__(self, prompts: list[str], completions: list[str], **columns: Any) -> Any:
            return [factor * len(each) for each in completions]

    with RewardPool(Local()) as pool:
        assert asked(pool, ["a", "bb"]) == [5, 10]


def test_a_reward_that_cannot_be_sent_or_loaded_is_refused_with_a_remedy() -> None:
    stuck = ExactMatch()
    stuck.lock = threading.Lock()  # type: ignore[attr-defined]
    with pytest.raises(RewardError, match=r"ExactMatch cannot be sent.*workers: 0"):
        asked(RewardPool(stuck), ["1"], answer=["1"])
    pool = RewardPool(Unloadable(), on_error="skip")
    with pytest.raises(RewardError, match=r"Unloadable cannot be loaded.*words.txt.*workers: 0"):
        asked(pool, ["1"])
    assert asked(RewardPool(Unloadable(), workers=0), ["1"]) == [1]
    with (
        RewardPool(ExactMatch()) as pool,
        pytest.raises(RewardError, match=r"column of \['answer'\] cannot be sent"),
    ):
        asked(pool, ["1"], answer=[threading.Lock()])


def test_a_crash_does_not_load_the_reward_again() -> None:
    with RewardPool(Slow(), on_error="skip", chunk=1) as pool:
        asked(pool, ["1"])
        began = time.monotonic()
        assert asked(pool, ["exit"] * 6) == [None] * 6
        assert time.monotonic() - began < 1  # to load it takes 1 s
        assert pool.restarts == 6


def test_works_beside_torch_threads() -> None:
    import torch

    stop = threading.Event()

    def busy() -> None:
        while not stop.is_set():
            torch.randn(300, 300) @ torch.randn(300, 300)

    thread = threading.Thread(target=busy)
    thread.start()
    try:
        with RewardPool(Awkward(), timeout_s=5, on_error="skip") as pool:
            assert asked(pool, ["1", "exit", "2"]) == [1, None, 2]
    finally:
        stop.set()
        thread.join()


def test_a_copy_and_a_fork_have_processes_of_their_own() -> None:
    with RewardPool(Who(), on_error="skip") as pool:
        mine = processes_of(pool)
        with pickle.loads(pickle.dumps(pool)) as copy:
            assert copy.on_error == "skip"
            assert not set(processes_of(copy)) & set(mine)
        context = multiprocessing.get_context("fork")
        theirs = context.SimpleQueue()
        child = context.Process(target=lambda: theirs.put(processes_of(pool)))
        child.start()
        child.join()
        assert not set(theirs.get()) & set(mine)
        assert set(processes_of(pool)) & set(mine)


def test_threads_take_turns() -> None:
    with RewardPool(Awkward()) as pool:
        found: dict[int, list[float | None]] = {}

        def ask(k: int) -> None:
            found[k] = asked(pool, [str(100 * k + j) for j in range(50)])

        threads = [threading.Thread(target=ask, args=(k,)) for k in range(6)]
        for each in threads:
            each.start()
        for each in threads:
            each.join()
    assert found == {k: [100 * k + j for j in range(50)] for k in range(6)}


def test_asks_here_without_workers_or_a_limit_or_if_the_reward_wants_it() -> None:
    me = float(os.getpid())
    inside = Who()
    inside.in_process = True
    for pool in (
        RewardPool(Who(), workers=0),
        RewardPool(Who(), timeout_s=None),
        RewardPool(inside),
    ):
        assert pool.in_process
        assert asked(pool, ["me"]) == [me]


def test_a_batch_of_256_costs_little_once_the_workers_are_there() -> None:
    completions = [f"completion number {k}" * 5 for k in range(256)]
    with RewardPool(ExactMatch()) as pool:
        asked(pool, completions, answer=completions)
        times: list[float] = []
        for _ in range(20):
            began = time.perf_counter()
            assert asked(pool, completions, answer=completions) == [1.0] * 256
            times.append(time.perf_counter() - began)
    assert sorted(times)[5] < 0.02  # 2 ms on an idle machine


def test_lengths_that_differ_are_refused() -> None:
    with pytest.raises(ValueError, match=r"prompts has 1 rows for 2 completions"):
        RewardPool(ExactMatch())(["p"], ["a", "b"])
    with pytest.raises(ValueError, match=r"answer has 3 rows for 2 completions"):
        RewardPool(ExactMatch())(["p"] * 2, ["a", "b"], answer=[1, 2, 3])


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"workers": -1}, "workers is -1"),
        ({"timeout_s": 0}, "timeout_s is 0"),
        ({"timeout_s": float("nan")}, "timeout_s is nan"),
        ({"on_error": "ignore"}, "on_error is 'ignore'"),
        ({"chunk": 0}, "chunk is 0"),
        ({"max_timeouts": 0}, "max_timeouts is 0"),
    ],
)
def test_arguments_out_of_range_are_refused(wrong: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        RewardPool(ExactMatch(), **wrong)
