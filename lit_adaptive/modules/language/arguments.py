"""What a checkpoint holds beside weights, so that its model is built again without the YAML.

These are the constructor arguments of the module, in LightningCLI's form (primitives, and for each
object its ``class_path`` and ``init_args``), and the files of the tokenizer.
"""

import dataclasses
import inspect
import sys
import tempfile
from pathlib import Path
from typing import Any, cast

import torch
from jsonargparse import ArgumentParser
from lightning.pytorch.core.mixins import hparams_mixin
from lightning.pytorch.utilities import rank_zero_warn

from lit_adaptive.modules.language.recipes import CausalLM, LoRA
from lit_adaptive.rollout.models.pretrained import transformers_quiet

ARGUMENTS = "hyper_parameters"  # Lightning's key
LEFT_OUT = "_left_out"
"""Among the arguments: names of those that are objects without a ``class_path``."""
TOKENIZER = "tokenizer"
_INSTANTIATOR = "lightning.pytorch.cli.instantiate_module"  # builds objects of class_path


def module_arguments(module: Any, given: dict[str, Any]) -> dict[str, Any]:
    """Constructor arguments of a module, for its checkpoint.

    Those of a module that LightningCLI has built are in its ``hparams``. Otherwise they are the
    attributes of the same names.

    Args:
        module: the module.
        given: arguments that are no attributes, and ``model``, the recipe.
    """
    arguments: dict[str, Any] = dict(module.hparams)
    built_by_cli = "_instantiator" in arguments
    values = {"model": given["model"]} if built_by_cli else _attributes(module) | given
    left_out: list[str] = []
    for name, value in values.items():
        try:
            arguments[name] = _as_config(value)
        except _NoConfigError:
            if name not in arguments:
                left_out.append(name)
    return arguments | {"_instantiator": _INSTANTIATOR, LEFT_OUT: left_out}


def given_arguments() -> bool:
    """Whether a module is being built from arguments of LightningCLI, as primitives."""
    return getattr(hparams_mixin, "_given_hyperparameters").get() is not None  # noqa: B009


def warn_of_left_out(checkpoint: dict[str, Any]) -> None:
    """Warn of arguments that were objects, which a checkpoint does not hold."""
    arguments: dict[str, Any] = checkpoint.get(ARGUMENTS, {})
    names = [name for name in arguments.get(LEFT_OUT, []) if name not in arguments]
    if names:
        rank_zero_warn(
            f"the checkpoint does not hold {', '.join(names)}, because it was an object of Python: "
            "the module has the default, unless load_from_checkpoint is called with it"
        )


class _NoConfigError(Exception):
    """An object has no form of primitives."""


_MISSING = object()


def _attributes(part: Any) -> dict[str, Any]:
    """Constructor arguments of an object whose attributes have the arguments' names."""
    parameters = [*inspect.signature(type(part)).parameters.values()]
    named = [p.name for p in parameters if p.kind not in (p.VAR_POSITIONAL, p.VAR_KEYWORD)]
    return {name: getattr(part, name, _MISSING) for name in named}


def _as_config(value: Any) -> Any:
    if value is None or isinstance(value, (bool, int, float, str)):
        return value
    if isinstance(value, torch.dtype):
        return str(value).removeprefix("torch.")
    if isinstance(value, (list, tuple)):
        return [_as_config(each) for each in cast("list[Any]", value)]
    if isinstance(value, dict):
        return {name: _as_config(each) for name, each in cast("dict[str, Any]", value).items()}
    if dataclasses.is_dataclass(value):
        return {name: _as_config(each) for name, each in _attributes(value).items()}
    if isinstance(value, (CausalLM, LoRA)):
        options = {name: _as_config(each) for name, each in _attributes(value).items()}
        path = f"{type(value).__module__}.{type(value).__qualname__}"
        return {"class_path": path, "init_args": options}
    raise _NoConfigError


def restore_recipe(checkpoint: dict[str, Any], source: str) -> CausalLM:
    """The recipe of the language model of a checkpoint.

    Only classes that have been imported are used, so that a checkpoint cannot run other code.

    Raises:
        ValueError: if ``checkpoint``, which ``source`` names, has no recipe, or one of a class that
            has not been imported.
    """
    config: Any = checkpoint.get(ARGUMENTS, {}).get("model")
    if not isinstance(config, dict) or TOKENIZER not in checkpoint:
        weights = ", ".join(sorted({name.split(".")[0] for name in checkpoint["state_dict"]})[:3])
        raise ValueError(
            f"{source} has no language model (its weights: {weights}): give a checkpoint of IWSFT "
            "or GRPO that this version wrote. The weights of other modules are in "
            "torch.load(path, weights_only=True)['state_dict']"
        )
    _check_imported(config, source)
    parser = ArgumentParser(exit_on_error=False)
    parser.add_argument("--model", type=CausalLM)
    built: Any = parser.instantiate_classes(parser.parse_object({"model": config}))
    return cast("CausalLM", built.model)


def _check_imported(config: Any, source: str) -> None:
    if isinstance(config, dict):
        values = cast("dict[str, Any]", config)
        if "class_path" in values:
            module, _, name = str(values["class_path"]).rpartition(".")
            if not isinstance(getattr(sys.modules.get(module), name, None), type):
                raise ValueError(
                    f"{source} names the class {values['class_path']!r}, which has not been "
                    "imported: import its module before, if you trust it"
                )
        for value in values.values():
            _check_imported(value, source)


def tokenizer_files(tokenizer: Any) -> dict[str, bytes]:
    """The files of a tokenizer, by name; its chat template is among them."""
    with tempfile.TemporaryDirectory() as folder, transformers_quiet():
        tokenizer.save_pretrained(folder)
        files = sorted(path for path in Path(folder).rglob("*") if path.is_file())
        return {path.relative_to(folder).as_posix(): path.read_bytes() for path in files}


def restore_tokenizer(checkpoint: dict[str, Any], source: str) -> Any:
    """The tokenizer of a checkpoint.

    Raises:
        ValueError: if ``checkpoint``, which ``source`` names, has none, or a file's name is a path.
    """
    from transformers import AutoTokenizer

    restore: Any = AutoTokenizer.from_pretrained
    with tempfile.TemporaryDirectory() as folder, transformers_quiet():
        for name, content in checkpoint[TOKENIZER].items():
            path = Path(folder, name)
            if not path.resolve().is_relative_to(Path(folder).resolve()):
                raise ValueError(f"{source} has a tokenizer file outside of its folder: {name}")
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(content)
        return restore(folder)
