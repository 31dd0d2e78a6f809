"""Draws by reward: the law in every scheme, told at once or bit by bit; resuming; bad input."""

import io
import math
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats
from torch import Tensor

from lit_adaptive.core import reward_weighted as core
from lit_adaptive.samplers import (
    CurriculumSampler,
    MixtureSampler,
    RewardWeightedSampler,
    UniformSampler,
)

SIZE = 12
REWARD = torch.tensor([0.0, 3, 1, 1, 0.5, 2, 0, 4, 0.5, 1, 2.5, 0.25], dtype=torch.float64)
GROUP = torch.tensor([5, 5, 5, -1, -1, -1, -1, 8, 8, 8, 8, 30])
SCHEMES: dict[str, dict[str, Any]] = {
    "exponential": {"temperature": 0.5},
    "rank": {"scheme": "rank", "temperature": 2.0},
    "threshold": {"scheme": "threshold", "threshold": 1.0},
    "top": {"scheme": "top", "share": 0.25},
    "proportional": {"scheme": "proportional"},
    "nested": {"scheme": "nested", "shares": [0.5, 0.25]},
    "standardized": {"normalize_groups": True},
    "balanced": {"scheme": "proportional", "balance_groups": True},
    "both": {"normalize_groups": True, "balance_groups": True, "temperature": 0.3},
    "threshold in deviations": {"scheme": "threshold", "threshold": 0.5, "normalize_groups": True},
    "best of each": {"scheme": "top", "share": 0.5, "balance_groups": True},
}
every = pytest.mark.parametrize("name", SCHEMES)


def make(name: str, size: int = SIZE, **options: Any) -> RewardWeightedSampler:
    sampler = RewardWeightedSampler(size, **{"seed": 3, **SCHEMES[name], **options})
    sampler.set_groups(GROUP[:size])
    return sampler


def law(name: str, reward: Tensor = REWARD, group: Tensor = GROUP) -> Tensor:
    """By the core's functions, and for the grouped ones by hand."""
    if name in ("standardized", "both", "threshold in deviations"):
        for each in group.unique():
            mine = group == each
            deviation = reward[mine].std(correction=0)
            centered = reward[mine] - reward[mine].mean()
            reward = reward.clone()
            reward[mine] = centered / deviation if deviation > 0 else 0 * centered
    mass = {
        "exponential": lambda: (reward / 0.5).exp(),
        "rank": lambda: core.rank_masses(reward, temperature=2.0),
        "threshold": lambda: (reward >= 1).double(),
        "top": lambda: (reward >= reward.sort().values[-math.ceil(len(reward) / 4)]).double(),
        "proportional": lambda: reward,
        "nested": lambda: core.nested_masses(reward, shares=[0.5, 0.25]),
        "standardized": reward.exp,
        "balanced": lambda: reward,
        "both": lambda: (reward / 0.3).exp(),
        "threshold in deviations": lambda: (reward >= 0.5).double(),
        "best of each": lambda: core.nested_masses(reward, shares=[0.5], group=group),
    }[name]().clone()
    if name in ("balanced", "both", "best of each"):
        for each in group.unique():
            mass[group == each] /= mass[group == each].sum().clamp_min(1e-300)
    return mass / mass.sum()


@every
def test_draws_follow_the_law_of_the_scheme_with_exact_probabilities(name: str) -> None:
    sampler = make(name)
    sampler.set_scores(REWARD)
    expected = law(name)
    torch.testing.assert_close(sampler.probabilities(), expected)
    assert sampler.count == int((expected > 0).sum())
    assert sampler.min_probability() == pytest.approx(float(expected[expected > 0].min()))
    draw = sampler.draw(5000)
    assert draw.probability.equal(sampler.probabilities()[draw.index])
    assert draw.probability.equal(sampler.probability_of(draw.index))
    seen = torch.bincount(draw.index, minlength=SIZE).double()
    assert (seen - 5000 * expected).abs().max() <= 2  # stratified
    single = torch.bincount(torch.cat([sampler.draw(1).index for _ in range(2000)]), minlength=SIZE)
    drawn = expected > 0
    assert single[~drawn].sum() == 0
    if int(drawn.sum()) > 1:
        p = stats.chisquare(single[drawn].numpy(), (2000 * expected[drawn]).numpy()).pvalue
        assert p > 1e-3


