"""The report's pictures, drawn from plain arrays.

A picture is made of panels; a `Panel` knows its size and how to draw itself on a pair of axes in some colours.
`figure` lays panels out in rows, `to_png` and `to_svg` turn the figure into a file. On the page, colours are CSS
variables, so that one picture serves light and dark mode; in a PNG they are those of `LIGHT` or `DARK`.

Only matplotlib's object interface is used: no pyplot, no current figure, nothing left behind.
"""

import io
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, fields
from typing import NamedTuple

import matplotlib
import numpy as np
from matplotlib.axes import Axes
from matplotlib.colors import LogNorm, Normalize, to_hex
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from numpy.typing import NDArray

Array = NDArray[np.float64]

_SCALE = matplotlib.colormaps["viridis"]
_MARKERS = ("o", "s", "^", "D", "v", "P", "X")
_DASHES = ("-", (0, (5, 2)), (0, (1, 1.5)), (0, (5, 1.5, 1, 1.5)))
_TICKS = (0.0, 0.5, 1.0)
_SMALL, _TEXT, _TITLE = 7.0, 8.0, 9.0


class LevelPoint(NamedTuple):
    """Mean achieved score at one requested level, with the ends of its interval; all in [0, 1]."""

    level: float
    mean: float
    low: float
    high: float


class FrontPoint(NamedTuple):
    """A method's figure on two axes, each as (value, low, high)."""

    x: tuple[float, float, float]
    y: tuple[float, float, float]


Curves = Mapping[str, Sequence[LevelPoint]]


@dataclass(frozen=True, slots=True)
class Theme:
    """Colours, as hexadecimal text; `base` is that of the untuned model, `hues` those of the other methods."""

    ink: str
    muted: str
    line: str
    card: str
    base: str
    hues: tuple[str, ...]

    def named(self) -> dict[str, str]:
        """Every colour by the name that its CSS variable has on the page."""
        single = {field.name: getattr(self, field.name) for field in fields(self) if field.name != "hues"}
        return single | {f"hue-{index}": hue for index, hue in enumerate(self.hues)}


# The hues are Okabe and Ito's, told apart in every common kind of colour blindness; darker on white, lighter on black.
LIGHT = Theme(
    "#1d2330", "#667085", "#d5dae2", "#ffffff", "#858c99",
    ("#d98a00", "#b85c93", "#009e73", "#0072b2", "#d55e00", "#4aa6db", "#7a6a00"),
)  # fmt: skip
DARK = Theme(
    "#e7ebf2", "#98a2b3", "#3a4353", "#171c26", "#98a2b3",
    ("#f0ad33", "#dc8fbd", "#2cc79a", "#4fa9e8", "#ff8748", "#8fd0f5", "#d6c52e"),
)  # fmt: skip
PAGE = Theme(
    "#f00001", "#f00002", "#f00003", "#f00004", "#f00005", tuple(f"#f0001{index}" for index in range(7))
)
"""Stand-ins that `to_svg` replaces by `var(--name)`."""


@dataclass(frozen=True, slots=True)
class MethodStyle:
    """How a method looks in every picture: its colour's name in a `Theme`, its marker, its dashes."""

    colour: str
    marker: str
    dashes: str | tuple[int, tuple[float, ...]]
    hollow: bool


def method_styles(methods: Sequence[str]) -> dict[str, MethodStyle]:
    """A style per method: the part before the first `+` chooses colour and marker, what follows the dashes."""
    heads = list(dict.fromkeys(name.partition("+")[0] for name in methods))
    others = [head for head in heads if head != "base"]
    endings = list(dict.fromkeys(["", *(name.partition("+")[2] for name in methods)]))
    styles = {}
    for name in methods:
        head, _, ending = name.partition("+")
        position = 0 if head == "base" else 1 + others.index(head)
        styles[name] = MethodStyle(
            colour="base" if head == "base" else f"hue-{(position - 1) % len(LIGHT.hues)}",
            marker=_MARKERS[position % len(_MARKERS)],
            dashes=_DASHES[endings.index(ending) % len(_DASHES)],
            hollow=bool(ending),
        )
    return styles


@dataclass(frozen=True, slots=True)
class Panel:
    """One pair of axes: `width` × `height` inches, and how to draw on it."""

    title: str
    width: float
    height: float
    draw: Callable[[Axes, Theme], None]


