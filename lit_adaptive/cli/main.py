"""``lit-adaptive fit | validate | test | predict | collect``, and commands without a trainer.

It adds to LightningCLI:
  1. A unique directory ``runs/<config name>/<time>-<seed>`` with CSV metrics, config, checkpoints.
  2. ``use_distributed_sampler`` is false, and true is rejected: Lightning's wrapper would freeze a
     sampler that learns.
  3. Options on the command line override the hyperparameters of ``--ckpt_path``.
  4. Parts that do not fit together are rejected before training (``contract``).
  5. Callbacks that tell a sampler what it does not learn are left out, with a warning.
  6. Errors in a config are reported in a few lines (``cli.errors``).
"""

import atexit
import errno
import json
import math
import os
import pickle
import re
import shutil
import sys
import tempfile
import warnings
from datetime import datetime
from itertools import chain
from pathlib import Path
from typing import Any, cast

# Lightning uses features of jsonargparse that are deprecated; users cannot act on the warnings.
os.environ.setdefault("JSONARGPARSE_DEPRECATION_WARNINGS", "off")

import torch
from gymnasium.error import DependencyNotInstalled
from jsonargparse import Namespace
from lightning.fabric.utilities.exceptions import MisconfigurationException
from lightning.pytorch import LightningDataModule, LightningModule, Trainer
from lightning.pytorch.accelerators import CUDAAccelerator, MPSAccelerator
from lightning.pytorch.cli import (
    ArgsType,
    LightningArgumentParser,
    LightningCLI,
    SaveConfigCallback,
)
from lightning.pytorch.loggers import CSVLogger, Logger
from lightning.pytorch.loggers.csv_logs import ExperimentWriter
from lightning.pytorch.utilities import rank_zero_only, rank_zero_warn
from torch.utils._pytree import tree_flatten_with_path

import callbacks
from lit_adaptive import __version__, data, modules, samplers
from lit_adaptive.cli.checkpoints import (
    ResumedMetrics,
    ResumedOptions,
    best_checkpoint,
    continue_metrics,
    newest_checkpoint,
)
from lit_adaptive.cli.collect import CollectingTrainer
from lit_adaptive.cli.compare import compare, compare_parser
from lit_adaptive.cli.doctor import doctor, doctor_parser
from lit_adaptive.cli.errors import ShortErrorParser, raised_by_package, root_cause
from lit_adaptive.cli.export import export, export_parser
from lit_adaptive.cli.inspect import inspect, inspect_parser
from lit_adaptive.cli.report import report, report_parser
from lit_adaptive.contract import unmet_needs
from lit_adaptive.files import write_atomically
from lit_adaptive.sharded import check_sharded_checkpoint, check_sums

RUN_DIR = "LIT_ADAPTIVE_RUN_DIR"
"""Environment variable by which rank 0 passes the run directory to the processes it starts."""

PACKAGES = (callbacks, data, modules, samplers)
"""Imported so that the parser accepts their classes by short names."""

if not hasattr(callbacks, "PriorityRefresh"):
    raise ImportError(
        f"another package named 'callbacks' hides lit-adaptive's: {callbacks.__file__}; "
        "remove it from the Python path, or install lit-adaptive in an environment of its own"
    )


