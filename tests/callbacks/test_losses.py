"""Callbacks of supervised training: losses, selectors, progress, kept scores, on real runs."""

import csv
import math
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from lightning.pytorch import Callback, Trainer, seed_everything
from torch import Tensor

from callbacks import (
    BetaAnneal,
    CurriculumProgress,
    KeepScores,
    LossRefresh,
    OHEMSelector,
    PredictionTable,
    ReducibleLossSelector,
    SamplingMonitor,
    SelectiveBackprop,
)
from callbacks._shared import planned_steps, score_all
from lit_adaptive.data import AdaptiveDataModule, LongTailedDigits
from lit_adaptive.modules import Classifier, Dense
from lit_adaptive.samplers import (
    AdaptiveBatchSampler,
    CurriculumSampler,
    InfoBatchSampler,
    PrioritizedSampler,
    ShuffledSampler,
)

pytestmark = pytest.mark.filterwarnings("ignore:`isinstance")


class Watch(Callback):
    """Keeps what each step was given and gave."""

    needs = provides = frozenset()

    def __init__(self) -> None:
        self.batches: list[dict[str, Any]] = []
        self.losses: list[Tensor] = []

    def on_train_batch_end(self, trainer: Any, pl_module: Any, outputs: Any, batch: Any, _: int):
        self.batches.append(dict(batch))
        self.losses.append(outputs["losses"].clone())


def _fit(
    tmp_path: Path, *callbacks: Callback, sampler: Any = ShuffledSampler, **options: Any
) -> tuple[Trainer, Classifier, AdaptiveDataModule]:
    seed_everything(5, verbose=False)
    given = {"batch_size": 16, "batches_per_epoch": 4, "max_epochs": 2, **options}
    data = AdaptiveDataModule(
        LongTailedDigits("train"), sampler, val_dataset=LongTailedDigits("validation"),
        batch_size=given.pop("batch_size"), batches_per_epoch=given.pop("batches_per_epoch"),
        difficulty=given.pop("difficulty", None), beta=given.pop("beta", 1.0),
    )  # fmt: skip
    model = given.pop("model", None) or Classifier(Dense(64, 10, hidden=[16]), 10)
    trainer = Trainer(
        accelerator="cpu", use_distributed_sampler=False, default_root_dir=tmp_path, logger=False,
        limit_val_batches=0, enable_progress_bar=False, enable_model_summary=False,
        enable_checkpointing=False, callbacks=list(callbacks), **given,
    )  # fmt: skip
    trainer.fit(model, data)
    return trainer, model, data


def test_losses_reach_the_sampler_after_every_batch(tmp_path: Path) -> None:
    watch = Watch()
    _, _, data = _fit(tmp_path, watch, LossRefresh(), sampler=PrioritizedSampler)
    expected = torch.ones(len(data.dataset), dtype=torch.float64)  # type: ignore[arg-type]
    for batch, losses in zip(watch.batches, watch.losses, strict=True):
        expected[batch["index"]] = losses.double()
    assert data.sampler.scores() == pytest.approx(expected)  # type: ignore[attr-defined]


def test_at_the_end_of_an_epoch_all_are_told_at_once(tmp_path: Path) -> None:
    watch = Watch()
    _, _, data = _fit(
        tmp_path, watch, LossRefresh(every="epoch"), sampler=AdaptiveBatchSampler, max_epochs=1
    )
    twin = AdaptiveBatchSampler(data.sampler.size)
    twin.update(torch.cat([b["index"] for b in watch.batches]), torch.cat(watch.losses))
    assert data.sampler.scores().equal(twin.scores())  # type: ignore[attr-defined]
    for batch in watch.batches:  # until then the law was uniform
        assert batch["probability"].tolist() == pytest.approx([1 / twin.size] * 16)


def test_rescoring_gives_every_sample_the_loss_of_the_model_as_it_is(tmp_path: Path) -> None:
    _, model, data = _fit(
        tmp_path, LossRefresh(rescore_every_n_epochs=2), sampler=PrioritizedSampler
    )
    digits: Any = data.dataset
    batch = digits.gather(torch.arange(len(digits)))
    with torch.no_grad():
        expected = model.eval().per_sample_loss(batch).double()
    assert data.sampler.scores() == pytest.approx(expected, rel=1e-5)  # type: ignore[attr-defined]


