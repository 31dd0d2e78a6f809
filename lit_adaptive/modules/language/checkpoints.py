"""Checkpoints of language models: which model one is of, and the weights to start from.

The *facts* of a model are what its output depends on beside its weights (``CausalLM.facts``). They
are saved with the weights, so that a model with another config or other adapters is rejected.
"""

import hashlib
import json
from typing import Any

import torch

from lit_adaptive.modules.language.network import LanguageModel
from lit_adaptive.sharded import read_checkpoint

_PREFIX = "language."  # of the model's weights in a checkpoint
_FACTS = "recipe"  # key of the model's facts in a checkpoint


def weights_fingerprint(language: LanguageModel, facts: dict[str, Any]) -> str:
    """Hash of facts and weights; all ranks must call it together."""
    digest = hashlib.blake2b(repr(facts).encode(), digest_size=16)
    for name, parameter in sorted(language.named_parameters()):
        full: Any = parameter.detach()
        if hasattr(full, "full_tensor"):
            full = full.full_tensor()
        digest.update(f"{name} {full.dtype} {tuple(full.shape)}".encode())
        digest.update(full.cpu().contiguous().view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()


def architecture_fingerprint(language: LanguageModel, facts: dict[str, Any]) -> str:
    """Hash of facts and the weights' names and shapes, which training does not change."""
    shapes = [(name, tuple(p.shape)) for name, p in language.named_parameters()]
    text = repr([sorted(shapes), facts])
    return hashlib.blake2b(text.encode(), digest_size=8).hexdigest()


def save_facts(checkpoint: dict[str, Any], facts: dict[str, Any]) -> None:
    """Add the model's facts to its checkpoint."""
    checkpoint[_FACTS] = json.dumps(facts)


def check_facts(checkpoint: dict[str, Any], facts: dict[str, Any], source: str) -> None:
    """Compare the facts of a checkpoint's model with ``facts``, those of this model.

    Args:
        checkpoint: a checkpoint; one without facts is accepted.
        facts: see the module's docstring.
        source: name of the checkpoint in errors.

    Raises:
        ValueError: naming what differs.
    """
    if _FACTS not in checkpoint:
        return
    saved: dict[str, Any] = json.loads(checkpoint[_FACTS])
    facts = json.loads(json.dumps(facts))
    different = [
        f"{name} is {facts.get(name)!r}, there {saved.get(name)!r}"
        for name in sorted({*saved, *facts})
        if saved.get(name) != facts.get(name)
    ]
    if different:
        raise ValueError(
            f"{source} is a checkpoint of another model: {'; '.join(different[:5])}; give the "
            "model the checkpoint's values"
        )


def drop_frozen_weights(checkpoint: dict[str, Any], language: LanguageModel) -> None:
    """Leave only trained weights of the model, and of its moving average, in a checkpoint."""
    trained = {name for name, p in language.named_parameters() if p.requires_grad}
    state: dict[str, Any] = checkpoint["state_dict"]
    for name in [*state]:
        model, _, parameter = name.partition(".")
        if model in ("language", "average") and parameter not in trained:
            del state[name]


def load_weights(language: LanguageModel, path: str, facts: dict[str, Any]) -> None:
    """Load the weights of a checkpoint into ``language``, whose facts are ``facts``.

    Raises:
        ValueError: if the checkpoint cannot be read, or belongs to another model.
    """
    restore_weights(language, read_checkpoint(path), facts, f"weights ({path!r})")


def restore_weights(
    language: LanguageModel, checkpoint: dict[str, Any], facts: dict[str, Any], source: str
) -> None:
    """Load a checkpoint's weights of the trained model; of a LoRA those of the adapters.

    Args:
        language: the model.
        checkpoint: see ``read_checkpoint``.
        facts: of ``language``.
        source: name of the checkpoint in errors.

    Raises:
        ValueError: if it belongs to another model.
    """
    check_facts(checkpoint, facts, source)
    state: dict[str, Any] = checkpoint["state_dict"]
    saved = {k.removeprefix(_PREFIX): v for k, v in state.items() if k.startswith(_PREFIX)}
    known = language.state_dict()
    unknown = [
        name for name in saved if name not in known or saved[name].shape != known[name].shape
    ]
    parameters = language.named_parameters(remove_duplicate=False)  # tied ones have two names
    frozen = {name for name, p in parameters if not p.requires_grad}
    missing = [name for name in known if name not in saved and name not in frozen]
    if unknown or missing or not saved:
        raise ValueError(
            f"{source} is a checkpoint of another model: {unknown[:3]} have no weight of that "
            f"name and shape in this model, and {missing[:3]} are missing"
        )
    language.load_state_dict(saved, strict=False)
