"""An LM judge as a reward: a model behind any OpenAI-compatible server reads a rubric and gives a score.

The raw score is the verdict on the rubric's scale, or the mean of several. An answer that is no verdict is counted
and asked for again, by another seed and at a higher temperature; it never becomes a number. How an item is put to the
judge, and how its verdict is read: `_verdict.py`.
"""

import logging
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated

from pydantic import Field

from rheostat import plugins
from rheostat.config import Dtype, RewardConfig
from rheostat.endpoint import SEEDS, ChatRequest, Endpoint, EndpointOptions
from rheostat.errors import InputError, RewardError
from rheostat.plugin_options import OPERATIONAL, file_digest
from rheostat.plugins import Judged, Progress, Reward
from rheostat.records import Attribute
from rheostat.rewards._verdict import Scale, mark_of, question, read, schema
from rheostat.stage import derive_seed
from rheostat.structured_chat import Structured, StructuredChat

NEEDS_MODEL = False

_RUBRICS = Path(__file__).parent / "rubrics"
_OWN_SCALE = (1, 5)
_RETRY_TEMPERATURE = 0.7
_SHOWN = 200
_logger = logging.getLogger(__name__)


def _rubric_identity(path: str | None) -> str:
    """The rubric's content: a file's, or that of all packaged ones."""
    return file_digest(path) or "+".join(file_digest(str(each)) or "" for each in sorted(_RUBRICS.glob("*.md")))


@dataclass(frozen=True, kw_only=True)
class JudgeOptions:
    """Who judges, by what, and how often.

    `rubric` is a text file; without one the packaged rubric of the attribute, whose scale is 1 to 5. `votes` verdicts
    are averaged, so more than one wants a `temperature` above 0. `max_tokens` null leaves the limit to the server.
    `structured`: `schema` asks for an answer of a JSON schema (`response_format`), `none` does not, `auto` does until
    the server refuses. An item of which none of `attempts` answers is a verdict stops the work; up to the share
    `missing_share` of the items of a batch, such items get the middle of the scale instead, counted in the log.
    """

    endpoint: EndpointOptions
    rubric: str | None = field(default=None, metadata={"identity": _rubric_identity})
    scale: tuple[int, int] = _OWN_SCALE
    votes: Annotated[int, Field(ge=1)] = 1
    temperature: Annotated[float, Field(ge=0, allow_inf_nan=False)] = 0.0
    max_tokens: Annotated[int, Field(ge=1)] | None = 512
    structured: Structured = "auto"
    attempts: Annotated[int, Field(ge=1)] = field(default=3, metadata=OPERATIONAL)
    missing_share: Annotated[float, Field(ge=0, lt=1)] = field(default=0.0, metadata=OPERATIONAL)

    def __post_init__(self) -> None:
        lowest, highest = self.scale
        if not 1 <= highest - lowest <= 100:
            raise ValueError(f"scale: got {[*self.scale]}, allowed are [LOW, HIGH], whole, 100 apart at most")
        if self.rubric is None and self.scale != _OWN_SCALE:
            raise ValueError(f"scale: got {[*self.scale]}, allowed is [1, 5] by a packaged rubric; give your own")
        if self.votes > 1 and self.temperature == 0:
            raise ValueError(f"votes: got {self.votes} at temperature 0, where all votes are alike; set a temperature")


OPTIONS = JudgeOptions


def build(
    spec: RewardConfig, options: JudgeOptions, *, attribute: str, dtype: Dtype, device: str, batch_tokens: int
) -> Reward:
    """The judge of `attribute`; what is in flight is the server's. Raises `RewardError` where it has no rubric."""
    rubric = _rubric(options.rubric, attribute)
    chat = StructuredChat(Endpoint(options.endpoint), options.structured)
    return JudgeReward(chat, rubric, plugins.attribute(attribute), options)


def _rubric(path: str | None, attribute: str) -> str:
    packaged = _RUBRICS / f"{attribute}.md"
    if path is None and not packaged.is_file():
        raise RewardError(
            f"judge: no rubric is packaged for the attribute {attribute!r}",
            hint="write one, a text that says what each score means, and name its file: rubric: PATH",
        )
    try:
        return (packaged if path is None else Path(path)).read_text(encoding="utf-8")
    except (OSError, ValueError) as error:
        raise InputError(f"rubric: cannot read {path!r}: {error}", hint="give a text file in UTF-8") from error


@dataclass(slots=True)
class JudgeReward:
    """Scores by a judge's verdicts; equal items are judged once."""

    chat: StructuredChat
    rubric: str
    attribute: Attribute
    options: JudgeOptions

    def score(self, items: Sequence[Judged], *, progress: Progress | None = None) -> list[float]:
        """One score an item on the rubric's scale, in order.

        Raises `EndpointError`, and `RewardError` where more items are without a verdict than `missing_share` allows.
        """
        distinct = list(dict.fromkeys((item.messages, item.response) for item in items))
        verdicts = self._verdicts([Judged(messages, response) for messages, response in distinct])
        scores = {each: sum(votes) / len(votes) for each, votes in zip(distinct, verdicts, strict=True)}
        if progress is not None:
            progress(len(items))
        return [scores[item.messages, item.response] for item in items]

    def _verdicts(self, items: Sequence[Judged]) -> list[list[float]]:
        """The votes on each item; of one without any, the middle of the scale, where that is allowed."""
        scale = Scale(*self.options.scale)
        votes: list[list[float]] = [[] for _ in items]
        open_votes = [(place, vote) for place in range(len(items)) for vote in range(self.options.votes)]
        unread: list[str] = []
        for attempt in range(self.options.attempts):
            requests = [self._request(items[place], vote, attempt) for place, vote in open_votes]
            answers = self.chat.ask(requests, schema(scale))
            still_open = []
            for (place, vote), answer in zip(open_votes, answers, strict=True):
                text = answer.choices[0].text
                score = read(text, scale)
                if score is None:
                    unread.append(text)
                    still_open.append((place, vote))
                else:
                    votes[place].append(score)
            open_votes = still_open
            if not open_votes:
                break
        if unread:
            _logger.warning(
                "judge %s: %d answers were no verdict and were asked for again, the first: %r",
                self.options.endpoint.model,
                len(unread),
                unread[0][:_SHOWN],
            )
        missing = [place for place, found in enumerate(votes) if not found]
        if missing:
            self._allow(len(missing), len(items), unread[-1])
        for place in missing:
            votes[place].append(scale.middle)
        return votes

    def _allow(self, missing: int, of: int, last: str) -> None:
        options = self.options
        if missing > options.missing_share * of:
            raise RewardError(
                f"judge {options.endpoint.model}: {missing} of {of} items are without a verdict after "
                f"{options.attempts} attempts each; the last answer was {last[:_SHOWN]!r}",
                hint="raise max_tokens or attempts, use a judge that can answer in JSON, or allow a share of the items "
                "the middle of the scale: missing_share",
            )
        _logger.warning(
            "judge %s: %d of %d items are without a verdict and get the middle of the scale",
            options.endpoint.model,
            missing,
            of,
        )

    def _request(self, item: Judged, vote: int, attempt: int) -> ChatRequest:
        options = self.options
        asked = question(item, self.rubric, self.attribute, Scale(*options.scale))
        return ChatRequest(
            [{"role": "user", "content": asked}],
            options.temperature if attempt == 0 else max(options.temperature, _RETRY_TEMPERATURE),
            max_tokens=options.max_tokens,
            seed=derive_seed(vote, f"{mark_of(item)}/{attempt}") % SEEDS,
        )
