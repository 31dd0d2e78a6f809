"""Draws by reward: probabilities in every scheme, rewards at once or one by one, resuming."""

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
every_scheme = pytest.mark.parametrize("name", SCHEMES)
BALANCED = ("balanced", "both", "best of each")


def make(name: str, size: int = SIZE, **options: Any) -> RewardWeightedSampler:
    sampler = RewardWeightedSampler(size, **{"seed": 3, **SCHEMES[name], **options})
    sampler.set_groups(GROUP[:size])
    return sampler


def distribution(name: str, reward: Tensor = REWARD, group: Tensor = GROUP) -> Tensor:
    """Probabilities by the functions of core, and with groups by a loop over them."""
    if name in ("standardized", "both", "threshold in deviations"):
        for g in group.unique():
            member = group == g
            deviation = reward[member].std(correction=0)
            centered = reward[member] - reward[member].mean()
            reward = reward.clone()
            reward[member] = centered / deviation if deviation > 0 else 0 * centered
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
    if name in BALANCED:
        for g in group.unique():
            mass[group == g] /= mass[group == g].sum().clamp_min(1e-300)
    return mass / mass.sum()


@every_scheme
def test_draws_follow_the_scheme_with_exact_probabilities(name: str) -> None:
    sampler = make(name)
    sampler.set_scores(REWARD)
    expected = distribution(name)
    torch.testing.assert_close(sampler.probabilities(), expected)
    assert sampler.count == int((expected > 0).sum())
    assert sampler.min_probability() == pytest.approx(float(expected[expected > 0].min()))
    draw = sampler.draw(5000)
    assert draw.probability.equal(sampler.probabilities()[draw.index])
    assert draw.probability.equal(sampler.probability_of(draw.index))
    counts = torch.bincount(draw.index, minlength=SIZE).double()
    assert (counts - 5000 * expected).abs().max() <= 2  # stratified
    single = torch.bincount(torch.cat([sampler.draw(1).index for _ in range(2000)]), minlength=SIZE)
    drawable = expected > 0
    assert single[~drawable].sum() == 0
    if int(drawable.sum()) > 1:
        p = stats.chisquare(single[drawable].numpy(), (2000 * expected[drawable]).numpy()).pvalue
        assert p > 1e-3


@every_scheme
@given(steps=st.lists(st.tuples(st.sampled_from("uuir"), st.integers(0, SIZE - 1),
                                st.sampled_from([0.25, 1.0, 2.0, 5.0])), max_size=25))  # fmt: skip
@settings(deadline=None, max_examples=40)
def test_rewards_one_by_one_give_the_distribution_of_all_at_once(
    name: str, steps: list[tuple[str, int, float]]
) -> None:
    sampler = make(name)
    reward, member = REWARD.clone(), torch.ones(SIZE, dtype=torch.bool)
    sampler.set_scores(reward)
    for kind, i, value in steps:
        index = torch.tensor([i, (i + 5) % SIZE])
        if kind == "u":
            new = reward.clone()
            new[index] = torch.tensor([value, value / 2], dtype=torch.float64)
            if member.any() and distribution(name, new[member], GROUP[member]).isnan().any():
                with pytest.raises(ValueError, match="below the threshold"):
                    sampler.update(index, new[index])
            else:
                sampler.update(index, new[index])  # removed samples get their rewards too
                reward = new
                if member.any() and value == 5:
                    sampler.draw(1)  # a draw in between changes nothing
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
    expected = distribution(name, reward[member], GROUP[member])
    if expected.isnan().any():  # none reaches the threshold
        with pytest.raises(ValueError, match="below the threshold"):
            sampler.draw(1)
        return
    probability = sampler.probabilities()
    torch.testing.assert_close(probability[member], expected)
    assert probability[~member].abs().sum() == 0


@every_scheme
def test_without_known_rewards_all_samples_or_groups_are_equally_likely(name: str) -> None:
    sampler = make(name)
    if name in BALANCED:
        sizes = torch.bincount(GROUP.unique(return_inverse=True)[1])
        expected = 1 / (4 * sizes[GROUP.unique(return_inverse=True)[1]].double())
        torch.testing.assert_close(sampler.probabilities(), expected)
    elif name != "threshold in deviations":  # 0 is below its threshold
        assert sampler.probabilities().tolist() == pytest.approx([1 / SIZE] * SIZE)
    assert sampler.count == SIZE


@every_scheme
def test_clear_forgets_the_rewards(name: str) -> None:
    sampler = make(name)
    sampler.set_scores(REWARD)
    sampler.clear()
    assert sampler.count == 0
    sampler.insert(torch.arange(SIZE))
    assert sampler.count == SIZE
    assert sampler.probabilities().equal(make(name).probabilities())


