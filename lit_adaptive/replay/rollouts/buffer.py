r"""Rollout Replay: groups of earlier steps, drawn again (DOTS+RR, arXiv:2506.05316, algorithm 1).

The buffer keeps informative groups, the newest of each prompt, and up to ``capacity`` of them; the
oldest leave first. Draws follow one of three policies:

    uniform       all groups equally likely                           DOTS+RR
    prioritized   in proportion to p^alpha                            PER (arXiv:1511.05952)
    fresh         in proportion to (p exp(-age / tau))^alpha          FreshPER (arXiv:2604.16918)

with the priority p the mean |A| of the group's rollouts, or p(1-p). See ``core.freshness``.

Departures from the papers:
  1. A draw never contains a group twice; PER's and FreshPER's may. The inclusion probability of a
     group in a draw of k is exactly k P(i), with P(i) its mass over the total, or 1 if k P(i) would
     exceed 1 (then P(i) is 1/k and the other groups share the rest; ``core.systematic``).
     So weights (N P(i))^-1 make an unbiased sum. Draws by mass are stratified, as PER's, in the
     order of age.
  2. Weights are divided by the maximum of the draw, not of the buffer: freshness leaves the oldest
     groups hardly any probability, and their weight would shrink all others to 0.
  3. A group's mean reward is compared with 0 and 1 only if all its rewards lie in [0, 1]; shaped
     rewards only have to differ. Groups with a demonstration are always kept.
"""

from typing import Any, Literal, NamedTuple, get_args

import torch
from torch import Tensor

from lit_adaptive.core.advantages import FAILED, FLAT, INFORMATIVE, SOLVED
from lit_adaptive.core.bounds import check_at_least, check_choices
from lit_adaptive.core.corrections import check_beta
from lit_adaptive.core.freshness import check_tau, log_masses
from lit_adaptive.core.prioritized import check_alpha, importance_sampling_weights
from lit_adaptive.core.systematic import (
    inclusion_probabilities,
    systematic_sample,
    uniform_sample,
)
from lit_adaptive.replay.rollouts.groups import RolloutGroups
from lit_adaptive.replay.rollouts.keep_rule import (
    PrioritySignal,
    base_priorities,
    keep_outcomes,
    last_occurrences,
)
from lit_adaptive.replay.state import SavedState, check_settings

DrawPolicy = Literal["uniform", "prioritized", "fresh"]

KIND = "RolloutBuffer"
_COUNTERS = (
    "dropped_solved",
    "dropped_failed",
    "dropped_flat",
    "replaced",
    "evicted",
    "expired",
    "stale_updates",
)
_LOWEST_LOG_MASS = -690.0  # relative to the largest: 1e-300, so that every group can be drawn


class RolloutDraw(NamedTuple):
    """Groups drawn for training.

    Attributes:
        groups: k groups, copied; ``groups.version`` is the policy version that generated each.
        key: ``[k]`` int64, identifies each group for ``update_priorities``.
        probability: ``[k]`` float64: P(i), the inclusion probability divided by k.
        weight: ``[k]`` float64 in (0, 1]: (N P(i))^-beta divided by the maximum of the draw.
    """

    groups: RolloutGroups
    key: Tensor
    probability: Tensor
    weight: Tensor


