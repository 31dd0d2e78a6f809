"""Texts as tokens: stop tokens, truncation, the cache and its fingerprint."""

import json
import pickle
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from lit_adaptive.data import DemonstrationDataset
from lit_adaptive.data.text import demonstration_dataset, tokenization
from lit_adaptive.rollout.models.tokenizers import character_tokenizer

TOKENIZER = character_tokenizer()
BOS, EOS = 1, 2
POLICIES = ("truncate_left", "truncate_right", "drop")
ROWS = [
    {
        "prompt": f"{i % 7}+{i}=",
        "completion": str(i % 7 + i),
        "answer": str(i % 7 + i),
        "reward": i / 4,
        "id": f"row {i}",
    }
    for i in range(30)
]


def _with_bos() -> Any:
    from tokenizers import processors

    tokenizer = character_tokenizer()
    tokenizer.backend_tokenizer.post_processor = processors.TemplateProcessing(
        single="<bos> $A <eos>", special_tokens=[("<bos>", BOS), ("<eos>", EOS)]
    )
    return tokenizer


BEGINNING = _with_bos()


def _ids(text: str) -> list[int]:
    return list(TOKENIZER(text)["input_ids"])


@pytest.mark.parametrize(
    ("completion", "closed"),
    [
        ("82", "82<eos>"),
        ("82<eos>", "82<eos>"),
        ("82<eos><eos>", "82<eos>"),
        ("8<eos>2", "8<eos>2<eos>"),
        ("82\n", "82\n<eos>"),
    ],
)
def test_a_completion_ends_with_exactly_one_stop_token(completion: str, closed: str) -> None:
    rows = [{"prompt": "4=", "completion": completion}]
    batch = DemonstrationDataset(rows, TOKENIZER).gather(torch.tensor([0]))
    assert TOKENIZER.decode(batch["target"]) == closed


def test_a_truncated_completion_has_no_stop_token_and_is_counted() -> None:
    rows = [{"prompt": "a" * n, "completion": "b" * m} for n, m in ((2, 2), (9, 2), (2, 9), (9, 9))]
    counts = {}
    for policy in POLICIES:
        dataset = DemonstrationDataset(rows, TOKENIZER, max_length=6, overlong=policy)  # type: ignore[arg-type]
        counts[policy] = list(dataset.counts.values())
        targets = dataset.gather(torch.arange(len(dataset)))
        ends = [int(targets["target"][targets["sequence"] == i][-1]) for i in range(len(dataset))]
        stopped = [
            dataset.texts(torch.tensor([i]))[0]["completion"] == "bb" for i in range(len(dataset))
        ]
        if policy == "truncate_left":
            assert [end == EOS for end in ends] == stopped == [True, True, False, False]
        elif policy == "truncate_right":
            assert [end == EOS for end in ends] == [True, False]
    # rows, kept, empty, shortened, unfinished, dropped
    assert counts == {
        "truncate_left": [4, 4, 0, 3, 2, 0],
        "truncate_right": [4, 2, 0, 0, 1, 2],
        "drop": [4, 1, 0, 0, 0, 3],
    }
    with pytest.raises(ValueError, match=r"3 of the rows 0 to 3 .* rows \[1, 2, 3\] have \[12, 12"):
        DemonstrationDataset(rows, TOKENIZER, max_length=6)


def test_a_bos_token_is_there_once() -> None:
    rows = [{"prompt": prompt, "completion": "2"} for prompt in ("1+1=", "<bos>1+1=")]
    batch = DemonstrationDataset(rows, BEGINNING).gather(torch.tensor([0, 1]))
    assert batch["input_ids"].tolist() == [[BOS, *_ids("1+1=2"), EOS]] * 2


