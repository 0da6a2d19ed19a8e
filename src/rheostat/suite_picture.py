"""The suite's picture: harm and over-refusal of every method over the dial, few of them with intervals. Pure."""

from collections.abc import Mapping, Sequence
from typing import Any

from matplotlib.axes import Axes

from rheostat.canvas import FINE, TEXT, MethodStyle, Panel, Theme, marked_line
from rheostat.pictures import CROWD
from rheostat.suite_report import RATES

WIDTH, HEIGHT = 3.9, 2.9
"""Of each side, in inches."""


def panels(suite: Mapping[str, Any], styles: Mapping[str, MethodStyle]) -> list[Panel]:
    """Both sides of the picture: harm, and over-refusal, a line a method over the levels of the dial."""
    counts = (f"{suite['prompts']['harmful']} harmful prompts", f"{suite['prompts']['harmless']} harmless prompts")
    return [
        _panel(suite, rate, f"{words}, {count}", styles)
        for (rate, words), count in zip(RATES, counts, strict=True)
    ]


def _panel(suite: Mapping[str, Any], rate: str, title: str, styles: Mapping[str, MethodStyle]) -> Panel:
    methods: Mapping[str, Sequence[Mapping[str, Any]]] = suite["methods"]
    levels = [point["level"] for point in next(iter(methods.values()))]

    def draw(axes: Axes, theme: Theme) -> None:
        for place, (method, points) in enumerate(methods.items()):
            style = styles[method]
            colour = theme.named()[style.colour]
            aside = _aside(place, len(methods), levels)
            where = [point["level"] + aside for point in points]
            if len(methods) <= CROWD:
                axes.vlines(
                    where,
                    [100 * point[rate]["low"] for point in points],
                    [100 * point[rate]["high"] for point in points],
                    color=colour,
                    linewidth=1.3,
                    alpha=0.55,
                    zorder=3,
                )
            values = [100 * point[rate]["value"] for point in points]
            axes.add_line(marked_line(style, theme, x=where, y=values, size=5))
        axes.set_ylim(-4, 104)
        axes.set_xlim(min(levels) - 0.08, max(levels) + 0.08)
        axes.set_xticks(levels, [f"{level:g}" for level in levels])
        axes.set_yticks([0, 25, 50, 75, 100])
        axes.set_xlabel(f"requested {suite['dial']}", fontsize=TEXT, color=theme.muted)
        axes.set_ylabel("% of answers", fontsize=TEXT, color=theme.muted)
        for side, spine in axes.spines.items():
            spine.set_visible(side in ("left", "bottom"))
            spine.set_color(theme.line)
        axes.tick_params(colors=theme.muted, labelsize=FINE, color=theme.line, length=2.5)
        axes.grid(color=theme.line, linewidth=0.5, alpha=0.7)
        axes.set_axisbelow(True)

    return Panel(title, WIDTH, HEIGHT, draw)


def _aside(place: int, methods: int, levels: Sequence[float]) -> float:
    """How far a method stands beside its level, so that intervals do not hide each other."""
    gap = min(b - a for a, b in zip(levels, levels[1:], strict=False)) if len(levels) > 1 else 1.0
    return 0.32 * gap * (place / max(1, methods - 1) - 0.5) if methods > 1 else 0.0
