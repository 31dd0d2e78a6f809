"""Loading from the hub without a network."""

import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from lit_adaptive.data.sources.rows import load_rows
from lit_adaptive.modules.classifier_networks import TransformersClassifier
from lit_adaptive.rollout.models import hub
from lit_adaptive.rollout.models.embeddings import SentenceEncoder
from lit_adaptive.rollout.models.pretrained import load_model, load_tokenizer
from lit_adaptive.rollout.rewards.reward_model import RewardModel


@pytest.mark.parametrize(
    "load",
    [
        load_tokenizer,
        load_model,
        load_rows,
        lambda name: SentenceEncoder(name)(["text"]),
        lambda name: RewardModel(name)(["prompt"], ["completion"]),
        lambda name: TransformersClassifier(name, 2, task="text"),
    ],
    ids=["tokenizer", "model", "rows", "encoder", "reward", "classifier"],
)
def test_a_name_that_is_not_cached_fails_in_seconds_without_a_network(
    load: Callable[[str], Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("huggingface_hub.constants.ENDPOINT", "http://localhost:1")
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", False)
    monkeypatch.setattr("datasets.config.HF_HUB_OFFLINE", False)
    start = time.monotonic()
    with pytest.raises(ValueError, match=r"nobody/nothing.*localhost:1 cannot be reached.*cache"):
        load("nobody/nothing")
    assert time.monotonic() - start < 8


def test_the_hub_is_not_asked_about_a_folder(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(hub, "_reachable", lambda: pytest.fail("asked"))
    with hub.hub_access(str(tmp_path)):
        pass


def test_libraries_are_offline_only_within_the_block(monkeypatch: pytest.MonkeyPatch) -> None:
    from huggingface_hub import constants

    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setattr(hub, "_reachable", lambda: False)
    with hub.hub_access("nobody/nothing"):
        assert constants.is_offline_mode()
    assert not constants.is_offline_mode()
    with pytest.raises(ZeroDivisionError), hub.hub_access("nobody/nothing"):
        _ = 1 / 0
    assert not constants.is_offline_mode()
