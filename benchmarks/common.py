"""Parts that the benchmarks share: options, result files, intervals, clocks and processes."""

import argparse
import itertools
import json
import logging
import math
import platform
import resource
import statistics
import time
import warnings
from collections.abc import Callable, Sequence
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from pathlib import Path
from typing import Any, NamedTuple, TypeVar

import torch
from scipy import stats

T = TypeVar("T")
RESULTS = Path(__file__).parent / "results"


class Interval(NamedTuple):
    """A mean and its 95 % t-interval, ``mean - half_width`` to ``mean + half_width``."""

    mean: float
    half_width: float

    @property
    def excludes_zero(self) -> bool:
        return abs(self.mean) > self.half_width

    def __format__(self, spec: str) -> str:
        """The mean with its sign and the half width, each with the number format ``spec``."""
        return f"{self.mean:+{spec}} ± {self.half_width:{spec}}"


def t_interval(values: Sequence[float]) -> Interval:
    """95 % t-interval of a mean; the half width is NaN for a single value."""
    mean = statistics.fmean(values)
    if len(values) < 2:
        return Interval(mean, math.nan)
    error = statistics.stdev(values) / math.sqrt(len(values))
    return Interval(mean, float(stats.t.ppf(0.975, len(values) - 1)) * error)


def paired_t_interval(values: Sequence[float], baseline: Sequence[float]) -> Interval:
    """95 % t-interval of the mean difference ``values - baseline``, paired by position (seed)."""
    return t_interval([a - b for a, b in zip(values, baseline, strict=True)])


class HelpFormatter(argparse.RawDescriptionHelpFormatter, argparse.ArgumentDefaultsHelpFormatter):
    """Shows the description as it is written, and the default of each option."""


def argument_parser(description: str | None) -> argparse.ArgumentParser:
    """A parser with the option ``--out``."""
    parser = argparse.ArgumentParser(description=description, formatter_class=HelpFormatter)
    parser.add_argument("--out", type=Path, default=RESULTS, help="folder for results")
    return parser


def add_device(parser: argparse.ArgumentParser) -> None:
    """Add the option ``--device``."""
    parser.add_argument("--device", choices=["cpu", "cuda"], default="cpu", help="where it runs")


def write_results(folder: Path, name: str, results: Any) -> None:
    """Write ``results`` to the JSON file ``folder/name``."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / name).write_text(json.dumps(results, indent=1) + "\n")


def read_results(folder: Path, name: str) -> dict[str, Any]:
    """Results of an earlier run; empty without one."""
    file = folder / name
    results: dict[str, Any] = json.loads(file.read_text()) if file.exists() else {}
    return results


def versions() -> dict[str, str]:
    """Machine type and torch version, for the result file."""
    return {"machine": platform.machine(), "torch": torch.__version__}


def peak_bytes(device: str = "cpu") -> int:
    """Largest resident set of this process so far, or on a GPU the most PyTorch had allocated."""
    if device == "cuda":
        return torch.cuda.max_memory_allocated()
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


def seconds_per_call(
    function: Callable[[], object], calls: int = 1, rounds: int = 9
) -> list[float]:
    """Mean seconds of a call in each of ``rounds`` of ``calls``, after a round of warm-up."""
    seconds: list[float] = []
    for _ in range(rounds + 1):
        start = time.perf_counter()
        for _ in range(calls):
            function()
        seconds.append((time.perf_counter() - start) / calls)
    return seconds[1:]


class StepClock:
    """Records when training steps end."""

    def __init__(self) -> None:
        self.ends: list[float] = []

    def mark(self, *_: Any, **__: Any) -> None:
        """Record the end of a step; accepts the arguments of any training hook."""
        if torch.cuda.is_available():
            torch.cuda.synchronize()
        self.ends.append(time.perf_counter())

    def median_seconds(self, skip: int) -> float:
        """Median time from the end of a step to that of the next, without the first ``skip``."""
        return statistics.median(b - a for a, b in itertools.pairwise(self.ends[skip:]))

    def lightning_callback(self) -> Any:
        """A Lightning callback that marks every training batch."""
        from lightning.pytorch.callbacks import LambdaCallback

        return LambdaCallback(on_train_batch_end=self.mark)

    def transformers_callback(self) -> Any:
        """A callback for trainers of Transformers and TRL that marks every step."""
        from transformers import TrainerCallback

        mark = self.mark

        class StepEnd(TrainerCallback):
            def on_step_end(self, *_: Any, **__: Any) -> None:
                mark()

        return StepEnd()


def quiet_trainer(device: str = "cpu", **options: Any) -> Any:
    """A Lightning ``Trainer`` on one device that logs, saves and prints nothing."""
    from lightning.pytorch import Trainer

    return Trainer(
        accelerator=device,
        devices=1,
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        use_distributed_sampler=False,
        **options,
    )


def silence() -> None:
    """Hide warnings and Lightning's messages in this process."""
    warnings.filterwarnings("ignore")
    logging.getLogger("lightning.pytorch").setLevel(logging.ERROR)


def run_in_process(function: Callable[..., T], *arguments: Any) -> T:
    """Result of ``function(*arguments)`` in a new process, so that its peak memory is its own."""
    with ProcessPoolExecutor(1, mp_context=get_context("spawn")) as pool:
        return pool.submit(function, *arguments).result()


def run_seeds(function: Callable[[int], T], seeds: int, jobs: int) -> list[T]:
    """Results of ``function`` for each seed below ``seeds``, in ``jobs`` processes at once."""
    with ProcessPoolExecutor(jobs, mp_context=get_context("spawn")) as pool:
        return list(pool.map(function, range(seeds)))


def plot_curves(results: dict[str, Any], label: str, file: Path) -> None:
    """Mean accuracy of each method against steps, tokens and seconds, as far as all seeds go."""
    import numpy as np
    from matplotlib import pyplot as plt
    from matplotlib.ticker import EngFormatter

    axis_labels = {"step": "steps", "tokens": "generated tokens", "seconds": "CPU seconds"}
    figure, axes = plt.subplots(1, 3, figsize=(14, 4.5), layout="constrained", sharey=True)
    for number, name in enumerate(results["table"]):
        curves = [run[name]["curve"] for run in results["runs"]]
        points = range(min(map(len, curves)))
        means = {
            key: [float(np.mean([curve[i][key] for curve in curves])) for i in points]
            for key in curves[0][0]
        }
        style = "-" if number < 10 else "--"
        for axis, key in zip(axes, axis_labels, strict=True):
            axis.plot(means[key], means["accuracy"], style, label=name, color=f"C{number % 10}")
    for axis, text in zip(axes, axis_labels.values(), strict=True):
        axis.set_xlabel(text)
        axis.xaxis.set_major_formatter(EngFormatter())
        axis.grid(alpha=0.3)
    axes[0].set_ylabel(label)
    axes[0].legend(fontsize=7)
    figure.savefig(file, dpi=110)
    plt.close(figure)
