"""What of a model is trained: low-rank adapters on its linear layers, all weights in float32, or routers of experts."""

import re
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, nullcontext
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import nn
from transformers.pytorch_utils import Conv1D

from rheostat.config import LoraConfig, TrainConfig
from rheostat.errors import ModelError
from rheostat.model_files import quiet, without_deprecations
from rheostat.models import Policy
from rheostat.routed import RoutedModel, new_routers, read_experts, routed

if TYPE_CHECKING:
    from transformers import PreTrainedModel


def refuse_frozen_weights(policy: Policy, with_lora: bool) -> None:
    """Raises `ModelError` for weights that were quantised before they came here, or by `quantization` without LoRA."""
    method = getattr(getattr(policy.model.config, "quantization_config", None), "quant_method", None)
    if method is None or (with_lora and policy.is_quantized_here):
        return
    raise ModelError(
        f"{policy.name}: got weights quantised by {getattr(method, 'value', method)}, which cannot be trained",
        hint="use the model's weights of 16 or 32 bits; with `quantization: 4bit` they are loaded in 4 bits "
        "and adapters trained",
    )


@contextmanager
def trainable(policy: Policy, options: TrainConfig) -> Iterator[Any]:
    """Within, the model to train: the policy's own in float32, or with adapters around it; afterwards in eval mode.

    Adapters are in float32, and at the end merged into weights that are not quantised. Weights in 16 bits that are
    trained themselves, or frozen in float16, whose range gradients leave, are in float32 meanwhile.
    """
    model = policy.model
    lora = options.lora
    with (
        _in_float32(model) if lora is None or model.dtype == torch.float16 else nullcontext(),
        _adapted(policy, lora) if isinstance(lora, LoraConfig) else nullcontext(model) as trained,
        _checkpointed(model) if options.gradient_checkpointing else nullcontext(),
    ):
        yield trained
    model.eval()


@contextmanager
def _adapted(policy: Policy, lora: LoraConfig) -> Iterator[Any]:
    with quiet(), without_deprecations():
        adapted = _with_adapters(policy.model, lora)
    yield adapted
    if not policy.is_quantized_here:
        adapted.merge_and_unload()


@contextmanager
def _checkpointed(model: "PreTrainedModel") -> Iterator[None]:
    """Within, activations of layers are computed again for the gradient instead of being kept."""
    if not model.supports_gradient_checkpointing:
        raise ModelError(
            f"train.gradient_checkpointing: got true, which {type(model).__name__} does not offer",
            hint="leave it false, and use train.accumulation to save memory",
        )
    with without_deprecations():
        model.gradient_checkpointing_enable({"use_reentrant": False})
    model.enable_input_require_grads()  # below adapters all is frozen, and a checkpoint's gradient would end there
    yield
    model.disable_input_require_grads()
    with without_deprecations():
        model.gradient_checkpointing_disable()


@contextmanager
def _in_float32(model: "PreTrainedModel") -> Iterator[None]:
    """Within, all weights are in float32: steps smaller than a 16-bit weight's rounding are not lost."""
    types = {name: parameter.dtype for name, parameter in model.named_parameters()}
    for parameter in model.parameters():
        parameter.data = parameter.data.float()
    yield
    for name, parameter in model.named_parameters():
        parameter.data = parameter.data.to(types[name])


def _with_adapters(model: "PreTrainedModel", lora: LoraConfig) -> Any:
    from peft import LoraConfig as PeftLoraConfig
    from peft import get_peft_model

    layers = mlp_output_layers(model) if lora.layers == "mlp_output" else adapted_layers(model)
    if not layers:
        raise ModelError(
            f"{model.config.model_type}: got a model without "
            f"{'MLPs of linear layers' if lora.layers == 'mlp_output' else 'linear layers'}, LoRA needs some",
            hint="train all weights with `train.lora: null`",
        )
    return get_peft_model(
        model,
        PeftLoraConfig(
            r=lora.rank,
            lora_alpha=lora.alpha,
            lora_dropout=lora.dropout,
            target_modules=list(layers),
            fan_in_fan_out=any(isinstance(layer, Conv1D) for layer in layers.values()),
            task_type="CAUSAL_LM",
        ),
    )


def adapted_layers(model: "PreTrainedModel") -> dict[str, nn.Module]:
    """The layers that adapters sit on, by name: every linear one of the language model, the output's excepted.

    Experts that are stacked into one parameter, and their routers, are no linear layers and stay as they are.
    """
    inside = set(model.get_decoder().modules())
    output = model.get_output_embeddings()
    return {
        name: module
        for name, module in model.named_modules()
        if isinstance(module, nn.Linear | Conv1D) and module in inside and module is not output
    }


def mlp_output_layers(model: "PreTrainedModel") -> dict[str, nn.Module]:
    """The last linear layer of each MLP, by name: `down_proj`, GPT-2's `c_proj`, OPT's `fc2`, whatever its name.

    Of the linear layers beside each other outside attention it is the last that gives the model's own width from an
    inside at least as wide.
    """
    width = model.config.get_text_config(decoder=True).hidden_size
    last: dict[str, str] = {}
    layers = adapted_layers(model)
    for name, layer in layers.items():
        inside, outside = _sizes(layer)
        if outside == width <= inside and not _ATTENTION.search(name):
            last[name.rpartition(".")[0]] = name
    return {name: layers[name] for name in last.values()}


_ATTENTION = re.compile(r"attn|attention", re.IGNORECASE)


def _sizes(layer: nn.Module) -> tuple[int, int]:
    """How many features go in and come out."""
    if isinstance(layer, Conv1D):
        return int(layer.weight.shape[0]), int(layer.nf)
    assert isinstance(layer, nn.Linear), layer
    return layer.in_features, layer.out_features


@contextmanager
def routable(
    policy: Policy, options: TrainConfig, adapters: Mapping[str, Path], *, width: int
) -> Iterator[RoutedModel]:
    """Within, the policy's model stands frozen with frozen experts, and the routers of their gates are trained.

    `adapters`: the experts' folders by role; `width` as in `new_routers`. Afterwards the model is exactly as it was, in
    eval mode. Raises `ModelError` for adapters that do not fit.
    """
    model = policy.model
    experts = read_experts(adapters)
    asked = {name: parameter.requires_grad for name, parameter in model.named_parameters()}
    model.requires_grad_(False)
    try:
        with (
            _in_float32(model) if model.dtype == torch.float16 else nullcontext(),
            routed(model, experts, new_routers(experts, width=width)) as found,
            _checkpointed(model) if options.gradient_checkpointing else nullcontext(),
        ):
            yield found
    finally:
        for name, parameter in model.named_parameters():
            parameter.requires_grad_(asked[name])
        model.eval()


def save_adapter(adapted: Any, folder: Path) -> None:
    """A PEFT adapter, its weights in safetensors."""
    with quiet():
        adapted.save_pretrained(folder, save_embedding_layers=False)