@every
@given(steps=st.lists(st.tuples(st.sampled_from("uuir"), st.integers(0, SIZE - 1),
                                st.sampled_from([0.25, 1.0, 2.0, 5.0])), max_size=25))  # fmt: skip
@settings(deadline=None, max_examples=40)
def test_bit_by_bit_the_law_is_that_of_all_rewards_at_once(
    name: str, steps: list[tuple[str, int, float]]
) -> None:
    sampler = make(name)
    reward, member = REWARD.clone(), torch.ones(SIZE, dtype=torch.bool)
    sampler.set_scores(reward)
    for kind, i, value in steps:
        index = torch.tensor([i, (i + 5) % SIZE])
        if kind == "u":
            told = reward.clone()
            told[index] = torch.tensor([value, value / 2], dtype=torch.float64)
            if member.any() and law(name, told[member], GROUP[member]).isnan().any():
                with pytest.raises(ValueError, match="below the threshold"):
                    sampler.update(index, told[index])
            else:
                sampler.update(index, told[index])  # what was removed is told too
                reward = told
                if member.any() and value == 5:
                    sampler.draw(1)  # a look in between changes nothing
        elif kind == "i":
            sampler.insert(index)
            member[index] = True
        else:
            sampler.remove(index)
            member[index] = False
    if not member.any():
        with pytest.raises(ValueError, match="nothing"):
            sampler.draw(1)
        return
    expected = law(name, reward[member], GROUP[member])
    if expected.isnan().any():  # none of them reaches the threshold
        with pytest.raises(ValueError, match="below the threshold"):
            sampler.draw(1)
        return
    found = sampler.probabilities()
    torch.testing.assert_close(found[member], expected)
    assert found[~member].abs().sum() == 0


@every
def test_until_rewards_are_told_all_are_drawn_alike(name: str) -> None:
    sampler = make(name)
    if name in ("balanced", "both", "best of each"):
        sizes = torch.bincount(GROUP.unique(return_inverse=True)[1])
        expected = 1 / (4 * sizes[GROUP.unique(return_inverse=True)[1]].double())
        torch.testing.assert_close(sampler.probabilities(), expected)
    elif name != "threshold in deviations":  # where 0 is below the threshold, see the next test
        assert sampler.probabilities().tolist() == pytest.approx([1 / SIZE] * SIZE)
    assert sampler.count == SIZE
    sampler.set_scores(REWARD)
    sampler.clear()
    assert sampler.count == 0
    sampler.insert(torch.arange(SIZE))
    assert sampler.count == SIZE  # the rewards are forgotten


def test_the_untold_count_as_the_mean_of_the_told_or_as_initial() -> None:
    index, reward = torch.tensor([0, 1]), torch.tensor([1.0, 3.0])
    sampler = RewardWeightedSampler(4)
    sampler.update(index, reward)
    expected = torch.tensor([1.0, 3, 2, 2], dtype=torch.float64).softmax(0)
    torch.testing.assert_close(sampler.probabilities(), expected)
    torch.testing.assert_close(sampler.scores(), torch.tensor([1.0, 3, 2, 2]).double())
    sampler.update(torch.tensor([2, 3]), torch.tensor([0.0, 0.0]))
    expected = torch.tensor([1.0, 3, 0, 0], dtype=torch.float64).softmax(0)
    torch.testing.assert_close(sampler.probabilities(), expected)
    for scheme in ("exponential", "proportional"):
        sampler = RewardWeightedSampler(4, scheme=scheme, initial=0.5)  # type: ignore[arg-type]
        sampler.update(index, reward)
        filled = torch.tensor([1.0, 3, 0.5, 0.5], dtype=torch.float64)
        expected = filled.softmax(0) if scheme == "exponential" else filled / 5
        torch.testing.assert_close(sampler.probabilities(), expected)
    sampler = RewardWeightedSampler(4, normalize_groups=True)
    sampler.set_groups(torch.tensor([0, 0, 0, 1]))
    sampler.update(index, reward)  # -1 and 1 deviations; the others at the mean of their group
    expected = torch.tensor([-1.0, 1, 0, 0], dtype=torch.float64).softmax(0)
    torch.testing.assert_close(sampler.probabilities(), expected)


