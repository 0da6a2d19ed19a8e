"""All stages, through the real command line, on tiny random models of every kind of architecture and tokenizer."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import IO, Any

import pytest
import torch
from matplotlib.figure import Figure
from safetensors.torch import load_file
from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers, trainers
from transformers import (
    AutoModelForCausalLM,
    AutoTokenizer,
    Gemma3TextConfig,
    GPT2Config,
    LlamaConfig,
    MistralConfig,
    MixtralConfig,
    PreTrainedConfig,
    PreTrainedTokenizerBase,
    PreTrainedTokenizerFast,
    Qwen3Config,
    Qwen3MoeConfig,
)
from typer.testing import CliRunner

import rheostat
import rheostat.models
import rheostat.preflight
from rheostat import cli, pocket
from rheostat.adapters import adapted_layers, trainable
from rheostat.config import LoraConfig, TrainConfig
from rheostat.model_files import quiet
from rheostat.model_shapes import parameter_count
from rheostat.models import load_policy
from rheostat.records import EvaluationRow
from rheostat.rundir import RunDirectory

pytestmark = pytest.mark.usefixtures("one_thread")

SHAPE = {
    "vocab_size": 2048,
    "hidden_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "intermediate_size": 32,
    "max_position_embeddings": 512,
    "initializer_range": 0.3,
    "pad_token_id": 0,
    "bos_token_id": 1,
    "eos_token_id": 2,
}
CONFIGS: dict[str, PreTrainedConfig] = {
    "llama": LlamaConfig(**SHAPE),
    "qwen3": Qwen3Config(**SHAPE, head_dim=8, tie_word_embeddings=True),
    "gemma3": Gemma3TextConfig(
        **SHAPE, head_dim=8, sliding_window=16, layer_types=["sliding_attention", "full_attention"]
    ),
    "mistral": MistralConfig(**SHAPE, sliding_window=16),
    "gpt2": GPT2Config(vocab_size=2048, n_embd=32, n_layer=2, n_head=4, n_positions=512, initializer_range=0.3,
                       bos_token_id=1, eos_token_id=2),
    "mixtral": MixtralConfig(**SHAPE, num_local_experts=4, num_experts_per_tok=2),
    "qwen3_moe": Qwen3MoeConfig(
        **SHAPE, head_dim=8, num_experts=4, num_experts_per_tok=2, moe_intermediate_size=16
    ),
}  # fmt: skip
PROMPTS = [f"How do I boil {count} eggs?" for count in range(2, 10)]
NO_SYSTEM = (
    "{{ bos_token }}{% if messages[0]['role'] == 'system' %}{{ raise_exception('no system role') }}{% endif %}"
    "{% for m in messages %}<|{{ m['role'] }}|>{{ m['content'] | trim }}{% endfor %}"
    "{% if add_generation_prompt %}<|assistant|>{% endif %}"
)
PARTS = (
    "{% for m in messages %}<|{{ m['role'] }}|>{% for part in m['content'] if part['type'] == 'text' %}"
    "{{ part['text'] }}{% endfor %}{% endfor %}{% if add_generation_prompt %}<|assistant|>{% endif %}"
)
SMALLEST = (
    "prompts.held_out=0.3", "prompts.evaluation_limit=1", "generate.samples=3", "generate.max_tokens=10",
    "levels=[0,1]", "distil.minimum_contrast=0", "distil.keep_truncated=true", "train.steps=2",
    "train.batch_size=4", "evaluate.max_tokens=6", "evaluate.rerank_samples=2", "evaluate.reachable_samples=2",
    "evaluate.bootstrap=100", "batch_tokens=4096", "device=cpu", "methods=[base,exmate]",
    "rewards.helpfulness=pocket:reward-helpfulness", "rewards.safety=pocket:reward-safety",
)  # fmt: skip


@pytest.fixture
def plain_report(monkeypatch: pytest.MonkeyPatch) -> None:
    """Empty pictures in the report: how they are drawn, no architecture changes (tests/test_report.py)."""

    def savefig(_: Figure, file: IO[Any], *, format: str, **__: Any) -> None:
        file.write(b"" if format == "png" else '<svg viewBox="0 0 1 1"></svg>')

    monkeypatch.setattr(Figure, "savefig", savefig)


def pocket_tokenizer() -> PreTrainedTokenizerBase:
    """A byte-level BPE with a chat template."""
    tokenizer: PreTrainedTokenizerBase = AutoTokenizer.from_pretrained(pocket.weights("chat"))
    tokenizer.model_max_length = 512
    return tokenizer


def metaspace_tokenizer() -> PreTrainedTokenizerBase:
    """A Unigram with metaspaces, as SentencePiece makes them, whose special tokens are Gemma's."""
    core = Tokenizer(models.Unigram())
    core.normalizer = normalizers.Replace(" ", "▁")
    core.pre_tokenizer = pre_tokenizers.Split("▁", "merged_with_next")
    core.decoder = decoders.Sequence([decoders.Replace("▁", " "), decoders.Fuse()])
    specials = ["<pad>", "<bos>", "<eos>", "<unk>", "<start_of_turn>", "<end_of_turn>"]
    trainer = trainers.UnigramTrainer(
        vocab_size=200, special_tokens=specials, unk_token="<unk>", show_progress=False
    )
    core.train_from_iterator([*PROMPTS, *specials, "First, rinse it. Then, boil it for an hour."] * 5, trainer)
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=core, pad_token="<pad>", bos_token="<bos>", eos_token="<eos>", unk_token="<unk>",
        additional_special_tokens=specials[4:], clean_up_tokenization_spaces=False, model_max_length=512,
    )  # fmt: skip
    tokenizer.chat_template = (
        "{{ bos_token }}{% for m in messages %}<start_of_turn>{{ m['role'] }}\n{{ m['content'] | trim }}"
        "<end_of_turn>\n{% endfor %}{% if add_generation_prompt %}<start_of_turn>model\n{% endif %}"
    )
    return tokenizer


