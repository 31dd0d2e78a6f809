"""Pass rates of the prompts of a run, and of those that were drawn."""

from pathlib import Path
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from lit_adaptive.files import write_atomically

if TYPE_CHECKING:
    from matplotlib.figure import Figure


def difficulty_figure(pool: list[Tensor], drawn: list[Tensor], every: int) -> "Figure":
    """Pass rates of the pool over time, as estimated, and above them those of the drawn groups.

    Args:
        pool: histograms ``[bins]`` of the estimated pass rates of all prompts, one per refresh.
        drawn: histograms ``[bins]`` of the observed pass rates of the groups of each step.
        every: steps between refreshes.
    """
    from matplotlib.figure import Figure
    from matplotlib.ticker import MaxNLocator

    figure = Figure(figsize=(7, 6), layout="constrained")
    panels = figure.subplots(2, 1, sharex=True)
    for axes, rows, width, title in (
        (panels[0], drawn, 1, "groups of each step, observed"),
        (panels[1], pool, every, "all prompts, estimated at each refresh"),
    ):
        counts = torch.stack(rows).T
        share = counts / counts.sum(0).clamp(min=1)
        image = axes.imshow(
            share.numpy(),
            origin="lower",
            aspect="auto",
            extent=(0, len(rows) * width, 0, 1),
            cmap="Blues",
            vmin=0,
        )
        axes.axhline(0.5, color="C1", linewidth=0.8)
        axes.set_title(title, fontsize="medium")
        axes.set_ylabel("pass rate")
        figure.colorbar(image, ax=axes, label="share")
    panels[0].set_xlim(0, len(drawn))
    panels[1].set_xlabel("step")
    panels[1].xaxis.set_major_locator(MaxNLocator(integer=True))
    return figure


def draw_difficulty(pool: list[Tensor], drawn: list[Tensor], every: int, path: Path) -> None:
    """Write ``difficulty_figure`` to a ``.png`` file."""
    with write_atomically(path) as temporary:
        difficulty_figure(pool, drawn, every).savefig(temporary, format="png", dpi=150)
