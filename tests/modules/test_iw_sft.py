"""IWSFT: its loss is that of the written formula, whatever the reference is kept in."""

import copy
import inspect
import math
from pathlib import Path
from typing import Any

import pytest
import torch
from lightning.pytorch import Callback, Trainer, seed_everything
from quiet_trainer import quiet_trainer
from torch import Tensor

from callbacks import LossRefresh, ReferenceLogProbs
from lit_adaptive.core.iw_sft import ImportanceWeightedSFTLoss
from lit_adaptive.data import Arithmetic, DemonstrationDataset, DemonstrationsDataModule
from lit_adaptive.modules import IWSFT, ConfiguredLM, LoRA, Optimization
from lit_adaptive.samplers import AdaptiveBatchSampler, PrioritizedSampler

pytestmark = pytest.mark.filterwarnings("ignore:`isinstance")

SLOW, FAST = Optimization(learning_rate=0.01), Optimization(learning_rate=0.05)


class Record(Callback):
    """Keeps the batches and what the steps returned."""

    def __init__(self) -> None:
        self.batches: list[dict[str, Any]] = []
        self.losses: list[Tensor] = []
        self.signals: list[Tensor] = []
        self.states: list[dict[str, Tensor]] = []

    def on_train_batch_start(self, trainer, pl_module, batch, batch_idx):
        self.states.append({k: v.clone() for k, v in pl_module.state_dict().items()})

    def on_train_batch_end(self, trainer, pl_module, outputs, batch, batch_idx):
        self.batches.append(batch)
        self.losses.append(outputs["loss"].detach().clone())
        self.signals.append(outputs["losses"])


def tiny(**options: Any) -> ConfiguredLM:
    return ConfiguredLM(hidden_size=32, layers=1, heads=2, max_positions=32, seed=1, **options)


def sums(reading: dict[str, Any] | None = None, **options: Any) -> DemonstrationsDataModule:
    return DemonstrationsDataModule(
        DemonstrationDataset(Arithmetic("train", size=64, digits=2), **(reading or {})),
        val_dataset=DemonstrationDataset(
            Arithmetic("validation", size=20, digits=2), columns=["answer"], **(reading or {})
        ),
        batch_size=16,
        seed=5,
        **options,
    )


def fit(
    module: IWSFT, data: DemonstrationsDataModule | None = None, *more: Callback, **options: Any
) -> tuple[Trainer, Record]:
    seed_everything(3, verbose=False)
    record = Record()
    trainer = quiet_trainer(
        **{"max_steps": 3, "limit_val_batches": 0} | options,
        callbacks=[record, *more],
    )
    trainer.fit(module, data or sums())
    return trainer, record


def padded(batch: dict[str, Any], flat: Tensor | None = None) -> Tensor:
    """Targets, or values of them, as ``[R, T]`` labels aligned with the logits."""
    rows, columns = batch["input_ids"].shape
    out = torch.full((rows * columns,), -100.0 if flat is not None else -100)
    out[batch["position"]] = batch["target"] if flat is None else flat
    return out.view(rows, columns)


def logits_of(module: IWSFT, state: dict[str, Tensor], batch: dict[str, Any]) -> Tensor:
    """The whole logits, as the specification would compute them."""
    module.load_state_dict(state)
    logits: Tensor = module.policy.model(
        input_ids=batch["input_ids"], attention_mask=torch.ones_like(batch["input_ids"])
    ).logits
    return logits.detach()


