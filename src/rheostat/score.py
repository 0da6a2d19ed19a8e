"""Score: every reward reads every response; the calibrators are fitted on what they say. Responses in, scores out."""

import time
from array import array
from collections.abc import Collection, Iterable, Mapping, Sequence

from rheostat import calibration, reward_tree
from rheostat.calibration import Calibrator
from rheostat.config import RewardConfig, RunConfig
from rheostat.execution import open_executor
from rheostat.progress import ProgressDisplay, null_progress
from rheostat.records import Prompt, Response, ScoredResponse
from rheostat.rundir import RunDirectory, Stage
from rheostat.score_work import ScoringPool, raw_prefix, score_raw, write_calibrated
from rheostat.scoring import OWN, CalibratedScorer, calibrated_scorer, parties
from rheostat.storage import require_object, write_json

_JUDGED = 2048
"""Responses of the pool on which the judges' calibrators are fitted."""


def score(run: RunDirectory, config: RunConfig, *, progress: ProgressDisplay = null_progress) -> Stage:
    """Raw and calibrated scores of the pool; `calibration.json` holds each party's calibrators.

    Judges read an even sub-sample of the pool, for their calibrators alone: they label nothing.
    """
    generated = run.finished("generate")
    stage = run.stage(
        "score",
        inputs={
            "generate": generated.fingerprint,
            "parties": {party: reward_identity(specs) for party, specs in parties(config).items()},
            "dtype": config.dtype,
            "batch_tokens": config.batch_tokens,
        },
    )
    if stage.done:
        return stage
    started = time.perf_counter()
    pool = ScoringPool(generated.stored(Response), run.finished("prompts").read(Prompt, prefix="train"))
    made = 0
    calibrators: dict[str, dict[str, Calibrator]] = {}
    with open_executor(config) as executor:
        for party, specs in parties(config).items():
            computed = score_raw(
                stage,
                pool if party == OWN else pool[:: judged_stride(len(pool))],
                config,
                party,
                label="score" if party == OWN else f"calibrate {party}",
                executor=executor,
                progress=progress,
            )
            made += computed * (party == OWN)
            raw = {name: array("d") for name in specs}
            for row in stage.rows(ScoredResponse, prefix=raw_prefix(party)):
                for name, column in raw.items():
                    column.append(row.raw[name])
            calibrators[party] = {
                name: calibration.fit(spec.calibration, raw[name], higher_is_better=spec.higher_is_better)
                for name, spec in specs.items()
            }
    write_calibrated(stage, calibrators[OWN])
    write_json(
        stage.path / "calibration.json",
        {
            party: {name: each.to_json() for name, each in found.items()}
            for party, found in calibrators.items()
        },
    )
    stage.finish(
        {
            "responses": len(pool),
            "calibration": {
                name: {
                    "low": each.low,
                    "high": each.high,
                    "higher_is_better": each.higher_is_better,
                    "sample_size": each.sample_size,
                    "largest_pile": each.largest_pile._asdict(),
                    "unreachable_levels": list(each.unreachable_levels(config.control_format.levels_of(name))),
                }
                for name, each in calibrators[OWN].items()
            },
            **_parts(stage.rows(ScoredResponse, prefix=raw_prefix(OWN)), config.rewards),
        }
    )
    run.record_timing("score", time.perf_counter() - started, responses=len(pool), responses_made=made)
    return stage


def judged_stride(responses: int) -> int:
    """Of how many responses of the pool a judge reads one."""
    return max(1, responses // _JUDGED)


def load_calibrators(run: RunDirectory, config: RunConfig) -> dict[str, dict[str, Calibrator]]:
    """The calibrators that this run fitted, by party and attribute."""
    saved = require_object(run.finished("score").path / "calibration.json")
    return {
        party: {attribute: Calibrator.from_json(saved[party][attribute]) for attribute in specs}
        for party, specs in parties(config).items()
    }


def load_scorers(run: RunDirectory, config: RunConfig, names: Sequence[str]) -> dict[str, CalibratedScorer]:
    """The parties `names` with the calibrators that this run fitted."""
    calibrators = load_calibrators(run, config)
    return {name: calibrated_scorer(config, name, calibrators[name]) for name in names}


def reward_identity(specs: Mapping[str, RewardConfig]) -> dict[str, object]:
    """What identifies a party's rewards (`reward_tree.py`)."""
    return {name: reward_tree.identify(spec) for name, spec in specs.items()}


def _parts(rows: Iterable[ScoredResponse], attributes: Collection[str]) -> dict[str, object]:
    """The range of the raw scores of each part of a reward that is made of others; nothing where none is."""
    ranges: dict[str, dict[str, float]] = {}
    for count, row in enumerate(rows, start=1):
        if len(row.raw) == len(attributes):
            return {}
        for name, value in row.raw.items():
            if name not in attributes:
                found = ranges.setdefault(name, {"low": value, "high": value, "mean": 0.0})
                found["low"], found["high"] = min(found["low"], value), max(found["high"], value)
                found["mean"] += (value - found["mean"]) / count
    return {"parts": ranges} if ranges else {}
