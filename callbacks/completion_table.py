"""A few completions of a step, to be read: in the terminal, in a file, in Weights & Biases."""

import io
import json
import shutil
import sys
from collections.abc import Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.loggers import WandbLogger

from callbacks._jsonl import run_directory, write_lines
from lit_adaptive.data.seeding import derive_seed
from lit_adaptive.replay.rollouts.groups import RolloutGroups

_OWN: tuple[str, ...] = (
    *("step", "chosen", "id", "prompt", "completion", "reward", "advantage", "length", "finish"),
    *("origin", "age"),
)
_DIGITS = 6  # of rewards and advantages
_SHOWN = 400  # characters of a text in the terminal
_FACTS = 20  # characters of the column of facts there
_TABLE, _LAST = "rollouts", "rollouts_step"  # names in Weights & Biases


class CompletionTable(Callback):
    """Shows a step's best and worst completion, and random ones, once the step is over.

    Of each: ``step``, ``chosen`` (best, worst or random), ``id`` and ``prompt``, ``completion``,
    ``reward`` (null: none applies), ``advantage``, ``length`` (tokens), ``finish`` (stop or
    length), ``origin`` (fresh, replayed, or left out of training) and ``age`` (policy versions).
    Demonstrations inside groups are not shown. The choice follows from seed and step.

    Lines are appended to a file in the run's folder. A resumed run goes on with the lines up to its
    checkpoint, in its own folder; later ones would come twice, and are dropped. Weights & Biases
    gets an incremental table, which keeps earlier steps' rows and shows the last 100 steps (servers
    from 0.70 on).

    Needs: ``data.finished_step`` and ``data.texts``.
    Changes: nothing.

    Args:
        every_n_steps: rollout steps from one table to the next, above 0; the first has one.
        rows: completions of a table, above 0.
        file: ends in ``.jsonl``; None: none is written.
        columns: of the dataset, shown beside, such as ``[answer]``.
        terminal: print tables; with colours and frames if ``rich`` is installed.
        wandb: log them where there is a ``WandbLogger``.
        seed: of the random ones.

    Raises:
        ValueError: naming the argument that is out of its range, or the column that is not there.
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
        wandb: bool = True,
        seed: int = 0,
    ) -> None:
        for name, value in (("every_n_steps", every_n_steps), ("rows", rows)):
            if value <= 0:
                raise ValueError(f"{name} is {value}; it must be above 0")
        if file is not None and Path(file).suffix != ".jsonl":
            raise ValueError(f"file is {file!r}; it must end in .jsonl")
        if taken := sorted(set(columns) & set(_OWN)):
            raise ValueError(
                f"columns is {[*columns]}; {taken} are the table's own: leave them out"
            )
        self.every_n_steps, self.rows, self.file = every_n_steps, rows, file
        self.columns = tuple(columns)
        self.terminal, self.wandb, self.seed = terminal, wandb, seed
        self._path: Path | None = None
        self._earlier: list[dict[str, Any]] = []  # of the run that is resumed
        self._tables: dict[str, Any] = {}  # of each Weights & Biases run

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Go on with the lines of steps that are over; a run from the start has none."""
        before, self._path = self._path, None
        folder = run_directory(trainer)  # all ranks ask
        data: Any = trainer.datamodule  # type: ignore[attr-defined]
        self._refuse_unknown(data)
        if self.file is None:
            return
        self._path = folder / self.file
        if not trainer.is_global_zero:
            return
        over = -1 if data.step is None else data.step.number - (data.finished_step is None)
        source = before if before is not None and before.is_file() else self._path
        self._earlier = _lines_until(source, over)
        if self._earlier or self._path.is_file():
            write_lines(self._path, self._earlier)

    def _refuse_unknown(self, data: Any) -> None:
        there = data.texts(torch.tensor([0]))[0]
        if missing := [name for name in self.columns if name not in there]:
            raise ValueError(
                f"columns is {[*self.columns]}, but the dataset has no {missing}; it has "
                f"{[name for name in there if name not in _OWN]}: name some of these"
            )

    def on_train_batch_end(
        self,
        trainer: Trainer,
        pl_module: LightningModule,
        outputs: Any,
        batch: dict[str, Any],
        batch_idx: int,
    ) -> None:
        """Show the step if it is over and its turn has come; every rank has the same."""
        data: Any = trainer.datamodule  # type: ignore[attr-defined]
        step = data.finished_step
        if step is None or step.number % self.every_n_steps or not trainer.is_global_zero:
            return
        rows = self._rows(step, data)
        if self._path is not None:
            _append(self._path, rows)
        if self.terminal and rows:
            bar = trainer.progress_bar_callback
            shows = bar is not None and getattr(bar, "is_enabled", False)
            tell: Any = bar.print if bar is not None and shows else print
            tell(_printable(shown(rows, self.columns)))
        if self.wandb:
            for logger in trainer.loggers:
                if isinstance(logger, WandbLogger):
                    self._log(logger, rows, step.number, trainer.global_step)

    def _rows(self, step: Any, data: Any) -> list[dict[str, Any]]:
        groups: RolloutGroups = step.groups if len(step.groups) else step.fresh
        picked = chosen(groups, self.rows, derive_seed(self.seed, step.number))
        places = torch.tensor([*picked], dtype=torch.int64)
        group = groups.group[places]
        index = groups.prompt[group]
        start = groups.lengths.cumsum(0) - groups.lengths
        tokens = [groups.tokens[start[n] : start[n] + groups.lengths[n]] for n in picked]
        texts = zip(data.texts(index), data.dataset.decoded(tokens), strict=True)
        fresh = len(groups) - len(step.keys)
        found: list[dict[str, Any]] = []
        for (n, why), g, i, (row, text) in zip(
            picked.items(), group.tolist(), index.tolist(), texts, strict=True
        ):
            origin = "fresh" if g < fresh else "replayed"
            name = data.ids[i]
            own = {
                "step": step.number,
                "chosen": why,
                "id": name.item() if isinstance(name, torch.Tensor) else name,
                "prompt": row["prompt"],
                "completion": text,
                "reward": _number(groups.reward[n]),
                "advantage": _number(groups.advantage[n]),
                "length": int(groups.lengths[n]),
                "finish": "stop" if bool(groups.stopped[n]) else "length",
                "origin": origin if groups is step.groups else "left out",
                "age": step.number - int(groups.version[g]),
            }
            found.append(own | {name: row[name] for name in self.columns})
        return found

    def _log(
        self, logger: WandbLogger, rows: list[dict[str, Any]], number: int, global_step: int
    ) -> None:
        """Add rows to the run's table, unless the run that is resumed had them already."""
        import wandb

        run: Any = logger.experiment
        names = [*_OWN, *self.columns]
        if run.id not in self._tables:
            table = wandb.Table(columns=[*names], log_mode="INCREMENTAL", allow_mixed_types=True)
            if not run.resumed:
                for row in self._earlier:
                    table.add_data(*(row.get(name) for name in names))
            self._tables[run.id] = table
        # A resumed run of theirs cannot take back rows that came after the checkpoint.
        had: Any = run.summary.get(_LAST) if run.resumed and self._earlier else None
        if had is not None and number <= int(had):
            return
        for row in rows:
            self._tables[run.id].add_data(*(row[name] for name in names))
        metrics: Any = {_TABLE: self._tables[run.id], _LAST: number}
        logger.log_metrics(metrics, global_step)

    def state_dict(self) -> dict[str, Any]:
        """Where the lines are; which of them count, the datamodule knows."""
        return {"path": None if self._path is None else str(self._path)}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Take over the lines that are there."""
        path: str | None = state_dict["path"]
        self._path = None if path is None else Path(path)


def chosen(groups: RolloutGroups, count: int, seed: int) -> dict[int, str]:
    """Which completions to show, and why: the best, the worst, and random ones.

    Args:
        groups: of a step; demonstrations are passed over.
        count: at most so many, above 0.
        seed: of the random ones.

    Returns:
        Places in ``[0, N)`` in the order told. Of equally good ones the first is best, of equally
        bad ones the last is worst; where all rewards are equal there is neither.
    """
    own = (~groups.demonstration).nonzero().flatten()
    judged = own[~groups.reward[own].isnan()]
    order = judged[groups.reward[judged].argsort(descending=True, stable=True)].tolist()
    differ = len(order) > 0 and bool(groups.reward[order[0]] > groups.reward[order[-1]])
    ends = [order[0], order[-1]] if differ else []
    picked: dict[int, str] = dict(zip(ends, ("best", "worst"), strict=False))
    source = torch.Generator().manual_seed(seed)
    for place in own[torch.randperm(len(own), generator=source)].tolist():
        picked.setdefault(place, "random")
    return dict([*picked.items()][:count])


def shown(rows: list[dict[str, Any]], columns: Sequence[str] = ()) -> str:
    """Rows of one step as text for the terminal; what a model wrote cannot command it.

    Args:
        rows: at least one, as the file has them.
        columns: shown beside the table's own.
    """
    title = f"rollout step {rows[0]['step']}"
    told = [
        ["\n".join(_facts(row, columns)), _cell(row["prompt"]), _cell(row["completion"])]
        for row in rows
    ]
    if find_spec("rich") is None:
        return "\n\n".join([title, *(f"{own}\n> {asked}\n< {said}" for own, asked, said in told)])
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    table = Table(title=title, show_lines=True)
    table.add_column(width=_FACTS, overflow="fold")
    for name in ("prompt", "completion"):
        table.add_column(name, overflow="fold")
    for each in told:
        table.add_row(*map(Text, each))
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
        row["chosen"],
        f"reward {_cell(row['reward'])}",
        f"advantage {_cell(row['advantage'])}",
        f"{row['length']} tokens, {row['finish']}",
        f"{row['origin']}, age {row['age']}",
        *(f"{name}: {_cell(row[name])}" for name in columns),
    ]


def _cell(value: Any) -> str:
    if isinstance(value, float):
        return f"{value:.4g}"
    text = "-" if value is None else str(value)
    text = "".join(each if each.isprintable() else repr(each)[1:-1] for each in text)
    half = _SHOWN // 2
    return text if len(text) <= _SHOWN else f"{text[:half]} [...] {text[-half:]}"


def _printable(text: str) -> str:
    """What the terminal's encoding has; question marks for the rest."""
    encoding = sys.stdout.encoding or "utf-8"
    return text.encode(encoding, "replace").decode(encoding)


def _number(value: torch.Tensor) -> float | None:
    found = float(value)
    return None if found != found else round(found, _DIGITS)


def _append(path: Path, rows: list[dict[str, Any]]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("a", encoding="utf-8") as file:
        file.writelines(json.dumps(row, ensure_ascii=False, default=str) + "\n" for row in rows)


def _lines_until(path: Path, last: int) -> list[dict[str, Any]]:
    """The lines of steps up to ``last``; one that was cut off as its run died does not count."""
    if last < 0 or not path.is_file():
        return []
    found: list[dict[str, Any]] = []
    with path.open(encoding="utf-8") as file:
        for line in file:
            try:
                row: Any = json.loads(line)
            except json.JSONDecodeError:
                continue
            if isinstance(row, dict) and row.get("step", last + 1) <= last:
                found.append(row)  # pyright: ignore[reportUnknownArgumentType]
    return found
