"""The report's pictures, drawn from plain arrays: each function gives a panel, `dials` a whole figure."""

from collections.abc import Mapping, Sequence
from itertools import chain, zip_longest

import numpy as np
from matplotlib.axes import Axes
from matplotlib.colors import LogNorm
from matplotlib.figure import Figure

from rheostat.canvas import (
    FINE,
    LIGHT,
    SCALE,
    TEXT,
    Array,
    MethodStyle,
    Panel,
    Theme,
    figure,
    ink_on,
    marked_line,
    method_styles,
    score_colour,
)
from rheostat.control import Levels, levels_of
from rheostat.metrics import Interval, LevelPoint

Curves = Mapping[str, Sequence[LevelPoint]]
"""Per method its curve: the mean achieved score at each requested level, with its interval."""

SMALL, MIDDLE, LARGE = 2.05, 2.8, 3.6
"""Sides of a panel, in inches."""

CROWD = 8
"""Of more methods than this pictures leave out intervals and settings that only cover one another."""

PERFECT = MethodStyle("muted", "", (0, (3, 3)), hollow=False)
"""The diagonal of perfect control, for a legend."""

_TICKS = (0.0, 0.5, 1.0)


def level_curve(
    curves: Curves, *, attribute: str, styles: Mapping[str, MethodStyle], size: float = SMALL
) -> Panel:
    """Achieved against requested level of one dial, a line a method; the diagonal is perfect control."""

    def draw(axes: Axes, theme: Theme) -> None:
        axes.plot([0, 1], [0, 1], color=theme.muted, linewidth=0.9, linestyle=(0, (3, 3)), zorder=1)
        for method, points in curves.items():
            style = styles[method]
            colour = theme.named()[style.colour]
            levels = [point.level for point in points]
            means = [point.achieved.value for point in points]
            lows = [point.achieved.low for point in points]
            highs = [point.achieved.high for point in points]
            if len(curves) <= CROWD:
                axes.fill_between(levels, lows, highs, color=colour, alpha=0.16, linewidth=0)
            axes.vlines(levels, lows, highs, color=colour, linewidth=0.9, alpha=0.7, zorder=3)
            axes.add_line(marked_line(style, theme, x=levels, y=means))
        _square(axes, theme, f"requested {attribute}", f"achieved {attribute}")

    return Panel(attribute, size, size, draw)


def heat_map(
    matrix: Array, *, attribute: str, levels: Levels, dials: Sequence[str], size: float = SMALL
) -> Panel:
    """Mean achieved score at every control: up the first of `dials`, along the second.

    `matrix` `(levels of the first, levels of the second)`, or `(levels,)` with one dial.
    """
    rows, *columns = (levels_of(levels, name) for name in dials)
    cells = np.asarray(matrix, dtype=float).reshape(len(rows), -1)

    def draw(axes: Axes, theme: Theme) -> None:
        axes.pcolormesh(cells, cmap=SCALE, vmin=0, vmax=1, edgecolors=theme.card, linewidth=1.2)
        for row, column in np.ndindex(*cells.shape):
            value = float(cells[row, column])
            axes.text(
                column + 0.5,
                row + 0.48,
                f"{value:.2f}".removeprefix("0"),
                ha="center",
                va="center",
                fontsize=FINE * size / SMALL,
                color=ink_on(score_colour(value)),
            )
        _frame(axes, theme, grid=False)
        axes.set_aspect("equal", adjustable="box")
        axes.tick_params(length=0)
        axes.set_yticks(np.arange(len(rows)) + 0.5, [f"{level:g}" for level in rows])
        _name(axes, theme, f"requested {dials[1]}" if len(dials) > 1 else "", f"requested {dials[0]}")
        names = [f"{level:g}" for level in columns[0]] if columns else []
        axes.set_xticks(np.arange(len(names)) + 0.5, names)

    return Panel(f"achieved {attribute}", size, size, draw)


