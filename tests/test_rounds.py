"""Rounds: what a further one asks for, by hand and by law; the whole house with a second round, killed and resumed."""

import hashlib
import json
import math
import re
import shlex
from bisect import bisect_right
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from itertools import accumulate, pairwise
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from rheostat import pipeline, plugins, round_tables, steering
from rheostat.calibration import Calibrator
from rheostat.config import DistilConfig, RunConfig
from rheostat.control import ControlFormat
from rheostat.errors import ConfigError
from rheostat.generation_work import SteeredWork
from rheostat.method_name import MethodName, TrainingData
from rheostat.moec import moec
from rheostat.plugins import Progress
from rheostat.recipe import load_config
from rheostat.records import Example, Message, Prompt, Response, ScoredResponse, by_prompt
from rheostat.rundir import RunDirectory
from rheostat.steering import Cell
from rheostat.trainings import training, trainings

pytestmark = pytest.mark.usefixtures("one_thread")
DATA = "moec+round2+exmate"
SETTINGS = (
    "prompts.train_limit=8", "prompts.evaluation_limit=2", "prompts.generalization=null", "judges={}", "suite=null",
    "prompts.calibration_limit=0", "evaluate.forged_prompts=0", "evaluate.reachable_samples=4",
    "evaluate.bootstrap=100", "evaluate.max_tokens=12", "generate.samples=8", "generate.max_tokens=24",
    "generate.shard_prompts=2", "levels=[0,0.5,1]", "train.steps=4", "train.batch_size=4", "train.save_steps=2",
    "distil.minimum_contrast=0", "methods=[exmate, exmate+round2]", "rounds.samples=5", "rounds.steps=6",
)  # fmt: skip


def recipe(*overrides: str) -> RunConfig:
    return load_config("pocket", [*SETTINGS, *overrides])


def cells(*values: float) -> dict[Cell, float]:
    return {(float(place),): value for place, value in enumerate(values)}


def counted(*values: int) -> dict[Cell, int]:
    return {(float(place),): value for place, value in enumerate(values)}


def test_shares_by_hand() -> None:
    """Counts 0, 1, 3 weigh 1, 1/2, 1/4 at k = 1 (sum 7/4), and 1, 1/4, 1/16 at k = 2 (sum 21/16)."""
    assert steering.shares(counted(0, 1, 3), thinness=1) == pytest.approx(cells(4 / 7, 2 / 7, 1 / 7))
    assert steering.shares(counted(0, 1, 3), thinness=2) == pytest.approx(cells(16 / 21, 4 / 21, 1 / 21))
    assert steering.shares(counted(0, 1, 3, 9), thinness=0) == pytest.approx(cells(0.25, 0.25, 0.25, 0.25))


def test_what_is_asked_by_hand() -> None:
    """The points of 2 samples are 0 and .5 at offset 0, .3 and .8 at .6; of 3 at .5: 1/6, 1/2, 5/6."""
    wanted = cells(0.5, 0.25, 0.25)
    assert steering.asked(wanted, samples=2, offset=0) == counted(1, 1)
    assert steering.asked(wanted, samples=2, offset=0.6) == {(0.0,): 1, (2.0,): 1}
    assert steering.asked(wanted, samples=3, offset=0.5) == counted(1, 1, 1)
    assert steering.asked(wanted, samples=8, offset=0.5) == counted(4, 2, 2)


@given(st.lists(st.integers(0, 10**6), min_size=1, max_size=30), st.floats(0, 4))
def test_a_thinner_cell_is_never_asked_for_less(counts: list[int], thinness: float) -> None:
    found = steering.shares(counted(*counts), thinness=thinness)
    assert sum(found.values()) == pytest.approx(1)
    assert all(share > 0 for share in found.values())
    in_order = [found[(float(place),)] for place in sorted(range(len(counts)), key=lambda each: counts[each])]
    assert in_order == sorted(in_order, reverse=True)


