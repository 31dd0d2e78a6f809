"""A file of a language model's answers."""

from typing import Any

from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.utilities import rank_zero_info

from callbacks._ranks import gather_rows
from callbacks._run_files import run_directory, sample_id, write_jsonl

_REQUIRED = ("index", "prompt", "completion", "tokens", "log_probs", "finish")
_DECIMALS = 5  # of log-probabilities


class CompletionWriter(Callback):
    """Writes ``completions.jsonl`` at the end of ``lit-adaptive predict``, in the dataset's order.

    One line per prompt, over all ranks: ``id``, ``prompt``, ``completion``, the dataset's text
    columns such as ``answer``, ``reward`` (if there is a reward; null if it does not apply),
    ``log_prob`` (of the completion, including its stop token), ``finish`` (``"stop"`` or
    ``"length"``), ``tokens`` and their ``log_probs``, in nats.

    Needs: nothing of a training; ``predict_step`` returns ``index``, ``prompt``, ``completion``,
        ``tokens``, ``log_probs`` and ``finish``, as ``lit_adaptive.modules.IWSFT`` does.
    Changes: nothing.
    """

    needs: frozenset[str] = frozenset()
    provides: frozenset[str] = frozenset()

    def __init__(self) -> None:
        self._rows: list[tuple[int, dict[str, Any]]] = []

    def on_predict_batch_end(
        self,
        trainer: Trainer,
        pl_module: LightningModule,
        outputs: Any,
        batch: dict[str, Any],
        batch_idx: int,
        dataloader_idx: int = 0,
    ) -> None:
        """Collect the rows of a batch.

        Raises:
            ValueError: if ``predict_step`` returned no completions.
        """
        missing = [name for name in _REQUIRED if name not in (outputs or {})]
        if missing:
            raise ValueError(
                f"predict_step of {type(pl_module).__name__} returned no {', '.join(missing)}: "
                "choose a module that answers prompts, such as lit_adaptive.modules.IWSFT, or "
                "leave CompletionWriter out"
            )
        for position, index in enumerate(outputs["index"].tolist()):
            self._rows.append((index, _row(outputs, position)))

    def on_predict_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Gather the rows of all ranks and write the file."""
        gathered = gather_rows(self._rows, trainer)
        self._rows = []
        path = run_directory(trainer) / "completions.jsonl"
        if not trainer.is_global_zero:
            return
        data: Any = trainer.datamodule  # type: ignore[attr-defined]
        ids: Any = getattr(data.evaluated_dataset, "ids", None)
        rows: list[dict[str, Any]] = [
            {"id": sample_id(ids, index), **row}
            for index, row in sorted(gathered, key=lambda indexed: indexed[0])
        ]
        write_jsonl(path, rows)
        rank_zero_info(f"{len(rows)} completions are in {path}{_summary(rows)}")


def _row(outputs: dict[str, Any], position: int) -> dict[str, Any]:
    log_probs = [float(value) for value in outputs["log_probs"][position]]
    columns = {
        name: values[position]
        for name, values in outputs.items()
        if name not in (*_REQUIRED, "reward") and isinstance(values, list)
    }
    reward = {"reward": outputs["reward"][position]} if "reward" in outputs else {}
    return {
        "prompt": outputs["prompt"][position],
        "completion": outputs["completion"][position],
        **columns,
        **reward,
        "log_prob": round(sum(log_probs), _DECIMALS),
        "finish": outputs["finish"][position],
        "tokens": [int(token) for token in outputs["tokens"][position]],
        "log_probs": [round(value, _DECIMALS) for value in log_probs],
    }


def _summary(rows: list[dict[str, Any]]) -> str:
    truncated = sum(row["finish"] == "length" for row in rows)
    rewards = [row["reward"] for row in rows if row.get("reward") is not None]
    parts = [f"{truncated} truncated at max_new_tokens"] if truncated else []
    if rewards:
        parts.append(f"mean reward {sum(rewards) / len(rewards):.4g} over {len(rewards)}")
    return f" ({', '.join(parts)})" if parts else ""
