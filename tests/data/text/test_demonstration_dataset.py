"""Demonstrations as tokens: masks against a slow twin, stop tokens, packing, lengths."""

from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from lit_adaptive.data import DemonstrationDataset
from lit_adaptive.rollout.models.tokenizers import character_tokenizer

TOKENIZER = character_tokenizer()
BOS, EOS = 1, 2
POLICIES = ("truncate_left", "truncate_right", "drop")


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


def _slow_pair(prompt: str, completion: str, bos: bool, most: int, policy: str) -> Any:
    """One sample as the documentation describes it: tokens and which of them are targets."""
    ahead = ([BOS] if bos else []) + _ids(prompt)
    if not ahead:
        ahead = [BOS]
    answer = [*_ids(completion), EOS]
    tokens, mask = ahead + answer, [False] * len(ahead) + [True] * len(answer)
    if len(tokens) <= most:
        return tokens, mask
    if policy == "drop":
        return None
    if policy == "truncate_left":
        first = 1 if bos else 0
        while len(tokens) > most and len(tokens) - len(answer) > 1:
            del tokens[first], mask[first]
    tokens, mask = tokens[:most], mask[:most]
    return (tokens, mask) if any(mask) else None


def _slow_text(text: str, bos: bool, most: int, policy: str) -> Any:
    tokens = ([BOS] if bos else []) + _ids(text) + [EOS]
    if len(tokens) > most:
        if policy == "drop":
            return None
        if policy == "truncate_right":
            tokens = tokens[:most]
        else:
            tokens = tokens[:1] + tokens[1 - most :] if bos else tokens[-most:]
    return tokens, [False] + [True] * (len(tokens) - 1)


def _unpacked(batch: dict[str, Any]) -> list[tuple[list[int], list[bool]]]:
    """Tokens and targets of each sample, from the positions in a batch."""
    width = batch["input_ids"].shape[1]
    flat, places = batch["input_ids"].flatten(), batch["position_ids"].flatten()
    by_sample: dict[int, Any] = {}
    for target, position, sequence in zip(
        batch["target"].tolist(),
        batch["position"].tolist(),
        batch["sequence"].tolist(),
        strict=True,
    ):
        assert int(flat[position + 1]) == target
        assert (position + 1) % width  # never the first of a row
        start = position - int(places[position])
        by_sample.setdefault(sequence, (start, set()))[1].add(position + 1)
        assert by_sample[sequence][0] == start
    return [
        (flat[start : max(at) + 1].tolist(), [i in at for i in range(start, max(at) + 1)])
        for _, (start, at) in sorted(by_sample.items())
    ]


PAIRS = st.lists(
    st.tuples(st.text("ab1 ", max_size=7), st.text("xy2 ", min_size=1, max_size=7)),
    min_size=1,
    max_size=8,
)


@settings(max_examples=150)
@given(
    PAIRS, st.booleans(), st.integers(3, 16), st.sampled_from(POLICIES), st.booleans(), st.data()
)
def test_batches_equal_those_of_a_slow_twin_sample_by_sample(
    pairs: list[tuple[str, str]], bos: bool, most: int, policy: Any, packing: bool, data: Any
) -> None:
    expected = [_slow_pair(*pair, bos, most, policy) for pair in pairs]
    rows = [{"prompt": prompt, "completion": completion} for prompt, completion in pairs]
    options: dict[str, Any] = {"max_length": most, "overlong": policy, "packing": packing}
    tokenizer = BEGINNING if bos else TOKENIZER
    kept = [i for i, sample in enumerate(expected) if sample is not None]
    if not kept:
        with pytest.raises(ValueError, match=r"none of the .* is left.*raise max_length"):
            DemonstrationDataset(rows, tokenizer, **options)
        return
    dataset = DemonstrationDataset(rows, tokenizer, **options)
    assert dataset.ids.tolist() == kept
    assert dataset.lengths.tolist() == [len(expected[i][0]) for i in kept]
    assert dataset.offsets.diff().tolist() == [sum(expected[i][1]) for i in kept]
    index = data.draw(st.lists(st.integers(0, len(kept) - 1), min_size=1, max_size=10))
    batch = dataset.gather(torch.tensor(index))
    assert _unpacked(batch) == [expected[kept[i]] for i in index]
    assert batch["target"].dtype == batch["position_ids"].dtype == torch.int64
    if not packing:
        assert batch["input_ids"].shape == (len(index), int(dataset.lengths[index].max()))
    used = sum(len(expected[kept[i]][0]) for i in index)
    assert int((batch["input_ids"] != 0).sum()) == used  # the rest is padding
    dataset.set_reference(torch.arange(float(dataset.offsets[-1])))
    reference = dataset.gather(torch.tensor(index))["ref_log_probs"]
    begin = dataset.offsets.tolist()
    assert reference.tolist() == [k for i in index for k in range(begin[i], begin[i + 1])]


