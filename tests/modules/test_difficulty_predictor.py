"""DifficultyPredictor: its equations, what it learns, and training before a run."""

import math
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from quiet_trainer import quiet_trainer
from torch import Tensor

from lit_adaptive.data import Arithmetic, PassRateDataModule, PromptDataset
from lit_adaptive.modules import ConfiguredLM, DifficultyPredictor, PassRateModule
from lit_adaptive.modules.difficulty_predictor import (
    embed_prompts,
    load_predictor,
    predictor_loss,
)
from lit_adaptive.rollout.models.tokenizers import character_tokenizer

pytestmark = pytest.mark.filterwarnings("ignore:`isinstance")


def rows(count: int, seed: int = 0) -> Tensor:
    return torch.randn(count, 12, generator=torch.Generator().manual_seed(seed))


def planted(vectors: Tensor, level: float = 0.0) -> Tensor:
    """Pass rates that depend on two coordinates, and on the policy's level."""
    return (2 * vectors[:, 0] - 2 * vectors[:, 1] + level).sigmoid()


def test_the_prediction_is_that_of_the_written_formula_in_float64() -> None:
    torch.manual_seed(0)
    predictor = DifficultyPredictor(12, 8)
    for parameter in predictor.parameters():
        torch.nn.init.normal_(parameter, std=0.5)
    query, reference, rate = rows(5), rows(7, 1), torch.rand(7)
    got, variance = predictor.predict(query, reference, rate)

    def layers(x: list[float], module: Any) -> list[float]:
        norm_in, l1, _, _, l2, _, _, l3, norm_out = module

        def norm(v: list[float], layer: Any) -> list[float]:
            mean = sum(v) / len(v)
            variance = sum((one - mean) ** 2 for one in v) / len(v)
            scaled = [(one - mean) / math.sqrt(variance + layer.eps) for one in v]
            pairs = zip(scaled, layer.weight.tolist(), layer.bias.tolist(), strict=True)
            return [one * w + b for one, w, b in pairs]

        def linear(v: list[float], layer: Any) -> list[float]:
            weights = zip(layer.weight.tolist(), layer.bias.tolist(), strict=True)
            return [sum(w * one for w, one in zip(row, v, strict=True)) + b for row, b in weights]

        def gelu(v: list[float]) -> list[float]:
            return [one * 0.5 * (1 + math.erf(one / math.sqrt(2))) for one in v]

        hidden = gelu(linear(norm(x, norm_in), l1))
        return norm(linear(gelu(linear(hidden, l2)), l3), norm_out)

    keys = [layers(x, predictor.reference) for x in reference.tolist()]
    mean = sum(rate.tolist()) / 7
    deviation = math.sqrt(sum((r - mean) ** 2 for r in rate.tolist()) / 7)
    first, _, last = predictor.calibration
    hidden = [
        max(0.0, w[0] * mean + w[1] * deviation + b)
        for w, b in zip(first.weight.tolist(), first.bias.tolist(), strict=True)
    ]
    scale, shift = (
        sum(w * h for w, h in zip(row, hidden, strict=True)) + b
        for row, b in zip(last.weight.tolist(), last.bias.tolist(), strict=True)
    )
    for x, value, spread in zip(query.tolist(), got.tolist(), variance.tolist(), strict=True):
        z = layers(x, predictor.query)
        scores = [sum(a * b for a, b in zip(z, key, strict=True)) / math.sqrt(8) for key in keys]
        exps = [math.exp(score - max(scores)) for score in scores]
        base = sum(e * r for e, r in zip(exps, rate.tolist(), strict=True)) / sum(exps)
        logit = math.log1p(math.exp(scale)) * math.log(base / (1 - base)) + math.tanh(shift)
        assert value == pytest.approx(1 / (1 + math.exp(-logit)), abs=2e-5)
        pairs = zip(exps, rate.tolist(), strict=True)
        signal = sum(e * r * (1 - r) for e, r in pairs) / sum(exps)
        assert spread == pytest.approx(max(value * (1 - value) - signal, 0), abs=2e-5)


