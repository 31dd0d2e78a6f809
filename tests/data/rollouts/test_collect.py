"""Rollouts collected for a step: completions, scores, advantages, demonstrations, refills."""

from typing import Any

import pytest
import torch
from rollout_runs import AlwaysWrong, VersionRecorder, fit_rollouts, rollout_data

from lit_adaptive.data.rollouts.collect import merge_metrics
from lit_adaptive.rollout.engines.transformers import TransformersEngine
from lit_adaptive.rollout.generation import Completions
from lit_adaptive.rollout.rewards.base import Reward
from lit_adaptive.rollout.rewards.scorer import Scorer
from lit_adaptive.samplers import PrioritizedSampler

pytestmark = [
    pytest.mark.filterwarnings("ignore:`isinstance"),
    pytest.mark.filterwarnings("ignore:You defined a `validation_step`"),
]


class EqualForEvenPrompts(Reward):
    """1 for every completion of a prompt that begins with an even digit, else 0 and 1 in turn."""

    def __call__(
        self, prompts: list[str], completions: list[str], **columns: list[Any]
    ) -> list[float | None]:
        even = [int(prompt[0]) % 2 == 0 for prompt in prompts]
        return [1.0 if equal else float(i % 2) for i, equal in enumerate(even)]


def test_uninformative_groups_are_dropped_or_replaced_by_further_prompts() -> None:
    rewards = Scorer([EqualForEvenPrompts()], workers=0)
    dropped, _ = fit_rollouts(rollout_data(rewards=rewards, drop_uninformative=True), max_epochs=1)
    assert any(len(step.groups) < 6 for step in dropped.steps)
    assert all(len(step.fresh) == 6 for step in dropped.steps)
    assert all(bool((b["advantage"] != 0).all()) for b in dropped.batches)
    refilling = rollout_data(rewards=rewards, drop_uninformative=True, refill=9)
    refilled, _ = fit_rollouts(refilling, max_epochs=1)
    assert all(len(step.groups) == 6 for step in refilled.steps)
    assert any(len(step.fresh) > 6 for step in refilled.steps)
    assert all(bool((b["advantage"] != 0).all()) for b in refilled.batches)


def test_the_length_penalty_grows_linearly_before_the_limit() -> None:
    recorder, _ = fit_rollouts(
        rollout_data(overlong_cache=4, rewards=Scorer([AlwaysWrong()], workers=0)), max_epochs=1
    )
    fresh = recorder.steps[0].fresh
    torch.testing.assert_close(fresh.reward, ((1 - fresh.lengths) / 4).clamp(-1, 0))


def test_demonstrations_get_no_length_penalty() -> None:
    module = rollout_data(
        overlong_cache=4, rewards=Scorer([AlwaysWrong()], workers=0), demonstration="completion"
    )
    fresh = fit_rollouts(module, max_epochs=1)[0].steps[0].fresh
    expected = ((1 - fresh.lengths) / 4).clamp(-1, 0)
    assert bool((expected[fresh.demonstration] < 0).any())
    torch.testing.assert_close(fresh.reward, torch.where(fresh.demonstration, 0.0, expected))


def test_a_demonstration_takes_the_place_of_a_completion() -> None:
    module = rollout_data(demonstration="completion")
    recorder, _ = fit_rollouts(module, max_epochs=1)
    batch, step = recorder.batches[0], recorder.steps[0]
    assert batch["off_policy"].sum() == 6
    assert step.groups.demonstration.view(6, 4).sum(1).tolist() == [1] * 6
    texts = [
        module.dataset.decode_completions([tokens])[0]
        for tokens, demonstration in zip(
            torch.split(step.groups.tokens, step.groups.lengths.tolist()),
            step.groups.demonstration.tolist(),
            strict=True,
        )
        if demonstration
    ]
    assert texts == [row["answer"] for row in module.texts(step.groups.prompt)]
    assert module.counters["rollouts"] == 3 * 18


def test_the_engine_is_synchronized_with_each_version_before_it_generates() -> None:
    engine = VersionRecorder()
    recorder, _ = fit_rollouts(rollout_data(engine=engine))
    assert engine.versions == [*range(6)]
    assert [step.fresh.version.unique().tolist() for step in recorder.steps] == [
        [n] for n in range(6)
    ]


class NoLogProbs(TransformersEngine):
    """Returns log-probabilities that ``spoil`` has changed."""

    def __init__(self, spoil: Any) -> None:
        super().__init__()
        self.spoil = spoil

    def generate(self, *arguments: Any) -> Completions:
        completions = super().generate(*arguments)
        return completions._replace(log_probs=self.spoil(completions.log_probs))


@pytest.mark.parametrize(
    "spoil",
    [
        lambda log_probs: None,
        lambda log_probs: [None] * len(log_probs),
        lambda log_probs: log_probs[:-1],
        lambda log_probs: [values[:0] for values in log_probs],
        lambda log_probs: [values * torch.nan for values in log_probs],
    ],
    ids=["none", "list of none", "too few", "empty", "nan"],
)
def test_an_engine_without_log_probs_is_rejected(spoil: Any) -> None:
    with pytest.raises(ValueError, match="NoLogProbs returned no finite log-probability"):
        fit_rollouts(rollout_data(engine=NoLogProbs(spoil)))


def test_beta_corrects_the_samplers_bias_in_the_weights_of_fresh_prompts() -> None:
    def weights(beta: float) -> tuple[torch.Tensor, torch.Tensor]:
        datamodule = rollout_data(sampler=PrioritizedSampler, scores="difficulty", beta=beta)
        recorder, _ = fit_rollouts(datamodule, max_epochs=1)
        names = ("probability", "weight")
        return tuple(torch.cat([batch[name] for batch in recorder.batches]) for name in names)  # type: ignore[return-value]

    probability, weight = weights(0.5)
    assert len(probability.unique()) > 1
    torch.testing.assert_close(weight, (60 * probability).pow(-0.5).float())
    assert weights(0.0)[1].eq(1).all()


def test_metrics_of_rewards_are_those_of_all_rounds_of_a_step() -> None:
    scorer = Scorer([EqualForEvenPrompts()], workers=0)
    module = rollout_data(rewards=scorer, drop_uninformative=True, refill=3)
    recorder, _ = fit_rollouts(module, max_epochs=1)
    rounds = [step.metrics["filter/rounds"] for step in recorder.steps]
    assert max(rounds) > 1
    assert module.counters["rollouts"] == sum(len(step.fresh.reward) for step in recorder.steps)
    for step in recorder.steps:
        for statistic in ("mean", "std"):
            (name,) = [n for n in step.metrics if n.endswith(f"prompts/{statistic}")]
            expected = getattr(step.fresh.reward, statistic)()
            assert step.metrics[name] == pytest.approx(float(expected))


def test_metrics_of_ranks_sum_counts_and_keep_the_slowest_time() -> None:
    merged = merge_metrics(
        [
            {"rollouts": 3.0, "seconds/generation": 2.0},
            {"rollouts": 5.0, "seconds/generation": 4.0, "errors": 1.0},
        ]
    )
    assert merged == {"rollouts": 8.0, "seconds/generation": 4.0, "errors": 1.0}
