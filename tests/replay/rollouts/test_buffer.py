"""The rollout buffer against a list, its draws against their law, and its checkpoints."""

import io
import math
from typing import Any

import pytest
import torch
from groups_twin import NAN, BufferTwin, Group, assert_same, graded, joined, random_group
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from lit_adaptive.replay.rollouts.buffer import RolloutBuffer, RolloutDraw

POLICIES = ("uniform", "prioritized", "fresh")


def reloaded(state: dict[str, Any]) -> dict[str, Any]:
    """Through a file, as a checkpoint goes, with nothing but tensors and primitives."""
    file = io.BytesIO()
    torch.save(state, file)
    file.seek(0)
    return torch.load(file, weights_only=True)


def filled(count: int, **options: Any) -> RolloutBuffer:
    """A buffer of ``count`` groups, the i-th of prompt i, version i and |A| 1 + i % 5."""
    buffer = RolloutBuffer(count, **options)
    groups = [graded(i, advantage=1.0 + i % 5, version=i) for i in range(count)]
    assert buffer.add(joined(groups)) == count
    return buffer


def assert_same_draw(here: RolloutDraw, there: RolloutDraw) -> None:
    assert_same(here.groups, there.groups)
    for mine, other in zip(here[1:], there[1:], strict=True):
        assert mine.equal(other)


def assert_unchanged(buffer: RolloutBuffer, before: dict[str, Any]) -> None:
    after = buffer.state_dict()
    assert repr(_plain(after)) == repr(_plain(before))


def _plain(value: Any) -> Any:
    if isinstance(value, dict):
        return {name: _plain(each) for name, each in value.items()}
    return value.tolist() if isinstance(value, Tensor) else value


# -- against the twin ---------------------------------------------------------------------------


class Pair:
    """A buffer and its twin, which are told the same and compared after each step."""

    def __init__(self, seed: int, options: dict[str, Any]) -> None:
        self.random = torch.Generator().manual_seed(seed)
        self.options = options
        self.buffer = RolloutBuffer(**self.options)
        self.twin = BufferTwin(**options)
        self.version = 0

    def add(self, count: int) -> None:
        made = max(0, self.version - int(torch.randint(4, (1,), generator=self.random)))
        groups = [random_group(self.random, version=made) for _ in range(count)]
        assert self.buffer.add(joined(groups)) == self.twin.add(groups)

    def advance(self, versions: int) -> None:
        self.version += versions
        self.buffer.expire(self.version)
        self.twin.expire(self.version)

    def draw(self, share: float) -> None:
        self.advance(0)
        count = int(share * len(self.buffer))
        drawn = self.buffer.draw(count, version=self.version, weight_beta=0.5)
        due = self.chances(count)
        at = self.places(drawn.key)
        assert len(set(at)) == count
        assert_same(drawn.groups, joined([self.twin.held[i] for i in at]))
        torch.testing.assert_close(drawn.probability, due[at], rtol=1e-9, atol=1e-300)
        if count:
            weight = (drawn.probability * len(self.buffer)).pow(-0.5)
            torch.testing.assert_close(drawn.weight, weight / weight.max())
        if count and self.random.initial_seed() % 2:
            self.update(drawn.key)

    def chances(self, count: int) -> Tensor:
        """Those too heavy are certain; the others share what is left, in proportion."""
        chance = self.twin.probabilities(self.version)
        certain = torch.zeros(len(chance), dtype=torch.bool)
        while count > int(certain.sum()):
            rest = count - int(certain.sum())
            shared = torch.where(certain, 0, chance) / chance[~certain].sum() * rest / count
            wide = (shared >= (1 - 1e-9) / count) & ~certain
            if not bool(wide.any()):
                break
            certain |= wide
        return torch.where(certain, 1 / count, shared) if count else chance

    def places(self, key: Tensor) -> list[int]:
        keys = self.buffer.probabilities()[0].tolist()
        return [keys.index(each) for each in key.tolist()]

    def update(self, key: Tensor) -> None:
        priority = torch.randint(5, (len(key),), generator=self.random) / 2
        for place, value in zip(self.places(key), priority.tolist(), strict=True):
            self.twin.held[place]["base"] = value
        strange = torch.cat([torch.tensor([-1, 10**12]), key])
        assert self.buffer.update(strange, torch.cat([torch.ones(2), priority])) == len(key)
        self.twin.count("gone", 2)

    def resume(self) -> None:
        state = reloaded(self.buffer.state_dict())
        self.buffer = RolloutBuffer(**self.options, seed=99)
        self.buffer.load_state_dict(state)

    def compare(self) -> None:
        buffer, twin = self.buffer, self.twin
        assert len(buffer) == len(twin.held)
        assert_same(buffer.groups(), joined(twin.held))
        assert {name: n for name, n in buffer.counters.items() if n} == {
            name: n for name, n in twin.counters.items() if n
        }
        key, probability = buffer.probabilities()
        assert key.tolist() == sorted(set(key.tolist()))
        due = twin.probabilities(self.version)
        torch.testing.assert_close(probability, due, rtol=1e-9, atol=1e-300)


