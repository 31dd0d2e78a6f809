"""Completions against transformers' generate, fresh forward passes and explicit distributions."""

import math
import warnings
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor
from transformers import MinPLogitsWarper

from lit_adaptive.rollout.generation import (
    Completions,
    SamplingParams,
    generate,
    left_pad_sequences,
    mask_logits,
    sample_tokens,
)

VOCABULARY, PAD, STOP = 23, 0, 1


@pytest.fixture(scope="module")
def model() -> Any:
    from transformers import LlamaConfig, LlamaForCausalLM

    config = LlamaConfig(
        vocab_size=VOCABULARY, hidden_size=16, intermediate_size=32, num_hidden_layers=2,
        num_attention_heads=2, num_key_value_heads=1, max_position_embeddings=64,
        initializer_range=0.7, pad_token_id=PAD, eos_token_id=STOP, bos_token_id=None,
    )  # fmt: skip
    torch.manual_seed(0)
    return LlamaForCausalLM(config).eval()


class Decoder:
    """Decodes as a language model does, and records the number of rows of each pass."""

    def __init__(self, model: Any) -> None:
        self.model = model
        self.rows: list[int] = []

    def __call__(self, ids: Tensor, mask: Tensor, positions: Tensor, cache: Any) -> Tensor:
        self.rows.append(len(ids))
        output = self.model(
            input_ids=ids, attention_mask=mask, position_ids=positions,
            past_key_values=cache, use_cache=True, logits_to_keep=1,
        )  # fmt: skip
        logits: Tensor = output.logits[:, -1]
        return logits


class FixedLogits:
    """A model with fixed logits for each row and step."""

    def __init__(self, logits: Tensor) -> None:
        self.logits = logits  # [V], or [B, steps, V] where row b has the prompt [b + 2]
        self.step = -1

    def __call__(self, ids: Tensor, mask: Tensor, positions: Tensor, cache: Any) -> Tensor:
        self.step += 1
        if self.logits.ndim == 1:
            return self.logits.expand(len(ids), -1)
        if self.step == 0:
            self.cache, cache.batch_select_indices = list(range(len(ids))), self.select
        return self.logits[self.cache, self.step]

    def select(self, kept: Tensor) -> None:
        self.cache = [self.cache[k] for k in kept.tolist()]


PROMPTS = [[5, 6, 7], [8], [9, 10, 11, 12, 13], [4, 4], [20, 3, 19, 18], [2, 17]]


def run(
    model: Any,
    prompts: list[list[int]],
    sampling: SamplingParams,
    *,
    seed: int = 0,
    stops: tuple[int, ...] = (STOP,),
    width: int = 0,
) -> Completions:
    ids, mask = left_pad_sequences(prompts, PAD)
    if width:  # more padding than needed
        ids = torch.nn.functional.pad(ids, (width, 0), value=PAD)
        mask = torch.nn.functional.pad(mask, (width, 0))
    generator = torch.Generator().manual_seed(seed)
    return generate(Decoder(model), ids, mask, sampling, stops, generator=generator)


def assert_equal(actual: Completions, expected: Completions) -> None:
    assert [t.tolist() for t in actual.tokens] == [t.tolist() for t in expected.tokens]
    assert actual.finish == expected.finish
    for log_probs, expected_log_probs in zip(actual.log_probs, expected.log_probs, strict=True):
        torch.testing.assert_close(log_probs, expected_log_probs, atol=1e-4, rtol=1e-4)


def full_log_probs(
    model: Any, prompt: list[int], completion: list[int], temperature: float
) -> Tensor:
    """Log-probabilities of a completion's tokens, by one forward pass without padding or cache."""
    with torch.no_grad():
        logits = model(input_ids=torch.tensor([[*prompt, *completion]])).logits[0].double()
    log_probs = torch.log_softmax(logits[len(prompt) - 1 : -1] / temperature, -1)
    return log_probs.gather(1, torch.tensor(completion)[:, None])[:, 0]


def test_greedy_completions_are_those_of_transformers(model: Any) -> None:
    completions = run(model, PROMPTS, SamplingParams(max_new_tokens=12, temperature=0.0))
    ids, mask = left_pad_sequences(PROMPTS, PAD)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        reference = model.generate(ids, attention_mask=mask, max_new_tokens=12, do_sample=False)
    for row, tokens, finish in zip(reference[:, ids.shape[1] :], *completions[::2], strict=True):
        stops = (row == STOP).nonzero().flatten().tolist()
        expected = row[: stops[0] + 1] if stops else row
        assert tokens.tolist() == expected.tolist()
        assert finish == ("stop" if stops else "length")


