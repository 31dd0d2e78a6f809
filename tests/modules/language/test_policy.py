"""What a language model must be to be trained: its vocabulary, dropout, positions, precision."""

from typing import Any

import pytest
import torch
from lightning.pytorch import Callback
from tiny_language import TINY, Recorder, demonstrations, fit, rollouts

from callbacks import ReferenceLogProbs
from lit_adaptive.data import (
    Arithmetic,
    DemonstrationDataset,
    DemonstrationsDataModule,
    PromptDataset,
    RolloutDataModule,
)
from lit_adaptive.modules import GRPO, IWSFT, ConfiguredLM, LoRA, Optimization, PolicyObjective
from lit_adaptive.rollout.generation import SamplingParams
from lit_adaptive.rollout.models.pretrained import load_tokenizer

pytestmark = [
    pytest.mark.filterwarnings("ignore:`isinstance"),
    pytest.mark.filterwarnings("ignore:You defined a `validation_step`"),
    pytest.mark.filterwarnings("ignore:.*does not have many workers"),
]


def test_an_adapter_of_the_embedding_is_trained() -> None:
    lora = LoRA(4, targets=["embed_tokens"])
    module = IWSFT(
        ConfiguredLM(**TINY, lora=lora, options={"tie_word_embeddings": False}),
        objective="nll",
        optimization=Optimization(learning_rate=0.1),
        max_new_tokens=0,
    )
    fit(module, demonstrations(), max_steps=3)
    trained = {n: p for n, p in module.policy.named_parameters() if p.requires_grad}
    assert trained
    assert all("embed_tokens" in name for name in trained)
    # Both factors start so that their product is 0; it is not after training.
    left, right = trained.values()
    assert bool((right @ left).any())


# The vocabulary -------------------------------------------------------------------------------


def padded(extra: int = 41, **options: Any) -> ConfiguredLM:
    """A model with ``extra`` more ids than the tokenizer has."""
    size = len(load_tokenizer("characters"))
    return ConfiguredLM(**TINY, options={"vocab_size": size + extra}, **options)


def test_ids_beyond_the_tokenizer_are_neither_drawn_nor_given_probability() -> None:
    recorder, module = Recorder(), GRPO(padded(), max_new_tokens=6)
    fit(module, rollouts(group_size=16), recorder)
    size = len(load_tokenizer("characters"))
    assert max(int(batch["target"].max()) for batch in recorder.batches) < size
    batch = recorder.batches[0]
    with torch.no_grad():
        module.eval()
        ids, place = batch["input_ids"], batch["position"]
        logits = (
            module.policy.model(ids).logits.flatten(0, 1)[place] if "segment" not in batch else None
        )
        total = sum(
            module.policy(
                ids,
                batch["position_ids"],
                place,
                torch.full_like(batch["target"], token),
                segment=batch.get("segment"),
            )[0].log_prob.exp()
            for token in range(size)
        )
    torch.testing.assert_close(total, torch.ones_like(total))
    assert logits is None or logits.shape[-1] == size + 41


def test_engine_and_trainer_agree_with_a_padded_vocabulary() -> None:
    recorder = Recorder()
    fit(GRPO(padded(), max_new_tokens=6), rollouts(), recorder, log_every_n_steps=1)
    gap = [v["train/sampling/sampling_logp_difference/max"] for v in recorder.values[:1]]
    assert max(gap) < 1e-4


# Dropout --------------------------------------------------------------------------------------


@pytest.mark.parametrize("level", ["token", "sequence"])
@pytest.mark.parametrize("reference", ["cached", "frozen", "adapter_off"])
def test_weights_are_1_at_step_0_whatever_the_dropout(reference: Any, level: Any) -> None:
    recorder = Recorder()
    options: dict[str, Any] = {"attention_dropout": 0.3}
    lora = LoRA(4, dropout=0.3) if reference == "adapter_off" else None
    module = IWSFT(
        ConfiguredLM(**TINY, options=options, lora=lora),
        reference=reference,
        level=level,
        max_new_tokens=0,
    )
    callbacks = [ReferenceLogProbs()] if reference == "cached" else []
    fit(module, demonstrations(), *callbacks, recorder, max_steps=1, log_every_n_steps=1)
    assert recorder.values[0]["iw/mean"] == pytest.approx(1, abs=1e-5)
    assert recorder.values[0]["iw/max"] == pytest.approx(1, abs=1e-5)
    assert module.training  # and training itself has dropout


