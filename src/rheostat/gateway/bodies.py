"""What a request's body may hold, field by field. Pure.

Strict: a field that is not here is refused with the nearest name, and one that is here for the sake of OpenAI's
clients only takes the value that changes nothing (`logprobs: false`, `tools: []`): what cannot be given is not left out
in silence.
The dials are fields too, by their names, so the models are made for the dials that are served (`BodyTypes.of`).
"""

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Annotated, Any, Literal, TypeVar

from pydantic import (
    AfterValidator,
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    StringConstraints,
    ValidationError,
    WithJsonSchema,
    create_model,
    model_validator,
)
from pydantic_core import PydanticKnownError

from rheostat.config_fields import plain_words
from rheostat.errors import did_you_mean
from rheostat.gateway.refusals import Refusal
from rheostat.records import Attribute

MOST_SAMPLES = 16
MOST_ENTRIES = 16
"""Of a map with names of the client's own; as many as OpenAI's `metadata` may have."""

TEMPERATURE = 0.7
TOP_P = 1.0

Dial = Annotated[float, Field(ge=0, le=1)]
Nothing = Annotated[list[Any], Field(max_length=0)]
NoMap = Annotated[dict[str, Any], Field(max_length=0)]


def _only(allowed: bool) -> Callable[[bool], bool]:
    def check(value: bool) -> bool:
        if value is not allowed:
            raise PydanticKnownError("literal_error", {"expected": shown(allowed)})
        return value

    return check


def _bounded(value: object) -> object:
    """Before the entries are looked at, since pydantic collects the faults of all of them."""
    if isinstance(value, dict) and len(value) > MOST_ENTRIES:
        raise PydanticKnownError(
            "too_long", {"field_type": "Dictionary", "max_length": MOST_ENTRIES, "actual_length": len(value)}
        )
    return value


OnlyFalse = Annotated[bool, AfterValidator(_only(False)), WithJsonSchema({"type": "boolean", "const": False})]
"""`Literal[False]` would take 0 too."""

OnlyTrue = Annotated[bool, AfterValidator(_only(True)), WithJsonSchema({"type": "boolean", "const": True})]
Zero = Annotated[float, Field(ge=0, le=0)]
OnlyOne = Annotated[int, Field(ge=1, le=1)]
NoText = Annotated[str, StringConstraints(max_length=0)]
StopText = Annotated[str, StringConstraints(min_length=1, max_length=256)]
Metadata = Annotated[dict[str, str], Field(max_length=MOST_ENTRIES), BeforeValidator(_bounded)]
TemplateKwargs = Annotated[dict[str, Dial | None], Field(max_length=MOST_ENTRIES), BeforeValidator(_bounded)]
AnyBody = TypeVar("AnyBody", bound="CommonBody")


class Strict(BaseModel):
    """A JSON object: no other fields, no values of another type, no infinities.

    A body's faults must stay few, whatever it holds, as each takes memory and time: lists fail at their first wrong
    item, maps are bounded, and of many unknown fields one is enough to be refused.
    """

    model_config = ConfigDict(extra="forbid", strict=True, allow_inf_nan=False)

    @model_validator(mode="before")
    @classmethod
    def _one_unknown_field(cls, value: Any) -> Any:
        known = cls.model_fields
        if not isinstance(value, dict) or value.keys() <= known.keys():
            return value
        first = next(name for name in value if name not in known)
        return {name: each for name, each in value.items() if name in known or name == first}


class TextPart(Strict):
    """A part of a turn."""

    type: Literal["text"]
    text: str


class Turn(Strict):
    """A turn of the conversation; `developer` is read as `system`."""

    role: Literal["system", "developer", "user", "assistant"]
    content: str | Annotated[list[TextPart], Field(min_length=1, fail_fast=True)]
    name: str | None = Field(None, description="without effect")
    refusal: None = None
    tool_calls: Nothing | None = None
    function_call: None = None
    audio: None = None
    annotations: Nothing | None = None


class StreamOptions(Strict):
    """What a stream brings besides the text."""

    include_usage: bool | None = Field(None, description="whether a last chunk counts the tokens")
    include_obfuscation: bool | None = Field(None, description="without effect")


class ResponseFormat(Strict):
    """Answers are text."""

    type: Literal["text"]


