"""Wrong pairings are refused by name."""

from typing import ClassVar

import pytest

from lit_adaptive.contract import check_pairing, unmet_needs


class Giver:
    provides = frozenset({"batch.index"})


class Taker:
    needs = frozenset({"batch.index", "signal.td_error"})
    remedies: ClassVar = {"signal.td_error": "choose a module that returns it"}


class Plain:
    """A part of somebody else's, without either set."""


def test_a_sound_run_passes() -> None:
    class All:
        provides = frozenset({"batch.index", "signal.td_error"})

    check_pairing([Taker(), All(), Plain()])


def test_the_error_names_the_part_the_need_the_others_and_the_remedy() -> None:
    with pytest.raises(ValueError, match="do not fit together") as error:
        check_pairing([Taker(), Giver(), Plain()])
    text = str(error.value)
    for word in ("Taker", "signal.td_error", "Giver", "Plain", "choose a module that returns it"):
        assert word in text
    assert "batch.index" not in text


def test_one_line_for_each_unmet_need() -> None:
    assert len(unmet_needs([Taker()])) == 2
    assert len(unmet_needs([Taker(), Giver()])) == 1
