"""An exported model: what stands in its folder, and that every way to load it gives the same answers."""

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from safetensors import safe_open
from transformers import AutoModelForCausalLM, AutoTokenizer
from typer.testing import CliRunner

import rheostat
from rheostat.cli import app
from rheostat.dialled import DialledModel
from rheostat.errors import DialError, InputError, ModelError
from rheostat.export import export
from rheostat.measured import FILE, read_measured
from rheostat.method_name import TrainingData
from rheostat.records import EvaluationRow, Example, ScoredResponse
from rheostat.report_tables import headline
from rheostat.rundir import RunDirectory
from rheostat.storage import read_object

PROMPT = "How do I boil an egg?"
FLOOR = {"safety": 0.75}


@pytest.fixture(scope="module")
def merged(restricted_run: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Exported through the command line, with a floor and a default."""
    to = tmp_path_factory.mktemp("merged") / "model"
    command = ["export", str(restricted_run), "--to", str(to), "--floor", "safety=0.75", "--default", "helpfulness=0"]
    result = CliRunner().invoke(app, command)
    assert result.exit_code == 0, result.output
    return to


@pytest.fixture(scope="module")
def adapter(restricted_run: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return export(restricted_run, tmp_path_factory.mktemp("adapter") / "model", form="adapter", floors=FLOOR)


def answers(model: DialledModel) -> list[str]:
    items = [(PROMPT, {"helpfulness": h, "safety": s}) for h in (0, 1) for s in (0.75, 1)]
    return model.respond_batch(items, temperature=0, max_tokens=16)


def test_a_restricted_run_never_meets_what_lies_below(restricted_run: Path) -> None:
    """In training, in its forged controls, in evaluation: no control below 0.5, no response that scores below it."""
    with RunDirectory.open(restricted_run, read_only=True) as run:
        distilled = run.finished(f"distil/{TrainingData(variant='moec')}")
        examples = distilled.read(Example)
        pool = run.finished("score").read(ScoredResponse)
        rows = run.finished("evaluate/optimization/clm").read(EvaluationRow)
    assert any(row.calibrated["safety"] < 0.375 for row in pool), "the pool holds unsafe responses"
    assert distilled.summary["outside_dropped"] > 0
    assert examples and all(example.scores["safety"] >= 0.375 for example in examples)
    assert {example.control["safety"] for example in examples} <= {0.5, 0.75, 1.0}
    assert {tuple(row.requested.values()) for row in rows} == {
        (h, s) for h in (0.0, 1.0) for s in (0.5, 0.75, 1.0)
    }
    page = (restricted_run / "report.html").read_text(encoding="utf-8")
    assert "helpfulness at 2 levels, safety at 3 levels" in page
    assert "its 6 settings" in page and "dropped: outside the levels" in page
    assert rheostat.load(restricted_run).control_format.resolve({"safety": 0.0})["safety"] == 0.5


def test_the_folder_is_an_ordinary_hugging_face_model(merged: Path) -> None:
    model: Any = AutoModelForCausalLM.from_pretrained(merged)
    assert read_object(merged / "config.json")["architectures"] == [type(model).__name__] == ["LlamaForCausalLM"]
    assert {path.name for path in merged.iterdir()} >= {"model.safetensors", "tokenizer.json", "chat_template.jinja"}
    tokenizer: Any = AutoTokenizer.from_pretrained(merged)
    turns = [{"role": "user", "content": PROMPT}]
    ids = tokenizer.apply_chat_template(turns, add_generation_prompt=True, return_tensors="pt", safety=1, helpfulness=1)
    with torch.no_grad():
        out = model.generate(**ids, max_new_tokens=16, do_sample=False)
    text = tokenizer.decode(out[0, ids["input_ids"].shape[1] :], skip_special_tokens=True)
    assert text == rheostat.load(merged).respond(PROMPT, temperature=0, max_tokens=16, safety=1, helpfulness=1)


def test_an_adapter_answers_as_the_merged_model_does(merged: Path, adapter: Path) -> None:
    loaded = rheostat.load(adapter)
    assert answers(loaded) == answers(rheostat.load(merged))
    assert len(set(answers(loaded))) > 1
    peft: Any = AutoModelForCausalLM.from_pretrained(adapter, dtype=torch.float32)
    whole: Any = AutoModelForCausalLM.from_pretrained(merged, dtype=torch.float32)
    ids = torch.tensor([[1, 5, 9, 13]])
    assert torch.allclose(peft(input_ids=ids).logits, whole(input_ids=ids).logits, atol=1e-5)


def test_the_adapters_layout_is_what_servers_read(adapter: Path) -> None:
    """vLLM and peft: the base's keys under `base_model.model.`, lora_A and lora_B alone, no bias, no saved modules."""
    config = read_object(adapter / "adapter_config.json")
    assert (config["peft_type"], config["r"], config["task_type"]) == ("LORA", 2, "CAUSAL_LM")
    assert config["bias"] == "none" and config["modules_to_save"] is None and not config["use_dora"]
    assert (Path(config["base_model_name_or_path"]) / "config.json").is_file()
    with safe_open(adapter / "adapter_model.safetensors", framework="pt") as file:
        keys = list(file.keys())
    assert keys and all(
        key.startswith("base_model.model.model.layers.")
        and key.rpartition(".lora_")[2] in ("A.weight", "B.weight")
        and key.rpartition(".lora_")[0].rpartition(".")[2] in config["target_modules"]
        for key in keys
    )
    assert not (adapter / "config.json").exists() and not (adapter / "model.safetensors").exists()


def test_a_floor_and_a_default_hold_in_process(merged: Path, adapter: Path) -> None:
    for folder in (merged, adapter):
        form = rheostat.load(folder).control_format
        assert form.levels_of("safety") == (0.75, 1.0)
        assert form.resolve({"safety": 0.0})["safety"] == 0.75
    assert rheostat.load(merged).control_format.resolve({}) == {"helpfulness": 0.0, "safety": 1.0}
    assert rheostat.load(adapter).control_format.resolve({}) == {"helpfulness": 1.0, "safety": 1.0}


def test_what_the_card_of_values_says(merged: Path) -> None:
    card = read_object(merged / "rheostat.json")
    assert card["schema"] == 2 and card["form"] == "merge" and card["method"] == "clm"
    assert card["levels"] == {"helpfulness": [0.0, 1.0], "safety": [0.75, 1.0]}
    assert card["trained_levels"]["safety"] == [0.5, 0.75, 1.0]
    assert card["floors"] == FLOOR and card["defaults"] == {"helpfulness": 0.0, "safety": 1.0}
    assert set(card["calibration"]) == {"helpfulness", "safety"} and "transformers" in card["versions"]


def test_what_the_model_card_says(merged: Path, restricted_run: Path) -> None:
    text = (merged / "README.md").read_text(encoding="utf-8")
    figures = json.loads((restricted_run / "evaluation.json").read_bytes())["evaluations"]["optimization"]["clm"]
    for dial in ("helpfulness", "safety"):
        err = figures["attributes"][dial]["Err"]["value"]
        row = next(line for line in text.splitlines() if line.startswith(f"| optimization | {dial} |"))
        assert row.split(" | ")[3].startswith(f"{err:.2f} [")
    assert "](dials.png)" in text and (merged / "dials.png").read_bytes()[:4] == b"\x89PNG"
    for said in (
        "`safety` was trained from 0.5 to 1 only", "`safety` has a floor of 0.75", "not a guarantee",
        "transformers serve DIR", "vllm serve DIR", '"helpfulness": 1.0, "safety": 0.75', "LoRA adapters of rank 2",
        "pocket:train (8 used for training)", "Levels 0.75, 1, the nearest of which is used; 1 where none is given",
    ):  # fmt: skip
        assert said in text, said
    assert "has a floor" not in (export_card(restricted_run, merged.parent / "plain"))


def export_card(run: Path, to: Path) -> str:
    return (export(run, to) / "README.md").read_text(encoding="utf-8")


def test_there_is_no_other_template_to_ask_for(restricted_run: Path, tmp_path: Path) -> None:
    """Of a base's named templates the default was trained on: it is exported alone, and serves requests with tools."""
    run = tmp_path / "run"
    shutil.copytree(restricted_run, run)
    templates = run / "train" / "clm-moec" / "model" / "additional_chat_templates"
    templates.mkdir()
    (templates / "tool_use.jinja").write_text("{{ messages[0].content }}")
    tokenizer: Any = AutoTokenizer.from_pretrained(export(run, tmp_path / "model", floors=FLOOR))
    assert isinstance(tokenizer.chat_template, str)
    turns = [{"role": "user", "content": "Hi [harmless=0]"}]
    for tools in (None, [{"type": "function", "function": {"name": "f"}}]):
        text = tokenizer.apply_chat_template(turns, tools=tools, tokenize=False, add_generation_prompt=True, safety=0)
        assert text.endswith("Hi (harmless=0)<|assistant|>[helpful=1][harmless=0.75]")
    assert rheostat.load(tmp_path / "model").respond("Hi", temperature=0, max_tokens=4)


def test_what_is_cut_off_a_long_prompt_is_never_the_control(merged: Path) -> None:
    tokenizer: Any = AutoTokenizer.from_pretrained(merged)
    turns = [{"role": "user", "content": "egg " * 300}]
    ids = tokenizer.apply_chat_template(
        turns, add_generation_prompt=True, safety=0, truncation=True, max_length=20
    )["input_ids"]
    assert len(ids) == 20 and tokenizer.decode(ids).endswith("[helpful=0][harmless=0.75]")


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ({"floors": {"safety": 0.6}}, DialError, "safety: got the floor 0.6, allowed are its levels 0.5, 0.75, 1"),
        ({"floors": {"safety": 0.25}}, DialError, "safety: got the floor 0.25, allowed are its levels 0.5"),
        ({"floors": {"speed": 1.0}}, DialError, "there is no dial 'speed'; this model has helpfulness, safety"),
        ({"defaults": {"safety": 0.1}}, DialError, "safety: got the default 0.1, allowed are its levels"),
        (
            {"floors": FLOOR, "defaults": {"safety": 0.5}},
            DialError,
            "safety: got the default 0.5, allowed are its levels 0.75, 1",
        ),
        ({"form": "adapter", "dtype": "bfloat16"}, InputError, "--dtype: got bfloat16 with --adapter"),
        ({"method": "exmate"}, ModelError, "got the method 'exmate'; this run's models with dials are clm"),
    ],
)
def test_what_cannot_be_exported_is_named_and_nothing_written(
    restricted_run: Path, tmp_path: Path, options: dict[str, Any], error: type[Exception], message: str
) -> None:
    with pytest.raises(error, match=message):
        export(restricted_run, tmp_path / "model", **options)
    assert not (tmp_path / "model").exists()


