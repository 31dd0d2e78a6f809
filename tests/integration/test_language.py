"""Language models: killed twice and resumed, and on two processes."""

from pathlib import Path

import pytest
import torch
import yaml
from resumed_runs import (
    CONFIG,
    TRAINER,
    assert_same,
    assert_same_end,
    assert_same_metrics,
    latest_checkpoint,
    run,
    steps_of,
)

CONFIGS = CONFIG.parent


def _config(folder: Path, recipe: str, after_epochs: int) -> Path:
    """The config, with the reference computed after ``after_epochs`` epochs."""
    config = yaml.safe_load((CONFIGS / f"{recipe}.yaml").read_text())
    for callback in config["trainer"]["callbacks"]:
        if callback["class_path"] == "callbacks.ReferenceLogProbs":
            callback["init_args"]["after_epochs"] = after_epochs
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / f"{recipe}.yaml"
    path.write_text(yaml.safe_dump(config))
    return path


def _fit(folder: Path, recipe: str, kill_at: int, *more: str, after_epochs: int = 2) -> list[str]:
    return [
        *("-m", "lit_adaptive", "fit", "--config", str(_config(folder, recipe, after_epochs))),
        *("--runs", str(folder / "runs"), "--trainer.max_epochs=4"),
        *("--data.dataset.source.size=128", "--data.val_dataset.source.size=16"),
        "--data.batch_size=8",
        *("--model.model.hidden_size=32", "--model.model.layers=1"),
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


LORA = [
    "--model.model.lora=lit_adaptive.modules.LoRA",
    "--model.model.lora.rank=4",
    "--model.model.lora.dropout=0.3",
]
RUNS = {
    # The first kill comes before the reference is computed, the second after it.
    "iw-SFT with the reference computed after two epochs": (
        "iw_sft",
        [],
    ),
    "reward-weighted, packed, two workers, rewards refreshed": (
        "rwr",
        [
            *(
                "--data.num_workers=2",
                "--data.dataset.packing=true",
                "--data.dataset.max_length=32",
            ),
            "--trainer.callbacks+=callbacks.RewardRefresh",
            "--trainer.callbacks.reward=lit_adaptive.rollout.NumericMatch",
        ],
    ),
    "adapters with dropout, weights by a moving average": (
        "iw_sft_paper",
        [*LORA, "--model.q_decay=0.9", "--model.reference=adapter_off"],
    ),
    "batches of one length": (
        "sft",
        [
            "--data.sampler=lit_adaptive.samplers.BucketedSampler",
            "--data.sampler.batches=4",
        ],
    ),
}


@pytest.mark.multiprocess
@pytest.mark.parametrize("name", RUNS)
def test_killed_twice_ends_bit_equal(name: str, tmp_path: Path) -> None:
    recipe, more = RUNS[name]
    whole, broken = tmp_path / "whole", tmp_path / "broken"
    run(_fit(whole, recipe, -1, *more))
    run(_fit(broken, recipe, 19, *more), killed=True)
    run(_fit(broken, recipe, 43, *more, f"--ckpt_path={latest_checkpoint(broken)}"), killed=True)
    run(_fit(broken, recipe, -1, *more, f"--ckpt_path={latest_checkpoint(broken)}"))
    assert steps_of(broken) == steps_of(whole)
    assert len(steps_of(whole)) == 64
    assert_same_end(broken, whole)


@pytest.mark.multiprocess
@pytest.mark.parametrize("overlay", ["ddp", "fsdp2"])
def test_two_processes_train_like_one(overlay: str, tmp_path: Path) -> None:
    # Token means and the reference are computed over both ranks, so the parameters are equal.
    one, two = tmp_path / "one", tmp_path / "two"
    more = ["--trainer.max_epochs=1", "--trainer.accumulate_grad_batches=1"]
    more += ["--trainer.check_val_every_n_epoch=1", "--model.optimization.learning_rate=0.003"]
    more += ["--model.normalize=true", "--trainer.log_every_n_steps=1"]
    more += ["--data.dataset.source.size=127"]  # one rank scores a sample twice, and counts it once
    ranks = ["--config", str(TRAINER / f"{overlay}.yaml"), "--data.batch_size=4"]
    run(_fit(one, "iw_sft_paper", -1, *more, after_epochs=0))
    run(_fit(two, "iw_sft_paper", -1, *more, *ranks, after_epochs=0))
    ends = [torch.load(two / f"end-{rank}.pt", weights_only=True) for rank in (0, 1)]
    assert_same(ends[0], ends[1])
    alone = torch.load(one / "end-0.pt", weights_only=True)
    assert_same_metrics(one, two)
    drawn = [sorted(i for rank in ranks for i in steps_of(folder, rank)[15]["index"])
             for folder, ranks in zip((one, two), [(0,), (0, 1)], strict=True)]  # fmt: skip
    assert drawn[0] == drawn[1]
    for name, value in alone["parameters"].items():
        if value.dtype.is_floating_point and name.startswith("language"):
            torch.testing.assert_close(ends[0]["parameters"][name], value, rtol=1e-3, atol=1e-4)
    reference = "ReferenceLogProbs"
    torch.testing.assert_close(
        ends[0]["callbacks"][reference]["log_probs"],
        alone["callbacks"][reference]["log_probs"],
        rtol=1e-4,
        atol=1e-5,
    )