def figure(rows: Sequence[Sequence[Panel]], *, theme: Theme, titles: bool = True, legend: Sequence[str] = ()) -> Figure:
    """The panels in rows, under a legend of the methods named in `legend`, in the order that styles them."""
    widths = [max(row[column].width for row in rows if column < len(row)) for column in range(max(map(len, rows)))]
    heights = [max(panel.height for panel in row) for row in rows]
    height = sum(heights) + 0.3 * bool(legend)
    picture = Figure(figsize=(sum(widths), height), layout="constrained", facecolor=theme.card)
    grid = picture.add_gridspec(len(rows), len(widths), width_ratios=widths, height_ratios=heights)
    for row_index, row in enumerate(rows):
        for column, panel in enumerate(row):
            axes = picture.add_subplot(grid[row_index, column])
            axes.set_facecolor("none")
            panel.draw(axes, theme)
            if titles:
                axes.set_title(panel.title, fontsize=_TITLE, color=theme.ink, loc="left", fontweight="bold")
    if legend:
        styles = method_styles(legend)
        handles = [_handle(styles[name], name, theme) for name in legend]
        picture.legend(
            handles=handles, loc="outside upper left", ncols=min(len(handles), max(2, int(sum(widths) / 1.4))),
            frameon=False, fontsize=_TITLE, labelcolor=theme.ink, handlelength=2.4, borderaxespad=0.2,
        )  # fmt: skip
    return picture


def to_png(picture: Figure, *, dots_per_inch: int = 160) -> bytes:
    """The figure as a PNG file; equal figures give equal bytes."""
    file = io.BytesIO()
    picture.savefig(file, format="png", dpi=dots_per_inch, metadata={"Software": None})
    return file.getvalue()


def to_svg(picture: Figure, *, name: str, label: str) -> str:
    """A figure drawn in `PAGE` as an inline `<svg>` that takes its colours from the page.

    `name` keeps its identifiers apart from those of the page's other pictures; `label` is read out to those who
    cannot see it. Text stays text, in the page's font.
    """
    file = io.StringIO()
    with matplotlib.rc_context({"svg.fonttype": "none", "svg.hashsalt": name}):
        picture.savefig(file, format="svg", metadata={"Date": None})
    text = file.getvalue()
    text = text[text.index("<svg") :]
    text = re.sub(r"<metadata>.*?</metadata>\s*", "", text, flags=re.DOTALL)
    text = re.sub(r"<style[^>]*>.*?</style>\s*", "", text, flags=re.DOTALL)
    text = re.sub(r"<!--.*?-->\s*", "", text, flags=re.DOTALL)
    text = re.sub(r'<g id="[^"]*"', "<g", text)
    text = re.sub(r"font: ([0-9.]+px|(?:\w+ )+[0-9.]+px) [^;\"]*", r"font: \1 var(--font)", text)
    text = text.replace("xlink:href=", "href=")
    for key, colour in PAGE.named().items():
        text = text.replace(colour, f"var(--{key})")
    box = re.search(r'viewBox="([^"]*)"', text)
    assert box is not None, text[:200]
    head = f'<svg class="picture" role="img" aria-label="{_attribute(label)}" viewBox="{box[1]}">'
    return head + re.sub(r"\s*\n\s*", "\n", text[text.index(">") + 1 :]).strip()


def level_curve(
    curves: Curves, *, attribute: str, styles: Mapping[str, MethodStyle], small: bool = False
) -> Panel:
    """Achieved against requested level of one dial, a line a method, with its interval; the diagonal is perfect."""

    def draw(axes: Axes, theme: Theme) -> None:
        colours = theme.named()
        axes.plot([0, 1], [0, 1], color=theme.muted, linewidth=0.9, dashes=(3, 3), zorder=1)
        for method, points in curves.items():
            style = styles[method]
            levels, means, lows, highs = (np.asarray(column) for column in zip(*points, strict=True))
            colour = colours[style.colour]
            axes.fill_between(levels, lows, highs, color=colour, alpha=0.16, linewidth=0)
            axes.errorbar(
                levels, means, yerr=np.maximum([means - lows, highs - means], 0.0), color=colour, fmt="none",
                elinewidth=0.9, capsize=0, alpha=0.7, zorder=3,
            )  # fmt: skip
            _line(axes, levels, means, style, theme)
        _square(axes, theme, f"requested {attribute}", f"achieved {attribute}")

    size = 2.15 if small else 2.9
    return Panel(attribute, size, size, draw)


