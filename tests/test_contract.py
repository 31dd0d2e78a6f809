"""Parts of a run that do not fit together are rejected by name."""

from typing import ClassVar

import pytest

from lit_adaptive.contract import check_pairing, unmet_needs


class Provider:
    provides = frozenset({"batch.index"})


class Consumer:
    needs = frozenset({"batch.index", "signal.td_error"})
    remedies: ClassVar = {"signal.td_error": "choose a module that returns it"}


class Unrelated:
    """A part with neither set, such as a callback of another library."""


def test_a_valid_run_passes() -> None:
    class ProvidesAll:
        provides = frozenset({"batch.index", "signal.td_error"})

    check_pairing([Consumer(), ProvidesAll(), Unrelated()])


def test_the_error_names_the_part_the_need_the_other_parts_and_the_remedy() -> None:
    with pytest.raises(ValueError, match="do not fit together") as error:
        check_pairing([Consumer(), Provider(), Unrelated()])
    message = str(error.value)
    remedy = "choose a module that returns it"
    for word in ("Consumer", "signal.td_error", "Provider", "Unrelated", remedy):
        assert word in message
    assert "batch.index" not in message


def test_each_unmet_need_has_a_line() -> None:
    assert len(unmet_needs([Consumer()])) == 2
    assert len(unmet_needs([Consumer(), Provider()])) == 1
