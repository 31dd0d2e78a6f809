"""Predicted pass rates of real questions, and the cost of prediction and selection.

    python benchmarks/difficulty.py [--seeds 5] [--part quality|hidden|speed|record]

``record`` (30 minutes on a core; its result is in ``results/smollm2_pass_rates.parquet``): eight answers of
SmolLM2-135M-Instruct (bfloat16, temperature 1, up to 8 tokens) to each of 1,650 questions of
reasoning-gym, of twelve tasks and levels, after two examples of the task; and for a quarter of
them after one, which is another, mostly weaker policy. A pass rate is the share of answers with the full score.

``quality``: a fifth of the questions is never drawn; their pass rates with two examples are predicted
from K references of the others.

    task mean          mean pass rate of all other questions of the task
    untrained          attention over the references on the embeddings as they are
    offline            the predictor, trained as ``difficulty_offline`` says on the other policy's answers to the
                       other questions
    online             the predictor of ``callbacks.DifficultyRefresh`` after ten refreshes; two
                       steps of 32 questions near 1/2, drawn by ``DifficultySampler``, follow each
    offline, online    the same from the offline weights
    ridge              ridge regression on the embeddings, of all that the online predictor has observed

Reported: Pearson, Spearman, Pearson within tasks (after subtraction of the task's means), and precision of the quarter
predicted nearest to 1/2: means over seeds with 95 % t-intervals. No prediction correlates with rates of eight answers
better than the true rates do: Pearson's ceiling is sqrt(1 - noise / variance), with the noise
mean(p (1 - p) / 7).

``hidden`` (10 minutes): the same predictor and ridge regression, with K = 128, on hidden states of SmolLM2-135M-Instruct
instead of the sentence encoder's embeddings: the mean over the prompt's tokens in the last layer, the last token's in the
last layer, the last token's at two thirds of the depth, as it is and with each coordinate standardized over the
questions, and what ``DifficultyRefresh`` without an encoder takes: mean and last token at two thirds, standardized.

``speed``: seconds to predict 100,000 prompts from 256 references with cached embeddings, and to select from a million,
on two threads; and the part of a step of ``configs/grpo_dots.yaml`` that all of DOTS but the generation of
references takes.
"""

import os
import statistics
import tempfile
import time
from collections.abc import Callable
from functools import partial
from itertools import pairwise
from pathlib import Path
from types import SimpleNamespace
from typing import Any, NamedTuple

os.environ.setdefault("OMP_NUM_THREADS", "1")

import common
import torch
from datasets import Dataset
from sklearn.linear_model import RidgeCV
from torch import Tensor
from torchmetrics.functional import pearson_corrcoef, spearman_corrcoef

from callbacks import DifficultyRefresh, SupervisedWarmup
from lit_adaptive.cli.main import AdaptiveCLI
from lit_adaptive.core.difficulty import attention_weights, selection_precision
from lit_adaptive.core.segments import segment_mean
from lit_adaptive.data import PassRateDataModule, PromptDataset, ReasoningTask
from lit_adaptive.modules import DifficultyPredictor, PassRateModule, PretrainedLM
from lit_adaptive.modules.difficulty_predictor import embed_prompts
from lit_adaptive.rollout import ReasoningGym, SentenceEncoder
from lit_adaptive.rollout.generation import SamplingParams, generate, left_pad_sequences
from lit_adaptive.rollout.models.embeddings import cached_embeddings
from lit_adaptive.rollout.models.pretrained import load_tokenizer
from lit_adaptive.samplers import DifficultySampler

CACHE = str(Path(tempfile.gettempdir()) / "difficulty-embeddings")
RECORDED = Path(__file__).parent / "results" / "smollm2_pass_rates.parquet"
ANSWERS, ROWS = 8, 24
REFERENCES, ROUNDS, EVERY, BATCH = (16, 32, 64, 128, 256), 10, 2, 32


def _terms(low: int, high: int, terms: int = 2) -> dict[str, int]:
    return {"min_terms": terms, "max_terms": terms, "min_digits": low, "max_digits": high}


