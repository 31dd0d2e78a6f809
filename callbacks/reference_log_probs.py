"""The reference's log-probabilities, scored once, so that no second model stays in memory."""

from pathlib import Path
from typing import Any

import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from torch import Tensor

from lit_adaptive.data.text.packing import ranges
from lit_adaptive.files import write_atomically
from lit_adaptive.modules.base import evaluation_mode

_KEY = "log_probs"


class ReferenceLogProbs(Callback):
    """Scores the training set with the model as it begins, and hands the dataset what it found.

    From then on batches hold ``ref_log_probs`` ``[K]``. With ``after_epochs`` the reference is the
    model at the end of that epoch: until then it is trained on plainly, as by behaviour cloning.
    Every checkpoint holds the log-probabilities, so a resumed run has the same reference.

    Needs: ``data.set_reference`` and ``data.scoring_dataloader`` (``DemonstrationsDataModule``),
    ``model.token_log_probs`` and ``model.fingerprint``.
    Changes: the dataset's reference log-probabilities, and nothing else.

    Args:
        path: a ``.safetensors`` file that they are kept in, and taken from if it is there; it must
            be of this model, tokenizer and data then. By default they are scored in each run.
        after_epochs: how many epochs to train before; at least 0.

    Raises:
        ValueError: naming the argument that is out of its range, or what in the file is another.
    """

    needs = frozenset(
        {"data.set_reference", "data.scoring_dataloader", "model.token_log_probs"}
        | {"model.fingerprint"}
    )
    provides = frozenset({"batch.ref_log_probs"})
    remedies = {  # noqa: RUF012
        "data.set_reference": "use lit_adaptive.data.DemonstrationsDataModule",
        "model.token_log_probs": "use lit_adaptive.modules.IWSFT",
    }

    def __init__(self, path: str | None = None, after_epochs: int = 0) -> None:
        if path is not None and Path(path).suffix != ".safetensors":
            raise ValueError(f"path is {path!r}; it must end in .safetensors")
        if after_epochs < 0:
            raise ValueError(f"after_epochs is {after_epochs}; it must be at least 0")
        self.path = None if path is None else Path(path)
        self.after_epochs = after_epochs
        self._log_probs: Tensor | None = None
        self._made_by: dict[str, str] = {}

    def on_fit_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Take what a checkpoint held, or score."""
        data: Any = trainer.datamodule  # type: ignore[attr-defined]
        if self._log_probs is not None:
            self._refuse_other(
                {"data": data.dataset.fingerprint},
                self._made_by,
                "the checkpoint's reference log-probabilities",
                "resume with the data and the tokenizer that it was saved with",
            )
            data.set_reference(self._log_probs)
        elif self.after_epochs == 0:
            self._provide(trainer, pl_module)

    def on_train_batch_end(
        self,
        trainer: Trainer,
        pl_module: LightningModule,
        outputs: Any,
        batch: dict[str, Any],
        batch_idx: int,
    ) -> None:
        """At the last batch of the last epoch of plain training: score."""
        # Not in on_train_epoch_end: a run resumed from a checkpoint of this batch leaves it out.
        if trainer.is_last_batch and trainer.current_epoch + 1 == self.after_epochs:
            self._provide(trainer, pl_module)

    def _provide(self, trainer: Trainer, pl_module: LightningModule) -> None:
        data, module = trainer.datamodule, pl_module  # type: ignore[attr-defined]
        fingerprint: Any = module.fingerprint
        now = {"data": data.dataset.fingerprint, "model": fingerprint()}
        if self.path is not None and self.path.is_file():
            found, made_by = _read(self.path)
            self._refuse_other(
                now, made_by, f"{self.path}", "delete it, or name another path, to score anew"
            )
        else:
            found = self._score(trainer, pl_module)
            if self.path is not None and trainer.is_global_zero:
                _write(self.path, found, now)
            trainer.strategy.barrier("reference")
        self._log_probs, self._made_by = found, now
        data.set_reference(found)

    @staticmethod
    def _refuse_other(now: dict[str, str], then: dict[str, str], what: str, remedy: str) -> None:
        names = {"data": "data or tokenizer", "model": "model"}
        others = [names[key] for key in now if now[key] != then.get(key)]
        if others:
            raise ValueError(
                f"{what} were made with another {' and another '.join(others)}: {remedy}"
            )

    def _score(self, trainer: Trainer, pl_module: LightningModule) -> Tensor:
        """Log-probability of each completion token of the dataset: flat, on every rank."""
        data: Any = trainer.datamodule  # type: ignore[attr-defined]
        module: Any = pl_module
        offsets: Tensor = data.dataset.offsets
        flat = torch.zeros(int(offsets[-1]))
        with evaluation_mode(pl_module), trainer.precision_plugin.forward_context():
            for batch in data.scoring_dataloader():
                here: dict[str, Any] = trainer.strategy.batch_to_device(batch)
                found: Tensor = module.token_log_probs(here).float().cpu()
                counted = batch["counted"][batch["sequence"]]
                flat[_places(offsets, batch["index"])[counted]] = found[counted]
        if trainer.world_size > 1:  # each rank wrote its share, and zeros elsewhere
            flat = trainer.strategy.reduce(flat.to(pl_module.device), reduce_op="sum").cpu()
        if bool((~flat.isfinite()).any()):
            raise ValueError(
                f"the reference gives {int((~flat.isfinite()).sum())} of {len(flat)} tokens a "
                "log-probability that is not finite: look for NaN in the model's weights"
            )
        return flat

    def state_dict(self) -> dict[str, Any]:
        """What was scored, and what it was scored with."""
        empty = torch.empty(0)
        kept = empty if self._log_probs is None else self._log_probs
        return {_KEY: kept, "made_by": dict(self._made_by), "scored": self._log_probs is not None}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Go on with the same reference."""
        self._made_by = dict(state_dict["made_by"])
        self._log_probs = state_dict[_KEY].clone() if state_dict["scored"] else None


def _places(offsets: Tensor, index: Tensor) -> Tensor:
    """Flat places of the completion tokens of ``index`` ``[B]``, one sample after another."""
    start = offsets[index].numpy()
    return torch.from_numpy(ranges(start, offsets[index + 1].numpy() - start)[0])


def _read(path: Path) -> tuple[Tensor, dict[str, str]]:
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(path, framework="pt") as file:
            return file.get_tensor(_KEY), dict(file.metadata() or {})
    except (SafetensorError, KeyError) as error:
        raise ValueError(f"{path} is no file of reference log-probabilities: {error}") from error


def _write(path: Path, found: Tensor, made_by: dict[str, str]) -> None:
    from safetensors.torch import save_file

    with write_atomically(path) as temporary:
        save_file({_KEY: found}, temporary, metadata=made_by)
