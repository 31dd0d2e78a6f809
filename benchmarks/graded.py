"""Graded demonstrations: filters, reward-weighted draws and loss weights against plain SFT.

    python benchmarks/graded.py [--seeds 5] [--jobs 2]

A tiny Llama (0.5 M parameters, from scratch) adds numbers of up to two digits. Of its demonstrations
40 % are correct, 35 % sloppy (off by one, or with a wrong digit) and 25 % wrong; there are 2,000
questions with four demonstrations each. It first clones all of them (3,000 steps of 64: the
reference); each method then trains for 200 more steps from there:

    all                 plain SFT on everything
    filtered            plain SFT on demonstrations with reward 1
    loose               plain SFT on reward >= 0.5: lets sloppy answers through
    rwr                 draws with probability ~ exp(reward / 0.25) (Peters & Schaal, 2007)
    sft(q)              draws with probability ~ reward             (Qin & Springenberg, 2025)
    iw paper            policy_over_ref, per sequence, clamp [0, 16]
    iw paper, token     policy_over_ref, per token, clamp [0.2, 1.8]
    iw specification    ref_over_policy, per token, no clamp
    dft                 each token weighted by its probability      (Wu et al., 2025)

The last four on the loose filter; the paper's ratio and DFT also on everything and on ``filtered``.
Measured: exact match on 500 questions without demonstrations, greedy and sampled at temperature 1:
mean over seeds, and the paired difference from plain SFT on the same data with its 95 % t-interval.
Wall-clock is that of the second stage, with reference scores included and evaluation left out.
"""

import os
import tempfile
import time
from functools import partial
from typing import Any

os.environ.setdefault("OMP_NUM_THREADS", "1")

import common
import torch
from lightning.pytorch import seed_everything

from callbacks import ReferenceLogProbs
from lit_adaptive.data import Arithmetic, DemonstrationDataset, DemonstrationsDataModule
from lit_adaptive.modules import IWSFT, ConfiguredLM, Optimization
from lit_adaptive.rollout.generation import SamplingParams
from lit_adaptive.samplers import RewardWeightedSampler, ShuffledSampler

BATCH, CLONING, STEPS = 64, 3000, 200
CLEAN = partial(RewardWeightedSampler, scheme="threshold", threshold=1.0)
LOOSE = partial(RewardWeightedSampler, scheme="threshold", threshold=0.5)
RWR = partial(RewardWeightedSampler, scheme="exponential", temperature=0.25)
SFTQ = partial(RewardWeightedSampler, scheme="proportional")
PAPER = {"objective": "iw", "ratio": "policy_over_ref", "level": "sequence"}
TOKEN = {"objective": "iw", "ratio": "policy_over_ref", "level": "token"}
SPECIFICATION = {"objective": "iw", "ratio": "ref_over_policy", "level": "token"}
DFT, NLL = {"objective": "dft"}, {"objective": "nll"}
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
"""Sampler, objective and the method to compare with, by name."""


def sums(split: str, seed: int, **options: Any) -> Arithmetic:
    return Arithmetic(split, digits=2, operators="+", seed=seed, **options)


def make_data(seed: int, sampler: Any) -> DemonstrationsDataModule:
    demonstrations = sums(
        "train",
        seed,
        size=2000,
        correct=0.40,
        sloppy=0.35,
        wrong=0.25,
        demonstrations_per_prompt=4,
    )
    weighted = sampler is not ShuffledSampler
    return DemonstrationsDataModule(
        DemonstrationDataset(demonstrations),
        sampler,
        val_dataset=DemonstrationDataset(sums("validation", 0, size=500), columns=["answer"]),
        batch_size=BATCH,
        eval_batch_size=500,
        scores="reward" if weighted else None,
        beta=0.0 if weighted else 1.0,
        seed=seed,
    )


