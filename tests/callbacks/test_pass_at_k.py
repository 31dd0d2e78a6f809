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
    """1 if there is a digit; does not apply to what begins with a capital."""

    def __call__(self, prompts: list[str], completions: list[str], **columns: Any) -> Any:
        assert len(columns["answer"]) == len(prompts) == len(completions)
        return [
            None if text[:1].isupper() else float(any(c.isdigit() for c in text))
            for text in completions
        ]


class Scripted(LightningModule):
    """Answers a sum rightly as often as its last digit says, the right ones scattered."""

    provides = frozenset({"model.sample"})
    max_new_tokens = 5

    def __init__(self, applies: bool = True) -> None:
        super().__init__()
        self.asked: list[list[str]] = []
        self.streams: list[float] = []
        self.sampling: SamplingParams | None = None
        self.applies = applies

    def sample(
        self, prompts: list[str], samples: int, sampling: SamplingParams
    ) -> list[list[dict[str, Any]]]:
        assert not self.training
        assert not torch.is_grad_enabled()
        self.asked.append(prompts)
        self.streams.append(float(torch.rand(())))
        self.sampling = sampling
        found = []
        for prompt in prompts:
            right = answer(prompt)
            order = torch.randperm(samples).tolist()
            found.append(
                [
                    {
                        "completion": str(right) if n < right % 10 else "?",
                        "finish": "length" if n == 0 else "stop",
                        "log_prob": -1.0,
                    }
                    for n in order
                ]
            )
        return found

    def validation_step(self, batch: Any, _: int) -> None:
        """Only the callback is looked at."""


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
    given = {"logger": False, "accelerator": "cpu", "enable_progress_bar": False}
    given |= {"enable_checkpointing": False, "num_sanity_val_steps": 0}
    return Trainer(
        callbacks=[*callbacks], enable_model_summary=False, default_root_dir=folder,
        **given | options,
    )  # fmt: skip


def told(of: Trainer) -> dict[str, float]:
    return {name[4:]: float(v) for name, v in of.callback_metrics.items() if name[:4] == "val/"}


def by_hand(right: list[bool], k: int) -> float:
    """The share of all choices of k among the answers that hold a right one."""
    choices = [*combinations(right, k)]
    return sum(any(each) for each in choices) / len(choices)


def prompts_of(source: Any) -> list[str]:
    texts = source.val_dataset.texts(torch.arange(len(source.val_dataset)))
    return [*dict.fromkeys(text["prompt"] for text in texts)]


# What is logged -----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("source", "dataset"),
    [(rollouts, PromptDataset), (demonstrations, DemonstrationDataset)],
)
def test_rates_are_those_of_all_choices_of_k(tmp_path: Path, source: Any, dataset: Any) -> None:
    validation = dataset(plus(demonstrations_per_prompt=3), columns=["answer"])
    data = source(val_dataset=validation)
    model = Scripted()
    callback = PassAtK(k=(3, 1, 9), samples=9, reward=Exact(), batch_prompts=3, top_p=0.9)
    run = trainer(tmp_path, callback)
    run.validate(model, data, verbose=False)
    prompts = prompts_of(data)
    assert len(prompts) == SIZE  # each has three demonstrations, and is asked once
    assert [p for part in model.asked for p in part] == prompts
    assert [len(part) for part in model.asked] == [3, 3, 1]
    assert len(set(model.streams)) == 3  # a stream of random numbers for each batch
    counts = [answer(prompt) % 10 for prompt in prompts]
    assert len(set(counts)) > 2
    expected = {
        f"pass@{k}": sum(by_hand([n < c for n in range(9)], k) for c in counts) / SIZE
        for k in (1, 3, 9)
    }
    expected |= {"mean@9": sum(counts) / 9 / SIZE, "cut@9": 1 / 9, "pass_prompts": SIZE}
    assert told(run) == pytest.approx(expected, abs=1e-6)
    limit = 3 if source is rollouts else 5  # the datamodule's sampling, or else the module's
    assert model.sampling == SamplingParams(limit, 1.0, 0.9)


rewards = st.sampled_from([0.0, 0.5, 1.0, 2.0, None])


