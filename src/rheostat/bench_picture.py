"""The bench's pictures: where every method lands on the plane of the first two dials. Pure.

What a method without a dial answers is a point; a method with one is a curve, or a net of all its settings.
"""

import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from rheostat.canvas import (
    FINE,
    LIGHT,
    TEXT,
    Array,
    MethodStyle,
    Panel,
    Theme,
    figure,
    marked_line,
    method_styles,
)
from rheostat.metrics import Interval, pareto_front

LARGE, SMALL = 4.3, 2.0
"""Sides of a panel, in inches."""

COLUMNS = 5
"""Nets side by side."""

Entries = Mapping[str, Mapping[str, Any]]


def fronts(entries: Entries, groups: Mapping[str, Sequence[str]], dials: Sequence[str]) -> Figure:
    """The Pareto picture: a panel a group of dialled methods, each with its best compromises joined, and all points.

    `entries` are the methods of an evaluation in evaluation.json, `groups` titles with the dialled methods that each
    panel shows, `dials` the two attributes: the first drawn upward, the second to the right.
    """
    points = _points(entries)
    styles = method_styles([name for members in groups.values() for name in members])
    best = {name: _best(landings(entries[name], dials)) for name in styles}
    lowest = _lowest([*best.values(), *(_landing(entries[name], dials) for name in points)])

    def panel(title: str, members: Sequence[str]) -> Panel:
        def draw(axes: Axes, theme: Theme) -> None:
            for name in members:
                x, y = best[name].T.tolist()
                axes.add_line(marked_line(styles[name], theme, x=x, y=y, size=5.5))
            _draw_points(axes, theme, entries, points, dials, size=8)
            _plane(axes, theme, dials, lowest=lowest)

        return Panel(title, LARGE, LARGE, draw)

    note = (
        "Mean scores by the reward models over the held-out prompts. A line joins those settings of a method's "
        "dials that no other of its settings beats in both scores;\nblack marks are methods without a dial, with "
        "95 % intervals."
    )
    panels = [panel(title, members) for title, members in groups.items() if members]
    return figure([panels], theme=LIGHT, legend={**styles, **points}, note=note)


def nets(entries: Entries, dials: Sequence[str]) -> Figure:
    """Where all settings of each dialled method land, neighbours joined, with the points of the undialled behind."""
    points = _points(entries)
    styles = method_styles([name for name in entries if name not in points])

    def panel(name: str) -> Panel:
        def draw(axes: Axes, theme: Theme) -> None:
            colour = theme.named()[styles[name].colour]
            knots = net(entries[name], dials)
            for line in (*knots, *knots.transpose(1, 0, 2)):
                axes.plot(line[:, 0], line[:, 1], color=colour, linewidth=1.0, alpha=0.85, zorder=2)
            axes.plot(*knots[-1, -1], "o", color=colour, markersize=5, zorder=4)
            axes.plot(*knots[0, 0], "o", color=colour, mfc=theme.card, markersize=5, zorder=4)
            _draw_points(axes, theme, entries, points, dials, size=4.5)
            _plane(axes, theme, dials)

        return Panel(name, SMALL, SMALL, draw)

    panels = [panel(name) for name in styles]
    note = (
        "A knot is the mean scores at one setting of both dials: ● both fully up, ○ both fully down; perfect "
        "control would be the whole square.\nBlack marks are the methods without a dial."
    )
    rows = [panels[start : start + COLUMNS] for start in range(0, len(panels), COLUMNS)]
    return figure(rows, theme=LIGHT, legend=points, note=note)


def landings(entry: Mapping[str, Any], dials: Sequence[str]) -> Array:
    """Mean achieved scores of every setting `(settings, 2)`: the second dial's, then the first's, as they are drawn."""
    return np.array([[each["achieved"][name] for name in dials[1::-1]] for each in entry["settings"]])


def net(entry: Mapping[str, Any], dials: Sequence[str]) -> Array:
    """The same as a net `(levels of the first, levels of the second, 2)`, averaged over further dials."""
    levels = [sorted({each["requested"][name] for each in entry["settings"]}) for name in dials[:2]]
    sums, counts = np.zeros((len(levels[0]), len(levels[1]), 2)), np.zeros((len(levels[0]), len(levels[1]), 1))
    for each, landing in zip(entry["settings"], landings(entry, dials), strict=True):
        row, column = (own.index(each["requested"][name]) for own, name in zip(levels, dials, strict=False))
        sums[row, column] += landing
        counts[row, column] += 1
    means: Array = sums / counts
    return means


def _best(settings: Array) -> Array:
    """The settings that no other beats, from left to right."""
    kept = settings[pareto_front(settings)]
    ordered: Array = kept[np.lexsort((-kept[:, 1], kept[:, 0]))]
    return ordered


def _landing(entry: Mapping[str, Any], dials: Sequence[str]) -> Array:
    return np.array([[entry["attributes"][name]["achieved"]["value"] for name in dials[1::-1]]])


def _lowest(shown: Sequence[Array]) -> float:
    """Where both axes begin: a quarter below which nothing lies."""
    return min(0.75, math.floor(4 * float(np.concatenate(shown).min())) / 4)


def _points(entries: Entries) -> dict[str, MethodStyle]:
    """The methods without a dial, in black, told apart by their markers."""
    names = [name for name, entry in entries.items() if not entry["has_dial"]]
    heads = method_styles([f"method {place}" for place in range(len(names))])
    return {
        name: MethodStyle("ink", style.marker, "none", hollow=name == "base")
        for name, style in zip(names, heads.values(), strict=True)
    }


def _draw_points(
    axes: Axes,
    theme: Theme,
    entries: Entries,
    points: Mapping[str, MethodStyle],
    dials: Sequence[str],
    *,
    size: float,
) -> None:
    for name, style in points.items():
        y, x = (Interval(**entries[name]["attributes"][each]["achieved"]) for each in dials[:2])
        axes.hlines(y.value, x.low, x.high, color=theme.ink, linewidth=0.9, alpha=0.5, zorder=5)
        axes.vlines(x.value, y.low, y.high, color=theme.ink, linewidth=0.9, alpha=0.5, zorder=5)
        mark = marked_line(style, theme, x=[x.value], y=[y.value], size=size)
        mark.set_zorder(6)
        if not style.hollow:
            mark.set_markeredgecolor(theme.card)
        axes.add_line(mark)


def _plane(axes: Axes, theme: Theme, dials: Sequence[str], *, lowest: float = 0.0) -> None:
    axes.set_xlim(lowest - 0.02, 1.02)
    axes.set_ylim(lowest - 0.02, 1.02)
    ticks = [tick for tick in (0.0, 0.25, 0.5, 0.75, 1.0) if tick >= lowest]
    axes.set_xticks(ticks, [f"{tick:g}" for tick in ticks])
    axes.set_yticks(ticks, [f"{tick:g}" for tick in ticks])
    axes.set_aspect("equal", adjustable="box")
    axes.set_xlabel(f"mean {dials[1]}", fontsize=TEXT, color=theme.muted)
    axes.set_ylabel(f"mean {dials[0]}", fontsize=TEXT, color=theme.muted)
    for side, spine in axes.spines.items():
        spine.set_visible(side in ("left", "bottom"))
        spine.set_color(theme.line)
    axes.tick_params(colors=theme.muted, labelsize=FINE, color=theme.line, length=2.5)
    axes.grid(color=theme.line, linewidth=0.5, alpha=0.7)
    axes.set_axisbelow(True)
