"""CompletionTable shows each step as it was, and once, also after resuming."""

import json
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
import wandb
from hypothesis import given
from hypothesis import strategies as st
from lightning.pytorch import Callback, Trainer, seed_everything
from lightning.pytorch.callbacks import ModelCheckpoint, TQDMProgressBar
from lightning.pytorch.loggers import WandbLogger

from callbacks import completion_table
from callbacks._run_files import write_jsonl
from callbacks.completion_table import CompletionTable, render_table, select_completions
from callbacks.rollout_replay import RolloutReplay
from lit_adaptive.data import Arithmetic, PromptDataset, RolloutDataModule
from lit_adaptive.modules import GRPO, ConfiguredLM, Optimization
from lit_adaptive.replay import RolloutBuffer
from lit_adaptive.replay.rollouts.groups import RolloutGroups
from lit_adaptive.rollout.generation import SamplingParams
from lit_adaptive.rollout.rewards.base import Reward
from lit_adaptive.rollout.rewards.scorer import Scorer

pytestmark = [
    pytest.mark.filterwarnings("ignore:`isinstance"),
    pytest.mark.filterwarnings("ignore:Checkpoint directory"),
    pytest.mark.filterwarnings("ignore:Be aware that when using `ckpt_path`"),
]


class Digits(Reward):
    """The fraction of digits; does not apply to completions that begin with a capital."""

    def __call__(self, prompts: list[str], completions: list[str], **columns: Any) -> Any:
        return [
            None if text[:1].isupper() else sum(c.isdigit() for c in text) / max(len(text), 1)
            for text in completions
        ]


class Same(Reward):
    """The same reward for every completion."""

    def __call__(self, prompts: list[str], completions: list[str], **columns: Any) -> Any:
        return [0.5] * len(completions)


def data(**options: Any) -> RolloutDataModule:
    defaults = {"steps_per_epoch": 4, "minibatches": 2, "batch_size": 3}
    defaults["rewards"] = Scorer([options.pop("reward", Digits())], workers=0)
    return RolloutDataModule(
        PromptDataset(Arithmetic("train", size=64, digits=1), columns=["answer"]),
        val_dataset=PromptDataset(Arithmetic("validation", size=2, digits=1)),
        group_size=4, sampling=SamplingParams(max_new_tokens=5), **defaults | options,
    )  # fmt: skip


def module() -> GRPO:
    model = ConfiguredLM(hidden_size=16, layers=1, heads=2, max_positions=32, seed=1)
    return GRPO(model, optimization=Optimization(learning_rate=1e-3), max_new_tokens=0)


class StepRecorder(Callback):
    """Keeps every finished step."""

    def __init__(self) -> None:
        self.steps: dict[int, Any] = {}

    def on_train_batch_end(self, trainer: Any, *_: Any) -> None:
        if (step := trainer.datamodule.finished_step) is not None:
            assert step.number not in self.steps
            self.steps[step.number] = step


def fit(
    folder: Path, *callbacks: Callback, source: Any = None, resume: Any = None, **options: Any
) -> Trainer:
    seed_everything(3, verbose=False)
    defaults = {"max_epochs": 2, "logger": False, "log_every_n_steps": 1, "accelerator": "cpu"}
    defaults |= {
        "enable_progress_bar": False,
        "enable_checkpointing": False,
        "limit_val_batches": 0,
    }
    trainer = Trainer(
        callbacks=[*callbacks], enable_model_summary=False, default_root_dir=folder,
        **defaults | options,
    )  # fmt: skip
    trainer.fit(module(), source or data(), ckpt_path=resume, weights_only=True)
    return trainer


def lines(folder: Path) -> list[dict[str, Any]]:
    with (folder / "rollouts.jsonl").open(encoding="utf-8") as file:
        return [json.loads(line) for line in file]


def quiet(**options: Any) -> CompletionTable:
    defaults = {"every_n_steps": 3, "rows": 4, "terminal": False, "columns": ["answer"]}
    return CompletionTable(**defaults | options)


# Rows ---------------------------------------------------------------------------------------------


