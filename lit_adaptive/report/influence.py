"""Which families of samples each phase of an influence-guided run trained on."""

from collections import Counter
from pathlib import Path
from typing import TYPE_CHECKING

from lit_adaptive.files import write_atomically

if TYPE_CHECKING:
    from matplotlib.figure import Figure

_LARGEST = 12  # families with a color of their own


def families_figure(phases: list[list[str]], every: int, first: int = 0) -> "Figure":
    """Shares of the families in the selection of each phase, stacked.

    Args:
        phases: the family of each selected sample, phase by phase, none empty.
        every: steps of a phase.
        first: step of the first selection.
    """
    from matplotlib import colormaps
    from matplotlib.figure import Figure

    total = Counter(name for phase in phases for name in phase)
    names = [name for name, _ in total.most_common(_LARGEST)]
    figure = Figure(figsize=(7, 4), layout="constrained")
    axes = figure.subplots()
    start = [first + number * every for number in range(len(phases))]
    bottom = [0.0] * len(phases)
    for number, name in enumerate([*names, "others"]):
        share = [
            sum(one == name if name in names else one not in names for one in phase) / len(phase)
            for phase in phases
        ]
        if name == "others" and not any(share):
            continue
        color = "lightgray" if number == len(names) else colormaps["tab20"](number)
        axes.bar(start, share, every, bottom, align="edge", color=color, label=name, edgecolor="w")
        bottom = [low + high for low, high in zip(bottom, share, strict=True)]
    axes.set_xlim(first, first + len(phases) * every)
    axes.set_ylim(0, 1)
    axes.set_xlabel("step")
    axes.set_ylabel("share of the selected")
    figure.legend(loc="outside right upper", fontsize="small")
    return figure


def draw_families(phases: list[list[str]], every: int, path: Path, first: int = 0) -> None:
    """Write ``families_figure`` to a ``.png`` file."""
    with write_atomically(path) as temporary:
        families_figure(phases, every, first).savefig(temporary, format="png", dpi=150)