STEPS = st.lists(
    st.one_of(
        st.tuples(st.just("add"), st.integers(0, 9)),
        st.tuples(st.just("advance"), st.integers(0, 5)),
        st.tuples(st.just("draw"), st.floats(0, 1)),
        st.tuples(st.just("resume")),
    ),
    max_size=14,
)


@settings(max_examples=60)
@given(
    st.fixed_dictionaries(
        {
            "capacity": st.integers(1, 12),
            "policy": st.sampled_from(POLICIES),
            "signal": st.sampled_from(["advantage", "learnability"]),
            "alpha": st.sampled_from([0.0, 0.6, 1.0]),
            "tau": st.sampled_from([0.5, 3.0, 500.0]),
            "tolerance": st.sampled_from([0.0, 0.25]),
            "max_age": st.sampled_from([None, 0, 3]),
            "deduplicate": st.booleans(),
        }
    ),
    st.integers(0, 9999),
    STEPS,
)
def test_holds_counts_and_draws_what_the_twin_does(
    options: dict[str, Any],
    seed: int,
    steps: list[tuple[Any, ...]],
) -> None:
    pair = Pair(seed, options)
    pair.add(5)
    pair.advance(0)
    pair.compare()
    for name, *arguments in steps:
        getattr(pair, name)(*arguments)
        pair.compare()


# -- what is kept ---------------------------------------------------------------------------------


def group_of(reward: list[float], *, prompt: int = 0, demonstration: bool = False) -> Group:
    size = len(reward)
    group = graded(prompt, right=size - 1) if size > 1 else graded(prompt, right=0)
    return group | {"reward": reward, "demonstration": [demonstration] + [False] * (size - 1)}


@pytest.mark.parametrize(
    ("reward", "tolerance", "counter"),
    [
        ([0.0, 1.0], 0.0, None),
        ([1.0, 1.0], 0.0, "dropped_solved"),
        ([0.0, 0.0], 0.0, "dropped_failed"),
        ([0.0], 0.0, "dropped_failed"),
        ([0.0, 0.0, 0.0, 1.0], 0.25, "dropped_failed"),
        ([1.0, 1.0, 1.0, 0.0], 0.25, "dropped_solved"),
        ([1.0, 0.0, 1.0, 0.0], 0.25, None),
        ([0.5, 0.5], 0.0, "dropped_flat"),  # the mean is neither 0 nor 1, but nothing is to learn
        ([-1.0, -1.0], 0.0, "dropped_flat"),
        ([-1.0, 1.0], 0.25, None),  # mean 0, but of shaped rewards
        ([2.0, 0.0], 0.0, None),  # mean 1
        ([NAN, 1.0, 1.0], 0.0, "dropped_solved"),
        ([NAN, 1.0, 0.0], 0.0, None),
        ([NAN, NAN], 0.0, "dropped_flat"),
    ],
)
def test_keeps_groups_whose_rewards_say_something(
    reward: list[float], tolerance: float, counter: str | None
) -> None:
    buffer = RolloutBuffer(4, tolerance=tolerance)
    assert buffer.add(joined([group_of(reward)])) == (counter is None)
    assert {name for name, number in buffer.counters.items() if number} == {counter} - {None}
    assert buffer.add(joined([group_of(reward, demonstration=True)])) == 1


