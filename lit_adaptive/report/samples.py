"""What a sampler did during a run, as a figure and a table.

    (a) mean draws per sample of each class        (b) draws against the last loss
    (c) the distribution over time: number of samples by relative probability N P(i)
    (d) the hardest samples (greatest last loss)   (e) the most drawn ones

Uniform sampling has relative probability 1. matplotlib is imported only to draw.
"""

import csv
import textwrap
import warnings
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple, TypeAlias

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

Array: TypeAlias = NDArray[Any]
Content: TypeAlias = "Array | str | None"
Fetch: TypeAlias = Callable[[int], object] | None

LOW, STEP, BINS = -6.0, 0.1, 121
"""Bins of log10 N P(i), centered at -6.0, -5.9, ..., 6.0; the outermost ones are open."""
COLUMNS = ("index", "class", "draws", "last_loss", "relative_probability")
MAX_BARS, MAX_POINTS, MAX_BINNED, PER_ROW, MAX_NUMBERS = 30, 5_000, 200_000, 8, 12
WIDTH, TOP, CELL = 14.0, 5.0, 1.7
"""Inches: width of the page, height of its upper panels, and side of a cell of its images."""


@dataclass(frozen=True)
class SampleRecord:
    """Statistics of ``N`` samples.

    Attributes:
        draws: ``[N]`` integers, number of times each sample was drawn.
        last_loss: ``[N]`` floats, its loss when it was last drawn; NaN if it never was.
        target: ``[N]`` integers, its class; negative if unknown.
        relative_probability: ``[N]`` floats, N P(i) now.
        epochs: ``[T]`` integers, completed epochs at each snapshot of the distribution, ascending.
        histogram: ``[T, BINS + 1]`` integers, the ``probability_histogram`` at each snapshot.
        classes: names of the classes by number, or None.

    Raises:
        ValueError: if the shapes do not fit.
    """

    draws: Tensor
    last_loss: Tensor
    target: Tensor
    relative_probability: Tensor
    epochs: Tensor
    histogram: Tensor
    classes: Sequence[str] | None = None

    def __post_init__(self) -> None:
        columns = (self.draws, self.last_loss, self.target, self.relative_probability)
        shapes = [list(column.shape) for column in (*columns, self.epochs, self.histogram)]
        n, t = len(self.draws), len(self.epochs)
        if shapes != [[n], [n], [n], [n], [t], [t, BINS + 1]]:
            raise ValueError(
                "draws, last_loss, target, relative_probability, epochs and histogram have the "
                f"shapes {shapes}; they must be four times [N], [T] and [T, {BINS + 1}]"
            )

    def __len__(self) -> int:
        return len(self.draws)


def probability_histogram(probability: Tensor) -> Tensor:
    """Numbers of samples by N P(i), from all probabilities ``[N]``: ``[BINS + 1]`` int64.

    Entry 0 counts the samples of probability 0, entry ``1 + b`` those in bin ``b``.
    """
    exponent = (probability.double() * len(probability)).log10()
    place = ((exponent - LOW) / STEP).round().clamp(0, BINS - 1).long() + 1
    return torch.where(probability > 0, place, 0).bincount(minlength=BINS + 1).cpu()


def class_name(classes: Sequence[str] | None, number: int) -> str:
    """Name of a class; its number if it has none, and "?" if it is unknown (negative)."""
    if number < 0:
        return "?"
    return str(number if classes is None or number >= len(classes) else classes[number])


def _greatest(record: SampleRecord, value: Tensor, k: int) -> Array:
    """Indices of the ``k`` drawn samples of greatest value, descending; ties by index."""
    drawn = np.flatnonzero(record.draws.numpy() > 0)
    order = np.argsort(-value.double().numpy()[drawn], kind="stable")
    return np.take(drawn, order[:k])


def hardest_samples(record: SampleRecord, k: int) -> Array:
    """Indices of the ``k`` drawn samples with the greatest last loss; NaN counts as infinite."""
    loss = record.last_loss
    return _greatest(record, torch.where(loss.isnan(), torch.inf, loss), k)


def most_drawn_samples(record: SampleRecord, k: int) -> Array:
    """Indices of the ``k`` samples drawn most often, at least once."""
    return _greatest(record, record.draws, k)