@pytest.mark.parametrize(
    "options",
    [
        {"objective": "nll"},
        {"objective": "nll", "reduction": "sequence"},
        {"objective": "nll", "label_smoothing": 0.2},
        {"objective": "dft"},
        {"objective": "iw"},
        {"objective": "iw", "level": "token"},
        {"objective": "iw", "ratio": "ref_over_policy", "level": "token", "temperature": 0.5},
        {"objective": "iw", "normalize": True, "clamp": (0.0, 16.0)},
        {"objective": "iw", "reduction": "fixed", "count": 7.0},
    ],
    ids=str,
)
def test_the_loss_equals_the_formula_on_full_logits(options):
    # At a learning rate of 0.01 three steps take the policy well away from the reference.
    module = IWSFT(tiny(), optimization=SLOW, max_new_tokens=0, **options)
    # Drawn by difficulty and corrected, so that samples have weights of their own.
    data = sums(sampler=PrioritizedSampler, scores="difficulty")
    _, record = fit(module, data, *([ReferenceLogProbs()] if options["objective"] == "iw" else []))
    assert len(set(record.batches[0]["weight"].tolist())) > 1
    same = {
        k: v
        for k, v in options.items()
        if k in ("objective", "temperature", "normalize", "clamp", "reduction", "count")
    }
    smoothing = options.get("label_smoothing", 0.0)
    loss_fn = ImportanceWeightedSFTLoss(
        epsilon=smoothing,
        label_smoothing=smoothing > 0,
        ratio=options.get("ratio", "policy_over_ref"),
        level=options.get("level", "sequence"),
        **same,
    )
    differ = 0
    for state, batch, loss in zip(record.states, record.batches, record.losses, strict=True):
        reference = None
        if options["objective"] == "iw":
            reference = logits_of(module, record.states[0], batch)
        logits = logits_of(module, state, batch)
        expected = loss_fn(logits, padded(batch), reference, sample_weight=batch["weight"])
        torch.testing.assert_close(loss, expected, rtol=1e-4, atol=1e-5)
        plain = ImportanceWeightedSFTLoss(objective="nll")(logits, padded(batch))
        differ += not torch.allclose(loss, plain, rtol=1e-5)
    assert differ >= 2


def eaft_loss(logits: Tensor, target: Tensor, old: Tensor) -> Tensor:
    """The formula of Diao et al., token by token."""
    losses = []
    for row, token in zip(logits, target, strict=True):
        best = sorted(row.tolist(), reverse=True)[:20]
        shares = [math.exp(x - best[0]) for x in best]
        shares = [x / sum(shares) for x in shares]
        entropy = -sum(x * math.log(x) for x in shares if x > 0)
        losses.append((entropy / 3) ** 1.5 * -row.log_softmax(-1)[token])
    return torch.stack(losses)


def psft_loss(logits: Tensor, target: Tensor, old: Tensor) -> Tensor:
    """The formula of Zhu et al.: the clipped surrogate of PPO with an advantage of 1."""
    ratio = (logits.log_softmax(-1) - old.log_softmax(-1)).gather(-1, target[:, None])[:, 0].exp()
    return -torch.minimum(ratio, ratio.clamp(0.95, 1.05))


def asft_loss(logits: Tensor, target: Tensor, old: Tensor) -> Tensor:
    """The formula of Zhu et al. (2025b): DFT plus the KL divergence to the base model."""
    log_p, log_q = logits.log_softmax(-1), old.log_softmax(-1)
    chosen = log_p.gather(-1, target[:, None])[:, 0]
    return -chosen.detach().exp() * chosen + 0.7 * (log_p.exp() * (log_p - log_q)).sum(-1)


