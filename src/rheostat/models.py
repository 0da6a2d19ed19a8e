"""Loads policies and classifiers: Hugging Face directories or ids, safetensors only, no remote code.

Everything a user can get wrong here (a missing folder, other weight formats, a model without chat
template or with the wrong head) is a `ModelError` that says what to do.
"""

import inspect
import logging
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cache, partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from safetensors import SafetensorError
from transformers import (
    AutoModelForCausalLM,
    AutoModelForSequenceClassification,
    AutoTokenizer,
    BitsAndBytesConfig,
    set_seed,
)
from transformers.utils import is_bitsandbytes_available

from rheostat.chat import plain_chat_template, single_chat_template
from rheostat.config import Attention, Dtype, Quantization, RunConfig
from rheostat.errors import ModelError
from rheostat.model_files import (
    HINT_FOLDER,
    first_line,
    from_disk_first,
    locate,
    quiet,
    read_config,
    without_deprecations,
)

if TYPE_CHECKING:
    from transformers import PreTrainedConfig, PreTrainedModel, PreTrainedTokenizerBase


_logger = logging.getLogger(__name__)
_DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}
_NO_LIMIT = 1_000_000  # tokenizers without a limit of their own claim 10^30
_HEADS = ("score.", "classifier.", "classification_head.", "pre_classifier.", "bert.pooler.")


@dataclass(frozen=True)
class Policy:
    """A chat model in eval mode with its tokenizer (left padding, pad token set).

    `context` is the most tokens a sequence may have; `end_ids` are the tokens that end a response, the
    one to train on first; `is_quantized_here` says that its weights are in 4 bits because the recipe asks for it.
    """

    model: "PreTrainedModel"
    tokenizer: "PreTrainedTokenizerBase"
    name: str
    context: int
    end_ids: tuple[int, ...]
    is_quantized_here: bool = False

    @property
    def device(self) -> torch.device:
        """Where the model lives."""
        device: torch.device = self.model.device
        return device


@dataclass(frozen=True)
class Classifier:
    """A sequence classifier in eval mode with its tokenizer (pad token set); `context` in tokens.

    `name` is as given, for messages.
    """

    model: "PreTrainedModel"
    tokenizer: "PreTrainedTokenizerBase"
    name: str
    context: int

    @property
    def device(self) -> torch.device:
        """Where the model lives."""
        device: torch.device = self.model.device
        return device

    @property
    def labels(self) -> tuple[str, ...]:
        """The names of its labels, in the order of its logits."""
        config = self.model.config
        return tuple(str(config.id2label[place]) for place in range(config.num_labels))

    @property
    def problem_type(self) -> str | None:
        """Hugging Face's: `single_label_classification`, `multi_label_classification`, `regression`, or None."""
        found: str | None = self.model.config.problem_type
        return found


@dataclass(frozen=True)
class LanguageModel:
    """A causal language model in eval mode with its tokenizer (pad token set), of which only probabilities are asked.

    `context` in tokens; `name` is as given, for messages.
    """

    model: "PreTrainedModel"
    tokenizer: "PreTrainedTokenizerBase"
    name: str
    context: int


@dataclass(frozen=True)
class Reader:
    """How a chat model reads prompts, without its weights: its tokenizer, and the most tokens a sequence may have."""

    tokenizer: "PreTrainedTokenizerBase"
    context: int


def cache_argument(model: "PreTrainedModel") -> str | None:
    """The keyword under which a model takes its keys and values; None for one that takes none.

    It is `cache` from transformers 5.24 on and was `past_key_values` before.
    """
    known = inspect.signature(type(model).forward).parameters
    return next((name for name in ("cache", "past_key_values") if name in known), None)


def pick_device(device: str = "auto") -> torch.device:
    """The device named; `auto` is the first CUDA device, else the CPU. `ModelError` where it is absent."""
    if device == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        picked = torch.device(device)
        torch.empty(0, device=picked)
    except (RuntimeError, AssertionError) as error:
        raise ModelError(
            f"device: got {device!r}, which this machine does not offer ({first_line(error)})",
            hint="use `auto`, `cpu`, or a device that torch can see",
        ) from error
    return picked


def recipe_policy(config: RunConfig, model: str | None = None) -> Policy:
    """The recipe's chat model, or one tuned from it, loaded as the recipe says. Raises `ModelError`."""
    return load_policy(
        model or config.model,
        dtype=config.dtype,
        device=config.device,
        attention=config.attention,
        quantization=config.quantization,
    )