def test_unknown_rewards_count_as_the_mean_of_the_known_ones_or_as_initial() -> None:
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
    sampler.update(
        index, reward
    )  # -1 and 1 deviations; the others count as the mean of their group
    expected = torch.tensor([-1.0, 1, 0, 0], dtype=torch.float64).softmax(0)
    torch.testing.assert_close(sampler.probabilities(), expected)


def test_while_no_known_reward_has_mass_the_unknown_are_drawn_uniformly() -> None:
    for options in ({"scheme": "proportional"}, {"scheme": "threshold", "threshold": 1.0}):
        sampler = RewardWeightedSampler(4, **options)
        sampler.update(torch.tensor([1, 2]), torch.zeros(2))
        assert sampler.probabilities().tolist() == [0.5, 0, 0, 0.5]
        sampler.update(torch.tensor([1]), torch.ones(1))
        assert sampler.probabilities()[1] > 0
        with pytest.raises(ValueError, match="all 4 rewards are"):
            sampler.set_scores(torch.zeros(4))


def test_equal_rewards_are_drawn_uniformly() -> None:
    for name in SCHEMES:
        if name not in (*BALANCED, "threshold in deviations"):
            sampler = make(name)
            sampler.set_scores(torch.full((SIZE,), 1.5))
            assert sampler.probabilities().tolist() == pytest.approx([1 / SIZE] * SIZE)


def test_rewards_may_move_far_beyond_the_range_of_exponents() -> None:
    sampler = RewardWeightedSampler(3, temperature=1e-3)
    reward = torch.zeros(3, dtype=torch.float64)
    sampler.set_scores(reward)
    generator = torch.Generator().manual_seed(0)
    for k in range(60):
        reward[k % 3] = (torch.rand((), generator=generator, dtype=torch.float64) - 0.5) * 10 ** (
            k % 7
        )
        sampler.update(torch.tensor([k % 3]), reward[k % 3 : k % 3 + 1])
        expected = (reward / 1e-3).softmax(0)
        torch.testing.assert_close(sampler.probabilities(), expected, rtol=1e-7, atol=1e-12)
    sampler.remove(torch.tensor([int(reward.argmax())]))
    assert sampler.draw(2).index.tolist() != [int(reward.argmax())] * 2
    for _ in range(2):
        assert float(sampler.probabilities().sum()) == pytest.approx(1)
        sampler.insert(torch.arange(3))


