"""What several blocks of a recipe are made of: numbers, sources of prompts, rewards."""

from collections.abc import Mapping
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Discriminator, Field, Tag, field_validator

from rheostat import plugins
from rheostat.errors import did_you_mean

Level = Annotated[float, Field(ge=0, le=1, allow_inf_nan=False)]
Probability = Annotated[float, Field(gt=0, le=1, allow_inf_nan=False)]
Count = Annotated[int, Field(ge=1)]
_PYTHON = "python:"


class Block(BaseModel):
    """A block of keys: frozen, and without others."""

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)


class SourceConfig(Block):
    """One source of prompts with what there is to say about it (docs/prompts.md)."""

    source: str = Field(
        description="a file, a folder of a dataset, `hf:NAME` of the Hugging Face Hub, or `pocket:SPLIT` (or "
        "`pocket:SPLIT/KIND`: harmless, borderline, risky)"
    )
    weight: Annotated[float, Field(gt=0, allow_inf_nan=False)] | None = Field(
        None,
        description="prompts of this source for each of one of weight 1, which is what the others have; where no "
        "source has one, `mix` says",
    )
    column: str | None = Field(
        None, description="the column that holds the prompt; without it, the usual ones are tried"
    )
    name: str | None = Field(None, description="the configuration of a dataset that has several")
    split: str | None = Field(None, description="the dataset's split; without it `train`, or the only one")
    revision: str | None = Field(None, description="the commit or tag of a dataset of the Hub")
    limit: Count | None = Field(
        None,
        description="at most so many prompts of it: a sample by content hash; of `hf:` the first, without loading "
        "the rest",
    )


def _kind_of_sources(value: Any) -> str:
    """Which of the forms of `Sources` a value is meant to be, so that only that one's faults are told."""
    if isinstance(value, list | tuple):
        return "[list]"
    return "[block]" if isinstance(value, Mapping | SourceConfig) else "[text]"


_Source = Annotated[
    Annotated[str, Tag("[text]")] | Annotated[SourceConfig, Tag("[block]")], Discriminator(_kind_of_sources)
]
Sources = str | SourceConfig | list[str | SourceConfig]
GivenSources = Annotated[
    Annotated[str, Tag("[text]")]
    | Annotated[SourceConfig, Tag("[block]")]
    | Annotated[list[_Source], Tag("[list]")],
    Discriminator(_kind_of_sources),
]


class RewardConfig(Block):
    """Who scores one attribute; besides these keys, the options of its kind (docs/rewards.md)."""

    model_config = ConfigDict(extra="allow")

    kind: str = Field("classifier", description="a file in rewards/")
    model: str | None = Field(None, description="a Hugging Face directory or id, or `pocket:NAME`")
    higher_is_better: bool = Field(
        True, description="false where a higher raw score means less of the attribute"
    )
    calibration: Literal["quantile", "sigmoid", "identity"] = Field(
        "quantile",
        description="the monotone map from raw scores to [0, 1], fitted on the self-generated pool",
    )

    @field_validator("kind")
    @classmethod
    def _exists(cls, kind: str) -> str:
        return known("rewards", kind)

    @property
    def given_options(self) -> dict[str, Any]:
        """The options of its kind, as the recipe gives them."""
        return dict(self.model_extra or {})


def expand_rewards(rewards: Any) -> Any:
    """Rewards as blocks: a text alone is a classifier's model, `python:MODULE:FUNCTION` a callable."""
    if not isinstance(rewards, Mapping):
        return rewards
    return {name: expand_reward(value) for name, value in rewards.items()}


def expand_reward(value: Any) -> Any:
    """One reward as a block."""
    if not isinstance(value, str):
        return value
    if value.startswith(_PYTHON):
        return {"kind": "python", "function": value.removeprefix(_PYTHON)}
    return {"model": value}


def known(kind: plugins.Kind, name: str) -> str:
    """A plug-in's name that exists; raises `ValueError` with the nearest."""
    names = plugins.named_methods() if kind == "methods" else plugins.available(kind)
    if name not in names:
        raise ValueError(f"got {name!r}, allowed are {', '.join(names)}{did_you_mean(name, names)}")
    return name
