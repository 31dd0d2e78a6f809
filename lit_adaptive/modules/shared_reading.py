"""Whether a model can read a prompt once for several answers, and what attention costs it."""

import torch

from lit_adaptive.modules.base import evaluation_mode
from lit_adaptive.modules.language_model import LanguageModel

# Of attention's products a mask throws half away, and its kernels reach less of a processor's speed
# than a layer's other products: measured on CPU, a pair costs 1 / (4 D) to 1 / (6 D) of a token.
_TOKENS_PER_PAIR = 0.25


def attention_cost_ratio(language: LanguageModel) -> float | None:
    """What two tokens cost of which one attends to the other, in tokens of the decoder's layers.

    Returns:
        None if rows with several answers are not read as rows with one: sliding windows,
        recurrent layers, and attention that takes no mask.
    """
    config = language.base.config.get_text_config()
    if language.base.config._attn_implementation != "sdpa":
        return None
    if getattr(config, "alibi", False):  # positions are counted along the row
        return None
    layers = getattr(config, "layer_types", None)
    if layers is not None and set(layers) != {"full_attention"}:
        return None
    if layers is None and getattr(config, "sliding_window", None) is not None:
        return None
    return _TOKENS_PER_PAIR / config.hidden_size if _reads_alike(language) else None


def _reads_alike(language: LanguageModel) -> bool:
    """Two answers of two tokens behind a prompt of three, in one row and in two."""
    device = language.base.get_input_embeddings().weight.device
    if device.type == "meta":
        return True
    size = language.base.config.get_text_config().vocab_size
    ids = torch.arange(7, device=device).remainder(size)
    order = [0, 1, 2, 3, 4, 5, 6], [0, 1, 2, 3, 4, 3, 4], [0, 0, 0, 1, 1, 2, 2]
    together, positions, segment = (torch.tensor([each], device=device) for each in order)
    target, place = ids[:4], torch.tensor([3, 4, 5, 6], device=device)
    apart = torch.tensor([[0, 1, 2, 3, 4], [0, 1, 2, 5, 6]], device=device)
    every = torch.arange(5, device=device).expand(2, -1)
    with evaluation_mode(language):
        try:
            shared, _ = language(ids[together], positions, place, target, segment=segment)
        except (TypeError, ValueError, RuntimeError, IndexError):  # takes no such mask
            return False
        single, _ = language(ids[apart], every, torch.tensor([3, 4, 8, 9], device=device), target)
    near = 1e-4 if language.base.dtype == torch.float32 else 0.05
    return torch.allclose(shared.log_prob, single.log_prob, atol=near, rtol=near)