def test_scoring_changes_neither_mode_nor_statistics(tmp_path: Path) -> None:
    network = torch.nn.Sequential(
        torch.nn.Flatten(), torch.nn.BatchNorm1d(64), torch.nn.Dropout(0.5), torch.nn.Linear(64, 10)
    )
    trainer, model, data = _fit(tmp_path, model=Classifier(network, 10))
    model.train()
    before = {name: value.clone() for name, value in model.state_dict().items()}
    index, losses = score_all(trainer, model)
    assert model.training
    assert all(value.equal(before[name]) for name, value in model.state_dict().items())
    assert index.equal(torch.arange(data.sampler.size))
    again = score_all(trainer, model)[1]
    assert losses.equal(again)  # no dropout


class _NaN(Classifier):
    """Sample 0's loss is NaN."""

    def training_step(self, batch: dict[str, Any], batch_idx: int) -> dict[str, Tensor]:
        found = super().training_step(batch, batch_idx)
        found["losses"][batch["index"] == 0] = math.nan
        return found


def test_a_nan_is_refused_by_name_or_skipped_and_counted(tmp_path: Path) -> None:
    def nan() -> Classifier:
        return _NaN(Dense(64, 10), 10)

    whole = {"batch_size": 283, "batches_per_epoch": 1, "sampler": ShuffledSampler}
    whole["sampler"] = InfoBatchSampler
    with pytest.raises(ValueError, match=r"index \[0\] are \[nan\]"):
        _fit(tmp_path, LossRefresh(), model=nan(), **whole)
    refresh = LossRefresh(on_nan="skip")
    trainer, _, data = _fit(tmp_path, refresh, model=nan(), max_epochs=1, **whole)
    assert refresh.skipped == 1
    assert float(trainer.callback_metrics["refresh/skipped"]) == 1
    assert data.sampler._loss.isinf().nonzero().flatten().tolist() == [0]  # type: ignore[attr-defined]


def test_forgetting_goes_back_towards_uniform(tmp_path: Path) -> None:
    _, _, kept = _fit(tmp_path, LossRefresh(), sampler=AdaptiveBatchSampler, max_epochs=1)
    _, _, gone = _fit(tmp_path, LossRefresh(forget=1.0), sampler=AdaptiveBatchSampler, max_epochs=1)
    assert len(kept.sampler.probabilities().unique()) > 1
    assert len(gone.sampler.probabilities().unique()) == 1
    with pytest.raises(ValueError, match="PrioritizedSampler cannot forget"):
        _fit(tmp_path, LossRefresh(forget=0.5), sampler=PrioritizedSampler)


def test_pending_losses_survive_a_checkpoint() -> None:
    refresh = LossRefresh(every="epoch")
    refresh._pending = [(torch.tensor([3, 1]), torch.tensor([0.5, 2.0]))]
    refresh.skipped = 4
    other = LossRefresh(every="epoch")
    other.load_state_dict(refresh.state_dict())
    assert other.skipped == 4
    assert [part.tolist() for part in other._pending[0]] == [[3, 1], [0.5, 2.0]]
    other.load_state_dict(LossRefresh().state_dict())
    assert other._pending == []


def test_ohem_trains_on_the_hardest_half_and_tells_all(tmp_path: Path) -> None:
    watch = Watch()
    trainer, _, data = _fit(
        tmp_path, OHEMSelector(keep=0.25), watch, LossRefresh(), sampler=PrioritizedSampler
    )
    told = torch.ones(data.sampler.size, dtype=torch.float64)
    for batch in watch.batches:
        scored = batch["scored"]
        assert len(scored["losses"]) == 16
        hardest = scored["losses"].sort(descending=True, stable=True).indices[:4].sort().values
        assert batch["index"].equal(scored["index"][hardest])
        assert len(batch["input"]) == len(batch["target"]) == len(batch["weight"]) == 4
        told[scored["index"]] = scored["losses"].double()
    assert float(trainer.callback_metrics["select/kept"]) == 0.25
    assert data.sampler.scores() == pytest.approx(told)  # type: ignore[attr-defined]


