import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from lit_adaptive.core.segments import (
    center_segments,
    reduce_segments,
    segment_count,
    segment_max,
    segment_mean,
    segment_std,
    segment_sum,
)

SEGMENTS = st.lists(st.lists(st.floats(-100, 100), max_size=5), min_size=1, max_size=5)


def flatten(segments, seed=0):
    """Values and indices of the segments, in a random order."""
    value = torch.tensor([v for segment in segments for v in segment], dtype=torch.float64)
    index = torch.arange(len(segments)).repeat_interleave(torch.tensor([len(s) for s in segments]))
    order = torch.randperm(len(value), generator=torch.Generator().manual_seed(seed))
    return value[order], index[order]


@given(segments=SEGMENTS, correction=st.integers(0, 1), seed=st.integers(0, 9))
def test_statistics_are_those_of_each_segment_alone(segments, correction, seed):
    value, index = flatten(segments, seed)
    size = len(segments)
    for k in range(size):
        alone = value[index == k]
        assert segment_count(index, size)[k] == len(alone)
        torch.testing.assert_close(segment_sum(value, index, size)[k], alone.sum())
        if not len(alone):
            continue
        torch.testing.assert_close(segment_mean(value, index, size)[k], alone.mean())
        assert segment_max(value, index, size)[k] == alone.max()
        std = segment_std(value, index, size, correction=correction)[k]
        if len(alone) > correction:
            torch.testing.assert_close(std, alone.std(correction=correction), atol=1e-7, rtol=1e-7)
        else:
            assert std == 0
        centered = center_segments(value, index, size)[index == k]
        torch.testing.assert_close(centered, alone - alone.mean(), atol=1e-7, rtol=1e-7)


def test_an_empty_segment_has_sum_and_mean_0_and_maximum_minus_infinity():
    value, index = torch.tensor([1.0]), torch.tensor([1])
    assert segment_count(index, 2).tolist() == [0, 1]
    assert segment_sum(value, index, 2).tolist() == [0, 1]
    assert segment_mean(value, index, 2).tolist() == [0, 1]
    assert segment_std(value, index, 2).tolist() == [0, 0]
    assert segment_max(value, index, 2).tolist() == [-torch.inf, 1]


@pytest.mark.parametrize("number", [0.1, 1 / 3, 1e8 + 0.1, -7e-9])
@pytest.mark.parametrize("count", [3, 7, 49])
def test_equal_values_have_a_standard_deviation_of_exactly_0(number, count):
    value, index = torch.full((count,), number), torch.zeros(count, dtype=torch.int64)
    assert segment_std(value, index, 1).tolist() == [0]
    assert center_segments(value, index, 1).tolist() == [0] * count


def test_sums_and_means_are_differentiable():
    value = torch.tensor([1.0, 2.0, 5.0], requires_grad=True)
    index = torch.tensor([0, 1, 1])
    segment_mean(value, index, 2)[1].backward()
    assert value.grad.tolist() == [0, 0.5, 0.5]


@given(
    segments=SEGMENTS,
    reduction=st.sampled_from(["token", "sequence", "fixed"]),
    seed=st.integers(0, 99),
)
def test_reductions_are_those_of_a_loop(segments, reduction, seed):
    losses, sequence = flatten(segments)
    size = len(segments)
    weight = torch.rand(size, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))
    loss = reduce_segments(
        losses, sequence, size, reduction=reduction, count=10.0 if reduction == "fixed" else None,
        sample_weight=weight,
    )  # fmt: skip
    parts = [losses[sequence == i] * weight[i] for i in range(size)]
    total = sum(float(part.sum()) for part in parts)
    if reduction == "token":
        expected = total / max(len(losses), 1)
    elif reduction == "fixed":
        expected = total / 10
    else:
        expected = sum(float(part.mean()) if len(part) else 0.0 for part in parts) / size
    assert float(loss) == pytest.approx(expected, abs=1e-9)


def test_a_fixed_reduction_needs_a_positive_count():
    losses, sequence = torch.ones(2), torch.zeros(2, dtype=torch.int64)
    with pytest.raises(ValueError, match="'fixed' without a count"):
        reduce_segments(losses, sequence, 1, reduction="fixed")
    with pytest.raises(ValueError, match=r"count is 0; .* above 0"):
        reduce_segments(losses, sequence, 1, count=0)
