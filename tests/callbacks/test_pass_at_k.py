"""pass@k is the share of choices of k answers among n that hold a right one, over all ranks."""

import json
import subprocess
import sys
from itertools import combinations
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from lightning.pytorch import Callback, LightningModule, Trainer, seed_everything
from torch import Tensor

from callbacks.pass_at_k import PassAtK
from lit_adaptive.data import (
    Arithmetic,
    DemonstrationDataset,
    DemonstrationsDataModule,
    PromptDataset,
    RolloutDataModule,
)
from lit_adaptive.modules import GRPO, IWSFT, ConfiguredLM, Optimization
from lit_adaptive.rollout.generation import SamplingParams
from lit_adaptive.rollout.rewards.base import Reward
from lit_adaptive.rollout.rewards.scorer import Scorer

pytestmark = pytest.mark.filterwarnings("ignore:`isinstance")

SIZE = 7


class HasDigit(Reward):
    """1 if there is a digit; does not apply to answers that begin with a capital."""

    def __call__(self, prompts: list[str], completions: list[str], **columns: Any) -> Any:
        assert len(columns["answer"]) == len(prompts) == len(completions)
        return [
            None if text[:1].isupper() else float(any(c.isdigit() for c in text))
            for text in completions
        ]


class Scripted(LightningModule):
    """Answers a sum correctly as often as the sum's last digit says, in random order."""

    provides = frozenset({"model.sample"})
    max_new_tokens = 5

    def __init__(self, applies: bool = True) -> None:
        super().__init__()
        self.prompts: list[list[str]] = []
        self.streams: list[float] = []
        self.sampling: SamplingParams | None = None
        self.applies = applies

    def sample(
        self, prompts: list[str], samples: int, sampling: SamplingParams
    ) -> list[list[dict[str, Any]]]:
        assert not self.training
        assert not torch.is_grad_enabled()
        self.prompts.append(prompts)
        self.streams.append(float(torch.rand(())))
        self.sampling = sampling
        answers = []
        for prompt in prompts:
            correct = answer(prompt)
            order = torch.randperm(samples).tolist()
            answers.append(
                [
                    {
                        "completion": str(correct) if n < correct % 10 else "?",
                        "finish": "length" if n == 0 else "stop",
                        "log_prob": -1.0,
                    }
                    for n in order
                ]
            )
        return answers

    def validation_step(self, batch: Any, _: int) -> None:
        """Nothing; the callback is tested."""


class Exact(Reward):
    def __call__(self, prompts: list[str], completions: list[str], **columns: Any) -> Any:
        return [float(c == str(answer(p))) for p, c in zip(prompts, completions, strict=True)]


class Never(Reward):
    def __call__(self, prompts: list[str], completions: list[str], **columns: Any) -> Any:
        return [None] * len(completions)


def answer(prompt: str) -> int:
    return sum(int(part) for part in prompt.rstrip("=").split("+"))


def plus(**options: Any) -> Arithmetic:
    return Arithmetic("validation", size=SIZE, digits=1, operators="+", **options)


def rollouts(**options: Any) -> RolloutDataModule:
    sources = {"val_dataset": PromptDataset(plus())}
    return RolloutDataModule(
        PromptDataset(Arithmetic("train", size=32, digits=1), columns=["answer"]),
        rewards=Scorer([HasDigit()], workers=0), group_size=4, steps_per_epoch=2, batch_size=3,
        eval_batch_size=3, sampling=SamplingParams(max_new_tokens=3), **sources | options,
    )  # fmt: skip


def demonstrations(**options: Any) -> DemonstrationsDataModule:
    validation = DemonstrationDataset(plus(), columns=["answer"])
    return DemonstrationsDataModule(
        DemonstrationDataset(Arithmetic("train", size=16, digits=1, operators="+")),
        **{"batch_size": 8, "eval_batch_size": 4, "val_dataset": validation} | options,
    )


