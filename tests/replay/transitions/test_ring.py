"""The ring against episodes calculated by hand, and its memory."""

import numpy as np
import pytest
import torch

from lit_adaptive.replay import TransitionRing


def _play(ring: TransitionRing, rewards: list[float], *, terminated: bool, start: int = 0) -> list:
    """One episode in stream 0; its observations are start, start + 1, ..."""
    written = []
    for t, reward in enumerate(rewards):
        last = t == len(rewards) - 1
        slots = ring.add(
            torch.tensor([[float(start + t)]]),
            torch.tensor([t]),
            torch.tensor([reward]),
            torch.tensor([[float(start + t + 1)]]),
            torch.tensor([last and terminated]),
            torch.tensor([last and not terminated]),
        )
        written.append(slots.tolist())
    return written


def _everything(ring: TransitionRing) -> dict:
    batch = ring.get(torch.arange(len(ring)))
    return {key: value.flatten().tolist() for key, value in batch.items()}


@pytest.mark.parametrize("terminated", [True, False])
def test_three_step_returns_of_a_five_step_episode(terminated: bool) -> None:
    # Rewards 1, 2, 4, 8, 16 at gamma = 1/2: R_0 = 1 + 2/2 + 4/4 = 3, R_1 = 2 + 4/2 + 8/4 = 6,
    # R_2 = 4 + 8/2 + 16/4 = 12; the end is reached after 2 steps from t=3, after 1 from t=4.
    ring = TransitionRing(8, n_step=3, gamma=0.5)
    written = _play(ring, [1, 2, 4, 8, 16], terminated=terminated)
    assert written == [[], [], [0], [1], [2, 3, 4]]
    assert _everything(ring) == {
        "observation": [0, 1, 2, 3, 4],
        "action": [0, 1, 2, 3, 4],
        "reward": [3, 6, 12, 16, 16],
        "next_observation": [3, 4, 5, 5, 5],
        # Window 1 closed at t=3, before the end: it bootstraps. Truncation never masks.
        "terminated": [False, False, terminated, terminated, terminated],
        "discount": [0.125, 0.125, 0.125, 0.25, 0.5],
    }


def test_the_episode_after_a_truncation_does_not_reach_back() -> None:
    ring = TransitionRing(8, n_step=3, gamma=0.5)
    _play(ring, [1, 1], terminated=False)
    _play(ring, [100, 100, 100], terminated=True, start=10)
    contents = _everything(ring)
    assert contents["reward"] == [1.5, 1, 175, 150, 100]
    assert contents["next_observation"] == [2, 2, 13, 13, 13]
    assert contents["terminated"] == [False, False, True, True, True]


def test_terminated_wins_where_both_flags_are_set() -> None:
    ring = TransitionRing(4)
    ring.add([[0.0]], [0], [0.0], [[1.0]], [True], [True])
    assert _everything(ring)["terminated"] == [True]


def test_end_episode_truncates_at_the_latest_observation() -> None:
    ring = TransitionRing(8, n_step=3, gamma=0.5, num_streams=2)
    for t in range(2):
        now = torch.tensor([[t], [10 + t]])
        ring.add(now, [t, t], [1, 2], now + 1, [False, False])
    assert len(ring) == 0
    assert ring.end_episode([1]).tolist() == [0, 1]
    assert ring.end_episode().tolist() == [2, 3]
    assert ring.end_episode().tolist() == []
    contents = _everything(ring)
    assert contents["observation"] == [10, 11, 0, 1]
    assert contents["next_observation"] == [12, 12, 2, 2]
    assert contents["reward"] == [3, 2, 1.5, 1]
    assert contents["discount"] == [0.25, 0.5, 0.25, 0.5]
    assert contents["terminated"] == [False] * 4


def test_a_full_ring_holds_exactly_the_newest_capacity_unrelated_transitions() -> None:
    ring = TransitionRing(5)
    for i in range(13):
        assert ring.add([[i]], [i], [float(i)], [[100 + i]], [True]).tolist() == [i % 5]
        held = sorted(_everything(ring)["action"])
        assert held == list(range(max(0, i - 4), i + 1))
    contents = ring.get(torch.tensor([3, 2, 3]))
    assert contents["action"].tolist() == [8, 12, 8]
    assert contents["next_observation"].tolist() == [[108], [112], [108]]


def test_serial_and_age_follow_a_slot_through_overwriting() -> None:
    ring = TransitionRing(3)
    for i in range(5):
        ring.add([[i]], [i], [0.0], [[i + 1]], [False])
    index = torch.tensor([0, 1, 2])  # hold transitions 3, 4, 2
    assert ring.serial(index).tolist() == [3, 4, 2]
    assert ring.age(index).tolist() == [1, 0, 2]
    assert ring.get(index)["action"].tolist() == [3, 4, 2]


