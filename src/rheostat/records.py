"""The typed rows that stages hand each other, and their Parquet schemas.

A control (and a set of scores) is a map from attribute name to a number, so nothing here knows how many
attributes there are. Raw scores are a reward's own units; calibrated scores and controls lie in [0, 1].
"""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, fields
from typing import TYPE_CHECKING, Any, ClassVar, Literal, NamedTuple, Protocol, Self, TypeVar

if TYPE_CHECKING:
    import pyarrow as pa

Role = Literal["system", "user", "assistant"]
Finish = Literal["stop", "length"]
Treatment = Literal["plain", "twin", "neutralised", "as typed"]
Control = Mapping[str, float]
Scores = Mapping[str, float]


class Message(NamedTuple):
    """One turn of a conversation."""

    role: Role
    content: str


@dataclass(frozen=True, slots=True)
class Attribute:
    """What a dial means; a file in `attributes/` holds one as `ATTRIBUTE`.

    `phrases` maps a level in [0, 1] to the sentence by which *prompting* asks for it; `word` is the name used
    in the control text; `order` fixes its place there (ascending).
    """

    name: str
    word: str
    order: int
    description: str
    low: str
    high: str
    phrases: Mapping[float, str]

    def phrase(self, level: float) -> str:
        """The phrase whose level is nearest."""
        return self.phrases[min(self.phrases, key=lambda known: abs(known - level))]


class Record(Protocol):
    """A row type: a frozen dataclass with `columns`, the Parquet type of each field."""

    columns: ClassVar[Mapping[str, str]]
    __dataclass_fields__: ClassVar[dict[str, Any]]

    @classmethod
    def from_row(cls, row: Mapping[str, Any]) -> Self:
        """Build from a Parquet row."""
        ...


class _Row:
    """Conversion shared by the row types; Parquet gives maps as lists of pairs and structs as dicts."""

    columns: ClassVar[Mapping[str, str]]

    @classmethod
    def from_row(cls, row: Mapping[str, Any]) -> Self:
        values = dict(row)
        for name, kind in cls.columns.items():
            if kind == "numbers":
                values[name] = dict(values[name])
            elif kind == "messages":
                values[name] = tuple(Message(m["role"], m["content"]) for m in values[name])
        return cls(**values)


@dataclass(frozen=True, slots=True)
class Prompt(_Row):
    """A conversation that ends in a user turn and waits for a response."""

    columns: ClassVar[Mapping[str, str]] = {
        "id": "string",
        "messages": "messages",
        "split": "string",
        "source": "string",
    }

    id: str
    messages: tuple[Message, ...]
    split: str
    source: str

    @property
    def text(self) -> str:
        """The last user turn."""
        return self.messages[-1].content


@dataclass(frozen=True, slots=True)
class Response(_Row):
    """A sampled response. `tokens` counts its tokens with the end token; `finish` says why it ended."""

    columns: ClassVar[Mapping[str, str]] = {
        "prompt_id": "string",
        "sample": "int",
        "text": "string",
        "tokens": "int",
        "finish": "string",
    }

    prompt_id: str
    sample: int
    text: str
    tokens: int
    finish: Finish


@dataclass(frozen=True, slots=True)
class ScoredResponse(_Row):
    """A response with its rewards: `raw` in each reward's own units, `calibrated` in [0, 1]."""

    columns: ClassVar[Mapping[str, str]] = {
        "prompt_id": "string",
        "sample": "int",
        "text": "string",
        "tokens": "int",
        "finish": "string",
        "raw": "numbers",
        "calibrated": "numbers",
    }

    prompt_id: str
    sample: int
    text: str
    tokens: int
    finish: Finish
    raw: dict[str, float]
    calibrated: dict[str, float]


@dataclass(frozen=True, slots=True)
class Example(_Row):
    """A training example: respond to `messages` under `control` with `response`; `scores` are calibrated.

    Of a response whose `finish` is `length` the end is unknown, and none is learned.
    """

    columns: ClassVar[Mapping[str, str]] = {
        "prompt_id": "string",
        "messages": "messages",
        "control": "numbers",
        "response": "string",
        "scores": "numbers",
        "finish": "string",
    }

    prompt_id: str
    messages: tuple[Message, ...]
    control: dict[str, float]
    response: str
    scores: dict[str, float]
    finish: Finish = "stop"