@pytest.mark.parametrize(
    ("options", "formula"),
    [
        ({"objective": "asft", "asft_beta": 0.7, "reference": "frozen"}, asft_loss),
        ({"objective": "eaft", "eaft_alpha": 1.5}, eaft_loss),
        ({"objective": "psft", "psft_clip": 0.05, "q_decay": 0.8}, psft_loss),
    ],
    ids=["asft", "eaft", "psft"],
)
def test_the_gradient_equals_that_of_the_papers_formula_in_float64(options, formula):
    module = IWSFT(tiny(), optimization=FAST, max_new_tokens=0, **options)
    gradients = []

    class Gradients(Callback):
        def on_before_optimizer_step(self, trainer, pl_module, optimizer):
            gradients.append({n: p.grad.clone() for n, p in pl_module.policy.named_parameters()})

    _, record = fit(module, sums(sampler=PrioritizedSampler, scores="difficulty"), Gradients())
    clipped = 0
    for state, batch, got in zip(record.states, record.batches, gradients, strict=True):
        module.load_state_dict(state)
        twin = copy.deepcopy(module.policy).double().requires_grad_()
        mask = torch.ones_like(batch["input_ids"])
        logits = twin.model(input_ids=batch["input_ids"], attention_mask=mask).logits
        (reference,) = module._frozen or (module.average or module.policy,)
        old = copy.deepcopy(reference).double()
        with torch.no_grad():
            before = old.model(input_ids=batch["input_ids"], attention_mask=mask).logits
        place = batch["position"]
        logits, before = logits.flatten(0, 1)[place], before.flatten(0, 1)[place]
        losses = formula(logits, batch["target"], before)
        clipped += int((losses == -1.05).sum())
        (losses * batch["weight"][batch["sequence"]]).mean().backward()
        for name, parameter in twin.named_parameters():
            torch.testing.assert_close(
                got[name].double(), parameter.grad, rtol=1e-3, atol=1e-5, msg=name
            )
    assert clipped > 0 or formula is not psft_loss


# option -> (its other value, options beside it)
OPTIONS: dict[str, tuple[Any, dict[str, Any]]] = {
    "objective": ("dft", {}),
    "ratio": ("ref_over_policy", {}),
    "level": ("token", {}),
    "temperature": (0.2, {}),
    "clamp": ((0.99, 1.01), {}),
    "normalize": (True, {}),
    "q_decay": (0.9, {}),
    "asft_beta": (1.0, {"objective": "asft", "reference": "frozen"}),
    "eaft_alpha": (2.0, {"objective": "eaft"}),
    "psft_clip": (0.01, {"objective": "psft", "q_decay": 0.5}),
    "label_smoothing": (0.3, {}),
    "reduction": ("sequence", {}),
    "count": (7.0, {"reduction": "fixed", "count": 30.0}),
}
# Parts of the model, or without influence on training; the references are equal (see below).
OTHER = {"self", "model", "optimization", "weights", "max_new_tokens", "reward", "reference"}


def test_no_option_is_left_out() -> None:
    assert inspect.signature(IWSFT.__init__).parameters.keys() - OTHER == OPTIONS.keys()


@pytest.mark.parametrize("name", OPTIONS)
def test_the_option_acts_in_a_run(name: str) -> None:
    def trained(**options: Any) -> Tensor:
        module = IWSFT(tiny(), optimization=FAST, max_new_tokens=0, **options)
        fit(module, sums(), ReferenceLogProbs())
        return torch.cat([p.detach().flatten() for p in module.policy.parameters()])

    value, beside = OPTIONS[name]
    assert not torch.equal(trained(**beside | {name: value}), trained(**beside))


def test_the_signal_is_each_samples_mean_negative_log_likelihood():
    module = IWSFT(tiny(), objective="nll", max_new_tokens=0)
    _, record = fit(module, max_steps=1)
    (batch,) = record.batches
    log_probs = logits_of(module, record.states[0], batch).log_softmax(-1).flatten(0, 1)
    each = -log_probs[batch["position"], batch["target"]]
    expected = torch.stack([each[batch["sequence"] == i].mean() for i in range(16)])
    torch.testing.assert_close(record.signals[0], expected, rtol=1e-4, atol=1e-5)


