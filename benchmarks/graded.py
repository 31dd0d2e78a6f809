"""Graded demonstrations: what reward-weighting and weights of the loss make of sloppy answers.

    python benchmarks/graded.py [--seeds 5] [--jobs 2]

A tiny Llama (0.5 M parameters, from scratch) adds numbers of up to two digits. Its demonstrations
are correct (40 %), sloppy (35 %: off by one, or a digit wrong) or wrong (25 %), four to a question.
First it clones all of them (the reference); then each method goes on from there for as many steps:

    all                 plain SFT on everything
    filtered            plain SFT on what has reward 1
    loose               plain SFT on reward >= 0.5: the filter lets sloppy answers pass
    rwr                 draws by exp(r / 0.25)                      (Peters & Schaal, 2007)
    sft(q)              draws in proportion to the reward           (Qin & Springenberg, 2025)
    iw paper            policy_over_ref, per sequence, clamp [0, 16]
    iw paper, token     policy_over_ref, per token, clamp [0.2, 1.8]
    iw specification    ref_over_policy, per token, no clamp
    dft                 each token by its probability               (Wu et al., 2025)

the last four on the loose filter, and the paper's ratio and DFT also on everything. Measured: exact
match on 500 questions that no demonstration asks, greedy and sampled at temperature 1; mean over
seeds, paired difference to plain SFT on the same data with its 95 % t-interval, wall-clock of the
second stage with reference scoring included.
"""

import argparse
import json
import logging
import math
import os
import time
import warnings
from concurrent.futures import ProcessPoolExecutor
from functools import partial
from multiprocessing import get_context
from pathlib import Path
from typing import Any

os.environ.setdefault("OMP_NUM_THREADS", "1")

import torch
from lightning.pytorch import Trainer, seed_everything
from scipy import stats

from callbacks import ReferenceLogProbs
from lit_adaptive.data import Arithmetic, DemonstrationDataset, DemonstrationsDataModule
from lit_adaptive.modules import IWSFT, ConfiguredLM, Optimization
from lit_adaptive.rollout.generation import SamplingParams
from lit_adaptive.samplers import RewardWeightedSampler, ShuffledSampler

OUT = Path(__file__).parent / "results" / "graded.json"
BATCH, CLONING, STEPS = 64, 3000, 200
CLEAN = partial(RewardWeightedSampler, scheme="threshold", threshold=1.0)
LOOSE = partial(RewardWeightedSampler, scheme="threshold", threshold=0.5)
RWR = partial(RewardWeightedSampler, scheme="exponential", temperature=0.25)
SFTQ = partial(RewardWeightedSampler, scheme="proportional")
PAPER = {"objective": "iw", "ratio": "policy_over_ref", "level": "sequence"}
TOKEN = {"objective": "iw", "ratio": "policy_over_ref", "level": "token"}
SPECIFICATION = {"objective": "iw", "ratio": "ref_over_policy", "level": "token"}
DFT, NLL = {"objective": "dft"}, {"objective": "nll"}
# name: sampler, objective, and the method it is compared with
METHODS: dict[str, tuple[Any, dict[str, Any], str]] = {
    "all": (ShuffledSampler, NLL, "all"),
    "filtered": (CLEAN, NLL, "all"),
    "rwr": (RWR, NLL, "all"),
    "sft(q)": (SFTQ, NLL, "all"),
    "all, iw paper": (ShuffledSampler, PAPER, "all"),
    "all, dft": (ShuffledSampler, DFT, "all"),
    "loose": (LOOSE, NLL, "loose"),
    "loose, iw paper": (LOOSE, PAPER, "loose"),
    "loose, iw paper, token": (LOOSE, TOKEN, "loose"),
    "loose, iw specification": (LOOSE, SPECIFICATION, "loose"),
    "loose, dft": (LOOSE, DFT, "loose"),
    "filtered, iw paper": (CLEAN, PAPER, "filtered"),
    "filtered, iw specification": (CLEAN, SPECIFICATION, "filtered"),
    "filtered, dft": (CLEAN, DFT, "filtered"),
}


def sums(split: str, seed: int, **more: Any) -> Arithmetic:
    return Arithmetic(split, digits=2, operators="+", seed=seed, **more)  # type: ignore[arg-type]


def data(seed: int, sampler: Any) -> DemonstrationsDataModule:
    train = sums(
        "train",
        seed,
        size=2000,
        correct=0.40,
        sloppy=0.35,
        wrong=0.25,
        demonstrations_per_prompt=4,
    )
    return DemonstrationsDataModule(
        DemonstrationDataset(train),
        sampler,
        val_dataset=DemonstrationDataset(sums("validation", 0, size=500), columns=["answer"]),
        batch_size=BATCH,
        eval_batch_size=500,
        scores=None if sampler is ShuffledSampler else "reward",
        beta=1.0 if sampler is ShuffledSampler else 0.0,
        seed=seed,
    )