def test_ohem_refuses_more_than_a_batch_before_training(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="keep is 17, the batch has 16"):
        _fit(tmp_path, OHEMSelector(keep=17))
    with pytest.raises(ValueError, match="keep is 0"):
        OHEMSelector(keep=0)


def test_selective_backprop_is_unbiased_when_corrected(tmp_path: Path) -> None:
    # Over many dice the corrected mean over the kept is the plain mean over all that was drawn.
    losses = torch.tensor([0.1, 0.4, 0.9, 2.5])
    total, rounds = 0.0, 4000
    selector = SelectiveBackprop(beta=1.0, history=4, correct=True)
    loops = SimpleNamespace(epoch_loop=SimpleNamespace(total_batch_idx=0))
    trainer: Any = SimpleNamespace(world_size=1, global_rank=0, fit_loop=loops)
    for turn in range(rounds):
        loops.epoch_loop.total_batch_idx = turn
        batch = {"index": torch.arange(4), "weight": torch.ones(4)}
        chosen = selector.choose(batch, losses, trainer, None)  # type: ignore[arg-type]
        total += float((batch["weight"] * losses)[chosen].mean())
    assert total / rounds == pytest.approx(float(losses.mean()), rel=0.02)


def test_selective_backprop_keeps_about_half_and_never_nothing(tmp_path: Path) -> None:
    watch = Watch()
    _fit(tmp_path, SelectiveBackprop(), watch, batches_per_epoch=40, max_epochs=1)
    shares = [len(batch["index"]) / 16 for batch in watch.batches]
    assert sum(shares) / 40 == pytest.approx(0.5, abs=0.08)
    watch = Watch()
    _fit(tmp_path, SelectiveBackprop(beta=1e6), watch, max_epochs=1)
    assert min(len(batch["index"]) for batch in watch.batches) == 1
    for options, words in (({"beta": -1.0}, "beta is -1"), ({"history": 0}, "history is 0")):
        with pytest.raises(ValueError, match=words):
            SelectiveBackprop(**options)


def test_reducible_loss_by_checkpoint_and_by_file(tmp_path: Path) -> None:
    trainer, model, data = _fit(tmp_path / "holdout")
    holdout = tmp_path / "holdout.ckpt"
    trainer.save_checkpoint(holdout)
    _, losses = score_all(trainer, model)
    file = tmp_path / "holdout.csv"
    lines = zip(data.ids.tolist(), losses.tolist(), strict=True)
    file.write_text("id,score\n" + "".join(f"{i},{loss}\n" for i, loss in lines))
    found = []
    for source in (holdout, file):
        watch = Watch()
        selector = ReducibleLossSelector(str(source), keep=4)
        _, trained, _ = _fit(tmp_path, selector, watch)
        assert selector.irreducible is not None
        torch.testing.assert_close(selector.irreducible, losses)
        for batch in watch.batches:
            scored = batch["scored"]
            left = scored["losses"] - losses[scored["index"]]
            best = left.sort(descending=True, stable=True).indices[:4].sort().values
            assert batch["index"].equal(scored["index"][best])
        found.append(trained.state_dict())
    assert all(value.equal(found[1][name]) for name, value in found[0].items())
    with pytest.raises(ValueError, match="which is no file"):
        _fit(tmp_path, ReducibleLossSelector("nowhere.csv"))
    other = ReducibleLossSelector(str(file))
    other.load_state_dict({"irreducible": torch.ones(5)})
    with pytest.raises(ValueError, match="5 irreducible losses for 283"):
        _fit(tmp_path, other)


