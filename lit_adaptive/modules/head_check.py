"""Whether a model makes its logits in the way that is known here."""

import torch

from lit_adaptive.modules.base import evaluation_mode
from lit_adaptive.modules.language_model import LanguageModel


def check_head(language: LanguageModel) -> None:
    """Four tokens' log-probabilities must be what the model's own logits say.

    Raises:
        ValueError: if they are not, as for an architecture that does more to its logits.
    """
    base = language.base
    device = base.get_input_embeddings().weight.device
    if device.type == "meta":
        return
    ids = torch.arange(4, device=device).remainder(base.config.vocab_size)[None]
    places = torch.arange(3, device=device)
    everything = {"input_ids": ids, "attention_mask": torch.ones_like(ids)}
    with evaluation_mode(language):
        ours, _ = language(ids, torch.arange(4, device=device)[None], places, ids[0, 1:])
        logits = language.model(**everything, use_cache=False).logits[0, :-1].float()
    theirs = logits.log_softmax(-1).gather(-1, ids[0, 1:, None])[:, 0]
    if not torch.allclose(ours.log_prob, theirs, atol=0.1, rtol=0.02):
        raise ValueError(
            f"{type(base).__name__} makes its logits in a way that is not known here: "
            f"it gives {theirs.tolist()} where its head alone gives {ours.log_prob.tolist()}: "
            "choose another architecture, or report this one"
        )
