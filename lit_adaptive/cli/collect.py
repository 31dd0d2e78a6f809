"""``lit-adaptive collect``: roll out all prompts once, before a run that needs their gradients."""

from pathlib import Path
from typing import Any, Literal

from lightning.pytorch import Callback, LightningDataModule, LightningModule, Trainer
from lightning.pytorch.callbacks import ProgressBar
from lightning.pytorch.utilities import rank_zero_info

from callbacks import SupervisedWarmup
from lit_adaptive.cli.checkpoints import AtomicTrainer
from lit_adaptive.data import PromptDataset, RolloutDataModule
from lit_adaptive.progress import count_down


class CollectingTrainer(AtomicTrainer):
    """A trainer that can also collect trajectories."""

    def collect(
        self,
        model: LightningModule,
        datamodule: LightningDataModule,
        out: str = "trajectories",
        prompts: Literal["train", "validation"] = "train",
        samples: int | None = None,
        ckpt_path: str | None = None,
    ) -> None:
        """Complete and score all prompts with the policy that training would start with.

        The rollouts, with their log-probabilities and rewards, are written to a folder of
        safetensors files. The same command continues an interrupted collection. Of the callbacks
        only ``SupervisedWarmup`` runs.

        Args:
            model: a policy.
            datamodule: the prompts, engine and rewards.
            out: Folder to write to.
            prompts: The dataset to complete, ``data.dataset`` or ``data.val_dataset``.
            samples: Rollouts per prompt; by default data.group_size.
            ckpt_path: Checkpoint with the policy's weights.

        Raises:
            ValueError: if the datamodule has no such prompts, ``samples`` is below 2, or the folder
                has trajectories of another policy or task.
        """
        if not isinstance(datamodule, RolloutDataModule):
            raise ValueError(
                f"data is a {type(datamodule).__name__}; trajectories are collected with "
                "lit_adaptive.data.RolloutDataModule, which has prompts, an engine and rewards"
            )
        if samples is not None and samples < 2:
            raise ValueError(
                f"samples is {samples}; it must be at least 2, because the rewards of a prompt are "
                "compared with each other"
            )
        dataset: Any = datamodule.dataset if prompts == "train" else datamodule.val_dataset
        if dataset is None:
            raise ValueError(
                "prompts is validation, but data.val_dataset is null: give it, or collect train"
            )
        trainer: Any = self  # whose callbacks have no type
        kept = (SupervisedWarmup, ProgressBar)
        collection = _Collection(Path(out), dataset, samples)
        trainer.callbacks = [*(c for c in trainer.callbacks if isinstance(c, kept)), collection]
        self.fit(model, datamodule=datamodule, ckpt_path=ckpt_path)


class _Collection(Callback):
    """Collects trajectories when training starts, and ends training before its first step.

    Needs: ``data.collect_trajectories``.
    Changes: nothing but the folder.
    """

    needs = provides = frozenset[str]()

    def __init__(self, folder: Path, dataset: PromptDataset, samples: int | None) -> None:
        self.folder, self.dataset, self.samples = folder, dataset, samples

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Collect, after the warm-up if there is one."""
        data: Any = trainer.datamodule  # type: ignore[attr-defined]
        folder = str(self.folder)
        remaining = data.collect_trajectories(folder, dataset=self.dataset, samples=self.samples)
        total = len(self.dataset)
        count_down(remaining, "rollouts of prompts")
        rank_zero_info(f"trajectories of {total} prompts: {folder}")
        trainer.fit_loop.max_epochs = trainer.current_epoch
