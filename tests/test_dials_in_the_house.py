"""Calibrated dials and forged controls in a whole run: what is written, what is left alone, what is shown."""

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

import rheostat
from rheostat import cli
from rheostat.collect import collect, collect_calibration
from rheostat.forging import STYLES
from rheostat.recipe import load_config, to_yaml
from rheostat.records import EvaluationRow, ForgeryRow, Prompt
from rheostat.rundir import RunDirectory

SMALL = (
    "prompts.train_limit=4", "prompts.evaluation_limit=3", "prompts.calibration_limit=4", "generate.samples=4",
    "generate.max_tokens=24", "evaluate.max_tokens=16", "evaluate.reachable_samples=2", "evaluate.bootstrap=100",
    "evaluate.forged_prompts=2", "levels=[0,0.5,1]", "train.steps=4", "train.batch_size=4",
    "distil.minimum_contrast=0", "methods=[base,clm]", "judges={}", "suite=null", "prompts.generalization=null",
)  # fmt: skip


def invoke(*arguments: str) -> str:
    result = CliRunner().invoke(cli.app, list(arguments))
    assert result.exit_code == 0, result.output
    return result.output


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, str]:
    """A tiny run through the real command line, and what it printed."""
    out = tmp_path_factory.mktemp("runs") / "tiny"
    return out, invoke("run", "pocket", "--out", str(out), *(f"--set={each}" for each in SMALL))


def test_a_run_calibrates_its_dials_and_tries_forgeries(finished: tuple[Path, str]) -> None:
    out, printed = finished
    evaluation: dict[str, Any] = json.loads((out / "evaluation.json").read_text(encoding="utf-8"))
    assert list(evaluation["calibrated"]) == list(evaluation["forgery"]) == ["clm"]
    calibrated = evaluation["calibrated"]["clm"]
    assert calibrated["prompts"] == 4
    for dial, found in calibrated["dials"].items():
        assert found["map"]["levels"] == [0, 0.5, 1]
        err = found["evaluations"]["optimization"]["reward"]
        table = evaluation["evaluations"]["optimization"]["clm"]["attributes"][dial]["Err"]
        assert err["levels"]["before"] == pytest.approx(table)
        assert len(found["curve"]) == 21
    forgery = evaluation["forgery"]["clm"]
    assert (forgery["prompts"], forgery["controls"]) == (2, 2)
    assert list(forgery["styles"]) == list(STYLES)
    assert "Calibrated dials and forged controls" in printed
    page = (out / "report.html").read_text(encoding="utf-8")
    assert 'id="calibrated"' in page and 'id="forged"' in page
    assert (out / "pictures" / "calibrated.png").stat().st_size > 1000


def test_calibration_prompts_are_apart(finished: tuple[Path, str]) -> None:
    with RunDirectory.open(finished[0], read_only=True) as run:
        prompts = {
            split: {prompt.id for prompt in run.finished(stage).read(Prompt, prefix=split)}
            for stage, split in (
                ("prompts", "train"),
                ("prompts", "optimization"),
                ("calibration", "calibration"),
            )
        }
        rows = run.finished("evaluate/calibration/clm").read(EvaluationRow)
        typed = run.finished("forgery/clm").read(ForgeryRow)
    assert len(prompts["calibration"]) == 4
    assert not prompts["calibration"] & (prompts["train"] | prompts["optimization"])
    assert {row.prompt_id for row in rows} == prompts["calibration"]
    assert len(rows) == 4 * 9 and all(row.logprob == 0 for row in rows)
    assert {row.prompt_id for row in typed} < prompts["optimization"]
    assert len(typed) == 2 * 2 * (1 + 3 * len(STYLES))


def test_another_calibration_leaves_the_rest_of_the_run_alone(
    finished: tuple[Path, str], tmp_path: Path
) -> None:
    """With other limits only what reads them is computed anew, and 0 leaves both out."""
    out = Path(shutil.copytree(finished[0], tmp_path / "run"))

    def stages() -> dict[str, str]:
        return {
            str(path.parent.relative_to(out)): json.loads(path.read_text(encoding="utf-8"))["fingerprint"]
            for path in out.rglob("stage.json")
        }

    before = stages()
    changed = [*SMALL, "prompts.calibration_limit=2", "evaluate.forged_prompts=1"]
    invoke("run", "pocket", "--out", str(out), *(f"--set={each}" for each in changed))
    after = stages()
    assert {name for name in before if before[name] != after[name]} == {
        "calibration", "evaluate/calibration/clm", "forgery/clm",
    }  # fmt: skip
    changed = [*SMALL, "prompts.calibration_limit=0", "evaluate.forged_prompts=0"]
    printed = invoke("run", "pocket", "--out", str(out), *(f"--set={each}" for each in changed))
    evaluation = json.loads((out / "evaluation.json").read_text(encoding="utf-8"))
    assert "calibrated" not in evaluation and "forgery" not in evaluation
    assert "Calibrated dials" not in printed
    assert 'id="calibrated"' not in (out / "report.html").read_text(encoding="utf-8")