def heat_map(matrix: Array, *, attribute: str, levels: Sequence[float], dials: Sequence[str]) -> Panel:
    """Mean achieved score at every control, `(levels, levels)`: down the first of `dials`, along the second.

    With one dial the matrix is `(levels, 1)`.
    """
    matrix = np.asarray(matrix, dtype=float)

    def draw(axes: Axes, theme: Theme) -> None:
        axes.pcolormesh(matrix, cmap=_SCALE, vmin=0, vmax=1, edgecolors=theme.card, linewidth=1.2)
        for row, column in np.ndindex(*matrix.shape):
            value = matrix[row, column]
            text = "–" if np.isnan(value) else f"{value:.2f}".lstrip("0") if value < 0.995 else "1"
            axes.text(
                column + 0.5, row + 0.48, text, ha="center", va="center", fontsize=_SMALL,
                color=theme.muted if np.isnan(value) else ink_on(score_colour(value)),
            )  # fmt: skip
        _frame(axes, theme, grid=False)
        axes.tick_params(length=0)
        names = [f"{level:g}" for level in levels]
        axes.set_yticks(np.arange(len(levels)) + 0.5, names)
        axes.set_ylabel(f"requested {dials[0]}", fontsize=_TEXT, color=theme.muted)
        if matrix.shape[1] > 1:
            axes.set_xticks(np.arange(len(levels)) + 0.5, names)
            axes.set_xlabel(f"requested {dials[1]}", fontsize=_TEXT, color=theme.muted)
        else:
            axes.set_xticks([])

    return Panel(f"achieved {attribute}", 2.15, 2.15, draw)


def lattice(first: Array, second: Array, *, style: MethodStyle, dials: Sequence[str]) -> Panel:
    """Where each control of two dials lands, neighbours joined; perfect control is the square lattice behind.

    `first`, `second` `(levels, levels)`: mean achieved score of the first and the second dial, drawn upward and to
    the right. The filled mark is both dials fully up, the hollow one both fully down.
    """
    first, second = np.asarray(first, dtype=float), np.asarray(second, dtype=float)
    assert first.shape == second.shape, (first.shape, second.shape)

    def draw(axes: Axes, theme: Theme) -> None:
        for position in np.linspace(0, 1, len(first)):
            axes.plot([position, position], [0, 1], color=theme.line, linewidth=0.8, zorder=1)
            axes.plot([0, 1], [position, position], color=theme.line, linewidth=0.8, zorder=1)
        colour = theme.named()[style.colour]
        for x, y in (*zip(second, first, strict=True), *zip(second.T, first.T, strict=True)):
            axes.plot(x, y, color=colour, linewidth=1.1, alpha=0.85, zorder=2, solid_joinstyle="round")
        axes.plot(second.ravel(), first.ravel(), ".", color=colour, markersize=3.2, zorder=3)
        axes.plot(second[-1, -1], first[-1, -1], "o", color=colour, markersize=6, zorder=4)
        axes.plot(
            second[0, 0], first[0, 0], "o", color=colour, markerfacecolor=theme.card, markersize=6, zorder=4
        )
        _square(axes, theme, f"achieved {dials[1]}", f"achieved {dials[0]}", grid=False)

    return Panel("where every control lands", 2.15, 2.15, draw)