def test_cached_frozen_and_adapter_off_are_the_same_reference():
    def losses(reference: str, *more: Callback) -> Tensor:
        model = tiny(lora=LoRA(4))
        module = IWSFT(
            model,
            reference=reference,
            optimization=FAST,
            max_new_tokens=0,
        )
        return torch.stack(fit(module, None, *more)[1].losses)

    cached = losses("cached", ReferenceLogProbs())
    torch.testing.assert_close(losses("frozen"), cached, rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(losses("adapter_off"), cached, rtol=1e-5, atol=1e-6)
    plain = torch.stack(
        fit(
            IWSFT(
                tiny(lora=LoRA(4)),
                objective="nll",
                optimization=FAST,
                max_new_tokens=0,
            )
        )[1].losses
    )
    assert not torch.allclose(plain, cached, rtol=1e-3)


def test_frozen_and_adapter_off_are_the_same_anchor():
    def losses(reference: str) -> Tensor:
        options = {"optimization": FAST, "max_new_tokens": 0, "asft_beta": 1.0}
        module = IWSFT(tiny(lora=LoRA(4)), objective="asft", reference=reference, **options)
        return torch.stack(fit(module)[1].losses)

    torch.testing.assert_close(losses("adapter_off"), losses("frozen"), rtol=1e-5, atol=1e-6)


def test_weights_are_one_until_the_reference_is_scored():
    # after_epochs=1: an epoch of 4 batches of plain SFT, then the model there is the reference.
    plain = IWSFT(tiny(), objective="nll", optimization=SLOW, max_new_tokens=0)
    weighted = IWSFT(tiny(), objective="iw", optimization=SLOW, max_new_tokens=0)
    _, one = fit(plain, max_steps=8)
    _, other = fit(weighted, None, ReferenceLogProbs(after_epochs=1), max_steps=8)
    assert torch.equal(torch.stack(one.losses[:5]), torch.stack(other.losses[:5]))
    assert ["ref_log_probs" in batch for batch in other.batches] == [False] * 4 + [True] * 4
    assert not torch.allclose(torch.stack(one.losses[6:]), torch.stack(other.losses[6:]))
    reference = logits_of(weighted, other.states[4], other.batches[5]).log_softmax(-1)
    batch = other.batches[5]
    expected = reference.flatten(0, 1)[batch["position"], batch["target"]]
    torch.testing.assert_close(batch["ref_log_probs"], expected, rtol=1e-4, atol=1e-5)


def test_weights_are_computed_with_the_moving_average_of_the_policy():
    module = IWSFT(tiny(), q_decay=0.75, optimization=FAST, max_new_tokens=0)
    _trainer, record = fit(module, None, ReferenceLogProbs())
    name = "model.model.layers.0.mlp.up_proj.weight"
    steps = [state[f"language.{name}"] for state in record.states]
    means = [state[f"average.{name}"] for state in record.states]
    assert torch.equal(means[0], steps[0])
    torch.testing.assert_close(means[1], 0.75 * steps[0] + 0.25 * steps[1])
    torch.testing.assert_close(means[2], 0.75 * means[1] + 0.25 * steps[2])
    batch = record.batches[1]
    now = logits_of(module, record.states[1], batch)
    lagging = {
        f"language.{k.removeprefix('average.')}": v
        for k, v in record.states[1].items()
        if k.startswith("average.")
    }
    q = logits_of(module, record.states[1] | lagging, batch).log_softmax(-1)
    q = padded(batch, q.flatten(0, 1)[batch["position"], batch["target"]])
    reference = logits_of(module, record.states[0], batch)
    loss_fn = ImportanceWeightedSFTLoss(ratio="policy_over_ref", level="sequence")
    expected = loss_fn(now, padded(batch), reference, q_log_probs=q)
    torch.testing.assert_close(record.losses[1], expected, rtol=1e-4, atol=1e-5)


def test_packing_does_not_change_training():
    def run(**options: Any) -> Record:
        module = IWSFT(tiny(), optimization=SLOW, max_new_tokens=0)
        return fit(module, sums(**options), ReferenceLogProbs())[1]

    one, packed = run(), run(reading={"packing": True, "max_length": 32})
    assert len(packed.batches[0]["input_ids"]) < len(one.batches[0]["input_ids"])
    torch.testing.assert_close(
        torch.stack(packed.losses), torch.stack(one.losses), rtol=1e-4, atol=1e-5
    )
    torch.testing.assert_close(
        torch.stack(packed.signals), torch.stack(one.signals), rtol=1e-3, atol=1e-4
    )


def test_validation_measures_likelihood_and_greedy_completions():
    module = IWSFT(tiny(), objective="nll", max_new_tokens=4)
    trainer, _ = fit(module, max_steps=1, limit_val_batches=None, val_check_interval=1)
    metrics = trainer.callback_metrics
    total, tokens, right, matches = 0.0, 0, 0, 0
    data = trainer.datamodule
    for batch in data.val_dataloader():
        logits = logits_of(module, module.state_dict(), batch).flatten(0, 1)[batch["position"]]
        counted = batch["counted"][batch["sequence"]]
        total -= float(logits.log_softmax(-1).gather(1, batch["target"][:, None])[counted].sum())
        right += int((logits.argmax(-1) == batch["target"])[counted].sum())
        tokens += int(counted.sum())
        for ids, mask, answer, counts in zip(
            batch["prompt_ids"],
            batch["prompt_mask"],
            batch["answer"],
            batch["counted"],
            strict=True,
        ):
            model = module.policy.model
            out = model.generate(
                ids[mask][None],
                attention_mask=torch.ones_like(ids[mask][None]),
                max_new_tokens=4,
                do_sample=False,
            )[0, int(mask.sum()) :]
            text = data.tokenizer.decode(out, skip_special_tokens=True)
            matches += int(counts) * (text == answer)
    assert float(metrics["val/nll"]) == pytest.approx(total / tokens, rel=1e-4)
    assert float(metrics["val/perplexity"]) == pytest.approx(
        torch.tensor(total / tokens).exp().item(), rel=1e-3
    )
    assert float(metrics["val/token_accuracy"]) == pytest.approx(right / tokens, rel=1e-4)
    assert float(metrics["val/exact_match"]) == pytest.approx(matches / 20)


def test_a_checkpoint_of_adapters_holds_nothing_else_and_loads(tmp_path: Path):
    module = IWSFT(
        tiny(lora=LoRA(4)),
        objective="nll",
        optimization=FAST,
        max_new_tokens=0,
    )
    trainer, _ = fit(module)
    path = tmp_path / "adapters.ckpt"
    trainer.save_checkpoint(path)
    state = torch.load(path, weights_only=True)["state_dict"]
    names = [name for name in state if name.startswith("language.")]
    assert names
    assert all("lora_" in name for name in names)
    again = IWSFT(tiny(lora=LoRA(4)), objective="nll", weights=str(path), max_new_tokens=0)
    _, record = fit(again, max_steps=1)
    for name in names:
        assert torch.equal(record.states[0][name], state[name])


def test_weights_of_another_model_are_rejected(tmp_path: Path):
    module = IWSFT(tiny(), objective="nll", max_new_tokens=0)
    trainer, _record = fit(module, max_steps=1)
    path = tmp_path / "one.ckpt"
    trainer.save_checkpoint(path)
    again = IWSFT(tiny(), objective="nll", max_new_tokens=0, weights=str(path))
    _, begun = fit(again, max_steps=1)
    saved = torch.load(path, weights_only=True)["state_dict"]
    assert all(torch.equal(saved[k], v) for k, v in begun.states[0].items() if "language" in k)
    other = ConfiguredLM(hidden_size=64, layers=1, heads=2, max_positions=32)
    with pytest.raises(ValueError, match="a checkpoint of another model"):
        fit(IWSFT(other, objective="nll", max_new_tokens=0, weights=str(path)))
    with pytest.raises(ValueError, match="which does not exist"):
        IWSFT(tiny(), weights=str(tmp_path / "none.ckpt"))
    (tmp_path / "text.ckpt").write_text("no checkpoint")
    with pytest.raises(ValueError, match="is not a checkpoint"):
        fit(IWSFT(tiny(), objective="nll", weights=str(tmp_path / "text.ckpt")))


def test_a_tokenizer_with_more_tokens_than_the_model_is_rejected():
    small = ConfiguredLM(hidden_size=32, layers=1, heads=2, options={"vocab_size": 50})
    with pytest.raises(ValueError, match="the tokenizer has 100 tokens, the model embeds 50"):
        fit(IWSFT(small, objective="nll"))


def test_iw_without_a_reference_is_rejected_before_training():
    with pytest.raises(ValueError, match=r"needs 'batch.ref_log_probs'.*ReferenceLogProbs"):
        fit(IWSFT(tiny()))


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"temperature": 0.0}, "temperature is 0.0"),
        ({"label_smoothing": 1.0}, "label_smoothing is 1.0"),
        ({"q_decay": 1.0}, "q_decay is 1.0"),
        ({"max_new_tokens": -1}, "max_new_tokens is -1"),
        ({"reference": "adapter_off"}, "the model has no adapters"),
        ({"reduction": "fixed"}, "count is None"),
        ({"clamp": (1.5, 2.0)}, "clamp is"),
        ({"objective": "asft"}, "set reference to frozen"),
        ({"asft_beta": -0.1}, "asft_beta is -0.1"),
    ],
)
def test_an_option_out_of_range_is_rejected_by_name(options, words):
    with pytest.raises(ValueError, match=words):
        IWSFT(tiny(), **options)


