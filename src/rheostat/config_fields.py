"""The keys of a block of the recipe: found by path, and described in the words of a YAML file."""

import re
import types
from collections.abc import Iterable, Iterator, Sequence
from typing import Annotated, Any, Literal, Union, get_args, get_origin

from annotated_types import Ge, Gt, Le, Lt
from pydantic import AwareDatetime, BaseModel
from pydantic.fields import FieldInfo

from rheostat.errors import did_you_mean
from rheostat.yaml_text import shown

EVERY_DIAL, BY_DIAL = "[every dial]", "[by dial]"
"""The branches of levels: a list, or a list a dial."""

UNION_BRANCHES = (
    "str", "list[str]", "[key]", "[text]", "[block]", "[list]", "[auto]", "[other]", EVERY_DIAL, BY_DIAL
)  # fmt: skip
"""What pydantic puts into a location beside the keys."""

_UNKNOWN = "what the option takes"


def block_at(block: type[BaseModel] | None, location: Sequence[str]) -> type[BaseModel] | None:
    """The block at a path of keys, None where there is none."""
    skip = 0
    for part in location:
        if skip:
            skip -= 1
            continue
        if part.isdigit():  # a place in a list
            continue
        field: FieldInfo | None = block.model_fields.get(part) if block else None
        if field is None:
            return None
        block, skip = _inner_block(field.annotation)
    return block


def _inner_block(annotation: Any) -> tuple[type[BaseModel] | None, int]:
    """The block inside an annotation, and how many mapping keys lie between."""
    origin = get_origin(annotation)
    if origin is Annotated or origin is list:
        return _inner_block(get_args(annotation)[0])
    if origin is dict:
        block, keys = _inner_block(get_args(annotation)[1])
        return block, keys + 1
    if origin in (Union, types.UnionType):
        found = [_inner_block(option) for option in get_args(annotation)]
        return next((each for each in found if each[0]), (None, 0))
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return annotation, 0
    return None, 0


def describe_fields(block: type[BaseModel], prefix: str = "") -> Iterator[tuple[str, str, str, str]]:
    """Every key as (path, type, default, meaning): what `rheostat config` and docs/configuration.md show.

    A block that may stand in for a text or in a list is described once, after the keys that take it.
    """
    items: dict[str, type[BaseModel]] = {}
    for name, field in block.model_fields.items():
        inner, keys = _inner_block(field.annotation)
        path = prefix + name + ".NAME" * keys
        if inner is not None and _is_text_too(field.annotation):
            items[f"{prefix}{inner.__name__.removesuffix('Config').upper()}"] = inner
            inner = None
        if inner is not None:
            yield path, "block", "", field.description or (inner.__doc__ or "").splitlines()[0]
            yield from describe_fields(inner, path + ".")
        else:
            default = (
                "required" if field.is_required() else _text(field.get_default(call_default_factory=True))
            )
            kind = _kind(_behind_names(field.annotation, keys), _limits(field.metadata))
            yield path, kind, default, field.description or ""
    for path, inner in items.items():
        yield path, "block", "", (inner.__doc__ or "").splitlines()[0]
        yield from describe_fields(inner, path + ".")


def _behind_names(annotation: Any, keys: int) -> Any:
    """The type of a mapping's values, of mappings nested so deep."""
    return _behind_names(get_args(annotation)[1], keys - 1) if keys else annotation


def _is_text_too(annotation: Any) -> bool:
    """Whether text is allowed in the place of a block."""
    origin, inner = get_origin(annotation), get_args(annotation)
    if origin is Annotated:
        return _is_text_too(inner[0])
    return annotation is str or (origin in (Union, types.UnionType) and any(map(_is_text_too, inner)))


