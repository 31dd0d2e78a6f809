"""Two processes train a classifier as one: parameters after clipped steps, and logged losses."""

from pathlib import Path
from typing import Any

import pytest
import torch
from resumed_runs import run, steps_of


def trained(folder: Path, *arguments: str, checkpoint: str = "-") -> dict[str, Any]:
    """Run ``strategy_run.py`` with STRATEGY RANKS STEPS."""
    folder.mkdir()
    run(["strategy_run.py", *arguments, str(folder), checkpoint])
    end: dict[str, Any] = torch.load(folder / "run.pt", weights_only=True)
    return end


@pytest.mark.multiprocess
@pytest.mark.parametrize("strategy", ["ddp", "fsdp2"])
def test_clipped_steps_and_logged_losses_are_those_of_one_process(
    strategy: str, tmp_path: Path
) -> None:
    one = trained(tmp_path / "one", "auto", "1", "6")
    two = trained(tmp_path / "two", strategy, "2", "6")
    assert len(set(one["losses"])) == 6
    assert two["losses"] == pytest.approx(one["losses"], rel=1e-5)
    for name, value in one["parameters"].items():
        torch.testing.assert_close(two["parameters"][name], value, rtol=1e-4, atol=1e-5)


@pytest.mark.multiprocess
@pytest.mark.parametrize("ranks", [1, 4])
def test_a_checkpoint_of_two_ranks_continues_on_others_without_losing_a_sample(
    ranks: int, tmp_path: Path
) -> None:
    # An epoch draws each of 64 samples once: 2 steps on two ranks, the other 2 on one or four.
    first, second = tmp_path / "first", tmp_path / "second"
    trained(first, "ddp", "2", "2")
    strategy = "ddp" if ranks > 1 else "auto"
    trained(second, strategy, str(ranks), "4", checkpoint=str(first / "last.ckpt"))
    before = [steps_of(first, rank) for rank in (0, 1)]
    after = [steps_of(second, rank) for rank in range(ranks)]
    assert [sorted(steps) for steps in before + after] == [[0, 1]] * 2 + [[2, 3]] * ranks
    drawn = [i for steps in before + after for step in steps.values() for i in step["index"]]
    assert sorted(drawn) == list(range(64))
