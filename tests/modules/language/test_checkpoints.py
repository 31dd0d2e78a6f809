"""Checkpoints of a model with another config or other adapters are rejected."""

from pathlib import Path
from typing import Any

import pytest
from quiet_trainer import quiet_trainer
from tiny_language import TINY, demonstrations, fit, rollouts

from callbacks import ReferenceLogProbs
from lit_adaptive.modules import GRPO, IWSFT, ConfiguredLM, LoRA

pytestmark = [
    pytest.mark.filterwarnings("ignore:`isinstance"),
    pytest.mark.filterwarnings("ignore:You defined a `validation_step`"),
    pytest.mark.filterwarnings("ignore:.*does not have many workers"),
]


def trained(folder: Path, **options: Any) -> str:
    module = IWSFT(ConfiguredLM(**TINY, **options), objective="nll", max_new_tokens=0)
    trainer = fit(module, demonstrations(), max_steps=1)
    path = folder / "trained.ckpt"
    trainer.save_checkpoint(path)
    return str(path)


@pytest.mark.parametrize(
    ("lora", "message"),
    [
        (LoRA(4, alpha=64), "lora alpha is 64.0, there 8.0"),
        (LoRA(4, alpha=8, targets=["q_proj"]), r"lora targets is \['q_proj'\], there None"),
        (LoRA(8, alpha=8), "lora rank is 8, there 4"),
        (None, "lora alpha is None, there 8.0"),
    ],
)
def test_weights_of_another_lora_are_rejected(tmp_path: Path, lora: Any, message: str) -> None:
    weights = trained(tmp_path, lora=LoRA(4, alpha=8))
    module = GRPO(ConfiguredLM(**TINY, lora=lora), weights=weights, max_new_tokens=0)
    with pytest.raises(ValueError, match=message):
        fit(module, rollouts())


def test_weights_of_another_config_are_rejected(tmp_path: Path) -> None:
    weights = trained(tmp_path)
    same = IWSFT(ConfiguredLM(**TINY, max_positions=512), weights=weights, objective="nll")
    fit(same, demonstrations(), max_steps=1)
    options = {"rms_norm_eps": 0.1}
    other = IWSFT(ConfiguredLM(**TINY, options=options), weights=weights, objective="nll")
    with pytest.raises(ValueError, match=r"rms_norm_eps is 0.1, there 1e-06"):
        fit(other, demonstrations(), max_steps=1)
    resumed = IWSFT(ConfiguredLM(**TINY, options=options), objective="nll")
    trainer = quiet_trainer(max_steps=2)
    with pytest.raises(ValueError, match=r"rms_norm_eps is 0.1"):
        trainer.fit(resumed, demonstrations(), ckpt_path=weights)


@pytest.mark.parametrize("options", [{"rms_norm_eps": 0.1}, {"rope_theta": 77.0}])
def test_a_reference_cache_of_another_config_is_rejected(
    tmp_path: Path, options: dict[str, Any]
) -> None:
    cache = str(tmp_path / "reference.safetensors")
    for _ in range(2):  # written, then read
        fit(
            IWSFT(ConfiguredLM(**TINY), max_new_tokens=0),
            demonstrations(),
            ReferenceLogProbs(cache),
            max_steps=1,
        )
    other = IWSFT(ConfiguredLM(**TINY, options=options), max_new_tokens=0)
    with pytest.raises(ValueError, match="computed with another model"):
        fit(other, demonstrations(), ReferenceLogProbs(cache), max_steps=1)
