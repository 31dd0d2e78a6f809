"""Rules for every callback: its file, its docstring, and the sets that the contract checks."""

import inspect
import re

import pytest
from lightning.pytorch import Callback

import callbacks
from lit_adaptive.contract import check_pairing

CALLBACKS = [getattr(callbacks, name) for name in callbacks.__all__]

every_callback = pytest.mark.parametrize("callback", CALLBACKS, ids=lambda cls: cls.__name__)


@every_callback
def test_stands_in_the_file_of_its_name(callback: type[Callback]) -> None:
    words = re.findall(r"[A-Z]+(?![a-z])|[A-Z][a-z]*", callback.__name__)
    assert callback.__module__ == "callbacks." + "_".join(words).lower()


@every_callback
def test_docstring_states_needs_and_changes(callback: type[Callback]) -> None:
    doc = inspect.getdoc(callback) or ""
    assert re.search(r"^Needs: \S", doc, re.MULTILINE)
    assert re.search(r"^Changes: \S", doc, re.MULTILINE)


@every_callback
def test_docstring_names_every_need(callback: type[Callback]) -> None:
    doc = inspect.getdoc(callback) or ""
    needs: frozenset[str] = callback.needs  # type: ignore[attr-defined]
    assert isinstance(needs, frozenset)
    assert isinstance(callback.provides, frozenset)  # type: ignore[attr-defined]
    for need in needs:
        assert need in doc, f"{callback.__name__} needs {need}, but its docstring does not say so"


@every_callback
def test_can_be_built_by_default_and_reports_every_unmet_need(callback: type[Callback]) -> None:
    instance = callback()
    needs: frozenset[str] = callback.needs - callback.provides  # type: ignore[attr-defined]
    if not needs:
        check_pairing([instance])
        return
    with pytest.raises(ValueError, match="do not fit together") as error:
        check_pairing([instance])
    for need in needs:
        assert need in str(error.value)