def load_policy(
    model: str,
    *,
    dtype: Dtype = "float32",
    device: str = "auto",
    attention: Attention | None = None,
    quantization: Quantization | None = None,
    adapter: Path | None = None,
) -> Policy:
    """A chat model, with a PEFT adapter merged into it where one is given.

    Where its tokenizer has several chat templates, the `default` one becomes its only; where it has none, a plain one
    (`plain_chat_template`), and a warning says so. Raises `ModelError` where it cannot be loaded.
    """
    assert adapter is None or quantization is None, "adapters are not merged into weights of 4 bits"
    where = pick_device(device)
    tokenizer = load_tokenizer(model)
    tokenizer.padding_side = "left"
    with _attention_errors(attention):
        loaded = _load_model(
            AutoModelForCausalLM.from_pretrained,
            model,
            dtype,
            {
                "attn_implementation": attention,
                **({} if quantization is None else _in_4_bits(dtype, where)),
            },
        )
    if adapter is not None:
        loaded = _merge_adapter(loaded, adapter)
    if quantization is None:
        loaded = loaded.to(where)
    return Policy(
        loaded.eval(),
        tokenizer,
        model,
        context_length(loaded.config, tokenizer),
        end_tokens(loaded, tokenizer),
        quantization is not None,
    )


def load_reader(model: str) -> Reader:
    """How a chat model reads prompts: no weight is read. `ModelError` where its tokenizer or config.json cannot be."""
    tokenizer = load_tokenizer(model)
    return Reader(tokenizer, context_length(read_config(model), tokenizer))


def load_language_model(model: str, *, dtype: Dtype = "float32", device: str = "auto") -> LanguageModel:
    """A causal language model, with a chat template or without. `ModelError` where it cannot be loaded."""
    where = pick_device(device)
    tokenizer = _load_tokenizer(model)
    loaded = _load_model(AutoModelForCausalLM.from_pretrained, model, dtype).to(where).eval()
    return LanguageModel(loaded, tokenizer, model, context_length(loaded.config, tokenizer))


def load_classifier(model: str, *, dtype: Dtype = "float32", device: str = "auto") -> Classifier:
    """A sequence classifier, of one logit or several labels. `ModelError` where it cannot be loaded."""
    where = pick_device(device)
    tokenizer = _load_tokenizer(model)
    loaded = _load_model(AutoModelForSequenceClassification.from_pretrained, model, dtype)
    return _classifier(loaded, tokenizer, model, where)


def load_untrained_classifier(
    model: str, *, dtype: Dtype = "float32", device: str = "auto", seed: int
) -> Classifier:
    """A one-logit classifier to be trained: the trunk of any model, under a head drawn from `seed`.

    Raises `ModelError` where the model cannot be loaded, or where more than its head would be drawn.
    """
    where = pick_device(device)
    tokenizer = _load_tokenizer(model)
    set_seed(seed)
    read = partial(AutoModelForSequenceClassification.from_pretrained, num_labels=1)
    return _classifier(_load_model(read, model, dtype, may_lack=_HEADS), tokenizer, model, where)


def _classifier(loaded: Any, tokenizer: Any, model: str, where: torch.device) -> Classifier:
    # The pooling of Hugging Face's decoder classifiers looks for the last token that is not this one, by the text's
    # configuration where a model has several.
    text_config = loaded.config.get_text_config()
    if text_config.pad_token_id is None:
        text_config.pad_token_id = tokenizer.pad_token_id
    loaded = loaded.to(where).eval()
    return Classifier(loaded, tokenizer, model, context_length(loaded.config, tokenizer))


def context_length(config: "PreTrainedConfig", tokenizer: "PreTrainedTokenizerBase") -> int:
    """The most tokens a sequence may have: the smaller of the model's positions and the tokenizer's limit."""
    positions = getattr(config.get_text_config(), "max_position_embeddings", None)
    limits = [limit for limit in (positions, tokenizer.model_max_length) if limit and 0 < limit < _NO_LIMIT]
    return int(min(limits)) if limits else _NO_LIMIT


def end_tokens(model: "PreTrainedModel", tokenizer: "PreTrainedTokenizerBase") -> tuple[int, ...]:
    """The ids that end a response: the generation configuration's, else the tokenizer's.

    Raises `ModelError` where there is none.
    """
    generation = getattr(model, "generation_config", None)
    ids = getattr(generation, "eos_token_id", None)
    if ids is None:
        ids = tokenizer.eos_token_id
    if ids is None:
        raise ModelError(
            f"{model.config.name_or_path or type(model).__name__}: no token ends a response",
            hint="set eos_token_id in generation_config.json, or eos_token in tokenizer_config.json",
        )
    return (int(ids),) if isinstance(ids, int) else tuple(int(each) for each in ids)


def load_tokenizer(model: str) -> "PreTrainedTokenizerBase":
    """A model's tokenizer without its weights, pad token set, with a chat template as `load_policy` gives it one.

    Raises `ModelError` where it cannot be loaded.
    """
    tokenizer: PreTrainedTokenizerBase = _load_tokenizer(model)
    if not tokenizer.chat_template:
        _warn_of_plain_template(model)
        tokenizer.chat_template = plain_chat_template()
    return tokenizer


