"""What a model must be to be trained here: its head, its vocabulary, its rows, its positions."""

import warnings
from pathlib import Path
from typing import Any

import pytest
import torch
from lightning.pytorch import Callback, Trainer, seed_everything

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

TINY: dict[str, Any] = {"hidden_size": 32, "layers": 1, "heads": 2, "seed": 0}
TRAINER: dict[str, Any] = {
    "accelerator": "cpu",
    "logger": False,
    "enable_checkpointing": False,
    "enable_progress_bar": False,
    "enable_model_summary": False,
    "use_distributed_sampler": False,
}


def demonstrations(**options: Any) -> DemonstrationsDataModule:
    rows = [{"prompt": f"{i}+{i}=", "completion": str(2 * i)} for i in range(16)]
    return DemonstrationsDataModule(DemonstrationDataset(rows, **options), batch_size=4, seed=1)


def rollouts(**options: Any) -> RolloutDataModule:
    data = PromptDataset(Arithmetic("train", size=12), columns=["answer"])
    defaults: dict[str, Any] = {"batch_size": 2, "group_size": 4, "steps_per_epoch": 2, "seed": 5}
    return RolloutDataModule(data, **(defaults | {"sampling": SamplingParams(6)} | options))


def fit(module: Any, data: Any, *callbacks: Callback, **options: Any) -> Any:
    seed_everything(1, verbose=False)
    trainer = Trainer(**(TRAINER | {"max_epochs": 1} | options), callbacks=[*callbacks])
    trainer.fit(module, data)
    return trainer


class Recorder(Callback):
    """Keeps the batches, and what the module logs in each step."""

    def __init__(self) -> None:
        self.batches: list[Any] = []
        self.values: list[dict[str, float]] = []

    def on_train_batch_end(self, trainer: Any, *arguments: Any) -> None:
        self.batches.append(arguments[2])
        self.values.append({k: float(v) for k, v in trainer.callback_metrics.items()})


# The head -------------------------------------------------------------------------------------


@pytest.mark.parametrize("targets", [["lm_head"], ["q_proj", "lm_head"]])
@pytest.mark.parametrize("tied", [True, False])
def test_an_adapter_on_the_head_is_rejected(targets: list[str], tied: bool) -> None:
    model = ConfiguredLM(
        **TINY, lora=LoRA(4, targets=targets), options={"tie_word_embeddings": tied}
    )
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # peft's, of tied weights
        with pytest.raises(ValueError, match="leave the head out of the LoRA's targets"):
            model.build(load_tokenizer("characters"))


def test_a_hook_on_the_head_is_rejected() -> None:
    class Hooked(ConfiguredLM):
        def make(self, tokenizer: Any) -> Any:
            model = super().make(tokenizer)
            model.lm_head.register_forward_hook(lambda module, inputs, output: output * 2)
            return model

    with pytest.raises(ValueError, match="or has hooks"):
        Hooked(**TINY).build(load_tokenizer("characters"))


def test_a_small_factor_of_the_logits_is_noticed() -> None:
    # Logits of a model with random weights are small: an absolute tolerance hid the factor.
    class Scaled(ConfiguredLM):
        def make(self, tokenizer: Any) -> Any:
            model = super().make(tokenizer)
            plain = model.forward

            def forward(*arguments: Any, **options: Any) -> Any:
                output = plain(*arguments, **options)
                output.logits = output.logits * 1.5
                return output

            model.forward = forward
            return model

    with pytest.raises(ValueError, match="computes its logits in an unsupported way"):
        Scaled(**TINY).build(load_tokenizer("characters"))


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


def test_gaps_between_ids_have_probability_0_and_top_tokens_keep_their_ids() -> None:
    from lit_adaptive.modules import LanguageModel

    model = ConfiguredLM("gemma2", **TINY).make(load_tokenizer("characters")).eval()
    size = len(load_tokenizer("characters"))
    tokens = [i for i in range(size - 3) if i % 7]
    language = LanguageModel(model, tokens)
    ids = torch.tensor(tokens[:8])[None]
    with torch.no_grad():
        scores, _ = language(ids, torch.arange(8)[None], torch.arange(7), ids[0, 1:], top_k=3)
        logits = model(ids).logits[0, :-1]
    absent = [i for i in range(size) if i not in tokens]
    logits[:, absent] = -torch.inf  # softcapped logits, so a bias before the cap would not do
    expected = logits.log_softmax(-1)
    torch.testing.assert_close(
        scores.log_prob, expected.gather(-1, ids[0, 1:, None])[:, 0], rtol=1e-4, atol=1e-4
    )
    assert torch.equal(scores.top_token, expected.topk(3).indices)
    assert language.suppressed_tokens() == absent


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


# Packed rows ----------------------------------------------------------------------------------

LINEAR: dict[str, Any] = {
    "layer_types": ["linear_attention", "full_attention"],
    "linear_key_head_dim": 8,
    "linear_value_head_dim": 8,
    "linear_num_key_heads": 2,
    "linear_num_value_heads": 4,
}


