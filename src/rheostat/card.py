"""`rheostat.json`: what an exported model says of its dials, beside its weights (docs/formats.md)."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rheostat import plugins
from rheostat.control import ControlFormat, Levels
from rheostat.errors import ModelError, PluginNotFound
from rheostat.records import Attribute

CARD = "rheostat.json"
SCHEMA = 2
"""Since 2, levels stand by dial, and a card names floors and defaults."""


@dataclass(frozen=True, slots=True)
class Card:
    """The dials of an exported model, and its chat template without them."""

    control_format: ControlFormat
    chat_template: str


def card_values(
    control_format: ControlFormat,
    chat_template: str,
    *,
    floors: Mapping[str, float],
    trained: ControlFormat,
) -> dict[str, Any]:
    """What a card says of the dials; `trained` has the levels before any floor."""
    names = control_format.names
    return {
        "schema": SCHEMA,
        "attributes": list(names),
        "words": {each.name: each.word for each in control_format.attributes},
        "levels": {name: list(control_format.levels_of(name)) for name in names},
        "defaults": {name: control_format.default_of(name) for name in names},
        "floors": dict(floors),
        "thresholds": {name: list(each) for name, each in control_format.thresholds.items()},
        "trained_levels": {name: list(trained.levels_of(name)) for name in names},
        "chat_template": chat_template,
    }


def read_card(folder: Path) -> Card:
    """The card of an exported model; raises `ModelError` where it cannot be read."""
    try:
        card = json.loads((folder / CARD).read_text(encoding="utf-8"))
        attributes = tuple(plugins.attribute(name) for name in card["attributes"])
        defaults = {name: float(level) for name, level in card.get("defaults", {}).items()}
        thresholds = {name: tuple(each) for name, each in card.get("thresholds", {}).items()}
        control_format = ControlFormat(attributes, _levels(card["levels"], attributes), defaults, thresholds)
        return Card(control_format, card["chat_template"])
    except (OSError, ValueError, KeyError, TypeError, AttributeError, PluginNotFound) as error:
        raise ModelError(
            f"{folder}: its {CARD} cannot be read: {error}",
            hint="give a run directory, or a folder that `rheostat export` wrote",
        ) from error


def _levels(written: Any, attributes: Sequence[Attribute]) -> Levels:
    """Levels off a card: a list a dial, or of every dial (schema 1)."""
    if isinstance(written, list):
        return tuple(written)
    return {each.name: tuple(written[each.name]) for each in attributes}
