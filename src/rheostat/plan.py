"""What a run will take, before anything is spent: tokens, seconds, memory, disk.

Either measured, by a rehearsal on this machine (`rehearsal.py`) scaled to the whole run; or reckoned, for a machine
that is not here, from the model's shape, the rate of its matrix products, and the shares of that rate that our own
benchmarks reach. Reckoned tokens are upper bounds: every response as long as it may be.
"""

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Literal

from rheostat import plugins
from rheostat.collect import read_splits
from rheostat.config import LoraConfig, RunConfig, TrainConfig
from rheostat.evaluate import EVALUATIONS, scorers_of
from rheostat.footprint import ModelShape
from rheostat.footprint import Training as TrainingKind
from rheostat.forgery import ATTEMPTS, FORGED
from rheostat.method_name import MethodName
from rheostat.model_shapes import read_shape
from rheostat.plugins import OnlineOptions
from rheostat.progress import ProgressDisplay, null_progress
from rheostat.prompts import CALIBRATION
from rheostat.recipe import objective_options
from rheostat.rehearsal import Miniature, Rehearsed, Task, rehearse
from rheostat.score import judged_stride
from rheostat.suite import settings
from rheostat.suite_prompts import KINDS as SUITE_KINDS
from rheostat.suite_prompts import STAGE as SUITE
from rheostat.suite_prompts import read_suite
from rheostat.train import task_label
from rheostat.training_plan import settled
from rheostat.trainings import Training, models_of, trainings

UTILISATION = {"generate": 0.20, "score": 0.64, "train": 0.57}
"""Shares of the rate of matrix products that the hot paths reached on two CPU cores (benchmarks/results/)."""

_PROMPT_TOKENS = 128
_DISK_BYTES_A_TOKEN = 2.0
_REPORT_SECONDS = 10.0
_CHECKPOINT_COPIES = 3
"""Weights and AdamW's two moments."""

Kind = Literal["measured", "reckoned"]


@dataclass(frozen=True, slots=True)
class Step:
    """A part of the run: what it does, tokens that it generates or trains on (0: not counted), seconds."""

    name: str
    work: str
    tokens: int
    seconds: float


@dataclass(frozen=True, slots=True)
class Plan:
    """The parts of a run, its other seconds (loading), and bytes of memory and disk at the most."""

    kind: Kind
    steps: tuple[Step, ...]
    other_seconds: float
    memory: int
    disk: int

    @property
    def seconds(self) -> float:
        """All seconds."""
        return sum(step.seconds for step in self.steps) + self.other_seconds

    @property
    def tokens(self) -> int:
        """All tokens."""
        return sum(step.tokens for step in self.steps)


def prompt_counts(config: RunConfig) -> dict[str, int]:
    """How many prompts each split has. Raises `PromptFileError`, `InputError`."""
    return {name: len(prompts) for name, prompts in read_splits(config.prompts).prompts.items()}


def suite_count(config: RunConfig) -> int:
    """How many prompts the suite has, of both kinds; 0 without one. Raises `PromptFileError`."""
    if config.suite is None:
        return 0
    return sum(len(prompts[: config.suite.limit]) for prompts in read_suite(config).values())


def measured_plan(
    config: RunConfig, size: Miniature | None = None, *, progress: ProgressDisplay = null_progress
) -> Plan:
    """Rehearse the recipe here and scale what it took; raises whatever would stop the run."""
    counts = prompt_counts(config)
    return scaled(config, counts, rehearse(config, size or Miniature(), progress=progress))


def scaled(config: RunConfig, counts: Mapping[str, int], found: Rehearsed) -> Plan:
    """A rehearsal's figures at the size of the whole run, whose splits have `counts` prompts."""
    scale = _Scale(config, counts, found)
    steps = [scale.step(task) for task in found.tasks]
    inside = sum(task.seconds for task in found.tasks)
    return Plan(
        "measured",
        tuple(steps),
        other_seconds=max(0.0, found.seconds - inside),
        memory=found.peak_memory + _larger_flight(config, counts, found),
        disk=scale.disk(),
    )


