"""The figure and the table of a sample report, and that no item or record breaks them."""

import csv
import math
import re
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from matplotlib.figure import Figure
from matplotlib.image import imread
from matplotlib.text import Text

from lit_adaptive.report.samples import (
    BINS,
    COLUMNS,
    SampleRecord,
    displayable,
    draw_sample_report,
    hardest_samples,
    most_drawn_samples,
    probability_histogram,
    single_line,
    write_sample_table,
)

NAN, INF = float("nan"), float("inf")


def _record(
    draws: list[int],
    loss: list[float] | None = None,
    target: list[int] | None = None,
    masses: list[list[float]] | None = None,
) -> SampleRecord:
    size = len(draws)
    mass = torch.tensor(masses or [[1.0] * size], dtype=torch.float64)
    snapshots = mass / mass.sum(1, keepdim=True)
    return SampleRecord(
        torch.tensor(draws, dtype=torch.int32),
        torch.tensor(loss or [1.0 if n else NAN for n in draws]),
        torch.tensor(target or [-1] * size),
        snapshots[-1] * size,
        torch.arange(len(snapshots)),
        torch.stack([probability_histogram(probability) for probability in snapshots]),
    )


def _large(size: int, classes: int, epochs: int = 6) -> SampleRecord:
    generator = torch.Generator().manual_seed(size)
    surprise = torch.randn(size, generator=generator)
    snapshots = [(surprise * t / epochs).double().softmax(0) for t in range(epochs)]
    draws = torch.poisson(3 * size * snapshots[-1].float(), generator=generator).int()
    return SampleRecord(
        draws,
        torch.where(draws > 0, surprise.exp(), NAN),
        torch.randint(classes, (size,), generator=generator),
        snapshots[-1] * size,
        torch.arange(epochs),
        torch.stack([probability_histogram(probability) for probability in snapshots]),
    )


@pytest.fixture
def draw(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., Figure]:
    """Draw a record, check that the file is a PNG that is not empty, and return the figure."""
    figures: list[Figure] = []
    save = Figure.savefig

    def keep(figure: Figure, *args: Any, **kwargs: Any) -> None:
        figures.append(figure)
        save(figure, *args, **kwargs)

    monkeypatch.setattr(Figure, "savefig", keep)

    def run(record: SampleRecord, **kwargs: Any) -> Figure:
        out = tmp_path / "picture.png"
        draw_sample_report(record, out, **kwargs)
        assert out.read_bytes().startswith(b"\x89PNG\r\n\x1a\n")
        pixels = imread(out)
        assert min(pixels.shape[:2]) > 400
        dark = float((pixels[..., :3].mean(-1) < 0.9).mean())
        assert 0.002 < dark < 0.9, "the picture is empty"
        return figures[-1]

    return run


def _words(figure: Figure) -> str:
    return "\n".join(text.get_text() for text in figure.findobj(Text))


def test_ticks_of_counts_are_whole_numbers(draw: Callable[..., Figure]) -> None:
    figure = draw(_record([1, 2, 1], [0.5, 0.7, 0.9]))
    for axes in figure.axes:
        for axis in (axes.xaxis, axes.yaxis):
            if axis.get_label().get_text() in ("draws", "samples", "epochs completed"):
                low, high = sorted(axis.get_view_interval())
                ticks = [t for t in axis.get_ticklocs() if low <= t <= high]
                assert ticks, axis.get_label()
                assert all(float(t).is_integer() for t in ticks), axis.get_label()