def test_every_third_step_is_written_as_it_was(tmp_path: Path, monkeypatch: Any) -> None:
    seen, source, seeds = StepRecorder(), data(), set[int]()

    def recorded(groups: RolloutGroups, count: int, seed: int) -> dict[int, str]:
        seeds.add(seed)
        return select_completions(groups, count, seed)

    monkeypatch.setattr(completion_table, "select_completions", recorded)
    fit(tmp_path, quiet(), seen, source=source)
    assert len(seeds) == 3  # the random choice differs between steps
    rows = lines(tmp_path)
    assert [row["step"] for row in rows] == [0] * 4 + [3] * 4 + [6] * 4
    assert sorted(seen.steps) == [*range(8)]
    for row in rows:
        groups: RolloutGroups = seen.steps[row["step"]].groups
        texts = source.dataset.decode_completions(groups.tokens.split(groups.lengths.tolist()))
        prompts = source.texts(groups.prompt[groups.group])
        same = [
            n for n in range(groups.rollouts)
            if (texts[n], prompts[n]["prompt"]) == (row["completion"], row["prompt"])
        ]  # fmt: skip
        assert same, row
        n = same[0]
        reward = None if bool(groups.reward[n].isnan()) else float(groups.reward[n])
        assert row["reward"] == (None if reward is None else pytest.approx(reward, abs=1e-6))
        assert row["advantage"] == pytest.approx(float(groups.advantage[n]), abs=1e-6)
        assert row["length"] == int(groups.lengths[n])
        assert row["finish"] == ("stop" if bool(groups.stopped[n]) else "length")
        assert (row["answer"], row["id"]) == (
            prompts[n]["answer"], prompts[n]["prompt"][:-1] + "#0",
        )  # fmt: skip
        assert (row["origin"], row["age"]) == ("fresh", 0)
    for number in (0, 3, 6):
        best, worst, *random = [row for row in rows if row["step"] == number]
        reward = seen.steps[number].groups.reward
        reward = reward[~reward.isnan()]
        assert best["reward"] == pytest.approx(float(reward.max()), abs=1e-6)
        assert worst["reward"] == pytest.approx(float(reward.min()), abs=1e-6)
        assert [row["choice"] for row in (best, worst, *random)] == (
            ["best", "worst", "random", "random"]
        )


def test_replayed_completions_show_their_age(tmp_path: Path) -> None:
    source = data(replay=RolloutBuffer(capacity=64), replay_fraction=0.5, batch_size=4)
    fit(tmp_path, quiet(rows=16, every_n_steps=1), RolloutReplay(), StepRecorder(), source=source)
    rows = lines(tmp_path)
    ages = {"fresh": set[int](), "replayed": set[int]()}
    for row in rows:
        ages[row["origin"]].add(row["age"])
    assert ages["fresh"] == {0}
    assert ages["replayed"] >= {1, 2}
    assert 0 not in ages["replayed"]
    assert sum(row["origin"] == "replayed" for row in rows if row["step"] == 7) == 8


def test_a_step_without_training_shows_the_completions_left_out(tmp_path: Path) -> None:
    fit(tmp_path, quiet(), source=data(reward=Same(), drop_uninformative=True))
    assert {row["origin"] for row in lines(tmp_path)} == {"left out"}
    assert {row["reward"] for row in lines(tmp_path)} == {0.5}
    assert {row["choice"] for row in lines(tmp_path)} == {"random"}  # neither best nor worst


def test_the_table_changes_nothing_and_equal_runs_show_equal_rows(tmp_path: Path) -> None:
    runs: dict[str, Any] = {}
    for name, callbacks in (
        ("without", []), ("one", [quiet()]), ("again", [quiet()])
    ):  # fmt: skip
        trainer = fit(tmp_path / name, *callbacks)
        runs[name] = trainer.lightning_module.state_dict()
    for name, state in runs.items():
        for key, value in state.items():
            assert value.equal(runs["without"][key]), (name, key)
    assert lines(tmp_path / "one") == lines(tmp_path / "again")


