"""Completions of the default engine depend on the prompt, its seed and the weights only."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pytest
import torch
from torch import Tensor

from lit_adaptive.data import Arithmetic, PromptDataset
from lit_adaptive.modules import ConfiguredLM, LanguageModel
from lit_adaptive.rollout.engines.transformers import TransformersEngine
from lit_adaptive.rollout.generation import Completions, SamplingParams
from lit_adaptive.rollout.models.tokenizers import stop_token_ids


class Policy:
    """A tiny model that records the shapes of its inputs."""

    def __init__(self, language: LanguageModel, tokenizer: Any) -> None:
        self.language, self.tokenizer, self.device = language, tokenizer, torch.device("cpu")
        self.inputs: list[tuple[int, int]] = []
        self.entered = 0

    def decode(self, input_ids: Tensor, mask: Tensor, positions: Tensor, cache: Any) -> Tensor:
        self.inputs.append((input_ids.shape[0], input_ids.shape[1]))
        assert mask.shape[1] == positions[0, -1] + 1 or bool((mask == 0).any())
        return self.language.decode(input_ids, mask, positions, cache)

    def suppressed_tokens(self) -> list[int]:
        return []

    def stops(self) -> list[int]:
        return stop_token_ids(self.tokenizer)

    def all_done(self, done: bool) -> bool:
        return done

    @contextmanager
    def decoding(self) -> Iterator[None]:
        self.entered += 1
        yield


@pytest.fixture(scope="module")
def prompts() -> PromptDataset:
    return PromptDataset(Arithmetic("train", size=40, digits=3))


@pytest.fixture(scope="module")
def language(prompts: PromptDataset) -> LanguageModel:
    torch.manual_seed(0)
    return ConfiguredLM(hidden_size=32, layers=2, heads=2).build(prompts.tokenizer).eval()


def _engine(language: LanguageModel, prompts: PromptDataset, rows: int) -> TransformersEngine:
    engine = TransformersEngine(max_rows=rows)
    engine.attach(Policy(language, prompts.tokenizer))
    return engine


def _generate(engine: TransformersEngine, prompts: PromptDataset, index: list[int]) -> Completions:
    tokens = prompts.tokens(torch.tensor(index, dtype=torch.int64))
    return engine.generate(tokens, 3, SamplingParams(9, temperature=0.8), [100 + i for i in index])


def test_log_probs_are_those_of_a_full_forward_pass_at_the_sampling_temperature(
    language: LanguageModel, prompts: PromptDataset
) -> None:
    index = [0, 3, 5, 8]
    completions = _generate(_engine(language, prompts, 512), prompts, index)
    rows = zip(completions.tokens, completions.log_probs, strict=True)
    for row, (tokens, log_probs) in enumerate(rows):
        prompt = prompts.tokens(torch.tensor([index[row // 3]]))[0].long()
        logits = language.model(input_ids=torch.cat([prompt, tokens])[None]).logits[0] / 0.8
        full = logits.log_softmax(-1)[len(prompt) - 1 : -1]
        torch.testing.assert_close(full.gather(-1, tokens[:, None])[:, 0], log_probs)


def test_a_completion_depends_on_its_prompt_and_seed_not_on_other_prompts(
    language: LanguageModel, prompts: PromptDataset
) -> None:
    index = [*range(24)]
    together = _generate(_engine(language, prompts, 512), prompts, index)
    batched = _generate(_engine(language, prompts, 6), prompts, index)  # two prompts at a time
    reverse = _generate(_engine(language, prompts, 512), prompts, index[::-1])
    alone = _generate(_engine(language, prompts, 512), prompts, [7])
    for row in range(72):
        prompt, sample = divmod(row, 3)
        mirrored = (23 - prompt) * 3 + sample
        assert together.tokens[row].equal(batched.tokens[row])
        assert together.tokens[row].equal(reverse.tokens[mirrored])
        assert together.finish[row] == batched.finish[row] == reverse.finish[mirrored]
        torch.testing.assert_close(together.log_probs[row], reverse.log_probs[mirrored])
    for sample in range(3):
        assert alone.tokens[sample].equal(together.tokens[21 + sample])
    assert len({tuple(tokens.tolist()) for tokens in together.tokens[:3]}) > 1  # samples differ


def test_a_prompt_is_processed_once_in_a_batch_of_similar_length(
    language: LanguageModel, prompts: PromptDataset
) -> None:
    engine = _engine(language, prompts, 12)
    policy = engine.policy
    assert isinstance(policy, Policy)
    order = prompts.lengths.argsort()
    index = [*order[:4].tolist(), *order[-4:].tolist()]
    _generate(engine, prompts, index[::-1])
    shapes = [shape for shape in policy.inputs if shape[1] > 1]
    lengths = prompts.lengths[index].tolist()
    assert shapes == [(4, max(lengths[:4])), (4, max(lengths[4:]))]
    assert all(rows <= 12 for rows, width in policy.inputs if width == 1)


def test_without_prompts_there_are_no_completions(
    language: LanguageModel, prompts: PromptDataset
) -> None:
    completions = _generate(_engine(language, prompts, 12), prompts, [])
    assert completions.tokens == completions.log_probs == completions.finish == []


def test_completions_have_the_version_of_the_last_sync(
    language: LanguageModel, prompts: PromptDataset
) -> None:
    engine = _engine(language, prompts, 12)
    engine.sync(5)
    assert _generate(engine, prompts, [0]).version == 5


def test_a_rank_without_prompts_decodes_until_all_ranks_are_done(
    language: LanguageModel, prompts: PromptDataset
) -> None:
    engine = _engine(language, prompts, 12)
    policy = engine.policy
    assert isinstance(policy, Policy)
    states = iter([False, False, False, False, True, True])  # other ranks need four more passes
    policy.all_done = lambda done: next(states)  # type: ignore[method-assign]
    assert _generate(engine, prompts, []).tokens == []
    assert len(policy.inputs) >= 2


def test_an_engine_without_a_policy_names_the_remedy() -> None:
    with pytest.raises(RuntimeError, match=r"TransformersEngine has no policy; call attach"):
        TransformersEngine().generate([[1]], 1, SamplingParams(1), [0])


def test_max_rows_must_be_positive() -> None:
    with pytest.raises(ValueError, match="max_rows is 0; it must be at least 1"):
        TransformersEngine(max_rows=0)