class _Scale:
    """How much larger each part of the run is than it was in the rehearsal."""

    def __init__(self, config: RunConfig, counts: Mapping[str, int], found: Rehearsed) -> None:
        self._config = config
        self._found = found
        small: dict[str, int] = {name: int(found.summaries["prompts"][name]) for name in counts}
        self._prompts = {name: counts[name] / small[name] for name in counts if small[name]}
        self._trainings = {task_label(each, config): each for each in trainings(config)}

    def step(self, task: Task) -> Step:
        """A task of the rehearsal as it will be in the run."""
        ratio = self._ratio(task)
        total = round(task.total * ratio)
        fixed = task.unit in ("page",)
        seconds = task.seconds if fixed else task.seconds_each * total
        if task.unit == "steps":
            seconds += max(0.0, task.seconds - task.seconds_each * task.total)
        return Step(task.label, f"{total:,} {task.unit}", round(self._tokens(task) * ratio), seconds)

    def disk(self) -> int:
        """Bytes at the most: the shards by number of prompts, models as they are, one checkpoint beside them."""
        written = self._found.bytes_written
        sizes = {
            "prompts": self._prompts["train"],
            "generate": self._prompts["train"],
            "score": self._prompts["train"],
            "distil": self._prompts["train"],
            "rounds": self._prompts["train"],
            "evaluate": self._prompts["optimization"],
            "forgery": self._prompts["optimization"],
        }
        if "suite" in written:
            sizes["suite"] = self._suite()
        models = len(self._trainings)
        checkpoint = written.get("train", 0) / models * _CHECKPOINT_COPIES if models else 0
        return round(sum(size * sizes.get(name, 1.0) for name, size in written.items()) + checkpoint)

    def _ratio(self, task: Task) -> float:
        if task.unit == "page":
            return 1.0
        if task.unit == "steps":
            return self._training(self._trainings[task.label])
        if task.label.startswith("calibrate "):
            small = int(self._found.summaries["generate"]["responses"])
            pool = round(small * self._prompts["train"])
            return math.ceil(pool / judged_stride(pool)) / math.ceil(small / judged_stride(small))
        if task.label.startswith("suite "):
            return self._suite()
        if task.label.startswith(f"{CALIBRATION} "):
            return self._config.prompts.calibration_limit / self._found.config.prompts.calibration_limit
        if task.label.startswith(f"{FORGED} "):
            return self._config.evaluate.forged_prompts / self._found.config.evaluate.forged_prompts
        for evaluation in EVALUATIONS:
            if task.label.startswith(f"{evaluation} ") and evaluation in self._prompts:
                return self._prompts[evaluation]
        return self._prompts["train"]

    def _suite(self) -> float:
        """Prompts of the whole suite over those of the rehearsal."""
        small = self._found.summaries[SUITE]
        return suite_count(self._config) / sum(int(small[kind]) for kind in SUITE_KINDS)

    def _training(self, training: Training) -> float:
        """Steps of the whole training over those of the rehearsal."""
        options, summary = training.options(self._config), self._found.summaries[training.stage]
        made = int(summary["steps"])
        if options.steps is not None:
            return options.steps / made
        rows = int(summary.get("prompts", summary.get("examples", 0))) * self._prompts["train"]
        each_step = int(summary.get("prompts_per_step", options.batch_size))
        return max(1.0, rows * options.epochs / each_step / made)

    def _tokens(self, task: Task) -> float:
        summaries = self._found.summaries
        if task.label == "generate":
            return float(summaries["generate"]["tokens"])
        if task.unit == "steps":
            return float(summaries[self._trainings[task.label].stage]["tokens"])
        evaluation, _, method = task.label.partition(" ")
        if evaluation == "generate":
            return float(summaries[f"rounds/{method}/generate"]["tokens"])
        stage = f"suite/{method}" if evaluation == "suite" else f"evaluate/{evaluation}/{method}"
        generated = float(summaries.get(stage, {}).get("generated_tokens", 0))
        is_shared = method == "reranking"  # a prompt's candidates serve all its controls
        cells = len(self._config.control_format.grid())
        if evaluation == "suite" and self._config.suite is not None:
            cells = len(settings(self._config.suite, self._config))
        return generated / cells if is_shared else generated


