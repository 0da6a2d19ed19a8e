"""The picture of calibrated dials: what was wanted and what was achieved, before and after."""

from collections.abc import Mapping, Sequence
from typing import Any

from matplotlib.axes import Axes

from rheostat.canvas import FINE, MethodStyle, Panel, Theme
from rheostat.metrics import Interval, LevelPoint
from rheostat.pictures import MIDDLE, level_curve

STYLES = {
    "nearest level": MethodStyle("base", "", "-", hollow=False),
    "calibrated": MethodStyle("hue-3", ".", "-", hollow=False),
}
"""How a dial looks before and after calibration, for the panel and its legend."""


def calibrated_curve(found: Mapping[str, Any], *, dial: str, size: float = MIDDLE) -> Panel:
    """Achieved against wanted, before and after, of a dial of evaluation.json; its reach is the span between lines."""
    curves = {
        label: _points(found["curve"], key) for label, key in zip(STYLES, ("before", "after"), strict=True)
    }
    ends = [float(found["reachable"][end]["value"]) for end in ("low", "high")]
    base = level_curve(curves, attribute=dial, styles=STYLES, size=size)

    def draw(axes: Axes, theme: Theme) -> None:
        axes.axhspan(*ends, color=theme.line, alpha=0.35, linewidth=0, zorder=0)
        for end, side in zip(ends, ("top", "bottom"), strict=True):
            axes.axhline(end, color=theme.muted, linewidth=0.8, linestyle=(0, (1, 2)), zorder=1)
            axes.text(
                1.0 if side == "top" else 0.0,
                end,
                f"reaches {end:.2f}",
                ha="right" if side == "top" else "left",
                va=side,
                fontsize=FINE,
                color=theme.muted,
            )
        base.draw(axes, theme)
        axes.set_xlabel(f"wanted {dial}")

    return Panel(dial, size, size, draw)


def _points(curve: Sequence[Mapping[str, Any]], key: str) -> list[LevelPoint]:
    return [LevelPoint(float(each["wanted"]), Interval(**each[key])) for each in curve]
