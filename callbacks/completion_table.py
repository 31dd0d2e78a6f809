"""A few completions of a rollout step to read: in the terminal, in a file, in Weights & Biases."""

import io
import json
import shutil
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.loggers import WandbLogger
from rich.console import Console
from rich.table import Table
from rich.text import Text

from callbacks._run_files import jsonl, run_directory, sample_id, write_jsonl
from lit_adaptive.core.bounds import check_at_least
from lit_adaptive.data.seeding import derive_seed
from lit_adaptive.replay.rollouts.groups import RolloutGroups

_COLUMNS: tuple[str, ...] = (
    *("step", "choice", "id", "prompt", "completion", "reward", "advantage", "length", "finish"),
    *("origin", "age"),
)
_DECIMALS = 6  # of rewards and advantages
_TEXT_WIDTH = 400  # characters of a text in the terminal
_FACTS_WIDTH = 20  # characters of the column of facts there
_WANDB_TABLE, _WANDB_STEP = "rollouts", "rollouts_step"


class CompletionTable(Callback):
    """Shows the best, the worst and random completions of a rollout step after its last update.

    Columns: ``step``, ``choice`` (best, worst or random), ``id`` and ``prompt``, ``completion``,
    ``reward`` (null if it does not apply), ``advantage``, ``length`` (tokens), ``finish`` (stop or
    length), ``origin`` (fresh, replayed, or left out of training) and ``age`` (policy versions).
    Demonstrations inside groups are not shown. The random choice follows from the datamodule's seed
    and the step.

    Rows are appended to a file in the run's directory. A resumed run first copies the rows up to
    its checkpoint into its own file; later rows are dropped, since the run will write them again.
    A ``WandbLogger`` gets an incremental table, which keeps the rows of earlier steps (servers from
    0.70 on show the last 100 steps).

    Needs: ``data.finished_step`` and ``data.texts``.
    Changes: nothing.

    Args:
        every_n_steps: interval in rollout steps, above 0; the first step is shown.
        rows: completions per step, above 0.
        file: file name that ends in ``.jsonl``; None writes no file.
        columns: further columns of the dataset to show, such as ``[answer]``.
        terminal: whether to print tables.

    Raises:
        ValueError: if an argument is out of range, or a column does not exist.
    """

    needs = frozenset({"data.finished_step", "data.texts"})
    provides: frozenset[str] = frozenset()
    remedies = {  # noqa: RUF012
        "data.finished_step": "use lit_adaptive.data.RolloutDataModule",
        "data.texts": "use lit_adaptive.data.RolloutDataModule",
    }

    def __init__(
        self,
        every_n_steps: int = 50,
        rows: int = 4,
        file: str | None = "rollouts.jsonl",
        columns: Sequence[str] = (),
        terminal: bool = True,
    ) -> None:
        check_at_least(every_n_steps=(every_n_steps, 1), rows=(rows, 1))
        if file is not None and Path(file).suffix != ".jsonl":
            raise ValueError(f"file is {file!r}; it must end in .jsonl")
        if reserved := sorted(set(columns) & set(_COLUMNS)):
            raise ValueError(
                f"columns is {[*columns]}; the table always has {reserved}: leave them out"
            )
        self.every_n_steps, self.rows, self.file = every_n_steps, rows, file
        self.columns = tuple(columns)
        self.terminal = terminal
        self._path: Path | None = None
        self._earlier_rows: list[dict[str, Any]] = []  # of the run that is resumed
        self._wandb_tables: dict[str, Any] = {}  # by run id

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Start the file with the rows of the steps before the checkpoint; otherwise empty it."""
        previous_path, self._path = self._path, None
        folder = run_directory(trainer)
        data: Any = trainer.datamodule  # type: ignore[attr-defined]
        self._check_columns(data)
        if self.file is None:
            return
        self._path = folder / self.file
        if not trainer.is_global_zero:
            return
        last = -1 if data.step is None else data.step.number - (data.finished_step is None)
        source = self._path
        if previous_path is not None and previous_path.is_file():
            source = previous_path
        self._earlier_rows = _rows_until(source, last)
        if self._earlier_rows or self._path.is_file():
            write_jsonl(self._path, self._earlier_rows)

    def _check_columns(self, data: Any) -> None:
        row = data.texts(torch.tensor([0]))[0]
        if missing := [name for name in self.columns if name not in row]:
            raise ValueError(
                f"columns is {[*self.columns]}, but the dataset has no {missing}; choose from "
                f"{[name for name in row if name not in _COLUMNS]}"
            )

    def on_train_batch_end(
        self,
        trainer: Trainer,
        pl_module: LightningModule,
        outputs: Any,
        batch: dict[str, Any],
        batch_idx: int,
    ) -> None:
        """Show a finished step if it is due, on rank 0; the groups are equal on all ranks."""
        data: Any = trainer.datamodule  # type: ignore[attr-defined]
        step = data.finished_step
        if step is None or step.number % self.every_n_steps or not trainer.is_global_zero:
            return
        module: Any = pl_module
        rows = self._rows(step, data, module.stops())
        if self._path is not None:
            self._path.parent.mkdir(parents=True, exist_ok=True)
            with self._path.open("a", encoding="utf-8") as file:
                file.writelines(jsonl(rows))
        if self.terminal and rows:
            bar = trainer.progress_bar_callback
            enabled = bar is not None and getattr(bar, "is_enabled", False)
            show: Any = bar.print if bar is not None and enabled else print
            show(_encodable(render_table(rows, self.columns)))
        for logger in trainer.loggers:
            if isinstance(logger, WandbLogger):
                self._log_to_wandb(logger, rows, step.number, trainer.global_step)

    def _rows(self, step: Any, data: Any, stops: list[int]) -> list[dict[str, Any]]:
        groups: RolloutGroups = step.groups if len(step.groups) else step.fresh
        choices = select_completions(groups, self.rows, derive_seed(data.seed, step.number))
        group = groups.group[torch.tensor([*choices], dtype=torch.int64)]
        index = groups.prompt[group]
        start = groups.lengths.cumsum(0) - groups.lengths
        tokens = [groups.tokens[start[n] : start[n] + groups.lengths[n]] for n in choices]
        completions = data.dataset.decode_completions(tokens, stops)
        fresh_count = len(groups) - len(step.keys)
        rows: list[dict[str, Any]] = []
        for (n, choice), g, i, text, completion in zip(
            choices.items(),
            group.tolist(),
            index.tolist(),
            data.texts(index),
            completions,
            strict=True,
        ):
            trained = "fresh" if g < fresh_count else "replayed"
            row = {
                "step": step.number,
                "choice": choice,
                "id": sample_id(data.ids, i),
                "prompt": text["prompt"],
                "completion": completion,
                "reward": _rounded(groups.reward[n]),
                "advantage": _rounded(groups.advantage[n]),
                "length": int(groups.lengths[n]),
                "finish": "stop" if bool(groups.stopped[n]) else "length",
                "origin": trained if groups is step.groups else "left out",
                "age": step.number - int(groups.version[g]),
            }
            rows.append(row | {name: text[name] for name in self.columns})
        return rows

    def _log_to_wandb(
        self, logger: WandbLogger, rows: list[dict[str, Any]], number: int, global_step: int
    ) -> None:
        """Add the rows of step ``number`` to the run's table, unless a resumed run has them."""
        import wandb

        run: Any = logger.experiment
        columns = [*_COLUMNS, *self.columns]
        if run.id not in self._wandb_tables:
            table = wandb.Table(columns=[*columns], log_mode="INCREMENTAL", allow_mixed_types=True)
            if not run.resumed:
                for row in self._earlier_rows:
                    table.add_data(*(row.get(name) for name in columns))
            self._wandb_tables[run.id] = table
        # Rows that a resumed W&B run logged after the checkpoint cannot be removed.
        logged: Any = run.summary.get(_WANDB_STEP) if run.resumed and self._earlier_rows else None
        if logged is not None and number <= int(logged):
            return
        for row in rows:
            self._wandb_tables[run.id].add_data(*(row[name] for name in columns))
        metrics: Any = {_WANDB_TABLE: self._wandb_tables[run.id], _WANDB_STEP: number}
        logger.log_metrics(metrics, global_step)

    def state_dict(self) -> dict[str, Any]:
        """Path of the file; the datamodule's state has the last step that counts."""
        return {"path": None if self._path is None else str(self._path)}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Restore the path, from which ``on_train_start`` copies."""
        path: str | None = state_dict["path"]
        self._path = None if path is None else Path(path)


def select_completions(groups: RolloutGroups, count: int, seed: int) -> dict[int, str]:
    """Select the best, the worst and random completions.

    Args:
        groups: rollout groups of a step; demonstrations are skipped.
        count: greatest number of completions, above 0.
        seed: seed of the random selection.

    Returns:
        Positions in ``[0, N)`` and why each was selected: ``best``, ``worst``, then ``random``. Of
        equal rewards the first is best and the last is worst; if all are equal there is neither.
    """
    sampled = (~groups.demonstration).nonzero().flatten()
    scored = sampled[~groups.reward[sampled].isnan()]
    ranking = scored[groups.reward[scored].argsort(descending=True, stable=True)].tolist()
    selected: dict[int, str] = {}
    if ranking and bool(groups.reward[ranking[0]] > groups.reward[ranking[-1]]):
        selected = {ranking[0]: "best", ranking[-1]: "worst"}
    generator = torch.Generator().manual_seed(seed)
    for position in sampled[torch.randperm(len(sampled), generator=generator)].tolist():
        selected.setdefault(position, "random")
    return dict([*selected.items()][:count])


def render_table(rows: list[dict[str, Any]], columns: Sequence[str] = ()) -> str:
    """Render the rows of one step for the terminal, with control characters escaped.

    Args:
        rows: at least one row, as in the file.
        columns: further columns to show.
    """
    table = Table(title=f"rollout step {rows[0]['step']}", show_lines=True)
    table.add_column(width=_FACTS_WIDTH, overflow="fold")
    for name in ("prompt", "completion"):
        table.add_column(name, overflow="fold")
    for row in rows:
        facts = "\n".join(_facts(row, columns))
        table.add_row(*map(Text, (facts, _cell(row["prompt"]), _cell(row["completion"]))))
    console = Console(
        file=io.StringIO(),
        width=shutil.get_terminal_size((120, 24)).columns,
        force_terminal=sys.stdout.isatty(),
        force_jupyter=False,
    )
    with console.capture() as captured:
        console.print(table)
    return captured.get().rstrip("\n")


def _facts(row: dict[str, Any], columns: Sequence[str]) -> list[str]:
    return [
        row["choice"],
        f"reward {_cell(row['reward'])}",
        f"advantage {_cell(row['advantage'])}",
        f"{row['length']} tokens, {row['finish']}",
        f"{row['origin']}, age {row['age']}",
        *(f"{name}: {_cell(row[name])}" for name in columns),
    ]


def _cell(value: Any) -> str:
    """Text of a value: control characters escaped, long texts without their middle."""
    if isinstance(value, float):
        return f"{value:.4g}"
    text = "-" if value is None else str(value)
    text = "".join(char if char.isprintable() else repr(char)[1:-1] for char in text)
    half = _TEXT_WIDTH // 2
    return text if len(text) <= _TEXT_WIDTH else f"{text[:half]} [...] {text[-half:]}"


def _encodable(text: str) -> str:
    """Replace characters that the terminal's encoding lacks by question marks."""
    encoding = sys.stdout.encoding or "utf-8"
    return text.encode(encoding, "replace").decode(encoding)


def _rounded(value: torch.Tensor) -> float | None:
    number = float(value)
    return None if number != number else round(number, _DECIMALS)


def _rows_until(path: Path, last: int) -> list[dict[str, Any]]:
    """Rows of the steps up to ``last``; incomplete lines of a killed run are skipped."""
    if last < 0 or not path.is_file():
        return []
    rows: list[dict[str, Any]] = []
    with path.open(encoding="utf-8") as file:
        for line in file:
            try:
                row: Any = json.loads(line)
            except json.JSONDecodeError:
                continue
            if isinstance(row, dict) and row.get("step", last + 1) <= last:
                rows.append(row)  # pyright: ignore[reportUnknownArgumentType]
    return rows