def lattice(
    first: Array, second: Array, *, levels: Levels, style: MethodStyle, dials: Sequence[str], size: float = SMALL
) -> Panel:
    """Where each control of two dials lands, neighbours joined; perfect control is the lattice behind.

    `first`, `second` `(levels of the first, levels of the second)`: mean achieved score of the first dial, drawn
    upward, and of the second, drawn to the right. The filled mark is both dials fully up, the hollow one both fully
    down.
    """
    up, right = np.asarray(first, dtype=float), np.asarray(second, dtype=float)
    assert up.shape == right.shape, (up.shape, right.shape)

    def draw(axes: Axes, theme: Theme) -> None:
        rows, columns = (levels_of(levels, name) for name in dials)
        upright = [([column, column], [rows[0], rows[-1]]) for column in columns]
        level = [([columns[0], columns[-1]], [row, row]) for row in rows]
        for line in filter(None, chain(*zip_longest(upright, level))):
            axes.plot(*line, color=theme.line, linewidth=0.8, zorder=1)
        colour = theme.named()[style.colour]
        for x, y in (*zip(right, up, strict=True), *zip(right.T, up.T, strict=True)):
            axes.plot(x, y, color=colour, linewidth=1.1, alpha=0.85, zorder=2, solid_joinstyle="round")
        axes.plot(right.ravel(), up.ravel(), ".", color=colour, markersize=3.2, zorder=3)
        axes.plot(right[-1, -1], up[-1, -1], "o", color=colour, markersize=6, zorder=4)
        axes.plot(right[0, 0], up[0, 0], "o", color=colour, mfc=theme.card, markersize=6, zorder=4)
        _square(axes, theme, f"achieved {dials[1]}", f"achieved {dials[0]}", grid=False)

    return Panel("where controls land", size, size, draw)


def front_of_methods(
    points: Mapping[str, tuple[Interval, Interval]],
    front: Sequence[bool],
    *,
    styles: Mapping[str, MethodStyle],
    names: tuple[str, str],
) -> Panel:
    """One mark a method at (x, y), two figures that are better when higher, with intervals.

    `front` says which methods are on the Pareto front, in the order of `points`; `names` name the axes.
    """

    def draw(axes: Axes, theme: Theme) -> None:
        kept = [(x.value, y.value) for (x, y), best in zip(points.values(), front, strict=True) if best]
        _draw_front(axes, theme, kept)
        lowest = min([0.0, *(min(x.low, y.low) for x, y in points.values())])
        for method, (x, y) in points.items():
            colour = theme.named()[styles[method].colour]
            axes.hlines(y.value, x.low, x.high, color=colour, linewidth=1.1, alpha=0.6, zorder=2)
            axes.vlines(x.value, y.low, y.high, color=colour, linewidth=1.1, alpha=0.6, zorder=2)
            axes.add_line(marked_line(styles[method], theme, x=[x.value], y=[y.value], size=7))
        _square(axes, theme, *names, lowest=lowest)

    return Panel("methods: how well they follow the dials", LARGE, LARGE, draw)


def front_of_controls(
    points: Mapping[str, Array],
    front: Array,
    *,
    styles: Mapping[str, MethodStyle],
    dials: Sequence[str],
    undialled: Mapping[str, tuple[Interval, Interval]] | None = None,
) -> Panel:
    """Mean achieved scores at every control, a mark a cell; the Pareto front of all of them is joined.

    `points` `(cells, 2)` per method and `front` `(n, 2)`: the second dial, drawn to the right, then the
    first; so are the mean scores of the methods without a dial, a larger mark each, with intervals.
    """

    def draw(axes: Axes, theme: Theme) -> None:
        _draw_front(axes, theme, [(float(x), float(y)) for x, y in front])
        for method, cells in points.items():
            style = styles[method]
            colour = theme.named()[style.colour]
            axes.plot(
                cells[:, 0],
                cells[:, 1],
                linestyle="none",
                marker=style.marker,
                markersize=4,
                alpha=0.8,
                color=colour,
                markerfacecolor="none" if style.hollow else colour,
                markeredgewidth=0.8,
                zorder=3,
            )
        for method, (x, y) in (undialled or {}).items():
            axes.hlines(y.value, x.low, x.high, color=theme.ink, linewidth=0.9, alpha=0.5, zorder=4)
            axes.vlines(x.value, y.low, y.high, color=theme.ink, linewidth=0.9, alpha=0.5, zorder=4)
            mark = marked_line(styles[method], theme, x=[x.value], y=[y.value], size=7)
            mark.set_markeredgecolor(theme.ink)
            mark.set_zorder(5)
            axes.add_line(mark)
        _square(axes, theme, f"achieved {dials[1]}", f"achieved {dials[0]}")

    return Panel("controls: the mean scores they reach", LARGE, LARGE, draw)


