"""What the report's pictures are drawn on: colours, panels, and the way to a PNG or SVG file.

A `Panel` knows its size and how to draw itself on a pair of axes in the colours of a `Theme`. `figure` lays
panels out in rows; `to_png` and `to_svg` turn the figure into a file. On the page, colours are CSS
variables, so that one picture serves light and dark mode; in a PNG they are those of `LIGHT` or `DARK`.

Only matplotlib's object interface is used: no pyplot, no current figure, nothing left behind.
"""

import html
import io
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import matplotlib
import numpy as np
from matplotlib.axes import Axes
from matplotlib.colors import to_hex
from matplotlib.figure import Figure
from matplotlib.layout_engine import ConstrainedLayoutEngine
from matplotlib.lines import Line2D
from numpy.typing import NDArray

Array = NDArray[np.float64]
Dashes = str | tuple[float, tuple[float, ...]]

SCALE = matplotlib.colormaps["viridis"]
"""The colours of scores in [0, 1]; told apart in every kind of colour blindness, and in grey."""

FINE, TEXT, TITLE = 7.5, 8.5, 9.5
"""Sizes of type, in points."""

_MARKERS = ("o", "s", "^", "D", "v", "P", "X", "<", ">", "p", "h")
_DASHES: tuple[Dashes, ...] = ("-", (0, (5, 2)), (0, (1, 1.5)), (0, (5, 1.5, 1, 1.5)))


@dataclass(frozen=True, slots=True)
class Theme:
    """Colours in hexadecimal; `base` is the untuned model's, `hues` are the other methods'."""

    ink: str
    muted: str
    line: str
    card: str
    base: str
    hues: tuple[str, ...]

    def named(self) -> dict[str, str]:
        """Every colour by the name that its CSS variable has on the page."""
        return {
            "ink": self.ink,
            "muted": self.muted,
            "line": self.line,
            "card": self.card,
            "base": self.base,
            **{f"hue-{index}": hue for index, hue in enumerate(self.hues)},
        }


# The hues are Okabe and Ito's, which every common kind of colour blindness tells apart: darker on white,
# lighter on black.
LIGHT = Theme(
    ink="#1d2330",
    muted="#667085",
    line="#d8dde6",
    card="#ffffff",
    base="#858c99",
    hues=("#d98a00", "#b85c93", "#009e73", "#0072b2", "#d55e00", "#4aa6db", "#7a6a00"),
)
DARK = Theme(
    ink="#e7ebf2",
    muted="#98a2b3",
    line="#343d4d",
    card="#171c26",
    base="#98a2b3",
    hues=("#f0ad33", "#dc8fbd", "#2cc79a", "#4fa9e8", "#ff8748", "#8fd0f5", "#d6c52e"),
)
PAGE = Theme("#f00001", "#f00002", "#f00003", "#f00004", "#f00005", tuple(f"#f0001{n}" for n in range(7)))
"""Stand-ins that `to_svg` replaces by `var(--name)`."""


@dataclass(frozen=True, slots=True)
class MethodStyle:
    """How a method looks in every picture: its colour's name in a `Theme`, its marker, its dashes."""

    colour: str
    marker: str
    dashes: Dashes
    hollow: bool


def method_styles(methods: Sequence[str]) -> dict[str, MethodStyle]:
    """A style per method: the part before the first `+` gives colour and marker, what follows the dashes.

    There are more markers than hues: of the methods that share a hue none shares the marker, and the dashes differ too.
    """
    heads = list(dict.fromkeys(name.partition("+")[0] for name in methods))
    others = [head for head in heads if head != "base"]
    endings = list(dict.fromkeys(["", *(name.partition("+")[2] for name in methods)]))
    styles = {}
    for name in methods:
        head, _, ending = name.partition("+")
        position = 0 if head == "base" else 1 + others.index(head)
        lap = max(0, position - 1) // len(LIGHT.hues)
        styles[name] = MethodStyle(
            colour="base" if head == "base" else f"hue-{(position - 1) % len(LIGHT.hues)}",
            marker=_MARKERS[position % len(_MARKERS)],
            dashes=_DASHES[(endings.index(ending) + lap) % len(_DASHES)],
            hollow=bool(ending),
        )
    return styles


@dataclass(frozen=True, slots=True)
class Panel:
    """One pair of axes, `width` × `height` inches with its labels, and how to draw on it."""

    title: str
    width: float
    height: float
    draw: Callable[[Axes, Theme], None]


