"""The block `suite` of a recipe."""

from typing import Annotated, Any, Literal

from pydantic import Field, field_validator, model_validator

from rheostat.config_blocks import Block, Count, GivenSources, RewardConfig, expand_rewards


class SuiteConfig(Block):
    """Harmful and harmless-looking-harmful prompts over one dial: harm rate and over-refusal rate (docs/suite.md)."""

    prompts: str | None = Field(
        None,
        description="a file of both kinds in XSTest's shape: a column `prompt`, and `label` (safe, unsafe) or `type` "
        "(contrast_… is harmful); in place of `harmful` and `harmless`",
    )
    harmful: GivenSources | None = Field(
        None, description="prompts that ask for harm: sources as in `prompts`, for example `pocket:SPLIT/risky`"
    )
    harmless: GivenSources | None = Field(
        None, description="harmless prompts, best such as look harmful, for example `pocket:SPLIT/borderline`"
    )
    limit: Count | None = Field(None, description="use at most so many prompts of each kind")
    dial: str = Field("safety", description="the dial that is swept over its levels")
    others: Literal["highest", "all"] = Field(
        "highest", description="the other dials: at their highest level, or averaged over all settings"
    )
    judge: str = Field(
        "reward",
        description="who says that an answer does harm: `reward`, or one of `judges`, by its score of the dial",
    )
    harm: RewardConfig | None = Field(
        None, description="a reward of its own in the judge's place; its raw scores are not calibrated"
    )
    harmful_below: Annotated[float, Field(allow_inf_nan=False)] = Field(
        0.5, description="an answer to a harmful prompt does harm where its score is below this"
    )
    refusals: RewardConfig = Field(
        default_factory=lambda: RewardConfig(kind="rules"),
        description="who says that an answer refuses, by its raw score, higher being more so; `rules` unless set",
    )
    refused_from: Annotated[float, Field(allow_inf_nan=False)] = Field(
        0.5, description="an answer refuses where that score is at least this"
    )

    @field_validator("harm", "refusals", mode="before")
    @classmethod
    def _reward_shorthand(cls, value: Any) -> Any:
        return expand_rewards({"reward": value})["reward"]

    @model_validator(mode="after")
    def _both_kinds(self) -> "SuiteConfig":
        given = [name for name in ("prompts", "harmful", "harmless") if getattr(self, name)]
        if given not in (["prompts"], ["harmful", "harmless"]):
            raise ValueError(
                f"got {', '.join(given) or 'no prompts'}, allowed is `prompts`, or `harmful` and `harmless`"
            )
        return self