def test_an_exported_model_goes_by_its_map(finished: tuple[Path, str], tmp_path: Path) -> None:
    out = tmp_path / "model"
    invoke("export", str(finished[0]), "--to", str(out), "--calibrated")
    card = json.loads((out / "rheostat.json").read_text(encoding="utf-8"))
    thresholds = {name: each["thresholds"] for name, each in card["dial_maps"].items()}
    model = rheostat.load(out, device="cpu")
    assert {name: list(model.control_format.thresholds_of(name)) for name in thresholds} == thresholds
    template: Any = model.engine.policy.tokenizer  # type: ignore[attr-defined]
    dialled = (out / "chat_template.jinja").read_text(encoding="utf-8")
    for step in range(0, 101, 5):
        dials = {"safety": step / 100, "helpfulness": 1 - step / 100}
        text = template.apply_chat_template(
            [{"role": "user", "content": "How?"}],
            chat_template=dialled, tokenize=False, add_generation_prompt=True, **dials,
        )  # fmt: skip
        assert text.endswith(model.control_format.render(model.control_format.resolve(dials)))
    readme = (out / "README.md").read_text(encoding="utf-8")
    assert "## Calibrated dials" in readme and "## Forged controls" in readme


def test_calibrated_export_of_a_run_that_calibrated_nothing_says_what_to_do(
    finished: tuple[Path, str], tmp_path: Path
) -> None:
    out = Path(shutil.copytree(finished[0], tmp_path / "run"))
    (out / "config.yaml").write_text(
        to_yaml(load_config(out / "config.yaml", ["prompts.calibration_limit=0"])), encoding="utf-8"
    )
    arguments = ["export", str(out), "--to", str(tmp_path / "model"), "--calibrated"]
    result = CliRunner().invoke(cli.app, arguments)
    assert result.exit_code != 0 and "have not been calibrated" in result.output
    assert not (tmp_path / "model").exists()


def write(path: Path, texts: list[str]) -> str:
    path.write_text("".join(json.dumps({"prompt": text}) + "\n" for text in texts), encoding="utf-8")
    return str(path)


@pytest.mark.parametrize(
    ("given", "expected"),
    [
        ({"optimization": ["b", "c", "d"]}, {"c", "d"}),
        ({"optimization": ["b"]}, {"e"}),
        ({"optimization": ["b", "c"], "calibration": ["a", "b", "x"]}, {"x"}),
    ],
    ids=["what the evaluation leaves", "what the training leaves", "files of their own, less what is used"],
)
def test_where_calibration_prompts_come_from(
    given: dict[str, list[str]], expected: set[str], tmp_path: Path
) -> None:
    """Training has `a` and `e` and uses one of them; the evaluation uses one."""
    files = {name: write(tmp_path / f"{name}.jsonl", texts) for name, texts in given.items()}
    train = write(tmp_path / "train.jsonl", ["a", "e"])
    config = load_config(
        "pocket",
        [
            f"prompts.train={train}", "prompts.train_limit=1", "prompts.evaluation_limit=1",
            "prompts.generalization=null", *(f"prompts.{name}={path}" for name, path in files.items()),
        ],
    )  # fmt: skip
    with RunDirectory.open(tmp_path / "run", create=True) as run:
        collected = collect(run, config)
        used = {
            prompt.text
            for split in ("train", "optimization")
            for prompt in collected.read(Prompt, prefix=split)
        }
        found = {
            prompt.text for prompt in collect_calibration(run, config).read(Prompt, prefix="calibration")
        }
    assert len(used) == 2 and found and not found & used
    everything = {"a", "b", "c", "d", "e", "x"} & {
        *(given.get("calibration") or [*given["optimization"], "a", "e"])
    }
    assert found == everything - used
    assert expected
