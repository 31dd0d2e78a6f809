"""The sum tree against slow twins, adversarial floats, and bad input."""

import copy
import io
import math
import pickle
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats
from torch import Tensor

from lit_adaptive.core.sum_tree import SumTree


def make(capacity: int, *, compiled: bool) -> SumTree:
    tree = SumTree(capacity)
    tree._compiled = compiled
    return tree


def doubles(values: list[float]) -> Tensor:
    return torch.tensor(values, dtype=torch.float64)


BACKENDS = pytest.mark.parametrize("compiled", [True, False], ids=["compiled", "torch"])

positive = st.floats(min_value=5e-324, max_value=1e290)
anything = st.one_of(st.just(0.0), positive, st.sampled_from([5e-324, 1e-310, 1e-300, 1.0, 1e290]))


@st.composite
def updates(draw: st.DrawFn, mass: st.SearchStrategy[Any]) -> tuple[int, list[Any]]:
    """A capacity, and batches of (index, mass), duplicates among them."""
    capacity = draw(st.sampled_from([1, 2, 15, 16, 17, 255, 256, 257, 700, 4097]))
    pair = st.tuples(st.integers(0, capacity - 1), mass)
    return capacity, draw(st.lists(st.lists(pair, max_size=40), min_size=1, max_size=6))


@given(updates(st.integers(0, 9)), st.data())
@settings(deadline=None)
def test_integer_masses_are_found_where_cumsum_and_searchsorted_find_them(
    case: tuple[int, list[Any]], data: st.DataObject
) -> None:
    capacity, batches = case
    trees = [make(capacity, compiled=c) for c in (True, False)]
    twin = torch.zeros(capacity, dtype=torch.float64)
    for batch in batches:
        index = torch.tensor([i for i, _ in batch], dtype=torch.int64)
        mass = doubles([m for _, m in batch])
        for i, m in batch:  # one after another: the last counts
            twin[i] = m
        for tree in trees:
            tree.update(index, mass)
            assert tree.masses.equal(twin)
            assert tree.total_priority == twin.sum()
            assert len(tree) == (twin > 0).sum()
            assert tree.min_mass == min(twin[twin > 0].tolist(), default=math.inf)
    total = int(twin.sum())
    if total == 0:
        return
    targets = data.draw(st.lists(st.integers(0, total - 1), min_size=1, max_size=20))
    expected = torch.searchsorted(twin.cumsum(0), doubles(targets), right=True)
    for tree in trees:
        index, mass = tree.get(doubles(targets))
        assert index.equal(expected)
        assert mass.equal(twin[expected])


@given(updates(anything), st.lists(st.floats(0, 1), min_size=1, max_size=50))
@settings(deadline=None)
def test_both_backends_agree_bit_for_bit_and_never_draw_an_empty_slot(
    case: tuple[int, list[Any]], uniform: list[float]
) -> None:
    capacity, batches = case
    fast, slow = (make(capacity, compiled=c) for c in (True, False))
    for batch in batches:
        index = torch.tensor([i for i, _ in batch], dtype=torch.int64)
        for tree in (fast, slow):
            tree.update(index, doubles([m for _, m in batch]))
    assert fast._sums.equal(slow._sums)
    assert fast.min_mass == slow.min_mass
    if fast.total_priority == 0:
        return
    for probability in (False, True):
        draws = [t.sample(doubles(uniform), probability=probability) for t in (fast, slow)]
        assert draws[0][0].equal(draws[1][0])
        assert draws[0][1].equal(draws[1][1])
        assert (draws[0][1] > 0).all()
    index, mass = fast.sample(doubles(uniform))
    assert (fast.masses[index] > 0).all()
    assert mass.equal(fast.masses[index])
    index, mass = fast.get(doubles([0.0, fast.total_priority]))  # both ends
    assert (mass > 0).all()


@BACKENDS
def test_exponent_gives_masses_and_zero_stays_zero_even_at_exponent_zero(compiled: bool) -> None:
    tree = make(4, compiled=compiled)
    priority = doubles([0.0, 0.5, 3.0, 1e-310])
    assert tree.update(torch.arange(4), priority, exponent=0.6) == 3.0
    torch.testing.assert_close(tree.masses, priority**0.6, rtol=1e-15, atol=0)
    tree.update(torch.arange(4), priority, exponent=0.0)
    assert tree.masses.tolist() == [0, 1, 1, 1]


@BACKENDS
def test_a_leaf_lost_to_rounding_is_not_drawn_and_breaks_nothing(compiled: bool) -> None:
    for masses in ([1e290, 5e-324, 0, 1e-300], [5e-324, 0, 1e290], [0, 5e-324, 0], [1e-310] * 40):
        tree = make(len(masses), compiled=compiled)
        tree.update(torch.arange(len(masses)), doubles(masses))
        uniform = torch.cat([doubles([0.0, 1.0, 1 - 2**-53]), torch.rand(61).double()])
        index, mass = tree.sample(uniform)
        assert (mass > 0).all()
        assert index.equal(index.sort().values)