@pytest.mark.parametrize("temperature", [0.0, 0.5, 1.0, 2.0])
def test_log_probs_are_those_of_a_fresh_forward_pass(model: Any, temperature: float) -> None:
    # The log-probabilities are of the distribution before top_p and top_k.
    completions = run(model, PROMPTS, SamplingParams(10, temperature, top_p=0.9, top_k=7), seed=3)
    assert len({len(tokens) for tokens in completions.tokens}) > 1
    for prompt, tokens, log_probs in zip(PROMPTS, *completions[:2], strict=True):
        expected = full_log_probs(model, prompt, tokens.tolist(), temperature or 1.0)
        assert log_probs.dtype == torch.float32
        torch.testing.assert_close(log_probs.double(), expected, atol=1e-4, rtol=1e-4)


def test_a_completion_ends_with_the_first_stop_token_or_at_its_length(model: Any) -> None:
    stops = (STOP, 6, 14)
    completions = run(model, PROMPTS * 5, SamplingParams(8), stops=stops)
    assert set(completions.finish) == {"stop", "length"}
    for tokens, finish in zip(*completions[::2], strict=True):
        *before, last = tokens.tolist()
        assert not set(before) & set(stops)
        assert (last in stops) == (finish == "stop")
        assert finish == "stop" or len(tokens) == 8


def test_without_stop_tokens_all_completions_have_full_length(model: Any) -> None:
    completions = run(model, PROMPTS, SamplingParams(5), stops=())
    assert [len(tokens) for tokens in completions.tokens] == [5] * len(PROMPTS)
    assert completions.finish == ["length"] * len(PROMPTS)


@pytest.mark.parametrize("temperature", [0.0, 1.0])
def test_the_amount_of_padding_changes_nothing(model: Any, temperature: float) -> None:
    sampling = SamplingParams(10, temperature)
    assert_equal(run(model, PROMPTS, sampling), run(model, PROMPTS, sampling, width=7))


def test_a_greedy_completion_does_not_depend_on_the_other_prompts(model: Any) -> None:
    sampling = SamplingParams(10, 0.0)
    together = run(model, PROMPTS, sampling)
    for at, prompt in enumerate(PROMPTS):
        alone = run(model, [prompt], sampling)
        assert_equal(alone, Completions(*(part[at : at + 1] for part in together[:3])))


def test_completions_depend_on_the_generator_and_not_on_the_global_stream(model: Any) -> None:
    torch.manual_seed(1)
    first = run(model, PROMPTS, SamplingParams(10), seed=5)
    state = torch.random.get_rng_state()
    torch.manual_seed(2)
    assert_equal(first, run(model, PROMPTS, SamplingParams(10), seed=5))
    other = run(model, PROMPTS, SamplingParams(10), seed=6)
    assert [t.tolist() for t in first.tokens] != [t.tolist() for t in other.tokens]
    torch.manual_seed(1)
    assert torch.equal(state, torch.random.get_rng_state())


def test_a_completion_does_not_depend_on_the_length_of_others() -> None:
    # Row 2 samples from the same distributions in both runs; the others end at once, or never.
    steps, rows = 9, 4
    logits = torch.randn(rows, steps, VOCABULARY, generator=torch.Generator().manual_seed(0))
    logits[:, :, STOP] = -torch.inf
    ending = logits.clone()
    ending[[0, 1, 3], 1, STOP] = 100.0
    runs = []
    for row_logits in (logits, ending):
        ids, mask = left_pad_sequences([[b + 2] for b in range(rows)], PAD)
        generator = torch.Generator().manual_seed(4)
        runs.append(
            generate(
                FixedLogits(row_logits),
                ids,
                mask,
                SamplingParams(steps),
                [STOP],
                generator=generator,
            )
        )
    assert [len(tokens) for tokens in runs[0].tokens] == [9, 9, 9, 9]
    assert [len(tokens) for tokens in runs[1].tokens] == [2, 2, 9, 2]
    assert runs[0].tokens[2].tolist() == runs[1].tokens[2].tolist()


