"""``lit-adaptive fit | validate | test | predict``: LightningCLI, with a run directory of its own.

What it adds to LightningCLI:
  1. A unique ``runs/<config name>/<time>-<seed>`` with metrics CSV, config and checkpoints.
  2. ``use_distributed_sampler`` is false, and true is refused: Lightning's wrapper would freeze a
     sampler that learns.
  3. Flags given beside ``--ckpt_path`` win over the checkpoint's hyperparameters.
  4. Parts that do not fit together are refused before training, by name (``contract``).
  5. Mistakes in a config are told in a line or two (``mistakes``).
"""

import json
import os
import pickle
import warnings
from datetime import datetime
from pathlib import Path
from typing import Any

# Lightning calls parts of jsonargparse that its next major version drops; not the user's concern.
os.environ.setdefault("JSONARGPARSE_DEPRECATION_WARNINGS", "off")

import torch
from jsonargparse import Namespace
from lightning.pytorch import LightningDataModule, LightningModule, Trainer
from lightning.pytorch.cli import (
    ArgsType,
    LightningArgumentParser,
    LightningCLI,
    SaveConfigCallback,
)
from lightning.pytorch.loggers import CSVLogger, Logger

import callbacks  # so that another package of this name fails here, loudly
from lit_adaptive import __version__, data, modules, samplers
from lit_adaptive.cli.errors import PlainParser, cause
from lit_adaptive.contract import unmet_needs

RUN_DIR = "LIT_ADAPTIVE_RUN_DIR"
"""Set by the process that names the run, read by those that Lightning starts for other ranks."""

PACKAGES = (callbacks, data, modules, samplers)
"""Imported so that their classes are known to the parser by their short names."""

if not hasattr(callbacks, "PriorityRefresh"):
    raise ImportError(
        f"another package named 'callbacks' hides lit-adaptive's: {callbacks.__file__}; "
        "remove it from the Python path, or install lit-adaptive in an environment of its own"
    )


