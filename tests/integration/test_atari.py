"""The Atari config trains, with each frame stored once as bytes."""

from pathlib import Path

import pytest
import torch

from lit_adaptive.cli.main import AdaptiveCLI

CONFIG = Path(__file__).parent.parent.parent / "configs" / "dqn_atari_per.yaml"


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:`isinstance")
@pytest.mark.filterwarnings("ignore:`ModelCheckpoint")
def test_the_papers_constants_train_on_breakout(tmp_path: Path) -> None:
    smaller = tmp_path / "dqn_atari_per.yaml"
    text = CONFIG.read_text()
    assert "warmup: 50_000" in text
    smaller.write_text(text.replace("warmup: 50_000", "warmup: 100"))
    cli = AdaptiveCLI(
        [
            *("fit", "--config", str(smaller), "--runs", str(tmp_path), "--data.capacity=200"),
            *("--trainer.max_steps=6", "--trainer.limit_val_batches=0"),
            *("--trainer.accelerator=cpu", "--trainer.enable_progress_bar=false"),
        ]
    )
    assert cli.trainer.global_step == 6
    replay = cli.datamodule.replay
    batch = replay.get(torch.arange(len(replay)))
    assert batch["observation"].dtype == torch.uint8
    assert batch["observation"].shape[1:] == (4, 84, 84)
    # Stacks overlap: three of the four frames of the next observation are those of this one.
    same = batch["observation"][:, 1:] == batch["next_observation"][:, :-1]
    assert same.flatten(1).all(1).float().mean() > 0.9
    assert replay.ring.frames_used < 1.5 * len(replay)