class RolloutBuffer(SavedState):
    """The newest ``capacity`` informative groups of rollouts. Not thread-safe.

    Args:
        capacity: maximum number of groups, above 0 (256 or 512 in the paper).
        policy: distribution of draws: ``"uniform"``, ``"prioritized"`` or ``"fresh"``.
        signal: base priority of a group: ``"advantage"``, the mean of |A| over rollouts with a
            reward, or ``"learnability"``, p(1-p).
        alpha: strength of the prioritization, in [0, 1]; 0 is uniform.
        tau: number of policy versions in which a priority decays to 1/e, above 0.
        epsilon: constant added to every base priority, above 0, so that every group can be drawn.
        max_age: largest age of a group in policy versions; None: unlimited.
        tolerance: distance from 0 or 1 within which a mean reward counts as 0 or 1, in [0, 0.5).
        deduplicate: keep only the newest group of each prompt.
        seed: seed of the buffer's generator.

    Attributes:
        dropped_solved: groups not stored because all rollouts were right.
        dropped_failed: groups not stored because all rollouts were wrong.
        dropped_flat: groups not stored because their rewards were equal otherwise, or missing.
        replaced: groups replaced by a newer one of their prompt.
        evicted: groups that left because the buffer was full.
        expired: groups that left because of their age.
        stale_updates: priorities that came for groups that had left, and were ignored.

    Raises:
        ValueError: naming an argument that is out of its range.
    """

    def __init__(
        self,
        capacity: int,
        *,
        policy: DrawPolicy = "uniform",
        signal: PrioritySignal = "advantage",
        alpha: float = 0.6,
        tau: float = 500.0,
        epsilon: float = 1e-6,
        max_age: int | None = None,
        tolerance: float = 0.0,
        deduplicate: bool = True,
        seed: int = 0,
    ) -> None:
        _check_arguments(capacity, policy, signal, epsilon, max_age, tolerance)
        check_alpha(alpha)
        check_tau(tau)
        check_at_least(seed=(seed, -(2**63)))
        self.capacity = capacity
        self.policy: DrawPolicy = policy
        self.signal: PrioritySignal = signal
        self.alpha, self.tau, self.epsilon = float(alpha), float(tau), float(epsilon)
        self.max_age, self.tolerance, self.deduplicate = max_age, float(tolerance), deduplicate
        self.generator = torch.Generator().manual_seed(seed)
        self.dropped_solved = self.dropped_failed = self.dropped_flat = 0
        self.replaced = self.evicted = self.expired = self.stale_updates = 0
        self._fingerprint: str | None = None
        self._next_key = 0
        self._factors: Tensor | None = None
        self.clear()

    def clear(self) -> None:
        """Remove all groups; counters, keys and generator continue."""
        self._groups: dict[int, RolloutGroups] = {}  # by key, one group each, the oldest first
        self._prompt = self._version = self._key = torch.empty(0, dtype=torch.int64)
        self._base = torch.empty(0, dtype=torch.float64)  # base priority plus epsilon
        self._mass: Tensor | None = None  # of the next draws, until groups or priorities change
        self._newest: int | None = None  # newest policy version that was ever added

    def __len__(self) -> int:
        """Number of groups in the buffer."""
        return len(self._groups)

    @property
    def nbytes(self) -> int:
        """Bytes of all stored tensors."""
        vectors = (self._prompt, self._version, self._key, self._base)
        return sum(group.nbytes for group in self._groups.values()) + sum(
            int(v.nbytes) for v in vectors
        )

    @property
    def counters(self) -> dict[str, int]:
        """Numbers of groups dropped, replaced, evicted and expired, by name."""
        return {name: getattr(self, name) for name in _COUNTERS}

    @property
    def fingerprint(self) -> str | None:
        """Identifies the tokenizer and model of the rollouts; set by the owner.

        Raises:
            ValueError: if it changes while groups are stored.
        """
        return self._fingerprint

    @fingerprint.setter
    def fingerprint(self, value: str | None) -> None:
        if len(self) and self._fingerprint is not None:
            _check_fingerprint(self._fingerprint, value, "clear() the buffer first")
        self._fingerprint = value

    # Adding --------------------------------------------------------------------------------------

    def add(self, groups: RolloutGroups) -> int:
        """Store the informative groups as the newest ones.

        Of several groups of one prompt the last is kept (with ``deduplicate``). Beyond the capacity
        the oldest leave, including those of this very call.

        Args:
            groups: P groups with rewards, advantages and behaviour log-probabilities.

        Returns:
            Number of ``groups`` that are in the buffer now. ``counters`` has the others.

        Raises:
            ValueError: if fields are inconsistent, a reward is infinite, or an advantage or
                log-probability that is used is not finite (names the prompts). Nothing changes
                then.
            MemoryError: if there is not enough memory. Nothing changes then.
        """
        groups.check()
        groups.check_finite()
        outcome = keep_outcomes(groups, self.tolerance)
        informative = (outcome == INFORMATIVE).nonzero().flatten()
        kept = informative
        if self.deduplicate:
            kept = informative[last_occurrences(groups.prompt[informative])]
        leaves = torch.zeros(len(self), dtype=torch.bool)
        if self.deduplicate:
            leaves = _contained(self._prompt, groups.prompt[kept])
        replaced = int(leaves.sum()) + len(informative) - len(kept)
        survivors = (~leaves).nonzero().flatten()
        excess = max(0, len(survivors) + len(kept) - self.capacity)
        leaves[survivors[:excess]] = True
        kept = kept[max(0, excess - len(survivors)) :]
        added = groups if len(kept) == len(groups) else groups.select(kept)
        base = base_priorities(added, self.signal) + self.epsilon
        parts = added.split()  # before any change, since memory may not suffice
        self._remove(leaves)
        self._append(added, parts, torch.arange(len(added)) + self._next_key, base)
        self._next_key += len(added)
        if len(added):
            newest = int(added.version.max())
            self._newest = newest if self._newest is None else max(newest, self._newest)
        self.dropped_solved += int((outcome == SOLVED).sum())
        self.dropped_failed += int((outcome == FAILED).sum())
        self.dropped_flat += int((outcome == FLAT).sum())
        self.replaced += replaced
        self.evicted += excess
        return len(added)

    def _remove(self, leaves: Tensor) -> None:
        """Remove the groups where ``leaves`` ``[len(self)]`` bool is true."""
        if bool(leaves.any()):
            for key in self._key[leaves].tolist():
                del self._groups[key]
            stays = (~leaves).nonzero().flatten()
            self._prompt, self._version = self._prompt[stays], self._version[stays]
            self._key, self._base = self._key[stays], self._base[stays]
            self._mass = None

    def _append(
        self, groups: RolloutGroups, parts: list[RolloutGroups], key: Tensor, base: Tensor
    ) -> None:
        self._groups.update(zip(key.tolist(), parts, strict=True))
        self._prompt = torch.cat([self._prompt, groups.prompt])
        self._version = torch.cat([self._version, groups.version])
        self._key, self._base = torch.cat([self._key, key]), torch.cat([self._base, base])
        self._mass = None

    def expire(self, version: int) -> int:
        """Remove groups older than ``max_age`` at policy ``version``.

        Returns:
            Number of groups removed.

        Raises:
            ValueError: if a group comes from a newer version.
        """
        _check_version(version, self._newest)
        if self.max_age is None:
            return 0
        leaves = version - self._version > self.max_age
        self._remove(leaves)
        expired = int(leaves.sum())
        self.expired += expired
        return expired

    # Drawing -------------------------------------------------------------------------------------

    def draw(self, count: int, *, version: int, beta: float) -> RolloutDraw:
        """Draw ``count`` distinct groups, after expired ones have left.

        Args:
            count: number of groups, in ``[0, len(self)]``.
            version: current policy version; a group's age is this minus ``groups.version``.
            beta: strength of the bias correction, in [0, 1]; 1 corrects fully.

        Raises:
            ValueError: if ``count`` exceeds the number of groups (once the expired ones have left),
                ``beta`` is outside [0, 1], or a group comes from a newer version.
        """
        check_beta(beta)
        left = self.expire(version)
        if not 0 <= count <= len(self):
            expired = f" ({left} have just left because of max_age {self.max_age})" if left else ""
            raise ValueError(
                f"count is {count}, but the buffer holds {len(self)} groups{expired}; draw between "
                "0 and that many: call expire(version) and check len() first"
            )
        if self.policy == "uniform":
            index = uniform_sample(len(self), count, self.generator)
            probability = torch.full((count,), 1 / max(len(self), 1), dtype=torch.float64)
        else:
            inclusion = inclusion_probabilities(self._masses(), count)
            index = systematic_sample(inclusion, self.generator)
            probability = inclusion[index] / max(count, 1)
        weight = importance_sampling_weights(probability, beta=beta)
        key = self._key[index]
        groups = RolloutGroups.cat([self._groups[one] for one in key.tolist()])
        return RolloutDraw(groups, key, probability, weight)

    def _masses(self) -> Tensor:
        """Mass of each group, relative to the largest: ``[P]`` float64 in (0, 1]."""
        if self.policy == "uniform" or len(self) == 0:
            return torch.ones(len(self), dtype=torch.float64)
        if self._mass is None:
            tau = self.tau if self.policy == "fresh" else None
            base = self._base
            if self._factors is not None:
                base = base * self._factors[self._prompt]
            logs = log_masses(base, self._version, alpha=self.alpha, tau=tau)
            self._mass = (logs - logs.max()).clamp_(min=_LOWEST_LOG_MASS).exp_()
        return self._mass

    def probabilities(self) -> tuple[Tensor, Tensor]:
        """Keys and probabilities P(i) of all groups, the oldest first, for a draw of one.

        Returns:
            ``[len(self)]`` int64, and ``[len(self)]`` float64 that sum to 1.
        """
        masses = self._masses()
        return self._key.clone(), masses / (masses.sum() if len(self) else 1.0)

    def update_priorities(self, key: Tensor, priority: Tensor) -> int:
        """Give groups new base priorities, before ``epsilon`` and freshness.

        Of a repeated key the last priority counts. Keys of groups that have left are counted in
        ``stale_updates``. The policy ``uniform`` ignores priorities.

        Args:
            key: ``[K]`` int64, from draws.
            priority: ``[K]``, finite and not negative.

        Returns:
            Number of keys whose groups are still in the buffer.

        Raises:
            ValueError: naming the keys whose priority is NaN, infinite or negative, or shapes that
                differ; nothing changes then.
        """
        key, priority = _checked_priorities(key, priority)
        position = torch.searchsorted(self._key, key).clamp(max=max(len(self) - 1, 0))
        present = torch.zeros(len(key), dtype=torch.bool)
        if len(self):
            present = self._key[position] == key
        last = last_occurrences(position[present])
        self._base[position[present][last]] = priority[present][last] + self.epsilon
        self._mass = None
        self.stale_updates += int((~present).sum())
        return int(present.sum())

    def set_factors(self, factor: Tensor | None) -> None:
        """Multiply base priorities by a factor of the group's prompt, now and later.

        Args:
            factor: ``[N]`` for all prompts, finite and above 0; None: 1. The policy ``uniform``
                ignores it.

        Raises:
            ValueError: naming the prompts whose factor is NaN, infinite or not above 0.
        """
        if factor is not None:
            factor = factor.detach().cpu().double().clone()
            bad = ~(factor.isfinite() & (factor > 0))
            if bool(bad.any()):
                prompts = bad.nonzero().flatten()[:8]
                raise ValueError(
                    f"the factors of prompts {prompts.tolist()} are {factor[prompts].tolist()}; "
                    "they must be finite and above 0"
                )
        self._factors, self._mass = factor, None

    def groups(self) -> RolloutGroups:
        """All groups, the oldest first, copied."""
        return RolloutGroups.cat(list(self._groups.values()))

    # Checkpoint ----------------------------------------------------------------------------------

    def _settings(self) -> dict[str, Any]:
        """Options in which a checkpoint must agree."""
        names = ("capacity", "policy", "signal", "alpha", "tau", "epsilon", "deduplicate")
        return {name: getattr(self, name) for name in names}

    def state_dict(self) -> dict[str, Any]:
        """Everything that future draws depend on, copied: groups, priorities, generator."""
        return {
            "kind": KIND,
            **self._settings(),
            "fingerprint": self._fingerprint,
            "groups": self.groups().state_dict(),
            "key": self._key.clone(),
            "base": self._base.clone(),
            "factors": None if self._factors is None else self._factors.clone(),
            "next_key": self._next_key,
            "newest": self._newest,
            "counters": self.counters,
            "generator": self.generator.get_state(),
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Resume so that draws continue as if they had never stopped.

        ``max_age`` and ``tolerance`` may differ from the checkpoint's.

        Raises:
            ValueError: if the checkpoint is of another buffer type, capacity, policy, signal,
                alpha, tau, epsilon, deduplicate, tokenizer or model, or damaged. Nothing changes
                then.
        """
        groups = _checked_state(state, self._settings())
        saved = state["fingerprint"]
        if self._fingerprint is not None and saved is not None:
            _check_fingerprint(saved, self._fingerprint, "start with an empty buffer")
        parts = groups.split()
        self.clear()
        self._append(groups, parts, state["key"], state["base"])
        self.set_factors(state.get("factors"))  # earlier versions have none
        self._next_key, self._newest = state["next_key"], state["newest"]
        self._fingerprint = saved if self._fingerprint is None else self._fingerprint
        for name in _COUNTERS:
            setattr(self, name, state["counters"][name])
        self.generator.set_state(state["generator"])


def _check_arguments(
    capacity: int, policy: str, signal: str, epsilon: float, max_age: int | None, tolerance: float
) -> None:
    check_at_least(capacity=(capacity, 1), max_age=(max_age, 0))
    check_choices(policy=(policy, get_args(DrawPolicy)), signal=(signal, get_args(PrioritySignal)))
    if not 0 < epsilon < torch.inf:
        raise ValueError(
            f"epsilon is {epsilon}; it must be above 0 and finite, so that every group can be drawn"
        )
    if not 0 <= tolerance < 0.5:
        raise ValueError(f"tolerance is {tolerance}; it must lie in [0, 0.5)")


def _contained(values: Tensor, few: Tensor) -> Tensor:
    """As ``torch.isin``, which sorts ``values`` for more than some 50 ``few``."""
    if len(few) == 0:
        return torch.zeros(len(values), dtype=torch.bool)
    ordered = few.sort().values
    position = torch.searchsorted(ordered, values).clamp_(max=len(few) - 1)
    return ordered[position] == values


def _check_version(version: int, newest: int | None) -> None:
    if newest is not None and version < newest:
        raise ValueError(
            f"version is {version}, but the buffer has had groups of version {newest}; the current "
            "policy is at least as new: load the buffer and the policy from one checkpoint, or "
            "clear() the buffer"
        )


def _check_fingerprint(stored: str, current: str | None, remedy: str) -> None:
    if stored != current:
        raise ValueError(
            f"the rollouts are of tokenizer and model {stored!r}, this run uses {current!r}; "
            "tokens and log-probabilities of one are meaningless to another: use the first one "
            f"again, or {remedy}. Nothing was changed"
        )


def _checked_priorities(key: Tensor, priority: Tensor) -> tuple[Tensor, Tensor]:
    key, priority = key.detach().cpu(), priority.detach().to("cpu", torch.float64)
    if key.dtype is not torch.int64 or key.dim() != 1 or key.shape != priority.shape:
        raise ValueError(
            f"key is {list(key.shape)} of {key.dtype} and priority {list(priority.shape)}; "
            "both must be [K], the keys int64 as the draw returned them"
        )
    invalid = ~((priority >= 0) & priority.isfinite())
    if bool(invalid.any()):
        raise ValueError(
            f"the priorities of the groups with key {key[invalid][:8].tolist()} are "
            f"{priority[invalid][:8].tolist()}; priorities are finite and not negative: look for "
            "NaN in the advantages. Nothing was changed"
        )
    return key, priority


def _checked_state(state: dict[str, Any], settings: dict[str, Any]) -> RolloutGroups:
    """Validate a checkpoint before anything is changed, and return its groups."""
    check_settings(state, KIND, **settings)
    try:
        groups = RolloutGroups.from_state_dict(state["groups"])
        _check_priorities_of_state(state, groups, settings)
        _check_numbers_of_state(state, groups)
        torch.Generator().set_state(state["generator"])
    except (LookupError, TypeError, AttributeError, RuntimeError, ValueError) as error:
        raise ValueError(
            f"the rollout buffer's state is damaged ({error}): use another checkpoint, or start "
            "with an empty buffer. Nothing was changed"
        ) from error
    return groups


def _check_priorities_of_state(
    state: dict[str, Any], groups: RolloutGroups, settings: dict[str, Any]
) -> None:
    key: Tensor = state["key"]
    base: Tensor = state["base"]
    size = len(groups)
    valid = key.shape == base.shape == (size,) and size <= settings["capacity"]
    valid = valid and key.dtype is torch.int64 and base.dtype is torch.float64
    if not (valid and bool((base.isfinite() & (base > 0)).all())):
        raise ValueError(f"it lacks {size} keys, or finite priorities above 0")
    factors: Tensor | None = state.get("factors")
    if factors is not None:
        known = factors[groups.prompt]  # raises if there are too few
        if not bool((known.isfinite() & (known > 0)).all()):
            raise ValueError("it lacks finite factors above 0")
    if size and not (bool((key.diff() > 0).all()) and 0 <= int(key[0]) <= int(key[-1])):
        raise ValueError("its keys do not ascend")
    if not isinstance(state["next_key"], int) or (size and int(key[-1]) >= state["next_key"]):
        raise ValueError(f"its next key is {state['next_key']!r}")
    if settings["deduplicate"] and len(torch.unique(groups.prompt)) < size:
        raise ValueError("a prompt has several groups")


def _check_numbers_of_state(state: dict[str, Any], groups: RolloutGroups) -> None:
    counters, newest, fingerprint = state["counters"], state["newest"], state["fingerprint"]
    if not all(isinstance(counters[name], int) and counters[name] >= 0 for name in _COUNTERS):
        raise ValueError(f"its counters are {counters}")
    if fingerprint is not None and not isinstance(fingerprint, str):
        raise ValueError(f"its fingerprint is {fingerprint!r}")
    if not isinstance(newest, int | None):
        raise ValueError(f"its newest version is {newest!r}")
    if len(groups) and (newest is None or int(groups.version.max()) > newest):
        raise ValueError(f"its newest version is {newest}, older than that of a group")
