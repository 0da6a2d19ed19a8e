"""Rounds: a trained model answers the training prompts again, is scored, and adds to the pool that it learned from.

Controls steer the sampling into cells of the control grid that hold few examples so far (`steering.py`); the rewards
and their calibrators stay those of the first pool. Each round is two stages, `rounds/DATA/generate` and
`rounds/DATA/score`; its rows are distilled together with those of all rounds before.
"""

import time
from collections import Counter
from collections.abc import Mapping, Sequence

from rheostat import steering
from rheostat.calibration import Calibrator
from rheostat.config import RunConfig
from rheostat.execution import open_executor
from rheostat.generation_work import SteeredWork, sample_pool
from rheostat.method_name import TrainingData
from rheostat.plugins import Executor
from rheostat.progress import ProgressDisplay, null_progress
from rheostat.records import Prompt, Response, ScoredResponse, by_prompt
from rheostat.rundir import RunDirectory, Stage
from rheostat.score_work import ScoringPool, score_raw, write_calibrated
from rheostat.scoring import OWN
from rheostat.stage import derive_seed
from rheostat.trainings import Training


def sample_round(
    run: RunDirectory,
    config: RunConfig,
    training: Training,
    calibrators: Mapping[str, Calibrator],
    *,
    progress: ProgressDisplay = null_progress,
) -> Stage:
    """What a training of a further round learns from beside the rounds before: answers of the model it starts from.

    `calibrators` are those of the first pool, by attribute. Raises `StageMissing` where that model is not trained.
    """
    assert training.start is not None and training.data.round > 1, training
    prompts = training.data.first(run.finished("prompts").read(Prompt, prefix="train"))
    work = _steered(run, config, training)
    with open_executor(config) as executor:
        generated = _generate(run, config, training, prompts, work, executor, progress)
        return _score(run, config, training.data, generated, prompts, work, calibrators, executor, progress)


def _steered(run: RunDirectory, config: RunConfig, training: Training) -> SteeredWork:
    """The work of generating a round: steered by the examples that its model has learned from."""
    assert training.start is not None
    form, rounds = config.control_format, config.rounds
    held: Mapping[str, int] = run.finished(training.data.before.stage).summary["cells_after"]
    counts = {
        tuple(control[name] for name in form.names): held.get(form.render(control), 0) for control in form.grid()
    }
    return SteeredWork(
        config,
        str((run.finished(training.start.stage).path / "model").resolve()),
        tuple(steering.shares(counts, thinness=rounds.thinness).items()),
        rounds.first_sample(training.data.round, pool=config.generate.samples),
        derive_seed(config.seed, str(training.data)),
    )


def _generate(
    run: RunDirectory,
    config: RunConfig,
    training: Training,
    prompts: Sequence[Prompt],
    work: SteeredWork,
    executor: Executor,
    progress: ProgressDisplay,
) -> Stage:
    assert training.start is not None
    data, options = training.data, config.generate
    stage = run.stage(
        f"{data.round_stage}/generate",
        inputs={
            "prompts": run.finished("prompts").fingerprint,
            "tuned": run.finished(training.start.stage).fingerprint,
            "examples": run.finished(data.before.stage).fingerprint,
            "generate": options.model_dump(),
            "rounds": config.rounds.model_dump(include={"samples", "thinness"}),
            "levels": config.control_format.levels,
            "dtype": config.dtype,
            **config.loading,
            "batch_tokens": config.batch_tokens,
            "seed": config.seed,
        },
    )
    if stage.done:
        return stage
    return sample_pool(
        run,
        stage,
        prompts,
        work,
        shard_size=options.shard_prompts,
        seed=work.seed,
        label=f"generate {data}",
        executor=executor,
        progress=progress,
    )


def _score(
    run: RunDirectory,
    config: RunConfig,
    data: TrainingData,
    generated: Stage,
    prompts: Sequence[Prompt],
    work: SteeredWork,
    calibrators: Mapping[str, Calibrator],
    executor: Executor,
    progress: ProgressDisplay,
) -> Stage:
    stage = run.stage(
        f"{data.round_stage}/score",
        inputs={"generate": generated.fingerprint, "score": run.finished("score").fingerprint},
    )
    if stage.done:
        return stage
    started = time.perf_counter()
    pool = ScoringPool(generated.stored(Response), prompts)
    made = score_raw(stage, pool, config, OWN, label=f"score {data}", executor=executor, progress=progress)
    write_calibrated(stage, calibrators)
    stage.finish({"responses": len(pool), **_steering_counts(stage, config, prompts, work)})
    run.record_timing(stage.name, time.perf_counter() - started, responses=len(pool), responses_made=made)
    return stage


def _steering_counts(
    stage: Stage, config: RunConfig, prompts: Sequence[Prompt], work: SteeredWork
) -> dict[str, dict[str, int]]:
    """By control: how often it was asked for, how many of those answers came out in its cell, and how many came out in
    that cell whatever they were asked for.
    """
    form = config.control_format
    asked: Counter[steering.Cell] = Counter()
    hit: Counter[steering.Cell] = Counter()
    landed: Counter[steering.Cell] = Counter()
    answers = by_prompt(stage.rows(ScoredResponse))
    for prompt in prompts:
        wanted = [cell for cell, count in work.asked(prompt).items() for _ in range(count)]
        for cell, answer in zip(wanted, sorted(answers[prompt.id], key=lambda each: each.sample), strict=True):
            found = tuple(form.quantise(name, answer.calibrated[name]) for name in form.names)
            asked[cell] += 1
            landed[found] += 1
            hit[cell] += found == cell
    return {
        key: {
            form.render(control): counts[tuple(control[name] for name in form.names)] for control in form.grid()
        }
        for key, counts in {"cells_asked": asked, "cells_hit": hit, "cells_landed": landed}.items()
    }