@given(st.lists(st.lists(rewards, min_size=5, max_size=5), min_size=1, max_size=6))
def test_answers_without_a_reward_do_not_count(found: list[list[float | None]]) -> None:
    callback = PassAtK(k=(1, 4), samples=5)
    callback._reset(torch.device("cpu"))
    values = [[float("nan") if r is None else r for r in row] for row in found]
    callback._add(torch.tensor(values, dtype=torch.float64), torch.zeros(3), torch.device("cpu"))
    judged = [[r for r in row if r is not None] for row in found]
    for k in (1, 4):
        rates = [by_hand([r >= 1 for r in row], k) for row in judged if len(row) >= k]
        value = float(callback._means[f"pass@{k}"].compute())
        assert (value != value) if not rates else value == pytest.approx(sum(rates) / len(rates))
    means = [sum(row) / len(row) for row in judged if row]
    value = float(callback._means["mean@5"].compute())
    assert (value != value) if not means else value == pytest.approx(sum(means) / len(means))
    assert float(callback._prompts.compute()) == len(means)


def test_an_answer_is_right_from_the_threshold_on(tmp_path: Path) -> None:
    class Graded(Reward):
        def __call__(self, prompts: list[str], completions: list[str], **columns: Any) -> Any:
            return [0.5] * len(completions)

    for threshold, expected in ((0.5, 1.0), (0.51, 0.0)):
        callback = PassAtK(k=[1], samples=2, reward=Graded(), threshold=threshold)
        run = trainer(tmp_path, callback)
        run.validate(Scripted(), rollouts(), verbose=False)
        assert (told(run)["pass@1"], told(run)["mean@2"]) == (expected, 0.5)


def test_nothing_is_logged_of_what_nothing_is_known_of(tmp_path: Path) -> None:
    run = trainer(tmp_path, PassAtK(k=[1], samples=2, reward=Never()))
    run.validate(Scripted(), rollouts(), verbose=False)
    assert told(run) == {"cut@2": 0.5, "pass_prompts": 0.0}


# A real policy ------------------------------------------------------------------------------------


class Watched(GRPO):
    """Keeps what it answered."""

    def sample(self, prompts: list[str], samples: int, sampling: SamplingParams) -> Any:
        found = super().sample(prompts, samples, sampling)
        self.answered: list[Any] = [*getattr(self, "answered", []), *found]
        return found


def watched(learning_rate: float = 1e-30) -> Watched:
    model = ConfiguredLM(hidden_size=16, layers=1, heads=2, max_positions=32, seed=1)
    return Watched(
        model,
        optimization=Optimization(learning_rate=learning_rate),
        max_new_tokens=0,
        reward=HasDigit(),
    )


def test_a_policys_answers_are_judged_as_they_are(tmp_path: Path) -> None:
    model = watched()
    run = trainer(tmp_path, PassAtK(k=(1, 2), samples=6, batch_prompts=4), max_epochs=2)
    run.fit(model, rollouts())
    assert len(model.answered) == 2 * SIZE
    # The policy stands still, so it answers in the second epoch as in the first, ...
    assert model.answered[:SIZE] == model.answered[SIZE:]
    texts = [[each["completion"] for each in row] for row in model.answered[SIZE:]]
    assert len({text for row in texts for text in row}) > 30  # ... but each prompt otherwise
    rights = [[any(c.isdigit() for c in t) for t in row if not t[:1].isupper()] for row in texts]
    found = told(run)
    assert found["pass_prompts"] == sum(len(row) > 0 for row in rights)
    for k in (1, 2):
        rates = [by_hand(row, k) for row in rights if len(row) >= k]
        assert found[f"pass@{k}"] == pytest.approx(sum(rates) / len(rates), abs=1e-6)
    assert 0 < found["pass@1"] < found["pass@2"] < 1
    cut = [each["finish"] == "length" for row in model.answered[SIZE:] for each in row]
    assert found["cut@6"] == pytest.approx(sum(cut) / len(cut), abs=1e-6)


