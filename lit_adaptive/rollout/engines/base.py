"""The interface between a policy in training and the engine that generates its completions.

The trainer calls ``sync`` before each step, after the policy has changed. An engine with its own
copy of the weights fetches them then; an engine that decodes with the policy itself does nothing.
"""

from abc import ABC, abstractmethod
from collections.abc import Sequence
from contextlib import AbstractContextManager
from typing import Any, Protocol

from torch import Tensor

from lit_adaptive.rollout.generation import Completions, SamplingParams


class Policy(Protocol):
    """The parts of a policy that engines use; ``lit_adaptive.modules.PolicyModule`` has them."""

    @property
    def device(self) -> Any:
        """Device of the model."""
        ...

    @property
    def tokenizer(self) -> Any:
        """A transformers tokenizer with a pad token."""
        ...

    @property
    def transformer(self) -> Any:
        """The transformers model, including adapters."""
        ...

    def decode(
        self, input_ids: Tensor, attention_mask: Tensor, position_ids: Tensor, cache: Any
    ) -> Tensor:
        """See ``lit_adaptive.rollout.Decode``."""
        ...

    def stops(self) -> list[int]:
        """Ids of tokens that end a completion."""
        ...

    def suppressed_tokens(self) -> list[int]:
        """Ids that the model has but the tokenizer has not; they are never sampled."""
        ...

    def all_done(self, done: bool) -> bool:
        """Whether all ranks that decode together are done; ``done`` is this rank's state."""
        ...

    def decoding(self) -> AbstractContextManager[None]:
        """Context for decoding: without dropout, in the precision of the run."""
        ...


class Engine(ABC):
    """Generates completions of prompts, with the log-probability of each token.

    Attributes:
        version: version of the policy at the last ``sync``.
    """

    def __init__(self) -> None:
        self.version = 0
        self._policy: Policy | None = None

    @property
    def policy(self) -> Policy:
        """The policy in training.

        Raises:
            RuntimeError: before ``attach``.
        """
        if self._policy is None:
            raise RuntimeError(
                f"{type(self).__name__} has no policy; call attach(policy), as RolloutDataModule "
                "does before training"
            )
        return self._policy

    def attach(self, policy: Policy) -> None:
        """Set the policy in training; called once, before anything else."""
        self._policy = policy

    def sync(self, version: int) -> None:
        """Use the policy's current weights, which are version ``version``.

        All ranks call it together.
        """
        self.version = version

    @abstractmethod
    def generate(
        self,
        prompts: Sequence[Sequence[int] | Tensor],
        samples: int,
        sampling: SamplingParams,
        seeds: Sequence[int],
    ) -> Completions:
        """Generate ``samples`` completions of each prompt; those of a prompt are adjacent.

        The same weights, prompt and seed give the same completions, whatever the other prompts, so
        that a run on several ranks generates what a run on one generates.

        Args:
            prompts: token ids, at least one for each prompt. A rank may have no prompts; where
                ranks decode together, it still takes part.
            samples: completions per prompt, above 0.
            sampling: options of sampling.
            seeds: random seed of each prompt, different at each step.

        Returns:
            ``len(prompts) * samples`` completions with the log-probabilities of the behavior
            policy, that is at the sampling temperature, and the version of the policy.
        """

    def close(self) -> None:  # noqa: B027
        """Release resources; by default there are none."""


def check_untruncated(sampling: SamplingParams, name: str) -> None:
    """Check that log-probabilities of the sampling distribution are those of the policy.

    Raises:
        ValueError: if ``sampling`` truncates or penalizes.
    """
    if sampling != SamplingParams(sampling.max_new_tokens, sampling.temperature):
        raise ValueError(
            f"top_p is {sampling.top_p}, top_k {sampling.top_k}, min_p {sampling.min_p} and "
            f"repetition_penalty {sampling.repetition_penalty}; {name} returns "
            "log-probabilities of the truncated distribution, not of the policy: leave them at "
            "1, 0, 0 and 1, or use TransformersEngine"
        )