SIXTEENTHS = st.lists(st.integers(0, 3), min_size=1, max_size=16).map(lambda each: [*each, 64 - sum(each)])


@given(SIXTEENTHS, st.integers(1, 16), st.integers(0, 63))
def test_a_prompt_is_asked_as_the_slow_twin_says(parts: list[int], samples: int, offset: int) -> None:
    """All numbers are dyadic, so floats are exact; the twin looks up where each point falls."""
    wanted = cells(*(part / 64 for part in parts))
    found = steering.asked(wanted, samples=samples, offset=offset / 64)
    ends = [end / 64 for end in accumulate(parts)]
    twin = Counter(bisect_right(ends, (offset / 64 + point) / samples) for point in range(samples))
    if samples & (samples - 1) == 0:  # else the points are not dyadic
        assert found == {(float(place),): count for place, count in twin.items()}
    assert sum(found.values()) == samples
    for cell, share in wanted.items():
        assert math.floor(samples * share) <= found.get(cell, 0) <= math.ceil(samples * share)


@given(SIXTEENTHS, st.integers(1, 8))
def test_over_all_offsets_a_cell_is_asked_for_its_share(parts: list[int], samples: int) -> None:
    total: Counter[Cell] = Counter()
    for offset in range(64):
        total.update(steering.asked(cells(*(part / 64 for part in parts)), samples=samples, offset=offset / 64))
    assert total == Counter({(float(place),): samples * part for place, part in enumerate(parts) if part})


@given(st.text(max_size=20), st.integers(0, 2**63))
@settings(max_examples=30)
def test_offsets_are_in_the_unit_interval(prompt: str, seed: int) -> None:
    assert 0 <= steering.offset_of(prompt, seed=seed) < 1
    assert steering.offset_of(prompt, seed=seed) != steering.offset_of(prompt, seed=seed + 1)


def test_a_round_starts_from_the_model_of_the_round_before() -> None:
    config = recipe("methods=[exmate+round3]")
    names = [str(each) for each in trainings(config)]
    assert names == ["exmate-moec", "exmate-moec+round2+exmate", "exmate-moec+round3+exmate"]
    first, second, third = trainings(config)
    assert (first.start, second.start, third.start) == (None, first, second)
    assert third.data.further == (second.data, third.data)
    assert (third.data.before, second.data.before) == (second.data, first.data)


def test_data_says_whose_model_sampled_it() -> None:
    """Two methods' second rounds never share a stage, whatever else they have in common."""
    config = recipe()
    names = ["exmate+round2", "clm+round2", "exmate+raw+round2", "exmate+from_clm+round2", "exmate+x0.5+round2"]
    found = [training(each, config) for each in names]
    assert len({each.data.round_stage for each in found}) == len({each.stage for each in found}) == len(names)
    continued = training("exmate+from_clm+round2", config)
    assert continued.start == training("exmate+from_clm", config)
    assert str(continued) == "exmate-moec+round2+exmate+from_clm"


def test_a_further_round_may_be_trained_otherwise() -> None:
    config = recipe("rounds.learning_rate=1e-4", "train.overrides={exmate: {batch_size: 2}}")
    first, second = trainings(config)
    assert (first.options(config).steps, second.options(config).steps) == (4, 6)
    assert second.options(config).learning_rate == 1e-4
    assert first.options(config).batch_size == second.options(config).batch_size == 2


@pytest.mark.parametrize("name", ["dpo+round2", "exmate+round1", "exmate+round2+round3", "base+round2"])
def test_what_has_no_rounds_is_refused(name: str) -> None:
    with pytest.raises(ConfigError, match="got '.*round"):
        recipe(f"methods=[{name}]")


class Killed(Exception):
    """What stands for a kill here."""