def test_dropout_under_a_policy_gradient_is_named() -> None:
    module = GRPO(ConfiguredLM(**TINY, options={"attention_dropout": 0.1}), max_new_tokens=0)
    with pytest.warns(UserWarning, match="the model has dropout"):
        fit(module, rollouts(), max_steps=1)


# Positions ------------------------------------------------------------------------------------


@pytest.mark.parametrize("architecture", ["gpt2", "llama"])
def test_sequences_longer_than_the_models_positions_are_rejected(architecture: str) -> None:
    model = ConfiguredLM(architecture, **TINY, max_positions=12)
    with pytest.raises(ValueError, match="the model has 12 positions"):
        fit(GRPO(model, max_new_tokens=0), rollouts(sampling=SamplingParams(9)))
    rows = [{"prompt": "1" * 9, "completion": "2" * 5}]
    data = DemonstrationsDataModule(DemonstrationDataset(rows), batch_size=1)
    with pytest.raises(ValueError, match="longest sequence of dataset has 15 tokens"):
        fit(IWSFT(model, objective="nll", max_new_tokens=0), data)


def test_demonstrations_among_rollouts_may_not_exceed_the_positions() -> None:
    rows = [{"prompt": "1+1=", "completion": "2" * 12, "answer": "2"}]
    dataset = PromptDataset(rows, columns=["answer"], demonstration="completion")
    data = RolloutDataModule(dataset, batch_size=1, group_size=2, sampling=SamplingParams(3))
    module = GRPO(ConfiguredLM(**TINY, max_positions=16), max_new_tokens=0)
    with pytest.raises(ValueError, match="longest sequence of dataset has 17 tokens"):
        fit(module, data)


def test_completions_in_validation_may_not_exceed_the_positions() -> None:
    rows = [{"prompt": "1" * 9, "completion": "2"}]
    dataset = DemonstrationDataset(rows)
    data = DemonstrationsDataModule(dataset, batch_size=1, val_dataset=dataset)
    module = IWSFT(ConfiguredLM(**TINY, max_positions=16), objective="nll", max_new_tokens=9)
    with pytest.raises(ValueError, match="val_dataset has 9 tokens and 8 of a compl"):
        fit(module, data)


# Precision ------------------------------------------------------------------------------------


@pytest.mark.parametrize("precision", ["bf16-true", "bf16-mixed", "32-true"])
@pytest.mark.parametrize("name", ["sft", "iw", "grpo"])
@pytest.mark.filterwarnings("ignore:learning_rate is")
def test_every_phase_runs_in_every_precision(precision: Any, name: str) -> None:
    model = ConfiguredLM(**TINY)
    optimization = Optimization(learning_rate=1e-3)
    callbacks: list[Callback] = []
    if name == "grpo":
        objective = PolicyObjective(kl_beta=0.1, entropy_bonus=0.01, mismatch="truncate")
        module: Any = GRPO(model, objective=objective, optimization=optimization, max_new_tokens=4)
        prompts = PromptDataset(Arithmetic("train", size=12), columns=["answer"])
        data: Any = rollouts(val_dataset=prompts, inner_epochs=2)
    else:
        objective = "nll" if name == "sft" else "iw"
        module = IWSFT(model, objective=objective, optimization=optimization, max_new_tokens=4)
        callbacks = [ReferenceLogProbs()] if name == "iw" else []
        rows = [{"prompt": f"{i}=", "completion": str(i), "answer": str(i)} for i in range(8)]
        dataset = DemonstrationDataset(rows, columns=["answer"])
        data = DemonstrationsDataModule(dataset, batch_size=4, val_dataset=dataset, seed=1)
    options = {"precision": precision, "log_every_n_steps": 1, "gradient_clip_val": 1.0}
    trainer = fit(module, data, *callbacks, **options)
    for phase in (trainer.validate, trainer.test):
        assert all(
            torch.tensor(v).isfinite() for v in phase(module, data, verbose=False)[0].values()
        )
    outputs = trainer.predict(module, data)
    assert outputs[0]["log_probs"]
    if name != "grpo":
        return
    assert data.step is not None
    assert data.step.groups.log_probs.dtype == torch.float32
