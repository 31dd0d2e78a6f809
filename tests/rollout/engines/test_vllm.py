"""vLLM's engines: the weights that they send, and what they reject without vLLM being there."""

from contextlib import nullcontext
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path
from threading import Thread
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from lit_adaptive.data import Arithmetic, PromptDataset
from lit_adaptive.modules import ConfiguredLM, LoRA
from lit_adaptive.rollout import SamplingParams, VLLMEngine, VLLMServerEngine
from lit_adaptive.rollout.engines._vllm import check_probe, policy_weights, save_description

NOBODY = ["http://localhost:9", "http://127.0.0.1:9/"]


def policy(**options: Any) -> Any:
    """A tiny policy whose adapters, if any, change what it computes."""
    tokenizer = PromptDataset(Arithmetic("train", size=4, digits=1)).tokenizer
    recipe = ConfiguredLM(hidden_size=16, layers=2, heads=2, seed=0, **options)
    language = recipe.build(tokenizer).eval()
    for name, parameter in language.named_parameters():
        if "lora_B" in name:
            torch.nn.init.normal_(parameter)
    return SimpleNamespace(
        transformer=language.base,
        language=language,
        tokenizer=tokenizer,
        device=torch.device("cpu"),
        stops=lambda: [tokenizer.eos_token_id],
        suppressed_tokens=language.suppressed_tokens,
        decode=language.decode,
        decoding=nullcontext,
    )


class AnotherProgram(BaseHTTPRequestHandler):
    def do_GET(self) -> None:
        self.send_error(404)

    def log_message(self, *_: Any) -> None:
        pass


@pytest.mark.parametrize("architecture", ["llama", "gpt2"])
@pytest.mark.filterwarnings("ignore:fan_in_fan_out")
def test_a_model_of_the_weights_computes_what_the_policy_with_its_lora_does(
    architecture: str, tmp_path: Path
) -> None:
    from huggingface_hub import save_torch_state_dict
    from transformers import AutoModelForCausalLM

    adapted = policy(architecture=architecture, lora=LoRA(4))
    save_description(adapted, tmp_path)
    weights = policy_weights(adapted)
    save_torch_state_dict({name: value.clone() for name, value in weights.items()}, tmp_path)
    model: Any = AutoModelForCausalLM.from_pretrained(tmp_path).eval()
    ids = torch.arange(3, 12)[None]
    with torch.no_grad():
        logits = [each(input_ids=ids).logits for each in (model, adapted.transformer)]
        with adapted.language.model.disable_adapter():
            plain = adapted.transformer(input_ids=ids).logits
    torch.testing.assert_close(logits[0], logits[1], rtol=1e-5, atol=1e-5)
    assert not torch.allclose(logits[1], plain, atol=1e-2)


def test_without_a_server_the_error_names_the_addresses_and_the_remedy() -> None:
    engine = VLLMServerEngine(NOBODY)
    engine.attach(policy())
    with (
        pytest.warns(UserWarning, match="did not load the weights of step 3"),
        pytest.raises(RuntimeError, match=r"localhost:9: .*127.0.0.1:9: .*--ckpt_path"),
    ):
        engine.sync(3)
    engine.close()


def test_a_server_that_takes_no_weights_is_named_with_the_command_that_starts_it() -> None:
    server = HTTPServer(("localhost", 0), AnotherProgram)
    thread = Thread(target=server.serve_forever)
    thread.start()
    engine = VLLMServerEngine([f"http://localhost:{server.server_port}"])
    engine.attach(policy())
    try:
        with pytest.raises(ValueError, match="start it with VLLM_SERVER_DEV_MODE=1 vllm serve"):
            engine.sync(0)
    finally:
        engine.close()
        server.shutdown()
        thread.join()
        server.server_close()


def test_log_probs_of_another_model_or_temperature_are_rejected() -> None:
    logits = torch.randn(50, generator=torch.Generator().manual_seed(0)) * 8
    rows = [([token], [float((logits / 2).log_softmax(-1)[token])]) for token in (1, 7, 30)]
    check_probe(rows, (logits / 2).log_softmax(-1) + 0.02, "vLLM")
    with pytest.raises(RuntimeError, match="--logprobs-mode processed_logprobs"):
        check_probe(rows, logits.log_softmax(-1), "vLLM")
    with pytest.raises(RuntimeError, match="differ from the policy's by inf"):
        check_probe([([60], [-3.0])], logits.log_softmax(-1), "vLLM")


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"servers": []}, "give one or several addresses"),
        ({"servers": ["localhost:8000"]}, "such as http://localhost:8000"),
        ({"servers": NOBODY, "timeout_s": 0}, "timeout_s is 0; it must be above 0"),
    ],
)
def test_bad_options_of_servers_are_named(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        VLLMServerEngine(**options)


def test_truncated_distributions_are_rejected() -> None:
    engine = VLLMServerEngine(NOBODY)
    with pytest.raises(ValueError, match=r"top_p is 0.9, .* leave them at 1"):
        engine.generate([[1]], 2, SamplingParams(4, top_p=0.9), [0])


def test_options_that_the_engine_sets_are_named() -> None:
    with pytest.raises(ValueError, match=r"options has \['load_format'\]"):
        VLLMEngine({"load_format": "auto"})


def test_a_missing_vllm_is_named_with_its_extra(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(ModuleNotFoundError, match=r"lit-adaptive\[vllm\]"):
        VLLMEngine()


def test_several_processes_are_rejected(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("importlib.util.find_spec", lambda name: object())
    monkeypatch.setattr("torch.distributed.is_initialized", lambda: True)
    monkeypatch.setattr("torch.distributed.get_world_size", lambda: 2)
    with pytest.raises(ValueError, match="2 train: start servers"):
        VLLMEngine().attach(policy())
