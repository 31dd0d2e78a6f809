"""Engines: what they write depends on the prompt, its seed and the weights, and on nothing else."""

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
    """A tiny model, counting how many tokens it reads."""

    def __init__(self, language: LanguageModel, tokenizer: Any) -> None:
        self.language, self.tokenizer, self.device = language, tokenizer, torch.device("cpu")
        self.read: list[tuple[int, int]] = []
        self.entered = 0

    def decode(self, input_ids: Tensor, mask: Tensor, positions: Tensor, cache: Any) -> Tensor:
        self.read.append((input_ids.shape[0], input_ids.shape[1]))
        assert mask.shape[1] == positions[0, -1] + 1 or bool((mask == 0).any())
        return self.language.decode(input_ids, mask, positions, cache)

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


def _ask(engine: TransformersEngine, prompts: PromptDataset, index: list[int]) -> Completions:
    asked = prompts.tokens(torch.tensor(index, dtype=torch.int64))
    return engine.generate(asked, 3, SamplingParams(9, temperature=0.8), [100 + i for i in index])


def test_log_probs_are_those_of_a_full_forward_pass_at_the_sampling_temperature(
    language: LanguageModel, prompts: PromptDataset
) -> None:
    index = [0, 3, 5, 8]
    found = _ask(_engine(language, prompts, 512), prompts, index)
    for row, (tokens, log_probs) in enumerate(zip(found.tokens, found.log_probs, strict=True)):
        prompt = prompts.tokens(torch.tensor([index[row // 3]]))[0].long()
        whole = torch.cat([prompt, tokens])
        logits = language.model(input_ids=whole[None]).logits[0] / 0.8
        law = logits.log_softmax(-1)[len(prompt) - 1 : -1]
        torch.testing.assert_close(law.gather(-1, tokens[:, None])[:, 0], log_probs)


def test_a_completion_depends_on_its_prompt_and_seed_not_on_its_company(
    language: LanguageModel, prompts: PromptDataset
) -> None:
    everyone = [*range(24)]
    whole = _ask(_engine(language, prompts, 512), prompts, everyone)
    parted = _ask(_engine(language, prompts, 6), prompts, everyone)  # two prompts at a time
    backwards = _ask(_engine(language, prompts, 512), prompts, everyone[::-1])
    alone = _ask(_engine(language, prompts, 512), prompts, [7])
    for row in range(72):
        prompt, sample = divmod(row, 3)
        other = (23 - prompt) * 3 + sample
        assert whole.tokens[row].equal(parted.tokens[row])
        assert whole.tokens[row].equal(backwards.tokens[other])
        assert whole.finish[row] == parted.finish[row] == backwards.finish[other]
        torch.testing.assert_close(whole.log_probs[row], backwards.log_probs[other])
    for sample in range(3):
        assert alone.tokens[sample].equal(whole.tokens[21 + sample])
    assert len({tuple(tokens.tolist()) for tokens in whole.tokens[:3]}) > 1  # samples differ


def test_a_prompt_is_read_once_for_all_its_completions_and_short_ones_do_not_wait(
    language: LanguageModel, prompts: PromptDataset
) -> None:
    engine = _engine(language, prompts, 12)
    policy = engine._policy
    assert isinstance(policy, Policy)
    order = prompts.lengths.argsort()
    index = [*order[:4].tolist(), *order[-4:].tolist()]
    _ask(engine, prompts, index[::-1])
    read = [shape for shape in policy.read if shape[1] > 1]
    lengths = prompts.lengths[index].tolist()
    assert read == [(4, max(lengths[:4])), (4, max(lengths[4:]))]
    assert all(rows <= 12 for rows, width in policy.read if width == 1)


def test_nothing_asked_is_nothing_written(language: LanguageModel, prompts: PromptDataset) -> None:
    found = _ask(_engine(language, prompts, 12), prompts, [])
    assert found.tokens == found.log_probs == found.finish == []


def test_it_says_which_policy_wrote(language: LanguageModel, prompts: PromptDataset) -> None:
    engine = _engine(language, prompts, 12)
    engine.sync(5)
    assert _ask(engine, prompts, [0]).version == 5


def test_a_rank_without_prompts_keeps_the_others_company(
    language: LanguageModel, prompts: PromptDataset
) -> None:
    engine = _engine(language, prompts, 12)
    policy = engine._policy
    assert isinstance(policy, Policy)
    waits = iter([False, False, False, False, True, True])  # the others need four passes more
    policy.all_done = lambda done: next(waits)  # type: ignore[method-assign]
    assert _ask(engine, prompts, []).tokens == []
    assert len(policy.read) >= 2


def test_refuses_no_rows() -> None:
    with pytest.raises(ValueError, match="max_rows is 0; it must be above 0"):
        TransformersEngine(max_rows=0)