def groups(reward: list[float], demonstration: list[bool] | None = None) -> RolloutGroups:
    """One group; completion n has n + 1 tokens."""
    count = len(reward)
    length = torch.arange(count) + 1
    return RolloutGroups(
        prompt=torch.tensor([5]), version=torch.tensor([2]),
        probability=torch.ones(1, dtype=torch.float64), weight=torch.ones(1),
        size=torch.tensor([count]), prompt_tokens=torch.ones(3, dtype=torch.int32),
        prompt_lengths=torch.tensor([3]), tokens=torch.ones(int(length.sum()), dtype=torch.int32),
        log_probs=torch.zeros(int(length.sum())), lengths=length, reward=torch.tensor(reward),
        stopped=torch.ones(count, dtype=torch.bool),
        demonstration=torch.tensor(demonstration or [False] * count),
        advantage=torch.zeros(count),
    )  # fmt: skip


numbers = st.sampled_from([0.0, 0.5, 1.0, float("nan")])


@given(st.lists(st.tuples(numbers, st.booleans()), min_size=1, max_size=9), st.integers(1, 9))
def test_best_worst_and_random_are_those_of_a_plain_loop(
    rollouts: list[tuple[float, bool]], count: int
) -> None:
    selected = select_completions(
        groups([r for r, _ in rollouts], [d for _, d in rollouts]), count, 7
    )
    sampled = [n for n, (_, demonstration) in enumerate(rollouts) if not demonstration]
    assert len(selected) == min(count, len(sampled))
    assert set(selected) <= set(sampled)
    best = worst = None
    for n in sampled:
        reward = rollouts[n][0]
        if reward == reward:
            best = n if best is None or reward > rollouts[best][0] else best
            worst = n if worst is None or reward <= rollouts[worst][0] else worst
    expected = []
    if best is not None and worst is not None and rollouts[best][0] > rollouts[worst][0]:
        expected = [(best, "best"), (worst, "worst")][:count]
    assert [*selected.items()][: len(expected)] == expected
    assert {*[*selected.values()][len(expected) :]} <= {"random"}


def test_every_completion_can_be_selected_at_random() -> None:
    some = groups([1.0, 0.0, 0.5, 0.5, 0.5])
    third = {[*select_completions(some, 3, seed)][2] for seed in range(60)}
    assert third == {2, 3, 4}


# Resumption ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("minibatch", [6, 7])  # at the end of a step, and in the middle of one
@pytest.mark.parametrize("same_folder", [True, False])
def test_a_resumed_run_ends_with_the_file_of_the_uninterrupted_one(
    tmp_path: Path, minibatch: int, same_folder: bool
) -> None:
    whole, first = tmp_path / "whole", tmp_path / "first"
    second = first if same_folder else tmp_path / "second"
    fit(whole, quiet(every_n_steps=1))
    save = ModelCheckpoint(first, every_n_train_steps=minibatch, save_top_k=-1)
    fit(first, quiet(every_n_steps=1), save, enable_checkpointing=True, max_steps=13)
    with (first / "rollouts.jsonl").open("a") as file:
        file.write('{"step": 1, "choice": "be')  # killed while writing
    saved = next(first.glob(f"*step={minibatch}.ckpt"))
    fit(second, quiet(every_n_steps=1), resume=saved)
    assert lines(second) == lines(whole)
    assert max(row["step"] for row in lines(whole)) == 7


def test_rows_may_contain_any_character(tmp_path: Path) -> None:
    path = tmp_path / "rollouts.jsonl"
    rows = [{"step": n, "completion": "a\u2028b\x85c\n\x1bé"} for n in range(4)]
    write_jsonl(path, rows)
    assert completion_table._rows_until(path, 2) == rows[:3]


def test_a_new_run_empties_the_file_in_its_folder(tmp_path: Path) -> None:
    (tmp_path / "rollouts.jsonl").write_text('{"step": 0}\n')
    callback = quiet()
    for _ in range(2):  # the same callback, too
        fit(tmp_path, callback)
        assert [row["step"] for row in lines(tmp_path)] == [0] * 4 + [3] * 4 + [6] * 4