class SaveConfig(SaveConfigCallback):
    """Writes the config into the run directory, and into every logger."""

    def save_config(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Log the config as hyperparameters."""
        dump: Any = self.parser.dump(self.config, skip_none=False, format="json")
        for logger in trainer.loggers:  # _RunLogger leaves it out, as the run directory has it
            logger.log_hyperparams({"config": json.loads(dump)})


class _RunLogger(CSVLogger):
    """Writes ``metrics.csv``, but no ``hparams.yaml`` beside the ``config.yaml``."""

    def log_hyperparams(self, params: Any = None) -> None:
        """Nothing."""

    @rank_zero_only
    def save(self) -> None:
        """Write the metrics; where the columns change, which rewrites the file, all or nothing."""
        writer = cast("ExperimentWriter", self.experiment)
        metrics_only: Any = super(ExperimentWriter, writer)
        file = Path(writer.metrics_file_path)
        new = {*chain.from_iterable(writer.metrics)} - {*writer.metrics_keys}
        if not (new and file.is_file()):
            metrics_only.save()
            return
        with write_atomically(file) as temporary:
            shutil.copyfile(file, temporary)
            writer.metrics_file_path = str(temporary)
            try:
                metrics_only.save()
            finally:
                writer.metrics_file_path = str(file)


def _new_run_dir(root: Path, name: str, label: str) -> Path:
    """Create a new directory, or return that of rank 0."""
    if existing := os.environ.get(RUN_DIR):
        return Path(existing)
    stem = f"{datetime.now():%Y%m%d-%H%M%S}-{label}"
    if rank_zero_only.rank > 0:  # type: ignore[attr-defined]
        return root / name / stem  # of a process that torchrun or SLURM started: rank 0's is used
    for attempt in range(1000):
        path = root / name / (stem if attempt == 0 else f"{stem}.{attempt}")
        try:
            path.mkdir(parents=True)
        except FileExistsError:
            continue
        os.environ[RUN_DIR] = str(path)
        return path
    raise RuntimeError(
        f"1000 runs started within one second in {root / name}; choose another --runs"
    )


class AdaptiveCLI(LightningCLI):
    """LightningCLI in subclass mode, with the additions listed above."""

    def __init__(self, args: ArgsType = None) -> None:
        if "LOCAL_RANK" not in os.environ:
            os.environ.pop(RUN_DIR, None)
        super().__init__(
            model_class=LightningModule,
            datamodule_class=LightningDataModule,
            trainer_class=CollectingTrainer,
            subclass_mode_model=True,
            subclass_mode_data=True,
            auto_configure_optimizers=False,
            save_config_callback=SaveConfig,
            save_config_kwargs={"overwrite": True},
            seed_everything_default=0,
            trainer_defaults={"use_distributed_sampler": False, "num_sanity_val_steps": 0},
            parser_kwargs={"version": __version__, "prog": "lit-adaptive"},
            args=args,
        )

    @staticmethod
    def subcommands() -> dict[str, set[str]]:
        """Names of the subcommands, and the arguments that are not options."""
        collect = {"collect": {"model", "datamodule"}}
        return LightningCLI.subcommands() | collect

    def init_parser(self, **kwargs: Any) -> LightningArgumentParser:
        """Create a parser with short error messages, for the command and its subcommands."""
        self.parser_class = ShortErrorParser
        return super().init_parser(**kwargs)

    def setup_parser(self, *args: Any, **kwargs: Any) -> None:
        """Create the parser; commands that need no trainer are run by ``main``."""
        super().setup_parser(*args, **kwargs)
        parser = cast("ShortErrorParser", self.parser)
        for name, (_, make_parser) in COMMANDS.items():
            parser.add_command(name, make_parser())
        parser.add_completion()

    def _set_seed(self) -> None:
        seed = self.config[str(self.subcommand)].get("seed_everything")
        if not isinstance(seed, bool) and seed is not None and not 0 <= seed < 2**32:
            self.parser.error(f"seed_everything is {seed}; it must lie in [0, 2**32)")
        super()._set_seed()

    def instantiate_classes(self) -> None:
        """Build all parts; report an error of a part without its traceback."""
        if error := _device_error(self.config[str(self.subcommand)].trainer):
            self.parser.error(error)
        try:
            super().instantiate_classes()
        except (*_MEMORY_ERRORS, ModuleNotFoundError, MisconfigurationException) as cause:
            error = _memory_error(root_cause(cause), self.config[str(self.subcommand)])
            if error is None and isinstance(cause, RuntimeError):
                raise
            self.parser.error(error or str(root_cause(cause)), cause)

    def _run_subcommand(self, subcommand: str) -> None:
        """Run; report an error of the configuration that shows later without its traceback."""
        try:
            super()._run_subcommand(subcommand)
        except OSError as error:
            if error.errno not in (errno.ENOSPC, errno.EDQUOT):
                raise
            self.parser.error(
                f"{error.strerror}: free some space on the disk of {self.run_dir or Path.cwd()}, "
                "then go on with --ckpt_path last",
                error,
            )
        except (*_MEMORY_ERRORS, MisconfigurationException, DependencyNotInstalled) as error:
            if message := _memory_error(error, self.config[subcommand]):
                self.parser.error(message, error)
            known = isinstance(error, MisconfigurationException | DependencyNotInstalled)
            if known or (isinstance(error, ValueError) and raised_by_package(error)):
                self.parser.error(str(error), error)
            if not str(error).startswith("Error(s) in loading state_dict"):
                raise
            lines = [line.strip() for line in str(error).splitlines()[1:4]]
            self.parser.error(
                f"{self.config[subcommand].get('ckpt_path')} is not a checkpoint of this model and "
                "environment: use the config of its run (config.yaml in the run directory), or "
                "leave --ckpt_path out\n  " + "\n  ".join(lines),
                error,
            )
        except Exception as error:
            if not type(error).__module__.startswith("wandb.errors"):
                raise
            reason = next((line for line in str(error).splitlines() if "<no" not in line), "")
            self.parser.error(
                f"Weights & Biases cannot be used: {reason or 'it does not answer'}\n"
                "log in with `wandb login`, or set WANDB_MODE=offline, which needs no network, and "
                "upload the run later with `wandb sync`",
                error,
            )

    def add_arguments_to_parser(self, parser: LightningArgumentParser) -> None:
        """Add ``--runs`` and ``--help.all``; let no option but ``--config`` read a file."""
        assert isinstance(parser, ShortErrorParser)
        parser.add_complete_help()
        parser.keep_paths()
        parser.add_argument("--runs", type=str, default="runs", help="Directory of all runs.")

    def _parse_ckpt_path(self) -> None:
        """Ignore the hyperparameters of the checkpoint: command-line options take precedence."""

    def _config_name(self, config: Namespace) -> str:
        files = config.get("config") or []
        if files:
            return Path(str(files[0])).stem
        return str(config.model.class_path).rsplit(".", 1)[-1].lower()

    def before_instantiate_classes(self) -> None:
        """Validate the config, create the run directory, and direct loggers to it."""
        config = self.config[str(self.subcommand)]
        trainer = config.trainer
        if trainer.use_distributed_sampler:
            self.parser.error(
                "trainer.use_distributed_sampler is true; it must be false, because Lightning's "
                "wrapper draws an epoch ahead and reorders it, which freezes a sampler that "
                "learns. The datamodules give each rank its share themselves: remove the option"
            )
        if error := _integer_error(config) or _trainer_error(trainer):
            self.parser.error(error)
        name = self._config_name(config)
        if config.get("ckpt_path") in ("last", "best"):
            config.ckpt_path = self._newest_checkpoint(Path(config.runs) / name, config.ckpt_path)
        for path in _sampler_seeds(config.get("data")):
            self.parser.error(
                f"{path} has no effect, because the datamodule seeds its sampler: set data.seed or "
                "seed_everything"
            )
        _check_checkpoint(self.parser, config.get("ckpt_path"))
        self.run_dir: Path | None = None
        if trainer.fast_dev_run:
            if trainer.default_root_dir is None:  # pictures of callbacks go there
                trainer.default_root_dir = tempfile.mkdtemp()
                atexit.register(shutil.rmtree, trainer.default_root_dir, ignore_errors=True)
            return
        label = f"{config.seed_everything}"
        if self.subcommand != "fit":
            label += f"-{self.subcommand}"
        try:
            self.run_dir = _new_run_dir(Path(config.runs), name, label)
        except OSError as cause:
            self.parser.error(
                f"runs is {config.runs}, where no run directory can be created ({cause}): set "
                "--runs to a writable folder",
                cause,
            )
        if trainer.default_root_dir is None:
            trainer.default_root_dir = str(self.run_dir)
        for logger in _as_list(trainer.logger):
            spec = logger.get("init_args") if isinstance(logger, Namespace) else None
            if spec is not None and spec.get("save_dir", "") in {".", None}:
                spec.save_dir = str(self.run_dir)

    def _newest_checkpoint(self, runs: Path, which: str) -> str:
        """The newest state of the newest run, or the best checkpoint so far of that run."""
        path = newest_checkpoint(runs)
        if path is None:
            self.parser.error(
                f"--ckpt_path is {which}, but no run in {runs} has a checkpoint "
                "(RUN/checkpoints/last.ckpt): give the path of a checkpoint, or leave the option "
                "out to start a new run"
            )
        if which == "best":
            _check_checkpoint(self.parser, str(path))
            last, path = path, best_checkpoint(path)
            if path is None:
                self.parser.error(
                    f"--ckpt_path is best, but {last} knows of no checkpoint that a monitor chose: "
                    "add lightning.pytorch.callbacks.ModelCheckpoint with a monitor to the "
                    "training's trainer.callbacks, or use last"
                )
        print(f"checkpoint: {path}")
        return str(path)

    def instantiate_trainer(self, **kwargs: Any) -> Trainer:
        """Build the trainer with a CSV logger before all others, and ``NewestCheckpoint``.

        ``logger: false`` and ``barebones`` leave the loggers out, ``barebones`` and
        ``enable_checkpointing: false`` the checkpoints.
        """
        config = self._get(self.config_init, "trainer")
        saves = config.get("enable_checkpointing") is not False and not config.get("barebones")
        if self.subcommand == "fit":
            config.callbacks = self._without_feedback(_as_list(config.get("callbacks")))
            if saves:
                config.callbacks[:0] = [ResumedOptions(), ResumedMetrics()]
                if not any(isinstance(c, callbacks.NewestCheckpoint) for c in config.callbacks):
                    config.callbacks.append(callbacks.NewestCheckpoint())
        logs = config.get("logger") is not False and not config.get("barebones")
        if self.run_dir is not None and logs:
            folder = self.run_dir
            csv = _RunLogger(folder.parent.parent, folder.parent.name, folder.name)
            configured = _as_list(config.get("logger"))
            loggers = [logger for logger in configured if isinstance(logger, Logger)]
            kwargs["logger"] = [csv, *loggers]
        return super().instantiate_trainer(**kwargs)

    def _without_feedback(self, parts: list[Any]) -> list[Any]:
        """Leave out callbacks that only tell the sampler what it does not learn or follow.

        So ``--data.sampler UniformSampler`` alone makes a baseline of an adaptive run.
        """
        kept: list[Any] = []
        provided: frozenset[str] = getattr(self.datamodule, "provides", frozenset())
        for part in parts:
            duties: frozenset[str] = getattr(part, "provides", frozenset())
            needs: frozenset[str] = getattr(part, "needs", frozenset())
            unmet = needs & {"data.update", "data.advance"} - provided
            if unmet and duties <= {"duty.feedback", "duty.progress"}:
                sampler = type(getattr(self.datamodule, "sampler", self.datamodule)).__name__
                does = "learn" if "data.update" in unmet else "follow the training's progress"
                rank_zero_warn(f"{type(part).__name__} is left out: {sampler} does not {does}")
            else:
                kept.append(part)
        return kept

    def after_fit(self) -> None:
        """Print why the training ended, the best checkpoint and the run directory."""
        if self.run_dir is not None and self.trainer.is_global_zero:
            print(f"{_ending(self.trainer)}\n{_best(self.trainer)}\nrun directory: {self.run_dir}")

    def _print_run_dir(self) -> None:
        if self.run_dir is not None and self.trainer.is_global_zero:
            print(f"run directory: {self.run_dir}")

    after_validate = after_test = after_predict = _print_run_dir

    def before_fit(self) -> None:
        """Reject parts that do not fit together; continue the metrics of a resumed run."""
        parts = [self.model, self.datamodule, *self.trainer.callbacks]  # type: ignore[attr-defined]
        lines = unmet_needs(parts)
        if isinstance(self.datamodule, data.SampledDataModule):
            lines += self.datamodule.trainer_errors(self.trainer)
        if lines:
            self.parser.error("these parts do not fit together:\n  " + "\n  ".join(lines))
        checkpoint = self.config[str(self.subcommand)].get("ckpt_path")
        logger = self.trainer.logger
        resumed = checkpoint and Path(checkpoint).exists() and self.trainer.is_global_zero
        if resumed and self.run_dir is not None and isinstance(logger, CSVLogger):
            continue_metrics(Path(checkpoint), logger)


def _ending(trainer: Trainer) -> str:
    """Number of steps, and the limit or callback that ended the training."""
    limits = {"max_steps": trainer.max_steps, "max_epochs": trainer.max_epochs or -1}
    done = {"max_steps": trainer.global_step, "max_epochs": trainer.current_epoch}
    reasons = [
        f"{type(part).__name__}: {part.stopping_reason_message}"
        for part in trainer.callbacks  # type: ignore[attr-defined]
        if getattr(part, "stopping_reason_message", None)
    ]
    reasons += [
        f"trainer.{name} is {limit}" for name, limit in limits.items() if 0 <= limit <= done[name]
    ]
    reason = next(iter(reasons), "a callback or signal stopped it, or max_time passed")
    return f"ended after {trainer.global_step} steps: {reason}"


def _best(trainer: Trainer) -> str:
    """Best score and path of the first checkpoint callback with a monitor."""
    for callback in trainer.checkpoint_callbacks:
        score = getattr(callback, "best_model_score", None)
        if score is not None:
            monitor: Any = callback
            return f"best {monitor.monitor} {float(score):g} in {monitor.best_model_path}"
    return "no monitored checkpoint"


def _check_checkpoint(parser: LightningArgumentParser, checkpoint: str | None) -> None:
    """Reject an unreadable checkpoint before anything is built."""
    if checkpoint is None or "://" in checkpoint:
        return  # Lightning resolves it
    if not Path(checkpoint).exists():
        parser.error(f"--ckpt_path is {checkpoint}, which does not exist: correct the path")
    try:
        if Path(checkpoint).is_dir():
            check_sharded_checkpoint(Path(checkpoint))
        else:
            torch.load(checkpoint, map_location="cpu", weights_only=True, mmap=True)
        if rank_zero_only.rank == 0:  # type: ignore[attr-defined]
            check_sums(Path(checkpoint))
    except (pickle.UnpicklingError, RuntimeError, EOFError, ValueError, OSError) as error:
        reason = str(error).splitlines()[0]
        parser.error(
            f"{checkpoint} cannot be loaded ({reason}): it is damaged, or holds more than tensors "
            "and Python primitives, which weights-only loading rejects: choose another checkpoint"
        )


_LEAST = {
    "accumulate_grad_batches": 1,
    "check_val_every_n_epoch": 1,
    "log_every_n_steps": 0,
    "min_epochs": 0,
    "min_steps": 0,
    "num_sanity_val_steps": -1,
}
"""Least values of the trainer's options that Lightning does not check."""


def _trainer_error(trainer: Namespace) -> str | None:
    """What Lightning accepts without a word, or answers with a traceback."""
    for name, least in _LEAST.items():
        value = trainer[name]
        if value is not None and value < least:
            return f"trainer.{name} is {value}; it must be at least {least}"
    clip, interval = trainer.gradient_clip_val, trainer.val_check_interval
    if clip is not None and not 0 <= clip < math.inf:
        return (
            f"trainer.gradient_clip_val is {clip}; it must be above 0 and finite, or 0 or null for "
            "no clipping"
        )
    if isinstance(interval, (int, float)) and not interval > 0:
        return f"trainer.val_check_interval is {interval}; it must be above 0, or null for 1.0"
    accelerator, devices = trainer.accelerator, str(trainer.devices)
    if re.fullmatch(r"0|-\d+", devices) and (accelerator == "cpu" or devices != "-1"):
        return f"trainer.devices is {devices}; it must be above 0, auto, or on GPUs -1 for all"
    return None


_MEMORY_ERRORS = (MemoryError, RuntimeError, ValueError)
"""What NumPy and torch raise for an array that is too large, and for much else."""

_TOO_LARGE = re.compile(
    r"(can't|Unable to) allocate|CUDA out of memory|Storage size calculation overflowed"
    r"|Maximum allowed (size|dimension) exceeded|cannot be represented as a SymInt"
)


def _memory_error(error: BaseException, config: Namespace) -> str | None:
    """For an array that does not fit into the memory: the option that is likely to blame."""
    if not isinstance(error, MemoryError) and not _TOO_LARGE.search(str(error)):
        return None
    path, value = max(_integers(config), key=lambda item: item[1])
    return (
        f"out of memory: {next(iter(str(error).splitlines()), 'no reason given')}\n"
        f"the greatest number in the config is {path}={value}: lower it, or sizes beside it"
    )


def _integers(config: Namespace) -> list[tuple[str, int]]:
    """Path and value of each integer of a config."""
    leaves = tree_flatten_with_path(config.as_dict())[0]
    return [
        (".".join(str(getattr(key, "key", getattr(key, "idx", key))) for key in path), value)
        for path, value in leaves
        if isinstance(value, int) and not isinstance(value, bool)
    ]


def _integer_error(config: Namespace) -> str | None:
    """An integer of more than 64 bits, which neither torch nor NumPy has."""
    for path, value in _integers(config):
        if not -(2**63) <= value < 2**63:
            return f"{path} is {value}; an integer must lie in [-2**63, 2**63)"
    return None


def _device_error(trainer: Namespace) -> str | None:
    """A GPU that this machine lacks."""
    accelerator = trainer.accelerator
    if accelerator in _GPUS and not any(each.is_available() for each in _GPUS[accelerator]):
        return (
            f"trainer.accelerator is {accelerator}, but PyTorch finds no such device on this "
            "machine: set it to cpu or auto (configs/trainer/gpu.yaml sets gpu), or install a "
            "PyTorch that supports the device"
        )
    return None


_GPUS = {
    "cuda": (CUDAAccelerator,),
    "mps": (MPSAccelerator,),
    "gpu": (CUDAAccelerator, MPSAccelerator),
}


def _sampler_seeds(data_config: Any) -> list[str]:
    """Options ``seed`` of the samplers in the datamodule's config, other than the default 0."""
    if not isinstance(data_config, Namespace):
        return []
    options: Any = data_config.as_dict().get("init_args") or {}
    stack: list[tuple[str, Any]] = [("data.sampler", options.get("sampler"))]
    paths: list[str] = []
    while stack:
        path, node = stack.pop()
        if isinstance(node, dict):
            if node.get("class_path"):
                options = node.get("init_args") or {}
                paths += [f"{path}.seed"] if options.get("seed") else []
                stack += [(f"{path}.{name}", value) for name, value in options.items()]
        elif isinstance(node, list):
            stack += [(f"{path}[{place}]", item) for place, item in enumerate(node)]
    return paths


def _as_list(value: Any) -> list[Any]:
    if value is None or isinstance(value, bool):
        return []
    return list(value) if isinstance(value, (list, tuple)) else [value]


COMMANDS = {
    "compare": (compare, compare_parser),
    "report": (report, report_parser),
    "inspect": (inspect, inspect_parser),
    "export": (export, export_parser),
    "doctor": (doctor, doctor_parser),
}
"""Commands that need no trainer: what runs each, and what makes its parser."""


def _module_folders(arguments: list[str]) -> list[str]:
    """Folders where class paths are looked up last: those of the configs, and the present one."""
    names = [argument.rpartition("=")[2] for argument in arguments]
    configs = [Path(name) for name in names if name.endswith((".yaml", ".yml"))]
    folders = [str(folder.resolve()) for folder in (*(file.parent for file in configs), Path())]
    return [folder for folder in dict.fromkeys(folders) if folder not in sys.path]


def main(args: ArgsType = None) -> None:
    """Run the command line."""
    arguments = sys.argv[1:] if args is None else args
    if isinstance(arguments, list):
        sys.path += _module_folders(arguments)
        if arguments and arguments[0] in COMMANDS:
            run, _ = COMMANDS[arguments[0]]
            run(arguments[1:])
            return
    for warning in (
        r"Experiment logs directory .* exists and is not empty",  # the config is written first
        r"`isinstance\(treespec, LeafSpec\)` is deprecated",  # internal to Lightning
        r"The '.*_dataloader' does not have many workers",  # a replay is sampled on demand
        r"LightningCLI's args parameter is intended to run",  # main(args) is for scripts and tests
    ):
        warnings.filterwarnings("ignore", message=warning)
    AdaptiveCLI(args)


if __name__ == "__main__":
    main()
