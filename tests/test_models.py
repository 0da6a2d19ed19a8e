"""Loading models, and what is said when that fails."""

import shutil
from pathlib import Path

import pytest
import torch
from transformers import AutoTokenizer, LlamaConfig, LlamaForCausalLM, LlamaForSequenceClassification
from transformers.utils import logging as transformers_logging

from rheostat import pocket
from rheostat.errors import ModelError
from rheostat.models import (
    context_length,
    end_tokens,
    load_classifier,
    load_policy,
    pick_device,
    quiet,
    resolve,
    without_peft_deprecation,
)


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
    assert context_length(policy.model, policy.tokenizer) == 48
    policy.tokenizer.model_max_length = 10**30
    assert context_length(policy.model, policy.tokenizer) == 64


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (lambda folder: shutil.rmtree(folder), "no such folder"),
        (lambda folder: (folder / "config.json").unlink(), "no config.json"),
        (lambda folder: (folder / "model.safetensors").rename(folder / "pytorch_model.bin"), "no .*safetensors"),
        (lambda folder: (folder / "tokenizer.json").unlink(), "cannot load its tokenizer"),
        (lambda folder: (folder / "chat_template.jinja").unlink(), "no chat template"),
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


def test_weights_of_another_kind_of_model_are_refused(tiny: Path) -> None:
    with pytest.raises(ModelError, match="lack weights .*score.weight"):
        load_classifier(str(tiny), device="cpu")


def test_a_classifier_must_have_one_logit(copy: Path) -> None:
    LlamaForSequenceClassification(tiny_config(labels=3)).save_pretrained(copy)
    with pytest.raises(ModelError, match="3 labels, allowed is one logit"):
        load_classifier(str(copy), device="cpu")


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
    with without_peft_deprecation():
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
