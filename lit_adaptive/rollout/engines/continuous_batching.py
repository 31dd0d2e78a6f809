"""Continuous batching: transformers' paged cache and scheduler, with the policy's own weights.

A completion that ends makes room for the next at once, prompts are read in parts between the tokens
of others, and the cache is as large as the device's memory allows: made for a GPU and many long
completions of uneven length. It runs on a CPU as well, where ``TransformersEngine`` is faster.

Where it departs from what an engine promises:
  1. One seed is made of those of all prompts, for transformers draws for all of them together. The
     same request gives the same completions; among other prompts, a prompt's differ.
  2. It computes in the precision of the weights, without the Trainer's autocast: with mixed
     precision, ``mismatch: truncate`` of the objective sees to the difference.
"""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from lit_adaptive.rollout.engines.base import Engine, Policy
from lit_adaptive.rollout.generation import Completions, SamplingParams

_PRIME = 2**31 - 1


class ContinuousBatchingEngine(Engine):
    """Decodes with the policy itself, by transformers' continuous batching.

    Args:
        options: of transformers' ``ContinuousBatchingConfig``, such as ``max_batch_tokens``,
            ``page_size``, ``max_memory_percent`` or ``use_cuda_graph``; the seed and the
            log-probabilities are set here.

    Raises:
        ValueError: if transformers knows no such option, or one is set here.
    """

    def __init__(self, options: dict[str, Any] | None = None) -> None:
        super().__init__()
        self.options = dict(options or {})
        own = sorted({"seed", "return_logprobs"} & {*self.options})
        if own:
            raise ValueError(f"options has {own}, which the engine sets itself: leave them out")
        self._config(0)
        self._policy: Policy | None = None

    def attach(self, policy: Policy) -> None:
        """See ``Engine``.

        Raises:
            ValueError: if the model is sharded.
        """
        if any(hasattr(each, "full_tensor") for each in policy.transformer.parameters()):
            raise ValueError(
                "the model is sharded, and transformers' continuous batching reads whole weights: "
                "use lit_adaptive.rollout.TransformersEngine"
            )
        self._policy = policy

    def generate(
        self,
        prompts: Sequence[Sequence[int] | Tensor],
        samples: int,
        sampling: SamplingParams,
        seeds: Sequence[int],
    ) -> Completions:
        """See ``Engine``.

        Raises:
            ValueError: if ``top_p`` or ``top_k`` would cut the law.
            RuntimeError: if transformers gave up on some of them.
        """
        if sampling.top_p < 1 or sampling.top_k:
            raise ValueError(
                f"top_p is {sampling.top_p} and top_k {sampling.top_k}; continuous batching tells "
                "log-probabilities of the law that they cut, not of the policy's: leave them at 1 "
                "and 0, or use TransformersEngine"
            )
        if len(prompts) == 0:
            return Completions([], [], [], self.version)
        assert self._policy is not None  # attached by the datamodule before training
        policy, stops = self._policy, set(self._policy.stops())
        asked = samples if sampling.temperature > 0 else 1  # greedy ones are all alike
        with policy.decoding():
            found = policy.transformer.generate_batch(
                [torch.as_tensor(each).tolist() for each in prompts],
                generation_config=_asked(policy, asked, sampling),
                continuous_batching_config=self._config(_one(seeds)),
                warmup=False,
            )
        given = [each for each in found.values() if each.error is None]
        if len(given) != len(prompts) * asked:
            errors = sorted({str(each.error) for each in found.values() if each.error})
            raise RuntimeError(
                f"continuous batching gave {len(given)} of {len(prompts) * asked} completions "
                f"{errors[:3]}: see its messages above; less memory is needed with a lower "
                "max_batch_tokens or max_memory_percent in options"
            )
        given = [each for each in given for _ in range(samples // asked)]
        tokens = [torch.tensor(each.generated_tokens) for each in given]
        return Completions(
            tokens,
            [torch.tensor(each.logprobs) for each in given],
            ["stop" if int(each[-1]) in stops else "length" for each in tokens],
            self.version,
        )

    def _config(self, seed: int) -> Any:
        from transformers import ContinuousBatchingConfig

        try:
            return ContinuousBatchingConfig(**self.options, seed=seed, return_logprobs=True)
        except TypeError as error:
            raise ValueError(
                f"options is {self.options}, which transformers' ContinuousBatchingConfig does "
                f"not take: {error}"
            ) from error


def _asked(policy: Policy, samples: int, sampling: SamplingParams) -> Any:
    from transformers import GenerationConfig

    drawn: dict[str, Any] = {"do_sample": False}
    if sampling.temperature > 0:
        drawn = {"do_sample": True, "temperature": sampling.temperature, "top_k": 0, "top_p": 1.0}
    return GenerationConfig(  # type: ignore[no-untyped-call]
        **drawn,
        max_new_tokens=sampling.max_new_tokens,
        num_return_sequences=samples,
        eos_token_id=policy.stops(),
        pad_token_id=policy.tokenizer.pad_token_id,
    )


def _one(seeds: Sequence[int]) -> int:
    """A seed below 2^31 that depends on all of them and on their order."""
    found = 0
    for seed in seeds:
        found = (found * 1_000_003 + seed + 1) % _PRIME
    return found