def test_an_update_of_a_pointwise_scheme_does_not_compute_all_masses_anew(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    for name in ("exponential", "threshold", "proportional"):
        sampler = make(name)
        sampler.remove(torch.tensor([11]))  # of unknown reward
        sampler.update(torch.arange(11), REWARD[:11])
        sampler.draw(1)
        with monkeypatch.context() as patch:
            patch.setattr(sampler, "_rebuild", lambda: pytest.fail("computed anew"))
            sampler.update(torch.tensor([3, 4]), torch.tensor([2.0, 0.0]))
            sampler.remove(torch.tensor([1]))
            sampler.insert(torch.tensor([1]))
            sampler.draw(5)
        reward = REWARD.clone()
        reward[[3, 4]] = torch.tensor([2.0, 0.0], dtype=torch.float64)
        expected = distribution(name, reward[:11], GROUP[:11])
        torch.testing.assert_close(sampler.probabilities()[:11], expected)
        sampler.insert(torch.tensor([11]))
        reward[11] = reward[:11].mean()  # while it is unknown
        torch.testing.assert_close(sampler.probabilities(), distribution(name, reward))


def test_of_an_index_given_twice_the_last_counts() -> None:
    for name in ("exponential", "rank"):
        sampler, twin = make(name), make(name)
        for s in (sampler, twin):
            s.set_scores(REWARD)
        sampler.update(torch.tensor([2, 7, 2]), torch.tensor([9.0, 1.0, 0.5]))
        twin.update(torch.tensor([7, 2]), torch.tensor([1.0, 0.5]))
        assert sampler.probabilities().equal(twin.probabilities())
        assert sampler.scores().equal(twin.scores())


# Resuming ----------------------------------------------------------------------------------------


def step(sampler: RewardWeightedSampler, k: int) -> list[Any]:
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
    except ValueError as error:  # all rewards are below the threshold
        return [str(error)]
    return [draw.index.tolist(), draw.probability.tolist()]


@every_scheme
@pytest.mark.parametrize("known", [True, False])
def test_resumes_twice_to_the_last_bit(name: str, known: bool) -> None:
    def begin(seed: int) -> RewardWeightedSampler:
        sampler = make(name, seed=seed)
        if known:
            sampler.set_scores(REWARD)
        return sampler

    uninterrupted, sampler = begin(3), begin(3)
    expected = [step(uninterrupted, k) for k in range(30)]
    draws = []
    for part in range(3):
        draws += [step(sampler, k) for k in range(10 * part, 10 * part + 10)]
        file = io.BytesIO()
        torch.save(sampler.state_dict(), file)
        file.seek(0)
        sampler = make(name, seed=77)
        sampler.update(torch.tensor([1]), torch.tensor([2.0]))
        sampler.draw(3)
        sampler.load_state_dict(torch.load(file, weights_only=True))
    assert draws == expected


@pytest.mark.parametrize("initial", [0.4, None])
def test_reading_between_updates_changes_no_draw(initial: float | None) -> None:
    def run(read: bool) -> list[Any]:
        sampler = RewardWeightedSampler(SIZE, temperature=0.3, initial=initial, seed=1)
        draws: list[Any] = []
        for k in range(40):
            if read:
                assert sampler.count
                sampler.state_dict()
            index = torch.arange(k, k + 3) % SIZE
            sampler.update(index, index.double().sin() * 3)
            if read:
                sampler.probabilities()
            sampler.update(index[:1], torch.tensor([3 + k / 20]))  # a new maximum
            draws.append(step(sampler, k))
        return draws

    assert run(True) == run(False)


def test_a_state_is_a_copy() -> None:
    sampler = make("exponential")
    sampler.set_scores(REWARD)
    state = sampler.state_dict()
    before = {k: v.clone() if isinstance(v, Tensor) else v for k, v in state.items()}
    sampler.update(torch.arange(SIZE), -REWARD)
    sampler.remove(torch.tensor([1]))
    sampler.draw(3)
    for name, value in before.items():
        assert value.equal(state[name]) if isinstance(value, Tensor) else value == state[name]


@pytest.mark.parametrize(
    ("other", "message"),
    [
        (lambda: RewardWeightedSampler(SIZE, temperature=0.4), "temperature is 0.5"),
        (lambda: RewardWeightedSampler(SIZE, scheme="rank", temperature=0.5), "scheme is"),
        (lambda: RewardWeightedSampler(SIZE, temperature=0.5, initial=1.0), "initial is"),
        (lambda: RewardWeightedSampler(SIZE + 1, temperature=0.5), "size is 12"),
    ],
)
def test_the_state_of_other_settings_is_an_error_and_changes_nothing(
    other: Any, message: str
) -> None:
    sampler = other()
    before = sampler.probabilities()
    with pytest.raises(ValueError, match=message):
        sampler.load_state_dict(make("exponential").state_dict())
    assert sampler.probabilities().equal(before)


def test_a_damaged_state_or_one_of_other_groups_is_an_error_and_changes_nothing() -> None:
    sampler = make("both")
    sampler.set_scores(REWARD)
    sampler.remove(torch.tensor([2]))
    sampler.draw(1)  # stale masses would not be checked
    before, random_state = sampler.probabilities(), sampler.generator.get_state()
    state = sampler.state_dict()
    groups = GROUP.unique(return_inverse=True)[1].clone()
    groups[3] = 2
    for change, message in (
        ({"reward": REWARD[:3]}, "damaged"),
        ({"reward": REWARD / 0}, "damaged"),
        ({"mass": torch.ones(SIZE, dtype=torch.float64)}, "damaged"),
        ({"mass": torch.full((SIZE,), math.nan, dtype=torch.float64)}, "damaged"),
        ({"groups": groups}, r"groups of index \[3\]"),
    ):
        with pytest.raises(ValueError, match=message):
            sampler.load_state_dict({**state, **change})
    assert sampler.probabilities().equal(before)
    assert sampler.generator.get_state().equal(random_state)


# Wrong input -------------------------------------------------------------------------------------


@every_scheme
def test_wrong_rewards_are_named_and_change_nothing(name: str) -> None:
    sampler = make(name)
    sampler.set_scores(REWARD)
    sampler.remove(torch.tensor([0, 6]))
    before, count = sampler.probabilities(), sampler.count
    for index, reward, message in (
        ([1, 12], [1.0, 1.0], r"out of range: \[12\]"),
        ([1, -1], [1.0, 1.0], r"out of range: \[-1\]"),
        ([1, 2, 9], [1, math.nan, math.inf], r"index \[2, 9\] are \[nan, inf\]"),
        ([1, 2], [5.0], "shape"),
    ):
        with pytest.raises(ValueError, match=message):
            sampler.update(torch.tensor(index), torch.tensor(reward))
        assert sampler.probabilities().equal(before)
    for score, message in (
        (REWARD[:5], r"shape \(5,\) for 12"),
        (REWARD.log() + torch.where(GROUP == 30, math.nan, 0.0), r"index \[0, 6, 11\]"),
    ):
        with pytest.raises(ValueError, match=message):
            sampler.set_scores(score)
    assert sampler.probabilities().equal(before)
    assert sampler.count == count
    assert sampler.scores().equal(REWARD)


def test_rewards_that_leave_nothing_to_draw_are_an_error_and_change_nothing() -> None:
    everything = torch.arange(SIZE)
    for name, reward, message in (
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
            with pytest.raises(ValueError, match=message):
                sampler.set_scores(reward) if index is None else sampler.update(index, reward)
            torch.testing.assert_close(sampler.probabilities(), before)
            assert sampler.scores().equal(REWARD)


def test_a_draw_without_an_inserted_reward_above_the_threshold_is_an_error() -> None:
    sampler = make("threshold")
    sampler.set_scores(REWARD)
    sampler.remove((REWARD >= 1).nonzero().flatten())
    with pytest.raises(ValueError, match=r"all 5 rewards are below the threshold 1"):
        sampler.draw(1)
    sampler.insert(torch.tensor([7]))
    assert sampler.draw(3).index.tolist() == [7, 7, 7]


@pytest.mark.parametrize(
    ("options", "message"),
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
def test_a_setting_out_of_range_or_of_another_scheme_is_named(
    options: dict[str, Any], message: str
) -> None:
    with pytest.raises(ValueError, match=message):
        RewardWeightedSampler(4, **options)


def test_groups_are_required_only_where_they_are_used() -> None:
    sampler = RewardWeightedSampler(4, normalize_groups=True)
    assert sampler.needs_groups
    for call in (lambda: sampler.draw(1), sampler.probabilities, lambda: sampler.count):
        with pytest.raises(ValueError, match="no groups: give the datamodule"):
            call()
    sampler.update(torch.arange(4), torch.tensor([1.0, 2, 3, 4]))
    sampler.set_groups(torch.tensor([0, 0, 1, 1]))
    assert not sampler.needs_groups
    plain = RewardWeightedSampler(4)
    assert not plain.needs_groups
    plain.set_groups(torch.tensor([0, 0, 1, 1]))
    assert plain.state_dict()["groups"] is None
    torch.testing.assert_close(sampler.probabilities()[:2], sampler.probabilities()[2:])


@pytest.mark.parametrize("groups", [torch.zeros(3, dtype=torch.int64), torch.zeros(4)])
def test_groups_that_are_not_one_integer_per_sample_are_an_error(groups: Tensor) -> None:
    with pytest.raises(ValueError, match="an integer for each of the 4"):
        RewardWeightedSampler(4, normalize_groups=True).set_groups(groups)


# Compositions ------------------------------------------------------------------------------------


def test_a_curriculum_keeps_the_rewards_of_samples_that_are_not_eligible_yet() -> None:
    sampler = CurriculumSampler(
        SIZE, lambda n: RewardWeightedSampler(n, temperature=0.5), start=0.25, power=1, until=1.0,
        difficulty=torch.arange(float(SIZE)),
    )  # fmt: skip
    sampler.update(torch.arange(SIZE), REWARD)
    torch.testing.assert_close(sampler.probabilities()[:3], distribution("exponential", REWARD[:3]))
    assert sampler.count == 3
    sampler.advance(1.0)
    torch.testing.assert_close(sampler.probabilities(), distribution("exponential"))


def test_a_mixture_over_a_curriculum_has_the_balanced_probabilities() -> None:
    sampler = MixtureSampler(
        SIZE,
        [lambda n: CurriculumSampler(n, lambda m: make("both", m), start=1.0), UniformSampler],
        [0.9, 0.1],
    )
    sampler.set_difficulty(REWARD)
    sampler.update(torch.arange(SIZE), REWARD)
    torch.testing.assert_close(sampler.probabilities(), 0.9 * distribution("both") + 0.1 / SIZE)


@pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU")
@every_scheme
def test_on_the_gpu_the_draws_are_those_of_the_cpu(name: str) -> None:
    cpu, gpu = make(name), make(name, device="cuda")
    for s in (cpu, gpu):
        s.set_scores(REWARD)
    for k in range(6):
        assert step(cpu, k) == step(gpu, k)
    resumed = make(name, device="cuda", seed=9)
    resumed.load_state_dict(gpu.state_dict())
    assert step(resumed, 6) == step(cpu, 6)