def test_the_newest_group_of_a_prompt_replaces_and_the_oldest_leave_first() -> None:
    buffer = RolloutBuffer(3)
    buffer.add(joined([graded(i, version=i) for i in (0, 1, 2)]))
    assert buffer.add(joined([graded(0, version=5)])) == 1
    assert buffer.groups().prompt.tolist() == [1, 2, 0]
    assert buffer.groups().version.tolist() == [1, 2, 5]
    buffer.add(joined([graded(7, version=5), graded(8, version=5)]))
    assert buffer.groups().prompt.tolist() == [0, 7, 8]
    assert (buffer.replaced, buffer.evicted) == (1, 2)


def test_a_call_beyond_the_capacity_keeps_its_last() -> None:
    buffer = RolloutBuffer(2)
    assert buffer.add(joined([graded(i) for i in (5, 6, 5, 7, 8)])) == 2
    assert buffer.groups().prompt.tolist() == [7, 8]
    assert (buffer.replaced, buffer.evicted) == (1, 2)


def test_without_deduplication_a_prompt_may_have_several_groups() -> None:
    buffer = RolloutBuffer(3, deduplicate=False)
    assert buffer.add(joined([graded(5), graded(5), graded(6)])) == 3
    assert buffer.groups().prompt.tolist() == [5, 5, 6]


def test_groups_leave_when_older_than_max_age_whatever_their_order() -> None:
    buffer = RolloutBuffer(9, max_age=2)
    buffer.add(joined([graded(i, version=v) for i, v in enumerate([5, 3, 5, 4])]))
    assert buffer.expire(5) == 0
    assert buffer.expire(6) == 1
    assert buffer.groups().version.tolist() == [5, 5, 4]
    drawn = buffer.draw(2, version=7, weight_beta=0)  # a draw looks at ages as well
    assert sorted(drawn.groups.version.tolist()) == [5, 5]
    assert buffer.expired == 2
    assert buffer.expire(99) == 2
    assert len(buffer) == 0
    assert buffer.add(joined([graded(1, version=99)])) == 1


def test_freed_room_is_used_again() -> None:
    random = torch.Generator().manual_seed(0)
    buffer = RolloutBuffer(40, deduplicate=True)
    sizes = []
    for _ in range(60):
        buffer.add(joined([random_group(random, prompts=60) for _ in range(20)]))
        sizes.append(buffer.nbytes)
    assert sizes[-1] <= 1.3 * sizes[20]


def test_memory_is_near_the_tokens() -> None:
    groups = [graded(i) for i in range(64)]
    for group in groups:
        group |= {"lengths": [300, 200], "tokens": [[7] * 300, [7] * 200]}
        group |= {"log_probs": [[-1.0] * 300, [-1.0] * 200]}
    buffer = RolloutBuffer(64)
    buffer.add(joined(groups))
    assert buffer.nbytes <= 1.1 * joined(groups).nbytes


# -- draws ----------------------------------------------------------------------------------------


def inclusions(buffer: RolloutBuffer, count: int, draws: int, version: int) -> Tensor:
    """How often each group was drawn, the oldest first."""
    keys = buffer.probabilities()[0]
    found = torch.zeros(len(keys))
    for _ in range(draws):
        drawn = buffer.draw(count, version=version, weight_beta=1)
        assert len(set(drawn.key.tolist())) == count
        found += (drawn.key[:, None] == keys).sum(0)
    return found


def written_law(buffer: RolloutBuffer, version: int) -> Tensor:
    """P(i) of ``filled``, from the formulas."""
    i = torch.arange(len(buffer), dtype=torch.float64)
    priority = 1.0 + i % 5 + 1e-6
    if buffer.policy == "fresh":
        priority = priority * (-(version - i) / buffer.tau).exp()
    mass = torch.ones_like(i) if buffer.policy == "uniform" else priority**buffer.alpha
    return mass / mass.sum()


@pytest.mark.parametrize("policy", POLICIES)
@pytest.mark.parametrize("count", [1, 7])
def test_draws_follow_their_law(policy: str, count: int) -> None:
    buffer = filled(20, policy=policy, tau=15.0, seed=count)
    probability = written_law(buffer, 30)
    assert float(probability.max()) * count < 1  # none is taken for certain
    draws = 2000
    found = inclusions(buffer, count, draws, 30).double()
    due = draws * count * probability
    spread = (due * (1 - count * probability)).sqrt()
    assert float(((found - due) / spread).abs().max()) < 4
    # Chi-square with 19 degrees of freedom; draws of several are more even than single ones.
    assert float(((found - due) ** 2 / due).sum()) < 43.8  # 0.1 %