_NUMBERS = {"min_numbers": 2, "max_numbers": 2, "min_value": 2, "max_value": 20}
# Name: task of reasoning-gym, its settings, number of questions.
TASKS: dict[str, tuple[str, dict[str, int], int]] = {
    "sum of 2 digits": ("chain_sum", _terms(1, 1), 110),
    "sum of 2 numbers": ("chain_sum", _terms(1, 2), 160),
    "sum of 3-digit numbers": ("chain_sum", _terms(3, 3), 110),
    "sum of 3 digits": ("chain_sum", _terms(1, 1, 3), 160),
    "product of 2 digits": ("products", _terms(1, 1), 60),
    "product of 2 numbers": ("products", _terms(1, 2), 160),
    "letters in few words": ("letter_counting", {"min_words": 2, "max_words": 3}, 170),
    "letters in many words": ("letter_counting", {"min_words": 5, "max_words": 8}, 170),
    "greatest divisor": ("gcd", _NUMBERS, 150),
    "least multiple": ("lcm", _NUMBERS, 150),
    "syllogism": ("syllogism", {}, 170),
    "word backwards": ("spell_backward", {"min_word_len": 3, "max_word_len": 3}, 80),
}
# Examples in the prompt of a policy, and the share 1 / n of the questions that it is asked.
POLICY, OTHER_POLICY = "2 examples", "1 example"
POLICIES = {POLICY: (2, 1), OTHER_POLICY: (1, 4)}

# Recording ----------------------------------------------------------------------------------------


def record() -> None:
    """Ask what is not in the file yet; it is written after each task."""
    tokenizer = load_tokenizer("smollm2")
    language = PretrainedLM("smollm2").build(tokenizer).eval().to(torch.bfloat16)
    rows: list[dict[str, Any]] = []
    for seed, (task, (name, config, size)) in enumerate(TASKS.items()):
        questions = ReasoningTask(name, size, seed, config=config)
        rows += [questions[i] | {"task": task} for i in range(size)]
    table = {column: [row[column] for row in rows] for column in ("id", "task", "prompt")}
    right = {policy: [-1] * len(rows) for policy in POLICIES}
    if RECORDED.exists():
        known = Dataset.from_parquet(str(RECORDED))
        right |= {name: known[name][:] for name in POLICIES}
    for policy, (shots, every) in POLICIES.items():
        for seed, (task, (name, config, _)) in enumerate(TASKS.items()):
            asked = [i for i, row in enumerate(rows) if row["task"] == task][::every]
            if right[policy][asked[0]] >= 0:
                continue
            shown = ReasoningTask(name, shots, seed, "validation", config)
            head = "".join(f"{_asked(shown[i])} {shown[i]['answer']}\n\n" for i in range(shots))
            counts = _counts(language, tokenizer, head, [rows[i] for i in asked], seed)
            for i, count in zip(asked, counts, strict=True):
                right[policy][i] = count
            mean = sum(counts) / len(counts) / ANSWERS
            print(f"{policy}, {task}: mean pass rate {mean:.2f}", flush=True)
            Dataset.from_dict(table | right).to_parquet(str(RECORDED))


def _asked(row: dict[str, Any]) -> str:
    return f"{row['prompt'].strip()}\nAnswer:"


def _counts(
    language: Any, tokenizer: Any, head: str, rows: list[dict[str, Any]], seed: int
) -> list[int]:
    """Number of right answers to each row, of ``ANSWERS``; an answer is one line."""
    newlines = [token for text, token in tokenizer.get_vocab().items() if "Ċ" in text]
    stops, reward = [*newlines, int(tokenizer.eos_token_id)], ReasoningGym(tag=None)
    generator, counts = torch.Generator().manual_seed(seed), list[int]()
    for start in range(0, len(rows), ROWS):
        batch = rows[start : start + ROWS]
        encoded = [tokenizer(head + _asked(row)).input_ids for row in batch]
        ids, mask = left_pad_sequences(encoded, tokenizer.pad_token_id)
        with torch.inference_mode():
            completions = generate(
                *(language.decode, ids, mask, SamplingParams(8), stops),
                samples=ANSWERS,
                generator=generator,
            )
        each = [row for row in batch for _ in range(ANSWERS)]
        score = reward(
            [row["prompt"] for row in each],
            tokenizer.batch_decode(completions.tokens, skip_special_tokens=True),
            answer=[row["answer"] for row in each],
            metadata=[row["metadata"] for row in each],
        )
        counts += torch.tensor([one == 1 for one in score]).view(-1, ANSWERS).sum(1).tolist()
    return counts