def figure(
    rows: Sequence[Sequence[Panel]],
    *,
    theme: Theme,
    titles: bool = True,
    legend: Mapping[str, MethodStyle] | None = None,
    note: str = "",
) -> Figure:
    """The panels in rows, under a legend of the methods in `legend`, over a line of text."""
    columns = range(max(map(len, rows)))
    widths = [max(row[column].width for row in rows if column < len(row)) for column in columns]
    heights = [
        max(panel.height + 0.2 * titles * len(panel.title.splitlines()) for panel in row) for row in rows
    ]
    entries = _legend_columns(list(legend), sum(widths)) if legend else 1
    legend_height = 0.26 * -(-len(legend) // entries) if legend else 0.0
    note_lines = len(note.splitlines())
    picture = Figure(
        figsize=(sum(widths), sum(heights) + legend_height + 0.18 * note_lines),
        layout=ConstrainedLayoutEngine(w_pad=0.05, h_pad=0.05, wspace=0.02),
        facecolor=theme.card,
    )
    grid = picture.add_gridspec(len(rows), len(widths), width_ratios=widths, height_ratios=heights)
    for row_index, row in enumerate(rows):
        for column, panel in enumerate(row):
            axes = picture.add_subplot(grid[row_index, column])
            axes.set_facecolor("none")
            panel.draw(axes, theme)
            if titles:
                axes.set_title(panel.title, fontsize=TITLE, color=theme.ink, loc="left", fontweight="bold")
    if note:
        picture.supxlabel(note, x=0.008, ha="left", fontsize=FINE, color=theme.muted)
    if legend:
        picture.legend(
            handles=[marked_line(style, theme, label=name) for name, style in legend.items()],
            loc="outside upper left",
            ncols=entries,
            frameon=False,
            fontsize=TITLE,
            labelcolor=theme.ink,
            handlelength=2.4,
            borderaxespad=0.3,
        )
    return picture


def _legend_columns(names: Sequence[str], width: float) -> int:
    """The most columns, each as wide as its longest name with its mark, that fit into `width` inches; at least 1."""
    for columns in range(len(names), 1, -1):
        filled = np.array_split(np.array([len(name) for name in names]), columns)
        if sum(0.56 + 0.083 * float(lengths.max()) for lengths in filled) <= width:
            return columns
    return 1


def marked_line(
    style: MethodStyle,
    theme: Theme,
    *,
    x: Sequence[float] = (),
    y: Sequence[float] = (),
    label: str = "",
    size: float = 4.5,
) -> Line2D:
    """A method's line through some points, or its legend entry."""
    colour = theme.named()[style.colour]
    return Line2D(
        x,
        y,
        color=colour,
        linestyle=style.dashes,  # type: ignore[arg-type]  # matplotlib's stubs leave out (offset, dashes)
        linewidth=1.6,
        marker=style.marker,
        markersize=size,
        markerfacecolor=theme.card if style.hollow else colour,
        markeredgecolor=colour,
        label=label,
        zorder=4,
    )


def to_png(picture: Figure, *, dots_per_inch: int = 160) -> bytes:
    """The figure as a PNG file; equal figures give equal bytes."""
    file = io.BytesIO()
    picture.savefig(file, format="png", dpi=dots_per_inch, metadata={"Software": None})
    return file.getvalue()


def to_svg(picture: Figure, *, name: str, label: str) -> str:
    """A figure drawn in `PAGE` as an inline `<svg>` that takes its colours and its font from the page.

    `name` keeps its identifiers apart from those of the page's other pictures; `label` is read out to those
    who cannot see it. Nothing in it refers to anything outside.
    """
    file = io.StringIO()
    with matplotlib.rc_context({"svg.fonttype": "none", "svg.hashsalt": name}):
        picture.savefig(file, format="svg", metadata={"Date": None})
    text = file.getvalue()
    box = re.search(r'viewBox="([^"]*)"', text)
    assert box is not None, text[:200]
    body = text[text.index(">", text.index("<svg")) + 1 :]
    body = re.sub(r"<metadata>.*?</metadata>|<style[^>]*>.*?</style>|<!--.*?-->", "", body, flags=re.DOTALL)
    body = re.sub(r'<g id="[^"]*"', "<g", body)
    body = re.sub(r"font-family: [^;\"]*", "font-family: var(--font)", body)
    body = body.replace("xlink:href=", "href=")
    for key, colour in PAGE.named().items():
        body = body.replace(colour, f"var(--{key})")
    body = re.sub(r"\s*\n\s*", "\n", body).strip()
    return f'<svg class="picture" role="img" aria-label="{html.escape(label)}" viewBox="{box[1]}">{body}'


def score_colour(value: float) -> str:
    """The colour of a score in [0, 1], the same in every picture and table."""
    return to_hex(SCALE(min(max(value, 0.0), 1.0)))


def ink_on(colour: str) -> str:
    """Black or white, whichever reads better on a background (contrast as WCAG 2 defines it)."""
    channels = [int(colour[start : start + 2], 16) / 255 for start in (1, 3, 5)]
    red, green, blue = (c / 12.92 if c <= 0.04045 else ((c + 0.055) / 1.055) ** 2.4 for c in channels)
    luminance = 0.2126 * red + 0.7152 * green + 0.0722 * blue
    return "#ffffff" if 1.05 / (luminance + 0.05) > (luminance + 0.05) / 0.05 else "#000000"
