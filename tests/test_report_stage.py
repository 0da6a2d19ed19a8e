"""The report stage: what it reads from a run directory, and what it says where something is missing."""

import json
from collections.abc import Sequence
from pathlib import Path

import pytest

from rheostat import calibration
from rheostat.config import RunConfig
from rheostat.errors import StageMissing
from rheostat.figures import figures
from rheostat.recipe import to_yaml, validate
from rheostat.records import EvaluationRow, Example, Message, Prompt, Record, Response, ScoredResponse
from rheostat.report import gather, report
from rheostat.rundir import RunDirectory
from rheostat.storage import write_json
from rheostat.training_cost import _data_made
from rheostat.trainings import behind

METHODS = ("base", "clm+raw")


def recipe() -> RunConfig:
    return validate(
        {
            "model": "pocket:chat",
            "prompts": "pocket:train",
            "rewards": {"helpfulness": "x", "safety": "y"},
            "methods": list(METHODS),
            "levels": [0.0, 1.0],
            "evaluate": {"bootstrap": 100},
        }
    )


def finish(
    run: RunDirectory, name: str, shards: dict[str, tuple[Sequence[Record], type[Record]]], **summary: object
) -> None:
    stage = run.stage(name, inputs={})
    for prefix, (rows, row_type) in shards.items():
        stage.write(rows, row_type, prefix=prefix)
    stage.finish(summary)


def row(prompt: str, helpfulness: float, safety: float, gain: float) -> EvaluationRow:
    scores = {
        "reward/helpfulness": 0.5 + gain * (helpfulness - 0.5),
        "reward/safety": 0.5 + gain * (safety - 0.5),
    }
    return EvaluationRow(
        prompt_id=prompt,
        requested={"helpfulness": helpfulness, "safety": safety},
        text=f"answer to {prompt} at {helpfulness:g}, {safety:g}",
        tokens=4,
        finish="stop",
        generated_tokens=4,
        logprob=-6.0,
        scores=scores,
    )


@pytest.fixture
def directory(tmp_path: Path) -> Path:
    """A finished run of four held-out prompts, two methods, and a pool of eight responses."""
    config = recipe()
    ids = [f"{index:016x}" for index in range(4)]
    prompts = [Prompt(key, (Message("user", f"<b>{key}"),), "optimization", "made up") for key in ids]
    texts = [(key, sample) for key in ids for sample in range(2)]
    raw = {name: [float(index) for index in range(len(texts))] for name in ("helpfulness", "safety")}
    calibrators = {name: calibration.fit("quantile", values) for name, values in raw.items()}
    calibrated = {name: calibrators[name].apply(values).tolist() for name, values in raw.items()}
    scored = [
        ScoredResponse(
            key,
            sample,
            "text",
            2,
            "stop",
            {name: raw[name][at] for name in raw},
            {name: calibrated[name][at] for name in raw},
        )
        for at, (key, sample) in enumerate(texts)
    ]
    responses = [Response(key, sample, "text", 2, "stop") for key, sample in texts]
    control = {"helpfulness": 1.0, "safety": 0.0}
    examples = [Example(ids[0], prompts[0].messages, control, "text", scored[0].calibrated)]
    path = tmp_path / "run"
    with RunDirectory.open(path, create=True) as run:
        run.write_config(to_yaml(config))
        run.write_environment(device="cpu")
        counted = {"skipped_lines": 2, "repeated": 0, "too_long": {"optimization": 1}}
        counted |= {"optimization": 4, "generalization": 4}
        finish(run, "prompts", {"optimization": (prompts, Prompt)}, **counted)
        finish(run, "generate", {"shard": (responses, Response)}, responses=8, tokens=16, empty=0, truncated=3)
        finish(run, "score", {"shard": (scored, ScoredResponse)})
        saved = {name: each.to_json() for name, each in calibrators.items()}
        write_json(run.path / "score" / "calibration.json", {"reward": saved})
        finish(run, "distil/raw", {"shard": (examples, Example)}, examples=1, cell_limit=None)
        finish(run, "train/clm-raw", {}, generated_tokens=90)
        for name, gain in zip(METHODS, (0.0, 0.9), strict=True):
            rows = [row(key, high, safe, gain) for key in ids for high in (0.0, 1.0) for safe in (0.0, 1.0)]
            finish(run, f"evaluate/optimization/{name}", {"shard": (rows, EvaluationRow)})
        pool = [row(key, level, level, 1.0) for key in ids for level in (0.0, 1.0)]
        finish(run, "evaluate/optimization/reachable", {"shard": (pool, EvaluationRow)})
        run.record_timing("generate", 1.5)
        write_json(run.path / "evaluation.json", figures(run, config))
    return path


def test_report_gathers_what_the_run_holds(directory: Path) -> None:
    """With a gain of 0.9 the score at level 1 is 0.5 + 0.9 × 0.5 = 0.95, and 0.05 at level 0."""
    with RunDirectory.open(directory, read_only=True) as run:
        data = gather(run, recipe())
    assert data.methods == METHODS and data.examples_method == "clm+raw"
    curve = data.level_curves["clm+raw"]["safety"]
    assert [point.level for point in curve] == [0.0, 1.0]
    assert [point.achieved.value for point in curve] == pytest.approx([0.05, 0.95])
    assert data.heat_maps["clm+raw"]["helpfulness"].ravel().tolist() == pytest.approx(
        [0.05, 0.05, 0.95, 0.95]
    )
    assert data.pool.shape == (8, 2) and data.kept.shape == (1, 2) and data.prompts == {"optimization": 4}
    assert [example.prompt for example in data.examples] == [f"<b>{index:016x}" for index in range(3)]
    assert data.examples[0].answers[1.0, 0.0].text == f"answer to {0:016x} at 1, 0"
    assert data.examples[0].answers[1.0, 0.0].scores["safety"] == pytest.approx(0.05)
    assert data.raw.shape == (8, 2) and data.raw[:, 0].tolist() == list(range(8)) and not data.other_curves
    assert data.stage_seconds == {"generate": 1.5}
    assert [note.split()[0] for note in data.notes] == ["2", "1", "3"]


