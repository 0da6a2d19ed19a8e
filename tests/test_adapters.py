"""What of a model is trained: which layers, in which type, and that gradients arrive."""

from dataclasses import replace

import pytest
import torch
from transformers import (
    AutoModelForCausalLM,
    Gemma3Config,
    GPT2Config,
    GPTNeoXConfig,
    LlamaConfig,
    OPTConfig,
    PreTrainedConfig,
    Qwen3Config,
)

from rheostat.adapters import adapted_layers, mlp_output_layers, refuse_frozen_weights, trainable
from rheostat.config import LoraConfig, TrainConfig
from rheostat.errors import ModelError
from rheostat.model_files import quiet
from rheostat.models import Policy, load_policy
from rheostat.recipe import load_config
from rheostat.train import _plain
from rheostat.training_plan import settled

pytestmark = pytest.mark.usefixtures("one_thread")

ADAPTERS = LoraConfig(rank=2)
IDS = torch.arange(5, 45).reshape(2, 20)


def gradients(policy: Policy, options: TrainConfig) -> dict[str, torch.Tensor]:
    """Those of a language modelling loss, by parameter; adapters start off where they are not nothing."""
    torch.manual_seed(0)
    with trainable(policy, options) as model:
        for name, parameter in model.named_parameters():
            if "lora_B" in name:
                torch.nn.init.normal_(parameter, 0, 0.1)
        model.train()(input_ids=IDS, labels=IDS, use_cache=False).loss.backward()
        found = {name: each.grad.clone() for name, each in model.named_parameters() if each.requires_grad}
        model.zero_grad()
    return found


@pytest.mark.parametrize("lora", [None, ADAPTERS])
def test_recomputed_activations_give_the_same_gradient(lora: LoraConfig | None) -> None:
    """Below adapters all is frozen, where a checkpoint's gradient could end; it does not."""
    kept = gradients(load_policy("pocket:chat", device="cpu"), TrainConfig(lora=lora))
    policy = load_policy("pocket:chat", device="cpu")
    calls = 0

    def count(*_: object) -> None:
        nonlocal calls
        calls += 1

    policy.model.base_model.layers[0].mlp.register_forward_pre_hook(count)
    again = gradients(policy, TrainConfig(lora=lora, gradient_checkpointing=True))
    assert calls == 2, "the layer is computed again for its gradient"
    assert set(again) == set(kept) and all(each.abs().max() > 0 for each in kept.values())
    for name, each in kept.items():
        torch.testing.assert_close(again[name], each, msg=name)
    assert not policy.model.is_activation_checkpointing


def test_a_model_that_cannot_recompute_says_so() -> None:
    policy = load_policy("pocket:chat", device="cpu")
    policy.model.supports_gradient_checkpointing = False
    with (
        pytest.raises(ModelError, match="gradient_checkpointing: got true, which LlamaForCausalLM"),
        trainable(policy, TrainConfig(lora=None, gradient_checkpointing=True)),
    ):
        pass


def test_steps_smaller_than_a_weights_rounding_are_kept() -> None:
    """bfloat16 has 8 bits: a step of 2⁻¹⁰ of a weight rounds to nothing, and 64 such steps to 2⁻⁴ of it."""
    policy = load_policy("pocket:chat", dtype="bfloat16", device="cpu")
    buffers = {name: each.dtype for name, each in policy.model.named_buffers()}
    weight = policy.model.base_model.layers[0].mlp.up_proj.weight
    before = weight.detach().clone()
    assert torch.equal(before * (1 + 2**-10), before)
    with trainable(policy, TrainConfig(lora=None)) as model, torch.no_grad():
        assert {each.dtype for each in model.parameters()} == {torch.float32}
        for _ in range(64):
            weight += weight * 2**-10
    assert {each.dtype for each in policy.model.parameters()} == {torch.bfloat16}
    assert {name: each.dtype for name, each in policy.model.named_buffers()} == buffers
    torch.testing.assert_close(weight.float(), before.float() * (1 + 2**-10) ** 64, rtol=2**-8, atol=0)


@pytest.mark.parametrize(("dtype", "frozen"), [("bfloat16", torch.bfloat16), ("float16", torch.float32)])
def test_adapters_learn_in_float32(dtype: str, frozen: torch.dtype) -> None:
    """Above weights in bfloat16 as they are; those in float16 are in float32 meanwhile."""
    policy = load_policy("pocket:chat", dtype=dtype, device="cpu")  # type: ignore[arg-type]
    with trainable(policy, TrainConfig(lora=ADAPTERS)) as model:
        types = {(each.requires_grad, each.dtype) for each in model.parameters()}
        assert types == {(True, torch.float32), (False, frozen)}
    assert {each.dtype for each in policy.model.parameters()} == {policy.model.dtype} != {torch.float32}


