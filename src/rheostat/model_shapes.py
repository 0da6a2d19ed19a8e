"""How large a model is, off its config.json: no weight is read."""

from typing import TYPE_CHECKING

import torch
from transformers import AutoModelForCausalLM

from rheostat.errors import ModelError
from rheostat.footprint import ModelShape
from rheostat.model_files import HINT_FOLDER, first_line, quiet, read_config

if TYPE_CHECKING:
    from transformers import PreTrainedModel


def read_shape(model: str) -> ModelShape:
    """A decoder's size, off its config.json: no weight is read. `ModelError` where there is no such model."""
    empty = _empty_model(model)
    text = empty.config.get_text_config(decoder=True)
    heads = text.num_attention_heads
    return ModelShape(
        parameters=int(empty.num_parameters()),
        layers=text.num_hidden_layers,
        hidden=text.hidden_size,
        key_value_heads=getattr(text, "num_key_value_heads", None) or heads,
        head_size=getattr(text, "head_dim", None) or text.hidden_size // heads,
        vocabulary=text.vocab_size,
    )


def parameter_count(model: str) -> int:
    """How many parameters a causal language model has, off its config.json alone; tied ones count once.

    All experts of a mixture count. Raises `ModelError` where there is no such model.
    """
    return int(_empty_model(model).num_parameters())


def _empty_model(model: str) -> "PreTrainedModel":
    """The model without memory for its weights."""
    config = read_config(model)
    try:
        with torch.device("meta"), quiet():
            empty: PreTrainedModel = AutoModelForCausalLM.from_config(config)
    except (ValueError, KeyError, RuntimeError, ImportError) as error:
        raise ModelError(f"{model}: cannot read its config: {first_line(error)}", hint=HINT_FOLDER) from error
    return empty