def plain_words(message: str) -> str:
    """A message of pydantic in the words of a YAML file."""
    message = message.removeprefix("Value error, ")
    for pattern, words in (
        (r"a valid dictionary( or instance of \w+)?", "a block of keys"),
        (r"a valid integer", "a whole number"),
        (r"a valid boolean", "true or false"),
        (r"a valid string", "text"),
        (r"a valid (list|number)", r"a \1"),
        (r"(List|Dictionary) should have at least (\d+) items? after validation.*", r"allowed are \2 or more"),
        (r", unable to (parse|interpret).*|, got a number with a fractional part", ""),
    ):
        message = re.sub(pattern, words, message)
    return message


def describe_fault(detail: Any, root: type[BaseModel]) -> str:
    """A fault that pydantic found in a block of type `root`, in the words of a YAML file."""
    location = [str(part) for part in detail["loc"] if str(part) not in UNION_BRANCHES]
    where = ".".join(location)
    if detail["type"] == "extra_forbidden":
        block = block_at(root, location[:-1])
        names = sorted(block.model_fields) if block else []
        return f"{where}: unknown key{did_you_mean(location[-1], names)}; allowed are {', '.join(names)}"
    if detail["type"] == "missing":
        return f"{where}: missing, and it has no default"
    message = plain_words(detail["msg"])
    if message.startswith("got ") or not where:
        return f"{where}: {message}" if where else message
    return f"{where}: got {shown(detail['input'])}; {message[0].lower()}{message[1:]}"


def _kind(annotation: Any, limits: str = "") -> str:
    """A type in the words of a YAML file."""
    origin, inner = get_origin(annotation), get_args(annotation)
    if origin is Annotated:
        return _kind(inner[0], _limits(inner[1:]))
    if origin is Literal:
        return " or ".join(map(_text, inner))
    if origin in (Union, types.UnionType):
        kinds = [_kind(each) for each in inner if each is not type(None)]
        kinds[1:] = ["such a list by name" if kind == f"{kinds[0]} by name" else kind for kind in kinds[1:]]
        return " or ".join(kinds) + (", or null" if type(None) in inner else "")
    if origin is list:
        if _is_text_too(inner[0]) and _inner_block(inner[0])[0] is not None:
            return "list of these"
        kind, _, within = _kind(inner[0]).partition(" ")
        return f"list of {kind}s {within}".strip()
    if origin is dict and _kind(inner[1]) != _UNKNOWN:
        return f"{_kind(inner[1])} by name"
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return "block"
    names = {int: "whole number", float: "number", str: "text", bool: "true or false", AwareDatetime: "moment"}
    return f"{names.get(annotation, _UNKNOWN)} {limits}".strip()


def _limits(constraints: Iterable[Any]) -> str:
    """The limits of a number: `from 0 to 1`, `above 0`, `of 1 or more`."""
    bounds = [
        bound
        for each in constraints
        for bound in (each.metadata if isinstance(each, FieldInfo) else [each])
        if isinstance(bound, Ge | Gt | Le | Lt)
    ]
    match bounds:
        case [Ge(ge=lowest), Le(le=highest)]:
            return f"that is {lowest}" if str(lowest) == str(highest) else f"from {lowest} to {highest}"
        case [Ge(ge=lowest)]:
            return f"of {lowest} or more"
    said = []
    for bound in bounds:
        match bound:
            case Ge():
                said.append(f"from {bound.ge}")
            case Gt():
                said.append(f"above {bound.gt}")
            case Le():
                said.append(f"up to {bound.le}")
            case Lt():
                said.append(f"below {bound.lt}")
    return " ".join(said)


def _text(value: object) -> str:
    """A value as it stands in a YAML file."""
    if isinstance(value, list):
        return f"[{', '.join(map(_text, value))}]"
    if isinstance(value, dict):
        return f"{{{', '.join(f'{name}: {_text(each)}' for name, each in value.items())}}}"
    if value is None or isinstance(value, bool):
        return {None: "null", True: "true", False: "false"}[value]
    return f"{value:g}" if isinstance(value, float) else str(value)
