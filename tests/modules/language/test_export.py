"""An exported folder is the module's model: to transformers, to peft, merged, and in bfloat16."""

from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from tiny_language import TINY, demonstrations, fit
from torch import Tensor
from transformers import AutoModelForCausalLM, AutoTokenizer

from lit_adaptive.cli.main import main
from lit_adaptive.data import DemonstrationDataset, DemonstrationsDataModule
from lit_adaptive.modules import DQN, IWSFT, ConfiguredLM, LoRA, Optimization, PretrainedLM
from lit_adaptive.rollout.generation import SamplingParams
from lit_adaptive.rollout.models.pretrained import load_tokenizer

pytestmark = [
    pytest.mark.filterwarnings("ignore:`isinstance"),
    pytest.mark.filterwarnings("ignore:You defined a `validation_step`"),
    pytest.mark.filterwarnings("ignore:.*does not have many workers"),
    pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing` is deprecated"),  # in peft
]
FAST = Optimization(learning_rate=1e-2)
PROMPTS = ["3+3=", "12+12=", "7"]


def trained(folder: Path, recipe: Any, data: Any = None) -> tuple[IWSFT, str]:
    """A module after some steps, and its checkpoint."""
    module = IWSFT(recipe, objective="nll", optimization=FAST, max_new_tokens=8)
    trainer = fit(module, data or demonstrations(), max_epochs=4)
    path = folder / "trained.ckpt"
    trainer.save_checkpoint(path)
    return module, str(path)


def base_folder(folder: Path, *, tied: bool = True) -> str:
    """A model of transformers with a tokenizer, in a folder."""
    tokenizer = load_tokenizer("characters")
    model = ConfiguredLM(**TINY, options={"tie_word_embeddings": tied}).build(tokenizer).model
    for part in (model, tokenizer):
        part.save_pretrained(folder / "base")
    return str(folder / "base")


def logits_of(model: Any, tokenizer: Any) -> Tensor:
    ids = tokenizer("12+34=46\nabc", return_tensors="pt").input_ids
    with torch.no_grad():
        logits: Tensor = model.eval()(input_ids=ids).logits
    return logits


def module_completions(module: IWSFT) -> list[list[int]]:
    sampling, rows = SamplingParams(8, temperature=0.0), []
    for prompt in PROMPTS:
        ids = module.tokenizer(prompt, return_tensors="pt").input_ids
        rows.append(module.generate(ids, ids > -1, sampling).tokens[0].tolist())
    return rows


def exported_completions(model: Any, tokenizer: Any) -> list[list[int]]:
    rows = []
    for prompt in PROMPTS:
        ids = tokenizer(prompt, return_tensors="pt").input_ids
        out = model.generate(ids, attention_mask=ids > -1, max_new_tokens=8, do_sample=False)
        rows.append(out[0, ids.shape[1] :].tolist())
    return rows


@pytest.mark.parametrize("tied", [True, False])
@pytest.mark.parametrize("architecture", ["llama", "gpt2"])
def test_logits_and_greedy_completions_are_the_modules(
    tmp_path: Path, architecture: str, tied: bool
) -> None:
    options = {"tie_word_embeddings": tied, "vocab_size": 120}  # 20 ids that no token has
    module, path = trained(tmp_path, ConfiguredLM(architecture, **TINY, options=options))
    main(["export", path, str(tmp_path / "out")])
    model = AutoModelForCausalLM.from_pretrained(tmp_path / "out")
    tokenizer: Any = AutoTokenizer.from_pretrained(tmp_path / "out")
    expected = logits_of(module.policy.base, module.tokenizer)
    torch.testing.assert_close(logits_of(model, tokenizer), expected, rtol=0, atol=1e-5)
    completions = module_completions(module)
    assert exported_completions(model, tokenizer) == completions
    assert any(row[-1] == tokenizer.eos_token_id for row in completions)
    text = "a b\n\t 12<eos>~é"
    assert tokenizer(text).input_ids == module.tokenizer(text).input_ids
    saved = load_file(tmp_path / "out" / "model.safetensors")
    assert any("lm_head" in name for name in saved) != tied


def test_an_adapter_is_what_peft_loads_and_merged_is_equal(tmp_path: Path) -> None:
    from peft import AutoPeftModelForCausalLM

    recipe = PretrainedLM(base_folder(tmp_path), lora=LoRA(4, alpha=16))
    module, path = trained(tmp_path, recipe)
    main(["export", path, str(tmp_path / "adapter")])
    main(["export", path, str(tmp_path / "merged"), "--merge"])
    tokenizer: Any = AutoTokenizer.from_pretrained(tmp_path / "adapter")
    expected = logits_of(module.policy.model, tokenizer)
    without = AutoModelForCausalLM.from_pretrained(tmp_path / "base")
    assert (logits_of(without, tokenizer) - expected).abs().max() > 0.1  # the adapter matters
    assert not (tmp_path / "adapter" / "model.safetensors").exists()
    adapter = AutoPeftModelForCausalLM.from_pretrained(tmp_path / "adapter")
    merged = AutoModelForCausalLM.from_pretrained(tmp_path / "merged")
    for model in (adapter, merged):
        torch.testing.assert_close(logits_of(model, tokenizer), expected, rtol=0, atol=1e-5)
        assert exported_completions(model, tokenizer) == module_completions(module)


def test_an_adapter_of_added_tokens_is_merged(tmp_path: Path) -> None:
    lora = LoRA(4, targets=["embed_tokens"])
    base = base_folder(tmp_path, tied=False)
    recipe = PretrainedLM(base, resize_embeddings=True, lora=lora)
    tokenizer = load_tokenizer("characters")
    tokenizer.add_tokens(["<sum>"])
    rows = [{"prompt": f"<sum>{i}+{i}=", "completion": str(2 * i)} for i in range(16)]
    data = DemonstrationsDataModule(DemonstrationDataset(rows, tokenizer), batch_size=4)
    module, path = trained(tmp_path, recipe, data)
    with pytest.raises(SystemExit):
        main(["export", path, str(tmp_path / "out")])  # peft would not find rows for the token
    torch.manual_seed(99)
    main(["export", path, str(tmp_path / "out"), "--merge"])
    model: Any = AutoModelForCausalLM.from_pretrained(tmp_path / "out")
    ids = tokenizer("<sum>1+1=", return_tensors="pt").input_ids
    assert int(ids[0, 0]) == 100
    with torch.no_grad():
        logits = [each.eval()(input_ids=ids).logits for each in (model, module.policy.model)]
    torch.testing.assert_close(*logits, rtol=0, atol=1e-5)


def test_bfloat16_is_the_rounded_model(tmp_path: Path) -> None:
    recipe = PretrainedLM(base_folder(tmp_path), lora=LoRA(4))
    module, path = trained(tmp_path, recipe)
    main(["export", path, str(tmp_path / "out"), "--merge", "--dtype", "bfloat16"])
    model: Any = AutoModelForCausalLM.from_pretrained(tmp_path / "out")
    assert model.dtype == torch.bfloat16
    merged = module.policy.model.merge_and_unload().state_dict()  # before rounding
    for name, weight in load_file(tmp_path / "out" / "model.safetensors").items():
        assert torch.equal(weight, merged[name].bfloat16()), name


def test_the_end_of_a_turn_ends_completions_and_the_template_is_there(tmp_path: Path) -> None:
    tokenizer = load_tokenizer("characters")
    tokenizer.add_special_tokens({"additional_special_tokens": ["<end>"]})
    tokenizer.chat_template = (
        "{% for m in messages %}{{ m.role[0] }}:{{ m.content }}<end>{% endfor %}"
        "{% if add_generation_prompt %}a:{% endif %}"
    )
    rows = [{"prompt": f"{i}+{i}=", "completion": str(2 * i)} for i in range(16)]
    data = DemonstrationDataset(rows, tokenizer, chat=True)
    _, path = trained(tmp_path, ConfiguredLM(**TINY), DemonstrationsDataModule(data, batch_size=4))
    main(["export", path, str(tmp_path / "out")])
    model: Any = AutoModelForCausalLM.from_pretrained(tmp_path / "out")
    again: Any = AutoTokenizer.from_pretrained(tmp_path / "out")
    end = tokenizer.convert_tokens_to_ids("<end>")
    assert model.generation_config.eos_token_id == [2, end]
    messages = [{"role": "user", "content": "5+5="}]
    prompts = [
        each.apply_chat_template(messages, add_generation_prompt=True, tokenize=False)
        for each in (tokenizer, again)
    ]
    assert prompts[0] == prompts[1] == "u:5+5=<end>a:"
    ids = again(prompts[1], return_tensors="pt").input_ids
    out = model.generate(ids, attention_mask=ids > -1, max_new_tokens=20, do_sample=False)
    assert out[0, -1] == end


# Bad input ------------------------------------------------------------------------------------


def dqn_checkpoint(folder: Path) -> str:
    module = DQN(observation_shape=[4], num_actions=2)
    module.configure_model()
    state = {"state_dict": module.state_dict(), "hyper_parameters": dict(module.hparams)}
    torch.save(state, folder / "dqn.ckpt")
    return str(folder / "dqn.ckpt")


def test_what_cannot_be_exported_is_an_error_with_a_remedy(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    def error(*arguments: str) -> str:
        with pytest.raises(SystemExit):
            main(["export", *arguments])
        return " ".join(capsys.readouterr().err.split())

    _, path = trained(tmp_path, ConfiguredLM(**TINY, lora=LoRA(4)))
    new = str(tmp_path / "new")
    assert "which is not an empty folder: give a new one" in error(path, str(tmp_path))
    assert "set merge (--merge)" in error(path, new)
    assert "no language model (its weights: q_net, target_net)" in error(
        dqn_checkpoint(tmp_path), new
    )
    assert "does not exist" in error(str(tmp_path / "none.ckpt"), new)
    (tmp_path / "text.ckpt").write_text("no checkpoint")
    assert "is not a checkpoint" in error(str(tmp_path / "text.ckpt"), new)
    torch.save({"weights": torch.ones(2)}, tmp_path / "foreign.ckpt")
    assert "has no 'state_dict'" in error(str(tmp_path / "foreign.ckpt"), new)
    (tmp_path / "shards").mkdir()
    assert "is not a checkpoint" in error(str(tmp_path / "shards"), new)
    _, path = trained(tmp_path, ConfiguredLM(**TINY))
    assert "no LoRA to merge" in error(path, new, "--merge")
    assert "bfloat16" in error(path, new, "--dtype", "int8")
    assert not Path(new).exists()


def test_a_hostile_checkpoint_imports_nothing_and_writes_nowhere_else(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    _, path = trained(tmp_path, ConfiguredLM(**TINY))
    for key, value, message in (
        ("hyper_parameters", {"model": {"class_path": "antigravity.Fly"}}, "not been imported"),
        ("tokenizer", {"../outside.json": b"{}"}, "outside of its folder"),
    ):
        checkpoint = torch.load(path, weights_only=True) | {key: value}
        torch.save(checkpoint, tmp_path / "hostile.ckpt")
        with pytest.raises(SystemExit):
            main(["export", str(tmp_path / "hostile.ckpt"), str(tmp_path / "new")])
        assert message in capsys.readouterr().err
