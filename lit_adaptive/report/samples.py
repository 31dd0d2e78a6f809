"""What the sampler did, as one picture and one table.

    (a) mean draws per sample of each class        (b) draws against the last loss
    (c) the law over time: how many samples have which relative probability N P(i)
    (d) the hardest samples (greatest last loss)   (e) the most drawn ones

A relative probability of 1 is what uniform sampling gives to every sample. Everything is O(N) and
vectorised; matplotlib is loaded only when something is drawn.
"""

import csv
import warnings
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, TypeAlias

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import SubFigure

Array: TypeAlias = NDArray[Any]
Content: TypeAlias = "Array | str | None"
Scale: TypeAlias = Literal["linear", "log"]
Fetch: TypeAlias = Callable[[int], object]

LOW, STEP, BINS = -6.0, 0.1, 121
"""Bins of log10 N P(i): centred on -6.0, -5.9, ..., 6.0; beyond them the last bin on each side."""
COLUMNS = ("index", "class", "draws", "last_loss", "relative_probability")
MOST_BARS, PER_ROW, MOST_POINTS, MOST_BINNED = 30, 8, 5_000, 200_000


@dataclass(frozen=True)
class SampleRecord:
    """What was recorded of ``N`` samples.

    Attributes:
        draws: ``[N]`` integers, how often each was served.
        last_loss: ``[N]`` floats, at the last time it was; NaN for a sample that never was.
        target: ``[N]`` integers, its class; negative if unknown.
        relative_probability: ``[N]`` floats, N P(i) now.
        epochs: ``[T]`` integers, epochs completed at each snapshot of the law, ascending.
        histogram: ``[T, BINS + 1]`` integers, a ``law_histogram`` at each of them.

    Raises:
        ValueError: if the lengths differ.
    """

    draws: Tensor
    last_loss: Tensor
    target: Tensor
    relative_probability: Tensor
    epochs: Tensor
    histogram: Tensor

    def __post_init__(self) -> None:
        each = (self.draws, self.last_loss, self.target, self.relative_probability)
        if len({tuple(one.shape) for one in each}) != 1 or self.draws.ndim != 1:
            shapes = ", ".join(str(list(one.shape)) for one in each)
            raise ValueError(
                "draws, last_loss, target and relative_probability have the shapes "
                f"{shapes}; all must be [N]"
            )
        if self.histogram.shape != (len(self.epochs), BINS + 1):
            raise ValueError(
                f"histogram has the shape {list(self.histogram.shape)} for {len(self.epochs)} "
                f"epochs; it must be [{len(self.epochs)}, {BINS + 1}], a law_histogram for each"
            )

    def __len__(self) -> int:
        return len(self.draws)


def law_histogram(probability: Tensor) -> Tensor:
    """``[BINS + 1]`` int64: how many of ``N`` samples have which N P(i), of their ``[N]`` P(i).

    Entry 0 counts those that cannot be drawn, entry ``1 + b`` those in bin ``b``.
    """
    exponent = (probability.double() * len(probability)).log10()
    place = ((exponent - LOW) / STEP).round().clamp(0, BINS - 1).long() + 1
    return torch.where(probability > 0, place, 0).bincount(minlength=BINS + 1).cpu()


# ----------------------------------------------------------------------------- which samples


def _greatest(value: Array, k: int) -> Array:
    """Places of the ``k`` greatest, greatest first; of equal ones the first."""
    k = min(k, len(value))
    if k <= 0:
        return np.empty(0, dtype=np.int64)
    least = np.partition(value, len(value) - k)[len(value) - k]
    above = np.flatnonzero(value > least)
    chosen = np.concatenate([above, np.flatnonzero(value == least)[: k - len(above)]])
    return chosen[np.argsort(-value[chosen], kind="stable")]


def hardest(record: SampleRecord, k: int) -> Array:
    """Indices of the ``k`` drawn samples with the greatest last loss; NaN counts as infinite."""
    drawn = np.flatnonzero(record.draws.numpy() > 0)
    loss = record.last_loss.double().numpy()[drawn]
    return drawn[_greatest(np.nan_to_num(loss, nan=np.inf, posinf=np.inf, neginf=-np.inf), k)]