@pytest.fixture(name="encoded")
def _encoded(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """The number of rows in each batch that is encoded."""
    sizes: list[int] = []
    encode = demonstration_dataset._SampleEncoder.__call__

    def counted(self: Any, batch: Any, rows: list[int]) -> Any:
        sizes.append(len(rows))
        return encode(self, batch, rows)

    monkeypatch.setattr(demonstration_dataset._SampleEncoder, "__call__", counted)
    return sizes


def test_the_cache_is_written_once_and_anew_for_other_content(
    tmp_path: Path, encoded: list[int]
) -> None:
    source, cache = tmp_path / "rows.jsonl", tmp_path / "cache"
    source.write_text("\n".join(map(json.dumps, ROWS)))

    def read(tokenizer: Any = TOKENIZER, **options: Any) -> DemonstrationDataset:
        return DemonstrationDataset(source, tokenizer, cache_dir=cache, **options)

    first = read()
    again = read(packing=True, prompts=True, columns=["answer"])  # the tokens are the same
    assert len(encoded) == 1
    assert again.fingerprint == first.fingerprint
    assert again.counts == first.counts
    read(max_length=500)
    assert len(encoded) == 2
    assert read(character_tokenizer("0123456789+=")).fingerprint != first.fingerprint
    assert len(encoded) == 3
    with source.open("a") as file:
        file.write("\n" + json.dumps({"prompt": "a", "completion": "b", "id": "new"}))
    assert len(read()) == len(ROWS) + 1
    assert len(encoded) == 4


def test_files_are_cached_without_a_folder_and_lists_are_not(
    tmp_path: Path, encoded: list[int]
) -> None:
    source = tmp_path / "rows.jsonl"
    source.write_text("\n".join(map(json.dumps, ROWS)))
    for rows, batches in ((source, 1), (source, 1), (ROWS, 2), (ROWS, 3)):
        DemonstrationDataset(rows, TOKENIZER)
        assert len(encoded) == batches


@pytest.mark.parametrize("damage", ["truncated", "empty"])
def test_a_damaged_cache_is_written_anew(damage: str, tmp_path: Path, encoded: list[int]) -> None:
    cache = tmp_path / "cache"
    expected = DemonstrationDataset(ROWS, TOKENIZER, cache_dir=cache).fingerprint
    (file,) = cache.glob("*.arrow")
    content = file.read_bytes()
    file.unlink()  # its pages are still mapped
    file.write_bytes(content[: len(content) // 2] if damage == "truncated" else b"")
    again = DemonstrationDataset(ROWS, TOKENIZER, cache_dir=cache)
    assert len(encoded) == 2
    assert again.fingerprint == expected
    assert again.texts(torch.tensor([3])) == [ROWS[3]]


def test_a_failure_half_way_leaves_no_cache_behind(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tokenization, "_BATCH", 7)
    cache = tmp_path / "cache"
    rows = [*ROWS, {"prompt": "a", "completion": None, "id": "bad"}]
    with pytest.raises(ValueError, match=r"rows \[30\]"):
        DemonstrationDataset(rows, TOKENIZER, cache_dir=cache)
    assert not [path for path in cache.iterdir() if path.suffix != ".lock"]


@pytest.mark.parametrize("cached", [False, True])
def test_a_worker_process_gets_the_same_batches(cached: bool, tmp_path: Path) -> None:
    dataset = DemonstrationDataset(
        ROWS, TOKENIZER, cache_dir=tmp_path if cached else None, prompts=True
    )
    if cached:  # the tokens are mapped, not sent
        assert dataset._tokenized.gather("tokens", np.arange(30)).tobytes() not in pickle.dumps(
            dataset
        )
    there = pickle.loads(pickle.dumps(dataset))
    index = torch.tensor([4, 1])
    assert there.gather(index)["input_ids"].equal(dataset.gather(index)["input_ids"])
    assert there.texts(index) == dataset.texts(index)
    assert there.fingerprint == dataset.fingerprint


def test_the_fingerprint_changes_with_tokens_targets_order_and_tokenizer(tmp_path: Path) -> None:
    def print_of(rows: list[dict[str, str]], tokenizer: Any = TOKENIZER) -> str:
        return DemonstrationDataset(rows, tokenizer).fingerprint

    rows = [{"prompt": "ab", "completion": "c"}, {"prompt": "a", "completion": "bc"}]
    chatty = character_tokenizer()
    chatty.chat_template = "{{ messages }}"
    prints = [
        print_of(rows),
        print_of(rows[::-1]),
        print_of([rows[0], rows[0]]),
        print_of([rows[0], {"prompt": "ab", "completion": "c "}]),
        print_of([rows[0], {"prompt": "a", "completion": "bd"}]),
        print_of(rows, chatty),
        DemonstrationDataset(rows, TOKENIZER).subset(torch.tensor([1, 0])).fingerprint,
    ]
    assert len(set(prints)) == len(prints)
    used = character_tokenizer()
    dataset = DemonstrationDataset(rows, used)
    used(
        ["a", "bc"], padding=True, truncation=True, max_length=2
    )  # the tokenizer keeps these settings
    assert dataset.fingerprint == prints[0]
    more = [{**row, "note": "not a token"} for row in rows]
    assert print_of(more) == prints[0]


def test_the_fingerprint_differs_for_one_sample_and_two_of_the_same_tokens() -> None:
    turns = [("user", "a"), ("assistant", "b"), ("user", "c"), ("assistant", "d")]
    talk = [{"role": role, "content": content} for role, content in turns]
    template = (
        "{% for m in messages %}{{ m.content }}"
        "{% if m.role == 'assistant' %}<eos>{% endif %}{% endfor %}"
    )
    one = DemonstrationDataset([{"messages": talk}], TOKENIZER, chat_template=template, turns="all")
    rows = [{"prompt": "a", "completion": "b"}, {"prompt": "c", "completion": "d"}]
    two = DemonstrationDataset(rows, TOKENIZER, chat_template=template)
    tokens = [
        dataset._tokenized.gather("tokens", np.arange(len(dataset))).tolist()
        for dataset in (one, two)
    ]
    assert tokens[0] == tokens[1]
    assert one._tokenized.digest("tokens") != two._tokenized.digest("tokens")