def test_training_goes_on_as_if_nobody_had_asked(tmp_path: Path) -> None:
    states: list[dict[str, Tensor]] = []
    for callbacks in ([], [PassAtK(k=[1], samples=3, reward=HasDigit())]):
        model = grpo()
        run = trainer(tmp_path, *callbacks, max_epochs=2, val_check_interval=1)
        run.fit(model, rollouts())
        states.append(model.state_dict() | {"next": torch.rand(3)})
    for name, value in states[0].items():
        assert value.equal(states[1][name]), name


def test_demonstrations_and_their_model_do_too(tmp_path: Path) -> None:
    model = ConfiguredLM(hidden_size=16, layers=1, heads=2, max_positions=32, seed=1)
    run = trainer(tmp_path, PassAtK(k=[1, 3], samples=3), max_epochs=1)
    run.fit(IWSFT(model, objective="nll", max_new_tokens=3), demonstrations())
    found = told(run)
    assert {"pass@1", "pass@3", "mean@3", "cut@3", "nll"} <= set(found)
    assert found["pass_prompts"] == SIZE
    assert found["mean@3"] == pytest.approx(found["pass@1"])


# When, and how many -------------------------------------------------------------------------------


class Counts(Callback):
    """Notes after each validation how many questions were answered so far."""

    def __init__(self) -> None:
        self.found: list[int] = []

    def on_validation_end(self, trainer: Trainer, pl_module: Any) -> None:
        self.found.append(len(getattr(pl_module, "answered", [])))


def test_sanity_checks_ask_nothing_and_epochs_take_turns(tmp_path: Path) -> None:
    for every, expected in ((1, [0, SIZE, 2 * SIZE]), (2, [0, 0, SIZE, SIZE, 2 * SIZE])):
        counts = Counts()
        callback = PassAtK(k=[1], samples=1, every_n_epochs=every)
        options = {"max_epochs": 2 * every, "num_sanity_val_steps": 2}
        trainer(tmp_path, callback, counts, **options).fit(watched(), rollouts())
        assert counts.found == expected


def test_who_validates_is_answered_in_any_epoch(tmp_path: Path) -> None:
    run = trainer(tmp_path, PassAtK(k=[1], samples=1, every_n_epochs=2))
    run.validate(watched(), rollouts(), verbose=False)
    assert "pass@1" in told(run)


def test_limits_are_kept_and_spread_over_the_set(tmp_path: Path) -> None:
    data = rollouts()
    prompts = prompts_of(data)
    for options, limits, expected in (
        ({"max_prompts": 3}, {}, [prompts[0], prompts[2], prompts[4]]),
        ({"max_prompts": 99}, {}, prompts),
        ({}, {"limit_val_batches": 1}, prompts[:3]),
    ):
        model = Scripted()
        run = trainer(tmp_path, PassAtK(k=[1], samples=1, reward=Exact(), **options), **limits)
        run.validate(model, data, verbose=False)
        assert [p for part in model.asked for p in part] == expected
        assert told(run)["pass_prompts"] == len(expected)


def test_the_second_validation_forgets_the_first(tmp_path: Path) -> None:
    callback = PassAtK(k=[1], samples=1, reward=Exact())
    for limit, expected in ((1.0, SIZE), (1, 3)):
        run = trainer(tmp_path, callback, limit_val_batches=limit)
        run.validate(Scripted(), rollouts(), verbose=False)
        assert told(run)["pass_prompts"] == expected


# Refusals -----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"samples": 8}, r"k is \[1, 4, 16\] and samples 8; .* raise samples, or lower k"),
        ({"k": [0]}, r"k is \[0\] and samples 16"),
        ({"k": []}, r"k is \[\] and samples 16"),
        ({"samples": 0}, "samples is 0; it must be above 0"),
        ({"every_n_epochs": 0}, "every_n_epochs is 0"),
        ({"max_prompts": 0}, "max_prompts is 0"),
        ({"batch_prompts": 0}, "batch_prompts is 0"),
        ({"temperature": 0.0}, "temperature is 0, and samples 16; greedy answers are all equal"),
        ({"temperature": -1.0}, "temperature is -1.0"),
        ({"top_p": 0.0}, "top_p is 0.0"),
        ({"max_new_tokens": -1}, "max_new_tokens is -1"),
        ({"max_new_tokens": 0}, "max_new_tokens is 0"),
        ({"threshold": float("nan")}, "threshold is nan"),
    ],
)
def test_options_out_of_range_are_named(options: dict[str, Any], words: str) -> None:
    with pytest.raises(ValueError, match=words):
        PassAtK(**options)