def test_while_nothing_told_can_be_drawn_the_untold_are() -> None:
    for options in ({"scheme": "proportional"}, {"scheme": "threshold", "threshold": 1.0}):
        sampler = RewardWeightedSampler(4, **options)
        sampler.update(torch.tensor([1, 2]), torch.zeros(2))
        assert sampler.probabilities().tolist() == [0.5, 0, 0, 0.5]
        sampler.update(torch.tensor([1]), torch.ones(1))
        assert sampler.probabilities()[1] > 0
        with pytest.raises(ValueError, match="all 4 rewards are"):
            sampler.set_scores(torch.zeros(4))


def test_all_rewards_equal_is_uniform() -> None:
    for name in SCHEMES:
        if name not in ("balanced", "both", "best of each", "threshold in deviations"):
            sampler = make(name)
            sampler.set_scores(torch.full((SIZE,), 1.5))
            assert sampler.probabilities().tolist() == pytest.approx([1 / SIZE] * SIZE)


def test_rewards_may_move_far_beyond_the_range_of_exponents() -> None:
    sampler = RewardWeightedSampler(3, temperature=1e-3)
    reward = torch.zeros(3, dtype=torch.float64)
    sampler.set_scores(reward)
    dice = torch.Generator().manual_seed(0)
    for k in range(60):
        reward[k % 3] = (torch.rand((), generator=dice, dtype=torch.float64) - 0.5) * 10 ** (k % 7)
        sampler.update(torch.tensor([k % 3]), reward[k % 3 : k % 3 + 1])
        expected = (reward / 1e-3).softmax(0)
        torch.testing.assert_close(sampler.probabilities(), expected, rtol=1e-7, atol=1e-12)
    sampler.remove(torch.tensor([int(reward.argmax())]))
    assert sampler.draw(2).index.tolist() != [int(reward.argmax())] * 2
    for _ in range(2):
        assert float(sampler.probabilities().sum()) == pytest.approx(1)
        sampler.insert(torch.arange(3))


