"""The picture of the families that each phase trained on."""

import pytest

from lit_adaptive.report.influence import families_figure


def test_bars_are_the_shares_of_each_phase_from_the_first_selection_on() -> None:
    figure = families_figure([["a", "a", "b"], ["b"]], every=10, first=20)
    (axes,) = figure.axes
    bars = [(bar.get_x(), bar.get_y(), bar.get_height()) for bar in axes.patches]  # type: ignore[attr-defined]
    expected = [(20, 0, 2 / 3), (30, 0, 0), (20, 2 / 3, 1 / 3), (30, 0, 1)]  # of a, then of b
    assert [*map(pytest.approx, expected)] == bars
    assert axes.get_xlim() == (20, 40)
