"""Sources: weights, limits, dataset folders and the Hub, packed files, what is refused, and looking at them."""

import gzip
import json
import logging
from collections import Counter
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from typer.testing import CliRunner

from rheostat import cli
from rheostat.config import SourceConfig
from rheostat.errors import PromptFileError
from rheostat.prompt_rows import COLUMNS
from rheostat.prompt_sources import digest, source_problems
from rheostat.prompts import Queue, interleave, prompt_id, read_prompts
from rheostat.records import Message, Prompt

ROOT = Path(__file__).resolve().parents[1]


@pytest.fixture(autouse=True, scope="module")
def _quiet_datasets() -> Iterator[None]:
    import datasets

    shown = datasets.is_progress_bar_enabled()
    datasets.disable_progress_bars()
    yield
    if shown:
        datasets.enable_progress_bars()


def jsonl(path: Path, *rows: object) -> Path:
    path.write_text("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows), encoding="utf-8")
    return path


def numbered(path: Path, word: str, count: int) -> str:
    return str(jsonl(path, *({"prompt": f"{word} {place}"} for place in range(count))))


def texts(*sources: str | SourceConfig, **options: Any) -> list[str]:
    return [prompt.text for prompt in read_prompts(list(sources), split="train", **options).prompts]


def queues(sizes: Sequence[int], shares: Sequence[float]) -> list[Queue]:
    found = []
    for number, (size, share) in enumerate(zip(sizes, shares, strict=True)):
        turns = [(Message("user", f"{number} {place}"),) for place in range(size)]
        found.append(Queue(share, tuple(Prompt(prompt_id(each), each, "train", str(number)) for each in turns)))
    return found


# Weights


def test_weights_by_hand(tmp_path: Path) -> None:
    """Weights 2 and 1: (k + 1/2) / 2 gives .25, .75, 1.25, 1.75, and k + 1/2 gives .5, 1.5: a b a, a b a.

    The sizes, and `mix`, do not matter; a source without a weight has 1.
    """
    heavy = SourceConfig(source=numbered(tmp_path / "a.jsonl", "a", 6), weight=2)
    light = numbered(tmp_path / "b.jsonl", "b", 20)
    for mix in ("size", "even"):
        words = [text[0] for text in texts(heavy, light, mix=mix)]
        assert words == list("abaabaaba") + ["b"] * 17


def sainte_lague(sizes: Sequence[int], weights: Sequence[int]) -> list[int]:
    """Seat by seat to the party with the highest quotient weight / (2 seats + 1)."""
    seats = [0] * len(sizes)
    order = []
    for _ in range(sum(sizes)):
        party = max(
            (each for each in range(len(sizes)) if seats[each] < sizes[each]),
            key=lambda each: (weights[each] / (2 * seats[each] + 1), -each),
        )
        seats[party] += 1
        order.append(party)
    return order


PARTIES = st.lists(st.tuples(st.integers(0, 12), st.integers(1, 16)), min_size=1, max_size=4)


@given(PARTIES)
def test_sources_are_interleaved_as_seats_are_given_out(parties: list[tuple[int, int]]) -> None:
    sizes, weights = zip(*parties, strict=True)
    order = [int(prompt.source) for prompt in interleave(queues(sizes, [float(each) for each in weights]))]
    counted = sainte_lague(sizes, weights)
    for count in range(len(order) + 1):  # ties may fall either way within a prefix, by at most one prompt
        here, there = Counter(order[:count]), Counter(counted[:count])
        assert all(abs(here[each] - there[each]) <= 1 for each in range(len(sizes)))


@given(st.lists(st.floats(0.1, 50), min_size=1, max_size=4))
def test_every_prefix_is_a_sample_at_the_weights(weights: list[float]) -> None:
    """While no source has ended: of n prompts a source has n w / W, within 1/2 for itself and its share of the others'
    roundings, and one for a tie.
    """
    size = 40
    order = [int(prompt.source) for prompt in interleave(queues([size] * len(weights), weights))]
    seen: Counter[int] = Counter()
    for count, source in enumerate(order, start=1):
        seen[source] += 1
        if max(seen.values()) == size:
            return
        for each, weight in enumerate(weights):
            share = weight / sum(weights)
            assert abs(seen[each] - count * share) <= 0.5 + len(weights) * share / 2 + 1


def test_a_limit_of_its_own_is_a_stable_sample(tmp_path: Path) -> None:
    """The same prompts as the head of the whole source, whatever the memory held on the way."""
    path = numbered(tmp_path / "a.jsonl", "a", 3000)
    whole = texts(path)
    assert texts(SourceConfig(source=path, limit=20)) == whole[:20]
    other = numbered(tmp_path / "b.jsonl", "b", 5)
    both = read_prompts([SourceConfig(source=path, limit=20), other], split="train")
    assert (both.available, len(both.queues[0].prompts)) == (25, 20)


def test_what_a_limit_cuts_off_does_not_count_as_known(tmp_path: Path) -> None:
    first = numbered(tmp_path / "a.jsonl", "a", 30)
    found = read_prompts([SourceConfig(source=first, limit=10), first], split="train")
    assert (found.available, found.duplicates) == (30, 10)


# Files


def test_packed_files(tmp_path: Path) -> None:
    for kind, text in (("jsonl", '{"prompt": "one"}\n'), ("csv", "prompt\ntwo\n"), ("txt", "\ufeffthree\n")):
        (tmp_path / f"p.{kind}.gz").write_bytes(gzip.compress(text.encode()))
    assert set(texts(*(str(path) for path in sorted(tmp_path.glob("p.*"))))) == {"one", "two", "three"}
    (tmp_path / "cut.jsonl.gz").write_bytes(gzip.compress(b'{"prompt": "one"}\n' * 50)[:-9])
    (tmp_path / "plain.txt.gz").write_bytes(b"no archive")
    for name in ("cut.jsonl.gz", "plain.txt.gz"):
        with pytest.raises(PromptFileError, match=f"cannot read .*{name}"):
            texts(str(tmp_path / name))
    with pytest.raises(PromptFileError, match="allowed are"):
        texts(str(tmp_path / "p.parquet.gz"))


def test_a_column_by_name_in_each_kind(tmp_path: Path) -> None:
    import pyarrow as pa
    import pyarrow.parquet as pq

    jsonl(tmp_path / "a.jsonl", {"Frage": "one", "prompt": "x"})
    (tmp_path / "b.csv").write_text("id,Frage\n1,two\n")
    pq.write_table(pa.table({"Frage": ["three"], "prompt": ["x"]}), tmp_path / "c.parquet")
    (tmp_path / "d.json").write_text('[{"Frage": "four"}]')
    found = texts(*(SourceConfig(source=str(path), column="Frage") for path in sorted(tmp_path.iterdir())))
    assert set(found) == {"one", "two", "three", "four"}
    with pytest.raises(PromptFileError, match="got the columns 'id', 'frage'; allowed is prompt"):
        texts(str(tmp_path / "b.csv"))


# Datasets


def saved(path: Path, rows: Sequence[dict[str, Any]], *splits: str) -> str:
    import datasets

    dataset = datasets.Dataset.from_list(list(rows))
    (datasets.DatasetDict(dict.fromkeys(splits, dataset)) if splits else dataset).save_to_disk(path)
    return str(path)


def test_a_folder_of_save_to_disk(tmp_path: Path) -> None:
    turns = [{"role": "user", "content": "one"}, {"role": "assistant", "content": "two"}]
    path = saved(tmp_path / "d", [{"messages": turns, "prompt": "x"}, {"messages": [], "prompt": "y"}])
    found = read_prompts(path, split="train")
    assert [prompt.messages for prompt in found.prompts] == [(Message("user", "one"),)]
    assert [(skipped.line, skipped.reason) for skipped in found.skipped] == [
        (2, "messages: got a list, allowed is a list of turns")
    ]
    assert {prompt.source for prompt in found.prompts} == {path}


def test_splits_of_a_dataset(tmp_path: Path) -> None:
    path = saved(tmp_path / "d", [{"question": "one"}], "train", "test")
    assert texts(path) == texts(SourceConfig(source=path, split="test")) == ["one"]
    with pytest.raises(PromptFileError, match=r"split 'tset', allowed are test, train \(did you mean 'test'\?\)"):
        texts(SourceConfig(source=path, split="tset"))
    other = saved(tmp_path / "e", [{"question": "one"}], "a", "b")
    with pytest.raises(PromptFileError, match="got the split None, allowed are a, b"):
        texts(other)
    assert texts(saved(tmp_path / "f", [{"question": "two"}], "only")) == ["two"]


def test_a_folder_of_data_files_is_streamed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Nothing is written into the cache of the library; the README of a dataset names its configurations."""
    import datasets

    cache = tmp_path / "cache"
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", cache)
    folder = tmp_path / "data"
    folder.mkdir()
    numbered(folder / "train.jsonl", "train", 3)
    numbered(folder / "test.jsonl", "test", 2)
    assert set(texts(str(folder))) == {"train 0", "train 1", "train 2"}
    assert set(texts(SourceConfig(source=str(folder), split="test"))) == {"test 0", "test 1"}
    assert not list(cache.rglob("*.arrow"))
    (folder / "README.md").write_text(
        "---\nconfigs:\n- config_name: a\n  data_files: train.jsonl\n- config_name: b\n  data_files: test.jsonl\n---\n"
    )
    assert set(texts(SourceConfig(source=str(folder), name="b"))) == {"test 0", "test 1"}
    with pytest.raises(PromptFileError, match="cannot read the dataset"):
        texts(str(folder))


def test_columns_of_a_dataset(tmp_path: Path) -> None:
    path = saved(tmp_path / "d", [{"Frage": "one", "label": 1}])
    assert texts(SourceConfig(source=path, column="Frage")) == ["one"]
    with pytest.raises(PromptFileError, match="got the columns 'Frage', 'label'; allowed are messages, conversations"):
        texts(path)


class Hub:
    """Stands for `load_dataset`: a dataset of the Hub, how it was asked for, and how many rows were read."""

    def __init__(self, rows: int) -> None:
        self.rows = rows
        self.read = 0
        self.calls: list[tuple[Any, ...]] = []

    def __call__(self, path: str, name: str | None, *, revision: str | None, streaming: bool) -> Any:
        import datasets

        self.calls.append((path, name, revision, streaming))

        def generate() -> Iterator[dict[str, str]]:
            for place in range(self.rows):
                self.read += 1
                yield {"prompt": f"hub {place}"}

        whole = datasets.IterableDataset.from_generator(generate)
        return datasets.IterableDatasetDict(train=whole)


def test_a_dataset_of_the_hub_with_a_limit_is_not_read_whole(monkeypatch: pytest.MonkeyPatch) -> None:
    hub = Hub(10_000)
    monkeypatch.setattr("datasets.load_dataset", hub)
    source = SourceConfig(source="hf:owner/name", name="big", revision="v1", limit=5)
    assert set(texts(source)) == {f"hub {place}" for place in range(5)}
    assert hub.calls == [("owner/name", "big", "v1", True)] and hub.read < 50
    hub.rows = 30
    assert len(texts("hf:owner/name")) == 30
    assert hub.calls[-1] == ("owner/name", None, None, False)


def test_a_hub_that_cannot_be_reached(monkeypatch: pytest.MonkeyPatch) -> None:
    """Off line the library says so at once; validation does not ask."""
    monkeypatch.setattr("datasets.config.HF_HUB_OFFLINE", True)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    assert not list(source_problems(SourceConfig(source="hf:nobody/nothing")))
    result = CliRunner().invoke(cli.app, ["prompts", "hf:nobody/nothing"])
    assert result.exit_code == 2 and result.stdout == ""
    assert "error: cannot read the dataset 'hf:nobody/nothing'" in result.stderr
    assert "hint: check the name and the connection" in result.stderr and "Traceback" not in result.stderr


def test_a_dataset_that_breaks_off_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    import datasets

    def broken() -> Iterator[dict[str, str]]:
        yield {"prompt": "one"}
        raise ConnectionError("the connection was reset")

    def load(*given: Any, **options: Any) -> Any:
        return datasets.IterableDataset.from_generator(broken)

    monkeypatch.setattr("datasets.load_dataset", load)
    with pytest.raises(PromptFileError, match="cannot read the dataset 'hf:a/b': the connection was reset"):
        texts("hf:a/b")


# What is refused, and what a run depends on


@pytest.mark.parametrize(
    ("source", "problems"),
    [
        ({"source": "hf:"}, ["allowed is hf: and a dataset's name"]),
        ({"source": "hf:a/b/c"}, ["allowed is hf: and a dataset's name"]),
        ({"source": ""}, ["got a file of kind ''"]),
        ({"source": "{}", "split": "test"}, ["got a folder without data", ]),
        (
            {"source": "pocket:trian", "column": "x", "split": "y"},
            ["allowed are pocket:train", "split: got 'y'", "column: got 'x' for 'pocket:trian', allowed is it only"],
        ),
        ({"source": "absent.jsonl", "name": "x", "revision": "y"}, ["No such file", "name: got 'x'", "revision: got"]),
    ],
)  # fmt: skip
def test_all_problems_of_a_source_at_once(source: dict[str, Any], problems: list[str], tmp_path: Path) -> None:
    block = SourceConfig(**{**source, "source": source["source"].format(tmp_path)})
    found = list(source_problems(block))
    assert len(found) == len(problems)
    assert all(any(expected in problem for problem in found) for expected in problems), found


def test_digest_of_a_folder_changes_with_any_file(tmp_path: Path) -> None:
    numbered(tmp_path / "a.jsonl", "a", 3)
    before = digest(SourceConfig(source=str(tmp_path)))
    assert before == digest(SourceConfig(source=str(tmp_path)))
    numbered(tmp_path / "b.jsonl", "b", 3)
    between = digest(SourceConfig(source=str(tmp_path)))
    (tmp_path / "b.jsonl").rename(tmp_path / "c.jsonl")
    assert len({before, between, digest(SourceConfig(source=str(tmp_path)))}) == 3
    assert digest(SourceConfig(source="hf:a/b")) is digest(SourceConfig(source="pocket:train")) is None


# Looking at them


def look(*arguments: str) -> str:
    result = CliRunner().invoke(cli.app, ["prompts", *arguments])
    assert result.exit_code == 0, result.stderr
    return result.stdout


def test_the_command_shows_what_a_source_gives(tmp_path: Path) -> None:
    first = "How do I patch the inner tube of a bicycle?"
    path = jsonl(
        tmp_path / "p.jsonl",
        {"prompt": first},
        {"prompt": first.upper()},
        {"prompt": f"{first} Please"},
        {"label": "x"},
        {"messages": [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b\x1b[31m\nc"},
                      {"role": "user", "content": "d"}]},
    )  # fmt: skip
    shown = look(str(path), "--near-duplicates", "0.8")
    assert "3 usable prompts (1 broken rows skipped, 1 duplicates left out); of these, 1 near-duplicates" in shown
    assert "turns: 1 in 2 prompts, 3 in 1 prompts" in shown
    assert f"{path} line 4: it has the keys 'label'" in shown
    assert "  assistant: b\\x1b[31m\\nc\n" in shown, "nothing that a terminal would obey"
    assert shown.count("\nprompt ") == 3
    assert "of these, 0 near-duplicates" in look(str(path), "--near-duplicates", "0", "--samples", "0")
    assert "\nprompt " not in look(str(path), "--samples", "0")
    assert "2 usable prompts" in look(str(path), "--limit", "2")
    for wrong in ("nan", "2"):
        assert CliRunner().invoke(cli.app, ["prompts", str(path), "--near-duplicates", wrong]).exit_code == 2


def test_the_page_names_every_key_and_shape() -> None:
    page = (ROOT / "docs" / "prompts.md").read_text(encoding="utf-8")
    for name in (*SourceConfig.model_fields, *COLUMNS):
        assert f"`{name}`" in page, name


def test_the_example_of_the_page(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The file and the output that docs/prompts.md shows."""
    page = (ROOT / "docs" / "prompts.md").read_text(encoding="utf-8")
    _, block = page.split("$ cat > my-prompts.jsonl <<'END'\n", 1)
    rows, rest = block.split("END\n$ rheostat prompts my-prompts.jsonl\n", 1)
    monkeypatch.chdir(tmp_path)
    Path("my-prompts.jsonl").write_text(rows, encoding="utf-8")
    assert look("my-prompts.jsonl") == rest.split("```", 1)[0]


@pytest.mark.shared
def test_real_files(shared: Path, caplog: pytest.LogCaptureFixture) -> None:
    """Every row of what lies in ../shared/data is a prompt or a named problem."""
    caplog.set_level(logging.WARNING)
    data = shared / "data"
    found = read_prompts(
        [
            SourceConfig(source=str(data / "instructions" / "harmful_train.json"), weight=1),
            SourceConfig(source=str(data / "instructions" / "harmless_val.json"), weight=1),
            SourceConfig(source=str(data / "diasafety" / "val.json"), column="context", limit=100),
            str(data / "xstest" / "xstest_prompts.csv"),
        ],
        split="train",
    )
    assert not found.skipped and found.available == 260 + 6264 + 100 + 450
    head = Counter(Path(prompt.source).stem for prompt in found.prompts[:400])
    assert set(head.values()) == {100}
    hh = read_prompts(str(data / "hh-rlhf" / "harmless-base-test.jsonl.gz"), split="train")
    assert (hh.available, len(hh.skipped), hh.duplicates) == (2306, 4, 2)
    assert sum(len(prompt.messages) > 1 for prompt in hh.prompts) == 1646
    folder = read_prompts(SourceConfig(source=str(data / "instructions"), split="validation"), split="train")
    assert {skipped.reason for skipped in folder.skipped} == set()