def _larger_flight(config: RunConfig, counts: Mapping[str, int], found: Rehearsed) -> int:
    """Bytes by which the rows in flight of full shards exceed the rehearsal's: the most of generation and evaluation.

    Twice the cache: while it grows it is there in both sizes.
    """
    shape = read_shape(config.model)
    small = found.summaries["prompts"]
    cells = len(config.control_format.grid())
    shards = (
        ("train", config.generate.shard_prompts, config.generate.samples, config.generate.max_tokens),
        ("optimization", config.evaluate.shard_prompts, cells, config.evaluate.max_tokens),
    )

    def flight(prompts: int, shard: int, rows_each: int, longest: int) -> int:
        rows = min(prompts, shard) * rows_each
        tokens = min(config.batch_tokens, rows * (longest + _PROMPT_TOKENS))
        return 2 * shape.generating(config.dtype, rows=tokens // (longest + _PROMPT_TOKENS), tokens=tokens)

    return max(
        0, *(flight(counts[split], *rest) - flight(int(small[split]), *rest) for split, *rest in shards)
    )


def reckoned_plan(config: RunConfig, *, rate: float) -> Plan:
    """From shapes alone, for a device whose matrix products run at `rate` FLOP/s; nothing is loaded but config.json."""
    counts = prompt_counts(config)
    shape = read_shape(config.model)
    steps = tuple(_reckoned(config, counts, shape, rate))
    longest = _PROMPT_TOKENS + config.generate.max_tokens
    rows = max(1, config.batch_tokens // longest)
    batch = config.train.batch_size / config.train.accumulation
    memory = max(
        shape.generating(config.dtype, rows=rows, tokens=config.batch_tokens),
        shape.training(
            config.dtype,
            _how_trained(config, config.train, shape, None),
            tokens=round(batch * longest),
            response_tokens=round(batch * config.generate.max_tokens),
            checkpointing=config.train.gradient_checkpointing,
        ),
    )
    generated = sum(step.tokens for step in steps if not step.name.startswith("train"))
    weights = shape.weights(config.dtype)
    disk = generated * _DISK_BYTES_A_TOKEN + weights * (len(trainings(config)) + _CHECKPOINT_COPIES)
    return Plan("reckoned", steps, 0.0, memory, round(disk))


def _reckoned(
    config: RunConfig, counts: Mapping[str, int], shape: ModelShape, rate: float
) -> Iterator[Step]:
    def seconds(operations: float, path: str) -> float:
        return operations / (rate * UTILISATION[path])

    def generated(responses: int, longest: int) -> float:
        return seconds(shape.forward_operations(responses * (longest + _PROMPT_TOKENS)), "generate")

    def scored(responses: int, longest: int, models: int) -> float:
        tokens = models * responses * (longest + _PROMPT_TOKENS)
        return seconds(shape.forward_operations(tokens), "score")

    longest = config.generate.max_tokens
    responses = counts["train"] * config.generate.samples
    yield Step("generate", f"{responses:,} responses", responses * longest, generated(responses, longest))
    yield Step("score", f"{responses:,} responses", 0, scored(responses, longest, len(config.rewards)))
    for data in dict.fromkeys(each.data for each in trainings(config) if each.data.round > 1):
        responses = round(counts["train"] * data.share) * config.rounds.samples
        spent = generated(responses, longest) + scored(responses, longest, len(config.rewards))
        yield Step(f"generate {data}", f"{responses:,} responses", responses * longest, spent)
    yield from _reckoned_training(config, counts, shape, rate)
    longest = config.evaluate.max_tokens
    cells = len(config.control_format.grid())
    for evaluation in EVALUATIONS:
        scorers = len(scorers_of(evaluation, config)) * len(config.rewards)
        for name in config.method_names if counts[evaluation] else ():
            asked = counts[evaluation] * _candidates(name, config, cells)
            spent = generated(asked, longest) * _forwards(name, config) + scored(asked, longest, scorers + 1)
            yield Step(f"{evaluation} {name.name}", f"{counts[evaluation]:,} prompts", asked * longest, spent)
    if config.suite is not None:
        prompts, swept = suite_count(config), len(settings(config.suite, config))
        for name in config.method_names:
            asked = prompts * _candidates(name, config, swept)
            spent = generated(asked, longest) * _forwards(name, config) + scored(asked, longest, len(config.rewards))
            yield Step(f"suite {name.name}", f"{prompts:,} prompts", asked * longest, spent)
    forged = min(config.evaluate.forged_prompts, counts["optimization"])
    extra = ((CALIBRATION, config.prompts.calibration_limit, cells), (FORGED, forged, ATTEMPTS))
    for name in config.method_names:
        for label, prompts, each in extra:
            if name.is_dialled_model and prompts:
                asked = prompts * each
                spent = generated(asked, longest) + scored(asked, longest, len(config.rewards))
                yield Step(f"{label} {name.name}", f"{prompts:,} prompts", asked * longest, spent)


def _reckoned_training(
    config: RunConfig, counts: Mapping[str, int], shape: ModelShape, rate: float
) -> Iterator[Step]:
    distil = config.distil
    dials = len(config.rewards)
    kept = min(config.generate.samples, 2**dials * distil.per_corner + 2 * dials * distil.per_extreme)
    for each in trainings(config):
        options, needs = each.options(config), plugins.needs(each.objective)
        examples = config.generate.samples if each.data.variant == "pool" else kept
        rows = {"examples": examples, "pairs": distil.pairs.per_prompt, "prompts": 1}[needs.rows]
        each_step = responses = options.batch_size
        written = 0.0
        if needs.rows == "prompts":
            online: OnlineOptions = objective_options(options, each.objective)
            each_step, responses = online.prompts, online.prompts * online.samples
        steps = options.steps or round(counts["train"] * rows * options.epochs / each_step)
        tokens = steps * responses * (config.generate.max_tokens + _PROMPT_TOKENS)
        if needs.rows == "prompts":  # written, scored by every reward, read by the model and by its reference
            readings = (len(config.rewards) + 2) / UTILISATION["score"]
            written = shape.forward_operations(tokens) * (1 / UTILISATION["generate"] + readings)
        passes = 2.0 if needs.rows == "pairs" else 1 + options.counterfactual.fraction * needs.counterfactual
        operations = shape.training_operations(tokens * passes, _how_trained(config, options, shape, needs.adapter))
        spent = (operations / UTILISATION["train"] + written) / rate
        yield Step(task_label(each, config), f"{steps:,} steps", tokens, spent)


def _how_trained(
    config: RunConfig, options: TrainConfig, shape: ModelShape, adapter: LoraConfig | None
) -> TrainingKind:
    """What is trained, as the training will decide it."""
    if config.quantization is not None:
        return "4bit"
    return "full" if settled(options, shape.parameters, adapter=adapter).lora is None else "lora"


def _candidates(name: MethodName, config: RunConfig, cells: int) -> int:
    """Responses that are generated for a prompt's whole grid."""
    samples = config.evaluate.rerank_samples
    if name.reranking:
        return samples * cells
    return samples if name.method == "reranking" else cells


def _forwards(name: MethodName, config: RunConfig) -> int:
    """Forward passes that a token costs: of a mixture of distributions one an expert, of all others one."""
    return len(models_of(name, config)) if name.method == "logit_mixing" else 1