def test_it_starts_as_an_average_over_similar_prompts_without_calibration() -> None:
    predictor = DifficultyPredictor(12, 64)
    reference = rows(9)
    rate = torch.rand(9, generator=torch.Generator().manual_seed(2))
    predicted = predictor.predict(reference, reference, rate).pass_rate
    assert float(torch.corrcoef(torch.stack([predicted, rate.double()]))[0, 1]) > 0.5
    constant = predictor.predict(rows(4, 5), reference, torch.full((9,), 0.3)).pass_rate
    torch.testing.assert_close(constant, torch.full((4,), 0.3).double(), rtol=1e-5, atol=1e-5)


def test_the_order_of_the_references_does_not_matter() -> None:
    predictor, order = DifficultyPredictor(12, 16), torch.randperm(30)
    rate = torch.rand(30)
    torch.testing.assert_close(
        predictor.predict(rows(8, 1), rows(30), rate).pass_rate,
        predictor.predict(rows(8, 1), rows(30)[order], rate[order]).pass_rate,
        rtol=1e-5,
        atol=1e-6,
    )


@pytest.mark.parametrize("value", [0.0, 1.0])
def test_references_that_are_all_solved_or_failed_give_finite_predictions(value: float) -> None:
    predictor = DifficultyPredictor(12, 16)
    query, reference, rate = rows(4), rows(6, 1), torch.full((6,), value)
    predictor_loss(predictor, query, torch.rand(4), reference, rate).backward()
    gradients = [p.grad for p in predictor.parameters() if p.grad is not None]
    assert all(bool(gradient.isfinite().all()) for gradient in gradients)
    predicted = predictor.predict(query, reference, rate).pass_rate
    assert float((predicted - value).abs().max()) < 0.01


def test_a_planted_difficulty_is_recovered_for_policies_it_was_not_trained_on() -> None:
    torch.manual_seed(0)
    predictor, vectors = DifficultyPredictor(12, 32), rows(600)
    optimizer = torch.optim.Adam(predictor.parameters(), lr=3e-3)
    for step in range(150):
        level = (step % 5) - 2.0
        order = torch.randperm(500)
        query, known = order[:128], order[128:192]
        rate = planted(vectors, level)
        loss = predictor_loss(predictor, vectors[query], rate[query], vectors[known], rate[known])
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    truth = planted(vectors, 0.7)
    predicted = predictor.predict(vectors[500:], vectors[:64], truth[:64]).pass_rate
    assert float(torch.corrcoef(torch.stack([predicted, truth[500:].double()]))[0, 1]) > 0.9
    assert float((predicted - truth[500:]).abs().mean()) < 0.1


def test_a_mean_of_one_half_is_told_from_a_pass_rate_of_one_half() -> None:
    # Prompts of kind 0 pass half of their rollouts; of kind 1, a coin decides: solved or hopeless.
    torch.manual_seed(0)
    vectors, kind = rows(400), torch.arange(400) % 2
    vectors[:, 0] = 3.0 * kind
    rate = torch.where(kind == 0, 0.5, torch.randint(2, (400,)).float())
    predictor = DifficultyPredictor(12, 32)
    optimizer = torch.optim.Adam(predictor.parameters(), lr=3e-3)
    for _ in range(100):
        order = torch.randperm(300)
        query, known = order[:64], order[64:192]
        loss = predictor_loss(predictor, vectors[query], rate[query], vectors[known], rate[known])
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    mean, variance = predictor.predict(vectors[300:], vectors[:300], rate[:300])
    for which, expected in ((0, 0.0), (1, 0.25)):
        part = kind[300:] == which
        assert float(mean[part].mean()) == pytest.approx(0.5, abs=0.1)
        assert float(variance[part].mean()) == pytest.approx(expected, abs=0.06)


def pass_rate_table(dataset: PromptDataset, policies: int = 3) -> list[dict[str, Any]]:
    """Pass rates that fall with the difficulty of a sum, by policies of growing strength."""
    difficulty = dataset.column("difficulty")
    return [
        {"policy": f"p{policy}", "prompt_id": one, "pass_rate": float(rate)}
        for policy in range(policies)
        for one, rate in zip(dataset.ids, torch.sigmoid(3.0 + policy - difficulty), strict=True)
    ]


class LetterCounts:
    """Embeds a text as the number of its digits and signs."""

    key = "letters"

    def __call__(self, texts: list[str]) -> Tensor:
        return torch.tensor([[float(text.count(c)) for c in "0123456789+-"] for text in texts])


def offline(**options: Any) -> PassRateDataModule:
    dataset = PromptDataset(Arithmetic("train", size=200, digits=2))
    defaults = {"references": 32, "batch_size": 64, "encoder": LetterCounts()}
    return PassRateDataModule(dataset, pass_rate_table(dataset), **(defaults | options))