def test_one_greedy_answer_is_fine() -> None:
    assert PassAtK(k=[1], samples=1, temperature=0.0).temperature == 0


@pytest.mark.filterwarnings("ignore:You defined a `validation_step` but have no")
def test_what_the_validation_set_lacks_is_named_before_training(tmp_path: Path) -> None:
    def refused(model: LightningModule, data: Any, words: str) -> None:
        callback = PassAtK(k=[1], samples=2)
        run = trainer(tmp_path, callback, max_epochs=1, num_sanity_val_steps=2)
        with pytest.raises(ValueError, match=words):
            run.fit(model, data)
        assert run.global_step == 0

    no_columns = demonstrations(val_dataset=DemonstrationDataset(plus()))
    nothing = "there are none: give the datamodule a val_dataset"
    refused(watched(), rollouts(val_dataset=None), nothing)
    plain = ConfiguredLM(hidden_size=16, layers=1, heads=2, max_positions=32, seed=1)
    refused(
        IWSFT(plain, objective="nll", max_new_tokens=0), demonstrations(),
        "max_new_tokens is None, and neither .* set PassAtK's max_new_tokens",
    )  # fmt: skip
    refused(
        IWSFT(plain, objective="nll", max_new_tokens=2), no_columns,
        "ExactMatch needs the column 'answer', and validation batches have none",
    )  # fmt: skip


def test_rows_that_only_fill_up_a_rank_are_not_asked() -> None:
    callback, model = PassAtK(k=[1], samples=1, reward=Exact()), Scripted()
    batch = {"index": torch.tensor([4, 5]), "counted": torch.tensor([True, False])}
    texts = {"prompt": ["1+1=", "2+2="], "answer": ["2", "4"]}
    callback.on_validation_batch_end(None, model, None, batch | texts, 0)  # type: ignore[arg-type]
    assert callback._found == [(4, "1+1=", {"answer": "2"})]


def test_batches_and_modules_that_lack_something_are_named() -> None:
    callback, model = PassAtK(k=[1], samples=1), Scripted()
    batch = {"index": torch.tensor([0]), "counted": torch.tensor([True]), "prompt": ["1+1="]}
    with pytest.raises(ValueError, match=r"have no \['prompt', 'counted'\]: give the datamodule"):
        callback.on_validation_batch_end(None, model, None, {"index": batch["index"]}, 0)  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="reward is None, and a Scripted has none of its own"):
        callback.on_validation_batch_end(None, model, None, batch, 0)  # type: ignore[arg-type]


# Ranks --------------------------------------------------------------------------------------------


def answered(folder: Path, **options: Any) -> dict[str, float]:
    model, callback = watched(), PassAtK(k=(1, 2), samples=4, batch_prompts=3)
    run = trainer(folder, callback, **options)
    run.validate(model, rollouts(), verbose=False)
    found = told(run) | {"calls": len(model.answered)}
    if run.is_global_zero:
        (folder / "found.json").write_text(json.dumps(found))
    return found


@pytest.mark.multiprocess
def test_two_ranks_answer_what_one_answers(tmp_path: Path) -> None:
    """Runs this file as a program, in two processes. Three batches of prompts: one rank has two."""
    alone = answered(tmp_path)
    done = subprocess.run(
        [sys.executable, __file__, str(tmp_path)],
        capture_output=True, text=True, check=False, timeout=250, cwd=Path.cwd(),
    )  # fmt: skip
    assert done.returncode == 0, done.stdout + done.stderr
    together = json.loads((tmp_path / "found.json").read_text())
    assert (alone.pop("calls"), together.pop("calls")) == (SIZE, 3 + 1)
    assert together == pytest.approx(alone, abs=1e-6)
    assert together["pass_prompts"] == SIZE


if __name__ == "__main__":
    answered(Path(sys.argv[1]), devices=2, strategy="ddp")
