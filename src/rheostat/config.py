"""What a recipe may say: one frozen model a stage, every field documented once, beside itself.

How a recipe is read, overridden and refused: `recipe.py`.
"""

from collections.abc import Mapping
from typing import Annotated, Any, Literal

from pydantic import (
    AfterValidator,
    ConfigDict,
    Discriminator,
    Field,
    Tag,
    field_validator,
    model_validator,
)

from rheostat import plugins
from rheostat.config_blocks import Block, GivenSources, known
from rheostat.config_blocks import Count as Count
from rheostat.config_blocks import Level as Level
from rheostat.config_blocks import Probability as Probability
from rheostat.config_blocks import RewardConfig as RewardConfig
from rheostat.config_blocks import SourceConfig as SourceConfig
from rheostat.config_blocks import Sources as Sources
from rheostat.config_blocks import expand_reward as expand_reward
from rheostat.config_blocks import expand_rewards as expand_rewards
from rheostat.config_fields import BY_DIAL, EVERY_DIAL
from rheostat.config_mixing import MixingConfig as MixingConfig
from rheostat.config_rounds import RoundsConfig as RoundsConfig
from rheostat.config_suite import SuiteConfig as SuiteConfig
from rheostat.config_training import CounterfactualConfig as CounterfactualConfig
from rheostat.config_training import LoraConfig as LoraConfig
from rheostat.config_training import TrainConfig as TrainConfig
from rheostat.control import LEVELS, ControlFormat, level_text
from rheostat.errors import did_you_mean
from rheostat.method_name import MethodName

Dtype = Literal["float32", "bfloat16", "float16"]
Seed = Annotated[int, Field(ge=0, lt=2**32)]  # what NumPy's generators take
Attention = Literal["eager", "sdpa", "flash_attention_2", "flash_attention_3", "flex_attention"]
Quantization = Literal["4bit"]


def _ascending(levels: list[float]) -> list[float]:
    if sorted(set(levels)) != levels:
        raise ValueError(f"got {levels}, allowed are distinct levels in ascending order")
    finer = [level for level in levels if float(level_text(level)) != level]
    if finer:
        raise ValueError(f"got {finer[0]!r}, allowed are levels of at most four decimals")
    return levels


LevelList = Annotated[list[Level], Field(min_length=2), AfterValidator(_ascending)]
LevelsOfDials = Annotated[
    Annotated[LevelList, Tag(EVERY_DIAL)] | Annotated[dict[str, LevelList], Tag(BY_DIAL)],
    Discriminator(lambda value: BY_DIAL if isinstance(value, Mapping) else EVERY_DIAL),
]


class PromptsConfig(Block):
    """Where the prompts come from: each split's source, a list of them, or sources with weights (docs/prompts.md)."""

    train: GivenSources = Field(description="prompts to self-generate from")
    optimization: GivenSources | None = Field(
        None, description="held-out prompts of the training distribution; without it, `held_out` of `train`"
    )
    generalization: GivenSources | None = Field(
        None, description="other prompts, for the generalization evaluation; without it, that one is left out"
    )
    mix: Literal["size", "even"] = Field(
        "size",
        description="how several sources without weights are mixed: each by its `size`, or `even`, a prompt of each "
        "in turn until the smaller ones end",
    )
    held_out: Annotated[float, Field(gt=0, lt=1)] = Field(
        0.1, description="share of `train` held out, by content hash, where `optimization` is absent"
    )
    near_duplicates: Annotated[float, Field(gt=0, le=1)] | None = Field(
        0.85,
        description="a training prompt this like an evaluation prompt or an earlier one (Jaccard index of their "
        "runs of five characters) is left out; null keeps all; prompts of the pocket world are not compared with "
        "each other",
    )
    train_limit: Count | None = Field(None, description="use at most so many training prompts")
    evaluation_limit: Count | None = Field(None, description="use at most so many prompts in each evaluation")
    calibration: GivenSources | None = Field(
        None,
        description="prompts on which the dials are calibrated; without it, those that the limits of the evaluation "
        "and of the training leave",
    )
    calibration_limit: Annotated[int, Field(ge=0)] = Field(
        16, description="use at most so many of them; 0 leaves the dials uncalibrated"
    )
    strict: bool = Field(False, description="stop at a broken line instead of counting and skipping it")


class EngineConfig(Block):
    """How the untuned model's text is generated; besides `kind`, the options of its kind (docs/engines.md)."""

    model_config = ConfigDict(extra="allow")

    kind: str = Field(
        "transformers", description="a file in engines/: `transformers` in process, `openai` by a server"
    )

    @field_validator("kind")
    @classmethod
    def _exists(cls, kind: str) -> str:
        return known("engines", kind)

    @property
    def given_options(self) -> dict[str, Any]:
        """The options of its kind, as the recipe gives them."""
        return dict(self.model_extra or {})


