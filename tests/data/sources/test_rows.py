"""Where demonstrations come from: files, tables, Hugging Face; caches; what is wrong in them."""

import json
import pickle
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest
import torch
from pyarrow import csv, parquet

from lit_adaptive.data import Arithmetic, DemonstrationDataset, HubRows
from lit_adaptive.data.sources import rows
from lit_adaptive.data.text import tokenization as tokenizing
from lit_adaptive.rollout.models.tokenizers import character_tokenizer

TOKENIZER = character_tokenizer()
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


def _write(folder: Path, kind: str) -> Any:
    file = folder / f"rows.{kind}"
    table = pa.Table.from_pylist(ROWS)
    if kind == "jsonl":
        file.write_text("\n".join(json.dumps(row) for row in ROWS) + "\n\n")
    elif kind == "csv":
        csv.write_csv(table, file)
    elif kind == "parquet":
        parquet.write_table(table, file, row_group_size=4)
    elif kind in ("folder", "hub rows", "dataset"):
        import datasets

        dataset = datasets.Dataset.from_list(ROWS)
        if kind == "dataset":
            return dataset
        dataset.save_to_disk(folder / "saved")
        return str(folder / "saved") if kind == "folder" else HubRows(str(folder / "saved"))
    else:
        return {"table": table, "list": ROWS}[kind]
    return str(file)


