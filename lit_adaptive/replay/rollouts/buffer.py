r"""Rollout Replay: groups of earlier steps, drawn again (DOTS+RR, arXiv:2506.05316, algorithm 1).

A buffer of groups of rollouts. It keeps those that teach something, the newest of each prompt, and
up to ``capacity`` of them; the oldest leave first. Draws follow one of three policies:

    uniform       every group alike                                   the paper's
    prioritized   in proportion to p^alpha                            PER (arXiv:1511.05952)
    fresh         in proportion to (p exp(-age / tau))^alpha          FreshPER (arXiv:2604.16918)

with p the mean |A| of the group's rollouts, or p(1-p). See ``core.freshness``.

Where this departs from the papers, and why:
  1. No draw holds a group twice, which would be wasted work; PER's and FreshPER's may. Chances stay
     exact: PER's equal ranges, with a correction where a group lies across a border (Deville's
     systematic sampling). The chance of a group to be in a draw of k is k P(i), with P(i) the
     mass by the total; or 1 if it is so heavy that k P(i) would be above 1 (then the others share
     the rest, and P(i) is 1/k). So weights (N P(i))^-1 make an unbiased sum.
  2. Weights are divided by the greatest of the draw, not of the buffer: freshness gives the oldest
     groups next to no chance, and their weight would press all others to 0.
  3. A group's mean reward is compared to 0 and 1 if all its rewards lie in [0, 1]; of shaped
     rewards it is only asked that they are not all equal. Groups with demonstrations stay anyway.
"""

from pathlib import Path
from typing import Any, Literal, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from lit_adaptive.core import freshness as core
from lit_adaptive.core.advantages import FAILED, FLAT, SOLVED
from lit_adaptive.core.prioritized import check_alpha, importance_sampling_weights
from lit_adaptive.replay.rollouts._draws import shuffle_front
from lit_adaptive.replay.rollouts._law import WeightedSampler
from lit_adaptive.replay.rollouts._state import (
    COUNTERS,
    check_fingerprint,
    check_rollout_state,
    check_version,
)
from lit_adaptive.replay.rollouts._store import GroupStore
from lit_adaptive.replay.rollouts.groups import RolloutGroups
from lit_adaptive.replay.rollouts.keep_rule import (
    Signal,
    base_priorities,
    check_arguments,
    checked_priorities,
    last_of_each,
    reasons,
    refuse_unsound,
)

Policy = Literal["uniform", "prioritized", "fresh"]

KIND = "RolloutBuffer"


class RolloutDraw(NamedTuple):
    """Groups to train on once more.

    Attributes:
        groups: k of them, copied; ``groups.version`` is that of the policy that made each.
        key: ``[k]`` int64, of each group; ``update`` knows it by this.
        probability: ``[k]`` float64: P(i), a k-th of the chance to be in this draw.
        weight: ``[k]`` float64 in (0, 1]: (N P(i))^-beta by the greatest of the draw.
    """

    groups: RolloutGroups
    key: Tensor
    probability: Tensor
    weight: Tensor


