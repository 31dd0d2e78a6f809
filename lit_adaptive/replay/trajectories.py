"""Stored rollouts of a behavior policy, from which the influence of prompts is estimated.

``TrajectoryStore`` is a folder of shards, each a safetensors file with the fields of
``RolloutGroups``; it holds what was collected once before a run. ``TrajectoryBuffer`` holds one
group per prompt in memory, and takes newer ones from the run's own rollouts, whose behavior policy
is the version that generated them. Prompts whose first rollouts all had one reward have no
gradient; the buffer brings them back once newer ones differ (CROPI, arXiv:2510.26491, never does).
"""

import json
import re
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from lit_adaptive.core.advantages import INFORMATIVE
from lit_adaptive.files import write_atomically
from lit_adaptive.replay.rollouts.groups import FIELDS, RolloutGroups
from lit_adaptive.replay.rollouts.keep_rule import keep_outcomes, last_occurrences
from lit_adaptive.replay.state import SavedState, check_settings

_SHARD = re.compile(r"trajectories-(\d{5})\.safetensors")
_FACTS = "facts"  # key of a shard's metadata


class TrajectoryStore:
    """A folder of groups of rollouts, written shard by shard; a shard is complete or not there.

    Args:
        folder: created when the first shard is added.
        facts: what the rollouts depend on, by name, such as ``tokenizer``, ``model`` and
            ``temperature``; those of the shards must be equal as far as they are named here.

    Raises:
        ValueError: if a shard has other facts (naming them), or is damaged.
    """

    def __init__(self, folder: str | Path, facts: Mapping[str, str]) -> None:
        self.folder, self.facts = Path(folder), dict(facts)
        for shard in self.shards:
            self._check_facts(shard)

    @property
    def shards(self) -> list[Path]:
        """The files, in the order in which they were added."""
        return sorted(path for path in self.folder.glob("*") if _SHARD.fullmatch(path.name))

    def add(self, groups: RolloutGroups) -> Path:
        """Write groups as a new shard, and return its path.

        Raises:
            ValueError: if fields are inconsistent or not finite (naming the prompts).
            OSError: if the disk is full; the shards before stay usable.
        """
        groups.check()
        groups.check_finite()
        last = self.shards[-1:]
        number = int(_SHARD.fullmatch(last[0].name)[1]) + 1 if last else 0  # type: ignore[index]
        path = self.folder / f"trajectories-{number:05d}.safetensors"
        tensors = {name: value.contiguous() for name, value in groups.state_dict().items()}
        with write_atomically(path) as temporary:
            save_file(tensors, temporary, {_FACTS: json.dumps(self.facts, sort_keys=True)})
        return path

    def prompts(self) -> Tensor:
        """The prompts that have rollouts: int64, ascending and distinct."""
        columns = [self._read(shard, "prompt")["prompt"] for shard in self.shards]
        prompts: Tensor = torch.unique(torch.cat([torch.empty(0, dtype=torch.int64), *columns]))
        return prompts

    def read(self) -> RolloutGroups:
        """All groups, in the order in which they were added."""
        parts: list[RolloutGroups] = []
        for shard in self.shards:
            try:
                parts.append(RolloutGroups.from_state_dict(self._read(shard, *FIELDS)))
            except ValueError as error:
                raise ValueError(f"{shard}: {error}") from error
        return RolloutGroups.cat(parts)

    def _read(self, shard: Path, *names: str) -> dict[str, Tensor]:
        try:
            with safe_open(shard, "pt") as file:
                return {name: file.get_tensor(name) for name in names}
        except SafetensorError as error:
            raise _damaged(shard, error) from error

    def _check_facts(self, shard: Path) -> None:
        try:
            with safe_open(shard, "pt") as file:
                saved: dict[str, str] = json.loads(file.metadata()[_FACTS])
        except (SafetensorError, TypeError, KeyError, ValueError) as error:
            raise _damaged(shard, error) from error
        different = [
            f"{name} is {value!r}, there {saved.get(name)!r}"
            for name, value in self.facts.items()
            if saved.get(name) != value
        ]
        if different:
            raise ValueError(
                f"{shard} has trajectories of another policy or task: {'; '.join(different)}. Use "
                "the config that they were collected with, or collect new ones in another folder"
            )


def _damaged(shard: Path, error: Exception) -> ValueError:
    return ValueError(
        f"{shard} is damaged, or not a file of trajectories ({error}): delete it and collect "
        "again; only what is missing is added"
    )