def test_tokens_counts_the_trained_tokens():
    module = IWSFT(tiny(), objective="nll", max_new_tokens=0)
    _, record = fit(module)
    assert int(module.tokens) == sum(len(batch["target"]) for batch in record.batches)


def test_padding_samples_are_in_no_metric():
    module = IWSFT(tiny(), objective="nll", max_new_tokens=4)
    trainer, _ = fit(module, max_steps=1)
    (batch,) = trainer.datamodule.val_dataloader()
    some = batch | {"counted": torch.arange(20) < 5}

    def measured(batch: dict[str, Any]) -> dict[str, float]:
        module._evaluate(batch, "val")
        values = {name: float(metric.compute()) for name, metric in module.metrics["val"].items()}
        judged = float(module.metrics["val"]["exact_match"].weight)
        for metric in module.metrics["val"].values():
            metric.reset()
        return values | {"judged": judged}

    first = trainer.datamodule.val_dataset.gather(batch["index"][:5])
    alone = first | {"index": batch["index"][:5], "counted": torch.ones(5, dtype=torch.bool)}
    assert measured(some) == pytest.approx(measured(alone), rel=1e-5)
    assert measured(some)["judged"] == 5
    assert measured(some)["nll"] != pytest.approx(measured(batch)["nll"], rel=1e-3)


