"""The digits configs: killed twice and resumed, and on two processes."""

from pathlib import Path

import pytest
import torch
from resumed_runs import (
    CONFIG,
    TRAINER,
    assert_same,
    assert_same_end,
    latest_checkpoint,
    run,
    steps_of,
)

CONFIGS = CONFIG.parent


def _digits(folder: Path, recipe: str, kill_at: int, *more: str) -> list[str]:
    return [
        *("-m", "lit_adaptive", "fit", "--config", str(CONFIGS / f"digits_{recipe}.yaml")),
        *("--runs", str(folder / "runs"), "--trainer.max_epochs=4"),
        *("--data.batches_per_epoch=16", "--trainer.accumulate_grad_batches=2"),
        "--trainer.callbacks+=recorder.Recorder",
        f"--trainer.callbacks.folder={folder}",
        f"--trainer.callbacks.kill_at={kill_at}",
        "--trainer.callbacks+=lightning.pytorch.callbacks.ModelCheckpoint",
        f"--trainer.callbacks.dirpath={folder}/checkpoints",
        "--trainer.callbacks.every_n_train_steps=3",
        "--trainer.callbacks.save_top_k=-1",
        *more,
    ]


RUNS = {
    "adaptive with workers": ("adaptive", ["--data.num_workers=2"]),
    "hybrid": ("hybrid", []),
    "curriculum": ("curriculum", []),
    "data weighter updated at the end of epochs": (
        "uniform",
        [
            "--data.sampler=lit_adaptive.samplers.AdaptiveDataWeighter",
            "--data.sampler.momentum=0.5",
            "--trainer.callbacks+=callbacks.LossRefresh",
            "--trainer.callbacks.every=epoch",
            "--trainer.callbacks.rescore_every_n_epochs=2",
            "--trainer.callbacks.forget=0.1",
        ],
    ),
    "dropout and augmentation in two workers": (
        "adaptive",
        [
            "--data.dataset=recorder.Jittered",
            "--data.num_workers=2",
            "--model.network.dropout=0.5",
        ],
    ),
    "limited epochs with validation inside, two workers": (
        "curriculum",
        [
            "--data.num_workers=2",
            "--data.batches_per_epoch=20",
            "--trainer.limit_train_batches=0.8",
            "--trainer.val_check_interval=0.5",
        ],
    ),
    "selective backprop over InfoBatch": (
        "uniform",
        [
            "--data.sampler=lit_adaptive.samplers.InfoBatchSampler",
            "--trainer.callbacks+=callbacks.SelectiveBackprop",
            "--trainer.callbacks.correct=true",
            "--trainer.callbacks+=callbacks.LossRefresh",
            "--trainer.callbacks+=callbacks.CurriculumProgress",
        ],
    ),
}


@pytest.mark.multiprocess
@pytest.mark.parametrize("name", RUNS)
def test_killed_twice_ends_bit_equal(name: str, tmp_path: Path) -> None:
    recipe, more = RUNS[name]
    whole, broken = tmp_path / "whole", tmp_path / "broken"
    run(_digits(whole, recipe, -1, *more))
    run(_digits(broken, recipe, 19, *more), killed=True)
    run(_digits(broken, recipe, 43, *more, f"--ckpt_path={latest_checkpoint(broken)}"), killed=True)
    run(_digits(broken, recipe, -1, *more, f"--ckpt_path={latest_checkpoint(broken)}"))
    assert steps_of(broken) == steps_of(whole)
    assert len(steps_of(whole)) == 64
    assert_same_end(broken, whole)


@pytest.mark.multiprocess
def test_resuming_from_an_epochs_last_batch_loses_no_update(tmp_path: Path) -> None:
    # Lightning then skips on_train_epoch_end and the next on_train_epoch_start.
    whole, broken = tmp_path / "whole", tmp_path / "broken"
    more = [
        *RUNS["data weighter updated at the end of epochs"][1],
        "--trainer.callbacks+=callbacks.CurriculumProgress",
        "--data.sampler=lit_adaptive.samplers.CurriculumSampler",
        "--data.sampler.inner=lit_adaptive.samplers.AdaptiveDataWeighter",
        "--data.difficulty=difficulty",
        "--model.lr_scheduler=torch.optim.lr_scheduler.StepLR",
        "--model.lr_scheduler.step_size=1",
        "--model.lr_scheduler.gamma=0.5",
    ]
    run(_digits(whole, "uniform", -1, *more))
    boundary = next((whole / "checkpoints").glob("*step=24.ckpt"))  # 3 epochs of 8 steps
    run(_digits(broken, "uniform", -1, *more, f"--ckpt_path={boundary}"))
    resumed, uninterrupted = steps_of(broken), steps_of(whole)
    assert sorted(resumed) == list(range(48, 64))
    assert resumed == {step: uninterrupted[step] for step in resumed}
    assert_same_end(broken, whole)


@pytest.mark.multiprocess
@pytest.mark.parametrize(("recipe", "overlay"), [("hybrid", "ddp"), ("adaptive", "fsdp2")])
def test_two_processes_share_one_distribution_and_resume(
    recipe: str, overlay: str, tmp_path: Path
) -> None:
    whole, broken = tmp_path / "whole", tmp_path / "broken"
    ranks = ["--config", str(TRAINER / f"{overlay}.yaml"), "--trainer.max_epochs=2"]
    command = _digits(whole, recipe, -1, *ranks)
    run(command)
    ends = [torch.load(whole / f"end-{rank}.pt", weights_only=True) for rank in (0, 1)]
    assert_same(ends[0], ends[1])
    steps = [steps_of(whole, rank) for rank in (0, 1)]
    assert steps[0].keys() == steps[1].keys()
    assert len(steps[0]) == 32
    for step, first in steps[0].items():
        second = steps[1][step]
        assert len(first["index"]) == len(second["index"]) == 32
        assert first["index"] != second["index"]
    saved = min((whole / "checkpoints").glob("*"), key=lambda path: path.stat().st_mtime_ns)
    run(_digits(broken, recipe, -1, *ranks, f"--ckpt_path={saved}"))
    for rank in (0, 1):
        resumed, uninterrupted = steps_of(broken, rank), steps_of(whole, rank)
        assert len(resumed) > 16
        assert resumed == {step: uninterrupted[step] for step in resumed}
