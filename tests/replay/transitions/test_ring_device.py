"""A ring on another device has the same contents as one in main memory."""

import numpy as np
import pytest
import torch
from replay_play import ARGUMENTS, StepSource, assert_same

from lit_adaptive.replay import PrioritizedReplayBuffer, TransitionRing
from lit_adaptive.replay.transitions import frames, storage


@pytest.fixture(
    params=[
        "cpu",
        pytest.param(
            "cuda", marks=pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU")
        ),
    ]
)
def device(request: pytest.FixtureRequest) -> str:
    return request.param


def _on(device: str, monkeypatch: pytest.MonkeyPatch, **change: int) -> TransitionRing:
    """A ring on ``device`` that uses torch operations only."""
    ring = TransitionRing(**(ARGUMENTS | change), device=device)
    if device == "cpu":
        # Patched during its own calls only: the other ring of a test uses the compiled loops.
        add, load = ring.add, ring.load_state_dict

        def apart(method):
            def call(*args, **kwargs):
                with monkeypatch.context() as patch:
                    patch.setattr(frames, "on_host", lambda device: False)
                    patch.setattr(storage, "on_host", lambda device: False)
                    return method(*args, **kwargs)

            return call

        ring.add, ring.end_episode, ring.load_state_dict = map(apart, (add, ring.end_episode, load))
    return ring


def _assert_equal(ring: TransitionRing, other: TransitionRing) -> None:
    index = torch.arange(len(ring))
    batch = ring.get(index.to(ring.device))
    assert batch["reward"].device.type == ring.device.type
    moved = {
        key: torch.utils._pytree.tree_map(lambda leaf: leaf.cpu(), value)
        for key, value in batch.items()
    }
    assert_same(moved, other.get(index))


@pytest.mark.parametrize("change", [{}, {"n_step": 1}, {"capacity": 4}])
def test_the_same_steps_give_the_same_ring(
    change: dict[str, int], device: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    there, here = _on(device, monkeypatch, **change), TransitionRing(**(ARGUMENTS | change))
    first, second = StepSource(), StepSource()
    for _ in range(6):
        assert first.add_to(there, 9) == second.add_to(here, 9)
        assert there.end_episode([1]).tolist() == here.end_episode([1]).tolist()
        _assert_equal(there, here)
        assert_same(there.state_dict(), here.state_dict())
        assert there.frames_used == here.frames_used
    pool = there._storage.pool
    assert isinstance(pool.frames.bytes[0], torch.Tensor)
    assert there._storage.served[1].data_ptr() != there._storage.slots.reward.ctypes.data


def test_a_checkpoint_moves_between_devices(device: str, monkeypatch: pytest.MonkeyPatch) -> None:
    there, here, source = _on(device, monkeypatch), TransitionRing(**ARGUMENTS), StepSource()
    source.add_to(here, 30)
    there.load_state_dict(here.state_dict())
    assert_same(there.state_dict(), here.state_dict())
    copy_of_source = source.copy()
    assert source.add_to(there, 20) == copy_of_source.add_to(here, 20)
    _assert_equal(there, here)


def test_empty_slots_are_named(device: str, monkeypatch: pytest.MonkeyPatch) -> None:
    ring = _on(device, monkeypatch)
    StepSource().add_to(ring, 4)
    for method in (ring.get, ring.serial):
        with pytest.raises(ValueError, match=r"slots \[-1, 19\] hold no transition"):
            method(torch.tensor([0, -1, 19], device=device))


@pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU")
def test_prioritized_replay_on_the_gpu() -> None:
    buf = PrioritizedReplayBuffer(100, device="cuda")
    for i in range(60):
        buf.add((np.full(4, float(i)), i % 2, float(i), torch.full((4,), i + 1.0), i % 9 == 8))
    batch, weights, indices = buf.sample(32)
    assert batch["observation"].device.type == weights.device.type == indices.device.type == "cuda"
    assert batch["reward"].tolist() == indices.tolist()
    buf.update_priorities(indices, torch.rand(32, device="cuda"))
    with pytest.raises(ValueError, match="TD error of indices"):
        buf.update_priorities(indices, torch.full((32,), float("nan"), device="cuda"))
