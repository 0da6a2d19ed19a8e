"""Footprints against numbers worked by hand."""

import pytest

from rheostat.footprint import ModelShape, Training, largest_model
from rheostat.model_shapes import read_shape

LLAMA_7B = ModelShape(
    parameters=6_738_415_616, layers=32, hidden=4096, key_value_heads=32, head_size=128, vocabulary=32_000
)


def test_llama_7b_by_hand() -> None:
    """13.48 GB of weights in 16 bits; 2 · 32 · 32 · 128 · 2 = 524,288 bytes of cache a token."""
    assert LLAMA_7B.weights("bfloat16") == 13_476_831_232
    assert LLAMA_7B.cache("bfloat16", 1) == 524_288
    # 4096 tokens in flight: 2 GiB of cache; 8 rows of logits, three times in 32 bits: 8 · 32,000 · 12 = 3,072,000.
    assert LLAMA_7B.generating("bfloat16", rows=8, tokens=4096) == 13_476_831_232 + 2**31 + 3_072_000


@pytest.mark.parametrize(
    ("how", "states"),
    [("full", 16 * 6_738_415_616), ("lora", 13_476_831_232 + 1_078_146_499), ("4bit", 4_851_659_244)],
)
def test_training_by_hand(how: Training, states: int) -> None:
    """1,000 tokens keep 1,000 · 4,096 · 2 · 32 · 17 bytes; checkpointed (32 + 17); 100 logits 100 · 32,000 · 12."""
    kept = 1000 * 4096 * 2
    found = LLAMA_7B.training("bfloat16", how, tokens=1000, response_tokens=100)
    assert found == pytest.approx(states + kept * 32 * 17 + 38_400_000, abs=2)
    spared = LLAMA_7B.training("bfloat16", how, tokens=1000, response_tokens=100, checkpointing=True)
    assert found - spared == kept * (32 * 17 - 49)


def test_operations_by_hand() -> None:
    assert LLAMA_7B.forward_operations(10) == 20 * 6_738_415_616
    assert LLAMA_7B.training_operations(10, "full") == 60 * 6_738_415_616
    assert LLAMA_7B.training_operations(10, "lora") == 40 * 6_738_415_616


def test_the_largest_model_fits_and_a_quarter_more_does_not() -> None:
    """80 GB: 32 B to generate with in 16 bits, 4 B to train whole, in 32 bits either way."""
    assert largest_model(80 * 10**9, "bfloat16", "generate") == 32 * 10**9
    assert largest_model(80 * 10**9, "bfloat16", "full") == 4 * 10**9
    assert largest_model(80 * 10**9, "float32", "full") == 4 * 10**9


def test_a_shape_is_read_off_config_json() -> None:
    """The pocket chat model as it loads: the same parameters, counted without its weights."""
    from rheostat.models import load_policy

    shape = read_shape("pocket:chat")
    model = load_policy("pocket:chat", device="cpu").model
    assert shape.parameters == sum(each.numel() for each in model.parameters())
    config = model.config
    assert (shape.layers, shape.hidden, shape.vocabulary) == (
        config.num_hidden_layers,
        config.hidden_size,
        config.vocab_size,
    )
    assert shape.key_value_heads * shape.head_size == model.model.layers[0].self_attn.k_proj.out_features
