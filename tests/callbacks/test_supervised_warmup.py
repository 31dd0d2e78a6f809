"""SupervisedWarmup fine-tunes the policy before the first rollout."""

from pathlib import Path
from typing import Any

import pytest
import torch
from rollout_training import fit_rollouts

from callbacks import SupervisedWarmup
from lit_adaptive.data import Arithmetic

pytestmark = [
    pytest.mark.filterwarnings("ignore:`isinstance"),
    pytest.mark.filterwarnings("ignore:You defined a `validation_step`"),
]

NO_TRAINING = 1e-30  # learning rate of GRPO


def test_the_policy_succeeds_from_the_first_step_on(tmp_path: Path) -> None:
    warmup = SupervisedWarmup(
        Arithmetic("train", size=12), steps=150, batch_size=12, learning_rate=1e-2
    )
    steps, _, data = fit_rollouts(warmup, folder=tmp_path, learning_rate=NO_TRAINING)
    fresh = steps[0].fresh
    completions = data.dataset.decode_completions(torch.split(fresh.tokens, fresh.lengths.tolist()))
    answers = [row["answer"] for row in data.texts(fresh.prompt) for _ in range(4)]
    correct = [text == answer for text, answer in zip(completions, answers, strict=True)]
    assert sum(correct) / len(correct) > 0.6


def test_the_warm_up_trains_the_policy_and_leaves_the_random_state_unchanged(
    tmp_path: Path,
) -> None:
    unchanged: list[bool] = []

    class Observed(SupervisedWarmup):
        def on_train_start(self, trainer: Any, pl_module: Any) -> None:
            random_state = torch.get_rng_state()
            weights = [parameter.detach().clone() for parameter in pl_module.parameters()]
            super().on_train_start(trainer, pl_module)
            unchanged.append(torch.equal(random_state, torch.get_rng_state()))
            pairs = zip(weights, pl_module.parameters(), strict=True)
            unchanged.append(all(torch.equal(before, after) for before, after in pairs))

    fit_rollouts(Observed(Arithmetic("train", size=12), steps=2), folder=tmp_path)
    assert unchanged == [True, False]


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"steps": -1}, "steps is -1"),
        ({"batch_size": 0}, "batch_size is 0"),
        ({"learning_rate": 0.0}, "learning_rate is 0.0"),
    ],
)
def test_an_option_out_of_range_is_named(options: dict[str, Any], words: str) -> None:
    with pytest.raises(ValueError, match=words):
        SupervisedWarmup(**options)