def train(
    seed: int,
    sampler: Any,
    objective: dict[str, Any],
    *,
    steps: int,
    learning_rate: float,
    weights: str | None,
) -> tuple[IWSFT, DemonstrationsDataModule]:
    """Train a model, from the checkpoint ``weights`` or from scratch."""
    seed_everything(seed, verbose=False)
    module = IWSFT(
        ConfiguredLM("llama", hidden_size=128, layers=2, heads=4, max_positions=32),
        optimization=Optimization(
            learning_rate=learning_rate, betas=(0.9, 0.95), schedule="cosine", warmup=0.02
        ),
        weights=weights,
        max_new_tokens=5,
        **objective,
    )
    data = make_data(seed, sampler)
    trainer = common.quiet_trainer(
        max_steps=steps,
        limit_val_batches=0,
        num_sanity_val_steps=0,
        gradient_clip_val=1.0,
        callbacks=[ReferenceLogProbs()] if objective["objective"] == "iw" else [],
    )
    trainer.fit(module, data)
    return module, data


def exact_match(module: IWSFT, data: DemonstrationsDataModule) -> dict[str, float]:
    """Fraction of right answers to the validation questions, greedy and sampled."""
    (batch,) = data.val_dataloader()
    scores = {}
    torch.manual_seed(0)
    for name, temperature in (("greedy", 0.0), ("sampled", 1.0)):
        completions = module.generate(
            batch["prompt_ids"], batch["prompt_mask"], SamplingParams(5, temperature=temperature)
        )
        texts = module.detokenize(completions.tokens)
        right = [text == answer for text, answer in zip(texts, batch["answer"], strict=True)]
        scores[name] = sum(right) / len(right)
    return scores


def run(seed: int, folder: str) -> dict[str, Any]:
    """Scores and seconds of each method for one seed."""
    torch.set_num_threads(1)
    common.silence()
    reference = f"{folder}/reference-{seed}.ckpt"
    module, data = train(
        seed, ShuffledSampler, NLL, steps=CLONING, learning_rate=2e-3, weights=None
    )
    torch.save({"state_dict": module.state_dict()}, reference)
    results: dict[str, Any] = {"reference": exact_match(module, data)}
    for name, (sampler, objective, _) in METHODS.items():
        start = time.perf_counter()
        module, data = train(
            seed, sampler, objective, steps=STEPS, learning_rate=5e-4, weights=reference
        )
        seconds = time.perf_counter() - start
        results[name] = exact_match(module, data) | {"seconds": seconds}
        print(seed, name, results[name], flush=True)
    return results


def main() -> None:
    parser = common.argument_parser(__doc__)
    parser.add_argument("--seeds", type=int, default=5, help="number of paired seeds")
    parser.add_argument("--jobs", type=int, default=2, help="seeds to run at the same time")
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        runs = common.run_seeds(partial(run, folder=folder), args.seeds, args.jobs)

    def column(name: str, key: str) -> list[float]:
        return [results[name][key] for results in runs]

    decodings = ("greedy", "sampled")
    reference = {key: common.t_interval(column("reference", key)) for key in decodings}
    table: dict[str, Any] = {"reference": reference}
    print("reference", *(f"{key} {reference[key].mean:.3f}" for key in decodings))
    for name, (_, _, baseline) in METHODS.items():
        row: dict[str, Any] = {"against": baseline}
        line = f"{name:28s}"
        for key in decodings:
            row[key] = common.t_interval(column(name, key))
            difference = common.paired_t_interval(column(name, key), column(baseline, key))
            row[f"{key}_difference"] = difference
            line += f"{key} {row[key].mean:.3f} ({difference:.3f})  "
        row["seconds"] = common.t_interval(column(name, "seconds")).mean
        table[name] = row
        print(f"{line}difference from {baseline}, {row['seconds']:.1f} s")
    results = {"seeds": args.seeds, "table": table, "runs": runs}
    common.write_results(args.out, "graded.json", results)


if __name__ == "__main__":
    main()