def test_1e7_updates_leave_the_root_equal_to_the_sum_of_the_leaves() -> None:
    tree = SumTree(20_000)
    generator = torch.Generator().manual_seed(0)
    for _ in range(1000):
        index = torch.randint(20_000, (10_000,), generator=generator)
        mass = torch.rand(10_000, dtype=torch.float64, generator=generator).mul_(20).exp_()
        tree.update(index, mass)
    exact = math.fsum(tree.masses.tolist())
    assert abs(tree.total_priority - exact) <= 1e-9 * exact
    assert abs(tree.total_priority - exact) <= 1e-14 * exact  # nothing drifts: it is one summation
    again = SumTree(20_000)
    again.update(torch.arange(20_000), tree.masses.clone())
    assert again._sums.equal(tree._sums)  # the content depends on the leaves alone


@BACKENDS
def test_draws_follow_their_probabilities(compiled: bool) -> None:
    tree = make(300, compiled=compiled)
    generator = torch.Generator().manual_seed(3)
    mass = torch.rand(300, dtype=torch.float64, generator=generator)
    tree.update(torch.arange(300), mass)
    seen = torch.zeros(300)
    for _ in range(20_000):  # single draws are independent
        index, _ = tree.sample(torch.rand(1, dtype=torch.float64, generator=generator))
        seen[index] += 1
        if not compiled and seen.sum() >= 3000:
            break
    expected = mass / mass.sum() * seen.sum()
    assert stats.chisquare(seen.double().numpy(), expected.numpy()).pvalue > 1e-3


def test_each_range_of_a_stratified_draw_gives_one_item() -> None:
    # Schaul et al. (2016), appendix B.2.1: [0, total] is divided into k ranges.
    tree = SumTree(64)
    tree.update(torch.arange(64), torch.ones(64))
    for u in (0.0, 0.5, 0.999):
        assert tree.sample(torch.full((64,), u, dtype=torch.float64))[0].tolist() == [*range(64)]


@BACKENDS
def test_least_positive_is_exact_after_it_was_overwritten(compiled: bool) -> None:
    tree = make(1000, compiled=compiled)
    tree.update(torch.arange(1000), torch.arange(1000.0))
    assert tree.min_mass == 1
    tree.update(torch.tensor([1]), doubles([50.0]))
    assert tree.min_mass == 2
    tree.update(torch.tensor([2, 999]), doubles([0.0, 0.5]))
    assert tree.min_mass == 0.5
    tree.clear()
    assert (tree.min_mass, tree.total_priority, len(tree)) == (math.inf, 0, 0)


def test_add_goes_round_the_ring() -> None:
    tree = SumTree(5)
    assert tree.add(torch.ones(3)).tolist() == [0, 1, 2]
    assert tree.add(torch.full((4,), 2.0)).tolist() == [3, 4, 0, 1]
    assert tree.masses.tolist() == [2, 2, 1, 2, 2]
    with pytest.raises(ValueError, match="6 priorities do not fit a tree of 5"):
        tree.add(torch.ones(6))


@BACKENDS
@pytest.mark.parametrize(
    ("index", "priority", "message"),
    [
        ([0, -1, 7], [1, 1, 1], r"out of range: \[-1, 7\]; indices lie in \[0, 5\)"),
        ([0, 2**62], [1, 1], "out of range"),
        ([0, 1, 2], [1, math.nan, 1], r"index \[1\] are \[nan\]"),
        ([3, 4], [math.inf, -1], r"index \[3, 4\] are \[inf, -1.0\]"),
        ([1, 2], [1e308, 1e308], "overflow"),
        ([0.5], [1], "indices are integers"),
        ([True], [1], "indices are integers"),
        ([1, 2], [1], r"shape \(2,\), priority \(1,\)"),
        ([[1]], [[1]], r"must be \[K\]"),
    ],
)
def test_bad_updates_are_refused_and_change_nothing(
    compiled: bool, index: list[Any], priority: list[Any], message: str
) -> None:
    tree = make(5, compiled=compiled)
    tree.update(torch.arange(5), doubles([3, 0, 1, 2, 5]))
    before = tree._sums.clone()
    with pytest.raises(ValueError, match=message):
        tree.update(torch.tensor(index), torch.tensor(priority, dtype=torch.float64))
    assert tree._sums.equal(before)
    assert (len(tree), tree.min_mass) == (4, 1)


@BACKENDS
def test_an_overflow_of_the_total_by_two_updates_is_refused_and_changes_nothing(
    compiled: bool,
) -> None:
    tree = make(40, compiled=compiled)
    tree.update(torch.tensor([0, 20]), doubles([1e308, 1.0]))  # near, but allowed
    before = tree._sums.clone()
    with pytest.raises(ValueError, match="overflow"):
        tree.update(torch.tensor([20]), doubles([1e308]))
    assert tree._sums.equal(before)
    assert (len(tree), tree.min_mass) == (2, 1.0)


