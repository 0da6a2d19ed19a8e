"""The responses as the OpenAPI document has them."""

from typing import Literal

from pydantic import BaseModel, Field

from rheostat.control import ControlFormat
from rheostat.gateway.policy import Tenant

Ended = Literal["stop", "length", "content_filter"]


class ErrorBody(BaseModel):
    """What went wrong: `code` is stable, `param` names the field at fault."""

    message: str
    type: str
    param: str | None
    code: str


class Error(BaseModel):
    """An error in OpenAI's shape."""

    error: ErrorBody


class DialEcho(BaseModel):
    """What was asked of a dial (null: nothing), the level given, and why that one."""

    requested: float | None
    granted: float
    why: str


class Echo(BaseModel):
    """What became of the dials, and of a guarded or scored answer."""

    dials: dict[str, DialEcho]
    guard: dict[str, object] | None = None
    scores: dict[str, float] | None = None


class TokenUsage(BaseModel):
    """Tokens of the prompt and of all answers."""

    prompt_tokens: int
    completion_tokens: int
    total_tokens: int


class AnswerMessage(BaseModel):
    """An answer."""

    role: Literal["assistant"]
    content: str
    refusal: None


class ChatChoice(BaseModel):
    """One of the answers."""

    index: int
    message: AnswerMessage
    logprobs: None
    finish_reason: Ended


class ChatCompletion(BaseModel):
    """The answers of a chat."""

    id: str
    object: Literal["chat.completion"]
    created: int
    model: str
    choices: list[ChatChoice]
    usage: TokenUsage
    rheostat: Echo


class TextChoice(BaseModel):
    """One of the answers."""

    index: int
    text: str
    logprobs: None
    finish_reason: Ended


class Completion(BaseModel):
    """The answers to a prompt."""

    id: str
    object: Literal["text_completion"]
    created: int
    model: str
    choices: list[TextChoice]
    usage: TokenUsage
    rheostat: Echo


class StreamEcho(BaseModel):
    """What became of the dials, in a stream's first chunk; of a guarded or scored answer in its last."""

    dials: dict[str, DialEcho] | None = None
    guard: dict[str, object] | None = None
    scores: dict[str, float] | None = None


class Delta(BaseModel):
    """More of an answer."""

    role: Literal["assistant"] | None = None
    content: str | None = None


class DeltaChoice(BaseModel):
    """More of one of the answers; its last part says why it ended."""

    index: int
    delta: Delta
    logprobs: None
    finish_reason: Ended | None


class TextDeltaChoice(BaseModel):
    """More of one of the answers; its last part says why it ended."""

    index: int
    text: str
    logprobs: None
    finish_reason: Ended | None


class ChatCompletionChunk(BaseModel):
    """An event of a chat's stream."""

    id: str
    object: Literal["chat.completion.chunk"]
    created: int
    model: str
    choices: list[DeltaChoice]
    usage: TokenUsage | None = None
    rheostat: StreamEcho | None = None


class CompletionChunk(BaseModel):
    """An event of a completion's stream."""

    id: str
    object: Literal["text_completion"]
    created: int
    model: str
    choices: list[TextDeltaChoice]
    usage: TokenUsage | None = None
    rheostat: StreamEcho | None = None


class Model(BaseModel):
    """A model that the caller may ask."""

    id: str
    object: Literal["model"] = "model"
    created: int
    owned_by: str = "rheostat"


class ModelList(BaseModel):
    """The models that the caller may ask."""

    object: Literal["list"] = "list"
    data: list[Model]


class DialFacts(BaseModel):
    """A dial as the caller has it: `levels` are those between floor and ceiling, which are levels too."""

    name: str
    description: str
    low: str
    high: str
    levels: list[float]
    default: float
    floor: float
    ceiling: float


class ModelDials(BaseModel):
    """A model's dials."""

    name: str
    dials: list[DialFacts]


class Dials(BaseModel):
    """What the caller may turn, and what else it may ask for."""

    models: list[ModelDials]
    scores: bool
    system_turn: bool
    max_tokens: int | None

    @classmethod
    def of(cls, tenant: Tenant, *, has_rewards: bool) -> "Dials":
        """A tenant's."""
        return cls(
            models=[ModelDials(name=name, dials=_facts(dials)) for name, dials in tenant.dials.items()],
            scores=tenant.allows_scores and has_rewards,
            system_turn=tenant.allows_system_turn,
            max_tokens=tenant.max_tokens,
        )


def _facts(dials: ControlFormat) -> list[DialFacts]:
    facts = []
    for attribute in dials.attributes:
        levels = dials.levels_of(attribute.name)
        facts.append(
            DialFacts(
                name=attribute.name,
                description=attribute.description,
                low=attribute.low,
                high=attribute.high,
                levels=list(levels),
                default=dials.default_of(attribute.name),
                floor=levels[0],
                ceiling=levels[-1],
            )
        )
    return facts


class Part(BaseModel):
    """How one part of the gateway is."""

    status: Literal["ok", "failing"]
    detail: str | None = Field(None, description="what is wrong, in words that tell nobody more than that")


class Health(BaseModel):
    """Whether the gateway answers: all parts must be ok, but for a policy file whose newest text was refused."""

    status: Literal["ok", "failing", "draining"]
    model: Part
    policy: Part
    audit: Part
    in_work: int
    waiting: int
