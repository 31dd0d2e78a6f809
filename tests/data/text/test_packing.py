"""Packed batches: no overfull row, and the same log-probabilities as unpacked ones."""

from itertools import pairwise
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from lit_adaptive.data import DemonstrationDataset
from lit_adaptive.data.text.packing import best_fit_decreasing
from lit_adaptive.rollout.models.tokenizers import character_tokenizer

TOKENIZER = character_tokenizer()


@given(st.lists(st.integers(1, 20), min_size=1, max_size=30))
def test_packing_never_overfills_and_is_as_good_as_best_fit_decreasing(lengths: list[int]) -> None:
    rows, starts = best_fit_decreasing(lengths, 20)
    spans: dict[int, list[tuple[int, int]]] = {}
    for row, start, length in zip(rows, starts, lengths, strict=True):
        spans.setdefault(row, []).append((start, start + length))
    for row_spans in spans.values():
        row_spans.sort()
        assert row_spans[0][0] == 0
        assert row_spans[-1][1] <= 20
        assert all(a[1] == b[0] for a, b in pairwise(row_spans))
    # The plain algorithm: the fullest row with room.
    fill: list[int] = []
    for length in sorted(lengths, reverse=True):
        fitting = [i for i in range(len(fill)) if fill[i] + length <= 20]
        if fitting:
            fill[max(fitting, key=lambda i: fill[i])] += length
        else:
            fill.append(length)
    assert sorted(row_spans[-1][1] for row_spans in spans.values()) == sorted(fill)
    assert sorted(spans) == list(range(len(fill)))


def _log_probs(model: Any, batch: dict[str, Tensor]) -> Tensor:
    logits = model(
        input_ids=batch["input_ids"], position_ids=batch["position_ids"], use_cache=False
    ).logits
    chosen = logits.flatten(0, 1)[batch["position"]].log_softmax(-1)
    return chosen.gather(1, batch["target"][:, None]).squeeze(1)


@pytest.mark.parametrize("attention", ["sdpa", "eager"])
def test_packed_equals_unpacked_through_a_language_model(attention: str) -> None:
    from transformers import LlamaConfig, LlamaForCausalLM

    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=len(TOKENIZER),
        hidden_size=32,
        intermediate_size=64,
        num_hidden_layers=2,
        num_attention_heads=4,
        attn_implementation=attention,
    )
    model = LlamaForCausalLM(config).eval()
    rows = [{"prompt": "3" * n + "=", "completion": "7" * (n % 4 + 1)} for n in range(1, 13)]
    loose = DemonstrationDataset(rows, TOKENIZER, max_length=24)
    packed = DemonstrationDataset(rows, TOKENIZER, max_length=24, packing=True)
    index = torch.tensor([3, 11, 0, 5, 7, 3, 1])
    one, other = loose.gather(index), packed.gather(index)
    assert len(other["input_ids"]) < len(one["input_ids"])
    assert other["sequence"].equal(one["sequence"])
    assert other["target"].equal(one["target"])
    with torch.no_grad():
        expected = _log_probs(model, one)
        torch.testing.assert_close(_log_probs(model, other), expected, rtol=0, atol=1e-5)
        # The test sees a leak: without restarts of the position ids it fails.
        width = other["input_ids"].shape[1]
        other["position_ids"] = torch.arange(width).expand(len(other["input_ids"]), -1)
        assert (_log_probs(model, other) - expected).abs().max() > 1e-3


def test_pack_length_holds_any_sample() -> None:
    rows = [{"prompt": "a", "completion": "b"}] * 3
    with pytest.raises(ValueError, match="pack_length is 10, max_length 20"):
        DemonstrationDataset(rows, TOKENIZER, max_length=20, packing=True, pack_length=10)
    dataset = DemonstrationDataset(rows, TOKENIZER, max_length=5, packing=True, pack_length=9)
    batch = dataset.gather(torch.arange(3))
    assert batch["input_ids"].shape == (1, 9)
    assert batch["position_ids"].tolist() == [[0, 1, 2, 0, 1, 2, 0, 1, 2]]


def test_padding_of_a_packed_row_is_a_sample_of_its_own() -> None:
    rows = [{"prompt": "a", "completion": c} for c in ("b", "bb", "bbb")]
    dataset = DemonstrationDataset(rows, TOKENIZER, max_length=8, packing=True)
    batch = dataset.gather(torch.arange(3))  # 5 + 3 in one row, 4 in the other
    assert batch["position_ids"].tolist() == [[0, 1, 2, 3, 4, 0, 1, 2], [0, 1, 2, 3, 0, 1, 2, 3]]
    assert batch["input_ids"][1, 4:].tolist() == [0] * 4
