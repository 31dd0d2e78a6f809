"""Tokens added to a pretrained model's vocabulary: one token each, learned, saved and resumed."""

from pathlib import Path
from typing import Any

import pytest
import torch
from quiet_trainer import quiet_trainer
from tiny_language import TINY, fit

from lit_adaptive.cli.main import main
from lit_adaptive.data import (
    DemonstrationDataset,
    DemonstrationsDataModule,
    PromptDataset,
    RolloutDataModule,
)
from lit_adaptive.modules import GRPO, IWSFT, ConfiguredLM, LoRA, Optimization, PretrainedLM
from lit_adaptive.rollout.generation import SamplingParams
from lit_adaptive.rollout.models.pretrained import load_tokenizer

pytestmark = [
    pytest.mark.filterwarnings("ignore:`isinstance"),
    pytest.mark.filterwarnings("ignore:You defined a `validation_step`"),
]

TOKENS = ["<think>", "</think>"]
ROWS = [{"prompt": f"{i}+{i}=", "completion": f"<think>{i}</think>{2 * i}"} for i in range(16)]


@pytest.fixture(scope="module")
def pretrained(tmp_path_factory: pytest.TempPathFactory) -> str:
    """Folder of a model and its tokenizer, which knows none of ``TOKENS``."""
    folder = tmp_path_factory.mktemp("pretrained")
    return save(folder)


def save(folder: Path, **options: Any) -> str:
    tokenizer = load_tokenizer("characters")
    language = ConfiguredLM(**TINY, options=options).build(tokenizer)
    language.model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return str(folder)


def data(folder: str, **options: Any) -> DemonstrationsDataModule:
    options = {"added_tokens": TOKENS} | options
    return DemonstrationsDataModule(
        DemonstrationDataset(ROWS, tokenizer=folder, **options), batch_size=4, seed=1
    )


def module(folder: str, **options: Any) -> IWSFT:
    recipe = PretrainedLM(folder, **{"resize_embeddings": True} | options)
    optimization = Optimization(learning_rate=0.01)
    return IWSFT(recipe, objective="nll", optimization=optimization, max_new_tokens=6)


def test_each_is_one_token_that_completions_keep(pretrained: str) -> None:
    dataset = DemonstrationDataset(ROWS[1:2], tokenizer=pretrained, added_tokens=TOKENS)
    tokenizer = dataset.tokenizer
    ids = dataset.gather(torch.tensor([0]))["input_ids"][0].tolist()
    new = tokenizer.convert_tokens_to_ids(TOKENS)
    assert new == [100, 101]
    assert [token for token in ids if token >= 100] == new
    assert tokenizer.decode([*new], skip_special_tokens=True) == "<think></think>"
    assert len(load_tokenizer(pretrained)) == 100


@pytest.mark.parametrize("tied", [True, False])
def test_their_rows_start_at_the_mean_and_are_learned(tmp_path: Path, tied: bool) -> None:
    folder = save(tmp_path, tie_word_embeddings=tied)
    before = PretrainedLM(folder).build(load_tokenizer(folder)).base.get_input_embeddings().weight
    trained = module(folder)
    trainer = fit(trained, data(folder), max_steps=1)
    dataset = trainer.datamodule.dataset
    start = PretrainedLM(folder, resize_embeddings=True).build(dataset.tokenizer)
    for embedding in (start.base.get_input_embeddings(), start.base.get_output_embeddings()):
        assert embedding.weight.shape[0] == 102
    rows = start.base.get_input_embeddings().weight
    assert torch.equal(rows[:100], before)
    torch.testing.assert_close(rows[100:], before.mean(0).expand(2, -1), rtol=0, atol=1e-3)
    for name in ("get_input_embeddings", "get_output_embeddings"):
        moved = getattr(trained.policy.base, name)().weight - getattr(start.base, name)().weight
        assert bool((moved[100:].abs().amax(1) > 0.001).all())


