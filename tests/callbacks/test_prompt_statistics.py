"""PromptStatistics tracks mean rewards and sets the sampler's priorities."""

from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from rollout_training import fit_rollouts

from callbacks import PromptStatistics
from lit_adaptive.data import read_scores
from lit_adaptive.samplers import DifficultySampler, GRESOSampler, PrioritizedSampler

pytestmark = [
    pytest.mark.filterwarnings("ignore:`isinstance"),
    pytest.mark.filterwarnings("ignore:You defined a `validation_step`"),
]


@pytest.mark.parametrize("decay", [0.8, 0.0])
def test_means_are_exponential_and_priorities_follow_them(tmp_path: Path, decay: float) -> None:
    statistics = PromptStatistics(decay=decay, epsilon=0.02)
    steps, _, data = fit_rollouts(statistics, folder=tmp_path, sampler=PrioritizedSampler)
    mean: dict[int, float] = {}
    visits = torch.zeros(12, dtype=torch.int64)
    for step in steps:
        for prompt, reward in zip(
            step.fresh.prompt.tolist(), step.fresh.mean_reward.tolist(), strict=True
        ):
            mean[prompt] = decay * mean.get(prompt, reward) + (1 - decay) * reward
            visits[prompt] += 1
    assert int(visits.max()) > 1
    for prompt, expected in mean.items():
        assert float(statistics.mean[prompt]) == pytest.approx(expected, abs=1e-6)
        priority = expected * (1 - expected) + 0.02
        assert float(data.sampler.scores()[prompt]) == pytest.approx(priority, rel=1e-4)  # type: ignore[attr-defined]
    assert statistics.visits.equal(visits)
    assert len(read_scores(tmp_path / "prompt_statistics.csv").id) == len(mean)


def test_statistics_survive_a_checkpoint(tmp_path: Path) -> None:
    statistics, resumed = PromptStatistics(), PromptStatistics()
    fit_rollouts(statistics, folder=tmp_path)
    resumed.load_state_dict(statistics.state_dict())
    assert torch.equal(statistics.visits, resumed.visits)
    torch.testing.assert_close(statistics.mean, resumed.mean, equal_nan=True)


def test_learnability_requires_rewards_from_0_to_1(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"signal learnability requires rewards in \[0, 1\]"):
        fit_rollouts(PromptStatistics(), folder=tmp_path, high=5.0, sampler=PrioritizedSampler)


def test_spread_accepts_any_rewards(tmp_path: Path) -> None:
    spread = PromptStatistics("spread")
    fit_rollouts(spread, folder=tmp_path, high=5.0, sampler=PrioritizedSampler)
    assert float(spread.mean.nan_to_num().max()) > 1


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"decay": 1.0}, r"decay is 1.0; it must lie in \[0, 1\)"),
        ({"epsilon": 0.0}, "epsilon is 0.0; it must be above 0"),
        ({"file": "a.txt"}, "must end in .csv or .parquet"),
    ],
)
def test_an_option_out_of_range_is_named(options: dict[str, Any], words: str) -> None:
    with pytest.raises(ValueError, match=words):
        PromptStatistics(**options)


def test_pass_rates_reach_a_sampler_that_learns_from_them(tmp_path: Path) -> None:
    statistics = PromptStatistics(signal="pass_rate", file=None)
    steps, _, data = fit_rollouts(statistics, folder=tmp_path, sampler=GRESOSampler)
    sampler: Any = data.sampler
    latest: dict[int, float] = {}
    for step in steps:
        rates = step.fresh.mean_reward.tolist()
        latest |= dict(zip(step.fresh.prompt.tolist(), rates, strict=True))
    streak = sampler.state_dict()["streak"]
    assert {p for p in latest if 0 < latest[p] < 1} == {p for p in latest if streak[p] == 0}


@pytest.mark.parametrize(
    ("sampler", "signal", "remedy"),
    [
        (GRESOSampler, "learnability", "pass rates: set signal to pass_rate"),
        (partial(DifficultySampler, group_size=4), "spread", "pass rates: set signal to pass_rate"),
        (PrioritizedSampler, "pass_rate", "priorities: set signal to learnability"),
    ],
)
def test_a_signal_that_the_sampler_does_not_take_is_refused(
    sampler: Any, signal: Any, remedy: str, tmp_path: Path
) -> None:
    statistics = PromptStatistics(signal=signal, file=None)
    with pytest.raises(ValueError, match=remedy):
        fit_rollouts(statistics, folder=tmp_path, sampler=sampler)