class CommonBody(Strict):
    """The fields that both kinds of completions have."""

    model: str | None = Field(None, description="null: the first that the caller may ask")
    temperature: Annotated[float, Field(ge=0, le=2)] | None = Field(
        None, description=f"of the sampling; 0 is greedy; null: {TEMPERATURE:g}"
    )
    top_p: Annotated[float, Field(gt=0, le=1)] | None = Field(
        None, description="share of the probability that is sampled from; null: 1"
    )
    max_tokens: Annotated[int, Field(ge=1)] | None = Field(None, description="longest answer, in tokens")
    n: Annotated[int, Field(ge=1, le=MOST_SAMPLES)] | None = Field(None, description="answers; null: 1")
    seed: Annotated[int, Field(ge=0, lt=2**63)] | None = Field(
        None, description="of the sampling; null: drawn"
    )
    stop: StopText | Annotated[list[StopText], Field(max_length=4, fail_fast=True)] | None = Field(
        None, description="texts that end an answer, and are left out of it"
    )
    stream: bool | None = Field(
        None, description="whether the answer comes as it is made, by server-sent events"
    )
    stream_options: StreamOptions | None = None
    score: bool | None = Field(
        None,
        description="whether the answer's achieved scores are told; refused where the caller may not have them",
    )
    chat_template_kwargs: TemplateKwargs | None = Field(
        None, description="dials by name, as vLLM's clients give them"
    )
    user: str | None = Field(None, description="without effect, as are the fields below that are not refused")
    metadata: Metadata | None = None
    store: bool | None = None
    service_tier: str | None = None
    safety_identifier: str | None = None
    prompt_cache_key: str | None = None
    prompt_cache_retention: str | None = None
    prompt_cache_options: dict[str, Any] | None = None
    frequency_penalty: Zero | None = Field(None, description="nothing but 0")
    presence_penalty: Zero | None = Field(None, description="nothing but 0")
    logit_bias: NoMap | None = Field(None, description="nothing but {}")
    prompt_embeds: None = None
    chat_template: None = None
    documents: Nothing | None = None


class ChatBody(CommonBody):
    """A request for chat completions."""

    messages: Annotated[list[Turn], Field(min_length=1, fail_fast=True)] = Field(
        description="the conversation: at most one system turn, at its head; its last turn is the user's"
    )
    max_completion_tokens: Annotated[int, Field(ge=1)] | None = Field(None, description="as max_tokens")
    logprobs: OnlyFalse | None = Field(None, description="nothing but false")
    top_logprobs: Zero | None = None
    tools: Nothing | None = Field(None, description="nothing but []")
    tool_choice: Literal["none"] | None = None
    functions: Nothing | None = None
    function_call: Literal["none"] | None = None
    parallel_tool_calls: bool | None = None
    response_format: ResponseFormat | None = None
    reasoning_effort: Literal["none"] | None = None
    verbosity: Literal["medium"] | None = Field(None, description="nothing but medium")
    prediction: None = None
    web_search_options: None = None
    moderation: None = None
    audio: None = None
    modalities: Annotated[list[Literal["text"]], Field(max_length=1, fail_fast=True)] | None = None
    add_generation_prompt: OnlyTrue | None = None
    continue_final_message: OnlyFalse | None = None


class CompletionBody(CommonBody):
    """A request for completions: the prompt is one user turn, through the chat template, so that dials hold."""

    prompt: str
    echo: OnlyFalse | None = Field(None, description="nothing but false")
    suffix: NoText | None = None
    best_of: OnlyOne | None = None
    logprobs: Zero | None = Field(None, description="nothing but null or 0")


@dataclass(frozen=True, slots=True)
class BodyTypes:
    """The bodies of the dials that are served."""

    chat: type[ChatBody]
    completion: type[CompletionBody]

    @classmethod
    def of(cls, dials: Iterable[Attribute]) -> "BodyTypes":
        """A field a dial; one whose name is a field already is turned by a header or `chat_template_kwargs` alone."""
        found = {dial.name: dial for dial in dials}
        return cls(
            chat=_with_dials(ChatBody, "ChatCompletionRequest", found),
            completion=_with_dials(CompletionBody, "CompletionRequest", found),
        )


def _with_dials(base: type[AnyBody], name: str, dials: Mapping[str, Attribute]) -> type[AnyBody]:
    fields: dict[str, Any] = {
        dial: (Dial | None, Field(None, description=f"{each.description}: 0 {each.low}, 1 {each.high}"))
        for dial, each in dials.items()
        if dial not in base.model_fields
    }
    made: type[AnyBody] = create_model(name, __base__=base, __doc__=base.__doc__, **fields)
    return made


def read_body(kind: type[AnyBody], body: bytes | bytearray) -> AnyBody:
    """The body of a request. Raises `Refusal` (400) that names the field, what it holds and what it may hold."""
    try:
        return kind.model_validate_json(body)
    except ValidationError as error:
        raise _refusal(error, kind) from None


