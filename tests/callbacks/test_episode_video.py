"""EpisodeVideo records the greedy episodes that EpisodeEvaluation plays."""

import csv
import sys
from pathlib import Path
from typing import Any

import gymnasium
import numpy as np
import pytest
import wandb
from PIL import Image
from quiet_trainer import quiet_trainer

from callbacks import EpisodeVideo
from lit_adaptive.cli.main import main
from lit_adaptive.data import TransitionsDataModule
from lit_adaptive.modules import DQN, MinAtarConv

CONFIGS = Path(__file__).parents[2] / "configs"
CARTPOLE = [
    *("--config", str(CONFIGS / "dqn_per.yaml"), "--data.capacity=2000"),
    *("--trainer.log_every_n_steps=4", "--data.batches_per_epoch=8"),
    *("--trainer.max_epochs=2", "--data.evaluation_episodes=2"),
]
pytestmark = [
    pytest.mark.filterwarnings("ignore:`isinstance"),
    pytest.mark.filterwarnings("ignore:The dirpath has changed"),
]


def recorded(**options: Any) -> str:
    return f"--trainer.callbacks+={{class_path: callbacks.EpisodeVideo, init_args: {options}}}"


def milliseconds(path: Path) -> int:
    """Duration of a GIF, of which Pillow merges equal frames."""
    with Image.open(path) as gif:
        total = 0
        for frame in range(gif.n_frames):  # type: ignore[attr-defined]
            gif.seek(frame)
            total += gif.info["duration"]
    return total


def test_a_run_records_its_policy_and_so_does_the_prediction_of_its_checkpoint(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("WANDB_MODE", "offline")
    monkeypatch.setenv("WANDB_SILENT", "true")
    monkeypatch.chdir(tmp_path)
    overlay = ["--config", str(CONFIGS / "trainer" / "wandb.yaml"), f"--runs={tmp_path / 'fit'}"]
    try:
        main(["fit", *CARTPOLE, *overlay, recorded(every_n_epochs=2)])
    finally:
        wandb.finish()
    (run,) = (tmp_path / "fit" / "dqn_per").iterdir()
    # The first seed of the evaluation: 10,000,000 + the run's seed, 7.
    names = ["episode-seed=10000007.gif", "episode-epoch=1-seed=10000007.gif"]
    assert {path.name for path in run.glob("*.gif")} == {*names}
    logged = [path.read_bytes() for path in tmp_path.rglob("files/media/videos/episode_*.gif")]
    assert sorted(logged) == sorted((run / name).read_bytes() for name in names)

    last = f"--ckpt_path={run / 'checkpoints' / 'last.ckpt'}"
    main(["predict", *CARTPOLE, f"--runs={tmp_path / 'predict'}", last, recorded(episodes=2)])
    (predicted,) = (tmp_path / "predict" / "dqn_per").iterdir()
    with (predicted / "episodes.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert len(rows) == 2
    assert (predicted / names[0]).read_bytes() == (run / names[0]).read_bytes()
    for row in rows:
        name = f"episode-seed={row['seed']}.gif"
        # 50 frames a second: one of the start, and one after each step.
        assert milliseconds(predicted / name) == 20 * (int(row["length"]) + 1)


def test_small_frames_of_floats_are_enlarged(tmp_path: Path) -> None:
    data = TransitionsDataModule("MinAtar/Breakout-v1", seed=0)
    trainer = quiet_trainer(default_root_dir=tmp_path, callbacks=[EpisodeVideo(max_steps=3)])
    trainer.predict(DQN(MinAtarConv), data)
    path = tmp_path / "episode-seed=10000000.gif"
    assert milliseconds(path) == 50 * 4
    with Image.open(path) as gif, data.make_environment(render_mode="rgb_array") as environment:
        environment.reset(seed=10_000_000)
        colors = np.asarray(environment.render()).repeat(16, 0).repeat(16, 1)
        assert np.abs(np.asarray(gif.convert("RGB")) - 255 * colors).max() < 1


def test_missing_pygame_is_reported_before_training(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setitem(sys.modules, "pygame", None)
    with pytest.raises(SystemExit):
        main(["fit", *CARTPOLE, f"--runs={tmp_path}", recorded()])
    error = capsys.readouterr().err
    assert "pip install 'lit-adaptive[video]'" in error
    assert "pygame is not installed" in error


class Dark(gymnasium.Env[Any, Any]):
    """An environment without frames."""

    observation_space = gymnasium.spaces.Box(-1, 1, (2,), np.float32)
    action_space = gymnasium.spaces.Discrete(2)
    metadata = {"render_modes": ["rgb_array"]}  # noqa: RUF012

    def __init__(self, render_mode: str | None = None) -> None:
        self.render_mode = render_mode

    def reset(self, *, seed: int | None = None, options: Any = None) -> tuple[Any, dict[str, Any]]:
        """Begin an episode."""
        return np.zeros(2, np.float32), {}

    def render(self) -> Any:
        """Nothing."""
        return None


def test_an_environment_without_frames_is_rejected(tmp_path: Path) -> None:
    gymnasium.register("Dark-v0", Dark)
    trainer = quiet_trainer(default_root_dir=tmp_path, callbacks=[EpisodeVideo()])
    with pytest.raises(ValueError, match=r"its frames are NoneType .*\[H, W, 3\].*leave .* out"):
        trainer.predict(DQN(), TransitionsDataModule("Dark-v0", seed=0))
