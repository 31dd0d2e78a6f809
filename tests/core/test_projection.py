"""Random projections: the subset, the map, equality under cuts, and what rankings survive."""

import itertools

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats
from sklearn.random_projection import johnson_lindenstrauss_min_dim

from lit_adaptive.core import SparseProjection, hash_positions
from lit_adaptive.core import projection as module

KINDS = ["count_sketch", "rademacher", "gaussian"]
HUGE = 3 * 2**32 + 12345  # coordinates; 32-bit integers would wrap three times


def test_the_subset_is_uniform_over_billions_of_coordinates():
    projection = SparseProjection(HUGE, keep_ratio=0.15, seed=5)
    width, windows = 20_000, 96
    starts = torch.linspace(0, HUGE - width, windows, dtype=torch.float64).long().tolist()
    kept = [projection.coordinates(start, start + width) for start in starts]
    counts = torch.tensor([float(len(k)) for k in kept])
    # A binomial number in each window: chi-square of kept and other coordinates.
    expected = 0.15 * width
    statistic = ((counts - expected) ** 2).sum() / (expected * 0.85)
    assert 1e-4 < stats.chi2.sf(float(statistic), windows) < 1 - 1e-4
    assert int(kept[-1].max()) > HUGE - 200
    # Positions within the windows are uniform too.
    within = torch.cat([k - start for k, start in zip(kept, starts, strict=True)])
    bins = torch.bincount(within * 50 // width, minlength=50)
    assert stats.chisquare(bins.numpy()).pvalue > 1e-4


def test_coordinates_2_to_the_32_apart_have_nothing_in_common():
    projection = SparseProjection(HUGE, 256, keep_ratio=0.5, kind="rademacher")
    position = torch.arange(20_000)
    near, far = (projection.is_kept(position + shift) for shift in (0, 2**32))
    agree = int((near == far).sum())
    assert stats.binomtest(agree, len(position), 0.5).pvalue > 1e-4
    entries = [projection.entries(position[:500] + shift) for shift in (0, 2**32)]
    assert abs(float((entries[0] * entries[1]).mean())) < 5 / (500 * 256) ** 0.5


@pytest.mark.parametrize("ratio", [1e-4, 0.15, 0.5, 1.0])
def test_the_keep_ratio_is_the_share_of_kept_coordinates(ratio):
    size = 2_000_000
    kept = len(SparseProjection(size, 64, keep_ratio=ratio).coordinates(0, size))
    assert abs(kept - ratio * size) <= 4 * (size * ratio * (1 - ratio)) ** 0.5


def test_seeds_give_other_subsets_and_maps():
    first, second = (SparseProjection(100_000, 64, seed=seed, kind="rademacher") for seed in (0, 1))
    one, two = first.coordinates(0, 100_000), second.coordinates(0, 100_000)
    both = len(set(one.tolist()) & set(two.tolist()))
    assert abs(both - 0.15**2 * 100_000) < 5 * (0.15**2 * 100_000) ** 0.5
    position = torch.arange(300)
    agree = float((first.entries(position) == second.entries(position)).double().mean())
    assert abs(agree - 0.5) < 5 * 0.5 / (300 * 64) ** 0.5


def test_hashes_are_those_of_splitmix64():
    # From Vigna's splitmix64.c with state 0: the first output is that of position 1.
    expected = [0xE220A8397B1DCDAF, 0x6E789E6AA1B965F4, 0x06C45D188009454F]
    got = hash_positions(0, torch.arange(1, 4)).tolist()
    assert [value % 2**64 for value in got] == expected


# The kernels against the torch operations --------------------------------------------------------


@given(st.integers(0, 2**34), st.integers(1, 3000), st.integers(0, 2**63), st.floats(0.01, 1))
def test_kernels_keep_the_coordinates_that_torch_keeps(start, count, seed, ratio):
    projection = SparseProjection(2**35, 16, keep_ratio=ratio, seed=seed)
    position = torch.arange(start, start + count)
    kept = position[projection.is_kept(position)]
    assert projection.coordinates(start, start + count).equal(kept)
    if count % 3 == 0:
        _, row, column = projection._entries(start, count // 3, 3, torch.device("cpu"))
        assert (row * 3 + column + start).equal(kept)


@pytest.mark.parametrize("kind", ["rademacher", "gaussian"])
@pytest.mark.parametrize("dimensions", [1, 63, 64, 130])
def test_kernels_draw_the_entries_that_torch_draws(kind, dimensions):
    projection = SparseProjection(HUGE, dimensions, kind=kind, seed=2)
    coordinate = torch.tensor([0, 7, 2**32 + 7, HUGE - 1])
    assert projection.entries(coordinate).equal(projection.hashed_entries(coordinate))


def test_kernels_sketch_as_torch_does():
    projection = SparseProjection(HUGE, 50, seed=3)
    coordinate = torch.arange(2**32 - 100, 2**32 + 100)
    values = torch.randn(200, 3)
    got, expected = projection.zeros(3), projection.zeros(3)
    projection.add(got, values, coordinate)
    row, sign = projection.sketch_entries(coordinate)
    expected.index_add_(0, row, values * sign[:, None] / 0.15**0.5)
    torch.testing.assert_close(got, expected)
    assert len(row.unique()) > 40
    assert abs(float(sign.sum())) < 60


@given(
    st.lists(st.integers(0, 40), min_size=1, max_size=35).filter(any),
    st.integers(1, 40),
    st.integers(1, 40),
    st.integers(0, 99),
)
def test_kept_entries_of_outer_products_are_those_of_whole_matrices(counts, rows, columns, seed):
    generator = torch.Generator().manual_seed(seed)
    sample = torch.arange(len(counts)).repeat_interleave(torch.tensor(counts))
    sample = sample[torch.randperm(len(sample), generator=generator)]
    sample[: len(sample) // 4] = -1  # left out
    left = torch.randint(-3, 4, (len(sample), rows), generator=generator).float()
    right = torch.randint(-3, 4, (len(sample), columns), generator=generator).float()
    left[::3] = 0
    matrices = torch.stack(
        [left[sample == k].T @ right[sample == k] for k in range(len(counts))]
    ).flatten(1)
    projection = SparseProjection(2**34, 8, keep_ratio=0.4, seed=seed)
    start = 2**33 - rows * columns // 2
    out = projection.zeros(len(counts))
    projection.add_outer_products(out, left, right, sample, start)
    torch.testing.assert_close(out.t(), projection.project(matrices, start))
    dense = module._DenseProducts(left, right, sample, len(counts))  # of other devices
    row = torch.arange(rows).repeat_interleave(columns)
    assert dense.entries(row, torch.arange(columns).repeat(rows)).equal(matrices.t())


def test_rows_are_added_as_to_a_whole_matrix():
    generator = torch.Generator().manual_seed(0)
    values = torch.randn(60, 7, generator=generator)
    row = torch.randint(30, (60,), generator=generator)
    sample = torch.randint(-1, 4, (60,), generator=generator)
    matrices = torch.zeros(4, 30, 7)
    for k in range(60):
        if sample[k] >= 0:
            matrices[sample[k], row[k]] += values[k]
    projection = SparseProjection(10_000, 32, keep_ratio=0.5)
    out = projection.zeros(4)
    projection.add_rows(out, values, row, sample, 11)
    torch.testing.assert_close(out.t(), projection.project(matrices.flatten(1), 11))


@pytest.mark.parametrize("kind", KINDS)
def test_other_devices_give_what_the_kernels_give(kind, monkeypatch):
    generator = torch.Generator().manual_seed(0)
    projection = SparseProjection(2**33, 70, keep_ratio=0.3, kind=kind, seed=4)
    vectors = torch.randn(5, 900, generator=generator)
    left, right = (torch.randn(80, n, generator=generator) for n in (30, 9))
    sample = torch.randint(-1, 5, (80,), generator=generator)
    row = torch.randint(40, (80,), generator=generator)

    results = []
    for kernels in (True, False):
        monkeypatch.setattr(module, "_has_kernels", lambda _, kernels=kernels: kernels)
        out = [projection.zeros(5) for _ in range(3)]
        projection.add_outer_products(out[0], left, right, sample, 2**32 - 100)
        projection.add_rows(out[1], right, row, sample, 2**32 - 100)
        projection.add_block(out[2], left[:, :5].contiguous(), 2**32 - 10)
        results.append([projection.project(vectors, 2**32 - 450), *out])
    for one, other in zip(*results, strict=True):
        assert one.any()
        torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-5)


# Linear, and independent of cuts and order -------------------------------------------------------


@pytest.mark.parametrize("kind", KINDS)
@given(cuts=st.lists(st.integers(0, 2000), max_size=4), seed=st.integers(0, 99))
def test_parts_of_a_vector_in_any_order_add_up_to_the_whole(kind, cuts, seed):
    generator = torch.Generator().manual_seed(seed)
    vectors = torch.randn(3, 2000, generator=generator)
    projection = SparseProjection(2000, 100, keep_ratio=0.3, kind=kind, seed=seed)
    whole = projection.project(vectors)
    bounds = sorted({0, 2000, *cuts})
    parts = [projection.project(vectors[:, a:b], a) for a, b in itertools.pairwise(bounds)]
    torch.testing.assert_close(sum(reversed(parts)), whole, rtol=1e-4, atol=1e-4)
    # Each vector has its projection, whatever others are beside it.
    torch.testing.assert_close(projection.project(vectors[1:2])[0], whole[1])
    torch.testing.assert_close(
        projection.project(2 * vectors[:1] - vectors[1:2])[0],
        2 * whole[0] - whole[1],
        rtol=1e-4,
        atol=1e-4,
    )


# Accuracy ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", KINDS)
def test_distances_keep_within_the_johnson_lindenstrauss_bound(kind):
    points, eps = 40, 0.3
    dimensions = int(johnson_lindenstrauss_min_dim(points, eps=eps))
    vectors = torch.randn(points, 20_000, generator=torch.Generator().manual_seed(0))
    projected = SparseProjection(20_000, dimensions, keep_ratio=1.0, kind=kind).project(vectors)
    pairs = torch.triu_indices(points, points, 1)
    before, after = (
        (values[pairs[0]] - values[pairs[1]]).square().sum(1) for values in (vectors, projected)
    )
    ratio = after / before
    assert float((ratio - 1).abs().max()) < eps
    assert float(ratio.std()) == pytest.approx((2 / dimensions) ** 0.5, rel=0.3)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("ratio", [0.15, 1.0])
def test_inner_products_are_unbiased(kind, ratio):
    generator = torch.Generator().manual_seed(3)
    x = torch.randn(2, 5000, generator=generator)
    x[1] += x[0]
    errors = []
    for seed in range(200):
        y = SparseProjection(5000, 256, keep_ratio=ratio, kind=kind, seed=seed).project(x)
        errors.append(float((y[0] * y[1]).sum() / (x[0] * x[1]).sum()) - 1)
    assert stats.ttest_1samp(errors, 0.0).pvalue > 1e-3
    # Of the map: (|x|^2 |y|^2 + <x, y>^2) / d, here 3 / d of <x, y>^2; the subset adds its own.
    assert torch.tensor(errors).std() < 1.3 * (3 / 256 + (1 / ratio - 1) * 6 / 5000) ** 0.5


def wrapped(gradients, wrap):
    """What a projector reads whose row * columns wraps around, for a batch of 16 samples."""
    rows, columns = gradients.shape
    flat = [torch.cat([batch.flatten()] * 2) for batch in gradients.split(16)]
    at = [k % 16 * columns % wrap for k in range(rows)]
    return torch.stack([flat[k // 16][at[k] : at[k] + columns] for k in range(rows)])


def test_precision_rises_with_the_keep_ratio_and_falls_where_positions_wrap_around():
    # CROPI's ablation peaks at a ratio of .15 and falls to the level of chance at 1. Its projector
    # computes row * columns in 32 bits: with 16 samples a batch it is right up to a ratio of about
    # .18. Here 2^32 is scaled down with the number of parameters.
    torch.manual_seed(0)
    prompts, size, ratios, seeds = 480, 10_000, (0.1, 0.15, 0.5, 1.0), range(3)
    scale = torch.rand(size).pow(-0.4)  # some coordinates have larger gradients
    validation = torch.randn(size) * scale
    gradients = torch.randn(prompts, size) * scale + torch.randn(prompts, 1) * 0.15 * validation
    cosine = torch.nn.functional.cosine_similarity
    best = {*cosine(gradients, validation[None]).topk(prompts // 10).indices.tolist()}

    def precision(projection, columns, reference):
        score = cosine(projection.project(columns), projection.project(reference[None]))
        return len(best & {*score.topk(prompts // 10).indices.tolist()}) / len(best) / len(seeds)

    exact, broken = dict.fromkeys(ratios, 0.0), dict.fromkeys(ratios, 0.0)
    for ratio, seed in itertools.product(ratios, seeds):
        projection = SparseProjection(size, 800, ratio, "rademacher", seed)
        exact[ratio] += precision(projection, gradients, validation)
        chosen = torch.randperm(size)[: int(ratio * size)]
        projection = SparseProjection(len(chosen), 800, 1.0, "rademacher", seed)
        read = wrapped(gradients[:, chosen], int(0.18 * 16 * size))
        broken[ratio] += precision(projection, read, validation[chosen])
    assert [*exact.values()] == sorted(exact.values())
    assert exact[1.0] > exact[0.1] + 0.1
    assert broken[0.15] > broken[0.5] + 0.1 > broken[1.0] + 0.15
    assert broken[1.0] < 0.3 < exact[1.0] - 0.3


def test_bad_values_are_named():
    for options, message in (
        ({"keep_ratio": 0.0}, "keep_ratio is 0.0"),
        ({"keep_ratio": 1.1}, "keep_ratio is 1.1"),
        ({"kind": "sparse"}, "kind is 'sparse'"),
        ({"dimensions": 0}, "dimensions is 0"),
        ({"dimensions": 200}, r"about 150 \(0.15 of 1000\)"),
    ):
        with pytest.raises(ValueError, match=message):
            SparseProjection(1000, **({"dimensions": 10} | options))
