"""A reward model returns the network's outputs; an untrained head is rejected."""

from pathlib import Path
from typing import Any

import pytest
import torch

from lit_adaptive.rollout.models.tokenizers import character_tokenizer
from lit_adaptive.rollout.rewards.pool import RewardPool
from lit_adaptive.rollout.rewards.reward_model import RewardModel
from lit_adaptive.rollout.rewards.scorer import Scorer

PROMPTS = ["1+1=", "12+3=", "7-5=", "99-1=", "2="]
COMPLETIONS = ["2", "15 or so, I think", "2", "", "2" * 30]


def save_model(folder: Path, *, labels: int = 1, head: bool = True) -> Path:
    from transformers import LlamaConfig, LlamaForCausalLM, LlamaForSequenceClassification

    tokenizer = character_tokenizer()
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=len(tokenizer),
        hidden_size=16,
        intermediate_size=16,
        num_hidden_layers=2,
        num_attention_heads=2,
        num_labels=labels,
        pad_token_id=tokenizer.pad_token_id,
    )
    model = LlamaForSequenceClassification(config) if head else LlamaForCausalLM(config)
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_model(tmp_path_factory.mktemp("reward"))


def unpadded_outputs(folder: Path, texts: list[str], **tokenizing: Any) -> torch.Tensor:
    """Outputs of the network for one text at a time."""
    from transformers import AutoModelForSequenceClassification, AutoTokenizer

    model = AutoModelForSequenceClassification.from_pretrained(folder)
    tokenizer = AutoTokenizer.from_pretrained(folder)
    with torch.no_grad():
        return torch.cat(
            [model(**tokenizer(t, return_tensors="pt", **tokenizing)).logits for t in texts]
        )


@pytest.mark.parametrize("batch_size", [1, 2, 100])
def test_the_reward_is_the_networks_output_for_prompt_and_completion(
    folder: Path, batch_size: int
) -> None:
    rewards = RewardModel(str(folder), batch_size=batch_size)(PROMPTS, COMPLETIONS)
    expected = unpadded_outputs(folder, [p + c for p, c in zip(PROMPTS, COMPLETIONS, strict=True)])[
        :, 0
    ]
    torch.testing.assert_close(torch.tensor(rewards), expected)
    assert len(set(rewards)) == 5
    assert RewardModel(str(folder))([], []) == []


def test_padding_does_not_change_the_output_of_a_bidirectional_model(tmp_path: Path) -> None:
    from transformers import BertConfig, BertForSequenceClassification

    tokenizer = character_tokenizer()
    torch.manual_seed(0)
    config = BertConfig(
        vocab_size=len(tokenizer),
        hidden_size=16,
        intermediate_size=16,
        num_hidden_layers=2,
        num_attention_heads=2,
        num_labels=1,
        initializer_range=0.5,
    )
    BertForSequenceClassification(config).save_pretrained(tmp_path)
    tokenizer.save_pretrained(tmp_path)
    rewards = RewardModel(str(tmp_path))(PROMPTS, COMPLETIONS)
    expected = unpadded_outputs(
        tmp_path,
        [p + c for p, c in zip(PROMPTS, COMPLETIONS, strict=True)],
        return_token_type_ids=False,
    )
    torch.testing.assert_close(torch.tensor(rewards), expected[:, 0])


def test_with_several_classes_the_reward_is_the_log_probability_of_the_label(
    tmp_path: Path,
) -> None:
    folder = save_model(tmp_path, labels=3)
    texts = [p + c for p, c in zip(PROMPTS, COMPLETIONS, strict=True)]
    expected = unpadded_outputs(folder, texts).log_softmax(-1)[:, 1]
    for label in (1, "LABEL_1"):
        rewards = RewardModel(str(folder), label=label)(PROMPTS, COMPLETIONS)
        torch.testing.assert_close(torch.tensor(rewards), expected)


@pytest.mark.parametrize("label", [None, 3, "good"])
def test_an_unknown_label_is_rejected_with_the_classes(label: Any, tmp_path: Path) -> None:
    folder = save_model(tmp_path, labels=3)
    with pytest.raises(ValueError, match=r"label is .*LABEL_2"):
        RewardModel(str(folder), label=label)(PROMPTS, COMPLETIONS)


def test_a_long_text_loses_its_beginning(folder: Path) -> None:
    rewards = RewardModel(str(folder), max_length=4)(["123456"], ["789"])
    expected = unpadded_outputs(folder, ["6789"], add_special_tokens=False)[:, 0]
    torch.testing.assert_close(torch.tensor(rewards), expected)


def test_a_chat_is_rendered_with_the_tokenizers_template(folder: Path) -> None:
    from transformers import AutoTokenizer

    reward = RewardModel(str(folder), chat=True)
    tokenizer = AutoTokenizer.from_pretrained(folder)
    if tokenizer.chat_template is None:
        with pytest.raises(ValueError, match="no chat template; set chat: false"):
            reward(["1"], ["2"])
    _, tokenizer, _ = reward._model()
    tokenizer.chat_template = (
        "{% for m in messages %}{{ m['role'][0] }}:{{ m['content'] }};{% endfor %}"
    )
    expected = unpadded_outputs(folder, ["u:1+1;a:2;"], add_special_tokens=False)[:, 0]
    torch.testing.assert_close(torch.tensor(reward(["1+1"], ["2"])), expected)


def test_the_model_is_loaded_at_the_first_call_and_has_no_gradients(folder: Path) -> None:
    reward = RewardModel(str(folder))
    assert reward._loaded is None
    with Scorer([reward]) as scorer:
        assert scorer.names == ("reward_model",)
        first = scorer(PROMPTS, COMPLETIONS)
        model = reward._model()[0]
        assert not first.reward.requires_grad
        assert not any(p.requires_grad for p in model.parameters())
        assert not model.training
        assert scorer(PROMPTS, COMPLETIONS).reward.equal(first.reward)
        assert reward._model()[0] is model
    assert RewardPool(reward).in_process


def test_a_model_without_a_trained_head_is_rejected(tmp_path: Path) -> None:
    folder = save_model(tmp_path, head=False)
    with pytest.raises(ValueError, match=r"no weights for .*score.weight.*would be random"):
        RewardModel(str(folder))(PROMPTS, COMPLETIONS)


def test_a_folder_without_a_model_is_named(tmp_path: Path) -> None:
    (tmp_path / "here").mkdir()
    with pytest.raises(ValueError, match="here"):
        RewardModel(str(tmp_path / "here"))(PROMPTS, COMPLETIONS)


@pytest.mark.parametrize("arguments", [{"batch_size": 0}, {"max_length": 0}])
def test_sizes_must_be_positive(arguments: dict[str, int]) -> None:
    with pytest.raises(ValueError, match="is 0; it must be at least 1"):
        RewardModel("x", **arguments)  # type: ignore[arg-type]
