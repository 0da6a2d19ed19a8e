"""Collect: read the prompts of every split, leave out those that do not fit, write them into the run."""

import logging
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any

from rheostat.config import PromptsConfig, RunConfig, Sources
from rheostat.errors import InputError, PromptTooLong
from rheostat.model_files import identity
from rheostat.models import load_reader
from rheostat.progress import ProgressDisplay, null_progress
from rheostat.prompt_fit import fits, longest_response
from rheostat.prompt_sources import digest, kind_of_source, listed
from rheostat.prompts import CALIBRATION, PromptSet, distinct, read_prompts, split_held_out
from rheostat.records import Prompt
from rheostat.rundir import RunDirectory, Stage

_logger = logging.getLogger(__name__)


def collect(run: RunDirectory, config: RunConfig, *, progress: ProgressDisplay = null_progress) -> Stage:
    """Write the splits `train`, `optimization` and `generalization`, a shard each.

    No prompt of an evaluation stands among the training prompts, nor, at `prompts.near_duplicates`, nearly one.
    Raises `PromptFileError`; with `prompts.strict` also for a single broken line or a prompt that does not fit.
    """
    options = config.prompts
    stage = run.stage(
        "prompts",
        inputs={
            **_inputs(options),
            "model": identity(config.model),
            "longest_response": longest_response(config),
            "attributes": list(config.control_format.names),
        },
    )
    if stage.done:
        return stage
    with progress.task("read prompts", None, unit="prompts") as advance:
        collected = read_splits(options)
        reader = load_reader(config.model)
        summary: dict[str, object] = {
            "skipped_lines": collected.skipped,
            "repeated": collected.repeated,
            "near_duplicates": collected.near_duplicates,
        }
        too_long: dict[str, int] = {}
        for split, prompts in collected.prompts.items():
            fitting = [prompt for prompt in prompts if fits(prompt, reader, config)]
            too_long[split] = len(prompts) - len(fitting)
            if prompts and not fitting:
                raise PromptTooLong(
                    f"all {len(prompts)} {split} prompts are too long for {config.model} "
                    f"(its context is {reader.context} tokens)",
                    hint="shorten the prompts, or use a model with a longer context",
                )
            stage.write([replace(prompt, split=split) for prompt in fitting], Prompt, prefix=split)
            summary[split] = len(fitting)
            advance(len(fitting))
    if any(too_long.values()):
        _logger.warning("prompts too long for the model's context, left out: %s", too_long)
    stage.finish({**summary, "too_long": too_long})
    return stage


def collect_calibration(run: RunDirectory, config: RunConfig) -> Stage:
    """Write the split `calibration`: prompts on which the dials are calibrated, neither of training nor of a test.

    Those of `prompts.calibration`; else the held-out prompts that the limit of the evaluation leaves, then the training
    prompts that theirs leaves. A stage of its own, so that nothing that is generated or trained depends on it. Raises
    `PromptFileError`.
    """
    options = config.prompts
    collected = run.finished("prompts")
    stage = run.stage(
        CALIBRATION,
        inputs={
            "prompts": collected.fingerprint,
            "calibration": options.model_dump(include={"calibration", "calibration_limit"}),
            "files": {source.source: digest(source) for source in listed(options.calibration)},
        },
    )
    if stage.done:
        return stage
    used = {
        prompt.id
        for split in ("train", "optimization", "generalization")
        for prompt in collected.read(Prompt, prefix=split)
    }
    reader = load_reader(config.model)
    chosen: list[Prompt] = []
    for prompt in _candidates(options):
        if len(chosen) >= options.calibration_limit:
            break
        if prompt.id not in used and fits(prompt, reader, config):
            used.add(prompt.id)
            chosen.append(replace(prompt, split=CALIBRATION))
    if options.calibration_limit and not chosen:
        _logger.warning(
            "no prompt is left to calibrate the dials with: give prompts.calibration, or use fewer prompts "
            "(prompts.evaluation_limit, prompts.train_limit)"
        )
    stage.write(chosen, Prompt, prefix=CALIBRATION)
    stage.finish({"prompts": len(chosen)})
    return stage


def _candidates(options: PromptsConfig) -> Iterator[Prompt]:
    def read(sources: Sources) -> tuple[Prompt, ...]:
        return read_prompts(sources, split=CALIBRATION, strict=options.strict, mix=options.mix).prompts

    if options.calibration is not None:
        yield from read(options.calibration)
        return
    if options.optimization is not None:
        yield from read(options.optimization)
        yield from read(options.train)
        return
    halves = split_held_out(read(options.train), options.held_out)
    yield from halves.held_out
    yield from halves.train


@dataclass(frozen=True, slots=True)
class Splits:
    """The prompts of each split, and how many broken lines, duplicates and near-duplicates were left out."""

    prompts: dict[str, list[Prompt]]
    skipped: int
    repeated: int
    near_duplicates: dict[str, int]


def read_splits(options: PromptsConfig) -> Splits:
    """The prompts of each split; no model is loaded, and what is too long for one is still there."""

    def read(sources: Sources | None, split: str, limit: int | None = None) -> PromptSet | None:
        if sources is None:
            return None
        return read_prompts(sources, split=split, limit=limit, strict=options.strict, mix=options.mix)

    pool = read(options.train, "train")
    assert pool is not None
    evaluation = {
        name: found
        for name, sources in (
            ("optimization", options.optimization), ("generalization", options.generalization)
        )
        if (found := read(sources, name, options.evaluation_limit)) is not None
    }  # fmt: skip
    held_out: Sequence[Prompt] = ()
    if options.optimization is None:
        held_out = split_held_out(pool.prompts, options.held_out).held_out
    train = distinct(pool, list(evaluation.values()), held_out, options.near_duplicates)
    splits = {
        "train": list(train.prompts[: options.train_limit]),
        "optimization": list(held_out[: options.evaluation_limit]),
        "generalization": [],
        **{name: list(found.prompts) for name, found in evaluation.items()},
    }
    if not splits["train"] or not splits["optimization"]:
        raise InputError(
            f"got {len(splits['train'])} training and {len(splits['optimization'])} held-out prompts, allowed are "
            "at least one of each",
            hint="give more prompts, or set prompts.optimization to a file of held-out prompts",
        )
    sets = [pool, *evaluation.values()]
    skipped = [line for each in sets for line in each.skipped]
    if skipped:
        _logger.warning("%d broken lines left out, the first: %s", len(skipped), skipped[0])
    leaks = sum(each.is_leak for each in train.near_duplicates)
    copies = {"of_evaluation": leaks, "of_train": len(train.near_duplicates) - leaks}
    if train.near_duplicates:
        first = train.near_duplicates[0]
        _logger.info(
            "training prompts left out as near-duplicates: %d of evaluation prompts, %d of other training prompts; "
            "the first: %r, for %r (prompts.near_duplicates)",
            *copies.values(),
            first.prompt.text[:80],
            first.like.text[:80],
        )
    return Splits(splits, len(skipped), sum(each.duplicates for each in sets), copies)


def _inputs(options: PromptsConfig) -> dict[str, Any]:
    """What the prompts depend on; the pocket world's are not compared with each other, whatever the threshold."""
    sources = [
        source
        for split in (options.train, options.optimization, options.generalization)
        for source in listed(split)
    ]
    keys = options.model_dump(exclude={"calibration", "calibration_limit"})
    if all(kind_of_source(source) == "pocket" for source in sources):
        del keys["near_duplicates"]
    return {"prompts": keys, "files": {source.source: digest(source) for source in sources}}
