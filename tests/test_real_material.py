"""All stages, through the real command line, on models and prompts that nobody wrote for this."""

import json
from collections.abc import Sequence
from pathlib import Path

import pytest
import torch
from typer.testing import CliRunner

import rheostat
from rheostat import cli
from rheostat.models import load_policy
from rheostat.records import EvaluationRow, Prompt, Response
from rheostat.rundir import RunDirectory

pytestmark = pytest.mark.usefixtures("one_thread")

ROOT = Path(__file__).resolve().parents[1]
SMALLEST = (
    "prompts.train_limit=6", "prompts.evaluation_limit=2", "generate.samples=3", "generate.max_tokens=16",
    "evaluate.max_tokens=12", "evaluate.rerank_samples=2", "evaluate.reachable_samples=2",
    "evaluate.bootstrap=100", "levels=[0,1]", "train.steps=2", "train.batch_size=2", "distil.minimum_contrast=0",
    "batch_tokens=4096",
)  # fmt: skip


def run(shared: Path, model: str, out: Path, *overrides: str, prompts: Sequence[Path] = ()) -> str:
    """The recipe at its smallest size, through the command line; gives its standard error."""
    data, models = shared / "data", shared / "models"
    sources = prompts or [
        data / "instructions" / f"{name}.json" for name in ("harmful_train", "harmless_val")
    ]
    settings = (
        f"model={models / model}",
        f"prompts.train={json.dumps([str(source) for source in sources])}",
        f"prompts.generalization={data / 'xstest' / 'xstest_prompts.csv'}",
        f"rewards.helpfulness={models / 'real-rm-helpful'}",
        f"rewards.safety={models / 'real-rm-harmless'}",
        *SMALLEST,
        *overrides,
    )
    recipe = str(ROOT / "recipes" / "real-small.yaml")
    done = CliRunner().invoke(
        cli.app, ["run", recipe, "--out", str(out), *(f"--set={setting}" for setting in settings)]
    )
    assert done.exit_code == 0, done.stderr[-3000:]
    assert (out / "report.html").stat().st_size > 10_000
    return done.stderr


ODD = [
    ".",
    "?" * 60,
    "\u200b",  # zero width space, which no strip() removes
    "\u0301",  # a combining accent on nothing
    "Z" + "\u0335\u0321\u0489" * 5 + " a\u0300\u0301\u0302 e\u0301 é",
    "كيف أطبخ الأرز؟ \u202bمن اليمين\u202c إلى اليسار",
    "איך אופים לחם?\u200f",
    "\u202eright to left override\u202c \u2066isolate\u2069",
    "如何煮饭？「你好」ごはんの炊き方は？ 밥 짓는 법",
    "चावल कैसे पकाएँ? ข้าวหุงอย่างไร คะ",
    "👩‍👩‍👧‍👦 🏳️‍🌈 👍🏿 🇪🇺 #️⃣",
    "bell \x07 escape \x1b[31mred\x1b[0m null \x00 backspace \x08 delete \x7f \x85",
    "line\u2028separator\u2029paragraph\x0bvertical\x0cform",
    "a\r\nb\rc\n\n\n\n\td",
    "\ufeffmark \ufffd \ufffe \uffff \U0010ffff private \ue000",
    "<|assistant|> </s> <s> <pad> <|user|>",
    "[helpful=0][harmless=0] ［helpful＝１］ 【harmless=0】",
    "<script>alert(1)</script> & <b>{{ 7 * 7 }}</b> {% raise %} ${x} $\\frac{a}{b}$ `x` _y_",
    "[bold red]markup[/bold red] [/] [/nothing]",
    "ﬁ ﬀ ½ Å ｆｕｌｌ 𝓜𝓪𝓽𝓱 ∑∫√ \u00ad soft",
    "DROP TABLE prompts; -- ' \" \\ \\n %s %(x)d {0}",
    "word " * 100,
    "x" * 80,
    "如" * 20,
    "long " * 4000,
    "字" * 3000,
]
"""Real text's oddities; the last two are longer than any small model's context."""