def test_its_losses_update_a_sampler_that_learns():
    data = sums(sampler=AdaptiveBatchSampler)
    module = IWSFT(tiny(), objective="nll", optimization=SLOW, max_new_tokens=0)
    _, record = fit(module, data, LossRefresh())
    expected = AdaptiveBatchSampler(64, seed=data.seed)
    for batch, losses in zip(record.batches, record.signals, strict=True):
        expected.update(batch["index"], losses)
    assert torch.equal(data.sampler.probabilities(), expected.probabilities())
    assert len(data.sampler.probabilities().unique()) > 10


def test_a_checkpoint_is_tested_on_data_of_another_size(tmp_path: Path):
    module = IWSFT(tiny(), objective="nll", max_new_tokens=0)
    trainer, _ = fit(module, max_steps=1)
    trainer.save_checkpoint(path := tmp_path / "one.ckpt")
    other = DemonstrationsDataModule(
        DemonstrationDataset(Arithmetic("train", size=9)),
        val_dataset=DemonstrationDataset(Arithmetic("test", size=5)),
        batch_size=4,
    )
    again = IWSFT(tiny(), objective="nll", max_new_tokens=0)
    options = {"logger": False, "accelerator": "cpu", "use_distributed_sampler": False}
    quiet = {"enable_progress_bar": False, "enable_model_summary": False}
    tester = Trainer(**options, **quiet)
    tester.test(again, other, ckpt_path=path, verbose=False)
    assert float(tester.callback_metrics["test/nll"]) > 0
    with pytest.raises(ValueError, match="there are 9 rows, and were 64"):
        Trainer(**options, **quiet, max_steps=2).fit(again, other, ckpt_path=path)