def test_progress_widens_the_curriculum_to_the_end(tmp_path: Path) -> None:
    class Drawable(Callback):
        needs = provides = frozenset()
        seen: list[int] = []  # noqa: RUF012

        def on_train_batch_start(self, trainer: Any, *_: Any) -> None:
            self.seen.append(trainer.datamodule.sampler.count)

    for every, distinct in ((0, 4), (1, 8)):
        Drawable.seen = []
        trainer, _, data = _fit(
            tmp_path, CurriculumProgress(every), Drawable(), difficulty="difficulty",
            sampler=lambda n: CurriculumSampler(n, start=0.1, power=1, until=1.0),
            max_epochs=4, batches_per_epoch=2,
        )  # fmt: skip
        assert Drawable.seen == sorted(Drawable.seen)
        assert len(set(Drawable.seen)) == distinct
        assert Drawable.seen[0] == 28  # a tenth of 283
        assert data.sampler.count == 283
        assert float(trainer.callback_metrics["sampler/drawable"]) == 1
    with pytest.raises(ValueError, match="CurriculumProgress cannot tell"):
        planned_steps(
            SimpleNamespace(max_steps=-1, max_epochs=None),
            "CurriculumProgress",  # type: ignore[arg-type]
        )


def test_planned_steps_count_the_unfilled_accumulation_of_each_epoch() -> None:
    trainer: Any = SimpleNamespace(
        max_steps=-1, max_epochs=3, num_training_batches=5, accumulate_grad_batches=2
    )
    assert planned_steps(trainer, "") == 9
    trainer.max_steps = 7
    assert planned_steps(trainer, "") == 7


def test_scores_are_written_and_begin_another_run(tmp_path: Path) -> None:
    _, _, data = _fit(tmp_path, LossRefresh(), KeepScores(), sampler=AdaptiveBatchSampler)
    again = AdaptiveDataModule(
        LongTailedDigits("train"), AdaptiveBatchSampler, scores=str(tmp_path / "scores.csv")
    )
    torch.testing.assert_close(again.sampler.probabilities(), data.sampler.probabilities())
    with pytest.raises(ValueError, match=r"path is 'scores\.txt'"):
        KeepScores("scores.txt")


def test_predictions_are_written_in_the_datasets_order(tmp_path: Path) -> None:
    trainer, model, data = _fit(tmp_path, PredictionTable())
    trainer.predict(model, data)
    with (tmp_path / "predictions.csv").open() as file:
        rows = list(csv.DictReader(file))
    held_out = LongTailedDigits("validation")
    with torch.no_grad():
        probability, predicted = model.eval()(held_out.inputs).softmax(1).max(1)
    assert [int(row["id"]) for row in rows] == held_out.ids.tolist()
    assert [int(row["predicted"]) for row in rows] == predicted.tolist()
    assert [int(row["target"]) for row in rows] == held_out.targets.tolist()
    found = [float(row["probability"]) for row in rows]
    assert found == pytest.approx(probability.tolist(), rel=1e-4)


def test_what_does_not_fit_is_refused_before_training(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"LossRefresh needs 'data\.update'.*AdaptiveBatchSampler"):
        _fit(tmp_path, LossRefresh())
    with pytest.raises(ValueError, match=r"CurriculumProgress needs 'data\.advance'"):
        _fit(tmp_path, CurriculumProgress())
    with pytest.raises(ValueError, match=r"KeepScores needs 'data\.write_scores'"):
        _fit(tmp_path, KeepScores())
    for make, words in (
        (lambda: LossRefresh(every="step"), "every is 'step'"),  # type: ignore[arg-type]
        (lambda: LossRefresh(rescore_every_n_epochs=-1), "rescore_every_n_epochs is -1"),
        (lambda: LossRefresh(forget=2.0), r"forget is 2\.0"),
        (lambda: LossRefresh(on_nan="drop"), "on_nan is 'drop'"),  # type: ignore[arg-type]
        (lambda: CurriculumProgress(every_n_batches=-1), "every_n_batches is -1"),
        (lambda: CurriculumProgress(steps=0), "steps is 0"),
    ):
        with pytest.raises(ValueError, match=words):
            make()


def test_monitor_shows_ess_and_coverage_in_the_progress_bar(tmp_path: Path) -> None:
    monitor = SamplingMonitor(every_n_steps=1)
    trainer, _, data = _fit(
        tmp_path, monitor, LossRefresh(), BetaAnneal(0.0, 1.0), sampler=AdaptiveBatchSampler,
        log_every_n_steps=1,
    )  # fmt: skip
    assert {"sampler/ess", "sampler/coverage"} <= trainer.progress_bar_metrics.keys()
    assert float(trainer.callback_metrics["sampler/staleness"]) == 0
    assert data.beta == 1