@pytest.fixture
def _small_chunks(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(rows, "CHUNK", 7)


KINDS = ("jsonl", "csv", "parquet", "folder", "hub rows", "dataset", "table", "list")


@pytest.mark.usefixtures("_small_chunks")
@pytest.mark.parametrize("cached", [False, True])
@pytest.mark.parametrize("kind", KINDS)
def test_any_source_gives_the_same_samples(kind: str, cached: bool, tmp_path: Path) -> None:
    whole = DemonstrationDataset(ROWS, TOKENIZER, columns=["answer"], prompts=True)
    source = _write(tmp_path, kind)
    cache = tmp_path / "cache" if cached else None
    found = DemonstrationDataset(
        source, TOKENIZER, columns=["answer"], prompts=True, cache_dir=cache
    )
    index = torch.tensor([29, 0, 13, 13, 7, 6])
    both = found.gather(index), whole.gather(index)
    assert both[0].keys() == both[1].keys()
    for name in both[0]:
        plain = [
            each[name].tolist() if torch.is_tensor(each[name]) else each[name] for each in both
        ]
        assert plain[0] == plain[1], name
    assert found.ids == [row["id"] for row in ROWS]
    assert found.column("reward").tolist() == [row["reward"] for row in ROWS]
    assert found.groups.equal(whole.groups)
    assert found.fingerprint == whole.fingerprint
    if kind != "csv":
        assert found.texts(index) == [ROWS[i] for i in index.tolist()]


def test_arithmetic_is_a_source_with_ids_and_numbers() -> None:
    sums = Arithmetic(size=40, demonstrations_per_prompt=2, correct=0.5, wrong=0.5)
    found = DemonstrationDataset(sums, TOKENIZER)
    assert found.ids == sums.ids
    assert found.column("difficulty").equal(sums.column("difficulty"))
    assert found.groups.tolist() == [i // 2 for i in range(80)]
    assert found.texts(torch.tensor([5]))[0] == sums[5]
    assert len(found) == len(sums) == found.counts["kept"]


def test_groups_are_numbered_as_prompts_come() -> None:
    prompts = ["b", "a", "b", "c", "a"]
    rows = [{"prompt": prompt, "completion": "x"} for prompt in prompts]
    found = DemonstrationDataset(rows, TOKENIZER)
    assert found.groups.tolist() == [0, 1, 0, 2, 1]
    assert found.subset(torch.tensor([4, 3, 1])).groups.tolist() == [0, 1, 0]
    texts = DemonstrationDataset([{"text": text} for text in ("aa", "b", "aa")], TOKENIZER)
    assert texts.groups.tolist() == [0, 1, 0]


def test_ids_are_of_one_kind_and_distinct_or_the_numbers_of_the_rows() -> None:
    def ids(values: list[Any], **options: Any) -> Any:
        rows = [{"prompt": "a", "completion": "b", "id": value} for value in values]
        return DemonstrationDataset(rows, TOKENIZER, **options).ids

    assert ids([7, 3]).tolist() == [7, 3]
    assert ids(["7", "3"]) == ["7", "3"]
    assert ids(["x", "x"], id=None).tolist() == [0, 1]
    with pytest.raises(ValueError, match=r"id in list is missing or no integer.*rows \[1\]"):
        ids([7, "3"])
    with pytest.raises(ValueError, match=r"rows \[0\] .*\[None\]"):
        ids([None, "3"])
    with pytest.raises(ValueError, match="more than once"):
        ids(["x", "x"])
    with pytest.raises(ValueError, match="has no column 'name'"):
        ids(["x"], id="name")


@pytest.mark.usefixtures("_small_chunks")
def test_dropped_rows_leave_ids_and_numbers_where_they_were() -> None:
    rows = [{"prompt": "a" * n, "completion": "b", "reward": float(n)} for n in (1, 9, 2, 9, 3)]
    found = DemonstrationDataset(rows, TOKENIZER, max_length=6, overlong="drop")
    assert found.ids.tolist() == [0, 2, 4]
    assert found.column("reward").tolist() == [1.0, 2.0, 3.0]
    assert [row["prompt"] for row in found.texts(torch.tensor([2, 0]))] == ["aaa", "a"]
    assert found.offsets.tolist() == [0, 2, 4, 6]
    thrice = DemonstrationDataset(rows * 3, TOKENIZER, max_length=6, overlong="drop")
    assert thrice.ids.tolist() == [0, 2, 4, 5, 7, 9, 10, 12, 14]
    assert thrice.groups.tolist() == [0, 1, 2] * 3
    empty = [{"prompt": "a", "completion": each} for each in ("", "b", "<eos>")]
    found = DemonstrationDataset(empty, TOKENIZER, empty="drop")
    assert found.ids.tolist() == [1]
    assert found.counts["empty"] == 2


@pytest.mark.parametrize(
    ("rows", "words"),
    [
        ([], "list has no rows"),
        ([{"prompt": "a"}], r"columns \['prompt'\], of which none is known.*prompt: question"),
        ([{"prompt": "a", "completion": None}], r"completion in list is missing in rows \[1\]"),
        (
            [{"prompt": "a", "completion": 5}],
            r"completion in list is no string .*\[1\].*\[5\]",
        ),
        ([{"prompt": "a", "completion": ""}], r"completion in list is empty .*rows \[1\].*correct"),
        ([{"prompt": "a", "completion": "<eos>"}], r"is empty .*rows \[1\]"),
        ([{"prompt": "a"}], r"completion in list is missing in rows \[1\]"),
        (["text"], "row 1 of list is a str; rows are dictionaries"),
    ],
)
def test_bad_rows_are_named(rows: list[Any], words: str) -> None:
    good = [{"prompt": "a", "completion": "b"}]
    known = not words.startswith(("list has", "columns", r"columns"))
    with pytest.raises(ValueError, match=words):
        DemonstrationDataset([*good, *rows] if known else rows, TOKENIZER)


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"overlong": "cut"}, "overlong is 'cut'; it must be one of"),
        ({"empty": "keep"}, "empty is 'keep'"),
        ({"turns": "first"}, "turns is 'first'"),
        ({"prompt": "prompt", "text": "text"}, "columns of several kinds"),
        ({"columns": ["ease"]}, "has no column 'ease'"),
        ({"completion": "said"}, "has no column 'said'"),
        ({"max_length": 1}, "max_length is 1; a sample has at least 2"),
    ],
)
def test_bad_options_are_named(options: dict[str, Any], words: str) -> None:
    with pytest.raises(ValueError, match=words):
        DemonstrationDataset(ROWS, TOKENIZER, **options)


