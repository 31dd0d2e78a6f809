"""Projected gradients of prompts: one pass against a plain backward pass for each prompt."""

import warnings
from typing import Any

import pytest
import torch
from tiny_language import TINY, Recorder, fit, rollouts

from lit_adaptive.core import SparseProjection, influence_scores, off_policy_coefficients
from lit_adaptive.modules import GRPO, ConfiguredLM, LanguageModel, LoRA, PromptGradients
from lit_adaptive.rollout.models.pretrained import load_tokenizer

pytestmark = [
    pytest.mark.filterwarnings("ignore:`isinstance"),
    pytest.mark.filterwarnings("ignore:You defined a `validation_step`"),
    pytest.mark.filterwarnings("ignore:.*does not have many workers"),
]


def build(architecture: str = "llama", *, noise: bool = True, **options: Any) -> LanguageModel:
    size = {"hidden_size": 32, "layers": 2, "heads": 2, "seed": 0}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # peft, on GPT-2's transposed layers
        language = ConfiguredLM(architecture, **size, **options).build(load_tokenizer("characters"))
    generator = torch.Generator().manual_seed(0)
    for name, parameter in language.named_parameters():
        if noise and any(part in name for part in ("lora_B", "norm", "ln_", "bias")):
            with torch.no_grad():  # otherwise 0 or 1
                parameter += torch.randn(parameter.shape, generator=generator) * 0.1
    return language


def ragged_batch(rows: int = 7, width: int = 9) -> dict[str, Any]:
    """A row per sequence, padded."""
    generator = torch.Generator().manual_seed(1)
    ids = torch.randint(4, 20, (rows, width), generator=generator)
    lengths = torch.randint(4, width + 1, (rows,), generator=generator).tolist()
    position = [torch.arange(2, length - 1) + r * width for r, length in enumerate(lengths)]
    sequence = torch.arange(rows).repeat_interleave(torch.tensor([len(p) for p in position]))
    flat = torch.cat(position)
    return {
        "input_ids": ids,
        "position_ids": torch.arange(width).expand(rows, width),
        "position": flat,
        "target": ids.flatten()[flat + 1],
        "sequence": sequence,
    }


BATCH = ragged_batch()
SAMPLE = torch.tensor([0, 0, 1, 3, 3, 1, 0])  # prompt 2 has no rollout
FACTOR = torch.randn(len(BATCH["target"]), generator=torch.Generator().manual_seed(2))


def plain(
    gradients: PromptGradients,
    batch: dict[str, Any],
    factor: torch.Tensor,
    sample: torch.Tensor,
    size: int,
) -> torch.Tensor:
    """A backward pass for each prompt, its whole gradient, and the projection of that."""
    language, rows = gradients.language, []
    parameters = dict(language.named_parameters())
    for prompt in range(size):
        scores, _ = language.score_targets(batch, temperature=0.7)
        own = sample[batch["sequence"]] == prompt
        loss = (scores.log_prob * factor * own).sum()
        chosen = [parameters[name] for name in gradients.starts]
        values = torch.autograd.grad(loss, chosen, allow_unused=True)
        pairs = zip(values, chosen, strict=True)
        rows.append(torch.cat([(v if v is not None else p * 0).flatten() for v, p in pairs]))
    return gradients.projection.project(torch.stack(rows))


def assert_equal(got: torch.Tensor, expected: torch.Tensor) -> None:
    scale = float(expected.abs().max())
    torch.testing.assert_close(got / scale, expected / scale, rtol=1e-5, atol=1e-5)


MODELS: dict[str, dict[str, Any]] = {
    "llama": {},
    "untied": {"options": {"tie_word_embeddings": False}},
    "gpt2": {"architecture": "gpt2"},
    "qwen2": {"architecture": "qwen2"},  # biases
    "qwen3": {"architecture": "qwen3"},  # norms of each head
    "gemma2": {"architecture": "gemma2"},  # 1 + weight, capped logits, scaled embeddings
    "cohere": {"architecture": "cohere"},  # scaled logits
    "olmo2": {"architecture": "olmo2"},
    "lora": {"lora": LoRA(rank=4)},
    "gpt2 lora": {"architecture": "gpt2", "lora": LoRA(rank=4)},
    "checkpointing": {"gradient_checkpointing": True},
    "lora checkpointing": {"gradient_checkpointing": True, "lora": LoRA(rank=4)},
}


