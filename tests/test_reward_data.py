"""Preference pairs and labels out of files."""

import gzip
import json
import logging
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from rheostat.errors import InputError
from rheostat.plugins import Judged
from rheostat.records import Message
from rheostat.reward_data import Labelled, Pair, read, transcript

HH = "\n\nHuman: Hi.\n\nAssistant: Hello!\n\nHuman: How do I bake?"
ASKED = (Message("user", "Hi."), Message("assistant", "Hello!"), Message("user", "How do I bake?"))
WANTED = Pair(Judged(ASKED, "With flour."), Judged(ASKED, "No."))


def turns(*said: str) -> list[dict[str, str]]:
    return [{"role": ("user", "assistant")[place % 2], "content": text} for place, text in enumerate(said)]


def write(path: Path, rows: list[Any]) -> Path:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


@pytest.mark.parametrize(
    "row",
    [
        {"chosen": f"{HH}\n\nAssistant: With flour.", "rejected": f"{HH}\n\nAssistant: No."},
        {"prompt": HH, "chosen": "With flour.", "rejected": " No. "},
        {"prompt": f"{HH}\n\nAssistant:", "chosen": "With flour.", "rejected": "No."},
        {"prompt": turns("Hi.", "Hello!", "How do I bake?"), "chosen": "With flour.", "rejected": "No."},
        {
            "chosen": turns("Hi.", "Hello!", "How do I bake?", "With flour."),
            "rejected": turns("Hi.", "Hello!", "How do I bake?", "No."),
        },
        {
            "prompt": turns("Hi.", "Hello!", "How do I bake?"),
            "chosen": [{"role": "assistant", "content": "With flour."}],
            "rejected": [{"role": "assistant", "content": "No."}],
        },
    ],
)
def test_pairs_in_every_shape(row: dict[str, Any], tmp_path: Path) -> None:
    data = read(write(tmp_path / "pairs.jsonl", [row]))
    assert (data.kind, data.pairs) == ("pairs", (WANTED,))


def test_a_speaker_who_goes_on_is_one_turn() -> None:
    assert transcript("\n\nHuman: a\n\nHuman: b\n\nAssistant: c") == (
        Message("user", "a\n\nb"),
        Message("assistant", "c"),
    )


@pytest.mark.parametrize(
    "row",
    [
        {"context": "Hi.", "response": "Hello!", "label": "Safe"},
        {"prompt": "Hi.", "answer": "Hello!", "label": "Safe"},
        {"messages": turns("Hi.", "Hello!"), "label": "Safe"},
        {"text": "\n\nHuman: Hi.\n\nAssistant: Hello!", "label": "Safe"},
    ],
)
def test_labels_in_every_shape(row: dict[str, Any], tmp_path: Path) -> None:
    path = tmp_path / "labels.json"
    path.write_text(json.dumps([row, {**row, "label": "Unsafe"}]))
    item = Judged((Message("user", "Hi."),), "Hello!")
    assert read(path, positive="Safe").labelled == (Labelled(item, True), Labelled(item, False))


def test_every_kind_of_file(tmp_path: Path) -> None:
    rows = [{"prompt": "Hi.", "response": "Hello!", "label": 1}, {"prompt": "Hi.", "response": "Go.", "label": 0}]
    lines = write(tmp_path / "a.jsonl", rows)
    (tmp_path / "a.jsonl.gz").write_bytes(gzip.compress(lines.read_bytes()))
    (tmp_path / "a.csv").write_text("prompt,response,label\nHi.,Hello!,1\nHi.,Go.,0\n")
    pq.write_table(pa.Table.from_pylist(rows), tmp_path / "a.parquet")
    found = [read(tmp_path / f"a.{ending}") for ending in ("jsonl", "jsonl.gz", "csv", "parquet")]
    assert len({each.labelled for each in found}) == 1
    assert [each.is_positive for each in found[0].labelled] == [True, False]


def test_broken_rows_are_left_out_and_counted(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    rows = [{"prompt": "Hi.", "chosen": "a", "rejected": "b"}, {"chosen": "a"}, 5,
            {"prompt": "Hi.", "chosen": "a", "rejected": "a"}]  # fmt: skip
    with caplog.at_level(logging.WARNING):
        data = read(write(tmp_path / "a.jsonl", rows))
    assert (len(data), data.broken) == (1, 3)
    assert "3 broken rows left out, the first: row 2: it has no 'rejected'" in caplog.text


@pytest.mark.parametrize(
    ("name", "rows", "positive", "message"),
    [
        ("a.jsonl", [{"chosen": "a"}], None, "got no pairs in 1 rows"),
        ("a.jsonl", [{"response": "a", "label": "Safe"}], None, "got the labels Safe, and it is not said which"),
        ("a.jsonl", [{"response": "a", "label": "Safe"}], "safe", "--positive: got 'safe', allowed are the labels"),
        ("a.txt", [], None, "got a file of kind '.txt'"),
        ("gone/a.jsonl", None, None, "cannot read"),
    ],
)
def test_what_cannot_be_used_is_said(
    name: str, rows: list[Any] | None, positive: str | None, message: str, tmp_path: Path
) -> None:
    path = tmp_path / name
    if rows is not None:
        write(path, rows)
    with pytest.raises(InputError, match=message):
        read(path, positive=positive)


def test_a_held_out_part_keeps_equal_prompts_together_and_does_not_move(tmp_path: Path) -> None:
    rows = [
        {"prompt": f"Question {number // 2}", "chosen": "a", "rejected": f"b{number}"} for number in range(400)
    ]
    data = read(write(tmp_path / "a.jsonl", rows))
    held_out, rest = (data.part(0.25, is_held_out=each) for each in (True, False))
    assert len(held_out) + len(rest) == 400 and 70 < len(held_out) < 130
    questions = [{pair.chosen.messages for pair in part.pairs} for part in (held_out, rest)]
    assert not questions[0] & questions[1]
    fewer = read(write(tmp_path / "b.jsonl", rows[:100])).part(0.25, is_held_out=True)
    assert set(fewer.pairs) <= set(held_out.pairs)
    assert len(data.first(30)) == 30 and set(data.first(30).pairs) <= set(data.first(60).pairs)
