"""The block `mixing` of a recipe: how prompts are told apart, and in which ratios they are learned from."""

import re
from collections.abc import Mapping
from typing import Annotated, Any

from pydantic import Field, field_validator, model_validator

from rheostat.config_blocks import Block
from rheostat.errors import did_you_mean

OTHER = "other"
"""The class of what belongs to none; all of it is learned from, unless `ratios` has it too."""

Ratio = Annotated[float, Field(gt=0)]
_ONE_OF_TWO = "`rules`, or `judge`"


class MixingConfig(Block):
    """FDC: of which classes of prompts how much is learned, for methods with `+fdc` (docs/mixing.md)."""

    ratios: dict[str, Ratio] = Field(
        default_factory=lambda: {"explicit": 10.0, "implicit": 3.0, "mixed": 1.0},
        min_length=1,
        description="pairs of each class, in proportion: the scarcest gives all that it has; `other` is what belongs "
        "to no class, all of which is taken unless it has a ratio too",
    )
    rules: dict[str, Annotated[list[str], Field(min_length=1)]] | None = Field(
        None,
        description="regular expressions of each class, looked for in the last user turn whatever the case of its "
        "letters; the first that matches wins, in the order written",
    )
    judge: dict[str, Any] | None = Field(
        None,
        description="in place of rules, an LM that names a prompt's class: `endpoint` as of the reward `judge`, "
        "`descriptions` of the classes, `temperature`, `max_tokens`, `structured`, `attempts`",
    )

    @property
    def classes(self) -> tuple[str, ...]:
        """The classes that prompts are told apart by, without `other`."""
        return tuple(name for name in self.ratios if name != OTHER)

    @field_validator("rules")
    @classmethod
    def _compile(cls, rules: Mapping[str, list[str]] | None) -> Mapping[str, list[str]] | None:
        for name, patterns in (rules or {}).items():
            for pattern in patterns:
                if not pattern:
                    raise ValueError(f"{name}: got an empty pattern, which is found everywhere; allowed is another")
                try:
                    re.compile(pattern, re.IGNORECASE)
                except re.error as error:
                    raise ValueError(
                        f"{name}: got {pattern!r}, allowed is a regular expression; {error}"
                    ) from error
        return rules

    @model_validator(mode="after")
    def _one_way_to_tell_classes(self) -> "MixingConfig":
        given = [name for name in ("rules", "judge") if getattr(self, name) is not None]
        if len(given) != 1:
            raise ValueError(f"got {' and '.join(given) or 'neither'}, allowed is {_ONE_OF_TWO}")
        if not self.classes:
            raise ValueError(f"ratios: got {OTHER} alone, allowed is at least one class besides")
        for name in self.rules or ():
            if name not in self.classes:
                known = list(self.classes)
                raise ValueError(
                    f"rules: got {name!r}, allowed are the classes in ratios, {', '.join(known)}"
                    f"{did_you_mean(name, known)}"
                )
        missing = [name for name in self.classes if self.rules is not None and name not in self.rules]
        if missing:
            raise ValueError(f"rules: got none for {', '.join(missing)}, allowed are some for every class in ratios")
        return self