@pytest.mark.parametrize(
    ("architecture", "options"),
    [
        ("opt", {"ffn_dim": 64, "word_embed_proj_dim": 32}),
        ("bloom", {"n_layer": 2, "n_head": 2}),
        ("lfm2", {"layer_types": ["conv", "full_attention"]}),
        ("qwen3_5_text", LINEAR | {"num_hidden_layers": 2}),
        ("gpt_oss", {"num_local_experts": 2, "num_experts_per_tok": 1, "head_dim": 16}),
    ],
)
@pytest.mark.filterwarnings("ignore")  # transformers', of missing kernels
def test_an_architecture_that_lets_packed_samples_mix_is_rejected(
    architecture: str, options: dict[str, Any]
) -> None:
    size = {"layers": 2 if "layer_types" in options else 1}
    model = ConfiguredLM(architecture, **(TINY | size), options=options)
    assert not model.build(load_tokenizer("characters")).packs
    module = IWSFT(model, objective="nll", max_new_tokens=0)
    with pytest.raises(ValueError, match=r"packing is true for dataset, .* set packing to false"):
        fit(module, demonstrations(packing=True, max_length=16, pack_length=48))


@pytest.mark.parametrize(
    ("architecture", "options"),
    [
        ("llama", {}),
        ("qwen2", {}),
        ("qwen3", {}),
        ("gpt2", {}),
        ("gpt_neox", {}),
        ("mistral", {"sliding_window": 4}),
        ("gemma2", {"sliding_window": 4, "head_dim": 16}),
        ("phi", {}),
    ],
)
def test_an_architecture_that_separates_packed_samples_is_accepted(
    architecture: str, options: dict[str, Any]
) -> None:
    model = ConfiguredLM(architecture, **TINY, options=options)
    assert model.build(load_tokenizer("characters")).packs


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


def test_completions_in_validation_may_not_exceed_the_positions() -> None:
    rows = [{"prompt": "1" * 9, "completion": "2"}]
    dataset = DemonstrationDataset(rows)
    data = DemonstrationsDataModule(dataset, batch_size=1, val_dataset=dataset)
    module = IWSFT(ConfiguredLM(**TINY, max_positions=16), objective="nll", max_new_tokens=9)
    with pytest.raises(ValueError, match="val_dataset has 9 tokens and 8 of a compl"):
        fit(module, data)


# Config and adapters in checkpoints -----------------------------------------------------------


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
    trainer = Trainer(**TRAINER, max_steps=2)
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
    trainer = fit(module, data, *callbacks, precision=precision, log_every_n_steps=1)
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


def bf16_weights(learning_rate: float, steps: int, **options: Any) -> tuple[Any, Any, Any]:
    """Weights before and after training in bf16-true; the module."""
    recorder: list[Any] = []

    class Start(Callback):
        def on_train_start(self, trainer: Any, pl_module: Any) -> None:
            recorder.extend(p.detach().clone() for p in pl_module.policy.parameters())

    optimization = Optimization(learning_rate=learning_rate, **options)
    module = IWSFT(
        ConfiguredLM(**TINY), objective="nll", optimization=optimization, max_new_tokens=0
    )
    fit(module, demonstrations(), Start(), precision="bf16-true", max_steps=steps)
    return recorder, [*module.policy.parameters()], module


def moved(before: Any, after: Any) -> float:
    changed = sum(int((x.float() != y.float()).sum()) for x, y in zip(before, after, strict=True))
    return changed / sum(x.numel() for x in before)


def test_bfloat16_weights_that_cannot_move_are_named_and_master_weights_move() -> None:
    with pytest.warns(UserWarning, match="learning_rate is 1e-05 and weights are bfloat16: a step"):
        before, after, _ = bf16_weights(1e-5, 4)
    assert moved(before, after) < 0.2  # those near 0
    before, after, module = bf16_weights(1e-5, 4, master_weights=True)
    optimizer = module.optimizers(use_pl_optimizer=False)
    masters = [optimizer.state[weight]["master"] for weight in after]
    assert moved(before, masters) > 0.9  # all that have a gradient
    for master, weight in zip(masters, after, strict=True):
        assert torch.equal(master.bfloat16(), weight)


def test_master_weights_go_on_exactly_after_a_resume(tmp_path: Path) -> None:
    def run(steps: int, ckpt_path: str | None = None) -> tuple[Any, Any]:
        optimization = Optimization(learning_rate=1e-5, master_weights=True)
        module = IWSFT(
            ConfiguredLM(**TINY), objective="nll", optimization=optimization, max_new_tokens=0
        )
        seed_everything(1, verbose=False)
        trainer = Trainer(**TRAINER, precision="bf16-true", max_steps=steps)
        trainer.fit(module, demonstrations(), ckpt_path=ckpt_path)
        return trainer, module

    trainer, _ = run(2)
    trainer.save_checkpoint(tmp_path / "two.ckpt")
    _, resumed = run(4, str(tmp_path / "two.ckpt"))
    _, whole = run(4)
    states = [
        [module.optimizers(use_pl_optimizer=False).state[p] for p in module.policy.parameters()]
        for module in (resumed, whole)
    ]
    for left, right in zip(*states, strict=True):
        for name in ("master", "exp_avg", "exp_avg_sq"):
            assert left[name].dtype == torch.float32
            assert torch.equal(left[name], right[name])