@pytest.mark.parametrize(
    ("name", "text", "words"),
    [
        ("a.jsonl", '{"prompt": "a"', "line 1 of .* is no JSON"),
        ("a.jsonl", '{"prompt": "a"}\n[1]', r"line 2 of .* is no JSON object but '\[1\]'"),
        ("a.jsonl", None, "is not there, or no file"),
        ("a.parquet", "x", "cannot be read as .parquet"),
        ("a.csv", "", "cannot be read as .csv"),
        ("a.jsonl", "\n", "has no rows"),
    ],
)
def test_bad_files_are_named(name: str, text: str | None, words: str, tmp_path: Path) -> None:
    if text is not None:
        (tmp_path / name).write_text(text)
    with pytest.raises(ValueError, match=words):
        DemonstrationDataset(str(tmp_path / name), TOKENIZER)


def test_columns_of_numbers_are_finite_and_named() -> None:
    rows = [{"prompt": "a", "completion": "b", "reward": r, "note": "x"} for r in (1, None, 2.5)]
    found = DemonstrationDataset(rows, TOKENIZER)
    with pytest.raises(ValueError, match=r"reward in list is missing or not finite in rows \[1\]"):
        found.column("reward")
    with pytest.raises(ValueError, match=r"no column 'note' of numbers.*\['reward'\]"):
        found.column("note")
    assert found.subset(torch.tensor([2, 0])).column("reward").tolist() == [2.5, 1.0]


@pytest.mark.usefixtures("_small_chunks")
def test_a_column_may_hold_text_late_or_come_late() -> None:
    rows: list[dict[str, Any]] = [{"prompt": "a", "completion": "b", "note": i} for i in range(20)]
    rows[15]["note"] = "x"
    rows[16]["late"] = 1.0
    found = DemonstrationDataset(rows, TOKENIZER)
    with pytest.raises(ValueError, match="no column 'note' of numbers"):
        found.column("note")
    with pytest.raises(ValueError, match=r"late in list is missing .* rows \[0, 1, 2, 3, 4\]"):
        found.column("late")
    assert found.subset(torch.tensor([16])).column("late").tolist() == [1.0]
    more = [*({**row, "answer": 1} for row in rows[:16]), {**rows[0], "answer": None}]
    with pytest.raises(ValueError, match=r"answer in list is missing in rows \[16\]"):
        DemonstrationDataset(more, TOKENIZER, columns=["answer"])


def test_columns_of_other_roles_do_not_hide_prompt_and_completion() -> None:
    row = {"prompt": "no", "q": "1+1=", "completion": "no", "a": "2"}
    found = DemonstrationDataset([row], TOKENIZER, prompt="q", completion="a")
    assert found.texts(torch.tensor([0])) == [{"prompt": "1+1=", "completion": "2"}]


# The cache -----------------------------------------------------------------------------------


