"""Reference log-probabilities, computed once so that no second model stays in memory."""

from pathlib import Path
from typing import Any

import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from torch import Tensor

from lit_adaptive.core.bounds import check_at_least
from lit_adaptive.data.text.packing import ranges
from lit_adaptive.files import write_atomically
from lit_adaptive.modules.base import evaluation_mode
from lit_adaptive.progress import progress_bar

_KEY = "log_probs"


class ReferenceLogProbs(Callback):
    """Scores the training set with the initial model, and hands the log-probabilities to the data.

    Afterwards batches hold ``ref_log_probs`` ``[K]``. With ``after_epochs`` the reference is the
    model at the end of that epoch, after plain training as in behaviour cloning. Every checkpoint
    holds the log-probabilities, so a resumed run uses the same reference.

    Needs: ``data.set_reference`` and ``data.scoring_dataloader`` (``DemonstrationsDataModule``),
        ``model.token_log_probs`` and ``model.fingerprint``.
    Changes: the dataset's reference log-probabilities, and nothing else.

    Args:
        path: a ``.safetensors`` file in which they are cached: read if it exists, and then it must
            be of this model, tokenizer and data; written otherwise. By default there is none.
        after_epochs: epochs of training before the model is used as reference, at least 0.

    Raises:
        ValueError: if an argument is out of range, the file or checkpoint belongs to another model
            or other data, or a log-probability is not finite.
    """

    needs = frozenset(
        {
            "data.set_reference",
            "data.scoring_dataloader",
            "model.token_log_probs",
            "model.fingerprint",
        }
    )
    provides = frozenset({"batch.ref_log_probs"})
    remedies = {  # noqa: RUF012
        "data.set_reference": "use lit_adaptive.data.DemonstrationsDataModule",
        "model.token_log_probs": "use lit_adaptive.modules.IWSFT",
    }

    def __init__(self, path: str | None = None, after_epochs: int = 0) -> None:
        if path is not None and Path(path).suffix != ".safetensors":
            raise ValueError(f"path is {path!r}; it must end in .safetensors")
        check_at_least(after_epochs=(after_epochs, 0))
        self.path = None if path is None else Path(path)
        self.after_epochs = after_epochs
        self._log_probs: Tensor | None = None
        self._fingerprints: dict[str, str] = {}  # of the data and model that were scored

    def on_fit_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Use the log-probabilities of the checkpoint, or compute them."""
        data: Any = trainer.datamodule  # type: ignore[attr-defined]
        last = trainer.max_epochs
        if last is not None and 0 <= last <= self.after_epochs and self.after_epochs > 0:
            raise ValueError(
                f"after_epochs is {self.after_epochs} and the trainer's max_epochs {last}: all "
                "weights would be 1 throughout; set after_epochs below max_epochs"
            )
        if self._log_probs is not None:
            _check_fingerprints(
                {"data": data.dataset.fingerprint},
                self._fingerprints,
                "the checkpoint's reference log-probabilities",
                "resume with the data and the tokenizer of the checkpoint",
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
        """Compute them after the last batch of epoch ``after_epochs``."""
        # Not in on_train_epoch_end: a run resumed from a checkpoint of this batch skips it.
        if trainer.is_last_batch and trainer.current_epoch + 1 == self.after_epochs:
            self._provide(trainer, pl_module)

    def _provide(self, trainer: Trainer, pl_module: LightningModule) -> None:
        data: Any = trainer.datamodule  # type: ignore[attr-defined]
        module: Any = pl_module
        fingerprints = {"data": data.dataset.fingerprint, "model": module.fingerprint()}
        if self.path is not None and self.path.is_file():
            log_probs, file_fingerprints = _read(self.path)
            _check_fingerprints(
                fingerprints,
                file_fingerprints,
                f"{self.path}",
                "delete it, or choose another path, to compute them again",
            )
        else:
            log_probs = _score(trainer, pl_module)
            if self.path is not None and trainer.is_global_zero:
                _write(self.path, log_probs, fingerprints)
            trainer.strategy.barrier("reference")
        self._log_probs, self._fingerprints = log_probs, fingerprints
        data.set_reference(log_probs)

    def state_dict(self) -> dict[str, Any]:
        """The log-probabilities, and the fingerprints of the data and model they belong to."""
        scored = self._log_probs is not None
        log_probs = self._log_probs if self._log_probs is not None else torch.empty(0)
        return {_KEY: log_probs, "fingerprints": dict(self._fingerprints), "scored": scored}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Restore the reference."""
        self._fingerprints = dict(state_dict["fingerprints"])
        self._log_probs = state_dict[_KEY].clone() if state_dict["scored"] else None


def _score(trainer: Trainer, pl_module: LightningModule) -> Tensor:
    """Log-probability of each completion token of the dataset, flat; equal on every rank."""
    data: Any = trainer.datamodule  # type: ignore[attr-defined]
    module: Any = pl_module
    offsets: Tensor = data.dataset.offsets
    flat = torch.zeros(int(offsets[-1]))
    loader = data.scoring_dataloader()
    with (
        evaluation_mode(pl_module),
        trainer.precision_plugin.forward_context(),
        progress_bar("reference log-probabilities", len(loader)) as advance,
    ):
        for batch in loader:
            device_batch: dict[str, Any] = trainer.strategy.batch_to_device(batch)
            log_probs: Tensor = module.token_log_probs(device_batch).float().cpu()
            counted = batch["counted"][batch["sequence"]]
            flat[_token_positions(offsets, batch["index"])[counted]] = log_probs[counted]
            advance(1)
    if trainer.world_size > 1:  # each rank filled its share and left zeros elsewhere
        flat = trainer.strategy.reduce(flat.to(pl_module.device), reduce_op="sum").cpu()
    if bool((invalid := ~flat.isfinite()).any()):
        raise ValueError(
            f"the reference gives {int(invalid.sum())} of {len(flat)} tokens a "
            "log-probability that is not finite: look for NaN in the model's weights"
        )
    return flat


def _token_positions(offsets: Tensor, index: Tensor) -> Tensor:
    """Flat positions of the completion tokens of samples ``index`` ``[B]``, in that order."""
    start = offsets[index].numpy()
    return torch.from_numpy(ranges(start, offsets[index + 1].numpy() - start)[0])


def _check_fingerprints(
    current: dict[str, str], stored: dict[str, str], source: str, remedy: str
) -> None:
    names = {"data": "data or tokenizer", "model": "model"}
    different = [names[key] for key in current if current[key] != stored.get(key)]
    if different:
        raise ValueError(
            f"{source} were computed with another {' and another '.join(different)}: {remedy}"
        )


def _read(path: Path) -> tuple[Tensor, dict[str, str]]:
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(path, framework="pt") as file:
            return file.get_tensor(_KEY), dict(file.metadata() or {})
    except (SafetensorError, KeyError) as error:
        raise ValueError(f"{path} is not a file of reference log-probabilities: {error}") from error


def _write(path: Path, log_probs: Tensor, fingerprints: dict[str, str]) -> None:
    from safetensors.torch import save_file

    with write_atomically(path) as temporary:
        save_file({_KEY: log_probs}, temporary, metadata=fingerprints)