class GenerateConfig(Block):
    """Self-generation: N samples a prompt at temperature 1."""

    samples: Count = Field(16, description="responses a prompt (N)")
    temperature: Annotated[float, Field(ge=0)] = Field(1.0, description="0 is greedy")
    top_p: Probability = Field(1.0, description="nucleus sampling")
    max_tokens: Count = Field(96, description="longest response, in tokens")
    shard_prompts: Count = Field(64, description="prompts a shard: what a killed run loses at most")


class PairsConfig(Block):
    """Which two responses to a prompt make a pair, for objectives that learn from preferences."""

    per_prompt: Count = Field(8, description="pairs a prompt, drawn from those that differ enough")
    minimum_gap: Level = Field(
        0.1, description="how far the two must differ in what orders them, a calibrated score in [0, 1]"
    )


class DistilConfig(Block):
    """MOEC, the distillation of the scored pool into training examples."""

    per_corner: Count = Field(
        2, description="responses kept per prompt and corner of the attribute cube, nearest first"
    )
    per_extreme: Count = Field(1, description="best and worst responses kept per prompt and attribute")
    minimum_contrast: Level = Field(
        0.25, description="drop a prompt whose kept responses span less than this on every attribute"
    )
    maximum_cell_share: Probability = Field(
        0.12, description="largest share of the examples of any one control cell"
    )
    keep_truncated: bool = Field(
        False,
        description="learn responses cut off at max_tokens too, without an end: for a model that seldom ends one",
    )
    raw_decimals: Annotated[int, Field(ge=1, le=4)] = Field(
        2, description="decimals of the unquantised scores of `+raw` and `+pool` in the control"
    )
    pairs: PairsConfig = PairsConfig()


class EvaluateConfig(Block):
    """The grid evaluation of every method."""

    temperature: Annotated[float, Field(ge=0)] = Field(0.7, description="the same for every method")
    top_p: Probability = Field(1.0, description="nucleus sampling")
    max_tokens: Count = Field(96, description="longest response, in tokens")
    rerank_samples: Count = Field(16, description="candidates of the reranking methods (N)")
    reachable_samples: Count = Field(
        64, description="base samples a prompt that say how near any choice among them can come"
    )
    forged_prompts: Annotated[int, Field(ge=0)] = Field(
        16, description="prompts to which forged controls are added, to see whether they change an answer; 0 for none"
    )
    shard_prompts: Count = Field(32, description="prompts a shard")
    bootstrap: Annotated[int, Field(ge=100)] = Field(
        1000, description="resamples over prompts behind an interval"
    )


class ExecutorConfig(Block):
    """Where shards are computed; besides `kind`, the options of its kind (docs/scale.md). No result depends on it."""

    model_config = ConfigDict(extra="allow")

    kind: str = Field("local", description="a file in executors/")

    @field_validator("kind")
    @classmethod
    def _exists(cls, kind: str) -> str:
        return known("executors", kind)

    @property
    def given_options(self) -> dict[str, Any]:
        """The options of its kind, as the recipe gives them."""
        return dict(self.model_extra or {})


def _parsed(name: str) -> str:
    """A method's name that can be parsed; raises `ValueError`."""
    MethodName.parse(name)
    return name


