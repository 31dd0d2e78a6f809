"""vLLM in the training process: its own copy of the weights, loaded again after each step.

Where this departs from the interface of ``Engine``:
  1. A prompt's completions depend on the other prompts by rounding: vLLM computes with whichever
     are ready. With ``dtype: float32`` and equal requests they repeat.
  2. vLLM computes with its own kernels: set ``mismatch`` in the objective (``truncate`` or
     ``mask``) to correct the difference between its probabilities and the trainer's.
"""

import importlib
import importlib.util
import os
import sys
import tempfile
from collections.abc import Generator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch.distributed as dist

from lit_adaptive.rollout.engines._vllm import (
    LOG_PROBS_MODE,
    Row,
    VLLMSampling,
    check_probe,
    policy_weights,
    probe,
    probe_log_probs,
    save_description,
)
from lit_adaptive.rollout.engines.base import Policy

_HANDLE = "llvmlite.binding.ffi"
_RESERVED = {"model", "tokenizer", "load_format", "logprobs_mode", "hf_overrides"}


class VLLMEngine(VLLMSampling):
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

    def _rows(
        self, prompts: list[list[int]], options: dict[str, Any], seeds: Sequence[int]
    ) -> list[Row]:
        self._load()
        rows = self._request(prompts, options, seeds)
        if "enable_sleep_mode" in self.options:
            self._llm.sleep(level=1)
        return rows

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
    ) -> list[Row]:
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
