"""What the engines of vLLM in the process and of vLLM servers share."""

import json
from abc import abstractmethod
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from lit_adaptive.rollout.engines.base import Engine, Policy, check_untruncated
from lit_adaptive.rollout.generation import Completions, SamplingParams
from lit_adaptive.rollout.models.pretrained import transformers_quiet

LOG_PROBS_MODE = "processed_logprobs"
"""vLLM's name of log-probabilities at the sampling temperature."""

_PROBES, _PROBE_TEMPERATURE, _PROBE_BOUND = 8, 2.0, 0.5

Row = tuple[list[int], list[float]]
"""Tokens of a completion, and their log-probabilities."""


class VLLMSampling(Engine):
    """An engine that decodes with vLLM's copy of the policy."""

    def generate(
        self,
        prompts: Sequence[Sequence[int] | Tensor],
        samples: int,
        sampling: SamplingParams,
        seeds: Sequence[int],
    ) -> Completions:
        """See ``Engine``.

        Raises:
            ValueError: if ``sampling`` would change the distribution otherwise than by temperature.
            RuntimeError: if vLLM's probabilities are not the policy's, or no server is left.
        """
        check_untruncated(sampling, "vLLM")
        if len(prompts) == 0:
            return Completions([], [], [], self.version)
        distinct = samples if sampling.temperature > 0 else 1  # greedy completions are all equal
        options = sampling_options(self.policy, distinct, sampling)
        rows = self._rows([torch.as_tensor(p).tolist() for p in prompts], options, seeds)
        repeated = [row for row in rows for _ in range(samples // distinct)]
        stops = self.policy.stops()
        return Completions(
            [torch.tensor(tokens, dtype=torch.int64) for tokens, _ in repeated],
            [torch.tensor(log_probs, dtype=torch.float32) for _, log_probs in repeated],
            ["stop" if tokens[-1] in stops else "length" for tokens, _ in repeated],
            self.version,
        )

    @abstractmethod
    def _rows(
        self, prompts: list[list[int]], options: dict[str, Any], seeds: Sequence[int]
    ) -> list[Row]:
        """Completions of prompts with vLLM's ``options``, in order."""


def sampling_options(policy: Policy, samples: int, sampling: SamplingParams) -> dict[str, Any]:
    """Fields of vLLM's ``SamplingParams``; ids that no token has are never drawn."""
    return {
        "n": samples,
        "temperature": sampling.temperature,
        "max_tokens": sampling.max_new_tokens,
        "stop_token_ids": policy.stops(),
        "ignore_eos": True,  # the policy's stops are all that count
        "logprobs": 0,  # of the drawn token alone
        "logit_bias": dict.fromkeys(policy.suppressed_tokens(), -100.0) or None,
        "detokenize": False,
        "top_p": 1.0,
        "top_k": 0,
        "min_p": 0.0,
        "repetition_penalty": 1.0,
    }


@torch.no_grad()
def policy_weights(policy: Policy) -> dict[str, Tensor]:
    """The policy's weights under the names of its checkpoints; all ranks call it together.

    LoRA is merged, shards are gathered, and the output head has a weight of its own: vLLM's CPU
    kernels keep a packed copy of a tied one, which loading the embedding would not renew.
    """
    from transformers.core_model_loading import revert_weight_conversion

    model = policy.transformer
    weights: dict[str, Tensor] = {
        name.replace(".base_layer.", "."): _full(value.detach())
        for name, value in model.state_dict(keep_vars=True).items()
        if ".lora_" not in name
    }
    for name, module in model.named_modules():
        if hasattr(module, "get_delta_weight") and not getattr(module, "merged", False):
            for adapter in module.active_adapters:
                delta = _full(module.get_delta_weight(adapter))
                whole = weights[f"{name}.weight"]
                weights[f"{name}.weight"] = (whole.float() + delta.float()).to(whole.dtype)
    reverted: dict[str, Tensor] = revert_weight_conversion(model, weights)
    return reverted


def _full(value: Any) -> Tensor:
    full: Tensor = value.full_tensor() if hasattr(value, "full_tensor") else value
    return full


def save_description(policy: Policy, folder: Path) -> None:
    """Write config and tokenizer, from which vLLM builds the model."""
    model = policy.transformer
    with transformers_quiet():
        model.config.save_pretrained(folder)
        policy.tokenizer.save_pretrained(folder)
    file = folder / "config.json"
    config: dict[str, Any] = json.loads(file.read_text(encoding="utf-8"))
    config |= {"architectures": [type(model).__name__], "tie_word_embeddings": False}
    file.write_text(json.dumps(config), encoding="utf-8")


def probe(policy: Policy) -> tuple[list[int], dict[str, Any]]:
    """A prompt, and sampling options for some first tokens, whose probabilities are compared."""
    sampling = SamplingParams(max_new_tokens=1, temperature=_PROBE_TEMPERATURE)
    prompt = [
        int(policy.tokenizer.eos_token_id),
        *sorted(policy.tokenizer.get_vocab().values())[:8],
    ]
    return prompt, sampling_options(policy, _PROBES, sampling)


@torch.no_grad()
def probe_log_probs(policy: Policy) -> Tensor:
    """The policy's log-probabilities ``[V]`` after the probe; all ranks call it together."""
    from transformers import DynamicCache

    ids = torch.tensor([probe(policy)[0]], device=policy.device)
    positions = torch.arange(ids.shape[1], device=policy.device)[None]
    with policy.decoding():
        logits = policy.decode(ids, torch.ones_like(ids), positions, DynamicCache())
    return (logits[0].float() / _PROBE_TEMPERATURE).log_softmax(-1).cpu()


def check_probe(rows: list[Row], expected: Tensor, source: str) -> None:
    """Check log-probabilities of drawn tokens against the policy's ``[V]``.

    Raises:
        RuntimeError: if their mean difference is too great for rounding.
    """
    tokens = torch.tensor([row[0][0] for row in rows])
    log_probs = torch.tensor([row[1][0] for row in rows])
    if int(tokens.max()) < len(expected):
        difference = float((expected[tokens] - log_probs).abs().mean())
        if difference < _PROBE_BOUND:
            return
    else:
        difference = float("inf")
    raise RuntimeError(
        f"log-probabilities of {source} differ from the policy's by {difference:.2g} on average "
        f"(bound: {_PROBE_BOUND}), after it was given the policy's weights: it serves another "
        f"model, lost its weights, or was not started with --logprobs-mode {LOG_PROBS_MODE}"
    )
