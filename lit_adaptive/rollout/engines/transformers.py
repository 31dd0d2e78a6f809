"""The default engine: the policy decodes for itself."""

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from lit_adaptive.rollout.engines.base import Engine, Policy
from lit_adaptive.rollout.generation import Completions, SamplingParams, generate, left_padded


class TransformersEngine(Engine):
    """Decodes with the policy itself: no second copy of the weights, nothing to synchronise.

    Prompts are sorted by length and decoded some at a time, so that short ones do not wait for long
    ones; each is read once for all of its completions; what is finished leaves the batch.

    Args:
        max_rows: completions decoded together, above 0; more are faster and need more memory for
            keys and values. At least one prompt's completions are.

    Raises:
        ValueError: if ``max_rows`` is not above 0.
    """

    def __init__(self, max_rows: int = 512) -> None:
        super().__init__()
        if max_rows <= 0:
            raise ValueError(f"max_rows is {max_rows}; it must be above 0")
        self.max_rows = max_rows
        self._policy: Policy | None = None

    def attach(self, policy: Policy) -> None:
        """See ``Engine``."""
        self._policy = policy

    def generate(
        self,
        prompts: Sequence[Sequence[int] | Tensor],
        samples: int,
        sampling: SamplingParams,
        seeds: Sequence[int],
    ) -> Completions:
        """See ``Engine``."""
        assert self._policy is not None  # attached by the datamodule before training
        policy = self._policy
        each = max(1, self.max_rows // samples)
        order = sorted(range(len(prompts)), key=lambda i: len(prompts[i]))
        parts = [order[at : at + each] for at in range(0, len(order), each)]
        found: list[Completions] = []
        with policy.decoding():
            while not policy.all_done(len(found) >= len(parts)):
                part = parts[len(found)] if len(found) < len(parts) else []
                some, own = [prompts[i] for i in part], [seeds[i] for i in part]
                found.append(self._part(policy, some, samples, sampling, own))
        tokens: list[Any] = [None] * (len(prompts) * samples)
        log_probs, finish = [*tokens], [*tokens]
        for part, one in zip(parts, found, strict=False):
            for k, i in enumerate(part):
                here, there = (
                    slice(k * samples, (k + 1) * samples),
                    slice(i * samples, (i + 1) * samples),
                )
                tokens[there], log_probs[there] = one.tokens[here], one.log_probs[here]
                finish[there] = one.finish[here]
        return Completions(tokens, log_probs, finish, self.version)

    def _part(
        self,
        policy: Policy,
        prompts: list[Any],
        samples: int,
        sampling: SamplingParams,
        seeds: list[int],
    ) -> Completions:
        """Some of the prompts; a rank that has none left keeps the others company with a token."""
        if not prompts:
            sampling = SamplingParams(max_new_tokens=sampling.max_new_tokens, temperature=0.0)
            prompts, samples = [[int(policy.tokenizer.eos_token_id)]], 1
            stops: Callable[[], list[int]] = lambda: [*range(len(policy.tokenizer))]  # noqa: E731
        else:
            stops = policy.stops
        dice = _dice(seeds, samples, sampling.max_new_tokens).to(policy.device)
        ids, mask = left_padded(prompts, policy.tokenizer.pad_token_id)
        return generate(
            policy.decode,
            ids.to(policy.device),
            mask.to(policy.device),
            sampling,
            stops(),
            samples=samples,
            dice=dice,
            all_done=policy.all_done,
        )


def _dice(seeds: Sequence[int], samples: int, tokens: int) -> Tensor:
    """What is random about each completion: ``[len(seeds) * samples, tokens]`` in [0, 1)."""
    source = torch.Generator()
    dice = torch.empty(len(seeds) * samples, tokens, dtype=torch.float64)
    for at, seed in enumerate(seeds):
        own = dice[at * samples : (at + 1) * samples]
        torch.rand(own.shape, dtype=own.dtype, generator=source.manual_seed(seed), out=own)
    return dice
