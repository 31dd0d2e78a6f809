"""What a language model answered to each prompt, in a file."""

from typing import Any

from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.utilities import rank_zero_info
from torch import Tensor

from callbacks._jsonl import gathered_rows, run_directory, write_lines

_OWN = ("index", "prompt", "completion", "tokens", "log_probs", "finish", "reward")
_DIGITS = 5  # of log-probabilities


class CompletionWriter(Callback):
    """Writes ``completions.jsonl`` at the end of ``lit-adaptive predict``, in the dataset's order.

    One line for each prompt, over all ranks: ``id``, ``prompt``, ``completion``, the dataset's text
    columns such as ``answer``, ``reward`` (where one was given: null if it does not apply),
    ``log_prob`` (of the whole completion, with the token that ends it), ``finish`` (``"stop"`` or
    ``"length"``), ``tokens`` and their ``log_probs``, in nats.

    Needs: nothing of a training; ``predict_step`` returns ``index``, ``prompt``, ``completion``,
    ``tokens``, ``log_probs`` and ``finish``, as that of ``lit_adaptive.modules.IWSFT`` does.
    Changes: nothing.
    """

    needs: frozenset[str] = frozenset()
    provides: frozenset[str] = frozenset()

    def __init__(self) -> None:
        self._found: list[tuple[int, dict[str, Any]]] = []

    def on_predict_batch_end(
        self,
        trainer: Trainer,
        pl_module: LightningModule,
        outputs: Any,
        batch: dict[str, Any],
        batch_idx: int,
        dataloader_idx: int = 0,
    ) -> None:
        """Keep the lines of this batch.

        Raises:
            ValueError: if ``predict_step`` returned no completions.
        """
        missing = [name for name in _OWN[:-1] if name not in (outputs or {})]
        if missing:
            raise ValueError(
                f"predict_step of {type(pl_module).__name__} returned no {', '.join(missing)}: "
                "choose a module that answers prompts, such as lit_adaptive.modules.IWSFT, or "
                "leave CompletionWriter out"
            )
        for at, index in enumerate(outputs["index"].tolist()):
            self._found.append((index, _line(outputs, at)))

    def on_predict_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Gather and write."""
        found = gathered_rows(self._found, trainer)
        self._found = []
        path = run_directory(trainer) / "completions.jsonl"
        if not trainer.is_global_zero:
            return
        data: Any = trainer.datamodule  # type: ignore[attr-defined]
        ids: Any = getattr(data.test_dataset or data.val_dataset, "ids", None)
        rows: list[dict[str, Any]] = []
        for index, line in sorted(found, key=lambda each: each[0]):
            name = index if ids is None else ids[index]
            rows.append({"id": name.item() if isinstance(name, Tensor) else name, **line})
        write_lines(path, rows)
        rank_zero_info(f"{len(rows)} completions are in {path}{_summary(rows)}")


def _line(outputs: dict[str, Any], at: int) -> dict[str, Any]:
    log_probs = [float(value) for value in outputs["log_probs"][at]]
    line = {"prompt": outputs["prompt"][at], "completion": outputs["completion"][at]}
    line |= {
        name: values[at]
        for name, values in outputs.items()
        if name not in _OWN and isinstance(values, list)
    }
    if "reward" in outputs:
        line["reward"] = outputs["reward"][at]
    return line | {
        "log_prob": round(sum(log_probs), _DIGITS),
        "finish": outputs["finish"][at],
        "tokens": [int(token) for token in outputs["tokens"][at]],
        "log_probs": [round(value, _DIGITS) for value in log_probs],
    }


def _summary(rows: list[dict[str, Any]]) -> str:
    cut = sum(row["finish"] == "length" for row in rows)
    rewards = [row["reward"] for row in rows if row.get("reward") is not None]
    parts = [f"{cut} of them cut at max_new_tokens"] if cut else []
    if rewards:
        parts.append(f"mean reward {sum(rewards) / len(rewards):.4g} over {len(rewards)}")
    return f" ({', '.join(parts)})" if parts else ""