class SaveConfig(SaveConfigCallback):
    """Writes the config into the run directory, and into every logger."""

    def save_config(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Hand the loggers the whole config as hyperparameters."""
        dump: Any = self.parser.dump(self.config, skip_none=False, format="json")
        for logger in trainer.loggers:
            logger.log_hyperparams({"config": json.loads(dump)})


def _new_run_dir(root: Path, name: str, label: str) -> Path:
    """A directory that nobody had before, created."""
    if given := os.environ.get(RUN_DIR):
        return Path(given)
    stem = f"{datetime.now():%Y%m%d-%H%M%S}-{label}"
    for attempt in range(1000):
        path = root / name / (stem if attempt == 0 else f"{stem}.{attempt}")
        try:
            path.mkdir(parents=True)
        except FileExistsError:
            continue
        os.environ[RUN_DIR] = str(path)
        return path
    raise RuntimeError(f"a thousand runs started within one second under {root / name}")


class AdaptiveCLI(LightningCLI):
    """LightningCLI in subclass mode, with the additions named above."""

    def __init__(self, args: ArgsType = None) -> None:
        os.environ.pop(RUN_DIR, None) if "LOCAL_RANK" not in os.environ else None
        super().__init__(
            model_class=LightningModule,
            datamodule_class=LightningDataModule,
            subclass_mode_model=True,
            subclass_mode_data=True,
            auto_configure_optimizers=False,
            save_config_callback=SaveConfig,
            save_config_kwargs={"overwrite": True},
            seed_everything_default=0,
            trainer_defaults={"use_distributed_sampler": False, "num_sanity_val_steps": 0},
            parser_kwargs={"version": f"lit-adaptive {__version__}"},
            args=args,
        )

    def init_parser(self, **kwargs: Any) -> LightningArgumentParser:
        """A parser whose errors are short, for the command and its subcommands."""
        self.parser_class = PlainParser
        return super().init_parser(**kwargs)

    def instantiate_classes(self) -> None:
        """Build all parts; what one of them refuses is told without the way it came."""
        try:
            super().instantiate_classes()
        except (ValueError, ModuleNotFoundError) as error:
            self.parser.error(str(cause(error)), error)

    def add_arguments_to_parser(self, parser: LightningArgumentParser) -> None:
        """One argument of our own: where runs go."""
        parser.add_argument("--runs", type=str, default="runs", help="Directory of all runs.")

    def _parse_ckpt_path(self) -> None:
        """Leave the config alone: a flag beside ``--ckpt_path`` wins over the checkpoint."""

    def _config_name(self, config: Namespace) -> str:
        files = config.get("config") or []
        if files:
            return Path(str(files[0])).stem
        return str(config.model.class_path).rsplit(".", 1)[-1].lower()

    def before_instantiate_classes(self) -> None:
        """Name the run; give it a CSV logger; refuse what cannot work."""
        config = self.config[str(self.subcommand)]
        trainer = config.trainer
        if trainer.use_distributed_sampler:
            self.parser.error(
                "trainer.use_distributed_sampler is true; it must be false, because Lightning's "
                "wrapper draws a whole epoch ahead and reorders it, which freezes a sampler that "
                "learns. The datamodules here give each rank its share themselves: drop the flag"
            )
        _refuse_unreadable(self.parser, config.get("ckpt_path"))
        self.run_dir: Path | None = None
        if trainer.fast_dev_run:
            return
        name = self._config_name(config)
        label = f"{config.seed_everything}"
        if self.subcommand != "fit":
            label += f"-{self.subcommand}"
        self.run_dir = _new_run_dir(Path(config.runs), name, label)
        if trainer.default_root_dir is None:
            trainer.default_root_dir = str(self.run_dir)
        for logger in _as_list(trainer.logger):
            spec = logger.get("init_args") if isinstance(logger, Namespace) else None
            if spec is not None and spec.get("save_dir", "") in {".", None}:
                spec.save_dir = str(self.run_dir)

    def instantiate_trainer(self, **kwargs: Any) -> Trainer:
        """The trainer, with a CSV logger before all others."""
        if self.run_dir is not None:
            own = CSVLogger(self.run_dir.parent.parent, self.run_dir.parent.name, self.run_dir.name)
            given = self._get(self.config_init, "trainer").get("logger")
            others = [each for each in _as_list(given) if isinstance(each, Logger)]
            kwargs["logger"] = [own, *others]
        return super().instantiate_trainer(**kwargs)

    def after_fit(self) -> None:
        """Say where everything is."""
        if self.run_dir is not None and self.trainer.is_global_zero:
            print(f"{_best(self.trainer)}\nrun directory: {self.run_dir}")

    def before_fit(self) -> None:
        """Refuse parts that do not fit together."""
        parts = [self.model, self.datamodule, *self.trainer.callbacks]  # type: ignore[attr-defined]
        if lines := unmet_needs(parts):
            self.parser.error("these parts do not fit together:\n  " + "\n  ".join(lines))


def _best(trainer: Trainer) -> str:
    """What the first checkpoint callback that watches something found, in words."""
    for callback in trainer.checkpoint_callbacks:
        score = getattr(callback, "best_model_score", None)
        if score is not None:
            monitor: Any = callback
            return f"best {monitor.monitor} {float(score):g} in {monitor.best_model_path}"
    return "no monitored checkpoint"


def _refuse_unreadable(parser: LightningArgumentParser, checkpoint: str | None) -> None:
    """Say so before anything is built if a checkpoint file cannot be read."""
    if checkpoint is None or not Path(checkpoint).is_file():
        return  # a sharded one is a directory; "last", "best" and remote ones are Lightning's
    try:
        torch.load(checkpoint, map_location="cpu", weights_only=True, mmap=True)
    except (pickle.UnpicklingError, RuntimeError, EOFError, ValueError) as error:
        why = str(error).splitlines()[0]
        parser.error(
            f"{checkpoint} is not a checkpoint that can be resumed ({why}): it is damaged, or "
            "holds more than tensors and plain values (weights-only loading refuses that): "
            "take another"
        )


def _as_list(value: Any) -> list[Any]:
    if value is None or isinstance(value, bool):
        return []
    return list(value) if isinstance(value, (list, tuple)) else [value]


def main(args: ArgsType = None) -> None:
    """Run the command line."""
    for noise in (
        r"Experiment logs directory .* exists and is not empty",  # the config lies there already
        r"`isinstance\(treespec, LeafSpec\)` is deprecated",  # Lightning's own business
        r"The '.*_dataloader' does not have many workers",  # a replay is drawn when it is asked for
        r"LightningCLI's args parameter is intended to run",  # main(args) is meant for that
    ):
        warnings.filterwarnings("ignore", message=noise)
    AdaptiveCLI(args)


if __name__ == "__main__":
    main()
