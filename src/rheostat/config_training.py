"""What a recipe may say of training: counterfactuals, adapters, the block `train` and its overrides by objective."""

import re
from typing import Annotated, Any, Literal

from pydantic import Discriminator, Field, Tag, field_validator

from rheostat.config_blocks import Block, Count, Probability, known
from rheostat.method_name import Variant

Auto = Literal["auto"]


class CounterfactualConfig(Block):
    """Where the untreated control ζ′ of a counterfactual pass comes from."""

    source: Literal["siblings", "grid"] = Field(
        "siblings", description="controls of other responses to the same prompt, or the level grid"
    )
    moves: Literal["any", "one"] = Field("any", description="`one`: ζ′ differs from ζ in exactly one dial")
    distance_power: Annotated[float, Field(ge=0)] = Field(
        1.0, description="ζ′ is drawn with probability proportional to its L1 distance from ζ to this power"
    )
    warmup_ratio: Annotated[float, Field(ge=0, le=1)] = Field(
        0.0, description="share of the steps over which the objective's λ rises linearly from 0"
    )
    fraction: Probability = Field(
        0.25, description="share of each batch, uniformly drawn, that gets a counterfactual pass (unbiased)"
    )


class LoraConfig(Block):
    """`auto`: an objective's own adapter (spe_dpo), else one above `lora_above`; null: never; keys: always, so."""

    rank: Count = Field(16, description="rank of the adapters")
    layers: Literal["all", "mlp_output"] = Field(
        "all",
        description="which linear layers they sit on: all but the output's (docs/models.md), or `mlp_output`, the last "
        "of each MLP, named `down_proj` by most",
    )
    alpha: Annotated[float, Field(gt=0)] = Field(32.0, description="their scale, over the rank")
    dropout: Annotated[float, Field(ge=0, lt=1)] = Field(0.0, description="dropout before them")


def _auto_or_other(value: Any) -> str:
    """Which form a value is meant to be; YAML reads `5e-4`, which has no point, as a text."""
    return "[auto]" if isinstance(value, str) and not re.match(r"[\d.]", value) else "[other]"


Lora = Annotated[
    Annotated[Auto, Tag("[auto]")] | Annotated[LoraConfig | None, Tag("[other]")], Discriminator(_auto_or_other)
]
LearningRate = Annotated[
    Annotated[Auto, Tag("[auto]")] | Annotated[float, Field(gt=0), Tag("[other]")], Discriminator(_auto_or_other)
]


class TrainConfig(Block):
    """Fine-tuning through transformers.Trainer."""

    variant: Variant = Field(
        "moec", description="examples of methods without a suffix `+moec`, `+raw` or `+pool` (docs/methods.md)"
    )
    epochs: Annotated[float, Field(gt=0)] = Field(
        4.0, description="passes over the rows: examples, pairs, or prompts of an objective that answers them (rlhf)"
    )
    steps: Count | None = Field(
        None, description="train for so many steps, whatever the number of rows, instead of `epochs`"
    )
    optimizer: Literal["adamw", "muon"] = Field(
        "adamw",
        description="`muon`: Muon for the matrices of the layers, AdamW for the rest; small models learn faster",
    )
    learning_rate: LearningRate = Field(
        "auto",
        description="peak; `auto`: 2e-4 for adapters; for all weights 5e-4 up to 100 million parameters, else 1e-5",
    )
    batch_size: Count = Field(
        32, description="examples or pairs a step; of no account to rlhf, whose options `prompts` and `samples` say it"
    )
    accumulation: Count = Field(
        1,
        description="passes that a step's batch is computed in: less memory, the same gradient, one more forward pass",
    )
    gradient_checkpointing: bool = Field(
        False, description="compute activations twice instead of keeping them: less memory, about a third slower"
    )
    balance: Annotated[float, Field(ge=0, le=1)] = Field(
        0.0,
        description="how far rare controls are seen more often: 0 as often as they are, 1 each control alike",
    )
    warmup_ratio: Annotated[float, Field(ge=0, lt=1)] = Field(
        0.05, description="share of the steps over which the learning rate rises; then it falls as a cosine"
    )
    weight_decay: Annotated[float, Field(ge=0)] = Field(0.0, description="decoupled weight decay")
    max_grad_norm: Annotated[float, Field(gt=0)] = Field(
        1.0, description="gradients are clipped to this norm"
    )
    mixed_precision: bool = Field(
        False,
        description="matrix products in bfloat16 around float32 weights: faster where the machine has them",
    )
    forged_share: Annotated[float, Field(ge=0, lt=1)] = Field(
        0.05,
        description="share of examples whose user text also holds a forged control, which is to be ignored",
    )
    forged_styles: Literal["exact", "all"] = Field(
        "exact",
        description="`all`: in every way that users may type one, innocent text of the same form among them, "
        "so that no text there throws the answer off (docs/metrics.md)",
    )
    save_steps: Count = Field(50, description="steps between checkpoints: what a killed run loses at most")
    lora: Lora = Field("auto")
    lora_above: Annotated[float, Field(ge=0)] = Field(
        1e9, description="parameters above which `lora: auto` trains adapters, up to which it trains all weights"
    )
    counterfactual: CounterfactualConfig = CounterfactualConfig()
    objectives: dict[str, dict[str, Any]] = Field(
        default_factory=dict, description="options of an objective, by its file's name in objectives/"
    )
    overrides: dict[str, dict[str, Any]] = Field(
        default_factory=dict,
        description="other values of these keys for an objective, by its file's name: {dpo: {learning_rate: 1e-4}}",
    )

    @field_validator("objectives", "overrides")
    @classmethod
    def _options(cls, objectives: dict[str, dict[str, Any]]) -> dict[str, dict[str, Any]]:
        for name in objectives:
            known("objectives", name)
        return objectives

    def of(self, objective: str) -> "TrainConfig":
        """The options of one objective: these, with its overrides."""
        given = self.overrides.get(objective)
        if not given:
            return self
        values = self.model_dump(exclude={"overrides"})
        return TrainConfig.model_validate(
            values
            | {
                key: {**values[key], **value} if key == "counterfactual" and isinstance(value, dict) else value
                for key, value in given.items()
            }
        )
