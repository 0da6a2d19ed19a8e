"""YAML text as plain values, or what is wrong with it in one line."""

import reprlib
from collections.abc import Hashable
from typing import Any

import yaml

_SHOWN = reprlib.Repr()
_SHOWN.maxlevel = 2
_SHOWN.maxstring = _SHOWN.maxother = _SHOWN.maxlong = 80
_UNREADABLE = (ArithmeticError, AssertionError, AttributeError, LookupError, TypeError)
"""What PyYAML raises, besides `ValueError`, where a tag does not fit its value: `!!bool maybe`, `!!timestamp x`."""


class _Loader(yaml.SafeLoader):
    """Safe, and without the silence of PyYAML about a key that stands twice."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Hashable, Any]:
        seen: set[str] = set()
        for key, _ in node.value if isinstance(node, yaml.MappingNode) else ():  # `!!map x` comes here as well
            if isinstance(key, yaml.ScalarNode):
                if key.value in seen and key.value != "<<":
                    raise yaml.constructor.ConstructorError(
                        None, None, f"the key {key.value!r} stands twice", key.start_mark
                    )
                seen.add(key.value)
        return super().construct_mapping(node, deep)

    def construct_object(self, node: yaml.Node, deep: bool = False) -> Any:
        try:
            return super().construct_object(node, deep)
        except _UNREADABLE:
            tag = node.tag.replace("tag:yaml.org,2002:", "!!")
            problem = f"got a value that cannot be read as {tag}"
            raise yaml.constructor.ConstructorError(None, None, problem, node.start_mark) from None


class _PlainLoader(_Loader):
    """Without aliases: a few lines of them stand for more values than there is time to check."""

    def compose_node(self, parent: yaml.Node | None, index: int) -> yaml.Node | None:
        if self.check_event(yaml.AliasEvent):
            event: yaml.AliasEvent = self.get_event()  # type: ignore[no-untyped-call]
            problem = f"aliases (*{event.anchor}) are not taken here; write it out"
            raise yaml.composer.ComposerError(None, None, problem, event.start_mark)  # type: ignore[arg-type]
        return super().compose_node(parent, index)


def parse(text: str, *, aliases: bool = True) -> Any:
    """The value of a YAML text, which may use `aliases` or not.

    Raises `ValueError` with a line that says where and why it has none.
    """
    try:
        return yaml.load(text, Loader=_Loader if aliases else _PlainLoader)  # noqa: S506  a safe loader
    except RecursionError:
        raise ValueError("it is nested too deeply") from None
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark
        where = f"line {mark.line + 1}, column {mark.column + 1}: " if mark else ""
        raise ValueError(f"it is not YAML: {where}{error.problem}") from None
    except yaml.YAMLError as error:
        raise ValueError(f"it is not YAML: {' '.join(str(error).split())}") from None
    except ValueError as error:  # a date or a number that YAML reads and Python has not
        raise ValueError(f"it holds a value that cannot be read: {str(error).partition(';')[0]}") from None
    except _UNREADABLE as error:  # before there are values: `"\\U99999999"` in the scanner
        raise ValueError(f"it is not YAML: {error}") from None


def shown(value: object) -> str:
    """A value for a message: its `repr`, cut where it is long or deep."""
    return _SHOWN.repr(value)