class RunConfig(Block):
    """A whole run."""

    model: str = Field(description="the aligned chat model: a Hugging Face directory or id, or `pocket:chat`")
    prompts: PromptsConfig
    rewards: dict[str, RewardConfig] = Field(description="who scores each attribute; the keys are the dials")
    judges: dict[str, dict[str, RewardConfig]] = Field(
        default_factory=dict,
        description="parties that took no part in labelling, for the generalization evaluation",
    )
    methods: list[Annotated[str, AfterValidator(_parsed)]] = Field(
        ["base", "prompting", "reranking", "clm", "exmate"],
        min_length=1,
        description="what to compare: files in methods/ (base, prompting, soups, …) and trained objectives, files in "
        "objectives/ (exmate, dpo, rlhf, …), which take suffixes: +raw, +moec, +pool and +round2 where they learn from "
        "examples, a dial's name and +fdc where from pairs, +x0.25, +from_OBJECTIVE and +reranking all; "
        "docs/methods.md has every name and suffix",
    )
    method_options: dict[str, dict[str, Any]] = Field(
        default_factory=dict, description="options of a method, by its file's name in methods/"
    )
    levels: LevelsOfDials = Field(
        list(LEVELS),
        description="the levels of every dial, or a list for each dial that is to have others: "
        "{safety: [0.5, 0.75, 1]} never trains, asks for or offers less",
    )
    seed: Seed = Field(0, description="of every draw of the run")
    dtype: Dtype = Field("float32", description="of all models' weights")
    attention: Attention | None = Field(
        None, description="how the chat model computes attention; null: what transformers picks for it"
    )
    quantization: Quantization | None = Field(
        None, description="`4bit`: the chat model's weights in 4 bits by bitsandbytes, on CUDA; trains adapters only"
    )
    device: str = Field("auto", description="`auto`, `cpu`, `cuda`, `cuda:1`, `mps`")
    batch_tokens: Count = Field(16384, description="most tokens in flight in generation and scoring")
    executor: ExecutorConfig = Field(
        ExecutorConfig(),
        description="where generation, scoring and evaluation run: `local`, or `ray`, a cluster (docs/scale.md)",
    )
    engine: EngineConfig = EngineConfig()
    generate: GenerateConfig = GenerateConfig()
    distil: DistilConfig = DistilConfig()
    train: TrainConfig = TrainConfig()
    rounds: RoundsConfig = RoundsConfig()
    evaluate: EvaluateConfig = EvaluateConfig()
    suite: SuiteConfig | None = Field(
        None, description="absent: no suite of harmful and harmless prompts; evaluation does without"
    )
    mixing: MixingConfig | None = Field(None, description="absent: no method may have `+fdc`")

    @field_validator("prompts", mode="before")
    @classmethod
    def _prompts_shorthand(cls, value: Any) -> Any:
        return {"train": value} if isinstance(value, str) else value

    @field_validator("executor", mode="before")
    @classmethod
    def _executor_shorthand(cls, value: Any) -> Any:
        return {"kind": value} if isinstance(value, str) else value

    @field_validator("rewards", mode="before")
    @classmethod
    def _reward_shorthand(cls, value: Any) -> Any:
        return expand_rewards(value)

    @field_validator("engine", mode="before")
    @classmethod
    def _engine_shorthand(cls, value: Any) -> Any:
        return expand_engine(value)

    @field_validator("judges", mode="before")
    @classmethod
    def _judge_shorthand(cls, value: Any) -> Any:
        return {name: expand_rewards(each) for name, each in value.items()} if isinstance(value, Mapping) else value

    @field_validator("rewards")
    @classmethod
    def _dials_exist(cls, rewards: dict[str, RewardConfig]) -> dict[str, RewardConfig]:
        if not rewards:
            raise ValueError("got no reward, allowed is one per attribute")
        for name in rewards:
            known("attributes", name)
        return rewards

    @field_validator("method_options")
    @classmethod
    def _methods_of_options_exist(cls, options: dict[str, dict[str, Any]]) -> dict[str, dict[str, Any]]:
        for name in options:
            known("methods", name)
        return options

    @field_validator("methods")
    @classmethod
    def _methods_differ(cls, methods: list[str]) -> list[str]:
        if len(set(methods)) < len(methods):
            raise ValueError(f"got {methods}, allowed is each method once")
        return methods

    @model_validator(mode="after")
    def _levels_of_dials(self) -> "RunConfig":
        for name in self.levels if isinstance(self.levels, dict) else ():
            if name not in self.rewards:
                dials = list(self.rewards)
                raise ValueError(
                    f"levels: got {name!r}, allowed are {', '.join(dials)}{did_you_mean(name, dials)}"
                )
        return self

    @model_validator(mode="after")
    def _judges_cover(self) -> "RunConfig":
        for judge, rewards in self.judges.items():
            if set(rewards) != set(self.rewards):
                raise ValueError(
                    f"judges.{judge}: got {', '.join(sorted(rewards))}, allowed is exactly "
                    f"{', '.join(sorted(self.rewards))}"
                )
        return self

    @model_validator(mode="after")
    def _suite_fits(self) -> "RunConfig":
        if self.suite is not None:
            parties = ["reward", *self.judges]
            if self.suite.dial not in self.rewards:
                raise ValueError(f"suite.dial: got {self.suite.dial!r}, allowed are {', '.join(self.rewards)}")
            if self.suite.judge not in parties:
                raise ValueError(f"suite.judge: got {self.suite.judge!r}, allowed are {', '.join(parties)}")
        return self

    @model_validator(mode="after")
    def _quantized_weights_stay(self) -> "RunConfig":
        if self.quantization is not None and self.train.lora is None:
            raise ValueError(
                f"train.lora: got null with quantization: {self.quantization}, allowed are auto and a block of keys; "
                "weights of 4 bits cannot be trained themselves"
            )
        return self

    @property
    def loading(self) -> dict[str, str]:
        """How the chat model is loaded where that is not the default: what its stages depend on, beside `dtype`."""
        given = {"attention": self.attention, "quantization": self.quantization}
        return {key: value for key, value in given.items() if value is not None}

    @property
    def control_format(self) -> ControlFormat:
        """The control text of this run's attributes and levels."""
        levels = self.levels
        return ControlFormat(
            tuple(plugins.attribute(name) for name in self.rewards),
            {name: tuple(levels.get(name, LEVELS)) for name in self.rewards}
            if isinstance(levels, dict)
            else tuple(levels),
        )

    @property
    def method_names(self) -> tuple[MethodName, ...]:
        """The methods, parsed."""
        return tuple(MethodName.parse(name) for name in self.methods)


def expand_engine(engine: Any) -> Any:
    """The engine as a block: a text alone is its kind."""
    return {"kind": engine} if isinstance(engine, str) else engine