@settings(max_examples=80)
@given(
    st.lists(st.text("ab1 ", min_size=1, max_size=12), min_size=1, max_size=6),
    st.booleans(),
    st.integers(3, 9),
    st.sampled_from(POLICIES),
)
def test_all_tokens_of_a_plain_text_but_the_first_are_targets(
    texts: list[str], bos: bool, most: int, policy: Any
) -> None:
    expected = [_slow_text(text, bos, most, policy) for text in texts]
    kept = [sample for sample in expected if sample is not None]
    rows = [{"text": text} for text in texts]
    options: dict[str, Any] = {"max_length": most, "overlong": policy}
    if kept:
        dataset = DemonstrationDataset(rows, BEGINNING if bos else TOKENIZER, **options)
        assert _unpacked(dataset.gather(torch.arange(len(kept)))) == kept
        assert dataset.counts["dropped"] == len(texts) - len(kept)


def test_what_is_cut_is_told_once(caplog: pytest.LogCaptureFixture) -> None:
    rows = [{"prompt": "a" * n, "completion": "b"} for n in (2, 9)]
    with caplog.at_level("INFO"):
        DemonstrationDataset(rows, TOKENIZER, max_length=6, overlong="drop")
        DemonstrationDataset(rows, TOKENIZER)  # of nothing, nothing
    messages = [
        record.getMessage() for record in caplog.records if "rows are kept" in record.message
    ]
    assert len(messages) == 1
    assert "1 of 2 rows are kept" in messages[0]
    assert "1 are dropped" in messages[0]


def test_prompts_are_left_padded_as_generation_needs_them() -> None:
    rows = [
        {"prompt": prompt, "completion": "2", "answer": answer}
        for prompt, answer in (("1+1=", "2"), ("10+1=", 11))
    ]
    dataset = DemonstrationDataset(rows, TOKENIZER, prompts=True, columns=["answer"])
    batch = dataset.gather(torch.tensor([1, 0]))
    assert batch["prompt_ids"].tolist() == [_ids("10+1="), [0, *_ids("1+1=")]]
    assert batch["prompt_mask"].tolist() == [[True] * 5, [False] + [True] * 4]
    assert batch["prompt"] == ["10+1=", "1+1="]
    assert batch["answer"] == ["11", "2"]


def test_groups_are_numbered_as_prompts_come() -> None:
    prompts = ["b", "a", "b", "c", "a"]
    rows = [{"prompt": prompt, "completion": "x"} for prompt in prompts]
    dataset = DemonstrationDataset(rows, TOKENIZER)
    assert dataset.groups.tolist() == [0, 1, 0, 2, 1]
    assert dataset.subset(torch.tensor([4, 3, 1])).groups.tolist() == [0, 1, 0]
    texts = DemonstrationDataset([{"text": text} for text in ("aa", "b", "aa")], TOKENIZER)
    assert texts.groups.tolist() == [0, 1, 0]


def test_ids_are_of_one_kind_and_distinct_or_the_numbers_of_the_rows() -> None:
    def ids(values: list[Any], **options: Any) -> Any:
        rows = [{"prompt": "a", "completion": "b", "id": value} for value in values]
        return DemonstrationDataset(rows, TOKENIZER, **options).ids

    assert ids([7, 3]).tolist() == [7, 3]
    assert ids(["7", "3"]) == ["7", "3"]
    assert ids(["x", "x"], id=None).tolist() == [0, 1]
    with pytest.raises(ValueError, match=r"id in list is missing or not an integer.*rows \[1\]"):
        ids([7, "3"])
    with pytest.raises(ValueError, match=r"rows \[0\] .*\[None\]"):
        ids([None, "3"])
    with pytest.raises(ValueError, match="more than once"):
        ids(["x", "x"])
    with pytest.raises(ValueError, match="has no column 'name'"):
        ids(["x"], id="name")


