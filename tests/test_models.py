"""Loading models, and what is said when that fails."""

import importlib.util
import shutil
from pathlib import Path

import pytest
import torch
from transformers import AutoTokenizer, LlamaConfig, LlamaForCausalLM, LlamaForSequenceClassification
from transformers.utils import logging as transformers_logging

from rheostat import pocket
from rheostat.chat import prompt_text
from rheostat.errors import ConfigError, ModelError
from rheostat.model_files import identity, labels_of, quiet, resolve, without_deprecations
from rheostat.model_shapes import parameter_count
from rheostat.models import (
    check_quantization,
    context_length,
    end_tokens,
    four_bits,
    load_classifier,
    load_policy,
    load_untrained_classifier,
    pick_device,
)
from rheostat.preflight import check
from rheostat.recipe import load_config
from rheostat.records import Message


def tiny_config(labels: int = 1) -> LlamaConfig:
    return LlamaConfig(
        vocab_size=2048,
        hidden_size=16,
        num_hidden_layers=1,
        num_attention_heads=2,
        intermediate_size=16,
        max_position_embeddings=64,
        pad_token_id=0,
        bos_token_id=1,
        eos_token_id=2,
        num_labels=labels,
    )


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny chat model with the pocket world's tokenizer."""
    folder = tmp_path_factory.mktemp("models") / "tiny"
    torch.manual_seed(0)
    LlamaForCausalLM(tiny_config()).save_pretrained(folder)
    AutoTokenizer.from_pretrained(pocket.weights("chat")).save_pretrained(folder)
    return folder


@pytest.fixture
def copy(tiny: Path, tmp_path: Path) -> Path:
    """A copy of the tiny model to spoil."""
    return Path(shutil.copytree(tiny, tmp_path / "copy"))


def test_a_pocket_name_is_a_folder_and_all_else_stays() -> None:
    assert resolve("pocket:chat") == pocket.weights("chat")
    assert resolve("org/name") == "org/name"


def test_a_policy_is_ready_to_generate(tiny: Path) -> None:
    policy = load_policy(str(tiny), device="cpu")
    assert not policy.model.training
    assert policy.model.dtype == torch.float32
    assert policy.tokenizer.padding_side == "left"
    assert (policy.context, policy.end_ids) == (64, (2,))
    assert policy.device == torch.device("cpu")


def test_the_dtype_is_the_one_asked_for(tiny: Path) -> None:
    assert load_policy(str(tiny), dtype="bfloat16", device="cpu").model.dtype == torch.bfloat16


def test_a_missing_pad_token_becomes_the_end_token(copy: Path) -> None:
    tokenizer = AutoTokenizer.from_pretrained(copy)
    tokenizer.pad_token = None
    tokenizer.save_pretrained(copy)
    assert load_policy(str(copy), device="cpu").tokenizer.pad_token == "</s>"


def test_end_tokens_are_the_generation_configurations(tiny: Path) -> None:
    policy = load_policy(str(tiny), device="cpu")
    policy.model.generation_config.eos_token_id = [5, 2]
    assert end_tokens(policy.model, policy.tokenizer) == (5, 2)
    policy.model.generation_config.eos_token_id = None
    assert end_tokens(policy.model, policy.tokenizer) == (2,)
    policy.tokenizer.eos_token = None
    with pytest.raises(ModelError, match="no token ends"):
        end_tokens(policy.model, policy.tokenizer)


def test_the_context_is_the_smaller_limit(tiny: Path) -> None:
    policy = load_policy(str(tiny), device="cpu")
    policy.tokenizer.model_max_length = 48
    assert context_length(policy.model.config, policy.tokenizer) == 48
    policy.tokenizer.model_max_length = 10**30
    assert context_length(policy.model.config, policy.tokenizer) == 64


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (lambda folder: shutil.rmtree(folder), "no such folder"),
        (lambda folder: (folder / "config.json").unlink(), "no config.json"),
        (lambda folder: (folder / "model.safetensors").rename(folder / "pytorch_model.bin"), "no .*safetensors"),
        (lambda folder: (folder / "tokenizer.json").unlink(), "cannot load its tokenizer"),
        (lambda folder: (folder / "config.json").write_text("{"), "cannot load"),
        (lambda folder: (folder / "config.json").write_text('{"model_type": "nonesuch"}'), "cannot load"),
        (lambda folder: (folder / "model.safetensors").write_bytes(b"x" * 100), "cannot load the model"),
    ],
)  # fmt: skip
def test_a_spoilt_folder_is_a_model_error(copy: Path, spoil: object, message: str) -> None:
    assert callable(spoil)
    spoil(copy)
    with pytest.raises(ModelError, match=message):
        load_policy(str(copy), device="cpu")


