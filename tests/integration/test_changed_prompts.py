"""A run resumes with prompts that were added, removed and moved, and keeps what it knew of them."""

from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from lightning.pytorch import Callback, seed_everything
from lightning.pytorch.callbacks import ModelCheckpoint
from quiet_trainer import quiet_trainer
from rollout_runs import StepRecorder
from rollout_training import EvenLength

from callbacks import DifficultyRefresh, InfluenceRefresh, PromptStatistics, RolloutReplay
from lit_adaptive.data import Arithmetic, PromptDataset, RolloutDataModule
from lit_adaptive.modules import GRPO, ConfiguredLM, Optimization
from lit_adaptive.replay import RolloutBuffer
from lit_adaptive.rollout.generation import SamplingParams
from lit_adaptive.rollout.rewards.scorer import Scorer
from lit_adaptive.samplers import DifficultySampler, ShuffledSampler

pytestmark = [
    pytest.mark.filterwarnings("ignore:`isinstance"),
    pytest.mark.filterwarnings("ignore:You defined a `validation_step`"),
    pytest.mark.filterwarnings("ignore:The dirpath has changed"),
    pytest.mark.filterwarnings("ignore:the training data"),
]

ROWS = [{"id": row["id"], "prompt": row["prompt"], "answer": row["answer"]} for row in (
    Arithmetic("train", size=70)[i] for i in range(70)
)]  # fmt: skip
FIRST = ROWS[:60]
SECOND = [*ROWS[60:], *reversed(ROWS[10:60])]  # ten new ones, ten are gone, and all have moved
DOTS = partial(DifficultySampler, group_size=4, window=2)


def build(rows: Any, sampler: Any = DOTS, **options: Any) -> RolloutDataModule:
    return RolloutDataModule(
        PromptDataset(rows, columns=["answer"]),
        sampler,
        rewards=Scorer([EvenLength()], workers=0),
        batch_size=6,
        group_size=4,
        sampling=SamplingParams(5),
        steps_per_epoch=4,
        replay=RolloutBuffer(16),
        replay_fraction=0.5,
        seed=5,
        **options,
    )


def fit(
    data: RolloutDataModule,
    folder: Path,
    *more: Callback,
    ckpt_path: str | None = None,
    epochs: int = 1,
) -> tuple[StepRecorder, PromptStatistics, DifficultyRefresh]:
    seed_everything(3, verbose=False)
    recorder, statistics = StepRecorder(), PromptStatistics(signal="pass_rate", file=None)
    refresh = DifficultyRefresh(references=10, hidden_size=16, file=None)
    checkpoint = ModelCheckpoint(folder, "{step}", save_top_k=-1, every_n_train_steps=1)
    trainer = quiet_trainer(
        max_epochs=epochs,
        callbacks=[statistics, refresh, RolloutReplay(), recorder, *more, checkpoint],
        enable_checkpointing=True,
    )
    model = GRPO(
        ConfiguredLM(hidden_size=32, layers=1, heads=2),
        optimization=Optimization(learning_rate=1e-3),
        max_new_tokens=5,
    )
    trainer.fit(model, data, ckpt_path=ckpt_path)
    return recorder, statistics, refresh


def by_id(data: RolloutDataModule, values: Any) -> dict[str, float]:
    return dict(zip(data.ids, values.tolist(), strict=True))


@pytest.mark.parametrize("step", [3, 4], ids=["in an epoch", "after an epoch"])
def test_estimates_statistics_and_observations_follow_the_prompts(
    tmp_path: Path, step: int
) -> None:
    _ = fit(build(FIRST), tmp_path)
    path = str(tmp_path / f"step={step}.ckpt")
    saved = torch.load(path, weights_only=True)
    before = build(FIRST)
    state = saved["RolloutDataModule"]["sampler"]["estimates"]
    known = {name: by_id(before, state[name]) for name in ("successes", "failures")}
    statistics = next(v for k, v in saved["callbacks"].items() if "PromptStatistics" in k)
    visits = by_id(before, statistics["visits"])
    assert sum(visits[row["id"]] for row in SECOND[10:]) > 0

    data = build(SECOND, on_changed_data="remap")
    taken: dict[str, Any] = {}

    class Look(Callback):
        def on_train_start(self, trainer: Any, pl_module: Any) -> None:
            estimator = data.sampler.estimator  # type: ignore[attr-defined]
            taken.update({name: by_id(data, getattr(estimator, name)) for name in known})
            first: Any = trainer.callbacks[0]  # type: ignore[attr-defined]
            taken["visits"] = by_id(data, first.visits)

    recorder, _, refresh = fit(data, tmp_path / "rest", Look(), ckpt_path=path, epochs=2)
    for row in SECOND[10:]:
        assert taken["visits"][row["id"]] == visits[row["id"]]
        for name in known:
            assert taken[name][row["id"]] == known[name][row["id"]]
    for row in SECOND[:10]:
        assert taken["visits"][row["id"]] == 0
        assert taken["successes"][row["id"]] == 0
    # The predictor knows the new prompts before the first draw, and goes on from its observations.
    assert len(refresh.embeddings) == 60
    assert recorder.steps[0].number == step
    assert len(recorder.steps[0].fresh) >= 10  # references, although it is not their turn
    assert all(len(each.groups) == 6 for each in recorder.steps)
    assert recorder.steps[-1].number == 7