# Quality ------------------------------------------------------------------------------------------


class Recorded(NamedTuple):
    """Questions with their recorded pass rates.

    Attributes:
        prompts: texts of the N questions.
        task: ``[N]`` int64.
        embeddings: ``[N, F]``.
        rates: ``[N]`` float32 of each policy, by name.
    """

    prompts: list[str]
    task: Tensor
    embeddings: Tensor
    rates: dict[str, Tensor]


def recorded() -> Recorded:
    """The questions that were asked of the policy, in the file that ``record`` wrote."""
    table = Dataset.from_parquet(str(RECORDED)).filter(lambda row: row[POLICY] >= 0)
    names, encoder = [*dict.fromkeys(table["task"])], SentenceEncoder()
    return Recorded(
        table["prompt"][:],
        torch.tensor([names.index(task) for task in table["task"]]),
        cached_embeddings(CACHE, encoder.key, table["prompt"][:], encoder),
        {policy: torch.tensor(table[policy][:]) / ANSWERS for policy in POLICIES},
    )


class RecordedRun:
    """Trainer and datamodule of a run whose rollouts are the recorded answers.

    Args:
        rates: ``[M]``, recorded pass rates of the prompts of the run.
        seed: seed of all draws.
    """

    def __init__(self, rates: Tensor, seed: int) -> None:
        self.rates, self.seed = rates, seed
        self.sampler = DifficultySampler(len(rates), window=EVERY, seed=seed)
        self.datamodule, self.strategy = self, SimpleNamespace(broadcast=lambda value: value)
        self.next_version, self.global_step, self.estimated_stepping_batches = 0, 0, 10**9
        self.finished_step: Any = None
        self.checkpoint_rows = None
        self.references = torch.empty(0, dtype=torch.int64)
        self.observed = torch.zeros(len(rates), dtype=torch.bool)

    def groups(self, index: Tensor) -> Any:
        """The recorded answers, with the fields of rollouts that ``DifficultyRefresh`` reads."""
        self.observed[index] = True
        right = (self.rates[index] * ANSWERS).round().long()
        fields = {
            "prompt": index,
            "reward": (torch.arange(ANSWERS) < right[:, None]).float().flatten(),
            "group": torch.arange(len(index)).repeat_interleave(ANSWERS),
            "demonstration": torch.zeros(len(index) * ANSWERS, dtype=torch.bool),
        }
        return type("Groups", (), fields | {"__len__": lambda _: len(index)})()

    def roll_out(self, index: Tensor, *, train: bool) -> tuple[Any, dict[str, float]]:
        self.references = index
        return self.groups(index), {"generated_tokens": 0.0}

    def step(self) -> None:
        """Draw prompts, observe them, and count a step."""
        index = self.sampler.draw(BATCH).index
        self.finished_step = SimpleNamespace(fresh=self.groups(index))
        self.sampler.update(index, self.rates[index])
        self.next_version += 1


def online(
    data: Recorded,
    pool: Tensor,
    query: Tensor,
    references: int,
    seed: int,
    weights: str | None = None,
) -> tuple[list[Tensor], RecordedRun]:
    """Predictions for ``query`` ``[B, F]`` after each refresh of a run on ``pool``, and the run."""
    run: Any = RecordedRun(data.rates[POLICY][pool], seed)
    module: Any = SimpleNamespace(device="cpu", log_dict=lambda _: None)
    callback = DifficultyRefresh(EVERY, references, weights=weights, file=None)
    callback.embeddings = data.embeddings[pool]
    callback.on_train_epoch_start(run, module)
    predictions: list[Tensor] = []
    while len(predictions) < ROUNDS:
        predictions.append(callback._predict(query, callback._latest()).pass_rate)
        for _ in range(EVERY):
            run.step()
            callback.on_train_batch_end(run, module, None, {}, 0)
    return predictions, run