class Dying:
    """A progress display under which the task `label` dies after its first advance."""

    def __init__(self, label: str) -> None:
        self._label = label

    @contextmanager
    def task(self, label: str, total: int | None, *, unit: str = "items", done: int = 0) -> Iterator[Progress]:
        def tell(count: int) -> None:
            if label == self._label and done + count < (total or 0):
                raise Killed(label)

        yield tell


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("rounds") / "run"
    pipeline.run(recipe(), out)
    return out


def digests(out: Path) -> dict[str, str]:
    return {
        str(path.relative_to(out)): hashlib.sha256(path.read_bytes()).hexdigest()
        for path in sorted(out.rglob("*"))
        if path.suffix == ".parquet" or path.name == "model.safetensors"
    }


@pytest.mark.timeout(300)
def test_killed_in_a_round_and_resumed_it_ends_with_the_same_bytes(run: Path, tmp_path: Path) -> None:
    folder = tmp_path / "run"
    for label, shards in ((f"generate {DATA}", 1), (f"train exmate-{DATA}", 4)):
        with pytest.raises(Killed, match=label.replace("+", r"\+")):
            pipeline.run(recipe(), folder, progress=Dying(label))
        assert len(list((folder / "rounds" / DATA / "generate").glob("*.parquet"))) == shards
        assert not (folder / "train" / f"exmate-{DATA}" / "done.json").exists()
    pipeline.run(recipe(), folder)
    assert digests(folder) == digests(run)
    assert any(name.startswith("rounds/") for name in digests(run))


def test_what_a_round_adds(run: Path) -> None:
    """Its own sample numbers, the answers of the model before, the first pool's calibrators, the first pool beside."""
    config = recipe()
    with RunDirectory.open(run, read_only=True) as opened:
        prompts = opened.finished("prompts").read(Prompt, prefix="train")
        generated = opened.finished(f"rounds/{DATA}/generate").read(Response)
        stage = opened.finished(f"rounds/{DATA}/score")
        scored = stage.read(ScoredResponse)
        saved = json.loads((opened.finished("score").path / "calibration.json").read_text())["reward"]
        first, second = (opened.finished(f"distil/{each}") for each in ("moec", DATA))
        trained = opened.finished(f"train/exmate-{DATA}")
        before = opened.finished("train/exmate-moec")
        first_pool = opened.finished("score").summary["responses"]
    assert {key: [each.sample for each in rows] for key, rows in by_prompt(generated).items()} == {
        prompt.id: list(range(8, 13)) for prompt in prompts
    }
    assert [each.text for each in scored] == [each.text for each in generated]
    for dial, calibrator in saved.items():
        again = Calibrator.from_json(calibrator).apply([row.raw[dial] for row in scored])
        assert [row.calibrated[dial] for row in scored] == again.tolist()
    assert second.summary["pool"] == first_pool + len(generated) == 8 * 8 + 8 * 5
    assert second.summary["examples"] == len(second.read(Example)) > 0
    inputs = json.loads((trained.path / "stage.json").read_text())["inputs"]
    assert inputs["required"] == {"exmate-moec": before.fingerprint}
    assert (before.summary["steps"], trained.summary["steps"]) == (4, 6)
    counts = stage.summary
    assert sum(counts["cells_asked"].values()) == sum(counts["cells_landed"].values()) == len(generated)
    assert all(counts["cells_hit"][each] <= counts["cells_asked"][each] for each in counts["cells_asked"])
    form = config.control_format
    landed = Counter(
        form.render({name: form.quantise(name, row.calibrated[name]) for name in form.names}) for row in scored
    )
    assert {key: count for key, count in counts["cells_landed"].items() if count} == landed
    assert set(first.summary["cells_after"]) <= set(counts["cells_asked"])


