"""Engines: what turns prompts into completions while a policy is trained.

An engine is asked for tokens only. Whoever trains tells it, before each step, that the policy has
changed (``sync``); an engine with weights of its own fetches them then, one that decodes with the
policy itself has nothing to do.
"""

from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from typing import Any, Protocol

import torch
from torch import Tensor

from lit_adaptive.rollout.generation import Completions, Sampling, generate, left_padded


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

    def decode(
        self, input_ids: Tensor, attention_mask: Tensor, position_ids: Tensor, cache: Any
    ) -> Tensor:
        """See ``lit_adaptive.rollout.generation.Decode``."""
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
        sampling: Sampling,
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
        sampling: Sampling,
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
        sampling: Sampling,
        seeds: list[int],
    ) -> Completions:
        """Some of the prompts; a rank that has none left keeps the others company with a token."""
        if not prompts:
            sampling = Sampling(max_new_tokens=sampling.max_new_tokens, temperature=0.0)
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