def test_prioritized_ignores_age_and_fresh_obeys_it() -> None:
    # Equal |A|: PER draws them alike; FreshPER by exp(-alpha age / tau).
    groups = joined([graded(i, advantage=0.5, version=v) for i, v in enumerate([0, 10, 20])])
    plain = RolloutBuffer(3, policy="prioritized", tau=10.0)
    fresh = RolloutBuffer(3, policy="fresh", tau=10.0)
    plain.add(groups)
    fresh.add(groups)
    third = torch.full((3,), 1 / 3, dtype=torch.float64)
    torch.testing.assert_close(plain.probabilities()[1], third)
    ratio = fresh.probabilities()[1]
    assert float(ratio[0] / ratio[1]) == pytest.approx(math.exp(-0.6))
    assert float(ratio[1] / ratio[2]) == pytest.approx(math.exp(-0.6))
    drawn = fresh.draw(1, version=500, weight_beta=1)  # the law is the same at any later version
    torch.testing.assert_close(fresh.probabilities()[1], ratio)
    assert drawn.weight.tolist() == [1.0]


def test_a_heavy_group_is_certain_and_the_others_share_the_rest() -> None:
    buffer = RolloutBuffer(5, policy="prioritized", alpha=1.0)
    buffer.add(joined([graded(i, advantage=a) for i, a in enumerate([1, 1, 100, 2, 40])]))
    # k = 3: 100 of 144 and then 40 of 44 are certain; 1, 1 and 2 share one place.
    drawn = buffer.draw(3, version=0, weight_beta=1)
    assert {2, 4} < set(drawn.groups.prompt.tolist())
    found = inclusions(buffer, 3, 1000, 0) / 1000
    torch.testing.assert_close(found[[2, 4]], torch.ones(2), rtol=0, atol=0)
    torch.testing.assert_close(found[[0, 1, 3]], torch.tensor([0.25, 0.25, 0.5]), atol=0.05, rtol=0)
    chance = dict(zip(drawn.groups.prompt.tolist(), drawn.probability.tolist(), strict=True))
    share = 1 / 2 if 3 in chance else 1 / 4
    assert sorted(chance.values()) == pytest.approx([share / 3, 1 / 3, 1 / 3])
    before = buffer.probabilities()[1]
    buffer.draw(4, version=0, weight_beta=1)
    assert before.equal(buffer.probabilities()[1])


def test_a_draw_of_all_holds_each_once() -> None:
    for policy in POLICIES:
        buffer = filled(13, policy=policy, tau=0.3)
        drawn = buffer.draw(13, version=12, weight_beta=1)
        assert sorted(drawn.groups.prompt.tolist()) == list(range(13))
        torch.testing.assert_close(drawn.probability, torch.full((13,), 1 / 13).double())
        assert drawn.weight.tolist() == [1.0] * 13


def test_weights_make_the_mean_over_draws_that_over_groups() -> None:
    buffer = filled(20, policy="fresh", tau=15.0)
    value = torch.arange(20, dtype=torch.float64).square()
    total, draws, count = 0.0, 2000, 5
    for _ in range(draws):
        drawn = buffer.draw(count, version=20, weight_beta=1)
        full = (20 * drawn.probability).reciprocal()
        torch.testing.assert_close(drawn.weight, full / full.max())
        total += float((full * value[drawn.groups.prompt]).sum()) / count
    assert total / draws == pytest.approx(float(value.mean()), rel=0.03)


def test_uniform_draws_have_weight_one_and_the_same_chance() -> None:
    drawn = filled(8).draw(3, version=9, weight_beta=1)
    assert drawn.weight.tolist() == [1.0] * 3
    assert drawn.probability.tolist() == [1 / 8] * 3


def test_law_is_kept_while_versions_go_on_and_on() -> None:
    # 4200 versions at tau 0.5: logs of masses reach 5040, far beyond float64's exponent.
    buffer = RolloutBuffer(4, policy="fresh", tau=0.5, alpha=0.6)
    for version in range(0, 4200, 7):
        buffer.add(joined([graded(version, version=version, advantage=2.0)]))
        if version % 700 == 0 and len(buffer) == 4:
            found = buffer.probabilities()[1]
            due = torch.tensor([-25.2, -16.8, -8.4, 0.0], dtype=torch.float64).softmax(0)
            torch.testing.assert_close(found, due, rtol=1e-9, atol=0)