def trained(
    seed: int, sampler: Any, objective: dict[str, Any], steps: int, rate: float, start: str | None
) -> tuple[IWSFT, DemonstrationsDataModule]:
    seed_everything(seed, verbose=False)
    module = IWSFT(
        ConfiguredLM("llama", hidden_size=128, layers=2, heads=4, max_positions=32),
        optimization=Optimization(
            learning_rate=rate, betas=(0.9, 0.95), schedule="cosine", warmup=0.02
        ),
        weights=start,
        max_new_tokens=5,
        **objective,
    )
    datamodule = data(seed, sampler)
    trainer = Trainer(
        max_steps=steps,
        accelerator="cpu",
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        use_distributed_sampler=False,
        limit_val_batches=0,
        num_sanity_val_steps=0,
        gradient_clip_val=1.0,
        callbacks=[ReferenceLogProbs()] if objective["objective"] == "iw" else [],
    )
    trainer.fit(module, datamodule)
    return module, datamodule


def scores(module: IWSFT, datamodule: DemonstrationsDataModule) -> dict[str, float]:
    """Exact match, greedy and sampled."""
    (batch,) = datamodule.val_dataloader()
    found = {}
    torch.manual_seed(0)
    for name, temperature in (("greedy", 0.0), ("sampled", 1.0)):
        answers = module.generate(
            batch["prompt_ids"], batch["prompt_mask"], SamplingParams(5, temperature=temperature)
        )
        texts = module.detokenize(answers.tokens)
        right = [a == b for a, b in zip(texts, batch["answer"], strict=True)]
        found[name] = sum(right) / len(right)
    return found


def run(seed: int, folder: str) -> dict[str, Any]:
    torch.set_num_threads(1)
    warnings.filterwarnings("ignore")
    logging.getLogger("lightning.pytorch").setLevel(logging.ERROR)
    start = f"{folder}/start-{seed}.ckpt"
    module, datamodule = trained(seed, ShuffledSampler, NLL, CLONING, 2e-3, None)
    torch.save({"state_dict": module.state_dict()}, start)
    found: dict[str, Any] = {"reference": scores(module, datamodule)}
    for name, (sampler, objective, _) in METHODS.items():
        begun = time.perf_counter()
        module, datamodule = trained(seed, sampler, objective, STEPS, 5e-4, start)
        seconds = time.perf_counter() - begun
        found[name] = scores(module, datamodule) | {"seconds": seconds}
        print(seed, name, found[name], flush=True)
    return found


def interval(values: list[float]) -> tuple[float, float]:
    mean = sum(values) / len(values)
    spread = math.sqrt(sum((v - mean) ** 2 for v in values) / (len(values) - 1) / len(values))
    return mean, float(stats.t.ppf(0.975, len(values) - 1)) * spread


def main() -> None:
    import tempfile

    parser = argparse.ArgumentParser()
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("--jobs", type=int, default=2)
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        pool = ProcessPoolExecutor(args.jobs, mp_context=get_context("spawn"))
        runs = list(pool.map(partial(run, folder=folder), range(args.seeds)))
    table: dict[str, Any] = {
        "reference": {k: interval([r["reference"][k] for r in runs]) for k in ("greedy", "sampled")}
    }
    for name, (_, _, against) in METHODS.items():
        row: dict[str, Any] = {"against": against}
        for key in ("greedy", "sampled"):
            row[key] = interval([r[name][key] for r in runs])
            row[f"{key}_difference"] = interval([r[name][key] - r[against][key] for r in runs])
        row["seconds"] = interval([r[name]["seconds"] for r in runs])[0]
        table[name] = row
    print(f"{'reference':28s} greedy {table['reference']['greedy'][0]:.3f}", end=" ")
    print(f"sampled {table['reference']['sampled'][0]:.3f}")
    for name in METHODS:
        row = table[name]
        print(
            f"{name:28s} greedy {row['greedy'][0]:.3f} ({row['greedy_difference'][0]:+.3f} ± "
            f"{row['greedy_difference'][1]:.3f})  sampled {row['sampled'][0]:.3f} "
            f"({row['sampled_difference'][0]:+.3f} ± {row['sampled_difference'][1]:.3f})  "
            f"against {row['against']}, {row['seconds']:.1f} s"
        )
    OUT.parent.mkdir(exist_ok=True)
    OUT.write_text(json.dumps({"seeds": args.seeds, "table": table, "runs": runs}, indent=1))


if __name__ == "__main__":
    main()