def _load_tokenizer(model: str) -> Any:
    where, is_local = locate(model)
    try:
        tokenizer = from_disk_first(AutoTokenizer.from_pretrained, where, is_local)
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise ModelError(
            f"{model}: cannot load its tokenizer: {first_line(error)}", hint=HINT_FOLDER
        ) from error
    if tokenizer.pad_token is None:
        tokenizer.pad_token = tokenizer.eos_token or tokenizer.convert_ids_to_tokens(0)
    tokenizer.chat_template = single_chat_template(tokenizer, model)
    return tokenizer


@cache  # a run loads its model once a stage
def _warn_of_plain_template(model: str) -> None:
    _logger.warning(
        "%s: its tokenizer has no chat template; it gets a plain one, `User: … Assistant: …` (docs/models.md)", model
    )


@contextmanager
def _attention_errors(attention: Attention | None) -> Iterator[None]:
    """Within, what is said of an attention that cannot be used here is a `ModelError` about it."""
    try:
        yield
    except ModelError as error:
        cause = error.__cause__
        if attention is None or not isinstance(cause, ImportError | ValueError) or not _is_of_attention(cause):
            raise
        raise ModelError(
            f"attention: got {attention!r}, which cannot be used here: {first_line(cause)}",
            hint="install what it needs, or leave it to transformers with `attention: null`",
        ) from cause


def _is_of_attention(error: BaseException) -> bool:
    return any(word in str(error).lower() for word in ("attention", "attn", "flash"))


def _in_4_bits(dtype: Dtype, where: torch.device) -> dict[str, Any]:
    check_quantization(where)
    return {"quantization_config": four_bits(dtype), "device_map": {"": where}}


def check_quantization(where: torch.device) -> None:
    """Raises `ModelError` where `quantization: 4bit` cannot be had on the device."""
    if where.type != "cuda":
        raise ModelError(
            f"quantization: got '4bit' on the device {where.type!r}, allowed is CUDA",
            hint="use a machine with an NVIDIA GPU, or leave `quantization` out",
        )
    if not is_bitsandbytes_available():
        raise ModelError(
            "quantization: got '4bit', which needs the package bitsandbytes",
            hint="pip install 'rheostat[quantization]'",
        )


def four_bits(dtype: Dtype) -> BitsAndBytesConfig:
    """NF4 with doubly quantised scales, computing in `dtype`, as QLoRA has it (arXiv 2305.14314)."""
    return BitsAndBytesConfig(
        load_in_4bit=True,
        bnb_4bit_quant_type="nf4",
        bnb_4bit_use_double_quant=True,
        bnb_4bit_compute_dtype=_DTYPES[dtype],
    )


def _load_model(
    from_pretrained: Callable[..., Any],
    model: str,
    dtype: Dtype,
    how: Mapping[str, Any] | None = None,
    *,
    may_lack: tuple[str, ...] = (),
) -> Any:
    where, is_local = locate(model)
    try:
        read = partial(
            from_pretrained, dtype=_DTYPES[dtype], use_safetensors=True, output_loading_info=True, **(how or {})
        )
        loaded, info = from_disk_first(read, where, is_local)
    except (OSError, ValueError, KeyError, RuntimeError, ImportError, SafetensorError) as error:
        raise ModelError(
            f"{model}: cannot load the model: {first_line(error)}", hint=HINT_FOLDER
        ) from error
    missing = sorted(key for key in info["missing_keys"] if not key.startswith(may_lack))
    if missing:
        shown = ", ".join(missing[:3]) + (f" and {len(missing) - 3} more" if len(missing) > 3 else "")
        raise ModelError(
            f"{model}: its files lack weights of a {type(loaded).__name__}: {shown}",
            hint="a chat model needs a causal language model, a reward a trained sequence classifier",
        )
    return loaded


def _merge_adapter(model: Any, adapter: Path) -> Any:
    needed = ("adapter_config.json", "adapter_model.safetensors")
    if not all((adapter / name).is_file() for name in needed):
        raise ModelError(
            f"{adapter}: not a PEFT adapter in safetensors",
            hint="give a folder with adapter_config.json and adapter_model.safetensors",
        )
    from peft import PeftModel

    try:
        with quiet(), without_deprecations():
            return PeftModel.from_pretrained(model, adapter).merge_and_unload()
    except (ValueError, KeyError, RuntimeError, SafetensorError) as error:
        raise ModelError(
            f"{adapter}: does not fit the model: {first_line(error)}", hint="use the model it was trained on"
        ) from error