def test_a_single_update_of_a_pointwise_law_rebuilds_nothing(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    for name in ("exponential", "threshold", "proportional"):
        sampler = make(name)
        sampler.remove(torch.tensor([11]))  # untold
        sampler.update(torch.arange(11), REWARD[:11])
        sampler.draw(1)
        with monkeypatch.context() as patch:
            patch.setattr(sampler, "_rebuild", lambda: pytest.fail("rebuilt"))
            sampler.update(torch.tensor([3, 4]), torch.tensor([2.0, 0.0]))
            sampler.remove(torch.tensor([1]))
            sampler.insert(torch.tensor([1]))
            sampler.draw(5)
        reward = REWARD.clone()
        reward[[3, 4]] = torch.tensor([2.0, 0.0], dtype=torch.float64)
        torch.testing.assert_close(sampler.probabilities()[:11], law(name, reward[:11], GROUP[:11]))
        sampler.insert(torch.tensor([11]))
        reward[11] = reward[:11].mean()  # as long as it is untold
        torch.testing.assert_close(sampler.probabilities(), law(name, reward))


def test_of_an_index_given_twice_the_last_counts() -> None:
    for name in ("exponential", "rank"):
        sampler, twin = make(name), make(name)
        for one in (sampler, twin):
            one.set_scores(REWARD)
        sampler.update(torch.tensor([2, 7, 2]), torch.tensor([9.0, 1.0, 0.5]))
        twin.update(torch.tensor([7, 2]), torch.tensor([1.0, 0.5]))
        assert sampler.probabilities().equal(twin.probabilities())
        assert sampler.scores().equal(twin.scores())


# Resuming ----------------------------------------------------------------------------------------


def _step(sampler: RewardWeightedSampler, k: int) -> list[Any]:
    try:
        draw = sampler.draw(5)
    except ValueError as error:
        sampler.insert(torch.arange(SIZE))
        return [str(error)]
    if k % 5 == 4:
        sampler.remove(torch.tensor([k % SIZE]))
    if k % 7 == 6:
        sampler.insert(torch.tensor([(k + 3) % SIZE, (k - 2) % SIZE]))
    try:
        sampler.update(draw.index, (draw.index * (k + 2) % 7).double() / 3 + 0.1)
    except ValueError as error:  # all are below the threshold
        return [str(error)]
    return [draw.index.tolist(), draw.probability.tolist()]  # to the last bit


@every
@pytest.mark.parametrize("told", [True, False])
def test_resumes_twice_to_the_last_bit(name: str, told: bool) -> None:
    def begin(seed: int) -> RewardWeightedSampler:
        sampler = make(name, seed=seed)
        if told:
            sampler.set_scores(REWARD)
        return sampler

    whole, broken = begin(3), begin(3)
    expected = [_step(whole, k) for k in range(30)]
    found = []
    for part in range(3):
        found += [_step(broken, k) for k in range(10 * part, 10 * part + 10)]
        file = io.BytesIO()
        torch.save(broken.state_dict(), file)
        file.seek(0)
        broken = make(name, seed=77)
        broken.update(torch.tensor([1]), torch.tensor([2.0]))
        broken.draw(3)
        broken.load_state_dict(torch.load(file, weights_only=True))
    assert found == expected


@pytest.mark.parametrize("initial", [0.4, None])
def test_who_looks_in_between_changes_no_draw(initial: float | None) -> None:
    def run(look: bool) -> list[Any]:
        sampler = RewardWeightedSampler(SIZE, temperature=0.3, initial=initial, seed=1)
        found: list[Any] = []
        for k in range(40):
            if look:
                assert sampler.count
                sampler.state_dict()
            index = torch.arange(k, k + 3) % SIZE
            sampler.update(index, index.double().sin() * 3)
            if look:
                sampler.probabilities()
            sampler.update(index[:1], torch.tensor([3 + k / 20]))  # a new maximum
            found.append(_step(sampler, k))
        return found

    assert run(True) == run(False)


def test_a_state_is_a_copy() -> None:
    sampler = make("exponential")
    sampler.set_scores(REWARD)
    state = sampler.state_dict()
    kept = {k: v.clone() if isinstance(v, Tensor) else v for k, v in state.items()}
    sampler.update(torch.arange(SIZE), -REWARD)
    sampler.remove(torch.tensor([1]))
    sampler.draw(3)
    for name, value in kept.items():
        assert value.equal(state[name]) if isinstance(value, Tensor) else value == state[name]


@pytest.mark.parametrize(
    ("other", "words"),
    [
        (lambda: RewardWeightedSampler(SIZE, temperature=0.4), "temperature is 0.5"),
        (lambda: RewardWeightedSampler(SIZE, scheme="rank", temperature=0.5), "scheme is"),
        (lambda: RewardWeightedSampler(SIZE, temperature=0.5, initial=1.0), "initial is"),
        (lambda: RewardWeightedSampler(SIZE + 1, temperature=0.5), "size is 12"),
    ],
)
def test_the_state_of_another_law_is_refused(other: Any, words: str) -> None:
    sampler = other()
    before = sampler.probabilities()
    with pytest.raises(ValueError, match=words):
        sampler.load_state_dict(make("exponential").state_dict())
    assert sampler.probabilities().equal(before)


def test_damaged_states_and_other_groups_are_refused_and_change_nothing() -> None:
    sampler = make("both")
    sampler.set_scores(REWARD)
    sampler.remove(torch.tensor([2]))
    sampler.draw(1)  # or the masses would be stale, and of no account
    before, rng = sampler.probabilities(), sampler.generator.get_state()
    state = sampler.state_dict()
    groups = GROUP.unique(return_inverse=True)[1].clone()
    groups[3] = 2
    for change, words in (
        ({"reward": REWARD[:3]}, "damaged"),
        ({"reward": REWARD / 0}, "damaged"),
        ({"mass": torch.ones(SIZE, dtype=torch.float64)}, "damaged"),
        ({"mass": torch.full((SIZE,), math.nan, dtype=torch.float64)}, "damaged"),
        ({"groups": groups}, r"groups of index \[3\]"),
    ):
        with pytest.raises(ValueError, match=words):
            sampler.load_state_dict({**state, **change})
    assert sampler.probabilities().equal(before)
    assert sampler.generator.get_state().equal(rng)


# Bad input ---------------------------------------------------------------------------------------


@every
def test_bad_rewards_are_named_and_change_nothing(name: str) -> None:
    sampler = make(name)
    sampler.set_scores(REWARD)
    sampler.remove(torch.tensor([0, 6]))
    before, count = sampler.probabilities(), sampler.count
    for index, reward, words in (
        ([1, 12], [1.0, 1.0], r"out of range: \[12\]"),
        ([1, -1], [1.0, 1.0], r"out of range: \[-1\]"),
        ([1, 2, 9], [1, math.nan, math.inf], r"index \[2, 9\] are \[nan, inf\]"),
        ([1, 2], [5.0], "shape"),
    ):
        with pytest.raises(ValueError, match=words):
            sampler.update(torch.tensor(index), torch.tensor(reward))
        assert sampler.probabilities().equal(before)
    for score, words in (
        (REWARD[:5], r"shape \(5,\) for 12"),
        (REWARD.log() + torch.where(GROUP == 30, math.nan, 0.0), r"index \[0, 6, 11\]"),
    ):
        with pytest.raises(ValueError, match=words):
            sampler.set_scores(score)
    assert sampler.probabilities().equal(before)
    assert sampler.count == count
    assert sampler.scores().equal(REWARD)


def test_what_would_leave_nothing_to_draw_is_refused_and_changes_nothing() -> None:
    everything = torch.arange(SIZE)
    for name, reward, words in (
        ("threshold", 0.5 * torch.ones(SIZE), "below the threshold 1, the highest is 0.5"),
        ("proportional", torch.zeros(SIZE), "all 12 rewards are 0"),
        ("proportional", REWARD - 1, r"index \[0, 4, 6, 8, 11\] are"),
        ("balanced", torch.zeros(SIZE), "all 12 rewards are 0"),
        (
            "threshold in deviations",
            torch.ones(SIZE),
            r"below the threshold 0\.5, the highest is 0",
        ),
    ):
        sampler = make(name)
        sampler.set_scores(REWARD)
        before = sampler.probabilities()
        for index in (None, everything):
            with pytest.raises(ValueError, match=words):
                sampler.set_scores(reward) if index is None else sampler.update(index, reward)
            torch.testing.assert_close(sampler.probabilities(), before)
            assert sampler.scores().equal(REWARD)


def test_a_support_without_a_passing_reward_says_so_when_drawn() -> None:
    sampler = make("threshold")
    sampler.set_scores(REWARD)
    sampler.remove((REWARD >= 1).nonzero().flatten())
    with pytest.raises(ValueError, match=r"all 5 rewards are below the threshold 1"):
        sampler.draw(1)
    sampler.insert(torch.tensor([7]))
    assert sampler.draw(3).index.tolist() == [7, 7, 7]


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"scheme": "softmax"}, "scheme is 'softmax'"),
        ({"temperature": 0.0}, r"temperature is 0\.0.*scheme top"),
        ({"temperature": math.nan}, "temperature is nan"),
        ({"scheme": "threshold"}, "needs threshold"),
        ({"scheme": "top"}, "needs share"),
        ({"threshold": 1.0}, "threshold is 1.0, but the scheme is 'exponential'"),
        ({"scheme": "threshold", "threshold": math.inf}, "threshold is inf"),
        ({"scheme": "top", "share": 1.5}, r"1\.5"),
        ({"scheme": "nested", "shares": []}, "at least one"),
        ({"initial": math.nan}, "initial is nan"),
        ({"scheme": "proportional", "initial": -1.0}, "initial is -1"),
        ({"scheme": "proportional", "normalize_groups": True}, "balance_groups"),
    ],
)
def test_bad_settings_say_what_to_do(options: dict[str, Any], words: str) -> None:
    with pytest.raises(ValueError, match=words):
        RewardWeightedSampler(4, **options)