class RolloutBuffer:
    """The newest ``capacity`` groups of rollouts that teach something; for one thread at a time.

    Args:
        capacity: groups kept, above 0 (256 or 512 in the paper).
        policy: who is drawn: ``"uniform"``, ``"prioritized"`` or ``"fresh"``.
        signal: base priority: ``"advantage"``, the mean of |A| over rollouts that have a reward, or
            ``"learnability"``, p(1-p).
        alpha: how strongly to prioritize, in [0, 1].
        tau: policy versions after which a priority has faded to 1/e, above 0.
        epsilon: added to every base priority, above 0, so that every group can be drawn.
        max_age: policy versions; older groups leave. None: no limit.
        tolerance: in [0, 0.5): mean rewards up to it, or from 1 minus it on, count as 0 or 1.
        deduplicate: keep only the newest group of each prompt.
        storage: ``"memory"``; ``"pinned"``: page-locked memory, for draws too; or a folder, where a
            nameless file holds the tokens.
        seed: of the buffer's own generator.

    Attributes:
        dropped_solved: groups not kept, because all rollouts were right.
        dropped_failed: because all were wrong.
        dropped_flat: because all rewards were equal otherwise, or there was none.
        replaced: groups that left for a newer one of their prompt.
        evicted: groups that left because the buffer was full.
        expired: groups that left because of their age.
        gone: priorities told for groups that had left.

    Raises:
        ValueError: naming an argument that is out of its range.
    """

    def __init__(
        self,
        capacity: int,
        *,
        policy: Policy = "uniform",
        signal: Signal = "advantage",
        alpha: float = 0.6,
        tau: float = 500.0,
        epsilon: float = 1e-6,
        max_age: int | None = None,
        tolerance: float = 0.0,
        deduplicate: bool = True,
        storage: str | Path = "memory",
        seed: int = 0,
    ) -> None:
        check_arguments(capacity, policy, signal, epsilon, max_age, tolerance)
        check_alpha(alpha)
        core.check_tau(tau)
        self.capacity, self.storage = capacity, storage
        self.policy: Policy = policy
        self.signal: Signal = signal
        self.alpha, self.tau, self.epsilon = float(alpha), float(tau), float(epsilon)
        self.max_age, self.tolerance, self.deduplicate = max_age, float(tolerance), deduplicate
        self.generator = torch.Generator().manual_seed(seed)
        self.dropped_solved = self.dropped_failed = self.dropped_flat = 0
        self.replaced = self.evicted = self.expired = self.gone = 0
        self._fingerprint: str | None = None
        self._reset()

    def _reset(self) -> None:
        self._store = GroupStore(self.capacity, self.storage)
        self._law = None if self.policy == "uniform" else WeightedSampler(self.capacity)
        self._slot_of: dict[int, int] = {}
        self._newest: int | None = None  # version
        self._oldest: int | None = None  # no group here is of an older version

    def __len__(self) -> int:
        """Groups held."""
        return len(self._store)

    @property
    def available(self) -> int:
        """Groups that the next draw may ask for, if no policy version passes before: all held."""
        return len(self)

    @property
    def nbytes(self) -> int:
        """Bytes of everything kept, but for the table of prompts; those in a file too."""
        return self._store.nbytes + (self._law.nbytes if self._law else 0)

    @property
    def counters(self) -> dict[str, int]:
        """Everything that did not stay, by reason."""
        return {name: getattr(self, name) for name in COUNTERS}

    @property
    def fingerprint(self) -> str | None:
        """Of the tokenizer and model that the rollouts are of; set by the owner.

        Raises:
            ValueError: if it is set to another one while groups of the first are held.
        """
        return self._fingerprint

    @fingerprint.setter
    def fingerprint(self, value: str | None) -> None:
        if len(self) and self._fingerprint is not None:
            check_fingerprint(self._fingerprint, value, "clear() the buffer first")
        self._fingerprint = value

    # -- adding -----------------------------------------------------------------------------------

    def add(self, groups: RolloutGroups) -> int:
        """Keep those of ``groups`` that teach something, as the newest.

        Of several groups of one prompt the last is kept (with ``deduplicate``). Beyond the capacity
        the oldest leave, those of this very call included.

        Returns:
            How many of ``groups`` are in the buffer now. The others are in the counters.

        Raises:
            ValueError: if fields do not fit together, or a reward is infinite, an advantage that
                counts or a policy's log-probability not finite (names the prompts).
            MemoryError, OSError: if memory or disk is full. Nothing is changed in all three cases.
        """
        groups.check()
        refuse_unsound(groups)
        reason = reasons(groups, self.tolerance)
        chosen = np.flatnonzero(reason == 0)
        prompts = groups.prompt.numpy()
        distinct = last_of_each(prompts, chosen) if self.deduplicate else chosen
        known = [self._slot_of[p] for p in prompts[distinct].tolist() if p in self._slot_of]
        same = np.asarray(known, dtype=np.int64)
        kept = distinct[max(0, len(distinct) - self.capacity) :]
        over = max(0, len(self) - len(same) + len(kept) - self.capacity)
        leaving = np.concatenate([same, self._store.oldest(over, same)])
        part = groups if len(kept) == len(groups) else groups.select(torch.from_numpy(kept))
        self._exchange(leaving, part)
        self.dropped_solved += int((reason == SOLVED).sum())
        self.dropped_failed += int((reason == FAILED).sum())
        self.dropped_flat += int((reason == FLAT).sum())
        self.replaced += len(chosen) - len(distinct) + len(same)
        self.evicted += over + len(distinct) - len(kept)
        return len(kept)

    def _exchange(self, leaving: NDArray[np.int64], groups: RolloutGroups) -> None:
        """Empty the slots ``leaving``, and take in ``groups``."""
        base = base_priorities(groups, self.signal) + self.epsilon
        left = self._store.slots.prompt[leaving].tolist()
        slot = self._store.replace(leaving, groups)
        if self.deduplicate:
            for prompt in left:
                del self._slot_of[prompt]
            self._slot_of.update(zip(groups.prompt.tolist(), slot.tolist(), strict=True))
        if self._law is not None:
            self._law.remove(leaving)
            self._law.put(slot, self._log_masses(base, groups.version))
        if len(groups):
            first, last = (int(bound) for bound in torch.aminmax(groups.version))
            self._oldest = first if self._oldest is None else min(first, self._oldest)
            self._newest = last if self._newest is None else max(last, self._newest)

    def _log_masses(self, base: Tensor, version: Tensor) -> Tensor:
        tau = self.tau if self.policy == "fresh" else None
        return core.log_masses(base, version, alpha=self.alpha, tau=tau)

    # -- leaving ----------------------------------------------------------------------------------

    def expire(self, version: int) -> int:
        """Let groups leave that are older than ``max_age`` at policy ``version``.

        Returns:
            How many left.

        Raises:
            ValueError: if a group was made by a newer version.
        """
        check_version(version, self._newest)
        if self.max_age is None or self._oldest is None or version - self._oldest <= self.max_age:
            return 0
        slot = self._store.in_order()
        made = self._store.slots.version[slot]
        old = version - made > self.max_age
        left = int(old.sum())
        self._exchange(slot[old], RolloutGroups.empty())
        self._oldest = int(made[~old].min()) if left < len(slot) else None
        self.expired += left
        return left

    def clear(self) -> None:
        """Let all groups leave; counters and generator go on."""
        serial = self._store.serial
        self._reset()
        self._store.serial = serial

    # -- drawing ----------------------------------------------------------------------------------

    def draw(self, count: int, *, version: int, weight_beta: float) -> RolloutDraw:
        """``count`` distinct groups, after those that are too old have left.

        Args:
            count: in ``[0, len(self)]``.
            version: of the current policy; a group's age is this minus ``groups.version``.
            weight_beta: how much of the draw's bias the weights correct, in [0, 1].

        Raises:
            ValueError: if ``count`` is more than there are (once the old ones have left),
                ``weight_beta`` is outside [0, 1], or a group was made by a newer version.
        """
        if not 0 <= weight_beta <= 1:
            raise ValueError(f"weight_beta is {weight_beta}; it must lie in [0, 1]")
        left = self.expire(version)
        if not 0 <= count <= len(self):
            expired = f" ({left} have just left because of max_age {self.max_age})" if left else ""
            raise ValueError(
                f"count is {count}, but the buffer holds {len(self)} groups{expired}; draw between "
                "0 and as many: call expire(version) and ask len() before"
            )
        uniform = torch.rand(count, dtype=torch.float64, generator=self.generator)
        if self._law is None or count == 0:
            slot = shuffle_front(self._store.slots, uniform.numpy())
            probability = torch.full((count,), 1 / max(len(self), 1), dtype=torch.float64)
        else:
            slot, probability = self._law.draw(uniform)
        return RolloutDraw(
            self._store.read(slot),
            torch.from_numpy(self._store.slots.key[slot]),
            probability,
            importance_sampling_weights(probability, size=max(len(self), 1), beta=weight_beta),
        )

    def update(self, key: Tensor, priority: Tensor) -> int:
        """Give groups new base priorities, before ``epsilon`` and freshness.

        Of a key given twice the last counts. Groups that have left are counted as ``gone``. Under
        the policy uniform nothing depends on priorities.

        Args:
            key: ``[K]`` int64, from draws.
            priority: ``[K]``, finite and not negative.

        Returns:
            How many of the keys are of groups that are still there.

        Raises:
            ValueError: naming the keys whose priority is NaN, infinite or negative, or shapes that
                differ; nothing changes then.
        """
        key, priority = checked_priorities(key, priority)
        slot, there = self._store.slots_of(key)
        if self._law is not None:
            version = torch.from_numpy(self._store.slots.version[slot[there]])
            base = priority[torch.from_numpy(there)] + self.epsilon
            self._law.put(slot[there], self._log_masses(base, version))
        self.gone += int((~there).sum())
        return int(there.sum())

    def probabilities(self) -> tuple[Tensor, Tensor]:
        """Keys of all groups, the oldest first, and P(i) of each while none is taken for certain.

        Returns:
            ``[len(self)]`` int64, and ``[len(self)]`` float64 that sum to 1.
        """
        slot = self._store.in_order()
        alike = torch.full((len(slot),), 1 / max(len(slot), 1), dtype=torch.float64)
        chance = alike if self._law is None else self._law.chances(slot)
        return torch.from_numpy(self._store.slots.key[slot]), chance

    def groups(self) -> RolloutGroups:
        """All groups, the oldest first, copied."""
        return self._store.read(self._store.in_order())

    # -- checkpoint -------------------------------------------------------------------------------

    def _identity(self) -> dict[str, Any]:
        """What a state must agree in."""
        names = ("capacity", "policy", "signal", "alpha", "tau", "epsilon", "deduplicate")
        return {name: getattr(self, name) for name in names}

    def state_dict(self) -> dict[str, Any]:
        """Everything, copied: all groups without gaps, masses, counters and the generator.

        With ``storage`` a folder too, since a checkpoint that only named a file would be lost with
        it. What is large is then mapped from a nameless copy in that folder, not held in memory.

        Raises:
            OSError: if the disk is full.
        """
        store, slot = self._store, self._store.in_order()
        return {
            "kind": KIND,
            **self._identity(),
            "fingerprint": self._fingerprint,
            "groups": store.read(slot, lasting=True).state_dict(),
            "key": torch.from_numpy(store.slots.key[slot]),
            "item": torch.from_numpy(store.slots.item.copy()),
            "serial": store.serial,
            "law": None if self._law is None else self._law.state_dict(slot),
            "newest": self._newest,
            "oldest": self._oldest,
            "counters": self.counters,
            "generator": self.generator.get_state(),
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Resume so that draws go on as if they had never stopped.

        ``max_age``, ``tolerance`` and ``storage`` may be others than before.

        Raises:
            ValueError: if the state is of another capacity, policy, signal, alpha, tau, epsilon or
                deduplicate, of another tokenizer or model, or damaged.
            MemoryError, OSError: if memory or disk is full. Nothing is changed in all three cases.
        """
        groups = check_rollout_state(state, KIND, self._identity())
        theirs, own = state["fingerprint"], self._fingerprint
        if own is not None and theirs is not None:
            check_fingerprint(theirs, own, "start with an empty buffer")
        store = GroupStore(self.capacity, self.storage)
        store.restore(groups, state["key"], state["item"], state["serial"])
        self._reset()
        self._store, slot = store, store.in_order()
        if self._law is not None:
            self._law.restore(slot, state["law"])
        if self.deduplicate:
            self._slot_of = dict(zip(groups.prompt.tolist(), slot.tolist(), strict=True))
        self._newest, self._oldest = state["newest"], state["oldest"]
        self._fingerprint = theirs if own is None else own
        for name in COUNTERS:
            setattr(self, name, state["counters"][name])
        self.generator.set_state(state["generator"])