def front_of_methods(
    points: Mapping[str, FrontPoint], front: Sequence[bool], *, styles: Mapping[str, MethodStyle], axes_names: Sequence[str]
) -> Panel:
    """One mark a method on two figures that are better when higher, with intervals; `front` marks the Pareto front."""

    def draw(axes: Axes, theme: Theme) -> None:
        colours = theme.named()
        on_front = [point for point, kept in zip(points.values(), front, strict=True) if kept]
        _draw_front(axes, [(point.x[0], point.y[0]) for point in on_front], theme)
        for method, point in points.items():
            style = styles[method]
            axes.errorbar(
                point.x[0], point.y[0], xerr=_arms(point.x), yerr=_arms(point.y), fmt="none",
                color=colours[style.colour], elinewidth=1.0, alpha=0.55, zorder=2,
            )  # fmt: skip
            _line(axes, [point.x[0]], [point.y[0]], style, theme, size=7)
            right = point.x[0] < 0.7
            axes.annotate(
                method, (point.x[0], point.y[0]), xytext=(7 if right else -7, -9), textcoords="offset points",
                ha="left" if right else "right", fontsize=_TEXT, color=theme.ink, zorder=5,
            )  # fmt: skip
        lowest = min([0.0, *(min(point.x[1], point.y[1]) for point in points.values())])
        _square(axes, theme, axes_names[1], axes_names[0], lowest=lowest)

    return Panel("methods", 3.6, 3.6, draw)


def front_of_controls(
    points: Mapping[str, Array], front: Array, *, styles: Mapping[str, MethodStyle], dials: Sequence[str]
) -> Panel:
    """Mean achieved scores at every control, `(cells, 2)` a method as (second, first dial); `front` `(n, 2)` is joined."""

    def draw(axes: Axes, theme: Theme) -> None:
        _draw_front(axes, [(float(x), float(y)) for x, y in front], theme)
        for method, cells in points.items():
            style = styles[method]
            colour = theme.named()[style.colour]
            axes.plot(
                cells[:, 0], cells[:, 1], linestyle="none", marker=style.marker, markersize=4, alpha=0.8,
                color=colour, markerfacecolor="none" if style.hollow else colour, markeredgewidth=0.8, zorder=3,
            )  # fmt: skip
        _square(axes, theme, f"achieved {dials[1]}", f"achieved {dials[0]}")

    return Panel("controls", 3.6, 3.6, draw)


def score_histogram(scores: Array, *, dials: Sequence[str], title: str, bins: int = 24) -> Panel:
    """How scores `(n, dials)` in [0, 1] spread over the first two dials, with each one's own distribution beside it.

    Colours count on a logarithmic scale; with one dial it is an ordinary histogram.
    """
    scores = np.asarray(scores, dtype=float).reshape(-1, len(dials))
    edges = np.linspace(0, 1, bins + 1)
    unit = Normalize(-0.12, 1.0)

    def draw_one(axes: Axes, theme: Theme) -> None:
        axes.hist(scores[:, 0], bins=list(edges), color=theme.hues[3])
        _frame(axes, theme)
        axes.set_xlim(0, 1)
        axes.set_xlabel(dials[0], fontsize=_TEXT, color=theme.muted)
        axes.set_ylabel("responses", fontsize=_TEXT, color=theme.muted)

    def draw(axes: Axes, theme: Theme) -> None:
        counts, _, _ = np.histogram2d(scores[:, 0], scores[:, 1], bins=[edges, edges])
        top = max(2.0, float(counts.max()))
        shades = unit(LogNorm(1, top)(np.maximum(counts, 1)))
        axes.pcolormesh(
            edges, edges, np.ma.masked_where(counts == 0, shades), cmap=_SCALE, vmin=0, vmax=1, linewidth=0.4,
            edgecolors=theme.card,
        )  # fmt: skip
        _square(axes, theme, dials[1], dials[0], margin=0.0)
        for bounds, column, upright in (((0, 1.02, 1, 0.14), 1, True), ((1.02, 0, 0.14, 1), 0, False)):
            beside = axes.inset_axes(bounds)
            heights, _ = np.histogram(scores[:, column], bins=edges)
            if upright:
                beside.bar(edges[:-1], heights, width=1 / bins, align="edge", color=theme.muted, alpha=0.75)
                beside.set_xlim(0, 1)
            else:
                beside.barh(edges[:-1], heights, height=1 / bins, align="edge", color=theme.muted, alpha=0.75)
                beside.set_ylim(0, 1)
            beside.axis("off")

    return Panel(title, 3.3, 3.3, draw if len(dials) > 1 else draw_one)


