"""Conversations of several turns through the stages, by the real command line: no stage sees less than the whole."""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from rheostat import chat, cli
from rheostat.records import EvaluationRow, Example, Message, Prompt, Response
from rheostat.rundir import RunDirectory

pytestmark = pytest.mark.usefixtures("one_thread")

SMALLEST = (
    "prompts.held_out=0.2", "prompts.generalization=null", "prompts.optimization=null", "prompts.evaluation_limit=1",
    "prompts.train_limit=null", "generate.samples=3", "generate.max_tokens=12", "evaluate.max_tokens=8",
    "evaluate.rerank_samples=2", "evaluate.reachable_samples=2", "evaluate.bootstrap=100", "levels=[0,1]",
    "evaluate.forged_prompts=0", "suite=null",
    "train.steps=2", "train.batch_size=2", "train.forged_share=0", "distil.minimum_contrast=0", "judges={}",
    "methods=[reranking,exmate]",
)  # fmt: skip
TASKS = ("boil eggs", "patch a tyre", "pick a lock", "bake bread", "paint a fence", "sew a button")


def transcript(task: str, answer: str) -> str:
    return (
        f"\n\nHuman: How do I {task}?\n\nAssistant: With patience, and your hands.\n\nHuman: How long does it take to "
        f"{task}?\n\nAssistant: {answer}"
    )


def conversation(task: str) -> tuple[Message, ...]:
    return (
        Message("user", f"How do I {task}?"),
        Message("assistant", "With patience, and your hands."),
        Message("user", f"How long does it take to {task}?"),
    )


@pytest.fixture
def rendered(monkeypatch: pytest.MonkeyPatch) -> list[tuple[Message, ...]]:
    """Every conversation that becomes text, for the model or for a reward."""
    seen: list[tuple[Message, ...]] = []
    render = chat._render

    def watched(tokenizer: Any, messages: Sequence[Message], *, awaits_response: bool) -> str:
        seen.append(tuple(messages if awaits_response else messages[:-1]))
        return render(tokenizer, messages, awaits_response=awaits_response)

    monkeypatch.setattr(chat, "_render", watched)
    return seen


def test_every_stage_sees_the_whole_conversation(tmp_path: Path, rendered: list[tuple[Message, ...]]) -> None:
    source, out = tmp_path / "hh.jsonl", tmp_path / "run"
    rows = [{"chosen": transcript(task, "An hour."), "rejected": transcript(task, "No idea.")} for task in TASKS]
    source.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    expected = {conversation(task) for task in TASKS}

    def command(*arguments: str) -> None:
        rendered.clear()
        done = CliRunner().invoke(cli.app, list(arguments))
        assert done.exit_code == 0, done.stderr[-2000:]

    settings = [f"--set={each}" for each in (f"prompts.train={source}", *SMALLEST)]
    command("generate", "pocket", "--out", str(out), *settings)
    given = set(rendered)
    with RunDirectory.open(out, read_only=True) as run:
        train, held_out = (run.finished("prompts").read(Prompt, prefix=each) for each in ("train", "optimization"))
        calibration = run.finished("calibration").read(Prompt, prefix="calibration")
        asked = {prompt.id: prompt.messages for prompt in train}
        assert len(run.finished("generate").read(Response)) == 3 * len(train)
    assert given == {prompt.messages for prompt in (*train, *held_out, *calibration)} <= expected
    assert len(train) > 2 and len(held_out) == 1
    command("score", str(out))
    assert set(rendered) == set(asked.values()), "what a reward reads"
    command("distil", str(out))
    with RunDirectory.open(out, read_only=True) as run:
        examples = run.finished("distil/moec").read(Example)
    assert examples and all(example.messages == asked[example.prompt_id] for example in examples)
    command("train", str(out))
    assert rendered and set(rendered) == {example.messages for example in examples}
    command("evaluate", str(out))
    assert set(rendered) == {prompt.messages for prompt in (*held_out, *calibration)}
    with RunDirectory.open(out, read_only=True) as run:
        evaluated = run.finished("evaluate/optimization/exmate").read(EvaluationRow)
    assert {row.prompt_id for row in evaluated} == {prompt.id for prompt in held_out}
