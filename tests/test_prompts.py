"""Reading prompts: every kind of file, every way in which a line can be broken, sampling and holding out."""

import contextlib
import csv
import hashlib
import json
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from rheostat import pocket
from rheostat.errors import InputError, PromptFileError
from rheostat.prompts import PromptSet, prompt_id, read_prompts, split_held_out
from rheostat.records import Message, Prompt


def read(path: Path, **options: Any) -> PromptSet:
    return read_prompts([str(path)], split="train", **options)


def texts(prompts: PromptSet) -> set[str]:
    return {prompt.text for prompt in prompts.prompts}


def jsonl(path: Path, *rows: object) -> Path:
    path.write_text("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows), encoding="utf-8")
    return path


def numbered(count: int, word: str = "prompt") -> list[Prompt]:
    found = [(Message("user", f"{word} {k}"),) for k in range(count)]
    return [Prompt(prompt_id(messages), messages, "train", "test") for messages in found]


def test_prompt_id_by_hand() -> None:
    """The id is the head of SHA-256 over the JSON list of (role, content) lists, not escaped."""
    expected = hashlib.sha256('[["user", "Grüße"]]'.encode()).hexdigest()[:16]
    assert prompt_id([Message("user", "Grüße")]) == expected


def test_every_form_of_jsonl(tmp_path: Path) -> None:
    path = jsonl(
        tmp_path / "p.jsonl",
        {"prompt": "  one \n", "extra": 1},
        {"instruction": "two", "input": "with input"},
        {"instruction": "three", "input": "", "category": None},
        {"messages": [{"role": "system", "content": "s"}, {"role": "user", "content": "four"}]},
        {
            "messages": [
                {"role": "user", "content": "a"},
                {"role": "assistant", "content": "b", "name": "x"},
                {"role": "user", "content": "five"},
            ]
        },
    )
    found = read(path)
    assert texts(found) == {"one", "two\n\nwith input", "three", "four", "five"}
    assert {len(prompt.messages) for prompt in found.prompts} == {1, 2, 3}
    assert {prompt.source for prompt in found.prompts} == {str(path)}
    assert not found.skipped and found.duplicates == 0


@pytest.mark.parametrize("suffix", [".json", ".csv", ".parquet", ".txt", ".JSONL"])
def test_other_kinds(tmp_path: Path, suffix: str) -> None:
    path = tmp_path / f"p{suffix}"
    expected = {"how, exactly?", 'a "quoted" word', "日本語"}
    rows = [{"prompt": text} for text in sorted(expected)]
    if suffix == ".json":
        path.write_text(json.dumps(rows))
    elif suffix == ".csv":
        with path.open("w", newline="", encoding="utf-8") as file:
            writer = csv.DictWriter(file, ["id", "prompt"])
            writer.writeheader()
            writer.writerows({"id": str(k), **row} for k, row in enumerate(rows))
    elif suffix == ".parquet":
        pq.write_table(pa.Table.from_pylist(rows), path)
    elif suffix == ".txt":
        path.write_text("\n\n".join(sorted(expected)), encoding="utf-8")
    else:
        jsonl(path, *rows)
    assert texts(read(path)) == expected


def test_parquet_with_messages_and_nulls(tmp_path: Path) -> None:
    path = tmp_path / "p.parquet"
    turns = [{"role": "user", "content": "from messages"}]
    pq.write_table(
        pa.table({"messages": [turns, None, None], "prompt": [None, "from prompt", None]}),
        path,
    )
    found = read(path)
    assert texts(found) == {"from messages", "from prompt"}
    assert [skipped.line for skipped in found.skipped] == [3]


@pytest.mark.parametrize(
    ("line", "reason"),
    [
        (b'{"prompt": "x"', "not JSON"),
        (b'{"prompt": "\xff\xfe"}', "not valid UTF-8"),
        (b'{"prompt": "\\ud800"}', "not valid UTF-8"),
        (b'{"prompt": "   "}', "prompt: it is empty"),
        (b'{"prompt": 5}', "got a number, allowed is text"),
        (b'{"prompt": true}', "got a truth value"),
        (b'"text"', "got text, allowed is an object"),
        (b"[1]", "got a list"),
        (b"null", "got nothing"),
        (b'{"label": "x"}', "keys 'label', allowed are messages, conversations, conversation, prompt, instruction"),
        (b'{"prompt": null}', "chosen, rejected or transcript"),
        (b'{"instruction": "x", "input": 3}', "input: got a number"),
        (b'{"messages": []}', "messages: got a list"),
        (b'{"messages": "hi"}', "messages: got text"),
        (b'{"messages": [{"role": "user"}]}', "turn 1: got an object"),
        (b'{"messages": [{"role": "tool", "content": "x"}]}', "got the role 'tool'"),
        (b'{"messages": [{"role": ["user"], "content": "x"}]}', "got the role"),
        (b'{"messages": [{"role": "user", "content": ""}]}', "turn 1: it is empty"),
        (b'{"messages": [{"role": "system", "content": "x"}]}', "the last turn is the system's"),
        (b'{"messages": [{"role": "assistant", "content": "y"}]}', "every turn is the assistant's"),
        (b'{"messages": [{"role": "user", "content": [{"type": "image"}]}]}', "turn 1: got a list"),
        (b'{"prompt": [1]}', "turn 1: got a number, allowed is an object with role and content, or from and value"),
        (b'{"prompt": []}', "prompt: got a list, allowed is a list of turns"),
        (b'{"conversations": [{"from": "tool", "value": "x"}]}', "turn 1: got the role 'tool'"),
        (b'{"chosen": "a plain answer"}', "chosen: got text without turns"),
        (b'{"chosen": "\\n\\nHuman: a\\n\\nHuman: b\\n\\nAssistant: c"}', "got the roles user, user"),
        (b'{"chosen": "\\n\\nHuman: \\n\\nAssistant: c"}', "turn 1: it is empty"),
        (b'{"question": "x", "system": 3}', "system: got a number"),
        (
            b'{"messages": [{"role": "user", "content": "x"}, {"role": "user", "content": "y"}]}',
            "got the roles user, user",
        ),
        (
            b'{"messages": [{"role": "user", "content": "x"}, {"role": "system", "content": "y"}, '
            b'{"role": "user", "content": "z"}]}',
            "got the roles user, system, user",
        ),
        (b"[" * 100_000, "not JSON"),
        (b'{"prompt": ' + b"9" * 6000 + b"}", "not JSON"),
        (b"\0", "not JSON"),
    ],
)
def test_broken_line_is_named_and_the_rest_kept(tmp_path: Path, line: bytes, reason: str) -> None:
    path = tmp_path / "p.jsonl"
    path.write_bytes(b'{"prompt": "first"}\n\n' + line + b'\n{"prompt": "last"}')
    found = read(path)
    assert texts(found) == {"first", "last"}
    (skipped,) = found.skipped
    assert skipped.line == 3 and reason in skipped.reason
    with pytest.raises(PromptFileError, match=r"p\.jsonl line 3: ") as caught:
        read(path, strict=True)
    assert reason in caught.value.message


def test_byte_order_mark_and_carriage_returns(tmp_path: Path) -> None:
    (tmp_path / "p.jsonl").write_bytes(b'\xef\xbb\xbf{"prompt": "one"}\r\n{"prompt": "two"}\r\n')
    (tmp_path / "p.csv").write_bytes(b"\xef\xbb\xbfprompt\r\nthree\r\n")
    (tmp_path / "p.txt").write_bytes(b"\xef\xbb\xbffour\r\nfive")
    found = read_prompts([str(tmp_path / f"p.{kind}") for kind in ("jsonl", "csv", "txt")], split="train")
    assert texts(found) == {"one", "two", "three", "four", "five"}


def test_oddities_pass_unchanged(tmp_path: Path) -> None:
    """Only a newline ends a line: the other separators of Unicode stay inside their prompt."""
    odd = [
        "line\u2028separator",
        "vertical\x0btab\x0cfeed",
        "nul\0byte",
        "bell\x07 \x1b[31mred",
        "عربي \u202e rtl",
        "🧑🏽‍🚀 e\u0301",
        "[helpful=1][harmless=0]",
        "<|im_start|>",
        "ｆｕｌｌ　ｗｉｄｔｈ",
        "x" * 300_000,
    ]
    (tmp_path / "p.txt").write_text("\n".join(odd), encoding="utf-8")
    with (tmp_path / "p.csv").open("w", newline="", encoding="utf-8") as file:
        csv.writer(file).writerows([["prompt"], *([text] for text in odd)])
    jsonl(tmp_path / "p.jsonl", *({"prompt": text} for text in odd))
    for kind in ("txt", "csv", "jsonl"):
        assert texts(read(tmp_path / f"p.{kind}")) == set(odd)
    assert csv.field_size_limit() == 131072


@settings(max_examples=30, deadline=None)
@given(st.lists(st.text(st.characters(codec="utf-8"), max_size=30), max_size=8), st.binary(max_size=60))
def test_any_file_is_read_or_named(
    tmp_path_factory: pytest.TempPathFactory, given_texts: list[str], junk: bytes
) -> None:
    """Whatever the bytes: usable prompts come back as they were, or the file is refused by our own error."""
    folder = tmp_path_factory.mktemp("prompts")
    for kind in ("jsonl", "json", "csv", "txt", "parquet"):
        (folder / f"p.{kind}").write_bytes(junk)
        with contextlib.suppress(PromptFileError):
            assert read(folder / f"p.{kind}").prompts
    jsonl(folder / "q.jsonl", {"prompt": "anchor"}, *({"prompt": text} for text in given_texts))
    found = read(folder / "q.jsonl")
    assert texts(found) <= {"anchor", *(text.strip() for text in given_texts)}
    assert len(found.prompts) + len(found.skipped) + found.duplicates == len(given_texts) + 1


def test_csv_problems_name_the_line_on_which_the_row_begins(tmp_path: Path) -> None:
    """Line 2 holds a row of three lines, so the short row is line 5; the quote of line 6 never closes."""
    path = tmp_path / "p.csv"
    path.write_text('id,prompt\n1,"a\nb\nc"\nshort\n2,"open\n3,kept\n4,\n\n5,"also" kept\n6,last\n')
    found = read(path)
    assert texts(found) == {"a\nb\nc", "kept", "last"}
    assert [skipped.line for skipped in found.skipped] == [5, 6, 8, 10]
    assert "1 cells, the header has 2" in found.skipped[0].reason


def test_duplicates_are_counted_across_sources(tmp_path: Path) -> None:
    first = jsonl(tmp_path / "a.jsonl", {"prompt": "How are you?"}, {"prompt": "how  ARE\nyou?"})
    second = jsonl(tmp_path / "b.jsonl", {"prompt": "HOW are you?"}, {"prompt": "How are you"})
    found = read_prompts([str(first), str(second)], split="train")
    assert [prompt.text for prompt in found.prompts] == ["How are you?", "How are you"]
    assert (found.duplicates, found.available) == (2, 2)


@pytest.mark.parametrize(
    ("name", "data", "message"),
    [
        ("p.yaml", b"x", r"kind '\.yaml', allowed are \.jsonl"),
        ("p", b"x", "kind ''"),
        ("p.json", b"{", r"p\.json line 1: it is not JSON"),
        ("p.json", b"{}", "got an object, allowed is a list"),
        ("p.csv", b"label\nx\n", "got the columns 'label'"),
        ("p.csv", b"messages\nx\n", "got the columns"),
        ("p.csv", b"", "no usable prompt"),
        ("p.parquet", b"PAR1junk", "is not Parquet"),
        ("p.txt", "x".encode("utf-16"), "is UTF-16"),
        ("p.txt", b" \n\n", "no usable prompt"),
        ("p.jsonl", b"{}\n", r"no usable prompt.*p\.jsonl line 1"),
    ],
)
def test_unusable_file(tmp_path: Path, name: str, data: bytes, message: str) -> None:
    (tmp_path / name).write_bytes(data)
    with pytest.raises(PromptFileError, match=message):
        read(tmp_path / name)


def test_unreadable_sources(tmp_path: Path) -> None:
    with pytest.raises(PromptFileError, match="No such file"):
        read(tmp_path / "absent.txt")
    (tmp_path / "folder.txt").mkdir()
    with pytest.raises(PromptFileError, match="Is a directory"):
        read(tmp_path / "folder.txt")
    with pytest.raises(PromptFileError, match="allowed are pocket:train, pocket:optimization"):
        read_prompts("pocket:test", split="train")
    with pytest.raises(PromptFileError, match="no usable prompt in no source"):
        read_prompts([], split="train")


def test_limit_is_a_stable_sample(tmp_path: Path) -> None:
    """A smaller limit keeps a part of a larger one, and the order of the file does not matter."""
    names = [f"prompt {k}" for k in range(50)]
    path = jsonl(tmp_path / "p.jsonl", *({"prompt": name} for name in names))
    small, large = read(path, limit=10), read(path, limit=20)
    jsonl(path, *({"prompt": name} for name in reversed(names)))
    assert read(path, limit=10).prompts == small.prompts == large.prompts[:10]
    assert (len(small.prompts), small.available) == (10, 50)
    assert texts(small) != set(names[:10])


def test_pocket_keeps_its_balanced_order() -> None:
    found = read_prompts("pocket:optimization", split="optimization", limit=20)
    assert [prompt.text for prompt in found.prompts] == [
        prompt.text for prompt in pocket.prompts("optimization")[:20]
    ]
    assert {(prompt.split, prompt.source) for prompt in found.prompts} == {
        ("optimization", "pocket:optimization")
    }


def test_sources_are_mixed_in_proportion(tmp_path: Path) -> None:
    """Of 30 and 10 prompts, every prefix of 4 holds 3 and 1, since place (k + 1/2) / n orders them."""
    many = jsonl(tmp_path / "many.jsonl", *({"prompt": f"many {k}"} for k in range(30)))
    few = jsonl(tmp_path / "few.jsonl", *({"prompt": f"few {k}"} for k in range(10)))
    found = read_prompts([str(many), str(few)], split="train")
    for count in range(4, 41, 4):
        head = [prompt.text.split()[0] for prompt in found.prompts[:count]]
        assert head.count("few") == count // 4


def test_sources_are_mixed_evenly(tmp_path: Path) -> None:
    """Of 30 and 10 prompts by turns, the first 20 hold 10 and 10, and the rest comes from the larger file."""
    many = jsonl(tmp_path / "many.jsonl", *({"prompt": f"many {k}"} for k in range(30)))
    few = jsonl(tmp_path / "few.jsonl", *({"prompt": f"few {k}"} for k in range(10)))
    found = read_prompts([str(many), str(few)], split="train", mix="even")
    assert [prompt.text.split()[0] for prompt in found.prompts] == ["many", "few"] * 10 + ["many"] * 20
    assert {p.id for p in found.prompts} == {p.id for p in read(many).prompts + read(few).prompts}


def test_held_out_share_and_stability() -> None:
    """Of 1,000 prompts a tenth is held out, within four standard deviations (38); more prompts move none."""
    before = split_held_out(numbered(1000), 0.1)
    assert abs(len(before.held_out) - 100) < 38
    after = split_held_out(numbered(1000) + numbered(500, "other"), 0.1)
    assert {p.id for p in before.held_out} <= {p.id for p in after.held_out}
    assert {p.id for p in before.train} <= {p.id for p in after.train}


@settings(max_examples=30, deadline=None)
@given(st.integers(2, 12), st.floats(0.001, 0.999), st.text(max_size=3))
def test_both_sides_hold_a_prompt(count: int, share: float, word: str) -> None:
    prompts = numbered(count, word)
    divided = split_held_out(prompts, share)
    assert divided.train and divided.held_out
    assert {p.id for p in divided.train} | {p.id for p in divided.held_out} == {p.id for p in prompts}
    assert len(divided.train) + len(divided.held_out) == count


def test_holding_out_is_independent_of_sampling(tmp_path: Path) -> None:
    """A limited sample is no end of the hold-out hash: at 1/2, about half of 200 of 2,000 are held out."""
    path = jsonl(tmp_path / "p.jsonl", *({"prompt": f"p {k}"} for k in range(2000)))
    divided = split_held_out(read(path, limit=200).prompts, 0.5)
    assert abs(len(divided.held_out) - 100) < 29


def test_one_prompt_cannot_be_divided() -> None:
    with pytest.raises(InputError, match="got 1 prompt"):
        split_held_out(numbered(1), 0.1)
