"""A patch for people: how many weights of which layers it changes."""

import re
from collections.abc import Iterable, Iterator, Mapping
from typing import Any

from rich import box
from rich.table import Table

from rheostat.methods._patch_options import ENHANCING, MITIGATING


def patch_table(card: Mapping[str, Any]) -> Table:
    """A row a layer, and one a tensor that belongs to none: its weights, and those that each patch changes."""
    options = card["options"]
    table = Table(
        title=f"{card['kind']} on {card['model']}", title_justify="left", box=box.SIMPLE_HEAD, padding=(0, 1, 0, 0),
        pad_edge=False, show_edge=False,
    )  # fmt: skip
    table.add_column("layer", overflow="fold")
    for name in ("weights", ENHANCING, "share", MITIGATING, "share"):
        table.add_column(name, justify="right", no_wrap=True)
    rows = by_layer(card["tensors"])
    for place, (layer, counts) in enumerate([*rows.items(), ("all", _sum(rows.values()))]):
        if place == len(rows):
            table.add_section()
        table.add_row(layer, *_cells(counts))
    table.caption, table.caption_justify = ", ".join(f"{name} {value:g}" for name, value in options.items()), "left"
    return table


def by_layer(tensors: Mapping[str, Mapping[str, int]]) -> dict[str, dict[str, int]]:
    """Counts summed over the tensors of a layer, whose name is theirs up to their first number.

    Worked: `model.layers.0.mlp.up_proj.weight` counts under `model.layers.0`, `model.norm.weight` under itself.
    """
    grouped: dict[str, list[Mapping[str, int]]] = {}
    for name, counts in tensors.items():
        layer = re.match(r".*?\.\d+(?=\.)", name)
        grouped.setdefault(layer[0] if layer else name, []).append(counts)
    return {layer: _sum(each) for layer, each in grouped.items()}


def _sum(counts: Iterable[Mapping[str, int]]) -> dict[str, int]:
    listed = list(counts)
    return {key: sum(each.get(key, 0) for each in listed) for key in ("weights", ENHANCING, MITIGATING)}


def _cells(counts: Mapping[str, int]) -> Iterator[str]:
    yield f"{counts['weights']:,}"
    for role in (ENHANCING, MITIGATING):
        yield f"{counts[role]:,}"
        yield f"{counts[role] / counts['weights']:.1%}"