def offline(data: Recorded, pool: Tensor, seed: int) -> tuple[str, DifficultyPredictor]:
    """A predictor trained on the other policy's answers to questions of ``pool``, and its file."""
    torch.manual_seed(seed)
    pool = pool[data.rates[OTHER_POLICY][pool] >= 0]
    rows = [{"id": str(i), "prompt": data.prompts[i]} for i in pool.tolist()]
    rates = data.rates[OTHER_POLICY][pool].tolist()
    table = [
        {"policy": OTHER_POLICY, "prompt_id": row["id"], "pass_rate": rate}
        for row, rate in zip(rows, rates, strict=True)
    ]
    module = PassRateModule(data.embeddings.shape[1])
    trainer = common.quiet_trainer(max_epochs=20, limit_val_batches=0)
    references = min(256, len(pool) // 5)
    options: dict[str, Any] = {"references": references, "batch_size": references, "seed": seed}
    trainer.fit(module, PassRateDataModule(PromptDataset(rows), table, **options))
    path = str(Path(tempfile.mkdtemp()) / "offline.ckpt")
    trainer.save_checkpoint(path)
    return path, module.predictor


def measured(predicted: Tensor, true: Tensor, task: Tensor) -> dict[str, float]:
    predicted, true = predicted.float(), true.float()
    size = int(task.max()) + 1

    def centered(values: Tensor) -> Tensor:
        return values - segment_mean(values, task, size)[task]

    precision = selection_precision(predicted, true, len(true) // 4)
    return {
        "pearson": float(pearson_corrcoef(predicted, true)),
        "spearman": float(spearman_corrcoef(predicted, true)),
        "within": float(pearson_corrcoef(centered(predicted), centered(true))),
        "precision": precision.precision,
        "precision_bound": precision.upper_bound,
        "precision_random": precision.random,
    }


class Division(NamedTuple):
    """Questions that can be drawn, and those that never are.

    Attributes:
        pool: ``[M]`` int64.
        held_out: ``[H]`` int64.
        score: measures predictions ``[H]`` for the latter.
    """

    pool: Tensor
    held_out: Tensor
    score: Callable[[Tensor], dict[str, float]]


def divided(data: Recorded, seed: int) -> Division:
    order = torch.randperm(len(data.task), generator=torch.Generator().manual_seed(seed))
    held_out, pool = order[: len(order) // 5], order[len(order) // 5 :]
    true, task = data.rates[POLICY][held_out], data.task[held_out]
    return Division(pool, held_out, lambda predicted: measured(predicted, true, task))


def ridge(run: RecordedRun, inputs: Tensor, query: Tensor) -> Tensor:
    """Predictions ``[B]`` by ridge regression on all that a run has observed."""
    model = RidgeCV([10.0**k for k in range(-4, 4)])
    model.fit(inputs[run.observed].numpy(), run.rates[run.observed].numpy())
    return torch.from_numpy(model.predict(query.numpy()))


def quality(seed: int) -> dict[str, dict[str, Any]]:
    """Measurements of a seed by K and method, without those that train before the run."""
    common.silence()
    data = recorded()
    pool, held_out, score = divided(data, seed)
    rates, query, inputs = data.rates[POLICY], data.embeddings[held_out], data.embeddings[pool]
    true = rates[held_out]
    noise = (true * (1 - true)).mean() / (ANSWERS - 1)
    means = segment_mean(rates[pool], data.task[pool], int(data.task.max()) + 1)
    every: dict[str, Any] = {"task mean": score(means[data.task[held_out]])}
    every["ceiling"] = {"pearson": float((1 - noise / true.var()).sqrt())}
    results: dict[str, dict[str, Any]] = {}
    for references in REFERENCES:
        predictions, run = online(data, pool, query, references, seed)
        weight = attention_weights(query, inputs[run.references])
        results[str(references)] = every | {
            "untrained": score(weight @ run.rates[run.references]),
            "online": score(predictions[-1]),
            "ridge": score(ridge(run, inputs, query)),
            "curve": [score(predicted)["pearson"] for predicted in predictions],
            "observed": int(run.observed.sum()),
        }
    return results


def quality_offline(seed: int) -> dict[str, dict[str, Any]]:
    """Measurements of a seed of the predictor that was trained on the other policy, by K."""
    common.silence()
    data = recorded()
    pool, held_out, score = divided(data, seed)
    query = data.embeddings[held_out]
    weights, trained = offline(data, pool, seed)
    results: dict[str, dict[str, Any]] = {}
    for references in REFERENCES:
        known = pool[:references]  # in random order
        rates = data.rates[POLICY][known]
        predicted = trained.predict(query, data.embeddings[known], rates).pass_rate
        results[str(references)] = {"offline": score(predicted)}
    predictions, _ = online(data, pool, query, 128, seed, weights)
    results["128"] |= {
        "offline, online": score(predictions[-1]),
        "offline curve": [score(predicted)["pearson"] for predicted in predictions],
    }
    return results


# Hidden states ------------------------------------------------------------------------------------

MEAN, LAST, MIDDLE = "mean, last layer", "last token, last layer", "last token, 2/3 of the depth"
BUILT = "mean and last token, 2/3 of the depth, standardized"


@torch.inference_mode()
def hidden_states(prompts: list[str]) -> dict[str, Tensor]:
    """Embeddings ``[N, F]`` of the questions by the policy, by name."""
    tokenizer = load_tokenizer("smollm2")
    language = PretrainedLM("smollm2").build(tokenizer).eval()
    body = getattr(language.base, language.base.base_model_prefix)
    encoded = [torch.tensor(tokenizer(_asked({"prompt": one})).input_ids) for one in prompts]
    order = sorted(range(len(encoded)), key=lambda i: len(encoded[i]))
    found: dict[str, list[Tensor]] = {MEAN: [], LAST: [], MIDDLE: []}
    for start in range(0, len(order), ROWS):
        part = [encoded[i] for i in order[start : start + ROWS]]
        ids = torch.nn.utils.rnn.pad_sequence(part, batch_first=True)
        length = torch.tensor([len(one) for one in part])
        mask = torch.arange(ids.shape[1]) < length[:, None]
        output = body(ids, mask.long(), use_cache=False, output_hidden_states=True)
        final, middle = output.last_hidden_state, output.hidden_states[len(body.layers) * 2 // 3]
        rows = torch.arange(len(part))
        found[MEAN].append((final * mask[:, :, None]).sum(1) / length[:, None])
        found[LAST].append(final[rows, length - 1])
        found[MIDDLE].append(middle[rows, length - 1])
    back = torch.tensor(order).argsort()
    states = {name: torch.cat(parts)[back] for name, parts in found.items()}
    standardized = {
        f"{MIDDLE}, standardized": states[MIDDLE],
        BUILT: embed_prompts(language, encoded),
    }
    return states | {name: (x - x.mean(0)) / x.std(0) for name, x in standardized.items()}


def quality_hidden(seed: int, *, states: dict[str, Tensor]) -> dict[str, dict[str, Any]]:
    """Measurements of a seed with each embedding, K = 128."""
    common.silence()
    results: dict[str, dict[str, Any]] = {}
    for name, embeddings in states.items():
        data = recorded()._replace(embeddings=embeddings.half().float())
        pool, held_out, score = divided(data, seed)
        query, inputs = data.embeddings[held_out], data.embeddings[pool]
        predictions, run = online(data, pool, query, 128, seed)
        results[name] = {
            "online": score(predictions[-1]),
            "ridge": score(ridge(run, inputs, query)),
        }
    return results


# Speed --------------------------------------------------------------------------------------------


def predict_seconds() -> list[float]:
    """Seconds to predict 100,000 prompts from 256 references."""
    predictor, embeddings = DifficultyPredictor(384), torch.randn(100_000, 384)
    known = embeddings[:256], torch.rand(256)
    return common.seconds_per_call(lambda: predictor.predict(embeddings, *known))


def select_seconds() -> list[float]:
    """Seconds to select 1,024 of a million prompts."""
    sampler = DifficultySampler(1_000_000)
    sampler.set_prediction(torch.rand(1_000_000))

    def select() -> None:
        sampler.end_window()
        sampler.draw(1024)

    return common.seconds_per_call(select)


def step_seconds(steps: int = 16) -> dict[str, float]:
    """Seconds of a step of ``grpo_dots.yaml`` without a refresh, and of DOTS' parts in a step.

    The embeddings of all prompts are computed once per run (``embeddings``, in seconds per run).
    """
    seconds: dict[str, list[float]] = {}

    def timed(owner: Any, method: str, name: str) -> None:
        original, seconds[name] = getattr(owner, method), []

        def call(*arguments: Any, **keywords: Any) -> Any:
            start = time.perf_counter()
            result = original(*arguments, **keywords)
            seconds[name].append(time.perf_counter() - start)
            return result

        setattr(owner, method, call)

    timed(DifficultyRefresh, "_learn", "learn")
    timed(DifficultyRefresh, "_predict", "predict")
    timed(DifficultyRefresh, "_embed", "embeddings")
    timed(DifficultyRefresh, "_refresh", "refresh")
    timed(DifficultySampler, "draw", "select")
    timed(DifficultySampler, "update", "observe")
    AdaptiveCLI._run_subcommand = lambda self, subcommand: None  # type: ignore[method-assign]
    config, clock = Path(__file__).parents[1] / "configs" / "grpo_dots.yaml", common.StepClock()
    with tempfile.TemporaryDirectory() as folder:
        options = [f"--runs={folder}", f"--data.steps_per_epoch={steps}", "--trainer.max_epochs=1"]
        options += ["--trainer.enable_progress_bar=false", "--trainer.limit_val_batches=0"]
        cli = AdaptiveCLI(["fit", "--config", str(config), *options])
        callbacks: list[Any] = cli.trainer.callbacks  # type: ignore[attr-defined]
        callbacks.append(clock.lightning_callback())
        for callback in callbacks:
            if isinstance(callback, SupervisedWarmup):
                callback.steps = 100
        cli.trainer.fit(cli.model, cli.datamodule)
    # Every second step, from the second, is a step of fresh groups with a refresh at its end.
    step = statistics.median([b - a for a, b in pairwise(clock.ends)][::2])
    step -= statistics.median(seconds.pop("refresh")[1:])
    embeddings = sum(seconds.pop("embeddings"))
    parts = {name: sum(values) / steps for name, values in seconds.items()}
    return {"step": step, "embeddings": embeddings} | parts


def main() -> None:
    parser = common.argument_parser(__doc__)
    parser.add_argument(
        "--part", choices=["quality", "hidden", "speed", "record"], help="one part only"
    )
    parser.add_argument("--seeds", type=int, default=5, help="number of seeds")
    parser.add_argument("--jobs", type=int, default=2, help="seeds to run at the same time")
    args = parser.parse_args()
    if args.part == "record":
        record()
        return
    results = common.read_results(args.out, "difficulty.json")
    if args.part in (None, "hidden"):
        states = hidden_states(recorded().prompts)
        runs = common.run_seeds(partial(quality_hidden, states=states), args.seeds, args.jobs)
        results["hidden"] = {"seeds": args.seeds, "table": table_of(runs), "runs": runs}
    if args.part in (None, "quality"):
        runs = common.run_seeds(quality, args.seeds, args.jobs)
        for run, more in zip(
            runs, common.run_seeds(quality_offline, args.seeds, args.jobs), strict=True
        ):
            for references, methods in more.items():
                run[references] |= methods
        results["quality"] = {"seeds": args.seeds, "table": table_of(runs), "runs": runs}
        common.write_results(args.out, "difficulty.json", results)
    if args.part in (None, "speed"):
        torch.set_num_threads(2)
        speed = {"predict 1e5": min(predict_seconds()), "select of 1e6": min(select_seconds())}
        results["speed"] = speed | {"grpo_dots": step_seconds()}
        print(results["speed"])
    common.write_results(args.out, "difficulty.json", results | common.versions())


def table_of(runs: list[dict[str, Any]]) -> dict[str, Any]:
    """Means over seeds with intervals, by K, method and measure; printed."""
    table: dict[str, Any] = {}
    for references, first in runs[0].items():
        for method, values in first.items():
            if not isinstance(values, dict):
                continue
            row = {
                name: common.t_interval([run[references][method][name] for run in runs])
                for name in values
            }
            table.setdefault(references, {})[method] = row
            cells = (f"{name} {one.mean:.3f} ± {one.half_width:.3f}" for name, one in row.items())
            print(f"{references:4s} {method:16s}", "  ".join(cells), flush=True)
    return table


if __name__ == "__main__":
    main()
