"""A checkpoint builds its module again, without the config and without a trainer."""

from pathlib import Path
from typing import Any

import pytest
import torch
from quiet_trainer import quiet_trainer
from tiny_language import TINY, demonstrations, fit, rollouts

from lit_adaptive.cli.main import main
from lit_adaptive.data import DemonstrationsDataModule
from lit_adaptive.modules import (
    GRPO,
    IWSFT,
    ConfiguredLM,
    LoRA,
    Optimization,
    PolicyModule,
    PolicyObjective,
)
from lit_adaptive.rollout import NumericMatch
from lit_adaptive.rollout.generation import SamplingParams

pytestmark = [
    pytest.mark.filterwarnings("ignore:`isinstance"),
    pytest.mark.filterwarnings("ignore:You defined a `validation_step`"),
    pytest.mark.filterwarnings("ignore:.*does not have many workers"),
]
FAST = Optimization(learning_rate=1e-2)
TINY_OPTIONS = "{hidden_size: 32, layers: 1, heads: 2, max_positions: 64}"
CONFIGS = Path(__file__).parents[3] / "configs"


def assert_same_model(first: PolicyModule, second: PolicyModule) -> None:
    states = [module.state_dict() for module in (first, second)]
    assert states[0].keys() == states[1].keys()
    assert all(torch.equal(value, states[1][name]) for name, value in states[0].items())
    ids = first.tokenizer("3+4=", return_tensors="pt").input_ids
    assert torch.equal(ids, second.tokenizer("3+4=", return_tensors="pt").input_ids)
    sampling = SamplingParams(8, temperature=0.0)
    completions = [module.generate(ids, ids > -1, sampling) for module in (first, second)]
    assert torch.equal(completions[0].tokens[0], completions[1].tokens[0])
    assert torch.equal(completions[0].log_probs[0], completions[1].log_probs[0])


def unseeded() -> ConfiguredLM:
    """Its weights have the seed of the run, and are not in the checkpoint of a LoRA."""
    return ConfiguredLM(**TINY | {"seed": None}, lora=LoRA(4, alpha=8))


@pytest.mark.parametrize(
    "module",
    [
        lambda: IWSFT(ConfiguredLM(**TINY), objective="dft", q_decay=0.5, clamp=(0.5, 2.0)),
        lambda: IWSFT(unseeded(), objective="nll", optimization=FAST),
        lambda: IWSFT(ConfiguredLM(**TINY), objective="psft", q_decay=0.5, optimization=FAST),
    ],
)
def test_iw_sft_is_loaded_with_its_arguments(tmp_path: Path, module: Any) -> None:
    trained = module()
    path = tmp_path / "trained.ckpt"
    fit(trained, demonstrations(), max_steps=3).save_checkpoint(path)
    loaded = IWSFT.load_from_checkpoint(path)
    assert_same_model(trained, loaded)
    for name in ("objective", "q_decay", "clamp", "optimization", "max_new_tokens"):
        assert getattr(loaded, name) == getattr(trained, name), name
    (first,) = quiet_trainer().validate(trained, validation(), verbose=False)
    (second,) = quiet_trainer().validate(loaded, validation(), verbose=False)
    assert first == second
    assert first["val/nll"] > 0
    fit(loaded, demonstrations(), max_steps=1)
    states = [module.state_dict() for module in (trained, loaded)]
    assert any(not torch.equal(value, states[1][name]) for name, value in states[0].items())


def validation() -> Any:
    dataset = demonstrations().dataset
    return DemonstrationsDataModule(dataset, val_dataset=dataset, batch_size=4)


def test_grpo_is_loaded_with_its_objective_and_trains_on(tmp_path: Path) -> None:
    objective = PolicyObjective(loss_type="dapo", kl_beta=0.1, clip_high=0.3)
    trained = GRPO(ConfiguredLM(**TINY), objective=objective, optimization=FAST)
    path = tmp_path / "trained.ckpt"
    fit(trained, rollouts(), max_steps=2).save_checkpoint(path)
    loaded = GRPO.load_from_checkpoint(path)
    assert loaded.objective == objective
    assert_same_model(trained, loaded)
    assert fit(loaded, rollouts(), max_steps=1).global_step == 1


def test_an_argument_that_is_an_object_is_named_and_can_be_given_again(tmp_path: Path) -> None:
    trained = IWSFT(ConfiguredLM(**TINY), objective="nll", reward=NumericMatch())
    path = tmp_path / "trained.ckpt"
    fit(trained, demonstrations(), max_steps=1).save_checkpoint(path)
    with pytest.warns(UserWarning, match="does not hold reward, because it was an object"):
        IWSFT.load_from_checkpoint(path)
    again = IWSFT.load_from_checkpoint(path, reward=NumericMatch())
    assert type(again.scorer) is type(trained.scorer)


def test_a_run_of_the_command_line_is_loaded_with_its_reward(tmp_path: Path) -> None:
    main(
        [
            *("fit", "--config", str(CONFIGS / "sft.yaml"), "--runs", str(tmp_path)),
            *("--model.model.init_args", TINY_OPTIONS, "--trainer.max_epochs=1"),
            *("--data.dataset.source.size=64", "--data.val_dataset.source.size=8"),
            *("--trainer.check_val_every_n_epoch=1", "--model.max_new_tokens=2"),
            *(
                "--trainer.log_every_n_steps=1",
                "--model.reward",
                "lit_adaptive.rollout.NumericMatch",
            ),
            "--trainer.callbacks+=callbacks.ExportBest",
        ]
    )
    (path,) = tmp_path.glob("sft/*/checkpoints/last.ckpt")
    loaded = IWSFT.load_from_checkpoint(path)
    assert loaded.objective == "nll"
    assert loaded.optimization.learning_rate == 2e-3
    assert isinstance(loaded._given["reward"], NumericMatch)
    folder = path.parents[1] / "export"
    card = (folder / "README.md").read_text()
    assert "| `val/exact_match` |" in card
    assert "| `train/loss` |" in card
    assert "hidden_size: 32" in card
    assert "model.safetensors" in [file.name for file in folder.iterdir()]