def test_finished_rows_leave_the_batch(model: Any) -> None:
    ids, mask = left_pad_sequences(PROMPTS * 4, PAD)
    decoder = Decoder(model)
    generator = torch.Generator().manual_seed(0)
    completions = generate(
        decoder, ids, mask, SamplingParams(30), [STOP, 5, 6], generator=generator
    )
    longest = max(len(tokens) for tokens in completions.tokens)
    assert len(decoder.rows) == longest  # the last token is not read again
    assert decoder.rows[0] == 24
    assert decoder.rows == sorted(decoder.rows, reverse=True)
    for step, rows in enumerate(decoder.rows[1:], start=1):
        active = sum(len(tokens) > step for tokens in completions.tokens)
        assert active <= rows <= max(active / 0.75, active + 1)


def test_a_rank_that_is_done_first_decodes_until_all_are_done(model: Any) -> None:
    # The other rank needs seven passes; this one's prompts are done after fewer.
    states: list[bool] = []

    def all_done(done: bool) -> bool:
        states.append(done)
        return done and len(states) >= 7

    ids, mask = left_pad_sequences(PROMPTS[:2], PAD)
    stops = list(range(VOCABULARY))
    decoder = Decoder(model)
    completions = generate(decoder, ids, mask, SamplingParams(20, 0.0), stops, all_done=all_done)
    assert states == [True] * 7
    assert decoder.rows == [2] + [1] * 6
    assert_equal(completions, run(model, PROMPTS[:2], SamplingParams(20, 0.0), stops=tuple(stops)))
    assert [len(tokens) for tokens in completions.tokens] == [1, 1]


def chi_square(tokens: Tensor, probability: Tensor) -> float:
    """Sum of (observed - expected)^2 / expected over the tokens of positive probability."""
    observed = torch.bincount(tokens, minlength=len(probability)).double()
    assert int(observed[probability == 0].sum()) == 0
    expected = probability[probability > 0] * len(tokens)
    return float(((observed[probability > 0] - expected).square() / expected).sum())


@pytest.mark.parametrize(
    ("temperature", "top_p", "top_k"),
    [(1.0, 1.0, 0), (0.5, 1.0, 0), (2.0, 0.7, 0), (1.0, 1.0, 4), (1.0, 0.8, 5)],
)
def test_samples_follow_the_distribution(temperature: float, top_p: float, top_k: int) -> None:
    logits = torch.linspace(-1.5, 1.5, 10)[torch.randperm(10)]
    probability = torch.softmax(logits.double() / temperature, -1)
    probability = truncate_slowly(probability, top_p, top_k)
    rows, steps = 500, 40
    ids, mask = left_pad_sequences([[2]] * rows, PAD)
    sampling = SamplingParams(steps, temperature, top_p, top_k)
    generator = torch.Generator().manual_seed(1)
    completions = generate(FixedLogits(logits), ids, mask, sampling, [], generator=generator)
    degrees = int((probability > 0).sum()) - 1
    # Mean `degrees`, variance twice that: five standard deviations above.
    assert (
        chi_square(torch.cat(completions.tokens), probability) < degrees + 5 * (2 * degrees) ** 0.5
    )
    expected = torch.log_softmax(logits / temperature, -1)[torch.cat(completions.tokens)]
    torch.testing.assert_close(torch.cat(completions.log_probs), expected)


def truncate_slowly(probability: Tensor, top_p: float, top_k: int) -> Tensor:
    """Truncate one distribution ``[V]`` token by token, and renormalize it."""
    kept = torch.zeros_like(probability)
    size = top_k or len(probability)
    top = probability.sort(descending=True).values[:size]
    for token in probability.argsort(descending=True).tolist()[:size]:
        if float(kept.sum() / top.sum()) < top_p:
            kept[token] = probability[token]
    return kept / kept.sum()


@settings(max_examples=80)
@given(
    size=st.integers(1, 12),
    top_p=st.sampled_from([0.01, 0.35, 0.77, 0.95, 1.0]),
    top_k=st.integers(0, 13),
    seed=st.integers(0, 10_000),
)
def test_top_p_and_top_k_keep_the_tokens_of_the_slow_twin(
    size: int, top_p: float, top_k: int, seed: int
) -> None:
    logits = 2 * torch.randn(3, size, generator=torch.Generator().manual_seed(seed)).double()
    masked = mask_logits(logits, top_p, top_k).softmax(-1)
    for row, logit in zip(masked, logits, strict=True):
        torch.testing.assert_close(row, truncate_slowly(logit.softmax(-1), top_p, top_k))