def test_training_before_a_run_predicts_the_prompts_and_policies_held_out(tmp_path: Path) -> None:
    torch.manual_seed(1)
    module = PassRateModule(12, hidden_size=32, learning_rate=3e-3)
    trainer = quiet_trainer(max_epochs=60)
    trainer.fit(module, offline(val_policies=["p1"]))
    assert float(trainer.callback_metrics["val/pearson"]) > 0.6
    path = str(tmp_path / "predictor.ckpt")
    trainer.save_checkpoint(path)
    predictor = DifficultyPredictor(12, 32)
    load_predictor(predictor, path)
    for name, value in predictor.state_dict().items():
        assert torch.equal(value, module.predictor.state_dict()[name])
    with pytest.raises(ValueError, match=r"no checkpoint of .*hidden_size"):
        load_predictor(DifficultyPredictor(12, 16), path)


def test_a_batch_has_the_references_rates_of_each_rows_own_policy() -> None:
    data = offline()
    data.setup("fit")
    batch = next(iter(data.train_dataloader()))
    assert batch["query"].shape == (64, 12)
    assert batch["reference"].shape == (32, 12)
    assert batch["pass_rate"].shape == (64, 32)
    assert len({tuple(row) for row in batch["pass_rate"].tolist()}) == 3


def test_tables_that_do_not_fit_are_refused_by_row() -> None:
    dataset = PromptDataset(Arithmetic("train", size=200, digits=2))
    table = pass_rate_table(dataset)

    def build(rows: list[dict[str, Any]], **options: Any) -> None:
        PassRateDataModule(dataset, rows, references=8, **options)

    with pytest.raises(ValueError, match=r"lacks pass rates, for instance of .*'p2'"):
        build(table[:-1])
    with pytest.raises(ValueError, match=r"'p2'.*two pass rates"):
        build([*table, table[-1]])
    with pytest.raises(ValueError, match=r"pass_rate is 1.5"):
        build([*table[:-1], table[-1] | {"pass_rate": 1.5}])
    with pytest.raises(ValueError, match=r"prompt_id 'x'.*no such prompt"):
        build([*table[:-1], table[-1] | {"prompt_id": "x"}])
    with pytest.raises(ValueError, match=r"val_policies is \['q'\]"):
        build(table, val_policies=["q"])
    with pytest.raises(ValueError, match=r"references is 100, but a quarter of 200"):
        PassRateDataModule(dataset, table, references=100)
    with pytest.raises(ValueError, match=r"lacks the columns \['pass_rate'\]"):
        build([{"policy": "a", "prompt_id": "b"}])


def test_each_rank_trains_on_its_share_of_the_pairs() -> None:
    shares = []
    for rank in (0, 1):
        data: Any = offline()
        data.setup("fit")
        data.trainer = SimpleNamespace(world_size=2, global_rank=rank)
        shares.append([*data.train_dataloader().sampler])
    whole = len(offline().train_dataloader().dataset)
    assert len(shares[0]) == len(shares[1]) == -(-whole // 2)
    assert {*shares[0], *shares[1]} == {*range(whole)}


@pytest.mark.parametrize("architecture", ["llama", "gpt2"])
def test_embeddings_are_hidden_states_at_two_thirds_of_the_depth(architecture: Any) -> None:
    torch.manual_seed(0)
    tokenizer = character_tokenizer()
    recipe = ConfiguredLM(architecture=architecture, hidden_size=16, layers=3, heads=2)
    language = recipe.build(tokenizer).eval()
    prompts = [torch.tensor(tokenizer(text).input_ids) for text in ("1+2=", "7=", "12+345=")]
    expected = []
    for prompt in prompts:  # alone, so without padding, through all layers
        output = language.base(prompt[None], output_hidden_states=True)
        state = output.hidden_states[2][0]  # 0: embeddings, 2: after the second of three layers
        expected.append(torch.cat([state.mean(0), state[-1]]))
    hooks = [len(layer._forward_hooks) for layer in language.layers]
    got = embed_prompts(language, prompts, rows=2)
    torch.testing.assert_close(got, torch.stack(expected), rtol=1e-4, atol=1e-5)
    assert [len(layer._forward_hooks) for layer in language.layers] == hooks