def grpo(learning_rate: float = 1e-3) -> GRPO:
    model = ConfiguredLM(hidden_size=16, layers=1, heads=2, max_positions=32, seed=1)
    return GRPO(model, optimization=Optimization(learning_rate=learning_rate), max_new_tokens=0)


def trainer(folder: Path, *callbacks: Callback, **options: Any) -> Trainer:
    seed_everything(3, verbose=False)
    defaults = {"logger": False, "accelerator": "cpu", "enable_progress_bar": False}
    defaults |= {"enable_checkpointing": False, "num_sanity_val_steps": 0}
    return Trainer(
        callbacks=[*callbacks], enable_model_summary=False, default_root_dir=folder,
        **defaults | options,
    )  # fmt: skip


def metrics(trainer: Trainer) -> dict[str, float]:
    values = trainer.callback_metrics.items()
    return {name[4:]: float(value) for name, value in values if name[:4] == "val/"}


def pass_rate(correct: list[bool], k: int) -> float:
    """Fraction of all choices of k answers with at least one correct answer."""
    choices = [*combinations(correct, k)]
    return sum(any(choice) for choice in choices) / len(choices)


def prompts_of(source: Any) -> list[str]:
    texts = source.val_dataset.texts(torch.arange(len(source.val_dataset)))
    return [*dict.fromkeys(text["prompt"] for text in texts)]


# Metrics ------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("source", "dataset"),
    [(rollouts, PromptDataset), (demonstrations, DemonstrationDataset)],
)
def test_pass_at_k_is_the_rate_over_all_choices_of_k(
    tmp_path: Path, source: Any, dataset: Any
) -> None:
    validation = dataset(plus(demonstrations_per_prompt=3), columns=["answer"])
    data = source(val_dataset=validation)
    model = Scripted()
    callback = PassAtK(k=(3, 1, 9), samples=9, reward=Scorer([Exact()], workers=0), batch_prompts=3)
    run = trainer(tmp_path, callback)
    run.validate(model, data, verbose=False)
    prompts = prompts_of(data)
    assert len(prompts) == SIZE  # each has three demonstrations, and is answered once
    assert [p for part in model.prompts for p in part] == prompts
    assert [len(part) for part in model.prompts] == [3, 3, 1]
    assert len(set(model.streams)) == 3  # random numbers differ between batches
    counts = [answer(prompt) % 10 for prompt in prompts]
    assert len(set(counts)) > 2
    expected = {
        f"pass@{k}": sum(pass_rate([n < c for n in range(9)], k) for c in counts) / SIZE
        for k in (1, 3, 9)
    }
    expected |= {"mean@9": sum(counts) / 9 / SIZE, "truncated@9": 1 / 9, "pass_prompts": SIZE}
    assert metrics(run) == pytest.approx(expected, abs=1e-6)
    limit = 3 if source is rollouts else 5  # of the datamodule's sampling, or else the module
    assert model.sampling == SamplingParams(limit, temperature=1.0)


def test_sampling_overrides_the_datamodule_and_the_module(tmp_path: Path) -> None:
    model, sampling = Scripted(), SamplingParams(7, temperature=0.5, top_p=0.9)
    callback = PassAtK(k=[1], samples=2, sampling=sampling, reward=Scorer([Exact()], workers=0))
    trainer(tmp_path, callback).validate(model, rollouts(), verbose=False)
    assert model.sampling == sampling


rewards = st.sampled_from([0.0, 0.5, 1.0, 2.0, None])


@given(st.lists(st.lists(rewards, min_size=5, max_size=5), min_size=1, max_size=6))
def test_answers_without_a_reward_do_not_count(rows: list[list[float | None]]) -> None:
    callback = PassAtK(k=(1, 4), samples=5)
    callback._reset(torch.device("cpu"))
    values = [[float("nan") if r is None else r for r in row] for row in rows]
    callback._update(torch.tensor(values, dtype=torch.float64), torch.zeros(3), torch.device("cpu"))
    scored = [[r for r in row if r is not None] for row in rows]
    for k in (1, 4):
        rates = [pass_rate([r >= 1 for r in row], k) for row in scored if len(row) >= k]
        value = float(callback._means[f"pass@{k}"].compute())
        assert (value != value) if not rates else value == pytest.approx(sum(rates) / len(rates))
    means = [sum(row) / len(row) for row in scored if row]
    value = float(callback._means["mean@5"].compute())
    assert (value != value) if not means else value == pytest.approx(sum(means) / len(means))
    assert float(callback._scored_prompts.compute()) == len(means)


