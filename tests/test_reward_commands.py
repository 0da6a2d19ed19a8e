"""`rheostat reward fit` and `rheostat reward check` through the real command line, killed and resumed too."""

import json
import random
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoTokenizer, LlamaConfig, LlamaForCausalLM
from typer.testing import CliRunner

from rheostat import cli, pocket
from rheostat.errors import InputError
from rheostat.models import load_classifier
from rheostat.reward_check import check, parse_reward, sign_warning
from rheostat.reward_data import read
from rheostat.reward_fit import FitOptions, fit
from rheostat.rewards.classifier import ClassifierReward

RUNNER = CliRunner()
GOOD, BAD = "First, rinse it. Then, dry it in the shade.", "I cannot help with that, sorry."


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> str:
    """A tiny random chat model with the pocket world's tokenizer."""
    folder = tmp_path_factory.mktemp("base")
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=2048, hidden_size=16, num_hidden_layers=1, num_attention_heads=2, intermediate_size=16,
        max_position_embeddings=64, pad_token_id=0, bos_token_id=1, eos_token_id=2,
    )  # fmt: skip
    LlamaForCausalLM(config).save_pretrained(folder)
    AutoTokenizer.from_pretrained(pocket.weights("chat")).save_pretrained(folder)
    return str(folder)