def test_groups_far_too_old_can_still_be_drawn_when_all_are_asked_for() -> None:
    buffer = RolloutBuffer(3, policy="fresh", tau=0.01)
    buffer.add(joined([graded(i, version=10**6 * i) for i in range(3)]))
    drawn = buffer.draw(3, version=2 * 10**6, weight_beta=0.4)
    assert sorted(drawn.groups.prompt.tolist()) == [0, 1, 2]
    assert buffer.draw(1, version=2 * 10**6, weight_beta=0.4).groups.prompt.tolist() == [2]


def test_update_changes_the_law_of_those_still_there() -> None:
    buffer = RolloutBuffer(2, policy="prioritized", alpha=1.0)
    buffer.add(joined([graded(0), graded(1)]))
    key = buffer.probabilities()[0]
    assert buffer.update(key, torch.tensor([3.0, 1.0])) == 2
    assert buffer.probabilities()[1].tolist() == pytest.approx([0.75, 0.25], abs=1e-6)
    buffer.add(joined([graded(2)]))  # the slot of the first is another group's now
    assert buffer.update(key[:1], torch.tensor([100.0])) == 0
    assert buffer.gone == 1
    assert buffer.probabilities()[1].tolist() == pytest.approx([0.5, 0.5])
    assert buffer.update(torch.cat([key, buffer.probabilities()[0]]), torch.arange(4.0)) == 3
    assert buffer.probabilities()[1].tolist() == pytest.approx([0.4, 0.6], abs=1e-6)
    double = buffer.probabilities()[0][[1, 1]]
    buffer.update(double, torch.tensor([9.0, 8.0]))
    assert buffer.probabilities()[1].tolist() == pytest.approx([0.2, 0.8], abs=1e-6)


def test_what_is_drawn_is_a_copy() -> None:
    buffer = filled(4)
    before = buffer.groups()
    drawn = buffer.draw(4, version=9, weight_beta=0)
    for value in drawn.groups.state_dict().values():
        value.zero_()
    drawn.key.zero_()
    assert_same(buffer.groups(), before)
    assert buffer.update(buffer.probabilities()[0], torch.ones(4)) == 4


# -- checkpoints ----------------------------------------------------------------------------------


@pytest.mark.parametrize("policy", POLICIES)
def test_two_resumes_equal_the_run_that_never_stopped(policy: str) -> None:
    options: dict[str, Any] = {"policy": policy, "tau": 0.7, "max_age": 900}

    def run(stops: set[int]) -> list[RolloutDraw]:
        random = torch.Generator().manual_seed(5)
        buffer = RolloutBuffer(50, seed=3, **options)
        drawn = []
        for step in range(40):
            version = 13 * step  # masses are written anew on the way
            if step in stops:
                state = reloaded(buffer.state_dict())
                buffer = RolloutBuffer(50, seed=77, **options)
                buffer.load_state_dict(state)
            made = [random_group(random, prompts=90, version=version) for _ in range(20)]
            buffer.add(joined(made))
            drawn.append(buffer.draw(9, version=version, weight_beta=0.4))
            priority = torch.rand(9, generator=random)
            buffer.update(drawn[-1].key, priority)
        return drawn

    for here, there in zip(run(set()), run({11, 12, 30}), strict=True):
        assert_same_draw(here, there)