@pytest.fixture(name="made")
def _made(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    made: list[int] = []
    original = tokenizing._DatasetTokenizer.store

    def store(self: Any, folder: Path | None) -> Any:
        made.append(1)
        return original(self, folder)

    monkeypatch.setattr(tokenizing._DatasetTokenizer, "store", store)
    return made


def test_a_cache_is_made_once_and_anew_for_other_content(tmp_path: Path, made: list[int]) -> None:
    source, cache = _write(tmp_path, "jsonl"), tmp_path / "cache"

    def read(tokenizer: Any = TOKENIZER, **options: Any) -> DemonstrationDataset:
        return DemonstrationDataset(source, tokenizer, cache_dir=cache, **options)

    first = read()
    again = read(packing=True, prompts=True)  # which are not about tokens
    assert len(made) == 1
    assert again.fingerprint == first.fingerprint
    assert again.counts == first.counts
    read(max_length=500)
    assert len(made) == 2
    assert read(character_tokenizer("0123456789+=")).fingerprint != first.fingerprint
    assert len(made) == 3
    with Path(source).open("a") as file:
        file.write(json.dumps({"prompt": "a", "completion": "b", "id": "new"}) + "\n")
    assert len(read()) == len(ROWS) + 1
    assert len(made) == 4


@pytest.mark.parametrize("damage", ["cut", "no meta", "no rows", "format"])
def test_a_damaged_or_unfinished_cache_is_made_anew(
    damage: str, tmp_path: Path, made: list[int]
) -> None:
    cache = tmp_path / "cache"
    first = DemonstrationDataset(ROWS, TOKENIZER, cache_dir=cache)
    expected = first.fingerprint
    folder = first._store.folder
    assert folder is not None
    del first
    if damage == "cut":
        (folder / "tokens.bin").write_bytes((folder / "tokens.bin").read_bytes()[:-4])
    elif damage == "no meta":
        (folder / "meta.json").unlink()
    elif damage == "no rows":
        (folder / "rows.arrow").write_bytes(b"")
    else:
        meta = json.loads((folder / "meta.json").read_text())
        (folder / "meta.json").write_text(json.dumps(meta | {"format": 0}))
    again = DemonstrationDataset(ROWS, TOKENIZER, cache_dir=cache)
    assert len(made) == 2
    assert again.fingerprint == expected
    assert again.texts(torch.tensor([3])) == [ROWS[3]]


@pytest.mark.usefixtures("_small_chunks")
def test_a_failure_half_way_leaves_no_cache_behind(tmp_path: Path) -> None:
    cache = tmp_path / "cache"
    rows = [*ROWS, {"prompt": "a", "completion": None, "id": "bad"}]
    with pytest.raises(ValueError, match=r"rows \[30\]"):
        DemonstrationDataset(rows, TOKENIZER, cache_dir=cache)
    assert [path.suffix for path in cache.iterdir()] == [".lock"]


@pytest.mark.parametrize("cached", [False, True])
def test_a_worker_process_gets_the_same_batches(cached: bool, tmp_path: Path) -> None:
    found = DemonstrationDataset(
        ROWS, TOKENIZER, cache_dir=tmp_path if cached else None, prompts=True
    )
    sent = pickle.dumps(found._store)
    if cached:
        assert len(sent) < 1000  # the files are mapped, not sent
    there = pickle.loads(pickle.dumps(found))
    index = torch.tensor([4, 1])
    assert there.gather(index)["input_ids"].equal(found.gather(index)["input_ids"])
    assert there.texts(index) == found.texts(index)
    assert there.fingerprint == found.fingerprint


def test_the_fingerprint_goes_with_tokens_targets_order_and_tokenizer(tmp_path: Path) -> None:
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
    found = DemonstrationDataset(rows, used)
    used(["a", "bc"], padding=True, truncation=True, max_length=2)  # which it remembers
    assert found.fingerprint == prints[0]
    more = [{**row, "note": "not a token"} for row in rows]
    assert print_of(more) == prints[0]


def test_the_fingerprint_tells_one_sample_from_two_of_the_same_tokens() -> None:
    turns = [("user", "a"), ("assistant", "b"), ("user", "c"), ("assistant", "d")]
    talk = [{"role": role, "content": content} for role, content in turns]
    template = (
        "{% for m in messages %}{{ m.content }}"
        "{% if m.role == 'assistant' %}<eos>{% endif %}{% endfor %}"
    )
    one = DemonstrationDataset([{"messages": talk}], TOKENIZER, chat_template=template, turns="all")
    rows = [{"prompt": "a", "completion": "b"}, {"prompt": "c", "completion": "d"}]
    two = DemonstrationDataset(rows, TOKENIZER, chat_template=template)
    assert one._store.tokens.tolist() == two._store.tokens.tolist()
    assert one._store.meta["fingerprint"] != two._store.meta["fingerprint"]


def test_reference_log_probs_fit_or_are_refused() -> None:
    found = DemonstrationDataset(ROWS, TOKENIZER)
    with pytest.raises(ValueError, match=r"there are \(3,\) reference log-probabilities; list has"):
        found.set_reference(torch.zeros(3))
    found.set_reference(torch.zeros(int(found.offsets[-1])))
    assert "ref_log_probs" not in found.subset(torch.tensor([0])).gather(torch.tensor([0]))