def test_a_second_fit_of_the_same_datamodule_appends(tmp_path: Path) -> None:
    source, callback = data(), quiet()
    fit(tmp_path, callback, source=source, max_epochs=1)
    fit(tmp_path, callback, source=source, max_epochs=1)
    assert [row["step"] for row in lines(tmp_path)] == [0] * 4 + [3] * 4 + [6] * 4


def test_file_none_writes_no_file(tmp_path: Path) -> None:
    fit(tmp_path, quiet(file=None))
    assert not [*tmp_path.iterdir()]


# Terminal -----------------------------------------------------------------------------------------


def row(**values: Any) -> dict[str, Any]:
    names = ("step", "choice", "id", "prompt", "completion", "reward", "advantage", "length")
    zeros = dict.fromkeys((*names, "finish", "origin", "age"), 0)
    defaults = {"step": 12, "choice": "best", "prompt": "3+4=", "reward": None, "completion": "7"}
    return zeros | defaults | values


def test_control_characters_of_completions_are_escaped(monkeypatch: Any) -> None:
    monkeypatch.setenv("COLUMNS", "200")
    text = render_table([row(completion="a\x1b[2Jb\nc [bold]d[/] é", answer="7!")], ["answer"])
    assert r"a\x1b[2Jb\nc [bold]d[/] é" in text
    assert "\x1b" not in text
    assert "rollout step 12" in text
    assert "7!" in text
    assert "┃" in text


def test_long_texts_lose_their_middle(monkeypatch: Any) -> None:
    monkeypatch.setenv("COLUMNS", "200")
    text = render_table([row(completion="x" * 300 + "MIDDLE" + "y" * 300)])
    assert "MIDDLE" not in text
    assert "[...]" in text
    assert 390 <= text.count("x") + text.count("y") <= 410
    assert "-" in render_table([row(reward=None)])
    assert "0.3333" in render_table([row(reward=1 / 3)])


@pytest.mark.parametrize("width", [60, 80, 200])
def test_a_narrow_terminal_shows_the_whole_text(monkeypatch: Any, width: int) -> None:
    monkeypatch.setenv("COLUMNS", str(width))
    facts = {"choice": "random", "finish": "length", "origin": "replayed", "age": 12}
    numbers = {"length": 1024, "reward": 0.25, "advantage": -1.5}
    texts = {"prompt": "é" * 130, "completion": "ü" * 210, "answer": "ö" * 90}
    text = render_table([row(**texts, **facts, **numbers)], ["answer"])
    assert max(map(len, text.splitlines())) <= width
    assert [text.count(letter) for letter in "éüö"] == [130, 210, 90]
    for whole in ("random", "reward 0.25", "advantage -1.5", "1024 tokens, length"):
        assert whole in text
    assert "replayed, age 12" in text


def test_tables_are_printed_beside_a_progress_bar_or_without_one(
    tmp_path: Path, capsys: Any
) -> None:
    class Bar(TQDMProgressBar):
        def print(self, *values: Any, **_: Any) -> None:
            print("bar:", *values)

    seen: list[str] = []
    for name, options in (
        ("none", {}),
        ("bar", {"enable_progress_bar": True}),
        ("silent", {"enable_progress_bar": True, "rate": 0}),
    ):
        rate = options.pop("rate", 1)
        bars = [Bar(refresh_rate=rate)] if options else []
        fit(tmp_path / name, quiet(terminal=True), *bars, max_steps=2, **options)
        seen.append(capsys.readouterr().out)
    assert all(output.count("rollout step 0") == 1 for output in seen)
    assert ["bar:" in output for output in seen] == [False, True, False]


def test_a_terminal_without_the_characters_gets_question_marks(monkeypatch: Any) -> None:
    monkeypatch.setattr(sys, "stdout", SimpleNamespace(encoding="ascii"))
    assert completion_table._encodable("┃ é 7") == "? ? 7"


# Weights & Biases ---------------------------------------------------------------------------------