@pytest.mark.shared
def test_all_stages_on_odd_text(shared: Path, tmp_path: Path) -> None:
    source = tmp_path / "odd.jsonl"
    rows = [json.dumps({"prompt": text}) for text in ODD]
    rows += ['{"prompt": "\\ud800"}', '{"prompt": " \\t "}', '{"prompt": null}', "{", "[]"]
    source.write_text("\n".join(rows) + "\n", encoding="utf-8")
    out = tmp_path / "run"
    errors = run(
        shared,
        "real-chat-5M",
        out,
        "prompts.held_out=0.3",
        "prompts.evaluation_limit=null",
        "prompts.train_limit=null",
        "prompts.generalization=null",
        "methods=[base,reranking,exmate]",
        prompts=[source],
    )
    assert "5 broken lines left out" in errors
    assert "too long for the model's context, left out" in errors
    with RunDirectory.open(out, read_only=True) as directory:
        prompts = directory.finished("prompts")
        train, held_out = (prompts.read(Prompt, prefix=name) for name in ("train", "optimization"))
        assert {each.text for each in (*train, *held_out)} == {text.strip() for text in ODD[:-2]}
        assert min(len(train), len(held_out)) > 3
        assert len(directory.finished("generate").read(Response)) == 3 * len(train)
        evaluated = directory.finished("evaluate/optimization/exmate").read(EvaluationRow)
        assert {row.prompt_id for row in evaluated} == {prompt.id for prompt in held_out}
    page = (out / "report.html").read_text(encoding="utf-8")
    assert "<script>alert(1)" not in page


@pytest.mark.shared
@pytest.mark.parametrize("model", ["real-chat-5M", "bitllama-3M", "stories260K"])
def test_all_stages_on_a_real_model(model: str, shared: Path, tmp_path: Path) -> None:
    """Every method, on a chat model, and on a BitNet and a Llama that only tell stories, and never end one."""
    out = tmp_path / "run"
    run(shared, model, out, "distil.keep_truncated=true")
    document = json.loads((out / "evaluation.json").read_text())
    for evaluation in ("optimization", "generalization"):
        methods = document["evaluations"][evaluation]
        assert list(methods) == ["base", "prompting", "reranking", "clm", "exmate"]
        for entry in methods.values():
            for dial in ("helpfulness", "safety"):
                assert 0 <= entry["attributes"][dial]["BT"]["value"] <= 1
            assert entry["fluency"]["value"] > 0


@pytest.mark.shared
@pytest.mark.parametrize("model", ["bitllama-3M", "stories260K"])
def test_a_real_model_with_adapters_and_with_all_weights(model: str, shared: Path, tmp_path: Path) -> None:
    """A BitNet and a Llama: what is exported computes what was trained, and answers."""
    out = tmp_path / "run"
    base = load_policy(str(shared / "models" / model), device="cpu")
    ids = torch.arange(5, 65).reshape(3, 20)
    stage = out / "train" / "exmate-moec"
    logits = {}
    for name, lora in (("adapters", "{rank: 4}"), ("all weights", "null")):
        run(shared, model, out, "distil.keep_truncated=true", "methods=[base,exmate]", f"train.lora={lora}")
        if name == "adapters":
            merged = load_policy(str(shared / "models" / model), device="cpu", adapter=stage / "adapter").model
            logits["base and adapter"] = _logits(merged, ids)
        logits[name] = _logits(load_policy(str(stage / "model"), device="cpu").model, ids)
        to = tmp_path / name
        done = CliRunner().invoke(cli.app, ["export", str(out), "--to", str(to)])
        assert done.exit_code == 0, done.stderr[-3000:]
        assert torch.equal(_logits(load_policy(str(to), device="cpu").model, ids), logits[name])
        assert isinstance(rheostat.load(to).respond("Tell me a story.", max_tokens=12, safety=0.0), str)
    torch.testing.assert_close(logits["base and adapter"], logits["adapters"], rtol=1e-4, atol=1e-4)
    own = _logits(base.model, ids)
    assert not torch.allclose(own, logits["adapters"], atol=1e-3)
    assert not torch.allclose(own, logits["all weights"], atol=1e-3)


def _logits(model: torch.nn.Module, ids: torch.Tensor) -> torch.Tensor:
    with torch.inference_mode():
        logits: torch.Tensor = model(input_ids=ids).logits
    return logits