def test_costs_of_a_resumed_session_are_by_its_pace(directory: Path) -> None:
    """8 responses in 4 s after a kill: 0.5 s each; 25 of 100 steps in 30 s: the training takes 120 s.

    The pool is generated in 1.5 s, and scored in 0.5 s for 2 of its 8 responses, which is 2 s for all.
    """
    with RunDirectory.open(directory) as run:
        config, method = recipe(), METHODS[-1]
        assert figures(run, config)["evaluations"]["optimization"][method]["cost"]["seconds"] is None
        run.record_timing(f"evaluate/optimization/{method}", 4.0, responses=8)
        run.record_timing("train/clm-raw", 30.0, steps=100, steps_made=25)
        assert figures(run, config)["evaluations"]["optimization"][method]["cost"]["data_seconds"] is None
        run.record_timing("score", 0.5, responses=8, responses_made=2)
        methods = figures(run, config)["evaluations"]["optimization"]
    cost = methods[method]["cost"]
    assert (cost["seconds"], cost["training_seconds"]) == (0.5, 120.0)
    assert (cost["trainings"], cost["training_generated_tokens"]) == (1, 90)
    assert (cost["data_seconds"], cost["data_generated_tokens"]) == (3.5, 16)
    nothing = ("trainings", "training_seconds", "training_generated_tokens", "data_seconds", "data_generated_tokens")
    assert not any(methods["base"]["cost"][key] for key in nothing)


def test_a_further_rounds_answers_are_data_that_it_cost() -> None:
    """Both rounds learn from the whole pool; the second adds its own answers, whose stages are named after its data."""
    config = recipe().model_copy(update={"methods": ["clm+round2", "clm+x0.25"]})
    twice, quarter = (behind(name, config) for name in config.method_names)
    second = twice[-1].data
    assert second.round == 2 and _data_made(twice) == {"": 1.0, f"rounds/{second}/": 1.0}
    assert _data_made(quarter) == {"": 0.25} and _data_made([]) == {}


def test_where_the_answers_land_is_in_the_figures(directory: Path) -> None:
    """With a gain of 0.9, 0.5 ± 0.45 at the ends of each dial; the mean of all settings is 0.5, of base too."""
    with RunDirectory.open(directory, read_only=True) as run:
        document = figures(run, recipe())
    assert document["prompts"] == {"optimization": 4}
    base, tuned = (document["evaluations"]["optimization"][name] for name in METHODS)
    assert (base["has_dial"], tuned["has_dial"]) == (False, True)
    assert base["attributes"]["safety"]["achieved"]["value"] == pytest.approx(0.5)
    assert [each["requested"] for each in tuned["settings"]] == [
        {"helpfulness": high, "safety": safe} for high in (0.0, 1.0) for safe in (0.0, 1.0)
    ]
    assert tuned["settings"][1]["achieved"] == pytest.approx({"helpfulness": 0.05, "safety": 0.95})


def test_generalization_has_curves_of_its_own_by_each_scorer(directory: Path) -> None:
    """With a gain of 0.5 the score at level 1 is 0.5 + 0.5 × 0.5 = 0.75, and 0.25 at level 0."""
    path = directory / "evaluation.json"
    evaluation = json.loads(path.read_text(encoding="utf-8"))
    methods = evaluation["evaluations"]["optimization"]
    evaluation["evaluations"]["generalization"] = {
        name: {**entry, "scorers": {"reward": entry}} for name, entry in methods.items()
    }
    write_json(path, evaluation)
    ids = [f"{index:016x}" for index in range(4)]
    rows = [row(key, high, safe, 0.5) for key in ids for high in (0.0, 1.0) for safe in (0.0, 1.0)]
    with RunDirectory.open(directory) as run:
        for name in METHODS:
            finish(run, f"evaluate/generalization/{name}", {"shard": (rows, EvaluationRow)})
        data = gather(run, recipe())
    (curves,) = data.other_curves.values()
    assert list(data.other_curves) == ["Generalization evaluation"]
    assert [point.achieved.value for point in curves["clm+raw"]["safety"]] == pytest.approx([0.25, 0.75])


def test_report_writes_the_page_and_its_pictures(directory: Path) -> None:
    with RunDirectory.open(directory) as run:
        page = report(run, recipe())
    assert page == directory / "report.html"
    text = page.read_text(encoding="utf-8")
    assert "clm+raw moves every dial" in text and "&lt;b&gt;" in text and "<b>0000" not in text
    assert (directory / "pictures" / "dials.png").stat().st_size > 1000


def test_report_of_an_unfinished_run_names_what_is_missing(directory: Path) -> None:
    (directory / "evaluation.json").unlink()
    with RunDirectory.open(directory) as run, pytest.raises(StageMissing, match="evaluation.json") as caught:
        report(run, recipe())
    assert "rheostat evaluate" in caught.value.hint