@pytest.mark.parametrize("name", MODELS)
@pytest.mark.parametrize("kind", ["count_sketch", "rademacher"])
def test_hooks_give_the_gradients_of_plain_backward_passes(name: str, kind: Any) -> None:
    language = build(**MODELS[name])
    if language.has_dropout:
        language.eval()
    gradients = PromptGradients(language, dimensions=256, keep_ratio=0.5, kind=kind)
    got = gradients(BATCH, lambda _: FACTOR, SAMPLE, 4, temperature=0.7)
    expected = plain(gradients, BATCH, FACTOR, SAMPLE, 4)
    assert got[[0, 1, 3]].abs().amax(1).min() > 0
    assert not got[2].any()
    assert_equal(got, expected)


def test_every_trained_parameter_is_covered() -> None:
    # With all coordinates and as many dimensions no part of a gradient can be missed.
    for options in ({}, {"architecture": "gpt2"}, {"lora": LoRA(rank=2)}):
        language = build(**options)
        size = sum(p.numel() for p in language.parameters() if p.requires_grad)
        assert PromptGradients(language, dimensions=64).projection.size == size


def test_model_and_modes_are_left_as_they_were() -> None:
    language = build("gpt2")  # has dropout, which must be off during the pass
    language.model.transformer.h[0].eval()
    modes = [module.training for module in language.modules()]
    before = {name: value.clone() for name, value in language.state_dict().items()}
    gradients = PromptGradients(language, dimensions=64)
    first, second = (gradients(BATCH, lambda _: FACTOR, SAMPLE, 4) for _ in range(2))
    assert first.equal(second)
    assert [module.training for module in language.modules()] == modes
    assert all(p.requires_grad and p.grad is None for p in language.parameters())
    assert all(value.equal(before[name]) for name, value in language.state_dict().items())
    assert not any(module._forward_hooks for module in language.modules())

    def fail(_: torch.Tensor) -> torch.Tensor:
        raise ValueError("no coefficients")

    with pytest.raises(ValueError, match="no coefficients"):
        gradients(BATCH, fail, SAMPLE, 4)
    assert [module.training for module in language.modules()] == modes
    assert all(p.requires_grad for p in language.parameters())
    assert not any(module._forward_hooks for module in language.modules())


def test_batches_of_some_rollouts_add_up() -> None:
    gradients = PromptGradients(build(), dimensions=128)
    whole = gradients(BATCH, lambda _: FACTOR, SAMPLE, 4)
    total = torch.zeros_like(whole)
    for part in (BATCH["sequence"] < 3, BATCH["sequence"] >= 3):
        batch = BATCH | {name: BATCH[name][part] for name in ("position", "target", "sequence")}
        total += gradients(batch, lambda _, part=part: FACTOR[part], SAMPLE, 4)
    torch.testing.assert_close(total, whole, rtol=1e-4, atol=1e-5)


def test_a_subset_of_layers_needs_no_more_than_their_coordinates() -> None:
    language = build()
    gradients = PromptGradients(language, dimensions=64, parameters=r"layers\.1\..*(mlp|norm)")
    assert all("layers.1." in name for name in gradients.starts)
    assert len(gradients.starts) == 5
    got = gradients(BATCH, lambda _: FACTOR, SAMPLE, 4, temperature=0.7)
    assert_equal(got, plain(gradients, BATCH, FACTOR, SAMPLE, 4))