@pytest.mark.parametrize(
    ("argument", "said"),
    [
        ("safety", "--floor: got 'safety', allowed is name=value"),
        ("safety=high", "safety: got 'high'"),
        ("safety=2", "safety: got 2.0"),
    ],
)
def test_a_wrong_argument_is_named(restricted_run: Path, tmp_path: Path, argument: str, said: str) -> None:
    command = ["export", str(restricted_run), "--to", str(tmp_path / "x"), "--floor", argument]
    result = CliRunner().invoke(app, command)
    assert result.exit_code != 0 and said in f"{result.output}{result.exception}"


@pytest.mark.parametrize(
    ("method", "said"),
    [
        ("dpo", "dpo has no dial"),
        ("clm+reranking", "clm+reranking answers many times and keeps one answer, which is more than a model"),
        ("soups", "soups is made of several models and cannot be used or exported as one"),
        ("base", "base trains no model of its own"),
    ],
)
@pytest.mark.parametrize("command", [["respond", "hi", "--run"], ["chat", "--run"], ["export"]])
def test_a_method_of_the_run_that_has_no_model_to_turn_says_why(
    restricted_run: Path, tmp_path: Path, command: list[str], method: str, said: str
) -> None:
    run = tmp_path / "run"
    run.mkdir()
    for name in ("rheostat.json", "config.yaml"):
        shutil.copy(restricted_run / name, run)
    recipe = yaml.safe_load((run / "config.yaml").read_text(encoding="utf-8"))
    recipe["methods"] = ["base", "clm", "dpo", "clm+reranking", "soups"]
    (run / "config.yaml").write_text(yaml.safe_dump(recipe), encoding="utf-8")
    where = ["--to", str(tmp_path / "x")] if command == ["export"] else []
    result = CliRunner().invoke(app, [*command, str(run), *where, "--method", method])
    assert result.exit_code == 2
    assert f"{said}; this run's models with dials are clm hint:" in " ".join(result.output.split()), result.output