def test_get_returns_a_copy() -> None:
    ring = TransitionRing(2)
    ring.add([[1.0]], [1], [1.0], [[2.0]], [True])
    index = torch.tensor([0])
    for value in ring.get(index).values():
        value.zero_()
    assert _everything(ring) == {
        "observation": [1],
        "action": [1],
        "reward": [1],
        "next_observation": [2],
        "terminated": [True],
        "discount": [pytest.approx(0.99)],
    }


def test_add_copies_its_arguments() -> None:
    ring = TransitionRing(4)
    now, then = np.zeros((1, 2), np.float32), np.ones((1, 2), np.float32)
    ring.add(now, np.zeros(1, np.int64), np.zeros(1), then, np.zeros(1, bool))
    now += 5
    then += 5
    assert _everything(ring)["observation"] == [0, 0]
    assert _everything(ring)["next_observation"] == [1, 1]


def test_structure_and_types_are_kept() -> None:
    ring = TransitionRing(4, num_streams=2)
    camera = torch.randint(256, (2, 3, 2), dtype=torch.uint8)
    observation = {
        "camera": camera,
        "more": (np.array([1.5, 2.5]), torch.tensor([[True], [False]])),
        "half": torch.tensor([[1.0], [-2.0]], dtype=torch.bfloat16),
    }
    reordered = {key: observation[key] for key in ("half", "more", "camera")}
    action = {"move": np.array([3, 4], np.int32), "push": np.array([[0.1], [0.2]])}
    ring.add(observation, action, [0, 0], reordered, [False, False])
    batch = ring.get(torch.tensor([1, 0]))
    for key in ("observation", "next_observation"):
        contents = batch[key]
        assert list(contents) == ["camera", "more", "half"]
        assert contents["camera"].dtype is torch.uint8
        assert contents["camera"].equal(camera.flip(0))
        assert isinstance(contents["more"], tuple)
        assert contents["more"][0].dtype is torch.float32  # float64 came in
        assert contents["more"][0].tolist() == [2.5, 1.5]
        assert contents["more"][1].tolist() == [[False], [True]]
        assert contents["half"].dtype is torch.bfloat16
        assert contents["half"].tolist() == [[-2.0], [1.0]]
    assert batch["action"]["move"].dtype is torch.int64
    assert batch["action"]["move"].tolist() == [4, 3]
    assert batch["action"]["push"].dtype is torch.float32
    assert batch["reward"].dtype is torch.float32
    assert batch["terminated"].dtype is torch.bool
    assert batch["discount"].dtype is torch.float32


def test_strided_and_read_only_frames_are_stored_by_value() -> None:
    ring = TransitionRing(4, num_streams=2)
    frame = np.arange(12, dtype=np.uint8).reshape(2, 2, 3)
    read_only = frame[:, ::-1]
    read_only.flags.writeable = False
    ring.add(
        torch.from_numpy(frame).transpose(1, 2).contiguous().transpose(1, 2),
        [0, 0],
        [0, 0],
        read_only,
        [False, False],
    )
    batch = ring.get(torch.tensor([0, 1]))
    assert batch["observation"].numpy().tolist() == frame.tolist()
    assert batch["next_observation"].numpy().tolist() == read_only.tolist()


# -- memory ---------------------------------------------------------------------------------------


