"""What every callback owes its reader: the two lines, and the sets that the contract checks."""

import inspect
import re

import pytest
from lightning.pytorch import Callback

import callbacks
from lit_adaptive.contract import check_pairing

EVERY = [getattr(callbacks, name) for name in callbacks.__all__]


@pytest.mark.parametrize("callback", EVERY, ids=lambda cls: cls.__name__)
def test_says_what_it_needs_and_what_it_changes(callback: type[Callback]) -> None:
    doc = inspect.getdoc(callback) or ""
    assert re.search(r"^Needs: \S", doc, re.MULTILINE)
    assert re.search(r"^Changes: \S", doc, re.MULTILINE)


@pytest.mark.parametrize("callback", EVERY, ids=lambda cls: cls.__name__)
def test_names_every_need_in_its_docstring(callback: type[Callback]) -> None:
    doc = inspect.getdoc(callback) or ""
    needs: frozenset[str] = callback.needs  # type: ignore[attr-defined]
    assert isinstance(needs, frozenset)
    assert isinstance(callback.provides, frozenset)  # type: ignore[attr-defined]
    for need in needs:
        assert need in doc, f"{callback.__name__} needs {need} and its docstring does not say so"


@pytest.mark.parametrize("callback", EVERY, ids=lambda cls: cls.__name__)
def test_runs_on_its_defaults_and_is_in_nobody_elses_way(callback: type[Callback]) -> None:
    one = callback()
    # A callback alone has every need unmet, and the error names each of them.
    needs: frozenset[str] = callback.needs - callback.provides  # type: ignore[attr-defined]
    if not needs:
        check_pairing([one])
        return
    with pytest.raises(ValueError, match="do not fit together") as error:
        check_pairing([one])
    for need in needs:
        assert need in str(error.value)