class TrajectoryBuffer(SavedState):
    """The newest rollouts of each prompt that have a gradient. Not thread-safe.

    A group replaces the one of its prompt if its rewards differ, or if those of the old one do not.
    Groups that a ``TrajectoryStore`` holds are not part of ``state_dict``.

    Attributes:
        fingerprint: identifies the tokenizer and model of the rollouts; set by the owner.
        replaced: groups replaced by newer ones.
        revived: those among them that had no gradient, where the newer one has.
        skipped: newer groups without gradient that did not replace one with a gradient.
    """

    def __init__(self) -> None:
        self._groups: dict[int, RolloutGroups] = {}  # by prompt
        self._informative: dict[int, bool] = {}
        self._stored: set[int] = set()  # prompts whose group is in a store
        self.fingerprint: str | None = None
        self.replaced = self.revived = self.skipped = 0

    def __len__(self) -> int:
        """Number of prompts."""
        return len(self._groups)

    @property
    def prompts(self) -> Tensor:
        """The prompts: int64, ascending."""
        return torch.tensor(sorted(self._groups), dtype=torch.int64)

    @property
    def informative(self) -> Tensor:
        """The prompts whose rewards differ, which have a gradient: int64, ascending."""
        known = [prompt for prompt, has in self._informative.items() if has]
        return torch.tensor(sorted(known), dtype=torch.int64)

    def update(self, groups: RolloutGroups, *, stored: bool = False) -> None:
        """Add groups, of which the last of a prompt is the newest.

        Args:
            groups: rollouts with rewards.
            stored: whether they come from a ``TrajectoryStore``.

        Raises:
            ValueError: if fields are inconsistent or not finite (naming the prompts). Nothing
                changes then.
        """
        groups.check()
        groups.check_finite()
        informative = keep_outcomes(groups, 0.0) == INFORMATIVE
        # Of several groups of a prompt the last informative one, or else the last.
        order = informative.int().argsort(stable=True)
        index = order[last_occurrences(groups.prompt[order])]
        new = zip(index.tolist(), groups.select(index).split(), strict=True)
        for place, group in new:
            prompt, has = int(groups.prompt[place]), bool(informative[place])
            had = self._informative.get(prompt)
            if had and not has:
                self.skipped += 1
                continue
            self.replaced += had is not None
            self.revived += had is False and has
            self._groups[prompt], self._informative[prompt] = group, has
            self._stored.add(prompt) if stored else self._stored.discard(prompt)

    def select(self, prompts: Tensor) -> RolloutGroups:
        """Copies of the groups of ``prompts`` int64, in this order.

        Raises:
            ValueError: naming the prompts that have none.
        """
        missing = [prompt for prompt in prompts.tolist() if prompt not in self._groups]
        if missing:
            raise ValueError(
                f"the prompts {missing[:8]} have no trajectories: collect them first "
                "(lit-adaptive collect)"
            )
        return RolloutGroups.cat([self._groups[prompt] for prompt in prompts.tolist()])

    def renumber(self, rows: Tensor) -> None:
        """Keep the prompts that are still there, under their new numbers, as not stored.

        Args:
            rows: ``[N]`` int64, number of each prompt so far; -1 for a new one.
        """
        before, self._groups = self._groups, {}
        informative, self._informative = self._informative, {}
        self._stored = set()
        for new, old in enumerate(rows.tolist()):
            if old in before:
                self._groups[new] = replace(before[old], prompt=torch.tensor([new]))
                self._informative[new] = informative[old]

    def state_dict(self) -> dict[str, Any]:
        """The groups that no store holds, and the counters."""
        own = [prompt for prompt in sorted(self._groups) if prompt not in self._stored]
        return {
            "kind": type(self).__name__,
            "fingerprint": self.fingerprint,
            "groups": self.select(torch.tensor(own, dtype=torch.int64)).state_dict(),
            "counters": [self.replaced, self.revived, self.skipped],
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Replace the groups that no store holds, and the counters, by those of ``state_dict``.

        Raises:
            ValueError: if it is of another class, tokenizer or model, or damaged; nothing is
                changed then.
        """
        settings: dict[str, object] = {}
        if self.fingerprint is not None:
            settings["fingerprint"] = self.fingerprint
        check_settings(state, type(self).__name__, **settings)
        loaded = TrajectoryBuffer()
        loaded.update(
            self.select(torch.tensor(sorted(self._stored), dtype=torch.int64)), stored=True
        )
        loaded.update(RolloutGroups.from_state_dict(state["groups"]))
        self._groups, self._informative = loaded._groups, loaded._informative
        self._stored = loaded._stored
        self.fingerprint = state["fingerprint"]
        self.replaced, self.revived, self.skipped = state["counters"]