def test_a_round_asks_for_what_its_examples_lack(run: Path) -> None:
    """Over all prompts each control is asked for within one a prompt of its share, thin ones more than full ones."""
    config = recipe()
    form = config.control_format
    with RunDirectory.open(run, read_only=True) as opened:
        held = opened.finished("distil/moec").summary["cells_after"]
        asked = opened.finished(f"rounds/{DATA}/score").summary["cells_asked"]
    counts = {tuple(each.values()): held.get(form.render(each), 0) for each in form.grid()}
    shares = steering.shares(counts, thinness=1.0)
    for control in form.grid():
        expected = 8 * 5 * shares[tuple(control.values())]
        assert abs(asked[form.render(control)] - expected) < 8
    thinnest, fullest = (pick(counts, key=lambda each: counts[each]) for pick in (min, max))
    texts = [form.render(dict(zip(form.names, each, strict=True))) for each in (thinnest, fullest)]
    assert asked[texts[0]] > asked[texts[1]]


def test_a_share_of_the_prompts_is_all_that_a_round_answers() -> None:
    data = TrainingData(variant="moec", share=0.25, round=2, sampler="exmate")
    assert str(data) == "moec+x0.25+round2+exmate"
    assert data.first(list("abcdefgh")) == ["a", "b"]
    work = SteeredWork(recipe(), "", tuple(cells(0.5, 0.5).items()), 8, 1)
    assert sum(work.asked(Prompt("p", (), "train", "test")).values()) == 5


def pool(scores: Sequence[float]) -> dict[str, list[ScoredResponse]]:
    return {
        "p": [
            ScoredResponse("p", place, f"says {place}", 2, "stop", {}, {"safety": score})
            for place, score in enumerate(scores)
        ]
    }


def kept(rows: Mapping[str, Sequence[ScoredResponse]], further_from: Sequence[int] = ()) -> list[str]:
    found = moec(
        rows,
        {"p": Prompt("p", (Message("user", "ask"),), "train", "test")},
        control_format=ControlFormat((plugins.attribute("safety"),)),
        options=DistilConfig(per_corner=1, per_extreme=1, minimum_contrast=0, maximum_cell_share=1),
        further_from=further_from,
    )
    return [each.response for each in found.examples]


def test_rounds_apart_keep_what_lies_between_by_hand() -> None:
    """0 and 1 are the extremes of all; of the second round alone, from sample 3 on, .45 and .55 are, and .5 is not."""
    rows = pool([0.0, 0.9, 1.0, 0.5, 0.45, 0.55])
    assert kept(rows) == ["says 0", "says 2"]
    assert kept(rows, [3]) == ["says 0", "says 2", "says 4", "says 5"]


@given(st.lists(st.floats(0, 1), min_size=1, max_size=12), st.lists(st.integers(0, 12), max_size=3).map(sorted))
@settings(max_examples=40, deadline=None)
def test_rounds_apart_are_each_distilled_alone(scores: list[float], further_from: list[int]) -> None:
    (rows,) = pool(scores).values()
    parts = [
        rows[begun:ended] for begun, ended in zip([0, *further_from], [*further_from, len(rows)], strict=True)
    ]
    assert kept({"p": rows}, further_from) == [text for part in parts if part for text in kept({"p": part})]


def test_figures_and_page_tell_the_rounds(run: Path) -> None:
    evaluation = json.loads((run / "evaluation.json").read_text())
    first, second = evaluation["rounds"]["exmate+round2"]
    assert (first["method"], second["method"]) == ("exmate", "exmate+round2")
    curve = second["ends"]["optimization"]["reward"]["safety"]
    assert 0 <= curve["low"]["value"] <= 1 and 0 <= curve["high"]["value"] <= 1
    assert set(second["seconds"]) == {f"train/exmate-{DATA}", f"rounds/{DATA}/generate", f"rounds/{DATA}/score"}
    costs = {name: each["cost"] for name, each in evaluation["evaluations"]["optimization"].items()}
    assert costs["exmate+round2"]["trainings"] == 2
    with RunDirectory.open(run, read_only=True) as opened:
        tokens = opened.finished(f"rounds/{DATA}/generate").summary["tokens"]
    more = {key: costs["exmate+round2"][key] - costs["exmate"][key] for key in costs["exmate"]}
    assert more["data_generated_tokens"] == tokens > 0
    assert more["data_seconds"] + more["training_seconds"] == pytest.approx(sum(second["seconds"].values()))
    page = (run / "report.html").read_text()
    assert '<section id="rounds">' in page and "round 2 asked" in page