def most_drawn(record: SampleRecord, k: int) -> Array:
    """Indices of the ``k`` samples drawn most often, at least once."""
    drawn = np.flatnonzero(record.draws.numpy() > 0)
    return drawn[_greatest(record.draws.numpy()[drawn].astype(np.float64), k)]


# ----------------------------------------------------------------------------- the table


def _rows(record: SampleRecord, rows: slice) -> Iterator[tuple[Any, ...]]:
    draws = record.draws[rows].tolist()
    target = [c if c >= 0 else None for c in record.target[rows].tolist()]
    loss = record.last_loss[rows].tolist()
    seen = [one if n else None for n, one in zip(draws, loss, strict=True)]
    index = range(len(record))[rows]
    return zip(index, target, draws, seen, record.relative_probability[rows].tolist(), strict=True)


def sample_table(record: SampleRecord) -> list[dict[str, Any]]:
    """One row for each sample, with ``COLUMNS``; None where the class or the loss is unknown."""
    return [dict(zip(COLUMNS, row, strict=True)) for row in _rows(record, slice(0, len(record)))]


def write_sample_table(record: SampleRecord, out: Path) -> None:
    """Write ``sample_table`` as CSV; None is an empty cell."""
    with out.open("w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(COLUMNS)
        for start in range(0, len(record), 65_536):
            writer.writerows(_rows(record, slice(start, start + 65_536)))


# ----------------------------------------------------------------------------- what to show


def displayable(item: object) -> Content:
    """What of a dataset's item can be shown: an image, or a text, or nothing.

    Looked for under ``image``, ``input`` and ``text`` of a dictionary (a text under any key), in
    the first of a pair, or in the item itself. Images are ``[H, W]``, ``[1, H, W]`` or
    ``[3, H, W]``; NumPy and PIL ones also ``[H, W, 3]``.
    """
    parts: list[object] = [item]
    if isinstance(item, dict):
        parts = [item[key] for key in ("image", "input", "text") if key in item]
        parts += [part for part in item.values() if isinstance(part, str)]
    elif isinstance(item, (tuple, list)):
        parts = list(item[:1])
    images = (_image(part) for part in parts if not isinstance(part, str))
    texts = (part for part in parts if isinstance(part, str))
    return next((image for image in images if image is not None), next(texts, None))


def _image(part: object) -> Array | None:
    """``[H, W]`` or ``[H, W, 3]`` floats in [0, 1], at most 256 pixels a side, or None."""
    if isinstance(part, Tensor):
        pixels: Array = part.detach().cpu().to_dense().numpy(force=True)
    elif isinstance(part, np.ndarray) or hasattr(part, "__array_interface__"):
        pixels = np.asarray(part)
    else:
        return None
    if pixels.dtype.kind not in "buif" or pixels.ndim not in (2, 3) or 0 in pixels.shape:
        return None
    if pixels.ndim == 3:
        if pixels.shape[0] in (1, 3):
            pixels = np.moveaxis(pixels, 0, -1)
        if pixels.shape[-1] not in (1, 3):
            return None
        pixels = pixels[..., 0] if pixels.shape[-1] == 1 else pixels
    pixels = pixels[tuple(slice(None, None, -(-side // 256)) for side in pixels.shape[:2])]
    return _scaled(pixels)


def _scaled(pixels: Array) -> Array:
    """Bytes by 255, what lies in [0, 1] as it is, everything else by its own range."""
    scale = 255.0 if pixels.dtype == np.uint8 else 1.0
    shown = np.nan_to_num(pixels.astype(np.float64), posinf=0.0, neginf=0.0) / scale
    low, high = float(shown.min()), float(shown.max())
    if low >= 0 and high <= 1:
        return shown
    return (shown - low) / (high - low) if high > low else np.full_like(shown, 0.5)


def shortened(text: str, width: int) -> str:
    """One line of at most ``width`` characters, all of them printable."""
    head = text[: 4 * width]
    line = " ".join("".join(c if c.isprintable() else " " for c in head).split())
    return line if len(line) <= width and len(head) == len(text) else line[: width - 1] + "…"


def _content(index: int, fetch: Fetch | None) -> Content:
    if fetch is None:
        return None
    try:
        return displayable(fetch(index))
    except Exception:  # a picture must not end a run: without its content it still says the rest
        return None


# ----------------------------------------------------------------------------- the panels


def _say(axes: "Axes", text: str) -> None:
    axes.set_axis_off()
    axes.text(0.5, 0.5, text, ha="center", va="center", color="0.4", transform=axes.transAxes)


def _head(axes: "Axes", title: str, remark: str = "") -> None:
    axes.set_title(title, fontsize=10, loc="left", pad=20 if remark else 8)
    axes.text(0, 1.02, remark, transform=axes.transAxes, fontsize=8, color="0.4", va="bottom")
    axes.spines[["top", "right"]].set_visible(False)


def _by_class(record: SampleRecord) -> tuple[Array, Array, Array]:
    """Classes, how many samples each has, and the mean of their draws; unknown is -1."""
    target = record.target.numpy().clip(min=-1)
    classes, place, size = np.unique(target, return_inverse=True, return_counts=True)
    total = np.bincount(place, weights=record.draws.numpy(), minlength=len(classes))
    return classes, size, total / size


def _draw_classes(axes: "Axes", record: SampleRecord) -> None:
    classes, size, mean = _by_class(record)
    if classes[-1] < 0:
        _draw_counts(axes, record)
        return
    remark = "above the bars: samples of the class"
    if classes[0] < 0:
        remark += "; ?: class unknown"
    if len(classes) > MOST_BARS:
        half = MOST_BARS // 2
        order = np.argsort(-mean, kind="stable")
        order = np.concatenate([order[:half], order[-half:]])
        remark = f"the {half} most and {half} least drawn of {len(classes)}; " + remark
        classes, size, mean = classes[order], size[order], mean[order]
    at = np.arange(len(classes))
    known = np.where(classes < 0, "0.6", [f"C{c % 10}" if len(at) <= 10 else "C0" for c in classes])
    axes.bar(at, mean, color=known.tolist(), width=0.8)
    steep = 90 if len(at) > 10 else 0
    for x, y, n in zip(at, mean, size, strict=True):
        axes.annotate(
            f"{n:,}", (x, y), (0, 2), textcoords="offset points", ha="center", va="bottom",
            fontsize=7, rotation=steep,
        )  # fmt: skip
    axes.margins(y=0.2 if steep else 0.12)
    axes.set_xticks(at, ["?" if c < 0 else str(c) for c in classes], rotation=steep, fontsize=8)
    average = float(record.draws.double().mean())
    axes.axhline(average, color="0.3", linestyle="--", linewidth=1)
    axes.set_ylim(bottom=0)
    axes.set_xlabel("class")
    axes.set_ylabel("mean draws per sample")
    _head(axes, f"(a) draws by class (dashed: all, {average:.3g})", remark)


def _draw_counts(axes: "Axes", record: SampleRecord) -> None:
    draws = record.draws.numpy()
    edges = np.unique(np.linspace(0, draws.max() + 1, 31).astype(np.int64))
    axes.hist(draws, bins=edges.tolist(), color="C0", align="left" if len(edges) < 31 else "mid")
    axes.set_yscale("log" if len(draws) > 100 else "linear")
    axes.set_xlabel("draws")
    axes.set_ylabel("samples")
    _head(axes, "(a) samples by draws (no classes known)")


def _draw_losses(axes: "Axes", record: SampleRecord) -> None:
    draws, loss = record.draws.numpy(), record.last_loss.double().numpy()
    shown = np.flatnonzero((draws > 0) & np.isfinite(loss))
    remarks = []
    if never := int((draws == 0).sum()):
        remarks.append(f"{never:,} never drawn")
    if wild := int((draws > 0).sum()) - len(shown):
        remarks.append(f"{wild:,} with NaN or infinite loss")
    remark = ", ".join(remarks) + (" not shown" if remarks else "")
    if not len(shown):
        _say(axes, f"no sample was drawn with a finite loss\n({remark})")
        return
    if len(shown) > MOST_BINNED:
        remark = f"{MOST_BINNED:,} of {len(shown):,} drawn ones; " + remark
        shown = np.sort(np.random.default_rng(0).choice(shown, MOST_BINNED, replace=False))
    x, y = loss[shown], draws[shown].astype(np.float64)
    logarithmic = bool((x >= 0).all() and (x > 0).any())
    if logarithmic and (zeros := int((x == 0).sum())):
        x = np.maximum(x, x[x > 0].min() / 2)
        remark += f"; {zeros:,} with loss 0 at the left edge"
    tall = y.max() > 30 * np.median(y)
    across: Scale = "log" if logarithmic else "linear"
    up: Scale = "log" if tall else "linear"
    _points(axes, x, y, record.target.numpy()[shown], (across, up))
    axes.set_xlabel("last loss")
    axes.set_ylabel("draws")
    _head(axes, "(b) draws against the last loss", remark.removeprefix("; "))


def _points(axes: "Axes", x: Array, y: Array, target: Array, scales: tuple[Scale, Scale]) -> None:
    axes.set_xscale(scales[0])
    axes.set_yscale(scales[1])
    if len(x) > MOST_POINTS:
        cells: Any = axes.hexbin(
            x, y, gridsize=40, bins="log", mincnt=1, xscale=scales[0], yscale=scales[1]
        )
        axes.figure.colorbar(cells, ax=axes, label="samples", pad=0.02)
        return
    few = 0 <= target.max() < 10
    color = [("0.6" if c < 0 else f"C{c}") if few else "C0" for c in target]
    axes.scatter(x, y, s=10, alpha=0.6, linewidths=0, c=color)


def _draw_law(axes: "Axes", record: SampleRecord) -> None:
    counts = record.histogram.numpy()
    if not counts.any():
        _say(axes, "the law was not recorded")
        return
    used = np.flatnonzero(counts[:, 1:].any(0))
    low = int(min(used.min(initial=BINS), 55)) - 1
    high = int(max(used.max(initial=0), 65)) + 2
    never = bool(counts[:, 0].any())
    at = record.epochs.numpy().astype(np.float64)
    middle = (at[1:] + at[:-1]) / 2
    first = middle[0] - at[0] if len(at) > 1 else 0.5
    last = at[-1] - middle[-1] if len(at) > 1 else 0.5
    edges = np.concatenate([[at[0] - first], middle, [at[-1] + last]])
    body = counts[:, 1 + max(low, 0) : 1 + high].T.astype(np.float64)
    if never:  # their own row, below the others
        gap = np.zeros_like(body[:1])
        body = np.concatenate([counts[:, :1].T, gap, gap, body])
    bottom = LOW + (max(low, 0) - 0.5 - 3 * never) * STEP
    height = bottom + STEP * np.arange(len(body) + 1)
    shown = np.ma.masked_equal(body, 0)
    cells = axes.pcolormesh(edges, height, shown, norm="log", vmin=1, vmax=max(2, body.max()))
    axes.figure.colorbar(cells, ax=axes, label="samples", pad=0.02)
    axes.axhline(0, color="0.3", linestyle="--", linewidth=1)
    step = next(step for step in (0.5, 1, 2) if (high - low) * STEP / step <= 10)
    ticks = [t for t in np.arange(LOW, 6.1, step) if max(low, 0) <= (t - LOW) / STEP <= high]
    names = [f"{10**t:.2g}" for t in ticks]
    axes.set_yticks([*([bottom + STEP / 2] if never else []), *ticks])
    axes.set_yticklabels([*(["0"] if never else []), *names], fontsize=8)
    axes.set_xlabel("epochs completed")
    axes.set_ylabel("relative probability N·P(i)")
    axes.locator_params(axis="x", integer=True)
    _head(axes, "(c) the law over time (dashed: uniform)")


def _cells(record: SampleRecord, index: int) -> tuple[str, str, str, str]:
    target, loss = int(record.target[index]), float(record.last_loss[index])
    draws = int(record.draws[index])
    return str(index), "?" if target < 0 else str(target), f"{loss:.3g}", str(draws)


def _draw_examples(
    part: "SubFigure", record: SampleRecord, title: str, found: Array, contents: list[Content]
) -> None:
    part.suptitle(title, fontsize=10, x=0.01, ha="left")
    if any(isinstance(content, np.ndarray) for content in contents):
        _draw_grid(part, record, found, contents)
        return
    axes = part.subplots()
    if not len(found):
        _say(axes, "nothing was drawn")
        return
    axes.set_axis_off()
    lines = [f"{'index':>10}{'class':>8}{'last loss':>12}{'draws':>9}"]
    for index, content in zip(found, contents, strict=True):
        name, target, loss, draws = _cells(record, int(index))
        text = shortened(content, 120) if isinstance(content, str) else ""
        lines.append(f"{name:>10}{target:>8}{loss:>12}{draws:>9}   {text}")
    for row, line in enumerate(lines):
        axes.text(
            0, 1 - (row + 0.5) / len(lines), line, family="monospace", fontsize=8, va="center",
            transform=axes.transAxes, parse_math=False, color="0.4" if row == 0 else "black",
        )  # fmt: skip


def _draw_grid(
    part: "SubFigure", record: SampleRecord, found: Array, contents: list[Content]
) -> None:
    rows = -(-len(found) // PER_ROW)
    grid = part.subplots(rows, PER_ROW, squeeze=False)
    for axes in grid.flat:
        axes.set(xticks=[], yticks=[])
        axes.spines[:].set_visible(False)
    for axes, index, content in zip(grid.flat, found, contents, strict=False):
        if isinstance(content, np.ndarray):
            axes.imshow(content, cmap="gray", vmin=0, vmax=1, interpolation="nearest")
        elif content is not None:
            text = shortened(content, 60)
            lines = "\n".join(text[i : i + 15] for i in range(0, len(text), 15))
            axes.text(0.5, 0.5, lines, ha="center", va="center", fontsize=7, parse_math=False)
        name, target, loss, draws = _cells(record, int(index))
        axes.set_xlabel(f"#{name}, class {target}\nloss {loss}, {draws} draws", fontsize=7)


def draw_sample_report(
    record: SampleRecord,
    out: Path,
    *,
    title: str = "",
    examples: int = 8,
    fetch: Fetch | None = None,
) -> None:
    """Write the picture of a record to ``out``, a PNG.

    Args:
        record: what was recorded.
        out: the file.
        title: of the run.
        examples: how many of the hardest and of the most drawn samples to show, 0 for none.
        fetch: gives the dataset's item at an index; what it holds is shown (``displayable``), and
            where it fails or holds nothing to show, numbers only.
    """
    from matplotlib.figure import Figure

    named = {
        "(d) hardest: greatest last loss": hardest(record, examples),
        "(e) drawn most often": most_drawn(record, examples),
    }
    shown = {
        name: [_content(int(i), fetch) for i in found]
        for name, found in (named.items() if examples > 0 else ())
    }
    heights = [4.0]
    for contents in shown.values():
        pictures = any(isinstance(content, np.ndarray) for content in contents)
        rows = -(-len(contents) // PER_ROW)
        heights.append(0.35 + (1.75 * rows if pictures else 0.19 * (len(contents) + 1)))
    figure = Figure(figsize=(14, 0.4 + sum(heights)), layout="constrained")
    draws = record.draws.long()
    figure.suptitle(
        f"{title}{': ' if title else ''}{len(record):,} samples, {int(draws.sum()):,} draws, "
        f"{float((draws > 0).double().mean()):.1%} drawn at least once",
        fontsize=11, parse_math=False,
    )  # fmt: skip
    parts: Any = figure.subfigures(len(heights), 1, height_ratios=heights, squeeze=False)[:, 0]
    a, b, c = parts[0].subplots(1, 3)
    _draw_classes(a, record)
    _draw_losses(b, record)
    _draw_law(c, record)
    for part, (name, contents) in zip(parts[1:], shown.items(), strict=True):
        _draw_examples(part, record, name, named[name], contents)
    with warnings.catch_warnings():
        # The font has no glyph for every script; a box stands for those.
        warnings.filterwarnings("ignore", message=r"Glyph .* missing from")
        figure.savefig(out, format="png", dpi=120)
