"""RewardRefresh: rewards reach the sampler at the start and at epoch ends; exact resumption."""

from contextlib import nullcontext
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from lightning.pytorch import Callback, LightningModule, Trainer, seed_everything
from torch import Tensor, nn
from torch.utils.data import Dataset

import callbacks.reward_refresh
from callbacks import CurriculumProgress, RewardRefresh
from lit_adaptive.data import AdaptiveDataModule
from lit_adaptive.rollout.rewards.base import Reward
from lit_adaptive.rollout.rewards.matching import ExactMatch
from lit_adaptive.rollout.rewards.scorer import Scorer
from lit_adaptive.samplers import CurriculumSampler, RewardWeightedSampler, ShuffledSampler

pytestmark = pytest.mark.filterwarnings("ignore:`isinstance")

SIZE = 12


class Demonstrations(Dataset[Any]):
    """Four prompts with three completions each, of which the first is correct."""

    groups = torch.arange(SIZE) // 3

    def __len__(self) -> int:
        return SIZE

    def __getitem__(self, index: int) -> dict[str, Any]:
        return {"input": torch.tensor([float(index)])}

    def texts(self, index: Tensor) -> list[dict[str, Any]]:
        return [
            {"prompt": f"p{i // 3}", "completion": f"c{i % 3}", "answer": "c0", "level": i}
            for i in index.tolist()
        ]


class Policy(LightningModule):
    """Completes prompts at random, depending on its weight."""

    needs = frozenset({"batch.input"})
    provides = frozenset({"signal.losses", "model.complete"})

    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Sequential(nn.Linear(1, 1), nn.Dropout(0.5))
        self.prompts: list[list[str]] = []

    def complete(self, prompts: list[str]) -> list[str]:
        assert not self.training
        assert not torch.is_grad_enabled()
        self.prompts.append(prompts)
        weight: Any = self.layer[0].weight
        uniform = torch.rand(len(prompts)) + weight.detach().abs().flatten() % 0.1
        return [f"c{int(value * 3)}" for value in uniform]

    def training_step(self, batch: dict[str, Any], _: int) -> dict[str, Tensor]:
        losses = (self.layer(batch["input"]).flatten() - 1).square() * batch["weight"]
        return {"loss": losses.mean(), "losses": losses}

    def configure_optimizers(self) -> Any:
        return torch.optim.SGD(self.parameters(), 1e-3)


class DrawRecorder(Callback):
    """Keeps draws, their probabilities, and the sampler's rewards at the end of each batch."""

    needs = provides = frozenset()

    def __init__(self) -> None:
        self.drawn: list[Any] = []
        self.rewards: list[Tensor] = []

    def on_train_batch_end(self, trainer: Any, pl_module: Any, outputs: Any, batch: Any, _: int):
        self.drawn.append([batch["index"].tolist(), batch["probability"].tolist()])
        self.rewards.append(trainer.datamodule.sampler.scores())


class Save(Callback):
    """Saves a checkpoint after every step."""

    needs = provides = frozenset()

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def on_train_batch_end(self, trainer: Any, *_: Any) -> None:
        trainer.save_checkpoint(self.folder / f"{trainer.global_step}.ckpt")


class ByLevel(Reward):
    """The column ``level``; None for levels above ``most``; counts its calls."""

    def __init__(self, most: int = SIZE) -> None:
        self.most = most
        self.calls = 0

    def __call__(self, prompts: list[str], completions: list[str], **columns: list[Any]) -> Any:
        self.calls += 1
        assert sorted(columns) == ["answer", "level"]
        return [level if level <= self.most else None for level in columns["level"]]