def test_an_answer_is_correct_at_the_threshold(tmp_path: Path) -> None:
    class Graded(Reward):
        def __call__(self, prompts: list[str], completions: list[str], **columns: Any) -> Any:
            return [0.5] * len(completions)

    for threshold, expected in ((0.5, 1.0), (0.51, 0.0)):
        callback = PassAtK(
            k=[1], samples=2, reward=Scorer([Graded()], workers=0), threshold=threshold
        )
        run = trainer(tmp_path, callback)
        run.validate(Scripted(), rollouts(), verbose=False)
        assert (metrics(run)["pass@1"], metrics(run)["mean@2"]) == (expected, 0.5)


def test_a_metric_without_values_is_not_logged(tmp_path: Path) -> None:
    run = trainer(tmp_path, PassAtK(k=[1], samples=2, reward=Scorer([Never()], workers=0)))
    run.validate(Scripted(), rollouts(), verbose=False)
    assert metrics(run) == {"truncated@2": 0.5, "pass_prompts": 0.0}


# A real policy ------------------------------------------------------------------------------------


class Watched(GRPO):
    """Keeps its answers."""

    def sample(self, prompts: list[str], samples: int, sampling: SamplingParams) -> Any:
        rows = super().sample(prompts, samples, sampling)
        self.answered: list[Any] = [*getattr(self, "answered", []), *rows]
        return rows


def watched(learning_rate: float = 1e-30) -> Watched:
    model = ConfiguredLM(hidden_size=16, layers=1, heads=2, max_positions=32, seed=1)
    return Watched(
        model,
        optimization=Optimization(learning_rate=learning_rate),
        max_new_tokens=0,
        reward=Scorer([HasDigit()], workers=0),
    )


def test_metrics_are_those_of_the_policys_answers(tmp_path: Path) -> None:
    model = watched()
    run = trainer(tmp_path, PassAtK(k=(1, 2), samples=6, batch_prompts=4), max_epochs=2)
    run.fit(model, rollouts())
    assert len(model.answered) == 2 * SIZE
    # The policy does not change, so its answers are equal in both epochs ...
    assert model.answered[:SIZE] == model.answered[SIZE:]
    texts = [[answer["completion"] for answer in row] for row in model.answered[SIZE:]]
    assert len({text for row in texts for text in row}) > 30  # ... and differ between prompts
    correct = [[any(c.isdigit() for c in t) for t in row if not t[:1].isupper()] for row in texts]
    logged = metrics(run)
    assert logged["pass_prompts"] == sum(len(row) > 0 for row in correct)
    for k in (1, 2):
        rates = [pass_rate(row, k) for row in correct if len(row) >= k]
        assert logged[f"pass@{k}"] == pytest.approx(sum(rates) / len(rates), abs=1e-6)
    assert 0 < logged["pass@1"] < logged["pass@2"] < 1
    truncated = [a["finish"] == "length" for row in model.answered[SIZE:] for a in row]
    assert logged["truncated@6"] == pytest.approx(sum(truncated) / len(truncated), abs=1e-6)


def test_the_evaluation_does_not_change_the_training(tmp_path: Path) -> None:
    states: list[dict[str, Tensor]] = []
    for callbacks in ([], [PassAtK(k=[1], samples=3, reward=Scorer([HasDigit()], workers=0))]):
        model = grpo()
        run = trainer(tmp_path, *callbacks, max_epochs=2, val_check_interval=1)
        run.fit(model, rollouts())
        states.append(model.state_dict() | {"next": torch.rand(3)})
    for name, value in states[0].items():
        assert value.equal(states[1][name]), name


