"""What a built language model can do, found out by scoring a few tokens with it.

``check_head`` compares the log-probabilities with the model's own logits; ``reads_packed_rows`` and
``attention_cost_ratio`` find out which rows the model reads as it reads one sample per row.
"""

import torch
from torch import Tensor, nn

from lit_adaptive.modules.base import evaluation_mode
from lit_adaptive.modules.language.network import LanguageModel

# Cost of one attention pair in tokens of a decoder layer, times the hidden size. Measured on CPU as
# 1/4 to 1/6: a mask discards half of the products, and attention kernels are less efficient than a
# layer's other products.
_TOKENS_PER_PAIR = 0.25


def check_head(language: LanguageModel) -> None:
    """Check on eight tokens that ``language`` and the model's own logits agree.

    Raises:
        ValueError: if they do not, as for an architecture that transforms its logits further, or
            if the output head is not a plain linear layer, as with an adapter.
    """
    base = language.base
    head = base.get_output_embeddings()
    hooks = ("_forward_hooks", "_forward_pre_hooks")
    if type(head) is not nn.Linear or any(getattr(head, name) for name in hooks):
        raise ValueError(
            f"the output head of {type(base).__name__} is {type(head).__module__}."
            f"{type(head).__qualname__}, or has hooks; log-probabilities are computed from its "
            "weight and bias alone, so an adapter on it would not be trained: leave the head out "
            "of the LoRA's targets"
        )
    device = head.weight.device
    if device.type == "meta":
        return
    ids = probe_tokens(language, 8)[None]
    position = torch.arange(7, device=device)
    inputs = {"input_ids": ids, "attention_mask": torch.ones_like(ids)}
    with evaluation_mode(language):
        scores, _ = language(ids, torch.arange(8, device=device)[None], position, ids[0, 1:])
        logits = language.model(**inputs, use_cache=False).logits[0, :-1].float()
    logits = language.mask_logits(logits)
    finite = logits[logits.isfinite()]
    tolerance = 16 * torch.finfo(base.dtype).eps * finite.abs().max() + 0.02 * finite.std()
    expected = logits.log_softmax(-1).gather(-1, ids[0, 1:, None])[:, 0]
    if bool(((scores.log_prob - expected).abs() > tolerance + 1e-5).any()):
        raise ValueError(
            f"{type(base).__name__} computes its logits in an unsupported way: its log-"
            f"probabilities are {expected.tolist()}, its head alone gives "
            f"{scores.log_prob.tolist()}: choose another architecture, or report this one"
        )


def probe_tokens(language: LanguageModel, count: int) -> Tensor:
    """``count`` different tokens, if there are so many, on the model's device."""
    device = language.base.get_output_embeddings().weight.device
    ids = language.existing_tokens()
    return ids[torch.arange(count).remainder(len(ids))].to(device)


def reads_packed_rows(language: LanguageModel) -> bool:
    """Whether samples in one row have the log-probabilities that they have in rows of their own.

    Two samples of six tokens are scored in one row; changing the first must not affect the second.
    Layers that carry a state from token to token (recurrent ones, convolutions), and attention that
    does not read the position ids, let it.
    """
    device = language.base.get_output_embeddings().weight.device
    if device.type == "meta":
        return True
    ids, size = probe_tokens(language, 18), 6
    first, second, other = ids.view(3, size)
    positions = torch.arange(size, device=device)
    places = torch.arange(size - 1, device=device)
    with evaluation_mode(language):
        try:
            packed, changed = (
                language(
                    torch.cat([neighbour, second])[None],
                    positions.repeat(2)[None],
                    places + size,
                    second[1:],
                )[0].log_prob
                for neighbour in (first, other)
            )
        except (TypeError, ValueError, RuntimeError, IndexError):  # does not accept such rows
            return False
        alone = language(second[None], positions[None], places, second[1:])[0].log_prob
    return torch.allclose(packed, changed, atol=1e-6, rtol=1e-6) and _close(language, packed, alone)


def _close(language: LanguageModel, left: Tensor, right: Tensor) -> bool:
    """Whether log-probabilities from tensors of different shapes agree up to rounding."""
    tolerance = 1e-5 if language.base.dtype == torch.float32 else 0.05
    return torch.allclose(left, right, atol=tolerance, rtol=tolerance)


def attention_cost_ratio(language: LanguageModel) -> float | None:
    """Cost of one attention pair of tokens, in tokens of a decoder layer.

    Returns:
        None if the model does not read rows of several completions behind one prompt as it reads
        one row per completion: models with sliding windows or recurrent layers, and attention
        implementations without a mask.
    """
    config = language.base.config.get_text_config()
    if language.base.config._attn_implementation != "sdpa":
        return None
    if getattr(config, "alibi", False):  # counts positions along the row
        return None
    layers = getattr(config, "layer_types", None)
    if layers is not None and set(layers) != {"full_attention"}:
        return None
    if layers is None and getattr(config, "sliding_window", None) is not None:
        return None
    return _TOKENS_PER_PAIR / config.hidden_size if _reads_shared_prompts(language) else None


def _reads_shared_prompts(language: LanguageModel) -> bool:
    """Whether two completions behind one prompt are scored as in two rows, and independently."""
    device = language.base.get_output_embeddings().weight.device
    if device.type == "meta":
        return True
    ids = probe_tokens(language, 9)
    positions, segment = (
        torch.tensor([row], device=device) for row in ([0, 1, 2, 3, 4, 3, 4], [0, 0, 0, 1, 1, 2, 2])
    )
    target, position = ids[:4], torch.tensor([3, 4, 5, 6], device=device)
    changed_ids = torch.cat([ids[:3], ids[7:], ids[5:7]])[None]
    two_rows = torch.tensor([[0, 1, 2, 3, 4], [0, 1, 2, 5, 6]], device=device)
    position_ids = torch.arange(5, device=device).expand(2, -1)
    with evaluation_mode(language):
        try:
            shared, changed = (
                language(row, positions, position, target, segment=segment)[0].log_prob
                for row in (ids[None, :7], changed_ids)
            )
        except (TypeError, ValueError, RuntimeError, IndexError):  # does not accept such a mask
            return False
        position = torch.tensor([3, 4, 8, 9], device=device)
        separate, _ = language(ids[two_rows], position_ids, position, target)
    independent = torch.allclose(shared[2:], changed[2:], atol=1e-6, rtol=1e-6)
    return independent and _close(language, shared, separate.log_prob)