def _fit(
    tmp_path: Path,
    *more: Callback,
    sampler: Any = RewardWeightedSampler,
    epochs: int = 2,
    ckpt: Any = None,
    dataset: Any = None,
) -> tuple[Trainer, Policy, Any, DrawRecorder]:
    seed_everything(3, verbose=False)
    watch = DrawRecorder()
    data = AdaptiveDataModule(dataset or Demonstrations(), sampler, batch_size=3, seed=1)
    trainer = Trainer(
        accelerator="cpu", use_distributed_sampler=False, default_root_dir=tmp_path, logger=False,
        enable_progress_bar=False, enable_model_summary=False, max_epochs=epochs,
        enable_checkpointing=False, callbacks=[watch, *more],
    )  # fmt: skip
    model = Policy()
    trainer.fit(model, data, ckpt_path=ckpt)
    return trainer, model, data, watch


def test_demonstrations_are_scored_before_the_first_draw(tmp_path: Path) -> None:
    trainer, _, data, watch = _fit(tmp_path, RewardRefresh())
    correct = (torch.arange(SIZE) % 3 == 0).double()
    assert data.sampler.scores().equal(correct)
    distribution = correct.softmax(0)
    for index, probability in watch.drawn:
        assert probability == pytest.approx(distribution[index].tolist())
    logged = {name: float(value) for name, value in trainer.callback_metrics.items()}
    assert logged == pytest.approx(
        {"reward/mean": 1 / 3, "reward/min": 0, "reward/max": 1, "reward/not_applicable": 0}
    )


@pytest.mark.parametrize(("every", "calls"), [(0, 1), (1, 5), (2, 3), (3, 2)])
def test_samples_are_scored_again_every_n_epochs(tmp_path: Path, every: int, calls: int) -> None:
    reward = ByLevel()
    refresh = RewardRefresh(Scorer([reward], workers=0), every_n_epochs=every)
    _fit(tmp_path, refresh, epochs=4)
    assert reward.calls == refresh.refreshes == calls


def test_large_datasets_are_scored_in_batches(tmp_path: Path) -> None:
    reward = ByLevel()
    local = Scorer([reward], workers=0)
    _, _, data, _ = _fit(tmp_path, RewardRefresh(local, every_n_epochs=0, batch_size=5))
    assert reward.calls == 3
    assert data.sampler.scores().equal(torch.arange(SIZE).double())


def test_a_sample_without_a_reward_keeps_its_score(tmp_path: Path) -> None:
    trainer, _, data, _ = _fit(
        tmp_path,
        RewardRefresh(Scorer([ByLevel(most=8)], workers=0)),
        sampler=lambda n: _with_scores(n, torch.full((n,), 7.0)),
    )
    assert data.sampler.scores().tolist() == [*range(9), 7, 7, 7]
    assert float(trainer.callback_metrics["reward/not_applicable"]) == 0.25
    assert float(trainer.callback_metrics["reward/mean"]) == 4
    trainer, _, data, _ = _fit(tmp_path, RewardRefresh(Scorer([ByLevel(most=-1)], workers=0)))
    assert len(data.sampler.probabilities().unique()) == 1  # the sampler was not updated
    assert float(trainer.callback_metrics["reward/not_applicable"]) == 1


def _with_scores(size: int, reward: Tensor) -> RewardWeightedSampler:
    sampler = RewardWeightedSampler(size)
    sampler.set_scores(reward)
    return sampler


def test_samples_outside_the_curriculum_get_rewards_too(tmp_path: Path) -> None:
    def curriculum(n: int) -> CurriculumSampler:
        return CurriculumSampler(n, RewardWeightedSampler, difficulty=torch.arange(float(n)))

    _, _, data, _ = _fit(
        tmp_path,
        RewardRefresh(Scorer([ByLevel()], workers=0)),
        CurriculumProgress(),
        sampler=curriculum,
    )
    assert data.sampler.scores().equal(torch.arange(SIZE).double())