def test_classes_are_named(draw: Callable[..., Figure], tmp_path: Path) -> None:
    record = replace(_record([1, 2, 3], target=[0, 1, -1]), classes=["cat", "a long name of a dog"])
    words = _words(draw(record))
    assert {"cat", "a long name…", "?"} <= set(words.splitlines())
    write_sample_table(record, tmp_path / "samples.csv")
    with (tmp_path / "samples.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert [row["class"] for row in rows] == ["cat", "a long name of a dog", ""]


# ------------------------------------------------------------------------------ the numbers


def test_uniform_probabilities_are_in_the_middle_bin() -> None:
    for size in (1, 3, 7, 1000):
        counts = probability_histogram(torch.full((size,), 1 / size, dtype=torch.float64))
        assert counts[1 + BINS // 2] == counts.sum() == size


@given(st.lists(st.sampled_from([0.0, 1e-9, 1e-3, 0.1, 1.0, 2.5, 40.0]), min_size=1).filter(any))
def test_histogram_counts_what_a_loop_counts(mass: list[float]) -> None:
    expected = [0] * (BINS + 1)
    for m in mass:
        if m == 0:
            expected[0] += 1
            continue
        exponent = math.log10(m / math.fsum(mass) * len(mass))
        expected[1 + min(max(round((exponent + 6) / 0.1), 0), BINS - 1)] += 1
    probability = torch.tensor(mass, dtype=torch.float64) / math.fsum(mass)
    assert probability_histogram(probability).tolist() == expected


@given(
    st.lists(
        st.tuples(st.integers(0, 3), st.sampled_from([NAN, INF, -INF, -1.0, 0.0, 0.5, 2.0])),
        min_size=1,
    ),
    st.integers(0, 9),
)
def test_hardest_and_most_drawn_samples_are_those_of_a_sort(
    rows: list[tuple[int, float]], k: int
) -> None:
    record = _record([n for n, _ in rows], [loss for _, loss in rows])
    drawn = [i for i, (n, _) in enumerate(rows) if n]

    def by_loss(i: int) -> tuple[float, int]:
        return (-INF if math.isnan(rows[i][1]) else -rows[i][1], i)

    def by_draws(i: int) -> tuple[int, int]:
        return (-rows[i][0], i)

    assert hardest_samples(record, k).tolist() == sorted(drawn, key=by_loss)[:k]
    assert most_drawn_samples(record, k).tolist() == sorted(drawn, key=by_draws)[:k]


def test_the_table_has_the_recorded_values(tmp_path: Path) -> None:
    record = _record([2, 0, 1, 1], [0.123456789, NAN, NAN, INF], [4, -1, 0, 2], [[1, 0, 2, 1]])
    write_sample_table(record, tmp_path / "samples.csv")
    with (tmp_path / "samples.csv").open() as file:
        rows = list(csv.reader(file))
    assert rows == [
        list(COLUMNS),
        ["0", "4", "2", "0.123457", "1"],
        ["1", "", "0", "", "0"],  # never drawn: class and loss are unknown
        ["2", "0", "1", "nan", "2"],
        ["3", "2", "1", "inf", "1"],
    ]


def test_a_large_table_has_every_sample_once(tmp_path: Path) -> None:
    record = _large(70_000, 3)
    write_sample_table(record, tmp_path / "samples.csv")
    with (tmp_path / "samples.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert [int(row["index"]) for row in rows] == list(range(70_000))
    assert [int(row["draws"]) for row in rows] == record.draws.tolist()


@pytest.mark.parametrize("field", ["last_loss", "target", "epochs", "histogram"])
def test_shapes_that_do_not_fit_are_an_error(field: str) -> None:
    good = vars(_record([1, 2, 3], masses=[[1, 1, 1], [1, 2, 3]]))
    with pytest.raises(ValueError, match="shapes"):
        SampleRecord(**{**good, field: good[field][:1]})


# ------------------------------------------------------------------------------ what is shown


def test_the_displayable_part_of_an_item_is_its_image_or_text() -> None:
    grey = torch.rand(5, 6)
    for item in (grey, grey[None], (grey, 3), {"input": grey, "target": 1}, [grey.numpy()]):
        np.testing.assert_allclose(displayable(item), grey.numpy())
    color = torch.rand(3, 5, 6)
    image = displayable({"text": 7, "image": color, "caption": "a caption"})
    np.testing.assert_allclose(image, color.permute(1, 2, 0).numpy())
    np.testing.assert_allclose(displayable(color.permute(1, 2, 0).numpy()), image)
    assert displayable({"input": torch.rand(7, 9), "text": "words"}) == "words"
    assert displayable({"input": torch.rand(8), "sentence": "words"}) == "words"
    row = {"input": torch.tensor([1.0, 0.25, -3e6]), "target": 1}  # of a table
    assert displayable(row) == "1  0.25  -3e+06"
    assert displayable((np.arange(64), 1)) == "  ".join(map(str, range(12))) + "  …"
    assert displayable(("words", 3)) == "words"
    for item in ({"input": torch.rand(4, 5, 6, 7)}, (), None, 3, {"a": 1}, np.array(["a"])):
        assert displayable(item) is None
    assert displayable(torch.rand(2, 5, 6)) is None  # two channels are not an image
    assert displayable(torch.randint(9, (1, 12))) is None  # nor is a row of tokens


def test_image_values_are_scaled_only_where_outside_0_1() -> None:
    np.testing.assert_allclose(
        displayable(torch.tensor([[0, 51], [102, 255]]).byte()), [[0, 0.2], [0.4, 1]]
    )
    np.testing.assert_allclose(
        displayable(torch.tensor([[-1.0, 1], [0, 3]])), [[0, 0.5], [0.25, 1]]
    )
    np.testing.assert_allclose(displayable(torch.full((3, 3), 0.25)), np.full((3, 3), 0.25))
    np.testing.assert_allclose(displayable(torch.full((3, 3), 7.0)), np.full((3, 3), 0.5))
    assert np.isfinite(displayable(torch.tensor([[NAN, 1.0], [INF, 2.0]]))).all()
    assert displayable(torch.rand(3, 1000, 300)).shape == (250, 150, 3)


@given(st.text(), st.integers(2, 30))
def test_a_shortened_text_is_one_printable_line(text: str, width: int) -> None:
    line = single_line(text, width)
    assert len(line) <= width
    assert line.isprintable()
    if len(text) <= width and text.isprintable() and text.split() == text.split(" "):
        assert line == text


# ------------------------------------------------------------------------------ the picture


def test_bars_are_the_mean_draws_of_all_samples_of_a_class(draw: Callable[..., Figure]) -> None:
    draws, target = [4, 0, 2, 9, 1, 0, 5], [0, 0, 2, 1, 1, 2, -1]
    figure = draw(_record(draws, target=target))
    bars = figure.axes[0]
    heights = [patch.get_height() for patch in bars.patches]
    assert heights == [5.0, 2.0, 5.0, 1.0]  # unknown; (4+0)/2; (9+1)/2; (2+0)/2
    assert [text.get_text() for text in bars.get_xticklabels()] == ["?", "0", "1", "2"]
    labels = [text.get_text() for text in bars.texts]
    assert [label for label in labels if label.isdigit()] == ["1", "2", "2", "2"]
    assert "dashed: mean of all, 3" in _words(figure)


def test_of_many_classes_the_most_and_the_least_drawn_are_shown(
    draw: Callable[..., Figure],
) -> None:
    record = _record([10 * c for c in range(500)], target=list(range(500)))
    bars = draw(record).axes[0]
    shown = [int(text.get_text()) for text in bars.get_xticklabels()]
    assert shown == [*range(499, 484, -1), *range(14, -1, -1)]
    assert [patch.get_height() for patch in bars.patches] == [10.0 * c for c in shown]


def test_points_are_the_drawn_samples_with_a_finite_loss(draw: Callable[..., Figure]) -> None:
    record = _record([1, 0, 3, 2, 5, 1], [0.5, NAN, 2.0, NAN, INF, 0.0], [0, 1, 1, 0, 0, 1])
    axes = draw(record).axes[1]
    points = axes.collections[0].get_offsets().tolist()
    # A loss of 0, which a log axis cannot show, is at its left edge.
    assert points == [[0.5, 1.0], [2.0, 3.0], [0.25, 1.0]]
    assert axes.get_xscale() == "log"
    words = _words(axes.figure).replace("\n", " ")
    assert "colors as in (a)" in words
    assert "not shown: 1 never drawn" in words
    assert "not shown: 2 of NaN or infinite loss" in words
    assert "1 of loss 0 at the left edge" in words


def test_negative_losses_have_a_linear_axis(draw: Callable[..., Figure]) -> None:
    axes = draw(_record([1, 2, 3], [-1.0, 0.0, 4.0])).axes[1]
    assert axes.get_xscale() == "linear"
    assert axes.collections[0].get_offsets()[:, 0].tolist() == [-1.0, 0.0, 4.0]


def test_the_distribution_is_shown_at_each_snapshot(draw: Callable[..., Figure]) -> None:
    record = _record([1] * 4, masses=[[1, 1, 1, 1], [0, 0, 1, 9]])
    axes = draw(record).axes[2]
    mesh = axes.collections[0]
    edges = mesh.get_coordinates()
    cells = {
        (round(float(edges[row, 0, 1] + edges[row + 1, 0, 1]) / 2, 6), column): int(count)
        for (row, column), count in np.ndenumerate(mesh.get_array().filled(0))
        if count
    }
    below = min(height for height, _ in cells)
    # N P: 1, four times; then 4/10 and 36/10, and two of probability 0, below all others.
    assert cells == {(0.0, 0): 4, (-0.4, 1): 1, (0.6, 1): 1, (below, 1): 2}
    assert below < -0.4
    assert "0" in [text.get_text() for text in axes.get_yticklabels()]


def _image(i: int) -> Any:
    return {"input": torch.rand(1, 8, 8, generator=torch.Generator().manual_seed(i)), "target": 0}


def _failing(i: int) -> Any:
    raise OSError(f"no item {i}")


TEXT = "It cost $\\frac{1$, which is no formula; " + "短い 🙂\n\x00 and so on " * 40


@pytest.mark.parametrize("size", [1, 15])
@pytest.mark.parametrize(
    "fetch",
    [None, _image, _failing, lambda i: {"text": TEXT}, lambda i: torch.full((3, 4, 4), 9.0),
     lambda i: (_image(i)["input"] if i % 2 else TEXT, 0)],
    ids=["none", "image", "failing", "text", "constant", "mixed"],
)  # fmt: skip
def test_every_kind_of_item_can_be_drawn(
    draw: Callable[..., Figure], fetch: Any, size: int
) -> None:
    record = _record(list(range(1, size + 1)), [0.25 * i for i in range(size)], [0] * size)
    figure = draw(record, fetch=fetch, examples=11, title="a_run / $1")
    assert "a_run / $1:  " in _words(figure)
    pictures = [image for axes in figure.axes for image in axes.get_images()]
    if fetch is _image:
        assert len(pictures) == 2 * min(size, 11)
        hard = max(range(size), key=lambda i: 0.25 * i)
        np.testing.assert_allclose(pictures[0].get_array(), _image(hard)["input"][0])
    elif fetch in (None, _failing):
        assert not pictures
    assert re.search(rf"\b{size}\b", _words(figure))  # the draws of the most drawn


@pytest.mark.parametrize(
    "record",
    [
        _record([0, 0, 0]),
        _record([0, 0, 0], target=[0, 1, 1]),
        _record([0]),
        _record([1], [0.0]),
        _record([5], [3.0], [2]),
        _record([1, 1, 1], [0.5, 0.5, 0.5], [0, 1, 2]),
        _record([1, 2, 3], [NAN, INF, -INF], [0, 0, 0]),
        _record([10**9, 1, 0, 3], [1e-30, 1e30, NAN, 1.0]),
        _record([3, 4], masses=[[1e-12, 1.0]] * 600),
        _record([3, 4], target=[2**40, 5]),
        replace(_record([1]), epochs=torch.zeros(0), histogram=torch.zeros(0, BINS + 1)),
        _large(6_000, 12),
    ],
    ids=[
        "nothing drawn", "nothing drawn, classes", "one, not drawn", "one, loss 0", "one",
        "equal losses", "no finite loss", "extremes", "many epochs", "huge class",
        "no snapshot", "many points",
    ],
)  # fmt: skip
def test_every_kind_of_record_can_be_drawn(
    draw: Callable[..., Figure], record: SampleRecord
) -> None:
    assert f"{len(record):,} samples" in _words(draw(record))


@pytest.mark.parametrize("classes", [1, 4, 25, 1000])
@pytest.mark.parametrize("fetch", [_image, lambda i: "A long text. " * 40], ids=["image", "text"])
def test_no_two_texts_overlap_and_none_leaves_the_page(
    draw: Callable[..., Figure], fetch: Any, classes: int
) -> None:
    record = _large(2_000, classes)
    record.last_loss[::50] = NAN  # so that there are many remarks
    record.last_loss[1::50] = 0.0
    record.target[::9] = -1
    figure = draw(record, fetch=fetch, title="digits_adaptive / 20260101-120000-7")
    page = figure.bbox
    boxes = []
    for text in figure.findobj(Text):
        if text.get_text().strip() and text.get_visible():
            box = text.get_window_extent()
            if box.y1 < page.y0 or box.x1 < page.x0 or box.y0 > page.y1:
                continue  # a tick beyond the axis' limits: not drawn
            boxes.append((text.get_text(), box))
    for name, box in boxes:
        assert box.x0 >= page.x0, name
        assert box.x1 <= page.x1, name
        assert box.y0 >= page.y0, name
        assert box.y1 <= page.y1, name
    for i, (name, box) in enumerate(boxes):
        for other, second in boxes[:i]:
            wide = min(box.x1, second.x1) - max(box.x0, second.x0)
            high = min(box.y1, second.y1) - max(box.y0, second.y0)
            assert wide < 2 or high < 2, f"{name!r} overlaps {other!r}"


def test_the_same_record_gives_the_same_file(tmp_path: Path) -> None:
    record = _large(300_000, 40)  # enough for the points to be chosen at random
    for name in ("first.png", "second.png"):
        draw_sample_report(record, tmp_path / name)
    assert (tmp_path / "first.png").read_bytes() == (tmp_path / "second.png").read_bytes()


def test_a_million_samples_take_seconds(tmp_path: Path) -> None:
    record = _large(1_000_000, 1000)
    draw_sample_report(_record([1]), tmp_path / "warm.png")
    start = time.perf_counter()
    draw_sample_report(record, tmp_path / "large.png")
    assert time.perf_counter() - start < 8  # about 1 s on an idle machine