def score_histogram(scores: Array, *, dials: Sequence[str], title: str, bins: int = 20) -> Panel:
    """How scores `(n, dials)` in [0, 1] spread over the first two dials, and over each alone, beside it.

    Colours count on a logarithmic scale, shown beside; with one dial it is an ordinary histogram.
    """
    values = np.asarray(scores, dtype=float).reshape(-1, len(dials))
    edges = np.linspace(0, 1, bins + 1)

    def draw_one(axes: Axes, theme: Theme) -> None:
        axes.hist(values[:, 0], bins=edges.tolist(), color=theme.hues[3])
        _frame(axes, theme)
        axes.set_xlim(0, 1)
        _name(axes, theme, dials[0], "responses")

    def draw(axes: Axes, theme: Theme) -> None:
        counts, _, _ = np.histogram2d(values[:, 1], values[:, 0], bins=[edges, edges])
        shown = np.ma.masked_equal(counts.T, 0)
        # The scale starts below 1, so that a single response does not look like an extreme.
        most = max(2.0, float(counts.max()))
        scale = LogNorm(0.5, most)
        axes.pcolormesh(edges, edges, shown, cmap=SCALE, norm=scale, edgecolors=theme.card, linewidth=0.4)
        _square(axes, theme, dials[1], dials[0], margin=0.0)
        above = axes.inset_axes((0, 1.02, 1, 0.13), sharex=axes)
        above.hist(values[:, 1], bins=edges.tolist(), color=theme.muted, alpha=0.75)
        beside = axes.inset_axes((1.02, 0, 0.13, 1), sharey=axes)
        beside.hist(
            values[:, 0], bins=edges.tolist(), color=theme.muted, alpha=0.75, orientation="horizontal"
        )
        above.axis("off")
        beside.axis("off")
        steps = np.geomspace(1, most, 24)
        key = axes.inset_axes((1.19, 0, 0.04, 1))
        key.pcolormesh([0, 1], steps, np.sqrt(steps[1:] * steps[:-1])[:, None], cmap=SCALE, norm=scale)
        key.set_yscale("log")
        key.yaxis.tick_right()
        shown_counts = [count for count in (1, 3, 10, 30, 100, 300, 1000, 3000) if count <= most]
        key.set_yticks(shown_counts, [str(count) for count in shown_counts])
        key.minorticks_off()
        key.set_xticks([])
        _frame(key, theme, grid=False)
        key.set_ylabel("responses in a square", fontsize=FINE, color=theme.muted)
        key.yaxis.set_label_position("right")

    return Panel(title, LARGE, 0.86 * LARGE, draw if len(dials) > 1 else draw_one)


def raw_histogram(values: Array, *, attribute: str, bins: int = 40) -> Panel:
    """How raw rewards `(n,)` spread, in the reward model's own units."""

    def draw(axes: Axes, theme: Theme) -> None:
        axes.hist(np.asarray(values, dtype=float), bins=bins, color=theme.hues[3])
        _frame(axes, theme)
        _name(axes, theme, f"raw reward, {attribute}", "responses")

    return Panel(f"raw {attribute} reward, before calibration", LARGE, LARGE / 2, draw)


