"""What a rollout buffer asks of a state before it changes anything."""

from typing import Any

import torch
from torch import Tensor

from lit_adaptive.replay.rollouts._law import check_law_state
from lit_adaptive.replay.rollouts.groups import RolloutGroups

COUNTERS = (
    "dropped_solved",
    "dropped_failed",
    "dropped_flat",
    "replaced",
    "evicted",
    "expired",
    "gone",
)
"""The buffer's, by name."""


def check_fingerprint(theirs: str, own: str | None, way_out: str) -> None:
    """Refuse rollouts of another tokenizer or model.

    Raises:
        ValueError: naming both, and the ways out.
    """
    if theirs != own:
        raise ValueError(
            f"the rollouts are of tokenizer and model {theirs!r}, this run's are {own!r}; tokens "
            "and log-probabilities of one mean nothing to another: use the first one again, or "
            f"{way_out}. Nothing was changed"
        )


def check_version(version: int, newest: int | None) -> None:
    """Refuse a current version of the policy that is older than that of rollouts.

    Raises:
        ValueError: naming both, with the remedy.
    """
    if newest is not None and version < newest:
        raise ValueError(
            f"version is {version}, but the buffer has had groups of version {newest}; the current "
            "policy is at least as new: load the buffer and the policy from one checkpoint, or "
            "clear() the buffer"
        )


def check_rollout_state(
    state: dict[str, Any], kind: str, identity: dict[str, Any]
) -> RolloutGroups:
    """The groups of a state that fits the buffer.

    Args:
        state: to be loaded.
        kind: of the buffer.
        identity: settings in which the state must agree, ``capacity`` and ``policy`` among them.

    Raises:
        ValueError: naming what differs, or is damaged.
    """
    if state.get("kind") != kind:
        raise ValueError(
            f"the state is of {state.get('kind')!r}, not of a {kind}: pass what "
            f"{kind}.state_dict returned. Nothing was changed"
        )
    for name, own in identity.items():
        if state.get(name) != own:
            raise ValueError(
                f"the state has {name}={state.get(name)!r}, this buffer {name}={own!r}: make it "
                "with the same value, or start with an empty one. Nothing was changed"
            )
    try:
        groups = RolloutGroups.from_state_dict(state["groups"])
        _check_slots(state, groups, identity)
        if identity["policy"] != "uniform":
            check_law_state(state["law"], len(groups))
        _check_numbers(state, groups)
        torch.Generator().set_state(state["generator"])
    except (KeyError, TypeError, AttributeError, RuntimeError, ValueError) as error:
        raise ValueError(
            f"the rollout buffer's state is damaged ({error}): use another checkpoint, or start "
            "with an empty buffer. Nothing was changed"
        ) from error
    return groups


def _check_slots(state: dict[str, Any], groups: RolloutGroups, identity: dict[str, Any]) -> None:
    key: Tensor = state["key"]
    item: Tensor = state["item"]
    capacity, size, serial = identity["capacity"], len(groups), state["serial"]
    sound = (
        key.shape == (size,)
        and key.dtype is torch.int64
        and item.shape == (capacity,)
        and item.dtype is torch.int32
        and item.long().sort().values.equal(torch.arange(capacity))
        and isinstance(serial, int)
    )
    if sound and size:
        rising = bool((key[1:] // capacity > key[:-1] // capacity).all())
        within = int(key[0]) >= 0 and int(key[-1]) // capacity < serial
        used = (key % capacity).sort().values.equal(item[:size].long().sort().values)
        sound = rising and within and used
    if sound and identity["deduplicate"]:
        sound = len(torch.unique(groups.prompt)) == size
    if not sound:
        raise ValueError("its groups are not in distinct slots, each with a key of its own")


def _check_numbers(state: dict[str, Any], groups: RolloutGroups) -> None:
    newest, oldest, held = state["newest"], state["oldest"], state["counters"]
    numbers = [held[name] for name in COUNTERS]
    if not all(isinstance(number, int) and number >= 0 for number in numbers):
        raise ValueError(f"its counters are {held}")
    if state["fingerprint"] is not None and not isinstance(state["fingerprint"], str):
        raise ValueError(f"its fingerprint is {state['fingerprint']!r}")
    if not (isinstance(newest, int | None) and isinstance(oldest, int | None)):
        raise ValueError(f"its versions are {oldest!r} to {newest!r}")
    if len(groups):
        least, most = (int(bound) for bound in torch.aminmax(groups.version))
        if oldest is None or newest is None or not oldest <= least <= most <= newest:
            raise ValueError(
                f"its groups are of versions {least} to {most}, and not {oldest} to {newest}"
            )