def write_sample_table(record: SampleRecord, out: Path) -> None:
    """Write one row per sample with ``COLUMNS`` as CSV.

    Floats have six digits; an unknown class and the loss of a sample never drawn are empty.
    """
    with out.open("w", newline="") as file:
        writer = csv.writer(file, lineterminator="\n")
        writer.writerow(COLUMNS)
        columns = (record.target, record.draws, record.last_loss, record.relative_probability)
        rows = zip(*(column.tolist() for column in columns), strict=True)
        for index, (target, draws, loss, relative) in enumerate(rows):
            writer.writerow(
                (
                    index,
                    class_name(record.classes, target) if target >= 0 else None,
                    draws,
                    f"{loss:.6g}" if draws else None,
                    f"{relative:.6g}",
                )
            )


def displayable(item: object) -> Content:
    """The part of a dataset's item that can be shown: an image, a text, or None.

    The first image or text of: a dictionary's ``image``, ``text`` and ``input``, then any other
    text; the first element of a sequence; the item itself. A vector of numbers, such as a row of a
    table, is written as text. Images are ``[H, W]``, ``[1, H, W]`` or
    ``[3, H, W]``, or ``[H, W, 3]`` as in NumPy and PIL; they are returned as floats in [0, 1].
    """
    parts: list[object] = [item]
    if isinstance(item, dict):
        parts = [item[key] for key in ("image", "text", "input") if key in item]
        parts += [part for part in item.values() if isinstance(part, str)]
    elif isinstance(item, (tuple, list)):
        parts = list(item[:1])
    contents = [part if isinstance(part, str) else _image(part) for part in parts]
    shown = [content for content in contents if content is not None]
    return shown[0] if shown else next(filter(None, map(_vector, parts)), None)


def _vector(part: Any) -> str | None:
    """The first numbers of a vector ``[F]``, or None."""
    if not isinstance(part, (Tensor, np.ndarray)) or part.ndim != 1 or len(part) == 0:
        return None
    if isinstance(part, np.ndarray) and part.dtype.kind not in "buif":
        return None
    values = [f"{value:.4g}" for value in part[:MAX_NUMBERS].tolist()]
    return "  ".join(values) + ("  …" if len(part) > MAX_NUMBERS else "")


