"""Completions of continuous batching have the log-probabilities of the policy, in order."""

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

# The defaults would use most of the free memory.
SMALL = {"page_size": 16, "num_blocks": 64, "max_batch_tokens": 64, "use_async_batching": False}

pytestmark = pytest.mark.filterwarnings("ignore")


@pytest.fixture(scope="module")
def prompts() -> PromptDataset:
    return PromptDataset(Arithmetic("train", size=40, digits=3))


def _policy(prompts: PromptDataset, *, lora: bool = False) -> Any:
    torch.manual_seed(0)
    builder = ConfiguredLM(hidden_size=32, layers=2, heads=2, lora=LoRA(4) if lora else None)
    language: LanguageModel = builder.build(prompts.tokenizer).eval()
    for name, parameter in language.named_parameters():
        if "lora_B" in name:
            torch.nn.init.normal_(parameter)
    return SimpleNamespace(
        transformer=language.base,
        language=language,
        tokenizer=prompts.tokenizer,
        stops=lambda: stop_token_ids(prompts.tokenizer),
        suppressed_tokens=language.suppressed_tokens,
        decoding=nullcontext,
    )


def _generate(
    policy: Any, prompts: PromptDataset, index: list[int], sampling: SamplingParams, seed: int = 5
) -> Completions:
    engine = ContinuousBatchingEngine(SMALL)
    engine.attach(policy)
    engine.sync(3)
    tokens = prompts.tokens(torch.tensor(index))
    return engine.generate(tokens, 3, sampling, [seed + i for i in index])


@pytest.mark.parametrize("lora", [False, True])
@pytest.mark.parametrize("temperature", [0.8, 0.0])
def test_log_probs_are_those_of_a_full_forward_pass(
    prompts: PromptDataset, temperature: float, lora: bool
) -> None:
    policy, index = _policy(prompts, lora=lora), [0, 3, 5, 3, 8]
    completions = _generate(policy, prompts, index, SamplingParams(9, temperature=temperature))
    assert len(completions.tokens) == 15
    assert completions.version == 3
    stops = policy.stops()
    rows = zip(completions.tokens, completions.log_probs, strict=True)
    for row, (tokens, log_probs) in enumerate(rows):
        prompt = prompts.tokens(torch.tensor([index[row // 3]]))[0].long()
        logits = policy.language.model(input_ids=torch.cat([prompt, tokens])[None]).logits[0]
        full = (logits / (temperature or 1)).log_softmax(-1)[len(prompt) - 1 : -1]
        torch.testing.assert_close(
            full.gather(-1, tokens[:, None])[:, 0], log_probs, rtol=1e-3, atol=1e-4
        )
        if temperature == 0:
            assert full.argmax(-1).equal(tokens)
        assert (completions.finish[row] == "stop") == (int(tokens[-1]) in stops)
        assert not any(t in stops for t in tokens[:-1].tolist())


def test_completions_depend_on_the_seed_only(
    prompts: PromptDataset,
) -> None:
    policy = _policy(prompts)
    first, second, different = (
        [t.tolist() for t in _generate(policy, prompts, [1, 2], SamplingParams(9), seed).tokens]
        for seed in (5, 5, 6)
    )
    assert first == second
    assert first != different
    assert any(a != b for a, b in itertools.pairwise(first))


def test_completions_change_with_the_weights(prompts: PromptDataset) -> None:
    policy = _policy(prompts)
    before = _generate(policy, prompts, [1], SamplingParams(9, temperature=0.0))
    with torch.no_grad():
        for parameter in policy.transformer.parameters():
            parameter.add_(0.3 * torch.randn_like(parameter))
    after = _generate(policy, prompts, [1], SamplingParams(9, temperature=0.0))
    assert before.tokens[0].tolist() != after.tokens[0].tolist()


def test_truncated_distributions_are_rejected(prompts: PromptDataset) -> None:
    policy = _policy(prompts)
    with pytest.raises(ValueError, match=r"top_p is 0.9, top_k 0, .* leave them at 1"):
        _generate(policy, prompts, [1], SamplingParams(9, top_p=0.9))


@pytest.mark.parametrize(
    ("options", "message"),
    [({"seed": 3}, r"options has \['seed'\]"), ({"pages": 3}, r"does not take: .*pages")],
)
def test_unknown_and_reserved_options_are_named(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        ContinuousBatchingEngine(options)


def test_a_sharded_model_is_rejected() -> None:
    sharded = SimpleNamespace(parameters=lambda: [SimpleNamespace(full_tensor=None)])
    with pytest.raises(ValueError, match="the model is sharded"):
        ContinuousBatchingEngine().attach(SimpleNamespace(transformer=sharded))  # type: ignore[arg-type]


def test_without_prompts_there_are_no_completions(prompts: PromptDataset) -> None:
    engine = ContinuousBatchingEngine(SMALL)
    engine.attach(_policy(prompts))
    assert engine.generate([], 3, SamplingParams(9), []).tokens == []


def test_ids_that_no_token_has_are_never_drawn(prompts: PromptDataset) -> None:
    size = len(prompts.tokenizer)
    options = {"vocab_size": 2 * size}
    language = ConfiguredLM(hidden_size=32, layers=1, heads=2, seed=0, options=options).build(
        prompts.tokenizer
    )
    policy = _policy(prompts)
    policy.transformer, policy.language = language.base, language
    policy.suppressed_tokens = language.suppressed_tokens
    completions = _generate(policy, prompts, [0, 3, 5], SamplingParams(9))
    tokens = torch.cat(completions.tokens)
    assert len(tokens) > 20
    assert int(tokens.max()) < size
    prompt, first = prompts.tokens(torch.tensor([0]))[0].long(), completions.tokens[0]
    ids = torch.cat([prompt, first])[None]
    position = torch.arange(len(prompt) - 1, ids.shape[1] - 1)
    with torch.no_grad():
        scores, _ = language.eval()(ids, torch.arange(ids.shape[1])[None], position, first)
    torch.testing.assert_close(completions.log_probs[0], scores.log_prob, rtol=1e-3, atol=1e-3)
