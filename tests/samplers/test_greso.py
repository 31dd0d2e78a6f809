"""GRESOSampler: prompts without spread are left out with the paper's probability."""

import pytest
import torch

from lit_adaptive.samplers import GRESOSampler


def test_prompts_without_spread_are_left_out_more_with_every_visit() -> None:
    sampler = GRESOSampler(3000, flat_share=0.5)
    rate = torch.cat([torch.zeros(1000), torch.full((1000,), 0.5), torch.ones(1000)])
    for _ in range(2):
        sampler.update(torch.arange(3000), rate)
        sampler.bases.fill_(0.5)
    sampler.bases[:] = torch.tensor([0.5, 0.3])
    drawn = sampler.draw(1000 + 250 + 90).index
    counts = torch.bincount(drawn // 1000, minlength=3)
    kept = counts / 1000
    assert float(kept[0]) == pytest.approx(0.25, abs=0.05)
    assert float(kept[2]) == pytest.approx(0.09, abs=0.03)


def test_the_bases_move_to_the_share_that_is_aimed_at() -> None:
    sampler = GRESOSampler(8, flat_share=0.3)
    # No prompt all wrong (below 0.2), half all right (above 0.1).
    sampler.update(torch.arange(4), torch.tensor([0.5, 0.5, 1.0, 1.0]))
    torch.testing.assert_close(sampler.bases, torch.tensor([0.51, 0.49], dtype=torch.float64))


def test_a_group_with_spread_ends_the_streak() -> None:
    sampler = GRESOSampler(2)
    sampler.update(torch.arange(2), torch.tensor([0.0, 0.0]))
    sampler.update(torch.arange(2), torch.tensor([0.5, 0.0]))
    assert sampler.state_dict()["streak"].tolist() == [0, 2]


def test_a_resumed_sampler_draws_the_same() -> None:
    sampler, other = GRESOSampler(64, seed=2), GRESOSampler(64, seed=9)
    sampler.update(sampler.draw(32).index, (torch.arange(32) % 3) / 2)
    other.load_state_dict(sampler.state_dict())
    assert [sampler.draw(32).index.tolist() for _ in range(4)] == [
        other.draw(32).index.tolist() for _ in range(4)
    ]


def test_bad_values_are_named() -> None:
    with pytest.raises(ValueError, match="flat_share is 0"):
        GRESOSampler(4, flat_share=0)
    with pytest.raises(ValueError, match=r"index \[1\] are \[1.5\]"):
        GRESOSampler(4).update(torch.arange(2), torch.tensor([0.5, 1.5]))