def hand_made(method: str | None) -> dict[str, Any]:
    """Two rounds over two controls: 1 and 9 examples, then 7 and 9; of 8 asked 4 came out so."""
    ends = {"low": {"value": 0.2, "low": 0.1, "high": 0.3}, "high": {"value": 0.9, "low": 0.8, "high": 1.0}}
    figure = {"value": 0.5, "low": 0.4, "high": 0.6}
    entry = {
        "attributes": {"safety": {"MP": figure, "BT": figure, "Err": figure, "reach": None}}, "fluency": figure,
    }  # fmt: skip
    further = {
        "round": 2, "method": "clm+round2", "cells": {"a": 7, "b": 9}, "cells_asked": {"a": 6, "b": 2},
        "cells_hit": {"a": 3, "b": 1}, "cells_landed": {"a": 5, "b": 3}, "seconds": {"x": 2.0, "y": 1.0},
        "ends": {"optimization": {"reward": {"safety": ends}}},
    }  # fmt: skip
    first = {"round": 1, "method": method, "cells": {"a": 1, "b": 9}, "seconds": {"z": 9.0}, "ends": further["ends"]}
    return {
        "evaluations": {"optimization": {"clm": entry, "clm+round2": entry}}, "rounds": {"clm+round2": [first, further]}
    }  # fmt: skip


def test_the_words_and_tables_of_rounds_by_hand() -> None:
    """The mean of 1 and 9 is 5, so a control is thin below 2.5: one before, none after; 3 + 1 of 8 is half."""
    evaluation = hand_made("clm")
    assert round_tables.sentence(evaluation, "clm+round2") == (
        "Thin controls, which hold under half of the mean, 2.5 examples: 1 of 2 before, 0 after; the thinnest held 1 "
        "and then 7. Of 8 answers 50 % came out under the control that they were asked for. The further rounds took "
        "3 seconds in all."
    )
    counts = round_tables.cell_counts(evaluation, "clm+round2")
    assert counts.headings == (
        "round 1 examples", "round 2 asked", "of these came out so", "came out so in all", "round 2 examples",
    )  # fmt: skip
    assert counts.rows == (("a", ("1", "6", "3", "5", "7")), ("b", ("9", "2", "1", "3", "9")))
    (table,) = round_tables.tables(evaluation, "clm+round2")
    assert [name for name, _ in table.rows] == ["round 1", "round 2"]
    assert [cell.text for cell in table.rows[1][1]] == ["0.20", "0.90", "–", "0.50", "0.50", "0.50", "0.50"]


def test_a_round_that_was_not_evaluated_has_dashes() -> None:
    (table,) = round_tables.tables(hand_made(None), "clm+round2")
    assert {cell.text for cell in table.rows[0][1]} == {"–"}
    assert len(table.rows[0][1]) == len(table.rows[1][1])


def test_the_method_of_each_round_is_found_by_what_it_is() -> None:
    """A recipe may write the suffixes in another order."""
    names = [MethodName.parse(each) for each in ("exmate+round2+raw", "exmate+raw+round2")]
    assert names[0].identity() == names[1].identity()


def test_the_command_of_the_document_uses_what_it_recommends() -> None:
    text = (Path(__file__).resolve().parents[1] / "docs" / "rounds.md").read_text(encoding="utf-8")
    command = re.search(r"^rheostat run pocket (.*?)^```", text, re.DOTALL | re.MULTILINE)
    assert command is not None
    given = shlex.split(command[1].replace("\\\n", " "))
    wanted = [value for flag, value in pairwise(given) if flag == "--set"]
    rounds = load_config("pocket", wanted).rounds
    assert (rounds.steps, rounds.learning_rate) == (250, 3e-4)