def test_a_state_is_a_copy() -> None:
    buffer = filled(6, policy="fresh")
    state = buffer.state_dict()
    before = repr(_plain(state))
    buffer.add(joined([graded(9, version=9)]))
    buffer.update(buffer.probabilities()[0], torch.rand(6))
    buffer.draw(2, version=9, weight_beta=0)
    assert repr(_plain(state)) == before
    twin = RolloutBuffer(6, policy="fresh")
    twin.load_state_dict(state)
    twin.add(joined([graded(8, version=9)]))
    twin.draw(6, version=9, weight_beta=0)
    assert repr(_plain(state)) == before


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"capacity": 7}, "state has capacity=6, this buffer capacity=7"),
        ({"policy": "uniform"}, "policy='fresh', this buffer policy='uniform'"),
        ({"alpha": 0.5}, "alpha=0.6, this buffer alpha=0.5"),
        ({"tau": 5.0}, "tau=500.0, this buffer tau=5.0"),
        ({"signal": "learnability"}, "signal='advantage'"),
        ({"deduplicate": False}, "deduplicate=True"),
    ],
)
def test_state_of_another_buffer_is_refused(options: dict[str, Any], said: str) -> None:
    state = filled(6, policy="fresh").state_dict()
    buffer = RolloutBuffer(**{"capacity": 6, "policy": "fresh", **options})
    buffer.add(joined([graded(3)]))
    before = buffer.state_dict()
    with pytest.raises(ValueError, match=said):
        buffer.load_state_dict(state)
    assert_unchanged(buffer, before)


def damaged(state: dict[str, Any]) -> dict[str, dict[str, Any]]:
    groups, base = state["groups"], state["base"]
    return {
        "no groups": {name: value for name, value in state.items() if name != "groups"},
        "field": state | {"groups": groups | {"tokens": groups["tokens"][1:]}},
        "key order": state | {"key": state["key"].flip(0)},
        "negative key": state | {"key": state["key"] - 1},
        "key type": state | {"key": state["key"].int()},
        "next key": state | {"next_key": 2},
        "prompts": state | {"groups": groups | {"prompt": torch.zeros_like(groups["prompt"])}},
        "priorities": state | {"base": torch.full_like(base, math.inf)},
        "zero priority": state | {"base": torch.zeros_like(base)},
        "no priorities": state | {"base": None},
        "newest": state | {"newest": 2},
        "no newest": state | {"newest": None},
        "version": state | {"newest": "4"},
        "counters": state | {"counters": state["counters"] | {"gone": -1}},
        "fingerprint": state | {"fingerprint": 3},
        "generator": state | {"generator": state["generator"][:9]},
        "kind": state | {"kind": "TransitionRing"},
    }


def test_a_damaged_state_changes_nothing() -> None:
    state = filled(6, policy="fresh").state_dict()
    buffer = RolloutBuffer(6, policy="fresh")
    buffer.add(joined([graded(3)]))
    before = buffer.state_dict()
    for name, wrong in damaged(state).items():
        said = "not of a RolloutBuffer" if name == "kind" else "damaged"
        with pytest.raises(ValueError, match=said):
            buffer.load_state_dict(wrong)
        assert_unchanged(buffer, before)
    buffer.load_state_dict(state)
    assert len(buffer) == 6


def test_rollouts_of_another_model_are_refused() -> None:
    buffer = filled(3)
    buffer.fingerprint = "gpt2:abc"
    state = reloaded(buffer.state_dict())
    other = RolloutBuffer(3)
    other.fingerprint = "llama:def"
    before = other.state_dict()
    with pytest.raises(ValueError, match=r"of tokenizer and model 'gpt2:abc'.*'llama:def'.*empty"):
        other.load_state_dict(state)
    assert_unchanged(other, before)
    fresh = RolloutBuffer(3)
    fresh.load_state_dict(state)  # whoever has none yet takes over that of the groups
    assert fresh.fingerprint == "gpt2:abc"
    with pytest.raises(ValueError, match=r"'gpt2:abc'.*'llama:def'.*clear"):
        fresh.fingerprint = "llama:def"
    fresh.clear()
    fresh.fingerprint = "llama:def"
    assert len(fresh) == 0


def test_keys_are_never_used_twice_even_after_clear() -> None:
    buffer = filled(4)
    key = buffer.probabilities()[0]
    buffer.clear()
    buffer.add(joined([graded(i) for i in range(4)]))
    assert not set(key.tolist()) & set(buffer.probabilities()[0].tolist())
    assert buffer.update(key, torch.ones(4)) == 0


def test_max_age_and_tolerance_may_change_on_resume() -> None:
    buffer = filled(5, policy="fresh")
    other = RolloutBuffer(5, policy="fresh", max_age=2, tolerance=0.1)
    other.load_state_dict(reloaded(buffer.state_dict()))
    assert_same(other.groups(), buffer.groups())
    assert other.expire(5) == 3


