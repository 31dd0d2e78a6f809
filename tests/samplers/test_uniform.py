"""Uniform draws; what they share with the other samplers is in test_base."""

from hypothesis import given
from hypothesis import strategies as st
from torch import tensor

from lit_adaptive.samplers import UniformSampler


@given(
    st.lists(
        st.tuples(st.booleans(), st.lists(st.integers(0, 9), min_size=1, max_size=7)), max_size=20
    )
)
def test_inserted_indices_stay_in_front_of_a_permutation_and_its_inverse(
    steps: list[tuple[bool, list[int]]],
) -> None:
    sampler, twin = UniformSampler(10, filled=False), set[int]()
    for inserted, index in steps:
        (sampler.insert if inserted else sampler.remove)(tensor(index))
        twin = twin | set(index) if inserted else twin - set(index)
        assert set(sampler._item[: len(twin)].tolist()) == twin
        assert sampler._item[sampler._place].tolist() == list(range(10))


def test_every_inserted_index_has_probability_one_over_count() -> None:
    sampler = UniformSampler(5)
    sampler.remove(tensor([3]))
    assert sampler.probabilities().tolist() == [0.25, 0.25, 0.25, 0, 0.25]
    assert sampler.probability_of(tensor([4, 3])).tolist() == [0.25, 0]
    assert sampler.draw(3).probability.tolist() == [0.25] * 3