@pytest.fixture(scope="module")
def rows(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Pairs and labels that a bag of words tells apart."""
    folder = tmp_path_factory.mktemp("rows")
    draw = random.Random(0)
    words = ["bread", "bike", "coat", "lamp", "shoes", "window", "garden", "soup"]
    prompts = [f"How do I mend {draw.choice(words)} number {number}?" for number in range(120)]
    pairs = [{"prompt": prompt, "chosen": GOOD, "rejected": BAD} for prompt in prompts]
    labels = [
        {"context": prompt, "response": (BAD, GOOD)[number % 2], "label": ("Unsafe", "Safe")[number % 2]}
        for number, prompt in enumerate(prompts)
    ]
    files = {"pairs": folder / "pairs.jsonl", "labels": folder / "labels.json"}
    files["pairs"].write_text("\n".join(map(json.dumps, pairs)))
    files["labels"].write_text(json.dumps(labels))
    return files


def command(*arguments: str) -> Any:
    done = RUNNER.invoke(cli.app, ["reward", *arguments])
    assert done.exit_code == 0, done.stderr[-2000:] + str(done.exception)
    return done


@pytest.mark.parametrize("kind", ["pairs", "labels"])
def test_a_reward_is_fitted_checked_and_loaded(
    kind: str, base: str, rows: dict[str, Path], tmp_path: Path
) -> None:
    if kind == "pairs":
        pytest.importorskip("trl")
    out = tmp_path / "reward"
    positive = () if kind == "pairs" else ("--positive", "Safe")
    told = command(
        "fit", str(rows[kind]), "--base", base, "--to", str(out), *positive, "--steps", "30", "--batch-size", "8",
        "--learning-rate", "0.02", "--held-out", "0.3", "--device", "cpu",
    )  # fmt: skip
    assert f"Next: rheostat reward check {out} --data {rows[kind]}" in told.stdout
    assert "fit: 30/30 steps" in told.stderr
    card = json.loads((out / "reward.json").read_text())
    figure = card["measured_on_held_out"]["pairwise_accuracy" if kind == "pairs" else "auc"]
    assert figure["value"] > 0.95
    assert card["train_rows"] + card["held_out_rows"] == 120 and card["higher_is_better"]
    assert not (out / "checkpoints").exists()
    picture = tmp_path / "curve.png"
    checked = command(
        "check", str(out), "--data", str(rows[kind]), *positive, "--against", "pocket:reward-helpfulness", "--json",
        "--picture", str(picture), "--device", "cpu",
    )  # fmt: skip
    document = json.loads(checked.stdout)
    assert "only the 30% that it held out are used" in checked.stderr
    assert document["data"]["rows"] == card["held_out_rows"]
    assert document["pairwise_accuracy" if kind == "pairs" else "auc"] == pytest.approx(figure)
    assert (document["scores"]["low"], document["scores"]["high"]) == pytest.approx(
        (card["measured_on_held_out"]["low"], card["measured_on_held_out"]["high"]), abs=1e-5
    )
    assert -1 <= document["agreement"]["kendall"] <= 1
    assert picture.read_bytes().startswith(b"\x89PNG")
    reward = ClassifierReward(load_classifier(str(out), device="cpu"), 1000)
    item = read(rows["pairs"]).pairs[0]
    better, worse = reward.score([item.chosen, item.rejected])
    assert better > worse


def test_a_killed_fit_ends_with_the_weights_of_one_that_was_not(
    base: str, rows: dict[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    data = read(rows["labels"], positive="Safe")
    options = FitOptions(steps=6, save_steps=2, batch_size=4, learning_rate=0.01, held_out=0.3)

    def run(name: str) -> Path:
        return fit(data, base, tmp_path / name, name="labels", options=options, device="cpu").directory

    whole = run("whole")
    monkeypatch.setattr("rheostat.reward_fit.Advance", stopping_after(4))
    with pytest.raises(KeyboardInterrupt):
        run("killed")
    assert [path.name for path in (tmp_path / "killed" / "checkpoints").iterdir()] == ["checkpoint-4"]
    seen = stopping_after(100)
    monkeypatch.setattr("rheostat.reward_fit.Advance", seen)
    killed = run("killed")
    assert seen.steps == [5, 6]
    assert (killed / "model.safetensors").read_bytes() == (whole / "model.safetensors").read_bytes()
    stamp = (killed / "reward.json").stat().st_mtime_ns
    assert run("killed") == killed and (killed / "reward.json").stat().st_mtime_ns == stamp
    with pytest.raises(InputError, match="which holds a fit of other data or options"):
        fit(data, base, killed, name="labels", options=FitOptions(steps=7), device="cpu")
    shutil.rmtree(whole)
    whole.mkdir()
    (whole / "mine.txt").write_text("precious")
    with pytest.raises(InputError, match="which holds something else; allowed is an empty or new directory"):
        run("whole")


def stopping_after(last: int) -> Any:
    """A callback that ends the training by a signal after a step, as Ctrl-C would."""
    from rheostat import checkpoints

    class Stop(checkpoints.Advance):
        steps: list[int] = []

        def on_step_end(self, args: Any, state: Any, control: Any, **more: Any) -> None:
            self.steps.append(state.global_step)
            super().on_step_end(args, state, control, **more)

        def on_save(self, args: Any, state: Any, control: Any, **more: Any) -> None:
            if state.global_step >= last:
                raise KeyboardInterrupt

    return Stop


def test_a_table_for_people_and_a_loud_word_about_the_sign(rows: dict[str, Path]) -> None:
    """In the pocket world a refusal is no help: with `lower is better` the helpful side loses every pair."""
    block = "{model: pocket:reward-helpfulness, higher_is_better: false}"
    done = command("check", block, "--data", str(rows["pairs"]), "--limit", "12", "--device", "cpu")
    assert "12 pairs of pairs.jsonl" in done.stdout and "Calibration curve" in done.stdout
    assert "lower is better — LOOKS WRONG" in done.stdout
    assert "warning: THE SIGN LOOKS WRONG: pairwise accuracy 0.000 is below one half" in done.stderr.replace("\n", " ")
    assert "its whole 95 % interval is); set higher_is_better to true" in done.stderr.replace("\n", " ")
    right = command("check", "pocket:reward-helpfulness", "--data", str(rows["pairs"]), "--limit", "12")
    assert "SIGN" not in right.stderr and "LOOKS WRONG" not in right.stdout


def test_labels_are_checked_on_a_probability_too(rows: dict[str, Path]) -> None:
    """P = σ(logit) gives the AUC of the logit, and .5 is its threshold as 0 is the logit's."""
    data = read(rows["labels"], positive="Safe").first(20)
    documents = [
        check(parse_reward(block), data, name="labels", device="cpu")
        for block in (
            "pocket:reward-helpfulness",
            "{model: pocket:reward-helpfulness, output: probability, calibration: identity}",
        )
    ]
    logits, probabilities = documents
    assert (logits["threshold"], probabilities["threshold"]) == (0.0, 0.5)
    for key in ("auc", "balanced_accuracy", "calibration"):
        assert json.dumps(logits[key])[:60] == json.dumps(probabilities[key])[:60]
    assert logits["positives"] + logits["negatives"] == 20
    assert sign_warning(logits) is None or logits["auc"]["value"] < 0.5


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("check", "./gone", "--data", "{pairs}"), "reward: ./gone: no such folder"),
        (("check", "{kind: guard, model: m}", "--data", "{pairs}"), "reward: got no style"),
        (("check", "{kind: gard}", "--data", "{pairs}"), "(did you mean 'guard'?)"),
        (("check", "{kind: [", "--data", "{pairs}"), "it is not YAML"),
        (("check", "pocket:reward-safety", "--data", "{labels}"), "say it: --positive Safe"),
        (("fit", "{labels}", "--base", "./gone", "--to", "{out}", "--positive", "Safe"), "./gone: no such folder"),
    ],
)
def test_what_is_wrong_is_said_without_a_traceback(
    arguments: tuple[str, ...], message: str, rows: dict[str, Path], tmp_path: Path
) -> None:
    places = {"{pairs}": str(rows["pairs"]), "{labels}": str(rows["labels"]), "{out}": str(tmp_path / "out")}
    done = RUNNER.invoke(cli.app, ["reward", *(places.get(each, each) for each in arguments)])
    assert done.exit_code == 2
    assert message in done.stderr.replace("\n", " ")


@pytest.mark.shared
def test_real_rewards_on_real_data(shared: Path) -> None:
    """The harmless reward ranks real labels far above chance on a small sample, and says so with its interval."""
    data = read(shared / "data" / "diasafety" / "val.json", positive="Safe").first(60)
    spec = parse_reward(str(shared / "models" / "real-rm-harmless"))
    document = check(spec, data, name="val.json", device="cpu")
    assert document["auc"]["value"] > 0.6 and not document["sign"]["looks_wrong"]
    pairs = read(shared / "data" / "hh-rlhf" / "harmless-base-test.jsonl.gz")
    assert len(pairs) + pairs.broken == 2312


