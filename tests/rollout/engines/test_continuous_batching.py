"""Continuous batching: what it writes has the log-probabilities of the policy, in order."""

import itertools
from contextlib import nullcontext
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from lit_adaptive.data import Arithmetic, PromptDataset
from lit_adaptive.modules import ConfiguredLM, LanguageModel, LoRA
from lit_adaptive.rollout.engines.continuous_batching import ContinuousBatchingEngine
from lit_adaptive.rollout.generation import Completions, SamplingParams
from lit_adaptive.rollout.models.tokenizers import stop_token_ids

# The defaults are sized by the memory that is free: on a CPU, by most of the machine's.
SMALL = {"page_size": 16, "num_blocks": 64, "max_batch_tokens": 64, "use_async_batching": False}

pytestmark = pytest.mark.filterwarnings("ignore")


@pytest.fixture(scope="module")
def prompts() -> PromptDataset:
    return PromptDataset(Arithmetic("train", size=40, digits=3))


def _policy(prompts: PromptDataset, *, lora: bool = False) -> Any:
    torch.manual_seed(0)
    recipe = ConfiguredLM(hidden_size=32, layers=2, heads=2, lora=LoRA(4) if lora else None)
    language: LanguageModel = recipe.build(prompts.tokenizer).eval()
    for name, each in language.named_parameters():
        if "lora_B" in name:
            torch.nn.init.normal_(each)
    return SimpleNamespace(
        transformer=language.base,
        language=language,
        tokenizer=prompts.tokenizer,
        stops=lambda: stop_token_ids(prompts.tokenizer),
        decoding=nullcontext,
    )


def _ask(
    policy: Any, prompts: PromptDataset, index: list[int], sampling: SamplingParams, seed: int = 5
) -> Completions:
    engine = ContinuousBatchingEngine(SMALL)
    engine.attach(policy)
    engine.sync(3)
    asked = prompts.tokens(torch.tensor(index))
    return engine.generate(asked, 3, sampling, [seed + i for i in index])


@pytest.mark.parametrize("lora", [False, True])
@pytest.mark.parametrize("temperature", [0.8, 0.0])
def test_log_probs_are_those_of_a_full_forward_pass(
    prompts: PromptDataset, temperature: float, lora: bool
) -> None:
    policy, index = _policy(prompts, lora=lora), [0, 3, 5, 3, 8]
    found = _ask(policy, prompts, index, SamplingParams(9, temperature=temperature))
    assert len(found.tokens) == 15
    assert found.version == 3
    stops = policy.stops()
    for row, (tokens, log_probs) in enumerate(zip(found.tokens, found.log_probs, strict=True)):
        prompt = prompts.tokens(torch.tensor([index[row // 3]]))[0].long()
        logits = policy.language.model(input_ids=torch.cat([prompt, tokens])[None]).logits[0]
        law = (logits / (temperature or 1)).log_softmax(-1)[len(prompt) - 1 : -1]
        torch.testing.assert_close(
            law.gather(-1, tokens[:, None])[:, 0], log_probs, rtol=1e-3, atol=1e-4
        )
        if temperature == 0:
            assert law.argmax(-1).equal(tokens)
        assert (found.finish[row] == "stop") == (int(tokens[-1]) in stops)
        assert not any(t in stops for t in tokens[:-1].tolist())


def test_the_same_request_is_answered_alike_and_another_seed_differently(
    prompts: PromptDataset,
) -> None:
    policy = _policy(prompts)
    one, again, other = (
        [t.tolist() for t in _ask(policy, prompts, [1, 2], SamplingParams(9), seed).tokens]
        for seed in (5, 5, 6)
    )
    assert one == again
    assert one != other
    assert any(a != b for a, b in itertools.pairwise(one))


def test_it_follows_the_weights(prompts: PromptDataset) -> None:
    policy = _policy(prompts)
    before = _ask(policy, prompts, [1], SamplingParams(9, temperature=0.0))
    with torch.no_grad():
        for each in policy.transformer.parameters():
            each.add_(0.3 * torch.randn_like(each))
    after = _ask(policy, prompts, [1], SamplingParams(9, temperature=0.0))
    assert before.tokens[0].tolist() != after.tokens[0].tolist()


def test_what_it_cannot_do_is_refused(prompts: PromptDataset) -> None:
    policy = _policy(prompts)
    with pytest.raises(ValueError, match=r"top_p is 0.9 and top_k 0; .* leave them at 1"):
        _ask(policy, prompts, [1], SamplingParams(9, top_p=0.9))
    with pytest.raises(ValueError, match=r"options has \['seed'\]"):
        ContinuousBatchingEngine({"seed": 3})
    with pytest.raises(ValueError, match=r"does not take: .*pages"):
        ContinuousBatchingEngine({"pages": 3})
    sharded = SimpleNamespace(parameters=lambda: [SimpleNamespace(full_tensor=None)])
    with pytest.raises(ValueError, match="the model is sharded"):
        ContinuousBatchingEngine().attach(SimpleNamespace(transformer=sharded))  # type: ignore[arg-type]


def test_no_prompts_no_completions(prompts: PromptDataset) -> None:
    engine = ContinuousBatchingEngine(SMALL)
    engine.attach(_policy(prompts))
    assert engine.generate([], 3, SamplingParams(9), []).tokens == []
