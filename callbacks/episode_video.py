"""Recordings of a reinforcement-learning policy."""

from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from gymnasium.wrappers import RenderCollection
from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.loggers import WandbLogger
from torch import Tensor

from callbacks._run_files import run_directory
from lit_adaptive.core.bounds import check_at_least
from lit_adaptive.files import write_atomically
from lit_adaptive.modules.base import evaluation_mode
from lit_adaptive.rollout.environments.episodes import play_episodes

if TYPE_CHECKING:
    from PIL.Image import Image

_FRAMES_PER_SECOND = 20  # of environments that do not say theirs, such as MinAtar
_LEAST_SIDE = 160  # pixels; smaller frames are enlarged


class EpisodeVideo(Callback):
    """Records greedy episodes as GIF at the end of training and in ``lit-adaptive predict``.

    The first episodes of ``callbacks.EpisodeEvaluation`` are played again and written into the run
    directory as ``episode-seed=S.gif``, at the environment's frame rate. Every ``WandbLogger`` gets
    them with return and length as caption. Classic control needs the extra ``video``; MinAtar and
    Atari need nothing more.

    Needs: ``model.act``; ``data.make_environment`` and ``data.evaluation_seeds``; an environment
        whose ``render_mode="rgb_array"`` returns frames ``[H, W, 3]``.
    Changes: nothing.

    Args:
        episodes: number of episodes, above 0.
        every_n_epochs: interval in epochs at whose end ``episode-epoch=K-seed=S.gif`` are also
            written (K counts from 0, as in the names of checkpoints); 0 disables it.
        max_steps: greatest length of a recording in steps, above 0; the frames of one episode are
            held in memory (720 KB each for CartPole).

    Raises:
        ValueError: if an argument is out of range, or, before training, if the environment returns
            no frames.
    """

    needs = frozenset({"model.act", "data.make_environment", "data.evaluation_seeds"})
    provides: frozenset[str] = frozenset()

    def __init__(self, episodes: int = 1, every_n_epochs: int = 0, max_steps: int = 1000) -> None:
        check_at_least(
            episodes=(episodes, 1), every_n_epochs=(every_n_epochs, 0), max_steps=(max_steps, 1)
        )
        self.episodes, self.every_n_epochs, self.max_steps = episodes, every_n_epochs, max_steps

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Render one frame, so that a missing package or render mode is found before training."""
        if stage not in ("fit", "predict"):
            return
        try:
            with _recorded_environment(trainer) as environment:
                environment.reset(seed=0)
                _image(environment.render()[0])
        except Exception as error:  # the environment's own code may raise any
            raise ValueError(
                f"callbacks.EpisodeVideo cannot record this environment ({error}): for classic "
                "control pip install 'lit-adaptive[video]'; an environment of your own must return "
                'frames [H, W, 3] with render_mode="rgb_array"; or leave EpisodeVideo out'
            ) from error

    def _play(
        self, trainer: Trainer, pl_module: LightningModule, seed: Tensor
    ) -> tuple[Any, float, int]:
        """The environment with the frames of an episode, and the episode's return and length."""
        act: Any = pl_module.act
        environment = _recorded_environment(trainer)
        with evaluation_mode(pl_module):
            returns, lengths = play_episodes(
                act,
                lambda: environment,
                seed,
                max_steps=self.max_steps,
                keep_going=partial(trainer.strategy.reduce_boolean_decision, all=False),
            )
        return environment, float(returns), int(lengths)

    def _record(self, trainer: Trainer, pl_module: LightningModule, name: str = "episode") -> None:
        """Play and write the episodes; all ranks play the same ones, rank 0 writes them."""
        data: Any = trainer.datamodule  # type: ignore[attr-defined]
        folder = run_directory(trainer)
        videos: list[str] = []
        captions: list[str] = []
        for seed in (data.evaluation_seeds[:1] + torch.arange(self.episodes)).split(1):
            environment, episode_return, length = self._play(trainer, pl_module, seed)
            if trainer.is_global_zero:
                videos.append(str(folder / f"{name}-seed={int(seed)}.gif"))
                captions.append(f"seed {int(seed)}: return {episode_return:g}, {length} steps")
                _write_gif(environment, Path(videos[-1]))
        for logger in trainer.loggers:
            if isinstance(logger, WandbLogger) and videos:
                logger.log_video("episode", videos, step=trainer.global_step, caption=captions)

    def on_train_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Record if it is due."""
        epoch = trainer.current_epoch
        if self.every_n_epochs and (epoch + 1) % self.every_n_epochs == 0:
            self._record(trainer, pl_module, f"episode-epoch={epoch}")

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Record the trained policy."""
        self._record(trainer, pl_module)

    def on_predict_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Record the checkpoint's policy."""
        self._record(trainer, pl_module)


def _recorded_environment(trainer: Trainer) -> Any:
    data: Any = trainer.datamodule  # type: ignore[attr-defined]
    return RenderCollection(data.make_environment(evaluation=True, render_mode="rgb_array"))


def _write_gif(environment: Any, path: Path) -> None:
    rate = environment.metadata.get("render_fps") or _FRAMES_PER_SECOND
    first, *others = map(_image, environment.render())
    with write_atomically(path) as temporary:
        first.save(
            temporary,
            format="GIF",
            save_all=True,
            append_images=others,
            duration=round(1000 / rate),
            loop=0,
        )


def _image(frame: Any) -> "Image":
    """A frame ``[H, W, 3]``, of bytes or of floats in [0, 1]."""
    from PIL import Image

    pixels = np.asarray(frame)
    if pixels.ndim != 3 or pixels.shape[2] != 3:
        raise ValueError(f"its frames are {type(frame).__name__} {list(pixels.shape)}")
    if pixels.dtype.kind == "f":
        pixels = 255 * pixels
    image = Image.fromarray(pixels.astype(np.uint8))
    scale = max(1, -(-_LEAST_SIDE // min(image.size)))
    return image.resize((scale * image.width, scale * image.height), Image.Resampling.NEAREST)
