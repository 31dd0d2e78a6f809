"""Export the language model of a checkpoint to what transformers, peft and vLLM load."""

import csv
import json
import shutil
from pathlib import Path
from typing import Any

import torch

from lit_adaptive.modules.language.arguments import (
    ARGUMENTS,
    restore_recipe,
    restore_tokenizer,
)
from lit_adaptive.modules.language.checkpoints import restore_weights
from lit_adaptive.modules.language.network import LanguageModel
from lit_adaptive.modules.language.recipes import CausalLM, DTypeName, PretrainedLM
from lit_adaptive.rollout.models.pretrained import resolve_source, transformers_quiet
from lit_adaptive.rollout.models.tokenizers import stop_token_ids
from lit_adaptive.sharded import read_checkpoint

_SHOWN = ("train/loss", "train/reward")
"""Metrics of the model card, beside those of the validation."""


def export_checkpoint(
    checkpoint: str | Path,
    folder: str | Path,
    *,
    merge: bool = False,
    dtype: DTypeName | None = None,
) -> None:
    """Write the language model of a checkpoint to a folder, whole or not at all.

    The folder holds weights (safetensors), configs, the tokenizer with its chat template, and a
    model card. With LoRA it holds the adapters, which peft loads over their base model.

    Args:
        checkpoint: a file, or a folder of shards.
        folder: to write to; it must not exist, or be empty.
        merge: add the LoRA to the weights, and write a model without adapters.
        dtype: data type of the weights; by default that of the checkpoint.

    Raises:
        ValueError: if ``folder`` is not empty, ``checkpoint`` cannot be read or has no language
            model, ``merge`` is set without LoRA, or peft could not find the adapters' base model.
    """
    source, target = str(checkpoint), Path(folder)
    state = read_checkpoint(checkpoint)
    recipe = restore_recipe(state, source)
    base = check_export(recipe, target, merge=merge)
    tokenizer = restore_tokenizer(state, source)
    language = recipe.build(tokenizer)
    restore_weights(language, state, recipe.facts(language), source)
    partial = target.with_name(target.name + ".partial")
    shutil.rmtree(partial, ignore_errors=True)
    partial.mkdir(parents=True)
    try:
        with transformers_quiet():
            model = _exported_model(language, tokenizer, base, merge=merge, dtype=dtype)
            model.save_pretrained(partial)
            tokenizer.save_pretrained(partial)
        card = _model_card(target.name, Path(checkpoint), state, recipe, base)
        (partial / "README.md").write_text(card, encoding="utf-8")
        if target.exists():
            target.rmdir()
        partial.rename(target)
    finally:
        shutil.rmtree(partial, ignore_errors=True)


def check_export(recipe: CausalLM, folder: Path, *, merge: bool) -> str | None:
    """Check the arguments of an export; see ``export_checkpoint``.

    Returns:
        The name by which peft finds the base model of adapters; None if no adapters are exported.

    Raises:
        ValueError: see ``export_checkpoint``.
    """
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise ValueError(f"folder is {folder}, which is not an empty folder: give a new one")
    if recipe.lora is None and merge:
        raise ValueError("merge is true, but the model has no LoRA to merge: leave it out")
    if recipe.lora is None or merge:
        return None
    if (
        not isinstance(recipe, PretrainedLM)
        or recipe.resize_embeddings
        or resolve_source(recipe.name).gguf is not None
    ):
        name = getattr(recipe, "name", type(recipe).__name__)
        raise ValueError(
            f"the LoRA's base model is {name!r}, which is no folder or hub model that peft could "
            "load as it was trained on (a GGUF file, random weights, or resize_embeddings): set "
            "merge (--merge), which exports a model without adapters"
        )
    path = Path(recipe.name)
    return str(path.resolve()) if path.exists() else recipe.name


def _exported_model(
    language: LanguageModel,
    tokenizer: Any,
    base: str | None,
    *,
    merge: bool,
    dtype: DTypeName | None,
) -> Any:
    """The transformers or peft model to save."""
    model = language.model
    kept = language.base.dtype if dtype is None else getattr(torch, dtype)
    if merge:
        model = model.float().merge_and_unload()  # the sum of rounded weights would be rounded
    model = model.eval() if base is not None and dtype is None else model.eval().to(kept)
    if base is not None:
        model.peft_config["default"].base_model_name_or_path = base
        return model
    config = model.generation_config
    stops = stop_token_ids(tokenizer, config)
    config.eos_token_id = stops if len(stops) > 1 else stops[0]
    config.pad_token_id = tokenizer.pad_token_id
    if suppressed := language.suppressed_tokens():
        config.suppress_tokens = suppressed
    return model


def _model_card(
    name: str, checkpoint: Path, state: dict[str, Any], recipe: CausalLM, base: str | None
) -> str:
    """Text of the README: how to load the model, its metrics, and the config of its run."""
    from huggingface_hub import ModelCardData

    package, prefix = ("transformers", "Auto") if base is None else ("peft", "AutoPeft")
    origin = getattr(recipe, "name", None)
    data: Any = ModelCardData(
        library_name=package,
        pipeline_tag="text-generation",
        tags=["lit-adaptive"],
        base_model=base or (origin if origin and not Path(origin).exists() else None),
    )
    metrics = [f"| `{key}` | {value:.6g} |" for key, value in _metrics(checkpoint, state).items()]
    return f"""---
{data.to_yaml()}
---

# {name}

Trained with lit-adaptive for {state["global_step"]} optimizer steps.

```python
from {package} import {prefix}ModelForCausalLM
from transformers import AutoTokenizer

model = {prefix}ModelForCausalLM.from_pretrained("{name}")
tokenizer = AutoTokenizer.from_pretrained("{name}")
```

## Metrics

| metric | value |
|---|---|
{chr(10).join(metrics)}

## Config

```yaml
{_config(checkpoint, state).strip()}
```
"""


def _metrics(checkpoint: Path, state: dict[str, Any]) -> dict[str, float]:
    """The last values of the run's metrics when the checkpoint was saved, by name."""
    file = checkpoint.parent.parent / "metrics.csv"
    metrics: dict[str, float] = {}
    if file.is_file():
        with file.open(newline="", encoding="utf-8") as lines:
            for row in csv.DictReader(lines):
                if int(row["step"]) < state["global_step"]:
                    shown = {k for k, v in row.items() if v and (k in _SHOWN or k[:4] == "val/")}
                    metrics |= {name: float(row[name]) for name in shown}
    for callback in state.get("callbacks", {}).values():
        score = callback.get("best_model_score") if isinstance(callback, dict) else None
        if score is not None and Path(callback["best_model_path"]).name == checkpoint.name:
            metrics[callback["monitor"]] = float(score)
    return dict(sorted(metrics.items()))


def _config(checkpoint: Path, state: dict[str, Any]) -> str:
    """The config of the run; without it the arguments of the module."""
    file = checkpoint.parent.parent / "config.yaml"
    if file.is_file():
        return file.read_text(encoding="utf-8")
    arguments = {k: v for k, v in state[ARGUMENTS].items() if not k.startswith("_")}
    return json.dumps({"model": arguments}, indent=2)  # is YAML too
