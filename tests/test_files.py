"""Atomic writes, and states that are read without running code."""

from pathlib import Path

import pytest
import torch

from lit_adaptive.files import load_state, save_state, write_atomically


def test_a_written_file_replaces_the_old_one_and_leaves_no_temporary_file(tmp_path: Path) -> None:
    target = tmp_path / "new" / "folder" / "a.txt"
    for text in ("old", "new"):
        with write_atomically(target) as temporary:
            temporary.write_text(text)
        assert target.read_text() == text
    assert list(target.parent.iterdir()) == [target]


def test_an_error_while_writing_keeps_the_old_file(tmp_path: Path) -> None:
    target = tmp_path / "a.txt"
    target.write_text("old")
    with (  # noqa: PT012
        pytest.raises(RuntimeError, match="disk"),
        write_atomically(target) as temporary,
    ):
        temporary.write_text("half")
        raise RuntimeError("disk")
    assert target.read_text() == "old"
    assert list(tmp_path.iterdir()) == [target]


def test_a_state_is_read_as_it_was_saved(tmp_path: Path) -> None:
    save_state({"mass": torch.arange(3.0), "size": 3}, tmp_path / "a.pt")
    state = load_state(tmp_path / "a.pt")
    assert state["size"] == 3
    assert state["mass"].equal(torch.arange(3.0))


def test_a_missing_file_is_an_os_error(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match=r"a\.pt"):
        load_state(tmp_path / "a.pt")


def test_a_file_that_holds_code_is_not_loaded(tmp_path: Path) -> None:
    torch.save({"path": Path("x")}, tmp_path / "a.pt")
    with pytest.raises(ValueError, match=r"a\.pt is damaged, or holds objects.*run code"):
        load_state(tmp_path / "a.pt")


def test_a_file_without_a_dict_is_not_a_state(tmp_path: Path) -> None:
    torch.save([1], tmp_path / "a.pt")
    with pytest.raises(ValueError, match=r"a\.pt holds a list, not a replay's state_dict"):
        load_state(tmp_path / "a.pt")