def _image(part: Any) -> Array | None:
    """``[H, W]`` or ``[H, W, 3]`` floats in [0, 1], at most 256 pixels per side, or None.

    Bytes are divided by 255; values in [0, 1] stay; all others are scaled by their own range.
    """
    if isinstance(part, Tensor):
        part = (part.float() if part.is_floating_point() else part).numpy(force=True)
    elif not hasattr(part, "__array_interface__"):  # as NumPy arrays and PIL images have
        return None
    pixels: Array = np.asarray(part)
    if pixels.ndim == 3 and pixels.shape[0] in (1, 3):
        pixels = np.moveaxis(pixels, 0, -1)
    if pixels.ndim == 3 and pixels.shape[-1] == 1:
        pixels = pixels[..., 0]
    if pixels.shape[2:] not in ((), (3,)) or pixels.ndim < 2 or min(pixels.shape[:2]) < 2:
        return None
    if pixels.dtype.kind not in "buif":
        return None
    subsampled = tuple(slice(None, None, -(-side // 256)) for side in pixels.shape[:2])
    scale = 255.0 if pixels.dtype == np.uint8 else 1.0
    image = np.nan_to_num(pixels[subsampled].astype(np.float64), posinf=0.0, neginf=0.0) / scale
    low, high = float(image.min()), float(image.max())
    if low >= 0 and high <= 1:
        return image
    return (image - low) / (high - low) if high > low else np.full_like(image, 0.5)


class _Example(NamedTuple):
    """A sample as it is shown; strings are formatted."""

    sample: int
    target: str
    loss: str
    draws: int
    content: Content


def _example(record: SampleRecord, index: int, fetch: Fetch) -> _Example:
    content, target = None, int(record.target[index])
    with suppress(Exception):  # an unreadable item must not end a run
        content = displayable(fetch(index)) if fetch else None
    loss, draws = f"{float(record.last_loss[index]):.3g}", int(record.draws[index])
    name = single_line(class_name(record.classes, target), 20)
    return _Example(index, name, loss, draws, content)


def single_line(text: str, width: int) -> str:
    """One line of at most ``width`` characters, all of them printable."""
    head = text[: 4 * width]
    line = " ".join("".join(c if c.isprintable() else " " for c in head).split())
    return line if len(line) <= width and len(head) == len(text) else line[: width - 1] + "…"


def _set_titles(axes: "Axes", title: str, labels: tuple[str, str], remark: str = "") -> None:
    axes.set_title(title, fontsize=10, loc="left", pad=36)
    axes.annotate(
        textwrap.fill(remark, 64), (0, 1), (0, 34), xycoords="axes fraction",
        textcoords="offset points", va="top", fontsize=8, color="0.4",
    )  # fmt: skip
    axes.spines[["top", "right"]].set_visible(False)
    axes.set(xlabel=labels[0], ylabel=labels[1])
    axes.tick_params(labelsize=8)


def _write_centered(axes: "Axes", text: str) -> None:
    axes.set_axis_off()
    style: dict[str, Any] = {"ha": "center", "va": "center", "fontsize": 8, "color": "0.4"}
    axes.text(0.5, 0.5, text, transform=axes.transAxes, parse_math=False, **style)


def _colors(record: SampleRecord, target: Array) -> list[str]:
    """A color per class if there are at most ten, gray for unknown; else one color."""
    few = 0 <= int(record.target.max()) < 10
    return ["0.6" if few and c < 0 else f"C{c}" if few else "C0" for c in target]


def _draw_classes(axes: "Axes", record: SampleRecord) -> None:
    """(a): mean draws of all samples of each class, including those never drawn."""
    target, draws = record.target.numpy().clip(min=-1), record.draws.numpy()
    classes, place, size = np.unique(target, return_inverse=True, return_counts=True)
    if classes[-1] < 0:
        _draw_counts(axes, draws)
        return
    mean = np.bincount(place, weights=draws) / size
    remark = "at each bar: samples of the class" + ("; ?: class unknown" if classes[0] < 0 else "")
    at, few = np.arange(len(classes)), len(classes) <= 11
    if len(classes) > MAX_BARS:
        half = MAX_BARS // 2
        order = np.argsort(-mean, kind="stable")
        order = np.concatenate([order[:half], order[-half:]])
        remark = f"the {half} most and {half} least drawn of {len(classes):,}; {remark}"
        classes, size, mean = classes[order], size[order], mean[order]
        at = np.arange(MAX_BARS) + 2 * (np.arange(MAX_BARS) >= half)  # a gap between the two
    axes.bar(at, mean, color=_colors(record, classes), width=0.8)
    rotation = 0 if few else 90
    for x, y, n in zip(at, mean, size, strict=True):
        axes.annotate(
            f"{n:,}", (x, y), (0, 3), textcoords="offset points", ha="center", fontsize=7,
            rotation=rotation, bbox={"color": "white", "pad": 0.3},
        )  # fmt: skip
    average = float(draws.mean(dtype=np.float64))
    axes.axhline(average, color="0.3", linestyle="--", linewidth=1, zorder=0.5)
    axes.set_ylim(0, (1.15 if few else 1.3) * float(mean.max()) or 1)
    names = [single_line(class_name(record.classes, c), 12) for c in classes]
    rotation = rotation if max(map(len, names)) <= 4 else 90
    axes.set_xticks(at, names, rotation=rotation)
    title = f"(a) draws by class (dashed: mean of all, {average:.3g})"
    _set_titles(axes, title, ("class", "mean draws per sample"), remark)


def _draw_counts(axes: "Axes", draws: Array) -> None:
    """(a) without classes: number of samples by draws."""
    step = 1 + int(draws.max()) // 30  # 31 bars at most
    count = np.bincount(draws // step)
    axes.bar(step * np.arange(len(count)) + (step - 1) / 2, count, width=0.9 * step)
    axes.set_yscale("log" if len(draws) > 100 else "linear")
    if len(draws) <= 100:
        axes.locator_params(axis="y", integer=True, min_n_ticks=1)
    axes.locator_params(axis="x", integer=True, min_n_ticks=1)
    _set_titles(axes, "(a) samples by draws", ("draws", "samples"), "no class is known")


def _draw_losses(axes: "Axes", record: SampleRecord) -> None:
    """(b): a point per drawn sample or, for many samples, their number in each cell."""
    draws, loss = record.draws.numpy(), record.last_loss.double().numpy()
    drawn, remarks = draws > 0, list[str]()
    shown = np.flatnonzero(drawn & np.isfinite(loss))
    never, nonfinite = len(draws) - int(drawn.sum()), int(drawn.sum()) - len(shown)
    for count, reason in ((never, "never drawn"), (nonfinite, "of NaN or infinite loss")):
        remarks += [f"not shown: {count:,} {reason}"] * (count > 0)
    if len(shown) == 0:
        _write_centered(axes, "\n".join(["no finite loss was recorded", *remarks]))
        return
    if len(shown) > MAX_BINNED:
        remarks.append(f"shown: {MAX_BINNED:,} of {len(shown):,} at random")
        shown = shown[np.random.default_rng(0).integers(len(shown), size=MAX_BINNED)]
    x, y = loss[shown], draws[shown].astype(np.float64)
    xscale: Any = "log" if x.min() >= 0 and x.max() > 0 else "linear"
    yscale: Any = "log" if y.max() > 30 * np.median(y) else "linear"
    if xscale == "log" and (zeros := int((x == 0).sum())):
        x = np.maximum(x, x[x > 0].min() / 2)
        remarks.append(f"{zeros:,} of loss 0 at the left edge")
    if len(x) > MAX_POINTS:
        style: dict[str, Any] = {"gridsize": 40, "bins": "log", "mincnt": 1, "linewidths": 0.2}
        cells = axes.hexbin(x, y, xscale=xscale, yscale=yscale, **style)
        axes.figure.colorbar(cells, ax=axes, label="samples", pad=0.02).ax.tick_params(labelsize=8)
    else:
        color = _colors(record, record.target.numpy()[shown])
        remarks += ["colors as in (a)"] * (len(set(color)) > 1)
        axes.scatter(x, y, s=10, alpha=0.6, linewidths=0, c=color)
        axes.set(xscale=xscale, yscale=yscale)
    if yscale == "linear":
        axes.locator_params(axis="y", integer=True, min_n_ticks=1)
    _set_titles(axes, "(b) draws against the last loss", ("last loss", "draws"), "; ".join(remarks))


def _draw_distribution(axes: "Axes", record: SampleRecord) -> None:
    """(c): a column per snapshot, with a separate lowest row for samples of probability 0."""
    counts = record.histogram.numpy()
    if not counts.any():
        _write_centered(axes, "the distribution was not recorded")
        return
    used = np.flatnonzero(counts[:, 1:].any(0))
    low = max(0, min(int(used.min(initial=BINS)), 55) - 1)
    high = min(BINS, max(int(used.max(initial=0)), 65) + 2)
    zero = bool(counts[:, 0].any())
    body = counts[:, 1 + low : 1 + high]
    if zero:
        body = np.concatenate([counts[:, :1], np.zeros_like(counts[:, :2]), body], axis=1)
    bottom = LOW + (low - 0.5 - 3 * zero) * STEP
    at = record.epochs.numpy()
    x_edges = [at[0] - 0.5, *((at[1:] + at[:-1]) / 2), at[-1] + 0.5]
    y_edges = bottom + STEP * np.arange(body.shape[1] + 1)
    shown, vmax = np.ma.masked_equal(body.T, 0), max(2, int(body.max()))
    cells = axes.pcolormesh(x_edges, y_edges, shown, norm="log", vmin=1, vmax=vmax)
    axes.figure.colorbar(cells, ax=axes, label="samples", pad=0.02).ax.tick_params(labelsize=8)
    axes.axhline(0, color="0.3", linestyle="--", linewidth=1)
    step = 0.5 if high - low <= 50 else 1
    ticks = [t for t in np.arange(LOW, 6.1, step) if low <= (t - LOW) / STEP <= high - 1]
    names = [f"{float(f'{10**t:.2g}'):g}" for t in ticks]
    axes.set_yticks([bottom + STEP / 2, *ticks][not zero :], ["0", *names][not zero :])
    axes.locator_params(axis="x", integer=True, min_n_ticks=1)
    title, label = "(c) distribution over time (dashed: uniform)", "relative probability N·P(i)"
    _set_titles(axes, title, ("epochs completed", label))


def _write_lines(figure: "Figure", y: float, examples: list[_Example]) -> None:
    """Write a line per example, the first ``y`` inches above the bottom of the page."""
    lines = [f"{'index':>10}{'class':>10}{'last loss':>12}{'draws':>10}"]
    for index, target, loss, draws, content in examples:
        text = single_line(content, 150) if isinstance(content, str) else ""
        lines.append(f"{index:>10}{target:>10}{loss:>12}{draws:>10}   {text}")
    for row, line in enumerate(lines):
        figure.text(
            0, (y - 0.19 * row) / figure.get_figheight(), line, family="monospace", fontsize=8,
            va="top", parse_math=False, color="black" if row else "0.4",
        )  # fmt: skip


def _show_grid(figure: "Figure", y: float, examples: list[_Example]) -> None:
    """Draw a cell per example, the first row's top ``y`` inches above the bottom of the page."""
    high, side = figure.get_figheight(), CELL - 0.2
    for i, (index, target, loss, draws, content) in enumerate(examples):
        left, top = 0.3 + CELL * (i % PER_ROW), y - (CELL + 0.25) * (i // PER_ROW)
        axes = figure.add_axes((left / WIDTH, (top - side) / high, side / WIDTH, side / high))
        axes.set_axis_off()
        if isinstance(content, str):
            _write_centered(axes, textwrap.fill(single_line(content, 100), 20))
        elif content is not None:
            axes.imshow(content, cmap="gray", vmin=0, vmax=1, interpolation="nearest")
        caption = f"#{index}, class {target}\nloss {loss}, {draws} draws"
        middle = (left + side / 2) / WIDTH
        figure.text(middle, (top - side - 0.05) / high, caption, fontsize=7, ha="center", va="top")


def draw_sample_report(
    record: SampleRecord, out: Path, *, title: str = "", examples: int = 8, fetch: Fetch = None
) -> None:
    """Draw a record as a figure and write it to ``out``, a PNG.

    Args:
        record: the statistics of the samples.
        out: path of the PNG.
        title: name of the run.
        examples: number of hardest and of most drawn samples to show; 0 for none.
        fetch: returns the dataset's item at an index, of which the ``displayable`` part is shown;
            where it fails or has none, only numbers are.
    """
    from matplotlib.figure import Figure

    sections: list[tuple[str, list[_Example], bool, float]] = []
    for name, indices in (
        ("(d) the hardest: greatest last loss", hardest_samples(record, examples)),
        ("(e) the most drawn", most_drawn_samples(record, examples)),
    ):
        rows = [_example(record, index, fetch) for index in indices.tolist()]
        images = any(isinstance(example.content, np.ndarray) for example in rows)
        height = (CELL + 0.25) * -(-len(rows) // PER_ROW) + 0.35
        height = height if images else 0.19 * len(rows) + 0.75
        if rows:
            sections.append((name, rows, images, height))
    page_height = TOP + sum(section[-1] for section in sections)
    figure = Figure(figsize=(WIDTH, page_height), dpi=120)
    drawn, total = float((record.draws > 0).double().mean()), int(record.draws.sum())
    line = f"{len(record):,} samples, {total:,} draws, {drawn:.1%} drawn at least once"
    line = f"{title}:  {line}" if title else line
    figure.text(
        0.5, 1 - 0.1 / page_height, line, ha="center", va="top", fontsize=11, parse_math=False
    )
    for left, draw in ((0.75, _draw_classes), (5.3, _draw_losses), (9.9, _draw_distribution)):
        place = (left / WIDTH, 1 - (TOP - 0.75) / page_height, 3.8 / WIDTH, 3.3 / page_height)
        draw(figure.add_axes(place), record)
    top = page_height - TOP
    for name, rows, images, height in sections:
        figure.text(0.3 / WIDTH, top / page_height, name, fontsize=10, va="top")
        (_show_grid if images else _write_lines)(figure, top - 0.3, rows)
        top -= height
    with warnings.catch_warnings():
        # The font has no glyph for every script; missing ones are drawn as boxes.
        warnings.filterwarnings("ignore", message=r"Glyph .* missing from")
        figure.savefig(out, format="png", dpi="figure")
