"""GRPO as a module: what its options do to a real step, against formulas written out."""

from typing import Any

import pytest
import torch
from lightning.pytorch import Callback, seed_everything
from quiet_trainer import quiet_trainer

from callbacks import RolloutReplay
from lit_adaptive.data import Arithmetic, PromptDataset, RolloutDataModule
from lit_adaptive.modules import GRPO, ConfiguredLM, LoRA, Optimization, PolicyObjective
from lit_adaptive.replay import RolloutBuffer
from lit_adaptive.rollout.generation import SamplingParams
from lit_adaptive.rollout.rewards.base import Reward
from lit_adaptive.rollout.rewards.scorer import Scorer

pytestmark = [
    pytest.mark.filterwarnings("ignore:`isinstance"),
    pytest.mark.filterwarnings("ignore:You defined a `validation_step`"),
]


class Even(Reward):
    """1 for completions of an even number of characters."""

    def __call__(
        self, prompts: list[str], completions: list[str], **columns: list[Any]
    ) -> list[float | None]:
        return [float(len(text) % 2 == 0) for text in completions]


class Recorder(Callback):
    """The batches, their losses, and the module's gradients after each."""

    def __init__(self) -> None:
        self.batches: list[dict[str, Any]] = []
        self.gradients: list[torch.Tensor] = []
        self.metrics: list[dict[str, float]] = []

    def on_before_optimizer_step(self, trainer: Any, pl_module: Any, optimizer: Any) -> None:
        gradients = [p.grad.flatten().clone() for p in pl_module.parameters() if p.grad is not None]
        self.gradients.append(torch.cat(gradients))

    def on_train_batch_end(
        self, trainer: Any, pl_module: Any, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        self.batches.append(batch | {"loss": outputs["loss"].detach()})
        self.metrics.append({n: float(v) for n, v in trainer.callback_metrics.items()})


def run(
    objective: PolicyObjective,
    steps: int = 1,
    *,
    rate: float = 1e-3,
    lora: bool = False,
    accumulate: int = 1,
    **more: Any,
) -> tuple[Recorder, GRPO]:
    seed_everything(3, verbose=False)
    recorder = Recorder()
    reference = {"reference": more.pop("reference")} if "reference" in more else {}
    model = GRPO(
        ConfiguredLM(hidden_size=32, layers=1, heads=2, lora=LoRA(4) if lora else None),
        objective=objective,
        optimization=Optimization(learning_rate=rate),
        max_new_tokens=5,
        **reference,
    )
    replayed = [RolloutReplay()] if "replay" in more else []
    replayed += more.pop("callbacks", [])
    data = RolloutDataModule(
        PromptDataset(Arithmetic("train", size=60), columns=["answer"]),
        batch_size=4,
        group_size=4,
        sampling=SamplingParams(5, temperature=0.9),
        steps_per_epoch=steps,
        rewards=Scorer([Even()], workers=0),
        seed=5,
        **more,
    )
    trainer = quiet_trainer(
        max_epochs=1,
        log_every_n_steps=1,
        accumulate_grad_batches=accumulate,
        callbacks=[*replayed, recorder],
    )
    trainer.fit(model, data)
    return recorder, model


def _vocabulary_log_probs(model: GRPO, batch: dict[str, Any]) -> torch.Tensor:
    """Before every token, by the model's own logits, answer by answer: log-probs ``[K, V]``."""
    rows, width = [], batch["input_ids"].shape[1]
    for i in range(len(batch["index"])):
        own = batch["sequence"] == i
        completion, first = batch["target"][own], int(batch["position"][own][0])
        prompt = batch["input_ids"][first // width, : first % width + 1]
        logits = model.policy.model(input_ids=torch.cat([prompt, completion])[None]).logits[0]
        rows.append((logits[len(prompt) - 1 : -1] / batch["temperature"]).log_softmax(-1))
    return torch.cat(rows)


def _log_probs(model: GRPO, batch: dict[str, Any]) -> torch.Tensor:
    """Of every token, likewise: ``[K]``."""
    return _vocabulary_log_probs(model, batch).gather(-1, batch["target"][:, None])[:, 0]


def _gradient(model: GRPO, loss: torch.Tensor) -> torch.Tensor:
    model.zero_grad()
    loss.backward()
    return torch.cat([p.grad.flatten() for p in model.parameters() if p.grad is not None])


@pytest.mark.parametrize("kind", ["grpo", "dr_grpo", "dapo", "bnpo", "gspo", "cispo"])
def test_a_fresh_step_is_the_policy_gradient_written_out(kind: Any) -> None:
    # A learning rate that changes nothing: the policy is still the one that wrote the rollouts.
    recorder, model = run(PolicyObjective(loss_type=kind, scale="none"), rate=1e-30)
    batch = recorder.batches[0]
    log_prob = _log_probs(model, batch)
    terms = torch.zeros(())
    lengths = torch.bincount(batch["sequence"], minlength=16)
    for i in range(16):
        own = log_prob[batch["sequence"] == i].sum() * batch["advantage"][i]
        divisor = {
            "grpo": 16 * lengths[i], "gspo": 16 * lengths[i], "dr_grpo": 16 * 5
        }.get(kind, lengths.sum())  # fmt: skip
        terms = terms - own / divisor
    torch.testing.assert_close(recorder.gradients[0], _gradient(model, terms), rtol=1e-3, atol=1e-6)


@pytest.mark.parametrize("accumulate", [1, 3])
def test_sharing_prompts_gives_the_same_gradient(accumulate: int) -> None:
    shared, apart = (
        run(PolicyObjective(kl_beta=0.1), accumulate=accumulate, share_prompts=share)[0]
        for share in (True, False)
    )
    assert "segment" in shared.batches[0]
    assert "segment" not in apart.batches[0]
    tokens = [sum(b["input_ids"].numel() for b in recorder.batches) for recorder in (shared, apart)]
    assert tokens[0] < 0.75 * tokens[1]
    torch.testing.assert_close(shared.gradients[0], apart.gradients[0], rtol=1e-3, atol=1e-6)


def test_psr_trains_on_correct_and_nsr_on_wrong_completions() -> None:
    for positive, negative in ((1.0, 0.0), (0.0, 1.0), (0.1, 1.0)):
        objective = PolicyObjective(
            advantage="signs", positive_weight=positive, negative_weight=negative
        )
        recorder, _ = run(objective)
        batch = recorder.batches[0]
        right = batch["reward"] == 1
        assert bool(right.any())
        assert not bool(right.all())
        expected = torch.where(right, positive, -negative)
        torch.testing.assert_close(batch["advantage"], expected)


def test_the_kl_to_either_reference_starts_at_zero_and_grows() -> None:
    for lora, reference in ((False, "frozen"), (True, "frozen"), (True, "adapter_off")):
        objective = PolicyObjective(kl_beta=0.5)
        recorder, _ = run(objective, 4, rate=3e-2, lora=lora, reference=reference)
        values = [each["train/kl"] for each in recorder.metrics]
        assert values[0] == pytest.approx(0, abs=1e-6)
        assert values[-1] > 1e-4


def test_only_high_entropy_tokens_of_the_batch_or_step_are_trained() -> None:
    # Of a whole step in one micro-batch the two are one thing.
    one, _ = run(PolicyObjective(loss_type="dapo", high_entropy=0.2), rate=1e-30)
    other = PolicyObjective(loss_type="dapo", high_entropy=0.2, high_entropy_over="step")
    step, model = run(other, rate=1e-30)
    torch.testing.assert_close(one.gradients[0], step.gradients[0], rtol=1e-4, atol=1e-7)
    batch = step.batches[0]
    count = len(batch["target"])
    assert int(batch["forking"].sum()) == -(-count // 5)
    log_probs = _vocabulary_log_probs(model, batch)
    entropy = -(log_probs.exp() * log_probs).sum(-1)
    assert entropy[batch["forking"] > 0].min() >= entropy[batch["forking"] == 0].max() - 1e-5
    chosen = batch["forking"]
    terms = _log_probs(model, batch) * batch["advantage"][batch["sequence"]] * chosen
    expected = _gradient(model, -terms.sum() / count)
    torch.testing.assert_close(step.gradients[0], expected, rtol=1e-3, atol=1e-6)


def test_entropy_bonus_adds_the_gradient_of_the_entropy() -> None:
    base, _ = run(PolicyObjective(loss_type="dapo"), rate=1e-30)
    more, model = run(PolicyObjective(loss_type="dapo", entropy_bonus=0.3), rate=1e-30)
    batch = more.batches[0]
    log_probs = _vocabulary_log_probs(model, batch)
    bonus = 0.3 * (log_probs.exp() * log_probs).sum(-1).mean()
    difference = more.gradients[0] - base.gradients[0]
    torch.testing.assert_close(difference, _gradient(model, bonus), rtol=1e-2, atol=1e-5)


@pytest.mark.parametrize(("mode", "high"), [("truncate", 1.2), ("mask", 1.2), ("truncate", 5.0)])
def test_mismatch_weights_multiply_the_gradient(
    mode: Any, high: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    from lit_adaptive.rollout.engines import transformers as engines

    shift = 0.3  # the trainer gives each token e^0.3 = 1.35 times the engine's probability
    plain = engines.generate

    def off(*args: Any, **kwargs: Any) -> Any:
        completions = plain(*args, **kwargs)
        log_probs = [values - shift for values in completions.log_probs]
        return completions._replace(log_probs=log_probs)

    base, _ = run(PolicyObjective(loss_type="dapo"), rate=1e-30)
    monkeypatch.setattr(engines, "generate", off)
    objective = PolicyObjective(loss_type="dapo", mismatch=mode, mismatch_high=high)
    recorder, _ = run(objective, rate=1e-30)
    ratio = float(torch.tensor(shift).exp())
    expected = 0.0 if mode == "mask" else min(ratio, high)
    torch.testing.assert_close(
        recorder.gradients[0], expected * base.gradients[0], rtol=1e-3, atol=1e-6
    )


def test_kl_cov_penalizes_leaving_the_policy_at_the_start_of_the_step() -> None:
    plain, single, double = (
        run(objective, rate=1e-2, inner_epochs=2)[0].gradients
        for objective in (
            PolicyObjective(),
            PolicyObjective(covariance="kl", covariance_share=0.3, covariance_beta=1.0),
            PolicyObjective(covariance="kl", covariance_share=0.3, covariance_beta=2.0),
        )
    )
    # At the first update the policy has not moved yet.
    torch.testing.assert_close(single[0], plain[0])
    penalty = single[1] - plain[1]
    assert float(penalty.norm()) > 0.1 * float(plain[1].norm())
    torch.testing.assert_close(double[1] - plain[1], 2 * penalty, rtol=1e-3, atol=1e-5)


def test_kl_cov_with_one_update_penalizes_leaving_the_policy_that_generated_the_tokens() -> None:
    plain, penalized = (
        run(objective, 4, rate=1e-2, replay=RolloutBuffer(32), replay_fraction=0.5)[0]
        for objective in (
            PolicyObjective(),
            PolicyObjective(covariance="kl", covariance_share=0.3),
        )
    )
    assert "old_log_probs" not in penalized.batches[0]
    replayed = next(n for n, batch in enumerate(plain.batches) if bool((batch["age"] > 0).any()))
    penalty = penalized.gradients[replayed] - plain.gradients[replayed]
    assert float(penalty.norm()) > 0.1 * float(plain.gradients[replayed].norm())


def test_covariance_masks_and_off_policy_drops_run_on_replay() -> None:
    for more in (
        {"covariance": "clip", "covariance_share": 0.2, "covariance_low": 0.0},
        {"covariance": "kl", "covariance_share": 0.2},
        {"drop_off_policy": 0.01},
        {"dual_clip": 3.0},
    ):
        recorder, _ = run(
            PolicyObjective(**more), 4, rate=3e-2, replay=RolloutBuffer(32), replay_fraction=0.5
        )
        assert all(bool(batch["loss"].isfinite()) for batch in recorder.batches)
        names = {name for metrics in recorder.metrics for name in metrics}
        if "covariance" in more:
            assert "train/covariance_share" in names
        if "drop_off_policy" in more:
            assert any(m.get("train/dropped_sequences", 0) > 0 for m in recorder.metrics)


def test_metrics_have_trl_names_and_cumulative_counts() -> None:
    recorder, _ = run(PolicyObjective(), 4, replay=RolloutBuffer(32), replay_fraction=0.5)
    last = recorder.metrics[-1]
    for name in (
        "policy_loss", "entropy", "reward", "reward_std", "frac_reward_zero_std", "num_tokens",
        "generated_tokens", "rollouts", "completions/mean_length", "completions/clipped_ratio",
        "clip_ratio/region_mean", "rewards/even/mean", "replay/size", "replay/age_mean",
        "replay/ratio_mean", "replay/ess", "sampling/sampling_logp_difference/mean",
    ):  # fmt: skip
        assert f"train/{name}" in last, name
    written = [metrics["train/generated_tokens"] for metrics in recorder.metrics]
    assert written == sorted(written)
    assert last["train/rollouts"] == 16 + 3 * 8


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"kl_beta": -1.0}, "kl_beta is -1.0; it must be at least 0"),
        ({"high_entropy": 0.0}, r"high_entropy is 0.0; .* \(0, 1\]"),
        ({"clip_low": 2.0}, "clip_low is 2.0"),
        ({"loss_type": "ppo"}, "loss_type is 'ppo'"),
        ({"dual_clip": 1.1}, "dual_clip is 1.1"),
        ({"luffy_gamma": 0.0}, "luffy_gamma is 0.0"),
    ],
)
def test_an_option_out_of_range_is_rejected_by_name(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        PolicyObjective(**options)


def test_adapter_off_without_adapters_is_rejected() -> None:
    with pytest.raises(ValueError, match="the model has no adapters"):
        GRPO(ConfiguredLM(), objective=PolicyObjective(kl_beta=0.1), reference="adapter_off")


class ReplayStatistics(Callback):
    """The statistics of replayed tokens, from the model's own logits before each update."""

    def __init__(self) -> None:
        self.expected: list[dict[str, float]] = []
        self.logged: list[dict[str, float]] = []

    def on_train_batch_start(
        self, trainer: Any, pl_module: Any, batch: Any, batch_idx: int
    ) -> None:
        with torch.no_grad():
            log_ratio = _log_probs(pl_module, batch) - batch["behavior_log_probs"]
        replayed = (batch["age"] > 0)[batch["sequence"]]
        ratio, positive = log_ratio.exp(), (batch["advantage"] > 0)[batch["sequence"]]
        negative = (batch["advantage"] < 0)[batch["sequence"]]
        clipped = (positive & (ratio > 1.2)) | (negative & (ratio < 0.8))
        values = ratio[replayed]
        self.expected.append(
            {
                "replay/ratio_mean": float(values.mean()),
                "replay/ess": float(values.sum() ** 2 / (len(values) * values.square().sum())),
                "replay/clip_frac": float(clipped[replayed].float().mean()),
            }
            if len(values)
            else {}
        )

    def on_train_batch_end(self, trainer: Any, *rest: Any) -> None:
        self.logged.append({n: float(v) for n, v in trainer.callback_metrics.items()})


def test_the_statistics_of_replayed_tokens_are_those_of_the_models_logits() -> None:
    statistics = ReplayStatistics()
    run(
        PolicyObjective(), 5, rate=0.02, replay=RolloutBuffer(16), replay_fraction=0.5,
        callbacks=[statistics],
    )  # fmt: skip
    compared = [(e, m) for e, m in zip(statistics.expected, statistics.logged, strict=True) if e]
    assert len(compared) >= 3
    assert len({expected["replay/clip_frac"] for expected, _ in compared}) > 1
    for expected, logged in compared:
        for name, value in expected.items():
            assert logged[f"train/{name}"] == pytest.approx(value, rel=1e-3), name


@pytest.mark.parametrize("loss_type", ["grpo", "dapo"])
def test_the_logged_values_of_an_update_do_not_depend_on_its_micro_batches(loss_type: Any) -> None:
    objective = PolicyObjective(loss_type=loss_type, kl_beta=0.1, high_entropy=0.5,
                                high_entropy_over="step")  # fmt: skip
    whole, _ = run(objective, 1)
    cut, _ = run(objective, 1, accumulate=4)
    assert "train/kl" in whole.metrics[-1]
    assert whole.metrics[-1].keys() == cut.metrics[-1].keys()
    for name, value in whole.metrics[-1].items():
        if "seconds" not in name:
            assert cut.metrics[-1][name] == pytest.approx(value, rel=1e-4, abs=1e-6), name