def test_groups_must_be_given_and_fit() -> None:
    sampler = RewardWeightedSampler(4, normalize_groups=True)
    assert sampler.needs_groups
    for call in (lambda: sampler.draw(1), sampler.probabilities, lambda: sampler.count):
        with pytest.raises(ValueError, match="no groups: give the datamodule"):
            call()
    for bad in (torch.zeros(3, dtype=torch.int64), torch.zeros(4)):
        with pytest.raises(ValueError, match="an integer for each of the 4"):
            sampler.set_groups(bad)
    sampler.update(torch.arange(4), torch.tensor([1.0, 2, 3, 4]))
    sampler.set_groups(torch.tensor([0, 0, 1, 1]))
    assert not sampler.needs_groups
    plain = RewardWeightedSampler(4)
    assert not plain.needs_groups
    plain.set_groups(torch.tensor([0, 0, 1, 1]))
    assert plain.state_dict()["groups"] is None  # which it has no use for
    torch.testing.assert_close(sampler.probabilities()[:2], sampler.probabilities()[2:])


# Compositions ------------------------------------------------------------------------------------


def test_a_curriculum_keeps_the_rewards_of_what_is_still_outside() -> None:
    sampler = CurriculumSampler(
        SIZE, lambda n: RewardWeightedSampler(n, temperature=0.5), start=0.25, power=1, until=1.0,
        difficulty=torch.arange(float(SIZE)),
    )  # fmt: skip
    sampler.update(torch.arange(SIZE), REWARD)
    torch.testing.assert_close(sampler.probabilities()[:3], law("exponential", REWARD[:3]))
    assert sampler.count == 3
    sampler.advance(1.0)
    torch.testing.assert_close(sampler.probabilities(), law("exponential"))


def test_mixtures_and_curricula_hand_on_groups() -> None:
    sampler = MixtureSampler(
        SIZE,
        [lambda n: CurriculumSampler(n, lambda m: make("both", m), start=1.0), UniformSampler],
        [0.9, 0.1],
    )
    fresh = MixtureSampler(
        SIZE, [lambda n: RewardWeightedSampler(n, balance_groups=True), UniformSampler]
    )
    assert fresh.needs_groups
    fresh.set_groups(GROUP)
    assert not fresh.needs_groups
    sampler.set_difficulty(REWARD)
    sampler.update(torch.arange(SIZE), REWARD)
    torch.testing.assert_close(sampler.probabilities(), 0.9 * law("both") + 0.1 / SIZE)


@pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU")
@every
def test_on_the_gpu_the_draws_are_those_of_the_cpu(name: str) -> None:
    cpu, gpu = make(name), make(name, device="cuda")
    for one in (cpu, gpu):
        one.set_scores(REWARD)
    for k in range(6):
        assert _step(cpu, k) == _step(gpu, k)
    again = make(name, device="cuda", seed=9)
    again.load_state_dict(gpu.state_dict())
    assert _step(again, 6) == _step(cpu, 6)