def test_with_source_policy_each_prompt_gets_its_mean_reward(tmp_path: Path) -> None:
    refresh = RewardRefresh(every_n_epochs=0, source="policy", samples=8, batch_size=16)
    torch.manual_seed(0)
    _, model, data, _ = _fit(tmp_path, refresh)
    assert model.training
    assert [len(prompts) for prompts in model.prompts] == [16, 16]
    assert model.prompts[0] == ["p0"] * 8 + ["p1"] * 8
    scores = data.sampler.scores().view(4, 3)
    assert scores.eq(scores[:, :1]).all()  # equal within a prompt
    eighths = scores[:, 0] * 8
    assert eighths.equal(eighths.round())
    assert ((scores > 0) & (scores < 1)).any()


def test_without_groups_every_sample_is_completed(tmp_path: Path) -> None:
    class Ungrouped(Demonstrations):
        groups = None  # type: ignore[assignment]

    _, model, _, _ = _fit(
        tmp_path, RewardRefresh(every_n_epochs=0, source="policy"), dataset=Ungrouped()
    )
    assert [len(prompts) for prompts in model.prompts] == [SIZE]


def _at(rank: int = 0, world: int = 1) -> Any:
    """A trainer for ``score_all``."""
    return SimpleNamespace(
        datamodule=SimpleNamespace(dataset=Demonstrations(), seed=1), world_size=world,
        global_rank=rank, precision_plugin=SimpleNamespace(forward_context=nullcontext),
    )  # fmt: skip


