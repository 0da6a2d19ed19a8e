"""Score: every reward reads every response; the calibrators are fitted on what they say. Responses in, scores out."""

import time
from collections.abc import Mapping, Sequence

from rheostat import calibration
from rheostat.calibration import Calibrator
from rheostat.config import RewardConfig, RunConfig
from rheostat.models import identity
from rheostat.plugins import Judged, Reward
from rheostat.progress import ProgressDisplay, null_progress
from rheostat.records import Prompt, Response, ScoredResponse
from rheostat.rundir import RunDirectory, Stage
from rheostat.scoring import OWN, CalibratedScorer, load_rewards, parties
from rheostat.storage import require_object, write_json

_SHARD_RESPONSES = 1024
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
    prompts = {prompt.id: prompt for prompt in run.finished("prompts").read(Prompt, prefix="train")}
    pool = generated.read(Response)
    calibrators: dict[str, dict[str, Calibrator]] = {}
    raw: list[ScoredResponse] = []
    for party, specs in parties(config).items():
        prefix = f"raw-{party}"
        rewards = load_rewards(specs, config)

        def work(
            shard: Sequence[Response], _: int, rewards: Mapping[str, Reward] = rewards
        ) -> list[ScoredResponse]:
            judged = [Judged(prompts[each.prompt_id].messages, each.text) for each in shard]
            columns = {name: reward.score(judged) for name, reward in rewards.items()}
            return [
                _row(each, {name: columns[name][at] for name in columns}) for at, each in enumerate(shard)
            ]

        stage.map(
            pool if party == OWN else pool[:: max(1, len(pool) // _JUDGED)],
            work,
            key=lambda each: f"{each.prompt_id}/{each.sample}",
            row_type=ScoredResponse,
            shard_size=_SHARD_RESPONSES,
            seed=config.seed,
            label="score" if party == OWN else f"calibrate {party}",
            unit="responses",
            progress=progress,
            prefix=prefix,
        )
        scored = stage.read(ScoredResponse, prefix=prefix)
        calibrators[party] = {
            name: calibration.fit(
                spec.calibration,
                [each.raw[name] for each in scored],
                higher_is_better=spec.higher_is_better,
            )
            for name, spec in specs.items()
        }
        if party == OWN:
            raw = scored
    stage.write(_calibrated(raw, calibrators[OWN]), ScoredResponse)
    write_json(
        stage.path / "calibration.json",
        {
            party: {name: each.to_json() for name, each in found.items()}
            for party, found in calibrators.items()
        },
    )
    stage.finish(
        {
            "responses": len(raw),
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
        }
    )
    run.record_timing("score", time.perf_counter() - started, responses=len(raw))
    return stage


def load_scorers(run: RunDirectory, config: RunConfig, names: Sequence[str]) -> dict[str, CalibratedScorer]:
    """The parties `names` with the calibrators that this run fitted."""
    stage = run.finished("score")
    saved = require_object(stage.path / "calibration.json")
    specs = parties(config)
    return {
        name: CalibratedScorer(
            load_rewards(specs[name], config),
            {attribute: Calibrator.from_json(each) for attribute, each in saved[name].items()},
        )
        for name in names
    }


def reward_identity(specs: Mapping[str, RewardConfig]) -> dict[str, object]:
    """What identifies a party's rewards: their options and their model's files."""
    return {
        name: {**spec.model_dump(), "files": identity(spec.model) if spec.model else None}
        for name, spec in specs.items()
    }


def _row(response: Response, raw: dict[str, float]) -> ScoredResponse:
    return ScoredResponse(
        response.prompt_id, response.sample, response.text, response.tokens, response.finish, raw, {}
    )


def _calibrated(
    rows: Sequence[ScoredResponse], calibrators: Mapping[str, Calibrator]
) -> list[ScoredResponse]:
    columns = {
        name: each.apply([row.raw[name] for row in rows]).tolist() for name, each in calibrators.items()
    }
    return [
        ScoredResponse(
            row.prompt_id,
            row.sample,
            row.text,
            row.tokens,
            row.finish,
            row.raw,
            {name: columns[name][at] for name in columns},
        )
        for at, row in enumerate(rows)
    ]
