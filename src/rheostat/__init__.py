"""Rheostat: two dials, safety and helpfulness, for any chat LLM.

`import rheostat` loads no torch; `rheostat.load(path)` does.
"""

from typing import TYPE_CHECKING, Any

from rheostat.version import __version__

if TYPE_CHECKING:
    from rheostat.dialled import DialledModel, load

__all__ = ["DialledModel", "__version__", "load"]


def __getattr__(name: str) -> Any:
    if name in ("DialledModel", "load"):
        from rheostat import dialled

        return getattr(dialled, name)
    raise AttributeError(f"module 'rheostat' has no attribute {name!r}")