def test_demonstrations_and_iw_sft_are_evaluated_too(tmp_path: Path) -> None:
    model = ConfiguredLM(hidden_size=16, layers=1, heads=2, max_positions=32, seed=1)
    run = trainer(tmp_path, PassAtK(k=[1, 3], samples=3), max_epochs=1)
    run.fit(IWSFT(model, objective="nll", max_new_tokens=3), demonstrations())
    logged = metrics(run)
    assert {"pass@1", "pass@3", "mean@3", "truncated@3", "nll"} <= set(logged)
    assert logged["pass_prompts"] == SIZE
    assert logged["mean@3"] == pytest.approx(logged["pass@1"])


# Schedule and limits ------------------------------------------------------------------------------


class AnswerCounter(Callback):
    """Keeps after each validation how many prompts have been answered."""

    def __init__(self) -> None:
        self.counts: list[int] = []

    def on_validation_end(self, trainer: Trainer, pl_module: Any) -> None:
        self.counts.append(len(getattr(pl_module, "answered", [])))


def test_sanity_checks_and_epochs_between_intervals_are_skipped(tmp_path: Path) -> None:
    for every, expected in ((1, [0, SIZE, 2 * SIZE]), (2, [0, 0, SIZE, SIZE, 2 * SIZE])):
        counter = AnswerCounter()
        callback = PassAtK(k=[1], samples=1, every_n_epochs=every)
        options = {"max_epochs": 2 * every, "num_sanity_val_steps": 2}
        trainer(tmp_path, callback, counter, **options).fit(watched(), rollouts())
        assert counter.counts == expected


def test_validate_evaluates_in_any_epoch(tmp_path: Path) -> None:
    run = trainer(tmp_path, PassAtK(k=[1], samples=1, every_n_epochs=2))
    run.validate(watched(), rollouts(), verbose=False)
    assert "pass@1" in metrics(run)


def test_limits_hold_and_prompts_are_spread_over_the_set(tmp_path: Path) -> None:
    data = rollouts()
    prompts = prompts_of(data)
    for options, limits, expected in (
        ({"max_prompts": 3}, {}, [prompts[0], prompts[2], prompts[4]]),
        ({"max_prompts": 99}, {}, prompts),
        ({}, {"limit_val_batches": 1}, prompts[:3]),
    ):
        model = Scripted()
        run = trainer(
            tmp_path,
            PassAtK(k=[1], samples=1, reward=Scorer([Exact()], workers=0), **options),
            **limits,
        )
        run.validate(model, data, verbose=False)
        assert [p for part in model.prompts for p in part] == expected
        assert metrics(run)["pass_prompts"] == len(expected)


def test_a_second_validation_starts_empty(tmp_path: Path) -> None:
    callback = PassAtK(k=[1], samples=1, reward=Scorer([Exact()], workers=0))
    for limit, expected in ((1.0, SIZE), (1, 3)):
        run = trainer(tmp_path, callback, limit_val_batches=limit)
        run.validate(Scripted(), rollouts(), verbose=False)
        assert metrics(run)["pass_prompts"] == expected


# Validation ---------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"samples": 8}, r"k is \[1, 4, 16\] and samples is 8; .* raise samples, or lower k"),
        ({"k": [0]}, r"k is \[0\] and samples is 16"),
        ({"k": []}, r"k is \[\] and samples is 16"),
        ({"samples": 0}, "samples is 0; it must be at least 1"),
        ({"every_n_epochs": 0}, "every_n_epochs is 0"),
        ({"max_prompts": 0}, "max_prompts is 0"),
        ({"batch_prompts": 0}, "batch_prompts is 0"),
        (
            {"sampling": SamplingParams(temperature=0.0)},
            "sampling.temperature is 0 and samples is 16; greedy answers are all equal",
        ),
        ({"threshold": float("nan")}, "threshold is nan"),
    ],
)
def test_an_option_out_of_range_is_named(options: dict[str, Any], words: str) -> None:
    with pytest.raises(ValueError, match=words):
        PassAtK(**options)


