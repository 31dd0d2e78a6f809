"""vLLM in the training process: its own copy of the weights, loaded again after each step.

Where this departs from the interface of ``Engine``:
  1. A prompt's completions depend on the other prompts by rounding: vLLM computes with whichever
     are ready. With ``dtype: float32`` and equal requests they repeat.
  2. vLLM computes with its own kernels: set ``mismatch`` in the objective (``truncate`` or
     ``mask``) to correct the difference between its probabilities and the trainer's.
"""

import importlib
import importlib.util
import json
import os
import sys
import tempfile
from collections.abc import Generator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

from lit_adaptive.rollout.engines.base import Engine, Policy, check_untruncated
from lit_adaptive.rollout.generation import Completions, SamplingParams
from lit_adaptive.rollout.models.pretrained import transformers_quiet

LOG_PROBS_MODE = "processed_logprobs"
"""vLLM's name of log-probabilities at the sampling temperature."""

_PROBES, _PROBE_TEMPERATURE, _PROBE_BOUND = 8, 2.0, 0.5
_HANDLE = "llvmlite.binding.ffi"
_RESERVED = {"model", "tokenizer", "load_format", "logprobs_mode", "hf_overrides"}


class VLLMEngine(Engine):
    """Generates with ``vllm.LLM`` in this process, on one device, beside the policy.

    The model is built at the first request, from the policy's own config and tokenizer; weights go
    through vLLM's loader, those of a LoRA merged. With ``enable_sleep_mode`` in ``options`` (GPU)
    vLLM gives its memory back while the policy trains.

    Args:
        options: arguments of ``vllm.LLM``, such as ``max_model_len``, ``gpu_memory_utilization`` or
            ``dtype`` (by default that of the policy's weights).

    Raises:
        ModuleNotFoundError: if vLLM is not installed.
        ValueError: if the engine sets an option itself.
    """

    def __init__(self, options: dict[str, Any] | None = None) -> None:
        super().__init__()
        self.options = dict(options or {})
        if reserved := sorted(_RESERVED & {*self.options}):
            raise ValueError(f"options has {reserved}, which the engine sets; leave them out")
        if importlib.util.find_spec("vllm") is None:
            raise ModuleNotFoundError(
                "VLLMEngine needs the package `vllm`: pip install 'lit-adaptive[vllm]', or on a "
                "CPU bash benchmarks/vllm_environment.sh FOLDER. VLLMServerEngine does not need "
                "it here"
            )
        self._llm: Any = None
        self._folder: tempfile.TemporaryDirectory[str] | None = None
        self._loaded = False

    def attach(self, policy: Policy) -> None:
        """See ``Engine``.

        Raises:
            ValueError: if several processes train.
        """
        if dist.is_initialized() and dist.get_world_size() > 1:
            raise ValueError(
                f"VLLMEngine runs in one process, but {dist.get_world_size()} train: start servers "
                "and use lit_adaptive.rollout.VLLMServerEngine"
            )
        super().attach(policy)

    def sync(self, version: int) -> None:
        """See ``Engine``; the weights are loaded at the next request."""
        super().sync(version)
        self._loaded = False

    def generate(
        self,
        prompts: Sequence[Sequence[int] | Tensor],
        samples: int,
        sampling: SamplingParams,
        seeds: Sequence[int],
    ) -> Completions:
        """See ``Engine``.

        Raises:
            ValueError: if ``sampling`` would change the distribution otherwise than by temperature.
            RuntimeError: if vLLM's probabilities are not the policy's.
        """
        check_untruncated(sampling, "vLLM")
        if len(prompts) == 0:
            return Completions([], [], [], self.version)
        self._load()
        distinct = samples if sampling.temperature > 0 else 1  # greedy completions are all equal
        options = sampling_options(self.policy, distinct, sampling)
        rows = self._request([torch.as_tensor(p).tolist() for p in prompts], options, seeds)
        if "enable_sleep_mode" in self.options:
            self._llm.sleep(level=1)
        return as_completions(
            [row for row in rows for _ in range(samples // distinct)],
            self.policy.stops(),
            self.version,
        )

    def close(self) -> None:
        """Free the model and its memory; the next request builds it again."""
        if self._llm is None:
            return
        self._llm.llm_engine.engine_core.shutdown()
        self._llm = None
        _vllm("vllm.distributed").cleanup_dist_env_and_memory()
        if self._folder is not None:
            self._folder.cleanup()

    def _request(
        self, prompts: list[list[int]], options: dict[str, Any], seeds: Sequence[int]
    ) -> list[tuple[list[int], list[float]]]:
        """Tokens and log-probabilities of each completion, in order."""
        params = _vllm().SamplingParams
        outputs = self._llm.generate(
            [{"prompt_token_ids": prompt} for prompt in prompts],
            [params(**options, seed=seed) for seed in seeds],
            use_tqdm=False,
        )
        return [
            (
                [*row.token_ids],
                [step[t].logprob for step, t in zip(row.logprobs, row.token_ids, strict=True)],
            )
            for output in outputs
            for row in sorted(output.outputs, key=lambda row: row.index)
        ]

    def _load(self) -> None:
        """Give vLLM the policy's weights, if it does not have them."""
        first = self._llm is None
        if first:
            with _kept_process_state():
                self._llm = self._build()
        elif "enable_sleep_mode" in self.options:
            self._llm.wake_up()
        if self._loaded:
            return
        weights = iter(policy_weights(self.policy).items())
        self._llm.collective_rpc("reload_weights", kwargs={"weights_iterator": weights})
        self._llm.reset_prefix_cache()
        self._loaded = True
        if first:
            prompt, options = probe(self.policy)
            check_probe(self._request([prompt], options, [0]), probe_log_probs(self.policy), "vLLM")

    def _build(self) -> Any:
        # In this process, so that weights are handed over without a copy.
        os.environ["VLLM_ENABLE_V1_MULTIPROCESSING"] = "0"
        os.environ.setdefault("VLLM_LOGGING_LEVEL", "ERROR")
        self._folder = tempfile.TemporaryDirectory(prefix="lit-adaptive-vllm-")
        save_description(self.policy, Path(self._folder.name))
        dtype = str(next(self.policy.transformer.parameters()).dtype).removeprefix("torch.")
        return _vllm().LLM(
            model=self._folder.name,
            load_format="dummy",  # the policy's weights follow
            logprobs_mode=LOG_PROBS_MODE,
            **{"dtype": dtype, "enforce_eager": self.policy.device.type == "cpu", **self.options},
        )


def sampling_options(policy: Policy, samples: int, sampling: SamplingParams) -> dict[str, Any]:
    """Fields of vLLM's ``SamplingParams``; ids that no token has are never drawn."""
    return {
        "n": samples,
        "temperature": sampling.temperature,
        "max_tokens": sampling.max_new_tokens,
        "stop_token_ids": policy.stops(),
        "ignore_eos": True,  # the policy's stops are all that count
        "logprobs": 0,  # of the drawn token alone
        "logit_bias": dict.fromkeys(policy.suppressed_tokens(), -100.0) or None,
        "detokenize": False,
        "top_p": 1.0,
        "top_k": 0,
        "min_p": 0.0,
        "repetition_penalty": 1.0,
    }


def as_completions(
    rows: list[tuple[list[int], list[float]]], stops: list[int], version: int
) -> Completions:
    """Completions of tokens and log-probabilities."""
    return Completions(
        [torch.tensor(tokens, dtype=torch.int64) for tokens, _ in rows],
        [torch.tensor(log_probs, dtype=torch.float32) for _, log_probs in rows],
        ["stop" if tokens[-1] in stops else "length" for tokens, _ in rows],
        version,
    )


@torch.no_grad()
def policy_weights(policy: Policy) -> dict[str, Tensor]:
    """The policy's weights under the names of its checkpoints; all ranks call it together.

    LoRA is merged, shards are gathered, and the output head has a weight of its own: vLLM's CPU
    kernels keep a packed copy of a tied one, which loading the embedding would not renew.
    """
    from transformers.core_model_loading import revert_weight_conversion

    model = policy.transformer
    weights: dict[str, Tensor] = {
        name.replace(".base_layer.", "."): _full(value.detach())
        for name, value in model.state_dict(keep_vars=True).items()
        if ".lora_" not in name
    }
    for name, module in model.named_modules():
        if hasattr(module, "get_delta_weight") and not getattr(module, "merged", False):
            for adapter in module.active_adapters:
                delta = _full(module.get_delta_weight(adapter))
                whole = weights[f"{name}.weight"]
                weights[f"{name}.weight"] = (whole.float() + delta.float()).to(whole.dtype)
    reverted: dict[str, Tensor] = revert_weight_conversion(model, weights)
    return reverted


def _full(value: Any) -> Tensor:
    full: Tensor = value.full_tensor() if hasattr(value, "full_tensor") else value
    return full


def save_description(policy: Policy, folder: Path) -> None:
    """Write config and tokenizer, from which vLLM builds the model."""
    model = policy.transformer
    with transformers_quiet():
        model.config.save_pretrained(folder)
        policy.tokenizer.save_pretrained(folder)
    file = folder / "config.json"
    config: dict[str, Any] = json.loads(file.read_text(encoding="utf-8"))
    config |= {"architectures": [type(model).__name__], "tie_word_embeddings": False}
    file.write_text(json.dumps(config), encoding="utf-8")


def probe(policy: Policy) -> tuple[list[int], dict[str, Any]]:
    """A prompt, and sampling options for some first tokens, whose probabilities are compared."""
    sampling = SamplingParams(max_new_tokens=1, temperature=_PROBE_TEMPERATURE)
    prompt = [
        int(policy.tokenizer.eos_token_id),
        *sorted(policy.tokenizer.get_vocab().values())[:8],
    ]
    return prompt, sampling_options(policy, _PROBES, sampling)


@torch.no_grad()
def probe_log_probs(policy: Policy) -> Tensor:
    """The policy's log-probabilities ``[V]`` after the probe; all ranks call it together."""
    from transformers import DynamicCache

    ids = torch.tensor([probe(policy)[0]], device=policy.device)
    positions = torch.arange(ids.shape[1], device=policy.device)[None]
    with policy.decoding():
        logits = policy.decode(ids, torch.ones_like(ids), positions, DynamicCache())
    return (logits[0].float() / _PROBE_TEMPERATURE).log_softmax(-1).cpu()


def check_probe(rows: list[tuple[list[int], list[float]]], expected: Tensor, source: str) -> None:
    """Check log-probabilities of drawn tokens against the policy's ``[V]``.

    Raises:
        RuntimeError: if their mean difference is too great for rounding.
    """
    tokens = torch.tensor([row[0][0] for row in rows])
    log_probs = torch.tensor([row[1][0] for row in rows])
    if int(tokens.max()) < len(expected):
        difference = float((expected[tokens] - log_probs).abs().mean())
        if difference < _PROBE_BOUND:
            return
    else:
        difference = float("inf")
    raise RuntimeError(
        f"log-probabilities of {source} differ from the policy's by {difference:.2g} on average "
        f"(bound: {_PROBE_BOUND}), after it was given the policy's weights: it serves another "
        f"model, lost its weights, or was not started with --logprobs-mode {LOG_PROBS_MODE}"
    )


def _vllm(module: str = "vllm") -> Any:
    return importlib.import_module(module)


@contextmanager
def _kept_process_state() -> Generator[None]:
    """Keep vLLM's seed out of the run's random streams, and Numba's library out of its sight.

    vLLM 0.32 on a CPU reads the attributes of every object of every module, and fails at the
    library's handle, which answers to any name.
    """
    from lightning.pytorch.utilities.seed import isolate_rng

    handle = sys.modules.pop(_HANDLE, None)
    try:
        with isolate_rng():
            yield
    finally:
        if handle is not None:
            sys.modules[_HANDLE] = handle
