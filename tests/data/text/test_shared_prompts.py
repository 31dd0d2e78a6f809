"""Rows with shared prompts: every token is predicted from what it would be predicted from alone."""

from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from transformers import GPT2Config, GPT2LMHeadModel, LlamaConfig, LlamaForCausalLM

from lit_adaptive.data.text.packing import collate_packed
from lit_adaptive.data.text.shared_prompts import Answers, collate_shared
from lit_adaptive.modules.language.network import LanguageModel

PAD = 0


def _answers(lengths: list[tuple[int, list[int]]], order: list[int]) -> tuple[Answers, list[Any]]:
    """Answers to prompts, each prompt with its own length and its answers', in some order."""
    source = np.random.default_rng(sum(order))
    prompts = [source.integers(1, 40, prompt_length) for prompt_length, _ in lengths]
    completions = [
        (i, source.integers(1, 40, n)) for i, (_, own) in enumerate(lengths) for n in own
    ]
    completions = [completions[i] for i in order]
    starts = np.cumsum([0, *(len(p) for p in prompts)])
    number = np.array([i for i, _ in completions])
    answers = Answers(
        np.concatenate([tokens for _, tokens in completions]).astype(np.int32),
        np.array([len(tokens) for _, tokens in completions]),
        number,
        np.concatenate(prompts).astype(np.int32),
        starts[number],
        np.array([len(prompts[i]) for i in number]),
    )
    return answers, [[*prompts[i], *tokens] for i, tokens in completions]


def _alone(answers: Answers, whole: list[Any]) -> dict[str, torch.Tensor]:
    """The same as a row for each."""
    flat = []
    for tokens, prompt_length in zip(whole, answers.prompt_length, strict=True):
        flat += [*tokens[:prompt_length], *(~t for t in tokens[prompt_length:])]
    length = np.array([len(tokens) for tokens in whole])
    return collate_packed(np.array(flat, np.int32), length, pad=PAD, pack_length=None)


@st.composite
def _drawn(draw: Any) -> tuple[Answers, list[Any]]:
    each = st.tuples(st.integers(1, 6), st.lists(st.integers(0, 7), min_size=1, max_size=9))
    lengths = draw(st.lists(each, min_size=1, max_size=5))
    count = sum(len(own) for _, own in lengths)
    if not any(n for _, own in lengths for n in own):
        lengths[0][1][0] = 1
    return _answers(lengths, draw(st.permutations(range(count))))


@given(_drawn(), st.sampled_from([0.0, 0.01, 0.1]))
def test_every_target_sees_its_prompt_and_its_answer_so_far(
    drawn: tuple[Answers, list[Any]], attention_cost_ratio: float
) -> None:
    answers, whole = drawn
    batch = collate_shared(answers, pad=PAD, attention_cost_ratio=attention_cost_ratio)
    if batch is None:
        return
    width = batch["input_ids"].shape[1]
    ids, segment, positions = (
        batch[name].flatten().tolist() for name in ("input_ids", "segment", "position_ids")
    )
    k = 0
    for answer, tokens in enumerate(whole):
        for at in range(int(answers.prompt_length[answer]), len(tokens)):
            assert int(batch["sequence"][k]) == answer
            assert int(batch["target"][k]) == tokens[at]
            place = int(batch["position"][k])
            own = segment[place]
            seen = [j for j in range(place // width * width, place + 1) if segment[j] in (0, own)]
            assert [ids[j] for j in seen] == tokens[:at]
            assert [positions[j] for j in seen] == [*range(at)]
            k += 1
    assert k == len(batch["target"])


def _models() -> list[Any]:
    torch.manual_seed(0)
    sizes: dict[str, Any] = {"vocab_size": 40, "num_hidden_layers": 2, "num_attention_heads": 4}
    llama = LlamaConfig(
        **sizes, hidden_size=32, intermediate_size=48, num_key_value_heads=2,
        max_position_embeddings=64,
    )  # fmt: skip
    gpt = GPT2Config(
        vocab_size=40, n_embd=32, n_layer=2, n_head=4, n_positions=64, attn_pdrop=0.0,
        resid_pdrop=0.0, embd_pdrop=0.0,
    )  # fmt: skip
    return [LlamaForCausalLM(llama), GPT2LMHeadModel(gpt)]


# Llama's norms compute in float32 whatever its weights are.
@pytest.mark.parametrize(
    ("model", "tolerance"), [*zip(_models(), [1e-5, 1e-9], strict=True)], ids=["llama", "gpt2"]
)
@settings(max_examples=10)
@given(drawn=_drawn())
def test_log_probs_and_gradients_are_those_of_single_rows(
    model: Any, tolerance: float, drawn: tuple[Answers, list[Any]]
) -> None:
    answers, whole = drawn
    shared = collate_shared(answers, pad=PAD, attention_cost_ratio=0.0)
    if shared is None:
        return
    language = LanguageModel(model.double())
    results = []
    for batch in (shared, _alone(answers, whole)):
        log_prob = language.score_targets(batch)[0].log_prob
        model.zero_grad()
        (log_prob * torch.linspace(-1, 1, len(log_prob))).sum().backward()
        gradients = [p.grad.clone() for p in model.parameters() if p.grad is not None]
        results.append((log_prob.detach(), gradients))
    (ours, own), (theirs, other) = results
    torch.testing.assert_close(ours, theirs, rtol=tolerance, atol=tolerance)
    for mine, plain in zip(own, other, strict=True):
        torch.testing.assert_close(mine, plain, rtol=100 * tolerance, atol=10 * tolerance)


def test_rows_are_as_many_as_is_cheapest() -> None:
    def rows(prompt_length: int, completion_length: int, attention_cost_ratio: float) -> int | None:
        answers, _ = _answers([(prompt_length, [completion_length] * 8)] * 2, [*range(16)])
        batch = collate_shared(answers, pad=PAD, attention_cost_ratio=attention_cost_ratio)
        return None if batch is None else len(batch["input_ids"])

    assert rows(20, 4, 0.0) == 2  # attention costs nothing: all of a group in a row
    assert rows(20, 4, 1 / 128) == 2
    # Two answers a row cost 8 * 58 * (1 + 58 / 100) = 733; four 4 * 96 * 1.96 = 753; one
    # 16 * 40 * (1 + 40 / 200) = 768; eight 2 * 172 * 2.72 = 936.
    assert rows(20, 20, 1 / 100) == 8
    assert rows(20, 20, 1 / 20) is None
    assert rows(1, 40, 1 / 32) is None


def test_answers_of_one_prompt_each_are_left_alone() -> None:
    answers, _ = _answers([(5, [3])] * 4, [3, 1, 0, 2])
    assert collate_shared(answers, pad=PAD, attention_cost_ratio=0.0) is None
