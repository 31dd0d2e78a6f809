"""Prompts answered and judged: what becomes a group of rollouts."""

import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from lit_adaptive.core.advantages import overlong_penalty
from lit_adaptive.data.text.prompt_dataset import PromptDataset
from lit_adaptive.replay.rollouts.groups import RolloutGroups
from lit_adaptive.rollout.engines.base import Engine
from lit_adaptive.rollout.generation import Completions, SamplingParams
from lit_adaptive.rollout.rewards.scorer import Scorer, Scores
from lit_adaptive.samplers import Draw


@dataclass(frozen=True)
class RolloutCollector:
    """How prompts are answered and judged.

    Attributes:
        dataset: of the prompts.
        engine: answers them.
        scorer: judges the answers.
        sampling: how tokens are chosen.
        group_size: answers of each prompt, a demonstration among them if there are any.
        demonstrations: of each group, 0 or 1.
        overlong: tokens before ``max_new_tokens`` from which on length is punished; 0: never.
        advantages: of rewards ``[N]``, groups ``[N]`` and their number: ``[N]``.
    """

    dataset: PromptDataset
    engine: Engine
    scorer: Scorer
    sampling: SamplingParams
    group_size: int
    demonstrations: int
    overlong: int
    advantages: Callable[[Tensor, Tensor, int], Tensor]

    def answered(
        self, draw: Draw, weight: Tensor, version: int, seeds: list[int]
    ) -> tuple[RolloutGroups, dict[str, float]]:
        """A group for each prompt drawn on this rank, with what it took.

        Args:
            draw: prompts ``[P]``; may be none.
            weight: ``[P]``, of their losses.
            version: of the policy.
            seeds: of the answers to each prompt.
        """
        index = draw.index.cpu()
        prompts = self.dataset.tokens(index)
        begun = time.perf_counter()
        samples = self.group_size - self.demonstrations
        found = self.engine.generate(prompts, samples, self.sampling, seeds)
        generation = time.perf_counter() - begun
        _check(found, len(prompts) * samples, type(self.engine).__name__)
        written = sum(len(tokens) for tokens in found.tokens)
        groups = self._groups(draw, weight, prompts, found, version)
        scores = self._judged(groups, index)
        reward = scores.reward
        if self.overlong:
            penalty = overlong_penalty(
                groups.lengths, max_length=self.sampling.max_new_tokens, cache=self.overlong
            )
            reward = reward + torch.where(groups.demonstration, 0.0, penalty)
        advantage = self.advantages(reward, groups.group, len(groups))
        groups = replace(groups, reward=reward, advantage=advantage)
        took = {
            "generated_tokens": float(written),
            "rollouts": float(len(found.tokens)),
            "seconds/generation": generation,
        }
        return groups, took | scores.logged()

    def _groups(
        self, draw: Draw, weight: Tensor, prompts: list[Tensor], found: Completions, version: int
    ) -> RolloutGroups:
        index, samples = draw.index.tolist(), self.group_size - self.demonstrations
        tokens, log_probs, stopped, shown = [], [], [], []
        for group, prompt in enumerate(index):
            here = slice(group * samples, (group + 1) * samples)
            tokens += [each.int() for each in found.tokens[here]]
            log_probs += [each.float() for each in found.log_probs[here]]
            stopped += [each == "stop" for each in found.finish[here]]
            shown += [False] * samples
            for _ in range(self.demonstrations):
                answer = torch.tensor(self.dataset.demonstration(prompt), dtype=torch.int32)
                tokens.append(answer)
                log_probs.append(torch.zeros(len(answer)))  # as if its writer were certain of it
                stopped.append(True)
                shown.append(True)
        none = torch.empty(0)
        return RolloutGroups(
            prompt=draw.index.cpu(),
            version=torch.full((len(index),), version),
            probability=draw.probability.cpu().double(),
            weight=weight.cpu().float(),
            size=torch.full((len(index),), self.group_size),
            prompt_tokens=torch.cat([*prompts, none.int()]),
            prompt_lengths=torch.tensor([len(each) for each in prompts], dtype=torch.int64),
            tokens=torch.cat([*tokens, none.int()]),
            log_probs=torch.cat([*log_probs, none]),
            lengths=torch.tensor([len(each) for each in tokens], dtype=torch.int64),
            reward=torch.zeros(len(tokens)),
            stopped=torch.tensor(stopped, dtype=torch.bool),
            demonstration=torch.tensor(shown, dtype=torch.bool),
            advantage=torch.zeros(len(tokens)),
        )

    def _judged(self, groups: RolloutGroups, index: Tensor) -> Scores:
        rows = self.dataset.texts(index)
        group = groups.group
        repeated = [rows[g] for g in group.tolist()]
        names = [name for name in (rows[0] if rows else {}) if name != "prompt"]
        columns = {name: [row[name] for row in repeated] for name in names}
        texts = self.dataset.decoded(torch.split(groups.tokens, groups.lengths.tolist()))
        return self.scorer([row["prompt"] for row in repeated], texts, columns, group)


def _check(found: Completions, count: int, engine: str) -> None:
    """Refuse what an engine must not give."""
    if len(found.tokens) != count:
        raise ValueError(
            f"{engine} gave {len(found.tokens)} completions where {count} were asked for: give "
            "`samples` for each prompt"
        )
    given: list[Any] = [*(found.log_probs or ())]
    given += [None] * (count - len(given))
    wrong = [
        row
        for row, (tokens, each) in enumerate(zip(found.tokens, given, strict=True))
        if each is None or len(each) != len(tokens) or not bool(torch.isfinite(each).all())
    ]
    if wrong:
        raise ValueError(
            f"{engine} gave no finite log-probability for each token of the completions "
            f"{wrong[:8]}; without them replayed rollouts would be trained on as if they were "
            "fresh: make it return them at the sampling temperature"
        )