def test_only_the_head() -> None:
    language = build(options={"tie_word_embeddings": False})
    gradients = PromptGradients(language, dimensions=32, parameters="lm_head")
    got = gradients(BATCH, lambda _: FACTOR, SAMPLE, 4, temperature=0.7)
    assert_equal(got, plain(gradients, BATCH, FACTOR, SAMPLE, 4))


def test_samples_that_share_a_packed_row() -> None:
    # Row 0 holds two sequences of different prompts, row 1 one.
    ids = torch.arange(4, 24).view(2, 10)
    batch = {
        "input_ids": ids,
        "position_ids": torch.tensor([[0, 1, 2, 3, 0, 1, 2, 3, 4, 5], [*range(10)]]),
        "position": torch.tensor([1, 2, 5, 6, 13, 14]),
        "target": torch.tensor([6, 7, 10, 11, 18, 19]),
        "sequence": torch.tensor([0, 0, 1, 1, 2, 2]),
    }
    sample, factor = torch.tensor([1, 0, 1]), torch.randn(6)
    gradients = PromptGradients(build(), dimensions=128)
    got = gradients(batch, lambda _: factor, sample, 2, temperature=0.7)
    assert_equal(got, plain(gradients, batch, factor, sample, 2))
    shared = batch | {"segment": torch.zeros(2, 10, dtype=torch.int64)}
    with pytest.raises(ValueError, match="share a row"):
        gradients(shared, lambda _: factor, sample, 2)


@pytest.mark.parametrize("share", [False, True])
def test_rollouts_of_the_datamodule(share: bool) -> None:
    recorder = Recorder()
    model = ConfiguredLM(**TINY)
    module = GRPO(model)
    data = rollouts(share_prompts=share, batch_size=6)
    fit(module, data, recorder, max_steps=1)
    batch = recorder.batches[0]
    assert ("segment" in batch) == share
    groups, sample = torch.unique(batch["group"], return_inverse=True)
    assert len(groups) == 6
    reward = torch.arange(len(sample)) % 3.0

    def coefficients(log_prob: torch.Tensor) -> torch.Tensor:
        behavior, sequence = batch["behavior_log_probs"], batch["sequence"]
        return off_policy_coefficients(log_prob, behavior, sequence, reward, sample, 6)

    gradients = PromptGradients(module.policy, dimensions=512)
    got = gradients(batch, coefficients, sample, 6, temperature=0.7)
    scores, _ = module.policy.score_targets(batch, temperature=0.7)
    factor = coefficients(scores.log_prob.detach())
    assert_equal(got, plain(gradients, batch, factor, sample, 6))


def test_a_damaged_prompt_affects_no_other() -> None:
    gradients = PromptGradients(build(), dimensions=128)
    expected = gradients(BATCH, lambda _: FACTOR, SAMPLE, 4)
    broken = FACTOR.clone()
    broken[(SAMPLE[BATCH["sequence"]] == 1).nonzero()[0]] = torch.nan
    got = gradients(BATCH, lambda _: broken, SAMPLE, 4)
    assert got[1].isnan().any()
    with pytest.raises(ValueError, match=r"gradients of prompts \[1\] are NaN"):
        influence_scores(got, torch.ones(128))
    torch.testing.assert_close(got[[0, 2, 3]], expected[[0, 2, 3]])


def test_parameters_without_such_gradients_are_named() -> None:
    language = build()
    with pytest.raises(ValueError, match="no trained parameter matches parameters='router'"):
        PromptGradients(language, parameters="router")
    language.scale = torch.nn.Parameter(torch.ones(3))
    with pytest.raises(ValueError, match=r"the parameters \['scale'\] are not those of linear"):
        PromptGradients(language, dimensions=64)
    with pytest.raises(ValueError, match="dimensions is 32768"):
        PromptGradients(build())


def test_projection_options_reach_the_projection() -> None:
    gradients = PromptGradients(
        build(), dimensions=40, keep_ratio=0.3, kind="gaussian", seed=9, parameters="mlp"
    )
    size = gradients.projection.size
    assert gradients.projection == SparseProjection(size, 40, 0.3, "gaussian", 9)
