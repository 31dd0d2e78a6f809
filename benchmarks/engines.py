"""Tokens per second of the engines: SmolLM2-135M, prompts x samples x tokens, one thread each.

Rounds alternate between the engines; the first of each is not counted, and each ratio is of one
round. It runs in the environment of vllm_environment.sh:

    OMP_NUM_THREADS=1 VLLM_CPU_KVCACHE_SPACE=1 python benchmarks/engines.py
"""

import statistics
import time
from types import SimpleNamespace
from typing import Any

import torch
from common import argument_parser, versions, write_results

from lit_adaptive.data import Arithmetic, PromptDataset
from lit_adaptive.modules import PretrainedLM
from lit_adaptive.rollout import (
    ContinuousBatchingEngine,
    SamplingParams,
    TransformersEngine,
    VLLMEngine,
)


def smollm2(tokenizer: Any, dtype: Any) -> Any:
    language = PretrainedLM("smollm2", dtype=dtype).build(tokenizer).eval()
    return SimpleNamespace(
        transformer=language.base,
        tokenizer=tokenizer,
        device=torch.device("cpu"),
        stops=lambda: [3],  # an unused token: completions of equal length
        suppressed_tokens=language.suppressed_tokens,
        decode=language.decode,
        decoding=torch.no_grad,
        all_done=lambda done: done,
    )


def main() -> None:
    parser = argument_parser(__doc__)
    parser.add_argument("--prompts", type=int, default=8)
    parser.add_argument("--samples", type=int, default=8)
    parser.add_argument("--tokens", type=int, default=32)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--dtype", default="float32", choices=["float32", "bfloat16"])
    options = parser.parse_args()
    prompts = PromptDataset(Arithmetic("train", size=100), "smollm2", chat=True)
    policy = smollm2(prompts.tokenizer, options.dtype)
    engines = {
        "transformers": TransformersEngine(),
        "continuous_batching": ContinuousBatchingEngine(
            {"num_blocks": 256, "max_batch_tokens": 512, "use_async_batching": False}
        ),
        "vllm": VLLMEngine({"max_model_len": 512}),
    }
    for engine in engines.values():
        engine.attach(policy)
    index = torch.arange(options.prompts)

    rates: dict[str, list[float]] = {name: [] for name in engines}
    for number in range(options.rounds + 1):
        for name, engine in engines.items():
            start = time.perf_counter()
            engine.sync(number)
            completions = engine.generate(
                prompts.tokens(index),
                options.samples,
                SamplingParams(options.tokens),
                [1000 * number + i for i in range(options.prompts)],
            )
            took = time.perf_counter() - start
            if number:
                rates[name].append(sum(map(len, completions.tokens)) / took)
            print(name, f"{took:.1f} s", flush=True)
    results = {
        "versions": versions(),
        "threads": torch.get_num_threads(),
        "options": {k: v for k, v in vars(options).items() if k != "out"},
        "tokens_per_second": {name: statistics.median(values) for name, values in rates.items()},
        "ratio_to_transformers": {
            name: [mine / base for mine, base in zip(values, rates["transformers"], strict=True)]
            for name, values in rates.items()
        },
    }
    print(results["tokens_per_second"], results["ratio_to_transformers"])
    write_results(options.out, f"engines_{options.dtype}.json", results)
    engines["vllm"].close()


if __name__ == "__main__":
    main()
