"""The keys of a block of the recipe: found by path, and described in the words of a YAML file."""

import types
from collections.abc import Iterator, Sequence
from typing import Annotated, Any, Literal, Union, get_args, get_origin

from pydantic import BaseModel
from pydantic.fields import FieldInfo


def block_at(block: type[BaseModel] | None, location: Sequence[str]) -> type[BaseModel] | None:
    """The block at a path of keys, None where there is none."""
    skip = 0
    for part in location:
        if skip:
            skip -= 1
            continue
        field: FieldInfo | None = block.model_fields.get(part) if block else None
        if field is None:
            return None
        block, skip = _inner_block(field.annotation)
    return block


def _inner_block(annotation: Any) -> tuple[type[BaseModel] | None, int]:
    """The block inside an annotation, and how many mapping keys lie between."""
    origin = get_origin(annotation)
    if origin is dict:
        block, keys = _inner_block(get_args(annotation)[1])
        return block, keys + 1
    if origin in (Union, types.UnionType):
        found = [_inner_block(option) for option in get_args(annotation)]
        return next((each for each in found if each[0]), (None, 0))
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return annotation, 0
    return None, 0


def describe_fields(
    block: type[BaseModel], prefix: str = ""
) -> Iterator[tuple[str, str, str, str]]:
    """Every key as (path, type, default, meaning): what `rheostat config` and docs/configuration.md show."""
    for name, field in block.model_fields.items():
        inner, keys = _inner_block(field.annotation)
        path = prefix + name + ".NAME" * keys
        if inner is not None:
            yield path, "block", "", field.description or (inner.__doc__ or "").splitlines()[0]
            yield from describe_fields(inner, path + ".")
        else:
            default = "required" if field.is_required() else str(field.get_default(call_default_factory=True))
            yield path, _kind(field.annotation), default, field.description or ""


def _kind(annotation: Any) -> str:
    """A type in the words of a YAML file."""
    origin, inner = get_origin(annotation), get_args(annotation)
    if origin is Annotated:
        return _kind(inner[0])
    if origin is Literal:
        return " or ".join(repr(each) for each in inner)
    if origin in (Union, types.UnionType):
        return " or ".join("none" if each is type(None) else _kind(each) for each in inner)
    if origin is list:
        return f"list of {_kind(inner[0])}"
    if origin is dict:
        return f"mapping to {_kind(inner[1])}"
    names = {int: "whole number", float: "number", str: "text", bool: "true or false"}
    return names.get(annotation, "anything")