# -- bad input ------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"capacity": 0}, "capacity is 0"),
        ({"policy": "freshest"}, r"policy is 'freshest'.*'fresh'"),
        ({"signal": "loss"}, "signal is 'loss'"),
        ({"alpha": -0.1}, "alpha is -0.1"),
        ({"tau": 0.0}, "tau is 0.0"),
        ({"epsilon": 0.0}, "epsilon is 0.0"),
        ({"max_age": -1}, "max_age is -1"),
        ({"tolerance": 0.5}, "tolerance is 0.5"),
    ],
)
def test_arguments_out_of_range_are_named(options: dict[str, Any], said: str) -> None:
    with pytest.raises(ValueError, match=said):
        RolloutBuffer(**{"capacity": 4, **options})


@pytest.mark.parametrize(
    ("field", "value", "said"),
    [
        ("reward", [math.inf, 0.0], "reward of the groups of prompts \\[8\\]"),
        ("advantage", [NAN, 1.0], "advantage of the groups of prompts \\[8\\]"),
        ("log_probs", [[NAN], [0.0]], "log_probs of the groups of prompts \\[8\\]"),
        ("lengths", [1, 2], "tokens has 4 entries; it must have 5"),
    ],
)
def test_unsound_groups_are_named_and_change_nothing(field: str, value: Any, said: str) -> None:
    buffer = filled(3, policy="fresh")
    before = buffer.state_dict()
    with pytest.raises(ValueError, match=said):
        buffer.add(joined([graded(7, version=9), graded(8, version=9) | {field: value}]))
    assert_unchanged(buffer, before)


def test_what_does_not_count_may_be_missing() -> None:
    # No reward: the advantage is not used. A demonstration has no policy that made it.
    buffer = RolloutBuffer(3, policy="prioritized")
    one = group_of([NAN, 1.0, 0.0], prompt=1) | {"advantage": [NAN, 1.0, -1.0]}
    two = group_of([1.0, 0.0], prompt=2, demonstration=True) | {"log_probs": [[NAN], [-1.0]]}
    assert buffer.add(joined([one, two])) == 2
    torch.testing.assert_close(buffer.probabilities()[1], torch.full((2,), 0.5).double())


def test_draws_of_more_than_there_are_name_both() -> None:
    buffer = filled(4, max_age=5)
    before = buffer.state_dict()
    with pytest.raises(ValueError, match="count is 5, but the buffer holds 4 groups"):
        buffer.draw(5, version=3, weight_beta=0.4)
    with pytest.raises(ValueError, match="count is -1"):
        buffer.draw(-1, version=3, weight_beta=0.4)
    with pytest.raises(ValueError, match=r"weight_beta is 1\.5"):
        buffer.draw(2, version=3, weight_beta=1.5)
    with pytest.raises(
        ValueError, match="version is 2, but the buffer has had groups of version 3"
    ):
        buffer.draw(2, version=2, weight_beta=0.4)
    assert_unchanged(buffer, before)
    with pytest.raises(ValueError, match=r"holds 2 groups \(2 have just left because of max_age 5"):
        buffer.draw(3, version=7, weight_beta=0.4)


def test_an_empty_buffer_draws_nothing() -> None:
    for policy in POLICIES:
        buffer = RolloutBuffer(4, policy=policy)
        drawn = buffer.draw(0, version=0, weight_beta=0.4)
        assert len(drawn.groups) == len(drawn.key) == len(drawn.weight) == 0
        with pytest.raises(ValueError, match="count is 1, but the buffer holds 0 groups"):
            buffer.draw(1, version=0, weight_beta=0.4)
        assert buffer.add(joined([])) == 0
        assert buffer.update(torch.empty(0, dtype=torch.int64), torch.empty(0)) == 0


@pytest.mark.parametrize("wrong", [NAN, math.inf, -1.0])
def test_bad_priorities_name_their_keys_and_change_nothing(wrong: float) -> None:
    buffer = filled(3, policy="prioritized")
    before, key = buffer.state_dict(), buffer.probabilities()[0]
    with pytest.raises(ValueError, match=rf"key \[{int(key[1])}\] are \[{wrong}\]"):
        buffer.update(key[:2], torch.tensor([1.0, wrong]))
    with pytest.raises(ValueError, match=r"both must be \[K\]"):
        buffer.update(key, torch.ones(2))
    assert_unchanged(buffer, before)