def test_next_observations_cost_one_frame_per_episode() -> None:
    ring = TransitionRing(1000, num_streams=2)
    for t in range(400):
        now = torch.tensor([[t], [10_000 + t]])
        ended = torch.tensor([t % 100 == 99, False])
        # Stream 0 is restarted, at a fresh observation, after each end.
        now[0] += 20_000 * (t // 100)
        ring.add(now, [0, 0], [0, 0], now + 1, ended)
    # 800 observations, the latest of each stream, and the ends of three earlier episodes.
    assert len(ring) == 800
    assert ring.frames_used == 800 + 2 + 3


def test_unequal_bits_are_never_shared() -> None:
    ring = TransitionRing(10)
    zero, minus_zero, nan = (torch.tensor([[x]]) for x in (0.0, -0.0, float("nan")))
    ring.add(zero, [0], [0], zero, [False])  # shows 0.0
    ring.add(minus_zero, [0], [0], nan, [False])  # equal as numbers, not as bits
    ring.add(nan, [0], [0], zero, [False])  # unequal as numbers, equal as bits
    batch = ring.get(torch.tensor([0, 1, 2]))
    assert torch.signbit(batch["observation"][:2]).flatten().tolist() == [False, True]
    assert batch["observation"].isnan().flatten().tolist() == [False, False, True]
    assert ring.frames_used == 5


def _frames_pointed_to(ring: TransitionRing) -> list[int]:
    """References to each frame, counted from slots, open windows and streams."""
    storage = ring._storage
    streams = storage.streams
    rows = [storage.slots.pointer[: len(ring)].ravel(), streams.latest.ravel()]
    for s in range(ring.num_streams):
        at = (streams.begin[s] + np.arange(streams.open[s])) % ring.n_step
        rows.append(streams.first[s, at].ravel())
    pointers = np.concatenate(rows)
    return np.bincount(pointers[pointers >= 0], minlength=ring.num_frames).tolist()


@pytest.mark.parametrize("frame_stack", [1, 3])
@pytest.mark.parametrize("capacity", [5, 64])
def test_reference_counts_match_the_references(capacity: int, frame_stack: int) -> None:
    ring = TransitionRing(capacity, num_streams=4, n_step=3, frame_stack=frame_stack)
    generator = torch.Generator().manual_seed(0)

    def frames(count: int) -> torch.Tensor:
        return torch.randint(4, (4, count, 2), generator=generator, dtype=torch.uint8)

    now, sizes = frames(frame_stack), []
    for t in range(3000):
        then = torch.cat([now[:, 1:], frames(1)], 1)
        ended = torch.rand(4, generator=generator) < 0.1
        shown = (part if frame_stack > 1 else part[:, 0] for part in (now, then))
        ring.add(next(shown), [0] * 4, [0.0] * 4, next(shown), ended)
        if t % 50 == 0:
            ring.end_episode([t // 50 % 4])
        now = torch.where(ended[:, None, None], frames(frame_stack), then)
        sizes.append(ring.num_frames)
        if t % 10 == 0:
            pointers = _frames_pointed_to(ring)
            references = ring._storage.pool.references.counts
            assert [max(count, 0) for count in references.tolist()] == pointers
            assert ring.frames_used == np.count_nonzero(pointers)
    assert sizes[-1] == sizes[1500]


def test_bookkeeping_beside_the_sum_tree_stays_below_24_bytes_a_slot() -> None:
    from lit_adaptive.core.sum_tree import SumTree

    capacity = 100_000
    ring = TransitionRing(capacity, num_streams=8, n_step=3)
    ring.add(torch.rand(8, 4), [0] * 8, [0.0] * 8, torch.rand(8, 4), [False] * 8)
    membership = capacity  # the prioritized sampler's bool per slot
    assert (ring.bookkeeping_nbytes + SumTree(capacity).nbytes + membership) / capacity < 24


# -- frame stacks ---------------------------------------------------------------------------------


def _stacked_episodes(steps: int, k: int) -> list:
    """Steps of one stream with stacks of k frames, as from a frame-stacking wrapper."""
    generator = torch.Generator().manual_seed(k)
    steps_of_stream, stack = [], None
    for t in range(steps):
        if stack is None:
            first = torch.randint(256, (1, 6, 6), dtype=torch.uint8, generator=generator)
            stack = first.repeat(k, 1, 1)
        frame = torch.randint(256, (1, 6, 6), dtype=torch.uint8, generator=generator)
        then = torch.cat([stack[1:], frame])
        ended = t % 17 == 16
        steps_of_stream.append(
            (stack, t, float(t), then, ended and t % 2 == 0, ended and t % 2 == 1)
        )
        stack = None if ended else then
    return steps_of_stream


@pytest.mark.parametrize("n_step", [1, 3])
def test_stacks_that_share_frames_equal_stacks_that_do_not(n_step: int) -> None:
    k = 4
    shared = TransitionRing(100, n_step=n_step, frame_stack=k)
    plain = TransitionRing(100, n_step=n_step)
    index = torch.arange(100)
    for t, step in enumerate(_stacked_episodes(350, k)):
        batched = [torch.as_tensor(part)[None] for part in step]
        assert shared.add(*batched).equal(plain.add(*batched))
        if t % 10 == 0 and len(plain):
            held = index[: len(plain)]
            batch, expected = shared.get(held), plain.get(held)
            assert batch.keys() == expected.keys()
            for key in batch:
                assert batch[key].equal(expected[key]), key
    # One frame a slot; episodes of 17 begin with one more and end with one more, and a slot needs
    # k - 1 frames before its own. Unshared it were 4 a slot.
    episodes = 100 // 17 + 2
    assert shared.frames_used <= 100 + 2 * episodes + k + n_step


def test_a_million_atari_transitions_take_a_quarter_of_the_unshared() -> None:
    # 1e6 stacks of four 84 x 84 frames: 28 GB stored once each; here per thousand.
    ring = TransitionRing(1000, frame_stack=4)
    stack = torch.zeros(4, 84, 84, dtype=torch.uint8)
    for t in range(1500):
        frame = torch.full((1, 84, 84), t % 251, dtype=torch.uint8)
        then = torch.cat([stack[1:], frame])
        ring.add(stack[None], [0], [0.0], then[None], [False])
        stack = then
    assert len(ring) == 1000
    assert ring.frames_used * 84 * 84 == pytest.approx(1000 * 7056, rel=0.01)
    assert ring.nbytes < 1.1 * 1000 * 7056
