"""Which levels a caller gets: what was asked for, by whichever way, against what the policy allows. Pure.

One function decides, `grant`. Whatever way a value came, the level that goes to the engine is one of the model's own
levels between floor and ceiling, since no other is in the format that it is quantised by.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

from rheostat.control import ControlFormat, level_text
from rheostat.errors import did_you_mean
from rheostat.gateway.refusals import Refusal
from rheostat.records import Control
from rheostat.yaml_text import shown

HEADER = "x-rheostat-"
"""Before a dial's name, a header that turns it: `X-Rheostat-Safety: 0.75`."""

BelowFloor = Literal["raise", "refuse"]
_SHOWN = 60
"""Characters, or digits, of a request's own text that an error repeats."""


@dataclass(frozen=True, slots=True)
class DialLimits:
    """What a tenant may ask of the dials, in [0, 1] by dial; a dial that is not named is free.

    `below_floor` says what becomes of a value below the floor, number by number: raised to it, or the request refused.
    """

    floors: Mapping[str, float] = field(default_factory=dict)
    ceilings: Mapping[str, float] = field(default_factory=dict)
    defaults: Mapping[str, float] = field(default_factory=dict)
    below_floor: BelowFloor = "raise"

    def on(self, control_format: ControlFormat) -> ControlFormat:
        """The dials of a model as this tenant has them.

        Raises `DialError` for a dial that the model lacks and for what is none of its levels: a floor that a model
        cannot hold must not be dropped in silence.
        """
        held = control_format.with_floors(self.floors).with_ceilings(self.ceilings)
        return held.with_defaults(self.defaults)


@dataclass(frozen=True, slots=True)
class DialReport:
    """What became of one dial: what was asked for (None: nothing), the level given, and why that one.

    `is_by_policy` says that the policy's floor or ceiling made it so.
    """

    requested: float | None
    granted: float
    why: str
    is_by_policy: bool = False

    def values(self) -> dict[str, Any]:
        """As the response has it."""
        return {"requested": self.requested, "granted": self.granted, "why": self.why}


@dataclass(frozen=True, slots=True)
class Grant:
    """The control that the engine gets, and per dial how it came about."""

    control: Control
    dials: Mapping[str, DialReport]


def grant(requested: Mapping[str, float], limits: DialLimits, allowed: ControlFormat) -> Grant:
    """The levels for what was requested, by dial, in [0, 1]; `allowed` is `limits.on` the model's dials.

    Raises `Refusal`: 400 for a dial that there is not, 403 below a floor that refuses.
    """
    unknown = sorted(set(requested) - set(allowed.names))
    if unknown:
        named = ", ".join(f"{shown(name)}{did_you_mean(name[:_SHOWN], allowed.names)}" for name in unknown[:3])
        more = f" nor {len(unknown) - 3} others" if unknown[3:] else ""
        raise Refusal(
            400,
            "unknown_dial",
            f"there is no dial {named}{more}; this model has {', '.join(allowed.names)}",
            "use one of the dials named above",
            param=unknown[0][:_SHOWN],
        )
    reports = {name: _dial(name, requested.get(name), limits, allowed) for name in allowed.names}
    return Grant({name: report.granted for name, report in reports.items()}, reports)


def _dial(name: str, value: float | None, limits: DialLimits, allowed: ControlFormat) -> DialReport:
    if value is None:
        return DialReport(None, allowed.default_of(name), "not given: the default")
    level = allowed.quantise(name, value)
    floor, ceiling = limits.floors.get(name), limits.ceilings.get(name)
    if floor is not None and value < floor and limits.below_floor == "refuse":
        raise Refusal(
            403,
            "below_floor",
            f"{name}: got {value:g}, allowed is {level_text(floor)} or more",
            "ask for more of it, or leave it out",
            param=name,
        )
    if level == value:
        return DialReport(value, level, "as requested")
    if level == floor and value < level:
        return DialReport(value, level, f"raised to the floor {level_text(level)}", is_by_policy=True)
    if level == ceiling and value > level:
        return DialReport(value, level, f"lowered to the ceiling {level_text(level)}", is_by_policy=True)
    return DialReport(value, level, "by its calibration" if name in allowed.thresholds else "the nearest level")


def dial_value(name: str, value: object, way: str) -> float:
    """A dial's value as the body has it, a number in [0, 1]. Raises `Refusal` (400); `way` says where it stood."""
    if isinstance(value, bool) or not isinstance(value, int | float) or not 0 <= value <= 1:
        is_huge = isinstance(value, int) and abs(value) >= 10**_SHOWN
        raise Refusal(
            400,
            "dial_out_of_range",
            f"{way}: got {'a huge number' if is_huge else shown(value)}, allowed is a number from 0 to 1",
            "0 turns the dial fully down, 1 fully up",
            param=name,
        )
    return float(value)