def test_a_base_model_gets_the_plain_template_and_a_warning(copy: Path, caplog: pytest.LogCaptureFixture) -> None:
    """Once a model, however often it is loaded; its turns end with the end token."""
    (copy / "chat_template.jinja").unlink()
    for _ in range(2):
        policy = load_policy(str(copy), device="cpu")
    assert caplog.messages.count(
        f"{copy}: its tokenizer has no chat template; it gets a plain one, `User: … Assistant: …` (docs/models.md)"
    ) == 1  # fmt: skip
    turns = [
        Message("system", "Be brief."),
        Message("user", "Hello."),
        Message("assistant", "Hi."),
        Message("user", "Bye."),
    ]
    text = prompt_text(policy.tokenizer, turns, control_text="[helpful=1]")
    assert text == "<s>Be brief.\n\nUser: Hello.\n\nAssistant: Hi.</s>\n\nUser: Bye.\n\nAssistant:[helpful=1]"
    policy.tokenizer.bos_token = policy.tokenizer.eos_token = None
    text = prompt_text(policy.tokenizer, turns[2:])
    assert text == "Assistant: Hi.\n\nUser: Bye.\n\nAssistant:"


def test_a_classifier_without_template_gets_none(copy: Path) -> None:
    LlamaForSequenceClassification(tiny_config()).save_pretrained(copy)
    (copy / "chat_template.jinja").unlink()
    assert not load_classifier(str(copy), device="cpu").tokenizer.chat_template


def test_of_several_chat_templates_the_default_one_is_used(copy: Path) -> None:
    tokenizer = AutoTokenizer.from_pretrained(copy)
    template = tokenizer.chat_template
    tokenizer.chat_template = {"default": template, "rag": "{{ messages }}"}
    tokenizer.save_pretrained(copy)
    assert load_policy(str(copy), device="cpu").tokenizer.chat_template == template
    (copy / "chat_template.jinja").unlink()
    shutil.rmtree(copy / "additional_chat_templates")
    AutoTokenizer.from_pretrained(copy).save_pretrained(copy)
    tokenizer.chat_template = {"tools": template, "rag": "{{ messages }}"}
    tokenizer.save_pretrained(copy)
    with pytest.raises(ModelError, match="got the chat templates rag, tools, one of them must be named default"):
        load_policy(str(copy), device="cpu")


def test_the_attention_is_the_one_asked_for(tiny: Path) -> None:
    ids = torch.tensor([[1, 50, 60, 70]])
    logits = []
    for attention in ("eager", "sdpa"):
        model = load_policy(str(tiny), device="cpu", attention=attention).model
        assert model.config._attn_implementation == attention
        logits.append(model(input_ids=ids).logits)
    torch.testing.assert_close(*logits)


def test_an_attention_that_is_not_installed_is_named(tiny: Path) -> None:
    if importlib.util.find_spec("flash_attn") or importlib.util.find_spec("kernels"):
        pytest.skip("flash attention is installed here")
    with pytest.raises(ModelError, match="attention: got 'flash_attention_2', which cannot be used here") as caught:
        load_policy(str(tiny), device="cpu", attention="flash_attention_2")
    assert "attention: null" in caught.value.hint
    (tiny / "model.safetensors").rename(tiny / "aside")
    with pytest.raises(ModelError, match="no .*safetensors"):
        load_policy(str(tiny), device="cpu", attention="sdpa")
    (tiny / "aside").rename(tiny / "model.safetensors")