def dials(
    curves: Mapping[str, Curves],
    heat_maps: Mapping[str, Array],
    *,
    levels: Levels,
    method: str,
    methods: Sequence[str],
    prompts: int,
    theme: Theme = LIGHT,
) -> Figure:
    """The picture of dials at work: achieved against requested by dial, then where one method's controls land.

    `curves` maps a dial to its curves by method, `heat_maps` a dial to the grid of `method`; `methods` are
    all of the run's, in the order that gives each its colour; `prompts` is how many stand behind a mean. The
    net of controls shows the first two dials.
    """
    styles = method_styles(methods)
    shown = {name: styles[name] for name in methods if any(name in each for each in curves.values())}
    panels = []
    for name, by_method in curves.items():
        panel = level_curve(by_method, attribute=name, styles=styles, size=MIDDLE)
        panels.append(Panel(f"Turning the {name} dial", panel.width, panel.height, panel.draw))
    names = list(curves)[:2]
    note = f"Means of {prompts:,} held-out prompts with 95 % intervals."
    if len(names) > 1:
        up, right = (heat_maps[name] for name in names)
        panel = lattice(up, right, levels=levels, style=styles[method], dials=names, size=MIDDLE)
        panels.append(Panel(f"{method}: turning both", panel.width, panel.height, panel.draw))
        note += (
            f" On the right a knot of the net is one of the {up.size} settings of both\ndials, ● both fully up, ○ both "
            "fully down; the grey lattice behind it would be perfect control."
        )
    return figure([panels], theme=theme, legend={**shown, "perfect control": PERFECT}, note=note)


def legend_mark(style: MethodStyle) -> Panel:
    """A method's line and marker alone, for a legend in a page's own text."""

    def draw(axes: Axes, theme: Theme) -> None:
        axes.add_line(marked_line(style, theme, x=[0.0, 1.0, 2.0], y=[0.0, 0.0, 0.0]))
        axes.lines[0].set_markevery([1])
        axes.set_xlim(-0.1, 2.1)
        axes.set_ylim(-1, 1)
        axes.axis("off")

    return Panel("", 0.42, 0.2, draw)


def _draw_front(axes: Axes, theme: Theme, points: Sequence[tuple[float, float]]) -> None:
    """The border of all that a Pareto front beats: steps through its points, out to both axes."""
    if points:
        x, y = zip(*sorted(points), strict=True)
        steps = axes.step(
            (-2, *x, x[-1]), (y[0], *y, -2), where="pre", color=theme.ink, linewidth=1.0, zorder=1
        )
        steps[0].set_alpha(0.55)


def _square(
    axes: Axes,
    theme: Theme,
    x_name: str,
    y_name: str,
    *,
    grid: bool = True,
    lowest: float = 0.0,
    margin: float = 0.04,
) -> None:
    axes.set_xlim(lowest - margin, 1 + margin)
    axes.set_ylim(lowest - margin, 1 + margin)
    axes.set_xticks(_TICKS, [f"{tick:g}" for tick in _TICKS])
    axes.set_yticks(_TICKS, [f"{tick:g}" for tick in _TICKS])
    axes.set_aspect("equal", adjustable="box")
    _name(axes, theme, x_name, y_name)
    _frame(axes, theme, grid=grid)


def _name(axes: Axes, theme: Theme, x_name: str, y_name: str) -> None:
    axes.set_xlabel(x_name, fontsize=TEXT, color=theme.muted)
    axes.set_ylabel(y_name, fontsize=TEXT, color=theme.muted)


def _frame(axes: Axes, theme: Theme, *, grid: bool = True) -> None:
    for side, spine in axes.spines.items():
        spine.set_visible(grid and side in ("left", "bottom"))
        spine.set_color(theme.line)
    axes.tick_params(colors=theme.muted, labelsize=FINE, color=theme.line, length=2.5)
    if grid:
        axes.grid(color=theme.line, linewidth=0.5, alpha=0.7)
        axes.set_axisbelow(True)
