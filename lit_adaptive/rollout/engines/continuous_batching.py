"""Continuous batching: transformers' paged cache and scheduler, with the policy's own weights.

A completion that ends makes room for the next at once, prompts are processed in parts between the
tokens of others, and the cache is as large as the device's memory allows: suited to a GPU and many
long completions of uneven length. On a CPU ``TransformersEngine`` is faster.

Where this departs from the interface of ``Engine``:
  1. The seeds of all prompts are combined into one, since transformers samples for all of them
     together. The same request gives the same completions, but a prompt's completions depend on the
     other prompts.
  2. It computes in the precision of the weights, without the Trainer's autocast; with mixed
     precision, set ``mismatch: truncate`` in the objective to correct the difference.
"""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from lit_adaptive.rollout.engines.base import Engine, Policy, check_untruncated
from lit_adaptive.rollout.generation import Completions, SamplingParams

_PRIME = 2**31 - 1


class ContinuousBatchingEngine(Engine):
    """Decodes with the policy itself, by transformers' continuous batching.

    Args:
        options: arguments of transformers' ``ContinuousBatchingConfig``, such as
            ``max_batch_tokens``, ``page_size``, ``max_memory_percent`` or ``use_cuda_graph``; not
            ``seed`` and ``return_logprobs``, which the engine sets.

    Raises:
        ValueError: if transformers has no such option, or the engine sets it.
    """

    def __init__(self, options: dict[str, Any] | None = None) -> None:
        super().__init__()
        self.options = dict(options or {})
        reserved = sorted({"seed", "return_logprobs"} & {*self.options})
        if reserved:
            raise ValueError(f"options has {reserved}, which the engine sets; leave them out")
        self._config(0)

    def attach(self, policy: Policy) -> None:
        """See ``Engine``.

        Raises:
            ValueError: if the model is sharded.
        """
        if any(hasattr(weight, "full_tensor") for weight in policy.transformer.parameters()):
            raise ValueError(
                "the model is sharded, and transformers' continuous batching needs complete "
                "weights: use lit_adaptive.rollout.TransformersEngine"
            )
        super().attach(policy)

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
            RuntimeError: if transformers failed on some prompts.
        """
        check_untruncated(sampling, "continuous batching")
        if len(prompts) == 0:
            return Completions([], [], [], self.version)
        policy, stops = self.policy, set(self.policy.stops())
        distinct = samples if sampling.temperature > 0 else 1  # greedy completions are all equal
        with policy.decoding():
            outputs = policy.transformer.generate_batch(
                [torch.as_tensor(prompt).tolist() for prompt in prompts],
                generation_config=_generation_config(policy, distinct, sampling),
                continuous_batching_config=self._config(_combined_seed(seeds)),
                warmup=False,
            ).values()
        completed = [output for output in outputs if output.error is None]
        if len(completed) != len(prompts) * distinct:
            errors = sorted({str(output.error) for output in outputs if output.error})
            raise RuntimeError(
                f"continuous batching gave {len(completed)} of {len(prompts) * distinct} "
                f"completions {errors[:3]}; see its messages above. Lower max_batch_tokens or "
                "max_memory_percent in options to need less memory"
            )
        completed = [output for output in completed for _ in range(samples // distinct)]
        tokens = [torch.tensor(output.generated_tokens) for output in completed]
        return Completions(
            tokens,
            [torch.tensor(output.logprobs) for output in completed],
            ["stop" if int(row[-1]) in stops else "length" for row in tokens],
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


def _generation_config(policy: Policy, samples: int, sampling: SamplingParams) -> Any:
    from transformers import GenerationConfig

    options: dict[str, Any] = {"do_sample": False}
    if sampling.temperature > 0:
        options = {"do_sample": True, "temperature": sampling.temperature, "top_k": 0, "top_p": 1.0}
    return GenerationConfig(  # type: ignore[no-untyped-call]
        **options,
        max_new_tokens=sampling.max_new_tokens,
        num_return_sequences=samples,
        eos_token_id=policy.stops(),
        pad_token_id=policy.tokenizer.pad_token_id,
        suppress_tokens=policy.suppressed_tokens() or None,
    )


def _combined_seed(seeds: Sequence[int]) -> int:
    """A seed below 2^31 that depends on all seeds and their order."""
    combined = 0
    for seed in seeds:
        combined = (combined * 1_000_003 + seed + 1) % _PRIME
    return combined