def test_of_a_model_with_eyes_only_the_language_is_adapted() -> None:
    shape = {"hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2}
    text = {**shape, "num_key_value_heads": 1, "head_dim": 8, "vocab_size": 2048}
    eyes = {**shape, "image_size": 28, "patch_size": 14}
    with quiet():
        model = AutoModelForCausalLM.from_config(Gemma3Config(text_config=text, vision_config=eyes))
    names = adapted_layers(model)
    assert len(names) == 7 and all("language_model" in name for name in names)
    assert any("vision" in name for name, _ in model.named_modules())


def test_quantised_weights_train_adapters_only_where_the_recipe_quantised_them() -> None:
    policy = load_policy("pocket:chat", device="cpu")
    refuse_frozen_weights(policy, with_lora=False)
    policy.model.config.quantization_config = type("Packed", (), {"quant_method": "bitnet"})()
    for with_lora in (False, True):
        with pytest.raises(ModelError, match="pocket:chat: got weights quantised by bitnet, which cannot be trained"):
            refuse_frozen_weights(policy, with_lora)
    ours = replace(policy, is_quantized_here=True)
    refuse_frozen_weights(ours, with_lora=True)
    with pytest.raises(ModelError, match="quantised by bitnet"):
        refuse_frozen_weights(ours, with_lora=False)


def test_a_model_without_linear_layers_has_nothing_to_adapt() -> None:
    policy = load_policy("pocket:chat", device="cpu")
    policy.model.base_model.layers = torch.nn.ModuleList()
    with pytest.raises(ModelError, match="without linear layers"), trainable(policy, TrainConfig(lora=ADAPTERS)):
        pass


@pytest.mark.parametrize(
    ("given", "parameters", "quantized", "lora", "rate"),
    [
        ({}, 10**9, False, None, 1e-5),
        ({}, 10**9 + 1, False, LoraConfig(), 2e-4),
        ({}, 10**8, False, None, 5e-4),
        ({}, 10, True, LoraConfig(), 2e-4),
        ({"lora_above": 0}, 10, False, LoraConfig(), 2e-4),
        ({"lora": None}, 10**11, False, None, 1e-5),
        ({"lora": ADAPTERS}, 10, False, ADAPTERS, 2e-4),
        ({"lora": ADAPTERS, "learning_rate": 3e-3}, 10, False, ADAPTERS, 3e-3),
        ({"learning_rate": 7e-4}, 10, False, None, 7e-4),
    ],
)
def test_what_auto_comes_to(
    given: dict[str, object], parameters: int, quantized: bool, lora: LoraConfig | None, rate: float
) -> None:
    options = settled(TrainConfig(**given), parameters, is_quantized=quantized)
    assert (options.lora, options.learning_rate) == (lora, rate)
    assert settled(options, 10**12) == options, "what is settled stays"


def test_a_stage_depends_on_what_auto_came_to_and_not_on_the_threshold() -> None:
    """The default's inputs are those of a training that knew none of the later keys."""
    recipe = load_config("pocket").train
    plain = _plain(settled(recipe, 10**6))
    assert (plain["lora"], plain["learning_rate"]) == (None, 7e-4)
    assert not {"lora_above", "accumulation", "gradient_checkpointing"} & set(plain)
    assert _plain(settled(recipe.model_copy(update={"lora_above": 2e6}), 10**6)) == plain
    adapted = _plain(settled(recipe.model_copy(update={"lora_above": 1e5, "accumulation": 2}), 10**6))
    assert (adapted["lora"]["rank"], adapted["accumulation"]) == (16, 2)


TINY = {"vocab_size": 64, "hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2}
ARCHITECTURES: dict[str, tuple[PreTrainedConfig, str]] = {
    "llama": (LlamaConfig(**TINY, intermediate_size=24), "mlp.down_proj"),
    "as wide inside as out": (LlamaConfig(**TINY, intermediate_size=16), "mlp.down_proj"),
    "attention wider than the model": (
        Qwen3Config(**TINY, intermediate_size=24, num_key_value_heads=1, head_dim=32), "mlp.down_proj",
    ),
    "gpt2": (GPT2Config(vocab_size=64, n_embd=16, n_layer=2, n_head=2, bos_token_id=1, eos_token_id=2), "mlp.c_proj"),
    "gpt neox": (GPTNeoXConfig(**TINY, intermediate_size=24), "mlp.dense_4h_to_h"),
    "opt": (OPTConfig(**TINY, ffn_dim=24, word_embed_proj_dim=8), "fc2"),
}  # fmt: skip


@pytest.mark.parametrize("name", ARCHITECTURES)
def test_the_last_layer_of_every_mlp_is_found(name: str) -> None:
    config, expected = ARCHITECTURES[name]
    with quiet():
        found = list(mlp_output_layers(AutoModelForCausalLM.from_config(config)))
    assert len(found) == 2 and all(each.endswith(expected) for each in found), found