def save(folder: Path, config: PreTrainedConfig, tokenizer: PreTrainedTokenizerBase) -> Path:
    """A random model with that tokenizer."""
    torch.manual_seed(0)
    with quiet():
        AutoModelForCausalLM.from_config(config).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


def run(model: Path, out: Path, *overrides: str) -> str:
    """`rheostat run` at its smallest size; gives its standard error."""
    prompts = out.with_suffix(".jsonl")
    prompts.write_text("".join(json.dumps({"prompt": text}) + "\n" for text in PROMPTS), encoding="utf-8")
    recipe = out.with_suffix(".yaml")
    recipe.write_text("seed: 1\n")
    settings = (f"model={model}", f"prompts.train={prompts}", *SMALLEST, *overrides)
    done = CliRunner().invoke(
        cli.app, ["run", str(recipe), "--out", str(out), *(f"--set={setting}" for setting in settings)]
    )
    assert done.exit_code == 0, done.stderr[-3000:]
    assert (out / "report.html").stat().st_size > 5_000
    return done.stderr


def summary(out: Path) -> dict[str, object]:
    """What the training recorded."""
    with RunDirectory.open(out, read_only=True) as directory:
        return directory.finished("train/exmate-moec").summary


def exported_and_used(out: Path, to: Path) -> None:
    """`rheostat export`; the folder computes what the run's model does, takes dials, and responds."""
    done = CliRunner().invoke(cli.app, ["export", str(out), "--to", str(to)])
    assert done.exit_code == 0, done.stderr[-3000:]
    ids = torch.arange(5, 25)[None]
    with quiet(), torch.inference_mode():
        tuned, copy = (
            AutoModelForCausalLM.from_pretrained(folder)(input_ids=ids).logits
            for folder in (out / "train" / "exmate-moec" / "model", to)
        )
    assert torch.equal(tuned, copy)
    tokenizer = AutoTokenizer.from_pretrained(to)
    text = dialled_text(tokenizer, "hi [helpful=1]", safety=0.0)
    assert text.endswith("[helpful=1][harmless=0]") and "hi (helpful=1)" in text
    dialled = rheostat.load(to)
    answers = [dialled.respond("Hello.", max_tokens=8, temperature=0, safety=level) for level in (0.0, 1.0)]
    assert all(isinstance(answer, str) for answer in answers)


def dialled_text(tokenizer: PreTrainedTokenizerBase, content: str, **dials: float) -> str:
    """What a server renders with an exported chat template."""
    in_parts = "part['text']" in str(tokenizer.chat_template)
    turn = {"role": "user", "content": [{"type": "text", "text": content}] if in_parts else content}
    text: str = tokenizer.apply_chat_template([turn], tokenize=False, add_generation_prompt=True, **dials)
    return text


@pytest.mark.parametrize("name", sorted(CONFIGS))
def test_adapters_merge_into_what_they_computed(name: str, tmp_path: Path) -> None:
    """On tied and untied weights, GPT-2's transposed ones, and a mixture's, whose stacked experts have none."""
    folder = save(tmp_path, CONFIGS[name], pocket_tokenizer())
    policy = load_policy(str(folder), device="cpu")
    assert parameter_count(str(folder)) == policy.model.num_parameters()
    before = {key: value.clone() for key, value in policy.model.state_dict().items()}
    layers = adapted_layers(policy.model)
    per_layer = {"gpt2": 4, "mixtral": 4, "qwen3_moe": 4}.get(name, 7)  # attention alone in a mixture
    assert len(layers) == 2 * per_layer
    ids = torch.arange(5, 45).reshape(2, 20)
    with trainable(policy, TrainConfig(lora=LoraConfig(rank=2))) as adapted, torch.no_grad():
        own = adapted.eval()(input_ids=ids).logits
        for key, parameter in adapted.named_parameters():
            assert parameter.requires_grad == ("lora_" in key), key
            if "lora_B" in key:
                parameter.normal_(0, 0.3)
        learned = adapted(input_ids=ids).logits
    after = policy.model.state_dict()
    with torch.no_grad():
        merged = policy.model(input_ids=ids).logits
    assert not torch.allclose(own, learned, atol=0.1)
    torch.testing.assert_close(merged, learned, rtol=1e-3, atol=1e-3)
    assert list(after) == list(before)
    for key, value in before.items():
        assert torch.equal(after[key], value) == (key.removesuffix(".weight") not in layers), key