def test_random_numbers_differ_between_refreshes_and_ranks(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    model, refresh = Policy(), RewardRefresh(source="policy", samples=50)
    before = torch.get_rng_state()
    first = refresh.score_all(_at(), model)
    assert torch.get_rng_state().equal(before)  # the global generator is unchanged
    torch.rand(7)
    assert refresh.score_all(_at(), model).equal(first)
    refresh.refreshes += 1
    assert not refresh.score_all(_at(), model).equal(first)
    numbers: list[float] = []

    def complete(prompts: list[str]) -> list[str]:
        numbers.append(float(torch.rand(())))
        return prompts

    model.complete = complete  # type: ignore[method-assign]
    monkeypatch.setattr(callbacks.reward_refresh, "gather_over_ranks", _from_all_four)
    for rank in range(4):
        refresh.score_all(_at(rank, 4), model)
    assert len(set(numbers)) == 4


def _from_all_four(values: dict[str, Tensor], *_: Any) -> dict[str, Tensor]:
    return {"position": torch.arange(4), "reward": values["reward"].expand(4)}


@pytest.mark.parametrize("scheme", ["exponential", "rank"])
@pytest.mark.parametrize("source", ["policy", "demonstrations"])
def test_a_run_resumed_twice_draws_the_same_as_the_uninterrupted_run(
    tmp_path: Path, source: Any, scheme: Any
) -> None:
    # In the middle of an epoch, and at its end, where the refresh is due.
    def refresh() -> RewardRefresh:
        return RewardRefresh(source=source, samples=2 if source == "policy" else 1)

    def sampler(n: int) -> RewardWeightedSampler:
        return RewardWeightedSampler(n, scheme=scheme, temperature=0.7)

    def fit(epochs: int, *more: Callback, ckpt: Path | None = None) -> DrawRecorder:
        return _fit(tmp_path, refresh(), *more, sampler=sampler, epochs=epochs, ckpt=ckpt)[3]

    whole = fit(4)
    fit(2, Save(tmp_path / "first"))
    fit(3, Save(tmp_path / "second"), ckpt=tmp_path / "first" / "2.ckpt")
    for folder, step in (("first", 4), ("first", 6), ("second", 7), ("second", 8)):
        resumed = fit(4, ckpt=tmp_path / folder / f"{step}.ckpt")
        assert resumed.drawn == whole.drawn[step:]
        for reward, expected in zip(resumed.rewards, whole.rewards[step:], strict=True):
            assert reward.equal(expected)


def test_only_the_resumed_fit_skips_the_scoring(tmp_path: Path) -> None:
    reward = ByLevel()
    refresh = RewardRefresh(Scorer([reward], workers=0), every_n_epochs=0)
    refresh.load_state_dict({"refreshes": 2})
    _fit(tmp_path, refresh)
    assert (reward.calls, refresh.refreshes) == (0, 2)
    _fit(tmp_path, refresh)
    assert (reward.calls, refresh.refreshes) == (1, 3)


def test_a_second_fit_of_the_same_callback_scores_again(tmp_path: Path) -> None:
    refresh = RewardRefresh(Scorer([ByLevel()], workers=0), every_n_epochs=0)
    for _ in range(2):
        _, _, data, _ = _fit(tmp_path, refresh)
        assert data.sampler.scores().equal(torch.arange(SIZE).double())


@pytest.mark.parametrize("source", ["policy", "demonstrations"])
@pytest.mark.parametrize("world", [1, 2, 3, 5])
def test_ranks_share_the_work_and_know_all_rewards(
    monkeypatch: pytest.MonkeyPatch, world: int, source: Any
) -> None:
    def gather(values: dict[str, Tensor], *_: Any) -> dict[str, Tensor]:
        shares.append(values)
        return {name: torch.cat([share[name] for share in shares]) for name in values}

    shares: list[dict[str, Tensor]] = []
    monkeypatch.setattr(callbacks.reward_refresh, "gather_over_ranks", gather)
    model = Policy()
    model.complete = lambda prompts: ["c" + p[1:] for p in prompts]  # type: ignore[method-assign]
    reward = RewardRefresh(
        ExactMatch() if source == "policy" else Scorer([ByLevel()], workers=0), source=source
    )
    sizes = set()
    for rank in range(world):
        scores = reward.score_all(_at(rank, world), model)
        sizes.add(len(shares[-1]["reward"]))
    assert len(sizes) == 1  # a sharded model must run equally often
    assert sizes == {-(-(4 if source == "policy" else SIZE) // world)}
    expected = torch.arange(SIZE).double()
    if source == "policy":
        expected = (torch.arange(SIZE) < 3).double()  # only p0 is completed with c0
    assert scores.equal(expected)


def test_unmet_needs_are_rejected_before_training(tmp_path: Path) -> None:
    class WithoutComplete(Policy):
        provides = frozenset({"signal.losses"})

    class WithoutTexts(Dataset[Any]):
        def __len__(self) -> int:
            return SIZE

        def __getitem__(self, index: int) -> dict[str, Any]:
            return {"input": torch.tensor([float(index)])}

    with pytest.raises(ValueError, match=r"needs 'data\.update'.*RewardWeightedSampler"):
        _fit(tmp_path, RewardRefresh(), sampler=ShuffledSampler)
    with pytest.raises(ValueError, match=r"needs 'data\.texts'.*DemonstrationsDataModule"):
        _fit(tmp_path, RewardRefresh(), dataset=WithoutTexts())
    provides = Policy.provides
    try:
        Policy.provides = WithoutComplete.provides
        with pytest.raises(ValueError, match=r"needs 'model\.complete'.*IWSFT"):
            _fit(tmp_path, RewardRefresh(source="policy"))
    finally:
        Policy.provides = provides
    assert "model.complete" not in RewardRefresh().needs


def test_a_reward_that_is_not_a_number_names_its_samples(tmp_path: Path) -> None:
    class Bad(ByLevel):
        def __call__(self, *texts: Any, **columns: list[Any]) -> Any:
            return [torch.nan if level == 10 else 0.0 for level in columns["level"]]

    with pytest.raises(ValueError, match=r"bad gave nan; .*: sample \d, prompt"):
        _fit(tmp_path, RewardRefresh(Scorer([Bad()], workers=0), batch_size=4))


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"every_n_epochs": -1}, "every_n_epochs is -1"),
        ({"source": "model"}, "source is 'model'"),
        ({"samples": 0}, "samples is 0"),
        ({"batch_size": 0}, "batch_size is 0"),
        ({"samples": 2}, "choose source: policy"),
    ],
)
def test_an_option_out_of_range_is_named(options: dict[str, Any], words: str) -> None:
    with pytest.raises(ValueError, match=words):
        RewardRefresh(**options)