def dials(
    curves: Mapping[str, Curves], heat_maps: Mapping[str, Array], *, method: str, levels: Sequence[float],
    methods: Sequence[str], theme: Theme = LIGHT,
) -> Figure:  # fmt: skip
    """The picture that shows the dials working: achieved against requested, by dial, and one method's heat maps.

    `curves` maps a dial to its curve per method; `heat_maps` maps a dial to the grid of `method`; `methods` is the
    order that gives each its colour.
    """
    styles = method_styles(methods)
    shown = [name for name in methods if any(name in by_method for by_method in curves.values())]
    names = list(curves)
    row = [level_curve(by_method, attribute=name, styles=styles) for name, by_method in curves.items()]
    panels = [Panel(f"the {panel.title} dial", panel.width, panel.height, panel.draw) for panel in row]
    if len(names) > 1:
        for name in names[:2]:
            cells = heat_map(heat_maps[name], attribute=name, levels=levels, dials=names[:2])
            panels.append(Panel(f"{cells.title}, {method}", 2.9, 2.9, cells.draw))
    return figure([panels], theme=theme, legend=shown)


def score_colour(value: float) -> str:
    """The colour of a score in [0, 1], the same in every picture and table."""
    return to_hex(_SCALE(min(max(value, 0.0), 1.0)))


def ink_on(colour: str) -> str:
    """Black or white, whichever reads better on a background, by the contrast of WCAG 2."""
    channels = [int(colour[start : start + 2], 16) / 255 for start in (1, 3, 5)]
    red, green, blue = (c / 12.92 if c <= 0.04045 else ((c + 0.055) / 1.055) ** 2.4 for c in channels)
    luminance = 0.2126 * red + 0.7152 * green + 0.0722 * blue
    return "#ffffff" if 1.05 / (luminance + 0.05) > (luminance + 0.05) / 0.05 else "#000000"


def _line(
    axes: Axes, x: Sequence[float] | Array, y: Sequence[float] | Array, style: MethodStyle, theme: Theme, size: float = 4.5
) -> None:
    axes.add_line(_handle(style, "", theme, x=x, y=y, size=size))


def _handle(
    style: MethodStyle, label: str, theme: Theme, *, x: Sequence[float] | Array = (), y: Sequence[float] | Array = (),
    size: float = 4.5,
) -> Line2D:  # fmt: skip
    colour = theme.named()[style.colour]
    return Line2D(
        list(x), list(y), color=colour, linestyle=style.dashes, linewidth=1.6, marker=style.marker, markersize=size,
        markerfacecolor=theme.card if style.hollow else colour, markeredgecolor=colour, label=label, zorder=4,
    )  # fmt: skip


def _arms(figure: tuple[float, float, float]) -> Array:
    value, low, high = figure
    return np.maximum([[value - low], [high - value]], 0.0)


def _draw_front(axes: Axes, points: Sequence[tuple[float, float]], theme: Theme) -> None:
    """Join a Pareto front by the steps that bound what it dominates."""
    if points:
        x, y = zip(*sorted(points), strict=True)
        axes.step(x, y, where="pre", color=theme.ink, linewidth=1.0, alpha=0.6, zorder=1)


def _frame(axes: Axes, theme: Theme, *, grid: bool = True) -> None:
    for side, spine in axes.spines.items():
        spine.set_visible(grid and side in ("left", "bottom"))
        spine.set_color(theme.line)
    axes.tick_params(colors=theme.muted, labelsize=_SMALL, color=theme.line, length=2.5)
    if grid:
        axes.grid(color=theme.line, linewidth=0.5, alpha=0.7)
        axes.set_axisbelow(True)


def _square(
    axes: Axes, theme: Theme, x_name: str, y_name: str, *, grid: bool = True, lowest: float = 0.0, margin: float = 0.04
) -> None:
    axes.set_xlim(lowest - margin, 1 + margin)
    axes.set_ylim(lowest - margin, 1 + margin)
    axes.set_xticks(_TICKS, [f"{tick:g}" for tick in _TICKS])
    axes.set_yticks(_TICKS, [f"{tick:g}" for tick in _TICKS])
    axes.set_aspect("equal", adjustable="box")
    axes.set_xlabel(x_name, fontsize=_TEXT, color=theme.muted)
    axes.set_ylabel(y_name, fontsize=_TEXT, color=theme.muted)
    _frame(axes, theme, grid=grid)


def _attribute(text: str) -> str:
    return text.replace("&", "&amp;").replace('"', "&quot;").replace("<", "&lt;")