@pytest.mark.usefixtures("plain_report")
@pytest.mark.parametrize("name", sorted(CONFIGS))
def test_all_stages_on_an_architecture(name: str, tmp_path: Path) -> None:
    """With adapters, then, by the same run from its examples on, with all weights."""
    tokenizer = metaspace_tokenizer() if name == "gemma3" else pocket_tokenizer()
    model, out = save(tmp_path / name, CONFIGS[name], tokenizer), tmp_path / "run"
    run(model, out, "train.lora={rank: 2}")
    adapted = summary(out)
    assert adapted["trained_parameters"] < adapted["parameters"]  # type: ignore[operator]
    assert adapted["learning_rate"] == 2e-4
    assert adapted["lora"] == {"rank": 2, "layers": "all", "alpha": 32.0, "dropout": 0.0}
    exported_and_used(out, tmp_path / "adapted")
    generated = next((out / "generate").glob("*.parquet")).read_bytes()
    run(model, out)
    whole = summary(out)
    assert whole["trained_parameters"] == whole["parameters"] == adapted["parameters"]
    assert (whole["learning_rate"], whole["lora"]) == (5e-4, None)
    assert next((out / "generate").glob("*.parquet")).read_bytes() == generated
    exported_and_used(out, tmp_path / "whole")


def without_pad(tokenizer: PreTrainedTokenizerBase) -> None:
    tokenizer.pad_token = None


def without_system_role(tokenizer: PreTrainedTokenizerBase) -> None:
    tokenizer.chat_template = NO_SYSTEM


def with_parts(tokenizer: PreTrainedTokenizerBase) -> None:
    tokenizer.chat_template = PARTS


def without_template(tokenizer: PreTrainedTokenizerBase) -> None:
    tokenizer.chat_template = None


def with_named_templates(tokenizer: PreTrainedTokenizerBase) -> None:
    assert isinstance(tokenizer.chat_template, str)
    tokenizer.chat_template = {"default": tokenizer.chat_template, "tool_use": "{{ raise_exception('no') }}"}


@pytest.mark.usefixtures("plain_report")
@pytest.mark.parametrize(
    ("change", "beginning"),
    [
        (without_pad, "<s><|user|>How"),
        (without_system_role, "<s><|user|>How"),
        (with_parts, "<|user|>How"),
        (without_template, "<s>User: How"),
        (with_named_templates, "<s><|user|>How"),
    ],
)
def test_all_stages_with_an_unusual_tokenizer(
    change: Callable[[PreTrainedTokenizerBase], None], beginning: str, tmp_path: Path
) -> None:
    tokenizer = pocket_tokenizer()
    change(tokenizer)
    model, out = save(tmp_path / "model", CONFIGS["llama"], tokenizer), tmp_path / "run"
    errors = run(model, out)
    assert ("has no chat template" in errors) == (change is without_template)
    exported_and_used(out, tmp_path / "exported")
    with RunDirectory.open(out, read_only=True) as directory:
        rows = directory.finished("evaluate/optimization/exmate").read(EvaluationRow)
    assert len(rows) == 4
    text = dialled_text(AutoTokenizer.from_pretrained(tmp_path / "exported"), PROMPTS[0])
    assert text.startswith(beginning) and PROMPTS[0] in text


@pytest.mark.usefixtures("plain_report")
def test_all_stages_in_4_bits(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What is refused without CUDA, run all the same: bitsandbytes computes on a CPU, slowly.

    The adapter learns on weights of 4 bits and is merged into the whole ones, which the exported model has.
    """
    pytest.importorskip("bitsandbytes", reason="needs the package bitsandbytes")
    refused: list[torch.device] = []
    monkeypatch.setattr(rheostat.models, "check_quantization", refused.append)
    monkeypatch.setattr(rheostat.preflight, "check_quantization", refused.append)
    blocks = LlamaConfig(**{**SHAPE, "hidden_size": 64, "intermediate_size": 64})  # of 64 weights have a scale
    model, out = save(tmp_path / "model", blocks, pocket_tokenizer()), tmp_path / "run"
    run(model, out, "quantization=4bit", "dtype=bfloat16")
    assert len(refused) > 3
    assert summary(out)["lora"] == {"rank": 16, "layers": "all", "alpha": 32.0, "dropout": 0.0}
    exported_and_used(out, tmp_path / "exported")
    before, after = (load_file(folder / "model.safetensors") for folder in (model, tmp_path / "exported"))
    adapter = load_file(out / "train" / "exmate-moec" / "adapter" / "adapter_model.safetensors")
    name = "model.layers.0.self_attn.q_proj"
    low, high = (adapter[f"base_model.model.{name}.lora_{side}.weight"] for side in "AB")
    merged = before[f"{name}.weight"].bfloat16() + (2.0 * high @ low).bfloat16()
    assert after[f"{name}.weight"].dtype == torch.bfloat16
    torch.testing.assert_close(after[f"{name}.weight"], merged)
    assert torch.equal(after["lm_head.weight"], before["lm_head.weight"].bfloat16())