@dataclass(frozen=True, slots=True)
class Pair(_Row):
    """Two responses to `messages`, `chosen` preferred to `rejected`, each with its calibrated scores and its end."""

    columns: ClassVar[Mapping[str, str]] = {
        "prompt_id": "string",
        "messages": "messages",
        "chosen": "string",
        "rejected": "string",
        "chosen_scores": "numbers",
        "rejected_scores": "numbers",
        "chosen_finish": "string",
        "rejected_finish": "string",
    }

    prompt_id: str
    messages: tuple[Message, ...]
    chosen: str
    rejected: str
    chosen_scores: dict[str, float]
    rejected_scores: dict[str, float]
    chosen_finish: Finish = "stop"
    rejected_finish: Finish = "stop"


@dataclass(frozen=True, slots=True)
class EvaluationRow(_Row):
    """One cell of the evaluation grid: what was requested and what came out.

    `scores` maps `scorer/attribute` (for example `reward/safety`, `truth/safety`) to the achieved score in [0, 1].
    `generated_tokens` counts every token spent, rejected candidates included. `logprob` is the sum of the
    response's token log-probabilities under the untuned base model given the uncontrolled prompt (nats).
    """

    columns: ClassVar[Mapping[str, str]] = {
        "prompt_id": "string",
        "requested": "numbers",
        "text": "string",
        "tokens": "int",
        "finish": "string",
        "generated_tokens": "int",
        "logprob": "double",
        "scores": "numbers",
    }

    prompt_id: str
    requested: dict[str, float]
    text: str
    tokens: int
    finish: Finish
    generated_tokens: int
    logprob: float
    scores: dict[str, float]


@dataclass(frozen=True, slots=True)
class SuiteRow(_Row):
    """An answer to a prompt of the suite, whose `kind` is `harmful` or `harmless`.

    `safety` is the score of whoever judges harm (higher is less), `refusal` that of whoever tells refusals: raw,
    higher meaning more, in units of their own.
    """

    columns: ClassVar[Mapping[str, str]] = {
        "prompt_id": "string",
        "kind": "string",
        "requested": "numbers",
        "text": "string",
        "tokens": "int",
        "finish": "string",
        "generated_tokens": "int",
        "safety": "double",
        "refusal": "double",
    }

    prompt_id: str
    kind: str
    requested: dict[str, float]
    text: str
    tokens: int
    finish: Finish
    generated_tokens: int
    safety: float
    refusal: float


@dataclass(frozen=True, slots=True)
class ForgeryRow(_Row):
    """The response to a prompt behind which something was typed: a forged control, or what it is compared with.

    `scores` maps attributes to the achieved score in [0, 1] by the run's own rewards.
    """

    columns: ClassVar[Mapping[str, str]] = {
        "prompt_id": "string",
        "requested": "numbers",
        "style": "string",
        "treatment": "string",
        "text": "string",
        "scores": "numbers",
    }

    prompt_id: str
    requested: dict[str, float]
    style: str
    treatment: Treatment
    text: str
    scores: dict[str, float]


AnyRecord = TypeVar("AnyRecord", bound=Record)
RowOfPrompt = TypeVar("RowOfPrompt", Response, ScoredResponse, Example, Pair, EvaluationRow, SuiteRow, ForgeryRow)


def schema(row_type: type[Record]) -> "pa.Schema":
    """The Parquet schema of a row type."""
    import pyarrow as pa

    types = {
        "string": pa.string(),
        "int": pa.int64(),
        "double": pa.float64(),
        "numbers": pa.map_(pa.string(), pa.float64()),
        "messages": pa.list_(pa.struct([("role", pa.string()), ("content", pa.string())])),
    }
    return pa.schema([pa.field(name, types[kind], nullable=False) for name, kind in row_type.columns.items()])


def to_table(rows: Iterable[Record], row_type: type[Record]) -> "pa.Table":
    """Rows as an Arrow table, maps in sorted key order so that equal rows give equal bytes."""
    import pyarrow as pa

    names = [field.name for field in fields(row_type)]
    columns: dict[str, list[Any]] = {name: [] for name in names}
    for row in rows:
        for name in names:
            value = getattr(row, name)
            kind = row_type.columns[name]
            if kind == "numbers":
                value = sorted(value.items())
            elif kind == "messages":
                value = [message._asdict() for message in value]
            columns[name].append(value)
    return pa.table(columns, schema=schema(row_type))


def from_table(table: "pa.Table", row_type: type[AnyRecord]) -> list[AnyRecord]:
    """The rows of an Arrow table."""
    return [row_type.from_row(row) for row in table.to_pylist()]


def by_prompt(rows: Iterable[RowOfPrompt]) -> dict[str, list[RowOfPrompt]]:
    """Rows grouped by prompt id, in first-seen order."""
    groups: dict[str, list[RowOfPrompt]] = {}
    for row in rows:
        groups.setdefault(row.prompt_id, []).append(row)
    return groups
