"""Engines: what turns prompts into completions while a policy is trained.

An engine is asked for tokens only. Whoever trains tells it, before each step, that the policy has
changed (``sync``); an engine with weights of its own fetches them then, one that decodes with the
policy itself has nothing to do.
"""

from abc import ABC, abstractmethod
from collections.abc import Sequence
from contextlib import AbstractContextManager
from typing import Any, Protocol

from torch import Tensor

from lit_adaptive.rollout.generation import Completions, SamplingParams


class Policy(Protocol):
    """A policy as engines see it; ``lit_adaptive.modules.PolicyModule`` is one."""

    @property
    def device(self) -> Any:
        """Where it computes."""
        ...

    @property
    def tokenizer(self) -> Any:
        """Of transformers, with a pad token."""
        ...

    @property
    def transformer(self) -> Any:
        """The transformers model itself; adapters, if any, are in it."""
        ...

    def decode(
        self, input_ids: Tensor, attention_mask: Tensor, position_ids: Tensor, cache: Any
    ) -> Tensor:
        """See ``lit_adaptive.rollout.Decode``."""
        ...

    def stops(self) -> list[int]:
        """Tokens that end a completion."""
        ...

    def all_done(self, done: bool) -> bool:
        """Whether every rank that decodes together is done, told whether this one is."""
        ...

    def decoding(self) -> AbstractContextManager[None]:
        """Within, the policy is ready to decode: without dropout, in the run's precision."""
        ...


class Engine(ABC):
    """Completes prompts, and says with which log-probability each token was drawn."""

    def __init__(self) -> None:
        self.version = 0

    @abstractmethod
    def attach(self, policy: Policy) -> None:
        """The policy that is trained; told once, before anything else."""

    def sync(self, version: int) -> None:
        """The policy is now at ``version``: from now on its completions are wanted.

        Under several ranks all call it together.
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
        """``samples`` completions of each prompt; those of a prompt follow one another.

        The same weights, prompt and seed give the same completions, whatever else is asked for:
        so a run on several ranks writes what a run on one writes.

        Args:
            prompts: token ids, at least one each. May be none at all on a rank: where ranks decode
                together, it still takes part.
            samples: above 0.
            sampling: how tokens are chosen.
            seeds: of what is random, one for each prompt; others at each step.

        Returns:
            ``len(prompts) * samples`` completions, each with its tokens, log-probabilities (at the
            sampling temperature, so that they are the behaviour policy's), its finish, and the
            version of the policy that wrote it.
        """

    def close(self) -> None:  # noqa: B027
        """Let go of what it holds; most hold nothing."""