def _refusal(error: ValidationError, kind: type[CommonBody]) -> Refusal:
    faults = error.errors(include_url=False, include_context=True)
    faults = [each for each in faults if not _is_other_branch(each)] or faults
    # Of an image that it is no text tells more than that its fields are unknown.
    of_type = [each for each in faults if each["type"] == "literal_error" and each["loc"][-1] == "type"]
    unknown = [each for each in faults if each["type"] == "extra_forbidden"]
    fault = [*of_type, *unknown, *faults][0]
    where = ".".join(map(str, fault["loc"] if fault["type"] == "json_invalid" else _path(fault)))
    param = where[:_LONGEST_PATH] or None
    if fault["type"] == "json_invalid":
        said = str(fault["msg"]).removeprefix("Invalid JSON: ")
        return Refusal(400, "invalid_json", f"the body is no JSON: {said}", "send a JSON object")
    if fault["type"] == "extra_forbidden":
        near = did_you_mean(fault["loc"][-1], _names_beside(kind, fault["loc"]))
        message = f"{shown(where)}: got a field that is not known here{near}"
        return Refusal(400, "unknown_field", message, "leave it out; /docs lists the fields", param=param)
    if fault["type"] == "missing":
        return Refusal(400, "missing_field", f"{where}: is missing", "/docs lists the fields", param=param)
    kinds = [each for each in faults if _outer(each["loc"]) == _outer(fault["loc"])]
    allowed = " or ".join(dict.fromkeys(_allowed(each) for each in kinds))
    message = f"{where or 'the body'}: got {shown(fault['input'])}, allowed is {allowed}"
    return Refusal(400, "invalid_value", message, "/docs says what each field may hold", param=param)


def _is_other_branch(fault: Any) -> bool:
    """Whether a fault is only that a list is no text, or a text no list, where the field may be either."""
    kind, given = fault["type"], fault["input"]
    return fault["loc"][-1:] != _outer(fault["loc"])[-1:] and (
        (kind == "string_type" and isinstance(given, list))
        or (kind == "list_type" and isinstance(given, str))
    )


def _path(fault: Any) -> list[int | str]:
    """Where a fault lies; a field that is not known is called what the client called it."""
    location = fault["loc"]
    if fault["type"] == "extra_forbidden":
        return [*_outer(location[:-1]), location[-1]]
    return _outer(location)


def _outer(location: Sequence[int | str]) -> list[int | str]:
    """Where a fault lies, without what a branch of a union is called."""
    has_branches = location[:1] in (("messages",), ("stop",))
    return [part for part in location if not has_branches or part not in _BRANCHES]


def _allowed(fault: Any) -> str:
    """What a field may hold, of a fault that pydantic found."""
    kind, limits = fault["type"], fault.get("ctx", {})
    match kind:
        case "literal_error":
            return str(limits["expected"]).replace("True", "true").replace("False", "false")
        case "greater_than_equal":
            return f"{limits['ge']:g} or more"
        case "greater_than":
            return f"more than {limits['gt']:g}"
        case "less_than_equal":
            return f"{limits['le']:g} or less"
        case "less_than":
            return f"less than {limits['lt']:g}"
        case "too_long" | "string_too_long":
            return f"a length of at most {limits['max_length']}"
        case "too_short" | "string_too_short":
            return f"a length of at least {limits['min_length']}"
    return _KINDS.get(kind, plain_words(str(fault["msg"])))


_KINDS = {
    "none_required": "null",
    "string_type": "text",
    "bool_type": "true or false",
    "int_type": "a whole number",
    "int_from_float": "a whole number",
    "float_type": "a number",
    "finite_number": "a finite number",
    "list_type": "a list",
    "dict_type": "an object",
    "model_type": "an object",
    "model_attributes_type": "an object",
}
_BRANCHES = ("str", "constrained-str", "list[TextPart]", "list[constrained-str]")
_SHOWN = 60
_LONGEST_PATH = 120


def _names_beside(kind: type[CommonBody], location: Sequence[int | str]) -> list[str]:
    """The names that the object has in which an unknown field stood."""
    if len(location) == 1:
        return list(kind.model_fields)
    first = location[0]
    inner: dict[int | str, type[BaseModel]] = {
        "messages": TextPart if len(_outer(location)) > 3 else Turn,
        "stream_options": StreamOptions,
        "response_format": ResponseFormat,
    }
    return list(inner[first].model_fields) if first in inner else []


def shown(value: object) -> str:
    """A value of a body for a message, cut where it is long: never more than a line of what a client sent."""
    if value is None or isinstance(value, bool):
        return {None: "null", True: "true", False: "false"}[value]
    if isinstance(value, int) and abs(value) >= 10**20:
        return "a number of many digits"
    if isinstance(value, str):
        return repr(value[:_SHOWN] + "…" if len(value) > _SHOWN else value)
    if isinstance(value, list):
        return f"a list of {len(value)}"
    return "an object" if isinstance(value, dict) else repr(value)