def test_a_resumed_run_ends_as_the_uninterrupted_one(pretrained: str, tmp_path: Path) -> None:
    whole = module(pretrained)
    fit(whole, data(pretrained), max_steps=4)
    trainer = fit(module(pretrained), data(pretrained), max_steps=2)
    trainer.save_checkpoint(path := tmp_path / "two.ckpt")
    resumed = module(pretrained)
    quiet_trainer(max_steps=4).fit(resumed, data(pretrained), ckpt_path=path)
    for name, value in whole.policy.state_dict().items():
        assert torch.equal(value, resumed.policy.state_dict()[name]), name
    # The same weights without the tokens are those of another model.
    plain = [{"prompt": "1+1=", "completion": "2"}]
    other = DemonstrationsDataModule(DemonstrationDataset(plain, tokenizer=pretrained))
    smaller = IWSFT(PretrainedLM(pretrained), objective="nll", weights=str(path))
    with pytest.raises(ValueError, match="vocab_size is 100, there 102"):
        fit(smaller, other)


def test_a_policy_and_its_frozen_reference_start_equal(pretrained: str) -> None:
    recipe = PretrainedLM(pretrained, resize_embeddings=True)
    policy = IWSFT(recipe, objective="asft", reference="frozen", max_new_tokens=0)
    fit(policy, data(pretrained), max_steps=0)
    (frozen,) = policy._frozen
    for name, value in policy.policy.state_dict().items():
        assert torch.equal(value, frozen.state_dict()[name]), name


def test_rollouts_of_a_resized_model_are_trained_on(pretrained: str) -> None:
    rows = [{"prompt": "<think>1+1=", "answer": "2"}] * 4
    prompts = PromptDataset(rows, tokenizer=pretrained, added_tokens=TOKENS, columns=["answer"])
    assert int(prompts.prompt_lengths.max()) == 5
    rollouts = RolloutDataModule(prompts, batch_size=2, group_size=4, sampling=SamplingParams(4))
    policy = GRPO(PretrainedLM(pretrained, resize_embeddings=True), max_new_tokens=4)
    fit(policy, rollouts, max_steps=1)


def test_new_tokens_without_resizing_are_refused_with_the_remedy(pretrained: str) -> None:
    with pytest.raises(ValueError, match=r"102 tokens, the model embeds 100.*resize_embeddings"):
        fit(module(pretrained, resize_embeddings=False), data(pretrained))


def test_embeddings_that_lora_freezes_are_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="resize_embeddings is true, but lora freezes"):
        PretrainedLM("smollm2", resize_embeddings=True, lora=LoRA(4))
    padded = save(tmp_path, vocab_size=128)  # has rows to spare, so nothing is resized
    with pytest.raises(ValueError, match=r"added_tokens of dataset are .* but lora freezes"):
        fit(module(padded, resize_embeddings=False, lora=LoRA(4)), data(padded))
    untied = save(tmp_path / "untied", tie_word_embeddings=False)
    lora = LoRA(4, targets=["embed_tokens", "q_proj"])
    fit(module(untied, lora=lora), data(untied), max_steps=1)


@pytest.mark.parametrize("tokens", ["<think>", ["<think>", ""]])
def test_what_is_no_list_of_texts_is_refused(pretrained: str, tokens: Any) -> None:
    with pytest.raises(ValueError, match=r"added_tokens is .*must be a list of texts"):
        DemonstrationDataset(ROWS, tokenizer=pretrained, added_tokens=tokens)


def test_validation_without_them_is_refused(pretrained: str) -> None:
    both = [DemonstrationDataset(ROWS, tokenizer=pretrained, added_tokens=t) for t in (TOKENS, ())]
    with pytest.raises(ValueError, match="the same `tokenizer`, `chat_template` and `added_tokens"):
        DemonstrationsDataModule(both[0], val_dataset=both[1])


def test_they_are_options_of_the_command_line(pretrained: str, tmp_path: Path) -> None:
    rows = tmp_path / "rows.csv"
    rows.write_text("prompt,completion\n" + "".join(f"{i},<think>{i}\n" for i in range(8)))
    command = [
        *("fit", "--model=lit_adaptive.modules.IWSFT", "--model.objective=nll"),
        *("--model.model=lit_adaptive.modules.PretrainedLM", f"--model.model.name={pretrained}"),
        *("--model.model.resize_embeddings=true", "--model.max_new_tokens=0"),
        *("--data=lit_adaptive.data.DemonstrationsDataModule", f"--data.dataset.source={rows}"),
        *(f"--data.dataset.tokenizer={pretrained}", "--data.dataset.added_tokens=['<think>']"),
        *("--data.batch_size=4", "--trainer.max_steps=1", "--trainer.accelerator=cpu"),
        *("--trainer.logger=false", f"--runs={tmp_path}", "--trainer.enable_progress_bar=false"),
    ]
    main(command)