def test_one_greedy_answer_is_accepted() -> None:
    PassAtK(k=[1], samples=1, sampling=SamplingParams(temperature=0.0))


@pytest.mark.filterwarnings("ignore:You defined a `validation_step` but have no")
def test_what_the_validation_set_lacks_is_named_before_training(tmp_path: Path) -> None:
    def assert_rejected(model: LightningModule, data: Any, words: str) -> None:
        callback = PassAtK(k=[1], samples=2)
        run = trainer(tmp_path, callback, max_epochs=1, num_sanity_val_steps=2)
        with pytest.raises(ValueError, match=words):
            run.fit(model, data)
        assert run.global_step == 0

    no_columns = demonstrations(val_dataset=DemonstrationDataset(plus()))
    nothing = "there are none: give the datamodule a val_dataset"
    assert_rejected(watched(), rollouts(val_dataset=None), nothing)
    plain = ConfiguredLM(hidden_size=16, layers=1, heads=2, max_positions=32, seed=1)
    assert_rejected(
        IWSFT(plain, objective="nll", max_new_tokens=0), demonstrations(),
        "sampling is None, and neither .* set PassAtK's sampling",
    )  # fmt: skip
    assert_rejected(
        IWSFT(plain, objective="nll", max_new_tokens=2), no_columns,
        "exact_match needs the column 'answer', but validation batches have none",
    )  # fmt: skip


def test_padding_rows_are_not_answered() -> None:
    callback, model = PassAtK(k=[1], samples=1, reward=Scorer([Exact()], workers=0)), Scripted()
    batch = {"index": torch.tensor([4, 5]), "counted": torch.tensor([True, False])}
    texts = {"prompt": ["1+1=", "2+2="], "answer": ["2", "4"]}
    callback.on_validation_batch_end(None, model, None, batch | texts, 0)  # type: ignore[arg-type]
    assert callback._prompts == [(4, "1+1=", {"answer": "2"})]


def test_missing_batch_keys_and_a_missing_reward_are_named() -> None:
    callback, model = PassAtK(k=[1], samples=1), Scripted()
    batch = {"index": torch.tensor([0]), "counted": torch.tensor([True]), "prompt": ["1+1="]}
    with pytest.raises(ValueError, match=r"have no \['prompt', 'counted'\]: give the datamodule"):
        callback.on_validation_batch_end(None, model, None, {"index": batch["index"]}, 0)  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="reward is None, and Scripted has no reward"):
        callback.on_validation_batch_end(None, model, None, batch, 0)  # type: ignore[arg-type]


# Ranks --------------------------------------------------------------------------------------------


def evaluate(folder: Path, **options: Any) -> dict[str, float]:
    model, callback = watched(), PassAtK(k=(1, 2), samples=4, batch_prompts=3)
    run = trainer(folder, callback, **options)
    run.validate(model, rollouts(), verbose=False)
    logged = metrics(run) | {"answered": len(model.answered)}
    if run.is_global_zero:
        (folder / "metrics.json").write_text(json.dumps(logged))
    return logged


@pytest.mark.multiprocess
def test_two_ranks_log_the_same_metrics_as_one(tmp_path: Path) -> None:
    """Runs this file as a program in two processes; of three batches one rank has two."""
    alone = evaluate(tmp_path)
    done = subprocess.run(
        [sys.executable, __file__, str(tmp_path)],
        capture_output=True, text=True, check=False, timeout=250, cwd=Path.cwd(),
    )  # fmt: skip
    assert done.returncode == 0, done.stdout + done.stderr
    together = json.loads((tmp_path / "metrics.json").read_text())
    assert (alone.pop("answered"), together.pop("answered")) == (SIZE, 3 + 1)
    assert together == pytest.approx(alone, abs=1e-6)
    assert together["pass_prompts"] == SIZE


if __name__ == "__main__":
    evaluate(Path(sys.argv[1]), devices=2, strategy="ddp")