def test_wandb_keeps_the_rows_of_all_steps(tmp_path: Path, monkeypatch: Any) -> None:
    monkeypatch.setenv("WANDB_MODE", "offline")
    monkeypatch.setenv("WANDB_SILENT", "true")
    logger = WandbLogger(project="tables", offline=True, save_dir=tmp_path)
    callback = quiet(file=None)
    try:
        fit(tmp_path, callback, logger=logger)
        table = callback._wandb_tables[logger.experiment.id]
        last = logger.experiment.summary["rollouts"]
    finally:
        wandb.finish()
    assert [values[0] for values in table.data] == [0] * 4 + [3] * 4 + [6] * 4
    assert table.columns[-1] == "answer"
    # On disk each step has an increment of the table, and the last refers to those before it.
    parts = tmp_path.glob("wandb/offline-run-*/files/media/table/*.table.json")
    steps = sorted(
        sorted({row[0] for row in json.loads(part.read_text())["data"]}) for part in parts
    )
    assert steps == [[0], [3], [6]]
    assert (last["increment_num"], len(last["previous_increments_paths"])) == (2, 2)


class OfflineLogger(WandbLogger):
    """A WandbLogger without a run, which records the metrics."""

    def __init__(self, run: Any) -> None:
        self._run, self.logged = run, list[dict[str, Any]]()

    @property
    def experiment(self) -> Any:
        return self._run

    def log_metrics(self, metrics: Any, step: int | None = None) -> None:
        self.logged.append({**metrics, "rows": len(metrics["rollouts"].data), "step": step})


def test_a_resumed_wandb_run_gets_no_step_twice_and_a_new_run_gets_all() -> None:
    earlier = [row(step=n) for n in (0, 3)]
    for resumed, expected in ((True, [(9, 1)]), (False, [(6, 3), (9, 4)])):
        callback = CompletionTable()
        callback._earlier_rows = earlier
        run = SimpleNamespace(id="a", resumed=resumed, summary={"rollouts_step": 6})
        logger = OfflineLogger(run)
        for number in (6, 9):  # 6 was logged after the last checkpoint of the killed run
            callback._log_to_wandb(logger, [row(step=number)], number, 40)
        assert [
            (metrics["rollouts_step"], metrics["rows"]) for metrics in logger.logged
        ] == expected


# Validation ---------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"every_n_steps": 0}, "every_n_steps is 0; it must be at least 1"),
        ({"rows": -1}, "rows is -1; it must be at least 1"),
        ({"file": "rollouts.csv"}, r"file is 'rollouts.csv'; it must end in .jsonl"),
        ({"columns": ["age"]}, r"columns is \['age'\]; the table always has \['age'\]"),
    ],
)
def test_an_option_out_of_range_is_named(options: dict[str, Any], words: str) -> None:
    with pytest.raises(ValueError, match=words):
        CompletionTable(**options)


def test_a_missing_column_is_named_before_training(tmp_path: Path) -> None:
    seen = StepRecorder()
    with pytest.raises(ValueError, match=r"no \['solution'\]; choose from .*'answer'"):
        fit(tmp_path, quiet(columns=["solution"]), seen)
    assert not seen.steps


def test_demonstrations_are_never_shown() -> None:
    selected = select_completions(groups([1.0, 0.2, 0.1], [True, False, False]), 9, 0)
    assert selected == {1: "best", 2: "worst"}
    assert replace(groups([1.0]), demonstration=torch.tensor([True])).rollouts == 1


@pytest.mark.multiprocess
def test_two_ranks_write_each_step_once(tmp_path: Path) -> None:
    """Runs this file as a program in two processes."""
    done = subprocess.run(
        [sys.executable, __file__, str(tmp_path)],
        capture_output=True, text=True, check=False, timeout=250, cwd=Path.cwd(),
    )  # fmt: skip
    assert done.returncode == 0, done.stdout + done.stderr
    assert [row["step"] for row in lines(tmp_path)] == [0] * 4 + [3] * 4 + [6] * 4
    assert done.stdout.count("rollout step 3") == 1


if __name__ == "__main__":
    fit(Path(sys.argv[1]), quiet(terminal=True), devices=2, strategy="ddp")