def test_observations_of_prompts_that_are_gone_are_forgotten(tmp_path: Path) -> None:
    _, _, first = fit(build(FIRST), tmp_path)
    observed = torch.cat([each.index for each in first._memory])
    kept = [FIRST[i]["id"] for i in observed.tolist() if i >= 10]
    data, path = build(SECOND, on_changed_data="remap"), str(tmp_path / "step=4.ckpt")
    _, _, second = fit(data, tmp_path / "rest", ckpt_path=path, epochs=2)
    moved = torch.cat([each.index for each in second._memory])
    assert [data.ids[i] for i in moved.tolist()][: len(kept)] == kept


def test_prompts_that_did_not_change_are_resumed_exactly(tmp_path: Path) -> None:
    whole, _, _ = fit(build(FIRST), tmp_path, epochs=2)
    path = str(tmp_path / "step=5.ckpt")
    rest, _, _ = fit(
        build(FIRST, on_changed_data="remap"), tmp_path / "rest", ckpt_path=path, epochs=2
    )
    expected = [step.fresh.prompt.tolist() for step in whole.steps[5:]]
    assert [step.fresh.prompt.tolist() for step in rest.steps] == expected


def test_prompts_that_cannot_be_remapped_are_refused() -> None:
    state = build(FIRST).state_dict()
    without = [{name: row[name] for name in ("prompt", "answer")} for row in SECOND]
    with pytest.raises(ValueError, match=r"have no ids.*\(the dataset's option id\)"):
        build(without, on_changed_data="remap").load_state_dict(state)
    others = [row | {"id": f"new {row['id']}"} for row in SECOND]
    with pytest.raises(ValueError, match="no prompt has an id of the checkpoint"):
        build(others, on_changed_data="remap").load_state_dict(state)
    with pytest.raises(ValueError, match="resume with them, set on_changed_data: remap, or start"):
        build(ROWS).load_state_dict(state)
    with pytest.raises(ValueError, match="'remap', but ShuffledSampler keeps no estimates"):
        build(FIRST, ShuffledSampler, on_changed_data="remap")
    with pytest.raises(ValueError, match="'map'; it must be error or warn or remap"):
        build(FIRST, on_changed_data="map")


def test_influence_is_estimated_again_from_the_rollouts_of_prompts_that_stay(
    tmp_path: Path,
) -> None:
    def influence() -> InfluenceRefresh:
        sums = PromptDataset(Arithmetic("validation", size=6, digits=1), columns=["answer"])
        return InfluenceRefresh(
            {"sums": sums},
            3,
            fraction=0.25,
            validation_samples=4,
            dimensions=256,
            keep_ratio=1.0,
            folder=str(tmp_path / "trajectories"),
        )

    _ = fit(build(FIRST), tmp_path, first := influence())
    data = build(SECOND, on_changed_data="remap")
    _ = fit(
        data, tmp_path / "resumed", second := influence(), ckpt_path=str(tmp_path / "step=2.ckpt")
    )
    ids = [row["id"] for row in FIRST]
    kept = {row["id"] for row in SECOND} & {*ids}
    assert {data.ids[prompt] for prompt in second.buffer.prompts.tolist()} >= kept
    groups = second.buffer.select(second.buffer.prompts)
    prompts = torch.split(groups.prompt_tokens, groups.prompt_lengths.tolist())
    for mine, true in zip(prompts, data.dataset.tokens(groups.prompt), strict=True):
        assert mine.tolist() == true.tolist()
    before, now = first._phases[0].tolist(), second._phases[0].tolist()
    assert {data.ids[prompt] for prompt in now} == {ids[prompt] for prompt in before} & kept
    assert len(second._phases) == 3  # that of the checkpoint, one at once, and one in its turn
    for phase in second._phases[1:]:
        assert len(phase) == 15