def test_a_uniform_number_selects_the_token_whose_interval_contains_it() -> None:
    mass = torch.tensor([0.0, 0.25, 0.5, 0.0, 0.25, 0.0])
    # 1.0 stands for sums that round differently, as on a GPU: still a token of positive mass.
    uniform = torch.tensor([0.0, 0.2, 0.26, 0.7, 0.76, 1 - 2**-53, 1.0], dtype=torch.float64)
    tokens = sample_tokens(mass.expand(7, -1), uniform)
    assert tokens.tolist() == [1, 1, 2, 2, 4, 4, 4]


@given(
    # Below, at and around multiples of the tile, 512.
    size=st.sampled_from([1, 7, 511, 512, 513, 1024, 1300, 3000]),
    support=st.floats(0.001, 1.0),
    seed=st.integers(0, 10_000),
)
def test_sampling_by_tiles_equals_sampling_by_one_sum(size: int, support: float, seed: int) -> None:
    source = torch.Generator().manual_seed(seed)
    # Whole numbers: every sum is exact, so the two must agree to the last bit.
    mass = torch.randint(1, 100, (20, size), generator=source).float()
    mass *= torch.rand(20, size, generator=source) < support
    mass[torch.arange(20), torch.randint(size, (20,), generator=source)] += 1
    uniform = torch.rand(20, generator=source, dtype=torch.float64)
    total = mass.double().sum(-1, keepdim=True)
    expected = (mass.double().cumsum(-1) <= uniform[:, None] * total).sum(-1)
    assert sample_tokens(mass, uniform).equal(expected)


@settings(max_examples=60, deadline=None)
@given(st.integers(0, 10_000), st.sampled_from([0.0, 0.05, 0.4, 0.99]))
def test_min_p_keeps_the_tokens_of_transformers(seed: int, min_p: float) -> None:
    logits = torch.randn(3, 12, generator=torch.Generator().manual_seed(seed)) * 2
    kept = mask_logits(logits, 1.0, 0, min_p).isfinite()
    expected = MinPLogitsWarper(min_p)(torch.zeros(3, 1, dtype=torch.long), logits).isfinite()
    assert kept.equal(expected)


@pytest.mark.parametrize("penalty", [0.5, 1.3, 5.0])
def test_a_greedy_completion_with_a_penalty_is_that_of_transformers(
    model: Any, penalty: float
) -> None:
    ours = run(model, PROMPTS, SamplingParams(12, temperature=0.0, repetition_penalty=penalty))
    plain = run(model, PROMPTS, SamplingParams(12, temperature=0.0))
    assert any(not one.equal(two) for one, two in zip(ours.tokens, plain.tokens, strict=True))
    for prompt, tokens, log_probs in zip(PROMPTS, ours.tokens, ours.log_probs, strict=True):
        ids = torch.tensor([prompt])  # alone: transformers would count its padding as a token
        expected = model.generate(
            ids,
            attention_mask=torch.ones_like(ids),
            max_new_tokens=12,
            do_sample=False,
            repetition_penalty=penalty,
        )[0, len(prompt) :]
        assert tokens.equal(expected)
        # Log-probabilities are those of the policy, without the penalty.
        policy = full_log_probs(model, prompt, tokens.tolist(), 1.0)
        torch.testing.assert_close(log_probs.double(), policy, rtol=1e-4, atol=1e-4)


def test_samples_with_a_penalty_follow_the_penalized_distribution() -> None:
    logits = torch.tensor([[2.0, 1.0, 0.5, -1.0]])
    penalized = torch.tensor([1.0, 1.0, 0.5, -2.0])  # tokens 0 and 3 are in the prompt

    def decode(input_ids: Tensor, mask: Tensor, positions: Tensor, cache: Any) -> Tensor:
        return logits.repeat(len(input_ids), 1)

    ids, mask = left_pad_sequences([[0, 3]], 2)
    sampling = SamplingParams(1, temperature=0.7, repetition_penalty=2.0)
    completions = generate(decode, ids, mask, sampling, [], samples=40_000)
    counts = torch.bincount(torch.cat(completions.tokens), minlength=4) / 40_000
    torch.testing.assert_close(counts, (penalized / 0.7).softmax(-1), rtol=0, atol=0.012)


@pytest.mark.parametrize(
    ("option", "value"),
    [
        ("min_p", 1.0),
        ("min_p", -0.1),
        ("repetition_penalty", 0.0),
        ("repetition_penalty", math.inf),
    ],
)
def test_a_value_out_of_range_is_named(option: str, value: float) -> None:
    with pytest.raises(ValueError, match=f"{option} is {value}; it must"):
        SamplingParams(**{option: value})
