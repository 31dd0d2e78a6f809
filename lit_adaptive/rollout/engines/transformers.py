"""The default engine: the policy itself decodes, in batches."""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from lit_adaptive.core.bounds import check_at_least
from lit_adaptive.rollout.engines.base import Engine, Policy
from lit_adaptive.rollout.generation import (
    Completions,
    SamplingParams,
    generate,
    left_pad_sequences,
)


class TransformersEngine(Engine):
    """Decodes with the policy itself: without a second copy of the weights or synchronization.

    Prompts are sorted by length and decoded in batches, so that short ones do not wait for long
    ones. Each prompt is processed once for all of its completions, and finished completions leave
    the batch.

    Args:
        max_rows: completions per batch, above 0, but at least those of one prompt; more are faster
            and need more memory for keys and values.

    Raises:
        ValueError: if ``max_rows`` is not above 0.
    """

    def __init__(self, max_rows: int = 512) -> None:
        super().__init__()
        check_at_least(max_rows=(max_rows, 1))
        self.max_rows = max_rows

    def generate(
        self,
        prompts: Sequence[Sequence[int] | Tensor],
        samples: int,
        sampling: SamplingParams,
        seeds: Sequence[int],
    ) -> Completions:
        """See ``Engine``."""
        policy = self.policy
        batch_size = max(1, self.max_rows // samples)
        order = sorted(range(len(prompts)), key=lambda i: len(prompts[i]))
        batches = [order[k : k + batch_size] for k in range(0, len(order), batch_size)]
        outputs: list[Completions] = []
        with policy.decoding():
            while not policy.all_done(len(outputs) >= len(batches)):
                batch = batches[len(outputs)] if len(outputs) < len(batches) else []
                outputs.append(
                    _generate_batch(
                        policy,
                        [prompts[i] for i in batch],
                        samples,
                        sampling,
                        [seeds[i] for i in batch],
                    )
                )
        tokens: list[Any] = [None] * (len(prompts) * samples)
        log_probs, finish = [*tokens], [*tokens]
        for batch, output in zip(batches, outputs, strict=False):
            for k, i in enumerate(batch):
                source = slice(k * samples, (k + 1) * samples)
                target = slice(i * samples, (i + 1) * samples)
                tokens[target] = output.tokens[source]
                log_probs[target] = output.log_probs[source]
                finish[target] = output.finish[source]
        return Completions(tokens, log_probs, finish, self.version)


def _generate_batch(
    policy: Policy,
    prompts: list[Any],
    samples: int,
    sampling: SamplingParams,
    seeds: list[int],
) -> Completions:
    """Completions of a batch of prompts.

    A rank without prompts decodes a dummy token, so that sharded forward passes stay in step.
    """
    stops = policy.stops()
    if not prompts:
        sampling = SamplingParams(max_new_tokens=sampling.max_new_tokens, temperature=0.0)
        prompts, samples = [[int(policy.tokenizer.eos_token_id)]], 1
        stops = [*range(len(policy.tokenizer))]
    ids, mask = left_pad_sequences(prompts, policy.tokenizer.pad_token_id)
    return generate(
        policy.decode,
        ids.to(policy.device),
        mask.to(policy.device),
        sampling,
        stops,
        samples=samples,
        uniforms=_uniforms(seeds, samples, sampling.max_new_tokens).to(policy.device),
        all_done=policy.all_done,
    )


def _uniforms(seeds: Sequence[int], samples: int, tokens: int) -> Tensor:
    """Random numbers in [0, 1), seeded by prompt: ``[len(seeds) * samples, tokens]``."""
    generator = torch.Generator()
    uniforms = torch.empty(len(seeds), samples, tokens, dtype=torch.float64)
    for prompt, seed in zip(uniforms, seeds, strict=True):
        prompt.uniform_(generator=generator.manual_seed(seed))
    return uniforms.flatten(0, 1)
