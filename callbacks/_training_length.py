"""How many optimizer steps a training takes, and which of them something is done at."""

import math

from lightning.pytorch import Trainer


def total_steps(trainer: Trainer, callback: str) -> int:
    """Optimizer steps of the whole training, once its dataloaders are loaded.

    Args:
        trainer: the trainer, after ``on_train_start``.
        callback: name of the callback that needs the number, for the error message.

    Raises:
        ValueError: if neither ``max_steps`` nor ``max_epochs`` limits the training.
    """
    steps = trainer.estimated_stepping_batches
    if not 0 < steps < math.inf:
        raise ValueError(
            f"{callback} needs the length of training, but max_steps is {trainer.max_steps} and "
            f"max_epochs is {trainer.max_epochs}: set one of them, or {callback}'s `steps`"
        )
    return int(steps)


def is_due(trainer: Trainer, step: int, every_n_steps: int) -> bool:
    """Whether ``step`` completes ``every_n_steps``, and training goes on."""
    ended = trainer.global_step >= trainer.estimated_stepping_batches
    return step % every_n_steps == 0 and not ended