def test_4_bits_need_cuda(tiny: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(ModelError, match="quantization: got '4bit' on the device 'cpu', allowed is CUDA"):
        load_policy(str(tiny), device="cpu", quantization="4bit")
    config = load_config("pocket", ["quantization=4bit", "device=cpu", "model=/absent/model"])
    with pytest.raises(ConfigError, match="2 problems"):
        check(config)
    monkeypatch.setattr("rheostat.models.is_bitsandbytes_available", lambda: False)
    with pytest.raises(ModelError, match="needs the package bitsandbytes"):
        check_quantization(torch.device("cuda"))


def test_4_bits_are_nf4_with_doubly_quantised_scales() -> None:
    given = four_bits("bfloat16").to_dict()
    assert (given["load_in_4bit"], given["load_in_8bit"]) == (True, False)
    assert (given["bnb_4bit_quant_type"], given["bnb_4bit_use_double_quant"]) == ("nf4", True)
    assert given["bnb_4bit_compute_dtype"] == "bfloat16"


def test_parameters_are_counted_without_weights(copy: Path) -> None:
    for model in (str(copy), "pocket:chat"):
        assert parameter_count(model) == load_policy(model, device="cpu").model.num_parameters()
    (copy / "config.json").write_text('{"model_type": "nonesuch"}')
    with pytest.raises(ModelError, match="cannot read its config"):
        parameter_count(str(copy))


def test_every_file_of_a_tokenizer_tells_models_apart(copy: Path) -> None:
    """Byte-level BPEs and WordPieces of old keep theirs in text files."""
    before = identity(str(copy))
    (copy / "merges.txt").write_text("a b\n")
    assert identity(str(copy)) != before


def test_weights_of_another_kind_of_model_are_refused(tiny: Path) -> None:
    with pytest.raises(ModelError, match="lack weights .*score.weight"):
        load_classifier(str(tiny), device="cpu")


def test_a_classifier_says_its_labels(copy: Path) -> None:
    LlamaForSequenceClassification(tiny_config(labels=3)).save_pretrained(copy)
    assert load_classifier(str(copy), device="cpu").labels == ("LABEL_0", "LABEL_1", "LABEL_2")
    assert labels_of(str(copy)) == (("LABEL_0", "LABEL_1", "LABEL_2"), None)
    assert labels_of("some/model-on-the-hub") is None


def test_a_trunk_gets_a_head_drawn_from_the_seed(tiny: Path) -> None:
    first, again, other = (load_untrained_classifier(str(tiny), device="cpu", seed=seed).model for seed in (0, 0, 1))
    assert torch.equal(first.score.weight, again.score.weight)
    assert not torch.equal(first.score.weight, other.score.weight)
    trunk = load_policy(str(tiny), device="cpu").model.model
    assert torch.equal(first.model.embed_tokens.weight, trunk.embed_tokens.weight)


def test_a_classifier_knows_the_token_its_pooling_skips(copy: Path) -> None:
    config = tiny_config()
    config.pad_token_id = None
    LlamaForSequenceClassification(config).save_pretrained(copy)
    assert load_classifier(str(copy), device="cpu").model.config.pad_token_id == 0


def test_an_adapter_is_merged(tiny: Path, tmp_path: Path) -> None:
    """The merged model computes what the base with its adapter does, and not what the base alone does."""
    from peft import LoraConfig, get_peft_model

    base = load_policy(str(tiny), device="cpu").model
    ids = torch.tensor([[1, 50, 60, 70]])
    alone = base(input_ids=ids).logits
    torch.manual_seed(1)
    with without_deprecations():
        adapted = get_peft_model(base, LoraConfig(r=2, target_modules=["q_proj"], init_lora_weights=False))
    adapted.save_pretrained(tmp_path / "adapter")
    merged = load_policy(str(tiny), device="cpu", adapter=tmp_path / "adapter").model
    with torch.inference_mode():
        torch.testing.assert_close(merged(input_ids=ids).logits, adapted(input_ids=ids).logits)
    assert not torch.allclose(merged(input_ids=ids).logits, alone)
    (tmp_path / "adapter" / "adapter_model.safetensors").unlink()
    with pytest.raises(ModelError, match="not a PEFT adapter"):
        load_policy(str(tiny), device="cpu", adapter=tmp_path / "adapter")


def test_a_device_that_is_absent_is_named() -> None:
    assert pick_device("cpu") == torch.device("cpu")
    with pytest.raises(ModelError, match="'warp9'"):
        pick_device("warp9")


def test_quiet_puts_the_verbosity_back() -> None:
    before = transformers_logging.get_verbosity()
    with quiet():
        assert transformers_logging.get_verbosity() == transformers_logging.ERROR
    assert transformers_logging.get_verbosity() == before