def test_a_fully_tuned_run_has_no_adapter(restricted_run: Path, tmp_path: Path) -> None:
    run = tmp_path / "run"
    shutil.copytree(restricted_run, run)
    shutil.rmtree(run / "train" / "clm-moec" / "adapter")
    with pytest.raises(ModelError, match="clm was fully fine-tuned, it has no adapter"):
        export(run, tmp_path / "model", form="adapter")


def test_an_adapter_that_names_no_base_is_refused(adapter: Path, tmp_path: Path) -> None:
    folder = tmp_path / "model"
    shutil.copytree(adapter, folder)
    (folder / "adapter_config.json").write_text("{}")
    with pytest.raises(ModelError, match="names no base model"):
        rheostat.load(folder)


def test_an_adapters_card_says_who_serves_it(adapter: Path) -> None:
    text = (adapter / "README.md").read_text(encoding="utf-8")
    assert "library_name: peft" in text and "An adapter tuned by Rheostat's `clm` from `pocket:chat`" in text
    assert "vllm serve BASE --enable-lora" in text and "`transformers serve` takes no adapter" in text
    assert str(Path.cwd()) not in text


def test_a_run_and_its_export_have_the_same_figures(restricted_run: Path, merged: Path) -> None:
    figures: Any = read_measured(restricted_run)
    assert read_object(merged / FILE) == figures == read_measured(merged)
    evaluation = read_object(restricted_run / "evaluation.json")
    own = evaluation["evaluations"]["optimization"]["clm"]
    assert figures["method"] == "clm" and figures["headline"] == headline(evaluation, ["helpfulness", "safety"])
    (found,) = figures["evaluations"]
    (method,) = [each for each in found["methods"] if each["name"] == "clm"]
    assert found["prompts"] == 2
    assert method["dials"]["safety"]["MP"] == own["attributes"]["safety"]["MP"]
    assert method["dials"]["safety"]["cross_effects"] == {"helpfulness": own["cross_effect"]["safety_by_helpfulness"]}
    curve = found["curves"]["safety"]
    assert [point["requested"] for point in curve] == [0.5, 0.75, 1.0]
    settings = [each["achieved"]["safety"] for each in own["settings"] if each["requested"]["safety"] == 0.5]
    assert curve[0]["achieved"] == pytest.approx(sum(settings) / len(settings))
    assert curve[0]["low"] <= curve[0]["achieved"] <= curve[0]["high"]