def test_dropped_rows_leave_ids_and_numbers_where_they_were() -> None:
    rows = [{"prompt": "a" * n, "completion": "b", "reward": float(n)} for n in (1, 9, 2, 9, 3)]
    dataset = DemonstrationDataset(rows, TOKENIZER, max_length=6, overlong="drop")
    assert dataset.ids.tolist() == [0, 2, 4]
    assert dataset.column("reward").tolist() == [1.0, 2.0, 3.0]
    assert [row["prompt"] for row in dataset.texts(torch.tensor([2, 0]))] == ["aaa", "a"]
    assert dataset.offsets.tolist() == [0, 2, 4, 6]
    thrice = DemonstrationDataset(rows * 3, TOKENIZER, max_length=6, overlong="drop")
    assert thrice.ids.tolist() == [0, 2, 4, 5, 7, 9, 10, 12, 14]
    assert thrice.groups.tolist() == [0, 1, 2] * 3
    empty = [{"prompt": "a", "completion": text} for text in ("", "b", "<eos>")]
    dataset = DemonstrationDataset(empty, TOKENIZER, empty="drop")
    assert dataset.ids.tolist() == [1]
    assert dataset.counts["empty"] == 2


def test_columns_of_numbers_are_finite_and_named() -> None:
    rows = [{"prompt": "a", "completion": "b", "reward": r, "note": "x"} for r in (1, None, 2.5)]
    dataset = DemonstrationDataset(rows, TOKENIZER)
    with pytest.raises(ValueError, match=r"reward in list is missing or not finite in rows \[1\]"):
        dataset.column("reward")
    with pytest.raises(ValueError, match=r"no column 'note' of numbers.*\['reward'\]"):
        dataset.column("note")
    assert dataset.subset(torch.tensor([2, 0])).column("reward").tolist() == [2.5, 1.0]


def test_a_column_may_hold_text_late_or_come_late() -> None:
    rows: list[dict[str, Any]] = [{"prompt": "a", "completion": "b", "note": i} for i in range(20)]
    rows[15]["note"] = "x"
    rows[16]["late"] = 1.0
    dataset = DemonstrationDataset(rows, TOKENIZER)
    with pytest.raises(ValueError, match=r"note in list is not a number in rows \[15\]"):
        dataset.column("note")
    with pytest.raises(ValueError, match=r"late in list is missing .* rows \[0, 1, 2, 3, 4\]"):
        dataset.column("late")
    assert dataset.subset(torch.tensor([16])).column("late").tolist() == [1.0]
    more = [*({**row, "answer": 1} for row in rows[:16]), {**rows[0], "answer": None}]
    with pytest.raises(ValueError, match=r"answer in list is missing in rows \[16\]"):
        DemonstrationDataset(more, TOKENIZER, columns=["answer"])


def test_reference_log_probs_fit_or_are_refused() -> None:
    rows = [{"prompt": "1+1=", "completion": "2"}] * 5
    dataset = DemonstrationDataset(rows, TOKENIZER)
    with pytest.raises(ValueError, match=r"there are \(3,\) reference log-probabilities; list has"):
        dataset.set_reference(torch.zeros(3))
    dataset.set_reference(torch.zeros(int(dataset.offsets[-1])))
    assert "ref_log_probs" not in dataset.subset(torch.tensor([0])).gather(torch.tensor([0]))


@pytest.mark.parametrize(
    "name",
    [
        *("input_ids", "position_ids", "target", "position", "sequence", "ref_log_probs"),
        *("prompt_ids", "prompt_mask", "index", "probability", "weight", "counted", "scored"),
    ],
)
def test_a_column_named_as_a_field_of_the_batch_is_rejected_if_requested(name: str) -> None:
    rows = [{"prompt": "a", "completion": "b", name: "V"}]
    words = rf"columns are \['{name}'\], and \['{name}'\] are names of a batch's own fields"
    with pytest.raises(ValueError, match=words):
        DemonstrationDataset(rows, TOKENIZER, columns=[name], prompts=True)
    batch = DemonstrationDataset(rows, TOKENIZER, prompts=True).gather(torch.tensor([0]))
    assert batch.get(name) != ["V"]