@BACKENDS
def test_bad_draws_are_refused(compiled: bool) -> None:
    tree = make(5, compiled=compiled)
    for call in (tree.sample, tree.get):
        with pytest.raises(ValueError, match="total priority is 0"):
            call(doubles([0.5]))
    tree.update(torch.tensor([2]), doubles([3.0]))
    for bad in (math.nan, -0.1, 1.5):
        with pytest.raises(ValueError, match=r"lie in \[0, 1\]"):
            tree.sample(doubles([0.5, bad]))
    for bad in (math.nan, -0.1, 3.5):
        with pytest.raises(ValueError, match=r"outside \[0, 3.0\]"):
            tree.get(doubles([bad]))
    with pytest.raises(ValueError, match="capacity is 0"):
        SumTree(0)


@BACKENDS
def test_update_refuses_who_is_no_member(compiled: bool) -> None:
    tree = make(4, compiled=compiled)
    member = torch.tensor([True, True, False, False])
    tree.update(torch.tensor([0, 1]), doubles([1, 1]), member=member)
    with pytest.raises(ValueError, match=r"index \[2\] was not inserted"):
        tree.update(torch.tensor([0, 2]), doubles([5, 5]), member=member)
    assert tree.masses.tolist() == [1, 1, 0, 0]


@BACKENDS
def test_state_survives_a_weights_only_file_and_is_a_copy(compiled: bool) -> None:
    tree = make(500, compiled=compiled)
    tree.add(torch.rand(300, generator=torch.Generator().manual_seed(0)))
    file = io.BytesIO()
    state = tree.state_dict()
    torch.save(state, file)
    sums = tree._sums.clone()
    tree.add(torch.rand(300))
    file.seek(0)
    again = make(500, compiled=compiled)
    again.load_state_dict(torch.load(file, weights_only=True))
    assert again._sums.equal(sums)
    assert len(again) == 300
    assert again.min_mass == state["mass"][:300].min()
    assert again.add(torch.ones(1)).tolist() == [300]


def test_a_wrong_state_is_refused_and_changes_nothing() -> None:
    tree = SumTree(3)
    tree.add(torch.ones(2))
    state = tree.state_dict()
    for change, message in (
        ({"capacity": 4}, "capacity 4"),
        ({"mass": doubles([1, math.nan, 1])}, "finite"),
        ({"mass": doubles([1])}, "finite"),
    ):
        with pytest.raises(ValueError, match=message):
            tree.load_state_dict({**state, **change})
        assert tree.masses.tolist() == [1, 1, 0]


def test_memory_is_below_9_bytes_a_slot() -> None:
    assert SumTree(1_000_000).nbytes < 9 * 1_000_000


def test_float32_and_gradients_and_strides_are_accepted() -> None:
    tree = SumTree(10)
    tree.update(torch.arange(6)[::2], torch.ones(3, requires_grad=True))
    tree.update(torch.tensor([9], dtype=torch.int32), torch.ones(2)[::2])
    assert tree.masses.nonzero().flatten().tolist() == [0, 2, 4, 9]
    assert tree.sample(torch.rand(8))[1].dtype is torch.float64
    assert isinstance(tree._np_sums, np.ndarray)


@pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU")
def test_a_tree_on_the_gpu_draws_what_the_compiled_tree_draws() -> None:
    cpu, gpu = SumTree(5000), SumTree(5000, device="cuda")
    generator = torch.Generator().manual_seed(0)
    for _ in range(20):
        index = torch.randint(5000, (700,), generator=generator)
        mass = torch.rand(700, dtype=torch.float64, generator=generator).mul_(30).exp_()
        for tree in (cpu, gpu):
            tree.update(index, mass)
        assert gpu._sums.cpu().equal(cpu._sums)
        assert gpu.min_mass == cpu.min_mass
        assert len(gpu) == len(cpu)
        uniform = torch.rand(300, dtype=torch.float64, generator=generator)
        for probability in (False, True):
            ours = cpu.sample(uniform, probability=probability)
            theirs = gpu.sample(uniform, probability=probability)
            assert all(a.equal(b.cpu()) for a, b in zip(ours, theirs, strict=True))


@pytest.mark.parametrize("copied", [copy.deepcopy, lambda tree: pickle.loads(pickle.dumps(tree))])
def test_a_copy_follows_its_own_updates(copied: Any) -> None:
    # The compiled loops and the tensors of a copy share memory, as those of the original do.
    tree = SumTree(20)
    tree.update(torch.arange(20), torch.ones(20))
    twin = copied(tree)
    twin.update(torch.arange(20), torch.eye(20)[7])
    assert twin.masses.equal(torch.eye(20, dtype=torch.float64)[7])
    assert len(twin) == 1
    assert twin.sample(torch.full((3,), 0.5))[0].tolist() == [7, 7, 7]
    assert tree.masses.equal(torch.ones(20, dtype=torch.float64))
    assert len(tree) == 20
