"""The work of scoring a pool, as an executor sees it: responses in, raw scores out; then calibrated."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import NamedTuple, overload

from rheostat.calibration import Calibrator
from rheostat.config import RunConfig
from rheostat.plugins import Executor, Judged
from rheostat.progress import ProgressDisplay
from rheostat.records import Message, Prompt, Response, ScoredResponse
from rheostat.rundir import Stage
from rheostat.scoring import OWN, load_rewards, parties, raw_columns
from rheostat.shard_work import Compute

_SHARD_RESPONSES = 1024


class Unscored(NamedTuple):
    """A response and the conversation that it answers."""

    response: Response
    messages: tuple[Message, ...]


class ScoringPool(Sequence[Unscored]):
    """The self-generated pool, joined with its prompts as it is read."""

    def __init__(self, responses: Sequence[Response], prompts: Sequence[Prompt]) -> None:
        self._responses = responses
        self._messages = {prompt.id: prompt.messages for prompt in prompts}

    def __len__(self) -> int:
        return len(self._responses)

    @overload
    def __getitem__(self, index: int) -> Unscored: ...
    @overload
    def __getitem__(self, index: slice) -> list[Unscored]: ...
    def __getitem__(self, index: int | slice) -> Unscored | list[Unscored]:
        found = self._responses[index]
        return self._joined(found) if isinstance(found, Response) else [self._joined(each) for each in found]

    def _joined(self, response: Response) -> Unscored:
        return Unscored(response, self._messages[response.prompt_id])


@dataclass(frozen=True, slots=True)
class ScoreWork:
    """Responses in, the raw scores of one party out."""

    config: RunConfig
    party: str

    def open(self) -> Compute[Unscored]:
        """Loads the party's rewards."""
        rewards = load_rewards(parties(self.config)[self.party], self.config)

        def work(shard: Sequence[Unscored], _: int) -> list[ScoredResponse]:
            judged = [Judged(each.messages, each.response.text) for each in shard]
            columns = raw_columns(rewards, judged)
            return [
                _row(each.response, {name: columns[name][at] for name in columns})
                for at, each in enumerate(shard)
            ]

        return work


def _row(response: Response, raw: dict[str, float]) -> ScoredResponse:
    return ScoredResponse(
        response.prompt_id, response.sample, response.text, response.tokens, response.finish, raw, {}
    )


def score_raw(
    stage: Stage,
    pool: Sequence[Unscored],
    config: RunConfig,
    party: str,
    *,
    label: str,
    executor: Executor,
    progress: ProgressDisplay,
) -> int:
    """Raw scores of one party into the stage's shards `raw-PARTY`; gives how many no shard on disk held yet."""
    return stage.map(
        pool,
        ScoreWork(config, party),
        key=lambda each: f"{each.response.prompt_id}/{each.response.sample}",
        row_type=ScoredResponse,
        shard_size=_SHARD_RESPONSES,
        seed=config.seed,
        label=label,
        unit="responses",
        progress=progress,
        prefix=raw_prefix(party),
        executor=executor,
    )


def raw_prefix(party: str) -> str:
    """What the shards of a party's raw scores begin with."""
    return f"raw-{party}"


def write_calibrated(stage: Stage, calibrators: Mapping[str, Calibrator]) -> None:
    """The run's own raw scores once more, with their calibrated ones, into the stage's main shards."""
    raw = stage.shards(ScoredResponse, prefix=raw_prefix(OWN))
    stage.write((row for shard in raw for row in _calibrated(shard, calibrators)), ScoredResponse)


def _calibrated(
    rows: Sequence[ScoredResponse], calibrators: Mapping[str, Calibrator]
) -> list[ScoredResponse]:
    """The rows with their calibrated scores, by the calibrator of each attribute."""
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
